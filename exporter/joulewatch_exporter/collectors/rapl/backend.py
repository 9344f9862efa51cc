"""What the three doors have in common: the machine behind them, what a counter is called, and how it is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Final, Literal, Protocol, Self

from joulewatch_exporter.collectors.base.sysfs import Cpu, cpuinfo, one_per_core, online_cpus
from joulewatch_exporter.errors import SensorError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, Scope, SensorInfo

DoorName = Literal["powercap", "perf", "msr"]
Kind = Literal["package", "core", "uncore", "dram", "psys"]

# A firmware's limit can be wrong (0, or 1 W in a laptop's dock); truth must pass all the same.
MAX_POWER_WATTS: Final[Mapping[Kind, float]] = {
    "package": 1000.0,
    "core": 1000.0,
    "uncore": 1000.0,
    "dram": 500.0,
    "psys": 20_000.0,
}
MAX_CORE_WATTS: Final = 150.0
"""Of one core: several times what the fastest draws alone."""

_ONE_COUNTER_VENDORS: Final = ("AuthenticAMD", "HygonGenuine")


def quantity_of(kind: Kind, package: int, die: int | None) -> Quantity:
    """Name what a counter of a package, or of one of its dies, measures: the same by every door.

    Args:
        kind: What of the package.
        package: Physical package id.
        die: Die within the package where each has counters of its own, else None.
    """
    if kind == "psys":
        return Quantity(
            scope="node", component="node", device=f"platform{package}" if package else "platform", domain="psys"
        )
    scope: Scope = "device" if kind in ("package", "dram") else "part"
    component: Component = "memory" if kind == "dram" else "cpu"
    domain: str = kind
    if die is not None:
        domain = f"die{die}" if kind == "package" else f"die{die}-{kind}"
    return Quantity(scope=scope, component=component, device=f"socket{package}", domain=domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The CPUs behind the doors."""

    host: Host
    vendor: str
    family: int
    model: int
    name: str
    """For people."""
    cpus: tuple[Cpu, ...]
    """Those that are online, in the order of their numbers."""
    divided: frozenset[int] = frozenset()
    """Packages of several dies, each of which has counters of its own."""

    @classmethod
    def of(cls, host: Host) -> Self:
        """Look at a host; what it does not tell is empty or -1."""
        about = cpuinfo(host)
        vendor = _field(about, "vendor_id")
        cpus = online_cpus(host.sysfs)
        dies = Counter(package for package, _ in {(cpu.package, cpu.die) for cpu in cpus})
        return cls(
            host=host,
            vendor=vendor,
            family=_number(about, "cpu family"),
            model=_number(about, "model"),
            name=_field(about, "model name"),
            cpus=cpus,
            divided=frozenset(
                package for package, count in dies.items() if count > 1 and vendor not in _ONE_COUNTER_VENDORS
            ),
        )

    @property
    def is_one_counter(self) -> bool:
        """AMD and Hygon: a package has one counter, however many dies a kernel sees in it."""
        return self.vendor in _ONE_COUNTER_VENDORS

    @property
    def cores(self) -> tuple[Cpu, ...]:
        """The first CPU of each core."""
        return one_per_core(self.cpus)

    @property
    def lead_cpus(self) -> tuple[Cpu, ...]:
        """One CPU for each package, or for each die where each has counters."""
        firsts: dict[tuple[int, int | None], Cpu] = {}
        for cpu in self.cpus:
            firsts.setdefault((cpu.package, self.die_of(cpu)), cpu)
        return tuple(firsts.values())

    def die_of(self, cpu: Cpu) -> int | None:
        """The die whose counters a CPU shows; None where they are the package's."""
        return cpu.die if cpu.package in self.divided else None

    def core_names(self, package: int) -> dict[int, str]:
        """The label of its core for each CPU of a package.

        It is ``core`` and the kernel's id, with the die before it where ids repeat among the dies, and the number of
        the core's first CPU where even that is not enough.
        """
        cores = [core for core in self.cores if core.package == package]
        schemes: tuple[Callable[[Cpu], str], ...] = (
            lambda core: f"core{core.core}",
            lambda core: f"die{core.die}-core{core.core}",
            lambda core: f"cpu{core.number}",
        )
        names: dict[object, str] = {}
        for scheme in schemes:
            names = {core.core_key: scheme(core) for core in cores}
            if len(set(names.values())) == len(cores):
                break
        return {cpu.number: names[cpu.core_key] for cpu in self.cpus if cpu.package == package}


class Source(Protocol):
    """An open counter: raw counts. `sysfs.HeldInt` is one."""

    def read(self) -> int:
        """Read the counter once; raises as `model.Sensor.read` does."""
        ...

    def close(self) -> None:
        """Let go; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RaplSensor:
    """One energy counter, by whatever door."""

    device: str
    infos: tuple[SensorInfo, ...]
    _quantity: Quantity
    _source: Source
    _counts_per_joule: float

    def read(self) -> Sequence[Reading]:
        """Read the counter once.

        Returns:
            One reading: energy in joules, its wraps still in it.

        Raises:
            SensorAbsentError: The counter is gone (CPU offline, driver unloaded).
            SensorDeniedError: The rights are gone; the text holds the path and the cure.
            SensorGlitchError: This read failed.
        """
        count = self._source.read()
        return (
            Reading(
                quantity=self._quantity,
                read_at_ns=monotonic_ns(),
                energy_joules=count / self._counts_per_joule,
                power_watts=None,
            ),
        )

    def close(self) -> None:
        """Let go of the counter."""
        self._source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresSensor:
    """The cores of one package, read together: a sensor for each would cost a scan more than its reads do."""

    device: str
    infos: tuple[SensorInfo, ...]
    _cores: tuple[tuple[Quantity, Source], ...]
    _counts_per_joule: float

    def read(self) -> Sequence[Reading]:
        """Read each core once.

        Returns:
            One reading for each core that could be read: a core that is offline does not stop the others.

        Raises:
            SensorError: No core could be read; that of the first.
        """
        counts_per_joule = self._counts_per_joule
        readings = []
        failure: SensorError | None = None
        for quantity, source in self._cores:
            try:
                count = source.read()
            except SensorError as error:
                failure = failure or error
                continue
            readings.append(
                Reading(
                    quantity=quantity,
                    read_at_ns=monotonic_ns(),
                    energy_joules=count / counts_per_joule,
                    power_watts=None,
                )
            )
        if failure is not None and not readings:
            raise failure
        return readings

    def close(self) -> None:
        """Let go of all cores."""
        for _, source in self._cores:
            source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A counter, or a package's cores, to which a door leads; nothing is open yet."""

    door: DoorName
    device: str
    key: str
    """Device and domain: offers of the same key are doors to the same counter."""
    path: str
    """What is opened, and what a finding names if that is denied."""
    subject: str
    """What other findings name."""
    label: str
    """What it is called there; begins the text of a finding that it is not used."""
    cure: str
    """The line that grants the right, or empty."""
    open: Callable[[], tuple[RaplSensor | CoresSensor, str]]
    """Opens it and tries it; the sensor, and the text of the finding. Raises `SensorError` if that fails."""
    if_absent: Literal["broken", "absent", ""] = "broken"
    """What it means that the counter is not there after all: something is wrong, it is as it is, not worth a word."""

    @property
    def is_cores(self) -> bool:
        """Whether these are the single cores of a package."""
        return self.key.endswith(f"/{CORES}")


CORES: Final = "core*"
"""Stands for all the domains of a package's single cores in the key of an offer."""


@dataclass(frozen=True, slots=True)
class View:
    """What a door shows."""

    where: str
    """The folder or file that stands for the door in findings."""
    offers: tuple[Offer, ...]


def skipped(subject: str, text: str, cure: str = "") -> Finding:
    return Finding(status="skipped", collector="rapl", subject=subject, text=text, cure=cure)


def _field(about_cpu: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*:[ \t]*(.+?)[ \t]*$", about_cpu, re.MULTILINE)
    return match[1] if match else ""


def _number(about_cpu: str, name: str) -> int:
    text = _field(about_cpu, name)
    return int(text) if text.isdecimal() else -1
