"""A job is recorded as a run from the environment of slurmctld; its prolog and epilog never fail and never wait."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness.delivery import slurm_job
from joulewatch_harness.delivery.annotations import info_sample
from joulewatch_harness.delivery.courier import DeliveryReport
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.storage.journal import list_runs, read_run
from support.paths import ROOT

JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_CLUSTER_NAME": "alps",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_UID": "1001",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_NAME": "$(reboot)",
}
START_S = 1_790_000_000.25


@pytest.fixture
def salt(tmp_path: Path) -> Path:
    path = tmp_path / "salt"
    path.write_text("0123456789abcdef0123\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def umask() -> Iterator[None]:
    """The umask of a system's services; users of some distributions have 002."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_job_is_a_run_with_its_nodes_its_time_and_a_hash_of_its_user(tmp_path: Path, salt: Path, umask: None) -> None:
    path = slurm_job.start(JOB, tmp_path, START_S, salt)
    record = read_run(path)
    assert record.end is None and not record.windows
    assert slurm_job.end(JOB, tmp_path, START_S + 60.5) == path
    record = read_run(path)
    (window,) = record.windows
    assert (window.start_s, window.end_s, window.duration_s) == (START_S, START_S + 60.5, 60.5)
    assert record.end is not None and record.end.status == "complete"
    user = slurm_job.user_hash("1001", salt)
    (configuration,) = record.configurations
    assert (configuration.name, configuration.network) == (f"slurm/1234/user-{user}", "job 1234")
    labels = dict(info_sample(record.header, configuration, 0).labels)
    assert (labels["exporters"], labels["exporter_nodenames"]) == ("n1,n2", "n1|n2")
    assert labels["hardware"] == "2 nodes of alps"
    text = (path / "journal.jsonl").read_text()
    assert "alice" not in text and "1001" not in text and "reboot" not in text
    assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) & 0o022 == 0


def test_a_user_s_hash_depends_on_the_salt_and_is_the_same_for_each_job(tmp_path: Path, salt: Path) -> None:
    first = slurm_job.user_hash("1001", salt)
    assert first == slurm_job.user_hash("1001", salt) != slurm_job.user_hash("1002", salt)
    assert len(first) == 12
    other = tmp_path / "other"
    other.write_text("another salt of 32 characters....")
    other.chmod(0o600)
    assert slurm_job.user_hash("1001", other) != first
    assert slurm_job.user_hash("1001", tmp_path / "none") == ""
    other.write_text("short")
    with pytest.raises(ConfigError, match="needs at least 16 bytes"):
        slurm_job.user_hash("1001", other)
    salt.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it: chmod 600"):
        slurm_job.user_hash("1001", salt)


def test_tasks_attempts_and_failures(tmp_path: Path, salt: Path) -> None:
    task = JOB | {"SLURM_ARRAY_JOB_ID": "1200", "SLURM_ARRAY_TASK_ID": "34"}
    record = read_run(slurm_job.start(task, tmp_path, START_S, salt))
    assert record.configurations[0].network == "job 1200_34"
    again = slurm_job.start(task, tmp_path, START_S + 10, salt)  # requeued, and the first epilog was lost
    assert slurm_job.end(task | {"SLURM_JOB_EXIT_CODE": "256"}, tmp_path, START_S + 20) == again
    end = read_run(again).end
    assert end is not None and end.status == "failed"


def test_the_epilog_of_a_short_job_waits_for_its_prolog(tmp_path: Path, salt: Path) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            slurm_job.start(JOB, tmp_path, START_S, salt)

    slurm_job.end(JOB, tmp_path, START_S + 0.1, sleep)
    assert len(waits) == 3
    with pytest.raises(ConfigError, match="it has no run"):
        slurm_job.end(JOB, tmp_path, START_S + 0.2, waits.append)
    assert sum(waits) == pytest.approx(slurm_job.PROLOG_S, abs=0.5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"SLURM_JOB_ID": ""}, "is for PrologSlurmctld"),
        ({"SLURM_JOB_ID": "../../etc"}, "is for PrologSlurmctld"),
        ({"SLURM_JOB_NODELIST": "n[1-"}, "not a list of nodes"),
        ({"JOULEWATCH_AT": "yesterday"}, "could not convert"),
    ],
)
def test_every_problem_is_one_line_and_exit_code_0(
    change: dict[str, str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = JOB | change | {"JOULEWATCH_SLURM_FOLDER": str(tmp_path / "jobs")}
    assert slurm_job.main(["start"], environment) == 0
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1 and err.startswith("joulewatch: Slurm job ")


@pytest.mark.parametrize("complete", [True, False])
def test_a_run_is_removed_only_after_it_was_delivered(
    complete: bool, tmp_path: Path, salt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = DeliveryReport(windows=1, delivered=int(complete), pending=int(not complete))
    pushed: list[Path] = []
    monkeypatch.setattr(slurm_job, "push_run", lambda path, *_, **__: pushed.append(path) or report)
    prometheus = tmp_path / "prometheus.yaml"
    prometheus.write_text("url: http://prometheus.test\n")
    environment = JOB | {
        "JOULEWATCH_SLURM_FOLDER": str(tmp_path / "jobs"),
        "JOULEWATCH_SLURM_PROMETHEUS": str(prometheus),
        "JOULEWATCH_SLURM_SALT": str(salt),
    }
    assert slurm_job.main(["start"], environment) == 0
    assert len(list_runs(tmp_path / "jobs" / "runs")) == 1
    assert slurm_job.main(["end"], environment) == 0
    assert len(pushed) == 2
    assert len(list_runs(tmp_path / "jobs" / "runs")) == (0 if complete else 1)


@pytest.mark.parametrize("script", ["prolog", "epilog"])
@pytest.mark.parametrize("python", ["sleep", "missing", "/"])
def test_the_scripts_return_0_at_once(script: str, python: str, tmp_path: Path) -> None:
    """Although joulewatch hangs, is missing, or cannot be started, and the log cannot be written."""
    hanging = tmp_path / "sleep"
    hanging.write_text("#!/bin/sh\nexec sleep 3\n")
    hanging.chmod(0o755)
    began_s = time.monotonic()
    environment = {**os.environ, "JOULEWATCH_PYTHON": str(tmp_path / python), "JOULEWATCH_SLURM_LOG": "/none/log"}
    done = subprocess.run(
        [ROOT / "deploy" / "slurm" / script], env=environment, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began_s < 2.5
