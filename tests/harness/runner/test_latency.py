"""Latencies and phase times of a window."""

from __future__ import annotations

from array import array

import pytest

from joulewatch_harness.network import Phases
from joulewatch_harness.runner.calls import Call
from joulewatch_harness.runner.latency import latency, phase_times


def test_latency_takes_nearest_ranks_that_really_occurred() -> None:
    ends = array("q", [10, 30, 60, 100])
    result = latency([Call(0, 60, 3, 3), Call(60, 100, 1, 4)], ends)
    assert result is not None
    assert (result.count, result.min_s, result.max_s) == (4, 10e-9, 40e-9)
    assert (result.p50_s, result.p90_s, result.p99_s) == (20e-9, 40e-9, 40e-9)
    assert latency([], array("q")) is None


def test_uncovered_time_is_other_and_nothing_is_dropped() -> None:
    phases = Phases()
    phases.add("copy_in", 0, 10)
    phases.add("execute", 10, 60)
    times = phase_times(phases, 100, 1)
    assert times["other"].total_s == pytest.approx(40e-9)
    assert phase_times(Phases(), 100, 1) == {}
    phases.add("other", 60, 70)
    assert phase_times(phases, 100, 1)["other"].total_s == pytest.approx(40e-9)


def test_each_percentile_has_its_own_rank() -> None:
    """Of 1, 2, ..., 100 ns the nearest ranks are 50, 90 and 99; between 90 and 100 every latency is another one."""
    durations_ns = [*range(100, 0, -2), *range(1, 100, 2)]
    ends, now_ns = array("q"), 0
    for duration_ns in durations_ns:
        now_ns += duration_ns
        ends.append(now_ns)
    result = latency([Call(0, now_ns, 100, 100)], ends)
    assert result is not None
    percentiles_ns = [round(seconds * 1e9) for seconds in (result.p50_s, result.p90_s, result.p99_s)]
    assert percentiles_ns == [50, 90, 99]
    assert (round(result.min_s * 1e9), round(result.max_s * 1e9)) == (1, 100)
    assert result.mean_s == pytest.approx(50.5e-9)


def test_a_call_without_a_mark_for_each_batch_counts_as_batches_of_equal_length() -> None:
    """The first call of three marks each batch, the second one of four marks only its last one."""
    result = latency([Call(0, 60, 3, 3), Call(100, 140, 4, 4)], array("q", [20, 40, 60, 140]))
    assert result is not None
    assert result.count == 7
    assert (result.min_s, result.max_s) == (10e-9, 20e-9)
    assert result.mean_s == pytest.approx(100e-9 / 7)


def test_the_time_between_two_calls_is_in_no_latency() -> None:
    result = latency([Call(0, 10, 1, 1), Call(500, 510, 1, 2)], array("q", [10, 510]))
    assert result is not None
    assert (result.min_s, result.max_s) == (10e-9, 10e-9)


def test_latencies_that_the_scenario_measured_replace_the_marks() -> None:
    result = latency([Call(0, 20, 2, 2)], array("q", [10, 20]), array("q", [70, 80, 90]))
    assert result is not None
    assert result.count == 3
    assert (result.min_s, result.p50_s, result.max_s) == pytest.approx((70e-9, 80e-9, 90e-9))
