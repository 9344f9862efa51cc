"""Figure of a run: energy per inference and throughput over batch size, one line per configuration.

Below, the share of the time per phase, for each configuration whose batches have phases other than the execution; the
right half of a bar is the share of the energy, where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.text import count_of
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
from joulewatch_harness.analysis.results.model import OTHER_PHASE, TOTAL, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY_TEXT, prefix_for, warning_line
from joulewatch_harness.analysis.results.phases import EXECUTE_PHASE, has_phases
from joulewatch_harness.plan.scenario import IDLE_PHASE

_SIZE_INCHES: Final = (6.4, 6.6)
_DASHES: Final = (0, (4, 2))
_DOTS: Final = (0, (1, 1.5))
_SHIFT_OCTAVES: Final = 0.06
_LEGEND_ROW_INCHES: Final = 0.18
_TITLE_LINE_INCHES: Final = 0.2
_MOST_NETWORKS: Final = 3
"""Networks in the title; the legend has all of them."""
_PHASE_PANELS: Final = 6
_PHASE_INCHES: Final = 0.95
_PHASE_COLOURS: Final = {EXECUTE_PHASE: "#009E73", IDLE_PHASE: "#E4E4E4", OTHER_PHASE: "#A8A8A8"}
_BAR_OCTAVES: Final = 0.32
"""Half the width of a bar."""
UNRESOLVED: Final = "not resolved"
UNRESOLVED_COLOUR: Final = "#F2F2F2"


def write_figure(result: RunResult, path: Path, *, net: bool = False) -> None:
    """Draw the figure of a run.

    Args:
        result: The analyzed run.
        path: PNG, SVG or PDF, by its suffix.
        net: Add the net and the attributed energy, as thin dashed and dotted lines.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    check_figure_path(path)
    save_figure(make_figure(result, net=net), path, f"joulewatch run {result.record.header.run}")


def make_figure(result: RunResult, *, net: bool = False) -> Any:
    """Return the figure of a run; the arguments are those of ``write_figure``."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The energy of the devices is that of all networks that ran at the same time: it is no point of one of them.
    result = replace(result, groups=tuple(group for group in result.groups if not group.configuration.alone))
    with mpl.rc_context(STYLE):
        names = list(dict.fromkeys(group.configuration.name for group in result.groups))
        with_phases = [name for name in names if _groups_with_phases(result, name)]
        labels, columns = legend_labels(names)
        legend_rows = math.ceil((sum(label.count("\n") + 1 for label in labels.values()) + 2 * net) / columns)
        panels = min(len(with_phases), _PHASE_PANELS)
        headings = {name: wrapped(name, TEXT_INCHES, LEGEND_POINTS) for name in with_phases[:panels]}
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
        draw_foot(lowest, _foot_lines(result, len(with_phases) - panels, net=net))
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
                fontsize=LEGEND_POINTS,
                loc="outside lower left",
                ncols=columns,
                handlelength=2.8,
            )
        draw_titles(top, title, subtitle, warning_line(result.methods).strip("! "))
        return figure


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
            half = 2.0**_BAR_OCTAVES
            energies = _energy_shares(group)
            bars = [({phase.name: phase.share.value for phase in group.phases}, 1 / half, 1.0 if energies else half)]
            if energies:
                bars.append((energies, 1.0, half))
            for shares, left, right in bars:
                below = 0.0
                # The execution is at the bottom, so that its share can be read from the axis.
                for phase in sorted(shares, key=lambda phase: phase != EXECUTE_PHASE):
                    percent = 100 * shares[phase]
                    bar = axes.bar(
                        group.batch_size * left,
                        percent,
                        group.batch_size * (right - left),
                        below,
                        align="edge",
                        color=colours.get(phase, UNRESOLVED_COLOUR),
                        edgecolor="white",
                        linewidth=0.4,
                    )
                    bar.set_label(phase)
                    handles.setdefault(phase, bar)
                    below += percent
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 50, 100])
        has_energy = any(map(_energy_shares, _groups_with_phases(result, name)))
        axes.set_ylabel("Time | energy [%]" if has_energy else "Time [%]", fontsize=8 if has_energy else None)
        axes.annotate(
            heading, (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=8, color="#222222"
        )
    return list(handles.values())


def _energy_shares(group: GroupResult) -> dict[str, float]:
    """Return the share of each phase in the energy of all devices, else of the first component that resolves some."""
    names = [TOTAL, *(component.name for component in group.components)]
    for name in names:
        joules = {phase.name: phase.energies[name].value for phase in group.phases if name in phase.energies}
        if joules:
            if name in group.unresolved_phases:
                joules[UNRESOLVED] = max(group.unresolved_phases[name].value, 0.0)
            whole = sum(joules.values())
            return {phase: value / whole for phase, value in joules.items()}
    return {}


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
        lines.append(
            f"Net energy is missing or not positive, so not drawn: {without} of {count_of(len(result.groups), 'point')}"
        )
    errors = sorted({finding.reason for finding in result.findings if finding.severity == "error"})
    if errors:
        lines.append(f"Audit errors: {', '.join(errors)}")
    made_up = [finding.evidence["configuration"] for finding in result.findings if finding.reason == "made_up_inputs"]
    if made_up:
        lines.append(f"Inputs are made up, and may change the work: {', '.join(map(str, made_up))}")
    if omitted > 0:
        lines.append(f"The table shows the phases of {count_of(omitted, 'more configuration')}")
    return lines


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
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        # Shifted, so that the error bars of one batch size do not hide each other.
        shift = 2.0 ** (_SHIFT_OCTAVES * (number - (len(groups) - 1) / 2))
        style = LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)]
        drawn = _line(top, members, [group.total.gross for group in members], scale, colour, marker, shift, style)
        drawn.set_label(labels[name])
        handles.append(drawn)
        _line(bottom, members, [group.throughput for group in members], 1.0, colour, marker, shift, style)
        if net:
            _thin(top, members, [group.total.net for group in members], scale, colour, shift, _DASHES)
            _thin(top, members, [group.total.attributed for group in members], scale, colour, shift, _DOTS)
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
        set_ticks(axes)
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
        if any(group.total.attributed is not None for group in result.groups):
            handles += top.plot([], [], color="#555555", linewidth=1.0, linestyle=_DOTS, label="attributed")
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


def _thin(
    axes: Any,
    members: list[GroupResult],
    estimates: list[Estimate | None],
    scale: float,
    colour: str,
    shift: float,
    dashes: Any,
) -> None:
    sizes, values = _points(members, estimates, scale, shift)
    axes.plot(sizes, values, color=colour, linewidth=1.0, linestyle=dashes, alpha=0.9)


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
    return wrapped(title, TEXT_INCHES, TITLE_POINTS, "bold"), wrapped(subtitle, TEXT_INCHES, 8)
