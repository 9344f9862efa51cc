"""Rounds that end at a target: time to the target and coverage afterwards, simulated and on this machine.

Simulated: the plan and the rule are those of the preset ``normal`` (22 cells, 0.5 s windows); the energies are drawn
around a known truth. Measured: how the scatter of a window depends on its length and whether rounds are independent,
then one real run of the preset ``quick``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.network import MarksOnly, Network
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.plan.steps import MeasureStep, estimate_s, steps
from joulewatch_harness.plan.target import LOOKS, relative_half_width
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.runner.local import LocalExporter
from joulewatch_harness.runtimes import open_network

RUNS, QUICK_RUNS = 100, 5
CELLS = 22
FAST = 0.01
"""Scatter of a window of 1 s that averages out within a window."""
SPREAD = 1.5
"""The scatters of the cells of a run differ by this factor (standard deviation of the logarithm)."""
LENGTHS_S = (0.25, 0.5, 1.0, 2.0)
ROUNDS, QUICK_ROUNDS = 40, 4
Draw = Callable[[], float]
"""The next deviation of a cell from its truth, with a standard deviation of 1."""


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    simulated = [
        simulate(kind, sigma, target, QUICK_RUNS if quick else RUNS)
        for kind, sigma, target in (
            *(("normal", sigma, 0.05) for sigma in (0.003, 0.01, 0.02, 0.03, 0.05)),
            ("t3", 0.02, 0.05),
            ("dependent", 0.02, 0.05),
            *(("normal", sigma, 0.02) for sigma in (0.003, 0.01, 0.02)),
        )
    ]
    measured = measure_scatter(QUICK_ROUNDS if quick else ROUNDS)
    real = real_run(quick)
    table = f"# Rounds that end at a target\n\n{host_line(machine)}\n"
    table += _simulated_text(simulated) + _measured_text(measured) + _real_text(real)
    result = {"machine": machine, "simulated": simulated, "measured": measured, "real_run": real}
    write_result("stopping", result, table)
    return result


# Simulated


def noise(kind: str, seed: int) -> Draw:
    """Return the noise of one cell."""
    source = random.Random(seed)
    if kind == "t3":
        # Student's t with 3 degrees of freedom has a variance of 3.
        return lambda: source.gauss(0, 1) / math.sqrt(source.gammavariate(1.5, 2.0) / 3) / math.sqrt(3)
    last = source.gauss(0, 1)

    def dependent() -> float:
        nonlocal last
        last = 0.5 * last + math.sqrt(1 - 0.5**2) * source.gauss(0, 1)
        return last

    return dependent if kind == "dependent" else lambda: source.gauss(0, 1)


def play(plan: Plan, draws: Mapping[tuple[str, int], Callable[[float], float]]) -> tuple[float, list[list[float]]]:
    """Run the steps of a plan on paper; return the estimated duration and the energies of each cell."""
    total_s = 0.0
    sequence = steps(plan)
    for step in sequence:
        total_s += (spent_s := estimate_s(plan, step))
        if isinstance(step, MeasureStep):
            joules = draws[step.configuration, step.batch_size](step.window_s)
            sequence.rounds.record(step, joules=joules, seconds=1.0, spent_s=spent_s)
    return total_s, [cell.values for cell in sequence.rounds.cells.values()]


def simulate(kind: str, sigma: float, target: float, runs: int) -> dict[str, Any]:
    """Return coverage, duration and share of cells at the target of runs with fixed and with adaptive rounds."""
    adaptive = make_plan({"max_relative_uncertainty": target}, "benchmark")
    fixed = make_plan({"rounds": 3, "window_s": 2.5}, "benchmark")
    outcomes: dict[str, dict[str, list[float]]] = {
        name: {"s": [], "covered": [], "reached": []} for name in ("fixed", "adaptive", "every_round")
    }
    for number in range(runs):
        for name, plan in (("fixed", fixed), ("adaptive", adaptive)):
            source = random.Random(number)
            draws = {}
            for index, cell in enumerate(steps(plan).rounds.cells):
                slow = sigma * math.exp(source.gauss(0.0, math.log(SPREAD)))
                draws[cell] = _energy(noise(kind, 1000 * number + index), slow)
            seconds, cells = play(plan, draws)
            outcomes[name]["s"].append(seconds)
            for values in cells:
                half_width = (
                    relative_half_width(values)
                    if name == "adaptive"
                    else student_factor(len(values) - 1) * standard_error(values) / mean(values)
                )
                outcomes[name]["covered"].append(abs(mean(values) - 1.0) <= half_width * mean(values))
                outcomes[name]["reached"].append(half_width <= target)
            if name == "adaptive":
                for draw in draws.values():
                    outcomes["every_round"]["covered"].append(_covered_with_a_look_after_every_round(draw, target))
    return {
        "noise": kind,
        "sigma": sigma,
        "target": target,
        "runs": runs,
        **{
            name: {key: mean(values) for key, values in outcome.items() if values} for name, outcome in outcomes.items()
        },
    }


def _energy(draw: Draw, slow: float) -> Callable[[float], float]:
    return lambda window_s: 1.0 + math.hypot(slow, FAST / math.sqrt(window_s)) * draw()


def _covered_with_a_look_after_every_round(draw: Callable[[float], float], target: float) -> bool:
    """Return whether an interval at 95 % covers the truth if the rounds end as soon as it is narrow enough."""
    values = [draw(0.5) for _ in range(3)]
    while True:
        half_width = student_factor(len(values) - 1) * standard_error(values)
        if half_width <= target * mean(values) or len(values) == LOOKS[-1]:
            return abs(mean(values) - 1.0) <= half_width
        values.append(draw(0.5))


def _simulated_text(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "noise", "scatter of a window", "target",
        "3 × 2.5 s: coverage", "time", "at target",
        "adaptive: coverage", "time", "at target", "a look after every round: coverage",
    ]  # fmt: skip
    kinds = {"normal": "normal", "t3": "Student, 3 degrees of freedom", "dependent": "each round 0.5 of the one before"}

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    cells = [
        [
            kinds[row["noise"]],
            f"{100 * row['sigma']:g} %",
            f"±{100 * row['target']:g} %",
            *(
                text
                for name in ("fixed", "adaptive")
                for text in (percent(row[name]["covered"]), f"{row[name]['s']:.0f} s", percent(row[name]["reached"]))
            ),
            percent(row["every_round"]["covered"]),
        ]
        for row in rows
    ]
    error = 100 * math.sqrt(0.95 * 0.05 / (rows[0]["runs"] * CELLS))
    return (
        f"## Simulated\n\n{rows[0]['runs']} sweeps of the preset `normal` per row: {CELLS} cells, whose scatters "
        f"differ by a factor of {SPREAD}; a further {100 * FAST:g} % / √s averages out within a window. Times are the "
        "plan's estimates, with idle windows and warm-up; the time limit of 6 minutes applies. Coverage: share of the "
        f"printed intervals that contain the truth (standard error {error:.1f} %).\n\n"
        + markdown_table(head, cells)
        + "\n"
    )


# Measured


def measure_scatter(rounds: int) -> dict[str, Any]:
    """Measure windows of several lengths, in random order; return scatter and correlation of each length."""
    configuration = make_plan(
        {"configurations": [{"network": "radioml-vgg10", "precision": "int8", "options": {"filters": 32}}]}, "benchmark"
    ).configurations[0]
    network = open_network(configuration)
    network.load()
    network.prepare(16)
    load: list[float] = []
    series: dict[float, dict[str, list[float]]] = {
        length_s: {"joules": [], "seconds": [], "processor_seconds": []} for length_s in LENGTHS_S
    }
    order, shuffle = list(LENGTHS_S), random.Random(0).shuffle
    with (
        tempfile.TemporaryDirectory() as name,
        LocalExporter(Path(name)) as exporter,
        EdgeReader([ExporterClient(exporter.url)]) as reader,
    ):
        work(network, 2.0)
        begin_s = time.monotonic()
        for _ in range(rounds):
            shuffle(order)
            load.append(os.getloadavg()[0])
            for length_s in order:
                work(network, 0.2)
                start = reader.fetch()
                processor_s = time.process_time()
                batches, seconds = work(network, length_s)
                processor_s = time.process_time() - processor_s
                end = reader.fetch()
                work(network, 0.2)
                first, last = (
                    sum(counter.energy_joules for counter in edge.parse().counters if counter.scope == "device")
                    for edge in (start, end)
                )
                series[length_s]["joules"].append((last - first) / batches)
                series[length_s]["seconds"].append(seconds / batches)
                series[length_s]["processor_seconds"].append(processor_s / batches)
        round_s = (time.monotonic() - begin_s) / rounds
    network.close()
    return {
        "rounds": rounds,
        "round_s": round_s,
        "load_average": [min(load), max(load)],
        "lengths": [
            {
                "length_s": length_s,
                **{
                    quantity: {
                        "scatter": statistics.stdev(values) / mean(values),
                        "lag_1": lag_1(values),
                        "coverage": coverage_in_order(values),
                    }
                    for quantity, values in quantities.items()
                },
            }
            for length_s, quantities in series.items()
        ],
    }


def work(network: Network, seconds: float) -> tuple[int, float]:
    """Run batches for a time; return their number and the time."""
    batches, begin_s = 0, time.monotonic()
    while True:
        network.run(4, MarksOnly())
        batches += 4
        if (elapsed_s := time.monotonic() - begin_s) >= seconds:
            return batches, elapsed_s


def lag_1(values: Sequence[float]) -> float:
    """Return the correlation of each value with the one before."""
    centre = mean(values)
    deviations = [value - centre for value in values]
    products = math.fsum(a * b for a, b in itertools.pairwise(deviations))
    return products / math.fsum(value * value for value in deviations)


def coverage_in_order(values: Sequence[float], rounds: int = LOOKS[0]) -> float:
    """Return how often the interval of rounds in a row contains the mean of all, over all starts (circular)."""
    centre, twice = mean(values), [*values, *values]
    covered = 0
    for first in range(len(values)):
        part = twice[first : first + min(rounds, len(values))]
        covered += abs(mean(part) - centre) <= relative_half_width(part) * mean(part)
    return covered / len(values)


def _measured_text(measured: Mapping[str, Any]) -> str:
    low, high = measured["load_average"]
    rows = [
        [f"{row['length_s']:g} s"]
        + [
            f"{100 * values['scatter']:.1f} %, {values['lag_1']:+.2f}, {100 * values['coverage']:.0f} %"
            for values in (row["joules"], row["seconds"], row["processor_seconds"])
        ]
        for row in measured["lengths"]
    ]
    head = ["window", "energy per batch", "time per batch", "processor time per batch"]
    return (
        f"## Windows and rounds on this machine\n\n{measured['rounds']} rounds of windows of four lengths in random "
        f"order, a round every {measured['round_s']:.1f} s (radioml-vgg10, INT8, 32 filters, batch 16). Other work ran "
        f"on the machine: load average {low:.1f} to {high:.1f}. Each entry: scatter of a window; correlation with the "
        f"round before (independent rounds: within ±{2 / math.sqrt(measured['rounds']):.2f}); share of the intervals "
        f"of {LOOKS[0]} rounds in a row that contain the mean of all rounds.\n\n" + markdown_table(head, rows) + "\n"
    )


def real_run(quick: bool) -> dict[str, Any]:
    """Profile RadioML VGG10 with the preset ``quick``; return duration, scatter and ends of the rounds."""
    with tempfile.TemporaryDirectory() as name:
        words = ["--preset", "quick", *(("--batch-sizes", "16", "--idle", "0") if quick else ()), "--format", "json"]
        begin_s, load = time.monotonic(), os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, "-m", "joulewatch_harness", "profile", *words, "--output", name],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - begin_s
    groups = json.loads(done.stdout)["results"]
    return {
        "seconds": seconds,
        "load_average_at_start": load,
        "cells": [
            {
                "configuration": group["configuration"]["name"],
                "batch_size": group["batch_size"],
                "rounds_ended": group["rounds_ended"],
            }
            for group in groups
        ],
    }


def _real_text(real: Mapping[str, Any]) -> str:
    rows = [[cell["configuration"], str(cell["batch_size"]), cell["rounds_ended"]] for cell in real["cells"]]
    return (
        f"## A real run\n\n`joulewatch profile --preset quick` took {real['seconds']:.0f} s, with set-up and analysis "
        f"(load average {real['load_average_at_start']:.1f}).\n\n"
        + markdown_table(["configuration", "batch", "rounds"], rows)
    )


if __name__ == "__main__":
    run("--quick" in sys.argv)
