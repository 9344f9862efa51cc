"""Reads joulewatch exporters over HTTP: what they measure, their scrapes, and their counters at an edge.

An edge is read next to a running measurement, so fetching (one request per exporter, side by side, on
connections that stay open) is apart from parsing, which waits until the window is over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from joulewatch_harness.clients.exporter import ExporterClient, RawAnswer
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.records import Edge, EdgeClock, EdgeCounter


@dataclass(frozen=True, slots=True)
class RawEdge:
    """What all exporters answered at one edge, not looked into yet."""

    requested_at_s: float
    answered_at_s: float
    answers: tuple[tuple[ExporterClient, RawAnswer], ...]

    def parse(self) -> Edge:
        """Turn it into a record; an exporter that gave nothing is in ``missing``, with the reason.

        Parse the edges of a run in the order they were read.
        """
        counters: list[EdgeCounter] = []
        clocks: list[EdgeClock] = []
        missing: dict[str, str] = {}
        for client, answer in self.answers:
            if answer.error:
                missing[client.name] = answer.error
                continue
            try:
                found, clock = client.edge(answer)
            except ExporterUnreachableError as error:
                missing[client.name] = str(error)
                continue
            if not found:
                missing[client.name] = f"exporter {client.url} gave no energy counter"
            counters += found
            if clock is not None:
                clocks.append(clock)
        return Edge(self.requested_at_s, self.answered_at_s, tuple(counters), tuple(clocks), missing)


class EdgeReader:
    """Reads all exporters at an edge, side by side; owns its clients and closes them."""

    def __init__(self, clients: Sequence[ExporterClient]) -> None:
        self.clients = tuple(clients)
        self._pool = ThreadPoolExecutor(len(self.clients), "edge") if len(self.clients) > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self) -> RawEdge:
        """Ask every exporter once; never raises for one that does not answer."""
        requested_at_s = time.time()
        if self._pool is None:
            answers = [_fetch(client) for client in self.clients]
        else:
            answers = list(self._pool.map(_fetch, self.clients))
        return RawEdge(requested_at_s, time.time(), tuple(zip(self.clients, answers, strict=True)))

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        for client in self.clients:
            client.close()


def _fetch(client: ExporterClient) -> RawAnswer:
    try:
        return client.fetch()
    except ExporterUnreachableError as error:
        now_s = time.time()
        return RawAnswer(now_s, now_s, b"", str(error))


def read_edge(clients: Sequence[ExporterClient]) -> Edge:
    """Read one edge at once, parsing included; the clients stay open and the caller's."""
    reader = EdgeReader(clients)
    try:
        return reader.fetch().parse()
    finally:
        if reader._pool is not None:
            reader._pool.shutdown(wait=True)
