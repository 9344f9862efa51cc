"""Find a stored run and the source of its samples: on this machine, else in Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_harness.errors import QueryError, RecordError

if TYPE_CHECKING:
    from joulewatch_harness.analysis.sources.history import SampleSource
    from joulewatch_harness.clients.options import PrometheusOptions
    from joulewatch_harness.records import RunRecord

_SQLITE: Final = b"SQLite format 3\x00"


def find(
    run: str,
    output: Path,
    options: PrometheusOptions | None,
    names: Sequence[str] = (),
    *,
    fix: str = "use --prometheus URL",
) -> tuple[RunRecord, SampleSource | None]:
    """Return a run and the source of its samples.

    With ``names`` of ``--source``, or those of the run's plan, the samples are those of these exporters in Prometheus.

    The record comes from the journal or recording on this machine, else from Prometheus. Samples come from the
    recording if there is one, else from Prometheus; without both, the source is None and the edges in the journal are
    used. A line on stderr reports a Prometheus that is not read. ``fix`` is how the caller names a Prometheus.

    Raises:
        ConfigError: A name of ``--source`` is not valid, or there is no Prometheus.
        QueryError: The run is neither on this machine nor in Prometheus.
        RecordError: The journal or recording cannot be read.
    """
    record, source = _find(run, output, options, fix)
    names = names or tuple(record.header.plan.get("sources", ()))
    if not names:
        return record, source
    if source is not None:
        source.close()
    return by_sources(record, names, options)


def by_sources(
    record: RunRecord, names: Sequence[str], options: PrometheusOptions | None
) -> tuple[RunRecord, SampleSource]:
    """Return a run, without its own energies unless ``joulewatch`` is named, and the series of some exporters.

    Raises:
        ConfigError: A name is not valid, or there is no Prometheus.
        QueryError: No Prometheus answers.
    """
    from joulewatch_harness.analysis.sources.history import History
    from joulewatch_harness.analysis.sources.known import known_sensors
    from joulewatch_harness.analysis.sources.mapping import OWN
    from joulewatch_harness.analysis.sources.opening import open_sources

    source = open_sources(names, options, record.header.exporters, known_sensors(record, History(source="")))
    return (record if OWN in names else record.without_exporters), source


def _find(run: str, output: Path, options: PrometheusOptions | None, fix: str) -> tuple[RunRecord, SampleSource | None]:
    from joulewatch_harness.analysis.sources.opening import open_source
    from joulewatch_harness.analysis.sources.recording import BrokenRecording
    from joulewatch_harness.storage.journal import JOURNAL_NAME, find_run, read_run
    from joulewatch_harness.storage.recording import RECORDING_NAME

    given = Path(run)
    if _is_recording(given):
        recording = _open_recording(given, options)
        try:
            return recording.run(""), recording
        except RecordError as error:
            recording.close()
            if not (given.parent / JOURNAL_NAME).is_file():
                raise
            return read_run(given.parent), BrokenRecording(given, error)
    try:
        folder = find_run(run, output)
    except RecordError as error:
        if given.exists():
            raise
        if options is None:
            raise QueryError(f"{error}; {fix} if it is stored there") from error
        source = open_source(prometheus=options)
        assert source is not None
        try:
            return source.run(run), source
        except BaseException:
            source.close()
            raise
    record = read_run(folder)
    recording_path = folder / RECORDING_NAME
    if recording_path.is_file():
        return record, _open_recording(recording_path, options)
    return record, open_source(prometheus=options)


def _open_recording(path: Path, options: PrometheusOptions | None) -> SampleSource:
    from joulewatch_harness.analysis.sources.opening import open_recording

    if options is not None:
        text = f"samples are read from {path}, not from {options.url}; move this file away to use Prometheus"
        print(text, file=sys.stderr)  # noqa: T201
    return open_recording(path)


def _is_recording(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
