"""One device: energy or time per inference as a non-negative sum of what a network computes and moves.

``E(B) = sum of c_k * f_k``, with ``c_k >= 0``: dense and depthwise multiply-accumulates, activations and input pixels
per inference; weights, layers and a constant per batch, so divided by the batch size B. Non-negative coefficients keep
extrapolations physical. The squares of the relative errors are minimised, with a small penalty that shares the energy
between features that always occur together instead of choosing one of them.

What the sum misses is smoothed over similar networks (kernel regression of the logarithmic residuals) and vanishes away
from them. All errors here are natural logarithms: measured over predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.gum import student_factor
from joulewatch_harness.prediction.features import FEATURES

Floats = NDArray[np.float64]

TERMS: Final = (*FEATURES, "constant")
_PER_BATCH: Final = np.array([False, False, True, False, True, False])
COVERAGE: Final = 0.9
FEW: Final = 9
"""With fewer networks at a batch size there is no conformal interval. Other batch sizes take part in the fit, and
residuals are not smoothed."""
PENALTY: Final = 0.3
PENALTY_WITH_TIME: Final = 0.004
"""Divided by the number of rows. With a measured time, the other terms are small corrections."""
LARGEST_PENALTY: Final = 0.01
LENGTH: Final = 1.5
"""Distance over which residuals are smoothed, in standard deviations of the logarithmic features."""
NOISE: Final = 0.3
"""Variance of the noise of a residual, as a share of the variance of the smooth part."""
MOST_SMOOTHED: Final = 256
"""Most rows whose residuals are smoothed: time grows with the third power of their number, and memory with the second.
More rows are represented by as many of them, spread evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Measured rows of one device as arrays."""

    features: Floats
    """Shape (n, 6), in the order of ``FEATURES``."""
    batch_sizes: Floats
    values: Floats
    """Joules or seconds per inference."""
    seconds: Floats | None = None
    """Seconds per inference, as an input of the model."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int_]) -> Points:
        return replace(
            self,
            features=self.features[rows],
            batch_sizes=self.batch_sizes[rows],
            values=self.values[rows],
            seconds=None if self.seconds is None else self.seconds[rows],
        )

    def joined(self, others: Points) -> Points:
        """Return these rows and the others; both have seconds, or neither."""
        seconds = None
        if self.seconds is not None and others.seconds is not None:
            seconds = np.concatenate([self.seconds, others.seconds])
        return Points(
            features=np.concatenate([self.features, others.features]),
            batch_sizes=np.concatenate([self.batch_sizes, others.batch_sizes]),
            values=np.concatenate([self.values, others.values]),
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A fitted model of one device at one batch size."""

    coefficients: Floats
    """Of ``TERMS``, and of the seconds if the model has them."""
    logs: Floats
    """Scaled logarithmic features of the smoothed rows, shape (n, 6)."""
    centre: Floats
    spread: Floats
    weights: Floats
    """Of the smoothed residuals, shape (n,)."""

    def parts(self, features: Floats, batch_sizes: Floats, seconds: Floats | None = None) -> Floats:
        """Return the joules (or seconds) of each term, shape (n, terms), without the smoothed residual."""
        return np.asarray(design(features, batch_sizes, seconds) * self.coefficients, dtype=np.float64)

    def log_values(
        self, features: Floats, batch_sizes: Floats, seconds: Floats | None = None, *, smooth: bool = True
    ) -> Floats:
        """Return the logarithm of the prediction, shape (n,)."""
        logs = np.log(np.maximum(self.parts(features, batch_sizes, seconds).sum(axis=1), 1e-30))
        if smooth and len(self.weights):
            scaled = (_log(features) - self.centre) / self.spread
            logs = logs + _kernel(scaled, self.logs) @ self.weights
        return np.asarray(logs, dtype=np.float64)


def design(features: Floats, batch_sizes: Floats, seconds: Floats | None = None) -> Floats:
    """Return what each coefficient multiplies, shape (n, 7), or (n, 8) with seconds."""
    columns = np.where(_PER_BATCH, features / batch_sizes[:, None], features)
    parts = [columns, 1.0 / batch_sizes[:, None]]
    if seconds is not None:
        parts.append(seconds[:, None])
    return np.concatenate(parts, axis=1)


def fit(points: Points, batch_size: float) -> Roofline:
    """Fit a model for one batch size."""
    distance = np.abs(np.log2(points.batch_sizes / batch_size))
    rows = _rows(points, batch_size)
    weights = np.exp2(-distance[rows])
    chosen = points[rows]
    matrix = design(chosen.features, chosen.batch_sizes, chosen.seconds) / chosen.values[:, None]
    root = np.sqrt(weights)
    return finished(points, batch_size, nnls(matrix * root[:, None], root, _penalty(chosen, len(chosen))))


def _penalty(points: Points, count: int) -> float:
    return min((PENALTY if points.seconds is None else PENALTY_WITH_TIME) / count, LARGEST_PENALTY)


def finished(points: Points, batch_size: float, coefficients: Floats) -> Roofline:
    """Return the model with these coefficients; the residuals of the points are smoothed if there are enough."""
    rows = _rows(points, batch_size)
    if len(rows) > MOST_SMOOTHED:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_SMOOTHED).astype(int)]
    chosen = points[rows if len(points) and (points.batch_sizes[rows] == batch_size).all() else rows[:0]]
    few = len(chosen) < FEW
    scaled, centre, spread = (chosen.features, np.zeros(6), np.ones(6)) if few else _scaled(chosen.features)
    plain = Roofline(coefficients=coefficients, logs=scaled[:0], centre=centre, spread=spread, weights=np.zeros(0))
    if few:
        return plain
    residuals = np.log(chosen.values) - plain.log_values(chosen.features, chosen.batch_sizes, chosen.seconds)
    weights = np.linalg.solve(_kernel(scaled, scaled) + NOISE * np.eye(len(chosen)), residuals)
    return replace(plain, logs=scaled, weights=np.asarray(weights, dtype=np.float64))


def _rows(points: Points, batch_size: float) -> NDArray[np.int_]:
    """Return the indexes of the rows of a fit: those at the batch size, or all if these are few."""
    at = np.flatnonzero(points.batch_sizes == batch_size)
    return at if len(at) >= FEW else np.arange(len(points))


def _scaled(features: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the scaled logarithmic features, their mean and their spread."""
    logs = _log(features)
    centre, spread = logs.mean(axis=0), np.maximum(logs.std(axis=0), 0.05)
    return np.asarray((logs - centre) / spread), centre, spread


def _log(features: Floats) -> Floats:
    return np.asarray(np.log(features + 1.0), dtype=np.float64)


def _kernel(a: Floats, b: Floats) -> Floats:
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squares / (2 * LENGTH * LENGTH)), dtype=np.float64)


def nnls(matrix: Floats, target: Floats, penalty: float) -> Floats:
    """Minimise ``mean((matrix @ x - target)**2) + penalty * sum((x * rms(column))**2)`` over x >= 0.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23, on the normal equations, which are well
    conditioned enough here: 8 columns of unit size, a penalty, and data with an error above 0.1 %.
    """
    scale = np.sqrt((matrix * matrix).mean(axis=0))
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    normal = scaled.T @ scaled / len(scaled) + (penalty + 1e-12) * np.eye(scaled.shape[1])
    return np.asarray(_nnls_of_normal(normal, scaled.T @ target / len(scaled)) / scale)


def _nnls_of_normal(normal: Floats, right: Floats) -> Floats:
    """Minimise ``x @ normal @ x / 2 - right @ x`` over x >= 0."""
    count = len(right)
    free = np.zeros(count, dtype=bool)
    x = np.zeros(count)
    for _ in range(10 * count):
        gradient = np.where(free, -np.inf, right - normal @ x)
        best = int(np.argmax(gradient))
        if gradient[best] <= 1e-10:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.solve(normal[np.ix_(free, free)], right[free])
            negative = free & (trial <= 0)
            if not negative.any():
                x = trial
                break
            steps = x[negative] / (x[negative] - trial[negative])
            x = x + float(steps.min()) * (trial - x)
            free &= x > 1e-14
            x[~free] = 0.0
    return x


def nnls_left_out(matrix: Floats, penalty: float) -> Floats:
    """Return ``nnls(matrix, ones, penalty)`` without each of the rows, shape (n, columns).

    Without one row, mostly the same coefficients are positive as with all rows, so all rows are solved at once for
    these. The solution is unique: where it fulfils the conditions of the minimum, it is that of ``nnls``.
    """
    count, columns = matrix.shape
    rest = count - 1
    grams = (matrix.T @ matrix - matrix[:, :, None] * matrix[:, None, :]) / rest
    scale = np.sqrt(np.maximum(np.diagonal(grams, axis1=1, axis2=2), 0.0))
    scale = np.where(scale > 1e-9 * np.sqrt((matrix * matrix).mean(axis=0)), scale, 0.0)
    scale[scale == 0] = 1.0
    normal = grams / (scale[:, :, None] * scale[:, None, :]) + (penalty + 1e-12) * np.eye(columns)
    right = (matrix.sum(axis=0) - matrix) / rest / scale
    free = np.flatnonzero(nnls(matrix, np.ones(count), penalty))
    x = np.zeros((count, columns))
    x[:, free] = np.linalg.solve(normal[:, free[:, None], free], right[:, free, None])[:, :, 0]
    gradient = right - (normal @ x[:, :, None])[:, :, 0]
    gradient[:, free] = 0.0
    for i in np.flatnonzero((x[:, free] <= 0).any(axis=1) | (gradient > 1e-10).any(axis=1)):
        x[i] = _nnls_of_normal(normal[i], right[i])
    return np.asarray(x / scale)


def logs_left_out(points: Points) -> Floats:
    """Return the logarithm of the prediction for each row by ``fit`` without this row.

    Args:
        points: Between ``FEW`` + 1 and ``MOST_SMOOTHED`` rows at one batch size. Unlike in ``fit``, the features are
            scaled by the mean and spread of all of them.
    """
    count = len(points)
    columns = design(points.features, points.batch_sizes, points.seconds)
    coefficients = nnls_left_out(columns / points.values[:, None], _penalty(points, count - 1))
    plain = np.log(np.maximum(coefficients @ columns.T, 1e-30))
    scaled, _, _ = _scaled(points.features)
    # The prediction of a Gaussian process for a point from all others, by the inverse for all points.
    inverse = np.linalg.inv(_kernel(scaled, scaled) + NOISE * np.eye(count))
    weights = inverse / np.diagonal(inverse)[:, None]
    np.fill_diagonal(weights, 0.0)
    return np.asarray(np.diagonal(plain) - (weights * (np.log(points.values) - plain)).sum(axis=1))


def half_width(errors: Floats) -> tuple[float, str]:
    """Return the half-width of an interval of 90 % coverage for a new error (or score) of the same kind, and its basis.

    From 9 errors on it is the conformal quantile: the ceil(0.9 (n + 1))-th smallest of the absolute errors. With fewer,
    no such quantile exists; Student's t assumes normal errors around 0 instead.
    """
    known = np.sort(np.abs(errors[np.isfinite(errors)]))
    count = len(known)
    place = math.ceil(COVERAGE * (count + 1) - 1e-9)
    if count == 0:
        return math.inf, "none: no error is known"
    if place <= count:
        return float(known[place - 1]), f"conformal, {count} errors"
    if count == 1:
        return math.inf, "none: a single error is known"
    spread = math.sqrt(float((known**2).mean()) * (1 + 1 / count))
    return student_factor(count - 1, COVERAGE) * spread, f"Student's t, {count} errors"
