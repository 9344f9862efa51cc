"""Joules per inference, uncertainty and audit of runs with known true energies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.energy.windows import MeasuredWindow
from joulewatch_harness.analysis.results.audit.findings import REASONS, Finding, worst
from joulewatch_harness.analysis.results.audit.groups import audit_idle, audit_repeats
from joulewatch_harness.analysis.results.averages import latency_summary, mean_rate, per_inference
from joulewatch_harness.analysis.results.idle import mean_idle_power
from joulewatch_harness.analysis.results.model import GroupResult, IdlePower, RunResult
from joulewatch_harness.analysis.results.phases import phase_shares
from joulewatch_harness.analysis.results.summary import _exclusion, analyze_run, run_spans
from joulewatch_harness.analysis.results.uncertainty import Combined, combine_mean
from joulewatch_harness.analysis.sources.history import History, RawSeries
from joulewatch_harness.gum import effective_dof, student_factor
from joulewatch_harness.records import (
    Edge,
    EdgeClock,
    ExporterRecord,
    Latency,
    PhaseTime,
    RunEnd,
    RunRecord,
    SensorRecord,
    Setup,
    Window,
)
from support.runs import window
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
    """Return the mean over the windows of the true energy of all devices."""
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


def test_nodes_and_parts_are_separate_and_never_added() -> None:
    with_all = analyse(make_world(TWO_SOCKETS)).groups[0]
    devices_only = analyse(make_world([item for item in TWO_SOCKETS if item.scope == "device"])).groups[0]
    assert with_all.total.gross is not None and devices_only.total.gross is not None
    assert with_all.total.gross.value == devices_only.total.gross.value
    assert [item.name for item in with_all.nodes] == [f"{EXPORTER}/rapl/psys/total"]
    assert [item.name for item in with_all.parts] == ["cpu core (rapl)"]


def test_scatter_between_rounds_is_type_a_with_students_factor() -> None:
    rounds = {number: [(value, {"refresh": 0.0})] for number, value in enumerate((9.0, 10.0, 11.0))}
    actual = combine_mean(rounds, {}, {})
    assert actual.value == pytest.approx(10.0)
    assert actual.standard == pytest.approx(1 / math.sqrt(3))
    assert actual.dof == pytest.approx(2) and actual.factor == pytest.approx(student_factor(2))
    # Two windows in each round are not two repeats.
    doubled = combine_mean({number: [*windows, *windows] for number, windows in rounds.items()}, {}, {})
    assert doubled.standard == pytest.approx(actual.standard)


def test_random_components_decrease_with_repeats_and_systematic_ones_do_not() -> None:
    def mean_of(count: int) -> list[float]:
        rounds = {number: [(10.0, {"refresh": 0.3})] for number in range(count)}
        actual = combine_mean(rounds, {"accuracy": 0.2}, {})
        return [next(line.standard for line in actual.budget if line.name == name) for name in ("refresh", "accuracy")]

    assert mean_of(1) == pytest.approx([0.3, 0.2])
    assert mean_of(9) == pytest.approx([0.1, 0.2])


def test_published_accuracy_does_not_decrease_with_rounds() -> None:
    item = sensor("socket0", "package", collector="estimate", method="estimated", accuracy=0.5)
    for rounds in (3, 12):
        result = analyse(make_world([item], rounds=rounds, batch_sizes=(1,)))
        gross = result.groups[0].total.gross
        assert gross is not None and gross.expanded is not None
        assert gross.covers == ("sampling", "accuracy", "repeats")
        assert gross.expanded / gross.value == pytest.approx(0.95 * 0.5, rel=0.03)
        assert result.groups[0].total.methods == ("estimated",)
        assert "estimated_energy" in {finding.reason for finding in result.findings}


def test_the_accuracy_of_net_energy_is_its_share_of_the_net() -> None:
    """A sensor that reads 5 % high does so while idle as well, so the net is 5 % high: not 5 % of the gross."""
    item = sensor("socket0", "package", accuracy=0.05)
    total = analyse(make_world([item], batch_sizes=(1,))).groups[0].total
    assert total.gross is not None and total.net is not None
    assert total.net.value < 0.8 * total.gross.value
    for estimate in (total.gross, total.net):
        (line,) = [line for line in estimate.budget if line.name == "accuracy (rapl)"]
        assert line.standard == pytest.approx(0.05 / math.sqrt(3) * estimate.value, rel=1e-6)


def test_two_idle_windows_bound_the_drift_between_them() -> None:
    """12 W apart: uniform between them and as far beyond, so the standard uncertainty is 12 W / √3."""
    item = sensor("socket0", "package")
    world = make_world([item], batch_sizes=(1,), rounds=1, loaded_idle=False, edges=False, scrape_s=0.05)
    signal = world.sensors[item]
    world.sensors[item] = dataclasses.replace(signal, watts=(*signal.watts[:-1], signal.watts[-1] + 12.0))
    idle = analyse(world).groups[0].total.idle
    assert idle is not None and len(idle.windows) == 2
    assert idle.watts == pytest.approx(40.0 + 6.0, rel=1e-3)
    assert idle.standard_watts == pytest.approx(12.0 / math.sqrt(3), rel=0.01)
    assert math.isinf(idle.dof)


def test_sensors_of_one_family_share_their_error() -> None:
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


def test_without_idle_windows_there_is_no_net_energy() -> None:
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


def test_without_one_device_there_is_no_total() -> None:
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
    # The history of the counter is used instead, if there is one.
    filled = analyse(world, record=record)
    assert filled.groups[0].total.gross is not None and set(filled.groups[0].total.sources) == {"edges", "history"}


def test_a_window_without_a_number_is_excluded_with_its_reason() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    record = change(world.record, window.index, end_edge=drop(window.end_edge, "socket1"))
    group = analyse(world, record=record, history=False).groups[0]
    assert {item.reason for item in group.excluded} == {"edge_missing"}
    assert group.total.gross is not None and window.index not in group.total.windows and len(group.total.windows) == 2
    cut = change(world.record, window.index, flags=("interrupted",))
    group = analyse(world, record=cut).groups[0]
    assert [item.reason for item in group.excluded] == ["interrupted"] and window.index not in group.windows


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


def test_a_window_with_an_exporter_restart_has_no_energy() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    at_s = window.start_s + 1.0
    scrapes = []
    for raw in world.scrapes():
        values = raw.values
        if raw.name == catalog.EXPORTER_START.name:
            values = np.where(raw.times_s > at_s, at_s, values)
        scrapes.append(dataclasses.replace(raw, values=values))
    result = analyze_run(world.record, ListSource(scrapes))
    assert "exporter_restart" in reasons(result.findings, "error")
    assert {item.reason for item in result.groups[0].excluded} == {"exporter_restart"}
    assert result.groups[0].total.gross is not None


def with_counter(world: World, name: str, rise_at_s: float, rise: float) -> list[RawSeries]:
    """Return the scrapes and one diagnostic counter of socket0's package that increases once."""
    scrapes = world.scrapes()
    times = scrapes[0].times_s
    labels = {"instance": EXPORTER, "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    return [*scrapes, RawSeries(name=name, labels=labels, times_s=times, values=np.where(times > rise_at_s, rise, 0.0))]


@pytest.mark.parametrize(
    ("name", "rise", "reason", "severity", "text"),
    [
        (catalog.SENSOR_WRAPS.name, 1.0, "wraps_seen", "info", "wrapped 1 time; the wrap was corrected"),
        (catalog.SENSOR_WRAPS.name, 2.0, "wraps_seen", "info", "wrapped 2 times; the wraps were corrected"),
        (catalog.SENSOR_REJECTED.name, 1.0, "rejected_readings", "warning", "1 reading outside physical bounds was"),
        (catalog.SENSOR_REJECTED.name, 2.0, "rejected_readings", "warning", "2 readings outside physical bounds were"),
        # At most 1 % of the window of 2 s may be missing.
        (catalog.SENSOR_UNMEASURED.name, 0.019, "unmeasured_time", "warning", ""),
        (catalog.SENSOR_UNMEASURED.name, 0.021, "unmeasured_time", "error", ""),
        (catalog.SENSOR_UNMEASURED.name, 1.5, "unmeasured_time", "error", ""),
    ],
)
def test_events_of_a_sensor_are_findings(name: str, rise: float, reason: str, severity: str, text: str) -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    window = first_measure(world.record)
    result = analyze_run(world.record, ListSource(with_counter(world, name, window.start_s + 1, rise)))
    actual = [item for item in result.findings if item.reason == reason]
    assert {(item.severity, item.window) for item in actual} == {(severity, window.index)}
    assert all(text in item.text for item in actual)
    assert (window.index in result.groups[0].total.windows) == (severity != "error")


def swapped_power(item: SensorRecord, configuration: str, batch_size: int) -> float:
    """Return more power for parts than for their device, and for devices than for the node."""
    return {"device": 50.0, "part": 60.0, "node": 55.0}[item.scope]


def test_impossible_sums_are_findings() -> None:
    result = analyse(make_world(TWO_SOCKETS, power=swapped_power, batch_sizes=(1,)))
    assert "core_exceeds_package" in reasons(result.findings, "error")
    assert "devices_exceed_node" in reasons(result.findings, "warning")


def test_the_primary_node_sensor_of_the_machine_is_compared_with_its_devices() -> None:
    """A second sensor of the server, and a BMC of another server, are listed only."""
    nodes = (
        sensor("bmc", "total", "node", "node", collector="ipmi", primary=True, host="node1"),
        sensor("acpi", "total", "node", "node", collector="hwmon", primary=False, host="node1"),
        sensor("far", "total", "node", "node", collector="redfish", primary=True, host="node7"),
    )
    result = analyse(make_world((*TWO_SOCKETS[:2], *nodes), power=swapped_power, batch_sizes=(1,)))
    assert {record.device for record in result.sensors if record.scope == "node"} == {"bmc", "acpi", "far"}
    assert len(result.groups[0].nodes) == 3
    exceeded = [finding for finding in result.findings if finding.reason == "devices_exceed_node"]
    assert {finding.evidence["sensor"] for finding in exceeded} == {f"{EXPORTER}/ipmi/bmc/total"}


def test_messages_about_the_identity_of_exporters_are_findings() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    twice = [
        dataclasses.replace(raw, labels={**raw.labels, "job": job}) for job in ("a", "b") for raw in world.scrapes()
    ]
    result = analyze_run(world.record, ListSource(twice))
    (finding,) = [finding for finding in result.findings if finding.reason == "targets_merged"]
    assert (finding.severity, finding.window, finding.evidence) == ("info", None, {"exporter": EXPORTER})
    assert "stored under 2 targets (job=a; job=b)" in finding.text


def test_a_clock_offset_is_a_finding_and_is_corrected() -> None:
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


def edges_of_another(record: RunRecord) -> RunRecord:
    """Return the run with only the first sensor's readings, from another exporter whose clock is 20 s ahead."""

    def moved(edge: Edge | None) -> Edge | None:
        assert edge is not None
        first = edge.counters[0]
        other = dataclasses.replace(first, exporter="other:10717", read_at_s=first.read_at_s + 20.0)
        return dataclasses.replace(edge, counters=(other,), clocks=())

    windows = [
        dataclasses.replace(window, start_edge=moved(window.start_edge), end_edge=moved(window.end_edge))
        for window in record.windows
    ]
    return dataclasses.replace(record, windows=tuple(windows))


@pytest.mark.parametrize("with_edges", [lambda record: record, without_edges, edges_of_another])
def test_samples_after_a_run_do_not_change_its_energies(
    with_edges: Callable[[RunRecord], RunRecord],
) -> None:
    """A run has the same energies whether it is analyzed at its end or a day later, on an idle or a busy machine."""

    def totals(watts_after: float | None) -> list[tuple[float, float]]:
        world = make_world(TWO_SOCKETS, noise=0.01)
        assert world.record is not None
        end_s = max(window.start_s + window.duration_s for window in world.record.windows)
        until_s = end_s + 0.5
        for item, signal in list(world.sensors.items()):
            if watts_after is not None:
                kept = signal.watts[: int(np.searchsorted(signal.times_s, until_s))]
                times_s = (*signal.times_s[: len(kept)], until_s)
                world.sensors[item] = dataclasses.replace(signal, times_s=times_s, watts=(*kept, watts_after))
        world.end_s = until_s if watts_after is None else end_s + 30.0
        estimates = [group.total.gross for group in analyse(world, record=with_edges(world.record)).groups]
        return [(item.value, item.standard) for item in estimates if item is not None]

    at_once = totals(None)
    assert len(at_once) == 6
    assert totals(0.1) == at_once
    assert totals(5000.0) == at_once


def test_power_that_changes_inside_a_window_is_a_finding() -> None:
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


def test_gaps_inside_a_window_are_findings_and_keep_the_energy() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), window_s=6.0)
    assert world.record is not None
    window = first_measure(world.record)
    scrapes = []
    for raw in world.scrapes():
        keep = (raw.times_s < window.start_s + 1) | (raw.times_s > window.start_s + 4)
        scrapes.append(dataclasses.replace(raw, times_s=raw.times_s[keep], values=raw.values[keep]))
    result = analyze_run(without_edges(world.record), ListSource(scrapes))
    assert {(item.severity, item.window) for item in result.findings if item.reason == "sample_gap"} == {
        ("info", window.index)
    }
    assert window.index in result.groups[0].total.windows


def test_short_windows_flags_and_unfinished_runs_are_findings() -> None:
    slow = [sensor("socket0", "package", refresh_s=0.5)]
    world = make_world(slow, batch_sizes=(1,), rounds=1)
    assert world.record is not None
    record = change(world.record, first_measure(world.record).index, flags=("not_steady",))
    record = dataclasses.replace(record, end=RunEnd(T0, "interrupted", "Ctrl-C"))
    actual = reasons(analyse(world, record=record).findings)
    assert actual >= {"below_refresh", "not_steady", "interrupted", "single_repeat"}


def test_an_exporter_without_samples_and_sensors_without_metadata_are_findings() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    bare = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, sensors=()))
    result = analyze_run(bare, ListSource([]))
    assert reasons(result.findings) >= {"exporter_missing", "unknown_method"}
    assert result.groups[0].total.gross is not None and result.groups[0].total.methods == ("unknown",)


def test_a_run_without_sensors_has_a_throughput() -> None:
    world = make_world([], batch_sizes=(1,))
    result = analyse(world, history=False)
    assert "no_sensors" in reasons(result.findings, "error")
    assert result.groups[0].throughput is not None and result.groups[0].total.missing == "no sensor"


def test_repeats_and_idle_are_compared() -> None:
    assert reasons(audit_repeats("a", [10.0, 10.5, 9.9], 3)) == set()
    assert reasons(audit_repeats("a", [10.0, 11.5, 9.9], 3)) == {"repeats_apart"}
    (single,) = audit_repeats("a", [10.0], 3)
    assert (single.severity, single.reason) == ("warning", "single_repeat")
    assert "usable rounds: 1 of 3" in single.text
    (apart,) = audit_repeats("a", [10.0, 11.5, 9.9], 3, metered=True)
    (single,) = audit_repeats("a", [10.0], 3, metered=True)
    assert "the windows of this name differ by 15.3 %" in apart.text
    assert single.text.endswith("use at least 3 windows")
    assert "round" not in apart.text + single.text
    assert reasons(audit_idle("cpu", [50.0, 51.0])) == set()
    assert reasons(audit_idle("cpu", [50.0, 56.0])) == {"idle_drift"}


@pytest.mark.parametrize(
    ("values", "ended", "text"),
    [
        ([10.0, 10.1], "", None),
        ([10.0, 11.0], "", "a: ±101 % after 2 rounds, not the target of ±50 %; raise"),
        ([10.0, 11.0], "stopped by the user after 2 rounds", "a: ±101 % after 2 rounds, not the target"),
        ([10.0, 11.0], "±49 % after 2 rounds", None),
        (
            [10.0, 10.1],
            "target not reached after 90 s: 2 rounds, ±51 %",
            "a: target not reached after 90 s: 2 rounds, ±51 %; raise max_run_s in the plan, or stop",
        ),
        (
            [10.0, 10.1],
            "target not reached after 40 rounds: ±51 %",
            "a: target not reached after 40 rounds: ±51 %; use longer windows (--window), or stop",
        ),
    ],
)
def test_the_recorded_end_of_the_rounds_decides(values: list[float], ended: str, text: str | None) -> None:
    """The runner's energies differ a little from those of the analysis."""
    texts = [finding.text for finding in audit_repeats("a", values, 2, 0.5, ended)]
    assert len(texts) == (text is not None)
    assert all(one.startswith(text or "") for one in texts)


SCENES: list[Callable[[], RunResult]] = [
    lambda: analyse(make_world(TWO_SOCKETS, noise=0.2)),
    lambda: analyse(make_world(TWO_SOCKETS, power=swapped_power)),
    lambda: analyse(make_world([sensor("a", "b", method="emulated")])),
]


@pytest.mark.parametrize("scene", SCENES)
def test_every_reason_is_documented(scene: Callable[[], RunResult]) -> None:
    assert reasons(scene().findings) <= REASONS.keys()


def test_errors_next_to_the_edges_do_not_average_out() -> None:
    """The power between reading and window is similar in every round, so fifty rounds do not reduce its error."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), configurations=("net/onnxruntime/fp32",), rounds=50)
    (group,) = analyse(world, history=False).groups
    assert group.total.gross is not None
    truth = true_joules_per_inference(world, group)
    assert abs(group.total.gross.value - truth) <= group.total.gross.expanded
    (line,) = [item for item in group.total.gross.budget if item.name == "edge slack"]
    assert line.systematic


# Setups


def tuned_world(length_s: float = 4.0) -> World:
    """Return a run whose second configuration is tuned at batch size 8 in a window between two others."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1, 8), rounds=2)
    assert world.record is not None
    windows = list(world.record.windows)
    at = next(i for i, w in enumerate(windows) if w.configuration.endswith("int8") and w.batch_size == 8 and i > 3)
    # A measure window of the first round becomes the tuning.
    result = windows[at]
    windows[at] = dataclasses.replace(
        result, kind="setup", phase="prepare", batches=0, inferences=0, latency=None, repeat=0
    )
    names = [item.name for item in world.record.configurations]
    short = (
        Setup(configuration=names[1], phase="load", duration_s=0.4),
        Setup(configuration=names[0], phase="load", duration_s=0.3),
        Setup(configuration=names[0], phase="prepare", duration_s=0.001, batch_size=8),
    )
    world.record = dataclasses.replace(world.record, windows=tuple(windows), setups=short)
    return world


@pytest.mark.parametrize("way", ["edges", "history"])
def test_a_setup_has_its_own_energy_and_is_in_no_result(way: str) -> None:
    world = tuned_world()
    assert world.record is not None
    record = world.record if way == "edges" else without_edges(world.record)
    result = analyse(world, history=way == "history", record=record)
    fp32, int8 = (item.name for item in world.record.configurations)
    assert [(one.configuration, one.phase, one.batch_size, one.window is None) for one in result.setups] == [
        (fp32, "load", 0, True),
        (fp32, "prepare", 8, True),
        (int8, "load", 0, True),
        (int8, "prepare", 8, False),
    ]
    long = result.setups[-1]
    (window,) = [one for one in world.record.windows if one.kind == "setup"]
    truth = {
        component: sum(
            world.truth_joules(item, window)
            for item in world.sensors
            if item.scope == "device" and item.component == component
        )
        for component in ("cpu", "memory")
    }
    assert long.duration_s == window.duration_s and long.window == window.index
    assert [component.name for component in long.components] == ["cpu", "memory"]
    for one in long.components:
        assert one.gross is not None and one.methods == ("counter",) and one.sources == (way,)
        assert abs(one.gross.value - truth[one.name]) <= one.gross.expanded < 0.2 * truth[one.name]
    assert long.total is not None and long.total.gross is not None
    assert long.total.gross.value == pytest.approx(sum(truth.values()), rel=0.02)
    assert [one.name for one in long.nodes] == [f"{EXPORTER}/rapl/psys/total"]
    assert all(window.index not in group.windows for group in result.groups)
    assert all(one.total is None and one.components == () for one in result.setups[:-1])


def test_a_problem_with_a_setup_is_not_a_finding() -> None:
    world = tuned_world()
    assert world.record is not None
    (index,) = [one.index for one in world.record.windows if one.kind == "setup"]
    record = change(world.record, index, start_edge=None, end_edge=None)
    result = analyse(world, history=False, record=record)
    total = result.setups[-1].total
    assert total is not None and total.gross is None and "no_samples" in total.missing
    assert worst(result.findings) != "error"
    assert index not in {item.window for item in result.findings}


# Phases


def phased(world: World, **shares: tuple[float, ...]) -> World:
    """Add phases to each measure window: their shares by round."""
    assert world.record is not None
    windows = [
        dataclasses.replace(
            one,
            phases={
                name: PhaseTime(one.batches, values[one.repeat] * one.duration_s) for name, values in shares.items()
            },
        )
        if one.kind == "measure"
        else one
        for one in world.record.windows
    ]
    world.record = dataclasses.replace(world.record, windows=tuple(windows))
    return world


def test_shares_of_the_time_are_means_over_rounds_in_the_order_of_a_batch() -> None:
    world = phased(
        make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2),
        other=(0.1, 0.1),
        execute=(0.2, 0.3),
        tokens=(0.1, 0.0),
        copy_in=(0.6, 0.6),
    )
    group = analyse(world).groups[0]
    assert [item.name for item in group.phases] == ["copy_in", "execute", "tokens", "other"]
    shares = {item.name: item.share for item in group.phases}
    assert shares["execute"].value == pytest.approx(0.25)
    assert shares["execute"].standard == pytest.approx(0.05)
    assert sum(item.value for item in shares.values()) == pytest.approx(1)
    assert group.phases[0].per_batch_s == pytest.approx(0.6 * group.duration_s / (2 * 1800))


def test_overlapping_batches_have_shares_of_all_their_time() -> None:
    """With four requests in flight the phases add up to four seconds per second, and the shares to 100 %."""
    world = phased(make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=1), queue=(1.0,), execute=(3.0,), other=(0.0,))
    shares = {item.name: item.share.value for item in analyse(world).groups[0].phases}
    assert shares == {"execute": pytest.approx(0.75), "queue": pytest.approx(0.25), "other": 0.0}


def test_phases_of_a_separate_pass_are_used_if_the_windows_have_none() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), rounds=2)
    assert world.record is not None
    one = next(item for item in world.record.windows if item.kind == "measure")
    own = dataclasses.replace(
        one, index=900, kind="phase", phases={"pack": PhaseTime(9, 0.4), "execute": PhaseTime(9, 0.6)}
    )
    record = dataclasses.replace(world.record, windows=(*world.record.windows, own))
    first, second = analyse(world, record=record).groups
    assert {item.name: item.share.value for item in first.phases} == {
        "pack": pytest.approx(0.4),
        "execute": pytest.approx(0.6),
    }
    assert second.phases == ()


# Worked examples: every number by hand


def idle_window(
    index: int,
    length_s: float,
    joules: float,
    random: dict[str, float],
    systematic: dict[str, float],
    configuration: str = "",
) -> tuple[MeasuredWindow, Combined]:
    measured = window(index, 100.0, length_s, configuration=configuration)
    return (
        MeasuredWindow(window=measured, span=Span(100.0, 100.0 + length_s), sensors={}),
        Combined(
            joules=joules,
            random=random,
            systematic=systematic,
            texts={},
            sources=frozenset({"edges"}),
            accuracy_known=True,
        ),
    )


SHARED = {"clock": 2.0, "edge slack": 1.5, "accuracy (rapl)": 9.0}
IDLE = [
    idle_window(3, 10.0, 400.0, {"refresh": 3.0, "unseen": 4.0}, SHARED),
    idle_window(5, 20.0, 1000.0, {"refresh": 6.0}, {"clock": 2.0}),
    idle_window(8, 10.0, 450.0, {}, {}),
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_worked_example_of_idle_power(count: int) -> None:
    """40, 50 and 45 W. Random components fall with the number of windows, shared ones do not, accuracy is elsewhere."""
    idle = mean_idle_power("loaded", "with this network loaded", IDLE[:count])
    randoms, shares = (0.5, 0.3, 0.0), (0.25, 0.1, 0.0)
    within = math.hypot(math.hypot(*randoms[:count]) / count, sum(shares[:count]) / count)
    between = (0.03 * 40, math.hypot(10.0 / math.sqrt(3), 0.005 * 45), 5.0 / math.sqrt(3))[count - 1]
    assert idle.watts == pytest.approx((40.0, 45.0, 45.0)[count - 1])
    assert idle.standard_watts == pytest.approx(math.hypot(within, between))
    expected_dof = effective_dof([(between, 2), (within, math.inf)]) if count == 3 else math.inf
    assert idle.dof == pytest.approx(expected_dof)
    assert (idle.basis, idle.windows) == ("loaded", (3, 5, 8)[:count])
    assert idle.text == f"{count} idle {('window', 'windows', 'windows')[count - 1]} with this network loaded"
    alike = mean_idle_power("unloaded", "", [IDLE[0]] * 3)
    assert math.isinf(alike.dof), "without scatter there is no estimate of it"


@pytest.mark.parametrize(
    ("own", "others", "standard_watts"),
    [
        # Alone, or with windows of which none repeats another: 3 %, or the difference to them.
        ([100.0], [], 3.0),
        ([100.0], [("", 101.0)], 3.0),
        ([100.0], [("", 106.0), ("a", 101.0)], 6.0 / math.sqrt(3)),
        # A state that was measured twice shows the drift, and a difference between states is real.
        ([100.0], [("", 60.0), ("", 64.0)], math.hypot(4.0 / math.sqrt(3), 0.5)),
        ([100.0], [("a", 70.0), ("b", 90.0), ("b", 90.0)], 0.5),
        ([99.0, 101.0], [], math.hypot(2.0 / math.sqrt(3), 0.5)),
        ([99.0, 101.0], [("", 60.0), ("", 64.0)], math.hypot(4.0 / math.sqrt(3), 0.5)),
        # Three are a sample.
        ([99.0, 100.0, 101.0], [("", 60.0), ("", 64.0)], 1 / math.sqrt(3)),
    ],
)
def test_all_idle_windows_show_how_much_idle_power_changes(
    own: list[float], others: list[tuple[str, float]], standard_watts: float
) -> None:
    windows = [idle_window(index, 10.0, 10 * watts, {}, {}, "n") for index, watts in enumerate(own)]
    more = [idle_window(10 + index, 10.0, 10 * watts, {}, {}, name) for index, (name, watts) in enumerate(others)]
    idle = mean_idle_power("loaded", "loaded", windows, more)
    assert (idle.watts, idle.standard_watts) == (100.0, pytest.approx(standard_watts))
    assert idle.windows == tuple(range(len(own)))
    shown = f"; uncertainty also from {len(others)} in other states" if others and len(own) < 3 else ""
    assert idle.text == f"{len(own)} idle window{'s' if len(own) > 1 else ''} loaded{shown}"


def run_window(
    index: int, repeat: int, length_s: float, joules: float, inferences: int, tokens: float
) -> tuple[MeasuredWindow, Combined]:
    measured = window(index, 100.0, length_s, repeat=repeat, inferences=inferences, counts={"tokens": tokens})
    return (
        MeasuredWindow(window=measured, span=Span(100.0, 100.0 + length_s), sensors={}),
        Combined(
            joules=joules,
            random={"refresh": 8.0},
            systematic={"clock": 4.0, "accuracy (rapl)": 0.05 * joules},
            texts={"clock": f"text {index}"},
            sources=frozenset({"edges"}),
            accuracy_known=True,
        ),
    )


RUN_WINDOWS = [
    run_window(1, 0, 2.0, 360.0, 80, 160.0),
    run_window(2, 0, 2.0, 380.0, 80, 160.0),
    run_window(3, 1, 4.0, 720.0, 100, 400.0),
]
IDLE_50_W = IdlePower(
    watts=50.0, standard_watts=2.0, dof=math.inf, basis="loaded", windows=(0,), text="1 idle window loaded"
)


@pytest.mark.parametrize("unit", ["", "tokens"])
def test_worked_example_of_joules_per_inference_and_per_token(unit: str) -> None:
    counts = (160.0, 160.0, 400.0) if unit else (80.0, 80.0, 100.0)
    gross = [joules / count for joules, count in zip((360.0, 380.0, 720.0), counts, strict=True)]
    estimate = per_inference(RUN_WINDOWS, None, unit)
    assert estimate.rounds == {0: pytest.approx((gross[0] + gross[1]) / 2), 1: pytest.approx(gross[2])}
    assert estimate.value == pytest.approx(((gross[0] + gross[1]) / 2 + gross[2]) / 2)
    lines = {line.name: line for line in estimate.budget}
    assert list(lines) == ["repeats", "refresh", "clock", "accuracy (rapl)"]
    refresh = math.sqrt((8 / counts[0] / 2) ** 2 + (8 / counts[1] / 2) ** 2 + (8 / counts[2]) ** 2) / 2
    assert lines["refresh"].standard == pytest.approx(refresh)
    assert lines["clock"].standard == pytest.approx(sum(4 / count for count in counts) / 3)
    assert lines["clock"].text == "text 1"
    assert lines["accuracy (rapl)"].standard == pytest.approx(0.05 * sum(gross) / 3)
    # Net: 50 W of idle power less; the accuracy is a share of the net, the other components stay.
    net = [
        (joules - 50 * length_s) / count
        for joules, length_s, count in zip((360.0, 380.0, 720.0), (2.0, 2.0, 4.0), counts, strict=True)
    ]
    estimate = per_inference(RUN_WINDOWS, IDLE_50_W, unit)
    assert estimate.value == pytest.approx(((net[0] + net[1]) / 2 + net[2]) / 2)
    lines = {line.name: line for line in estimate.budget}
    assert list(lines) == ["repeats", "refresh", "clock", "accuracy (rapl)", "idle baseline"]
    assert lines["refresh"].standard == pytest.approx(refresh)
    assert lines["clock"].standard == pytest.approx(sum(4 / count for count in counts) / 3)
    assert lines["accuracy (rapl)"].standard == pytest.approx(0.05 * sum(net) / 3)
    baseline = lines["idle baseline"]
    seconds = (2 / counts[0] + 2 / counts[1] + 4 / counts[2]) / 3
    assert baseline.standard == pytest.approx(2.0 * seconds)
    assert (baseline.kind, baseline.dof, baseline.systematic) == ("B", math.inf, True)
    assert baseline.text == "50 W ± 2 W (standard), 1 idle window loaded"
    scattered = per_inference(RUN_WINDOWS, dataclasses.replace(IDLE_50_W, dof=4.0), unit).budget[-1]
    assert (scattered.kind, scattered.dof) == ("A", 4.0)


def test_net_energy_below_zero_has_an_accuracy_too() -> None:
    """200 W of idle power are more than the 180 W measured; the accuracy is that of the difference."""
    estimate = per_inference(RUN_WINDOWS[:1], dataclasses.replace(IDLE_50_W, watts=200.0))
    assert estimate.value == pytest.approx(-40 / 80)
    assert {line.name: line.standard for line in estimate.budget}["accuracy (rapl)"] == pytest.approx(0.05 * 40 / 80)
    nothing = per_inference([run_window(1, 0, 2.0, 0.0, 80, 160.0)], IDLE_50_W)
    assert nothing.value == pytest.approx(-100 / 80), "no energy at all is a measurement"


def test_a_rate_is_the_mean_over_rounds() -> None:
    rate = mean_rate([(measured.window, measured.window.inferences) for measured, _ in RUN_WINDOWS])
    assert (rate.value, rate.rounds) == (pytest.approx((40 + 25) / 2), {0: 40.0, 1: 25.0})
    assert [line.name for line in rate.budget] == ["repeats"]


def test_latency_is_the_mean_over_windows_and_its_scatter_that_between_rounds() -> None:
    def with_latency(index: int, repeat: int, scale: float) -> MeasuredWindow:
        latency = Latency(
            count=9,
            mean_s=0.05 * scale,
            min_s=0.01 * scale,
            max_s=0.9 * scale,
            p50_s=0.1 * scale,
            p90_s=0.2 * scale,
            p99_s=0.4 * scale,
        )
        return MeasuredWindow(
            window=window(index, 100.0, repeat=repeat, latency=latency), span=Span(100.0, 101.0), sensors={}
        )

    silent = MeasuredWindow(window=window(9, 100.0, latency=None), span=Span(100.0, 101.0), sensors={})
    found = latency_summary([with_latency(0, 0, 1.0), silent, with_latency(1, 0, 2.0), with_latency(2, 1, 6.0)])
    assert found is not None
    assert (found.p50_s, found.p90_s, found.p99_s) == (pytest.approx(0.3), pytest.approx(0.6), pytest.approx(1.2))
    assert found.max_s == pytest.approx(5.4)
    assert found.rounds_s == {
        name: {0: pytest.approx(1.5 * p), 1: pytest.approx(6 * p)}
        for name, p in (("p50", 0.1), ("p90", 0.2), ("p99", 0.4))
    }
    assert found.standard_s == {
        name: pytest.approx(4.5 * p / 2) for name, p in (("p50", 0.1), ("p90", 0.2), ("p99", 0.4))
    }
    one_round = latency_summary([with_latency(0, 0, 1.0), with_latency(1, 0, 2.0)])
    assert one_round is not None and one_round.standard_s == {}
    assert latency_summary([silent]) is None and latency_summary([]) is None


@pytest.mark.parametrize(
    ("flags", "inferences", "reason"),
    [
        ((), 1, None),
        (("not_steady",), 1, None),
        ((), 0, "too_short"),
        (("overloaded",), 0, "overloaded"),
        (("overloaded", "interrupted"), 9, "interrupted"),
    ],
)
def test_windows_that_are_no_result_have_a_reason(flags: tuple[str, ...], inferences: int, reason: str | None) -> None:
    one = MeasuredWindow(
        window=window(4, 100.0, flags=flags, inferences=inferences), span=Span(100.0, 101.0), sensors={}
    )
    why = _exclusion(one)
    assert (why and (why.window, why.reason)) == (reason and (4, reason))


def test_phases_are_shares_of_their_sum_in_the_order_of_a_batch() -> None:
    spent = {"idle": 1.0, "other": 0.5, "zeta": 0.25, "execute": 2.0, "alpha": 0.25}
    windows = [
        window(0, 0.0, repeat=0, batches=10, phases={name: PhaseTime(10, s) for name, s in spent.items()}),
        window(1, 1.0, repeat=1, batches=30, phases={"execute": PhaseTime(30, 6.0)}),
        window(2, 2.0, repeat=2, batches=0, phases={"wait": PhaseTime(1, 9.0)}),
        window(3, 3.0, repeat=3, batches=10, phases={}),
        window(4, 4.0, repeat=1, batches=10, phases={"execute": PhaseTime(10, 0.0)}),
    ]
    shares = phase_shares(windows)
    assert [item.name for item in shares] == ["execute", "alpha", "zeta", "idle", "other"]
    execute, alpha = shares[:2]
    assert execute.share.rounds == {0: 0.5, 1: 0.5}, "half of 4 s, then all of 6 s and nothing of 0 s"
    assert alpha.share.rounds == {0: 0.0625, 1: 0.0}
    assert execute.per_batch_s == pytest.approx(8.0 / 50)
    assert alpha.per_batch_s == pytest.approx(0.25 / 50)
    assert phase_shares(windows[2:4]) == ()


class Watched(ListSource):
    """Remembers what it was asked for."""

    asked: tuple[object, object] | None = None

    def history(
        self,
        spans: Sequence[tuple[float, float]],
        exporters: Sequence[ExporterRecord] | None = None,
        *,
        power: bool = False,
    ) -> History:
        self.asked = (list(spans), exporters)
        return super().history(spans, exporters, power=power)


def test_a_whole_analysis_reads_what_it_needs_and_keeps_what_it_was_given() -> None:
    world = make_world(TWO_SOCKETS[:1], batch_sizes=(1,), rounds=1)
    assert world.record is not None
    steps: list[str] = []
    source = Watched(world.scrapes())
    result = analyze_run(world.record, source, progress=steps.append)
    assert source.asked == (run_spans(world.record), world.record.header.exporters)
    assert steps == ["reading samples from memory", "integrating"]
    assert (result.record, result.source) == (world.record, "memory")
    assert result.sensors == TWO_SOCKETS[:1]
    assert list(result.idle) == ["cpu", "total"]
    assert result.idle["cpu"].watts == pytest.approx(40.0, rel=0.01)
    foreign = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, exporters=()))
    analyze_run(foreign, source)
    assert source.asked == (run_spans(world.record), None), "all exporters of the source"
    edges_only = analyze_run(world.record, None)
    assert (edges_only.source, [group.total.sources for group in edges_only.groups]) == ("", [("edges",)] * 2)


def test_the_whole_analysis_needs_samples_of_windows_with_an_energy_only() -> None:
    windows = [
        window(0, 10.0, 2.0, kind="idle"),
        window(1, 20.0, 0.5, kind="measure"),
        window(2, 30.0, 2.0, kind="warmup"),
        dataclasses.replace(window(3, 40.0, 2.0, kind="setup"), end_s=99.0),
        dataclasses.replace(window(4, 50.0, 2.0), duration_s=0.0),
        window(5, 60.0, 2.0, kind="phase"),
    ]
    world = make_world(TWO_SOCKETS[:1], batch_sizes=(1,), rounds=1)
    assert world.record is not None
    record = dataclasses.replace(world.record, windows=tuple(windows))
    assert run_spans(record) == [(10.0, 12.0), (20.0, 20.5), (40.0, 42.0)]


def test_a_whole_analysis_without_idle_reports_it_once_and_only_for_device_sensors() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    busy = tuple(item for item in world.record.windows if item.kind != "idle")
    record = dataclasses.replace(world.record, windows=busy)
    found = [item for item in analyse(world, record=record).findings if item.reason == "no_idle"]
    assert [(item.severity, item.text) for item in found] == [
        ("info", "no idle window has the energy of all devices, so there is no net energy")
    ]
    assert "no_idle" not in reasons(analyse(world).findings)
    nodes_only = make_world(TWO_SOCKETS[-1:], batch_sizes=(1,))
    assert nodes_only.record is not None
    record = dataclasses.replace(
        nodes_only.record, windows=tuple(w for w in nodes_only.record.windows if w.kind != "idle")
    )
    assert "no_idle" not in reasons(analyse(nodes_only, record=record).findings)
    idle_only = dataclasses.replace(world.record, windows=tuple(w for w in world.record.windows if w.kind == "idle"))
    assert analyse(world, record=dataclasses.replace(idle_only, windows=())).groups == ()


def test_interrupted_idle_windows_do_not_count() -> None:
    world = make_world(TWO_SOCKETS[:1], batch_sizes=(1,), rounds=1, loaded_idle=False)
    assert world.record is not None
    first, *_, last = world.record.windows
    assert (first.kind, last.kind) == ("idle", "idle")
    idle = analyse(world, record=change(world.record, first.index, flags=("interrupted",))).groups[0].total.idle
    assert idle is not None and idle.windows == (last.index,)


def test_groups_come_in_the_order_of_the_configurations_and_have_their_sums() -> None:
    world = make_world(
        TWO_SOCKETS, batch_sizes=(8, 1), rounds=2, configurations=("z/onnxruntime/fp32", "a/onnxruntime/int8")
    )
    assert world.record is not None
    result = analyse(world)
    names = ["z/onnxruntime/fp32", "z/onnxruntime/fp32", "a/onnxruntime/int8", "a/onnxruntime/int8"]
    assert [(group.configuration.name, group.batch_size) for group in result.groups] == list(
        zip(names, (1, 8, 1, 8), strict=True)
    )
    group = result.groups[0]
    windows = [world.record.windows[index] for index in group.windows]
    assert [(item.configuration, item.batch_size, item.repeat) for item in windows] == [
        ("z/onnxruntime/fp32", 1, 0), ("z/onnxruntime/fp32", 1, 1),
    ]  # fmt: skip
    assert (group.rounds, group.inferences) == (2, sum(item.inferences for item in windows))
    assert group.duration_s == pytest.approx(4.0)
    assert group.excluded == () and group.total.missing == "" and group.total.windows == group.windows
    assert [item.name for item in (*group.components, group.total)] == ["cpu", "memory", "total"]
    assert [len(item.sensors) for item in (*group.components, group.total, *group.nodes, *group.parts)] == [
        2,
        2,
        4,
        1,
        1,
    ]
    assert group.total.methods == ("counter",) and set(group.total.sources) <= {"edges", "history"}
    unknown = dataclasses.replace(
        world.record, configurations=(), header=dataclasses.replace(world.record.header, configurations=())
    )
    other = analyse(world, record=unknown).groups
    assert [one.configuration.name for one in other] == sorted(names)
    assert (other[0].configuration.network, other[0].configuration.runtime) == ("a/onnxruntime/int8", "")


def test_counts_need_every_window_and_have_their_own_rate_and_energy() -> None:
    world = make_world(TWO_SOCKETS[:1], batch_sizes=(1,), rounds=2, configurations=("llm/openai/fp16",))
    assert world.record is not None
    windows = [
        dataclasses.replace(item, counts={"tokens": 2.0 * item.inferences, "rare": float(item.repeat)})
        if item.kind == "measure"
        else item
        for item in world.record.windows
    ]
    record = dataclasses.replace(world.record, windows=tuple(windows))
    (group,) = analyse(world, record=record).groups
    (count,) = group.counts
    assert (count.name, count.count, count.per_inference) == ("tokens", 2.0 * group.inferences, 2.0)
    assert count.rate is not None and group.throughput is not None
    assert count.rate.value == pytest.approx(2 * group.throughput.value)
    assert count.gross is not None and count.net is not None
    assert group.total.gross is not None and group.total.net is not None
    assert count.gross.value == pytest.approx(group.total.gross.value / 2)
    assert count.net.value == pytest.approx(group.total.net.value / 2)
    (bare,) = analyse(world, record=without_edges(record), history=False).groups
    assert [(one.gross, one.net) for one in bare.counts] == [(None, None)]
    assert bare.counts[0].rate == count.rate


# Whole analyses of small runs: one sensor, or two, and numbers by hand

FP32, INT8 = "net/onnxruntime/fp32", "net/onnxruntime/int8"
CPU = TWO_SOCKETS[:1]


def measures(record: RunRecord, configuration: str = FP32) -> list[Window]:
    return [window for window in record.windows if window.kind == "measure" and window.configuration == configuration]


def without(record: RunRecord, *indexes: int) -> RunRecord:
    return dataclasses.replace(
        record, windows=tuple(window for window in record.windows if window.index not in indexes)
    )


def findings_of(result: RunResult, reason: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.reason == reason]


def idle_world(*watts: float) -> World:
    """Return a run with idle windows of these powers: before, with fp32 loaded, with int8 loaded, after."""
    world = make_world(CPU, batch_sizes=(1,), rounds=1, edges=False, scrape_s=0.02)
    (sensor_record,) = CPU
    signal = world.sensors[sensor_record]
    first, *_, last = signal.watts
    assert first == last == 40.0
    world.sensors[sensor_record] = dataclasses.replace(signal, watts=(first, *watts[:3], *signal.watts[4:-1], watts[3]))
    return world


def idle_of(result: RunResult) -> list[tuple[float, tuple[int, ...], str]]:
    """Return the idle power of each group and of the machine."""
    powers = [*(group.total.idle for group in result.groups), result.idle["total"]]
    return [(round(idle.watts, 1), idle.windows, f"{idle.basis}: {idle.text}") for idle in powers if idle is not None]


def test_each_configuration_has_the_idle_power_with_its_network_loaded() -> None:
    world = idle_world(40.0, 60.0, 80.0, 40.0)
    assert world.record is not None
    own, more = "loaded: 1 idle window with this network loaded", "; uncertainty also from {} in other states"
    result = analyse(world)
    assert idle_of(result) == [
        (60.0, (1,), own + more.format(3)),
        (80.0, (2,), own + more.format(3)),
        (70.0, (1, 2), "loaded: 2 idle windows with a network loaded" + more.format(2)),
    ]
    net = [group.total.net for group in result.groups]
    assert [estimate.value for estimate in net if estimate is not None] == pytest.approx(
        [90 / 900, 70 / 2100], rel=1e-3
    )
    # Without a window for int8, that of the other network is used.
    own, other = own + more.format(2), "loaded: 1 idle window with a network loaded" + more.format(2)
    assert idle_of(analyse(world, record=without(world.record, 2))) == [(60.0, (1,), own), *[(60.0, (1,), other)] * 2]
    unloaded = analyse(world, record=without(world.record, 1, 2))
    assert idle_of(unloaded) == [(40.0, (0, 5), "unloaded: 2 idle windows without a network loaded")] * 3


def test_if_no_loaded_window_has_a_number_those_without_a_network_are_used() -> None:
    world = make_world(CPU, batch_sizes=(1,), rounds=1)
    assert world.record is not None
    record = change(change(world.record, 1, start_edge=None, end_edge=None), 2, start_edge=None, end_edge=None)
    assert (
        idle_of(analyse(world, record=record, history=False))
        == [(40.0, (0, 5), "unloaded: 2 idle windows without a network loaded")] * 3
    )


@pytest.mark.parametrize(
    ("watts", "drift"),
    [
        ((40.0, 60.0, 80.0, 40.0), (60.0, 80.0)),
        # The windows without a network drift, but are not used.
        ((40.0, 60.0, 60.0, 80.0), None),
        ((40.0, 40.0, 41.9, 40.0), None),
    ],
)
def test_idle_drift_is_that_of_the_windows_used(watts: tuple[float, ...], drift: tuple[float, float] | None) -> None:
    findings = findings_of(analyse(idle_world(*watts)), "idle_drift")
    assert [(finding.severity, finding.evidence["component"]) for finding in findings] == (
        [("warning", "cpu"), ("warning", "total")] if drift else []
    )
    for finding in findings:
        assert drift == pytest.approx((finding.evidence["first_watts"], finding.evidence["last_watts"]), rel=1e-3)


def test_idle_windows_that_hardly_differ_are_a_sample() -> None:
    windows = [idle_window(0, 10.0, joules, {}, {}) for joules in (400.0, 402.0, 404.0)]
    idle = mean_idle_power("loaded", "", windows)
    assert (idle.watts, idle.standard_watts, idle.dof) == pytest.approx((40.2, 0.2 / math.sqrt(3), 2.0))


def test_rounds_that_differ_are_a_finding_about_their_group() -> None:
    world = make_world(CPU, batch_sizes=(1,))
    assert world.record is not None
    assert not reasons(analyse(world).findings) & {"repeats_apart", "single_repeat"}
    first, second, third = measures(world.record)
    record = change(world.record, second.index, inferences=second.inferences // 2)
    (finding,) = findings_of(analyse(world, record=record), "repeats_apart")
    assert (finding.severity, finding.window, finding.evidence["rounds"]) == ("warning", None, 3)
    assert finding.evidence["spread"] == pytest.approx(1 / (4 / 3), rel=0.01), "1, 2 and 1"
    assert finding.text.startswith("net/onnxruntime/fp32, batch 1: the rounds differ by 75")
    # Two windows of one round are one value: 1.5 and 1.
    record = change(record, third.index, repeat=first.repeat + 1)
    record = change(record, second.index, repeat=first.repeat + 1)
    (finding,) = findings_of(analyse(world, record=record), "repeats_apart")
    assert finding.evidence["spread"] == pytest.approx(0.5 / 1.25, rel=0.01) and finding.evidence["rounds"] == 2
    # A window that is not used, and a total that is missing, cannot disagree.
    excluded = change(record, second.index, flags=("interrupted",), inferences=0)
    assert "repeats_apart" not in reasons(analyse(world, record=excluded).findings)
    assert "repeats_apart" not in reasons(analyse(world, record=without_edges(record), history=False).findings)


def test_a_target_that_was_not_reached_is_a_finding() -> None:
    """1, 1/1.12, 1, 1/1.12, 1 scatter by 6.1 %: ± 3.298 × 6.1 % / √5 = 9.0 %; more rounds have a larger range."""
    world = make_world(CPU, batch_sizes=(1,), configurations=(FP32,), rounds=5)
    assert world.record is not None
    record = world.record
    for number, measured in enumerate(measures(record)):
        record = change(record, measured.index, inferences=round(measured.inferences * (1 + 0.12 * (number % 2))))

    def apart(**plan: float) -> list[Finding]:
        header = dataclasses.replace(record.header, plan=plan)
        found = analyse(world, record=dataclasses.replace(record, header=header)).findings
        return [item for item in found if item.reason == "repeats_apart"]

    assert len(apart(rounds=5)) == 1
    assert not apart(max_relative_uncertainty=0.10)
    (finding,) = apart(max_relative_uncertainty=0.05)
    assert finding.text.startswith(
        "net/onnxruntime/fp32, batch 1: ±9.0 % after 5 rounds, not the target of ±5 %; raise"
    )
    assert finding.severity == "warning" and finding.evidence["rounds"] == 5


def test_a_run_whose_rounds_ended_at_a_target_has_the_interval_that_was_tested() -> None:
    """Without a published accuracy and with a counter that is read at the edges, hardly anything else counts."""
    world = make_world(
        (sensor("s0", "package", accuracy=None),), batch_sizes=(8,), configurations=(FP32,), rounds=5, noise=0.02
    )
    assert world.record is not None
    header = dataclasses.replace(world.record.header, plan={"max_relative_uncertainty": 0.05})
    for record, coverage in (
        (world.record, 0.95),
        (dataclasses.replace(world.record, header=header), 0.97),
    ):
        (group,) = analyse(world, record=record).groups
        for estimate in (group.total.gross, group.throughput):
            assert estimate is not None and estimate.expanded is not None
            repeats = estimate.budget[0].standard * student_factor(4, coverage)
            assert estimate.expanded == pytest.approx(repeats, rel=0.01)


def test_a_single_round_is_a_finding_of_each_group() -> None:
    findings = findings_of(analyse(make_world(CPU, batch_sizes=(1, 8), rounds=1)), "single_repeat")
    assert [(finding.severity, finding.text.partition(":")[0]) for finding in findings] == [
        ("warning", f"{name}, batch {size}") for name in (FP32, INT8) for size in (1, 8)
    ]


def test_a_group_without_a_usable_window_reports_the_first_reason() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    record = world.record
    first, second, third = measures(record)
    record = change(record, first.index, flags=("overloaded",))
    record = change(record, second.index, inferences=0)
    record = change(record, third.index, flags=("interrupted",))
    group, other = analyse(world, record=record).groups
    assert [(excluded.window, excluded.reason, excluded.text) for excluded in group.excluded] == [
        (first.index, "overloaded", "queries arrived faster than they were served"),
        (second.index, "too_short", "no inference ended in the window"),
        (third.index, "interrupted", "the window was interrupted"),
    ]
    assert (group.windows, group.rounds, group.inferences, group.duration_s) == ((), 0, 0, 0.0)
    assert (group.throughput, group.latency, group.counts, group.phases) == (None, None, (), ())
    results = (*group.components, group.total, *group.nodes, *group.parts)
    assert len(results) == 5
    for result in results:
        assert (result.gross, result.net, result.idle, result.windows, result.sources) == (None, None, None, (), ())
        assert result.missing == "queries arrived faster than they were served [overloaded]"
    assert other.excluded == () and other.total.gross is not None


def test_a_missing_sensor_is_the_first_reason_even_if_no_window_is_usable() -> None:
    world = make_world([], batch_sizes=(1,), rounds=1)
    assert world.record is not None
    (only,) = measures(world.record)
    record = change(world.record, only.index, flags=("interrupted",))
    total = analyse(world, record=record, history=False).groups[0].total
    assert (total.missing, total.sensors, total.methods, total.windows) == ("no sensor", (), (), ())


def test_windows_without_a_number_are_counted_and_the_first_is_explained() -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,))
    assert world.record is not None
    record = world.record
    windows = measures(record)
    for measured, device in zip(windows, ("socket1", "socket0", "socket1"), strict=True):
        record = change(record, measured.index, end_edge=drop(measured.end_edge, device))
    group = analyse(world, record=record, history=False).groups[0]
    why = "the exporter could not be read at an edge: connection refused [edge_missing]"
    assert group.total.missing.startswith(f"3 of 3 windows without a number: {EXPORTER}/rapl/socket1/")
    assert group.total.missing.endswith(why)
    assert group.components[0].missing == f"3 of 3 windows without a number: {EXPORTER}/rapl/socket1/package: {why}"
    assert [(excluded.window, excluded.reason) for excluded in group.excluded] == [
        (window.index, "edge_missing") for window in windows
    ]
    assert all(excluded.text.endswith(why.removesuffix(" [edge_missing]")) for excluded in group.excluded)
    (node,) = group.nodes
    assert node.gross is not None and node.missing == "" and len(node.windows) == 3


def test_parts_of_one_kind_are_one_result_with_the_sum_of_their_energies() -> None:
    sensors = [
        *CPU,
        sensor("socket0", "core", "cpu", "part"),
        sensor("socket1", "core", "cpu", "part"),
        sensor("socket0", "uncore", "cpu", "part"),
        sensor("psys", "total", "node", "node"),
        sensor("bmc", "power", "node", "node", collector="ipmi", method="integrated"),
    ]
    group = analyse(make_world(sensors, batch_sizes=(1,)), history=False).groups[0]
    results = {result.name: result for result in (*group.parts, *group.nodes, *group.components, group.total)}
    assert sorted(part.name for part in group.parts) == ["cpu core (rapl)", "cpu uncore (rapl)"]
    assert sorted(node.name for node in group.nodes) == [f"{EXPORTER}/ipmi/bmc/power", f"{EXPORTER}/rapl/psys/total"]
    expected = {
        "cpu core (rapl)": 180.0, "cpu uncore (rapl)": 90.0, f"{EXPORTER}/ipmi/bmc/power": 450.0,
        f"{EXPORTER}/rapl/psys/total": 450.0, "cpu": 150.0, "total": 150.0,
    }  # fmt: skip
    idle = {name: watts * 40 / 150 for name, watts in expected.items()}
    for name, result in results.items():
        assert result.gross is not None and result.net is not None and result.idle is not None
        assert result.gross.value == pytest.approx(expected[name] / 900, rel=1e-3)
        assert result.idle.watts == pytest.approx(idle[name], rel=1e-3)
        assert result.net.value == pytest.approx((expected[name] - idle[name]) / 900, rel=2e-3)
        assert (result.missing, result.windows, result.sources) == ("", group.windows, ("edges",))
    assert results[f"{EXPORTER}/ipmi/bmc/power"].methods == ("integrated",)
    assert results["cpu core (rapl)"].methods == ("counter",)


def test_components_come_in_their_usual_order_then_others_by_name() -> None:
    names = ("zeta", "other", "gpu", "alpha", "memory", "cpu", "fpga")
    sensors = [sensor(f"device{number}", "package", name) for number, name in enumerate(names)]
    result = analyse(make_world(sensors, batch_sizes=(1,), rounds=1), history=False)
    order = ["cpu", "memory", "gpu", "fpga", "other", "alpha", "zeta"]
    assert [component.name for component in result.groups[0].components] == order
    assert list(result.idle) == [*order, "total"]
    assert [len(component.sensors) for component in result.groups[0].components] == [1] * 7


def test_configurations_that_the_run_does_not_describe_come_last_by_name() -> None:
    names = [f"{name}/onnxruntime/fp32" for name in "bca"]
    world = make_world(CPU, batch_sizes=(1,), rounds=1, configurations=names)
    assert world.record is not None
    (known,) = [described for described in world.record.configurations if described.name == names[1]]
    record = dataclasses.replace(
        world.record,
        configurations=(),
        header=dataclasses.replace(world.record.header, configurations=(known,)),
        setups=tuple(Setup(configuration=name, phase="load", duration_s=0.1) for name in names),
    )
    result = analyse(world, record=record)
    assert [group.configuration.name for group in result.groups] == [names[1], names[2], names[0]]
    assert result.groups[0].configuration == known
    unknown = result.groups[1].configuration
    assert (unknown.network, unknown.runtime, unknown.precision) == (names[2], "", "")
    assert [setup.configuration for setup in result.setups] == [names[1], names[0], names[2]], "in the order of the run"


def test_a_separate_pass_for_phases_changes_no_energy_and_is_not_audited() -> None:
    world = make_world(CPU, batch_sizes=(1, 8), rounds=2)
    assert world.record is not None
    measured = measures(world.record)[0]
    separate = [
        dataclasses.replace(
            measured, index=len(world.record.windows) + number, kind="phase", batch_size=batch_size, configuration=name,
            end_edge=None,
            flags=("not_steady",), phases={"execute": PhaseTime(9, share), "wait": PhaseTime(9, 1 - share)},
        )
        for number, (name, batch_size, share) in enumerate(((FP32, 1, 0.25), (FP32, 8, 0.5), (INT8, 1, 0.75)))
    ]  # fmt: skip
    record = dataclasses.replace(world.record, windows=(*world.record.windows, *separate))
    before, after = analyse(world, history=False), analyse(world, history=False, record=record)
    assert after.findings == before.findings
    assert [group.total for group in after.groups] == [group.total for group in before.groups]
    shares = [{phase.name: phase.share.value for phase in group.phases} for group in after.groups]
    assert shares == [
        {"execute": 0.25, "wait": 0.75}, {"execute": 0.5, "wait": 0.5}, {"execute": 0.75, "wait": 0.25}, {}
    ]  # fmt: skip


def test_a_setup_without_a_device_sensor_has_no_total() -> None:
    world = make_world(TWO_SOCKETS[-1:], batch_sizes=(1,), rounds=2)
    assert world.record is not None
    at = measures(world.record)[0].index
    record = change(world.record, at, kind="setup", phase="load", batch_size=0, details={"tuning": "done"})
    (setup,) = analyse(world, record=record, history=False).setups
    assert (setup.window, setup.components, setup.details) == (at, (), {"tuning": "done"})
    assert setup.total is not None
    assert (setup.total.name, setup.total.gross, setup.total.missing) == ("total", None, "no sensor")
    assert (setup.total.methods, setup.total.sources) == ((), ())
    (node,) = setup.nodes
    assert node.gross is not None and node.gross.value == pytest.approx(2.0 * 450.0, rel=0.01)
    assert (node.missing, node.sources, node.gross.rounds) == ("", ("edges",), {0: node.gross.value})


def test_both_sources_of_the_energies_are_named() -> None:
    world = make_world(CPU, batch_sizes=(1,))
    assert world.record is not None
    record = change(world.record, measures(world.record)[1].index, start_edge=None, end_edge=None)
    assert [group.total.sources for group in analyse(world, record=record).groups] == [("edges", "history"), ("edges",)]


def test_only_counts_of_every_window_are_results_and_net_needs_idle() -> None:
    world = make_world(CPU, batch_sizes=(1,), rounds=2)
    assert world.record is not None
    first, second = measures(world.record)
    record = change(world.record, first.index, counts={"tokens": 100.0, "first": 1.0})
    record = change(record, second.index, counts={"tokens": 300.0, "second": 1.0})
    record = without(record, *(window.index for window in record.windows if window.kind == "idle"))
    (count,) = analyse(world, record=record, history=False).groups[0].counts
    assert (count.name, count.count, count.per_inference) == ("tokens", 400.0, 400 / 3600)
    assert count.rate is not None and count.rate.rounds == {0: pytest.approx(50.0), 1: pytest.approx(150.0)}
    assert count.net is None and count.gross is not None
    assert count.gross.rounds == {0: pytest.approx(3.0, rel=1e-3), 1: pytest.approx(1.0, rel=1e-3)}


def test_one_usable_round_of_three_has_no_uncertainty() -> None:
    world = make_world(TWO_SOCKETS, rounds=3, batch_sizes=(1,), noise=0.02)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(window, flags=("interrupted",))
        if window.kind == "measure" and window.repeat > 0
        else window
        for window in world.record.windows
    )
    world.record = dataclasses.replace(world.record, windows=windows)
    group = analyse(world).groups[0]
    assert (group.rounds, group.measured_rounds) == (1, 3)
    gross = group.total.gross
    assert gross is not None
    assert gross.expanded is None and "repeats" not in gross.covers
    assert gross.inverse.expanded is None
    assert group.throughput is not None and group.throughput.expanded is None


def test_the_uncertainty_covers_accuracy_only_if_every_sensor_publishes_one() -> None:
    known = sensor("socket0", "package", accuracy=0.02)
    unknown = sensor("socket1", "package")
    for sensors, covers in (
        ([known], ("sampling", "accuracy", "repeats")),
        ([unknown], ("sampling", "repeats")),
        ([known, unknown], ("sampling", "repeats")),
    ):
        group = analyse(make_world(sensors, rounds=3, batch_sizes=(1,))).groups[0]
        assert group.total.gross is not None
        assert group.total.gross.covers == covers


def test_a_count_of_one_is_a_result_and_missing_ones_do_not_hide_it() -> None:
    """The energy of a count is net of the idle power with the group's network loaded."""
    world = idle_world(40.0, 60.0, 80.0, 40.0)
    assert world.record is not None
    (only,) = measures(world.record)
    record = change(world.record, only.index, counts={"missing": 0.0, "answers": 1.0})
    (count,) = analyse(world, record=record).groups[0].counts
    assert (count.name, count.count) == ("answers", 1.0)
    assert count.gross is not None and count.gross.value == pytest.approx(2 * 150.0, rel=1e-3)
    assert count.net is not None and count.net.value == pytest.approx(2 * (150.0 - 60.0), rel=1e-3)


@pytest.mark.parametrize("sensors", [(), CPU])
def test_counts_without_a_total_have_a_rate_only(sensors: tuple[SensorRecord, ...]) -> None:
    world = make_world(sensors, batch_sizes=(1,), rounds=1)
    assert world.record is not None
    (only,) = measures(world.record)
    record = change(world.record, only.index, counts={"tokens": 100.0}, end_edge=None)
    result = analyse(world, record=record, history=False)
    (count,) = result.groups[0].counts
    assert (count.gross, count.net) == (None, None)
    assert count.rate is not None and count.rate.value == 50.0
    assert ("total" in result.idle) == bool(sensors)


def test_setups_too_short_for_a_window_keep_their_time_and_details() -> None:
    world = make_world(CPU, batch_sizes=(1,), rounds=1)
    assert world.record is not None
    setup = Setup(configuration=FP32, phase="prepare", duration_s=0.125, batch_size=1, details={"tuning": "done"})
    (result,) = analyse(world, record=dataclasses.replace(world.record, setups=(setup,))).setups
    assert (result.configuration, result.phase, result.batch_size) == (FP32, "prepare", 1)
    assert (result.duration_s, result.details, result.window) == (0.125, {"tuning": "done"}, None)
