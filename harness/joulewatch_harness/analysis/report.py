"""Results for people and programs: table, CSV, JSON. Pure: text in and out; the figure is drawn in figure.py."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.audit import Finding
from joulewatch_harness.analysis.source import SampleSource
from joulewatch_harness.analysis.summary import (
    OTHER_PHASE,
    TOTAL,
    EnergyResult,
    Estimate,
    GroupResult,
    IdlePower,
    PhaseShare,
    RunResult,
    SetupEnergy,
    SetupResult,
    analyze_run,
)
from joulewatch_harness.records import RunRecord, SensorRecord, encode
from joulewatch_harness.scenario import IDLE_PHASE

SCHEMA_VERSION: Final = 1
"""Of the JSON; raised when a reader of the old form would go wrong."""

_PREFIXES: Final = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"}
_METHOD_TEXTS: Final = {
    "counter": "energy counter",
    "integrated": "power integrated near the sensor",
    "estimated": "ESTIMATED by a power model",
    "emulated": "EMULATED machine",
    "unknown": "method UNKNOWN",
}


def analyze(record: RunRecord, source: SampleSource | None) -> RunResult:
    """Analyse a run; the same as ``summary.analyze_run``, for callers that then render."""
    return analyze_run(record, source)


def write_figure(result: RunResult, path: Path, *, net: bool = False) -> None:
    """Draw the figure; see ``figure.write_figure``. Imports matplotlib only when called."""
    from joulewatch_harness.analysis.figure import write_figure as draw

    draw(result, path, net=net)


# Numbers


def prefix_for(values: Iterable[float]) -> tuple[int, str]:
    """SI prefix that suits most of some values: (exponent, letter)."""
    logs = sorted(math.log10(abs(value)) for value in values if value and math.isfinite(value))
    if not logs:
        return 0, ""
    exponent = 3 * math.floor(logs[len(logs) // 2] / 3 + 1e-9)
    exponent = min(max(exponent, min(_PREFIXES)), max(_PREFIXES))
    return exponent, _PREFIXES[exponent]


def decimals_for(value: float, uncertainty: float) -> int:
    """Decimals that show two digits of the uncertainty, or four digits of a value without one."""
    scale = uncertainty if uncertainty > 0 and math.isfinite(uncertainty) else abs(value) / 100
    if scale <= 0 or not math.isfinite(scale):
        return 0
    digits = 1 - math.floor(math.log10(scale))
    # 9.96 rounds up to a digit more.
    if round(scale, digits) >= 10 ** (2 - digits):
        digits -= 1
    return min(max(digits, 0), 9)


def with_uncertainty(estimate: Estimate, scale: float = 1.0) -> str:
    """``12.34 ± 0.56``, in units of 1/scale."""
    value, expanded = estimate.value * scale, estimate.expanded * scale
    if expanded <= 0:
        return plain(value)
    decimals = decimals_for(value, expanded)
    return f"{value:.{decimals}f} ± {expanded:.{decimals}f}"


def plain(value: float, uncertainty: float = 0.0) -> str:
    """A value with as many digits as its uncertainty allows, four at most without one."""
    if value == 0:
        return "0"
    return f"{value:.{min(decimals_for(value, uncertainty), max(3 - math.floor(math.log10(abs(value))), 0))}f}"


def quantity(value: float, unit: str) -> str:
    """A value with its own SI prefix: ``3.42 mJ``."""
    exponent, letter = prefix_for([value])
    return f"{plain(value / 10**exponent)} {letter}{unit}"


# Table


def align(rows: Sequence[Sequence[str]], left: int = 1, gap: str = "  ") -> list[str]:
    """Columns of equal width; the first ``left`` ones flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        gap.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def warning_line(methods: Iterable[str]) -> str:
    """The loud line over results that are not measured; empty where all are."""
    found = set(methods)
    texts = []
    if "estimated" in found:
        texts.append("ESTIMATED from a power model, not measured")
    if "emulated" in found:
        texts.append("from an EMULATED machine, not from hardware")
    if "unknown" in found:
        texts.append("of UNKNOWN method")
    if not texts:
        return ""
    some = "Some energies" if found - {"estimated", "emulated", "unknown"} else "Energies"
    return f"!!! {some} {' and '.join(texts)} !!!"


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


EXECUTE_PHASE: Final = "execute"


def has_phases(group: GroupResult) -> bool:
    """Whether a batch is more than its execution."""
    return bool({item.name for item in group.phases} - {EXECUTE_PHASE, OTHER_PHASE})


def beside_execution(phases: Sequence[PhaseShare]) -> float | None:
    """Share of the time that goes by around the execution: drivers, copies; None where none is told apart."""
    if not any(item.name == EXECUTE_PHASE for item in phases):
        return None
    # Waiting for queries is no work.
    return math.fsum(item.share.value for item in phases if item.name not in (EXECUTE_PHASE, IDLE_PHASE))


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


# CSV


def render_csv(result: RunResult) -> str:
    """One line for each configuration and batch size, in base units; the header names the units."""
    components = list(dict.fromkeys(item.name for group in result.groups for item in group.components))
    nodes = list(dict.fromkeys(item.name for group in result.groups for item in group.nodes))
    head = [
        *("run", "configuration", "network", "runtime", "precision", "batch_size", "rounds", "windows"),
        *("inferences", "duration_seconds"),
        *("throughput_inferences_per_second", "throughput_uncertainty_inferences_per_second"),
        *("latency_p50_seconds", "latency_p90_seconds", "latency_p99_seconds"),
    ]
    for name in (*components, TOTAL):
        for basis in ("gross", "net"):
            head += [f"{name}_{basis}_joules_per_inference", f"{name}_{basis}_uncertainty_joules_per_inference"]
        head.append(f"{name}_method")
    head += ["inferences_per_joule", "inferences_per_joule_uncertainty"]
    for name in nodes:
        head += [f"node {name} gross_joules_per_inference", f"node {name} gross_uncertainty_joules_per_inference"]
    counts = list(dict.fromkeys(item.name for group in result.groups for item in group.counts))
    for name in counts:
        head += [name, f"{name}_per_second", f"{name}_per_second_uncertainty"]
        for basis in ("gross", "net"):
            head += [f"{name}_{basis}_joules_each", f"{name}_{basis}_uncertainty_joules_each"]
    phases = list(dict.fromkeys(item.name for group in result.groups for item in group.phases))
    head += [f"phase_{name}_share_of_time" for name in phases]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for group in result.groups:
        configuration, latency = group.configuration, group.latency
        row: list[Any] = [
            *(result.record.header.run, configuration.name, configuration.network, configuration.runtime),
            *(configuration.precision, group.batch_size, group.rounds, len(group.windows)),
            *(group.inferences, _number(group.duration_s)),
            *_pair(group.throughput),
            *([latency.p50_s, latency.p90_s, latency.p99_s] if latency is not None else ["", "", ""]),
        ]
        energies = {item.name: item for item in (*group.components, group.total)}
        for name in (*components, TOTAL):
            item = energies.get(name)
            row += [*_pair(item.gross if item else None), *_pair(item.net if item else None)]
            row.append("+".join(item.methods) if item else "")
        row += _pair(group.total.inferences_per_joule)
        beside = {item.name: item for item in group.nodes}
        for name in nodes:
            row += _pair(beside[name].gross if name in beside else None)
        counted = {item.name: item for item in group.counts}
        for name in counts:
            unit = counted.get(name)
            row.append("" if unit is None else _number(unit.count))
            for estimate in (None, None, None) if unit is None else (unit.rate, unit.gross, unit.net):
                row += _pair(estimate)
        shares = {item.name: item.share.value for item in group.phases}
        row += [_number(shares[name]) if name in shares else "" for name in phases]
        writer.writerow(row)
    return out.getvalue()


def _number(value: float) -> str:
    return f"{value:.9g}"


def _pair(estimate: Estimate | None) -> list[str]:
    return ["", ""] if estimate is None else [_number(estimate.value), f"{estimate.expanded:.3g}"]


# JSON


def schema() -> dict[str, Any]:
    """The JSON schema of ``render_json``'s document, shipped with the package."""
    text = resources.files("joulewatch_harness.analysis").joinpath("result.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def result_document(result: RunResult) -> dict[str, Any]:
    """The result as plain data, as ``result.schema.json`` describes it."""
    header, end = result.record.header, result.record.end
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"joulewatch {__version__}",
        "run": {
            "id": header.run,
            "started_at_s": header.started_at_s,
            "ended_at_s": end.ended_at_s if end is not None else None,
            "status": end.status if end is not None else "running",
            "command": list(header.command),
            "plan": encode(header.plan),
            "plan_sha256": header.plan_sha256,
            "provenance": encode(header.provenance),
            "notes": [encode(note) for note in result.record.notes],
        },
        "source": result.source,
        "estimated": "estimated" in result.methods,
        "emulated": "emulated" in result.methods,
        "sensors": [encode(item) for item in result.sensors],
        "idle": {name: _idle_document(item) for name, item in result.idle.items()},
        "results": [_group_document(group) for group in result.groups],
        "setup": {
            name: [_setup_document(item) for item in result.setups if item.configuration == name]
            for name in dict.fromkeys(item.configuration for item in result.setups)
        },
        "findings": [
            {
                "severity": item.severity,
                "reason": item.reason,
                "text": item.text,
                "window": item.window,
                "evidence": dict(item.evidence),
            }
            for item in result.findings
        ],
    }


def render_json(result: RunResult) -> str:
    """The result as JSON; every number in base units."""
    return json.dumps(result_document(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def estimate_document(estimate: Estimate | None, unit: str) -> dict[str, Any] | None:
    """A value with its uncertainty and budget, as plain data."""
    if estimate is None:
        return None
    return {
        "value": estimate.value,
        "unit": unit,
        "standard_uncertainty": estimate.standard,
        "expanded_uncertainty": estimate.expanded,
        "coverage": 0.95,
        "coverage_factor": estimate.factor,
        "degrees_of_freedom": _finite(estimate.dof),
        "budget": [
            {
                "name": item.name,
                "type": item.kind,
                "standard_uncertainty": item.standard,
                "degrees_of_freedom": _finite(item.dof),
                "systematic": item.systematic,
                "text": item.text,
            }
            for item in estimate.budget
        ],
        **({"rounds": _rounds(estimate.rounds)} if estimate.rounds else {}),
    }


def _rounds(values: Mapping[int, float]) -> dict[str, float]:
    return {str(number): value for number, value in values.items()}


def _idle_document(idle: IdlePower | None) -> dict[str, Any] | None:
    if idle is None:
        return None
    return {
        "power_watts": idle.watts,
        "standard_uncertainty_watts": idle.standard_watts,
        "degrees_of_freedom": _finite(idle.dof),
        "basis": idle.basis,
        "windows": list(idle.windows),
        "text": idle.text,
    }


def _setup_document(item: SetupResult) -> dict[str, Any]:
    return {
        "phase": item.phase,
        "batch_size": item.batch_size,
        "duration_s": item.duration_s,
        "window": item.window,
        "details": dict(item.details),
        "energy": None
        if item.total is None
        else {
            "components": [_setup_energy_document(one) for one in item.components],
            "total": _setup_energy_document(item.total),
            "nodes": [_setup_energy_document(one) for one in item.nodes],
        },
    }


def _setup_energy_document(item: SetupEnergy) -> dict[str, Any]:
    return {
        "name": item.name,
        "gross": estimate_document(item.gross, "J"),
        "missing": item.missing,
        "methods": list(item.methods),
        "sources": list(item.sources),
    }


def _energy_document(item: EnergyResult) -> dict[str, Any]:
    return {
        "name": item.name,
        "gross": estimate_document(item.gross, "J"),
        "net": estimate_document(item.net, "J"),
        "inferences_per_joule": estimate_document(item.inferences_per_joule, "1/J"),
        "idle": _idle_document(item.idle),
        "missing": item.missing,
        "methods": list(item.methods),
        "sources": list(item.sources),
        "windows": list(item.windows),
        "sensors": [str(sensor) for sensor in item.sensors],
    }


def _group_document(group: GroupResult) -> dict[str, Any]:
    latency = group.latency
    return {
        "configuration": encode(group.configuration),
        "batch_size": group.batch_size,
        "rounds": group.rounds,
        "windows": list(group.windows),
        "left_out": [{"window": item.window, "reason": item.reason, "text": item.text} for item in group.left_out],
        "inferences": group.inferences,
        "duration_s": group.duration_s,
        "throughput": estimate_document(group.throughput, "1/s"),
        "latency": None
        if latency is None
        else {
            "p50_s": latency.p50_s,
            "p90_s": latency.p90_s,
            "p99_s": latency.p99_s,
            "max_s": latency.max_s,
            **{f"{name}_standard_uncertainty_s": value for name, value in latency.standard_s.items()},
            "rounds": {f"{name}_s": _rounds(values) for name, values in latency.rounds_s.items()},
        },
        "energy": {
            "components": [_energy_document(item) for item in group.components],
            "total": _energy_document(group.total),
            "nodes": [_energy_document(item) for item in group.nodes],
            "parts": [_energy_document(item) for item in group.parts],
        },
        "counts": {
            item.name: {
                "count": item.count,
                "per_inference": item.per_inference,
                "rate": estimate_document(item.rate, "1/s"),
                "gross": estimate_document(item.gross, "J"),
                "net": estimate_document(item.net, "J"),
            }
            for item in group.counts
        },
        "phases": [
            {"name": item.name, "share": estimate_document(item.share, "1"), "per_batch_s": item.per_batch_s}
            for item in group.phases
        ],
    }
