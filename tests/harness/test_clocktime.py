"""Time stamps for Prometheus."""

from __future__ import annotations

import time

import pytest

from joulewatch_harness.clocktime import Clock, is_step, to_ms


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


@pytest.mark.parametrize(
    ("change_s", "duration_s", "error_s", "step"),
    [
        (0.0049, 0.0, 0.0, False),
        (0.0051, 0.0, 0.0, True),
        (-0.0051, 0.0, 0.0, True),
        # NTP slews by 500 ppm: two clocks drift apart by 1 ms in a second, in both directions.
        (0.0149, 10.0, 0.0, False),
        (-0.0149, 10.0, 0.0, False),
        (-0.0151, 10.0, 0.0, True),
        (0.0069, 0.0, 0.002, False),
        (0.0071, 0.0, 0.002, True),
        (300.0, 3600.0, 0.0, True),
    ],
)
def test_a_clock_that_is_slewed_does_not_step(change_s: float, duration_s: float, error_s: float, step: bool) -> None:
    assert is_step(change_s, duration_s, error_s) is step


def test_the_module_time_is_a_clock() -> None:
    clock: Clock = time
    assert clock.monotonic_ns() <= clock.monotonic_ns()
    assert clock.time_ns() > 1_700_000_000_000_000_000
