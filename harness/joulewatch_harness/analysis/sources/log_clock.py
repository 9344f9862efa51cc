"""The offset between the clock of a log and that of a run, estimated from the load.

The windows of a run say when the machine was busy; a log shows when its power was high. The log is moved until both
agree best. Then each start and end of the load, looked at separately, gives the offset once more: their scatter is its
uncertainty. A delay of the meter counts as a part of the offset, which places its energy where the load was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from joulewatch_harness.analysis.sources.power_log import PowerLog
from joulewatch_harness.analysis.sources.series import Floats
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.gum import student_factor

_MOST_OFFSETS: Final = 200_000
"""Number of offsets that are tried at most in the first search."""
_SMALLEST_SHARE: Final = 0.1
"""Share of the variance of the power that the load must explain."""
_AMBIGUOUS: Final = 1.2
"""Another offset is excluded if it leaves at least so many times the variance unexplained."""
_ROBUST: Final = 1.2533 * 1.4826
"""Standard error of a median, in median absolute deviations over the square root of the number, for normal errors."""
Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOffset:
    """Seconds to add to the times of a log, with the half-width of their 95 % interval."""

    seconds: float
    half_width_s: float
    edges: int
    """Number of starts and ends of the load that were used."""
    explained: float
    """Share of the variance of the power that the load explains."""


def load_offset(path: Path, log: PowerLog, busy: Sequence[Span]) -> LoadOffset:
    """Return the offset at which the power of a log follows the load.

    Args:
        path: The log, for messages.
        log: Power or energy on its own clock.
        busy: Spans of load on the other clock, in Unix seconds.

    Raises:
        ConfigError: The log is shorter than the load, or no offset or several offsets agree with it.
    """
    spans = _joined(busy, 2 * log.series.spacing_s)
    first_s, last_s = log.span
    lowest_s, highest_s = spans[-1][1] - last_s, spans[0][0] - first_s
    if lowest_s > highest_s:
        raise ConfigError(
            f"{path}: the log ({last_s - first_s:.0f} s) is shorter than the load of the windows "
            f"({spans[-1][1] - spans[0][0]:.0f} s), so that its clock cannot be compared with theirs"
        )
    power = _Integrals.of(log)
    lengths = [end_s - start_s for start_s, end_s in spans]
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
    shortest_s = min(lengths + gaps)
    step_s = max(min(log.series.spacing_s / 2, shortest_s / 8), (highest_s - lowest_s) / _MOST_OFFSETS)
    offsets_s = np.arange(lowest_s, highest_s + step_s / 2, step_s)
    # Idle time around the load belongs to the pattern: without it, one long span would agree with any of its parts.
    explained = power.explained(spans, shortest_s, offsets_s)
    at = int(explained.argmax())
    best, offset_s = float(explained[at]), float(offsets_s[at])
    if best < _SMALLEST_SHARE:
        raise ConfigError(
            f"{path}: the power of the log does not follow the windows at any offset of the clocks (they explain "
            f"{100 * max(best, 0):.0f} % of its variance); give --clock-offset SECONDS"
        )
    others = np.abs(offsets_s - offset_s) > shortest_s / 2
    if others.any():
        second = int(np.where(others, explained, -1.0).argmax())
        if 1 - explained[second] < _AMBIGUOUS * (1 - best):
            raise ConfigError(
                f"{path}: the clocks agree about as well at offsets of {offset_s:.3f} and {offsets_s[second]:.3f} s, "
                "because the load repeats; give --clock-offset SECONDS"
            )
    found_s = np.array(
        [
            power.edge(edge_s, room_s, offset_s, rises=rises, step_s=log.series.spacing_s / 8)
            for edge_s, room_s, rises in _edges(spans, (first_s + offset_s, last_s + offset_s))
            if room_s >= 2 * log.series.spacing_s
        ]
    )
    if found_s.size < 2:
        raise ConfigError(
            f"{path}: the windows are too short for a log with {log.series.spacing_s:g} s between rows: their starts "
            "and ends cannot be found in it; give --clock-offset SECONDS"
        )
    middle_s = float(np.median(found_s))
    error_s = _ROBUST * float(np.median(np.abs(found_s - middle_s))) / found_s.size**0.5
    # A row may be of its time or of the time since the row before, and all windows may start at one phase of the rows.
    half_width_s = float(np.hypot(student_factor(found_s.size - 1) * error_s, log.series.spacing_s))
    return LoadOffset(seconds=middle_s, half_width_s=half_width_s, edges=int(found_s.size), explained=best)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Integrals:
    """Integrals of power and of its square since the first row."""

    times_s: Floats
    energy: Floats
    square: Floats

    @classmethod
    def of(cls, log: PowerLog) -> _Integrals:
        times_s, values = log.series.times_s, log.series.values
        spans_s = np.diff(times_s)
        if log.is_energy:
            energies = np.diff(values)
            squares = energies**2 / spans_s
        else:
            before, after = values[:-1], values[1:]
            energies = (before + after) / 2 * spans_s
            squares = (before**2 + before * after + after**2) / 3 * spans_s
        return cls(
            times_s=times_s,
            energy=np.concatenate(([0.0], np.cumsum(energies))),
            square=np.concatenate(([0.0], np.cumsum(squares))),
        )

    def at(self, times_s: Floats) -> Floats:
        """Return the energy up to some times."""
        return np.interp(times_s, self.times_s, self.energy)

    def explained(self, spans: Sequence[Span], margin_s: float, offsets_s: Floats) -> Floats:
        """Return the share of the power's variance that the load explains at each offset; 0 if the load lowers it.

        The variance is that from ``margin_s`` before the load to ``margin_s`` after it, as far as the log reaches.
        """
        start_s = np.maximum(spans[0][0] - margin_s - offsets_s, self.times_s[0])
        end_s = np.minimum(spans[-1][1] + margin_s - offsets_s, self.times_s[-1])
        whole_s = end_s - start_s
        busy_s = sum(last_s - first_s for first_s, last_s in spans)
        idle_s = np.maximum(whole_s - busy_s, 0.0)
        inside = sum((self.at(last_s - offsets_s) - self.at(first_s - offsets_s) for first_s, last_s in spans), 0.0)
        total = self.at(end_s) - self.at(start_s)
        squares = np.interp(end_s, self.times_s, self.square) - np.interp(start_s, self.times_s, self.square)
        variance = squares / whole_s - (total / whole_s) ** 2
        idle = np.divide(total - inside, idle_s, out=np.full_like(idle_s, np.inf), where=idle_s > 0)
        between = busy_s * idle_s / whole_s**2 * np.maximum(inside / busy_s - idle, 0.0) ** 2
        explained: Floats = np.divide(between, variance, out=np.zeros_like(variance), where=variance > 0)
        return explained

    def edge(self, edge_s: float, room_s: float, offset_s: float, *, rises: bool, step_s: float) -> float:
        """Return the offset at which the power changes most at a start or end of the load."""
        offsets_s = np.arange(offset_s - room_s / 2, offset_s + room_s / 2 + step_s / 2, step_s)
        at_s = edge_s - offsets_s
        middle = self.at(at_s)
        change = (self.at(at_s + room_s / 2) - middle) - (middle - self.at(at_s - room_s / 2))
        if not rises:
            change = -change
        # Several neighbours may be equal, where the power between two rows is a ramp.
        return float(offsets_s[np.isclose(change, change.max(), rtol=1e-9)].mean())


def _joined(busy: Sequence[Span], gap_s: float) -> list[Span]:
    """Return the spans in order, joined where the gap between two is too short to be seen."""
    spans: list[Span] = []
    for start_s, end_s in sorted(busy):
        if spans and start_s - spans[-1][1] < gap_s:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end_s))
        else:
            spans.append((start_s, end_s))
    return spans


def _edges(spans: Sequence[Span], log: Span) -> list[tuple[float, float, bool]]:
    """Return time, room on its narrower side, and direction of each start and end of the load."""
    ends = [log[0], *(end_s for _, end_s in spans)]
    starts = [*(start_s for start_s, _ in spans[1:]), log[1]]
    edges = []
    for (start_s, end_s), before_s, after_s in zip(spans, ends, starts, strict=False):
        edges.append((start_s, min(start_s - before_s, end_s - start_s), True))
        edges.append((end_s, min(after_s - end_s, end_s - start_s), False))
    return edges
