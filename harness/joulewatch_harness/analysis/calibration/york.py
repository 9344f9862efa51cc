"""A straight line through points with uncertainties in both coordinates. Pure; no numpy.

Least squares in y alone would make the slope too small if x has errors too, and Deming's regression needs one ratio of
variances for all points. Windows have different lengths and loads, so each point has its own uncertainties.

Source: York, Evensen, Lopez, De Basabe, Unified equations for the slope, intercept, and standard errors of the best
straight line, American Journal of Physics 72 (2004) 367, equations 13; here without correlations between the errors of
x and y of a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_MOST_STEPS: Final = 200
_TOLERANCE: Final = 1e-13


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The line ``y = intercept + slope * x``."""

    slope: float
    intercept: float
    slope_standard: float
    intercept_standard: float
    covariance: float
    """Of slope and intercept."""
    chi_squared: float
    """Sum of the weighted squares of the residuals; n - 2 is expected."""


def york_line(x: Sequence[float], y: Sequence[float], u_x: Sequence[float], u_y: Sequence[float]) -> Line:
    """Fit a straight line.

    Args:
        x: At least three points, not all the same.
        y: As many.
        u_x: Standard uncertainties of ``x``.
        u_y: Standard uncertainties of ``y``; of no point are both 0.

    Raises:
        ValueError: The points do not determine a line.
    """
    if len(x) < 3 or max(x) <= min(x):
        raise ValueError("fewer than three points, or all at one place")
    if any(a * a + b * b <= 0.0 for a, b in zip(u_x, u_y, strict=True)):
        raise ValueError("a point without uncertainty")
    slope = _ordinary_slope(x, y)
    for _ in range(_MOST_STEPS):
        before, slope = slope, _step(slope, x, y, u_x, u_y)
        if abs(slope - before) <= _TOLERANCE * abs(slope):
            break
    weights, centre_x, centre_y = _centre(slope, x, y, u_x, u_y)
    total = math.fsum(weights)
    adjusted = [centre_x + beta for beta in _betas(slope, weights, centre_x, centre_y, x, y, u_x, u_y)]
    mean_x = _weighted(weights, adjusted) / total
    spread = math.fsum(w * (at - mean_x) ** 2 for w, at in zip(weights, adjusted, strict=True))
    if spread <= 0.0:
        raise ValueError("all points at one place")
    variance = 1.0 / spread
    intercept = centre_y - slope * centre_x
    residuals = (b - intercept - slope * a for a, b in zip(x, y, strict=True))
    return Line(
        slope=slope,
        intercept=intercept,
        slope_standard=math.sqrt(variance),
        intercept_standard=math.sqrt(1.0 / total + mean_x * mean_x * variance),
        covariance=-mean_x * variance,
        chi_squared=math.fsum(w * residual * residual for w, residual in zip(weights, residuals, strict=True)),
    )


def _ordinary_slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    above = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / math.fsum((a - mean_x) ** 2 for a in x)


def _centre(
    slope: float, x: Sequence[float], y: Sequence[float], u_x: Sequence[float], u_y: Sequence[float]
) -> tuple[list[float], float, float]:
    """Return the weights of the points, and their weighted centre."""
    weights = [1.0 / (b * b + slope * slope * a * a) for a, b in zip(u_x, u_y, strict=True)]
    total = math.fsum(weights)
    return weights, _weighted(weights, x) / total, _weighted(weights, y) / total


def _weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(w * value for w, value in zip(weights, values, strict=True))


def _betas(
    slope: float,
    weights: Sequence[float],
    centre_x: float,
    centre_y: float,
    x: Sequence[float],
    y: Sequence[float],
    u_x: Sequence[float],
    u_y: Sequence[float],
) -> list[float]:
    """Return the distance in x from the centre to where each point is expected on the line."""
    return [
        w * ((a - centre_x) * s_y * s_y + slope * (b - centre_y) * s_x * s_x)
        for w, a, b, s_x, s_y in zip(weights, x, y, u_x, u_y, strict=True)
    ]


def _step(slope: float, x: Sequence[float], y: Sequence[float], u_x: Sequence[float], u_y: Sequence[float]) -> float:
    weights, centre_x, centre_y = _centre(slope, x, y, u_x, u_y)
    scaled = [
        w * beta for w, beta in zip(weights, _betas(slope, weights, centre_x, centre_y, x, y, u_x, u_y), strict=True)
    ]
    below = _weighted(scaled, [a - centre_x for a in x])
    if below == 0.0:
        raise ValueError("the points do not determine a line")
    return _weighted(scaled, [b - centre_y for b in y]) / below
