"""Energies of short windows by edges, against known energies: quiet, over HTTP, and while two busy loops run.

A real exporter reads a simulated counter (``support/rapl_shim.c``) whose energy is a function of the machine's clock,
so the true energy of a window is known whatever else runs. The counter is refreshed every millisecond. The exporter
and the client have a real-time priority in the quiet cases, because the machine of the benchmark may be shared; in the
busy case the exporter, the client and the loops have the same, high, ordinary priority.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_harness.analysis.energy.from_edges import energy_from_edges
from joulewatch_harness.analysis.energy.window_energy import EdgeReading, Span
from joulewatch_harness.analysis.sources.series import Traits
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import EdgeCounter
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.edges import EdgeReader
from support.rapl_shim import PowerTrack, Ripple, ShimMachine, Square, build_shim
from support.rapl_tree import pmu, topology
from support.servers import ExporterServer
from support.sysfs import XEON, FakeSysfs

REFRESH_NS = 1_000_000
WATTS, IDLE_WATTS = 260.0, 60.0
RIPPLE = Ripple(100_000_000, IDLE_WATTS / WATTS, 1.0)
SQUARE = Square(1_000_000_000, IDLE_WATTS / WATTS, 1.0)
LENGTHS_S = (0.02, 0.05, 0.2)
TARGETS_PERCENT = {0.02: 1.0, 0.05: 0.3, 0.2: 0.1}
COUNT, QUICK_COUNT = 1000, 20
BUSY_COUNT, BUSY_LOOPS = 500, 2
PRIORITY = 20
LONGEST_EDGE_S = 0.0035
"""An edge that took longer (two refreshes and the messages take 1.5 to 2.9 ms) was interrupted by the machine."""
LOOP = "while True: pass"

CASES = (
    *((load, length_s, "quiet") for load in ("rectangle", "ripple") for length_s in LENGTHS_S),
    *(("rectangle", length_s, "quiet, HTTP") for length_s in LENGTHS_S[:2]),
    *((load, length_s, "busy") for load in ("rectangle", "square") for length_s in LENGTHS_S[:2]),
)


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    results = []
    with tempfile.TemporaryDirectory() as name:
        library = build_shim(Path(name))
        for load, length_s, condition in CASES:
            count = QUICK_COUNT if quick else BUSY_COUNT if condition == "busy" else COUNT
            folder = Path(tempfile.mkdtemp(dir=name))
            rows = measure(folder, library, load, length_s, condition, count)
            results.append(summarize(load, length_s, condition, rows))
    result = {"machine": machine, "priorities": has_priority(), "cases": results}
    write_result("short_windows", result, table(machine, results, has_priority()))
    return result


def has_priority() -> bool:
    """Return whether this process may raise its priority."""
    return os.geteuid() == 0


@contextlib.contextmanager
def condition_of(name: str) -> Iterator[None]:
    """Give this process and its children the priority of a condition, and start the busy loops."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        if name == "busy":
            if has_priority():
                os.setpriority(os.PRIO_PROCESS, 0, -PRIORITY)
            loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(BUSY_LOOPS)]
        elif has_priority():
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        if has_priority():
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, 0)


Row = tuple[float, bool, int, float, bool]
"""Relative error, whether the uncertainty held, edges with refreshes, relative uncertainty, and whether an edge was
interrupted."""


def measure(folder: Path, library: Path, load: str, length_s: float, condition: str, count: int) -> list[Row]:
    """Measure windows at random phases of the counter and of the load."""
    sysfs = pmu(topology(FakeSysfs(folder / "node").cpuinfo(**XEON), (0, 0, 0), (0, 0, 1)), "energy-pkg")
    simulated = ShimMachine(sysfs=sysfs, library=library).refresh(REFRESH_NS)
    track: PowerTrack | None = None
    full_power_s: Callable[[int], float] = SQUARE.full_power_s
    if load == "rectangle":
        track = PowerTrack(folder / "track")
        track.set(IDLE_WATTS, time.monotonic_ns())
        simulated.event("energy-pkg", 0, 0.0).follow(track)
    elif load == "ripple":
        full_power_s = RIPPLE.full_power_s
        simulated.event("energy-pkg", 0, WATTS).ripple(RIPPLE)
    else:
        simulated.event("energy-pkg", 0, WATTS).square(SQUARE)
    path = "none" if condition.endswith("HTTP") else str(folder / "edge.sock")
    flags = (*simulated.flags, "--no-collector.estimate", f"--web.edge-socket={path}")
    rng = random.Random(1)
    rows = []
    with condition_of(condition):
        exporter = ExporterServer(folder / "exporter", *flags, environment=simulated.environment)
        exporter.start()
        try:
            with EdgeReader([ExporterClient(exporter.url)]) as reader:
                for _ in range(3):
                    reader.fetch()
                    time.sleep(0.3)
                for number in range(count):
                    time.sleep(rng.uniform(0.001, 0.004))
                    with Bracket(time, reader) as bracket:
                        if track is not None:
                            track.set(WATTS, bracket.start_ns)
                            start_joules = track.joules(bracket.start_ns)
                        time.sleep(length_s)
                        if track is not None:
                            track.set(IDLE_WATTS, time.monotonic_ns())
                    if track is not None:
                        truth = track.joules(bracket.end_ns) - start_joules
                    else:
                        truth = WATTS * (full_power_s(bracket.end_ns) - full_power_s(bracket.start_ns))
                    rows.append(row_of(bracket, number, truth))
        finally:
            exporter.stop()
    return rows


def row_of(bracket: Bracket, number: int, truth: float) -> Row:
    window = bracket.window(run="x", index=number, kind="measure")
    assert window.start_edge is not None
    assert window.end_edge is not None
    (start,), (end,) = window.start_edge.counters, window.end_edge.counters
    span = Span(window.start_s, window.start_s + window.duration_s, window.clock_error_s)
    traits = Traits(refresh_s=REFRESH_NS * 1e-9)
    energy = energy_from_edges(reading(start), reading(end), span, traits, power_floor_watts=IDLE_WATTS)
    expanded = NORMAL_95 * energy.standard_joules
    refreshes = sum(counter.step is not None for counter in (start, end))
    late = any(
        edge.answered_at_s - edge.requested_at_s > LONGEST_EDGE_S for edge in (window.start_edge, window.end_edge)
    )
    # Also between an answer and the start, or between the end and a request.
    late = late or window.start_s - window.start_edge.answered_at_s > REFRESH_NS * 1e-9
    late = late or window.end_edge.requested_at_s - window.end_s > REFRESH_NS * 1e-9
    error = energy.joules - truth
    return error / truth, abs(error) <= expanded, refreshes, expanded / truth, late


def reading(counter: EdgeCounter) -> EdgeReading:
    return EdgeReading(counter.read_at_s, counter.energy_joules, step=counter.step)


def summarize(load: str, length_s: float, condition: str, all_rows: list[Row]) -> dict[str, Any]:
    # A quiet machine does not interrupt: those windows are known, and counted.
    rows = all_rows if condition == "busy" else [row for row in all_rows if not row[4]]
    errors = sorted(abs(row[0]) for row in rows)
    return {
        "load": load,
        "window_s": length_s,
        "condition": condition,
        "windows": len(rows),
        "interrupted": sum(row[4] for row in all_rows),
        "largest_interrupted_percent": 100 * max((abs(row[0]) for row in all_rows if row[4]), default=0.0),
        "mean_percent": 100 * statistics.mean(row[0] for row in rows),
        "rms_percent": 100 * statistics.mean(row[0] ** 2 for row in rows) ** 0.5,
        # Nearest rank: of 1000 windows the 999th.
        "p999_percent": 100 * errors[max(-(-999 * len(errors) // 1000) - 1, 0)],
        "largest_percent": 100 * errors[-1],
        "held_percent": 100 * statistics.mean(row[1] for row in rows),
        "fallback_percent": 100 * statistics.mean(row[2] < 2 for row in rows),
        "uncertainty_percent": 100 * statistics.median(row[3] for row in rows),
        "load_average": os.getloadavg()[0],
    }


def table(machine: dict[str, Any], results: list[dict[str, Any]], priorities: bool) -> str:
    rows = [
        [
            case["load"],
            f"{case['window_s'] * 1e3:.0f} ms",
            case["condition"],
            str(case["windows"]),
            str(case["interrupted"]),
            f"{case['mean_percent']:+.3f}",
            f"{case['rms_percent']:.3f}",
            f"{case['p999_percent']:.2f}",
            f"{TARGETS_PERCENT[case['window_s']]:g}" if case["condition"] == "quiet" else "",
            f"{case['largest_percent']:.2f}",
            f"{case['largest_interrupted_percent']:.2f}" if case["interrupted"] and case["condition"] != "busy" else "",
            f"{case['uncertainty_percent']:.2f}",
            f"{case['held_percent']:.1f}",
            f"{case['fallback_percent']:.1f}",
            f"{case['load_average']:.1f}",
        ]
        for case in results
    ]
    head = [
        "power",
        "window",
        "condition",
        "windows",
        "interrupted",
        "mean",
        "rms",
        "p99.9",
        "target",
        "largest",
        "largest, interrupted",
        "median ±",
        "± holds",
    ]
    head += ["fallback", "load average"]
    priority = "real-time priority when quiet" if priorities else "no priority: not run as root"
    return (
        f"# Energy of short windows\n\n{host_line(machine)}\n"
        f"Errors in % of the true energy; a counter with a refresh of 1 ms; {IDLE_WATTS:g} and {WATTS:g} W: a "
        "rectangle that begins and ends with the window, a sine of 10 Hz, and a square of 1 Hz at random phases. The "
        f"exporter and the client had {priority}; the load average is that of the whole machine. "
        f"Interrupted: windows with an edge that took more than {LONGEST_EDGE_S * 1e3:g} ms, because the (shared) "
        "machine ran something else; they are excluded when quiet, and their largest error has its own "
        "column. Fallback: windows (%) with an edge that has no refresh. The target is for p99.9.\n\n"
        + markdown_table(head, rows)
    )
