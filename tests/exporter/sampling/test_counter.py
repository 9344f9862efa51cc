"""Counters that wrap, restart and glitch; energy from power; the refresh period of a sensor."""

from __future__ import annotations

import functools
import math
import operator
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


EXACT_WATTS = 2.0**-20 * NS_PER_S
"""A bound of 2^-20 J per nanosecond: sums and products with it are exact."""
EXACT_RANGE_JOULES = 65536.0


def test_every_event_of_a_long_life_is_counted() -> None:
    """Wraps, impossible readings, restarts, gaps and changes of the source; 1000 J at 100 W may wrap after 10 s."""
    energy = EnergyCounter(wrap_joules=1000.0, max_power_watts=100.0)
    assert (energy.wrap_joules, energy.max_power_watts, energy.total_joules) == (1000.0, 100.0, 0.0)
    assert (energy.wraps, energy.resets, energy.rejected, energy.unmeasured_s, energy.events) == (0, 0, 0, 0.0, 0)

    def state() -> tuple[float, int, int, int, float, int]:
        return (
            energy.total_joules, energy.wraps, energy.resets, energy.rejected, energy.unmeasured_s, energy.events
        )  # fmt: skip

    for at_s, position, good, expected in (
        (0, 900.0, True, (0.0, 0, 0, 0, 0.0, 0)),
        (5, 100.0, True, (200.0, 1, 0, 0, 0.0, 1)),
        (9, 400.0, True, (500.0, 1, 0, 0, 0.0, 1)),
        (13, 700.0, True, (800.0, 1, 0, 0, 0.0, 1)),
        (17, 950.0, True, (1050.0, 1, 0, 0, 0.0, 1)),
        (21, 150.0, True, (1250.0, 2, 0, 0, 0.0, 2)),
        (22, math.nan, False, (1250.0, 2, 0, 1, 0.0, 3)),
        (23, -1.0, False, (1250.0, 2, 0, 2, 0.0, 4)),
        (24, 300.0, True, (1400.0, 2, 0, 2, 0.0, 4)),
        (25, 5.0, False, (1400.0, 2, 0, 3, 0.0, 5)),
        (26, 15.0, True, (1410.0, 2, 1, 3, 1.0, 6)),
        (27, 600.0, False, (1410.0, 2, 1, 4, 1.0, 7)),
        (28, 610.0, True, (1420.0, 2, 2, 4, 2.0, 8)),
        (38, 700.0, True, (1510.0, 2, 2, 4, 12.0, 9)),
        (50, 650.0, True, (2460.0, 3, 2, 4, 24.0, 11)),
        (62, 650.0, True, (2460.0, 3, 2, 4, 36.0, 12)),
    ):
        assert energy.update(s(at_s), position) is good
        assert state() == expected, at_s
    energy.change_source(wrap_joules=500.0, max_power_watts=50.0)
    assert (energy.wrap_joules, energy.max_power_watts) == (500.0, 50.0)
    for at_s, position, good, expected in (
        (65, 400.0, True, (2460.0, 3, 2, 4, 39.0, 13)),
        (66, 40.0, False, (2460.0, 3, 2, 5, 39.0, 14)),
        (67, 420.0, True, (2480.0, 3, 2, 5, 39.0, 14)),
        (70, 10.0, True, (2570.0, 4, 2, 5, 39.0, 15)),
        (79, 100.0, True, (2660.0, 4, 2, 5, 39.0, 15)),
        (89, 110.0, True, (2670.0, 4, 2, 5, 49.0, 16)),
    ):
        assert energy.update(s(at_s), position) is good
        assert state() == expected, at_s
    energy.change_source(wrap_joules=None, max_power_watts=50.0)
    assert energy.update(s(89), 7.0)
    assert state() == (2670.0, 4, 2, 5, 49.0, 17), "the new source was read at once: nothing is unmeasured"


@pytest.mark.parametrize("wraps", [False, True])
def test_the_largest_possible_rise_is_good_and_more_is_not(wraps: bool) -> None:
    """First sight is a second old at most, so after one more second: 2.01 s of the largest power, with the slack."""
    allowed_joules = 2.0**-20 * 2_010_000_000
    for excess_joules, good in ((0.0, True), (2.0**-20, False)):
        energy = EnergyCounter(wrap_joules=EXACT_RANGE_JOULES, max_power_watts=EXACT_WATTS)
        start = EXACT_RANGE_JOULES - 1024 if wraps else 1024.0
        energy.update(s(0), start)
        position = start + allowed_joules + excess_joules - (EXACT_RANGE_JOULES if wraps else 0.0)
        assert energy.update(s(1), position) is good
        assert energy.total_joules == (allowed_joules if good else 0.0)
        assert energy.wraps == int(wraps and good)


@pytest.mark.parametrize(("excess_joules", "good"), [(0.0, True), (2.0**-20, False)])
def test_after_a_restart_the_rise_since_the_last_good_reading_is_bounded(excess_joules: float, good: bool) -> None:
    energy = EnergyCounter(wrap_joules=EXACT_RANGE_JOULES, max_power_watts=EXACT_WATTS)
    energy.update(s(100), 60_000.0)
    assert not energy.update(s(101), 50.0)
    assert energy.update(s(102), 50.0 + 2.0**-20 * 2_010_000_000 + excess_joules) is good
    assert energy.resets == int(good)


@pytest.mark.parametrize(("before", "after", "joules"), [(65535.75, 0.25, 0.5), (65536.0, 0.0, 0.0)])
def test_a_wrap_may_bring_less_than_a_joule(before: float, after: float, joules: float) -> None:
    energy = counter(EXACT_RANGE_JOULES)
    energy.update(s(0), before)
    assert energy.update(s(1), after)
    assert (energy.total_joules, energy.wraps) == (joules, 1)


@pytest.mark.parametrize(("suspect", "confirmation", "joules", "wraps"), [(5.0, 5.5, 0.5, 0), (990.0, 10.0, 20.0, 1)])
def test_after_a_restart_the_counter_moves_on_or_wraps(
    suspect: float, confirmation: float, joules: float, wraps: int
) -> None:
    energy = EnergyCounter(wrap_joules=1000.0, max_power_watts=100.0)
    energy.update(s(100), 300.0)
    assert not energy.update(s(100), suspect)
    assert energy.update(s(101), confirmation)
    assert (energy.total_joules, energy.wraps, energy.resets) == (joules, wraps, 1)
    assert energy.unmeasured_s == 0.0, "the counter was good at the very time of the suspect"


def test_what_a_restarted_counter_may_rise_depends_on_the_last_good_reading_and_not_on_the_time_of_day() -> None:
    energy = counter()
    energy.update(s(1000), 20_000.0)
    assert not energy.update(s(1001), 50.0)
    assert not energy.update(s(1002), 6000.0), "5950 J in 2 s at 1000 W"
    assert (energy.resets, energy.rejected, energy.total_joules) == (0, 2, 0.0)


def test_a_bound_may_be_below_one_watt() -> None:
    energy = EnergyCounter(wrap_joules=0.5, max_power_watts=0.5)
    energy.update(s(0), 0.25)
    assert energy.update(s(0.5), 0.375)
    assert energy.total_joules == 0.125


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


@pytest.mark.parametrize(("watts", "gap_s"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_bounds_of_power_must_be_positive(watts: float, gap_s: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        PowerIntegrator(max_power_watts=watts, max_gap_s=gap_s)


def test_every_event_of_a_power_sensor_is_counted() -> None:
    energy = PowerIntegrator(max_power_watts=0.5, max_gap_s=0.5)
    assert (energy.total_joules, energy.rejected, energy.unmeasured_s, energy.events) == (0.0, 0, 0.0, 0)
    for at_s, watts, expected in (
        (10.0, 0.5, (0.0, 0, 0.0, 0)),  # the largest power is possible
        (10.5, 0.5, (0.25, 0, 0.0, 0)),  # the longest gap is bridged
        (11.25, 0.5, (0.25, 0, 0.75, 1)),
        (11.5, 0.75, (0.25, 1, 0.75, 2)),
        (11.75, 0.5, (0.5, 1, 0.75, 2)),
        (12.0, -0.25, (0.5, 2, 0.75, 3)),
        (12.5, 0.5, (0.5, 2, 1.5, 4)),
    ):
        assert energy.update(s(at_s), watts) is (0 <= watts <= 0.5)
        assert (energy.total_joules, energy.rejected, energy.unmeasured_s, energy.events) == expected, at_s


def test_of_two_readings_at_one_time_the_first_counts_and_a_nanosecond_is_time() -> None:
    for second_ns, joules in ((0, 200.0), (1, 300.0)):
        energy = integrator()
        energy.update(0, 100.0)
        energy.update(second_ns, 300.0)
        energy.update(second_ns + NS_PER_S, 300.0)
        assert energy.total_joules == pytest.approx(joules, abs=1e-6)


def test_steps_that_grow_lose_no_rounding_either() -> None:
    """Each step is larger than all before: the sum loses half of a last place twice, which is visible together."""
    watts = [0.0, 2.0**-29, 2.0**24 - 2.0**-29, 2.0**-28 + 2.0**-29]
    energy = PowerIntegrator(max_power_watts=2.0**25, max_gap_s=10.0)
    for number, value in enumerate(watts):
        energy.update(s(2 * number), value)
    joules = [before + after for before, after in pairwise(watts)]
    # Not sum(), which compensates for rounding since Python 3.12.
    assert functools.reduce(operator.add, joules) != math.fsum(joules)
    assert energy.total_joules == math.fsum(joules)


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


def test_after_unmeasured_time_power_starts_again() -> None:
    power = PowerFromEnergy()
    power.update(s(100), 0.0, None)
    power.clear()
    assert power.update(s(101), 5000.0, None) is None
    assert power.update(s(102), 5100.0, None) == pytest.approx(100.0)


def test_power_needs_its_span_at_any_time_of_day() -> None:
    power = PowerFromEnergy()
    assert power.update(s(100), 0.0, None) is None
    assert power.update(s(100.04), 4.0, None) is None
    assert power.update(s(100.05), 5.0, None) == pytest.approx(100.0)
    # The sensor turns out to be slower, 5 ms: from now on 0.1 s, as long as the readings since the start.
    assert power.update(s(100.1), 15.0, 0.005) == pytest.approx(150.0)
    assert power.update(s(100.11), 20.0, 0.006) is None


# -- RefreshEstimator ------------------------------------------------------------------------------


NS_PER_MS = 1_000_000


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


def changes_at(estimator: RefreshEstimator, *reads: tuple[float, float]) -> RefreshEstimator:
    for at_s, value in reads:
        estimator.update(s(at_s), value)
    return estimator


def test_changes_are_counted_until_the_reads_are_too_far_apart_to_show_more() -> None:
    """Read once a second, a power sensor seems to be refreshed once a second; such reads show nothing better."""
    estimator = RefreshEstimator(is_counter=False)
    assert (estimator.changes, estimator.refresh_s, estimator.resolved_s) == (0, None, None)
    changes_at(estimator, (0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0))
    assert (estimator.changes, estimator.refresh_s, estimator.resolved_s) == (3, 1.0, None)
    changes_at(estimator, (4.0, 5.0), (4.25, 5.0), (4.5, 5.0))
    assert estimator.changes == 3
    changes_at(estimator, (4.75, 6.0))
    assert estimator.changes == 4


def test_a_period_is_resolved_if_both_changes_are_known_to_half_of_it() -> None:
    """Read every 0.5 s, changes are 1 s apart: known to 0.5 s each, just enough."""
    estimator = watch(1.0, 0.5, 4.0)
    assert (estimator.changes, estimator.resolved) == (3, True)
    assert estimator.refresh_s == estimator.resolved_s == 1.0
    estimator = watch(1.0, 0.625, 4.0)
    assert not estimator.resolved and estimator.resolved_s is None


def test_an_unresolved_distance_of_a_counter_counts_if_it_was_seen_unchanged() -> None:
    """Changes within (0, 1], (1.25, 1.5], (1.5, 2.5], (2.75, 3]: the first and third are known to 1 s only."""
    estimator = changes_at(
        RefreshEstimator(is_counter=True),
        (0.0, 0.0), (1.0, 1.0), (1.25, 1.0), (1.5, 2.0), (2.5, 3.0), (2.75, 3.0), (3.0, 4.0),
    )  # fmt: skip
    assert estimator.refresh_s == pytest.approx(0.875), "1.375 - 0.5 and 2.875 - 2.0"
    assert estimator.resolved_s is None


def test_a_resolved_period_replaces_a_shorter_guess_and_flat_values_do_not_lengthen_it() -> None:
    estimator = changes_at(RefreshEstimator(is_counter=False), (0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.75, 4.0))
    assert (estimator.refresh_s, estimator.resolved_s) == (0.25, None)
    changes_at(estimator, *((0.75 + step / 32, 4.0 + step // 16) for step in range(1, 96)))
    assert estimator.refresh_s == estimator.resolved_s == 0.5
    # From now on the value changes at every fourth refresh only.
    changes_at(estimator, *((16 + step / 32, 200.0 + step // 64) for step in range(64 * 14)))
    assert estimator.refresh_s == estimator.resolved_s == 0.5


def test_interrupted_reads_do_not_yield_a_long_refresh_period() -> None:
    """A counter of 1 ms was once published with up to 3 s: reads with seconds between them, and one repeated value."""
    estimator = RefreshEstimator(is_counter=True)
    now_ns = 0
    for pause_ms in (470, 0.05, 1300, 0.05, 3000, 0.05, 700, 0.05):
        now_ns += s(pause_ms / 1000)
        estimator.update(now_ns, now_ns // NS_PER_MS * 0.1)
    assert estimator.refresh_s is None


def test_one_read_that_is_interrupted_before_its_time_is_taken_does_not_define_the_refresh_period() -> None:
    """Its value seems to be unchanged for 0.5 s, and the next change looks exact."""
    estimator = RefreshEstimator(is_counter=True)
    for number in range(60):
        at_ns = number * 100_000
        late_ns = s(0.5) if number > 24 else 0
        value_ns = at_ns + (late_ns if number > 25 else 0)
        estimator.update(at_ns + late_ns, value_ns // NS_PER_MS * 0.1)
        assert estimator.refresh_s is None or estimator.refresh_s == pytest.approx(0.001, abs=2e-4)
    assert estimator.resolved


@given(st.lists(st.tuples(st.integers(20, 300), st.integers(2, 2000)), max_size=12))
def test_the_refresh_period_is_right_after_a_burst_however_its_reads_are_interrupted(
    interruptions: list[tuple[int, int]],
) -> None:
    """Nine periods decide; at least ten more follow the last interruption."""
    estimator = RefreshEstimator(is_counter=True)
    now_ns = 0
    for reads, pause_ms in [*interruptions, (240, 0)]:
        for _ in range(reads):
            now_ns += 50_000
            estimator.update(now_ns, now_ns // NS_PER_MS * 0.1)
        now_ns += s(pause_ms / 1000)
    assert estimator.resolved_s == pytest.approx(0.001, abs=1e-4)
