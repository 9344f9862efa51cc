"""The run conditions for the windows of several threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import monotonic_ns
from typing import Final

from joulewatch_harness.runner.conditions import ConditionsReading, ConditionsSource

MAX_AGE_NS: Final = 50_000_000
"""A reading serves all edges of this time after it: the windows of a program may follow each other closely, and a
reading takes milliseconds on a large machine."""


class SharedConditions:
    """Reads once at a time, and seldom; a window whose edges have the same reading has no conditions."""

    def __init__(self, source: ConditionsSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._last: ConditionsReading | None = None

    def read(self) -> ConditionsReading:
        """Return the conditions now, or those up to ``MAX_AGE_NS`` ago."""
        with self._lock:
            if self._last is None or monotonic_ns() - self._last.at_ns >= MAX_AGE_NS:
                self._last = self._source.read()
            return self._last

    def between(self, start: ConditionsReading, end: ConditionsReading) -> Mapping[str, float]:
        """Return the conditions of a window; one thread at a time, in the order in which the windows end."""
        return {} if start is end else self._source.between(start, end)
