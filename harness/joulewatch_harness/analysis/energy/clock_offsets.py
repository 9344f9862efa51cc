"""The clocks of a run: how far each exporter's clock is from the harness's, and where a clock was set. Pure.

At an edge the harness knows when it sent its request and when it got the answer. A sensor that is read on request was
read in between, so its read timestamp bounds the offset of the exporter's clock (``EdgeClock``). A sensor that is read
in the background was read at some time in the last minute. That is too loose for an energy, but enough to notice a
clock that is minutes off or was set by minutes.

A clock that is set during a run makes its read timestamps useless: they belong to two clocks. So

* the windows on both sides of a step have no number. When the clock was set is known only to the time between two
  edges;
* the other windows are measured by their edges only. The samples of a history are placed at read timestamps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from joulewatch_harness.analysis.energy.window_energy import UNKNOWN_CLOCK, UNKNOWN_OFFSET_S, ClockOffset
from joulewatch_harness.analysis.sources.series import is_loopback
from joulewatch_harness.clocktime import is_step
from joulewatch_harness.records import Edge, EdgeClock, RunRecord, Window

HARNESS: Final = ""
"""Key of the harness's clock in mappings whose other keys are exporters."""
OLDEST_READING_S: Final = 60.0
"""Largest age of a background reading. Exporters read every sensor each 10 s or more often, and drop values that they
could not read again; reading hundreds of BMCs takes longer."""
LONGEST_ANSWER_S: Final = 10.0
"""Largest distance of an answer from its edge of the window; by default a request waits 2 s."""


class Offsets(NamedTuple):
    """The clock of one exporter minus the harness's, in one window."""

    start: ClockOffset
    end: ClockOffset
    window: ClockOffset
    """Covers both edges."""

    @classmethod
    def constant(cls, offset: ClockOffset) -> Offsets:
        """Return the offsets of a clock that is the same at both edges."""
        return cls(offset, offset, offset)


_SAME_CLOCK: Final = Offsets.constant(ClockOffset())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunClocks:
    """The clocks of all windows of a run, in the order of its windows."""

    bounded: tuple[Mapping[str, Offsets], ...]
    """Exporter -> what the requests at the edges of the window show."""
    shared: frozenset[str] = frozenset()
    """The exporters on the harness's machine."""
    typical: Mapping[str, ClockOffset] = field(default_factory=dict)
    """Exporter -> its offset in the windows that do not bound it: the median of the others, or assumed."""
    steps: tuple[Mapping[str, str], ...]
    """Exporter (or ``HARNESS``) -> how its clock was set in or next to the window, for people."""
    clocks_set: frozenset[str] = frozenset()
    """The keys of all ``steps``."""

    def offsets(self, position: int, exporter: str) -> Offsets:
        """Return the offset of an exporter in a window."""
        if exporter in self.shared:
            return _SAME_CLOCK
        bounded = self.bounded[position].get(exporter)
        return bounded or Offsets.constant(self.typical.get(exporter, UNKNOWN_CLOCK))

    def step(self, position: int, exporter: str) -> str:
        """Return how the clock of the exporter or of the harness was set in or next to a window; empty: it was not."""
        steps = self.steps[position]
        return steps.get(exporter) or steps.get(HARNESS, "")

    def was_set(self, exporter: str) -> bool:
        """Return whether the clock of the exporter or of the harness was set during the run."""
        return not self.clocks_set.isdisjoint((exporter, HARNESS))


def same_machine(exporter: str, record: RunRecord) -> bool | None:
    """Return whether the exporter and the harness ran on one machine; None: a name of them is not known."""
    host = record.header.provenance.get("host")
    for described in record.header.exporters:
        if described.name == exporter and described.nodename and host:
            return bool(described.nodename == host)
    return None


def run_clocks(record: RunRecord, exporters: Iterable[str]) -> RunClocks:
    """Compare the clocks of a run at all edges.

    Args:
        record: The run.
        exporters: All exporters of its sensors.
    """
    shared: set[str] = set()
    bounded = tuple(_bounded(window) for window in record.windows)
    steps: list[dict[str, str]] = [{} for _ in record.windows]
    for position, window in enumerate(record.windows):
        if is_step(window.clock_step_s, window.duration_s, 2 * window.clock_error_s):
            steps[position][HARNESS] = (
                f"the clock of the harness's machine was set by {window.clock_step_s:+.4g} s in the window"
            )
    was_stepped = any(HARNESS in texts for texts in steps)
    visits = _visits(record.windows)
    typical = {}
    for exporter in sorted(exporters):
        own_visits = visits.get(exporter, [])
        edges = _bounds(own_visits)
        found = list(_contradictions(edges))
        is_same = same_machine(exporter, record)
        # A loopback address may be a tunnel to another machine.
        if is_same or (is_same is None and is_loopback(exporter) and not found):
            shared.add(exporter)
        else:
            found = list(_jumps(edges))
        found += _impossible(own_visits)
        set_at = {position: f"{exporter}: {text}" for positions, text in found for position in positions}
        if exporter not in shared and (set_at or was_stepped):
            # A window that nothing bounds may be on either side of the step.
            text = f"{exporter}: a clock was set during the run, and no edge of this window bounds the exporter's clock"
            set_at |= {at: text for at, offsets in enumerate(bounded) if exporter not in offsets and at not in set_at}
        for position, text in set_at.items():
            if HARNESS not in steps[position]:
                steps[position][exporter] = text
        typical[exporter] = _typical(exporter, bounded, edges)
    return RunClocks(
        bounded=bounded,
        shared=frozenset(shared),
        typical=typical,
        steps=tuple(steps),
        clocks_set=frozenset().union(*steps),
    )


def _bounded(window: Window) -> dict[str, Offsets]:
    """Return the offset of each exporter whose clock was bounded at an edge of a window."""
    bounds: dict[str, list[ClockOffset]] = {}
    for edge in (window.start_edge, window.end_edge):
        for clock in edge.clocks if edge is not None else ():
            bounds.setdefault(clock.exporter, []).append(ClockOffset(clock.lower_s, clock.upper_s))
    return {exporter: _combined(offsets[0], offsets[-1]) for exporter, offsets in bounds.items()}


def _combined(start: ClockOffset, end: ClockOffset) -> Offsets:
    lower_s, upper_s = max(start.lower_s, end.lower_s), min(start.upper_s, end.upper_s)
    if lower_s <= upper_s:
        return Offsets.constant(ClockOffset(lower_s, upper_s))
    # The clocks drifted apart inside the window.
    return Offsets(start, end, ClockOffset(min(start.lower_s, end.lower_s), max(start.upper_s, end.upper_s)))


def _typical(exporter: str, bounded: Sequence[Mapping[str, Offsets]], edges: Sequence[_EdgeBounds]) -> ClockOffset:
    """Return the offset of an exporter for windows that do not bound it."""
    own = [offsets[exporter].window for offsets in bounded if exporter in offsets]
    if own:
        lower_s = float(np.median([offset.lower_s for offset in own]))
        return ClockOffset(lower_s, float(np.median([offset.upper_s for offset in own])))
    lower_s = max((edge.lower_s for edge in edges), default=-UNKNOWN_OFFSET_S)
    upper_s = min((edge.upper_s for edge in edges), default=UNKNOWN_OFFSET_S)
    is_near = lower_s <= UNKNOWN_OFFSET_S and upper_s >= -UNKNOWN_OFFSET_S
    return UNKNOWN_CLOCK if is_near or lower_s > upper_s else ClockOffset(lower_s, upper_s, known=False)


class _EdgeBounds(NamedTuple):
    """Bounds of an exporter's clock at one edge."""

    position: int
    """Of the window."""
    at_s: float
    lower_s: float
    upper_s: float
    error_s: float
    """Of the edge's own time."""


class _Visit(NamedTuple):
    """What one edge shows about the clock of one exporter."""

    position: int
    """Of the window."""
    at_s: float
    answered_by_s: float
    """When all answers of the edge had arrived."""
    error_s: float
    """Of the edge's time."""
    clocks: list[EdgeClock]
    reads_s: list[float]


def _visits(windows: Sequence[Window]) -> dict[str, list[_Visit]]:
    """Return exporter -> all edges at which it was read, in order of time."""
    visits: dict[str, list[_Visit]] = {}
    for position, window in enumerate(windows):
        end_s = window.start_s + window.duration_s
        for at_s, edge in ((window.start_s, window.start_edge), (end_s, window.end_edge)):
            if edge is None:
                continue
            clocks: dict[str, list[EdgeClock]] = {}
            reads_s: dict[str, list[float]] = {}
            for clock in edge.clocks:
                clocks.setdefault(clock.exporter, []).append(clock)
            for counter in edge.counters:
                reads_s.setdefault(counter.exporter, []).append(counter.read_at_s)
            answered_by_s = _answered_by_s(at_s, edge)
            for exporter in clocks.keys() | reads_s.keys():
                visits.setdefault(exporter, []).append(
                    _Visit(
                        position=position,
                        at_s=at_s,
                        answered_by_s=answered_by_s,
                        error_s=window.clock_error_s,
                        clocks=clocks.get(exporter, []),
                        reads_s=reads_s.get(exporter, []),
                    )
                )
    return visits


def _bounds(visits: Iterable[_Visit]) -> list[_EdgeBounds]:
    """Return the bounds of one exporter's clock at all edges, in order of time: by round trips, else loose ones."""
    tight: list[_EdgeBounds] = []
    loose: list[_EdgeBounds] = []
    for visit in visits:
        tight += [
            _EdgeBounds(visit.position, visit.at_s, clock.lower_s, clock.upper_s, visit.error_s)
            for clock in visit.clocks
        ]
        if visit.reads_s:
            late_s = max(visit.reads_s) - visit.at_s
            bounds_s = (late_s - LONGEST_ANSWER_S, late_s + OLDEST_READING_S)
            loose.append(_EdgeBounds(visit.position, visit.at_s, *bounds_s, visit.error_s))
    return tight or loose


def _impossible(visits: Iterable[_Visit]) -> Iterator[tuple[Sequence[int], str]]:
    """Yield the windows with a reading from after the answer that contains it, by the bounds of the clock there."""
    for visit in visits:
        for clock in visit.clocks if visit.reads_s else ():
            late_s = max(visit.reads_s) - clock.upper_s - visit.answered_by_s
            if late_s > 0.0 and is_step(late_s, 0.0, visit.error_s):
                yield (visit.position,), f"a sensor has a read time {late_s:.4g} s after the answer that contains it"


def _answered_by_s(at_s: float, edge: Edge) -> float:
    """Return when all answers of an edge had arrived; Prometheus does not store it, and has a read time instead."""
    stored = all(counter.read_at_s != edge.answered_at_s for counter in edge.counters)
    return edge.answered_at_s if stored else at_s + LONGEST_ANSWER_S


def _contradictions(edges: Iterable[_EdgeBounds]) -> Iterator[tuple[Sequence[int], str]]:
    """Yield the windows of an exporter on the harness's machine in which it shows another time than the harness."""
    for edge in edges:
        apart_s = max(edge.lower_s, -edge.upper_s)
        if apart_s > 0 and is_step(apart_s, 0.0, edge.error_s):
            sign = "ahead of" if edge.lower_s > 0 else "behind"
            yield (
                (edge.position,),
                f"its clock is {apart_s:.4g} s {sign} the harness's, although both machines have the same host name",
            )


def _jumps(edges: Sequence[_EdgeBounds]) -> Iterator[tuple[Sequence[int], str]]:
    """Yield the windows between two consecutive edges whose bounds exclude each other by more than a slewed clock."""
    for first, second in pairwise(edges):
        forward_s, back_s = second.lower_s - first.upper_s, first.lower_s - second.upper_s
        if is_step(max(forward_s, back_s, 0.0), abs(second.at_s - first.at_s), first.error_s + second.error_s):
            change = f"forward by at least {forward_s:.4g} s" if forward_s > 0 else f"back by at least {back_s:.4g} s"
            yield (
                range(first.position, second.position + 1),
                f"its clock was set {change} relative to the harness's between two edges",
            )
