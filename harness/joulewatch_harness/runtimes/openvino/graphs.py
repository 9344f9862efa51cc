"""The graph of an OpenVINO model in ONNX's operators, as far as the use of its inputs needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from joulewatch_harness.networks.graphs import Shape
from joulewatch_harness.runtimes.shared.uses import Use, find_uses

_NAMES: Final[Mapping[str, str]] = {
    "Convert": "Cast",
    "Select": "Where",
    "Multiply": "Mul",
    "Subtract": "Sub",
    "LogicalAnd": "And",
    "LogicalOr": "Or",
    "LogicalNot": "Not",
    "LogicalXor": "Xor",
    "GreaterEqual": "GreaterOrEqual",
    "LessEqual": "LessOrEqual",
    "StridedSlice": "Slice",
    "Broadcast": "Expand",
    "VariadicSplit": "Split",
    "Minimum": "Min",
    "Maximum": "Max",
    "Clamp": "Clip",
    "FloorMod": "Mod",
    "EmbeddingBagOffsetsSum": "Gather",
    "EmbeddingBagOffsets": "Gather",
    "EmbeddingBagPackedSum": "Gather",
    "EmbeddingBagPacked": "Gather",
    "EmbeddingSegmentsSum": "Gather",
}
"""OpenVINO's operators -> those of ONNX with the same first inputs; others have the same name in both."""
_LARGEST_CONSTANT: Final = 1 << 16


def uses_of(model: Any, names: Mapping[str, str]) -> dict[str, Use]:
    """Return how a model uses its inputs.

    Args:
        model: An ``openvino.Model``.
        names: Friendly name of each parameter -> name of the input.
    """
    nodes, weights = [], []
    shapes: dict[str, Shape] = {}
    for node in model.get_ordered_ops():
        outputs = [_name(port, names) for port in node.outputs()]
        for port, name in zip(node.outputs(), outputs, strict=True):
            if port.get_partial_shape().is_static:
                shapes[name] = tuple(port.get_shape())
        kind = node.get_type_name()
        if kind == "Constant":
            if np.prod(shapes[outputs[0]]) <= _LARGEST_CONSTANT and (array := _values(node)) is not None:
                weights.append(numpy_helper.from_array(array, outputs[0]))
            continue
        inputs = [_name(value, names) for value in node.input_values()]
        nodes.append(helper.make_node(_NAMES.get(kind, kind), inputs, outputs, **_attributes(node, kind)))
    given = [helper.make_empty_tensor_value_info(name) for name in names.values()]
    return find_uses(helper.make_graph(nodes, "model", given, [], weights), shapes)


def _name(port: Any, names: Mapping[str, str]) -> str:
    friendly = str(port.get_node().get_friendly_name())
    return names.get(friendly) or f"{friendly}:{port.get_index()}"


def _values(node: Any) -> Any:
    """Return the values of a constant; None if numpy does not have its type."""
    try:
        return np.array(node.get_data())
    except (RuntimeError, TypeError):
        return None


def _attributes(node: Any, kind: str) -> dict[str, Any]:
    if kind == "Convert":
        is_float = node.get_output_element_type(0).is_real()
        return {"to": TensorProto.FLOAT if is_float else TensorProto.INT64}
    if kind == "Gather":
        axis = node.input_value(2).get_node()
        return {"axis": int(np.ravel(axis.get_data())[0])} if axis.get_type_name() == "Constant" else {}
    given = node.get_attributes()
    return {key: int(given[key]) for key in ("axis", "batch_dims") if isinstance(given.get(key), int)}
