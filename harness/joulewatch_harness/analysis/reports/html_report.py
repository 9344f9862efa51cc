"""One or several runs as a self-contained page: no script, nothing loaded, readable on paper and without colours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.html_figure import figure_section, predictions_section, side_by_side
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag
from joulewatch_harness.analysis.reports.html_parts import (
    Place,
    ReportedRun,
    Unit,
    configurations_of,
    make_section,
    title_of,
    utc,
)
from joulewatch_harness.analysis.reports.html_power import power_section
from joulewatch_harness.analysis.reports.html_provenance import (
    audit_section,
    citation_section,
    method_section,
    provenance_section,
)
from joulewatch_harness.analysis.reports.html_results import budgets_section, phases_section, results_section
from joulewatch_harness.analysis.results.lines import Line
from joulewatch_harness.analysis.results.model import Estimate, RunResult
from joulewatch_harness.analysis.results.numbers import (
    energy_text,
    warning_line,
)

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Blocks scripts and requests, whatever the text of a page contains."""


def render_html(runs: Sequence[ReportedRun], *, predictions: Sequence[Line] = (), expanded: bool = False) -> str:
    """Return the page.

    Args:
        runs: One run, or several to show side by side.
        predictions: Lines from ``predicted_lines``, for the figure and a table; no other part of the page has them.
        expanded: All parts that a reader can open are open, for paper.
    """
    unit = Unit.of(runs)
    title = title_of(runs)
    several = len(runs) > 1
    sections = [
        ("figure", "Energy and throughput", figure_section(runs, predictions, unit)),
        *([("compared", "Side by side", side_by_side(runs, unit))] if several else []),
        *([("predicted", "Predictions", predictions_section(predictions, unit))] if predictions else []),
    ]
    body = [make_section(2, *section) for section in sections]
    contents = [(ident, name) for ident, name, _ in sections]
    first_line = 0
    for number, run in enumerate(runs):
        place = Place(f"r{number}-" if several else "", first_line, 1 / len(runs), expanded)
        parts = _run_sections(run, unit, place)
        first_line += len(configurations_of(run))
        if several:
            name = f"Run {run.id}"
            inside = join(tag("p", _when(run.result), class_="sub"), *(make_section(3, *part) for part in parts))
            body.append(make_section(2, f"r{number}", name, inside))
            contents.append((f"r{number}", name))
        else:
            body += [make_section(2, *part) for part in parts]
            contents += [(ident, name) for ident, name, _ in parts]
    for ident, name, content in (
        ("method", "Method", method_section()),
        ("cite", "How to cite", citation_section(runs)),
    ):
        body.append(make_section(2, ident, name, content))
        contents.append((ident, name))
    methods = {method for run in runs for method in run.result.methods}
    warning = warning_line(methods | {method for line in predictions for method in line.methods}).strip("! ")
    head = tag(
        "header",
        tag("h1", title),
        tag("p", _when(runs[0].result) if not several else f"{len(runs)} runs", class_="sub"),
        tag("p", warning, class_="warning") if warning else None,
        tag("p", summary(runs, unit), class_="summary"),
    )
    links = [tag("li", tag("a", name, href=f"#{ident}")) for ident, name in contents]
    page = tag(
        "body",
        head,
        tag("nav", tag("ul", *links), aria_label="Contents"),
        tag("main", *body),
        tag("footer", tag("p", f"Written by joulewatch {__version__}.")),
    )
    css = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    meta = "".join(
        f"<meta {attributes}>"
        for attributes in (
            'charset="utf-8"',
            'name="viewport" content="width=device-width, initial-scale=1"',
            'name="color-scheme" content="light dark"',
            f'http-equiv="Content-Security-Policy" content="{_POLICY}"',
        )
    )
    document = tag("head", Markup(meta), tag("title", f"{title} – joulewatch"), tag("style", Markup(css)))
    return f"<!doctype html>\n{tag('html', document, page, lang='en')}\n"


def summary(runs: Sequence[ReportedRun], unit: Unit | None = None) -> Markup:
    """Return one sentence: the lowest energy per inference, with its uncertainty."""
    unit = unit or Unit.of(runs)
    groups = [
        (group.total.gross, group, run.result) for run in runs for group in run.result.groups if group.total.gross
    ]
    if not groups:
        reasons = dict.fromkeys(group.total.missing for run in runs for group in run.result.groups)
        return join("There is no energy per inference: ", "; ".join(reasons) or "no network was measured", ".")
    gross, group, result = min(groups, key=lambda one: one[0].value)
    words = [f"{energy_text(gross, unit.scale)} {unit.name}", " per inference", *_coverage(gross)]
    where = f" on {result.hardware}" if result.hardware else ""
    text = f" is the energy of {group.configuration.name} at batch size {group.batch_size}{where}"
    least = f", the lowest of {len(groups)} results" if len(groups) > 1 else ""
    kinds = {"estimated": "estimated by a power model", "emulated": "from an emulated machine"}
    doubts = [words for kind, words in kinds.items() if kind in group.total.methods]
    doubt = f"; it is {' and '.join(doubts)}, not measured" if doubts else ""
    return join(tag("strong", *words[:2]), *words[2:], f"{text}{least}{doubt}.")


def _coverage(estimate: Estimate) -> list[str]:
    return [" (repeatability unknown)" if estimate.expanded is None else " (95 % coverage)"]


def _when(result: RunResult) -> str:
    header, end = result.record.header, result.record.end
    status = end.status if end is not None else "not ended"
    took = f", {end.ended_at_s - header.started_at_s:.0f} s" if end is not None else ""
    return f"Run {header.run}, {utc(header.started_at_s)}{took}, {status}"


def _run_sections(run: ReportedRun, unit: Unit, place: Place) -> list[tuple[str, str, Markup]]:
    """Return the parts of one run: id, name, content."""
    result, expanded = run.result, place.expanded
    sections = [
        ("results", "Results", results_section(result, unit)),
        ("power", "Power over time", power_section(run, place)),
        ("phases", "Phases", phases_section(result)),
        ("budget", "Uncertainty budget", budgets_section(result, unit, expanded=expanded)),
        ("audit", "Audit", audit_section(result.findings, expanded=expanded)),
        ("provenance", "Provenance", provenance_section(result, expanded=expanded)),
    ]
    return [(f"{place.prefix}{ident}", name, content) for ident, name, content in sections if content]
