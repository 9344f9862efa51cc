"""Times measured by the server: Triton's statistics extension, over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_PHASES: Final = {
    "queue": "queue",
    "compute_input": "copy_in",
    "compute_infer": "execute",
    "compute_output": "copy_out",
}
"""The server's name -> the phase."""


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Totals of the server's statistics since its start."""

    requests: int
    spans_ns: Mapping[str, int]
    """Phase -> nanoseconds: ``queue``, ``copy_in``, ``execute``, ``copy_out``."""
    cache_hits: int = 0
    """Requests that were answered from a cache, without the network."""

    def since(self, before: ServerTimes) -> ServerTimes:
        """Return the difference to an earlier total; zero if the server has restarted."""
        spans = {name: total - before.spans_ns.get(name, 0) for name, total in self.spans_ns.items()}
        requests = self.requests - before.requests
        if requests < 0 or min(spans.values(), default=0) < 0:
            return ServerTimes(0, {})
        return ServerTimes(requests, spans)


def server_times(answer: Any, model: str) -> ServerTimes | None:
    """Return the totals of a model in an answer of the extension; None if there are none."""
    listed = answer.get("model_stats") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        return None
    requests, spans = 0, dict.fromkeys(_PHASES.values(), 0)
    hits, is_listed = 0, False
    for item in listed:
        stats = item.get("inference_stats") if isinstance(item, dict) and item.get("name") == model else None
        if not isinstance(stats, dict):
            continue
        try:
            requests += int(stats["success"]["count"])
            for theirs, ours in _PHASES.items():
                spans[ours] += int(stats[theirs]["ns"])
            hits += int(stats.get("cache_hit", {}).get("count", 0))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        is_listed = True
    return ServerTimes(requests, spans, hits) if is_listed else None
