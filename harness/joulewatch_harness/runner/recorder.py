"""Scrape exporters into a recording, at a fixed rate, with one thread for each exporter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Self

from joulewatch_harness.clients.exporter import ExporterClient, Scrape
from joulewatch_harness.clocktime import Clock
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError, RecordError
from joulewatch_harness.storage.recording import DEFAULT_RATE_HZ, NS, RecordingWriter

logger = logging.getLogger(__name__)


class Recorder:
    """Scrapes exporters into a recording; each has its own thread, so that one that hangs delays no other.

    Args:
        clients: Used by no other thread; ``stop`` closes them.
        writer: The recording; the caller closes it.
        rate_hz: Scrapes per second of each exporter; each deadline is computed from the first one.
        clock: For tests.
    """

    def __init__(
        self,
        clients: Sequence[ExporterClient],
        writer: RecordingWriter,
        *,
        rate_hz: float = DEFAULT_RATE_HZ,
        clock: Clock = time,
    ) -> None:
        if not 0 < rate_hz <= 1000:
            raise ConfigError(f"rate_hz {rate_hz:g}: must be scrapes per second, above 0 and at most 1000")
        self._clients = tuple(clients)
        self._writer = writer
        self._clock = clock
        self._period_ns = round(NS / rate_hz)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._record, args=(client,), name=f"recorder {client.name}", daemon=True)
            for client in self._clients
        ]
        self.error: RecordError | None = None
        """Why scrapes were not written (disk full); writes are retried, and the recording lists the gap."""

    def start(self) -> None:
        """Start scraping."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Make one last scrape of each exporter, after the end of the last window, and stop."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for client in self._clients:
            client.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _record(self, client: ExporterClient) -> None:
        first_ns = self._clock.monotonic_ns()
        count = 0
        failing = False
        lost_from_s: float | None = None
        while True:
            last = self._stop.is_set()
            started_at_s = self._now_s()
            problem = ""
            scrape: Scrape | None = None
            try:
                scrape = client.scrape()
            except ExporterUnreachableError as error:
                problem = str(error)
            if bool(problem) != failing:
                failing = bool(problem)
                logger.warning("%s", problem or f"exporter {client.name} answers again")
            try:
                if lost_from_s is not None:
                    self._writer.add_failure(client, lost_from_s, started_at_s, f"not written: {self.error}")
                    logger.warning("%s: recording continues", self._writer.path)
                    lost_from_s = None
                if scrape is not None:
                    self._writer.add_scrape(client, scrape)
                else:
                    self._writer.add_failure(client, started_at_s, self._now_s(), problem)
            except RecordError as error:
                if lost_from_s is None:
                    logger.error("recording paused: %s", error)
                    lost_from_s = started_at_s
                self.error = error
            if last:
                return
            # Wait for the next deadline in the future: missed ones are skipped.
            count = max(count + 1, (self._clock.monotonic_ns() - first_ns) // self._period_ns + 1)
            self._stop.wait((first_ns + count * self._period_ns - self._clock.monotonic_ns()) / NS)

    def _now_s(self) -> float:
        return self._clock.time_ns() / NS
