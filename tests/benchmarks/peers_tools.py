"""Measure windows with one tool, as its documentation shows; a program of its own, without joulewatch's test code.

Usage: ``python peers_tools.py TOOL REQUEST.json ANSWER.json``. The machine's power passes through segments of equal
length. The request has the lengths of the windows that fit into one segment, those of longer windows, and the longest
total time. The answer has one row for each window: the times of its edges on the monotonic clock, when begin was
called, end returned and the energy was read, and that energy.

The tools are imported by name, because the environment of the benchmark has only some of them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

IDLE_S: Final = 1.5
"""Length of the pause in which the processor time of an open tool without a window is measured."""
EDGES_S: Final = 0.1
"""Room for the edges of a window in its segment."""
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_JOULES_PER_KWH: Final = 3.6e6

Result = tuple[float | None, float | None]
"""Energy in joules and its stated uncertainty; None: not given."""


class Zeus:
    package = "zeus"

    def __init__(self, _: dict[str, Any]) -> None:
        self.monitor = importlib.import_module("zeus.monitor").ZeusMonitor(gpu_indices=[], cpu_indices=[0])
        self.measurement: Any = None

    def begin(self) -> None:
        self.monitor.begin_window("window")

    def end(self) -> None:
        self.measurement = self.monitor.end_window("window")

    def result(self) -> Result:
        return self.measurement.cpu_energy[0], None

    def close(self) -> None: ...


class CodeCarbonTask:
    """``start_task`` and ``stop_task`` of one tracker."""

    package = "codecarbon"

    def __init__(self, request: dict[str, Any]) -> None:
        self.options = {"country_iso_code": "DEU", "save_to_file": False, "log_level": "critical"}
        # The time between two measurements in seconds; its default is 15.
        if request["poll_s"]:
            self.options["measure_power_secs"] = request["poll_s"]
        self.tracker = self.make()
        self.task: Any = None

    def make(self) -> Any:
        return importlib.import_module("codecarbon").OfflineEmissionsTracker(**self.options)

    def begin(self) -> None:
        self.tracker.start_task()

    def end(self) -> None:
        self.task = self.tracker.stop_task()

    def result(self) -> Result:
        return self.task.cpu_energy * _JOULES_PER_KWH, None

    def close(self) -> None:
        self.tracker.stop()


class CodeCarbonTracker(CodeCarbonTask):
    """``start`` and ``stop`` of a tracker for each window."""

    def begin(self) -> None:
        self.tracker = self.make()
        self.tracker.start()

    def end(self) -> None:
        self.tracker.stop()

    def result(self) -> Result:
        return self.tracker.final_emissions_data.cpu_energy * _JOULES_PER_KWH, None

    def close(self) -> None: ...


class PyJoules:
    package = "pyJoules"

    def __init__(self, _: dict[str, Any]) -> None:
        domains = [importlib.import_module("pyJoules.device.rapl_device").RaplPackageDomain(0)]
        devices = importlib.import_module("pyJoules.device.device_factory").DeviceFactory.create_devices(domains)
        self.meter = importlib.import_module("pyJoules.energy_meter").EnergyMeter(devices)

    def begin(self) -> None:
        self.meter.start(tag="window")

    def end(self) -> None:
        self.meter.stop()

    def result(self) -> Result:
        return self.meter.get_trace()[0].energy["package_0"] * 1e-6, None

    def close(self) -> None: ...


class PyRapl:
    package = "pyRAPL"

    def __init__(self, _: dict[str, Any]) -> None:
        self.module = importlib.import_module("pyRAPL")
        self.module.setup(devices=[self.module.Device.PKG], socket_ids=[0])
        self.measurement: Any = None

    def begin(self) -> None:
        self.measurement = self.module.Measurement("window")
        self.measurement.begin()

    def end(self) -> None:
        self.measurement.end()

    def result(self) -> Result:
        # Without a result the counter wrapped back below its start, or did not move.
        package = self.measurement.result.pkg
        return None if package is None else package[0] * 1e-6, None

    def close(self) -> None: ...


class Library:
    """``joulewatch.Meter`` with the exporter of the request."""

    package = "joulewatch"

    def __init__(self, request: dict[str, Any]) -> None:
        meter = importlib.import_module("joulewatch").Meter
        self.meter = meter(request["exporter"], output=request["output"]).open()

        self.window: Any = None

    def begin(self) -> None:
        self.meter.begin("window")

    def end(self) -> None:
        self.window = self.meter.end()

    def result(self) -> Result:
        return self.window.joules, self.window.uncertainty

    def close(self) -> None:
        self.meter.close()


TOOLS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "Zeus": Zeus,
    "CodeCarbon task": CodeCarbonTask,
    "CodeCarbon tracker": CodeCarbonTracker,
    "pyJoules": PyJoules,
    "pyRAPL": PyRapl,
    "joulewatch library": Library,
}


class Schedule:
    """Which window is next: those of the segment of now, in random order, then the long ones."""

    def __init__(self, request: dict[str, Any], seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._start_ns = request["start_ns"]
        self._segment_s = request["segment_s"]
        self._end_ns = time.monotonic_ns() + round(request["limit_s"] * 1e9)
        self._lists: list[list[float]] = [list(request["lengths_s"]) for _ in range(request["segments"])]
        for lengths in self._lists:
            self._rng.shuffle(lengths)
        self._long: list[float] = list(request["long_s"])

    def next_length(self) -> float | None:
        """Wait for the next window, and a random pause before it; None: the time is over, or there is none left."""
        while (now_ns := time.monotonic_ns()) < self._end_ns:
            pause_s = self._rng.uniform(0.02, 0.08)
            number, at_s = divmod((now_ns - self._start_ns) / 1e9, self._segment_s)
            lengths = self._lists[int(number) % len(self._lists)]
            left_s = min(self._segment_s - at_s, (self._end_ns - now_ns) / 1e9) - pause_s - EDGES_S
            fitting = [length for length in lengths if length < left_s]
            if fitting:
                lengths.remove(fitting[0])
                time.sleep(pause_s)
                return fitting[0]
            if any(self._lists):
                time.sleep(min(0.05, self._segment_s - at_s + 0.001))
                continue
            if not self._long or (now_ns + self._long[0] * 1e9) > self._end_ns:
                return None
            time.sleep(pause_s)
            return self._long.pop(0)
        return None


def take_windows(tool: Any, schedule: Schedule) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while (length_s := schedule.next_length()) is not None:
        called_ns = time.monotonic_ns()
        tool.begin()
        start_ns = time.monotonic_ns()
        time.sleep(length_s)
        stop_ns = time.monotonic_ns()
        tool.end()
        returned_ns = time.monotonic_ns()
        joules, uncertainty = tool.result()
        read_ns = time.monotonic_ns()
        rows.append(
            {
                "length_s": length_s,
                "called_ns": called_ns,
                "start_ns": start_ns,
                "stop_ns": stop_ns,
                "returned_ns": returned_ns,
                "read_ns": read_ns,
                "joules": joules,
                "uncertainty": uncertainty,
            }
        )
    return rows


def take_perun_windows(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a function with perun's decorator for each window; perun gives its result to a callback."""
    decorator = importlib.import_module("perun").perun(data_out=request["output"], app_name="window", format="json")
    cpu_energy = importlib.import_module("perun.data_model.data").MetricType.CPU_ENERGY
    results: list[float] = []

    def keep(node: Any) -> None:
        results.append(_first(node, cpu_energy))

    importlib.import_module("perun.core").Perun(importlib.import_module("perun.configuration").config)
    importlib.import_module("perun").register_callback(keep)

    def work(row: dict[str, Any]) -> None:
        row["start_ns"] = time.monotonic_ns()
        time.sleep(row["length_s"])
        row["stop_ns"] = time.monotonic_ns()

    rows: list[dict[str, Any]] = []
    end_ns = time.monotonic_ns() + round(request["limit_s"] * 1e9)
    # Each window takes some seconds more, so there are few.
    lengths = sorted(set(request["lengths_s"]))
    for length_s in (*lengths, *request["long_s"], *(lengths * 20)):
        if time.monotonic_ns() + length_s * 1e9 > end_ns:
            break
        row: dict[str, Any] = {"length_s": length_s, "uncertainty": None, "called_ns": time.monotonic_ns()}
        before = len(results)
        decorator(work)(row)
        row["returned_ns"] = time.monotonic_ns()
        row["joules"] = results[-1] if len(results) > before else None
        rows.append(row)
    return rows


def _first(node: Any, metric: Any) -> float:
    """Return a metric of the node, or of the first node below that has it."""
    if metric in node.metrics:
        return float(node.metrics[metric].value)
    for child in node.nodes.values():
        with contextlib.suppress(LookupError):
            return _first(child, metric)
    raise LookupError(metric)


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def processor_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_SECOND


def memory_mib(pids: Sequence[int]) -> float:
    """Return the proportional memory of some processes: shared pages are divided among their users."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def main(name: str, request_file: str, answer_file: str) -> int:
    request = json.loads(Path(request_file).read_text())
    answer: dict[str, Any] = {}
    opened_ns = time.monotonic_ns()
    if name == "perun":
        answer["rows"] = take_perun_windows(request)
        answer["version"] = version("perun")
    else:
        tool = TOOLS[name](request)
        # The first window of some tools starts processes or imports packages, so it does not count.
        tool.begin()
        time.sleep(0.05)
        tool.end()
        tool.result()
        answer["open_s"] = (time.monotonic_ns() - opened_ns) / 1e9
        pids = family(os.getpid())
        before_s = processor_s(pids)
        time.sleep(IDLE_S)
        answer["idle_percent"] = 100 * (processor_s(pids) - before_s) / IDLE_S
        answer["memory_mib"] = memory_mib(pids)
        answer["rows"] = take_windows(tool, Schedule(request))
        tool.close()
        answer["version"] = version(tool.package)
    Path(answer_file).write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
