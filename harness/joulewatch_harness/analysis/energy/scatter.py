"""The scatter of a sensor's values. Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from joulewatch_harness.analysis.sources.series import Floats
from joulewatch_harness.gum import NORMAL_95, student_factor

_PERIOD_TOLERANCE: Final = 0.05
"""Relative tolerance for readings one refresh period apart: scrapes and sensors have different clocks."""


def spaced(times_s: Floats, values: Floats, refresh_s: float) -> Floats:
    """Return the values that are a refresh period apart, so that no value counts twice."""
    least_s = (1.0 - _PERIOD_TOLERANCE) * refresh_s
    if times_s.size < 2 or float(np.diff(times_s).min()) >= least_s:
        return values
    kept: list[float] = []
    last_s = -math.inf
    for at_s, value in zip(times_s, values, strict=True):
        if at_s >= last_s + least_s:
            kept.append(float(value))
            last_s = float(at_s)
    return np.array(kept, dtype=np.float64)


def scatter(values: Floats) -> float:
    """Return the standard deviation of values from their successive differences, which slow changes do not widen."""
    return math.sqrt(float(np.mean(np.diff(values) ** 2)) / 2)


def few_factor(values: Floats) -> float:
    """Return the factor for a scatter of few values: two thirds of a degree of freedom per difference."""
    return student_factor(2 * (values.size - 1) / 3) / NORMAL_95
