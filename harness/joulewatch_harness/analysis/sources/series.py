"""Samples over time and the sensors they come from: checked once, when built, then trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.records import EdgeCounter, SensorRecord

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class SensorId:
    """Which energy series: the exporter that has it and the labels that tell it from its others."""

    exporter: str
    """Prometheus' ``instance``, or the exporter's name in a recording."""
    scope: str
    collector: str
    component: str
    device: str
    domain: str

    @classmethod
    def of(cls, record: SensorRecord | EdgeCounter) -> Self:
        """The identity inside a record of the run."""
        return cls(
            exporter=record.exporter,
            scope=record.scope,
            collector=record.collector,
            component=record.component,
            device=record.device,
            domain=record.domain,
        )

    def __str__(self) -> str:
        return f"{self.exporter}/{self.collector}/{self.device}/{self.domain}"


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Values of one quantity at strictly increasing times.

    Attributes:
        times_s: Unix seconds, shape (n,), strictly increasing.
        values: Shape (n,), finite, in the base unit of the metric.
        metric: Name and labels, for messages.

    Raises:
        ValueError: Shapes differ, times do not increase, or a number is not finite.
    """

    times_s: Floats
    values: Floats
    metric: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.times_s.ndim != 1 or self.times_s.shape != self.values.shape:
            raise ValueError(f"times {self.times_s.shape} and values {self.values.shape} differ in shape")
        if not (np.isfinite(self.times_s).all() and np.isfinite(self.values).all()):
            raise ValueError("times and values must be finite")
        if self.times_s.size > 1 and not (self.times_s[1:] > self.times_s[:-1]).all():
            raise ValueError("times must increase strictly")

    def __len__(self) -> int:
        return int(self.times_s.size)

    @property
    def spacing_s(self) -> float:
        """Median spacing of the samples in seconds; nan with fewer than two."""
        return float(np.median(np.diff(self.times_s))) if self.times_s.size > 1 else float("nan")

    def between(self, start_s: float, end_s: float) -> Series:
        """The samples in [start_s, end_s] and one more on each side where there is one."""
        first = max(int(self.times_s.searchsorted(start_s, side="right")) - 1, 0)
        last = int(self.times_s.searchsorted(end_s, side="left")) + 1
        return Series(self.times_s[first:last], self.values[first:last], self.metric)

    @classmethod
    def from_samples(cls, times_s: Floats, values: Floats, metric: Mapping[str, str]) -> Self:
        """Build a series from samples that may repeat or step back in time.

        A read timestamp repeats when a scrape showed the last scan again, and steps back when the
        exporter's clock was set. Samples that are not later than all before them are left out, so that a
        stepped clock shows as a gap and never as a rise in no time.
        """
        good = np.isfinite(times_s) & np.isfinite(values)
        times_s, values = times_s[good], values[good]
        if times_s.size > 1:
            latest = np.maximum.accumulate(times_s)
            keep = np.concatenate(([True], times_s[1:] > latest[:-1]))
            times_s, values = times_s[keep], values[keep]
        return cls(np.ascontiguousarray(times_s, dtype=np.float64), np.ascontiguousarray(values, np.float64), metric)


_GAP_FACTOR: Final = 3.0
"""A spacing above this many median spacings is a gap."""


_SHORTEST_GAP_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What limits one sensor, whatever the window."""

    refresh_s: float = 0.0
    """How often its value really changes."""
    resolution_joules: float = 0.0
    accuracy: float | None = None
    """Published relative half-width; None where none is published."""
    family: str = ""
    """Sensors of one family share one systematic error of accuracy."""
    window_s: float = 0.0
    """A value is the mean over so much of each refresh period; 0: over all of it."""

    @property
    def unseen(self) -> float:
        """Share of the time at which the sensor does not look."""
        return 1.0 - self.window_s / self.refresh_s if 0.0 < self.window_s < self.refresh_s else 0.0


def default_max_gap_s(spacing_s: float) -> float:
    """Longest spacing still taken as sampled without a gap, from the median spacing in seconds."""
    return max(_GAP_FACTOR * spacing_s, _SHORTEST_GAP_S) if math.isfinite(spacing_s) else _SHORTEST_GAP_S
