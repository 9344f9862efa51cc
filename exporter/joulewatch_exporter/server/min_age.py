"""Scans for clients without a password: new ones at most once in a configured time.

Energy counters that are read often show what other programs compute (CVE-2020-8694).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from joulewatch_exporter.attribution.shares import Shares
from joulewatch_exporter.sampling.scan import FamilyScan

ATTRIBUTION: Final = "attribution"
"""Name of the shares in ``?collect[]=``; they are shown as if they were a family."""


class AgedScans:
    """Keeps the last scans, and renews them when they are old enough."""

    def __init__(
        self,
        fresh: Callable[[], tuple[tuple[FamilyScan, ...], Shares | None]],
        min_age_s: float,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            fresh: Reads all families and shares their energy.
            min_age_s: Time between two reads.
            monotonic_s: Replaces the machine's clock in tests.
        """
        self._fresh = fresh
        self._min_age_s = min_age_s
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._scans: tuple[FamilyScan, ...] = ()
        self._shares: Shares | None = None
        self._due_s: float | None = None

    def get(self, only: Collection[str] | None = None) -> tuple[tuple[FamilyScan, ...], Shares | None]:
        """Return the scans of all families or of some, and the shares.

        One read serves all choices of families: otherwise a client could get a read for each choice.
        """
        with self._lock:
            if self._due_s is None or self._monotonic_s() >= self._due_s:
                self._scans, self._shares = self._fresh()
                self._due_s = self._monotonic_s() + self._min_age_s
            scans, shares = self._scans, self._shares
        return chosen(scans, shares, only)


def chosen(
    scans: tuple[FamilyScan, ...], shares: Shares | None, only: Collection[str] | None
) -> tuple[tuple[FamilyScan, ...], Shares | None]:
    """Return what ``?collect[]=`` asks for; ``only`` is None if it asks for everything."""
    if only is None:
        return scans, shares
    return tuple(scan for scan in scans if scan.collector in only), shares if ATTRIBUTION in only else None
