"""Cost of a child process with the process protocol: per request, and per call of 75 ms.

Requests and calls through joulewatch run in turns with the same ones by plain write, poll and read (``pairs``). The
difference is the cost of joulewatch. The rest is the cost of the pipe, the child and the machine, on which a processor
that waits for an answer goes to sleep.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from benchmarks.pairs import Interval, judged, median_interval, take_turns
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.process.network import MOST_BATCH_ENDS, ProcessNetwork, open_network

CHILDREN = Path(__file__).parents[2] / "harness" / "children"
CALL_NS = 75_000_000
BATCH_SIZES = (1, 8, 64)
REQUESTS = 200
"""Number of requests in a block."""
TARGET_US = 5.0
TARGET_PERCENT = 1.0


class Pipe:
    """The pipe of a child, used without joulewatch."""

    def __init__(self, network: ProcessNetwork) -> None:
        child = network._child
        assert child is not None
        self._to, self._from = child._stdin_fd, child._stdout_fd
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)

    def ask(self, line: bytes) -> bytes:
        os.write(self._to, line)
        answer = b""
        while not answer.endswith(b"\n"):
            self._poll.poll()
            answer += os.read(self._from, 1 << 16)
        return answer


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit("the benchmark of child processes requires g++: apt-get install g++")
    machine = describe_machine()
    rounds = 16 if quick else 100
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
                pipes.append({"child": language, **_requests(network, rounds)})
                rows += [{"child": language, **_calls(network, batch, rounds // 4)} for batch in BATCH_SIZES]
            finally:
                network.close()
    result = {"machine": machine, "requests": pipes, "calls": rows}
    table = f"# Cost of a child process\n\n{host_line(machine)}\nBrackets: 95 % of the median.\n\n"
    table += markdown_table(
        [
            "child", "bare pipe, round trip µs", "through joulewatch µs", "thereof processor time of joulewatch µs",
            "after 75 ms of sleep: bare pipe µs", "through joulewatch µs",
        ],
        [
            [
                row["child"],
                f"{row['bare_us']:.1f}",
                f"{row['ask_us']:.1f}",
                Interval.of(row["own_cpu_us"]).text(1, sign=""),
                f"{row['bare_after_sleep_us']:.0f}",
                f"{row['ask_after_sleep_us']:.0f}",
            ]
            for row in pipes
        ],
    )  # fmt: skip
    table += "\n" + markdown_table(
        [
            "child", "batch", "µs per batch", "batches per call", "call ms", "to t0 µs", "from t1 µs",
            "beyond the child's loop, bare pipe µs", "through joulewatch µs", "% of the call",
        ],
        [
            [
                row["child"],
                str(row["batch"]),
                f"{row['batch_us']:.1f}",
                str(row["batches"]),
                f"{row['call_ms']:.0f}",
                f"{row['to_t0_us']:.0f}",
                f"{row['from_t1_us']:.0f}",
                f"{row['bare_beyond_us']:.0f}",
                Interval.of(row["beyond_us"]).text(0, sign=""),
                Interval.of(row["beyond_percent"]).text(3, sign=""),
            ]
            for row in rows
        ],
    )  # fmt: skip
    costs = [Interval.of(row["own_cpu_us"]) for row in pipes]
    shares = [Interval.of(row["beyond_percent"]) for row in rows if row["batch"] >= 8]
    table += (
        f"\n- target: joulewatch adds at most {TARGET_US:g} µs of work per request to the pipe: "
        f"{_all(costs, TARGET_US, 'µs')}\n"
        f"- target: at most {TARGET_PERCENT:g} % of a call of 75 ms is outside the child's loop, from batch 8 on: "
        f"{_all(shares, TARGET_PERCENT, '%')}\n"
        "- a call has one request for any number of batches; a request that takes microseconds back to back is slower "
        "after a call, because joulewatch sleeps while the child computes and wakes up on a sleeping processor with "
        f"cold caches; calls of at most {MOST_BATCH_ENDS} batches also transfer the end of each batch\n"
    )
    write_result("process_overhead", result, table)
    return result


def _requests(network: ProcessNetwork, rounds: int) -> dict[str, Any]:
    """Measure round trips of the same request, back to back and after a sleep as long as a call."""
    child = network._child
    assert child is not None
    pipe = Pipe(network)

    def bare() -> None:
        pipe.ask(b'{"id":1,"op":"ping"}\n')

    def through_joulewatch() -> None:
        child.ask("ping", {}, limit_s=60.0, limit_option="")

    def block(call: Callable[[], None]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(REQUESTS):
                call()

        return calls

    timed = take_turns([block(bare), block(through_joulewatch)], rounds)
    each_us = 1e-3 / (2 * REQUESTS)
    after_sleep_us: dict[Callable[[], None], list[float]] = {bare: [], through_joulewatch: []}
    for _ in range(max(10, rounds // 4)):
        for call, durations_us in after_sleep_us.items():
            time.sleep(CALL_NS * 1e-9)
            start_ns = time.monotonic_ns()
            call()
            durations_us.append((time.monotonic_ns() - start_ns) * 1e-3)
    return {
        "bare_us": float(np.median(timed.wall_ns[:, 0])) * each_us,
        "ask_us": float(np.median(timed.wall_ns[:, 1])) * each_us,
        "own_cpu_us": median_interval((timed.cpu_ns[:, 1] - timed.cpu_ns[:, 0]) * each_us).json(),
        "bare_after_sleep_us": statistics.median(after_sleep_us[bare]),
        "ask_after_sleep_us": statistics.median(after_sleep_us[through_joulewatch]),
        "rounds": rounds,
    }


def _calls(network: ProcessNetwork, batch: int, rounds: int) -> dict[str, Any]:
    """Measure calls of 75 ms, with phases and ends of batches, and the same calls by the bare pipe."""
    network.prepare(batch)
    pipe = Pipe(network)
    batches = 1
    for _ in range(6):
        start_ns = time.monotonic_ns()
        network.run(batches, Phases())
        batches = max(1, min(100 * batches, batches * CALL_NS // (time.monotonic_ns() - start_ns)))
    request = {"id": 1, "op": "run", "batches": batches, "phases": True, "batch_ends": batches <= MOST_BATCH_ENDS}
    line = json.dumps(request).encode() + b"\n"
    beyond_ns: dict[bool, list[float]] = {True: [], False: []}
    lengths_ns, to_t0_ns, from_t1_ns = [], [], []
    for number in range(2 * rounds):
        for ours in (True, False) if number % 2 else (False, True):
            start_ns = time.monotonic_ns()
            if ours:
                network.run(batches, Phases())
                end_ns = time.monotonic_ns()
                beyond_ns[ours].append(end_ns - start_ns - network.last_loop_ns)
                lengths_ns.append(end_ns - start_ns)
            else:
                answer = pipe.ask(line)
                end_ns = time.monotonic_ns()
                times = json.loads(answer)
                beyond_ns[ours].append(end_ns - start_ns - (times["t1_ns"] - times["t0_ns"]))
                to_t0_ns.append(times["t0_ns"] - start_ns)
                from_t1_ns.append(end_ns - times["t1_ns"])
    call_ns = statistics.median(lengths_ns)
    through = np.array(beyond_ns[True])
    return {
        "batch": batch,
        "batches": batches,
        "batch_us": call_ns * 1e-3 / batches,
        "call_ms": call_ns * 1e-6,
        "to_t0_us": statistics.median(to_t0_ns) * 1e-3,
        "from_t1_us": statistics.median(from_t1_ns) * 1e-3,
        "bare_beyond_us": statistics.median(beyond_ns[False]) * 1e-3,
        "beyond_us": median_interval(through * 1e-3).json(),
        "beyond_percent": median_interval(100 * through / np.array(lengths_ns)).json(),
    }


def _all(intervals: list[Interval], limit: float, unit: str) -> str:
    """Return the worst verdict."""
    verdicts = [judged([interval], limit, unit) for interval in intervals]
    return max(verdicts, key=lambda text: (text == "MISSED", text.startswith("not resolved")))
