"""OpenVINO with small models: what it computes in, on how many threads, and what it says of bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError  # noqa: E402
from joulewatch_harness.network import Phases  # noqa: E402
from joulewatch_harness.records import Configuration  # noqa: E402
from joulewatch_harness.runtimes import as_loaded, open_network  # noqa: E402
from joulewatch_harness.runtimes.openvino import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.openvino.network import OpenVinoNetwork, core  # noqa: E402
from joulewatch_harness.runtimes.openvino.options import Options  # noqa: E402
from support import model_cases  # noqa: E402
from support.onnx_models import dequantised, matmul, save  # noqa: E402

needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="this CPU does not compute in bfloat16",
)


def opened(network: str | Path, precision: str = "native", **options: str) -> OpenVinoNetwork:
    return runtime.open_network(str(network), precision, options)


def vgg10(precision: str, **options: str) -> OpenVinoNetwork:
    return opened("radioml-vgg10", precision, filters="32", **options)


def outputs(network: OpenVinoNetwork) -> np.ndarray:
    return np.array(network._request.get_output_tensor(0).data)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_compilation_runs_all_batch_sizes(precision: str) -> None:
    network = vgg10(precision, threads="1", shape="dynamic")
    network.load()
    described = network.describe()
    assert (described["device"], described["threads"], described["requests"]) == ("CPU", "1", 1)
    assert described["precision"] == precision
    compiled = network._compiled
    assert network.check()
    for batch in (1, 4):
        network.prepare(batch)
        network.run(1, Phases())
        assert outputs(network).shape == (batch, 24)
    assert network._compiled is compiled
    assert network.describe()["integer_ops"] == ("10 of 10" if precision == "int8" else "0 of 10")
    network.close()


def test_activations_are_not_quantised_before_weights_that_are_stored_in_int8(tmp_path: Path) -> None:
    """OpenVINO does that by default, in a file that computes in float."""
    network = opened(dequantised(tmp_path / "m.onnx", "MatMul", (32, 16), ["batch", 32], ["batch", 16]))
    network.load()
    described = network.describe()
    assert (described["precision"], described["integer_ops"]) == ("fp32", "0 of 1")
    assert described["dynamic_quantization_group"] == "0"
    network.close()


@needs_bfloat16
def test_bfloat16_by_default_is_found(tmp_path: Path) -> None:
    """Left alone, OpenVINO computes a float32 file in bfloat16; that is no fp32 result."""
    options = {"filters": "32", "precision_hint": "none"}
    asked = Configuration(name="n", network="radioml-vgg10", runtime="openvino", precision="fp32", options=options)
    network = open_network(asked)
    network.load()
    description = network.describe()
    assert (description["precision"], description["precision_hint"]) == ("bf16", "bf16")
    with pytest.raises(ConfigError, match="n: the precision fp32 was requested, but the network computes in bf16"):
        as_loaded(asked, description)
    assert network.check()
    network.close()
    allowed = Configuration(
        name="n",
        network="radioml-vgg10",
        runtime="openvino",
        precision="fp32",
        options={**options, "any_precision": "true"},
    )
    assert as_loaded(allowed, description).actual_precision == "bf16"
    # The same for a file of which no precision was asked: its own is meant.
    silent = opened(matmul(tmp_path / "m.onnx"), precision_hint="none")
    with pytest.raises(ConfigError, match="the file is fp32, but OpenVINO computes it in bf16"):
        silent.load()
    silent = opened(matmul(tmp_path / "m.onnx"), precision_hint="none", any_precision="true")
    silent.load()
    assert silent.describe()["precision"] == "bf16"
    silent.close()


@needs_bfloat16
def test_requested_bfloat16_computes_in_bfloat16() -> None:
    network = vgg10("bf16")
    network.load()
    assert network.describe()["precision"] == "bf16"
    assert network.check()
    network.close()


def test_half_precision_that_the_cpu_lacks_is_not_reported_as_such() -> None:
    """OpenVINO takes the hint f16 without a word and computes in something else."""
    if "FP16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in float16")
    network = vgg10("fp16")
    network.load()
    assert network.describe()["precision"] in ("bf16", "fp32")
    network.close()


def test_a_batch_size_at_which_the_precision_changes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vgg10("fp32")
    network.load()
    monkeypatch.setattr(runtime, "actual_precision", lambda _graph: ("bf16", "0 of 10"))
    with pytest.raises(NetworkError, match="computes in bf16 at batch 4, but in fp32"):
        network.prepare(4)
    network.close()


def test_openvino_own_format_is_read(tmp_path: Path) -> None:
    model = core().read_model(matmul(tmp_path / "m.onnx"))
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    network = opened(tmp_path / "m.xml")
    network.load()
    description = network.describe()
    assert (description["inputs"], description["precision"]) == ("x:float32[?,4]", "fp32")
    network.prepare(3)
    network.run(1, Phases())
    assert outputs(network).shape == (3, 3)
    assert network.check()
    before = description["model_sha256"]
    # Another file in its place: OpenVINO has the old one mapped into memory.
    (tmp_path / "new").write_bytes(bytes((tmp_path / "m.bin").stat().st_size))
    (tmp_path / "new").replace(tmp_path / "m.bin")
    network.load()
    assert network.describe()["model_sha256"] != before
    network.close()


def test_a_broken_file_of_openvino_s_own_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.xml").write_bytes(b"this is no model")
    with pytest.raises(ConfigError, match=r"model file .*broken\.xml cannot be loaded"):
        opened(tmp_path / "broken.xml").load()
    with pytest.raises(ConfigError, match=r"no model file .*none\.xml"):
        opened(tmp_path / "none.xml")


def test_a_batch_size_that_the_graph_does_not_allow_is_unsupported(tmp_path: Path) -> None:
    """The batch axis is symbolic, but a constant in the graph has a batch of its own."""
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Concat", ["x", "w"], ["y"], axis=1)],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 7])},
        {"w": np.ones((1, 3), np.float32)},
    )
    network = opened(path)
    network.load()
    network.prepare(1)
    with pytest.raises(UnsupportedBatchError, match=r"m\.onnx: OpenVINO cannot compile it for batch 2: "):
        network.prepare(2)
    network.prepare(1)
    network.run(1, Phases())
    network.close()


@pytest.mark.parametrize("options", [{"requests": "3"}, {"streams": "1", "requests": "2"}])
def test_batches_in_flight_are_all_run(tmp_path: Path, options: dict[str, str]) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), **options)
    network.load()
    assert network.describe()["requests"] == int(options["requests"])
    assert network.check()
    network.prepare(4)
    phases = Phases()
    network.run(7, phases)
    assert phases.spans["execute"][0] == 1
    assert not phases.batch_ends_ns
    wanted = network._kept[0]["x"].sum(axis=1)
    for request in network._queue:
        assert np.allclose(request.get_output_tensor(0).data[:, 0], wanted, rtol=1e-5)
    network.close()


def test_throughput_takes_as_many_requests_as_openvino_likes() -> None:
    network = vgg10("fp32", performance_hint="throughput")
    network.load()
    description = network.describe()
    assert description["performance_hint"] == "throughput"
    assert str(description["requests"]) == description["optimal_requests"]
    network.close()


@pytest.mark.parametrize(("key", "number"), [("threads", "4096"), ("streams", "4096")])
def test_fewer_threads_or_streams_than_requested_is_an_error(tmp_path: Path, key: str, number: str) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), **{key: number})
    with pytest.raises(NetworkError, match=rf"4096 {key} were requested, but OpenVINO uses \d+: set {key}="):
        network.load()


def test_a_device_that_fell_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoNetwork, "_device", lambda _self: "GPU.0")
    network = opened(matmul(tmp_path / "m.onnx"))
    with pytest.raises(NetworkError, match=r"device CPU was requested, but OpenVINO runs it on GPU\.0"):
        network.load()


@pytest.mark.parametrize("device", ["GPU.7", "AUTO", "cpus"])
def test_an_unknown_device_is_named(tmp_path: Path, device: str) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), device=device)
    with pytest.raises(ConfigError, match=rf"unknown device '{device.upper()}'.*CPU.*driver"):
        network.load()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"streams": "x"}, "option streams: must be an integer >= 1, got 'x'"),
        ({"shape": "fixed"}, "option shape: unknown value 'fixed'"),
        ({"performance_hint": "fast"}, "option performance_hint: unknown value 'fast'"),
        ({"precision_hint": "f32"}, "option precision_hint: unknown value 'f32'"),
        ({"streams": "1", "performance_hint": "latency"}, "give only one of them"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, str], text: str) -> None:
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=text):
        opened(path, **options)


def test_options_have_their_defaults() -> None:
    options = Options.parse({"device": "gpu"})
    assert (options.device, options.shape, options.requests, options.precision_hint) == ("GPU", "static", None, "asked")


def test_ctrl_c_after_a_network_is_closed_is_a_signal_and_not_the_end(tmp_path: Path) -> None:
    """OpenVINO frees a stack for signals together with its core; so the core is kept."""
    code = f"""
import os, signal
from joulewatch_harness.runtimes.openvino import network as runtime
network = runtime.open_network({str(matmul(tmp_path / "m.onnx"))!r}, "native", {{}})
for _ in range(2):
    network.load()
network.close()
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
os.kill(os.getpid(), signal.SIGINT)
assert heard
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_booleans_are_not_a_computation_in_int8(tmp_path: Path) -> None:
    network = opened(model_cases.attention(tmp_path / "m.onnx"))
    network.load()
    assert network.describe()["precision"] == "fp32"
    assert network.check()
    network.close()


def test_the_inputs_of_a_file_in_openvinos_format_have_their_ranges(tmp_path: Path) -> None:
    """The format has no names of dimensions."""
    tokens = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    for build, options, text in (
        (model_cases.embedding, {}, "ids 0..4999"),
        (model_cases.fields, {"batch_axis": "indices:1"}, "indices 0..99"),
        (
            model_cases.bert,
            {"dims": ",".join(f"{name}.1=8" for name in tokens)},
            "input_ids 0..999, attention_mask 1, token_type_ids 0..1, position_ids 0,1,2,...",
        ),
    ):
        openvino.save_model(core().read_model(build(tmp_path / "m.onnx")), tmp_path / "m.xml")
        network = opened(tmp_path / "m.xml", "fp32", any_precision="true", **options)
        network.load()
        described = dict(part.split(" ", 1) for part in network.describe()["input_values"].split(", "))
        assert described == dict(part.split(" ", 1) for part in text.split(", "))
        network.close()
