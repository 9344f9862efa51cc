"""Power that follows the workloads of this machine: real processes in real cgroups, each with known watts per core.

At every update of the files the counters of the cgroups are read, so nothing that a process used is missed, however
short it lived. A cgroup's own use is its counter minus those of the listed cgroups below it. What a listed cgroup used
between the last update and its removal is in the counter of its parent, and counts as the parent's. To know all energy
of cgroups that come and go, list the slice that they are in.

Sources: Linux ``Documentation/admin-guide/cgroup-v2.rst``, ``admin-guide/cgroup-v1/cpuacct.rst``.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from joulewatch_exporter.attribution.cgroup_mounts import USAGE_FILES, Hierarchy, Version, current, find_hierarchies
from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.signals import Signal, Sum
from joulewatch_exporter.errors import ConfigError, SensorError
from joulewatch_exporter.model import Host

TOP: Final = ""
"""The cgroup that contains all others, and the processes in none of the listed ones."""
_MEMORY_STEPS: Final = 6000
_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class WorkloadPower:
    """What a workload draws while it runs."""

    watts_per_core: float

    def __post_init__(self) -> None:
        check_range("watts_per_core", self.watts_per_core, 0.0)


class _Step(NamedTuple):
    """Active energy between two updates."""

    start_s: float
    start_joules: float
    end_s: float
    end_joules: float


class WorkloadLoad:
    """Idle power, plus the watts per core of each workload times the cores that it uses.

    Only the running emulator knows it: the truth file has the whole past, this object the last `_MEMORY_STEPS` updates
    (for devices that average), and the future is unknown.
    """

    is_deterministic = False

    def __init__(
        self, *, idle_watts: float, workloads: Mapping[str, WorkloadPower], other_watts_per_core: float, cgroup: str
    ) -> None:
        """Start without load.

        Args:
            idle_watts: Power without load.
            workloads: Path of each cgroup, relative to ``cgroup``.
            other_watts_per_core: Of processes in none of them.
            cgroup: Path of the folder that counts as the whole machine; empty: the hierarchy of this machine.
        """
        self.idle_watts = idle_watts
        self.cgroup = cgroup
        self.watts_per_core = {path: power.watts_per_core for path, power in workloads.items()}
        self.watts_per_core[TOP] = other_watts_per_core
        self.joules = dict.fromkeys(self.watts_per_core, 0.0)
        """Active energy of each workload so far; `TOP`: of the other processes."""
        self.busy_s = 0.0
        """Processor time of all of them so far."""
        self._steps: deque[_Step] = deque([_Step(0.0, 0.0, 0.0, 0.0)], maxlen=_MEMORY_STEPS)
        """Append only: threads of devices may be reading."""

    def follow(self, t_s: float, seconds: Mapping[str, float]) -> None:
        """Add an update: until ``t_s``, the workloads have used these seconds."""
        for path, watts in self.watts_per_core.items():
            # Counters that are read one after the other can differ by a microsecond; energy never falls.
            self.joules[path] = max(self.joules[path], watts * seconds[path])
        self.busy_s = max(self.busy_s, sum(seconds.values()))
        last = self._steps[-1]
        self._steps.append(_Step(last.end_s, last.end_joules, t_s, sum(self.joules.values())))

    def power_watts(self, t_s: float) -> float:
        step = self._step(t_s)
        width_s = step.end_s - step.start_s
        return self.idle_watts + ((step.end_joules - step.start_joules) / width_s if width_s > 0 else 0.0)

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return self._since_start(end_s) - (self._since_start(start_s) if start_s else 0.0)

    def _since_start(self, t_s: float) -> float:
        step = self._step(t_s)
        # What the workloads use after the last update is not known yet.
        share = (t_s - step.start_s) / (step.end_s - step.start_s) if t_s < step.end_s else 1.0
        return self.idle_watts * t_s + step.start_joules + share * (step.end_joules - step.start_joules)

    def _step(self, t_s: float) -> _Step:
        last = self._steps[-1]
        if t_s >= last.start_s:
            return last
        for step in reversed(self._steps.copy()):
            if t_s >= step.start_s:
                return step
        raise ValueError(f"a signal that follows workloads remembers only the last {_MEMORY_STEPS} updates")


def workload_joules(signal: Signal) -> dict[str, float]:
    """Return the active energy of each workload so far, also for a sum that contains such a signal."""
    if isinstance(signal, WorkloadLoad):
        return signal.joules
    totals: dict[str, float] = {}
    if isinstance(signal, Sum):
        for term, factor in zip(signal.terms, signal.factors, strict=True):
            for path, joules in workload_joules(term).items():
                totals[path] = totals.get(path, 0.0) + factor * joules
    return totals


class _Counter:
    """Processor time of one cgroup, over all its lives."""

    def __init__(self, path: Path, version: Version) -> None:
        self._path = path / USAGE_FILES[version]
        self._descriptor = -1
        self._last = 0.0
        self._seconds = 0.0
        self.seconds()
        self._seconds = 0.0  # what it used before the start does not count

    def seconds(self) -> float:
        """Return the seconds since the start; those of a removed cgroup stay.

        Raises:
            ConfigError: The file must not be read, or is not one of a cgroup.
        """
        for _ in range(2):
            if self._descriptor < 0:
                try:
                    self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                except PermissionError as error:
                    # Counted as 0, the truth would be wrong.
                    raise ConfigError(
                        f"workload_load: {self._path}: {error.strerror}: run the emulator as a user that may read it"
                    ) from error
                except OSError:
                    break  # it does not exist
                self._last = 0.0
            try:
                data = os.pread(self._descriptor, _BYTES, 0)
            except OSError:
                self.close()  # it was removed; there may be another one of the same name
                continue
            try:
                now = _parse(data)
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f"workload_load: {self._path}: is not a processor time of the kernel: {data[:40]!r}; set cgroup to "
                    "the folder of a cgroup"
                ) from error
            self._seconds += max(now - self._last, 0.0)
            self._last = now
            break
        return self._seconds

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _parse(data: bytes) -> float:
    """Return the seconds in a usage file.

    Of ``cpu.stat`` user plus system: at the top of the hierarchy, ``usage_usec`` also has stolen time in it.
    """
    if not data.startswith(b"usage_usec"):
        return int(data) / 1e9
    values = dict(line.split() for line in data.splitlines()[:3])
    return (int(values[b"user_usec"]) + int(values[b"system_usec"])) / 1e6


class WorkloadMeter:
    """Reads the processor time of the cgroups of one signal."""

    def __init__(self, top: Hierarchy, paths: Iterable[str]) -> None:
        """Take the first sample.

        Args:
            top: The cgroup that counts as the whole machine.
            paths: Cgroups below it, which may come and go.

        Raises:
            ConfigError: A file of a cgroup cannot be read.
        """
        below = sorted((path for path in paths if path != TOP), key=lambda path: (-path.count("/"), path))
        # Children before their parents, so that a child never shows more than its parent.
        self._counters = {path: _Counter(Path(top.root, path), top.version) for path in (*below, TOP)}
        self._parents = {path: _parent(path, self._counters) for path in below}

    def read(self) -> dict[str, float]:
        """Return the seconds of each cgroup since the start, without those of the listed ones below it."""
        totals = {path: counter.seconds() for path, counter in self._counters.items()}
        own = totals.copy()
        for path, parent in self._parents.items():
            own[parent] -= totals[path]
        return own

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for counter in self._counters.values():
            counter.close()


def _parent(path: str, paths: Mapping[str, object]) -> str:
    """Return the nearest path above, or `TOP`."""
    while path:
        path = path.rpartition("/")[0]
        if path in paths:
            return path
    return TOP


def find_top(loads: Iterable[WorkloadLoad]) -> Hierarchy:
    """Return the cgroup that is the whole machine for the given signals.

    Raises:
        ConfigError: They do not have the same one, or it has no processor time.
    """
    (cgroup, *others) = dict.fromkeys(load.cgroup for load in loads)
    if others:
        raise ConfigError("all signals of kind workload_load must have the same cgroup")
    if not cgroup:
        try:
            return current(find_hierarchies(Host(), "auto"))
        except SensorError as error:
            raise ConfigError(f"workload_load: {error}") from error
    versions: tuple[Version, ...] = ("v1", "v2")
    for version in versions:
        if Path(cgroup, USAGE_FILES[version]).is_file():
            return Hierarchy(version=version, root=str(Path(cgroup).absolute()))
    raise ConfigError(
        f"workload_load: cgroup: {cgroup}: is not a cgroup with {' or '.join(USAGE_FILES.values())}; give the "
        "folder of one, or '' for all cgroups of this machine"
    )


def link_top(sysfs: Path, top: Hierarchy) -> None:
    """Show the real cgroups in an emulated machine, where the exporter reads those of a real one."""
    link = sysfs / "fs/cgroup" / ("cpuacct" if top.version == "v1" else "")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(top.root)
