"""Alveo cards by the driver XRT (xocl, xclmgmt): board power and rails, from its own sysfs nodes or its hwmon chip.

What makes these files treacherous, as read in XRT's sources (2.8 to 2.21,
``src/runtime_src/core/pcie/driver/linux/xocl/subdev/xmc.c``):

* From 2.15 on ``xmc_power`` multiplies cached values and does not refresh them; on the management function nothing
  ever fills that cache, so it is 0. ``xmc_power_ins`` came with that change and reads the card. Before, ``xmc_power``
  read the card itself. Reading ``xmc_12v_pex_vol`` first refreshes the cache in all versions.
* The user function asks the management function, over a mailbox, for all sensors at once, at most every
  ``cache_expire_secs`` (1 s), and writes a line to the kernel log each time. ``sensor_update_timestamp`` says until
  when the cache is good, in milliseconds of CLOCK_BOOTTIME: so the time of each value is known to the millisecond, and
  whether the values of one pass come from one answer. The management function reads registers: no cache, no log.
* Whatever goes wrong (no answer over the mailbox, the card's controller stopped, firmware loading) reads 0.
* ``xmc_heartbeat_stall``, kept by the management function alone, is 1 while the card's values are frozen.
* In hwmon, ``power1_average`` is the maximum and ``power2_*`` the target of clock scaling: neither is ever touched.

The card's power is 12V PEX + 12V AUX + 3V3 PEX, in every one of these ways; 3V3 AUX is beside it, the other rails
are behind it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
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
"""The directory of the card's sensors; its number is arbitrary and another after a hot reset."""

XRT_CHIP: Final = re.compile(r"(?P<model>.*)_(?P<kind>user|mgmt)")
"""The name of the hwmon chip; `SDM_CHIP` of `cards` must be tried before."""

VOLTS_TIMES_AMPERES: Final = "volts times amperes"
"""The way that needs no node for the power: each rail's voltage times its current."""

_TRIES: Final = 3
_CLOCK_SLACK_NS: Final = 50 * _NS_PER_MS
_STALE_SLACK_S: Final = 1
"""A cache that is older than its own limit by this has not been refreshed by our read, as it should have been."""

_LIMITS_WATTS: Final = {1: 150.0, 2: 225.0}
"""By ``max_power``. Level 0 would be 75 W, but is also what a driver without board information says."""

# domain, voltage, current, addend. No current is known for the HBM's and DDR's rails, so no power either.
_XMC_RAILS: Final = (
    ("12v_pex", "xmc_12v_pex_vol", "xmc_12v_pex_curr", True),
    ("12v_aux", "xmc_12v_aux_vol", "xmc_12v_aux_curr", True),
    ("3v3_pex", "xmc_3v3_pex_vol", "xmc_3v3_pex_curr", True),
    ("3v3_aux", "xmc_3v3_aux_vol", "xmc_3v3_aux_cur", False),  # sic
    ("vccint", "xmc_vccint_vol", "xmc_vccint_curr", False),
    ("vccint_io", "xmc_vccint_bram_vol", "xmc_0v85_curr", False),  # the pair that XRT's own tools show so
)
# domain, label of the voltage, label of the current, addend.
_HWMON_RAILS: Final = (
    ("12v_pex", "12V PEX", "12V PEX Current", True),
    ("12v_aux", "12V AUX", "12V AUX Current", True),
    ("3v3_pex", "3V3 PEX", "3V3 PEX Current", True),
    ("3v3_aux", "3V3 AUX", "3V3 AUX Current", False),
    ("vccint", "VCC INT", "VCC INT Current", False),
    ("vccint_io", "VCC INT BRAM", "VCC 0V85 Current", False),
)


class _DriverCache:
    """When the user function's driver got the values it shows; the management function has no cache."""

    def __init__(self, directory: str) -> None:
        self._stamp = HeldInt(f"{directory}/sensor_update_timestamp")
        self._expire = HeldInt(f"{directory}/cache_expire_secs")
        self._seen_stamp = -1
        self._seen_ns = 0
        self._seen_read_at_ns = 0
        self._expire_s = 0

    def good_until_ms(self) -> int | None:
        """Until when the cache is good; None: there is none, every read goes to the card."""
        try:
            self._expire_s = self._expire.read()
            stamp_ms = self._stamp.read()
        except SensorError:
            return None
        return stamp_ms if stamp_ms > 0 and self._expire_s > 0 else None

    def read_at_ns(self, good_until_ms: int | None) -> int:
        """Monotonic time at which the driver got its values.

        Raises:
            SensorGlitchError: It has not got new ones although its cache has expired.
        """
        now_ns = monotonic_ns()
        if good_until_ms is None:
            return now_ns
        if good_until_ms == self._seen_stamp:
            if now_ns - self._seen_ns > (self._expire_s + _STALE_SLACK_S) * _NS_PER_S:
                raise SensorGlitchError(f"{self._stamp.path}: the driver does not refresh its values")
            # The very same time for the very same values.
            return self._seen_read_at_ns
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        age_ns = boot_ns - (good_until_ms * _NS_PER_MS - self._expire_s * _NS_PER_S)
        # Outside these bounds the clock is another's (a time namespace): then the time of the read must do.
        is_plausible = -_CLOCK_SLACK_NS <= age_ns <= (self._expire_s + _STALE_SLACK_S) * _NS_PER_S
        read_at_ns = now_ns - max(age_ns, 0) if is_plausible else now_ns
        self._seen_stamp, self._seen_ns, self._seen_read_at_ns = good_until_ms, now_ns, read_at_ns
        return read_at_ns

    def close(self) -> None:
        self._stamp.close()
        self._expire.close()


class XrtSensor:
    """One card by one function of the driver: its total, and its rails from the same values."""

    def __init__(
        self,
        device: str,
        *,
        source: str,
        model: str,
        total: Number | None,
        rails: Sequence[RailFiles],
        shown: Sequence[RailFiles],
        first: str | None = None,
        cache: str | None = None,
        heartbeats: Sequence[str] = (),
        limit_watts: float | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            device: The card's label.
            source: What the total is read from, as shown.
            model: Of the card, for people.
            total: The file with its microwatts; None: the sum of those ``rails`` that are addends.
            rails: Those that are read.
            shown: Those of them that have a series.
            first: A node to be read before the others, because reading it refreshes the driver's cache.
            cache: The directory with the files about the driver's cache.
            heartbeats: Files that say 1 while the card's values are frozen.
            limit_watts: What the card is made for.
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
        )
        infos = {rail.domain: rail_info(device, rail, model) for rail in shown}
        self.infos = (info, *infos.values())
        self._rails = tuple(
            (Rail(rail), infos[rail.domain].quantity if rail.domain in infos else None) for rail in rails
        )

    def read(self) -> Sequence[Reading]:
        """Read the card once.

        Returns:
            The total, and the rails that could be read; all at one time.

        Raises:
            SensorGlitchError: No data, frozen values, or values of two refreshes mixed.
            SensorAbsentError: The card is gone, or was reset and has another number now.
            SensorDeniedError: The rights are gone.
        """
        for heartbeat in self._heartbeats:
            self._check(heartbeat)
        for _ in range(_TRIES):
            if self._first is not None:
                self._first.read()
            stamp_ms = self._cache.good_until_ms() if self._cache is not None else None
            watts, rails = self._read_once()
            if self._cache is None:
                read_at_ns = monotonic_ns()
            elif self._cache.good_until_ms() == stamp_ms:
                read_at_ns = self._cache.read_at_ns(stamp_ms)
            else:
                continue  # refreshed in the middle: these values are not of one instant
            parts = [
                Reading(quantity=quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=rail_watts)
                for quantity, rail_watts in rails
            ]
            return (
                Reading(quantity=self._quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=watts),
                *parts,
            )
        raise SensorGlitchError(f"{self._source}: the driver's values changed while they were read, {_TRIES} times")

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
                continue  # the card's total is there all the same
            if rail.files.is_addend:
                sum_microwatts += microwatts
            if quantity is not None:
                rails.append((quantity, microwatts / 1e6))
        return checked_watts(self._source, total_microwatts if self._total is not None else sum_microwatts), rails

    def _check(self, heartbeat: HeldInt) -> None:
        try:
            is_stalled = heartbeat.read() == 1
        except SensorError:
            return  # the other function may come and go as it likes
        if is_stalled:
            raise SensorGlitchError(f"{heartbeat.path}: 1: the card's controller is stalled and its values are frozen")

    def close(self) -> None:
        """Let go of all files; safe to call twice."""
        held: list[Number | Rail | HeldInt | _DriverCache | None] = [self._total, self._first, self._cache]
        for item in (*held, *self._heartbeats, *(rail for rail, _ in self._rails)):
            if item is not None:
                item.close()


def open_xmc(device: str, directory: str, way: str, *, parts: bool, model: str, heartbeats: Sequence[str],
             findings: list[Finding]) -> XrtSensor:  # fmt: skip
    """Prepare to read a card by XRT's own nodes.

    Args:
        device: The card's label.
        directory: ``xmc.u.N`` or ``xmc.m.N`` of one of its functions.
        way: One of `xmc_ways`.
        parts: Whether rails have a series.
        model: Of the card, for people.
        heartbeats: Of all its functions.
        findings: Gets rails that are denied.

    Raises:
        SensorAbsentError: It cannot be read in this way.
    """
    existing = _existing(_XMC_RAILS, directory)
    addends = [rail for rail in existing if rail.is_addend]
    shown = powered_rails(existing, findings) if parts else []
    first = f"{directory}/xmc_12v_pex_vol"
    if way == VOLTS_TIMES_AMPERES:
        if not any(rail.domain == "12v_pex" for rail in addends):
            raise SensorAbsentError(f"{directory}: no voltage and current of the slot's 12 V")
        total, source = None, f"{directory}: {' + '.join(rail.domain for rail in addends)}"
        rails = [*addends, *(rail for rail in shown if not rail.is_addend)]
    else:
        total, source = Number(f"{directory}/{way}"), f"{directory}/{way}"
        rails = list(shown)
    return XrtSensor(
        device,
        source=source,
        model=model,
        total=total,
        rails=rails,
        shown=shown,
        first=first if Path(first).exists() else None,
        cache=directory if directory.rpartition("/")[2].startswith("xmc.u.") else None,
        heartbeats=heartbeats,
        limit_watts=_LIMITS_WATTS.get(read_int_or_none(f"{directory}/max_power") or 0),
    )


def xmc_ways(directory: str) -> list[str]:
    """The ways to read the card's power here, the preferred one first."""
    ways = [node for node in ("xmc_power_ins", "xmc_power") if Path(f"{directory}/{node}").exists()]
    return [*ways, VOLTS_TIMES_AMPERES]


def open_xrt_hwmon(device: str, directory: str, *, parts: bool, model: str, heartbeats: Sequence[str],
                   findings: list[Finding]) -> XrtSensor:  # fmt: skip
    """Prepare to read a card by the hwmon chip that XRT makes; arguments as those of `open_xmc`.

    Raises:
        SensorAbsentError: The chip has no power channel.
    """
    path = f"{directory}/power1_input"
    if not Path(path).exists():
        raise SensorAbsentError(f"{path}: not there")
    shown = powered_rails(_labelled(directory), findings) if parts else []
    return XrtSensor(
        device, source=path, model=model, total=Number(path), rails=shown, shown=shown, heartbeats=heartbeats
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
    """The rails of a hwmon chip, whose numbers mean nothing: its labels say what is what."""
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
    """The card's name: by its hwmon chip, by the platform in its ROM, or by its board; empty if nothing says it."""
    if (match := XRT_CHIP.fullmatch(chip)) is not None:
        return match["model"]
    roms = [name for name in list_names(function) if re.fullmatch(r"rom\.[um]\.\d+", name)]
    texts = (read_text_or(path, "") for path in [*(f"{function}/{rom}/VBNV" for rom in roms), f"{xmc}/bd_name"])
    return next((text for text in texts if text), "")
