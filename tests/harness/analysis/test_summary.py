"""Joules per inference of runs whose truth is known, their uncertainty, and what the audit says of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.audit import REASONS, Finding, audit_idle, audit_repeats, worst
from joulewatch_harness.analysis.source import RawSeries
from joulewatch_harness.analysis.statistics import student_factor
from joulewatch_harness.analysis.summary import GroupResult, RunResult, analyze_run, combine_mean
from joulewatch_harness.records import Edge, EdgeClock, RunEnd, RunRecord, SensorRecord, Window
from support.synthetic import (
    EXPORTER,
    T0,
    TWO_SOCKETS,
    ListSource,
    World,
    default_power,
    make_world,
    sensor,
    without_edges,
)


def analyse(world: World, *, history: bool = True, record: RunRecord | None = None) -> RunResult:
    record = record or world.record
    assert record is not None
    return analyze_run(record, ListSource(world.scrapes()) if history else None)


def true_joules_per_inference(world: World, group: GroupResult, net: bool = False) -> float:
    """Mean over the windows of the devices' true energy."""
    assert world.record is not None
    values = []
    for index in group.windows:
        window = world.record.windows[index]
        joules = sum(world.truth_joules(item, window) for item in world.sensors if item.scope == "device")
        if net:
            idle = sum(default_power(item, "idle", 0) for item in world.sensors if item.scope == "device")
            joules -= idle * window.duration_s
        values.append(joules / window.inferences)
    return float(np.mean(values))


@pytest.mark.parametrize("way", ["edges", "history", "both"])
def test_the_stated_uncertainty_covers_the_truth(way: str) -> None:
    world = make_world(TWO_SOCKETS, noise=0.01, edges=way != "history")
    result = analyse(world, history=way != "edges")
    assert len(result.groups) == 6
    for group in result.groups:
        for net in (False, True):
            estimate = group.total.net if net else group.total.gross
            assert estimate is not None
            truth = true_joules_per_inference(world, group, net)
            assert estimate.value == pytest.approx(truth, rel=0.005)
            assert abs(estimate.value - truth) <= estimate.expanded
        assert [item.name for item in group.components] == ["cpu", "memory"]
        parts = sum(item.gross.value for item in group.components if item.gross is not None)
        assert group.total.gross is not None and parts == pytest.approx(group.total.gross.value)
    assert not [item for item in result.findings if item.severity == "error"]


def test_nodes_and_parts_stand_beside_and_are_never_added() -> None:
    with_all = analyse(make_world(TWO_SOCKETS)).groups[0]
    devices_only = analyse(make_world([item for item in TWO_SOCKETS if item.scope == "device"])).groups[0]
    assert with_all.total.gross is not None and devices_only.total.gross is not None
    assert with_all.total.gross.value == devices_only.total.gross.value
    assert [item.name for item in with_all.nodes] == [f"{EXPORTER}/rapl/psys/total"]
    assert [item.name for item in with_all.parts] == ["cpu core (rapl)"]


def test_scatter_between_rounds_is_type_a_with_students_factor() -> None:
    rounds = {number: [(value, {"refresh": 0.0})] for number, value in enumerate((9.0, 10.0, 11.0))}
    found = combine_mean(rounds, {}, {})
    assert found.value == pytest.approx(10.0)
    assert found.standard == pytest.approx(1 / math.sqrt(3))
    assert found.dof == pytest.approx(2) and found.factor == pytest.approx(student_factor(2))
    # Two windows in each round are not two repeats.
    doubled = combine_mean({number: [*windows, *windows] for number, windows in rounds.items()}, {}, {})
    assert doubled.standard == pytest.approx(found.standard)


def test_random_items_fall_with_repeats_and_systematic_ones_do_not() -> None:
    def mean_of(count: int) -> list[float]:
        rounds = {number: [(10.0, {"refresh": 0.3})] for number in range(count)}
        found = combine_mean(rounds, {"accuracy": 0.2}, {})
        return [next(line.standard for line in found.budget if line.name == name) for name in ("refresh", "accuracy")]

    assert mean_of(1) == pytest.approx([0.3, 0.2])
    assert mean_of(9) == pytest.approx([0.1, 0.2])


def test_published_accuracy_survives_any_number_of_rounds() -> None:
    item = sensor("socket0", "package", collector="estimate", method="estimated", accuracy=0.5)
    for rounds in (1, 6):
        result = analyse(make_world([item], rounds=rounds, batch_sizes=(1,)))
        gross = result.groups[0].total.gross
        assert gross is not None
        assert gross.expanded / gross.value == pytest.approx(0.95 * 0.5, rel=0.03)
        assert result.groups[0].total.methods == ("estimated",)
        assert "estimated_energy" in {finding.reason for finding in result.findings}


def test_sensors_of_one_make_share_their_error() -> None:
    """Two sockets with 5 % each have 5 % together, not 3.5 %."""
    pair = [sensor(f"socket{n}", "package", accuracy=0.05) for n in (0, 1)]
    gross = analyse(make_world(pair, batch_sizes=(1,))).groups[0].total.gross
    assert gross is not None
    (line,) = [line for line in gross.budget if line.name.startswith("accuracy")]
    assert line.standard / gross.value == pytest.approx(0.05 / math.sqrt(3), rel=1e-6)


def test_idle_with_the_network_loaded_is_preferred() -> None:
    loaded = analyse(make_world(TWO_SOCKETS)).groups[0].total.idle
    assert loaded is not None and loaded.basis == "loaded" and "this network" in loaded.text
    without = analyse(make_world(TWO_SOCKETS, loaded_idle=False)).groups[0].total.idle
    assert without is not None and without.basis == "unloaded" and len(without.windows) == 2


def test_without_idle_there_is_gross_and_no_net() -> None:
    world = make_world(TWO_SOCKETS)
    assert world.record is not None
    record = dataclasses.replace(
        world.record, windows=tuple(item for item in world.record.windows if item.kind != "idle")
    )
    result = analyse(world, record=record)
    assert all(group.total.gross is not None and group.total.net is None for group in result.groups)
    assert "no_idle" in {item.reason for item in result.findings}


def test_throughput_and_its_inverse_energy() -> None:
    group = analyse(make_world(TWO_SOCKETS)).groups[0]
    assert group.throughput is not None and group.throughput.value == pytest.approx(900.0)
    per_joule = group.total.inferences_per_joule
    assert per_joule is not None and group.total.gross is not None
    assert per_joule.value == pytest.approx(1 / group.total.gross.value)
    assert per_joule.expanded / per_joule.value == pytest.approx(group.total.gross.expanded / group.total.gross.value)
    assert group.latency is not None and group.latency.p50_s < group.latency.p99_s


def change(record: RunRecord, index: int, **values: object) -> RunRecord:
    windows = list(record.windows)
    windows[index] = dataclasses.replace(windows[index], **values)  # type: ignore[arg-type]
    return dataclasses.replace(record, windows=tuple(windows))


def first_measure(record: RunRecord) -> Window:
    return next(item for item in record.windows if item.kind == "measure")


def reasons(findings: Iterable[Finding], severity: str | None = None) -> set[str]:
    return {item.reason for item in findings if severity is None or item.severity == severity}


def drop(edge: Edge | None, device: str) -> Edge | None:
    assert edge is not None
    return dataclasses.replace(
        edge,
        counters=tuple(item for item in edge.counters if item.device != device),
        missing={EXPORTER: "connection refused"},
    )


def test_a_device_that_is_missing_makes_no_total_of_the_rest() -> None:
    """Half of the sockets is not the energy of the machine."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    record = dataclasses.replace(
        world.record,
        windows=tuple(dataclasses.replace(w, end_edge=drop(w.end_edge, "socket1")) for w in world.record.windows),
    )
    result = analyse(world, record=record, history=False)
    group = result.groups[0]
    assert group.total.gross is None and "edge_missing" in group.total.missing
    assert all(item.gross is None for item in group.components)
    assert [item.gross is not None for item in group.nodes] == [True]
    assert "edge_missing" in reasons(result.findings, "error")
    # The history of the counter fills in, where there is one.
    filled = analyse(world, record=record)
    assert filled.groups[0].total.gross is not None and set(filled.groups[0].total.sources) == {"edges", "history"}


def test_a_window_without_a_number_is_left_out_with_its_reason() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    record = change(world.record, window.index, end_edge=drop(window.end_edge, "socket1"))
    group = analyse(world, record=record, history=False).groups[0]
    assert {item.reason for item in group.left_out} == {"edge_missing"}
    assert group.total.gross is not None and window.index not in group.total.windows and len(group.total.windows) == 2
    cut = change(world.record, window.index, flags=("interrupted",))
    group = analyse(world, record=cut).groups[0]
    assert [item.reason for item in group.left_out] == ["interrupted"] and window.index not in group.windows


def test_edges_that_contradict_the_history_are_an_error() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    assert window.end_edge is not None
    counters = tuple(
        dataclasses.replace(item, energy_joules=item.energy_joules * 1.2) for item in window.end_edge.counters
    )
    record = change(world.record, window.index, end_edge=dataclasses.replace(window.end_edge, counters=counters))
    result = analyse(world, record=record)
    assert "edge_history_disagreement" in reasons(result.findings, "error")
    assert worst(result.findings) == "error"


def test_an_exporter_that_restarted_gives_no_number_for_that_window() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    at_s = window.start_s + 1.0
    scrapes = []
    for raw in world.scrapes():
        values = raw.values
        if raw.name == catalog.EXPORTER_START.name:
            values = np.where(raw.times_s > at_s, at_s, values)
        scrapes.append(RawSeries(raw.name, raw.labels, raw.times_s, values))
    result = analyze_run(world.record, ListSource(scrapes))
    assert "exporter_restart" in reasons(result.findings, "error")
    assert {item.reason for item in result.groups[0].left_out} == {"exporter_restart"}
    assert result.groups[0].total.gross is not None


def with_counter(world: World, name: str, rise_at_s: float, rise: float) -> list[RawSeries]:
    """The world's scrapes and one diagnostic counter of socket0's package that rises once."""
    scrapes = world.scrapes()
    times = scrapes[0].times_s
    labels = {"instance": EXPORTER, "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    return [*scrapes, RawSeries(name, labels, times, np.where(times > rise_at_s, rise, 0.0))]


@pytest.mark.parametrize(
    ("name", "rise", "reason", "severity"),
    [
        (catalog.SENSOR_WRAPS.name, 1.0, "wraps_seen", "info"),
        (catalog.SENSOR_REJECTED.name, 2.0, "rejected_readings", "warning"),
        (catalog.SENSOR_UNMEASURED.name, 0.01, "unmeasured_time", "warning"),
        (catalog.SENSOR_UNMEASURED.name, 1.5, "unmeasured_time", "error"),
    ],
)
def test_what_a_sensor_went_through_is_told(name: str, rise: float, reason: str, severity: str) -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    result = analyze_run(world.record, ListSource(with_counter(world, name, window.start_s + 1, rise)))
    found = [item for item in result.findings if item.reason == reason]
    assert {(item.severity, item.window) for item in found} == {(severity, window.index)}
    assert (window.index in result.groups[0].total.windows) == (severity != "error")


def swapped_power(item: SensorRecord, configuration: str, batch_size: int) -> float:
    """Parts above their device, devices above the node."""
    return {"device": 50.0, "part": 60.0, "node": 55.0}[item.scope]


def test_impossible_sums_are_found() -> None:
    result = analyse(make_world(TWO_SOCKETS, power=swapped_power, batch_sizes=(1,)))
    assert "core_exceeds_package" in reasons(result.findings, "error")
    assert "devices_exceed_node" in reasons(result.findings, "warning")


def test_clocks_that_differ_are_told_and_taken_into_account() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    skew_s = 0.25

    def skewed(edge: Edge | None) -> Edge | None:
        assert edge is not None
        return dataclasses.replace(
            edge,
            counters=tuple(dataclasses.replace(item, read_at_s=item.read_at_s + skew_s) for item in edge.counters),
            clocks=(EdgeClock(EXPORTER, skew_s - 0.0004, skew_s + 0.0004),),
        )

    exporters = tuple(dataclasses.replace(item, nodename="elsewhere") for item in world.record.header.exporters)
    record = dataclasses.replace(
        world.record,
        header=dataclasses.replace(world.record.header, exporters=exporters),
        windows=tuple(
            dataclasses.replace(w, start_edge=skewed(w.start_edge), end_edge=skewed(w.end_edge))
            for w in world.record.windows
        ),
    )
    result = analyse(world, record=record, history=False)
    assert "clock_skew" in reasons(result.findings, "warning")
    for group in result.groups:
        assert group.total.gross is not None
        truth = true_joules_per_inference(world, group)
        assert group.total.gross.value == pytest.approx(truth, rel=0.003)


def test_power_that_changes_inside_a_window_is_told() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), window_s=4.0)
    assert world.record is not None
    window = first_measure(world.record)
    middle = window.start_s + 2.0
    for item, signal in list(world.sensors.items()):
        at = int(np.searchsorted(signal.times_s, middle))
        world.sensors[item] = dataclasses.replace(
            signal,
            times_s=(*signal.times_s[:at], middle, *signal.times_s[at:]),
            watts=(*signal.watts[:at], signal.watts[at - 1] * 1.5, *signal.watts[at:]),
        )
    assert world.record is not None
    result = analyze_run(without_edges(world.record), ListSource(world.scrapes()))
    assert {item.window for item in result.findings if item.reason == "power_not_steady"} == {window.index}


def test_gaps_inside_a_window_are_told_and_do_no_harm() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), window_s=6.0)
    assert world.record is not None
    window = first_measure(world.record)
    scrapes = []
    for raw in world.scrapes():
        keep = (raw.times_s < window.start_s + 1) | (raw.times_s > window.start_s + 4)
        scrapes.append(RawSeries(raw.name, raw.labels, raw.times_s[keep], raw.values[keep]))
    result = analyze_run(without_edges(world.record), ListSource(scrapes))
    assert {(item.severity, item.window) for item in result.findings if item.reason == "sample_gap"} == {
        ("info", window.index)
    }
    assert window.index in result.groups[0].total.windows


def test_short_windows_flags_and_unfinished_runs_are_told() -> None:
    slow = [sensor("socket0", "package", refresh_s=0.5)]
    world = make_world(slow, batch_sizes=(1,), rounds=1)
    assert world.record is not None
    record = change(world.record, first_measure(world.record).index, flags=("not_steady",))
    record = dataclasses.replace(record, end=RunEnd(T0, "interrupted", "Ctrl-C"))
    found = reasons(analyse(world, record=record).findings)
    assert found >= {"below_refresh", "not_steady", "interrupted", "single_repeat"}


def test_an_exporter_without_samples_and_sensors_without_description_are_told() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    bare = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, sensors=()))
    result = analyze_run(bare, ListSource([]))
    assert reasons(result.findings) >= {"exporter_missing", "unknown_method"}
    assert result.groups[0].total.gross is not None and result.groups[0].total.methods == ("unknown",)


def test_a_run_without_any_sensor_still_tells_its_throughput() -> None:
    world = make_world([], batch_sizes=(1,))
    result = analyse(world, history=False)
    assert "no_sensors" in reasons(result.findings, "error")
    assert result.groups[0].throughput is not None and result.groups[0].total.missing == "no sensor"


def test_repeats_and_idle_are_compared() -> None:
    assert reasons(audit_repeats("a", [10.0, 10.5, 9.9])) == set()
    assert reasons(audit_repeats("a", [10.0, 11.5, 9.9])) == {"repeats_apart"}
    assert reasons(audit_idle("cpu", [50.0, 51.0])) == set()
    assert reasons(audit_idle("cpu", [50.0, 56.0])) == {"idle_drift"}


SCENES: list[Callable[[], RunResult]] = [
    lambda: analyse(make_world(TWO_SOCKETS, noise=0.2)),
    lambda: analyse(make_world(TWO_SOCKETS, power=swapped_power)),
    lambda: analyse(make_world([sensor("a", "b", method="emulated")])),
]


@pytest.mark.parametrize("scene", SCENES)
def test_every_reason_is_documented(scene: Callable[[], RunResult]) -> None:
    assert reasons(scene().findings) <= REASONS.keys()


def test_what_happens_beside_the_edges_does_not_average_out() -> None:
    """Power between an edge's reading and the window is alike in every round: fifty rounds know it no better."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), configurations=("net/onnxruntime/fp32",), rounds=50)
    (group,) = analyse(world, history=False).groups
    assert group.total.gross is not None
    truth = true_joules_per_inference(world, group)
    assert abs(group.total.gross.value - truth) <= group.total.gross.expanded
    (line,) = [item for item in group.total.gross.budget if item.name == "edge slack"]
    assert line.systematic
