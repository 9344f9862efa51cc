"""The energy of a job's nodes as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final

from joulewatch_harness.analysis.energy.jobs import DEVICES, NODE, NodeEnergy, totals
from joulewatch_harness.analysis.reports.energy_report import JOULES_PER_KWH, energy_columns
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraph, paragraphs
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY, decimals_for, warning_line
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.clients.slurm import Allocation

SCHEMA_VERSION: Final = 1
WHOLE_NODES: Final = (
    "Energy of whole nodes while the job had them: other jobs on these nodes, the operating system and idle power are "
    "included."
)

_SUMS: Final = {NODE: "whole servers", DEVICES: "devices"}


def render_table(
    job: str,
    allocations: Sequence[Allocation],
    energies: Sequence[NodeEnergy],
    where: str,
    notices: Sequence[Notice] = (),
    *,
    width: int = DEFAULT_WIDTH,
) -> str:
    """Return the text: the allocations, the energy of each node and component, and the sums over all nodes."""
    lines = paragraph(f"Slurm job {job}, from {where}", width)
    lines += ["", *Table(_allocation_columns(), allocations).lines(width)]
    if warning := warning_line({method for one in energies for method in one.methods}):
        lines += ["", *paragraph(warning, width)]
    sums = totals(energies)
    rows = [*energies, *(one for one in sums.values() if one is not None)]
    lines += ["", *Table(_text_columns(), rows).lines(width)]
    notes = [WHOLE_NODES]
    notes += [
        f"No sum over the {_SUMS[name]}: the energy of a node is missing or not complete."
        for name, total in sums.items()
        if total is None
    ]
    for one in energies:
        if not one.host:
            notes.append(f"{one.node}: no exporter with this nodename, and no BMC with this name, has samples.")
        elif not one.complete:
            unmeasured_s = one.duration_s - one.measured_s
            notes.append(
                f"{one.node}, {one.component}: {unmeasured_s:.0f} s without a number: {', '.join(one.reasons)}"
            )
    notes += [f"{notice.severity} [{notice.reason}]: {notice.text}" for notice in notices]
    notes.append("±: 95 % coverage, an upper limit, with the rounding of the job's times to seconds.")
    if any(one.joules is not None and not one.accuracy_known for one in energies):
        notes.append(f"{UNKNOWN_ACCURACY}: sampling only: a sensor's accuracy is unknown.")
    return "\n".join([*lines, "", *paragraphs(notes, width)]) + "\n"


def _time(at_s: float | None) -> str:
    return "running" if at_s is None else f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M:%S}"


def _allocation_columns() -> list[Column[Allocation]]:
    return [
        Column("job", lambda one: one.job, text=True),
        Column("state", lambda one: one.state, text=True),
        Column("start UTC", lambda one: _time(one.start_s)),
        Column("end UTC", lambda one: _time(one.end_s)),
        Column("nodes", lambda one: len(one.nodes)),
    ]


def _text_columns() -> list[Column[NodeEnergy]]:
    def energy(one: NodeEnergy) -> str:
        if one.joules is None:
            return "missing"
        return f"{one.joules:.{min(decimals_for(one.joules, one.expanded_joules), 3)}f}"

    def uncertainty(one: NodeEnergy) -> str | None:
        if one.joules is None:
            return None
        digits = min(decimals_for(one.joules, one.expanded_joules), 3)
        return f"{one.expanded_joules:.{digits}f}{'' if one.accuracy_known else UNKNOWN_ACCURACY}"

    return [
        Column("node", lambda one: one.node or "all nodes", text=True),
        Column("component", lambda one: one.component, text=True),
        Column("energy J", energy),
        Column("± 95 %", uncertainty),
        Column("kWh", lambda one: None if one.joules is None else f"{one.joules / JOULES_PER_KWH:.4g}"),
        Column("measured s", lambda one: f"{one.measured_s:.0f} of {one.duration_s:.0f}", priority=1),
        Column("method", lambda one: "+".join(one.methods), text=True, priority=2),
    ]


def render_csv(job: str, energies: Sequence[NodeEnergy]) -> str:
    """Return the CSV: one line per node and component; ``devices`` is the sum of a node's components."""
    columns: list[Column[NodeEnergy]] = [
        Column("slurm_job", lambda _: job),
        Column("basis", lambda _: "whole_nodes"),
        Column("node", lambda one: one.node),
        Column("host", lambda one: one.host),
        Column("component", lambda one: one.component),
        *energy_columns(),
        Column("job_seconds", lambda one: f"{one.duration_s:.0f}"),
        Column("measured_seconds", lambda one: f"{one.measured_s:.3f}"),
        Column("unmeasured_reasons", lambda one: one.reasons),
        Column("methods", lambda one: one.methods),
    ]
    return Table(columns, energies).csv()


def render_json(
    job: str,
    allocations: Sequence[Allocation],
    energies: Sequence[NodeEnergy],
    where: str,
    notices: Sequence[Notice] = (),
) -> str:
    """Return the JSON, in base units; a sum is null if the energy of a node is not complete."""
    methods = {method for one in energies for method in one.methods}
    return json_text(
        {
            "schema_version": SCHEMA_VERSION,
            "source": where,
            "slurm_job": job,
            "basis": "whole_nodes",
            "basis_text": WHOLE_NODES,
            "coverage": 0.95,
            "estimated": "estimated" in methods,
            "emulated": "emulated" in methods,
            "allocations": [
                {
                    "job": one.job,
                    "cluster": one.cluster,
                    "state": one.state,
                    "start_s": one.start_s,
                    "end_s": one.end_s,
                    "nodes": list(one.nodes),
                }
                for one in allocations
            ],
            "nodes": [_document(one) for one in energies],
            "totals": {name: None if total is None else _document(total) for name, total in totals(energies).items()},
            "findings": [
                {"severity": notice.severity, "reason": notice.reason, "text": notice.text} for notice in notices
            ],
        }
    )


def _document(one: NodeEnergy) -> dict[str, Any]:
    return {
        "node": one.node,
        "host": one.host,
        "component": one.component,
        "joules": one.joules,
        "expanded_uncertainty": None if one.joules is None else one.expanded_joules,
        "covers": [] if one.joules is None else ["sampling", "accuracy"] if one.accuracy_known else ["sampling"],
        "duration_s": one.duration_s,
        "measured_s": one.measured_s,
        "missing": list(one.reasons),
        "methods": list(one.methods),
    }
