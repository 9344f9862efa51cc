"""Wait for the steps of energy counters, the moments at which the hardware refreshes them.

A counter such as RAPL's is refreshed about once per millisecond, so a value that was read at some time is up to one
refresh old, and the energy between two readings is off by up to a millisecond of power at either end. At a step the
value is the energy of that moment. So a counter is read as often as possible until two steps in a row were seen: they
give the energy at a known time, and the power next to it.

A step lies between the start of the last read that returned the old value and the end of the first read that returned
the new one, whatever happened to this thread meanwhile. If it lost the processor there, the two are far apart, and the
step does not count: its time is not known well, and another step may have passed unseen. (A time that is taken once,
after the read, looks as precise as ever and is wrong by a whole refresh.)

If the thread lost the processor for a shorter time, the other of the two steps shows when this one was: the time
between two steps is nearly always the same (``Intervals``). Otherwise such a step is most of the error of a short
window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from joulewatch_exporter.clock import NS_PER_S, Clock
from joulewatch_exporter.model import Sensor
from joulewatch_exporter.sampling.quantity import QuantityState
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.threads import Turn

LONGEST_REFRESH_S: Final = 0.02
"""Waiting for a slower counter would take longer than the windows for which it is worthwhile."""
MOST_REFRESHES: Final = 2.2
"""Longest wait: two refreshes and their jitter."""
LARGEST_DOUBT: Final = 0.25
"""A step whose time is not known to within this share of a refresh does not count."""
LEAST_INTERVALS: Final = 8
MOST_INTERVALS: Final = 32
"""Intervals between two steps that are remembered; with fewer than the least, nothing is known about the next one."""
LARGEST_SPREAD: Final = 0.02
"""An interval is remembered if it is known to within this share of it."""
MOST_COUNTERS: Final = 16
"""Counters that are read in turn: reading all once must be short compared to a millisecond."""


@dataclass(frozen=True, slots=True)
class Step:
    """One refresh of a counter."""

    at_ns: int
    """Monotonic time: the middle of the two times between which it happened."""
    error_ns: int
    """Largest error of that time."""
    joules: float
    """The counter's total from this step on."""


@dataclass(frozen=True, slots=True)
class Steps:
    """One or two steps in a row of one counter."""

    before_joules: float
    """Total before the first step."""
    first: Step
    last: Step
    """The next step; the same as ``first`` if only one was seen in time."""


class Intervals:
    """The times between two steps of one counter, as the last edges showed them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque(maxlen=MOST_INTERVALS)
        """Shortest and longest possible interval, in ns."""

    def narrow(self, steps: Steps) -> Steps:
        """Return the steps with errors that the interval allows, and learn from them."""
        first, last = steps.first, steps.last
        error_ns = first.error_ns + last.error_ns
        interval_ns = last.at_ns - first.at_ns
        seen = tuple(self._seen)
        if 0 < error_ns <= LARGEST_SPREAD * interval_ns:
            self._seen.append((interval_ns - error_ns, interval_ns + error_ns))
        if len(seen) < LEAST_INTERVALS or interval_ns == 0:
            return steps
        least_ns, most_ns = min(least for least, _ in seen), max(most for _, most in seen)
        narrow_first = _within(first, last.at_ns - last.error_ns - most_ns, last.at_ns + last.error_ns - least_ns)
        narrow_last = _within(last, first.at_ns - first.error_ns + least_ns, first.at_ns + first.error_ns + most_ns)
        if narrow_first is None or narrow_last is None:
            return steps  # an interval unlike all others
        return Steps(steps.before_joules, narrow_first, narrow_last)


def _within(step: Step, earliest_ns: int, latest_ns: int) -> Step | None:
    """Return a step that was between two times; None: it cannot have been."""
    earliest_ns = max(step.at_ns - step.error_ns, earliest_ns)
    latest_ns = min(step.at_ns + step.error_ns, latest_ns)
    if latest_ns < earliest_ns:
        return None
    return Step((earliest_ns + latest_ns) // 2, (latest_ns - earliest_ns + 1) // 2, step.joules)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyEdge:
    """One family as an edge shows it: a scan, and the steps of the counters that it waited for."""

    scan: FamilyScan
    steps: Mapping[int, Steps] = field(default_factory=dict)
    """Index in ``scan.layout.infos`` -> steps after the scan."""
    readings: Mapping[int, Step] = field(default_factory=dict)
    """Index -> for a counter without steps: a value whose read was not interrupted, and the time of the read."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Index -> why a counter has no steps."""
    offset_ns: int = 0
    """Wall clock minus monotonic clock."""
    waited_ns: int = 0
    """Time for which the counters were read for their steps."""


class Watched:
    """One counter whose steps are awaited."""

    __slots__ = (
        "before_joules",
        "deadline_ns",
        "doubt_ns",
        "index",
        "position_joules",
        "reading",
        "reason",
        "sensor",
        "state",
        "steps",
        "total_joules",
        "unchanged_ns",
    )

    def __init__(self, index: int, sensor: Sensor, state: QuantityState, refresh_s: float, started_ns: int) -> None:
        """Start with the value of the last scan; ``started_ns`` is the time now."""
        assert state.counter is not None
        assert state.counter.position is not None
        self.index = index
        self.sensor = sensor
        self.state = state
        self.position_joules = state.counter.position[1]
        self.total_joules = self.before_joules = state.counter.total_joules
        self.unchanged_ns: int | None = None
        """Start of the last read that returned ``position_joules``; None: it was the scan's, at an unknown time."""
        self.doubt_ns = round(2 * LARGEST_DOUBT * refresh_s * NS_PER_S)
        self.deadline_ns = started_ns + round(MOST_REFRESHES * refresh_s * NS_PER_S)
        self.reading: Step | None = None
        """The first read that took a short time; the scan's may have been interrupted before its time was taken."""
        self.steps: list[Step] = []
        self.reason = ""

    def note(self, started_ns: int, ended_ns: int) -> None:
        """Keep the value as a reading if its read took a short time."""
        if self.reading is None and 2 * (ended_ns - started_ns) <= self.doubt_ns:
            half_ns = (ended_ns - started_ns) // 2
            self.reading = Step(started_ns + half_ns, half_ns, self.total_joules)

    def take(self, position_joules: float, started_ns: int, ended_ns: int) -> bool:
        """Process a read of another position; return whether to continue."""
        counter = self.state.counter
        assert counter is not None
        if not counter.update(ended_ns, position_joules):
            self.reason = "an implausible value"
            self.steps.clear()
            return False
        if self.unchanged_ns is not None:
            bracket_ns = ended_ns - self.unchanged_ns
            if bracket_ns <= self.doubt_ns:
                if not self.steps:
                    self.before_joules = self.total_joules
                at_ns = self.unchanged_ns + bracket_ns // 2
                self.steps.append(Step(at_ns, (bracket_ns + 1) // 2, counter.total_joules))
                refresh = self.state.refresh
                refresh.update(self.unchanged_ns, self.position_joules)
                refresh.update(ended_ns, position_joules)
            else:
                self.reason = f"the exporter was interrupted for {bracket_ns / 1e6:.2g} ms"
                if self.steps:
                    return False  # the one before is good
        self.position_joules = position_joules
        self.total_joules = counter.total_joules
        self.unchanged_ns = started_ns
        return len(self.steps) < 2


def await_steps(watched: Sequence[Watched], turn: Turn, clock: Clock, pause: Callable[[], bool]) -> None:
    """Read counters in turn until each has two steps or its time is over.

    Args:
        watched: The counters.
        turn: Makes the reads.
        clock: Its monotonic clock is read between any two reads.
        pause: Called after each round; it may take time for something more urgent. The wait ends when it returns false.

    """
    now = clock.monotonic_ns
    pending = list(watched)
    started_ns = now()
    while pending:
        for counter in tuple(pending):
            try:
                (reading,) = turn.call(counter.sensor.device, counter.sensor.read)
            except Exception as error:  # the next scan reports it
                counter.reason = str(error)
                pending.remove(counter)
                started_ns = now()
                continue
            ended_ns = now()
            position_joules = reading.energy_joules
            if position_joules == counter.position_joules:
                counter.unchanged_ns = started_ns
                if started_ns > counter.deadline_ns:
                    pending.remove(counter)
            elif position_joules is None or not counter.take(position_joules, started_ns, ended_ns):
                pending.remove(counter)
            counter.note(started_ns, ended_ns)
            started_ns = ended_ns
        if not pause():
            break
