"""Audit of the run as a whole: its list of windows, its sensors and exporters, the samples of its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.settling import settle_s_of
from joulewatch_harness.analysis.energy.windows import MeasuredRun
from joulewatch_harness.analysis.results.audit.conditions import check_frequency, check_governor
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.audit.gpu_conditions import check_gpu_rounds, check_gpu_settings
from joulewatch_harness.analysis.sources.history import refresh_s_of
from joulewatch_harness.analysis.sources.series import SensorId, labels_of
from joulewatch_harness.records import EdgeCounter, RunRecord

LARGEST_MISSED: Final = 0.2
"""Share of the edges of a sensor that may be without a refresh of its counter."""


def audit_record(record: RunRecord) -> Iterator[Finding]:
    """Yield the findings about the list of windows: gaps and doubles in their numbers."""
    counts = Counter(window.index for window in record.windows)
    missing = sorted(set(range(max(counts, default=-1) + 1)) - counts.keys())
    doubled = sorted(index for index, count in counts.items() if count > 1)
    if missing:
        yield Finding(
            severity="error",
            reason="missing_windows",
            text=f"{len(missing)} of {count_of(max(counts) + 1, 'window')} "
            f"{'is' if len(missing) == 1 else 'are'} missing, beginning with {missing[0]}: lines of the journal are "
            "lost, or not delivered yet ('joulewatch runs push' delivers them)",
            evidence={"windows": len(missing), "first": missing[0]},
        )
    if doubled:
        yield Finding(
            severity="warning",
            reason="missing_windows",
            text=f"{count_of(len(doubled), 'window is', 'windows are')} stored twice, beginning with "
            f"{doubled[0]}; the first of two lines is used",
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
    unknown = [str(sensor) for sensor, metadata in run.sensors.items() if metadata.known_accuracy is None]
    if unknown:
        yield Finding(
            severity="info",
            reason="accuracy_unknown",
            text=f"no accuracy is published, so uncertainties do not include it: {_some(unknown)}",
            evidence={"sensors": len(unknown)},
        )


def _calibrations(run: MeasuredRun) -> Iterator[Finding]:
    for sensor, metadata in run.sensors.items():
        calibration = metadata.calibration
        if calibration is not None:
            yield Finding(
                severity="info",
                reason="calibrated",
                text=f"{sensor}: {calibration.text}: gain {calibration.gain:.4g}, offset "
                f"{calibration.offset_watts:+.3g} W",
                evidence={
                    "sensor": str(sensor),
                    "gain": calibration.gain,
                    "offset_watts": calibration.offset_watts,
                    "date": calibration.date,
                    "reference": calibration.reference,
                },
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
    if settle_s is None or run.record.header.is_metered:
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


def _networks(run: MeasuredRun) -> Iterator[Finding]:
    """Report what the networks described about their inputs and outputs."""
    record = run.record
    for configuration in {item.name: item for item in (*record.header.configurations, *record.configurations)}.values():
        for reason, fix in _OF_NETWORKS:
            if text := configuration.details.get(reason):
                yield Finding(
                    severity="warning",
                    reason=reason,
                    text=f"{configuration.name}: {text}{fix}",
                    evidence={"configuration": configuration.name},
                )


_OF_NETWORKS: Final = (
    ("made_up_inputs", "; give real ones with --option inputs=FILE.npz or values=NAME=NUMBER"),
    ("not_finite_outputs", ""),
)
"""Reasons that are details of a network, and what their texts lack."""


def _exporter_missing(run: MeasuredRun) -> Iterator[Finding]:
    if not run.record.windows:  # no samples were asked for
        return
    seen = {sensor.exporter for sensor in (*run.history.counters, *run.history.powers)}
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
    named = {exporter.name for exporter in run.record.header.exporters}
    own = named | {sensor.exporter for sensor, record in run.sensors.items() if record.read_mode}
    for (exporter, doubt_s), indexes in windows.items():
        yield Finding(
            severity="warning",
            reason="clock_unknown",
            text=f"{exporter}: its clock was never compared with the harness's. The uncertainty of "
            f"{count_of(len(indexes), 'window')} allows for {doubt_s:g} s. {_clock_fix(run, exporter in own)}",
            evidence={"exporter": exporter, "windows": len(indexes), "offset_s": doubt_s},
        )


def _clock_fix(run: MeasuredRun, is_own: bool) -> str:
    """Return what bounds a clock; ``is_own``: that of an exporter of joulewatch, which can be read at the edges."""
    if run.record.header.is_imported:
        return "Synchronise the clock of the meter with that of the measured machine"
    if not is_own:
        return "Synchronise the clocks of both machines (NTP); only joulewatch-exporter can be read at the edges"
    return (
        "Name the exporter with --exporter, so that it is read at the edges; an exporter of version 0.1.0 must be "
        "updated, too"
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


def _missed_refreshes(run: MeasuredRun) -> Iterator[Finding]:
    """Report sensors that were read without a refresh at many edges, although the exporter can wait for refreshes."""
    edges: dict[tuple[str, ...], list[EdgeCounter]] = {}
    for window in run.record.windows:
        for edge in (window.start_edge, window.end_edge):
            for counter in edge.counters if edge is not None else ():
                edges.setdefault(labels_of(counter), []).append(counter)
    for key, counters in edges.items():
        sensor = SensorId(*key)
        missed = [counter.no_step for counter in counters if counter.step is None]
        if LARGEST_MISSED * len(counters) < len(missed) < len(counters):
            reason = Counter(missed).most_common(1)[0][0] or "read by scrapes"
            yield Finding(
                severity="info",
                reason="refreshes_missed",
                text=f"{sensor}: {len(missed)} of {count_of(len(counters), 'edge')} "
                f"{'is' if len(missed) == 1 else 'are'} without a refresh ({reason}); "
                "short windows have a larger uncertainty",
                evidence={"sensor": str(sensor), "missed": len(missed), "edges": len(counters)},
            )


RunCheck = Callable[[MeasuredRun], Iterator[Finding]]
RUN_CHECKS: Final[tuple[RunCheck, ...]] = (
    _no_sensors,
    _methods,
    _accuracy,
    _calibrations,
    _notices,
    _settle,
    _networks,
    _missed_refreshes,
    check_governor,
    check_frequency,
    check_gpu_settings,
    check_gpu_rounds,
)
HISTORY_CHECKS: Final[tuple[RunCheck, ...]] = (_exporter_missing, _gaps, _unknown_clocks)
