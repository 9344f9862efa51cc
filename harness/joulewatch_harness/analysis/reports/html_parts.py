"""What the parts of the report share: the runs, the unit, sections, tables and notes."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from joulewatch_harness.analysis.reports.html_markup import Markup, tag, with_breaks
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.model import Estimate, RunResult
from joulewatch_harness.analysis.results.numbers import (
    energy_text,
    prefix_for,
)
from joulewatch_harness.analysis.results.timeline import PowerLine


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """An analyzed run, with the power over its time."""

    result: RunResult
    lines: tuple[PowerLine, ...] = ()

    @property
    def id(self) -> str:
        return self.result.record.header.run


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of all energies per inference on a page."""

    scale: float
    name: str

    @classmethod
    def of(cls, runs: Sequence[ReportedRun]) -> Unit:
        exponent, letter = prefix_for(
            group.total.gross.value for run in runs for group in run.result.groups if group.total.gross is not None
        )
        return cls(10.0**-exponent, f"{letter}J")

    def text(self, estimate: Estimate | None) -> str | None:
        return None if estimate is None else energy_text(estimate, self.scale)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a run on the page."""

    prefix: str
    """Of its ids."""
    first_line: int
    """Number of its first line in the figure."""
    share: float
    """Of the windows and steps on the page."""
    expanded: bool


def title_of(runs: Sequence[ReportedRun]) -> str:
    networks = dict.fromkeys(group.configuration.network for run in runs for group in run.result.groups)
    hardware = dict.fromkeys(filter(None, (run.result.hardware for run in runs)))
    names, machines = (
        f"{', '.join(list(texts)[:3])}{f' and {len(texts) - 3} more' if len(texts) > 3 else ''}"
        for texts in (networks, hardware)
    )
    return f"{names or runs[0].id}{f' on {machines}' if machines else ''}"


def utc(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def make_section(level: int, ident: str, name: str, content: Markup) -> Markup:
    # The parts of several runs have the same names, so they are not landmarks.
    return tag("section", tag(f"h{level}", name, id=ident), content, aria_labelledby=ident if level == 2 else None)


def make_details(name: str, *content: object, expanded: bool = False, class_: str | None = None) -> Markup:
    return tag("details", tag("summary", name), *content, open=True if expanded else None, class_=class_)


def make_notes(lines: Iterable[str]) -> Markup:
    """Return lines of the text report: indented ones are a list."""
    parts: list[Markup] = []
    entries: list[Markup] = []
    for line in [*lines, ""]:
        if line.startswith("  "):
            entries.append(tag("li", line.strip()))
            continue
        if entries:
            parts.append(tag("ul", *entries))
            entries = []
        if line:
            parts.append(tag("p", line))
    return tag("div", *parts, class_="notes") if parts else Markup("")


def make_table(caption: str, columns: Sequence[Column[Any]], rows: Sequence[Any], heading: Any = None) -> Markup:
    """Return a table that scrolls if it is too wide; rows with one ``heading(row)`` form a group below it."""
    head = tag(
        "tr", *(tag("th", with_breaks(one.name), scope="col", class_=None if one.text else "n") for one in columns)
    )
    parts: list[Markup] = []
    body: list[Markup] = []
    last: object = None
    for row in rows:
        if heading is not None and heading(row) != last:
            parts.append(tag("tbody", *body))
            last = heading(row)
            body = [tag("tr", tag("th", last, scope="rowgroup", colspan=len(columns), class_="group"))]
        cells = []
        for number, column in enumerate(columns):
            value = column.value(row)
            name, scope = ("th", "row") if number == 0 else ("td", None)
            cells.append(tag(name, "–" if value is None else value, scope=scope, class_=None if column.text else "n"))
        body.append(tag("tr", *cells))
    table = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", head), *filter(len, parts), tag("tbody", *body)
    )
    return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=caption)


def configurations_of(run: ReportedRun) -> list[str]:
    return list(dict.fromkeys(group.configuration.name for group in run.result.groups))
