"""How often ``joulewatch compare`` reports a difference where nothing differs, and how often it sees one of 3 and 10 %.

Simulated energies per inference go through the real functions (``combine_mean``, ``compare_measures``): A and B of one
run, whose rounds are paired; single runs, each off by the change between runs; and repeated runs on both sides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.analysis.results.compare import compare_measures
from joulewatch_harness.analysis.results.stored_results import Measure, over_runs
from joulewatch_harness.analysis.results.uncertainty import combine_mean

RUNS: Final = 400
SCATTER: Final = 0.02
"""Relative standard deviation of a round."""
BETWEEN: Final = 0.01
"""Relative standard deviation of a run's mean."""
WITHIN: Final = {"refresh": 0.005}
"""Relative standard uncertainty of one window, whose error is part of the scatter."""
Maker = Callable[[np.random.Generator, int, float], Measure]


def measure(values: list[float], run: str) -> Measure:
    """Return the gross energy of one run with these rounds."""
    rounds = {number: [(value, {name: u * value for name, u in WITHIN.items()})] for number, value in enumerate(values)}
    estimate = combine_mean(rounds, {}, {}, covers=("sampling",))
    return Measure(
        kind="energy", name="total", basis="gross", unit="J", estimate=estimate, run=run, magnitude=estimate.value,
        sensors=frozenset({"node/rapl/socket0/package"}), methods=frozenset({"counter"}),
    )  # fmt: skip


def one_run(random: np.random.Generator, rounds: int, level: float) -> Measure:
    return measure(list(level * (1 + random.normal(0, SCATTER, rounds))), "run")


def single_run(random: np.random.Generator, rounds: int, level: float) -> Measure:
    changed = level * (1 + random.normal(0, BETWEEN))
    return measure(list(changed * (1 + random.normal(0, SCATTER, rounds))), f"run {random.random()}")


def repeated_runs(random: np.random.Generator, runs: int, level: float) -> Measure:
    """Return ``runs`` runs of three rounds each, as one side."""
    return over_runs([single_run(random, 3, level) for _ in range(runs)])


def rate(make: Maker, count: int, difference: float, seed: int, runs: int) -> float:
    """Return the share of comparisons that are significant, where B is ``difference`` above A."""
    random = np.random.default_rng(seed)
    verdicts = [
        compare_measures(1, make(random, count, 100.0), make(random, count, 100.0 * (1 + difference))).verdict
        for _ in range(runs)
    ]
    return verdicts.count("significant") / runs


def interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


CASES: Final[tuple[tuple[str, Maker, tuple[int, ...]], ...]] = (
    ("rounds of one run, paired", one_run, (2, 3, 5)),
    ("single runs, rounds", single_run, (2, 3, 5)),
    ("runs on each side, 3 rounds each", repeated_runs, (2, 3, 5)),
)


def run(*, quick: bool = False) -> None:
    """Simulate all cases and write the table."""
    machine = describe_machine()
    runs = 50 if quick else RUNS
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    started = time.perf_counter()
    for name, make, counts in CASES:
        for number, count in enumerate(counts):
            false, small, large = (rate(make, count, difference, number, runs) for difference in (0.0, 0.03, 0.10))
            low, high = interval(false, runs)
            rows.append(
                [name, str(count), f"{100 * false:.1f} [{100 * low:.1f}, {100 * high:.1f}]", f"{100 * small:.0f}",
                 f"{100 * large:.0f}"]
            )  # fmt: skip
            data.append(
                {"case": name, "count": count, "false_positives": false, "interval": [low, high],
                 "sees_3_percent": small, "sees_10_percent": large}
            )  # fmt: skip
    head = ["A and B", "n", "significant where nothing differs, % [95 % interval]", "3 % seen, %", "10 % seen, %"]
    table = (
        f"# How often a comparison is significant\n\n{host_line(machine)}\n"
        f"{runs} simulated comparisons a cell, fixed seeds, {time.perf_counter() - started:.0f} s. A round scatters by "
        f"{100 * SCATTER:g} % and a run by {100 * BETWEEN:g} % (standard deviations).\n\n{markdown_table(head, rows)}"
    )
    write_result("compare_rates", {"machine": machine, "runs": runs, "cases": data}, table)
