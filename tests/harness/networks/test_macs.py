"""Multiply-accumulates of single operators, counted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness.networks.cost import cost_of  # noqa: E402
from joulewatch_harness.networks.graphs import Sizes  # noqa: E402
from joulewatch_harness.networks.macs import node_macs  # noqa: E402
from support.onnx_graphs import Shape, floats, model, node  # noqa: E402


@pytest.mark.parametrize(
    ("nodes", "inputs", "weights", "macs"),
    [
        # Depthwise (one 3x3 kernel per channel), grouped, strided, two-dimensional.
        ([node("Conv", "x w", "y", group=6, kernel_shape=[3, 3])], {"x": ["b", 6, 10, 10]}, {"w": floats(6, 1, 3, 3)},
         8 * 8 * 6 * 9),
        ([node("Conv", "x w", "y", group=2, strides=[2, 2], kernel_shape=[1, 1])], {"x": ["b", 4, 8, 8]},
         {"w": floats(6, 2, 1, 1)}, 4 * 4 * 6 * 2),
        # Each of 2x5 inputs contributes to 3 outputs x 4 taps.
        ([node("ConvTranspose", "x w", "y", kernel_shape=[4], strides=[2])], {"x": ["b", 2, 5]}, {"w": floats(2, 3, 4)},
         2 * 5 * 3 * 4),
        ([node("Gemm", "x w", "y", transA=0, transB=1)], {"x": ["b", 7]}, {"w": floats(3, 7)}, 21),
        ([node("MatMul", "x w", "y")], {"x": ["b", 5, 7]}, {"w": floats(7, 3)}, 5 * 7 * 3),
        ([node("MatMul", "q k", "y")], {"q": ["b", 2, 6, 4], "k": ["b", 2, 4, 5]}, {}, 2 * 6 * 4 * 5),
        ([node("Einsum", "q k", "y", equation="bhid,bhjd->bhij")], {"q": ["b", 2, 6, 4], "k": ["b", 2, 5, 4]}, {},
         2 * 6 * 4 * 5),
        ([node("FusedMatMul", "q k", "y", domain="com.microsoft", transA=1)], {"q": ["b", 4, 6], "k": ["b", 4, 5]}, {},
         None),
        ([node("MatMulNBits", "x w s", "y", domain="com.microsoft", K=32, N=6, bits=4, block_size=32)],
         {"x": ["b", 32]}, {"w": np.ones((6, 1, 16), np.uint8), "s": floats(6)}, None),
    ],
)  # fmt: skip
def test_macs_of_single_operators(
    nodes: list[Any], inputs: Mapping[str, Shape], weights: Mapping[str, np.ndarray], macs: int | None
) -> None:
    cost = cost_of(model(nodes, inputs, weights))
    if macs is None:  # ONNX does not know the output's shape: reported, not guessed
        assert cost.macs == 0
        assert nodes[0].op_type in cost.not_counted
    else:
        assert (cost.macs, cost.not_counted) == (macs, {})


def test_operators_of_onnx_runtime_are_counted_where_shapes_are_known() -> None:
    """``joulewatch layers`` knows all shapes from the profile of the optimised graph."""
    shapes = {"x": (2, 32), "y": (2, 6), "q": (2, 4, 6), "k": (2, 4, 5), "z": (2, 6, 5), "i": (2, 8, 16), "w": (16, 48)}
    assert node_macs(node("MatMulNBits", "x n s", "y", K=32, N=6), shapes) == 2 * 6 * 32
    assert node_macs(node("FusedMatMul", "q k", "z", transA=1), shapes) == 2 * 6 * 5 * 4
    assert node_macs(node("Attention", "i w", "o", domain="com.microsoft"), shapes) == (
        2 * 8 * 16 * 48 + 2 * 2 * 8 * 8 * 16
    )
    assert node_macs(node("Conv", "a b", "c"), shapes) is None
    # The weights show whether channels are last or first.
    conv = node("QLinearConv", "x xs xz w ws wz ys yz", "c")
    for given in ((1, 64, 100), (1, 100, 64)):
        assert node_macs(conv, {"c": given, "w": (64, 3, 5)}) == 6400 * 15


def test_attention_and_recurrent_layers() -> None:
    heads = node("Attention", "q k v", "y")
    cost = cost_of(model([heads], {"q": ["b", 2, 6, 4], "k": ["b", 2, 5, 4], "v": ["b", 2, 5, 3]}, opset=23))
    assert cost.macs == 2 * 6 * 5 * (4 + 3)
    flat = node("Attention", "q k v", "y", q_num_heads=2, kv_num_heads=1)
    cost = cost_of(model([flat], {"q": ["b", 6, 8], "k": ["b", 5, 4], "v": ["b", 5, 4]}, opset=23))
    assert cost.macs == 6 * 5 * 2 * (4 + 4)
    lstm = node("LSTM", "x w r", "y", hidden_size=3)
    recurrent = model([lstm], {"x": ["seq", "batch", 5]}, {"w": floats(1, 12, 5), "r": floats(1, 12, 3)})
    for batch in (1, 4):
        assert cost_of(recurrent, Sizes(batch, {"x": (7, batch, 5)})).macs == 7 * (12 * 5 + 12 * 3)


def test_uncountable_operators_are_listed() -> None:
    branch = helper.make_graph(
        [node("Identity", "x", "o")], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("If", "yes", "i", then_branch=branch, else_branch=branch),
        node("Secret", "i", "s", domain="somebody"),
        node("MatMul", "s w", "y"),
    ]
    cost = cost_of(
        model(nodes, {"x": ["b", 4], "yes": []}, {"w": floats(4, 2)}, kinds={"yes": TensorProto.BOOL})
    )  # fmt: skip
    assert set(cost.not_counted) == {"If", "somebody.Secret", "bytes of Secret", "MatMul", "bytes of MatMul"}
    assert "branch" in cost.to_details()["not_counted"]
