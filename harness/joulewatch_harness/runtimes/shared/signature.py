"""The signature of a model: names, types and shapes of its inputs, as they are in its file.

No runtime is imported in this module, nor any package that only one of them needs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.errors import ConfigError

DTYPES: Final = (
    "float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
"""Supported types of inputs, in numpy's names."""


_UNNAMED: Final = frozenset({"", "?", "-1", "None"})
"""Names that exporters write for a dimension without a name."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the model."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    """Sizes: a number, the name of a symbolic dimension, or None for a dimension without a name."""

    def __post_init__(self) -> None:
        sizes = (None if size in _UNNAMED or (isinstance(size, int) and size < 0) else size for size in self.shape)
        object.__setattr__(self, "shape", tuple(sizes))

    def text(self) -> str:
        """Return the input in one word, such as ``x:float32[batch,4]``."""
        sizes = ",".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}:{self.dtype}[{sizes}]"


def signature(path: Path) -> tuple[Input, ...]:
    """Return the inputs of an .onnx file, with the names of symbolic dimensions; external weights are not read.

    Raises:
        ConfigError: the file is not a valid ONNX model.
    """
    import onnx

    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
        if not model.HasField("graph"):
            raise ValueError("it contains no graph")
    except Exception as error:
        raise broken(path, error) from error
    weights = {item.name for item in model.graph.initializer}
    return tuple(_of_value(item) for item in model.graph.input if item.name not in weights)


def _of_value(item: Any) -> Input:
    import onnx

    tensor = item.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
    return Input(item.name, dtype, shape)


def check_types(inputs: tuple[Input, ...], model: str) -> None:
    """Check that the types of all inputs are supported.

    Raises:
        ConfigError: the type of an input is not.
    """
    for item in inputs:
        if item.dtype not in DTYPES:
            raise ConfigError(f"{model}: input {item.name!r} has the unsupported type {item.dtype}")


def broken(path: Path, error: Exception) -> ConfigError:
    """Return the error for a model file that cannot be loaded."""
    reason = " ".join(str(error).split())[:300]
    return ConfigError(f"model file {path} cannot be loaded: {reason}")
