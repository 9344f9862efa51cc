"""The files for large systems under deploy/ are valid and agree with their README."""

from __future__ import annotations

import subprocess
from typing import Any, Final

import pytest
import yaml

from joulewatch_harness.clients.options import load_options
from joulewatch_harness.delivery import slurm_job
from support.paths import ROOT
from support.require import require_program

PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
CLIENTS: Final = sorted((PROMETHEUS / "clients").glob("*.yaml"))


def checked(*command: str) -> str:
    outcome = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def test_promtool_accepts_the_configuration_of_the_agent() -> None:
    checked(require_program("promtool", "prometheus"), "check", "config", "--agent", "agent.yaml")


def test_victoria_metrics_scrapes_with_the_configuration_of_prometheus() -> None:
    """With the flags of README.md."""
    flags = ("-promscrape.config=prometheus.yaml", "-promscrape.config.strictParse=false")
    text = (PROMETHEUS / "README.md").read_text("utf-8")
    assert all(flag in text for flag in flags)
    checked(require_program("victoria-metrics", "victoria-metrics"), "-dryRun", *flags)


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_the_readme_has_the_receiver_and_the_header_of_each_storage(path: Any) -> None:
    options = load_options(None, path)
    assert options is not None and options.url != options.write_url
    (row,) = (
        line for line in (PROMETHEUS / "README.md").read_text("utf-8").splitlines() if options.write_url + "`" in line
    )
    cell = row.split("|")[3].strip()
    assert cell == (f"`{next(iter(options.headers))}: TENANT`" if options.headers else "none")


def test_the_agent_sends_to_the_storage_of_the_first_client_file() -> None:
    (remote,) = yaml.safe_load((PROMETHEUS / "agent.yaml").read_text("utf-8"))["remote_write"]
    mimir = load_options(None, PROMETHEUS / "clients" / "mimir.yaml")
    assert mimir is not None
    assert (remote["url"], remote["headers"]) == (mimir.write_url, mimir.headers)


# Slurm


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_the_scripts_for_slurm_are_what_their_readme_says(name: str) -> None:
    script = ROOT / "deploy" / "slurm" / name
    text, readme = script.read_text("utf-8"), (script.parent / "README.md").read_text("utf-8")
    assert script.stat().st_mode & 0o111 == 0o111
    for path in ("/opt/joulewatch/bin/python", "/var/log/slurm/joulewatch.log"):
        assert path in text and path.removesuffix("/bin/python") in readme
    for default in (slurm_job.FOLDER, slurm_job.PROMETHEUS, slurm_job.SALT):
        assert str(default) in readme
    assert f"{name.title()}Slurmctld=" in readme
    assert text.rstrip().endswith("exit 0")
    checked("sh", "-n", str(script))
