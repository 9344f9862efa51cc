"""Board sensors of the kernel's hwmon class: power in microwatts, energy in microjoules.

The X in ``class/hwmon/hwmonX`` is assigned at start-up and reused when a device disappears. A sensor is therefore
identified by the real path of its device, its chip and its label, never by X. Old drivers put their files into
``hwmonX/device``, so both places are searched. sysfs does not state what a channel measures (the whole server, a GPU,
one rail): module `meanings` has a table of the drivers where it is certain; every other channel is a ``part``, which
is never summed. ``collectors.hwmon.overrides`` sets it for other boards.

The powercap zones of Arm's firmware (SCMI) are read here too: they report a mean power and have no counter, like a
hwmon channel and unlike a RAPL zone. So are the power monitors of the IIO subsystem: which of the two has a chip
depends on the kernel of the board only.

Sources: Linux ``Documentation/hwmon/sysfs-interface.rst``, ``Documentation/ABI/testing/sysfs-class-hwmon``,
``drivers/hwmon/{acpi_power_meter.c,scmi-hwmon.c}``, ``drivers/powercap/arm_scmi_powercap.c``,
``drivers/gpu/drm/{amd/pm/amdgpu_pm.c,i915/i915_hwmon.c,xe/xe_hwmon.c}``;
github amd/amd_energy; github NVIDIA/edk2-nvidia (names of Grace's meters).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import (
    denied_cure,
    list_names,
    read_int_or_none,
    read_text_or,
)
from joulewatch_exporter.collectors.hwmon import jetson
from joulewatch_exporter.collectors.hwmon.chips import (
    Channel,
    Chip,
    attributes_of,
    channels_of,
    find_chips,
    scmi_zones,
    skipped,
)
from joulewatch_exporter.collectors.hwmon.iio import iio_chips, iio_root
from joulewatch_exporter.collectors.hwmon.meanings import Meaning, Override, meanings_of
from joulewatch_exporter.collectors.hwmon.pairs import pairs_of
from joulewatch_exporter.collectors.hwmon.values import FileMeter, Meter, ProductMeter
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, SensorInfo, Timing

_POWER_POLL_S: Final = 1.0
_ENERGY_POLL_S: Final = 10.0
"""i915 and xe extend a 32-bit register only when it is read; at 1 kW it wraps in 4.4 minutes."""

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

_FPGA: Final = re.compile(r".*_(?:user|mgmt)|.*_hwmon_sdm_.*|Alveo", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HwmonOptions:
    """Settings under ``collectors.hwmon``."""

    skip_chips: Sequence[str] = ()
    """Names of chips that are not read."""
    overrides: Mapping[str, Override] = field(default_factory=dict)
    """Chip name -> what the chip measures on this board."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HwmonSensor:
    """One channel of one chip: power, or energy counted by the driver."""

    device: str
    infos: tuple[SensorInfo, ...]
    _quantity: Quantity
    _meter: Meter
    _is_energy: bool

    def read(self) -> Sequence[Reading]:
        """Read the channel once.

        Returns:
            One reading: energy in joules for a counter, else power in watts.

        Raises:
            SensorError: The errors of `values.FileMeter.read` and `values.ProductMeter.read`.
        """
        now_ns, value = self._meter.read()
        if self._is_energy:
            return (Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=value, power_watts=None),)
        return (Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=None, power_watts=value),)

    def close(self) -> None:
        """Close the files."""
        self._meter.close()


class HwmonCollector(OnDemandCollector):
    """All power and energy channels of the hwmon class."""

    name: ClassVar[str] = "hwmon"
    Options: ClassVar[type] = HwmonOptions

    def __init__(self, roots: Sequence[str], sensors: Sequence[HwmonSensor], findings: Sequence[Finding]) -> None:
        super().__init__(sensors, findings)
        self._roots = tuple(roots)
        self._entries = _entries(self._roots)

    @property
    def timing(self) -> Timing:
        """Read power once per second, because it is integrated here; energy counters alone need fewer reads."""
        only_energy = all(info.method == "counter" for sensor in self._sensors for info in sensor.infos)
        return Timing(poll_s=_ENERGY_POLL_S if only_energy else _POWER_POLL_S, read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether a chip was added or removed."""
        return _entries(self._roots) != self._entries

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the channels and read each of them once.

        Args:
            host: Where sysfs and procfs are.
            options: `HwmonOptions`.

        Raises:
            SensorAbsentError: There is no hwmon class, or no power or energy channel in it.
            SensorDeniedError: There are channels, but none can be read.
        """
        assert isinstance(options, HwmonOptions)
        root = f"{host.sysfs}/class/hwmon"
        findings: list[Finding] = []
        sensors: list[HwmonSensor] = []
        series: set[tuple[str, str, str]] = set()
        files: set[str] = set()
        chips = scmi_zones(host, findings)
        has_iio = bool(_entries((iio_root(host),)))
        for chip in find_chips(root, is_needed=not chips and not has_iio):
            attributes = attributes_of(chip)
            channels = channels_of(chip, attributes, findings) + pairs_of(chip, attributes, findings)
            channels = [channel for channel in channels if channel.file.path not in files]
            files.update(channel.file.path for channel in channels)
            chips.append((chip, channels))
        chips += iio_chips(host, [chip for chip, channels in chips if channels], findings)
        rails = {channel.label for chip, channels in chips if chip.name in jetson.CHIPS for channel in channels}
        if (board := jetson.board_without_input(rails)) is not None:
            text = f"{board}: no rail is the input of the board, so all are parts and there is no node sensor"
            findings.append(Finding(status="absent", collector="hwmon", subject="ina3221", text=text))
        for chip, channels in chips:
            if not channels:
                continue
            reason = _skip_reason(chip, host, options)
            if reason is not None:
                findings.append(skipped(chip.identity, f"{chip.name}: {reason}"))
                continue
            override = options.overrides.get(chip.name)
            for channel, meaning in meanings_of(chip, channels, host, override, findings):
                sensor = _sensor(chip, channel, meaning, series, findings)
                if sensor is not None:
                    sensors.append(sensor)
        if not sensors:
            denied = [finding for finding in findings if finding.status == "denied"]
            if denied:
                more = f" (and {len(denied) - 1} more channels)" if len(denied) > 1 else ""
                raise SensorDeniedError(f"{denied[0].text}{more}")
            reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
            raise SensorAbsentError(f"{root}: no power or energy channel{reasons}")
        return cls((root, iio_root(host)), sensors, findings)


def _entries(roots: Sequence[str]) -> tuple[str, ...]:
    """Return the targets of all links, so that a new device with a reused number is detected."""
    entries: list[str] = []
    for root in roots:
        with contextlib.suppress(SensorError):
            entries += (os.path.realpath(f"{root}/{name}") for name in list_names(root))
    return tuple(entries)


def _skip_reason(chip: Chip, host: Host, options: HwmonOptions) -> str | None:
    """Return why a chip is not read; None if it is read."""
    if chip.name in options.skip_chips:
        return "excluded by collectors.hwmon.skip_chips"
    if chip.name in options.overrides:
        return None
    if _FPGA.fullmatch(chip.name):
        return "an FPGA card: read by the family fpga, because its units and averages do not follow the rules of hwmon"
    if chip.name == "amd_energy" and (
        _powercap_packages_readable(host)
        or any(source.startswith(("perf:power/energy-pkg", "msr:")) for source in host.claimed)
    ):
        return "same counters as the package zones of RAPL, which are read instead"
    return None


def _powercap_packages_readable(host: Host) -> bool:
    root = f"{host.sysfs}/class/powercap"
    try:
        zones = [name for name in list_names(root) if name.startswith("intel-rapl:")]
    except SensorError:
        return False
    return any(
        read_text_or(f"{root}/{zone}/name", "").startswith("package-")
        and read_int_or_none(f"{root}/{zone}/energy_uj") is not None
        for zone in zones
    )


def _sensor(
    chip: Chip,
    channel: Channel,
    meaning: Meaning,
    series: set[tuple[str, str, str]],
    findings: list[Finding],
) -> HwmonSensor | None:
    """Read the channel once and assign it a unique series."""
    is_energy = channel.kind == "energy"
    meter = _meter(channel, zero_is_no_data=not is_energy and meaning.component in _ZERO_MEANS_NO_DATA)
    try:
        meter.read()
    except SensorDeniedError as error:
        # The text of the error begins with the path.
        path = str(error).partition(": ")[0]
        findings.append(
            Finding(status="denied", collector="hwmon", subject=path, text=str(error), cure=denied_cure(path))
        )
        return None
    except SensorError:
        pass  # a later read may succeed; the sampler reports the error
    domain = meaning.domain
    for candidate in (domain, f"{channel.kind}{channel.number}", f"{chip.name}-{channel.kind}{channel.number}"):
        domain = candidate
        if (meaning.component, meaning.device, candidate) not in series:
            break
    else:
        findings.append(skipped(channel.source, f"{chip.name}: a channel with this device and name is already read"))
        return None
    series.add((meaning.component, meaning.device, domain))
    quantity = Quantity(scope=meaning.scope, component=meaning.component, device=meaning.device, domain=domain)
    info = SensorInfo(
        quantity=quantity,
        method="counter" if is_energy else "integrated",
        source=channel.source,
        model=chip.name,
        resolution=_resolution(channel, meter),
        accuracy=_accuracy(channel),
        accuracy_source="power accuracy that the meter reports",
        max_power_watts=_MAX_POWER_WATTS[meaning.component],
        period_s=_period_s(channel),
    )
    kind = "volts x amperes" if channel.amperes is not None else channel.kind
    findings.append(
        Finding(
            status="found",
            collector="hwmon",
            subject=channel.source,
            text=f"{meaning.device} {domain}: {kind} of {chip.name} ({meaning.scope})",
        )
    )
    return HwmonSensor(device=meaning.device, infos=(info,), _quantity=quantity, _meter=meter, _is_energy=is_energy)


def _meter(channel: Channel, *, zero_is_no_data: bool) -> FileMeter | ProductMeter:
    if channel.amperes is None:
        return FileMeter(channel.file, zero_is_no_data=zero_is_no_data)
    return ProductMeter(channel.file, channel.amperes, zero_is_no_data=zero_is_no_data)


def _resolution(channel: Channel, meter: FileMeter | ProductMeter) -> str:
    """Return the smallest step, with its unit; that of a product depends on the voltage and current of now."""
    if isinstance(meter, FileMeter):
        return _with_unit(channel.file.resolution, "J" if channel.kind == "energy" else "W")
    try:
        return _with_unit(meter.read_resolution(), "W")
    except SensorError:
        return ""


def _with_unit(step: float, unit: str) -> str:
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
