"""Joules per unit of a counter: quotients, shares, and the costs by least squares, against known truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.energy.costs import fit_costs, sub_windows
from joulewatch_harness.analysis.energy.per_counter import Increase, joules_per_unit, share_of
from joulewatch_harness.analysis.energy.sensor_energies import Joules
from joulewatch_harness.errors import CoverageError


def energy(joules: float, expanded: float = 0.0) -> Joules:
    return Joules(
        joules=joules,
        expanded_joules=expanded,
        lower_joules=joules - 2 * expanded,
        upper_joules=joules + 2 * expanded,
        accuracy_known=True,
    )


def units(value: float, expanded: float = 0.0) -> Increase:
    return Increase(value=value, expanded=expanded, lower=max(value - 2 * expanded, 0.0), upper=value + 2 * expanded)


def test_a_quotient_has_the_uncertainties_of_both() -> None:
    one = joules_per_unit(energy(300.0, 9.0), units(100.0, 4.0))
    assert one.value == pytest.approx(3.0)
    assert one.expanded == pytest.approx(3.0 * math.hypot(0.03, 0.04))
    assert one.lower == pytest.approx(282 / 108) and one.upper == pytest.approx(318 / 92)


@pytest.mark.parametrize(("count", "reason"), [(units(0.0), "no_units"), (units(5.0, 3.0), "too_few_units")])
def test_few_units_have_no_quotient(count: Increase, reason: str) -> None:
    with pytest.raises(CoverageError) as caught:
        joules_per_unit(energy(100.0), count)
    assert caught.value.reason == reason


def test_the_upper_bound_is_infinite_if_the_counter_may_not_have_risen() -> None:
    assert joules_per_unit(energy(100.0), units(4.0, 2.0)).upper == math.inf


@given(st.lists(st.floats(0.1, 1e6), min_size=2, max_size=6), st.floats(1.0, 1e6))
def test_shares_add_up(counts: list[float], joules: float) -> None:
    shares = [share_of(energy(joules), units(own), units(math.fsum(counts) - own)).joules for own in counts]
    assert math.fsum(shares) == pytest.approx(joules)


SECONDS = 5.0
IDLE = 400.0
PREFILL, DECODE = 0.02, 2.5


def work(rng: np.random.Generator, windows: int = 40) -> np.ndarray:
    """Return input and output tokens of sub-windows with mixed loads."""
    return np.column_stack((rng.uniform(500, 8000, windows), rng.uniform(50, 1200, windows)))


def test_known_costs_are_found() -> None:
    """Without noise the fit is exact: E = 0.02 input + 2.5 output + 400 t."""
    tokens = work(np.random.default_rng(1))
    joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS
    costs = fit_costs(("in", "out"), joules, np.ones(40), tokens, np.zeros((40, 2)), SECONDS)
    assert [cost.value for cost in costs.units] == pytest.approx([PREFILL, DECODE], rel=1e-9)
    assert costs.watts.value == pytest.approx(IDLE, rel=1e-9)
    assert costs.residual_joules < 1e-6 and costs.windows == 40 and costs.condition < 10


def test_the_intervals_contain_the_truth() -> None:
    """Energies with known noise, counters with noise at their edges: 95 % intervals cover in 93 to 100 %."""
    inside = np.zeros(3)
    runs = 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        tokens = work(rng)
        joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS + rng.normal(0, 20, 40)
        seen = tokens + rng.normal(0, [60, 8], (40, 2))
        costs = fit_costs(("in", "out"), joules, np.full(40, 20.0), seen, np.tile([60.0, 8.0], (40, 1)), SECONDS)
        found = [*costs.units, costs.watts]
        inside += [
            abs(one.value - truth) <= one.expanded for one, truth in zip(found, (PREFILL, DECODE, IDLE), strict=True)
        ]
    assert (inside / runs >= 0.93).all(), inside / runs


def test_scatter_that_the_uncertainties_do_not_explain_widens_the_intervals() -> None:
    """A cost that depends on the batch size: the model is wrong, and the intervals show it."""
    rng = np.random.default_rng(3)
    tokens = work(rng)
    joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS
    wrong = joules + rng.normal(0, 300, 40)
    sure = fit_costs(("in", "out"), joules, np.ones(40), tokens, np.zeros((40, 2)), SECONDS)
    unsure = fit_costs(("in", "out"), wrong, np.ones(40), tokens, np.zeros((40, 2)), SECONDS)
    assert unsure.units[1].expanded > 100 * sure.units[1].expanded
    assert abs(unsure.units[1].value - DECODE) < unsure.units[1].expanded


def test_the_accuracy_of_the_sensors_is_common_to_all_costs() -> None:
    tokens = work(np.random.default_rng(1))
    joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS
    costs = fit_costs(("in", "out"), joules, np.full(40, 1e-3), tokens, np.zeros((40, 2)), SECONDS, accuracy=0.05)
    assert costs.watts.expanded == pytest.approx(0.05 * IDLE, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        # Every prompt has 4 times as many tokens as its answer.
        (np.column_stack((4 * np.linspace(50, 1200, 40), np.linspace(50, 1200, 40))), "in and out rise in proportion"),
        # The load never changes.
        (np.column_stack((np.linspace(500, 8000, 40), np.full(40, 300.0))), "out and time rise in proportion"),
    ],
)
def test_proportional_counters_have_no_costs(tokens: np.ndarray, named: str) -> None:
    joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS
    with pytest.raises(CoverageError, match=named) as caught:
        fit_costs(("in", "out"), joules, np.ones(40), tokens, np.zeros((40, 2)), SECONDS)
    assert caught.value.reason == "collinear"
    assert "condition number" in str(caught.value)


def test_a_counter_that_is_mostly_noise_has_no_cost() -> None:
    tokens = work(np.random.default_rng(1))
    joules = tokens @ np.array([PREFILL, DECODE]) + IDLE * SECONDS
    with pytest.raises(CoverageError, match="out varies little") as caught:
        fit_costs(("in", "out"), joules, np.ones(40), tokens, np.tile([1.0, 300.0], (40, 1)), SECONDS)
    assert caught.value.reason == "noisy_counter"


def test_a_counter_without_units_has_no_cost() -> None:
    tokens = work(np.random.default_rng(1)) * [1, 0]
    with pytest.raises(CoverageError, match="out did not rise"):
        fit_costs(("in", "out"), np.ones(40), np.ones(40), tokens, np.zeros((40, 2)), SECONDS)


def test_sub_windows_are_several_samples_long() -> None:
    assert sub_windows(60.0, 1.0, 3) == 12
    assert sub_windows(3600.0, 1.0, 3) == 60
    with pytest.raises(CoverageError, match="use at least 40 s"):
        sub_windows(30.0, 1.0, 3)
