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
from pathlib import Path
from time import monotonic_ns
from typing import Any, ClassVar, Final, Self, get_args

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import (
    HeldInt,
    denied_cure,
    list_names,
    physical_packages,
    read_int,
    read_int_or_none,
    read_text_or,
)
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
)
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, Scope, SensorInfo, Timing

_CHANNEL: Final = re.compile(r"(?P<kind>power|energy)(?P<number>\d+)_(?P<what>input|average)")
_I2C_DEVICE: Final = re.compile(r"\d+-[0-9a-f]{4}")

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

_GRACE: Final = re.compile(r"(?P<what>Module|Grace|CPU|SysIO) Power Socket (?P<socket>\d+)", re.IGNORECASE)
_FPGA: Final = re.compile(r".*_(?:user|mgmt)|.*_hwmon_sdm_.*|Alveo", re.IGNORECASE)
_I915_TILE: Final = re.compile(r"i915_gt\d+")


@dataclass(frozen=True, slots=True)
class Override:
    """What the owner of a board says about one chip."""

    component: Component
    scope: Scope


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chip:
    """One hwmon device, as found."""

    name: str
    device: str
    """Stable label: PCI address, ACPI name, I2C bus and address."""
    identity: str
    """Real path of the device, or of the hwmon directory where there is no device."""
    directories: tuple[str, ...]
    """Real paths in which channels may be, the preferred one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    kind: str
    number: int
    label: str
    stem: str
    """The path without what the channel's files differ in."""
    what: str

    @property
    def path(self) -> str:
        return f"{self.stem}_{self.what}"

    @property
    def domain(self) -> str:
        return self.label or f"{self.kind}{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meaning:
    component: Component
    scope: Scope
    device: str
    domain: str


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
        zones = _scmi_zones(host, findings)
        for chip in _find_chips(root, is_needed=not zones):
            channels = [channel for channel in _channels(chip, findings) if channel.path not in files]
            files.update(channel.path for channel in channels)
            zones.append((chip, channels))
        for chip, channels in zones:
            if not channels:
                continue
            why = _skip_reason(chip, host, options)
            if why is not None:
                findings.append(_skipped(chip.identity, f"{chip.name}: {why}"))
                continue
            for channel, meaning in _meanings(chip, channels, host, options, findings):
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


def _find_chips(root: str, *, is_needed: bool) -> list[_Chip]:
    """List the chips, ordered by their device's path: the same on every start."""
    try:
        entries = list_names(root)
    except SensorAbsentError as error:
        if not is_needed:
            return []
        raise SensorAbsentError(f"{error}; this kernel has no hwmon class") from error
    chips: list[_Chip] = []
    for entry in entries:
        # The real path, because hwmonX below the class may belong to another device tomorrow.
        directory = os.path.realpath(f"{root}/{entry}")
        device = os.path.realpath(f"{directory}/device")
        if not Path(directory).is_dir():
            continue
        has_device = Path(device).is_dir()
        # acpi_power_meter has its name with the device.
        name = read_text_or(f"{directory}/name", "") or read_text_or(f"{device}/name", "") or "unknown"
        label = _device_label(device) if has_device else name
        directories = (directory, device) if has_device else (directory,)
        chips.append(
            _Chip(name=name, device=label, identity=device if has_device else directory, directories=directories)
        )
    return sorted(chips, key=lambda chip: (chip.identity, chip.name))


def _device_label(device: str) -> str:
    """The last part of the device's path; with its bus where that part alone says too little."""
    bus, base = device.split("/")[-2:]
    return f"{bus}-{base}" if _I2C_DEVICE.fullmatch(base) and bus.startswith("i2c-") else base


def _channels(chip: _Chip, findings: list[Finding]) -> list[_Channel]:
    """List the chip's channels: one file for each, the momentary one where there is also an average."""
    chosen: dict[tuple[str, int], tuple[str, str]] = {}  # -> directory, what
    for directory in chip.directories:
        try:
            entries = list_names(directory)
        except SensorError:
            continue  # going just now
        here: dict[tuple[str, int], tuple[str, str]] = {}
        for entry in entries:
            # A plain directory called `power` is the kernel's runtime power management: the pattern passes it by.
            if (match := _CHANNEL.fullmatch(entry)) is None:
                continue
            key = (match["kind"], int(match["number"]))
            if key not in here or match["what"] == "input":
                here[key] = (directory, match["what"])
        for key, place in here.items():
            chosen.setdefault(key, place)
    channels = []
    for (kind, number), (directory, what) in sorted(chosen.items()):
        stem = f"{directory}/{kind}{number}"
        if read_int_or_none(f"{stem}_enable") == 0:
            findings.append(_skipped(f"{stem}_{what}", f"{chip.name}: switched off by {kind}{number}_enable"))
        elif read_int_or_none(f"{stem}_is_battery") == 1:
            findings.append(_skipped(f"{stem}_{what}", f"{chip.name}: a meter of a battery, not of the server"))
        else:
            channels.append(
                _Channel(kind=kind, number=number, label=read_text_or(f"{stem}_label", ""), stem=stem, what=what)
            )
    return channels


def _scmi_zones(host: Host, findings: list[Finding]) -> list[tuple[_Chip, list[_Channel]]]:
    """The powercap zones of Arm's firmware as chips of one channel; a zone holds those below it, so none is a sum."""
    root = f"{host.sysfs}/class/powercap"
    try:
        names = [name for name in list_names(root) if name.startswith("arm-scmi:")]
    except SensorError:
        return []
    zones = []
    for name in names:
        directory = os.path.realpath(f"{root}/{name}")
        path = f"{directory}/power_uw"
        try:
            read_int(path)
        except SensorAbsentError:
            continue
        except SensorGlitchError as error:
            findings.append(_skipped(path, f"arm-scmi: the firmware does not measure it: {error}"))
            continue
        except SensorError:
            pass  # denied: said where every channel is tried
        chip = _Chip(name="arm-scmi", device=name, identity=directory, directories=(directory,))
        label = read_text_or(f"{directory}/name", "")
        zones.append((chip, [_Channel(kind="power", number=1, label=label, stem=f"{directory}/power", what="uw")]))
    return zones


def _skip_reason(chip: _Chip, host: Host, options: HwmonOptions) -> str | None:
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


def _meanings(
    chip: _Chip, channels: Sequence[_Channel], host: Host, options: HwmonOptions, findings: list[Finding]
) -> list[tuple[_Channel, _Meaning]]:
    """Say what each channel measures, and leave out what another channel of the chip already counts."""
    counted = {channel.label or str(channel.number) for channel in channels if channel.kind == "energy"}
    kept: list[_Channel] = []
    for channel in channels:
        if channel.path in host.claimed:
            findings.append(_skipped(channel.path, f"{chip.name}: read by another family"))
        elif _is_system(channel) and any(_is_system(other) and other.kind == channel.kind for other in kept):
            # occ shows it beside the limit that is set for it, once more.
            findings.append(_skipped(channel.path, f"{chip.name}: the whole system again"))
        elif channel.kind == "power" and (channel.label or str(channel.number)) in counted:
            findings.append(_skipped(channel.path, f"{chip.name}: the energy channel of the same rail is read instead"))
        else:
            kept.append(channel)
    override = options.overrides.get(chip.name)
    if isinstance(override, Override):
        return [
            (c, _Meaning(component=override.component, scope=override.scope, device=chip.device, domain=c.domain))
            for c in kept
        ]
    if chip.name == "amd_energy":
        return _amd_energy(chip, kept, host, findings)
    integrated_gpu = chip.name == "amdgpu" and _is_apu(chip)
    if integrated_gpu:
        findings.append(
            _skipped(chip.identity, "amdgpu inside a processor: its power includes the CPU, so it is a part")
        )
    return [(channel, _meaning(chip, channel, integrated_gpu=integrated_gpu)) for channel in kept]


def _meaning(chip: _Chip, channel: _Channel, *, integrated_gpu: bool) -> _Meaning:
    """The table of chips whose meaning is certain; everything else is a part, never to be summed."""
    device, domain, name = chip.device, channel.domain, chip.name
    if name == "power_meter":
        oem = read_text_or(f"{channel.stem}_oem_info", "")
        if (grace := _GRACE.search(oem)) is not None:
            # Module holds Grace and the GPU; Grace holds CPU and SysIO: the socket alone is a device.
            what, socket = grace["what"].lower(), f"socket{int(grace['socket'])}"
            is_socket = what == "grace"
            component: Component = "cpu" if what in ("grace", "cpu") else "other"
            return _Meaning(
                component=component,
                scope="device" if is_socket else "part",
                device=socket,
                domain="package" if is_socket else what,
            )
        return _Meaning(component="node", scope="node", device=device, domain=domain)
    if name in ("i915", "xe"):
        # energy1 is the card; energy2 of xe, the package, is inside it.
        return _Meaning(
            component="gpu", scope="device" if channel.number == 1 else "part", device=device, domain=domain
        )
    if _I915_TILE.fullmatch(name):
        return _Meaning(component="gpu", scope="part", device=device, domain=f"{name.removeprefix('i915_')}-{domain}")
    if name == "amdgpu":
        # power2 exists on processors only (fast PPT): the same device, averaged otherwise.
        is_card = channel.number == 1 and not integrated_gpu
        return _Meaning(component="gpu", scope="device" if is_card else "part", device=device, domain=domain)
    if name == "fam15h_power":
        return _Meaning(component="cpu", scope="device", device=device, domain="package")
    if name == "zenpower":
        return _Meaning(component="cpu", scope="part", device=device, domain=domain)
    if _is_system(channel):
        return _Meaning(component="node", scope="node", device=device, domain=domain)
    return _Meaning(component="other", scope="part", device=device, domain=domain)


def _is_system(channel: _Channel) -> bool:
    """ibmpowernv and occ call the whole machine so."""
    return channel.label.lower() == "system"


def _is_apu(chip: _Chip) -> bool:
    """Only integrated GPUs have a north bridge voltage (amdgpu_pm.c, hwmon_attributes_visible)."""
    return read_text_or(f"{chip.directories[0]}/in1_label", "") == "vddnb"


def _amd_energy(
    chip: _Chip, channels: Sequence[_Channel], host: Host, findings: list[Finding]
) -> list[tuple[_Channel, _Meaning]]:
    """Sockets are devices, cores parts; a driver that made one Esocket for each NUMA node repeats itself."""
    sockets = [channel for channel in channels if channel.label.startswith("Esocket")]
    packages = len(physical_packages(host.sysfs))
    copies = len(sockets) // packages if packages and len(sockets) % packages == 0 else 1
    meanings: list[tuple[_Channel, _Meaning]] = []
    for channel in channels:
        if channel in sockets:
            index = sockets.index(channel)
            if index % copies:
                findings.append(
                    _skipped(
                        channel.path,
                        f"{channel.label}: the socket of {sockets[index - index % copies].label} "
                        "again (one for each NUMA node)",
                    )
                )
                continue
            meanings.append(
                (
                    channel,
                    _Meaning(component="cpu", scope="device", device=f"socket{index // copies}", domain="package"),
                )
            )
        else:
            meanings.append(
                (channel, _Meaning(component="cpu", scope="part", device=chip.device, domain=channel.domain))
            )
    return meanings


def _sensor(
    chip: _Chip,
    channel: _Channel,
    meaning: _Meaning,
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
        findings.append(_skipped(channel.path, f"{chip.name}: a channel of this device and name is already read"))
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


def _accuracy(channel: _Channel) -> float | None:
    """ACPI meters state how much of a reading is true, such as 95.0%: 0.05 is then the half-width."""
    text = read_text_or(f"{channel.stem}_accuracy", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or not 0 < (percent := float(match[1])) <= 100:
        return None
    return round(1 - percent / 100, 6)


def _skipped(subject: str, text: str) -> Finding:
    return Finding(status="skipped", collector="hwmon", subject=subject, text=text)
