"""Open the source named on the command line: a recording or a Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from joulewatch_harness.analysis.sources.history import SampleSource
from joulewatch_harness.errors import QueryError

if TYPE_CHECKING:
    from joulewatch_harness.clients.options import PrometheusOptions


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
