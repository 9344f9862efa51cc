"""Sums over sensors and means over rounds, with every line of their budgets by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from joulewatch_harness.analysis.energy.window_energy import BudgetItem, Method, WindowEnergy
from joulewatch_harness.analysis.results.model import BudgetLine
from joulewatch_harness.analysis.results.uncertainty import combine, combine_mean, estimate_of
from joulewatch_harness.gum import NORMAL_95, RECTANGULAR_95, student_factor


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
        replace(line("refresh", pytest.approx(refresh), text="old"), counted=False),
        replace(line("unseen", pytest.approx(0.6 / 2 / 2)), counted=False),
        line("accuracy (rapl)", 0.5, systematic=True),
        line("clock", 0.1, systematic=True, text="off"),
        extra,
    )
    assert estimate.budget == expected
    assert (estimate.value, estimate.rounds) == (12.5, {0: 11.0, 1: 14.0})
    # The scatter counts, and not what is random within a round.
    assert estimate.standard == pytest.approx(math.hypot(1.5, 0.5, 0.1, 0.25))
    assert estimate.dof == 1.0
    parts = (student_factor(1) * 1.5, NORMAL_95 * 0.5, NORMAL_95 * 0.1, student_factor(4) * 0.25)
    assert estimate.expanded == pytest.approx(math.hypot(*parts))
    assert estimate.factor == pytest.approx(math.hypot(*parts) / estimate.standard)


def test_the_repeats_of_rounds_that_ended_at_a_target_have_the_factor_of_97_percent() -> None:
    """Alone they are expanded with it; next to a large accuracy it hardly matters."""
    rounds = {number: [(value, {})] for number, value in enumerate((9.0, 10.0, 11.0, 10.0, 10.0))}
    fixed, ended = (combine_mean(rounds, {}, {}, coverage=coverage) for coverage in (0.95, 0.97))
    assert ended.standard == fixed.standard == pytest.approx(math.sqrt(0.5 / 5))
    assert fixed.expanded == pytest.approx(student_factor(4) * fixed.standard)
    assert ended.expanded == pytest.approx(student_factor(4, 0.97) * ended.standard)
    assert ended.budget[0].text == "scatter of 5 rounds, Student's t at 97 %"
    fixed, ended = (combine_mean(rounds, {"accuracy": 5.0}, {}, coverage=coverage) for coverage in (0.95, 0.97))
    assert ended.expanded == pytest.approx(fixed.expanded, rel=3e-3)


def test_one_round_has_no_scatter() -> None:
    estimate = combine_mean({7: [(10.0, {}), (30.0, {})]}, {}, {})
    assert (estimate.value, estimate.budget, estimate.rounds) == (20.0, (), {7: 20.0})
    assert (estimate.standard, estimate.expanded) == (0.0, None)
    assert estimate.covers == ()
    assert (estimate.factor, estimate.dof) == (None, math.inf)


def test_rounds_that_agree_by_chance_have_the_uncertainty_of_their_readings() -> None:
    """Two rounds 0.02 J apart: 12.7 x 0.01 is less than 1.96 x 0.1, so the refresh counts, and the scatter does not."""
    estimate = combine_mean(
        {0: [(1.0, {"refresh": 0.1 * math.sqrt(2)})], 1: [(1.02, {"refresh": 0.1 * math.sqrt(2)})]}, {}, {}
    )
    assert estimate.expanded == pytest.approx(NORMAL_95 * 0.1)
    assert math.isinf(estimate.dof)
    assert {line.name: line.counted for line in estimate.budget} == {"repeats": False, "refresh": True}


@pytest.mark.parametrize(
    ("lines", "expanded"),
    [
        # The largest accuracy dominates if all others together are at most 0.3 of it.
        (
            [line("accuracy (rapl)", 1.0, systematic=True), line("refresh", 0.2), line("clock", 0.2, systematic=True)],
            math.hypot(RECTANGULAR_95, NORMAL_95 * 0.2, RECTANGULAR_95 * 0.2),
        ),
        (
            [line("accuracy (rapl)", 0.2, systematic=True), line("accuracy (nvml)", 1.0, systematic=True)],
            RECTANGULAR_95 * math.hypot(1.0, 0.2),
        ),
        (
            [line("accuracy (rapl)", 1.0, systematic=True), line("clock", 0.4, systematic=True)],
            NORMAL_95 * math.hypot(1.0, 0.4),
        ),
        ([line("clock", 1.0, systematic=True), line("refresh", 0.1)], NORMAL_95 * math.hypot(1.0, 0.1)),
        ([line("repeats", 1.0, dof=2)], student_factor(2)),
    ],
)
def test_a_published_accuracy_that_dominates_is_expanded_as_a_uniform_distribution(
    lines: list[BudgetLine], expanded: float
) -> None:
    estimate = estimate_of(5.0, lines)
    assert estimate.expanded == pytest.approx(expanded)
    assert estimate.factor == pytest.approx(expanded / math.sqrt(sum(one.standard**2 for one in lines)))
    assert (estimate.value, estimate.budget, estimate.rounds) == (5.0, tuple(lines), {})
