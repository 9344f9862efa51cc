"""Apply the calibration of a sensor to the energy of a window. Pure.

Exporters publish what a sensor reads, and journals and recordings hold the same. This module alone turns that into
calibrated energies, after everything that needs the raw counter (bounds, frozen counters, the choice between edges and
history): ``E = gain * E_read + offset * D`` for a window of length D. An energy that is calibrated is not calibrated
again: that is an error.

The uncertainty of the line at the power P, ``u^2 = u_gain^2 P^2 + u_offset^2 + 2 P cov``, has two independent parts:
``u_gain (P - P0)``, which changes its sign at the centre P0 of the comparison, and one that is the same at all powers.
Both are the same errors in every window of the sensor, so net energies and differences of configurations contain only
what does not cancel (``BudgetItem.sign``). The line replaces the published accuracy of the sensor; the accuracy of the
reference takes its place.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from joulewatch_harness.analysis.energy.budget import budget_item, without_zeros
from joulewatch_harness.analysis.energy.window_energy import ACCURACY, BudgetItem, WindowEnergy
from joulewatch_harness.analysis.energy.windows import Measured, MeasuredRun
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.records import CalibrationRecord

GAIN: Final = "calibration gain"
LEVEL: Final = "calibration level"
CALIBRATION: Final = (GAIN, LEVEL)
"""Names of the budget components that are the same error at every power of a sensor."""
LINEARITY: Final = "linearity"
EXTRAPOLATION: Final = "extrapolation"
_OF_THE_LINE: Final = (*CALIBRATION, LINEARITY, EXTRAPOLATION)


def with_calibration(energy: WindowEnergy, calibration: CalibrationRecord | None) -> WindowEnergy:
    """Return the calibrated energy of a window; without a calibration the energy itself.

    Args:
        energy: As the sensor reads it, without a component ``accuracy`` (``traits_of`` excludes it).
        calibration: Of the sensor.

    Raises:
        ValueError: The energy is calibrated already.
    """
    if energy.calibration is not None:
        raise ValueError(f"the energy is calibrated already ({energy.calibration.date})")
    if calibration is None:
        return energy
    gain, duration_s = calibration.gain, energy.duration_s
    offset_joules = calibration.offset_watts * duration_s
    joules = gain * energy.joules + offset_joules
    scaled = [
        item._replace(standard_joules=gain * item.standard_joules, half_width_joules=gain * item.half_width_joules)
        for item in energy.budget
    ]
    return replace(
        energy,
        joules=joules,
        lower_joules=max(gain * energy.lower_joules + offset_joules, 0.0),
        upper_joules=gain * energy.upper_joules + offset_joules,
        budget=(*scaled, *_items(calibration, energy.mean_power_watts, duration_s, joules)),
        calibration=calibration,
    )


def with_calibrations(run: MeasuredRun) -> MeasuredRun:
    """Return a run with the calibrated energies of all sensors that have a calibration."""
    calibrations = {sensor: record.calibration for sensor, record in run.sensors.items() if record.calibration}
    if not calibrations:
        return run

    def calibrated(result: Measured, calibration: CalibrationRecord | None) -> Measured:
        if result.energy is None:
            return result
        return replace(result, energy=with_calibration(result.energy, calibration))

    return replace(
        run,
        windows=tuple(
            replace(
                measured,
                sensors={
                    sensor: calibrated(result, calibrations.get(sensor)) for sensor, result in measured.sensors.items()
                },
            )
            for measured in run.windows
        ),
    )


def _items(calibration: CalibrationRecord, watts: float, duration_s: float, joules: float) -> tuple[BudgetItem, ...]:
    """Return the components of a calibration at one power.

    Args:
        calibration: Of the sensor.
        watts: Mean power that the sensor read.
        duration_s: Length of the window.
        joules: Its calibrated energy.
    """
    about = f"the calibration of {calibration.date}"
    centre_watts, level_watts = calibration.centre_watts, calibration.level_standard_watts
    gain = calibration.gain_standard_uncertainty * (watts - centre_watts) * duration_s

    def item(name: str, standard_joules: float, text: str) -> BudgetItem:
        return budget_item(name, NORMAL_95 * standard_joules, "normal", text, systematic=True, family=calibration.date)

    lines = [
        item(GAIN, abs(gain), f"gain of {about}, {abs(watts - centre_watts):.3g} W from its centre")._replace(
            sign=-1 if gain < 0 else 1
        ),
        item(LEVEL, level_watts * duration_s, f"{level_watts:.2g} W (standard) at the centre of {about}"),
        item(
            LINEARITY,
            calibration.linearity_watts * duration_s,
            f"the sensor is {calibration.linearity_watts:.2g} W (standard) off the line of {about}",
        ),
    ]
    outside_watts = calibration.outside_watts(watts)
    if outside_watts:
        text = (
            f"{watts:.4g} W is outside of the {calibration.lowest_watts:.4g} to {calibration.highest_watts:.4g} W of "
            f"{about}, where the error may be another"
        )
        half = abs((calibration.gain - 1) * outside_watts) * duration_s
        lines.append(budget_item(EXTRAPOLATION, half, "uniform", text, systematic=True, family=calibration.date))
    accuracy = calibration.reference_accuracy
    if accuracy is not None:
        text = f"accuracy of the reference {calibration.reference}, ±{100 * accuracy:.3g} %"
        half = accuracy * abs(joules)
        lines.append(budget_item(ACCURACY, half, "uniform", text, systematic=True, family=calibration.reference))
    return without_zeros(*lines)


def calibration_joules(energy: WindowEnergy) -> float:
    """Return the expanded uncertainty of a calibrated energy from the line, without the reference's accuracy."""
    if energy.calibration is None:
        return 0.0
    return NORMAL_95 * math.hypot(*(item.standard_joules for item in energy.budget if item.name in _OF_THE_LINE))


def outside_text(energy: WindowEnergy) -> str:
    """Return the warning about an energy whose power is outside of the calibrated range; empty: it is inside."""
    calibration = energy.calibration
    if calibration is None:
        return ""
    watts = energy.as_read(energy.joules) / energy.duration_s
    if abs(calibration.outside_watts(watts)) <= calibration.margin_watts:
        return ""
    return (
        f"the sensor reads {watts:.4g} W, outside of the {calibration.lowest_watts:.4g} to "
        f"{calibration.highest_watts:.4g} W that were calibrated; calibrate with loads on both sides of it"
    )
