"""Which sensors a run has, on which clocks, and which of two energies a window gets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.window_energy import ClockOffset, Span
from joulewatch_harness.analysis.energy.windows import (
    Measured,
    _power_ranges,
    _why_not,
    measure_run,
    span_of,
)
from joulewatch_harness.analysis.sources.history import Health, History, traits_of, unknown_sensor
from joulewatch_harness.analysis.sources.known import known_sensors
from joulewatch_harness.analysis.sources.series import SensorId, Series
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.records import (
    METER,
    Edge,
    EdgeClock,
    EdgeCounter,
    ExporterRecord,
    RunHeader,
    RunRecord,
    SensorRecord,
    Window,
)
from support.runs import header, window
from support.synthetic import sensor

NODE = "node1:10717"
FAR = "node2:10717"
SPAN = Span(10.0, 12.0)


def package(exporter: str = NODE, **values: object) -> SensorRecord:
    return dataclasses.replace(sensor("socket0", "package", refresh_s=0.0), exporter=exporter, **values)  # type: ignore[arg-type]


PACKAGE, FAR_PACKAGE = package(), package(FAR)
ID, FAR_ID = SensorId.of(PACKAGE), SensorId.of(FAR_PACKAGE)


def edge(
    at_s: float,
    joules: float,
    *,
    of: SensorRecord = PACKAGE,
    offset_s: tuple[float, float] | None = None,
    missing: dict[str, str] | None = None,
) -> Edge:
    counter = EdgeCounter(
        exporter=of.exporter,
        scope=of.scope,
        collector=of.collector,
        component=of.component,
        device=of.device,
        domain=of.domain,
        energy_joules=joules,
        read_at_s=at_s,
    )
    clocks = () if offset_s is None else (EdgeClock(of.exporter, *offset_s),)
    return Edge(requested_at_s=at_s, answered_at_s=at_s, counters=(counter,), clocks=clocks, missing=missing or {})


def bare(index: int, start_s: float, end_s: float, first: Edge | None = None, last: Edge | None = None) -> Window:
    return window(
        index, start_s, end_s - start_s, clock_error_s=0.0, start_edge=first, end_edge=last, flags=(), kind="measure"
    )


def run_of(*windows: Window, sensors: tuple[SensorRecord, ...] = (PACKAGE,), host: str = "node1") -> RunRecord:
    exporters = (
        ExporterRecord(name=NODE, url=f"http://{NODE}", nodename="node1"),
        ExporterRecord(name=FAR, url=f"http://{FAR}", nodename="node2"),
    )
    return RunRecord(
        header=header(sensors=sensors, exporters=exporters, provenance={"host": host}),
        configurations=(),
        windows=windows,
        notes=(),
        end=None,
    )


def history_of(times_s: list[float], joules: list[float], **more: object) -> History:
    series = Series(np.array(times_s), np.array(joules))
    return History(source="memory", counters={ID: series}, **more)  # type: ignore[arg-type]


def measured(record: RunRecord, history: History | None = None, sensor_id: SensorId = ID) -> list[Measured]:
    run = measure_run(record, history or History(source=""))
    return [item.sensors[sensor_id] for item in run.windows]


# Sensors


def test_a_sensor_has_the_best_description_of_header_history_and_edges() -> None:
    vague = package(refresh_s=None, model="header", window_s=None)
    precise = package(refresh_s=0.5, model="history", window_s=0.25)
    for first, stored, expected in (
        (vague, precise, precise),
        (vague, vague, vague),
        (precise, package(refresh_s=1.0, window_s=0.75), precise),
        (package(refresh_s=0.5), precise, package(refresh_s=0.5, window_s=0.25)),
        (package(refresh_s=0.5), package(refresh_s=1.0), package(refresh_s=0.5)),
        (package(refresh_s=0.5), package(refresh_s=None, window_s=0.25), package(refresh_s=0.5, window_s=0.25)),
    ):
        history = History(source="", sensors={ID: stored})
        assert known_sensors(run_of(sensors=(first,)), history) == {ID: expected}
    only_stored = History(source="", sensors={FAR_ID: FAR_PACKAGE})
    assert known_sensors(run_of(sensors=()), only_stored) == {FAR_ID: FAR_PACKAGE}
    one_edge = run_of(bare(0, 1.0, 2.0), bare(1, 3.0, 4.0, None, edge(4.0, 1.0)), sensors=(FAR_PACKAGE,))
    known = known_sensors(one_edge, History(source=""))
    assert list(known.items()) == [(ID, unknown_sensor(ID)), (FAR_ID, FAR_PACKAGE)], "in order of their identity"
    described = run_of(bare(0, 3.0, 4.0, edge(3.0, 0.0), None))
    assert known_sensors(described, History(source="")) == {ID: PACKAGE}


# Clocks


def far(index: int, start_s: float, ahead_s: float, offset_s: tuple[float, float] | None) -> Window:
    """Return a window of 2 s and 90 J, read at both edges by an exporter whose clock is ahead."""
    first = edge(start_s + ahead_s, 1000.0 * index, of=FAR_PACKAGE, offset_s=offset_s)
    last = edge(start_s + 2 + ahead_s, 1000.0 * index + 90, of=FAR_PACKAGE)
    return bare(index, start_s, start_s + 2, first, last)


def test_readings_are_placed_by_the_offset_of_their_window_or_of_the_run() -> None:
    """The other machine's clock is 100 s ahead and drifts by 10 ms; the third window has no round trip of its own."""
    windows = (
        far(0, 10.0, 100.0, (100.0, 100.0)), far(1, 20.0, 100.01, (100.01, 100.01)), far(2, 30.0, 100.005, None)
    )  # fmt: skip
    record = run_of(*windows, sensors=(FAR_PACKAGE,))
    for item in measured(record, sensor_id=FAR_ID):
        assert item.energy is not None
        assert (item.energy.joules, item.energy.standard_joules) == (pytest.approx(90.0), pytest.approx(0.0, abs=1e-9))
        assert not item.clock_doubt_s
    run = measure_run(record, History(source=""))
    assert [{name: one.window for name, one in item.offsets.items()} for item in run.windows] == [
        {FAR: ClockOffset(100.0, 100.0)}, {FAR: ClockOffset(100.01, 100.01)}, {},
    ]  # fmt: skip
    assert run.record is record
    # On the harness's own machine a round trip only widens what is exact.
    near = bare(0, 10.0, 12.0, edge(10.0, 0.0, offset_s=(-1.0, 1.0)), edge(12.0, 90.0, offset_s=(-1.0, 1.0)))
    (exact,) = measured(run_of(near))
    assert exact.energy is not None and exact.energy.budget == ()


@pytest.mark.parametrize("ahead_s", [0.0, 0.25, -0.25, 100.0, -100.0])
def test_a_clock_that_nothing_bounds_does_not_change_an_energy_by_edges(ahead_s: float) -> None:
    (item,) = measured(run_of(far(0, 10.0, ahead_s, None), sensors=(FAR_PACKAGE,)), sensor_id=FAR_ID)
    assert item.energy is not None
    assert (item.energy.joules, item.energy.standard_joules) == (pytest.approx(90.0), pytest.approx(0.0, abs=1e-9))
    assert item.energy.lower_joules <= 90.0 <= item.energy.upper_joules
    assert not item.clock_doubt_s, "the window is not placed on that clock"


@pytest.mark.parametrize("ahead_s", [0.25, -0.25])
def test_a_history_on_an_unknown_clock_has_bounds_that_hold(ahead_s: float) -> None:
    """200 W for 1 s over 20 W, from an exporter that the harness could not read: 155 J, and the ± says so."""
    times_s = np.arange(0.05, 30.0, 0.1)
    joules = 20 * times_s + 180 * np.clip(times_s - 10, 0, 1)
    history = History(source="memory", counters={FAR_ID: Series(times_s + ahead_s, joules)})
    record = run_of(bare(0, 10.0, 11.0), sensors=(FAR_PACKAGE,))
    (item,) = measured(record, history, FAR_ID)
    assert item.energy is not None and item.energy.method == "history"
    assert item.energy.joules == pytest.approx(155.0)
    assert item.energy.lower_joules <= 200.0 <= item.energy.upper_joules
    assert abs(item.energy.joules - 200.0) <= 1.96 * item.energy.standard_joules
    assert item.clock_doubt_s == 0.25


def test_a_step_in_a_window_excludes_it_and_the_history_of_that_exporter() -> None:
    """The clock of node2 is set forward by 300 s in the second of four windows. Its samples are on two clocks."""
    bounds = (-0.001, 0.001)
    windows = []
    for index in range(4):
        start_s = 10.0 + 10 * index
        first, last = (300.0 * (index > 1), 300.0 * (index > 0))
        windows.append(
            bare(
                index,
                start_s,
                start_s + 2,
                edge(start_s + first, 90.0 * start_s, of=FAR_PACKAGE, offset_s=(bounds[0] + first, bounds[1] + first)),
                edge(
                    start_s + 2 + last,
                    90.0 * (start_s + 2),
                    of=FAR_PACKAGE,
                    offset_s=(bounds[0] + last, bounds[1] + last),
                ),
            )
        )
    times_s = np.arange(0.0, 60.0, 0.1)
    stepped = Series(times_s + np.where(times_s > 21.0, 300.0, 0.0), 90.0 * times_s)
    history = History(source="memory", counters={FAR_ID: stepped})
    run = measure_run(run_of(*windows, sensors=(FAR_PACKAGE,)), history)
    results = [item.sensors[FAR_ID] for item in run.windows]
    assert [result.reason for result in results] == ["", "clock_stepped", "", ""]
    assert "node2:10717: its clock was set forward by at least 300 s" in results[1].text
    for result in (results[0], *results[2:]):
        assert result.energy is not None and result.history is None
        assert result.energy.joules == pytest.approx(180.0)
        assert result.energy.upper_joules == pytest.approx(180.0, abs=0.002 * 180)
    assert [sorted(item.clock_steps) for item in run.windows] == [[], [FAR], [], []]


def test_a_step_of_the_harness_excludes_the_window_for_all_exporters() -> None:
    near = (edge(10.0, 0.0), edge(12.0, 180.0))
    windows = (
        bare(0, 10.0, 12.0, *near),
        dataclasses.replace(bare(1, 20.0, 22.0, edge(20.0, 900.0), edge(25.0, 1080.0)), clock_step_s=3.0),
        bare(2, 33.0, 35.0, edge(33.0, 2000.0), edge(35.0, 2180.0)),
    )
    times_s = np.arange(0.0, 60.0, 0.1)
    history = History(source="memory", counters={ID: Series(times_s, 90.0 * times_s)})
    results = measured(run_of(*windows), history)
    assert [result.reason for result in results] == ["", "clock_stepped", ""]
    assert "set by +3 s" in results[1].text
    assert all(result.history is None for result in results), "its samples are on two clocks"
    assert results[0].energy is not None and results[0].energy.upper_joules == pytest.approx(180.0)


# Powers


def test_the_range_of_power_is_that_between_readings_up_to_the_end_of_the_run() -> None:
    def at(read_at_s: float, joules: float) -> EdgeCounter:
        return EdgeCounter(**ID._asdict(), energy_joules=joules, read_at_s=read_at_s)

    start, end = at(10.0, 1000.0), at(12.0, 1200.0)
    low, reset = at(20.0, 50.0), at(24.0, 130.0)
    pairs = [(start, end), (low, reset), (None, at(30.0, 9999.0)), (end, at(12.0, 5000.0))]
    empty: dict[SensorId, Series] = {}
    assert _power_ranges({ID: pairs[:1]}, empty, 99.0) == {ID: (100.0, 100.0)}
    assert _power_ranges({ID: pairs}, empty, 99.0) == {ID: (20.0, 100.0)}
    fallen = [(at(10.0, 100.0), at(12.0, 90.0))]
    assert _power_ranges({ID: fallen}, empty, 99.0) == {ID: (0.0, 0.0)}
    # Only the samples before the last reading at an edge: 30 W and 70 W, not the 500 W after it.
    history = history_of([8.0, 10.0, 11.0, 12.0, 13.0], [0.0, 60.0, 130.0, 160.0, 660.0]).counters
    assert _power_ranges({ID: [(None, at(12.0, 160.0))]}, history, 99.0) == {ID: (30.0, 70.0)}
    assert _power_ranges({ID: [(start, end)]}, history, 99.0) == {ID: (30.0, 100.0)}
    # A sensor without edges: up to the end of the last window.
    assert _power_ranges({}, history, 13.0) == {ID: (30.0, 70.0)}
    assert _power_ranges({}, history, 14.0) == {ID: (30.0, 500.0)}
    assert _power_ranges({}, history, 10.5) == {ID: (30.0, 30.0)}
    assert _power_ranges({}, history, 10.0) == {}
    assert _power_ranges({ID: [(None, at(14.0, 700.0)), (None, at(12.0, 160.0))]}, history, 99.0) == {ID: (30.0, 500.0)}


def test_a_history_without_edges_has_the_powers_of_all_windows() -> None:
    """500 W in the second window: in the first one, a refresh of 50 ms may hide 25 J."""
    times_s = np.arange(9.0, 24.0)
    joules = 100 * times_s + 400 * np.clip(times_s - 20, 0, 2)
    history = History(source="memory", counters={ID: Series(times_s, joules)})
    record = run_of(bare(0, 10.0, 12.0), bare(1, 20.0, 22.0), sensors=(package(refresh_s=0.05),))
    first, second = measured(record, history)
    assert first.energy is not None and second.energy is not None
    assert (first.energy.joules, second.energy.joules) == (pytest.approx(200.0), pytest.approx(1000.0))
    assert (first.energy.lower_joules, first.energy.upper_joules) == (pytest.approx(175.0), pytest.approx(225.0))


def test_edge_slack_is_priced_with_the_powers_of_the_whole_run() -> None:
    """40 W while idle, 400 W at most: the 0.1 s before the second window were at 40 to 100 W."""
    record = run_of(
        bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 80.0)),
        bare(1, 20.0, 22.0, edge(19.9, 500.0), edge(22.0, 710.0)),
        bare(2, 30.0, 32.0, edge(30.0, 1000.0), edge(32.0, 1800.0)),
    )
    item = measured(record)[1]
    assert item.energy is not None
    assert item.energy.joules == pytest.approx(210 - 0.1 * (100 + 40) / 2)
    assert item.energy.lower_joules == pytest.approx(210 - 0.1 * 400)
    assert item.energy.upper_joules == pytest.approx(210.0)


# The choice


def test_of_edges_and_history_the_less_uncertain_is_used() -> None:
    exact = (edge(10.0, 0.0), edge(12.0, 200.0))
    far = (edge(9.0, -100.0), edge(13.0, 300.0))
    on_samples = history_of([9.0, 10.0, 12.0, 13.0], [0.0, 100.0, 300.5, 400.0])
    between = history_of([8.5, 9.5, 10.5, 11.5, 12.5, 13.5], [0.0, 100, 200, 300, 400, 500])
    for edges, history, method, joules in (
        (far, on_samples, "history", 200.5),
        (exact, between, "edges", 200.0),
        (exact, on_samples, "edges", 200.0),  # both are exact: the edges
        (exact, None, "edges", 200.0),
        (None, on_samples, "history", 200.5),
    ):
        record = run_of(bare(0, 10.0, 12.0, *(edges or (None, None))))
        (item,) = measured(record, history)
        assert item.energy is not None
        assert (item.energy.method, item.energy.joules) == (method, pytest.approx(joules))
        assert (item.edges is not None, item.history is not None) == (edges is not None, history is not None)
        assert (item.reason, item.text, item.health) == ("", "", Health())
        assert method == "history" or item.energy is item.edges


def test_an_accuracy_does_not_decide_between_edges_and_history() -> None:
    """It is the same for both, so the interpolation decides."""
    rough = package(accuracy=0.5)
    history = history_of([8.5, 9.5, 10.5, 11.5, 12.5, 13.5], [0.0, 50, 100, 150, 200, 250])
    record = run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 200.0)), sensors=(rough,))
    (item,) = measured(record, history)
    assert item.energy is not None and item.edges is not None
    by_history = energy_from_counter(history.counters[ID], SPAN, traits_of(rough))
    assert by_history.standard_joules < item.edges.standard_joules
    assert item.energy.method == "edges"


def test_each_way_gets_the_limits_of_its_sensor_and_the_gap_of_the_whole_series() -> None:
    limited = package(refresh_s=0.5, accuracy=0.1, resolution="2 J")
    times_s = [0.0, 1.0, 2.0, 3.0, 4.0, 10.5, 11.5, 12.5, 13.5]
    history = history_of(times_s, [100 * at_s for at_s in times_s])
    record = run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 200.0)), sensors=(limited,))
    (item,) = measured(record, history)
    names = {"refresh", "resolution", "accuracy"}
    assert item.edges is not None and {one.name for one in item.edges.budget} == names
    assert item.history is None, "6.5 s around the start are more than three spacings"
    closer = history_of([8.0, *times_s[5:]], [800.0, *(100 * at_s for at_s in times_s[5:])])
    (item,) = measured(record, closer)
    by_hand = energy_from_counter(closer.counters[ID], SPAN, traits_of(limited), max_gap_s=3.0, power_floor_watts=100.0)
    assert {one.name for one in by_hand.budget} == {*names, "interpolation"}
    assert item.history == (by_hand.joules, by_hand.lower_joules, by_hand.upper_joules)


def test_the_unseen_share_is_added_to_the_chosen_energy() -> None:
    """25 of every 100 ms are observed; 40 W and 400 W were seen in other windows, so 300 W may have been missed."""
    partly = package(refresh_s=0.1, window_s=0.025)
    record = run_of(
        bare(0, 2.0, 4.0, edge(2.0, 0.0), edge(4.0, 80.0)),
        bare(1, 10.0, 12.0, edge(10.0, 100.0), edge(12.0, 300.0)),
        bare(2, 20.0, 22.0, edge(20.0, 400.0), edge(22.0, 1200.0)),
        sensors=(partly,),
    )
    item = measured(record)[1]
    assert item.energy is not None and item.edges is not None
    assert "unseen" not in {one.name for one in item.edges.budget}
    assert item.energy.budget[-1].half_width_joules == pytest.approx(0.75 * 2 * 300)
    times_s = np.arange(9.0, 13.0, 0.1)
    readings = Series(times_s, np.where(np.arange(times_s.size) % 2, 90.0, 110.0))
    scattered = measured(record, History(source="", readings={ID: readings}))[1]
    assert scattered.energy is not None and "scatter by 14.1 W" in scattered.energy.budget[-1].text
    ahead = run_of(
        bare(
            0, 10.0, 12.0, edge(110.0, 0.0, of=FAR_PACKAGE, offset_s=(100.0, 100.0)), edge(112.0, 200.0, of=FAR_PACKAGE)
        ),
        sensors=(dataclasses.replace(partly, exporter=FAR),),
    )
    (item,) = measured(ahead, History(source="", readings={FAR_ID: Series(times_s + 100, readings.values)}), FAR_ID)
    assert item.energy is not None and "scatter by 14.1 W" in item.energy.budget[-1].text


def test_history_is_placed_by_the_offset_and_bounded_by_the_largest_power_of_the_run() -> None:
    slow = package(FAR, refresh_s=0.05)
    series = Series(np.array([108.5, 109.5, 110.5, 111.5, 112.5, 113.5]), 100 * np.arange(6.0))
    record = run_of(
        bare(0, 10.0, 12.0, edge(110.0, 0.0, of=FAR_PACKAGE, offset_s=(100.0, 100.0)), None),
        bare(1, 30.0, 32.0, edge(130.0, 0.0, of=FAR_PACKAGE), edge(132.0, 800.0, of=FAR_PACKAGE)),
        sensors=(slow,),
    )
    history = History(source="", counters={FAR_ID: series})
    item = measured(record, history, FAR_ID)[0]
    assert measure_run(record, history).history is history
    by_hand = energy_from_counter(
        series,
        SPAN,
        traits_of(slow),
        offset=ClockOffset(100.0, 100.0),
        max_gap_s=3.0,
        power_floor_watts=100.0,
        power_cap_watts=400.0,
    )
    assert item.energy == by_hand
    assert item.history == (by_hand.joules, by_hand.lower_joules, by_hand.upper_joules)


# Windows without a number


@pytest.mark.parametrize(("missed_s", "reason"), [(0.02, ""), (0.0200001, "unmeasured_time")])
def test_a_counter_may_miss_one_percent(missed_s: float, reason: str) -> None:
    missed = Series(np.array([9.0, 11.0, 13.0]), np.array([0.0, missed_s, missed_s]))
    key = (NODE, "rapl", "cpu", "socket0", "package")
    history = history_of(
        [9.0, 10.0, 12.0, 13.0], [0.0, 100.0, 300.5, 400.0], diagnostics={key: {"unmeasured_s": missed}}
    )
    (item,) = measured(run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 200.0))), history)
    assert (item.reason, item.energy is None) == (reason, bool(reason))
    assert item.health == Health(unmeasured_s=missed_s)
    assert item.edges is not None and item.edges.joules == 200.0
    assert item.history is not None and item.history.joules == 200.5
    if reason:
        assert item.text == f"{NODE}/rapl/socket0/package: the counter did not cover 0.02 s of 2 s"


def test_a_restart_that_one_way_has_seen_rejects_the_window() -> None:
    good = history_of([9.0, 10.0, 12.0, 13.0], [0.0, 100.0, 300.0, 400.0])
    fallen = history_of([9.0, 10.0, 11.0, 12.0, 13.0], [0.0, 100.0, 10.0, 110.0, 210.0])
    edges = (edge(10.0, 0.0), edge(12.0, 200.0))
    back = (edge(10.0, 500.0), edge(12.0, 200.0))
    for pair, history, by_edges, by_history in ((edges, fallen, True, False), (back, good, False, True)):
        (item,) = measured(run_of(bare(0, 10.0, 12.0, *pair)), history)
        assert (item.energy, item.reason) == (None, "exporter_restart")
        assert item.text.startswith(f"{NODE}/rapl/socket0/package: the counter fell")
        assert (item.edges is not None, item.history is not None) == (by_edges, by_history)
        assert item.health == Health()
    wrapped = Series(np.array([9.0, 11.0, 13.0]), np.array([0.0, 1.0, 1.0]))
    fallen = dataclasses.replace(fallen, diagnostics={(NODE, "rapl", "cpu", "socket0", "package"): {"wraps": wrapped}})
    (item,) = measured(run_of(bare(0, 10.0, 12.0, *edges)), fallen)
    assert (item.reason, item.health) == ("exporter_restart", Health(wraps=1.0))
    started = dataclasses.replace(good, starts={NODE: np.array([11.0])})
    (item,) = measured(run_of(bare(0, 10.0, 12.0, *edges)), started)
    assert (item.energy, item.edges, item.history, item.reason) == (None, None, None, "exporter_restart")
    other = dataclasses.replace(good, starts={FAR: np.array([11.0])})
    assert measured(run_of(bare(0, 10.0, 12.0, *edges)), other)[0].energy is not None


def test_another_problem_of_one_way_leaves_the_other() -> None:
    """No sample encloses the window, but the edges do."""
    early = history_of([1.0, 2.0, 3.0], [0.0, 100.0, 200.0])
    (item,) = measured(run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 200.0))), early)
    assert item.energy is not None and item.energy.method == "edges"


def test_a_sensor_without_any_data_and_a_device_that_was_down_have_no_energy() -> None:
    record = run_of(bare(0, 10.0, 12.0))
    (item,) = measured(record)
    assert (item.energy, item.reason, item.health) == (None, "no_samples", Health())
    up = Series(np.array([9.0, 11.0, 13.0]), np.array([1.0, 0.0, 1.0]))
    (item,) = measured(record, History(source="", ups={(NODE, "rapl", "socket0"): up}))
    assert (item.energy, item.reason, item.health) == (None, "sensor_down", Health(down=True))


def test_readings_in_the_wrong_order_have_no_power_and_no_energy() -> None:
    (item,) = measured(run_of(bare(0, 10.0, 12.0, edge(12.0, 0.0), edge(10.0, 200.0))))
    assert (item.energy, item.reason) == (None, "clock_skew")


def test_a_short_window_is_measured() -> None:
    (item,) = measured(run_of(bare(0, 10.0, 10.25, edge(10.0, 0.0), edge(10.25, 25.0))))
    assert item.energy is not None and item.energy.joules == 25.0


def test_windows_of_no_length_are_skipped_and_their_length_is_that_of_the_monotonic_clock() -> None:
    empty = dataclasses.replace(bare(0, 1.0, 2.0), duration_s=0.0)
    stepped = dataclasses.replace(bare(1, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 200.0)), end_s=4000.0)
    run = measure_run(run_of(empty, stepped, sensors=()), History(source=""))
    assert [item.window.index for item in run.windows] == [1]
    assert run.windows[0].span == span_of(stepped) == SPAN
    assert list(run.sensors) == [ID]
    assert span_of(dataclasses.replace(stepped, clock_error_s=0.25)) == Span(10.0, 12.0, 0.25)
    assert measure_run(run_of(), history_of([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])).windows == ()


def test_the_exporter_that_was_missing_at_an_edge_is_the_reason() -> None:
    for first, last in (
        (edge(10.0, 0.0, of=FAR_PACKAGE, missing={NODE: "refused"}), edge(12.0, 200.0)),
        (edge(10.0, 0.0), edge(12.0, 200.0, of=FAR_PACKAGE, missing={NODE: "refused"})),
        (None, edge(12.0, 200.0, of=FAR_PACKAGE, missing={NODE: "refused"})),
    ):
        (item,) = measured(run_of(bare(0, 10.0, 12.0, first, last)))
        assert (item.energy, item.reason) == (None, "edge_missing")
        assert item.text.endswith("could not be read at an edge: refused")
    (item,) = measured(run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 1.0, of=FAR_PACKAGE))))
    assert (item.reason, item.text) == ("edge_missing", f"{NODE}/rapl/socket0/package: read at only one edge")


def test_a_restart_explains_why_a_sensor_was_read_at_only_one_edge() -> None:
    """After the start of an exporter, a slow sensor is missing until its first read."""
    run = run_of(bare(0, 10.0, 12.0, edge(10.0, 0.0), edge(12.0, 1.0, of=FAR_PACKAGE)))
    for started_s, reason in ((11.0, "exporter_restart"), (9.0, "edge_missing"), (12.5, "edge_missing")):
        (item,) = measured(run, History(source="", starts={NODE: np.array([started_s])}))
        assert (item.energy, item.reason) == (None, reason)
    (item,) = measured(run, History(source="", starts={NODE: np.array([1.0, 11.0])}))
    assert item.text.endswith(
        "package: the exporter restarted at 11.000, inside the window, which set the counter to 0"
    )


RESTART, GAP = CoverageError("exporter_restart", "fell"), CoverageError("sample_gap", "gap")
SAMPLES = Series(np.arange(3.0), np.arange(3.0))


@pytest.mark.parametrize(
    ("problems", "missing", "down", "readings", "counter", "expected"),
    [
        ([RESTART], "refused", True, (None, None), None, ("sensor_down", "the exporter could not read the device")),
        (
            [GAP],
            "",
            "asleep",
            (None, None),
            None,
            ("sensor_asleep", "was asleep (runtime suspend) in part of the window"),
        ),
        ([GAP, RESTART], "refused", False, (None, None), None, ("exporter_restart", "fell")),
        ([GAP], "refused", False, (None, None), None, ("sample_gap", "gap")),
        ([], "refused", False, ((1.0, 2.0), None), SAMPLES, ("edge_missing", "could not be read at an edge: refused")),
        ([], "", False, ((1.0, 2.0), None), SAMPLES, ("edge_missing", "read at only one edge")),
        ([], "", False, (None, (1.0, 2.0)), SAMPLES, ("edge_missing", "read at only one edge")),
        ([], "", False, (None, None), None, ("no_samples", "no edge and no sample")),
        ([], "", False, (None, None), SAMPLES, ("unbracketed", "the samples do not enclose the window")),
    ],
)
def test_what_the_exporter_reports_explains_more_than_what_is_missing(
    problems: list[CoverageError],
    missing: str,
    down: bool | str,
    readings: tuple[object, object],
    counter: Series | None,
    expected: tuple[str, str],
) -> None:
    reason, text = _why_not(ID, problems, missing, Health(down=bool(down), asleep=down == "asleep"), readings, counter)
    assert reason == expected[0]
    assert text.startswith(f"{NODE}/rapl/socket0/package: ") and text.endswith(expected[1])


def test_the_power_next_to_user_code_is_unknown() -> None:
    """The runner keeps the load running there. User code may have been idle, or busier; batches do not repeat."""
    metered = dataclasses.replace(header(), plan={METER: "library", "settle_s": 0.0}, sensors=(PACKAGE,))
    one = window(0, 10.0, 1.0, start_edge=edge(9.999, 0.0), end_edge=edge(11.001, 100.0), batches=100)

    def slack(run_header: RunHeader) -> float:
        run = measure_run(RunRecord(header=run_header, configurations=(), windows=(one,)), History(source=""))
        energy = run.windows[0].sensors[ID].energy
        assert energy is not None
        return next(item.half_width_joules for item in energy.budget if item.name == "edge slack")

    assert slack(metered) == pytest.approx(0.002 * 100.0, rel=0.01)
    assert slack(header(sensors=(PACKAGE,))) < slack(metered) / 4


@pytest.mark.parametrize(("scope", "has_energy"), [("device", False), ("part", True)])
def test_a_device_counter_without_an_update_in_a_short_window_has_no_number(scope: str, has_energy: bool) -> None:
    """A core may be off; a device is not."""
    still = package(scope=scope, refresh_s=0.1)
    one = window(0, 10.0, 1.0, start_edge=edge(9.999, 5.0, of=still), end_edge=edge(11.001, 5.0, of=still))
    record = RunRecord(header=header(sensors=(still,)), configurations=(), windows=(one,))
    (measured,) = measure_run(record, History(source="")).windows
    result = measured.sensors[SensorId.of(still)]
    assert (result.energy is not None) == has_energy
    assert result.reason == ("" if has_energy else "below_refresh")
