"""What a child process costs that is driven by the process protocol: per call, and as a share of its own loop."""

from __future__ import annotations

import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.process import ProcessNetwork, open_network

CHILDREN = Path(__file__).parents[2] / "harness" / "children"
CALL_NS = 75_000_000
BATCH_SIZES = (1, 8, 64)
TARGET_US = 5.0
TARGET_PERCENT = 1.0


def run(quick: bool = False) -> dict[str, Any]:
    """Run it; returns and writes the result."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit("the cost of a child process needs g++: apt-get install g++")
    machine = describe_machine()
    calls = 10 if quick else 60
    rows, pipes = [], []
    with tempfile.TemporaryDirectory() as name:
        program = f"{name}/child"
        source = str(CHILDREN / "cpp" / "child.cpp")
        subprocess.run([compiler, "-std=c++17", "-O3", "-march=native", "-o", program, source], check=True)
        commands = {"C++": program, "Python": f"{sys.executable} {CHILDREN / 'python' / 'child.py'}"}
        for language, command in commands.items():
            network = open_network("matmul", "native", {"command": command, "env.OPENBLAS_NUM_THREADS": "1"})
            network.load()
            try:
                pipes.append({"child": language, **_pipe(network, 20 * calls)})
                rows += [{"child": language, **_calls(network, batch, calls)} for batch in BATCH_SIZES]
            finally:
                network.close()
    result = {"machine": machine, "pipes": pipes, "calls": rows}
    own_us = max(item["ask_cpu_us"] - item["bare_cpu_us"] for item in pipes)
    share = max(item["beyond_percent"] for item in rows if item["batch"] >= 8)
    table = f"# Cost of a child process\n\n{host_line(machine)}\n\n"
    table += markdown_table(
        ["child", "bare pipe, there and back µs", "a request through joulewatch µs", "of it joulewatch's CPU time µs"],
        [
            [
                item["child"],
                f"{item['bare_us']:.1f}",
                f"{item['ask_us']:.1f}",
                f"{item['ask_cpu_us'] - item['bare_cpu_us']:.1f}",
            ]
            for item in pipes
        ],
    )
    table += "\n" + markdown_table(
        [
            "child",
            "batch",
            "µs per batch",
            "batches per call",
            "call ms",
            "beyond the child's own loop µs [p10-p90]",
            "%",
        ],
        [
            [
                item["child"],
                str(item["batch"]),
                f"{item['batch_us']:.1f}",
                str(item["batches"]),
                f"{item['call_ms']:.0f}",
                f"{item['beyond_us']:.0f} [{item['beyond_p10_us']:.0f}-{item['beyond_p90_us']:.0f}]",
                f"{item['beyond_percent']:.3f}",
            ]
            for item in rows
        ],
    )
    table += (
        f"\nLoad of the machine at the start: {machine['load_average_at_start']:.1f}; waiting for a processor\n"
        "counts as time beyond the child's loop.\n"
        f"\n- target: joulewatch adds at most {TARGET_US:g} µs to the pipe for each call: {_met(own_us <= TARGET_US)}\n"
        f"- target: at most {TARGET_PERCENT:g} % of a call at batch 8 and more: {_met(share <= TARGET_PERCENT)}\n"
    )
    write_result("process_overhead", result, table)
    return result


def _pipe(network: ProcessNetwork, count: int) -> dict[str, float]:
    """Round trips of the same request, by write and read alone and through ``Child.ask``, taken in turns.

    What joulewatch adds is taken from the CPU time of this thread, the median of 20 rounds: it does not depend on
    what else the machine does, as the round trips do.
    """
    child = network._child
    assert child is not None
    to_child, from_child = child._stdin.fileno(), child._stdout.fileno()
    poll = select.poll()
    poll.register(from_child, select.POLLIN)

    def bare() -> None:
        os.write(to_child, b'{"id":1,"op":"ping"}\n')
        poll.poll()
        os.read(from_child, 1 << 16)

    def asked() -> None:
        child.ask("ping", {}, limit_s=60.0, limit_option="")

    took: dict[str, list[float]] = {"bare": [], "ask": [], "bare_cpu": [], "ask_cpu": []}
    for _ in range(20):
        for name, call in (("bare", bare), ("ask", asked)):
            cpu_ns = time.thread_time_ns()
            for _ in range(count // 20):
                start_ns = time.monotonic_ns()
                call()
                took[name].append((time.monotonic_ns() - start_ns) * 1e-3)
            took[f"{name}_cpu"].append((time.thread_time_ns() - cpu_ns) * 1e-3 / (count // 20))
    return {f"{name}_us": statistics.median(values) for name, values in took.items()}


def _calls(network: ProcessNetwork, batch: int, calls: int) -> dict[str, float]:
    """Calls of 75 ms, as the harness sizes them, with phases and stamps; what they take beyond t1 - t0."""
    network.prepare(batch)
    batches = 1
    for _ in range(6):
        start_ns = time.monotonic_ns()
        network.run(batches, Phases())
        batches = max(1, min(100 * batches, batches * CALL_NS // (time.monotonic_ns() - start_ns)))
    beyond, lengths = [], []
    for _ in range(calls):
        phases = Phases()
        start_ns = time.monotonic_ns()
        network.run(batches, phases)
        lengths.append(time.monotonic_ns() - start_ns)
        beyond.append(lengths[-1] - network.last_loop_ns)
    p10, *_, p90 = statistics.quantiles(beyond, n=10)
    return {
        "batch": batch,
        "batches": batches,
        "batch_us": statistics.median(lengths) * 1e-3 / batches,
        "call_ms": statistics.median(lengths) * 1e-6,
        "beyond_us": statistics.median(beyond) * 1e-3,
        "beyond_p10_us": p10 * 1e-3,
        "beyond_p90_us": p90 * 1e-3,
        "beyond_percent": 100 * statistics.median(beyond) / statistics.median(lengths),
    }


def _met(met: bool) -> str:
    return "met" if met else "MISSED"
