"""How often the audit reports dependent rounds: simulated, of independent rounds and of rounds with a correlation."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.analysis.results.audit.dependent_rounds import LEAST_ROUNDS, SIGNIFICANCE, dependence_of
from support.rounds import rounds_of

RUNS, QUICK_RUNS = 2000, 20
RHO: Final = 0.5
LENGTHS: Final = ([5], [5] * 3, [5] * 12, [8] * 3, [8] * 12, [12] * 3, [12] * 12, [5] * 8 + [8] * 3 + [12], [18], [40])
SHARED: Final = (0.0, 0.5, 1.0)


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    runs = QUICK_RUNS if quick else RUNS
    rows = [
        {
            "lengths": lengths,
            "shared": shared,
            **{name: simulate(lengths, rho, shared, runs) for name, rho in (("independent", 0.0), ("dependent", RHO))},
        }
        for lengths in LENGTHS
        for shared in (SHARED if len(lengths) > 1 else (0.0,))
    ]
    result = {"machine": machine, "runs": runs, "rho": RHO, "rows": rows}
    write_result("dependent_rounds", result, f"# Dependent rounds\n\n{host_line(machine)}\n{_text(rows, runs)}")
    return result


def simulate(lengths: Sequence[int], rho: float, shared: float, runs: int) -> dict[str, float]:
    """Return the share of runs with the finding, and the mean of the reported correlations."""
    outcomes = [dependence_of(rounds_of(random.Random(seed), lengths, rho, shared)) for seed in range(runs)]
    known = [outcome for outcome in outcomes if outcome is not None]
    return {
        "reported": fmean(outcome.p_value <= SIGNIFICANCE for outcome in known),
        "correlation": fmean(outcome.correlation for outcome in known),
    }


def _text(rows: Sequence[Mapping[str, Any]], runs: int) -> str:
    head = [
        "results × rounds", "shared",
        "independent: reported", "correlation", f"each round {RHO:g} of the one before: reported", "correlation",
    ]  # fmt: skip
    cells = [
        [
            " + ".join(f"{row['lengths'].count(rounds)} × {rounds}" for rounds in sorted(set(row["lengths"]))),
            f"{100 * row['shared']:g} %",
            *(
                text
                for name in ("independent", "dependent")
                for text in (f"{100 * row[name]['reported']:.1f} %", f"{row[name]['correlation']:+.2f}")
            ),
        ]
        for row in rows
    ]
    return (
        f"{runs} simulated runs per row. Reported: share of the runs with the finding `dependent_rounds` (a p-value of "
        f"at most {100 * SIGNIFICANCE:g} %; at least {LEAST_ROUNDS} rounds). Correlation: mean of the stated ones. "
        "Shared: share of the variance that is the same for all results of a round, because the machine was slow in "
        "it.\n\n" + markdown_table(head, cells)
    )


if __name__ == "__main__":
    run("--quick" in sys.argv)
