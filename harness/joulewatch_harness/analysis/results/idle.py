"""The idle power of some sensors, from the idle windows of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.calibrated import CALIBRATION
from joulewatch_harness.analysis.energy.window_energy import ACCURACY
from joulewatch_harness.analysis.energy.windows import MeasuredWindow
from joulewatch_harness.analysis.results.model import IdleBasis, IdlePower
from joulewatch_harness.analysis.results.uncertainty import Combined
from joulewatch_harness.gum import effective_dof, mean, standard_error

_IDLE_UNKNOWN: Final = 0.03
"""Least relative standard uncertainty of an idle power if no state was measured twice."""
_IDLE_REPEATABILITY: Final = 0.005
"""Relative standard uncertainty that remains if two idle powers agree."""


def mean_idle_power(
    basis: IdleBasis,
    text: str,
    windows: Sequence[tuple[MeasuredWindow, Combined]],
    others: Sequence[tuple[MeasuredWindow, Combined]] = (),
) -> IdlePower:
    """Return the mean power of some idle windows; the other idle windows show how much idle power changes."""
    count = len(windows)
    watts = [energy.joules / measured.span.duration_s for measured, energy in windows]
    random = math.sqrt(
        math.fsum(
            math.fsum(u * u for u in energy.random.values()) / measured.span.duration_s**2
            for measured, energy in windows
        )
    )
    shared = math.fsum(
        math.hypot(*(u for name, u in energy.systematic.items() if not name.startswith((ACCURACY, *CALIBRATION))))
        / measured.span.duration_s
        for measured, energy in windows
    )
    within = math.hypot(random / count, shared / count)
    calibration_watts: dict[str, float] = {}
    for measured, energy in windows:
        for name, u in energy.systematic.items():
            if name.startswith(CALIBRATION):
                calibration_watts[name] = calibration_watts.get(name, 0.0) + u / measured.span.duration_s / count
    between = _idle_changes(watts, others)
    dof = effective_dof([(between, count - 1), (within, math.inf)]) if count > 2 else math.inf
    more = f"; uncertainty also from {len(others)} in other states" if others and count < 3 else ""
    return IdlePower(
        watts=mean(watts),
        standard_watts=math.hypot(within, between),
        dof=dof,
        basis=basis,
        windows=tuple(measured.window.index for measured, _ in windows),
        text=f"{count_of(count, 'idle window')} {text}{more}",
        calibration_watts=calibration_watts,
    )


def _idle_changes(watts: Sequence[float], others: Sequence[tuple[MeasuredWindow, Combined]]) -> float:
    """Return the standard uncertainty of a mean idle power from the changes between idle windows.

    Three windows or more are a sample. Two, before and after, show a drift: uniform over the span between them and as
    far beyond (GUM 4.3.7). For a single window, that of two windows in another state counts (without a network, or
    with another one loaded), because the difference between states is real. If no state was measured twice, a drift is
    not known, and the difference between the states may be one.
    """
    if len(watts) > 2:
        return standard_error(watts)
    states: dict[str, list[float]] = {}
    for measured, energy in others:
        power = energy.joules / measured.span.duration_s
        states.setdefault(measured.window.configuration, []).append(power)
    spans = [max(powers) - min(powers) for powers in (watts, *states.values()) if len(powers) > 1]
    if spans:
        return math.hypot(max(spans) / math.sqrt(3), _IDLE_REPEATABILITY * mean(watts))
    differences = [abs(power - watts[0]) / math.sqrt(3) for (power,) in states.values()]
    return max([_IDLE_UNKNOWN * abs(watts[0]), *differences])
