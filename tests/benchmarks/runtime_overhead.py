"""Overhead of joulewatch per batch: ``run`` compared with the shortest loop of a runtime, and with the runtime's tool.

Both loops launch the same prepared batch in one process. They run in turns in blocks of 50 ms, in both orders, about a
hundred times (``pairs``). Wall time and processor time of each block are measured; the garbage collector runs as in a
measured window. Blocks are as long as the shortest calls of a run: the start and end of a call run with cold caches
and take about 0.1 ms, which would be 1 % of a block of 10 ms. The cost of ``run`` around an empty launch is measured
as well: it is the cost with warm caches, and the ratio is the cost in use. A child process has its own loop and clock,
in calls of 75 ms.
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
"""Duration of a call of a child, as in a run."""
BUDGET_S, QUICK_BUDGET_S = 25.0, 2.0
"""Time for one runtime, precision and batch size."""
MOST_ROUNDS, FEWEST_ROUNDS = 250, 8
FEW_BATCHES = 20
"""In a block of fewer batches, the start and end of a call are most of the overhead per batch."""
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
"""Attribute that launches a batch in the ``run`` of a runtime."""


class EmptyLaunch:
    """An empty launch, in place of one that runs a batch."""

    def run_with_iobinding(self, binding: Any) -> None: ...

    def infer(self, share_outputs: bool) -> None: ...

    def __call__(self, *inputs: Any) -> None: ...


def bare_loop(runtime: str, network: Any) -> Loop:
    """Return the loop that a user would write to time this runtime, with the inputs from ``prepare``.

    As in ``run``, outputs are kept until the next outputs exist.
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
    """Measure a runtime in this process at one batch size."""
    network: Any = open_network(
        Configuration(name="n", network=NETWORK, runtime=runtime, precision=precision, options={"threads": "1"})
    )
    network.load()
    try:
        network.prepare(batch)
        bare = bare_loop(runtime, network)
        bare(3)
        batches = max(1, round(BLOCK_S / _timed_s(lambda: bare(5)) * 5))
        variants: list[Callable[[], None]] = [
            lambda: bare(batches),
            lambda: network.run(batches, Phases()),
        ]
        timed = take_turns(variants, _rounds(budget_s, _timed_s(lambda: [call() for call in variants]) * 2))
        bare_us = float(np.median(timed.wall_ns[:, 0])) / (2 * batches) * 1e-3
        cost_us = _around_empty_launch_us(runtime, network, bare)
    finally:
        network.close()
    return {
        "runtime": runtime,
        "precision": precision,
        "batch": batch,
        "bare_us_per_batch": bare_us,
        "batches_per_block": batches,
        "rounds": len(timed.wall_ns),
        "around_nothing_us": cost_us,
        "wall_ratio": timed.wall(1).json(),
        "cpu_ratio": timed.cpu(1).json(),
    }


def _rounds(budget_s: float, round_s: float) -> int:
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, round(budget_s / round_s)))


def _timed_s(call: Callable[[], Any]) -> float:
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) * 1e-9


def _around_empty_launch_us(runtime: str, network: Any, bare: Loop, count: int = 5_000) -> float:
    """Return the cost of a batch in ``run`` beyond the bare loop when both have empty launches.

    It is computed from the fastest repetitions, because disturbances only slow them down.
    """
    name = LAUNCHER[runtime]
    launched = getattr(network, name)
    setattr(network, name, EmptyLaunch())
    try:
        ours = min(_timed_s(lambda: network.run(count, Phases())) for _ in range(9))
        theirs = min(_timed_s(lambda: bare(count)) for _ in range(9))
    finally:
        setattr(network, name, launched)
    return (ours - theirs) / count * 1e6


def measure_child(precision: str, batch: int, budget_s: float) -> dict[str, Any]:
    """Measure a child process that runs the same file: calls compared with its loop without phases and batch ends.

    The child also reports the loop time of each call. The time of the call beyond it has little noise, and lacks only
    the cost of phases and batch ends in the child.
    """
    model = networks.build(NETWORK, precision, {}).path
    command = shlex.join([sys.executable, str(Path(__file__).with_name("onnx_child.py")), str(model)])
    network = open_process(NETWORK, "native", {"command": command})
    loops_ns, calls_ns, own_loops_ns = [], [], []
    try:
        network.load()
        network.prepare(batch)
        batches = 3
        for _ in range(8):  # warm-up
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
    """Return the time of the child's loop without phases and ends of batches."""
    child = network._child
    assert child is not None
    fields = {"batches": batches, "phases": False, "batch_ends": False}
    answer = child.ask("run", fields, limit_s=60.0, limit_option="run_limit_s").message
    return int(answer["t1_ns"] - answer["t0_ns"])


def _interval(figure: dict[str, Any], name: str) -> Interval | None:
    ratio = figure.get(name)
    return None if ratio is None else Interval.of(ratio)


def verdicts(figure: dict[str, Any]) -> tuple[str, str]:
    """Return the verdicts of one row: the share from batch 8 on; the cost of a launch at batch 1, where it is visible.

    ``process_overhead`` measures the cost of a request to a child.
    """
    ratios = [ratio for name in ("cpu_ratio", "beyond_ratio", "wall_ratio") if (ratio := _interval(figure, name))]
    if figure["batch"] >= TARGET_BATCH:
        return judged([ratio.scaled(100, -1) for ratio in ratios], TARGET_PERCENT, "%"), ""
    if figure["batch"] > 1 or "cpu_ratio" not in figure:
        return "", ""
    costs = [ratio.scaled(figure["bare_us_per_batch"], -1) for ratio in ratios]
    verdict = judged(costs, TARGET_CALL_US, "µs")
    few = figure["batches_per_block"]
    if verdict == "MISSED" and few < FEW_BATCHES:
        verdict += (
            f": {costs[0].middle:.0f} µs, because a block has only {few} batches and starts and ends with cold caches"
        )
    return "", verdict


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    budget_s = QUICK_BUDGET_S if quick else BUDGET_S
    figures: list[dict[str, Any]] = []
    excluded = []
    for runtime, precision in CASES:
        try:
            figures += [measure(runtime, precision, batch, budget_s) for batch in BATCHES]
        except (ConfigError, ModuleNotFoundError) as error:
            excluded.append(f"{runtime}: {error}")
    figures += [measure_child("int8", batch, budget_s) for batch in BATCHES]
    tools = own_tools.compare(quick)
    rows = []
    for figure in figures:
        figure["share"], figure["cost"] = verdicts(figure)
        wall, cpu = _interval(figure, "wall_ratio"), _interval(figure, "cpu_ratio") or _interval(figure, "beyond_ratio")
        around_us = figure.get("around_nothing_us")
        assert wall is not None
        assert cpu is not None
        rows.append(
            [
                figure["runtime"],
                figure["precision"],
                str(figure["batch"]),
                f"{figure['bare_us_per_batch']:.1f}",
                wall.scaled(100, -1).text(),
                cpu.scaled(100, -1).text(),
                "" if around_us is None else f"{around_us:.2f} = {around_us / figure['bare_us_per_batch'] * 100:.3f} %",
                figure["share"],
                figure["cost"],
            ]
        )
    head = [
        "runtime", "precision", "batch", "bare loop, µs per batch", "extra wall time of run(), %",
        "extra processor time, % (child: call beyond its loop)",
        "around an empty launch, µs per batch", f"≤ {TARGET_PERCENT:g} %", f"≤ {TARGET_CALL_US:g} µs per batch",
    ]  # fmt: skip
    rounds = [figure["rounds"] for figure in figures]
    table = "# Overhead of the harness over the loop of a runtime\n\n" + host_line(machine) + "\n"
    table += f"{NETWORK}, one thread. Brackets: 95 % of the median of {min(rounds)} to "
    table += f"{max(rounds)} rounds.\n\n" + markdown_table(head, rows) + "\n"
    table += "".join(f"- excluded: {why}\n" for why in excluded)
    table += summary(figures)
    table += "\n## Compared with the tools of the runtimes\n\n"
    table += "Same file, batch size and threads, in turns of one second.\n\n"
    table += markdown_table(own_tools.HEAD, own_tools.rows_of_table(tools))
    outcome = {
        "machine": machine,
        "figures": figures,
        "own_tools": tools,
        "left_out": excluded,
    }
    write_result("runtime_overhead", outcome, table)
    return outcome


def summary(figures: list[dict[str, Any]]) -> str:
    """Return the verdicts on the two targets over all rows."""
    lines = []
    for name, text, of in (
        ("share", f"at most {TARGET_PERCENT:g} % from batch {TARGET_BATCH} on", "share"),
        ("cost", f"at most {TARGET_CALL_US:g} µs per batch", "cost"),
    ):
        verdicts = [figure[name] for figure in figures if figure[of]]
        counted = ", ".join(
            f"{sum(verdict.startswith(word) for verdict in verdicts)} {word}"
            for word in ("met", "not resolved", "MISSED")
            if any(verdict.startswith(word) for verdict in verdicts)
        )
        lines.append(f"- target: {text}: {counted} of {len(verdicts)} rows")
    around = [figure for figure in figures if "around_nothing_us" in figure]
    if around:
        most = max(figure["around_nothing_us"] for figure in around)
        longest = max(
            figure["around_nothing_us"] / figure["bare_us_per_batch"] * 100
            for figure in around
            if figure["batch"] >= TARGET_BATCH
        )
        lines.append(
            f"- the loop of run() around an empty launch: at most {most:.2f} µs per batch, which is at most "
            f"{longest:.3f} % from batch {TARGET_BATCH} on; this is the evidence for rows that are not resolved"
        )
    lines.append(
        "- a row is met if one of its two intervals ends below the target and none begins above it, and missed if "
        "both begin above it; the cost of a launch is judged at batch 1, because the loop is the same at all sizes"
    )
    return "\n".join(lines) + "\n"
