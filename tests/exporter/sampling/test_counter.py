"""Counters that wrap, restart and glitch; energy from power; the refresh period of a sensor."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.sampling.counter import (
    EnergyCounter,
    PowerFromEnergy,
    PowerIntegrator,
    RefreshEstimator,
)

RANGE_JOULES = 65532.610987
MAX_WATTS = 1000.0


def counter(wrap_joules: float | None = RANGE_JOULES) -> EnergyCounter:
    return EnergyCounter(wrap_joules=wrap_joules, max_power_watts=MAX_WATTS)


def s(seconds: float) -> int:
    return round(seconds * NS_PER_S)


# -- EnergyCounter ---------------------------------------------------------------------------------


def test_the_first_reading_is_zero_joules() -> None:
    """The energy before the first reading does not count."""
    energy = counter()
    assert energy.update(s(1), 4711.0)
    assert energy.total_joules == 0.0


def test_a_fall_within_reach_of_the_range_is_a_wrap() -> None:
    """A counter that fell has wrapped once; it has not run backwards."""
    energy = counter()
    energy.update(s(0), RANGE_JOULES - 100.0)
    assert energy.update(s(1), 150.0)
    assert energy.total_joules == pytest.approx(250.0)
    assert (energy.wraps, energy.resets, energy.rejected) == (1, 0, 0)


def test_a_glitch_is_rejected_and_costs_nothing() -> None:
    """An impossible value between good ones changes neither the total nor the next reading."""
    energy = counter()
    energy.update(s(0), 1000.0)
    energy.update(s(1), 1100.0)
    assert not energy.update(s(2), 60000.0)
    assert energy.total_joules == pytest.approx(100.0)
    assert energy.read_at_ns == s(1)
    assert energy.update(s(3), 1300.0)
    assert energy.total_joules == pytest.approx(300.0)
    assert (energy.rejected, energy.resets, energy.unmeasured_s) == (1, 0, 0.0)


def test_a_restart_is_confirmed_by_the_next_reading() -> None:
    """A fall that is not a wrap is a suspect; if the counter continues from there, it has restarted."""
    energy = counter()
    energy.update(s(0), 20000.0)
    energy.update(s(1), 20100.0)
    assert not energy.update(s(3), 5.0)
    assert energy.update(s(4), 105.0)
    assert energy.total_joules == pytest.approx(200.0)
    assert (energy.resets, energy.rejected, energy.wraps) == (1, 1, 0)
    assert energy.unmeasured_s == pytest.approx(2.0)
    assert energy.update(s(5), 205.0)
    assert energy.total_joules == pytest.approx(300.0)


def test_without_a_range_any_fall_is_a_restart() -> None:
    """Counters of drivers and BMCs do not wrap: adding a range would invent energy."""
    energy = counter(wrap_joules=None)
    energy.update(s(0), RANGE_JOULES)
    energy.update(s(1), 10.0)
    energy.update(s(2), 20.0)
    assert energy.total_joules == pytest.approx(10.0)
    assert (energy.wraps, energy.resets) == (0, 1)


def test_after_too_long_a_gap_only_the_certain_energy_is_added() -> None:
    """If the counter may have wrapped unnoticed, the rise modulo the range is certain, and the time is unmeasured."""
    energy = counter()
    energy.update(s(0), 1000.0)
    gap_s = RANGE_JOULES / MAX_WATTS + 1
    assert energy.update(s(gap_s), 500.0)
    assert energy.total_joules == pytest.approx(RANGE_JOULES - 500.0)
    assert energy.unmeasured_s == pytest.approx(gap_s)
    assert energy.wraps == 1


@pytest.mark.parametrize("position", [math.nan, math.inf, -1.0])
def test_an_invalid_position_is_rejected(position: float) -> None:
    energy = counter()
    assert not energy.update(s(0), position)
    assert energy.update(s(1), 10.0)
    assert not energy.update(s(2), position)
    assert energy.update(s(3), 20.0)
    assert (energy.total_joules, energy.rejected, energy.resets) == (10.0, 2, 0)


def test_a_slow_counter_may_jump_between_two_close_reads() -> None:
    """Refreshed once a second at 900 W, read 2 ms apart around a refresh: 900 J in 2 ms are not a glitch."""
    energy = counter(wrap_joules=None)
    for at_s, position in [(0.999, 0.0), (1.001, 900.0), (1.998, 900.0), (1.999, 900.0), (2.001, 1800.0)]:
        assert energy.update(s(at_s), position)
    assert energy.total_joules == pytest.approx(1800.0)
    assert energy.rejected == 0


def test_total_resolves_microjoules_after_a_gigajoule() -> None:
    """The total is computed from wraps and a position, so rounding errors do not accumulate."""
    energy = counter()
    step_joules = RANGE_JOULES / 8
    position, steps, now_s = 0.0, 0, 0.0
    energy.update(s(now_s), position)
    while energy.total_joules < 1e9:
        steps += 1
        now_s += 20.0
        energy.update(s(now_s), math.fmod(steps * step_joules, RANGE_JOULES))
    assert energy.total_joules == pytest.approx(steps * step_joules, abs=1e-5, rel=0)
    before = energy.total_joules
    energy.update(s(now_s + 1), math.fmod(steps * step_joules, RANGE_JOULES) + 1e-5)
    assert energy.total_joules - before == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(("wrap_joules", "watts"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (None, math.nan)])
def test_bounds_must_be_positive(wrap_joules: float | None, watts: float) -> None:
    with pytest.raises(ValueError):
        EnergyCounter(wrap_joules=wrap_joules, max_power_watts=watts)


steps_strategy = st.lists(
    st.tuples(st.floats(0.001, 20.0), st.floats(0.0, 0.999)).map(lambda pair: (pair[0], pair[0] * pair[1] * MAX_WATTS)),
    min_size=1,
    max_size=60,
)


@given(start=st.floats(0, RANGE_JOULES * 0.999), steps=steps_strategy)
def test_any_sequence_of_possible_steps_adds_up_to_their_sum(start: float, steps: list[tuple[float, float]]) -> None:
    """Unwrapping any sequence of steps yields their sum, and counts each wrap."""
    energy = counter()
    now_ns, true_joules = 0, start
    energy.update(now_ns, start)
    for duration_s, joules in steps:
        now_ns += s(duration_s)
        true_joules += joules
        assert energy.update(now_ns, math.fmod(true_joules, RANGE_JOULES))
    assert energy.total_joules == pytest.approx(true_joules - start, abs=1e-6)
    assert energy.wraps == int(true_joules // RANGE_JOULES)
    assert (energy.rejected, energy.resets, energy.unmeasured_s) == (0, 0, 0.0)


@given(steps=steps_strategy, shift_ns=st.integers(-(2**62), 2**62))
def test_a_shifted_clock_changes_nothing(steps: list[tuple[float, float]], shift_ns: int) -> None:
    totals = []
    for origin_ns in (0, shift_ns):
        energy, now_ns, joules = counter(), origin_ns, 0.0
        energy.update(now_ns, joules)
        for duration_s, rise in steps:
            now_ns += s(duration_s)
            joules = math.fmod(joules + rise, RANGE_JOULES)
            energy.update(now_ns, joules)
        totals.append((energy.total_joules, energy.wraps, energy.rejected, energy.unmeasured_s))
    assert totals[0] == totals[1]


@given(
    readings=st.lists(
        st.tuples(st.integers(0, s(200)), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=50
    ),
    wrap_joules=st.sampled_from([None, RANGE_JOULES, 1.0]),
)
def test_no_invalid_reading_makes_the_total_fall_or_jump(
    readings: list[tuple[int, float]], wrap_joules: float | None
) -> None:
    """For any values in any order, the total never falls and is never NaN."""
    energy = counter(wrap_joules)
    now_ns = 0
    seen = [(0.0, 0, 0, 0, 0.0)]
    for step_ns, position in readings:
        now_ns += step_ns
        energy.update(now_ns, position)
        seen.append((energy.total_joules, energy.wraps, energy.resets, energy.rejected, energy.unmeasured_s))
    assert all(math.isfinite(row[0]) for row in seen)
    assert all(a <= b for before, after in pairwise(seen) for a, b in zip(before, after, strict=True))


@given(where=st.integers(1, 18), glitch=st.floats(15_000, 50_000))
def test_a_glitch_anywhere_does_not_change_the_final_total(where: int, glitch: float) -> None:
    energy = counter()
    for second in range(21):
        energy.update(s(second), glitch if second == where else 100.0 * second)
    assert energy.total_joules == pytest.approx(2000.0)
    assert (energy.rejected, energy.resets, energy.wraps) == (1, 0, 0)


# -- PowerIntegrator -------------------------------------------------------------------------------


def integrator(max_gap_s: float = 10.0) -> PowerIntegrator:
    return PowerIntegrator(max_power_watts=MAX_WATTS, max_gap_s=max_gap_s)


@given(watts=st.floats(0, MAX_WATTS), steps=st.lists(st.floats(0.001, 9.9), min_size=1, max_size=50))
def test_constant_power_gives_power_times_time(watts: float, steps: list[float]) -> None:
    energy, now_ns = integrator(), 0
    energy.update(now_ns, watts)
    for step_s in steps:
        now_ns += s(step_s)
        assert energy.update(now_ns, watts)
    assert energy.total_joules == pytest.approx(watts * now_ns / NS_PER_S, rel=1e-12, abs=1e-9)
    assert energy.unmeasured_s == 0.0


def test_a_ramp_is_integrated_exactly() -> None:
    energy = integrator()
    for second in range(11):
        energy.update(s(second), 10.0 * second)
    assert energy.total_joules == pytest.approx(500.0)


def test_a_gap_adds_no_energy_and_is_counted() -> None:
    energy = integrator(max_gap_s=2.0)
    energy.update(s(0), 100.0)
    energy.update(s(1), 100.0)
    energy.update(s(5), 100.0)
    energy.update(s(6), 100.0)
    assert energy.total_joules == pytest.approx(200.0)
    assert energy.unmeasured_s == pytest.approx(4.0)


@pytest.mark.parametrize("watts", [-0.1, MAX_WATTS + 0.1, math.nan, math.inf])
def test_impossible_power_is_rejected_and_interpolated(watts: float) -> None:
    energy = integrator()
    energy.update(s(0), 100.0)
    assert not energy.update(s(1), watts)
    assert energy.update(s(2), 100.0)
    assert energy.total_joules == pytest.approx(200.0)
    assert energy.rejected == 1


def test_the_same_reading_twice_counts_once() -> None:
    energy = integrator()
    energy.update(s(0), 100.0)
    energy.update(s(1), 100.0)
    assert energy.update(s(1), 100.0)
    assert energy.total_joules == pytest.approx(100.0)


def test_rounding_errors_of_many_small_steps_do_not_accumulate() -> None:
    energy = integrator()
    for step in range(100_001):
        energy.update(step * 1_000_003, 0.1)
    assert energy.total_joules == pytest.approx(0.1 * 100_000 * 1_000_003 / NS_PER_S, rel=1e-15)


# -- PowerFromEnergy -------------------------------------------------------------------------------


def test_power_is_that_of_the_last_interval() -> None:
    power = PowerFromEnergy()
    assert power.update(s(0), 0.0, None) is None
    assert power.update(s(1), 100.0, None) == pytest.approx(100.0)
    assert power.update(s(2), 300.0, None) == pytest.approx(200.0)


def test_power_of_close_reads_spans_at_least_50_ms() -> None:
    power = PowerFromEnergy()
    spans = []
    for step in range(100):
        now_s = step * 0.01
        watts = power.update(s(now_s), now_s**2, None)
        if watts is not None:
            spans.append(2 * now_s - watts)  # of t², the mean over [t-d, t] is 2t-d
    assert all(0.05 - 1e-9 <= span <= 0.1 + 1e-9 for span in spans)
    assert len(spans) == 95


def test_power_spans_twenty_refreshes() -> None:
    power = PowerFromEnergy()
    assert power.update(s(0), 0.0, 0.1) is None
    assert power.update(s(1.9), 190.0, 0.1) is None
    assert power.update(s(2.0), 200.0, 0.1) == pytest.approx(100.0)


# -- RefreshEstimator ------------------------------------------------------------------------------


def watch(refresh_s: float, read_every_s: float, duration_s: float, *, is_counter: bool = True) -> RefreshEstimator:
    """Read a counter of 100 W that changes every ``refresh_s``."""
    estimator = RefreshEstimator(is_counter=is_counter)
    now_ns = 0
    while now_ns < s(duration_s):
        estimator.update(now_ns, (now_ns // s(refresh_s)) * refresh_s * 100)
        now_ns += s(read_every_s)
    return estimator


def test_there_is_no_estimate_before_three_changes() -> None:
    estimator = RefreshEstimator(is_counter=False)
    for second, value in enumerate([1.0, 2.0, 3.0]):
        estimator.update(s(second), value)
    assert estimator.refresh_s is None
    estimator.update(s(3), 4.0)
    assert estimator.refresh_s == pytest.approx(1.0)


@pytest.mark.parametrize(("refresh_s", "read_every_s"), [(0.001, 2e-5), (0.001, 3.3e-4), (0.1, 0.013), (1.0, 0.2)])
def test_the_refresh_period_is_found_by_frequent_reads(refresh_s: float, read_every_s: float) -> None:
    estimator = watch(refresh_s, read_every_s, 12 * refresh_s)
    assert estimator.resolved
    assert estimator.refresh_s == pytest.approx(refresh_s, abs=read_every_s)


def test_slow_reads_do_not_change_the_estimate_of_a_burst() -> None:
    """Read once a second after the burst, the counter changes at every read: that is the period of the reads."""
    estimator = watch(0.001, 2e-5, 0.008)
    found = estimator.refresh_s
    for second in range(1, 30):
        estimator.update(s(second), 100.0 * second)
    assert estimator.refresh_s == found == pytest.approx(0.001, abs=2e-5)


def test_power_read_too_slowly_yields_the_period_of_the_reads() -> None:
    """It is an upper bound until reads are more frequent."""
    estimator = watch(0.1, 1.0, 20.0, is_counter=False)
    assert estimator.refresh_s == pytest.approx(1.0)
    assert not estimator.resolved


def test_a_counter_that_changes_at_every_read_yields_no_estimate() -> None:
    """Otherwise a counter of 1 ms, read every 10 s, would seem to have 10 s, and short windows would have no result."""
    assert watch(0.001, 10.0, 200.0).refresh_s is None


def test_one_late_read_does_not_shorten_the_estimate() -> None:
    """The estimate is the median of all distances, not the smallest median so far."""
    estimator = RefreshEstimator(is_counter=True)
    now_ns, joules = 0, 0.0
    for distance_ms in (5, 5, 10, 10, 10, 10, 10, 10):
        joules += 1.0
        for _ in range(distance_ms):
            now_ns += s(0.001)
            estimator.update(now_ns, joules)
    assert estimator.refresh_s == pytest.approx(0.010)


def test_a_constant_power_does_not_lengthen_the_estimate() -> None:
    estimator = watch(0.1, 0.013, 2.0, is_counter=False)
    found = estimator.refresh_s
    for step in range(1000):
        estimator.update(s(2 + step * 0.02), 50.0 + step // 500)
    assert estimator.refresh_s == found


def test_another_counter_of_the_same_quantity_continues_the_total() -> None:
    """From powercap to perf: the positions are unrelated, and the time between is unmeasured."""
    counter = EnergyCounter(wrap_joules=1000.0, max_power_watts=100.0)
    counter.update(0, 900.0)
    counter.update(NS_PER_S, 950.0)
    counter.change_source(wrap_joules=None, max_power_watts=200.0)
    assert counter.total_joules == 50.0
    assert counter.update(4 * NS_PER_S, 0.0)
    assert (counter.total_joules, counter.unmeasured_s, counter.resets) == (50.0, 3.0, 0)
    counter.update(5 * NS_PER_S, 150.0)
    assert counter.total_joules == 200.0
    counter.change_source(wrap_joules=1000.0, max_power_watts=100.0)
    counter.change_source(wrap_joules=1000.0, max_power_watts=100.0)
    counter.update(6 * NS_PER_S, 10.0)
    assert (counter.total_joules, counter.unmeasured_s) == (200.0, 4.0)


def test_a_register_that_repeats_one_number_has_not_restarted() -> None:
    """4294967295 for four seconds once counted as two restarts, and their energy was lost."""
    counter = EnergyCounter(wrap_joules=65_532.610987, max_power_watts=1000.0)
    counter.update(0, 20_000.0)
    counter.update(NS_PER_S, 20_200.0)
    for second in (2, 3, 4, 5):
        assert not counter.update(second * NS_PER_S, 4294.967295)
    assert counter.update(6 * NS_PER_S, 21_200.0)
    assert (counter.total_joules, counter.resets, counter.rejected, counter.unmeasured_s) == (1200.0, 0, 4, 0.0)


def test_a_restart_of_a_slow_counter_is_confirmed_when_it_changes() -> None:
    counter = EnergyCounter(wrap_joules=None, max_power_watts=10_000.0)
    counter.update(0, 7200.0)
    counter.update(10 * NS_PER_S, 10_800.0)
    assert [counter.update(second * NS_PER_S, 0.0) for second in (20, 30)] == [False, False]
    assert counter.update(40 * NS_PER_S, 3600.0)
    assert (counter.total_joules, counter.resets, counter.unmeasured_s) == (7200.0, 1, 10.0)
