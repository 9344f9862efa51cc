"""The components of the uncertainty of one window's energy. Pure."""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.window_energy import ACCURACY, BudgetItem, ClockOffset, Distribution
from joulewatch_harness.analysis.sources.series import Floats, Traits
from joulewatch_harness.gum import NORMAL_95

_DIVISORS: Final[dict[Distribution, float]] = {
    "uniform": math.sqrt(3.0),
    "triangular": math.sqrt(6.0),
    "arcsine": math.sqrt(2.0),
    "normal": NORMAL_95,
}
"""Half-width over standard uncertainty (GUM 4.3.7 to 4.3.9)."""


def budget_item(
    name: str,
    half_width_joules: float,
    distribution: Distribution,
    text: str,
    *,
    standard_joules: float | None = None,
    systematic: bool = False,
    family: str = "",
) -> BudgetItem:
    """Return a component; its standard uncertainty is that of the distribution, unless it is given."""
    if standard_joules is None:
        standard_joules = half_width_joules / _DIVISORS[distribution]
    # Many windows have the same text, and a run has hundreds of thousands of components.
    text = sys.intern(text)
    return BudgetItem(name, standard_joules, half_width_joules, distribution, text, systematic, family)


def without_zeros(*items: BudgetItem) -> tuple[BudgetItem, ...]:
    """Return the components that are not 0, and the accuracy: its presence shows that one is published."""
    return tuple([item for item in items if item.half_width_joules > 0 or item.name == ACCURACY])


@lru_cache(maxsize=256)
def _refresh_text(refresh_s: float) -> str:
    return f"the value is up to {refresh_s:.3g} s old at either edge"


def refresh_joules(
    traits: Traits, power: Floats, floor: Floats, cap: Floats, batches_s: Floats, stale_edges: Floats | int = 2
) -> Floats:
    """Return the half-width of each energy of a counter by its refresh; ``stale_edges`` are not at a refresh.

    Either value is up to a refresh period r old. The two ages are independent, and they meet different powers:
    u = r sqrt(P^2 / 6 + 2 / 3 s^2), where s^2 <= (cap - P) (P - floor) is the largest variance of a power between
    floor and cap with the mean P (Bhatia and Davis 2000). Power that repeats with each batch averages out over r.
    A counter that is integrated from a gauge by the trapezoid lags by half of r more, which adds r^2 s^2 / 2.
    """
    if traits.refresh_s <= 0:
        return np.zeros_like(power)
    variance = np.maximum(cap - power, 0.0) * np.maximum(power - floor, 0.0)
    variance = variance * np.minimum(batches_s / traits.refresh_s, 1.0)
    integrated = traits.resolution_watts > 0
    half: Floats = traits.refresh_s * np.sqrt((power * power + (7 if integrated else 4) * variance) * stale_edges / 2)
    return half


def counter_items(traits: Traits, duration_s: float, refresh: float) -> list[BudgetItem]:
    """Return the components of a counter, without zeros, at both edges; ``refresh`` is from `refresh_joules`."""
    items = []
    if refresh > 0:
        items.append(budget_item("refresh", refresh, "triangular", _refresh_text(traits.refresh_s)))
    if traits.resolution_joules > 0:
        text = f"steps of {traits.resolution_joules:.3g} J at either edge"
        items.append(budget_item("resolution", traits.resolution_joules, "triangular", text))
    if traits.resolution_watts > 0:
        items.append(steps_item(traits.resolution_watts, duration_s))
    return items


def steps_item(step_watts: float, duration_s: float) -> BudgetItem:
    """Return the component of a power that has steps."""
    half = step_watts * duration_s / 2
    return budget_item("steps", half, "uniform", f"power in steps of {step_watts:.3g} W", systematic=True)


def accuracy_items(traits: Traits, joules: float) -> list[BudgetItem]:
    """Return the component of the sensor's accuracy; none if it has none."""
    if traits.accuracy is None:
        return []
    text = f"accuracy of the sensor, ±{100 * traits.accuracy:.3g} %, the same in every repeat"
    half = traits.accuracy * abs(joules)
    return [budget_item(ACCURACY, half, "uniform", text, systematic=True, family=traits.family)]


def clock_text(offset: ClockOffset, error_s: float) -> str:
    """Return the explanation of the component ``clock`` of energies from history or power."""
    known = "known" if offset.known else "unknown, assumed"
    return (
        f"the exporter's clock, {known} to be within {offset.half_width_s * 1e3:.3g} ms; the harness's mapping of its "
        f"clocks, {error_s * 1e3:.3g} ms at either edge"
    )
