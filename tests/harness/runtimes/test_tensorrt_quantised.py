"""Quantised graphs rewritten to int8 around zero: TensorRT takes them, and they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.tensorrt import quantised
from support.onnx_models import save


def outputs(model: Any, inputs: Any) -> np.ndarray:
    """Compute the first output as the file says: ONNX Runtime's optimiser would merge operators."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(array**2)))


@pytest.mark.parametrize(
    ("network", "options"),
    [("mlp", {"width": "32", "depth": "2"}), ("mobilenet-like", {"size": "32", "width": "35"})],
)
def test_builtin_networks_are_as_near_to_the_float_network(network: str, options: dict[str, str]) -> None:
    source = networks.build(network, "int8", options)
    model = quantised.read(source.path)
    assert quantised.refused(model) is not None
    rewritten = quantised.symmetric(model, network)
    assert quantised.refused(rewritten) is None
    onnx.checker.check_model(rewritten)
    assert source.make_inputs is not None and source.reference is not None
    inputs = source.make_inputs(8)
    wanted = source.reference(inputs)
    before, after = (rms(outputs(item, inputs) - wanted) / np.std(wanted) for item in (model, rewritten))
    assert after < 1.5 * before + 0.02
    makers = {name: node.op_type for node in rewritten.graph.node for name in node.output}
    for node in rewritten.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            assert [makers[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2


def qdq(path: Path, zero: Any, weight_zero: Any, bias_zero: Any = None, *, computed: str = "") -> Any:
    """Read back x -> Quantize -> Dequantize -> Gemm; a zero point that is None is omitted."""
    kind = np.uint8 if weight_zero is None else weight_zero.dtype
    weights = (np.arange(12).reshape(4, 3) * 10).astype(kind)
    arrays = {"w": weights, "w_scale": np.array(0.01, np.float32), "b_scale": np.array(0.5, np.float32)}
    arrays |= {"b": np.arange(3).astype(np.int32 if bias_zero is None else bias_zero.dtype)}
    arrays |= {"scale": np.array(0.02, np.float32)}
    nodes = []
    for op, source, target, scale, label, point in (
        ("Quantize", "x", "q", "scale", "zero", zero),
        ("Dequantize", "q", "d", "scale", "zero", zero),
        ("Dequantize", "w", "wd", "w_scale", "w_zero", weight_zero),
        ("Dequantize", "b", "bd", "b_scale", "b_zero", bias_zero),
    ):
        nodes.append(helper.make_node(f"{op}Linear", [source, scale, *[label] * (point is not None)], [target], target))
        arrays |= {} if point is None else {label: point}
    nodes.append(helper.make_node("Gemm", ["d", "wd", "bd"], ["y"], "product"))
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, ["batch", 4])}
    if computed:
        inputs[computed] = (helper.np_dtype_to_tensor_dtype(arrays.pop(computed).dtype), [])
    return quantised.read(save(path, nodes, inputs, {"y": (TensorProto.FLOAT, ["batch", 3])}, arrays))


@pytest.mark.parametrize(
    ("zero", "weight_zero", "bias_zero", "node", "why", "reach"),
    [
        (np.uint8(0), np.int8(0), np.int32(0), "q", "it quantises to unsigned integers", 255),
        (np.uint8(100), np.uint8(100), np.int32(0), "q", "it quantises to unsigned integers", 155),
        (None, np.int8(0), np.int32(0), "q", "it quantises to unsigned integers", 255),
        (np.int8(-3), np.int8(0), np.int32(0), "q", "its zero point is -3, not 0", 130),
        (np.int8(20), np.int8(0), np.int32(0), "q", "its zero point is 20, not 0", 148),
        (np.int8(0), np.uint8(7), np.int32(0), "wd", "it quantises to unsigned integers", 127),
        (np.int8(0), np.int8(5), np.int32(0), "wd", "its zero point is 5, not 0", 127),
        (np.int8(0), np.int8(0), np.int32(0), "bd", "it dequantises an int32 constant, a bias", 127),
    ],
)
def test_what_tensorrt_refuses_is_rewritten(
    tmp_path: Path, zero: Any, weight_zero: Any, bias_zero: Any, node: str, why: str, reach: int
) -> None:
    """Around zero, 127 steps cover the larger half of the range."""
    points = [None if point is None else np.array(point) for point in (zero, weight_zero, bias_zero)]
    model = qdq(tmp_path / "q.onnx", *points)
    assert quantised.refused(model) == quantised.Refused(node, why)
    untouched = model.SerializeToString()
    rewritten = quantised.symmetric(model, "q.onnx")
    assert model.SerializeToString() == untouched
    assert quantised.refused(rewritten) is None
    onnx.checker.check_model(rewritten)
    inputs = {"x": np.random.default_rng(1).uniform(-2, 2, (64, 4)).astype(np.float32)}
    assert np.allclose(outputs(rewritten, inputs), outputs(model, inputs), atol=0.06)
    arrays = {item.name: numpy_helper.to_array(item) for item in rewritten.graph.initializer}
    (scale,) = (arrays[item.input[1]] for item in rewritten.graph.node if item.name == "q")
    assert scale == pytest.approx(0.02 * reach / 127)


def test_a_supported_graph_is_not_changed(tmp_path: Path) -> None:
    """Only the bias becomes what it stands for, because nothing multiplies with it."""
    model = qdq(tmp_path / "q.onnx", np.array(0, np.int8), np.array(0, np.int8), np.array(0, np.int8))
    assert quantised.refused(model) is None
    kept = [item for item in model.graph.node if item.name != "bd"]
    rewritten = quantised.symmetric(model, "q.onnx")
    assert list(rewritten.graph.node) == kept
    assert {"b", "b_scale", "b_zero"}.isdisjoint(item.name for item in rewritten.graph.initializer)


@pytest.mark.parametrize("computed", ["scale", "zero"])
def test_a_scale_or_zero_point_that_is_computed_cannot_be_rewritten(tmp_path: Path, computed: str) -> None:
    model = qdq(tmp_path / "q.onnx", np.array(0, np.uint8), np.array(0, np.int8), computed=computed)
    with pytest.raises(ConfigError, match=r"q\.onnx: node 'q' has a scale or zero point that is not constant"):
        quantised.symmetric(model, "q.onnx")


def test_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ConfigError, match=r"text\.onnx cannot be loaded"):
        quantised.read(tmp_path / "text.onnx")
