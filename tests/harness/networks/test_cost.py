"""Costs of ONNX graphs, compared with small graphs counted by hand and with the published sizes of known networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from joulewatch_harness.networks import radioml_vgg10, zoo  # noqa: E402
from joulewatch_harness.networks.building import QONNX_DOMAIN, half  # noqa: E402
from joulewatch_harness.networks.cost import GraphCost, NodeCost, cost_of  # noqa: E402
from support import golden  # noqa: E402
from support.onnx_graphs import Shape, floats, model, node  # noqa: E402
from support.paths import ROOT  # noqa: E402

GOLDEN = ROOT / "tests" / "harness" / "golden"


def only(cost: GraphCost, op: str) -> NodeCost:
    (only,) = [node_cost for node_cost in cost.nodes if node_cost.op == op]
    return only


def tiny() -> Any:
    """Return a graph that uses every rule for bytes once: convolution, BatchNorm, ReLU, pool, flatten, dense."""
    return model(
        [
            node("Conv", "x w", "c", name="conv", kernel_shape=[3], pads=[1, 1]),
            node("BatchNormalization", "c gamma beta mean variance", "n", name="norm"),
            node("Relu", "n", "r", name="relu"),
            node("MaxPool", "r", "p", name="pool", kernel_shape=[2], strides=[2]),
            node("Flatten", "p", "f", name="flatten"),
            node("Gemm", "f v b", "y", name="dense", transB=1),
        ],
        {"x": ["batch", 2, 8]},
        {
            "w": floats(4, 2, 3),
            **{key: floats(4) for key in ("gamma", "beta", "mean", "variance")},
            "v": floats(5, 16),
            "b": floats(5),
        },
    )


def test_a_tiny_graph_costs_what_was_counted_by_hand(update_golden: bool) -> None:
    cost = cost_of(tiny())
    assert cost.macs == 8 * 4 * 2 * 3 + 16 * 5 == 272
    assert cost.parameters == 24 + 4 + 4 + 80 + 5  # without the running mean and variance
    assert cost.weight_bytes == 4 * cost.parameters
    # x; conv with norm and ReLU in place; pool reads and writes; dense reads and writes; flatten is a view.
    assert cost.activation_bytes == 4 * (16 + 32 + 32 + 16 + 16 + 5)
    assert cost.operators == cost.layers == 3
    assert cost.activation_elements == 16 + 32 + 16 + 5
    text = json.dumps({**dataclasses.asdict(cost), "details": cost.to_details()}, indent=1)
    golden.check(text + "\n", GOLDEN / "graph_tiny.json", update=update_golden)


def mobilenet_v1(size: int) -> Any:
    """Return MobileNet v1 with 1001 classes (Howard et al. 2017, table 1), BatchNorms folded."""
    nodes: list[Any] = []
    weights: dict[str, np.ndarray] = {}

    def convolution(x: str, inner: int, outer: int, kernel: int, stride: int, groups: int) -> str:
        name = f"conv{len(weights)}"
        weights[f"{name}.w"], weights[f"{name}.b"] = floats(outer, inner // groups, kernel, kernel), floats(outer)
        nodes.append(
            node("Conv", f"{x} {name}.w {name}.b", name, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups)
        )
        nodes.append(node("Relu", name, f"{name}.relu"))
        return f"{name}.relu"

    x, inner = convolution("x", 3, 32, 3, 2, 1), 32
    for outer, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ):
        x = convolution(convolution(x, inner, inner, 3, stride, inner), inner, outer, 1, 1, 1)
        inner = outer
    weights |= {"fc.w": floats(1024, 1001), "fc.b": floats(1001)}
    nodes += [
        node("GlobalAveragePool", x, "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc.w fc.b", "y"),
    ]
    return model(nodes, {"x": ["n", 3, size, size]}, weights)


@pytest.mark.parametrize(
    ("graph", "dense", "depthwise", "weights", "activations", "layers", "pixels"),
    [
        (lambda: mobilenet_v1(224), 551_355_392, 17_385_984, 4_222_057, 5_194_217, 29, 50_176),
        (lambda: zoo.mobilenet_graph(224, 100, folded=True), 280_059_136, 20_716_416, 3_489_097, 7_046_025, 64, 50_176),
        (lambda: zoo.mobilenet_graph(96, 35, folded=True), 10_355_584, 1_579_824, 1_671_369, 569_585, 64, 9_216),
    ],
    ids=["v1-1.0-224", "v2-1.0-224", "v2-0.35-96"],
)
def test_the_features_of_mobilenets_are_the_published_ones(
    graph: Callable[[], Any], dense: int, depthwise: int, weights: int, activations: int, layers: int, pixels: int
) -> None:
    """Source: the definitions behind the table of measured energies in tests/benchmarks/data/prediction."""
    cost = cost_of(graph())
    assert cost.macs - cost.macs_depthwise == pytest.approx(dense, rel=0.01)
    assert cost.macs_depthwise == depthwise
    assert cost.parameters == pytest.approx(weights, rel=0.01)
    assert cost.activation_elements == pytest.approx(activations, rel=0.01)
    assert (cost.layers, cost.input_pixels) == (layers, pixels)


def test_the_pixels_of_other_inputs() -> None:
    """Images with the channels last, sequences of channels, tokens, and vectors."""

    def pixels(shape: Shape, kind: int = TensorProto.FLOAT) -> int:
        return cost_of(model([node("Neg", "x", "y")], {"x": shape}, kinds={"x": kind})).input_pixels

    assert [pixels([1, 20, 30, 3]), pixels(["n", 2, 1024]), pixels([4, 784])] == [600, 1024, 1]
    assert pixels(["n", 64], TensorProto.INT64) == 64


@pytest.mark.parametrize(("filters", "parameters", "macs"), [(64, 160_536, 12_864_512), (32, 71_832, 3_345_408)])
def test_radioml_vgg10_has_its_known_size(filters: int, parameters: int, macs: int) -> None:
    cost = cost_of(radioml_vgg10.graph(filters, folded=False))
    assert (cost.parameters, cost.macs, cost.not_counted) == (parameters, macs, {})
    assert cost.weight_bytes == 4 * parameters
    layers = radioml_vgg10.layers(filters)
    assert (radioml_vgg10.parameters(layers), radioml_vgg10.macs(layers)) == (parameters, macs)
    halved = cost_of(half(radioml_vgg10.graph(filters, folded=False)))
    assert (halved.parameters, halved.macs, halved.weight_bytes) == (parameters, macs, 2 * parameters)


def test_radioml_vgg10_moves_the_bytes_counted_by_hand() -> None:
    """Convolutions with norm and ReLU in place, pools, dense layers: 1.57 MB per inference."""
    assert cost_of(radioml_vgg10.graph(64, folded=False)).activation_bytes == 1_570_912


@pytest.mark.parametrize(
    ("graph", "parameters", "macs"),
    [
        # Sizes published for the original networks, with 224 pixels and 1000 classes.
        (lambda: zoo.mobilenet_graph(224, 100, folded=False), 3_504_872, 300_774_272),
        (lambda: zoo.resnet_graph(224, 64, 18, folded=False), 11_689_512, 1_814_073_344),
        (lambda: zoo.mlp_graph(1024, 3), 2_913_290, 2_910_208),
    ],
)
def test_known_networks_have_their_published_size(graph: Any, parameters: int, macs: int) -> None:
    cost = cost_of(graph())
    assert (cost.parameters, cost.macs, cost.not_counted) == (parameters, macs, {})


def test_a_transformer_costs_what_was_counted_by_hand() -> None:
    width, sequence, depth = 128, 16, 2
    layer = 4 * width * width + 4 * width + 2 * 4 * width * width + 4 * width + width + 4 * width
    cost = cost_of(zoo.transformer_graph(sequence, width, depth, 4))
    embeddings = zoo.VOCABULARY * width + sequence * width
    assert cost.parameters == embeddings + depth * layer + width * 10 + 10
    products = sequence * 12 * width * width + 2 * sequence * sequence * width
    assert cost.macs == depth * products + width * 10


@pytest.mark.parametrize("batch", ["batch", None, 1, 8])
def test_a_fixed_batch_axis_is_divided_by(batch: int | str | None) -> None:
    """All costs are per inference, whatever the batch size in the file."""
    graph = tiny()
    dim = graph.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(batch, str):
        dim.dim_param = batch
    elif batch is not None:
        dim.dim_value = batch
    cost = cost_of(graph)
    assert cost.batch == (batch if isinstance(batch, int) else 1)
    assert (cost.macs, cost.activation_bytes, cost.parameters) == (272, 468, 117)


def test_quantised_pairs_count_in_their_narrow_types() -> None:
    """QDQ: int8 weights, uint8 activations between the pairs, float inputs and outputs."""
    scale = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "zw": np.array(0, np.int8)}
    graph = model(
        [
            node("QuantizeLinear", "x s z", "xq"),
            node("DequantizeLinear", "xq s z", "xd"),
            node("DequantizeLinear", "w s zw", "wd"),
            node("DequantizeLinear", "b s", "bd"),
            node("Gemm", "xd wd bd", "g"),
            node("Relu", "g", "r"),
            node("QuantizeLinear", "r s z", "rq"),
            node("DequantizeLinear", "rq s z", "y"),
        ],
        {"x": ["b", 10]},
        {**scale, "w": np.ones((10, 4), np.int8), "b": np.ones(4, np.int32)},
    )
    cost = cost_of(graph)
    assert cost.macs == 40
    assert cost.parameters == 44
    assert cost.weight_bytes == 40 + 4 * 4
    assert only(cost, "Gemm").read_bytes == 10
    # In: 40 read, 10 written. Gemm: 10 read, 4 written (by the ReLU in place). Out: 4 read, 16 written.
    assert cost.activation_bytes == 40 + 10 + 10 + 4 + 4 + 16
    assert cost.operators == 3


def test_qonnx_counts_in_bits() -> None:
    cost = cost_of(radioml_vgg10.qonnx_graph(32, 4))
    assert (cost.parameters, cost.macs, cost.not_counted) == (71_832, 3_345_408, {})
    weights = 32 * 2 * 3 + 6 * 32 * 32 * 3 + 256 * 128 + 128 * 128 + 128 * 24
    assert cost.weight_bytes == weights // 2 + 4 * (71_832 - weights)
    pools = [item for item in cost.nodes if item.op == "MaxPool"]
    assert pools[0].read_bytes == 32 * 1024 // 2
    assert pools[0].written_bytes == 32 * 512 // 2


def test_a_residual_is_read_and_added_in_place() -> None:
    cost = cost_of(
        model(
            [node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Conv", "r v", "c"), node("Add", "c r", "y")],
            {"x": ["b", 4, 8]},
            {"w": floats(4, 4, 1), "v": floats(4, 4, 1)},
        )
    )
    tensor = 4 * 8 * 4
    # x read, r written; r read, the sum written in place of c; r read again for the sum.
    assert cost.activation_bytes == 5 * tensor
    assert cost.operators == 2


def test_only_learned_constants_are_parameters() -> None:
    """Shapes and scalars do not count; a weight that two operators share counts once."""
    nodes = [
        node("Gather", "table ids", "e"),
        node("Mul", "e half", "m"),
        node("Reshape", "m shape", "f"),
        node("Transpose", "table", "t", perm=[1, 0]),
        node("MatMul", "f t", "y"),
    ]
    weights = {"table": floats(50, 6), "half": np.array(0.5, np.float32), "shape": np.array([-1, 6], np.int64)}
    cost = cost_of(model(nodes, {"ids": ["b", 3]}, weights, kinds={"ids": TensorProto.INT64}))
    assert cost.parameters == 300
    assert cost.macs == 3 * 6 * 50
    slopes = cost_of(model([node("PRelu", "x s", "y")], {"x": ["b", 4, 2]}, {"s": floats(4, 1)}))
    assert slopes.parameters == 4


def test_weights_as_constant_nodes_count_as_well() -> None:
    weight = numpy_helper.from_array(floats(7, 3), "value")
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), node("MatMul", "x w", "y")]
    cost = cost_of(model(nodes, {"x": ["b", 7]}))
    assert (cost.parameters, cost.macs, [item.op for item in cost.nodes]) == (21, 21, ["MatMul"])


def test_a_quantiser_of_another_domain_is_known() -> None:
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.float32), "n": np.array(5, np.float32)}
    quant = node("Quant", "x s z n", "q", domain=QONNX_DOMAIN)
    cost = cost_of(model([quant, node("MatMul", "q w", "y")], {"x": ["b", 8]}, {**weights, "w": floats(8, 2)}))
    assert (cost.macs, only(cost, "MatMul").read_bytes) == (16, 5)
