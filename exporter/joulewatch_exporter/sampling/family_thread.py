"""The thread that reads one family: on its schedule and whenever a scrape asks."""

from __future__ import annotations

import logging
import threading
import time

from joulewatch_exporter.errors import SensorTimeoutError
from joulewatch_exporter.model import Collector
from joulewatch_exporter.sampling.counter import NS_PER_S
from joulewatch_exporter.sampling.family import AbandonedError, Family
from joulewatch_exporter.sampling.scan import FamilyScan

logger = logging.getLogger(__name__)


class FamilyThread:
    """Reads one family: at its deadlines, and whenever a scrape asks.

    A request is served by a read that starts after it was made, and by one read however many ask. A thread that hangs
    in a device's read is left to itself, and a new one goes on with the other devices (``watch``).
    """

    def __init__(self, family: Family, *, poll_s: float, read_on_scrape: bool) -> None:
        self.family = family
        self.poll_s = poll_s
        self.read_on_scrape = read_on_scrape
        self._condition = threading.Condition()
        self._wanted = 0
        self._started = 0
        self._finished = 0
        self._busy_ns = 0
        """Since when the thread reads devices, in a scan or in the burst behind it, monotonic; 0: it does not."""
        self._timed_out = 0
        self._stopping = False
        self._replacement: Collector | None = None
        self._latest: FamilyScan | None = None
        self._generation = 0
        self._thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(
            target=self._run, args=(self._generation,), name=f"read-{self.family.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    @property
    def latest(self) -> FamilyScan | None:
        """The last scan; None before the first."""
        return self._latest

    def watch(self, hang_s: float) -> None:
        """Let another thread go on if this one hangs in a device's read for longer than ``hang_s``."""
        if not self.read_on_scrape:
            hang_s = max(hang_s, 2 * self.poll_s)  # its devices are known to be slow
        with self._condition:
            if self._stopping or self._busy_for_ns(time.monotonic_ns()) <= hang_s * NS_PER_S:
                return
            if not self.family.abandon():
                return
            self._generation += 1
            self._busy_ns = 0
            self._wanted = max(self._wanted, self._started + 1)
            self._thread = self._new_thread()
            self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it closes its collector itself. A hung one is left behind."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def hand_over(self, collector: Collector) -> None:
        """Let the thread go on with a newly opened collector before its next read."""
        with self._condition:
            superseded, self._replacement = self._replacement, collector
        if superseded is not None:
            superseded.close()

    def request(self) -> int:
        """Ask for a read; the ticket to wait for. A family that scrapes do not read gives its last scan."""
        with self._condition:
            if not self.read_on_scrape:
                return 1
            ticket = self._started + 1
            if ticket > self._wanted:
                self._wanted = ticket
                self._condition.notify_all()
            return ticket

    def wait(self, ticket: int, deadline_ns: int, timeout_s: float) -> FamilyScan:
        """The scan of a ticket, or the family as down when it is not there by the deadline.

        Args:
            ticket: From ``request``.
            deadline_ns: Monotonic time at which to give up.
            timeout_s: What a read may take: one in flight for longer is not waited for again.
        """
        with self._condition:
            while self._finished < ticket and not self._stopping:
                now_ns = time.monotonic_ns()
                left_ns = deadline_ns - now_ns
                if self._busy_for_ns(now_ns) > timeout_s * NS_PER_S or left_ns <= 0:
                    break
                self._condition.wait(left_ns / NS_PER_S)
            hung = self._finished < ticket
            if not self.read_on_scrape and self._busy_for_ns(time.monotonic_ns()) > 2 * self.poll_s * NS_PER_S:
                hung = True
            latest = self._latest
            if not hung and latest is not None:
                return latest
            if self._timed_out != self._started:
                self._timed_out = self._started
                devices = self.family.layout.devices
            else:
                devices = ()
        if devices and not self._stopping:
            self.family.count_errors(devices, SensorTimeoutError.reason)
            logger.warning("%s: %s: no answer within %g s", self.family.name, SensorTimeoutError.reason, timeout_s)
        return self.family.down()

    def _busy_for_ns(self, now_ns: int) -> int:
        return now_ns - self._busy_ns if self._busy_ns else 0

    def _run(self, generation: int) -> None:
        poll_ns = round(self.poll_s * NS_PER_S)
        deadline_ns = time.monotonic_ns()
        broken = False
        try:
            while True:
                with self._condition:
                    while not self._is_over(generation) and self._wanted <= self._finished:
                        left_ns = deadline_ns - time.monotonic_ns()
                        if left_ns <= 0:
                            break
                        self._condition.wait(left_ns / NS_PER_S)
                    if self._is_over(generation):
                        return
                    self._started += 1
                    started_ns = self._busy_ns = time.monotonic_ns()
                    asked = self._wanted >= self._started
                    replacement, self._replacement = self._replacement, None
                try:
                    if replacement is not None:
                        self.family.replace(replacement)
                    scan = self.family.scan()
                    broken = False
                except AbandonedError:
                    return
                except Exception:
                    if not broken:
                        logger.exception("%s: reading the family failed", self.family.name)
                    broken = True
                    scan = self.family.down()
                bursts = self.read_on_scrape and self.family.wants_burst
                with self._condition:
                    if generation != self._generation:
                        return
                    if self._timed_out == self._started:
                        logger.info("%s: answers again", self.family.name)
                    self._latest = scan
                    self._finished = self._started
                    self._busy_ns = time.monotonic_ns() if bursts else 0
                    self._condition.notify_all()
                if asked:
                    deadline_ns = started_ns + poll_ns  # a scrape stands for the next background read
                else:
                    deadline_ns += poll_ns
                    if deadline_ns < time.monotonic_ns():
                        deadline_ns = started_ns + poll_ns  # late by more than a period: do not catch up in a rush
                if bursts:
                    try:
                        self.family.burst(lambda: self._is_over(generation) or self._wanted > self._finished)
                    except AbandonedError:
                        return
                    with self._condition:
                        if generation != self._generation:
                            return
                        self._busy_ns = 0
        finally:
            if generation == self._generation:
                self.family.close()
                if self._replacement is not None:
                    self._replacement.close()

    def _is_over(self, generation: int) -> bool:
        return self._stopping or generation != self._generation
