"""Energy of a window from samples of power. Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.energy.budget import accuracy_items, budget_item, clock_text, steps_item, without_zeros
from joulewatch_harness.analysis.energy.scatter import few_factor, scatter, spaced
from joulewatch_harness.analysis.energy.window_energy import (
    BudgetItem,
    ClockOffset,
    Span,
    WindowEnergy,
    check_refresh,
    enclosing_samples,
)
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95

_LEAST_SAMPLES: Final = 2
"""A window with fewer samples of power has no energy."""
_FEW_SAMPLES: Final = 6
"""If there are fewer samples of power in and next to a window, their scatter is not used."""


def energy_from_power(
    power: Series,
    window: Span,
    traits: Traits = Traits(),
    *,
    offset: ClockOffset = ClockOffset(),
    max_gap_s: float | None = None,
) -> WindowEnergy:
    """Integrate sampled power over one window.

    Power is linear between samples and at the two edges, so the energies of adjacent windows add up to the energy of
    their union. The bounds hold if power is monotone between two samples; unlike a counter's they are not hard.

    Args:
        power: Watts at strictly increasing times, on the exporter's clock.
        window: The span on the harness's clock.
        traits: Limits of the sensor.
        offset: The exporter's clock minus the harness's.
        max_gap_s: Longest spacing that is interpolated; default: three median spacings.

    Returns:
        Energy in joules with bounds and budget.

    Raises:
        CoverageError: ``no_samples``, ``unbracketed``, ``sample_gap`` (anywhere inside), ``below_refresh``,
            ``too_few_samples`` (fewer than two inside).

    Source:
        Composite trapezoid rule; Davis and Rabinowitz, Methods of Numerical Integration, ch. 2.
    """
    check_refresh(window, traits)
    times_s = power.times_s
    if times_s.size < 2:
        raise CoverageError("no_samples", "fewer than two samples near the window")
    if max_gap_s is None:
        max_gap_s = default_max_gap_s(power.spacing_s)
    start_s, end_s = window.start_s + offset.nominal_s, window.end_s + offset.nominal_s
    a, _ = enclosing_samples(times_s, start_s, 0.0, "start", max_gap_s)
    _, d = enclosing_samples(times_s, end_s, 0.0, "end", max_gap_s)
    part_times, part = times_s[a : d + 1], power.values[a : d + 1]
    widest_s = float(np.diff(part_times).max()) if part_times.size > 1 else 0.0
    if widest_s > max_gap_s:
        raise CoverageError("sample_gap", f"{widest_s:.3g} s without a sample inside the window")
    samples = int(np.count_nonzero((part_times >= start_s) & (part_times <= end_s)))
    if samples < _LEAST_SAMPLES:
        raise CoverageError(
            "too_few_samples",
            f"{count_of(samples, 'sample')} of power in the window of {window.duration_s:.3g} s; at least "
            f"{_LEAST_SAMPLES} are needed: use a longer window or a shorter scrape interval",
        )
    inside = (part_times > start_s) & (part_times < end_s)
    grid = np.concatenate(([start_s], part_times[inside], [end_s]))
    watts = np.interp(grid, part_times, part)
    widths = np.diff(grid)
    joules = float(np.dot(widths, watts[1:] + watts[:-1]) / 2)
    half = float(np.dot(np.abs(np.diff(watts)), widths) / 2)
    # As for a counter: an error of the offset gains at one edge what it loses at the other.
    near = power.between(start_s - offset.half_width_s, end_s + offset.half_width_s).values
    clock_half = window.clock_error_s * float(abs(watts[0]) + abs(watts[-1]))
    clock_half += offset.half_width_s * float(np.ptp(near))
    seen_watts = float(power.values.min()), float(power.values.max())
    step_watts = traits.resolution_watts or _smallest_step(power.values)
    # A value is up to a refresh period old, and the mean over the period before.
    lag_s = 1.5 * traits.refresh_s
    lag_half = lag_s * float(np.ptp(part))
    budget = without_zeros(
        _sampling_item(spaced(part_times, part, traits.refresh_s), window, traits, joules, samples, seen_watts),
        steps_item(step_watts, window.duration_s),
        budget_item("lag", lag_half, "uniform", f"the values are up to {lag_s:.3g} s old"),
        budget_item("clock", clock_half, "uniform", clock_text(offset, window.clock_error_s), systematic=True),
        *accuracy_items(traits, joules),
    )
    return WindowEnergy(
        joules=joules,
        lower_joules=joules - half - clock_half,
        upper_joules=joules + half + clock_half,
        budget=budget,
        method="power",
        duration_s=window.duration_s,
        samples=samples,
    )


def _sampling_item(
    values: Floats, window: Span, traits: Traits, joules: float, samples: int, seen_watts: tuple[float, float]
) -> BudgetItem:
    """Return the component of the power between samples.

    The values are a systematic sample of the power. From n of them with the scatter s, u = D s / sqrt(n), with
    Student's factor for few. s^2 is the mean of two variances: that of successive differences, which slow changes do
    not widen, and that about the mean, because a load whose period is nearly that of the samples looks slow as well.
    Of too few values, the power is uniform between the smallest and the largest one seen.
    """
    duration_s = window.duration_s
    if values.size < _FEW_SAMPLES:
        mean_watts = joules / duration_s
        least, largest = seen_watts if seen_watts[0] < seen_watts[1] else (0.0, 2 * mean_watts)
        half = duration_s * max(largest - mean_watts, mean_watts - least)
        known = count_of(values.size, "value is too few to know its", "values are too few to know their")
        return budget_item("sampling", half, "uniform", f"{known} scatter")
    scatter_watts = math.sqrt((scatter(values) ** 2 + float(values.var())) / 2)
    count = min(samples, duration_s / traits.refresh_s) if traits.refresh_s > 0 else samples
    standard = few_factor(values) * duration_s * scatter_watts / math.sqrt(count)
    text = f"{values.size} values, which scatter by {scatter_watts:.3g} W"
    return budget_item("sampling", NORMAL_95 * standard, "normal", text)


def _smallest_step(watts: Floats) -> float:
    """Return the smallest step between successive values in watts; without steps, that of the last digit, at most 1."""
    steps = np.abs(np.diff(watts))
    steps = steps[steps > 0]
    if steps.size:
        return float(steps.min())
    return next((10.0**-digits for digits in range(7) if round(float(watts[0]), digits) == float(watts[0])), 0.0)
