"""Published results are read back with patience: some servers show new samples late."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import Answer, PrometheusClient
from joulewatch_harness.delivery.annotations import Sample, sample
from joulewatch_harness.delivery.results import LONGEST_READ_BACK_S, publish_samples
from joulewatch_harness.errors import DeliveryError
from support.clock import FakeClock

AT_S = 1_000_000.123
SAMPLES = [
    sample(catalog.RESULT_FINDINGS, {"run": "r", "reason": reason, "severity": "error"}, 1_000_000_123, value)
    for value, reason in enumerate(("frozen", "idle_busy", "no_samples"), 1)
]


class LateServer(PrometheusClient):
    """Accepts samples, and shows some of them after ``hidden_s`` seconds."""

    def __init__(self, clock: FakeClock, hidden_s: float, shown: list[Sample]) -> None:
        super().__init__(PrometheusOptions("http://late.test"))
        self.clock = clock
        self.visible_at_s = self.now_s() + hidden_s
        self.shown = shown
        self.queries: list[tuple[str, float | None]] = []

    def now_s(self) -> float:
        return self.clock.monotonic_ns() / 1e9

    def send(self, *_: object, **__: object) -> Answer:
        return Answer(204, "")

    def query(self, promql: str, at_s: float | None = None, **_: object) -> list[dict[str, Any]]:
        self.queries.append((promql, at_s))
        if self.now_s() < self.visible_at_s:
            return []
        return [
            {
                "metric": {"__name__": one.name, **dict(one.labels), "replica": "a"},
                "values": [[one.at_ms / 1000, repr(one.value)]],
            }
            for one in self.shown
        ]


def published(server: LateServer) -> int:
    sleep = server.clock.sleep
    return publish_samples(SAMPLES, server, 'run="r"', "results", AT_S, sleep=sleep, monotonic=server.now_s)


def test_samples_that_a_server_shows_after_30_s_are_published() -> None:
    """VictoriaMetrics hides the newest samples."""
    server = LateServer(FakeClock(), 30.0, SAMPLES)
    assert published(server) == 3
    assert 5 < len(server.queries) < 30
    assert set(server.queries) == {
        (f'{{__name__=~"{catalog.RESULT_FINDINGS.name}",run="r"}}[1ms]', AT_S),
    }, "raw samples at their time, which no lookback fills with older ones"


@pytest.mark.parametrize(
    "shown",
    [
        SAMPLES[:2],
        [*SAMPLES[:2], dataclasses.replace(SAMPLES[2], value=7.0)],
        [*SAMPLES[:2], dataclasses.replace(SAMPLES[2], at_ms=SAMPLES[2].at_ms - 1)],
    ],
    ids=["missing", "other value", "older"],
)
def test_samples_that_a_server_never_shows_are_an_error(shown: list[Sample]) -> None:
    server = LateServer(FakeClock(), 0.0, shown)
    began_s = server.now_s()
    with pytest.raises(DeliveryError, match=r"accepted 3 results but shows 2 of them at 1000000\.123, after 60 s"):
        published(server)
    assert server.now_s() - began_s <= LONGEST_READ_BACK_S
