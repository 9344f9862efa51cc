"""Everything that can go wrong with a sensor, on a machine of known truth: the built-in scenario ``faulty-node``.

Of each kind of device one is sick, with every fault on a timetable, and one is well. Shown are, over the whole two
minutes: what the exporter counted beside the truth, the time that it says it did not measure, and what it says of the
faults. The well ones must not show that there are sick ones.
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
DURATION_S = 125.0
COUNTER_TARGET = 0.001
POWER_TARGET = 0.01

SICK_AND_WELL: tuple[tuple[str, Series, Series], ...] = (
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
    """One device over the whole time."""

    kind: str
    series: Series
    is_sick: bool
    is_counter: bool
    """The sensor counts joules itself; else its watts are integrated."""
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
    """The machine's configuration, with everything looked at each second."""
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    config["exporter"]["rediscover_seconds"] = 1.0
    for family in ("ipmi", "redfish"):
        if family in config["collectors"]:
            config["collectors"][family] |= {"interval_seconds": 1.0, "deadline_seconds": 3.0}
    path = folder / "exporter.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def watch(duration_s: float = DURATION_S) -> tuple[Watched, list[Row]]:
    """Run the scenario under a real exporter, scraped every second."""
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
    for kind, sick, well in SICK_AND_WELL:
        rows += [_row(watched, truth, kind, sick, is_sick=True), _row(watched, truth, kind, well, is_sick=False)]
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
    """The rows for people."""
    head = [
        "device",
        "gives",
        "",
        "truth, J",
        "counted, J",
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
            "sick" if row.is_sick else "well",
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
    """Measure and write the result; the timetable has one length."""
    machine = describe_machine()
    watched, rows = watch()
    text = f"""# Every fault there is, against known truth

{host_line(machine)}

`emulate {SCENARIO}`, {DURATION_S:.0f} s, scraped every second. Rules broken (a total that fell, a value repeated under
another time, a negative): {len(watched.complaints)}. Longest scrape {1e3 * max(watched.latencies_s):.0f} ms, median
{1e3 * sorted(watched.latencies_s)[len(watched.latencies_s) // 2]:.1f} ms.

{table(rows)}

A sick device's deviation is the energy of the time that is stated as not measured; a power sensor that was stuck for
eight seconds cannot be known to be.
"""
    data = [{name: getattr(row, name) for name in row.__slots__} | {"deviation": row.deviation} for row in rows]
    write_result("faulty_node", {"machine": machine, "rows": data, "complaints": watched.complaints}, text)
