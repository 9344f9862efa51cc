"""Find the hierarchy of cgroups that counts processor time: version 1 or 2, or both on a hybrid machine.

Sources: cgroups(7), proc_pid_mountinfo(5); Linux ``Documentation/admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/cpuacct.rst``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import Host

Version = Literal["v1", "v2"]

USAGE_FILES: Final = {"v1": "cpuacct.usage", "v2": "cpu.stat"}
_PROBES: Final = {"v1": "cpuacct.usage", "v2": "cgroup.controllers"}
"""Files at the root; ``cpu.stat`` is there since Linux 5.8."""
_MOUNTINFO_BYTES: Final = 1 << 20
_V1_FOLDERS: Final = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
_V2_FOLDERS: Final = ("", "unified")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted tree of cgroups."""

    version: Version
    root: str
    """Where it is mounted."""
    is_whole: bool
    """Whether its top is the machine's, and not that of a container."""
    other: Hierarchy | None = None
    """The other version, on a hybrid machine."""

    @property
    def usage_file(self) -> str:
        """Name of the file with the processor time."""
        return USAGE_FILES[self.version]


def find_hierarchy(host: Host, wanted: Literal["auto", "v1", "v2"]) -> Hierarchy:
    """Return the hierarchy to read.

    On a hybrid machine that is version 1: the controller of processors is there, and so are containers.

    Args:
        host: The machine; only mounts below ``host.sysfs`` are taken, or all if that is ``/sys``.
        wanted: ``auto``, or the version.

    Raises:
        SensorAbsentError: There is none; the text has the fix.
    """
    roots = {version: root for version, root in _roots(host).items() if wanted in ("auto", version)}
    if not roots:
        missing = {"auto": "cgroup hierarchy", "v1": "cgroup v1 with cpuacct", "v2": "cgroup2"}[wanted]
        raise SensorAbsentError(
            f"{host.sysfs}/fs/cgroup: no {missing} with processor time is mounted; run `mount -t cgroup2 none "
            f"{host.sysfs}/fs/cgroup`, or in a container mount the host's: `docker run -v /sys:/host/sys:ro IMAGE "
            "--path.sysfs=/host/sys`"
        )
    whole = {version: _is_whole(version, root) for version, root in roots.items()}
    version: Version = "v1" if "v1" in roots else "v2"
    chosen = Hierarchy(version=version, root=roots[version], is_whole=whole[version])
    if len(roots) == 2:
        other = Hierarchy(version="v2", root=roots["v2"], is_whole=whole["v2"])
        return dataclasses.replace(chosen, other=other)
    return chosen


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


def _is_whole(version: Version, root: str) -> bool:
    """Return whether the top of a hierarchy is the machine's own: it lacks or has certain files."""
    if version == "v2":
        return not os.path.exists(f"{root}/cgroup.events")  # noqa: PTH110
    return not os.path.exists(f"{root}/tasks") or os.path.exists(f"{root}/release_agent")  # noqa: PTH110


def _roots(host: Host) -> dict[Version, str]:
    """Return the root of each hierarchy that has processor time."""
    roots: dict[Version, str] = {}
    for version, root in (*_mounted(host), *_usual(host)):
        if version not in roots and Path(root, _PROBES[version]).is_file():
            roots[version] = root
    return roots


def _mounted(host: Host) -> list[tuple[Version, str]]:
    """Return the mounts of this process, those below ``host.sysfs`` first."""
    mounts: list[tuple[Version, str]] = []
    for line in _text(f"{host.procfs}/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        if kinds[0] == "cgroup2":
            mounts.append(("v2", point))
        elif kinds[0] == "cgroup" and "cpuacct" in kinds[2].split(","):
            mounts.append(("v1", point))
    sysfs = str(host.sysfs)
    below = [(version, point) for version, point in mounts if f"{point}/".startswith(f"{sysfs}/")]
    if sysfs == "/sys":
        return below + [mount for mount in mounts if mount not in below]
    # In a copy of a machine's files, mountinfo has the machine's own paths.
    return below + [(version, sysfs + point[4:]) for version, point in mounts if point.startswith("/sys/")]


def _usual(host: Host) -> list[tuple[Version, str]]:
    """Return where the hierarchies are on almost all machines, for when mountinfo does not have them."""
    top = f"{host.sysfs}/fs/cgroup"
    usual: list[tuple[Version, str]] = [("v2", f"{top}/{name}".rstrip("/")) for name in _V2_FOLDERS]
    usual.extend(("v1", f"{top}/{name}") for name in _V1_FOLDERS)
    return usual


def _text(path: str) -> str:
    """Return a file of procfs; empty if it cannot be read."""
    try:
        return Path(path).read_bytes()[:_MOUNTINFO_BYTES].decode("utf-8", "surrogateescape")
    except OSError:
        return ""
