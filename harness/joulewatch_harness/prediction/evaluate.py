"""Errors of predictions on data excluded from the fit, and those of two simple baselines.

Baselines: ``a + b × MACs``, and a constant power × the measured seconds, both fitted to the same rows as the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from joulewatch_exporter.text import count_of
from joulewatch_harness.prediction.devices import FEWEST_DEVICES, MOST_FOLDS, VALIDATED_DEVICES
from joulewatch_harness.prediction.fit import (
    ENERGY,
    ENERGY_WITH_TIME,
    FEW_ALONE,
    MACS,
    Case,
    DeviceModel,
    Factors,
    Fit,
    as_new,
    at_main_batch,
    device_factors,
    fit_device,
    held_out_as_new,
    known_for,
    points_of,
    representatives,
    spread_rows,
    transfer,
    usable,
    views_of,
)
from joulewatch_harness.prediction.roofline import Floats, Points, half_width, nnls, nnls_left_out
from joulewatch_harness.prediction.table import Row

RUNS: Final = (1, 3)
"""Numbers of calibration runs in the table."""
APART: Final = math.log(1.2)
"""Devices that differ by more than 20 % are ordered with more certainty."""


@dataclass(slots=True)
class _Errors:
    """Logarithmic errors of one case, with the device of each."""

    own: list[float] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    inside: list[tuple[str, bool]] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)

    def case(self, name: str, *, macs: bool = True, note: str = "") -> Case:
        """Return the line of the table."""
        own = _shares(self.own)
        by_device: dict[str, list[bool]] = {}
        for device, ok in self.inside:
            by_device.setdefault(device, []).append(ok)
        return Case(
            name=name,
            n=len(own),
            devices=len(self.devices),
            median=float(np.median(own)) if len(own) else None,
            p90=float(np.quantile(own, 0.9)) if len(own) else None,
            macs=float(np.median(_shares(self.macs))) if macs and self.macs else None,
            power=float(np.median(_shares(self.power))) if self.power else None,
            coverage=float(np.mean([ok for _, ok in self.inside])) if self.inside else None,
            worst_coverage=min(float(np.mean(oks)) for oks in by_device.values()) if by_device else None,
            ratio=float(np.exp(2 * np.median(self.widths))) if self.widths else None,
            note=note,
        )


def _shares(errors: Sequence[float]) -> Floats:
    """Return |predicted / measured - 1| of logarithms of measured / predicted."""
    return np.asarray(np.abs(np.expm1(-np.array(errors, dtype=float))), dtype=np.float64)


def cases(fit: Fit) -> list[Case]:
    """Return the table of errors."""
    table = []
    for label, unseen in (("network", "unseen network"), ("family", "unseen family")):
        for kind, suffix in ((ENERGY, ""), (ENERGY_WITH_TIME, ", latency measured")):
            errors = _known_device(fit.models, kind, label)
            families = {row.family for model in fit.models for row in model.rows}
            note = "too few families" if label == "family" and len(families) < 2 else ""
            if errors.own or kind == ENERGY:
                table.append(errors.case(f"known device, {unseen}{suffix}", note=note))
    some = representatives(fit.models)
    factors = {
        device: device_factors(fit.models, (device,), kinds=(ENERGY, ENERGY_WITH_TIME), counts=RUNS)
        for device in {model.device for model in some}
    }
    for count in RUNS:
        for kind, suffix in ((ENERGY, ""), (ENERGY_WITH_TIME, ", latency measured")):
            errors = _new_device(some, kind, count, factors)
            if errors.own or kind == ENERGY:
                runs = count_of(count, "calibration run")
                note = _few(errors.devices)
                table.append(errors.case(f"unseen device, {runs}{suffix}", macs=count > 1, note=note))
    both = _new_device_and_family(some, RUNS[-1])
    table.append(both.case(f"device and family unseen, {RUNS[-1]} calibration runs", note=_few(both.devices)))
    return [*table, *_orders(some, RUNS[-1])]


def _few(devices: set[str]) -> str:
    return "" if len(devices) >= VALIDATED_DEVICES else f"too few devices ({len(devices)}; {VALIDATED_DEVICES} needed)"


def baseline_errors(train: Sequence[Row], test: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return the errors of both baselines; the second is empty if a time is missing."""
    trained, wanted = points_of(train, ENERGY_WITH_TIME), points_of(test, ENERGY_WITH_TIME)

    def errors(baseline: Callable[[Points], Floats]) -> list[float]:
        of = baseline(trained)
        coefficients = nnls(of / trained.values[:, None], np.ones(len(of)), 0.0)
        return _logs(wanted.values, (baseline(wanted) @ coefficients)).tolist()  # type: ignore[no-any-return]

    timed = _timed(trained) and _timed(wanted)
    return errors(_of_macs), errors(_of_seconds) if timed else []


def _of_macs(points: Points) -> Floats:
    return np.stack([points.features[:, 0] + points.features[:, 1], np.ones(len(points))], axis=1)


def _of_seconds(points: Points) -> Floats:
    assert points.seconds is not None
    return points.seconds[:, None]


def _timed(points: Points) -> bool:
    return points.seconds is not None and bool(np.isfinite(points.seconds).all())


def _logs(measured: Floats, predicted: Floats) -> Floats:
    return np.asarray(np.log(measured / np.maximum(predicted, 1e-30)))


def _baselines_left_out(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Return the errors of both baselines for each row, fitted to the others."""
    points = points_of(rows, ENERGY_WITH_TIME)

    def errors(of: Floats) -> list[float]:
        coefficients = nnls_left_out(of / points.values[:, None], 0.0)
        return _logs(points.values, (of * coefficients).sum(axis=1)).tolist()  # type: ignore[no-any-return]

    return errors(_of_macs(points)), errors(_of_seconds(points)) if _timed(points) else []


def _widths_left_out(scores: Floats, folds: Sequence[NDArray[np.int_]]) -> list[float]:
    """Return, for each fold, the half-width from the scores of the others."""
    if any(len(fold) != 1 for fold in folds) or not np.isfinite(scores).all() or len(scores) <= VALIDATED_DEVICES:
        return [half_width(np.delete(scores, fold))[0] for fold in folds]
    # The quantile without a score is one of two, depending on which side of it the score is.
    order = np.argsort(np.abs(scores), kind="stable")
    known = np.abs(scores)[order]
    first, _ = half_width(known[1:])
    last, _ = half_width(known[:-1])
    place = int(np.searchsorted(known, last))
    ranks = np.empty(len(scores), dtype=int)
    ranks[order] = np.arange(len(scores))
    return [first if ranks[fold[0]] <= place else last for fold in folds]


def _known_device(
    models: Sequence[DeviceModel], kind: str, label: str, chosen: Sequence[DeviceModel] | None = None
) -> _Errors:
    """Exclude one network or one family of each device, or of the chosen ones."""
    errors = _Errors()
    for model in models if chosen is None else chosen:
        for rows, own, scale in _held_out(models, model, kind, label):
            names = [getattr(row, label) for row in rows]
            distinct = list(dict.fromkeys(names))
            if len(distinct) < 2:
                continue
            places = np.array([distinct.index(name) for name in names]) if len(distinct) < len(names) else None
            number = min(len(distinct), MOST_FOLDS) if places is not None else len(distinct)
            folds = [np.array([i]) if places is None else np.flatnonzero(places % number == i) for i in range(number)]
            ok = np.isfinite(own)
            errors.own += own[ok].tolist()
            errors.devices.add(model.device)
            if places is None:
                macs, power = _baselines_left_out(rows)
                errors.macs += [macs[i] for i in np.flatnonzero(ok)]
                errors.power += [power[i] for i in np.flatnonzero(ok)] if power else []
            else:
                for fold in folds:
                    test, rest = [rows[i] for i in fold if ok[i]], np.delete(np.arange(len(rows)), fold)
                    if test:
                        macs, power = baseline_errors([rows[i] for i in rest], test)
                        errors.macs += macs
                        errors.power += power
            if label != "network":
                continue
            for fold, factor in zip(folds, _widths_left_out(own / scale, folds), strict=True):
                if math.isfinite(factor):
                    held = fold[ok[fold]]
                    errors.inside += [(model.device, bool(abs(own[i]) <= factor * scale[i])) for i in held]
                    errors.widths += [factor * float(scale[i]) for i in held]
    return errors


def _held_out(
    models: Sequence[DeviceModel], model: DeviceModel, kind: str, label: str
) -> Iterator[tuple[list[Row], Floats, Floats]]:
    """Yield rows, errors and their scale per batch size, as ``predict`` would predict them."""
    new = as_new(models, model, kind) if len(model.networks) < FEW_ALONE and kind in model.errors else None
    if new is not None:
        rows = list(new.rows)
        yield rows, held_out_as_new(new, kind, [getattr(row, label) for row in rows]), np.ones(len(rows))
        return
    for size, errors in model.errors.get(kind, {}).items():
        rows = [row for row in usable(model.rows, kind) if row.batch_size == size]
        if label == "family":
            yield rows, errors.family, errors.family_scale
        else:
            yield rows, errors.network, errors.network_scale


def _new_device(models: Sequence[DeviceModel], kind: str, count: int, all_factors: Mapping[str, Factors]) -> _Errors:
    """Treat each device as new, with calibration runs of networks that are spread over the sizes."""
    errors = _Errors()
    for device in dict.fromkeys(model.device for model in models):
        factors = all_factors[device]
        for model in models:
            new = as_new(models, model, kind) if model.device == device else None
            if new is None or len(new.rows) <= count:
                continue
            chosen = spread_rows(new.rows, count)
            prediction = transfer(new.views, kind, new.rows, chosen)
            own = np.delete(new.logs - prediction.mean, chosen)
            _add(errors, device, own, new.rows, chosen)
            factor = factors.get(model.scope, {}).get(kind, {}).get(count)
            if factor is not None:
                widths = factor[0] * np.delete(prediction.scale, chosen)
                errors.inside += [(device, bool(ok)) for ok in np.abs(own) <= widths]
                errors.widths += widths.tolist()
    return errors


def _add(errors: _Errors, device: str, own: Floats, rows: Sequence[Row], chosen: Sequence[int]) -> None:
    """Add the errors on the rows that are not chosen, and those of the baselines fitted to the chosen ones."""
    rest = [row for i, row in enumerate(rows) if i not in chosen]
    macs, power = baseline_errors([rows[i] for i in chosen], rest)
    errors.own += own.tolist()
    errors.macs += macs
    errors.power += power
    errors.devices.add(device)


def _new_device_and_family(models: Sequence[DeviceModel], count: int) -> _Errors:
    """As ``_new_device``, without the rows of one family in the known devices and in the calibration runs."""
    errors = _Errors()
    for family in list(dict.fromkeys(row.family for model in models for row in model.rows))[:MOST_FOLDS]:
        without = _refitted(models, family)
        for model in models:
            rows = at_main_batch(model, ENERGY)
            others = [row for row in rows if row.family != family]
            rest = [row for row in rows if row.family == family]
            known = known_for(without, model.scope, model.precision, ENERGY, (model.device,))
            if len(others) < count or not rest or len({other.device for other in known}) < FEWEST_DEVICES:
                continue
            chosen = spread_rows(others, count)
            used = [*(others[i] for i in chosen), *rest]
            prediction = transfer(views_of(known, ENERGY, used), ENERGY, used, range(count))
            own = np.log(np.array([row.joules for row in rest])) - prediction.mean[count:]
            _add(errors, model.device, own, used, range(count))
    return errors


def _refitted(models: Sequence[DeviceModel], family: str) -> list[DeviceModel]:
    """Return the models without the rows of a family."""
    parts = ([row for row in model.rows if row.family != family] for model in models)
    return [fit_device(rows, with_errors=False) for rows in parts if len({row.network for row in rows}) > 1]


def _orders(models: Sequence[DeviceModel], count: int) -> list[Case]:
    """Return how often two devices, both new, are in the right order for a network."""
    predicted: list[tuple[DeviceModel, dict[str, tuple[float, float]]]] = []
    for model in models:
        new = as_new(models, model, ENERGY)
        if new is None or len(new.rows) <= count:
            continue
        chosen = spread_rows(new.rows, count)
        mean = transfer(new.views, ENERGY, new.rows, chosen).mean
        both = {row.network: (float(new.logs[i]), float(mean[i])) for i, row in enumerate(new.rows) if i not in chosen}
        predicted.append((model, both))
    right: list[bool] = []
    apart: list[bool] = []
    for (a, of_a), (b, of_b) in itertools.combinations(predicted, 2):
        if a.device == b.device or (a.scope, a.precision, a.main_batch_size) != (
            b.scope,
            b.precision,
            b.main_batch_size,
        ):
            continue
        for network in of_a.keys() & of_b.keys():
            difference = of_a[network][0] - of_b[network][0]
            ok = (difference > 0) == (of_a[network][1] > of_b[network][1])
            right.append(ok)
            if abs(difference) > APART:
                apart.append(ok)
    devices = {model.device for model, _ in predicted}
    name = f"order of two devices right ({count_of(count, 'calibration run')} each)"
    return [
        Case(
            name=name + suffix,
            n=len(oks),
            devices=len(devices),
            median=float(np.mean(oks)) if oks else None,
            note=_few(devices),
        )
        for suffix, oks in (("", right), (", where they differ by more than 20 %", apart))
    ]


def family_widening(table: Sequence[Case]) -> float | None:
    """Return how many times as wide the errors on a new device are for an unseen family; None: unknown."""
    p90 = {case.name: case.p90 for case in table}
    plain, both = (
        p90.get(f"{name}, {RUNS[-1]} calibration runs") for name in ("unseen device", "device and family unseen")
    )
    return None if plain is None or both is None else max(math.log1p(both) / math.log1p(plain), 1.0)


def evaluated(fit: Fit) -> Fit:
    """Return the fit with its table of errors."""
    table = cases(fit)
    return replace(fit, evaluation=tuple(table), family_widening=family_widening(table) or fit.family_widening)


def baseline_wins(fit: Fit) -> list[str]:
    """Return a sentence for each device on which a baseline predicts unseen networks better than the model."""
    sentences = []
    for model in fit.models:
        case = _known_device(fit.models, ENERGY, "network", [model]).case(model.title)
        if case.winner and case.median is not None:
            value = case.macs if case.winner == MACS else case.power
            assert value is not None
            sentences.append(
                f"{model.title}: {case.winner} is better for unseen networks ({value:.1%}, model {case.median:.1%}, "
                f"n = {case.n})"
            )
    return sentences
