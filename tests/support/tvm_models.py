"""Small quantised ONNX files: one product with QDQ around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from support.onnx_models import save

SCALE = 0.05
"""Scale of outputs."""


def _around(name: str, source: str, scale: str, zero: str) -> list[object]:
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [name]),
    ]


def quantised_convolution(
    path: Path, channels: int, outputs: int, *, groups: int, zero: int, padding: int, signed: bool, stride: int
) -> Path:
    """Save a two-dimensional convolution of 3 x 3 with a bias and weights quantised by channel."""
    rng = np.random.default_rng(0)
    kind = np.int8 if signed else np.uint8
    scales = rng.uniform(0.005, 0.02, outputs).astype(np.float32)
    width = (8 + 2 * padding - 3) // stride + 1
    return save(
        path,
        [
            *_around("xd", "x", "xs", "xz"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
            helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
            helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[padding] * 4, strides=[stride] * 2, group=groups),
            *_around("y", "c", "ys", "yz"),
        ],
        {"x": (TensorProto.FLOAT, ["batch", channels, 8, 8])},
        {"y": (TensorProto.FLOAT, ["batch", outputs, width, width])},
        {
            "w": rng.integers(-127, 128, (outputs, channels // groups, 3, 3)).astype(np.int8),
            "ws": scales,
            "wz": np.zeros(outputs, np.int8),
            "b": rng.integers(-500, 500, outputs).astype(np.int32),
            "bs": scales * np.float32(0.03),
            "bz": np.zeros(outputs, np.int32),
            "xs": np.array(0.03, np.float32),
            "xz": np.array(zero, kind),
            "ys": np.array(SCALE, np.float32),
            "yz": np.array(0 if signed else 128, kind),
        },
    )


def quantised_matmuls(path: Path, *, constant: bool) -> Path:
    """Save a product of [batch, 5, 10] with constant weights or with another activation; its output is float."""
    rng = np.random.default_rng(0)
    second = (
        [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["bd"])]
        if constant
        else _around("bd", "b", "bs", "bz")
    )
    weights = {
        "as": np.array(0.02, np.float32),
        "az": np.array(120, np.uint8),
    }
    if constant:
        weights |= {
            "w": rng.integers(-127, 128, (10, 7)).astype(np.int8),
            "ws": np.array(0.01, np.float32),
            "wz": np.array(0, np.int8),
        }
    else:
        weights |= {"bs": np.array(0.03, np.float32), "bz": np.array(100, np.uint8)}
    inputs = {"a": (TensorProto.FLOAT, ["batch", 5, 10])}
    if not constant:
        inputs["b"] = (TensorProto.FLOAT, ["batch", 10, 7])
    return save(
        path,
        [*_around("ad", "a", "as", "az"), *second, helper.make_node("MatMul", ["ad", "bd"], ["y"])],
        inputs,
        {"y": (TensorProto.FLOAT, ["batch", 5, 7])},
        weights,
    )
