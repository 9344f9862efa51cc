"""Files of an emulated tree, with every fault that a file of sysfs can have.

Each value is written to a file outside the tree and renamed into it, so readers see the old value or the new one, never
a part. Energy counters are written in place instead: in sysfs, a program that keeps a counter's file open reads new
values from it. The kernel itself produces the faults, so every program sees them: EIO comes from a link to
``/proc/self/mem``, whose first page is not mapped; a file that hangs is a FIFO without a writer, so opening it blocks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from joulewatch_exporter.emulator.faults import FILE_FAULTS, GARBAGE, Fault

_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_EIO: Final = "/proc/self/mem"
_DIGITS: Final = 20
"""Digits of the largest counter of 64 bits."""


class Writer:
    """Replaces files in a tree by rename; each thread has its own writer."""

    _numbers = itertools.count()

    def __init__(self, scratch: Path) -> None:
        """Create a writer.

        Args:
            scratch: An existing directory outside the tree, on the same file system; writers can share it.
        """
        # Each writer has its own temporary file, so threads do not mix their values.
        self._scratch = str(scratch / f"value-{next(self._numbers)}")

    def put(self, path: str, text: bytes, mode: int = 0o444) -> None:
        """Replace the file at ``path``; its directory must exist, else `FileNotFoundError`."""
        os.close(self.put_open(path, text, mode))

    def put_open(self, path: str, text: bytes, mode: int = 0o444) -> int:
        """Replace the file at ``path`` and return a descriptor that can write it; otherwise as `put`."""
        descriptor = os.open(self._scratch, _FILE_FLAGS, mode)
        try:
            os.write(descriptor, text)
            self._rename(path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def put_line(self, path: Path, value: object) -> None:
        """Write a line to ``path``; its directory is created if it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.put(str(path), f"{value}\n".encode())

    def put_eio(self, path: str) -> None:
        """Replace the file at ``path`` by one whose reads fail with EIO."""
        os.symlink(_EIO, self._scratch)  # noqa: PTH211 - as in the hot path below
        self._rename(path)

    def put_hanging(self, path: str) -> HangingFile:
        """Replace the file at ``path`` by one that blocks readers in ``open`` until it releases them."""
        os.mkfifo(self._scratch, 0o644)  # with 0o444, release() would fail unless the user is root
        hanging = HangingFile(self._scratch)
        try:
            self._rename(path)
        except OSError:
            hanging.close()
            raise
        return hanging

    def _rename(self, path: str) -> None:
        try:
            os.rename(self._scratch, path)  # noqa: PTH104 - a Path for each of a thousand values a second costs more
        except OSError:
            os.unlink(self._scratch)  # noqa: PTH108
            raise


def link(path: Path, target: Path) -> None:
    """Create a relative link; its directory is created if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


class HangingFile:
    """A FIFO in the tree that blocks its readers until they are released."""

    def __init__(self, path: str) -> None:
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = -1

    def release(self) -> None:
        """Release the blocked readers, who read nothing after ``close``; call it after the file was replaced."""
        # Through the open file, not the path: the path has a new file already, so no new reader can block.
        self._writer = os.open(f"/proc/self/fd/{self._reader}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the FIFO; safe to call twice."""
        for descriptor in (self._writer, self._reader):
            if descriptor >= 0:
                os.close(descriptor)
        self._writer = self._reader = -1


class MovingFile:
    """A file whose value changes, with its faults."""

    def __init__(
        self, writer: Writer, path: str, faults: Sequence[Fault], mode: int = 0o444, *, in_place: bool = False
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            writer: The writer of the thread that calls `show`.
            path: The file; its directory may be missing at times.
            faults: Faults of the device. Of those in `FILE_FAULTS`, the first that is on applies; others are ignored.
            mode: Permissions of the file while no fault is on.
            in_place: Whether numbers are written into the same file, padded with blanks, so readers can keep it open.
        """
        self._writer = writer
        self._path = path
        self._faults = tuple(fault for fault in faults if fault.kind in FILE_FAULTS)
        self._mode = mode
        self._in_place = in_place
        self._descriptor = -1
        self._shown: tuple[str, bytes, int] | None = None
        self._hanging: HangingFile | None = None
        self._released: HangingFile | None = None

    def show(self, value: int | bytes, t_s: float) -> None:
        """Write the value (a number, or the whole text), or what a fault shows instead."""
        if self._released is not None:
            # Only now, so that a reader that was about to open the file is released too.
            self._released.close()
            self._released = None
        if isinstance(value, int):
            # Always of the same length, so a shorter number leaves no digits of the longer one before it.
            value = b"%-*d\n" % (_DIGITS, value) if self._in_place else b"%d\n" % value
        content = self._content(value, t_s)
        if content is None or content == self._shown:
            return
        try:
            self._put(*content)
        except FileNotFoundError:
            return  # the directory has vanished for a while, which is another fault
        self._shown = content

    def close(self) -> None:
        """Release blocked readers and remove a file that hangs; safe to call twice."""
        if self._hanging is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108
            self._hanging.release()
        for hanging in (self._hanging, self._released):
            if hanging is not None:
                hanging.close()
        self._hanging = self._released = None
        self._close_descriptor()

    def _content(self, text: bytes, t_s: float) -> tuple[str, bytes, int] | None:
        """Return the kind, text and mode that the file has now; None: unchanged."""
        for fault in self._faults:
            if not fault.is_on(t_s):
                continue
            if fault.kind == "stuck":
                return None
            if fault.kind == "glitch":
                return ("text", ("garbage" if fault.text is None else fault.text).encode() + b"\n", self._mode)
            if fault.kind == "garbage":
                return ("text", b"%d\n" % GARBAGE, self._mode)
            if fault.kind == "denied":
                return ("text", text, 0)  # root can still read it
            return (fault.kind, b"", 0)
        return ("value", text, self._mode)

    def _put(self, kind: str, text: bytes, mode: int) -> None:
        # A file without a link was replaced while its directory had vanished.
        if kind == "value" and self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink:
            os.pwrite(self._descriptor, text, 0)
            return
        self._close_descriptor()
        hanging = None
        if kind == "absent":
            os.unlink(self._path)  # noqa: PTH108
        elif kind == "eio":
            self._writer.put_eio(self._path)
        elif kind == "hang":
            hanging = self._writer.put_hanging(self._path)
        elif kind == "value" and self._in_place:
            self._descriptor = self._writer.put_open(self._path, text, mode)
        else:
            self._writer.put(self._path, text, mode)
        if self._hanging is not None:
            self._hanging.release()
            self._released = self._hanging
        self._hanging = hanging

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class Vanishing:
    """The directory of a device and the links to it, which can vanish and return."""

    def __init__(
        self, writer: Writer, directory: Path, links: Sequence[Path], hidden: Path, faults: Sequence[Fault]
    ) -> None:
        """Prepare; the links must exist already.

        Args:
            writer: The writer of the thread that calls `advance`.
            directory: The directory of the device.
            links: Symbolic links into it.
            hidden: Path of the directory while it is gone: outside the tree, on the same file system, not existing yet.
            faults: Faults of the device; those of the kind vanish apply.
        """
        self._writer = writer
        self._directory = directory
        self._links = {link: os.readlink(link) for link in links}  # noqa: PTH115 - the text of the link as it is
        self._hidden = hidden
        self._faults = tuple(fault for fault in faults if fault.kind == "vanish")
        self._is_gone = False

    def advance(self, t_s: float) -> None:
        """Remove the directory or restore it."""
        is_gone = any(fault.is_on(t_s) for fault in self._faults)
        if is_gone == self._is_gone:
            return
        if is_gone:
            for link in self._links:
                link.unlink(missing_ok=True)
            self._directory.rename(self._hidden)
            self._disconnect_readers()
        else:
            self._hidden.rename(self._directory)
            for link, target in self._links.items():
                link.symlink_to(target)
        self._is_gone = is_gone

    def _disconnect_readers(self) -> None:
        """Replace each file by a copy: files that a reader has open then have no link, like ENODEV of a driver."""
        for path in self._hidden.rglob("*"):
            if path.is_file() and not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                path.chmod(mode | 0o400)  # a file with the fault denied is unreadable for the emulator, too
                self._writer.put(str(path), path.read_bytes(), mode)
