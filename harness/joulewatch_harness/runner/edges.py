"""Read the energy counters of all exporters at an edge of a window.

An edge is read next to a running measurement, so it is read in two parts:

1. ``EdgeReader.fetch`` sends one request to each exporter, to all of them at the same time, on connections that stay
   open. ``Bracket`` calls it directly before the start and directly after the end of a window. An exporter on this
   machine waits for the next two refreshes of its counters (``EdgeStep``). Other sensors whose ``read_mode`` is
   ``on_request`` are read while the exporter answers: their read timestamps lie between request and answer, which
   bounds the difference between the exporter's clock and the harness's.
2. ``FetchedEdge.parse`` turns the answers into a record, after the window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

from joulewatch_harness.clients.exporter import Answer, ExporterClient
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.records import Edge, EdgeClock, EdgeCounter

START_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class FetchedEdge:
    """The answers of all exporters at one edge, not parsed; times are Unix seconds on the harness's clock."""

    requested_at_s: float
    answered_at_s: float
    answers: tuple[tuple[ExporterClient, Answer], ...]

    def is_late(self, now_s: float) -> bool:
        """Return whether a window that begins now would begin long after the refreshes of a counter, or without them.

        Then a process was interrupted, and another edge is better.
        """
        return any(client.is_late(answer, now_s) for client, answer in self.answers)

    def parse(self) -> Edge:
        """Return the edge; an exporter without a counter is in ``missing``, with the reason.

        Parse edges in the order in which they were fetched (see ``ExporterClient.parse_edge``).
        """
        counters: list[EdgeCounter] = []
        clocks: list[EdgeClock] = []
        missing: dict[str, str] = {}
        for client, answer in self.answers:
            if answer.error:
                missing[client.name] = answer.error
                continue
            try:
                own_counters, clock = client.parse_edge(answer)
            except ExporterUnreachableError as error:
                missing[client.name] = str(error)
                continue
            if not own_counters:
                missing[client.name] = f"exporter {client.url} returned no energy counter"
            counters += own_counters
            if clock is not None:
                clocks.append(clock)
        return Edge(
            requested_at_s=self.requested_at_s,
            answered_at_s=self.answered_at_s,
            counters=tuple(counters),
            clocks=tuple(clocks),
            missing=missing,
        )


class EdgeReader:
    """Reads all exporters at an edge, at the same time; ``close`` closes the clients."""

    def __init__(self, clients: Sequence[ExporterClient]) -> None:
        self.clients = tuple(clients)
        self._pool = ThreadPoolExecutor(len(self.clients), "edge") if len(self.clients) > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch_start(self, meanwhile: Callable[[], None]) -> FetchedEdge:
        """Fetch the edge at the start of a window: another one, up to twice, if this one is late.

        Args:
            meanwhile: Called once: while an exporter waits for its counters, or before the first request.
        """
        if self._waits:
            edge = self.fetch(meanwhile)
        else:
            meanwhile()
            edge = self.fetch()
        for _ in range(START_TRIES - 1):
            if not edge.is_late(time.time()):
                break
            edge = self.fetch()
        return edge

    def fetch_end(self, meanwhile: Callable[[], None]) -> FetchedEdge:
        """Fetch the edge at the end of a window.

        Args:
            meanwhile: Called once: while an exporter waits for its counters, or after the answers.
        """
        if self._waits:
            return self.fetch(meanwhile)
        edge = self.fetch()
        meanwhile()
        return edge

    @property
    def _waits(self) -> bool:
        return self._pool is None and any(client.waits for client in self.clients)

    def fetch(self, meanwhile: Callable[[], None] | None = None) -> FetchedEdge:
        """Send one request to every exporter; an exporter that does not answer is not an error."""
        requested_at_s = time.time()
        if self._pool is None:
            answers = [_fetch(client, meanwhile) for client in self.clients]
        else:
            answers = list(self._pool.map(_fetch, self.clients))
        return FetchedEdge(requested_at_s, time.time(), tuple(zip(self.clients, answers, strict=True)))

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for client in self.clients:
            client.close()


def _fetch(client: ExporterClient, meanwhile: Callable[[], None] | None = None) -> Answer:
    try:
        return client.fetch_edge(meanwhile)
    except ExporterUnreachableError as error:
        now_s = time.time()
        return Answer(requested_at_s=now_s, answered_at_s=now_s, error=str(error))
