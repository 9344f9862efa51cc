"""Time and memory of ``analyze`` for 10,000 windows and of ``energy --every 1h`` for a day, from a real Prometheus.

Both have 20 sensors, scraped each second. Each command runs in a new process, without the generator of the samples.
``analyze`` gets only the run's ID, so its time includes Python's start, the queries (and so the work of Prometheus on
the same machine) and rebuilding the run. On a busy machine, compare the processor times.

What the profiles of ``analyze`` showed, and what was done (39 s and 459 MiB before, on a quiet machine):

* all windows of a sensor are integrated from its history at once, in arrays; the errors of the interpolation are those
  of the samples, and were computed again for each window;
* the energy by history gets a budget only where it may be the less uncertain one;
* 640,000 hashes of sensors, 400,000 searches for pauses of counters and 20 passes over all windows are gone;
* garbage collection is off in the command: a quarter of the time;
* a Prometheus on the same machine does not compress its answers: for 27 MB of annotations that took it 1.1 s, and the
  query 0.2 s;
* the energies by edges are computed in arrays, too;
* identities of the 400,000 counters at edges are compared as plain tuples.

``energy`` needs no samples but those around the full hours, and 400 queries.

What is left of ``analyze`` is mostly the creation of objects: for each sensor and window two counters, an energy with
its budget and a result.

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
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.delivery.remote_write import send_samples
from support.servers import PrometheusServer
from support.synthetic import make_world, samples_of, send_world, sensor

SENSORS = [
    *(sensor(f"socket{n}", "package") for n in range(8)),
    *(sensor(f"socket{n}", "dram", "memory") for n in range(8)),
    *(sensor(f"socket{n}", "core", "cpu", "part") for n in range(3)),
    sensor("psys", "total", "node", "node"),
]
CONFIGURATIONS = 2
BATCH_SIZES = tuple(2**n for n in range(10))
WINDOWS = 10_000
PIECE = 600
"""Scrapes that are sent at once."""
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


def _figures(command: str, data: str, spans: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "command": command,
        "data": data,
        **{name: statistics.median(span[name] for span in spans) for name in ("total_s", "cpu_s")},
        "slowest_s": max(span["total_s"] for span in spans),
        "peak_rss_mebibytes": max(span["peak_rss_mebibytes"] for span in spans),
    }


def _analyze(url: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure ``analyze`` with a run whose windows come one after another."""
    windows = WINDOWS // 10 if quick else WINDOWS
    start_s = float(int(time.time() - 2.05 * windows - 200))
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"
    world = make_world(
        SENSORS,
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
    send_world(url, world)
    del world
    arguments = ["analyze", run_id, "--prometheus", url]
    spans = [measure(arguments, folder / "run.txt") for _ in range(1 if quick else 3)]
    text = (folder / "run.txt").read_text()
    assert run_id in text, text[:2000]
    return _figures("analyze", f"{windows} windows × {len(SENSORS)} sensors", spans)


def _energy(url: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure ``energy --every 1h`` with 24 full hours, which end before the run of `_analyze` starts."""
    hours = 2 if quick else 24
    start_s = float(int(time.time() // 3600) - 8 - hours) * 3600
    world = make_world(SENSORS, rounds=0, scrape_s=1.0, start_s=start_s - 60)
    world.end_s = start_s + hours * 3600 + 60
    raws = world.scrapes(instance="another:10717")
    with PrometheusClient(PrometheusOptions(url)) as client:
        for at in range(0, len(raws[0].times_s), PIECE):
            part = slice(at, at + PIECE)
            send_samples(
                client,
                samples_of(replace(raw, times_s=raw.times_s[part], values=raw.values[part]) for raw in raws),
            )
    span = ["--start", f"{start_s:.0f}", "--end", f"{start_s + hours * 3600:.0f}"]
    arguments = ["energy", *span, "--every", "1h", "--sensor", "another:10717/*", "--prometheus", url]
    spans = [measure(arguments, folder / "day.csv") for _ in range(1 if quick else 3)]
    lines = (folder / "day.csv").read_text().splitlines()
    # The header, and three components in each hour.
    assert len(lines) == 1 + 3 * hours, lines[:5]
    assert not any("unbracketed" in line or "no_samples" in line for line in lines), lines[:5]
    return _figures("energy --every 1h", f"{hours} h × {len(SENSORS)} sensors", spans)


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("the speed of the analysis needs Prometheus: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as name:
        server = PrometheusServer(program, Path(name) / "prometheus", out_of_order=True)
        server.start()
        try:
            # Oldest samples first, as in a server that scrapes: what arrives out of order is slow to query.
            cases = [measured(server.url, Path(name), quick=quick) for measured in (_energy, _analyze)]
        finally:
            server.stop()
    head = ["command", "data", "median s", "slowest s", "CPU s of the command", "peak RSS MiB", "target"]
    rows = [
        [
            case["command"],
            case["data"],
            f"{case['total_s']:.2f}",
            f"{case['slowest_s']:.2f}",
            f"{case['cpu_s']:.2f}",
            f"{case['peak_rss_mebibytes']:.0f}",
            "met" if case["total_s"] <= TARGET_S and case["peak_rss_mebibytes"] <= TARGET_MEBIBYTES else "MISSED",
        ]
        for case in cases
    ]
    table = "# Speed of the analysis\n\n" + host_line(machine) + "\n" + markdown_table(head, rows)
    table += (
        f"\n- target of each: under {TARGET_S:g} s and {TARGET_MEBIBYTES:g} MiB\n"
        f"- load of the machine: {machine['load_average_at_start']:.1f} at the start, {os.getloadavg()[0]:.1f} at the "
        "end\n"
    )
    outcome = {"machine": machine, "cases": cases}
    write_result("analysis_speed", outcome, table)
    return outcome
