"""TensorRT against a double of its bindings that computes with ONNX Runtime: both majors, every trap, nothing left."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Network, Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.tensorrt import device, inspector, libraries, quantised
from joulewatch_harness.runtimes.tensorrt import network as tensorrt
from joulewatch_harness.traces import read_trace
from support.onnx_models import dynamic, matmul, save
from support.tensorrt.double import HERE, VERSIONS, fake_tensorrt

TEN, ELEVEN = VERSIONS
MLP = {"width": "32", "depth": "2"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built-in networks are built once."""
    folder = tmp_path_factory.mktemp("built")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of engines for each test; gives its folder."""
    root = tmp_path / "cache" / "joulewatch"
    root.mkdir(parents=True)
    (root / "models").symlink_to(models)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent))
    return root / "tensorrt"


@pytest.fixture(autouse=True)
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n"
    )
    monkeypatch.setattr(device, "DRIVER_FILE", path)
    return path


@pytest.fixture(autouse=True)
def short_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "AIM_S", 0.0)
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)


@pytest.fixture(params=VERSIONS, ids=["10", "11"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A machine; at the end nothing was misused, and nothing is left."""
    with fake_tensorrt(request.param) as machine:
        yield machine
        assert machine.misuses == []
        if machine.left():
            gc.collect()  # what a traceback held
        assert machine.left() == {}


@pytest.fixture
def gpu11() -> Iterator[Any]:
    """The same with TensorRT 11 alone, for what does not depend on the version."""
    with fake_tensorrt(ELEVEN) as machine:
        yield machine
        assert machine.misuses == []
        if machine.left():
            gc.collect()  # what a traceback held
        assert machine.left() == {}


def opened(network: str | Path = "mlp", precision: str = "fp32", **options: str) -> Any:
    """An unloaded network; Any, for tests look inside."""
    if network == "mlp":
        options = {**MLP, **options}
    return tensorrt.open_network(str(network), precision, options)


def loaded(network: str | Path = "mlp", precision: str = "fp32", **options: str) -> Any:
    found = opened(network, precision, **options)
    found.load()
    return found


# What is asked for is what runs


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_a_builtin_network_runs_in_what_was_asked_for(gpu: Any, precision: str) -> None:
    """Strongly typed, its outputs those of the reference, and the precision read back from the engine's layers."""
    configuration = Configuration(name="x", network="mlp", runtime="tensorrt", precision=precision, options=MLP)
    network: Any = open_network(configuration)
    assert isinstance(network, Network)
    network.load()
    settled = as_loaded(configuration, network.describe())
    assert settled.actual_precision == precision
    assert settled.device == "cuda:0"
    assert settled.runtime_version == gpu.tensorrt_version
    assert settled.details["device_name"] == "NVIDIA Double H1"
    assert settled.details["compute_capability"] == "9.0"
    assert settled.details["driver"] == "580.65.06"
    assert settled.details["cuda"] == "13.0"
    assert settled.details["gpu_uuid"] == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert settled.details["precision_products"] == "3 of 3"
    assert settled.details["precision_evidence"] == "kernels"
    assert settled.details["engine"].startswith("built in ")
    assert settled.details["copies"] == "excluded"
    assert int(settled.details["activation_memory_bytes"]) > 0
    assert len(settled.model_sha256) == 64
    assert network.check() is True
    network.close()
    network.close()
    (built,) = gpu.tensorrt.builds
    assert built["strongly_typed"] is True
    assert built["flags"] == ({"TF32"} if precision == "tf32" else set())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_convolutions_too(gpu11: Any, precision: str) -> None:
    network = loaded("radioml-vgg10", precision, filters="32")
    assert network.check()
    assert network.describe()["precision"] == precision
    network.close()


def test_a_run_is_so_many_batches_and_one_wait(gpu: Any) -> None:
    """Phases are the device's own times, without gaps, and end where the host saw the end."""
    gpu.tensorrt.layer_ms = {"fc1": 2.0}
    network = loaded()
    network.prepare(4)
    layers = network._engine.num_layers
    gpu.calls.clear()
    phases = Phases()
    network.run(5, phases)
    assert gpu.calls["cudaStreamSynchronize"] == 1
    assert gpu.calls["cudaMemcpyAsync"] == 0
    count, total_ns = phases.spans["execute"]
    assert (set(phases.spans), count) == ({"execute"}, 5)
    assert total_ns == pytest.approx(5 * (2.0 + (layers - 1) * 0.01) * 1e6)
    assert np.allclose(np.diff(phases.batch_ends_ns), total_ns / 5)
    network.close()


def test_copies_are_phases_of_each_batch(gpu: Any) -> None:
    network = loaded(copies="true")
    assert network.describe()["copies"] == "included"
    network.prepare(4)
    for tensor in network._inputs:
        tensor.pinned[...] = 0
    phases = Phases()
    network.run(3, phases)
    assert {name: count for name, (count, _) in phases.spans.items()} == {"copy_in": 3, "execute": 3, "copy_out": 3}
    assert phases.spans["copy_in"][1] == pytest.approx(3 * gpu.copy_ms * 1e6)
    (output,) = network._outputs
    # What was computed is what lay in the pinned memory: zeros, in every row alike.
    assert np.allclose(output.pinned, output.pinned[0])
    assert network.check()
    network.close()


def test_without_events_a_call_is_one_span(gpu11: Any) -> None:
    network = loaded(events="false")
    network.prepare(2)
    phases = Phases()
    network.run(4, phases)
    assert phases.spans["execute"][0] == 1
    assert not phases.batch_ends_ns
    assert gpu11.calls["cudaEventCreate"] == 0
    network.close()


@pytest.mark.parametrize("copies", ["false", "true"])
def test_a_cuda_graph_is_captured_before_the_window(gpu: Any, copies: str) -> None:
    network = loaded(cuda_graph="true", copies=copies)
    assert network.check()
    network.prepare(4)
    gpu.calls.clear()
    phases = Phases()
    network.run(3, phases)
    assert gpu.calls["cudaGraphLaunch"] == 3
    assert gpu.calls["cudaStreamBeginCapture"] == 0
    assert phases.spans["execute"][0] == 3
    assert network.describe()["cuda_graph"] == "true"
    network.close()


def test_what_cannot_be_captured_runs_without(gpu: Any) -> None:
    """The failed capture leaves a stream that still works."""
    gpu.tensorrt.cannot_capture = True
    network = loaded(cuda_graph="true")
    with pytest.raises(NetworkError, match=r"cannot be captured as a CUDA graph.*set cuda_graph=false"):
        network.prepare(4)
    gpu.tensorrt.cannot_capture = False
    network.prepare(4)
    network.run(2, Phases())
    network.close()


# Precision


def test_tf32_in_an_fp32_network_is_an_error(gpu: Any) -> None:
    """Whatever the flag says, the kernels tell."""
    gpu.tensorrt.kernels_in = {"fc1": "tf32f32", "fc2": "tf32f32"}
    network = loaded()
    told = network.describe()
    assert told["precision"] == "tf32"
    network.close()
    configuration = Configuration(name="x", network="mlp", runtime="tensorrt", precision="fp32", options=MLP)
    with pytest.raises(ConfigError, match="fp32 was asked for, but what was loaded computes in tf32"):
        as_loaded(configuration, told)


def test_tf32_that_nothing_uses_is_told(gpu11: Any) -> None:
    gpu11.tensorrt.uses_tf32 = False
    network = loaded(precision="tf32")
    assert network.describe()["precision"] == "fp32"
    network.close()


def test_a_flag_that_does_not_stick_is_an_error(gpu11: Any) -> None:
    gpu11.tensorrt.ignores_tf32_flag = True
    with pytest.raises(NetworkError, match="TF32 was set off, but TensorRT leaves it as it was"):
        loaded()


def test_tf32_needs_ampere(gpu11: Any) -> None:
    gpu11.devices[0].capability = (7, 5)
    with pytest.raises(ConfigError, match=r"compute capability 7\.5\) does not compute in TF32"):
        loaded(precision="tf32")
    network = loaded()
    network.close()


def test_another_type_than_the_files_is_told(gpu: Any) -> None:
    gpu.tensorrt.computes_in = {"fc": "Float"}
    network = loaded(precision="fp16")
    assert network.describe()["precision"] == "fp32"
    network.close()


def test_a_batch_that_computes_in_another_precision_is_refused(gpu11: Any) -> None:
    """The window of one batch size must not show another precision than that of the table."""
    network = loaded(precision="fp16")
    gpu11.tensorrt.computes_in = {"fc": "Float"}
    for _ in range(2):
        with pytest.raises(NetworkError, match="computes in fp32 at batch 3, but in fp16 at another"):
            network.prepare(3)
    network.prepare(8)
    network.run(1, Phases())
    network.close()
    mixed = loaded(precision="fp16", any_precision="true")
    mixed.prepare(5)
    mixed.close()


def test_without_kernels_the_types_tell(gpu: Any) -> None:
    gpu.tensorrt.tells_kernels = False
    told = {}
    for precision in ("fp32", "tf32", "fp16", "int8"):
        network = loaded(precision=precision)
        told[precision] = network.describe()
        network.close()
    assert {asked: item["precision"] for asked, item in told.items()} == {name: name for name in told}
    assert {item["precision_evidence"] for item in told.values()} == {"layers"}


# Quantised graphs


@pytest.mark.parametrize("network", ["mlp", "mobilenet-like"])
def test_quantised_graphs_become_symmetric(models: Path, network: str) -> None:
    """ONNX Runtime's own int8 files hold what TensorRT refuses; rewritten they are as near to the float network."""
    import onnxruntime

    source = networks.build(network, "int8", MLP if network == "mlp" else {"size": "32", "width": "35"})
    model = quantised.read(source.path)
    assert quantised.refused(model) is not None
    rewritten = quantised.symmetric(model, network)
    assert quantised.refused(rewritten) is None
    onnx.checker.check_model(rewritten)
    assert source.make_inputs is not None and source.reference is not None
    inputs = source.make_inputs(8)
    wanted = source.reference(inputs)
    errors = []
    for data in (model.SerializeToString(), rewritten.SerializeToString()):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        errors.append(float(np.sqrt(np.mean((session.run(None, dict(inputs))[0] - wanted) ** 2)) / np.std(wanted)))
    assert errors[1] < 1.5 * errors[0] + 0.02
    products = [node for node in rewritten.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    makers = {name: node.op_type for node in rewritten.graph.node for name in node.output}
    assert all([makers[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2 for node in products)


def qdq(path: Path, *, kind: type[np.generic], zero: int, constant: bool = True) -> Path:
    """x -> Q -> DQ -> MatMul with weights of uint8, whose zero point is 100."""
    given = {"zero": np.array(zero, kind)}
    inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, ["batch", 4])}
    if not constant:
        inputs["scale"] = (TensorProto.FLOAT, [])
    else:
        given["scale"] = np.array(0.02, np.float32)
    return save(
        path,
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dq"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="wdq"),
            helper.make_node("MatMul", ["d", "wd"], ["y"], name="product"),
        ],
        inputs,
        {"y": (TensorProto.FLOAT, ["batch", 3])},
        given
        | {
            "w": np.arange(12, dtype=np.uint8).reshape(4, 3) * 20,
            "ws": np.array(0.01, np.float32),
            "wz": np.array(100, np.uint8),
        },
    )


@pytest.mark.parametrize(
    ("kind", "zero", "why"), [(np.uint8, 0, "unsigned"), (np.int8, -3, "its zero point is -3, not 0")]
)
def test_a_file_that_tensorrt_refuses_is_rewritten_when_asked(
    gpu: Any, tmp_path: Path, kind: type[np.generic], zero: int, why: str
) -> None:
    path = qdq(tmp_path / "q.onnx", kind=kind, zero=zero)
    with pytest.raises(ConfigError, match=f"TensorRT does not take node 'q': .*{why}.*symmetric=true"):
        loaded(path, "native")
    network = loaded(path, "native", symmetric="true")
    assert network.check()
    told = network.describe()
    assert told["precision"] == "int8"
    assert told["quantisation"] == "rewritten to int8 around zero"
    network.close()


def test_a_scale_that_is_computed_cannot_be_rewritten(gpu11: Any, tmp_path: Path) -> None:
    path = qdq(tmp_path / "q.onnx", kind=np.uint8, zero=0, constant=False)
    with pytest.raises(ConfigError, match="'q' has a scale or zero point that is no constant"):
        loaded(path, "native", symmetric="true")


# Engines, profiles, caches


def test_an_engine_for_each_batch_size_or_one_for_all(gpu: Any) -> None:
    network = loaded()
    for batch in (1, 4, 1):
        network.prepare(batch)
        network.run(1, Phases())
    network.close()
    sizes = [built["profiles"][0]["input"][0][0] for built in gpu.tensorrt.builds]
    assert sizes == [8, 1, 4]
    gpu.tensorrt.builds.clear()
    network = loaded(shape="dynamic", profile="1,4,16")
    for batch in (1, 16, 4):
        network.prepare(batch)
        network.run(1, Phases())
    with pytest.raises(UnsupportedBatchError, match="the profile 1,4,16 has no batch of 17"):
        network.prepare(17)
    assert network.describe()["shape"] == "dynamic 1,4,16"
    network.close()
    (built,) = gpu.tensorrt.builds
    assert [shape[0] for shape in built["profiles"][0]["input"]] == [1, 4, 16]


def test_a_profile_without_the_check_s_batch_is_checked_at_its_edge(gpu11: Any) -> None:
    network = loaded(shape="dynamic", profile="16,16,32")
    assert network.check()
    network.close()


def test_engines_are_kept(gpu: Any, cache: Path, driver: Path) -> None:
    """By everything they depend on: model, batch, options, GPU, driver, TensorRT."""
    first = loaded()
    first.close()
    again = loaded()
    assert again.describe()["engine"].startswith("from cache (built in ")
    again.close()
    assert len(gpu.tensorrt.builds) == 1
    for options in ({"optimization_level": "1"}, {"workspace_mib": "64"}, {"width": "48"}):
        loaded(**options).close()
    assert [item["level"] for item in gpu.tensorrt.builds] == [3, 1, 3, 3]
    assert gpu.tensorrt.builds[2]["workspace"] == 64 << 20
    loaded(precision="tf32").close()
    gpu.devices[0].name = "NVIDIA Double H2"
    loaded().close()
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.1.02\n")
    loaded().close()
    assert len(gpu.tensorrt.builds) == 7
    assert not list(cache.glob(".writing-*"))
    loaded(engine_cache="false").close()
    assert len(gpu.tensorrt.builds) == 8


def test_another_version_builds_its_own(cache: Path) -> None:
    for version in (TEN, ELEVEN):
        with fake_tensorrt(version) as machine:
            loaded().close()
            assert len(machine.tensorrt.builds) == 1


def test_a_broken_file_in_the_cache_is_built_anew(gpu11: Any, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded().close()
    (kept,) = cache.glob("*.engine")
    kept.write_bytes(b"half of an eng")
    with caplog.at_level(logging.WARNING):
        network = loaded()
    assert "cannot be read and is built anew" in caplog.text
    assert network.check()
    network.close()
    assert kept.stat().st_size > 100


def test_times_of_kernels_are_kept_for_the_same_gpu_only(gpu11: Any, cache: Path) -> None:
    network = loaded()
    network.prepare(2)
    network.close()
    first, second = gpu11.tensorrt.times_taken
    assert first == b"" and second.startswith(b"times ")
    (times,) = cache.glob("timing-*.cache")
    times.write_bytes(b"times of something else")
    network = loaded(engine_cache="false")
    network.close()
    assert gpu11.tensorrt.times_taken[-2:] == [b"times of something else", b""]
    gpu11.tensorrt.times_taken.clear()
    loaded(engine_cache="false", timing_cache="false").close()
    assert gpu11.tensorrt.times_taken == []


def test_a_cache_that_cannot_be_written_is_told(gpu11: Any, cache: Path) -> None:
    cache.write_text("a file, where a folder should be")
    with pytest.raises(ConfigError, match=r"the engine cache .* cannot be written .*engine_cache=false"):
        loaded()
    cache.unlink()


# Engines that are built already


def engine_file(cache: Path, target: Path, **options: str) -> Path:
    """An engine of an .onnx file beside it, as somebody may have left it."""
    model = matmul(target.with_suffix(".onnx"), dtype=np.float16)
    loaded(model, "native", timing_cache="false", **options).close()
    (kept,) = cache.glob("*.engine")
    kept.replace(target)
    return target


def test_an_engine_file_runs_as_it_is(gpu: Any, cache: Path, tmp_path: Path) -> None:
    path = engine_file(cache, tmp_path / "ready.engine", shape="dynamic", profile="1,2,4")
    network = loaded(path, "native")
    told = network.describe()
    assert (told["precision"], told["engine"], told["model_file"]) == ("fp16", "file", "ready.engine")
    assert told["inputs"] == "x:float16[batch,4]"
    assert "tf32" not in told
    assert network.check()
    network.prepare(3)
    network.run(2, Phases())
    output = network._fetched(network._outputs[0])
    assert np.allclose(output, network._inputs[0].array.sum(axis=1, keepdims=True), atol=2e-2)
    with pytest.raises(UnsupportedBatchError, match=r"the engine takes batches of 1 to 4, not 5"):
        network.prepare(5)
    network.close()
    assert len(gpu.tensorrt.builds) == 1


def test_a_fixed_engine_file_takes_its_batch_alone(gpu11: Any, cache: Path, tmp_path: Path) -> None:
    model = matmul(tmp_path / "fixed.onnx", batch=6)
    loaded(model, "native", timing_cache="false").close()
    (kept,) = cache.glob("*.engine")
    network = loaded(kept.replace(tmp_path / "fixed.plan"), "native")
    assert network.check()
    with pytest.raises(UnsupportedBatchError, match="fixed batch axis of 6, not 5"):
        network.prepare(5)
    network.close()


def test_of_several_profiles_the_nearest_serves(gpu: Any, cache: Path, tmp_path: Path) -> None:
    path = engine_file(cache, tmp_path / "two.engine")
    head, text, model = path.read_bytes().split(b"\n", 2)
    told = json.loads(text)
    told["profiles"] = [{"x": [[1, 4], [2, 4], [16, 4]]}, {"x": [[8, 4], [16, 4], [32, 4]]}]
    path.write_bytes(b"\n".join([head, json.dumps(told).encode(), model]))
    network = loaded(path, "native")
    for batch, profile in ((2, 0), (16, 1), (32, 1)):
        network.prepare(batch)
        assert network._context.active_optimization_profile == profile
        network.run(1, Phases())
    network.trace(tmp_path / "trace.json")
    with pytest.raises(UnsupportedBatchError, match="batches of 1 to 16, 8 to 32, not 33"):
        network.prepare(33)
    network.close()


def test_an_engine_of_another_gpu_or_version_says_which(gpu: Any, cache: Path, tmp_path: Path) -> None:
    path = engine_file(cache, tmp_path / "mine.engine")
    gpu.devices[0].capability = (8, 6)
    with pytest.raises(
        ConfigError, match=r"mine\.engine cannot be used here: it was built for compute capability 9\.0; "
    ):
        loaded(path, "native")
    (notes,) = cache.glob("*.json")
    notes.replace(path.with_suffix(".json"))
    with pytest.raises(
        ConfigError, match=r"built for TensorRT 1\S+ and NVIDIA Double H1, compute capability 9\.0; here"
    ):
        loaded(path, "native")
    path.with_suffix(".json").unlink()
    data = path.read_bytes().replace(gpu.tensorrt_version.encode(), b"10.3.0.26")
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"it was built for TensorRT 10\.3\.0\.26; .*Build it anew on this machine"):
        loaded(path, "native")
    path.write_bytes(b"no engine")
    with pytest.raises(ConfigError, match=r"cannot be used here; here are TensorRT .*Magic tag does not match"):
        loaded(path, "native")


@pytest.mark.parametrize("verbosity", ["LAYER_NAMES_ONLY", "NONE"])
def test_an_engine_that_tells_nothing_has_no_precision(gpu: Any, cache: Path, tmp_path: Path, verbosity: str) -> None:
    path = engine_file(cache, tmp_path / "mute.engine")
    path.write_bytes(path.read_bytes().replace(b'"DETAILED"', f'"{verbosity}"'.encode()))
    network = loaded(path, "native")
    told = network.describe()
    assert told["precision"] == ""
    assert told["precision_evidence"] == "not known: the engine tells only the names of its layers"
    network.prepare(8)
    network.trace(tmp_path / "trace.json")
    network.close()


def test_a_float32_engine_file_may_be_tf32(gpu11: Any, cache: Path, tmp_path: Path) -> None:
    gpu11.tensorrt.tells_kernels = False
    model = matmul(tmp_path / "m.onnx")
    loaded(model, "native", timing_cache="false").close()
    (kept,) = cache.glob("*.engine")
    network = loaded(kept, "native")
    assert network.describe()["precision"] == ""
    assert "does not tell whether it uses TF32" in network.describe()["precision_evidence"]
    network.close()


def test_what_says_nothing_to_an_engine_file_is_an_error(gpu11: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is built already: leave out the option workspace_mib"):
        opened(path, "native", workspace_mib="3")
    with pytest.raises(ConfigError, match="is built already, with TF32 or without: ask for native"):
        opened(path, "tf32")
    with pytest.raises(ConfigError, match="no model file"):
        opened(tmp_path / "absent.plan", "native")


# Files of the user


def test_symbols_and_files_of_inputs(gpu: Any, tmp_path: Path) -> None:
    path = dynamic(tmp_path / "d.onnx")
    with pytest.raises(ConfigError, match="dimension 'seq' of input 'ids' has no size"):
        loaded(path, "native")
    network = loaded(path, "native", dims="seq=5")
    assert network.check()
    assert network._outputs[0].array.shape == (8, 5)
    network.close()
    npz = tmp_path / "in.npz"
    np.savez(npz, x=np.ones((2, 4), np.float32))
    network = loaded(matmul(tmp_path / "m.onnx"), "native", inputs=str(npz))
    network.prepare(3)
    network.run(1, Phases())
    assert np.allclose(network._fetched(network._outputs[0]), 4.0)
    network.close()


def test_a_fixed_batch_axis(gpu11: Any, tmp_path: Path) -> None:
    network = loaded(matmul(tmp_path / "m.onnx", batch=3), "fp32")
    assert network.check()
    assert gpu11.tensorrt.builds[0]["profiles"] == []
    with pytest.raises(UnsupportedBatchError, match="fixed batch axis of 3, not 4"):
        network.prepare(4)
    network.close()


def test_weights_beside_the_file_belong_to_it(gpu11: Any, tmp_path: Path) -> None:
    """Other weights are another model: another engine."""
    shas = []
    for value in (1.0, 2.0):
        model = onnx.load(matmul(tmp_path / "m.onnx"))
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((4, 3), value, np.float32), "w"))
        onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
        network = loaded(tmp_path / "big.onnx", "native")
        assert network.check()
        shas.append(network.describe()["model_sha256"])
        network.close()
        (tmp_path / "big.bin").unlink()
    assert shas[0] != shas[1]
    assert len(gpu11.tensorrt.builds) == 2


def test_half_precision_in_and_out(gpu11: Any, tmp_path: Path) -> None:
    network = loaded(matmul(tmp_path / "h.onnx", dtype=np.float16), "native")
    assert network.describe()["precision"] == "fp16"
    assert network.check()
    network.close()


def test_bfloat16_outputs_are_read(gpu11: Any) -> None:
    """numpy has no such type: its bits are the upper half of a float32's."""
    network = loaded()
    network.prepare(2)
    values = np.array([1.5, -2.0, 0.0], np.float32)
    tensor = network._outputs[0]
    tensor.dtype, tensor.pinned = "bfloat16", (values.view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(network._fetched(tensor), values)
    network.close()


@pytest.mark.parametrize(
    ("behaviour", "error", "text"),
    [
        ({"unknown_ops": ("MatMul",)}, ConfigError, "TensorRT cannot read it: .*UNSUPPORTED_NODE"),
        ({"build_error": "Error Code 10: nothing fits"}, NetworkError, "cannot build an engine: .*nothing fits"),
        ({"depends_on_data": True}, NetworkError, "the size of output 'y' depends on the values of the inputs"),
        ({"shape_on_host": True}, ConfigError, "'x' is a shape that lies on the host"),
        ({"launch_error": "Error Code 1: myelin"}, NetworkError, "did not launch a batch: Error Code 1: myelin"),
        ({"changes_outputs": 1.0}, NetworkError, "outputs differ from ONNX Runtime"),
        ({"changes_outputs": float("nan")}, NetworkError, "output 'y' is not finite"),
    ],
)
def test_what_tensorrt_says_is_passed_on(
    gpu: Any, tmp_path: Path, behaviour: dict[str, Any], error: type[Exception], text: str
) -> None:
    for key, value in behaviour.items():
        setattr(gpu.tensorrt, key, value)
    network = opened(matmul(tmp_path / "m.onnx"), "native")
    with pytest.raises(error, match=text):
        network.load()
        network.check()
    network.close()


@pytest.mark.parametrize(
    ("said", "error"), [("CUDA initialization failure with error: 35", NetworkError), ("out of memory", MemoryError)]
)
def test_a_tensorrt_that_cannot_start(gpu: Any, said: str, error: type[Exception]) -> None:
    gpu.tensorrt.cannot_start = said
    with pytest.raises(error, match=rf"TensorRT cannot start \(Runtime\): {said}"):
        loaded()
    gpu.tensorrt.cannot_start = ""
    network = loaded()
    gpu.tensorrt.cannot_start = said
    with pytest.raises(error, match=rf"TensorRT cannot start \(Builder\): {said}"):
        network.prepare(2)
    network.close()


def test_more_workspace_than_there_is(gpu11: Any) -> None:
    with pytest.raises(ConfigError, match="option workspace_mib=4096: TensorRT takes 1024 MiB instead"):
        loaded(workspace_mib="4096")


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_no_model(gpu11: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.onnx"):
        loaded(path, "native")


# Memory, errors of the device, and what is left


def test_memory_that_runs_out_costs_one_batch_size(gpu: Any, tmp_path: Path) -> None:
    """Inputs, activations or the build: the same kind of error, and the next batch runs."""
    model = matmul(tmp_path / "m.onnx")
    network = loaded(model, "native")
    network.prepare(1)
    gpu.devices[0].memory_bytes = gpu.used_bytes() + 100_000
    with pytest.raises(MemoryError, match=r"m\.onnx: batch 100000: .*(out of memory|no room)"):
        network.prepare(100_000)
    gpu.devices[0].memory_bytes = 1 << 30
    gpu.tensorrt.context_no_memory_from = 64
    with pytest.raises(MemoryError, match=r"batch 64: .*no room for the activations: .*out of memory"):
        network.prepare(64)
    gpu.tensorrt.build_no_memory_from = 128
    with pytest.raises(MemoryError, match=r"batch 128: .*NVIDIA Double H1 has no room to build it"):
        network.prepare(128)
    network.prepare(2)
    network.run(2, Phases())
    network.close()
    gpu.devices[0].memory_bytes = 10
    with pytest.raises(MemoryError, match="no room"):
        loaded(model, "native")


@pytest.mark.parametrize("graph", ["false", "true"])
def test_an_error_of_the_device_is_named(gpu: Any, graph: str) -> None:
    """It shows at the next wait, and at each call from then on; closing still gives everything back."""
    network = loaded(cuda_graph=graph)
    network.prepare(2)
    gpu.sync_error = "cudaErrorIllegalAddress"
    with pytest.raises(NetworkError, match="cudaErrorIllegalAddress, an illegal memory access was encountered"):
        network.run(3, Phases())
    network.close()


def test_wherever_cuda_fails_nothing_is_left(gpu11: Any) -> None:
    """One call after the other fails, in loading, preparing, capturing and running."""
    raised = 0
    for number in range(1000):
        network = opened(cuda_graph="true", copies="true")
        gpu11.fails_at = number
        try:
            network.load()
            network.prepare(4)
            network.run(2, Phases())
        except NetworkError as error:
            assert "cudaErrorInvalidValue" in str(error)
            raised += 1
        network.close()
        del network
        assert (gpu11.misuses, gpu11.left()) == ([], {}), f"call {number}"
        if gpu11.fails_at is not None:
            break
    # The others fell into waits before something is given back, which must go on.
    assert raised > 0.9 * number > 30


def test_an_interrupted_run_is_waited_for(gpu11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = loaded()
    network.prepare(2)
    launches = iter([None, None])
    plain = network._enqueue

    def interrupted() -> None:
        plain()
        if next(launches, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr(network, "_enqueue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network.run(9, Phases())
    monkeypatch.undo()
    network.close()


def test_it_can_be_loaded_again(gpu11: Any) -> None:
    network = opened()
    for _ in range(2):
        network.load()
        assert network.check()
        network.close()
    with pytest.raises(NetworkError, match="is not loaded"):
        network.prepare(2)


def test_each_network_has_its_gpu(gpu11: Any) -> None:
    gpu11.devices.append(type(gpu11.devices[0])(name="NVIDIA Double H2", uuid=bytes(16)))
    networks_ = [loaded(device=f"cuda:{number}") for number in range(2)]
    assert [item.describe()["device_name"] for item in networks_] == ["NVIDIA Double H1", "NVIDIA Double H2"]
    for item in networks_:
        item.prepare(2)
    networks_[0].run(1, Phases())
    assert gpu11.current == 0
    networks_[1].run(1, Phases())
    assert gpu11.current == 1
    for item in networks_:
        item.close()


# Traces


def test_a_trace_has_the_time_of_each_layer(gpu: Any, tmp_path: Path) -> None:
    gpu.tensorrt.layer_ms = {"fc1": 2.0, "fc2": 0.5}
    network = loaded(precision="int8")
    network.prepare(4)
    network.trace(tmp_path / "t.json")
    trace = read_trace(tmp_path / "t.json")
    assert (trace.runtime, trace.batch_size) == ("tensorrt", 4)
    assert trace.source == f"profiler of TensorRT {gpu.tensorrt_version}"
    assert trace.plain_time_ns is not None and trace.plain_time_ns > 0
    operators = {item.name.split(" ")[0]: item for item in trace.operators}
    assert operators["fc1"].time_ns == trace.batches * 2_000_000
    assert operators["fc1"].calls == trace.batches
    assert operators["fc2"].time_ns == trace.batches * 500_000
    assert operators["fc2"].macs == 4 * 32 * 32
    assert trace.macs == sum(item.macs or 0 for item in trace.operators)
    network.run(1, Phases())
    network.close()


def test_a_trace_leaves_the_graph_out_and_says_so(gpu11: Any, tmp_path: Path) -> None:
    network = loaded("radioml-vgg10", filters="32", cuda_graph="true")
    network.prepare(1)
    network.trace(tmp_path / "t.json")
    trace = read_trace(tmp_path / "t.json")
    assert trace.notes == ("traced without the CUDA graph",)
    assert [item.op for item in trace.operators][:2] == ["CaskConvolution", "MaxPool"]
    network.close()


def test_a_trace_without_origins_has_no_work(gpu11: Any, tmp_path: Path) -> None:
    gpu11.tensorrt.tells_metadata = False
    network = loaded()
    network.prepare(2)
    network.trace(tmp_path / "t.json")
    assert all(item.macs is None for item in read_trace(tmp_path / "t.json").operators)
    network.close()


def test_a_trace_that_cannot_be_is_an_error(gpu11: Any, tmp_path: Path) -> None:
    network = loaded()
    with pytest.raises(NetworkError, match="no batch is prepared"):
        network.trace(tmp_path / "t.json")
    network.prepare(2)
    gpu11.tensorrt.reports_no_profile = True
    with pytest.raises(NetworkError, match="reports no layer times"):
        network.trace(tmp_path / "t.json")
    network.close()


# What is missing


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"), "needs the package tensorrt: pip install"),
        (ImportError("libnvinfer.so.11: cannot open shared object file"), r"cannot be imported \(libnvinfer\.so\.11"),
        (RuntimeError("wheel without libraries"), r"cannot be imported \(wheel without libraries\)"),
    ],
)
def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fails(name: str) -> Any:
        raise error

    monkeypatch.setattr(libraries.importlib, "import_module", fails)
    with pytest.raises(ConfigError, match=rf"{text}.*joulewatch\[tensorrt\].*NVIDIA's own package index"):
        opened()


def test_cuda_s_bindings_are_named_too(gpu11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module

    def without(name: str) -> Any:
        if name.startswith("cuda"):
            raise ModuleNotFoundError("No module named 'cuda'", name="cuda")
        return plain(name)

    monkeypatch.setattr(libraries.importlib, "import_module", without)
    with pytest.raises(ConfigError, match="needs the package cuda-bindings: pip install"):
        opened()


def test_an_error_inside_a_package_is_not_hidden(gpu11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'numpy_of_old'", name="numpy_of_old")

    monkeypatch.setattr(libraries.importlib, "import_module", fails)
    with pytest.raises(ModuleNotFoundError, match="numpy_of_old"):
        opened()


@pytest.mark.parametrize(("version", "text"), [("9.3.0", "needs TensorRT 10 or newer, not 9.3.0"), ("x", "no version")])
def test_an_old_tensorrt_is_told(gpu11: Any, monkeypatch: pytest.MonkeyPatch, version: str, text: str) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
    with pytest.raises(ConfigError, match=text):
        opened()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("cudaErrorInsufficientDriver", "driver version is insufficient for CUDA runtime version"),
        ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    ],
)
def test_a_machine_without_a_gpu(gpu: Any, error: str, text: str) -> None:
    gpu.no_gpu = error
    network = opened()
    with pytest.raises(ConfigError, match=rf"CUDA finds no GPU \({error}, .*{text}\): nvidia-smi must list one"):
        network.load()
    network.close()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cuda:1", "there is no device cuda:1: the last one is cuda:0"),
        ("gpu", "unknown device 'gpu'"),
        ("cuda:x", "unknown device 'cuda:x': did you mean 'cuda"),
    ],
)
def test_devices_that_are_not_there(gpu11: Any, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        loaded(device=name)


def test_a_board_that_does_not_tell_its_driver(gpu11: Any, driver: Path) -> None:
    driver.unlink()
    network = loaded()
    assert network.describe()["driver"] == ""
    network.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shapes": "static"}, "unknown option 'shapes': did you mean 'shape'"),
        ({"shape": "dynamik"}, "did you mean 'dynamic'"),
        ({"shape": "dynamic"}, "shape=dynamic and profile=LEAST,BEST,MOST .* require each other"),
        ({"profile": "1,2,4"}, "require each other"),
        ({"shape": "dynamic", "profile": "4,2,1"}, "three ascending batch sizes, got '4,2,1'"),
        ({"shape": "dynamic", "profile": "1,2"}, "three ascending batch sizes"),
        ({"shape": "dynamic", "profile": "1,x,3"}, "three ascending batch sizes"),
        ({"optimization_level": "6"}, "optimization_level: must be an integer >= 0 and <= 5, got '6'"),
        ({"workspace_mib": "0"}, "option workspace_mib: must be an integer >= 1 .MiB., got '0'"),
        ({"copies": "perhaps"}, "option copies: must be true or false"),
        ({"depth": "x"}, "depth"),
    ],
)
def test_options_that_cannot_be(gpu11: Any, options: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened(**options)


def test_precisions_that_cannot_be(gpu11: Any) -> None:
    with pytest.raises(ConfigError, match="tensorrt: unknown precision 'fp31': did you mean 'fp32'"):
        opened(precision="fp31")
    with pytest.raises(ConfigError, match="mlp: unknown precision 'bf16'"):
        opened(precision="bf16")


# What the inspector tells


CONVOLUTION = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Dimensions": [1, 8, 4, 4],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP32"}],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
}


def layers_of(*told: Any) -> inspector.Layers:
    return inspector.read_layers(json.dumps({"Layers": list(told)}))


def test_a_layer_as_nvidia_s_guide_shows_it() -> None:
    (layer,) = layers_of(CONVOLUTION).items
    assert (layer.precision, layer.is_product, layer.weight) == ("int8", True, 131072)
    assert layer.origins == ("conv1", "relu1")


@pytest.mark.parametrize(
    ("tensor", "precision"),
    [
        ({"Format/Datatype": "Row major linear FP32"}, "fp32"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "Half"}, "fp16"),
        ({"Format/Datatype": "Row major linear BF16 format"}, "bf16"),
        ({"Format/Datatype": "Row major linear FP8 format"}, "fp8"),
        ({"Format": "Row major linear format (kLINEAR)", "DataType": "Float"}, "fp32"),
        ({"Format": "Channel major (kHWC8)", "DataType": "BFloat16"}, "bf16"),
        ({"Format": "Row major", "Datatype": "Int8"}, "int8"),
        ({"Format": "Row major", "DataType": "Int64"}, ""),
        ({}, ""),
    ],
)
def test_types_of_tensors(tensor: dict[str, str], precision: str) -> None:
    (layer,) = layers_of({"Name": "l", "LayerType": "gemm", "Inputs": [tensor], "Outputs": []}).items
    assert layer.precision == precision


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "tf32"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "bf16"),
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64", "int8"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn", "fp8"),
        ("sm86_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs", "fp32"),
    ],
)
def test_names_of_kernels(kernel: str, precision: str) -> None:
    (layer,) = layers_of({"Name": "l", "LayerType": "x", "Inputs": [], "Outputs": [], "TacticName": kernel}).items
    assert (layer.precision, layer.kernel_tells, layer.is_product) == (precision, True, True)


def test_the_most_that_is_multiplied_decides() -> None:
    small = {
        **CONVOLUTION,
        "Name": "small",
        "Weights": {"Count": 10},
        "TacticName": "",
        "Inputs": [{"DataType": "Half"}],
    }
    copy = {
        "Name": "r",
        "LayerType": "Reformat",
        "Inputs": [{"DataType": "Float", "Dimensions": [1 << 30]}],
        "Outputs": [],
    }
    found = inspector.actual_precision(layers_of(CONVOLUTION, small, copy), False)
    assert (found.name, found.products, found.evidence) == ("int8", "1 of 2", "layers")
    alone = inspector.actual_precision(layers_of({**copy, "LayerType": "ElementWise"}), False)
    assert (alone.name, alone.products) == ("fp32", "1 of 1")


@pytest.mark.parametrize("text", ["", "[]", "nothing", '{"Layers": 3}'[:-2] + "[]}", '{"Layers": ["a", "b"]}'])
def test_an_inspector_that_tells_nothing(text: str) -> None:
    found = inspector.actual_precision(inspector.read_layers(text), True)
    assert found.name == "" and found.evidence.startswith("not known")


# The double itself


API = json.loads((HERE / "api.json").read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_has_nothing_that_the_real_bindings_have_not(version: str) -> None:
    """Names, parameters, members of enums and numbers of errors, as recorded from NVIDIA's wheels."""
    known = API["tensorrt"][next(name for name in API["tensorrt"] if name.startswith(version))]
    with fake_tensorrt(version) as machine:
        trt = sys.modules["tensorrt"]
        compared = 0
        for name, members in known["classes"].items():
            kind = getattr(trt, name, None)
            if kind is None:
                continue
            for member, found in vars(kind).items():
                if member.startswith("_") or isinstance(found, type):
                    continue
                assert member in members, f"TensorRT {version} has no {name}.{member}"
                if callable(found):
                    given = list(inspect.signature(found).parameters)[1:]
                    offered = [[word.rstrip("=") for word in names] for names in members[member]]
                    assert given in offered or any(names[: len(given)] == given for names in offered), (name, member)
                compared += 1
        assert compared > 40
        config = trt.IBuilderConfig()
        assert {name for name in vars(config) if not name.startswith("_")} <= set(known["classes"]["IBuilderConfig"])
        for name, members in known["enums"].items():
            kind = getattr(trt.ILogger, "Severity") if "." in name else getattr(trt, name)  # noqa: B009
            assert set(kind.__members__) <= set(members), name
        assert ("FP16" in known["enums"]["BuilderFlag"]) == ("FP16" in trt.BuilderFlag.__members__)
        del config
        assert machine.left() == {}


def test_the_double_of_cuda_too() -> None:
    (known,) = API["cuda.bindings.runtime"].values()
    with fake_tensorrt():
        runtime = importlib.import_module("cuda.bindings.runtime")
        functions = {name: item for name, item in vars(runtime).items() if callable(getattr(item, "__wrapped__", None))}
        assert set(functions) <= set(known["functions"])
        for name, item in functions.items():
            assert list(inspect.signature(item.__wrapped__).parameters)[1:] == known["functions"][name], name
        for name, numbers in known["enums"].items():
            for member in getattr(runtime, name):
                assert numbers[member.name] == member.value
        assert runtime.cudaStreamNonBlocking == known["constants"]["cudaStreamNonBlocking"]
        told = vars(runtime.cudaGetDeviceProperties(0)[1])
        assert set(told) <= set(known["device_properties"])


def misuses(machine: Any, act: Any) -> str:
    """What the double says; what it says is expected, and taken back."""
    from cuda.gpu import Misuse

    with pytest.raises(Misuse) as caught:
        act()
    machine.misuses.clear()
    return str(caught.value)


def test_the_double_sees_what_is_used_wrongly(gpu: Any) -> None:
    runtime = importlib.import_module("cuda.bindings.runtime")
    network = loaded()
    network.prepare(2)
    context, stream = network._engine.create_execution_context(), network._stream

    def launch(on: Any = context) -> bool:
        return bool(on.execute_async_v3(int(stream)))

    assert "without the shapes of ['input']" in misuses(gpu, launch)
    assert not context.set_input_shape("input", (3, 32))
    assert not context.set_input_shape("input", (2, 31))
    assert network._messages.said().count("out of the range of profile 0") == 2
    assert context.set_input_shape("input", network._inputs[0].array.shape)
    assert "without the address of input" in misuses(gpu, launch)
    assert "is freed and was not allocated so" in misuses(gpu, lambda: runtime.cudaFree(12345))
    _, address = runtime.cudaMalloc(8)
    context.set_tensor_address("input", address)
    context.set_tensor_address(network._outputs[0].name, network._outputs[0].address)
    launch()
    assert "while something is under way" in misuses(gpu, lambda: runtime.cudaFree(address))
    assert "input input: 2" not in misuses(gpu, lambda: runtime.cudaStreamSynchronize(stream))
    gpu.streams[int(stream)].queue.clear()
    context._queued[0] = 0
    runtime.cudaFree(address)
    assert "freed twice" in misuses(gpu, lambda: runtime.cudaFree(address))
    host = np.zeros(4, np.uint8)
    assert "not memory of the device" in misuses(
        gpu, lambda: runtime.cudaMemcpyAsync(address, host.ctypes.data, 4, 1, stream)
    )
    del context, launch
    network.close()


def test_the_double_reads_old_bytes_before_the_end(gpu11: Any) -> None:
    runtime = importlib.import_module("cuda.bindings.runtime")
    network = loaded()
    network.prepare(2)
    output = network._outputs[0]
    runtime.cudaMemcpyAsync(output.array.ctypes.data, output.address, output.array.nbytes, 2, network._stream)
    before = output.array.tobytes()
    events = [runtime.cudaEventCreate()[1] for _ in range(2)]
    for event in events:
        runtime.cudaEventRecord(event, network._stream)
    assert runtime.cudaEventElapsedTime(*events)[0] == runtime.cudaError_t.cudaErrorNotReady
    runtime.cudaStreamSynchronize(network._stream)
    assert output.array.tobytes() != before
    assert runtime.cudaEventElapsedTime(*events) == (0, 0.0)
    for event in events:
        runtime.cudaEventDestroy(event)
    network.close()


def test_the_double_wants_base_classes_made(gpu: Any) -> None:
    trt = sys.modules["tensorrt"]

    class Forgetful(trt.ILogger):
        def __init__(self) -> None:
            pass

    for kind in (trt.Builder, trt.Runtime):
        with pytest.raises(TypeError, match="must be called when overriding __init__"):
            kind(Forgetful())


# The real thing


@pytest.mark.parametrize("options", [{}, {"cuda_graph": "true", "copies": "true"}, {"shape": "dynamic"}])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_on_a_real_gpu(tmp_path: Path, precision: str, options: dict[str, str]) -> None:
    """What no double can prove; run it where there is an NVIDIA GPU."""
    try:
        device.Cuda(libraries.find().cudart).find_gpu("cuda:0")
    except ConfigError as missing:
        pytest.skip(str(missing))
    given = {"filters": "32", **options, **({"profile": "1,16,64"} if "shape" in options else {})}
    asked = Configuration(name="x", network="radioml-vgg10", runtime="tensorrt", precision=precision, options=given)
    network: Any = open_network(asked)
    try:
        network.load()
        settled = as_loaded(asked, network.describe())
        assert network.check()
        network.prepare(16)
        phases = Phases()
        network.run(10, phases)
        assert len(phases.batch_ends_ns) == 10
        network.trace(tmp_path / "t.json")
        times = {item.name: item.time_ns for item in read_trace(tmp_path / "t.json").operators}
        assert sum(times.values()) > 0, settled.details
    finally:
        network.close()
