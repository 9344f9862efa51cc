"""ONNX Runtime with small models made here: precision, provider and inputs are what they really are."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness.errors import ConfigError, NetworkError  # noqa: E402
from joulewatch_harness.network import Phases  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.network import OnnxRuntimeNetwork  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.options import LEVELS, Options  # noqa: E402
from joulewatch_harness.runtimes.shared.native_log import captured  # noqa: E402
from joulewatch_harness.runtimes.shared.signature import DTYPES  # noqa: E402
from support import model_cases  # noqa: E402
from support.onnx_models import matmul, save  # noqa: E402


def opened(path: Path, **options: str) -> OnnxRuntimeNetwork:
    return runtime.open_network(str(path), "native", options)


def test_building_leaves_logging_as_it_was(cache: Path) -> None:
    runtime.open_network("radioml-vgg10", "int8", {"filters": "32"})
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "fp32"), (np.float64, "fp64"), (np.float16, "fp16")])
def test_the_precision_is_read_from_the_weights(tmp_path: Path, dtype: type[np.generic], name: str) -> None:
    assert runtime.actual_precision(matmul(tmp_path / "m.onnx", dtype=dtype))[0] == name


def test_operators_that_the_optimiser_turns_into_integers_are_int8(tmp_path: Path) -> None:
    """Newer versions make a MatMulNBits of the same pattern around a MatMul; its accuracy level tells."""
    path = tmp_path / "m.onnx"
    for level, expected in ((4, ("int8", "1 of 1")), (1, ("fp32", "0 of 1"))):
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=1, bits=8)
        node.attribute.append(helper.make_attribute("accuracy_level", level))
        weights: dict[str, Any] = {"w": np.ones((1, 1, 32), np.uint8), "s": np.ones(1, np.float32)}
        save(path, [node], {"x": (TensorProto.FLOAT, ["b", 32])}, {"y": (TensorProto.FLOAT, ["b", 1])}, weights)
        assert runtime.actual_precision(path) == expected


def test_threads_are_counted_if_none_are_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that the session started and the caller's."""
    seen = iter(({"1"}, {"1", "2", "3", "4"}))
    monkeypatch.setattr(runtime, "_threads_of_process", lambda: next(seen))
    network = opened(matmul(tmp_path / "m.onnx"))
    network.load()
    assert network.describe()["threads"] == 4
    network.close()


def test_requested_threads_are_started(tmp_path: Path) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), threads="3")
    network.load()
    described = network.describe()
    assert (described["threads"], described["provider"], described["device"]) == (3, "CPUExecutionProvider", "cpu")
    network.close()


def test_fewer_threads_than_requested_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_threads_of_process", lambda: {"1"})
    with pytest.raises(NetworkError, match="3 threads were requested, but ONNX Runtime has started 1"):
        opened(matmul(tmp_path / "m.onnx"), threads="3").load()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"spinning": "maybe"}, "option spinning: must be true or false, got 'maybe'"),
        ({"optimization": "al"}, "option optimization: unknown value 'al'; did you mean all"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, str], text: str) -> None:
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=text):
        opened(path, **options)


def test_an_unknown_provider_is_an_error(tmp_path: Path) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), provider="CPUExecutionProvide")
    with pytest.raises(ConfigError, match="did you mean CPUExecutionProvider"):
        network.load()


def test_a_provider_that_fell_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ONNX Runtime does, in silence, where CUDA's libraries are missing."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, providers: session(path, settings, providers=["CPUExecutionProvider"]),
    )
    network = opened(matmul(tmp_path / "m.onnx"), provider="CUDAExecutionProvider")
    with pytest.raises(NetworkError, match="CUDAExecutionProvider was requested, but ONNX Runtime fell back to CPU"):
        network.load()


def test_options_reach_the_session(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    for level in LEVELS:
        network = opened(path, threads="1", inter_threads="2", spinning="false", optimization=level)
        network.load()
        network.prepare(2)
        network.run(2, Phases())
        assert network.describe()["spinning"] == "false"
        network.close()
    assert Options.parse({"dims": "seq=128,ids.2=4"}).dims == {"seq": 128, "ids.2": 4}


def test_every_supported_type_can_be_made() -> None:
    assert set(runtime._DTYPES.values()) == set(DTYPES)


def test_text_labels_are_measured(tmp_path: Path) -> None:
    """A copy of all outputs ended the process."""
    network = opened(model_cases.labels(tmp_path / "m.onnx"))
    network.load()
    assert network.describe()["outputs"] == "y:tensor(string)[N]"
    assert network.check()
    network.prepare(4)
    network.run(3, Phases())
    assert set(network._outputs()["y"]) <= {"a", "b", "c"}
    network.close()


def test_a_mask_of_ones_keeps_minus_infinity_out(tmp_path: Path) -> None:
    network = opened(model_cases.attention(tmp_path / "m.onnx"))
    network.load()
    assert network.check() and "not_finite_outputs" not in network.describe()
    network.close()


def test_lines_of_the_library_do_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    network = opened(model_cases.one_only(tmp_path / "m.onnx"))
    network.load()
    with pytest.raises(Exception, match="Reshape"):
        network.check(8)
    assert network.check(1)
    network.close()
    assert capfd.readouterr() == ("", "")
    line = "2026-11-28 20:00:00.1 [E:onnxruntime:Default, bridge.cc:1 Load] Failed to load libcublas\n"
    caplog.set_level("DEBUG")
    with captured() as messages:
        os.write(2, f"\x1b[1;31m{line[:-1]}\x1b[m\nother\n".encode())
    assert messages == ["Failed to load libcublas"]
    assert capfd.readouterr().err == "other\n"
    assert "Failed to load libcublas" in caplog.text


def test_the_costs_of_a_model_with_the_time_first_are_those_of_one_sequence(tmp_path: Path) -> None:
    network = opened(model_cases.recurrent(tmp_path / "m.onnx"), dims="seq=10")
    network.load()
    described = network.describe()
    assert described["batch_axes"] == "x:1"
    assert described["macs_per_inference"] == str(10 * 32 * (16 + 8))
    network.close()
