"""Processor time of the machine and of the run itself, for the audit: was the machine quiet?

*Busy* is all time in which a processor was not idle: processors x time - (idle + iowait) of ``/proc/stat``. The idle
time is used rather than the sum of user, nice, system, irq, softirq and steal, because a kernel without ticks on idle
processors (all common ones) measures idle time exactly, while it charges the others by sampling at each tick. So
interrupts count as busy, waiting for a disk does not, and guests of a hypervisor, which Linux counts twice (in guest
and in user), count once. Steal counts as busy: other guests of the same hardware used that time.

*Own* is the time of this process and all its descendants, with all their threads: the networks' processes and an
exporter that local mode started. It is read from the clock of each process, which counts nanoseconds.

``/proc/stat`` rounds idle and iowait down to 10 ms each. A difference of two readings is therefore off by up to 20 ms,
summed over all processors: 1 % of a second on two processors. The audit allows for it.

``/proc/stat`` is the view of the kernel. In a container it is the whole host's, which is the machine that the sensors
measure, unless the container hides it (lxcfs). In a virtual machine it is that of the guest: other guests show only
as steal. The load of GPUs and of other machines does not show at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from joulewatch_harness.records import ProcessorTime

_PROC: Final = Path("/proc")
_COLUMNS: Final = 8
"""user, nice, system, idle, iowait, irq, softirq, steal; the guest columns after them are part of user and nice."""
_IDLE, _IOWAIT = 3, 4
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


class ProcessorSource(Protocol):
    """Reads the processor times; None if the system has none."""

    def read(self) -> ProcessorReading | None: ...


class ProcessorClock:
    """Reads ``/proc/stat`` and the clocks of the run's processes; takes well under a millisecond."""

    def __init__(self, proc: Path = _PROC, pid: int | None = None) -> None:
        self._proc = proc
        self._pid = os.getpid() if pid is None else pid
        # Without the lists of children (CONFIG_PROC_CHILDREN), the time of the run is not known.
        self._lists_children = (proc / str(self._pid) / "task" / str(self._pid) / "children").exists()
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def read(self) -> ProcessorReading | None:
        """Return the times up to now; None where ``/proc`` is missing or has another format."""
        if not self._lists_children:
            return None
        try:
            own_s = sum(map(self._process_s, self._processes(self._pid)))
            text = (self._proc / "stat").read_text(encoding="ascii")
            at_ns = time.monotonic_ns()
            lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
            total, *processors = lines
            columns = [int(field) * self._tick_s for field in total[1 : 1 + _COLUMNS]]
            idle_s = columns[_IDLE] + columns[_IOWAIT]
        except (OSError, ValueError, IndexError):
            return None
        return ProcessorReading(
            at_ns=at_ns, idle_s=idle_s, counted_s=sum(columns), own_s=own_s, processors=len(processors)
        )

    def _processes(self, pid: int) -> Iterator[int]:
        """Yield a process and its descendants."""
        yield pid
        try:
            threads = list((self._proc / str(pid) / "task").iterdir())
        except FileNotFoundError:
            return  # it has ended
        for thread in threads:
            try:
                children = (thread / "children").read_text(encoding="ascii")
            except (FileNotFoundError, ProcessLookupError):
                continue
            for child in children.split():
                yield from self._processes(int(child))

    def _process_s(self, pid: int) -> float:
        """Return the processor time of a process, and of its children that have ended; 0 if it has ended itself."""
        try:
            text = (self._proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0.0
        running_s = process_time_s(pid)
        if running_s is None:
            return 0.0
        # The second field is the name in parentheses, which may contain spaces and parentheses.
        fields = text.rpartition(")")[2].split()
        return running_s + (int(fields[13]) + int(fields[14])) * self._tick_s


def process_time_s(pid: int) -> float | None:
    """Return the processor time that the threads of a process have used; None if it has ended."""
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULER_CLOCK)
    except OSError:
        return None


def used_between(
    start: ProcessorReading | None, end: ProcessorReading | None, duration_s: float
) -> ProcessorTime | None:
    """Return the processor time of a window from the readings around it, which are some milliseconds further apart.

    The times between the readings are scaled to the length of the window.

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
    return ProcessorTime(
        busy_s=scale * max(capacity_s - (end.idle_s - start.idle_s), 0.0),
        own_s=scale * max(end.own_s - start.own_s, 0.0),
        processors=start.processors,
    )
