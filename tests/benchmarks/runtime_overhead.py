"""What joulewatch adds to a batch: its ``run`` beside the shortest loop of the same runtime, and beside its own tool.

Both loops launch the very same prepared batch in one process. They take turns in blocks of 50 ms, there and back, a
hundred times (``pairs``); wall time and processor time of each block are taken, the garbage collector runs as it
does in a measured window. Blocks are as long as the shortest calls of a run: what begins and ends a call finds cold
caches and takes some 0.1 ms, which is 1 % of a block of 10 ms. What ``run`` costs around a launch that does nothing
is measured beside it: that is the cost by itself, with warm caches, where the ratio is the cost in use. A child
process has its own loop, on its own clock, in calls of 75 ms.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import own_tools
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from benchmarks.pairs import Interval, judged, median_interval, take_turns
from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.network import Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import open_network
from joulewatch_harness.runtimes.process.network import ProcessNetwork
from joulewatch_harness.runtimes.process.network import open_network as open_process

NETWORK, BATCHES = "radioml-vgg10", (1, 8, 64)
BLOCK_S = 0.05
CALL_S = 0.075
"""Of a child: as the runner sizes its calls."""
BUDGET_S, QUICK_BUDGET_S = 25.0, 2.0
"""For one runtime, precision and batch size."""
MOST_ROUNDS, FEWEST_ROUNDS = 250, 8
FEW_BATCHES = 20
"""In a block of fewer the beginning and the end of a call are most of what a batch is charged with."""
TARGET_PERCENT, TARGET_BATCH, TARGET_CALL_US = 1.0, 8, 5.0
CASES = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("torch", "fp32"),
    ("tvm", "fp32"),
)
Loop = Callable[[int], None]


LAUNCHER = {"onnxruntime": "_session", "openvino": "_request", "torch": "_call", "tvm": "_main"}
"""Where a runtime's ``run`` finds what launches a batch."""


class Nothing:
    """In place of whatever launches a batch."""

    def run_with_iobinding(self, binding: Any) -> None: ...

    def infer(self, share_outputs: bool) -> None: ...

    def __call__(self, *inputs: Any) -> None: ...


def bare_loop(runtime: str, network: Any) -> Loop:
    """The loop that a person would write to time this runtime, on what ``prepare`` made.

    Outputs are kept until the next ones are there, as in ``run``.
    """
    if runtime == "onnxruntime":

        def loop(batches: int) -> None:
            call, argument = network._session.run_with_iobinding, network._binding
            for _ in range(batches):
                call(argument)

    elif runtime == "openvino":

        def loop(batches: int) -> None:
            infer = network._request.infer
            for _ in range(batches):
                infer(share_outputs=True)

    elif runtime == "torch":
        import torch

        def loop(batches: int) -> None:
            module, inputs = network._call, network._inputs
            with torch.inference_mode():
                for _ in range(batches):
                    outputs = module(*inputs)  # noqa: F841

    else:

        def loop(batches: int) -> None:
            call, inputs = network._main, network._inputs
            for _ in range(batches):
                outputs = call(*inputs)  # noqa: F841

    return loop


def measure(runtime: str, precision: str, batch: int, budget_s: float) -> dict[str, Any]:
    """One runtime of this process at one batch size."""
    network: Any = open_network(
        Configuration(name="n", network=NETWORK, runtime=runtime, precision=precision, options={"threads": "1"})
    )
    network.load()
    try:
        network.prepare(batch)
        bare = bare_loop(runtime, network)
        bare(3)
        batches = max(1, round(BLOCK_S / _timed_s(lambda: bare(5)) * 5))
        ways: list[Callable[[], None]] = [
            lambda: bare(batches),
            lambda: network.run(batches, Phases()),
        ]
        found = take_turns(ways, _rounds(budget_s, _timed_s(lambda: [way() for way in ways]) * 2))
        bare_us = float(np.median(found.wall_ns[:, 0])) / (2 * batches) * 1e-3
        cost_us = _around_nothing_us(runtime, network, bare)
    finally:
        network.close()
    return {
        "runtime": runtime,
        "precision": precision,
        "batch": batch,
        "bare_us_per_batch": bare_us,
        "batches_per_block": batches,
        "rounds": len(found.wall_ns),
        "around_nothing_us": cost_us,
        "wall_ratio": found.wall(1).json(),
        "cpu_ratio": found.cpu(1).json(),
    }


def _rounds(budget_s: float, round_s: float) -> int:
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, round(budget_s / round_s)))


def _timed_s(call: Callable[[], Any]) -> float:
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) * 1e-9


def _around_nothing_us(runtime: str, network: Any, bare: Loop, count: int = 5_000) -> float:
    """What a batch costs in this runtime's ``run`` beyond the bare loop, where both launch nothing.

    The fastest of some, as nothing can make it faster than it is.
    """
    name = LAUNCHER[runtime]
    launched = getattr(network, name)
    setattr(network, name, Nothing())
    try:
        ours = min(_timed_s(lambda: network.run(count, Phases())) for _ in range(9))
        theirs = min(_timed_s(lambda: bare(count)) for _ in range(9))
    finally:
        setattr(network, name, launched)
    return (ours - theirs) / count * 1e6


def measure_child(precision: str, batch: int, budget_s: float) -> dict[str, Any]:
    """A child process that runs the same file: whole calls beside its own loop, which then times nothing but itself.

    The loop of each call is told as well: what the call took beyond it has little noise, and lacks only what the
    child pays for phases and ends of batches.
    """
    model = networks.build(NETWORK, precision, {}).path
    command = shlex.join([sys.executable, str(Path(__file__).with_name("onnx_child.py")), str(model)])
    network = open_process(NETWORK, "native", {"command": command})
    loops_ns, calls_ns, own_loops_ns = [], [], []
    try:
        network.load()
        network.prepare(batch)
        batches = 3
        for _ in range(8):  # it warms up
            network.run(batches, Phases())
            batches = max(1, min(10 * batches, round(batches * CALL_S * 1e9 / network.last_loop_ns)))
        for number in range(_rounds(budget_s, 4 * CALL_S)):
            loop_ns = call_ns = own_ns = 0
            for ours in (True, False, False, True) if number % 2 else (False, True, True, False):
                if ours:
                    call_ns += round(_timed_s(lambda: network.run(batches, Phases())) * 1e9)
                    own_ns += network.last_loop_ns
                else:
                    loop_ns += _own_loop_ns(network, batches)
            loops_ns.append(loop_ns)
            calls_ns.append(call_ns)
            own_loops_ns.append(own_ns)
    finally:
        network.close()
    return {
        "runtime": "process (a child with ONNX Runtime)",
        "precision": precision,
        "batch": batch,
        "bare_us_per_batch": float(np.median(loops_ns)) / (2 * batches) * 1e-3,
        "batches_per_block": batches,
        "rounds": len(loops_ns),
        "wall_ratio": median_interval(np.array(calls_ns) / np.array(loops_ns)).json(),
        "beyond_ratio": median_interval(np.array(calls_ns) / np.array(own_loops_ns)).json(),
    }


def _own_loop_ns(network: ProcessNetwork, batches: int) -> int:
    """The child's loop with neither phases nor ends of batches."""
    child = network._child
    assert child is not None
    fields = {"batches": batches, "phases": False, "batch_ends": False}
    told = child.ask("run", fields, limit_s=60.0, limit_option="run_limit_s").message
    return int(told["t1_ns"] - told["t0_ns"])


def _interval(found: dict[str, Any], name: str) -> Interval | None:
    ratio = found.get(name)
    return None if ratio is None else Interval.of(ratio)


def verdicts(found: dict[str, Any]) -> tuple[str, str]:
    """For one row: the share, from batch 8 on; the cost of a launch, at batch 1, where microseconds can be seen.

    What a child's request costs is in ``process_overhead``.
    """
    ratios = [ratio for name in ("cpu_ratio", "beyond_ratio", "wall_ratio") if (ratio := _interval(found, name))]
    if found["batch"] >= TARGET_BATCH:
        return judged([ratio.scaled(100, -1) for ratio in ratios], TARGET_PERCENT, "%"), ""
    if found["batch"] > 1 or "cpu_ratio" not in found:
        return "", ""
    costs = [ratio.scaled(found["bare_us_per_batch"], -1) for ratio in ratios]
    said = judged(costs, TARGET_CALL_US, "µs")
    few = found["batches_per_block"]
    if said == "MISSED" and few < FEW_BATCHES:
        said += f": {costs[0].middle:.0f} µs, as a block has {few} of them and begins and ends with cold caches"
    return "", said


def run(quick: bool = False) -> dict[str, Any]:
    """Run it; returns and writes the result."""
    machine = describe_machine()
    budget_s = QUICK_BUDGET_S if quick else BUDGET_S
    figures: list[dict[str, Any]] = []
    left_out = []
    for runtime, precision in CASES:
        try:
            figures += [measure(runtime, precision, batch, budget_s) for batch in BATCHES]
        except (ConfigError, ModuleNotFoundError) as error:
            left_out.append(f"{runtime}: {error}")
    figures += [measure_child("int8", batch, budget_s) for batch in BATCHES]
    tools = own_tools.compare(quick)
    rows = []
    for found in figures:
        found["share"], found["cost"] = verdicts(found)
        wall, cpu = _interval(found, "wall_ratio"), _interval(found, "cpu_ratio") or _interval(found, "beyond_ratio")
        around_us = found.get("around_nothing_us")
        assert wall is not None
        assert cpu is not None
        rows.append(
            [
                found["runtime"],
                found["precision"],
                str(found["batch"]),
                f"{found['bare_us_per_batch']:.1f}",
                wall.scaled(100, -1).text(),
                cpu.scaled(100, -1).text(),
                "" if around_us is None else f"{around_us:.2f} = {around_us / found['bare_us_per_batch'] * 100:.3f} %",
                found["share"],
                found["cost"],
            ]
        )
    head = [
        "runtime", "precision", "batch", "bare loop, µs a batch", "run() more, wall %",
        "processor time % (child: the call beyond its loop)",
        "around nothing, µs a batch", f"≤ {TARGET_PERCENT:g} %", f"≤ {TARGET_CALL_US:g} µs a batch",
    ]  # fmt: skip
    rounds = [found["rounds"] for found in figures]
    table = "# Overhead of the harness over a runtime's own loop\n\n" + host_line(machine) + "\n"
    table += f"{NETWORK}, one thread. Brackets: 95 % of the median of {min(rounds)} to "
    table += f"{max(rounds)} rounds.\n\n" + markdown_table(head, rows) + "\n"
    table += "".join(f"- left out: {why}\n" for why in left_out)
    table += summary(figures)
    table += "\n## Beside the runtimes' own tools\n\n"
    table += "The same file, batch and threads, in turns of a second.\n\n"
    table += markdown_table(own_tools.HEAD, own_tools.rows_of_table(tools))
    outcome = {
        "machine": machine,
        "figures": figures,
        "own_tools": tools,
        "left_out": left_out,
    }
    write_result("runtime_overhead", outcome, table)
    return outcome


def summary(figures: list[dict[str, Any]]) -> str:
    """The two targets over all rows."""
    lines = []
    for name, text, of in (
        ("share", f"at most {TARGET_PERCENT:g} % from batch {TARGET_BATCH} on", "share"),
        ("cost", f"at most {TARGET_CALL_US:g} µs a batch", "cost"),
    ):
        judgements = [found[name] for found in figures if found[of]]
        counted = ", ".join(
            f"{sum(item.startswith(word) for item in judgements)} {word}"
            for word in ("met", "not resolved", "MISSED")
            if any(item.startswith(word) for item in judgements)
        )
        lines.append(f"- target: {text}: {counted} of {len(judgements)} rows")
    around = [found for found in figures if "around_nothing_us" in found]
    if around:
        most = max(found["around_nothing_us"] for found in around)
        longest = max(
            found["around_nothing_us"] / found["bare_us_per_batch"] * 100
            for found in around
            if found["batch"] >= TARGET_BATCH
        )
        lines.append(
            f"- the loop by itself, around a launch that does nothing: at most {most:.2f} µs a batch, which is at most "
            f"{longest:.3f} % from batch {TARGET_BATCH} on; rows that are not resolved rest on this"
        )
    lines.append(
        "- a row is met where one of its two intervals ends below the target and none begins above it, missed where "
        "both begin above it; the cost of a launch is judged at batch 1: the loop is the same at all sizes"
    )
    return "\n".join(lines) + "\n"
