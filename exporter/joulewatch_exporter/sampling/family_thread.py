"""Reads one family: periodically, on its own thread, and for each scrape."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.errors import SensorError, SensorTimeoutError
from joulewatch_exporter.model import Collector
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.sampling.steps import FamilyEdge
from joulewatch_exporter.threads import Turn, Worker

logger = logging.getLogger(__name__)

QUICK_S: Final = 0.005
"""A family whose last scan took longer is read by its own thread, because slow devices can be read at the same time.
Below, threads that wait for each other take longer than the reads (Python runs one thread at a time)."""
SCRAPED_PERIODS: Final = 1.1
"""Periods from a read for a scrape to the next background read: if scrapes come once per period, each may be a little
late without being read twice."""
STUCK_S: Final = 10.0
"""Longest time without progress, in addition to two polls; a device that hangs is quarantined much sooner."""


class FamilyThread:
    """Reads one family: when a read is due, and for each scrape.

    A read that starts after the request serves it, and one read serves all requests that wait for it. If a device
    hangs, it is quarantined and another thread reads the others (``watch``). A quick family may be read by the thread
    that answers the scrape (``read_here``), which saves two hand-overs.
    """

    def __init__(self, family: Family, *, poll_s: float, read_on_scrape: bool) -> None:
        self.family = family
        self.poll_s = poll_s
        self.read_on_scrape = read_on_scrape
        self._worker = Worker(f"read-{family.name}", self._run)
        self._condition = self._worker.condition
        self._wanted = 0
        """Number of the scan that a scrape waits for; scans are counted from 1."""
        self._started = 0
        self._finished = 0
        self._timed_out = 0
        """Number of the last scan that a scrape did not wait for any longer."""
        self._edges_wanted = 0
        """Number of the edge that a client waits for; edges are counted from 1."""
        self._edge_scan = 0
        """Number of the scan after which that edge begins."""
        self._edges_started = 0
        self._edges_finished = 0
        self._latest_edge: FamilyEdge | None = None
        self._is_broken = False
        self._replacement: Collector | None = None
        self._newest = family.collector
        self._latest: FamilyScan | None = None
        self._progress_ns = time.monotonic_ns()
        """Time of the last scan that ended, or of the last quarantine, which lets the next scan end."""

    def start(self) -> None:
        self._worker.start()

    @property
    def latest(self) -> FamilyScan | None:
        """The last scan; None before the first."""
        return self._latest

    @property
    def sources(self) -> frozenset[str]:
        """What the family reads, or will read when the newest collector has taken over."""
        family = self.family
        if family.manages_devices:
            return frozenset(info.source for info in family.layout.infos)
        return frozenset(info.source for sensor in self._newest.sensors for info in sensor.infos)

    def watch(self, hang_s: float) -> None:
        """If a scan or burst takes longer than ``hang_s``, quarantine the device that is being read."""
        if not self.read_on_scrape:
            hang_s = max(hang_s, 2 * self.poll_s)  # its devices are known to be slow
        worker = self._worker
        with self._condition:
            if worker.is_stopping:
                return
            device = None
            if worker.busy_ns(time.monotonic_ns()) > hang_s * NS_PER_S:
                device = worker.abandon()
            if device is not None:
                self.family.quarantine(device)
                self._progress_ns = time.monotonic_ns()
                self._wanted = max(self._wanted, self._started + 1)
                self._edges_started = self._edges_finished  # one that was in progress begins again
                self._condition.notify_all()  # its own thread, if a scrape had borrowed the family
            if worker.turn is None and worker.thread is not None:
                with suppress(RuntimeError):  # out of threads; tried again at the next look
                    worker.start()

    def is_stuck(self, now_ns: int) -> bool:
        """Return whether scans have stopped: the thread has died, or waits for something that never happens."""
        return now_ns - self._progress_ns > (STUCK_S + 2 * self.poll_s) * NS_PER_S

    def stop(self) -> None:
        """Ask the thread to end; it closes its collector itself. A thread that hangs is abandoned."""
        self._worker.stop()

    def join(self, timeout_s: float) -> None:
        self._worker.join(timeout_s)

    def hand_over(self, collector: Collector) -> None:
        """Let the thread continue with a newly opened collector before its next read."""
        with self._condition:
            superseded, self._replacement = self._replacement, collector
            self._newest = collector
        if superseded is not None:
            superseded.close()

    @property
    def is_quick(self) -> bool:
        """Whether a scrape may read the family itself: its last scan was short, and no burst is due after the next."""
        last = self._latest
        is_short = last is not None and last.duration_s is not None and last.duration_s < QUICK_S
        return is_short and self.read_on_scrape and not self.family.wants_burst

    def read_here(self) -> FamilyScan | None:
        """Scan the family on the calling thread; None: another thread is reading it.

        Raises:
            AbandonedError: A device hung, and the scan was abandoned.
        """
        with self._condition:
            turn = self._worker.borrow()
            if turn is None:
                return None
            self._wanted = max(self._wanted, self._started + 1)
        self._read(turn)
        turn.rest()
        return self._latest

    def request(self) -> int:
        """Ask for a scan and return its number, to ``wait`` for; 1 for a family that scrapes do not read."""
        with self._condition:
            if not self.read_on_scrape:
                return 1
            ticket = self._started + 1
            if ticket > self._wanted:
                self._wanted = ticket
                self._condition.notify_all()
            return ticket

    def wait(self, ticket: int, deadline_ns: int, timeout_s: float, *, is_impatient: bool = False) -> FamilyScan:
        """Return the scan of a ticket, or the family as down if the scan is late.

        Args:
            ticket: From ``request``.
            deadline_ns: Monotonic time at which to stop waiting.
            timeout_s: A scan that has taken longer is not waited for again.
            is_impatient: Whether a late scan is not an error: only the device that is being read is down.
        """
        worker = self._worker
        with self._condition:
            while self._finished < ticket and not worker.is_stopping:
                now_ns = time.monotonic_ns()
                left_ns = deadline_ns - now_ns
                if worker.busy_ns(now_ns) > timeout_s * NS_PER_S or left_ns <= 0:
                    break
                worker.wait(left_ns / NS_PER_S)
            is_late = self._finished < ticket or (
                not self.read_on_scrape and worker.busy_ns(time.monotonic_ns()) > 2 * self.poll_s * NS_PER_S
            )
            if not is_late and self._latest is not None:
                return self._latest
            if is_impatient:
                turn = worker.turn
                reading = None if turn is None else turn.subject
                late = worker.hung if reading is None else worker.hung | {reading}
                if late and self._latest is not None and not self.is_stuck(time.monotonic_ns()):
                    return self.family.unfinished(self._latest, late)
                return self.family.down()
            is_first = self._timed_out != self._started
            self._timed_out = self._started
        if is_first and not worker.is_stopping and (devices := self.family.layout.devices):
            self.family.count_errors(devices, SensorTimeoutError.reason)
            logger.warning("%s: %s: no answer within %g s", self.family.name, SensorTimeoutError.reason, timeout_s)
        return self.family.down()

    def request_edge(self) -> int:
        """Ask for an edge (a scan, then the steps of the counters) and return its number, to ``wait_edge`` for."""
        if not self.family.has_steps:
            return self.request()
        with self._condition:
            ticket = self._edges_started + 1
            self._edges_wanted = max(self._edges_wanted, ticket)
            self._edge_scan = self._started + 1
            self._wanted = max(self._wanted, self._edge_scan)
            self._condition.notify_all()
            return ticket

    def wait_edge(self, ticket: int, deadline_ns: int, timeout_s: float) -> FamilyEdge:
        """Return the edge of a ticket; the arguments are those of ``wait``."""
        if not self.family.has_steps:
            return FamilyEdge(scan=self.wait(ticket, deadline_ns, timeout_s))
        with self._condition:
            while self._edges_finished < ticket and not self._worker.is_stopping:
                left_ns = deadline_ns - time.monotonic_ns()
                if left_ns <= 0:
                    break
                self._worker.wait(left_ns / NS_PER_S)
            if self._edges_finished >= ticket and self._latest_edge is not None:
                return self._latest_edge
        return FamilyEdge(scan=self.family.down())

    # -- the thread --------------------------------------------------------------------------------

    def _run(self, turn: Turn) -> None:
        self._worker.due_ns = time.monotonic_ns()
        try:
            while turn.wait(self._is_wanted):
                self._read(turn)
                turn.rest()
                if not self._edge(turn):
                    self._burst(turn)  # after an edge it would disturb the window that begins there
        finally:
            if not turn.is_abandoned:
                self.family.close()
                if self._replacement is not None:
                    self._replacement.close()

    def _is_wanted(self) -> bool:
        return self._wanted > self._finished or self._edges_wanted > self._edges_started

    def _read(self, turn: Turn) -> None:
        """Scan the family and publish the scan."""
        worker = self._worker
        poll_ns = round(self.poll_s * NS_PER_S)
        with self._condition:
            self._started += 1
            worker.due_ns += poll_ns
            # The read for a scrape replaces the next background read; one that is late is not followed by a rush.
            if self._wanted >= self._started:
                worker.due_ns = turn.busy_since_ns + round(SCRAPED_PERIODS * poll_ns)
            elif worker.due_ns < time.monotonic_ns():
                worker.due_ns = turn.busy_since_ns + poll_ns
            replacement, self._replacement = self._replacement, None
        try:
            if replacement is not None:
                self.family.replace(replacement)
            scan = self.family.scan(turn)
            self._is_broken = False
        except Exception:
            if not self._is_broken:
                logger.exception("%s: reading the family failed", self.family.name)
            self._is_broken = True
            scan = self.family.down(SensorError.reason)
        with self._condition:
            if self._timed_out == self._started:
                logger.info("%s: answers again", self.family.name)
            self._latest = scan
            self._finished = self._started
            self._progress_ns = time.monotonic_ns()
            worker.notify()

    def _edge(self, turn: Turn) -> bool:
        """If an edge was requested before the last scan, wait for the steps of the counters and publish it.

        Returns:
            Whether an edge was requested.
        """
        with self._condition:
            is_due = self._edges_wanted > self._edges_started and self._finished >= self._edge_scan
            if not is_due or self._latest is None or self._worker.turn is not turn:
                return False
            self._edges_started += 1
            turn.busy_since_ns = time.monotonic_ns()
            scan = self._latest

        def pause() -> bool:
            # A scrape does not wait for the edge.
            if self._wanted > self._finished and self._replacement is None:
                self._read(turn)
                turn.busy_since_ns = time.monotonic_ns()
            return not turn.is_over

        try:
            edge = self.family.edge(scan, turn, pause)
        except Exception:
            logger.exception("%s: waiting for the counters failed", self.family.name)
            edge = FamilyEdge(scan=scan)
        with self._condition:
            self._latest_edge = edge
            self._edges_finished = self._edges_started
        turn.rest()
        return True

    def _burst(self, turn: Turn) -> None:
        if not self.read_on_scrape or not self.family.wants_burst:
            return
        with self._condition:
            if self._worker.turn is not turn:
                return  # a scrape has borrowed the family meanwhile; the burst follows the next scan
            turn.busy_since_ns = time.monotonic_ns()
        self.family.burst(turn, lambda: turn.is_over or self._wanted > self._finished)
        turn.rest()
