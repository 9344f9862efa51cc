"""Figure of predictions over batch size: dashed lines, with a band for the 90 % interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.analysis.reports.figure_parts import PALETTE, check_figure_path, wrapped
from joulewatch_harness.analysis.results.numbers import prefix_for
from joulewatch_harness.prediction.predict import Interval, Prediction
from joulewatch_harness.prediction.report import PREDICTED

_WIDTH_INCHES: Final = 6.4
_PANEL_INCHES: Final = 2.6
_HEAD_INCHES: Final = 1.0
_DPI: Final = 200
_BAND: Final = 0.18
_RED: Final = "#B00020"
_STYLE: Final = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def write_figure(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw the figure of at least one prediction.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    import matplotlib as mpl

    check_figure_path(path)
    with mpl.rc_context(_STYLE):
        try:
            make_figure(predictions).savefig(path, dpi=_DPI)
        except OSError as error:
            raise files.write_error(f"--figure {path}: cannot be written: {error.strerror}", error) from error


def make_figure(predictions: Sequence[Prediction]) -> Any:
    """Return the figure: energy above, throughput below if it is predicted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    series: dict[str, list[Prediction]] = {}
    for one in sorted(predictions, key=lambda one: one.batch_size):
        series.setdefault(f"{one.network}, {one.runtime}, {one.precision} on {one.device} ({one.scope})", []).append(
            one
        )
    timed = any(one.throughput is not None for one in predictions)
    height = _HEAD_INCHES + _PANEL_INCHES * (1 + timed) + 0.2 * len(series)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout=ConstrainedLayoutEngine(h_pad=0.12))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1 + timed, 1, sharex=True, squeeze=False)[:, 0]
    exponent, letter = prefix_for([one.joules.median for one in predictions])
    for number, (name, members) in enumerate(series.items()):
        colour = PALETTE[number % len(PALETTE)]
        label = wrapped(name, _WIDTH_INCHES - 1, 8)
        _draw(panels[0], members, lambda one: one.joules, 10.0**-exponent, colour, label)
        if timed:
            _draw(panels[1], members, lambda one: one.throughput, 1.0, colour, label)
    panels[0].set_ylabel(f"Energy per inference, {letter}J")
    if timed:
        panels[1].set_ylabel("Inferences per second")
    for axes in panels:
        axes.set_yscale("log")
        axes.set_xscale("log", base=2)
        axes.grid(visible=True, which="major", linewidth=0.4, color="#DDDDDD")
    sizes = sorted({one.batch_size for one in predictions})
    panels[-1].set_xticks(sizes, [str(size) for size in sizes])
    panels[-1].minorticks_off()
    panels[-1].set_xlabel("Batch size")
    box = {"boxstyle": "round,pad=0.35", "facecolor": _RED, "edgecolor": "none"}
    panels[0].set_title(f" {PREDICTED} ", fontsize=9, fontweight="bold", color="white", bbox=box, loc="left", pad=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _draw(
    axes: Any,
    members: Sequence[Prediction],
    interval_of: Callable[[Prediction], Interval | None],
    scale: float,
    colour: str,
    label: str,
) -> None:
    points = [(one.batch_size, interval) for one in members if (interval := interval_of(one)) is not None]
    sizes = [size for size, _ in points]
    axes.plot(
        sizes, [interval.median * scale for _, interval in points], linestyle="--", marker="o", markersize=4,
        color=colour, label=f"{label}: median, 90 % interval",
    )  # fmt: skip
    known = [(size, one.low * scale, one.high * scale) for size, one in points if None not in (one.low, one.high)]  # type: ignore[operator]
    if not known:
        return
    at, low, high = zip(*known, strict=True)
    axes.fill_between(at, low, high, color=colour, alpha=_BAND, linewidth=0)
    axes.vlines(at, low, high, color=colour, linewidth=1, alpha=0.6)
