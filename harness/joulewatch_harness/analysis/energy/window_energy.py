"""What the energy of a window is: its span, the clocks, its bounds and its budget. Pure.

``from_edges``, ``from_history`` and ``from_power`` compute it; ``budget`` has the components of its uncertainty.

Two clocks are involved. The window lies on the harness's clock. Counters are placed at their read timestamps, on the
exporter's clock. ``ClockOffset`` bounds the difference.

A counter never falls, so the samples around an edge are hard bounds. The value between them is estimated (from the
powers on either side; for the milliseconds between the reading at an edge and the window, from the smallest power
observed and the power of the window). Its uncertainty covers all possible values, or follows from the errors that the
same estimate has at the samples nearby.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from joulewatch_harness.analysis.sources.series import Floats, Traits
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import CalibrationRecord, EdgeStep

Method = Literal["edges", "history", "power"]
Distribution = Literal["uniform", "triangular", "arcsine", "normal"]
ACCURACY: Final = "accuracy"
"""Name of the budget component of a sensor's accuracy."""
UNKNOWN_OFFSET_S: Final = 0.25
"""Assumed largest difference of two clocks that nothing compared. NTP's own bound (root dispersion and half the root
delay) is not used: the harness can read only the delay of its machine, which bounds one of the two clocks."""
POWER_CAP_FACTOR: Final = 2.0
"""Assumed largest power just outside a window, as a multiple of its mean; at least the largest power observed."""


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


class EdgeReading(NamedTuple):
    """One counter read at one edge: joules, and the time on the exporter's clock.

    If both readings of a window have the same ``offset``, they have the same error of it.
    """

    read_at_s: float
    joules: float
    offset: ClockOffset = ClockOffset()
    step: EdgeStep | None = None
    """The refreshes up to this reading, if the exporter waited for them."""


class BudgetItem(NamedTuple):
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
    sign: Literal[1, -1] = 1
    """Of a systematic component: -1 if the same error lowers this energy and raises that of other powers."""


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
    calibration: CalibrationRecord | None = None
    """The calibration that is applied; None: as the sensor reads it."""

    @property
    def standard_joules(self) -> float:
        """Combined standard uncertainty of this window."""
        return math.sqrt(math.fsum([component.standard_joules**2 for component in self.budget]))

    @property
    def sampling_joules(self) -> float:
        """The same without the sensor's accuracy: two ways of reading one counter differ by no more."""
        return math.sqrt(
            math.fsum([component.standard_joules**2 for component in self.budget if component.name != ACCURACY])
        )

    @property
    def mean_power_watts(self) -> float:
        return self.joules / self.duration_s

    def as_read(self, joules: float) -> float:
        """Return an energy of this window without its calibration, as the sensor reads it."""
        if self.calibration is None:
            return joules
        return (joules - self.calibration.offset_watts * self.duration_s) / self.calibration.gain


def check_refresh(window: Span, traits: Traits) -> None:
    """Raise CoverageError ``below_refresh`` if a window is shorter than a refresh period."""
    if window.duration_s < traits.refresh_s:
        raise CoverageError(
            "below_refresh",
            f"the window of {window.duration_s:.3g} s is shorter than the {traits.refresh_s:.3g} s "
            "between two updates of the sensor; use a longer window",
        )


def check_restart(restarts_s: Floats | None, first_s: float, last_s: float) -> None:
    """Raise CoverageError ``exporter_restart`` if the exporter started between two times on its clock."""
    if restarts_s is None:
        return
    inside = [at_s for at_s in restarts_s.tolist() if first_s < at_s <= last_s]
    if inside:
        raise CoverageError(
            "exporter_restart",
            f"the exporter restarted at {inside[0]:.3f}, inside the window, which set the counter to 0",
        )


def enclosing_samples(times_s: Floats, edge_s: float, error_s: float, name: str, max_gap_s: float) -> tuple[int, int]:
    """Return the indexes of the last sample certainly before an edge and the first certainly not before it.

    Raises:
        CoverageError: ``unbracketed``, ``sample_gap``.
    """
    before = int(times_s.searchsorted(edge_s - error_s, side="right")) - 1
    after = int(times_s.searchsorted(edge_s + error_s, side="left"))
    if before < 0 or after >= times_s.size:
        side = "before" if before < 0 else "after"
        raise CoverageError("unbracketed", f"no sample {side} the window's {name}")
    check_gap(float(times_s[after] - times_s[before]), error_s, name, max_gap_s)
    return before, after


def check_gap(gap_s: float, error_s: float, name: str, max_gap_s: float) -> None:
    """Raise CoverageError ``sample_gap`` if the samples around an edge are too far apart."""
    if gap_s > max_gap_s + 2 * error_s:
        raise CoverageError(
            "sample_gap",
            f"{gap_s:.3g} s without a sample around the window's {name} (at most {max_gap_s:.3g} s is accepted)",
        )
