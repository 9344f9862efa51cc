"""joulewatch and other tools that measure energy, on one emulated machine whose true energy is known.

The other tools read ``/sys``, so they run in a mount namespace that shows the emulated ``/sys``, which needs root. They
run one after the other, each as its documentation shows (``peers_tools.py``), in an environment of their own that is
made from ``peers_packages.txt``. The truth is the energy between the return of begin and the call of end.

The power of the one socket is steady, then a square, then a ripple of 10 Hz, and so on. Its counter has 26 instead of
32 bits, so that it wraps every 5 s instead of every 6 minutes, and it is updated every 1 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import requests
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from benchmarks.peers_tools import EDGES_S, IDLE_S, family, memory_mib, processor_s
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.energy.whole_run import measure_whole_run
from joulewatch_harness.analysis.energy.window_energy import WindowEnergy
from joulewatch_harness.analysis.results.averages import covers_of
from joulewatch_harness.analysis.results.uncertainty import combine, combine_mean
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.storage.journal import read_run
from support.paths import ROOT
from support.servers import Emulator, ExporterServer, PrometheusServer, Server, free_port

HERE: Final = Path(__file__).parent
ENVIRONMENT: Final = ROOT / "build/peers"
"""Environment of the other tools; ignored by git."""
KEY: Final = "socket0/package"
SEGMENTS: Final = ("steady", "square", "ripple")
SEGMENT_S: Final = 6.0
COUNTER_BITS: Final = 26
STEPS_PER_JOULE: Final = 2**16
RANGE_JOULES: Final = 2**COUNTER_BITS / STEPS_PER_JOULE
START_JOULES: Final = 100.0
SCENARIO: Final = {
    "name": "peers",
    "refresh_s": 0.001,
    "machine": {"sockets": 1},
    "signals": {
        "power": {
            "kind": "phases",
            "of": [
                {"signal": 200.0, "duration_s": SEGMENT_S},
                {
                    "signal": {
                        "kind": "square",
                        "low_watts": 60.0,
                        "high_watts": 260.0,
                        "period_s": 0.37,
                        "duty": 0.5,
                    },
                    "duration_s": SEGMENT_S,
                },
                {
                    "signal": {"kind": "sine", "mean_watts": 200.0, "amplitude_watts": 100.0, "period_s": 0.1},
                    "duration_s": SEGMENT_S,
                },
            ],
        }
    },
    "zones": [
        {
            "zone": "intel-rapl:0",
            "name": "package-0",
            "key": KEY,
            "signal": "power",
            "counter_bits": COUNTER_BITS,
            "start_joules": START_JOULES,
        }
    ],
}
# Lengths of windows in seconds and their number in each segment; none is a multiple of the refresh.
COUNTS: Final = {0.0203: 14, 0.0507: 8, 0.2031: 4, 1.0037: 2}
LONG_S: Final = (3.3037, 10.0037)
HISTORY_S: Final = (1.0037, 3.3037, 10.0037)
MEASURE_S: Final = (0.0203, 0.2031, 1.0037)
PROFILE_S: Final = 1.0037
PEERS: Final = ("Zeus", "CodeCarbon task", "CodeCarbon tracker", "pyJoules", "pyRAPL", "perun")
NAMESPACE: Final = 'mount --bind "$0" /sys && exec "$@"'
WORKER_LIMIT_S: Final = 300.0


def missing() -> str:
    """Return why the benchmark cannot run here; empty: it can."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return "it needs root and the program unshare, because the other tools read only /sys"
    try_it = ["unshare", "-m", "--propagation", "private", "true"]
    if subprocess.run(try_it, check=False, capture_output=True).returncode:
        return "mount namespaces are not permitted here"
    for program in ("prometheus", "prometheus-node-exporter"):
        if shutil.which(program) is None:
            return f"it needs {program}: apt-get install {program}"
    return ""


def environment() -> Path:
    """Return the Python of the other tools; install them if they are not."""
    python = Path(os.environ.get("JOULEWATCH_PEERS", ENVIRONMENT)) / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        packages = ("install", "--quiet", "-r", str(HERE / "peers_packages.txt"))
        subprocess.run([str(python), "-m", "pip", *packages], check=True)
    return python


class Bench:
    """The emulated machine, what reads it, and the rows so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, dict[str, Any]] = {}
        scenario = folder / "peers.yaml"
        scenario.write_text(yaml.safe_dump(SCENARIO))
        self.machine = Emulator(scenario)
        self.machine.start()
        self.truth = Truth.load(self.machine.folder)
        self.exporter = ExporterServer(
            folder / "exporter", *self.machine.flags, f"--web.edge-socket={folder / 'edge.sock'}"
        )

    def add(self, tool: str, row: Mapping[str, Any]) -> None:
        """Add a window with its truth, its segment and the wraps of the counter inside."""
        start_s, stop_s = (self.at_s(row[key]) for key in ("start_ns", "stop_ns"))
        before, after = (self.truth.energy_joules(KEY, self.truth.start_unix_s, end) for end in (start_s, stop_s))
        first, last = (int((edge - self.truth.start_unix_s) / SEGMENT_S) % len(SEGMENTS) for edge in (start_s, stop_s))
        inside = first == last and stop_s - start_s < SEGMENT_S
        self.rows.append(
            {
                **row,
                "tool": tool,
                "true_joules": after - before,
                "load": SEGMENTS[first] if inside else "mixed",
                "wraps": int((START_JOULES + after) / RANGE_JOULES) - int((START_JOULES + before) / RANGE_JOULES),
            }
        )

    def at_s(self, monotonic_ns: float) -> float:
        return self.truth.start_unix_s + (monotonic_ns - self.truth.start_monotonic_ns) / 1e9

    def at_ns(self, unix_s: float) -> float:
        return self.truth.start_monotonic_ns + (unix_s - self.truth.start_unix_s) * 1e9

    def work(self, tool: str, python: Path, *, windows: Mapping[str, Any], own: bool, label: str = "") -> None:
        """Run the program of one tool; ``own``: joulewatch's library, which needs no namespace."""
        request, answer = self.folder / "request.json", self.folder / "answer.json"
        output = self.folder / "output" / (label or tool).replace(" ", "-")
        output.mkdir(parents=True)
        document = {
            "start_ns": self.truth.start_monotonic_ns,
            "segment_s": SEGMENT_S,
            "segments": len(SEGMENTS),
            "exporter": self.exporter.url,
            "output": str(output),
            "poll_s": 0,
            **windows,
        }
        request.write_text(json.dumps(document))
        answer.unlink(missing_ok=True)
        command = [str(python), str(HERE / "peers_tools.py"), tool, str(request), str(answer)]
        if not own:
            command = ["unshare", "-m", "--propagation", "private", "sh", "-c", NAMESPACE]
            command += [str(self.machine.sysfs), str(python), str(HERE / "peers_tools.py"), tool]
            command += [str(request), str(answer)]
        log = self.folder / "tool.log"
        with log.open("wb") as stream:
            done = subprocess.run(
                command, cwd=self.folder, stdout=stream, stderr=stream, check=False, timeout=WORKER_LIMIT_S
            )
        if done.returncode or not answer.exists():
            raise RuntimeError(f"{tool} ended with {done.returncode}: {log.read_text()[-2000:]}")
        result = json.loads(answer.read_text())
        rows = result.pop("rows")
        self.facts.setdefault(label or tool, result)
        for row in rows:
            self.add(label or tool, row)

    def measure(self, count: int) -> None:
        """Run ``joulewatch measure`` with ``sleep``; its windows are those of its own report."""
        for length in MEASURE_S:
            out = self.folder / "out.json"
            command = [sys.executable, "-m", "joulewatch_harness", "measure", "--exporter", self.exporter.url]
            command += ["-r", str(count), "--output", str(self.folder / "runs"), "--out", str(out)]
            command += ["--format", "json", "--", "sleep", str(length)]
            subprocess.run(command, check=True, capture_output=True, timeout=WORKER_LIMIT_S)
            for window in json.loads(out.read_text())["windows"]:
                start_ns = self.at_ns(window["start_s"])
                self.add(
                    "joulewatch measure",
                    {
                        "length_s": length,
                        "start_ns": start_ns,
                        "stop_ns": start_ns + window["seconds"] * 1e9,
                        "joules": window["energy"]["joules"],
                        "uncertainty": window["energy"]["uncertainty_joules"],
                    },
                )

    def profile(self, rounds: int) -> None:
        """Run ``joulewatch profile`` with a network that sleeps; its windows are those of its journal."""
        runs = self.folder / "profiles"
        command = [sys.executable, "-m", "joulewatch_harness", "profile", "--exporter", self.exporter.url]
        command += ["--network", f"{ROOT / 'tests/support/sleeper.py'}:Sleeper", "--batch-sizes", "1"]
        command += ["--window", str(PROFILE_S), "--rounds", str(rounds), "--idle", "1", "--no-isolate"]
        command += ["--output", str(runs)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WORKER_LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"profile ended with {done.returncode}: {done.stderr[-2000:]}")
        (run,) = runs.iterdir()
        self.from_journal(run, "joulewatch profile", None, PROFILE_S)

    def history(self, limit_s: float, repeats: int) -> None:
        """Measure windows from scrapes of 1 s: joulewatch's analysis, and ``increase()`` of node_exporter's counter."""
        address = f"127.0.0.1:{free_port()}"
        node_folder = self.folder / "node_exporter"
        node_folder.mkdir()
        program = shutil.which("prometheus-node-exporter")
        assert program is not None
        flags = ["--collector.disable-defaults", "--collector.rapl", f"--path.sysfs={self.machine.sysfs}"]
        node = Server([program, f"--web.listen-address={address}", *flags], node_folder, f"http://{address}/metrics")
        prometheus_program = shutil.which("prometheus")
        assert prometheus_program is not None
        prometheus = PrometheusServer(
            prometheus_program,
            self.folder / "prometheus",
            scrape_targets=[self.exporter.address],
            scrape_jobs={"node": [(address, {})]},
        )
        try:
            node.start()
            prometheus.start()
            time.sleep(3.0)
            windows = {"lengths_s": [], "long_s": [*HISTORY_S] * repeats, "limit_s": limit_s}
            with self.watched({"node_exporter": node}):
                self.work("joulewatch library", Path(sys.executable), windows=windows, own=True, label="while scraped")
            time.sleep(2.5)
            rows = [row for row in self.rows if row["tool"] == "while scraped"]
            self.rows = [row for row in self.rows if row["tool"] != "while scraped"]
            for row in rows:
                joules = self.increase(prometheus.url, row)
                self.add("node_exporter, increase()", {**row, "joules": joules, "uncertainty": None})
            self.from_history(prometheus.url)
        finally:
            node.stop()
            prometheus.stop()

    @contextlib.contextmanager
    def watched(self, servers: Mapping[str, Server]) -> Iterator[None]:
        """Note the processor time and memory of some servers meanwhile."""
        started_s = time.monotonic()
        pids = {name: family(server.process.pid) for name, server in servers.items() if server.process}
        before_s = {name: processor_s(of_server) for name, of_server in pids.items()}
        yield
        for name, of_server in pids.items():
            busy_s = processor_s(of_server) - before_s[name]
            self.facts[name] = {
                "idle_percent": 100 * busy_s / (time.monotonic() - started_s),
                "memory_mib": memory_mib(of_server),
            }

    def increase(self, url: str, row: Mapping[str, Any]) -> float | None:
        """Return what PromQL gives for the time of a window; None: too few scrapes are inside."""
        milliseconds = round((row["stop_ns"] - row["start_ns"]) / 1e6)
        query = f"sum(increase(node_rapl_package_joules_total[{milliseconds}ms]))"
        parameters: dict[str, str | float] = {"query": query, "time": self.at_s(row["stop_ns"])}
        answer = requests.get(f"{url}/api/v1/query", params=parameters, timeout=10).json()
        result = answer["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def from_history(self, url: str) -> None:
        (run,) = (self.folder / "output/while-scraped").iterdir()
        source = PrometheusSource(PrometheusClient(PrometheusOptions(url=url)))
        try:
            self.from_journal(run, "joulewatch history", source, None)
        finally:
            source.close()

    def from_journal(self, run: Path, tool: str, source: PrometheusSource | None, length_s: float | None) -> None:
        record = read_run(run)
        if source is not None:
            # Without edges, the energies are those of the history.
            windows = (replace(window, start_edge=None, end_edge=None) for window in record.windows)
            record = replace(record, windows=tuple(windows))
        spans = [(window.start_s, window.end_s) for window in record.windows]
        history = source.history(spans, record.header.exporters) if source else History(source="")
        for measured in measure_whole_run(record, history).windows:
            if measured.window.kind != "measure":
                continue
            (energy,) = (result.energy for result in measured.sensors.values())
            nearest = min(HISTORY_S, key=lambda length: abs(length - measured.window.duration_s))
            if length_s is None and abs(nearest - measured.window.duration_s) > EDGES_S:
                continue  # the tool's first window, which does not count
            start_ns = self.at_ns(measured.span.start_s)
            self.add(
                tool,
                {
                    "length_s": length_s or nearest,
                    "start_ns": start_ns,
                    "stop_ns": start_ns + (measured.span.end_s - measured.span.start_s) * 1e9,
                    "joules": None if energy is None else energy.joules,
                    "uncertainty": None if energy is None else _expanded(energy),
                },
            )


def _expanded(energy: WindowEnergy) -> float | None:
    """Return ± at 95 % of a single window, as ``joulewatch measure`` states it."""
    combined = combine([energy])
    rounds = {0: [(combined.joules, combined.random)]}
    covers = covers_of([combined])
    return combine_mean(rounds, combined.systematic, combined.texts, covers=covers, repeatable=False).expanded


def collect(scale: float) -> Bench:
    """Run all tools; the rows stay in the bench."""
    counts = {length: max(1, round(count * scale)) for length, count in COUNTS.items()}
    lengths = [length for length, count in counts.items() for _ in range(count)]
    long_s = [*LONG_S] * max(1, round(scale))
    # As long as two rounds of segments, because the first one begins in the middle, and the long windows.
    limit_s = (len(SEGMENTS) + 1) * SEGMENT_S * max(1.0, scale) + sum(long_s) + 2.0
    windows = {"lengths_s": lengths, "long_s": long_s, "limit_s": limit_s}
    python = environment()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        try:
            for tool in PEERS:
                bench.work(tool, python, windows=windows, own=False)
                sys.stderr.write(f"{tool}: done\n")
            bench.exporter.start()
            time.sleep(1.0)
            bench.work("joulewatch library", Path(sys.executable), windows=windows, own=True)
            bench.measure(max(3, round(6 * scale)))
            bench.profile(max(3, round(4 * scale)))
            with bench.watched({"joulewatch exporter": bench.exporter}):
                time.sleep(IDLE_S)
            bench.history(sum(HISTORY_S) * 2 * max(1.0, scale) + 5.0, 2 * max(1, round(scale)))
        finally:
            bench.exporter.stop()
            bench.machine.remove()
        return bench


def cell_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise windows of one tool; windows without a number count as such and are in no other figure."""
    good = [row for row in rows if row["joules"] is not None]
    errors = [100 * (row["joules"] / row["true_joules"] - 1) for row in good]
    stated = [row for row in good if row["uncertainty"] is not None]
    cell: dict[str, Any] = {
        "windows": len(rows),
        "without_number": len(rows) - len(good),
        "zero_or_negative": sum(row["joules"] <= 0 for row in good),
        "stated": len(stated),
        "held": sum(abs(row["joules"] - row["true_joules"]) <= row["uncertainty"] for row in stated),
    }
    if good:
        cell["mean_percent"] = statistics.fmean(errors)
        cell["rms_percent"] = statistics.fmean(error * error for error in errors) ** 0.5
        cell["largest_percent"] = max(map(abs, errors))
    if stated:
        cell["median_stated_percent"] = statistics.median(
            100 * row["uncertainty"] / row["true_joules"] for row in stated
        )
    return cell


def summarise(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of the three tables: accuracy without wraps, windows with wraps, cost."""
    tools = list(dict.fromkeys(row["tool"] for row in bench.rows))
    accuracy, wraps, cost = [], [], []
    for length in sorted({row["length_s"] for row in bench.rows}):
        for load in (*SEGMENTS, "mixed"):
            for tool in tools:
                rows = [
                    row
                    for row in bench.rows
                    if (row["tool"], row["length_s"], row["load"], row["wraps"]) == (tool, length, load, 0)
                ]
                if rows:
                    accuracy.append({"tool": tool, "length_s": length, "load": load, **cell_of(rows)})
    for tool in tools:
        for label, least, most in (("1", 1, 1), ("2 or more", 2, 99)):
            rows = [row for row in bench.rows if row["tool"] == tool and least <= row["wraps"] <= most]
            if rows:
                wraps.append({"tool": tool, "wraps": label, **cell_of(rows)})
        rows = [row for row in bench.rows if row["tool"] == tool and "called_ns" in row]
        if rows and tool in bench.facts:
            cost.append(
                {
                    "tool": tool,
                    "begin_ms": statistics.median((row["start_ns"] - row["called_ns"]) / 1e6 for row in rows),
                    "end_ms": statistics.median((row["returned_ns"] - row["stop_ns"]) / 1e6 for row in rows),
                    "result_ms": statistics.median(
                        (row.get("read_ns", row["returned_ns"]) - row["returned_ns"]) / 1e6 for row in rows
                    ),
                    **bench.facts[tool],
                }
            )
    cost += [{"tool": name, **bench.facts[name]} for name in ("joulewatch exporter", "node_exporter")]
    return {"accuracy": accuracy, "wraps": wraps, "cost": cost}


def overview(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return the rms error of each tool at each length over all loads, without wraps, and the best tool of each."""
    lengths = sorted({row["length_s"] for row in rows})
    cells = {
        (tool, length): cell_of(
            [row for row in rows if (row["tool"], row["length_s"], row["wraps"]) == (tool, length, 0)]
        )
        for tool in dict.fromkeys(row["tool"] for row in rows)
        for length in lengths
    }
    lines = []
    for tool in dict.fromkeys(tool for tool, _ in cells):
        of_tool = [cells[tool, length] for length in lengths]
        lines.append([tool, *(_overview_text(cell) for cell in of_tool)])
    best = []
    for length in lengths:
        errors = {
            tool: cell["rms_percent"] for (tool, of), cell in cells.items() if of == length and "rms_percent" in cell
        }
        if errors:
            first = min(errors, key=lambda tool: errors[tool])
            own = errors.get("joulewatch library")
            rest = "" if own is None or first == "joulewatch library" else f"; joulewatch library: {own:.2f} %"
            best.append(f"{length:g} s: {first}, {errors[first]:.2f} %{rest}")
    return markdown_table(["tool", *(f"{length:g} s" for length in lengths)], lines), best


def _overview_text(cell: Mapping[str, Any]) -> str:
    if not cell["windows"]:
        return ""
    lost = f" ({cell['without_number']} of {cell['windows']} without)" if cell["without_number"] else ""
    return f"{cell['rms_percent']:.2f}{lost}" if "rms_percent" in cell else f"no number in {cell['windows']}"


def accuracy_texts(cell: Mapping[str, Any]) -> list[str]:
    if "mean_percent" not in cell:
        return [str(cell["windows"]), "no number", "", "", "", "", str(cell["without_number"])]
    stated = f"{cell['median_stated_percent']:.2f}" if "median_stated_percent" in cell else "none"
    return [
        str(cell["windows"]),
        f"{cell['mean_percent']:+.2f}",
        f"{cell['rms_percent']:.2f}",
        f"{cell['largest_percent']:.2f}",
        stated,
        f"{cell['held']}/{cell['stated']}" if cell["stated"] else "",
        str(cell["without_number"]) if not cell["zero_or_negative"] else f"{cell['zero_or_negative']} of ≤ 0 J",
    ]


def report(
    bench: Bench, tables: Mapping[str, Sequence[Mapping[str, Any]]], machine: Mapping[str, Any], seconds: float
) -> str:
    """Return the results as Markdown."""
    table, best = overview(bench.rows)
    head = ["n", "mean error %", "rms %", "largest %", "stated ± %", "± held", "no number"]
    accuracy = [
        [f"{cell['length_s']:g}", cell["load"], cell["tool"], *accuracy_texts(cell)] for cell in tables["accuracy"]
    ]
    wraps = [[cell["wraps"], cell["tool"], *accuracy_texts(cell)] for cell in tables["wraps"]]
    cost = [
        [
            cell["tool"],
            cell.get("version", ""),
            *(f"{cell[key]:.2f}" if key in cell else "" for key in ("begin_ms", "end_ms", "result_ms")),
            *(f"{cell[key]:.1f}" if key in cell else "" for key in ("open_s", "idle_percent", "memory_mib")),
        ]
        for cell in tables["cost"]
    ]
    load = machine["load_average_at_start"]
    return (
        "# joulewatch and other tools on one emulated machine\n\n"
        f"{host_line(dict(machine))}\n"
        f"Load average at the start: {load:.1f}; duration: {seconds:.0f} s. On a loaded machine, the scheduler delays "
        "the edges of all tools.\n\n"
        f"{NOTES}\n## Rms error in %, all loads, windows without a wrap\n\n{table}\nSmallest rms error:\n\n"
        + "".join(f"- {line}\n" for line in best)
        + "\n## Windows without a wrap of the counter\n\n"
        f"{markdown_table(['window s', 'load', 'tool', *head], accuracy)}\n"
        "## Windows with wraps of the counter\n\n"
        f"{markdown_table(['wraps', 'tool', *head], wraps)}\n"
        "## Cost\n\n"
        + markdown_table(
            ["tool", "version", "begin ms", "end ms", "result ms", "open s", "idle CPU %", "memory MiB"], cost
        )
    )


NOTES: Final = """\
The command: `make bench BENCH_FLAGS=peers` as root; `tests/benchmarks/peers.py --scale 4` measures more windows. One
socket, its power in turns steady (200 W), a square (60 and 260 W, 0.37 s) and a ripple of 10 Hz (100 to 300 W); windows
that contain several are *mixed*. The counter is updated every 1 ms. It has 26 bits and wraps every 5 s, where a real
one of 32 bits wraps after minutes: a tool that samples in the background sees fewer samples between two wraps here than
on hardware. The truth is the energy between the return of begin and the call of end.

- Each tool is used as its documentation shows, with its default options. CodeCarbon measures every 15 s, perun every
  1 s. CodeCarbon's figures are its CPU energy. Windows of perun are decorated functions.
- The windows of `joulewatch measure` are executions of `sleep`, from its own report; those of `profile` are in its
  journal. History and node_exporter are scraped every 1 s; the range of `increase()` is the window.
- Begin, end and result (reading the energy) are medians. At each edge, joulewatch waits for the next two refreshes of
  the counter: 1.5 ms on average, which is part of begin and end. Open is the time until the first window has ended;
  joulewatch's library needs the exporter too. node_exporter was scraped every 1 s, the exporter was not.
- Zeus finds a wrap 0.1 to 1 s later, so errors of 1,024 J are also in windows that follow a wrap; on hardware they are
  as rare as wraps. perun starts a process for each window.
- Only joulewatch states an uncertainty. It covers the sampling; the counter of the emulated machine has no error.
"""


def run(quick: bool = False, scale: float = 1.0) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    reason = missing()
    if reason:
        sys.stderr.write(f"peers: skipped: {reason}\n")
        return {"skipped": reason}
    machine = describe_machine()
    started_s = time.monotonic()
    bench = collect(0.25 if quick else scale)
    tables = summarise(bench)
    seconds = time.monotonic() - started_s
    result = {"machine": machine, "duration_s": round(seconds, 1), **tables}
    write_result("peers", result, report(bench, tables, machine, seconds))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of windows (default: 1)")
    run(scale=parser.parse_args().scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
