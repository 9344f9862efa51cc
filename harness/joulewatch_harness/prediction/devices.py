"""From known devices to one with few measurements: a Gaussian prior, conditioned on the calibration runs.

Every known device predicts the logarithm of the energy of every network. Over the devices, these predictions have a
mean and a covariance. To them are added the unknown level of a new device (``LEVEL``), and independent changes of each
term of its roofline (``SHAPE``), for what few known devices cannot show. Conditioning this Gaussian on n >= 0 measured
networks gives the prediction for the others.

The width is that of Student's t process: it grows if the calibration runs contradict the prior. It is scaled by the
conformal quantile over whole devices: how far each known device was from the prediction of the others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter.text import count_of
from joulewatch_harness.prediction.roofline import (
    COVERAGE,
    FEW,
    MOST_SMOOTHED,
    Floats,
    Points,
    fit,
    logs_left_out,
)

LEVEL: Final = 1.0
"""Variance of the logarithm of the level of a new device, added to that of the known ones."""
SHAPE: Final = 0.2
"""Variance of the logarithm of each coefficient of a new device, around the mean of the known ones."""
NOISE: Final = 0.003
"""Variance of the logarithm of a measured energy around a roofline (5.5 %)."""
DOF: Final = 0.5
MOST_DEVICES: Final = 0.85
"""Share of the known devices on which an interval covers 90 % of the networks. With 0.9, the intervals cover more than
96 % of all networks in simulations of 37 devices."""
CORRECTED_DEVICES: Final = 18
"""With fewer, the finite-sample correction widens the intervals more than that."""
LARGEST_LEVEL: Final = 0.95
"""Level of the quantile with fewer devices, where the finite-sample correction asks for more than they have."""
POWER_SHARE: Final = 0.25
"""Weight of a constant power × measured seconds for another family of networks. In simulations and on real boards that
is as good as the model alone or better; more is worse where the power differs between networks."""
FEWEST_DEVICES: Final = 2
MOST_FOLDS: Final = 64
"""With more labels, several are excluded from a fit at once."""
FOLDS_OF_MANY: Final = 10
"""The same with more than ``MOST_SMOOTHED`` rows: a tenth less hardly changes such a fit."""
VALIDATED_DEVICES: Final = 9
"""With fewer, no interval over whole devices can guarantee 90 %."""


@dataclass(frozen=True, slots=True)
class Views:
    """What k known devices predict for the same n rows."""

    boards: tuple[str, ...]
    """Device of each; a board has the same weight, whatever its number of models."""
    logs: Floats
    """Logarithms of the predictions, shape (k, n)."""
    shares: Floats
    """Share of each term in them, shape (k, n, 7)."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A prediction of logarithms."""

    mean: Floats
    scale: Floats
    """Width of the predictive distribution, to be multiplied by a quantile of the scores."""


def condition(views: Views, rows: NDArray[np.int_], values: Floats) -> Gaussian:
    """Return the prediction for every row of a device that is not known.

    Args:
        views: The predictions of at least one known device for the rows.
        rows: Indexes of the calibration rows, n >= 0.
        values: Their measured values.
    """
    counts = Counter(views.boards)
    weights = np.array([1.0 / counts[board] for board in views.boards])
    weights /= weights.sum()
    mean = weights @ views.logs
    deviations = views.logs - mean
    levels = deviations.mean(axis=1)
    level = LEVEL + float(weights @ levels**2)
    deviations -= levels[:, None]
    shares = np.tensordot(weights, views.shares, axes=1)
    variance = weights @ deviations**2 + level + SHAPE * (shares**2).sum(axis=1) + NOISE
    count = len(rows)
    if not count:
        return Gaussian(mean, np.sqrt(variance))
    weighted = deviations[:, rows].T * weights
    covariance = weighted @ deviations + level + SHAPE * shares[rows] @ shares.T
    noisy = covariance[:, rows] + NOISE * np.eye(count)
    innovation = np.log(values) - mean[rows]
    gain = np.linalg.solve(noisy, covariance)
    surprise = float(innovation @ np.linalg.solve(noisy, innovation))
    left = np.maximum(variance - (covariance * gain).sum(axis=0), NOISE)
    return Gaussian(mean + innovation @ gain, np.sqrt(left * (DOF + surprise) / (DOF + count)))


def alone(points: Points, wanted: Points, batch_size: float) -> Gaussian:
    """Return the prediction for a device with few networks: its own roofline, conditioned on its own rows.

    The scale grows with the distance from the measured networks.
    """
    model = fit(points, batch_size)
    both = points.joined(wanted)
    parts = model.parts(both.features, both.batch_sizes, both.seconds)
    total = np.maximum(parts.sum(axis=1), 1e-30)
    views = Views(("",), np.log(total)[None], (parts / total[:, None])[None])
    count = len(points)
    every = condition(views, np.arange(count), points.values)
    return Gaussian(every.mean[count:], every.scale[count:])


def shrunk(logs: Floats, points: Points, wanted: Points) -> Floats:
    """Return logarithms of energies of another family, part of the way to a constant power × the measured seconds.

    Args:
        logs: What the model predicts for ``wanted``.
        points: The rows that the model is fitted to.
        wanted: Without seconds, the model's logarithms are returned.
    """
    if points.seconds is None or wanted.seconds is None:
        return logs
    power = float(np.mean(np.log(points.values / points.seconds)))
    return np.asarray((1 - POWER_SHARE) * logs + POWER_SHARE * (power + np.log(wanted.seconds)))


def held_out(
    points: Points, labels: Sequence[str], batch_size: float, *, family: bool = False
) -> tuple[Floats, Floats]:
    """Return errors and their scale at one batch size, for models fitted without the rows of the same label.

    The labels are those of families, or of networks.

    Errors are nan where nothing is left to fit. With few networks they come from ``alone``; with more, the scale is 1.
    """
    names = np.array(labels)
    errors, scales = np.full(len(points), np.nan), np.ones(len(points))
    at = points.batch_sizes == batch_size
    count = int(at.sum())
    few = count < FEW
    distinct = list(dict.fromkeys(names[at].tolist()))
    if FEW < count == len(distinct) <= MOST_SMOOTHED:
        chosen = points[at]
        logs = logs_left_out(chosen)
        return np.log(chosen.values) - (shrunk(logs, chosen, chosen) if family else logs), scales[at]
    folds = MOST_FOLDS if count <= MOST_SMOOTHED else FOLDS_OF_MANY
    for number in range(min(len(distinct), folds)):
        held = np.isin(names, distinct[number::folds])
        out, rest = held & at, ~held
        if not rest.any():
            continue
        wanted = points[out]
        if few:
            prediction = alone(points[rest], wanted, batch_size)
            logs, scales[out] = prediction.mean, prediction.scale
        else:
            logs = fit(points[rest], batch_size).log_values(wanted.features, wanted.batch_sizes, wanted.seconds)
        errors[out] = np.log(wanted.values) - (shrunk(logs, points[rest], wanted) if family else logs)
    return np.asarray(errors[at]), np.asarray(scales[at])


def spread_choice(sizes: Floats, count: int) -> list[int]:
    """Return ``count`` indexes spread over the range of ``sizes``: the median, or from the 10th to the 90th percent."""
    order = np.argsort(sizes, kind="stable")
    places = [0.5] if count == 1 else list(np.linspace(0.1, 0.9, count))
    chosen = [int(order[round(place * (len(order) - 1))]) for place in places]
    return list(dict.fromkeys(chosen))


def quantile(scores: Sequence[Floats]) -> tuple[float, str]:
    """Return the factor for 90 % coverage on a new device, and its basis.

    It is the conformal quantile of all scores, in which each device has the same weight. With enough devices, the
    factor also covers 90 % of the networks on 85 % of them: few devices that are unlike the others have most errors.

    Args:
        scores: For each known device, the absolute errors over ``Gaussian.scale``.
    """
    units = [unit for unit in scores if len(unit)]
    count = len(units)
    if count < FEWEST_DEVICES:
        return math.inf, f"none: {count_of(count, 'device')} to compare with"
    level = COVERAGE * (count + 1) / count
    values = np.concatenate(units)
    weights = np.concatenate([np.full(len(unit), 1.0 / len(unit)) for unit in units])
    order = np.argsort(values)
    total = np.cumsum(weights[order]) / count
    place = int(np.searchsorted(total, min(level, LARGEST_LEVEL) - 1e-12))
    pooled = float(values[order][min(place, len(values) - 1)])
    on_most = float(np.quantile([np.quantile(unit, COVERAGE) for unit in units], MOST_DEVICES))
    return max(pooled, on_most) if count >= CORRECTED_DEVICES else pooled, f"conformal over {count} devices"
