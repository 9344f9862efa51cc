"""The zoo is seeded, cached and correct in every precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from joulewatch_harness import networks  # noqa: E402
from joulewatch_harness.errors import ConfigError, NetworkError  # noqa: E402
from joulewatch_harness.networks import numpy_forward, radioml_vgg10, zoo  # noqa: E402
from joulewatch_harness.networks.building import QONNX_DOMAIN  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import network as runtime  # noqa: E402

SMALL: Mapping[str, Mapping[str, str]] = {
    "mlp": {"width": "32", "depth": "2"},
    "mobilenet-like": {"size": "32", "width": "35"},
    "resnet-like": {"size": "32", "width": "16"},
    "transformer-encoder": {"sequence": "8", "width": "128", "depth": "1"},
    "radioml-vgg10": {"filters": "32"},
}


def test_every_network_is_tested_small() -> None:
    assert set(SMALL) == set(networks.BUILTIN)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_loaded_network_is_described_and_matches_numpy(name: str, precision: str) -> None:
    """``describe`` also reports the cost and the origin of the weights."""
    network = runtime.open_network(name, precision, {**SMALL[name], "threads": "1"})
    try:
        network.load()
        details = network.describe()
        assert details["precision"] == precision
        assert details["weights"].startswith("random, seeded")
        assert int(details["macs_per_inference"]) > 0
        assert int(details["weight_bytes"]) > 0
        assert "not_counted" not in details
        assert network.check()
    finally:
        network.close()


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_is_read_back(name: str) -> None:
    """If the CPU's kernels compute in float32, the precision is fp32; inputs stay float32 or integers."""
    for optimization in ("all", "disabled"):
        network = runtime.open_network(name, "fp16", {**SMALL[name], "threads": "1", "optimization": optimization})
        network.load()
        details = network.describe()
        assert details["precision"] in ("fp32", "fp16")
        assert "float16" not in details["inputs"] + details["outputs"]
        assert network.check()
        network.close()
    source = networks.build(name, "fp16", SMALL[name])
    full = networks.build(name, "fp32", SMALL[name])
    assert int(source.details["weight_bytes"]) * 2 == int(full.details["weight_bytes"])
    assert source.path.stat().st_size < 0.6 * full.path.stat().st_size


def test_weights_cast_to_float32_compute_in_float32(tmp_path: Path) -> None:
    """A file in half precision whose weights the runtime casts to float32 computes in float32."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 2])],
        [numpy_helper.from_array(np.ones((4, 2), np.float16), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m.onnx")
    assert runtime.actual_precision(tmp_path / "m.onnx")[0] == "fp32"


@pytest.mark.parametrize("name", [name for name in SMALL if name != "radioml-vgg10"])
def test_numpy_agrees_with_the_reference_of_onnx(name: str) -> None:
    """Compare two independent implementations."""
    from onnx.reference import ReferenceEvaluator

    path = networks.build(name, "fp32", SMALL[name]).path
    make = networks.build(name, "fp32", SMALL[name]).make_inputs
    assert make is not None
    inputs = dict(make(1))
    (wanted,) = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
    assert numpy_forward.forward(onnx.load(path), inputs) == pytest.approx(np.asarray(wanted), rel=1e-3, abs=1e-3)


def test_an_unsupported_operator_is_named() -> None:
    from onnx import helper

    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "g", [], [])
    with pytest.raises(NotImplementedError, match="Sin"):
        numpy_forward.forward(helper.make_model(graph), {"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("name", [name for name in SMALL if name != "radioml-vgg10"])
def test_weights_and_inputs_are_seeded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = networks.build(name, "fp32", SMALL[name])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    second = networks.build(name, "fp32", SMALL[name])
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.make_inputs is not None
    assert second.make_inputs is not None
    for key, array in first.make_inputs(70).items():
        again = second.make_inputs(70)[key]
        assert array.shape[0] == 70
        assert np.array_equal(array, again)
        assert np.array_equal(array[64], array[0])  # the pool has 64 samples


def test_folding_changes_no_result() -> None:
    x = {"input": np.random.default_rng(3).standard_normal((2, 3, 32, 32), dtype=np.float32)}
    for graph in (
        lambda folded: zoo.mobilenet_graph(32, 35, folded=folded),
        lambda folded: zoo.resnet_graph(32, 16, 18, folded=folded),
    ):
        plain, folded = (numpy_forward.forward(graph(flag), x) for flag in (False, True))
        assert plain == pytest.approx(folded, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("network", "options", "text"),
    [
        ("mlp", {"wdith": "8"}, "did you mean width"),
        ("mlp", {"width": "0"}, "width must be an integer from 1 to 16384, got '0'"),
        ("mlp", {"depth": "deep"}, "depth must be an integer"),
        ("mobilenet-like", {"width": "60"}, "width must be 100, 75, 50 or 35, got '60'"),
        ("mobilenet-like", {"size": "16"}, "size must be an integer from 32 to 512"),
        ("resnet-like", {"depth": "50"}, "depth must be 18 or 34, got '50'"),
        ("transformer-encoder", {"heads": "3"}, "heads must be 4, 1, 2, 8 or 16"),
        ("mobilenet", {}, "did you mean mobilenet-like"),
    ],
)
def test_bad_options_are_named(network: str, options: Mapping[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        networks.build(network, "fp32", options)


@pytest.mark.parametrize("precision", ["w4a4", "w5a5"])
def test_precisions_of_few_bits_are_qonnx_files(precision: str) -> None:
    """Weights have few bits, Quant nodes are where Brevitas puts them, and outputs are near those of float32."""
    source = networks.build("radioml-vgg10", precision, {"filters": "32"}, qonnx=True)
    model = onnx.load(source.path)
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    assert {node.domain for node in quants} == {QONNX_DOMAIN}
    assert len(quants) == 1 + 10 + 9  # the input, the weights of ten layers, nine ReLUs
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    bits = int(precision[1])
    for node in quants[1:]:
        assert float(stored[node.input[3]]) == bits
    weight, scale = stored["conv2.weight"], stored["conv2.weight.quant.scale"]
    levels = weight / scale
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.abs(levels).max() == pytest.approx(2 ** (bits - 1) - 1)
    assert scale.shape == (32, 1, 1)
    x = radioml_vgg10._make_inputs(16)
    assert source.reference is not None
    few = source.reference(x)
    full = radioml_vgg10.forward(radioml_vgg10.layers(32), x["input"])
    error = float(np.sqrt(np.mean((few - full) ** 2)) / np.std(full))
    assert 0.01 < error < 0.5
    assert source.precision == precision


def test_a_runtime_without_qonnx_reports_the_path_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r"w4a4 is a QONNX file.*cannot run it: use fp32, fp16, int8.*-w4a4-.*\.onnx"):
        runtime.open_network("radioml-vgg10", "w4a4", {"filters": "32"})
    with pytest.raises(ConfigError, match="unknown precision 'w4a5'"):
        networks.build("radioml-vgg10", "w4a5", {})
    with pytest.raises(ConfigError, match="unknown precision 'w4a4'"):
        networks.build("mlp", "w4a4", {})


def test_more_bits_are_nearer_to_float() -> None:
    x = radioml_vgg10._make_inputs(16)["input"]
    full = radioml_vgg10.forward(radioml_vgg10.layers(32), x)

    def error(bits: int) -> float:
        few = radioml_vgg10.forward_quantised(radioml_vgg10.quantised(32, bits), x)
        return float(np.mean((few - full) ** 2))

    assert error(8) < error(5) < error(4)


def test_a_wrong_network_still_fails_its_check() -> None:
    network = runtime.open_network("mlp", "fp32", SMALL["mlp"])
    object.__setattr__(network._source, "reference", lambda _x: np.arange(80, dtype=np.float32).reshape(8, 10))
    network.load()
    with pytest.raises(NetworkError, match="differ from the reference"):
        network.check()
    network.close()
