"""The exporters that ``profile --source`` names: their sensors before a run, and their samples after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.records import ExporterRecord

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.history import History, SampleSource
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.records import SensorRecord

_SAMPLES_AFTER: Final = 2
"""Scrapes that are waited for after a run: a window ends between two samples."""
_LONGEST_WAIT_S: Final = 120.0
_POLL_S: Final = 0.5


def check_sources(
    names: Sequence[str], prometheus: PrometheusOptions
) -> tuple[tuple[ExporterRecord, ...], tuple[SensorRecord, ...]]:
    """Return the exporters and sensors that have samples now; the refresh period of a sensor is that of its samples.

    Args:
        names: Of mappings or files, without ``joulewatch``.
        prometheus: The server.

    Raises:
        ConfigError: There are no samples, or those of several machines.
        QueryError: The server does not answer.
    """
    from joulewatch_harness.analysis.sources.opening import open_sources

    source = open_sources(names, prometheus)
    try:
        history = source.history([(time.time() - 1, time.time())])
    finally:
        source.close()
    if not history.sensors:
        raise ConfigError(f"--source: {source.describe()} has no samples of the last minutes of any mapped series")
    hosts = sorted(set(history.nodenames.values()))
    if len(hosts) > 1:
        instances = sorted(history.nodenames)
        raise ConfigError(
            f"--source: the series are those of {len(hosts)} machines ({', '.join(hosts[:4])}): select that of the "
            f"run, for example with --match instance={instances[0]}"
        )
    exporters = (ExporterRecord(name=name, url="", nodename=host) for name, host in sorted(history.nodenames.items()))
    return tuple(exporters), tuple(_described(history))


def _described(history: History) -> list[SensorRecord]:
    series = {**history.powers, **history.counters}
    return [
        replace(record, refresh_s=max(record.refresh_s or 0.0, series[sensor].spacing_s))
        for sensor, record in history.sensors.items()
        if len(series[sensor]) > 1
    ]


def wait_for_samples(source: SampleSource, end_s: float, sensors: Sequence[SensorRecord]) -> None:
    """Wait until each sensor has samples after a run; what is missing then has no energy in its last windows.

    Args:
        source: Of the samples.
        end_s: End of the last window, in Unix seconds.
        sensors: Of the run.
    """
    period_s = max((sensor.refresh_s or 0.0 for sensor in sensors), default=0.0)
    limit_s = time.monotonic() + min(_SAMPLES_AFTER * period_s + 10.0, _LONGEST_WAIT_S)
    while time.monotonic() < limit_s:
        history = source.history([(end_s, time.time())])
        series = {**history.powers, **history.counters}
        if series and all(float(item.times_s[-1]) > end_s for item in series.values()):
            return
        time.sleep(_POLL_S)
