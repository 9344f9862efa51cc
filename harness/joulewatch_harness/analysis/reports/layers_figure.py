"""Bar chart of a layer view: estimated energy (or time) per operator, next to its share of time and MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from joulewatch_harness.analysis.reports.figure_parts import PALETTE, STYLE, check_figure_path, save_figure, wrapped
from joulewatch_harness.analysis.reports.layers_report import (
    METHOD,
    SMALLEST_SHARE,
    basis_lines,
    group_small,
    title,
)
from joulewatch_harness.analysis.results.layers import LayerView, Row
from joulewatch_harness.analysis.results.numbers import prefix_for, warning_line

_WIDTH_INCHES: Final = 8.0
_ROW_INCHES: Final = 0.27
_LONGEST_NAME: Final = 44
_LONGEST_LABEL: Final = 56
_STYLE: Final = STYLE | {"font.size": 9, "ytick.color": "#222222"}


def write_figure(view: LayerView, path: Path, smallest: float = SMALLEST_SHARE) -> None:
    """Draw the chart.

    Args:
        view: The layer view.
        path: PNG, SVG or PDF, by its suffix.
        smallest: Operators with a smaller share of the time are combined.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    check_figure_path(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [*group_small(view, smallest), view.between]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, 1.9 + _ROW_INCHES * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        _draw(view, rows, left, right)
        _titles(view, figure)
    save_figure(figure, path, f"joulewatch layers: {title(view)}", _STYLE)


def _draw(view: LayerView, rows: list[Row], left: Any, right: Any) -> None:
    places = range(len(rows))
    estimated = view.basis is not None
    values = [(row.joules or 0.0) if estimated else row.seconds for row in rows]
    exponent, letter = prefix_for(values)
    heights = [value / 10**exponent for value in values]
    colours = ["#BBBBBB" if not row.op else PALETTE[1] if row.macs else PALETTE[0] for row in rows]
    # Hatched: an estimate, not a measurement.
    left.barh(places, heights, color=colours, height=0.72, hatch="////" if estimated else None, edgecolor="white")
    for place, height, row in zip(places, heights, rows, strict=True):
        left.annotate(
            f"{row.share:.1%}", (height, place), (4, 0), textcoords="offset points", va="center", fontsize=8,
            color="#333333",
        )  # fmt: skip
    left.set_yticks(places, [_label(row) for row in rows])
    left.invert_yaxis()
    left.margins(x=0.14)
    left.set_xlabel(f"ESTIMATED energy per inference [{letter}J]" if estimated else f"Time per inference [{letter}s]")
    left.grid(axis="x", color="#E3E3E3", linewidth=0.6)
    left.set_axisbelow(True)
    left.tick_params(axis="y", length=0)
    shares = [100 * (row.macs_share or 0.0) for row in rows]
    right.barh(places, [100 * row.share for row in rows], color="#777777", height=-0.36, align="edge", label="time")
    right.barh(places, shares, color=PALETTE[2], height=0.36, align="edge", label="MACs")
    right.set_xlabel("Share [%]")
    right.grid(axis="x", color="#E3E3E3", linewidth=0.6)
    right.set_axisbelow(True)
    right.tick_params(axis="y", length=0)
    right.legend(frameon=False, fontsize=8, loc="lower right")


def _label(row: Row) -> str:
    name = row.name if len(row.name) <= _LONGEST_NAME else f"{row.name[: _LONGEST_NAME - 1]}…"
    if not row.op or row.op.lower() in name.lower():
        return name
    label = f"{name}  {row.op}"
    # If the label is too long, omit the kernel, which some runtimes append to the kind.
    return label if len(label) <= _LONGEST_LABEL else f"{name}  {row.op.partition(' ')[0]}"


def _titles(view: LayerView, figure: Any) -> None:
    lines = [title(view)]
    if view.basis is not None:
        lines.append(f"Energy per operator is an ESTIMATE: {METHOD}")
        warning = warning_line(view.methods).strip("! ")
        if warning:
            lines.append(warning)
    text = "\n".join(wrapped(line, 0.96 * _WIDTH_INCHES, 10, "bold") for line in lines)
    figure.suptitle(text, fontsize=10, fontweight="bold", color="#111111", ha="left", x=0.02)
    legend = "Orange: operators with multiply-accumulates (MACs); blue: operators without; grey: all other time"
    foot = "\n".join(wrapped(line, 0.96 * _WIDTH_INCHES, 7.5) for line in (*basis_lines(view), legend))
    figure.supxlabel(foot, fontsize=7.5, color="#666666")
