"""The power of one run over its time, with its windows, in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from joulewatch_harness.analysis.reports import html_charts as charts
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag
from joulewatch_harness.analysis.reports.html_parts import (
    Place,
    ReportedRun,
    configurations_of,
    make_details,
    make_table,
)
from joulewatch_harness.analysis.reports.table import Column
from joulewatch_harness.analysis.results.numbers import (
    plain,
)
from joulewatch_harness.records import Window

_MOST_WINDOWS: Final = 1200
_MOST_STEPS: Final = 24_000
"""Windows on a page, and steps of its power lines, all runs together: it stays below 2 MB."""


def power_section(run: ReportedRun, place: Place) -> Markup:
    record = run.result.record
    t0_s = record.header.started_at_s
    ordered = sorted((one for one in record.windows if one.duration_s > 0), key=lambda one: one.start_s)
    windows = ordered[: int(_MOST_WINDOWS * place.share)]
    colours = {name: charts.colour(place.first_line + number) for number, name in enumerate(configurations_of(run))}
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
        text += " The source has no samples: the powers are from the readings at the edges."
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
        make_details(
            f"All windows ({len(windows)})",
            make_table("Windows with their mean power", columns, windows),
            class_="screen",
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
