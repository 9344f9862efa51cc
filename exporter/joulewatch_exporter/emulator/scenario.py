"""Scenario files: which devices the emulated machine has, how their power moves, and what goes wrong when.

A scenario is YAML; an unknown key is an error that names the nearest valid one. `emulator/scenarios` holds the
built-in ones, and is the place to look for an example of every key.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from joulewatch_exporter.emulator.builder import SignalBuilder
from joulewatch_exporter.emulator.devices import Devices
from joulewatch_exporter.emulator.faults import FILE_FAULTS, Fault, FaultKind
from joulewatch_exporter.emulator.signals import CpuLoad, Signal
from joulewatch_exporter.emulator.table import Table, check_unique, hint
from joulewatch_exporter.errors import ConfigError

__all__ = [
    "ChannelSpec",
    "ChipSpec",
    "Fault",
    "FaultKind",
    "LoadSpec",
    "MachineSpec",
    "Scenario",
    "ZoneSpec",
    "builtin_names",
    "load",
    "parse",
]

_ZONE: Final = re.compile(r"[a-z][a-z-]*(?::[0-9a-f]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneSpec:
    """One RAPL zone of powercap."""

    zone: str
    """Type and indices in hexadecimal: ``intel-rapl:0:1``."""
    name: str
    key: str
    """``device/domain`` in the truth; zones that show one counter share it."""
    signal: Signal
    unit_joules: float
    """The counter's true step."""
    unit_nj: int
    """The step as the kernel shows it, in whole nanojoules: 2^-16 J is 15258.789 nJ and shown as 15258."""
    counter_bits: int
    start_joules: float
    wrap_at_s: float | None
    """The counter starts so far below its end that it goes round at this time."""
    has_range: bool
    """False: no ``max_energy_range_uj``."""
    power_limit_watts: float
    is_enabled: bool
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """One channel of a hwmon chip."""

    kind: Literal["power", "energy"]
    number: int
    label: str
    key: str
    signal: Signal
    update_s: float
    """How often the chip makes a new value; 0: at every refresh."""
    is_average: bool
    """The value is the mean over the last ``update_s``, in ``powerN_average``."""
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipSpec:
    """One hwmon chip."""

    chip: str
    path: str
    """Of the device, below the sysfs root."""
    files_at_device: bool
    """Name and channels lie in the device's directory, as with acpi_power_meter and old drivers."""
    files: Mapping[str, str]
    """Further files that do not move, beside the channels."""
    channels: tuple[ChannelSpec, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """How busy the CPUs of one socket are: 0 at idle power, all of them at full power."""

    signal: Signal
    idle_watts: float
    full_watts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What procfs and the CPU topology say."""

    vendor: str
    family: int
    model: int
    stepping: int
    cpu_name: str
    sockets: int
    cpus_per_socket: int
    """Logical CPUs."""
    cores_per_socket: int
    """Fewer where a core has several threads."""
    has_msr: bool
    """Whether ``dev/cpu/N/msr`` shows the counters, at the first CPU of each socket."""
    memory_gib: float
    load: tuple[LoadSpec, ...]
    """One for each socket, or none: idle."""


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
    """What it has beyond files of its own."""
    is_required_whole: bool
    """True: a device that cannot be emulated on this machine is an error; False: it is left out."""
    signals_by_key: Mapping[str, Signal]
    """The truth: ``device/domain`` to its power."""
    loads: tuple[CpuLoad, ...]
    """The signals that must be told this machine's load."""
    document: Mapping[str, Any] = field(repr=False)
    """What was parsed, replays written out: `parse` makes the same scenario of it, on any machine."""

    def without(self, keys: Collection[str]) -> Scenario:
        """Return it with a smaller truth: these devices are not there."""
        signals = {key: signal for key, signal in self.signals_by_key.items() if key not in keys}
        return dataclasses.replace(self, signals_by_key=signals)

    @property
    def is_deterministic(self) -> bool:
        """Whether the truth is known without the trace."""
        return not self.loads


def builtin_names() -> tuple[str, ...]:
    """Return the names of the scenarios that are shipped."""
    folder = resources.files("joulewatch_exporter.emulator") / "scenarios"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load(scenario: str) -> Scenario:
    """Read a scenario.

    Args:
        scenario: The name of a built-in one, or the path of a YAML file.

    Raises:
        ConfigError: There is none of that name, or it is not well formed; the text names the key.
    """
    names = builtin_names()
    if scenario in names:
        text = (resources.files("joulewatch_exporter.emulator") / "scenarios" / f"{scenario}.yaml").read_text("utf-8")
        return parse(_yaml(text, scenario), where=scenario, folder=None)
    path = Path(scenario)
    if not path.is_file():
        raise ConfigError(
            f"{scenario}: neither a file nor a built-in scenario{hint(scenario, names)}; built in: {', '.join(names)}"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{scenario}: cannot be read: {error}") from error
    return parse(_yaml(text, scenario), where=scenario, folder=path.parent)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def parse(document: Any, *, where: str, folder: Path | None) -> Scenario:
    """Turn what a YAML or JSON file holds into a scenario.

    Args:
        document: The file's content.
        where: Its name, for messages.
        folder: Where the files of replays are looked for; None: the working directory.

    Raises:
        ConfigError: An unknown key or a value out of its range; the text names both.
    """
    document = copy.deepcopy(document)  # replays are written out in the copy
    table = Table(where, document)
    name = table.text("name")
    description = table.text("description", "")
    refresh_s = table.number("refresh_s", 0.01, low=0.001, high=60.0)
    builder = SignalBuilder(folder or Path())
    for key, value in table.mapping("signals").items():
        builder.named[str(key)] = builder.build(f"{where}: signals.{key}", value)
    machine = _machine(table.table("machine"), builder)
    zones = tuple(_zone(zone, builder) for zone in table.tables("zones"))
    chips = tuple(_chip(chip, builder, refresh_s) for chip in table.tables("hwmon"))
    devices = Devices.parse(table, builder)
    required = table.flag("required", False)
    table.done()
    if not zones and not chips and devices.are_none:
        raise ConfigError(f"{where}: neither zones nor hwmon nor any device: nothing to emulate")
    signals_by_key: dict[str, Signal] = {}
    keyed = [*((zone.key, zone.signal) for zone in zones)]
    keyed += [(channel.key, channel.signal) for chip in chips for channel in chip.channels]
    keyed += devices.keyed_signals()
    for key, signal in keyed:
        if signals_by_key.setdefault(key, signal) is not signal and signals_by_key[key] != signal:
            raise ConfigError(f"{where}: key {key}: two sensors of one key must have one signal")
    check_unique(where, "zone", [zone.zone for zone in zones])
    return Scenario(
        name=name,
        description=description,
        refresh_s=refresh_s,
        machine=machine,
        zones=zones,
        chips=chips,
        devices=devices,
        is_required_whole=required,
        signals_by_key=signals_by_key,
        loads=tuple(builder.loads),
        document=document,
    )


def _machine(table: Table, builder: SignalBuilder) -> MachineSpec:
    sockets = table.whole("sockets", 1, low=1, high=16)
    load = []
    for entry in table.tables("load"):
        idle_watts = entry.number("idle_watts", low=0.0)
        full_watts = entry.number("full_watts", low=0.0)
        load.append(LoadSpec(builder.build(f"{entry.where}.signal", entry.take("signal")), idle_watts, full_watts))
        entry.done()
        if full_watts <= idle_watts:
            raise ConfigError(f"{entry.where}.full_watts: must be above idle_watts")
    if load and len(load) != sockets:
        raise ConfigError(f"{table.where}.load: must have one entry for each of the {sockets} sockets, or none")
    vendor = table.text("vendor", "GenuineIntel")
    cpus_per_socket = table.whole("cpus_per_socket", 4, low=1, high=1024)
    cores_per_socket = table.whole("cores_per_socket", cpus_per_socket, low=1, high=cpus_per_socket)
    if cpus_per_socket % cores_per_socket:
        raise ConfigError(f"{table.where}.cores_per_socket: {cpus_per_socket} CPUs are no multiple of it")
    has_msr = table.flag("msr", vendor == "GenuineIntel")
    if has_msr and vendor != "GenuineIntel":
        raise ConfigError(f"{table.where}.msr: only Intel's registers lie so far apart that a file can hold them")
    machine = MachineSpec(
        vendor=vendor,
        family=table.whole("family", 6, low=0, high=1000),
        model=table.whole("model", 85, low=0, high=1000),
        stepping=table.whole("stepping", 1, low=0, high=1000),
        cpu_name=table.text("cpu_name", "Emulated CPU"),
        sockets=sockets,
        cpus_per_socket=cpus_per_socket,
        cores_per_socket=cores_per_socket,
        has_msr=has_msr,
        memory_gib=table.number("memory_gib", 16.0, low=0.001),
        load=tuple(load),
    )
    table.done()
    return machine


def _zone(table: Table, builder: SignalBuilder) -> ZoneSpec:
    zone = table.text("zone")
    if _ZONE.fullmatch(zone) is None:
        raise ConfigError(f"{table.where}.zone: {zone!r} is not like intel-rapl:0:a (indices in hexadecimal)")
    signal = builder.build(f"{table.where}.signal", table.take("signal"))
    esu = table.whole("energy_status_unit", 16, low=0, high=31)
    exact_nj = table.whole("unit_nj", 0, low=0, high=10**9)
    wrap_at_s = table.number("wrap_at_s", -1.0)
    if wrap_at_s >= 0 and not signal.is_deterministic:
        raise ConfigError(f"{table.where}.wrap_at_s: cannot be foretold for a signal that follows the load")
    spec = ZoneSpec(
        zone=zone,
        name=table.text("name"),
        key=table.key(),
        signal=signal,
        unit_joules=exact_nj * 1e-9 if exact_nj else 2.0**-esu,
        unit_nj=exact_nj or 10**9 >> esu,
        counter_bits=table.whole("counter_bits", 32, low=8, high=64),
        start_joules=table.number("start_joules", 1000.0, low=0.0),
        wrap_at_s=wrap_at_s if wrap_at_s >= 0 else None,
        has_range=table.flag("range_file", True),
        power_limit_watts=table.number("power_limit_watts", 0.0, low=0.0),
        is_enabled=table.flag("enabled", True),
        faults=table.faults("reset", *FILE_FAULTS, "vanish"),
    )
    table.done()
    return spec


def _chip(table: Table, builder: SignalBuilder, refresh_s: float) -> ChipSpec:
    path = table.text("path")
    if path.startswith("/") or ".." in path.split("/") or not path.startswith("devices/"):
        raise ConfigError(f"{table.where}.path: {path!r} must be below devices/")
    spec = ChipSpec(
        chip=table.text("chip"),
        path=path.rstrip("/"),
        files_at_device=table.flag("files_at_device", False),
        files={str(name): str(value) for name, value in table.mapping("files").items()},
        channels=tuple(_channel(channel, builder, refresh_s) for channel in table.tables("channels")),
        faults=table.faults("vanish"),
    )
    table.done()
    if not spec.channels:
        raise ConfigError(f"{table.where}.channels: there is none")
    if any(not name or "/" in name for name in spec.files):
        raise ConfigError(f"{table.where}.files: a name must be that of a file, without a slash")
    return spec


def _channel(table: Table, builder: SignalBuilder, refresh_s: float) -> ChannelSpec:
    kind = table.choice("kind", ("power", "energy"), "power")
    is_average = table.flag("average", False)
    if is_average and kind == "energy":
        raise ConfigError(f"{table.where}.average: an energy counter has no average")
    update_s = table.number("update_s", 0.0, low=0.0, high=3600.0)
    spec = ChannelSpec(
        kind="energy" if kind == "energy" else "power",
        number=table.whole("number", 1, low=1, high=4096),
        label=table.text("label", ""),
        key=table.key(),
        signal=builder.build(f"{table.where}.signal", table.take("signal")),
        update_s=max(update_s, refresh_s),
        is_average=is_average,
        faults=table.faults("reset", *FILE_FAULTS) if kind == "energy" else table.faults(*FILE_FAULTS),
    )
    table.done()
    return spec
