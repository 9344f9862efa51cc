"""The recording rules and alerts pass promtool and use metrics and labels that exist."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml

from joulewatch_exporter import catalog
from support import dashboards
from support.require import require_program

FOLDER: Final = dashboards.FOLDER / "rules"
FILE: Final = FOLDER / "joulewatch.rules.yaml"
TESTS: Final = ("joulewatch.rules.test.yaml", "joulewatch.rules.days.test.yaml")
LABELS: Final = dashboards.with_recorded(
    {metric.name: {*metric.labels, "cluster", "job", "instance"} for metric in catalog.METRICS}
    | {"up": {"cluster", "job", "instance"}}
)
GROUPS: Final = dashboards.rule_groups()
ALL_RULES: Final = [rule for group in GROUPS for rule in group["rules"]]


def runbooks() -> ModuleType:
    """Return the module ``dashboards/runbooks.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("runbooks", dashboards.FOLDER / "runbooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("record") or rule["alert"])


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    outcome = subprocess.run(
        [require_program("promtool", "prometheus"), *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_rules_pass_the_linter() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", FILE.name)


def test_the_rules_pass_their_tests(tmp_path: Path) -> None:
    """The tests expect alerts without links, which depend on PROJECT_URL."""
    for name in TESTS:
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / FILE.name).write_text(runbooks().with_runbooks(FILE.read_text("utf-8"), ""), "utf-8")
    promtool("test", "rules", *TESTS, folder=tmp_path)


def test_every_rule_is_tested() -> None:
    tests = "".join((FOLDER / name).read_text(encoding="utf-8") for name in TESTS)
    assert [name(rule) for rule in ALL_RULES if name(rule) not in tests] == []


@pytest.mark.parametrize("rule", ALL_RULES, ids=name)
def test_every_metric_and_label_is_in_the_catalog(rule: dict[str, Any]) -> None:
    """``result_labels`` also checks the labels of ``by``."""
    for metric, matched in dashboards.metrics(rule["expr"]).items():
        assert metric in LABELS, f"{name(rule)}: {metric} is not in the catalog"
        assert matched <= LABELS[metric], f"{name(rule)}: {metric} has no label {matched - LABELS[metric]}"
    text = " ".join(rule.get("annotations", {}).values())
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= dashboards.result_labels(rule["expr"], LABELS)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "record" in rule], ids=name)
def test_recording_rules_are_named_level_metric_operation(rule: dict[str, Any]) -> None:
    """The metric in the middle is the one that the rule reads, without ``_total``; the level is in its labels.

    The energy of a host is that of its node sensor or of its devices.
    """
    level, metric, _ = rule["record"].split(":")
    read = {name.split(":")[1] if ":" in name else name for name in dashboards.metrics(rule["expr"])}
    read -= {catalog.SENSOR_INFO.name, catalog.SENSOR_STATE.name}
    read -= {catalog.SENSOR_CALIBRATION.name, catalog.READ_TIMESTAMP.name}
    if metric == "joulewatch_workload_energy_joules":
        # Its share is one of all active energy, with a limit, and a policy for idle power adds some.
        read -= {catalog.UNATTRIBUTED_ENERGY.name, catalog.WORKLOAD_RATIO.name, catalog.WORKLOAD_RESERVED.name}
    if metric.startswith("joulewatch_host_energy"):
        assert read in (
            {"joulewatch_node_energy_joules", "joulewatch_device_energy_joules"},
            {"joulewatch_host_energy_joules"},
            {"joulewatch_host_energy_kwh"},
        )
    else:
        # The raw counter, the calibrated one, or both.
        assert {name.removesuffix("_total") for name in read} == {metric}
    assert set(level.split("_")) <= dashboards.result_labels(rule["expr"], LABELS)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "alert" in rule], ids=name)
def test_alerts_have_severity_and_texts(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() >= {"summary", "description"}


def test_every_alert_has_a_section_in_the_readme() -> None:
    readme = (dashboards.FOLDER / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\nSeverity (\w+)\.", readme, re.MULTILINE))
    assert sections == {rule["alert"]: rule["labels"]["severity"] for rule in ALL_RULES if "alert" in rule}


URL: Final = "https://example.com/owner/joulewatch"


def test_with_a_project_url_every_alert_has_a_runbook(tmp_path: Path) -> None:
    text = FILE.read_text("utf-8")
    linked = runbooks().with_runbooks(text, URL)
    (tmp_path / FILE.name).write_text(linked, "utf-8")
    promtool("check", "rules", "--lint=all", "--lint-fatal", FILE.name, folder=tmp_path)
    alerts = {
        rule["alert"]: rule for group in yaml.safe_load(linked)["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert len(alerts) == sum("alert" in rule for rule in ALL_RULES)
    headings = re.findall(r"^### (\w+)$", (dashboards.FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    anchors = {f"{URL}/blob/main/dashboards/README.md#{heading.lower()}" for heading in headings}
    for alert, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] in anchors
        assert rule["annotations"]["runbook_url"].endswith(f"#{alert.lower()}")
    assert runbooks().with_runbooks(linked, URL) == linked
    assert runbooks().with_runbooks(linked, "") == runbooks().with_runbooks(text, "")


def test_without_a_project_url_no_file_has_a_link_to_the_project() -> None:
    """``[project.urls]`` and the links of the alerts exist only if PROJECT_URL is set, and are below it."""
    project_url = runbooks().PROJECT_URL
    project = tomllib.loads((dashboards.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    links = [*project.get("urls", {}).values(), *re.findall(r"runbook_url: (.*)", FILE.read_text("utf-8"))]
    assert bool(links) == bool(project_url)
    assert all(link.startswith(project_url) for link in links)
    assert not project_url.endswith("/")
