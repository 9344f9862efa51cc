"""The uncertainty of sensors that observe only part of the time. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.budget import budget_item
from joulewatch_harness.analysis.energy.scatter import few_factor, scatter, spaced
from joulewatch_harness.analysis.energy.window_energy import POWER_CAP_FACTOR, ClockOffset, Span, WindowEnergy
from joulewatch_harness.analysis.sources.series import Series, Traits
from joulewatch_harness.gum import NORMAL_95

_FEW_READINGS: Final = 4
"""If a window has fewer readings, their scatter is not used."""


def with_unseen(
    energy: WindowEnergy,
    window: Span,
    traits: Traits,
    readings: Series | None,
    *,
    offset: ClockOffset = ClockOffset(),
    power_floor_watts: float = 0.0,
    power_cap_watts: float = 0.0,
) -> WindowEnergy:
    """Add the uncertainty of a sensor that observes only part of each refresh period.

    With f the observed share of the time, N the number of refresh periods in the window of length D, and s the scatter
    between successive values of the sensor, the observed slices are a systematic sample of all slices, and

        u(E) = D s sqrt((1 - f) / N),    s^2 = mean of (p[i+1] - p[i])^2 / 2 .

    Slow changes of power are observed; successive differences keep them out of s. The formula assumes that the power
    within a refresh period is not synchronised with the sensor: a load that repeats with the sensor's own period
    appears constant, and no data can show that. Few values widen the uncertainty (Student's factor, with two thirds of
    a degree of freedom per difference). With fewer than four values, the unobserved power is uniform between the
    smallest and the largest power of the device. The hard bounds always allow for any power up to the largest.

    Args:
        energy: From edges, history or power.
        window: Its span.
        traits: Limits of the sensor; if it observes all the time, ``energy`` is returned unchanged.
        readings: The sensor's power values in watts, as scraped; None: not known.
        offset: The exporter's clock minus the harness's.
        power_floor_watts: Smallest power observed of the device.
        power_cap_watts: Largest power observed; the bounds always allow for twice the window's mean power.

    Source:
        Cochran, Sampling Techniques, 3rd ed., 2.6 (the finite population correction) and ch. 8; Wolter 1984, An
        investigation of some estimators of variance for systematic sampling (the successive differences); Yang, Adamek,
        Armour 2023, arXiv 2312.02741 (the sensors concerned).
    """
    unseen = traits.unseen
    if unseen <= 0.0:
        return energy
    power, duration_s = energy.mean_power_watts, energy.duration_s
    cap = max(POWER_CAP_FACTOR * power, power_cap_watts)
    floor = min(power_floor_watts, power)
    observed = f"the sensor observes {1e3 * traits.window_s:.3g} of every {1e3 * traits.refresh_s:.3g} ms"
    values = np.empty(0)
    if readings is not None:
        inside = (readings.times_s >= window.start_s + offset.nominal_s) & (
            readings.times_s <= window.end_s + offset.nominal_s
        )
        values = spaced(readings.times_s[inside], readings.values[inside], traits.refresh_s)
    if values.size >= _FEW_READINGS:
        scatter_watts = scatter(values)
        # A gauge has no values between its samples.
        periods = min(duration_s / traits.refresh_s, energy.samples if energy.method == "power" else math.inf)
        standard = few_factor(values) * duration_s * scatter_watts * math.sqrt(unseen / max(periods, 1.0))
        text = f"{observed}; {values.size} values in the window scatter by {scatter_watts:.3g} W"
        item = budget_item("unseen", NORMAL_95 * standard, "normal", text)
    else:
        half = unseen * duration_s * max(cap - power, power - floor)
        item = budget_item("unseen", half, "uniform", f"{observed}; too few values in the window to know their scatter")
    return replace(
        energy,
        lower_joules=(1.0 - unseen) * energy.lower_joules,
        upper_joules=energy.upper_joules + unseen * duration_s * (cap - power),
        budget=(*energy.budget, item),
    )
