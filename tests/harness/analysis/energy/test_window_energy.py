"""Properties of the three methods for the energy of a window, checked with signals whose integral is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from joulewatch_harness.analysis.energy.from_edges import _largest_slacks, _moved_outside, energy_from_edges
from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import UNKNOWN_CLOCK, ClockOffset, EdgeReading, Span, WindowEnergy
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95, student_factor
from support.synthetic import T0, Signal

watts_list = st.lists(st.floats(0, 1e3), min_size=11, max_size=11)
cuts = st.tuples(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10)).map(sorted)
far_cuts = st.tuples(st.floats(0, 2), st.floats(2, 4), st.floats(2, 4)).map(lambda steps: np.cumsum(steps).tolist())
"""Three times at least 2 s apart: between two of them are two samples of a power, which it needs."""


def power_series(watts: list[float], shift_s: float = 0.0) -> Series:
    return Series(np.arange(11.0) + shift_s, np.array(watts))


def counter_series(watts: list[float], shift_s: float = 0.0) -> Series:
    return Series(np.arange(11.0) + shift_s, np.cumsum(np.array(watts)))


Energy = Callable[[Series, Span], WindowEnergy]
WAYS: list[tuple[Callable[[list[float], float], Series], Energy]] = [
    (counter_series, energy_from_counter),
    (power_series, energy_from_power),
]


@pytest.mark.parametrize(("series", "energy"), WAYS)
@given(watts=watts_list, cuts=cuts, far_cuts=far_cuts)
def test_adjacent_windows_add_up(
    series: Callable[[list[float], float], Series],
    energy: Energy,
    watts: list[float],
    cuts: list[float],
    far_cuts: list[float],
) -> None:
    a, b, c = far_cuts if energy is energy_from_power else cuts
    assume(b - a > 1e-6 and c - b > 1e-6)
    data = series(watts, 0.0)
    left, right = energy(data, Span(a, b)), energy(data, Span(b, c))
    whole = energy(data, Span(a, c))
    assert left.joules + right.joules == pytest.approx(whole.joules, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("series", "energy"), WAYS)
@given(watts=st.floats(0, 1e4), start=st.floats(0, 9), length=st.floats(0.01, 9))
def test_constant_power_gives_power_times_time(
    series: Callable[[list[float], float], Series], energy: Energy, watts: float, start: float, length: float
) -> None:
    length = max(length, 2.0) if energy is energy_from_power else length
    assume(start + length <= 10)
    actual = energy(series([watts] * 11, 0.0), Span(start, start + length))
    assert actual.joules == pytest.approx(watts * ((start + length) - start), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("series", "energy"), WAYS)
@given(watts=watts_list, cuts=cuts, far_cuts=far_cuts)
def test_no_result_changes_when_the_clock_is_shifted(
    series: Callable[[list[float], float], Series],
    energy: Energy,
    watts: list[float],
    cuts: list[float],
    far_cuts: list[float],
) -> None:
    a, _, c = far_cuts if energy is energy_from_power else cuts
    assume(c - a > 1e-3 and a > 0.01 and c < 9.99)
    near = energy(series(watts, 0.0), Span(a, c))
    far = energy(series(watts, T0), Span(a + T0, c + T0))
    # A double resolves 0.24 µs of Unix time: each edge may lie so much earlier or later. Close to a sample, between two
    # very different powers, that can be more than a rounding error.
    shortest = energy(series(watts, 0.0), Span(a + 3e-7, c - 3e-7))
    longest = energy(series(watts, 0.0), Span(a - 3e-7, c + 3e-7))
    rounding = 1e-6 * near.joules + 1e-2
    assert shortest.joules - rounding <= far.joules <= longest.joules + rounding
    # The same shift as a clock offset.
    shifted = {energy_from_counter: energy_from_counter, energy_from_power: energy_from_power}[energy](  # type: ignore[index]
        series(watts, 100.0), Span(a, c), offset=ClockOffset(100.0, 100.0)
    )
    assert shifted.joules == pytest.approx(near.joules, rel=1e-6, abs=1e-6)


@given(watts=watts_list, cuts=cuts, far_cuts=far_cuts)
def test_a_longer_window_never_has_less_energy(watts: list[float], cuts: list[float], far_cuts: list[float]) -> None:
    for series, energy in WAYS:
        a, b, c = far_cuts if energy is energy_from_power else cuts
        assume(b - a > 1e-6 and c - b > 1e-6)
        data = series(watts, 0.0)
        assert energy(data, Span(a, b)).joules <= energy(data, Span(a, c)).joules + 1e-9


@st.composite
def signals(draw: st.DrawFn) -> tuple[Signal, float]:
    """Random steps of power over 20 s from T0 on, and the largest power."""
    times = sorted(draw(st.lists(st.floats(0, 20), min_size=0, max_size=12, unique=True)))
    watts = draw(st.lists(st.floats(0, 500), min_size=len(times) + 1, max_size=len(times) + 1))
    return Signal((T0, *(T0 + t for t in times)), tuple(watts)), max(watts)


@given(
    signal=signals(),
    steps=st.lists(st.floats(0.05, 1.0), min_size=40, max_size=60),
    refresh_s=st.sampled_from([0.0, 0.001, 0.01, 0.1]),
    start=st.floats(2, 12),
    length=st.floats(0.2, 6),
    clock=st.floats(-1, 1),
    offset=st.sampled_from([ClockOffset(-0.05, 0.05), UNKNOWN_CLOCK]),
)
def test_the_bounds_of_a_history_contain_the_truth(
    signal: tuple[Signal, float],
    steps: list[float],
    refresh_s: float,
    start: float,
    length: float,
    clock: float,
    offset: ClockOffset,
) -> None:
    """Any signal, any sampling times, a counter with a refresh period, a clock known to within 50 ms or unknown."""
    truth, largest = signal
    clock *= offset.upper_s
    times = T0 + np.cumsum(np.array(steps))
    assume(times[0] < T0 + start - 0.6 and times[-1] > T0 + start + length + 0.6)
    counter = Series(times + clock, truth.counter_joules(times, refresh_s))
    window = Span(T0 + start, T0 + start + length)
    actual = energy_from_counter(
        counter,
        window,
        Traits(refresh_s=refresh_s),
        offset=offset,
        max_gap_s=5.0,
        power_cap_watts=largest,
    )
    joules = float(truth.energy_joules(window.end_s) - truth.energy_joules(window.start_s))
    slack = 1e-4  # J: 0.24 µs of Unix time at 500 W
    assert actual.lower_joules - slack <= joules <= actual.upper_joules + slack
    assert actual.lower_joules - slack <= actual.joules <= actual.upper_joules + slack


@given(
    signal=signals(),
    before=st.floats(0, 0.02),
    after=st.floats(0, 0.02),
    refresh_s=st.sampled_from([0.0, 0.001, 0.01]),
    start=st.floats(2, 12),
    length=st.floats(0.2, 6),
    clock=st.floats(-1, 1),
    offset=st.sampled_from([ClockOffset(-0.003, 0.003), UNKNOWN_CLOCK]),
)
def test_the_bounds_of_edges_contain_the_truth(
    signal: tuple[Signal, float],
    before: float,
    after: float,
    refresh_s: float,
    start: float,
    length: float,
    clock: float,
    offset: ClockOffset,
) -> None:
    """Both readings have one offset, anywhere within its bounds."""
    truth, largest = signal
    window = Span(T0 + start, T0 + start + length)
    clock *= offset.upper_s
    reads = (window.start_s - before, window.end_s + after)
    first, last = (EdgeReading(at_s + clock, float(truth.counter_joules(at_s, refresh_s)), offset) for at_s in reads)
    actual = energy_from_edges(first, last, window, Traits(refresh_s=refresh_s), power_cap_watts=largest)
    joules = float(truth.energy_joules(window.end_s) - truth.energy_joules(window.start_s))
    assert actual.lower_joules - 1e-4 <= joules <= actual.upper_joules + 1e-4
    assert actual.lower_joules - 1e-4 <= actual.joules <= actual.upper_joules + 1e-4


def test_edges_in_steady_power_are_exact_within_their_own_uncertainty() -> None:
    truth = Signal((T0,), (200.0,))
    window = Span(T0 + 5, T0 + 6)
    first, last = (EdgeReading(at, float(truth.energy_joules(at))) for at in (T0 + 4.999, T0 + 6.001))
    actual = energy_from_edges(first, last, window, Traits(refresh_s=0.001, resolution_joules=6e-5))
    assert actual.joules == pytest.approx(200.0, rel=2e-3)
    assert {item.name for item in actual.budget} == {"edge slack", "refresh", "resolution"}
    assert abs(actual.joules - 200.0) <= 2 * actual.standard_joules


def test_published_accuracy_is_systematic_and_does_not_widen_the_bounds() -> None:
    counter = Series(np.arange(11.0), 100 * np.arange(11.0))
    rough = energy_from_counter(counter, Span(2, 8), Traits(accuracy=0.5, family="estimate"))
    exact = energy_from_counter(counter, Span(2, 8))
    item = next(item for item in rough.budget if item.name == "accuracy")
    assert item.systematic and item.half_width_joules == pytest.approx(300.0)
    assert item.standard_joules == pytest.approx(300.0 / 3**0.5)
    assert rough.upper_joules == exact.upper_joules
    assert rough.sampling_joules == pytest.approx(exact.standard_joules)


def test_edges_on_samples_need_no_interpolation() -> None:
    counter = Series(np.arange(11.0), 100 * np.arange(11.0))
    actual = energy_from_counter(counter, Span(2, 8))
    assert actual.lower_joules == actual.joules == actual.upper_joules == pytest.approx(600.0)
    assert actual.budget == ()


def reason(excinfo: pytest.ExceptionInfo[CoverageError]) -> str:
    return excinfo.value.reason


def test_a_window_that_the_samples_do_not_cover_has_no_energy() -> None:
    counter = Series(np.array([0.0, 1, 2, 3, 8, 9, 10]), np.arange(7.0))
    for window, expected in (
        (Span(-1.0, 2.0), "unbracketed"),
        (Span(2.0, 11.0), "unbracketed"),
        (Span(1.5, 5.0), "sample_gap"),
        (Span(1.5, 1.6), "below_refresh"),
    ):
        with pytest.raises(CoverageError) as excinfo:
            energy_from_counter(counter, window, Traits(refresh_s=0.5))
        assert reason(excinfo) == expected
    with pytest.raises(CoverageError) as excinfo:
        energy_from_counter(Series(np.array([1.0]), np.array([1.0])), Span(0, 2))
    assert reason(excinfo) == "no_samples"


def test_a_gap_inside_the_window_affects_power_but_not_a_counter() -> None:
    times = np.array([0.0, 1, 2, 7, 8, 9])
    assert energy_from_counter(Series(times, 5 * times), Span(0.5, 8.5)).joules == pytest.approx(40.0)
    with pytest.raises(CoverageError) as excinfo:
        energy_from_power(Series(times, np.ones(6)), Span(0.5, 8.5))
    assert reason(excinfo) == "sample_gap"


def test_a_window_with_a_restart_has_no_energy() -> None:
    counter = Series(np.arange(8.0), np.array([50.0, 60, 70, 5, 15, 25, 35, 45]))
    with pytest.raises(CoverageError) as excinfo:
        energy_from_counter(counter, Span(1.5, 5.5))
    assert reason(excinfo) == "exporter_restart"
    assert energy_from_counter(counter, Span(3.5, 6.5)).joules == pytest.approx(30.0)
    # The new counter may exceed the old one by the next sample; the start time shows the restart.
    rising = Series(np.arange(8.0), 10 * np.arange(8.0))
    with pytest.raises(CoverageError) as excinfo:
        energy_from_counter(rising, Span(1.5, 5.5), restarts_s=np.array([-100.0, 3.2]))
    assert reason(excinfo) == "exporter_restart"
    with pytest.raises(CoverageError) as excinfo:
        energy_from_edges(EdgeReading(1, 70.0), EdgeReading(5, 3.0), Span(1.1, 4.9))
    assert reason(excinfo) == "exporter_restart"
    with pytest.raises(CoverageError) as excinfo:
        energy_from_edges(EdgeReading(1, 7.0), EdgeReading(5, 30.0), Span(1.1, 4.9), restarts_s=np.array([3.0]))
    assert reason(excinfo) == "exporter_restart"


def test_edges_out_of_order_and_short_windows_have_no_energy() -> None:
    with pytest.raises(CoverageError) as excinfo:
        energy_from_edges(EdgeReading(5, 7.0), EdgeReading(1, 30.0), Span(1.1, 4.9))
    assert reason(excinfo) == "clock_skew"
    with pytest.raises(CoverageError) as excinfo:
        energy_from_edges(EdgeReading(1, 7.0), EdgeReading(1.2, 8.0), Span(1.05, 1.15), Traits(refresh_s=0.5))
    assert reason(excinfo) == "below_refresh"
    with pytest.raises(ValueError, match="not after its start"):
        Span(2, 2)


def test_zero_is_a_measurement() -> None:
    counter = Series(np.arange(11.0), np.full(11, 7.0))
    actual = energy_from_counter(counter, Span(2.5, 7.5), Traits(refresh_s=0.1))
    assert (actual.joules, actual.lower_joules, actual.upper_joules) == (0.0, 0.0, 0.0)
    edges = energy_from_edges(EdgeReading(1, 7.0), EdgeReading(5, 7.0), Span(1.1, 4.9))
    assert edges.joules == 0.0 and edges.mean_power_watts == 0.0


def test_a_load_that_starts_and_ends_with_the_window_is_measured_exactly_from_the_history() -> None:
    """The powers on either side locate the step between two samples; linear interpolation would be 2.7 % low."""
    times_s = np.arange(0.0, 40.0, 1.0) + 0.4
    begin_s, end_s = 10.0, 20.0

    def joules(at_s: float) -> float:
        return 50.0 * at_s + 200.0 * (min(max(at_s, begin_s), end_s) - begin_s)

    counter = Series(times_s, np.array([joules(float(at_s)) for at_s in times_s]), {})
    energy = energy_from_counter(counter, Span(begin_s, end_s))
    assert energy.joules == pytest.approx(2500.0, rel=1e-12)
    assert energy.lower_joules <= 2500.0 <= energy.upper_joules
    straight = float(np.diff(np.interp((begin_s, end_s), times_s, counter.values))[0])
    assert straight == pytest.approx(2500.0 - 200.0 * 2 * 0.6 * 0.4, rel=1e-9)


def test_a_restart_next_to_the_window_gives_no_power_to_interpolate_with() -> None:
    """The counter falls outside the window, so the interpolation is linear."""
    times_s = np.arange(0.0, 12.0, 1.0)
    values = np.where(times_s < 3, 1000.0 + 100 * times_s, 100 * times_s)
    energy = energy_from_counter(Series(times_s, values, {}), Span(3.5, 8.5))
    assert energy.joules == pytest.approx(500.0)


def test_the_time_between_reading_and_window_counts_with_the_observed_powers() -> None:
    """If the power was never below 200 W, it was 200 W in the 4 ms next to the window as well, not half of it."""
    start, end = EdgeReading(9.998, 0.0), EdgeReading(11.002, 200.8)
    steady = energy_from_edges(start, end, Span(10.0, 11.0), power_floor_watts=200.0)
    assert steady.joules == pytest.approx(200.0)
    idling = energy_from_edges(start, end, Span(10.0, 11.0))
    assert idling.joules == pytest.approx(200.4)
    for energy in (steady, idling):
        assert energy.lower_joules <= 200.0 <= energy.upper_joules
        assert energy.standard_joules > 0
    assert steady.standard_joules < idling.standard_joules
    assert (steady.lower_joules, steady.upper_joules) == (idling.lower_joules, idling.upper_joules)


# Sensors that observe only part of the time

PERIOD_S, SEEN_S, STEP_S = 0.1, 0.025, 0.001
PARTLY = Traits(refresh_s=PERIOD_S, resolution_joules=0.0, accuracy=None, family="nvml", window_s=SEEN_S)


def telegraph(random: np.random.Generator, count: int, dwell_s: float) -> Floats:
    """A load that switches at random between 300 W and 80 W."""
    spans = np.maximum(1, random.exponential(dwell_s / STEP_S, 2 * int(count * STEP_S / dwell_s) + 50).astype(int))
    levels = np.where((np.arange(spans.size) + int(random.integers(2))) % 2, 300.0, 80.0)
    return np.repeat(levels, spans)[:count]


def steps_of(random: np.random.Generator, count: int, period_s: float) -> Floats:
    """A periodic load that is not synchronised with the sensor."""
    times = np.arange(count) * STEP_S + random.random() * period_s
    return np.where(times % period_s < 0.4 * period_s, 300.0, 80.0)


def watched(
    random: np.random.Generator, watts: Floats, length_s: float, every: int
) -> tuple[float, WindowEnergy, WindowEnergy]:
    """Return the true joules, and the energy from such a sensor without and with the unobserved time.

    As the exporter does it: readings integrated by the trapezoid; as a scrape sees it: each ``every``-th reading.
    """
    sums = np.concatenate(([0.0], np.cumsum(watts) * STEP_S))
    grid = np.arange(sums.size) * STEP_S
    period, seen = round(PERIOD_S / STEP_S), round(SEEN_S / STEP_S)
    starts = np.arange(int(random.integers(period)), watts.size - seen, period)
    values = np.asarray((sums[starts + seen] - sums[starts]) / SEEN_S, np.float64)
    reads = np.asarray((starts + seen) * STEP_S, np.float64)
    trapezoids = (values[1:] + values[:-1]) / 2 * np.diff(reads)
    counter = np.asarray(np.concatenate(([0.0], np.cumsum(trapezoids))), np.float64)
    window = Span(2.0, 2.0 + length_s)
    blind = energy_from_counter(Series(reads, counter), window, PARTLY, power_floor_watts=80.0, power_cap_watts=300.0)
    truth = float(np.interp(window.end_s, grid, sums) - np.interp(window.start_s, grid, sums))
    return truth, blind, with_unseen(blind, window, PARTLY, Series(reads[::every], values[::every]))


@pytest.mark.parametrize(
    ("load", "scale_s"), [(telegraph, 0.005), (telegraph, 0.02), (telegraph, 0.1), (steps_of, 0.037), (steps_of, 0.13)]
)
@pytest.mark.parametrize("every", [1, 10])
def test_the_uncertainty_covers_the_time_that_a_sensor_does_not_observe(
    load: Callable[[np.random.Generator, int, float], Floats], scale_s: float, every: int
) -> None:
    """With 25 of every 100 ms observed, the interval of 95 % covers the truth only with this component."""
    random = np.random.default_rng(3)
    tries, blind, held = 200, 0, 0
    for _ in range(tries):
        truth, without, actual = watched(random, load(random, 14_000, scale_s), 10.0, every)
        assert actual.joules == without.joules
        assert actual.lower_joules <= truth <= actual.upper_joules
        blind += abs(without.joules - truth) <= NORMAL_95 * without.standard_joules
        held += abs(actual.joules - truth) <= NORMAL_95 * actual.standard_joules
    assert held / tries >= 0.93
    if load is telegraph:
        assert blind / tries < 0.6


def test_the_component_of_unobserved_time_follows_its_formula() -> None:
    """100 periods, 90 and 110 W alternate: s = 14.1 W by successive differences, u = 10 s x 14.1 W x 0.0866."""
    window = Span(1.0, 11.0)
    times = np.arange(0.0, 12.05, PERIOD_S) + 1e-6
    readings = Series(times, np.where(np.arange(times.size) % 2, 90.0, 110.0))
    counter = Series(times, 100.0 * times)
    blind = energy_from_counter(counter, window, PARTLY)
    actual = with_unseen(blind, window, PARTLY, readings)
    (item,) = [item for item in actual.budget if item.name == "unseen"]
    count = np.count_nonzero((times >= 1.0) & (times <= 11.0))
    few = student_factor(2 * (count - 1) / 3) / NORMAL_95
    assert item.standard_joules == pytest.approx(few * 10 * math.sqrt(200) * math.sqrt(0.75 / 100), rel=1e-6)
    assert not item.systematic and "observes 25 of every 100 ms" in item.text
    # Scraped three times as often, each value appears three times and counts once.
    often = Series(
        np.sort(np.concatenate([times + shift for shift in (0.0, 0.03, 0.06)])), np.repeat(readings.values, 3)
    )
    (again,) = [one for one in with_unseen(blind, window, PARTLY, often).budget if one.name == "unseen"]
    assert again.standard_joules == pytest.approx(item.standard_joules, rel=0.02)


def test_with_too_few_values_the_unobserved_power_is_uniform() -> None:
    window = Span(1.0, 2.0)
    times = np.arange(0.0, 4.0, 0.5)
    blind = energy_from_counter(Series(times, 100.0 * times), window, PARTLY)
    for readings in (None, Series(times, np.full(times.shape, 100.0))):
        actual = with_unseen(blind, window, PARTLY, readings, power_floor_watts=40.0, power_cap_watts=250.0)
        (item,) = [one for one in actual.budget if one.name == "unseen"]
        assert item.half_width_joules == pytest.approx(0.75 * 1.0 * 150.0)
        assert item.standard_joules == pytest.approx(item.half_width_joules / math.sqrt(3))
        assert actual.lower_joules == pytest.approx(0.25 * blind.lower_joules)
        assert actual.upper_joules == pytest.approx(blind.upper_joules + 0.75 * 150.0)


@pytest.mark.parametrize(
    "traits", [Traits(refresh_s=0.1), Traits(refresh_s=0.1, window_s=0.1), Traits(refresh_s=0.0, window_s=0.025)]
)
def test_a_sensor_that_observes_all_the_time_is_unchanged(traits: Traits) -> None:
    window = Span(1.0, 3.0)
    blind = energy_from_counter(Series(np.arange(5.0), np.arange(5.0)), window, traits)
    assert with_unseen(blind, window, traits, None) is blind


# Worked examples: every number by hand

WORKED = Traits(refresh_s=0.05, resolution_joules=2.0, accuracy=0.04, family="rapl")


def budget_of(energy: WindowEnergy) -> dict[str, tuple[float, float, str, bool, str]]:
    """Name -> half-width, divisor from it to the standard uncertainty, distribution, systematic, family."""
    return {
        item.name: (
            pytest.approx(item.half_width_joules, rel=1e-9),
            pytest.approx(item.half_width_joules / item.standard_joules, rel=1e-9),
            item.distribution,
            item.systematic,
            item.family,
        )
        for item in energy.budget
    }


@pytest.mark.parametrize(("largest_watts", "cap_watts"), [(150.0, 200.0), (500.0, 500.0)])
def test_worked_example_of_edges(largest_watts: float, cap_watts: float) -> None:
    """240 J in 2.4 s between the readings, which are 0.1 s before and 0.3 s after the window of 2 s."""
    found = energy_from_edges(
        EdgeReading(10.1, 1000.0, ClockOffset(0.1, 0.3)),
        EdgeReading(12.22, 1240.0, ClockOffset(-0.14, -0.02)),
        Span(10.0, 12.0, clock_error_s=0.01),
        WORKED,
        power_floor_watts=40.0,
        power_cap_watts=largest_watts,
    )
    # 100 W in the window; outside it the mean of 100 W and the smallest power, 40 W.
    assert found.joules == pytest.approx(240 - 0.4 * 70)
    assert budget_of(found) == {
        # Idle or running: 12 J. Running with any power from 40 W to twice the mean, at either edge for 0.2 s.
        "edge slack": (12.0, pytest.approx(12 / math.sqrt(12**2 / 2 + (0.2 * 160) ** 2 / 12)), "arcsine", True, ""),
        "clock": ((0.11 + 0.07) * 100, math.sqrt(3), "uniform", True, ""),
        # The variance of a power from 40 W to the largest, with the mean 100 W.
        "refresh": (0.05 * math.sqrt(100**2 + 4 * 60 * (cap_watts - 100)), math.sqrt(6), "triangular", False, ""),
        "resolution": (2.0, math.sqrt(6), "triangular", False, ""),
        "accuracy": (0.04 * 212, math.sqrt(3), "uniform", True, "rapl"),
    }
    blur = 0.05 * cap_watts + 2.0
    # The start may be 0.21 s after its reading or 0.01 s before it, the end at most 0.37 s before its reading.
    assert found.lower_joules == pytest.approx(max(240 - (0.21 + 0.37) * cap_watts - blur, 0.0))
    assert found.upper_joules == pytest.approx(240 + 0.01 * cap_watts + blur)
    assert (found.method, found.samples, found.duration_s) == ("edges", 2, 2.0)


@pytest.mark.parametrize(("floor_watts", "half_joules"), [(0.0, 5.0), (95.0, 1.0), (1000.0, 1.0)])
def test_worked_example_of_an_edge_inside_the_window(floor_watts: float, half_joules: float) -> None:
    """The counter was read 0.1 s late: 0.1 s of the power of the window is missing, known to 20 % at best."""
    found = energy_from_edges(
        EdgeReading(10.1, 0.0), EdgeReading(12.0, 190.0), Span(10.0, 12.0), power_floor_watts=floor_watts
    )
    assert found.joules == pytest.approx(200.0)
    running = 0.1 * (200 - min(floor_watts, 100)) / math.sqrt(12)
    ratio = half_joules / math.sqrt(half_joules**2 / 2 + running**2 / 4)
    assert budget_of(found) == {"edge slack": (half_joules, pytest.approx(ratio), "arcsine", True, "")}
    assert (found.lower_joules, found.upper_joules) == (190.0, pytest.approx(190 + 0.1 * 200))


def test_worked_example_of_a_history() -> None:
    """100 W, read once a second, and a window whose edges are 0.75 s and 0.5 s after a sample."""
    times_s = np.arange(0.0, 12.0)
    found = energy_from_counter(
        Series(times_s, 5000.0 + 100 * times_s),
        Span(2.5, 7.25, clock_error_s=0.125),
        WORKED,
        offset=ClockOffset(0.125, 0.375),
        power_floor_watts=40.0,
        power_cap_watts=240.0,
    )
    assert found.joules == pytest.approx(475.0)
    # Start: 75 J after the sample, between 100 - 240 x 0.25 and 100. End: 50 J after it, between 0 and 100.
    spreads = (math.sqrt((25**3 + 35**3) / (3 * 60)), math.sqrt((50**3 + 50**3) / (3 * 100)))
    assert budget_of(found) == {
        # The interpolation is exact at each sample nearby, so a tenth of the possible error remains.
        "interpolation": (35.0 + 50.0, pytest.approx(850 / math.hypot(*spreads), rel=1e-9), "uniform", True, ""),
        # The offset moves both edges together, the mapping moves each by itself.
        "clock": (0.125 * (240 - 40) + 2 * 0.125 * 100, math.sqrt(3), "uniform", True, ""),
        "refresh": (0.05 * math.sqrt(100**2 + 4 * 60 * 140), math.sqrt(6), "triangular", False, ""),
        "resolution": (2.0, math.sqrt(6), "triangular", False, ""),
        "accuracy": (0.04 * 475, math.sqrt(3), "uniform", True, "rapl"),
    }
    blur = 0.05 * 240 + 2.0
    assert (found.lower_joules, found.upper_joules) == (pytest.approx(400 - blur), pytest.approx(600 + blur))
    assert (found.method, found.samples, found.duration_s) == ("history", 5, 4.75)


def test_bounds_allow_for_the_steepest_rise_that_was_seen() -> None:
    """450 J in 0.5 s inside the window: with 900 W, a refresh of 50 ms may hide 45 J at either edge."""
    times_s = np.arange(20.0) / 2
    values = 100 * times_s + np.where(times_s > 4, 400.0, 0.0)
    found = energy_from_counter(Series(times_s, values), Span(2.0, 8.0), Traits(refresh_s=0.05))
    assert found.joules == pytest.approx(1000.0)
    assert (found.lower_joules, found.upper_joules) == (pytest.approx(955.0), pytest.approx(1045.0))


def test_bounds_allow_for_twice_the_mean_power() -> None:
    """100 W all the time: 10 J may hide in a refresh, and at most 50 J are in the 0.25 s from a sample to the start."""
    counter = Series(np.arange(10.0), 100 * np.arange(10.0))
    found = energy_from_counter(counter, Span(2.0, 8.0), Traits(refresh_s=0.05))
    assert (found.lower_joules, found.upper_joules) == (pytest.approx(590.0), pytest.approx(610.0))
    (item,) = energy_from_counter(counter, Span(2.25, 8.0)).budget
    assert item.half_width_joules == pytest.approx(25.0)
    assert item.standard_joules == pytest.approx(2.5 / math.sqrt(3))


@pytest.mark.parametrize("ahead_s", [0.25, -0.25])
def test_the_bounds_of_a_history_hold_with_an_unknown_clock(ahead_s: float) -> None:
    """200 W for 1 s over 20 W of idle; the exporter's clock is 250 ms ahead or behind, and nothing compared it."""
    times_s = np.arange(0.05, 20.0, 0.1)
    joules = 20 * times_s + 180 * np.clip(times_s - 10, 0, 1)
    counter, window = Series(times_s + ahead_s, joules), Span(10.0, 11.0)
    blind = energy_from_counter(counter, window)
    assert blind.joules == pytest.approx(155.0) and blind.upper_joules < 200.0
    found = energy_from_counter(counter, window, offset=UNKNOWN_CLOCK, power_floor_watts=20.0, power_cap_watts=200.0)
    assert found.joules == pytest.approx(155.0)
    assert found.lower_joules <= 200.0 <= found.upper_joules
    items = {item.name: item for item in found.budget}
    # The largest power is taken as twice the mean, 310 W.
    assert items["clock"].half_width_joules == pytest.approx(0.25 * (310 - 20))
    assert abs(found.joules - 200.0) <= 1.96 * found.standard_joules
    assert "unknown, assumed to be within 250 ms" in items["clock"].text
    exact = energy_from_counter(counter, window, offset=ClockOffset(ahead_s, ahead_s), power_cap_watts=200.0)
    assert exact.joules == pytest.approx(200.0)
    assert {item.name for item in exact.budget} == {"interpolation"}


@pytest.mark.parametrize("ahead_s", [0.25, 0.1, 0.0, -0.25])
@pytest.mark.parametrize("window_s", [1.0, 2.5])
def test_an_unknown_offset_common_to_both_readings_cancels(ahead_s: float, window_s: float) -> None:
    """200 W around the window and 20 W at rest: the ± is that of the 5 ms outside the window, with any offset."""
    window = Span(10.0, 10.0 + window_s, clock_error_s=1e-6)
    reads_s = (window.start_s - 0.002, window.end_s + 0.003)

    def energy(offset: ClockOffset) -> WindowEnergy:
        first, last = (EdgeReading(at_s + ahead_s, 200 * at_s, offset) for at_s in reads_s)
        return energy_from_edges(first, last, window, power_floor_watts=20.0, power_cap_watts=200.0)

    found, exact = energy(UNKNOWN_CLOCK), energy(ClockOffset(ahead_s, ahead_s))
    assert found.joules == pytest.approx(exact.joules, abs=1e-9)
    assert found.standard_joules == pytest.approx(exact.standard_joules, abs=1e-9)
    assert found.joules == pytest.approx(200 * window_s, abs=0.005 * 180 / 2 + 1e-6)
    assert found.lower_joules <= 200 * window_s <= found.upper_joules


def test_a_reading_far_inside_the_window_stays_there() -> None:
    """A sensor read in the background, 0.7 s before the start and 0.4 s before the end: 0.25 s cannot explain that."""
    found = energy_from_edges(
        EdgeReading(9.3, 0.0, UNKNOWN_CLOCK), EdgeReading(11.6, 230.0, UNKNOWN_CLOCK), Span(10.0, 12.0)
    )
    (slack,) = found.budget
    assert slack.text.startswith("450 ms and -150 ms")
    assert found.joules == pytest.approx(230 - 0.45 * 50 + 0.15 * 100)
    assert found.lower_joules == pytest.approx(230 - (0.7 + 0.25) * 200)
    assert found.upper_joules == pytest.approx(230 + (0.4 + 0.25) * 200)


def test_worked_example_of_power() -> None:
    """10 W more each second: the trapezoids are exact, and their bounds are the rectangles above and below.

    The six values in and next to the window, 30 to 80 W, have differences of 10 W and the variance 100 x 35 / 12.
    """
    times_s = np.arange(0.0, 12.0)
    found = energy_from_power(
        Series(times_s, 10 * times_s), Span(2.5, 6.5, clock_error_s=0.05), WORKED, offset=ClockOffset(0.5, 1.0)
    )
    assert found.joules == pytest.approx(5 * (7.25**2 - 3.25**2))
    halves = (7.5 * 0.75 / 2, 5.0, 5.0, 5.0, 2.5 * 0.25 / 2)
    # An offset between 0.5 and 1.0 s: near the window the power is between 30 and 80 W.
    half, clock_half = sum(halves), 0.05 * (32.5 + 72.5) + 0.25 * (80.0 - 30.0)
    sampling = student_factor(2 * 5 / 3) * 4 * math.sqrt((100 / 2 + 3500 / 12) / 2) / math.sqrt(4)
    assert budget_of(found) == {
        "sampling": (pytest.approx(sampling), pytest.approx(NORMAL_95), "normal", False, ""),
        "steps": (10 * 4 / 2, math.sqrt(3), "uniform", True, ""),
        "lag": (1.5 * 0.05 * 50, math.sqrt(3), "uniform", False, ""),
        "clock": (clock_half, math.sqrt(3), "uniform", True, ""),
        "accuracy": (0.04 * 210, math.sqrt(3), "uniform", True, "rapl"),
    }
    assert found.lower_joules == pytest.approx(210 - half - clock_half)
    assert found.upper_joules == pytest.approx(210 + half + clock_half)
    assert (found.method, found.samples, found.duration_s) == ("power", 4, 4.0)
    unknown = energy_from_power(Series(times_s, 10 * times_s), Span(2.5, 6.5), offset=UNKNOWN_CLOCK)
    assert {item.name: item.half_width_joules for item in unknown.budget}["clock"] == pytest.approx(0.25 * 50)
    on_samples = energy_from_power(Series(times_s, 10 * times_s), Span(2.0, 6.0))
    assert (on_samples.joules, on_samples.samples) == (pytest.approx(160.0), 5)
    steady = energy_from_power(Series(times_s, np.full(12, 7.0)), Span(2.0, 7.0))
    assert (steady.joules, steady.lower_joules, steady.upper_joules) == (35.0, 35.0, 35.0)
    assert budget_of(steady) == {"steps": (1 * 5 / 2, math.sqrt(3), "uniform", True, "")}


@pytest.mark.parametrize(
    ("watts", "half_watts"),
    [
        # 60 W on average; 20 to 120 W were seen nearby. Without any change, anything up to twice the mean.
        ([20.0, 120.0, 60.0, 60.0, 60.0, 20.0], 60.0),
        ([60.0] * 6, 60.0),
        ([60.0, 60.0, 60.0, 60.0, 60.0, 50.0], 10.0),
    ],
)
def test_too_few_samples_of_power_have_the_powers_that_were_seen(watts: list[float], half_watts: float) -> None:
    """Two samples in the window and two next to it; a window with one sample has no number."""
    times_s = np.array([0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
    power = Series(times_s, np.array(watts))
    found = energy_from_power(Series(times_s, np.array(watts)), Span(3.0, 5.0))
    item = next(item for item in found.budget if item.name == "sampling")
    assert (item.half_width_joules, item.distribution) == (pytest.approx(2 * half_watts), "uniform")
    with pytest.raises(CoverageError, match="1 sample of power in the window of 1 s") as excinfo:
        energy_from_power(power, Span(2.5, 3.5))
    assert reason(excinfo) == "too_few_samples"


@pytest.mark.parametrize(
    ("watts", "step_watts"),
    [
        ([100.0, 101, 103, 103, 101, 102, 102, 100], 1.0),
        ([96.0, 104, 96, 96, 112, 104, 96, 104], 8.0),
        ([46.19] * 8, 0.01),
        ([46.0] * 8, 1.0),
        ([0.5] * 8, 0.1),
        ([1 / 3] * 8, 0.0),
    ],
)
def test_the_steps_of_a_gauge_are_published_or_the_smallest_one_seen(watts: list[float], step_watts: float) -> None:
    series = Series(np.arange(8.0), np.array(watts))
    for traits, expected in ((Traits(), step_watts), (Traits(resolution_watts=2.0), 2.0)):
        found = energy_from_power(series, Span(1.0, 6.0), traits)
        steps = {item.name: item.standard_joules for item in found.budget}.get("steps", 0.0)
        assert steps == pytest.approx(expected * 5 / math.sqrt(12))


@given(
    watts=st.lists(st.integers(1, 400), min_size=11, max_size=11),
    start=st.floats(0, 3),
    length=st.floats(2, 7),
)
def test_a_gauge_of_whole_watts_never_has_an_uncertainty_below_its_steps(
    watts: list[int], start: float, length: float
) -> None:
    """Rounding to whole watts has a standard uncertainty of 0.29 W, the same in all samples of a steady power."""
    series = power_series([float(value) for value in watts])
    for traits in (Traits(), Traits(resolution_watts=1.0)):
        found = energy_from_power(series, Span(start, start + length), traits)
        assert found.standard_joules >= 0.999 * length / math.sqrt(12)
    counter = counter_series([float(value) for value in watts])
    integrated = Traits(resolution_watts=1.0)
    found = energy_from_counter(counter, Span(start, start + length), integrated)
    assert found.standard_joules >= 0.999 * length / math.sqrt(12)


def test_errors_of_the_interpolation_nearby_decide_unless_the_load_repeats_with_the_samples() -> None:
    """100 W and 300 W in turn, read every second: the mean of either sample's neighbours is wrong by 50 J."""
    times_s = np.arange(0.0, 40.0)
    values = np.cumsum(np.where(np.arange(40) % 2, 300.0, 100.0))
    window = Span(20.5, 30.5)

    def interpolation(values: Floats, **more: float) -> float:
        found = energy_from_counter(Series(times_s, values), window, **more)  # type: ignore[arg-type]
        return next(item.standard_joules for item in found.budget if item.name == "interpolation")

    steady = interpolation(100 * times_s)
    assert steady == pytest.approx(0.1 * math.hypot(50, 50) / math.sqrt(3))
    # Batches of 0.25 to 4 s may repeat with the samples, which then look steady.
    for batch_s, expected in ((0.25, 1), (0.26, 10), (3.9, 10), (4.0, 1), (math.inf, 1)):
        assert interpolation(100 * times_s, batch_s=batch_s) == pytest.approx(expected * steady)
    # The power before an edge is that after it: each sample splits the 400 J of its neighbours in two halves.
    changing = interpolation(values, power_cap_watts=1e9)
    assert changing > 100
    # Six samples on each side of an edge are considered, with two neighbours each.
    for first, wide in ((27, False), (26, True)):
        late = np.where(times_s > first, 100 * times_s + 1000 * (times_s - first), 100 * times_s)
        found = energy_from_counter(Series(times_s[:32], late[:32]), Span(5.5, 19.5))
        item = next(item for item in found.budget if item.name == "interpolation")
        assert (item.standard_joules > 0.2 * item.half_width_joules / math.sqrt(6)) == wide, first


def test_the_interpolation_may_be_wrong_by_anything_near_a_restart_or_with_few_samples() -> None:
    times_s = np.arange(0.0, 30.0)
    full = 100 * times_s
    restarted = np.where(times_s < 8, 5000 + full, full)
    for counter, window in (
        (Series(times_s, restarted), Span(10.5, 18.0)),
        (Series(times_s[:5], full[:5]), Span(1.5, 3)),
    ):
        (item,) = energy_from_counter(counter, window).budget
        assert item.standard_joules == pytest.approx(50 / math.sqrt(3))


@pytest.mark.parametrize(
    ("batch_s", "watts_step", "half_joules"),
    [
        # 100 W between 20 W and 260 W: the variance is at most 160 x 80 W^2. Short batches average out over 0.5 s.
        (math.inf, 0.0, 0.5 * math.sqrt(100**2 + 4 * 160 * 80)),
        (0.5, 0.0, 0.5 * math.sqrt(100**2 + 4 * 160 * 80)),
        (0.05, 0.0, 0.5 * math.sqrt(100**2 + 4 * 160 * 80 / 10)),
        (0.05, 1.0, 0.5 * math.sqrt(100**2 + 7 * 160 * 80 / 10)),
    ],
)
def test_an_old_reading_has_met_any_power_of_the_device(batch_s: float, watts_step: float, half_joules: float) -> None:
    traits = Traits(refresh_s=0.5, resolution_watts=watts_step)
    window, times_s = Span(10.0, 20.0), np.arange(0.0, 30.0)
    more = {"power_floor_watts": 20.0, "power_cap_watts": 260.0, "batch_s": batch_s}
    edges = energy_from_edges(EdgeReading(10.0, 0.0), EdgeReading(20.0, 1000.0), window, traits, **more)  # type: ignore[arg-type]
    history = energy_from_counter(Series(times_s, 100 * times_s), window, traits, **more)  # type: ignore[arg-type]
    for energy in (edges, history):
        items = {item.name: item for item in energy.budget}
        assert items["refresh"].half_width_joules == pytest.approx(half_joules)
        assert items["refresh"].standard_joules == pytest.approx(half_joules / math.sqrt(6))
        if watts_step:
            assert items["steps"].standard_joules == pytest.approx(10 / math.sqrt(12)) and items["steps"].systematic


@pytest.mark.parametrize(("before", "after"), [(200.0, 100.0), (100.0, 200.0)])
def test_the_clock_may_reach_a_change_of_power_outside_the_window(before: float, after: float) -> None:
    """1.5 s on either side of 5 s to 10 s, where the power is 100 W, it is 200 W."""
    watts = np.full(16, 100.0)
    watts[4], watts[11] = before, after
    energy = energy_from_power(Series(np.arange(16.0), watts), Span(5.0, 10.0), offset=ClockOffset(-1.5, 1.5))
    (clock,) = [item for item in energy.budget if item.name == "clock"]
    assert (clock.name, clock.half_width_joules) == ("clock", 1.5 * 100.0)
    assert clock.text.startswith("the exporter's clock, known to be within 1.5e+03 ms")
    assert energy.joules == 500.0


def pair(first: float, last: float) -> tuple[Floats, Floats]:
    """Return the values of one window at its start and its end."""
    return np.array([first]), np.array([last])


@pytest.mark.parametrize("slack_s", [(0.4, -0.1), (-0.1, 0.4)])
def test_worked_example_of_readings_on_one_clock_that_differs(slack_s: tuple[float, float]) -> None:
    """Moved by 0.2 s one reading is 0.6 s outside the window, the other 0.3 s inside; 0.05 s more at each edge."""
    slacks_s = _largest_slacks(pair(*slack_s), pair(0.2, 0.2), np.array([0.05]), np.array([True]))
    assert slacks_s == (pytest.approx(0.65), pytest.approx(0.35))


def test_worked_example_of_readings_on_two_clocks() -> None:
    """Both readings earlier and later by their limits: 0.6 and 0.4 s outside, or 0.2 s outside and 0.2 s inside."""
    slacks_s = _largest_slacks(pair(0.4, 0.1), pair(0.2, 0.3), np.array([0.05]), np.array([False]))
    assert slacks_s == (pytest.approx(0.65 + 0.45), pytest.approx(0.25))


@pytest.mark.parametrize(
    ("slack_s", "limit_s", "moved_s"),
    [
        ((0.3, -0.1), 1.0, (0.2, 0.0)),
        ((0.1, -0.3), 1.0, (0.0, -0.2)),
        ((-0.1, 0.3), 1.0, (0.0, 0.2)),
        ((0.3, -0.4), 0.05, (0.25, -0.35)),
        ((0.5, 0.25), 1.0, (0.5, 0.25)),
        ((-0.5, -0.25), 1.0, (-0.5, -0.25)),
    ],
)
def test_readings_move_only_if_one_is_inside_the_window_and_one_outside(
    slack_s: tuple[float, float], limit_s: float, moved_s: tuple[float, float]
) -> None:
    first_s, last_s = _moved_outside(pair(*slack_s), np.array([limit_s]))
    assert (first_s, last_s) == (pytest.approx(moved_s[0]), pytest.approx(moved_s[1]))


@pytest.mark.parametrize(
    ("values", "start_s", "joules"),
    [
        ([0.0, 20.0, 60.0, 180.0], 2.5, 156.0),  # 10 W before and 30 W after: 0.5 x 10 and 1.5 x 30 share 40 J
        ([0.0, 0.0, 40.0, 160.0], 2.5, 160.0),  # 0 W before
        ([0.0, 20.0, 60.0, 60.0], 2.5, 0.0),  # 0 W after
        ([0.0, 0.0, 40.0, 40.0], 2.5, 30.0),  # 0 W on both sides: a straight line
        ([0.0, 20.0, 80.0, 200.0], 0.5, 195.0),  # no sample before: a straight line
        ([0.0, 20.0, 60.0, 180.0], 5.0, 90.0),  # no sample after: a straight line
    ],
)
def test_between_two_samples_the_powers_on_either_side_decide(
    values: list[float], start_s: float, joules: float
) -> None:
    counter = Series(np.array([0.0, 2.0, 4.0, 8.0]), 1000.0 + np.array(values))
    assert energy_from_counter(counter, Span(start_s, 8.0), max_gap_s=4.0).joules == pytest.approx(joules)
    lifted = Series(np.array([-3.0, *(counter.times_s)]), np.array([1000.0, *counter.values]))
    if start_s > 2:
        assert energy_from_counter(lifted, Span(start_s, 8.0), max_gap_s=4.0).joules == pytest.approx(joules)


def test_a_neighbour_beyond_a_gap_has_no_say_in_the_interpolation() -> None:
    """2.5 s without a sample before the interval: what the power was then is not known, so the line is straight."""
    counter = Series(np.array([-0.5, 2.0, 4.0, 5.0]), np.array([0.0, 20.0, 60.0, 90.0]))
    assert energy_from_counter(counter, Span(2.5, 5.0), max_gap_s=2.0).joules == pytest.approx(60.0)


@pytest.mark.parametrize(("clock_error_s", "lower", "upper"), [(0.0, 400.0, 400.0), (0.25, 300.0, 500.0)])
def test_samples_within_the_clock_error_of_an_edge_bound_nothing(
    clock_error_s: float, lower: float, upper: float
) -> None:
    """Samples every 0.5 s: with 0.25 s of doubt, those 0.25 s from an edge still bound it, those at the edge do not."""
    times_s = np.arange(0.0, 10.0, 0.5)
    shift_s = 0.25 if clock_error_s else 0.0
    counter = Series(times_s + shift_s, 100 * times_s)
    inner = energy_from_counter(counter, Span(2.0, 6.0, clock_error_s))
    assert inner.lower_joules == pytest.approx(lower if not clock_error_s else 350.0)
    assert inner.upper_joules == pytest.approx(upper if not clock_error_s else 450.0)
    on_samples = energy_from_counter(Series(times_s, 100 * times_s), Span(2.0, 6.0, clock_error_s))
    assert (on_samples.lower_joules, on_samples.upper_joules) == (pytest.approx(lower), pytest.approx(upper))


@pytest.mark.parametrize(("clock_error_s", "gap_s", "accepted"), [
    (0.0, 2.0, True), (0.0, 2.125, False), (0.25, 2.5, True), (0.25, 2.625, False),
])  # fmt: skip
@pytest.mark.parametrize("side", ["start", "end"])
def test_a_gap_around_an_edge_is_measured_apart_from_the_doubt_of_the_clock(
    clock_error_s: float, gap_s: float, accepted: bool, side: str
) -> None:
    half_s = gap_s / 2
    times_s = np.array([-2.0, -1.0, 0.0, gap_s, gap_s + 1, gap_s + 2, gap_s + 3])
    if side == "end":
        times_s = -times_s[::-1]
    span = Span(half_s, gap_s + 1.5, clock_error_s) if side == "start" else Span(-gap_s - 1.5, -half_s, clock_error_s)
    counter = Series(times_s, 10 * times_s)
    if accepted:
        assert energy_from_counter(counter, span, max_gap_s=2.0).joules == pytest.approx(10 * span.duration_s)
    else:
        with pytest.raises(CoverageError, match=f"window's {side}") as excinfo:
            energy_from_counter(counter, span, max_gap_s=2.0)
        assert reason(excinfo) == "sample_gap"


def test_without_a_limit_a_gap_is_three_spacings() -> None:
    for gap_s, accepted in ((3.0, True), (3.25, False)):
        times_s = np.array([0.0, 1, 2, 3, 3 + gap_s, 4 + gap_s, 5 + gap_s, 6 + gap_s])
        for energy, values in ((energy_from_counter, 5 * times_s), (energy_from_power, np.full(8, 5.0))):
            window = Span(4.0, 4.5 + gap_s)
            if accepted:
                assert energy(Series(times_s, values), window).joules == pytest.approx(5 * window.duration_s)
            else:
                with pytest.raises(CoverageError) as excinfo:
                    energy(Series(times_s, values), window)
                assert reason(excinfo) == "sample_gap"


def test_a_window_between_two_samples_has_no_sample_and_no_lower_bound() -> None:
    counter = Series(np.arange(8.0), 100 * np.arange(8.0))
    for window in (Span(2.25, 2.75), Span(2.875, 3.125, clock_error_s=0.5)):
        found = energy_from_counter(counter, window)
        assert (found.samples, found.lower_joules) == (0, 0.0)
        assert found.joules == pytest.approx(100 * window.duration_s)
        assert found.upper_joules == (100.0 if window.clock_error_s == 0 else 200.0)


@pytest.mark.parametrize(
    ("restart_s", "hits"), [(1.0, False), (1.0625, True), (3.0, True), (5.0, True), (5.0625, False)]
)
def test_a_restart_counts_from_the_reading_before_the_window_to_the_one_after_it(restart_s: float, hits: bool) -> None:
    restarts_s = np.array([restart_s])
    times_s = np.arange(0.0, 8.0)
    ways: list[Callable[[], WindowEnergy]] = [
        lambda: energy_from_edges(EdgeReading(1, 7.0), EdgeReading(5, 30.0), Span(1.25, 4.75), restarts_s=restarts_s),
        lambda: energy_from_counter(Series(times_s, 10 * times_s), Span(1.25, 4.75), restarts_s=restarts_s),
    ]
    for way in ways:
        if hits:
            with pytest.raises(CoverageError) as excinfo:
                way()
            assert reason(excinfo) == "exporter_restart"
        else:
            way()


def test_limits_themselves_are_accepted() -> None:
    """A window as long as the refresh period has a number; readings half a window apart have none."""
    assert energy_from_edges(EdgeReading(1, 7.0), EdgeReading(3, 8.0), Span(1, 3), Traits(refresh_s=2.0)).joules == 1.0
    with pytest.raises(CoverageError) as excinfo:
        energy_from_edges(EdgeReading(10.5, 0.0), EdgeReading(11.5, 10.0), Span(10.0, 12.0))
    assert reason(excinfo) == "clock_skew"
    assert energy_from_edges(EdgeReading(10.5, 0.0), EdgeReading(11.75, 125.0), Span(10.0, 12.0)).joules == 200.0


def test_two_samples_are_enough_and_one_is_not() -> None:
    for energy, values in ((energy_from_counter, [0.0, 20.0]), (energy_from_power, [10.0, 10.0])):
        assert energy(Series(np.array([0.0, 2.0]), np.array(values)), Span(0.0, 2.0), max_gap_s=2.0).joules == 20.0
        with pytest.raises(CoverageError) as excinfo:
            energy(Series(np.array([1.0]), np.array(values[:1])), Span(0.5, 1.5), max_gap_s=2.0)
        assert reason(excinfo) == "no_samples"


def test_an_idle_counter_has_no_energy_in_any_bound() -> None:
    edges = energy_from_edges(EdgeReading(1, 7.0), EdgeReading(5, 7.0), Span(1.1, 4.9), Traits(refresh_s=0.1))
    assert (edges.lower_joules, edges.upper_joules) == (0.0, 0.0)
    rough = energy_from_edges(EdgeReading(1, 7.0), EdgeReading(5, 8.0), Span(1, 5), Traits(resolution_joules=2.0))
    assert (rough.lower_joules, rough.upper_joules) == (0.0, 3.0)
    history = energy_from_counter(Series(np.arange(5.0), np.arange(5.0)), Span(1, 3), Traits(resolution_joules=3.0))
    assert (history.lower_joules, history.upper_joules) == (0.0, 5.0)


def test_worked_example_of_the_unseen_power() -> None:
    """100 W in 4 s, of which 75 % is not observed; the smallest and largest powers are 40 W and 250 W."""
    times_s = np.arange(0.0, 8.0, 0.5)
    window = Span(1.0, 5.0)
    blind = energy_from_counter(Series(times_s, 100.0 * times_s), window, PARTLY)
    offset = ClockOffset(1.0, 1.0)
    for count in (3, 4):
        # Four values a refresh period apart are enough for a scatter; on the exporter's clock, 1 s later.
        # The values before and after the window do not count, nor does the one only 50 ms after another.
        reads_s = [1.5, 2.0, 2.05, 2.5, 3.0, 6.0][: count + 2]
        watts = [999.0, 90.0, 999.0, 110.0, 90.0, 110.0][: count + 2]
        readings = Series(np.array([*reads_s, 6.5]), np.array([*watts, 999.0]))
        found = with_unseen(
            blind, window, PARTLY, readings, offset=offset, power_floor_watts=40.0, power_cap_watts=250.0
        )
        (item,) = [one for one in found.budget if one.name == "unseen"]
        assert found.budget[:-1] == blind.budget and item is found.budget[-1]
        if count == 3:
            assert (item.half_width_joules, item.distribution) == (pytest.approx(0.75 * 4 * 150), "uniform")
            assert item.standard_joules == pytest.approx(0.75 * 4 * 150 / math.sqrt(3))
        else:
            few = student_factor(2.0) / NORMAL_95
            assert item.standard_joules == pytest.approx(few * 4 * math.sqrt(200) * math.sqrt(0.75 / 40))
            assert item.half_width_joules == pytest.approx(NORMAL_95 * item.standard_joules)
            assert item.distribution == "normal"
        assert not item.systematic
        assert found.joules == blind.joules
        assert found.lower_joules == pytest.approx(0.25 * blind.lower_joules)
        assert found.upper_joules == pytest.approx(blind.upper_joules + 0.75 * 4 * 150)


@pytest.mark.parametrize(
    ("floor_watts", "cap_watts", "half_watts", "above_watts"),
    [(40.0, 120.0, 100.0, 100.0), (0.0, 0.0, 100.0, 100.0), (40.0, 1000.0, 900.0, 900.0), (300.0, 0.0, 100.0, 100.0)],
)
def test_unseen_power_is_at_most_the_largest_seen_and_at_least_twice_the_mean(
    floor_watts: float, cap_watts: float, half_watts: float, above_watts: float
) -> None:
    window = Span(1.0, 5.0)
    times_s = np.arange(0.0, 8.0, 0.1)
    blind = energy_from_counter(Series(times_s, 100.0 * times_s), window, PARTLY)
    found = with_unseen(blind, window, PARTLY, None, power_floor_watts=floor_watts, power_cap_watts=cap_watts)
    assert found.budget[-1].half_width_joules == pytest.approx(0.75 * 4 * half_watts)
    assert found.upper_joules == pytest.approx(blind.upper_joules + 0.75 * 4 * above_watts)


def test_a_gauge_has_no_more_periods_than_samples() -> None:
    """Sampled every 0.5 s, a gauge that is refreshed every 0.1 s has shown 9 values in 4 s, not 40."""
    times_s = np.arange(0.0, 8.0, 0.5)
    watts = np.where(np.arange(16) % 2, 90.0, 110.0)
    window = Span(1.0, 5.0)
    blind = energy_from_power(Series(times_s, watts), window, PARTLY)
    assert blind.samples == 9
    item = with_unseen(blind, window, PARTLY, Series(times_s, watts)).budget[-1]
    few = student_factor(2 * 8 / 3) / NORMAL_95
    assert item.standard_joules == pytest.approx(few * 4 * math.sqrt(200) * math.sqrt(0.75 / 9))


def test_what_is_missing_is_named() -> None:
    times_s = np.arange(2.0, 8.0)
    for energy in (energy_from_counter, energy_from_power):
        for window, text in (
            (Span(1.0, 5.0), "no sample before the window's start"),
            (Span(9.0, 12.0), "no sample after the window's start"),
            (Span(3.0, 9.0), "no sample after the window's end"),
        ):
            with pytest.raises(CoverageError, match=text):
                energy(Series(times_s, times_s), window)
    with pytest.raises(CoverageError, match="no sample after the window's start"):
        energy_from_counter(Series(np.array([2.0, 3.0]), np.array([0.0, 1.0])), Span(2.75, 3.5, clock_error_s=0.75))
    with pytest.raises(CoverageError, match=r"the counter fell at 5\.000"):
        energy_from_counter(Series(times_s, np.array([5.0, 5.5, 5.5, 1, 2, 3])), Span(2.5, 6.0))
    for side, span in (("start", Span(3.5, 11.5)), ("end", Span(2.5, 9.5))):
        before, after = ([2.0, 3, 4, 5, 6, 7, 8, 9], [12.5]) if side == "end" else ([3.0], [6.5, 7, 8, 9, 10, 11, 12])
        reads_s = np.array([*before, *after])
        with pytest.raises(CoverageError, match=f"around the window's {side}"):
            energy_from_power(Series(reads_s, reads_s), span)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_every_number_scales_with_the_power(scale: float) -> None:
    """An FPGA of milliwatts and a rack are treated alike."""
    times_s = np.arange(0.0, 12.0)
    watts = 80 + 20 * np.sin(times_s)
    joules = np.cumsum(watts)
    span, offset, traits = Span(2.25, 8.5, 0.01), ClockOffset(-0.125, 0.125), Traits(refresh_s=0.05, accuracy=0.1)
    for way in (
        lambda k: energy_from_counter(Series(times_s, k * joules), span, traits, offset=offset),
        lambda k: energy_from_power(Series(times_s, k * watts), span, traits, offset=offset),
        lambda k: with_unseen(energy_from_counter(Series(times_s, k * joules), span), span, PARTLY, None),
        lambda k: energy_from_edges(
            EdgeReading(2.0, 0.0, offset),
            EdgeReading(8.75, 600.0 * k, offset),
            span,
            traits,
            power_floor_watts=40.0 * k,
        ),
    ):
        one, scaled = way(1.0), way(scale)
        assert scaled.joules == pytest.approx(scale * one.joules)
        assert scaled.lower_joules == pytest.approx(scale * one.lower_joules)
        assert scaled.upper_joules == pytest.approx(scale * one.upper_joules)
        assert [(item.name, item.standard_joules) for item in scaled.budget] == [
            (item.name, pytest.approx(scale * item.standard_joules)) for item in one.budget
        ]


@pytest.mark.parametrize("outside_watts", [0.0, 100.0, 200.0])
def test_unsettled_windows_allow_for_any_power_next_to_them(outside_watts: float) -> None:
    """Before and after user code, the power may be anything up to twice that of the window."""
    slack_s, duration_s, watts = 0.003, 0.1, 100.0
    rise = watts * duration_s + 2 * slack_s * outside_watts
    start, end = EdgeReading(-slack_s, 0.0), EdgeReading(duration_s + slack_s, rise)
    energy = energy_from_edges(start, end, Span(0.0, duration_s), settled=False)
    (slack,) = [item for item in energy.budget if item.name == "edge slack"]
    assert slack.half_width_joules == pytest.approx(2 * slack_s * energy.mean_power_watts, rel=0.1)
    assert energy.joules == pytest.approx(watts * duration_s, abs=1.15 * slack.half_width_joules)
    settled = energy_from_edges(start, end, Span(0.0, duration_s))
    assert settled.joules == pytest.approx(energy.joules + slack_s * rise / (duration_s + 2 * slack_s), rel=1e-9)
