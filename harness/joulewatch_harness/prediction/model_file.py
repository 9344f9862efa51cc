"""``model.json``: a fit as readable JSON, with its data, errors and limits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness import __version__, files
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.features import FEATURES, Features
from joulewatch_harness.prediction.fit import (
    ENERGY_WITH_TIME,
    FEWEST_NETWORKS,
    KINDS,
    Case,
    DeviceModel,
    Errors,
    Fit,
    points_of,
    usable,
)
from joulewatch_harness.prediction.roofline import TERMS, Floats, Roofline, finished
from joulewatch_harness.prediction.table import LARGEST, LARGEST_BATCH, SCOPES, Row

FORMAT: Final = "joulewatch prediction model"
VERSION: Final = 1
"""Raised when the features, the fit or the file change so that another joulewatch would predict something else."""
_ERRORS: Final = ("network", "network_scale", "family", "family_scale")
LARGEST_LOG: Final = 100.0
"""Errors and their scales are smaller: exp(100) is 10^43."""
_MEAN_POWER: Final = "mean_power_watts"


def document_of(fit: Fit) -> dict[str, Any]:
    """Return a fit as plain data."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "generator": f"joulewatch {__version__}",
        "units": {"joules": "J per inference", "seconds": "s per inference", "errors": "ln(measured / predicted)"},
        "sources": [dict(source) for source in fit.sources],
        "evaluation": [dataclasses.asdict(case) for case in fit.evaluation],
        "new_devices": {
            "meaning": "factor for the width of a prediction, by scope, kind and number of calibration runs",
            "family_widening": fit.family_widening,
            "factors": {
                scope: {
                    kind: {str(count): {"factor": factor, "basis": basis} for count, (factor, basis) in counts.items()}
                    for kind, counts in kinds.items()
                }
                for scope, kinds in fit.factors.items()
            },
        },
        "models": [_model_document(model) for model in fit.models],
    }


def _model_document(model: DeviceModel) -> dict[str, Any]:
    fits: dict[str, Any] = {}
    for kind, rooflines in model.rooflines.items():
        fits[kind] = {}
        for size, roofline in rooflines.items():
            errors = model.errors[kind][size]
            widths = {
                name: errors.half_width(family=family)
                for name, family in (("unseen_network", False), ("unseen_family", True))
            }
            fits[kind][str(size)] = {
                "coefficients": dict(zip((*TERMS, _MEAN_POWER), roofline.coefficients.tolist(), strict=False)),
                "half_width_of_90_percent": {
                    name: {"value": _finite(value), "basis": basis} for name, (value, basis) in widths.items()
                },
                "errors": {name: _numbers(getattr(errors, name)) for name in _ERRORS},
            }
    return {
        "scope": model.scope,
        "device": model.device,
        "runtime": model.runtime,
        "precision": model.precision,
        "platforms": list(model.platforms),
        "methods": list(model.methods),
        "limits": {
            "features": {name: list(limits) for name, limits in model.ranges().items()},
            "batch_sizes": list(model.batch_sizes),
            "families": sorted(model.families),
            "operators": sorted(model.operators),
        },
        "fits": fits,
        "rows": [_row_document(row) for row in model.rows],
    }


def _row_document(row: Row) -> dict[str, Any]:
    assert row.features is not None
    return {
        "network": row.network,
        "family": row.family,
        "platform": row.platform,
        "batch_size": row.batch_size,
        "joules": row.joules,
        "seconds": row.seconds,
        "features": list(row.features.vector()),
        "operators": sorted(row.features.operators),
        "method": row.method,
        "idle_watts": row.idle_watts,
        "where": row.where,
    }


def read_fit(path: Path) -> Fit:
    """Read a model file.

    Raises:
        ConfigError: It cannot be read, is not a model file, or has another version.
    """
    try:
        document = json.loads(files.read_text(path, files.MOST_DATA_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not valid JSON: {error}; 'joulewatch fit RUN... --out FILE' writes a model file"
        ) from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a model file; 'joulewatch fit RUN... --out {path.name}' writes one")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"{path}: version {str(version)[:20]} of {document.get('generator', 'an unknown joulewatch')}; this "
            f"joulewatch reads version {VERSION}, because other versions fit other terms: run 'joulewatch fit' again"
        )
    try:
        return _fit(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path}: broken model file: {missing}; run 'joulewatch fit' again") from error


def _fit(document: Mapping[str, Any]) -> Fit:
    new = document["new_devices"]
    models = tuple(_model(entry) for entry in document["models"])
    keys = [model.key for model in models]
    if not models or len(set(keys)) < len(keys):
        raise ValueError("a model is there twice" if models else "no models")
    return Fit(
        models=models,
        factors={
            scope: {
                kind: {
                    int(count): (_number(entry["factor"], "factor"), _text(entry["basis"], "basis"))
                    for count, entry in counts.items()
                }
                for kind, counts in kinds.items()
            }
            for scope, kinds in new["factors"].items()
        },
        family_widening=_number(new["family_widening"], "family_widening", least=1.0),
        sources=tuple(document["sources"]),
        evaluation=tuple(Case(**case) for case in document["evaluation"]),
    )


def _model(entry: Mapping[str, Any]) -> DeviceModel:
    texts = {name: _text(entry[name], name) for name in ("scope", "device", "runtime", "precision")}
    if texts["scope"] not in SCOPES:
        raise ValueError(f"unknown scope {texts['scope']}")
    rows = tuple(_row(row, texts) for row in entry["rows"])
    rooflines: dict[str, dict[int, Roofline]] = {}
    errors: dict[str, dict[int, Errors]] = {}
    for kind, sizes in entry["fits"].items():
        if kind not in KINDS or not sizes:
            raise ValueError(f"fits: {kind}")
        chosen = usable(rows, kind)
        if len({row.network for row in chosen}) < FEWEST_NETWORKS:
            raise ValueError(f"fits: {kind} has fewer than {FEWEST_NETWORKS} networks")
        points = points_of(chosen, kind)
        names = (*TERMS, _MEAN_POWER) if kind == ENERGY_WITH_TIME else TERMS
        rooflines[kind], errors[kind] = {}, {}
        for text, fitted in sizes.items():
            size, place = int(text), f"{kind} at batch size {text}"
            count = sum(row.batch_size == size for row in chosen)
            if not count:
                raise ValueError(f"{place}: no rows")
            coefficients = [_number(fitted["coefficients"][name], f"{place}, {name}", least=0.0) for name in names]
            rooflines[kind][size] = finished(points, float(size), np.array(coefficients))
            arrays = {name: _array(fitted["errors"][name], count, f"{place}, errors of {name}") for name in _ERRORS}
            errors[kind][size] = Errors(**arrays)
    return DeviceModel(
        **texts, platforms=tuple(entry["platforms"]), methods=tuple(entry["methods"]), rows=rows, rooflines=rooflines,
        errors=errors,
    )  # fmt: skip


def _row(row: Mapping[str, Any], texts: Mapping[str, str]) -> Row:
    batch_size = row["batch_size"]
    if type(batch_size) is not int or not 0 < batch_size <= LARGEST_BATCH:
        raise ValueError(f"batch_size: {str(batch_size)[:20]}")
    seconds, idle = row["seconds"], row.get("idle_watts")
    values = [_number(value, name, least=0.0) for name, value in zip(FEATURES, row["features"], strict=True)]
    numbers: dict[str, Any] = dict(zip(FEATURES, values, strict=True))
    named: dict[str, Any] = {
        name: _text(row[name], name) for name in ("network", "family", "platform", "method", "where")
    }
    named.update(texts)
    return Row(
        **named,
        batch_size=batch_size,
        joules=_number(row["joules"], "joules"),
        seconds=None if seconds is None else _number(seconds, "seconds"),
        idle_watts=None if idle is None else _number(idle, "idle_watts"),
        features=Features(**numbers, operators=frozenset(_text(name, "operators") for name in row["operators"])),
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{name} is not a printable text: {str(value)[:20]!r}")
    return value


def _number(value: object, name: str, *, least: float | None = None) -> float:
    """Return a number that is at least ``least``, or above 0."""
    if type(value) in (int, float):
        number = float(value)  # type: ignore[arg-type]
        if number <= LARGEST and (number > 0 if least is None else number >= least):
            return number
    raise ValueError(f"{name}: {str(value)[:20]!r}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(errors: Floats) -> list[float | None]:
    return [_finite(float(value)) for value in errors]


def _array(values: Sequence[float | None], count: int, name: str) -> Floats:
    scale = name.endswith("_scale")
    if len(values) != count:
        raise ValueError(f"{name}: {count_of(len(values), 'value')} for {count_of(count, 'row')}")
    checked = [
        math.nan if value is None else _number(value, name, least=None if scale else -LARGEST_LOG) for value in values
    ]
    if max(checked, default=0.0) > LARGEST_LOG:
        raise ValueError(f"{name}: {max(checked)}")
    return np.array(checked, dtype=np.float64)
