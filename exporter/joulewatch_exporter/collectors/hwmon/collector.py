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
github amd/amd_energy, BoukeHaarsma23/zenergy; github NVIDIA/edk2-nvidia (names of Grace's meters).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import list_names, read_int_or_none, read_text_or
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
from joulewatch_exporter.collectors.hwmon.meanings import AMD_ENERGY, Meaning, Override, meanings_of
from joulewatch_exporter.collectors.hwmon.pairs import pairs_of
from joulewatch_exporter.collectors.hwmon.sensor import HwmonSensor, open_sensor
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Finding, Host, Quantity, Timing
from joulewatch_exporter.text import count_of

_POWER_POLL_S: Final = 1.0
_ENERGY_POLL_S: Final = 10.0
"""i915 and xe extend a 32-bit register only when it is read; at 1 kW it wraps in 4.4 minutes."""
_SLEEPER_POLL_S: Final = 4.0
"""A device that wakes is measured within 5 s."""

_FPGA: Final = re.compile(r".*_(?:user|mgmt)|.*_hwmon_sdm_.*|Alveo", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HwmonOptions:
    """Settings under ``collectors.hwmon``."""

    skip_chips: Sequence[str] = ()
    """Names of chips that are not read."""
    overrides: Mapping[str, Override] = field(default_factory=dict)
    """Chip name -> what the chip measures on this board."""


class HwmonCollector(OnDemandCollector):
    """All power and energy channels of the hwmon class."""

    name: ClassVar[str] = "hwmon"
    Options: ClassVar[type] = HwmonOptions
    experimental: ClassVar[str] = "has not been run on a GPU, a Jetson board, Grace or an IIO device"

    def __init__(self, roots: Sequence[str], sensors: Sequence[HwmonSensor], findings: Sequence[Finding]) -> None:
        super().__init__(sensors, findings)
        self._can_sleep = any(sensor.can_sleep for sensor in sensors)
        self._roots = tuple(roots)
        self._entries = _entries(self._roots)

    @property
    def timing(self) -> Timing:
        """Read power once per second, because it is integrated here; energy counters alone need fewer reads."""
        if any(info.method != "counter" for sensor in self._sensors for info in sensor.infos):
            poll_s = _POWER_POLL_S
        else:
            poll_s = _SLEEPER_POLL_S if self._can_sleep else _ENERGY_POLL_S
        return Timing(poll_s=poll_s, read_on_scrape=True)

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
        prober = Prober(cls.name, findings)
        try:
            sensors = _open_all(root, prober, host, options, findings)
        finally:
            prober.close()
        if not sensors:
            denied = [finding for finding in findings if finding.status == "denied"]
            if denied:
                more = f" (and {count_of(len(denied) - 1, 'more channel')})" if len(denied) > 1 else ""
                raise SensorDeniedError(f"{denied[0].text}{more}", devices=[finding.device for finding in denied])
            prober.check()
            reasons = "".join(f"; {finding.subject}: {finding.text}" for finding in findings)
            raise SensorAbsentError(f"{root}: no power or energy channel{reasons}")
        return cls((root, iio_root(host)), sensors, findings)


def _open_all(
    root: str, prober: Prober, host: Host, options: HwmonOptions, findings: list[Finding]
) -> list[HwmonSensor]:
    """Return the sensors of all chips, without those of chips that hang."""
    meant: list[tuple[Chip, Channel, Meaning]] = []
    files: set[str] = set()
    chips = scmi_zones(host, prober, findings)
    has_iio = bool(_entries((iio_root(host),)))
    for chip in find_chips(root, prober, is_needed=not chips and not has_iio):
        channels, more = prober.call(chip.directories[0], _label(chip), partial(_channels, chip)) or ([], [])
        findings += more
        channels = [channel for channel in channels if channel.file.path not in files]
        files.update(channel.file.path for channel in channels)
        chips.append((chip, channels))
    chips += iio_chips(host, prober, [chip for chip, channels in chips if channels], findings)
    rails = {channel.label for chip, channels in chips if chip.name in jetson.CHIPS for channel in channels}
    if (board := jetson.board_without_input(rails)) is not None:
        text = f"{board}: no rail is the input of the board, so all rails are parts: the board has no node sensor"
        findings.append(Finding(status="absent", collector="hwmon", subject="ina3221", text=text))
    for chip, channels in chips:
        if channels:
            meanings = partial(_meanings, chip, channels, host, options)
            probed = prober.call(chip.directories[0], _label(chip), meanings)
            if probed is not None:
                meant += ((chip, channel, meaning) for channel, meaning in probed[0])
                findings += probed[1]
    by_chip: dict[int, tuple[Chip, list[tuple[Channel, Quantity]]]] = {}
    for chip, channel, quantity in _quantities(meant, findings):
        by_chip.setdefault(id(chip), (chip, []))[1].append((channel, quantity))
    sensors: list[HwmonSensor] = []
    for chip, quantities in by_chip.values():
        opened = prober.call(chip.directories[0], quantities[0][1].device, partial(_open_sensors, chip, quantities))
        if opened is not None:
            sensors += opened[0]
            findings += opened[1]
    return sensors


def _label(chip: Chip) -> str:
    """Return the label of the device of a chip that hangs; empty if it cannot be known without its files."""
    return "" if chip.name in AMD_ENERGY else chip.device


def _channels(chip: Chip) -> tuple[list[Channel], list[Finding]]:
    findings: list[Finding] = []
    attributes = attributes_of(chip)
    return channels_of(chip, attributes, findings) + pairs_of(chip, attributes, findings), findings


def _meanings(
    chip: Chip, channels: Sequence[Channel], host: Host, options: HwmonOptions
) -> tuple[list[tuple[Channel, Meaning]], list[Finding]]:
    findings: list[Finding] = []
    reason = _skip_reason(chip, host, options)
    if reason is not None:
        return [], [skipped(chip.identity, f"{chip.name}: {reason}", device=chip.device)]
    return list(meanings_of(chip, channels, host, options.overrides.get(chip.name), findings)), findings


def _open_sensors(
    chip: Chip, quantities: Sequence[tuple[Channel, Quantity]]
) -> tuple[list[HwmonSensor], list[Finding]]:
    findings: list[Finding] = []
    opened = [open_sensor(chip, channel, quantity, findings) for channel, quantity in quantities]
    return [sensor for sensor in opened if sensor is not None], findings


def _quantities(
    meant: Sequence[tuple[Chip, Channel, Meaning]], findings: list[Finding]
) -> Iterator[tuple[Chip, Channel, Quantity]]:
    """Give each channel a unique name before any is read, because names must not depend on the rights of the reader."""
    taken: set[tuple[str, str, str]] = set()
    for chip, channel, meaning in meant:
        number = f"{channel.kind}{channel.number}"
        for domain in (meaning.domain, number, f"{chip.name}-{number}"):
            series = (meaning.component, meaning.device, domain)
            if series not in taken:
                taken.add(series)
                quantity = Quantity(
                    scope=meaning.scope, component=meaning.component, device=meaning.device, domain=domain
                )
                yield chip, channel, quantity
                break
        else:
            text = f"{chip.name}: a channel with this device and name is already read"
            findings.append(skipped(channel.source, text))


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
    if f"{chip.identity}/gpu_metrics" in host.claimed:
        return "the family amdgpu reads the energy counter of this card instead"
    if chip.name in options.overrides:
        return None
    if chip.name == "amdgpu" and _is_second_die(chip):
        return "the second die of an MI250 reports no power: the first die measures the card"
    if _FPGA.fullmatch(chip.name):
        return "an FPGA card: read by the family fpga, because its units and averages do not follow the rules of hwmon"
    if chip.name in AMD_ENERGY and (
        _powercap_packages_readable(host)
        or any(source.startswith(("perf:power/energy-pkg", "msr:")) for source in host.claimed)
    ):
        return "same counters as the package zones of RAPL, which are read instead"
    return None


def _is_second_die(chip: Chip) -> bool:
    """Return whether the GPU is one of the two dies of an MI250, and not the one that measures the card."""
    if read_text_or(f"{chip.identity}/device", "") not in ("0x7408", "0x740c"):
        return False
    if read_text_or(f"{chip.identity}/power/runtime_status", "").startswith("suspend"):
        return False  # not known, because a read would wake it
    return any(read_int_or_none(f"{chip.directories[0]}/power1_{suffix}") == 0 for suffix in ("average", "input"))


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
