"""Time the analysis of a run of 1,000 windows and 20 sensors from a real Prometheus, with only its ID."""

from __future__ import annotations

import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from support.servers import PrometheusServer
from support.synthetic import make_world, send_world, sensor

ROUNDS, BATCH_SIZES = 50, tuple(2**n for n in range(10))
TARGET_S = 10.0


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
    start_s = float(int(time.time() - 2200))
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(start_s)) + "-0a1b2c"
    world = make_world(
        sensors,
        batch_sizes=BATCH_SIZES,
        rounds=ROUNDS,
        window_s=1.8,
        settle_s=0.1,
        scrape_s=1.0,
        start_s=start_s,
        run=run_id,
    )
    spans = []
    with tempfile.TemporaryDirectory() as name:
        server = PrometheusServer(program, Path(name) / "prometheus", out_of_order=True)
        server.start()
        try:
            send_world(server.url, world)
            for _ in range(1 if quick else 5):
                began_s, cpu_s = time.perf_counter(), time.process_time()
                source = PrometheusSource(PrometheusClient(PrometheusOptions(server.url)))
                record = source.run(run_id)
                rebuilt_s = time.perf_counter() - began_s
                result = analyze_run(record, source)
                source.close()
                spans.append((time.perf_counter() - began_s, rebuilt_s, time.process_time() - cpu_s))
        finally:
            server.stop()
    windows = sum(len(group.windows) for group in result.groups)
    total_s = statistics.median(span[0] for span in spans)
    figures = {
        "windows": windows,
        "sensors": len(sensors),
        "scrape_interval_s": 1.0,
        "total_s": total_s,
        "rebuilding_the_run_s": statistics.median(span[1] for span in spans),
        "cpu_s": statistics.median(span[2] for span in spans),
        "slowest_s": max(span[0] for span in spans),
        "peak_rss_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    row = [
        f"{windows} × {len(sensors)}",
        f"{total_s:.2f}",
        f"{figures['slowest_s']:.2f}",
        f"{figures['rebuilding_the_run_s']:.2f}",
        f"{figures['peak_rss_mebibytes']:.0f}",
    ]
    head = ["windows × sensors", "median s", "slowest s", "of it rebuilding the run s", "peak RSS MiB"]
    verdict = "met" if total_s <= TARGET_S else "MISSED"
    table = "# Speed of the analysis\n\n" + host_line(machine) + "\n" + markdown_table(head, [row])
    table += f"\n- target: under {TARGET_S:g} s: {verdict}\n"
    outcome = {"machine": machine, "figures": figures}
    write_result("analysis_speed", outcome, table)
    return outcome
