"""CPU packages, dies, memory and platform: the energy counters of RAPL by powercap sysfs.

The tree is ``class/powercap/<type>:<i>[:<j>]`` with i and j in hexadecimal (strings, never decimal numbers). A zone
says what it measures in its ``name``; its index says nothing. Four things make the tree treacherous, and each is
settled here and told in a finding:

* the same counter appears by several doors (MSR and MMIO, or a zone repeated under its own child): published once;
* on AMD and Hygon the zone ``core`` is the energy of ONE core, the lead CPU's: not published;
* kernels 6.9 to 6.11.0 make a zone of the socket's counter for each CCD of an AMD package: one is kept;
* ``energy_uj`` is readable by root only since 2020 (CVE-2020-8694): the others go on, the cure is named.

Sources: Linux ``Documentation/power/powercap/powercap.rst``, ``drivers/powercap/intel_rapl_common.c``,
``intel_rapl_msr.c``, ``powercap_sys.c``; commit 26096aed255f for the CCD quirk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, ClassVar, Final, Self

from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Reading, Scope, Sensor, SensorInfo, Timing
from joulewatch_exporter.sysfs import (
    HeldInt,
    cpuinfo,
    denied_cure,
    list_names,
    physical_packages,
    read_int,
    read_int_or_none,
    read_text,
)

_TYPES: Final = ("intel-rapl", "intel-rapl-mmio")
"""Control types that are read, the preferred one first: both are doors to the same counters."""

_ZONE: Final = re.compile(r"(?P<type>[A-Za-z][\w-]*?)(?P<indices>(?::[0-9a-fA-F]+)+)")
_PACKAGE: Final = re.compile(r"package-(?P<package>\d+)(?:-die-(?P<die>\d+))?")
_PSYS: Final = re.compile(r"psys(?:-(?P<package>\d+))?")
_ONE_CORE_VENDORS: Final = ("AuthenticAMD", "HygonGenuine")

# A firmware's limit can be wrong (0, or 1 W in a laptop's dock); truth must pass all the same.
_FLOOR_WATTS: Final = {"package": 1000.0, "dram": 500.0, "psys": 20_000.0}

_MAX_POLL_S: Final = 10.0
"""Right for every CPU: the fastest counter, 2^-16 J at 1 kW, goes round in 65 s."""
_MIN_POLL_S: Final = 0.005
"""The hardware counts in steps of about 1 ms and each read wakes the package's lead CPU."""

# The unit is not in sysfs, but the range is 2^32 - 1 of it (intel_rapl_common.c: whole nanojoules).
_RESOLUTION_BY_RANGE_UJ: Final = {
    65_532_610_987: "15.3 uJ",  # 2^-16 J
    65_712_999_613: "15.3 uJ",  # fixed DRAM unit of Haswell to Ice Lake servers
    262_143_328_850: "61 uJ",  # 2^-14 J
    4_294_967_295_000_000: "1 J",  # psys of Sapphire and Emerald Rapids
}


@dataclass(frozen=True, slots=True)
class RaplOptions:
    """Settings under ``collectors.rapl``."""

    parts: bool = True
    """False: leave out ``core`` and ``uncore``, and with them a third of the register reads."""


@dataclass(frozen=True, slots=True)
class _Zone:
    """One directory of the tree, as found."""

    path: str
    """Below the class directory, so that it is the path the documentation names."""
    control: str
    indices: tuple[int, ...]
    name: str
    parents: tuple[str, ...]
    """Names of the zones around it, outermost first."""

    @property
    def order(self) -> tuple[int, int, tuple[int, ...]]:
        """Preferred first: the MSR door before MMIO, outer before inner, low index before high."""
        return (_TYPES.index(self.control), len(self.indices), self.indices)


@dataclass(frozen=True, slots=True)
class RaplSensor:
    """One zone: an energy counter that goes round."""

    device: str
    infos: tuple[SensorInfo, ...]
    _quantity: Quantity
    _file: HeldInt

    def read(self) -> Sequence[Reading]:
        """Read the counter once.

        Returns:
            One reading: energy in joules, its wraps still in it.

        Raises:
            SensorAbsentError: The zone is gone (CPU offline, driver unloaded).
            SensorDeniedError: The rights are gone; the text holds the path and the cure.
            SensorGlitchError: This read failed.
        """
        energy_uj = self._file.read()
        return (Reading(self._quantity, monotonic_ns(), energy_uj / 1e6, None),)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class RaplCollector:
    """All RAPL zones of the host, each physical quantity once."""

    name: ClassVar[str] = "rapl"
    Options: ClassVar[type] = RaplOptions

    def __init__(self, sensors: Sequence[RaplSensor], findings: Sequence[Finding]) -> None:
        self._sensors = tuple(sensors)
        self._findings = tuple(findings)

    @property
    def sensors(self) -> Sequence[Sensor]:
        """One for each published zone."""
        return self._sensors

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found, skipped or denied, and why."""
        return self._findings

    @property
    def timing(self) -> Timing:
        """Read at least four times in the shortest round that any counter can make."""
        rounds_s = [
            info.wrap_joules / info.max_power_watts
            for sensor in self._sensors
            for info in sensor.infos
            if info.wrap_joules is not None
        ]
        shortest_s = min(rounds_s, default=4 * _MAX_POLL_S)
        return Timing(poll_s=max(_MIN_POLL_S, min(_MAX_POLL_S, shortest_s / 4)), read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Never: CPUs do not come while the machine runs."""
        return False

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the zones and try each counter once.

        Args:
            host: Where sysfs and procfs are.
            options: `RaplOptions`.

        Raises:
            SensorAbsentError: No powercap class, or no RAPL zone in it.
            SensorDeniedError: There are zones, and none may be read.
        """
        assert isinstance(options, RaplOptions)
        root = f"{host.sysfs}/class/powercap"
        findings: list[Finding] = []
        zones = _find_zones(root, findings)
        if not zones:
            raise SensorAbsentError(
                f"{root}: no RAPL zone (virtual machine, or the kernel module intel_rapl_msr is not loaded)"
            )
        about_cpu = cpuinfo(host)
        claims = _claims(zones, about_cpu, physical_packages(host.sysfs), options, findings)
        sensors = _choose(claims, about_cpu, findings)
        if not sensors:
            denied = [finding for finding in findings if finding.status == "denied"]
            if denied:
                more = f" (and {len(denied) - 1} more zones)" if len(denied) > 1 else ""
                raise SensorDeniedError(f"{denied[0].text}{more}")
            reasons = "; ".join(f"{finding.subject}: {finding.text}" for finding in findings)
            raise SensorAbsentError(f"{root}: no zone can be used ({reasons})")
        return cls(sensors, findings)

    def settle(self, timeout_s: float) -> None:
        """Return at once: it is read on demand."""

    def close(self) -> None:
        """Let go of all files."""
        for sensor in self._sensors:
            sensor.close()


def _find_zones(root: str, findings: list[Finding]) -> list[_Zone]:
    """List the zones of the known control types, preferred first."""
    try:
        entries = list_names(root)
    except SensorAbsentError as error:
        raise SensorAbsentError(f"{error}; this kernel has no powercap class") from error
    found: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
    unknown: set[str] = set()
    for entry in entries:
        match = _ZONE.fullmatch(entry)
        if match is None:
            continue  # the directory of a control type itself, which counts nothing
        control = match["type"]
        if control not in _TYPES:
            unknown.add(control)
            continue
        path = f"{root}/{entry}"
        try:
            name = read_text(f"{path}/name")
        except SensorError as error:
            findings.append(Finding("broken", "rapl", path, f"zone without a readable name: {error}"))
            continue
        indices = tuple(int(index, 16) for index in match["indices"][1:].split(":"))
        found[control, indices] = (path, name)
    findings.extend(
        Finding("skipped", "rapl", f"{root}/{control}", "powercap control type that is not RAPL; it is not read")
        for control in sorted(unknown)
    )
    zones = [
        _Zone(
            path,
            control,
            indices,
            name,
            tuple(
                found[control, indices[:depth]][1]
                for depth in range(1, len(indices))
                if (control, indices[:depth]) in found
            ),
        )
        for (control, indices), (path, name) in found.items()
    ]
    return sorted(zones, key=lambda zone: zone.order)


def _claims(
    zones: Sequence[_Zone],
    about_cpu: str,
    physical: frozenset[int],
    options: RaplOptions,
    findings: list[Finding],
) -> dict[Quantity, list[_Zone]]:
    """Group the zones by the physical quantity each of them counts, preferred zone first."""
    one_core = _vendor(about_cpu) in _ONE_CORE_VENDORS
    packages = sorted({int(match["package"]) for zone in zones if (match := _PACKAGE.fullmatch(zone.name)) is not None})
    amd_packages: dict[int, tuple[str, str]] = {}
    claims: dict[Quantity, list[_Zone]] = {}
    for zone in zones:
        if (match := _PACKAGE.fullmatch(zone.name)) is not None and one_core:
            package = int(match["package"])
            if physical and package not in physical:
                findings.append(
                    _skipped(zone, f"no physical CPU package {package}: a CCD shown as a package, same counter")
                )
                continue
            first = amd_packages.setdefault(package, (zone.name, zone.path))
            if first[0] != zone.name:
                findings.append(
                    _skipped(zone, f"same socket counter as {first[1]}: this kernel makes a die of each AMD CCD")
                )
                continue
        if one_core and zone.name == "core":
            findings.append(
                _skipped(zone, "on AMD and Hygon this counts one core, the lead CPU's, not the cores of the package")
            )
            continue
        quantity = _quantity(zone, packages, die_is_package=one_core)
        if quantity is None:
            findings.append(_skipped(zone, f"unknown zone name {zone.name!r}"))
        elif quantity.domain.endswith(("core", "uncore")) and not options.parts:
            findings.append(_skipped(zone, "left out by collectors.rapl.parts: false"))
        else:
            claims.setdefault(quantity, []).append(zone)
    return claims


def _quantity(zone: _Zone, packages: Sequence[int], *, die_is_package: bool) -> Quantity | None:
    """Say what a zone counts, by its name and the names of the zones around it; None if unknown."""
    if (match := _PACKAGE.fullmatch(zone.name)) is not None:
        die = None if die_is_package else match["die"]
        return Quantity("device", "cpu", f"socket{int(match['package'])}", "package" if die is None else f"die{die}")
    if (match := _PSYS.fullmatch(zone.name)) is not None:
        number = int(match["package"] or 0)
        return Quantity("node", "node", f"platform{number}" if number else "platform", "psys")
    if zone.name not in ("core", "uncore", "dram"):
        return None
    scope: Scope = "device" if zone.name == "dram" else "part"
    component: Component = "memory" if zone.name == "dram" else "cpu"
    around = next((match for name in reversed(zone.parents) if (match := _PACKAGE.fullmatch(name))), None)
    if around is not None:
        die = None if die_is_package else around["die"]
        domain = zone.name if die is None else f"die{die}-{zone.name}"
        return Quantity(scope, component, f"socket{int(around['package'])}", domain)
    # At top level it names no package: with one package there is no doubt, with several it is kept apart.
    device = f"socket{packages[0]}" if len(packages) == 1 else "platform"
    return Quantity(scope, component, device, zone.name)


def _choose(claims: dict[Quantity, list[_Zone]], about_cpu: str, findings: list[Finding]) -> list[RaplSensor]:
    """Take for each quantity the first zone that can be read; say what became of the others."""
    model = _model_name(about_cpu)
    # Memory at top level of a machine with several packages repeats what the packages' own zones count.
    own_memory = any(quantity.domain.endswith("dram") and quantity.device != "platform" for quantity in claims)
    sensors: list[RaplSensor] = []
    for quantity, zones in claims.items():
        if own_memory and quantity.device == "platform" and quantity.domain == "dram":
            findings.extend(_skipped(zone, "repeats the dram zones of the packages") for zone in zones)
            continue
        refused: list[Finding] = []
        chosen: _Zone | None = None
        for zone in zones:
            path = f"{zone.path}/energy_uj"
            if chosen is not None:
                findings.append(_skipped(zone, f"counts the same as {chosen.path}, which is published"))
                continue
            try:
                read_int(path)
            except SensorDeniedError as error:
                refused.append(Finding("denied", "rapl", path, str(error), denied_cure(path)))
            except SensorAbsentError as error:
                refused.append(Finding("broken", "rapl", path, f"zone without a counter: {error}"))
            except SensorError:
                chosen = zone  # there, and merely unwell just now
            else:
                chosen = zone
        findings.extend(refused)
        if chosen is not None:
            sensors.append(_sensor(chosen, quantity, model, findings))
    return sensors


def _sensor(zone: _Zone, quantity: Quantity, model: str, findings: list[Finding]) -> RaplSensor:
    path = f"{zone.path}/energy_uj"
    range_uj = read_int_or_none(f"{zone.path}/max_energy_range_uj")
    if range_uj is not None and range_uj <= 0:
        range_uj = None
    info = SensorInfo(
        quantity=quantity,
        method="counter",
        source=path,
        model=model,
        resolution=_RESOLUTION_BY_RANGE_UJ.get(range_uj or 0, "1 uJ" if range_uj is None else _unit_text(range_uj)),
        wrap_joules=None if range_uj is None else range_uj / 1e6,
        max_power_watts=_max_power_watts(zone, quantity),
    )
    text = f"{quantity.device} {quantity.domain}: zone {zone.name} of {zone.control}"
    if range_uj is None:
        text += "; no max_energy_range_uj, so a counter that falls is taken for a restart and not for a wrap"
    findings.append(Finding("found", "rapl", path, text))
    # By the real path: a link less to follow at each of the reads.
    return RaplSensor(quantity.device, (info,), quantity, HeldInt(os.path.realpath(path)))


def _unit_text(range_uj: int) -> str:
    """The unit of a 32-bit counter of this range; 1 uJ where the range is none of 32 bits."""
    unit_uj = range_uj / (2**32 - 1)
    return f"{unit_uj:.3g} uJ" if unit_uj >= 1 else "1 uJ"


def _max_power_watts(zone: _Zone, quantity: Quantity) -> float:
    """Twice the highest limit that the firmware states, and never below what such hardware may draw."""
    kind = "psys" if quantity.domain == "psys" else "dram" if quantity.component == "memory" else "package"
    try:
        entries = list_names(zone.path)
    except SensorError:
        entries = []  # the zone is going just now: the floor serves
    limits_uw = [
        read_int_or_none(f"{zone.path}/{entry}") or 0
        for entry in entries
        if re.fullmatch(r"constraint_\d+_(?:max_power|power_limit)_uw", entry)
    ]
    floor_watts = _FLOOR_WATTS[kind]
    # Some firmware states "no limit" as all ones: such a number bounds nothing, and would empty the poll time.
    believed_uw = max((limit for limit in limits_uw if limit < 20 * floor_watts * 1e6), default=0)
    return max(floor_watts, 2 * believed_uw / 1e6)


def _skipped(zone: _Zone, text: str) -> Finding:
    return Finding("skipped", "rapl", zone.path, f"{zone.name}: {text}")


def _vendor(about_cpu: str) -> str:
    match = re.search(r"^vendor_id\s*:\s*(\S+)", about_cpu, re.MULTILINE)
    return match[1] if match else ""


def _model_name(about_cpu: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+?)\s*$", about_cpu, re.MULTILINE)
    return match[1] if match else ""
