"""Processor time of processes, for machines whose cgroups cannot be read.

Processes of one session (login, daemon, container without cgroups) form a group, which is named after the command of
its leader: no process identifiers. A process that its parent has waited for is in the parent's ``cutime`` and
``cstime``, so that short-lived processes count in the group of their parent. What is lost: the last use of a process
whose parent ignores SIGCHLD, and of one that nobody waits for; it is in the total, and so ``system``.

Sources: proc_pid_stat(5), proc_stat(5); Linux ``include/linux/sched.h`` for PF_KTHREAD.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, NamedTuple, Self

from joulewatch_exporter.attribution.cgroup_mounts import usable_hierarchies
from joulewatch_exporter.attribution.model import ROOT, Usage, UsageScan, Weight, Workload
from joulewatch_exporter.collectors.base.proc_stat import TICKS_PER_SECOND, read_busy
from joulewatch_exporter.collectors.base.sysfs import sensor_error
from joulewatch_exporter.errors import SensorAbsentError, SensorError
from joulewatch_exporter.model import Component, Finding, Host
from joulewatch_exporter.text import label_text

_SHARED: Final = ""
_WEIGHTS: Final[dict[str, Weight]] = {_SHARED: "cpu_time"}
_STAT_BYTES: Final = 1024
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC
_KERNEL_THREAD: Final = 0x0020_0000
_INIT: Final = 1
_MOST_ANCESTORS: Final = 100


@dataclass(frozen=True, slots=True)
class ProcessesOptions:
    """Settings under ``attribution.sources.processes``: none."""


class Process(NamedTuple):
    """What ``/proc/PID/stat`` shows about one process."""

    pid: int
    command: str
    parent: int
    session: int
    is_kernel_thread: bool
    own_ticks: int
    """Of its threads."""
    children_ticks: int
    """Of the children that it has waited for, and those that they have."""
    started: int
    """Ticks since boot; a process identifier may be used again."""


@dataclass(slots=True)
class _Known:
    """A process of the last scan."""

    process: Process
    group: str


class ProcessesSource:
    """All processes that can be seen."""

    name: ClassVar[str] = "processes"
    components: ClassVar[tuple[Component, ...]] = ("cpu", "memory")
    Options: ClassVar[type] = ProcessesOptions

    def __init__(self, host: Host) -> None:
        """Read the processes once.

        Raises:
            SensorError: procfs cannot be read.
        """
        self._procfs = str(host.procfs)
        self._known: dict[int, _Known] = {}
        self._ticks: Counter[str] = Counter()
        self._scan()

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Read the processes once.

        Args:
            host: Where procfs is.
            options: `ProcessesOptions`.

        Raises:
            SensorAbsentError: procfs is missing, or cgroups can be read.
            SensorDeniedError: It cannot be read.
        """
        assert isinstance(options, ProcessesOptions)
        try:
            usable = usable_hierarchies(host, "auto")
        except SensorError:
            return cls(host)
        raise SensorAbsentError(f"{usable[0].root}: cgroups are read instead, which is more exact")

    @property
    def findings(self) -> Sequence[Finding]:
        """Return how many groups there are, and what is not seen."""
        text = (
            f"processes: {len(self._known)}, groups: {len(self._ticks)}; less exact than cgroups: the use of a process "
            "that nobody waits for counts as system"
        )
        return (Finding(status="found", collector=self.name, subject=f"{self._procfs}/PID/stat", text=text),)

    def read(self, keys: Collection[str]) -> UsageScan:
        """Read all processes: a group's use is the sum of theirs.

        Raises:
            SensorError: procfs cannot be read.
        """
        return self._scan()

    def survey(self) -> UsageScan:
        """Read all processes.

        Raises:
            SensorError: procfs cannot be read.
        """
        return self._scan()

    def workload(self, key: str) -> Workload:
        """Return the name of a group: the command of its leader."""
        return Workload(kind="other", workload=label_text(key))

    def close(self) -> None:
        """Forget the processes."""
        self._known.clear()

    def _scan(self) -> UsageScan:
        processes = {process.pid: process for process in self._processes() if not process.is_kernel_thread}
        read_at_ns = monotonic_ns()
        self._count(processes)
        ticks_of = sorted(self._ticks.items())
        usages = [Usage(group, ticks / TICKS_PER_SECOND, read_at_ns) for group, ticks in ticks_of]
        usages.append(Usage(ROOT, read_busy(f"{self._procfs}/stat")[0], monotonic_ns()))
        return UsageScan(usages={_SHARED: usages}, weights=_WEIGHTS)

    def _count(self, processes: Mapping[int, Process]) -> None:
        """Add what each group has used since the last scan."""
        # What a dead process had used when it was last seen comes again, in the times of the one that waited for it.
        again: Counter[int] = Counter()
        for pid, known in self._known.items():
            if not _is_same(known.process, processes.get(pid)):
                again[self._heir(known.process, processes)] += known.process.own_ticks + known.process.children_ticks
        groups: dict[int, str] = {}
        for pid in sorted(processes, reverse=True):  # init last: it waits for those whose parent is dead
            process = processes[pid]
            known_before = self._known.get(pid)
            was = known_before.process if known_before and _is_same(known_before.process, process) else None
            own = process.own_ticks - (was.own_ticks if was else 0)
            children = process.children_ticks - (was.children_ticks if was else 0) - again[pid]
            if children < 0:
                again[_INIT] -= children
            groups[pid] = self._group(process, processes)
            self._ticks[groups[pid]] += max(own, 0) + max(children, 0)
        self._known = {pid: _Known(process, groups[pid]) for pid, process in processes.items()}
        living = set(groups.values())
        self._ticks = Counter({group: ticks for group, ticks in self._ticks.items() if group in living})

    def _heir(self, dead: Process, processes: Mapping[int, Process]) -> int:
        """Return the nearest ancestor of a dead process that lives."""
        ancestor = self._known.get(dead.parent)
        for _ in range(_MOST_ANCESTORS):
            if ancestor is None:
                break
            if _is_same(ancestor.process, processes.get(ancestor.process.pid)):
                return ancestor.process.pid
            ancestor = self._known.get(ancestor.process.parent)
        return _INIT

    def _group(self, process: Process, processes: Mapping[int, Process]) -> str:
        """Return the command of the leader of a process's session.

        If the leader is dead or in another container: the group that the process was in, else that of its parent, else
        its own command.
        """
        leader = processes.get(process.session)
        if leader is not None:
            return leader.command
        known = self._known.get(process.pid)
        if known is not None and _is_same(known.process, process):
            return known.group
        parent = self._known.get(process.parent)
        return process.command if parent is None or process.parent == _INIT else parent.group

    def _processes(self) -> Iterator[Process]:
        """Yield all processes that can be seen.

        Raises:
            SensorError: procfs cannot be listed.
        """
        try:
            names = os.listdir(self._procfs)  # noqa: PTH208
        except OSError as error:
            raise sensor_error(self._procfs, error) from error
        for name in names:
            if name.isdecimal():
                try:
                    descriptor = os.open(f"{self._procfs}/{name}/stat", _FLAGS)
                    try:
                        data = os.read(descriptor, _STAT_BYTES)
                    finally:
                        os.close(descriptor)
                    yield _process(data)
                except (OSError, ValueError, IndexError):
                    pass  # it ended, or belongs to somebody whom procfs hides


def _is_same(before: Process, now: Process | None) -> bool:
    return now is not None and now.started == before.started


def _process(data: bytes) -> Process:
    """Parse ``/proc/PID/stat``; the command may have spaces and brackets in it.

    Raises:
        ValueError: The text has another form.
        IndexError: It is too short.
    """
    before, _, after = data.rpartition(b")")
    pid, _, command = before.partition(b" (")
    fields = after.split()
    return Process(
        pid=int(pid),
        command=command.decode("utf-8", "replace").replace("/", "_").strip() or "unknown",
        parent=int(fields[1]),
        session=int(fields[3]),
        is_kernel_thread=bool(int(fields[6]) & _KERNEL_THREAD),
        own_ticks=int(fields[11]) + int(fields[12]),
        children_ticks=int(fields[13]) + int(fields[14]),
        started=int(fields[19]),
    )
