"""Jobs of a real Slurm: recorded as runs by the prolog and the epilog, and their energies by ``sacct``.

It runs only where Slurm is installed: CI does not install its packages, nor the database that its accounting needs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joulewatch_exporter.emulator.truth import Truth
from joulewatch_harness.cli import main
from support.paths import ROOT
from support.slurm import NODE, PACKAGES, PROGRAMS, SlurmCluster
from support.waiting import wait_until

if TYPE_CHECKING:
    from integration.conftest import StartEmulator, StartExporter, StartPrometheus
    from support.servers import PrometheusServer

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(240)]
missing = [program for program in PROGRAMS if shutil.which(program) is None]
if missing:
    pytest.skip(f"{', '.join(missing)} not installed: apt-get install {PACKAGES}", allow_module_level=True)


@pytest.fixture
def prometheus(
    emulator: StartEmulator, exporter_server: StartExporter, prometheus_server: StartPrometheus, tmp_path: Path
) -> PrometheusServer:
    """A Prometheus with the samples of an emulated machine, which has the name of this one."""
    machine = emulator("epyc-7763-node")
    (tmp_path / "machine").symlink_to(machine.folder)
    exporter = exporter_server(*machine.flags)
    return prometheus_server(scrape_targets=[exporter.address], out_of_order=True)


@pytest.fixture
def cluster(tmp_path: Path, prometheus: PrometheusServer) -> Iterator[SlurmCluster]:
    """A cluster with the committed prolog and epilog, whose paths are those of the test."""
    (tmp_path / "prometheus.yaml").write_text(f"url: {prometheus.url}\n")
    (tmp_path / "salt").write_text("a salt for tests, long enough")
    (tmp_path / "salt").chmod(0o600)
    settings = {}
    for name in ("prolog", "epilog"):
        text = (ROOT / "deploy" / "slurm" / name).read_text()
        for path, replacement in (
            ("/opt/joulewatch/bin/python", sys.executable),
            ("/var/log/slurm/joulewatch.log", str(tmp_path / "joulewatch.log")),
        ):
            assert path in text
            text = text.replace(path, replacement)
        variables = {"FOLDER": "jobs", "SALT": "salt", "PROMETHEUS": "prometheus.yaml"}
        exports = "".join(f"export JOULEWATCH_SLURM_{key}={tmp_path / value}\n" for key, value in variables.items())
        script = tmp_path / name
        script.write_text(text.replace("PATH=", exports + "PATH=", 1))
        script.chmod(0o755)
        settings[f"{name.title()}Slurmctld"] = str(script)
    running = SlurmCluster(tmp_path / "slurm", settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def energy(job: str, prometheus: PrometheusServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the energy of a job, once the scrapes after its end are in Prometheus."""
    documents = []

    def complete() -> bool:
        code = main(["energy", "--slurm-job", job, "--prometheus", prometheus.url, "--format=json"])
        documents.append(capsys.readouterr().out)
        return code == 0

    wait_until(complete, f"the energy of job {job}", limit_s=60)
    return json.loads(documents[-1])


def test_jobs_are_recorded_and_have_the_energy_of_their_node(
    cluster: SlurmCluster,
    prometheus: PrometheusServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    # A job that began before the first scrape has no energy.
    wait_until(lambda: main(["energy", "--start=-2s", "--prometheus", prometheus.url]) == 0, "scrapes", limit_s=60)
    capsys.readouterr()
    batch = ("sbatch", "--parsable", "--output=/dev/null")
    job = cluster.run(*batch, "--wrap=sleep 4").strip()
    array = cluster.run(*batch, "--array=1-2", "--wrap=sleep 1").strip()
    assert job.isdecimal() and array.isdecimal()
    wait_until(lambda: not cluster.run("squeue", "--noheader"), "the jobs have ended", limit_s=60)
    states = ("sacct", "--allocations", "--noheader", "--format=State")
    wait_until(lambda: cluster.run(*states).split() == ["COMPLETED"] * 3, "sacct knows the end", limit_s=30)

    document = energy(job, prometheus, capsys)
    (allocation,) = document["allocations"]
    assert (allocation["state"], allocation["nodes"], allocation["cluster"]) == ("COMPLETED", [NODE], "test")
    truth = Truth.load(tmp_path / "machine")
    (cpu,) = (one for one in document["nodes"] if one["component"] == "cpu")
    true = sum(
        truth.energy_joules(f"socket{socket}/package", allocation["start_s"], allocation["end_s"]) for socket in (0, 1)
    )
    assert cpu["host"].partition(".")[0] == NODE
    assert abs(cpu["joules"] - true) <= cpu["expanded_uncertainty"]
    assert len(energy(array, prometheus, capsys)["allocations"]) == 2

    log = tmp_path / "joulewatch.log"
    wait_until(lambda: not list((tmp_path / "jobs" / "runs").iterdir()), "all runs are delivered", limit_s=60)
    assert log.read_text() == ""
    assert main(["runs", "--prometheus", prometheus.url, "--format=json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["status"] for run in runs] == ["complete"] * 3
    assert main(["analyze", runs[0]["run"], "--prometheus", prometheus.url, f"--output={tmp_path}"]) == 0
    assert "slurm/" in capsys.readouterr().out
