"""Which workloads have series: at most a fixed number, each from when it first matters to its end. Pure: no clock.

A counter must not move from one series to another, so places are sticky. A workload gets one when it used at least
``min_share`` of what the machine used over the last 30 s, and it starts at 0; what it used before stays with its
parent. It keeps the place to its end and ``keep_gone_seconds`` longer, so that the next scrape sees its last value. If
all places are taken, a new workload gets the place of a living one that has not mattered for ``keep_gone_seconds``.

A slice of containers that live for less than a second is a workload as well: its remainder is what they used. If more
workloads need a place than are free, the slices that they are in come first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from joulewatch_exporter.attribution.model import ROOT, Usage, Workload
from joulewatch_exporter.clock import NS_PER_S

MeterKey: TypeAlias = tuple[str, str]
"""Source and device of one tree of usage; the device is empty for processors."""

WINDOW_S: Final = 30.0
CHECKPOINT_S: Final = 10.0
"""The window begins at one of the last surveys that are this far apart."""
LEAST_SECONDS: Final = WINDOW_S
"""A share counts against one busy processor at least. Otherwise every daemon of an idle machine would get a place."""


class Place:
    """A workload that has series; its identity is that of its counters."""

    __slots__ = ("gone_ns", "is_new", "keys", "matters_ns", "workload")

    def __init__(self, workload: Workload, key: str, now_ns: int) -> None:
        self.workload = workload
        self.keys = {key}
        """Nodes of the tree. More than one if a container was replaced by another one of the same name."""
        self.matters_ns = now_ns
        """When it last used its minimum."""
        self.is_new = True
        """Whether it was given after the last look, so that what it used before is not its own."""
        self.gone_ns: int | None = None
        """When it was first missing; None: it lives."""

    @property
    def series(self) -> tuple[str, str]:
        """The labels of its counters."""
        return (self.workload.kind, self.workload.workload)


class Places:
    """The workloads that have series."""

    def __init__(
        self,
        *,
        max_workloads: int = 100,
        min_share: float = 0.005,
        keep_gone_s: float = 300.0,
        least_seconds: float = LEAST_SECONDS,
    ) -> None:
        self._max_workloads = max_workloads
        self._min_share = min_share
        self._keep_gone_ns = round(keep_gone_s * NS_PER_S)
        self._least_seconds = least_seconds
        self._windows: dict[MeterKey, deque[tuple[int, dict[str, float]]]] = {}
        self._last: dict[MeterKey, dict[str, float]] = {}
        """The last survey, and what ended workloads with places had used in their last one."""
        self.by_key: dict[str, Place] = {}
        """Node -> its place; several nodes may share one."""
        self.places: tuple[Place, ...] = ()
        self.version = 0
        """Changes whenever a node gets or loses a place."""
        self.ended: list[Place] = []
        """Places that ended since the ledger last took them."""
        self.rest = 0
        """Number of living nodes without a place in the last survey."""

    @property
    def gone(self) -> int:
        """Number of places whose workload has ended."""
        return sum(place.gone_ns is not None for place in self.places)

    def owner(self, key: str) -> Place | None:
        """Return the place of a node, or of the nearest one above it that has one."""
        while key:
            place = self.by_key.get(key)
            if place is not None and not place.is_new:
                return place
            key = key.rpartition("/")[0]
        return None

    # -- surveys -----------------------------------------------------------------------------------

    def survey(self, now_ns: int, usages: Mapping[MeterKey, Sequence[Usage]], holders: Iterable[str] = ()) -> list[str]:
        """Return the nodes that need a place, the most important one first, to be given one with `give`.

        Args:
            now_ns: Monotonic time.
            usages: Every living workload, in each tree.
            holders: Nodes that hold a device; they need a place although they may not use it.
        """
        needs: dict[str, float] = {}
        living = {usage.key for nodes in usages.values() for usage in nodes} - {ROOT}
        for meter, nodes in usages.items():
            for key, share in self._own_shares(meter, now_ns, nodes).items():
                needs[key] = max(share, needs.get(key, 0.0))
        for key in holders:
            while key and key not in living:  # a part of a workload, or one that may not be shown
                key = key.rpartition("/")[0]
            if key:
                needs[key] = max(self._min_share, needs.get(key, 0.0))
        for key in needs:
            # What a node without a place used is that of the one above it.
            if (place := self.owner(key)) is not None:
                place.matters_ns = now_ns
        self.rest = len(living - self.by_key.keys())
        new = {key: share for key, share in needs.items() if key not in self.by_key}
        if len(new) <= self._max_workloads - len(self.places):
            return _largest_first(new)
        # What gets no place counts for the nearest node above it that has one, so those come first.
        above: dict[str, float] = {}
        for key, share in new.items():
            parent = key
            while "/" in parent and (parent := parent.rpartition("/")[0]) not in self.by_key:
                above[parent] = above.get(parent, 0.0) + share
        alone = {key: share for key, share in new.items() if key not in above}
        return [*_largest_first(above), *_largest_first(alone)][: self._max_workloads]

    def give(self, now_ns: int, key: str, workload: Workload) -> bool:
        """Give a place to a node; return False if all places are taken."""
        same = next((place for place in self.places if place.series == (workload.kind, workload.workload)), None)
        if same is not None:
            # Two series cannot have the same labels, so the counters of the old one continue.
            same.keys.add(key)
            same.workload = workload
            same.matters_ns = now_ns
            same.gone_ns = None
            place = same
        elif self._has_room(now_ns):
            place = Place(workload, key, now_ns)
            self.places += (place,)
            self.rest = max(self.rest - 1, 0)
        else:
            return False
        self.by_key[key] = place
        self.version += 1
        return True

    def _own_shares(self, meter: MeterKey, now_ns: int, nodes: Sequence[Usage]) -> dict[str, float]:
        """Return the nodes that used their minimum since the window began, without what nodes below them used."""
        now = {usage.key: usage.seconds for usage in nodes}
        window = self._windows.setdefault(meter, deque())
        before = window[0][1] if window else now
        if now.get(ROOT, 0.0) < before.get(ROOT, 0.0):
            window.clear()
            before = now
        if not window or now_ns - window[-1][0] >= CHECKPOINT_S * NS_PER_S:
            window.append((now_ns, now))
        while len(window) > 1 and now_ns - window[1][0] >= WINDOW_S * NS_PER_S:
            window.popleft()
        total = now.get(ROOT, 0.0) - before.get(ROOT, 0.0)
        least = self._min_share * max(total, self._least_seconds)
        # What a workload with a place used before it ended is not its parent's.
        last = self._last.get(meter, {})
        both = self._last[meter] = now | {key: last[key] for key in self.by_key if key not in now and key in last}
        used = {}
        for key, seconds in both.items():
            start = before.get(key, 0.0)
            seconds -= start if start <= seconds else 0.0  # it fell: another node of the same name
            if key != ROOT and seconds > 0.0 and (seconds >= least or key in self.by_key):
                used[key] = seconds
        shares: dict[str, float] = {}
        below: dict[str, float] = {}
        for key in sorted(used, key=lambda key: -key.count("/")):
            own = used[key] - below.get(key, 0.0)
            if own < least and key not in self.by_key:
                continue
            if own >= least:
                shares[key] = own / max(total, self._least_seconds)
            parent = key
            while "/" in parent:
                parent = parent.rpartition("/")[0]
                below[parent] = below.get(parent, 0.0) + own
        return shares

    def _has_room(self, now_ns: int) -> bool:
        """Return whether a place is free, after ending the living one that has been quiet for longest."""
        if len(self.places) < self._max_workloads:
            return True
        quiet = [
            place
            for place in self.places
            if place.gone_ns is None and now_ns - place.matters_ns >= max(self._keep_gone_ns, WINDOW_S * NS_PER_S)
        ]
        if not quiet:
            return False
        self._end([min(quiet, key=lambda place: place.matters_ns)])
        return True

    def begin(self) -> None:
        """Let the new places own what is used from now on."""
        for place in self.places:
            if place.is_new:
                place.is_new = False
                self.version += 1

    # -- ends --------------------------------------------------------------------------------------

    def note(self, now_ns: int, living: Callable[[str], bool]) -> None:
        """Note which workloads have ended, and end places whose workload ended long ago.

        Args:
            now_ns: Monotonic time.
            living: Whether a node was in the last scan.
        """
        over = []
        for place in self.places:
            alive = {key for key in place.keys if living(key)}
            if alive:
                place.gone_ns = None
                for key in place.keys - alive:
                    del self.by_key[key]
                    self.version += 1
                place.keys = alive
            elif place.gone_ns is None:
                place.gone_ns = now_ns
            elif now_ns - place.gone_ns >= self._keep_gone_ns:
                over.append(place)
        self._end(over)

    def _end(self, places: Iterable[Place]) -> None:
        for place in places:
            for key in place.keys:
                del self.by_key[key]
            self.ended.append(place)
            self.places = tuple([other for other in self.places if other is not place])
            self.version += 1


def _largest_first(shares: Mapping[str, float]) -> list[str]:
    return sorted(shares, key=lambda key: (-shares[key], key))
