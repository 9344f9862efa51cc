"""Compare measured with known energies: window lengths × signals × methods, and whether the stated bounds hold.

An emulated machine of three sockets, each with its own power signal, is read by a real exporter; two real
Prometheus servers scrape it every 1 s and every 200 ms; the harness reads edges around windows that begin
and end with the load. The true energy is the closed form of the signals.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.energy.window_energy import WindowEnergy
from joulewatch_harness.analysis.energy.windows import Measured, measure_run
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.records import SCHEMA_VERSION, RunHeader, RunRecord, Window
from joulewatch_harness.runner.edges import EdgeReader
from support.servers import Emulator, ExporterServer, PrometheusServer

LEAD_S = 12.0
"""Time from the start of the emulator to the first window; the servers start meanwhile."""
PAUSE_S = (0.1, 4.0)
"""Range of the idle time between two windows: shorter and longer than a scrape interval."""
IDLE_WATTS = 50.0
RIPPLE_HZ = 3.0
COUNTS = {0.2: 12, 0.5: 12, 1.0: 10, 2.0: 8, 5.0: 6, 10.0: 4, 30.0: 4}
QUICK_COUNTS = {0.2: 3, 1.0: 3, 5.0: 2}
SIGNALS = {"socket0/package": "steady", "socket1/package": "rectangle", "socket2/package": "phased"}
METHODS = ("edges", "history, scraped every 200 ms", "history, scraped every 1 s")

TARGETS: tuple[tuple[str, Callable[[str, str, float], bool], float], ...] = (
    ("edges, windows of 1 s and more: 0.2 %", lambda method, _, length: method == "edges" and length >= 1, 0.2),
    (
        "history at 1 s, windows of 30 s and more, any signal: 1 %",
        lambda method, _, length: method == METHODS[2] and length >= 30,
        1.0,
    ),
    (
        "history at 1 s, windows of 10 s and more, steady load: 1 %",
        lambda method, signal, length: method == METHODS[2] and signal == "steady" and length >= 10,
        1.0,
    ),
)


def make_schedule(counts: dict[float, int], seed: int) -> list[tuple[float, float]]:
    """Return (start, length) of the windows in seconds since the emulator's start, with lengths in random order."""
    rng = random.Random(seed)
    lengths = [length for length, count in counts.items() for _ in range(count)]
    rng.shuffle(lengths)
    schedule, at_s = [], LEAD_S
    for length in lengths:
        schedule.append((at_s, length))
        at_s += length + rng.uniform(*PAUSE_S)
    return schedule


def make_scenario(schedule: list[tuple[float, float]], seed: int) -> dict[str, Any]:
    """Return three sockets: steady; a rectangle in each window; phases with a 3 Hz ripple in each window."""
    rng = random.Random(seed)
    rectangle, phased = [[0.0, IDLE_WATTS]], [[0.0, IDLE_WATTS]]
    for start_s, length in schedule:
        rectangle += [[start_s, 250.0], [start_s + length, IDLE_WATTS]]
        power = rng.uniform(180.0, 400.0)
        phased.append([start_s, 1.4 * power])
        at_s, high = start_s + 0.3 * length, True
        while at_s < start_s + length - 1e-6:
            phased.append([at_s, power * (1.25 if high else 0.75)])
            at_s, high = at_s + 0.5 / RIPPLE_HZ, not high
        phased.append([start_s + length, IDLE_WATTS])
    signals = (200.0, {"kind": "step", "points": rectangle}, {"kind": "step", "points": phased})
    return {
        "name": "accuracy",
        "refresh_s": 0.001,
        "machine": {"sockets": 3},
        "zones": [
            {"zone": f"intel-rapl:{i}", "name": f"package-{i}", "key": f"socket{i}/package", "signal": signal}
            for i, signal in enumerate(signals)
        ],
    }


def take_windows(reader: EdgeReader, schedule: list[tuple[float, float]], start_unix_s: float) -> list[Window]:
    """Wait for each window and read both its edges, as the runner does."""
    windows = []
    for index, (start_s, length) in enumerate(schedule):
        time.sleep(max(0.0, start_unix_s + start_s - 0.002 - time.time()))
        raw_start = reader.fetch()
        start_unix = time.time()
        time.sleep(max(0.0, start_unix_s + start_s + length - time.time()))
        end_unix = time.time()
        raw_end = reader.fetch()
        windows.append(
            Window(
                run="accuracy",
                index=index,
                kind="measure",
                start_s=start_unix,
                end_s=end_unix,
                duration_s=end_unix - start_unix,
                clock_error_s=1e-5,
                batch_size=1,
                start_edge=raw_start.parse(),
                end_edge=raw_end.parse(),
            )
        )
    return windows


def collect(counts: dict[float, int], seed: int) -> list[dict[str, Any]]:
    """Run the machine and the servers; return one row per window, signal and method."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("the accuracy table needs Prometheus: apt-get install prometheus")
    schedule = make_schedule(counts, seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        scenario = base / "accuracy.yaml"
        scenario.write_text(yaml.safe_dump(make_scenario(schedule, seed)))
        machine = Emulator(scenario)
        machine.start()
        truth = Truth.load(machine.folder)
        exporter = ExporterServer(base / "exporter", *machine.flags)
        exporter.start()
        servers = {
            interval: PrometheusServer(
                program, base / f"prometheus{interval}", scrape_targets=[exporter.address], scrape_interval=interval
            )
            for interval in ("200ms", "1s")
        }
        try:
            for server in servers.values():
                server.start()
            client = ExporterClient(exporter.url)
            exporter_record, sensors = client.describe()
            with EdgeReader([client]) as reader:
                windows = take_windows(reader, schedule, truth.start_unix_s)
            time.sleep(2.5)
            header = RunHeader(
                run="accuracy",
                started_at_s=windows[0].start_s,
                schema=SCHEMA_VERSION,
                command=(),
                plan={},
                plan_sha256="",
                configurations=(),
                exporters=(exporter_record,),
                sensors=sensors,
                provenance={},
            )
            record = RunRecord(header=header, configurations=(), windows=tuple(windows))
            spans = [(window.start_s, window.end_s) for window in windows]
            rows = []
            for interval, server in servers.items():
                source = PrometheusSource(PrometheusClient(PrometheusOptions(url=server.url)))
                run = measure_run(record, source.history(spans, [exporter_record]))
                source.close()
                for measured, (_, length) in zip(run.windows, schedule, strict=True):
                    for sensor, measurement in measured.sensors.items():
                        key = f"{sensor.device}/{sensor.domain}"
                        true_joules = truth.energy_joules(key, measured.span.start_s, measured.span.end_s)
                        rows += _rows(measurement, interval, SIGNALS[key], length, true_joules)
            return rows
        finally:
            for server in (*servers.values(), exporter):
                server.stop()
            machine.remove()


def _rows(measured: Measured, interval: str, signal: str, length: float, true_joules: float) -> list[dict[str, Any]]:
    energies: list[tuple[str, WindowEnergy | None]] = []
    if interval == "1s":
        energies.append((METHODS[0], measured.edges))
    energies.append((METHODS[1] if interval == "200ms" else METHODS[2], measured.history))
    rows = []
    for method, energy in energies:
        row: dict[str, Any] = {"method": method, "signal": signal, "length_s": length, "true_joules": true_joules}
        if energy is not None:
            row |= {
                "joules": energy.joules,
                "error_percent": 100 * (energy.joules / true_joules - 1),
                "lower_joules": energy.lower_joules,
                "upper_joules": energy.upper_joules,
                "standard_joules": energy.standard_joules,
                "bounds_held": energy.lower_joules <= true_joules <= energy.upper_joules,
            }
        rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the table and the verdicts on the targets."""
    cells = []
    for method in METHODS:
        for signal in SIGNALS.values():
            for length in sorted({row["length_s"] for row in rows}):
                group = [r for r in rows if (r["method"], r["signal"], r["length_s"]) == (method, signal, length)]
                good = [row for row in group if "joules" in row]
                cell: dict[str, Any] = {"method": method, "signal": signal, "length_s": length, "windows": len(group)}
                cell["without_number"] = len(group) - len(good)
                if good:
                    errors = [row["error_percent"] for row in good]
                    cell |= {
                        "mean_error_percent": statistics.fmean(errors),
                        "largest_error_percent": max(abs(error) for error in errors),
                        "mean_bound_width_percent": statistics.fmean(
                            100 * (row["upper_joules"] - row["lower_joules"]) / row["true_joules"] for row in good
                        ),
                        "bounds_held": sum(row["bounds_held"] for row in good),
                    }
                cells.append(cell)
    verdicts = []
    for text, applies, limit in TARGETS:
        chosen = [
            cell["largest_error_percent"]
            for cell in cells
            if applies(cell["method"], cell["signal"], cell["length_s"]) and "largest_error_percent" in cell
        ]
        if chosen:
            verdicts.append(f"{text}: largest {max(chosen):.3f} %, {'met' if max(chosen) <= limit else 'MISSED'}")
    good = [row for row in rows if "joules" in row]
    contained = sum(row["bounds_held"] for row in good)
    verdicts.append(
        f"stated bounds contain the truth: {contained} of {len(good)}, {'met' if contained == len(good) else 'MISSED'}"
    )
    return cells, verdicts


def run(quick: bool = False, seed: int = 1) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    rows = collect(QUICK_COUNTS if quick else COUNTS, seed)
    cells, verdicts = summarise(rows)
    head = ["method", "signal", "window s", "n", "mean error %", "largest %", "bounds' width %", "bounds held"]
    lines = [
        [
            cell["method"],
            cell["signal"],
            f"{cell['length_s']:g}",
            str(cell["windows"]),
            *(
                [
                    f"{cell['mean_error_percent']:+.3f}",
                    f"{cell['largest_error_percent']:.3f}",
                    f"{cell['mean_bound_width_percent']:.2f}",
                    f"{cell['bounds_held']}/{cell['windows'] - cell['without_number']}",
                ]
                if "bounds_held" in cell
                else ["no number"] * 4
            ),
        ]
        for cell in cells
    ]
    table = "# Accuracy against known truth\n\n" + host_line(machine) + "\n"
    table += markdown_table(head, lines) + "\n" + "".join(f"- {verdict}\n" for verdict in verdicts)
    result = {"machine": machine, "seed": seed, "cells": cells, "verdicts": verdicts}
    write_result("accuracy", result, table)
    return result
