"""The committed dashboards match build.py, follow Grafana's conventions and query metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml
from promql_parser import Call, MatchOp, MatrixSelector, SubqueryExpr

from joulewatch_exporter import catalog
from support import dashboards
from support.require import require_program

CATALOG: Final = {metric.name: set(metric.labels) for metric in catalog.METRICS}
FOREIGN: Final[dict[str, set[str]]] = {
    "up": set(),  # written by Prometheus for every target
    "process_cpu_seconds_total": set(),  # from prometheus_client's process collector
    "process_resident_memory_bytes": set(),
    "scrape_duration_seconds": set(),  # written by Prometheus for every target
    "scrape_samples_scraped": set(),
}
LABELS: Final = dashboards.with_recorded(
    {
        # Through a Pushgateway, all series of a window have the label window: see the help of WINDOW_END.
        name: labels | {"cluster", "job", "instance"} | ({"window"} if name.startswith("joulewatch_window_") else set())
        for name, labels in (CATALOG | FOREIGN).items()
    }
    | dashboards.llm_labels(),
    dashboards.LLM_RULES,
)
UNITS: Final = {
    "watt",
    "joule",
    "kwatth",
    "s",
    "short",
    "none",
    "string",
    "suffix:inf/s",
    "suffix:tok/s",
    "cps",
    "percentunit",
    "bytes",
    "dateTimeAsIso",
    "massg",
}
"""Ids of Grafana's units. Grafana shows an unknown id as text after the value."""

Board = dict[str, Any]
Problems = Iterator[tuple[str, str]]
"""Pairs of (panel title or empty string, description of the problem)."""

BOARDS: Final = {name: dashboards.load(name) for name in dashboards.NAMES}
ALL_QUERIES: Final = [query for board in BOARDS.values() for query in dashboards.queries(board)]


def targets(board: Board) -> Iterator[tuple[str, str]]:
    """Yield (panel title, PromQL) of every query of a panel."""
    for panel in dashboards.panels(board):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


# Grafana's dashboard-linter is a Go program. These functions are its rules for PromQL dashboards, with their names.


def template_datasource_rule(board: Board) -> Problems:
    sources = [
        (variable["name"], variable["label"], variable["query"])
        for variable in board["templating"]["list"]
        if variable["type"] == "datasource"
    ]
    if sources != [("datasource", "Data source", "prometheus")]:
        yield "", "the only data source variable must be datasource, with the label Data source"


def multi_value_variable_rule(board: Board, name: str, label: str) -> Problems:
    variables: dict[str, Board] = {variable["name"]: variable for variable in board["templating"]["list"]}
    variable = variables.get(name, {})
    expected = {"type": "query", "label": label, "multi": True, "includeAll": True, "allValue": ".+"}
    for key, value in expected.items():
        if variable.get(key) != value:
            yield "", f"variable {name}: {key} is {variable.get(key)!r}, not {value!r}"
    if variable.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
        yield "", f"variable {name} does not use ${{datasource}}"


def template_job_rule(board: Board) -> Problems:
    yield from multi_value_variable_rule(board, "job", "Job")


def template_instance_rule(board: Board) -> Problems:
    yield from multi_value_variable_rule(board, "instance", "Instance")


def template_label_promql_rule(board: Board) -> Problems:
    pattern = r"label_values\([a-z0-9_:]+(\{.+\})?, \w+\)|query_result\(.+\)"
    for variable in board["templating"]["list"]:
        if variable["type"] == "query" and not re.fullmatch(pattern, variable["definition"]):
            yield "", f"variable {variable['name']}: {variable['definition']}"


def template_on_time_change_reload_rule(board: Board) -> Problems:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield "", f"variable {variable['name']} is not refreshed when the time range changes"


def panel_datasource_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        for part in (panel, *panel["targets"]):
            if part.get("datasource", {}).get("uid") != "${datasource}":
                yield panel["title"], "does not use ${datasource}"


def panel_title_description_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        if not panel.get("title") or not panel.get("description"):
            yield panel.get("title", ""), "has no title or no description"


def panel_units_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        config = panel["fieldConfig"]
        used = [config["defaults"].get("unit", "")]
        properties = [entry for override in config["overrides"] for entry in override["properties"]]
        used += [entry["value"] for entry in properties if entry["id"] == "unit"]
        for unit in used:
            if unit not in UNITS:
                yield panel["title"], f"unit {unit!r}"


def panel_no_targets_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        if not panel.get("targets"):
            yield panel["title"], "has no query"


def target_rate_interval_rule(board: Board) -> Problems:
    rate_interval = promql_parser.parse_duration(dashboards.DURATIONS["__rate_interval"])
    for title, expr in targets(board):
        for node in dashboards.nodes(expr):
            if isinstance(node, MatrixSelector | SubqueryExpr) and node.range != rate_interval:
                yield title, f"the range of {node.prettify()} is not [$__rate_interval]"


def matcher_rule(board: Board, label: str) -> Problems:
    for title, expr in targets(board):
        for selector in dashboards.selectors(expr):
            matchers = [(matcher.name, matcher.op, matcher.value) for matcher in selector.matchers.matchers]
            if (label, MatchOp.Re, f"${label}") not in matchers:
                yield title, f'{selector} lacks {label}=~"${label}"'


def target_job_rule(board: Board) -> Problems:
    yield from matcher_rule(board, "job")


def target_instance_rule(board: Board) -> Problems:
    yield from matcher_rule(board, "instance")


def target_counter_agg_rule(board: Board) -> Problems:
    for title, expr in targets(board):
        rates = [
            node.args[0].vector_selector.name
            for node in dashboards.nodes(expr)
            if isinstance(node, Call)
            and node.func.name in {"rate", "irate", "increase"}
            and isinstance(node.args[0], MatrixSelector)
        ]
        for selector in dashboards.selectors(expr):
            if (selector.name or "").endswith("_total"):
                if selector.name in rates:
                    rates.remove(selector.name)
                else:
                    yield title, f"{selector.name} is a counter: use it only in rate, irate or increase"


def uneditable_dashboard_rule(board: Board) -> Problems:
    if board["editable"]:
        yield "", "is editable"


RULES: Final[tuple[Callable[[Board], Problems], ...]] = (
    template_datasource_rule,
    template_job_rule,
    template_instance_rule,
    template_label_promql_rule,
    template_on_time_change_reload_rule,
    panel_datasource_rule,
    panel_title_description_rule,
    panel_units_rule,
    panel_no_targets_rule,
    target_rate_interval_rule,
    target_job_rule,
    target_instance_rule,
    target_counter_agg_rule,
    uneditable_dashboard_rule,
)


def exclusions() -> dict[tuple[str, str, str], str]:
    """Return the reason for each excluded (rule, dashboard, panel), from the linter's configuration file."""
    data = yaml.safe_load((dashboards.FOLDER / ".lint").read_text(encoding="utf-8"))
    return {
        (rule, entry["dashboard"], entry.get("panel", "")): content["reason"]
        for rule, content in data["exclusions"].items()
        for entry in content["entries"]
    }


def test_every_convention_is_met_or_excluded_with_a_reason() -> None:
    """Unused exclusions fail too."""
    excluded = exclusions()
    used = set()
    problems = []
    for board in BOARDS.values():
        for rule in RULES:
            name = rule.__name__.replace("_", "-")
            for panel, text in rule(board):
                key = (name, board["title"], panel)
                if key in excluded:
                    used.add(key)
                else:
                    problems.append(f"{name}: {board['title']}: {panel}: {text}")
    assert not problems, "\n".join(problems)
    assert set(excluded) == used, "unused exclusions"
    assert all(excluded.values())


def run_builder(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``build.py`` in ``folder`` with ``arguments``."""
    pytest.importorskip("grafana_foundation_sdk", reason="pip install --group dashboards")
    return subprocess.run(
        [sys.executable, str(folder / "build.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(dashboards.ROOT / "exporter")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_committed_dashboards_are_what_the_builder_writes() -> None:
    outcome = run_builder(dashboards.FOLDER, "--check")
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_check_writes_nothing_and_names_the_stale_files(tmp_path: Path) -> None:
    for source in dashboards.FOLDER.glob("*.py"):
        shutil.copy(source, tmp_path)
    shutil.copytree(dashboards.FOLDER / "rules", tmp_path / "rules")
    outcome = run_builder(tmp_path, "--check")
    assert outcome.returncode == 1
    for name in dashboards.NAMES:
        assert f"{name}.json is out of date" in outcome.stderr
    assert not list(tmp_path.glob("*.json"))
    assert run_builder(tmp_path).returncode == 0
    for name in dashboards.NAMES:
        assert (tmp_path / f"{name}.json").read_bytes() == (dashboards.FOLDER / f"{name}.json").read_bytes()
    assert run_builder(tmp_path, "--check").returncode == 0


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_ids_positions_and_links_are_valid(name: str) -> None:
    """Panel ids and titles are unique, panels do not overlap and fit into 24 columns, links have a target."""
    board = BOARDS[name]
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    ids = [panel["id"] for panel in (*rows, *dashboards.panels(board))]
    assert len(set(ids)) == len(ids) and None not in ids
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24, panel["title"]
        for x in range(position["x"], position["x"] + position["w"]):
            for y in range(position["y"], position["y"] + position["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    for row in rows:
        # Grafana moves what is below a collapsed row down when it opens.
        inside = [panel["gridPos"] for panel in row.get("panels") or ()]
        assert bool(inside) == row["collapsed"]
        assert all(position["y"] > row["gridPos"]["y"] for position in inside), row["title"]
        cells = [
            (x, y)
            for place in inside
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells) and all(x < 24 for x, _ in cells), row["title"]
    titles = [panel["title"] for panel in dashboards.panels(board)]
    assert len(set(titles)) == len(titles)
    assert board["uid"] == f"joulewatch-{name}" and len(board["uid"]) <= 40
    uids = {f"/d/{other['uid']}" for other in BOARDS.values()}
    assert board["links"] and {link["url"] for link in board["links"]} <= uids
    for annotation in board.get("annotations", {}).get("list", ()):
        assert set(annotation["filter"]["ids"]) <= set(ids)


def test_every_panel_has_a_colour_mode_and_every_chart_a_legend() -> None:
    for board in BOARDS.values():
        for panel in dashboards.panels(board):
            assert panel["fieldConfig"]["defaults"]["color"]["mode"], panel["title"]
            if panel["type"] in {"timeseries", "trend"}:
                assert panel["options"]["legend"]["showLegend"], panel["title"]
            if panel["type"] == "timeseries":
                assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def unit_of(panel: Mapping[str, Any], field: str) -> str:
    """Return the unit with which a panel shows a field that an override names."""
    unit: str = panel["fieldConfig"]["defaults"]["unit"]
    for entry in panel["fieldConfig"]["overrides"]:
        if entry["matcher"] == {"id": "byName", "options": field}:
            units = [one["value"] for one in entry["properties"] if one["id"] == "unit"]
            unit = units[-1] if units else unit
    return unit


def test_a_batch_size_has_no_unit() -> None:
    tables = [
        panel
        for board in BOARDS.values()
        for panel in dashboards.panels(board)
        if panel["type"] == "table" and '"Batch size"' in json.dumps(panel["transformations"])
    ]
    assert len(tables) >= 4
    assert {panel["title"]: unit_of(panel, "Batch size") for panel in tables} == {
        panel["title"]: "none" for panel in tables
    }


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_metric_and_matched_label_is_in_the_catalog(query: dashboards.Query) -> None:
    metrics = dashboards.metrics(query.expr)
    assert metrics
    for metric, matched in metrics.items():
        assert metric in LABELS, f"{query}: {metric} is not in the catalog"
        assert matched <= LABELS[metric], f"{query}: {metric} has no label {matched - LABELS[metric]}"


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_label_of_a_legend_is_in_the_result(query: dashboards.Query) -> None:
    """``result_labels`` also checks the labels of ``by`` and ``on``."""
    used = dashboards.template_labels(query.legend) | ({query.label} if query.label else set())
    available = dashboards.result_labels(query.expr, LABELS)
    assert used <= available, f"{query}: the result has no label {used - available}"


def test_links_of_tables_use_only_fields_of_their_table() -> None:
    """A query without other queries has the field Value; of several, each has its own, such as ``Value #A``."""
    count = 0
    for board in BOARDS.values():
        for panel in dashboards.panels(board):
            for override in panel["fieldConfig"]["overrides"]:
                for link in (
                    link for entry in override["properties"] if entry["id"] == "links" for link in entry["value"]
                ):
                    fields = {f"Value #{target['refId']}" for target in panel["targets"]}
                    for target in panel["targets"]:
                        fields |= dashboards.result_labels(target["expr"], LABELS)
                    used = re.findall(r'\$\{__data\.fields(?:\.(\w+)|\["([^"]+)"\])(?:\.numeric)?\}', link["url"])
                    assert len(used) == link["url"].count("${__data") > 0
                    assert {name or quoted for name, quoted in used} <= fields
                    hidden = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
                    assert not {name or quoted for name, quoted in used} & set(hidden["excludeByName"])
                    assert link["url"].split("?")[0] in {f"/d/{other['uid']}" for other in BOARDS.values()}
                    count += 1
    assert count


def test_annotations_use_only_labels_of_their_series() -> None:
    for board in BOARDS.values():
        for annotation in board.get("annotations", {}).get("list", ()):
            used = dashboards.template_labels(annotation["titleFormat"] + annotation["textFormat"])
            assert used | set(annotation["tagKeys"].split(",")) <= CATALOG[catalog.WINDOW_ACTIVE.name]
            assert annotation["step"] == "1s"


def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    """promtool checks rules, so each query becomes a rule of a temporary file."""
    rules = [
        {"record": f"dashboard:query:{index}", "expr": dashboards.substitute(query.expr, dashboards.MACROS)}
        for index, query in enumerate(ALL_QUERIES)
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), encoding="utf-8")
    outcome = subprocess.run(
        [require_program("promtool", "prometheus"), "check", "rules", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert outcome.returncode == 0, outcome.stderr


# The functions of support.dashboards that the tests above rely on.


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (a, b) (rate(m_total{job=~"$job", x!="{y}"}[$__rate_interval]))', {"m_total": {"job", "x"}}),
        ("1 - up", {"up": set()}),
        ('a{l="1"} and on (run) b / 3.6e6', {"a": {"l"}, "b": set()}),
        ('a{l="1"} - a{k="2"}', {"a": {"k", "l"}}),
        ("(sum(c) or vector(0)) + time()", {"c": set()}),
        ("level:metric:rate1m > 0.01", {"level:metric:rate1m": set()}),
        ('{job="x"}', {"": {"job"}}),
    ],
)
def test_metrics_and_matched_labels_are_read_from_promql(expr: str, names: dict[str, set[str]]) -> None:
    assert dashboards.metrics(expr) == names


KNOWN: Final = {"m": {"a", "b", "c"}, "n": {"b", "c", "d"}}


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("m", {"a", "b", "c"}),
        ("rate(m[$__rate_interval])", {"a", "b", "c"}),
        ("max_over_time((-m)[1h:1m])", {"a", "b", "c"}),
        ("sum(m)", set()),
        ("sum by (a, b) (m)", {"a", "b"}),
        ("sum without (a) (m)", {"b", "c"}),
        ("topk(3, m)", {"a", "b", "c"}),
        ("time() - m", {"a", "b", "c"}),
        ("m / 2", {"a", "b", "c"}),
        ("m / n", {"b", "c"}),
        ("m or n", {"b", "c"}),
        ("sum(m) or vector(0)", set()),
        ("m and on (b) n", {"a", "b", "c"}),
        ('label_replace(sum by (a) (m), "new", "none", "", "")', {"a", "new"}),
        ('label_join(sum by (a) (m), "new", "/", "a")', {"a", "new"}),
        ("time()", set()),
    ],
)
def test_labels_of_a_result_are_read_from_promql(expr: str, labels: set[str]) -> None:
    assert dashboards.result_labels(expr, KNOWN) == labels


@pytest.mark.parametrize(
    "expr", ["sum by (a, d) (m)", "sum(max by (a) (m)) + sum by (b) (max by (a) (m))", "m and on (a) n"]
)
def test_grouping_by_a_missing_label_is_an_error(expr: str) -> None:
    with pytest.raises(ValueError, match="no label"):
        dashboards.result_labels(expr, KNOWN)


def fake_board(expr: str) -> Board:
    return {"panels": [{"type": "timeseries", "title": "panel", "targets": [{"expr": expr}]}]}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (target_rate_interval_rule, "rate(m[$__rate_interval])", "rate(m[1m])"),
        (target_rate_interval_rule, "m", "max_over_time(m[$__range:])"),
        (target_job_rule, 'm{a="1", job=~"$job"}', 'm{job=~"$job"} - m'),
        (target_job_rule, 'sum(m{job=~"$job"})', 'm{job="$job"}'),
        (target_instance_rule, 'm{instance=~"$instance"}', 'm{job=~"$instance"}'),
        (target_counter_agg_rule, "sum(rate(m_total[1m]))", "sum(m_total)"),
        (target_counter_agg_rule, "irate(m_total[1m]) / increase(m_total[1m])", "rate(m_total[1m]) / m_total"),
        (target_counter_agg_rule, "max_over_time(m[1m])", "max_over_time(m_total[1m])"),
        (target_counter_agg_rule, "rate(m_total[1m])", "rate(m_total[1h:1m])"),
    ],
)
def test_rules_accept_good_and_report_bad_expressions(rule: Callable[[Board], Problems], good: str, bad: str) -> None:
    assert list(rule(fake_board(good))) == []
    assert [title for title, _ in rule(fake_board(bad))] == ["panel"]
