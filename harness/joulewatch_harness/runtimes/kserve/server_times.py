"""What a server says of its own times: Triton's statistics extension, the same over HTTP and gRPC."""

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
    """Totals of the server's own statistics since it started."""

    requests: int
    spans_ns: Mapping[str, int]
    """Phase -> nanoseconds: ``queue``, ``copy_in``, ``execute``, ``copy_out``."""
    cache_hits: int = 0
    """Of the requests, those that were answered without the network."""

    def since(self, before: ServerTimes) -> ServerTimes:
        """What has come since; nothing where the server began to count again."""
        spans = {name: total - before.spans_ns.get(name, 0) for name, total in self.spans_ns.items()}
        requests = self.requests - before.requests
        if requests < 0 or min(spans.values(), default=0) < 0:
            return ServerTimes(0, {})
        return ServerTimes(requests, spans)


def server_times(told: Any, model: str) -> ServerTimes | None:
    """The totals of a model in an answer of the extension; None where there are none."""
    listed = told.get("model_stats") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        return None
    requests, spans = 0, dict.fromkeys(_PHASES.values(), 0)
    hits, found = 0, False
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
        found = True
    return ServerTimes(requests, spans, hits) if found else None
