"""The client of the exporter's page of run conditions."""

from __future__ import annotations

import logging

import pytest

from joulewatch_harness.clients.conditions import PATH, ConditionsClient, DeviceConditions
from joulewatch_harness.clients.exporter import Answer, ExporterClient
from joulewatch_harness.errors import ExporterUnreachableError

GPU = b'{"device":"GPU-1","counters":{"hot_seconds":1.5},"settings":{"limit_watts":350}}'


class Exporter(ExporterClient):
    def __init__(self, body: bytes | None) -> None:
        super().__init__("http://node1:10717")
        self.body = body

    def fetch(self, target: str = "") -> Answer:
        assert target == PATH
        if self.body is None:
            raise ExporterUnreachableError("HTTP 404")
        return Answer(requested_at_s=0.0, answered_at_s=0.0, body=self.body)


def test_the_answer_has_counters_and_settings() -> None:
    client = ConditionsClient(Exporter(b'{"joulewatch_conditions":1,"devices":[%s]}' % GPU))
    assert client.read() == {"GPU-1": DeviceConditions({"hot_seconds": 1.5}, {"limit_watts": 350.0})}


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"<html>",
        b"[]",
        b'{"joulewatch_conditions":2,"devices":[]}',
        b'{"joulewatch_conditions":1}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1"}]}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1","counters":{"x":"y"},"settings":{}}]}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1","counters":[],"settings":{}}]}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1","counters":{"x":NaN},"settings":{}}]}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1","counters":{},"settings":{"x":1e999}}]}',
        b'{"joulewatch_conditions":1,"devices":[{"device":"GPU-1","counters":{"x":1%s},"settings":{}}]}' % (b"0" * 400),
        b"[" * 100_000,
    ],
)
def test_without_an_answer_nothing_is_known_and_this_is_logged_once(
    body: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = ConditionsClient(Exporter(body))
    assert client.read() == client.read() == {}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "run conditions of GPUs are not known"
    ]
