"""The options of the runtime ``openvino``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits, Parse
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.inputs import InputOptions

DEFAULT_DEVICE: Final = "CPU"
PERFORMANCE_HINTS: Final = ("latency", "throughput")
SHAPES: Final = ("static", "dynamic")
PRECISION_HINTS: Final = ("asked", "none")


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "openvino"

    threads: Annotated[int, Limits(ge=1)] | None = None
    """Threads for inference. Default: one per physical core."""
    streams: Annotated[int, Limits(ge=1)] | None = None
    """Inferences that run in parallel and share the threads."""
    requests: Annotated[int, Limits(ge=1)] | None = None
    """Batches in flight. Default: 1; with streams or throughput, OpenVINO's optimal number."""
    device: Annotated[str, Parse(str.upper)] = DEFAULT_DEVICE
    """Device in OpenVINO's names: ``CPU``, ``GPU``, ``GPU.1``, ``NPU``."""
    performance_hint: Annotated[str, Choice(PERFORMANCE_HINTS)] | None = None
    """What OpenVINO optimizes for. Default: latency."""
    precision_hint: Annotated[str, Choice(PRECISION_HINTS)] = "asked"
    """``asked``: set the requested precision; ``none``: OpenVINO's default, bfloat16 if the CPU has it."""
    shape: Annotated[str, Choice(SHAPES)] = "static"
    """``static``: compile for each batch size; ``dynamic``: compile once for all."""

    def __post_init__(self) -> None:
        if self.streams is not None and self.performance_hint is not None:
            raise ConfigError("streams and performance_hint both set the number of streams: give only one of them")
