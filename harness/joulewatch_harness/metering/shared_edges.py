"""One edge reader for the windows of several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from joulewatch_harness.records import Edge
from joulewatch_harness.runner.bracket import EdgeSource, UnparsedEdge


class SharedEdges:
    """Sends one request at a time, and parses the answers in the order of the requests.

    The order matters: a device bounds the clock only if its read timestamp differs from that of the answer before.
    Nested windows end in another order than they start.
    """

    def __init__(self, reader: EdgeSource) -> None:
        self._reader: Final = reader
        self._fetching = threading.Lock()
        self._parsing = threading.Lock()
        self._unparsed: deque[_Shared] = deque()

    def fetch(self) -> UnparsedEdge:
        """Read all exporters; a window of another thread that is reading them delays this."""
        return self._fetch(self._reader.fetch)

    def fetch_start(self) -> UnparsedEdge:
        """Read all exporters before a window begins; a reader that can do so reads again if an edge was late."""
        return self._fetch(getattr(self._reader, "fetch_start", self._reader.fetch))

    def _fetch(self, fetch: Callable[[], UnparsedEdge]) -> UnparsedEdge:
        with self._fetching:
            edge = _Shared(self, fetch())
            self._unparsed.append(edge)
        return edge

    def parse_until(self, edge: _Shared) -> Edge:
        """Parse all edges that were fetched before this one, and this one."""
        with self._parsing:
            while edge.parsed is None:
                first = self._unparsed.popleft()
                first.parsed = first.fetched.parse()
        return edge.parsed


class _Shared:
    def __init__(self, owner: SharedEdges, fetched: UnparsedEdge) -> None:
        self.fetched = fetched
        self.parsed: Edge | None = None
        self._owner = owner

    def parse(self) -> Edge:
        return self._owner.parse_until(self)
