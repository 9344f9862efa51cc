"""What joulewatch adds to a batch: its ``run`` loop beside the shortest loop of the same runtime, in one process.

Both loops launch the very same prepared batch. They take turns in spans of a tenth of a second, so that a machine
that changes speed does so for both; the figure is the ratio of each pair of neighbours, its median, and the range
of the middle half.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import open_network

NETWORK, BATCHES = "radioml-vgg10", (1, 8, 64)
SPAN_S = 0.1
TARGET_PERCENT, TARGET_BATCH, TARGET_CALL_US = 1.0, 8, 5.0
CASES = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("torch", "fp32"),
)

Loop = Callable[[int], None]


def bare_loop(runtime: str, network: Any) -> Loop:
    """The loop that a person would write to time this runtime, on what ``prepare`` made."""
    if runtime == "onnxruntime":
        call, argument = network._session.run_with_iobinding, network._binding

        def loop(batches: int) -> None:
            for _ in range(batches):
                call(argument)

    elif runtime == "openvino":
        infer = network._request.infer

        def loop(batches: int) -> None:
            for _ in range(batches):
                infer(share_outputs=True)

    else:
        import torch

        module, inputs = network._call, network._inputs

        def loop(batches: int) -> None:
            with torch.inference_mode():
                for _ in range(batches):
                    module(*inputs)

    return loop


def measure(runtime: str, precision: str, batch: int, pairs: int, kind: type[Phases]) -> dict[str, Any]:
    """One runtime at one batch size."""
    options = {"threads": "1"}
    network: Any = open_network(Configuration("n", NETWORK, runtime, precision, options=options))
    network.load()
    network.prepare(batch)
    bare = bare_loop(runtime, network)

    def ours(batches: int) -> None:
        network.run(batches, kind())

    def span_s(loop: Loop, batches: int) -> float:
        start_ns = time.perf_counter_ns()
        loop(batches)
        return (time.perf_counter_ns() - start_ns) * 1e-9 / batches

    span_s(bare, 3)
    batches = max(3, round(SPAN_S / span_s(bare, 5)))
    ratios, bare_s = [], []
    for number in range(pairs):
        loops = (bare, ours) if number % 2 else (ours, bare)
        times = {loop: span_s(loop, batches) for loop in loops}
        ratios.append(times[ours] / times[bare])
        bare_s.append(times[bare])
    network.close()
    low, middle, high = statistics.quantiles(ratios, n=4)
    batch_s = statistics.median(bare_s)
    return {
        "runtime": runtime,
        "precision": precision,
        "batch": batch,
        "phases": kind is Phases,
        "bare_us_per_batch": batch_s * 1e6,
        "overhead_percent": (middle - 1) * 100,
        "overhead_percent_middle_half": [(low - 1) * 100, (high - 1) * 100],
        "overhead_us_per_batch": (middle - 1) * batch_s * 1e6,
    }


def loop_cost_us() -> float:
    """What the loop adds to a batch, on one that does nothing: the cost itself, without the noise of a network."""
    count = 200_000

    def nothing() -> None: ...

    def ours(phases: Phases) -> None:
        mark = phases.batch
        for _ in range(count):
            with phases("execute"):
                nothing()
            mark()

    costs = []
    for _ in range(7):
        start_ns = time.perf_counter_ns()
        for _ in range(count):
            nothing()
        middle_ns = time.perf_counter_ns()
        ours(Phases())
        costs.append((time.perf_counter_ns() - middle_ns - (middle_ns - start_ns)) / count * 1e-3)
    return min(costs)


def run(quick: bool = False) -> dict[str, Any]:
    """Run it; returns and writes the result."""
    machine = describe_machine()
    rows, figures = [], []
    cost_us = loop_cost_us()
    for runtime, precision in CASES:
        if importlib.util.find_spec(runtime) is None:
            continue
        for batch in BATCHES:
            for kind in (Phases, MarksOnly):
                found = measure(runtime, precision, batch, 8 if quick else 60, kind)
                figures.append(found)
                low, high = found["overhead_percent_middle_half"]
                rows.append(
                    [
                        runtime,
                        precision,
                        str(batch),
                        "yes" if found["phases"] else "no",
                        f"{found['bare_us_per_batch']:.1f}",
                        f"{found['overhead_percent']:+.2f}",
                        f"{low:+.2f} to {high:+.2f}",
                        f"{cost_us / found['bare_us_per_batch'] * 100:.2f}",
                    ]
                )
    head = [
        "runtime", "precision", "batch", "phases", "bare loop µs/batch", "run() more, %", "middle half, %",
        "loop's own cost, %",
    ]  # fmt: skip
    shortest_us = min(item["bare_us_per_batch"] for item in figures if item["batch"] >= TARGET_BATCH)
    share = cost_us / shortest_us * 100
    verdict = "met" if share <= TARGET_PERCENT and cost_us <= TARGET_CALL_US else "MISSED"
    table = "# Overhead of the harness over a runtime's own loop\n\n" + host_line(machine) + "\n"
    table += f"{NETWORK}, one thread.\n\n" + markdown_table(head, rows)
    table += (
        f"\n- the loop itself (one phase and one mark for each batch, around nothing): {cost_us:.2f} µs a batch, "
        f"{share:.2f} % of the shortest batch of {TARGET_BATCH} or more\n"
        f"- target: at most {TARGET_PERCENT:g} % from batch {TARGET_BATCH} on, at most {TARGET_CALL_US:g} µs a call: "
        f"{verdict}\n"
        "- the measured ratios hold the machine's noise: where their middle half spans 0, no overhead was seen\n"
    )
    outcome = {
        "machine": machine,
        "loop_us_per_batch": cost_us,
        "figures": figures,
        "load_average_at_end": os.getloadavg()[0],
    }
    write_result("runtime_overhead", outcome, table)
    return outcome
