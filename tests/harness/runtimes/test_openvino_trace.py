"""OpenVINO's counters: the running mean taken apart, and layers found again in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness.errors import NetworkError  # noqa: E402
from joulewatch_harness.runtimes.openvino import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.openvino.tracing import Counters  # noqa: E402
from joulewatch_harness.runtimes.shared import tracing  # noqa: E402
from joulewatch_harness.traces import Trace, read_trace  # noqa: E402
from support.onnx_models import matmul, save  # noqa: E402


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces of a few batches."""
    monkeypatch.setattr(tracing, "AIM_S", 0.01)
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)


def traced(network: str | Path, precision: str, batch: int, tmp_path: Path, **options: str) -> Trace:
    found = runtime.open_network(str(network), precision, {"threads": "1", **options})
    found.load()
    try:
        found.prepare(batch)
        found.trace(tmp_path / "trace.json")
    finally:
        found.close()
    return read_trace(tmp_path / "trace.json")


@pytest.mark.parametrize(
    ("network", "precision", "options", "names"),
    [
        ("radioml-vgg10", "fp32", {"filters": "32"}, {"conv1", "conv7", "fc1", "conv3.pool"}),
        ("radioml-vgg10", "int8", {"filters": "32"}, {"conv1", "conv7", "fc1", "conv3.pool"}),
        ("mobilenet-like", "fp32", {"size": "32", "width": "35"}, {"stem", "block2.expand", "head", "classifier"}),
        ("resnet-like", "int8", {"size": "32", "width": "16"}, {"stem", "stage4.2.conv2", "classifier"}),
        ("transformer-encoder", "fp32", {"sequence": "8", "width": "128", "depth": "1"}, {"layer1.up"}),
    ],
)
def test_layers_are_found_again_in_the_model(
    network: str, precision: str, options: Mapping[str, str], names: set[str], tmp_path: Path
) -> None:
    """Folded, fused into one kernel and renamed as they are: their work adds up to the graph's."""
    trace = traced(network, precision, 2, tmp_path, **options)
    assert trace.batches >= tracing.FEWEST_BATCHES
    assert trace.macs is not None
    assert sum(item.macs or 0 for item in trace.operators) == trace.macs
    assert all(item.macs is not None for item in trace.operators)
    shown = {name for item in trace.operators for name in item.name.split("+")}
    assert names <= shown
    assert {item.calls for item in trace.operators} == {trace.batches}
    assert trace.plain_time_ns


def test_the_kind_of_a_layer_contains_its_precision(tmp_path: Path) -> None:
    for precision, suffix in (("fp32", "f32"), ("int8", "I8")):
        trace = traced("radioml-vgg10", precision, 2, tmp_path, filters="32")
        (conv,) = [item for item in trace.operators if item.name == "conv2"]
        assert conv.op.startswith("Convolution ")
        assert conv.op.endswith(f"_{suffix}")


def test_nodes_without_names_get_unique_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["s"])]
    nodes.append(helper.make_node("MatMul", ["s", "w"], ["y"]))
    shape = (TensorProto.FLOAT, ["b", 512])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, {"w": np.ones((512, 512), np.float32)})
    trace = traced(path, "native", 8, tmp_path)
    assert {name for item in trace.operators if item.macs for name in item.name.split("+")} == {"MatMul_0", "MatMul_2"}
    assert sum(item.macs or 0 for item in trace.operators) == 2 * 8 * 512 * 512


def test_the_work_of_openvino_own_format_is_not_guessed(tmp_path: Path) -> None:
    openvino.save_model(runtime.core().read_model(matmul(tmp_path / "m.onnx")), tmp_path / "m.xml")
    trace = traced(tmp_path / "m.xml", "native", 64, tmp_path, any_precision="true")
    assert trace.macs is None
    assert [item.macs for item in trace.operators if "FullyConnected" in item.op] == [None]


@dataclass
class FakeLayer:
    node_name: str
    real_time: timedelta
    status: str = "Status.EXECUTED"
    node_type: str = "Convolution"
    exec_type: str = "jit_f32"


def test_a_slow_beginning_is_taken_out_of_the_running_mean() -> None:
    """The counter is the mean of all inferences so far: three of 1000 µs, then 297 of 100 µs."""
    layers: list[FakeLayer] = []
    counters = Counters(lambda: layers)
    layers[:] = [
        FakeLayer("conv", timedelta(microseconds=1000)),
        FakeLayer("fused", timedelta(), "Status.NOT_RUN", "Relu", "undef"),
        FakeLayer("view", timedelta(), "Status.NOT_RUN", "Reshape", "unknown_f32"),
        FakeLayer("short", timedelta(), "Status.NOT_RUN", "Reorder"),
    ]
    counters.inferences += 3
    counters.note()
    layers[0] = FakeLayer("conv", timedelta(microseconds=(3 * 1000 + 297 * 100) // 300))
    counters.inferences += 297
    counters.note()
    assert counters.layers() == {"conv": ("Convolution jit_f32", 297 * 100_000), "short": ("Reorder jit_f32", 0)}


def test_the_counter_is_a_running_mean(tmp_path: Path) -> None:
    """What the arithmetic above rests on: a new request of the same compiled model goes on from the old one's mean."""
    path = matmul(tmp_path / "m.onnx")
    compiled = runtime.core().compile_model(runtime.core().read_model(path), "CPU", {"PERF_COUNT": "YES"})
    first = compiled.create_infer_request()
    first.infer({0: np.ones((4096, 4), np.float32)})
    layers = [(item.node_name, item.real_time) for item in first.profiling_info]
    second = compiled.create_infer_request()
    assert [(item.node_name, item.real_time) for item in second.profiling_info] == layers


def test_counters_that_tell_nothing_are_an_error() -> None:
    counters = Counters(list)
    counters.note()
    counters.note()
    with pytest.raises(NetworkError, match="reported no times of layers"):
        counters.layers()


def test_errors_of_tracing_contain_the_reason(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(NetworkError, match="remove streams, requests and performance_hint"):
        traced(path, "native", 2, tmp_path, requests="2")
    network = runtime.open_network(str(path), "native", {})
    network.load()
    network.prepare(2)
    object.__setattr__(network._options, "device", "GPU")
    with pytest.raises(NetworkError, match="only the device CPU can be traced, not GPU"):
        network.trace(tmp_path / "t.json")
    network.close()


def test_tracing_leaves_the_prepared_batch_as_it_was(tmp_path: Path) -> None:
    network = runtime.open_network(str(matmul(tmp_path / "m.onnx")), "native", {})
    network.load()
    network.prepare(3)
    compiled = network._compiled
    network.trace(tmp_path / "t.json")
    assert network._compiled is compiled
    assert compiled.get_property("PERF_COUNT") in (False, "NO")
    network.close()
