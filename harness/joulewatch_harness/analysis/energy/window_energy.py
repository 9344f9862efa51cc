"""Energy of one window from edges, from a counter's history or from power, each with its bounds. Pure.

Two clocks are involved. The window lies on the harness's clock. Counters are placed at their read timestamps, on the
exporter's clock. ``ClockOffset`` bounds the difference.

A counter never falls, so the samples around an edge are hard bounds. The value between them is estimated (from the
powers on either side; for the milliseconds between the reading at an edge and the window, from the smallest power
observed and the power of the window). Its uncertainty covers all possible values, or follows from the errors that the
same estimate has at the samples nearby.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from joulewatch_harness.analysis.sources.series import Floats, Series, Traits, default_max_gap_s
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95, student_factor

Method = Literal["edges", "history", "power"]
Distribution = Literal["uniform", "triangular", "arcsine", "normal"]

ACCURACY: Final = "accuracy"
"""Name of the budget component of a sensor's accuracy."""

UNKNOWN_OFFSET_S: Final = 0.25
"""Assumed largest difference of two clocks that nothing compared. NTP's own bound (root dispersion and half the root
delay) is not used: the harness can read only the delay of its machine, which bounds one of the two clocks."""
_POWER_CAP_FACTOR: Final = 2.0
"""Assumed largest power just outside a window, as a multiple of its mean; at least the largest power observed."""
_LEAST_POWER_DOUBT: Final = 0.2
"""Smallest relative uncertainty of the power during some milliseconds, however steady it was otherwise."""
_PERIOD_TOLERANCE: Final = 0.05
"""Relative tolerance for readings one refresh period apart: scrapes and sensors have different clocks."""
_FEW_READINGS: Final = 4
"""If a window has fewer readings, their scatter is not used."""
_LEAST_SAMPLES: Final = 2
"""A window with fewer samples of power has no energy."""
_FEW_SAMPLES: Final = 6
"""If there are fewer samples of power in and next to a window, their scatter is not used."""
_NEAREST: Final = 7
"""Samples on each side of an edge whose interpolation errors are considered: errors at five, from two neighbours."""
_SYNCHRONOUS: Final = 4.0
"""Batches between 1/4 and 4 sample spacings long may repeat with the samples, whose errors then show nothing."""
_LEAST_SPREAD: Final = 0.1
"""Smallest share of the possible interpolation error that remains, however small the errors nearby are."""


@dataclass(frozen=True, slots=True)
class Span:
    """The window [start_s, end_s) on the harness's clock.

    ``clock_error_s`` is the half-width by which each edge may be off on that clock.
    """

    start_s: float
    end_s: float
    clock_error_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.end_s > self.start_s:
            raise ValueError(f"window ends at {self.end_s}, not after its start {self.start_s}")

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Bounds of the exporter's clock minus the harness's, in seconds. (0, 0): the same clock."""

    lower_s: float = 0.0
    upper_s: float = 0.0
    known: bool = True
    """Whether the clocks were compared; False: the bounds are assumed (``UNKNOWN_CLOCK``)."""

    @property
    def nominal_s(self) -> float:
        """Zero if the bounds contain it, else their middle."""
        return 0.0 if self.lower_s <= 0.0 <= self.upper_s else (self.lower_s + self.upper_s) / 2

    @property
    def half_width_s(self) -> float:
        """Largest distance of the true offset from ``nominal_s``."""
        return max(self.upper_s - self.nominal_s, self.nominal_s - self.lower_s)


UNKNOWN_CLOCK: Final = ClockOffset(-UNKNOWN_OFFSET_S, UNKNOWN_OFFSET_S, known=False)


@dataclass(frozen=True, slots=True)
class EdgeReading:
    """One counter read at one edge: joules, and the time on the exporter's clock.

    If both readings of a window have the same ``offset``, they have the same error of it.
    """

    read_at_s: float
    joules: float
    offset: ClockOffset = ClockOffset()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetItem:
    """One component of an uncertainty budget (GUM, annex H.1)."""

    name: str
    standard_joules: float
    half_width_joules: float
    distribution: Distribution
    text: str
    systematic: bool = False
    """The same in every repeat, so repeats do not reduce it: the accuracy of a sensor, and the power next to the edges
    of a window, which is similar each time. The phase of a sensor's refresh is not systematic."""
    family: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEnergy:
    """Energy of one sensor in one window, with its bounds and uncertainty."""

    joules: float
    lower_joules: float
    """Hard bound from the readings and their times; excludes the sensor's accuracy, which is in the budget."""
    upper_joules: float
    budget: tuple[BudgetItem, ...]
    method: Method
    duration_s: float
    samples: int
    """Samples inside the window; with edges: the two readings."""

    @property
    def standard_joules(self) -> float:
        """Combined standard uncertainty of this window."""
        return math.sqrt(math.fsum(component.standard_joules**2 for component in self.budget))

    @property
    def sampling_joules(self) -> float:
        """The same without the sensor's accuracy: two ways of reading one counter differ by no more."""
        return math.sqrt(
            math.fsum(component.standard_joules**2 for component in self.budget if component.name != ACCURACY)
        )

    @property
    def mean_power_watts(self) -> float:
        return self.joules / self.duration_s


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
    return BudgetItem(
        name=name,
        standard_joules=half_width_joules / _DIVISORS[distribution] if standard_joules is None else standard_joules,
        half_width_joules=half_width_joules,
        distribution=distribution,
        text=text,
        systematic=systematic,
        family=family,
    )


def _budget(*items: BudgetItem) -> tuple[BudgetItem, ...]:
    """Return the components that are not 0, and the accuracy: its presence shows that one is published."""
    return tuple(item for item in items if item.half_width_joules > 0 or item.name == ACCURACY)


def _counter_items(
    traits: Traits, duration_s: float, power: float, floor: float, cap: float, batch_s: float
) -> list[BudgetItem]:
    """Return the components of a counter's readings at both edges.

    Either value is up to a refresh period r old. The two ages are independent, and they meet different powers:
    u = r sqrt(P^2 / 6 + 2 / 3 s^2), where s^2 <= (cap - P) (P - floor) is the largest variance of a power between
    floor and cap with the mean P (Bhatia and Davis 2000). Power that repeats with each batch averages out over r.
    A counter that is integrated from a gauge by the trapezoid lags by half of r more, which adds r^2 s^2 / 2.
    """
    variance = max(cap - power, 0.0) * max(power - floor, 0.0)
    if batch_s < traits.refresh_s:
        variance *= batch_s / traits.refresh_s
    integrated = traits.resolution_watts > 0
    half = traits.refresh_s * math.sqrt(power * power + (7 if integrated else 4) * variance)
    return [
        budget_item("refresh", half, "triangular", f"the value is up to {traits.refresh_s:.3g} s old at either edge"),
        budget_item(
            "resolution",
            traits.resolution_joules,
            "triangular",
            f"steps of {traits.resolution_joules:.3g} J at either edge",
        ),
        _steps_item(traits.resolution_watts, duration_s),
    ]


def _steps_item(step_watts: float, duration_s: float) -> BudgetItem:
    half = step_watts * duration_s / 2
    return budget_item("steps", half, "uniform", f"power in steps of {step_watts:.3g} W", systematic=True)


def _accuracy_items(traits: Traits, joules: float) -> list[BudgetItem]:
    if traits.accuracy is None:
        return []
    text = f"accuracy of the sensor, ±{100 * traits.accuracy:.3g} %, the same in every repeat"
    half = traits.accuracy * abs(joules)
    return [budget_item(ACCURACY, half, "uniform", text, systematic=True, family=traits.family)]


def _check_refresh(window: Span, traits: Traits) -> None:
    if window.duration_s < traits.refresh_s:
        raise CoverageError(
            "below_refresh",
            f"the window of {window.duration_s:.3g} s is shorter than the {traits.refresh_s:.3g} s "
            "between two updates of the sensor; use a longer window",
        )


def _check_restart(restarts_s: Floats | None, first_s: float, last_s: float) -> None:
    if restarts_s is None:
        return
    inside = restarts_s[(restarts_s > first_s) & (restarts_s <= last_s)]
    if inside.size:
        raise CoverageError(
            "exporter_restart",
            f"the exporter restarted at {inside[0]:.3f}, inside the window, which set the counter to 0",
        )


def energy_from_edges(
    start: EdgeReading,
    end: EdgeReading,
    window: Span,
    traits: Traits = Traits(),
    *,
    restarts_s: Floats | None = None,
    power_floor_watts: float = 0.0,
    power_cap_watts: float = 0.0,
    batch_s: float = math.inf,
) -> WindowEnergy:
    """Energy of a window whose counter was read just before its start and just after its end.

    The counter's increase is an upper bound. In the milliseconds between each reading and the window the machine
    was idle, or ran as in the window, or something in between: the mean of the smallest power observed and the power of
    the window is subtracted. The bounds do not rely on the smallest power; they assume 0.

    An error of the offset that is common to both readings moves both of them by the same time. The time between them
    stays the same, so it cancels in the energy, but not in the bounds. The harness reads outside the window: if an
    offset that the bounds allow places both readings there, it is used.

    Args:
        start: Reading at the start; before ``window.start_s`` unless the clocks differ.
        end: Reading at the end.
        window: The span on the harness's clock.
        traits: Limits of the sensor.
        restarts_s: Times at which the exporter started, on its clock.
        power_floor_watts: Smallest power observed of the device.
        power_cap_watts: Largest power observed of the device; the bounds always allow for twice the window's mean
            power.
        batch_s: Time of one batch, over which power may vary; inf: unknown.

    Returns:
        Energy in joules with hard bounds and budget.

    Raises:
        CoverageError: ``exporter_restart``, ``below_refresh`` or ``clock_skew`` (the readings are out of order).
    """
    _check_refresh(window, traits)
    _check_restart(restarts_s, start.read_at_s, end.read_at_s)
    rise = end.joules - start.joules
    if rise < 0:
        raise CoverageError(
            "exporter_restart", f"the counter fell from {start.joules:.6g} J to {end.joules:.6g} J inside the window"
        )
    slack_s = (
        window.start_s - (start.read_at_s - start.offset.nominal_s),
        (end.read_at_s - end.offset.nominal_s) - window.end_s,
    )
    between_s = window.duration_s + slack_s[0] + slack_s[1]
    if between_s <= window.duration_s / 2:
        raise CoverageError(
            "clock_skew",
            f"the readings at the edges are {between_s:.3f} s apart on the harness's clock, but the window is "
            f"{window.duration_s:.3f} s long",
        )
    power = rise / between_s
    cap = max(_POWER_CAP_FACTOR * power, power_cap_watts)
    floor = min(power_floor_watts, power)
    outside_s, inside_s = _largest_slacks(slack_s, start.offset, end.offset, window.clock_error_s)
    lower, upper = rise - outside_s * cap, rise + inside_s * cap
    clock_half = 2 * window.clock_error_s * power
    if start.offset == end.offset:
        slack_s = _moved_outside(slack_s, start.offset.half_width_s)
    else:
        clock_half += (start.offset.half_width_s + end.offset.half_width_s) * power
    joules = rise
    slack_half = 0.0
    for slack in slack_s:
        # A reading inside the window misses energy at the window's power; a reading outside includes too much, at a
        # power between the smallest one observed and the window's.
        joules -= slack * (power + floor) / 2 if slack >= 0 else slack * power
        slack_half += abs(slack) * max(power - floor, _LEAST_POWER_DOUBT * power) / 2
    # The extremes are the likely cases: the machine is idle while its counters are read, or it keeps running, with any
    # power up to twice the mean, at both edges independently.
    running = (_POWER_CAP_FACTOR * power - floor) / math.sqrt(12.0)
    slack_standard = math.sqrt((slack_half**2 + (abs(slack_s[0]) + abs(slack_s[1])) ** 2 * running**2 / 2) / 2)
    text = f"{slack_s[0] * 1e3:.3g} ms and {slack_s[1] * 1e3:.3g} ms between the readings and the window"
    budget = _budget(
        budget_item("edge slack", slack_half, "arcsine", text, standard_joules=slack_standard, systematic=True),
        budget_item(
            "clock",
            clock_half,
            "uniform",
            f"clocks and their mapping, {clock_half / power * 1e3 if power else 0.0:.3g} ms over both edges",
            systematic=True,
        ),
        *_counter_items(traits, window.duration_s, power, floor, cap, batch_s),
        *_accuracy_items(traits, joules),
    )
    blur = traits.refresh_s * cap + traits.resolution_joules
    return WindowEnergy(
        joules=joules,
        lower_joules=max(lower - blur, 0.0),
        upper_joules=upper + blur,
        budget=budget,
        method="edges",
        duration_s=window.duration_s,
        samples=2,
    )


def _largest_slacks(
    slack_s: tuple[float, float], start: ClockOffset, end: ClockOffset, error_s: float
) -> tuple[float, float]:
    """Return the longest total time between the readings and the window outside it, and the longest inside it.

    Args:
        slack_s: Time from the reading to the start, and from the end to the reading; negative inside the window.
        start: Clock offset of the reading at the start.
        end: Clock offset of the reading at the end.
        error_s: By which each edge of the window may be off.
    """
    first_s, last_s = start.half_width_s, end.half_width_s
    # A common offset moves both readings in one direction: away from the window at one edge, into it at the other. The
    # totals are convex in the shift, so they are largest at its limits.
    signs = ((1, -1), (-1, 1)) if start == end else ((1, 1), (-1, -1))
    moved = [(slack_s[0] + a * first_s, slack_s[1] + b * last_s) for a, b in signs]
    outside_s = max(sum(max(slack + error_s, 0.0) for slack in pair) for pair in moved)
    return outside_s, max(sum(max(error_s - slack, 0.0) for slack in pair) for pair in moved)


def _moved_outside(slack_s: tuple[float, float], limit_s: float) -> tuple[float, float]:
    """Move both readings by one time, at most ``limit_s``, so that as little as possible of it is inside the window."""
    first_s, last_s = slack_s
    if first_s * last_s >= 0:
        return slack_s
    shift_s = math.copysign(min(abs(first_s), abs(last_s), limit_s), last_s)
    return first_s + shift_s, last_s - shift_s


def _bracket(times_s: Floats, edge_s: float, error_s: float, name: str, max_gap_s: float) -> tuple[int, int]:
    """Return the indexes of the last sample certainly before an edge and the first certainly not before it."""
    before = int(times_s.searchsorted(edge_s - error_s, side="right")) - 1
    after = int(times_s.searchsorted(edge_s + error_s, side="left"))
    if before < 0 or after >= times_s.size:
        side = "before" if before < 0 else "after"
        raise CoverageError("unbracketed", f"no sample {side} the window's {name}")
    gap_s = float(times_s[after] - times_s[before])
    if gap_s > max_gap_s + 2 * error_s:
        raise CoverageError(
            "sample_gap",
            f"{gap_s:.3g} s without a sample around the window's {name} (at most {max_gap_s:.3g} s is accepted)",
        )
    return before, after


def _counter_at(times_s: Floats, values: Floats, edge_s: float, max_gap_s: float) -> float:
    """Estimate a counter between two samples, in joules above the first of ``values``.

    The increase between the two samples around the edge is split in proportion to the energies that the power before
    them would use up to the edge, and the power after them from the edge on. With equal powers this is linear
    interpolation. If the load starts or ends at the edge it is exact, while linear interpolation is wrong by up to a
    quarter of the step in power times the spacing. Without a neighbouring sample, the interpolation is linear.
    """
    after = min(max(int(times_s.searchsorted(edge_s, side="left")), 1), times_s.size - 1)
    before = after - 1
    spacing_s = float(times_s[after] - times_s[before])
    left_s, right_s = edge_s - float(times_s[before]), float(times_s[after]) - edge_s
    rise = float(values[after] - values[before])
    low = float(values[before] - values[0])
    weights = (left_s, right_s)
    if before > 0 and after + 1 < times_s.size:
        span_before_s = float(times_s[before] - times_s[before - 1])
        span_after_s = float(times_s[after + 1] - times_s[after])
        power_before = float(values[before] - values[before - 1]) / span_before_s
        power_after = float(values[after + 1] - values[after]) / span_after_s
        if min(power_before, power_after) >= 0 and max(span_before_s, span_after_s) <= max_gap_s:
            weights = (power_before * left_s, power_after * right_s)
    total = weights[0] + weights[1]
    return low + rise * (weights[0] / total if total > 0 else left_s / spacing_s)


def _residual(times_s: Floats, values: Floats, before: int, after: int) -> float:
    """Return by how much the interpolation is wrong, in joules, at the samples near an edge if each were missing.

    The larger of the two errors next to the edge, and of the root mean square of the nearest dozen (Student's factor
    for few). Leaving a sample out doubles the spacing, so the errors are rather too large. inf: too few samples.
    """
    first, last = max(before - _NEAREST, 0), min(after + _NEAREST + 1, values.size)
    t, v = times_s[first:last], values[first:last]
    rises, spans_s = np.diff(v), np.diff(t)
    if rises.size < 5 or float(rises.min()) < 0:
        return math.inf
    powers = rises / spans_s
    # Sample i + 2, from the samples i to i + 4 without itself.
    left, right = powers[:-3] * spans_s[1:-2], powers[3:] * spans_s[2:-1]
    total = left + right
    share = np.divide(left, total, out=spans_s[1:-2] / (spans_s[1:-2] + spans_s[2:-1]), where=total > 0)
    errors = (rises[1:-2] + rises[2:-1]) * share - rises[1:-2]
    few = student_factor(errors.size) / NORMAL_95
    near = errors[max(before - first - 2, 0) : after - first - 1]
    return max(few * math.sqrt(float(np.mean(errors**2))), float(np.abs(near).max(initial=0.0)))


def _spread_about(estimate: float, lower: float, upper: float) -> float:
    """Return the root mean square distance from ``estimate`` of a uniform distribution over [lower, upper]."""
    width = upper - lower
    if width <= 0:
        return 0.0
    return math.sqrt(((upper - estimate) ** 3 + (estimate - lower) ** 3) / (3 * width))


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
    _check_refresh(window, traits)
    times_s, values = counter.times_s, counter.values
    if times_s.size < 2:
        raise CoverageError("no_samples", "fewer than two samples near the window")
    if max_gap_s is None:
        max_gap_s = default_max_gap_s(counter.spacing_s)
    error_s = window.clock_error_s + offset.half_width_s
    start_s, end_s = window.start_s + offset.nominal_s, window.end_s + offset.nominal_s
    a, b = _bracket(times_s, start_s, error_s, "start", max_gap_s)
    c, d = _bracket(times_s, end_s, error_s, "end", max_gap_s)
    # ``c`` is the last sample before the end; it precedes ``b`` if the window lies between two samples.
    _check_restart(restarts_s, float(times_s[a]), float(times_s[d]))
    part_times, part = times_s[a : d + 1], values[a : d + 1]
    steps = part[1:] - part[:-1]
    if steps.size and float(steps.min()) < 0:
        at = int(np.argmin(steps >= 0))
        raise CoverageError("exporter_restart", f"the counter fell at {part_times[at + 1]:.3f}, inside the window")
    base = float(part[0])
    origin = base - float(values[0])
    at_start, at_end = (_counter_at(times_s, values, edge_s, max_gap_s) - origin for edge_s in (start_s, end_s))
    joules = at_end - at_start
    power = joules / window.duration_s
    steepest = float((steps / (part_times[1:] - part_times[:-1])).max()) if steps.size else 0.0
    cap = max(_POWER_CAP_FACTOR * power, steepest, power_cap_watts)
    floor = min(power_floor_watts, power)
    # An error of the clock offset is the component "clock". It does not widen the interpolation, too.
    edges = [
        (edge_s, estimate, *_bracket(times_s, edge_s, window.clock_error_s, name, max_gap_s))
        for edge_s, estimate, name in ((start_s, at_start, "start"), (end_s, at_end, "end"))
    ]
    spreads, halves, residuals = [], [], []
    for edge_s, estimate, before, after in edges:
        low, high = float(values[before]) - base, float(values[after]) - base
        lower = max(low, high - cap * (float(times_s[after]) - edge_s))
        upper = min(high, low + cap * (edge_s - float(times_s[before])))
        lower, upper = min(lower, estimate), max(upper, estimate)
        spreads.append(_spread_about(estimate, lower, upper))
        halves.append(max(upper - estimate, estimate - lower))
        residuals.append(_residual(times_s, values, before, after))
    widest = math.hypot(*spreads)
    gaps_s = [float(times_s[after] - times_s[before]) for _, _, before, after in edges]
    # Power that repeats about as often as the samples looks steady in them.
    hidden = max(gaps_s) / _SYNCHRONOUS < batch_s < max(gaps_s) * _SYNCHRONOUS
    likely = widest if hidden else min(widest, math.hypot(_LEAST_SPREAD * widest, *residuals))
    text = f"between samples {gaps_s[0]:.3g} s apart at the start and {gaps_s[1]:.3g} s at the end"
    clock_half = offset.half_width_s * (cap - floor) + 2 * window.clock_error_s * power
    budget = _budget(
        budget_item("interpolation", sum(halves), "uniform", text, standard_joules=likely, systematic=True),
        budget_item("clock", clock_half, "uniform", _clock_text(offset, window.clock_error_s), systematic=True),
        *_counter_items(traits, window.duration_s, power, floor, cap, batch_s),
        *_accuracy_items(traits, joules),
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


def _clock_text(offset: ClockOffset, error_s: float) -> str:
    known = "known" if offset.known else "unknown, assumed"
    return (
        f"the exporter's clock, {known} to be within {offset.half_width_s * 1e3:.3g} ms; the harness's mapping of its "
        f"clocks, {error_s * 1e3:.3g} ms at either edge"
    )


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
    _check_refresh(window, traits)
    times_s = power.times_s
    if times_s.size < 2:
        raise CoverageError("no_samples", "fewer than two samples near the window")
    if max_gap_s is None:
        max_gap_s = default_max_gap_s(power.spacing_s)
    start_s, end_s = window.start_s + offset.nominal_s, window.end_s + offset.nominal_s
    a, _ = _bracket(times_s, start_s, 0.0, "start", max_gap_s)
    _, d = _bracket(times_s, end_s, 0.0, "end", max_gap_s)
    part_times, part = times_s[a : d + 1], power.values[a : d + 1]
    widest_s = float(np.diff(part_times).max()) if part_times.size > 1 else 0.0
    if widest_s > max_gap_s:
        raise CoverageError("sample_gap", f"{widest_s:.3g} s without a sample inside the window")
    samples = int(np.count_nonzero((part_times >= start_s) & (part_times <= end_s)))
    if samples < _LEAST_SAMPLES:
        raise CoverageError(
            "too_few_samples",
            f"{samples} samples of power in the window of {window.duration_s:.3g} s; at least {_LEAST_SAMPLES} are "
            "needed: use a longer window or a shorter scrape interval",
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
    budget = _budget(
        _sampling_item(_spaced(part_times, part, traits.refresh_s), window, traits, joules, samples, seen_watts),
        _steps_item(step_watts, window.duration_s),
        budget_item("lag", lag_half, "uniform", f"the values are up to {lag_s:.3g} s old"),
        budget_item("clock", clock_half, "uniform", _clock_text(offset, window.clock_error_s), systematic=True),
        *_accuracy_items(traits, joules),
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
        return budget_item("sampling", half, "uniform", f"{values.size} values are too few to know their scatter")
    scatter_watts = math.sqrt((_scatter(values) ** 2 + float(values.var())) / 2)
    count = min(samples, duration_s / traits.refresh_s) if traits.refresh_s > 0 else samples
    standard = _few(values) * duration_s * scatter_watts / math.sqrt(count)
    text = f"{values.size} values, which scatter by {scatter_watts:.3g} W"
    return budget_item("sampling", NORMAL_95 * standard, "normal", text)


def _scatter(values: Floats) -> float:
    """Return the standard deviation of values from their successive differences, which slow changes do not widen."""
    return math.sqrt(float(np.mean(np.diff(values) ** 2)) / 2)


def _few(values: Floats) -> float:
    """Return the factor for a scatter of few values: two thirds of a degree of freedom per difference."""
    return student_factor(2 * (values.size - 1) / 3) / NORMAL_95


def _smallest_step(watts: Floats) -> float:
    """Return the smallest step between successive values in watts; without steps, that of the last digit, at most 1."""
    steps = np.abs(np.diff(watts))
    steps = steps[steps > 0]
    if steps.size:
        return float(steps.min())
    return next((10.0**-digits for digits in range(7) if round(float(watts[0]), digits) == float(watts[0])), 0.0)


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
    cap = max(_POWER_CAP_FACTOR * power, power_cap_watts)
    floor = min(power_floor_watts, power)
    observed = f"the sensor observes {1e3 * traits.window_s:.3g} of every {1e3 * traits.refresh_s:.3g} ms"
    values = np.empty(0)
    if readings is not None:
        inside = (readings.times_s >= window.start_s + offset.nominal_s) & (
            readings.times_s <= window.end_s + offset.nominal_s
        )
        values = _spaced(readings.times_s[inside], readings.values[inside], traits.refresh_s)
    if values.size >= _FEW_READINGS:
        scatter_watts = _scatter(values)
        # A gauge has no values between its samples.
        periods = min(duration_s / traits.refresh_s, energy.samples if energy.method == "power" else math.inf)
        standard = _few(values) * duration_s * scatter_watts * math.sqrt(unseen / max(periods, 1.0))
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


def _spaced(times_s: Floats, values: Floats, refresh_s: float) -> Floats:
    """Return the values that are a refresh period apart, so that no value counts twice."""
    least_s = (1.0 - _PERIOD_TOLERANCE) * refresh_s
    if times_s.size < 2 or float(np.diff(times_s).min()) >= least_s:
        return values
    kept: list[float] = []
    last_s = -math.inf
    for at_s, value in zip(times_s, values, strict=True):
        if at_s >= last_s + least_s:
            kept.append(float(value))
            last_s = float(at_s)
    return np.array(kept, dtype=np.float64)
