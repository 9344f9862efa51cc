"""The options of the runtime ``onnxruntime``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from joulewatch_harness.binder import Choice, Limits
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.inputs import InputOptions

DEFAULT_PROVIDER: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
DEVICE_OF: Final[Mapping[str, str]] = {CUDA: "cuda", TENSORRT: "cuda"}
"""Providers whose memory can hold bound inputs and outputs -> ONNX Runtime's name of that memory."""
LEVELS: Final = ("disabled", "basic", "extended", "all")


@dataclass(frozen=True, kw_only=True)
class Options(InputOptions):
    """Options of this runtime."""

    RUNTIME: ClassVar[str] = "onnxruntime"

    threads: Annotated[int, Limits(ge=1)] | None = None
    """Threads within an operator. Default: one per physical core."""
    inter_threads: Annotated[int, Limits(ge=1)] | None = None
    """Operators that run in parallel. Default: 1."""
    spinning: bool = True
    """Worker threads spin while waiting: faster, and draws power between batches."""
    provider: str = DEFAULT_PROVIDER
    """Execution provider, such as ``CUDAExecutionProvider``."""
    optimization: Annotated[str, Choice(LEVELS)] = "all"
    """Level of graph optimization."""
    device_id: Annotated[int, Limits(ge=0)] | None = None
    """Number of the GPU. Default: 0."""
    tf32: bool | None = None
    """Compute float32 in TF32 on a GPU. Default: only for the precision tf32."""
    copies: bool = False
    """Copy inputs from host memory and outputs to it in each batch."""
    any_provider: bool = False
    """Accept operators that run on another provider than the requested one; results list them."""

    def __post_init__(self) -> None:
        if self.provider in DEVICE_OF:
            return
        for key, given in (
            ("device_id", self.device_id is not None),
            ("tf32", self.tf32 is not None),
            ("copies", self.copies),
        ):
            if given:
                raise ConfigError(
                    f"{key}: is for GPUs, but the provider is {self.provider}: remove it, or set provider={CUDA}"
                )
