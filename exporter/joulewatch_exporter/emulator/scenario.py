"""Scenario files: which devices the emulated machine has, how their power changes, and which faults occur when.

A scenario is YAML; an unknown key is an error that names the nearest valid key. ``emulator/scenarios`` contains the
built-in scenarios, with an example of every key. The keys of each device are the fields of its dataclass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from joulewatch_exporter.arguments import suggestion
from joulewatch_exporter.config.strict import build, mapping, parse_yaml, read_yaml
from joulewatch_exporter.emulator.amdgpu import AmdGpuSpec
from joulewatch_exporter.emulator.bmc import BmcSpec
from joulewatch_exporter.emulator.builder import SignalBuilder
from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.cray import PmCountersSpec
from joulewatch_exporter.emulator.faults import FILE_FAULTS, Fault, check_faults
from joulewatch_exporter.emulator.fpga import CardSpec
from joulewatch_exporter.emulator.nvml import GpuSpec
from joulewatch_exporter.emulator.redfish.spec import RedfishSpec
from joulewatch_exporter.emulator.replay import with_points
from joulewatch_exporter.emulator.signals import CpuLoad, Signal
from joulewatch_exporter.emulator.workloads import WorkloadLoad
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.text import count_of

_INTEL: Final = "GenuineIntel"
_ZONE: Final = re.compile(r"[a-z][a-z-]*(?::[0-9a-f]+)+")
_KEY: Final = re.compile(r"[^\s/]+/[^\s/]+")
_ZONE_FAULTS: Final = ("reset", *FILE_FAULTS, "vanish")


def _check_key(key: str) -> None:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"key: {key!r} must be a device and a domain, like socket0/package")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneSpec:
    """A RAPL zone of powercap."""

    zone: str
    """Type and indices in hexadecimal: ``intel-rapl:0:1``."""
    name: str
    key: str
    """``device/domain`` in the truth; zones that show the same counter share it."""
    signal: Signal
    energy_status_unit: int = 16
    """One step of the counter is 2^-energy_status_unit joules."""
    unit_nj: int = 0
    """One step of the counter in nanojoules; 0: given by ``energy_status_unit``."""
    counter_bits: int = 32
    start_joules: float = 1000.0
    wrap_at_s: float | None = None
    """When the counter wraps for the first time; it replaces ``start_joules``."""
    range_file: bool = True
    """Whether there is a file ``max_energy_range_uj``."""
    power_limit_watts: float = 0.0
    """0: no limit is shown."""
    enabled: bool = True
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if _ZONE.fullmatch(self.zone) is None:
            raise ValueError(f"zone: {self.zone!r} must be like intel-rapl:0:a (indices in hexadecimal)")
        _check_key(self.key)
        check_range("energy_status_unit", self.energy_status_unit, 0, 31)
        check_range("unit_nj", self.unit_nj, 0, 10**9)
        check_range("counter_bits", self.counter_bits, 8, 64)
        check_range("start_joules", self.start_joules, 0.0)
        check_range("power_limit_watts", self.power_limit_watts, 0.0)
        if self.wrap_at_s is not None:
            check_range("wrap_at_s", self.wrap_at_s, 0.0)
            if not self.signal.is_deterministic:
                raise ValueError("wrap_at_s: cannot be predicted for a signal that follows the load")
        check_faults(self.faults, _ZONE_FAULTS)

    @property
    def unit_joules(self) -> float:
        """Exact step of the counter."""
        return self.unit_nj * 1e-9 if self.unit_nj else 2.0**-self.energy_status_unit

    @property
    def shown_unit_nj(self) -> int:
        """Step as the kernel shows it, in whole nanojoules: 2^-16 J is 15258.789 nJ and shown as 15258."""
        return self.unit_nj or 10**9 >> self.energy_status_unit

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signal by ``device/domain``."""
        return {self.key: self.signal}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """A channel of a chip."""

    kind: Literal["power", "energy", "volts_amperes"] = "power"
    """volts_amperes: a voltage, which is constant, and a current, but no power."""
    number: int = 1
    in_number: int | None = None
    """Number of hwmon's voltage; None: the same."""
    label: str = ""
    volts: float = 12.0
    with_power: bool = False
    """Whether an energy has a power file, too."""
    key: str
    """``device/domain`` in the truth."""
    signal: Signal
    update_s: float = 0.0
    """How often the chip makes a new value, at most at every refresh."""
    average: bool = False
    """Whether the value is the mean over the last ``update_s``, in ``powerN_average``."""
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        check_range("number", self.number, 0, 4096)
        _check_key(self.key)
        check_range("volts", self.volts, 0.1, 1000.0)
        check_range("update_s", self.update_s, 0.0, 3600.0)
        if self.average and self.kind == "energy":
            raise ValueError("average: an energy counter has no average")
        if self.with_power and self.kind != "energy":
            raise ValueError("with_power: only an energy can have a power file, too")
        check_faults(self.faults, ("reset", *FILE_FAULTS) if self.kind == "energy" else FILE_FAULTS)

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signal by ``device/domain``."""
        return {self.key: self.signal}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipSpec:
    """A chip of hwmon or IIO."""

    subsystem: Literal["hwmon", "iio"] = "hwmon"
    chip: str
    path: str
    """Directory of the device, relative to the root of sysfs."""
    files_at_device: bool = False
    """Whether name and channels are in the directory of the device, as with acpi_power_meter and old drivers."""
    files: Mapping[str, str | int | float] = field(default_factory=dict)
    """Further files with constant content."""
    channels: tuple[ChannelSpec, ...]
    faults: tuple[Fault, ...] = ()
    """vanish; suspend: the device is in runtime suspend, and reads of its values fail with EIO."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if not self.path.startswith("devices/") or ".." in self.path.split("/"):
            raise ValueError(f"path: {self.path!r} must be below devices/")
        if any(not name or "/" in name for name in self.files):
            raise ValueError("files: each name must be a file name, without a slash")
        if not self.channels:
            raise ValueError("channels: needs at least one channel")
        if self.subsystem == "iio" and (
            self.files_at_device or any(channel.kind == "energy" or channel.average for channel in self.channels)
        ):
            raise ValueError("subsystem: chips of IIO have power or volts_amperes, without averages")
        check_faults(self.faults, ("vanish", "suspend"))

    @property
    def suspends(self) -> tuple[Fault, ...]:
        """When the device is in runtime suspend."""
        return tuple(fault for fault in self.faults if fault.kind == "suspend")


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Load of the CPUs of a socket: 0 at idle power, 100 % at full power."""

    signal: Signal
    idle_watts: float
    full_watts: float

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        check_range("idle_watts", self.idle_watts, 0.0)
        if self.full_watts <= self.idle_watts:
            raise ValueError("full_watts: must be above idle_watts")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """Contents of procfs and the CPU topology."""

    vendor: str = _INTEL
    family: int = 6
    model: int = 85
    stepping: int = 1
    cpu_name: str = "Emulated CPU"
    sockets: int = 1
    cpus_per_socket: int = 4
    """Logical CPUs."""
    cores_per_socket: int | None = None
    """None: one core per logical CPU."""
    msr: bool | None = None
    """Whether ``dev/cpu/N/msr`` shows the counters, at the first CPU of each socket; None: if the vendor is Intel."""
    memory_gib: float = 16.0
    load: tuple[LoadSpec, ...] = ()
    """One for each socket; empty: idle."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        for key in ("family", "model", "stepping"):
            check_range(key, getattr(self, key), 0, 1000)
        check_range("sockets", self.sockets, 1, 16)
        check_range("cpus_per_socket", self.cpus_per_socket, 1, 1024)
        check_range("cores_per_socket", self.cores, 1, self.cpus_per_socket)
        check_range("memory_gib", self.memory_gib, 0.001)
        if self.cpus_per_socket % self.cores:
            raise ValueError(f"cores_per_socket: must divide the number of CPUs per socket ({self.cpus_per_socket})")
        if self.msr and self.vendor != _INTEL:
            raise ValueError("msr: only Intel's registers are far enough apart for a file to hold them")
        if self.load and len(self.load) != self.sockets:
            entries = count_of(self.sockets, "entry", "entries")
            raise ValueError(f"load: needs {entries}, one per socket, or none")

    @property
    def cores(self) -> int:
        """Cores per socket."""
        return self.cpus_per_socket if self.cores_per_socket is None else self.cores_per_socket

    @property
    def has_msr(self) -> bool:
        """Whether ``dev/cpu/N/msr`` shows the counters."""
        return self.vendor == _INTEL if self.msr is None else self.msr


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The devices of a scenario that are more than files of powercap and hwmon."""

    gpus: tuple[GpuSpec, ...] = ()
    """NVIDIA GPUs."""
    amd_gpus: tuple[AmdGpuSpec, ...] = ()
    fpgas: tuple[CardSpec, ...] = ()
    cray: PmCountersSpec | None = None
    bmcs: tuple[BmcSpec, ...] = ()
    redfish: tuple[RedfishSpec, ...] = ()

    def __iter__(self) -> Iterator[GpuSpec | AmdGpuSpec | CardSpec | PmCountersSpec | BmcSpec | RedfishSpec]:
        yield from self.gpus
        yield from self.amd_gpus
        yield from self.fpgas
        if self.cray is not None:
            yield self.cray
        yield from self.bmcs
        yield from self.redfish

    @property
    def are_local(self) -> bool:
        """Whether some of them are inside the machine."""
        return bool(self.gpus or self.amd_gpus or self.fpgas or self.cray)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File(Devices):
    """The keys of a scenario file."""

    name: str
    description: str = ""
    refresh_s: float = 0.01
    signals: Mapping[str, Any] = field(default_factory=dict)
    """Built before the rest, which refers to them by name."""
    machine: MachineSpec = MachineSpec()
    zones: tuple[ZoneSpec, ...] = ()
    hwmon: tuple[ChipSpec, ...] = ()
    required: bool = False

    def __post_init__(self) -> None:
        check_range("refresh_s", self.refresh_s, 0.001, 60.0)
        if not self.zones and not self.hwmon and not list(self):
            raise ValueError("there is nothing to emulate: needs zones, hwmon or a device")
        _check_unique("zones: zone", [zone.zone for zone in self.zones])
        _check_unique("gpus: uuid", [gpu.uuid.lower() for gpu in self.gpus])
        _check_unique("gpus: bus_id", [gpu.bus_id.lower() for gpu in self.gpus])
        dies = [die for gpu in self.amd_gpus for die in (gpu.address, gpu.second_die) if die]
        _check_unique("amd_gpus: address", dies)
        _check_unique("fpgas: card", [card.card for card in self.fpgas])
        # The exporter uses both as the names of nodes, and two nodes with the same name would be one series.
        _check_unique(
            "bmcs and redfish: name", [bmc.name for bmc in self.bmcs] + [service.name for service in self.redfish]
        )


def _check_unique(key: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{key} {name} is given twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole machine."""

    name: str
    description: str
    refresh_s: float
    machine: MachineSpec
    zones: tuple[ZoneSpec, ...]
    chips: tuple[ChipSpec, ...]
    devices: Devices
    is_required_whole: bool
    """True: a device that cannot be emulated on this machine is an error; False: it is excluded."""
    signals_by_key: Mapping[str, Signal]
    """The truth: power by ``device/domain``."""
    loads: tuple[CpuLoad, ...]
    """The signals that follow the load of this machine."""
    workload_loads: tuple[WorkloadLoad, ...]
    """The signals that follow its workloads."""
    document: Mapping[str, Any] = field(repr=False)
    """The parsed document, with the points of replays; `parse` turns it into the same scenario on any machine."""

    def without(self, keys: Collection[str]) -> Scenario:
        """Return the scenario without these keys of the truth: their devices are not emulated."""
        signals = {key: signal for key, signal in self.signals_by_key.items() if key not in keys}
        return dataclasses.replace(self, signals_by_key=signals)

    @property
    def is_deterministic(self) -> bool:
        """Whether the truth is known without the trace."""
        return not self.loads and not self.workload_loads


def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in scenarios."""
    folder = resources.files("joulewatch_exporter.emulator") / "scenarios"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load(scenario: str) -> Scenario:
    """Read a scenario.

    Args:
        scenario: The name of a built-in scenario, or the path of a YAML file.

    Raises:
        ConfigError: There is no such scenario, or it is invalid; the text names the key.
    """
    names = builtin_names()
    if scenario in names:
        text = (resources.files("joulewatch_exporter.emulator") / "scenarios" / f"{scenario}.yaml").read_text("utf-8")
        return parse(parse_yaml(text, scenario), where=scenario, folder=None)
    path = Path(scenario)
    if not path.is_file():
        hint = suggestion(scenario, names)
        raise ConfigError(f"{scenario}: is neither a file nor a built-in scenario{hint}; built in: {', '.join(names)}")
    return parse(read_yaml(path), where=scenario, folder=path.parent)


def parse(document: object, *, where: str, folder: Path | None) -> Scenario:
    """Build a scenario from the contents of a YAML or JSON file.

    Args:
        document: The contents.
        where: Name of the file, for messages.
        folder: Base of the paths of replayed files; None: the working directory.

    Raises:
        ConfigError: A key is unknown, or a value is invalid; the text names the key.
    """
    document = mapping(with_points(document, where, folder or Path()), where, "")
    builder = SignalBuilder()
    for name, value in mapping(document.get("signals", {}), where, "signals").items():
        builder.named[name] = builder.build(value, where, f"signals.{name}")
    file = build(_File, document, where, converters=builder.converters)
    return Scenario(
        name=file.name,
        description=file.description,
        refresh_s=file.refresh_s,
        machine=file.machine,
        zones=file.zones,
        chips=file.hwmon,
        devices=Devices(
            gpus=file.gpus,
            amd_gpus=file.amd_gpus,
            fpgas=file.fpgas,
            cray=file.cray,
            bmcs=file.bmcs,
            redfish=file.redfish,
        ),
        is_required_whole=file.required,
        signals_by_key=_truth(file, where),
        loads=tuple(builder.loads),
        workload_loads=tuple(builder.workload_loads),
        document=document,
    )


def _truth(file: _File, where: str) -> dict[str, Signal]:
    truth: dict[str, Signal] = {}
    for spec in (*file.zones, *(channel for chip in file.hwmon for channel in chip.channels), *file):
        for key, signal in spec.truth.items():
            if truth.setdefault(key, signal) != signal:
                raise ConfigError(f"{where}: the key {key} has two signals; sensors with the same key must share one")
    return truth
