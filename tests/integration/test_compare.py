"""Comparison runs with real processes and an emulated machine: ONNX Runtime in FP32 and INT8, and crashing networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joulewatch_harness.records import RunRecord
from joulewatch_harness.storage.journal import read_run
from support.commands import joulewatch

if TYPE_CHECKING:
    from integration.conftest import StartEmulator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SHAKY = """
import os, signal, time

class Shaky:
    def __init__(self, name="calm"):
        self.name = name
    def describe(self):
        return {"runtime": "sleep", "precision": "fp32", "pid_of_network": os.getpid()}
    def load(self): pass
    def prepare(self, batch):
        self.batch = batch
    def run(self, batches, phases):
        if self.name == "wild" and self.batch == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        for _ in range(batches):
            with phases("execute"):
                time.sleep(0.002 * self.batch)
            phases.batch()
    def close(self): pass
"""


def only_run(folder: Path) -> tuple[Path, RunRecord]:
    (run,) = (folder / "runs").iterdir()
    return run, read_run(run)


def alive(pids: list[int]) -> list[int]:
    """Return the processes that still exist, including zombies, after they had time to end."""
    deadline_s = time.monotonic() + 15
    while (remaining := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return remaining


def pids_of(record: RunRecord) -> list[int]:
    return [int(configuration.details["pid_of_network"]) for configuration in record.configurations]


def shaky_plan(folder: Path, machine: Any, **keys: Any) -> None:
    (folder / "shaky.py").write_text(SHAKY, encoding="utf-8")
    plan = {
        "preset": "quick",
        "rounds": 3,
        "window_s": 1,
        "configurations": [
            {"name": name, "network": "shaky.py:Shaky", "options": {"name": name}} for name in ("calm", "wild")
        ],
        "batch_sizes": [1, 2],
        "idle_s": 0,
        # Without the slow meter of the node, whose refresh period takes 4 s to measure.
        "exporter_flags": [*machine.flags, "--no-collector.hwmon"],
        **keys,
    }
    (folder / "plan.yaml").write_text(json.dumps(plan), encoding="utf-8")


def test_fp32_is_compared_with_int8_in_one_run_and_between_runs(tmp_path: Path, emulator: StartEmulator) -> None:
    """INT8 is much faster than FP32, and each difference is that of the two values."""
    pytest.importorskip("onnxruntime")
    machine = emulator("epyc-7763-node")
    plan = {
        "preset": "quick",
        "rounds": 3,
        "window_s": 1,
        "batch_sizes": [8],
        "idle_s": 1,
        "exporter_flags": list(machine.flags),
        "cpus": str(min(os.sched_getaffinity(0))),
        "phases": "separate",
        "configurations": [
            {"network": "radioml-vgg10", "precision": ["fp32", "int8"]},
            {
                "name": "served",
                "network": "radioml-vgg10",
                "precision": "int8",
                "scenario": "server",
                "server_rate_per_s": 20,
            },
        ],
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan), encoding="utf-8")
    done = joulewatch("profile", "plan.yaml", folder=tmp_path, limit_s=200)
    assert done.code == 0, done.err
    folder, record = only_run(tmp_path)
    for configuration in record.configurations:
        assert configuration.details["isolated"] == "true"
        assert (configuration.details["cpus"], configuration.options["threads"]) == (plan["cpus"], "1")
    assert [configuration.scenario for configuration in record.configurations] == ["", "", "server"]
    measured = [window for window in record.windows if window.kind == "measure"]
    assert len(measured) == 9 and all(window.phases == {} for window in measured)
    passes = {window.configuration: window for window in record.windows if window.kind == "phase"}
    assert all("execute" in window.phases for window in passes.values()) and len(passes) == 3
    assert "idle" in passes["served/server-20"].phases

    compared = joulewatch("compare", folder.name, "fp32", "int8", "served*", "--format", "json", folder=tmp_path)
    assert compared.code == 0, compared.err
    assert "EMULATED" in compared.err
    document = json.loads(compared.out)
    assert document["emulated"] is True
    (int8, served) = document["comparisons"]
    rows = {(row["quantity"], row["basis"]): row for row in int8["results"]}
    assert rows["throughput", ""]["difference"]["value"] > 0
    for (quantity, _), row in rows.items():
        # The meter of the node is too slow for windows of 1 s and may miss some.
        if quantity.startswith("node "):
            continue
        assert row["verdict"] in ("differs", "no difference shown")
        assert row["difference"]["value"] == pytest.approx(row["b"]["value"] - row["a"]["value"])
    assert rows["total", "net"]["cancelled"] == ["idle baseline"]
    assert any("different scenarios: A offline, B server" in note for note in served["notes"])
    rows = {(row["quantity"], row["basis"]): row for row in served["results"]}
    if rows["throughput", ""]["verdict"] != "missing":  # a busy machine may be too slow for this rate
        assert rows["throughput", ""]["b"]["value"] == pytest.approx(20 * 8, rel=0.6)

    table = joulewatch("compare", folder.name, folder=tmp_path)
    assert table.code == 0
    assert "B  radioml-vgg10/onnxruntime/int8 (run" in table.out and "EMULATED" in table.out
    stored = joulewatch("compare", str(folder / "result.json"), "fp32", str(folder), "int8", folder=tmp_path)
    assert stored.code == 0, stored.err
    unknown = joulewatch("compare", folder.name, "fp16", folder=tmp_path)
    assert unknown.code == 2 and "unknown configuration 'fp16'" in unknown.err


def test_a_crash_excludes_one_batch_size_and_leaves_no_process(tmp_path: Path, emulator: StartEmulator) -> None:
    shaky_plan(tmp_path, emulator("epyc-7763-node"))
    done = joulewatch("profile", "plan.yaml", folder=tmp_path, limit_s=200)
    assert done.code == 0, done.err
    _, record = only_run(tmp_path)
    (note,) = (note for note in record.notes if note.batch_size)
    assert (note.configuration, note.batch_size, note.reason) == ("wild", 2, "network_error")
    assert "was ended by SIGSEGV (signal 11) during run" in note.text
    measured = {
        (window.configuration, window.batch_size, window.repeat)
        for window in record.windows
        if window.kind == "measure"
    }
    assert measured == {(n, b, r) for n in ("calm", "wild") for b in (1, 2) for r in range(3)} - {
        ("wild", 2, r) for r in range(3)
    }
    assert len(set(pids_of(record))) == 2
    assert alive(pids_of(record)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_all_processes_of_a_run_end_with_it(tmp_path: Path, emulator: StartEmulator, number: signal.Signals) -> None:
    shaky_plan(tmp_path, emulator("epyc-7763-node"), batch_sizes=[1])
    errors = tmp_path / "err.txt"
    with errors.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "joulewatch_harness", "profile", "plan.yaml"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=err,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline_s = time.monotonic() + 60
        while "round 1" not in errors.read_text():
            assert process.poll() is None and time.monotonic() < deadline_s, errors.read_text()
            time.sleep(0.05)
        _, record = only_run(tmp_path)
        assert len(pids_of(record)) == 2
        process.send_signal(number)
        assert process.wait(60) == (1 if number == signal.SIGINT else -9)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    assert alive(pids_of(record)) == []
