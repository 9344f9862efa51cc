"""Charts of the report as SVG, with the colours of the page: they follow its dark mode, and print.

A chart needs no script. Marks have a ``title``, which browsers show on hover; every number is in a table, too.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports.html_markup import Markup, join, tag
from joulewatch_harness.analysis.results.timeline import PowerLine

Axis = Callable[[float], float]
COLOURS: Final = 8
"""Classes ``s0`` to ``s7`` of the style sheet."""
_MARKERS: Final = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.6 -3.6h7.2v7.2h-7.2z",
    "M0 -4.6l4.4 8h-8.8z",
    "M0 -5l5 5l-5 5l-5 -5z",
    "M0 4.6l4.4 -8h-8.8z",
)
_STYLES: Final = (None, "8 2.5 1.5 2.5", "2 2.5")
"""The first eight lines are solid, the second eight dash-dotted, the third dotted."""
_PREDICTED_STYLE: Final = "6 4"
_COMPONENT_DASHES: Final = (None, "5 2.5", "1.5 2", "8 2.5 1.5 2.5", "3 1.5")
_WIDTH, _HEIGHT = 520, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 34, 42
_STRIP_WIDTH, _STRIP_HEIGHT = 1040, 190
_STRIP_LEFT, _STRIP_TOP, _STRIP_BOTTOM = 50, 26, 24
_LEAST_STEPS, _MOST_STEPS = 60, 400
"""Steps of a power line in one strip; more are averaged."""
_TICK_STEPS: Final = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One value with its uncertainty and its text."""

    batch_size: int
    value: float
    low: float
    high: float
    """Ends of the interval; both equal to the value: none."""
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one configuration."""

    name: str
    points: tuple[Point, ...]
    predicted: bool = False
    """Dashed, with hollow markers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A window in the timeline."""

    start_s: float
    """Since the start of the run."""
    end_s: float
    colour: str
    """Class of the style sheet."""
    label: str
    text: str
    watts: tuple[float, ...]
    """Mean power of each component."""


def marker(number: int, *, predicted: bool = False) -> Markup:
    """Return the sample of a line, for the legend."""
    dash = _style(number, predicted=predicted)
    line = tag("path", d="M1 8h26", stroke="currentColor", stroke_width=2, stroke_dasharray=dash)
    shape = _MARKERS[number % len(_MARKERS)]
    sign = tag(
        "path", d=shape, class_="hollow" if predicted else "dot", stroke="currentColor", transform="translate(14 8)"
    )
    return tag("svg", line, sign, viewBox="0 0 28 16", width=28, height=16, class_=colour(number), aria_hidden="true")


def swatch(name: str) -> Markup:
    """Return a square in a colour of the style sheet, for the legend."""
    square = tag("rect", x=6, y=2, width=16, height=12, rx=2, fill="currentColor")
    return tag("svg", square, viewBox="0 0 28 16", width=28, height=16, class_=name, aria_hidden="true")


def dash_sample(number: int) -> Markup:
    """Return the sample of a component's line in the timeline, for the legend."""
    dash = _COMPONENT_DASHES[number % len(_COMPONENT_DASHES)]
    line = tag("path", d="M1 8h26", stroke="currentColor", stroke_width=1.6, stroke_dasharray=dash)
    return tag("svg", line, viewBox="0 0 28 16", width=28, height=16, aria_hidden="true")


def colour(number: int) -> str:
    """Return the class with the colour of a line."""
    return f"s{number % COLOURS}"


def _style(number: int, *, predicted: bool) -> str | None:
    return _PREDICTED_STYLE if predicted else _STYLES[number // COLOURS % len(_STYLES)]


def log_chart(ident: str, title: str, description: str, lines: Sequence[Line]) -> Markup:
    """Return a chart over batch size with two logarithmic axes, bands and error bars."""
    points = [point for line in lines for point in line.points if point.value > 0]
    if not points:
        return tag("p", f"{title}: no value to draw.")
    sizes = sorted({point.batch_size for point in points})
    x = _Log(sizes[0] / 1.4, sizes[-1] * 1.4, _LEFT, _WIDTH - _RIGHT)
    lowest = min(max(point.low, point.value / 3) for point in points)
    highest = max(point.high for point in points)
    y = _Log(lowest / 1.12, highest * 1.12, _HEIGHT - _BOTTOM, _TOP)
    shapes = [_y_grid(y), _x_ticks(x, sizes), tag("text", title, x=8, y=16, class_="heading")]
    shapes.append(tag("text", "Batch size", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    for number, line in enumerate(lines):
        # Moved, so that the error bars of one batch size do not hide each other.
        shift = (number - (len(lines) - 1) / 2) * min(5.0, 24.0 / len(lines))
        shapes.append(_drawn(line, number, x, y, shift))
    return _svg(ident, title, description, _WIDTH, _HEIGHT, shapes)


def _drawn(line: Line, number: int, x: _Log, y: _Log, shift: float) -> Markup:
    places = [(x(point.batch_size) + shift, y(point.value), point) for point in line.points if point.value > 0]
    path = "L".join(f"{_n(left)} {_n(top)}" for left, top, _ in places)
    ends = [
        (left, y(point.high), y(max(point.low, y.low)), point) for left, _, point in places if point.high > point.low
    ]
    shapes = []
    if len(ends) > 1:
        upper = [f"{_n(left)} {_n(top)}" for left, top, _, _ in ends]
        lower = [f"{_n(left)} {_n(bottom)}" for left, _, bottom, _ in reversed(ends)]
        shapes.append(tag("path", d=f"M{'L'.join([*upper, *lower])}z", class_="spread"))
    dash = _style(number, predicted=line.predicted)
    shapes.append(tag("path", d=f"M{path}", fill="none", stroke_width=2, stroke_dasharray=dash))
    bars = {
        point: tag("path", d=f"M{_n(left - 3)} {_n(top)}h6m-3 0V{_n(bottom)}m-3 0h6", fill="none", stroke_width=1.2)
        for left, top, bottom, point in ends
    }
    for left, top, point in places:
        sign = tag(
            "path",
            d=_MARKERS[number % len(_MARKERS)],
            transform=f"translate({_n(left)} {_n(top)})",
            class_="hollow" if line.predicted else "dot",
        )
        shapes.append(tag("g", tag("title", point.text), bars.get(point), sign))
    return tag("g", *shapes, class_=colour(number), stroke="currentColor")


class _Log:
    """A logarithmic axis: values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start = start
        self._scale = (end - start) / math.log(high / low)

    def __call__(self, value: float) -> float:
        return self._start + self._scale * math.log(value / self.low)


def _y_grid(y: _Log) -> Markup:
    shapes = []
    for value in _log_ticks(y.low, y.high):
        top = _n(y(value))
        shapes.append(tag("path", d=f"M{_LEFT} {top}H{_WIDTH - _RIGHT}", class_="grid"))
        shapes.append(tag("text", _number(value), x=_LEFT - 8, y=top, dy="0.35em", text_anchor="end"))
    return join(*shapes)


def _x_ticks(x: _Log, sizes: Sequence[int]) -> Markup:
    base, last, shapes = _HEIGHT - _BOTTOM, -math.inf, []
    for size in sizes:
        left, half = x(size), 3.6 * len(str(size))
        shapes.append(tag("path", d=f"M{_n(left)} {base}v5", class_="axis"))
        if left - half > last + 6:
            shapes.append(tag("text", size, x=_n(left), y=base + 18, text_anchor="middle"))
            last = left + half
    return join(tag("path", d=f"M{_LEFT} {base}H{_WIDTH - _RIGHT}", class_="axis"), *shapes)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return the coarsest round numbers of which at least three are in a range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in _TICK_STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 3:
            return ticks
    # Less than a third of a decade.
    step = _nice((high - low) / 3)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _nice(value: float) -> float:
    """Return the next of 1, 2, 5, 10, ... that is not smaller."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next((factor * unit for factor in (1, 2, 5) if factor * unit >= value * (1 - 1e-9)), 10 * unit)


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 1000 else f"{value:.4g}"


def timeline(
    ident: str,
    bands: Sequence[Band],
    lines: Sequence[PowerLine],
    names: Sequence[str],
    t0_s: float,
    *,
    most_steps: int,
) -> Markup:
    """Return the strips of a timeline: power over time, the windows as bands with their edges, and their mean power.

    Args:
        ident: Prefix of the ids.
        bands: The windows, in order.
        lines: Power from samples; may be empty.
        names: The component of each mean power of a band, and of the lines with the same names.
        t0_s: Unix seconds of the start of the run.
        most_steps: Of all lines together, about.
    """
    strips_wanted = min(math.ceil(len(bands) / 16), 60)
    per_strip = math.ceil(len(bands) / strips_wanted)
    means = [watts for band in bands for watts in band.watts if math.isfinite(watts)]
    tops = [float(np.nanmax(line.watts)) for line in lines if np.isfinite(line.watts).any()]
    # Short peaks between samples may be cut, but no window.
    ceiling = max([*means, *(min(top, 2.5 * max(means, default=top)) for top in tops)], default=0.0)
    if ceiling <= 0:
        return tag("p", "No power is known in any window.")
    step = _nice(ceiling / 3)
    limit = step * math.ceil(ceiling * 1.04 / step)
    steps = most_steps // (strips_wanted * max(len(lines), 1))
    axes = _Axes(t0_s, step, limit, min(max(steps, _LEAST_STEPS), _MOST_STEPS))
    strips = []
    for first in range(0, len(bands), per_strip):
        part = bands[first : first + per_strip]
        strips.append(_strip(f"{ident}-{first // per_strip}", part, lines, names, axes))
    return join(*strips)


@dataclass(frozen=True, slots=True)
class _Axes:
    """What all strips of a timeline have in common."""

    t0_s: float
    watts_step: float
    watts_limit: float
    most_steps: int


def _strip(
    ident: str,
    bands: Sequence[Band],
    lines: Sequence[PowerLine],
    names: Sequence[str],
    axes: _Axes,
) -> Markup:
    t0_s, step, limit = axes.t0_s, axes.watts_step, axes.watts_limit
    start_s, end_s = bands[0].start_s, max(band.end_s for band in bands)
    margin_s = 0.01 * (end_s - start_s)
    start_s, end_s = start_s - margin_s, end_s + margin_s
    base, right = _STRIP_HEIGHT - _STRIP_BOTTOM, _STRIP_WIDTH - 8

    def x(at_s: float) -> float:
        return _STRIP_LEFT + (right - _STRIP_LEFT) * (at_s - start_s) / (end_s - start_s)

    def y(watts: float) -> float:
        return max(base - (base - _STRIP_TOP) * watts / limit, _STRIP_TOP)

    shapes = [_bands(bands, x, base)]
    for number in range(int(limit / step + 1e-9) + 1):
        top = _n(y(step * number))
        shapes.append(tag("path", d=f"M{_STRIP_LEFT} {top}H{right}", class_="grid"))
        shapes.append(tag("text", f"{step * number:g} W", x=_STRIP_LEFT - 6, y=top, dy="0.35em", text_anchor="end"))
    shapes.append(_time_axis(start_s, end_s, x, base))
    edges = "".join(f"M{_n(x(at_s))} {_STRIP_TOP - 18}V{base}" for band in bands for at_s in (band.start_s, band.end_s))
    shapes.append(tag("path", d=edges, class_="edge"))
    for number, name in enumerate(names):
        dash = _COMPONENT_DASHES[number % len(_COMPONENT_DASHES)]
        for line in lines:
            if line.name == name:
                path = _path(line, (t0_s + start_s, t0_s + end_s), axes.most_steps, lambda at_s: x(at_s - t0_s), y)
                shapes.append(tag("path", d=path, class_="samples", stroke_dasharray=dash))
    shapes += _means(bands, x, y)
    title = f"Power from {start_s + margin_s:.1f} to {end_s - margin_s:.1f} s"
    windows = count_of(len(bands), "window with its edges", "windows with their edges")
    text = f"{windows} and mean power; the table of windows has the numbers."
    picture = _svg(ident, title, text, _STRIP_WIDTH, _STRIP_HEIGHT, shapes)
    return tag("div", picture, class_="scroll strip", tabindex=0, role="group", aria_label=title)


def _means(bands: Sequence[Band], x: Axis, y: Axis) -> Iterator[Markup]:
    """Yield the mean powers of the windows, with the dashes of their components."""
    for number in range(len(bands[0].watts)):
        paths: dict[str, list[str]] = {}
        for band in bands:
            if math.isfinite(watts := band.watts[number]):
                path = f"M{_n(x(band.start_s))} {_n(y(watts))}H{_n(x(band.end_s))}"
                paths.setdefault(band.colour, []).append(path)
        dash = _COMPONENT_DASHES[number % len(_COMPONENT_DASHES)]
        for name, parts in paths.items():
            yield tag("path", d="".join(parts), class_=f"mean {name}", stroke_dasharray=dash)


def _bands(bands: Sequence[Band], x: Axis, base: float) -> Markup:
    shapes = []
    for band in bands:
        left, width = x(band.start_s), max(x(band.end_s) - x(band.start_s), 0.8)
        area = {"x": _n(left), "width": _n(width)}
        parts: list[object] = [tag("title", band.text)]
        parts.append(tag("rect", **area, y=_STRIP_TOP, height=base - _STRIP_TOP, class_="area"))
        parts.append(tag("rect", **area, y=_STRIP_TOP - 18, height=15, class_="label"))
        if width > 7.0 * len(band.label):
            parts.append(tag("text", band.label, x=_n(left + width / 2), y=_STRIP_TOP - 6.5, text_anchor="middle"))
        shapes.append(tag("g", *parts, class_=f"band {band.colour}"))
    return join(*shapes)


def _time_axis(start_s: float, end_s: float, x: Axis, base: float) -> Markup:
    step = _nice((end_s - start_s) / 12)
    shapes = [tag("path", d=f"M{_STRIP_LEFT} {base}H{_STRIP_WIDTH - 8}", class_="axis")]
    for number in range(math.ceil(start_s / step), math.floor(end_s / step) + 1):
        left = x(number * step)
        anchor = "end" if left > _STRIP_WIDTH - 30 else "middle"
        shapes.append(tag("path", d=f"M{_n(left)} {base}v4", class_="axis"))
        shapes.append(tag("text", f"{number * step:g} s", x=_n(left), y=base + 17, text_anchor=anchor))
    return join(*shapes)


def _path(line: PowerLine, span_s: tuple[float, float], most_steps: int, x: Axis, y: Axis) -> str:
    """Return the steps of a power line between two times; gaps stay open."""
    start_s, end_s = span_s
    first = max(bisect.bisect_right(line.times_s, start_s) - 1, 0)
    last = min(bisect.bisect_left(line.times_s, end_s), len(line.watts))
    times_s, watts = np.clip(line.times_s[first : last + 1], start_s, end_s), line.watts[first:last]
    if watts.size > most_steps:
        starts = np.arange(0, watts.size, math.ceil(watts.size / most_steps))
        joules = np.add.reduceat(watts * np.diff(times_s), starts)
        times_s = np.append(times_s[starts], times_s[-1])
        watts = joules / np.diff(times_s)
    parts, drawing = [], False
    for left, right, value in zip(times_s[:-1], times_s[1:], watts, strict=True):
        if math.isfinite(value) and right > left:
            parts.append(f"{'V' if drawing else f'M{_n(x(left))} '}{_n(y(value))}H{_n(x(right))}")
        drawing = math.isfinite(value)
    return "".join(parts)


def share_bar(shares: Iterable[tuple[str, float]]) -> Markup:
    """Return a bar of shares, each with the class of its colour; the table next to it has the numbers."""
    shapes, left = [], 0.0
    for name, share in shares:
        shapes.append(tag("rect", x=_n(200 * left), width=_n(200 * share), height=12, class_=name, fill="currentColor"))
        left += share
    return tag("svg", *shapes, viewBox="0 0 200 12", class_="bar", aria_hidden="true", preserveAspectRatio="none")


def _svg(ident: str, title: str, description: str, width: int, height: int, shapes: Sequence[Markup]) -> Markup:
    return tag(
        "svg",
        tag("title", title, id=f"{ident}-t"),
        tag("desc", description, id=f"{ident}-d"),
        *shapes,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=f"{ident}-t",
        aria_describedby=f"{ident}-d",
    )


def _n(value: float) -> str:
    """Return a coordinate."""
    return f"{value:.1f}".removesuffix(".0")
