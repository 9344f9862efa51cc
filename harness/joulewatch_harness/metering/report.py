"""The result of ``joulewatch measure``, for people and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joulewatch_harness.analysis.reports.table import paragraphs
from joulewatch_harness.analysis.reports.to_text import finding_lines
from joulewatch_harness.analysis.results import numbers
from joulewatch_harness.analysis.results.model import TOTAL, EnergyResult
from joulewatch_harness.metering.child import Outcome
from joulewatch_harness.metering.energies import WindowEnergies
from joulewatch_harness.metering.runs import Result
from joulewatch_harness.metering.values import Energy, text_of
from joulewatch_harness.metering.window import Measurement

Row = tuple[str, str, str]
"""Name, energy, mean power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A command that was executed once or several times."""

    command: Sequence[str]
    windows: Sequence[Measurement]
    outcomes: Sequence[Outcome]
    mean: Result | None
    """Over the windows; None if there is only one."""


def document(result: CommandResult) -> Mapping[str, Any]:
    """Return the result as JSON values."""
    mean = result.mean
    return {
        "command": list(result.command),
        "run": result.windows[0].window.run,
        "exit_code": result.outcomes[-1].exit_code,
        "windows": [window.to_mapping() for window in result.windows],
        "mean": None
        if mean is None
        else {
            "repeats": mean.repeats,
            "joules_per_inference": mean.joules_per_inference,
            "uncertainty_joules": mean.uncertainty,
            "covers": list(mean.covers),
            "net_joules_per_inference": mean.net_joules_per_inference,
            "seconds_per_inference": mean.seconds_per_inference,
            "missing": mean.missing,
        },
    }


def lines(result: CommandResult, width: int) -> list[str]:
    """Return the result for people."""
    windows, mean = result.windows, result.mean
    several = "" if mean is None else f", mean of {mean.repeats} of {len(windows)} executions"
    rows = _window_rows(windows[-1]) if mean is None else _mean_rows(mean, windows)
    names, energies = max(len(name) for name, _, _ in rows), max(len(energy) for _, energy, _ in rows)
    table = [f"  {name:{names}}  {energy:{energies}}  {watts}".rstrip() for name, energy, watts in rows]
    covers = windows[-1].covers if mean is None else mean.covers
    notes = [f"  ±: at 95 %, covers {', '.join(covers)}"] if covers else []
    if covers and "accuracy" not in covers:
        notes.append(f"  {numbers.UNKNOWN_ACCURACY}: {numbers.UNKNOWN_ACCURACY_TEXT}")
    findings = [finding for window in windows for finding in window.findings]
    methods = {method for window in windows for method in window.energy.methods}
    warning = [numbers.warning_line(methods), ""] if numbers.warning_line(methods) else []
    return [
        "",
        *paragraphs([f"Energy of {shlex.join(result.command)}{several}:"], width),
        "",
        *table,
        "",
        *paragraphs([_resources(result), *notes, f"  run {windows[0].window.run}", *finding_lines(findings)], width),
        "",
        *warning,
    ]


def _named(energies: WindowEnergies) -> dict[str, Energy]:
    return {**energies.per_component, **energies.per_node, TOTAL: energies.total}


def _window_rows(window: Measurement) -> list[Row]:
    energies = window.energies
    named = _named(energies)
    if energies.net is not None:
        named["net of idle"] = energies.net
    rows = [
        (name, str(energy), "" if energy.watts is None else f"{energy.watts:.4g} W") for name, energy in named.items()
    ]
    if window.inferences > 1 and energies.total.estimate is not None:
        rows.append(("per inference", text_of(energies.total.estimate.divided_by(window.inferences), "J"), ""))
    return rows


def _mean_rows(mean: Result, windows: Sequence[Measurement]) -> list[Row]:
    """Return the energies of one execution, from those of one inference."""
    inferences = windows[-1].inferences
    missing = {
        name: str(energy)
        for window in windows
        for name, energy in _named(window.energies).items()
        if energy.estimate is None
    }
    named = {
        **{energy.name: energy for energy in mean.group.components},
        **{_node_name(energy): energy for energy in mean.group.nodes},
        TOTAL: mean.group.total,
    }
    rows: list[Row] = []
    for name, energy in named.items():
        if energy.gross is None:
            rows.append((name, missing.get(name, "no number"), ""))
            continue
        seconds = mean.seconds_per_inference
        watts = f"{energy.gross.value / seconds:.4g} W" if seconds else ""
        rows.append((name, text_of(energy.gross.divided_by(1 / inferences), "J"), watts))
    if mean.energy.net is not None:
        rows.append(("net of idle", text_of(mean.energy.net.divided_by(1 / inferences), "J"), ""))
    if inferences > 1 and mean.energy.gross is not None:
        rows.append(("per inference", text_of(mean.energy.gross, "J"), ""))
    return rows


def _node_name(energy: EnergyResult) -> str:
    (sensor,) = energy.sensors
    return f"{sensor.component}/{sensor.device}/{sensor.domain}"


def _resources(result: CommandResult) -> str:
    outcomes, count = result.outcomes, len(result.outcomes)
    seconds = sum(window.seconds for window in result.windows) / count
    user_s = sum(outcome.user_s for outcome in outcomes) / count
    system_s = sum(outcome.system_s for outcome in outcomes) / count
    peaks = [outcome.peak_memory_bytes for outcome in outcomes if outcome.peak_memory_bytes is not None]
    memory = f", {max(peaks) / 1e6:.4g} MB peak memory" if peaks else ""
    codes = ", ".join(dict.fromkeys(str(outcome.exit_code) for outcome in outcomes))
    return f"  {seconds:.4g} s elapsed, {user_s:.3g} s user, {system_s:.3g} s system{memory}, exit code {codes}"
