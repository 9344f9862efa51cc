"""No answer of a server is read for ever or without a limit, by any of the HTTP clients."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from joulewatch_harness.clients import bounded
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.clients.options import HttpOptions, PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.errors import (
    ExporterUnreachableError,
    JoulewatchError,
    NetworkError,
    QueryTooLargeError,
    QueryUnavailableError,
)
from joulewatch_harness.runtimes.shared import http as runtime_http
from joulewatch_harness.runtimes.shared.http import Connection, Endpoint

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
TIMEOUT_S = 0.2
BOMB = gzip.compress(bytes(4 << 20))


def endless_body(send: Callable[[bytes], None]) -> None:
    send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def drip(text: bytes) -> Callable[[Callable[[bytes], None]], None]:
    def server(send: Callable[[bytes], None]) -> None:
        send(OK)
        while True:
            send(text)
            time.sleep(0.05)

    return server


def endless_continue(send: Callable[[bytes], None]) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


def bomb(send: Callable[[bytes], None]) -> None:
    send(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)


def redirect_with_endless_body(send: Callable[[bytes], None]) -> None:
    """Requests reads it before its caller can limit it."""
    send(b"HTTP/1.1 302 Found\r\nLocation: /\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"10000\r\n" + b"x" * 65536 + b"\r\n")


SERVERS = {
    "endless-body": endless_body,
    "drips-headers": drip(b"X-A: b\r\n"),
    "drips-a-body": drip(b"Content-Length: 1000000\r\n\r\nxxxxx"),
    "continue-for-ever": endless_continue,
    "gzip-bomb": bomb,
    "redirect-with-endless-body": redirect_with_endless_body,
}


@contextlib.contextmanager
def serve(behaviour: Callable[[Callable[[bytes], None]], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                behaviour(connection.sendall)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def query(port: int) -> None:
    options = PrometheusOptions(f"http://127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    with PrometheusClient(options, retry_s=0) as client:
        client.query("1")


def write(port: int) -> None:
    options = PrometheusOptions(f"http://127.0.0.1:{port}", timeout_s=TIMEOUT_S)
    with PrometheusClient(options, retry_s=0) as client:
        client.send("POST", "/api/v1/write", b"x")


def scrape(port: int) -> None:
    with ExporterClient(f"http://127.0.0.1:{port}", options=HttpOptions(timeout_s=TIMEOUT_S)) as client:
        client.scrape()


def infer(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    where = Endpoint(url=url, scheme="http", host="127.0.0.1", port=port, path="", timeout_s=TIMEOUT_S / 10)
    connection = Connection(where)
    try:
        connection.request("POST", "/v2/infer", [b"x"])
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("client", "server"),
    [
        pytest.param(client, server, id=f"{client.__name__}-{server}")
        for client in (query, write, scrape, infer)
        for server in sorted(SERVERS)
        if (client, server) != (infer, "gzip-bomb")  # it does not decompress
    ],
)
def test_an_endless_answer_ends_in_an_error(
    client: Callable[[int], None], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in (bounded.BoundedResponse, bounded.BoundedQueryResponse, runtime_http._Response):
        monkeypatch.setattr(owner, "longest", 1 << 20)
    monkeypatch.setattr("joulewatch_harness.clients.prometheus.LONGEST_QUERY_BODY", 1 << 20)
    monkeypatch.setattr(PrometheusClient._request, "__defaults__", (1 << 20,))
    monkeypatch.setattr(bounded.gunzip, "__defaults__", (1 << 20,))
    begin_s = time.monotonic()
    with serve(SERVERS[server]) as port, pytest.raises(JoulewatchError) as caught:
        client(port)
    assert isinstance(caught.value, (QueryUnavailableError, QueryTooLargeError, ExporterUnreachableError, NetworkError))
    assert any(word in str(caught.value) for word in ("longer than", "not complete", "no answer within")), caught.value
    assert time.monotonic() - begin_s < 10  # far more than the limits, because the machine may be loaded
