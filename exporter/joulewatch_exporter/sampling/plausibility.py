"""Whether the sensors of one machine agree with each other: no sensor is right merely because it answers.

Pure: fed with scans, it compares the mean power of half a minute and more, each quantity on its own timestamps, and
says what cannot be. A verdict needs two looks that agree, so that a load that changes at a window's edge is no alarm.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.model import Quantity, SensorInfo
from joulewatch_exporter.sampling.scan import FamilyScan, Reads

logger = logging.getLogger(__name__)

Check = Literal["cores_to_package", "rails_to_card", "power_to_energy", "devices_to_node", "power_to_limit", "stuck"]

WINDOW_S: Final = 30.0
"""A mean is taken over at least this long: a BMC's value is seconds old, a window must be long against that."""
LOOKS_TO_BELIEVE: Final = 2
_LOOKS_KEPT: Final = 8
STUCK_S: Final = 60.0
STUCK_REFRESHES: Final = 30
"""A value that stood for so many refreshes, and a minute at least, while the load moved, is stuck."""
MOVED_SHARE: Final = 0.2
MOVED_WATTS: Final = 10.0
"""The load has moved if its power went up or down by this share of its peak, and by so many watts."""
MIN_WATTS: Final = 5.0
"""Below this a ratio says nothing: sensors of a few watts disagree by their resolution."""

# What a ratio may be. Cores: one energy unit of slack. Node: values are seconds old, and a meter errs by some percent.
_BOUNDS: Final[Mapping[Check, tuple[float, float]]] = {
    "cores_to_package": (0.0, 1.02),
    "rails_to_card": (0.9, 1.1),
    "power_to_energy": (0.8, 1.25),
    "devices_to_node": (0.0, 1.1),
    "power_to_limit": (0.0, 1.1),
}

_TEXTS: Final[Mapping[Check, str]] = {
    "cores_to_package": "its cores together take {ratio:.3f} times what the package takes",
    "rails_to_card": "its rails together take {ratio:.3f} times what the card takes",
    "power_to_energy": "its power, integrated, is {ratio:.3f} times what its energy counter says",
    "devices_to_node": "the devices together take {ratio:.3f} times what the node takes",
    "power_to_limit": "its mean power is {ratio:.3f} times the limit that it enforces",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check of one quantity."""

    check: Check
    collector: str
    device: str
    domain: str
    ratio: float | None
    """What the check compares; None where it compares nothing (stuck)."""
    is_implausible: bool


@dataclass(frozen=True, slots=True)
class _Value:
    info: SensorInfo
    energy_joules: float
    read_at_s: float
    unmeasured_s: float
    refresh_s: float | None
    power_watts: float | None
    reads: Reads
    is_there: bool
    """False: known and not in this scan; then the numbers mean nothing."""


_Key = tuple[str, Quantity]
_Look = dict[_Key, _Value]


@dataclass(slots=True)
class _Stillness:
    """Since when a quantity's value has not changed, and what the others did meanwhile."""

    value: tuple[float, float | None]
    since_s: float
    low_watts: float
    high_watts: float


class Plausibility:
    """Remembers the last looks and what was found odd in them."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=_LOOKS_KEPT)
        self._still: dict[_Key, _Stillness] = {}
        self._odd: dict[tuple[Check, _Key], int] = {}

    def look(self, scans: Sequence[FamilyScan]) -> tuple[Verdict, ...]:
        """Take the newest scans, some ten seconds after the last ones, and judge.

        Args:
            scans: The last scan of each family.

        Returns:
            One verdict for each check that could be made.
        """
        now = _look_of(scans)
        verdicts = []
        then = self._then(now)
        if then is not None:
            for check, key, ratio in _ratios(now, _mean_watts(then, now)):
                low, high = _BOUNDS[check]
                verdicts.append(self._judge(check, key, ratio, not low <= ratio <= high, _TEXTS[check]))
        verdicts += self._stuck(now)
        self._looks.append(now)
        known = {(verdict.check, verdict.collector, verdict.device, verdict.domain) for verdict in verdicts}
        self._odd = {
            (check, key): count
            for (check, key), count in self._odd.items()
            if (check, key[0], key[1].device, key[1].domain) in known
        }
        return tuple(verdicts)

    def _judge(self, check: Check, key: _Key, ratio: float | None, is_odd: bool, text: str) -> Verdict:
        collector, quantity = key
        count = self._odd.get((check, key), 0) + 1 if is_odd else 0
        was = self._odd.get((check, key), 0) >= LOOKS_TO_BELIEVE
        is_implausible = count >= LOOKS_TO_BELIEVE
        self._odd[check, key] = count
        if is_implausible != was:
            told = text.format(ratio=ratio) if is_implausible else f"plausible again ({check})"
            level = logging.WARNING if is_implausible else logging.INFO
            logger.log(level, "%s %s %s: %s", collector, quantity.device, quantity.domain, told)
        return Verdict(check, collector, quantity.device, quantity.domain, ratio, is_implausible)

    def _then(self, now: _Look) -> _Look | None:
        """The youngest look that is old enough to take a mean from; older ones are forgotten."""
        newest_s = _newest_s(now)
        found = None
        while self._looks:
            if newest_s - _newest_s(self._looks[0]) < WINDOW_S:
                break
            found = self._looks.popleft()
        if found is not None:
            self._looks.appendleft(found)
        return found

    def _stuck(self, now: _Look) -> Iterator[Verdict]:
        loads_watts = _loads_watts(now)
        for key, value in now.items():
            load_watts = loads_watts.get(key)
            if load_watts is None or not value.is_there:
                continue
            still = self._still.get(key)
            mark = (value.energy_joules, None) if value.reads == "energy" else (0.0, value.power_watts)
            if still is None or still.value != mark:
                self._still[key] = _Stillness(mark, value.read_at_s, load_watts, load_watts)
                if still is not None:
                    yield self._judge("stuck", key, None, False, "")
                continue
            still.low_watts = min(still.low_watts, load_watts)
            still.high_watts = max(still.high_watts, load_watts)
            moved_watts = still.high_watts - still.low_watts
            has_moved = moved_watts >= max(MOVED_WATTS, MOVED_SHARE * still.high_watts)
            long_s = max(STUCK_S, STUCK_REFRESHES * (value.refresh_s or 0.0))
            is_odd = has_moved and value.read_at_s - still.since_s >= long_s
            text = f"its value has not changed for a minute, while the load moved by {moved_watts:.0f} W"
            yield self._judge("stuck", key, None, is_odd, text)
        for key in [key for key in self._still if key not in now or not now[key].is_there]:
            del self._still[key]


def _loads_watts(now: _Look) -> dict[_Key, float]:
    """What must move a quantity: of a node, and of a counter that cannot rest while the machine works, the power of all
    devices; of a device that gives watts, the power of its own parts, for it may be idle while the others are not. Of a
    part, and of another machine, nothing is known.
    """
    parts_watts: dict[tuple[str, str, str], float] = {}
    devices_watts = 0.0
    for (collector, quantity), value in now.items():
        watts = value.power_watts
        if watts is None or not value.is_there or value.info.is_remote:
            continue
        if quantity.scope == "device":
            devices_watts += watts
        elif quantity.scope == "part":
            place = (collector, quantity.component, quantity.device)
            parts_watts[place] = parts_watts.get(place, 0.0) + watts
    loads: dict[_Key, float] = {}
    for key, value in now.items():
        collector, quantity = key
        if quantity.scope == "part" or value.info.is_remote:
            continue
        if quantity.scope == "node" or value.reads == "energy":
            loads[key] = devices_watts
        elif (place := (collector, quantity.component, quantity.device)) in parts_watts:
            loads[key] = parts_watts[place]
    return loads


def _look_of(scans: Sequence[FamilyScan]) -> _Look:
    look: _Look = {}
    for scan in scans:
        devices = dict(zip(scan.layout.devices, scan.read_at_s, strict=True))
        rows = zip(scan.layout.infos, scan.energies_joules, scan.powers_watts, scan.healths, scan.reads, strict=True)
        for info, energy_joules, power_watts, health, reads in rows:
            if scan.collector == "estimate":
                continue
            read_at_s = devices.get(info.quantity.device)
            key = (scan.collector, info.quantity)
            if energy_joules is None or health is None or read_at_s is None:
                look[key] = _Value(info, 0.0, 0.0, 0.0, None, None, reads, False)
            else:
                look[key] = _Value(
                    info, energy_joules, read_at_s, health.unmeasured_s, health.refresh_s, power_watts, reads, True
                )
    return look


def _newest_s(look: _Look) -> float:
    return max((value.read_at_s for value in look.values()), default=0.0)


def _mean_watts(then: _Look, now: _Look) -> dict[_Key, float]:
    """Mean power of what was measured without a hole from the one look to the other."""
    means = {}
    for key, value in now.items():
        before = then.get(key)
        if before is None or not (before.is_there and value.is_there) or value.unmeasured_s != before.unmeasured_s:
            continue
        span_s = value.read_at_s - before.read_at_s
        if span_s >= WINDOW_S / 2 and value.energy_joules >= before.energy_joules:
            means[key] = (value.energy_joules - before.energy_joules) / span_s
    return means


def _ratios(now: _Look, means: Mapping[_Key, float]) -> Iterator[tuple[Check, _Key, float]]:
    whole: dict[tuple[str, str, str], list[_Key]] = defaultdict(list)
    """Device-scope quantities by collector, component and device."""
    parts: dict[tuple[str, str, str], list[_Key]] = defaultdict(list)
    for key in now:
        collector, quantity = key
        if quantity.scope == "device":
            whole[collector, quantity.component, quantity.device].append(key)
        elif quantity.scope == "part":
            parts[collector, quantity.component, quantity.device].append(key)
    for place, keys in whole.items():
        if any(key not in means for key in keys):
            continue
        watts = sum(means[key] for key in keys)
        limit_watts = now[keys[0]].info.limit_watts
        if limit_watts:
            yield "power_to_limit", keys[0], watts / limit_watts
        if watts < MIN_WATTS:
            continue
        for relation, check in _SUMS:
            addends = [key for key in parts[place] if now[key].info.relation == relation]
            if addends and all(key in means for key in addends):
                yield check, keys[0], sum(means[key] for key in addends) / watts
        for key in parts[place]:
            if now[key].info.relation == "same" and key in means and now[keys[0]].reads == "energy":
                yield "power_to_energy", key, means[key] / watts
    local = [key for keys in whole.values() for key in keys if not now[key].info.is_remote]
    for key, value in now.items():
        if key[1].scope != "node" or value.info.is_remote or means.get(key, 0.0) < MIN_WATTS:
            continue
        if local and all(device in means for device in local):
            yield "devices_to_node", key, sum(means[device] for device in local) / means[key]


_SUMS: Final[tuple[tuple[str, Check], ...]] = (("core", "cores_to_package"), ("rail", "rails_to_card"))
