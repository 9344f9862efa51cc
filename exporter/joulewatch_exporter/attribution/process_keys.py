"""Which cgroup of the tree a process belongs to, for sources that know processes: GPUs."""

from __future__ import annotations

from typing import Literal

from joulewatch_exporter.attribution.cgroup_mounts import current, usable_hierarchies
from joulewatch_exporter.attribution.cgroup_tree import Depth
from joulewatch_exporter.attribution.model import ROOT
from joulewatch_exporter.attribution.names import Names
from joulewatch_exporter.model import Host


class ProcessKeys:
    """Keys of processes, equal to those of `CgroupsSource` with the same options."""

    def __init__(self, host: Host, hierarchy: Literal["auto", "v1", "v2"] = "auto", depth: Depth = "workload") -> None:
        """Find the hierarchies.

        Raises:
            SensorError: See `usable_hierarchies`.
        """
        self._hierarchies = usable_hierarchies(host, hierarchy)
        self._procfs = str(host.procfs)
        self._names = Names(host)
        self._parts = depth == "container"

    def key(self, pid: int) -> str:
        """Return the innermost cgroup that is read and has a process in it; `ROOT` if none has.

        Args:
            pid: As in ``host.procfs``.
        """
        hierarchy = current(self._hierarchies)
        try:
            with open(f"{self._procfs}/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                rows = [line.rstrip("\n").split(":", 2) for line in file]
        except OSError:
            return ROOT
        for row in rows:
            is_wanted = row[0] == "0" if hierarchy.version == "v2" else "cpuacct" in row[1].split(",")
            if len(row) == 3 and is_wanted:
                view = hierarchy.view.rstrip("/")
                path = row[2].removesuffix(" (deleted)")
                if path == view or path.startswith(f"{view}/"):
                    return self._names.owner(path[len(view) :].strip("/"), parts=self._parts)
        return ROOT
