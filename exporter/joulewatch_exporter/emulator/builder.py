"""Builds the signals of a scenario file: numbers, names of signals given above, and mappings with a ``kind``."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.emulator.signals import (
    Constant,
    CpuLoad,
    Phases,
    Points,
    Signal,
    Sine,
    Square,
    Sum,
    ramp,
)
from joulewatch_exporter.emulator.table import Table, checked, hint, number
from joulewatch_exporter.errors import ConfigError


class SignalBuilder:
    """Builds signals, and knows the named ones."""

    KINDS: Final = (
        "constant",
        "step",
        "square",
        "ramp",
        "sine",
        "sum",
        "scale",
        "phases",
        "replay",
        "cpu_load",
    )

    def __init__(self, folder: Path) -> None:
        self.named: dict[str, Signal] = {}
        self.loads: list[CpuLoad] = []
        self._folder = folder

    def build(self, where: str, value: Any) -> Signal:
        """Make a signal of a number (constant watts), the name of a signal, or a mapping with ``kind``."""
        if isinstance(value, str):
            if value not in self.named:
                raise ConfigError(f"{where}: no signal is called {value!r} above{hint(value, tuple(self.named))}")
            return self.named[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Constant(checked(where, float(value), 0.0, math.inf))
        table = Table(where, value)
        kind = table.choice("kind", self.KINDS)
        signal = getattr(self, f"_{kind}")(table)
        table.done()
        assert isinstance(signal, Constant | Points | Square | Sine | Sum | Phases | CpuLoad)
        return signal

    def _constant(self, table: Table) -> Signal:
        return Constant(table.number("watts", low=0.0))

    def _step(self, table: Table) -> Signal:
        return self._from_points(table, table.take("points"), is_linear=False)

    def _square(self, table: Table) -> Signal:
        return Square(
            low_watts=table.number("low_watts", low=0.0),
            high_watts=table.number("high_watts", low=0.0),
            period_s=table.number("period_s", low=1e-6),
            duty=table.number("duty", 0.5, low=0.0, high=1.0),
            phase_s=table.number("phase_s", 0.0),
        )

    def _ramp(self, table: Table) -> Signal:
        return ramp(
            table.number("from_watts", low=0.0),
            table.number("to_watts", low=0.0),
            table.number("duration_s", low=1e-6),
            start_s=table.number("start_s", 0.0, low=0.0),
            repeats=table.flag("repeat", False),
        )

    def _sine(self, table: Table) -> Signal:
        signal = Sine(
            mean_watts=table.number("mean_watts", low=0.0),
            amplitude_watts=table.number("amplitude_watts", low=0.0),
            period_s=table.number("period_s", low=1e-6),
            phase_s=table.number("phase_s", 0.0),
        )
        if signal.amplitude_watts > signal.mean_watts:
            raise ConfigError(f"{table.where}.amplitude_watts: above mean_watts, the power would be negative")
        return signal

    def _sum(self, table: Table) -> Signal:
        terms = tuple(self.build(f"{table.where}.of[{i}]", term) for i, term in enumerate(table.sequence("of")))
        return Sum(terms, (1.0,) * len(terms))

    def _scale(self, table: Table) -> Signal:
        return Sum((self.build(f"{table.where}.signal", table.take("signal")),), (table.number("factor", low=0.0),))

    def _phases(self, table: Table) -> Signal:
        signals, durations_s = [], []
        for entry in table.tables("of"):
            signal = self.build(f"{entry.where}.signal", entry.take("signal"))
            if not signal.is_deterministic:
                raise ConfigError(f"{entry.where}.signal: a signal that follows the load cannot be a phase")
            signals.append(signal)
            durations_s.append(entry.number("duration_s", low=1e-6))
            entry.done()
        if not signals:
            raise ConfigError(f"{table.where}.of: there is none")
        return Phases(tuple(signals), tuple(durations_s))

    def _replay(self, table: Table) -> Signal:
        is_linear = table.choice("interpolate", ("hold", "linear"), "linear") == "linear"
        file = table.text("file", "")
        if not file:
            return self._from_points(table, table.take("points"), is_linear=is_linear)
        points = _read_replay(f"{table.where}.file", self._folder / file)
        # Written out, so that scenario.json needs no other file.
        table.replace("file", "points", points)
        return self._from_points(table, points, is_linear=is_linear)

    def _cpu_load(self, table: Table) -> Signal:
        signal = CpuLoad(table.number("idle_watts", low=0.0), table.number("full_watts", low=0.0))
        self.loads.append(signal)
        return signal

    def _from_points(self, table: Table, points: Any, *, is_linear: bool) -> Signal:
        where = f"{table.where}.points"
        repeats = table.flag("repeat", False)
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise ConfigError(f"{where}: must be a list of [seconds, watts]")
        times_s = tuple(number(f"{where}: seconds", point[0], 0.0, math.inf) for point in points)
        watts = tuple(number(f"{where}: watts", point[1], 0.0, math.inf) for point in points)
        try:
            return Points(times_s=times_s, watts=watts, is_linear=is_linear, repeats=repeats)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error


def _read_replay(where: str, path: Path) -> list[list[float]]:
    """Read a CSV file with the columns time_s and watts; its first line is the scenario's start."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: {path}: {error}") from error
    if not rows or not {"time_s", "watts"} <= set(rows[0]):
        raise ConfigError(f"{where}: {path}: must have the columns time_s and watts, and one row at least")
    points = []
    for line, row in enumerate(rows, start=2):
        try:
            points.append([float(row["time_s"]), float(row["watts"])])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {path}: line {line}: {error}") from error
    start_s = points[0][0]
    return [[time_s - start_s, watts] for time_s, watts in points]
