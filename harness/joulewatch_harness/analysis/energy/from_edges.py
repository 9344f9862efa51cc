"""Energy of a window whose counter was read at its two edges. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from joulewatch_harness.analysis.energy.budget import accuracy_items, budget_item, counter_items, without_zeros
from joulewatch_harness.analysis.energy.stepped_edges import (
    LEAST_POWER_DOUBT,
    StepEdge,
    interrupted_energy,
    joules_outside,
    power_of,
    slack_doubt,
    time_doubt,
)
from joulewatch_harness.analysis.energy.window_energy import (
    POWER_CAP_FACTOR,
    BudgetItem,
    EdgeReading,
    Span,
    WindowEnergy,
    check_refresh,
    check_restart,
)
from joulewatch_harness.analysis.sources.series import Floats, Traits
from joulewatch_harness.errors import CoverageError


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
    settled: bool = True,
) -> WindowEnergy:
    """Energy of a window whose counter was read just before its start and just after its end.

    If the exporter waited for the counter's refreshes (``EdgeReading.step``), see ``stepped_edges``. Otherwise:

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
        settled: Whether the load of the window, or less, ran next to it. False: nothing is known about that power. It
            is taken as that of the window, and may be anything from the smallest to the largest.

    Returns:
        Energy in joules with hard bounds and budget.

    Raises:
        CoverageError: ``exporter_restart``, ``below_refresh`` or ``clock_skew`` (the readings are out of order).
    """
    check_refresh(window, traits)
    check_restart(restarts_s, start.read_at_s, end.read_at_s)
    # The first refresh after the end is the nearest to it.
    end_at_s, end_joules = end.read_at_s, end.joules
    if end.step is not None:
        end_at_s, end_joules = end.read_at_s - end.step.span_s, end.step.first_joules
    rise = end_joules - start.joules
    if rise < 0:
        raise CoverageError(
            "exporter_restart", f"the counter fell from {start.joules:.6g} J to {end_joules:.6g} J inside the window"
        )
    duration_s, is_same_clock = window.duration_s, start.offset is end.offset or start.offset == end.offset
    doubts_s = (start.offset.half_width_s, end.offset.half_width_s)
    slack_s = (
        window.start_s - (start.read_at_s - start.offset.nominal_s),
        (end_at_s - end.offset.nominal_s) - window.end_s,
    )
    between_s = duration_s + slack_s[0] + slack_s[1]
    if between_s <= duration_s / 2:
        raise CoverageError(
            "clock_skew",
            f"the readings at the edges are {between_s:.3f} s apart on the harness's clock, but the window is "
            f"{duration_s:.3f} s long",
        )
    power = rise / between_s
    floor = min(power_floor_watts, power)
    cap = max(
        POWER_CAP_FACTOR * power,
        power_cap_watts,
        power_of(start, traits.refresh_s) or 0.0,
        power_of(end, traits.refresh_s) or 0.0,
    )
    outside_s, inside_s = _largest_slacks(slack_s, doubts_s, window.clock_error_s, is_same_clock=is_same_clock)
    clock_half = 2 * window.clock_error_s * power
    if is_same_clock:
        slack_s = _moved_outside(slack_s, doubts_s[0])
    else:
        clock_half += (doubts_s[0] + doubts_s[1]) * power
    stale, errors_s = 2, 0.0
    time_items: tuple[BudgetItem, ...] = ()
    if start.step is not None or end.step is not None:
        edges = [
            StepEdge.of(slack, reading, other, power=power, floor=floor, refresh_s=traits.refresh_s)
            for slack, reading, other in ((slack_s[0], start, end), (slack_s[1], end, start))
        ]
        joules, slack_half, slack_standard = _between_steps(rise, edges, floor, cap)
        stale = sum(edge.step is None for edge in edges)
        errors_s = math.fsum(edge.step.error_s for edge in edges if edge.step is not None)
        time_items = (_time_item(edges),)
    elif settled:
        joules, slack_half, slack_standard = _between_readings(rise, slack_s, power, floor)
    else:
        joules = rise - sum(slack_s) * power
        slack_half = (abs(slack_s[0]) + abs(slack_s[1])) * max(cap - power, power - floor)
        slack_standard = slack_half / math.sqrt(3.0)
    text = f"{slack_s[0] * 1e3:.3g} ms and {slack_s[1] * 1e3:.3g} ms between the readings and the window"
    budget = without_zeros(
        budget_item("edge slack", slack_half, "arcsine", text, standard_joules=slack_standard, systematic=True),
        budget_item(
            "clock",
            clock_half,
            "uniform",
            f"clocks and their mapping, {clock_half / power * 1e3 if power else 0.0:.3g} ms over both edges",
            systematic=True,
        ),
        *time_items,
        *counter_items(traits, duration_s, power, floor, cap, batch_s, stale),
        *accuracy_items(traits, joules),
    )
    blur = (traits.refresh_s if stale else 0.0) * cap + errors_s * cap + traits.resolution_joules
    return WindowEnergy(
        joules=joules,
        lower_joules=max(rise - outside_s * cap - blur, 0.0),
        upper_joules=rise + inside_s * cap + blur,
        budget=budget,
        method="edges",
        duration_s=duration_s,
        samples=2,
    )


def _between_steps(rise: float, edges: Sequence[StepEdge], floor: float, cap: float) -> tuple[float, float, float]:
    """Return the same as `_between_readings`, if the exporter waited for the refreshes at an edge."""
    joules = rise - joules_outside(edges)
    doubts = [0.0 if edge.is_interrupted else slack_doubt(edge) for edge in edges]
    if any(edge.is_interrupted for edge in edges):
        unknown, half = interrupted_energy(edges, joules, floor, cap)
        joules -= unknown
        doubts.append(half)
    return joules, math.fsum(doubts), math.hypot(*doubts) / math.sqrt(3.0)


def _time_item(edges: Sequence[StepEdge]) -> BudgetItem:
    return budget_item(
        "refresh time",
        math.fsum(map(time_doubt, edges)),
        "uniform",
        "the time of the counter's refresh at either edge",
        standard_joules=math.hypot(*map(time_doubt, edges)) / math.sqrt(3.0),
    )


def _between_readings(
    rise: float, slack_s: tuple[float, float], power: float, floor: float
) -> tuple[float, float, float]:
    """Return the energy between two readings without that of the slack, and the slack's half-width and uncertainty."""
    joules = rise
    slack_half = 0.0
    for slack in slack_s:
        # A reading inside the window misses energy at the window's power; a reading outside includes too much, at a
        # power between the smallest one observed and the window's.
        joules -= slack * (power + floor) / 2 if slack >= 0 else slack * power
        slack_half += abs(slack) * max(power - floor, LEAST_POWER_DOUBT * power) / 2
    # The extremes are the likely cases: the machine is idle while its counters are read, or it keeps running, with any
    # power up to twice the mean, at both edges independently.
    running = (POWER_CAP_FACTOR * power - floor) / math.sqrt(12.0)
    standard = math.sqrt((slack_half**2 + (abs(slack_s[0]) + abs(slack_s[1])) ** 2 * running**2 / 2) / 2)
    return joules, slack_half, standard


def _largest_slacks(
    slack_s: tuple[float, float], doubts_s: tuple[float, float], error_s: float, *, is_same_clock: bool
) -> tuple[float, float]:
    """Return the longest total time between the readings and the window outside it, and the longest inside it.

    Args:
        slack_s: Time from the reading to the start, and from the end to the reading; negative inside the window.
        doubts_s: Half-width of the clock offset of either reading.
        error_s: By which each edge of the window may be off.
        is_same_clock: Whether both readings have the same offset.
    """
    first_s, last_s = doubts_s
    # A common offset moves both readings in one direction: away from the window at one edge, into it at the other. The
    # totals are convex in the shift, so they are largest at its limits.
    if is_same_clock:
        last_s = -last_s
    outside_s = inside_s = 0.0
    for before_s, after_s in (
        (slack_s[0] + first_s, slack_s[1] + last_s),
        (slack_s[0] - first_s, slack_s[1] - last_s),
    ):
        outside_s = max(outside_s, max(before_s + error_s, 0.0) + max(after_s + error_s, 0.0))
        inside_s = max(inside_s, max(error_s - before_s, 0.0) + max(error_s - after_s, 0.0))
    return outside_s, inside_s


def _moved_outside(slack_s: tuple[float, float], limit_s: float) -> tuple[float, float]:
    """Move both readings by one time, at most ``limit_s``, so that as little as possible of it is inside the window."""
    first_s, last_s = slack_s
    if first_s * last_s >= 0:
        return slack_s
    shift_s = math.copysign(min(abs(first_s), abs(last_s), limit_s), last_s)
    return first_s + shift_s, last_s - shift_s
