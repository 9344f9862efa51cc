"""Read a whole file up to a limit, because a device such as /dev/zero has no end; the error of a failed write."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Final

from joulewatch_harness.errors import ConfigError, JoulewatchError, StorageError

MOST_BYTES: Final = 16 << 20
"""Longest file that people write, such as a plan."""
MOST_DATA_BYTES: Final = 1 << 28
"""Longest file that programs write, such as a result, a model file or a table."""
MOST_LOG_BYTES: Final = 1 << 30
"""Longest log of a meter: a day of samples at 200 Hz."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the contents of a file.

    Raises:
        OSError: It cannot be read, or is longer than ``most`` bytes.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"longer than {most >> 20} MiB")
    return data


def read_text(path: Path, most: int = MOST_BYTES, *, encoding: str = "utf-8") -> str:
    r"""Return the contents of a text file; ``\r\n`` is read as ``\n``.

    Raises:
        OSError: It cannot be read, or is longer than ``most`` bytes.
        UnicodeDecodeError: It is not text.
    """
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, most)), encoding).read()


def write_error(text: str, error: OSError, other: type[JoulewatchError] = ConfigError) -> JoulewatchError:
    """Return the error of a file that cannot be written: `StorageError` if the disk is full, else ``other``."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (StorageError if is_full else other)(text)
