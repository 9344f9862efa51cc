"""Small ONNX files with one or two operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def save(
    path: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    weights: Mapping[str, np.ndarray],
    domains: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Save a model; ``domains`` are further sets of operators, and their versions."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": 17, **domains}.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


def matmul(path: Path, batch: int | str = "batch", dtype: type[np.generic] = np.float32) -> Path:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (kind, [batch, 4])},
        {"y": (kind, [batch, 3])},
        {"w": np.ones((4, 3), dtype=dtype)},
    )


def baked(path: Path) -> Path:
    """Save a graph for batch size 1, whose batch axis is open."""
    return save(
        path,
        [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 2, 2])},
        {"y": (TensorProto.FLOAT, ["N", 3])},
        {"shape": np.array([1, 4], np.int64), "w": np.ones((4, 3), np.float32)},
    )


def dequantised(path: Path, kind: str, shape: tuple[int, ...], taken: Shape, given: Shape) -> Path:
    """Save one operator whose int8 weights are dequantised before it."""
    return save(
        path,
        [
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"]),
            helper.make_node(kind, ["x", "wf"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, taken)},
        {"y": (TensorProto.FLOAT, given)},
        {"w": np.ones(shape, dtype=np.int8), "scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)},
    )


def dynamic(path: Path) -> Path:
    """Save a model with two inputs of symbolic dimensions: [batch, seq] tokens and a [batch, batch] float."""
    return save(
        path,
        [
            helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["m", "f"], ["y"]),
        ],
        {"ids": (TensorProto.INT64, ["batch", "seq"]), "m": (TensorProto.FLOAT, ["batch", "batch"])},
        {"y": (TensorProto.FLOAT, ["batch", "seq"])},
        {},
    )
