"""Services that never finish an answer. Loopback only."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from joulewatch_exporter.collectors.redfish import exchange
from joulewatch_exporter.collectors.redfish.client import MAX_ALL_VALUES, Client, Memory
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector
from joulewatch_exporter.collectors.redfish.target import RedfishOptions, RedfishTarget
from joulewatch_exporter.errors import SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.sampling.family import Family
from support.waiting import wait_until

Answer = Callable[[socket.socket], None]


@contextmanager
def hostile(answer: Answer) -> Iterator[str]:
    """Serve every connection with ``answer`` after its first request; yield the URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(65536):
                answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def dripping(head: bytes, piece: bytes) -> Answer:
    """Return an answer of one piece every 20 ms, for ever."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            threading.Event().wait(0.02)
            connection.sendall(piece)

    return answer


DRIPPING = {
    "status line": dripping(b"", b"H"),
    "headers": dripping(b"HTTP/1.1 200 OK\r\n", b"X"),
    "header after header": dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "chunk size": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunks": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "trailers": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@contextmanager
def client_of(url: str, span_s: float) -> Iterator[Client]:
    client = Client(RedfishTarget(name="bmc", url=url, insecure=True), Memory())
    client.begin(span_s)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize("kind", DRIPPING)
def test_one_deadline_ends_an_exchange_whatever_drips(kind: str) -> None:
    with hostile(DRIPPING[kind]) as url, client_of(url, 0.3) as client:
        began_s = time.monotonic()
        with pytest.raises((SensorTimeoutError, SensorGlitchError)):
            client.get("/redfish/v1/")
        assert time.monotonic() - began_s < 3.0


def test_an_endless_100_continue_ends_at_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full speed it would cost a processor until the deadline."""
    monkeypatch.setattr(exchange, "MAX_HEADER_BYTES", 1000)

    def answer(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    with hostile(answer) as url, client_of(url, 30.0) as client:
        began_s = time.monotonic()
        with pytest.raises(SensorGlitchError, match="the headers of the answer are longer than"):
            client.get("/redfish/v1/")
        assert time.monotonic() - began_s < 10.0


def test_a_target_that_never_answered_is_down(tmp_path: Any) -> None:
    with hostile(DRIPPING["100 Continue"]) as url:
        target = RedfishTarget(name="bmc7", url=url, insecure=True)
        collector = RedfishCollector(RedfishOptions(targets=(target,), deadline_seconds=1.0))
        family = Family(collector)
        try:
            assert family.scan().layout.devices == ()
            wait_until(lambda: family.scan().layout.devices == ("bmc7",))
            assert family.scan().states == ("timeout",)
        finally:
            family.close()


def test_all_answers_of_a_discovery_share_a_limit() -> None:
    """A service with many large resources must not fill the memory."""
    numbers = itertools.count()

    def answer(connection: socket.socket) -> None:
        body = json.dumps({"number": next(numbers), "values": [{}] * 4_900}).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with hostile(answer) as url, client_of(url, 30.0) as client:
        for _ in range(5):
            client.get("/redfish/v1/a")
        with pytest.raises(SensorGlitchError, match=f"all answers together have more than {MAX_ALL_VALUES} JSON"):
            client.get("/redfish/v1/c")
        client.begin(30.0)
        assert client.get("/redfish/v1/d")[0]["number"] == 6
