"""Two or more ways of doing one thing, set against each other on a machine that does not hold still.

Short blocks take turns and come back in the opposite order (A B B A), so that a drift of the machine is in each way
alike; a round gives one ratio; the figure is the median over all rounds. Its interval is a bootstrap of whole
stretches of neighbouring rounds, because neighbours share the machine's mood: single rounds, drawn one by one, would
claim an interval that is too narrow.

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
STRETCH = 8
"""Rounds that are drawn together, at most an eighth of them all."""
COVERAGE = 0.95
SEED = 0

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and where it lies with a probability of 95 %."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, found: Mapping[str, float]) -> Interval:
        """What ``json`` made."""
        return cls(found["low"], found["median"], found["high"])

    def scaled(self, factor: float, shift: float = 0.0) -> Interval:
        """Of ``(value + shift) * factor``."""
        return Interval(*((value + shift) * factor for value in (self.low, self.middle, self.high)))

    def text(self, digits: int = 2, sign: str = "+") -> str:
        """``sign``: empty for what cannot be below zero."""
        low, middle, high = (f"{value:{sign}.{digits}f}" for value in (self.low, self.middle, self.high))
        return f"{middle} [{low}, {high}]"

    def json(self) -> dict[str, float]:
        return {"median": self.middle, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Rounds:
    """What all rounds took: arrays of shape (rounds, ways), nanoseconds, each the sum of a way's two turns."""

    wall_ns: Numbers
    cpu_ns: Numbers
    """Processor time of this process, all of its threads."""

    def wall(self, way: int, beside: int = 0) -> Interval:
        """Ratio of a way's time to that of another one."""
        return median_interval(self.wall_ns[:, way] / self.wall_ns[:, beside])

    def cpu(self, way: int, beside: int = 0) -> Interval:
        """Ratio of processor times."""
        return median_interval(self.cpu_ns[:, way] / self.cpu_ns[:, beside])


def median_interval(values: Sequence[float] | Numbers) -> Interval:
    """The median of values in the order in which they were taken, with its interval."""
    given = np.asarray(values, dtype=np.float64)
    stretch = max(1, min(STRETCH, len(given) // 8))
    starts = np.random.default_rng(SEED).integers(0, len(given), (RESAMPLES, -(-len(given) // stretch)))
    # Round and round, so that the first and the last rounds are drawn as often as the others.
    drawn = (starts[:, :, None] + np.arange(stretch)) % len(given)
    medians = np.median(given[drawn.reshape(RESAMPLES, -1)[:, : len(given)]], axis=1)
    low, high = np.quantile(medians, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return Interval(float(low), float(np.median(given)), float(high))


def take_turns(ways: Sequence[Callable[[], Any]], rounds: int) -> Rounds:
    """Time every way twice in each round, there and back.

    The garbage collector runs as it does in a measured window: whenever it likes.
    """
    wall_ns, cpu_ns = np.zeros((rounds, len(ways))), np.zeros((rounds, len(ways)))
    order = [*range(len(ways)), *reversed(range(len(ways)))]
    for number in range(rounds):
        # Which way comes first changes from round to round: the first one pays for what came between two rounds.
        for way in order if number % 2 == 0 else [len(ways) - 1 - way for way in order]:
            cpu_start_ns, start_ns = time.process_time_ns(), time.perf_counter_ns()
            ways[way]()
            end_ns, cpu_end_ns = time.perf_counter_ns(), time.process_time_ns()
            wall_ns[number, way] += end_ns - start_ns
            cpu_ns[number, way] += cpu_end_ns - cpu_start_ns
    return Rounds(wall_ns, cpu_ns)


def judged(intervals: Sequence[Interval], limit: float, unit: str) -> str:
    """Whether a cost that was measured in several ways is within its limit; what no interval decides is said.

    Work takes processor time and with it wall time: met, if one interval ends below the limit and none begins above
    it; missed, if all begin above it. Otherwise the ways disagree or are too wide.
    """
    if all(item.low > limit for item in intervals):
        return "MISSED"
    agree = all(item.low <= limit for item in intervals)
    most = (min if agree else max)(item.high for item in intervals)
    return "met" if agree and most <= limit else f"not resolved: at most {most:.2g} {unit}"
