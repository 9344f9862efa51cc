"""The file of a calibration, which the exporter reads (``exporter.calibration_files``)."""

from __future__ import annotations

from typing import Any, Final

from joulewatch_exporter.catalog import CALIBRATION_PARAMETERS
from joulewatch_harness.analysis.calibration.fit import Fit, SensorCalibration

FORMAT_VERSION: Final = 1
_COMMENT: Final = """\
# Calibration of {sensors} against {reference}, by joulewatch calibrate.
# true power = gain * power + offset_watts, from lowest_watts to highest_watts of the sensor's power.
# To use it, name this file under exporter.calibration_files in the configuration of joulewatch-exporter.
"""


def calibration_text(fit: Fit) -> str:
    """Return the file as YAML."""
    import yaml

    sensors = ", ".join(
        f"{entry.sensor.collector} {entry.sensor.device} {entry.sensor.domain}" for entry in fit.entries
    )
    comment = _COMMENT.format(sensors=sensors, reference=fit.entries[0].calibration.reference)
    document = {"version": FORMAT_VERSION, "calibrations": [_entry(fit, entry) for entry in fit.entries]}
    return comment + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)


def _entry(fit: Fit, entry: SensorCalibration) -> dict[str, Any]:
    sensor, calibration = entry.sensor, entry.calibration
    return {
        "sensor": {
            name: getattr(sensor, name)
            for name in ("host", "scope", "collector", "component", "device", "domain", "model")
        },
        "reference": {"name": calibration.reference, "accuracy": calibration.reference_accuracy},
        "date": calibration.date,
        **{name: getattr(calibration, name) for name in CALIBRATION_PARAMETERS},
        "windows": len(fit.comparison.points),
        "run": fit.run,
        "sum_of": len(fit.entries),
    }
