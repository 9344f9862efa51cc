"""Calibration files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def calibration_entry(**changes: Any) -> dict[str, Any]:
    """Return an entry of a calibration file: the meter of ``node17``, which reads 4 % and 6 W too little."""
    sensor = {
        "host": "node17",
        "scope": "node",
        "collector": "hwmon",
        "component": "node",
        "device": "power_meter",
        "domain": "total",
        "model": "",
    }
    return {
        "sensor": sensor | changes.pop("sensor", {}),
        "reference": {"name": "WT310", "accuracy": 0.001} | changes.pop("reference", {}),
        "date": "2026-11-28T10:00:00+00:00",
        "gain": 1.04,
        "offset_watts": 6.0,
        "gain_standard_uncertainty": 0.002,
        "offset_standard_uncertainty_watts": 0.5,
        "gain_offset_covariance_watts": -0.0009,
        "linearity_watts": 0.1,
        "lowest_watts": 150.0,
        "highest_watts": 420.0,
        **changes,
    }


def calibration_file(folder: Path, *entries: dict[str, Any], name: str = "calibration.yaml") -> Path:
    """Write a calibration file and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump({"version": 1, "calibrations": list(entries)}), encoding="utf-8")
    return path


def ratio_entry(**changes: Any) -> dict[str, Any]:
    """Return a ratio of workloads on ``node17``, as ``joulewatch calibrate --workloads`` writes it."""
    return {
        "host": "node17",
        "component": "cpu",
        "ratio": 1.6,
        "date": "2026-11-28T11:00:00+00:00",
        "run": "20261128T105500Z-1a2b3c",
        **changes,
    }


def ratio_file(folder: Path, *entries: dict[str, Any], name: str = "workloads.yaml") -> Path:
    """Write a calibration file of workloads and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump({"version": 1, "workload_ratios": list(entries)}), encoding="utf-8")
    return path
