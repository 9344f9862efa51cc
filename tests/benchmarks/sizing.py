"""Size a Prometheus for a fleet: 1,000 simulated nodes of 150 series each, scraped every 15 s by a real Prometheus.

One process serves the pages of all nodes, each as an exporter would: the same series, with counters and gauges that
change at every scrape. Samples per second, memory and disk depend on the number of series and scrapes, and little on
what else the machine does; the CPU time does, so the table shows it as measured, next to the load of the machine.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from support.servers import Server, free_port

NODES: Final = 1000
SERIES: Final = 150
"""Of a node with two processors, eight GPUs and a BMC, with their health and metadata."""
COUNTERS: Final = 60
GAUGES: Final = 50
"""The other series are constant."""
INTERVAL_S: Final = 15
SPAN_S: Final = 300.0
FILLED_NODES: Final = 10
RAPL_JOULES: Final = 2**-14
MEBIBYTE: Final = 2**20
EMPTY_MEBIBYTES: Final = 60
"""Memory of a Prometheus without targets."""
FLEETS: Final = ((100, 150, 15), (1000, 40, 15), (1000, 150, 15), (1000, 150, 1), (5000, 150, 15), (10_000, 150, 15))
"""Nodes, series per node, scrape interval."""


def samples_of(node: int, at_s: float) -> Iterator[tuple[str, str, float]]:
    """Yield name, labels and value of each series of a node.

    Energies are multiples of RAPL's unit, powers of a milliwatt, because their digits decide how well they compress.
    """
    for series in range(SERIES):
        labels = f'collector="rapl",component="cpu",device="device{series // 6}",domain="domain{series % 6}"'
        watts = 50 + node % 97 + series
        swing = math.sin(at_s / 9 + series)
        if series < COUNTERS:
            joules = math.floor((watts * (at_s % 1e6) + 40 * swing) / RAPL_JOULES) * RAPL_JOULES
            yield "joulewatch_device_energy_joules_total", labels, joules
        elif series < COUNTERS + GAUGES:
            yield "joulewatch_device_power_watts", labels, round(watts + 10 * swing, 3)
        else:
            yield "joulewatch_sensor_refresh_seconds", labels, 0.1


def block_bytes_per_sample(folder: Path) -> float:
    """Return the size of a block of two hours, which is what stays on disk, by back-filling some nodes."""
    end_s = int(time.time()) // 7200 * 7200
    names = (
        "joulewatch_device_energy_joules_total",
        "joulewatch_device_power_watts",
        "joulewatch_sensor_refresh_seconds",
    )
    lines: dict[str, list[str]] = {name: [] for name in names}
    times_s = range(end_s - 7200, end_s, INTERVAL_S)
    for node in range(FILLED_NODES):
        columns = [list(samples_of(node, at_s)) for at_s in times_s]
        for series in range(SERIES):
            for at_s, column in zip(times_s, columns, strict=True):
                name, labels, number = column[series]
                lines[name].append(f'{name}{{instance="node{node:04}:10717",{labels}}} {number!r} {at_s}')
    text = ""
    for name, rows in lines.items():
        text += f"# TYPE {name.removesuffix('_total')} {'counter' if name.endswith('_total') else 'gauge'}\n"
        text += "\n".join(rows) + "\n"
    path = folder / "filled.om"
    path.write_text(text + "# EOF\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(path), str(folder / "filled")]
    subprocess.run(command, check=True, capture_output=True)
    return size_of(folder / "filled") / (FILLED_NODES * SERIES * len(times_s))


class Fleet(BaseHTTPRequestHandler):
    """Answers ``/NODE/metrics``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        node = int(self.path.split("/")[1])
        body = "".join(
            f"{name}{{{labels}}} {number!r}\n" for name, labels, number in samples_of(node, time.time())
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def serve(port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Fleet)
    server.request_queue_size = 512
    server.serve_forever()


def start_prometheus(program: str, folder: Path, fleet: str, nodes: int) -> tuple[Server, str]:
    """Start a Prometheus whose targets are the nodes; return it and its URL."""
    targets = [
        {"targets": [f"node{node:04}:10717"], "labels": {"__metrics_path__": f"/{node}/metrics"}}
        for node in range(nodes)
    ]
    (folder / "targets.json").write_text(json.dumps(targets))
    job = {
        "job_name": "joulewatch",
        "file_sd_configs": [{"files": [str(folder / "targets.json")]}],
        "relabel_configs": [
            {"source_labels": ["__address__"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": fleet},
        ],
    }
    config = {"global": {"scrape_interval": f"{INTERVAL_S}s", "scrape_timeout": "10s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}"]
    server = Server(command, folder, f"{url}/-/ready")
    server.start()
    return server, url


def value(url: str, metric: str) -> float:
    """Return a metric of Prometheus itself."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == metric)


def healthy(url: str) -> int:
    with urllib.request.urlopen(f"{url}/api/v1/query?query=sum(up)", timeout=30) as response:
        result = json.load(response)["data"]["result"]
    return int(float(result[0]["value"][1])) if result else 0


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("the sizing needs Prometheus: apt-get install prometheus")
    nodes, span_s = (50, 20.0) if quick else (NODES, SPAN_S)
    port = free_port()
    fleet = subprocess.Popen([sys.executable, "-m", "benchmarks.sizing", str(port)], cwd=Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as name:
        server, url = start_prometheus(program, Path(name), f"127.0.0.1:{port}", nodes)
        try:
            while healthy(url) < nodes:
                time.sleep(1)
            appended, cpu_s, began_s = (
                value(url, "prometheus_tsdb_head_samples_appended_total"),
                value(url, "process_cpu_seconds_total"),
                time.monotonic(),
            )
            resident = []
            while time.monotonic() - began_s < span_s:
                time.sleep(5)
                resident.append(value(url, "process_resident_memory_bytes"))
            passed_s = time.monotonic() - began_s
            samples = value(url, "prometheus_tsdb_head_samples_appended_total") - appended
            cpu = (value(url, "process_cpu_seconds_total") - cpu_s) / passed_s
            series, up = value(url, "prometheus_tsdb_head_series"), healthy(url)
        finally:
            server.stop()
            fleet.terminate()
            fleet.wait(10)
        bytes_per_sample = block_bytes_per_sample(Path(name))
    figures = {
        "nodes": nodes,
        "nodes_up_at_the_end": up,
        "series_per_node": SERIES,
        "scrape_interval_s": INTERVAL_S,
        "seconds": passed_s,
        "head_series": series,
        "samples_per_second": samples / passed_s,
        "resident_mebibytes_median": sorted(resident)[len(resident) // 2] / MEBIBYTE,
        "resident_mebibytes_largest": max(resident) / MEBIBYTE,
        "cpu_share_of_one_core": cpu,
        "block_bytes_per_sample": bytes_per_sample,
    }
    write_result("sizing", {"machine": machine, "figures": figures}, table_of(machine, figures))
    return {"machine": machine, "figures": figures}


def table_of(machine: dict[str, Any], figures: dict[str, Any]) -> str:
    """Return what was measured, and what follows from it for other fleets."""
    mebibytes_per_series = (figures["resident_mebibytes_largest"] - EMPTY_MEBIBYTES) / figures["head_series"]
    rows = []
    for nodes, series, interval_s in FLEETS:
        rate = nodes * series / interval_s
        gigabytes_a_day = rate * 86400 * figures["block_bytes_per_sample"] / 1e9
        memory = EMPTY_MEBIBYTES + nodes * series * mebibytes_per_series
        fleet = [f"{nodes:,} × {series}", f"{interval_s} s", f"{nodes * series:,}", f"{rate:,.0f}"]
        rows.append([*fleet, f"{memory:,.0f}", f"{gigabytes_a_day:.2g}", f"{365 * gigabytes_a_day:,.0f}"])
    measured = [
        f"{figures['head_series']:,.0f}",
        f"{figures['samples_per_second']:,.0f}",
        f"{figures['resident_mebibytes_median']:.0f}",
        f"{figures['resident_mebibytes_largest']:.0f}",
        f"{figures['block_bytes_per_sample']:.2f}",
        f"{figures['cpu_share_of_one_core']:.2f}",
    ]
    heads = (
        ["series", "samples/s", "memory MiB, median", "largest", "bytes per sample on disk", "CPU, cores"],
        ["nodes × series", "scrape interval", "series", "samples/s", "memory MiB", "GB a day", "GB a year"],
    )
    load = f"{machine['load_average_at_start']:.0f}"
    return f"""# Size of a Prometheus for a fleet

{host_line(machine)}
Measured for {figures["seconds"]:.0f} s: {figures["nodes"]:,} simulated nodes with {figures["series_per_node"]} series
each, scraped every {figures["scrape_interval_s"]} s; {figures["nodes_up_at_the_end"]:,} of them were up at the end.
Prometheus adds five series to each.

{markdown_table(heads[0], [measured])}
- The machine had other work: {load} processes were waiting at the start. That matters to the CPU time only.
- Memory is that of the first minutes, without queries and rules; {EMPTY_MEBIBYTES} MiB of it are there without
  targets. It grows while the first two hours are collected. Give Prometheus twice as much.
- Bytes per sample are those of a block of two hours of {FILLED_NODES} nodes.

What follows for other fleets, in proportion to the series and samples: estimates, not measurements. A node with 40
series has two processors; one with 150 has two processors, eight GPUs and a BMC, with their health.

{markdown_table(heads[1], rows)}"""


if __name__ == "__main__":
    serve(int(sys.argv[1]))
