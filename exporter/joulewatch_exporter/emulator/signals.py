"""Power over time, each signal with its exact energy: the true values that measurements are compared with.

Time is in seconds since the start of the scenario and is never negative. ``energy_joules(a, b)`` is the closed form of
the integral of ``power_watts``, so the truth has no integration error. Energies of adjacent spans add up.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from joulewatch_exporter.emulator.checks import check_range

_SHORTEST_PERIOD_S: Final = 1e-6


class Signal(Protocol):
    """Power in watts as a function of time."""

    @property
    def is_deterministic(self) -> bool:
        """Whether the future is known; False if the signal follows the load of this machine."""
        ...

    def power_watts(self, t_s: float) -> float:
        """Return the power at ``t_s`` >= 0."""
        ...

    def energy_joules(self, start_s: float, end_s: float) -> float:
        """Return the exact integral of the power over [start_s, end_s)."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Constant power."""

    is_deterministic: ClassVar[bool] = True
    watts: float

    def __post_init__(self) -> None:
        check_range("watts", self.watts, 0.0)

    def power_watts(self, t_s: float) -> float:
        return self.watts

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return self.watts * (end_s - start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Power given at points in time: held between them (steps), or joined by straight lines (ramps, replays).

    Before the first point and after the last one the power is that of the point. With ``repeats`` the points from the
    first to the last one are one round, and the rounds follow each other without end.
    """

    is_deterministic: ClassVar[bool] = True
    times_s: tuple[float, ...]
    watts: tuple[float, ...]
    is_linear: bool = False
    repeats: bool = False
    _sums_joules: tuple[float, ...] = field(init=False, repr=False)
    """Energy from the first point to each point."""

    def __post_init__(self) -> None:
        if len(self.times_s) != len(self.watts) or not self.times_s:
            raise ValueError("must be at least one, with as many powers as times")
        if min(self.times_s) < 0 or min(self.watts) < 0:
            raise ValueError("neither times nor powers may be negative")
        if any(later <= earlier for earlier, later in zip(self.times_s, self.times_s[1:], strict=False)):
            raise ValueError("times must increase")
        if self.repeats and len(self.times_s) < 2:
            raise ValueError("a signal that repeats needs at least two points")
        sums = [0.0]
        for index in range(1, len(self.times_s)):
            width_s = self.times_s[index] - self.times_s[index - 1]
            left, right = self.watts[index - 1], self.watts[index]
            sums.append(sums[-1] + width_s * ((left + right) / 2 if self.is_linear else left))
        object.__setattr__(self, "_sums_joules", tuple(sums))

    def _fold(self, t_s: float) -> tuple[int, float]:
        """Return the round and the time within it."""
        first, last = self.times_s[0], self.times_s[-1]
        if not self.repeats or t_s < first:
            return 0, t_s
        rounds = math.floor((t_s - first) / (last - first))
        # Rounding can put the start of a round just before the first point, or its end just after the last point.
        return rounds, min(max(t_s - rounds * (last - first), first), last)

    def power_watts(self, t_s: float) -> float:
        _, within_s = self._fold(t_s)
        index = bisect_right(self.times_s, within_s) - 1
        if index < 0:
            return self.watts[0]
        if index >= len(self.times_s) - 1 or not self.is_linear:
            return self.watts[index]
        left_s, right_s = self.times_s[index], self.times_s[index + 1]
        share = (within_s - left_s) / (right_s - left_s)
        return self.watts[index] + share * (self.watts[index + 1] - self.watts[index])

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return self._since_first(end_s) - self._since_first(start_s)

    def _since_first(self, t_s: float) -> float:
        rounds, within_s = self._fold(t_s)
        index = bisect_right(self.times_s, within_s) - 1
        if index < 0:
            return self.watts[0] * (within_s - self.times_s[0])
        width_s = within_s - self.times_s[index]
        if self.is_linear and index < len(self.times_s) - 1:
            # The trapezoid up to within_s, its right side by the line.
            slope = (self.watts[index + 1] - self.watts[index]) / (self.times_s[index + 1] - self.times_s[index])
            tail_joules = width_s * (self.watts[index] + slope * width_s / 2)
        else:
            tail_joules = width_s * self.watts[index]
        return rounds * self._sums_joules[-1] + self._sums_joules[index] + tail_joules


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """High for ``duty`` of each period, low for the rest; a period begins with its high part at ``phase_s``."""

    is_deterministic: ClassVar[bool] = True
    low_watts: float
    high_watts: float
    period_s: float
    duty: float = 0.5
    phase_s: float = 0.0

    def __post_init__(self) -> None:
        check_range("low_watts", self.low_watts, 0.0)
        check_range("high_watts", self.high_watts, 0.0)
        check_range("period_s", self.period_s, _SHORTEST_PERIOD_S)
        check_range("duty", self.duty, 0.0, 1.0)

    def power_watts(self, t_s: float) -> float:
        within_s = (t_s - self.phase_s) % self.period_s
        return self.high_watts if within_s < self.duty * self.period_s else self.low_watts

    def energy_joules(self, start_s: float, end_s: float) -> float:
        high_s = self._high_s(end_s) - self._high_s(start_s)
        return self.low_watts * (end_s - start_s) + (self.high_watts - self.low_watts) * high_s

    def _high_s(self, t_s: float) -> float:
        periods = math.floor((t_s - self.phase_s) / self.period_s)
        within_s = (t_s - self.phase_s) - periods * self.period_s
        high_s = self.duty * self.period_s
        return periods * high_s + min(within_s, high_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sine:
    """A sine wave around ``mean_watts``."""

    is_deterministic: ClassVar[bool] = True
    mean_watts: float
    amplitude_watts: float
    period_s: float
    phase_s: float = 0.0

    def __post_init__(self) -> None:
        check_range("mean_watts", self.mean_watts, 0.0)
        check_range("amplitude_watts", self.amplitude_watts, 0.0, self.mean_watts)  # power is never negative
        check_range("period_s", self.period_s, _SHORTEST_PERIOD_S)

    def power_watts(self, t_s: float) -> float:
        turns = (t_s - self.phase_s) / self.period_s
        return self.mean_watts + self.amplitude_watts * math.sin(2 * math.pi * turns)

    def energy_joules(self, start_s: float, end_s: float) -> float:
        omega = 2 * math.pi / self.period_s
        ripple = math.cos(omega * (start_s - self.phase_s)) - math.cos(omega * (end_s - self.phase_s))
        return self.mean_watts * (end_s - start_s) + self.amplitude_watts / omega * ripple


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum of signals, each multiplied by its factor: a node of its devices, or a core as a share of its package."""

    terms: tuple[Signal, ...]
    factors: tuple[float, ...]

    @property
    def is_deterministic(self) -> bool:
        return all(term.is_deterministic for term in self.terms)

    def power_watts(self, t_s: float) -> float:
        return sum(k * term.power_watts(t_s) for k, term in zip(self.factors, self.terms, strict=True))

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return sum(k * term.energy_joules(start_s, end_s) for k, term in zip(self.factors, self.terms, strict=True))


@dataclass(frozen=True, slots=True)
class Phases:
    """Signals one after another, each from its time 0 and for its duration; then from the first again."""

    is_deterministic: ClassVar[bool] = True
    signals: tuple[Signal, ...]
    durations_s: tuple[float, ...]
    _round_joules: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        joules = sum(
            signal.energy_joules(0.0, span_s) for signal, span_s in zip(self.signals, self.durations_s, strict=True)
        )
        object.__setattr__(self, "_round_joules", joules)

    def power_watts(self, t_s: float) -> float:
        within_s = t_s % sum(self.durations_s)
        for signal, span_s in zip(self.signals, self.durations_s, strict=True):
            if within_s < span_s:
                return signal.power_watts(within_s)
            within_s -= span_s
        return self.signals[-1].power_watts(self.durations_s[-1])  # rounding reached the end

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return self._since_start(end_s) - self._since_start(start_s)

    def _since_start(self, t_s: float) -> float:
        round_s = sum(self.durations_s)
        rounds = math.floor(t_s / round_s)
        within_s = t_s - rounds * round_s
        energy_joules = rounds * self._round_joules
        for signal, span_s in zip(self.signals, self.durations_s, strict=True):
            energy_joules += signal.energy_joules(0.0, min(within_s, span_s))
            within_s -= span_s
            if within_s <= 0:
                break
        return energy_joules


class CpuLoad:
    """Follows the CPU load of this machine: idle power, full power, and a straight line between them.

    The utilisation is sampled every ``SAMPLE_S`` and held until the next sample, so the energy is the exact integral of
    the power. Only the running emulator knows it: the truth file has the whole past, this object the last ``MEMORY_S``
    (for devices that average), and the future is unknown.
    """

    is_deterministic = False
    SAMPLE_S = 0.1
    MEMORY_S = 60.0

    def __init__(self, idle_watts: float, full_watts: float) -> None:
        self.idle_watts = idle_watts
        self.full_watts = full_watts
        self._steps: deque[tuple[float, float, float]] = deque(
            [(0.0, 0.0, idle_watts)], maxlen=round(self.MEMORY_S / self.SAMPLE_S)
        )
        """Time, energy so far and following power of each sample. Append only: threads of devices may be reading."""

    def follow(self, t_s: float, utilisation: float) -> None:
        """Add a sample: from ``t_s`` on, the power is that of ``utilisation``, which is in [0, 1]."""
        watts = self.idle_watts + (self.full_watts - self.idle_watts) * min(1.0, max(0.0, utilisation))
        self._steps.append((t_s, self._since_start(t_s), watts))

    def power_watts(self, t_s: float) -> float:
        return self._step(t_s)[2]

    def energy_joules(self, start_s: float, end_s: float) -> float:
        return self._since_start(end_s) - (self._since_start(start_s) if start_s else 0.0)

    def _since_start(self, t_s: float) -> float:
        at_s, energy_joules, watts = self._step(t_s)
        return energy_joules + watts * (t_s - at_s)

    def _step(self, t_s: float) -> tuple[float, float, float]:
        last = self._steps[-1]
        if t_s >= last[0]:
            return last
        for step in reversed(self._steps.copy()):
            if t_s >= step[0]:
                return step
        raise ValueError(f"a signal that follows the load remembers only the last {self.MEMORY_S:g} s")


class UtilisationMeter:
    """Measures the utilisation of the CPUs of this machine between calls."""

    def __init__(self, read_busy: Callable[[], tuple[float, int]]) -> None:
        """Take the first sample.

        Args:
            read_busy: Returns the busy seconds of all CPUs together, and the number of CPUs.
        """
        self._read_busy = read_busy
        self._busy_s, _ = read_busy()
        self._at_s = 0.0

    def utilisation(self, t_s: float) -> float:
        """Return the utilisation since the last call, in [0, 1]; ``t_s`` is now."""
        busy_s, n_cpus = self._read_busy()
        elapsed_s = t_s - self._at_s
        worked_s = busy_s - self._busy_s
        self._busy_s, self._at_s = busy_s, t_s
        if elapsed_s <= 0 or n_cpus <= 0:
            return 0.0
        return min(1.0, max(0.0, worked_s / (elapsed_s * n_cpus)))


def ramp(from_watts: float, to_watts: float, duration_s: float, *, start_s: float, repeats: bool) -> Points:
    """Return a straight rise or fall that starts at ``start_s``; afterwards the power stays, or the ramp repeats."""
    times_s = (start_s, start_s + duration_s)
    return Points(times_s=times_s, watts=(from_watts, to_watts), is_linear=True, repeats=repeats)
