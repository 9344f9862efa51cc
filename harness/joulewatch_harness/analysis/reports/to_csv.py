"""Results as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from joulewatch_harness.analysis.results.model import TOTAL, Estimate, RunResult


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
