"""The recording rules of LLM servers: promtool accepts them, their tests pass, and they cover the mapping."""

from __future__ import annotations

import subprocess
from typing import Any, Final

import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.sources.llm_servers import llm_servers
from support import dashboards
from support.require import require_program

FOLDER: Final = dashboards.FOLDER / "rules"
TESTS: Final = "joulewatch.llm.rules.test.yaml"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in dashboards.rule_groups(dashboards.LLM_RULES) for rule in group["rules"]
]
LABELS: Final = dashboards.with_recorded(
    {metric.name: {*metric.labels, "cluster", "job", "instance"} for metric in catalog.METRICS}
    | {"up": {"cluster", "job", "instance"}}
    | dashboards.llm_labels(),
    dashboards.LLM_RULES,
)


def promtool(*arguments: str) -> None:
    command = [require_program("promtool", "prometheus"), *arguments]
    outcome = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_promtool_accepts_the_rules_and_their_numbers() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", dashboards.LLM_RULES)
    promtool("test", "rules", TESTS)


def test_every_rule_is_tested() -> None:
    tests = (FOLDER / TESTS).read_text(encoding="utf-8")
    assert sorted({rule["record"] for rule in RULES if rule["record"] not in tests}) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule['record']}-{rule.get('labels', {}).get('server', '')}")
def test_every_metric_and_label_exists(rule: dict[str, Any]) -> None:
    for metric, matched in dashboards.metrics(rule["expr"]).items():
        assert matched <= LABELS[metric], f"{rule['record']}: {metric} has no label {matched - LABELS[metric]}"
    level = set(rule["record"].split(":")[0].split("_"))
    assert level <= dashboards.result_labels(rule["expr"], LABELS)


def test_every_counter_of_the_mapping_has_a_rule() -> None:
    read = {metric for rule in RULES for metric in dashboards.metrics(rule["expr"])}
    for name, server in llm_servers().items():
        counters = {*server.output, *server.input, *server.cached, *server.requests}
        assert counters <= read, f"{name}: {counters - read}"
