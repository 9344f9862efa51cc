"""Decide whether a result is above a limit: energy as a test.

A result is *exceeded* only if its whole interval is above the limit, and *passed* only if its whole interval is not.
Else it is *undecided*, and the number of rounds that would settle it is estimated: the scatter of the rounds and the
random effects within them shrink with more rounds, the other errors do not.

The interval is that of the comparison, at 95 %. With several comparisons all intervals hold together at 95 %
(Bonferroni), so that more configurations and batch sizes do not make false alarms more likely. An energy that has not
risen by more than the limit is reported as risen in at most 2.5 % of the comparisons: one end of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from joulewatch_harness.analysis.results.compare import BETWEEN_RUNS, Comparison, Pair, Row
from joulewatch_harness.analysis.results.model import TOTAL, BudgetLine, Estimate
from joulewatch_harness.analysis.results.numbers import decimals_for
from joulewatch_harness.analysis.results.stored_results import GROSS, NODE
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.gum import COVERAGE

Outcome = Literal["passed", "exceeded", "undecided"]
EXIT_EXCEEDED: Final = 3
EXIT_UNDECIDED: Final = 4
MOST_ROUNDS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One result compared with its limit."""

    name: str
    limit: float
    unit: str
    outcome: Outcome
    estimate: Estimate | None = None
    """The result, with the interval that decides; None: the energy is not known."""
    missing: str = ""
    """Why the energy or its interval is not known."""
    coverage: float = COVERAGE
    comparisons: int = 1
    repeats: str = "rounds"

    @property
    def text(self) -> str:
        """Return why it is undecided, and what would settle it; empty if it is decided."""
        if self.missing or self.outcome != "undecided" or self.estimate is None:
            return self.missing
        return _needed_text(self, self.estimate, abs(self.estimate.value - self.limit))


def check_comparison(comparison: Comparison, limit_percent: float) -> list[Check]:
    """Check that the energy per inference of no pair, at no batch size, has risen by more than a limit.

    Configurations and batch sizes that only the baseline has are undecided.
    """
    rows = [(pair, row) for pair in comparison.pairs for row in _energies(pair)]
    checks = [_check_row(pair, row, limit_percent, len(rows)) for pair, row in rows]
    missing = [
        f"{_name(pair)}, batch {size}"
        for pair in comparison.pairs
        for size in pair.a.batch_sizes
        if size not in pair.b.batch_sizes
    ]
    first = comparison.pairs[0].a
    if all(pair.a.configuration == pair.b.configuration for pair in comparison.pairs):
        for run in {id(pair.b.run): pair.b.run for pair in comparison.pairs}.values():
            # Runs are compared by name: a configuration that was removed must not pass unnoticed.
            compared = {pair.a.configuration for pair in comparison.pairs if pair.b.run is run}
            lost = [name for name in first.run.configurations if name not in compared and name not in run.groups]
            missing += [f"{name} in run {run.id}" for name in lost]
    return checks + [
        Check(name=name, limit=limit_percent, unit="%", outcome="undecided", missing="only the baseline has it")
        for name in missing
    ]


def check_estimate(
    name: str,
    estimate: Estimate,
    limit: float,
    unit: str,
    *,
    coverage: float = COVERAGE,
    comparisons: int = 1,
    repeats: str = "rounds",
) -> Check:
    """Check a result against a limit.

    Args:
        name: What was measured.
        estimate: The result; without ``expanded``, it is undecided.
        limit: In the unit of the result.
        unit: Of the result and the limit.
        coverage: Of Student's factor for the repeats.
        comparisons: Number of checks that are made together.
        repeats: What is repeated: rounds, runs.
    """
    if estimate.expanded is None:
        missing = f"fewer than two {repeats}, so the scatter is not known"
        return Check(name=name, limit=limit, unit=unit, outcome="undecided", estimate=estimate, missing=missing)
    together = estimate_of(estimate.value, estimate.budget, estimate.rounds, coverage, comparisons)
    assert together.expanded is not None
    outcome: Outcome = "undecided"
    if together.value - together.expanded > limit:
        outcome = "exceeded"
    elif together.value + together.expanded <= limit:
        outcome = "passed"
    return Check(
        name=name,
        limit=limit,
        unit=unit,
        outcome=outcome,
        estimate=together,
        coverage=coverage,
        comparisons=comparisons,
        repeats=repeats,
    )


def exit_code(checks: Iterable[Check]) -> int:
    """Return 3 if a result exceeds its limit, else 4 if one is undecided, else 0."""
    outcomes = {check.outcome for check in checks}
    if "exceeded" in outcomes:
        return EXIT_EXCEEDED
    return EXIT_UNDECIDED if "undecided" in outcomes else 0


def sentence(check: Check) -> str:
    """Return a check as one line."""
    limit = f"{check.limit:g} {check.unit}"
    value = value_text(check)
    if check.outcome == "passed":
        return f"passed: {check.name}: {value}, not above {limit}"
    if check.outcome == "exceeded":
        return f"FAILED: {check.name}: {value}, above {limit}"
    return f"UNDECIDED: {check.name}: {value}, limit {limit}: {check.text}"


def value_text(check: Check) -> str:
    """Return the result with its uncertainty; a change in percent has its sign."""
    if check.estimate is None:
        return "no number"
    value, expanded = check.estimate.value, check.estimate.expanded or 0.0
    decimals = decimals_for(value, expanded)
    sign = "+" if check.unit == "%" else ""
    around = f" ± {expanded:.{decimals}f}" if expanded > 0 else ""
    rounded = round(value, decimals) + 0.0  # not -0
    return f"{rounded:{sign}.{decimals}f}{around} {check.unit}"


def _energies(pair: Pair) -> Iterator[Row]:
    """Yield the gross energy per inference at each batch size; without device sensors, that of the first node."""
    for size in dict.fromkeys(row.batch_size for row in pair.rows):
        rows = [row for row in pair.rows if (row.batch_size, row.kind, row.basis) == (size, "energy", GROSS)]
        total = next((row for row in rows if row.name == TOTAL), None)
        nodes = [row for row in rows if row.name.startswith(NODE) and row.difference is not None]
        if total is not None and total.difference is None and total.a is None and total.b is None and nodes:
            yield nodes[0]
        elif total is not None:
            yield total


def _name(pair: Pair) -> str:
    return pair.b.configuration + ("" if pair.a.run is pair.b.run else f" in run {pair.b.run.id}")


def _check_row(pair: Pair, row: Row, limit: float, comparisons: int) -> Check:
    a = pair.a.configuration
    against = f", against {a}" if a != pair.b.configuration else ""
    name = f"{_name(pair)}, batch {row.batch_size}{against}"
    if row.percent is None:
        missing = row.text or "the energy of the baseline may be 0"
        return Check(name=name, limit=limit, unit="%", outcome="undecided", missing=missing)
    repeats = "runs on each side" if pair.a.run.repeats and pair.b.run.repeats else "rounds"
    return check_estimate(
        name, row.percent, limit, "%", coverage=row.coverage, comparisons=comparisons, repeats=repeats
    )


def _needed_text(check: Check, estimate: Estimate, distance: float) -> str:
    coverage, comparisons, repeats = check.coverage, check.comparisons, check.repeats
    needed = rounds_to_settle(estimate, distance, coverage=coverage, comparisons=comparisons)
    if needed is not None:
        return f"about {needed} {repeats} would settle it ({_repeats_of(estimate.budget)} measured)"
    fixed = [line for line in estimate.budget if line.systematic]
    if (estimate_of(estimate.value, fixed, None, coverage, comparisons).expanded or 0.0) < distance:
        return f"more than {MOST_ROUNDS} {repeats} would be needed"
    if any(line.name.startswith(BETWEEN_RUNS) for line in fixed):
        return "more rounds would not settle it, but three runs on each side may: RUN1,RUN2,RUN3"
    return f"more {repeats} would not settle it: uncertainties that they do not reduce are too large"


def rounds_to_settle(
    estimate: Estimate, distance: float, *, coverage: float = COVERAGE, comparisons: int = 1
) -> int | None:
    """Return the number of rounds at which the half-width is about ``distance``; None: more than ``MOST_ROUNDS``."""
    low, high = _repeats_of(estimate.budget), MOST_ROUNDS
    if _half_width(estimate, high, coverage, comparisons) >= distance:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _half_width(estimate, middle, coverage, comparisons) < distance:
            high = middle
        else:
            low = middle
    return high


def _repeats_of(budget: Sequence[BudgetLine]) -> int:
    """Return the number of rounds; the smaller one if the sides differ."""
    return 1 + int(min((line.dof for line in budget if _is_repeats(line)), default=0.0))


def _is_repeats(line: BudgetLine) -> bool:
    return not line.systematic and math.isfinite(line.dof)


def _half_width(estimate: Estimate, rounds: int, coverage: float, comparisons: int) -> float:
    """Return the half-width to expect with a number of rounds."""
    measured = _repeats_of(estimate.budget)
    lines = []
    for line in estimate.budget:
        if _is_repeats(line):
            scale = math.sqrt((line.dof + 1) / rounds)
            lines.append(replace(line, standard=line.standard * scale, dof=rounds - 1))
        elif not line.systematic:
            lines.append(replace(line, standard=line.standard * math.sqrt(measured / rounds)))
        else:
            lines.append(line)
    return estimate_of(estimate.value, lines, None, coverage, comparisons).expanded or 0.0
