"""One exporter with 200 emulated BMCs, of which three hang and two refuse the password: its cost, and whether the
healthy BMCs are read on time. The exporter is a separate process and is observed only from outside."""

from __future__ import annotations

import http.client
import itertools
import re
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from support.ipmi import fleet
from support.servers import ExporterServer
from support.watched_machine import Resources

HUNG, WRONG = 3, 2
INTERVAL_S = 5.0
SETTLE_S = 12.0
"""Time until logins, which are spread over the first second, succeed or reach their deadline."""
CONFIG = """collectors:
  rapl: {{enabled: false}}
  hwmon: {{enabled: false}}
  estimate: {{enabled: false}}
  ipmi:
    enabled: true
    in_band: false
    interval_seconds: {interval_s}
    targets_file: {file}
"""

_READ_AT = re.compile(r'^joulewatch_read_timestamp_seconds\{[^}]*device="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)
_POWER = re.compile(r'^joulewatch_node_power_watts\{[^}]*device="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)
_UP = re.compile(r'^joulewatch_sensor_up\{collector="ipmi",device="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


def measure(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    """Return the figures of one exporter that reads ``count`` BMCs for ``seconds``."""
    with fleet.running(folder, count, hung=HUNG) as file:
        wrong = folder / "wrong.password"
        wrong.write_text("not-this-one\n")
        wrong.chmod(0o600)
        text = file.read_text()
        for index in range(HUNG, HUNG + WRONG):
            text = text.replace(f"ipmi/{fleet.name_of(index)}.password", wrong.name)
        file.write_text(text)
        config = folder / "exporter.yaml"
        config.write_text(CONFIG.format(interval_s=INTERVAL_S, file=file))
        server = ExporterServer(folder / "exporter", f"--config.file={config}")
        server.start()
        try:
            assert server.process is not None
            return watch(server.address, server.process.pid, count, seconds)
        finally:
            server.stop()


def watch(address: str, pid: int, count: int, seconds: float) -> dict[str, Any]:
    """Scrape every second; return the figures, with the spacing of readings by their own timestamps."""
    connection = http.client.HTTPConnection(address, timeout=10)
    time.sleep(SETTLE_S)
    read_at_s: dict[str, set[float]] = {}
    spans_ms: list[float] = []
    wrong_values = 0
    body = ""
    before, start_s = Resources.of(pid), time.monotonic()
    for tick in range(round(seconds)):
        time.sleep(max(0.0, start_s + tick + 1 - time.monotonic()))
        begun_s = time.perf_counter()
        connection.request("GET", "/metrics")
        body = connection.getresponse().read().decode()
        spans_ms.append((time.perf_counter() - begun_s) * 1e3)
        for device, value in _READ_AT.findall(body):
            read_at_s.setdefault(device, set()).add(float(value))
        wrong_values += sum(
            float(value) != fleet.power_of(int(device.removeprefix("node"))) for device, value in _POWER.findall(body)
        )
    after = Resources.of(pid)
    cpu_percent = 100 * (after.cpu_s - before.cpu_s) / (time.monotonic() - start_s)
    connection.close()
    healthy = [fleet.name_of(index) for index in range(HUNG + WRONG, count)]
    gaps_s = []
    for device in healthy:
        times_s = sorted(read_at_s.get(device, ()))
        # One reading may have two timestamps, rounded differently; different readings are at least a second apart.
        gaps_s += [later - earlier for earlier, later in itertools.pairwise(times_s) if later - earlier > 0.5]
    return {
        "bmcs": count,
        "hung": HUNG,
        "wrong_password": WRONG,
        "interval_s": INTERVAL_S,
        "watched_s": seconds,
        "up": sum(float(value) == 1.0 for _, value in _UP.findall(body)),
        "down": sum(float(value) == 0.0 for _, value in _UP.findall(body)),
        "healthy_without_reading": sum(device not in read_at_s for device in healthy),
        "values_of_another_bmc": wrong_values,
        "readings": len(gaps_s),
        "spacing_median_s": statistics.median(gaps_s),
        "spacing_max_s": max(gaps_s),
        "scrape_median_ms": statistics.median(spans_ms),
        "scrape_max_ms": max(spans_ms),
        "cpu_percent_of_a_core": cpu_percent,
        "rss_mebibytes": after.rss_mebibytes,
        "threads": after.threads,
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    machine["versions"]["pyghmi"] = version("pyghmi")
    results = []
    for count in (20, 200):
        with tempfile.TemporaryDirectory() as name:
            results.append(measure(Path(name), count, 20 if quick else 120))
    rows = [
        [
            str(figures["bmcs"]),
            str(figures["up"]),
            str(figures["down"]),
            f"{figures['spacing_median_s']:.3f}",
            f"{figures['spacing_max_s']:.3f}",
            f"{figures['scrape_median_ms']:.1f}",
            f"{figures['scrape_max_ms']:.1f}",
            f"{figures['cpu_percent_of_a_core']:.1f}",
            f"{figures['rss_mebibytes']:.1f}",
            str(figures["threads"]),
        ]
        for figures in results
    ]
    head = [
        "BMCs",
        "up",
        "down",
        "spacing of readings: median s",
        "longest s",
        "scrape median ms",
        "longest ms",
        "CPU % of a core",
        "RSS MiB",
        "threads",
    ]
    table = "# Many BMCs\n\n" + host_line(machine) + "\n" + markdown_table(head, rows)
    table += (
        f"\nIn each row {HUNG} BMCs hang and {WRONG} refuse the password; the others are read every "
        f"{INTERVAL_S:g} s, with one scrape per second.\n"
    )
    result = {"machine": machine, "runs": results}
    write_result("many_bmcs", result, table)
    return result
