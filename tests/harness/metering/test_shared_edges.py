"""One edge reader for several windows: answers are parsed in the order of the requests."""

from __future__ import annotations

from collections.abc import Callable

from joulewatch_harness.metering.shared_edges import SharedEdges
from joulewatch_harness.records import Edge


class Reader:
    """Numbers its edges, and notes the order in which they are parsed."""

    def __init__(self) -> None:
        self.fetched = 0
        self.parsed: list[int] = []

    def fetch_start(self, meanwhile: Callable[[], None]) -> Numbered:
        """The first edge is late."""
        meanwhile()
        self.fetched += 2
        return Numbered(self, self.fetched)

    def fetch_end(self, meanwhile: Callable[[], None]) -> Numbered:
        meanwhile()
        self.fetched += 1
        return Numbered(self, self.fetched)


class Numbered:
    def __init__(self, reader: Reader, number: int) -> None:
        self.reader = reader
        self.number = number

    def parse(self) -> Edge:
        self.reader.parsed.append(self.number)
        return Edge(requested_at_s=self.number, answered_at_s=self.number, counters=())


def nothing() -> None: ...


def test_answers_are_parsed_once_and_in_the_order_of_the_requests() -> None:
    reader = Reader()
    edges = SharedEdges(reader)
    outer, inner, end = (edges.fetch_end(nothing) for _ in range(3))
    assert inner.parse().requested_at_s == 2
    assert reader.parsed == [1, 2]
    assert [edge.parse().requested_at_s for edge in (end, outer, inner)] == [3, 1, 2]
    assert reader.parsed == [1, 2, 3]


def test_the_start_is_read_as_the_reader_does() -> None:
    called: list[str] = []
    edge = SharedEdges(Reader()).fetch_start(lambda: called.append("meanwhile"))
    assert edge.parse().requested_at_s == 2
    assert called == ["meanwhile"]
