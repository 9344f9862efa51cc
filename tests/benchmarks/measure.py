"""``joulewatch measure`` on an emulated machine: how often the true energy is within the stated ±.

A real exporter reads a machine of two sockets whose counters are updated every 1 ms: one has a square power of 60 and
260 W, the other follows the load of this machine. The command is executed 200 times, for several lengths of time.
Each execution begins at a random phase of the square. The true energy is known for every window.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from support.servers import Emulator, ExporterServer

LENGTHS_S: Final = (0.05, 0.2, 0.5, 1.0)
EXECUTIONS: Final = 200
TARGET: Final = 0.95
SCENARIO: Final = {
    "name": "measure",
    "refresh_s": 0.001,
    "machine": {"sockets": 2},
    "signals": {
        "square": {"kind": "square", "low_watts": 60.0, "high_watts": 260.0, "period_s": 0.37, "duty": 0.5},
        "load": {"kind": "cpu_load", "idle_watts": 90.0, "full_watts": 280.0},
    },
    "zones": [
        {"zone": "intel-rapl:0", "name": "package-0", "key": "socket0/package", "signal": "square"},
        {"zone": "intel-rapl:1", "name": "package-1", "key": "socket1/package", "signal": "load"},
    ],
}
WORK: Final = "import time; end = time.perf_counter() + {:g}\nwhile time.perf_counter() < end: pass"


def collect(executions: int, seed: int) -> list[dict[str, Any]]:
    """Return one row for each execution and sensor."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenario = folder / "scenario.yaml"
        scenario.write_text(yaml.safe_dump(SCENARIO))
        machine = Emulator(scenario)
        machine.start()
        exporter = ExporterServer(folder / "exporter", *machine.flags)
        try:
            exporter.start()
            time.sleep(3)
            lengths = [length for length in LENGTHS_S for _ in range(executions // len(LENGTHS_S))]
            rng.shuffle(lengths)
            for length in lengths:
                time.sleep(rng.uniform(0.0, 0.37))
                window = execute(exporter.url, length, folder)
                truth = Truth.load(machine.folder)
                start_s, end_s = window["start_s"], window["start_s"] + window["seconds"]
                for key, energy in {**window["per_device"], "total": window["energy"]}.items():
                    keys = truth.keys if key == "total" else [key.removeprefix("cpu/")]
                    true_joules = sum(truth.energy_joules(one, start_s, end_s) for one in keys)
                    row = {"sensor": key.removeprefix("cpu/"), "length_s": length, "seconds": window["seconds"]}
                    rows.append(
                        {
                            **row,
                            "true_joules": true_joules,
                            "joules": energy["joules"],
                            "uncertainty_joules": energy["uncertainty_joules"],
                        }
                    )
        finally:
            exporter.stop()
            machine.remove()
    return rows


def execute(url: str, length: float, folder: Path) -> dict[str, Any]:
    """Execute the command once; return its window as JSON."""
    out = folder / "out.json"
    command = [sys.executable, "-m", "joulewatch_harness", "measure", "--exporter", url]
    command += ["--output", str(folder / "runs"), "--out", str(out), "--format", "json"]
    command += ["--", sys.executable, "-S", "-c", WORK.format(length)]
    subprocess.run(command, check=True)
    window: dict[str, Any] = json.loads(out.read_text())["windows"][0]
    return window


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one cell for each sensor and length, and one for all lengths."""
    cells = []
    for sensor in dict.fromkeys(row["sensor"] for row in rows):
        for length in (*LENGTHS_S, None):
            group = [row for row in rows if row["sensor"] == sensor and length in (None, row["length_s"])]
            errors = [100 * (row["joules"] / row["true_joules"] - 1) for row in group]
            stated = [100 * row["uncertainty_joules"] / row["joules"] for row in group]
            held = sum(abs(row["joules"] - row["true_joules"]) <= row["uncertainty_joules"] for row in group)
            cells.append(
                {
                    "sensor": sensor,
                    "length_s": length,
                    "windows": len(group),
                    "held": held,
                    "mean_error_percent": statistics.fmean(errors),
                    "rms_error_percent": statistics.fmean(error * error for error in errors) ** 0.5,
                    "largest_error_percent": max(map(abs, errors)),
                    "median_stated_percent": statistics.median(stated),
                }
            )
    return cells


def run(quick: bool = False, seed: int = 1) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    cells = summarise(collect(20 if quick else EXECUTIONS, seed))
    (total,) = (cell for cell in cells if cell["sensor"] == "total" and cell["length_s"] is None)
    share = total["held"] / total["windows"]
    verdict = (
        f"truth within ±: {total['held']} of {total['windows']} windows ({100 * share:.1f} %, target "
        f"{100 * TARGET:g} %): {'met' if share >= TARGET else 'MISSED'}"
    )
    head = ["sensor", "busy loop s", "n", "truth within ±", "mean error %", "rms error %", "largest %", "median ± %"]
    lines = [
        [
            cell["sensor"],
            "all" if cell["length_s"] is None else f"{cell['length_s']:g}",
            str(cell["windows"]),
            f"{cell['held']}/{cell['windows']}",
            f"{cell['mean_error_percent']:+.3f}",
            f"{cell['rms_error_percent']:.3f}",
            f"{cell['largest_error_percent']:.3f}",
            f"{cell['median_stated_percent']:.2f}",
        ]
        for cell in cells
    ]
    text = (
        "# Energy of a command, measured and true\n\n"
        "`joulewatch measure -- python -S -c ...` on an emulated machine with counters of 1 ms; socket0: a square of "
        "60 and 260 W, 0.37 s; socket1 follows the load of this machine. Windows include the start of Python.\n\n"
        f"Load average of this machine at the start: {machine['load_average_at_start']:.1f}.\n\n"
        f"{markdown_table(head, lines)}\n{verdict}\n\n{host_line(machine)}"
    )
    result = {"machine": machine, "verdict": verdict, "cells": cells}
    write_result("measure", result, text)
    return result
