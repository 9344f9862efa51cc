"""The first backend: energy counters of RAPL in powercap sysfs.

The tree is ``class/powercap/<type>:<i>[:<j>]`` with i and j in hexadecimal (strings, never decimal numbers). The
``name`` of a zone determines what it measures; its index has no meaning. Five pitfalls are handled here, each with a
finding:

* the same counter appears more than once (MSR and MMIO, or a zone repeated under its own child): published once;
* on AMD and Hygon the zone ``core`` is the energy of ONE core, the lead CPU's: not published;
* kernels 6.9 to 6.11.0 create one zone per CCD of an AMD package, all with the socket's counter: one is published;
* since 2020 only root can read ``energy_uj`` (CVE-2020-8694): the finding names the fix, other zones are still read;
* container runtimes hide the folder of the zones: the links in the class lead nowhere.

Sources: Linux ``Documentation/power/powercap/powercap.rst``, ``drivers/powercap/intel_rapl_common.c``,
``intel_rapl_msr.c``, ``powercap_sys.c``; commit 26096aed255f for the CCD quirk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from joulewatch_exporter.collectors.base.probe import Prober
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
    Listing,
    Machine,
    Offer,
    RaplSensor,
    quantity_of,
    skipped,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Component, Finding, Host, Quantity, Scope, SensorInfo
from joulewatch_exporter.text import count_of

_TYPES: Final = ("intel-rapl", "intel-rapl-mmio")
"""Control types that are read, in order of preference: both have the same counters."""

_ZONE: Final = re.compile(r"(?P<type>[A-Za-z][\w-]*?)(?P<indices>(?::[0-9a-fA-F]+)+)")
_PACKAGE: Final = re.compile(r"package-(?P<package>\d+)(?:-die-(?P<die>\d+))?")
_PSYS: Final = re.compile(r"psys(?:-(?P<package>\d+))?")

# sysfs has no unit, but the range is 2^32 - 1 units (intel_rapl_common.c: whole nanojoules).
_RESOLUTION_BY_RANGE_UJ: Final = {
    65_532_610_987: "15.3 uJ",  # 2^-16 J
    65_712_999_613: "15.3 uJ",  # fixed DRAM unit of Haswell to Ice Lake servers
    262_143_328_850: "61 uJ",  # 2^-14 J
    4_294_967_295_000_000: "1 J",  # psys of Sapphire and Emerald Rapids
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zone:
    """One zone directory."""

    path: str
    """Below the class directory: the path that the kernel documentation uses."""
    control: str
    indices: tuple[int, ...]
    name: str
    parents: tuple[str, ...]
    """Names of the enclosing zones, outermost first."""

    @property
    def order(self) -> tuple[int, int, tuple[int, ...]]:
        """Sort key, preferred zones first: MSR before MMIO, outer before inner, low index before high."""
        return (_TYPES.index(self.control), len(self.indices), self.indices)


def zone_names(host: Host) -> tuple[str, ...]:
    """Return the names of the zones, to detect changes; empty if there is no powercap class."""
    try:
        return tuple(name for name in _zone_paths(host)[1] if name.startswith(_TYPES[0]))
    except SensorError:
        return ()


def probe(machine: Machine, prober: Prober, *, parts: bool, findings: list[Finding]) -> Listing:
    """List the counters of this backend; of several zones with the same counter, the preferred zone comes first.

    Args:
        machine: The CPUs.
        prober: Reads the name of each zone.
        parts: Whether to include ``core`` and ``uncore``.
        findings: Receives one finding per excluded zone.

    Raises:
        SensorAbsentError: There is no powercap class, or no RAPL zone in it.
        SensorDeniedError: The class cannot be listed.
    """
    root, zones = _find_zones(machine.host, prober, findings)
    if not zones:
        raise SensorAbsentError(
            f"{root}: no RAPL zone (virtual machine, or the kernel module intel_rapl_msr is not loaded)"
        )
    claims = _claims(zones, machine, physical_packages(machine.host.sysfs), parts=parts, findings=findings)
    # On a machine with several packages, memory at top level repeats the dram zones of the packages.
    own_memory = any(quantity.domain.endswith("dram") and quantity.device != "platform" for quantity in claims)
    offers: list[Offer] = []
    for quantity, claimants in claims.items():
        if own_memory and quantity.device == "platform" and quantity.domain == "dram":
            findings.extend(_skipped(zone, "repeats the dram zones of the packages") for zone in claimants)
            continue
        offers.extend(_offer(zone, quantity, machine.name) for zone in claimants)
    return Listing(root, tuple(offers))


def _zone_paths(host: Host) -> tuple[str, dict[str, str]]:
    """Return the folder of the zones and the directory of each zone, by name.

    The kernel links all zones into one class directory. A bind mount or a copy may have only the zones inside each
    other, or only the device directory to which the class links.

    Raises:
        SensorAbsentError: The powercap class is missing.
        SensorDeniedError: The class cannot be listed.
    """
    root = f"{host.sysfs}/class/powercap"
    missing: SensorAbsentError | None = None
    paths: dict[str, str] = {}
    try:
        paths = _zones_below(root)
    except SensorAbsentError as error:
        missing = error
    if paths:
        return root, paths
    devices = f"{host.sysfs}/devices/virtual/powercap"
    with contextlib.suppress(SensorError):
        if paths := _zones_below(devices):
            return devices, paths
    if missing is not None:
        raise SensorAbsentError(f"{missing}; this kernel has no powercap class") from missing
    return root, {}


def _zones_below(folder: str, parent: str = "") -> dict[str, str]:
    """Return the directories of the zones in a folder, and of those nested in them, by name."""
    paths: dict[str, str] = {}
    inner: list[tuple[str, str]] = []
    for entry in list_names(folder):
        if _ZONE.fullmatch(entry) and entry.startswith(parent):
            paths[entry] = f"{folder}/{entry}"
            inner.append((paths[entry], f"{entry}:"))
        elif not parent and entry in _TYPES:
            inner.append((f"{folder}/{entry}", f"{entry}:"))
    for directory, prefix in inner:
        with contextlib.suppress(SensorError):  # a masked zone, or one that is disappearing
            paths = _zones_below(directory, prefix) | paths
    return paths


def _masked(host: Host, paths: Mapping[str, str]) -> SensorDeniedError | None:
    """Return the error for zones that are links into a hidden folder, as in a container."""
    if not paths or any(os.access(path, os.F_OK) for path in paths.values()):
        return None
    links = count_of(len(paths), "zone is a link", "zones are links")
    return SensorDeniedError(
        f"{host.sysfs}/class/powercap: its {links} into {host.sysfs}/devices/virtual/powercap, "
        "which is hidden, as container runtimes do by default. Mount the host's sysfs elsewhere and read it there: "
        "`docker run -v /sys:/host/sys:ro IMAGE --path.sysfs=/host/sys`; Kubernetes: a hostPath volume of /sys",
        devices=[f"socket{package}" for package in sorted(physical_packages(host.sysfs))],
    )


def _find_zones(host: Host, prober: Prober, findings: list[Finding]) -> tuple[str, list[_Zone]]:
    """Return the folder of the zones, and the zones of the known control types, preferred zones first."""
    root, paths = _zone_paths(host)
    if (masked := _masked(host, paths)) is not None:
        raise masked
    paths_and_names: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
    unknown: set[str] = set()
    for entry, path in paths.items():
        match = _ZONE.fullmatch(entry)
        assert match is not None
        control = match["type"]
        if control not in _TYPES:
            unknown.add(control)
            continue
        try:
            name = prober.call(f"{path}/name", "", partial(read_text, f"{path}/name"))
        except SensorError as error:
            findings.append(
                Finding(status="broken", collector="rapl", subject=path, text=f"zone without a readable name: {error}")
            )
            continue
        if name is None:
            continue  # the read hangs
        indices = tuple(int(index, 16) for index in match["indices"][1:].split(":"))
        paths_and_names[control, indices] = (path, name)
    findings.extend(
        skipped(f"{root}/{control}", "powercap control type other than RAPL: not read") for control in sorted(unknown)
    )
    zones = [
        _Zone(
            path=path,
            control=control,
            indices=indices,
            name=name,
            parents=tuple(
                paths_and_names[control, indices[:depth]][1]
                for depth in range(1, len(indices))
                if (control, indices[:depth]) in paths_and_names
            ),
        )
        for (control, indices), (path, name) in paths_and_names.items()
    ]
    return root, sorted(zones, key=lambda zone: zone.order)


def _claims(
    zones: Sequence[_Zone],
    machine: Machine,
    physical: frozenset[int],
    *,
    parts: bool,
    findings: list[Finding],
) -> dict[Quantity, list[_Zone]]:
    """Group the zones by the physical quantity that they count, preferred zones first."""
    one_counter = machine.is_one_counter
    packages = sorted({int(match["package"]) for zone in zones if (match := _PACKAGE.fullmatch(zone.name)) is not None})
    amd_packages: dict[int, tuple[str, str]] = {}
    claims: dict[Quantity, list[_Zone]] = {}
    for zone in zones:
        if (match := _PACKAGE.fullmatch(zone.name)) is not None and one_counter:
            package = int(match["package"])
            if physical and package not in physical:
                findings.append(
                    _skipped(
                        zone, f"there is no physical CPU package {package}: a CCD listed as a package, same counter"
                    )
                )
                continue
            first = amd_packages.setdefault(package, (zone.name, zone.path))
            if first[0] != zone.name:
                findings.append(
                    _skipped(zone, f"same socket counter as {first[1]}: this kernel lists each AMD CCD as a die")
                )
                continue
        if one_counter and zone.name == "core":
            findings.append(
                _skipped(zone, "on AMD and Hygon this counts one core, the lead CPU's, not all cores of the package")
            )
            continue
        quantity = _quantity(zone, packages, die_is_package=one_counter)
        if quantity is None:
            findings.append(_skipped(zone, f"unknown zone name {zone.name!r}"))
        elif quantity.scope == "part" and not parts:
            findings.append(_skipped(zone, "excluded by collectors.rapl.parts: false"))
        else:
            claims.setdefault(quantity, []).append(zone)
    return claims


def _quantity(zone: _Zone, packages: Sequence[int], *, die_is_package: bool) -> Quantity | None:
    """Return what a zone counts, from its name and the names of the enclosing zones; None if unknown."""
    if (match := _PACKAGE.fullmatch(zone.name)) is not None:
        return quantity_of("package", int(match["package"]), _die(match, die_is_package=die_is_package))
    if (match := _PSYS.fullmatch(zone.name)) is not None:
        return quantity_of("psys", int(match["package"] or 0), None)
    if zone.name not in ("core", "uncore", "dram"):
        return None
    kind: Kind = "core" if zone.name == "core" else "uncore" if zone.name == "uncore" else "dram"
    package = next((match for name in reversed(zone.parents) if (match := _PACKAGE.fullmatch(name))), None)
    if package is not None:
        return quantity_of(kind, int(package["package"]), _die(package, die_is_package=die_is_package))
    # A zone at top level names no package: it belongs to the only package, or else to the platform.
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
        backend="powercap",
        device=quantity.device,
        key=f"{quantity.device}/{quantity.domain}",
        path=path,
        subject=zone.path,
        label=zone.name,
        fix=denied_cure(path),
        open=partial(_open, zone, quantity, model),
    )


def _open(zone: _Zone, quantity: Quantity, model: str) -> tuple[RaplSensor, str]:
    """Open the counter and read it once.

    Raises:
        SensorAbsentError: The zone has no counter.
        SensorDeniedError: The counter cannot be read; the text names the path and the fix.
    """
    path = f"{zone.path}/energy_uj"
    try:
        read_int(path)
    except SensorAbsentError as error:
        raise SensorAbsentError(f"zone without a counter: {error}") from error
    except SensorDeniedError:
        raise
    except SensorGlitchError:
        pass  # it exists; only this read failed
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
        text += "; no max_energy_range_uj, so a falling counter is treated as a restart, not as a wrap"
    # The real path saves resolving a link in each read.
    return RaplSensor(
        device=quantity.device,
        infos=(info,),
        _quantity=quantity,
        _source=HeldInt(os.path.realpath(path)),
        _counts_per_joule=1e6,
    ), text


def _unit_text(range_uj: int) -> str:
    """Return the unit of a 32-bit counter with this range; 1 uJ if it is not the range of a 32-bit counter."""
    unit_uj = range_uj / (2**32 - 1)
    return f"{unit_uj:.3g} uJ" if unit_uj >= 1 else "1 uJ"


def _max_power_watts(zone: _Zone, quantity: Quantity) -> float:
    """Return twice the highest limit in firmware, but at least the floor of this kind of counter."""
    kind: Kind = "psys" if quantity.domain == "psys" else "dram" if quantity.component == "memory" else "package"
    try:
        entries = list_names(zone.path)
    except SensorError:
        entries = []  # the zone is disappearing: use the floor
    limits_uw = [
        read_int_or_none(f"{zone.path}/{entry}") or 0
        for entry in entries
        if re.fullmatch(r"constraint_\d+_(?:max_power|power_limit)_uw", entry)
    ]
    floor_watts = MAX_POWER_WATTS[kind]
    # Some firmware encodes "no limit" as all ones; taken as a limit, it would reduce the poll time to nothing.
    plausible_uw = max((limit for limit in limits_uw if limit < 20 * floor_watts * 1e6), default=0)
    return max(floor_watts, 2 * plausible_uw / 1e6)


def _skipped(zone: _Zone, text: str) -> Finding:
    return skipped(zone.path, f"{zone.name}: {text}")
