"""Read ONNX graphs, and infer the shapes of their tensors. Needs only onnx."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

from joulewatch_harness.errors import ConfigError

Shape = tuple[int, ...]

LARGEST_COUNTED_BYTES: Final = 2_000_000_000
"""Largest file, without external data; protobuf reads at most 2 GiB."""
STANDARD: Final = frozenset({"", "ai.onnx"})
"""Names of the domain of ONNX's own operators."""
_SMALL_CONSTANT: Final = 1024
"""Constants up to this number of elements stay in the copy used for shape inference: shapes may depend on them."""
_LIKE_FIRST_INPUT: Final = frozenset(
    {
        "FastGelu", "Gelu", "QuickGelu", "BiasGelu", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
        "SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RotaryEmbedding",
        "Quant", "BipolarQuant", "IntQuant", "FloatQuant", "Trunc", "BiasSoftmax",
    }
)  # fmt: skip
"""Operators of other domains whose output has the shape of their first input."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes for which costs are counted."""

    batch: int
    """Costs are divided by it, so that they are per inference."""
    shapes: Mapping[str, Shape]
    """Shape of each input at this batch size."""


def read_model(path: Path) -> Any:
    """Read an ``onnx.ModelProto`` without the weights that are stored in external files.

    Raises:
        ConfigError: The file is missing, is not a model, or is too large.
    """
    try:
        if path.stat().st_size > LARGEST_COUNTED_BYTES:
            raise ConfigError(f"model file {path} is larger than 2 GB: store its weights as external data")
        return onnx.load(os.fspath(path), load_external_data=False)
    except OSError as error:
        raise ConfigError(f"model file {path}: {error.strerror or error}") from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"model file {path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def inlined(model: Any) -> Any:
    """Return a model without functions."""
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def real_inputs(graph: Any) -> list[Any]:
    """Return the inputs that have no default value."""
    constants = {item.name for item in graph.initializer}
    return [item for item in graph.input if item.name not in constants]


def tensor_shapes(model: Any, sizes: Sizes) -> dict[str, Shape]:
    """Return the shapes of all tensors of a model without functions, as far as they are known.

    Raises:
        ConfigError: The shapes contradict each other.
    """
    return shapes_and_types(model, sizes.shapes)[0]


def sizes_in_file(model: Any) -> Sizes:
    """Return the sizes of the inputs in a file; those of open first axes are 1.

    Raises:
        ConfigError: A symbolic dimension has no size.
    """
    shapes: dict[str, Shape] = {}
    fixed: set[int] = set()
    for item in real_inputs(model.graph):
        sizes: list[int] = []
        for axis, size in enumerate(_dims(item)):
            if not isinstance(size, int) and axis:
                raise ConfigError(f"dimension {size or axis!r} of input {item.name!r} has no size")
            sizes.append(size if isinstance(size, int) else 1)
        fixed |= set(sizes[:1])
        shapes[item.name] = tuple(sizes)
    return Sizes(fixed.pop() if len(fixed) == 1 else 1, shapes)


def shapes_and_types(model: Any, inputs: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, int]]:
    """Return the shapes and element types of all tensors, for these input shapes.

    Raises:
        ConfigError: The shapes contradict each other.
    """
    graph = model.graph
    twin = onnx.ModelProto()
    twin.ir_version = model.ir_version
    twin.opset_import.extend(item for item in model.opset_import if item.domain in STANDARD | {"ai.onnx.ml"})
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    twin.graph.name = "twin"
    for item in real_inputs(graph):
        kind = item.type.tensor_type.elem_type
        twin.graph.input.append(helper.make_tensor_value_info(item.name, kind, inputs[item.name]))
        shapes[item.name], types[item.name] = inputs[item.name], kind
    for item in graph.initializer:
        shapes[item.name], types[item.name] = tuple(item.dims), item.data_type
        if math.prod(item.dims) <= _SMALL_CONSTANT and item.data_location != TensorProto.EXTERNAL:
            twin.graph.initializer.append(item)
        else:
            twin.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    twin.graph.node.extend(_plain_nodes(graph.node))
    known = {item.name for item in twin.graph.input}
    produced = {name for node in twin.graph.node for name in node.output}
    # Shapes in the file after operators that ONNX does not know, if they hold for every batch size.
    for item in graph.value_info:
        sizes = _dims(item)
        foreign = item.name in produced and item.name not in known and _is_foreign(item.name, graph.node)
        if foreign and all(isinstance(size, int) for size in sizes):
            twin.graph.value_info.append(item)
    for item in graph.output:
        twin.graph.output.append(helper.make_empty_tensor_value_info(item.name))
    try:
        inferred = onnx.shape_inference.infer_shapes(twin, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:
        raise ConfigError(f"shape inference failed: {' '.join(str(error).split())[:300]}") from error
    for item in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = item.type.tensor_type
        if tensor.elem_type:
            types[item.name] = tensor.elem_type
        sizes = _dims(item)
        if tensor.HasField("shape") and all(isinstance(size, int) for size in sizes):
            shapes[item.name] = tuple(size for size in sizes if isinstance(size, int))
    return shapes, types


def _is_foreign(name: str, nodes: Iterable[Any]) -> bool:
    return any(name in node.output and node.domain not in STANDARD for node in nodes)


def _plain_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield the nodes; those of other domains are replaced by a standard node with the same output shape, if any."""
    for node in nodes:
        if node.domain in STANDARD or node.domain == "ai.onnx.ml":
            yield node
            continue
        op, inputs, outputs = node.op_type, list(node.input), list(node.output[:1])
        attributes = {item.name: item for item in node.attribute}
        if op in _LIKE_FIRST_INPUT:
            yield helper.make_node("Identity", inputs[:1], outputs)
        elif op in ("QLinearAdd", "QLinearMul") and len(inputs) > 3:
            yield helper.make_node("Add", [inputs[0], inputs[3]], outputs)
        elif op in ("QuantizeLinear", "DequantizeLinear"):
            yield helper.make_node(op, inputs, outputs)
        elif op in ("QGemm", "FusedGemm"):
            plain = helper.make_node("Gemm", [inputs[0], inputs[3 if op == "QGemm" else 1]], outputs)
            plain.attribute.extend(attributes[key] for key in ("transA", "transB") if key in attributes)
            yield plain
        elif op == "FusedConv":
            plain = helper.make_node("Conv", inputs[:3], outputs)
            keys = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
            plain.attribute.extend(attributes[key] for key in keys if key in attributes)
            yield plain
        elif op in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
            yield helper.make_node("MatMul", inputs[:2], outputs)


def _dims(item: Any) -> list[int | str | None]:
    return [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in item.type.tensor_type.shape.dim
    ]


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return the value of an attribute of a node, bytes as text."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default
