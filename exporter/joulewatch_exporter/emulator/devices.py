"""What a scenario's machine has beyond its own files: GPUs, FPGA cards, a Cray blade's meters, BMCs, Redfish services.

Each family is emulated by a module of its own; here they are read from the scenario, opened, and run, each device on a
thread of its own: one that fails or hangs holds up neither the files nor the other devices. What cannot be emulated on
this machine (no compiler, a library that is not installed) is left out, and said.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from joulewatch_exporter.emulator.bmc import BMC_FAULTS, Bmc, BmcSpec
from joulewatch_exporter.emulator.builder import SignalBuilder
from joulewatch_exporter.emulator.cray import PmCounters, PmCountersSpec
from joulewatch_exporter.emulator.faults import FILE_FAULTS
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.fpga import CardSpec, FpgaTree
from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.redfish.service import RedfishService
from joulewatch_exporter.emulator.redfish.spec import REDFISH_FAULTS, RedfishSpec
from joulewatch_exporter.emulator.signals import Signal, Sum
from joulewatch_exporter.emulator.specs import build
from joulewatch_exporter.emulator.table import Table, check_unique
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

_GPU_FAULTS: Final = ("reset", "absent", "vanish", "hang", "denied", "glitch", "eio", "garbage", "stuck")
_CARD_FAULTS: Final = (*FILE_FAULTS, "vanish")
_CRAY_FAULTS: Final = ("reset", *FILE_FAULTS, "vanish")

_NETWORK_TICK_S: Final = 0.1
"""What is read over a network makes a new value each second: no need to look at its timetable a hundred times. One
that is told to be quicker than this is moved as often as it makes a value."""
_SHORTEST_INTERVAL_S: Final = 1.0
"""A machine's own BMC is asked as often as it makes a new value, a fleet's as seldom as the exporter does by itself."""
_RETRY_S: Final = 1.0
_CLOSING_S: Final = 2.0


class Emulated(Protocol):
    """An emulated device."""

    def advance(self, t_s: float) -> None:
        """Bring it to ``t_s`` seconds after the start."""
        ...

    def close(self) -> None:
        """Let go of what it holds; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The devices of a scenario, as described."""

    gpus: tuple[GpuSpec, ...] = ()
    fpgas: tuple[CardSpec, ...] = ()
    cray: PmCountersSpec | None = None
    bmcs: tuple[BmcSpec, ...] = ()
    redfish: tuple[RedfishSpec, ...] = ()

    @classmethod
    def parse(cls, table: Table, signals: SignalBuilder) -> Devices:
        """Take the devices out of a scenario.

        Raises:
            ConfigError: A key or value is wrong.
        """
        devices = cls(
            gpus=tuple(build(GpuSpec, entry, signals, _GPU_FAULTS) for entry in table.tables("gpus")),
            fpgas=tuple(build(CardSpec, entry, signals, _CARD_FAULTS) for entry in table.tables("fpgas")),
            cray=build(PmCountersSpec, table.table("cray"), signals, _CRAY_FAULTS) if table.has("cray") else None,
            bmcs=tuple(build(BmcSpec, entry, signals, BMC_FAULTS) for entry in table.tables("bmcs")),
            redfish=tuple(build(RedfishSpec, entry, signals, REDFISH_FAULTS) for entry in table.tables("redfish")),
        )
        for what, names in (
            ("gpus: uuid", [gpu.uuid for gpu in devices.gpus]),
            ("gpus: bus_id", [gpu.bus_id for gpu in devices.gpus]),
            ("fpgas: card", [card.card for card in devices.fpgas]),
            # Both are nodes to the exporter, and two nodes of one name would be one series.
            (
                "bmcs and redfish: name",
                [bmc.name for bmc in devices.bmcs] + [service.name for service in devices.redfish],
            ),
        ):
            check_unique(table.where, what, names)
        return devices

    @property
    def are_none(self) -> bool:
        """Whether there is none."""
        return self == Devices()

    @property
    def are_local(self) -> bool:
        """Whether there are some that a machine has inside."""
        return bool(self.gpus or self.fpgas or self.cray)

    def keyed_signals(self) -> Iterator[tuple[str, Signal]]:
        """Give the truth: ``device/domain`` and its power."""
        for gpu in self.gpus:
            yield from _gpu_truth(gpu).items()
        for card in self.fpgas:
            yield from card.truth.items()
        if self.cray is not None:
            yield from self.cray.truth.items()
        for bmc in self.bmcs:
            yield bmc.key, bmc.signal
        for service in self.redfish:
            yield from _redfish_truth(service).items()


def _gpu_truth(spec: GpuSpec) -> Mapping[str, Signal]:
    """The energy counter; the same power by other readings; and what is a part, or around it."""
    average = spec.signal if spec.averaging_s else None
    others = {"instant": spec.signal, "average": average, "memory": spec.memory, "module": spec.module}
    return {spec.key: spec.signal} | {f"{spec.uuid}/{name}": power for name, power in others.items() if power}


def _redfish_truth(spec: RedfishSpec) -> Mapping[str, Signal]:
    """Each chassis, and in the resource Power its supplies and sub-totals."""
    count = len(spec.chassis)
    truth: dict[str, Signal] = {}
    for device in [spec.name] if count == 1 else [f"{spec.name}/{chassis}" for chassis in spec.chassis]:
        truth[f"{device}/total"] = spec.signal if count == 1 else Sum((spec.signal,), (1 / count,))
        if spec.flavour == "modern":
            continue
        for index, share in enumerate(spec.supplies):
            truth[f"{device}/psu{index}_input"] = Sum((spec.signal,), (share / count,))
            truth[f"{device}/psu{index}_output"] = Sum((spec.signal,), (share / count * spec.supply_efficiency,))
        if spec.cpu_share > 0:
            truth[f"{device}/cpu_sub_system_power"] = Sum((spec.signal,), (spec.cpu_share / count,))
    return truth


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A device that cannot be emulated here."""

    what: str
    why: str
    """With the cure."""
    keys: tuple[str, ...]
    """Of the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A device that is emulated, and how the exporter finds it."""

    what: str
    device: Emulated
    tick_s: float
    settings: Mapping[str, Mapping[str, Any]]
    """Of the exporter: collector to options; lists of several devices are joined."""
    begin: Callable[[int], None] = field(default=lambda _start_ns: None)
    """Called once with the monotonic time of the start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where devices are put."""

    directory: Path
    """The machine's, absolute; its trees and ``.scratch`` are there already."""
    refresh_s: float
    """How often files move."""
    is_one_machine: bool
    """Whether there is more than BMCs and Redfish services: these are then the machine's own, else those of a fleet."""


def open_devices(devices: Devices, place: Place) -> tuple[list[Running], list[LeftOut]]:
    """Start all devices that can be emulated here."""
    running: list[Running] = []
    left_out: list[LeftOut] = []
    for start in _starts(devices, place):
        try:
            running.append(start.open())
        except (ConfigError, OSError, ImportError) as error:
            left_out.append(LeftOut(start.what, str(error), start.keys))
        except BaseException:
            for other in running:
                other.device.close()
            raise
    return running, left_out


@dataclass(frozen=True, slots=True)
class _Start:
    """A device that is not yet running."""

    what: str
    keys: tuple[str, ...]
    open: Callable[[], Running]


def _starts(devices: Devices, place: Place) -> Iterator[_Start]:
    if devices.gpus:
        keys = tuple(key for gpu in devices.gpus for key in _gpu_truth(gpu))
        yield _Start("GPUs", keys, lambda: _open_gpus(devices.gpus, place))
    if devices.fpgas:
        keys = tuple(key for card in devices.fpgas for key in card.truth)
        yield _Start("FPGA cards", keys, lambda: _open_cards(devices.fpgas, place))
    if (cray := devices.cray) is not None:
        yield _Start("pm_counters", tuple(cray.truth), lambda: _open_cray(cray, place))
    for bmc in devices.bmcs:
        yield _Start(f"BMC {bmc.name}", (bmc.key,), functools.partial(_open_bmc, bmc, place))
    for service in devices.redfish:
        keys = tuple(_redfish_truth(service))
        yield _Start(f"Redfish {service.name}", keys, functools.partial(_open_redfish, service, place))


def _open_gpus(specs: tuple[GpuSpec, ...], place: Place) -> Running:
    library = NvmlLibrary(specs, place.directory)

    def begin(start_ns: int) -> None:
        library.start_monotonic_ns = start_ns

    return Running(
        what="GPUs",
        device=library,
        tick_s=place.refresh_s,
        settings={"nvml": {"library": str(library.path)}},
        begin=begin,
    )


def _open_cards(specs: tuple[CardSpec, ...], place: Place) -> Running:
    scratch = place.directory / ".scratch"
    cards = FpgaTree(specs, place.directory / "sys", Writer(scratch), scratch)
    return Running(what="FPGA cards", device=cards, tick_s=place.refresh_s, settings={})


def _open_cray(spec: PmCountersSpec, place: Place) -> Running:
    scratch = place.directory / ".scratch"
    counters = PmCounters(spec, place.directory / "sys", Writer(scratch), scratch)
    return Running(what="pm_counters", device=counters, tick_s=place.refresh_s, settings={})


def _open_bmc(spec: BmcSpec, place: Place) -> Running:
    bmc = Bmc(spec, place.directory)
    target = {
        "name": spec.name,
        "address": spec.address,
        "port": bmc.port,
        "user": spec.user,
        "password_file": str(bmc.password_file),
    }
    return _over_network(f"BMC {spec.name}", bmc, "ipmi", target, spec.refresh_s, place)


def _open_redfish(spec: RedfishSpec, place: Place) -> Running:
    service = RedfishService(spec, place.directory)
    return _over_network(f"Redfish {spec.name}", service, "redfish", service.target, spec.refresh_s, place)


def _over_network(
    what: str, device: Emulated, collector: str, target: Mapping[str, Any], refresh_s: float, place: Place
) -> Running:
    """What the exporter asks by an entry in its collector's list of targets."""
    own: dict[str, Any] = {}
    if place.is_one_machine:
        own = {"this_machine": True, "interval_seconds": max(_SHORTEST_INTERVAL_S, refresh_s)}
    return Running(
        what=what,
        device=device,
        tick_s=min(_NETWORK_TICK_S, refresh_s),
        settings={collector: {"targets": [{**target, **own}]}},
    )


def exporter_collectors(running: Iterable[Running]) -> dict[str, dict[str, Any]]:
    """Join what the exporter has to be told of each device."""
    collectors: dict[str, dict[str, Any]] = {}
    for one in running:
        for collector, options in one.settings.items():
            joined = collectors.setdefault(collector, {})
            for key, value in options.items():
                joined[key] = [*joined.get(key, []), *value] if isinstance(value, list) else value
    return collectors


class Companion:
    """Moves one device, on a thread of its own."""

    def __init__(self, running: Running, start_ns: int) -> None:
        """Begin at once.

        Args:
            running: The device; it is closed at the end.
            start_ns: Monotonic time of the scenario's start.
        """
        self._running = running
        self._start_ns = start_ns
        self._stop = threading.Event()
        self._has_moved = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"emulate-{running.what}", daemon=True)
        self._thread.start()

    def settle(self, timeout_s: float) -> None:
        """Wait until it has moved once."""
        if not self._has_moved.wait(timeout_s):
            logger.warning("%s: does not move; the other devices go on", self._running.what)

    def stop(self) -> None:
        """Ask it to end; does not wait."""
        self._stop.set()

    def join(self) -> None:
        """Wait for its end, but not for ever."""
        self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        running, has_failed = self._running, False
        tick_ns = round(running.tick_s * 1e9)
        try:
            running.begin(self._start_ns)
            while not self._stop.is_set():
                pause_s = 0.0
                try:
                    running.device.advance((time.monotonic_ns() - self._start_ns) / 1e9)
                except Exception:
                    if not has_failed:
                        logger.exception("%s: cannot be moved; it is tried again, this is said once", running.what)
                    has_failed = True
                    pause_s = _RETRY_S
                self._has_moved.set()
                # From the start, not from the last wake-up.
                now_ns = time.monotonic_ns() - self._start_ns
                self._stop.wait(max(pause_s, ((now_ns // tick_ns + 1) * tick_ns - now_ns) / 1e9))
        finally:
            running.device.close()
