"""Cgroups for tests: real ones, made and removed below a mounted hierarchy, and trees of plain files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.cgroup_mounts import Hierarchy, Version, find_hierarchies
from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Host

USAGE_FILES = {"v1": "cpuacct.usage", "v2": "cpu.stat"}
REMOVE_LIMIT_S = 10.0
_numbers = itertools.count()

BURN = """
import sys, time
end = float(sys.argv[1])
while time.process_time() < end:
    pass
"""


class RealTree:
    """A part of a real hierarchy that tests treat as the whole."""

    def __init__(self, version: Version, root: Path) -> None:
        self.version: Version = version
        self.root = root

    @property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy(version=self.version, root=str(self.root))

    def make(self, *keys: str) -> None:
        for key in keys:
            (self.root / key).mkdir(parents=True, exist_ok=True)

    def remove(self, key: str) -> None:
        (self.root / key).rmdir()

    def burn(self, key: str, seconds: float) -> None:
        """Use processor time in a cgroup, in a process that has ended when this returns."""
        procs = self.root / key / "cgroup.procs"
        command = f'echo $$ > "{procs}" && exec "{sys.executable}" -S -c "$0" {seconds}'
        subprocess.run(["/bin/sh", "-c", command, BURN], check=True)

    def seconds(self, key: str) -> float:
        text = (self.root / key / USAGE_FILES[self.version]).read_text()
        return int(text) / 1e9 if self.version == "v1" else int(text.split()[1]) / 1e6


@contextlib.contextmanager
def real_tree(version: Version) -> Iterator[RealTree]:
    """Make a cgroup and remove it with all below it; skip where that is not possible."""
    try:
        (mounted,) = find_hierarchies(Host(), version)
    except SensorAbsentError as error:
        pytest.skip(str(error))
    root = Path(mounted.root, f"joulewatch-test-{os.getpid()}-{next(_numbers)}")
    try:
        root.mkdir()
    except OSError as error:
        pytest.skip(f"cannot create cgroups: {error}")
    try:
        yield RealTree(version, root)
    finally:
        for folder, _, _ in os.walk(root, topdown=False):
            _remove(Path(folder))


def _remove(folder: Path) -> None:
    """Remove a cgroup once its last processes have ended; those that are ending are not listed any more."""
    end_s = time.monotonic() + REMOVE_LIMIT_S
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return


def make_cgroup2(host: Host) -> None:
    """Make the least that shows a machine to have cgroups of version 2, for tests that need paths only."""
    top = host.sysfs / "fs/cgroup"
    top.mkdir(parents=True)
    (top / "cgroup.controllers").write_text("cpu memory\n")


def _replace(path: Path, text: str) -> None:
    """Write a new file for each state: readers never see half of one, and an emulator's file may be read-only."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


class FakeTree:
    """A machine whose cgroups are folders with plain files, in the kernel's layout."""

    def __init__(self, root: Path, version: Version = "v2", *, listed: bool = True) -> None:
        self.host = Host(sysfs=root / "sys", procfs=root / "proc", dev=root / "dev", nodename="test")
        self.version = version
        self.root = root
        folder = "sys/fs/cgroup" if version == "v2" else "sys/fs/cgroup/cpu,cpuacct"
        self.top = root / folder
        (root / "proc/self").mkdir(parents=True)
        options = ("cgroup2 cgroup2", "rw") if version == "v2" else ("cgroup cgroup", "rw,cpu,cpuacct")
        line = f"32 31 0:29 / /{folder} rw,relatime shared:9 - {options[0]} {options[1]}\n" if listed else ""
        (root / "proc/self/mountinfo").write_text(f"25 1 0:23 / / rw - ext4 /dev/sda rw\n{line}")
        self.stat(0.0)
        self.use("", 0.0)
        if version == "v2":
            (self.top / "cgroup.controllers").write_text("cpu memory\n")

    def stat(self, seconds: float) -> None:
        """Write the busy time of the machine to procfs."""
        text = f"cpu  {round(seconds * 100)} 0 0 100 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n"
        _replace(self.root / "proc/stat", text)

    def use(self, key: str, seconds: float) -> None:
        """Make a cgroup that has used this much."""
        folder = self.top / key
        folder.mkdir(parents=True, exist_ok=True)
        usec = round(seconds * 1e6)
        text = f"{usec * 1000}\n" if self.version == "v1" else f"usage_usec {usec}\nuser_usec {usec}\nsystem_usec 0\n"
        _replace(folder / USAGE_FILES[self.version], text)

    def write(self, path: str, text: str) -> Path:
        """Write a file of the machine, such as ``var/lib/docker/...``."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file
