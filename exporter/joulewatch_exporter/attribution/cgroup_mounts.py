"""Find the hierarchy of cgroups that counts processor time: version 1 or 2, or both on a hybrid machine.

Sources: cgroups(7), proc_pid_mountinfo(5); Linux ``Documentation/admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/cpuacct.rst``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.collectors.base.sysfs import mounts
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError
from joulewatch_exporter.model import Host

Version = Literal["v1", "v2"]

USAGE_FILES: Final = {"v1": "cpuacct.usage", "v2": "cpu.stat"}
_PROBES: Final = {"v1": "cpuacct.usage", "v2": "cgroup.controllers"}
"""Files at the root; ``cpu.stat`` is there since Linux 5.8."""
_V1_FOLDERS: Final = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
_V2_FOLDERS: Final = ("", "unified")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted tree of cgroups."""

    version: Version
    root: str
    """Where it is mounted."""
    is_whole: bool = True
    """Whether its top is the machine's, and not that of a container."""
    view: str = "/"
    """Path of its top in ``/proc/PID/cgroup``, as this process sees it."""

    @property
    def usage_file(self) -> str:
        """Name of the file with the processor time."""
        return USAGE_FILES[self.version]


def find_hierarchies(host: Host, wanted: Literal["auto", "v1", "v2"]) -> tuple[Hierarchy, ...]:
    """Return the hierarchies that count processor time: one, or both versions on a hybrid machine.

    Args:
        host: The machine; only mounts below ``host.sysfs`` are taken, or all if that is ``/sys``.
        wanted: ``auto``, or the version.

    Raises:
        SensorAbsentError: No hierarchy is mounted; the text has the fix.
    """
    known: dict[Version, Hierarchy] = {}
    for version, root, view in (*_mounted(host), *_usual(host)):
        if wanted in ("auto", version) and version not in known and Path(root, _PROBES[version]).is_file():
            known[version] = Hierarchy(version=version, root=root, is_whole=_is_whole(version, root), view=view)
    if not known:
        missing = {"auto": "cgroup hierarchy", "v1": "cgroup v1 with cpuacct", "v2": "cgroup2"}[wanted]
        raise SensorAbsentError(
            f"{host.sysfs}/fs/cgroup: no {missing} with processor time is mounted; run `mount -t cgroup2 none "
            f"{host.sysfs}/fs/cgroup`, or in a container mount the host's: `docker run -v /sys:/host/sys:ro IMAGE "
            "--path.sysfs=/host/sys`"
        )
    return tuple(known[version] for version in sorted(known))


def usable_hierarchies(host: Host, wanted: Literal["auto", "v1", "v2"]) -> tuple[Hierarchy, ...]:
    """Return the hierarchies that have more than the cgroup of this container.

    Raises:
        SensorAbsentError: See `find_hierarchies`.
        SensorDeniedError: Only the cgroup of this container is visible, and there are none below it.
    """
    known = find_hierarchies(host, wanted)
    usable = tuple(hierarchy for hierarchy in known if hierarchy.is_whole or has_folders(hierarchy.root))
    if not usable:
        raise SensorDeniedError(
            f"{known[0].root}: only the cgroup of this container is visible. Mount the host's and read it there: "
            "`docker run --pid=host -v /sys:/host/sys:ro -v /proc:/host/proc:ro IMAGE --path.sysfs=/host/sys "
            "--path.procfs=/host/proc`; Kubernetes: hostPath volumes of /sys and /proc"
        )
    return usable


def current(hierarchies: Sequence[Hierarchy]) -> Hierarchy:
    """Return the hierarchy to read now.

    On a hybrid machine that is version 1, which has the controller of processors, and so containers and jobs; but
    version 2 while only that has cgroups.
    """
    return next((hierarchy for hierarchy in hierarchies if has_folders(hierarchy.root)), hierarchies[0])


def has_folders(path: str) -> bool:
    """Return whether a folder has folders in it."""
    try:
        return os.stat(path).st_nlink > 2 or bool(folders(path))  # noqa: PTH116 - strings are faster
    except OSError:
        return False


def folders(path: str) -> list[str]:
    """Return the folders in a folder, sorted; empty if it is gone."""
    try:
        # The kernel counts the folders in a cgroup as its links: two if it has none.
        if os.stat(path).st_nlink == 2:  # noqa: PTH116 - strings are faster
            return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def members(root: str, key: str) -> Iterator[tuple[str, int]]:
    """Yield the path and process identifier of each process in a cgroup and in those below it.

    Args:
        root: Where the hierarchy is mounted.
        key: Path of the cgroup; empty: the root.
    """
    waiting = [key]
    while waiting:
        folder = waiting.pop()
        path = f"{root}/{folder}"
        try:
            with open(f"{path}/cgroup.procs", "rb") as file:
                pids = [int(line) for line in file.read().split()]
        except (OSError, ValueError):
            pids = []
        yield from ((folder, pid) for pid in pids if pid > 0)  # 0: of another namespace
        waiting.extend(f"{folder}/{name}".lstrip("/") for name in folders(path))


def _is_whole(version: Version, root: str) -> bool:
    """Return whether the top of a hierarchy is the machine's own: it lacks or has certain files."""
    if version == "v2":
        return not os.path.exists(f"{root}/cgroup.events")  # noqa: PTH110
    return not os.path.exists(f"{root}/tasks") or os.path.exists(f"{root}/release_agent")  # noqa: PTH110


def _mounted(host: Host) -> list[tuple[Version, str, str]]:
    """Return version, root and view of the mounts of this process, those below ``host.sysfs`` first."""
    found: list[tuple[Version, str, str]] = []
    for mount in mounts(host.procfs):
        if mount.kind == "cgroup2":
            found.append(("v2", mount.point, mount.view))
        elif mount.kind == "cgroup" and "cpuacct" in mount.options:
            found.append(("v1", mount.point, mount.view))
    sysfs = str(host.sysfs)
    below = [mount for mount in found if f"{mount[1]}/".startswith(f"{sysfs}/")]
    if sysfs == "/sys":
        return below + [mount for mount in found if mount not in below]
    # In a copy of a machine's files, mountinfo has the machine's own paths.
    return below + [(version, sysfs + point[4:], view) for version, point, view in found if point.startswith("/sys/")]


def _usual(host: Host) -> list[tuple[Version, str, str]]:
    """Return where the hierarchies are on almost all machines, for when mountinfo does not have them."""
    top = f"{host.sysfs}/fs/cgroup"
    usual: list[tuple[Version, str, str]] = [("v2", f"{top}/{name}".rstrip("/"), "/") for name in _V2_FOLDERS]
    usual.extend(("v1", f"{top}/{name}", "/") for name in _V1_FOLDERS)
    return usual
