"""Models behind real HTTP and gRPC servers on loopback: true outputs, true times, and everything that can go wrong."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.kserve import network as kserve
from joulewatch_harness.runtimes.kserve.over_http import FLOOR_GAIN_S, FLOOR_S, HttpClient
from joulewatch_harness.runtimes.openai import network as openai
from joulewatch_harness.storage.journal import read_run
from support.commands import joulewatch
from support.kserve_server import Faults, KServeServer, Settings
from support.openai_server import OpenAIServer, OpenAISettings
from support.require import require_program
from support.servers import free_port

pytestmark = pytest.mark.integration

NAME = "radioml-vgg10"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def vgg10(cache: Path) -> Path:
    """The small built-in network's file."""
    return networks.build(NAME, "fp32", {"filters": "32"}).path


@pytest.fixture(scope="module")
def matmul(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four numbers in, three sums out: nothing to compute."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])

    weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [tensor("x", 4)], [tensor("y", 3)], [weights])
    path = tmp_path_factory.mktemp("matmul") / "matmul.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    program = require_program("openssl", "openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=test"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


def serve(transport: str, model: Path, settings: Settings, **more: Any) -> Any:
    """A server of the double: ``http`` or ``grpc``."""
    if transport == "http":
        return KServeServer(model, settings)
    pytest.importorskip("grpc", reason="needs the package grpcio")
    from support.kserve_grpc_server import KServeGrpcServer

    return KServeGrpcServer(model, settings, **more)


both = pytest.mark.parametrize("transport", ["http", "grpc"])


def loaded(server: Any, **options: str) -> kserve.KServeNetwork:
    network = kserve.open_network(server.settings.name, "native", {"url": server.url, **options})
    network.load()
    return network


def run(network: Any, batch: int, batches: int = 3) -> Phases:
    network.prepare(batch)
    phases = Phases()
    network.run(batches, phases)
    return phases


# KServe v2


@pytest.mark.parametrize(("transport", "binary"), [("http", "true"), ("http", "false"), ("grpc", "true")])
def test_outputs_through_a_server_are_the_network_s(vgg10: Path, transport: str, binary: str) -> None:
    """The same frames, the same logits, over the wire and back, in every encoding."""
    with serve(transport, vgg10, Settings(name=NAME, max_batch=64)) as server:
        network = loaded(server, filters="32", binary=binary)
        description = network.describe()
        assert description["runtime_version"] == "testserver 9.1"
        assert description["device"] == "cpu"
        assert description["reference"] == "radioml-vgg10 filters=32"
        assert description["tensors"] == ("binary" if binary == "true" else "json")
        assert "warning" not in description
        assert network.check()
        phases = run(network, 4)
        assert set(phases.spans) == {"pack", "wait", "unpack"}
        assert len(phases.batch_ends_ns) == 3
        assert ("inference-header-content-length" in server.heads[-1]) == (transport == "http" and binary == "true")
        with pytest.raises(UnsupportedBatchError, match="the largest batch is 64"):
            network.prepare(65)
        network.close()


@both
def test_wrong_weights_behind_the_right_name_are_found(vgg10: Path, transport: str) -> None:
    with serve(transport, vgg10, Settings(name=NAME)) as server:
        network = loaded(server, filters="32")
        server.settings.faults.nudge = 5.0
        with pytest.raises(NetworkError, match=r"outputs differ from radioml-vgg10 by .* set reference=none"):
            network.check()
        network.close()
        network = loaded(server, reference="none")
        assert network.check()
        network.close()


@both
def test_a_large_batch_is_transferred_completely(vgg10: Path, transport: str) -> None:
    """8 MiB a request: more than a socket takes in one piece, and than gRPC takes by default."""
    with serve(transport, vgg10, Settings(name=NAME)) as server:
        network = loaded(server, filters="32")
        run(network, 1024, 1)
        network.close()


def test_one_connection_serves_all_requests_and_is_replaced_if_the_server_closed_it(matmul: Path) -> None:
    with KServeServer(matmul, Settings(name="m")) as server:
        network = loaded(server)
        run(network, 2, 50)
        (connection,) = network._client._connections  # type: ignore[attr-defined]
        assert connection.opened == 1
        server.settings.faults.drop_once = True
        run(network, 2, 3)
        assert connection.opened == 2
        network.close()


@both
def test_several_requests_are_in_flight(matmul: Path, transport: str) -> None:
    with serve(transport, matmul, Settings(name="m", statistics=True, queue_ns=20_000_000)) as server:
        network = loaded(server, concurrency="4")
        server.backend.most_in_flight = 0
        phases = run(network, 1, 12)
        assert server.backend.most_in_flight == 4
        assert len(phases.latencies_ns) == 12
        assert min(phases.latencies_ns) >= 20_000_000
        # Four at a time: the phases add up to the time that passed, not to four times as much.
        queue_ns = phases.spans["queue"][1]
        assert queue_ns == pytest.approx(12 * 20e6 / 4, rel=0.3)
        assert phases.spans["execute"][0] == 12
        network.close()


def test_delayed_acknowledgements_of_a_naive_server_are_a_warning(
    matmul: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers and body in two writes, Nagle's algorithm on: 40 ms per request without any work."""
    slow_s: list[float] = []
    fast_s: list[float] = []
    faults = HttpClient.faults

    def recorded_faults(client: HttpClient, timed: Callable[[], float], small: bool) -> Sequence[str]:
        def recorded() -> float:
            spans_s = fast_s if client._connections[0].quick_ack else slow_s
            spans_s.append(timed())
            return spans_s[-1]

        return faults(client, recorded, small)

    monkeypatch.setattr(HttpClient, "faults", recorded_faults)
    with KServeServer(matmul, Settings(name="m", faults=Faults(naive=True))) as server:
        for _ in range(5):
            slow_s.clear()
            fast_s.clear()
            network = loaded(server)
            warning = network.describe().get("warning", "")
            network.close()
            if warning:
                break
            # Only times that a busy machine has blurred are no reason for a warning; measure again.
            assert (
                min(slow_s[-5:]) < FLOOR_S or statistics.median(slow_s[-5:]) < statistics.median(fast_s) + FLOOR_GAIN_S
            )
        # The kernel's 40 ms, and what a busy machine adds to each request: the text has the medians of this run.
        assert min(slow_s[-5:]) >= FLOOR_S and min(slow_s) < 0.05
        slow_ms, fast_ms = 1e3 * statistics.median(slow_s[-5:]), 1e3 * statistics.median(fast_s)
        assert f"every small request takes {slow_ms:.0f} ms, but {fast_ms:.2g} ms when" in warning
        assert "make the server set TCP_NODELAY or write once" in warning
        # A network that really takes 45 ms, behind a server that writes once, has no warning.
        server.settings.faults.naive = False
        server.settings.faults.silent_s = 0.045
        network = loaded(server)
        assert "warning" not in network.describe()
        network.close()


def test_a_server_that_closes_each_connection_is_a_warning(matmul: Path) -> None:
    with KServeServer(matmul, Settings(name="m", faults=Faults(close_each=True))) as server:
        network = loaded(server)
        assert "closes the connection after every answer" in network.describe()["warning"]
        run(network, 1)
        network.close()


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        (Faults(status=500), "HTTP 500: out of memory on the device: see the server's log"),
        (Faults(status=400), r"HTTP 400: out of memory on the device; the inputs of the model are x:FP32\[\?,4\]"),
        (Faults(status=429), "the server is busy"),
        (Faults(wrong_rows=1), r"output y is FP32\[3,3\] at batch 2, but the model's output is y:FP32\[\?,3\]"),
        (Faults(wrong_datatype="FP64"), "cannot be read: output 'y' has 3 values|y is FP64"),
        (Faults(cut=True), "the answer was cut off"),
        (Faults(silent_s=1.0), "no answer within 0.3 s: raise option timeout_s"),
    ],
)
def test_a_server_that_fails_is_named(matmul: Path, faults: Faults, text: str) -> None:
    with KServeServer(matmul, Settings(name="m")) as server:
        network = loaded(server, timeout_s="0.3")
        network.prepare(2)
        server.settings.faults = faults
        with pytest.raises(NetworkError, match=text) as caught:
            network.run(1, Phases())
        assert f"{server.url}/v2/models/m" in str(caught.value)
        server.settings.faults = Faults()
        network.run(1, Phases())
        network.close()


@both
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("zeros", "all outputs are zero: that does not prove a computation; set any_outputs=true"),
        ("stale", "outputs do not depend on the inputs"),
    ],
)
def test_outputs_that_were_not_computed_are_an_error(matmul: Path, transport: str, fault: str, text: str) -> None:
    """No reference is at hand for somebody's own model: the outputs must depend on the inputs."""
    with serve(transport, matmul, Settings(name="m")) as server:
        network = loaded(server)
        assert network.check()
        network.close()
        setattr(server.settings.faults, fault, True)
        network = loaded(server)
        with pytest.raises(NetworkError, match=text):
            network.check()
        network.close()
        network = loaded(server, any_outputs="true")
        assert network.check()
        network.close()


@both
def test_a_server_that_answers_from_its_cache_is_not_measured(matmul: Path, transport: str) -> None:
    """Triton's response cache: equal requests are answered in a tenth of the time, and the network rests."""
    with serve(transport, matmul, Settings(name="m", statistics=True, response_cache=True)) as server:
        with pytest.raises(ConfigError, match=r"equal requests from its response cache.*disable it"):
            loaded(server)
        server.settings.response_cache = False
        loaded(server).close()


@both
def test_keys_from_a_file_give_access_and_stay_secret(matmul: Path, tmp_path: Path, transport: str) -> None:
    headers = tmp_path / "headers.txt"
    with serve(transport, matmul, Settings(name="m", key="s3cret-t0ken")) as server:
        headers.write_text("Authorization: Bearer s3cret-t0ken\nHost: model.example.org\n")
        network = loaded(server, headers_file=str(headers))
        run(network, 1)
        network.close()
        headers.write_text("Authorization: Bearer wr0ng-s3cret\n")
        with pytest.raises(ConfigError, match=r"wrong key: .*: check the option headers_file") as caught:
            loaded(server, headers_file=str(headers))
        assert "s3cret" not in str(caught.value)


@both
def test_tls_is_trusted_by_its_authority_only(matmul: Path, certificate: tuple[Path, Path], transport: str) -> None:
    with serve(transport, matmul, Settings(name="m", certificate=certificate)) as server:
        with pytest.raises(ConfigError, match=r"certificate.* ca_file"):
            loaded(server)
        trusting = [{"ca_file": str(certificate[0])}, *([{"insecure": "true"}] if transport == "http" else [])]
        for options in trusting:
            network = loaded(server, **options)
            run(network, 64)
            run(network, 8192, 1)
            network.close()
        plain = server.url.replace("s://", "://")
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
            kserve.open_network("m", "native", {"url": plain, "timeout_s": "2"}).load()


# KServe v2 over gRPC only


def over_grpc(model: Path, settings: Settings | None = None, **more: Any) -> Any:
    return serve("grpc", model, settings or Settings(name="m"), **more)


def test_the_servers_times_and_configuration_come_over_grpc_too(matmul: Path) -> None:
    settings = Settings(name="m", statistics=True, max_batch=16, queue_ns=2_000_000)
    with over_grpc(matmul, settings) as server:
        network = loaded(server, version="1")
        description = network.describe()
        assert (description["runtime_version"], description["device"], description["max_batch"]) == (
            "testserver 9.1",
            "cpu",
            16,
        )
        assert description["server_statistics"] == "true"
        assert description["url"] == server.url
        phases = run(network, 2, 5)
        assert set(phases.spans) == {"pack", "wait", "unpack", "queue", "copy_in", "execute", "copy_out"}
        assert phases.spans["queue"] == [5, 10_000_000]
        with pytest.raises(UnsupportedBatchError, match="the largest batch is 16"):
            network.prepare(17)
        network.close()


def test_each_request_in_flight_has_a_separate_connection(matmul: Path) -> None:
    """By default gRPC would send all of them over one."""
    with over_grpc(matmul, Settings(name="m", queue_ns=20_000_000)) as server:
        network = loaded(server, concurrency="4")
        server.peers.clear()
        run(network, 1, 12)
        assert len(server.peers) == 4
        before = threading.active_count()
        network.close()
        assert threading.active_count() == before - 4
        network.close()


def test_a_request_is_the_same_bytes_until_the_next_batch_size(matmul: Path) -> None:
    """Serialised in prepare: a window holds none of it."""
    with over_grpc(matmul) as server:
        network = loaded(server)
        network.prepare(4)
        assert network._client.pack() is network._client.pack()
        network.close()


@pytest.mark.parametrize(
    ("faults", "text", "kind"),
    [
        (Faults(status=1), "gRPC INTERNAL: out of memory on the device: see the server's log", NetworkError),
        (Faults(status=1, code="UNKNOWN"), "gRPC UNKNOWN: .*see the server's log", NetworkError),
        (
            Faults(status=1, code="INVALID_ARGUMENT"),
            r"gRPC INVALID_ARGUMENT: .*; the inputs of the model are x:FP32",
            NetworkError,
        ),
        (
            Faults(status=1, code="UNAVAILABLE"),
            "gRPC UNAVAILABLE: .*; is the server running at that address, and",
            NetworkError,
        ),
        (Faults(status=1, code="RESOURCE_EXHAUSTED"), "the batch is larger than .* memory for", UnsupportedBatchError),
        (
            Faults(wrong_rows=1),
            r"output y is FP32\[3,3\] at batch 2, but the model's output is y:FP32\[\?,3\]",
            NetworkError,
        ),
        (Faults(wrong_datatype="FP64"), "cannot be read: output 'y' has 3 values", NetworkError),
        (Faults(cut=True), "cannot be read: ", NetworkError),
        (Faults(silent_s=1.0), "no answer within 0.3 s: raise option timeout_s", NetworkError),
    ],
)
def test_a_grpc_server_that_fails_is_named(matmul: Path, faults: Faults, text: str, kind: type[Exception]) -> None:
    with over_grpc(matmul) as server:
        network = loaded(server, timeout_s="0.3")
        network.prepare(2)
        server.settings.faults = faults
        with pytest.raises(NetworkError, match=text) as caught:
            network.run(1, Phases())
        assert type(caught.value) is kind
        assert f"{server.url}/m" in str(caught.value)
        server.settings.faults = Faults()
        network.run(1, Phases())
        network.close()


def test_a_message_that_the_server_does_not_take_loses_that_batch_size(vgg10: Path) -> None:
    """4 MiB is the default limit of a gRPC server, of Python's and others'."""
    with over_grpc(vgg10, Settings(name=NAME), largest_message=4 << 20) as server:
        network = loaded(server, filters="32")
        network.prepare(1024)
        with pytest.raises(
            UnsupportedBatchError, match=r"RESOURCE_EXHAUSTED: .*larger than max .*: the batch is larger"
        ):
            network.run(1, Phases())
        run(network, 8)
        network.close()


def test_typed_lists_instead_of_raw_tensors_are_read_with_a_warning(matmul: Path) -> None:
    with over_grpc(matmul, Settings(name="m", faults=Faults(json_outputs=True))) as server:
        network = loaded(server)
        description = network.describe()
        assert description["tensors"] == "typed lists"
        assert "answers in typed lists although binary outputs were requested" in description["warning"]
        assert network.check()
        network.close()


def test_a_restarted_grpc_server_is_used_again(matmul: Path) -> None:
    with over_grpc(matmul) as server:
        network = loaded(server, timeout_s="5")
        run(network, 2)
        port = server.port
    with pytest.raises(NetworkError, match="UNAVAILABLE"):
        network.run(1, Phases())
    with over_grpc(matmul, port=port):
        # gRPC waits a little before it tries again.
        until_s = time.monotonic() + 20
        while True:
            try:
                network.run(1, Phases())
                break
            except NetworkError:
                assert time.monotonic() < until_s
        network.close()


def test_proxies_of_the_environment_are_ignored(matmul: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    for transport in ("http", "grpc"):
        with serve(transport, matmul, Settings(name="m")) as server:
            loaded(server).close()


def test_a_server_that_is_not_grpc_is_named(matmul: Path) -> None:
    pytest.importorskip("grpc", reason="needs the package grpcio")
    url = f"grpc://127.0.0.1:{free_port()}"
    refused(url, rf"{url}/m: gRPC UNAVAILABLE: .*Connection refused.*is the server running at that address")
    with KServeServer(matmul, Settings(name="m")) as server:
        refused(server.url.replace("http", "grpc"), "is that its gRPC port, and in plain text|UNAVAILABLE")
    with over_grpc(matmul) as server:
        refused(server.url.replace("grpc", "http"), r"is not HTTP/1\.1: give the server's HTTP port")
        refused(server.url.replace("grpc", "grpcs"), r"is it a grpc:// server\?")
        refused(server.url, r"NOT_FOUND: .*unknown model 'n'.*known: m", "n")
        server.settings.ready = False
        refused(server.url, "is not ready .the server reports that it is not ready.: load it")


def refused(url: str, text: str, model: str = "m") -> None:
    with pytest.raises(ConfigError, match=text):
        kserve.open_network(model, "native", {"url": url}).load()


def test_a_server_that_is_not_kserve_is_named(matmul: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    refused(url, rf"{url}/v2: cannot be reached: Connection refused; is the server running")
    with OpenAIServer() as other:
        refused(other.url, "is not a KServe v2 server")
    with KServeServer(matmul, Settings(name="m")) as server:
        refused(server.url.replace("http", "https"), r"TLS failed .*: is it an http:// server")
        refused(server.url, r"unknown model 'n'.*known: m", "n")
    with _Greeter(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00 HTTP/2 perhaps\r\n") as greeter:
        refused(greeter.url, r"is not HTTP/1\.1: give the server's HTTP port")
    moved = b"HTTP/1.1 308 Moved\r\nLocation: https://user:pw@elsewhere/v2?k=v\r\nContent-Length: 0\r\n\r\n"
    with _Greeter(moved) as greeter:
        refused(greeter.url, "redirects to https://elsewhere/v2: give the final URL")


class _Greeter:
    """Says the same to everyone and hangs up."""

    def __init__(self, greeting: bytes) -> None:
        self._greeting = greeting
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self._greeting)


# OpenAI's API


def generating(server: OpenAIServer, **options: str) -> openai.OpenAINetwork:
    network = openai.open_network(server.settings.model, "native", {"url": server.url, "max_tokens": "16", **options})
    network.load()
    return network


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_prefill_and_decode_are_separate_phases(api: str) -> None:
    """120 ms to the first token, then 15 times 8 ms; the times are the server's, the tokens its own count."""
    with OpenAIServer(OpenAISettings(first_s=0.12, each_s=0.008)) as server:
        network = generating(server, api=api)
        assert network.check()
        sent = server.tokens_sent
        phases = run(network, 1, 3)
        assert phases.counts["output_tokens"] == 48 == server.tokens_sent - sent
        prefill_s, decode_s = (phases.spans[name][1] * 1e-9 / 3 for name in ("prefill", "decode"))
        assert 0.12 <= prefill_s < 0.3
        assert 0.12 <= decode_s < 0.4
        network.close()


def test_a_batch_is_that_many_concurrent_requests() -> None:
    with OpenAIServer(OpenAISettings(first_s=0.03, each_s=0.002)) as server:
        network = generating(server)
        phases = run(network, 8, 2)
        assert server.most_in_flight == 8
        assert phases.counts["output_tokens"] == 8 * 2 * 16
        assert len(phases.batch_ends_ns) == 2
        assert len({json.dumps(body) for body in server.settings.requests}) == len(server.settings.requests)
        network.close()


def test_tokens_are_counted_not_pieces() -> None:
    """Four tokens in each piece: counting pieces would report a quarter."""
    with OpenAIServer(OpenAISettings(tokens_per_piece=4)) as server:
        network = generating(server)
        assert run(network, 1, 2).counts["output_tokens"] == 32
        network.close()
        server.settings.usage = False
        with pytest.raises(ConfigError, match="does not count tokens"):
            generating(server)
        network = generating(server, count_chunks="true")
        assert run(network, 1, 2).counts == {"output_pieces": 8}
        network.close()
        server.settings.refuses_stream_options = True
        network = generating(server, count_chunks="true")
        assert run(network, 1, 2).counts == {"output_pieces": 8}
        network.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"status": 500}, "HTTP 500: the engine died: see the server's log"),
        ({"cut_after": 5}, "chat/completions: the stream was cut off"),
        ({"error_after": 5}, "the server stopped after 5 pieces: CUDA out of memory"),
        ({"streams": False}, "the answer is not an event stream"),
        ({"silent_s": 1.0}, "no answer within 0.3 s"),
        ({"each_s": 1.0}, "no answer within 0.3 s"),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_language_model_that_fails_is_named(change: dict[str, Any], text: str, batch: int) -> None:
    with OpenAIServer() as server:
        network = generating(server, timeout_s="0.3")
        network.prepare(batch)
        for key, value in change.items():
            setattr(server.settings, key, value)
        with pytest.raises(NetworkError, match=text):
            network.run(1, Phases())
        for key in change:
            setattr(server.settings, key, getattr(OpenAISettings(), key))
        network.run(1, Phases())
        network.close()


def test_a_key_of_the_language_model_stays_secret(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with OpenAIServer(OpenAISettings(key="sk-right")) as server:
        for text in ("sk-wr0ng", "sk-right"):
            key.write_text(f"{text}\n")
            if text == "sk-right":
                network = generating(server, api_key_file=str(key))
                run(network, 1)
                network.close()
                continue
            with pytest.raises(ConfigError, match=r"Incorrect API key provided: \*\*\*: check the option api_key_file"):
                generating(server, api_key_file=str(key))


# The whole command


def test_profile_reports_joules_per_token(tmp_path: Path) -> None:
    """A plan as in the examples: prefill, decode and tokens in the journal, joules per token in the result."""
    with OpenAIServer(OpenAISettings(model="tiny:1b", first_s=0.01, each_s=0.002)) as server:
        (tmp_path / "plan.yaml").write_text(
            f"""
preset: quick
rounds: 3
window_s: 1
batch_sizes: [1, 2]
idle_s: 1
warmup_s: 0.1
max_warmup_s: 0.3
configurations:
  - network: tiny:1b
    runtime: openai
    options: {{url: "{server.url}/v1", max_tokens: 12}}
"""
        )
        done = joulewatch("profile", "plan.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "tiny:1b/openai/native" in done.out
    assert "Output tokens (per inf: per inference; total, net:" in done.out
    (folder,) = (tmp_path / "runs").iterdir()
    measured = [item for item in read_run(folder).windows if item.kind == "measure"]
    assert len(measured) == 6
    for item in measured:
        assert item.counts["output_tokens"] == 12 * item.inferences
        assert set(item.phases) == {"prefill", "decode", "other"}
    result = json.loads((folder / "result.json").read_text())
    for group in result["results"]:
        tokens = group["counts"]["output_tokens"]
        joules = group["energy"]["total"]["gross"]["value"]
        assert tokens["per_inference"] == 12
        assert tokens["gross"]["value"] == pytest.approx(joules / 12)


@pytest.mark.parametrize(
    ("transport", "code", "reason", "text"),
    [
        ("http", "", "network_error", "HTTP 500: out of memory on the device"),
        ("grpc", "RESOURCE_EXHAUSTED", "unsupported_batch", "gRPC RESOURCE_EXHAUSTED: out of memory on the device"),
    ],
)
def test_a_sweep_continues_after_a_batch_that_the_server_cannot_run(
    matmul: Path, tmp_path: Path, transport: str, code: str, reason: str, text: str
) -> None:
    """Out of memory from batch 8 on, and a model so slow that a call would be one request: four stay in flight."""
    faults = Faults(status=500, code=code, status_from_batch=8, silent_s=0.1)
    with serve(transport, matmul, Settings(name="m", faults=faults)) as server:
        done = joulewatch(
            *(
                "profile",
                "--network",
                "m",
                "--runtime",
                "kserve",
                "--preset",
                "quick",
                "--rounds",
                "3",
                "--window",
                "1",
                "--idle",
                "0",
            ),
            *("--option", f"url={server.url}", "--option", "concurrency=4", "--batch-sizes", "1,8"),
            folder=tmp_path,
        )
        assert server.backend.most_in_flight == 4, done.err
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    record = read_run(folder)
    notes = [item for item in record.notes if item.reason == reason]
    assert [item.batch_size for item in notes] == [8], notes
    (note,) = notes
    assert text in note.text
    assert "Traceback" not in done.err
    (configuration,) = record.configurations
    assert configuration.runtime_version == "testserver 9.1"
    measured = [item for item in record.windows if item.kind == "measure"]
    assert {item.batch_size for item in measured} == {1}
    for item in measured:
        assert item.batches / item.duration_s > 20, "one at a time makes ten a second"
        assert item.latency is not None
        assert item.latency.p50_s >= 0.1


@pytest.mark.parametrize("runtime", ["kserve", "openai"])
def test_a_server_that_is_not_there_ends_the_command_before_anything_is_measured(runtime: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = joulewatch("profile", "--network", "m", "--runtime", runtime, "--option", f"url={url}", folder=tmp_path)
    assert done.code == 2
    assert f"{url}/v" in done.err
    assert "Connection refused" in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.glob("runs/*"))
