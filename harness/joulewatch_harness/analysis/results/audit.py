"""Audit of a run: every finding has a severity, a stable reason code, a sentence with the fix, and evidence.

Severity ``error``: a result is contradicted or missing, and ``--strict`` fails. ``warning``: a person should check the
result. ``info``: worth knowing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from joulewatch_harness.analysis.energy.clock_offsets import HARNESS
from joulewatch_harness.analysis.energy.frozen import pause_in, pause_text
from joulewatch_harness.analysis.energy.settling import settle_s_of
from joulewatch_harness.analysis.energy.windows import (
    LARGEST_UNMEASURED,
    Measured,
    MeasuredRun,
    MeasuredWindow,
)
from joulewatch_harness.analysis.sources.history import refresh_s_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.plan.plan import REFRESHES_PER_WINDOW
from joulewatch_harness.plan.refresh import has_refresh
from joulewatch_harness.plan.runtimes import is_server
from joulewatch_harness.plan.target import relative_half_width
from joulewatch_harness.records import RunRecord, Window

if TYPE_CHECKING:
    from joulewatch_harness.analysis.results.model import Estimate, IdlePower

Severity = Literal["info", "warning", "error"]
Evidence = Mapping[str, str | float | int]

CLOCK_TOLERANCE_S: Final = 0.005
"""Clocks synchronised by NTP on one network agree to within this."""
SPREAD_TOLERANCE: Final = 0.10
"""Largest relative spread of the energies of one configuration's rounds."""
IDLE_TOLERANCE: Final = 0.05
"""Largest relative change of the idle power over the run."""
STEADY_TOLERANCE: Final = 0.10
"""Largest relative difference of the mean powers in the two halves of a window."""
QUIET_SHARE: Final = 0.02
"""Largest share of the processor time that other work may use in a window."""
BUSY_SHARE: Final = 0.05
"""An idle window with more other work than this is busy: net energy is not reported."""
LEAST_LOAD_S: Final = 0.03
"""Smallest significant processor time: the kernel rounds two counts to 10 ms at either edge."""

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
    "sensor_down": "the exporter could not read a device",
    "wraps_seen": "a hardware counter wrapped; the wraps were corrected",
    "rejected_readings": "readings outside physical bounds were rejected",
    "unmeasured_time": "a counter did not cover part of a window",
    "core_exceeds_package": "a part used more energy than its device",
    "devices_exceed_node": "the devices used more energy than the whole server",
    "idle_drift": "idle power changed over the run",
    "not_steady": "the first round, which follows the warm-up, changes the result",
    "power_not_steady": "power changed inside a window",
    "repeats_apart": "the rounds differ too much, or the target was not reached",
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


def audit_windows(run: MeasuredRun) -> Iterator[Finding]:
    """Yield the findings about single windows: those of every check, in the order of the tables."""
    for measured in run.windows:
        for sensor, result in measured.sensors.items():
            for sensor_check in SENSOR_CHECKS:
                yield from sensor_check(run, measured, sensor, result)
        for window_check in WINDOW_CHECKS:
            yield from window_check(run, measured)


# One sensor in one window


def _missing(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    # A clock that was set has one finding for all its sensors (``_clocks``).
    if result.energy is None and result.reason != "clock_stepped":
        # The result does not include nodes and parts, so it is complete without them.
        severity: Severity = "error" if sensor.scope == "device" else "warning"
        yield Finding(
            severity=severity,
            reason=result.reason,
            text=result.text,
            evidence={"sensor": str(sensor)},
            window=measured.window.index,
        )


def _edges_and_history(
    run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured
) -> Iterator[Finding]:
    by_edges, by_history = result.edges, result.history
    if by_edges is None or by_history is None:
        return
    apart = max(by_edges.lower_joules - by_history.upper_joules, by_history.lower_joules - by_edges.upper_joules)
    # A double holds a counter of 1e9 J to 1e-7 J.
    if apart > 1e-6:
        yield Finding(
            severity="error",
            reason="edge_history_disagreement",
            text=f"{sensor}: {by_edges.joules:.6g} J by edges, outside the bounds of the history "
            f"({by_history.lower_joules:.6g} to {by_history.upper_joules:.6g} J); check that both are of the same "
            "exporter",
            evidence={
                "sensor": str(sensor),
                "edges_joules": by_edges.joules,
                "history_lower_joules": by_history.lower_joules,
                "history_upper_joules": by_history.upper_joules,
            },
            window=measured.window.index,
        )


def _below_refresh(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    span, metadata = measured.span, run.sensors[sensor]
    if result.energy is None or not has_refresh(metadata):
        return
    refresh_s = refresh_s_of(metadata, run.history.counters.get(sensor))
    if span.duration_s < REFRESHES_PER_WINDOW * refresh_s:
        known = "" if metadata.refresh_s is not None else " (not published; from the samples, or assumed)"
        yield Finding(
            severity="warning",
            reason="below_refresh",
            text=f"{sensor}: the window of {span.duration_s:.3g} s contains fewer than {REFRESHES_PER_WINDOW} refresh "
            f"periods of {refresh_s:.3g} s{known}; use longer windows",
            evidence={"sensor": str(sensor), "duration_s": span.duration_s, "refresh_s": refresh_s},
            window=measured.window.index,
        )


def _wraps(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    wraps = result.health.wraps
    if wraps:
        yield Finding(
            severity="info",
            reason="wraps_seen",
            text=f"{sensor}: the counter wrapped {wraps:.0f} times; the wraps were corrected",
            evidence={"sensor": str(sensor), "wraps": wraps},
            window=measured.window.index,
        )


def _rejected(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    rejected = result.health.rejected
    if rejected:
        yield Finding(
            severity="warning",
            reason="rejected_readings",
            text=f"{sensor}: {rejected:.0f} readings outside physical bounds were rejected",
            evidence={"sensor": str(sensor), "readings": rejected},
            window=measured.window.index,
        )


def _unmeasured(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    unmeasured_s, duration_s = result.health.unmeasured_s, measured.span.duration_s
    if 0 < unmeasured_s <= LARGEST_UNMEASURED * duration_s:
        yield Finding(
            severity="warning",
            reason="unmeasured_time",
            text=f"{sensor}: the counter did not cover {unmeasured_s:.3g} s of {duration_s:.3g} s",
            evidence={"sensor": str(sensor), "unmeasured_s": unmeasured_s},
            window=measured.window.index,
        )


def _short_pause(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    """Report a counter that was frozen for so short a part of the window that its energy is kept."""
    pause_s = pause_in(run, measured, sensor)
    if pause_s > 0:
        yield Finding(
            severity="warning",
            reason="frozen",
            text=pause_text(sensor, pause_s),
            evidence={"sensor": str(sensor), "pause_s": pause_s},
            window=measured.window.index,
        )


def _steady(run: MeasuredRun, measured: MeasuredWindow, sensor: SensorId, result: Measured) -> Iterator[Finding]:
    """Compare the mean powers of a measure window's halves, if it contains at least four samples."""
    counter = run.history.counters.get(sensor)
    if measured.window.kind != "measure" or counter is None or result.energy is None:
        return
    span = measured.span
    first, last = np.searchsorted(counter.times_s, (span.start_s, span.end_s))
    inside = counter.times_s[first:last]
    if inside.size < 4:
        return
    values = counter.values[first:last]
    middle = int(np.searchsorted(inside, (inside[0] + inside[-1]) / 2))
    if not 0 < middle < inside.size - 1:
        return
    watts = [
        float((values[j] - values[i]) / (inside[j] - inside[i])) for i, j in ((0, middle), (middle, inside.size - 1))
    ]
    mean = (watts[0] + watts[1]) / 2
    if mean > 0 and abs(watts[1] - watts[0]) > STEADY_TOLERANCE * mean:
        yield Finding(
            severity="warning",
            reason="power_not_steady",
            text=f"{sensor}: {watts[0]:.4g} W in the first half of the window, {watts[1]:.4g} W in the second; use a "
            "longer warm-up",
            evidence={"sensor": str(sensor), "first_watts": watts[0], "second_watts": watts[1]},
            window=measured.window.index,
        )


# All sensors of one window


def _parts(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    devices: dict[tuple[str, str, str, str], tuple[SensorId, Measured]] = {}
    for sensor, result in measured.sensors.items():
        if sensor.scope == "device" and result.energy is not None:
            devices[sensor.exporter, sensor.collector, sensor.component, sensor.device] = (sensor, result)
    for sensor, result in measured.sensors.items():
        whole = devices.get((sensor.exporter, sensor.collector, sensor.component, sensor.device))
        if sensor.scope != "part" or result.energy is None or whole is None or whole[1].energy is None:
            continue
        if result.energy.lower_joules > whole[1].energy.upper_joules:
            yield Finding(
                severity="error",
                reason="core_exceeds_package",
                text=f"{sensor}: at least {result.energy.lower_joules:.6g} J, more than the "
                f"{whole[1].energy.upper_joules:.6g} J that {whole[0].domain} can have used at most",
                evidence={
                    "sensor": str(sensor),
                    "part_joules": result.energy.joules,
                    "device_joules": whole[1].energy.joules,
                },
                window=measured.window.index,
            )


def _node(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    machine_of = run.record.header.machine_of
    for sensor, result in measured.sensors.items():
        metadata = run.sensors[sensor]
        if sensor.scope != "node" or result.energy is None or metadata.primary is False:
            continue
        machine = machine_of(metadata)
        # The exporter may read the BMC of another machine: its devices are not in that one.
        devices = [
            (other, device.energy)
            for other, device in measured.sensors.items()
            if other.scope == "device" and other.exporter == sensor.exporter and device.energy is not None
            if not machine or machine_of(run.sensors[other]) in (machine, "")
        ]
        if not devices:
            continue
        slack = 1 + (run.sensors[sensor].accuracy or 0.0)
        lower = sum(
            energy.lower_joules * (1 - min(run.sensors[other].accuracy or 0.0, 1.0)) for other, energy in devices
        )
        if lower > result.energy.upper_joules * slack:
            yield Finding(
                severity="warning",
                reason="devices_exceed_node",
                text=f"{sensor}: {result.energy.joules:.6g} J, less than the {lower:.6g} J of the devices in it",
                evidence={"sensor": str(sensor), "node_joules": result.energy.joules, "devices_lower_joules": lower},
                window=measured.window.index,
            )


def _clocks(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    for exporter, text in measured.clock_steps.items():
        if exporter in run.clocks.shared:
            fix = "If they are two machines, give them different host names"
        else:
            fix = "Let the time service (NTP) slew clocks, not set them, and repeat the run"
        yield Finding(
            severity="error",
            reason="clock_stepped",
            text=f"{text}; the window is excluded. {fix}",
            evidence={"exporter": exporter} if exporter != HARNESS else {"step_s": measured.window.clock_step_s},
            window=measured.window.index,
        )
    for exporter, offsets in measured.offsets.items():
        offset = offsets.window
        distance_s = max(offset.lower_s, -offset.upper_s)
        if distance_s <= CLOCK_TOLERANCE_S or exporter in run.clocks.shared or exporter in measured.clock_steps:
            continue
        yield Finding(
            severity="warning",
            reason="clock_skew",
            text=f"{exporter}: its clock differs from the harness's by {offset.lower_s:.4g} to {offset.upper_s:.4g} s; "
            "the results are corrected for it",
            evidence={"exporter": exporter, "lower_s": offset.lower_s, "upper_s": offset.upper_s},
            window=measured.window.index,
        )


_FLAG_TEXTS: Final[Mapping[str, str]] = {
    "not_steady": "the warm-up ended before the network ran steadily; raise max_warmup_s in the plan",
    "interrupted": "the window was interrupted and is excluded",
    "too_short": "the window is shorter than planned",
    "overloaded": "queries arrived faster than they were served; the window is excluded. Use a lower rate",
}


def _flags(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    for flag in measured.window.flags:
        if flag in _FLAG_TEXTS:
            yield Finding(
                severity="warning", reason=flag, text=_FLAG_TEXTS[flag], evidence={}, window=measured.window.index
            )


def _load(run: MeasuredRun, measured: MeasuredWindow) -> Iterator[Finding]:
    """Report what else the harness's machine did, if one of its sensors measured the run."""
    window = measured.window
    name, largest, advice = _LOADS.get(window.kind, ("", math.inf, ""))
    share = other_load(window)
    if share <= QUIET_SHARE or not measures_this_machine(run, run.sensors):
        return
    if window.kind == "measure" and _is_server(run.record, window.configuration):
        return  # its load is the run's own, in processes that the harness does not know
    yield Finding(
        severity="error" if share > largest else "warning",
        reason=name,
        text=f"other work used {100 * share:.3g} % of the processor time during the window; {advice}",
        evidence={"share": share},
        window=window.index,
    )


_LOADS: Final[Mapping[str, tuple[str, float, str]]] = {
    "idle": ("idle_busy", BUSY_SHARE, "stop it, or wait until it ends, and run again"),
    "measure": ("other_load", math.inf, "stop it and run again: the results include its energy"),
}
"""Kind of window -> reason, largest share that is a warning, advice."""


def other_load(window: Window) -> float:
    """Return the share of the machine's processor time in a window that was not the run's own; 0 if not known.

    The kernel rounds its counts, so less than ``LEAST_LOAD_S`` of processor time is not significant. On one processor
    that is 3 % of a window of 1 s; on two, or in windows of 1.5 s, it is less than ``QUIET_SHARE``.
    """
    used = window.processor_time
    if used is None or window.duration_s <= 0 or used.processors < 1:
        return 0.0
    other_s = used.busy_s - used.own_s
    return other_s / (used.processors * window.duration_s) if other_s > LEAST_LOAD_S else 0.0


def measures_this_machine(run: MeasuredRun, sensors: Iterable[SensorId]) -> bool:
    """Return whether one of some sensors measures the harness's machine; an emulated one measures none."""
    header = run.record.header
    here = header.provenance.get("host")
    for sensor in sensors:
        machine = header.machine_of(run.sensors[sensor])
        is_here = machine == here if machine and here else sensor.exporter in run.clocks.shared
        if is_here and run.sensors[sensor].method != "emulated":
            return True
    return False


def is_busy(window: Window) -> bool:
    """Return whether so much else ran in an idle window that its power is not the idle power."""
    return other_load(window) > BUSY_SHARE


def _is_server(record: RunRecord, configuration: str) -> bool:
    return any(item.name == configuration and is_server(item.runtime) for item in record.header.configurations)


# The whole run


def audit_record(record: RunRecord) -> Iterator[Finding]:
    """Yield the findings about the list of windows: gaps and doubles in their numbers."""
    counts = Counter(window.index for window in record.windows)
    missing = sorted(set(range(max(counts, default=-1) + 1)) - counts.keys())
    doubled = sorted(index for index, count in counts.items() if count > 1)
    if missing:
        yield Finding(
            severity="error",
            reason="missing_windows",
            text=f"{len(missing)} of {max(counts) + 1} windows are missing, the first is {missing[0]}: lines of the "
            "journal are lost, or not delivered yet ('joulewatch runs push' delivers them)",
            evidence={"windows": len(missing), "first": missing[0]},
        )
    if doubled:
        yield Finding(
            severity="warning",
            reason="missing_windows",
            text=f"{len(doubled)} windows are stored twice, the first is {doubled[0]}; the first line of each is used",
            evidence={"windows": len(doubled), "first": doubled[0]},
            window=doubled[0],
        )


def audit_run(run: MeasuredRun, *, with_history: bool) -> Iterator[Finding]:
    """Yield the findings about the run as a whole: those of every check, in the order of the tables.

    Args:
        run: The measured run.
        with_history: Whether there was a source of samples.
    """
    for check in (*RUN_CHECKS, *(HISTORY_CHECKS if with_history else ()), _end):
        yield from check(run)


def _no_sensors(run: MeasuredRun) -> Iterator[Finding]:
    if not run.sensors:
        yield Finding(
            severity="error",
            reason="no_sensors",
            text="the run has no energy sensor, so it has times only; 'joulewatch-exporter check' reports why",
        )


_METHODS: Final = (
    ("estimated", "estimated_energy", "estimated by a power model, not measured"),
    ("emulated", "emulated_energy", "from an emulated machine, not from hardware"),
    ("unknown", "unknown_method", "measured by an unknown method, because joulewatch_sensor_info is not stored"),
)


def _methods(run: MeasuredRun) -> Iterator[Finding]:
    for method, reason, sentence in _METHODS:
        names = [str(sensor) for sensor, metadata in run.sensors.items() if metadata.method == method]
        if names:
            yield Finding(
                severity="warning",
                reason=reason,
                text=f"{sentence}: {_some(names)}",
                evidence={"sensors": len(names)},
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _accuracy(run: MeasuredRun) -> Iterator[Finding]:
    unknown = [str(sensor) for sensor, metadata in run.sensors.items() if metadata.accuracy is None]
    if unknown:
        yield Finding(
            severity="info",
            reason="accuracy_unknown",
            text=f"no accuracy is published, so uncertainties do not include it: {_some(unknown)}",
            evidence={"sensors": len(unknown)},
        )


def _notices(run: MeasuredRun) -> Iterator[Finding]:
    for notice in run.history.notices:
        yield Finding(
            severity=notice.severity,
            reason=notice.reason,
            text=notice.text,
            evidence={"exporter": notice.exporter},
        )


def _settle(run: MeasuredRun) -> Iterator[Finding]:
    settle_s = settle_s_of(run.record)
    if settle_s is None:
        return
    slow = {
        sensor: refresh_s
        for sensor, metadata in run.sensors.items()
        if sensor.scope == "device"
        and (refresh_s := refresh_s_of(metadata, run.history.counters.get(sensor))) > settle_s
        and any(measured.sensors[sensor].energy is not None for measured in run.windows)
    }
    if slow:
        slowest_s = max(slow.values())
        yield Finding(
            severity="warning",
            reason="settle_too_short",
            text=f"the load ran for {settle_s:.3g} s before each window, less than the refresh period (up to "
            f"{slowest_s:.3g} s) of {_some([str(sensor) for sensor in slow])}; set settle_s to {slowest_s:.3g} or more "
            "in the plan",
            evidence={"settle_s": settle_s, "refresh_s": slowest_s},
        )


def _exporter_missing(run: MeasuredRun) -> Iterator[Finding]:
    seen = {sensor.exporter for sensor in run.history.counters}
    for exporter in sorted({exporter_record.name for exporter_record in run.record.header.exporters} - seen):
        yield Finding(
            severity="warning",
            reason="exporter_missing",
            text=f"{exporter}: {run.history.source} has no samples of this exporter around the run; check that it "
            "is scraped",
            evidence={"exporter": exporter},
        )


def _end(run: MeasuredRun) -> Iterator[Finding]:
    end = run.record.end
    if end is None:
        yield Finding(
            severity="warning", reason="interrupted", text="the run has no end: it was killed or is still running"
        )
    elif end.status != "complete":
        text = f": {end.text}" if end.text else ""
        yield Finding(severity="warning", reason="interrupted", text=f"the run ended as {end.status}{text}")


def _unknown_clocks(run: MeasuredRun) -> Iterator[Finding]:
    """Yield the exporters whose clock nothing bounded, if windows are placed on it: by history, not by edges."""
    windows: dict[tuple[str, float], set[int]] = {}
    for measured in run.windows:
        for sensor, result in measured.sensors.items():
            if result.clock_doubt_s:
                windows.setdefault((sensor.exporter, result.clock_doubt_s), set()).add(measured.window.index)
    for (exporter, doubt_s), indexes in windows.items():
        yield Finding(
            severity="warning",
            reason="clock_unknown",
            text=f"{exporter}: its clock was never compared with the harness's. The uncertainty of {len(indexes)} "
            f"windows allows for {doubt_s:g} s. Name the exporter with --exporter, so that it is read at the "
            "edges; an exporter of version 0.1.0 must be updated, too",
            evidence={"exporter": exporter, "windows": len(indexes), "offset_s": doubt_s},
        )


def _gaps(run: MeasuredRun) -> Iterator[Finding]:
    """Yield the gaps between samples inside windows; the counters kept counting, so the energies are right."""
    reported = set()
    for sensor, counter in run.history.counters.items():
        if len(counter) < 3:
            continue
        steps = np.diff(counter.times_s)
        limit_s = max(3 * float(np.median(steps)), 0.5)
        for at in np.flatnonzero(steps > limit_s):
            left_s, right_s = float(counter.times_s[at]), float(counter.times_s[at + 1])
            for measured in run.windows:
                span = measured.span
                key = (sensor.exporter, measured.window.index)
                if span.start_s <= left_s and right_s <= span.end_s and key not in reported:
                    reported.add(key)
                    yield Finding(
                        severity="info",
                        reason="sample_gap",
                        text=f"{sensor.exporter}: no sample for {right_s - left_s:.3g} s inside the window; its "
                        "counters kept counting",
                        evidence={"exporter": sensor.exporter, "gap_s": right_s - left_s},
                        window=measured.window.index,
                    )


SensorCheck = Callable[[MeasuredRun, MeasuredWindow, SensorId, Measured], Iterator[Finding]]
WindowCheck = Callable[[MeasuredRun, MeasuredWindow], Iterator[Finding]]
RunCheck = Callable[[MeasuredRun], Iterator[Finding]]

SENSOR_CHECKS: Final[tuple[SensorCheck, ...]] = (
    _missing,
    _edges_and_history,
    _below_refresh,
    _wraps,
    _rejected,
    _unmeasured,
    _short_pause,
    _steady,
)
WINDOW_CHECKS: Final[tuple[WindowCheck, ...]] = (_parts, _node, _clocks, _flags, _load)
RUN_CHECKS: Final[tuple[RunCheck, ...]] = (_no_sensors, _methods, _accuracy, _notices, _settle)
HISTORY_CHECKS: Final[tuple[RunCheck, ...]] = (_exporter_missing, _gaps, _unknown_clocks)


# Groups of windows


def audit_repeats(
    name: str, values: Sequence[float], measured_rounds: int, target: float | None = None
) -> Iterator[Finding]:
    """Check whether the rounds of one group agree.

    Args:
        name: The configuration and batch size.
        values: Joules per inference, one per usable round.
        measured_rounds: Number of rounds, usable or not.
        target: Largest relative uncertainty of the repeats, in a run whose rounds end at a target.
    """
    if len(values) == 1:
        yield Finding(
            severity="warning",
            reason="single_repeat",
            text=f"{name}: usable rounds: 1 of {measured_rounds}; the repeatability is unknown, so ± is "
            "omitted; use --rounds 3 or more",
            evidence={"rounds": len(values), "measured_rounds": measured_rounds},
        )
    if len(values) < 2:
        return
    mean = sum(values) / len(values)
    spread = (max(values) - min(values)) / abs(mean) if mean else 0.0
    if target is not None:
        half_width = relative_half_width(values)
        if half_width > target:
            yield Finding(
                severity="warning",
                reason="repeats_apart",
                text=f"{name}: ±{100 * half_width:.2g} % after {len(values)} rounds, not the target of "
                f"±{100 * target:g} %; raise max_run_s in the plan, or stop other load on the machine",
                evidence={"half_width": half_width, "target": target, "spread": spread, "rounds": len(values)},
            )
    elif spread > SPREAD_TOLERANCE:
        yield Finding(
            severity="warning",
            reason="repeats_apart",
            text=f"{name}: the rounds differ by {100 * spread:.3g} % of their mean; use more rounds, or stop "
            "other load on the machine",
            evidence={"spread": spread, "rounds": len(values)},
        )


def audit_idle(component: str, watts: Sequence[float]) -> Iterator[Finding]:
    """Check whether the idle power stayed the same; ``watts`` in order of time."""
    if len(watts) < 2:
        return
    mean = sum(watts) / len(watts)
    if mean > 0 and abs(watts[-1] - watts[0]) > IDLE_TOLERANCE * mean:
        yield Finding(
            severity="warning",
            reason="idle_drift",
            text=f"{component}: idle power changed from {watts[0]:.4g} W to {watts[-1]:.4g} W over the run; use longer "
            "idle windows, or stop other load on the machine",
            evidence={"component": component, "first_watts": watts[0], "last_watts": watts[-1]},
        )


def audit_load(name: str, gross: Estimate, rate_per_s: float, idle: IdlePower) -> Iterator[Finding]:
    """Check that a group draws more than the idle machine.

    Args:
        name: The group.
        gross: Joules per inference over all devices.
        rate_per_s: Inferences per second.
        idle: The idle power of the same devices.
    """
    watts = gross.value * rate_per_s
    if watts <= idle.watts + NORMAL_95 * idle.standard_watts:
        yield Finding(
            severity="warning",
            reason="load_draws_idle",
            text=f"{name}: {watts:.4g} W, no more than the idle power of {idle.watts:.4g} W "
            f"(± {NORMAL_95 * idle.standard_watts:.2g} W); check that the network runs on a measured device, that the "
            "machine was idle in the idle windows, and that the sensors work",
            evidence={"watts": watts, "idle_watts": idle.watts},
        )
