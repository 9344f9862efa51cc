"""Sums over sensors and means over rounds, with every line of their budgets by hand."""

from __future__ import annotations

import math

import pytest

from joulewatch_harness.analysis.energy.window_energy import BudgetItem, Method, WindowEnergy
from joulewatch_harness.analysis.results.model import BudgetLine
from joulewatch_harness.analysis.results.uncertainty import combine, combine_mean, estimate_of
from joulewatch_harness.gum import NORMAL_95, RECTANGULAR_95, effective_dof, student_factor


def item(name: str, standard: float, *, systematic: bool = False, family: str = "", text: str = "") -> BudgetItem:
    return BudgetItem(
        name=name,
        standard_joules=standard,
        half_width_joules=99.0,
        distribution="uniform",
        text=text or name,
        systematic=systematic,
        family=family,
    )


def energy(joules: float, method: Method, *budget: BudgetItem) -> WindowEnergy:
    return WindowEnergy(
        joules=joules,
        lower_joules=0.0,
        upper_joules=99.0,
        budget=budget,
        method=method,
        duration_s=2.0,
        samples=3,
    )


def line(name: str, standard: float, *, systematic: bool = False, dof: float = math.inf, text: str = "") -> BudgetLine:
    kind = "B" if math.isinf(dof) else "A"
    return BudgetLine(name=name, kind=kind, standard=standard, dof=dof, systematic=systematic, text=text)


def test_random_components_of_sensors_add_in_quadrature_and_systematic_ones_linearly() -> None:
    combined = combine(
        [
            energy(
                10.0,
                "edges",
                item("clock", 1.0, systematic=True, text="first clock"),
                item("refresh", 3.0, family="rapl"),
                item("accuracy", 0.5, systematic=True, family="rapl", text="5 %"),
            ),
            energy(
                20.0,
                "history",
                item("clock", 2.0, systematic=True, text="second clock"),
                item("refresh", 4.0, family="nvml"),
                item("accuracy", 0.7, systematic=True, family="nvml", text="7 %"),
            ),
            energy(0.5, "history", item("accuracy", 0.25, systematic=True, family="rapl"), item("unseen", 0.125)),
        ]
    )
    assert combined.joules == 30.5
    assert combined.random == {"refresh": 5.0, "unseen": 0.125}
    assert combined.systematic == {"clock": 3.0, "accuracy (rapl)": 0.75, "accuracy (nvml)": 0.7}
    assert combined.texts == {
        "clock": "first clock",
        "refresh": "refresh",
        "accuracy (rapl)": "5 %",
        "accuracy (nvml)": "7 %",
        "unseen": "unseen",
    }
    assert combined.sources == {"edges", "history"}
    assert combine([]).joules == 0.0


def test_worked_example_of_a_mean_over_rounds() -> None:
    """Round 0 has two windows, round 1 has one: their means 11 and 14 have the mean 12.5 and the standard error 1.5."""
    rounds = {
        0: [(10.0, {"refresh": 0.3}), (12.0, {"refresh": 0.4, "unseen": 0.6})],
        1: [(14.0, {"refresh": 0.2})],
    }
    extra = line("idle baseline", 0.25, dof=4.0, systematic=True)
    estimate = combine_mean(rounds, {"accuracy (rapl)": 0.5, "clock": 0.1}, {"refresh": "old", "clock": "off"}, [extra])
    refresh = math.sqrt((0.3 / 2) ** 2 + (0.4 / 2) ** 2 + 0.2**2) / 2
    expected = (
        line("repeats", 1.5, dof=1, text="scatter of 2 rounds"),
        line("refresh", pytest.approx(refresh), text="old"),
        line("unseen", pytest.approx(0.6 / 2 / 2)),
        line("accuracy (rapl)", 0.5, systematic=True),
        line("clock", 0.1, systematic=True, text="off"),
        extra,
    )
    assert estimate.budget == expected
    assert (estimate.value, estimate.rounds) == (12.5, {0: 11.0, 1: 14.0})
    parts = [(1.5, 1.0), (refresh, math.inf), (0.15, math.inf), (0.5, math.inf), (0.1, math.inf), (0.25, 4.0)]
    assert estimate.standard == pytest.approx(math.sqrt(sum(u * u for u, _ in parts)))
    assert estimate.dof == pytest.approx(effective_dof(parts))
    assert estimate.factor == pytest.approx(student_factor(estimate.dof))
    assert estimate.expanded == pytest.approx(estimate.factor * estimate.standard)


def test_one_round_has_no_scatter() -> None:
    estimate = combine_mean({7: [(10.0, {}), (30.0, {})]}, {}, {})
    assert (estimate.value, estimate.budget, estimate.rounds) == (20.0, (), {7: 20.0})
    assert (estimate.standard, estimate.expanded) == (0.0, None)
    assert estimate.covers == ()
    assert (estimate.factor, estimate.dof) == (pytest.approx(NORMAL_95), math.inf)


@pytest.mark.parametrize(
    ("lines", "factor"),
    [
        # The largest accuracy dominates if all others together are at most 0.3 of it.
        ([line("accuracy (rapl)", 1.0), line("repeats", 0.2, dof=2), line("accuracy (nvml)", 0.2)], RECTANGULAR_95),
        ([line("accuracy (rapl)", 0.2), line("accuracy (nvml)", 1.0)], RECTANGULAR_95),
        ([line("accuracy (rapl)", 1.0), line("clock", 0.4)], NORMAL_95),
        ([line("clock", 1.0), line("refresh", 0.1)], NORMAL_95),
        ([line("repeats", 1.0, dof=2)], student_factor(2)),
    ],
)
def test_a_published_accuracy_that_dominates_is_expanded_as_a_uniform_distribution(
    lines: list[BudgetLine], factor: float
) -> None:
    estimate = estimate_of(5.0, lines)
    assert estimate.factor == pytest.approx(factor)
    assert estimate.expanded == pytest.approx(factor * math.sqrt(sum(one.standard**2 for one in lines)))
    assert (estimate.value, estimate.budget, estimate.rounds) == (5.0, tuple(lines), {})
