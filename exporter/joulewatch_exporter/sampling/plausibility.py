"""Whether the sensors of one machine agree with each other: a sensor that answers may still be wrong.

Pure: fed with scans, it compares mean powers over 30 s and more, each quantity on its own timestamps, and reports what
is impossible. Two checks in a row must agree, so that a load that changes at the edge of a window raises no alarm.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from joulewatch_exporter.catalog import (
    FROZEN_ASSUMED_REFRESH_S,
    FROZEN_LOAD_SHARE,
    FROZEN_LOAD_WATTS,
    FROZEN_READS,
    frozen_after_s,
    resolution_joules,
)
from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.scan import FamilyScan, Reads

logger = logging.getLogger(__name__)

Check = Literal["cores_to_package", "rails_to_card", "power_to_energy", "devices_to_node", "power_to_limit", "stuck"]

WINDOW_S: Final = 30.0
"""Shortest time over which a mean is taken. A BMC's value is seconds old, so the window must be much longer."""
CHECKS_TO_CONFIRM: Final = 2
_SNAPSHOTS_KEPT: Final = 8
LOADS_KEPT: Final = 64
"""Number of refreshes of a power sensor over which the load is compared."""
MIN_WATTS: Final = 5.0
"""Below this no ratio is checked: at a few watts, sensors disagree by their resolution."""

# Plausible ratios. Cores: one energy unit of slack. Node: values are seconds old, and a meter is off by a few percent.
_BOUNDS: Final[Mapping[Check, tuple[float, float]]] = {
    "cores_to_package": (0.0, 1.02),
    "rails_to_card": (0.9, 1.1),
    "power_to_energy": (0.8, 1.25),
    "devices_to_node": (0.0, 1.1),
    "power_to_limit": (0.0, 1.1),
}

_TEXTS: Final[Mapping[Check, str]] = {
    "cores_to_package": "its cores draw {ratio:.3f} times the power of the package",
    "rails_to_card": "its rails draw {ratio:.3f} times the power of the card",
    "power_to_energy": "its integrated power is {ratio:.3f} times the energy of its counter",
    "devices_to_node": "the devices draw {ratio:.3f} times the power of the node",
    "power_to_limit": "its mean power is {ratio:.3f} times its power limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of one check of one quantity."""

    check: Check
    collector: str
    device: str
    domain: str
    ratio: float | None
    """The ratio that is checked; None for the check "stuck", which compares nothing."""
    is_implausible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    info: SensorInfo
    reads: Reads
    is_present: bool
    """False: the quantity is not in this scan, and the numbers have no meaning."""
    energy_joules: float = 0.0
    read_at_s: float = 0.0
    unmeasured_s: float = 0.0
    refresh_s: float | None = None
    power_watts: float | None = None


_Key = tuple[str, Quantity]
_Snapshot = dict[_Key, _Value]


class _Load(NamedTuple):
    """The sum of the powers that a quantity must follow."""

    watts: float = 0.0
    sensors: int = 0
    """Number of addends; sums of different sensors are not compared."""

    def plus(self, watts: float) -> _Load:
        return _Load(self.watts + watts, self.sensors + 1)


@dataclass(slots=True, kw_only=True)
class _Unchanged:
    """A value that has not changed, and what happened meanwhile."""

    value: float
    since_s: float
    reads: int = 1
    """Number of checks in which the value had a new read timestamp."""
    read_at_s: float
    loads: deque[_Load]
    """The load at such reads, at most one per refresh of the sensor, because a slow sensor follows the load late."""
    load_at_s: float
    change_watts: float = 0.0
    """By how much the load changed when the value should have followed; 0: it has not changed."""

    def add_read(self, read_at_s: float, refresh_s: float, load: _Load | None) -> None:
        if read_at_s <= self.read_at_s:
            return
        self.reads += 1
        self.read_at_s = read_at_s
        if load is not None and read_at_s - self.load_at_s >= refresh_s:
            if self.loads and self.loads[-1].sensors != load.sensors:
                self.loads.clear()
            self.loads.append(load)
            self.load_at_s = read_at_s
            if len(self.loads) >= 2 * FROZEN_READS:
                loads_watts = sorted(load.watts for load in self.loads)
                # Without the extremes: a sensor may miss a short peak.
                low_watts, high_watts = loads_watts[FROZEN_READS - 1], loads_watts[-FROZEN_READS]
                if high_watts - low_watts >= max(FROZEN_LOAD_WATTS, FROZEN_LOAD_SHARE * high_watts):
                    self.change_watts = max(self.change_watts, high_watts - low_watts)


class Plausibility:
    """Compares the newest scans with those of the last minute, and counts the failures in a row."""

    def __init__(self) -> None:
        self._snapshots: deque[_Snapshot] = deque(maxlen=_SNAPSHOTS_KEPT)
        self._unchanged: dict[_Key, _Unchanged] = {}
        self._failures: dict[tuple[Check, _Key], int] = {}

    def check(self, scans: Sequence[FamilyScan]) -> tuple[Verdict, ...]:
        """Check the newest scans, about ten seconds after the last ones.

        Args:
            scans: The last scan of each family.

        Returns:
            One verdict for each check that was possible.
        """
        now = _snapshot(scans)
        verdicts = []
        baseline = self._baseline(now)
        if baseline is not None:
            for check, key, ratio in _ratios(now, _mean_watts(baseline, now)):
                low, high = _BOUNDS[check]
                verdicts.append(self._judge(check, key, ratio, not low <= ratio <= high, _TEXTS[check]))
        verdicts += self._stuck(now)
        self._snapshots.append(now)
        known = {(verdict.check, verdict.collector, verdict.device, verdict.domain) for verdict in verdicts}
        self._failures = {
            (check, key): count
            for (check, key), count in self._failures.items()
            if (check, key[0], key[1].device, key[1].domain) in known
        }
        return tuple(verdicts)

    def _judge(self, check: Check, key: _Key, ratio: float | None, has_failed: bool, text: str) -> Verdict:
        collector, quantity = key
        count = self._failures.get((check, key), 0) + 1 if has_failed else 0
        was = self._failures.get((check, key), 0) >= CHECKS_TO_CONFIRM
        is_implausible = count >= CHECKS_TO_CONFIRM
        self._failures[check, key] = count
        if is_implausible != was:
            message = text.format(ratio=ratio) if is_implausible else f"plausible again ({check})"
            level = logging.WARNING if is_implausible else logging.INFO
            logger.log(level, "%s %s %s: %s", collector, quantity.device, quantity.domain, message)
        return Verdict(
            check=check,
            collector=collector,
            device=quantity.device,
            domain=quantity.domain,
            ratio=ratio,
            is_implausible=is_implausible,
        )

    def _baseline(self, now: _Snapshot) -> _Snapshot | None:
        """Return the newest snapshot that is old enough for a mean, and drop those before it."""
        newest_s = _newest_s(now)
        baseline = None
        while self._snapshots and newest_s - _newest_s(self._snapshots[0]) >= WINDOW_S:
            baseline = self._snapshots.popleft()
        if baseline is not None:
            self._snapshots.appendleft(baseline)
        return baseline

    def _stuck(self, now: _Snapshot) -> Iterator[Verdict]:
        """Detect frozen sensors; see the definition in `catalog`."""
        loads = _loads(now)
        for key, value in now.items():
            is_counter = value.reads == "energy"
            load = loads.get(key)
            shown = value.energy_joules if is_counter else value.power_watts
            if not value.is_present or shown is None or key[1].scope == "part":
                continue
            if not is_counter and load is None:
                continue
            unchanged = self._unchanged.get(key)
            if unchanged is None or unchanged.value != shown:
                self._unchanged[key] = _Unchanged(
                    value=shown,
                    since_s=value.read_at_s,
                    read_at_s=value.read_at_s,
                    loads=deque([] if load is None else [load], maxlen=LOADS_KEPT),
                    load_at_s=value.read_at_s,
                )
                if unchanged is not None:
                    yield self._judge("stuck", key, None, False, "")
                continue
            unchanged.add_read(value.read_at_s, value.refresh_s or FROZEN_ASSUMED_REFRESH_S, load)
            step_joules = resolution_joules(value.info.resolution) if is_counter else 0.0
            same_s = unchanged.read_at_s - unchanged.since_s
            is_long = same_s >= frozen_after_s(value.refresh_s, step_joules, key[0]) and unchanged.reads >= FROZEN_READS
            text = f"its energy counter has not moved for {same_s:.0f} s"
            if not is_counter:
                is_long = is_long and unchanged.change_watts > 0.0
                text = (
                    f"its power has not changed for {same_s:.0f} s, "
                    f"while the load changed by {unchanged.change_watts:.0f} W"
                )
            yield self._judge("stuck", key, None, is_long, text)
        for key in [key for key in self._unchanged if key not in now or not now[key].is_present]:
            del self._unchanged[key]


def _loads(now: _Snapshot) -> dict[_Key, _Load]:
    """Return the load that each quantity must follow.

    For a node it is the power of all devices. For a device it is the power of its parts, because it may be idle
    while other devices are not. For parts, and for other machines, it is not known.
    """
    of_parts: dict[tuple[str, str, str], _Load] = defaultdict(_Load)
    of_devices = _Load()
    for (collector, quantity), value in now.items():
        watts = value.power_watts
        if watts is None or not value.is_present or value.info.is_remote:
            continue
        if quantity.scope == "device":
            of_devices = of_devices.plus(watts)
        elif quantity.scope == "part" and value.info.relation != "contains":
            device = (collector, quantity.component, quantity.device)
            of_parts[device] = of_parts[device].plus(watts)
    loads: dict[_Key, _Load] = {}
    for key, value in now.items():
        collector, quantity = key
        if quantity.scope == "part" or value.info.is_remote:
            continue
        if quantity.scope == "node":
            loads[key] = of_devices
        elif (device := (collector, quantity.component, quantity.device)) in of_parts:
            loads[key] = of_parts[device]
    return loads


def _snapshot(scans: Sequence[FamilyScan]) -> _Snapshot:
    snapshot: _Snapshot = {}
    for scan in scans:
        devices = dict(zip(scan.layout.devices, scan.read_at_s, strict=True))
        rows = zip(scan.layout.infos, scan.energies_joules, scan.powers_watts, scan.healths, scan.reads, strict=True)
        for info, energy_joules, power_watts, health, reads in rows:
            if scan.collector == "estimate":
                continue
            read_at_s = devices.get(info.quantity.device)
            key = (scan.collector, info.quantity)
            if energy_joules is None or health is None or read_at_s is None:
                snapshot[key] = _Value(info=info, reads=reads, is_present=False)
            else:
                snapshot[key] = _Value(
                    info=info,
                    reads=reads,
                    is_present=True,
                    energy_joules=energy_joules,
                    read_at_s=read_at_s,
                    unmeasured_s=health.unmeasured_s,
                    refresh_s=health.refresh_s,
                    power_watts=power_watts,
                )
    return snapshot


def _newest_s(snapshot: _Snapshot) -> float:
    return max((value.read_at_s for value in snapshot.values()), default=0.0)


def _mean_watts(baseline: _Snapshot, now: _Snapshot) -> dict[_Key, float]:
    """Return the mean power between two snapshots of each quantity that has no unmeasured time between them."""
    means = {}
    for key, value in now.items():
        before = baseline.get(key)
        if before is None or not (before.is_present and value.is_present) or value.unmeasured_s != before.unmeasured_s:
            continue
        span_s = value.read_at_s - before.read_at_s
        if span_s >= WINDOW_S / 2 and value.energy_joules >= before.energy_joules:
            means[key] = (value.energy_joules - before.energy_joules) / span_s
    return means


def _ratios(now: _Snapshot, means: Mapping[_Key, float]) -> Iterator[tuple[Check, _Key, float]]:
    whole: dict[tuple[str, str, str], list[_Key]] = defaultdict(list)
    """Device-scope quantities by collector, component and device."""
    parts: dict[tuple[str, str, str], list[_Key]] = defaultdict(list)
    for key in now:
        collector, quantity = key
        if quantity.scope == "device":
            whole[collector, quantity.component, quantity.device].append(key)
        elif quantity.scope == "part":
            parts[collector, quantity.component, quantity.device].append(key)
    for device, keys in whole.items():
        if any(key not in means for key in keys):
            continue
        watts = sum(means[key] for key in keys)
        limit_watts = now[keys[0]].info.limit_watts
        if limit_watts:
            yield "power_to_limit", keys[0], watts / limit_watts
        if watts < MIN_WATTS:
            continue
        for relation, check in _SUMS:
            addends = [key for key in parts[device] if now[key].info.relation == relation]
            if addends and all(key in means for key in addends):
                yield check, keys[0], sum(means[key] for key in addends) / watts
        for key in parts[device]:
            if now[key].info.relation == "same" and key in means and now[keys[0]].reads == "energy":
                yield "power_to_energy", key, means[key] / watts
    local = [key for keys in whole.values() for key in keys if not now[key].info.is_remote]
    for key, value in now.items():
        if key[1].scope != "node" or value.info.is_remote or means.get(key, 0.0) < MIN_WATTS:
            continue
        if local and all(device in means for device in local):
            yield "devices_to_node", key, sum(means[device] for device in local) / means[key]


_SUMS: Final[tuple[tuple[str, Check], ...]] = (("core", "cores_to_package"), ("rail", "rails_to_card"))
