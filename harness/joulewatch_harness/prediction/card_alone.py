"""A device without any measured network, from its card: the known devices, scaled by the power per peak rate.

An operation on a device takes about (TDP / peak rate) × a factor that devices of one kind share. So a known device's
energy is multiplied by the ratio of the two. How far that is off is measured by leaving one card out: for the known
devices of the fit, and for published energies of servers with GPUs. The larger of the two is the interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.prediction.cards import Card, find_card
from joulewatch_harness.prediction.fit import ENERGY, DeviceModel, Fit, at_main_batch, vectors
from joulewatch_harness.prediction.predict import Interval, Prediction, Request, batch_part, check_limits, regimes_of
from joulewatch_harness.prediction.roofline import half_width

PUBLISHED_HALF_WIDTH: Final = 1.845
"""Half-width (×/÷ 6.3) for the GPUs of MLPerf's closed division, each predicted from the others: Student's t over five
cards, in ``tests/benchmarks/prediction.py``. A fit with few cards is not narrower by chance."""
FEWEST_CARDS: Final = 3
DIGITS: Final = 2


def card_of(fit: Fit, device: str) -> Card | None:
    """Return the card of a device that the fit does not have; None if there is no card."""
    if any(model.device == device for model in fit.models):
        return None
    try:
        return find_card(device)
    except ConfigError:
        if device.endswith((".yaml", ".yml")):
            raise
        return None


def measured_name(fit: Fit, card: Card) -> str | None:
    """Return the name under which the fit has rows of the card's device; None if it has none."""
    devices = {model.device for model in fit.models}
    return next((name for name in (card.name, card.title, *card.devices) if name in devices), None)


def predict_from_card(fit: Fit, request: Request, card: Card) -> list[Prediction]:
    """Return a prediction for each batch size, with an interval from leaving one card out.

    Raises:
        PredictionRefusedError: The card or the fit lacks what is needed; the text names it.
        ConfigError: The precision or scope is ambiguous.
    """
    title = f"{card.title}, from the card alone"
    run = "measure one to three networks on it and add --calibration RUN ('joulewatch predict --plan FILE' names them)"
    if card.kind == "fpga":
        raise PredictionRefusedError(f"{title}: an FPGA needs FINN's reports: joulewatch predict FOLDER --device CARD")
    if request.seconds is not None:
        raise PredictionRefusedError(f"{title}: --latency is of no use without a measured energy: {run}")
    scope = _only("scope", {model.scope for model in fit.models})
    precision = request.precision or _only("precision", {model.precision for model in fit.models})
    own = merit(card, precision)
    if own is None:
        raise PredictionRefusedError(f"{title}: the card lacks {', '.join(_lacking(card, precision))}: {run}")
    known = _known(fit, card, scope, precision, request.runtime)
    boards = list(dict.fromkeys(model.device for model, _ in known))
    if len(boards) < FEWEST_CARDS:
        raise PredictionRefusedError(
            f"{title}: the fit has {count_of(len(boards), 'device')} of kind {card.kind}, {precision}, scope {scope}, "
            f"and with a card that has {', '.join(_fields(precision))}; {FEWEST_CARDS} are needed: {run}"
        )
    models = [model for model, _ in known]
    rows = [row for model in models for row in model.rows]
    operators = frozenset().union(*(model.operators for model in models))
    notes = check_limits(f"devices like {card.title}", rows, operators, dataclasses.replace(request, device=card.title))
    notes.append("from the card alone: no network was measured on the device, and the runtime is not considered")
    width = max(PUBLISHED_HALF_WIDTH, half_width(np.array(left_out(known)))[0])
    measured = sorted({row.batch_size for row in rows})
    features = np.array([request.features.vector()])
    predictions = []
    for size in request.batch_sizes or tuple(measured):
        at = np.array([float(size)])
        logs: dict[str, list[float]] = {board: [] for board in boards}
        for model, other in known:
            logs[model.device].append(float(model.log_values(ENERGY, features, at)[0]) - other)
        log = own + float(np.mean([np.mean(values) for values in logs.values()]))
        parts = [(f"card alone (leave-one-card-out, {len(boards)} cards)", width), *batch_part(measured, size)]
        shares = np.mean([model.shares(ENERGY, features, at)[0] for model in models], axis=0)
        regimes = regimes_of(shares.tolist())
        predictions.append(
            Prediction(
                network=request.network, device=card.title, runtime=request.runtime or "any", precision=precision,
                scope=scope, batch_size=size, joules=_rounded(Interval.around(log, sum(part for _, part in parts))),
                throughput=None, regime=max(regimes, key=regimes.__getitem__) if regimes else "unknown",
                shares=regimes, parts=tuple(parts), notes=tuple(notes), digits=DIGITS,
                methods=tuple(sorted({method for model in models for method in model.methods})),
            )
        )  # fmt: skip
    return predictions


def merit(card: Card, precision: str) -> float | None:
    """Return the logarithm of TDP / peak rate, in joules per operation; None if the card lacks one of them."""
    tdp, peak = (card.fact(name) for name in _fields(precision))
    return None if tdp is None or peak is None else math.log(tdp.value / peak.value)


def left_out(known: Sequence[tuple[DeviceModel, float]]) -> list[float]:
    """Return the error of each device when it is predicted from the cards: the root mean square over its networks."""
    errors = []
    for board in dict.fromkeys(model.device for model, _ in known):
        squares = []
        for model, own in known:
            if model.device != board:
                continue
            rows = at_main_batch(model, ENERGY)
            at = vectors(rows), np.array([float(row.batch_size) for row in rows])
            others: dict[str, list[np.ndarray]] = {}
            for other, merit_of in known:
                if other.device != board:
                    others.setdefault(other.device, []).append(other.log_values(ENERGY, *at) - merit_of)
            mean = np.mean([np.mean(values, axis=0) for values in others.values()], axis=0)
            squares.append(np.mean((np.log([row.joules for row in rows]) - mean - own) ** 2))
        errors.append(math.sqrt(float(np.mean(squares))))
    return errors


def _known(fit: Fit, card: Card, scope: str, precision: str, runtime: str) -> list[tuple[DeviceModel, float]]:
    """Return the models of other devices of the same kind whose card is complete, with its merit."""
    known = []
    for model in fit.models:
        if (model.scope, model.precision) != (scope, precision) or (runtime and model.runtime != runtime):
            continue
        try:
            other = find_card(model.device)
        except ConfigError:
            continue
        value = merit(other, precision)
        if other.kind == card.kind and value is not None and ENERGY in model.rooflines:
            known.append((model, value))
    return known


def _fields(precision: str) -> tuple[str, str]:
    return "tdp_watts", f"peak_operations_per_second.{precision}"


def _lacking(card: Card, precision: str) -> list[str]:
    return [name for name in _fields(precision) if card.fact(name) is None]


def _only(name: str, values: set[str]) -> str:
    if len(values) > 1:
        hint = "choose it with --precision" if name == "precision" else "fit one scope"
        raise ConfigError(f"the fit has several values of {name} ({', '.join(sorted(values))}): {hint}")
    return next(iter(values))


def _rounded(interval: Interval) -> Interval:
    """Return an interval with as many digits as a card can have."""

    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.{DIGITS}g}")

    return Interval(median=float(f"{interval.median:.{DIGITS}g}"), low=short(interval.low), high=short(interval.high))
