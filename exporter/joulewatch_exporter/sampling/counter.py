"""Totals without wraps from hardware counters that wrap; energy from power; how often a value changes.

Pure: no clock, no file, no thread. Each function takes the time of a reading (``time.monotonic_ns()``, int) and its
value. Energy that was not measured is never counted.
"""

from __future__ import annotations

import math
from statistics import median_low
from typing import Final

from joulewatch_exporter.clock import NS_PER_S

SLACK_NS: Final = 10_000_000
"""Jitter of timestamps and refreshes, by which a plausible rise may exceed its interval."""

FIRST_SIGHT_NS: Final = NS_PER_S
"""When a counter is first read, it has been unchanged for at most this long."""

MIN_POWER_SPAN_NS: Final = 50_000_000
POWER_SPAN_REFRESHES: Final = 20
"""Power from a counter is a mean over at least this many refreshes, so that one more or less is at most 5 %."""


class EnergyCounter:
    """Turns a hardware energy counter, with its wraps and restarts, into a total that never falls.

    A reading is *good* if its rise since the last good reading is physically possible: at most ``max_power_watts``
    times the time since the read before the value last changed, plus 10 ms of slack. (A counter that is refreshed once
    a second rises by a whole second's energy between two reads 2 ms apart.) A fall is a wrap if the rise through
    ``wrap_joules`` is possible.

    Any other reading is a *suspect*: it counts as rejected, and the total does not change. The next reading decides.
    If it fits the last good reading, the suspect was a glitch and nothing is lost. If it fits the suspect, the counter
    has restarted (``resets``), and the time between the last good reading and the suspect is unmeasured.

    If so much time has passed that the counter may have wrapped unnoticed, the energy that is certain (the rise modulo
    the range) is added, and the whole time counts as unmeasured.

    The total is computed from the position and the number of wraps instead of summed step by step, so rounding errors
    do not accumulate: at 1e9 J it still resolves 1e-6 J.
    """

    __slots__ = (
        "_before_change_ns",
        "_position_joules",
        "_read_at_ns",
        "_segment_joules",
        "_segment_start_joules",
        "_segment_wraps",
        "_suspect",
        "_unmeasured_since_ns",
        "_watts_per_ns",
        "_wrap_ns",
        "_wrapped_joules",
        "events",
        "max_power_watts",
        "rejected",
        "resets",
        "total_joules",
        "unmeasured_s",
        "wrap_joules",
        "wraps",
    )

    def __init__(self, *, wrap_joules: float | None, max_power_watts: float) -> None:
        """Start before the first reading.

        Args:
            wrap_joules: Where the counter wraps; None: it does not wrap, and a fall is a restart.
            max_power_watts: More than this is physically impossible.

        Raises:
            ValueError: A bound is not positive.
        """
        if wrap_joules is not None and not wrap_joules > 0:
            raise ValueError(f"wrap_joules must be above 0, not {wrap_joules}")
        if not max_power_watts > 0:
            raise ValueError(f"max_power_watts must be above 0, not {max_power_watts}")
        self.wrap_joules = wrap_joules
        self.max_power_watts = max_power_watts
        self.total_joules = 0.0
        """Energy since the first reading, as of ``read_at_ns``."""
        self.wraps = 0
        self.resets = 0
        self.rejected = 0
        self.unmeasured_s = 0.0
        self.events = 0
        """Rises with each of the four above, so that one comparison shows whether any has changed."""
        self._unmeasured_since_ns: int | None = None
        # The shortest time in which the counter can wrap.
        self._wrap_ns = math.inf if wrap_joules is None else wrap_joules * NS_PER_S / max_power_watts
        self._watts_per_ns = max_power_watts / NS_PER_S
        self._read_at_ns: int | None = None
        self._before_change_ns = 0
        self._position_joules = 0.0
        self._segment_joules = 0.0
        self._segment_start_joules = 0.0
        self._segment_wraps = 0
        self._wrapped_joules = 0.0
        self._suspect: tuple[int, float] | None = None

    @property
    def read_at_ns(self) -> int | None:
        """Time of the last good reading; None before the first."""
        return self._read_at_ns

    def update(self, read_at_ns: int, position_joules: float) -> bool:
        """Process one reading.

        Args:
            read_at_ns: Monotonic time of the read.
            position_joules: Position of the counter, before wraps are removed.

        Returns:
            Whether the reading is good; then ``total_joules`` is the total at ``read_at_ns``.
        """
        last_ns = self._read_at_ns
        if (
            last_ns is not None
            and 0.0
            <= position_joules - self._position_joules
            <= self._watts_per_ns * (read_at_ns - self._before_change_ns + SLACK_NS)
            and read_at_ns - last_ns < self._wrap_ns
        ):
            # Nearly all readings end here.
            self._advance(read_at_ns, position_joules)
            return True
        if not 0.0 <= position_joules < math.inf:  # also false for NaN
            self._reject()
            return False
        if last_ns is None:
            if self._unmeasured_since_ns is not None:
                self.unmeasured_s += max(read_at_ns - self._unmeasured_since_ns, 0) / NS_PER_S
                self.events += 1
                self._unmeasured_since_ns = None
            self._segment_joules = self.total_joules
            self._segment_start_joules = position_joules
            self._segment_wraps = 0
            self._wrapped_joules = 0.0
            self._before_change_ns = read_at_ns - FIRST_SIGHT_NS
            self._position_joules = position_joules
            self._read_at_ns = read_at_ns
            return True
        wraps_unknown = read_at_ns - last_ns >= self._wrap_ns
        if not wraps_unknown:
            wraps = self._wraps_between(self._position_joules, position_joules, read_at_ns - self._before_change_ns)
            if wraps is not None:
                self._advance(read_at_ns, position_joules, wraps)
                return True
        if self._suspect is not None and position_joules != self._suspect[1]:
            suspect_ns, suspect_joules = self._suspect
            wraps = self._wraps_between(suspect_joules, position_joules, read_at_ns - last_ns)
            if wraps is not None:
                self._restart(suspect_ns, suspect_joules)
                self._advance(read_at_ns, position_joules, wraps)
                return True
        if wraps_unknown:
            self.unmeasured_s += (read_at_ns - last_ns) / NS_PER_S
            self.events += 1
            self._advance(read_at_ns, position_joules, 1 if position_joules < self._position_joules else 0)
            return True
        if self._suspect is None or position_joules != self._suspect[1]:
            self._suspect = (read_at_ns, position_joules)
        self._reject()
        return False

    @property
    def position(self) -> tuple[int, float, int] | None:
        """Time and position of the last good reading, and time of the read before the last change; None: none yet."""
        if self._read_at_ns is None:
            return None
        return self._read_at_ns, self._position_joules, self._before_change_ns

    @property
    def suspect(self) -> tuple[int, float] | None:
        """Time and position of a reading that the next one has to confirm."""
        return self._suspect

    def restore(
        self,
        *,
        total_joules: float,
        wraps: int,
        resets: int,
        rejected: int,
        unmeasured_s: float,
        position: tuple[int, float, int] | None,
        suspect: tuple[int, float] | None,
        unmeasured_since_ns: int | None,
    ) -> None:
        """Continue the counter of an earlier process, before the first reading.

        Args:
            total_joules: As of its last good reading.
            wraps: Its number of wraps; likewise the next three.
            resets: Number of restarts.
            rejected: Number of rejected readings.
            unmeasured_s: Unmeasured time.
            position: As ``position``; None: the hardware counter's position is not known any more.
            suspect: As ``suspect``.
            unmeasured_since_ns: Without a position: the time from here to the first reading is unmeasured.
        """
        self.total_joules = self._segment_joules = total_joules
        self.wraps, self.resets, self.rejected, self.unmeasured_s = wraps, resets, rejected, unmeasured_s
        if position is None:
            self._unmeasured_since_ns = unmeasured_since_ns
            return
        self._read_at_ns, self._position_joules, self._before_change_ns = position
        self._segment_start_joules = self._position_joules
        self._suspect = suspect

    def change_source(self, *, wrap_joules: float | None, max_power_watts: float) -> None:
        """Switch to another counter of the same quantity, whose position is unrelated to the old one's.

        The total is kept; the time up to the first reading of the new counter is unmeasured.

        Args:
            wrap_joules: Where the new counter wraps; None: it does not wrap.
            max_power_watts: More than this is physically impossible.
        """
        if self._unmeasured_since_ns is None:
            self._unmeasured_since_ns = self._read_at_ns
        self._read_at_ns = None
        self._suspect = None
        self.wrap_joules = wrap_joules
        self.max_power_watts = max_power_watts
        self._wrap_ns = math.inf if wrap_joules is None else wrap_joules * NS_PER_S / max_power_watts
        self._watts_per_ns = max_power_watts / NS_PER_S

    def _wraps_between(self, start_joules: float, end_joules: float, span_ns: int) -> int | None:
        """Return 0 or 1 wraps between two positions; None if neither is physically possible in ``span_ns``."""
        allowed_joules = self._watts_per_ns * (max(span_ns, 0) + SLACK_NS)
        rise_joules = end_joules - start_joules
        if rise_joules >= 0.0:
            return 0 if rise_joules <= allowed_joules else None
        if self.wrap_joules is not None and 0.0 <= rise_joules + self.wrap_joules <= allowed_joules:
            return 1
        return None

    def _advance(self, read_at_ns: int, position_joules: float, wraps: int = 0) -> None:
        if wraps and self.wrap_joules is not None:
            self.wraps += wraps
            self.events += 1
            self._segment_wraps += wraps
            self._wrapped_joules = self._segment_wraps * self.wrap_joules
        if position_joules != self._position_joules and self._read_at_ns is not None:
            self._before_change_ns = self._read_at_ns
        total_joules = self._segment_joules + (position_joules - self._segment_start_joules + self._wrapped_joules)
        # Rounding may lower the last bit of the sum when a wrap is added; a total never falls.
        if total_joules > self.total_joules:
            self.total_joules = total_joules
        self._position_joules = position_joules
        self._read_at_ns = read_at_ns
        self._suspect = None

    def _restart(self, suspect_ns: int, suspect_joules: float) -> None:
        last_ns = self._read_at_ns if self._read_at_ns is not None else suspect_ns
        self.unmeasured_s += max(suspect_ns - last_ns, 0) / NS_PER_S
        self.resets += 1
        self.events += 1
        self._segment_joules = self.total_joules
        self._segment_start_joules = self._position_joules = suspect_joules
        self._segment_wraps = 0
        self._wrapped_joules = 0.0
        self._read_at_ns = self._before_change_ns = suspect_ns

    def _reject(self) -> None:
        self.rejected += 1
        self.events += 1


class PowerIntegrator:
    """Integrates power readings by the trapezoidal rule, except across gaps."""

    __slots__ = (
        "_compensation_joules",
        "_power_watts",
        "_read_at_ns",
        "_sum_joules",
        "events",
        "max_gap_ns",
        "max_power_watts",
        "rejected",
        "total_joules",
        "unmeasured_s",
    )

    def __init__(self, *, max_power_watts: float, max_gap_s: float) -> None:
        """Start before the first reading.

        Args:
            max_power_watts: A reading above this is rejected.
            max_gap_s: A longer time between two readings is unmeasured.

        Raises:
            ValueError: A bound is not positive.
        """
        if not max_power_watts > 0 or not max_gap_s > 0:
            raise ValueError(f"bounds must be above 0, not {max_power_watts} W and {max_gap_s} s")
        self.max_power_watts = max_power_watts
        self.max_gap_ns = round(max_gap_s * NS_PER_S)
        self.total_joules = 0.0
        self.rejected = 0
        self.unmeasured_s = 0.0
        self.events = 0
        """Rises with each of the two above."""
        self._sum_joules = 0.0
        self._compensation_joules = 0.0
        self._read_at_ns: int | None = None
        self._power_watts = 0.0

    @property
    def read_at_ns(self) -> int | None:
        """Time of the last good reading; None before the first."""
        return self._read_at_ns

    @property
    def power_watts(self) -> float:
        """The last good reading; 0 before the first."""
        return self._power_watts

    def restore(
        self,
        *,
        total_joules: float,
        rejected: int,
        unmeasured_s: float,
        read_at_ns: int | None,
        power_watts: float,
    ) -> None:
        """Continue the integral of an earlier process, before the first reading; the arguments are its attributes."""
        self.total_joules = self._sum_joules = total_joules
        self.rejected, self.unmeasured_s = rejected, unmeasured_s
        self._read_at_ns, self._power_watts = read_at_ns, power_watts

    def update(self, read_at_ns: int, power_watts: float) -> bool:
        """Process one reading; return False if it is outside physical bounds and was rejected."""
        if not 0.0 <= power_watts <= self.max_power_watts:  # also false for NaN
            self.rejected += 1
            self.events += 1
            return False
        last_ns = self._read_at_ns
        if last_ns is not None:
            span_ns = read_at_ns - last_ns
            if span_ns <= 0:
                return True
            if span_ns > self.max_gap_ns:
                self.unmeasured_s += span_ns / NS_PER_S
                self.events += 1
            else:
                joules = (self._power_watts + power_watts) * span_ns / (2 * NS_PER_S)
                # Neumaier's compensated sum: the error of 1e9 steps of 1 J is one rounding, not 1e9 roundings.
                before = self._sum_joules
                total = self._sum_joules = before + joules
                self._compensation_joules += (
                    (before - total) + joules if before >= joules else (joules - total) + before
                )
                total += self._compensation_joules
                if total > self.total_joules:
                    self.total_joules = total
        self._read_at_ns = read_at_ns
        self._power_watts = power_watts
        return True


class PowerFromEnergy:
    """Mean power over the last interval between readings of an energy total, or over several short ones.

    A span of fewer than 20 refreshes of the sensor would show its refreshes, not the load. If the intervals are
    shorter, the span is one to two times as long as 20 refreshes.
    """

    __slots__ = ("_candidate_joules", "_candidate_ns", "_start_joules", "_start_ns")

    def __init__(self) -> None:
        self._start_ns: int | None = None
        self._start_joules = 0.0
        self._candidate_ns = 0
        self._candidate_joules = 0.0

    def clear(self) -> None:
        """Drop the readings so far, because unmeasured time follows them."""
        self._start_ns = None

    def update(self, read_at_ns: int, total_joules: float, refresh_s: float | None) -> float | None:
        """Return the mean watts up to this reading; None if no earlier reading is old enough."""
        if self._start_ns is None:
            self._start_ns = self._candidate_ns = read_at_ns
            self._start_joules = self._candidate_joules = total_joules
            return None
        span_ns: float = MIN_POWER_SPAN_NS
        if refresh_s is not None and refresh_s > MIN_POWER_SPAN_NS / (NS_PER_S * POWER_SPAN_REFRESHES):
            span_ns = POWER_SPAN_REFRESHES * refresh_s * NS_PER_S
        if read_at_ns - self._candidate_ns >= span_ns:
            self._start_ns, self._start_joules = self._candidate_ns, self._candidate_joules
            self._candidate_ns, self._candidate_joules = read_at_ns, total_joules
        elif read_at_ns - self._start_ns < span_ns:
            return None
        return (total_joules - self._start_joules) * NS_PER_S / (read_at_ns - self._start_ns)


class RefreshEstimator:
    """Estimates how often a sensor's value changes, from readings at any intervals.

    A change is placed midway between the last read of the old value and the first read of the new one. The distance
    between two changes is *resolved* if both are known to within half of it. The estimate is the median of the
    resolved distances; of two, the shorter one, because a read that is interrupted before its time is taken lengthens
    one. While there are fewer than two, it is the median of all distances, and at least as long as the time between
    reads, so probably too long.

    An energy counter rises all the time. If it has changed at every read, it only shows that its refresh period is not
    longer than the time between reads; such distances are ignored. So are those in which it was seen unchanged for
    less than a quarter: the reads were interrupted, for many refreshes perhaps. A power reading may stay the same
    although the sensor was refreshed, so for power sensors the estimate never grows.
    """

    MIN_CHANGES: Final = 3
    _KEPT: Final = 9

    __slots__ = (
        "_any",
        "_bracket_ns",
        "_change_at_ns",
        "_is_counter",
        "_last_ns",
        "_last_value",
        "_longest_gap_ns",
        "_resolved",
        "_value_since_ns",
        "changes",
        "refresh_s",
        "resolved_s",
    )

    def __init__(self, *, is_counter: bool) -> None:
        """Start before the first reading of an energy counter, or of a power sensor."""
        self._is_counter = is_counter
        self._value_since_ns = 0
        """Time of the first read of the last value."""
        self.refresh_s: float | None = None
        """Seconds between changes; None until three changes were observed."""
        self.resolved_s: float | None = None
        """The same; None while it may be the period of the reads instead of the sensor's."""
        self.changes = 0
        self._last_ns: int | None = None
        self._last_value = 0.0
        self._change_at_ns: int | None = None
        self._bracket_ns = 0
        self._longest_gap_ns = math.inf
        self._any: list[int] = []
        self._resolved: list[int] = []

    @property
    def resolved(self) -> bool:
        """Whether the reads were frequent enough to distinguish the sensor's period from their own."""
        return len(self._resolved) >= self.MIN_CHANGES - 1

    def update(self, read_at_ns: int, value: float) -> None:
        """Process one good reading: the raw position or power."""
        last_ns = self._last_ns
        self._last_ns = read_at_ns
        if last_ns is None or read_at_ns - last_ns >= self._longest_gap_ns:
            # Reads further apart than the known period cannot improve the estimate.
            if value != self._last_value or last_ns is None:
                self._value_since_ns = read_at_ns
            self._last_value = value
            self._change_at_ns = None
            return
        if value == self._last_value:
            return
        unchanged_ns = last_ns - self._value_since_ns
        self._last_value = value
        bracket_ns = read_at_ns - last_ns
        change_at_ns = (read_at_ns + last_ns) // 2
        if self._change_at_ns is not None:
            distance_ns = change_at_ns - self._change_at_ns
            if distance_ns > 0:
                self._add_distance(distance_ns, 2 * max(bracket_ns, self._bracket_ns) <= distance_ns, unchanged_ns)
        self.changes += 1
        self._change_at_ns = change_at_ns
        self._bracket_ns = bracket_ns
        self._value_since_ns = read_at_ns

    def _add_distance(self, distance_ns: int, resolved: bool, unchanged_ns: int) -> None:
        was_resolved = self.resolved
        if resolved:
            self._resolved.append(distance_ns)
        elif was_resolved or (self._is_counter and 4 * unchanged_ns < distance_ns):
            return
        else:
            self._any.append(distance_ns)
        known = self._resolved if self.resolved else self._any
        del known[: -self._KEPT]
        if len(known) < self.MIN_CHANGES - 1:
            return
        refresh_s = median_low(known) / NS_PER_S
        shorter = self.refresh_s is None or refresh_s < self.refresh_s
        if self._is_counter or shorter or (self.resolved and not was_resolved):
            self.refresh_s = refresh_s
            self._longest_gap_ns = refresh_s * NS_PER_S
            if self.resolved:
                self.resolved_s = refresh_s
