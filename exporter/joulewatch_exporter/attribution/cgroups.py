"""Processor time of cgroups: workloads of systemd, Slurm, Kubernetes, container engines and hypervisors.

The kernel keeps what dead children used in their parent's counter, so short-lived processes and containers are never
lost. The files of shown cgroups stay open: 500 reads take 0.5 to 1.7 ms. A removed cgroup's open file answers ENODEV.

The total of the machine is, with version 1, the counter of the root. With version 2 it is ``user_usec`` plus
``system_usec`` of the root: its ``usage_usec`` has stolen time in it, and before Linux 6.1 the time of guests twice. A
container that sees only its own cgroup shares by ``/proc/stat``: what others used is ``system``.

Sources: Linux ``Documentation/admin-guide/cgroup-v2.rst``, ``kernel/cgroup/rstat.c``,
``admin-guide/cgroup-v1/cpuacct.rst``; proc_stat(5).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.attribution.cgroup_mounts import Hierarchy, current, usable_hierarchies
from joulewatch_exporter.attribution.cgroup_tree import MOST_NODES, CgroupTree
from joulewatch_exporter.attribution.model import ROOT, Usage, UsageScan, Weight, Workload
from joulewatch_exporter.attribution.names import Names
from joulewatch_exporter.attribution.privacy import KEY_NAME, NameOptions, Privacy, digest_key
from joulewatch_exporter.attribution.reservations import DEFAULT_WEIGHTS, WEIGHT_FILES, reserved_shares
from joulewatch_exporter.collectors.base.proc_stat import read_busy
from joulewatch_exporter.collectors.base.sysfs import sensor_error
from joulewatch_exporter.errors import SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Host
from joulewatch_exporter.text import count_of

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_BYTES: Final = 256
_SHARED: Final = ""
"""The device of usage that all processors share."""
_WEIGHTS: Final[dict[str, Weight]] = {_SHARED: "cpu_time"}
_MOST_OPEN: Final = 1024
"""Files that are kept open, or a quarter of what the process may open if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupsOptions(NameOptions):
    """Settings under ``attribution.sources.cgroups``."""

    hierarchy: Literal["auto", "v1", "v2"] = "auto"
    """Which version of cgroups is read on a machine that has both."""


class CgroupsSource:
    """The cgroups of one hierarchy."""

    name: ClassVar[str] = "cgroups"
    components: ClassVar[tuple[Component, ...]] = ("cpu", "memory")
    Options: ClassVar[type] = CgroupsOptions

    def __init__(self, host: Host, hierarchies: Sequence[Hierarchy], options: CgroupsOptions) -> None:
        """Walk the tree and read the total once.

        Args:
            host: Where procfs and the files of managers are.
            hierarchies: What to read; see `cgroup_mounts.current`.
            options: Settings.

        Raises:
            SensorError: The total cannot be read.
        """
        self._hierarchies = tuple(hierarchies)
        self._options = options
        self._stat_path = f"{host.procfs}/stat"
        self._names = Names(host, lambda key: self._tree.members(key), lambda key: key in self._tree.nodes)
        self._privacy = Privacy(options, lambda: digest_key(os.environ, host))
        self._root = -1
        self._total_offset = 0.0
        self._open: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._wanted: Collection[str] = ()
        self._order: list[str] = []
        self._order_tops: tuple[str, ...] = ()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = min(_MOST_OPEN, soft // 4) if soft > 0 else _MOST_OPEN
        self._use(current(self._hierarchies))
        self._privacy.note(self._tree.nodes)
        self._total()

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the hierarchies.

        Args:
            host: Where sysfs and procfs are.
            options: `CgroupsOptions`.

        Raises:
            SensorAbsentError: No hierarchy with processor time is mounted.
            SensorDeniedError: Only the cgroup of this container is visible, and there are none below it.
        """
        assert isinstance(options, CgroupsOptions)
        return cls(host, usable_hierarchies(host, options.hierarchy), options)

    @property
    def findings(self) -> Sequence[Finding]:
        """Return which hierarchy is read, the managers in it, and what limits it."""
        hierarchy, tree = self._hierarchy, self._tree
        text = f"cgroup {hierarchy.version}, {count_of(len(tree.nodes), 'cgroup')}"
        for other in self._hierarchies:
            if other is not hierarchy:
                text += f"; not read: cgroup {other.version} at {other.root}"
        if not hierarchy.is_whole:
            text += "; only those in this container are visible: what others used counts as system"
        if self._privacy.hashes:
            text += "; digests stand for names (attribution.workload_names)"
        findings = [Finding(status="found", collector=self.name, subject=hierarchy.root, text=text)]
        findings.extend(self._names.findings(self.name, sorted(tree.nodes)))
        if tree.refused:
            findings.append(
                Finding(
                    status="skipped",
                    collector=self.name,
                    subject="inotify",
                    text=f"{tree.refused}: the tree of cgroups is read each time that workloads are searched instead",
                    cure="sudo sysctl fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=65536",
                )
            )
        if missing_folder := self._privacy.missing_folder:
            findings.append(
                Finding(
                    status="skipped",
                    collector=self.name,
                    subject=f"{missing_folder}/{KEY_NAME}",
                    text="no secret key: users of this machine can compute the digest of a name that they know",
                    cure="StateDirectory=joulewatch in the exporter's systemd unit",
                )
            )
        if tree.is_full:
            findings.append(
                Finding(
                    status="skipped",
                    collector=self.name,
                    subject=hierarchy.root,
                    text=f"more than {MOST_NODES} cgroups: the others count as part of their parents",
                )
            )
        return findings

    def read(self, keys: Collection[str]) -> UsageScan:
        """Read the root, the cgroups directly below it and the given ones; open files stay open.

        Raises:
            SensorError: The total cannot be read.
        """
        self._switch()
        self._tree.take_changes()
        if keys != self._wanted or self._tree.tops is not self._order_tops:
            self._wanted, self._order_tops = frozenset(keys), self._tree.tops
            self._order = _children_first({*keys, *self._tree.tops})
            for key in self._open.keys() - self._order:
                os.close(self._open.pop(key))
        return self._scan(self._order, self._read_open)

    def survey(self) -> UsageScan:
        """Read all living cgroups, but for children of workloads; files of those that are not shown are closed again.

        Raises:
            SensorError: The total cannot be read.
        """
        self._switch()
        self._tree.refresh()
        nodes: Collection[str] = self._tree.nodes
        self._privacy.note(nodes)
        self._last = {key: seconds for key, seconds in self._last.items() if key in nodes}
        if self._privacy.has_patterns:
            nodes = [key for key in nodes if self._privacy.may_show(key, self._names.workload(key))]
        return self._scan(_children_first(nodes), self._read_once)

    def reserved(self) -> dict[str, float]:
        """Return the share of the processors that each living cgroup has by its weight.

        Empty in a container, and where no cgroup has a weight: the controller of processors is not used.
        """
        if not self._hierarchy.is_whole:
            return {}
        version = self._hierarchy.version
        file, default = WEIGHT_FILES[version], DEFAULT_WEIGHTS[version]

        weights: dict[str, float] = {}
        for key in self._tree.nodes:
            try:
                descriptor = os.open(f"{self._prefix}{key}/{file}", _FLAGS)
                try:
                    weights[key] = float(os.pread(descriptor, _BYTES, 0))
                finally:
                    os.close(descriptor)
            except (OSError, ValueError):
                continue
        return reserved_shares(self._tree.nodes, lambda key: weights.get(key, default)) if weights else {}

    def workload(self, key: str) -> Workload:
        """Return the names of a cgroup, or digests of them."""
        return self._privacy.shown(key, self._names.workload(key))

    def close(self) -> None:
        """Close all files; safe to call twice."""
        self._tree.close()
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        self._wanted, self._order, self._order_tops = (), [], ()
        self._last.clear()

    def _use(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._prefix = f"{hierarchy.root}/"
        self._file = hierarchy.usage_file
        self._tree = CgroupTree(hierarchy.root, self._names, depth=self._options.depth)

    def _switch(self) -> None:
        """On a hybrid machine, read the other hierarchy if it is now the current one."""
        if len(self._hierarchies) == 1 or (hierarchy := current(self._hierarchies)) is self._hierarchy:
            return
        total = self._total()
        self.close()
        self._use(hierarchy)
        # The two count the processor time of the machine in different ways; the total must not fall.
        self._total_offset += total - self._total()

    def _scan(self, keys: Iterable[str], read: Callable[[str], float | None]) -> UsageScan:
        usages: list[Usage] = []
        for key in keys:
            seconds = read(key)
            if seconds is not None:
                usages.append(Usage(key, seconds, monotonic_ns()))
        usages.append(Usage(ROOT, self._total(), monotonic_ns()))
        return UsageScan(usages={_SHARED: usages}, weights=_WEIGHTS)

    def _read_open(self, key: str) -> float | None:
        """Return the seconds of a cgroup, whose file stays open; None if it is gone or was replaced."""
        descriptor = self._open.get(key)
        if descriptor is None:
            try:
                descriptor = os.open(f"{self._prefix}{key}/{self._file}", _FLAGS)
            except OSError:
                return None
            # Only the kernel's files have no size. Another one does not fail when it is removed: it is never kept.
            if len(self._open) >= self._most_open or os.fstat(descriptor).st_size:
                os.close(descriptor)
                return self._read_once(key)
            self._open[key] = descriptor
        try:
            return _seconds(os.pread(descriptor, _BYTES, 0))
        except (OSError, ValueError, IndexError):
            os.close(self._open.pop(key))
            return None

    def _read_once(self, key: str) -> float | None:
        """Return the seconds of a cgroup; None if it is gone, or if it was replaced by another of the same path."""
        if key in self._open:
            return self._read_open(key)
        try:
            descriptor = os.open(f"{self._prefix}{key}/{self._file}", _FLAGS)
            try:
                seconds = _seconds(os.pread(descriptor, _BYTES, 0))
            finally:
                os.close(descriptor)
        except (OSError, ValueError, IndexError):
            return None
        last, self._last[key] = self._last.get(key, 0.0), seconds
        return None if seconds < last else seconds

    def _total(self) -> float:
        """Return the busy seconds of the machine.

        Raises:
            SensorError: They cannot be read.
        """
        path = f"{self._prefix}{self._file}"
        try:
            if not self._hierarchy.is_whole:
                return self._total_offset + read_busy(self._stat_path)[0]
            if self._root < 0:
                self._root = os.open(path, _FLAGS)
            return self._total_offset + _whole_seconds(os.pread(self._root, _BYTES, 0))
        except FileNotFoundError:
            return self._total_offset + read_busy(self._stat_path)[0]  # version 2 before Linux 5.8
        except OSError as error:
            raise sensor_error(path, error) from error
        except (ValueError, LookupError) as error:
            raise SensorGlitchError(f"{path}: has no processor time") from error


def _children_first(keys: Iterable[str]) -> list[str]:
    """Return paths so that a child is read before its parent: else it could show more than its parent has."""
    return sorted(keys, key=lambda key: (-key.count("/"), key))


def _seconds(data: bytes) -> float:
    """Return the seconds in a usage file: ``cpu.stat`` begins with ``usage_usec``, ``cpuacct.usage`` is nanoseconds."""
    if data.startswith(b"usage_usec"):
        return int(data[10 : data.index(b"\n")]) / 1e6
    return int(data) / 1e9


def _whole_seconds(data: bytes) -> float:
    """Return the seconds in the usage file of the machine, without stolen time."""
    if not data.startswith(b"usage_usec"):
        return int(data) / 1e9
    values = dict(line.split() for line in data.splitlines()[:3])
    return (int(values[b"user_usec"]) + int(values[b"system_usec"])) / 1e6
