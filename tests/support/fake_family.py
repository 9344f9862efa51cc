"""A sensor family in memory, with programmable readings, errors and hangs, and devices that appear and vanish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Self

from joulewatch_exporter.errors import SensorAbsentError
from joulewatch_exporter.model import (
    Collector,
    Component,
    Finding,
    Host,
    Method,
    Quantity,
    Reading,
    Scope,
    Sensor,
    SensorInfo,
    Timing,
)


def info(
    device: str = "socket0",
    domain: str = "package",
    *,
    scope: Scope = "device",
    component: Component = "cpu",
    method: Method = "counter",
    wrap_joules: float | None = 65532.610987,
    max_power_watts: float = 1000.0,
    max_gap_s: float = 10.0,
    model: str = "",
    resolution: str = "15.3 uJ",
    accuracy: float | None = None,
    accuracy_source: str = "",
) -> SensorInfo:
    """Return the metadata of a quantity."""
    return SensorInfo(
        quantity=Quantity(scope=scope, component=component, device=device, domain=domain),
        method=method,
        source=f"fake:{device}/{domain}",
        model=model,
        resolution=resolution,
        accuracy=accuracy,
        accuracy_source=accuracy_source,
        wrap_joules=wrap_joules,
        max_power_watts=max_power_watts,
        max_gap_s=max_gap_s,
    )


@dataclass(slots=True)
class FakeSensor:
    """A device; set its values, or the error that it raises."""

    infos: tuple[SensorInfo, ...]
    _: KW_ONLY
    now_ns: Callable[[], int] = time.monotonic_ns
    energies_joules: list[float | None] = field(default_factory=list)
    """By info; None: the sensor has no energy."""
    powers_watts: list[float | None] = field(default_factory=list)
    error: Exception | None = None
    hang: threading.Event | None = None
    """Reads wait until this is set."""
    hangs_after: int = 0
    """Number of reads before the first one that waits."""
    reads: int = 0
    delay_s: float = 0.0
    reader: int = 0
    """Identifier of the thread of the last read."""

    @property
    def device(self) -> str:
        return self.infos[0].quantity.device

    def read(self) -> Sequence[Reading]:
        self.reads += 1
        self.reader = threading.get_ident()
        if self.hang is not None and self.reads > self.hangs_after:
            self.hang.wait(30.0)
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return [
            Reading(
                quantity=info.quantity,
                read_at_ns=self.now_ns(),
                energy_joules=self.energies_joules[index] if self.energies_joules else None,
                power_watts=self.powers_watts[index] if self.powers_watts else None,
            )
            for index, info in enumerate(self.infos)
        ]


def energy_sensor(device: str = "socket0", joules: float = 100.0, **kwargs: Any) -> FakeSensor:
    """Return a sensor with an energy counter at ``joules``."""
    now_ns = kwargs.pop("now_ns", time.monotonic_ns)
    return FakeSensor((info(device, **kwargs),), now_ns=now_ns, energies_joules=[joules])


def power_sensor(device: str = "board", watts: float = 50.0, **kwargs: Any) -> FakeSensor:
    """Return a sensor with power only."""
    now_ns = kwargs.pop("now_ns", time.monotonic_ns)
    kwargs = {"domain": "total", "component": "other", "method": "integrated", "wrap_joules": None, **kwargs}
    return FakeSensor((info(device, **kwargs),), now_ns=now_ns, powers_watts=[watts])


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """Options of a fake family."""

    level: int = 1
    words: tuple[str, ...] = ()


@dataclass(slots=True)
class Machine:
    """The hardware that a fake family discovers, and how often it was used."""

    sensors: list[FakeSensor] = field(default_factory=list)
    _: KW_ONLY
    timing: Timing = field(default_factory=lambda: Timing(poll_s=10.0, read_on_scrape=True))
    findings: list[Finding] = field(default_factory=list)
    error: Exception | None = None
    opened: int = 0
    closed: int = 0
    settled: int = 0
    outdated: bool = False
    options: list[Any] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)


def fake_family(family_name: str, machine: Machine) -> type[Collector]:
    """Return a family whose ``open`` discovers ``machine``."""

    class FakeCollector:
        name: ClassVar[str] = family_name
        Options: ClassVar[type] = FakeOptions

        def __init__(self) -> None:
            self._sensors = tuple(machine.sensors)

        @property
        def sensors(self) -> Sequence[Sensor]:
            return self._sensors

        @property
        def timing(self) -> Timing:
            return machine.timing

        @property
        def findings(self) -> Sequence[Finding]:
            return tuple(machine.findings)

        @property
        def outdated(self) -> bool:
            return machine.outdated

        @classmethod
        def open(cls, host: Host, options: Any) -> Self:
            machine.opened += 1
            machine.options.append(options)
            machine.hosts.append(host)
            if machine.error is not None:
                raise machine.error
            if not machine.sensors:
                raise SensorAbsentError(f"{family_name}: nothing at {host.sysfs}")
            return cls()

        def settle(self, timeout_s: float) -> None:
            machine.settled += 1

        def close(self) -> None:
            machine.closed += 1

    return FakeCollector
