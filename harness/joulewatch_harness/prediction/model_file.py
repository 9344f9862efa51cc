"""``model.json``: a fit as readable JSON, with its data, errors and limits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from joulewatch_harness import __version__
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.features import FEATURES, Features
from joulewatch_harness.prediction.fit import Case, DeviceModel, Errors, Fit, points_of, usable
from joulewatch_harness.prediction.roofline import TERMS, Floats, finished
from joulewatch_harness.prediction.table import Row

FORMAT: Final = "joulewatch prediction model"
VERSION: Final = 1
"""Raised when the features, the fit or the file change so that another joulewatch would predict something else."""
_ERRORS: Final = ("network", "network_scale", "family", "family_scale")
LARGEST_BYTES: Final = 1 << 28


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
                "coefficients": dict(zip((*TERMS, "mean_power_watts"), roofline.coefficients.tolist(), strict=False)),
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
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError(f"{path}: too large for a model file (more than {LARGEST_BYTES >> 20} MiB)")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: not valid JSON: {error}; 'joulewatch fit RUN... --out FILE' writes a model file"
        ) from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a model file; 'joulewatch fit RUN... --out {path.name}' writes one")
    if document.get("version") != VERSION:
        raise ConfigError(
            f"{path}: version {document.get('version')} of {document.get('generator', 'an unknown joulewatch')}; this "
            f"joulewatch reads version {VERSION}, because other versions fit other terms: run 'joulewatch fit' again"
        )
    try:
        new = document["new_devices"]
        return Fit(
            models=tuple(_model(entry) for entry in document["models"]),
            factors={
                scope: {
                    kind: {int(count): (float(entry["factor"]), str(entry["basis"])) for count, entry in counts.items()}
                    for kind, counts in kinds.items()
                }
                for scope, kinds in new["factors"].items()
            },
            family_widening=float(new["family_widening"]),
            sources=tuple(document["sources"]),
            evaluation=tuple(Case(**case) for case in document["evaluation"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{path}: broken model file: {type(error).__name__}: {error}; run 'joulewatch fit' again"
        ) from error


def _model(entry: Mapping[str, Any]) -> DeviceModel:
    texts = {name: str(entry[name]) for name in ("scope", "device", "runtime", "precision")}
    rows = tuple(
        Row(
            **texts, network=row["network"], family=row["family"], platform=row["platform"],
            batch_size=int(row["batch_size"]), joules=float(row["joules"]),
            seconds=None if row["seconds"] is None else float(row["seconds"]),
            features=_features(row), method=row["method"], where=row["where"], idle_watts=row.get("idle_watts"),
        )
        for row in entry["rows"]
    )  # fmt: skip
    fits: Mapping[str, Mapping[str, Any]] = entry["fits"]
    return DeviceModel(
        **texts, platforms=tuple(entry["platforms"]), methods=tuple(entry["methods"]), rows=rows,
        rooflines={
            kind: {
                int(size): finished(
                    points_of(usable(rows, kind), kind), float(size), np.array(list(fitted["coefficients"].values()))
                )
                for size, fitted in sizes.items()
            }
            for kind, sizes in fits.items()
        },
        errors={
            kind: {
                int(size): Errors(**{name: _array(fitted["errors"][name]) for name in _ERRORS})
                for size, fitted in sizes.items()
            }
            for kind, sizes in fits.items()
        },
    )  # fmt: skip


def _features(row: Mapping[str, Any]) -> Features:
    numbers: dict[str, Any] = dict(zip(FEATURES, map(float, row["features"]), strict=True))
    return Features(**numbers, operators=frozenset(row["operators"]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(errors: Floats) -> list[float | None]:
    return [_finite(float(value)) for value in errors]


def _array(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
