"""Energy counters of the node controller in Cray EX and XC nodes: ``sysfs/cray/pm_counters``.

Each file has one line, ``312 W 1700000000123456 us``: an integer number of watts or joules and the controller's
timestamp. The controller updates all files about ten times a second and increments ``freshness`` each time: if it is
the same before and after reading, all values are from one update. The files must be reopened for each read.

``energy`` is the whole node. CPUs, memory and accelerators have files too; they are published as parts of the node,
never as devices, because RAPL, NVML and amdgpu count the same joules, and because on Grace Hopper ``accelN`` is the
whole module including its CPU.

Sources: HPE CSM documentation, "User Access to Compute Node Power Data"; GEOPM ``geopm_pio_cnl(7)``; CSCS documentation
of the files on GH200 nodes.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import denied_cure, list_names, read_text, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, SensorInfo, Timing

NAME: Final = "cray"
DEVICE: Final = "node"
TOTAL: Final = "total"

_FILE: Final = re.compile(r"(?:(?P<part>(?:cpu|memory|accel)\d*)_)?(?P<kind>power|energy)")
_LINE: Final = re.compile(r"(?P<value>-?\d+)\s+(?P<unit>[WJ])(?:\s+(?P<timestamp_us>\d+)\s+us)?")
_UNITS: Final = {"power": "W", "energy": "J"}

_POLL_S: Final = 1.0
_PERIOD_S: Final = 0.1
_TRIES: Final = 5
"""Reading all files takes about 1 ms of the 100 ms between updates: the second try nearly always succeeds."""

_FROZEN_NS: Final = 5_000_000_000
"""Fifty update periods without an update: the controller has stopped measuring."""
_MAX_AGE_NS: Final = 5_000_000_000
"""An older timestamp means that the controller's clock is wrong; the time of the read is used instead."""

_MAX_NODE_WATTS: Final = 50_000.0
_MAX_PART_WATTS: Final = 10_000.0
_ALL_ONES: Final = frozenset({2**32 - 1, 2**64 - 1})


@dataclass(frozen=True, slots=True)
class CrayOptions:
    """Settings under ``collectors.cray``."""

    parts: bool = True
    """False: publish only the node, without its CPUs, memory and accelerators."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """The files of the node or of one part."""

    part: str
    """Name of the part; empty: the node."""
    has_energy: bool
    has_power: bool

    @property
    def stem(self) -> str:
        return f"{self.part}_" if self.part else ""


@dataclass(frozen=True, slots=True)
class _Value:
    number: int
    timestamp_us: int | None


class CraySensor:
    """The node controller; each read returns values of one update."""

    def __init__(self, directory: str, channels: Sequence[_Channel]) -> None:
        """Prepare without reading.

        Args:
            directory: The folder ``pm_counters``.
            channels: The node, then its parts.
        """
        self.device = DEVICE
        self._directory = directory
        self._channels = tuple(channels)
        self.infos = tuple(_info(directory, channel) for channel in channels)
        self._freshness = ""
        self._fresh_since_ns = 0
        self._timestamp_us: int | None = None
        self._read_at_ns = 0

    def read(self) -> Sequence[Reading]:
        """Read all values of one update.

        Returns:
            Energy and power of the node and of its readable parts, with the controller's timestamp.

        Raises:
            SensorGlitchError: No consistent values, invalid values, or the controller has stopped.
            SensorAbsentError: The files disappeared.
            SensorDeniedError: Permission was lost.
        """
        for _ in range(_TRIES):
            before = (self._text("freshness"), read_text_or(f"{self._directory}/startup", ""))
            readings = self._read_all()
            # `startup` detects a restart of the controller, which resets its counters.
            if (self._text("freshness"), read_text_or(f"{self._directory}/startup", "")) == before:
                self._check_updates(before[0])
                return readings
        raise SensorGlitchError(f"{self._directory}/freshness: changed during each of {_TRIES} reads")

    def _read_all(self) -> Sequence[Reading]:
        readings = []
        for channel, info in zip(self._channels, self.infos, strict=True):
            is_node = not channel.part
            try:
                energy = self._value(channel, "energy") if channel.has_energy else None
                power = self._value(channel, "power") if channel.has_power else None
            except (SensorGlitchError, SensorDeniedError):
                if is_node:
                    raise
                continue  # a part can be missing; the node cannot
            if is_node:
                timestamp_us = next((value.timestamp_us for value in (energy, power) if value is not None), None)
                read_at_ns = self._time_of(timestamp_us)
            joules = float(energy.number) if energy is not None else None
            # Nothing that is powered draws exactly 0 W.
            watts = float(power.number) if power is not None and power.number > 0 else None
            if joules is None and watts is None:
                if is_node:
                    raise SensorGlitchError(f"{self._directory}/power: 0 W: the controller has no data now")
                continue
            readings.append(
                Reading(quantity=info.quantity, read_at_ns=read_at_ns, energy_joules=joules, power_watts=watts)
            )
        return readings

    def _value(self, channel: _Channel, kind: Literal["power", "energy"]) -> _Value:
        path = f"{self._directory}/{channel.stem}{kind}"
        text = read_text(path)
        match = _LINE.fullmatch(text)
        if match is None or match["unit"] != _UNITS[kind]:
            raise SensorGlitchError(
                f"{path}: {text[:60]!r} does not look like '312 {_UNITS[kind]} 1700000000123456 us'"
            )
        number = int(match["value"])
        if number < 0 or number in _ALL_ONES:
            raise SensorGlitchError(f"{path}: {number} is not a measurement")
        return _Value(number, int(match["timestamp_us"]) if match["timestamp_us"] else None)

    def _text(self, name: str) -> str:
        return read_text(f"{self._directory}/{name}")

    def _time_of(self, timestamp_us: int | None) -> int:
        """Convert a timestamp to monotonic time: never in the future, never before the previous one."""
        now_ns = monotonic_ns()
        read_at_ns = now_ns
        if timestamp_us is not None:
            if timestamp_us == self._timestamp_us:
                return self._read_at_ns  # the same values must have the same time
            self._timestamp_us = timestamp_us
            age_ns = time.time_ns() - timestamp_us * 1000
            if 0 <= age_ns <= _MAX_AGE_NS:
                read_at_ns = now_ns - age_ns
        self._read_at_ns = max(self._read_at_ns, read_at_ns)
        return self._read_at_ns

    def _check_updates(self, freshness: str) -> None:
        now_ns = monotonic_ns()
        if freshness != self._freshness:
            self._freshness, self._fresh_since_ns = freshness, now_ns
        elif now_ns - self._fresh_since_ns > _FROZEN_NS:
            raise SensorGlitchError(
                f"{self._directory}/freshness: still {freshness}: the controller has stopped updating its values"
            )

    def close(self) -> None:
        """Do nothing: no file stays open."""


class CrayCollector(OnDemandCollector):
    """The counters of the node controller."""

    name: ClassVar[str] = NAME
    experimental: ClassVar[str] = "has not been run on a Cray EX node"
    Options: ClassVar[type] = CrayOptions

    @property
    def timing(self) -> Timing:
        """Read once per second: the controller itself integrates the energy."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the counters and read them once.

        Args:
            host: Where sysfs is.
            options: `CrayOptions`.

        Raises:
            SensorAbsentError: The folder is missing, or has neither power nor energy of the node.
            SensorDeniedError: The files cannot be read.
            SensorTimeoutError: A read hangs.
        """
        assert isinstance(options, CrayOptions)
        directory = f"{host.sysfs}/cray/pm_counters"
        try:
            names = list_names(directory)
        except SensorAbsentError as error:
            raise SensorAbsentError(f"{error}; not a Cray EX or XC node") from error
        kinds: dict[str, set[str]] = {}
        for name in names:
            if (match := _FILE.fullmatch(name)) is not None:
                kinds.setdefault(match["part"] or "", set()).add(match["kind"])
        if "" not in kinds:
            raise SensorAbsentError(f"{directory}: neither energy nor power of the node")
        if "freshness" not in names:
            raise SensorAbsentError(f"{directory}/freshness: missing: cannot detect whether values are new")
        channels = [_Channel("", "energy" in kinds[""], "power" in kinds[""])]
        findings: list[Finding] = []
        parts = [_Channel(part, "energy" in kinds[part], "power" in kinds[part]) for part in sorted(kinds) if part]
        with contextlib.closing(Prober(NAME, findings)) as prober:
            opened = prober.call(
                directory, DEVICE, partial(_open_sensor, directory, channels, parts if options.parts else [])
            )
            prober.check()
        assert opened is not None
        sensor, more = opened
        findings += more
        findings += [_found(info) for info in sensor.infos]
        return cls([sensor], findings)


def _open_sensor(
    directory: str, channels: Sequence[_Channel], parts: Sequence[_Channel]
) -> tuple[CraySensor, list[Finding]]:
    """Return the sensor of the node and of its readable parts, read once."""
    findings: list[Finding] = []
    readable = [part for part in parts if not _is_denied(directory, part, findings)]
    sensor = CraySensor(directory, [*channels, *readable])
    try:
        sensor.read()
    except SensorDeniedError as error:
        raise SensorDeniedError(str(error), devices=[DEVICE]) from error
    except SensorError as error:
        findings.append(Finding(status="broken", collector=NAME, subject=directory, text=str(error)))
    return sensor, findings


def _is_denied(directory: str, channel: _Channel, findings: list[Finding]) -> bool:
    for kind, exists in (("energy", channel.has_energy), ("power", channel.has_power)):
        path = f"{directory}/{channel.stem}{kind}"
        try:
            if exists:
                read_text(path)
        except SensorDeniedError as error:
            findings.append(
                Finding(status="denied", collector=NAME, subject=path, text=str(error), cure=denied_cure(path))
            )
            return True
        except SensorError:
            pass  # a later read may succeed
    return False


def _info(directory: str, channel: _Channel) -> SensorInfo:
    kind = "energy" if channel.has_energy else "power"
    component: Component = "node"
    for prefix, part_component in _COMPONENTS:
        if channel.part.startswith(prefix):
            component = part_component
    return SensorInfo(
        quantity=Quantity(
            scope="part" if channel.part else "node", component=component, device=DEVICE, domain=channel.part or TOTAL
        ),
        method="counter" if channel.has_energy else "integrated",
        source=f"{directory}/{channel.stem}{kind}",
        model="pm_counters",
        resolution="1 J" if channel.has_energy else "1 W",
        max_power_watts=_MAX_PART_WATTS if channel.part else _MAX_NODE_WATTS,
        read_mode="polled",  # by the controller, whose timestamps these are
        period_s=_PERIOD_S,
    )


_COMPONENTS: Final[tuple[tuple[str, Component], ...]] = (("cpu", "cpu"), ("memory", "memory"), ("accel", "gpu"))


def _found(info: SensorInfo) -> Finding:
    text = "the node" if info.quantity.scope == "node" else f"{info.quantity.domain}, part of the node"
    return Finding(
        status="found",
        collector=NAME,
        subject=info.source,
        text=f"{text}: {'energy' if info.method == 'counter' else 'power'}",
    )
