"""Averages over the rounds of a group: joules per inference, rates, latency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO
from joulewatch_harness.analysis.energy.window_energy import ACCURACY
from joulewatch_harness.analysis.energy.windows import MeasuredWindow
from joulewatch_harness.analysis.results.model import (
    ATTRIBUTION,
    IDLE_BASELINE,
    BudgetLine,
    Coverage,
    Estimate,
    IdlePower,
    LatencySummary,
    Part,
)
from joulewatch_harness.analysis.results.uncertainty import Combined, combine_mean
from joulewatch_harness.gum import COVERAGE, NORMAL_95, mean, standard_error
from joulewatch_harness.records import Latency, Window

Rounds = dict[int, list[tuple[float, Mapping[str, float]]]]
"""Round -> (value, component -> standard uncertainty) of each of its windows."""


def per_inference(
    windows: Sequence[tuple[MeasuredWindow, Combined]],
    idle: IdlePower | None,
    unit: str = "",
    coverage: float = COVERAGE,
    *,
    repeatable: bool = True,
    own: Mapping[int, Part] | None = None,
    ratio: float = DEFAULT_RATIO,
) -> Estimate:
    """Return the mean over rounds of joules per inference, or per ``unit`` of ``Window.counts``.

    ``repeatable`` is as for ``combine_mean``. With ``own`` (window -> part), the result is that part of the energy
    above idle power, and its uncertainty contains the bound of the part, which holds up to a ``ratio``.
    """
    rounds: Rounds = {}
    systematic: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    seconds = []
    half_widths = []
    for measured, energy in windows:
        count = measured.window.counts[unit] if unit else measured.window.inferences
        joules = energy.joules - (idle.watts * measured.span.duration_s if idle is not None else 0.0)
        # A sensor that reads 5 % high does so while idle too, so the error of the net is 5 % of the net.
        share = abs(joules / energy.joules) if idle is not None and energy.joules else 1.0
        of_part = 1.0
        if own is not None:
            part = own[measured.window.index]
            of_part = min(abs(part.joules / joules), 1.0) if joules else 1.0
            joules = part.joules
            half_widths.append(max(part.high_joules - part.joules, part.joules - part.low_joules) / count)
        rounds.setdefault(measured.window.repeat, []).append(
            (joules / count, {name: of_part * u / count for name, u in energy.random.items()})
        )
        for name, u in energy.systematic.items():
            factor = share if name.startswith(ACCURACY) else 1.0
            # A calibration has the same errors while idle; the net energy has what does not cancel.
            while_idle = idle.calibration_watts.get(name, 0.0) * measured.span.duration_s if idle is not None else 0.0
            systematic.setdefault(name, []).append(of_part * (factor * u - while_idle) / count)
        for name, text in energy.texts.items():
            texts.setdefault(name, text)
        seconds.append(of_part * measured.span.duration_s / count)
    extra = []
    if half_widths:
        extra.append(
            BudgetLine(
                name=ATTRIBUTION,
                kind="B",
                # Expanded, it is the half-width of the bound: the interval contains the bound.
                standard=mean(half_widths) / NORMAL_95,
                dof=math.inf,
                systematic=True,
                text=f"watts per processor of two programs differ by a factor of up to {ratio:g}",
            )
        )
    if idle is not None:
        extra.append(
            BudgetLine(
                name=IDLE_BASELINE,
                kind="B" if math.isinf(idle.dof) else "A",
                standard=idle.standard_watts * mean(seconds),
                dof=idle.dof,
                systematic=True,
                text=f"{idle.watts:.4g} W ± {idle.standard_watts:.2g} W (standard), {idle.text}",
            )
        )
    means = {name: math.fsum(values) / len(windows) for name, values in systematic.items()}
    covers = covers_of([energy for _, energy in windows])
    return combine_mean(rounds, means, texts, extra, covers=covers, coverage=coverage, repeatable=repeatable)


def covers_of(energies: Sequence[Combined]) -> tuple[Coverage, ...]:
    """Return what the budgets of some windows include."""
    return ("sampling", "accuracy") if all(energy.accuracy_known for energy in energies) else ("sampling",)


def mean_rate(counts: Iterable[tuple[Window, float]], coverage: float = COVERAGE) -> Estimate:
    """Return the mean over rounds of a count per second."""
    rounds: Rounds = {}
    for window, count in counts:
        rounds.setdefault(window.repeat, []).append((count / window.duration_s, {}))
    return combine_mean(rounds, {}, {}, coverage=coverage)


def latency_summary(windows: Sequence[MeasuredWindow]) -> LatencySummary | None:
    rounds: dict[int, list[Latency]] = {}
    for measured in windows:
        if measured.window.latency is not None:
            rounds.setdefault(measured.window.repeat, []).append(measured.window.latency)
    latencies = [measured.window.latency for measured in windows if measured.window.latency is not None]
    if not latencies:
        return None
    rounds_s = {
        name: {number: mean([getattr(latency, f"{name}_s") for latency in part]) for number, part in rounds.items()}
        for name in ("p50", "p90", "p99")
    }
    standard_s = {name: standard_error(list(values.values())) for name, values in rounds_s.items()}
    return LatencySummary(
        p50_s=mean([latency.p50_s for latency in latencies]),
        p90_s=mean([latency.p90_s for latency in latencies]),
        p99_s=mean([latency.p99_s for latency in latencies]),
        max_s=max(latency.max_s for latency in latencies),
        standard_s=standard_s if len(rounds) > 1 else {},
        rounds_s=rounds_s,
    )
