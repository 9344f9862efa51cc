"""Processor time of the machine and of the run itself, for the audit: was the machine quiet?

*Busy* is all time in which a processor was not idle: processors x time - (idle + iowait) of ``/proc/stat``. The idle
time is used rather than the sum of user, nice, system, irq, softirq and steal, because a kernel without ticks on idle
processors (all common ones) measures idle time exactly, while it charges the others by sampling at each tick. So
interrupts count as busy, waiting for a disk does not, and guests of a hypervisor, which Linux counts twice (in guest
and in user), count once. Steal counts as busy: other guests of the same hardware used that time.

*Own* is the time of this process and all its descendants, with all their threads: the networks' processes and an
exporter that local mode started. It is read from the clock of each process, which counts nanoseconds. Every network in
its own process is read separately (``ProcessGroup``).

*Services* are what the run uses on this machine without having started it: an exporter, a Prometheus server.

*System* is the time that belongs to no program: kernel threads, interrupts, and steal. Interrupts and steal are
those of ``/proc/stat``: some kernels sample them, and some count them in the interrupted program as well.

``/proc/stat`` rounds idle and iowait down to 10 ms each. A difference of two readings is therefore off by up to 20 ms,
summed over all processors: 1 % of a second on two processors. The audit allows for it.

``/proc/stat`` is the view of the kernel. In a container it is the whole host's, which is the machine that the sensors
measure, unless the container hides it (lxcfs). In a virtual machine it is that of the guest: other guests show only
as steal. The load of GPUs and of other machines does not show at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from joulewatch_harness.records import ProcessorTime

PROC: Final = Path("/proc")
_COLUMNS: Final = 8
"""user, nice, system, idle, iowait, irq, softirq, steal; the guest columns after them are part of user and nice."""
_IDLE, _IOWAIT = 3, 4
_NOT_PROGRAMS: Final = slice(5, 8)
"""irq, softirq, steal"""
_KERNEL_THREADS: Final = 2
"""The process that is the parent of all kernel threads; not visible in a container."""
EXPORTERS: Final = ("joulewatch-exporter", "joulewatch_exporter")
SERVERS: Final = ("prometheus", "pushgateway")
"""Names of the programs or scripts of services."""
_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_LEAST_COUNTED: Final = 0.5
"""A kernel that counts less than this share of the time does not count (gVisor shows zeros)."""
_SCHEDULER_CLOCK: Final = 2
"""``CPUCLOCK_SCHED``: the last three bits of the id of a process's clock, see clock_getcpuclockid(3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorReading:
    """Processor times up to one moment, in seconds, summed over all processors."""

    at_ns: int
    """Monotonic time of the reading."""
    idle_s: float
    counted_s: float
    """Idle and busy together, as the kernel counts them."""
    own_s: float
    processors: int
    networks_s: Mapping[str, float] = field(default_factory=dict)
    """Configuration -> by its processes."""
    services_s: float = 0.0
    system_s: float = 0.0


class MeasuredNetwork(Protocol):
    """A network whose processes are counted."""

    @property
    def pid(self) -> int | None: ...

    def cpu_time_s(self) -> float | None: ...


class ProcessorSource(Protocol):
    """Reads the processor times; None if the system has none."""

    def read(self) -> ProcessorReading | None: ...


class ProcessorClock:
    """Reads ``/proc/stat`` and the clocks of processes; takes well under a millisecond.

    Args:
        proc: Mount point of procfs; for tests.
        pid: The harness; for tests.
        networks: Configuration -> its network, if that runs in a separate process.
        in_process: The configurations, if their networks are in the harness's process. The one that is measured then
            has all its time, that of the recording of scrapes included.
        exporter: Process id of an exporter that the run started.
        services: Names of the programs on this machine that the run uses and did not start.
    """

    def __init__(
        self,
        proc: Path = PROC,
        pid: int | None = None,
        *,
        networks: Mapping[str, MeasuredNetwork] | None = None,
        in_process: Collection[str] = (),
        exporter: int | None = None,
        services: Collection[str] = (),
    ) -> None:
        self._proc = proc
        self._pid = os.getpid() if pid is None else pid
        self._networks = dict(networks or {})
        self._in_process = in_process
        self._exporter = exporter
        # Without the lists of children (CONFIG_PROC_CHILDREN), the time of the run is not known.
        self._lists_children = (proc / str(self._pid) / "task" / str(self._pid) / "children").exists()
        own = set(descendants(self._pid, proc))
        self._services = tuple(pid for pid in _processes_of(services, proc) if pid not in own)
        self._kernel = _read(proc / str(_KERNEL_THREADS) / "comm").strip() == "kthreadd"

    def read(self) -> ProcessorReading | None:
        """Return the times up to now; None where ``/proc`` is missing or has another format."""
        if not self._lists_children:
            return None
        try:
            networks_s = {
                name: seconds for name, one in self._networks.items() if (seconds := one.cpu_time_s()) is not None
            }
            workers = {one.pid for one in self._networks.values() if one.pid is not None}
            harness_s = tree_time_s(self._pid, self._proc, without=workers)
            if self._in_process:
                exporter_s = 0.0 if self._exporter is None else tree_time_s(self._exporter, self._proc)
                networks_s = dict.fromkeys(self._in_process, harness_s - exporter_s)
            own_s = harness_s + (0.0 if self._in_process else sum(networks_s.values()))
            services_s = sum(process_time_s(pid) or 0.0 for pid in self._services)
            kernel_s = self._kernel_threads_s()
            text = (self._proc / "stat").read_text(encoding="ascii")
            at_ns = time.monotonic_ns()
            lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
            total, *processors = lines
            columns = [int(field) * _TICK_S for field in total[1 : 1 + _COLUMNS]]
            idle_s = columns[_IDLE] + columns[_IOWAIT]
        except (OSError, ValueError, IndexError):
            return None
        return ProcessorReading(
            at_ns=at_ns,
            idle_s=idle_s,
            counted_s=sum(columns),
            own_s=own_s,
            processors=len(processors),
            networks_s=networks_s,
            services_s=services_s,
            system_s=kernel_s + sum(columns[_NOT_PROGRAMS]),
        )

    def _kernel_threads_s(self) -> float:
        if not self._kernel:
            return 0.0
        parent = str(_KERNEL_THREADS)
        children = _read(self._proc / parent / "task" / parent / "children").split()
        return sum(process_time_s(int(pid)) or 0.0 for pid in children)


def _read(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processes_of(programs: Collection[str], proc: Path) -> Iterator[int]:
    """Yield the processes of some programs or scripts."""
    for entry in proc.iterdir() if programs and proc.is_dir() else ():
        if entry.name.isdecimal():
            words = _read(entry / "cmdline").split("\0")[:3]
            if any(word.rpartition("/")[2] in programs for word in words):
                yield int(entry.name)


def descendants(pid: int, proc: Path = PROC, without: Collection[int] = ()) -> Iterator[int]:
    """Yield a process and its descendants, except some with all of theirs."""
    yield pid
    try:
        threads = list((proc / str(pid) / "task").iterdir())
    except OSError:
        return  # it has ended
    for thread in threads:
        for child in _read(thread / "children").split():
            if int(child) not in without:
                yield from descendants(int(child), proc, without)


def tree_time_s(pid: int, proc: Path = PROC, without: Collection[int] = ()) -> float:
    """Return the processor time of a process and its descendants, also of those that have ended and were waited for."""
    return sum(_process_s(process, proc) for process in descendants(pid, proc, without))


def _process_s(pid: int, proc: Path) -> float:
    """Return the processor time of a process, and of its children that have ended; 0 if it has ended itself."""
    text = _read(proc / str(pid) / "stat")
    running_s = process_time_s(pid)
    if running_s is None or not text:
        return 0.0
    # The second field is the name in parentheses, which may contain spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return running_s + (int(fields[13]) + int(fields[14])) * _TICK_S


def process_time_s(pid: int) -> float | None:
    """Return the processor time that the threads of a process have used; None if it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULER_CLOCK)
    except OSError:
        return None


def used_between(
    start: ProcessorReading | None,
    end: ProcessorReading | None,
    duration_s: float,
    networks: Mapping[str, str] | None = None,
) -> ProcessorTime | None:
    """Return the processor time of a window from the readings around it, which are some milliseconds further apart.

    The times between the readings are scaled to the length of the window. ``networks`` are the configurations that
    were measured in it, as the reading and as the window name them.

    Returns:
        None if a reading is missing, the kernel does not count, or a processor was switched on or off.
    """
    if start is None or end is None or start.processors != end.processors or end.at_ns <= start.at_ns:
        return None
    between_s = (end.at_ns - start.at_ns) * 1e-9
    capacity_s = start.processors * between_s
    if end.counted_s - start.counted_s < _LEAST_COUNTED * capacity_s - 2 * _COLUMNS / os.sysconf("SC_CLK_TCK"):
        return None
    scale = min(duration_s / between_s, 1.0)

    def used_s(before_s: float, after_s: float) -> float:
        return scale * max(after_s - before_s, 0.0)

    return ProcessorTime(
        busy_s=scale * max(capacity_s - (end.idle_s - start.idle_s), 0.0),
        own_s=used_s(start.own_s, end.own_s),
        processors=start.processors,
        networks_s={
            shown: used_s(start.networks_s[name], end.networks_s[name])
            for name, shown in (networks or {}).items()
            if name in start.networks_s and name in end.networks_s
        },
        services_s=used_s(start.services_s, end.services_s),
        system_s=used_s(start.system_s, end.system_s),
    )
