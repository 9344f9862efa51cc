"""How the graph of an .onnx file uses its integer inputs: as indices into which tables, or as masks.

A value is followed from the input through operators that only move or shift it, also into the bodies of loops, to the
operators that read it. Any index must be valid for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from joulewatch_harness.networks.graphs import Shape

_MOVING: Final = {
    **dict.fromkeys(
        (
            "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Transpose", "Expand", "Tile",
            "Split", "Clip", "Gather", "GatherElements", "GatherND", "Compress", "Pad",
        ),
        frozenset({0}),
    ),
    "Where": frozenset({1, 2}),
}  # fmt: skip
"""Operator -> inputs whose values appear unchanged in its outputs."""
_MOVING_ALL: Final = frozenset({"Concat", "Min", "Max"})
_SAME_SHAPE: Final = frozenset({"Cast", "Identity", "Clip"})
_TABLES: Final[Mapping[str, Mapping[int, int]]] = {
    "EmbedLayerNormalization": {0: 2, 1: 4, 8: 3},
    "RotaryEmbedding": {1: 2},
}
"""Operator -> input with indices -> input with the table, whose first axis they select from."""
_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_COMPARISONS: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_LOGIC: Final = frozenset({"And", "Or", "Not", "Xor"})
_LARGEST_CONSTANT: Final = 1 << 20
"""Constants with more elements are not read."""


@dataclass(slots=True)
class Use:
    """The use of one input."""

    low: NDArray[np.int64] | None = None
    """Smallest valid index: a number, or one for each place along the last axes of the input. None: not an index."""
    high: NDArray[np.int64] | None = None
    """One more than the largest valid index."""
    is_mask: bool = False
    """It is only compared, multiplied, or a condition."""

    def allow(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> None:
        """Limit the index."""
        self.low = low if self.low is None else np.maximum(self.low, low)
        self.high = high if self.high is None else np.minimum(self.high, high)


def find_uses(graph: Any, shapes: Mapping[str, Shape]) -> dict[str, Use]:
    """Return the uses of the inputs of a graph.

    Args:
        graph: An ``onnx.GraphProto`` without functions.
        shapes: Shapes of its tensors, as far as they are known.
    """
    search = _Search(graph, dict(shapes))
    return {item.name: search.use(item.name) for item in graph.input}


@dataclass(slots=True)
class _Place:
    """A tensor that contains the values of the input, plus ``shift``."""

    name: str
    shift: NDArray[np.int64] = field(default_factory=lambda: np.array(0, np.int64))
    has_shape: bool = True
    """It has the shape of the input."""
    is_float: bool = False


class _Search:
    def __init__(self, graph: Any, shapes: dict[str, Shape]) -> None:
        self._shapes = shapes
        self._constants: dict[str, Any] = {}
        self._readers: dict[str, list[tuple[Any, int]]] = {}
        for part in _graphs(graph):
            for item in part.initializer:
                self._constants[item.name] = item
                self._shapes.setdefault(item.name, tuple(item.dims))
            for node in part.node:
                for number, name in enumerate(node.input):
                    self._readers.setdefault(name, []).append((node, number))
                if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
                    self._constants[node.output[0]] = value
                    self._shapes.setdefault(node.output[0], tuple(value.dims))

    def use(self, name: str) -> Use:
        """Return the use of one input."""
        result = Use()
        signs: set[bool] = set()
        """Whether each reader treats it as a mask."""
        waiting, seen = [_Place(name)], {name}
        while waiting:
            place = waiting.pop()
            for node, number in self._readers.get(place.name, ()):
                following = self._following(node, number, place)
                for further in following:
                    if further.name not in seen:
                        seen.add(further.name)
                        waiting.append(further)
                if (rows := self._rows(node, number)) is not None:
                    result.allow(*_limits(rows, place))
                elif (end := self._divisor(node, number) or self._compared(node, number)) is not None:
                    result.allow(np.array(0, np.int64), np.array(end, np.int64))
                elif not following and (sign := self._masks(node, number)) is not None:
                    signs.add(sign)
        result.is_mask = result.high is None and signs == {True}
        return result

    def _following(self, node: Any, number: int, place: _Place) -> list[_Place]:
        """Return the outputs of a node that contain the same values, perhaps shifted by a constant."""
        op = node.op_type
        if number in _MOVING.get(op, ()) or op in _MOVING_ALL:
            same = place.has_shape and op in _SAME_SHAPE
            is_float = _attribute(node, "to") in _FLOATS if op == "Cast" else place.is_float
            return [_Place(name, place.shift, same, is_float) for name in node.output]
        if op == "Mul" and not place.is_float and node.input[1 - number] not in self._constants:
            return [_Place(node.output[0], place.shift, False)]  # an index times a mask
        if op in ("Loop", "Scan"):
            body = _attribute(node, "body")
            # A loop's body has the number of the iteration and its condition first, as the loop has the limits.
            given = [item.name for item in body.input] if body is not None else []
            known = number < len(given) and (op, number) != ("Loop", 0)
            return [_Place(given[number], place.shift, False, place.is_float)] if known else []
        if op in ("Add", "Sub") and len(node.input) == 2:
            other = self._integers(node.input[1 - number])
            if other is not None and (op == "Add" or number == 0):
                return [_Place(node.output[0], place.shift + (other if op == "Add" else -other), place.has_shape)]
        return []

    def _rows(self, node: Any, number: int) -> int | None:
        """Return how many entries an operator selects from by this input; None: it is not an index."""
        op = node.op_type
        if op in ("Gather", "GatherElements", "ScatterElements", "Scatter", "GatherBlockQuantized") and number == 1:
            shape = self._shapes.get(node.input[0])
            axis = _attribute(node, "gather_axis" if op == "GatherBlockQuantized" else "axis") or 0
            return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if op in ("GatherND", "ScatterND") and number == 1:
            shape, indices = self._shapes.get(node.input[0]), self._shapes.get(node.input[1])
            first = _attribute(node, "batch_dims") or 0
            last = first + indices[-1] if indices else None
            return min(shape[first:last], default=None) if shape else None
        if op == "OneHot" and number == 0:
            depth = self._integers(node.input[1])
            return int(depth.ravel()[0]) if depth is not None and depth.size else None
        table = _TABLES.get(op, {}).get(number)
        if op == "ATen" and str(_attribute(node, "operator") or "").startswith("embedding") and number == 1:
            table = 0
        if table is not None and table < len(node.input):
            shape = self._shapes.get(node.input[table])
            return shape[0] if shape else None
        return None

    def _divisor(self, node: Any, number: int) -> int | None:
        """Return the constant that an input is reduced by, as for hashed features."""
        if node.op_type != "Mod" or number:
            return None
        divisor = self._integers(node.input[1])
        return int(divisor.min()) if divisor is not None and divisor.size and divisor.min() > 0 else None

    def _compared(self, node: Any, number: int) -> int | None:
        """Return the number of the constants 0, 1, 2, ... that an input is compared with: OneHot in other operators."""
        if node.op_type != "Equal":
            return None
        constants = self._integers(node.input[1 - number])
        numbers = np.unique(constants) if constants is not None else np.zeros(0)
        return numbers.size if numbers.size > 2 and np.array_equal(numbers, np.arange(numbers.size)) else None

    def _masks(self, node: Any, number: int) -> bool | None:
        """Return whether a reader treats its input as a mask of zeros and ones; None: it shows neither."""
        op = node.op_type
        others = [self._numbers(name) for place, name in enumerate(node.input) if place != number]
        if op in _LOGIC or (op == "Where" and number == 0):
            return True
        if op in _COMPARISONS:
            return all(other is not None and other.size and other.min() >= 0 and other.max() <= 1 for other in others)
        if op == "Sub" and number == 1:
            return others[0] is not None and bool(np.all(others[0] == 1))
        if op == "Mul":
            return node.input[1 - number] not in (*self._constants, node.input[number])
        if op in ("ReduceSum", "Shape"):
            return None
        return op in ("EmbedLayerNormalization", "Attention", "MultiHeadAttention", "QAttention")

    def _integers(self, name: str) -> NDArray[np.int64] | None:
        values = self._numbers(name)
        return values.astype(np.int64) if values is not None and values.dtype.kind in "iu" else None

    def _numbers(self, name: str) -> NDArray[Any] | None:
        """Return the values of a small constant."""
        item = self._constants.get(name)
        if item is None or item.external_data or np.prod(item.dims, dtype=np.int64) > _LARGEST_CONSTANT:
            return None
        values = np.asarray(numpy_helper.to_array(item))
        return values if values.dtype.kind in "iufb" else None


def _limits(rows: int, place: _Place) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the limits of an input whose values, shifted, select from so many rows."""
    shift = place.shift
    ends = rows - shift
    if shift.size > 1:
        flat = shift.ravel()
        if place.has_shape and flat[0] == 0 and np.all(np.diff(flat) > 0):
            # One table for several features: each has the rows up to the beginning of the next one.
            ends = (np.append(flat[1:], rows) - flat).reshape(shift.shape)
        elif not place.has_shape:
            shift, ends = np.asarray(shift.min()), np.asarray(ends.min())
    return np.maximum(-shift, 0), np.asarray(ends)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph, and the graphs in its operators."""
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for part in [item.g] if item.HasField("g") else item.graphs:
                yield from _graphs(part)


def _attribute(node: Any, name: str) -> Any:
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return None
