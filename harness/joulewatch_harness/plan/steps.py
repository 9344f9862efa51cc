"""The steps of a plan, in the order in which the runner executes them, and their durations.

The rounds of measure windows end when every cell (a configuration at a batch size) has reached the plan's target, so
their steps depend on the results: ``Rounds`` gives one step at a time, and the runner records each result.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.plan.plan import (
    MINIMUM_ROUNDS,
    MODEL_WINDOW_S,
    PHASE_COST_PAIRS,
    PHASE_COST_S,
    PHASE_PASS_S,
    PHASES_SEPARATE,
    REFRESHES_PER_WINDOW,
    Plan,
)
from joulewatch_harness.plan.target import (
    LOOKS,
    NOT_REACHED,
    STOPPED,
    expected_rounds,
    half_width_text,
    relative_half_width,
)

PACE_PRIOR_S: Final = 5.0
"""Added to the spent and to the estimated time, so that the first steps alone do not decide the remaining time."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrentStep(MeasureStep):
    """One window of several configurations at the same time; ``configuration`` is their names."""

    configurations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PhaseStep:
    """Record the phases of one configuration at one batch size, and the cost of recording, outside energy windows."""

    configuration: str
    batch_size: int


Step = IdleStep | LoadStep | MeasureStep | PhaseStep


def window_length_s(plan: Plan, refresh_s: float | None) -> float:
    """Return the length of a window: the plan's, at least 20 refresh periods, at most ``max_window_s``.

    Args:
        plan: The plan.
        refresh_s: Refresh period of the slowest sensor in the sum; None: none, and windows last 0.5 s at least.
    """
    shortest_s = MODEL_WINDOW_S if refresh_s is None else REFRESHES_PER_WINDOW * refresh_s
    least = max(plan.window_s, shortest_s)
    return min(least, plan.max_window_s)


def settle_length_s(plan: Plan, refresh_s: float | None) -> float:
    """Return the time under load around a window: the plan's, at least one refresh period, at most ``max_window_s``.

    The counter that is read at the start of a window is up to one refresh period old. If the load is younger, part of
    the window's energy is that of the time before, in every round alike, so it does not show in the scatter.

    Args:
        plan: The plan.
        refresh_s: As for ``window_length_s``.
    """
    return max(plan.settle_s, min(refresh_s or 0.0, plan.max_window_s))


@dataclass(slots=True, kw_only=True)
class RoundsCell:
    """One configuration at one batch size: its results so far, one per round."""

    configuration: str
    batch_size: int
    configurations: tuple[str, ...] = ()
    """Those that run at the same time; empty: one on its own."""
    joules: list[float | None] = field(default_factory=list)
    """Gross energy per inference; None: not known from the edges."""
    seconds: list[float] = field(default_factory=list)
    """Time per inference."""
    is_open: bool = True
    ending: str = ""
    """Why its rounds ended, for people; empty before that, with a fixed number of rounds, and after a failure."""

    @property
    def values(self) -> list[float]:
        """The energies or, if one is not known, the times: their scatter is most of the scatter of the energy."""
        joules = [value for value in self.joules if value is not None]
        return joules if len(joules) == len(self.joules) else self.seconds


class Rounds:
    """The measure steps of all rounds, one at a time.

    Every round measures all open cells in a different random order, from the seed: a drift of the machine then affects
    all of them equally, and the rounds of a cell are apart in time. A cell ends at the plan's target (see ``target``),
    all cells end at the plan's number of rounds or time limit.

    Args:
        plan: The plan.
        window_s: Length of the windows.
        limit_s: Time for all rounds, without setups; every cell has three rounds in any case. None: no limit.
    """

    def __init__(self, plan: Plan, window_s: float, limit_s: float | None = None) -> None:
        self._plan = plan
        self._window_s = window_s
        self._limit_s = limit_s
        self._spent_s = 0.0
        self._estimated_s = 0.0
        names = [item.name for item in plan.configurations]
        self.cells = {
            (name, batch_size): RoundsCell(configuration=name, batch_size=batch_size)
            for name, batch_size in itertools.product(names, plan.batch_sizes)
        }
        if plan.concurrent:
            together = " + ".join(names)
            for size in plan.batch_sizes:
                cell = RoundsCell(configuration=together, batch_size=size, configurations=tuple(names))
                self.cells[together, size] = cell
        self._unreported: list[RoundsCell] = []

    def __iter__(self) -> Iterator[MeasureStep]:
        """Yield the next step; the runner records or drops each one before it asks for the next."""
        order = list(self.cells.values())
        shuffle = random.Random(self._plan.seed).shuffle
        for number in itertools.count():
            self._end_complete(number)
            shuffle(order)
            for cell in order:
                if cell.is_open and self._is_late(number):
                    self._end_late()
                if cell.is_open:
                    yield self._step(cell, number)
            if not any(cell.is_open for cell in order):
                return

    def record(self, step: MeasureStep, *, joules: float | None, seconds: float, spent_s: float) -> None:
        """Record the result of a step.

        Args:
            step: The step.
            joules: Gross energy per inference; None: not known.
            seconds: Time per inference.
            spent_s: Duration of the step, without setups.
        """
        cell = self.cells[step.configuration, step.batch_size]
        cell.joules.append(joules)
        cell.seconds.append(seconds)
        self._spent_s += spent_s
        self._estimated_s += estimate_s(self._plan, step)

    def drop(self, step: MeasureStep) -> None:
        """End the rounds of a cell that failed."""
        self.cells[step.configuration, step.batch_size].is_open = False

    def stop(self) -> None:
        """End all open cells because the user stopped the run."""
        for cell in self.cells.values():
            rounds = len(cell.seconds)
            if cell.is_open and rounds and self._plan.max_relative_uncertainty is not None:
                self._end(cell, f"{STOPPED} after {count_of(rounds, 'round')}")

    def take_ended(self) -> list[RoundsCell]:
        """Return the cells whose rounds ended since the last call and that have an ``ending``."""
        ended, self._unreported = self._unreported, []
        return ended

    def left_s(self) -> float:
        """Return the expected time that is left, scaled by how long the steps so far took."""
        pace = (self._spent_s + PACE_PRIOR_S) / (self._estimated_s + PACE_PRIOR_S)
        estimates = [
            (number, pace * estimate_s(self._plan, self._step(cell, number)))
            for cell, numbers in self._numbers_left()
            for number in numbers
        ]
        left_s = sum(seconds for _, seconds in estimates)
        if self._limit_s is None:
            return left_s
        least_s = sum(seconds for number, seconds in estimates if number < MINIMUM_ROUNDS)
        return min(left_s, max(least_s, self._limit_s - self._spent_s))

    def _numbers_left(self) -> list[tuple[RoundsCell, range]]:
        """Return the rounds that each open cell is expected to have yet."""
        fixed, target = self._plan.rounds or 0, self._plan.max_relative_uncertainty
        return [
            (cell, range(len(cell.seconds), fixed if target is None else expected_rounds(cell.values, target)))
            for cell in self.cells.values()
            if cell.is_open
        ]

    def _step(self, cell: RoundsCell, number: int) -> MeasureStep:
        step = MeasureStep(
            configuration=cell.configuration, batch_size=cell.batch_size, repeat=number, window_s=self._window_s
        )
        if not cell.configurations:
            return step
        return ConcurrentStep(**dataclasses.asdict(step), configurations=cell.configurations)

    def _end_complete(self, rounds: int) -> None:
        """End the cells that are complete after a number of rounds."""
        target = self._plan.max_relative_uncertainty
        for cell in self.cells.values():
            if not cell.is_open:
                continue
            if target is None:
                cell.is_open = rounds != self._plan.rounds
            elif rounds in LOOKS:
                if relative_half_width(cell.values) <= target:
                    self._end(cell, _reached(cell))
                elif rounds == LOOKS[-1]:
                    self._end(cell, f"{NOT_REACHED} after {rounds} rounds: {_half_width_text(cell)}")

    def _is_late(self, number: int) -> bool:
        """Return whether the time left is too short for another window."""
        if self._limit_s is None or number < MINIMUM_ROUNDS:
            return False
        each_s = self._spent_s / max(1, sum(len(cell.seconds) for cell in self.cells.values()))
        return self._spent_s + each_s > self._limit_s

    def _end_late(self) -> None:
        """End all cells because of the time limit; their number of rounds does not depend on their results."""
        target = self._plan.max_relative_uncertainty or 0.0
        for cell in self.cells.values():
            if cell.is_open and relative_half_width(cell.values) <= target:
                self._end(cell, _reached(cell))
            elif cell.is_open:
                rounds = f"{count_of(len(cell.seconds), 'round')}, {_half_width_text(cell)}"
                self._end(cell, f"{NOT_REACHED} after {self._plan.max_run_s:g} s: {rounds}")

    def _end(self, cell: RoundsCell, ending: str) -> None:
        cell.is_open = False
        cell.ending = ending
        self._unreported.append(cell)


def _reached(cell: RoundsCell) -> str:
    return f"{_half_width_text(cell)} after {count_of(len(cell.seconds), 'round')}"


def _half_width_text(cell: RoundsCell) -> str:
    return half_width_text(cell.values) + (" of the throughput" if cell.values is cell.seconds else "")


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of a run."""

    before: tuple[Step, ...]
    rounds: Rounds
    after: tuple[Step, ...]

    def __iter__(self) -> Iterator[Step]:
        yield from self.before
        yield from self.rounds
        yield from self.after


def steps(plan: Plan, refresh_s: float | None = None) -> Steps:
    """Return the steps in order: idle, load, idle, the rounds, phases, idle."""
    before: tuple[Step, ...] = (
        IdleStep(loaded=False, duration_s=plan.idle_s),
        LoadStep(),
        IdleStep(loaded=True, duration_s=plan.idle_s),
    )
    cells = itertools.product((item.name for item in plan.configurations), plan.batch_sizes)
    after: tuple[Step, ...] = (
        *(PhaseStep(name, size) for name, size in cells if plan.phases == PHASES_SEPARATE),
        IdleStep(loaded=True, duration_s=plan.idle_s),
    )
    limit_s = plan.max_run_s
    if limit_s is not None:
        limit_s -= sum(estimate_s(plan, step) for step in (*before, *after))
    return Steps(before, Rounds(plan, window_length_s(plan, refresh_s), limit_s), after)


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
