"""Samples from a recording: the SQLite file of the local mode."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
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
from joulewatch_harness.errors import QueryError, RecordError, describe
from joulewatch_harness.records import ExporterRecord, RunRecord
from joulewatch_harness.storage.recording import RecordedSeries, Recording

_MARGIN_S: Final = 60.0
"""A recording contains one run, so a wide margin costs nothing, even with rare scrapes."""


_DAMAGE: Final = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
"""What a flipped byte causes that SQLite does not notice: another type, another text, another time."""


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise RecordError(f"{path}: is damaged: {describe(error)}") from error


class BrokenRecording:
    """A ``SampleSource`` in place of a recording that cannot be opened: it raises the reason.

    Args:
        path: The recording.
        error: The reason.
    """

    def __init__(self, path: Path, error: RecordError) -> None:
        self._path = path
        self._error = error

    def describe(self) -> str:
        return str(self._path)

    def close(self) -> None:
        pass

    def runs(self, start_s: float, end_s: float) -> tuple[RunSummary, ...]:
        raise self._error

    def run(self, run: str) -> RunRecord:
        raise self._error

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        raise self._error


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
        record = self.run("")
        if not start_s <= record.header.started_at_s <= end_s:
            return ()
        status = record.end.status if record.end is not None else "running"
        return (RunSummary(record.header.run, record.header.started_at_s, status),)

    def run(self, run: str) -> RunRecord:
        """Return the run of the recording.

        Raises:
            QueryError: The recording is of another run.
        """
        with _damage(self._path):
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
        """Return counters and sensors over spans of Unix seconds; see ``SampleSource``.

        Raises:
            RecordError: The recording is damaged.
        """
        if not spans:
            return History(source=self.describe())
        with _damage(self._path):
            return self._history(spans, exporters, power=power)

    def _history(
        self, spans: Sequence[tuple[float, float]], exporters: Sequence[ExporterRecord] | None, *, power: bool
    ) -> History:
        merged = merge_spans(spans, _MARGIN_S)
        start_s, end_s = merged[0][0], merged[-1][1]
        wanted = None if exporters is None else {exporter.name for exporter in exporters}
        metadata = self._metadata(start_s, end_s)
        # A sensor that observes only part of the time needs its power values, for their scatter.
        with_power = power or any(stored.metric == catalog.SENSOR_WINDOW.name for stored in metadata)
        samples = [
            stored
            for name in (*COUNTER_NAMES, *(POWER_NAMES if with_power else ()))
            for stored in self._samples(name, merged)
        ]
        return build_history(
            self.describe(),
            [
                RawSeries(
                    name=stored.metric,
                    labels=stored.labels,
                    times_s=np.asarray(stored.scrape_times_s, dtype=np.float64),
                    values=np.asarray(stored.values, dtype=np.float64),
                )
                for stored in (*samples, *metadata)
                if wanted is None or stored.labels.get("instance", "") in wanted
            ],
            power=power,
        )

    def _metadata(self, start_s: float, end_s: float) -> list[RecordedSeries]:
        # Info is stored when it changes, which may be long before the span.
        metadata: list[RecordedSeries] = []
        for metric in (catalog.SENSOR_INFO, catalog.SENSOR_CALIBRATION_INFO):
            metadata += self._recording.series(metric.name, end_s=end_s)
        for metric in (catalog.SENSOR_REFRESH, catalog.SENSOR_WINDOW, catalog.SENSOR_CALIBRATION):
            metadata += self._recording.newest(metric.name, end_s=end_s)
        # On a healthy machine, diagnostics do not change and no device is down: then nothing is read.
        extremes = partial(self._recording.extremes, start_s=start_s, end_s=end_s)
        changed = [name for name in HEALTH_NAMES if any(low != high for low, high in extremes(name))]
        if any(low < 1 for low, _ in extremes(catalog.SENSOR_UP.name)):
            changed += (catalog.SENSOR_UP.name, catalog.SENSOR_STATE.name)
        for name in changed:
            metadata += self._recording.series(name, start_s=start_s, end_s=end_s)
        return metadata

    def _samples(self, name: str, spans: Sequence[tuple[float, float]]) -> Iterator[RecordedSeries]:
        """Yield the series of a metric with the samples of all spans, which do not overlap."""
        series: dict[str, RecordedSeries] = {}
        for start_s, end_s in spans:
            for stored in self._recording.iter_series(name, start_s=start_s, end_s=end_s):
                known = series.setdefault(json.dumps(sorted(stored.labels.items())), stored)
                if known is not stored:
                    known.scrape_times_s.extend(stored.scrape_times_s)
                    known.values.extend(stored.values)
        yield from series.values()
