"""Run conditions around a window: counters and settings of the kernel and of GPUs, read at both of its edges.

A single look misses what happens inside a window, so counters are read: stalled tasks (PSI), steal, pages read from
swap, thermal throttling, the time at each clock frequency. Settings that a service may change (governor, turbo, power
limits) are compared with their values at the reading before, so that a change between two windows shows in the second
one.

The files stay open. They are read outside all other reads of a window (see ``bracket``). A file that does not exist or
cannot be read is not part of the conditions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from joulewatch_harness.clients.conditions import ConditionsClient, DeviceConditions
from joulewatch_harness.runner.gpu_conditions import gpus_between

MOST_FILES: Final = 64
"""Files of a kind that are read, one per processor: a change or a throttled package shows in some of them."""
_STEAL: Final = 8
"""Column of the first line of ``/proc/stat``, whose first word is ``cpu``."""
_BUSY: Final = (1, 2, 3, 6, 7)
"""Columns of user, nice, system, irq and softirq."""
LEAST_BUSY_SHARE: Final = 0.1
"""Of a processor: if those that are read were less busy, their frequency is not that of the work."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CPUS: Final = "devices/system/cpu"
_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "governor_changed": (f"{_CPUS}/cpufreq/policy*/scaling_governor",),
    "turbo_changed": (f"{_CPUS}/intel_pstate/no_turbo", f"{_CPUS}/cpufreq/boost"),
    "power_limit_changed": ("class/powercap/*/constraint_*_power_limit_uw",),
}
"""Key of ``Window.conditions`` -> patterns of files in sysfs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionsReading:
    """Counters up to one moment, and the settings at it."""

    at_ns: int
    counters: Mapping[str, float]
    processors: int
    throttled_ms: Mapping[str, int]
    """File -> time for which the clock of its core or package was reduced."""
    throttle_counts: Mapping[str, int]
    settings: Mapping[str, Mapping[str, str]]
    """Key of ``Window.conditions`` -> file -> value."""
    frequencies: Mapping[str, str] = field(default_factory=dict)
    """File -> frequencies in kHz and ticks at each."""
    busy_ticks: Mapping[str, int] = field(default_factory=dict)
    """Processor -> ticks; only where there are frequencies."""
    devices: Mapping[str, DeviceConditions] = field(default_factory=dict)
    """GPU -> its counters and settings."""


class ConditionsSource(Protocol):
    """Reads the conditions, and compares two readings."""

    def read(self) -> ConditionsReading: ...

    def between(self, start: ConditionsReading, end: ConditionsReading) -> Mapping[str, float]: ...


class RunConditions:
    """Conditions of this machine and of GPUs; keeps files and connections open until ``close``.

    Args:
        exporters: Exporters that read the conditions of GPUs, on this machine or others.
        sysfs: Mount point of sysfs; for tests.
        procfs: Mount point of procfs; for tests.
    """

    def __init__(
        self,
        exporters: Sequence[ConditionsClient] = (),
        *,
        sysfs: Path = Path("/sys"),
        procfs: Path = Path("/proc"),
    ) -> None:
        self._exporters = tuple(exporters)
        self._stat = _Files([procfs / "stat"])
        self._vmstat = _Files([procfs / "vmstat"])
        self._pressure = {name: _Files([procfs / "pressure" / name]) for name in ("cpu", "memory")}
        throttle = sorted((sysfs / _CPUS).glob("cpu[0-9]*/thermal_throttle"))
        self._times = _Files(_spread(throttle, ("core_throttle_total_time_ms", "package_throttle_total_time_ms")))
        self._counts = _Files(_spread(throttle, ("core_throttle_count", "package_throttle_count")))
        policies = _limited(sorted((sysfs / _CPUS).glob("cpufreq/policy[0-9]*/stats/time_in_state")))
        self._frequencies = _Files(policies)
        self._processors_of = {str(path): _processors(path.parents[1] / "related_cpus") for path in policies}
        """File with frequencies -> its processors."""
        self._settings = {
            key: _Files(_limited([path for pattern in patterns for path in sorted(sysfs.glob(pattern))]))
            for key, patterns in _SETTINGS.items()
        }
        self._last: Mapping[str, Mapping[str, str]] = {key: files.read() for key, files in self._settings.items()}
        self._last_devices = self._read_devices()

    @property
    def provenance(self) -> dict[str, Any]:
        """Settings of the GPUs as they were last, for the header of the run; empty without GPUs."""
        gpus = {device: dict(one.settings) for device, one in self._last_devices.items()}
        return {"gpus": gpus} if gpus else {}

    def _read_devices(self) -> dict[str, DeviceConditions]:
        return {device: one for exporter in self._exporters for device, one in exporter.read().items()}

    def read(self) -> ConditionsReading:
        """Return the conditions now."""
        counters: dict[str, float] = {}
        for name, files in self._pressure.items():
            for text in files.read().values():
                _, found, total = text.partition("\n")[0].rpartition("total=")
                if found and total.isdecimal():
                    counters[f"{name}_pressure_s"] = int(total) * 1e-6
        processors = 0
        frequencies = self._frequencies.read()
        busy_ticks: dict[str, int] = {}
        for text in self._stat.read().values():
            lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
            processors = len(lines) - 1
            if lines and len(lines[0]) > _STEAL:
                counters["steal_s"] = int(lines[0][_STEAL]) / _TICKS_PER_S
            if frequencies:
                busy_ticks = {words[0]: sum(int(words[column]) for column in _BUSY) for words in lines[1:]}
        for text in self._vmstat.read().values():
            for line in text.splitlines():
                name, _, value = line.partition(" ")
                if name == "pswpin":
                    counters["swapped_in_pages"] = int(value)
        return ConditionsReading(
            at_ns=time.monotonic_ns(),
            counters=counters,
            processors=processors,
            throttled_ms=_integers(self._times.read()),
            throttle_counts=_integers(self._counts.read()),
            settings={key: files.read() for key, files in self._settings.items()},
            frequencies=frequencies,
            busy_ticks=busy_ticks,
            devices=self._read_devices(),
        )

    def between(self, start: ConditionsReading, end: ConditionsReading) -> Mapping[str, float]:
        """Return the conditions of a window from the readings around it; keys of what is not known are missing.

        Call it once for each window, in their order: a changed setting is compared with the window before.
        """
        conditions = {"seconds": (end.at_ns - start.at_ns) * 1e-9, "processors": float(end.processors)}
        for name, value in end.counters.items():
            if name in start.counters:
                conditions[name] = max(value - start.counters[name], 0.0)
        if (most_ms := _largest_rise(start.throttled_ms, end.throttled_ms)) is not None:
            conditions["throttled_s"] = most_ms * 1e-3
        if (most := _largest_rise(start.throttle_counts, end.throttle_counts)) is not None:
            conditions["throttle_count"] = float(most)
        if (mhz := self._mean_mhz(start, end)) is not None:
            conditions["cpu_mhz"] = mhz
        for key, values in end.settings.items():
            # The start counts, too: a value that changed before the window may change back in it.
            changed = [
                file
                for file, value in values.items()
                if value != self._last[key].get(file, value) or value != start.settings[key].get(file, value)
            ]
            if changed:
                conditions[key] = float(len(changed))
        conditions.update(gpus_between(self._last_devices, start.devices, end.devices))
        self._last = end.settings
        # A GPU that did not answer keeps its settings.
        self._last_devices = {**self._last_devices, **end.devices}
        return conditions

    def _mean_mhz(self, start: ConditionsReading, end: ConditionsReading) -> float | None:
        """Return the mean frequency of the processors, each weighted with its busy time; None: not known."""
        weighted, busy = 0.0, 0
        for path, text in end.frequencies.items():
            before = dict(map(str.split, start.frequencies.get(path, "").splitlines()))
            ticks = {
                int(khz): int(count) - int(before.get(khz, count)) for khz, count in map(str.split, text.splitlines())
            }
            names = self._processors_of[path]
            used = sum(end.busy_ticks.get(name, 0) - start.busy_ticks.get(name, 0) for name in names)
            if (all_ticks := sum(ticks.values())) > 0 and used > 0:
                weighted += used * sum(khz * count for khz, count in ticks.items()) / all_ticks / 1000
                busy += used
        least = LEAST_BUSY_SHARE * _TICKS_PER_S * (end.at_ns - start.at_ns) * 1e-9
        return weighted / busy if busy > least else None

    def close(self) -> None:
        """Close files and connections; safe to call twice."""
        kinds = (self._stat, self._vmstat, self._times, self._counts, self._frequencies)
        for files in (*kinds, *self._pressure.values(), *self._settings.values()):
            files.close()
        for exporter in self._exporters:
            exporter.close()


class _Files:
    """Files that stay open."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._descriptors: dict[str, int] = {}
        for path in paths:
            try:
                self._descriptors[str(path)] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue

    def read(self) -> dict[str, str]:
        """Return the texts of the files that can be read."""
        texts = {}
        for path, descriptor in self._descriptors.items():
            try:
                texts[path] = _whole(descriptor)
            except OSError:
                continue  # the processor is off
        return texts

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _whole(descriptor: int) -> str:
    parts: list[bytes] = []
    offset = 0
    while part := os.pread(descriptor, 1 << 16, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts).decode("ascii", "replace").strip()


def _limited(paths: list[Path]) -> list[Path]:
    """Return at most ``MOST_FILES`` of the paths, evenly spread."""
    return paths[:: -(-len(paths) // MOST_FILES) or 1]


def _spread(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    return [folder / name for folder in _limited(folders) for name in names]


def _processors(path: Path) -> tuple[str, ...]:
    """Return the processors of a frequency policy, as ``/proc/stat`` names them."""
    try:
        return tuple(f"cpu{number}" for number in path.read_text(encoding="ascii").split())
    except OSError:
        return ()


def _integers(texts: Mapping[str, str]) -> dict[str, int]:
    return {path: int(text) for path, text in texts.items() if text.isdecimal()}


def _largest_rise(start: Mapping[str, int], end: Mapping[str, int]) -> int | None:
    return max((value - start[path] for path, value in end.items() if path in start), default=None)
