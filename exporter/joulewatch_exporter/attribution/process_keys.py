"""Workloads of processes, for sources that know processes: GPUs. Keys and names are those of the source ``cgroups``."""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.attribution.cgroup_mounts import (
    Hierarchy,
    Version,
    current,
    folders,
    members,
    usable_hierarchies,
)
from joulewatch_exporter.attribution.model import ROOT, Workload
from joulewatch_exporter.attribution.names import Names
from joulewatch_exporter.attribution.privacy import NameOptions, Privacy, digest_key
from joulewatch_exporter.errors import SensorError
from joulewatch_exporter.model import Host

_USERS_NS: Final = 60 * 1_000_000_000
_ALL_USERS: Final = "user.slice"


class ProcessKeys:
    """Finds the workload of a process by its cgroup."""

    def __init__(self, host: Host, options: NameOptions) -> None:
        """Find the hierarchies of cgroups; if none can be read, keys are the paths that procfs shows.

        Args:
            host: Where sysfs and procfs are.
            options: Which workloads are shown, and how.
        """
        try:
            self._hierarchies = usable_hierarchies(host, "auto")
        except SensorError:
            self._hierarchies = ()
        self._procfs = str(host.procfs)
        self._names = Names(host)
        self._parts = options.depth == "container"
        self._privacy = Privacy(options, lambda: digest_key(os.environ, host))
        self._users_due_ns = 0
        self._containers: dict[str, str | None] = {}
        """Root of a hierarchy -> path of this container's namespace below it; None: it was not found."""

    def key(self, pid: int) -> str | None:
        """Return the innermost cgroup that is shown and has a process in it.

        Args:
            pid: As in ``host.procfs``.

        Returns:
            `ROOT` if its cgroup is not visible; None if the process does not exist.
        """
        text = _text(f"{self._procfs}/{pid}/cgroup")
        if not text:
            return None
        path = self._path(text)
        key = self._names.owner(path, parts=self._parts) if path else ROOT
        while key and self._privacy.has_patterns and not self._privacy.may_show(key, self._names.workload(key)):
            key = key.rpartition("/")[0]
        return key

    def workload(self, key: str) -> Workload:
        """Return the names of a cgroup, or digests of them."""
        if self._hierarchies and monotonic_ns() >= self._users_due_ns:
            self._users_due_ns = monotonic_ns() + _USERS_NS
            users = folders(f"{current(self._hierarchies).root}/{_ALL_USERS}")
            self._privacy.note(f"{_ALL_USERS}/{user}" for user in users)
        return self._privacy.shown(key, self._names.workload(key))

    def _path(self, text: str) -> str:
        """Return the path in ``/proc/PID/cgroup`` below the root of the current hierarchy; empty if it is not there."""
        if not self._hierarchies:
            path = (_shown_path(text, "v2").strip("/") or _shown_path(text, "v1").strip("/")).removesuffix(" (deleted)")
            return "" if path.startswith("..") else path
        hierarchy = current(self._hierarchies)
        shown = _shown_path(text, hierarchy.version).removesuffix(" (deleted)")
        if hierarchy.view.startswith("/.."):
            return self._from_namespace(shown, hierarchy)
        view = hierarchy.view.rstrip("/")
        path = shown[len(view) :].strip("/") if shown.startswith(f"{view}/") else ""
        return "" if path.startswith("..") else path

    def _from_namespace(self, shown: str, hierarchy: Hierarchy) -> str:
        """Return a path below the root from one that a namespace of cgroups shows: relative to this container's.

        The kernel writes ``..`` up to the first common cgroup, so the path of this container has to be known.
        """
        if hierarchy.root not in self._containers:
            own = next((key for key, pid in members(hierarchy.root, "") if pid == os.getpid()), None)
            inside = _shown_path(_text(f"{self._procfs}/self/cgroup"), hierarchy.version)
            self._containers[hierarchy.root] = None if own is None else f"/{own}".removesuffix(inside.rstrip("/"))
        container = self._containers[hierarchy.root]
        return "" if container is None else os.path.normpath(f"{container}/{shown}").strip("/")


def _shown_path(text: str, version: Version) -> str:
    """Return the path in ``/proc/PID/cgroup``; empty if it has no such hierarchy."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" if version == "v2" else "cpuacct" in controllers.split(","):
            return path
    return ""


def _text(path: str) -> str:
    """Return a file of procfs; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
