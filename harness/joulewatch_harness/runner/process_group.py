"""Count everything that one configuration's process uses, also the children that it starts.

The process gets a new cgroup where that is possible, because the kernel then keeps the processor time of every
process in it, also of those that live for a few milliseconds or that detach themselves. Tried in this order:

* ``delegated``: a cgroup below the harness's own one, if this user may create one there: in a service with
  ``Delegate=yes``, in a user's own slice, in a container or a Slurm step with delegation, and for root.
* ``scope``: a transient scope of the user's systemd (``systemd-run --user --scope``), which removes it.
* ``process_tree``: no cgroup, no rights needed: the clocks of the process and of its descendants, and the times of
  their children that have ended. A descendant that detaches itself is then not counted.

Only version 2 of cgroups is used; every machine with version 1 alone has the process tree.

A delegated cgroup is removed when the process has ended, also if the harness is killed: a shell waits for the end of
its input, which the kernel closes with the harness, and removes the cgroup then.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from joulewatch_harness.runner.processor_time import PROC, tree_time_s

logger = logging.getLogger(__name__)

Kind = Literal["delegated", "scope", "process_tree"]
REMOVE_LIMIT_S: Final = 2.0
_ANSWER_LIMIT_S: Final = 5.0
_numbers: Final = itertools.count()
_REMOVE: Final = """
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    [ -d "$1" ] || exit 0
    echo 1 2>/dev/null >"$1/cgroup.kill"
    rmdir "$1" 2>/dev/null && exit 0
    sleep 0.1
done
"""
"""Shell commands that remove a cgroup after the end of input; its processes end with the harness, or are killed."""


class ProcessGroup:
    """The processes of one configuration: the harness's child and all that it starts.

    Args:
        proc: Mount point of procfs; for tests.
    """

    def __init__(self, *, proc: Path = PROC) -> None:
        self._proc = proc
        self._folder: Path | None = None
        self._stat: int | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self.kind: Kind = "process_tree"
        self.path = ""
        """Path of the cgroup below the mount point; empty: there is none."""

    def command_prefix(self) -> tuple[str, ...]:
        """Choose the kind, and return what the command of the process must begin with."""
        if self._folder is None and not self._delegate() and user_manager_answers():
            self.kind = "scope"
            return (*_SCOPE, f"--unit={_new_name()}", "--")
        return ()

    def add(self, pid: int) -> None:
        """Put a process that has just started into the cgroup."""
        self._pid = pid
        if self._folder is None:
            return
        try:
            (self._folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError as error:
            logger.info("%s: %s; the process tree is counted instead", self._folder, error.strerror)
            self.remove()

    def started(self) -> None:
        """Find the scope of the process, once it runs its own program."""
        if self.kind != "scope" or self._pid is None:
            return
        self._close()
        folder = cgroup_of(self._pid, self._proc)
        if folder is None or folder == cgroup_of(os.getpid(), self._proc) or not self._use(folder):
            self.kind = "process_tree"

    def time_s(self) -> float | None:
        """Return the processor time so far; None without a process."""
        if self._pid is None:
            return None
        if self._stat is None:
            return tree_time_s(self._pid, self._proc)
        try:
            return _usage_s(self._stat)
        except (OSError, ValueError):
            return None  # the scope has ended, with its process

    def ended(self) -> None:
        """Forget the process, which has ended."""
        self._pid = None

    def remove(self) -> None:
        """Remove the cgroup, and end what still runs in it; safe to call twice."""
        self._close()
        folder, self._folder, self.path, self.kind = self._folder, None, "", "process_tree"
        if folder is not None:
            deadline_s = time.monotonic() + REMOVE_LIMIT_S
            while not _removed(folder) and time.monotonic() < deadline_s:
                _kill(folder)
                time.sleep(0.01)
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            assert reaper.stdin is not None
            reaper.stdin.close()
            reaper.wait()

    def _delegate(self) -> bool:
        """Create a cgroup below the own one; return whether it can be used."""
        own = cgroup_of(os.getpid(), self._proc)
        if own is None:
            return False
        folder = own / _new_name()
        # A process is moved with the right to write to the cgroup.procs of the cgroup above both.
        if not os.access(own / "cgroup.procs", os.W_OK):
            return False
        try:
            folder.mkdir()
        except OSError:
            return False
        if not _takes_processes(folder) or not self._use(folder):
            _removed(folder)
            return False
        self._folder, self.kind = folder, "delegated"
        self._reaper = subprocess.Popen(
            ("/bin/sh", "-c", _REMOVE, "sh", str(folder)), stdin=subprocess.PIPE, start_new_session=True
        )
        return True

    def _use(self, folder: Path) -> bool:
        try:
            stat = os.open(folder / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            _usage_s(stat)
        except (OSError, ValueError):
            os.close(stat)
            return False
        self._stat, self.path = stat, path_of(folder, self._proc)
        return True

    def _close(self) -> None:
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None


_SCOPE: Final = ("systemd-run", "--user", "--scope", "--quiet", "--collect")


@functools.cache
def user_manager_answers() -> bool:
    """Return whether the user's systemd starts scopes."""
    if shutil.which("systemd-run") is None:
        return False
    try:
        done = subprocess.run(
            (*_SCOPE, "--", "true"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_ANSWER_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def cgroup_of(pid: int, proc: Path = PROC) -> Path | None:
    """Return the folder of a process's cgroup (version 2); None if there is none, or it is not mounted here."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for root, mount in _mounts(proc):
        # A container may mount a part of the tree; a path outside of it begins with /.. there.
        if path is not None and (path == root or path.startswith(f"{root.rstrip('/')}/")) and "/.." not in path:
            return mount / path[len(root) :].lstrip("/")
    return None


def path_of(folder: Path, proc: Path = PROC) -> str:
    """Return the path of a cgroup below its mount point."""
    return next(
        (f"/{folder.relative_to(mount)}" for _, mount in _mounts(proc) if folder.is_relative_to(mount)), str(folder)
    )


def _mounts(proc: Path) -> Iterator[tuple[str, Path]]:
    """Yield root and mount point of each mounted cgroup file system of version 2."""
    try:
        lines = (proc / "self" / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            root, mount = fields.split()[3:5]
            yield root, Path(mount.replace("\\040", " "))


def _usage_s(stat: int) -> float:
    """Return the processor time in an open ``cpu.stat``."""
    for line in os.pread(stat, 4096, 0).splitlines():
        name, _, value = line.partition(b" ")
        if name == b"usage_usec":
            return int(value) * 1e-6
    raise ValueError("cpu.stat has no usage_usec")


def _new_name() -> str:
    return f"joulewatch-{os.getpid()}-{next(_numbers)}"


def _takes_processes(folder: Path) -> bool:
    """Return whether a new cgroup is of the usual type; below a threaded one it is not."""
    try:
        return (folder / "cgroup.type").read_text(encoding="ascii").strip() == "domain"
    except OSError:
        return False


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill(folder: Path) -> None:
    """Kill the processes of a cgroup."""
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1", encoding="ascii")
        return
    with contextlib.suppress(OSError):  # Linux before 5.14
        for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
