"""The answer to an edge: the energy counters, with the steps that were waited for, as compact JSON (see README.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.model import SensorInfo
from joulewatch_exporter.sampling.steps import FamilyEdge, Steps

FORMAT: Final = 1


def render_edge(edges: Sequence[FamilyEdge], *, start_s: float, nodename: str | None = None) -> bytes:
    """Return the body of the answer.

    Args:
        edges: One for each family.
        start_s: Unix time at which the energy counters started.
        nodename: Name of this machine; None: as the kernel reports it.
    """
    answer = {
        "joulewatch_edge": FORMAT,
        "nodename": os.uname().nodename if nodename is None else nodename,
        "start_s": start_s,
        "counters": [counter for edge in edges for counter in _counters(edge)],
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def _counters(edge: FamilyEdge) -> Iterator[dict[str, Any]]:
    scan = edge.scan
    read_at_s = dict(zip(scan.layout.devices, scan.read_at_s, strict=True))
    for index, (info, joules) in enumerate(zip(scan.layout.infos, scan.energies_joules, strict=True)):
        at_s = read_at_s.get(info.quantity.device)
        if joules is None or at_s is None:
            continue
        counter = {**_labels(scan.collector, info), "on_request": info.read_mode == "on_request"}
        if (steps := edge.steps.get(index)) is not None:
            yield {**counter, **_step(steps, edge.offset_ns)}
        elif (reading := edge.readings.get(index)) is not None:
            at_s = (reading.at_ns + edge.offset_ns) / NS_PER_S
            yield {**counter, "joules": reading.joules, "read_at_s": at_s, "no_step": edge.reasons[index]}
        else:
            yield {**counter, "joules": joules, "read_at_s": at_s, "no_step": edge.reasons.get(index, "")}


def _labels(collector: str, info: SensorInfo) -> dict[str, Any]:
    quantity = info.quantity
    return {
        "scope": quantity.scope,
        "collector": collector,
        "component": quantity.component,
        "device": quantity.device,
        "domain": quantity.domain,
    }


def _step(steps: Steps, offset_ns: int) -> dict[str, Any]:
    return {
        "joules": steps.last.joules,
        "read_at_s": (steps.last.at_ns + offset_ns) / NS_PER_S,
        "step": {
            "error_s": max(steps.first.error_ns, steps.last.error_ns) / NS_PER_S,
            "before_joules": steps.before_joules,
            "first_joules": steps.first.joules,
            "span_s": (steps.last.at_ns - steps.first.at_ns) / NS_PER_S,
        },
    }
