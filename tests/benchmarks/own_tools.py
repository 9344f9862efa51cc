"""Compare joulewatch with the benchmark tool of each runtime, with the same model file, batch size and threads.

Both run in turns on one machine, in opposite orders in each round. A tool that is a program is run as users run it,
and its own batch count and clock are used; a tool that is part of the library runs in this process.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import Interval, median_interval
from joulewatch_harness.network import Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import open_network

NETWORK = "radioml-vgg10"
BATCHES = (1, 64)
ROUNDS, QUICK_ROUNDS = 8, 2
TURN_S = 1
CALL_S = 0.075
TOOL_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """One network at one batch size, loaded by joulewatch, which a tool runs as well."""

    network: Any
    model: Path
    precision: str
    batch: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only input."""
        return (self.batch, 2, 1024)


@dataclass(frozen=True, slots=True)
class Tool:
    """A benchmark tool of a runtime."""

    name: str
    runtime: str
    precisions: tuple[str, ...]
    options: Mapping[str, str]
    """Options of joulewatch with which both run the same."""
    missing: Callable[[], str]
    """Returns the reason why the tool cannot be run; empty if it can."""
    batches_per_s: Callable[[Case], float]


def compare(quick: bool) -> list[dict[str, Any]]:
    """Compare with all tools; a tool that is not installed gives a row with the reason."""
    rows: list[dict[str, Any]] = []
    for tool in TOOLS:
        if why := tool.missing():
            rows.append({"runtime": tool.runtime, "tool": tool.name, "not_run": why})
            continue
        for precision in tool.precisions[: 1 if quick else None]:
            for batch in BATCHES:
                row = {"runtime": tool.runtime, "tool": tool.name, "precision": precision, "batch": batch}
                rows.append(row | _side_by_side(tool, precision, batch, QUICK_ROUNDS if quick else ROUNDS))
    return rows


def _side_by_side(tool: Tool, precision: str, batch: int, rounds: int) -> dict[str, Any]:
    network: Any = open_network(
        Configuration(name="n", network=NETWORK, runtime=tool.runtime, precision=precision, options=dict(tool.options))
    )
    network.load()
    try:
        network.prepare(batch)
        case = Case(network, network._source.path, precision, batch)
        size = max(1, round(CALL_S * _ours_per_s(network, 3, 0.0)))
        ours, theirs = [], []
        for number in range(rounds):
            for turn in "otto" if number % 2 else "toot":
                if turn == "o":
                    ours.append(_ours_per_s(network, size, TURN_S))
                else:
                    theirs.append(tool.batches_per_s(case))
    finally:
        network.close()
    pairs = [
        (sum(ours[at : at + 2]) * batch / 2, sum(theirs[at : at + 2]) * batch / 2) for at in range(0, 2 * rounds, 2)
    ]
    return {
        "joulewatch_per_s": median_interval([ours_per_s for ours_per_s, _ in pairs]).middle,
        "tool_per_s": median_interval([tool_per_s for _, tool_per_s in pairs]).middle,
        "ratio": median_interval([ours_per_s / tool_per_s for ours_per_s, tool_per_s in pairs]).json(),
        "rounds": rounds,
    }


def _ours_per_s(network: Any, batches: int, seconds: float) -> float:
    """Return batches per second in calls like those of a measured window."""
    phases = Phases()
    done, start_ns = 0, time.monotonic_ns()
    while True:
        network.run(batches, phases)
        done += batches
        elapsed_s = (time.monotonic_ns() - start_ns) * 1e-9
        if elapsed_s >= seconds:
            return done / elapsed_s


def rows_of_table(comparisons: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for comparison in comparisons:
        if "not_run" in comparison:
            rows.append([comparison["runtime"], comparison["tool"], "", "", "", "", comparison["not_run"]])
            continue
        rows.append(
            [
                comparison["runtime"],
                comparison["tool"],
                comparison["precision"],
                str(comparison["batch"]),
                f"{comparison['joulewatch_per_s']:.0f}",
                f"{comparison['tool_per_s']:.0f}",
                Interval.of(comparison["ratio"]).text(3, sign=""),
            ]
        )
    return rows


HEAD = ["runtime", "tool", "precision", "batch", "joulewatch, inf/s", "tool, inf/s", "ratio [95 %]"]


def _program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) or (Path(sys.executable).parent / name).exists() else "not installed"


def _module(name: str) -> Callable[[], str]:
    return lambda: "" if importlib.util.find_spec(name) else f"{name} is not installed"


def _output_of(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr or done.stdout}")
    return done.stdout


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern!r} in the output of the tool:\n{text}")
    return float(match[1])


def _path(program: str) -> str:
    """Return the path of a program, which pip installs next to this interpreter."""
    installed = Path(sys.executable).parent / program
    return str(installed) if installed.exists() else str(shutil.which(program))


def _benchmark_app(case: Case) -> float:
    output = _output_of(
        [
            *(_path("benchmark_app"), "-m", str(case.model), "-d", "CPU", "-shape", str(list(case.shape))),
            *("-hint", "none", "-nstreams", "1", "-nthreads", "1", "-api", "sync", "-infer_precision", "f32"),
            *("-t", str(TURN_S)),
        ]
    )
    # The tool computes its "Throughput" as if the batch size were 1.
    return _number(r"Count:\s+(\d+) iterations", output) / (_number(r"Duration:\s+([\d.]+) ms", output) * 1e-3)


def _perf_test(case: Case) -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = _output_of(
            [
                *("onnxruntime_perf_test", "-I", "-e", "cpu", "-x", "1", "-y", "1", "-o", "99"),
                *(
                    "-f",
                    f"batch:{case.batch}",
                    "-m",
                    "duration",
                    "-t",
                    str(TURN_S),
                    str(case.model),
                    f"{folder}/result",
                ),
            ]
        )
    return _number(r"Number of inferences per second:\s+([\d.]+)", output)


def _onnxruntime_test(case: Case) -> float:
    """Run enough iterations that the slow first one, which the tool counts, has no effect."""
    iterations = max(10, round(2 * TURN_S * _ours_per_s(case.network, 3, 0.1)))
    words = [sys.executable, "-m", "onnxruntime.tools.onnxruntime_test", str(case.model), str(iterations)]
    return 1e3 / _number(r"avg latency: ([\d.e-]+) ms", _output_of([*words, "--symbolic_dims", f"batch={case.batch}"]))


def _torch_timer(case: Case) -> float:
    import torch
    from torch.utils.benchmark import Timer

    names = {"module": case.network._call, "inputs": case.network._inputs}
    timer = Timer("module(*inputs)", globals=names, num_threads=1)
    with torch.inference_mode():
        return float(1 / timer.timeit(max(1, round(TURN_S / timer.timeit(3).mean))).mean)


def _time_evaluator(case: Case) -> float:
    network = case.network
    number = max(1, round(TURN_S * _ours_per_s(network, 1, 0.1)))
    machine = network._programs[case.batch].machine
    evaluate = machine.time_evaluator("main", network._device, number=number, repeat=1)
    return float(1 / evaluate(*network._inputs).mean)


def _trtexec(case: Case) -> float:
    output = _output_of(
        [
            *(
                "trtexec",
                f"--onnx={case.model}",
                f"--shapes=input:{'x'.join(map(str, case.shape))}",
                "--noDataTransfers",
            ),
            *("--warmUp=200", f"--duration={TURN_S}", "--useCudaGraph"),
        ]
    )
    return _number(r"Throughput: ([\d.]+) qps", output)


def _onnxruntime_tool() -> Tool:
    if shutil.which("onnxruntime_perf_test"):
        return Tool("onnxruntime_perf_test", "onnxruntime", ("fp32", "int8"), {"threads": "1"}, lambda: "", _perf_test)
    # The number of threads cannot be set, so both use the default of ONNX Runtime.
    return Tool(
        "onnxruntime.tools.onnxruntime_test (onnxruntime_perf_test is not installed)",
        "onnxruntime",
        ("fp32", "int8"),
        {},
        _module("onnxruntime"),
        _onnxruntime_test,
    )


TOOLS = (
    _onnxruntime_tool(),
    Tool("benchmark_app", "openvino", ("fp32", "int8"), {"threads": "1"}, _program("benchmark_app"), _benchmark_app),
    Tool("torch.utils.benchmark.Timer", "torch", ("fp32",), {"threads": "1"}, _module("torch"), _torch_timer),
    Tool("vm.time_evaluator", "tvm", ("fp32",), {"threads": "1"}, _module("tvm"), _time_evaluator),
    Tool("trtexec", "tensorrt", ("fp32",), {}, _program("trtexec"), _trtexec),
)
