"""One or several runs as a self-contained page: no script, nothing loaded, readable on paper and without colours."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports import html_charts as charts
from joulewatch_harness.analysis.reports import to_text
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag, with_breaks, with_code
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.audit.findings import FIXES, REASONS, Finding
from joulewatch_harness.analysis.results.model import OTHER_PHASE, EnergyResult, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.numbers import (
    UNKNOWN_ACCURACY,
    UNKNOWN_ACCURACY_TEXT,
    energy_text,
    plain,
    prefix_for,
    warning_line,
    with_uncertainty,
)
from joulewatch_harness.analysis.results.phases import EXECUTE_PHASE, has_phases
from joulewatch_harness.analysis.results.timeline import PowerLine
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.plan.scenario import IDLE_PHASE
from joulewatch_harness.records import Window, encode

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Blocks scripts and requests, whatever the text of a page contains."""
_MOST_WINDOWS: Final = 1200
_MOST_STEPS: Final = 24_000
"""Windows on a page, and steps of its power lines, all runs together: it stays below 2 MB."""
_MOST_TEXTS: Final = 40
"""Findings of one reason that are listed."""
_SEVERITY_CLASSES: Final = {"error": "error", "warning": "caution"}
_METHOD_NOTE: Final = (
    "The energy of a window is the increase of each energy counter between its two edges. The counters are read from "
    "the exporter directly, just before and just after the window. Without such a reading, the counter is interpolated "
    "between the stored samples around the edge.",
    "The total is the sum over device sensors (processors, memory, accelerators), which do not overlap. Whole servers "
    "and parts of devices are never added to it. Energy per inference is the energy of a window divided by its "
    "inferences; results are means over rounds. Net energy is the total minus idle power × time, where idle power was "
    "measured before and after the rounds.",
    "Uncertainties are expanded to 95 % coverage. They follow the Guide to the expression of uncertainty in "
    "measurement (JCGM 100:2008): U² = max(t · s/√n, 1.96 · u_random)² + (1.96 · u_systematic)². The budgets list the "
    "components.",
    "A window without a valid number is excluded, with its reason, and never counted as zero.",
)


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """An analyzed run, with the power over its time."""

    result: RunResult
    lines: tuple[PowerLine, ...] = ()

    @property
    def id(self) -> str:
        return self.result.record.header.run


@dataclass(frozen=True, slots=True)
class _Unit:
    """The unit of all energies per inference on a page."""

    scale: float
    name: str

    @classmethod
    def of(cls, runs: Sequence[ReportedRun]) -> _Unit:
        exponent, letter = prefix_for(
            group.total.gross.value for run in runs for group in run.result.groups if group.total.gross is not None
        )
        return cls(10.0**-exponent, f"{letter}J")

    def text(self, estimate: Estimate | None) -> str | None:
        return None if estimate is None else energy_text(estimate, self.scale)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a run on the page."""

    prefix: str
    """Of its ids."""
    first_line: int
    """Number of its first line in the figure."""
    share: float
    """Of the windows and steps on the page."""
    expanded: bool


def render_html(runs: Sequence[ReportedRun], *, expanded: bool = False) -> str:
    """Return the page.

    Args:
        runs: One run, or several to show side by side.
        expanded: All parts that a reader can open are open, for paper.
    """
    unit = _Unit.of(runs)
    title = _title(runs)
    several = len(runs) > 1
    sections = [
        ("figure", "Energy and throughput", _figure(runs, unit)),
        *([("compared", "Side by side", _side_by_side(runs, unit))] if several else []),
    ]
    body = [_section(2, *section) for section in sections]
    contents = [(ident, name) for ident, name, _ in sections]
    first_line = 0
    for number, run in enumerate(runs):
        place = _Place(f"r{number}-" if several else "", first_line, 1 / len(runs), expanded)
        parts = _run_sections(run, unit, place)
        first_line += len(_configurations(run))
        if several:
            name = f"Run {run.id}"
            inside = join(tag("p", _when(run.result), class_="sub"), *(_section(3, *part) for part in parts))
            body.append(_section(2, f"r{number}", name, inside))
            contents.append((f"r{number}", name))
        else:
            body += [_section(2, *part) for part in parts]
            contents += [(ident, name) for ident, name, _ in parts]
    for ident, name, content in (("method", "Method", _method()), ("cite", "How to cite", _citation(runs))):
        body.append(_section(2, ident, name, content))
        contents.append((ident, name))
    warning = warning_line({method for run in runs for method in run.result.methods}).strip("! ")
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


def summary(runs: Sequence[ReportedRun], unit: _Unit | None = None) -> Markup:
    """Return one sentence: the lowest energy per inference, with its uncertainty."""
    unit = unit or _Unit.of(runs)
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


# Frame


def _title(runs: Sequence[ReportedRun]) -> str:
    networks = dict.fromkeys(group.configuration.network for run in runs for group in run.result.groups)
    hardware = dict.fromkeys(filter(None, (run.result.hardware for run in runs)))
    names, machines = (
        f"{', '.join(list(texts)[:3])}{f' and {len(texts) - 3} more' if len(texts) > 3 else ''}"
        for texts in (networks, hardware)
    )
    return f"{names or runs[0].id}{f' on {machines}' if machines else ''}"


def _when(result: RunResult) -> str:
    header, end = result.record.header, result.record.end
    status = end.status if end is not None else "not ended"
    took = f", {end.ended_at_s - header.started_at_s:.0f} s" if end is not None else ""
    return f"Run {header.run}, {_utc(header.started_at_s)}{took}, {status}"


def _utc(at_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _section(level: int, ident: str, name: str, content: Markup) -> Markup:
    # The parts of several runs have the same names, so they are not landmarks.
    return tag("section", tag(f"h{level}", name, id=ident), content, aria_labelledby=ident if level == 2 else None)


def _details(name: str, *content: object, expanded: bool = False, class_: str | None = None) -> Markup:
    return tag("details", tag("summary", name), *content, open=True if expanded else None, class_=class_)


def _notes(lines: Iterable[str]) -> Markup:
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


def _table(caption: str, columns: Sequence[Column[Any]], rows: Sequence[Any], heading: Any = None) -> Markup:
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


# Figure


def _configurations(run: ReportedRun) -> list[str]:
    return list(dict.fromkeys(group.configuration.name for group in run.result.groups))


def _labels(runs: Sequence[ReportedRun]) -> Iterator[tuple[str, list[GroupResult]]]:
    """Yield the lines of the figure: a name that is unique on the page, and the results."""
    lines = [
        (name, run, [group for group in run.result.groups if group.configuration.name == name])
        for run in runs
        for name in _configurations(run)
    ]
    machines = {run.result.hardware for run in runs}
    names = [f"{name} on {run.result.hardware}" if len(machines) > 1 else name for name, run, _ in lines]
    for (_, run, groups), name in zip(lines, names, strict=True):
        doubt = sorted({kind for group in groups for kind in group.total.methods} & {"estimated", "emulated"})
        text = f"{name}, run {run.id}" if names.count(name) > 1 else name
        yield f"{text} ({', '.join(doubt)})" if doubt else text, groups


def _figure(runs: Sequence[ReportedRun], unit: _Unit) -> Markup:
    labels = list(_labels(runs))

    def points(groups: Sequence[GroupResult], *, energy: bool) -> Iterator[charts.Point]:
        for group in groups:
            estimate = group.total.gross if energy else group.throughput
            if estimate is not None:
                scale, name = (unit.scale, f"{unit.name} per inference") if energy else (1.0, "inferences/s")
                text = (
                    f"{group.configuration.name}, batch {group.batch_size}: {with_uncertainty(estimate, scale)} {name}"
                )
                yield charts.Point(group.batch_size, estimate.value * scale, (estimate.expanded or 0.0) * scale, text)

    pictures = []
    for ident, name, energy in (
        ("energy", f"Energy per inference [{unit.name}]", True),
        ("throughput", "Throughput [inferences/s]", False),
    ):
        lines = [charts.Line(label, tuple(points(groups, energy=energy))) for label, groups in labels]
        description = f"{name} over batch size, one line per configuration: {'; '.join(label for label, _ in labels)}."
        pictures.append(charts.log_chart(f"chart-{ident}", name, description, lines))
    legend = [tag("li", charts.marker(number), label) for number, (label, _) in enumerate(labels)]
    return join(
        tag("div", *pictures, class_="charts"),
        tag("ul", *legend, class_="legend"),
        tag("p", "Sum over device sensors. Error bars: expanded uncertainty, 95 % coverage.", class_="notes"),
    )


# Tables


def _energy_cell(unit: _Unit, result: EnergyResult | None) -> str | None:
    if result is None:
        return None
    return unit.text(result.gross) or ("missing" if result.missing else None)


def _results(result: RunResult, unit: _Unit) -> Markup:
    names = list(dict.fromkeys(component.name for group in result.groups for component in group.components))
    # A single component is the total.
    components = names if len(names) > 1 else []
    one_exporter = len({record.exporter for record in result.sensors}) == 1
    primary = {str(SensorId.of(record)) for record in result.sensors if record.primary}
    others = list(dict.fromkeys(energy.name for group in result.groups for energy in (*group.nodes, *group.parts)))

    def named(name: str, energies: str) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str | None:
            found = group.components if energies == "components" else (*group.nodes, *group.parts)
            return _energy_cell(unit, {energy.name: energy for energy in found}.get(name))

        shown = "/".join(name.split("/")[-2:]) if one_exporter else name
        return Column(f"{shown} (primary)" if name in primary else shown, cell)

    def per_joule(group: GroupResult) -> str | None:
        value = group.total.inferences_per_joule
        return None if value is None else plain(value.value, value.expanded or 0.0)

    # The most important columns first: a phone shows about four.
    columns: list[Column[GroupResult]] = [
        Column("batch", lambda group: group.batch_size),
        Column("total", lambda group: _energy_cell(unit, group.total)),
        Column("net", lambda group: unit.text(group.total.net)),
        Column("inf/s", lambda group: None if group.throughput is None else with_uncertainty(group.throughput)),
        *(named(name, "components") for name in components),
        Column("inf/J", per_joule),
        Column("p50/p99 ms", to_text.milliseconds_cell),
        Column("rounds", to_text.rounds_cell),
    ]

    def heading(group: GroupResult) -> str:
        return group.configuration.name

    caption = f"Energies in {unit.name} per inference; ±: 95 % coverage; p50/p99: latency of a batch"
    parts = [_table(caption, columns, result.groups, heading)]
    if UNKNOWN_ACCURACY in parts[0]:
        parts.append(tag("p", f"{UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}.", class_="notes"))
    notes = [*to_text.single_round_lines(result), *to_text.idle_lines(result), *to_text.rounds_lines(result)]
    parts.append(_notes([*notes, *to_text.setup_lines(result), *to_text.missing_lines(result)]))
    parts += _counts(result)
    if others:
        caption = f"Whole servers and parts of devices, {unit.name} per inference (never added to the total)"
        parts.append(_table(caption, [columns[0], *(named(name, "others") for name in others)], result.groups, heading))
    return join(*parts)


def _counts(result: RunResult) -> Iterator[Markup]:
    """Yield a table per unit of work other than the inference, such as output tokens."""
    for name in dict.fromkeys(count.name for group in result.groups for count in group.counts):
        rows = [(group, count) for group in result.groups for count in group.counts if count.name == name]
        exponent, letter = prefix_for(count.gross.value for _, count in rows if count.gross is not None)
        caption = f"{name.replace('_', ' ')}: total and net in {letter}J each; per inf: per inference"
        yield _table(caption, to_text.count_columns(10.0**-exponent), rows, lambda row: row[0].configuration.name)


def _side_by_side(runs: Sequence[ReportedRun], unit: _Unit) -> Markup:
    """Return energy and throughput over batch size, with one column per line of the figure."""
    lines = [(label, {group.batch_size: group for group in groups}) for label, groups in _labels(runs)]
    sizes = sorted({size for _, groups in lines for size in groups})

    def column(label: str, groups: Mapping[int, GroupResult], *, energy: bool) -> Column[int]:
        def cell(size: int) -> str | None:
            group = groups.get(size)
            if group is None:
                return None
            if energy:
                return _energy_cell(unit, group.total)
            return None if group.throughput is None else with_uncertainty(group.throughput)

        return Column(label, cell)

    parts = []
    for caption, energy in (
        (f"Energy per inference over all device sensors, {unit.name}; ±: 95 % coverage", True),
        ("Throughput, inferences per second", False),
    ):
        columns = [column(label, groups, energy=energy) for label, groups in lines]
        parts.append(_table(caption, [Column("batch", lambda size: size), *columns], sizes))
    if UNKNOWN_ACCURACY in parts[0]:
        parts.append(tag("p", f"{UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}.", class_="notes"))
    text = "`joulewatch compare` reports which differences are significant, and which errors cancel in them."
    return join(*parts, tag("p", with_code(text), class_="notes"))


def _run_sections(run: ReportedRun, unit: _Unit, place: _Place) -> list[tuple[str, str, Markup]]:
    """Return the parts of one run: id, name, content."""
    result, expanded = run.result, place.expanded
    sections = [
        ("results", "Results", _results(result, unit)),
        ("power", "Power over time", _power(run, place)),
        ("phases", "Phases", _phases(result)),
        ("budget", "Uncertainty budget", _budgets(result, unit, expanded=expanded)),
        ("audit", "Audit", _audit(result.findings, expanded=expanded)),
        ("provenance", "Provenance", _provenance(result, expanded=expanded)),
    ]
    return [(f"{place.prefix}{ident}", name, content) for ident, name, content in sections if content]


# Power


def _power(run: ReportedRun, place: _Place) -> Markup:
    record = run.result.record
    t0_s = record.header.started_at_s
    ordered = sorted((one for one in record.windows if one.duration_s > 0), key=lambda one: one.start_s)
    windows = ordered[: int(_MOST_WINDOWS * place.share)]
    colours = {name: charts.colour(place.first_line + number) for number, name in enumerate(_configurations(run))}
    components = list(dict.fromkeys(name for watts in run.result.powers.values() for name in watts))
    names = [*components, *(line.name for line in run.lines if line.name not in components)]
    excluded = {one.window: one.text for group in run.result.groups for one in group.excluded}
    bands = []
    for window in windows:
        watts = run.result.powers.get(window.index, {})
        powers = "; ".join(f"{name} {plain(watts[name])} W" for name in components if name in watts)
        start_s = window.start_s - t0_s
        band = charts.Band(
            start_s=start_s,
            end_s=start_s + window.duration_s,
            colour=_band_colour(window, colours),
            label=f"{window.batch_size}" if window.kind == "measure" else window.kind,
            text=f"window {window.index}: {_window_text(window)}; {powers or 'power unknown'}",
            watts=tuple(watts.get(name, math.nan) for name in components),
        )
        bands.append(band)
    if not bands:
        return tag("p", "The run has no window.")
    legend = [tag("li", charts.swatch(colour), name) for name, colour in colours.items()]
    legend += [tag("li", charts.dash_sample(number), name) for number, name in enumerate(names)]
    text = (
        "Bands are windows, labelled with their batch size or kind; vertical lines are their edges. Thick lines are "
        "the mean power that the results use; thin lines are samples. Times are seconds since the start of the run."
    )
    if not run.lines:
        text += " There are no samples: the powers are from the readings at the edges."
    if len(ordered) > len(windows):
        text += f" Only the first {len(windows)} of {len(ordered)} windows are shown."
    columns: list[Column[Window]] = [
        Column("window", lambda window: window.index),
        Column("kind", lambda window: window.kind, text=True),
        Column("configuration", lambda window: window.configuration, text=True),
        Column("batch", lambda window: window.batch_size or None),
        Column("round", lambda window: window.repeat + 1 if window.kind == "measure" else None),
        Column("start s", lambda window: f"{window.start_s - t0_s:.2f}"),
        Column("length s", lambda window: f"{window.duration_s:.3f}"),
        *(_watts_column(run.result.powers, name) for name in components),
        Column(
            "notes",
            lambda window: ", ".join(filter(None, (*window.flags, excluded.get(window.index, "")))),
            text=True,
        ),
    ]
    return join(
        tag("p", text, class_="notes"),
        tag("ul", *legend, class_="legend"),
        charts.timeline(
            f"{place.prefix}timeline", bands, run.lines, names, t0_s, most_steps=int(_MOST_STEPS * place.share)
        ),
        # On paper this is too long; the strips show every window.
        _details(
            f"All {len(windows)} windows", _table("Windows with their mean power", columns, windows), class_="screen"
        ),
    )


def _watts_column(powers: Mapping[int, Mapping[str, float]], name: str) -> Column[Window]:
    def cell(window: Window) -> str | None:
        watts = powers.get(window.index, {}).get(name)
        return None if watts is None else plain(watts)

    return Column(f"{name} W", cell)


def _band_colour(window: Window, colours: Mapping[str, str]) -> str:
    return colours.get(window.configuration, "plain") if window.kind in ("measure", "phase") else "plain"


def _window_text(window: Window) -> str:
    parts = [window.kind, window.configuration, f"batch {window.batch_size}" if window.batch_size else ""]
    if window.kind == "measure":
        parts.append(f"round {window.repeat + 1}")
    return ", ".join(filter(None, (*parts, *window.flags)))


# Phases, budgets


def _phases(result: RunResult) -> Markup:
    """Return the shares of the time, for configurations whose batches have phases other than the execution."""
    parts = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups if has_phases(group)):
        groups = [group for group in result.groups if group.configuration.name == name and group.phases]
        phases = list(dict.fromkeys(phase.name for group in groups for phase in group.phases))
        # The execution is first, so that its shares can be compared.
        phases.sort(key=lambda phase: phase != EXECUTE_PHASE)
        spare = [one for one in phases if one not in (EXECUTE_PHASE, OTHER_PHASE, IDLE_PHASE)]
        colours = {**{one: charts.colour(number + 3) for number, one in enumerate(spare)}, EXECUTE_PHASE: "s2"}

        columns: list[Column[GroupResult]] = [
            Column("batch", lambda group: group.batch_size),
            _share_bar(phases, colours),
            *map(_share, phases),
        ]
        legend = [tag("li", charts.swatch(colours.get(one, "plain")), one) for one in phases]
        parts += [
            _table(f"{name}: share of the time per phase, %", columns, groups),
            tag("ul", *legend, class_="legend"),
        ]
    if parts:
        parts.append(tag("p", "Phases have no energy: they are shorter than a sensor's refresh.", class_="notes"))
    return join(*parts)


def _share(phase: str) -> Column[GroupResult]:
    def cell(group: GroupResult) -> str | None:
        shares = _shares(group)
        return f"{100 * shares[phase]:.1f}" if phase in shares else None

    return Column(phase, cell)


def _share_bar(phases: Sequence[str], colours: Mapping[str, str]) -> Column[GroupResult]:
    def bar(group: GroupResult) -> Markup:
        shares = _shares(group)
        return charts.share_bar((colours.get(phase, "plain"), shares[phase]) for phase in phases if phase in shares)

    return Column("share", bar, text=True)


def _shares(group: GroupResult) -> dict[str, float]:
    return {phase.name: phase.share.value for phase in group.phases}


def _budgets(result: RunResult, unit: _Unit, *, expanded: bool) -> Markup:
    parts = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups):
        tables = []
        for group in result.groups:
            gross = group.total.gross
            if group.configuration.name == name and gross is not None:
                dof = "many" if gross.dof > 1000 else f"{gross.dof:.3g}"
                factor = "" if gross.expanded is None else f", k = {gross.factor:.3g}, {dof} degrees of freedom"
                caption = f"Batch {group.batch_size}: {energy_text(gross, unit.scale)} {unit.name}{factor}"
                rows = sorted(gross.budget, key=lambda line: -line.standard)
                columns = to_text.budget_columns(gross.standard**2, unit.scale, unit.name)
                tables.append(_table(caption, columns, rows))
        if tables:
            parts.append(_details(name, *tables, expanded=expanded))
    if not parts:
        return Markup("")
    text = "Components of the uncertainty of the total. u: standard uncertainty; share: of the variance of the mean."
    return join(tag("p", text, class_="notes"), *parts)


# Audit, provenance, method, citation


def _audit(findings: Sequence[Finding], *, expanded: bool) -> Markup:
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for severity in ("error", "warning", "info"):
        for finding in findings:
            if finding.severity == severity:
                grouped.setdefault((severity, finding.reason), []).append(finding)
    if not grouped:
        return tag("p", "No findings.")
    entries = []
    for (severity, reason), members in grouped.items():
        texts = [_finding_text(finding) for finding in members]
        more = None
        if len(texts) > 1:
            rest = len(texts) - _MOST_TEXTS
            items = [tag("li", text) for text in texts[:_MOST_TEXTS]]
            items += [tag("li", f"and {rest} more")] if rest > 0 else []
            more = _details(f"All {len(texts)} findings", tag("ul", *items), expanded=expanded)
        meaning = REASONS.get(reason, "")
        entries.append(
            tag(
                "li",
                tag("p", tag("strong", severity), " ", tag("code", reason), f": {meaning}." if meaning else ""),
                tag("p", texts[0]) if more is None else more,
                tag("p", tag("em", "Fix: "), with_code(FIXES[reason]), ".") if reason in FIXES else None,
                class_=_SEVERITY_CLASSES.get(severity),
            )
        )
    return tag("ul", *entries, class_="findings")


def _finding_text(finding: Finding) -> str:
    return finding.text if finding.window is None else f"window {finding.window}: {finding.text}"


def _provenance(result: RunResult, *, expanded: bool) -> Markup:
    header = result.record.header
    facts = [
        ("run", header.run),
        ("hardware", result.hardware),
        ("samples", result.source or "the edges of the journal only"),
        ("command", " ".join(header.command)),
        ("plan SHA-256", header.plan_sha256),
        *(
            (f"exporter {exporter.name}", " ".join(filter(None, (exporter.nodename, exporter.version))))
            for exporter in header.exporters
        ),
        *_flat("", header.provenance),
        *(
            (f"SHA-256 of {configuration.name}", configuration.model_sha256)
            for configuration in result.record.configurations
        ),
    ]
    rows = [part for name, value in facts if value for part in (tag("dt", name), tag("dd", value))]
    sensors = [
        Column[Any]("sensor", lambda one: f"{one.device}/{one.domain}{' (primary)' if one.primary else ''}", text=True),
        Column[Any]("scope", lambda one: one.scope, text=True),
        Column[Any]("collector", lambda one: f"{one.collector} on {one.exporter}", text=True),
        Column[Any]("method", lambda one: to_text.METHOD_TEXTS.get(one.method, one.method), text=True),
        Column[Any]("model", lambda one: one.model, text=True),
        Column[Any](
            "accuracy", lambda one: "unknown" if one.accuracy is None else to_text.accuracy_text(one), text=True
        ),
    ]
    notes = [tag("li", f"{_utc(note.at_s)}: {note.text}") for note in result.record.notes]
    plan = json.dumps(encode(header.plan), indent=2, ensure_ascii=False)
    return join(
        _notes(to_text.loaded_lines(result)),
        _table("Sensors", sensors, result.sensors) if result.sensors else tag("p", "No energy sensor."),
        tag("dl", *rows),
        _details(f"Notes of the run ({len(notes)})", tag("ul", *notes), expanded=expanded) if notes else None,
        _details("Plan", tag("pre", plan, tabindex=0, role="group", aria_label="Plan"), expanded=expanded),
    )


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the facts of nested provenance: ``cpu model`` and its text."""
    for key, value in values.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            yield from _flat(name, value)
        elif isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value):
                yield from _flat(f"{name} {number}", one if isinstance(one, Mapping) else {"": one})
        elif value not in (None, ""):
            yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _method() -> Markup:
    return join(*(tag("p", text) for text in _METHOD_NOTE))


def _citation(runs: Sequence[ReportedRun]) -> Markup:
    texts = []
    for run in runs:
        header = run.result.record.header
        version = header.provenance_text("versions", "joulewatch")
        started = datetime.datetime.fromtimestamp(header.started_at_s, datetime.UTC)
        text = f"{_title([run])}. Run {run.id} of {started:%Y-%m-%d}, measured with joulewatch {version}".rstrip()
        energies = sorted(run.result.methods)
        method = f"; method of the energies: {', '.join(energies)}" if energies else ""
        texts.append(tag("li", f"{text}{method}; plan SHA-256 {header.plan_sha256}."))
    hint = "Give the result with its uncertainty, and the batch size, precision and hardware that it holds for:"
    return join(tag("p", hint), tag("ul", *texts, class_="cite"))
