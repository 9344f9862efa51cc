"""Moments on a device's own clock: events that its stream passes, and the phases between them.

Asking for them stops nothing, where a host that waited for each batch would leave the device idle in between.
No runtime is imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from joulewatch_harness.network import Phases


class Event(Protocol):
    """A moment that the device notes as it passes it: PyTorch's ``torch.cuda.Event``, or another in its manner."""

    def record(self) -> object:
        """Put it on the stream."""
        ...

    def synchronize(self) -> object:
        """Wait until the device has passed it."""
        ...

    def elapsed_time(self, end_event: Self) -> float:
        """Milliseconds from this one to a later one."""
        ...


class Timeline:
    """Events on the stream, kept and used again: moments that the device itself notes as it passes them."""

    def __init__(self, make: Callable[[], Event]) -> None:
        """Args: make: Makes an event that takes times; a test has its own."""
        self._make = make
        self._events: list[Event] = []
        self._used = 0

    def begin(self, count: int) -> Callable[[], None]:
        """Have ``count`` events ready; the answer records the next one."""
        while len(self._events) < count:
            self._events.append(self._make())
        self._used = 0
        return self._record

    def _record(self) -> None:
        self._events[self._used].record()
        self._used += 1

    def spans_ns(self) -> list[int]:
        """Time from each recorded moment to the next.

        Each event is waited for in turn: all but the last are read while the device is still at work.
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
        tell(phases, names, spans_ns, end_ns)


def _nothing() -> None:
    """Do nothing; used instead of recording an event."""


def tell(phases: Phases, names: Sequence[str], spans_ns: Sequence[int], end_ns: int) -> None:
    """Put spans of the device, which has a clock of its own, before ``end_ns`` on the host's clock.

    Args:
        phases: Told of every span, and of the end of every batch.
        names: Of the spans of one batch, in order.
        spans_ns: One after the other without gaps.
        end_ns: When the host saw the last one end.
    """
    at_ns = end_ns - sum(spans_ns)
    for number, span_ns in enumerate(spans_ns):
        phases.add(names[number % len(names)], at_ns, at_ns + span_ns)
        at_ns += span_ns
        if (number + 1) % len(names) == 0:
            phases.batch_ends_ns.append(at_ns)
