"""What the three RAPL backends share: the CPUs, the names of the counters, and the sensors that read them."""

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

BackendName = Literal["powercap", "perf", "msr"]
Kind = Literal["package", "core", "uncore", "dram", "psys"]

# Floors of the plausibility bound: a limit in firmware can be wrong (0, or 1 W in a docked laptop).
MAX_POWER_WATTS: Final[Mapping[Kind, float]] = {
    "package": 1000.0,
    "core": 1000.0,
    "uncore": 1000.0,
    "dram": 500.0,
    "psys": 20_000.0,
}
MAX_CORE_WATTS: Final = 150.0
"""Bound of a single core: several times what the fastest core draws alone."""

_ONE_COUNTER_VENDORS: Final = ("AuthenticAMD", "HygonGenuine")


def quantity_of(kind: Kind, package: int, die: int | None) -> Quantity:
    """Return the quantity that a counter of a package or die measures; the same for every backend.

    Args:
        kind: The RAPL domain.
        package: Physical package id.
        die: Die within the package if each die has its own counters, else None.
    """
    if kind == "psys":
        device = f"platform{package}" if package else "platform"
        return Quantity(scope="node", component="node", device=device, domain="psys")
    scope: Scope = "device" if kind in ("package", "dram") else "part"
    component: Component = "memory" if kind == "dram" else "cpu"
    domain: str = kind
    if die is not None:
        domain = f"die{die}" if kind == "package" else f"die{die}-{kind}"
    return Quantity(scope=scope, component=component, device=f"socket{package}", domain=domain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The CPUs whose counters the backends read."""

    host: Host
    vendor: str
    family: int
    model: int
    name: str
    """Model name, for display."""
    cpus: tuple[Cpu, ...]
    """Online CPUs, ordered by number."""
    divided: frozenset[int] = frozenset()
    """Packages with several dies, each with its own counters."""
    is_virtual: bool = False
    lacks_counters: bool = False
    """Whether this is a virtual machine without a powercap zone: its registers hold 0 or a constant, so rights and
    modules do not help."""

    @classmethod
    def of(cls, host: Host, *, has_zones: bool) -> Self:
        """Describe the CPUs of a host; fields that the kernel does not report are empty or -1.

        Args:
            host: Where the files are.
            has_zones: Whether the kernel has found a RAPL counter, and so made a powercap zone.
        """
        text = cpuinfo(host)
        vendor = _field(text, "vendor_id")
        is_virtual = "hypervisor" in _field(text, "flags").split()
        cpus = online_cpus(host.sysfs)
        dies = Counter(package for package, _ in {(cpu.package, cpu.die) for cpu in cpus})
        return cls(
            host=host,
            vendor=vendor,
            family=_number(text, "cpu family"),
            model=_number(text, "model"),
            name=_field(text, "model name"),
            cpus=cpus,
            divided=frozenset(
                package for package, count in dies.items() if count > 1 and vendor not in _ONE_COUNTER_VENDORS
            ),
            is_virtual=is_virtual,
            lacks_counters=is_virtual and not has_zones,
        )

    @property
    def is_one_counter(self) -> bool:
        """Whether a package has one counter regardless of its dies, as on AMD and Hygon."""
        return self.vendor in _ONE_COUNTER_VENDORS

    @property
    def cores(self) -> tuple[Cpu, ...]:
        """The first CPU of each core."""
        return one_per_core(self.cpus)

    @property
    def lead_cpus(self) -> tuple[Cpu, ...]:
        """One CPU per package, or per die if each die has its own counters."""
        leads: dict[tuple[int, int | None], Cpu] = {}
        for cpu in self.cpus:
            leads.setdefault((cpu.package, self.die_of(cpu)), cpu)
        return tuple(leads.values())

    def die_of(self, cpu: Cpu) -> int | None:
        """Return the die whose counters a CPU reads; None if they belong to the package."""
        return cpu.die if cpu.package in self.divided else None

    def core_names(self, package: int) -> dict[int, str]:
        """Return the label of the core of each CPU of a package.

        The label is ``core`` and the kernel's core id; prefixed with the die if ids repeat between dies; the number of
        the core's first CPU if ids repeat within a die.
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
    """An open counter that returns raw counts; `sysfs.HeldInt` is one."""

    def read(self) -> int:
        """Read the counter once; raises the errors of `model.Sensor.read`."""
        ...

    def close(self) -> None:
        """Release the counter; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RaplSensor:
    """One energy counter, read by any backend."""

    device: str
    infos: tuple[SensorInfo, ...]
    _quantity: Quantity
    _source: Source
    _counts_per_joule: float

    def read(self) -> Sequence[Reading]:
        """Read the counter once.

        Returns:
            One reading: energy in joules, including wraps.

        Raises:
            SensorAbsentError: The counter disappeared (CPU offline, driver unloaded).
            SensorDeniedError: Permission was lost; the text names the path and the fix.
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
        """Release the counter."""
        self._source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresSensor:
    """All cores of one package; one sensor per core would cost more per scan than the reads themselves."""

    device: str
    infos: tuple[SensorInfo, ...]
    _cores: tuple[tuple[Quantity, Source], ...]
    _counts_per_joule: float

    def read(self) -> Sequence[Reading]:
        """Read each core once.

        Returns:
            One reading per readable core; an offline core does not affect the others.

        Raises:
            SensorError: No core could be read; the error of the first core.
        """
        counts_per_joule = self._counts_per_joule
        readings = []
        first_error: SensorError | None = None
        for quantity, source in self._cores:
            try:
                count = source.read()
            except SensorError as error:
                first_error = first_error or error
                continue
            readings.append(
                Reading(
                    quantity=quantity,
                    read_at_ns=monotonic_ns(),
                    energy_joules=count / counts_per_joule,
                    power_watts=None,
                )
            )
        if first_error is not None and not readings:
            raise first_error
        return readings

    def close(self) -> None:
        """Release all cores."""
        for _, source in self._cores:
            source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A counter, or all cores of a package, that a backend could read; not yet open."""

    backend: BackendName
    device: str
    key: str
    """Device and domain: offers with the same key lead to the same counter."""
    path: str
    """The file that is opened; subject of the finding if access is denied."""
    subject: str
    """Subject of all other findings."""
    label: str
    """The backend's own name of the counter; starts the text of a finding that the offer is not used."""
    fix: str
    """The command that grants access, or empty."""
    open: Callable[[], tuple[RaplSensor | CoresSensor, str]]
    """Opens and tests the counter; returns the sensor and the text of its finding. Raises `SensorError`."""
    if_absent: Literal["broken", "absent", ""] = "broken"
    """Status of the finding if the counter turns out not to exist; empty: no finding."""

    @property
    def is_cores(self) -> bool:
        """Whether these are the single cores of a package."""
        return self.key.endswith(f"/{CORES}")


CORES: Final = "core*"
"""Domain in the key of an offer of single cores: represents the domains of all cores of the package."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The counters that a backend could read."""

    path: str
    """The folder or file that represents the backend in findings."""
    offers: tuple[Offer, ...]


NO_COUNTERS: Final = (
    "this is a virtual machine, and its kernel has found no RAPL counter: the registers hold 0 or a constant. "
    "If the hypervisor passes RAPL on, load the module intel_rapl_msr"
)


def skipped(subject: str, text: str, fix: str = "") -> Finding:
    """Return a finding that something is not read."""
    return Finding(status="skipped", collector="rapl", subject=subject, text=text, cure=fix)


def _field(cpuinfo_text: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*:[ \t]*(.+?)[ \t]*$", cpuinfo_text, re.MULTILINE)
    return match[1] if match else ""


def _number(cpuinfo_text: str, name: str) -> int:
    text = _field(cpuinfo_text, name)
    return int(text) if text.isdecimal() else -1
