"""Figure of several runs: energy per inference and throughput over batch size, one line per configuration.

Below, the share of the time outside the execution, if batches have such phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.analysis.reports.figure_parts import (
    LEGEND_POINTS,
    LINE_STYLES,
    MARKERS,
    PALETTE,
    STYLE,
    TEXT_INCHES,
    TITLE_POINTS,
    check_figure_path,
    draw_foot,
    draw_titles,
    legend_labels,
    save_figure,
    set_ticks,
    wrapped,
)
from joulewatch_harness.analysis.results.lines import Line, LinePoint, Value
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY_TEXT, prefix_for, warning_line

MAIN_DEVICE_TEXT: Final = (
    "Energy of the CPU, the GPU or the FPGA that runs the network; memory and the host of an accelerator are excluded"
)
TOTAL_TEXT: Final = "Energy: sum over all device sensors, with memory and the host of an accelerator"
_WIDTH_INCHES: Final = 6.4
_PANEL_INCHES: Final = 2.5
_SHARE_INCHES: Final = 1.3
_HEAD_INCHES: Final = 1.0
_ROW_INCHES: Final = 0.19
_BAND: Final = 0.16
_MOST_NETWORKS: Final = 3
_MOST_TICKS: Final = 14


def write_runs_figure(lines: Sequence[Line], path: Path, *, main_device: bool = False) -> None:
    """Draw the figure of at least one line.

    Args:
        lines: From ``lines_of``.
        path: PNG, SVG or PDF, by its suffix.
        main_device: Whether the lines are those of the main device only, for the note below the panels.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    check_figure_path(path)
    save_figure(make_runs_figure(lines, main_device=main_device), path, f"joulewatch runs {', '.join(_runs(lines))}")


def make_runs_figure(lines: Sequence[Line], *, main_device: bool = False) -> Any:
    """Return the figure; the arguments are those of ``write_runs_figure``."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        with_shares = any(point.driver_share is not None for line in lines for point in line.points)
        labels, columns = legend_labels([line.label for line in lines])
        title, subtitle = _titles(lines)
        notes = _notes(lines, main_device=main_device, with_shares=with_shares)
        rows = math.ceil(sum(label.count("\n") + 1 for label in labels.values()) / columns)
        texts = rows + len(notes) + title.count("\n") + subtitle.count("\n")
        height = _HEAD_INCHES + 2 * _PANEL_INCHES + _SHARE_INCHES * with_shares + _ROW_INCHES * texts
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
        FigureCanvasAgg(figure)
        ratios = (_PANEL_INCHES, _PANEL_INCHES, _SHARE_INCHES)[: 2 + with_shares]
        panels = figure.subplots(2 + with_shares, 1, sharex=True, height_ratios=ratios)
        handles = _draw_lines(lines, panels, labels)
        panels[-1].set_xlabel("Batch size")
        draw_foot(panels[-1], notes)
        # Below the panels: inside, it would cover lines or bands.
        figure.legend(
            handles=handles,
            frameon=False,
            fontsize=LEGEND_POINTS,
            loc="outside lower left",
            ncols=columns,
            handlelength=3.4,
        )
        methods = {method for line in lines for method in line.methods}
        draw_titles(panels[0], title, subtitle, warning_line(methods).strip("! "))
        return figure


def _draw_lines(lines: Sequence[Line], panels: Sequence[Any], labels: dict[str, str]) -> list[Any]:
    """Draw all lines in all panels; return the handles of the legend."""
    energies = [point.energy.value for line in lines for point in line.points if point.energy is not None]
    exponent, letter = prefix_for(energies)
    hardware = list(dict.fromkeys(line.hardware for line in lines))
    handles = []
    for number, line in enumerate(lines):
        marker, size = MARKERS[number % len(MARKERS)]
        colour = PALETTE[number % len(PALETTE)]
        style = {
            "color": colour,
            # Markers distinguish configurations, styles the hardware: also in black and white.
            "marker": marker,
            "markersize": size,
            "markerfacecolor": colour if number < len(MARKERS) else "white",
            "markeredgecolor": "white" if number < len(MARKERS) else colour,
            "markeredgewidth": 0.6 if number < len(MARKERS) else 1.1,
            "linewidth": 1.5,
            "linestyle": LINE_STYLES[hardware.index(line.hardware) % len(LINE_STYLES)],
        }
        handles.append(_draw(panels[0], line, lambda point: point.energy, 10.0**-exponent, style))
        handles[-1].set_label(labels[line.label])
        _draw(panels[1], line, lambda point: point.throughput, 1.0, style)
        shares = [(point.batch_size, point.driver_share) for point in line.points if point.driver_share is not None]
        if shares:
            panels[2].plot([size for size, _ in shares], [100 * share for _, share in shares], **style)
    panels[0].set_ylabel(f"Energy per inference [{letter}J]")
    panels[1].set_ylabel("Throughput [inferences/s]")
    for panel in panels[:2]:
        if panel.lines:
            panel.set_yscale("log")
            set_ticks(panel)
    if not energies:
        panels[0].text(0.5, 0.5, "no energy", transform=panels[0].transAxes, ha="center", color="#B00020")
    for panel in panels:
        panel.grid(which="major", color="#D9D9D9", linewidth=0.6)
        panel.set_axisbelow(True)
    if len(panels) > 2:
        panels[2].set_ylim(0, 100)
        panels[2].set_ylabel("Outside\nexecution [%]")
    sizes = sorted({point.batch_size for line in lines for point in line.points})
    panels[-1].set_xscale("log", base=2)
    panels[-1].set_xticks(sizes[:: math.ceil(len(sizes) / _MOST_TICKS)])
    panels[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[-1].minorticks_off()
    return handles


def _draw(
    panel: Any, line: Line, value_of: Callable[[LinePoint], Value | None], scale: float, style: dict[str, Any]
) -> Any:
    """Draw the line of one quantity with its band; return the line."""
    points = [
        (point.batch_size, value)
        for point in line.points
        if (value := value_of(point)) is not None and value.value > 0  # as a logarithmic axis requires
    ]
    (drawn,) = panel.plot([size for size, _ in points], [value.value * scale for _, value in points], **style)
    known = [
        (size, max(value.low, 0.02 * value.value) * scale, value.high * scale)
        for size, value in points
        if value.low is not None and value.high is not None
    ]
    if known:
        sizes, low, high = zip(*known, strict=True)
        panel.fill_between(sizes, low, high, color=style["color"], alpha=_BAND, linewidth=0)
        # A band is thin where the uncertainty is small; its ends stay visible.
        panel.vlines(sizes, low, high, color=style["color"], linewidth=0.9, alpha=0.7)
    return drawn


def _runs(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.run for line in lines))


def _titles(lines: Sequence[Line]) -> tuple[str, str]:
    """Return the lines of the title and of the subtitle."""
    networks = list(dict.fromkeys(line.network for line in lines))
    title = ", ".join(networks[:_MOST_NETWORKS])
    if len(networks) > _MOST_NETWORKS:
        title += f" and {len(networks) - _MOST_NETWORKS} more"
    hardware = list(dict.fromkeys(line.hardware for line in lines if line.hardware))
    if len(hardware) == 1:
        title += f" on {hardware[0]}"
    runs = _runs(lines)
    subtitle = f"{'runs' if len(runs) > 1 else 'run'} {', '.join(runs)}"
    return wrapped(title, TEXT_INCHES, TITLE_POINTS, "bold"), wrapped(subtitle, TEXT_INCHES, 8)


def _notes(lines: Sequence[Line], *, main_device: bool, with_shares: bool) -> list[str]:
    notes = [
        f"{MAIN_DEVICE_TEXT if main_device else TOTAL_TEXT}",
        "Bands: expanded uncertainty, 95 % coverage",
    ]
    if not all(line.accuracy_known for line in lines):
        notes.append(f"Some bands: {UNKNOWN_ACCURACY_TEXT}")
    if with_shares:
        notes.append("Outside execution: share of the time of a batch in the driver, in copies and in between")
    return notes
