"""The options of the runtime ``torch``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits, Parse
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.runtimes.shared.inputs import InputOptions
from joulewatch_harness.runtimes.shared.signature import DTYPES, Input

MODES: Final = ("eager", "compile", "export")
COMPILE_MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_SIGNATURE: Final = re.compile(r"([A-Za-z_][\w.]*):(\w+)\[([^\[\]]*)\]")


def parse_signature(text: str) -> tuple[Input, ...]:
    """Convert ``x:float32[batch,2,1024] ids:int64[batch,seq]`` to inputs.

    Raises:
        ConfigError: the text is not valid, or a type is not supported.
    """
    inputs = []
    for word in re.sub(r"\s*,\s*", ",", text.strip()).split():
        match = _SIGNATURE.fullmatch(word)
        if match is None:
            raise ConfigError(f"must be NAME:TYPE[SIZE,...] ..., got {text!r}")
        if match[2] not in DTYPES:
            raise ConfigError(unknown("type", match[2], DTYPES))
        sizes = [size for size in match[3].split(",") if size]
        shape = tuple(int(size) if size.isdecimal() else None if size == "?" else size for size in sizes)
        inputs.append(Input(match[1], match[2], shape))
    return tuple(inputs)


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "torch"

    mode: Annotated[str, Choice(MODES)] = "eager"
    """How PyTorch runs the module: as it is, with ``torch.compile`` or with ``torch.export``."""
    compile_mode: Annotated[str, Choice(COMPILE_MODES)] = ""
    """Mode of ``torch.compile``. Default: default."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[int, Limits(ge=1)] | None = None
    """Threads within an operator. Default: one per physical core."""
    tf32: bool | None = None
    """Compute float32 in TF32 on a GPU. Default: only for the precision tf32."""
    cuda_graph: bool = False
    """Launch the whole network as one CUDA graph."""
    channels_last: bool = False
    """Store inputs with four axes, and weights, with the channels last."""
    copies: bool = False
    """Copy inputs from pinned host memory and outputs to it in each batch."""
    events: bool = True
    """Measure phases and latency with events on the GPU; false: a call of ``run`` is one span."""
    module: str = ""
    """Your network, ``module:object`` or ``file.py:object``: a module, or a function or class that makes one."""
    signature: Annotated[tuple[Input, ...], Parse(parse_signature)] = ()
    """Inputs of a module or TorchScript file: ``x:float32[batch,3,224,224]``, separated by spaces."""

    def __post_init__(self) -> None:
        if self.compile_mode and self.mode != "compile":
            raise ConfigError("compile_mode: requires mode=compile")
        object.__setattr__(self, "compile_mode", self.compile_mode or "default")
        if self.module and ":" not in self.module:
            raise ConfigError(f"module: must be module:object or file.py:object, got {self.module!r}")
        for key in ("cuda_graph", "copies"):
            if getattr(self, key) and not self.device.startswith("cuda"):
                raise ConfigError(f"{key}: requires a GPU, but the device is {self.device}: set device=cuda")
