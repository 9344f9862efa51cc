"""Measure several networks at the same time, in one window.

Every network runs in its own process, and in the harness a thread per network keeps it busy with calls. The window
begins when all of them run, and ends while all of them still run. The batches of a network in the window are those
whose end lies in it: the network's process takes the times, on the monotonic clock that all processes share.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from joulewatch_harness.network import MarksOnly
from joulewatch_harness.plan.plan import MINIMUM_BATCHES
from joulewatch_harness.plan.steps import ConcurrentStep, Step
from joulewatch_harness.records import Latency, Window
from joulewatch_harness.runner.bracket import WindowContents
from joulewatch_harness.runner.calls import Call, Cell, Span, run_span
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.latency import latency
from joulewatch_harness.runner.measuring import WARMUP_BATCHES, other_work

_SLICE_S: Final = 0.05
_END_LIMIT_S: Final = 600.0


class _Load:
    """Keeps one network busy until it is stopped."""

    def __init__(self, context: RunContext, cell: Cell) -> None:
        self.cell = cell
        self.batches = 0
        """Batches of the calls that have returned."""
        self.error: BaseException | None = None
        self.span: Span | None = None
        self.phases = MarksOnly()
        # The progress is shown by the runner's own thread.
        self._context = replace(context, reporter=_Silent())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load {cell.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._thread.join(_END_LIMIT_S)

    def _run(self) -> None:
        try:
            self.span = run_span(self._context, self.cell, self.phases, self._enough)
        except BaseException as error:
            self.error = error

    def _enough(self, batches: int, _elapsed_s: float) -> bool:
        self.batches = batches
        return self._stop.is_set()


def measure_together(context: RunContext, cells: Sequence[Cell], step: ConcurrentStep) -> list[Window]:
    """Write one window for each of some prepared cells, all of the same time.

    Raises:
        RunStopped: the user stopped the run before the end of the window.
        Exception: raised by a network.
    """
    plan = context.plan
    names = {cell.name: cell.loaded.configuration.with_others(_others(cell, cells)).name for cell in cells}
    before = None if context.others is None else context.others.read()
    for cell in cells:
        cell.loaded.driver.begin(f"{plan.seed}/{names[cell.name]}/{cell.batch_size}/{step.repeat}")
    context.log.window_opened("measure", names[cells[0].name], step.batch_size)
    alone_s = [cell.batch_s for cell in cells]
    loads = [_Load(context, cell) for cell in cells]
    for load in loads:
        load.start()
    try:
        warm_s = max(plan.warmup_s, plan.settle_s) if step.repeat == 0 else plan.settle_s
        _wait(context, loads, warm_s, WARMUP_BATCHES, plan.max_window_s)
        with context.bracket(names) as bracket:
            _wait(context, loads, step.window_s, MINIMUM_BATCHES, plan.max_window_s)
        _wait(context, loads, plan.settle_s, 0, plan.max_window_s)
    finally:
        for load in loads:
            load.stop()
        for load in loads:
            load.join()
        for cell, batch_s in zip(cells, alone_s, strict=True):
            cell.batch_s = batch_s
    _raise_error(loads)
    others = other_work(context, before, bracket)
    contents: list[WindowContents] = []
    for load in loads:
        batches, latencies = _in_window(load, bracket.start_ns, bracket.end_ns)
        contents.append(
            {
                "configuration": names[load.cell.name],
                "batch_size": step.batch_size,
                "repeat": step.repeat,
                "batches": batches,
                "latency": latencies,
                "flags": ("too_short",) if batches < MINIMUM_BATCHES else (),
                "other_workloads": others,
            }
        )
    return context.log.windows(bracket, "measure", contents)


def _others(cell: Cell, cells: Sequence[Cell]) -> list[str]:
    return [other.name for other in cells if other is not cell]


def _wait(context: RunContext, loads: Sequence[_Load], duration_s: float, batches: int, limit_s: float) -> None:
    """Wait for a time, and until each network has run some batches, at most to a limit.

    Raises:
        RunStopped: the user stopped the run.
        Exception: raised by a network.
    """
    clock = context.clock
    begin_ns, before = clock.monotonic_ns(), [load.batches for load in loads]
    while True:
        context.stop.check()
        _raise_error(loads)
        elapsed_s = (clock.monotonic_ns() - begin_ns) * 1e-9
        enough = all(load.batches - first >= batches for load, first in zip(loads, before, strict=True))
        if elapsed_s >= duration_s and (enough or elapsed_s >= max(limit_s, duration_s)):
            return
        clock.sleep(min(max(duration_s - elapsed_s, 0.002), _SLICE_S))
        context.reporter.tick()


def _raise_error(loads: Sequence[_Load]) -> None:
    error = next((load.error for load in loads if load.error is not None), None)
    if error is not None:
        raise error


def _in_window(load: _Load, start_ns: int, end_ns: int) -> tuple[int, Latency | None]:
    """Return the number of batches of a network that ended in the window, and their latency."""
    assert load.span is not None
    calls, marks = load.span.calls, load.phases.batch_ends_ns
    if len(marks) != load.span.batches:
        return round(sum(_overlap(call, start_ns, end_ns) * call.batches for call in calls)), None
    ends = array("q", (mark for mark in marks if start_ns < mark <= end_ns))
    if len(ends) < 2:
        return len(ends), None
    first = Call(start_ns=ends[0], end_ns=ends[-1], batches=len(ends) - 1, marks=len(ends) - 1)
    return len(ends), latency([first], ends[1:])


def _overlap(call: Call, start_ns: int, end_ns: int) -> float:
    """Return the part of a call that lies in the window."""
    inside_ns = min(call.end_ns, end_ns) - max(call.start_ns, start_ns)
    return max(inside_ns, 0) / max(call.end_ns - call.start_ns, 1)


class _Silent:
    """Reports nothing."""

    def begin(self, step: Step, text: str) -> None: ...

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None: ...

    def note(self, text: str) -> None: ...
