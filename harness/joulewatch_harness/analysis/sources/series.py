"""Samples over time and the identity of their sensors; checked once, when built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from joulewatch_harness.records import EdgeCounter, PhasePowers, SensorRecord

Floats = NDArray[np.float64]
_GAP_FACTOR: Final = 3.0
"""A spacing above this many median spacings is a gap."""
_SHORTEST_GAP_S: Final = 0.5
_LOOPBACK: Final = ("127.", "localhost", "[::1]", "unix:")


class SensorId(NamedTuple):
    """Identity of an energy series: its exporter and its labels. A tuple, because its hash is needed all the time."""

    exporter: str
    """Prometheus' ``instance``, or the exporter's name in a recording."""
    scope: str
    collector: str
    component: str
    device: str
    domain: str

    @classmethod
    def of(cls, record: SensorRecord | EdgeCounter | PhasePowers) -> Self:
        """Return the identity of a sensor or counter in the record of a run."""
        return cls(*labels_of(record))

    def __str__(self) -> str:
        return f"{self.exporter}/{self.collector}/{self.device}/{self.domain}"


labels_of: Final[Callable[[SensorRecord | EdgeCounter | PhasePowers], tuple[str, ...]]] = attrgetter(*SensorId._fields)
"""Returns the identity as a plain tuple: equal to it as a key, and faster to make for each counter of a long run."""


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
        """Return the samples in [start_s, end_s], and one more on each side if there is one."""
        first = max(int(self.times_s.searchsorted(start_s, side="right")) - 1, 0)
        last = int(self.times_s.searchsorted(end_s, side="left")) + 1
        return Series(self.times_s[first:last], self.values[first:last], self.metric)

    @classmethod
    def from_samples(cls, times_s: Floats, values: Floats, metric: Mapping[str, str]) -> Self:
        """Build a series from samples that may repeat or step back in time.

        A read timestamp repeats if a scrape returned the previous scan again. Samples that are not later than all
        previous ones are dropped. A clock that was set back must be handled before: the first sample that is later
        again would follow the last one before the step at once, with all the energy since then.
        """
        good = np.isfinite(times_s) & np.isfinite(values)
        times_s, values = times_s[good], values[good]
        if times_s.size > 1:
            latest = np.maximum.accumulate(times_s)
            keep = np.concatenate(([True], times_s[1:] > latest[:-1]))
            times_s, values = times_s[keep], values[keep]
        return cls(np.ascontiguousarray(times_s, dtype=np.float64), np.ascontiguousarray(values, np.float64), metric)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Limits of one sensor, independent of the window."""

    refresh_s: float = 0.0
    """Time between two updates of its value."""
    resolution_joules: float = 0.0
    """Steps of a counter; 0: not known."""
    resolution_watts: float = 0.0
    """Steps of the power that is read, or that a counter is integrated from; 0: not known."""
    accuracy: float | None = None
    """Published relative half-width; None: not published."""
    family: str = ""
    """Sensors of one family share one systematic error."""
    window_s: float = 0.0
    """A value is the mean over this part of each refresh period; 0: over all of it."""

    @property
    def unseen(self) -> float:
        """Share of the time that the sensor does not observe."""
        return 1.0 - self.window_s / self.refresh_s if 0.0 < self.window_s < self.refresh_s else 0.0


def default_max_gap_s(spacing_s: float) -> float:
    """Return the longest spacing without a gap, from the median spacing in seconds."""
    return max(_GAP_FACTOR * spacing_s, _SHORTEST_GAP_S) if math.isfinite(spacing_s) else _SHORTEST_GAP_S


def is_loopback(exporter: str) -> bool:
    """Return whether an exporter's address is this machine's loopback, and so names no machine."""
    return exporter.startswith(_LOOPBACK)
