"""Board sensors of the kernel's hwmon class: power in microwatts, energy in microjoules.

``class/hwmon/hwmonX`` is a number handed out at start-up, and handed on when a device goes: a sensor is known by the
real path of its device, its chip and its label, never by X. Old drivers put their files into ``hwmonX/device``, so
both places are searched. What a number means (the whole server, a GPU, one rail) is not in sysfs: the table of chips
below knows the drivers whose meaning is certain, everything else is a ``part`` that is never summed, and
``collectors.hwmon.overrides`` says it for a board that its owner knows better.

The powercap zones of Arm's firmware (SCMI) are read here too: they give a mean power and count nothing, so they are
what a hwmon channel is and not what a RAPL zone is.

Sources: Linux ``Documentation/hwmon/sysfs-interface.rst``, ``Documentation/ABI/testing/sysfs-class-hwmon``,
``drivers/hwmon/{acpi_power_meter.c,scmi-hwmon.c}``, ``drivers/powercap/arm_scmi_powercap.c``,
``drivers/gpu/drm/{amd/pm/amdgpu_pm.c,i915/i915_hwmon.c,xe/xe_hwmon.c}``;
github amd/amd_energy; github NVIDIA/edk2-nvidia (names of Grace's meters).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, ClassVar, Final, Self, get_args

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import (
    HeldInt,
    denied_cure,
    list_names,
    read_int,
    read_int_or_none,
    read_text_or,
)
from joulewatch_exporter.collectors.hwmon.chips import Channel, Chip, channels_of, find_chips, scmi_zones, skipped
from joulewatch_exporter.collectors.hwmon.meanings import Meaning, Override, meanings_of
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
)
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, Scope, SensorInfo, Timing

_POWER_POLL_S: Final = 1.0
_ENERGY_POLL_S: Final = 10.0
"""i915 and xe fold a 32-bit register only when read: 4.4 minutes at 1 kW. Ten seconds leave no doubt."""

_ALL_ONES: Final = frozenset({2**32 - 1, (2**32 - 1) * 1000, 2**64 - 1, 2**31 - 1, 2**63 - 1})
"""A register that nobody filled, in whatever width and unit."""

# A reading above is impossible. Below 4295 W for what is no node, so that 2^32 - 1 microwatts never passes.
_MAX_POWER_WATTS: Final[Mapping[Component, float]] = {
    "cpu": 2000.0,
    "memory": 1000.0,
    "gpu": 3000.0,
    "fpga": 1000.0,
    "node": 50_000.0,
    "other": 4000.0,
}

_ZERO_MEANS_NO_DATA: Final = frozenset({"gpu", "fpga", "node"})
"""Nothing of these draws exactly 0 W while it answers; a driver without data says 0."""

_FPGA: Final = re.compile(r".*_(?:user|mgmt)|.*_hwmon_sdm_.*|Alveo", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HwmonOptions:
    """Settings under ``collectors.hwmon``."""

    skip_chips: Sequence[str] = ()
    """Names of chips that are not read."""
    overrides: Mapping[str, Mapping[str, str] | Override] = field(default_factory=dict)
    """Chip name to ``{component, scope}``: what it measures on this board."""

    def __post_init__(self) -> None:
        """Check what came from a file.

        Raises:
            ConfigError: A value is not of its kind; the text names the key and what is possible.
        """
        where = "collectors.hwmon"
        if isinstance(self.skip_chips, str) or not all(isinstance(chip, str) for chip in self.skip_chips):
            raise ConfigError(f"{where}.skip_chips: must be a list of chip names")
        object.__setattr__(self, "skip_chips", tuple(self.skip_chips))
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"{where}.overrides: must map chip names to {{component, scope}}")
        checked = {str(chip): _override(f"{where}.overrides.{chip}", value) for chip, value in self.overrides.items()}
        object.__setattr__(self, "overrides", checked)


def _override(where: str, value: object) -> Override:
    if isinstance(value, Override):
        return value
    if not isinstance(value, Mapping) or set(value) != {"component", "scope"}:
        raise ConfigError(f"{where}: must have exactly the keys component and scope")
    component, scope = value["component"], value["scope"]
    if component not in get_args(Component):
        raise ConfigError(f"{where}.component: {component!r} is none of {', '.join(get_args(Component))}")
    if scope not in get_args(Scope):
        raise ConfigError(f"{where}.scope: {scope!r} is none of {', '.join(get_args(Scope))}")
    return Override(component, scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class HwmonSensor:
    """One channel of one chip: watts, or joules that the driver counts."""

    device: str
    infos: tuple[SensorInfo, ...]
    _quantity: Quantity
    _file: HeldInt
    _is_energy: bool
    _zero_is_no_data: bool

    def read(self) -> Sequence[Reading]:
        """Read the channel once.

        Returns:
            One reading: energy in joules for a counter, power in watts for the rest.

        Raises:
            SensorAbsentError: The device is unplugged or its driver is unloaded.
            SensorDeniedError: The rights are gone, or the device is in reset; the text holds the path.
            SensorGlitchError: The driver has no value now (ENODATA, all ones, negative, or 0 W where 0 means none).
        """
        raw = self._file.read()
        now_ns = monotonic_ns()
        if raw <= 0 and (raw < 0 or self._zero_is_no_data):
            raise SensorGlitchError(f"{self._file.path}: {raw} means that the driver has no value now")
        if raw in _ALL_ONES:
            raise SensorGlitchError(f"{self._file.path}: {raw} is a register of ones, not a measurement")
        if self._is_energy:
            return (Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=raw / 1e6, power_watts=None),)
        return (Reading(quantity=self._quantity, read_at_ns=now_ns, energy_joules=None, power_watts=raw / 1e6),)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class HwmonCollector(OnDemandCollector):
    """All power and energy channels of the hwmon class."""

    name: ClassVar[str] = "hwmon"
    Options: ClassVar[type] = HwmonOptions

    def __init__(self, root: str, sensors: Sequence[HwmonSensor], findings: Sequence[Finding]) -> None:
        super().__init__(sensors, findings)
        self._root = root
        self._entries = _entries(root)

    @property
    def timing(self) -> Timing:
        """Power is integrated here, so it is read each second; counters alone can wait."""
        only_energy = all(info.method == "counter" for sensor in self._sensors for info in sensor.infos)
        return Timing(poll_s=_ENERGY_POLL_S if only_energy else _POWER_POLL_S, read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether a chip was plugged in or out: the kernel gives it a number in the class."""
        return _entries(self._root) != self._entries

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the channels and try each of them once.

        Args:
            host: Where sysfs and procfs are.
            options: `HwmonOptions`.

        Raises:
            SensorAbsentError: No hwmon class, or no power or energy channel in it.
            SensorDeniedError: There are channels, and none may be read.
        """
        assert isinstance(options, HwmonOptions)
        root = f"{host.sysfs}/class/hwmon"
        findings: list[Finding] = []
        sensors: list[HwmonSensor] = []
        series: set[tuple[str, str, str]] = set()
        files: set[str] = set()
        zones = scmi_zones(host, findings)
        for chip in find_chips(root, is_needed=not zones):
            channels = [channel for channel in channels_of(chip, findings) if channel.path not in files]
            files.update(channel.path for channel in channels)
            zones.append((chip, channels))
        for chip, channels in zones:
            if not channels:
                continue
            why = _skip_reason(chip, host, options)
            if why is not None:
                findings.append(skipped(chip.identity, f"{chip.name}: {why}"))
                continue
            override = options.overrides.get(chip.name)
            assert not isinstance(override, Mapping)
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
        return cls(root, sensors, findings)


def _entries(root: str) -> tuple[str, ...]:
    """Where the class's links point to: another device at an old number is another entry."""
    try:
        return tuple(os.path.realpath(f"{root}/{name}") for name in list_names(root))
    except SensorError:
        return ()


def _skip_reason(chip: Chip, host: Host, options: HwmonOptions) -> str | None:
    """Say why a whole chip is not read; None: it is."""
    if chip.name in options.skip_chips:
        return "left out by collectors.hwmon.skip_chips"
    if chip.name in options.overrides:
        return None
    if _FPGA.fullmatch(chip.name):
        return "FPGA card: left to the family fpga, its units and averages differ from the class's rules"
    if chip.name == "amd_energy" and (
        _powercap_packages_readable(host)
        or any(source.startswith(("perf:power/energy-pkg", "msr:")) for source in host.claimed)
    ):
        return "the same counters as the package zones of RAPL, which are read instead"
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
    """Try the channel once and give it a series of its own."""
    try:
        read_int(channel.path)
    except SensorDeniedError as error:
        findings.append(
            Finding(
                status="denied",
                collector="hwmon",
                subject=channel.path,
                text=str(error),
                cure=denied_cure(channel.path),
            )
        )
        return None
    except SensorError:
        pass  # ENODATA now may be a value later: the sampler says so
    domain = meaning.domain
    for candidate in (domain, f"{channel.kind}{channel.number}", f"{chip.name}-{channel.kind}{channel.number}"):
        domain = candidate
        if (meaning.component, meaning.device, candidate) not in series:
            break
    else:
        findings.append(skipped(channel.path, f"{chip.name}: a channel of this device and name is already read"))
        return None
    series.add((meaning.component, meaning.device, domain))
    is_energy = channel.kind == "energy"
    quantity = Quantity(scope=meaning.scope, component=meaning.component, device=meaning.device, domain=domain)
    info = SensorInfo(
        quantity=quantity,
        method="counter" if is_energy else "integrated",
        source=channel.path,
        model=chip.name,
        resolution="1 uJ" if is_energy else "1 uW",
        accuracy=_accuracy(channel),
        max_power_watts=_MAX_POWER_WATTS[meaning.component],
    )
    what = "energy" if is_energy else "power"
    findings.append(
        Finding(
            status="found",
            collector="hwmon",
            subject=channel.path,
            text=f"{meaning.device} {domain}: {what} of {chip.name} ({meaning.scope})",
        )
    )
    zero_is_no_data = not is_energy and meaning.component in _ZERO_MEANS_NO_DATA
    return HwmonSensor(
        device=meaning.device,
        infos=(info,),
        _quantity=quantity,
        _file=HeldInt(channel.path),
        _is_energy=is_energy,
        _zero_is_no_data=zero_is_no_data,
    )


def _accuracy(channel: Channel) -> float | None:
    """ACPI meters state how much of a reading is true, such as 95.0%: 0.05 is then the half-width."""
    text = read_text_or(f"{channel.stem}_accuracy", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or not 0 < (percent := float(match[1])) <= 100:
        return None
    return round(1 - percent / 100, 6)
