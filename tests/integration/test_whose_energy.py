"""Whose energy in runs with real processes: a burner on the same machine, and a quiet machine.

The machine is one on which only the processes of the test run: its ``/proc/stat`` and its energy are computed from the
kernel's own clocks of these processes. So what else runs on the test machine does not change the expected energies.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from joulewatch_harness.analysis.reports import to_json, to_text
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import MeasureStep, Step, steps
from joulewatch_harness.records import (
    Configuration,
    Edge,
    EdgeCounter,
    ExporterRecord,
    Line,
    RunEnd,
    RunRecord,
    SensorRecord,
    Window,
)
from joulewatch_harness.runner.isolate import IsolatedNetwork
from joulewatch_harness.runner.processor_time import (
    ProcessorClock,
    ProcessorReading,
    descendants,
    process_time_s,
    tree_time_s,
)
from joulewatch_harness.runner.runner import Runner
from joulewatch_harness.runner.stopping import StopRequest
from support.paths import ROOT
from support.runs import header

IDLE_WATTS = 50.0
WATTS_PER_PROCESSOR = 20.0
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
CPU: dict[str, Any] = {
    "exporter": "node1:10717", "scope": "device", "collector": "rapl", "component": "cpu", "device": "socket0",
    "domain": "package",
}  # fmt: skip
BURN = "while True: pass"


class Machine:
    """A machine on which only the test's processes run, with a sensor of its processors."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.elsewhere = set(descendants(os.getpid())) - {os.getpid()}
        """Servers that other tests of this process started."""
        self.burner: int | None = None
        self.burnt_s: dict[float, float] = {}
        """Time of an edge -> processor time of the burner."""
        self.clock: ProcessorClock | None = None
        self._link()

    def _link(self) -> None:
        for pid in set(descendants(os.getpid())) - self.elsewhere:
            if not (self.proc / str(pid)).is_symlink():
                (self.proc / str(pid)).symlink_to(f"/proc/{pid}")

    def busy_s(self) -> float:
        burnt_s = 0.0 if self.burner is None else process_time_s(self.burner) or 0.0
        return tree_time_s(os.getpid(), self.proc) + burnt_s

    def read(self) -> ProcessorReading | None:
        """Write ``/proc/stat`` in the kernel's steps, and read the processor times."""
        self._link()
        count = os.cpu_count() or 1
        busy = int(self.busy_s() / TICK_S)
        idle = int((count * time.monotonic() - self.busy_s()) / TICK_S)
        lines = [f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0", *(f"cpu{number} 0" for number in range(count))]
        (self.proc / "stat").write_text("\n".join(lines) + "\n")
        assert self.clock is not None
        return self.clock.read()

    def burnt_at(self, window: Window) -> tuple[float, float]:
        """Return the burner's time at both edges of a window."""
        assert window.start_edge is not None and window.end_edge is not None
        return self.burnt_s[window.start_edge.requested_at_s], self.burnt_s[window.end_edge.requested_at_s]

    def fetch(self) -> Fetched:
        """Read the counter of energy."""
        at_s = time.time()
        self.burnt_s[at_s] = 0.0 if self.burner is None else process_time_s(self.burner) or 0.0
        return Fetched(at_s, IDLE_WATTS * at_s + WATTS_PER_PROCESSOR * self.busy_s())


@dataclass(frozen=True)
class Fetched:
    at_s: float
    joules: float

    def parse(self) -> Edge:
        counter = EdgeCounter(**CPU, energy_joules=self.joules, read_at_s=self.at_s)
        return Edge(requested_at_s=self.at_s, answered_at_s=self.at_s + 1e-4, counters=(counter,))


class Collected:
    """Journal, delivery and reporter of a run; the burner stops outside of its measure steps."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.lines: list[Line] = []

    def append(self, line: Line) -> None:
        self.lines.append(line)

    def configuration(self, configuration: Configuration) -> None: ...

    def window_opened(self, *_: Any) -> None: ...

    def window(self, window: Window) -> None: ...

    def end(self, end: RunEnd) -> None: ...

    def begin(self, step: Step, text: str) -> None:
        if self.machine.burner is not None:
            os.kill(self.machine.burner, signal.SIGCONT if isinstance(step, MeasureStep) else signal.SIGSTOP)

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def burner(machine: Machine) -> Iterator[Machine]:
    """A process on one processor that is no child of the run."""
    command = f"{sys.executable} -S -c '{BURN}' >/dev/null 2>&1 & echo $!"
    machine.burner = int(subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout)
    yield machine
    os.kill(machine.burner, signal.SIGKILL)


def measure(machine: Machine, *names: str, **keys: Any) -> RunResult:
    """Run the plan with the network in its own process, and analyze it."""
    target = f"{ROOT / 'tests' / 'support' / 'spinning_network.py'}:Spin"
    entries = [{"network": target, "name": name} for name in names or ("spin",)]
    settings = {"batch_sizes": "1", "rounds": 3, "settle_s": 0.02, "warmup_s": 0.02, "max_warmup_s": 0.1}
    plan = make_plan({"configurations": entries, "isolate": True, **settings, **keys}, "test")
    collected = Collected(machine)
    with ExitStack() as stack:
        networks = [(item, IsolatedNetwork(item)) for item in plan.configurations]
        for _, network in networks:
            stack.callback(network.end)
            network.open()
        machine.clock = ProcessorClock(machine.proc, networks={item.name: one for item, one in networks})
        Runner(
            plan,
            steps(plan, 0.001),
            networks,
            run="20261121T013005Z-1f9c3a",
            journal=collected,
            edges=machine,
            delivery=collected,
            reporter=collected,
            stop=StopRequest(),
            refresh_s=0.001,
            processors=machine,
        ).run()
    record = RunRecord(
        header=header(
            plan=plan.to_mapping(),
            configurations=plan.configurations,
            exporters=(ExporterRecord(name="node1:10717", url="", nodename="node1"),),
            sensors=(SensorRecord(**CPU, method="counter", reads="energy", refresh_s=0.001),),
            provenance={"host": "node1"},
        ),
        configurations=tuple(line for line in collected.lines if isinstance(line, Configuration)),
        windows=tuple(line for line in collected.lines if isinstance(line, Window)),
        end=RunEnd(time.time(), "complete"),
    )
    return analyze_run(record, None)


def test_the_joules_of_a_burner_next_to_a_run_are_right_and_reported(burner: Machine) -> None:
    result = measure(burner, window_s=1.5, idle_s=0.4)
    (group,) = result.groups
    windows = [one for one in result.record.windows if one.kind == "measure"]
    assert len(windows) == len(group.total.shares) == 3
    truths = []
    for window, shares in zip(windows, group.total.shares, strict=True):
        start_s, end_s = burner.burnt_at(window)
        truths.append(WATTS_PER_PROCESSOR * (end_s - start_s))
        others = shares.parts["others"]
        assert others.low_joules <= truths[-1] <= others.high_joules
        parts = math.fsum([shares.idle_joules, *(part.joules for part in shares.parts.values())])
        assert parts == pytest.approx(shares.joules, rel=1e-9)
    total = sum(shares.parts["others"].joules for shares in group.total.shares)
    assert total == pytest.approx(sum(truths), rel=0.05), "the kernel counts in steps of 10 ms"
    assert group.total.net is not None and group.total.attributed is not None
    own_s = [window.processor_time.networks_s["spin"] for window in windows if window.processor_time is not None]
    own_joules = WATTS_PER_PROCESSOR * sum(own_s) / sum(window.inferences for window in windows)
    assert group.total.attributed.value == pytest.approx(own_joules, rel=0.05)
    findings = [item for item in result.findings if item.reason == "other_load"]
    assert [(item.severity, item.window) for item in findings] == [("error", window.index) for window in windows]
    assert "J" in findings[0].text


def test_a_quiet_machine_has_no_finding_in_ten_short_runs(machine: Machine) -> None:
    for _ in range(10):
        result = measure(machine, window_s=0.05, idle_s=0.05)
        assert {item.reason for item in result.findings}.isdisjoint({"other_load", "idle_busy"})
        total = result.groups[0].total
        assert total.net is not None and total.attributed is not None


def test_networks_at_the_same_time_have_their_shares_and_their_sum_is_the_devices(machine: Machine) -> None:
    result = measure(machine, "a", "b", window_s=0.5, idle_s=0.5, concurrent=True)
    groups = {group.configuration.name: group for group in result.groups}
    assert list(groups) == ["a", "b", "a (with b)", "b (with a)"]
    first, second = groups["a (with b)"].total, groups["b (with a)"].total
    assert len(first.shares) == len(second.shares) == 3
    windows = {window.index: window for window in result.record.windows}
    for one, other in zip(first.shares, second.shares, strict=True):
        assert windows[one.window].start_edge == windows[other.window].start_edge, "one bracket"
        own = one.parts["own"].joules + other.parts["own"].joules
        rest = [one.parts[name].joules for name in ("others", "measuring", "system")]
        assert math.fsum([own, *rest, one.idle_joules]) == pytest.approx(one.joules, rel=1e-9)
        assert one.joules == other.joules
        # On a busy machine the kernel may give one of them more time; the energy follows that.
        time = windows[one.window].processor_time
        assert time is not None
        share = time.networks_s["a (with b)"] / sum(time.networks_s.values())
        assert one.parts["own"].joules / own == pytest.approx(share, rel=1e-6)
    for total in (first, second):
        assert total.gross is None and total.net is None and total.attributed is not None
        assert "only its attributed energy is known" in total.missing
    rows = {row.configuration: row for row in result.interference}
    assert rows.keys() == {"a (with b)", "b (with a)"}
    for row in rows.values():
        # Each batch takes 2 ms of processor time, alone or not.
        for energy in (row.energy_alone, row.energy_together):
            assert energy is not None and energy.value == pytest.approx(0.002 * WATTS_PER_PROCESSOR, rel=0.25)
        assert row.rate_percent is not None and row.energy_percent is not None
    text = to_text.render_table(result, width=160)
    assert "Interference: each network alone, and together" in text and "concurrent" in text
    document = to_json.result_document(result)
    jsonschema.validate(document, to_json.schema())
    assert [row["alone"] for row in document["interference"]] == ["a", "b"]
