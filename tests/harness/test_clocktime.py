"""Time stamps for Prometheus."""

from __future__ import annotations

import time

import pytest

from joulewatch_harness.clocktime import Clock, to_ms


@pytest.mark.parametrize(
    ("at_s", "at_ms"),
    [
        (1_700_000_000.0, 1_700_000_000_000),
        (1_700_000_000.0004, 1_700_000_000_000),
        (1_700_000_000.0006, 1_700_000_000_001),
        (1.9996, 2_000),
        (0.0005, 1),
        (0.0, 0),
    ],
)
def test_unix_seconds_are_rounded_to_the_nearest_millisecond(at_s: float, at_ms: int) -> None:
    assert to_ms(at_s) == at_ms


def test_the_module_time_is_a_clock() -> None:
    clock: Clock = time
    assert clock.monotonic_ns() <= clock.monotonic_ns()
    assert clock.time_ns() > 1_700_000_000_000_000_000
