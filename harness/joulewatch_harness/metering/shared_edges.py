"""One edge reader for the windows of several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from joulewatch_harness.records import Edge
from joulewatch_harness.runner.bracket import UnparsedEdge, WaitingSource


class SharedEdges:
    """Sends one request at a time, and parses the answers in the order of the requests.

    The order matters: a device bounds the clock only if its read timestamp differs from that of the answer before.
    Nested windows end in another order than they start.
    """

    def __init__(self, reader: WaitingSource) -> None:
        self._reader: Final = reader
        self._fetching = threading.Lock()
        self._parsing = threading.Lock()
        self._unparsed: deque[_Shared] = deque()

    def fetch_start(self, meanwhile: Callable[[], None]) -> UnparsedEdge:
        """Read all exporters before a window begins; a window of another thread that is reading them delays this."""
        with self._fetching:
            return self._keep(self._reader.fetch_start(meanwhile))

    def fetch_end(self, meanwhile: Callable[[], None]) -> UnparsedEdge:
        """Read all exporters after a window has ended; as ``fetch_start``."""
        with self._fetching:
            return self._keep(self._reader.fetch_end(meanwhile))

    def _keep(self, fetched: UnparsedEdge) -> UnparsedEdge:
        edge = _Shared(self, fetched)
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
