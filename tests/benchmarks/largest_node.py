"""Cost of the exporter on the largest node: 2 × 64 cores with a series each, 8 GPUs, 2 FPGA cards, a BMC by IPMI and
by Redfish; first without faults, then with a GPU, a card and both interfaces of the BMC hung. Energy is not shared
(``--no-attribution``), except in the first row.

The floor of each figure is measured, too: the memory of the imports alone, and the time and processor time of the
reads alone, in one thread that neither counts nor serves. Most of the memory is that of imports: the clients of NVML,
IPMI over LAN (with the package cryptography) and Redfish (with requests and TLS), none of which a node without such
devices imports. What helped against the time above the floor, which is mostly that of threads that wait for each other:
the thread of the scrape reads the families one after the other, and all GPUs are read on one thread. Tried without
gain: fewer arenas of malloc (1.4 MiB, but see ``use_few_arenas``), and faster queues between threads (waking one takes
0.05 ms with any). The files of the emulator are checked for replacement at each read, unlike those of sysfs.

The emulator provides files, GPU library and services; the registers of the cores are simulated below the C library.
The exporter is measured in its own process, on a machine that also runs the emulator.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import yaml

from benchmarks.exporter_cost import with_bytecode
from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.model import Host
from support.rapl_shim import ShimMachine, build_shim
from support.servers import Emulator, ExporterServer
from support.watched_machine import Resources

SCRAPES = 200
PACED_S = 20
HANG_AT_S = 100.0
CORES_PER_SOCKET = 64
FAMILIES = ("amdgpu", "cray", "estimate", "fpga", "hwmon", "ipmi", "nvml", "rapl", "redfish")
PRESENT = ("rapl", "nvml", "fpga", "ipmi", "redfish")
"""The families that this node has."""
_AMD_UNIT, _AMD_CORE = 0xC0010299, 0xC001029A
_ESU_16 = 0xA1003


def scenario() -> dict[str, Any]:
    """Return the node; at ``HANG_AT_S`` the last GPU, the last card and the BMC hang until the end."""
    hang = {"faults": [{"kind": "hang", "at_s": HANG_AT_S, "for_s": 3600.0}]}
    signals: dict[str, Any] = {
        "socket": {"kind": "sine", "mean_watts": 200, "amplitude_watts": 60, "period_s": 17},
        "gpu": {"kind": "sine", "mean_watts": 260, "amplitude_watts": 110, "period_s": 19},
        "card": {"kind": "sine", "mean_watts": 50, "amplitude_watts": 12, "period_s": 23},
    }
    parts = ["socket", "socket", *["gpu"] * 8, "card", "card", 300]
    signals["node"] = {"kind": "sum", "of": parts}
    return {
        "name": "largest-node",
        "refresh_s": 0.05,
        "signals": signals,
        "machine": {
            "vendor": "AuthenticAMD", "family": 25, "model": 1, "cpu_name": "AMD EPYC 7763 64-Core Processor",
            "sockets": 2, "cpus_per_socket": 2 * CORES_PER_SOCKET, "cores_per_socket": CORES_PER_SOCKET,
        },
        "zones": [
            {"zone": f"intel-rapl:{n}", "name": f"package-{n}", "key": f"socket{n}/package", "signal": "socket"}
            for n in (0, 1)
        ],
        "gpus": [
            {
                "uuid": f"GPU-1a000000-0000-4000-8000-00000000000{n}", "bus_id": f"0000:{0x10 + n:02x}:00.0",
                "signal": "gpu", **(hang if n == 7 else {}),
            }
            for n in range(8)
        ],
        "fpgas": [{"card": "0000:3b:00", "signal": "card"}, {"card": "0000:86:00", "signal": "card", **hang}],
        "bmcs": [{"name": "bmc", "signal": "node", **hang}],
        "redfish": [{"name": "chassis", "signal": "node", **hang}],
    }  # fmt: skip


def with_registers(machine: Emulator, folder: Path) -> ShimMachine:
    """Simulate the registers of each core, at 2 W each."""
    host = Host(sysfs=machine.sysfs, procfs=machine.procfs, dev=machine.folder / "dev")
    shim = ShimMachine(sysfs=SimpleNamespace(host=host, root=folder), library=build_shim(folder))  # type: ignore[arg-type]
    for core in range(2 * CORES_PER_SOCKET):
        cpu = _first_cpu(machine.sysfs, core)
        shim.fixed(cpu, _AMD_UNIT, _ESU_16)
        shim.count(cpu, _AMD_CORE, 2.0, 65536.0, 1000)
    return shim


def _first_cpu(sysfs: Path, core: int) -> int:
    """Return the first logical CPU of the n-th core according to the tree."""
    cpus = sorted((sysfs / "devices/system/cpu").glob("cpu[0-9]*"), key=lambda path: int(path.name[3:]))
    first = []
    for path in cpus:
        siblings = path / "topology/core_cpus_list"
        number = int(path.name[3:])
        if not siblings.exists() or int(siblings.read_text().replace("-", ",").split(",")[0]) == number:
            first.append(number)
    return first[core]


@contextmanager
def started_exporter(folder: Path, shim: ShimMachine, *flags: str) -> Iterator[ExporterServer]:
    """Run an exporter of the node that has read all of its devices."""
    exporter = ExporterServer(
        folder / "exporter",
        f"--config.file={folder / 'exporter.yaml'}",
        *flags,
        environment=with_bytecode(folder, shim.environment),
    )
    exporter.start()  # writes the bytecode, as an installation does
    time.sleep(3.0)
    exporter.stop()
    exporter.start()
    try:
        time.sleep(8.0)
        yield exporter
    finally:
        exporter.stop()


def imports_mebibytes(environment: dict[str, str]) -> float:
    """Return the memory of a process that has only imported what the exporter of this node imports."""
    code = f"""
import pathlib, pynvml, yaml, requests, joulewatch_exporter.cli
import pyghmi.ipmi.private.simplesession
import joulewatch_exporter.commands.serve, joulewatch_exporter.sampling.sampler, joulewatch_exporter.server.server
import joulewatch_exporter.server.exposition, joulewatch_exporter.attribution.attributor
import {", ".join(f"joulewatch_exporter.collectors.{name}.collector" for name in FAMILIES)}
print(pathlib.Path("/proc/self/statm").read_text().split()[1])
"""
    for _ in range(2):  # the first one writes the bytecode
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


_READS = """
import json, statistics, sys, time
from pathlib import Path
from joulewatch_exporter.collectors import all_families
from joulewatch_exporter.config.config import load_config

seconds, wanted = int(sys.argv[2]), sys.argv[3:]
families = all_families()
config = load_config(Path(sys.argv[1]), families)
collectors = [
    family.open(config.exporter.host(), config.collectors[family.name].options or family.Options())
    for family in families
    if family.name in wanted
]

def read():
    for collector in collectors:
        for sensor in collector.sensors:
            sensor.read()

for collector in collectors:
    collector.settle(10.0)
spans_s = []
for _ in range(200):
    start_s = time.perf_counter()
    read()
    spans_s.append(time.perf_counter() - start_s)
start_s, used_s = time.perf_counter(), time.process_time()
for tick in range(seconds):
    time.sleep(max(0.0, start_s + tick + 1 - time.perf_counter()))
    read()
used_s, passed_s = time.process_time() - used_s, time.perf_counter() - start_s
print(json.dumps({"median_ms": 1e3 * statistics.median(spans_s), "cpu_percent": 100 * used_s / passed_s}))
"""


def reads_alone(config: Path, environment: dict[str, str]) -> dict[str, float]:
    """Return the time of reading all devices once, and the processor time of doing so every second.

    The BMC is read in the background at its own interval, as in the exporter.
    """
    command = [sys.executable, "-c", _READS, str(config), str(PACED_S), *PRESENT]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(exporter: ExporterServer) -> dict[str, float]:
    """Measure back-to-back scrapes, then CPU time at one scrape per second."""
    assert exporter.process is not None
    connection = http.client.HTTPConnection(urlsplit(exporter.url).netloc, timeout=10)
    spans_ms, text = [], b""
    for _ in range(SCRAPES):
        start = time.perf_counter()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
        spans_ms.append((time.perf_counter() - start) * 1e3)
    before, start = Resources.of(exporter.process.pid), time.monotonic()
    for tick in range(PACED_S):
        time.sleep(max(0.0, start + tick + 1 - time.monotonic()))
        connection.request("GET", "/metrics")
        connection.getresponse().read()
    after = Resources.of(exporter.process.pid)
    connection.close()
    spans_ms.sort()
    ups = [line for line in text.splitlines() if line.startswith(b"joulewatch_sensor_up{")]
    return {
        "quantities": text.count(b"\njoulewatch_sensor_info{"),
        "devices_down": float(sum(line.endswith(b" 0.0") for line in ups)),
        "scrape_median_ms": statistics.median(spans_ms),
        "scrape_p99_ms": spans_ms[int(0.99 * len(spans_ms))],
        "cpu_percent_of_a_core_at_1s": 100 * (after.cpu_s - before.cpu_s) / (time.monotonic() - start),
        "rss_mebibytes": after.rss_mebibytes,
        "threads": float(after.threads),
        "exposition_bytes": float(len(text)),
    }


def run(*, quick: bool = False) -> None:
    """Run the benchmark and write the result."""
    about = describe_machine()
    folder = Path(tempfile.mkdtemp(prefix="joulewatch-largest-"))
    file = folder / "node.yaml"
    file.write_text(yaml.safe_dump(scenario(), sort_keys=False))
    machine = Emulator(file)
    machine.start()
    started = time.monotonic()
    try:
        config = yaml.safe_load((machine.folder / "exporter.yaml").read_text())
        config["collectors"]["rapl"] = {"per_core": True}
        for family in ("ipmi", "redfish"):
            for target in config["collectors"][family]["targets"]:
                del target["interval_seconds"]  # keep the default intervals
        (folder / "exporter.yaml").write_text(yaml.safe_dump(config))
        shim = with_registers(machine, folder)
        floor = reads_alone(folder / "exporter.yaml", with_bytecode(folder, shim.environment))
        results = {}
        with started_exporter(folder, shim) as exporter:
            results["all well, with attribution"] = measure(exporter)
        with started_exporter(folder, shim, "--no-attribution") as exporter:
            results["all well"] = measure(exporter)
            time.sleep(max(0.0, started + HANG_AT_S + 30.0 - time.monotonic()))
            results["GPU, card, BMC hung"] = measure(exporter)
        imports = imports_mebibytes(with_bytecode(folder))
    finally:
        machine.remove()
        shutil.rmtree(folder)
    rows = [
        [
            name,
            f"{figures['quantities']:.0f}",
            f"{figures['devices_down']:.0f}",
            f"{figures['scrape_median_ms']:.2f}",
            f"{figures['scrape_p99_ms']:.2f}",
            f"{figures['cpu_percent_of_a_core_at_1s']:.2f}",
            f"{figures['rss_mebibytes']:.1f}",
            f"{figures['threads']:.0f}",
        ]
        for name, figures in results.items()
    ]
    head = [
        "",
        "quantities",
        "devices down",
        "scrape median ms",
        "p99 ms",
        "CPU % of a core at 1 s",
        "RSS MiB",
        "threads",
    ]
    text = f"""# Cost on the largest node

{host_line(about)}

2 sockets × {CORES_PER_SOCKET} cores with a series each, 8 GPUs, 2 FPGA cards, the BMC by IPMI and by Redfish.

{markdown_table(head, rows)}
The floor: reads alone {floor["median_ms"]:.2f} ms and {floor["cpu_percent"]:.2f} % of a core at 1 s, imports alone
{imports:.1f} MiB. Load of the machine at the end: {os.getloadavg()[0]:.1f}.
"""
    result = {"machine": about, "imports_mebibytes": imports, "reads_alone": floor, "results": results}
    write_result("largest_node", result, text)
