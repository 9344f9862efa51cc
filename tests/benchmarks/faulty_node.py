"""All faults of sensors on an emulated machine with known energies: the built-in scenario ``faulty-node``.

One device of each kind is faulty, with every fault on a timetable, and one is healthy. The table compares the energy
over two minutes with the truth and lists the time that the exporter reports as not measured, and its errors. Faults
must not affect the healthy devices.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter import catalog
from joulewatch_exporter.emulator.truth import Truth
from support.servers import Emulator, ExporterServer
from support.watched_machine import Series, Watched

SCENARIO = "faulty-node"
DURATION_S = 106.0
COUNTER_TARGET = 0.001
POWER_TARGET = 0.01

FAULTY_AND_HEALTHY: tuple[tuple[str, Series, Series], ...] = (
    ("CPU", ("rapl", "socket0", "package"), ("rapl", "socket1", "package")),
    (
        "GPU",
        ("nvml", "GPU-fa000000-0000-4000-8000-000000000000", "total"),
        ("nvml", "GPU-fa000000-0000-4000-8000-000000000001", "total"),
    ),
    ("FPGA card", ("fpga", "0000:3b:00", "total"), ("fpga", "0000:86:00", "total")),
    ("board meter", ("hwmon", "i2c-3-3-0040", "power1"), ("hwmon", "i2c-3-3-0041", "power1")),
    ("BMC by IPMI", ("ipmi", "bmc0", "total"), ("ipmi", "bmc1", "total")),
    ("BMC by Redfish", ("redfish", "chassis0", "total"), ("redfish", "chassis1", "total")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one device."""

    kind: str
    series: Series
    is_sick: bool
    is_counter: bool
    """The sensor counts joules; otherwise its power is integrated."""
    true_joules: float
    measured_joules: float
    unmeasured_s: float
    resets: int
    rejected: int
    errors: dict[str, int]
    was_always_up: bool

    @property
    def deviation(self) -> float:
        return self.measured_joules / self.true_joules - 1.0


def quick_settings(file: Path, folder: Path) -> Path:
    """Write the configuration of the machine with all intervals set to one second."""
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    config["exporter"]["rediscover_seconds"] = 1.0
    for family in ("ipmi", "redfish"):
        if family in config["collectors"]:
            config["collectors"][family] |= {"interval_seconds": 1.0, "deadline_seconds": 3.0}
    path = folder / "exporter.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def watch(duration_s: float = DURATION_S) -> tuple[Watched, list[Row]]:
    """Run the scenario with a real exporter, scraped every second."""
    folder = Path(tempfile.mkdtemp(prefix="joulewatch-faults-"))
    machine = Emulator(SCENARIO)
    watched = Watched()
    machine.start()
    try:
        config = quick_settings(machine.folder / "exporter.yaml", folder)
        exporter = ExporterServer(folder / "exporter", f"--config.file={config}")
        exporter.start()
        try:
            started_s = Truth.load(machine.folder).start_unix_s
            watched.watch(exporter.url, duration_s - (time.time() - started_s))
        finally:
            exporter.stop()
        truth = Truth.load(machine.folder)
    finally:
        machine.remove()
        shutil.rmtree(folder)
    rows = []
    for kind, faulty, healthy in FAULTY_AND_HEALTHY:
        rows += [
            _row(watched, truth, kind, faulty, is_sick=True),
            _row(watched, truth, kind, healthy, is_sick=False),
        ]
    return watched, rows


def _row(watched: Watched, truth: Truth, kind: str, series: Series, *, is_sick: bool) -> Row:
    samples = watched.samples[series]
    device = series[:2]
    return Row(
        kind=kind,
        series=series,
        is_sick=is_sick,
        is_counter=(catalog.SENSOR_RESETS.name, series) in watched.counts,
        true_joules=truth.energy_joules(f"{series[1]}/{series[2]}", samples[0].read_at_s, samples[-1].read_at_s),
        measured_joules=samples[-1].joules - samples[0].joules,
        unmeasured_s=watched.last_unmeasured_s(series),
        resets=round(watched.count(catalog.SENSOR_RESETS, series)),
        rejected=round(watched.count(catalog.SENSOR_REJECTED, series)),
        errors={reason: round(count) for (*where, reason), count in watched.errors.items() if tuple(where) == device},
        was_always_up=watched.was_always_up(device),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = [
        "device",
        "reports",
        "state",
        "true, J",
        "measured, J",
        "deviation, %",
        "not measured, s",
        "resets",
        "rejected",
        "errors",
    ]
    lines = [
        [
            row.kind,
            "joules" if row.is_counter else "watts",
            "faulty" if row.is_sick else "healthy",
            f"{row.true_joules:.1f}",
            f"{row.measured_joules:.1f}",
            f"{100 * row.deviation:+.3f}",
            f"{row.unmeasured_s:.1f}",
            str(row.resets),
            str(row.rejected),
            ", ".join(f"{reason} {count}" for reason, count in sorted(row.errors.items())) or "none",
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def run(*, quick: bool = False) -> None:
    """Run the benchmark and write the result; ``quick`` has no effect, because the timetable is fixed."""
    machine = describe_machine()
    watched, rows = watch()
    text = f"""# All faults, compared with known energies

{host_line(machine)}

`emulate {SCENARIO}`, {DURATION_S:.0f} s, scraped every second. Rules broken (a total that fell, a value repeated with
another timestamp, a negative value): {len(watched.complaints)}. Longest scrape
{1e3 * max(watched.latencies_s):.0f} ms, median
{1e3 * sorted(watched.latencies_s)[len(watched.latencies_s) // 2]:.1f} ms.

{table(rows)}

The deviation of a faulty device is the energy of the time reported as not measured. The exporter cannot detect that a
power sensor was stuck for eight seconds.
"""
    data = [{name: getattr(row, name) for name in row.__slots__} | {"deviation": row.deviation} for row in rows]
    write_result("faulty_node", {"machine": machine, "rows": data, "complaints": watched.complaints}, text)
