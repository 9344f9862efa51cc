"""The HTML report: self-contained, escaped, complete, and small."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Final

import pytest

from joulewatch_harness.analysis.reports import html_charts
from joulewatch_harness.analysis.reports.html_markup import escape, tag, with_code
from joulewatch_harness.analysis.reports.html_parts import ReportedRun
from joulewatch_harness.analysis.reports.html_report import render_html, summary
from joulewatch_harness.analysis.results.audit.findings import FIXES, REASONS
from joulewatch_harness.analysis.results.lines import predicted_lines
from joulewatch_harness.analysis.results.model import CountResult, Estimate
from joulewatch_harness.analysis.results.numbers import with_uncertainty
from joulewatch_harness.errors import RecordError
from support.reports import HOSTILE, poisoned, reported

ELEMENTS: Final = (
    "html head meta title style body header nav main section footer h1 h2 h3 p ul li a strong em code pre div span "
    "table caption thead tbody tr th td dl dt dd details summary svg g path rect text desc wbr"
)
ATTRIBUTES: Final = (
    "lang charset name content http-equiv id href class role tabindex scope colspan open aria-label aria-labelledby "
    "aria-describedby aria-hidden d x y dy width height rx viewbox fill stroke stroke-width stroke-dasharray transform "
    "text-anchor preserveaspectratio"
)
VOID: Final = frozenset({"meta", "wbr"})


class Page(HTMLParser):
    """The elements of a page; every element must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module")
def run() -> ReportedRun:
    return reported()


@pytest.fixture(scope="module")
def other() -> ReportedRun:
    return reported(run="20260922T141320Z-1b2c3d", configurations=("net/tensorrt/int8",), cpu="EPYC 7742")


def pages(run: ReportedRun, other: ReportedRun) -> Iterator[str]:
    yield render_html([run])
    yield render_html([run, other])
    yield render_html([run], expanded=True)


def test_the_page_is_well_formed_and_its_references_resolve(run: ReportedRun, other: ReportedRun) -> None:
    for text in pages(run, other):
        page = Page(text)
        idents = page.values("id")
        assert len(idents) == len(set(idents))
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(page.values(name)) <= set(idents)
        assert {link.removeprefix("#") for link in page.values("href")} <= set(idents)
        assert [name for name, _ in page.elements].count("h1") == 1


def test_nothing_is_loaded_and_nothing_runs(run: ReportedRun, other: ReportedRun) -> None:
    for text in pages(run, other):
        page = Page(text)
        assert {name for name, _ in page.elements} <= set(ELEMENTS.split())
        assert {name for _, attributes in page.elements for name in attributes} <= set(ATTRIBUTES.split())
        assert all(link.startswith("#") for link in page.values("href"))
        assert "url(" not in text and "@import" not in text
        assert "default-src 'none'" in (page.values("content")[-1])


def test_texts_from_a_run_never_become_markup(run: ReportedRun, other: ReportedRun) -> None:
    """Networks, options, server texts, labels of sensors, provenance, the plan: anyone may have written them."""
    hostile = ReportedRun(poisoned(run.result), poisoned(run.lines))
    for text in (render_html([hostile]), render_html([hostile, other])):
        page = Page(text)
        assert {name for name, _ in page.elements} <= set(ELEMENTS.split())
        assert {name for _, attributes in page.elements for name in attributes} <= set(ATTRIBUTES.split())
        assert text.count("<style>") == text.count("</style>") == 1
        # Enough of the fields were shown: the test is not empty.
        assert page.text.count("<script>alert(1)</script>") > 100
        assert "\x00" not in text and "\u202e" not in text


def test_the_hostile_text_does_what_it_should() -> None:
    """Without escaping, the checks above would fail."""
    with pytest.raises(AssertionError):
        Page(f"<p>{HOSTILE}</p>")


def test_the_summary_is_the_lowest_energy_with_its_uncertainty(run: ReportedRun) -> None:
    best = min(run.result.groups, key=lambda group: group.total.gross.value if group.total.gross else 1e9)
    assert best.total.gross is not None and best.total.gross.expanded is not None
    text = Page(summary([run])).text
    number = with_uncertainty(best.total.gross, 1000.0)
    assert text.startswith(f"{number}† mJ per inference (95 % coverage) is the energy of {best.configuration.name}")
    assert f"at batch size {best.batch_size} on 2x AMD EPYC 7763" in text
    assert text.endswith("the lowest of 6 results.") and text.count(". ") == 0


def test_a_run_without_energy_has_a_reason_and_no_number(run: ReportedRun) -> None:
    groups = tuple(
        dataclasses.replace(group, total=dataclasses.replace(group.total, gross=None, net=None, missing="no sensor"))
        for group in run.result.groups
    )
    result = dataclasses.replace(run.result, groups=groups, powers={})
    text = Page(render_html([ReportedRun(result)])).text
    assert "There is no energy per inference: no sensor." in text
    assert "Energy per inference [J]: no value to draw." in text and "No power is known in any window." in text
    empty = dataclasses.replace(result, groups=(), record=dataclasses.replace(result.record, windows=()))
    text = Page(render_html([ReportedRun(empty)])).text
    assert "no network was measured" in text and "The run has no window." in text


def estimate(value: float) -> Estimate:
    return Estimate(value=value, standard=value / 100, expanded=value / 50, dof=math.inf, budget=())


def test_every_part_is_there(run: ReportedRun) -> None:
    page = Page(render_html([run]))
    for name in ("figure", "results", "power", "phases", "budget", "audit", "provenance", "method", "cite"):
        assert name in page.values("id")
    for group in run.result.groups:
        assert group.total.gross is not None
        assert page.text.count(with_uncertainty(group.total.gross, 1000.0)) >= 3, "point, table, budget"
    assert "batch 128 failed: no memory" in page.text
    assert "plan SHA-256 0000" in page.text and "measured with joulewatch 0.1.0" in page.text
    assert "copy_in" in page.text and "20.0" in page.text
    assert "psys/total (primary)" in page.text


def test_each_finding_has_its_meaning_and_fix(run: ReportedRun) -> None:
    text = Page(render_html([run])).text
    for reason in ("frozen", "other_load", "wraps_seen", "accuracy_unknown"):
        assert REASONS[reason] in text and FIXES[reason].replace("`", "") in text
    assert "window 3: a value did not change" in text and "All 5 findings" in text
    # Errors first.
    assert text.index("error frozen") < text.index("warning other_load") < text.index("info wraps_seen")


def means(text: str) -> int:
    """Return the number of mean powers in the timelines."""
    return sum(path.count("M") for path in re.findall(r'd="([^"]*)" class="mean ', text))


def test_every_window_is_drawn_with_both_edges_and_its_power(run: ReportedRun) -> None:
    text = render_html([run])
    windows = run.result.record.windows
    assert text.count('class="band ') == len(windows)
    assert sum(path.count("M") for path in re.findall(r'd="([^"]*)" class="edge"', text)) == 2 * len(windows)
    assert means(text) == len(windows) * len(run.result.powers[0])
    assert text.count('class="samples"') > 0
    window = next(window for window in windows if window.kind == "measure")
    assert f"window {window.index}: measure, {window.configuration}, batch 1, round 1; cpu" in text


def test_a_configuration_has_one_colour_in_figure_and_timeline(run: ReportedRun, other: ReportedRun) -> None:
    text = render_html([run, other])
    for name, colour in (("net/onnxruntime/fp32", "s0"), ("net/onnxruntime/int8", "s1"), ("net/tensorrt/int8", "s2")):
        lines = re.findall(rf'<g class="(\w+)" stroke="currentColor"><path[^>]*></path><g><title>{name}, batch', text)
        bands = re.findall(rf'<g class="band (\w+)"><title>window \d+: measure, {name},', text)
        assert set(lines) == set(bands) == {colour}


def test_without_samples_the_powers_come_from_the_edges() -> None:
    bare = reported(history=False)
    text = render_html([bare])
    assert "the powers are from the readings at the edges" in text
    assert means(text) == len(bare.result.record.windows) * 3 and 'class="samples"' not in text


def test_runs_are_side_by_side(run: ReportedRun, other: ReportedRun) -> None:
    page = Page(render_html([run, other]))
    assert "net/onnxruntime/fp32 on 2x AMD EPYC 7763" in page.text
    assert "net/tensorrt/int8 on 2x EPYC 7742" in page.text
    assert {"compared", "r0", "r1", "r0-power", "r1-power"} <= set(page.values("id"))
    again = ReportedRun(dataclasses.replace(other.result, record=run.result.record), run.lines)
    assert "net/onnxruntime/fp32, run" in Page(render_html([run, reported(run="20260923T141320Z-2c3d4e")])).text
    assert again.id == run.id


def predictions_of(median: float, scope: str = "devices", **texts: str) -> dict[str, object]:
    """Return predictions as ``joulewatch predict --format json`` writes them."""
    row = {"network": "net", "runtime": "onnxruntime", "precision": "fp32", "device": "EPYC 9654", **texts}
    interval = {"median": median, "low": median / 2, "high": 2 * median}
    rows = [
        {**row, "scope": scope, "batch_size": size, "joules_per_inference": interval, "inferences_per_second": None}
        for size in (8, 1)
    ]
    return {"schema_version": 1, "coverage": 0.9, "predictions": rows}


def test_predictions_are_dashed_labelled_and_apart_from_what_was_measured(run: ReportedRun) -> None:
    lines = predicted_lines(predictions_of(1e-9), "x")
    plain_page, page = Page(render_html([run])), Page(render_html([run], predictions=lines))
    dashed = [one for name, one in page.elements if name == "path" and one.get("stroke-dasharray") == "6 4"]
    # One in the chart of energies, one in the empty chart of throughputs, one in the legend.
    assert len(dashed) >= 2
    assert not [one for _, one in plain_page.elements if one.get("stroke-dasharray") == "6 4"]
    assert sum(one.get("class") == "hollow" for _, one in page.elements) == 3
    assert "net/onnxruntime/fp32 on EPYC 9654 (predicted, all devices)" in page.text
    assert "Dashed lines are predicted by a model, not measured; their bands are 90 % intervals." in page.text
    assert "Some energies PREDICTED by a model, not measured" in page.text
    # It is far below every measured energy, and still not the one of the summary.
    assert summary([run]) in render_html([run], predictions=lines)
    assert "Predictions" not in plain_page.text and "PREDICTED" not in plain_page.text


def test_texts_of_predictions_never_become_markup(run: ReportedRun) -> None:
    lines = predicted_lines(predictions_of(1e-3, network=HOSTILE, device=HOSTILE), "x")
    page = Page(render_html([run], predictions=lines))
    assert {name for name, _ in page.elements} <= set(ELEMENTS.split())


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "f.json: not predictions; 'joulewatch predict NETWORK --format json' writes them"),
        ({"predictions": [], "schema_version": 2}, "f.json: schema_version is 2; this joulewatch reads 1"),
        ({"predictions": [{}], "schema_version": 1}, "f.json: broken predictions: KeyError: 'network'"),
    ],
)
def test_a_file_without_predictions_is_an_error(document: dict[str, object], text: str) -> None:
    with pytest.raises(RecordError, match=re.escape(text)):
        predicted_lines(document, "f.json")


def test_a_large_run_stays_below_2_mb() -> None:
    """Eleven batch sizes, two configurations, forty rounds."""
    large = reported(batch_sizes=[2**number for number in range(11)], rounds=40)
    assert len(large.result.record.windows) > 880
    text = render_html([large])
    assert len(text.encode()) < 2_000_000 and "Only the first" not in text
    several = render_html([large] * 4)
    assert len(several.encode()) < 2_000_000 and "Only the first 300 of " in several


def test_other_units_of_work_have_a_table(run: ReportedRun) -> None:
    count = CountResult(
        name="output_tokens", count=900.0, per_inference=12.5, rate=None, gross=estimate(0.25), net=None
    )
    groups = tuple(dataclasses.replace(group, counts=(count,)) for group in run.result.groups)
    text = Page(render_html([ReportedRun(dataclasses.replace(run.result, groups=groups))])).text
    assert "output tokens: total and net in mJ each" in text and "250.0 ± 5.0" in text


def test_markup() -> None:
    assert tag("p", "<", None, tag("b", "&"), class_="a", stroke_width=2, hidden=True, id=None) == (
        '<p class="a" stroke-width="2" hidden>&lt;<b>&amp;</b></p>'
    )
    assert escape("\x07\ud800") == "\ufffd\ufffd"
    assert with_code("use `a < b` now") == "use <code>a &lt; b</code> now"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 1100.0, [1, 10, 100, 1000]),
        (0.9, 35.0, [1, 3, 10, 30]),
        (1.9, 11.0, [2, 5, 10]),
        (1.0, 1.09, [1.0, 1.05]),
    ],
)
def test_a_logarithmic_axis_has_round_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert html_charts._log_ticks(low, high) == pytest.approx(ticks)
