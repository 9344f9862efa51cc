"""A run's results as plain text for a terminal. Pure: text out."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, paragraph, paragraphs
from joulewatch_harness.analysis.reports.whose_text import (
    attributed_lines,
    estimate_cell,
    four_digits,
    has_attributed,
    interference_lines,
    rate_cell,
    shares_lines,
)
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.model import (
    TOTAL,
    BudgetLine,
    CountResult,
    EnergyResult,
    Estimate,
    GroupResult,
    IdlePower,
    PhaseShare,
    RunResult,
    SetupResult,
)
from joulewatch_harness.analysis.results.numbers import (
    UNKNOWN_ACCURACY,
    UNKNOWN_ACCURACY_TEXT,
    energy_text,
    freedom_text,
    plain,
    prefix_for,
    warning_line,
)
from joulewatch_harness.analysis.results.phases import has_phases, outside_execution
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.plan.target import MAX_UNCERTAINTY
from joulewatch_harness.records import SensorRecord

METHOD_TEXTS: Final = {
    "counter": "energy counter",
    "integrated": "power integrated near the sensor",
    "estimated": "ESTIMATED by a power model",
    "emulated": "EMULATED machine",
    "unknown": "method UNKNOWN",
}
_MOST_NAMES: Final = 6
NO_PHASE_ENERGY: Final = "No energy per phase: no counter was read at its refreshes, or none resolves a phase."
PhaseEnergyRow: TypeAlias = tuple[GroupResult, str]
"""A group, and the component (or the total) whose energy is shown."""


def render_table(result: RunResult, *, width: int = DEFAULT_WIDTH, budget: bool = False) -> str:
    """Return the result as plain text for a terminal.

    Args:
        result: The analysed run.
        width: Columns of the terminal; the tables drop columns that do not fit and name them.
        budget: Also the uncertainty budget of every total.
    """
    header = result.record.header
    started = datetime.datetime.fromtimestamp(header.started_at_s, datetime.UTC)
    hardware = f", {result.hardware}" if result.hardware else ""
    warning = warning_line(result.methods)
    kinds = (
        [group.total for group in result.groups],
        [component for group in result.groups for component in group.components],
        [node for group in result.groups for node in group.nodes],
    )
    found = ([energy.gross.value for energy in energies if energy.gross is not None] for energies in kinds)
    values: list[float] = next(filter(None, found), [])
    exponent, letter = prefix_for(values)
    scale, unit = 10.0**-exponent, f"{letter}J"
    lines = paragraph(f"Run {header.run}, {started:%Y-%m-%d %H:%M:%S} UTC{hardware}", width)
    if warning:
        lines += ["", *paragraph(warning, width)]
    lines += ["", *_group_lines(result, scale, unit, width)]
    lines += paragraphs(
        [
            *idle_lines(result),
            *attributed_lines(result),
            *rounds_lines(result),
            *loaded_lines(result),
            *setup_lines(result),
        ],
        width,
    )
    lines += shares_lines(result, scale, unit, width)
    lines += interference_lines(result, scale, unit, width)
    lines += _count_lines(result, width)
    lines += _phase_lines(result, width)
    lines += _node_and_part_lines(result, scale, unit, width)
    if budget:
        lines += _budget_lines(result, scale, unit, width)
    lines += paragraphs(missing_lines(result), width)
    lines += ["", *paragraphs(_sensor_lines(result.sensors, result.source), width)]
    lines += paragraphs(finding_lines(result.findings), width)
    if warning:
        lines += ["", *paragraph(warning, width)]
    return "\n".join(lines) + "\n"


# Cells


def _configuration(group: GroupResult) -> str:
    return group.configuration.name


def _missing_cell(result: EnergyResult) -> str:
    return "missing" if result.missing and result.attributed is None else "-"


def _energy_cell(result: EnergyResult | None, scale: float) -> str | None:
    if result is None:
        return None
    if result.gross is None:
        return _missing_cell(result)
    return plain(result.gross.value * scale, (result.gross.expanded or 0.0) * scale)


def rounds_cell(group: GroupResult) -> str:
    """Return the rounds that the total uses, and how many were measured if that is more."""
    used = len(group.total.gross.rounds) if group.total.gross is not None else group.rounds
    return str(used) if used == group.measured_rounds else f"{used}/{group.measured_rounds}"


def _per_joule_cell(estimate: Estimate | None) -> str | None:
    return None if estimate is None else plain(estimate.value, estimate.expanded or 0.0)


def milliseconds_cell(group: GroupResult) -> str | None:
    if group.latency is None:
        return None
    p50, p99 = group.latency.p50_s * 1e3, group.latency.p99_s * 1e3
    digits = 0 if p99 >= 100 else (1 if p99 >= 10 else 2)
    return f"{p50:.{digits}f}/{p99:.{digits}f}"


def _percent_cell(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


# Sections


def _group_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    """Return the main table, with one row per configuration and batch size, and its legend."""
    if not result.groups:
        return paragraph("The run has no measure window, so it has no results.", width)
    names = list(dict.fromkeys(component.name for group in result.groups for component in group.components))
    # A single component is the total.
    components = names if len(names) > 1 else []

    def component(name: str) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str | None:
            return _energy_cell({item.name: item for item in group.components}.get(name), scale)

        return Column(name, cell, priority=2)

    attributed_columns: list[Column[GroupResult]] = []
    if has_attributed(result):
        attributed_columns = [Column("attributed", lambda group: estimate_cell(group.total.attributed, scale))]
    columns: list[Column[GroupResult]] = [
        Column("batch", lambda group: group.batch_size),
        Column("rounds", rounds_cell),
        Column("inf/s", lambda group: rate_cell(group.throughput)),
        Column("p50/p99 ms", milliseconds_cell),
        *map(component, components),
        Column("total", lambda group: estimate_cell(group.total.gross, scale) or _missing_cell(group.total)),
        Column("net", lambda group: estimate_cell(group.total.net, scale)),
        *attributed_columns,
        Column("inf/J", lambda group: _per_joule_cell(group.total.inferences_per_joule), priority=1),
    ]
    energies = [*components, "total", "net", *(column.name for column in attributed_columns)]
    legend = (
        f"{', '.join(energies)}: {unit} per inference over all device sensors; "
        "±: 95 % coverage; p50/p99: latency of a batch."
    )
    if components:
        legend += " JSON and CSV have the ± of the components."
    lines = Table(columns, result.groups, _configuration).lines(width)
    others = [*setup_lines(result), *_node_and_part_lines(result, scale, unit, width)]
    if any(UNKNOWN_ACCURACY in line for line in (*lines, *others)):
        legend += f" {UNKNOWN_ACCURACY}: {UNKNOWN_ACCURACY_TEXT}."
    return [*lines, "", *paragraphs([legend, *single_round_lines(result)], width)]


def single_round_lines(result: RunResult) -> list[str]:
    """Return which results have no ±, because only one round is usable."""
    sizes: dict[tuple[str, int], list[int]] = {}
    for group in result.groups:
        energies = [energy.gross for energy in (group.total, *group.nodes) if energy.gross is not None]
        if energies and energies[0].expanded is None:
            sizes.setdefault((group.configuration.name, group.measured_rounds), []).append(group.batch_size)
    return [
        f"{name}, batch {', '.join(map(str, batches))}: 1 of "
        f"{count_of(measured, 'round')}: repeatability unknown; ± is omitted."
        for (name, measured), batches in sizes.items()
    ]


def idle_lines(result: RunResult) -> list[str]:
    total = result.idle.get(TOTAL)
    if total is None:
        return ["net: not available, because no idle window has the energy of all devices."]
    own = {group.total.idle.text for group in result.groups if group.total.idle is not None}
    text = f"net: total minus idle power × time; idle power is {_watts(total)} over all devices ({total.text})."
    if own and own != {total.text}:
        text += f" Each configuration uses its own idle windows: {'; '.join(sorted(own))}."
    withheld = sorted({group.total.net_missing for group in result.groups if group.total.net_missing})
    return [text, *(f"net is withheld, because {reason}." for reason in withheld)]


def rounds_lines(result: RunResult) -> list[str]:
    """Return why each configuration has no more rounds; batch sizes with the same reason share it."""
    if result.record.header.is_metered:
        return []
    lines = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups):
        sizes: dict[str, list[str]] = {}
        for group in result.groups:
            if group.configuration.name == name and group.rounds_ended:
                sizes.setdefault(group.rounds_ended, []).append(str(group.batch_size))
        endings = [f"batch {', '.join(numbers)}: {ending}" for ending, numbers in sizes.items()]
        lines += [f"  {name}: {'; '.join(endings)}"] if endings else []
    target = result.record.header.plan.get(MAX_UNCERTAINTY)
    rule = "" if target is None else f" (until ±{100 * target:g} % of the total: repeats only, t at 97 %)"
    if lines or not result.groups:
        return [f"Rounds{rule}:", *lines] if lines else []
    # A run rebuilt from Prometheus.
    missing = "why they ended is not stored" if rule else "neither the target of the plan nor why they ended is stored"
    return [f"Rounds{rule}: {missing}; the run's journal has it."]


_LOADED: Final[Mapping[str, str]] = {
    "threads": "threads: {}",
    "streams": "streams: {}",
    "integer_ops": "integer kernels: {} matrix products",
    "batch_axes": "batch axes: {}",
    "input_values": "inputs: {}",
    "tf32": "TF32: {}",
    "copies": "copies: {}",
    "tuning": "tuning: {}",
    "engine": "engine: {}",
    "mode": "mode: {}",
    "experimental": "EXPERIMENTAL: {}",
}
"""Details of a configuration that change what its numbers mean, with their wording."""


def loaded_lines(result: RunResult) -> list[str]:
    """Return version, provider, device, precision and threads of each configuration, as read back after loading."""
    lines = []
    for name, configuration in {group.configuration.name: group.configuration for group in result.groups}.items():
        parts = [
            f"{configuration.runtime} {configuration.runtime_version}".rstrip(),
            configuration.provider,
            configuration.device,
            configuration.actual_precision,
        ]
        lines.append(f"  {name}: {', '.join(filter(None, (*parts, *_details(configuration.details))))}")
        for setup in result.setups:
            details = _details(setup.details)
            if setup.configuration == name and details:
                lines.append(f"    batch {setup.batch_size}: {', '.join(details)}")
    return ["As loaded:", *lines] if lines else []


def _details(details: Mapping[str, str]) -> list[str]:
    return [text.format(details[key]) for key, text in _LOADED.items() if details.get(key)]


def setup_lines(result: RunResult) -> list[str]:
    """Return time and energy of loading and preparing, per configuration; setups below a second are not shown."""
    spans: dict[str, list[str]] = {}
    for setup in result.setups:
        if setup.window is not None:
            name = setup.phase if setup.phase == "load" else f"batch {setup.batch_size} {setup.phase}"
            text = f"{name} {four_digits(setup.duration_s)} s, {_setup_joules(setup)}"
            spans.setdefault(setup.configuration, []).append(text)
    return [f"Setup, excluded from the results above: {name} {'; '.join(texts)}" for name, texts in spans.items()]


def _setup_joules(setup: SetupResult) -> str:
    total = setup.total
    if total is None or total.gross is None:
        return f"energy missing: {total.missing if total is not None else 'no window'}"
    exponent, letter = prefix_for([total.gross.value])
    return f"{energy_text(total.gross, 10.0**-exponent)} {letter}J"


def _watts(idle: IdlePower) -> str:
    exponent, letter = prefix_for([idle.watts])
    scale = 10.0**-exponent
    return f"{plain(idle.watts * scale, 2 * idle.standard_watts * scale)} {letter}W"


def _count_lines(result: RunResult, width: int) -> list[str]:
    """Return the energy of other units of work than the inference, such as output tokens."""
    lines: list[str] = []
    for name in dict.fromkeys(count.name for group in result.groups for count in group.counts):
        rows = [(group, count) for group in result.groups for count in group.counts if count.name == name]
        exponent, letter = prefix_for(count.gross.value for _, count in rows if count.gross is not None)
        words = name.replace("_", " ")
        heading = f"{words[:1].upper()}{words[1:]} (per inf: per inference; total, net: {letter}J each)"
        table = Table(count_columns(10.0**-exponent), rows, lambda row: _configuration(row[0]))
        lines += ["", *paragraph(heading, width), *table.lines(width)]
    return lines


def count_columns(scale: float) -> list[Column[tuple[GroupResult, CountResult]]]:
    return [
        Column("batch", lambda row: row[0].batch_size),
        Column("per inf", lambda row: four_digits(row[1].per_inference)),
        Column("per s", lambda row: rate_cell(row[1].rate)),
        Column("total", lambda row: estimate_cell(row[1].gross, scale) or "missing"),
        Column("net", lambda row: estimate_cell(row[1].net, scale)),
        Column("attributed", lambda row: estimate_cell(row[1].attributed, scale)),
    ]


def _phase_lines(result: RunResult, width: int) -> list[str]:
    """Return the shares of the time, for configurations whose batches have phases other than the execution."""
    lines: list[str] = []
    for name in dict.fromkeys(group.configuration.name for group in result.groups if has_phases(group)):
        groups = [group for group in result.groups if group.configuration.name == name and group.phases]
        lines += [*([""] if lines else []), *Table(_phase_columns(groups), groups, _configuration).lines(width)]
    if not lines:
        return []
    shares = ["", *paragraph("Share of the time per phase, %", width), *lines]
    return [*shares, *_phase_energy_lines(result, width)]


def _phase_energy_lines(result: RunResult, width: int) -> list[str]:
    """Return the energy per phase."""
    rows, exponent, letter = phase_energy_rows(result)
    if not rows:
        return ["", *paragraph(NO_PHASE_ENERGY, width)]
    heading = f"Energy per phase, {letter}J per inference, gross (n.r.: not resolved; rest: all of these together)"
    table = Table(phase_energy_columns(rows, 10.0**-exponent), rows, lambda row: row[0].configuration.name)
    return ["", *paragraph(heading, width), *table.lines(width)]


def phase_energy_rows(result: RunResult) -> tuple[list[PhaseEnergyRow], int, str]:
    """Return groups with the total, or the components that resolve phases, and the prefix of the unit."""
    rows = [
        (group, name)
        for group in result.groups
        for name in (TOTAL, *(component.name for component in group.components))
        if has_phases(group) and any(name in phase.energies for phase in group.phases)
    ]
    with_total = {id(group) for group, name in rows if name == TOTAL}
    rows = [(group, name) for group, name in rows if name == TOTAL or id(group) not in with_total]
    values = [phase.energies[name].value for group, name in rows for phase in group.phases if name in phase.energies]
    return rows, *prefix_for(values)


def phase_energy_columns(rows: Sequence[PhaseEnergyRow], scale: float) -> list[Column[PhaseEnergyRow]]:
    """Return the columns of the energies per phase."""

    def phase(wanted: str, priority: int) -> Column[PhaseEnergyRow]:
        def cell(row: PhaseEnergyRow) -> str | None:
            found = next((phase for phase in row[0].phases if phase.name == wanted), None)
            return None if found is None else estimate_cell(found.energies.get(row[1]), scale) or "n.r."

        return Column(wanted, cell, priority=priority)

    names = dict.fromkeys(phase.name for group, _ in rows for phase in group.phases)
    columns: list[Column[PhaseEnergyRow]] = [
        Column("batch", lambda row: row[0].batch_size),
        Column("of", lambda row: row[1], text=True),
    ]
    columns += [phase(name, priority) for priority, name in enumerate(names)]
    if any(name in group.unresolved_phases for group, name in rows):
        columns.append(Column("rest", lambda row: estimate_cell(row[0].unresolved_phases.get(row[1]), scale)))
    return columns


def _outside_execution(group: GroupResult) -> float | None:
    return outside_execution({phase.name: phase.share.value for phase in group.phases})


def _phase_columns(groups: Sequence[GroupResult]) -> list[Column[GroupResult]]:
    def phase(name: str, priority: int) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str | None:
            shares: dict[str, PhaseShare] = {phase.name: phase for phase in group.phases}
            return _percent_cell(shares[name].share.value) if name in shares else None

        return Column(name, cell, priority=priority)

    names = dict.fromkeys(phase.name for group in groups for phase in group.phases)
    columns: list[Column[GroupResult]] = [Column("batch", lambda group: group.batch_size)]
    columns += [phase(name, priority) for priority, name in enumerate(names)]
    if any(_outside_execution(group) is not None for group in groups):
        columns.append(Column("outside execute", lambda group: _percent_cell(_outside_execution(group))))
    return columns


def _node_and_part_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    """Return the energy of whole servers and of parts of devices, which are never added to the total."""
    names = list(dict.fromkeys(energy.name for group in result.groups for energy in (*group.nodes, *group.parts)))
    if not names:
        return []
    one_exporter = len({record.exporter for record in result.sensors}) == 1
    primary = {str(SensorId.of(record)) for record in result.sensors if record.primary}

    def sensor(name: str, priority: int) -> Column[GroupResult]:
        def cell(group: GroupResult) -> str | None:
            energy = {energy.name: energy for energy in (*group.nodes, *group.parts)}.get(name)
            return None if energy is None else estimate_cell(energy.gross, scale) or _missing_cell(energy)

        # The device and domain alone, where the exporter and collector need no mention.
        shown = "/".join(name.split("/")[-2:]) if one_exporter else name
        return Column(f"{shown} (primary)" if name in primary else shown, cell, priority=priority)

    columns: list[Column[GroupResult]] = [Column("batch", lambda group: group.batch_size)]
    columns += [sensor(name, priority) for priority, name in enumerate(names)]
    heading = f"Whole servers and parts of devices, {unit} per inference (never added to the total)"
    return ["", *paragraph(heading, width), *Table(columns, result.groups, _configuration).lines(width)]


def _budget_lines(result: RunResult, scale: float, unit: str, width: int) -> list[str]:
    lines: list[str] = []
    for group in result.groups:
        for basis, estimate in (
            ("gross", group.total.gross),
            ("net", group.total.net),
            ("attributed", group.total.attributed),
        ):
            if estimate is not None:
                factor = (
                    "" if estimate.factor is None else f" (k = {estimate.factor:.3g}, {freedom_text(estimate.dof)})"
                )
                heading = (
                    f"{group.configuration.name}, batch {group.batch_size}, {basis}: "
                    f"{energy_text(estimate, scale)} {unit}{factor}"
                )
                rows = sorted(estimate.budget, key=lambda line: -line.standard)
                table = Table(budget_columns(estimate.standard**2, scale, unit), rows)
                lines += ["", *paragraph(heading, width), *(f"  {line}" for line in table.lines(width - 2))]
    return lines


def budget_columns(variance: float, scale: float, unit: str) -> list[Column[BudgetLine]]:
    def share(line: BudgetLine) -> str:
        if not line.counted:
            return "in repeats" if line.kind == "B" else "in others"
        return f"{100 * line.standard**2 / variance if variance else 0.0:.1f}"

    return [
        Column("component", lambda line: line.name, text=True),
        Column("type", lambda line: line.kind, text=True),
        Column(f"u [{unit}]", lambda line: f"{line.standard * scale:.2g}"),
        Column("share %", share),
        Column("source", lambda line: line.text, text=True),
    ]


def missing_lines(result: RunResult) -> list[str]:
    lines = [
        f"{group.configuration.name}, batch {group.batch_size}: {component.name} is missing: {component.missing}"
        for group in result.groups
        for component in group.components
        if component.missing and component.attributed is None
    ]
    return ["", *lines] if lines else []


def _sensor_lines(sensors: Sequence[SensorRecord], source: str) -> list[str]:
    lines = []
    for scope in ("device", "node", "part"):
        groups: dict[tuple[str, str, str, str], list[SensorRecord]] = {}
        for record in sensors:
            if record.scope == scope:
                calibration = record.calibration.date if record.calibration is not None else ""
                groups.setdefault((record.exporter, record.collector, record.method, calibration), []).append(record)
        for (exporter, collector, method, _), items in groups.items():
            names = list(
                dict.fromkeys(
                    f"{record.device}/{record.domain}{' (primary)' if record.primary else ''}" for record in items
                )
            )
            text = ", ".join(names[:_MOST_NAMES])
            if len(names) > _MOST_NAMES:
                text += f" and {len(names) - _MOST_NAMES} more"
            extra = {*filter(None, map(accuracy_text, items))} | {
                record.model for record in items if record.model and method in ("estimated", "integrated")
            }
            note = f" ({'; '.join(sorted(extra))})" if extra else ""
            lines.append(f"  {scope}: {text}: {collector} on {exporter}, {METHOD_TEXTS.get(method, method)}{note}")
    heading = f"Sensors (samples from {source}):" if source else "Sensors (edges of the journal only):"
    return [heading, *lines] if lines else ["No energy sensor."]


def accuracy_text(record: SensorRecord) -> str:
    """Return the calibration of a sensor, else its published accuracy; empty if it has neither."""
    if record.calibration is not None:
        return record.calibration.text
    if record.accuracy is None:
        return ""
    source = f", {record.accuracy_source}" if record.accuracy_source else ""
    return f"±{100 * record.accuracy:g} %{source}"


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings, errors first; findings with the same reason share a line."""
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        grouped.setdefault((finding.severity, finding.reason), []).append(finding)
    lines = []
    for severity in ("error", "warning", "info"):
        for (level, reason), items in grouped.items():
            if level == severity:
                windows = sorted({finding.window for finding in items if finding.window is not None})
                more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
                at = f", window {windows[0]}" if windows else ""
                lines.append(f"  {severity} [{reason}]{at}: {items[0].text}{more}")
    return ["", "Audit:", *lines] if lines else []
