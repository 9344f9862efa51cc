"""Show the power while a command runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.records import Edge, EdgeCounter
from joulewatch_harness.runner.edges import EdgeReader


class PowerDisplay:
    """Reads the energy counters at an interval, and shows the mean power since the last reading.

    Args:
        urls: Exporters to read.
        interval_s: Time between two readings.
        show: Called with each line, from another thread.
    """

    def __init__(self, urls: Sequence[str], interval_s: float, show: Callable[[str], None]) -> None:
        self._reader = EdgeReader([ExporterClient(url) for url in urls])
        self._interval_s = interval_s
        self._show = show
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="power display", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._reader.close()

    def _work(self) -> None:
        first_s = time.monotonic()
        last = self._reader.fetch().parse()
        count = 1
        while not self._end.wait(first_s + count * self._interval_s - time.monotonic()):
            edge = self._reader.fetch().parse()
            self._show(f"{time.monotonic() - first_s:8.2f} s  {power_text(last, edge)}")
            last = edge
            # Missed readings are skipped.
            count = max(count + 1, int((time.monotonic() - first_s) / self._interval_s) + 1)


def power_text(start: Edge, end: Edge) -> str:
    """Return the mean power between two readings: all devices, then each component; without devices, the nodes."""
    if end.missing:
        return "; ".join(f"exporter {name} does not answer: {problem}" for name, problem in end.missing.items())
    before = {_key(counter): counter for counter in start.counters}
    watts: dict[str, float] = {}
    for scope in ("device", "node"):
        for counter in end.counters:
            old = before.get(_key(counter))
            if counter.scope == scope and old is not None and counter.read_at_s > old.read_at_s:
                power = (counter.energy_joules - old.energy_joules) / (counter.read_at_s - old.read_at_s)
                watts[counter.component] = watts.get(counter.component, 0.0) + power
        if watts:
            break
    if not watts:
        return "no new reading"
    parts = ", ".join(f"{name} {value:.1f} W" for name, value in watts.items())
    return f"{sum(watts.values()):8.1f} W  ({parts})"


def _key(counter: EdgeCounter) -> tuple[str, ...]:
    return (counter.exporter, counter.scope, counter.collector, counter.component, counter.device, counter.domain)
