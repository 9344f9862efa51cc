"""The dashboards and rules as tests see them: their queries, and the names a query uses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "dashboards"
NAMES: Final = ("node", "experiment")

_WORDS: Final = frozenset(
    (
        "and",
        "or",
        "unless",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "by",
        "without",
        "bool",
        "offset",
        "inf",
        "nan",
    )
)
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\s*\{([^}]*)\}")
_LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")
_NAME = re.compile(r"(?<![\w:$.])([a-zA-Z_:][a-zA-Z0-9_:]*)\b(?!\s*\()")


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query of a dashboard, wherever it stands."""

    dashboard: str
    kind: Literal["range", "instant", "annotation", "variable"]
    where: str
    """Title of the panel, name of the variable or of the annotation."""
    expr: str
    """PromQL with Grafana's macros; of a variable, the selector inside ``label_values``."""
    label: str = ""
    """Of a variable: the label whose values are wanted."""
    legend: str = ""
    enabled: bool = True

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.where}"


def load(name: str) -> dict[str, Any]:
    """The committed dashboard ``name`` (node, experiment)."""
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel but the rows."""
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield panel


def queries(board: Mapping[str, Any]) -> Iterator[Query]:
    """Every query of a dashboard: panels, variables, annotations."""
    title = board["title"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert match is not None, f"{title}: variable {variable['name']}: {variable['definition']}"
            yield Query(title, "variable", variable["name"], match[1], label=match[2])
    for item in board.get("annotations", {}).get("list", ()):
        yield Query(title, "annotation", item["name"], item["expr"], enabled=item["enable"])
    for panel in panels(board):
        for target in panel["targets"]:
            kind: Literal["instant", "range"] = "instant" if target["instant"] else "range"
            yield Query(title, kind, panel["title"], target["expr"], legend=target.get("legendFormat", ""))


def substitute(expr: str, values: Mapping[str, str]) -> str:
    """Replace Grafana's ``$name`` and ``${name}``; a name without a value is a KeyError."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], expr)


MACROS: Final[Mapping[str, str]] = {
    "__rate_interval": "1m",
    "__interval": "15s",
    "__range": "1h",
    "job": ".+",
    "instance": ".+",
    "run": ".+",
    "configuration": ".+",
}
"""Values that make every query of the dashboards plain PromQL."""


def metrics(expr: str) -> dict[str, set[str]]:
    """Metric names in a PromQL expression, each with the labels that its selectors match."""
    bare = _RANGE.sub("", _STRING.sub('""', expr))
    found: dict[str, set[str]] = {}
    for match in _SELECTOR.finditer(bare):
        found.setdefault(match[1] or "", set()).update(_LABEL.findall(match[2]))
    rest = _GROUPING.sub(" ", _SELECTOR.sub(lambda match: match[1] or "", bare))
    for name in _NAME.findall(rest):
        if name.lower() not in _WORDS:
            found.setdefault(name, set())
    return found


def grouped_labels(expr: str) -> set[str]:
    """Labels named by ``by``, ``on`` and the like."""
    bare = _STRING.sub('""', expr)
    return {label.strip() for group in _GROUPING.findall(bare) for label in group.split(",") if label.strip()}


def template_labels(text: str) -> set[str]:
    """Labels named by ``{{label}}`` in a legend."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
