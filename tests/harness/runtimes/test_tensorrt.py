"""TensorRT through doubles of its bindings: the calls, their arguments and their order, and errors."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper
from pytest import raises

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError, WrongOutputsError
from joulewatch_harness.network import Network, Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.tensorrt import device, libraries, quantised, tensors
from joulewatch_harness.runtimes.tensorrt import network as tensorrt
from joulewatch_harness.traces import read_trace
from support.onnx_models import dynamic, matmul
from support.tensorrt import api
from support.tensorrt.double import VERSIONS, fake_tensorrt
from support.tensorrt.machine import COPY_MS, Device, Machine, Misuse

MLP = {"width": "32", "depth": "2"}
KERNELS = {"fp32": "f32f32", "tf32": "tf32f32", "fp16": "f16f16", "int8": "i8i8"}
NO_MEMORY = "Requested amount of GPU memory (4096 bytes) could not be allocated."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the engine cache, which does not exist yet."""
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rel\nGCC 12")
    monkeypatch.setattr(device, "DRIVER_FILE", tmp_path / "driver")
    monkeypatch.setattr(tracing, "AIM_S", 0.0)
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "joulewatch" / "tensorrt"


@pytest.fixture(params=VERSIONS, ids=["10", "11"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Yield a machine; at the end nothing was misused, and everything is freed."""
    with fake_tensorrt(request.param) as machine:
        machine.layers, machine.layer_ms, machine.compute = [layer("f32f32")], {"product": 2.0}, row_sums
        yield machine
        assert machine.misuses == []
        if machine.left():
            gc.collect()  # what a traceback held
        assert machine.left() == {}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return matmul(tmp_path / "m.onnx")


def layer(kernel: str, name: str = "product", **more: Any) -> dict[str, Any]:
    """A layer as the inspector shows it."""
    tactic = f"sm90_xmma_gemm_{kernel}_f32_tn_n_tilesize64x64x64"
    return {"Name": name, "LayerType": "gemm", "Inputs": [], "Outputs": [], "TacticName": tactic, **more}


def row_sums(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ``matmul`` computes."""
    return [np.repeat(inputs["x"].sum(axis=1, keepdims=True), 3, axis=1)]


def engine_file(path: Path, shape: tuple[Any, int] = ("batch", 4), most: int = 4, **more: Any) -> Path:
    """Write an engine of a float16 ``matmul`` as the double serialises it."""
    plan = {"inputs": {"x": ["HALF", shape]}, "outputs": {"y": ["HALF", [shape[0], 3]]}, "layers": [layer("f16f16")]}
    plan["profiles"] = [{"x": [[1, 4], [2, 4], [most, 4]]}] if shape[0] == "batch" else []
    path.write_text(json.dumps({**plan, **more}))
    return path


def opened(network: str | Path, precision: str = "native", **options: str) -> Any:
    """Open a network; Any, because tests look inside."""
    return tensorrt.open_network(str(network), precision, options)


def loaded(network: str | Path, precision: str = "native", **options: str) -> Any:
    opened_network = opened(network, precision, **options)
    opened_network.load()
    return opened_network


def names(machine: Machine) -> list[str]:
    """Names of the calls, without those that only read."""
    return [name for name, *_ in machine.calls if "Get" not in name and "get_" not in name]


def arguments(machine: Machine, name: str) -> list[tuple[Any, ...]]:
    return [tuple(given) for called, *given in machine.calls if called == name]


def builds(machine: Machine) -> int:
    return names(machine).count("build_serialized_network")


# What is built and reported


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_a_builtin_network_is_built_in_the_requested_precision(gpu: Machine, precision: str) -> None:
    """The file decides, in a strongly typed engine; the layers of the engine say what it computes in."""
    asked = Configuration(name="x", network="mlp", runtime="tensorrt", precision=precision, options=MLP)
    gpu.layers = [layer(KERNELS[precision])]
    network: Any = open_network(asked)
    assert isinstance(network, Network)
    assert "device" not in network.describe()
    network.load()
    gpu.compute = lambda inputs: [network._source.reference(inputs)]
    assert network.check() is True
    trt, path = sys.modules["tensorrt"], str(network._source.path)
    assert arguments(gpu, "create_network") == [(2 if gpu.version.startswith("10") else 0,)]
    assert arguments(gpu, "set_flag" if precision == "tf32" else "clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert arguments(gpu, "get_flag") == [(trt.BuilderFlag.TF32,)]
    assert arguments(gpu, "profiling_verbosity") == [(trt.ProfilingVerbosity.DETAILED,)]
    assert arguments(gpu, "get_engine_information") == [(trt.LayerInformationFormat.JSON,)]
    assert arguments(gpu, "nvtx_verbosity") == [(trt.ProfilingVerbosity.NONE,)]
    if precision == "int8":
        ((content, given),) = arguments(gpu, "parse")
        assert given == path
        assert quantised.refused(quantised.read(path)) is not None
        assert quantised.refused(onnx.load_from_string(content)) is None
    else:
        assert arguments(gpu, "parse_from_file") == [(path,)]
        assert any(item.data_type == 10 for item in gpu.model.graph.initializer) == (precision == "fp16")
    settled = as_loaded(asked, network.describe())
    assert (settled.actual_precision, settled.device, settled.runtime_version) == (precision, "cuda:0", gpu.version)
    assert settled.details["tf32"] == ("allowed" if precision == "tf32" else "off")
    assert settled.details.get("quantisation") == ("rewritten to int8 around zero" if precision == "int8" else None)
    network.close()
    network.close()


def test_what_is_reported(gpu: Machine, model: Path, tmp_path: Path) -> None:
    gpu.devices.append(Device(name="NVIDIA Double H2", uuid=bytes(range(16)), capability=(8, 6), memory_bytes=1 << 29))
    network = loaded(model, device="cuda:1", shape="dynamic", profile="1,8,16")
    network.prepare(4)
    facts = dict(network.describe())
    assert facts.pop("engine").startswith("built in ") and len(facts.pop("model_sha256")) == 64
    assert facts.pop("engine_bytes") > 100 and float(facts.pop("last_prepare_s")) > 0
    assert facts == {
        "runtime": "tensorrt", "runtime_version": gpu.version, "model_file": "m.onnx", "copies": "excluded",
        "cuda_graph": "false", "shape": "dynamic 1,8,16", "strongly_typed": "true", "tf32": "off", "device": "cuda:1",
        "device_name": "NVIDIA Double H2", "gpu_uuid": "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
        "gpu_pci": "0000:41:00.0", "compute_capability": "8.6", "device_memory_bytes": 1 << 29, "driver": "580.65.06",
        "cuda": "13.1", "precision": "fp32", "precision_products": "1 of 1", "precision_evidence": "kernels",
        "activation_memory_bytes": 4096, "layers": 1, "inputs": "x:float32[batch,4]",
    }  # fmt: skip
    assert tensors.activation_bytes(SimpleNamespace(device_memory_size=512)) == 512  # TensorRT 10.0 has only this
    network.close()
    (tmp_path / "driver").unlink()
    network = loaded(model, copies="true", cuda_graph="true")
    facts = network.describe()
    assert (facts["driver"], facts["copies"], facts["cuda_graph"], facts["shape"]) == ("", "included", "true", "static")
    network.close()


def test_shapes_and_settings_of_builds(gpu: Machine, model: Path, tmp_path: Path) -> None:
    """One engine for each batch size, or one for all."""
    network = loaded(model)
    for batch in (8, 1, 4, 1):
        network.prepare(batch)
    network.close()
    assert [given[1:] for given in arguments(gpu, "set_shape")] == [((size, 4),) * 3 for size in (8, 1, 4)]
    loaded(matmul(tmp_path / "fixed.onnx", batch=3), "fp32").close()
    assert (builds(gpu), len(arguments(gpu, "set_shape"))) == (4, 3)
    assert not {"set_memory_pool_limit", "builder_optimization_level"} & set(names(gpu))
    gpu.calls.clear()
    network = loaded(model, workspace_mib="64", optimization_level="0", shape="dynamic", profile="1,4,16")
    for batch in (1, 16, 4):
        network.prepare(batch)
    network.close()
    workspace = sys.modules["tensorrt"].MemoryPoolType.WORKSPACE
    assert (arguments(gpu, "set_shape"), builds(gpu)) == ([("x", (1, 4), (4, 4), (16, 4))], 1)
    assert arguments(gpu, "set_memory_pool_limit") == [(workspace, 64 << 20)]
    assert arguments(gpu, "get_memory_pool_limit") == [(workspace,)]
    assert arguments(gpu, "builder_optimization_level") == [(0,)]


def test_tf32_is_read_from_the_kernels_or_else_from_the_setting(gpu: Machine, model: Path) -> None:
    gpu.layers = [layer("", Inputs=[{"DataType": "Float", "Dimensions": [8, 4]}])]
    for precision in ("fp32", "tf32"):
        network = loaded(model, precision)
        facts = network.describe()
        assert (facts["precision"], facts["precision_evidence"]) == (precision, "layers")
        network.close()
    gpu.layers = [layer("tf32f32")]
    network = loaded(model, "fp32", engine_cache="false")
    asked = Configuration(name="x", network=str(model), runtime="tensorrt", precision="fp32", options={})
    with raises(ConfigError, match="the precision fp32 was requested, but the network computes in tf32"):
        as_loaded(asked, network.describe())
    network.close()
    gpu.devices[0].capability = (7, 5)
    with raises(ConfigError, match=r"compute capability 7\.5\) does not compute in TF32"):
        loaded(model, "tf32")
    loaded(model, "tf32", any_precision="true").close()


def test_a_batch_that_computes_in_another_precision_is_refused(gpu: Machine, model: Path) -> None:
    """The window of one batch size must not have another precision than the table shows."""
    gpu.layers = [layer("f16f16")]
    network, mixed = loaded(model), loaded(model, any_precision="true")
    for batch, layers, text in ((3, [layer("f32f32")], "fp32"), (5, [], "an unknown precision")):
        gpu.layers = layers
        with raises(NetworkError, match=f"computes in {text} at batch {batch}, but in fp16 at other batch sizes"):
            network.prepare(batch)
    network.prepare(8)
    mixed.prepare(5)
    for item in (network, mixed):
        item.close()


# Running


BEGIN, READ = ["cudaSetDevice", "cudaEventRecord"], ["cudaEventSynchronize", "cudaEventElapsedTime"]
LAUNCH, GRAPH, COPY = ([name, "cudaEventRecord"] for name in ("execute_async_v3", "cudaGraphLaunch", "cudaMemcpyAsync"))


@pytest.mark.parametrize(
    ("options", "calls", "phases"),
    [
        ({}, [*BEGIN, *LAUNCH * 3, *READ * 3], {"execute": 2.0}),
        ({"cuda_graph": "true"}, [*BEGIN, *GRAPH * 3, *READ * 3], {"execute": 2.0}),
        (
            {"copies": "true"},
            [*BEGIN, *(COPY + LAUNCH + COPY) * 3, *READ * 9],
            {"copy_in": COPY_MS, "execute": 2.0, "copy_out": COPY_MS},
        ),
        ({"events": "false"}, ["cudaSetDevice", *["execute_async_v3"] * 3], {}),
    ],
)
def test_a_run_is_so_many_batches_and_one_wait(
    gpu: Machine, model: Path, options: dict[str, str], calls: list[str], phases: dict[str, float]
) -> None:
    """Nothing is allocated, built or captured in it; phases are the device's times, without gaps."""
    network = loaded(model, **options)
    assert network.check()
    network.prepare(4)
    network.run(4, Phases())
    gpu.calls.clear()
    measured = Phases()
    network.run(3, measured)
    assert names(gpu) == [*calls, "cudaStreamSynchronize"]
    if phases:
        assert measured.spans == {name: [3, pytest.approx(3e6 * ms)] for name, ms in phases.items()}
        assert np.diff(measured.batch_ends_ns) == pytest.approx([sum(phases.values()) * 1e6] * 2)
    else:
        assert measured.spans["execute"][0] == 1 and not measured.batch_ends_ns
    network.close()


def test_inputs_are_on_the_device_before_a_run_or_copied_from_pinned_memory(gpu: Machine, model: Path) -> None:
    network = loaded(model)
    gpu.calls.clear()
    network.prepare(3)
    order = [name for name in names(gpu) if name in ("cudaMemcpyAsync", "cudaStreamSynchronize", "execute_async_v3")]
    assert order[-4:] == ["cudaMemcpyAsync", "cudaStreamSynchronize", "execute_async_v3", "cudaStreamSynchronize"]
    assert "cudaMallocHost" not in names(gpu)
    assert np.allclose(
        network._prepared.outputs[0].fetched(network._cuda, network._stream),
        row_sums({"x": network._prepared.inputs[0].array})[0],
    )
    network.close()
    network = loaded(model, copies="true")
    network.prepare(4)
    (given,), (output,) = network._prepared.inputs, network._prepared.outputs
    assert np.array_equal(given.pinned, given.array)
    given.pinned[...] = 2
    network.run(1, Phases())
    assert np.all(output.pinned == 8) and np.all(output.fetched(network._cuda, network._stream) == 8)
    assert arguments(gpu, "cudaMallocHost") == [(4 * 4 * 4,), (4 * 3 * 4,)]
    assert arguments(gpu, "cudaStreamCreateWithFlags") == [(1,)]
    network.close()


def test_a_capture_that_fails_leaves_a_stream_that_works(gpu: Machine, model: Path) -> None:
    network = loaded(model, cuda_graph="true")
    gpu.answer("execute_async_v3", False, after=4, ERROR="operation not permitted when stream is capturing")
    with raises(NetworkError, match=r"cannot be captured as a CUDA graph.*set cuda_graph=false: .*not permitted"):
        network.prepare(4)
    gpu.calls.clear()
    network.prepare(4)
    (given,) = arguments(gpu, "cudaStreamBeginCapture")
    assert given[1] == gpu.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert [flags for _, flags in arguments(gpu, "cudaGraphInstantiate")] == [0]
    order = [name for name in names(gpu) if "Launch" in name or "execute" in name or "Capture" in name]
    capture = ["cudaStreamBeginCapture", "execute_async_v3", "cudaStreamEndCapture"]
    assert order == [*["execute_async_v3"] * 4, *capture, "cudaGraphLaunch"]
    network.close()


def test_each_network_runs_on_its_gpu(gpu: Machine, model: Path) -> None:
    gpu.devices.append(Device(name="NVIDIA Double H2"))
    both = [loaded(model, device=name) for name in ("cuda", "cuda:1")]
    steps = (lambda item: item.prepare(2), lambda item: item.run(1, Phases()), lambda item: item.close())
    for step in steps:
        for number, item in enumerate(both):
            step(item)
            assert gpu.current == number


def test_an_interrupted_run_is_waited_for_and_it_can_be_loaded_again(gpu: Machine, model: Path) -> None:
    network = opened(model)
    for _ in range(2):
        with raises(NetworkError, match="is not loaded"):
            network.prepare(2)
        network.load()
        assert network.check()
        gpu.answer("execute_async_v3", KeyboardInterrupt, after=2)
        with raises(KeyboardInterrupt):
            network.run(9, Phases())
        network.close()


def test_wherever_cuda_fails_everything_is_freed(gpu: Machine, model: Path) -> None:
    """One call after the other fails, in loading, preparing, capturing and running."""
    raised = 0
    for number in range(1000):
        network = opened(model, cuda_graph="true", copies="true")
        gpu.fails_at = number
        try:
            network.load()
            network.prepare(4)
            network.run(2, Phases())
        except NetworkError as error:
            assert "cudaErrorInvalidValue" in str(error)
            raised += 1
        network.close()
        del network
        assert (gpu.misuses, gpu.left()) == ([], {}), f"call {number}"
        if gpu.fails_at is not None:
            break
    # The others are waits before something is freed, after which the work must go on.
    assert raised > 0.9 * number > 30


def test_an_error_of_the_device_is_named(gpu: Machine, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every call returns it from then on; closing frees everything, with one warning for the batch and one for all."""
    network = loaded(model, cuda_graph="true", copies="true")
    network.prepare(2)
    gpu.broken = "cudaErrorIllegalAddress"
    with raises(NetworkError, match="CUDA: cudaSetDevice: cudaErrorIllegalAddress, what cudaErrorIllegalAddress means"):
        network.run(3, Phases())
    network.close()
    assert len(caplog.records) == 2


# Engines, profiles, caches


@pytest.mark.parametrize(
    ("options", "good", "refused", "text"),
    [
        ({"shape": "dynamic", "profile": "2,4,6"}, 6, (1, 7), "the profile 2,4,6 does not contain batch size "),
        (
            {"shape": "dynamic", "profile": "16,16,32"},
            16,
            (15, 33),
            "the profile 16,16,32 does not contain batch size ",
        ),
        ({"fixed": 3}, 3, (4,), "fixed batch axis of 3, not "),
        ({"engine": ("batch", 4)}, 2, (0, 5), "the engine accepts batch sizes 1 to 4, not "),
        ({"engine": ("batch", 4), "most": 8}, 8, (0, 9), "the engine accepts batch sizes 1 to 8, not "),
        ({"engine": (6, 4)}, 6, (5,), "fixed batch axis of 6, not "),
    ],
)
def test_batch_sizes_of_the_check_and_refused_ones(
    gpu: Machine, model: Path, options: dict[str, Any], good: int, refused: tuple[int, ...], text: str
) -> None:
    if "engine" in options:
        network = loaded(engine_file(model.with_suffix(".plan"), options["engine"], options.get("most", 4)))
    elif "fixed" in options:
        network = loaded(matmul(model, batch=options["fixed"]))
    else:
        network = loaded(model, **options)
    assert network.check()
    assert network._batch == good
    for batch in refused:
        with raises(UnsupportedBatchError, match=f"{text}{batch}$"):
            network.prepare(batch)
    network.close()


@pytest.mark.parametrize(("least", "most", "fixed"), [(4, 4, "4"), (1, 4, None)])
def test_the_only_batch_size_of_an_engine_is_described(
    gpu: Machine, model: Path, least: int, most: int, fixed: str | None
) -> None:
    profiles = [{"x": [[least, 4], [most, 4], [most, 4]]}]
    network = loaded(engine_file(model.with_suffix(".plan"), profiles=profiles))
    assert network.describe().get("fixed_batch") == fixed
    network.close()


def test_an_engine_is_kept_by_everything_it_depends_on(gpu: Machine, model: Path, tmp_path: Path, cache: Path) -> None:
    for origin in ("built in ", "from cache (built in ", "from cache"):
        network = loaded(model)
        assert network.describe()["engine"].startswith(origin)
        network.close()
        (notes,) = cache.glob("*.json")
        assert origin == "from cache" or json.loads(notes.read_text())["gpu"] == "NVIDIA Double H1"
        if origin.startswith("from"):
            notes.write_text("[]")
    for options in ({"optimization_level": "1"}, {"workspace_mib": "64"}, {"shape": "dynamic", "profile": "1,2,4"}):
        loaded(model, **options).close()
    loaded(model, "tf32").close()
    loaded(matmul(model, dtype=np.float16)).close()
    for name, value in (("name", "NVIDIA Double H2"), ("capability", (8, 0))):
        setattr(gpu.devices[0], name, value)
        loaded(model).close()
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.1.02\n")
    loaded(model).close()
    assert builds(gpu) == len(list(cache.glob("*.engine"))) == 9
    with fake_tensorrt(VERSIONS[gpu.version == VERSIONS[0]]) as other:
        loaded(model).close()
        assert builds(other) == 1
    assert not list(cache.glob(".writing-*"))
    loaded(model, engine_cache="false").close()
    assert builds(gpu) == 10


def test_a_kept_engine_that_cannot_be_read_is_built_again(
    gpu: Machine, model: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(model).close()
    (kept,) = cache.glob("*.engine")
    before = kept.read_bytes()
    kept.write_bytes(b"half of an eng")
    gpu.answer("deserialize_cuda_engine", None, ERROR="Magic tag does not match")
    network = loaded(model)
    assert "cannot be read and is built again: Magic tag does not match" in caplog.text
    assert kept.read_bytes() == before
    network.close()
    gpu.answer("deserialize_cuda_engine", None, WARNING=NO_MEMORY)
    with raises(MemoryError, match=r"m\.onnx: NVIDIA Double H1 has no memory"):
        loaded(model)
    assert kept.exists()


def test_times_of_kernels_are_kept(gpu: Machine, model: Path, cache: Path) -> None:
    network = loaded(model)
    network.prepare(2)
    network.close()
    assert arguments(gpu, "create_timing_cache") == [(b"",), (b" and those of another build",)]
    (times,) = cache.glob(f"timing-NVIDIA-Double-H1-{gpu.version}-*.cache")
    for method in ("set_timing_cache", "create_timing_cache"):
        times.write_bytes(b"those of another GPU")
        gpu.calls.clear()
        gpu.answer(method, None)
        loaded(model, engine_cache="false").close()
        assert arguments(gpu, "create_timing_cache") == [(b"those of another GPU",), (b"",)]
        assert not any(ignore_mismatch for _, ignore_mismatch in arguments(gpu, "set_timing_cache"))
        assert times.read_bytes() == b" and those of another build"
    gpu.calls.clear()
    loaded(model, engine_cache="false", timing_cache="false").close()
    assert "create_timing_cache" not in names(gpu)


# Engine files


def test_an_engine_file_runs_as_it_is(gpu: Machine, tmp_path: Path) -> None:
    """Its outputs are bfloat16, which numpy does not have: the upper half of a float32."""
    gpu.compute = lambda inputs: [(np.full((len(inputs["x"]), 3), -1.5, np.float32).view(np.uint32) >> 16)]
    network = loaded(engine_file(tmp_path / "ready.engine", outputs={"y": ["BF16", ["batch", 3]]}))
    facts = network.describe()
    assert (facts["precision"], facts["engine"], facts["model_file"]) == ("fp16", "file", "ready.engine")
    assert facts["inputs"] == "x:float16[batch,4]"
    assert not {"tf32", "shape", "strongly_typed"} & set(facts)
    assert network.check()
    output = network._prepared.outputs[0].fetched(network._cuda, network._stream)
    assert output.dtype == np.float32 and np.all(output == -1.5)
    network.trace(tmp_path / "trace.json")
    assert all(item.macs is None for item in read_trace(tmp_path / "trace.json").operators)
    network.close()
    assert builds(gpu) == 0


def test_of_several_profiles_the_nearest_is_used(gpu: Machine, tmp_path: Path) -> None:
    profiles = [{"x": [[1, 4], [2, 4], [16, 4]]}, {"x": [[8, 4], [16, 4], [32, 4]]}]
    network = loaded(engine_file(tmp_path / "two.engine", profiles=profiles))
    for batch, profile in ((2, 0), (16, 1), (8, 0), (32, 1)):
        network.prepare(batch)
        assert arguments(gpu, "set_optimization_profile_async")[-1] == (profile, int(network._stream))
    gpu.calls.clear()
    network.trace(tmp_path / "trace.json")
    assert arguments(gpu, "set_optimization_profile_async") == [(1, int(network._stream))]
    with raises(UnsupportedBatchError, match="batch sizes 1 to 16, 8 to 32, not 33"):
        network.prepare(33)
    gpu.answer("set_optimization_profile_async", False, ERROR="no such profile")
    with raises(NetworkError, match="TensorRT refuses profile 0: no such profile"):
        network.prepare(1)
    network.close()


@pytest.mark.parametrize(
    ("message", "notes", "text"),
    [
        (
            "library version 11.4 got 10.3.0, please rebuild",
            {},
            r": it was built for TensorRT 10\.3\.0; this machine has Tensor",
        ),
        (
            "expecting compute 9.0 got compute 8.6, please",
            {},
            r": it was built for compute capability 8\.6; this machine has",
        ),
        (
            "",
            {"tensorrt": "10.1", "gpu": "A", "capability": "8.6"},
            r": .* 10\.1 and A, compute capability 8\.6; this machine",
        ),
        (
            "Magic tag does not match",
            {},
            "; this machine has TensorRT 1.* and NVIDIA Double H1, compute capability 9.0. Build",
        ),
        ("", {}, "; this machine has "),
    ],
)
def test_an_engine_for_another_gpu_or_version(
    gpu: Machine, tmp_path: Path, message: str, notes: dict[str, str], text: str
) -> None:
    path = engine_file(tmp_path / "mine.engine")
    if notes:
        path.with_suffix(".json").write_text(json.dumps(notes))
    gpu.answer("deserialize_cuda_engine", None, ERROR="expecting " * message.startswith("library") + message)
    with raises(
        ConfigError,
        match=rf"mine\.engine cannot be used on this machine{text}.*TensorRT's reasons: .*{message or 'none'}",
    ):
        loaded(path)
    gpu.answer("deserialize_cuda_engine", None, WARNING=NO_MEMORY)
    with raises(MemoryError, match=r"engine file .*mine\.engine: NVIDIA Double H1 has no memory for it"):
        loaded(path)


# Model files


def test_sizes_and_files_of_inputs(gpu: Machine, model: Path, tmp_path: Path) -> None:
    gpu.compute = lambda inputs: [inputs["m"] @ inputs["ids"]]
    network = loaded(dynamic(tmp_path / "d.onnx"), dims="seq=5")
    assert arguments(gpu, "set_shape") == [("ids", *[(8, 5)] * 3), ("m", *[(8, 8)] * 3)]
    assert network.check()
    assert network._prepared.outputs[0].array.shape == (8, 5)
    network.close()
    gpu.compute, gpu.calls = row_sums, []
    np.savez(tmp_path / "in.npz", x=np.ones((2, 4), np.float32))
    network = loaded(model, inputs=str(tmp_path / "in.npz"))
    assert arguments(gpu, "set_shape") == [("x", *[(8, 4)] * 3)]
    network.prepare(3)
    assert np.all(network._prepared.outputs[0].fetched(network._cuda, network._stream) == 4)
    network.close()


def test_weights_in_other_files_are_part_of_the_model(gpu: Machine, model: Path, tmp_path: Path) -> None:
    shas = set()
    for value in (1.0, 2.0):
        plain = onnx.load(model)
        plain.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 3), value, np.float32), "w"))
        onnx.save(plain, tmp_path / "big.onnx", save_as_external_data=True, location="big.bin", size_threshold=0)
        network = loaded(tmp_path / "big.onnx")
        shas.add(network.describe()["model_sha256"])
        network.close()
        (tmp_path / "big.bin").unlink()
    assert len(shas) == builds(gpu) == 2


def test_a_quantised_file_is_rewritten_on_request(gpu: Machine) -> None:
    source = networks.build("mlp", "int8", MLP)
    for network, options in ((source.path, {}), ("mlp", {"symmetric": "false", **MLP})):
        with raises(ConfigError, match=r"TensorRT refuses node .* a bias; .*symmetric=true"):
            loaded(network, "int8", **options)
    gpu.layers = [layer("i8i8")]
    network = loaded(source.path, "int8", symmetric="true")
    assert network.describe()["quantisation"] == "rewritten to int8 around zero"
    network.close()


# Errors


@pytest.mark.parametrize(
    ("method", "value", "messages", "error", "text"),
    [
        ("devices", [], {}, ConfigError, "cuda:0 was requested, but CUDA finds no GPU: nvidia-smi must list one"),
        ("errors", {"cudaGetDeviceCount": "cudaErrorNoDevice"}, {}, ConfigError, r"no GPU \(cudaErrorNoDevice, what "),
        ("devices", [Device(memory_bytes=10)], {}, MemoryError, "batch 8: CUDA: cudaMalloc: cudaErrorMemoryAllocat"),
        ("Runtime", None, {"ERROR": "init"}, NetworkError, r"TensorRT cannot start \(Runtime\): init$"),
        ("Builder", None, {}, NetworkError, r"TensorRT cannot start \(Builder\): pybind11"),
        ("OnnxParser", None, {"WARNING": NO_MEMORY}, MemoryError, r"TensorRT cannot start \(OnnxParser\)"),
        ("parse_from_file", False, {"ERROR": "no file"}, ConfigError, "TensorRT cannot read it: no file"),
        ("parser_errors", ["In node 0", "and\n more"], {}, ConfigError, "cannot read it: In node 0; and more$"),
        ("get_flag", True, {}, NetworkError, "TF32 was set off, but TensorRT has not changed it"),
        ("add_optimization_profile", -1, {"ERROR": "why"}, NetworkError, "refuses the shapes .*: why"),
        ("get_memory_pool_limit", 9 << 20, {}, ConfigError, "option workspace_mib=64: TensorRT uses 9 MiB"),
        ("build_serialized_network", None, {"ERROR": "why"}, NetworkError, "cannot build an engine: why$"),
        ("build_serialized_network", None, {}, NetworkError, "cannot build an engine: it gave no reason"),
        ("build_serialized_network", None, {"WARNING": NO_MEMORY}, MemoryError, "H1 has no memory to build it: it ga"),
        ("deserialize_cuda_engine", None, {"ERROR": "why"}, NetworkError, "refuses the engine that it has built: w"),
        (
            "deserialize_cuda_engine",
            None,
            {"ERROR": "out of memory"},
            MemoryError,
            "H1 has no memory for its engine: o",
        ),
        ("create_execution_context", None, {"ERROR": "why"}, NetworkError, "no memory for the activations: why"),
        ("create_execution_context", None, {"WARNING": NO_MEMORY}, MemoryError, "batch 8: m.*for the activations"),
        ("set_input_shape", False, {"ERROR": "why"}, UnsupportedBatchError, r"batch 8: .*\(8, 4\) of 'x': why"),
        ("infer_shapes", RuntimeError, {"ERROR": "why"}, NetworkError, "batch 8: why: why"),
        ("infer_shapes", ["x", "z"], {}, NetworkError, "batch 8: the shapes of x, z are unknown"),
        ("set_tensor_address", False, {}, NetworkError, "TensorRT refuses the memory of 'x'"),
        ("execute_async_v3", False, {"ERROR": " a  b\n"}, NetworkError, "did not launch a batch: a b$"),
        ("execute_async_v3", False, {"INFO": NO_MEMORY}, NetworkError, "did not launch a batch: no reason"),
        ("execute_async_v3", False, {"INTERNAL_ERROR": "out of memory"}, MemoryError, "not launch a batch: out of"),
        ("get_tensor_dtype", "FP8", {}, ConfigError, "'x' is of type FP8, which is not supported"),
        ("get_tensor_location", "HOST", {}, ConfigError, "'x' is a shape in host memory"),
        ("get_tensor_shape", (-1, 3), {}, NetworkError, "the size of output 'y' depends on the values of the inputs"),
        ("compute", lambda inputs: [inputs["x"][:, :3]], {}, WrongOutputsError, "outputs differ from ONNX Runtime"),
        ("compute", lambda inputs: [inputs["x"][:, :3] + np.nan], {}, WrongOutputsError, "finite in other places"),
    ],
)
def test_failures_of_tensorrt_are_passed_on(
    gpu: Machine, model: Path, method: str, value: Any, messages: dict[str, str], error: type[Exception], text: str
) -> None:
    """Memory that runs out may show in a warning alone; afterwards the network works."""
    trt = sys.modules["tensorrt"]
    value = {"FP8": trt.DataType.FP8, "HOST": trt.TensorLocation.HOST}.get(str(value), value)
    before = getattr(gpu, method, None)
    if before is None:
        gpu.answer(method, value, **messages)
    else:
        setattr(gpu, method, value)
    network = opened(model, workspace_mib="64")
    with raises(error, match=text) as raised:
        network.load()
        network.check()
    assert raised.type is error
    del raised  # its traceback keeps objects alive
    if before is not None:
        setattr(gpu, method, before)
    if network._gpu is None:
        network.load()
    assert network.check()
    network.close()


@pytest.mark.parametrize(
    ("network", "options", "text"),
    [
        ("m.onnx", {"shapes": "static"}, "unknown option 'shapes'; did you mean shape"),
        ("m.onnx", {"shape": "dynamik"}, "did you mean dynamic"),
        ("m.onnx", {"shape": "dynamic"}, "shape=dynamic and profile=LEAST,BEST,MOST .* require each other"),
        ("m.onnx", {"profile": "1,2,4"}, "require each other"),
        ("m.onnx", {"shape": "dynamic", "profile": "4,2,1"}, "three ascending batch sizes, got '4,2,1'"),
        ("m.onnx", {"shape": "dynamic", "profile": "0,2,3"}, "three ascending batch sizes"),
        ("m.onnx", {"shape": "dynamic", "profile": "1,2"}, "three ascending batch sizes"),
        ("m.onnx", {"shape": "dynamic", "profile": "1,x,3,4"}, "three ascending batch sizes"),
        ("m.onnx", {"optimization_level": "6"}, "optimization_level: must be an integer >= 0 and <= 5, got '6'"),
        ("m.onnx", {"workspace_mib": "0"}, "option workspace_mib: must be an integer >= 1"),
        ("m.onnx", {"copies": "perhaps"}, "option copies: must be true or false"),
        ("m.onnx", {"precision": "fp31"}, "tensorrt: unknown precision 'fp31'; did you mean fp32"),
        ("m.onnx", {"device": "cuda:1"}, "the device cuda:1 does not exist: the last one is cuda:0"),
        ("m.onnx", {"device": "gpu"}, "unknown device 'gpu'"),
        ("m.onnx", {"device": "cuda:x"}, "unknown device 'cuda:x'; did you mean cuda"),
        ("mlp", {"depth": "x"}, "depth"),
        ("mlp", {"precision": "bf16"}, "mlp: unknown precision 'bf16'"),
        ("d.onnx", {}, "dimension 'seq' of input 'ids' has no size"),
        ("x.plan", {"workspace_mib": "3"}, "is already built: remove the option workspace_mib"),
        ("x.plan", {"symmetric": "true"}, "is already built: remove the option symmetric"),
        ("x.plan", {"precision": "tf32"}, "is already built, with TF32 or without: request native"),
        ("absent.engine", {}, "no model file"),
        ("empty.onnx", {}, r"empty\.onnx cannot be loaded: it contains no graph"),
        ("text.onnx", {}, r"text\.onnx cannot be loaded"),
        ("m.onnx", {"engine_cache": "true"}, "the engine cache .* cannot be written .*engine_cache=false"),
    ],
)
def test_what_cannot_be_loaded(
    gpu: Machine, model: Path, tmp_path: Path, network: str, options: dict[str, str], text: str
) -> None:
    dynamic(tmp_path / "d.onnx")
    engine_file(tmp_path / "x.plan")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_bytes(b"not a model")
    if "engine_cache" in options:
        (tmp_path / "cache").write_bytes(b"a file, where a folder should be")
    with raises(ConfigError, match=text):
        loaded(network if network == "mlp" else tmp_path / network, **{"precision": "native", **options})


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        ("tensorrt", ModuleNotFoundError("no", name="tensorrt"), "needs the package tensorrt: pip install"),
        ("cuda.bindings.runtime", ModuleNotFoundError("no", name="cuda"), "needs the package cuda-bindings: pip"),
        ("tensorrt", ImportError("libnvinfer.so.11: cannot\n open"), r"imported \(libnvinfer\.so\.11: cannot open\)"),
        ("tensorrt", RuntimeError("wheel without libraries"), r"cannot be imported \(wheel without libraries\)"),
        ("tensorrt", SimpleNamespace(__version__="9.3.0"), "needs TensorRT 10 or newer, not 9.3.0: pip"),
        ("tensorrt", SimpleNamespace(__version__="x"), "has no version, so it is not NVIDIA's: pip"),
        ("tensorrt", ModuleNotFoundError("No numpy_of_old", name="numpy_of_old"), "^No numpy_of_old$"),
        ("tensorrt", SimpleNamespace(), "has no version, so it is not NVIDIA's: pip"),
    ],
)
def test_missing_packages(
    gpu: Machine, model: Path, monkeypatch: pytest.MonkeyPatch, module: str, error: Any, text: str
) -> None:
    def import_module(name: str) -> Any:
        if name == module and isinstance(error, Exception):
            raise error
        return error if name == module else sys.modules[name]

    monkeypatch.setattr(libraries.importlib, "import_module", import_module)
    inner = "numpy_of_old" in text
    install = "" if inner else r".*joulewatch\[tensorrt\].*NVIDIA's own package index"
    with raises(ModuleNotFoundError if inner else ConfigError, match=text + install):
        opened(model)


# Traces


def test_a_trace_has_the_time_and_the_work_of_each_layer(gpu: Machine, tmp_path: Path) -> None:
    fused = layer("f32f32", "fc1", Metadata="[ONNX Layer: fc1]\x1e[ONNX Layer: relu1]")
    gpu.layers = [fused, layer("f32f32", "fc2"), {"Name": "copy", "LayerType": "Reformat"}]
    gpu.layer_ms = {"fc1": 2.0, "fc2": 0.5, "copy": 0.25}
    network = loaded("mlp", "fp32", cuda_graph="true", **MLP)
    gpu.compute = lambda inputs: [network._source.reference(inputs)]
    with raises(NetworkError, match="comes after load"):
        network.trace(tmp_path / "t.json")
    network.prepare(4)
    gpu.calls.clear()
    network.trace(tmp_path / "t.json")
    assert arguments(gpu, "enqueue_emits_profile") == [(False,)]
    trace = read_trace(tmp_path / "t.json")
    assert (trace.runtime, trace.batch_size, trace.details) == ("tensorrt", 4, {"layers": "3"})
    assert trace.source == f"profiler of TensorRT {gpu.version}"
    assert trace.notes == ("traced without the CUDA graph",)
    assert trace.macs is not None and trace.plain_time_ns is not None and trace.plain_time_ns > 0
    operators = {item.name: (item.op, item.time_ns, item.calls, item.macs) for item in trace.operators}
    assert operators["fc1"] == ("gemm", 2_000_000 * trace.batches, trace.batches, 4 * 784 * 32)
    assert (operators["fc2"][::3], operators["copy"][::3]) == (("gemm", None), ("Reformat", 0))
    gpu.answer("report_to_profiler", False, ERROR="why")
    with raises(NetworkError, match="reports no layer times: why"):
        network.trace(tmp_path / "t.json")
    network.close()


# The double itself


def test_the_double_detects_misuse(gpu: Machine, model: Path) -> None:
    trt = sys.modules["tensorrt"]
    assert ("FP16" in trt.BuilderFlag.__members__) == gpu.version.startswith("10")
    config = trt.Builder(SimpleNamespace(_is_made=True)).create_builder_config()
    network = loaded(model)
    network.prepare(2)
    stream, address = network._stream, network._prepared.outputs[0].address
    context = network._engine.create_execution_context()
    network._prepared.enqueue()
    for error, act in (
        (AttributeError, lambda: setattr(config, "builder_optimisation_level", 3)),
        (AttributeError, lambda: config.set_flags(trt.BuilderFlag.TF32)),
        (TypeError, lambda: config.get_flag(flags=trt.BuilderFlag.TF32)),
        (TypeError, lambda: api.check("cudaFree", lambda self, address: None, api.read("cuda")["functions"])),
        (TypeError, lambda: trt.Runtime(SimpleNamespace(_is_made=False))),
        (Misuse, lambda: gpu.cudaFree(address)),
        (Misuse, lambda: gpu.cudaFree(12345)),
        (Misuse, lambda: gpu.cudaEventRecord(stream, stream)),
        (Misuse, lambda: gpu.cudaMemcpyAsync(9, address, 4, gpu.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)),
        (Misuse, lambda: context.execute_async_v3(int(stream))),
        (Misuse, context.report_to_profiler),
    ):
        with raises(error):
            act()
    assert len(gpu.misuses) == 6
    gpu.misuses.clear()
    network.close()


# The real thing


@pytest.mark.parametrize("options", [{}, {"cuda_graph": "true", "copies": "true"}, {"shape": "dynamic"}])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_on_a_real_gpu(tmp_path: Path, precision: str, options: dict[str, str]) -> None:
    """What no double can prove. It needs an NVIDIA GPU."""
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
