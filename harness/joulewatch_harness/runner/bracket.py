"""The reads around every window, and their order: this is the only place that defines it.

::

    conditions | clock mapping | processor time, energy counters | start time
        | work |
    end time | energy counters, processor time | clock mapping | conditions

Why in this order:

* The times are read next to the work. Everything else (a request to the exporters takes milliseconds) is outside the
  window, so neither its energy nor its duration is part of the result.
* The energy counters are read outside the window, as close to it as possible. The analysis subtracts the energy of the
  milliseconds between a reading and the window and adds their uncertainty ("edge slack"), which is small while they
  are few.
* The edge at the start is read again if it came late, because nothing has begun yet. The one at the end is not: the
  counters continue, and a later reading is further from the end.
* The mapping from monotonic to wall clock is read on both sides, and each edge is converted with the mapping of its
  own side. A wall clock that NTP slews during the window then gives the right time at both edges. The difference
  between the two mappings is stored: if the clock was set in between, the analysis rejects the window.
* The processor times need no such precision: they are scaled to the length of the window. Reading them takes up to a
  millisecond on a large machine. It is done while an exporter waits for its counters, else outside the energy counters.
* The run conditions (stalls, steal, throttling, settings) are read outside all others: they need no precision either,
  and on a large machine there are many files.
* Parsing, writing and delivering wait until the work has ended: nothing that costs energy or time competes with it.

If the work raises an exception, nothing more is read: there is no window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self, TypedDict, Unpack, runtime_checkable

from joulewatch_harness.clocktime import Clock
from joulewatch_harness.records import Edge, Latency, PhasePowers, PhaseTime, ProcessorTime, Window, WindowKind
from joulewatch_harness.runner.clocks import ClockMapping
from joulewatch_harness.runner.conditions import ConditionsReading, ConditionsSource
from joulewatch_harness.runner.processor_time import ProcessorReading, ProcessorSource, used_between


class UnparsedEdge(Protocol):
    """The answers of all exporters at one edge, not yet parsed."""

    def parse(self) -> Edge: ...


class EdgeSource(Protocol):
    """Reads the energy counters of all exporters; an exporter that does not answer is in ``Edge.missing``."""

    def fetch(self) -> UnparsedEdge: ...


@runtime_checkable
class WaitingSource(Protocol):
    """An ``EdgeSource`` that may wait for the counters, and calls ``meanwhile`` then, or outside its requests."""

    def fetch_start(self, meanwhile: Callable[[], None]) -> UnparsedEdge:
        """Fetch the edge at the start of a window, and another one if it is late."""
        ...

    def fetch_end(self, meanwhile: Callable[[], None]) -> UnparsedEdge: ...


class WindowContents(TypedDict, total=False):
    """The fields of a window that do not come from its bracket."""

    configuration: str
    phase: str
    batch_size: int
    repeat: int
    batches: int
    latency: Latency | None
    phases: Mapping[str, PhaseTime]
    flags: tuple[str, ...]
    counts: Mapping[str, float]
    details: Mapping[str, str]
    phase_powers: tuple[PhasePowers, ...]
    other_workloads: Mapping[str, float]


class Bracket:
    """Context manager around the work of one window; the times and the window are complete after it.

    Args:
        clock: The harness's clocks.
        edges: Reads the energy counters; None for a window whose energy is not evaluated.
        processors: Reads the processor times; None: they stay unknown.
        networks: The configurations that are measured in the window, and their names in it.
        settle: Called once before the start: waits for earlier work that is not to be part of the window.
        conditions: Reads the run conditions; None: they stay unknown.
    """

    def __init__(
        self,
        clock: Clock,
        edges: EdgeSource | WaitingSource | None = None,
        processors: ProcessorSource | None = None,
        networks: Mapping[str, str] | None = None,
        settle: Callable[[], None] | None = None,
        conditions: ConditionsSource | None = None,
    ) -> None:
        self._clock = clock
        self._waiting = edges if isinstance(edges, WaitingSource) else None
        self._edges = None if isinstance(edges, WaitingSource) else edges
        self._processors = processors
        self._networks = networks
        self._settle = settle
        self._conditions = conditions
        self._start_conditions: ConditionsReading | None = None
        self._end_conditions: ConditionsReading | None = None
        self._start_used: ProcessorReading | None = None
        self._end_used: ProcessorReading | None = None
        self._start_edge: UnparsedEdge | None = None
        self._end_edge: UnparsedEdge | None = None
        self._start_parsed: Edge | None = None
        self.more_conditions: dict[str, float] = {}
        """Run conditions that were read elsewhere."""
        self.start_ns = 0
        """Monotonic time of the start; valid inside the bracket already."""
        self.end_ns = 0

    def __enter__(self) -> Self:
        if self._conditions is not None:
            self._start_conditions = self._conditions.read()
        self._start_mapping = ClockMapping.read(self._clock)
        if self._waiting is not None:
            self._start_edge = self._waiting.fetch_start(self._before_start)
        else:
            self._before_start()
            if self._edges is not None:
                self._start_edge = self._edges.fetch()
        self.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            return
        if not self.end_ns:
            self.stop()
        if self._waiting is not None:
            self._end_edge = self._waiting.fetch_end(self._after_end)
        else:
            if self._edges is not None:
                self._end_edge = self._edges.fetch()
            self._after_end()
        self._end_mapping = ClockMapping.read(self._clock)
        if self._conditions is not None:
            self._end_conditions = self._conditions.read()

    def start(self) -> None:
        """Note the start of the work: again, if something happened between ``__enter__`` and it."""
        self.start_ns = self._clock.monotonic_ns()

    def stop(self, at_ns: int | None = None) -> None:
        """Note the end of the work, now or at a monotonic time, if something happens between it and ``__exit__``."""
        self.end_ns = self._clock.monotonic_ns() if at_ns is None else at_ns

    def _before_start(self) -> None:
        if self._settle is not None:
            self._settle()
        if self._processors is not None:
            self._start_used = self._processors.read()

    def _after_end(self) -> None:
        if self._processors is not None:
            self._end_used = self._processors.read()
        if self._start_edge is not None:
            self._start_parsed = self._start_edge.parse()

    @property
    def duration_ns(self) -> int:
        """Length of the window on the monotonic clock."""
        return self.end_ns - self.start_ns

    @property
    def duration_s(self) -> float:
        """The same in seconds."""
        return self.duration_ns * 1e-9

    @property
    def start_s(self) -> float:
        """Unix time of the start."""
        return self._start_mapping.unix_s(self.start_ns)

    @property
    def clock_step_s(self) -> float:
        """Change of the wall clock relative to the monotonic clock during the window."""
        return (self._end_mapping.offset_ns - self._start_mapping.offset_ns) * 1e-9

    @property
    def processor_time(self) -> ProcessorTime | None:
        """Processor time that was used during the window."""
        return used_between(self._start_used, self._end_used, self.duration_s, self._networks)

    def window(self, *, run: str, index: int, kind: WindowKind, **contents: Unpack[WindowContents]) -> Window:
        """Build the window."""
        end_edge = None if self._end_edge is None else self._end_edge.parse()
        conditions: Mapping[str, float] = {}
        start, end = self._start_conditions, self._end_conditions
        if self._conditions is not None and start is not None and end is not None:
            conditions = {**self._conditions.between(start, end), **self.more_conditions}
        return Window(
            run=run,
            index=index,
            kind=kind,
            start_s=self.start_s,
            end_s=self._end_mapping.unix_s(self.end_ns),
            duration_s=self.duration_s,
            clock_error_s=max(self._start_mapping.error_s, self._end_mapping.error_s),
            clock_step_s=self.clock_step_s,
            processor_time=self.processor_time,
            conditions=conditions,
            inferences=contents.get("batches", 0) * contents.get("batch_size", 0),
            start_edge=self._start_parsed,
            end_edge=end_edge,
            **contents,
        )
