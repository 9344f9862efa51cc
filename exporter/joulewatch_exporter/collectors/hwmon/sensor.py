"""One channel of a chip as a sensor: opened, read once, and described."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.collectors.base.sysfs import denied_cure, read_int_or_none, read_text_or
from joulewatch_exporter.collectors.hwmon.chips import Channel, Chip
from joulewatch_exporter.collectors.hwmon.sleep import SleepyMeter, status_path
from joulewatch_exporter.collectors.hwmon.values import FileMeter, Meter, ProductMeter
from joulewatch_exporter.errors import SensorAsleepError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Component, Finding, Quantity, Reading, SensorInfo

# Readings above are impossible. Except for nodes, the bound is below 2^32 - 1 microwatts (4295 W).
_MAX_POWER_WATTS: Final[Mapping[Component, float]] = {
    "cpu": 2000.0,
    "memory": 1000.0,
    "gpu": 3000.0,
    "fpga": 1000.0,
    "node": 50_000.0,
    "other": 4000.0,
}

_ZERO_MEANS_NO_DATA: Final = frozenset({"gpu", "fpga", "node"})
"""These never draw exactly 0 W; drivers return 0 without data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HwmonSensor:
    """One channel of one chip: power, or energy counted by the driver and perhaps the power of the same rail."""

    device: str
    infos: tuple[SensorInfo, ...]
    can_sleep: bool
    """Whether the device has runtime power management."""
    _quantity: Quantity
    _energy: Meter | None
    _power: Meter | None
    """The power; with a counter the momentary power, None if the driver has none."""

    def read(self) -> Sequence[Reading]:
        """Read the channel once.

        Returns:
            One reading.

        Raises:
            SensorError: The errors of `sleep.SleepyMeter.read`. A counter is read without its momentary power if that
                fails.
        """
        power_watts = None
        if self._power is not None:
            try:
                read_at_ns, power_watts = self._power.read()
            except SensorError:
                if self._energy is None:
                    raise
            if self._energy is None:
                return (Reading(self._quantity, read_at_ns, None, power_watts),)
        assert self._energy is not None
        read_at_ns, energy_joules = self._energy.read()
        return (Reading(self._quantity, read_at_ns, energy_joules, power_watts),)

    def close(self) -> None:
        """Close the files."""
        for meter in (self._energy, self._power):
            if meter is not None:
                meter.close()


def open_sensor(chip: Chip, channel: Channel, quantity: Quantity, findings: list[Finding]) -> HwmonSensor | None:
    """Open a channel and read it once.

    Args:
        chip: Its chip.
        channel: A channel of the chip.
        quantity: What it measures.
        findings: Receives what was found or denied.

    Returns:
        The sensor; None if its files may not be read.
    """
    status = status_path(chip.identity)
    opened = _open(channel, quantity, status, findings)
    momentary = None
    if channel.power is not None:
        momentary = _open(channel.power, quantity, status, findings)
        if opened is None:
            channel, opened, momentary = channel.power, momentary, None
    if opened is None:
        return None
    info = SensorInfo(
        quantity=quantity,
        method="counter" if channel.kind == "energy" else "integrated",
        source=channel.source,
        model=chip.name,
        resolution=_resolution(channel, opened),
        accuracy=_accuracy(channel),
        accuracy_source="power accuracy that the meter reports",
        max_power_watts=_MAX_POWER_WATTS[quantity.component],
        period_s=_period_s(channel),
    )
    files: str = "volts x amperes" if channel.amperes is not None else channel.kind
    files += " and power" if momentary is not None else ""
    asleep = "; asleep, and read when it wakes" if opened.is_asleep else ""
    text = f"{quantity.device} {quantity.domain}: {files} of {chip.name} ({quantity.scope}){asleep}"
    findings.append(Finding(status="found", collector="hwmon", subject=channel.source, text=text))
    power = momentary if channel.kind == "energy" else opened
    return HwmonSensor(
        device=quantity.device,
        infos=(info,),
        can_sleep=bool(status),
        _quantity=quantity,
        _energy=opened.guarded if channel.kind == "energy" else None,
        _power=None if power is None else power.guarded,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A meter that was read once."""

    meter: FileMeter | ProductMeter
    guarded: Meter
    """The same, without waking its device."""
    is_asleep: bool


def _open(channel: Channel, quantity: Quantity, status: str, findings: list[Finding]) -> _Opened | None:
    """Open the files of a channel; return None if they may not be read."""
    zero_is_no_data = channel.kind == "power" and quantity.component in _ZERO_MEANS_NO_DATA
    meter = (
        FileMeter(channel.file, zero_is_no_data=zero_is_no_data)
        if channel.amperes is None
        else ProductMeter(channel.file, channel.amperes, zero_is_no_data=zero_is_no_data)
    )
    guarded: Meter = SleepyMeter(meter, status) if status else meter
    is_asleep = False
    try:
        guarded.read()
    except SensorDeniedError as error:
        # The text of the error begins with the path.
        path = str(error).partition(": ")[0]
        findings.append(
            Finding(
                status="denied",
                collector="hwmon",
                subject=path,
                text=str(error),
                cure=denied_cure(path),
                device=quantity.device,
            )
        )
        return None
    except SensorAsleepError:
        is_asleep = True
    except SensorError:
        pass  # a later read may succeed; the sampler reports the error
    return _Opened(meter=meter, guarded=guarded, is_asleep=is_asleep)


def _resolution(channel: Channel, opened: _Opened) -> str:
    """Return the smallest step, with its unit; that of a product depends on its present voltage and current."""
    if isinstance(opened.meter, FileMeter):
        return _with_unit(channel.file.resolution, "J" if channel.kind == "energy" else "W")
    try:
        return "" if opened.is_asleep else _with_unit(opened.meter.read_resolution(), "W")
    except SensorError:
        return ""


def _with_unit(step: float, unit: Literal["J", "W"]) -> str:
    prefix, factor = next(((p, f) for p, f in (("", 1.0), ("m", 1e3)) if step * f >= 0.9995), ("u", 1e6))
    return f"{step * factor:.3g} {prefix}{unit}"


def _period_s(channel: Channel) -> float | None:
    """Return the time over which the channel's value is averaged, if it is an average."""
    interval_ms = read_int_or_none(f"{channel.stem}_average_interval") if channel.is_average else None
    return interval_ms / 1000 if interval_ms else None


def _accuracy(channel: Channel) -> float | None:
    """Return the relative accuracy (half-width); ACPI meters state it as 95.0%, which means 0.05."""
    text = read_text_or(f"{channel.stem}_accuracy", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or not 0 < (percent := float(match[1])) <= 100:
        return None
    return round(1 - percent / 100, 6)
