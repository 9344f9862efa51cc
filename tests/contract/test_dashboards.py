"""The committed dashboards: what build.py writes, Grafana's conventions, names of the catalog, valid PromQL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from joulewatch_exporter import catalog
from support import dashboards
from support.require import require_program

LABELS: Final = {metric.name: set(metric.labels) for metric in catalog.METRICS}
FOREIGN: Final[dict[str, set[str]]] = {
    "up": set(),  # by Prometheus, for every target
    "process_cpu_seconds_total": set(),  # prometheus_client's process collector
    "process_resident_memory_bytes": set(),
}
TARGET_LABELS: Final = {"job", "instance"}
UNITS: Final = {"watt", "joule", "kwatth", "s", "short", "none", "ops", "cps", "percentunit", "bytes"}
"""Ids of Grafana's units; a misspelt one would be shown as text behind the figure."""

Board = dict[str, Any]
Problems = Iterator[tuple[str, str]]
"""(panel title or empty, what is wrong)."""

BOARDS: Final = {name: dashboards.load(name) for name in dashboards.NAMES}
ALL_QUERIES: Final = [query for board in BOARDS.values() for query in dashboards.queries(board)]


def variable(board: Board, name: str) -> Board:
    return next((item for item in board["templating"]["list"] if item["name"] == name), {})


def targets(board: Board) -> Iterator[tuple[str, str]]:
    for panel in dashboards.panels(board):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


# Grafana's dashboard-linter is a Go program; these are its rules for PromQL dashboards under their own names.


def template_datasource_rule(board: Board) -> Problems:
    sources = [item for item in board["templating"]["list"] if item["type"] == "datasource"]
    if [(item["name"], item["label"], item["query"]) for item in sources] != [
        ("datasource", "Data source", "prometheus")
    ]:
        yield "", "one data source variable is wanted: datasource, labelled Data source"


def listed_variable(board: Board, name: str, label: str) -> Problems:
    found = variable(board, name)
    wanted = {"type": "query", "label": label, "multi": True, "includeAll": True, "allValue": ".+"}
    for key, value in wanted.items():
        if found.get(key) != value:
            yield "", f"variable {name}: {key} is {found.get(key)!r}, not {value!r}"
    if found.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
        yield "", f"variable {name} does not use ${{datasource}}"


def template_job_rule(board: Board) -> Problems:
    yield from listed_variable(board, "job", "Job")


def template_instance_rule(board: Board) -> Problems:
    yield from listed_variable(board, "instance", "Instance")


def template_label_promql_rule(board: Board) -> Problems:
    for item in board["templating"]["list"]:
        if item["type"] == "query" and not re.fullmatch(r"label_values\([a-z_]+(\{.+\})?, \w+\)", item["definition"]):
            yield "", f"variable {item['name']}: {item['definition']}"


def template_on_time_change_reload_rule(board: Board) -> Problems:
    for item in board["templating"]["list"]:
        if item["type"] == "query" and item["refresh"] != 2:
            yield "", f"variable {item['name']} is not refreshed when the time range changes"


def panel_datasource_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        for holder in (panel, *panel["targets"]):
            if holder.get("datasource", {}).get("uid") != "${datasource}":
                yield panel["title"], "does not use ${datasource}"


def panel_title_description_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        if not panel.get("title") or not panel.get("description"):
            yield panel.get("title", ""), "has no title or no description"


def panel_units_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        config = panel["fieldConfig"]
        used = [config["defaults"].get("unit", "")]
        used += [item["value"] for rule in config["overrides"] for item in rule["properties"] if item["id"] == "unit"]
        for unit in used:
            if unit not in UNITS:
                yield panel["title"], f"unit {unit!r}"


def panel_no_targets_rule(board: Board) -> Problems:
    for panel in dashboards.panels(board):
        if not panel.get("targets"):
            yield panel["title"], "has no query"


def target_rate_interval_rule(board: Board) -> Problems:
    for title, expr in targets(board):
        for found in re.findall(r"\[([^\]]*)\]", expr):
            if found != "$__rate_interval":
                yield title, f"[{found}] is not [$__rate_interval]"


def matcher_rule(board: Board, label: str) -> Problems:
    for title, expr in targets(board):
        for selector in re.findall(r"\w\{([^}]*)\}", expr) or [""]:
            if f'{label}=~"${label}"' not in selector:
                yield title, f'{{{selector}}} lacks {label}=~"${label}"'


def target_job_rule(board: Board) -> Problems:
    yield from matcher_rule(board, "job")


def target_instance_rule(board: Board) -> Problems:
    yield from matcher_rule(board, "instance")


def target_counter_agg_rule(board: Board) -> Problems:
    for title, expr in targets(board):
        for found in re.finditer(r"(\w*)\(?(\b\w+_total)\b", expr):
            if found[1] not in {"rate", "irate", "increase"}:
                yield title, f"{found[2]} is a counter: only under rate, irate, increase"


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
    """(rule, dashboard, panel) -> reason, from the linter's own file."""
    data = yaml.safe_load((dashboards.FOLDER / ".lint").read_text(encoding="utf-8"))
    return {
        (rule, entry["dashboard"], entry["panel"]): content["reason"]
        for rule, content in data["exclusions"].items()
        for entry in content["entries"]
    }


def test_every_convention_is_met_or_excluded_with_a_reason() -> None:
    """An exclusion that nothing needs any more is a fault too."""
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
    assert set(excluded) == used, "exclusions that nothing needs"
    assert all(excluded.values())


def run_builder(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python build.py`` of ``folder`` as a user does."""
    pytest.importorskip("grafana_foundation_sdk", reason="pip install --group dashboards")
    return subprocess.run(
        [sys.executable, str(folder / "build.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(dashboards.ROOT / "exporter")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_committed_dashboards_are_what_the_builder_writes() -> None:
    done = run_builder(dashboards.FOLDER, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_check_writes_nothing_and_names_the_stale_files(tmp_path: Path) -> None:
    for source in dashboards.FOLDER.glob("*.py"):
        shutil.copy(source, tmp_path)
    done = run_builder(tmp_path, "--check")
    assert done.returncode == 1
    assert "node.json is not" in done.stderr and "experiment.json is not" in done.stderr
    assert not list(tmp_path.glob("*.json"))
    assert run_builder(tmp_path).returncode == 0
    for name in dashboards.NAMES:
        assert (tmp_path / f"{name}.json").read_bytes() == (dashboards.FOLDER / f"{name}.json").read_bytes()
    assert run_builder(tmp_path, "--check").returncode == 0


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_ids_and_places_are_sound(name: str) -> None:
    """Panel ids are unique, nothing overlaps, nothing leaves the 24 columns, links lead somewhere."""
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and None not in ids
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    titles = [panel["title"] for panel in dashboards.panels(board)]
    assert len(set(titles)) == len(titles)
    assert board["uid"] == f"joulewatch-{name}" and len(board["uid"]) <= 40
    uids = {f"/d/{other['uid']}" for other in BOARDS.values()}
    assert board["links"] and {link["url"] for link in board["links"]} <= uids
    for item in board.get("annotations", {}).get("list", ()):
        assert set(item["filter"]["ids"]) <= set(ids)


def test_every_panel_has_a_colour_mode_and_every_graph_a_legend() -> None:
    for board in BOARDS.values():
        for panel in dashboards.panels(board):
            assert panel["fieldConfig"]["defaults"]["color"]["mode"], panel["title"]
            if panel["type"] in {"timeseries", "barchart"}:
                assert panel["options"]["legend"]["showLegend"], panel["title"]
            if panel["type"] == "timeseries":
                assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_metric_and_label_is_of_the_catalog(query: dashboards.Query) -> None:
    known = LABELS | FOREIGN
    available = set(TARGET_LABELS)
    for metric, matched in dashboards.metrics(query.expr).items():
        assert metric in known, f"{query}: {metric} is not in the catalog"
        allowed = known[metric] | TARGET_LABELS
        if metric.startswith("joulewatch_window_"):
            allowed.add("window")  # see the help of WINDOW_END: the Pushgateway's form
        assert matched <= allowed, f"{query}: {metric} has no label {matched - allowed}"
        available |= allowed
    used = dashboards.grouped_labels(query.expr) | dashboards.template_labels(query.legend)
    if query.label:
        used.add(query.label)
    assert used <= available, f"{query}: no such label: {used - available}"


@pytest.mark.parametrize("query", ALL_QUERIES, ids=str)
def test_every_label_of_a_legend_survives_the_aggregation(query: dashboards.Query) -> None:
    outermost = re.match(r"(?:sum|max|min|count) by \(([^)]*)\)", query.expr)
    if outermost:
        kept = {label.strip() for label in outermost[1].split(",")}
        assert dashboards.template_labels(query.legend) <= kept


def test_annotations_name_only_labels_of_their_series() -> None:
    for board in BOARDS.values():
        for item in board.get("annotations", {}).get("list", ()):
            used = dashboards.template_labels(item["titleFormat"] + item["textFormat"])
            assert used | set(item["tagKeys"].split(",")) <= LABELS[catalog.WINDOW_ACTIVE.name]
            assert item["step"] == "1s"


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    """Offline: each expression as a rule of a file that is thrown away."""
    rules = [
        {"record": f"dashboard:query:{index}", "expr": dashboards.substitute(query.expr, dashboards.MACROS)}
        for index, query in enumerate(ALL_QUERIES)
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [require_program("promtool", "prometheus"), "check", "rules", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (a, b) (rate(m_total{job=~"$job", x!="{y}"}[$__rate_interval]))', {"m_total": {"job", "x"}}),
        ("1 - up", {"up": set()}),
        ('a{l="1"} and on (run) b / 3.6e6', {"a": {"l"}, "b": set()}),
        ("(sum(c) or vector(0)) + time()", {"c": set()}),
        ("level:metric:rate1m > 0.01", {"level:metric:rate1m": set()}),
    ],
)
def test_names_are_found_in_promql(expr: str, names: dict[str, set[str]]) -> None:
    """The reader of expressions that the tests above rest on."""
    assert dashboards.metrics(expr) == names
