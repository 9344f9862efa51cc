"""Results for people and programs: table, CSV, JSON. Pure: text in and out; the figure is drawn in figure.py."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from joulewatch_harness.analysis.results.audit import Finding
from joulewatch_harness.analysis.results.model import (
    TOTAL,
    EnergyResult,
    GroupResult,
    IdlePower,
    RunResult,
    SetupResult,
)
from joulewatch_harness.analysis.results.numbers import align, plain, prefix_for, warning_line, with_uncertainty
from joulewatch_harness.analysis.results.phases import beside_execution, has_phases
from joulewatch_harness.records import SensorRecord

_METHOD_TEXTS: Final = {
    "counter": "energy counter",
    "integrated": "power integrated near the sensor",
    "estimated": "ESTIMATED by a power model",
    "emulated": "EMULATED machine",
    "unknown": "method UNKNOWN",
}


def _missing_cell(result: EnergyResult) -> str:
    return "missing" if result.missing else "-"


def _cell(result: EnergyResult | None, scale: float) -> str:
    if result is None:
        return "-"
    if result.gross is None:
        return _missing_cell(result)
    return plain(result.gross.value * scale, result.gross.expanded * scale)


def _milliseconds(group: GroupResult) -> str:
    if group.latency is None:
        return "-"
    p50, p99 = group.latency.p50_s * 1e3, group.latency.p99_s * 1e3
    digits = 0 if p99 >= 100 else (1 if p99 >= 10 else 2)
    return f"{p50:.{digits}f}/{p99:.{digits}f}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def render_table(result: RunResult, *, width: int = 80, budget: bool = False) -> str:
    """The result as plain text for a terminal.

    Args:
        result: The analysed run.
        width: Columns of the terminal; component columns give way below what they need.
        budget: Also the uncertainty budget of every total.
    """
    header = result.record.header
    started = datetime.datetime.fromtimestamp(header.started_at_s, datetime.UTC)
    lines = [f"Run {header.run}, {started:%Y-%m-%d %H:%M:%S} UTC" + (f", {result.hardware}" if result.hardware else "")]
    loud = warning_line(result.methods)
    if loud:
        lines += ["", loud]
    values = [group.total.gross.value for group in result.groups if group.total.gross is not None] or [
        item.gross.value for group in result.groups for item in group.components if item.gross is not None
    ]
    exponent, letter = prefix_for(values)
    scale, unit = 10.0**-exponent, f"{letter}J"
    components = list(dict.fromkeys(item.name for group in result.groups for item in group.components))
    shown = components if len(components) > 1 else []
    table = _group_lines(result, shown, scale)
    if shown and max((len(line) for line in table), default=0) > width:
        shown = []
        table = _group_lines(result, shown, scale)
    if result.groups:
        lines += ["", *table, ""]
        lines.append(_legend(shown, unit))
    else:
        lines += ["", "No measure window in this run: there is nothing to tell."]
    if len(components) > 1 and not shown:
        lines.append(f"Components ({', '.join(components)}) do not fit into {width} columns: see --format csv.")
    lines += _idle_lines(result)
    lines += _loaded_lines(result)
    lines += _setup_lines(result)
    lines += _count_lines(result)
    lines += _phase_lines(result)
    lines += _beside_lines(result, scale, unit, width)
    if budget:
        lines += _budget_lines(result, scale, unit)
    lines += _missing_lines(result)
    lines += ["", *_sensor_lines(result.sensors, result.source)]
    lines += _finding_lines(result.findings, width)
    if loud:
        lines += ["", loud]
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line, width)) + "\n"


def _wrapped(line: str, width: int) -> list[str]:
    """Prose that is too long for the terminal in several lines; columns stay as they are."""
    if len(line) <= width or "   " in line.strip():
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line, width, subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False
    ) or [line]


def _legend(shown: Sequence[str], unit: str) -> str:
    names = ", ".join((*shown, "total", "net"))
    return f"{names}: {unit} per inference, all device sensors; ±: 95 % coverage; latency: of a batch."


def _group_lines(result: RunResult, shown: Sequence[str], scale: float) -> list[str]:
    head = ["batch", "inf/s", "p50/p99 ms", *shown, "total", "net", "inf/J"]
    rows: list[list[str]] = []
    titles = []
    for group in result.groups:
        titles.append(group.configuration.name)
        by_name = {item.name: item for item in group.components}
        total = group.total
        per_joule = total.inferences_per_joule
        rows.append(
            [
                str(group.batch_size),
                _three(group.throughput.value) if group.throughput is not None else "-",
                _milliseconds(group),
                *(_cell(by_name.get(component), scale) for component in shown),
                with_uncertainty(total.gross, scale) if total.gross is not None else _missing_cell(total),
                with_uncertainty(total.net, scale) if total.net is not None else "-",
                plain(per_joule.value, per_joule.expanded) if per_joule is not None else "-",
            ]
        )
    if not rows:
        return []
    return _titled(align([head, *rows], left=0), titles)


def _idle_lines(result: RunResult) -> list[str]:
    total = result.idle.get(TOTAL)
    if total is None:
        return ["net: no idle window has a number for all devices, so nothing is net of idle."]
    own = {group.total.idle.text for group in result.groups if group.total.idle is not None}
    text = f"net: less idle power × time; idle is {_watts(total)} over all devices ({total.text})."
    if own and own != {total.text}:
        text += f" Each configuration uses its own: {'; '.join(sorted(own))}."
    return [text]


_LOADED: Final[Mapping[str, str]] = {
    "threads": "threads: {}",
    "streams": "streams: {}",
    "integer_ops": "in integers: {} products",
    "tf32": "TF32: {}",
    "copies": "copies: {}",
    "tuning": "tuning: {}",
    "engine": "engine: {}",
    "mode": "mode: {}",
}
"""Details of a configuration that change what its numbers mean, and how they are told."""


def _loaded_lines(result: RunResult) -> list[str]:
    """What each configuration really is: version, provider, device, precision, threads, as read back after loading."""
    lines = []
    for name, item in {group.configuration.name: group.configuration for group in result.groups}.items():
        told = [f"{item.runtime} {item.runtime_version}".rstrip(), item.provider, item.device, item.actual_precision]
        told += [form.format(item.details[key]) for key, form in _LOADED.items() if item.details.get(key)]
        lines.append(f"  {name}: {', '.join(word for word in told if word)}")
        for setup in result.setups:
            found = [form.format(setup.details[key]) for key, form in _LOADED.items() if setup.details.get(key)]
            if setup.configuration == name and found:
                lines.append(f"    batch {setup.batch_size}: {', '.join(found)}")
    return ["As loaded:", *lines] if lines else []


def _setup_lines(result: RunResult) -> list[str]:
    """What loading and preparing cost, a line for each configuration; nothing of what took less than a second."""
    told: dict[str, list[str]] = {}
    for item in result.setups:
        if item.window is not None:
            what = item.phase if item.phase == "load" else f"batch {item.batch_size} {item.phase}"
            told.setdefault(item.configuration, []).append(f"{what} {_three(item.duration_s)} s, {_setup_joules(item)}")
    return [f"Setting up, not in the above: {name} {'; '.join(spans)}" for name, spans in told.items()]


def _setup_joules(item: SetupResult) -> str:
    total = item.total
    if total is None or total.gross is None:
        return f"energy missing: {total.missing if total is not None else 'no window'}"
    exponent, letter = prefix_for([total.gross.value])
    return f"{with_uncertainty(total.gross, 10.0**-exponent)} {letter}J"


def _phase_lines(result: RunResult) -> list[str]:
    """Shares of the time, for configurations whose batches are more than their execution."""
    lines: list[str] = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups if has_phases(group)):
        groups = [group for group in result.groups if group.configuration.name == name and group.phases]
        names = list(dict.fromkeys(item.name for group in groups for item in group.phases))
        beside = [beside_execution(group.phases) for group in groups]
        told = any(value is not None for value in beside)
        rows = [["batch", *names, *(["not execute"] if told else [])]]
        for group, around in zip(groups, beside, strict=True):
            shares = {item.name: item.share for item in group.phases}
            row = [str(group.batch_size)]
            row += [f"{100 * shares[one].value:.1f}" if one in shares else "-" for one in names]
            rows.append([*row, *(["-" if around is None else f"{100 * around:.1f}"] if told else [])])
        lines += _titled(align(rows, left=0), [name] * len(groups))
    head = "Time per phase, % (no energy: phases are shorter than what a sensor resolves)"
    return ["", head, *lines] if lines else []


def _watts(idle: IdlePower) -> str:
    exponent, letter = prefix_for([idle.watts])
    scale = 10.0**-exponent
    return f"{plain(idle.watts * scale, 2 * idle.standard_watts * scale)} {letter}W"


def _beside_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    """Nodes and parts: beside the devices, never added to them."""
    names = list(dict.fromkeys(item.name for group in result.groups for item in (*group.nodes, *group.parts)))
    if not names:
        return []
    one_exporter = len({item.exporter for item in result.sensors}) == 1
    heads = {name: _short(name) if one_exporter else name for name in names}
    shown: list[str] = []
    room = width - 8
    for name in names:
        room -= max(len(heads[name]), 8) + 2
        if room < 0 and shown:
            break
        shown.append(name)
    rows = [["batch", *(heads[name] for name in shown)]]
    titles = []
    for group in result.groups:
        titles.append(group.configuration.name)
        found = {item.name: item for item in (*group.nodes, *group.parts)}
        rows.append([str(group.batch_size), *(_cell(found.get(name), scale) for name in shown)])
    lines = ["", f"Beside, {unit} per inference, never added to the total: whole servers and parts of devices"]
    lines += _titled(align(rows, left=0), titles)
    if len(names) > len(shown):
        lines.append(f"... and {len(names) - len(shown)} more in --format json")
    return lines


def _count_lines(result: RunResult) -> list[str]:
    """What one of another unit of work costs, such as an output token."""
    lines: list[str] = []
    for name in dict.fromkeys(item.name for group in result.groups for item in group.counts):
        found = [(group, item) for group in result.groups for item in group.counts if item.name == name]
        exponent, letter = prefix_for(item.gross.value for _, item in found if item.gross is not None)
        scale = 10.0**-exponent
        rows = [["batch", "each inf", "per s", "total", "net"]]
        for group, item in found:
            rows.append(
                [
                    str(group.batch_size),
                    _three(item.per_inference),
                    _three(item.rate.value) if item.rate is not None else "-",
                    with_uncertainty(item.gross, scale) if item.gross is not None else "missing",
                    with_uncertainty(item.net, scale) if item.net is not None else "-",
                ]
            )
        words = name.replace("_", " ")
        lines += ["", f"{words[:1].upper()}{words[1:]}: total, net: {letter}J for each; each inf: in an inference"]
        lines += _titled(align(rows, left=0), [group.configuration.name for group, _ in found])
    return lines


def _short(name: str) -> str:
    """A sensor's name without its exporter and collector."""
    return "/".join(name.split("/")[-2:])


def _titled(aligned: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Rows under the name of their configuration; the first of ``aligned`` is the head, repeated under each."""
    lines: list[str] = []
    for number, (title, line) in enumerate(zip(titles, aligned[1:], strict=True)):
        if number == 0 or titles[number - 1] != title:
            lines += [*([""] if lines else []), title, aligned[0]]
        lines.append(line)
    return lines


def _budget_lines(result: RunResult, scale: float, unit: str) -> list[str]:
    lines: list[str] = []
    for group in result.groups:
        for basis, estimate in (("gross", group.total.gross), ("net", group.total.net)):
            if estimate is None:
                continue
            dof = "many" if estimate.dof > 1000 else f"{estimate.dof:.3g}"
            lines += [
                "",
                f"{group.configuration.name}, batch {group.batch_size}, {basis}: "
                f"{with_uncertainty(estimate, scale)} {unit} (k = {estimate.factor:.3g}, {dof} degrees of freedom)",
            ]
            rows = [["  item", "type", f"u [{unit}]", "share %", "source"]]
            variance = estimate.standard**2
            for item in sorted(estimate.budget, key=lambda line: -line.standard):
                share = 100 * item.standard**2 / variance if variance else 0.0
                rows.append(
                    [f"  {item.name}", item.kind, f"{item.standard * scale:.2g}", f"{share:.1f}", f" {item.text}"]
                )
            widths = [max(len(row[i]) for row in rows) for i in range(4)]
            lines += [
                f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {u:>{widths[2]}}  {share:>{widths[3]}}  {text.strip()}"
                for name, kind, u, share, text in rows
            ]
    return lines


def _missing_lines(result: RunResult) -> list[str]:
    lines = [
        f"{group.configuration.name}, batch {group.batch_size}: {item.name} is missing: {item.missing}"
        for group in result.groups
        for item in group.components
        if item.missing
    ]
    return ["", *lines] if lines else []


def _sensor_lines(sensors: Sequence[SensorRecord], source: str) -> list[str]:
    lines = []
    for scope in ("device", "node", "part"):
        groups: dict[tuple[str, str, str], list[SensorRecord]] = {}
        for item in sensors:
            if item.scope == scope:
                groups.setdefault((item.exporter, item.collector, item.method), []).append(item)
        for (exporter, collector, method), items in groups.items():
            names = list(dict.fromkeys(f"{item.device}/{item.domain}" for item in items))
            text = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            extra = {f"±{100 * item.accuracy:g} %" for item in items if item.accuracy is not None} | {
                item.model for item in items if item.model and method in ("estimated", "integrated")
            }
            note = f" ({'; '.join(sorted(extra))})" if extra else ""
            what = _METHOD_TEXTS.get(method, method)
            lines.append(f"  {scope}: {text}: {collector} on {exporter}, {what}{note}")
    from_where = f"Sensors (samples from {source}):" if source else "Sensors (edges of the journal only):"
    return [from_where, *lines] if lines else ["No energy sensor."]


def _finding_lines(findings: Sequence[Finding], width: int) -> list[str]:
    if not findings:
        return []
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for item in findings:
        grouped.setdefault((item.severity, item.reason), []).append(item)
    lines = ["", "Audit:"]
    for severity in ("error", "warning", "info"):
        for (level, reason), items in grouped.items():
            if level == severity:
                where = sorted({item.window for item in items if item.window is not None})
                more = f" (and {len(items) - 1} more like it)" if len(items) > 1 else ""
                at = f", window {where[0]}" if where else ""
                lines.append(f"  {severity} [{reason}]{at}: {items[0].text}{more}")
    return lines
