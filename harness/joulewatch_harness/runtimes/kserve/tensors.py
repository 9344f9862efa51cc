"""Tensors of the protocol and their numpy arrays, for HTTP and gRPC."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.signature import Input

DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "float32",
}
"""Datatype of the protocol -> numpy type; numpy has no bfloat16, whose values all fit into a float32."""
ONLY_BINARY: Final = frozenset({"FP16", "BF16"})
"""Datatypes that JSON cannot represent."""

BINARY: Final = "binary"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as the server describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: any size."""

    def text(self) -> str:
        sizes = ",".join("?" if size < 0 else str(size) for size in self.shape)
        return f"{self.name}:{self.datatype}[{sizes}]"

    def input(self) -> Input:
        """Return the input in numpy's types; the datatype must be in ``DTYPES``."""
        return Input(self.name, DTYPES[self.datatype], tuple(None if size < 0 else size for size in self.shape))

    def fits(self, datatype: str, shape: Sequence[int], batch: int | None) -> bool:
        """Return whether a tensor has this type and shape; ``batch`` is the size of an open first axis."""
        if datatype != self.datatype or len(shape) != len(self.shape):
            return False
        expected = list(self.shape)
        if expected and expected[0] < 0 and batch is not None:
            expected[0] = batch
        return all(size in (given, -1) for size, given in zip(expected, shape, strict=True))


Given = Sequence[tuple[Tensor, NDArray[np.generic]]]
"""The inputs of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output of an answer."""

    datatype: str
    shape: tuple[int, ...]
    values: NDArray[np.generic]
    """Raw bytes if the datatype is not in ``DTYPES``."""
    form: str
    """The form of the values in the answer, such as ``binary``."""


def named(item: Any) -> tuple[str, str, tuple[int, ...]]:
    """Return name, datatype and shape of a tensor in a message.

    Raises:
        ValueError: one of them is missing.
    """
    try:
        return str(item["name"]), str(item["datatype"]), tuple(map(int, item["shape"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError("an output without name, datatype or shape") from None


def described(metadata: Mapping[str, Any], key: str, where: str) -> tuple[Tensor, ...]:
    """Return the ``inputs`` or ``outputs`` of a model's metadata.

    Raises:
        ConfigError: a tensor has no name, datatype or shape.
    """
    listed = metadata.get(key) or []
    try:
        tensors = [named(item) for item in listed]
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: the server's metadata has {key} without name, datatype or shape") from None
    return tuple(Tensor(name, datatype, tuple(max(size, -1) for size in shape)) for name, datatype, shape in tensors)


def wire_itemsize(datatype: str) -> int:
    """Return the bytes of one element in a message."""
    return 2 if datatype == "BF16" else np.dtype(DTYPES[datatype]).itemsize


def to_wire(values: NDArray[np.generic], datatype: str) -> memoryview:
    """Return the bytes of an array, little-endian, without a copy if possible."""
    if datatype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        # To the nearest, ties to even.
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    elif sys.byteorder == "big":
        values = values.astype(values.dtype.newbyteorder("<"))
    if not values.nbytes:
        return memoryview(b"")
    contiguous: Any = np.ascontiguousarray(values)
    return memoryview(contiguous).cast("B")


def from_wire(name: str, datatype: str, shape: tuple[int, ...], piece: bytes | memoryview) -> Output:
    """Return the output with these bytes; only bfloat16 is copied.

    Raises:
        ValueError: their number does not match the shape.
    """
    if datatype not in DTYPES:
        return Output(datatype=datatype, shape=shape, values=np.frombuffer(piece, dtype=np.uint8), form=BINARY)
    kind = np.dtype("<u2") if datatype == "BF16" else np.dtype(DTYPES[datatype]).newbyteorder("<")
    count, expected = len(piece) // kind.itemsize, math.prod(shape)
    if len(piece) != expected * kind.itemsize:
        raise ValueError(
            f"output {name!r} has {count_of(count, 'value')}, but its shape {list(shape)} requires {expected}"
        )
    wide = np.frombuffer(piece, dtype=kind)
    values = (wide.astype(np.uint32) << 16).view(np.float32) if datatype == "BF16" else wide
    return Output(datatype=datatype, shape=shape, values=values.reshape(shape), form=BINARY)


def from_list(datatype: str, shape: tuple[int, ...], data: Any, form: str) -> Output:
    """Return the output with these numbers.

    Raises:
        ValueError: their number does not match the shape, or they are not numbers.
    """
    return Output(
        datatype=datatype, shape=shape, values=np.asarray(data, dtype=DTYPES.get(datatype)).reshape(shape), form=form
    )
