"""Linux inotify: report which folders below watched folders came or went. Standard library only.

cgroupfs reports new and removed cgroups (v1 and v2, since Linux 4.7). One read of the descriptor answers whether
anything changed, so that a scan needs no walk of the tree.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

_CREATE: Final = 0x100
_DELETE: Final = 0x200
_MOVED: Final = 0x40 | 0x80
_ONLY_FOLDERS: Final = 0x0100_0000
_MASK: Final = _CREATE | _DELETE | _MOVED | _ONLY_FOLDERS
_OVERFLOW: Final = 0x4000
_WATCH_ENDED: Final = 0x8000
_IS_FOLDER: Final = 0x4000_0000
_APPEARED: Final = _CREATE | 0x80
_HEADER: Final = struct.Struct("iIII")
_READ_BYTES: Final = 1 << 16


class Change(NamedTuple):
    """One folder that came or went."""

    folder: str
    """The watched folder, as given to `Watcher.watch`."""
    name: str
    appeared: bool


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Watcher:
    """A set of watched folders."""

    def __init__(self) -> None:
        """Open the descriptor.

        Raises:
            OSError: The kernel refuses: too many instances (EMFILE), a seccomp filter (EPERM), no inotify (ENOSYS).
        """
        try:
            function = _libc().inotify_init1
        except (AttributeError, OSError) as error:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
        self._descriptor = _checked(function(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, str] = {}
        self._watches: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of watched folders."""
        return len(self._watches)

    def __contains__(self, folder: str) -> bool:
        """Return whether a folder is watched."""
        return folder in self._watches

    def watch(self, folder: str) -> None:
        """Watch a folder; watching it twice does nothing.

        Raises:
            OSError: The folder is gone, or the user has too many watches (ENOSPC).
        """
        if folder not in self._watches:
            watch = _checked(_libc().inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK))
            self._folders[watch] = folder
            self._watches[folder] = watch

    def changes(self) -> Sequence[Change] | None:
        """Return the changes since the last call, oldest first; None if the kernel dropped some.

        Raises:
            OSError: The descriptor cannot be read.
        """
        changes: list[Change] = []
        is_complete = True
        while True:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                return changes if is_complete else None
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size
                name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
                offset += length
                if mask & _OVERFLOW:
                    is_complete = False
                elif mask & _WATCH_ENDED:
                    self._watches.pop(self._folders.pop(watch, ""), None)
                elif mask & _IS_FOLDER and watch in self._folders:
                    changes.append(Change(self._folders[watch], name, bool(mask & _APPEARED)))

    def close(self) -> None:
        """Close the descriptor, which ends all watches; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        self._folders.clear()
        self._watches.clear()
        if descriptor >= 0:
            os.close(descriptor)
