"""Services that never finish an answer. Loopback only."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

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
