"""Coverage factors and effective degrees of freedom against tables and closed forms."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from joulewatch_harness.gum import (
    NORMAL_95,
    RECTANGULAR_95,
    effective_dof,
    expand,
    incomplete_beta,
    mean,
    standard_error,
    student_factor,
)


@pytest.mark.parametrize(
    ("dof", "coverage", "factor"),
    [
        # GUM, table G.2.
        (1, 0.95, 12.71),
        (2, 0.95, 4.30),
        (3, 0.95, 3.18),
        (4, 0.95, 2.78),
        (5, 0.95, 2.57),
        (9, 0.95, 2.26),
        (20, 0.95, 2.09),
        (50, 0.95, 2.01),
        (100, 0.95, 1.984),
        (1, 0.99, 63.66),
        (5, 0.99, 4.03),
        (math.inf, 0.95, 1.960),
        (math.inf, 0.99, 2.576),
    ],
)
def test_student_factors_agree_with_table_g2_of_the_gum(dof: float, coverage: float, factor: float) -> None:
    assert student_factor(dof, coverage) == pytest.approx(factor, rel=2e-3)


def test_one_and_two_degrees_of_freedom_have_closed_forms() -> None:
    assert student_factor(1) == pytest.approx(math.tan(math.pi * 0.95 / 2), rel=1e-10)
    assert student_factor(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-10)


def binomial_tail(a: int, b: int, x: float) -> float:
    """Probability of at least ``a`` successes in ``a + b - 1`` tries: the incomplete beta function of integers."""
    tries = a + b - 1
    return math.fsum(math.comb(tries, k) * x**k * (1 - x) ** (tries - k) for k in range(a, tries + 1))


@pytest.mark.parametrize("x", [0.001, 0.1, 0.3, 0.4, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 3), (2, 3), (3, 2), (5, 1), (4, 20), (20, 4), (40, 40)])
def test_the_incomplete_beta_function_of_integers_is_a_sum_of_binomials(a: int, b: int, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(binomial_tail(a, b, x), rel=1e-12)
    assert (incomplete_beta(a, b, 0.0), incomplete_beta(a, b, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("x", [1e-5, 0.2, 0.49, 0.5, 0.51, 0.8, 1 - 1e-5])
def test_the_incomplete_beta_function_of_halves_is_an_arcsine(x: float) -> None:
    """Close to 1 its continued fraction converges only after the exchange of a and b."""
    assert incomplete_beta(0.5, 0.5, x) == pytest.approx(2 / math.pi * math.asin(math.sqrt(x)), rel=1e-12)


def test_welch_satterthwaite() -> None:
    assert effective_dof([(1.0, 2.0)]) == pytest.approx(2.0)
    assert effective_dof([(1.0, 2.0), (1.0, math.inf)]) == pytest.approx(8.0)
    assert math.isinf(effective_dof([(1.0, math.inf)]))


def test_effective_degrees_of_freedom_depend_on_the_fourth_power_of_each_uncertainty() -> None:
    """A single contribution keeps its degrees of freedom, whatever its size; two follow equation G.2b of the GUM."""
    assert effective_dof([(3.0, 5.0)]) == pytest.approx(5.0)
    assert effective_dof([(2.0, 4.0), (1.0, 9.0)]) == pytest.approx(5.0**2 / (2.0**4 / 4.0 + 1.0 / 9.0))
    assert effective_dof([(20.0, 4.0), (10.0, 9.0)]) == pytest.approx(effective_dof([(2.0, 4.0), (1.0, 9.0)]))


def test_worked_example_of_an_expanded_uncertainty() -> None:
    """Four rounds scatter by 3, their readings by 2; two systematic effects, one of them from six idle windows."""
    actual = expand([(3.0, 3.0)], 2.0, [(1.5, math.inf), (0.5, 5.0)])
    assert actual.standard == pytest.approx(math.sqrt(3.0**2 + 1.5**2 + 0.5**2))
    parts = (student_factor(3) * 3.0, NORMAL_95 * 1.5, student_factor(5) * 0.5)
    assert actual.expanded == pytest.approx(math.hypot(*parts))
    assert actual.dof == 3.0


def test_the_larger_of_the_scatter_and_the_effects_within_a_repeat_counts() -> None:
    """With two rounds Student's factor is 12.7, so a scatter of 1 counts for more than effects of 6, and not of 7."""
    scatter, effects = expand([(1.0, 1.0)], 6.0), expand([(1.0, 1.0)], 7.0)
    assert (scatter.standard, scatter.dof) == (1.0, 1.0)
    assert scatter.expanded == pytest.approx(student_factor(1))
    assert (effects.standard, effects.dof, effects.expanded) == (7.0, math.inf, pytest.approx(7 * NORMAL_95))


def test_several_scatters_have_their_effective_degrees_of_freedom() -> None:
    assert expand([(1.0, 2.0), (1.0, 2.0)]).expanded == pytest.approx(student_factor(4) * math.sqrt(2))
    assert expand([(1.0, 0.5)]).expanded == pytest.approx(student_factor(1)), "at least one degree of freedom"
    nothing = expand([])
    assert (nothing.expanded, nothing.standard, nothing.dof) == (0.0, 0.0, math.inf)


@pytest.mark.parametrize(
    ("random", "systematic", "k"),
    [
        # EA-4/02: a uniform contribution dominates if all others together are *at most* 0.3 of it.
        (0.0, [10.0, 3.0], RECTANGULAR_95),
        (0.0, [10.0, 3.01], NORMAL_95),
        (3.0, [10.0], RECTANGULAR_95),
        (2.4, [10.0, 1.8], RECTANGULAR_95),
        (2.5, [10.0, 1.8], NORMAL_95),
        (0.0, [10.0], RECTANGULAR_95),
    ],
)
def test_a_uniform_contribution_that_dominates_is_not_expanded_beyond_its_bounds(
    random: float, systematic: list[float], k: float
) -> None:
    assert pytest.approx(1.6454, abs=1e-4) == RECTANGULAR_95
    actual = expand([], random, [(u, math.inf) for u in systematic], rectangular=10.0)
    assert actual.expanded == pytest.approx(math.hypot(NORMAL_95 * random, *(k * u for u in systematic)))
    without = expand([], random, [(u, math.inf) for u in systematic])
    assert without.expanded == pytest.approx(NORMAL_95 * math.hypot(random, *systematic))


@pytest.mark.parametrize("dof", [1.1e7, math.inf])
def test_many_degrees_of_freedom_give_the_factor_of_the_normal_distribution(dof: float) -> None:
    assert pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-12) == NORMAL_95
    assert student_factor(dof) == pytest.approx(NORMAL_95, rel=1e-10)
    assert student_factor(1e6) == pytest.approx(NORMAL_95 + 2.372e-6, rel=1e-9), "nearly, but not the same"


def test_above_ten_million_degrees_of_freedom_the_normal_distribution_is_used() -> None:
    assert student_factor(1e7) == pytest.approx(NORMAL_95 + 2.372e-7, abs=3e-8)
    assert student_factor(1e7 + 1) == pytest.approx(NORMAL_95, abs=1e-12)


@pytest.mark.parametrize(
    ("dof", "coverage", "factor"),
    [
        # Published tables; with one and two degrees of freedom the closed forms.
        (1, 0.5, 1.0),
        (2, 0.5, 0.5 * math.sqrt(2 / (1 - 0.5**2))),
        (5, 0.5, 0.7267),
        (math.inf, 0.5, 0.67449),
        (1, 0.999999, math.tan(math.pi * 0.999999 / 2)),
        (3, 0.999, 12.924),
    ],
)
def test_factors_of_other_coverages(dof: float, coverage: float, factor: float) -> None:
    assert student_factor(dof, coverage) == pytest.approx(factor, rel=5e-5)


def test_two_values_have_a_standard_error() -> None:
    assert standard_error([1.0, 4.0]) == pytest.approx(1.5)
    assert standard_error([1.0, 1.0, 4.0, 4.0]) == pytest.approx(math.sqrt(3) / 2)


def test_the_standard_error_and_invalid_degrees_of_freedom() -> None:
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert standard_error([1.0]) == 0.0
    assert mean([1.0, 2.0, 6.0]) == 3.0
    with pytest.raises(ValueError, match="positive"):
        student_factor(0)


@pytest.mark.parametrize(("rectangular", "k"), [({"rectangular": 0.5}, RECTANGULAR_95), ({}, NORMAL_95)])
def test_only_a_contribution_known_to_be_uniform_dominates(rectangular: dict[str, float], k: float) -> None:
    actual = expand([], systematic=[(0.5, math.inf)], **rectangular)
    assert (actual.expanded, actual.standard) == (pytest.approx(0.5 * k), 0.5)


def test_a_contribution_of_one_is_not_uniform_by_default() -> None:
    assert expand([], systematic=[(1.0, math.inf)]).expanded == pytest.approx(NORMAL_95)
