"""The mixin of jsonnet has the dashboards and the rules, and its settings apply to all of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import _jsonnet
import promql_parser
import pytest

from support import dashboards
from support.require import require_program

MIXIN: Final = dashboards.FOLDER / "mixin" / "mixin.libsonnet"
OF_RUNS: Final = ("joulewatch_run_", "joulewatch_window_", "joulewatch_result_")
GROUPS: Final = [*dashboards.rule_groups(), *dashboards.rule_groups(dashboards.LLM_RULES)]
RULES: Final = [rule for group in GROUPS for rule in group["rules"]]


def evaluate(field: str, config: str = "") -> Any:
    """Return a field of the mixin, with ``config`` as a user gives it."""
    program = f"((import {json.dumps(str(MIXIN))}) + {{ _config+:: {{ {config} }} }}).{field}"
    return json.loads(_jsonnet.evaluate_snippet("test", program))


def rules(config: str = "") -> list[dict[str, Any]]:
    """Return the recording rules and the alerts."""
    return [
        rule
        for field in ("prometheusRules", "prometheusAlerts")
        for group in evaluate(field, config)["groups"]
        for rule in group["rules"]
    ]


def selectors(expr: promql_parser.Expr) -> Iterator[promql_parser.VectorSelector]:
    """Yield every selector of an expression."""
    if isinstance(expr, promql_parser.VectorSelector):
        yield expr
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        inner = getattr(expr, name, None)
        if inner is not None:
            yield from selectors(inner)
    for argument in getattr(expr, "args", None) or ():
        yield from selectors(argument)


def test_it_has_every_dashboard_and_rule() -> None:
    boards = evaluate("grafanaDashboards")
    expected = {
        f"joulewatch-{name}.json": {**dashboards.load(name), "tags": ["joulewatch"]} for name in dashboards.NAMES
    }
    assert boards == expected
    assert sorted(map(json.dumps, rules())) == sorted(json.dumps(rule, sort_keys=True) for rule in RULES)
    assert {
        group["name"] for field in ("prometheusRules", "prometheusAlerts") for group in evaluate(field)["groups"]
    } == {group["name"] for group in GROUPS}


def test_the_selector_is_in_every_series_of_an_exporter(tmp_path: Path) -> None:
    config = """joulewatchSelector: 'job="node", cluster=~"a|b"'"""
    matched = 0
    for rule in rules(config):
        for selector in selectors(promql_parser.parse(rule["expr"])):
            matchers = {(matcher.name, matcher.value) for matcher in selector.matchers.matchers}
            name = str(selector.name)
            is_of_an_exporter = name.startswith("joulewatch_") and not name.startswith(OF_RUNS)
            assert ({("job", "node"), ("cluster", "a|b")} <= matchers) == is_of_an_exporter, rule["expr"]
            matched += is_of_an_exporter
    # The rules of LLM servers read what the others record.
    assert matched > sum(len(group["rules"]) for group in dashboards.rule_groups())
    for field in ("prometheusRules", "prometheusAlerts"):
        path = tmp_path / f"{field}.yaml"
        path.write_text(json.dumps(evaluate(field, config)), "utf-8")
        outcome = subprocess.run(
            [require_program("promtool", "prometheus"), "check", "rules", "--lint=all", "--lint-fatal", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_alerts_link_to_the_users_runbooks() -> None:
    config = "runbookURLPattern: 'https://wiki.example.com/alerts#%s', dashboardTags: ['energy']"
    for rule in rules(config):
        if "alert" in rule:
            assert rule["annotations"]["runbook_url"] == f"https://wiki.example.com/alerts#{rule['alert'].lower()}"
        else:
            assert "annotations" not in rule
    assert {tuple(board["tags"]) for board in evaluate("grafanaDashboards", config).values()} == {("energy",)}


@pytest.mark.parametrize("field", ["prometheusAlerts", "prometheusRules"])
def test_another_mixin_can_be_added(field: str) -> None:
    program = f"((import {json.dumps(str(MIXIN))}) + {{ {field}+:: {{ groups+: [{{ name: 'more' }}] }} }}).{field}"
    names = [group["name"] for group in json.loads(_jsonnet.evaluate_snippet("test", program))["groups"]]
    assert names == [group["name"] for group in evaluate(field)["groups"]] + ["more"]


def test_the_readme_writes_files_that_prometheus_and_grafana_load() -> None:
    readme = (dashboards.FOLDER / "README.md").read_text("utf-8")
    (program,) = re.findall(r"^cat >joulewatch\.jsonnet <<'END'\n(.*?)^END$", readme, re.DOTALL | re.MULTILINE)
    files = json.loads(_jsonnet.evaluate_snippet("README.md", program, jpathdir=[str(dashboards.ROOT)]))
    assert files.keys() == {"rules.yaml", "alerts.yaml", *(f"joulewatch-{name}.json" for name in dashboards.NAMES)}
    assert 'joulewatch_exporter_info{job="joulewatch"}' in json.dumps(files["alerts.yaml"]).replace("\\", "")
