"""The energy next to the edges of a window whose counter was read at its refreshes. Pure.

A counter has the energy of the moment at its refresh, and between two refreshes the mean power there. So

* at the start, the last two refreshes before it give its value and the power, with which the energy from the last one
  to the start is computed;
* at the end, the first refresh after it is known, and the power from there to the next one. Either that power was the
  power since the end, or the one before the end lasted until it changed, at some time after the end. In both cases the
  refresh before the end and the energy between it and the first one show which: of the two values that follow from
  either side, it is the smaller if the power fell, and the larger if it rose. So a load that ends with the window, or
  shortly after it, has no error.

If the power changed slowly over the refreshes, its change is believed to continue.

The power is that at the edge, not the window's mean: the power at an edge may be any other one.

If a process was interrupted at an edge, the reading may be many refreshes from the window. Its own power, and the mean
of the window (of which the interruption is then a large part), show nothing of the power between them: that may have
been anything from the smallest to the largest one.

An edge without refreshes next to one that has them is corrected by half of a refresh: its value is that much too old on
average. (Two such edges are too old alike, which cancels. Without the correction, a mixture of both has a bias of half
of a refresh: 2.5 % at 20 ms.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from joulewatch_harness.analysis.energy.window_energy import EdgeReading
from joulewatch_harness.records import EdgeStep

SMOOTH: Final = 0.2
"""A relative difference of the powers in two refreshes in a row above this is a sudden change."""
MOST_INTERVALS: Final = 3
"""Refreshes over which a slow change of power is believed to continue."""
LEAST_POWER_DOUBT: Final = 0.2
"""Smallest relative uncertainty of the power during some milliseconds, however steady it was otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEdge:
    """One edge of a window."""

    slack_s: float
    """From the last refresh to the start, or from the end to the first refresh; of a reading without refreshes: the
    same for its time."""
    power: float
    """Mean of the window in watts."""
    edge_power: float
    """Power between the window and the reading."""
    refresh_s: float
    step: EdgeStep | None
    floor: float
    """Smallest power observed."""

    @property
    def interval_s(self) -> float:
        """Time between two refreshes at this edge."""
        return self.refresh_s if self.step is None else self.step.span_s or self.refresh_s

    @property
    def is_interrupted(self) -> bool:
        """Whether the reading is too far from the window for the power next to it to be that between them."""
        return self.slack_s > MOST_INTERVALS * self.interval_s

    @classmethod
    def of(
        cls, slack_s: float, reading: EdgeReading, other: EdgeReading, *, power: float, floor: float, refresh_s: float
    ) -> Self:
        """Return the edge of a reading; ``floor`` is the smallest power observed."""
        edge_power = power_of(reading, refresh_s)
        if edge_power is None:
            # Next to the other edge the machine probably did the same.
            outside = power_of(other, refresh_s)
            edge_power = (power + (floor if outside is None else outside)) / 2 if slack_s >= 0 else power
        return cls(
            slack_s=slack_s, power=power, edge_power=edge_power, refresh_s=refresh_s, step=reading.step, floor=floor
        )


def power_of(reading: EdgeReading, refresh_s: float) -> float | None:
    """Return the power between two refreshes; if only one was seen, that of the refresh before it. None: none was."""
    if reading.step is None:
        return None
    if reading.step.span_s > 0:
        return (reading.joules - reading.step.first_joules) / reading.step.span_s
    return (reading.joules - reading.step.before_joules) / refresh_s if refresh_s > 0 else None


def joules_outside(edges: Sequence[StepEdge]) -> float:
    """Return the energy between the readings and the window, at the start and the end, except interrupted ones."""
    before, after = edges
    return (0.0 if before.is_interrupted else before_start(before)) + (
        0.0 if after.is_interrupted else after_end(after)
    )


def interrupted_energy(edges: Sequence[StepEdge], joules: float, floor: float, cap: float) -> tuple[float, float]:
    """Return the energy at the edges that were interrupted, and its half-width, which contains all possible values.

    Args:
        edges: Both edges.
        joules: Energy of the window and of these edges.
        floor: Smallest power observed.
        cap: Largest power.
    """
    late = [edge for edge in edges if edge.is_interrupted]
    slack_s = math.fsum(edge.slack_s for edge in late)
    highest = max(min(joules, cap * slack_s), 0.0)
    lowest = min(floor * slack_s, highest)
    # The power next to the edge may be the smallest one, and less than that by rounding.
    likely = max(math.fsum(edge.edge_power * edge.slack_s for edge in late), lowest)
    if likely >= highest:
        likely = (lowest + highest) / 2
    return likely, max(likely - lowest, highest - likely)


def before_start(edge: StepEdge) -> float:
    """Return the energy between the reading at the start and the start."""
    if edge.step is None:
        return edge.slack_s * edge.edge_power + edge.power * edge.refresh_s / 2
    interval_s = edge.step.span_s or edge.refresh_s
    return edge.slack_s * (edge.edge_power + _slope(edge, interval_s) * (interval_s + edge.slack_s) / 2)


def after_end(edge: StepEdge) -> float:
    """Return the energy between the end and the reading after it (the first refresh)."""
    joules = edge.edge_power * edge.slack_s
    if edge.step is None:
        return joules - edge.power * edge.refresh_s / 2
    interval_s = edge.step.span_s or edge.refresh_s
    if slope := _slope(edge, interval_s):
        return joules - slope * edge.slack_s * (interval_s + edge.slack_s) / 2
    inside_s = interval_s - edge.slack_s
    if not 0 <= inside_s <= interval_s:
        return joules
    rise = edge.step.first_joules - edge.step.before_joules
    # If the power of the window lasted until after the end.
    lasted = rise - edge.power * inside_s
    choose = max if edge.power > edge.edge_power else min
    return min(max(choose(joules, lasted), 0.0), rise)


def _slope(edge: StepEdge, interval_s: float) -> float:
    """Return the change of the power per second over two refreshes; 0 if it changed suddenly, or if they are far."""
    if edge.step is None or interval_s <= 0 or edge.slack_s > MOST_INTERVALS * interval_s:
        return 0.0
    before = (edge.step.first_joules - edge.step.before_joules) / interval_s
    change = edge.edge_power - before
    return change / interval_s if abs(change) <= SMOOTH * edge.edge_power else 0.0


def slack_doubt(edge: StepEdge) -> float:
    """Return the half-width of the energy between a reading and the window, by its power."""
    if edge.step is None:
        changed = max(2 * abs(edge.power - edge.edge_power), edge.power - edge.floor)
        return abs(edge.slack_s) * max(changed, LEAST_POWER_DOUBT * edge.power)
    # A power that differs from the window's may have changed anywhere between the reading and the window.
    changed = abs(edge.power - edge.edge_power) / 2
    if edge.step.span_s == 0:
        # Only one refresh was seen, so the power on this side of it is not known.
        changed = max(edge.edge_power, edge.power) - edge.floor
    return abs(edge.slack_s) * max(changed, LEAST_POWER_DOUBT * max(edge.edge_power, edge.power))


def time_doubt(edge: StepEdge) -> float:
    """Return the half-width of the energy by the time of the refreshes: of the one, and in the power between two."""
    if edge.step is None:
        return 0.0
    interval_s = edge.step.span_s or edge.refresh_s
    share = abs(edge.slack_s) / interval_s if interval_s > 0 else 0.0
    return edge.step.error_s * (max(edge.edge_power, edge.power) + 2 * share * edge.edge_power)
