"""Scenario files: which devices the emulated machine has, how their power moves, and what goes wrong when.

A scenario is YAML; an unknown key is an error that names the nearest valid one. `emulator/scenarios` holds the
built-in ones, and is the place to look for an example of every key.
"""

from __future__ import annotations

import copy
import csv
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from joulewatch_exporter.emulator.signals import Constant, CpuLoad, Phases, Points, Signal, Sine, Square, Sum, ramp
from joulewatch_exporter.errors import ConfigError

FaultKind = Literal["reset", "glitch", "denied", "vanish", "stuck"]

_ZONE: Final = re.compile(r"[a-z][a-z-]*(?::[0-9a-f]+)+")
_KEY: Final = re.compile(r"[^\s/]+/[^\s/]+")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a stated time."""

    kind: FaultKind
    at_s: float
    for_s: float
    """How long it lasts; a reset is over at once."""
    text: str
    """glitch: what the file then holds."""

    def is_on(self, t_s: float) -> bool:
        """Whether it lasts at ``t_s``."""
        return self.at_s <= t_s < self.at_s + self.for_s


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
    memory_gib: float
    load: tuple[LoadSpec, ...]
    """One for each socket, or none: idle."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole machine."""

    name: str
    description: str
    refresh_s: float
    machine: MachineSpec
    zones: tuple[ZoneSpec, ...]
    chips: tuple[ChipSpec, ...]
    signals_by_key: Mapping[str, Signal]
    """The truth: ``device/domain`` to its power."""
    loads: tuple[CpuLoad, ...]
    """The signals that must be told this machine's load."""
    document: Mapping[str, Any] = field(repr=False)
    """What was parsed, replays written out: `parse` makes the same scenario of it, on any machine."""

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
            f"{scenario}: neither a file nor a built-in scenario{_hint(scenario, names)}; built in: {', '.join(names)}"
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
    table = _Table(where, document)
    name = table.text("name")
    description = table.text("description", "")
    refresh_s = table.number("refresh_s", 0.01, low=0.001, high=60.0)
    builder = _Signals(folder or Path())
    for key, value in table.mapping("signals").items():
        builder.named[str(key)] = builder.build(f"{where}: signals.{key}", value)
    machine = _machine(table.table("machine"), builder)
    zones = tuple(_zone(zone, builder) for zone in table.tables("zones"))
    chips = tuple(_chip(chip, builder, refresh_s) for chip in table.tables("hwmon"))
    table.done()
    if not zones and not chips:
        raise ConfigError(f"{where}: neither zones nor hwmon: nothing to emulate")
    signals_by_key: dict[str, Signal] = {}
    keyed = [*((zone.key, zone.signal) for zone in zones)]
    keyed += [(channel.key, channel.signal) for chip in chips for channel in chip.channels]
    for key, signal in keyed:
        if signals_by_key.setdefault(key, signal) is not signal and signals_by_key[key] != signal:
            raise ConfigError(f"{where}: key {key}: two sensors of one key must have one signal")
    _check_unique(where, "zone", [zone.zone for zone in zones])
    return Scenario(name, description, refresh_s, machine, zones, chips, signals_by_key, tuple(builder.loads), document)


def _check_unique(where: str, what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {what} {name} is there twice")


def _machine(table: _Table, builder: _Signals) -> MachineSpec:
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
    machine = MachineSpec(
        vendor=table.text("vendor", "GenuineIntel"),
        family=table.whole("family", 6, low=0, high=1000),
        model=table.whole("model", 85, low=0, high=1000),
        stepping=table.whole("stepping", 1, low=0, high=1000),
        cpu_name=table.text("cpu_name", "Emulated CPU"),
        sockets=sockets,
        cpus_per_socket=table.whole("cpus_per_socket", 4, low=1, high=1024),
        memory_gib=table.number("memory_gib", 16.0, low=0.001),
        load=tuple(load),
    )
    table.done()
    return machine


def _zone(table: _Table, builder: _Signals) -> ZoneSpec:
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
        key=_key(table),
        signal=signal,
        unit_joules=exact_nj * 1e-9 if exact_nj else 2.0**-esu,
        unit_nj=exact_nj or 10**9 >> esu,
        counter_bits=table.whole("counter_bits", 32, low=8, high=64),
        start_joules=table.number("start_joules", 1000.0, low=0.0),
        wrap_at_s=wrap_at_s if wrap_at_s >= 0 else None,
        has_range=table.flag("range_file", True),
        power_limit_watts=table.number("power_limit_watts", 0.0, low=0.0),
        is_enabled=table.flag("enabled", True),
        faults=_faults(table, get_args(FaultKind)),
    )
    table.done()
    return spec


def _chip(table: _Table, builder: _Signals, refresh_s: float) -> ChipSpec:
    path = table.text("path")
    if path.startswith("/") or ".." in path.split("/") or not path.startswith("devices/"):
        raise ConfigError(f"{table.where}.path: {path!r} must be below devices/")
    spec = ChipSpec(
        chip=table.text("chip"),
        path=path.rstrip("/"),
        files_at_device=table.flag("files_at_device", False),
        files={str(name): str(value) for name, value in table.mapping("files").items()},
        channels=tuple(_channel(channel, builder, refresh_s) for channel in table.tables("channels")),
        faults=_faults(table, ("vanish",)),
    )
    table.done()
    if not spec.channels:
        raise ConfigError(f"{table.where}.channels: there is none")
    if any(not name or "/" in name for name in spec.files):
        raise ConfigError(f"{table.where}.files: a name must be that of a file, without a slash")
    return spec


def _channel(table: _Table, builder: _Signals, refresh_s: float) -> ChannelSpec:
    kind = table.choice("kind", ("power", "energy"), "power")
    is_average = table.flag("average", False)
    if is_average and kind == "energy":
        raise ConfigError(f"{table.where}.average: an energy counter has no average")
    update_s = table.number("update_s", 0.0, low=0.0, high=3600.0)
    spec = ChannelSpec(
        kind="energy" if kind == "energy" else "power",
        number=table.whole("number", 1, low=1, high=4096),
        label=table.text("label", ""),
        key=_key(table),
        signal=builder.build(f"{table.where}.signal", table.take("signal")),
        update_s=max(update_s, refresh_s),
        is_average=is_average,
        faults=_faults(
            table, ("reset", "glitch", "denied", "stuck") if kind == "energy" else ("glitch", "denied", "stuck")
        ),
    )
    table.done()
    return spec


def _key(table: _Table) -> str:
    key = table.text("key")
    if _KEY.fullmatch(key) is None:
        raise ConfigError(f"{table.where}.key: {key!r} is not like socket0/package")
    return key


def _faults(table: _Table, kinds: Sequence[str]) -> tuple[Fault, ...]:
    faults = []
    for entry in table.tables("faults"):
        kind = entry.choice("kind", kinds)
        at_s = entry.number("at_s", low=0.0)
        for_s = 0.0 if kind == "reset" else entry.number("for_s", low=0.0)
        text = entry.text("text", "garbage") if kind == "glitch" else ""
        entry.done()
        faults.append(Fault(_as_fault_kind(kind), at_s, for_s, text))
    return tuple(faults)


def _as_fault_kind(kind: str) -> FaultKind:
    for known in get_args(FaultKind):
        if kind == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"fault {kind!r} is none of {', '.join(get_args(FaultKind))}")


class _Signals:
    """Builds signals, and knows the named ones."""

    KINDS: Final = (
        "constant",
        "step",
        "square",
        "ramp",
        "sine",
        "sum",
        "scale",
        "phases",
        "replay",
        "cpu_load",
    )

    def __init__(self, folder: Path) -> None:
        self.named: dict[str, Signal] = {}
        self.loads: list[CpuLoad] = []
        self._folder = folder

    def build(self, where: str, value: Any) -> Signal:
        """Make a signal of a number (constant watts), the name of a signal, or a mapping with ``kind``."""
        if isinstance(value, str):
            if value not in self.named:
                raise ConfigError(f"{where}: no signal is called {value!r} above{_hint(value, tuple(self.named))}")
            return self.named[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return Constant(_checked(where, float(value), 0.0, math.inf))
        table = _Table(where, value)
        kind = table.choice("kind", self.KINDS)
        signal = getattr(self, f"_{kind}")(table)
        table.done()
        assert isinstance(signal, Constant | Points | Square | Sine | Sum | Phases | CpuLoad)
        return signal

    def _constant(self, table: _Table) -> Signal:
        return Constant(table.number("watts", low=0.0))

    def _step(self, table: _Table) -> Signal:
        return self._from_points(table, table.take("points"), is_linear=False)

    def _square(self, table: _Table) -> Signal:
        return Square(
            low_watts=table.number("low_watts", low=0.0),
            high_watts=table.number("high_watts", low=0.0),
            period_s=table.number("period_s", low=1e-6),
            duty=table.number("duty", 0.5, low=0.0, high=1.0),
            phase_s=table.number("phase_s", 0.0),
        )

    def _ramp(self, table: _Table) -> Signal:
        return ramp(
            table.number("from_watts", low=0.0),
            table.number("to_watts", low=0.0),
            table.number("duration_s", low=1e-6),
            start_s=table.number("start_s", 0.0, low=0.0),
            repeats=table.flag("repeat", False),
        )

    def _sine(self, table: _Table) -> Signal:
        signal = Sine(
            mean_watts=table.number("mean_watts", low=0.0),
            amplitude_watts=table.number("amplitude_watts", low=0.0),
            period_s=table.number("period_s", low=1e-6),
            phase_s=table.number("phase_s", 0.0),
        )
        if signal.amplitude_watts > signal.mean_watts:
            raise ConfigError(f"{table.where}.amplitude_watts: above mean_watts, the power would be negative")
        return signal

    def _sum(self, table: _Table) -> Signal:
        terms = tuple(self.build(f"{table.where}.of[{i}]", term) for i, term in enumerate(table.sequence("of")))
        return Sum(terms, (1.0,) * len(terms))

    def _scale(self, table: _Table) -> Signal:
        return Sum((self.build(f"{table.where}.signal", table.take("signal")),), (table.number("factor", low=0.0),))

    def _phases(self, table: _Table) -> Signal:
        signals, durations_s = [], []
        for entry in table.tables("of"):
            signal = self.build(f"{entry.where}.signal", entry.take("signal"))
            if not signal.is_deterministic:
                raise ConfigError(f"{entry.where}.signal: a signal that follows the load cannot be a phase")
            signals.append(signal)
            durations_s.append(entry.number("duration_s", low=1e-6))
            entry.done()
        if not signals:
            raise ConfigError(f"{table.where}.of: there is none")
        return Phases(tuple(signals), tuple(durations_s))

    def _replay(self, table: _Table) -> Signal:
        is_linear = table.choice("interpolate", ("hold", "linear"), "linear") == "linear"
        file = table.text("file", "")
        if not file:
            return self._from_points(table, table.take("points"), is_linear=is_linear)
        points = _read_replay(f"{table.where}.file", self._folder / file)
        # Written out, so that scenario.json needs no other file.
        table.replace("file", "points", points)
        return self._from_points(table, points, is_linear=is_linear)

    def _cpu_load(self, table: _Table) -> Signal:
        signal = CpuLoad(table.number("idle_watts", low=0.0), table.number("full_watts", low=0.0))
        self.loads.append(signal)
        return signal

    def _from_points(self, table: _Table, points: Any, *, is_linear: bool) -> Signal:
        where = f"{table.where}.points"
        repeats = table.flag("repeat", False)
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise ConfigError(f"{where}: must be a list of [seconds, watts]")
        times_s = tuple(_number(f"{where}: seconds", point[0], 0.0, math.inf) for point in points)
        watts = tuple(_number(f"{where}: watts", point[1], 0.0, math.inf) for point in points)
        try:
            return Points(times_s, watts, is_linear=is_linear, repeats=repeats)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error


def _read_replay(where: str, path: Path) -> list[list[float]]:
    """Read a CSV file with the columns time_s and watts; its first line is the scenario's start."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: {path}: {error}") from error
    if not rows or not {"time_s", "watts"} <= set(rows[0]):
        raise ConfigError(f"{where}: {path}: must have the columns time_s and watts, and one row at least")
    points = []
    for line, row in enumerate(rows, start=2):
        try:
            points.append([float(row["time_s"]), float(row["watts"])])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {path}: line {line}: {error}") from error
    start_s = points[0][0]
    return [[time_s - start_s, watts] for time_s, watts in points]


_MISSING: Final = object()


class _Table:
    """One mapping of the file: values are taken by name, and what nobody took is an error."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be a mapping of keys to values")
        self.where = where
        self._value: dict[Any, Any] = value
        self._known: set[str] = set()

    def take(self, key: str, default: Any = _MISSING) -> Any:
        self._known.add(key)
        value = self._value.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}.{key}: is missing")
        return value

    def replace(self, key: str, by: str, value: Any) -> None:
        """Put another key in a key's place."""
        del self._value[key]
        self._value[by] = value
        self._known.add(by)

    def text(self, key: str, default: Any = _MISSING) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}.{key}: {value!r} is not text (put it in quotes)")
        return value

    def number(self, key: str, default: Any = _MISSING, *, low: float = -math.inf, high: float = math.inf) -> float:
        return _number(f"{self.where}.{key}", self.take(key, default), low, high)

    def whole(self, key: str, default: Any = _MISSING, *, low: int, high: int) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.where}.{key}: {value!r} is no whole number")
        return int(_checked(f"{self.where}.{key}", value, low, high))

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}.{key}: {value!r} is neither true nor false")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _MISSING) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise ConfigError(f"{self.where}.{key}: {value!r} is none of {', '.join(choices)}{_hint(value, choices)}")
        return value

    def sequence(self, key: str) -> list[Any]:
        value = self.take(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.where}.{key}: must be a list")
        return value

    def mapping(self, key: str) -> dict[Any, Any]:
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}.{key}: must be a mapping of names to values")
        return value

    def table(self, key: str) -> _Table:
        return _Table(f"{self.where}.{key}", self.mapping(key))

    def tables(self, key: str) -> list[_Table]:
        return [_Table(f"{self.where}.{key}[{i}]", value) for i, value in enumerate(self.sequence(key))]

    def done(self) -> None:
        """Refuse what nobody took."""
        for key in self._value:
            if key not in self._known:
                known = tuple(sorted(self._known))
                raise ConfigError(
                    f"{self.where}: unknown key {key!r}{_hint(str(key), known)}; known: {', '.join(known)}"
                )


def _number(where: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: {value!r} is no number")
    return float(_checked(where, value, low, high))


def _checked(where: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high or not math.isfinite(value):
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigError(f"{where}: {value:g} must be {limits}")
    return value


def _hint(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
