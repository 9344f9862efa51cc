"""Findings about clocks, and what they do to a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from joulewatch_harness.analysis.energy.windows import measure_run
from joulewatch_harness.analysis.results.audit.findings import Finding, worst
from joulewatch_harness.analysis.results.audit.run import audit_run
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run, run_spans
from joulewatch_harness.records import Edge, EdgeClock, Window
from support.synthetic import EXPORTER, TWO_SOCKETS, ListSource, World, make_world, without_edges


def moved(edge: Edge | None, ahead_s: float) -> Edge:
    """Return an edge as an exporter reads it whose clock is ahead."""
    assert edge is not None
    counters = tuple(dataclasses.replace(item, read_at_s=item.read_at_s + ahead_s) for item in edge.counters)
    return dataclasses.replace(
        edge, counters=counters, clocks=(EdgeClock(EXPORTER, ahead_s - 0.0004, ahead_s + 0.0004),)
    )


def far_world(change: Callable[[Window], Window] = lambda window: window) -> World:
    """Return a world whose exporter runs on another machine than the harness, with changed windows."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2)
    assert world.record is not None
    exporters = tuple(dataclasses.replace(item, nodename="elsewhere") for item in world.record.header.exporters)
    world.record = dataclasses.replace(
        world.record,
        header=dataclasses.replace(world.record.header, exporters=exporters),
        windows=tuple(change(window) for window in world.record.windows),
    )
    return world


def analyzed(world: World, *, edges: bool = True) -> RunResult:
    assert world.record is not None
    return analyze_run(world.record if edges else without_edges(world.record), ListSource(world.scrapes()))


def of(result: RunResult, *reasons: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.reason in reasons]


def check_sums(result: RunResult, expected: RunResult) -> None:
    """Require the totals of an undisturbed run within their uncertainty."""
    for mine, theirs in zip(result.groups, expected.groups, strict=True):
        assert mine.total.gross is not None and theirs.total.gross is not None
        assert mine.total.net is not None and theirs.total.net is not None
        assert mine.total.gross.value == pytest.approx(theirs.total.gross.value, rel=0.01)
        assert mine.total.net.value == pytest.approx(theirs.total.net.value, rel=0.02)


@pytest.mark.parametrize("step_s", [300.0, -300.0, 0.3])
@pytest.mark.parametrize("kind", ["measure", "idle"])
def test_a_window_in_which_a_clock_was_set_is_an_error_and_excluded(step_s: float, kind: str) -> None:
    """Before: an idle power of 28 kW, and a warning."""
    world = far_world()
    assert world.record is not None
    index = next(window.index for window in world.record.windows if window.kind == kind)

    def change(window: Window) -> Window:
        first, last = (step_s * (window.index > index), step_s * (window.index >= index))
        return dataclasses.replace(
            window, start_edge=moved(window.start_edge, first), end_edge=moved(window.end_edge, last)
        )

    result = analyzed(far_world(change))
    (finding,) = of(result, "clock_stepped")
    assert (finding.severity, finding.window, finding.evidence) == ("error", index, {"exporter": EXPORTER})
    assert finding.text.startswith(f"{EXPORTER}: its clock was set {'forward' if step_s > 0 else 'back'} by at least")
    assert finding.text.endswith(
        "the window is excluded. Let the time service (NTP) slew clocks, not set them, and repeat the run"
    )
    assert worst(result.findings) == "error", "--strict fails"
    used = [window for group in result.groups for window in group.total.windows]
    assert index not in used and all(index not in power.windows for power in result.idle.values())
    excluded = [item for group in result.groups for item in group.excluded]
    assert [(item.window, item.reason) for item in excluded] == (
        [(index, "clock_stepped")] if kind == "measure" else []
    )
    check_sums(result, analyzed(far_world()))


def test_a_step_of_the_harness_s_clock_is_an_error_and_the_window_excluded() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2)
    assert world.record is not None
    index = next(window.index for window in world.record.windows if window.kind == "measure")
    windows = [
        dataclasses.replace(window, clock_step_s=-0.5) if window.index == index else window
        for window in world.record.windows
    ]
    expected = analyzed(world)
    world.record = dataclasses.replace(world.record, windows=tuple(windows))
    result = analyzed(world)
    (finding,) = of(result, "clock_stepped")
    assert (finding.severity, finding.window, finding.evidence) == ("error", index, {"step_s": -0.5})
    assert finding.text.startswith("the clock of the harness's machine was set by -0.5 s in the window; the window is ")
    check_sums(result, expected)


def test_readings_outside_their_requests_on_one_machine_are_an_error() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2)
    assert world.record is not None
    world.record = dataclasses.replace(
        world.record,
        windows=tuple(
            dataclasses.replace(
                window, start_edge=moved(window.start_edge, 0.02), end_edge=moved(window.end_edge, 0.02)
            )
            for window in world.record.windows
        ),
    )
    result = analyzed(world)
    findings = of(result, "clock_stepped")
    assert {finding.window for finding in findings} == {
        window.index for window in world.record.windows if window.kind in ("idle", "measure")
    }
    assert findings[0].text.endswith("the window is excluded. If they are two machines, give them different host names")
    assert not of(result, "clock_skew")
    assert all(group.total.gross is None for group in result.groups)


def test_a_history_on_a_clock_that_nothing_bounded_is_a_warning() -> None:
    world = far_world()
    result = analyzed(world, edges=False)
    (finding,) = of(result, "clock_unknown")
    assert (finding.severity, finding.window) == ("warning", None)
    assert finding.evidence["exporter"] == EXPORTER and finding.evidence["offset_s"] == 0.25
    assert finding.text.endswith(
        "windows allows for 0.25 s. Name the exporter with --exporter, so that it is read at the edges; an exporter of "
        "version 0.1.0 must be updated, too"
    )
    group = result.groups[0]
    assert group.total.gross is not None
    budget = {line.name: line for line in group.total.gross.budget}
    assert "clock" in " ".join(budget)
    assert not of(analyzed(world), "clock_unknown"), "bounded by the edges"
    near = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2)
    assert not of(analyzed(near, edges=False), "clock_unknown"), "on the harness's machine"


def test_the_clock_of_another_exporter_cannot_be_read_at_the_edges() -> None:
    world = far_world()
    assert world.record is not None
    source = ListSource(world.scrapes())
    run = measure_run(without_edges(world.record), source.history(run_spans(world.record)))
    sensors = {sensor: dataclasses.replace(record, read_mode="") for sensor, record in run.sensors.items()}
    foreign = dataclasses.replace(run, record=run.record.without_exporters, sensors=sensors)
    (finding,) = [one for one in audit_run(foreign, with_history=True) if one.reason == "clock_unknown"]
    assert finding.text.endswith("(NTP); only joulewatch-exporter can be read at the edges")
