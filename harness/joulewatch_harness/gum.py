"""The statistics that a GUM evaluation needs, without scipy.

Source: JCGM 100:2008 (GUM), clauses 4, 5 and annex G; EA-4/02 M:2022 for a dominant rectangular contribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

COVERAGE: Final = 0.95
NORMAL_95: Final = 1.959963984540054
RECTANGULAR_95: Final = COVERAGE * math.sqrt(3.0)
"""Coverage factor for 95 % of a uniform distribution: 1.65."""
_DOMINANT_RATIO: Final = 0.3
"""EA-4/02, S9.14: a contribution dominates if all others together are at most 0.3 of it."""


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function by Lentz's method (Numerical Recipes, 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            result *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return result


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) for a, b > 0 and 0 <= x <= 1."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


@lru_cache(maxsize=1024)
def student_factor(dof: float, coverage: float = COVERAGE) -> float:
    """Return the two-sided coverage factor k of Student's t: ``P(|t| <= k) = coverage``.

    Args:
        dof: Degrees of freedom, > 0; ``inf`` for the normal distribution.
        coverage: Probability that the interval covers.

    Raises:
        ValueError: ``dof`` is not positive.
    """
    if not dof > 0:
        raise ValueError(f"degrees of freedom must be positive, not {dof}")
    if dof > 1e7:
        low, high = 0.0, 40.0
        while high - low > 1e-13:
            middle = (low + high) / 2
            low, high = (middle, high) if math.erf(middle / math.sqrt(2)) < coverage else (low, middle)
        return (low + high) / 2
    tail = 1.0 - coverage
    low, high = 0.0, 1.0
    while incomplete_beta(dof / 2, 0.5, dof / (dof + high * high)) > tail:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if incomplete_beta(dof / 2, 0.5, dof / (dof + middle * middle)) > tail:
            low = middle
        else:
            high = middle
        if high - low <= 1e-13 * high:
            break
    return (low + high) / 2


def effective_dof(contributions: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a combined uncertainty, by Welch and Satterthwaite.

    Args:
        contributions: (standard uncertainty, degrees of freedom) of each; ``inf`` for type B.

    Returns:
        Effective degrees of freedom; ``inf`` if no contribution has finite ones.

    Source:
        GUM, equation G.2b.
    """
    variance = math.fsum(u * u for u, _ in contributions)
    denominator = math.fsum(u**4 / dof for u, dof in contributions if math.isfinite(dof))
    return variance * variance / denominator if denominator > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Expanded:
    """An uncertainty at 95 % coverage, and what it is made of."""

    expanded: float
    standard: float
    dof: float
    """Degrees of freedom of the repeats if they decide; else inf."""


def expand(
    repeats: Sequence[tuple[float, float]],
    random: float = 0.0,
    systematic: Sequence[tuple[float, float]] = (),
    rectangular: float = 0.0,
    coverage: float = COVERAGE,
    comparisons: int = 1,
) -> Expanded:
    """Combine the parts of a budget to an uncertainty at 95 % coverage.

    ``U^2 = max(t u_repeats, 1.96 u_random)^2 + (k u_systematic)^2``. The scatter of repeats contains all random
    effects within them, so the larger of the two counts. Each part is expanded before the parts are combined: few
    repeats that scatter little by luck do not get the factor of many, as in the formula of Welch and Satterthwaite
    for the sum.

    Args:
        repeats: (standard uncertainty, degrees of freedom) of observed scatters.
        random: Standard uncertainty of all random effects within a repeat.
        systematic: (standard uncertainty, degrees of freedom) of effects that are the same in every repeat; ``inf``
            for type B.
        rectangular: Standard uncertainty of the largest uniform one of them. If it dominates, k is 1.65: with 1.96
            the interval would exceed its bounds.
        coverage: Of Student's factor for the repeats: more than 95 % if their number depends on their scatter.
        comparisons: Number of intervals that shall hold together at 95 % (Bonferroni: each has 1/n of the risk).
    """
    together = 1.0 - (1.0 - COVERAGE) / comparisons
    normal, uniform = NORMAL_95, RECTANGULAR_95
    if comparisons > 1:
        normal, uniform = student_factor(math.inf, together), together * math.sqrt(3.0)
    scatter = math.hypot(*(u for u, _ in repeats))
    dof = max(effective_dof(repeats), 1.0)
    varying = student_factor(dof, 1.0 - (1.0 - coverage) / comparisons) * scatter
    if varying <= normal * random:
        scatter, dof, varying = random, math.inf, normal * random
    variance = math.fsum((scatter * scatter, *(u * u for u, _ in systematic)))
    rest = math.sqrt(max(variance - rectangular * rectangular, 0.0))
    k = uniform if rectangular > 0.0 and rest <= _DOMINANT_RATIO * rectangular else normal
    factors = (student_factor(dof, together) if math.isfinite(dof) else k for _, dof in systematic)
    expanded = math.hypot(varying, *(factor * u for factor, (u, _) in zip(factors, systematic, strict=True)))
    return Expanded(expanded, math.sqrt(variance), dof)


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the experimental standard deviation of the mean (GUM 4.2.3); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))
