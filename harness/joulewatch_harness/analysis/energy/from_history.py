"""Energy of a window from the history of a counter. Pure.

A run of 10,000 windows and 20 sensors calls this 200,000 times, with few samples each. numpy takes about a microsecond
per call however short the array, so the samples around an edge are copied into lists. Arrays for all windows of a
sensor at once were not tried: each window raises its own errors.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from joulewatch_harness.analysis.energy.budget import (
    accuracy_items,
    budget_item,
    clock_text,
    counter_items,
    without_zeros,
)
from joulewatch_harness.analysis.energy.window_energy import (
    POWER_CAP_FACTOR,
    ClockOffset,
    Span,
    WindowEnergy,
    check_gap,
    check_refresh,
    check_restart,
    enclosing_samples,
)
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95, student_factor

_NEAREST: Final = 7
"""Samples on each side of an edge whose interpolation errors are considered: errors at five, from two neighbours."""
_SYNCHRONOUS: Final = 4.0
"""Batches between 1/4 and 4 sample spacings long may repeat with the samples, whose errors then show nothing."""
_LEAST_SPREAD: Final = 0.1
"""Smallest share of the possible interpolation error that remains, however small the errors nearby are."""


def energy_from_counter(
    counter: Series,
    window: Span,
    traits: Traits = Traits(),
    *,
    offset: ClockOffset = ClockOffset(),
    max_gap_s: float | None = None,
    restarts_s: Floats | None = None,
    power_floor_watts: float = 0.0,
    power_cap_watts: float = 0.0,
    batch_s: float = math.inf,
) -> WindowEnergy:
    """Energy of a window from a counter's history, interpolated between the two samples around each edge.

    The energies of adjacent windows add up to the energy of their union. The bounds use only that a counter never
    falls (and, for the refresh period, the largest power).

    An error of the clock offset moves the window as a whole. It loses energy at one edge and gains it at the other, so
    the error of the energy is at most the shift times the difference of the largest and the smallest power.

    Args:
        counter: Joules at read timestamps, on the exporter's clock.
        window: The span on the harness's clock.
        traits: Limits of the sensor.
        offset: The exporter's clock minus the harness's.
        max_gap_s: Longest accepted spacing around an edge; default: three median spacings.
        restarts_s: Times at which the exporter started.
        power_floor_watts: Smallest power observed of the device.
        power_cap_watts: Largest power observed of the device; the bounds always allow for twice the window's mean power
            and for the steepest increase between two samples.
        batch_s: Time of one batch, over which power may vary; inf: unknown.

    Returns:
        Energy in joules with hard bounds and budget.

    Raises:
        CoverageError: ``no_samples``, ``unbracketed``, ``sample_gap``, ``exporter_restart``, ``below_refresh``.

    Source:
        Interpolation of the integral by the powers on either side; with equal powers the linear interpolation of
        PromQL's ``increase(c[w] smoothed)``. Its errors: leave-one-out cross-validation.
    """
    check_refresh(window, traits)
    times_s, values = counter.times_s, counter.values
    if times_s.size < 2:
        raise CoverageError("no_samples", "fewer than two samples near the window")
    if max_gap_s is None:
        max_gap_s = default_max_gap_s(counter.spacing_s)
    error_s = window.clock_error_s + offset.half_width_s
    start_s, end_s = window.start_s + offset.nominal_s, window.end_s + offset.nominal_s
    a, b = enclosing_samples(times_s, start_s, error_s, "start", max_gap_s)
    c, d = enclosing_samples(times_s, end_s, error_s, "end", max_gap_s)
    # ``c`` is the last sample before the end; it precedes ``b`` if the window lies between two samples.
    check_restart(restarts_s, float(times_s[a]), float(times_s[d]))
    part_times, part = times_s[a : d + 1], values[a : d + 1]
    steps = part[1:] - part[:-1]
    if steps.size and float(steps.min()) < 0:
        at = int(np.argmin(steps >= 0))
        raise CoverageError("exporter_restart", f"the counter fell at {part_times[at + 1]:.3f}, inside the window")
    base = float(part[0])
    at_edges = [
        _Nearby.of(counter, edge_s, around, window.clock_error_s, name, max_gap_s)
        for edge_s, around, name in ((start_s, (a, b), "start"), (end_s, (c, d), "end"))
    ]
    at_start, at_end = (nearby.counter(base, max_gap_s) for nearby in at_edges)
    joules = at_end - at_start
    power = joules / window.duration_s
    steepest = float((steps / (part_times[1:] - part_times[:-1])).max()) if steps.size else 0.0
    cap = max(POWER_CAP_FACTOR * power, steepest, power_cap_watts)
    floor = min(power_floor_watts, power)
    # An error of the clock offset is the component "clock". It does not widen the interpolation, too.
    spreads, halves, residuals = [], [], []
    for nearby, estimate in zip(at_edges, (at_start, at_end), strict=True):
        before_s, after_s = nearby.times_s[nearby.before], nearby.times_s[nearby.after]
        low, high = nearby.values[nearby.before] - base, nearby.values[nearby.after] - base
        lower = max(low, high - cap * (after_s - nearby.edge_s))
        upper = min(high, low + cap * (nearby.edge_s - before_s))
        lower, upper = min(lower, estimate), max(upper, estimate)
        spreads.append(_spread_about(estimate, lower, upper))
        halves.append(max(upper - estimate, estimate - lower))
        residuals.append(_residual(nearby.times_s, nearby.values, nearby.before, nearby.after))
    widest = math.hypot(*spreads)
    gaps_s = [nearby.times_s[nearby.after] - nearby.times_s[nearby.before] for nearby in at_edges]
    # Power that repeats about as often as the samples looks steady in them.
    hidden = max(gaps_s) / _SYNCHRONOUS < batch_s < max(gaps_s) * _SYNCHRONOUS
    likely = widest if hidden else min(widest, math.hypot(_LEAST_SPREAD * widest, *residuals))
    text = f"between samples {gaps_s[0]:.3g} s apart at the start and {gaps_s[1]:.3g} s at the end"
    clock_half = offset.half_width_s * (cap - floor) + 2 * window.clock_error_s * power
    budget = without_zeros(
        budget_item("interpolation", sum(halves), "uniform", text, standard_joules=likely, systematic=True),
        budget_item("clock", clock_half, "uniform", clock_text(offset, window.clock_error_s), systematic=True),
        *counter_items(traits, window.duration_s, power, floor, cap, batch_s),
        *accuracy_items(traits, joules),
    )
    blur = traits.refresh_s * cap + traits.resolution_joules
    inside = float(values[c] - values[b]) if c >= b else 0.0
    return WindowEnergy(
        joules=joules,
        lower_joules=max(inside - blur, 0.0),
        upper_joules=float(values[d] - values[a]) + blur,
        budget=budget,
        method="history",
        duration_s=window.duration_s,
        samples=max(c - b + 1, 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nearby:
    """The samples around an edge, as far as its estimate and errors depend on them."""

    edge_s: float
    times_s: list[float]
    values: list[float]
    before: int
    """Index of the last sample certainly before the edge, by the harness's mapping of its clocks."""
    after: int

    @classmethod
    def of(
        cls, counter: Series, edge_s: float, around: tuple[int, int], error_s: float, name: str, max_gap_s: float
    ) -> _Nearby:
        """Copy the samples around an edge.

        Args:
            counter: All samples.
            edge_s: Time of the edge.
            around: Indexes of the samples that certainly enclose the edge, whatever the clock offset is.
            error_s: Error of the edge without that of the clock offset.
            name: ``start`` or ``end``.
            max_gap_s: Longest accepted spacing.

        Raises:
            CoverageError: ``sample_gap``.
        """
        first, last = max(around[0] - _NEAREST - 1, 0), around[1] + _NEAREST + 2
        times_s = counter.times_s[first:last].tolist()
        before = bisect_right(times_s, edge_s - error_s) - 1
        after = bisect_left(times_s, edge_s + error_s)
        check_gap(times_s[after] - times_s[before], error_s, name, max_gap_s)
        values = counter.values[first:last].tolist()
        return cls(edge_s=edge_s, times_s=times_s, values=values, before=before, after=after)

    def counter(self, base: float, max_gap_s: float) -> float:
        """Estimate the counter at the edge, in joules above ``base``.

        The increase between the two samples around the edge is split in proportion to the energies that the power
        before them would use up to the edge, and the power after them from the edge on. With equal powers this is
        linear interpolation. If the load starts or ends at the edge it is exact, while linear interpolation is wrong by
        up to a quarter of the step in power times the spacing. Without a neighbouring sample, it is linear.
        """
        times_s, values, edge_s = self.times_s, self.values, self.edge_s
        after = min(max(bisect_left(times_s, edge_s), 1), len(times_s) - 1)
        before = after - 1
        left_s, right_s = edge_s - times_s[before], times_s[after] - edge_s
        rise = values[after] - values[before]
        weights = (left_s, right_s)
        if before > 0 and after + 1 < len(times_s):
            span_before_s = times_s[before] - times_s[before - 1]
            span_after_s = times_s[after + 1] - times_s[after]
            power_before = (values[before] - values[before - 1]) / span_before_s
            power_after = (values[after + 1] - values[after]) / span_after_s
            if min(power_before, power_after) >= 0 and max(span_before_s, span_after_s) <= max_gap_s:
                weights = (power_before * left_s, power_after * right_s)
        total = weights[0] + weights[1]
        share = weights[0] / total if total > 0 else left_s / (times_s[after] - times_s[before])
        return values[before] - base + rise * share


def _residual(times_s: Sequence[float], values: Sequence[float], before: int, after: int) -> float:
    """Return by how much the interpolation is wrong, in joules, at the samples near an edge if each were missing.

    The larger of the two errors next to the edge, and of the root mean square of the nearest dozen (Student's factor
    for few). Leaving a sample out doubles the spacing, so the errors are rather too large. inf: too few samples.
    """
    first, last = max(before - _NEAREST, 0), min(after + _NEAREST + 1, len(values))
    t, v = times_s[first:last], values[first:last]
    rises = [high - low for low, high in pairwise(v)]
    if len(rises) < 5 or min(rises) < 0:
        return math.inf
    spans_s = [later - earlier for earlier, later in pairwise(t)]
    errors = []
    # The error of sample i + 2, from the samples i to i + 4 without itself.
    for i in range(len(rises) - 3):
        left = rises[i] / spans_s[i] * spans_s[i + 1]
        right = rises[i + 3] / spans_s[i + 3] * spans_s[i + 2]
        total = left + right
        share = left / total if total > 0 else spans_s[i + 1] / (spans_s[i + 1] + spans_s[i + 2])
        errors.append((rises[i + 1] + rises[i + 2]) * share - rises[i + 1])
    few = student_factor(len(errors)) / NORMAL_95
    near = errors[max(before - first - 2, 0) : after - first - 1]
    largest = max(map(abs, near), default=0.0)
    return max(few * math.sqrt(sum([error * error for error in errors]) / len(errors)), largest)


def _spread_about(estimate: float, lower: float, upper: float) -> float:
    """Return the root mean square distance from ``estimate`` of a uniform distribution over [lower, upper]."""
    width = upper - lower
    if width <= 0:
        return 0.0
    return math.sqrt(((upper - estimate) ** 3 + (estimate - lower) ** 3) / (3 * width))
