"""The findings of the audit: each has a severity, a stable reason code, a sentence with the fix, and evidence.

Severity ``error``: a result is contradicted or missing, and ``--strict`` fails. ``warning``: a person should check the
result. ``info``: worth knowing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["info", "warning", "error"]
Evidence = Mapping[str, str | float | int]

REASONS: Final[Mapping[str, str]] = {
    "sample_gap": "samples are missing",
    "exporter_restart": "the exporter restarted inside a window",
    "clock_skew": "the clocks of exporter and harness differ",
    "clock_stepped": "a clock was set during the run, or a reading has a time after the answer that contains it",
    "clock_unknown": "the clock of an exporter was never compared with the harness's",
    "unbracketed": "no sample before the start or after the end of a window",
    "below_refresh": "a window is short compared with the sensor's refresh period",
    "edge_history_disagreement": "the edges and the history of a counter contradict each other",
    "edge_missing": "an exporter was not read at an edge",
    "no_samples": "a sensor has no samples",
    "too_few_samples": "a window has fewer than two samples of power",
    "sensor_asleep": "a device was asleep (runtime suspend)",
    "sensor_down": "the exporter could not read a device",
    "wraps_seen": "a hardware counter wrapped; the wraps were corrected",
    "rejected_readings": "readings outside physical bounds were rejected",
    "unmeasured_time": "a counter did not cover part of a window",
    "core_exceeds_package": "a part used more energy than its device",
    "devices_exceed_node": "the devices used more energy than the whole server",
    "idle_drift": "idle power changed over the run",
    "not_steady": "the network was not steady after the warm-up",
    "power_not_steady": "power changed inside a window",
    "repeats_apart": "the rounds differ too much, or the target was not reached",
    "dependent_rounds": "neighbouring rounds are alike, so the uncertainty holds for the time of the run only",
    "single_repeat": "only one usable round, so the repeatability is unknown and ± is omitted",
    "accuracy_unknown": "the accuracy of a sensor is not published, so the uncertainty does not include it",
    "identity_conflict": "samples may be of another exporter",
    "targets_merged": "one exporter is stored under several targets; it counts once",
    "exporter_missing": "an exporter of the run has no samples in the source",
    "estimated_energy": "energies are estimated, not measured",
    "emulated_energy": "energies come from an emulated machine",
    "unknown_method": "the measurement method of a sensor is not known",
    "interrupted": "the run or a window was interrupted",
    "too_short": "a window is shorter than planned",
    "overloaded": "a server could not keep up with its queries",
    "no_idle": "no idle window: no net energy",
    "no_sensors": "the run has no energy sensor",
    "frozen": "a sensor's value did not change while time passed or the load changed",
    "load_draws_idle": "a network draws no more than the idle machine",
    "idle_busy": "the machine was busy in an idle window",
    "other_load": "other work ran while a network was measured",
    "settle_too_short": "the load before a window was shorter than a sensor's refresh period",
    "missing_windows": "windows of the run are missing or stored twice",
    "made_up_inputs": "inputs of a network are made up, and may change its work",
    "not_finite_outputs": "outputs of a network are NaN or infinite",
}
"""Every reason code with its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of the audit."""

    severity: Severity
    reason: str
    text: str
    evidence: Evidence = field(default_factory=dict)
    window: int | None = None
    """Index of the window; None: the finding is about the run."""


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the highest severity among findings."""
    order: tuple[Severity, ...] = ("info", "warning", "error")
    return max((finding.severity for finding in findings), key=order.index, default=None)
