"""Open the source named on the command line: a recording or a Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from joulewatch_harness.analysis.sources.history import SampleSource
from joulewatch_harness.errors import ConfigError, QueryError, RecordError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.series import SensorId
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.records import ExporterRecord, SensorRecord


def open_source(*, prometheus: PrometheusOptions | None = None, recording: Path | None = None) -> SampleSource | None:
    """Return the source that the arguments name: a recording before a Prometheus, None without both.
    Raises:
        RecordError: The recording does not exist, or the file is not a recording.
        QueryError: No Prometheus answers within seconds; the long time limit applies to later requests only.
    """
    if recording is not None:
        from joulewatch_harness.analysis.sources.recording import RecordingSource

        return RecordingSource(recording)
    if prometheus is not None:
        from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
        from joulewatch_harness.clients.prometheus import PrometheusClient

        client = PrometheusClient(prometheus)
        try:
            client.ping()
        except QueryError:
            client.close()
            raise
        return PrometheusSource(client)
    return None


def open_sources(
    names: Sequence[str],
    prometheus: PrometheusOptions | None,
    machines: Sequence[ExporterRecord] | None = None,
    sensors: Mapping[SensorId, SensorRecord] = MappingProxyType({}),
) -> SampleSource:
    """Return the series of the exporters that ``--source`` names, in one Prometheus.

    Args:
        names: Of mappings, ``joulewatch`` or files.
        prometheus: The server.
        machines: The exporters of a run, on whose machines the series are; None: all.
        sensors: The sensors of the run.

    Raises:
        ConfigError: A name or file is not valid, a name is given twice, two mappings have the same name, or there is
            no Prometheus.
        QueryError: No Prometheus answers.
    """
    from joulewatch_harness.analysis.sources.foreign import MappedSource
    from joulewatch_harness.analysis.sources.mapping import OWN, read_mapping, shipped
    from joulewatch_harness.analysis.sources.prometheus import PrometheusSource

    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--source {name}: is given twice")
    mappings = {name: read_mapping(name) for name in names if name != OWN}
    given: dict[str, str] = {}
    for name, mapping in mappings.items():
        # The name is the collector of the sensors: equal sensors of two mappings would be one.
        first = given.setdefault(mapping.name, name)
        if first != name:
            file = first if name in shipped() else name
            raise ConfigError(
                f"--source {first} and --source {name}: both mappings have the name {mapping.name}; change it in "
                f"{file}, for example to {mapping.name}2"
            )
    if prometheus is None:
        raise ConfigError("--source needs --prometheus URL")
    source = open_source(prometheus=prometheus)
    assert isinstance(source, PrometheusSource)
    return MappedSource(source, list(mappings.values()), own=OWN in names, machines=machines, sensors=sensors)


def open_recording(path: Path) -> SampleSource:
    """Return the recording of a run whose journal can be read; a damaged one raises its RecordError when it is read."""
    from joulewatch_harness.analysis.sources.recording import BrokenRecording, RecordingSource

    try:
        return RecordingSource(path)
    except RecordError as error:
        return BrokenRecording(path, error)
