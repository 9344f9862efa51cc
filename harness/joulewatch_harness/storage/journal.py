"""The journal of a run: one JSON line per record, written to disk before the record is used otherwise.

Everything else (Prometheus, the recording, results) can be restored from the journal.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import Final, Self

from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.errors import ConfigError, RecordError, StorageError
from joulewatch_harness.plan.network_names import name_networks
from joulewatch_harness.records import (
    SCHEMA_VERSION,
    Configuration,
    Line,
    Note,
    RunEnd,
    RunHeader,
    RunRecord,
    Setup,
    Window,
    decode_line,
    dump_line,
)

logger = logging.getLogger(__name__)

JOURNAL_NAME: Final = "journal.jsonl"


def new_run_id(now_s: float) -> str:
    """Return an id that sorts by time: ``20261121T013005Z-1f9c3a`` (UTC and 24 random bits)."""
    at = datetime.datetime.fromtimestamp(int(now_s), datetime.UTC)
    return f"{at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class Journal:
    """Append-only writer of a run's journal; each line is fsynced before ``append`` returns."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.folder = path.parent
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._size = 0
        self._synced = 0
        self._windows: set[int] = set()
        self._ends: set[tuple[str, str, str, int]] = set()

    @classmethod
    def create(cls, folder: Path, header: RunHeader) -> Journal:
        """Create ``folder``/<run id>/journal.jsonl with its first line.

        Raises:
            ConfigError: the folder cannot be created or written, or the run exists already.
            StorageError: the disk is full.
        """
        run_folder = folder / header.run
        path = run_folder / JOURNAL_NAME
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            problem = "exists already" if path.exists() else "is not a folder"
            raise ConfigError(f"{error.filename or path}: {problem}: choose another folder with --output") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{path}: {error.strerror}: free some space, or choose another --output") from error
            raise ConfigError(
                f"{run_folder}: cannot be written: {error.strerror}: choose another folder with --output"
            ) from error
        journal = cls(path, descriptor)
        try:
            journal.append(header)
            # The names of the file and of its folder are on disk only after a sync of their folders.
            for parent in (run_folder, folder):
                _sync_folder(parent)
        except BaseException:
            # Without its first line it is not a journal.
            journal.close()
            path.unlink(missing_ok=True)
            raise
        return journal

    def append(self, line: Line) -> None:
        """Write one line and fsync it.

        Raises:
            StorageError: the disk is full or broken (earlier lines are complete and stay readable).
            RecordError: the journal already has a window with this number, or one of the same series that ends in the
                same millisecond: Prometheus would store only one of the two.
        """
        self.write(line)
        self.sync()

    def write(self, line: Line) -> None:
        """Write one line. After ``sync`` it also survives a crash of the machine. Errors are those of ``append``."""
        if isinstance(line, Window):
            self._check(line)
        try:
            data = dump_line(line)
        except (TypeError, ValueError) as error:
            raise RecordError(f"{self.path}: {type(line).__name__} cannot be written as JSON: {error}") from error
        content = data.encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            try:
                _write_all(self._descriptor, content)
            except OSError as error:
                self._truncate(self._size)
                raise self._broken(error) from error
            self._size += len(content)
        if isinstance(line, Window):
            self._windows.add(line.index)
            self._ends.add(_identity(line))

    def sync(self) -> None:
        """Wait until all lines are on the disk; another thread may write meanwhile.

        Raises:
            StorageError: the disk is full or broken; the lines since the last sync are removed.
        """
        size = self._size
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            with self._lock:
                self._truncate(self._synced)
            raise self._broken(error) from error
        self._synced = size

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, window: Window) -> None:
        if window.index in self._windows:
            raise RecordError(f"{self.path}: already has a window {window.index}")
        if _identity(window) in self._ends:
            raise RecordError(
                f"{self.path}: window {window.index} ({window.kind}) ends in the same millisecond as another window of "
                "its kind and configuration: Prometheus cannot distinguish windows of 1 ms or less"
            )

    def _truncate(self, size: int) -> None:
        self._size = size
        try:
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)
        except OSError as error:
            # Readers ignore an incomplete last line.
            logger.warning("%s: an incomplete line could not be removed: %s", self.path, error.strerror)

    def _broken(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path}: the line could not be written: {error.strerror or error}; "
            "earlier lines are complete: free some space and continue"
        )


def _identity(window: Window) -> tuple[str, str, str, int]:
    return (window.configuration, window.kind, window.phase, to_ms(window.end_s))


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def journal_path(path: Path) -> Path:
    """Return the journal of a run, given its folder or the journal itself."""
    return path / JOURNAL_NAME if path.is_dir() else path


def read_run(path: Path) -> RunRecord:
    """Read a whole run.

    Args:
        path: The run's folder, or its journal.jsonl.

    Returns:
        The run; an incomplete last line (kill, full disk) is ignored with a warning.

    Raises:
        RecordError: the file is missing or is not a journal, or a line before the last is not valid.
    """
    file = journal_path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(f"{file}: no such journal: 'joulewatch runs' lists the stored runs") from error
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    rows = content.split(b"\n")
    torn = rows.pop()
    lines: list[Line] = []
    for number, row in enumerate(rows, 1):
        where = f"{file}:{number}"
        try:
            data = json.loads(row.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            if number == len(rows) and not torn:
                # After a power failure, a file system may have kept the length of a line and lost its content.
                torn = row
                break
            raise RecordError(f"{where}: is not valid JSON: {error}") from error
        lines.append(decode_line(data, where))
    if torn:
        logger.warning("%s: ignored an incomplete last line (%d bytes): the run was interrupted", file, len(torn))
    return run_from_lines(lines, str(file))


def run_from_lines(lines: list[Line], where: str) -> RunRecord:
    """Return the run of these lines, in order; of a configuration given twice, the last one counts.

    Raises:
        RecordError: the first line is not a header, or was written by a newer joulewatch.
    """
    if not lines or not isinstance(lines[0], RunHeader):
        raise RecordError(f"{where}: is not the journal of a run: the first line is not a header")
    header = lines[0]
    if header.schema > SCHEMA_VERSION:
        raise RecordError(
            f"{where}: was written by a newer joulewatch (schema {header.schema}, supported up to {SCHEMA_VERSION}): "
            "upgrade joulewatch"
        )
    configurations: dict[str, Configuration] = {}
    windows: list[Window] = []
    notes: list[Note] = []
    setups: list[Setup] = []
    end: RunEnd | None = None
    for line in lines[1:]:
        if isinstance(line, Configuration):
            configurations[line.name] = line
        elif isinstance(line, Window):
            windows.append(line)
        elif isinstance(line, Note):
            notes.append(line)
        elif isinstance(line, Setup):
            setups.append(line)
        elif isinstance(line, RunEnd):
            end = line
    return RunRecord(
        header=header,
        configurations=name_networks(tuple(configurations.values())),
        windows=tuple(windows),
        notes=tuple(notes),
        end=end,
        setups=tuple(setups),
    )


def list_runs(output: Path) -> dict[Path, RunRecord]:
    """Return all runs below ``output`` by their folder, oldest first; skip with a warning one that cannot be read.

    Raises:
        ConfigError: ``output`` exists but cannot be listed.
    """
    try:
        folders = _run_folders(output)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{output}: cannot be listed: {error.strerror}") from error
    runs = {}
    for folder in folders:
        try:
            runs[folder] = read_run(folder)
        except RecordError as error:
            logger.warning("%s", error)
    return dict(sorted(runs.items(), key=lambda entry: (entry[1].header.started_at_s, entry[1].header.run)))


def _run_folders(output: Path) -> list[Path]:
    """Return the folders below ``output`` that hold a journal, by name; one without permission gives a warning."""
    folders = []
    for folder in sorted(output.iterdir()):
        try:
            if (folder / JOURNAL_NAME).is_file():
                folders.append(folder)
        except OSError as error:
            logger.warning("%s: cannot be read: %s", folder, error.strerror)
    return folders


def _run_id(folder: Path) -> str:
    """Return the id in the header of a journal; empty if there is none."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            header = decode_line(json.loads(file.readline()), str(folder))
    except (OSError, ValueError, RecursionError, RecordError):
        return ""
    return header.run if isinstance(header, RunHeader) else ""


def find_run(run: str, output: Path) -> Path:
    """Return the folder of a run given by id, by the beginning of an id, by folder or by journal.

    A folder may have another name than the id of its run: a copy has.

    Raises:
        RecordError: No run matches, or several do; the text contains some of the ids. Or ``run`` cannot be read, is
            a folder without a journal, or is a file that is not a journal.
    """
    given = Path(run)
    try:
        if (given / JOURNAL_NAME).is_file():
            return given
        if given.is_file() and given.name == JOURNAL_NAME:
            return given.parent
    except OSError as error:
        raise RecordError(f"{run}: cannot be read: {error.strerror}") from error
    try:
        names = [folder.name for folder in _run_folders(output)]
    except OSError:
        names = []
    matching = [run] if run in names else [name for name in names if name.startswith(run)] if run else []
    if not matching and run:
        matching = [name for name in names if _run_id(output / name).startswith(run)]
    if len(matching) == 1:
        return output / matching[0]
    if matching:
        raise RecordError(f"{run!r} is ambiguous: {', '.join(matching[:5])}")
    if given.is_dir():
        raise RecordError(f"{run}: not the directory of a run: it contains no {JOURNAL_NAME}")
    if given.is_file():
        raise RecordError(f"{run}: not a journal: the name must be {JOURNAL_NAME}")
    known = f"the last runs are {', '.join(names[-3:])}" if names else "there are no runs"
    raise RecordError(f"unknown run {run!r} in {output}: {known}")
