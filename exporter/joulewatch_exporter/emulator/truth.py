"""The true energy of an emulated machine, for comparison with measurements.

``scenario.json`` contains the scenario, the keys of devices that could not be emulated, and the start on both clocks.
The truth of a deterministic signal is its closed form. For a signal that follows the load of the machine or its
workloads, ``truth.jsonl`` contains the cumulative energy at each change of the power; linear interpolation between two
lines is exact. Each line also has the active energy of each workload.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from joulewatch_exporter.emulator.scenario import Scenario, parse
from joulewatch_exporter.emulator.signals import Signal
from joulewatch_exporter.errors import ConfigError

SCENARIO_FILE = "scenario.json"
TRACE_FILE = "truth.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """True power and energy of an emulated machine; keys are ``device/domain`` such as ``socket0/package``."""

    scenario: Scenario
    start_unix_s: float
    start_monotonic_ns: int
    _times_s: tuple[float, ...]
    """Times of the lines of the trace, since the start."""
    _joules: Mapping[str, tuple[float, ...]]
    """Key -> energies at these times."""
    _workload_joules: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Key -> path of each workload -> its active energies at these times."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the truth of an emulated machine; the emulator may still be running.

        Args:
            directory: The directory of ``joulewatch-exporter emulate``.

        Raises:
            ConfigError: The directory has no emulated machine.
        """
        path = directory / SCENARIO_FILE
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: there is no emulated machine here: {error}") from error
        scenario = parse(document["scenario"], where=str(path), folder=None).without(document.get("left_out", ()))
        start_monotonic_ns = int(document["start_monotonic_ns"])
        lines = _read_trace(directory / TRACE_FILE)
        times_s = tuple((line["monotonic_ns"] - start_monotonic_ns) / 1e9 for line in lines)
        joules = {key: tuple(float(line["joules"][key]) for line in lines) for key in scenario.signals_by_key}
        workloads: dict[str, dict[str, tuple[float, ...]]] = {}
        for key, paths in (lines[0].get("workloads", {}) if lines else {}).items():
            workloads[key] = {path: tuple(float(line["workloads"][key][path]) for line in lines) for path in paths}
        return cls(
            scenario=scenario,
            start_unix_s=float(document["start_unix_s"]),
            start_monotonic_ns=start_monotonic_ns,
            _times_s=times_s,
            _joules=joules,
            _workload_joules=workloads,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """All ``device/domain`` of the machine."""
        return tuple(self.scenario.signals_by_key)

    def energy_joules(self, key: str, start_unix_s: float, end_unix_s: float) -> float:
        """Return the true energy of a span.

        Args:
            key: ``device/domain``.
            start_unix_s: Unix seconds, not before the emulator's start.
            end_unix_s: Unix seconds, not before ``start_unix_s``.

        Raises:
            ValueError: The truth does not cover the span (yet), or the key is unknown.
        """
        start_s, end_s = self._span(start_unix_s, end_unix_s)
        signal = self._signal(key)
        if signal.is_deterministic:
            self._check(start_s)
            return signal.energy_joules(start_s, end_s)
        return self._traced(self._joules[key], end_s) - self._traced(self._joules[key], start_s)

    def workloads(self, key: str) -> tuple[str, ...]:
        """Return the paths of the workloads that a device's energy belongs to; empty: the other processes."""
        return tuple(self._workload_joules.get(key, ()))

    def workload_joules(self, key: str, path: str, start_unix_s: float, end_unix_s: float) -> float:
        """Return the true active energy of a workload in a span; the idle energy of the device belongs to nobody.

        Args:
            key: ``device/domain``.
            path: One of `workloads`.
            start_unix_s: Unix seconds, not before the emulator's start.
            end_unix_s: Unix seconds, not before ``start_unix_s``.

        Raises:
            ValueError: The truth does not cover the span (yet), or the key or path is unknown.
        """
        start_s, end_s = self._span(start_unix_s, end_unix_s)
        self._signal(key)
        if path not in self.workloads(key):
            raise ValueError(f"{path!r} is not a workload of {key}: {', '.join(map(repr, self.workloads(key)))}")
        joules = self._workload_joules[key][path]
        return self._traced(joules, end_s) - self._traced(joules, start_s)

    def power_watts(self, key: str, unix_s: float) -> float:
        """Return the true power at one time.

        Args:
            key: ``device/domain``.
            unix_s: Unix seconds, not before the emulator's start.

        Raises:
            ValueError: The truth does not cover the time (yet), or the key is unknown.
        """
        t_s = unix_s - self.start_unix_s
        self._check(t_s)
        signal = self._signal(key)
        if signal.is_deterministic:
            return signal.power_watts(t_s)
        right = self._after(t_s)
        joules = self._joules[key]
        return (joules[right] - joules[right - 1]) / (self._times_s[right] - self._times_s[right - 1])

    def _span(self, start_unix_s: float, end_unix_s: float) -> tuple[float, float]:
        if end_unix_s < start_unix_s:
            raise ValueError("the span ends before it starts")
        return start_unix_s - self.start_unix_s, end_unix_s - self.start_unix_s

    def _signal(self, key: str) -> Signal:
        try:
            return self.scenario.signals_by_key[key]
        except KeyError:
            raise ValueError(f"{key!r} is not one of {', '.join(self.keys)}") from None

    def _check(self, t_s: float) -> None:
        if t_s < 0:
            raise ValueError(f"the time is {-t_s:g} s before the start of the emulator")

    def _after(self, t_s: float) -> int:
        """Return the index of the first line at or after ``t_s`` that has a line before it."""
        self._check(t_s)
        right = max(1, bisect_left(self._times_s, t_s))
        if right >= len(self._times_s):
            last_s = self._times_s[-1] if self._times_s else 0.0
            raise ValueError(f"the trace ends {t_s - last_s:g} s before this time; load the truth again later")
        return right

    def _traced(self, joules: Sequence[float], t_s: float) -> float:
        right = self._after(t_s)
        left_s, right_s = self._times_s[right - 1], self._times_s[right]
        left, end = joules[right - 1], joules[right]
        return left + (end - left) * (t_s - left_s) / (right_s - left_s)


def _read_trace(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    # The last line may be incomplete while the emulator is running.
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
