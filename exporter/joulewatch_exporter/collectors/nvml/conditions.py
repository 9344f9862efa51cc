"""Conditions under which a GPU runs: counters that only rise, and settings.

A program that measures reads them before and after its work: the difference of a counter misses nothing between. What
the driver counts is passed on (throttled time, memory errors). It does not count clocks and temperature: those are
integrated over time, from a value every two seconds and at every request. The clock counts by utilisation, so that an
idle GPU has none.

Settings are read every two seconds only, in the background: requests are made next to measured work.

All this is read only while somebody requests it (`ASKED_NS`): each call takes time of the driver.

Sources: NVIDIA ``nvml.h`` (CUDA 13.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from typing import Any, Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.collectors.nvml.gpu import number_of
from joulewatch_exporter.collectors.nvml.library import Nvml
from joulewatch_exporter.collectors.nvml.throttling import Throttling

HOT_WITHIN_CELSIUS: Final = 5
"""A GPU this close to the temperature at which it reduces its clocks is hot."""

ASKED_NS: Final = 600 * NS_PER_S
"""How long after a request the conditions are read in the background."""
OUTDATED_NS: Final = 10 * NS_PER_S
"""Settings of this age are read again by a request; the integrals pause over a gap of this length."""

_SM_CLOCK: Final = 1  # NVML_CLOCK_SM
_GPU_TEMPERATURE: Final = 0  # NVML_TEMPERATURE_GPU
_SLOWDOWN: Final = 1  # NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
_UNCORRECTED, _VOLATILE = 1, 0  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC
_FIELDS: Final[Mapping[int, str]] = {251: "power_smoothing", 275: "power_floor_watts"}
"""NVML_FI_PWR_SMOOTHING_ENABLED and _PRIMARY_POWER_FLOOR."""


class Conditions:
    """The conditions of one GPU; used by one thread at a time."""

    def __init__(self) -> None:
        """Start without counters: the first read finds those that the GPU has."""
        self.counters: Mapping[str, float] = {}
        """Replaced by each read; the integrals count since the first read."""
        self.settings: Mapping[str, float] = {}
        """Replaced by each read of the settings."""
        self._slowdown_celsius: int | None = None
        self._clock: tuple[float, float] | None = None
        """Utilisation, and its product with the clock, at the last read."""
        self._is_hot: bool | None = None
        self._read_at_ns = 0
        self._settings_read_at_ns = 0
        self._integrals: dict[str, float] = {}

    def read(self, nvml: Nvml, uuid: str, throttling: Throttling, handle: Any) -> None:
        """Read the counters, also those of throttled time; runs on a thread of the GPU.

        Raises:
            SensorError: The GPU is lost.
        """
        throttling.read(nvml, uuid, handle)
        now_ns = monotonic_ns()
        span_ns = now_ns - self._read_at_ns
        self._read_at_ns = now_ns
        span_s = span_ns / NS_PER_S if span_ns <= OUTDATED_NS else 0.0
        clock = _clock(nvml, uuid, handle)
        if clock is not None:
            last = clock if self._clock is None else self._clock
            for name, before, now in zip(("busy_seconds", "busy_mhz_seconds"), last, clock, strict=True):
                self._add(name, span_s * (before + now) / 2)
        self._clock = clock
        celsius, _ = nvml.attempt("nvmlDeviceGetTemperature", handle, _GPU_TEMPERATURE, subject=uuid)
        if self._slowdown_celsius is None:
            self._slowdown_celsius, _ = nvml.attempt(
                "nvmlDeviceGetTemperatureThreshold", handle, _SLOWDOWN, subject=uuid
            )
        is_hot = None
        if celsius is not None and self._slowdown_celsius:
            is_hot = celsius >= self._slowdown_celsius - HOT_WITHIN_CELSIUS
            was_hot = is_hot if self._is_hot is None else self._is_hot
            self._add("hot_seconds", span_s * (was_hot + is_hot) / 2)
        self._is_hot = is_hot
        counters = {f"throttled_{reason}_seconds": seconds for reason, seconds in throttling.seconds.items()}
        errors, _ = nvml.attempt("nvmlDeviceGetTotalEccErrors", handle, _UNCORRECTED, _VOLATILE, subject=uuid)
        if errors is not None:
            counters["ecc_errors"] = float(errors)
        self.counters = counters | self._integrals

    @property
    def has_outdated_settings(self) -> bool:
        """Whether the settings were not read lately."""
        return monotonic_ns() - self._settings_read_at_ns > OUTDATED_NS

    def read_settings(self, nvml: Nvml, uuid: str, handle: Any) -> None:
        """Read the settings; runs on a thread of the GPU.

        Raises:
            SensorError: The GPU is lost.
        """
        settings: dict[str, float] = {}
        for name, function in (
            ("limit_watts", "nvmlDeviceGetEnforcedPowerLimit"),
            ("default_limit_watts", "nvmlDeviceGetPowerManagementDefaultLimit"),
        ):
            milliwatts, _ = nvml.attempt(function, handle, subject=uuid)
            if milliwatts:
                settings[name] = milliwatts / 1000
        answers, code = nvml.attempt("nvmlDeviceGetFieldValues", handle, list(_FIELDS), subject=uuid)
        for name, answer in zip(_FIELDS.values(), () if code else answers, strict=False):
            if answer.nvmlReturn == 0:
                settings[name] = number_of(answer)
        if (profiles := _profiles(nvml, uuid, handle)) is not None:
            settings["power_profiles"] = profiles
        self.settings = settings
        self._settings_read_at_ns = monotonic_ns()

    def _add(self, name: str, value: float) -> None:
        self._integrals[name] = self._integrals.get(name, 0.0) + value


def _clock(nvml: Nvml, uuid: str, handle: Any) -> tuple[float, float] | None:
    """Return the utilisation as a fraction, and its product with the clock in MHz; None: not supported, as with MIG."""
    clock_mhz, _ = nvml.attempt("nvmlDeviceGetClockInfo", handle, _SM_CLOCK, subject=uuid)
    rates, _ = nvml.attempt("nvmlDeviceGetUtilizationRates", handle, subject=uuid)
    if clock_mhz is None or rates is None:
        return None
    busy = min(rates.gpu / 100, 1.0)
    return busy, busy * clock_mhz


def _profiles(nvml: Nvml, uuid: str, handle: Any) -> float | None:
    """Return the mask of the enforced workload power profiles; None: not supported."""
    struct = getattr(nvml.module, "c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t", None)
    if struct is None:
        return None
    import ctypes  # imported late, because it costs memory

    profiles = struct()
    _, code = nvml.attempt(
        "nvmlDeviceWorkloadPowerProfileGetCurrentProfiles", handle, ctypes.byref(profiles), subject=uuid
    )
    # The first 32 bits have all profiles that NVML has so far.
    return None if code else float(profiles.enforcedProfilesMask.mask[0])
