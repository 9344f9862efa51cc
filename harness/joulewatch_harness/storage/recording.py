"""The recording: scrapes and annotations of a run in one SQLite file, for runs without a Prometheus.

It uses write-ahead logging, with one transaction per scrape and per line: after a kill at any time the file opens and
has every committed scrape. After a regular end there is a single file.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from joulewatch_harness.clients.exporter import ExporterClient, Scrape, parse_key
from joulewatch_harness.errors import ConfigError, RecordError, StorageError, one_line
from joulewatch_harness.records import Line, RunHeader, RunRecord, decode_line, dump_line
from joulewatch_harness.storage.journal import run_from_lines

logger = logging.getLogger(__name__)

RECORDING_NAME: Final = "recording.sqlite"
RECORDING_VERSION: Final = 1
APPLICATION_ID: Final = 0x4A6F756C
"""``Joul``, in the header of the file: identifies a recording for ``file`` and joulewatch."""
KEPT_PREFIX: Final = "joulewatch_"
DEFAULT_RATE_HZ: Final = 10.0
NS: Final = 1_000_000_000
_FIRST_NS: Final = -(2**63)
_LAST_NS: Final = 2**63 - 1
_DAMAGES: Final = (sqlite3.Error, UnicodeDecodeError)
"""Errors of a damaged file. SQLite quotes a damaged schema in its error; Python fails if that is not UTF-8."""

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE exporter (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, url TEXT NOT NULL);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, exporter_id INTEGER NOT NULL REFERENCES exporter, metric TEXT NOT NULL,
    labels TEXT NOT NULL, UNIQUE (exporter_id, metric, labels)
);
CREATE TABLE scrape (
    id INTEGER PRIMARY KEY, exporter_id INTEGER NOT NULL REFERENCES exporter, started_ns INTEGER NOT NULL,
    duration_ns INTEGER NOT NULL, error TEXT
);
CREATE INDEX scrape_started ON scrape (exporter_id, started_ns);
CREATE TABLE sample (
    series_id INTEGER NOT NULL, scrape_id INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (series_id, scrape_id)
) WITHOUT ROWID;
CREATE TABLE line (id INTEGER PRIMARY KEY, json TEXT NOT NULL);
"""


class RecordingWriter:
    """Writes a recording; any thread may call any method.

    Raises:
        StorageError: by every method, if the disk is full or broken; what was written before stays complete.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._exporters: dict[str, int] = {}
        self._series: dict[tuple[int, str], int] = {}
        self._known_info: dict[int, set[str]] = {}

    @classmethod
    def create(cls, path: Path, header: RunHeader) -> RecordingWriter:
        """Create a recording whose first line is ``header``.

        Raises:
            ConfigError: the file exists already, or cannot be created.
            StorageError: the disk is full.
        """
        if path.exists():
            raise ConfigError(f"{path}: exists already: choose another folder with --output")
        try:
            connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot be created: {error}") from error
        writer = cls(path, connection)
        try:
            connection.execute("PRAGMA page_size = 8192")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {RECORDING_VERSION}")
            connection.execute("PRAGMA journal_mode = WAL")
            # A scrape does not wait for the disk: a kill loses no scrape, a power failure at most the last ones.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -4096")
            with writer._transaction():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES ('run', ?)", (header.run,))
            writer.add_line(header)
        except (sqlite3.Error, RecordError) as error:
            connection.close()
            path.unlink(missing_ok=True)
            if isinstance(error, RecordError):
                raise
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StorageError(f"{path}: {error}: free some space, or choose another --output") from error
            raise ConfigError(f"{path}: cannot be created: {error}: choose another folder with --output") from error
        return writer

    def add_scrape(self, exporter: ExporterClient, scrape: Scrape) -> None:
        """Store the ``joulewatch_*`` series of a scrape; those of ``*_info`` only if they are new."""
        with self._transaction():
            exporter_id = self._exporter_id(exporter)
            cursor = self._connection.execute(
                "INSERT INTO scrape (exporter_id, started_ns, duration_ns) VALUES (?, ?, ?)",
                (exporter_id, _ns(scrape.started_at_s), _ns(scrape.answered_at_s) - _ns(scrape.started_at_s)),
            )
            scrape_id = cursor.lastrowid
            known = self._known_info.get(exporter_id, set())
            info = set()
            rows = []
            for raw, value in scrape.samples:
                if not raw.startswith(KEPT_PREFIX) or value != value:
                    continue
                if raw.partition("{")[0].endswith("_info"):
                    info.add(raw)
                    if raw in known:
                        continue
                series_id = self._series.get((exporter_id, raw))
                if series_id is None:
                    series_id = self._series_id(exporter_id, raw)
                rows.append((series_id, scrape_id, value))
            self._connection.executemany("INSERT OR REPLACE INTO sample VALUES (?, ?, ?)", rows)
            # After a gap (see add_failure), or when a series reappears, its info is stored again.
            self._known_info[exporter_id] = info

    def add_series(
        self,
        exporter: str,
        metric: str,
        labels: Mapping[str, str],
        times_s: Sequence[float],
        values: Sequence[float],
    ) -> None:
        """Store a whole series, such as that of an imported log, in one transaction."""
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO exporter (name, url) VALUES (?, '')", (exporter,))
            row = self._connection.execute("SELECT id FROM exporter WHERE name = ?", (exporter,)).fetchone()
            exporter_id = int(row[0])
            text = json.dumps(dict(labels), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            series_id = self._connection.execute(
                "INSERT INTO series (exporter_id, metric, labels) VALUES (?, ?, ?)", (exporter_id, metric, text)
            ).lastrowid
            (last,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM scrape").fetchone()
            self._connection.executemany(
                "INSERT INTO scrape (id, exporter_id, started_ns, duration_ns) VALUES (?, ?, ?, 0)",
                ((number, exporter_id, _ns(time_s)) for number, time_s in enumerate(times_s, last + 1)),
            )
            self._connection.executemany(
                "INSERT INTO sample VALUES (?, ?, ?)",
                ((series_id, number, value) for number, value in enumerate(values, last + 1)),
            )

    def add_failure(self, exporter: ExporterClient, started_at_s: float, failed_at_s: float, error: str) -> None:
        """Store that a scrape failed, and why, so that gaps have a reason."""
        with self._transaction():
            exporter_id = self._exporter_id(exporter)
            self._connection.execute(
                "INSERT INTO scrape (exporter_id, started_ns, duration_ns, error) VALUES (?, ?, ?, ?)",
                (exporter_id, _ns(started_at_s), _ns(failed_at_s) - _ns(started_at_s), error),
            )
            self._known_info.pop(exporter_id, None)

    def add_line(self, line: Line) -> None:
        """Store a line of the journal; it is on disk when this returns."""
        try:
            text = dump_line(line)
        except (TypeError, ValueError) as error:
            raise RecordError(f"{self.path}: {type(line).__name__} cannot be written as JSON: {error}") from error
        with self._transaction(full=True):
            self._connection.execute("INSERT INTO line (json) VALUES (?)", (text,))

    def close(self) -> None:
        """Merge the write-ahead log into the file, so that a single file remains; safe to call twice."""
        with self._lock:
            try:
                self._connection.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.ProgrammingError:
                return  # closed already
            except sqlite3.Error as error:
                # A reader has the file open, or the disk is full: the log stays next to the file and is read with it.
                logger.info("%s: the write-ahead log could not be merged: %s", self.path, error)
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, *, full: bool = False) -> Iterator[None]:
        with self._lock:
            try:
                if full:
                    self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection_in_transaction():
                    self._connection.execute("ROLLBACK")
                    # The ids assigned in the transaction are not valid any more.
                    self._exporters.clear()
                    self._series.clear()
                    self._known_info.clear()
                if isinstance(error, sqlite3.Error):
                    raise StorageError(
                        f"{self.path}: cannot be written: {error}; what was written before is complete"
                    ) from error
                raise
            finally:
                if full and self._is_open():
                    self._connection.execute("PRAGMA synchronous = NORMAL")

    def _is_open(self) -> bool:
        try:
            self._connection.total_changes  # noqa: B018
        except sqlite3.ProgrammingError:
            return False
        return True

    def _connection_in_transaction(self) -> bool:
        return self._is_open() and self._connection.in_transaction

    def _exporter_id(self, exporter: ExporterClient) -> int:
        exporter_id = self._exporters.get(exporter.name)
        if exporter_id is None:
            self._connection.execute(
                "INSERT OR IGNORE INTO exporter (name, url) VALUES (?, ?)", (exporter.name, exporter.url)
            )
            row = self._connection.execute("SELECT id FROM exporter WHERE name = ?", (exporter.name,)).fetchone()
            exporter_id = self._exporters[exporter.name] = int(row[0])
        return exporter_id

    def _series_id(self, exporter_id: int, raw: str) -> int:
        try:
            metric, labels = parse_key(raw)
        except ValueError as error:
            raise RecordError(f"{self.path}: {error}") from error
        text = json.dumps(labels, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        key = (exporter_id, metric, text)
        self._connection.execute("INSERT OR IGNORE INTO series (exporter_id, metric, labels) VALUES (?, ?, ?)", key)
        row = self._connection.execute(
            "SELECT id FROM series WHERE exporter_id = ? AND metric = ? AND labels = ?", key
        ).fetchone()
        self._series[exporter_id, raw] = int(row[0])
        return int(row[0])


def _ns(at_s: float) -> int:
    return round(at_s * NS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSeries:
    """One series of a recording."""

    metric: str
    labels: Mapping[str, str]
    """The labels of the series, and ``instance``: the exporter's name."""
    scrape_times_s: list[float]
    """Unix seconds at which the scrapes started, ascending."""
    values: list[float]


@dataclass(frozen=True, slots=True)
class RecordedScrape:
    """One scrape, successful or not."""

    started_at_s: float
    duration_s: float
    error: str
    """Why it failed; empty if it succeeded."""


class Recording:
    """A recording opened for reading, also while it is being written; one thread at a time."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, copy: tempfile.TemporaryDirectory[str] | None
    ) -> None:
        self.path = path
        self._connection = connection
        self._copy = copy

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Open a recording, given the file or the folder of its run.

        Raises:
            RecordError: the file is missing, is not a recording, or was written by a newer joulewatch.
        """
        file = path / RECORDING_NAME if path.is_dir() else path
        if not file.is_file():
            raise RecordError(
                f"{file}: no such recording: 'joulewatch profile' makes one if it runs without a Prometheus"
            )
        copy: tempfile.TemporaryDirectory[str] | None = None
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(file, "mode=ro")
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                # An interrupted recording in a read-only folder: its write-ahead log must be read too.
                connection.close()
                copy, connection = _open_copy(file)
        except (*_DAMAGES, OSError) as error:
            if connection is not None:
                connection.close()
            raise RecordError(f"{file}: is not a recording: {one_line(str(error))}") from error
        recording = cls(file, connection, copy)
        try:
            recording._check()
        except BaseException:
            recording.close()
            raise
        return recording

    def _check(self) -> None:
        try:
            application = self._connection.execute("PRAGMA application_id").fetchone()[0]
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        except _DAMAGES as error:
            raise RecordError(f"{self.path}: is not a recording: {one_line(str(error))}") from error
        if application != APPLICATION_ID:
            raise RecordError(f"{self.path}: is not a recording of joulewatch")
        if version > RECORDING_VERSION:
            raise RecordError(
                f"{self.path}: was written by a newer joulewatch (version {version}, supported up to "
                f"{RECORDING_VERSION}): upgrade joulewatch"
            )

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> RunRecord:
        """Return the run, as in its journal.

        Raises:
            RecordError: the file is broken.
        """
        lines = []
        for number, text in self._rows("SELECT id, json FROM line ORDER BY id"):
            where = f"{self.path}: line {number}"
            try:
                lines.append(decode_line(json.loads(text), where))
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{where}: is not valid JSON: {error}") from error
        return run_from_lines(lines, str(self.path))

    def exporters(self) -> dict[str, str]:
        """Return name -> URL of every scraped exporter."""
        return dict(self._rows("SELECT name, url FROM exporter ORDER BY id"))

    def metrics(self) -> list[str]:
        """Return the names of all metrics, sorted."""
        return [row[0] for row in self._rows("SELECT DISTINCT metric FROM series ORDER BY metric")]

    def span(self) -> tuple[float, float] | None:
        """Return the Unix seconds of the first and the last successful scrape; None without any."""
        ((first, last),) = self._rows("SELECT min(started_ns), max(started_ns) FROM scrape WHERE error IS NULL")
        return None if first is None else (first / NS, last / NS)

    def series(
        self,
        metric: str,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        matchers: Mapping[str, str] | None = None,
    ) -> list[RecordedSeries]:
        """Return all series of a metric with samples in a span; raise the errors of ``iter_series``.

        Args:
            metric: The complete name.
            start_s, end_s: Unix seconds, both included; None: no limit.
            matchers: Labels (including ``instance``) that must have these values.
        """
        return list(self.iter_series(metric, start_s=start_s, end_s=end_s, matchers=matchers))

    def iter_series(
        self,
        metric: str,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        matchers: Mapping[str, str] | None = None,
    ) -> Iterator[RecordedSeries]:
        """Yield the series of ``series``, one after the other.

        Raises:
            RecordError: the file is broken.
        """
        first_ns = _FIRST_NS if start_s is None else _ns(start_s)
        last_ns = _LAST_NS if end_s is None else _ns(end_s)
        scrapes: dict[int, tuple[int, int] | None] = {}
        for series_id, exporter_id, labels in self._series_of(metric, matchers):
            if exporter_id not in scrapes:
                scrapes[exporter_id] = self._scrape_ids(exporter_id, first_ns, last_ns)
            ids = scrapes[exporter_id]
            if ids is None:
                continue
            # The range of ids makes SQLite read these samples only. The clock may step, so it is not sufficient.
            rows = self._rows(
                "SELECT started_ns, value FROM sample JOIN scrape ON scrape.id = scrape_id "
                "WHERE series_id = ? AND scrape_id BETWEEN ? AND ? AND started_ns BETWEEN ? AND ? ORDER BY started_ns",
                (series_id, *ids, first_ns, last_ns),
            )
            times_s: list[float] = []
            values: list[float] = []
            for started_ns, value in rows:
                times_s.append(started_ns / NS)
                values.append(value)
            if times_s:
                yield RecordedSeries(metric=metric, labels=labels, scrape_times_s=times_s, values=values)

    def extremes(self, metric: str, *, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """Return the lowest and highest value of each series in a span, or a little more if the clock stepped.

        Raises:
            RecordError: the file is broken.
        """
        found: list[tuple[float, ...]] = []
        for series_id, exporter_id, _ in self._series_of(metric, None):
            ids = self._scrape_ids(exporter_id, _ns(start_s), _ns(end_s))
            if ids is not None:
                found += self._rows(
                    "SELECT min(value), max(value) FROM sample WHERE series_id = ? AND scrape_id BETWEEN ? AND ? "
                    "HAVING count(*) > 0",
                    (series_id, *ids),
                )
        return [(lowest, highest) for lowest, highest in found]

    def newest(self, metric: str, *, end_s: float) -> list[RecordedSeries]:
        """Return the newest sample of each series until a time; raise the errors of ``iter_series``."""
        found = []
        last_ns = _ns(end_s)
        scrapes: dict[int, tuple[int, int] | None] = {}
        for series_id, exporter_id, labels in self._series_of(metric, None):
            if exporter_id not in scrapes:
                scrapes[exporter_id] = self._scrape_ids(exporter_id, _FIRST_NS, last_ns)
            rows = self._rows(
                "SELECT started_ns, value FROM sample JOIN scrape ON scrape.id = scrape_id "
                "WHERE series_id = ? AND scrape_id BETWEEN ? AND ? AND started_ns <= ? ORDER BY scrape_id DESC LIMIT 1",
                (series_id, *(scrapes[exporter_id] or (0, 0)), last_ns),
            )
            found += [
                RecordedSeries(metric=metric, labels=labels, scrape_times_s=[started_ns / NS], values=[value])
                for started_ns, value in rows
            ]
        return found

    def _series_of(self, metric: str, matchers: Mapping[str, str] | None) -> list[tuple[int, int, dict[str, str]]]:
        """Return id, exporter's id and labels of each series of a metric."""
        rows = self._rows(
            "SELECT series.id, exporter.id, name, labels FROM series JOIN exporter ON exporter.id = exporter_id "
            "WHERE metric = ? ORDER BY exporter.id, labels",
            (metric,),
        )
        series = [
            (series_id, exporter, {**json.loads(text), "instance": name}) for series_id, exporter, name, text in rows
        ]
        return [one for one in series if all(one[2].get(key, "") == value for key, value in (matchers or {}).items())]

    def _scrape_ids(self, exporter_id: int, first_ns: int, last_ns: int) -> tuple[int, int] | None:
        """Return the lowest and the highest id of an exporter's scrapes in a span; None without any."""
        ((lowest, highest),) = self._rows(
            "SELECT min(id), max(id) FROM scrape WHERE exporter_id = ? AND started_ns BETWEEN ? AND ?",
            (exporter_id, first_ns, last_ns),
        )
        return None if lowest is None else (lowest, highest)

    def scrapes(
        self, exporter: str, *, start_s: float | None = None, end_s: float | None = None
    ) -> list[RecordedScrape]:
        """Return all scrapes of an exporter, including failed ones, ascending in time.

        Raises:
            RecordError: the file is broken.
        """
        rows = self._rows(
            "SELECT started_ns, duration_ns, error FROM scrape JOIN exporter ON exporter.id = exporter_id "
            "WHERE name = ? AND started_ns BETWEEN ? AND ? ORDER BY started_ns",
            (
                exporter,
                -(2**63) if start_s is None else _ns(start_s),
                2**63 - 1 if end_s is None else _ns(end_s),
            ),
        )
        return [RecordedScrape(start / NS, duration / NS, error or "") for start, duration, error in rows]

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(statement, values)
        except _DAMAGES as error:
            raise RecordError(f"{self.path}: cannot be read: {one_line(str(error))}") from error


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?{mode}", uri=True, timeout=10.0, isolation_level=None)


def _open_copy(file: Path) -> tuple[tempfile.TemporaryDirectory[str] | None, sqlite3.Connection]:
    log = file.with_name(file.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:
        return None, _connect(file, "immutable=1")
    copy = tempfile.TemporaryDirectory(prefix="joulewatch-")
    for source in (file, log):
        shutil.copyfile(source, Path(copy.name) / source.name)
    return copy, _connect(Path(copy.name) / file.name, "mode=rw")
