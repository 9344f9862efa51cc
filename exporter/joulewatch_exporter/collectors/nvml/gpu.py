"""Detect what one NVIDIA GPU can report through NVML, and convert its answers to readings.

Yang, Adamek and Armour found that some chips measure their power during only a part of each period: ``window_s``. This
is known for momentary power; whether it applies to the counter is unknown. `accuracy` has the errors that they found.

A superchip (GH200, GB200) is a GPU and a CPU. NVML reports its power in the scope "module". On GH200 the energy counter
counts the module, too (github ml-energy/zeus, pull request 172), and the CPU has its own meter (hwmon). So on a GPU
with module power the counter is not used: ``total`` is the integrated power of the scope "GPU", so that GPUs and CPUs
may be summed. The module is a part, which is never summed.

Sources: NVIDIA ``nvml.h`` (CUDA 13.3) and the NVML API reference; github JimZeyuYang/GPU_Power_Benchmark.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.collectors.base.sysfs import list_names, read_text_or
from joulewatch_exporter.collectors.nvml.accuracy import accuracy_of
from joulewatch_exporter.collectors.nvml.library import LOST, UNSUPPORTED, Nvml
from joulewatch_exporter.errors import SensorError
from joulewatch_exporter.model import Quantity, Reading, Scope, SensorInfo

_MAX_GAP_S: Final = 5.0
_UNKNOWN_MAX_WATTS: Final = 3000.0
_MODULE_MAX_WATTS: Final = 10_000.0
"""The module of a GB300 may draw 2900 W."""

_PASCAL: Final = 4
_VOLTA: Final = 5
_AMPERE: Final = 7
_GA100: Final = re.compile(r"\b(?:A100|A800|A30)X?\b|CMP 170HX")
_H100: Final = re.compile(r"\bH100\b")
_RTX_8000: Final = re.compile(r"\bQuadro RTX 8000\b")

Field = tuple[int, int]
"""Number and scope of a field of nvmlDeviceGetFieldValues, which reads all fields in one call."""
Source = Field | str
"""A field, or the name of a function."""
_ENERGY: Final[Field] = (83, 0)  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_INSTANT: Final[Field] = (186, 0)  # NVML_FI_DEV_POWER_INSTANT; the second number is the scope
_AVERAGE: Final[Field] = (185, 0)  # NVML_FI_DEV_POWER_AVERAGE
_MEMORY: Final[Field] = (185, 2)
_MODULE: Final[Field] = (185, 1)
_MODULE_INSTANT: Final[Field] = (186, 1)
_NO_SCOPE: Final[Field] = (185, 250)
"""An invalid scope: a driver that answers ignores scopes, so its memory power would be the GPU's power."""
_PROBED: Final = (_ENERGY, _INSTANT, _AVERAGE, _MEMORY, _MODULE, _MODULE_INSTANT, _NO_SCOPE)

_USAGE_CALL: Final = "nvmlDeviceGetPowerUsage"
_ENERGY_CALL: Final = "nvmlDeviceGetTotalEnergyConsumption"

_VALUE_NAMES: Final[Mapping[int, str]] = {
    0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal",
}  # fmt: skip
_ALL_ONES: Final = 2.0**64
"""An unset counter, as a float."""

_PROBES: Final = 4
_PROBE_PAUSE_S: Final = 0.05

_FIELD_NAMES: Final[Mapping[Field, str]] = {
    _ENERGY: "TOTAL_ENERGY_CONSUMPTION",
    _INSTANT: "POWER_INSTANT",
    _AVERAGE: "POWER_AVERAGE",
    _MEMORY: "POWER_AVERAGE, scope memory",
    _MODULE: "POWER_AVERAGE, scope module",
    _MODULE_INSTANT: "POWER_INSTANT, scope module",
}


@dataclass(frozen=True, slots=True)
class Channel:
    """One quantity of a GPU and its source."""

    info: SensorInfo
    source: Source
    is_averaged: bool
    """Whether it is the mean over about one second, so that one read per second misses nothing."""

    @property
    def field(self) -> Field | None:
        """The field, or None if the source is a function."""
        return None if isinstance(self.source, str) else self.source

    @property
    def is_total(self) -> bool:
        return self.info.quantity.scope == "device"

    @property
    def is_energy(self) -> bool:
        return self.info.method == "counter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What one GPU is and can report, detected when it is added."""

    uuid: str
    label: str
    """Name, address and driver, for display."""
    limit_mw: int | None
    channels: tuple[Channel, ...]
    """Channels with fields come first."""
    notes: tuple[str, ...]
    """Quantities that are not published, and why."""


def describe(nvml: Nvml, handle: Any, *, driver: str, average: bool, memory: bool, sysfs: Path) -> Description:
    """Detect what a GPU is and what it can report; runs on the GPU's thread.

    Args:
        nvml: The library.
        handle: NVML's handle of the GPU.
        driver: Version of the driver, for display.
        average: Whether the mean over 1 s is a part.
        memory: Whether the power of the memory is a part.
        sysfs: Where the kernel shows the meters of a superchip, which hwmon reads.

    Raises:
        SensorError: The GPU does not answer.
    """
    uuid = str(nvml.call("nvmlDeviceGetUUID", handle, subject="GPU"))

    def attempt(name: str) -> Any:
        return nvml.attempt(name, handle, subject=uuid)[0]

    name = str(attempt("nvmlDeviceGetName") or "NVIDIA GPU")
    pci = attempt("nvmlDeviceGetPciInfo")
    label = f"{name} @ {_address(pci.busId)}, driver {driver}" if pci is not None else f"{name}, driver {driver}"
    limit_mw = plausible_limit(attempt("nvmlDeviceGetEnforcedPowerLimit"))
    if uuid.startswith("MIG-"):
        return Description(uuid=uuid, label=label, limit_mw=limit_mw, channels=(), notes=())
    values = _probe(nvml, handle, uuid)
    _, highest_mw = attempt("nvmlDeviceGetPowerManagementLimitConstraints") or (0, 0)
    mig = attempt("nvmlDeviceGetMigMode")
    maker = _ChannelMaker(
        uuid=uuid,
        model=label,
        architecture=attempt("nvmlDeviceGetArchitecture") or 0,
        name=name,
        limit_watts=limit_mw / 1000 if limit_mw else None,
        max_power_watts=_max_power_watts(limit_mw, plausible_limit(highest_mw)),
    )
    notes = ["MIG is enabled: power and energy are those of the whole GPU, slices have none"] if mig and mig[0] else []
    module = _module_source(values)
    energy = None if module else _energy_source(nvml, handle, uuid, values, notes)
    powers: list[tuple[str, Source]] = []
    if _INSTANT in values:
        powers.append(("instant", _INSTANT))
    if _AVERAGE in values:
        # Integrated, the average misses nothing; so it is the better total if the GPU has no counter.
        powers.insert(0 if module else len(powers), ("average", _AVERAGE))
    if not powers and attempt(_USAGE_CALL) is not None:
        powers.append(("average" if maker.usage_is_averaged else "instant", _USAGE_CALL))
    channels: list[Channel] = []
    if energy is not None:
        channels.append(maker.energy(energy))
    elif powers:
        channels.append(maker.power("total", powers.pop(0)[1]))
    for domain, source in powers:
        if average or domain != "average":
            channels.append(maker.power(domain, source))
    if memory and channels and _has_memory(values, notes):
        channels.append(maker.power("memory", _MEMORY))
    if module and channels:
        notes.append("energy counter excluded: on a superchip it counts the module, which includes a CPU")
        if _has_module_meter(sysfs):
            notes.append("module power excluded: hwmon reads the meter of the module")
        else:
            channels.append(maker.power("module", module))
    channels.sort(key=lambda channel: channel.field is None)
    return Description(uuid=uuid, label=label, limit_mw=limit_mw, channels=tuple(channels), notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChannelMaker:
    """Creates the channels of one GPU from their common properties."""

    uuid: str
    model: str
    architecture: int
    name: str
    limit_watts: float | None
    max_power_watts: float

    @property
    def usage_is_averaged(self) -> bool:
        """Whether nvmlDeviceGetPowerUsage returns the mean over 1 s; on other chips it returns momentary power."""
        return self.architecture >= _AMPERE and _GA100.search(self.name) is None

    def energy(self, source: Source) -> Channel:
        info = replace(self._info("device", "total", source), method="counter", resolution="1 mJ")
        return Channel(info, source, is_averaged=False)

    def power(self, domain: str, source: Source) -> Channel:
        is_averaged = self.usage_is_averaged if source == _USAGE_CALL else source in (_AVERAGE, _MEMORY, _MODULE)
        info = self._info("device" if domain == "total" else "part", domain, source)
        if source == _USAGE_CALL:
            info = replace(info, source=f"{info.source} ({'mean over 1 s' if is_averaged else 'of the moment'})")
        if domain == "memory":
            info = replace(info, relation="inside", accuracy=None, accuracy_source="")
        if domain == "module":
            info = replace(info, relation="contains", max_power_watts=_MODULE_MAX_WATTS, limit_watts=None)
        elif not is_averaged:
            info = replace(info, window_s=_window_s(self.architecture, self.name))
        return Channel(info, source, is_averaged=is_averaged)

    def _info(self, scope: Scope, domain: str, source: Source) -> SensorInfo:
        # Of the values as they are published; in the analysis, the calibration of this board replaces it.
        accuracy, accuracy_source = accuracy_of(self.name)
        return SensorInfo(
            quantity=Quantity(scope=scope, component="gpu", device=self.uuid, domain=domain),
            method="integrated",
            source=source if isinstance(source, str) else f"nvmlDeviceGetFieldValues: {_FIELD_NAMES[source]}",
            model=self.model,
            resolution="1 mW",
            accuracy=accuracy,
            accuracy_source=accuracy_source,
            max_power_watts=self.max_power_watts,
            max_gap_s=_MAX_GAP_S,
            relation="same",
            limit_watts=self.limit_watts,
        )


def _probe(nvml: Nvml, handle: Any, uuid: str) -> Mapping[Field, float]:
    """Return the values of all supported fields."""
    values: dict[Field, float] = {}
    pending = list(_PROBED)
    for attempt in range(_PROBES):
        if attempt:
            time.sleep(_PROBE_PAUSE_S)
        answers, code = nvml.attempt("nvmlDeviceGetFieldValues", handle, pending, subject=uuid)
        if code in UNSUPPORTED:
            break
        if code:
            continue
        again = []
        for field, answer in zip(pending, answers, strict=True):
            if answer.nvmlReturn in LOST:
                raise nvml.sensor_error(answer.nvmlReturn, uuid)
            if answer.nvmlReturn == 0:
                values[field] = number_of(answer)
            # A counter at 0 may have just started, and other failures may be temporary.
            if answer.nvmlReturn not in (0, *UNSUPPORTED) or (field == _ENERGY and values.get(field) == 0):
                again.append(field)
        pending = again
        if not pending:
            break
    return values


def _energy_source(
    nvml: Nvml, handle: Any, uuid: str, values: Mapping[Field, float], notes: list[str]
) -> Source | None:
    """Return the source of the energy counter; None if the GPU has no working counter."""
    if values.get(_ENERGY):
        return _ENERGY
    value, code = (0.0, 0) if _ENERGY in values else nvml.attempt(_ENERGY_CALL, handle, subject=uuid)
    if value:
        return _ENERGY_CALL
    if not code:
        notes.append("energy counter is 0 and not used; power is integrated instead")
    return None


def _module_source(values: Mapping[Field, float]) -> Field | None:
    """Return the field with the power of the superchip; None if the GPU is not part of one."""
    if _NO_SCOPE in values:
        return None
    for module, gpu in ((_MODULE, _AVERAGE), (_MODULE_INSTANT, _INSTANT)):
        if values.get(module, 0.0) > values.get(gpu, 0.0):
            return module
    return None


def _has_module_meter(sysfs: Path) -> bool:
    """Return whether an ACPI meter shows the power of the module of a superchip."""
    root = f"{sysfs}/class/hwmon"
    try:
        meters = [read_text_or(f"{root}/{name}/device/power1_oem_info", "") for name in list_names(root)]
    except SensorError:
        return False
    return any(text.lower().startswith("module power") for text in meters)


def _has_memory(values: Mapping[Field, float], notes: list[str]) -> bool:
    """Return whether the memory power is plausible; versions of ``nvml.h`` define its scope differently."""
    memory_mw = values.get(_MEMORY)
    if not memory_mw:
        return False
    if _NO_SCOPE in values:
        notes.append("memory power excluded: this driver returns the GPU's power for any scope")
        return False
    whole_mw = values.get(_AVERAGE) or values.get(_INSTANT) or 0.0
    if memory_mw >= whole_mw:
        notes.append(f"memory power excluded: {memory_mw / 1000:g} W is not below the GPU's {whole_mw / 1000:g} W")
        return False
    return True


def _window_s(architecture: int, name: str) -> float | None:
    """Return the measured part of each refresh period of momentary power; None if unknown or the whole period.

    Source:
        Yang, Adamek, Armour 2023, arXiv 2312.02741; table of github JimZeyuYang/GPU_Power_Benchmark.
    """
    if architecture in (_PASCAL, _VOLTA):
        return 0.010
    if _GA100.search(name) or _H100.search(name):
        return 0.025
    return 0.020 if _RTX_8000.search(name) else None


def _max_power_watts(*limits_mw: int | None) -> float:
    """Return the plausibility bound: twice the highest limit that can be set, plus 100 W."""
    highest_mw = max([limit_mw for limit_mw in limits_mw if limit_mw], default=0)
    return 2 * highest_mw / 1000 + 100 if highest_mw else _UNKNOWN_MAX_WATTS


def plausible_limit(limit_mw: int | None) -> int | None:
    """Return a power limit, or None if it is implausible."""
    return limit_mw if limit_mw and limit_mw / 1000 <= _UNKNOWN_MAX_WATTS else None


def _address(bus_id: str | bytes) -> str:
    """Return a PCI address in the format of sysfs; NVML uses eight digits for the domain, and upper case."""
    text = (bus_id.decode(errors="replace") if isinstance(bus_id, bytes) else bus_id).lower()
    domain, _, rest = text.partition(":")
    return f"{domain[-4:]}:{rest}" if len(domain) == 8 and domain.startswith("0000") else text


def number_of(answer: Any) -> float:
    """Return a field's value; 0, which means no value here, if its type is unknown."""
    name = _VALUE_NAMES.get(answer.valueType)
    return float(getattr(answer.value, name)) if name is not None else 0.0


def to_readings(values: Sequence[tuple[Channel, float, int]]) -> Sequence[Reading]:
    """Convert milliwatts and millijoules to readings; skip implausible values."""
    whole_mw = 0.0
    for channel, value, _ in values:
        quantity = channel.info.quantity
        if (
            not channel.is_energy
            and quantity.domain not in ("memory", "module")
            and (not whole_mw or channel.is_averaged)
        ):
            whole_mw = value
    readings = []
    for channel, value, at_ns in values:
        quantity = channel.info.quantity
        if not 0 < value < _ALL_ONES:
            continue
        if channel.is_energy:
            readings.append(Reading(quantity=quantity, read_at_ns=at_ns, energy_joules=value / 1000, power_watts=None))
        elif quantity.domain != "memory" or value < whole_mw:
            readings.append(Reading(quantity=quantity, read_at_ns=at_ns, energy_joules=None, power_watts=value / 1000))
    return readings
