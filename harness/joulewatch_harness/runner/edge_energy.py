"""The gross energy of a window from its edges, for the decision whether a cell needs more rounds.

The analysis computes the energies of the results: with history, bounds and an uncertainty. The decision only needs the
scatter between rounds, for which the mean power between the two readings times the window's length is enough.
"""

from __future__ import annotations

import math

from joulewatch_harness.records import Edge, EdgeCounter, Window


def joules_per_inference(window: Window) -> float | None:
    """Return the energy of all devices per inference; without device sensors that of all nodes.

    Returns:
        None if an exporter was not read at both edges, if no counter was read, or if the counters did not advance.
    """
    start, end = window.start_edge, window.end_edge
    if start is None or end is None or start.missing or end.missing or window.inferences < 1:
        return None
    before, after = _summed(start), _summed(end)
    if not before or before.keys() != after.keys():
        return None
    joules = 0.0
    for sensor, reading in before.items():
        after_s, after_joules = after[sensor].first
        between_s = after_s - reading.read_at_s
        difference_joules = after_joules - reading.energy_joules
        if between_s <= 0.0 or difference_joules < 0.0:
            return None
        joules += difference_joules * window.duration_s / between_s
    return joules / window.inferences if joules > 0.0 and math.isfinite(joules) else None


def _summed(edge: Edge) -> dict[tuple[str, ...], EdgeCounter]:
    counters = [counter for counter in edge.counters if counter.scope == "device"]
    return {
        (counter.exporter, counter.collector, counter.component, counter.device, counter.domain): counter
        for counter in counters or [counter for counter in edge.counters if counter.scope == "node"]
    }
