"""The options of the runtime ``tensorrt``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits, Parse
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.inputs import InputOptions

SHAPES: Final = ("static", "dynamic")
MOST_OPTIMISED: Final = 5
FOR_BUILDING: Final = (
    "shape", "profile", "workspace_mib", "optimization_level", "timing_cache", "engine_cache", "symmetric",
)  # fmt: skip
"""Options that have no effect on an engine that is already built."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Batch sizes of one engine."""

    least: int
    best: int
    """The batch size that the engine is optimised for."""
    most: int

    def text(self) -> str:
        return f"{self.least},{self.best},{self.most}"


def parse_profile(text: str) -> Profile:
    """Convert three batch sizes, ``1,32,1024``.

    Raises:
        ConfigError: the text is not valid.
    """
    sizes = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    if len(sizes) != 3 or text.count(",") != 2 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ConfigError(f"must be LEAST,BEST,MOST, three ascending batch sizes, got {text!r}")
    return Profile(*sizes)


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "tensorrt"

    device: str = "cuda:0"
    """``cuda`` or ``cuda:N``."""
    shape: Annotated[str, Choice(SHAPES)] = "static"
    """``static``: one engine per batch size; ``dynamic``: one engine for those of ``profile``."""
    profile: Annotated[Profile | None, Parse(parse_profile)] = None
    """Batch sizes of a dynamic engine, ``LEAST,BEST,MOST``."""
    workspace_mib: Annotated[int, Limits(ge=1, unit="MiB")] | None = None
    """Limit of the scratch memory of a layer. Default: all of the device."""
    optimization_level: Annotated[int, Limits(ge=0, le=MOST_OPTIMISED)] | None = None
    """Effort of the search for faster kernels. Default: TensorRT's, 3."""
    timing_cache: bool = True
    """Keep the times of kernels from one build to the next."""
    engine_cache: bool = True
    """Keep engines from one run to the next."""
    symmetric: bool | None = None
    """Rewrite a quantised graph to symmetric int8. Default: only that of a built-in network."""
    cuda_graph: bool = False
    """Launch the whole network as one CUDA graph."""
    copies: bool = False
    """Copy inputs from pinned host memory and outputs to it in each batch."""
    events: bool = True
    """Measure phases and latency with events on the GPU; false: a call of ``run`` is one span."""

    def __post_init__(self) -> None:
        if (self.shape == "dynamic") != (self.profile is not None):
            raise ConfigError(
                "shape=dynamic and profile=LEAST,BEST,MOST (batch sizes, such as 1,32,1024) require each other"
            )
