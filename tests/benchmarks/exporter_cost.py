"""Cost of the exporter: time per read, scrape latency, CPU and memory at 1 s scrapes, for 20, 200 and 1,000
sensors, compared with prometheus-node-exporter (rapl and hwmon only) on the same tree in the same run.

node_exporter shares no energy among workloads, so the target, half of its median, is for ``--no-attribution``. The
median is that of scrapes in a row, as when the target was set, in blocks of one exporter after the other. Next to it is
the median of scrapes in turns, where each exporter finds its caches cold, as it does at one scrape per second.

At 20 sensors, a scrape is 0.1 ms of server and client (``/-/healthy`` takes as long), 0.1 ms of reads and counters and
0.05 ms of text; with attribution, 0.2 ms more: the usage is read on another thread. With cold caches, all of it takes
twice as long, so fewer instructions and fewer threads help more than their share of a profile. What helped: the thread
of the scrape reads the families itself (30 % of the time and 40 % of the processor time, because waking a thread in a
virtual machine takes 0.05 ms), and text with slots for the values. Tried without gain: one thread that reads all
families for the scrape. The fstat before each read (0.8 of 2.6 µs) detects that a file was replaced; files of sysfs,
which the kernel never replaces, are read without it.
"""

from __future__ import annotations

import http.client
import math
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from support.servers import ExporterServer, Server, free_port
from support.watched_machine import Resources

CHANNELS_PER_CHIP = 8
SCRAPES = 300
BLOCK = 100
"""Scrapes in a row of one exporter."""


def write_tree(sysfs: Path, sensors: int) -> None:
    """Write two RAPL packages with a core zone each; the other sensors are channels of hwmon chips."""
    for socket in (0, 1):
        for zone, name in ((f"{socket}", f"package-{socket}"), (f"{socket}:0", "core")):
            folder = sysfs / "class/powercap" / f"intel-rapl:{zone}"
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "energy_uj").write_text("123456789\n")
            (folder / "max_energy_range_uj").write_text("65532610987\n")
    channels = sensors - 4
    chip = 0
    while channels > 0:
        folder = sysfs / f"devices/platform/board.{chip}/hwmon/hwmon{chip}"
        folder.mkdir(parents=True)
        (folder / "name").write_text("ltc2992\n")
        for channel in range(1, min(CHANNELS_PER_CHIP, channels) + 1):
            (folder / f"power{channel}_input").write_text(f"{12_000_000 + channel}\n")
        (sysfs / "class/hwmon").mkdir(parents=True, exist_ok=True)
        (sysfs / f"class/hwmon/hwmon{chip}").symlink_to(f"../../devices/platform/board.{chip}/hwmon/hwmon{chip}")
        (folder / "device").symlink_to(f"../../../board.{chip}")
        channels -= CHANNELS_PER_CHIP
        chip += 1


def write_procfs(procfs: Path) -> None:
    """Write a processor that is not from AMD, so that its core zones are read."""
    procfs.mkdir(parents=True)
    (procfs / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: benchmark\n")
    (procfs / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")


def processor_ms(pid: int) -> float:
    """Return the processor time of a process so far, with that of threads that have ended."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e6  # clock_getcpuclockid(3), which Python does not have


def with_bytecode(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment in which Python keeps bytecode: compiling each module at the start would cost memory."""
    kept = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def warm_up(servers: Mapping[str, Server]) -> None:
    """Scrape for some seconds, in which the exporter measures how often its counters change."""
    for _ in range(8):
        time.sleep(0.5)
        for server in servers.values():
            with urllib.request.urlopen(server.ready_url.replace("/-/healthy", "/metrics"), timeout=10) as response:
                response.read()


def measure(servers: Mapping[str, Server], idle_scrapes: int) -> dict[str, dict[str, float]]:
    """Measure scrapes in a row and in turns, then processor time at one scrape per second.

    In turns, the order alternates, so other load on the machine meets all exporters alike.
    """
    pids = {name: server.process.pid for name, server in servers.items() if server.process is not None}
    connections = {
        name: http.client.HTTPConnection(urlsplit(server.ready_url).netloc, timeout=10)
        for name, server in servers.items()
    }
    sizes: dict[str, int] = {}

    def scrape(name: str) -> float:
        start = time.perf_counter()
        connections[name].request("GET", "/metrics")
        sizes[name] = len(connections[name].getresponse().read())
        return (time.perf_counter() - start) * 1e3

    in_a_row_ms: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(SCRAPES // BLOCK):
        for name in servers:
            in_a_row_ms[name] += [scrape(name) for _ in range(BLOCK)]
    spans_ms: dict[str, list[float]] = {name: [] for name in servers}
    before = {name: processor_ms(pid) for name, pid in pids.items()}
    for turn in range(SCRAPES):
        for name in list(servers) if turn % 2 else reversed(list(servers)):
            spans_ms[name].append(scrape(name))
    busy_ms = {name: (processor_ms(pid) - before[name]) / SCRAPES for name, pid in pids.items()}
    before, start = {name: processor_ms(pid) for name, pid in pids.items()}, time.monotonic()
    for tick in range(idle_scrapes):
        time.sleep(max(0.0, start + tick + 1 - time.monotonic()))
        for name in servers:
            scrape(name)
    passed_ms = (time.monotonic() - start) * 1e3
    figures = {}
    for name, pid in pids.items():
        connections[name].close()
        ordered = sorted(spans_ms[name])
        figures[name] = {
            "in_a_row_median_ms": statistics.median(in_a_row_ms[name]),
            "scrape_median_ms": statistics.median(ordered),
            "scrape_p99_ms": ordered[int(0.99 * len(ordered))],
            "processor_ms_per_scrape": busy_ms[name],
            "cpu_percent_of_a_core_at_1s": 100 * (processor_ms(pid) - before[name]) / passed_ms,
            "rss_mebibytes": Resources.of(pid).rss_mebibytes,
            "exposition_bytes": sizes[name],
        }
    return figures


def read_costs_us(sysfs: Path, procfs: Path, folder: Path) -> dict[str, float]:
    """Return the median time of one read of one sensor in this process, by family and kind of channel."""
    from joulewatch_exporter.collectors.hwmon.collector import HwmonCollector
    from joulewatch_exporter.collectors.rapl.collector import RaplCollector
    from joulewatch_exporter.model import Collector, Host
    from support.sysfs import FakeSysfs

    products, sleepers = FakeSysfs(folder / "products"), FakeSysfs(folder / "sleepers")
    for chip in range(8):
        device = f"platform/board.{chip}"
        products.hwmon(chip, "ina226", device=device, in1_input=12_000, curr1_input=1_000)
        sleepers.hwmon(chip, "amdgpu", device=device, power1_input=12_000_000)
        sleepers.write(f"devices/{device}/power", runtime_status="active")
    host = Host(sysfs=sysfs, procfs=procfs)
    families: tuple[tuple[str, type[Collector], Host], ...] = (
        ("rapl", RaplCollector, host),
        ("hwmon", HwmonCollector, host),
        ("hwmon, volts x amperes", HwmonCollector, products.host),
        ("hwmon, device that can sleep", HwmonCollector, sleepers.host),
    )
    costs: dict[str, float] = {}
    for name, family, where in families:
        collector = family.open(where, family.Options())
        spans = []
        for _ in range(200):
            start = time.perf_counter_ns()
            for sensor in collector.sensors:
                sensor.read()
            spans.append((time.perf_counter_ns() - start) / 1e3 / len(collector.sensors))
        costs[name] = statistics.median(spans)
        collector.close()
    return costs


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    node_exporter = shutil.which("prometheus-node-exporter")
    rows, results = [], []
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for sensors in (20, 200, 1000):
            root = base / str(sensors)
            write_tree(root / "sys", sensors)
            write_procfs(root / "proc")
            if sensors == 20:
                costs = read_costs_us(root / "sys", root / "proc", root)
            paths = (f"--path.sysfs={root / 'sys'}", f"--path.procfs={root / 'proc'}")
            exporters: dict[str, Server] = {
                "joulewatch": ExporterServer(root / "joulewatch", *paths, environment=with_bytecode(base)),
                "joulewatch --no-attribution": ExporterServer(
                    root / "joulewatch-alone", "--no-attribution", *paths, environment=with_bytecode(base)
                ),
            }
            if node_exporter is not None:
                port = free_port()
                flags = ["--collector.disable-defaults", "--collector.rapl", "--collector.hwmon"]
                folder = root / "node_exporter"
                folder.mkdir()
                exporters["node_exporter"] = Server(
                    [node_exporter, f"--path.sysfs={root / 'sys'}", f"--web.listen-address=127.0.0.1:{port}", *flags],
                    folder,
                    f"http://127.0.0.1:{port}/metrics",
                )
            for server in exporters.values():
                server.start()  # writes the bytecode, as an installation does
                server.stop()
                server.start()
            warm_up(exporters)
            measured = measure(exporters, 5 if quick else 20)
            for server in exporters.values():
                server.stop()
            reference = measured.get("node_exporter", {})
            for exporter_name, figures in measured.items():
                results.append({"sensors": sensors, "exporter": exporter_name, **figures})
                rows.append(
                    [
                        str(sensors),
                        exporter_name,
                        *(
                            text
                            for median in ("in_a_row_median_ms", "scrape_median_ms")
                            for text in (
                                f"{figures[median]:.2f}",
                                f"{figures[median] / reference.get(median, math.nan):.2f}",
                            )
                        ),
                        f"{figures['scrape_p99_ms']:.2f}",
                        f"{figures['processor_ms_per_scrape']:.2f}",
                        f"{figures['cpu_percent_of_a_core_at_1s']:.2f}",
                        f"{figures['rss_mebibytes']:.1f}",
                    ]
                )
    head = [
        "sensors",
        "exporter",
        "scrapes in a row, median ms",
        "of node_exporter's",
        "in turns, median ms",
        "of node_exporter's",
        "p99 ms",
        "CPU ms per scrape",
        "CPU % of a core at 1 s",
        "RSS MiB",
    ]
    table = "# Cost of the exporter\n\n" + host_line(machine) + "\n" + markdown_table(head, rows)
    table += (
        f"\nLoad of the machine at the end, 1 min and 5 min: {os.getloadavg()[0]:.1f} and {os.getloadavg()[1]:.1f}.\n"
    )
    table += "\nOne read of one sensor: " + ", ".join(f"{name} {cost:.1f} µs" for name, cost in costs.items()) + ".\n"
    result = {"machine": machine, "read_cost_us": costs, "scrapes": results}
    write_result("exporter_cost", result, table)
    return result
