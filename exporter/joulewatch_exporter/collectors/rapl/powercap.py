"""The first door: the energy counters of RAPL by powercap sysfs.

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
from functools import partial
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import (
    HeldInt,
    denied_cure,
    list_names,
    physical_packages,
    read_int,
    read_int_or_none,
    read_text,
)
from joulewatch_exporter.collectors.rapl.backend import (
    MAX_POWER_WATTS,
    Kind,
    Machine,
    Offer,
    RaplSensor,
    View,
    quantity_of,
    skipped,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Scope, SensorInfo

_TYPES: Final = ("intel-rapl", "intel-rapl-mmio")
"""Control types that are read, the preferred one first: both are doors to the same counters."""

_ZONE: Final = re.compile(r"(?P<type>[A-Za-z][\w-]*?)(?P<indices>(?::[0-9a-fA-F]+)+)")
_PACKAGE: Final = re.compile(r"package-(?P<package>\d+)(?:-die-(?P<die>\d+))?")
_PSYS: Final = re.compile(r"psys(?:-(?P<package>\d+))?")

# The unit is not in sysfs, but the range is 2^32 - 1 of it (intel_rapl_common.c: whole nanojoules).
_RESOLUTION_BY_RANGE_UJ: Final = {
    65_532_610_987: "15.3 uJ",  # 2^-16 J
    65_712_999_613: "15.3 uJ",  # fixed DRAM unit of Haswell to Ice Lake servers
    262_143_328_850: "61 uJ",  # 2^-14 J
    4_294_967_295_000_000: "1 J",  # psys of Sapphire and Emerald Rapids
}


@dataclass(frozen=True, slots=True, kw_only=True)
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


def zone_names(host: Host) -> tuple[str, ...]:
    """List the zones, to see whether any has come or gone; empty without the class."""
    try:
        return tuple(name for name in list_names(_root(host)) if name.startswith(_TYPES[0]))
    except SensorError:
        return ()


def look(machine: Machine, *, parts: bool, findings: list[Finding]) -> View:
    """List the counters behind this door, preferred zone first where several show the same.

    Args:
        machine: The CPUs.
        parts: Whether ``core`` and ``uncore`` are wanted.
        findings: Takes what is left out, and why.

    Raises:
        SensorAbsentError: No powercap class, or no RAPL zone in it.
        SensorDeniedError: The class may not be listed.
    """
    root = _root(machine.host)
    zones = _find_zones(root, findings)
    if not zones:
        raise SensorAbsentError(
            f"{root}: no RAPL zone (virtual machine, or the kernel module intel_rapl_msr is not loaded)"
        )
    claims = _claims(zones, machine, physical_packages(machine.host.sysfs), parts=parts, findings=findings)
    # Memory at top level of a machine with several packages repeats what the packages' own zones count.
    own_memory = any(quantity.domain.endswith("dram") and quantity.device != "platform" for quantity in claims)
    offers: list[Offer] = []
    for quantity, claimants in claims.items():
        if own_memory and quantity.device == "platform" and quantity.domain == "dram":
            findings.extend(_skipped(zone, "repeats the dram zones of the packages") for zone in claimants)
            continue
        offers.extend(_offer(zone, quantity, machine.name) for zone in claimants)
    return View(root, tuple(offers))


def _root(host: Host) -> str:
    return f"{host.sysfs}/class/powercap"


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
            findings.append(
                Finding(status="broken", collector="rapl", subject=path, text=f"zone without a readable name: {error}")
            )
            continue
        indices = tuple(int(index, 16) for index in match["indices"][1:].split(":"))
        found[control, indices] = (path, name)
    findings.extend(
        skipped(f"{root}/{control}", "powercap control type that is not RAPL; it is not read")
        for control in sorted(unknown)
    )
    zones = [
        _Zone(
            path=path,
            control=control,
            indices=indices,
            name=name,
            parents=tuple(
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
    machine: Machine,
    physical: frozenset[int],
    *,
    parts: bool,
    findings: list[Finding],
) -> dict[Quantity, list[_Zone]]:
    """Group the zones by the physical quantity each of them counts, preferred zone first."""
    one_counter = machine.is_one_counter
    packages = sorted({int(match["package"]) for zone in zones if (match := _PACKAGE.fullmatch(zone.name)) is not None})
    amd_packages: dict[int, tuple[str, str]] = {}
    claims: dict[Quantity, list[_Zone]] = {}
    for zone in zones:
        if (match := _PACKAGE.fullmatch(zone.name)) is not None and one_counter:
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
        if one_counter and zone.name == "core":
            findings.append(
                _skipped(zone, "on AMD and Hygon this counts one core, the lead CPU's, not the cores of the package")
            )
            continue
        quantity = _quantity(zone, packages, die_is_package=one_counter)
        if quantity is None:
            findings.append(_skipped(zone, f"unknown zone name {zone.name!r}"))
        elif quantity.scope == "part" and not parts:
            findings.append(_skipped(zone, "left out by collectors.rapl.parts: false"))
        else:
            claims.setdefault(quantity, []).append(zone)
    return claims


def _quantity(zone: _Zone, packages: Sequence[int], *, die_is_package: bool) -> Quantity | None:
    """Say what a zone counts, by its name and the names of the zones around it; None if unknown."""
    if (match := _PACKAGE.fullmatch(zone.name)) is not None:
        return quantity_of("package", int(match["package"]), _die(match, die_is_package=die_is_package))
    if (match := _PSYS.fullmatch(zone.name)) is not None:
        return quantity_of("psys", int(match["package"] or 0), None)
    if zone.name not in ("core", "uncore", "dram"):
        return None
    kind: Kind = "core" if zone.name == "core" else "uncore" if zone.name == "uncore" else "dram"
    around = next((match for name in reversed(zone.parents) if (match := _PACKAGE.fullmatch(name))), None)
    if around is not None:
        return quantity_of(kind, int(around["package"]), _die(around, die_is_package=die_is_package))
    # At top level it names no package: with one package there is no doubt, with several it is kept apart.
    if len(packages) == 1:
        return quantity_of(kind, packages[0], None)
    scope: Scope = "device" if kind == "dram" else "part"
    component: Component = "memory" if kind == "dram" else "cpu"
    return Quantity(scope=scope, component=component, device="platform", domain=kind)


def _die(match: re.Match[str], *, die_is_package: bool) -> int | None:
    return None if die_is_package or match["die"] is None else int(match["die"])


def _offer(zone: _Zone, quantity: Quantity, model: str) -> Offer:
    path = f"{zone.path}/energy_uj"
    return Offer(
        door="powercap",
        device=quantity.device,
        key=f"{quantity.device}/{quantity.domain}",
        path=path,
        subject=zone.path,
        label=zone.name,
        cure=denied_cure(path),
        open=partial(_open, zone, quantity, model),
    )


def _open(zone: _Zone, quantity: Quantity, model: str) -> tuple[RaplSensor, str]:
    """Try the counter once.

    Raises:
        SensorAbsentError: The zone has none.
        SensorDeniedError: It may not be read; the text holds the path and the cure.
    """
    path = f"{zone.path}/energy_uj"
    try:
        read_int(path)
    except SensorAbsentError as error:
        raise SensorAbsentError(f"zone without a counter: {error}") from error
    except SensorDeniedError:
        raise
    except SensorGlitchError:
        pass  # there, and merely unwell just now
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
        relation="core" if zone.name == "core" else "inside",
    )
    text = f"{quantity.device} {quantity.domain}: zone {zone.name} of {zone.control}"
    if range_uj is None:
        text += "; no max_energy_range_uj, so a counter that falls is taken for a restart and not for a wrap"
    # By the real path: a link less to follow at each of the reads.
    return RaplSensor(
        device=quantity.device,
        infos=(info,),
        _quantity=quantity,
        _source=HeldInt(os.path.realpath(path)),
        _counts_per_joule=1e6,
    ), text


def _unit_text(range_uj: int) -> str:
    """The unit of a 32-bit counter of this range; 1 uJ where the range is none of 32 bits."""
    unit_uj = range_uj / (2**32 - 1)
    return f"{unit_uj:.3g} uJ" if unit_uj >= 1 else "1 uJ"


def _max_power_watts(zone: _Zone, quantity: Quantity) -> float:
    """Twice the highest limit that the firmware states, and never below what such hardware may draw."""
    kind: Kind = "psys" if quantity.domain == "psys" else "dram" if quantity.component == "memory" else "package"
    try:
        entries = list_names(zone.path)
    except SensorError:
        entries = []  # the zone is going just now: the floor serves
    limits_uw = [
        read_int_or_none(f"{zone.path}/{entry}") or 0
        for entry in entries
        if re.fullmatch(r"constraint_\d+_(?:max_power|power_limit)_uw", entry)
    ]
    floor_watts = MAX_POWER_WATTS[kind]
    # Some firmware states "no limit" as all ones: such a number bounds nothing, and would empty the poll time.
    believed_uw = max((limit for limit in limits_uw if limit < 20 * floor_watts * 1e6), default=0)
    return max(floor_watts, 2 * believed_uw / 1e6)


def _skipped(zone: _Zone, text: str) -> Finding:
    return skipped(zone.path, f"{zone.name}: {text}")
