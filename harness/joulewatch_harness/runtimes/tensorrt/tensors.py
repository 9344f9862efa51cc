"""The inputs and outputs of an engine, and those of a prepared batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.batch_axes import Axes
from joulewatch_harness.runtimes.shared.signature import Input
from joulewatch_harness.runtimes.tensorrt.device import Cuda

_TYPES: Final[Mapping[str, str]] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's supported types of inputs and outputs -> names of numpy, and bfloat16, which numpy does not have."""


@dataclass(slots=True, kw_only=True)
class Tensor:
    """An input or output of the prepared batch."""

    name: str
    dtype: str
    array: NDArray[Any]
    """On the host: the sent input, or memory for the output; bfloat16 as two bytes."""
    address: int
    """On the device."""
    pinned: NDArray[Any] | None = None

    def fetched(self, cuda: Cuda, stream: Any) -> NDArray[Any]:
        """Return an output on the host: that of ``run``, or copied from the device."""
        if self.pinned is not None:
            array = self.pinned
        else:
            cuda.download(self.array, self.address, stream)
            array = self.array
        if self.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.array(array)


def input_names(trt: Any, engine: Any) -> tuple[str, ...]:
    """Return the names of the inputs of an engine."""
    return _names(engine, trt.TensorIOMode.INPUT)


def output_names(trt: Any, engine: Any) -> tuple[str, ...]:
    """Return the names of the outputs of an engine."""
    return _names(engine, trt.TensorIOMode.OUTPUT)


def _names(engine: Any, mode: Any) -> tuple[str, ...]:
    names = (engine.get_tensor_name(number) for number in range(engine.num_io_tensors))
    return tuple(name for name in names if engine.get_tensor_mode(name) == mode)


def dtype_of(engine: Any, name: str, model: str) -> str:
    """Return numpy's name of the type of a tensor; ``model`` is the name of the model in errors.

    Raises:
        ConfigError: the type is not supported.
    """
    kind = str(engine.get_tensor_dtype(name).name)
    if kind not in _TYPES:
        raise ConfigError(f"{model}: {name!r} is of type {kind}, which is not supported")
    return _TYPES[kind]


def check(trt: Any, engine: Any, model: str) -> None:
    """Check that all inputs and outputs are in device memory and have supported types.

    Raises:
        ConfigError: one is not.
    """
    for name in (*input_names(trt, engine), *output_names(trt, engine)):
        dtype_of(engine, name, model)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise ConfigError(f"{model}: {name!r} is a shape in host memory, which is not supported")


def signature(trt: Any, engine: Any, model: str) -> tuple[Input, ...]:
    """Return the inputs in an engine, in which open sizes have no names."""
    inputs = []
    for name in input_names(trt, engine):
        sizes = tuple(int(size) for size in engine.get_tensor_shape(name))
        shape = tuple(size if size >= 0 else "batch" if axis == 0 else None for axis, size in enumerate(sizes))
        inputs.append(Input(name, dtype_of(engine, name, model), shape))
    return tuple(inputs)


def batch_ranges(engine: Any, inputs: Sequence[Input], axes: Axes) -> list[tuple[int, int, int]]:
    """Return least, best and largest batch size of each profile of an engine whose batch axis is open."""
    places = [(item.name, axis) for item in inputs for axis in axes[item.name] if not isinstance(item.shape[axis], int)]
    ranges = []
    for number in range(int(engine.num_optimization_profiles) if places else 0):
        shapes = [(engine.get_tensor_profile_shape(name, number), axis) for name, axis in places]
        least, best, most = ([int(sizes[at][axis]) for sizes, axis in shapes] for at in range(3))
        ranges.append((max(least), max(best), min(most)))
    return ranges


def fixed_batch(engine: Any, inputs: Sequence[Input], axes: Axes) -> dict[str, str]:
    """Return the only batch size of the profiles of an engine, for its description; nothing if there are several."""
    sizes = {size for least, _, most in batch_ranges(engine, inputs, axes) for size in (least, most)}
    return {"fixed_batch": str(*sizes)} if len(sizes) == 1 else {}


def activation_bytes(engine: Any) -> int:
    """Return the device memory of a context of an engine, without inputs and outputs."""
    # TensorRT 11 has only the second of these, 10.0 only the first.
    size = getattr(engine, "device_memory_size_v2", None)
    return int(engine.device_memory_size if size is None else size)
