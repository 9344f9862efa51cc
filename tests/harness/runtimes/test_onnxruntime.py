"""ONNX Runtime with small models made here: precision, provider and inputs are what they really are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError  # noqa: E402
from joulewatch_harness.network import Network, Phases  # noqa: E402
from joulewatch_harness.records import Configuration  # noqa: E402
from joulewatch_harness.runtimes import as_loaded, open_network  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.network import OnnxRuntimeNetwork  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.options import LEVELS, Options  # noqa: E402
from joulewatch_harness.runtimes.shared.inputs import random_array  # noqa: E402
from support.onnx_models import dequantised, matmul, save  # noqa: E402


def opened(path: Path, **options: str) -> OnnxRuntimeNetwork:
    return runtime.open_network(str(path), "native", options)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_built_in_network_is_what_it_says(cache: Path, precision: str) -> None:
    """Loads, computes rightly, runs as many batches as told; INT8 really computes in integers, all ten layers."""
    network = runtime.open_network("radioml-vgg10", precision, {"filters": "32", "threads": "1"})
    assert isinstance(network, Network)
    try:
        network.load()
        told = network.describe()
        assert told["precision"] == precision
        assert told["integer_ops"] == ("10 of 10" if precision == "int8" else "0 of 10")
        assert told["provider"] == "CPUExecutionProvider"
        assert len(told["model_sha256"]) == 64
        assert told["filters"] == "32"
        assert "input:float32[batch,2,1024]" in told["inputs"]
        assert network.check()
        for batch in (1, 4):
            network.prepare(batch)
            phases = Phases()
            network.run(3, phases)
            assert len(phases.batch_ends_ns) == 3
            assert phases.spans["execute"][0] == 3
    finally:
        network.close()
        network.close()


def test_building_leaves_logging_as_it_was(cache: Path) -> None:
    runtime.open_network("radioml-vgg10", "int8", {"filters": "32"})
    assert logging.root.manager.disable == logging.NOTSET


def test_a_network_that_computes_wrongly_fails_its_check(cache: Path) -> None:
    network = runtime.open_network("radioml-vgg10", "fp32", {"filters": "32"})
    source = network._source
    object.__setattr__(source, "reference", lambda _inputs: np.arange(8 * 24, dtype=np.float32).reshape(8, 24))
    network.load()
    with pytest.raises(NetworkError, match="differ from the reference"):
        network.check()
    network.close()


def test_a_fixed_batch_axis_runs_that_batch_and_no_other(tmp_path: Path) -> None:
    network = opened(matmul(tmp_path / "fixed.onnx", batch=4))
    network.load()
    network.prepare(4)
    network.run(1, Phases())
    assert network.check()
    with pytest.raises(UnsupportedBatchError, match="fixed batch axis of 4, not 8"):
        network.prepare(8)
    network.close()


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "fp32"), (np.float64, "fp64"), (np.float16, "fp16")])
def test_the_precision_is_read_from_the_weights(tmp_path: Path, dtype: type[np.generic], name: str) -> None:
    assert runtime.actual_precision(matmul(tmp_path / "m.onnx", dtype=dtype))[0] == name


def test_a_quantised_file_that_computes_in_float_is_float(tmp_path: Path) -> None:
    """Weights in int8 that are dequantised before a float convolution are storage, not arithmetic."""
    network = opened(dequantised(tmp_path / "c.onnx", "Conv", (3, 2, 3), ["batch", 2, 8], ["batch", 3, 6]))
    network.load()
    told = network.describe()
    assert (told["precision"], told["integer_ops"]) == ("fp32", "0 of 1")
    network.close()


def test_what_the_optimiser_turns_into_integers_is_int8(tmp_path: Path) -> None:
    """Newer versions make a MatMulNBits of the same pattern around a MatMul; its accuracy level tells."""
    path = tmp_path / "m.onnx"
    for level, told in ((4, ("int8", "1 of 1")), (1, ("fp32", "0 of 1"))):
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=1, bits=8)
        node.attribute.append(helper.make_attribute("accuracy_level", level))
        weights: dict[str, Any] = {"w": np.ones((1, 1, 32), np.uint8), "s": np.ones(1, np.float32)}
        save(path, [node], {"x": (TensorProto.FLOAT, ["b", 32])}, {"y": (TensorProto.FLOAT, ["b", 1])}, weights)
        assert runtime.actual_precision(path) == told


def test_another_precision_than_asked_for_is_an_error_unless_allowed(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    asked = Configuration(name="n", network=str(path), runtime="onnxruntime", precision="int8")
    network = open_network(asked)
    network.load()
    with pytest.raises(ConfigError, match="n: int8 was asked for, but what was loaded computes in fp32"):
        as_loaded(asked, network.describe())
    allowed = Configuration(
        name="n", network=str(path), runtime="onnxruntime", precision="int8", options={"any_precision": "true"}
    )
    assert as_loaded(allowed, network.describe()).actual_precision == "fp32"
    network.close()


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model file .*none\.onnx"):
        opened(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    for content in (b"", b"this is no protobuf", matmul(tmp_path / "m.onnx").read_bytes()[:-20]):
        broken.write_bytes(content)
        network = opened(broken)
        with pytest.raises(ConfigError, match=r"model file .*broken\.onnx"):
            network.load()
        network.close()


def test_threads_are_counted_where_none_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that the session started and the caller's."""
    seen = iter(({"1"}, {"1", "2", "3", "4"}))
    monkeypatch.setattr(runtime, "_own_threads", lambda: next(seen))
    network = opened(matmul(tmp_path / "m.onnx"))
    network.load()
    assert network.describe()["threads"] == 4
    network.close()


def test_threads_that_were_asked_for_are_there(tmp_path: Path) -> None:
    network = opened(matmul(tmp_path / "m.onnx"), threads="3")
    network.load()
    assert network.describe()["threads"] == 3
    network.close()


def test_fewer_threads_than_asked_for_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_own_threads", lambda: {"1"})
    with pytest.raises(NetworkError, match="3 threads were asked for, but ONNX Runtime has started 1"):
        opened(matmul(tmp_path / "m.onnx"), threads="3").load()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"thread": "1"}, "did you mean threads"),
        ({"threads": "0"}, "onnxruntime: option threads: must be an integer >= 1, got '0'"),
        ({"threads": "two"}, "option threads: must be an integer >= 1, got 'two'"),
        ({"spinning": "maybe"}, "option spinning: must be true or false, got 'maybe'"),
        ({"optimization": "al"}, "option optimization: unknown value 'al'; did you mean all"),
        ({"filters": "64"}, "unknown option 'filters'"),
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
    with pytest.raises(NetworkError, match="CUDAExecutionProvider was asked for, but ONNX Runtime fell back to CPU"):
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


def test_generated_inputs_are_seeded(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    drawn = []
    for seed in ("0", "0", "1"):
        network = opened(path, seed=seed)
        network.load()
        drawn.append(network._arrays(2)["x"])
        network.close()
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_input_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    for name, text in (("none.npz", "no input file"), ("bad.npz", "cannot be read as .npz")):
        network = opened(matmul(tmp_path / "m.onnx"), inputs=str(tmp_path / name))
        with pytest.raises(ConfigError, match=text):
            network.load()
        network.close()


def test_an_input_of_no_supported_type_is_named(tmp_path: Path) -> None:
    path = save(
        tmp_path / "s.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.STRING, ["batch"])},
        {"y": (TensorProto.STRING, ["batch"])},
        {},
    )
    network = opened(path)
    with pytest.raises(ConfigError, match=r"input 'x' is a tensor\(string\)"):
        network.load()
    network.close()


@pytest.mark.parametrize("dtype", sorted(set(runtime._DTYPES.values())))
def test_every_supported_type_can_be_made(dtype: str) -> None:
    array = random_array(np.random.default_rng(0), dtype, (2, 3))
    assert array.shape == (2, 3)
    assert str(array.dtype) == dtype
