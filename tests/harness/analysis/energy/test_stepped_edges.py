"""Energies from edges at the refreshes of a counter, against known powers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.window_energy import EdgeReading, Span, WindowEnergy
from joulewatch_harness.analysis.sources.series import Traits
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import EdgeStep

REFRESH_S = 0.001
TRAITS = Traits(refresh_s=REFRESH_S)
Joules = Callable[[float], float]


def steady(at_s: float) -> float:
    return 200.0 * at_s


def ripple(at_s: float) -> float:
    """From 60 to 260 W, ten times per second."""
    turn = 20 * math.pi
    return 160 * at_s + 100 / turn * (1 - math.cos(turn * at_s))


def rectangle(window: Span) -> Joules:
    """250 W in the window and 50 W outside."""
    return lambda at_s: 50 * at_s + 200 * min(max(at_s - window.start_s, 0.0), window.duration_s)


def falls_at(change_s: float) -> Joules:
    return lambda at_s: 260 * min(at_s, change_s) + 60 * max(at_s - change_s, 0.0)


def at_refreshes(joules: Joules, first: int, count: int, error_s: float, rng: random.Random) -> EdgeReading:
    """Return ``count`` refreshes in a row from number ``first`` on, each at a time that is known to ``error_s``."""
    times_s = [number * REFRESH_S for number in range(first, first + count)]
    seen_s = [time_s + rng.uniform(-error_s, error_s) for time_s in times_s]
    step = EdgeStep(
        error_s=error_s,
        before_joules=joules(times_s[0] - REFRESH_S),
        first_joules=joules(times_s[0]),
        span_s=seen_s[-1] - seen_s[0],
    )
    return EdgeReading(seen_s[-1], joules(times_s[-1]), step=step)


def stale(joules: Joules, at_s: float) -> EdgeReading:
    """Return a reading of the last refresh before a time."""
    return EdgeReading(at_s, joules(math.floor(at_s / REFRESH_S) * REFRESH_S))


def measure(joules: Joules, window: Span, rng: random.Random, *, error_s: float = 5e-6) -> WindowEnergy:
    """Read the last two refreshes that are 0.1 ms and more before the window, and the first two after it."""
    start = at_refreshes(joules, math.floor((window.start_s - 1e-4) / REFRESH_S) - 1, 2, error_s, rng)
    end = at_refreshes(joules, math.floor(window.end_s / REFRESH_S) + 1, 2, error_s, rng)
    return energy_from_edges(start, end, window, TRAITS)


def windows(length_s: float, count: int, rng: random.Random) -> list[Span]:
    """Return windows that begin shortly after a refresh, for which the exporter waited, and end at any time."""
    starts_s = [10 + rng.randrange(1000) * REFRESH_S + rng.uniform(1e-4, 6e-4) for _ in range(count)]
    return [Span(start_s, start_s + length_s + rng.uniform(0.0, REFRESH_S)) for start_s in starts_s]


@pytest.mark.parametrize("load", ["steady", "ripple", "rectangle"])
@pytest.mark.parametrize(("length_s", "largest"), [(0.02, 0.01), (0.05, 0.003), (0.2, 0.001)])
def test_short_windows_are_exact_and_the_uncertainty_holds(load: str, length_s: float, largest: float) -> None:
    rng = random.Random(7)
    errors, held = [], 0
    for window in windows(length_s, 400, rng):
        joules = {"steady": steady, "ripple": ripple, "rectangle": rectangle(window)}[load]
        truth = joules(window.end_s) - joules(window.start_s)
        energy = measure(joules, window, rng)
        errors.append((energy.joules - truth) / truth)
        held += abs(energy.joules - truth) <= NORMAL_95 * energy.standard_joules
        assert energy.lower_joules <= truth <= energy.upper_joules
    assert max(map(abs, errors)) <= largest
    assert abs(math.fsum(errors)) / len(errors) <= 0.001
    assert held >= 0.94 * len(errors)


@pytest.mark.parametrize("change_s", [0.0197, 0.0199, 0.02, 0.0201, 0.0206, 0.0211])
def test_a_power_that_changes_next_to_the_end_is_placed_by_the_refreshes(change_s: float) -> None:
    """The end is 0.4 ms after a refresh; the power falls before it, at it, or after it."""
    window = Span(10.0004, 10.0204)
    joules = falls_at(10.0004 + change_s)
    energy = measure(joules, window, random.Random(1), error_s=0.0)
    assert energy.joules == pytest.approx(joules(window.end_s) - joules(window.start_s), rel=0.004)


@pytest.mark.parametrize("late", [2, 4, 8, 20])
def test_a_late_edge_at_the_smallest_power_is_exact(late: int) -> None:
    """The measured power is the smallest one, sometimes less by rounding: not halfway to the largest one."""
    rng = random.Random(11)
    for window in windows(0.2, 100, rng):
        joules = rectangle(window)
        start = at_refreshes(joules, math.floor((window.start_s - 1e-4) / REFRESH_S) - 1, 2, 1e-6, rng)
        end = at_refreshes(joules, math.floor(window.end_s / REFRESH_S) + late, 2, 1e-6, rng)
        energy = energy_from_edges(start, end, window, TRAITS, power_floor_watts=50.0)
        truth = joules(window.end_s) - joules(window.start_s)
        assert energy.joules == pytest.approx(truth, rel=1e-3)
        assert abs(energy.joules - truth) <= NORMAL_95 * energy.standard_joules


@pytest.mark.parametrize("is_stale", [(True, False), (False, True)], ids=["start", "end"])
def test_one_edge_without_refreshes_has_no_bias(is_stale: tuple[bool, bool]) -> None:
    """Uncorrected, the mean would be off by half of a refresh: 2.5 %."""
    rng = random.Random(3)
    errors, held = [], 0
    for window in windows(0.02, 400, rng):
        start = stale(steady, window.start_s - 2e-4 - rng.uniform(0.0, REFRESH_S))
        end = stale(steady, window.end_s + 1e-4)
        if not is_stale[0]:
            start = at_refreshes(steady, math.floor((window.start_s - 1e-4) / REFRESH_S) - 1, 2, 5e-6, rng)
        if not is_stale[1]:
            end = at_refreshes(steady, math.floor(window.end_s / REFRESH_S) + 1, 2, 5e-6, rng)
        energy = energy_from_edges(start, end, window, TRAITS)
        truth = 200.0 * window.duration_s
        errors.append((energy.joules - truth) / truth)
        held += abs(energy.joules - truth) <= NORMAL_95 * energy.standard_joules
    assert abs(math.fsum(errors)) / len(errors) < 0.003
    assert held >= 0.94 * len(errors)


def test_a_single_refresh_at_an_edge_is_used() -> None:
    rng = random.Random(5)
    window = Span(10.0004, 10.0204)
    start, end = (at_refreshes(steady, number, 1, 5e-6, rng) for number in (10_000, 10_021))
    energy = energy_from_edges(start, end, window, TRAITS)
    assert energy.joules == pytest.approx(4.0, rel=0.002)


def test_the_budget_has_the_time_of_the_refreshes_instead_of_the_age_of_the_values() -> None:
    energy = measure(steady, Span(10.0004, 10.0204), random.Random(1), error_s=2e-5)
    names = {item.name: item for item in energy.budget}
    assert "refresh" not in names
    assert names["refresh time"].half_width_joules >= 2 * 2e-5 * 200.0
    assert not names["refresh time"].systematic
