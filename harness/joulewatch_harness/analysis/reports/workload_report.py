"""The energy of workloads as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from joulewatch_harness.analysis.energy.sensor_energies import Joules
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.energy.workloads import IdlePolicy, ShareEnergy, WorkloadEnergy
from joulewatch_harness.analysis.reports import energy_report
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY, decimals_for
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.workloads import NAMES

SCHEMA_VERSION: Final = 1
ACTIVE: Final = (
    "Active energy: the part of the energy of processors, memory and GPUs above idle power, shared by CPU time and by "
    "the use of GPUs."
)
_POLICIES: Final = {
    "equal": "with idle: and idle energy, in equal parts for all workloads that are there.",
    "proportional": "with idle: and idle energy, by the share of the active energy.",
    "reserved": "with idle: and idle energy of processors and memory, by the share of the processors that the weights "
    "of cgroups give.",
}


def share_ratios(rows: Sequence[WorkloadEnergy]) -> list[float]:
    """Return the different factors of the bounds."""
    return sorted({part.ratio for row in rows for part in row.parts})


def bound_text(ratios: Sequence[float]) -> str:
    """Return what the limits of the shares mean."""
    text = " or ".join(f"{ratio:g}" for ratio in ratios)
    return (
        f"share bounds: of two workloads, one draws at most {text} times as much as the other per second of use. They "
        "exclude ±."
    )


def render_table(
    rows: Sequence[WorkloadEnergy],
    total: WorkloadEnergy | None,
    span: Span,
    where: str,
    notices: Sequence[Notice],
    *,
    idle: IdlePolicy,
    width: int = DEFAULT_WIDTH,
) -> str:
    """Return the text: one row per workload and machine, the sum, and what the numbers mean."""
    lines = energy_report.heading_lines(span, where, {method for row in rows for method in row.methods}, width)
    shown = [*rows, *([total] if total is not None and len(rows) > 1 else [])]
    lines += ["", *Table(text_columns(idle), shown).lines(width)]
    notes = [ACTIVE]
    if ratios := share_ratios(rows):
        notes.append(bound_text(ratios))
    if idle != "own":
        notes.append(_POLICIES[idle])
    notes += [f"missing: {_name(row)} on {row.host}: {row.text} [{row.reason}]" for row in rows if not row.parts]
    notes += energy_report.notice_lines(notices)
    notes.append("±: 95 % coverage, with refresh and accuracy of the sensors.")
    if any(row.joules is not None and not row.joules.accuracy_known for row in rows):
        notes.append(f"{UNKNOWN_ACCURACY}: sampling only: a sensor's accuracy is unknown.")
    return "\n".join([*lines, "", *paragraphs(notes, width)]) + "\n"


def _name(row: WorkloadEnergy) -> str:
    return "sum" if row.workload is None else f"{row.workload.kind}/{row.workload.workload}"


def text_columns(idle: IdlePolicy) -> list[Column[WorkloadEnergy]]:
    """Return the columns of a table; the first two are the workload and its machine."""

    def number(value: Callable[[WorkloadEnergy, Joules], float]) -> Callable[[WorkloadEnergy], str | None]:
        def cell(row: WorkloadEnergy) -> str | None:
            if row.joules is None:
                return None
            digits = min(decimals_for(row.joules.joules, row.joules.expanded_joules), 3)
            return f"{value(row, row.joules):.{digits}f}"

        return cell

    def uncertainty(row: WorkloadEnergy) -> str | None:
        text = number(lambda _, joules: joules.expanded_joules)(row)
        return f"{text}{UNKNOWN_ACCURACY}" if row.joules is not None and not row.joules.accuracy_known else text

    def share(row: WorkloadEnergy) -> str:
        if row.joules is None:
            return row.reason
        low, high = row.share_joules
        digits = decimals_for(row.joules.joules, max(high - low, 2 * row.joules.expanded_joules) / 2)
        return f"{low:.{min(digits, 3)}f} to {high:.{min(digits, 3)}f}"

    columns = [
        Column("workload", _name, text=True),
        Column("host", lambda row: row.host, text=True),
        Column("components", lambda row: "+".join(row.components), text=True, priority=2),
        Column("energy J", lambda row: number(lambda _, joules: joules.joules)(row) or "missing"),
        Column("± 95 %", uncertainty),
        Column("share bounds J", share),
        Column("share", _share, priority=1),
    ]
    if idle != "own":
        columns.append(Column("with idle J", number(lambda row, joules: joules.joules + _idle_joules(row))))
    return columns


def _share(row: WorkloadEnergy) -> str | None:
    joules = row.joules
    return f"{100 * joules.joules / row.active_joules:.1f} %" if joules is not None and row.active_joules > 0 else None


def _idle_joules(row: WorkloadEnergy | ShareEnergy) -> float:
    return 0.0 if row.idle is None else row.idle.joules


def render_csv(rows: Sequence[WorkloadEnergy], span: Span, idle: IdlePolicy) -> str:
    """Return the CSV: one line per workload, machine and component (of GPUs: device), in base units."""
    lines: list[tuple[WorkloadEnergy, ShareEnergy | None]] = [
        (row, part) for row in rows for part in (row.parts or (None,))
    ]

    def number(value: Callable[[ShareEnergy], float]) -> Callable[[tuple[WorkloadEnergy, ShareEnergy | None]], str]:
        return lambda line: "" if line[1] is None else f"{value(line[1]):.9g}"

    def named(label: str) -> Column[tuple[WorkloadEnergy, ShareEnergy | None]]:
        return Column(label, lambda line: line[0].names.get(label, ""))

    columns: list[Column[tuple[WorkloadEnergy, ShareEnergy | None]]] = [
        Column("start_seconds", lambda _: f"{span.start_s:.6f}"),
        Column("end_seconds", lambda _: f"{span.end_s:.6f}"),
        Column("host", lambda line: line[0].host),
        Column("exporter", lambda line: line[0].exporter),
        *map(named, NAMES),
        Column("component", lambda line: "" if line[1] is None else line[1].device.component),
        Column("device", lambda line: "" if line[1] is None else line[1].device.device),
        Column("methods", lambda line: line[0].methods),
        Column("energy_joules", number(lambda part: part.joules.joules)),
        Column("uncertainty_joules", number(lambda part: part.joules.expanded_joules)),
        Column("uncertainty_covers", lambda line: "" if line[1] is None else "+".join(line[1].joules.covers)),
        Column("lower_joules", number(lambda part: part.joules.lower_joules)),
        Column("upper_joules", number(lambda part: part.joules.upper_joules)),
        Column("share_lower_joules", number(lambda part: part.share_lower_joules)),
        Column("share_upper_joules", number(lambda part: part.share_upper_joules)),
        Column("active_joules", number(lambda part: part.active_joules)),
        Column("idle_policy", lambda _: idle),
        Column("idle_joules", number(_idle_joules)),
        Column("measured_seconds", lambda line: f"{line[0].measured_s:.3f}"),
        Column("missing", lambda line: line[0].reason),
    ]
    return Table(columns, lines).csv()


def render_json(
    rows: Sequence[WorkloadEnergy],
    total: WorkloadEnergy | None,
    span: Span,
    where: str,
    notices: Sequence[Notice],
    *,
    idle: IdlePolicy,
) -> str:
    """Return the JSON, in base units; the total is null if the energy of a workload is missing."""
    methods = {method for row in rows for method in row.methods}
    return json_text(
        {
            "schema_version": SCHEMA_VERSION,
            "source": where,
            "start_s": span.start_s,
            "end_s": span.end_s,
            "unit": "J",
            "coverage": 0.95,
            "basis": "active",
            "basis_text": ACTIVE,
            "idle_policy": idle,
            "share_ratios": share_ratios(rows),
            "estimated": "estimated" in methods,
            "emulated": "emulated" in methods,
            "workloads": [workload_document(row) for row in rows],
            "total": None if total is None else workload_document(total),
            "findings": energy_report.findings_document(notices),
        }
    )


def workload_document(row: WorkloadEnergy) -> dict[str, Any]:
    """Return one workload, or a sum, for JSON."""
    low, high = row.share_joules
    energy = energy_report.joules_document(row.joules)
    if energy is not None:
        energy |= {"share_lower_joules": low, "share_upper_joules": high, "active_joules": row.active_joules}
        energy["idle_joules"] = _idle_joules(row)
        energy["components"] = [
            {
                "component": part.device.component,
                "device": part.device.device,
                **(energy_report.joules_document(part.joules) or {}),
                "share_lower_joules": part.share_lower_joules,
                "share_upper_joules": part.share_upper_joules,
                "active_joules": part.active_joules,
                "idle_joules": _idle_joules(part),
            }
            for part in row.parts
        ]
    named = {} if row.workload is None else {label: row.names.get(label, "") for label in NAMES}
    return {
        **named,
        "host": row.host,
        "exporter": row.exporter,
        "methods": list(row.methods),
        "measured_s": row.measured_s,
        "duration_s": row.duration_s,
        "missing": row.reason,
        "missing_text": row.text,
        "energy": energy,
    }
