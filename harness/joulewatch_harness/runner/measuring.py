"""Measure one cell in one round: warm up or settle, and take the window.

::

    load, settling | measure window | load, settling

The load begins before the window and continues after it, so that the power is constant across both edges: the energy
between the window and the readings of the counters is then known, whether they were read at the edges or by a scrape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.plan.plan import MINIMUM_BATCHES, PHASES_INLINE, REFRESHES_PER_WINDOW
from joulewatch_harness.plan.scenario import is_overloaded
from joulewatch_harness.plan.steps import MeasureStep
from joulewatch_harness.records import Window
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.calls import CALL_S, CALLS_PER_WINDOW, Cell, Span, run_offline, run_span
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.latency import latency, phase_times
from joulewatch_harness.runner.other_workloads import Usage
from joulewatch_harness.runner.power import PowerMeter
from joulewatch_harness.runner.processor_use import ProcessorUse
from joulewatch_harness.runner.stopping import RunStopped

WARMUP_BATCHES: Final = 3
STEADY_SPANS: Final = 3
STEADY_WITHIN: Final = 0.05
STEADY_COVERAGE: Final = 0.97


def measure(context: RunContext, cell: Cell, step: MeasureStep, processor_use: ProcessorUse) -> Window:
    """Write one measure window of a prepared cell; a window that the user interrupts is written with a flag.

    Raises:
        RunStopped: the user stopped the run before the first call of the window returned.
        Exception: raised by the network.
    """
    plan, driver, scenario = context.plan, cell.loaded.driver, cell.loaded.scenario
    before = None if context.others is None else context.others.read()
    if step.repeat == 0 or cell.batch_s == 0.0:
        warm_up(context, cell, step)
        if plan.settle_s > plan.warmup_s:
            settle(context, cell)
    else:
        settle(context, cell)
    context.log.window_opened("measure", cell.name, cell.batch_size)
    phases = Phases() if plan.phases == PHASES_INLINE else MarksOnly()
    busy_before_s = processor_use.read_s(except_for=cell.name)
    # Every window has its own arrivals; the same plan has the same arrivals again.
    driver.begin(f"{plan.seed}/{cell.name}/{cell.batch_size}/{step.repeat}")
    with context.bracket({cell.name: cell.name}) as bracket:
        span = run_span(
            context,
            cell,
            phases,
            lambda batches, elapsed_s: (
                (elapsed_s >= step.window_s and batches >= MINIMUM_BATCHES) or elapsed_s >= plan.max_window_s
            ),
            min(CALL_S, step.window_s / CALLS_PER_WINDOW),
        )
    interrupted = context.stop.requested
    if interrupted and span.batches == 0:
        raise RunStopped
    for other, share in processor_use.newly_busy(busy_before_s, bracket.duration_s, except_for=cell.name):
        context.log.note(
            "not_idle",
            f"{other} used {100 * share:.0f} % of a processor while {cell.name} was measured: its threads keep "
            "running between its calls, and the results of the other networks include their energy",
            other,
        )
    waited_s = driver.waited_ns * 1e-9
    if not interrupted:
        _settle_after(context, cell)
    others = other_work(context, before, bracket)
    flags: tuple[str, ...] = ("interrupted",) if interrupted else ()
    if span.batches < MINIMUM_BATCHES or bracket.duration_s < REFRESHES_PER_WINDOW * (context.refresh_s or 0.0):
        flags += ("too_short",)
    if scenario.name == "server" and is_overloaded(scenario.rate_per_s, cell.batch_s, waited_s, bracket.duration_s):
        flags += ("overloaded",)
        _note_overload(context, cell, span, waited_s)
    return context.log.window(
        bracket,
        "measure",
        flags=flags,
        configuration=cell.name,
        batch_size=cell.batch_size,
        repeat=step.repeat,
        batches=span.batches,
        latency=latency(span.calls, phases.batch_ends_ns, phases.latencies_ns),
        phases=phase_times(phases, bracket.duration_ns, span.batches),
        counts=phases.counts,
        other_workloads=others,
    )


def other_work(context: RunContext, before: Usage | None, bracket: Bracket) -> dict[str, float]:
    """Return the largest other workloads since ``before``, and note those on GPUs as conditions of the window."""
    if context.others is None:
        return {}
    bracket.more_conditions.update(context.others.gpus(before))
    return context.others.largest(before, bracket.processor_time)


def warm_up(context: RunContext, cell: Cell, step: MeasureStep) -> None:
    """Run until throughput and power are steady or the plan's limit is reached; measure the time per batch.

    Only sensors whose refresh period is short compared with the spans show the power.

    Raises:
        RunStopped: the user stopped the run, and there is no window.
    """
    plan = context.plan
    context.log.window_opened("warmup", cell.name, cell.batch_size)
    span_s = plan.warmup_s / (2 * STEADY_SPANS)
    power = PowerMeter(
        context.edges,
        context.sensors,
        span_s=span_s,
        largest_refresh_s=STEADY_SPANS * span_s / REFRESHES_PER_WINDOW,
    )
    rates: list[float] = []
    watts: list[float] = []
    with context.bracket_without_edges() as bracket:
        # The first batch is run alone: it allocates and tunes, and may take ten times as long as the next ones.
        batches = run_offline(context, cell, Phases(), lambda _batches, _elapsed_s: True).batches
        cell.batch_s = 0.0
        power.read()
        while True:
            span = run_offline(context, cell, Phases(), lambda _batches, elapsed_s: elapsed_s >= span_s)
            context.stop.check()
            batches += span.batches
            rates.append(span.batches_per_s)
            # A counter that is lost meanwhile leaves the decision to the rates.
            watts = [*watts, mean_watts] if (mean_watts := power.read()) is not None else []
            elapsed_s = (context.clock.monotonic_ns() - bracket.start_ns) * 1e-9
            steady = is_steady(rates) and (not watts or is_steady(watts))
            if batches < WARMUP_BATCHES:
                continue
            if (steady and elapsed_s >= plan.warmup_s) or elapsed_s >= plan.max_warmup_s:
                break
    context.log.window(
        bracket,
        "warmup",
        configuration=cell.name,
        batch_size=cell.batch_size,
        repeat=step.repeat,
        batches=batches,
        flags=() if steady else ("not_steady",),
    )


def settle(context: RunContext, cell: Cell) -> None:
    """Run before a window: for the settle time, and at least three batches.

    Raises:
        RunStopped: the user stopped the run.
    """
    settle_s = context.plan.settle_s
    cell.loaded.driver.begin("settle")
    run_span(
        context,
        cell,
        Phases(),
        lambda batches, elapsed_s: batches >= WARMUP_BATCHES and elapsed_s >= settle_s,
    )
    context.stop.check()


def is_steady(values: Sequence[float]) -> bool:
    """Return whether the last three values agree with the three before.

    Their means differ by at most 5 %, or by less than chance explains (Student's t at 97 %): a warm-up ends when the
    trend has ended. Scatter without a trend does not become less with time.
    """
    before, last = values[-2 * STEADY_SPANS : -STEADY_SPANS], values[-STEADY_SPANS:]
    if len(before) < STEADY_SPANS:
        return False
    factor = student_factor(2 * (STEADY_SPANS - 1), STEADY_COVERAGE)
    by_chance = factor * math.hypot(standard_error(before), standard_error(last))
    return abs(mean(last) - mean(before)) <= max(STEADY_WITHIN * mean(last), by_chance)


def _settle_after(context: RunContext, cell: Cell) -> None:
    settle_s = context.plan.settle_s
    if settle_s > 0.0:
        run_span(context, cell, Phases(), lambda _batches, elapsed_s: elapsed_s >= settle_s)


def _note_overload(context: RunContext, cell: Cell, span: Span, waited_s: float) -> None:
    """Write one note for each cell whose server cannot keep up."""
    if cell.overload_noted:
        return
    cell.overload_noted = True
    context.log.note(
        "overloaded",
        f"{cell} is invalid: {cell.loaded.scenario.rate_per_s:g} queries/s were requested, {span.batches_per_s:.4g} "
        f"were served; the last query waited {waited_s * 1e3:.3g} ms, and a query takes {cell.batch_s * 1e3:.3g} ms "
        "back to back",
        cell.name,
        cell.batch_size,
    )
