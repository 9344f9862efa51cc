"""The energy of a job's nodes as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final

from joulewatch_harness.analysis.energy.job_shares import JobShares
from joulewatch_harness.analysis.energy.jobs import DEVICES, NODE, NodeEnergy, totals
from joulewatch_harness.analysis.energy.workloads import WorkloadEnergy
from joulewatch_harness.analysis.reports.energy_report import JOULES_PER_KWH, energy_columns, notice_lines
from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraph, paragraphs
from joulewatch_harness.analysis.reports.workload_report import (
    ACTIVE,
    bound_text,
    share_ratios,
    text_columns,
    workload_document,
)
from joulewatch_harness.analysis.results.numbers import UNKNOWN_ACCURACY, decimals_for, warning_line
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.clients.slurm import Allocation

SCHEMA_VERSION: Final = 1
WHOLE_NODES: Final = (
    "Energy of whole nodes while the job had them: other jobs on these nodes, the operating system and idle power are "
    "included."
)
OWN: Final = "The job alone, without other jobs, the operating system and idle power: from the series of its workloads."
NO_SHARES: Final = "The part of the job alone is not known: no exporter of its nodes has published a workload of it."
_OWN_BASIS: Final = "job_active"
_SUMS: Final = {NODE: "whole servers", DEVICES: "devices"}


def render_table(
    job: str,
    allocations: Sequence[Allocation],
    energies: Sequence[NodeEnergy],
    where: str,
    notices: Sequence[Notice] = (),
    shares: JobShares | None = None,
    *,
    width: int = DEFAULT_WIDTH,
) -> str:
    """Return the text: the allocations, the energy of each node and component, and the sums over all nodes.

    ``shares`` is what the job alone used; None: not looked up.
    """
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
    notes += notice_lines(notices)
    notes.append("±: 95 % coverage, an upper limit, with the rounding of the job's times to seconds.")
    if any(one.joules is not None and not one.accuracy_known for one in energies):
        notes.append(f"{UNKNOWN_ACCURACY}: sampling only: a sensor's accuracy is unknown.")
    if shares is not None:
        if shares.nodes:
            lines += ["", *paragraph(OWN, width), "", *_own_table(shares, width)]
            notes += [ACTIVE, bound_text(share_ratios([*shares.nodes.values()]))]
            if shares.missing:
                notes.append(f"Without a number for the job alone, so without a sum: {', '.join(shares.missing)}.")
        else:
            notes.append(NO_SHARES)
        notes += notice_lines(shares.notices)
    return "\n".join([*lines, "", *paragraphs(notes, width)]) + "\n"


def _own_table(shares: JobShares, width: int) -> list[str]:
    names = {id(one): node for node, one in shares.nodes.items()}
    rows = [*shares.nodes.values(), *([shares.total] if shares.total is not None and len(shares.nodes) > 1 else [])]
    node = Column[WorkloadEnergy]("node", lambda one: names.get(id(one), "all nodes"), text=True)
    return Table([node, *text_columns("own")[2:]], rows).lines(width)


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


def render_csv(job: str, energies: Sequence[NodeEnergy], shares: JobShares | None = None) -> str:
    """Return the CSV: one line per node and component; ``devices`` is the sum of a node's components.

    The basis is ``whole_nodes``, or ``job_active`` for the job alone.
    """
    rows: list[tuple[str, NodeEnergy, tuple[float, float] | None]] = [("whole_nodes", one, None) for one in energies]
    for node, own in shares.nodes.items() if shares is not None else ():
        joules = own.joules
        assert joules is not None
        row = NodeEnergy(
            node=node,
            host=own.host,
            component=DEVICES,
            joules=joules.joules,
            expanded_joules=joules.expanded_joules,
            accuracy_known=joules.accuracy_known,
            duration_s=own.duration_s,
            measured_s=own.measured_s,
            reasons=(),
            methods=own.methods,
        )
        rows.append((_OWN_BASIS, row, own.share_joules))

    def of_energy(column: Column[NodeEnergy]) -> Column[tuple[str, NodeEnergy, tuple[float, float] | None]]:
        return Column(column.name, lambda row: column.value(row[1]))

    columns = [
        Column("slurm_job", lambda _: job),
        Column("basis", lambda row: row[0]),
        *map(
            of_energy,
            [
                Column("node", lambda one: one.node),
                Column("host", lambda one: one.host),
                Column("component", lambda one: one.component),
                *energy_columns(),
                Column("job_seconds", lambda one: f"{one.duration_s:.0f}"),
                Column("measured_seconds", lambda one: f"{one.measured_s:.3f}"),
                Column("unmeasured_reasons", lambda one: one.reasons),
                Column("methods", lambda one: one.methods),
            ],
        ),
        Column("share_lower_joules", lambda row: "" if row[2] is None else f"{row[2][0]:.9g}"),
        Column("share_upper_joules", lambda row: "" if row[2] is None else f"{row[2][1]:.9g}"),
    ]
    return Table(columns, rows).csv()


def render_json(
    job: str,
    allocations: Sequence[Allocation],
    energies: Sequence[NodeEnergy],
    where: str,
    notices: Sequence[Notice] = (),
    shares: JobShares | None = None,
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
            "own": None if shares is None else _own_document(shares),
            "findings": [
                {"severity": notice.severity, "reason": notice.reason, "text": notice.text}
                for notice in (*notices, *(() if shares is None else shares.notices))
            ],
        }
    )


def _own_document(shares: JobShares) -> dict[str, Any]:
    return {
        "basis": _OWN_BASIS,
        "basis_text": f"{OWN} {ACTIVE}",
        "share_ratios": share_ratios([*shares.nodes.values()]),
        "nodes": [{"node": node, **workload_document(one)} for node, one in shares.nodes.items()],
        "missing_nodes": list(shares.missing),
        "total": None if shares.total is None else workload_document(shares.total),
    }


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
