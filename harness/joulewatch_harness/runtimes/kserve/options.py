"""The options of the runtime ``kserve``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from joulewatch_harness import networks
from joulewatch_harness.binder import Limits, Parse
from joulewatch_harness.clients.options import WEB
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.runtimes.shared.http import GRPC, ServerOptions
from joulewatch_harness.runtimes.shared.inputs import InputOptions

LARGEST_CONCURRENCY: Final = 1024
NO_REFERENCE: Final = "none"


def _reference(name: str) -> str:
    return "" if name == NO_REFERENCE else name


@dataclass(frozen=True, kw_only=True)
class Options(ServerOptions, InputOptions):
    """Options of this runtime; the scheme of the URL selects HTTP or gRPC."""

    RUNTIME: ClassVar[str] = "kserve"
    SCHEMES: ClassVar[tuple[str, ...]] = (*WEB, *GRPC)

    url: str = ""
    """Base URL of the server; its scheme selects HTTP or gRPC (which needs the extra grpc). Required."""
    version: str = ""
    """Version of the model. Default: the server's choice."""
    binary: bool = True
    """Send tensors in binary over HTTP; gRPC has no other form."""
    concurrency: Annotated[int, Limits(ge=1, le=LARGEST_CONCURRENCY)] = 1
    """Requests in flight, each on a separate connection."""
    server_stats: bool = True
    """Request the server's statistics after every call of ``run``, in one small request."""
    reference: Annotated[str, Parse(_reference)] = ""
    """Built-in network that computes the expected outputs, or ``none``. Default: that of the same name."""
    reference_options: Mapping[str, str] = field(default_factory=dict, init=False)
    any_outputs: bool = False
    """Accept outputs that are all zero, or do not depend on the inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where.scheme in GRPC and not self.binary:
            raise ConfigError("binary: false is for http:// only: over gRPC tensors are always binary")
        if self.where.scheme in GRPC and self.cert_file is not None:
            raise ConfigError("cert_file: is for https:// only")

    @classmethod
    def of(cls, network: str, options: Mapping[str, str]) -> Options:
        """Convert the options, which may include those of the reference.

        Args:
            network: The name of the model; that of a built-in network selects it as the reference.
            options: As typed.

        Raises:
            ConfigError: as of ``parse``.
        """
        reference = options.get("reference", network if network in networks.BUILTIN else NO_REFERENCE)
        of_reference: Iterable[str] = () if reference == NO_REFERENCE else networks.builtin(reference).options
        refuse_unknown(cls.RUNTIME, "option", options, (*cls.keys(), *of_reference))
        own = {key: value for key, value in options.items() if key not in of_reference}
        bound = cls.parse({**own, "reference": reference})
        object.__setattr__(bound, "reference_options", {k: v for k, v in options.items() if k in of_reference})
        return bound
