"""The recording rules and alerts pass promtool and use metrics and labels that exist."""

from __future__ import annotations

import re
import subprocess
from typing import Any, Final

import pytest
import yaml

from joulewatch_exporter import catalog
from support import dashboards
from support.require import require_program

FOLDER: Final = dashboards.FOLDER / "rules"
FILE: Final = FOLDER / "joulewatch.rules.yaml"
LABELS: Final = {metric.name: {*metric.labels, "cluster", "job", "instance"} for metric in catalog.METRICS} | {
    "up": {"cluster", "job", "instance"}
}
GROUPS: Final[list[dict[str, Any]]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["groups"]
ALL_RULES: Final = [rule for group in GROUPS for rule in group["rules"]]


def name(rule: dict[str, Any]) -> str:
    return str(rule.get("record") or rule["alert"])


def promtool(*arguments: str) -> None:
    outcome = subprocess.run(
        [require_program("promtool", "prometheus"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_rules_pass_the_linter() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", FILE.name)


def test_the_rules_pass_their_tests() -> None:
    promtool("test", "rules", "joulewatch.rules.test.yaml")


def test_every_rule_is_tested() -> None:
    tests = (FOLDER / "joulewatch.rules.test.yaml").read_text(encoding="utf-8")
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
    """The metric in the middle is the one that the rule reads, without ``_total``; the level is in its labels."""
    level, metric, _ = rule["record"].split(":")
    assert set(dashboards.metrics(rule["expr"])) - {catalog.SENSOR_INFO.name} == {f"{metric}_total"}
    assert set(level.split("_")) <= dashboards.result_labels(rule["expr"], LABELS)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "alert" in rule], ids=name)
def test_alerts_have_severity_and_texts(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() >= {"summary", "description"}


def test_every_alert_has_a_section_in_the_readme() -> None:
    readme = (dashboards.FOLDER / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\nSeverity (\w+)\.", readme, re.MULTILINE))
    assert sections == {rule["alert"]: rule["labels"]["severity"] for rule in ALL_RULES if "alert" in rule}
