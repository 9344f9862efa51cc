"""Files of an emulated tree: replaced by rename, with every fault that a file of sysfs can have.

Every value is written to a file beside the tree and renamed into it, so a reader sees the old value or the new one and
never a part. The faults are the kernel's own, for any program that reads the tree: EIO comes from a link to
``/proc/self/mem``, whose first page is not mapped; a file that hangs is a FIFO that nobody writes to, so that to open
it blocks.
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
_REFUSES: Final = "/proc/self/mem"


class Writer:
    """Puts files into a tree by rename; one thread's."""

    _numbers = itertools.count()

    def __init__(self, scratch: Path) -> None:
        """Take a directory on the tree's file system for what is not yet renamed.

        Args:
            scratch: An existing directory outside the tree; any number of writers can share it.
        """
        # A name of its own: two threads that write the same temporary file would mix their values.
        self._scratch = str(scratch / f"value-{next(self._numbers)}")

    def put(self, path: str, text: bytes, mode: int = 0o444) -> None:
        """Replace the file at ``path``; its directory must exist, else `FileNotFoundError`."""
        descriptor = os.open(self._scratch, _FILE_FLAGS, mode)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
        self._rename(path)

    def put_refusing(self, path: str) -> None:
        """Replace the file at ``path`` by one that gives EIO when read."""
        os.symlink(_REFUSES, self._scratch)  # noqa: PTH211 - as in the hot path below
        self._rename(path)

    def put_hanging(self, path: str) -> HangingFile:
        """Replace the file at ``path`` by one that blocks whoever opens it, until it is let go."""
        os.mkfifo(self._scratch, 0o644)  # 0o444 would stop let_go() where the user is not root
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


class HangingFile:
    """A FIFO in the tree, and the means to let go those who wait in it."""

    def __init__(self, path: str) -> None:
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = -1

    def let_go(self) -> None:
        """End the wait of those who opened it: they read nothing once it is closed. Put the file back before."""
        # By the held file, not by a path: another file is there already, so that nobody new comes to wait.
        self._writer = os.open(f"/proc/self/fd/{self._reader}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the FIFO; safe to call twice."""
        for descriptor in (self._writer, self._reader):
            if descriptor >= 0:
                os.close(descriptor)
        self._writer = self._reader = -1


class MovingFile:
    """One file that moves, with the faults that can befall it."""

    def __init__(self, writer: Writer, path: str, faults: Sequence[Fault], mode: int = 0o444) -> None:
        """Prepare; nothing is written yet.

        Args:
            writer: Of the thread that calls `show`.
            path: The file; its directory need not be there always.
            faults: Those of `FILE_FAULTS` count, the first that is on; the others are somebody else's.
            mode: Its rights while nothing is wrong.
        """
        self._writer = writer
        self._path = path
        self._faults = tuple(fault for fault in faults if fault.kind in FILE_FAULTS)
        self._mode = mode
        self._shown: tuple[str, bytes, int] | None = None
        self._hanging: HangingFile | None = None
        self._let_go: HangingFile | None = None

    def show(self, value: int | bytes, t_s: float) -> None:
        """Write the value (a number, or a whole text), or what a fault makes of it."""
        if self._let_go is not None:
            # One round later, so that whoever was just about to open it does not wait for ever.
            self._let_go.close()
            self._let_go = None
        want = self._wanted(b"%d\n" % value if isinstance(value, int) else value, t_s)
        if want is None or want == self._shown:
            return
        try:
            self._put(want)
        except FileNotFoundError:
            return  # its directory has vanished for a while: a fault too
        self._shown = want

    def close(self) -> None:
        """Let go of those who wait; a file that hangs is then gone. Safe to call twice."""
        if self._hanging is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108
            self._hanging.let_go()
        for hanging in (self._hanging, self._let_go):
            if hanging is not None:
                hanging.close()
        self._hanging = self._let_go = None

    def _wanted(self, text: bytes, t_s: float) -> tuple[str, bytes, int] | None:
        """Say what the file is to be now: its kind, text and mode; None: as it is."""
        for fault in self._faults:
            if not fault.is_on(t_s):
                continue
            if fault.kind == "stuck":
                return None
            if fault.kind == "glitch":
                return ("text", fault.text.encode() + b"\n", self._mode)
            if fault.kind == "garbage":
                return ("text", b"%d\n" % GARBAGE, self._mode)
            if fault.kind == "denied":
                return ("text", text, 0)  # keeps out whoever is not root: root reads on
            return (fault.kind, b"", 0)
        return ("text", text, self._mode)

    def _put(self, want: tuple[str, bytes, int]) -> None:
        kind, text, mode = want
        hanging = None
        if kind == "absent":
            os.unlink(self._path)  # noqa: PTH108
        elif kind == "eio":
            self._writer.put_refusing(self._path)
        elif kind == "hang":
            hanging = self._writer.put_hanging(self._path)
        else:
            self._writer.put(self._path, text, mode)
        if self._hanging is not None:
            self._hanging.let_go()
            self._let_go = self._hanging
        self._hanging = hanging


class Vanishing:
    """A device's directory and the links to it, which go and come back."""

    def __init__(
        self, writer: Writer, directory: Path, links: Sequence[Path], hidden: Path, faults: Sequence[Fault]
    ) -> None:
        """Prepare; the links must be there already.

        Args:
            writer: Of the thread that calls `advance`.
            directory: The device's.
            links: Symbolic links into it, from wherever.
            hidden: Where the directory lies meanwhile; outside the tree, on its file system, not yet there.
            faults: Those called vanish count.
        """
        self._writer = writer
        self._directory = directory
        self._links = {link: os.readlink(link) for link in links}  # noqa: PTH115 - the text of the link as it is
        self._hidden = hidden
        self._faults = tuple(fault for fault in faults if fault.kind == "vanish")
        self._is_gone = False

    def advance(self, t_s: float) -> None:
        """Take it away, or bring it back."""
        gone = any(fault.is_on(t_s) for fault in self._faults)
        if gone == self._is_gone:
            return
        if gone:
            for link in self._links:
                link.unlink(missing_ok=True)
            self._directory.rename(self._hidden)
            self._cut_off_readers()
        else:
            self._hidden.rename(self._directory)
            for link, target in self._links.items():
                link.symlink_to(target)
        self._is_gone = gone

    def _cut_off_readers(self) -> None:
        """Put a copy in each file's place: a held file has no link then, as a held file of a driver gives ENODEV."""
        for path in self._hidden.rglob("*"):
            if path.is_file() and not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                path.chmod(mode | 0o400)  # one that is denied just now, denied to us too
                self._writer.put(str(path), path.read_bytes(), mode)
