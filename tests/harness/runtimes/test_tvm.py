"""TVM with small models: what its kernels compute in, what is tuned and what is not, and what it says of bad input."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm.relax")
pytest.importorskip("onnx")

import tvm
from onnx import TensorProto, helper, numpy_helper

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import open_network
from joulewatch_harness.runtimes.shared import outputs as shared_outputs
from joulewatch_harness.runtimes.shared.outputs import onnxruntime_outputs
from joulewatch_harness.runtimes.tvm import importing, options, tracing, tuning
from joulewatch_harness.runtimes.tvm import network as runtime
from joulewatch_harness.runtimes.tvm.network import TvmNetwork
from joulewatch_harness.runtimes.tvm.options import default_cost_model
from joulewatch_harness.traces import read_trace
from support.onnx_models import matmul, save
from support.require import require_program
from support.tvm_models import quantised_convolution, quantised_matmuls


def opened(network: str | Path, precision: str = "native", **given: str) -> TvmNetwork:
    return runtime.open_network(str(network), precision, given)


def vgg10(precision: str, **given: str) -> TvmNetwork:
    return opened("radioml-vgg10", precision, filters="32", **given)


def outputs(network: TvmNetwork) -> np.ndarray:
    return np.asarray(runtime.tensors(network._outputs)[0].numpy())


def run(network: TvmNetwork, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What TVM gives for a batch, and what ONNX Runtime gives, operator by operator."""
    network.load()
    network.prepare(batch)
    network.run(1, Phases())
    wanted = onnxruntime_outputs(network._source.path, network._batches.arrays(batch))
    assert wanted is not None
    return outputs(network), wanted[0]


def test_untuned_kernels_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), threads="1")
    network.load()
    described = network.describe()
    assert (described["device"], json.loads(described["target"])["num-cores"]) == ("cpu", 1)
    assert "UNTUNED" in described["tuning"]
    with caplog.at_level(logging.WARNING):
        network.prepare(1)
    assert "m.onnx, batch 1: UNTUNED" in caplog.text
    assert network.describe()["tuned"].startswith("0 of ")
    network.close()


def test_int8_gives_the_numbers_of_onnx_runtime_to_the_last_bit() -> None:
    """Integer sums are exact; what follows them is one multiplication and a rounding, in the same order."""
    found, wanted = run(vgg10("int8"), 4)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("groups", "zero", "padding", "signed", "stride"),
    [
        (1, 0, 0, False, 1),
        (1, 3, 1, False, 2),  # padded with the zero point
        (1, -5, 1, True, 1),  # int8 activations, taken as uint8
        (4, 7, 1, False, 1),  # grouped: no packed kernel, and integers all the same
    ],
)
def test_convolutions_in_integers(
    tmp_path: Path, groups: int, zero: int, padding: int, signed: bool, stride: int
) -> None:
    """Six input channels and twenty output channels: neither fills its registers."""
    channels = 8 if groups > 1 else 6
    path = quantised_convolution(
        tmp_path / "c.onnx", channels, 20, groups=groups, zero=zero, padding=padding, signed=signed, stride=stride
    )
    network = opened(path)
    found, wanted = run(network, 2)
    assert network.describe()["integer_ops"] == "1 of 1"
    assert network.describe()["precision"] == "int8"
    # A half may fall to either side where float arithmetic is ordered otherwise: one step, in few places.
    step = 0.05
    assert np.abs(found - wanted).max() <= step * 1.001
    assert np.mean(found != wanted) < 0.01


@pytest.mark.parametrize("constant", [True, False])
def test_matrix_products_in_integers(tmp_path: Path, constant: bool) -> None:
    """With weights, and of two activations, each with a zero point of its own."""
    network = opened(quantised_matmuls(tmp_path / "m.onnx", constant=constant))
    found, wanted = run(network, 3)
    assert network.describe()["integer_ops"] == "1 of 1"
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_batch_norms_are_folded_and_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    norm = {name: rng.uniform(0.5, 1.5, 3).astype(np.float32) for name in ("gamma", "beta", "mean", "variance")}
    path = save(
        tmp_path / "n.onnx",
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1, beta=0.5),
            helper.make_node("BatchNormalization", ["h", *norm], ["n"]),
            helper.make_node("BatchNormalization", ["n", *norm], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 3])},
        {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": np.array(2.0, np.float32), **norm},
    )
    model = importing.read_onnx(path)
    assert [node.op_type for node in model.graph.node] == ["Gemm", "BatchNormalization"]
    bias = next(numpy_helper.to_array(item) for item in model.graph.initializer if item.name.endswith("folded.bias"))
    scale = norm["gamma"] / np.sqrt(norm["variance"] + 1e-5)
    assert np.allclose(bias, (1.0 - norm["mean"]) * scale + norm["beta"], rtol=1e-5)
    network = opened(path)
    network.load()
    assert network.check()
    network.close()


def test_a_check_does_not_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take another batch size than those that are measured, and minutes."""
    monkeypatch.setattr(tuning, "tune", lambda *_: pytest.fail("tuned"))
    network = opened(matmul(tmp_path / "m.onnx"), trials="2")
    network.load()
    assert network.check()
    network.close()


# Tuning


def tuned(path: Path, caplog: pytest.LogCaptureFixture, **options: str) -> tuple[Mapping[str, Any], str]:
    network = opened(path, **options)
    network.load()
    before = network.describe()["tuning"]
    caplog.clear()
    network.prepare(2)
    assert network.check()
    description = network.describe()
    network.close()
    return {**description, "before": before}, caplog.text


def test_tuning_is_stored_reused_and_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """One real tuning of one small kernel; then what a killed process can leave of its database."""
    require_program("g++", "g++")  # TVM links each candidate with it; without it no candidate counts
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = matmul(tmp_path / "m.onnx", batch=2)
    first, _ = tuned(path, caplog, trials="2", cost_model="random", threads="1")
    assert first["tuned"] == "1 of 1 kernel, at most 2 trials each"
    assert first["cost_model"] == "random"
    assert float(first["tuning_s"]) > 0
    assert capfd.readouterr().out == ""
    second, log = tuned(path, caplog, threads="1")
    assert second["tuned"] == first["tuned"]
    assert "batch2: 2 trials" in second["before"]
    assert "UNTUNED" not in log
    # Kernels that a search has made are not taken on trust.
    monkeypatch.setattr(
        shared_outputs, "onnxruntime_outputs", lambda *_: [np.arange(6, dtype=np.float32).reshape(2, 3)]
    )
    wrong = opened(path, threads="1")
    wrong.load()
    for _ in range(2):
        with pytest.raises(NetworkError, match="this build computes wrong results"):
            wrong.prepare(2)
    wrong.close()
    monkeypatch.setattr(shared_outputs, "onnxruntime_outputs", onnxruntime_outputs)
    # Another number of threads is another target: schedules were made for the first.
    if runtime.PROCESSORS > 1:
        other, log = tuned(path, caplog, threads="2")
        assert other["tuned"].startswith("0 of 1")
        assert "batch 2: UNTUNED" in log
    (folder,) = (tmp_path / "cache").glob("joulewatch/tvm/*/*/native-batch2")
    assert not list(folder.glob(".tuning-*"))
    records = folder / tuning.RECORDS
    whole = records.read_text(encoding="utf-8")
    records.write_text(whole + whole.splitlines()[0][: len(whole) // 5], encoding="utf-8")
    torn, log = tuned(path, caplog, threads="1")
    assert torn["tuned"] == first["tuned"]
    assert "the last line is incomplete" in log
    # Before TVM appends again, the torn end and what a killed search left are taken away.
    (folder / ".tuning-left").mkdir()
    tuning._remove_remains(folder)
    assert records.read_text(encoding="utf-8") == whole
    assert not list(folder.glob(".tuning-*"))
    (folder / tuning.WORKLOADS).write_text('["half a', encoding="utf-8")
    lost, log = tuned(path, caplog, threads="1")
    assert lost["tuned"].startswith("0 of 1")
    assert "UNTUNED" in log


@pytest.mark.parametrize("name", [tuning.WORKLOADS, tuning.RECORDS, tuning.FINISHED])
def test_a_database_damaged_in_the_middle_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / tuning.WORKLOADS).write_text('["1", "x"]\n', encoding="utf-8")
    (tmp_path / tuning.RECORDS).write_text("[0, []]\n", encoding="utf-8")
    (tmp_path / name).write_text('["1", "x"]\n{{{\n["2", "x"]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{name}.* is damaged.*: delete the folder"):
        tuning.finished(tmp_path)
        tuning.open_database(tmp_path)


def test_records_without_a_kernel_are_ignored(tmp_path: Path) -> None:
    """The two tables are two files: the kernel's line may be lost where its record is not."""
    (tmp_path / tuning.WORKLOADS).write_text('["1", "x"]\n["2', encoding="utf-8")
    (tmp_path / tuning.RECORDS).write_text("[0, []]\n[1, []]\n", encoding="utf-8")
    assert tuning._read(tmp_path) == {tuning.WORKLOADS: ['["1", "x"]'], tuning.RECORDS: ["[0, []]"]}


def test_one_process_tunes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one waits for the first, and then has nothing left to do."""
    request = tuning.Request(trials=4, threads=1, cost_model="random", seed=0)
    code = f"""
import fcntl, json, pathlib, sys
folder = pathlib.Path({str(tmp_path)!r})
file = (folder / "lock").open("w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
(folder / "tuning.json").write_text(json.dumps([dict(trials=4, tuning_s=1.0, cost_model="xgb")]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        monkeypatch.setattr(tuning.time, "sleep", lambda _: other.communicate() if other.poll() is None else None)
        monkeypatch.setattr(tuning, "_search", lambda *_: pytest.fail("tuned a second time"))
        tuning.tune(tmp_path, None, None, request, "n")
    assert tuning.finished(tmp_path).trials == 4


def test_a_failed_search_is_an_error_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_CODE", "import sys; sys.exit('out of luck')")
    request = tuning.Request(trials=1, threads=1, cost_model="random", seed=0)
    with pytest.raises(
        NetworkError, match=r"n: tuning failed with status 1: out of luck \(complete log: .*tuning\.log"
    ):
        tuning.tune(tmp_path, tvm.IRModule({}), runtime.find_target("", 1)[0], request, "n")
    assert tuning.finished(tmp_path).trials == 0
    assert not list(tmp_path.glob(".tuning-*"))


def test_a_search_ends_with_the_process_that_started_it() -> None:
    """Whatever kills that one, its end of the pipe is closed."""
    code = (
        "import os, threading; from joulewatch_harness.runtimes.tvm import tuner; "
        "threading.Thread(target=tuner._end_with_parent, daemon=True).start(); "
        "print('up', flush=True); threading.Event().wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.stdin.close()
        assert child.wait(timeout=60) == -9


# Files, inputs, options


def test_a_batch_size_that_the_graph_does_not_allow_is_unsupported(tmp_path: Path) -> None:
    """The batch axis is symbolic, but a constant in the graph has a batch of its own."""
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 2, 4])},
        {"y": (TensorProto.FLOAT, ["batch", 2, 3])},
        {"w": np.ones((8, 4, 3), np.float32)},
    )
    network = opened(path)
    network.load()
    network.prepare(8)
    with pytest.raises(UnsupportedBatchError, match=r"m\.onnx: TVM .* cannot import it for these shapes"):
        network.prepare(3)
    network.prepare(8)
    network.run(1, Phases())
    network.close()


def test_an_operator_that_tvm_does_not_import_is_named(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Det", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 3, 3])},
        {"y": (TensorProto.FLOAT, ["batch"])},
        {},
    )
    with pytest.raises(ConfigError, match=r"m\.onnx: TVM .* cannot import it.*Det"):
        opened(path).load()


def test_running_out_of_memory_is_a_memory_error(tmp_path: Path) -> None:
    network = opened(matmul(tmp_path / "m.onnx"))
    network.load()
    network.prepare(2)

    def main(*_: object) -> None:
        raise RuntimeError("CUDA: out of memory")

    network._main = main
    with pytest.raises(MemoryError, match=r"m\.onnx, batch 2: CUDA: out of memory"):
        network.run(1, Phases())
    network.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threads": "4096"}, "tvm: option threads: must be <= [0-9]+, the processors that this process may use"),
        ({"trials": "x"}, "option trials: must be an integer >= 0, got 'x'"),
        ({"cost_model": "mlp"}, "option cost_model: unknown value 'mlp'"),
        ({"copies": "true"}, "option copies: requires a device with separate memory"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, str], text: str) -> None:
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=text):
        opened(path, **options)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("x86", "option target: must be cuda, cuda:N or JSON"),
        ('{"kind": "lvm"}', "option target: must be cuda, cuda:N or JSON"),
        ('{"kind": "c"}', "option target: unknown kind 'c'"),
        ("cuda:17", "target cuda:17 was requested, but TVM .* finds no such GPU"),
    ],
)
def test_a_bad_target_is_named(tmp_path: Path, target: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        opened(matmul(tmp_path / "m.onnx"), target=target).load()


def test_trials_need_the_packages_that_tuning_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name != "os" else found(name))
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(
        ConfigError, match=r"option trials: requires the package psutil: pip install 'joulewatch\[tvm\]'"
    ):
        opened(path, trials="2")
    with pytest.raises(ConfigError, match="option cost_model: xgb requires the package xgboost"):
        opened(path, cost_model="xgb")
    assert default_cost_model() == "random"


def test_another_package_of_that_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "tvm" or name.startswith("tvm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tvm", ModuleType("tvm"))
    for name in [name for name in sys.modules if name.startswith("joulewatch_harness.runtimes.tvm.network")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"not Apache TVM .*finance library.*pip install 'joulewatch\[tvm\]'"):
        open_network(Configuration(name="n", network="radioml-vgg10", runtime="tvm", precision="fp32"))


def test_threads_stay_on_the_processors_that_the_process_may_use() -> None:
    """Left alone, TVM binds its threads to the machine's first processors, wherever the process is pinned to."""
    code = """
import os
last = max(os.sched_getaffinity(0))
os.sched_setaffinity(0, {last})
from joulewatch_harness.runtimes.tvm import network as runtime
from joulewatch_harness.runner.pinning import strays
network = runtime.TvmNetwork(runtime.networks.ModelSource(path=runtime.Path("x")), "native", runtime.Options())
network._set_threads()
assert network._threads == 1, network._threads
assert not strays((last,)), strays((last,))
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TVM_", "OMP_"))}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr


def test_fewer_threads_than_requested_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is as large as it was when the process first used it."""
    monkeypatch.setattr(options, "PROCESSORS", 64)
    with pytest.raises(NetworkError, match=r"64 threads were requested, but TVM's pool has \d+: set threads="):
        opened(matmul(tmp_path / "m.onnx"), threads="64").load()


# Traces


def test_the_trace_contains_kernels_and_their_products(tmp_path: Path) -> None:
    network = vgg10("int8", threads="1")
    network.load()
    network.prepare(2)
    network.trace(tmp_path / "t.json")
    network.close()
    trace = read_trace(tmp_path / "t.json")
    products = [item for item in trace.operators if item.macs]
    assert len(products) == 10
    # By the graph, not by the kernels, which compute four input channels where the first layer has two.
    assert sum(item.macs or 0 for item in products) == trace.macs == 2 * 3_345_408
    assert all(item.calls == trace.batches for item in products)
    assert sum(item.time_ns for item in trace.operators) <= trace.time_ns
    assert trace.plain_time_ns is not None
    assert {item.op for item in products} == {"conv1d_int8_requantize", "matmul_int8_requantize"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fused_conv1d12_add1_relu1", "conv1d_add_relu"),
        ("fused_conv2d_int81_requantize1", "conv2d_int8_requantize"),
        ("max_pool1d3", "max_pool1d"),
        ("reshape8", "reshape"),
        ("vm.builtin.alloc_tensor", "vm"),
    ],
)
def test_kinds_of_kernels_have_no_numbers(name: str, kind: str) -> None:
    assert tracing.kind(name) == kind
