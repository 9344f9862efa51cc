"""What can be set of a model behind a KServe v2 server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import refuse_unknown
from joulewatch_harness.runtimes import ANY_PRECISION, flag
from joulewatch_harness.runtimes.shared import http as http_client
from joulewatch_harness.runtimes.shared.http import GRPC, WEB, Endpoint
from joulewatch_harness.runtimes.shared.inputs import InputOptions, parse_count

LARGEST_CONCURRENCY: Final = 1024

_OWN: Final = ("version", "binary", "concurrency", "server_stats", "reference", "any_outputs")


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set with ``--option KEY=VALUE``, or under ``options`` in a plan."""

    where: Endpoint
    """Of ``url``, ``timeout_s``, ``ca_file``, ``insecure`` and ``headers_file``; the scheme says HTTP or gRPC."""
    data: InputOptions
    version: str = ""
    """Of the model; empty: the server's choice."""
    binary: bool = True
    """Over HTTP; over gRPC tensors are never text."""
    concurrency: int = 1
    """Requests in flight, each on a connection of its own."""
    server_stats: bool = True
    """Ask for the server's statistics after every call of ``run`` (one small request), where it keeps any."""
    reference: str = ""
    """A built-in network whose values the outputs must have; ``none``: compare with nothing."""
    reference_options: Mapping[str, str] = field(default_factory=dict)
    any_outputs: bool = False
    """Believe outputs that are nothing but zeros, or the same whatever the inputs are."""
    any_precision: bool = False

    @classmethod
    def parse(cls, network: str, words: Mapping[str, str]) -> Options:
        """Turn strings into options.

        Args:
            network: The model's name; of a built-in network it means that this is its reference.
            words: As typed.

        Raises:
            ConfigError: an unknown key or a bad value; the text names it.
        """
        reference = words.get("reference", network if network in networks.BUILTIN else "none")
        own: Iterable[str] = () if reference == "none" else networks.builtin(reference).options
        known = (*http_client.OPTIONS, *InputOptions.KEYS, *_OWN, ANY_PRECISION, *own)
        refuse_unknown("kserve", "option", words, known)
        where = http_client.endpoint("kserve", words, schemes=(*WEB, *GRPC))
        binary = flag(words, "binary", True)
        if where.scheme in GRPC and not binary:
            raise ConfigError("kserve: option binary=false is of http://: over gRPC tensors are always binary")
        concurrency = parse_count("kserve", words, "concurrency", least=1) or 1
        if concurrency > LARGEST_CONCURRENCY:
            raise ConfigError(f"kserve: option concurrency is {concurrency}: at most {LARGEST_CONCURRENCY}")
        return cls(
            where=where,
            data=InputOptions.parse("kserve", words),
            version=words.get("version", ""),
            binary=binary,
            concurrency=concurrency,
            server_stats=flag(words, "server_stats", True),
            reference="" if reference == "none" else reference,
            reference_options={key: words[key] for key in own if key in words},
            any_outputs=flag(words, "any_outputs"),
            any_precision=flag(words, ANY_PRECISION),
        )
