"""The energy of each of several counters, and of time, by least squares over sub-windows of a window. Pure.

``E = sum(c_i N_i) + P t``: with the input and output tokens of an LLM server, ``c`` are the joules of prefill and
decode per token, and ``P`` is the power that does not depend on tokens.

Source:
    Weighted least squares; Birge's ratio for scatter that the uncertainties do not explain; the condition number of
    the scaled columns and its limit: Belsley, Kuh and Welsch, Regression Diagnostics (1980), chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.sources.series import Floats
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95, student_factor

MOST_WINDOWS: Final = 60
LEAST_WINDOWS: Final = 8
"""And at least four more than there are unknowns."""
SPACINGS: Final = 5.0
"""A sub-window is at least so many sample spacings long."""
LARGEST_CONDITION: Final = 30.0
LARGEST_NOISE: Final = 0.2
"""Largest share of the variance of a counter, as far as it varies by itself, that is its uncertainty."""
_ITERATIONS: Final = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Joules per unit, or watts, with the uncertainty at 95 % coverage."""

    value: float
    expanded: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The result of the fit."""

    units: tuple[Cost, ...]
    """Joules per unit of each counter."""
    watts: Cost
    """Power that does not depend on the counters."""
    windows: int
    condition: float
    """Condition number of the scaled columns; 1: the counters vary independently."""
    residual_joules: float
    """Root mean square of what the fit does not explain, per sub-window."""


def sub_windows(duration_s: float, spacing_s: float, unknowns: int) -> int:
    """Return the number of sub-windows of a window.

    Args:
        duration_s: Of the window.
        spacing_s: Largest sample spacing or refresh period of any series.
        unknowns: Counters, and the power.

    Raises:
        CoverageError: ``too_few_windows``.
    """
    count = min(int(duration_s / (SPACINGS * spacing_s)), MOST_WINDOWS)
    least = max(LEAST_WINDOWS, unknowns + 4)
    if count < least:
        raise CoverageError(
            "too_few_windows",
            f"a window of {duration_s:.3g} s has {count_of(count, 'sub-window')} of {SPACINGS:g} samples, fewer than "
            f"{least}; use at least {least * SPACINGS * spacing_s:.3g} s",
        )
    return count


def fit_costs(
    names: Sequence[str],
    joules: Floats,
    joules_standard: Floats,
    units: Floats,
    units_standard: Floats,
    seconds: float,
    accuracy: float = 0.0,
) -> Costs:
    """Fit the costs of counters and of time.

    Args:
        names: Of the counters, for errors.
        joules: Energy of each sub-window, shape (n,).
        joules_standard: Standard uncertainties without the sensors' accuracy, shape (n,).
        units: Increases of the counters, shape (n, counters).
        units_standard: Their standard uncertainties.
        seconds: Length of a sub-window.
        accuracy: Expanded relative uncertainty that all energies share.

    Raises:
        CoverageError: ``collinear``: the counters rise in proportion to each other or to time; ``noisy_counter``: a
            counter varies little, compared with its uncertainty.
    """
    design = np.column_stack((units, np.full(joules.shape, seconds)))
    condition = _condition(names, design)
    noise = _noise(names, design, units_standard)
    count, unknowns = design.shape
    solution = np.zeros(unknowns)
    variances = np.maximum(joules_standard**2, (1e-9 * np.abs(joules).max()) ** 2)
    covariance = np.zeros((unknowns, unknowns))
    for _ in range(_ITERATIONS):
        # The uncertainty of a counter is one of the energy that it explains.
        weights = 1 / (variances + (units_standard**2) @ (solution[:-1] ** 2))
        covariance = np.linalg.inv((design.T * weights) @ design)
        solution = covariance @ ((design.T * weights) @ joules)
    residuals = joules - design @ solution
    dof = count - unknowns
    ratio = float((weights * residuals**2).sum()) / dof
    factor = NORMAL_95
    if ratio > 1:
        covariance = covariance * ratio * _dependence(residuals)
        factor = student_factor(dof)
    expanded = [
        # The uncertainty of a counter also lowers its cost, by the share of its variance that is noise.
        math.hypot(factor * math.sqrt(covariance[at, at]), (*noise, 0.0)[at] * value, accuracy * value)
        for at, value in enumerate(solution.tolist())
    ]
    costs = [Cost(value, wide) for value, wide in zip(solution.tolist(), expanded, strict=True)]
    return Costs(
        units=tuple(costs[:-1]),
        watts=costs[-1],
        windows=count,
        condition=condition,
        residual_joules=float(np.sqrt((residuals**2).mean())),
    )


def _condition(names: Sequence[str], design: Floats) -> float:
    """Return the condition number of the columns, scaled to the same length."""
    lengths = np.sqrt((design**2).sum(axis=0))
    for name, length in zip(names, lengths, strict=False):
        if length == 0:
            raise CoverageError("no_units", f"{name} did not rise in the window")
    scaled = design / lengths
    _, singular, directions = np.linalg.svd(scaled)
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf
    if condition <= LARGEST_CONDITION:
        return condition
    # The columns in the direction that has no length are those that are proportional to each other.
    involved = [name for name, part in zip((*names, "time"), directions[-1], strict=True) if abs(part) > 0.3]
    raise CoverageError(
        "collinear",
        f"{' and '.join(involved)} rise in proportion to each other (condition number {condition:.3g}, at most "
        f"{LARGEST_CONDITION:g}), so their shares of the energy cannot be separated; use a window in which the "
        "lengths of prompts and answers, and the load, vary",
    )


def _noise(names: Sequence[str], design: Floats, standard: Floats) -> list[float]:
    """Return the share of each counter's own variance that is its uncertainty: its cost is too low by this share."""
    shares = []
    for at, name in enumerate(names):
        others = np.delete(design, at, axis=1)
        own = design[:, at] - others @ np.linalg.lstsq(others, design[:, at], rcond=None)[0]
        variance = float((own**2).mean())
        share = float((standard[:, at] ** 2).mean()) / variance if variance > 0 else math.inf
        if share > LARGEST_NOISE:
            raise CoverageError(
                "noisy_counter",
                f"{name} varies little by itself, compared with its uncertainty in sub-windows; use a longer window, "
                "or scrape more often",
            )
        shares.append(share)
    return shares


def _dependence(residuals: Floats) -> float:
    """Return by how much the variance is larger because neighbouring residuals are alike: (1 + r) / (1 - r)."""
    total = float((residuals**2).sum())
    alike = float((residuals[1:] * residuals[:-1]).sum()) / total if total > 0 else 0.0
    alike = min(max(alike, 0.0), 0.9)
    return (1 + alike) / (1 - alike)
