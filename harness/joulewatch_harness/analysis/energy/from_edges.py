"""Energy of windows whose counter was read at their two edges. Pure.

All windows of a counter are computed at once, with one value per window in each array, as in ``from_history``. Only the
windows with refreshes at an edge (``stepped_edges``) are computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.analysis.energy.budget import (
    accuracy_items,
    budget_item,
    counter_items,
    refresh_joules,
)
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
    ClockOffset,
    EdgeReading,
    Span,
    WindowEnergy,
    check_refresh,
    check_restart,
)
from joulewatch_harness.analysis.sources.series import Floats, Traits
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import EdgeStep


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
    (energy,) = energies_from_edges(
        EdgeReadings(np.array([start.read_at_s]), np.array([start.joules]), [start.step]),
        EdgeReadings(np.array([end.read_at_s]), np.array([end.joules]), [end.step]),
        EdgeWindows.of([window], [(start.offset, end.offset)], [batch_s]),
        traits,
        restarts_s=restarts_s,
        power_floor_watts=power_floor_watts,
        power_cap_watts=power_cap_watts,
        settled=settled,
    )
    assert energy is not None
    if isinstance(energy, CoverageError):
        raise energy
    return energy


@dataclass(frozen=True, slots=True, eq=False)
class EdgeReadings:
    """Readings of one counter at the starts, or at the ends, of some windows: one value per window."""

    read_at_s: Floats
    """On the exporter's clock; nan: not read."""
    joules: Floats
    steps: Sequence[EdgeStep | None]

    def __getitem__(self, at: int) -> EdgeReading:
        return EdgeReading(float(self.read_at_s[at]), float(self.joules[at]), step=self.steps[at])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeWindows:
    """Windows, and the clock of an exporter at their edges; each array has one value per window."""

    spans: Sequence[Span]
    """On the harness's clock."""
    starts_s: Floats
    ends_s: Floats
    durations_s: Floats
    clock_errors_s: Floats
    batches_s: Floats
    offsets_s: tuple[Floats, Floats]
    """The exporter's clock minus the harness's, at the start and at the end."""
    doubts_s: tuple[Floats, Floats]
    """Their half-widths."""
    is_same_clock: NDArray[np.bool_]
    """Whether both edges have the same offset, and so the same error of it."""

    @classmethod
    def of(
        cls, spans: Sequence[Span], offsets: Sequence[tuple[ClockOffset, ClockOffset]], batches_s: Sequence[float]
    ) -> Self:
        """Return windows; the arguments have one value per window."""
        starts, ends = zip(*offsets, strict=True) if offsets else ((), ())
        return cls(
            spans=spans,
            starts_s=np.array([span.start_s for span in spans]),
            ends_s=np.array([span.end_s for span in spans]),
            durations_s=np.array([span.duration_s for span in spans]),
            clock_errors_s=np.array([span.clock_error_s for span in spans]),
            batches_s=np.asarray(batches_s),
            offsets_s=(_nominal_s(starts), _nominal_s(ends)),
            doubts_s=(_half_width_s(starts), _half_width_s(ends)),
            is_same_clock=np.array([start is end or start == end for start, end in offsets], dtype=bool),
        )


def _nominal_s(offsets: Sequence[ClockOffset]) -> Floats:
    return np.array([offset.nominal_s for offset in offsets])


def _half_width_s(offsets: Sequence[ClockOffset]) -> Floats:
    return np.array([offset.half_width_s for offset in offsets])


def energies_from_edges(
    start: EdgeReadings,
    end: EdgeReadings,
    windows: EdgeWindows,
    traits: Traits = Traits(),
    *,
    restarts_s: Floats | None = None,
    power_floor_watts: float = 0.0,
    power_cap_watts: float = 0.0,
    settled: bool = True,
) -> list[WindowEnergy | CoverageError | None]:
    """Return `energy_from_edges`, or its error, for all windows of one counter; None: not read at both edges."""
    stepped = [at for at, pair in enumerate(zip(start.steps, end.steps, strict=True)) if pair != (None, None)]
    # The first refresh after the end is the nearest to it.
    end_at_s, end_joules = end.read_at_s.copy(), end.joules.copy()
    for at in stepped:
        if step := end.steps[at]:
            end_at_s[at] -= step.span_s
            end_joules[at] = step.first_joules
    rise = end_joules - start.joules
    duration_s, doubts_s, error_s = windows.durations_s, windows.doubts_s, windows.clock_errors_s
    slack_s = (
        windows.starts_s - (start.read_at_s - windows.offsets_s[0]),
        (end_at_s - windows.offsets_s[1]) - windows.ends_s,
    )
    between_s = duration_s + slack_s[0] + slack_s[1]
    problems = _problems(start, end, windows, traits, restarts_s, end_joules, between_s)
    power = rise / np.where(between_s > 0, between_s, duration_s)
    floor = np.minimum(power_floor_watts, power)
    cap = np.maximum(POWER_CAP_FACTOR * power, power_cap_watts)
    for at in stepped:
        cap[at] = max(cap[at], *(power_of(edge[at], traits.refresh_s) or 0.0 for edge in (start, end)))
    outside_s, inside_s = _largest_slacks(slack_s, doubts_s, error_s, windows.is_same_clock)
    clock_half = 2 * error_s * power + np.where(windows.is_same_clock, 0.0, doubts_s[0] + doubts_s[1]) * power
    slack_s = _moved_outside(slack_s, np.where(windows.is_same_clock, doubts_s[0], 0.0))
    if settled:
        joules, slack_half, slack_standard = _between_readings(rise, slack_s, power, floor)
    else:
        joules = rise - (slack_s[0] + slack_s[1]) * power
        slack_half = (abs(slack_s[0]) + abs(slack_s[1])) * np.maximum(cap - power, power - floor)
        slack_standard = slack_half / math.sqrt(3.0)
    stale, errors_s = np.full(len(windows.spans), 2), np.zeros(len(windows.spans))
    time_items: dict[int, BudgetItem] = {}
    for at in (at for at in stepped if at not in problems):
        of_window = {"power": float(power[at]), "floor": float(floor[at]), "refresh_s": traits.refresh_s}
        edges = [
            StepEdge.of(float(slack[at]), reading[at], other[at], **of_window)
            for slack, reading, other in ((slack_s[0], start, end), (slack_s[1], end, start))
        ]
        joules[at], slack_half[at], slack_standard[at] = _between_steps(
            float(rise[at]), edges, float(floor[at]), float(cap[at])
        )
        stale[at] = sum(edge.step is None for edge in edges)
        errors_s[at] = math.fsum(edge.step.error_s for edge in edges if edge.step is not None)
        time_items[at] = _time_item(edges)
    blur = np.where(stale > 0, traits.refresh_s, 0.0) * cap + errors_s * cap + traits.resolution_joules
    columns = (
        joules,
        np.maximum(rise - outside_s * cap - blur, 0.0),
        rise + inside_s * cap + blur,
        duration_s,
        slack_half,
        slack_standard,
        slack_s[0] * 1e3,
        slack_s[1] * 1e3,
        clock_half,
        clock_half / np.where(power > 0, power, 1.0) * 1e3,
        refresh_joules(traits, power, floor, cap, windows.batches_s, stale),
    )
    # Lists, because single values of an array are slow to get.
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        None if math.isnan(row[0]) else problems.get(at) or _window_energy(traits, time_items.get(at), *row)
        for at, row in enumerate(rows)
    ]


def _problems(
    start: EdgeReadings,
    end: EdgeReadings,
    windows: EdgeWindows,
    traits: Traits,
    restarts_s: Floats | None,
    end_joules: Floats,
    between_s: Floats,
) -> dict[int, CoverageError]:
    """Return why windows have no energy; the last two arguments are those of the first refreshes after the ends."""
    restarts = np.empty(0) if restarts_s is None else np.sort(restarts_s)
    has_problem = (
        (windows.durations_s < traits.refresh_s)
        | (restarts.searchsorted(end.read_at_s, "right") > restarts.searchsorted(start.read_at_s, "right"))
        | (end_joules < start.joules)
        | (between_s <= windows.durations_s / 2)
    )
    problems = {}
    for at in np.flatnonzero(has_problem).tolist():
        window = windows.spans[at]
        try:
            check_refresh(window, traits)
            check_restart(restarts_s, float(start.read_at_s[at]), float(end.read_at_s[at]))
            if end_joules[at] < start.joules[at]:
                raise CoverageError(
                    "exporter_restart",
                    f"the counter fell from {start.joules[at]:.6g} J to {end_joules[at]:.6g} J inside the window",
                )
            raise CoverageError(
                "clock_skew",
                f"the readings at the edges are {between_s[at]:.3f} s apart on the harness's clock, but the window is "
                f"{window.duration_s:.3f} s long",
            )
        except CoverageError as error:
            problems[at] = error
    return problems


def _window_energy(
    traits: Traits,
    time_item: BudgetItem | None,
    joules: float,
    lower_joules: float,
    upper_joules: float,
    duration_s: float,
    slack_half: float,
    slack_standard: float,
    before_ms: float,
    after_ms: float,
    clock_half: float,
    clock_ms: float,
    refresh: float,
) -> WindowEnergy:
    items = []
    if slack_half > 0:
        text = f"{before_ms:.3g} ms and {after_ms:.3g} ms between the readings and the window"
        items.append(
            budget_item("edge slack", slack_half, "arcsine", text, standard_joules=slack_standard, systematic=True)
        )
    if clock_half > 0:
        text = f"clocks and their mapping, {clock_ms:.3g} ms over both edges"
        items.append(budget_item("clock", clock_half, "uniform", text, systematic=True))
    if time_item is not None and time_item.half_width_joules > 0:
        items.append(time_item)
    items += counter_items(traits, duration_s, refresh)
    items += accuracy_items(traits, joules)
    return WindowEnergy(
        joules=joules,
        lower_joules=lower_joules,
        upper_joules=upper_joules,
        budget=tuple(items),
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
    rise: Floats, slack_s: tuple[Floats, Floats], power: Floats, floor: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the energy between two readings without that of the slack, and the slack's half-width and uncertainty."""
    joules, slack_half = rise, np.zeros_like(rise)
    for slack in slack_s:
        # A reading inside the window misses energy at the window's power; a reading outside includes too much, at a
        # power between the smallest one observed and the window's.
        joules = joules - np.where(slack >= 0, slack * (power + floor) / 2, slack * power)
        slack_half += abs(slack) * np.maximum(power - floor, LEAST_POWER_DOUBT * power) / 2
    # The extremes are the likely cases: the machine is idle while its counters are read, or it keeps running, with any
    # power up to twice the mean, at both edges independently.
    running = (POWER_CAP_FACTOR * power - floor) / math.sqrt(12.0)
    standard = np.sqrt((slack_half**2 + (abs(slack_s[0]) + abs(slack_s[1])) ** 2 * running**2 / 2) / 2)
    return joules, slack_half, standard


def _largest_slacks(
    slack_s: tuple[Floats, Floats], doubts_s: tuple[Floats, Floats], error_s: Floats, is_same_clock: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return the longest total time between the readings and the window outside it, and the longest inside it.

    Args:
        slack_s: Time from the reading to the start, and from the end to the reading; negative inside the window.
        doubts_s: Half-width of the clock offset of either reading.
        error_s: By which each edge of the window may be off.
        is_same_clock: Whether both readings have the same offset.
    """
    # A common offset moves both readings in one direction: away from the window at one edge, into it at the other. The
    # totals are convex in the shift, so they are largest at its limits.
    first_s, last_s = doubts_s[0], np.where(is_same_clock, -doubts_s[1], doubts_s[1])
    outside_s, inside_s = [], []
    for before_s, after_s in (
        (slack_s[0] + first_s, slack_s[1] + last_s),
        (slack_s[0] - first_s, slack_s[1] - last_s),
    ):
        outside_s.append(np.maximum(before_s + error_s, 0.0) + np.maximum(after_s + error_s, 0.0))
        inside_s.append(np.maximum(error_s - before_s, 0.0) + np.maximum(error_s - after_s, 0.0))
    return np.maximum(*outside_s), np.maximum(*inside_s)


def _moved_outside(slack_s: tuple[Floats, Floats], limit_s: Floats) -> tuple[Floats, Floats]:
    """Move both readings by one time, at most ``limit_s``, so that as little as possible of it is inside the window."""
    first_s, last_s = slack_s
    shift_s = np.copysign(np.minimum(np.minimum(abs(first_s), abs(last_s)), limit_s), last_s)
    shift_s = np.where(first_s * last_s < 0, shift_s, 0.0)
    return first_s + shift_s, last_s - shift_s
