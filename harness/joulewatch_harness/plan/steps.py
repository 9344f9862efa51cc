"""The steps of a plan, in the order in which the runner executes them, and their durations."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from joulewatch_harness.plan.plan import (
    MINIMUM_WINDOW_S,
    PHASE_COST_PAIRS,
    PHASE_COST_S,
    PHASE_PASS_S,
    PHASES_SEPARATE,
    REFRESHES_PER_WINDOW,
    Plan,
)


@dataclass(frozen=True, slots=True)
class IdleStep:
    """The machine is idle."""

    loaded: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoadStep:
    """Load all networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureStep:
    """One window of one configuration at one batch size."""

    configuration: str
    batch_size: int
    repeat: int
    """Number of the round, from 0; the first one warms up until the load is steady, later ones only settle."""
    window_s: float


@dataclass(frozen=True, slots=True)
class PhaseStep:
    """Record the phases of one configuration at one batch size, and the cost of recording, outside energy windows."""

    configuration: str
    batch_size: int


Step = IdleStep | LoadStep | MeasureStep | PhaseStep


def window_length_s(plan: Plan, refresh_s: float | None) -> float:
    """Return the length of a window: the plan's, at least 1 s and 20 refresh periods, at most ``max_window_s``.

    Args:
        plan: The plan.
        refresh_s: Refresh period of the slowest sensor in the sum; None: unknown.
    """
    least = max(plan.window_s, MINIMUM_WINDOW_S, REFRESHES_PER_WINDOW * (refresh_s or 0.0))
    return min(least, plan.max_window_s)


def settle_length_s(plan: Plan, refresh_s: float | None) -> float:
    """Return the time under load around a window: the plan's, at least one refresh period, at most ``max_window_s``.

    The counter that is read at the start of a window is up to one refresh period old. If the load is younger, part of
    the window's energy is that of the time before, in every round alike, so that no mean shows it.

    Args:
        plan: The plan.
        refresh_s: As for ``window_length_s``.
    """
    return max(plan.settle_s, min(refresh_s or 0.0, plan.max_window_s))


def steps(plan: Plan, refresh_s: float | None = None) -> tuple[Step, ...]:
    """Return the steps in order: idle, load, idle, the rounds, idle.

    Every round measures all configurations and batch sizes in a different random order, from the seed: a drift of the
    machine then affects all of them equally.
    """
    window_s = window_length_s(plan, refresh_s)
    cells = list(itertools.product((item.name for item in plan.configurations), plan.batch_sizes))
    sorted_cells = tuple(cells)
    shuffle = random.Random(plan.seed).shuffle
    rounds: list[Step] = []
    for repeat in range(plan.rounds):
        shuffle(cells)
        rounds += [
            MeasureStep(configuration=name, batch_size=batch_size, repeat=repeat, window_s=window_s)
            for name, batch_size in cells
        ]
    return (
        IdleStep(loaded=False, duration_s=plan.idle_s),
        LoadStep(),
        IdleStep(loaded=True, duration_s=plan.idle_s),
        *rounds,
        *(PhaseStep(name, size) for name, size in sorted_cells if plan.phases == PHASES_SEPARATE),
        IdleStep(loaded=True, duration_s=plan.idle_s),
    )


def estimate_s(plan: Plan, step: Step) -> float:
    """Estimate the duration of a step, for the remaining time; windows extended by very slow batches take longer."""
    if isinstance(step, IdleStep):
        return step.duration_s + plan.settle_s
    if isinstance(step, LoadStep):
        return 0.5 * len(plan.configurations)
    if isinstance(step, PhaseStep):
        return PHASE_PASS_S + 2 * PHASE_COST_PAIRS * PHASE_COST_S + plan.settle_s
    before_s = plan.settle_s
    if step.repeat == 0:
        warm_up_s = 0.5 * (plan.warmup_s + plan.max_warmup_s)
        before_s = warm_up_s + (plan.settle_s if plan.settle_s > plan.warmup_s else 0.0)
    return before_s + step.window_s + plan.settle_s + 0.1
