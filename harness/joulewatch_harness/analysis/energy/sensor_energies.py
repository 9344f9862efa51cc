"""The energy of every sensor in one window of history, and their sum over devices."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

from joulewatch_harness.analysis.energy.calibrated import outside_text, with_calibration
from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.from_power import energy_from_power
from joulewatch_harness.analysis.energy.frozen import check_frozen
from joulewatch_harness.analysis.energy.unseen import with_unseen
from joulewatch_harness.analysis.energy.window_energy import ACCURACY, Span, WindowEnergy
from joulewatch_harness.analysis.energy.windows import LARGEST_UNMEASURED
from joulewatch_harness.analysis.sources.history import SCOPES, History, traits_of
from joulewatch_harness.analysis.sources.identity import Notice
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import expand
from joulewatch_harness.records import SensorRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """An energy with its uncertainty and hard bounds."""

    joules: float
    expanded_joules: float
    """At 95 % coverage."""
    lower_joules: float
    upper_joules: float
    accuracy_known: bool
    """Whether the uncertainty includes the accuracy of every sensor."""

    @property
    def covers(self) -> tuple[str, ...]:
        """What the uncertainty includes; a single window shows no repeats."""
        return ("sampling", "accuracy") if self.accuracy_known else ("sampling",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorEnergy:
    """One sensor: a number, or why there is none."""

    sensor: SensorId
    record: SensorRecord
    energy: WindowEnergy | None
    reason: str = ""
    text: str = ""
    warning: str = ""
    """Why a person should check the number; empty: nothing is known against it."""

    @property
    def expanded_joules(self) -> float:
        """Expanded uncertainty at 95 % coverage."""
        return 0.0 if self.energy is None else expanded_joules(self.energy)

    @property
    def joules(self) -> Joules | None:
        """The number; ``None``: missing."""
        return None if self.energy is None else joules_of(self.energy)


def expanded_joules(energy: WindowEnergy) -> float:
    """Return the expanded uncertainty of one window at 95 % coverage."""
    budget = energy.budget
    return expand(
        [],
        math.hypot(*(item.standard_joules for item in budget if not item.systematic)),
        [(item.standard_joules, math.inf) for item in budget if item.systematic],
        max((item.standard_joules for item in budget if item.name == ACCURACY), default=0.0),
    ).expanded


def joules_of(energy: WindowEnergy) -> Joules:
    """Return the number of one window."""
    return Joules(
        joules=energy.joules,
        expanded_joules=expanded_joules(energy),
        lower_joules=energy.lower_joules,
        upper_joules=energy.upper_joules,
        accuracy_known=any(item.name == ACCURACY for item in energy.budget),
    )


def matches(sensor: SensorId, patterns: Sequence[str]) -> bool:
    """Return whether a sensor matches one of some wildcards; without any, all do."""
    return not patterns or any(fnmatch.fnmatchcase(str(sensor), pattern) for pattern in patterns)


def measure(history: History, span: Span, patterns: Sequence[str], scope: str) -> list[SensorEnergy]:
    """Return the energy in one window of every sensor that matches, or the reason why there is none."""
    rows = []
    for sensor, record in sorted(history.sensors.items(), key=lambda item: (SCOPES.index(item[0].scope), item[0])):
        if scope not in ("all", sensor.scope):
            continue
        if not matches(sensor, patterns):
            continue
        counter, power = history.counters.get(sensor), history.powers.get(sensor)
        health = history.health(sensor, span.start_s, span.end_s)
        traits = traits_of(record, counter if counter is not None else power)
        warning = ""
        try:
            if counter is not None:
                energy = energy_from_counter(counter, span, traits, restarts_s=history.starts.get(sensor.exporter))
            elif power is not None:
                energy = energy_from_power(power, span, traits)
            else:
                raise CoverageError("no_samples", "no sample in the window")
            energy = with_unseen(energy, span, traits, history.readings.get(sensor))
            if health.unmeasured_s > LARGEST_UNMEASURED * span.duration_s:
                raise CoverageError(
                    "unmeasured_time", f"the counter did not cover {health.unmeasured_s:.3g} s of the window"
                )
            warning = check_frozen(history, sensor, record, energy, span)
        except CoverageError as error:
            reason = "sensor_asleep" if health.asleep else "sensor_down" if health.down else error.reason
            rows.append(SensorEnergy(sensor=sensor, record=record, energy=None, reason=reason, text=str(error)))
            continue
        energy = with_calibration(energy, record.calibration)
        rows.append(SensorEnergy(sensor=sensor, record=record, energy=energy, warning=warning))
    return rows


def frozen_notices(rows: Sequence[SensorEnergy]) -> list[Notice]:
    """Return the warnings about sensors that may be frozen."""
    return [
        Notice(severity="warning", reason="frozen", text=row.warning, exporter=row.sensor.exporter)
        for row in rows
        if row.warning
    ]


def calibration_notices(rows: Sequence[SensorEnergy]) -> list[Notice]:
    """Return which energies are calibrated, and warnings about those outside of the calibrated range."""
    notices = []
    for row in rows:
        if row.energy is not None and row.energy.calibration is not None:
            exporter, text = row.sensor.exporter, f"{row.sensor}: {row.energy.calibration.text}"
            notices.append(Notice(severity="info", reason="calibrated", text=text, exporter=exporter))
            if outside := outside_text(row.energy):
                text = f"{row.sensor}: {outside}"
                notices.append(Notice(severity="warning", reason="outside_calibration", text=text, exporter=exporter))
    return notices


def total_of(rows: Sequence[SensorEnergy]) -> Joules | None:
    """Return the sum over device sensors; None without sensors, or if one of them has no number."""
    return sum_of([row for row in rows if row.sensor.scope == "device"])


def sum_of(rows: Sequence[SensorEnergy]) -> Joules | None:
    """Return the sum over sensors; None without sensors, or if one of them has no number."""
    energies = [energy for row in rows if (energy := row.joules) is not None]
    return None if not rows or len(energies) < len(rows) else sum_joules(energies)


def sum_joules(energies: Sequence[Joules]) -> Joules:
    """Return the sum of energies in one window."""
    return Joules(
        joules=sum(energy.joules for energy in energies),
        # Sensors share the window's edges and often their maker, so their errors are added linearly.
        expanded_joules=sum(energy.expanded_joules for energy in energies),
        lower_joules=sum(energy.lower_joules for energy in energies),
        upper_joules=sum(energy.upper_joules for energy in energies),
        accuracy_known=all(energy.accuracy_known for energy in energies),
    )
