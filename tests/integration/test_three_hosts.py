"""One run over three hosts whose clocks differ by 0, 20 and 300 ms; one of them is set during the run.

The hosts are real exporters with real HTTP; only their wall clocks, their host names and the kernel's counters are
simulated (``support/clock_shim.c``, ``support/rapl_shim.c``). Their powers alternate, so that an energy placed by a
wrong clock is wrong. The true energy of any span is known.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from joulewatch_harness.analysis.energy.windows import MeasuredWindow, measure_run
from joulewatch_harness.analysis.results.summary import run_spans
from joulewatch_harness.analysis.sources.recording import RecordingSource
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.cli import main
from joulewatch_harness.records import Window
from joulewatch_harness.runner.clocks import ClockMapping
from support.clock_shim import ShiftedClock, build_clock_shim
from support.commands import SLEEPER, start_joulewatch
from support.rapl_shim import ShimMachine, Square, build_shim
from support.rapl_tree import pmu, topology
from support.servers import ExporterServer
from support.synthetic import without_edges
from support.sysfs import XEON, FakeSysfs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SWEEP = ("--network", SLEEPER, "--preset=quick", "--rounds=3", "--window=0.5", "--idle=0.5", "--batch-sizes=16")
STEP_S = 300.0


@dataclass(kw_only=True)
class Host:
    """One host: its exporter, its clock, and its true power."""

    server: ExporterServer
    clock: ShiftedClock
    watts: float
    square: Square
    ahead_s: float

    @property
    def name(self) -> str:
        """Return the name of its exporter in the run."""
        return self.server.address

    def true_joules(self, window: Window) -> float:
        mapping = ClockMapping.read(time)  # type: ignore[arg-type]
        start_ns = round(window.start_s * 1e9) - mapping.offset_ns
        end_ns = start_ns + round(window.duration_s * 1e9)
        return self.watts * (self.square.full_power_s(end_ns) - self.square.full_power_s(start_ns))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Start three exporters, whose clocks are 0, 20 and 300 ms ahead."""
    counters, clocks = build_shim(tmp_path), build_clock_shim(tmp_path)
    hosts = []
    settings = (("alpha", 0.0, 100.0, 0.7), ("beta", 0.02, 60.0, 1.1), ("gamma", 0.3, 80.0, 1.7))
    for nodename, ahead_s, watts, period_s in settings:
        sysfs = topology(FakeSysfs(tmp_path / nodename).cpuinfo(**XEON), (0, 0, 0))
        pmu(sysfs, "energy-pkg")
        square = Square(round(period_s * 1e9), 0.25, 1.0)
        machine = ShimMachine(sysfs=sysfs, library=counters).event("energy-pkg", 0, watts).square(square)
        clock = ShiftedClock(library=clocks, file=tmp_path / f"{nodename}.clock", nodename=nodename)
        clock.set(ahead_s)
        server = ExporterServer(
            tmp_path / f"{nodename}-exporter", *machine.flags, environment=clock.environment(machine.environment)
        )
        hosts.append(Host(server=server, clock=clock, watts=watts, square=square, ahead_s=ahead_s))
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(lambda host: host.server.start(), hosts))
        yield hosts
    finally:
        for host in hosts:
            host.server.stop()


def profile(hosts: list[Host], stepped: Host, folder: Path) -> Path:
    """Run ``joulewatch profile``, set a clock during the second measure window, and return the folder of the run."""
    process = start_joulewatch("profile", *SWEEP, *(f"--exporter={host.server.url}" for host in hosts), folder=folder)
    try:
        deadline_s = time.monotonic() + 60
        while not any('"kind":"measure"' in text for text in journals(folder)):
            assert process.poll() is None and time.monotonic() < deadline_s, "no measure window"
            time.sleep(0.02)
        time.sleep(0.45)
        stepped.clock.set(stepped.ahead_s + STEP_S)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    (run,) = (folder / "runs").iterdir()
    return run


def journals(folder: Path) -> list[str]:
    return [path.read_text().replace(" ", "") for path in folder.glob("runs/*/journal.jsonl")]


def check_window(host: Host, measured: MeasuredWindow, sensor: SensorId, *, methods: set[str]) -> float:
    """Check the hard bounds of one host in one window by each method, and return the relative error by edges."""
    true = host.true_joules(measured.window)
    result = measured.sensors[sensor]
    energies = {"edges": result.edges, "history": result.history}
    assert {method for method, energy in energies.items() if energy is not None} == methods, result.text
    for method, energy in energies.items():
        if energy is None:
            continue
        where = (host.name, measured.window.index, method, energy.joules, true)
        assert energy.lower_joules <= true <= energy.upper_joules, where
    assert result.edges is not None
    return abs(result.edges.joules - true) / true


def test_a_run_over_three_hosts_with_different_clocks_of_which_one_is_set(
    hosts: list[Host], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stepped = hosts[1]
    run = profile(hosts, stepped, tmp_path)
    assert main(["analyze", str(run), "--format=json", "--strict"]) == 3
    result = json.loads(capsys.readouterr().out)

    # Findings: the two clocks that differ, and the one that was set in one window, or between two.
    findings = {
        reason: [finding for finding in result["findings"] if finding["reason"] == reason]
        for reason in ("clock_skew", "clock_stepped", "clock_unknown")
    }
    assert {finding["evidence"]["exporter"] for finding in findings["clock_skew"]} == {stepped.name, hosts[2].name}
    assert {finding["evidence"]["exporter"] for finding in findings["clock_stepped"]} == {stepped.name}
    errors = [finding for finding in findings["clock_stepped"] if finding["severity"] == "error"]
    excluded = {finding["window"] for finding in errors}
    assert len(excluded) in (1, 2) and max(excluded) - min(excluded) < 2
    for finding in errors:
        assert f"{stepped.name}: its clock was set forward by at least 300 s" in finding["text"]
    (notice,) = (finding for finding in findings["clock_stepped"] if finding not in errors)
    assert "samples are on the other side of that and excluded" in notice["text"]
    assert not findings["clock_unknown"]

    # Sums: the windows that are left, over all hosts.
    source = RecordingSource(run / "recording.sqlite")
    record = source.run("")
    history = source.history(run_spans(record), record.header.exporters)
    source.close()
    (cell,) = result["results"]
    windows = {window.index: window for window in record.windows}
    measured = measure_run(record, history)
    used = [item for item in measured.windows if item.window.kind == "measure" and item.window.index not in excluded]
    per_inference = [
        sum(host.true_joules(item.window) for host in hosts) / windows[item.window.index].inferences for item in used
    ]
    assert len(used) >= 1
    assert cell["energy"]["total"]["gross"]["value"] == pytest.approx(statistics.fmean(per_inference), rel=0.02)

    # Bounds: of each host in each window, idle ones too. The samples of the clock that was set are not used.
    sensors = {sensor.exporter: sensor for sensor in measured.sensors}
    errors = []
    for item in measured.windows:
        if item.window.kind not in ("idle", "measure"):
            continue
        for host in hosts:
            if host is stepped and item.window.index in excluded:
                assert item.sensors[sensors[host.name]].reason == "clock_stepped"
                continue
            methods = {"edges"} if host is stepped else {"edges", "history"}
            errors.append(check_window(host, item, sensors[host.name], methods=methods))
    # On a busy machine, single readings are far from their window, where the power is another one.
    assert statistics.median(errors) < 0.01

    # Without edges nothing compares the clocks: the bounds allow for 0.25 s, and hold.
    alone = dataclasses.replace(record, windows=(used[0].window,))
    (blind,) = measure_run(without_edges(alone), history).windows
    unknown = blind.sensors[sensors[hosts[0].name]]
    assert unknown.energy is not None and unknown.clock_doubt_s == 0.25
    assert unknown.energy.lower_joules <= hosts[0].true_joules(blind.window) <= unknown.energy.upper_joules
