"""Findings, provenance, method and citation in the report."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.analysis.reports import to_text
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag, with_code
from joulewatch_harness.analysis.reports.html_parts import (
    ReportedRun,
    make_details,
    make_notes,
    make_table,
    title_of,
    utc,
)
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.audit.findings import FIXES, REASONS, Finding
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.records import encode

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


def audit_section(findings: Sequence[Finding], *, expanded: bool) -> Markup:
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
            more = make_details(f"All {len(texts)} findings", tag("ul", *items), expanded=expanded)
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


def provenance_section(result: RunResult, *, expanded: bool) -> Markup:
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
        Column[Any]("accuracy", lambda one: to_text.accuracy_text(one) or "unknown", text=True),
    ]
    notes = [tag("li", f"{utc(note.at_s)}: {note.text}") for note in result.record.notes]
    plan = json.dumps(encode(header.plan), indent=2, ensure_ascii=False)
    return join(
        make_notes(to_text.loaded_lines(result)),
        make_table("Sensors", sensors, result.sensors) if result.sensors else tag("p", "No energy sensor."),
        tag("dl", *rows),
        make_details(f"Notes of the run ({len(notes)})", tag("ul", *notes), expanded=expanded) if notes else None,
        make_details("Plan", tag("pre", plan, tabindex=0, role="group", aria_label="Plan"), expanded=expanded),
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


def method_section() -> Markup:
    return join(*(tag("p", text) for text in _METHOD_NOTE))


def citation_section(runs: Sequence[ReportedRun]) -> Markup:
    texts = []
    for run in runs:
        header = run.result.record.header
        version = header.provenance_text("versions", "joulewatch")
        started = datetime.datetime.fromtimestamp(header.started_at_s, datetime.UTC)
        text = f"{title_of([run])}. Run {run.id} of {started:%Y-%m-%d}, measured with joulewatch {version}".rstrip()
        energies = sorted(run.result.methods)
        method = f"; method of the energies: {', '.join(energies)}" if energies else ""
        texts.append(tag("li", f"{text}{method}; plan SHA-256 {header.plan_sha256}."))
    hint = "Give the result with its uncertainty, and the batch size, precision and hardware that it holds for:"
    return join(tag("p", hint), tag("ul", *texts, class_="cite"))
