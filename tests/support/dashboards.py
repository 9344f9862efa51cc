"""The committed dashboards for tests: their panels and queries, and the metrics and labels of a PromQL expression."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import promql_parser
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, VectorSelector

from joulewatch_harness.analysis.sources.llm_servers import llm_servers

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "dashboards"
NAMES: Final = ("fleet", "llm", "node", "experiment", "results", "trust")
RECORDED: Final = tuple(name for name in NAMES if name not in ("fleet", "llm"))
"""Dashboards that are tested with the recorded run; *Fleet* and *LLM serving* are tested with a simulated fleet."""
NUMBERS: Final[Mapping[str, str]] = {"pue": "1.2", "price": "0.25", "co2": "250"}
"""Variables that are numbers in PromQL, and not texts in a matcher."""

DURATIONS: Final[Mapping[str, str]] = {
    "__rate_interval": "61001ms",
    "__interval": "15001ms",
    "__range": "3600001ms",
}
"""Values for Grafana's duration macros: unusual durations, so that no literal ``[1m]`` is mistaken for a macro."""
MACROS: Final[Mapping[str, str]] = {
    **DURATIONS,
    **NUMBERS,
    **dict.fromkeys(
        ("job", "host", "instance", "cluster", "model", "run", "nodenames", "configuration", "baseline"), ".+"
    ),
    "first_token": "1.0",
    **{f"line{number}": f"configuration {number}" for number in range(1, 7)},
}
"""Values that turn every query of the dashboards into plain PromQL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL query of a dashboard.

    Attributes:
        dashboard: Title of the dashboard.
        kind: Where the query is and how Grafana runs it.
        where: Title of the panel, or name of the variable or annotation.
        expr: PromQL with Grafana's macros; for a variable what is inside ``label_values`` or ``query_result``.
        label: For a variable: the label whose values it lists.
        legend: Legend format; empty if there is none.
    """

    dashboard: str
    kind: Literal["range", "instant", "annotation", "label_values", "query_result"]
    where: str
    expr: str
    label: str = ""
    legend: str = ""

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.where}"


CHOSEN: Final[Mapping[str, Mapping[str, str]]] = {
    "joulewatch / Node": {"host": ".+", "instance": ".+"},
    "joulewatch / LLM serving": {"first_token": "1.0"},
}
"""Values of variables for tests: the machines of the recorded run have different sensors, and each panel needs data."""


def load(name: str) -> dict[str, Any]:
    """Return the committed dashboard ``name`` (node, experiment)."""
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel except the rows, those in collapsed rows included."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def queries(board: Mapping[str, Any]) -> Iterator[Query]:
    """Yield every query of a dashboard: those of variables, annotations and panels."""
    title = board["title"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable_query(title, variable)
    for annotation in board.get("annotations", {}).get("list", ()):
        yield Query(dashboard=title, kind="annotation", where=annotation["name"], expr=annotation["expr"])
    for panel in panels(board):
        for target in panel["targets"]:
            yield Query(
                dashboard=title,
                kind="instant" if target["instant"] else "range",
                where=panel["title"],
                expr=target["expr"],
                legend=target.get("legendFormat", ""),
            )


def variable_query(title: str, variable: Mapping[str, Any]) -> Query:
    """Return the query of a variable of the dashboard ``title``."""
    where, definition = variable["name"], variable["definition"]
    if match := re.fullmatch(r"label_values\((.+), (\w+)\)", definition):
        return Query(dashboard=title, kind="label_values", where=where, expr=match[1], label=match[2])
    match = re.fullmatch(r"query_result\((.+)\)", definition)
    label = re.fullmatch(r'/(\w+)="\(\[\^"\]\+\)"/', variable["regex"])
    assert match is not None and label is not None, f"{title}: variable {where}: {definition}"
    return Query(dashboard=title, kind="query_result", where=where, expr=match[1], label=label[1])


def substitute(expr: str, values: Mapping[str, str]) -> str:
    """Replace Grafana's ``$name``, ``${name}`` and ``${name:format}``; a name without a value is a KeyError."""
    return re.sub(r"\$\{(\w+)(?::\w+)?\}|\$([A-Za-z_]\w*)", lambda match: values[match[1] or match[2]], expr)


def parse(expr: str) -> Expr:
    """Parse PromQL with Grafana's macros; ``$job`` and the like stay, because they are inside strings."""
    known = {**DURATIONS, **NUMBERS}
    return promql_parser.parse(re.sub(rf"\$({'|'.join(known)})\b", lambda match: known[match[1]], expr))


def nodes(expr: str) -> list[Any]:
    """Return all nodes of the syntax tree of ``expr``."""
    tree: list[Any] = []
    promql_parser.walk(parse(expr), tree.append)
    return tree


def selectors(expr: str) -> list[VectorSelector]:
    """Return all selectors of ``expr``, those with a range included."""
    return [node for node in nodes(expr) if isinstance(node, VectorSelector)]


def metrics(expr: str) -> dict[str, set[str]]:
    """Return the metric names in ``expr``, each with the labels that its selectors match on."""
    labels: dict[str, set[str]] = {}
    for selector in selectors(expr):
        labels.setdefault(selector.name or "", set()).update(matcher.name for matcher in selector.matchers.matchers)
    return labels


def rule_groups(name: str = "joulewatch.rules.yaml") -> list[dict[str, Any]]:
    """Return the groups of recording rules and alerts of a file."""
    path = FOLDER / "rules" / name
    groups: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return groups


LLM_RULES: Final = "joulewatch.llm.rules.yaml"


def with_recorded(known: Mapping[str, set[str]], *files: str) -> dict[str, set[str]]:
    """Return ``known``, the labels of each metric, with those of the recorded series; ``files``: further rules."""
    labels = dict(known)
    for group in [group for name in ("joulewatch.rules.yaml", *files) for group in rule_groups(name)]:
        for rule in group["rules"]:
            if "record" in rule:
                labels[rule["record"]] = result_labels(rule["expr"], labels) | set(rule.get("labels", ()))
    return labels


def llm_labels() -> dict[str, set[str]]:
    """Return the labels of the metrics of all LLM servers; those of Prometheus' targets are included."""
    target = {"cluster", "job", "instance", "host"}
    labels: dict[str, set[str]] = {}
    for server in llm_servers().values():
        of_server = target | {server.model or "model"}
        counters = (*server.output, *server.input, *server.cached, *server.requests)
        for name in filter(None, (*counters, server.running, server.kv_usage, server.prefill, server.decode)):
            labels[name] = of_server
        for name in filter(None, (server.first_token, server.inter_token)):
            labels[f"{name}_bucket"] = of_server | {"le"}
    return labels


def result_labels(expr: str, known: Mapping[str, set[str]]) -> set[str]:
    """Return the labels that every series of the result has.

    Args:
        expr: PromQL with Grafana's macros.
        known: The labels of each metric.

    Raises:
        ValueError: ``by`` or ``on`` names a label that its operand does not have.
    """
    return _labels(parse(expr), known) or set()


def _labels(node: Any, known: Mapping[str, set[str]]) -> set[str] | None:
    """Return the labels of the value of ``node``; None if it is a scalar or a string."""
    if isinstance(node, promql_parser.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, VectorSelector):
        return known[node.name or ""]
    if isinstance(node, promql_parser.ParenExpr | promql_parser.UnaryExpr | promql_parser.SubqueryExpr):
        return _labels(node.expr, known)
    if isinstance(node, Call):
        return _labels_of_call(node, known)
    if isinstance(node, AggregateExpr):
        return _labels_of_aggregation(node, known)
    if isinstance(node, BinaryExpr):
        return _labels_of_operation(node, known)
    return None


def _labels_of_call(call: Call, known: Mapping[str, set[str]]) -> set[str] | None:
    if call.func.return_type == promql_parser.ValueType.Scalar:
        return None
    labels: set[str] = set()
    for argument in call.args:
        labels |= _labels(argument, known) or set()
    return labels | {call.args[1].val} if call.func.name in {"label_replace", "label_join"} else labels


def _labels_of_aggregation(node: AggregateExpr, known: Mapping[str, set[str]]) -> set[str]:
    inner = _labels(node.expr, known) or set()
    if str(node.op) in {"topk", "bottomk"}:
        return inner
    if node.modifier is None:
        return set()
    labels = set(node.modifier.labels)
    if not labels <= inner:
        raise ValueError(f"{node.prettify()}: no label {labels - inner}")
    return labels if node.modifier.type == promql_parser.AggModifierType.By else inner - labels


def _labels_of_operation(node: BinaryExpr, known: Mapping[str, set[str]]) -> set[str] | None:
    left_labels, right_labels = _labels(node.lhs, known), _labels(node.rhs, known)
    if left_labels is None or right_labels is None:
        return left_labels if right_labels is None else right_labels
    matching = node.modifier.matching if node.modifier is not None else None
    if matching is not None and not set(matching.labels) <= left_labels & right_labels:
        raise ValueError(
            f"{node.prettify()}: no label {set(matching.labels) - (left_labels & right_labels)} on both sides"
        )
    if str(node.op) in {"and", "unless"}:
        return left_labels
    if matching is not None and str(node.op) != "or":
        if node.modifier.card != promql_parser.VectorMatchCardinality.ManyToOne:
            raise NotImplementedError(f"{node.prettify()}: labels of arithmetic with on or ignoring")
        added = set(node.modifier.group_labels or ())
        if not added <= right_labels:
            raise ValueError(f"{node.prettify()}: no label {added - right_labels} on the right side")
        return left_labels | added
    return left_labels & right_labels


def template_labels(text: str) -> set[str]:
    """Return the labels that ``{{label}}`` names in a legend."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
