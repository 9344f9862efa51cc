"""Figure of a run: energy per inference and throughput over batch size, one line per configuration.

Below, the share of the time per phase, for each configuration whose batches have phases other than the execution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import wrap
from joulewatch_harness.analysis.results.model import OTHER_PHASE, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY_TEXT, prefix_for, warning_line
from joulewatch_harness.analysis.results.phases import EXECUTE_PHASE, has_phases
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.scenario import IDLE_PHASE

SUFFIXES: Final = (".png", ".svg", ".pdf")
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's colours, distinguishable with common colour blindness; without their yellow, too pale for lines."""
_MARKERS: Final = (("o", 4.5), ("s", 4.5), ("^", 5.0), ("D", 4.5), ("v", 5.0), ("P", 6.5), ("X", 6.5), ("*", 8.0))
"""Markers, and sizes in points that make their areas look equal."""
_SIZE_INCHES: Final = (6.4, 6.6)
_TEXT_INCHES: Final = 5.2
"""Width of texts that start at the left edge of the panels."""
_DPI: Final = 200
_STYLE: Final = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#222222",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_DASHES: Final = (0, (4, 2))
_SHIFT_OCTAVES: Final = 0.06
_LINE_STYLES: Final = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
"""The first eight lines are solid, the second eight dashed, the third dotted."""
_LEGEND_ROW_INCHES: Final = 0.18
_LEGEND_INCHES: Final = {2: 2.4, 1: 5.6}
"""Number of columns of the legend -> width of a name."""
_LEGEND_POINTS: Final = 8.0
_TITLE_POINTS: Final = 11.5
_TITLE_LINE_INCHES: Final = 0.2
_MOST_NETWORKS: Final = 3
"""Networks in the title; the legend has all of them."""
_PHASE_PANELS: Final = 6
_PHASE_INCHES: Final = 0.95
_PHASE_COLOURS: Final = {EXECUTE_PHASE: "#009E73", IDLE_PHASE: "#E4E4E4", OTHER_PHASE: "#A8A8A8"}
_BAR_OCTAVES: Final = 0.32
"""Half the width of a bar."""


def check_figure_path(path: Path) -> None:
    """Raise ConfigError unless the suffix is valid (PNG, SVG or PDF) and the directory exists."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--figure {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--figure {path}: the directory {path.parent} does not exist")


def write_figure(result: RunResult, path: Path, *, net: bool = False) -> None:
    """Draw the figure of a run.

    Args:
        result: The analyzed run.
        path: PNG, SVG or PDF, by its suffix.
        net: Add the net energy, as thin dashed lines.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    check_figure_path(path)
    import matplotlib as mpl

    metadata = {"Title": f"joulewatch run {result.record.header.run}"}
    with mpl.rc_context(_STYLE):
        figure = make_figure(result, net=net)
        try:
            figure.savefig(path, dpi=_DPI, metadata=metadata)
        except OSError as error:
            raise ConfigError(f"--figure {path}: cannot be written: {error.strerror}") from error


def make_figure(result: RunResult, *, net: bool = False) -> Any:
    """Return the figure of a run; the arguments are those of ``write_figure``."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        names = list(dict.fromkeys(group.configuration.name for group in result.groups))
        with_phases = [name for name in names if _groups_with_phases(result, name)]
        labels, columns = _legend_labels(names)
        legend_rows = math.ceil((sum(label.count("\n") + 1 for label in labels.values()) + net) / columns)
        panels = min(len(with_phases), _PHASE_PANELS)
        headings = {name: wrapped(name, _TEXT_INCHES, _LEGEND_POINTS) for name in with_phases[:panels]}
        title, subtitle = _titles(result)
        width, height = _SIZE_INCHES
        extra = _PHASE_INCHES * panels + _LEGEND_ROW_INCHES * (legend_rows + (3 if panels else 0))
        extra += _LEGEND_ROW_INCHES * sum(heading.count("\n") for heading in headings.values())
        extra += _TITLE_LINE_INCHES * (title.count("\n") + subtitle.count("\n"))
        figure = Figure(figsize=(width, height + extra), layout="constrained")
        FigureCanvasAgg(figure)
        share = _PHASE_INCHES / height * 2.25
        ratios = (1.25, 1.0, *(share for _ in range(panels)))
        top, bottom, *phases = figure.subplots(2 + panels, 1, sharex=True, height_ratios=ratios)
        handles = _draw(result, top, bottom, labels, net=net)
        bars = _draw_phases(result, headings, phases)
        lowest = phases[-1] if phases else bottom
        lowest.set_xlabel("Batch size")
        _foot(lowest, _foot_lines(result, len(with_phases) - panels, net=net))
        if bars:
            phases[0].legend(
                handles=bars,
                frameon=False,
                fontsize=8,
                ncols=min(len(bars), 6),
                loc="lower left",
                bbox_to_anchor=(0, 1.22 + 0.16 * headings[with_phases[0]].count("\n")),
                borderaxespad=0,
                handlelength=1.0,
                columnspacing=1.2,
            )
        if handles:
            # Below the panels: inside, it would cover lines or error bars.
            figure.legend(
                handles=handles,
                frameon=False,
                fontsize=_LEGEND_POINTS,
                loc="outside lower left",
                ncols=columns,
                handlelength=2.8,
            )
        _draw_titles(top, title, subtitle, warning_line(result.methods).strip("! "))
        return figure


def _legend_labels(names: Sequence[str]) -> tuple[dict[str, str], int]:
    """Return name -> its lines in the legend, and the number of columns."""
    found = [
        (columns, {name: wrapped(name, inches, _LEGEND_POINTS) for name in names})
        for columns, inches in _LEGEND_INCHES.items()
    ]
    columns, labels = next((item for item in found if not any("\n" in label for label in item[1].values())), found[-1])
    return labels, columns


def wrapped(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """Return text in lines that are at most so wide; a wider text would push the panels aside."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, converter = FontProperties(family="DejaVu Sans", size=points, weight=weight), TextToPath()

    def measure(line: str) -> float:
        wide, _, _ = converter.get_text_width_height_descent(line, font, ismath=False)
        return float(wide) / converter.DPI

    return "\n".join(wrap(text, inches, measure))


def _groups_with_phases(result: RunResult, name: str) -> list[GroupResult]:
    """Return the groups of a configuration whose batches have phases other than the execution."""
    return [group for group in result.groups if group.configuration.name == name and has_phases(group)]


def _draw_phases(result: RunResult, names: Mapping[str, str], panels: list[Any]) -> list[Any]:
    """Draw one panel of stacked bars per configuration (name -> heading); return the handles of the legend."""
    phases = [phase.name for name in names for group in _groups_with_phases(result, name) for phase in group.phases]
    others = [name for name in dict.fromkeys(phases) if name not in _PHASE_COLOURS]
    spare = [colour for colour in PALETTE if colour not in _PHASE_COLOURS.values()]
    colours = {**{name: spare[number % len(spare)] for number, name in enumerate(others)}, **_PHASE_COLOURS}
    handles: dict[str, Any] = {}
    for (name, heading), axes in zip(names.items(), panels, strict=True):
        for group in _groups_with_phases(result, name):
            below = 0.0
            # The execution is at the bottom, so that its share can be read from the axis.
            for phase in sorted(group.phases, key=lambda phase: phase.name != EXECUTE_PHASE):
                half = 2.0**_BAR_OCTAVES
                percent = 100 * phase.share.value
                bar = axes.bar(
                    group.batch_size / half,
                    percent,
                    group.batch_size * (half - 1 / half),
                    below,
                    align="edge",
                    color=colours[phase.name],
                    edgecolor="white",
                    linewidth=0.4,
                )
                bar.set_label(phase.name)
                handles.setdefault(phase.name, bar)
                below += percent
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 50, 100])
        axes.set_ylabel("Time [%]")
        axes.annotate(
            heading, (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=8, color="#222222"
        )
    return list(handles.values())


def _foot_lines(result: RunResult, omitted: int, *, net: bool = False) -> list[str]:
    """Return the notes below the panels.

    Args:
        result: The result.
        omitted: Number of configurations whose phases are not drawn.
        net: Whether the net energy is drawn where it is positive.
    """
    lines = ["Sum over device sensors; error bars: expanded uncertainty, 95 % coverage"]
    totals = [group.total.gross for group in result.groups if group.total.gross is not None]
    if any("accuracy" not in total.covers for total in totals):
        lines.append(f"Error bars show {UNKNOWN_ACCURACY_TEXT}")
    if any(total.expanded is None for total in totals):
        lines.append("Energies without an error bar: a single usable round, repeatability unknown")
    if net and (without := sum(not _has_net(group) for group in result.groups)):
        lines.append(f"Net energy is missing or not positive, so not drawn: {without} of {len(result.groups)} points")
    errors = sorted({finding.reason for finding in result.findings if finding.severity == "error"})
    if errors:
        lines.append(f"Audit errors: {', '.join(errors)}")
    made_up = [finding.evidence["configuration"] for finding in result.findings if finding.reason == "made_up_inputs"]
    if made_up:
        lines.append(f"Inputs are made up, and may change the work: {', '.join(map(str, made_up))}")
    if omitted > 0:
        lines.append(f"The table shows the phases of {omitted} more configuration{'s' if omitted > 1 else ''}")
    return lines


def _foot(axes: Any, lines: Sequence[str]) -> None:
    axes.annotate(
        "\n".join(wrapped(line, _TEXT_INCHES, 7.5) for line in lines),
        (1, 0),
        (0, -34),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7.5,
        color="#666666",
    )


def _draw(result: RunResult, top: Any, bottom: Any, labels: Mapping[str, str], *, net: bool) -> list[Any]:
    """Draw both panels of lines; return the handles of the legend."""
    groups: dict[str, list[GroupResult]] = {}
    for group in result.groups:
        groups.setdefault(group.configuration.name, []).append(group)
    gross = [group.total.gross.value for group in result.groups if group.total.gross is not None]
    exponent, letter = prefix_for(gross)
    scale = 10.0**-exponent
    handles = []
    for number, (name, members) in enumerate(groups.items()):
        colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
        # Shifted, so that the error bars of one batch size do not hide each other.
        shift = 2.0 ** (_SHIFT_OCTAVES * (number - (len(groups) - 1) / 2))
        style = _LINE_STYLES[number // len(PALETTE) % len(_LINE_STYLES)]
        drawn = _line(top, members, [group.total.gross for group in members], scale, colour, marker, shift, style)
        drawn.set_label(labels[name])
        handles.append(drawn)
        _line(bottom, members, [group.throughput for group in members], 1.0, colour, marker, shift, style)
        if net:
            _dashed(top, members, [group.total.net for group in members], scale, colour, shift)
    rates = [group.throughput for group in result.groups if group.throughput is not None]
    for axes, values in ((top, gross), (bottom, rates)):
        if not values:
            # A logarithmic axis needs values.
            axes.set_yticks([])
            continue
        axes.set_yscale("log")
        axes.grid(which="major", color="#D9D9D9", linewidth=0.6)
        axes.grid(which="minor", color="#EEEEEE", linewidth=0.4)
        axes.set_axisbelow(True)
        _ticks(axes)
    if rates:
        bottom.set_xscale("log", base=2)
    top.set_ylabel(f"Energy per inference [{letter}J]")
    bottom.set_ylabel("Throughput [inferences/s]")
    sizes = sorted({group.batch_size for group in result.groups})
    if sizes:
        bottom.set_xticks(sizes if len(sizes) <= 14 else sizes[:: math.ceil(len(sizes) / 14)])
        bottom.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bottom.minorticks_off()
    if net and any(_has_net(group) for group in result.groups):
        handles += top.plot([], [], color="#555555", linewidth=1.0, linestyle=_DASHES, label="net of idle power")
    if not gross:
        top.text(0.5, 0.5, "no energy", transform=top.transAxes, ha="center", color="#B00020")
    return handles


def _has_net(group: GroupResult) -> bool:
    """Return whether the net energy of a group can be drawn on a logarithmic axis."""
    return group.total.net is not None and group.total.net.value > 0


def _points(members: list[GroupResult], estimates: list[Estimate | None], scale: float, shift: float) -> Any:
    """Return batch sizes and values; a missing or non-positive value leaves a gap in the line."""
    sizes = [group.batch_size * shift for group in members]
    values = [
        estimate.value * scale if estimate is not None and estimate.value > 0 else math.nan for estimate in estimates
    ]
    return sizes, values


def _dashed(
    axes: Any, members: list[GroupResult], estimates: list[Estimate | None], scale: float, colour: str, shift: float
) -> None:
    sizes, values = _points(members, estimates, scale, shift)
    axes.plot(sizes, values, color=colour, linewidth=1.0, linestyle=_DASHES, alpha=0.9)


def _line(
    axes: Any,
    members: list[GroupResult],
    estimates: list[Estimate | None],
    scale: float,
    colour: str,
    marker: tuple[str, float],
    shift: float,
    style: Any,
) -> Any:
    """Draw one configuration with its error bars."""
    sizes, values = _points(members, estimates, scale, shift)
    lower, upper = [], []
    for estimate, value in zip(estimates, values, strict=True):
        half = (estimate.expanded or 0.0) * scale if estimate is not None and not math.isnan(value) else 0.0
        # On a logarithmic axis, a bar that reaches zero would have no lower end.
        lower.append(min(half, 0.98 * value) if half else 0.0)
        upper.append(half)
    return axes.errorbar(
        sizes,
        values,
        yerr=[lower, upper],
        color=colour,
        marker=marker[0],
        markersize=marker[1],
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.6,
        linestyle=style,
        elinewidth=1.0,
        capsize=2.5,
        capthick=1.0,
    )


_TICK_STEPS: Final = (
    (0.5, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (1.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 2.0, 5.0)),
)
"""Decades of a logarithmic axis -> its labels in a decade if the axis has fewer; at least two are always visible."""


def _ticks(axes: Any) -> None:
    """Set plain numbers on the logarithmic y axis, with more of them in between if its range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    decades = math.log10(high / low) if low > 0 and high > low else 1.0
    steps = next((steps for most, steps in _TICK_STEPS if decades < most), (1.0,))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _: int) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 1000 else f"{value:g}"


def _titles(result: RunResult) -> tuple[str, str]:
    """Return the lines of the title and of the subtitle."""
    networks = list(dict.fromkeys(group.configuration.network for group in result.groups))
    shown = networks if len(networks) <= _MOST_NETWORKS else networks[: _MOST_NETWORKS - 1]
    title = ", ".join(shown) or result.record.header.run
    if len(shown) < len(networks):
        title += f" and {len(networks) - len(shown)} more"
    if result.hardware:
        title += f" on {result.hardware}"
    collectors: dict[str, set[str]] = {}
    for sensor in result.sensors:
        if sensor.scope == "device":
            collectors.setdefault(sensor.collector, set()).add(sensor.method)
    sensors = "; ".join(f"{name} ({', '.join(sorted(methods))})" for name, methods in sorted(collectors.items()))
    subtitle = f"Sensors: {sensors or 'none'} · run {result.record.header.run}"
    return wrapped(title, _TEXT_INCHES, _TITLE_POINTS, "bold"), wrapped(subtitle, _TEXT_INCHES, 8)


def _draw_titles(top: Any, title: str, subtitle: str, warning: str) -> None:
    above = 34 if warning else 12
    lines = subtitle.count("\n")
    _above(top, title, above + 14 + 10 * lines, fontsize=_TITLE_POINTS, fontweight="bold", color="#111111")
    _above(top, subtitle, above, fontsize=8, color="#666666")
    if warning:
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#B00020", "edgecolor": "none"}
        _above(top, f" {warning} ", 14, fontsize=9, fontweight="bold", color="white", bbox=box)


def _above(axes: Any, text: str, points: float, **style: Any) -> None:
    """Add a line of text above the axes, flush with their left edge."""
    axes.annotate(text, (0, 1), (0, points), xycoords="axes fraction", textcoords="offset points", va="bottom", **style)
