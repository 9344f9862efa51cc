"""The energy of the phases of a batch: the gross energy of the measure windows, divided by the powers of the phases.

The powers come from the phase pass (``runner.phase_power``). Recording phases and reading counters all the time use
some power themselves, in all phases alike. So the powers are moved by one amount, such that the phases have the power
of the measure windows together. Then their energies add up to the gross energy; the amount is part of the uncertainty.

An energy whose uncertainty is above half of it is not resolved. All such phases of a component have one energy
together, which is the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from joulewatch_harness.analysis.results.model import BudgetLine, EnergyResult, Estimate, PhaseShare
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import PhasePowers, Window

LARGEST_DOUBT: Final = 0.5
MODEL_DOUBT: Final = 0.02
"""Relative standard uncertainty of a fitted power, which varies within a phase: about the largest error of the fits to
a simulated counter (tests/integration/test_phase_energy.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The powers of the sensors of one component together."""

    watts: Mapping[str, float]
    standard_watts: Mapping[str, float]
    intervals: int


def with_energies(
    phases: Sequence[PhaseShare],
    windows: Sequence[Window],
    results: Sequence[EnergyResult],
    inferences_per_s: float,
) -> tuple[tuple[PhaseShare, ...], dict[str, Estimate]]:
    """Return the phases with their energies, and the energy of the phases that are not resolved.

    Args:
        phases: The shares of the time.
        windows: The phase windows of the same configuration and batch size.
        results: The energies of the components and of all devices.
        inferences_per_s: In the measure windows.
    """
    window = next((window for window in windows if window.phase_powers), None)
    if window is None or inferences_per_s <= 0:
        return tuple(phases), {}
    powers = {SensorId.of(power): power for power in window.phase_powers}
    energies: dict[str, dict[str, Estimate]] = {phase.name: {} for phase in phases}
    rest: dict[str, Estimate] = {}
    for result in results:
        if result.gross is None or not result.sensors or not all(sensor in powers for sensor in result.sensors):
            continue
        fit = _sum([powers[sensor] for sensor in result.sensors])
        times_s = {phase.name: phase.share.value / inferences_per_s for phase in phases}
        resolved = _energies(fit, times_s, result.gross)
        for name, energy in resolved.items():
            energies[name][result.name] = energy
        if len(resolved) < len(phases):
            rest[result.name] = _rest(result.gross, list(resolved.values()))
    return tuple(replace(phase, energies=energies[phase.name]) for phase in phases), rest


def _sum(powers: Sequence[PhasePowers]) -> _Fit:
    names = set.intersection(*(set(power.watts) for power in powers))
    return _Fit(
        watts={name: math.fsum(power.watts[name] for power in powers) for name in names},
        standard_watts={name: math.hypot(*(power.standard_watts[name] for power in powers)) for name in names},
        intervals=min(power.intervals for power in powers),
    )


def _energies(fit: _Fit, times_s: Mapping[str, float], gross: Estimate) -> dict[str, Estimate]:
    """Return the joules per inference of the phases that are resolved; ``times_s`` are per inference."""
    if gross.value <= 0:
        return {}
    whole_s = math.fsum(times_s.values())
    power = gross.value / whole_s
    known_s = math.fsum(time_s for name, time_s in times_s.items() if name in fit.watts)
    fitted = math.fsum(fit.watts[name] * time_s for name, time_s in times_s.items() if name in fit.watts) / known_s
    shift = power - fitted
    dof = max(fit.intervals - len(fit.watts), 1)
    resolved = {}
    for name, time_s in times_s.items():
        if name not in fit.watts:
            continue
        joules = time_s * (fit.watts[name] + shift)
        standard = time_s * fit.standard_watts[name]
        if joules <= 0 or NORMAL_95 * standard > LARGEST_DOUBT * joules:
            continue
        lines = [
            _line("phase power", standard, dof, f"fit of the power to {fit.intervals} intervals between refreshes"),
            _line("phase model", MODEL_DOUBT * abs(time_s * fit.watts[name]), math.inf, "power is taken as constant"),
            _line("phase pass", time_s * abs(shift) / math.sqrt(3.0), math.inf, f"{shift:+.3g} W in the phase pass"),
            _line("gross energy", abs(joules / gross.value) * gross.standard, gross.dof, "of the measure windows"),
        ]
        energy = replace(estimate_of(joules, lines), covers=gross.covers)
        resolved[name] = replace(energy, expanded=None) if gross.expanded is None else energy
    return resolved


def _line(name: str, standard: float, dof: float, text: str) -> BudgetLine:
    return BudgetLine(
        name=name,
        kind="B" if math.isinf(dof) else "A",
        standard=standard,
        dof=dof,
        systematic=True,
        text=text,
    )


def _rest(gross: Estimate, resolved: Sequence[Estimate]) -> Estimate:
    """Return the gross energy without that of the resolved phases."""
    joules = gross.value - math.fsum(energy.value for energy in resolved)
    share = abs(joules / gross.value) if gross.value else 0.0
    lines = [
        _line("resolved phases", math.hypot(*(energy.standard for energy in resolved)), math.inf, "their energies"),
        _line("gross energy", share * gross.standard, gross.dof, "of the measure windows"),
    ]
    energy = replace(estimate_of(joules, lines), covers=gross.covers)
    return replace(energy, expanded=None) if gross.expanded is None else energy
