"""Predictions with intervals, and the limits beyond which they are refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.names import unknown
from joulewatch_harness.prediction.devices import VALIDATED_DEVICES
from joulewatch_harness.prediction.features import FEATURES, MAIN_OPERATORS, Features
from joulewatch_harness.prediction.fit import (
    ENERGY,
    ENERGY_WITH_TIME,
    FEW_ALONE,
    TIME,
    DeviceModel,
    Fit,
    known_for,
    transfer,
    vectors,
    views_of,
)
from joulewatch_harness.prediction.table import UNIT_FACTOR, Row

METHOD: Final = "predicted"
MARGIN: Final = 2.5
"""A feature may be outside the fitted range by this factor, with the interval of an unseen family: families that are
excluded from the fit of the published boards are outside by up to 2.2. The resolution must be inside."""
BATCH_MARGIN: Final = 2.0
"""Batch sizes further outside the measured ones get a wider interval."""
LARGEST_BATCH_MARGIN: Final = 16.0
ONE_FAMILY: Final = 3.0
"""Where only one family was measured, another one gets an interval this many times as wide."""
REGIMES: Final[Mapping[str, tuple[str, ...]]] = {
    "compute": ("macs_dense", "macs_depthwise"),
    "memory": ("weight_elements", "activation_elements"),
    "launch": ("layers", "constant"),
    "driver": ("input_pixels",),
}
"""The terms behind each regime; ``driver`` moves the input to the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to predict."""

    network: str
    family: str
    features: Features
    device: str
    runtime: str = ""
    """Empty: the only one of the device."""
    precision: str = ""
    batch_sizes: tuple[int, ...] = ()
    """Empty: those that were measured."""
    seconds: float | None = None
    """Measured seconds per inference."""
    calibration: tuple[Row, ...] = ()
    """Rows of a device that is not in the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median and its 90 % interval; the ends are None where no error is known."""

    median: float
    low: float | None
    high: float | None

    @classmethod
    def around(cls, log: float, half_width: float) -> Interval:
        """Return the interval of a logarithm."""
        median = math.exp(log)
        if not math.isfinite(half_width):
            return cls(median=median, low=None, high=None)
        return cls(median=median, low=median * math.exp(-half_width), high=median * math.exp(half_width))

    def inverse(self) -> Interval:
        """Return the interval of 1 / x."""
        return Interval(
            median=1 / self.median,
            low=None if self.high is None else 1 / self.high,
            high=None if self.low is None else 1 / self.low,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted energy and throughput of one network at one batch size."""

    network: str
    device: str
    runtime: str
    precision: str
    scope: str
    batch_size: int
    joules: Interval
    """Per inference."""
    throughput: Interval | None
    """Inferences per second; None: no times were measured."""
    regime: str
    """The largest part of the energy: compute, memory, launch or driver."""
    shares: Mapping[str, float]
    """Regime -> share of the energy."""
    parts: tuple[tuple[str, float], ...]
    """What the interval of the energy consists of: text, and its half-width as a logarithm."""
    notes: tuple[str, ...] = field(default=())
    methods: tuple[str, ...] = ()
    """Methods of the energies behind the prediction."""
    method: str = METHOD
    digits: int = 4
    """Significant digits that are shown."""


def predict(fit: Fit, request: Request) -> list[Prediction]:
    """Return a prediction for each batch size.

    Raises:
        PredictionRefusedError: The measurements do not support a prediction.
        ConfigError: The device is not known, or the request is ambiguous.
    """
    if request.calibration:
        return _for_new_device(fit, request, request.calibration)
    model = select(fit, request)
    known = known_for(fit.models, model.scope, model.precision, ENERGY, (model.device,))
    if len(model.networks) < FEW_ALONE and len({other.device for other in known}) > 1:
        return _for_new_device(fit, request, model.rows)
    return _for_known_device(model, request)


def select(fit: Fit, request: Request) -> DeviceModel:
    """Return the model of the requested device, runtime and precision.

    Raises:
        PredictionRefusedError: The runtime or precision was not measured on the device.
        ConfigError: The device is not known, or several models match.
    """
    of_device = [model for model in fit.models if model.device == request.device]
    if not of_device:
        raise ConfigError(
            f"{unknown('device', request.device, {model.device for model in fit.models})}; to predict for a device "
            "that was never measured, measure one to three networks on it and add --calibration RUN"
        )
    chosen = of_device
    for name, wanted in (("runtime", request.runtime), ("precision", request.precision)):
        values = sorted({str(getattr(model, name)) for model in chosen})
        if wanted and wanted not in values:
            raise PredictionRefusedError(
                f"{request.device}: {name} {wanted} was never measured there (measured: {', '.join(values)}), and "
                f"another {name} is another device: measure one to three networks with it and add --calibration RUN"
            )
        if not wanted and len(values) > 1:
            raise ConfigError(f"{request.device}: choose the {name} with --{name}: {', '.join(values)}")
        chosen = [model for model in chosen if str(getattr(model, name)) == (wanted or values[0])]
    if len(chosen) > 1:
        scopes = ", ".join(model.scope for model in chosen)
        raise PredictionRefusedError(
            f"{chosen[0].device}, {chosen[0].runtime}, {chosen[0].precision}: energies of several scopes "
            f"({scopes}); fit one scope"
        )
    return chosen[0]


def _for_known_device(model: DeviceModel, request: Request) -> list[Prediction]:
    notes = check_limits(model.title, model.rows, model.operators, request)
    wide = bool(notes) or request.family not in model.families
    if request.family not in model.families:
        notes.append(
            f"family {request.family} was not measured on the device: the interval is that of an unseen family"
        )
    kind = ENERGY if request.seconds is None else ENERGY_WITH_TIME
    if ENERGY not in model.rooflines:
        raise PredictionRefusedError(
            f"{model.title}: a single network was measured; measure a second one, or fit at least two other devices too"
        )
    if kind not in model.rooflines:
        raise PredictionRefusedError(f"{model.title}: --latency is of no use, because no times were measured there")
    predictions = []
    for size in _sizes(request, model.batch_sizes):
        if request.seconds is not None:
            _check_latency(request, request.seconds, model.predict(TIME, request.features, size)[0])
        log, scale, shares = model.predict(kind, request.features, size, request.seconds, other_family=wide)
        parts = [_model_part(model, kind, size, scale, wide), *batch_part(model.batch_sizes, size)]
        throughput = None
        if request.seconds is not None:
            throughput = Interval(median=1 / request.seconds, low=1 / request.seconds, high=1 / request.seconds)
        elif TIME in model.rooflines:
            log_s, scale, _ = model.predict(TIME, request.features, size)
            time_parts = [
                _model_part(model, TIME, size, scale, wide),
                *batch_part(model.batch_sizes, size),
            ]
            throughput = Interval.around(log_s, sum(width for _, width in time_parts)).inverse()
        predictions.append(_prediction(model, request, size, log, parts, throughput, _regimes(shares), notes))
    return predictions


def _check_latency(request: Request, seconds: float, log: float) -> None:
    """Check the unit of a measured latency.

    Raises:
        ConfigError: It is far from the predicted one, whose logarithm is given.
    """
    predicted = math.exp(log)
    if not predicted / UNIT_FACTOR < seconds < predicted * UNIT_FACTOR:
        raise ConfigError(
            f"the latency of {request.network} is given as {seconds:.3g} s per inference, more than "
            f"{UNIT_FACTOR:g} times above or below the predicted {predicted:.3g} s: it must be in seconds"
        )


def _model_part(model: DeviceModel, kind: str, batch_size: int, scale: float, other_family: bool) -> tuple[str, float]:
    """Return the part of the interval that comes from the errors on networks excluded from the fit."""
    errors = model.errors[kind]
    timed = ", latency measured" if kind == ENERGY_WITH_TIME else ""
    nearest = errors[min(errors, key=lambda size: abs(math.log(size / batch_size)))]
    if not other_family:
        width, basis = nearest.half_width(family=False)
        return f"unseen network{timed} ({basis})", width * scale
    if len(model.families) > 1:
        width, basis = nearest.half_width(family=True)
        return f"unseen family of networks{timed} ({basis}, {len(model.families)} families)", width * scale
    width, basis = nearest.half_width(family=False)
    return (
        f"unseen family of networks (not validated: {ONE_FAMILY:g} × unseen network, {basis})",
        ONE_FAMILY * width * scale,
    )


def _sizes(request: Request, measured: Sequence[int]) -> Sequence[int]:
    """Return the batch sizes to predict.

    Raises:
        ConfigError: A latency is given for several.
    """
    sizes = request.batch_sizes or tuple(measured)
    if request.seconds is not None and len(sizes) > 1:
        raise ConfigError(
            f"a measured latency is that of one batch size: choose it with --batch-sizes: {', '.join(map(str, sizes))}"
        )
    return sizes


def batch_part(measured: Sequence[int], batch_size: int) -> list[tuple[str, float]]:
    """Return what a batch size that was not measured adds to an interval.

    Outside the measured ones, per doubling of the batch size, the energy of an inference may stay the same or halve:
    half of that on either side of the extrapolation. A single measured batch size has no slope, so all of that counts.

    Between two measured ones, an energy A + B / batch size is below the straight line in the logarithms, by at most
    ln cosh(ln(ratio of the two) / 4) in the middle.

    Raises:
        PredictionRefusedError: It is too far outside.
    """
    nearest = min(measured, key=lambda size: abs(math.log(size / batch_size)))
    outside = max(min(measured) / batch_size, batch_size / max(measured), 1.0)
    if outside > LARGEST_BATCH_MARGIN:
        raise PredictionRefusedError(
            f"batch size {batch_size} is outside the measured ones ({', '.join(map(str, measured))}) by more than a "
            f"factor of {LARGEST_BATCH_MARGIN:g}: measure with --batch-sizes {batch_size}"
        )
    if len(measured) == 1:
        return [(f"batch size {batch_size}, only {nearest} measured", math.log(outside))] if outside > 1 else []
    if outside == 1 and batch_size not in measured:
        below = max(size for size in measured if size < batch_size)
        above = min(size for size in measured if size > batch_size)
        distance = math.log(above / below)
        place = math.log(batch_size / below) / distance
        width = 4 * place * (1 - place) * math.log(math.cosh(distance / 4))
        return [(f"batch size {batch_size}, measured {below} and {above}", width)]
    if outside <= BATCH_MARGIN:
        return []
    return [(f"batch size {batch_size}, measured up to {nearest}", math.log(outside / BATCH_MARGIN) / 2)]


def _for_new_device(fit: Fit, request: Request, rows: Sequence[Row]) -> list[Prediction]:
    rows = _calibration_rows(fit, request, rows)
    first = rows[0]
    known = known_for(fit.models, first.scope, first.precision, ENERGY, (request.device,))
    if len({model.device for model in known}) < 2:
        raise PredictionRefusedError(
            f"{request.device}: calibration runs need at least two known devices with scope {first.scope}; fit more "
            "devices, or measure nine networks on this one and fit it"
        )
    operators = frozenset().union(*(model.operators for model in known))
    title = f"devices with scope {first.scope}"
    notes = check_limits(title, [row for model in known for row in model.rows], operators, request)
    families = {row.family for model in known for row in model.rows}
    wider = fit.family_widening if request.family not in families or notes else 1.0
    if request.family not in families:
        notes.append(f"family {request.family} was not measured on any known device")
    count = len({row.network for row in rows})
    devices = len({model.device for model in known})
    if devices < VALIDATED_DEVICES:
        notes.append(f"too few known devices ({devices}) for a validated interval: {VALIDATED_DEVICES} are needed")
    measured = sorted({row.batch_size for row in rows})
    timed = all(row.seconds is not None for row in rows)
    kind = ENERGY if request.seconds is None else ENERGY_WITH_TIME
    if kind == ENERGY_WITH_TIME and not timed:
        raise PredictionRefusedError("--latency needs calibration runs with measured times")
    timed_known = known_for(fit.models, first.scope, first.precision, TIME, (request.device,)) if timed else []
    predictions = []
    for size in _sizes(request, measured):
        wanted = _wanted(request, first, size)
        log, width, basis = _transferred(fit, known, kind, rows, wanted, count)
        widening = [(f"unseen family of networks (factor {wider:.2g})", width * (wider - 1))] if wider > 1 else []
        timed_text = ", latency measured" if request.seconds is not None else ""
        runs = f"{count_of(count, 'calibration network')}{timed_text} ({basis})"
        parts = [(runs, width), *widening, *batch_part(measured, size)]
        throughput = None
        if timed_known:
            log_s, width_s, _ = _transferred(fit, timed_known, TIME, rows, wanted, count)
            width_s = width_s * wider + sum(extra for _, extra in batch_part(measured, size))
            throughput = Interval.around(log_s, width_s).inverse()
            if request.seconds is not None:
                _check_latency(request, request.seconds, log_s)
        if request.seconds is not None:
            throughput = Interval(median=1 / request.seconds, low=1 / request.seconds, high=1 / request.seconds)
        shares = np.mean(
            [model.shares(ENERGY, vectors([wanted]), np.array([float(size)]))[0] for model in known], axis=0
        )
        methods = {row.method for row in rows}.union(*(model.methods for model in known))
        predictions.append(
            dataclasses.replace(
                _prediction(known[0], request, size, log, parts, throughput, regimes_of(shares.tolist()), notes, first),
                methods=tuple(sorted(methods)),
            )
        )
    return predictions


def _calibration_rows(fit: Fit, request: Request, rows: Sequence[Row]) -> list[Row]:
    """Return the calibration rows of the requested device, runtime and precision.

    Raises:
        ConfigError: There is none, or the choice is ambiguous.
        PredictionRefusedError: No known device has their scope.
    """
    chosen = list(rows)
    for name, wanted in (("device", request.device), ("runtime", request.runtime), ("precision", request.precision)):
        values = sorted({str(getattr(row, name)) for row in chosen})
        if wanted and wanted not in values:
            raise ConfigError(f"the calibration runs have no {name} {wanted!r} (they have: {', '.join(values)})")
        if not wanted and len(values) > 1:
            raise ConfigError(
                f"the calibration runs have several values of {name}; choose with --{name}: {', '.join(values)}"
            )
        chosen = [row for row in chosen if str(getattr(row, name)) == (wanted or values[0])]
    scopes = {row.scope for row in chosen}
    fitted = {model.scope for model in fit.models}
    if len(scopes) > 1 or not scopes <= fitted:
        raise PredictionRefusedError(
            f"scopes are mixed: the calibration runs have {', '.join(sorted(scopes))}, the fit has "
            f"{', '.join(sorted(fitted))}; calibrate with energies of the same scope"
        )
    if any(row.features is None for row in chosen):
        raise ConfigError(f"{chosen[0].where}: no features of the network ({', '.join(FEATURES)}); add these columns")
    return chosen


def _wanted(request: Request, first: Row, batch_size: int) -> Row:
    return Row(
        network=request.network, family=request.family, device=request.device, platform="", runtime=first.runtime,
        precision=first.precision, batch_size=batch_size, scope=first.scope, joules=1.0, seconds=request.seconds,
        features=request.features, where="",
    )  # fmt: skip


def _transferred(
    fit: Fit, known: Sequence[DeviceModel], kind: str, rows: Sequence[Row], wanted: Row, count: int
) -> tuple[float, float, str]:
    """Return the logarithm for a new device, its half-width, and the basis of the half-width."""
    used = [*rows, wanted]
    transferred = transfer(views_of(known, kind, used), kind, used, range(len(rows)))
    factors = fit.factors.get(wanted.scope, {}).get(kind, {})
    allowed = [number for number in factors if number <= count]
    factor, basis = factors[max(allowed)] if allowed else (math.inf, "none: too few devices were held out")
    return float(transferred.mean[-1]), factor * float(transferred.scale[-1]), basis


def check_limits(title: str, rows: Sequence[Row], operators: frozenset[str], request: Request) -> list[str]:
    """Return what is at the limits of the measured networks.

    Raises:
        PredictionRefusedError: A feature is outside the fitted range, or an operator or resolution was never measured.
    """
    values = vectors(rows)
    notes = []
    run = f"measure such a network on {request.device} with 'joulewatch profile', and fit again"
    unseen = (request.features.main_operators or request.features.operators & MAIN_OPERATORS) - operators
    if unseen:
        raise PredictionRefusedError(
            f"{title}: operator {', '.join(sorted(unseen))} of {request.network} was never measured: {run}"
        )
    for i, name in enumerate(FEATURES):
        value, low, high = request.features.vector()[i], float(values[:, i].min()), float(values[:, i].max())
        if low <= value <= high:
            continue
        text = f"{name} of {request.network} is {value:.4g}, measured were {low:.4g} to {high:.4g}"
        margin = 1.0 if name == "input_pixels" else MARGIN
        if value > high * margin or value < low / margin:
            reason = "resolution never measured" if name == "input_pixels" else "outside the fitted range"
            raise PredictionRefusedError(f"{title}: {reason}: {text}: {run}")
        notes.append(f"{text}: the interval is that of another family")
    return notes


def regimes_of(shares: Sequence[float]) -> dict[str, float]:
    """Return the share of each regime from the shares of ``TERMS``."""
    return _regimes(dict(zip((*FEATURES, "constant"), shares, strict=True)))


def _regimes(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each regime; a mean power has none, because it is the same in all."""
    sums = {name: sum(shares.get(term, 0.0) for term in terms) for name, terms in REGIMES.items()}
    total = sum(sums.values())
    return {name: value / total for name, value in sums.items()} if total > 0 else {}


def _prediction(
    model: DeviceModel,
    request: Request,
    batch_size: int,
    log: float,
    parts: Sequence[tuple[str, float]],
    throughput: Interval | None,
    regimes: Mapping[str, float],
    notes: Sequence[str],
    first: Row | None = None,
) -> Prediction:
    source = first or model
    return Prediction(
        network=request.network,
        device=request.device,
        runtime=source.runtime,
        precision=source.precision,
        scope=source.scope,
        batch_size=batch_size,
        joules=Interval.around(log, sum(width for _, width in parts)),
        throughput=throughput,
        regime=max(regimes, key=regimes.__getitem__) if regimes else "unknown",
        shares=regimes,
        parts=tuple(parts),
        notes=tuple(notes),
        methods=model.methods,
    )
