"""What the edges of a run show about the clocks of its exporters: offsets, steps, contradictions."""

from __future__ import annotations

import dataclasses

import pytest

from joulewatch_harness.analysis.energy.clock_offsets import HARNESS, Offsets, RunClocks, run_clocks
from joulewatch_harness.analysis.energy.window_energy import UNKNOWN_CLOCK, ClockOffset
from joulewatch_harness.records import Edge, EdgeClock, EdgeCounter, ExporterRecord, RunRecord, Window
from support.runs import header, window

HERE, FAR = "node1:10717", "node2:10717"
Bounds = tuple[float, float]


def edge(exporter: str, at_s: float, *, bounds: Bounds | None = None, read_at_s: float | None = None) -> Edge:
    """Return an edge at ``at_s`` with bounds from a round trip, or with a reading in the background."""
    counters = ()
    if read_at_s is not None:
        counters = (
            EdgeCounter(
                exporter=exporter, scope="node", collector="ipmi", component="node", device="bmc", domain="total",
                energy_joules=1.0, read_at_s=read_at_s,
            ),
        )  # fmt: skip
    clocks = () if bounds is None else (EdgeClock(exporter, *bounds),)
    return Edge(requested_at_s=at_s, answered_at_s=at_s, counters=counters, clocks=clocks)


def bare(index: int, first: Edge | None = None, last: Edge | None = None, **values: float) -> Window:
    """Return a window of 2 s, each 10 s after the one before."""
    times = {"start_s": 10.0 + 10 * index, "duration_s": 2.0, "clock_error_s": 0.0}
    return window(index, **{**times, **values}, start_edge=first, end_edge=last)  # type: ignore[arg-type]


def run_of(*windows: Window, host: str = "node1") -> RunRecord:
    exporters = (
        ExporterRecord(name=HERE, url=f"http://{HERE}", nodename="node1"),
        ExporterRecord(name=FAR, url=f"http://{FAR}", nodename="node2"),
    )
    return RunRecord(
        header=header(exporters=exporters, provenance={"host": host}), configurations=(), windows=windows, end=None
    )


def bounded_run(*bounds: tuple[Bounds | None, Bounds | None], exporter: str = FAR, error_s: float = 0.0) -> RunClocks:
    """Return the clocks of a run with bounds at the start and the end of each window; None: not bounded."""
    windows = []
    for index, (first, last) in enumerate(bounds):
        at_s = 10.0 + 10 * index
        edges = (edge(exporter, at_s, bounds=first), edge(exporter, at_s + 2, bounds=last))
        windows.append(bare(index, *edges, clock_error_s=error_s))
    return run_clocks(run_of(*windows), [exporter])


def stepped(clocks: RunClocks, exporter: str = FAR) -> list[int]:
    return [position for position in range(len(clocks.steps)) if clocks.step(position, exporter)]


@pytest.mark.parametrize(
    ("exporter", "host", "same"),
    [
        (HERE, "node1", True),
        (HERE, "node2", False),
        (FAR, "node2", True),
        (FAR, "node1", False),
        (HERE, "", False),
        ("127.0.0.1:10717", "node1", True),
        ("localhost:10717", "", True),
        ("elsewhere:1", "node1", False),
    ],
)
def test_a_machine_and_the_harness_share_a_clock_by_name_or_by_loopback(exporter: str, host: str, same: bool) -> None:
    assert run_clocks(run_of(bare(0), host=host), [exporter]).shared == ({exporter} if same else set())


def test_an_exporter_on_loopback_in_another_container_has_another_clock() -> None:
    """The name of its machine, if known, decides; the address does not."""
    record = run_of()
    named = (ExporterRecord(name="127.0.0.1:1", url="", nodename="node9"), ExporterRecord(name="localhost:2", url=""))
    record = dataclasses.replace(record, header=dataclasses.replace(record.header, exporters=named))
    assert run_clocks(record, ["127.0.0.1:1", "localhost:2"]).shared == {"localhost:2"}, "the address, without a name"


def test_a_loopback_address_with_another_clock_is_another_machine() -> None:
    """A tunnel to an exporter whose nodename is not stored."""
    bounds = (0.02, 0.021)
    clocks = bounded_run((bounds, bounds), (bounds, bounds), exporter="localhost:9")
    assert clocks.shared == set() and not clocks.was_set("localhost:9")
    assert clocks.offsets(0, "localhost:9") == Offsets.constant(ClockOffset(*bounds))


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ((-1.0, 2.0), (0.0, 3.0), (0.0, 2.0)),
        ((0.0, 3.0), (-1.0, 2.0), (0.0, 2.0)),
        ((0.0, 1.0), (1.0, 2.0), (1.0, 1.0)),
        (None, (1.0, 2.0), (1.0, 2.0)),
        ((1.0, 2.0), None, (1.0, 2.0)),
    ],
)
def test_the_offset_of_a_window_is_what_both_edges_allow(
    first: Bounds | None, last: Bounds | None, expected: Bounds
) -> None:
    clocks = bounded_run((first, last))
    assert clocks.offsets(0, FAR) == Offsets.constant(ClockOffset(*expected))
    assert not clocks.was_set(FAR)


def test_a_clock_that_drifts_in_a_window_has_an_offset_at_each_edge() -> None:
    clocks = bounded_run(((0.100, 0.101), (0.104, 0.105)))
    expected = Offsets(ClockOffset(0.1, 0.101), ClockOffset(0.104, 0.105), ClockOffset(0.1, 0.105))
    assert clocks.offsets(0, FAR) == expected
    assert not clocks.was_set(FAR)


def test_a_window_without_a_bound_has_the_median_of_the_run() -> None:
    clocks = bounded_run(((0.0, 9.0), None), ((5.0, 6.0), None), ((1.0, 7.0), None), (None, None))
    assert clocks.offsets(3, FAR) == Offsets.constant(ClockOffset(1.0, 7.0))


def test_the_clock_of_the_harness_s_machine_is_its_own() -> None:
    clocks = bounded_run(((-0.001, 0.001), (-0.001, 0.001)), exporter=HERE)
    assert clocks.offsets(0, HERE) == Offsets.constant(ClockOffset())
    assert clocks.shared == {HERE}


@pytest.mark.parametrize(
    ("change_s", "is_set"),
    [(0.006, False), (0.009, True), (-0.006, False), (-0.009, True), (300.0, True), (-300.0, True)],
)
def test_bounds_that_exclude_each_other_show_a_step_in_a_window(change_s: float, is_set: bool) -> None:
    """5 ms, and 2 ms that NTP may slew two clocks in 2 s."""
    exact = bounded_run(((0.1, 0.1), (0.1 + change_s, 0.1 + change_s)), ((0.1 + change_s, 0.1 + change_s), None))
    assert stepped(exact) == ([0] if is_set else [])
    # The same change within the width of the bounds, or of the mapping of the harness's clocks, shows nothing.
    wide = abs(change_s) / 2 + 1e-6
    shifted = (0.1 + change_s - wide, 0.1 + change_s + wide)
    assert not bounded_run(((0.1 - wide, 0.1 + wide), shifted)).was_set(FAR)
    assert not bounded_run(((0.1, 0.1), (0.1 + change_s,) * 2), error_s=abs(change_s) / 2).was_set(FAR)


def test_a_step_between_two_windows_concerns_both() -> None:
    """When the clock was set is known to the time between two edges only."""
    before, after = (0.02, 0.021), (-0.3, -0.299)
    clocks = bounded_run((before, before), (before, before), (after, after), (after, after))
    assert stepped(clocks) == [1, 2]
    assert clocks.step(1, FAR) == (
        "node2:10717: its clock was set back by at least 0.319 s relative to the harness's between two edges"
    )
    assert clocks.was_set(FAR) and not clocks.was_set(HERE)


def test_windows_without_a_bound_of_a_clock_that_was_set_are_excluded() -> None:
    before, after = (0.02, 0.021), (300.0, 300.001)
    clocks = bounded_run((None, None), (before, before), (None, None), (after, after))
    assert stepped(clocks) == [0, 1, 2, 3]
    assert "no edge of this window bounds" in clocks.step(0, FAR)
    assert "set forward by at least 300 s" in clocks.step(2, FAR)


def test_a_slow_drift_over_a_long_run_is_no_step() -> None:
    """100 ppm: 12 ms in 2 minutes, in steps of 1 ms."""
    bounds = [(0.001 * index, 0.001 * index + 0.0001) for index in range(12)]
    assert not bounded_run(*((pair, pair) for pair in bounds)).was_set(FAR)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((-0.001, 0.001), ""),
        ((0.004, 0.006), ""),
        ((0.0055, 0.006), "node1:10717: its clock is 0.0055 s ahead of the harness's"),
        ((0.020, 0.021), "node1:10717: its clock is 0.02 s ahead of the harness's, although both machines have"),
        ((-300.0, -299.5), "node1:10717: its clock is 299.5 s behind the harness's"),
    ],
)
def test_a_reading_outside_its_request_contradicts_a_shared_clock(bounds: Bounds, text: str) -> None:
    """One clock: a sensor that was read for a request was read between request and answer."""
    clocks = bounded_run(((-0.001, 0.001), (-0.001, 0.001)), ((-0.001, 0.001), bounds), exporter=HERE)
    assert stepped(clocks, HERE) == ([1] if text else [])
    assert clocks.step(1, HERE).startswith(text)
    near = tuple(max(-0.05, min(bound, 0.05)) for bound in bounds)
    assert not bounded_run((near, near), exporter=HERE, error_s=0.1).was_set(HERE), "the mapping is no better"  # type: ignore[arg-type]


@pytest.mark.parametrize("step_s", [2.0, -2.0])
def test_a_step_of_the_harness_s_clock_concerns_all_exporters_of_the_window(step_s: float) -> None:
    here, far = (-0.001, 0.001), (0.02, 0.021)
    moved = (far[0] - step_s, far[1] - step_s)

    def edges(at_s: float, far: Bounds) -> Edge:
        both = (EdgeClock(HERE, *here), EdgeClock(FAR, *far))
        return Edge(requested_at_s=at_s, answered_at_s=at_s, counters=(), clocks=both)

    windows = (
        bare(0, edges(10, far), edges(12, far)),
        bare(1, edges(20, far), edges(22, moved), clock_step_s=step_s),
        bare(2, edges(30, moved), edges(32, moved)),
    )
    clocks = run_clocks(run_of(*windows), [HERE, FAR])
    assert stepped(clocks, HERE) == stepped(clocks, FAR) == [1]
    assert list(clocks.steps[1]) == [HARNESS], "one cause, one text"
    assert clocks.steps[1][HARNESS] == f"the clock of the harness's machine was set by {step_s:+g} s in the window"
    assert clocks.was_set(HERE) and clocks.was_set(FAR)


def test_the_clock_of_a_slewed_harness_did_not_step() -> None:
    assert not run_clocks(run_of(bare(0, clock_step_s=0.0069)), [HERE]).was_set(HERE)
    assert run_clocks(run_of(bare(0, clock_step_s=0.0071)), [HERE]).was_set(HERE)
    assert not run_clocks(run_of(bare(0, clock_step_s=0.0071, clock_error_s=1e-3)), [HERE]).was_set(HERE)
    assert run_clocks(run_of(bare(0, clock_step_s=0.0091, clock_error_s=1e-3)), [HERE]).was_set(HERE)


def test_after_a_step_of_the_harness_s_clock_windows_without_a_bound_are_excluded() -> None:
    """They may be on either side of it, also where no edge shows a change."""
    first = edge(FAR, 10.0, bounds=(0.02, 0.021))
    clocks = run_clocks(run_of(bare(0, first, first), bare(1, clock_step_s=2.0), bare(2)), [FAR])
    assert stepped(clocks) == [1, 2]
    assert "no edge of this window bounds" in clocks.step(2, FAR)


def test_an_edge_counts_without_the_other_edge_of_its_window() -> None:
    ends = [edge(FAR, 12.0 + 10 * index, bounds=(0.5 * index, 0.5 * index + 0.001)) for index in range(2)]
    clocks = run_clocks(run_of(bare(0, None, ends[0]), bare(1, None, ends[1])), [FAR])
    assert stepped(clocks) == [0, 1]
    assert "set forward by at least 0.499 s" in clocks.step(0, FAR)


# Sensors that are read in the background


def polled_run(*reads: tuple[float, float], exporter: str = FAR) -> RunClocks:
    """Return the clocks of a run whose readings at the edges are early by some seconds, on the exporter's clock."""
    windows = []
    for index, (first_s, last_s) in enumerate(reads):
        at_s = 10.0 + 10 * index
        first, last = (
            edge(exporter, at_s, read_at_s=at_s + first_s),
            edge(exporter, at_s + 2, read_at_s=at_s + 2 + last_s),
        )
        windows.append(bare(index, first, last))
    return run_clocks(run_of(*windows), [exporter])


def test_background_readings_leave_a_clock_unknown() -> None:
    assert polled_run((-0.7, -0.4), (-5.0, -0.1)).offsets(0, FAR) == Offsets.constant(UNKNOWN_CLOCK)
    assert run_clocks(run_of(bare(0)), [FAR]).offsets(0, FAR) == Offsets.constant(UNKNOWN_CLOCK)
    assert not polled_run((-30.0, -0.4)).was_set(FAR)
    assert polled_run((-60.0, -60.0)).offsets(0, FAR) == Offsets.constant(UNKNOWN_CLOCK), "as old as readings may be"


@pytest.mark.parametrize(("ahead_s", "bounds"), [(300.0, (289.9, 359.0)), (-300.0, (-310.1, -241.0))])
def test_background_readings_show_a_clock_that_is_minutes_off(ahead_s: float, bounds: Bounds) -> None:
    (offset, _, _) = polled_run((ahead_s - 1.0, ahead_s - 0.1)).offsets(0, FAR)
    assert not offset.known
    assert (offset.lower_s, offset.upper_s) == (pytest.approx(bounds[0]), pytest.approx(bounds[1]))


@pytest.mark.parametrize("step_s", [300.0, -300.0])
def test_background_readings_show_a_clock_that_was_set_by_minutes(step_s: float) -> None:
    clocks = polled_run((-0.7, -0.4), (-0.7, step_s - 0.4), (step_s - 0.3, step_s))
    assert stepped(clocks) == [0, 1, 2], "which windows have the right time is unknown"
    assert "its clock was set" in clocks.step(1, FAR)
    here = polled_run((-0.7, -0.4), (-0.7, step_s - 0.4), exporter=HERE)
    assert stepped(here, HERE) == [1]


@pytest.mark.parametrize(
    ("late_s", "is_error"), [(-50.0, False), (0.0, False), (0.004, False), (0.0055, True), (30.0, True)]
)
@pytest.mark.parametrize("exporter", [HERE, FAR])
def test_a_read_time_after_the_answer_is_on_another_clock(exporter: str, late_s: float, is_error: bool) -> None:
    """One sensor with a clock of its own; the exporter's clock is bounded by another sensor. It may be read before."""
    good = edge(exporter, 20.0, bounds=(-0.001, 0.001), read_at_s=20.0)
    bad = edge(exporter, 22.0, bounds=(-0.001, 0.001), read_at_s=22.001 + late_s)
    clocks = run_clocks(run_of(bare(0), bare(1, good, bad), bare(2)), [exporter])
    assert (1 in stepped(clocks, exporter)) == is_error
    assert ("after the answer" in clocks.step(1, exporter)) == is_error
    if late_s < 0.1:
        coarse = run_of(bare(0), bare(1, good, bad, clock_error_s=0.1), bare(2))
        assert not run_clocks(coarse, [exporter]).was_set(exporter), "the mapping of the harness's clocks is no better"


@pytest.mark.parametrize(
    ("ahead_s", "late_s", "is_error"), [(-1.0, 0.02, False), (1.0, 0.02, False), (0.0, 30.0, True)]
)
def test_an_edge_from_prometheus_has_no_time_of_its_answer(ahead_s: float, late_s: float, is_error: bool) -> None:
    """Its times are read times on the exporter's clock; the request may have been late."""
    read_at_s = 22.0 + ahead_s + late_s
    rebuilt = dataclasses.replace(
        edge(FAR, 22.0, bounds=(ahead_s - 0.001, ahead_s + 0.001), read_at_s=read_at_s),
        requested_at_s=read_at_s,
        answered_at_s=read_at_s,
    )
    good = edge(FAR, 20.0, bounds=(ahead_s - 0.001, ahead_s + 0.001))
    assert (1 in stepped(run_clocks(run_of(bare(0), bare(1, good, rebuilt)), [FAR]))) == is_error
