"""Time and memory of ``joulewatch analyze`` for a run of 10,000 windows and 20 sensors, from a real Prometheus.

The command is a process of its own, without the generator of the run. It gets only the run's ID, so its time includes
Python's start, the queries (and so the work of Prometheus on the same machine) and rebuilding the run.

What the profiles showed, and what was done (39 s and 459 MiB before, on a quiet machine):

* all windows of a sensor are integrated from its history at once, in arrays; the errors of the interpolation are those
  of the samples, and were computed again for each window;
* the energy by history gets a budget only where it may be the less uncertain one;
* 640,000 hashes of sensors, 400,000 searches for pauses of counters and 20 passes over all windows are gone;
* garbage collection is off in the command: a quarter of the time.

What did not help: the largest memory that wait4(2) reports is at least that of the generator, from which the command is
forked, so the command reports its own (``VmHWM``).
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from support.servers import PrometheusServer
from support.synthetic import make_world, send_world, sensor

CONFIGURATIONS = 2
BATCH_SIZES = tuple(2**n for n in range(10))
WINDOWS = 10_000
TARGET_S = 10.0
TARGET_MEBIBYTES = 400.0


COMMAND = """
import sys
from pathlib import Path
from joulewatch_harness.cli import main
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(code)
"""
"""Runs ``joulewatch`` and writes the memory that it used to a file."""


def measure(arguments: list[str], out: Path) -> dict[str, float]:
    """Run ``joulewatch``; return its time, its processor time and its largest memory."""
    status_file = out.with_suffix(".status")
    command = [sys.executable, "-c", COMMAND, str(status_file), *arguments]
    began_s = time.perf_counter()
    with out.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
        _, status, used = os.wait4(process.pid, 0)
    total_s = time.perf_counter() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    (peak,) = (line.split()[1] for line in status_file.read_text().splitlines() if line.startswith("VmHWM:"))
    return {
        "total_s": total_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss_mebibytes": int(peak) / 1024,
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("the speed of the analysis needs Prometheus: apt-get install prometheus")
    sensors = [
        *(sensor(f"socket{n}", "package") for n in range(8)),
        *(sensor(f"socket{n}", "dram", "memory") for n in range(8)),
        *(sensor(f"socket{n}", "core", "cpu", "part") for n in range(3)),
        sensor("psys", "total", "node", "node"),
    ]
    windows = WINDOWS // 10 if quick else WINDOWS
    start_s = float(int(time.time() - 2.05 * windows - 200))
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"
    world = make_world(
        sensors,
        batch_sizes=BATCH_SIZES,
        rounds=windows // (CONFIGURATIONS * len(BATCH_SIZES)),
        window_s=1.8,
        settle_s=0.1,
        scrape_s=1.0,
        start_s=start_s,
        run=run_id,
    )
    assert world.record is not None
    assert sum(window.kind == "measure" for window in world.record.windows) == windows
    with tempfile.TemporaryDirectory() as name:
        server = PrometheusServer(program, Path(name) / "prometheus", out_of_order=True)
        server.start()
        try:
            send_world(server.url, world)
            del world
            arguments = ["analyze", run_id, "--prometheus", server.url]
            spans = [measure(arguments, Path(name) / "out.txt") for _ in range(1 if quick else 3)]
            text = (Path(name) / "out.txt").read_text()
        finally:
            server.stop()
    assert f"{run_id}" in text, text[:2000]
    figures = {
        "windows": windows,
        "sensors": len(sensors),
        "scrape_interval_s": 1.0,
        **{name: statistics.median(span[name] for span in spans) for name in ("total_s", "cpu_s")},
        "slowest_s": max(span["total_s"] for span in spans),
        "peak_rss_mebibytes": max(span["peak_rss_mebibytes"] for span in spans),
    }
    row = [
        f"{windows} × {len(sensors)}",
        f"{figures['total_s']:.2f}",
        f"{figures['slowest_s']:.2f}",
        f"{figures['cpu_s']:.2f}",
        f"{figures['peak_rss_mebibytes']:.0f}",
    ]
    head = ["windows × sensors", "median s", "slowest s", "CPU s of the command", "peak RSS MiB"]
    is_met = figures["total_s"] <= TARGET_S and figures["peak_rss_mebibytes"] <= TARGET_MEBIBYTES
    table = "# Speed of the analysis\n\n" + host_line(machine) + "\n" + markdown_table(head, [row])
    table += (
        f"\n- target: under {TARGET_S:g} s and {TARGET_MEBIBYTES:g} MiB: {'met' if is_met else 'MISSED'}\n"
        f"- load of the machine: {machine['load_average_at_start']:.1f} at the start, {os.getloadavg()[0]:.1f} at the "
        "end\n"
    )
    outcome = {"machine": machine, "figures": figures}
    write_result("analysis_speed", outcome, table)
    return outcome
