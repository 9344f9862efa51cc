"""The library and ``joulewatch measure`` on an emulated machine: the truth is within ±, faults give no number."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import joulewatch
from benchmarks.measure import SCENARIO, WORK
from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.storage.journal import read_run
from support.paths import ROOT

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus
    from support.servers import Emulator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WINDOWS = 12
LEAST_HELD = 10
"""95 % of the windows should hold; the benchmark ``measure`` has 200 of them."""
NOTEBOOK = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, kernel_name="python3", timeout=100).execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture
def machine(emulator: StartEmulator, tmp_path: Path) -> Emulator:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    return emulator(scenario)


def true_joules(machine: Emulator, start_s: float, seconds: float) -> float:
    while True:
        truth = Truth.load(machine.folder)
        try:
            return sum(truth.energy_joules(key, start_s, start_s + seconds) for key in truth.keys)
        except ValueError:  # the trace of the load ends before the window
            time.sleep(0.1)


def spin(seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


def test_the_energy_of_a_command(machine: Emulator, exporter_server: StartExporter, tmp_path: Path) -> None:
    exporter = exporter_server(*machine.flags)
    command = [sys.executable, "-m", "joulewatch_harness", "measure", "-r", str(WINDOWS), "--exporter", exporter.url]
    command += ["--format", "json", "--out", "out.json", "--", sys.executable, "-S", "-c", WORK.format(0.1)]
    subprocess.run(command, cwd=tmp_path, check=True)
    document = json.loads((tmp_path / "out.json").read_text())
    held = 0
    for window in document["windows"]:
        energy = window["energy"]
        error = energy["joules"] - true_joules(machine, window["start_s"], window["seconds"])
        held += abs(error) <= energy["uncertainty_joules"]
    assert len(document["windows"]) == WINDOWS
    assert held >= LEAST_HELD
    assert document["mean"]["repeats"] == WINDOWS


def test_nested_windows_with_an_exporter_that_the_library_starts(machine: Emulator, tmp_path: Path) -> None:
    with (
        joulewatch.Meter(exporter_flags=machine.flags, output=tmp_path) as meter,
        meter.measure("outer") as outer,
    ):
        spin(0.1)
        with meter.measure("inner", inferences=10) as inner:
            spin(0.3)
    for window in (outer, inner):
        assert window.joules is not None
        assert window.joules == pytest.approx(
            true_joules(machine, window.window.start_s, window.seconds), abs=1.5 * (window.uncertainty or 0.0)
        )
    assert set(inner.per_device) == {"cpu/socket0/package", "cpu/socket1/package"}


def test_an_exporter_that_is_killed_inside_a_window(
    machine: Emulator, exporter_server: StartExporter, tmp_path: Path
) -> None:
    exporter = exporter_server(*machine.flags)
    with joulewatch.Meter(exporter.url, output=tmp_path) as meter:
        with meter.measure("before") as before:
            spin(0.05)
        with meter.measure("killed") as killed:
            exporter.stop(signal.SIGKILL)
        exporter.start()
        with meter.measure("after") as after:
            spin(0.05)
    assert before.joules is not None
    assert killed.joules is None
    assert killed.energy.reason == "edge_missing"
    with pytest.raises(joulewatch.FindingsError, match="edge_missing"):
        killed.raise_for_findings()
    assert after.joules is not None
    assert [note.reason for note in read_run(meter.folder).notes] == ["exporter_lost", "exporter_back"]


def test_windows_are_in_prometheus(
    machine: Emulator, exporter_server: StartExporter, prometheus_server: StartPrometheus, tmp_path: Path
) -> None:
    """The run can be loaded from there, on a machine without its journal."""
    exporter = exporter_server(*machine.flags)
    target = exporter.url.removeprefix("http://")
    server = prometheus_server(scrape_targets=[target], scrape_interval="200ms")
    with joulewatch.Meter(exporter.url, prometheus=server.url, output=tmp_path / "runs") as meter:
        for _ in range(3):
            with meter.measure("decode", inferences=4):
                spin(0.3)
    here = joulewatch.load(meter.folder)
    there = joulewatch.load(meter.run, prometheus=server.url, output=tmp_path / "nothing")
    assert there["decode"].repeats == here["decode"].repeats == 3
    assert there["decode"].group.configuration.runtime == "python"
    assert there["decode"].joules_per_inference == pytest.approx(here["decode"].joules_per_inference, rel=0.02)
    assert there.analysis.record.header.is_metered
    assert "settle_too_short" not in {finding.reason for finding in there.findings}


NETWORK = """
class Tiny:
    def describe(self): return {"precision": "fp32", "runtime": "none"}
    def load(self): pass
    def prepare(self, batch): pass
    def run(self, batches, phases):
        for _ in range(batches): sum(range(2000))
    def close(self): pass
"""


def test_profile(machine: Emulator, exporter_server: StartExporter, tmp_path: Path, monkeypatch: Any) -> None:
    """It does what the command does, and returns the results."""
    exporter = exporter_server(*machine.flags)
    (tmp_path / "tiny.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    plan = {"configurations": [{"network": "tiny.py:Tiny", "runtime": "python"}], "exporters": [exporter.url]}
    run = joulewatch.profile(plan, batch_sizes=[1, 2], rounds=3, window_s=0.5, idle_s=0, max_warmup_s=1.0)
    assert [result.batch_size for result in run] == [1, 2]
    for result in run:
        assert result.repeats == 3
        assert result.joules_per_inference
        assert result.uncertainty
    assert joulewatch.load(run.id).id == run.id


def test_the_notebook(machine: Emulator, exporter_server: StartExporter, tmp_path: Path, monkeypatch: Any) -> None:
    exporter = exporter_server(*machine.flags)
    monkeypatch.setenv("JOULEWATCH_EXPORTER", exporter.url)
    notebook, result = ROOT / "harness/examples/measure.ipynb", tmp_path / "result.ipynb"
    subprocess.run([sys.executable, "-c", NOTEBOOK, notebook, result], cwd=tmp_path, check=True)
    cells = [cell for cell in json.loads(result.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 5
    outputs = ["".join(output["data"]["text/html"]) for cell in cells for output in cell["outputs"] if "data" in output]
    assert len(outputs) == 3
    assert "warm-up" in outputs[0]
    assert "sort 20000" in outputs[1]
    assert "EMULATED" in outputs[2]
    source = json.loads(notebook.read_text())
    assert all(not cell.get("outputs") for cell in source["cells"])
