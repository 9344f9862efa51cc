"""The energy per inference of a window from its edges, for the end of the rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from joulewatch_harness.records import Edge, EdgeCounter, Window
from joulewatch_harness.runner.edge_energy import joules_per_inference
from support.runs import window


def edge(read_at_s: float, *readings: tuple[str, str, float]) -> Edge:
    """Return an edge with one counter for each (scope, device, joules)."""
    return Edge(
        requested_at_s=read_at_s,
        answered_at_s=read_at_s,
        counters=tuple(
            EdgeCounter(
                exporter="a:1",
                scope=scope,
                collector="rapl",
                component="cpu",
                device=device,
                domain="package",
                energy_joules=joules,
                read_at_s=read_at_s,
            )
            for scope, device, joules in readings
        ),
    )


def between(start: Edge | None, end: Edge | None, inferences: int = 100) -> Window:
    """Return a window of 2 s whose edges were read at any time."""
    return window(0, 10.0, 2.0, start_edge=start, end_edge=end, inferences=inferences)


def test_the_power_between_the_readings_is_that_of_the_window() -> None:
    """Two devices draw 10 W and 30 W over 2.5 s; the part and the node are not added."""
    start = edge(9.8, ("device", "s0", 5.0), ("device", "s1", 7.0), ("part", "core", 1.0), ("node", "bmc", 0.0))
    end = edge(12.3, ("device", "s0", 30.0), ("device", "s1", 82.0), ("part", "core", 9.0), ("node", "bmc", 500.0))
    assert joules_per_inference(between(start, end)) == pytest.approx(40.0 * 2.0 / 100)


def test_without_devices_it_is_the_energy_of_the_nodes() -> None:
    assert joules_per_inference(
        between(edge(10.0, ("node", "bmc", 0.0)), edge(12.0, ("node", "bmc", 500.0)))
    ) == pytest.approx(5.0)


def test_an_energy_that_is_not_known_is_none() -> None:
    start, end = edge(10.0, ("device", "s0", 5.0)), edge(12.0, ("device", "s0", 9.0))
    assert joules_per_inference(between(start, end)) == pytest.approx(0.04)
    assert joules_per_inference(between(None, end)) is None
    assert joules_per_inference(between(start, None)) is None
    assert joules_per_inference(between(start, end, inferences=0)) is None
    assert joules_per_inference(between(start, replace(end, missing={"b:1": "refused"}))) is None
    assert joules_per_inference(between(start, edge(12.0, ("device", "s1", 9.0)))) is None, "another sensor"
    assert joules_per_inference(between(start, edge(12.0, ("device", "s0", 4.0)))) is None, "restarted"
    assert joules_per_inference(between(start, edge(12.0, ("device", "s0", 5.0)))) is None, "did not advance"
    assert joules_per_inference(between(start, edge(10.0, ("device", "s0", 9.0)))) is None, "read at the same time"
    assert joules_per_inference(between(edge(10.0), edge(12.0))) is None, "no counter"
