"""The calibration that a comparison gives: the line, its uncertainty, and when there is none.

A sensor need not follow a straight line. If the residuals are larger than the uncertainties of the points explain, the
rest is the sensor's deviation from the line: a standard deviation ``linearity`` that, added to the uncertainty of each
point, makes the residuals as large as expected (Paule and Mandel, J. Res. NBS 87 (1982) 377). It is known from n - 2
degrees of freedom only, so all uncertainties then have Student's factor for that number, relative to the normal one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.calibration.comparison import Comparison, Point
from joulewatch_harness.analysis.calibration.york import Line, york_line
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.gum import NORMAL_95, mean, student_factor
from joulewatch_harness.records import CalibrationRecord, SensorRecord

LEAST_WINDOWS: Final = 5
"""Three degrees of freedom for the residuals."""
LEAST_RANGE: Final = 0.1
"""Smallest range of the reference's power, as a share of its largest: gain and offset need different powers."""
LARGEST_GAIN_UNCERTAINTY: Final = 0.1
"""Largest expanded uncertainty of the gain, relative to it."""
LIKELY_GAINS: Final = (0.5, 2.0)
"""Outside of these, the reference probably measures something else than the sensor."""
_HALVINGS: Final = 40
_LEAST_STANDARD: Final = 1e-6
"""Smallest uncertainty of a point, relative to the largest power: rounding of times and counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorCalibration:
    """A sensor with its calibration."""

    sensor: SensorRecord
    calibration: CalibrationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The result of a comparison."""

    run: str
    comparison: Comparison
    line: Line
    """Of the sum of the sensors; with Student's factor."""
    linearity_watts: float
    entries: tuple[SensorCalibration, ...]
    """One per sensor. Each has the gain and an equal share of all watts, so the sum of them is the line."""

    @property
    def warning(self) -> str:
        """Why a person should check the calibration; empty: nothing is known against it."""
        low, high = LIKELY_GAINS
        if low <= self.line.slope <= high:
            return ""
        return f"the gain is {self.line.slope:.3g}: do the sensor and the reference measure the same thing?"

    def calibrated_watts(self, point: Point) -> float:
        """Return the calibrated power of the sensors in one window."""
        return self.line.intercept + self.line.slope * point.sensor_watts

    def errors(self, *, calibrated: bool) -> tuple[float, float]:
        """Return mean and root mean square of the relative errors in all windows, before or after calibration."""
        shares = [
            ((self.calibrated_watts(point) if calibrated else point.sensor_watts) - point.reference_watts)
            / point.reference_watts
            for point in self.comparison.points
        ]
        return mean(shares), math.sqrt(mean([share * share for share in shares]))


def fit_calibration(run: str, comparison: Comparison, *, reference: str, accuracy: float | None, date: str) -> Fit:
    """Fit the calibration of the sensors that were compared.

    Args:
        run: Id of the run.
        comparison: The points.
        reference: Name of the meter.
        accuracy: Its relative half-width; None: unknown.
        date: Now, in ISO 8601 with a zone.

    Raises:
        ConfigError: Too few windows, or the powers differ too little for a line.
    """
    points = comparison.points
    if len(points) < LEAST_WINDOWS:
        reasons = f"; {comparison.excluded[0]}" if comparison.excluded else ""
        raise ConfigError(
            f"run {run}: sensor and reference have {count_of(len(points), 'window')} in common, and {LEAST_WINDOWS} "
            f"are needed{reasons}"
        )
    watts = [point.reference_watts for point in points]
    largest = max(watts)
    if largest <= 0 or max(watts) - min(watts) < LEAST_RANGE * largest:
        raise ConfigError(
            f"run {run}: the reference does not vary enough: {min(watts):.4g} to {max(watts):.4g} W; gain and offset "
            f"need a range of at least {100 * LEAST_RANGE:g} % of the largest power: use idle windows, and loads that "
            "differ"
        )
    try:
        line, linearity = _line(points, _LEAST_STANDARD * largest)
    except ValueError as error:
        raise ConfigError(f"run {run}: no line fits the windows: {error}") from error
    doubt = NORMAL_95 * line.slope_standard
    if line.slope <= 0 or doubt > LARGEST_GAIN_UNCERTAINTY * line.slope:
        raise ConfigError(
            f"run {run}: sensor and reference do not follow each other: the gain is {line.slope:.3g} ± {doubt:.2g}; "
            "use longer windows and a wider range of loads, and check the clock of the log"
        )
    entries = tuple(
        SensorCalibration(
            sensor=sensor,
            calibration=_record(
                line,
                linearity,
                [point.each_watts[number] for point in points],
                len(comparison.sensors),
                reference,
                accuracy,
                date,
            ),
        )
        for number, sensor in enumerate(comparison.sensors)
    )
    return Fit(run=run, comparison=comparison, line=line, linearity_watts=linearity, entries=entries)


def _record(
    line: Line,
    linearity_watts: float,
    watts: list[float],
    sum_of: int,
    reference: str,
    accuracy: float | None,
    date: str,
) -> CalibrationRecord:
    return CalibrationRecord(
        gain=_rounded(line.slope),
        offset_watts=_rounded(line.intercept / sum_of),
        gain_standard_uncertainty=_rounded(line.slope_standard),
        offset_standard_uncertainty_watts=_rounded(line.intercept_standard / sum_of),
        gain_offset_covariance_watts=_rounded(line.covariance / sum_of),
        linearity_watts=_rounded(linearity_watts / sum_of),
        lowest_watts=_rounded(min(watts)),
        highest_watts=_rounded(max(watts)),
        reference=reference,
        reference_accuracy=accuracy,
        date=date,
    )


def _rounded(value: float) -> float:
    """Return a number that is short in a file: ten digits, so that gain and offset still cancel."""
    return float(f"{value:.10g}")


def _line(points: tuple[Point, ...], least: float) -> tuple[Line, float]:
    """Return the line and the sensor's deviation from it, both with Student's factor if there is a deviation."""
    x, y = [point.sensor_watts for point in points], [point.reference_watts for point in points]
    u_x = [max(point.sensor_standard_watts, least) for point in points]

    def fit(extra: float) -> Line:
        u_y = [math.hypot(max(point.reference_standard_watts, least), extra) for point in points]
        return york_line(x, y, u_x, u_y)

    dof = len(points) - 2
    line = fit(0.0)
    if line.chi_squared <= dof:
        return line, 0.0
    low, high = 0.0, max(y) - min(y)
    while fit(high).chi_squared > dof:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fit(middle).chi_squared > dof else (low, middle)
    line, few = fit(high), student_factor(dof) / NORMAL_95
    widened = Line(
        slope=line.slope,
        intercept=line.intercept,
        slope_standard=few * line.slope_standard,
        intercept_standard=few * line.intercept_standard,
        covariance=few * few * line.covariance,
        chi_squared=line.chi_squared,
    )
    return widened, few * high
