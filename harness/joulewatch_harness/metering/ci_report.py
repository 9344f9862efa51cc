"""The report of ``joulewatch ci``: Markdown for a pull request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.analysis.results import numbers
from joulewatch_harness.analysis.results.compare import Comparison, Row
from joulewatch_harness.analysis.results.gate import Check, sentence
from joulewatch_harness.analysis.results.model import Estimate
from joulewatch_harness.analysis.results.stored_results import GROSS

_TITLES: Final = {
    "passed": "not above the limit",
    "exceeded": "**above the limit**",
    "undecided": "undecided",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Two revisions that were measured."""

    command: Sequence[str]
    commits: Mapping[str, str]
    """``base`` and ``head`` -> commit."""
    rounds: int
    inferences: int
    run: str
    comparison: Comparison
    check: Check


def markdown(report: Report) -> str:
    """Return the report."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    (pair,) = report.comparison.pairs
    base, head = (f"{name} {code(report.commits[name][:10])}" for name in ("base", "head"))
    per = "inference" if report.inferences > 1 else "execution"
    yield f"### Energy per {per}: {_TITLES[report.check.outcome]}"
    yield ""
    yield code(shlex.join(report.command))
    yield ""
    yield f"| | {base} | {head} | head / base | |"
    yield "| --- | --- | --- | --- | --- |"
    for row in pair.rows:
        if row.kind != "latency" and row.basis in ("", GROSS):
            name = f"{per}s per second" if row.kind == "throughput" else row.name
            yield f"| {name} | {_value(row, row.a)} | {_value(row, row.b)} | {_ratio(row)} | {row.verdict} |"
    yield ""
    yield _escaped(sentence(report.check))
    warning = numbers.warning_line(report.comparison.methods)
    if warning:
        yield ""
        yield _escaped(warning)
    yield ""
    marked = any(
        estimate is not None and numbers.marked("±", estimate) != "±"
        for row in pair.rows
        for estimate in (row.a, row.b)
    )
    mark = f"; {numbers.UNKNOWN_ACCURACY} {numbers.UNKNOWN_ACCURACY_TEXT}" if marked else ""
    yield f"Both revisions ran in each of {report.rounds} rounds, in random order. ±: at 95 %{mark}."
    yield f"Run {code(report.run)} on {_escaped(pair.a.run.measured_hardware or 'unknown hardware')}."
    findings: dict[str, list[str]] = {}
    for finding in pair.a.run.document["findings"]:
        if finding["severity"] != "info":
            findings.setdefault(f"{finding['severity']} [{finding['reason']}]", []).append(finding["text"])
    if findings:
        yield ""
    for reason, texts in findings.items():
        # A short window is found again in each round.
        more = f" ({len(texts) - 1} more like this)" if len(texts) > 1 else ""
        yield _escaped(f"- {reason}: {texts[0]}{more}")


def code(text: str) -> str:
    """Return a Markdown code span of one line."""
    text = " ".join(text.split())
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_|<>])", r"\\\1", text)


def _value(row: Row, estimate: Estimate | None) -> str:
    if estimate is None:
        return "no number"
    if row.kind == "throughput":
        return numbers.with_uncertainty(estimate)
    exponent, letter = numbers.prefix_for([estimate.value])
    return f"{numbers.energy_text(estimate, 10.0**-exponent)} {letter}J"


def _ratio(row: Row) -> str:
    if row.percent is None:
        return ""
    ratio, expanded = 1 + row.percent.value / 100, (row.percent.expanded or 0.0) / 100
    decimals = numbers.decimals_for(ratio, expanded)
    return f"{ratio:.{decimals}f}" + (f" ± {expanded:.{decimals}f}" if expanded > 0 else "")
