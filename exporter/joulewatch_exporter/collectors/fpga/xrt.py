"""Alveo cards with the driver XRT (xocl, xclmgmt): board power and rails, from its sysfs nodes or its hwmon chip.

Pitfalls of these files, from XRT's sources (2.8 to 2.21, ``src/runtime_src/core/pcie/driver/linux/xocl/subdev/xmc.c``):

* Since 2.15, ``xmc_power`` multiplies cached values without refreshing them; on the management function the cache is
  never filled, so it is 0. ``xmc_power_ins`` was added in the same version and reads the card. Before 2.15,
  ``xmc_power`` reads the card. Reading ``xmc_12v_pex_vol`` first refreshes the cache in all versions.
* The user function requests all sensors from the management function over a mailbox, at most every
  ``cache_expire_secs`` (1 s), and writes a line to the kernel log each time. ``sensor_update_timestamp`` is the time
  until which the cache is valid, in milliseconds of CLOCK_BOOTTIME. It gives the time of each value to the millisecond
  and shows whether the values of one pass come from one refresh. The management function reads registers: no cache, no
  log.
* Every failure (no answer over the mailbox, the card's controller stopped, firmware loading) reads as 0.
* ``xmc_heartbeat_stall``, which only the management function updates, is 1 while the card's values are frozen.
* In hwmon, ``power1_average`` is the maximum and ``power2_*`` the target of clock scaling: neither is used.

In all backends the card's power is 12V PEX + 12V AUX + 3V3 PEX. 3V3 AUX is not part of it; the other rails are supplied
by these three.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import HeldInt, list_names, read_int_or_none, read_text_or
from joulewatch_exporter.collectors.fpga.common import (
    MAX_POWER_WATTS,
    TOTAL,
    Number,
    Rail,
    RailFiles,
    checked_watts,
    powered_rails,
    rail_info,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Quantity, Reading, SensorInfo

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000

XMC: Final = re.compile(r"xmc\.(?P<kind>[um])\.\d+")
"""The directory of the card's sensors; its number is arbitrary and changes after a hot reset."""

XRT_CHIP: Final = re.compile(r"(?P<model>.*)_(?P<kind>user|mgmt)")
"""The name of the hwmon chip; match `cards.SDM_CHIP` first."""

VOLTS_TIMES_AMPERES: Final = "volts times amperes"
"""Source of the total on cards without a power node: the sum of voltage times current of the supply rails."""

_TRIES: Final = 3
_CLOCK_SLACK_NS: Final = 50 * _NS_PER_MS
_STALE_SLACK_S: Final = 1
"""A cache that is older than its lifetime plus this was not refreshed by our read, although it should have been."""

_LIMITS_WATTS: Final = {1: 150.0, 2: 225.0}
"""Power limit by ``max_power`` level. Level 0 would be 75 W, but drivers without board information also return 0."""

# Domain, voltage, current, is_addend. The HBM and DDR rails have no current, so their power is unknown.
_XMC_RAILS: Final = (
    ("12v_pex", "xmc_12v_pex_vol", "xmc_12v_pex_curr", True),
    ("12v_aux", "xmc_12v_aux_vol", "xmc_12v_aux_curr", True),
    ("3v3_pex", "xmc_3v3_pex_vol", "xmc_3v3_pex_curr", True),
    ("3v3_aux", "xmc_3v3_aux_vol", "xmc_3v3_aux_cur", False),  # sic
    ("vccint", "xmc_vccint_vol", "xmc_vccint_curr", False),
    ("vccint_io", "xmc_vccint_bram_vol", "xmc_0v85_curr", False),  # XRT's own tools combine these two
)
# Domain, label of the voltage, label of the current, is_addend.
_HWMON_RAILS: Final = (
    ("12v_pex", "12V PEX", "12V PEX Current", True),
    ("12v_aux", "12V AUX", "12V AUX Current", True),
    ("3v3_pex", "3V3 PEX", "3V3 PEX Current", True),
    ("3v3_aux", "3V3 AUX", "3V3 AUX Current", False),
    ("vccint", "VCC INT", "VCC INT Current", False),
    ("vccint_io", "VCC INT BRAM", "VCC 0V85 Current", False),
)


class _DriverCache:
    """Tracks when the user function's driver received its cached values; the management function has no cache."""

    def __init__(self, directory: str) -> None:
        self._valid_until = HeldInt(f"{directory}/sensor_update_timestamp")
        self._lifetime = HeldInt(f"{directory}/cache_expire_secs")
        self._last_valid_until_ms = -1
        self._last_changed_ns = 0
        self._last_read_at_ns = 0
        self._lifetime_s = 0

    def valid_until_ms(self) -> int | None:
        """Return until when the cache is valid; None: there is no cache, every read goes to the card."""
        try:
            self._lifetime_s = self._lifetime.read()
            valid_until_ms = self._valid_until.read()
        except SensorError:
            return None
        return valid_until_ms if valid_until_ms > 0 and self._lifetime_s > 0 else None

    def read_at_ns(self, valid_until_ms: int | None) -> int:
        """Return the monotonic time at which the driver received its values.

        Raises:
            SensorGlitchError: The cache has expired, but was not refreshed.
        """
        now_ns = monotonic_ns()
        if valid_until_ms is None:
            return now_ns
        if valid_until_ms == self._last_valid_until_ms:
            if now_ns - self._last_changed_ns > (self._lifetime_s + _STALE_SLACK_S) * _NS_PER_S:
                raise SensorGlitchError(f"{self._valid_until.path}: the driver does not refresh its values")
            return self._last_read_at_ns  # the same values must have the same time
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        age_ns = boot_ns - (valid_until_ms * _NS_PER_MS - self._lifetime_s * _NS_PER_S)
        # Outside these bounds the clocks differ (a time namespace): use the time of the read instead.
        is_plausible = -_CLOCK_SLACK_NS <= age_ns <= (self._lifetime_s + _STALE_SLACK_S) * _NS_PER_S
        read_at_ns = now_ns - max(age_ns, 0) if is_plausible else now_ns
        self._last_valid_until_ms, self._last_changed_ns, self._last_read_at_ns = valid_until_ms, now_ns, read_at_ns
        return read_at_ns

    def close(self) -> None:
        self._valid_until.close()
        self._lifetime.close()


class XrtSensor:
    """One card, read through one of its functions: the total, and the rails from the same values."""

    def __init__(
        self,
        device: str,
        *,
        source: str,
        model: str,
        total: Number | None,
        rails: Sequence[RailFiles],
        published: Sequence[RailFiles],
        first: str | None = None,
        cache: str | None = None,
        heartbeats: Sequence[str] = (),
        limit_watts: float | None = None,
    ) -> None:
        """Prepare without reading.

        Args:
            device: The card's label.
            source: What the total is read from, for the label.
            model: Model of the card, for display.
            total: The file with the total in microwatts; None: use the sum of those ``rails`` that are addends.
            rails: The rails to read.
            published: Those of ``rails`` that have a series.
            first: A node to read before the others, because reading it refreshes the driver's cache.
            cache: The directory with the files that describe the driver's cache.
            heartbeats: Files that contain 1 while the card's values are frozen.
            limit_watts: Power limit of the card.
        """
        self.device = device
        self._source = source
        self._total = total
        self._first = None if first is None else Number(first)
        self._cache = None if cache is None else _DriverCache(cache)
        self._heartbeats = tuple(HeldInt(path) for path in heartbeats)
        self._quantity = Quantity(scope="device", component="fpga", device=device, domain=TOTAL)
        info = SensorInfo(
            quantity=self._quantity,
            method="integrated",
            source=source,
            model=model,
            resolution="12 mW",  # a milliampere at 12 V
            max_power_watts=MAX_POWER_WATTS,
            limit_watts=limit_watts,
            read_mode=None if cache is None else "polled",
        )
        infos = {rail.domain: replace(rail_info(device, rail, model), read_mode=info.read_mode) for rail in published}
        self.infos = (info, *infos.values())
        self._rails = tuple(
            (Rail(rail), infos[rail.domain].quantity if rail.domain in infos else None) for rail in rails
        )

    def read(self) -> Sequence[Reading]:
        """Read the card once.

        Returns:
            The total and the readable rails, all with one time.

        Raises:
            SensorGlitchError: No data, frozen values, or a mix of values from two refreshes.
            SensorAbsentError: The card disappeared, or was reset and has another number now.
            SensorDeniedError: Permission was lost.
        """
        for heartbeat in self._heartbeats:
            self._check(heartbeat)
        for _ in range(_TRIES):
            if self._first is not None:
                self._first.read()
            valid_until_ms = self._cache.valid_until_ms() if self._cache is not None else None
            watts, rails = self._read_once()
            if self._cache is None:
                read_at_ns = monotonic_ns()
            elif self._cache.valid_until_ms() == valid_until_ms:
                read_at_ns = self._cache.read_at_ns(valid_until_ms)
            else:
                continue  # refreshed during the read: the values are from two refreshes
            parts = [
                Reading(quantity=quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=rail_watts)
                for quantity, rail_watts in rails
            ]
            return (
                Reading(quantity=self._quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=watts),
                *parts,
            )
        raise SensorGlitchError(f"{self._source}: the driver's values changed during each of {_TRIES} reads")

    def _read_once(self) -> tuple[float, list[tuple[Quantity, float]]]:
        sum_microwatts = 0
        rails: list[tuple[Quantity, float]] = []
        total_microwatts = self._total.read() if self._total is not None else 0
        for rail, quantity in self._rails:
            try:
                microwatts = rail.microwatts()
            except (SensorGlitchError, SensorDeniedError):
                if self._total is None and rail.files.is_addend:
                    raise
                continue  # the card's total does not depend on it
            if rail.files.is_addend:
                sum_microwatts += microwatts
            if quantity is not None:
                rails.append((quantity, microwatts / 1e6))
        return checked_watts(self._source, total_microwatts if self._total is not None else sum_microwatts), rails

    def _check(self, heartbeat: HeldInt) -> None:
        try:
            is_stalled = heartbeat.read() == 1
        except SensorError:
            return  # the other function may be missing
        if is_stalled:
            raise SensorGlitchError(f"{heartbeat.path}: 1: the card's controller is stalled and its values are frozen")

    def close(self) -> None:
        """Close all files; safe to call twice."""
        files: list[Number | Rail | HeldInt | _DriverCache | None] = [self._total, self._first, self._cache]
        for file in (*files, *self._heartbeats, *(rail for rail, _ in self._rails)):
            if file is not None:
                file.close()


def open_xmc(
    device: str,
    directory: str,
    node: str,
    *,
    parts: bool,
    model: str,
    heartbeats: Sequence[str],
    findings: list[Finding],
) -> XrtSensor:
    """Prepare to read a card through XRT's own nodes.

    Args:
        device: The card's label.
        directory: ``xmc.u.N`` or ``xmc.m.N`` of one of its functions.
        node: One of `power_nodes`.
        parts: Whether rails have a series.
        model: Model of the card, for display.
        heartbeats: Heartbeat files of all functions of the card.
        findings: Receives a finding per denied rail.

    Raises:
        SensorAbsentError: The files for this node are missing.
    """
    existing = _existing(_XMC_RAILS, directory)
    addends = [rail for rail in existing if rail.is_addend]
    published = powered_rails(existing, findings) if parts else []
    first = f"{directory}/xmc_12v_pex_vol"
    if node == VOLTS_TIMES_AMPERES:
        if not any(rail.domain == "12v_pex" for rail in addends):
            raise SensorAbsentError(f"{directory}: no voltage and current of the slot's 12 V rail")
        total, source = None, f"{directory}: {' + '.join(rail.domain for rail in addends)}"
        rails = [*addends, *(rail for rail in published if not rail.is_addend)]
    else:
        total, source = Number(f"{directory}/{node}"), f"{directory}/{node}"
        rails = list(published)
    return XrtSensor(
        device,
        source=source,
        model=model,
        total=total,
        rails=rails,
        published=published,
        first=first if Path(first).exists() else None,
        cache=directory if directory.rpartition("/")[2].startswith("xmc.u.") else None,
        heartbeats=heartbeats,
        limit_watts=_LIMITS_WATTS.get(read_int_or_none(f"{directory}/max_power") or 0),
    )


def power_nodes(directory: str) -> list[str]:
    """Return the nodes with the card's power in order of preference; the last one is `VOLTS_TIMES_AMPERES`."""
    nodes = [node for node in ("xmc_power_ins", "xmc_power") if Path(f"{directory}/{node}").exists()]
    return [*nodes, VOLTS_TIMES_AMPERES]


def open_xrt_hwmon(
    device: str, directory: str, *, parts: bool, model: str, heartbeats: Sequence[str], findings: list[Finding]
) -> XrtSensor:
    """Prepare to read a card through XRT's hwmon chip; for the arguments see `open_xmc`.

    Raises:
        SensorAbsentError: The chip has no power channel.
    """
    path = f"{directory}/power1_input"
    if not Path(path).exists():
        raise SensorAbsentError(f"{path}: missing")
    rails = powered_rails(_labelled(directory), findings) if parts else []
    return XrtSensor(
        device, source=path, model=model, total=Number(path), rails=rails, published=rails, heartbeats=heartbeats
    )


def _existing(table: Sequence[tuple[str, str, str, bool]], directory: str) -> list[RailFiles]:
    rails = [
        RailFiles(
            domain=domain, millivolts=f"{directory}/{volts}", milliamperes=f"{directory}/{amperes}", is_addend=is_addend
        )
        for domain, volts, amperes, is_addend in table
    ]
    return [rail for rail in rails if Path(rail.millivolts).exists() and Path(rail.milliamperes).exists()]


def _labelled(directory: str) -> list[RailFiles]:
    """Return the rails of a hwmon chip; its channels are identified by label, because their numbers vary."""
    stems = {}
    for name in list_names(directory):
        if re.fullmatch(r"(?:in|curr)\d+_label", name):
            stems[read_text_or(f"{directory}/{name}", "")] = f"{directory}/{name.removesuffix('_label')}_input"
    return [
        RailFiles(domain=domain, millivolts=stems[volts], milliamperes=stems[amperes], is_addend=is_addend)
        for domain, volts, amperes, is_addend in _HWMON_RAILS
        if volts in stems and amperes in stems
    ]


def xrt_model(function: str, xmc: str, chip: str) -> str:
    """Return the card's name from its hwmon chip, the platform in its ROM, or its board; empty if unknown."""
    if (match := XRT_CHIP.fullmatch(chip)) is not None:
        return match["model"]
    roms = [name for name in list_names(function) if re.fullmatch(r"rom\.[um]\.\d+", name)]
    texts = (read_text_or(path, "") for path in [*(f"{function}/{rom}/VBNV" for rom in roms), f"{xmc}/bd_name"])
    return next((text for text in texts if text), "")
