"""Compare the durations of two or more variants on a machine whose speed varies.

Short blocks run in turns and then in the opposite order (A B B A), so that a drift of the machine affects all variants
equally. A round gives one ratio; the result is the median over all rounds. Its interval is a bootstrap over blocks of
neighbouring rounds, because neighbouring rounds are correlated: a bootstrap over single rounds would give an interval
that is too narrow.

Source:
    Künsch, The jackknife and the bootstrap for general stationary observations, Ann. Statist. 17 (1989).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
BLOCK_ROUNDS = 8
"""Number of rounds in a block of the bootstrap, at most an eighth of all rounds."""
COVERAGE = 0.95
SEED = 0

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % confidence interval."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Interval:
        """Return the interval that ``json`` wrote."""
        return cls(values["low"], values["median"], values["high"])

    def scaled(self, factor: float, shift: float = 0.0) -> Interval:
        """Return the interval of ``(value + shift) * factor``."""
        return Interval(*((value + shift) * factor for value in (self.low, self.middle, self.high)))

    def text(self, digits: int = 2, sign: str = "+") -> str:
        """Return the interval as text; ``sign`` is empty for quantities that cannot be negative."""
        low, middle, high = (f"{value:{sign}.{digits}f}" for value in (self.low, self.middle, self.high))
        return f"{middle} [{low}, {high}]"

    def json(self) -> dict[str, float]:
        return {"median": self.middle, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Rounds:
    """Durations in nanoseconds, of shape (rounds, variants); each is the sum of the two turns of a variant."""

    wall_ns: Numbers
    cpu_ns: Numbers
    """Processor time of all threads of this process."""

    def wall(self, variant: int, baseline: int = 0) -> Interval:
        """Return the ratio of the time of a variant to that of another variant."""
        return median_interval(self.wall_ns[:, variant] / self.wall_ns[:, baseline])

    def cpu(self, variant: int, baseline: int = 0) -> Interval:
        """Return the ratio of processor times."""
        return median_interval(self.cpu_ns[:, variant] / self.cpu_ns[:, baseline])


def median_interval(values: Sequence[float] | Numbers) -> Interval:
    """Return the median, with its interval, of values in the order of their measurement."""
    measured = np.asarray(values, dtype=np.float64)
    block = max(1, min(BLOCK_ROUNDS, len(measured) // 8))
    starts = np.random.default_rng(SEED).integers(0, len(measured), (RESAMPLES, -(-len(measured) // block)))
    # Blocks are circular, so that the first and the last rounds are drawn as often as the others.
    drawn = (starts[:, :, None] + np.arange(block)) % len(measured)
    medians = np.median(measured[drawn.reshape(RESAMPLES, -1)[:, : len(measured)]], axis=1)
    low, high = np.quantile(medians, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return Interval(float(low), float(np.median(measured)), float(high))


def take_turns(variants: Sequence[Callable[[], Any]], rounds: int) -> Rounds:
    """Time every variant twice in each round, in opposite orders.

    The garbage collector is not controlled, as in a measured window.
    """
    wall_ns, cpu_ns = np.zeros((rounds, len(variants))), np.zeros((rounds, len(variants)))
    order = [*range(len(variants)), *reversed(range(len(variants)))]
    for number in range(rounds):
        # The first variant of a round is slowed by the pause between rounds, so the first variant changes.
        for variant in order if number % 2 == 0 else [len(variants) - 1 - variant for variant in order]:
            cpu_start_ns, start_ns = time.process_time_ns(), time.perf_counter_ns()
            variants[variant]()
            end_ns, cpu_end_ns = time.perf_counter_ns(), time.process_time_ns()
            wall_ns[number, variant] += end_ns - start_ns
            cpu_ns[number, variant] += cpu_end_ns - cpu_start_ns
    return Rounds(wall_ns, cpu_ns)


def judged(intervals: Sequence[Interval], limit: float, unit: str) -> str:
    """Return whether a cost, measured by several methods, is within its limit: met, missed or not resolved.

    Work takes processor time and wall time. The limit is met if one interval ends below it and none begins above it,
    and missed if all begin above it. Otherwise the intervals disagree or are too wide.
    """
    if all(interval.low > limit for interval in intervals):
        return "MISSED"
    agree = all(interval.low <= limit for interval in intervals)
    most = (min if agree else max)(interval.high for interval in intervals)
    return "met" if agree and most <= limit else f"not resolved: at most {most:.2g} {unit}"
