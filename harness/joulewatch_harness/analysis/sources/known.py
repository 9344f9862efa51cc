"""The sensors of a run, from its header, its edges and the history of its samples."""

from __future__ import annotations

from dataclasses import replace

from joulewatch_harness.analysis.sources.history import History, unknown_sensor
from joulewatch_harness.analysis.sources.series import SensorId, labels_of
from joulewatch_harness.records import RunRecord, SensorRecord


def known_sensors(record: RunRecord, history: History) -> dict[SensorId, SensorRecord]:
    """Return every energy sensor of the run: from its header, the history and its edges, best description first."""
    sensors = {SensorId.of(metadata): metadata for metadata in record.header.sensors}
    for sensor, stored in history.sensors.items():
        known = sensors.get(sensor)
        if known is None or (known.refresh_s is None and stored.refresh_s is not None):
            sensors[sensor] = stored
        elif known.window_s is None and stored.window_s is not None:
            sensors[sensor] = replace(known, window_s=stored.window_s)
        if known is not None:
            # Of the start of the run, as its journal holds it.
            calibration = known.calibration or stored.calibration
            sensors[sensor] = replace(sensors[sensor], calibration=calibration)
    for window in record.windows:
        for edge in (window.start_edge, window.end_edge):
            for counter in edge.counters if edge is not None else ():
                if labels_of(counter) not in sensors:
                    sensor = SensorId.of(counter)
                    sensors[sensor] = unknown_sensor(sensor)
    return dict(sorted(sensors.items()))
