"""Run a network for a span of time, in calls of 50 to 100 ms, and count its batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from joulewatch_harness.network import Network, Phases
from joulewatch_harness.plan.scenario import OFFLINE, Scenario
from joulewatch_harness.records import Configuration
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.drivers import Driver, OfflineDriver

CALL_S: Final = 0.075
"""Target length of a call of ``run``: long compared with the cost of a call, short enough for Ctrl-C."""
CALL_RANGE: Final = (2 / 3, 4 / 3)
"""Times of the target length."""
CALLS_PER_WINDOW: Final = 4
"""A window has at least this many calls, so that a short one is not much longer than the plan's."""
LARGEST_GROWTH: Final = 4
"""A call has at most four times the batches of the one before, which may have been short by chance."""

Enough = Callable[[int, float], bool]
"""``(batches, elapsed_s)``: whether a span is complete; called after each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork:
    """A configuration whose network is loaded."""

    configuration: Configuration
    """The configuration as loaded, with the actual precision."""
    network: Network
    driver: Driver
    scenario: Scenario

    @property
    def name(self) -> str:
        return self.configuration.name

    @property
    def concurrency(self) -> int:
        """Batches that the network processes at the same time; a call with fewer would not fill it."""
        concurrency = self.configuration.details.get("concurrency", "1")
        return int(concurrency) if concurrency.isdecimal() else 1


@dataclass(slots=True, kw_only=True)
class Cell:
    """One configuration at one batch size, and what the run has measured of it."""

    loaded: LoadedNetwork
    batch_size: int
    batch_s: float = 0.0
    """Time per batch in the last span of calls; 0 before the first."""
    prepared: bool = False
    failed: bool = False
    overload_noted: bool = False

    @property
    def name(self) -> str:
        return self.loaded.name

    def __str__(self) -> str:
        return f"{self.name} batch {self.batch_size}"


class Call(NamedTuple):
    """One call of ``run``; a tuple, because calls are created inside measure windows and a tuple costs little."""

    start_ns: int
    end_ns: int
    batches: int
    marks: int
    """Number of batch marks of the whole span after this call."""


@dataclass(slots=True, kw_only=True)
class Span:
    """Calls in a row."""

    start_ns: int
    end_ns: int
    batches: int = 0
    calls: list[Call] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def batches_per_s(self) -> float:
        return self.batches / self.duration_s


def run_span(context: RunContext, cell: Cell, phases: Phases, enough: Enough, call_s: float = CALL_S) -> Span:
    """Run in the configuration's scenario, in calls of about ``call_s``, until ``enough`` or the user stops the run.

    Stores the time per batch in the cell, unless queries arrive at a given rate.
    """
    return _run(context, cell, cell.loaded.driver, cell.loaded.scenario, phases, enough, call_s)


def run_offline(context: RunContext, cell: Cell, phases: Phases, enough: Enough) -> Span:
    """Run back to back, independent of the scenario: for warm-ups and comparisons."""
    return _run(context, cell, OfflineDriver(cell.loaded.network), Scenario(), phases, enough)


def _run(
    context: RunContext,
    cell: Cell,
    driver: Driver,
    scenario: Scenario,
    phases: Phases,
    enough: Enough,
    target_s: float = CALL_S,
) -> Span:
    clock, tick, stop, marks = context.clock.monotonic_ns, context.reporter.tick, context.stop, phases.batch_ends_ns
    # A server waits for queries: the time to the next query counts, not the time that a query takes.
    batch_s = max(cell.batch_s, 1 / scenario.rate_per_s) if scenario.rate_per_s else cell.batch_s
    fewest = cell.loaded.concurrency if scenario.name == OFFLINE else 1
    count = max(fewest, round(target_s / batch_s)) if batch_s > 0.0 else fewest
    now_ns = clock()
    span = Span(start_ns=now_ns, end_ns=now_ns)
    while not stop.requested:
        start_ns = clock()
        driver.run(count, phases)
        end_ns = clock()
        span.batches += count
        span.end_ns = end_ns
        # A network in another process reports when the call ran there: the message to it is not part of the latency.
        ran_from_ns, ran_to_ns = phases.call_ns or (start_ns, end_ns)
        span.calls.append(Call(start_ns=ran_from_ns, end_ns=ran_to_ns, batches=count, marks=len(marks)))
        if enough(span.batches, (end_ns - span.start_ns) * 1e-9):
            break
        call_s = (end_ns - start_ns) * 1e-9
        if not CALL_RANGE[0] * target_s <= call_s <= CALL_RANGE[1] * target_s:
            count = max(fewest, min(LARGEST_GROWTH * count, round(count * target_s / max(call_s, 1e-9))))
        tick()
    if span.batches and not scenario.rate_per_s:
        cell.batch_s = max(span.duration_s / span.batches, 1e-9)
    return span
