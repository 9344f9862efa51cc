"""Clients that send nonsense, nothing, or too much. Loopback only."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from joulewatch_exporter.server.connection import Request, Response
from joulewatch_exporter.server.server import WebServer
from support.hostile_requests import HOSTILE

OK = b"# TYPE x gauge\nx 1\n"
HOST = b"Host: x\r\n"

Serve = Callable[..., tuple[WebServer, int]]


def scrape(
    *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: object
) -> tuple[bytes, str]:
    from joulewatch_exporter.server.exposition import CONTENT_TYPES, choose_format

    return OK, CONTENT_TYPES[choose_format(accept)]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[WebServer] = []

    def begin(**settings: Any) -> tuple[WebServer, int]:
        settings.setdefault("scrape", scrape)
        web = WebServer(["127.0.0.1:0"], collectors=["rapl"], **settings)
        servers.append(web)
        web.start()
        return web, int(web.urls[0].rsplit(":", 1)[1].partition("/")[0])

    yield begin
    for web in servers:
        web.stop()


def talk(port: int, data: bytes) -> bytes:
    """Send raw bytes, and read until the server closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            while chunk := peer.recv(65536):
                received += chunk
        except ConnectionError:  # the kernel resets a connection whose request was not read whole
            pass
    return received


def test_no_request_leaves_a_traceback(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Each is answered or closed, and nothing of it reaches the log above debug."""
    caplog.set_level(logging.INFO)
    _, port = serve()
    answers = [talk(port, data) for data in HOSTILE]
    assert [record.getMessage() for record in caplog.records] == []
    for data, answer in zip(HOSTILE, answers, strict=True):
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), data
        assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 505"), data
        assert b"Set-Cookie" not in answer.partition(b"\r\n\r\n")[0]
        assert b"\x1b" not in answer
    assert answers[0].startswith(b"HTTP/1.1 400 "), "an address that is not closed"
    assert talk(port, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(OK)


def test_silent_connections_keep_no_scraper_out(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    web, port = serve(max_connections=8)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(20)]
    try:
        assert talk(port, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(OK)
        assert silent[0].recv(1) == b"", "the longest idle one was closed"
        assert web.refused["connections"] == 13
        assert caplog.text.count("all 8 connections are in use") == 1
    finally:
        for connection in silent:
            connection.close()


def test_many_scrapers_at_once_are_all_answered(serve: Serve) -> None:
    """More than there are slots: those that wait share a scrape."""
    scrapes = 0
    ready = threading.Barrier(60)

    def slow(
        *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: object
    ) -> tuple[bytes, str]:
        nonlocal scrapes
        scrapes += 1
        threading.Event().wait(0.02)
        return OK, "text/plain"

    web, port = serve(scrape=slow, max_requests=4)

    def ask() -> bytes:
        ready.wait(10)
        return talk(port, b"GET /metrics HTTP/1.0\r\n\r\n")

    with ThreadPoolExecutor(60) as pool:
        answers = [answer.result(20) for answer in [pool.submit(ask) for _ in range(60)]]
    assert [answer for answer in answers if not answer.endswith(OK)] == []
    assert web.refused["scrapes"] == 0
    assert scrapes < 60


def test_clients_without_a_password_get_the_open_scrape(serve: Serve) -> None:
    def aged(
        *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: object
    ) -> tuple[bytes, str]:
        return b"x 0\n", "text/plain"

    def trusted(target: str) -> Response:
        return web.answer_trusted(
            Request(method="GET", target=target, version="HTTP/1.1", headers={}, arrived_ns=time.monotonic_ns())
        )

    web, port = serve(open_scrape=aged)
    assert talk(port, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(b"x 0\n")
    assert trusted("/metrics").body == OK, "the socket for edges"
    assert b"404" in talk(port, b"GET /conditions HTTP/1.0\r\n\r\n").partition(b"\r\n")[0]
    assert trusted("/conditions").status == 200
