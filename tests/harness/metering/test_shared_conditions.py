"""Run conditions for several windows: few readings."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from joulewatch_harness.metering import shared_conditions
from joulewatch_harness.metering.shared_conditions import MAX_AGE_NS, SharedConditions
from joulewatch_harness.runner.conditions import ConditionsReading


class Source:
    def __init__(self, now_ns: list[int]) -> None:
        self.now_ns = now_ns

    def read(self) -> ConditionsReading:
        return ConditionsReading(
            at_ns=self.now_ns[0], counters={}, processors=2, throttled_ms={}, throttle_counts={}, settings={}
        )

    def between(self, start: ConditionsReading, end: ConditionsReading) -> Mapping[str, float]:
        return {"seconds": (end.at_ns - start.at_ns) * 1e-9}


def test_a_reading_serves_all_edges_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [10**9]
    monkeypatch.setattr(shared_conditions, "monotonic_ns", lambda: now_ns[0])
    conditions = SharedConditions(Source(now_ns))
    first = conditions.read()
    now_ns[0] += MAX_AGE_NS - 1
    soon = conditions.read()
    assert soon is first
    assert conditions.between(first, soon) == {}, "a short window has no conditions"
    now_ns[0] += 1
    later = conditions.read()
    assert conditions.between(first, later) == {"seconds": pytest.approx(0.05)}
