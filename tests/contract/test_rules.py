"""The recording rules and alerts pass promtool and use metrics and labels that exist."""

from __future__ import annotations

import re
import subprocess
from typing import Any, Final

import pytest

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
    promtool("test", "rules", *TESTS)


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
    if metric.startswith("joulewatch_host_energy"):
        assert read in (
            {"joulewatch_node_energy_joules", "joulewatch_device_energy_joules"},
            {"joulewatch_host_energy_joules"},
            {"joulewatch_host_energy_kwh"},
        )
    else:
        assert len(read) == 1 and {name.removesuffix("_total") for name in read} == {metric}
    assert set(level.split("_")) <= dashboards.result_labels(rule["expr"], LABELS)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if "alert" in rule], ids=name)
def test_alerts_have_severity_and_texts(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() >= {"summary", "description"}


def test_every_alert_has_a_section_in_the_readme() -> None:
    readme = (dashboards.FOLDER / "README.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\nSeverity (\w+)\.", readme, re.MULTILINE))
    assert sections == {rule["alert"]: rule["labels"]["severity"] for rule in ALL_RULES if "alert" in rule}
