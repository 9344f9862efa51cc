"""``joulewatch profile`` as users run it: a real child exporter, real signals, real servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from joulewatch_harness.analysis.sources.stored import find
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.records import RunRecord, Window
from joulewatch_harness.storage.journal import read_run
from joulewatch_harness.storage.recording import Recording
from support.waiting import wait_until

pytestmark = pytest.mark.integration

# The network sleeps, because the machine that runs the tests may be busy.
SLEEPER = """
import time

class Sleeper:
    def __init__(self, tune_s="0"):
        self.tune_s, self.tuned = float(tune_s), set()
    def describe(self): return {"runtime": "sleep", "precision": "fp32"}
    def load(self): time.sleep(self.tune_s)
    def prepare(self, batch):
        if batch == 2 and batch not in self.tuned:
            self.tuned.add(batch)
            time.sleep(self.tune_s)
        if batch == 3:
            from joulewatch_harness.errors import UnsupportedBatchError
            raise UnsupportedBatchError("three is not a batch")
        self.batch_s = 0.01 + 0.001 * batch
    def run(self, batches, phases):
        for _ in range(batches):
            with phases("execute"):
                time.sleep(self.batch_s)
            phases.batch()
    def close(self): pass
"""


class Profile:
    """One ``joulewatch profile`` in a process."""

    def __init__(self, folder: Path, *words: str) -> None:
        (folder / "sleeper.py").write_text(SLEEPER, encoding="utf-8")
        self.folder = folder
        self.out = folder / "out.txt"
        self.err = folder / "err.txt"
        command = [
            sys.executable,
            *("-m", "joulewatch_harness", "profile", "--network", "sleeper.py:Sleeper"),
            *("--preset", "quick", "--rounds", "3", "--window", "1", "--idle", "1", "--batch-sizes", "1,2", *words),
        ]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL)

    def wait_for(self, text: str, limit_s: float = 40.0) -> None:
        deadline_s = time.monotonic() + limit_s
        while text not in self.err.read_text():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline_s, self.err.read_text()
            time.sleep(0.02)

    def finish(self, limit_s: float = 60.0) -> int:
        try:
            return self.process.wait(limit_s)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    @property
    def run_folder(self) -> Path:
        (folder,) = (self.folder / "runs").iterdir()
        return folder

    @property
    def table(self) -> str:
        """The result with its lines joined."""
        return " ".join(self.out.read_text().split())

    def record(self) -> RunRecord:
        return read_run(self.run_folder)


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Callable[..., Profile]]:
    started: list[Profile] = []

    def start(*words: str) -> Profile:
        started.append(Profile(tmp_path, *words))
        return started[-1]

    yield start
    for command in started:
        command.kill()


def measured(record: RunRecord) -> list[Window]:
    return [window for window in record.windows if window.kind == "measure"]


def listening(url: str) -> bool:
    """Return whether the exporter of the run still answers on its port."""
    address = urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address.hostname or "", address.port or 0)) == 0


def test_local_mode_measures_an_emulated_machine(profile: Callable[..., Profile], emulator: Any) -> None:
    """Child exporter, recording, analysis; a batch size that fails gives a note; the output states EMULATED."""
    machine = emulator("epyc-7763-node")
    command = profile("--batch-sizes", "1,2,3", "--format", "json", "--exporter.flags", " ".join(machine.flags))
    assert command.finish() == 0, command.err.read_text()
    log = command.err.read_text()
    assert "ENERGIES ARE EMULATED" in log
    assert re.search(r"about \d+ s", log)
    assert "left)" in log
    result = json.loads(command.out.read_text())
    assert result == json.loads((command.run_folder / "result.json").read_text())
    assert "emulated" in json.dumps(result)
    assert (command.run_folder / "figure.png").stat().st_size > 1000
    record = command.record()
    assert record.end is not None
    assert record.end.status == "complete"
    assert [(note.reason, note.batch_size) for note in record.notes] == [("unsupported_batch", 3)]
    windows = measured(record)
    assert sorted((window.batch_size, window.repeat) for window in windows) == [
        (n, r) for n in (1, 2) for r in range(3)
    ]
    for window in windows:
        assert window.start_edge is not None
        assert window.end_edge is not None
        assert max(counter.read_at_s for counter in window.start_edge.counters) <= window.start_s
        assert min(counter.read_at_s for counter in window.end_edge.counters) >= window.end_s - 1e-3
        assert window.latency is not None
        assert window.latency.p50_s >= 0.01 + 0.001 * window.batch_size
    recording = Recording.open(command.run_folder / "recording.sqlite")
    assert recording.run().windows == record.windows
    recording.close()
    assert not listening(record.header.exporters[0].url)


GPUS = """
name: gpus
refresh_s: 0.05
hwmon:
  - chip: amdgpu
    path: devices/pci0000:00/0000:00:01.1/0000:03:00.0
    channels: [{label: PPT, key: "0000:03:00.0/PPT", signal: 20}]
    faults: [{kind: suspend, at_s: FROM, for_s: 3600}]
  - chip: i915
    path: devices/pci0000:00/0000:00:1d.0/0000:0a:00.0
    channels: [{kind: energy, number: 1, key: "0000:0a:00.0/energy1", signal: 30}]
"""


@pytest.mark.parametrize("from_s", [0, 15], ids=["all the time", "from the middle of the run"])
def test_a_gpu_that_sleeps_is_in_no_sum_and_named(
    profile: Callable[..., Profile], emulator: Any, tmp_path: Path, from_s: int
) -> None:
    """Asleep all the time it is a note; asleep in a window, that window has no number: it is never 0 W."""
    scenario = tmp_path / "gpus.yaml"
    scenario.write_text(GPUS.replace("FROM", str(from_s)))
    machine = emulator(scenario)
    flags = " ".join([*machine.flags, "--no-collector.estimate"])
    # The refresh period of the first GPU is unknown: each window follows 5 s of load.
    command = profile("--batch-sizes", "1", "--format", "json", "--exporter.flags", flags)
    assert command.finish() == 0, command.err.read_text()
    result = json.loads(command.out.read_text())
    findings = [finding for finding in result["findings"] if finding["reason"] == "sensor_asleep"]
    notes = [finding["text"] for finding in findings if finding["severity"] == "info"]
    assert len(notes) == 1 and "0000:03:00.0 was asleep (runtime suspend)" in notes[0]
    in_windows = [finding for finding in findings if finding["severity"] == "error"]
    gpus = [(item["energy"]["components"][0]["gross"], item["throughput"]["value"]) for item in result["results"]]
    if from_s == 0:
        assert in_windows == []
        watts = [gross["value"] * per_s for gross, per_s in gpus]
        assert watts == pytest.approx([30.0], rel=0.1), "those of the other GPU"
    else:
        assert in_windows, "no window was measured while the GPU was asleep"
        assert all("was asleep (runtime suspend) in part of the window" in item["text"] for item in in_windows)
        assert all(gross is None or gross["value"] * per_s > 40.0 for gross, per_s in gpus), "both GPUs or none"


def test_ctrl_c_keeps_and_reports_the_windows_measured_so_far(profile: Callable[..., Profile]) -> None:
    command = profile("--idle", "0")
    command.wait_for("round 2")
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 1
    record = command.record()
    assert record.end is not None
    assert record.end.status == "interrupted"
    assert len(measured(record)) >= 3
    log = command.err.read_text()
    assert "Analyze them again with: joulewatch analyze" in log
    assert "Sleeper" in command.out.read_text()
    assert not listening(record.header.exporters[0].url)


def test_kill_9_loses_no_window_and_leaves_no_exporter(profile: Callable[..., Profile]) -> None:
    command = profile("--idle", "0")
    command.wait_for("round 2")
    record = command.record()
    url = record.header.exporters[0].url
    assert listening(url)
    command.process.kill()
    command.process.wait(10)
    assert len(measured(command.record())) >= 3
    wait_until(lambda: not listening(url))
    analysis = subprocess.run(
        [sys.executable, "-m", "joulewatch_harness", "analyze", str(command.run_folder), "--format", "json"],
        cwd=command.folder,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert analysis.returncode == 0, analysis.stderr
    assert json.loads(analysis.stdout)


def test_a_run_continues_with_a_note_when_its_exporter_dies(
    profile: Callable[..., Profile], exporter_server: Any
) -> None:
    server = exporter_server()
    command = profile("--exporter", server.url, "--idle", "0")
    command.wait_for("round 1")
    server.stop()
    command.wait_for("does not answer")
    server.start()
    assert command.finish() == 0, command.err.read_text()
    record = command.record()
    assert [note.reason for note in record.notes] == ["exporter_lost", "exporter_back"]
    assert len(measured(record)) == 6


@pytest.mark.parametrize("publish", [True, False])
def test_with_prometheus_every_window_and_the_results_are_delivered(
    profile: Callable[..., Profile], exporter_server: Any, prometheus_server: Any, publish: bool
) -> None:
    exporter = exporter_server()
    prometheus = prometheus_server(scrape_targets=[exporter.address], scrape_interval="200ms")
    words = ["--prometheus", prometheus.url, "--exporter", exporter.url, "--grafana", "http://grafana:3000/"]
    command = profile(*words, *([] if publish else ["--no-publish"]))
    assert command.finish() == 0, command.err.read_text()
    record = command.record()
    log = command.err.read_text()
    assert f"{len(record.windows)} windows are in {prometheus.url}" in log, log
    assert "not there yet" not in log
    assert "Sleeper" in command.out.read_text()
    assert not (command.run_folder / "recording.sqlite").exists()
    link = re.search(r"dashboard: http://grafana:3000/d/joulewatch-experiment\?var-run=(\S+)&from=(\d+)&to=(\d+)", log)
    assert link is not None, log
    assert link[1] == record.header.run and int(link[2]) < int(link[3])
    with PrometheusClient(PrometheusOptions(prometheus.url)) as client:
        results = client.query(f'joulewatch_result_energy_per_inference_joules{{run="{record.header.run}"}}')
    assert bool(results) == ("published" in log) == publish


def test_tuning_in_a_separate_process_is_reported_as_setup_also_from_prometheus_alone(
    profile: Callable[..., Profile], exporter_server: Any, prometheus_server: Any, tmp_path: Path
) -> None:
    """Loading takes 1.2 s, and so does tuning for batch size 2, once. Prometheus has both without the journal."""
    exporter = exporter_server()
    prometheus = prometheus_server(scrape_targets=[exporter.address], scrape_interval="200ms")
    words = ("--prometheus", prometheus.url, "--exporter", exporter.url, "--isolate", "--option", "tune_s=1.2")
    command = profile(*words)
    assert command.finish() == 0, command.err.read_text()
    record = command.record()
    setups = [window for window in record.windows if window.kind == "setup"]
    assert [(window.phase, window.batch_size) for window in setups] == [("load", 0), ("prepare", 2)]
    assert [(setup.phase, setup.batch_size) for setup in record.setups] == [("prepare", 1)]
    for window in setups:
        assert window.duration_s >= 1.2
        assert all(
            window.end_s <= other.start_s or other.end_s <= window.start_s
            for other in record.windows
            if other.kind in ("measure", "idle")
        )
    assert re.search(
        r"Setup, excluded from the results above: .*Sleeper.* load 1\.\d+ s, .* J; batch 2 prepare 1\.\d+ s",
        " ".join(command.table.split()),
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    analysis = subprocess.run(
        [
            *(sys.executable, "-m", "joulewatch_harness", "analyze", record.header.run),
            *("--prometheus", prometheus.url, "--format", "json"),
        ],
        cwd=elsewhere,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert analysis.returncode == 0, analysis.stderr
    delivered_record, source = find(record.header.run, elsewhere, PrometheusOptions(prometheus.url))
    assert source is not None
    source.close()
    measured = [one.conditions for one in record.windows if one.kind == "measure"]
    assert [one.conditions for one in delivered_record.windows if one.kind == "measure"] == measured
    assert all(conditions["seconds"] > 0 for conditions in measured)
    (spans,) = json.loads(analysis.stdout)["setup"].values()
    (local,) = json.loads((command.run_folder / "result.json").read_text())["setup"].values()
    windowed = [span for span in local if span["window"] is not None]
    assert [span["duration_s"] for span in spans] == [span["duration_s"] for span in windowed]
    for delivered, recorded in zip(spans, windowed, strict=True):
        assert delivered["energy"]["total"]["gross"]["value"] == pytest.approx(
            recorded["energy"]["total"]["gross"]["value"], rel=1e-6
        )


def test_other_work_on_the_machine_withholds_the_net_energy(profile: Callable[..., Profile]) -> None:
    """Programs that the harness did not start are busy in all windows; the sleeping network is not."""
    loop = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(1 + (os.cpu_count() or 1) // 4):
            process = subprocess.Popen(loop)
            stack.callback(process.wait)
            stack.callback(process.kill)
        command = profile()
        assert command.finish() == 0, command.err.read_text()
    result = json.loads((command.run_folder / "result.json").read_text())
    severities = {(item["severity"], item["reason"]) for item in result["findings"]}
    assert severities >= {("error", "idle_busy"), ("error", "other_load")}
    for group in result["results"]:
        total = group["energy"]["total"]
        assert total["gross"] is not None and total["net"] is None
        assert "[idle_busy]" in total["net_missing"]
    assert "net is withheld, because the machine was busy in" in command.table
    for window in command.record().windows:
        used = window.processor_time
        assert used is not None
        assert used.busy_s > 0.1 * used.processors * window.duration_s
        assert 0 < used.own_s < 0.5 * window.duration_s, "the harness and its exporter; the network sleeps"


FROZEN_SOCKET = """
name: frozen-socket
description: two sockets of 100 W each; the counter of the second one stops
refresh_s: 0.01
signals: {socket: 100}
machine: {cpu_name: AMD EPYC 7763, vendor: AuthenticAMD, family: 25, model: 1, stepping: 1, sockets: 2,
  cpus_per_socket: 2, cores_per_socket: 2, memory_gib: 16}
zones:
  - {zone: "intel-rapl:0", name: package-0, key: socket0/package, signal: socket}
  - {zone: "intel-rapl:1", name: package-1, key: socket1/package, signal: socket,
     faults: [{kind: stuck, at_s: 1, for_s: 600}]}
"""


def test_a_frozen_counter_of_a_machine_has_no_energy(
    profile: Callable[..., Profile], emulator: Any, tmp_path: Path
) -> None:
    """Also if only its edges are known."""
    (tmp_path / "frozen.yaml").write_text(FROZEN_SOCKET, encoding="utf-8")
    machine = emulator(tmp_path / "frozen.yaml")
    time.sleep(1.0)
    command = profile("--batch-sizes", "1", "--exporter.flags", " ".join(machine.flags))
    assert command.finish() == 0, command.err.read_text()
    for recording in (True, False):
        if not recording:
            (command.run_folder / "recording.sqlite").unlink()
        words = ("analyze", str(command.run_folder), "--strict", "--format=json")
        analysis = subprocess.run(
            [sys.executable, "-m", "joulewatch_harness", *words], capture_output=True, text=True, check=False
        )
        assert analysis.returncode == 3, analysis.stderr
        result = json.loads(analysis.stdout)
        frozen = [item for item in result["findings"] if item["reason"] == "frozen"]
        assert {item["severity"] for item in frozen} == {"error"}
        assert all("socket1/package" in item["text"] for item in frozen)
        assert {item["window"] for item in frozen} == {
            window.index for window in command.record().windows if window.kind in ("idle", "measure")
        }
        (group,) = result["results"]
        assert group["energy"]["total"]["gross"] is None and "[frozen]" in group["energy"]["total"]["missing"]
