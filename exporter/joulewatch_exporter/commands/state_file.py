"""The file of ``--once --state FILE``: locked during a call, and replaced in one step, so that no crash damages it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from joulewatch_exporter.config import strict
from joulewatch_exporter.errors import ConfigError, ExporterError
from joulewatch_exporter.sampling.saved import FORMAT, SavedState

LOCK_S: Final = 30.0
"""Longest wait for another call; the first answer of a BMC takes seconds."""
_MOST_BYTES: Final = 1 << 28
"""Longest state file that is read: a million quantities."""
_LOCK_PAUSE_S: Final = 0.05
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
"""Of the kernel whose monotonic clock this process reads, so not below ``--path.procfs``."""


def boot_id() -> str:
    """Return the id of this boot; empty if the kernel does not show it."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one call at a time use the file; others wait.

    Raises:
        ConfigError: The folder does not exist or is not writable.
        ExporterError: Another call holds the lock for too long.
    """
    try:
        # A separate file, because the state file is replaced while it is locked.
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"--state {path}: {error.strerror}") from error
    try:
        end_s = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end_s:
                    raise ExporterError(f"--state {path}: another call has been using it for {LOCK_S:g} s") from None
                time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def load(path: Path) -> SavedState | None:
    """Read the file; None: it does not exist, so counters start at 0.

    A file that cannot be used is an error and stays as it is: it may be somebody's other file, and counters that
    silently started at 0 again would look like a restart.

    Raises:
        ConfigError: It cannot be read, is not a state file, or has another format.
    """
    where = f"--state {path}"
    try:
        data = json.loads(strict.read_bytes(path, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or "joulewatch_state" not in data:
        raise ConfigError(f"{where}: not a state file of joulewatch-exporter; choose another path, or remove the file")
    if data["joulewatch_state"] != FORMAT:
        given = repr(data["joulewatch_state"])[:60]
        raise ConfigError(
            f"{where}: has format {given}, and this version reads {FORMAT}; remove the file, and counters start at 0"
        )
    try:
        return strict.build(SavedState, data, where)
    except ConfigError as error:
        raise ConfigError(f"{error}; the file is damaged: remove it, and counters start at 0") from error


def store(path: Path, state: SavedState) -> None:
    """Replace the file in one step; its mode follows the umask.

    Raises:
        ExporterError: It cannot be written; the old file is unchanged.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(dataclasses.asdict(state), file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the new name survives a power failure
        finally:
            os.close(folder)
    except OSError as error:
        raise ExporterError(f"--state {path}: cannot be written: {error.strerror or error}") from error
