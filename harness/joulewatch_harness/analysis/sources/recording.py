"""Samples from a recording: the SQLite file of the local mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.history import (
    COUNTER_NAMES,
    HEALTH_NAMES,
    POWER_NAMES,
    History,
    RawSeries,
    RunSummary,
    build_history,
    merge_spans,
)
from joulewatch_harness.errors import QueryError
from joulewatch_harness.records import ExporterRecord, RunRecord
from joulewatch_harness.storage.recording import Recording

_MARGIN_S: Final = 60.0
"""A recording contains one run, so a wide margin costs nothing, even with rare scrapes."""
_STATE_NAMES: Final = (catalog.SENSOR_UP.name, catalog.SENSOR_STATE.name)
_METADATA_NAMES: Final = (
    catalog.SENSOR_INFO.name,
    catalog.SENSOR_REFRESH.name,
    catalog.SENSOR_WINDOW.name,
    catalog.SENSOR_CALIBRATION.name,
    catalog.SENSOR_CALIBRATION_INFO.name,
    *_STATE_NAMES,
    *HEALTH_NAMES,
)


class RecordingSource:
    """A ``SampleSource`` over one recording.

    Args:
        path: The recording, or the directory of its run.

    Raises:
        RecordError: The recording cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recording = Recording.open(path)

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        self._recording.close()

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        """Return the run of the recording, if it started in the span."""
        record = self._recording.run()
        if not start_s <= record.header.started_at_s <= end_s:
            return ()
        status = record.end.status if record.end is not None else "running"
        return (RunSummary(record.header.run, record.header.started_at_s, status),)

    def run(self, run: str) -> RunRecord:
        """Return the run of the recording.

        Raises:
            QueryError: The recording is of another run.
        """
        record = self._recording.run()
        if run and record.header.run != run:
            raise QueryError(f"{self._path}: unknown run {run!r}; this is the recording of {record.header.run}")
        return record

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        """Return counters and sensors over spans of Unix seconds; see ``SampleSource``."""
        if not spans:
            return History(source=self.describe())
        samples: list[RawSeries] = []
        merged = merge_spans(spans, _MARGIN_S)
        whole = (merged[0][0], merged[-1][1])
        wanted = None if exporters is None else {exporter.name for exporter in exporters}
        # A sensor that observes only part of the time needs its power values, for their scatter.
        with_power = power or bool(self._raw(catalog.SENSOR_WINDOW.name, (None, whole[1]), wanted))
        for name in (*COUNTER_NAMES, *(POWER_NAMES if with_power else ())):
            samples += self._raw(name, whole, wanted)
        for name in _METADATA_NAMES:
            # Metadata is stored when it changes, which may be long before the span.
            start_s = whole[0] if name in HEALTH_NAMES or name in _STATE_NAMES else None
            samples += self._raw(name, (start_s, whole[1]), wanted)
        return build_history(self.describe(), samples, power=power)

    def _raw(self, name: str, span: tuple[float | None, float], wanted: set[str] | None) -> list[RawSeries]:
        return [
            RawSeries(
                name=name,
                labels=stored.labels,
                times_s=np.asarray(stored.scrape_times_s, dtype=np.float64),
                values=np.asarray(stored.values, dtype=np.float64),
            )
            for stored in self._recording.series(name, start_s=span[0], end_s=span[1])
            if wanted is None or stored.labels.get("instance", "") in wanted
        ]
