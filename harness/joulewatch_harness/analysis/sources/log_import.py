"""Write a log of another meter as a recording, which ``energy`` and ``analyze`` read.

The samples stay as they are: power as power, energy as a counter. A window of a CSV is on the clock of the log; those
of LoadGen and of a run are on the clock of another machine, so that their offset is not known.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.log_formats import ReadLog
from joulewatch_harness.analysis.sources.log_windows import NamedWindow
from joulewatch_harness.analysis.sources.power_log import PowerLog
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.records import (
    IMPORT,
    METER,
    SCHEMA_VERSION,
    Configuration,
    ExporterRecord,
    Line,
    RunEnd,
    RunHeader,
    RunRecord,
    SensorRecord,
    Window,
)
from joulewatch_harness.storage.journal import new_run_id
from joulewatch_harness.storage.recording import RecordingWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What is written: the logs of one file, and its windows."""

    path: Path
    read: ReadLog
    name: str
    """Of the meter: the exporter of the recording."""
    scope: str
    accuracy: float | None
    windows: Sequence[NamedWindow] = ()
    same_clock: bool = True
    """Whether the windows are on the clock of the log, to ``clock_error_s``."""
    clock_error_s: float = 0.0
    run: RunRecord | None = None
    """The run whose windows are used."""
    command: tuple[str, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        """First and last time of all logs."""
        spans = [log.span for log in self.read.logs]
        return min(first for first, _ in spans), max(last for _, last in spans)

    def sensor(self, log: PowerLog) -> SensorRecord:
        """Return the metadata of a log as a sensor."""
        step = log.traits.resolution_joules if log.is_energy else log.traits.resolution_watts
        component = self.read.component if self.scope == "device" or self.read.component == "node" else "node"
        if self.scope == "device" and component == "node":
            component = "other"
        return SensorRecord(
            exporter=self.name,
            scope=self.scope,
            collector=IMPORT,
            component=component,
            device=log.device or self.name,
            domain="total",
            method="counter" if log.is_energy else "integrated",
            reads="energy" if log.is_energy else "power",
            model=self.name,
            source=f"{self.path.name} ({self.read.format})",
            resolution=f"{step:g} {'J' if log.is_energy else 'W'}" if step else "",
            accuracy=self.accuracy,
            accuracy_source="--accuracy" if self.accuracy is not None else "",
            refresh_s=log.traits.refresh_s,
            primary=True if self.scope == "node" else None,
            host=self.name if self.scope == "node" else "",
        )


def write_import(path: Path, imported: Import) -> RunHeader:
    """Write a recording.

    Raises:
        ConfigError: The file exists already, or no window lies within the log.
        RecordError: The disk is full.
    """
    windows = _windows(imported)
    first_s, last_s = imported.span
    if windows and not any(first_s <= window.start_s and window.end_s <= last_s for window in windows):
        raise ConfigError(
            f"{imported.path}: no window lies within the log ({first_s:.3f} to {last_s:.3f} "
            f"Unix seconds; the first window is {windows[0].start_s:.3f} to {windows[0].end_s:.3f}): check --timezone "
            "and --clock-offset"
        )
    header = _header(imported, new_run_id(time.time()))
    lines: list[Line] = [*_configurations(imported, windows)]
    lines += (replace(window, run=header.run) for window in windows)
    lines.append(RunEnd(ended_at_s=last_s, status="complete"))
    writer = RecordingWriter.create(path, header)
    try:
        with writer:
            for log in imported.read.logs:
                _write_series(writer, imported, log)
            for line in lines:
                writer.add_line(line)
    except BaseException:
        # A part of the logs would be read as all of them.
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise
    return header


def _write_series(writer: RecordingWriter, imported: Import, log: PowerLog) -> None:
    sensor = imported.sensor(log)
    labels = {name: getattr(sensor, name) for name in catalog.SENSOR_LABELS}
    metrics = catalog.ENERGY_BY_SCOPE if log.is_energy else catalog.POWER_BY_SCOPE
    times_s = log.series.times_s.tolist()
    writer.add_series(imported.name, metrics[sensor.scope].name, labels, times_s, log.series.values.tolist())
    first_s = times_s[:1]
    info = {
        **{name: getattr(sensor, name) for name in ("scope", "method", "reads", "host", "model", "source")},
        "primary": "1" if sensor.primary else "",
        "resolution": sensor.resolution,
        "accuracy": "" if sensor.accuracy is None else f"{sensor.accuracy:g}",
        "accuracy_source": sensor.accuracy_source,
    }
    labels_of_info = labels | {name: value for name, value in info.items() if value}
    writer.add_series(imported.name, catalog.SENSOR_INFO.name, labels_of_info, first_s, [1.0])
    writer.add_series(imported.name, catalog.SENSOR_REFRESH.name, labels, first_s, [log.traits.refresh_s])


def _windows(imported: Import) -> list[Window]:
    """Return the windows of the recording, without edges: nothing of the log was read at them."""
    if imported.run is not None:
        return [
            replace(
                window,
                start_edge=None,
                end_edge=None,
                clock_error_s=math.hypot(window.clock_error_s, imported.clock_error_s),
            )
            for window in imported.run.windows
        ]
    repeats: dict[str, int] = {}
    windows = []
    for index, named in enumerate(sorted(imported.windows, key=lambda window: window.start_s)):
        repeat = repeats[named.name] = repeats.get(named.name, -1) + 1
        windows.append(
            Window(
                run="",
                index=index,
                kind="measure",
                start_s=named.start_s,
                end_s=named.end_s,
                duration_s=named.end_s - named.start_s,
                clock_error_s=imported.clock_error_s,
                configuration=named.name,
                batch_size=1,
                repeat=repeat,
                batches=named.inferences,
                inferences=named.inferences,
            )
        )
    return windows


def _configurations(imported: Import, windows: Sequence[Window]) -> list[Configuration]:
    if imported.run is not None:
        return list(imported.run.configurations)
    names = dict.fromkeys(window.configuration for window in windows)
    return [Configuration(name=name, network=name, runtime=IMPORT, precision="", path=name) for name in names]


def _header(imported: Import, run: str) -> RunHeader:
    host = imported.name if imported.run is None else imported.run.header.provenance_text("host")
    node = host if imported.same_clock else ""
    exporter = ExporterRecord(name=imported.name, url="", nodename=node)
    sensors = tuple(map(imported.sensor, imported.read.logs))
    if imported.run is not None:
        return replace(imported.run.header, run=run, command=imported.command, exporters=(exporter,), sensors=sensors)
    plan = {METER: IMPORT, "log": imported.path.name, "format": imported.read.format}
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return RunHeader(
        run=run,
        started_at_s=imported.span[0],
        schema=SCHEMA_VERSION,
        command=imported.command,
        plan=plan,
        plan_sha256=hashlib.sha256(text.encode()).hexdigest(),
        configurations=(),
        exporters=(exporter,),
        sensors=sensors,
        provenance={"host": imported.name, "hardware": imported.name},
    )
