"""The phase pass: measure the phases of one cell, their power, and the cost of recording them.

The energy windows record no phases, so their results do not contain that cost.
"""

from __future__ import annotations

from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.network import MarksOnly, Phases, TimedPhases
from joulewatch_harness.plan.plan import PHASE_COST_PAIRS, PHASE_COST_S, PHASE_PASS_S
from joulewatch_harness.runner.calls import Cell, run_offline, run_span
from joulewatch_harness.runner.context import RunContext
from joulewatch_harness.runner.latency import latency, phase_times
from joulewatch_harness.runner.measuring import settle
from joulewatch_harness.runner.phase_power import CounterTrace, phase_powers
from joulewatch_harness.runner.setup import prepare


def phase_pass(context: RunContext, cell: Cell) -> str:
    """Write a window with phases and a note about the cost of recording them.

    Returns:
        The change of throughput by recording, with its uncertainty, as text.

    Raises:
        RunStopped: the user stopped the run, before the window or before the note.
        Exception: raised by the network.
    """
    prepare(context, cell)
    settle(context, cell)
    context.log.window_opened("phase", cell.name, cell.batch_size)
    phases = TimedPhases()
    cell.loaded.driver.begin(f"{context.plan.seed}/{cell.name}/{cell.batch_size}/phases")
    trace = CounterTrace(context.edges)
    with trace, context.bracket_without_edges() as bracket:
        span = run_span(context, cell, phases, lambda _batches, elapsed_s: elapsed_s >= PHASE_PASS_S)
    context.stop.check()
    times = phase_times(phases, bracket.duration_ns, span.batches)
    powers = phase_powers(
        trace.steps(), phases, times, start_ns=bracket.start_ns, end_ns=bracket.end_ns, start_s=bracket.start_s
    )
    context.log.window(
        bracket,
        "phase",
        configuration=cell.name,
        batch_size=cell.batch_size,
        batches=span.batches,
        latency=latency(span.calls, phases.batch_ends_ns, phases.latencies_ns),
        phases=times,
        phase_powers=powers,
        counts=phases.counts,
    )
    change, expanded = recording_cost(context, cell)
    cost = f"{100 * change:+.1f} ± {100 * expanded:.1f} %"
    context.log.note(
        "phase_cost",
        f"{cell}: recording phases changes throughput by {cost}; the energy windows record no phases",
        cell.name,
        cell.batch_size,
    )
    return cost


def recording_cost(context: RunContext, cell: Cell) -> tuple[float, float]:
    """Return the relative change of throughput by recording phases, and half of its 95 % interval.

    Short spans without and with recording alternate in pairs: other load on the machine affects both alike.
    """
    changes: list[float] = []
    for pair in range(PHASE_COST_PAIRS):
        rates: dict[bool, float] = {}
        for recorded in (False, True) if pair % 2 == 0 else (True, False):
            phases = Phases() if recorded else MarksOnly()
            span = run_offline(context, cell, phases, lambda _batches, elapsed_s: elapsed_s >= PHASE_COST_S)
            context.stop.check()
            rates[recorded] = span.batches_per_s
        changes.append(rates[True] / rates[False] - 1.0)
    return mean(changes), student_factor(PHASE_COST_PAIRS - 1) * standard_error(changes)
