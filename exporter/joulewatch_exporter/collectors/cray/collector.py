"""Cray EX (and XC) nodes: the energy counters of the node's own controller, ``sysfs/cray/pm_counters``.

Each file is one line, ``312 W 1700000000123456 us``: an integer of watts or joules, and the controller's time stamp.
The controller renews the whole set about ten times a second and counts ``freshness`` each time: equal before and after
a set, the set is of one instant. The files must be opened for each read.

``energy`` is the node: it holds CPUs, memory and accelerators, which have files of their own. Those are shown as parts
inside the node and never as devices, because RAPL, NVML and amdgpu count the same joules; and because on Grace Hopper
``accelN`` is the whole module, CPU included.

Sources: HPE CSM documentation, "User Access to Compute Node Power Data"; GEOPM ``geopm_pio_cnl(7)``; CSCS documentation
of the files on GH200 nodes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import denied_cure, list_names, read_text, read_text_or
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, SensorInfo, Timing

NAME: Final = "cray"
DEVICE: Final = "node"
TOTAL: Final = "total"

_FILE: Final = re.compile(r"(?:(?P<what>(?:cpu|memory|accel)\d*)_)?(?P<kind>power|energy)")
_LINE: Final = re.compile(r"(?P<value>-?\d+)\s+(?P<unit>[WJ])(?:\s+(?P<stamp_us>\d+)\s+us)?")
_UNITS: Final = {"power": "W", "energy": "J"}

_POLL_S: Final = 1.0
_TRIES: Final = 5
"""A set takes a millisecond and is renewed every hundred: the second try nearly always succeeds."""

_FROZEN_NS: Final = 5_000_000_000
"""Fifty periods of the controller without a new set: it no longer measures."""
_MAX_AGE_NS: Final = 5_000_000_000
"""A stamp older than this is of a clock that does not agree with ours; then the time of the read must do."""

_MAX_NODE_WATTS: Final = 50_000.0
_MAX_PART_WATTS: Final = 10_000.0
_ALL_ONES: Final = frozenset({2**32 - 1, 2**64 - 1})


@dataclass(frozen=True, slots=True)
class CrayOptions:
    """Settings under ``collectors.cray``."""

    parts: bool = True
    """False: the node only, without what its CPUs, memory and accelerators take of it."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """The files of the node or of one part."""

    what: str
    """Empty: the node."""
    has_energy: bool
    has_power: bool

    @property
    def stem(self) -> str:
        return f"{self.what}_" if self.what else ""


@dataclass(frozen=True, slots=True)
class _Value:
    number: int
    stamp_us: int | None


class CraySensor:
    """The node's controller: one consistent set of its counters at a time."""

    def __init__(self, directory: str, channels: Sequence[_Channel]) -> None:
        """Prepare; nothing is read yet.

        Args:
            directory: ``pm_counters``.
            channels: The node first.
        """
        self.device = DEVICE
        self._directory = directory
        self._channels = tuple(channels)
        self.infos = tuple(_info(directory, channel) for channel in channels)
        self._freshness = ""
        self._fresh_since_ns = 0
        self._stamp_us: int | None = None
        self._read_at_ns = 0

    def read(self) -> Sequence[Reading]:
        """Read one set.

        Returns:
            Energy and power of the node, and of the parts that could be read, at the controller's own time.

        Raises:
            SensorGlitchError: No consistent set, values that are none, or a controller that has stopped.
            SensorAbsentError: The files are gone.
            SensorDeniedError: The rights are gone.
        """
        for _ in range(_TRIES):
            before = (self._text("freshness"), read_text_or(f"{self._directory}/startup", ""))
            readings = self._read_set()
            # A restart of the controller is seen too: its counters begin anew.
            if (self._text("freshness"), read_text_or(f"{self._directory}/startup", "")) == before:
                self._check_moving(before[0])
                return readings
        raise SensorGlitchError(f"{self._directory}/freshness: changed during each of {_TRIES} reads")

    def _read_set(self) -> Sequence[Reading]:
        readings = []
        stamp_us = None
        for channel, info in zip(self._channels, self.infos, strict=True):
            is_node = not channel.what
            try:
                energy = self._value(channel, "energy") if channel.has_energy else None
                power = self._value(channel, "power") if channel.has_power else None
            except (SensorGlitchError, SensorDeniedError):
                if is_node:
                    raise
                continue  # a part can be missing; the node cannot
            if is_node:
                stamp_us = next((value.stamp_us for value in (energy, power) if value is not None), None)
                read_at_ns = self._time_of(stamp_us)
            joules = float(energy.number) if energy is not None else None
            # No part and no node draws exactly 0 W while it answers.
            watts = float(power.number) if power is not None and power.number > 0 else None
            if joules is None and watts is None:
                if is_node:
                    raise SensorGlitchError(f"{self._directory}/power: 0 W means that there is no data now")
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
            raise SensorGlitchError(f"{path}: {text[:60]!r} is not like '312 {_UNITS[kind]} 1700000000123456 us'")
        number = int(match["value"])
        if number < 0 or number in _ALL_ONES:
            raise SensorGlitchError(f"{path}: {number} is a register of ones, not a measurement")
        return _Value(number, int(match["stamp_us"]) if match["stamp_us"] else None)

    def _text(self, name: str) -> str:
        return read_text(f"{self._directory}/{name}")

    def _time_of(self, stamp_us: int | None) -> int:
        """Turn the controller's time into ours: never in the future, never before the last one."""
        now_ns = monotonic_ns()
        read_at_ns = now_ns
        if stamp_us is not None:
            if stamp_us == self._stamp_us:
                return self._read_at_ns  # the very same time for the very same values
            self._stamp_us = stamp_us
            age_ns = time.time_ns() - stamp_us * 1000
            if 0 <= age_ns <= _MAX_AGE_NS:
                read_at_ns = now_ns - age_ns
        self._read_at_ns = max(self._read_at_ns, read_at_ns)
        return self._read_at_ns

    def _check_moving(self, freshness: str) -> None:
        now_ns = monotonic_ns()
        if freshness != self._freshness:
            self._freshness, self._fresh_since_ns = freshness, now_ns
        elif now_ns - self._fresh_since_ns > _FROZEN_NS:
            raise SensorGlitchError(
                f"{self._directory}/freshness: still {freshness}: the controller no longer renews its values"
            )

    def close(self) -> None:
        """Nothing is held."""


class CrayCollector(OnDemandCollector):
    """The counters of the node's controller."""

    name: ClassVar[str] = NAME
    Options: ClassVar[type] = CrayOptions

    @property
    def timing(self) -> Timing:
        """Energy is counted there, power is shown: each second is enough for both."""
        return Timing(poll_s=_POLL_S, read_on_scrape=True)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Look for the counters and read them once.

        Args:
            host: Where sysfs is.
            options: `CrayOptions`.

        Raises:
            SensorAbsentError: No such directory, or neither power nor energy of the node in it.
            SensorDeniedError: They may not be read.
        """
        assert isinstance(options, CrayOptions)
        directory = f"{host.sysfs}/cray/pm_counters"
        try:
            names = list_names(directory)
        except SensorAbsentError as error:
            raise SensorAbsentError(f"{error}; this is no node of a Cray EX or XC") from error
        kinds: dict[str, set[str]] = {}
        for name in names:
            if (match := _FILE.fullmatch(name)) is not None:
                kinds.setdefault(match["what"] or "", set()).add(match["kind"])
        if "" not in kinds:
            raise SensorAbsentError(f"{directory}: neither energy nor power of the node")
        if "freshness" not in names:
            raise SensorAbsentError(f"{directory}/freshness: not there: whether values are new cannot be known")
        channels = [_Channel("", "energy" in kinds[""], "power" in kinds[""])]
        findings: list[Finding] = []
        parts = [_Channel(what, "energy" in kinds[what], "power" in kinds[what]) for what in sorted(kinds) if what]
        if options.parts:
            channels += [part for part in parts if not _is_denied(directory, part, findings)]
        sensor = CraySensor(directory, channels)
        try:
            sensor.read()
        except SensorDeniedError:
            raise
        except SensorError as error:
            findings.append(Finding(status="broken", collector=NAME, subject=directory, text=str(error)))
        findings += [_found(info) for info in sensor.infos]
        return cls([sensor], findings)


def _is_denied(directory: str, channel: _Channel, findings: list[Finding]) -> bool:
    for kind, is_there in (("energy", channel.has_energy), ("power", channel.has_power)):
        path = f"{directory}/{channel.stem}{kind}"
        try:
            if is_there:
                read_text(path)
        except SensorDeniedError as error:
            findings.append(
                Finding(status="denied", collector=NAME, subject=path, text=str(error), cure=denied_cure(path))
            )
            return True
        except SensorError:
            pass  # no value now may be a value later
    return False


def _info(directory: str, channel: _Channel) -> SensorInfo:
    kind = "energy" if channel.has_energy else "power"
    component: Component = "node"
    for prefix, meaning in _COMPONENTS:
        if channel.what.startswith(prefix):
            component = meaning
    return SensorInfo(
        quantity=Quantity(
            scope="part" if channel.what else "node", component=component, device=DEVICE, domain=channel.what or TOTAL
        ),
        method="counter" if channel.has_energy else "integrated",
        source=f"{directory}/{channel.stem}{kind}",
        model="pm_counters",
        resolution="1 J" if channel.has_energy else "1 W",
        max_power_watts=_MAX_PART_WATTS if channel.what else _MAX_NODE_WATTS,
    )


_COMPONENTS: Final[tuple[tuple[str, Component], ...]] = (("cpu", "cpu"), ("memory", "memory"), ("accel", "gpu"))


def _found(info: SensorInfo) -> Finding:
    text = "the node" if info.quantity.scope == "node" else f"{info.quantity.domain}, inside the node"
    return Finding(
        status="found",
        collector=NAME,
        subject=info.source,
        text=f"{text}: {'energy' if info.method == 'counter' else 'power'}",
    )
