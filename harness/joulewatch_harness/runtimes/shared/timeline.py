"""Times on a device's clock: events on its stream, and the phases between them.

Recording an event does not stop the device; a host that waited for each batch would leave it idle in between.
No runtime is imported in this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from joulewatch_harness.network import Phases


class Event(Protocol):
    """A time stamp that the device takes when its stream reaches it, such as ``torch.cuda.Event``."""

    def record(self) -> object:
        """Put the event on the stream."""
        ...

    def synchronize(self) -> object:
        """Wait until the device has reached the event."""
        ...

    def elapsed_time(self, end_event: Self) -> float:
        """Return the milliseconds from this event to a later one."""
        ...


class Timeline:
    """Events on the stream, which are reused from call to call."""

    def __init__(self, make: Callable[[], Event]) -> None:
        """Create a timeline; ``make`` creates an event."""
        self._make = make
        self._events: list[Event] = []
        self._used = 0

    def begin(self, count: int) -> Callable[[], None]:
        """Prepare ``count`` events; return a function that records the next one."""
        while len(self._events) < count:
            self._events.append(self._make())
        self._used = 0
        return self._record

    def _record(self) -> None:
        self._events[self._used].record()
        self._used += 1

    def spans_ns(self) -> list[int]:
        """Return the time from each recorded event to the next.

        Wait for one event after the other: all but the last are read while the device still works.
        """
        spans = []
        for before, after in zip(self._events[: self._used - 1], self._events[1 : self._used], strict=True):
            after.synchronize()
            spans.append(round(before.elapsed_time(after) * 1e6))
        return spans


def run_on_device(
    batches: int,
    phases: Phases,
    timeline: Timeline | None,
    launch: Callable[[], object],
    wait: Callable[[], object],
    copies: tuple[Callable[[], object], Callable[[], object]] | None = None,
) -> None:
    """Run batches on a device that works asynchronously, and wait for it once, at the end.

    Args:
        batches: How many.
        phases: Records phases and the ends of batches, if there is a timeline; else one span for all batches.
        timeline: Events on the device's stream.
        launch: Launches one batch.
        wait: Waits for the device.
        copies: Launch the copies of inputs and outputs of one batch.
    """
    names = ("execute",) if copies is None else ("copy_in", "execute", "copy_out")
    launches = (launch,) if copies is None else (copies[0], launch, copies[1])
    start_ns = time.monotonic_ns()
    record = timeline.begin(1 + batches * len(names)) if timeline is not None else _nothing
    record()
    for _ in range(batches):
        for step in launches:
            step()
            record()
    spans_ns = timeline.spans_ns() if timeline is not None else []
    wait()
    end_ns = time.monotonic_ns()
    if timeline is None:
        phases.add("execute", start_ns, end_ns)
    else:
        add_spans(phases, names, spans_ns, end_ns)


def _nothing() -> None:
    """Do nothing; used instead of recording an event."""


def add_spans(phases: Phases, names: Sequence[str], spans_ns: Sequence[int], end_ns: int) -> None:
    """Record spans of the device, so that the last one ends at ``end_ns`` on the host's clock.

    Args:
        phases: Records every span, and the end of every batch.
        names: Names of the spans of one batch, in order.
        spans_ns: Durations, one after the other without gaps.
        end_ns: When the host saw the end of the last span.
    """
    at_ns = end_ns - sum(spans_ns)
    for number, span_ns in enumerate(spans_ns):
        phases.add(names[number % len(names)], at_ns, at_ns + span_ns)
        at_ns += span_ns
        if (number + 1) % len(names) == 0:
            phases.batch_ends_ns.append(at_ns)
