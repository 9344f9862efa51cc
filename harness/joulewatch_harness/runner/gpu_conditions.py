"""Conditions of the GPUs around a window, from the exporters that read them.

The exporter calls NVML, which exists once per process and may hang; it may also be on another machine. It is asked at
both edges of a window, outside all other reads (see ``bracket``). Experimental: has not been run on an NVIDIA GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from joulewatch_harness.clients.conditions import ConditionsClient, DeviceConditions
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.clients.options import HttpOptions
from joulewatch_harness.records import ExporterRecord, SensorRecord, condition_key

_COLLECTOR: Final = "nvml"
_OPTIONS: Final = HttpOptions(timeout_s=1.0)
_RISES: Final[Mapping[str, tuple[str, ...]]] = {
    "gpu_thermal_s": (
        "throttled_thermal_seconds",
        "throttled_software_thermal_seconds",
        "throttled_hardware_thermal_seconds",
    ),
    "gpu_power_capped_s": (
        "throttled_power_seconds",
        "throttled_board_limit_seconds",
        "throttled_power_brake_seconds",
    ),
    "gpu_hot_s": ("hot_seconds",),
    "gpu_ecc_errors": ("ecc_errors",),
}
"""Key of ``Window.conditions`` -> counters of the exporter, of which the largest rise counts: reasons overlap."""
_STATES: Final[Mapping[str, str]] = {
    "gpu_power_smoothing": "power_smoothing",
    "gpu_power_floor_watts": "power_floor_watts",
    "gpu_power_profiles": "power_profiles",
}
"""Key of ``Window.conditions`` -> setting of the exporter, as it is at either edge."""


def conditions_clients(
    targets: Sequence[str], exporters: Sequence[ExporterRecord], sensors: Sequence[SensorRecord]
) -> list[ConditionsClient]:
    """Return a client for each exporter that reads the conditions of a GPU.

    Args:
        targets: URLs of the exporters.
        exporters: What they have answered, in the same order.
        sensors: The sensors of all of them.
    """
    names = {sensor.exporter for sensor in sensors if sensor.collector == _COLLECTOR}
    return [
        ConditionsClient(ExporterClient(url, name=exporter.name, options=_OPTIONS))
        for url, exporter in zip(targets, exporters, strict=False)
        if exporter.name in names
    ]


def gpus_between(
    before: Mapping[str, DeviceConditions], start: Mapping[str, DeviceConditions], end: Mapping[str, DeviceConditions]
) -> Iterator[tuple[str, float]]:
    """Yield the conditions of a window, by key; what did not occur has no key.

    Args:
        before: At the end of the window before.
        start: At the start of the window.
        end: At its end.
    """
    for device, last in end.items():
        first = start.get(device)
        if first is None:
            continue
        for key, names in _RISES.items():
            # A counter that falls has restarted with the exporter or the driver.
            if (rise := max((_rise(first, last, name) for name in names), default=0.0)) > 0:
                yield condition_key(key, device), rise
        busy_s, mhz_s = (_rise(first, last, name) for name in ("busy_seconds", "busy_mhz_seconds"))
        if busy_s > 0 and mhz_s > 0:
            yield condition_key("gpu_sm_mhz", device), mhz_s / busy_s
        for key, name in _STATES.items():
            if value := max(first.settings.get(name, 0.0), last.settings.get(name, 0.0)):
                yield condition_key(key, device), value
        limit_watts, default_watts = (last.settings.get(name) for name in ("limit_watts", "default_limit_watts"))
        if limit_watts and default_watts and limit_watts != default_watts:
            yield condition_key("gpu_limit_ratio", device), limit_watts / default_watts
        earlier = [one.settings.get("limit_watts", limit_watts) for one in (first, before.get(device, first))]
        if limit_watts is not None and any(watts != limit_watts for watts in earlier):
            yield condition_key("gpu_limit_changed", device), 1.0


def _rise(start: DeviceConditions, end: DeviceConditions, name: str) -> float:
    with contextlib.suppress(KeyError):
        return end.counters[name] - start.counters[name]
    return 0.0
