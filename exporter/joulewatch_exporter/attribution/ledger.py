"""The arithmetic of shares: every joule of a device goes to one workload, or to one reason. Pure: no I/O, no clock.

Usage is a tree of counters (cgroups). What a node used and no node below it that was read is the node's own remainder.
So the processes and containers that came and went between two reads are not lost: their parent's counter keeps what
they used. The remainder of a node without series goes to the nearest node above it that has series, then to ``rest``;
that of the root is ``system``.

Devices and usage are read at different times. Both are counters, so the usage at the time of a device's read lies on
the line between the reads before and after it. Children are read before their parents, so for an instant they may have
used more than the parent: that difference is carried to the next interval, and no share is ever negative.

An interval begins and ends with reads of one device at which its counter had moved. Its energy is divided with floating
point, so the largest share takes the rounding: shares add up to the energy exactly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from joulewatch_exporter.attribution.model import ROOT, Reason, Usage, UsageScan
from joulewatch_exporter.attribution.places import MeterKey, Place, Places
from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import Component, Quantity

POOLED: Final[frozenset[Component]] = frozenset(("cpu", "memory"))
"""Components whose devices share one usage: that of all processors."""
IDLE_DEBT_S: Final = 2.0
"""A counter may move late. Idle energy that it has not counted yet is taken from later intervals, for this long."""
MOST_CARRIED_S: Final = 2.0
"""Largest carry. The children of a node are ahead of it by the time between two reads, and by a tick per processor at
the root. A larger difference means that the root counts less than its children (cgroup v2 samples it). It is dropped:
carried on, it would hide what the system uses for as long again.
"""
KEPT_SCANS: Final = 4
"""Scans of usage that are kept, for devices whose values are older than the last scan."""

Owner: TypeAlias = Place | Reason
DeviceKey: TypeAlias = tuple[str, Quantity]
"""Collector and quantity."""
GroupKey: TypeAlias = tuple[Component, str]
"""Component and device of a series; the device is empty for components in `POOLED`."""


class DeviceEnergy(NamedTuple):
    """The counter of one device, without wraps, as a scan has it."""

    key: DeviceKey
    joules: float
    read_at_ns: int


class Interval(NamedTuple):
    """The energy of one device between two reads, and whose it is."""

    key: DeviceKey
    joules: float
    shares: Mapping[Owner, float]


class Track:
    """One node of a tree of usage; its identity is one life of the node."""

    __slots__ = ("key", "raw", "seconds")

    def __init__(self, key: str, raw: float) -> None:
        self.key = key
        self.raw = raw
        """The source's last value."""
        self.seconds = 0.0
        """Seconds since it was first read; it never falls."""


class Moment:
    """The usage of all nodes at one time."""

    __slots__ = ("at_ns", "life", "seconds")

    def __init__(self, at_ns: int, life: int, seconds: dict[Track, float]) -> None:
        self.at_ns = at_ns
        self.life = life
        """Number of the unbroken series of scans that it belongs to."""
        self.seconds = seconds


class _Tree(NamedTuple):
    """The nodes of a meter, children before their parents; parallel tuples."""

    version: int
    tracks: tuple[Track, ...]
    parents: tuple[int, ...]
    owners: tuple[Owner, ...]


Carry: TypeAlias = Mapping[Track, float]
"""Seconds, all negative, by which the children of a node were ahead of it."""
_NO_CARRY: Final[Carry] = {}
"""One object, so that devices with nothing to carry share their remainders."""


class Remainders(NamedTuple):
    """What each owner used between two moments."""

    seconds: dict[Owner, float]
    carry: Carry


class Meter:
    """The usage of one device, or of all processors: a tree of counters and its last scans."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self.holders: tuple[str, ...] = ()
        self.weight = ""
        self.is_read = False
        """Whether the last scan has its usage."""
        self.is_held = False
        """Whether the last scan has its holders only."""
        self.totals: dict[Place, float] = {}
        """Seconds that each place has used."""
        self.busy_seconds = 0.0
        """Seconds that the whole device was busy."""
        self._life = 0
        self._scans: deque[dict[Track, tuple[int, float]]] = deque(maxlen=KEPT_SCANS)
        self._moments: dict[int, Moment] = {}
        self._remainders: dict[tuple[int, int, int], tuple[Moment, Carry, Remainders]] = {}
        self._tree: _Tree | None = None
        self._counted: Moment | None = None
        self._carry = _NO_CARRY

    def fail(self) -> None:
        """Note that the usage could not be read: until it was read twice again, energy has no owner."""
        self.is_read = self.is_held = False
        self._life += 1
        self._scans.clear()
        self._forget()

    def _forget(self) -> None:
        self._moments.clear()
        self._remainders.clear()

    def take(self, usages: Sequence[Usage], places: Places) -> None:
        """Process one scan; nodes that matter are the root, its children, and those that have places."""
        by_key = places.by_key
        scan: dict[Track, tuple[int, float]] = {}
        before = self._scans[-1] if self._scans else {}
        kept = {usage.key: usage for usage in usages if "/" not in usage.key or usage.key in by_key}
        root = self.tracks.get(ROOT)
        if ROOT not in kept:
            self.fail()
            return
        if root is not None and kept[ROOT].seconds < root.raw:
            self.fail()  # it restarted: what was used around that time is not known
            self.tracks.clear()
            self._tree, self._counted, before = None, None, {}
        self._forget()
        self.is_read = True
        for key, read_at_ns, seconds in ((usage.key, usage.read_at_ns, usage.seconds) for usage in kept.values()):
            track = self.tracks.get(key)
            if track is None:
                track = self.tracks[key] = Track(key, seconds)
                self._tree = None
            elif seconds != track.raw:
                # If it fell, another node of the same name has used all of it.
                track.seconds += seconds - track.raw if seconds > track.raw else seconds
                track.raw = seconds
            scan[track] = (read_at_ns, track.seconds)
        if len(scan) != len(self.tracks):
            for key in [key for key in self.tracks if key not in kept]:
                track = self.tracks[key]
                if key in by_key and track in before:
                    scan[track] = before[track]  # gone, or not in use: its counter stands still
                else:
                    del self.tracks[key]
                    self._tree = None
        self._scans.append(scan)

    def at(self, at_ns: int) -> Moment:
        """Return the usage at a time, on the lines between the scans around it."""
        moment = self._moments.get(at_ns)
        if moment is None:
            moment = self._moments[at_ns] = Moment(at_ns, self._life, self._seconds_at(at_ns))
        return moment

    def _seconds_at(self, at_ns: int) -> dict[Track, float]:
        scans = self._scans
        root = self.tracks[ROOT]
        index = len(scans) - 1
        while index > 1 and scans[index - 1][root][0] > at_ns:
            index -= 1
        after = scans[index]
        before = scans[index - 1] if index else {}
        seconds = {}
        for track, (end_ns, end_seconds) in after.items():
            start = before.get(track)
            if at_ns < end_ns and start is not None:
                start_ns, start_seconds = start
                share = (at_ns - start_ns) / (end_ns - start_ns) if at_ns > start_ns else 0.0
                end_seconds = min(start_seconds + (end_seconds - start_seconds) * share, end_seconds)
            seconds[track] = end_seconds
        return seconds

    def remainders(self, before: Moment, after: Moment, carry: Carry, places: Places) -> Remainders:
        """Return what each owner used between two moments.

        Args:
            before: The first moment.
            after: The second one.
            carry: That of the interval before.
            places: The owners.
        """
        key = (id(before), id(after), id(carry))
        known = self._remainders.get(key)
        if known is not None:
            return known[2]
        tree = self._tree
        if tree is None or tree.version != places.version:
            tree = self._tree = _tree(self.tracks, places)
        starts, ends = before.seconds, after.seconds
        deltas = [
            ends[track] - starts.get(track, 0.0) if track in ends else 0.0  # not in an older scan yet
            for track in tree.tracks
        ]
        own = deltas.copy()
        for delta, parent in zip(deltas, tree.parents, strict=True):
            if parent >= 0:
                own[parent] -= delta
        if carry:
            own = [value + carry.get(track, 0.0) for track, value in zip(tree.tracks, own, strict=True)]
            own[-1] += sum(carry[track] for track in carry.keys() - set(tree.tracks))  # of nodes that are gone
        left: dict[Track, float] = {}
        seconds: dict[Owner, float] = {}
        for track, owner, value in zip(tree.tracks, tree.owners, own, strict=True):
            if value > 0.0:
                seconds[owner] = seconds.get(owner, 0.0) + value
            elif value < 0.0:
                left[track] = max(value, -MOST_CARRIED_S)
        result = Remainders(seconds, left or _NO_CARRY)
        self._remainders[key] = (before, carry, result)  # keeps the ids in use
        return result

    def count(self, places: Places) -> None:
        """Add what each place has used since the last call to its total."""
        if not self.is_read:
            return
        now = self.at(self._scans[-1][self.tracks[ROOT]][0])
        if self._counted is not None:
            seconds, self._carry = self.remainders(self._counted, now, self._carry, places)
            for owner, value in seconds.items():
                if isinstance(owner, Place):
                    self.totals[owner] = self.totals.get(owner, 0.0) + value
        self._counted = now
        self.busy_seconds = self.tracks[ROOT].seconds

    def end(self, place: Place) -> None:
        self.totals.pop(place, None)


def _tree(tracks: Mapping[str, Track], places: Places) -> _Tree:
    keys = sorted(tracks, key=lambda key: -1 - key.count("/") if key != ROOT else 0)
    index = {key: number for number, key in enumerate(keys)}
    parents = []
    owners: list[Owner] = []
    for key in keys:
        if key == ROOT:
            parents.append(-1)
            owners.append("system")
            continue
        parent = key
        while (parent := _above(parent)) not in index:
            pass
        parents.append(index[parent])
        owners.append(places.owner(key) or "rest")
    return _Tree(places.version, tuple(tracks[key] for key in keys), tuple(parents), tuple(owners))


def _above(key: str) -> str:
    return key.rpartition("/")[0]


class Group:
    """The counters of one component, or of one of its devices."""

    def __init__(self) -> None:
        self.unattributed: dict[Reason, float] = {"idle": 0.0, "rest": 0.0, "system": 0.0, "gap": 0.0}
        self.workloads: dict[Place, float] = {}
        self.ended_joules = 0.0
        """Energy of workloads whose series have ended."""

    @property
    def joules(self) -> float:
        """All energy of the group: that of its devices."""
        return math.fsum((*self.unattributed.values(), *self.workloads.values(), self.ended_joules))

    def add(self, shares: Mapping[Owner, float]) -> None:
        for owner, joules in shares.items():
            if isinstance(owner, Place):
                self.workloads[owner] = self.workloads.get(owner, 0.0) + joules
            else:
                self.unattributed[owner] += joules

    def end(self, place: Place) -> None:
        self.ended_joules += self.workloads.pop(place, 0.0)


class _Device:
    """One device since its last interval."""

    __slots__ = ("carry", "idle_debt", "joules", "meter", "moment", "read_at_ns")

    def __init__(self, joules: float, read_at_ns: int) -> None:
        self.joules = joules
        self.read_at_ns = read_at_ns
        self.idle_debt = 0.0
        self.meter: Meter | None = None
        self.moment: Moment | None = None
        self.carry = _NO_CARRY


class Ledger:
    """All counters of energy and usage."""

    def __init__(self, places: Places, sources: Iterable[tuple[str, Sequence[Component]]] = ()) -> None:
        """Start empty.

        Args:
            places: The workloads that have series.
            sources: Names and components of the sources; of several that know a device, the first one counts.
        """
        self.places = places
        self.sources: tuple[tuple[str, Sequence[Component]], ...] = tuple(sources)
        self.groups: dict[GroupKey, Group] = {}
        self.meters: dict[MeterKey, Meter] = {}
        self._devices: dict[DeviceKey, _Device] = {}

    # -- usage -------------------------------------------------------------------------------------

    def take_usage(self, scans: Mapping[str, UsageScan | None], now_ns: int) -> None:
        """Process one look at the usage.

        Args:
            scans: By name of the source; None: it failed.
            now_ns: Monotonic time.
        """
        living: set[str] = set()
        for (source, device), meter in self.meters.items():
            scan = scans.get(source)
            if scan is None or device not in scan.usages:
                meter.fail()
                meter.holders = ()
        for source, scan in scans.items():
            if scan is None:
                continue
            for device, usages in scan.usages.items():
                meter = self._meter(source, device)
                meter.weight = scan.weights.get(device, "")
                meter.take(usages, self.places)
                meter.count(self.places)
                living.update([usage.key for usage in usages])
            for device, holders in scan.holders.items():
                meter = self._meter(source, device)
                meter.holders = tuple(holders)
                meter.is_held = device not in scan.usages
                living.update(holders)
        if None not in scans.values():
            self.places.note(now_ns, living.__contains__)
        for place in self.places.ended:
            for group in self.groups.values():
                group.end(place)
            for meter in self.meters.values():
                meter.end(place)
        self.places.ended.clear()

    def _meter(self, source: str, device: str) -> Meter:
        meter = self.meters.get((source, device))
        if meter is None:
            meter = self.meters[source, device] = Meter()
        return meter

    def meter_of(self, component: Component, device: str) -> Meter | None:
        """Return the usage by which the energy of a group is shared; None: no source has it."""
        known = [
            meter
            for source, components in self.sources
            if component in components and (meter := self.meters.get((source, device))) is not None
        ]
        return next((meter for meter in known if meter.is_read or meter.is_held), known[0] if known else None)

    # -- energy ------------------------------------------------------------------------------------

    def take_energy(self, energies: Iterable[DeviceEnergy], idle_watts: Mapping[DeviceKey, float]) -> list[Interval]:
        """Divide what the devices have used since the last call, after `take_usage`.

        Args:
            energies: The counters of all devices that could be read; a device that could not is shared later.
            idle_watts: Power of a device without work; without an entry, all of its energy is active.
        """
        intervals = []
        for key, joules, read_at_ns in energies:
            quantity = key[1]
            group_key = (quantity.component, "" if quantity.component in POOLED else quantity.device)
            group = self.groups.get(group_key)
            if group is None:
                group = self.groups[group_key] = Group()
            meter = self.meter_of(*group_key)
            device = self._devices.get(key)
            if device is None:
                # What it counted before the first look has no owner.
                device = self._devices[key] = _Device(joules, read_at_ns)
                device.meter = meter
                device.moment = meter.at(read_at_ns) if meter is not None and meter.is_read else None
                delta: float = joules
                shares: dict[Owner, float] = {"gap": joules}
            elif read_at_ns <= device.read_at_ns or joules == device.joules:
                continue  # its counter has not moved, so the interval goes on
            else:
                delta = joules - device.joules if joules > device.joules else joules  # it restarted at 0
                shares = self._shares(device, delta, read_at_ns, meter, idle_watts.get(key, 0.0))
                device.joules = joules
                device.read_at_ns = read_at_ns
            if delta > 0.0:
                group.add(shares)
                intervals.append(Interval(key, delta, shares))
        self.places.begin()
        return intervals

    def _shares(
        self, device: _Device, joules: float, read_at_ns: int, meter: Meter | None, idle_watts: float
    ) -> dict[Owner, float]:
        before, was_meter = device.moment, device.meter
        after = device.moment = meter.at(read_at_ns) if meter is not None and meter.is_read else None
        device.meter = meter
        wanted = idle_watts * ((read_at_ns - device.read_at_ns) / NS_PER_S) + device.idle_debt
        idle = min(joules, wanted)
        device.idle_debt = min(wanted - idle, idle_watts * IDLE_DEBT_S)
        active = joules - idle
        seconds: Mapping[Owner, float]
        if meter is not None and meter.is_held:
            device.carry = _NO_CARRY
            seconds = self._held(meter.holders)
        elif meter is None or before is None or after is None or meter is not was_meter or before.life != after.life:
            device.carry = _NO_CARRY
            seconds = {"gap": 1.0}
        else:
            seconds, device.carry = meter.remainders(before, after, device.carry, self.places)
        shares = divide(active, seconds) if active > 0.0 else {}
        shares["idle"] = shares.get("idle", 0.0) + idle
        return shares

    def _held(self, holders: Sequence[str]) -> Mapping[Owner, float]:
        """Return the weights of a device of which only the holders are known: one has all, none leaves it idle."""
        if not holders:
            return {}
        owners = {self.owner(key) for key in holders}
        return {owners.pop(): 1.0} if len(owners) == 1 else {"gap": 1.0}

    def owner(self, key: str) -> Owner:
        """Return who gets what a node uses."""
        return self.places.owner(key) or "rest"


def divide(joules: float, seconds: Mapping[Owner, float]) -> dict[Owner, float]:
    """Return the share of each owner; they add up to the energy. Energy that nobody used is idle."""
    total = math.fsum(seconds.values())
    if total <= 0.0:
        return {"idle": joules}
    shares = {owner: joules * (value / total) for owner, value in seconds.items()}
    largest = max(shares, key=shares.__getitem__)
    shares[largest] = 0.0
    shares[largest] = max(joules - math.fsum(shares.values()), 0.0)
    return shares
