"""Whose joules with short-lived processes: joulewatch and a scan of processes, against the truth of an emulator.

The processes and cgroups are real, so it needs root; the emulator gives each workload its watts per core. First all
workloads have the same, so that every error is one of bookkeeping. Then mixes of workloads with different watts per
core show whether the truth is inside the bound that joulewatch states.

`PidScan` is a reference implementation of how other exporters share energy: by the processor time that the processes
alive at a scan have used since the last one.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, host_line, markdown_table, write_result
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO, share_bounds
from support.cgroups import RealTree, real_tree
from support.servers import MEMORY, ExporterServer
from support.storm import IDLE_WATTS, KEY, Load, Scrape, configure, emulate, running, wait_for_series

WATTS_PER_CORE = 20.0
SAME = (
    Load(kind="steady", path="steady.service", busy=0.4, watts_per_core=WATTS_PER_CORE),
    Load(kind="forks", path="system.slice/storm.service", busy=0.5, watts_per_core=WATTS_PER_CORE),
    Load(kind="containers", path="containers.slice", busy=0.6, watts_per_core=WATTS_PER_CORE),
)
TEXTS = {
    "steady": "one process",
    "forks": "processes of 30 ms",
    "containers": "containers of 0.4 s",
}
SCANS_S = (1.0, 5.0)
SPAN_S, QUICK_SPAN_S = 60.0, 10.0
MIXES, QUICK_MIXES = 20, 2
MIX_SPAN_S, QUICK_MIX_SPAN_S = 10.0, 3.0
VERSION = "v2"


class PidScan:
    """Scans all processes on a thread, and notes what each workload has used since the scan before."""

    def __init__(self, tree: RealTree, loads: Sequence[Load], period_s: float) -> None:
        self._prefixes = {load.path: f"/{tree.root.name}/{load.path}" for load in loads}
        self._period_s = period_s
        self._used: dict[int, tuple[str, float]] = {}
        self.scans: list[tuple[float, dict[str, float]]] = []
        """Unix time, and seconds of each workload since the scan before."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop.wait(max(due_s - time.monotonic(), 0.0)):
            due_s += self._period_s
            self._scan()

    def _scan(self) -> None:
        before, self._used = self._used, {}
        seconds = dict.fromkeys(self._prefixes, 0.0)
        at_s = time.time()
        for entry in os.listdir("/proc"):  # noqa: PTH208 - the processes may end at any time
            if not entry.isdigit():
                continue
            pid = int(entry)
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                path, last = before[pid] if pid in before else (self._path(entry), 0.0)
                if path:
                    self._used[pid] = path, used
                    seconds[path] += max(used - last, 0.0)
        self.scans.append((at_s, seconds))

    def _path(self, pid: str) -> str:
        """Return the workload of a process; empty if it is in none."""
        text = Path(f"/proc/{pid}/cgroup").read_text()
        return next((path for path, prefix in self._prefixes.items() if prefix in text), "")

    @contextlib.contextmanager
    def scanning(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def errors(self, truth: Truth) -> dict[str, float]:
        """Return the relative error of the joules of each workload, from the first scan to the last one.

        The active energy of each interval is the true one: all error is that of the shares.
        """
        joules = dict.fromkeys(self._prefixes, 0.0)
        for (start_s, _), (end_s, seconds) in zip(self.scans, self.scans[1:], strict=False):
            active = truth.energy_joules(KEY, start_s, end_s) - IDLE_WATTS * (end_s - start_s)
            total = sum(seconds.values())
            for path, used in seconds.items():
                joules[path] += active * used / total if total else 0.0
        span = self.scans[0][0], self.scans[-1][0]
        return {path: value / truth.workload_joules(KEY, path, *span) - 1.0 for path, value in joules.items()}


@dataclass(frozen=True)
class Measured:
    """Two scrapes of the exporter, and the truth."""

    before: Scrape
    after: Scrape
    truth: Truth

    def true_joules(self, load: Load) -> float:
        return self.truth.workload_joules(KEY, load.path, self.before.read_at_s, self.after.read_at_s)

    def joules(self, load: Load) -> float:
        return self.after.since(self.before, load)

    @property
    def active_joules(self) -> float:
        return self._device_joules - (self.after.unattributed["idle"] - self.before.unattributed["idle"])

    @property
    def _device_joules(self) -> float:
        return self.after.device_joules - self.before.device_joules

    @property
    def residue(self) -> float:
        """Relative difference between all shares and the energy of the device."""
        return abs((self.after.shared_joules - self.before.shared_joules) / self._device_joules - 1.0)

    @property
    def true_active_joules(self) -> float:
        return sum(
            self.truth.workload_joules(KEY, path, self.before.read_at_s, self.after.read_at_s)
            for path in self.truth.workloads(KEY)
        )


def measure(tree: RealTree, loads: Sequence[Load], span_s: float, scans: Sequence[PidScan] = ()) -> Measured:
    """Run loads and measure them once all have series."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name, contextlib.ExitStack() as stack:
        machine = emulate(tree, loads, Path(name))
        stack.callback(machine.remove)
        exporter = ExporterServer(Path(name, "exporter"), configure(machine))
        exporter.start()
        stack.callback(exporter.stop)
        with running(tree, loads):
            wait_for_series(exporter.url, loads)
            with contextlib.ExitStack() as scanning:
                before = Scrape.get(exporter.url)
                for scan in scans:
                    scanning.enter_context(scan.scanning())
                time.sleep(span_s)
                after = Scrape.get(exporter.url)
            time.sleep(0.1)
        return Measured(before, after, Truth.load(machine.folder))


def draw(random_: random.Random, number: int) -> list[Load]:
    """Return two to four loads whose watts per core differ by a factor of up to two; one of them makes containers."""
    loads = [("containers", f"mix-{number}.slice"), ("steady", f"steady-{number}.service")]
    loads += [(random_.choice(("steady", "forks")), f"other-{number}-{index}.service") for index in range(2)]
    loads = loads[: random_.randint(2, 4)]
    ratio = random_.uniform(1.0, DEFAULT_RATIO)
    return [
        Load(
            kind=kind,  # type: ignore[arg-type]
            path=path,
            busy=random_.uniform(0.1, 1.6 / len(loads)) if kind != "containers" else random_.uniform(0.2, 0.8),
            watts_per_core=10.0 * random_.uniform(1.0, ratio),
        )
        for kind, path in loads
    ]


def check_bound(measured: Measured, load: Load) -> dict[str, Any]:
    """Return share, bound and truth of a load."""
    share = measured.joules(load) / measured.active_joules
    true_share = measured.true_joules(load) / measured.true_active_joules
    low, high = share_bounds(share)
    return {
        "kind": load.kind,
        "watts_per_core": load.watts_per_core,
        "share": share,
        "low": low,
        "high": high,
        "true_share": true_share,
        "is_inside": low <= true_share <= high,
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Run the benchmark; write and return the result."""
    machine = describe_machine()
    span_s = QUICK_SPAN_S if quick else SPAN_S
    with real_tree(VERSION) as tree:
        scans = [PidScan(tree, SAME, period_s) for period_s in SCANS_S]
        same = measure(tree, SAME, span_s + 0.5, scans)
    errors = {
        "joulewatch": {load.path: same.joules(load) / same.true_joules(load) - 1.0 for load in SAME},
        **{f"scan every {scan_s:g} s": scan.errors(same.truth) for scan_s, scan in zip(SCANS_S, scans, strict=True)},
    }
    random_ = random.Random(16)
    mixes = []
    residue = same.residue
    for number in range(QUICK_MIXES if quick else MIXES):
        loads = draw(random_, number)
        with real_tree(VERSION) as tree:
            one = measure(tree, loads, QUICK_MIX_SPAN_S if quick else MIX_SPAN_S)
        mixes.append([check_bound(one, load) for load in loads])
        residue = max(residue, one.residue)
    result = {
        "machine": machine, "hierarchy": VERSION, "span_s": span_s,
        "true_joules": {load.path: same.true_joules(load) for load in SAME}, "errors": errors, "mixes": mixes,
        "largest_residue": residue,
    }  # fmt: skip
    write_result("fork_storm", result, table(machine, same, errors, mixes, residue))
    return result


def _percent(error: float) -> str:
    return f"{100 * error:+.{2 if abs(error) < 0.01 else 0}f} %"


def table(
    machine: dict[str, Any],
    same: Measured,
    errors: dict[str, dict[str, float]],
    mixes: Sequence[Sequence[dict[str, Any]]],
    residue: float,
) -> str:
    """Return the result as Markdown."""
    rows = [
        [
            TEXTS[load.kind],
            f"{same.true_joules(load):.0f}",
            *(_percent(found[load.path]) for found in errors.values()),
        ]
        for load in SAME
    ]
    inside = sum(all(one["is_inside"] for one in mix) for mix in mixes)
    workloads = [one for mix in mixes for one in mix]
    largest = max(abs(one["share"] / one["true_share"] - 1.0) for one in workloads)
    seconds = same.after.read_at_s - same.before.read_at_s
    return (
        f"# Short-lived processes and containers\n\n{host_line(machine)}\n"
        f"Load average at the start: {machine['load_average_at_start']:.1f}. Real processes in real cgroups "
        f"({VERSION}); an emulated socket with {IDLE_WATTS:g} W idle. Error of the joules of each workload within "
        f"{seconds:.0f} s, all with {WATTS_PER_CORE:g} W per core:\n\n"
        + markdown_table(["workload", "true joules", *errors], rows)
        + "\nThe scan shares the true active energy of each interval by the processor time of the processes that are "
        "alive at its end. What ended before is in no process, so its energy goes to the others.\n\n"
        f"**Bound.** {len(mixes)} mixes of 2 to 4 such workloads, whose watts per core differ by a factor of up to "
        f"{DEFAULT_RATIO:g}: the truth is inside the stated bound of all workloads in {inside} of {len(mixes)} mixes "
        f"({sum(one['is_inside'] for one in workloads)} of {len(workloads)} workloads). The largest error of a "
        f"share by processor time is {100 * largest:.0f} %.\n\n"
        f"**Sum.** All shares add up to the energy of the device: the largest difference is {residue:.0e} of it.\n"
    )
