"""Quantised ONNX graphs in the form that TensorRT reads: symmetric int8 for inputs and weights of products only.

ONNX Runtime's quantiser writes unsigned activations with a zero point, and biases in int32. TensorRT refuses both: it
supports signed integers with a zero point of 0 only (NVIDIA, "Working with Quantized Types"). The rewritten graph keeps
the calibrated ranges. A positive range has half as many symmetric steps, and needs the Relu that ONNX Runtime removes
where rounding to unsigned integers cuts off negative values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.signature import broken

_QUANTISED: Final = ("QuantizeLinear", "DequantizeLinear")
_MULTIPLIES: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_POSITIVE: Final = frozenset({"Relu", "Sigmoid", "Softmax", "Exp", "Abs", "Sqrt"})
_MOVES: Final = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
)
_LARGEST: Final = 127.0
"""TensorRT's weights are in [-127, 127]."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A node that TensorRT would refuse."""

    node: str
    why: str


def read(path: Path, *, external: bool = True) -> Any:
    """Read a model file.

    Args:
        path: The file.
        external: Read external files with weights too.

    Raises:
        ConfigError: it is not a valid ONNX model.
    """
    import onnx

    try:
        return onnx.load(str(path), load_external_data=external)
    except Exception as error:
        raise broken(path, error) from error


def refused(model: Any) -> Refused | None:
    """Return the first node whose quantisation TensorRT does not support; None if it supports all."""
    for node in model.graph.node:
        if node.op_type in _QUANTISED:
            zero = _zero_point(model, node)
            if zero is None:
                # Without a zero point ONNX quantises to uint8; one that is not constant is unknown.
                if node.op_type == "QuantizeLinear" and len(node.input) < 3:
                    return Refused(node.name, "it quantises to unsigned integers")
                continue
            if zero.dtype == np.uint8:
                return Refused(node.name, "it quantises to unsigned integers")
            if zero.dtype == np.int32:
                return Refused(node.name, "it dequantises an int32 constant, a bias")
            if zero.dtype == np.int8 and zero.any():
                return Refused(node.name, f"its zero point is {zero.ravel()[np.flatnonzero(zero)[0]]}, not 0")
    return None


def symmetric(model: Any, name: str) -> Any:
    """Return the graph with symmetric int8.

    Activations keep the larger half of their range on both sides; constants outside of products (biases, norms,
    tables) become float.

    Args:
        model: From ``read``; it is not changed.
        name: Name of the model in errors.

    Raises:
        ConfigError: a scale or zero point is not constant.
    """
    import onnx
    from onnx import helper, numpy_helper

    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    graph = rewritten.graph
    positive = _positive(model)
    constants = {item.name: item for item in graph.initializer}
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for number, tensor in enumerate(node.input):
            # The third input of a Conv or Gemm is added, not multiplied.
            multiplied = node.op_type in _MULTIPLIES and number < 2
            users.setdefault(tensor, set()).add("multiplied" if multiplied else "other")
    kept = []
    added: dict[str, Any] = {}

    def constant(label: str, array: NDArray[Any]) -> str:
        added[label] = numpy_helper.from_array(np.ascontiguousarray(array), label)
        return label

    for node in graph.node:
        if node.op_type not in _QUANTISED or len(node.input) < 2:
            kept.append(node)
            continue
        scale, zero = constants.get(node.input[1]), _zero_point(rewritten, node)
        if scale is None or (len(node.input) > 2 and node.input[2] not in constants):
            raise ConfigError(f"{name}: node {node.name!r} has a scale or zero point that is not constant: TensorRT")
        steps = numpy_helper.to_array(scale)
        zeros = np.zeros(steps.shape, np.uint8) if zero is None else zero
        stored = constants.get(node.input[0])
        if stored is not None and node.op_type == "DequantizeLinear":
            weights = numpy_helper.to_array(stored)
            shape = _along(node, steps, weights.ndim)
            values = (weights.astype(np.float64) - zeros.reshape(shape)) * steps.astype(np.float64).reshape(shape)
            if users.get(node.output[0]) != {"multiplied"}:
                constant(node.output[0], values.astype(steps.dtype))
                continue
            if weights.dtype == np.int8 and not zeros.any():
                kept.append(node)
                continue
            axes = tuple(axis for axis in range(weights.ndim) if shape == () or shape[axis] == 1)
            narrow = np.maximum(np.abs(values).max(axis=axes), np.finfo(np.float32).tiny) / _LARGEST
            node.input[0] = constant(f"{node.name}.int8", np.rint(values / np.reshape(narrow, shape)).astype(np.int8))
        else:
            low, high = (0, 255) if zeros.dtype == np.uint8 else (-128, 127)
            reach = np.maximum(zeros.astype(np.float64) - low, high - zeros.astype(np.float64))
            if zeros.dtype == np.int8 and not zeros.any():
                kept.append(node)
                continue
            narrow = steps.astype(np.float64) * reach / _LARGEST
            cuts = node.op_type == "QuantizeLinear" and zeros.dtype == np.uint8 and not zeros.any()
            if cuts and node.input[0] not in positive:
                kept.append(helper.make_node("Relu", [node.input[0]], [f"{node.name}.cut"], f"{node.name}.relu"))
                node.input[0] = f"{node.name}.cut"
        node.input[1] = constant(f"{node.name}.scale", np.reshape(narrow, steps.shape).astype(steps.dtype))
        label = constant(f"{node.name}.zero", np.zeros(steps.shape, np.int8))
        if len(node.input) > 2:
            node.input[2] = label
        else:
            node.input.append(label)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    needed = {tensor for node in kept for tensor in node.input} | {item.name for item in graph.output}
    weights = [item for item in graph.initializer if item.name in needed] + [
        item for label, item in added.items() if label in needed
    ]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    # Tensors have other types: remove those in the file.
    del graph.value_info[:]
    return rewritten


def _positive(model: Any) -> set[str]:
    """Return the tensors without negative values; nodes of ONNX files are in topological order."""
    positive: set[str] = set()
    for node in model.graph.node:
        zero = _zero_point(model, node) if node.op_type == "DequantizeLinear" else None
        unsigned = zero is not None and zero.dtype == np.uint8 and not zero.any()
        if node.op_type in _POSITIVE or unsigned or (node.op_type in _MOVES and node.input[0] in positive):
            positive.update(node.output)
    return positive


def _zero_point(model: Any, node: Any) -> NDArray[Any] | None:
    """Return the value of a constant; None: it is missing or not constant."""
    from onnx import numpy_helper

    if len(node.input) < 3:
        return None
    item = next((item for item in model.graph.initializer if item.name == node.input[2]), None)
    return None if item is None else numpy_helper.to_array(item)


def _along(node: Any, steps: NDArray[Any], rank: int) -> tuple[int, ...]:
    """Return the shape of a scale per channel for a tensor of ``rank`` axes."""
    if steps.ndim == 0 or steps.size == 1:
        return (1,) * rank
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    return tuple(-1 if at == axis % rank else 1 for at in range(rank))
