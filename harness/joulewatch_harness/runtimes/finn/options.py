"""The options of the runtime ``finn``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.options import RuntimeOptions

PLATFORMS: Final = ("alveo", "zynq-iodma")
MODES: Final = ("dma", "instrumentation")
ARRAY_TYPES: Final = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Options(RuntimeOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "finn"

    bitfile: Path | None = None
    """The .bit or .xclbin file. Default: the one next to the driver."""
    platform: Annotated[str, Choice(PLATFORMS)] = ""
    """Default: from the settings of the build, or from the suffix of the bit file."""
    device: Annotated[int, Limits(ge=0)] | None = None
    """Number of the device in pynq's list. Default: pynq's default device."""
    fclk_mhz: Annotated[float, Limits(gt=0, unit="MHz")] | None = None
    """Clock of the accelerator. Default: the driver's."""
    mode: Annotated[str, Choice(MODES)] = ""
    """Who feeds the accelerator: the host, or the design itself. Default: dma, if the build supports it."""
    array_type: Annotated[str, Choice(ARRAY_TYPES)] = ""
    """numpy type of the input arrays. Default: that of the files, or the fastest that the input accepts."""
    inputs: tuple[Path, ...] = ()
    """One .npy file per input; their rows are repeated to fill a batch. Default: random numbers."""
    reference: tuple[Path, ...] = ()
    """One .npy file per output: the expected outputs of ``inputs``."""
    zeros_ok: bool = False
    """Accept outputs that are all zero."""
    seed: Annotated[int, Limits(ge=0)] = 0
    """Seed of random inputs."""

    def __post_init__(self) -> None:
        if self.reference and not self.inputs:
            raise ConfigError("reference: requires the option inputs, whose outputs it contains")
