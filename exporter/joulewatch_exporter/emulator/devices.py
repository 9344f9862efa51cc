"""Open and update the devices of a scenario: GPUs, FPGA cards, the meters of a Cray node, BMCs, Redfish services.

Each device is updated on its own thread, so one that fails or hangs delays neither the files nor the other devices.
Devices that cannot be emulated on this machine (no compiler, a missing library) are excluded and reported.
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

from joulewatch_exporter.emulator.amdgpu import AmdGpuSpec, AmdGpuTree
from joulewatch_exporter.emulator.bmc import Bmc, BmcSpec
from joulewatch_exporter.emulator.cray import PmCounters, PmCountersSpec
from joulewatch_exporter.emulator.files import Writer
from joulewatch_exporter.emulator.fpga import CardSpec, FpgaTree
from joulewatch_exporter.emulator.nvml import GpuSpec, NvmlLibrary
from joulewatch_exporter.emulator.redfish.service import RedfishService
from joulewatch_exporter.emulator.redfish.spec import RedfishSpec
from joulewatch_exporter.emulator.scenario import Devices
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

_NETWORK_TICK_S: Final = 0.1
"""Longest time between two updates of a device on the network, which usually makes one value per second."""
_SHORTEST_INTERVAL_S: Final = 1.0
"""Shortest interval at which the exporter reads the BMC of the local machine; a fleet has the exporter's default."""
_RETRY_S: Final = 1.0
_CLOSING_S: Final = 2.0


class Emulated(Protocol):
    """An emulated device."""

    def advance(self, t_s: float) -> None:
        """Move the device to ``t_s`` seconds after the start."""
        ...

    def close(self) -> None:
        """Release what the device holds; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Excluded:
    """A device that cannot be emulated on this machine."""

    name: str
    reason: str
    """Why it cannot be emulated, and the fix."""
    keys: tuple[str, ...]
    """Keys of the device in the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An emulated device and the settings with which the exporter reads it."""

    name: str
    device: Emulated
    tick_s: float
    """Time between two updates."""
    settings: Mapping[str, Mapping[str, Any]]
    """Options by collector; lists of several devices are joined."""
    begin: Callable[[int], None] = field(default=lambda _start_ns: None)
    """Called once with the monotonic time of the start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where devices are emulated."""

    directory: Path
    """Absolute folder of the machine; its trees and ``.scratch`` exist already."""
    refresh_s: float
    """Time between two updates of the files."""
    is_one_machine: bool
    """Whether BMCs and Redfish services belong to the emulated machine; False: they are those of a fleet."""


def open_devices(devices: Devices, place: Place) -> tuple[list[Running], list[Excluded]]:
    """Start all devices that can be emulated on this machine."""
    running: list[Running] = []
    excluded: list[Excluded] = []
    for start in _starts(devices, place):
        try:
            running.append(start.open())
        except (ConfigError, OSError, ImportError) as error:
            excluded.append(Excluded(start.name, str(error), start.keys))
        except BaseException:
            for opened in running:
                opened.device.close()
            raise
    return running, excluded


@dataclass(frozen=True, slots=True)
class _Start:
    """A device that is not running yet."""

    name: str
    keys: tuple[str, ...]
    open: Callable[[], Running]


def _starts(devices: Devices, place: Place) -> Iterator[_Start]:
    if devices.gpus:
        keys = tuple(key for gpu in devices.gpus for key in gpu.truth)
        yield _Start("GPUs", keys, lambda: _open_gpus(devices.gpus, place))
    if devices.amd_gpus:
        keys = tuple(key for gpu in devices.amd_gpus for key in gpu.truth)
        yield _Start("AMD GPUs", keys, lambda: _open_amd_gpus(devices.amd_gpus, place))
    if devices.fpgas:
        keys = tuple(key for card in devices.fpgas for key in card.truth)
        yield _Start("FPGA cards", keys, lambda: _open_cards(devices.fpgas, place))
    if (cray := devices.cray) is not None:
        yield _Start("pm_counters", tuple(cray.truth), lambda: _open_cray(cray, place))
    for bmc in devices.bmcs:
        yield _Start(f"BMC {bmc.name}", tuple(bmc.truth), functools.partial(_open_bmc, bmc, place))
    for service in devices.redfish:
        open_service = functools.partial(_open_redfish, service, place)
        yield _Start(f"Redfish {service.name}", tuple(service.truth), open_service)


def _open_gpus(specs: tuple[GpuSpec, ...], place: Place) -> Running:
    library = NvmlLibrary(specs, place.directory)

    def begin(start_ns: int) -> None:
        library.start_monotonic_ns = start_ns

    return Running(
        name="GPUs",
        device=library,
        tick_s=place.refresh_s,
        settings={"nvml": {"library": str(library.path)}},
        begin=begin,
    )


def _open_amd_gpus(specs: tuple[AmdGpuSpec, ...], place: Place) -> Running:
    scratch = place.directory / ".scratch"
    gpus = AmdGpuTree(specs, place.directory / "sys", Writer(scratch), scratch)
    return Running(name="AMD GPUs", device=gpus, tick_s=place.refresh_s, settings={})


def _open_cards(specs: tuple[CardSpec, ...], place: Place) -> Running:
    scratch = place.directory / ".scratch"
    cards = FpgaTree(specs, place.directory / "sys", Writer(scratch), scratch)
    return Running(name="FPGA cards", device=cards, tick_s=place.refresh_s, settings={})


def _open_cray(spec: PmCountersSpec, place: Place) -> Running:
    scratch = place.directory / ".scratch"
    counters = PmCounters(spec, place.directory / "sys", Writer(scratch), scratch)
    return Running(name="pm_counters", device=counters, tick_s=place.refresh_s, settings={})


def _open_bmc(spec: BmcSpec, place: Place) -> Running:
    bmc = Bmc(spec, place.directory)
    target = {
        "name": spec.name,
        "address": spec.address,
        "port": bmc.port,
        "user": spec.user,
        "password_file": str(bmc.password_file),
    }
    return _network_device(f"BMC {spec.name}", bmc, "ipmi", target, spec.refresh_s, place)


def _open_redfish(spec: RedfishSpec, place: Place) -> Running:
    service = RedfishService(spec, place.directory)
    return _network_device(f"Redfish {spec.name}", service, "redfish", service.target, spec.refresh_s, place)


def _network_device(
    name: str, device: Emulated, collector: str, target: Mapping[str, Any], refresh_s: float, place: Place
) -> Running:
    """Return a device that the exporter reads because it is in the list of targets of a collector."""
    local: dict[str, Any] = {}
    if place.is_one_machine:
        local = {"this_machine": True, "interval_seconds": max(_SHORTEST_INTERVAL_S, refresh_s)}
    return Running(
        name=name,
        device=device,
        tick_s=min(_NETWORK_TICK_S, refresh_s),
        settings={collector: {"targets": [{**target, **local}]}},
    )


def exporter_collectors(running: Iterable[Running]) -> dict[str, dict[str, Any]]:
    """Join the settings with which the exporter reads all devices."""
    collectors: dict[str, dict[str, Any]] = {}
    for device in running:
        for collector, options in device.settings.items():
            joined = collectors.setdefault(collector, {})
            for key, value in options.items():
                joined[key] = [*joined.get(key, []), *value] if isinstance(value, list) else value
    return collectors


class DeviceThread:
    """Updates a device on its own thread."""

    def __init__(self, running: Running, start_ns: int) -> None:
        """Start at once.

        Args:
            running: The device; the thread closes it at the end.
            start_ns: Monotonic time of the start of the scenario.
        """
        self._running = running
        self._start_ns = start_ns
        self._stop = threading.Event()
        self._was_updated = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"emulate-{running.name}", daemon=True)
        self._thread.start()

    def settle(self, timeout_s: float) -> None:
        """Wait until the device has been updated once."""
        if not self._was_updated.wait(timeout_s):
            logger.warning("%s: the first update has not finished; the other devices continue", self._running.name)

    def stop(self) -> None:
        """Ask the thread to end, without waiting."""
        self._stop.set()

    def join(self) -> None:
        """Wait a limited time for the end of the thread."""
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
                        logger.exception("%s: cannot be updated; retrying (logged once)", running.name)
                    has_failed = True
                    pause_s = _RETRY_S
                self._was_updated.set()
                # Multiples of the tick since the start, so delays do not add up.
                now_ns = time.monotonic_ns() - self._start_ns
                self._stop.wait(max(pause_s, ((now_ns // tick_ns + 1) * tick_ns - now_ns) / 1e9))
        finally:
            running.device.close()
