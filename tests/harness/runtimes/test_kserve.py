"""KServe v2 without a network: what is written, what is read, what is refused. Servers: tests/integration."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.kserve import network as kserve
from joulewatch_harness.runtimes.kserve import over_http
from joulewatch_harness.runtimes.kserve.client import Outcome
from joulewatch_harness.runtimes.kserve.options import Options
from joulewatch_harness.runtimes.kserve.over_http import pack, unpack
from joulewatch_harness.runtimes.kserve.server_times import ServerTimes, server_times
from joulewatch_harness.runtimes.kserve.tensors import Tensor, described
from joulewatch_harness.runtimes.shared.http import Answer, Endpoint
from support.kserve_connection import LENGTH, URL, FakeConnection, answer, metadata, outputs

HTML = Answer(200, {"content-type": "text/html"}, b"<html>It works!")


def endpoint(**options: str) -> Endpoint:
    return Options.parse(options).where


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConnection:
    """The one connection that a network under test gets."""
    connection = FakeConnection(endpoint(url=URL))
    monkeypatch.setattr(over_http, "Connection", lambda where: connection)
    return connection


def opened(**options: str) -> kserve.KServeNetwork:
    return kserve.open_network("m", "native", {"url": URL, **options})


def tensor(shape: list[int], **values: Any) -> dict[str, Any]:
    return {"name": "y", "datatype": "FP32", "shape": shape, **values}


def sized(count: int) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": count}}


# What is written and read


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", np.array([[1.5, -2.0]], np.float32)),
        ("FP16", np.array([[1.5, -2.0]], np.float16)),
        ("FP64", np.array([0.1])),
        ("INT8", np.array([[-128], [127]], np.int8)),
        ("UINT8", np.array([255], np.uint8)),
        ("INT64", np.array([[2**40, -1]], np.int64)),
        ("BOOL", np.array([True, False])),
    ],
)
def test_binary_tensors_are_packed_and_unpacked(datatype: str, values: np.ndarray) -> None:
    """The bytes of a request, answered as they are, are the same array."""
    parts, headers = pack([(Tensor("x", datatype, values.shape), values)], (), binary=True)
    message = json.loads(bytes(parts[0]))
    assert int(headers["Inference-Header-Content-Length"]) == len(parts[0])
    assert message["inputs"] == [
        {
            "name": "x",
            "shape": list(values.shape),
            "datatype": datatype,
            "parameters": {"binary_data_size": values.nbytes},
        }
    ]
    assert message["parameters"] == {"binary_data_output": True}
    found = unpack(outputs(message["inputs"][0], raw=bytes(parts[1])))
    got = found["x"]
    assert (got.datatype, got.shape, got.form) == (datatype, values.shape, "binary")
    assert got.values.dtype == values.dtype
    assert np.array_equal(got.values, values)


def test_bfloat16_rounds_to_the_nearest_and_comes_back_wide() -> None:
    values = np.array([1.0, -2.5, 0.0, 1.0 + 2**-9, 1.0 + 3 * 2**-9, 1.0 + 2**-8], np.float32)
    parts, _ = pack([(Tensor("x", "BF16", (-1,)), values)], (), binary=True)
    content = {"name": "x", "shape": [6], "datatype": "BF16", "parameters": {"binary_data_size": 12}}
    got = unpack(outputs(content, raw=bytes(parts[1])))["x"].values
    assert got.dtype == np.float32
    assert got.tolist() == [1.0, -2.5, 0.0, 1.0, 1.0 + 2**-7, 1.0]


def test_large_arrays_are_not_copied() -> None:
    values = np.zeros((4, 1000), np.float32)
    parts, _ = pack([(Tensor("x", "FP32", (-1, 1000)), values)], (), binary=True)
    values[3, 999] = 7.0
    assert np.frombuffer(parts[1], np.float32)[-1] == 7.0


def test_json_holds_the_numbers_themselves() -> None:
    values = np.array([[1.5, 2.5]], np.float32)
    parts, headers = pack([(Tensor("x", "FP32", (-1, 2)), values)], (Tensor("y", "FP32", (-1, 2)),), binary=False)
    message = json.loads(bytes(parts[0]))
    assert len(parts) == 1
    assert headers == {"Content-Type": "application/json"}
    assert message["inputs"][0]["data"] == [1.5, 2.5]
    assert message["outputs"] == [{"name": "y", "parameters": {"binary_data": False}}]
    got = unpack(outputs({"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}))["x"]
    assert got.form == "json"
    assert got.values.tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Answer(200, {}, b"<html>"), "Expecting value"),
        (answer([1]), "no list of outputs"),
        (answer({"outputs": [{"name": "y"}]}), "without name, datatype or shape"),
        (outputs(tensor([2])), "'y' has no data"),
        (outputs(tensor([2], data=[1.0])), "reshape"),
        (outputs(tensor([2], **sized(8)), raw=b"1234"), "has 4 of 8 bytes"),
        (outputs(tensor([2], **sized(4)), raw=b"1234"), "has 1 value,"),
        (Answer(200, {LENGTH: "99"}, b"{}"), "is '99', but the body has 2 bytes"),
        (Answer(200, {LENGTH: "x"}, b"{}"), "is 'x'"),
    ],
)  # fmt: skip
def test_broken_answers_are_named(given: Answer, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        unpack(given)


def test_statistics_are_the_model_s_own() -> None:
    def stat(name: str, count: int, ns: int) -> dict[str, Any]:
        spans = ("queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "inference_stats": {
                "success": {"count": count, "ns": 1},
                **{key: {"count": count, "ns": ns} for key in spans},
            },
        }

    content = {"model_stats": [stat("m", 3, 10), stat("other", 99, 999), stat("m", 2, 5)]}
    assert server_times(content, "m") == ServerTimes(5, {"queue": 15, "copy_in": 15, "execute": 15, "copy_out": 15})
    for nothing in (None, [], {}, {"model_stats": "x"}, {"model_stats": [{"name": "m"}, 3]}, {"model_stats": []}):
        assert server_times(nothing, "m") is None
    later, earlier = ServerTimes(5, {"queue": 9}), ServerTimes(3, {"queue": 2})
    assert later.since(earlier) == ServerTimes(2, {"queue": 7})
    assert earlier.since(later) == ServerTimes(0, {})


# The network


def test_a_network_behind_a_fake_server(fake: FakeConnection) -> None:
    asked = Configuration(name="n", network="m", runtime="kserve", precision="native", options={"url": URL})
    network = open_network(asked)
    network.load()
    loaded = as_loaded(asked, network.describe())
    assert (loaded.runtime, loaded.runtime_version, loaded.provider) == ("kserve", "fake 1.2", "onnxruntime_onnx")
    assert loaded.details["inputs"] == "x:FP32[?,3]"
    assert loaded.details["model_versions"] == "1 3"
    assert loaded.details["tensors"] == "binary"
    assert "warning" not in loaded.details
    assert network.check()  # type: ignore[attr-defined]
    network.prepare(4)
    phases = Phases()
    network.run(3, phases)
    assert [message["inputs"][0]["shape"] for message in fake.sent[-3:]] == [[4, 3]] * 3
    assert {name: count for name, (count, _) in phases.spans.items()} == {"pack": 3, "wait": 3, "unpack": 3}
    assert len(phases.batch_ends_ns) == 3
    network.close()
    network.close()


def test_several_requests_in_flight_share_the_batches(fake: FakeConnection) -> None:
    network = opened(concurrency="3")
    network.load()
    network.prepare(2)
    before = len(fake.sent)
    phases = Phases()
    network.run(10, phases)
    assert len(fake.sent) - before == 10
    assert phases.spans["wait"][0] == 10
    assert len(phases.latencies_ns) == 10
    network.run(2, MarksOnly())
    assert len(fake.sent) - before == 12
    network.close()


def test_an_error_in_one_of_several_lanes_is_reported(fake: FakeConnection) -> None:
    network = opened(concurrency="3")
    network.load()
    network.prepare(2)
    fake.inferred = answer({"error": "the engine died"}, 500)
    with pytest.raises(NetworkError, match="HTTP 500: the engine died: see the server's log"):
        network.run(10, Phases())
    network.close()


def test_the_servers_own_times_become_phases(fake: FakeConnection) -> None:
    """Of the wait, what the server accounts for; never more than was waited."""
    count = 0

    def stats() -> Answer:
        nonlocal count
        count += 10
        spans = {"queue": 100, "compute_input": 200, "compute_infer": 10**12, "compute_output": 300}
        content = {"success": {"count": count, "ns": 0}, **{key: {"ns": ns * count} for key, ns in spans.items()}}
        return answer({"model_stats": [{"name": "m", "inference_stats": content}]})

    plain = fake.request
    fake.request = lambda method, path, *rest: stats() if path.endswith("/stats") else plain(method, path, *rest)  # type: ignore[method-assign]
    network = opened()
    network.load()
    assert network.describe()["server_statistics"] == "true"
    network.prepare(1)
    phases = Phases()
    network.run(10, phases)
    spent = {name: total for name, (_, total) in phases.spans.items()}
    assert set(spent) == {"pack", "wait", "unpack", "queue", "copy_in", "execute", "copy_out"}
    assert all(total >= 0 for total in spent.values())
    assert spent["execute"] > 0
    marks = MarksOnly()
    before = count
    network.prepare(1)
    network.run(10, marks)
    assert not marks.spans
    assert len(marks.batch_ends_ns) == 10
    assert count == before, "statistics are not asked for where no phases are taken"
    network = opened(server_stats="false")
    network.load()
    assert network.describe()["server_statistics"] == "false"
    network.close()


def test_batches_that_the_model_does_not_take(fake: FakeConnection) -> None:
    fake.pages["/v2/models/m/config"] = answer({"max_batch_size": 8, "instance_group": [{"kind": "KIND_GPU"}]})
    network = opened()
    network.load()
    assert network.describe()["device"] == "gpu"
    network.prepare(8)
    with pytest.raises(UnsupportedBatchError, match="the largest batch is 8"):
        network.prepare(9)
    network.close()
    fake.pages["/v2/models/m"] = answer(metadata(4))
    del fake.pages["/v2/models/m/config"]
    network.load()
    assert network.check()
    with pytest.raises(UnsupportedBatchError, match="fixed batch axis of 4, not 8"):
        network.prepare(8)
    network.prepare(4)
    fake.inferred = answer({"error": "too large"}, 413)
    with pytest.raises(UnsupportedBatchError, match="HTTP 413"):
        network.run(1, Phases())
    network.close()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"name": "z", "datatype": "FP32", "shape": [2, 3]}, "no output 'y', only z"),
        ({"name": "y", "datatype": "FP16", "shape": [2, 3]}, r"y is FP16\[2,3\] at batch 2, but .* y:FP32\[\?,3\]"),
        ({"name": "y", "datatype": "FP32", "shape": [2, 4]}, r"y is FP32\[2,4\]"),
        ({"name": "y", "datatype": "FP32", "shape": [1, 3]}, r"y is FP32\[1,3\] at batch 2"),
        ({"name": "y", "datatype": "FP32", "shape": [6]}, r"y is FP32\[6\]"),
    ],
)
def test_outputs_that_differ_from_the_metadata_are_an_error(
    fake: FakeConnection, content: dict[str, Any], text: str
) -> None:
    network = opened()
    network.load()
    network.prepare(2)
    fake.inferred = outputs({**content, "data": [0.5] * int(np.prod(content["shape"]))})
    with pytest.raises(NetworkError, match=text):
        network.run(1, Phases())
    fake.inferred = outputs({"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [float("nan")] * 6})
    with pytest.raises(NetworkError, match="outputs do not depend on the inputs"):
        network.check()
    assert network.describe()["not_finite_outputs"].startswith("y: NaN or infinite")
    network.close()


@pytest.mark.parametrize(
    ("path", "page", "text"),
    [
        ("/v2", HTML, r"is not a KServe v2 server \(HTTP 200, text/html, begins"),
        ("/v2", answer({"error": "no"}, 404), "give its base URL"),
        ("/v2", answer({"error": "who are you"}, 401), "HTTP 401: who are you: check the option headers_file"),
        ("/v2", answer({"name": "s", "extensions": ["health"]}), "does not support binary tensors .*binary=false"),
        ("/v2/models/m", answer({"error": "unknown model"}, 400), "HTTP 400: unknown model; the network's name"),
        ("/v2/models/m", answer({"error": "boom"}, 500), "HTTP 500: boom: see the server's log"),
        ("/v2/models/m", answer(metadata(inputs=[])), "does not report the model's inputs"),
        ("/v2/models/m", answer(metadata(inputs=[{"name": "x"}])), "inputs without name, datatype or shape"),
        ("/v2/models/m", answer(metadata(inputs=[tensor([-1], datatype="BYTES")])), "has the unsupported type BYTES"),
        ("/v2/models/m/ready", answer({"error": "loading"}, 503), "is not ready .HTTP 503: loading.: load it"),
    ],
)  # fmt: skip
def test_servers_that_cannot_be_used_are_named(fake: FakeConnection, path: str, page: Answer, text: str) -> None:
    fake.pages[path] = page
    network = opened()
    with pytest.raises(ConfigError, match=text) as caught:
        network.load()
    assert URL in str(caught.value)
    assert fake.closed == 1, "what cannot be loaded leaves no connection open"


def test_a_model_that_is_not_there_gets_the_nearest_name(fake: FakeConnection) -> None:
    fake.pages["/v2/repository/index"] = answer([{"name": "m", "version": "1"}, {"name": "resnet50"}])
    network = kserve.open_network("resnet5O", "native", {"url": URL})
    with pytest.raises(ConfigError, match="unknown model 'resnet5O'; did you mean resnet50"):
        network.load()
    network = kserve.open_network("m", "native", {"url": URL, "version": "7"})
    with pytest.raises(ConfigError, match="the server has m, but it is not ready in that version"):
        network.load()


def test_the_batch_may_be_another_axis(fake: FakeConnection) -> None:
    """The first axis of the outputs is then not the batch."""
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, 4]},
        {"name": "sr", "datatype": "INT64", "shape": [1]},
    ]
    given = [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}]
    fake.pages["/v2/models/m"] = answer(metadata(inputs=inputs, outputs=given))
    fake.inferred = outputs({"name": "y", "datatype": "FP32", "shape": [5, 3], "data": [0.5] * 15})
    network = opened(batch_axis="x:1", dims="x.0=5", values="sr=16000")
    network.load()
    assert network.describe()["batch_axes"] == "x:1 sr:none"
    network.prepare(3)
    network.run(1, Phases())
    assert [item["shape"] for item in fake.sent[-1]["inputs"]] == [[5, 3, 4], [1]]
    network.close()


def test_sizes_that_the_server_leaves_open(fake: FakeConnection, tmp_path: Path) -> None:
    shape = {"datatype": "FP32", "shape": [-1, -1]}
    fake.pages["/v2/models/m"] = answer(metadata(inputs=[{"name": "x", **shape}], outputs=[{"name": "y", **shape}]))
    network = opened()
    with pytest.raises(ConfigError, match=r"dimension 1 of input 'x' has no size: set it with --option dims=x\.1=N"):
        network.load()
    network = opened(dims="x.1=5")
    network.load()
    network.prepare(2)
    network.run(1, Phases())
    assert fake.sent[-1]["inputs"][0]["shape"] == [2, 5]
    np.savez(tmp_path / "in.npz", x=np.arange(6, dtype=np.float32).reshape(1, 6))
    network = opened(inputs=str(tmp_path / "in.npz"))
    network.load()
    network.prepare(3)
    network.run(1, Phases())
    assert fake.sent[-1]["inputs"][0]["shape"] == [3, 6]
    np.savez(tmp_path / "in.npz", z=np.zeros((1, 6), np.float32))
    with pytest.raises(ConfigError, match=r"in\.npz: unknown input 'z'"):
        opened(inputs=str(tmp_path / "in.npz")).load()


def test_half_precision_needs_binary(fake: FakeConnection) -> None:
    fake.pages["/v2/models/m"] = answer(metadata(inputs=[{"name": "x", "datatype": "FP16", "shape": [-1, 3]}]))
    with pytest.raises(ConfigError, match="input 'x' is FP16, which JSON cannot represent"):
        opened(binary="false").load()


def test_an_error_on_binary_tensors_names_the_alternatives(fake: FakeConnection) -> None:
    """MLServer 1.7 lists no extensions, and answers binary tensors with a traceback and status 500."""
    fake.pages["/v2"] = answer({"name": "mlserver", "version": "1.7.1", "extensions": []})
    fake.inferred = Answer(500, {"content-type": "text/plain"}, b"Traceback (most recent call last)")
    network = opened()
    with pytest.raises(NetworkError, match=r"HTTP 500.*try binary=false, or its gRPC port"):
        network.load()


def test_json_outputs_instead_of_binary_are_a_warning(fake: FakeConnection) -> None:
    fake.inferred = outputs({"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]})
    network = opened()
    network.load()
    content = network.describe()
    assert content["tensors"] == "json"
    assert "answers in JSON although binary outputs were requested" in content["warning"]
    network.close()


# Messages of gRPC

TRITONCLIENT: Mapping[str, str] = {
    "ModelInferRequest": (
        "0a016d1201312a0d0a01781204465033321a02020332030a01793a18000000000000803f0000004000004040000080400000a040"
    ),
    "ModelInferResponse": "0a016d1201312a0d0a01791204465033321a02020132080000c03f000000c0",
    "typed": (
        "0a016d2a200a01791204465036341a01022a123a10000000000000e03f00000000000010402a1a0a017a1204494e54381a01012a0c120a"
        "f9ffffffffffffffff012a120a01621204424f4f4c1a01022a040a0201002a1c0a0175120655494e5436341a01012a0c2a0a8080808080"
        "80808080012a1b0a01691205494e5436341a01012a0c1a0a8080808080e0ffffff012a130a0177120555494e54381a01012a042202c801"
        "2a140a01661204465033321a01012a0632040000803e"
    ),
    "ServerMetadata": "0a06747269746f6e1206322e35312e301a0a73746174697374696373",
    "ModelMetadata": (
        "0a016d1201311201331a106f6e6e7872756e74696d655f6f6e6e7822160a01781204465033321a0bffffffffffffffffff01032a160a01"
        "791204465033321a0bffffffffffffffffff0101"
    ),
    "ModelReady": "0801",
    "ModelConfig": "0a220a016d12017020083a0a0a016710021a010020018a010b6f6e6e7872756e74696d65",
    "ModelStatistics": (
        "0a520a016d1201312009280532460a0808051080c8afa025120808061081c8afa0251a0808071082c8afa025220808081083c8afa0252a"
        "0808091084c8afa0253208080a1085c8afa0253a08080b1086c8afa025"
    ),
    "RepositoryIndex": "0a0d0a016d1201311a055245414459",
}
"""What tritonclient 2.73.0 wrote with NVIDIA's own message classes: our description of them must read and write it."""


def over_grpc(model: str = "m", **options: str) -> Any:
    """A client that has no server: what it sends is answered by ``answers``."""
    pytest.importorskip("grpc", reason="needs the package grpcio")
    from joulewatch_harness.runtimes.kserve.over_grpc import GrpcClient

    where = endpoint(**{"url": "grpc://server:8001"} | options)
    return GrpcClient(where, model, "1")


def answering(monkeypatch: pytest.MonkeyPatch, **answers: bytes) -> Any:
    """A client whose server answers these bytes to these methods, without a network."""
    client = over_grpc()

    class Channel:
        def unary_unary(self, path: str) -> Any:
            service, _, method = path[1:].partition("/")
            assert service == "inference.GRPCInferenceService"
            return lambda request, **_: answers[method]

        def close(self) -> None:
            pass

    monkeypatch.setattr(client, "_channel", Channel)
    client.open(1)
    return client


def test_a_grpc_request_equals_that_of_tritonclient() -> None:
    client = over_grpc()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    client.prepare([(Tensor("x", "FP32", (-1, 3)), values)], (Tensor("y", "FP32", (-1, 1)),))
    assert client.pack().hex() == TRITONCLIENT["ModelInferRequest"]
    assert client.pack() is client.pack(), "serialised once, before the window"


def test_raw_and_typed_answers_of_grpc_are_read() -> None:
    client = over_grpc()
    (found,) = client.unpack(bytes.fromhex(TRITONCLIENT["ModelInferResponse"])).values()
    assert (found.datatype, found.shape, found.form) == ("FP32", (2, 1), "binary")
    assert found.values.tolist() == [[1.5], [-2.0]]
    typed = client.unpack(bytes.fromhex(TRITONCLIENT["typed"]))
    assert {item.form for item in typed.values()} == {"typed lists"}
    assert {name: (str(item.values.dtype), item.values.tolist()) for name, item in typed.items()} == {
        "y": ("float64", [0.5, 4.0]),
        "z": ("int8", [-7]),
        "b": ("bool", [True, False]),
        "u": ("uint64", [2**63]),
        "i": ("int64", [-(2**40)]),
        "w": ("uint8", [200]),
        "f": ("float32", [0.25]),
    }


def test_answers_over_grpc_equal_those_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, types and numbers of fields are tritonclient's; the network gets the same data as from JSON."""
    client = answering(monkeypatch, **{name: bytes.fromhex(text) for name, text in TRITONCLIENT.items()})
    assert client.ask("server").data == {"name": "triton", "version": "2.51.0", "extensions": ["statistics"]}
    content = client.ask("model").data
    assert (content["name"], content["versions"], content["platform"]) == ("m", ["1", "3"], "onnxruntime_onnx")
    assert described(content, "inputs", "") == (Tensor("x", "FP32", (-1, 3)),)
    assert described(content, "outputs", "") == (Tensor("y", "FP32", (-1, 1)),)
    assert client.ask("ready").outcome is Outcome.DONE
    config = client.ask("config").data
    assert (config["max_batch_size"], config["backend"]) == (8, "onnxruntime")
    assert [group["kind"] for group in config["instance_group"]] == ["KIND_GPU"]
    spans = {"queue": 10**10 + 2, "copy_in": 10**10 + 3, "execute": 10**10 + 4, "copy_out": 10**10 + 5}
    assert server_times(client.ask("statistics").data, "m") == ServerTimes(5, spans, cache_hits=11)
    assert client.ask("index").data["models"] == [{"name": "m", "version": "1", "state": "READY"}]


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (b"\xff\xff", "it is not a valid ModelInferResponse"),
        (bytes.fromhex("2a0d0a01791204465033321a020201" + "320400000000" * 2), "has 2 raw tensors for 1 output"),
        (
            bytes.fromhex("2a0d0a01791204465033321a020201" + "320400000000"),
            "'y' has 1 value, but its shape .* requires 2",
        ),
        (bytes.fromhex("2a0c0a01791204465031361a0101"), "'y' is FP16 and not raw"),
        (bytes.fromhex("2a0c0a01791204465033321a0102"), "reshape"),
    ],
)
def test_broken_answers_of_grpc_are_named(broken: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        over_grpc().unpack(broken)


def test_a_request_that_protobuf_cannot_hold_loses_that_batch_size() -> None:
    values = np.broadcast_to(np.float32(0), (1 << 20, 600))  # 2.3 GiB that are nowhere
    with pytest.raises(UnsupportedBatchError, match=r"a request of 2\.34 GiB: the limit of protobuf is 2 GiB"):
        over_grpc().prepare([(Tensor("x", "FP32", (-1, 600)), values)], ())


def test_a_missing_grpcio_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "joulewatch_harness.runtimes.kserve.over_grpc", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'joulewatch\[grpc\]'"):
        kserve.open_network("m", "native", {"url": "grpc://server:8001"})
    kserve.open_network("m", "native", {"url": "http://server:8000"})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "grpc://server"}, "write it as grpc://host:port, without a path"),
        ({"url": "grpc://server:8001/v2"}, "write it as grpc://host:port, without a path"),
        ({"url": "grpcs://server:8001", "insecure": "true"}, "for grpcs:// set ca_file"),
        (
            {"url": "grpcs://server:8001", "ca_file": "none.pem"},
            r"option ca_file: none\.pem cannot be read: No such file",
        ),
        ({"url": "grpc://server:8001", "binary": "false"}, "over gRPC tensors are always binary"),
    ],
)
def test_bad_options_of_grpc_are_named(
    options: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc", reason="needs the package grpcio")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=text):
        kserve.open_network("m", "native", options)


def test_headers_that_grpc_cannot_send_are_named_without_their_values(tmp_path: Path) -> None:
    path = tmp_path / "headers.txt"
    for name in ("grpc-timeout", "token-bin", "a+b"):
        path.write_text(f"{name}: s3cret\n")
        with pytest.raises(ConfigError, match="gRPC cannot send a header") as caught:
            over_grpc(headers_file=str(path))
        assert "s3cret" not in str(caught.value)
    path.write_text("Host: model.example.org\nAuthorization: Bearer s3cret\n")
    assert over_grpc(headers_file=str(path))._headers == (("authorization", "Bearer s3cret"),)


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": ""}, "option url: is required"),
        ({"url": "server:8000"}, "write it as http://host:port or grpc://host:port"),
        ({"url": "http://server:port"}, "is not a valid URL"),
        ({"url": "http://me:secret@server:8000"}, "must not contain a user name or a password"),
        ({"urll": "x"}, "did you mean url"),
        ({"concurrency": "0"}, "option concurrency: must be an integer >= 1 and <= 1024, got '0'"),
        ({"concurrency": "5000"}, "option concurrency: must be an integer >= 1 and <= 1024, got '5000'"),
        ({"binary": "maybe"}, "option binary: must be true or false"),
        ({"timeout_s": "0"}, "option timeout_s: must be a number > 0 and <= 86400 .seconds., got '0'"),
        ({"timeout_s": "soon"}, "option timeout_s: must be a number > 0 and <= 86400 .seconds., got 'soon'"),
        ({"dims": "x.1"}, "option dims: must be NAME=VALUE"),
        ({"ca_file": "a.pem", "insecure": "true"}, "contradict each other"),
        ({"headers_file": "none.txt"}, r"headers_file: none\.txt cannot be read: No such file"),
        ({"url": "https://s", "ca_file": "none.pem"}, r"option ca_file: none\.pem cannot be read: No such file"),
        ({"reference": "radioml-vgg11"}, "did you mean radioml-vgg10"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=text) as caught:
        opened(**options)
    assert "secret" not in str(caught.value)


def test_options_of_the_reference_are_taken_with_its_name() -> None:
    with pytest.raises(ConfigError, match="unknown option 'filters'"):
        opened(filters="32")
    parsed = Options.of("radioml-vgg10", {"url": URL, "filters": "32"})
    assert (parsed.reference, parsed.reference_options) == ("radioml-vgg10", {"filters": "32"})
    assert Options.of("radioml-vgg10", {"url": URL, "reference": "none"}).reference == ""


# The client


def test_headers_of_the_user_win_and_are_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "headers.txt"
    path.write_text("# for the ingress\nhost: model.example.org\nAuthorization: Bearer s3cret-t0ken\n\n")
    where = endpoint(url=f"{URL}/base/", headers_file=str(path))
    head = where.head("POST", "/v2", 3, {"Content-Type": "x"}).decode()
    assert head.startswith("POST /base/v2 HTTP/1.1\r\n")
    assert "\r\nhost: model.example.org\r\n" in head
    assert "Host: server" not in head
    assert "\r\nContent-Length: 3\r\n" in head
    assert head.endswith("\r\n\r\n")
    assert "s3cret" not in repr(where)
    assert where.masked("HTTP 401: bad token s3cret-t0ken") == "HTTP 401: bad token ***"
    for line in ("Authorization", "two words: x", ": x", "Näme: x"):
        path.write_text(f"A: b\n{line}\n")
        with pytest.raises(ConfigError, match=r"headers\.txt, line 2: must be 'Name: value'") as caught:
            endpoint(url=URL, headers_file=str(path))
        assert line not in str(caught.value).replace("'Name: value'", "")


def test_a_certificate_file_without_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca_file: .*ca\.pem does not contain a certificate"):
        endpoint(url="https://s", ca_file=str(tmp_path / "ca.pem"))
    where = endpoint(url="https://s", insecure="true")
    assert where.tls is not None
    assert where.tls.verify_mode == ssl.CERT_NONE
    assert (where.port, where.authority) == (443, "s")
    assert endpoint(url="http://[::1]:80").authority == "[::1]"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (answer({"error": "a  b\nc"}, 400), "HTTP 400: a b c"),
        (answer({"error": {"message": "bad", "type": "t"}}, 400), "HTTP 400: bad"),
        (answer({"detail": [{"msg": "field required"}]}, 422), 'HTTP 422: [{"msg": "field required"}]'),
        (Answer(502, {}, b""), "HTTP 502, no content type, empty"),
        (Answer(502, {"content-type": "text/plain; q=x"}, b"Bad \n Gate"), 'HTTP 502, text/plain, begins "Bad Gate"'),
    ],
)  # fmt: skip
def test_the_summary_of_an_answer(given: Answer, text: str) -> None:
    assert given.summary() == text
