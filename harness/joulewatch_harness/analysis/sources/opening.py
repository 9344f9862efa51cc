"""Open the source that the command line names: a recording or a Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from joulewatch_harness.errors import ConfigError, QueryError

if TYPE_CHECKING:
    from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.analysis.sources.history import SampleSource


def open_source(*, prometheus: PrometheusOptions | None = None, recording: Path | None = None) -> SampleSource | None:
    """The source that the arguments name: a recording goes before a Prometheus, None where there is neither.

    Raises:
        ConfigError: The recording does not exist.
        RecordError: It is no recording.
        QueryError: No Prometheus answers: said within seconds, the long patience is for one that was there.
    """
    if recording is not None:
        if not recording.is_file():
            raise ConfigError(f"{recording}: no such recording")
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
