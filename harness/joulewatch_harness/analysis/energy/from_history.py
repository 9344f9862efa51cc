"""Energy of windows from the history of a counter. Pure.

A run of 10,000 windows and 20 sensors has 200,000 energies. numpy takes about a microsecond per call however short the
array, so all windows of a sensor are computed together, with one value per window in each array. The errors of the
interpolation are those of a sample without itself: they do not depend on the window, and are computed once for all
samples. A window with a problem does not stop the others: its error is raised when its energy is requested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.analysis.energy.budget import (
    accuracy_items,
    budget_item,
    clock_text,
    counter_items,
    refresh_joules,
    without_zeros,
)
from joulewatch_harness.analysis.energy.window_energy import (
    POWER_CAP_FACTOR,
    ClockOffset,
    Span,
    WindowEnergy,
    check_refresh,
    check_restart,
    enclosing_samples,
)
from joulewatch_harness.analysis.sources.series import Floats, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95, student_factor

Integers = NDArray[np.intp]
_NEAREST: Final = 7
"""Samples on each side of an edge whose interpolation errors are considered: errors at five, from two neighbours."""
_SYNCHRONOUS: Final = 4.0
"""Batches between 1/4 and 4 sample spacings long may repeat with the samples, whose errors then show nothing."""
_LEAST_SPREAD: Final = 0.1
"""Smallest share of the possible interpolation error that remains, however small the errors nearby are."""
_LEAST_RISES: Final = 5
"""With fewer increases around an edge, the errors of the interpolation are not known."""


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
    """Return the energy of one window; the arguments are those of `PlacedWindows` and `CounterEnergies`.

    Raises:
        CoverageError: ``no_samples``, ``unbracketed``, ``sample_gap``, ``exporter_restart``, ``below_refresh``.
    """
    return CounterEnergies(
        counter,
        PlacedWindows.of([window], [offset], [batch_s]),
        traits,
        max_gap_s=max_gap_s,
        restarts_s=restarts_s,
        power_floor_watts=power_floor_watts,
        power_cap_watts=power_cap_watts,
    ).energy(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedWindows:
    """Windows on the clock of an exporter; each array has one value per window."""

    spans: Sequence[Span]
    """On the harness's clock."""
    offsets: Sequence[ClockOffset]
    """The exporter's clock minus the harness's."""
    start_s: Floats
    """On the exporter's clock."""
    end_s: Floats
    duration_s: Floats
    clock_error_s: Floats
    """Half-width by which each edge may be off on the harness's clock."""
    offset_error_s: Floats
    """Half-width of the offset."""
    batches_s: Floats
    """Time of one batch, over which power may vary; inf: unknown."""

    @classmethod
    def of(cls, spans: Sequence[Span], offsets: Sequence[ClockOffset], batches_s: Sequence[float]) -> Self:
        """Place windows; the arguments have one value per window."""
        nominal_s = np.array([offset.nominal_s for offset in offsets])
        return cls(
            spans=spans,
            offsets=offsets,
            start_s=np.array([span.start_s for span in spans]) + nominal_s,
            end_s=np.array([span.end_s for span in spans]) + nominal_s,
            duration_s=np.array([span.duration_s for span in spans]),
            clock_error_s=np.array([span.clock_error_s for span in spans]),
            offset_error_s=np.array([offset.half_width_s for offset in offsets]),
            batches_s=np.asarray(batches_s),
        )


class Bounds(NamedTuple):
    """An energy and its hard bounds."""

    joules: float
    lower_joules: float
    upper_joules: float


class CounterEnergies:
    """Energies of windows from a counter's history, interpolated between the two samples around each edge.

    The energies of adjacent windows add up to the energy of their union. The bounds use only that a counter never
    falls (and, for the refresh period, the largest power).

    An error of the clock offset moves a window as a whole. It loses energy at one edge and gains it at the other, so
    the error of the energy is at most the shift times the difference of the largest and the smallest power.

    Source:
        Interpolation of the integral by the powers on either side; with equal powers the linear interpolation of
        PromQL's ``increase(c[w] smoothed)``. Its errors: leave-one-out cross-validation.
    """

    def __init__(
        self,
        counter: Series,
        windows: PlacedWindows,
        traits: Traits,
        *,
        max_gap_s: float | None = None,
        restarts_s: Floats | None = None,
        power_floor_watts: float = 0.0,
        power_cap_watts: float = 0.0,
    ) -> None:
        """Compute all energies.

        Args:
            counter: Joules at read timestamps, on the exporter's clock.
            windows: The windows, on the same clock.
            traits: Limits of the sensor.
            max_gap_s: Longest accepted spacing around an edge; default: three median spacings.
            restarts_s: Times at which the exporter started.
            power_floor_watts: Smallest power observed of the device.
            power_cap_watts: Largest power observed of the device; the bounds always allow for twice the window's mean
                power and for the steepest increase between two samples.
        """
        self._counter = counter
        self._windows = windows
        self._traits = traits
        self._max_gap_s = default_max_gap_s(counter.spacing_s) if max_gap_s is None else max_gap_s
        self._restarts_s = np.empty(0) if restarts_s is None else np.sort(restarts_s)
        suspects = np.ones(len(windows.spans), dtype=bool)
        if len(counter) > 1:
            suspects = self._compute(power_floor_watts, power_cap_watts)
        self._problems = {int(at): error for at in np.flatnonzero(suspects) if (error := self._problem(int(at)))}

    def problem(self, at: int) -> CoverageError | None:
        """Return why a window has no energy; None: it has one."""
        return self._problems.get(at)

    def bounds(self, at: int) -> Bounds:
        """Return the energy of a window with its bounds."""
        return Bounds(self._joules[at], self._lower_joules[at], self._upper_joules[at])

    def interpolation_joules(self, at: int) -> float:
        """Return the standard uncertainty of the interpolation in a window: the others only add to it."""
        return self._interpolation_joules[at]

    def energy(self, at: int) -> WindowEnergy:
        """Return the energy of a window with its budget.

        Raises:
            CoverageError: ``no_samples``, ``unbracketed``, ``sample_gap``, ``exporter_restart``, ``below_refresh``.
        """
        if problem := self._problems.get(at):
            raise problem
        windows, traits = self._windows, self._traits
        joules, duration_s = self._joules[at], windows.spans[at].duration_s
        gaps_s = [float(edge.gap_s[at]) for edge in self._edges]
        text = f"between samples {gaps_s[0]:.3g} s apart at the start and {gaps_s[1]:.3g} s at the end"
        clock = clock_text(windows.offsets[at], windows.spans[at].clock_error_s)
        budget = without_zeros(
            budget_item(
                "interpolation",
                float(self._half_joules[at]),
                "uniform",
                text,
                standard_joules=self._interpolation_joules[at],
                systematic=True,
            ),
            budget_item("clock", float(self._clock_joules[at]), "uniform", clock, systematic=True),
            *counter_items(traits, duration_s, self._refresh_joules[at]),
            *accuracy_items(traits, joules),
        )
        return WindowEnergy(
            joules=joules,
            lower_joules=self._lower_joules[at],
            upper_joules=self._upper_joules[at],
            budget=budget,
            method="history",
            duration_s=duration_s,
            samples=int(self._samples[at]),
        )

    def _compute(self, power_floor_watts: float, power_cap_watts: float) -> NDArray[np.bool_]:
        """Compute the energies, and return which of them may have a problem; their numbers mean nothing."""
        counter, windows, traits = self._counter, self._windows, self._traits
        times_s, values = counter.times_s, counter.values
        slopes = np.diff(values) / np.diff(times_s)
        error_s = windows.clock_error_s + windows.offset_error_s
        start = _Edge.of(times_s, windows.start_s, error_s, windows.clock_error_s)
        end = _Edge.of(times_s, windows.end_s, error_s, windows.clock_error_s)
        self._edges = (start, end)
        # The end's ``first`` is the last sample before it; it precedes the start's ``last`` if the window lies between
        # two samples.
        first, last = start.first, end.last
        falls = np.concatenate(([0], np.cumsum(slopes < 0)))
        restarts = self._restarts_s.searchsorted(times_s, side="right")
        suspects = (
            (windows.duration_s < traits.refresh_s)
            | start.is_suspect(times_s, self._max_gap_s)
            | end.is_suspect(times_s, self._max_gap_s)
            | (restarts[last] > restarts[first])
            | (falls[last] > falls[first])
        )
        base = values[first]
        at_start, at_end = (edge.counter(counter, slopes, base, self._max_gap_s) for edge in self._edges)
        joules = at_end - at_start
        power = joules / windows.duration_s
        steepest = _each(np.maximum, slopes, first, last)
        cap = np.maximum(np.maximum(POWER_CAP_FACTOR * power, steepest), power_cap_watts)
        floor = np.minimum(power_floor_watts, power)
        # An error of the clock offset is the component "clock". It does not widen the interpolation, too.
        errors = _interpolation_errors(times_s, values, slopes)
        spreads, halves, residuals = [], [], []
        for edge, estimate in zip(self._edges, (at_start, at_end), strict=True):
            low, high = values[edge.before] - base, values[edge.after] - base
            lower = np.minimum(np.maximum(low, high - cap * (times_s[edge.after] - edge.at_s)), estimate)
            upper = np.maximum(np.minimum(high, low + cap * (edge.at_s - times_s[edge.before])), estimate)
            spreads.append(_spread_about(estimate, lower, upper))
            halves.append(np.maximum(upper - estimate, estimate - lower))
            residuals.append(_residual(errors, falls, edge, len(counter)))
        widest = np.hypot(*spreads)
        gaps_s = np.maximum(start.gap_s, end.gap_s)
        # Power that repeats about as often as the samples looks steady in them.
        batches_s = windows.batches_s
        hidden = (gaps_s / _SYNCHRONOUS < batches_s) & (batches_s < gaps_s * _SYNCHRONOUS)
        likely = np.minimum(widest, np.hypot(_LEAST_SPREAD * widest, np.hypot(*residuals)))
        blur = traits.refresh_s * cap + traits.resolution_joules
        inside = np.where(end.first >= start.last, values[end.first] - values[start.last], 0.0)
        self._half_joules = halves[0] + halves[1]
        self._clock_joules = windows.offset_error_s * (cap - floor) + 2 * windows.clock_error_s * power
        self._samples = np.maximum(end.first - start.last + 1, 0)
        # Lists, because single values of an array are slow to get.
        self._refresh_joules: list[float] = refresh_joules(traits, power, floor, cap, batches_s).tolist()
        self._interpolation_joules: list[float] = np.where(hidden, widest, likely).tolist()
        self._joules: list[float] = joules.tolist()
        self._lower_joules: list[float] = np.maximum(inside - blur, 0.0).tolist()
        self._upper_joules: list[float] = (values[last] - base + blur).tolist()
        return suspects

    def _problem(self, at: int) -> CoverageError | None:
        """Check one window."""
        windows, max_gap_s = self._windows, self._max_gap_s
        times_s, values = self._counter.times_s, self._counter.values
        start_s, end_s = float(windows.start_s[at]), float(windows.end_s[at])
        clock_error_s = float(windows.clock_error_s[at])
        error_s = clock_error_s + float(windows.offset_error_s[at])
        try:
            check_refresh(windows.spans[at], self._traits)
            if times_s.size < 2:
                raise CoverageError("no_samples", "fewer than two samples near the window")
            first, _ = enclosing_samples(times_s, start_s, error_s, "start", max_gap_s)
            _, last = enclosing_samples(times_s, end_s, error_s, "end", max_gap_s)
            check_restart(self._restarts_s, float(times_s[first]), float(times_s[last]))
            falls = np.flatnonzero(np.diff(values[first : last + 1]) < 0)
            if falls.size:
                text = f"the counter fell at {times_s[first + falls[0] + 1]:.3f}, inside the window"
                raise CoverageError("exporter_restart", text)
            enclosing_samples(times_s, start_s, clock_error_s, "start", max_gap_s)
            enclosing_samples(times_s, end_s, clock_error_s, "end", max_gap_s)
        except CoverageError as error:
            return error
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Edge:
    """One edge of each window, and the indexes of the samples around it; they are valid indexes in any case."""

    at_s: Floats
    error_s: Floats
    clock_error_s: Floats
    first: Integers
    """The last sample that is before the edge at every possible clock offset."""
    last: Integers
    """The first sample certainly not before it."""
    before: Integers
    """The same two by the harness's mapping of its clocks alone."""
    after: Integers
    gap_s: Floats
    """Time between ``before`` and ``after``."""
    is_outside: NDArray[np.bool_]
    """Whether there is no sample on one side."""

    @classmethod
    def of(cls, times_s: Floats, at_s: Floats, error_s: Floats, clock_error_s: Floats) -> Self:
        """Find the samples around an edge of each window."""

        def around(doubt_s: Floats) -> tuple[Integers, Integers]:
            return times_s.searchsorted(at_s - doubt_s, side="right") - 1, times_s.searchsorted(at_s + doubt_s)

        first, last = around(error_s)
        before, after = around(clock_error_s)
        final = times_s.size - 1
        is_outside = (first < 0) | (last > final)
        first, before = np.maximum(first, 0), np.maximum(before, 0)
        last, after = np.minimum(last, final), np.minimum(after, final)
        return cls(
            at_s=at_s,
            error_s=error_s,
            clock_error_s=clock_error_s,
            first=first,
            last=last,
            before=before,
            after=after,
            gap_s=times_s[after] - times_s[before],
            is_outside=is_outside,
        )

    def is_suspect(self, times_s: Floats, max_gap_s: float) -> NDArray[np.bool_]:
        """Return at which edges samples are missing or too far apart."""
        gap_s = times_s[self.last] - times_s[self.first]
        too_far = (gap_s > max_gap_s + 2 * self.error_s) | (self.gap_s > max_gap_s + 2 * self.clock_error_s)
        return self.is_outside | too_far

    def counter(self, counter: Series, slopes: Floats, base: Floats, max_gap_s: float) -> Floats:
        """Estimate the counter at the edge of each window, in joules above ``base``.

        The increase between the two samples around the edge is split in proportion to the energies that the power
        before them would use up to the edge, and the power after them from the edge on. With equal powers this is
        linear interpolation. If the load starts or ends at the edge it is exact, while linear interpolation is wrong by
        up to a quarter of the step in power times the spacing. Without a neighbouring sample, it is linear.
        """
        times_s, values = counter.times_s, counter.values
        after = np.clip(times_s.searchsorted(self.at_s), 1, times_s.size - 1)
        before = after - 1
        left_s, right_s = self.at_s - times_s[before], times_s[after] - self.at_s
        previous, following = np.maximum(before - 1, 0), np.minimum(after + 1, times_s.size - 1)
        power_before, power_after = slopes[previous], slopes[following - 1]
        spans_s = np.maximum(times_s[before] - times_s[previous], times_s[following] - times_s[after])
        has_neighbours = (before > 0) & (after + 1 < times_s.size)
        is_split = has_neighbours & (np.minimum(power_before, power_after) >= 0) & (spans_s <= max_gap_s)
        left = np.where(is_split, power_before * left_s, left_s)
        right = np.where(is_split, power_after * right_s, right_s)
        rises = values[after] - values[before]
        return values[before] - base + rises * _shares(left, right, left_s, right_s)


def _shares(left: Floats, right: Floats, left_s: Floats, right_s: Floats) -> Floats:
    """Return the shares of ``left`` in the sums of both; by the times if they are not positive."""
    total = left + right
    is_known = total > 0
    return np.where(is_known, left, left_s) / np.where(is_known, total, left_s + right_s)


def _interpolation_errors(times_s: Floats, values: Floats, slopes: Floats) -> Floats:
    """Return by how much each sample, from the third to the last but two, would be wrong if it were interpolated.

    Leaving a sample out doubles the spacing, so the errors are rather too large.
    """
    spans_s, rises = np.diff(times_s), np.diff(values)
    left_s, right_s = spans_s[1:-2], spans_s[2:-1]
    shares = _shares(slopes[:-3] * left_s, slopes[3:] * right_s, left_s, right_s)
    return (rises[1:-2] + rises[2:-1]) * shares - rises[1:-2]


def _residual(errors: Floats, falls: Integers, edge: _Edge, count: int) -> Floats:
    """Return by how much the interpolation at an edge of each window is probably wrong, in joules.

    The larger of the two errors next to the edge, and of the root mean square of the nearest dozen (Student's factor
    for few). inf: too few samples, or the counter fell.

    Args:
        errors: Of all samples; the first is that of the third sample.
        falls: The number of falls of the counter up to each sample.
        edge: The edges.
        count: Number of samples.
    """
    first, last = np.maximum(edge.before - _NEAREST, 0), np.minimum(edge.after + _NEAREST + 1, count)
    is_known = (last - first > _LEAST_RISES) & (falls[last - 1] == falls[first])
    number = np.where(is_known, last - first - 4, 1)
    squares = _each(np.add, errors * errors, first, last - 4)
    numbers, which = np.unique(number, return_inverse=True)
    few = np.array([student_factor(int(n)) / NORMAL_95 for n in numbers])[which]
    near = _each(np.maximum, np.abs(errors), np.maximum(edge.before - 2, first), np.minimum(edge.after - 1, last - 4))
    return np.where(is_known, np.maximum(few * np.sqrt(squares / number), near), math.inf)


def _each(ufunc: np.ufunc, values: Floats, first: Integers, last: Integers) -> Floats:
    """Return ``ufunc`` over ``values[first:last]`` for each pair; 0 if there are none."""
    first, last = np.minimum(first, values.size), np.clip(last, 0, values.size)
    pairs = np.column_stack((first, last)).ravel()
    # ``reduceat`` needs valid indexes, also for the end.
    results: Floats = ufunc.reduceat(np.append(values, 0.0), pairs)[::2]
    return np.where(last > first, results, 0.0)


def _spread_about(estimate: Floats, lower: Floats, upper: Floats) -> Floats:
    """Return the root mean square distance from ``estimate`` of a uniform distribution over [lower, upper]."""
    width = upper - lower
    cubes = (upper - estimate) ** 3 + (estimate - lower) ** 3
    return np.where(width > 0, np.sqrt(cubes / np.where(width > 0, 3 * width, 1.0)), 0.0)
