"""Services that never finish an answer. Loopback only."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from joulewatch_exporter.collectors.redfish import client as client_module
from joulewatch_exporter.collectors.redfish import exchange
from joulewatch_exporter.collectors.redfish.client import MAX_ALL_VALUES, Client, Memory
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector
from joulewatch_exporter.collectors.redfish.target import RedfishOptions, RedfishTarget
from joulewatch_exporter.errors import SensorGlitchError, SensorTimeoutError
from joulewatch_exporter.sampling.family import Family
from support.hostile_redfish import DRIPPING, hostile
from support.waiting import wait_until


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


def sends(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /redfish/v1/\r\n"


def test_the_body_of_a_redirect_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests reads it by itself, and keeps it in memory."""
    monkeypatch.setattr(client_module, "MAX_BODY_BYTES", 1000)
    sent = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(REDIRECT + b"\r\n")
        for _ in range(1000):
            connection.sendall(bytes(65536))
            sent.append(65536)

    with hostile(answer) as url, client_of(url, 5.0) as client, pytest.raises(SensorGlitchError, match="longer than"):
        client.get("/redfish/v1/")
    assert sum(sent) < 32 << 20, "what the buffers of the sockets hold"


def test_the_body_of_a_redirect_is_not_unpacked() -> None:
    packed = gzip.compress(b"[]")
    head = REDIRECT + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    with (
        hostile(sends(head + packed)) as url,
        client_of(url, 5.0) as client,
        pytest.raises(SensorGlitchError, match="more than"),
    ):
        client.get("/redfish/v1/")


@pytest.mark.parametrize("link", ["http://[::1/", "//["])
def test_a_redirect_to_an_invalid_url_is_a_glitch(link: str) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % link.encode()
    with hostile(sends(head)) as url, client_of(url, 5.0) as client, pytest.raises(SensorGlitchError):
        client.get("/redfish/v1/")


@pytest.mark.parametrize("link", ["//[", "http://[::1/"])
def test_a_link_to_an_invalid_url_is_a_glitch(link: str) -> None:
    with client_of("http://127.0.0.1:1", 5.0) as client, pytest.raises(SensorGlitchError, match="is not a valid URL"):
        client.get(link)


def test_cookies_are_not_kept() -> None:
    """A service could send new ones in each answer."""
    body = b'{"RedfishVersion": "1.6.0"}'
    requests = []

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def heard(connection: socket.socket) -> None:
        answer(connection)
        while received := connection.recv(65536):
            requests.append(received)
            answer(connection)

    with hostile(heard) as url, client_of(url, 5.0) as client:
        client.get("/redfish/v1/")
        client.get("/redfish/v1/Chassis")
    assert requests
    assert b"Cookie" not in b"".join(requests)
