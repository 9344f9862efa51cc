"""Tests that the energy of each signal is the integral of its power."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulewatch_exporter.emulator.signals import (
    Constant,
    CpuLoad,
    Phases,
    Points,
    Signal,
    Sine,
    Square,
    Sum,
    UtilisationMeter,
    ramp,
)

watts = st.floats(0, 500)
spans = st.floats(0.05, 20)
times = st.floats(0, 200)


@st.composite
def points(draw: st.DrawFn) -> Points:
    steps = draw(st.lists(spans, min_size=1, max_size=5))
    times_s = [draw(st.floats(0, 5))]
    for step in steps:
        times_s.append(times_s[-1] + step)
    powers = draw(st.lists(watts, min_size=len(times_s), max_size=len(times_s)))
    return Points(
        times_s=tuple(times_s), watts=tuple(powers), is_linear=draw(st.booleans()), repeats=draw(st.booleans())
    )


simple = st.one_of(
    st.builds(Constant, watts),
    points(),
    st.builds(
        Square, low_watts=watts, high_watts=watts, period_s=spans, duty=st.floats(0, 1), phase_s=st.floats(-5, 5)
    ),
    st.builds(
        lambda mean, share, period_s, phase_s: Sine(
            mean_watts=mean, amplitude_watts=mean * share, period_s=period_s, phase_s=phase_s
        ),
        watts,
        st.floats(0, 1),
        spans,
        st.floats(-5, 5),
    ),
    st.builds(
        lambda a, b, d, s, r: ramp(a, b, d, start_s=s, repeats=r), watts, watts, spans, st.floats(0, 5), st.booleans()
    ),
)
signals = st.one_of(
    simple,
    st.builds(lambda a, b, k: Sum((a, b), (1.0, k)), simple, simple, st.floats(0, 2)),
    st.builds(lambda a, b, d, e: Phases((a, b), (d, e)), simple, simple, spans, spans),
)


@given(signal=signals, start_s=times, length_s=st.floats(0.01, 3))
@settings(max_examples=200, deadline=None)
def test_energy_is_the_integral_of_the_power(signal: Signal, start_s: float, length_s: float) -> None:
    n = 4000
    width_s = length_s / n
    numeric = width_s * sum(signal.power_watts(start_s + (i + 0.5) * width_s) for i in range(n))
    # A jump within a slice is an error of at most its height for one slice, and there are few jumps in 3 s.
    allowed = 150 * 1000 * width_s + 1e-6
    assert signal.energy_joules(start_s, start_s + length_s) == pytest.approx(numeric, abs=allowed)


@given(signal=signals, cuts=st.tuples(times, times, times).map(sorted))
@settings(deadline=None)
def test_energies_of_adjacent_spans_add_up(signal: Signal, cuts: list[float]) -> None:
    a, b, c = cuts
    whole = signal.energy_joules(a, c)
    assert signal.energy_joules(a, b) + signal.energy_joules(b, c) == pytest.approx(whole, abs=1e-6, rel=1e-9)
    assert whole >= -1e-6


def test_square_has_the_expected_powers_and_energies() -> None:
    signal = Square(low_watts=90, high_watts=280, period_s=20, duty=0.25, phase_s=5)
    assert [signal.power_watts(t) for t in (0, 5, 9.9, 10, 25)] == [90, 280, 280, 90, 280]
    assert signal.energy_joules(0, 20) == pytest.approx(280 * 5 + 90 * 15)
    assert signal.energy_joules(4, 6) == pytest.approx(90 + 280)


def test_sine_has_the_expected_powers_and_energies() -> None:
    signal = Sine(mean_watts=185, amplitude_watts=95, period_s=4)
    assert signal.power_watts(1) == pytest.approx(280)
    assert signal.energy_joules(0, 2) == pytest.approx(185 * 2 + 95 * 4 / math.pi)


def test_ramp_is_constant_before_and_after() -> None:
    signal = ramp(100, 200, 10, start_s=5, repeats=False)
    assert [signal.power_watts(t) for t in (0, 5, 10, 15, 99)] == [100, 100, 150, 200, 200]
    assert signal.energy_joules(0, 20) == pytest.approx(500 + 1500 + 1000)


def test_steps_repeat() -> None:
    signal = Points(times_s=(0, 3, 8), watts=(12, 30, 12), repeats=True)
    assert [signal.power_watts(t) for t in (0, 2.9, 3, 7.9, 8, 11.5)] == [12, 12, 30, 30, 12, 30]
    assert signal.energy_joules(0, 80) == pytest.approx(10 * (36 + 150))


@pytest.mark.parametrize(
    ("times_s", "powers", "repeats"),
    [((), (), False), ((0, 0), (1, 2), False), ((0,), (1,), True), ((0, 1), (1,), False), ((0, 1), (1, -1), False)],
)  # fmt: skip
def test_points_are_checked(times_s: tuple[float, ...], powers: tuple[float, ...], repeats: bool) -> None:
    with pytest.raises(ValueError, match=r"times|powers|points"):
        Points(times_s=times_s, watts=powers, repeats=repeats)


def test_cpu_load_holds_the_last_sample() -> None:
    signal = CpuLoad(90, 280)
    assert not signal.is_deterministic
    assert signal.energy_joules(0, 1) == 90
    signal.follow(1, 0.5)
    signal.follow(3, 2.0)  # clipped to 1
    assert signal.power_watts(3) == 280
    assert signal.energy_joules(0, 4) == pytest.approx(90 + 2 * 185 + 280)
    assert not Sum((signal, Constant(1)), (1, 1)).is_deterministic
    assert [signal.power_watts(t) for t in (0, 0.9, 1, 2.9)] == [90, 90, 185, 185]
    assert signal.energy_joules(0.5, 3.5) == pytest.approx(0.5 * 90 + 2 * 185 + 0.5 * 280)


def test_cpu_load_remembers_the_last_minute() -> None:
    signal = CpuLoad(0, 100)
    for step in range(1, 1000):
        signal.follow(step / 10, 0.5)
    assert signal.energy_joules(50, 100) == pytest.approx(50 * 50)
    assert signal.energy_joules(0, 100) == pytest.approx(50 * 99.9)
    with pytest.raises(ValueError, match="only the last 60 s"):
        signal.power_watts(2)


def test_utilisation_is_the_share_of_all_cpus() -> None:
    samples = iter([(10.0, 4), (12.0, 4), (12.0, 4), (99.0, 4)])
    meter = UtilisationMeter(lambda: next(samples))
    assert [meter.utilisation(t) for t in (1.0, 1.0, 2.0)] == [0.5, 0.0, 1.0]


def test_a_round_that_starts_early_by_rounding_counts_all_rounds_before_it() -> None:
    """A counterexample of the property test: (t - first) / period was whole, t - rounds * period below first."""
    signal = ramp(0.0, 11.0, 1.0, start_s=1.600762884284411, repeats=True)
    end_s = 11.0 + 1.600762884284411
    assert signal.energy_joules(11.0, end_s) == pytest.approx(5.5 * 1.600762884284411, abs=5.5)
    assert signal.energy_joules(0.0, end_s) == pytest.approx(5.5 * 11, abs=1e-9)
