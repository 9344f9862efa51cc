"""Fit one model per scope, device, runtime and precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.devices import (
    FEWEST_DEVICES,
    Gaussian,
    Views,
    alone,
    condition,
    held_out,
    quantile,
    shrunk,
    spread_choice,
)
from joulewatch_harness.prediction.features import CNN_OPERATORS, FEATURES, Features
from joulewatch_harness.prediction.roofline import FEW, TERMS, Floats, Points, Roofline, fit, half_width
from joulewatch_harness.prediction.table import UNIT_FACTOR, Row, check_rows, listed

ENERGY: Final = "energy"
TIME: Final = "seconds"
ENERGY_WITH_TIME: Final = "energy_with_seconds"
KINDS: Final = (ENERGY, TIME, ENERGY_WITH_TIME)
"""Joules per inference, seconds per inference, joules per inference where the seconds are measured."""
CONSTANT_POWER: Final = "constant power × latency"
MACS: Final = "a + b × MACs"
FEWEST_NETWORKS: Final = 2
CALIBRATIONS: Final = (1, 2, 3, 5, 10)
"""Numbers of calibration runs for which the errors on new devices are known."""
FEWEST_IN_PRIOR: Final = 3
"""Networks that a device needs to be one of the known devices."""
FEW_ALONE: Final = 14
"""With fewer networks, two per term, a device is predicted from the other devices and its own rows, if there are two
others: in simulations and on real boards that is at least as good as its own fit."""
MOST_COMPARED: Final = 40
"""More models are represented by as many of them, from as many devices as possible, where new devices are predicted:
each is compared with each other one."""
MOST_COMPARED_ROWS: Final = 400
"""Rows of each of them."""
SEED: Final = 0


Factors = Mapping[str, Mapping[str, Mapping[int, tuple[float, str]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of one kind at one batch size, from refits without a network, and without a family."""

    network: Floats
    """Logarithm of measured over predicted, one per network; nan: not predictable."""
    family: Floats
    network_scale: Floats
    """Scale of each error; 1 unless the networks are few."""
    family_scale: Floats

    def half_width(self, *, family: bool) -> tuple[float, str]:
        """Return the half-width of a 90 % interval for a scale of 1, and its basis."""
        return half_width(self.family / self.family_scale if family else self.network / self.network_scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceModel:
    """The models of one scope, device, runtime and precision."""

    scope: str
    device: str
    runtime: str
    precision: str
    platforms: tuple[str, ...]
    methods: tuple[str, ...]
    """Of the energies (``counter``, ``emulated``, ...); ``imported`` for tables."""
    rows: tuple[Row, ...]
    rooflines: Mapping[str, Mapping[int, Roofline]]
    """Kind -> batch size -> model; a kind is missing without times."""
    errors: Mapping[str, Mapping[int, Errors]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.scope, self.device, self.runtime, self.precision

    @property
    def title(self) -> str:
        return f"{self.device}, {self.runtime}, {self.precision} ({self.scope})"

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted({row.batch_size for row in self.rows}))

    @cached_property
    def networks(self) -> Mapping[str, Row]:
        """A row of each network."""
        return {row.network: row for row in self.rows}

    @cached_property
    def families(self) -> frozenset[str]:
        return frozenset(row.family for row in self.rows)

    @cached_property
    def operators(self) -> frozenset[str]:
        """Operators of the fitted networks; those of convolutional networks where a table does not name them."""
        seen: set[str] = set()
        for row in self.rows:
            assert row.features is not None
            seen |= row.features.operators or CNN_OPERATORS
        return frozenset(seen)

    @cached_property
    def main_batch_size(self) -> int:
        """The batch size with most networks, the smallest of them if there are several."""
        counts = Counter(row.batch_size for row in self.rows)
        return max(counts, key=lambda size: (counts[size], -size))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value of each feature."""
        values = vectors(self.rows)
        return {name: (float(values[:, i].min()), float(values[:, i].max())) for i, name in enumerate(FEATURES)}

    def log_values(self, kind: str, features: Floats, batch_sizes: Floats) -> Floats:
        """Return the logarithm of the rooflines' predictions; between measured batch sizes it is interpolated."""
        logs = {
            size: model.log_values(features, np.full(len(features), float(size)), smooth=False)
            for size, model in self.rooflines[kind].items()
        }
        return self._interpolated(logs, batch_sizes)

    def shares(self, kind: str, features: Floats, batch_sizes: Floats) -> Floats:
        """Return the share of each term in the prediction, shape (n, 7), from the nearest measured batch size."""
        models = self.rooflines[kind]
        known = np.array(sorted(models), dtype=float)
        nearest = known[np.abs(np.log(batch_sizes[:, None] / known)).argmin(axis=1)]
        result = np.zeros((len(features), len(TERMS)))
        for size in set(nearest.tolist()):
            at = nearest == size
            result[at] = models[int(size)].parts(features[at], nearest[at])
        return np.asarray(result / np.maximum(result.sum(axis=1, keepdims=True), 1e-30))

    def predict(
        self,
        kind: str,
        features: Features,
        batch_size: float,
        seconds: float | None = None,
        *,
        other_family: bool = False,
    ) -> tuple[float, float, dict[str, float]]:
        """Return the logarithm of the prediction for one network, its scale, and the share of each term."""
        one = np.ones(1)
        wanted = Points(
            features=np.array([features.vector()]), batch_sizes=one * batch_size, values=one,
            seconds=None if seconds is None else one * seconds,
        )  # fmt: skip
        models = self.rooflines[kind]
        rows = points_of(usable(self.rows, kind), kind)
        predictions: dict[int, tuple[float, float]] = {}
        for size, model in models.items():
            at = replace(wanted, batch_sizes=one * size)
            if int((rows.batch_sizes == size).sum()) < FEW:
                gaussian = alone(rows, at, size)
                predictions[size] = float(gaussian.mean[0]), float(gaussian.scale[0])
            else:
                predictions[size] = float(model.log_values(at.features, at.batch_sizes, at.seconds)[0]), 1.0
            if other_family:
                log, scale = predictions[size]
                predictions[size] = float(shrunk(one * log, rows, at)[0]), scale
        nearest = min(models, key=lambda known: abs(math.log(known / batch_size)))
        parts = models[nearest].parts(wanted.features, one * nearest, wanted.seconds)[0]
        names = (*TERMS, "mean power") if seconds is not None else TERMS
        log = self._interpolated({size: one * value for size, (value, _) in predictions.items()}, wanted.batch_sizes)[0]
        shares = dict(zip(names, (parts / parts.sum()).tolist(), strict=True))
        return float(log), predictions[nearest][1], shares

    def _interpolated(self, logs: Mapping[int, Floats], batch_sizes: Floats) -> Floats:
        """Interpolate (and extrapolate) linearly in the logarithm of the batch size.

        Args:
            logs: Measured batch size -> logarithms at this batch size, shape (n,).
            batch_sizes: The batch size of each, shape (n,).
        """
        known = sorted(logs)
        columns = np.array([logs[size] for size in known])
        if len(known) == 1:
            return np.asarray(columns[0])
        positions, at = np.log(known), np.log(batch_sizes)
        right = np.clip(np.searchsorted(positions, at), 1, len(known) - 1)
        share = (at - positions[right - 1]) / (positions[right] - positions[right - 1])
        every = np.arange(len(batch_sizes))
        return np.asarray(columns[right - 1, every] * (1 - share) + columns[right, every] * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table of errors."""

    name: str
    n: int
    """Number of predictions."""
    devices: int
    median: float | None
    """Median of |predicted / measured - 1|; of an order: share of the pairs in the right order."""
    p90: float | None = None
    macs: float | None = None
    """Median error of ``a + b × MACs``."""
    power: float | None = None
    """Median error of a constant power × the measured seconds."""
    coverage: float | None = None
    """Share of the 90 % intervals that contain the measured value."""
    worst_coverage: float | None = None
    """The same on the worst device."""
    ratio: float | None = None
    """Median of the upper over the lower end of the intervals."""
    note: str = ""

    @property
    def winner(self) -> str:
        """The baseline that is better than the model; empty if none is."""
        others = {MACS: self.macs, CONSTANT_POWER: self.power}
        better = {name: value for name, value in others.items() if value is not None and value < (self.median or 0.0)}
        return min(better, key=better.__getitem__) if better else ""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """All models of a fit, and what is known about the errors on new devices."""

    models: tuple[DeviceModel, ...]
    factors: Factors
    """Scope -> kind -> number of calibration runs -> factor for ``Gaussian.scale``, and its basis."""
    sources: tuple[Mapping[str, Any], ...] = ()
    """File, SHA-256 and number of rows of each source."""
    evaluation: tuple[Case, ...] = ()
    """The table of errors, made by ``evaluate``."""
    family_widening: float = 2.0
    """How many times as wide an interval on a new device is for a family of networks that no device measured."""


def vectors(rows: Sequence[Row]) -> Floats:
    """Return the features of rows, shape (n, 6)."""
    return np.array([row.features.vector() if row.features else (math.nan,) * 6 for row in rows]).reshape(-1, 6)


def points_of(rows: Sequence[Row], kind: str) -> Points:
    """Return rows as arrays; for a kind with time, all of them must have seconds."""
    seconds = np.array([math.nan if row.seconds is None else row.seconds for row in rows])
    return Points(
        features=vectors(rows),
        batch_sizes=np.array([float(row.batch_size) for row in rows]),
        values=seconds if kind == TIME else np.array([row.joules for row in rows]),
        seconds=seconds if kind == ENERGY_WITH_TIME else None,
    )


def _values(rows: Sequence[Row], kind: str) -> Floats:
    """Return the joules, or the seconds, which all rows must have."""
    return np.array([row.seconds if kind == TIME else row.joules for row in rows], dtype=np.float64)


def usable(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the rows that a kind can use."""
    return [row for row in rows if kind == ENERGY or row.seconds is not None]


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each model.

    Raises:
        ConfigError: ``check_rows``, or rows without features.
    """
    check_rows(rows)
    without = [row for row in rows if row.features is None]
    if without:
        raise ConfigError(f"{listed(without)}: no features of the network ({', '.join(FEATURES)}); add these columns")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return list(groups.values())


def fit_device(rows: Sequence[Row], *, with_errors: bool = True) -> DeviceModel:
    """Fit the models of one scope, device, runtime and precision."""
    rooflines: dict[str, dict[int, Roofline]] = {}
    errors: dict[str, dict[int, Errors]] = {}
    for kind in KINDS:
        chosen = usable(rows, kind)
        if len({row.network for row in chosen}) < FEWEST_NETWORKS:
            continue
        points = points_of(chosen, kind)
        rooflines[kind], errors[kind] = {}, {}
        for size in sorted({row.batch_size for row in chosen}):
            rooflines[kind][size] = fit(points, float(size))
            if with_errors:
                network, network_scale = held_out(points, [row.network for row in chosen], float(size))
                family, family_scale = held_out(points, [row.family for row in chosen], float(size), family=True)
                errors[kind][size] = Errors(
                    network=network, network_scale=network_scale, family=family, family_scale=family_scale
                )
    first = rows[0]
    return DeviceModel(
        scope=first.scope, device=first.device, runtime=first.runtime, precision=first.precision,
        platforms=tuple(dict.fromkeys(row.platform for row in rows if row.platform)),
        methods=tuple(sorted({row.method for row in rows})),
        rows=tuple(rows), rooflines=rooflines, errors=errors,
    )  # fmt: skip


def fit_all(rows: Sequence[Row], sources: Sequence[Mapping[str, Any]] = ()) -> Fit:
    """Fit every model.

    Raises:
        ConfigError: The rows contradict each other, lack features, or are too few.
    """
    models = tuple(fit_device(group) for group in group_rows(rows))
    if not any(model.rooflines for model in models):
        first = models[0].rows[0]
        raise ConfigError(f"{first.where}: no device has two networks; a fit needs two, a validated interval nine")
    for model in models:
        _check_units(model)
    return Fit(models=models, factors=device_factors(models), sources=tuple(sources))


def _check_units(model: DeviceModel) -> None:
    """Check that no energy is far from the others of the device; without times, units show only here.

    Raises:
        ConfigError: The text names the rows.
    """
    if ENERGY not in model.rooflines:
        return
    points = points_of(model.rows, ENERGY)
    residuals = np.log(points.values) - model.log_values(ENERGY, points.features, points.batch_sizes)
    order = np.argsort(residuals)
    gaps = np.diff(residuals[order])
    if len(gaps) and gaps.max() > math.log(UNIT_FACTOR):
        place = int(gaps.argmax()) + 1
        fewer = order[:place] if 2 * place <= len(order) else order[place:]
        far = [model.rows[i] for i in sorted(fewer.tolist())]
    elif (np.abs(residuals - np.median(residuals)) <= math.log(UNIT_FACTOR)).all():
        return
    else:
        # A row of a smaller unit dominates a fit to relative errors, so the energy per work shows which rows they are.
        per_work = np.log(points.values / (points.features[:, 0] + points.features[:, 1] + points.features[:, 3] + 1.0))
        distance = np.abs(per_work - np.median(per_work))
        far = [row for row, value in zip(model.rows, distance, strict=True) if value > distance.max() / 2]
    raise ConfigError(
        f"{listed(far)}: mixed units? The energies of the device differ by more than {UNIT_FACTOR:g} times from what "
        "its other rows predict; joules_per_inference is in J"
    )


# New devices


def known_for(
    models: Sequence[DeviceModel], scope: str, precision: str, kind: str, excluded: Sequence[str] = ()
) -> list[DeviceModel]:
    """Return the models of other boards that are most like a new one.

    Those of the same precision; of all precisions where fewer than two boards have it.
    """
    eligible = [
        model
        for model in models
        if model.scope == scope
        and model.device not in excluded
        and base(kind) in model.rooflines
        and len(model.networks) >= FEWEST_IN_PRIOR
    ]
    same = [model for model in eligible if model.precision == precision]
    return representatives(same if len({model.device for model in same}) > 1 else eligible)


def representatives(models: Sequence[DeviceModel]) -> list[DeviceModel]:
    """Return at most ``MOST_COMPARED`` models: the first one of each device, then the second one, and so on."""
    if len(models) <= MOST_COMPARED:
        return list(models)
    seen: Counter[str] = Counter()
    turns = []
    for model in models:
        turns.append(seen[model.device])
        seen[model.device] += 1
    chosen = sorted(range(len(models)), key=turns.__getitem__)[:MOST_COMPARED]
    return [models[i] for i in sorted(chosen)]


def base(kind: str) -> str:
    """Return the kind of the rooflines that a new device uses."""
    return ENERGY if kind == ENERGY_WITH_TIME else kind


def views_of(known: Sequence[DeviceModel], kind: str, rows: Sequence[Row]) -> Views:
    """Return what known devices predict for rows."""
    points = points_of(rows, ENERGY)
    at = points.features, points.batch_sizes
    return Views(
        tuple(model.device for model in known),
        np.array([model.log_values(base(kind), *at) for model in known]),
        np.array([model.shares(base(kind), *at) for model in known]),
    )


@lru_cache(maxsize=1 << 14)
def _view(known: DeviceModel, target: DeviceModel, kind: str) -> Views:
    return views_of([known], kind, _measured(target, kind)[0])


@lru_cache(maxsize=1 << 10)
def _measured(model: DeviceModel, kind: str) -> tuple[tuple[Row, ...], Floats]:
    """Return the rows at the main batch size, at most ``MOST_COMPARED_ROWS``, and the logarithms of their values."""
    rows = tuple(at_main_batch(model, kind))
    rows = rows[:: -(-len(rows) // MOST_COMPARED_ROWS) or 1]
    return rows, np.log(points_of(rows, kind).values)


def transfer(views: Views, kind: str, rows: Sequence[Row], chosen: Sequence[int]) -> Gaussian:
    """Return the logarithms for rows of a new device, of which those at the indexes ``chosen`` are measured.

    With measured seconds, the energy is the geometric mean of the prediction and of the calibration runs' mean power
    times the seconds: their errors are nearly independent.
    """
    places = np.array(chosen, dtype=int)
    measured = _values([rows[i] for i in chosen], kind)
    prediction = condition(views, places, measured)
    if kind != ENERGY_WITH_TIME:
        return prediction
    times = np.log(_values(rows, TIME))
    power = float(np.mean(np.log(measured) - times[places]))
    return Gaussian((prediction.mean + power + times) / 2, prediction.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsNew:
    """A known device, treated as new: what the others predict for it."""

    model: DeviceModel
    rows: tuple[Row, ...]
    logs: Floats
    """Logarithms of the measured values."""
    views: Views


def as_new(models: Sequence[DeviceModel], model: DeviceModel, kind: str, excluded: Sequence[str] = ()) -> AsNew | None:
    """Return a device treated as new; None if fewer than two other boards are known."""
    rows, logs = _measured(model, kind)
    known = known_for(models, model.scope, model.precision, kind, (model.device, *excluded))
    if not rows or len({other.device for other in known}) < FEWEST_DEVICES:
        return None
    parts = [_view(other, model, kind) for other in known]
    views = Views(
        tuple(other.device for other in known),
        np.concatenate([part.logs for part in parts]),
        np.concatenate([part.shares for part in parts]),
    )
    return AsNew(model=model, rows=rows, logs=logs, views=views)


def held_out_as_new(new: AsNew, kind: str, labels: Sequence[str]) -> Floats:
    """Return the errors on the rows of each label, predicted from the other devices and the rows of other labels."""
    errors = np.full(len(new.rows), math.nan)
    for label in dict.fromkeys(labels):
        chosen = [i for i, other in enumerate(labels) if other != label]
        if chosen:
            out = [i for i, other in enumerate(labels) if other == label]
            errors[out] = (new.logs - transfer(new.views, kind, new.rows, chosen).mean)[out]
    return errors


def scores(new: AsNew, kind: str, count: int) -> Floats:
    """Return the errors over their scale, for two choices of ``count`` calibration networks: spread, and random."""
    if len(new.rows) <= count:
        return np.zeros(0)
    errors = []
    for chosen in _choices(new.model, kind, count):
        prediction = transfer(new.views, kind, new.rows, chosen)
        errors.append(np.delete(np.abs(new.logs - prediction.mean) / prediction.scale, chosen))
    return np.concatenate(errors)


@lru_cache(maxsize=1 << 12)
def _choices(model: DeviceModel, kind: str, count: int) -> tuple[list[int], list[int]]:
    rows, _ = _measured(model, kind)
    return spread_rows(rows, count), random_rows(rows, count)


def at_main_batch(model: DeviceModel, kind: str) -> list[Row]:
    """Return the rows at the batch size with most networks."""
    return [row for row in usable(model.rows, kind) if row.batch_size == model.main_batch_size]


def spread_rows(rows: Sequence[Row], count: int) -> list[int]:
    """Return the indexes of ``count`` rows spread over the multiply-accumulates of their networks."""
    values = vectors(rows)
    return spread_choice(values[:, 0] + values[:, 1], count)


def random_rows(rows: Sequence[Row], count: int) -> list[int]:
    """Return ``count`` indexes drawn at random, the same ones in every fit."""
    return [int(i) for i in np.random.default_rng(SEED).choice(len(rows), count, replace=False)]


def device_factors(
    models: Sequence[DeviceModel],
    excluded: Sequence[str] = (),
    *,
    kinds: Sequence[str] = KINDS,
    counts: Sequence[int] = CALIBRATIONS,
) -> dict[str, dict[str, dict[int, tuple[float, str]]]]:
    """Return the factor for ``Gaussian.scale`` for each scope, kind and number of calibration runs."""
    factors: dict[str, dict[str, dict[int, tuple[float, str]]]] = {}
    for scope in dict.fromkeys(model.scope for model in models):
        chosen = representatives([m for m in models if m.scope == scope and m.device not in excluded])
        for kind in kinds:
            all_new = [new for model in chosen if (new := as_new(models, model, kind, excluded)) is not None]
            for count in counts:
                units: dict[str, list[Floats]] = {}
                for new in all_new:
                    units.setdefault(new.model.device, []).append(scores(new, kind, count))
                factor = quantile([np.concatenate(unit) for unit in units.values()])
                if math.isfinite(factor[0]):
                    factors.setdefault(scope, {}).setdefault(kind, {})[count] = factor
    return factors
