"""Cost of tracing, and the share of operators in the time of a batch: ``joulewatch layers`` with each runtime.

A pass runs traced and plain batches in turns and records both times, so each pass is a comparison. Passes are
repeated, because one pass is short.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from benchmarks.runtime_overhead import CASES, NETWORK

BATCHES = (1, 64)
PASSES, QUICK_PASSES = 5, 1


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    figures: list[dict[str, Any]] = []
    left_out = []
    for runtime, precision in CASES:
        for batch in BATCHES[: 1 if quick else None]:
            passes = [_traced(runtime, precision, batch) for _ in range(QUICK_PASSES if quick else PASSES)]
            if whys := [item["why"] for item in passes if "why" in item]:
                left_out.append(f"{runtime} {precision}, batch {batch}: {whys[0]}")
                continue
            figures.append({"runtime": runtime, "precision": precision, "batch": batch, "passes": passes})
    rows = [
        [
            item["runtime"],
            item["precision"],
            str(item["batch"]),
            _middle([found["plain_s"] * item["batch"] * 1e3 for found in item["passes"]], ".3g"),
            _middle([(found["traced_s"] / found["plain_s"] - 1) * 100 for found in item["passes"]], "+.1f"),
            _middle([found["operators_s"] / found["traced_s"] * 100 for found in item["passes"]], ".1f"),
        ]
        for item in figures
    ]
    head = [
        "runtime", "precision", "batch", "plain batch, ms", "extra time of traced, %", "operators' share of traced, %",
    ]  # fmt: skip
    table = "# Cost of tracing, by `joulewatch layers`\n\n" + host_line(machine) + "\n"
    table += f"{NETWORK}, one thread; tvm untuned. Median of {len(figures[0]['passes']) if figures else 0} passes, "
    table += "minimum and maximum in brackets.\n\n" + markdown_table(head, rows)
    table += "".join(f"\n- excluded: {why}" for why in left_out) + ("\n" if left_out else "")
    result = {"machine": machine, "figures": figures, "left_out": left_out}
    write_result("trace_cost", result, table)
    return result


def _traced(runtime: str, precision: str, batch: int) -> dict[str, Any]:
    """Run one pass in a separate process; return seconds per inference."""
    words = [sys.executable, "-m", "joulewatch_harness", "layers", NETWORK, "--runtime", runtime]
    words += ["--precision", precision, "--batch-size", str(batch), "--threads", "1", "--no-energy", "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"why": done.stderr.strip()}
    result = json.loads(done.stdout)
    return {
        "batches": result["trace"]["batches"],
        "traced_s": result["trace"]["seconds_per_inference"],
        "plain_s": result["trace"]["untraced_seconds_per_inference"],
        "operators_s": sum(row["seconds_per_inference"] for row in result["operators"]),
        "notes": result["notes"],
    }


def _middle(values: list[float], spec: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{spec}} [{low:{spec}}, {high:{spec}}]"
