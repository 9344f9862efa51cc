"""Cost of a measurement in local mode on the harness's side: read an edge, and record scrapes."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.runner.local import LocalExporter
from joulewatch_harness.runner.recorder import Recorder
from joulewatch_harness.storage.recording import RecordingWriter
from support.runs import header
from support.servers import Emulator

SCENARIO = "epyc-7763-node"
EDGES, QUICK_EDGES = 1000, 100
RECORDED_S, QUICK_RECORDED_S = 30.0, 3.0
RATES_HZ = (1, 10)


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    emulated = Emulator(SCENARIO)
    emulated.start()
    try:
        with tempfile.TemporaryDirectory() as name, LocalExporter(Path(name), emulated.flags) as exporter:
            edges = read_edges(exporter.url, QUICK_EDGES if quick else EDGES)
            seconds = QUICK_RECORDED_S if quick else RECORDED_S
            recorder_percent = {
                rate_hz: record(exporter.url, Path(name) / f"{rate_hz}.sqlite", rate_hz, seconds)
                for rate_hz in RATES_HZ
            }
    finally:
        emulated.stop()
    rows = [
        ["an edge, median", f"{edges['median_ms']:.2f} ms"],
        ["an edge, p99", f"{edges['p99_ms']:.2f} ms"],
        ["bounds of the clock offset from an edge, median width", f"{edges['clock_width_ms']:.2f} ms"],
        *(
            [f"recording at {rate_hz} Hz", f"{percent:.2f} % of a core"]
            for rate_hz, percent in recorder_percent.items()
        ),
    ]
    table = f"# Cost of an edge and of a recording\n\n{host_line(machine)}\n"
    table += f"Local mode, emulated node {SCENARIO}.\n\n" + markdown_table(["operation", "cost"], rows)
    result = {
        "machine": machine,
        "edge": edges,
        "recorder_percent_of_a_core": recorder_percent,
    }
    write_result("edge_cost", result, table)
    return result


def read_edges(url: str, count: int) -> dict[str, float]:
    """Read edges as the runner does, with a pause between two; return times and widths."""
    times_ms, widths_ms = [], []
    with EdgeReader([ExporterClient(url)]) as reader:
        reader.fetch()
        for _ in range(count):
            began_s = time.perf_counter()
            raw = reader.fetch()
            times_ms.append((time.perf_counter() - began_s) * 1e3)
            (clock,) = raw.parse().clocks
            widths_ms.append((clock.upper_s - clock.lower_s) * 1e3)
            time.sleep(0.003)
    times_ms.sort()
    return {
        "median_ms": statistics.median(times_ms),
        "p99_ms": times_ms[int(0.99 * count)],
        "clock_width_ms": statistics.median(widths_ms),
    }


def record(url: str, path: Path, rate_hz: float, seconds: float) -> float:
    """Return the processor time of this process while it records, in percent of a core."""
    with RecordingWriter.create(path, header()) as writer:
        cpu_s = time.process_time()
        with Recorder([ExporterClient(url, name="local")], writer, rate_hz=rate_hz):
            time.sleep(seconds)
        return 100 * (time.process_time() - cpu_s) / seconds
