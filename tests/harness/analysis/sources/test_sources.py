"""The same run from memory, a recording and Prometheus has the same results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import responses

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.results.summary import analyze_run, run_spans
from joulewatch_harness.analysis.sources.history import (
    RawSeries,
    build_history,
    merge_spans,
    traits_of,
    unknown_sensor,
)
from joulewatch_harness.analysis.sources.opening import open_source
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.analysis.sources.rebuild import rebuild_run, run_start_s
from joulewatch_harness.analysis.sources.recording import RecordingSource
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.errors import QueryError, RecordError
from joulewatch_harness.records import CalibrationRecord, Edge, ExporterRecord, ProcessorTime
from support.fake_prometheus import URL, FakePrometheus
from support.synthetic import (
    EXPORTER,
    RUN,
    T0,
    TWO_SOCKETS,
    ListSource,
    World,
    make_world,
    raw_of,
    run_samples,
    sensor,
    without_edges,
    write_recording,
)


@pytest.fixture(scope="module")
def world() -> World:
    """Each window has a clock step of its own, and processor time, except the second one."""
    world = make_world(TWO_SOCKETS, batch_sizes=(1, 64), rounds=2, noise=0.01)
    assert world.record is not None
    windows = [
        dataclasses.replace(
            window,
            clock_step_s=1e-6 * window.index,
            processor_time=ProcessorTime(
                busy_s=window.index + 0.75,
                own_s=window.index + 0.5,
                processors=4,
                networks_s={window.configuration: 0.25} if window.kind == "measure" else {},
                services_s=0.125,
                system_s=0.0625,
            ),
        )
        for window in world.record.windows
    ]
    windows[1] = dataclasses.replace(windows[1], processor_time=None)
    world.record = dataclasses.replace(world.record, windows=tuple(windows))
    return world


@pytest.fixture
def mocked() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def source_of(fake: FakePrometheus, mocked: responses.RequestsMock, world: World, **more: int) -> PrometheusSource:
    fake.install(mocked)
    return PrometheusSource(PrometheusClient(PrometheusOptions(URL)), now=lambda: world.end_s + 60, **more)


def stored(world: World, **more: str) -> list[RawSeries]:
    assert world.record is not None
    job = [dataclasses.replace(raw, labels={**raw.labels, "job": "joulewatch", **more}) for raw in world.scrapes()]
    return [*job, *raw_of(run_samples(world.record))]


def test_a_restricted_source_names_its_match() -> None:
    """A match that selects nothing leaves results by edges only; the reason must be on the result."""
    options = PrometheusOptions(URL, match={"cluster": "x"})
    assert PrometheusSource(PrometheusClient(options)).describe() == f'{URL} (cluster="x")'
    assert PrometheusSource(PrometheusClient(PrometheusOptions(URL))).describe() == URL


def test_calibrations_arrive_from_a_server_and_from_a_recording(mocked: responses.RequestsMock, tmp_path: Path) -> None:
    values = {name: float(number) for number, name in enumerate(catalog.CALIBRATION_PARAMETERS, start=1)}
    calibration = CalibrationRecord(
        reference="WT310",
        reference_accuracy=0.01,
        date="2026-11-28T10:00:00+00:00",
        **values,  # type: ignore[arg-type]
    )
    plain = sensor("socket1", "package")
    world = make_world([sensor("socket0", "package", calibration=calibration), plain], batch_sizes=(1,), rounds=1)
    write_recording(world, tmp_path / "recording.sqlite")
    server = source_of(FakePrometheus(stored(world)), mocked, world)
    for source in (server, RecordingSource(tmp_path / "recording.sqlite")):
        history = source.history([(world.start_s, world.end_s)])
        found = {one.device: one.calibration for one in history.sensors.values()}
        assert found == {"socket0": calibration, "socket1": None}
        source.close()


def test_a_run_is_rebuilt_from_its_annotations(world: World, mocked: responses.RequestsMock) -> None:
    assert world.record is not None
    source = source_of(FakePrometheus(stored(world)), mocked, world)
    actual = source.run(RUN)
    source.close()
    assert len(actual.windows) == len(world.record.windows)
    for mine, theirs in zip(actual.windows, world.record.windows, strict=True):
        assert mine.start_s == theirs.start_s and mine.duration_s == theirs.duration_s
        assert mine.end_s == pytest.approx(theirs.end_s, abs=1e-6)
        for name in ("index", "kind", "configuration", "batch_size", "repeat", "batches", "inferences", "flags"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.clock_step_s == theirs.clock_step_s == pytest.approx(1e-6 * mine.index, abs=1e-12)
        assert mine.processor_time == theirs.processor_time
        assert mine.start_edge is not None and theirs.start_edge is not None
        assert set(mine.start_edge.counters) == set(theirs.start_edge.counters)
        assert mine.start_edge.clocks == theirs.start_edge.clocks
        if theirs.latency is not None:
            assert mine.latency is not None and mine.latency.p99_s == theirs.latency.p99_s
    # Windows of a run of 0.1.0 have no processor time.
    assert [item.processor_time is None for item in actual.windows[:2]] == [False, True]
    assert actual.windows[0].processor_time == ProcessorTime(
        busy_s=0.75, own_s=0.5, processors=4, services_s=0.125, system_s=0.0625
    )
    assert actual.header.started_at_s == world.record.header.started_at_s
    assert actual.header.provenance["hardware"] == "2x AMD EPYC 7763"
    assert [item.name for item in actual.header.exporters] == [EXPORTER]
    assert {item.name for item in actual.configurations} == {item.name for item in world.record.configurations}
    assert actual.end is not None and actual.end.status == "complete"


def test_the_run_conditions_are_rebuilt(world: World) -> None:
    """They differ between the windows of a configuration, and what did not occur in a window is not in it."""
    assert world.record is not None
    conditions = {"seconds": 10.0, "steal_s": 0.0, "throttled_s": 0.25, "gpu_thermal_s/GPU-1": 1.5}
    given = [
        {} if number == 0 else conditions if number % 2 else {"seconds": 9.0, "gpu_thermal_s/GPU-2": number * 0.1}
        for number, _ in enumerate(world.record.windows)
    ]
    windows = [
        dataclasses.replace(window, conditions=of_window)
        for window, of_window in zip(world.record.windows, given, strict=True)
    ]
    # A number that no window has: another program may have stored it.
    windows[2] = dataclasses.replace(windows[2], conditions={**given[2], "cpu_mhz": math.inf, "steal_s": math.nan})
    record = dataclasses.replace(world.record, windows=tuple(windows))
    rebuilt = rebuild_run(RUN, raw_of(run_samples(record)), "memory")
    assert [window.conditions for window in rebuilt.windows] == given


def test_a_run_that_two_servers_stored_is_rebuilt_once(world: World) -> None:
    """One server missed the end of the run, the other one its beginning."""
    assert world.record is not None
    samples = raw_of(run_samples(world.record))
    middle_s = (T0 + world.end_s) / 2
    copies = []
    for replica, start_s, end_s in (("0", 0.0, middle_s + 4), ("1", middle_s - 4, 4e9)):
        for raw in samples:
            stored_there = (raw.times_s >= start_s) & (raw.times_s <= end_s)
            if stored_there.any():
                labels = {**raw.labels, "prometheus_replica": replica}
                times_s, values = raw.times_s[stored_there], raw.values[stored_there]
                copies.append(dataclasses.replace(raw, labels=labels, times_s=times_s, values=values))
    assert rebuild_run(RUN, copies, "memory") == rebuild_run(RUN, samples, "memory")


def test_prometheus_and_recording_give_the_same_result(
    world: World, mocked: responses.RequestsMock, tmp_path: Path
) -> None:
    """Equal within rounding, from the URL and the id alone and from the file alone."""
    assert world.record is not None
    write_recording(world, tmp_path / "recording.sqlite")
    recording = RecordingSource(tmp_path / "recording.sqlite")
    prometheus = source_of(FakePrometheus(stored(world)), mocked, world)
    try:
        for strip in (lambda record: record, without_edges):
            here = analyze_run(strip(recording.run(RUN)), recording)
            there = analyze_run(strip(prometheus.run(RUN)), prometheus)
            assert len(here.groups) == len(there.groups) == 4
            for mine, theirs in zip(here.groups, there.groups, strict=True):
                for a, b in zip((*mine.components, mine.total), (*theirs.components, theirs.total), strict=True):
                    assert a.gross is not None and b.gross is not None and a.net is not None and b.net is not None
                    assert a.gross.value == pytest.approx(b.gross.value, rel=1e-9)
                    assert a.gross.expanded == pytest.approx(b.gross.expanded, rel=1e-6)
                    assert a.net.value == pytest.approx(b.net.value, rel=1e-9)
                    assert a.methods == b.methods == ("counter",) and a.sources == b.sources
            assert [item.reason for item in here.findings] == [item.reason for item in there.findings]
    finally:
        recording.close()
        prometheus.close()


def test_the_net_energy_of_a_busy_machine_is_withheld_from_prometheus_as_well(
    world: World, mocked: responses.RequestsMock
) -> None:
    """The annotations have no nodename of the exporter, which shows that it is on the harness's machine; the scrapes
    have it."""
    assert world.record is not None
    name = "node1:10717"
    busy = ProcessorTime(busy_s=9.0, own_s=0.0, processors=4)

    def named(edge: Edge | None) -> Edge:
        assert edge is not None
        counters = tuple(dataclasses.replace(counter, exporter=name) for counter in edge.counters)
        clocks = tuple(dataclasses.replace(clock, exporter=name) for clock in edge.clocks)
        return dataclasses.replace(edge, counters=counters, clocks=clocks)

    windows = tuple(
        dataclasses.replace(
            window, processor_time=busy, start_edge=named(window.start_edge), end_edge=named(window.end_edge)
        )
        for window in world.record.windows
    )
    header = dataclasses.replace(
        world.record.header,
        exporters=(ExporterRecord(name=name, url="", nodename="node1"),),
        sensors=tuple(dataclasses.replace(item, exporter=name) for item in world.record.header.sensors),
    )
    record = dataclasses.replace(world.record, header=header, windows=windows)
    samples = [*world.scrapes(instance=name), *raw_of(run_samples(record))]
    source = source_of(FakePrometheus(samples), mocked, world)
    for run in (record, source.run(RUN)):
        result = analyze_run(run, source)
        assert [group.total.net for group in result.groups] == [None] * 4
        assert "idle_busy" in {item.reason for item in result.findings if item.severity == "error"}
    source.close()


def test_pieces_of_time_are_joined_without_loss(world: World, mocked: responses.RequestsMock) -> None:
    """Small pieces, and a server that accepts few samples, give the same history."""
    assert world.record is not None
    spans = run_spans(world.record)
    whole = build_history("memory", world.scrapes())
    fake = FakePrometheus(stored(world), most_samples=900)
    source = source_of(fake, mocked, world, samples_per_query=500)
    history = source.history(spans, world.record.header.exporters)
    source.close()
    assert set(history.counters) == set(whole.counters) == {SensorId.of(item) for item in TWO_SOCKETS}
    for name, counter in history.counters.items():
        inside = whole.counters[name].between(spans[0][0], spans[-1][1])
        mine = counter.between(spans[0][0], spans[-1][1])
        np.testing.assert_array_equal(mine.times_s, inside.times_s)
        np.testing.assert_array_equal(mine.values, inside.values)
    assert any("[" in query and "energy_joules" in query for query in fake.queries)
    assert not any("increase(" in query for query in fake.queries)


@pytest.mark.parametrize("longest_range_s", [32 * 86_400.0, 900.0])
def test_a_server_with_a_longest_range_gives_the_same_run_with_few_queries(
    world: World, mocked: responses.RequestsMock, longest_range_s: float
) -> None:
    """An old run: all the time since its start, and the list of 90 days, are longer than the server accepts."""
    assert world.record is not None
    fake = FakePrometheus(stored(world), longest_range_s=longest_range_s)
    fake.install(mocked)
    now_s = world.end_s + (80 * 86_400.0 if longest_range_s > 3600 else 3600.0)
    source = PrometheusSource(PrometheusClient(PrometheusOptions(URL)), now=lambda: now_s)
    (summary,) = source.runs(now_s - (90 * 86_400.0 if longest_range_s > 3600 else 7200.0), now_s)
    assert (summary.run, summary.status) == (RUN, "complete")
    record = source.run(RUN)
    assert [window.index for window in record.windows] == [window.index for window in world.record.windows]
    assert len(fake.queries) < 60
    spans = run_spans(record)
    history = source.history(spans, world.record.header.exporters)
    source.close()
    assert set(history.counters) == {SensorId.of(item) for item in TWO_SOCKETS}
    assert len(fake.queries) < 200


def test_a_run_is_rebuilt_from_the_series_of_a_pushgateway(world: World) -> None:
    """There the sample times are those of scrapes: the end of a window is a value and its number a label."""
    assert world.record is not None
    later = []
    for raw in raw_of(run_samples(world.record)):
        if raw.name in (catalog.RUN_INFO.name, catalog.RUN_STATUS.name):
            later.append(raw)
            continue
        for at_s, value in zip(raw.times_s, raw.values, strict=True):
            window = next(item for item in world.record.windows if round(item.end_s * 1000) == round(at_s * 1000))
            labels = {**raw.labels, "window": str(window.index), "job": "joulewatch"}
            times = np.array([at_s + 0.7, at_s + 1.7])
            later.append(RawSeries(name=raw.name, labels=labels, times_s=times, values=np.array([value, value])))
            if raw.name == catalog.WINDOW_START.name:
                later.append(
                    RawSeries(
                        name=catalog.WINDOW_END.name, labels=labels, times_s=times, values=np.full(2, window.end_s)
                    )
                )
    actual = rebuild_run(RUN, later, "memory")
    assert [item.index for item in actual.windows] == [item.index for item in world.record.windows]
    assert [item.start_s for item in actual.windows] == [item.start_s for item in world.record.windows]
    assert [item.end_s for item in actual.windows] == [item.end_s for item in world.record.windows]
    assert actual.windows[0].end_edge is not None and len(actual.windows[0].end_edge.counters) == len(TWO_SOCKETS)
    assert [item.processor_time for item in actual.windows] == [item.processor_time for item in world.record.windows]
    # The same windows pushed again by remote write are not counted twice.
    both = rebuild_run(RUN, [*later, *raw_of(run_samples(world.record))], "memory")
    assert len(both.windows) == len(world.record.windows)


def test_an_exporter_with_another_address_is_identified_by_its_machine(
    world: World, mocked: responses.RequestsMock
) -> None:
    assert world.record is not None
    moved = [
        dataclasses.replace(raw, labels={**raw.labels, "instance": "proxy:80"}) if "instance" in raw.labels else raw
        for raw in stored(world)
    ]
    source = source_of(FakePrometheus(moved), mocked, world)
    spans = run_spans(world.record)
    history = source.history(spans, world.record.header.exporters)
    assert {item.exporter for item in history.counters} == {EXPORTER}
    nobody = source.history(spans, (ExporterRecord(name="gone:1", url="http://gone:1", nodename="node9"),))
    assert not nobody.counters
    source.close()


def test_an_address_that_moves_to_another_machine_in_a_run_is_used_up_to_then(
    world: World, mocked: responses.RequestsMock
) -> None:
    """The nodename of each scrape is read only if it changed."""
    assert world.record is not None
    middle_s = (T0 + world.end_s) / 2
    moved = []
    for raw in stored(world):
        if raw.name != catalog.EXPORTER_INFO.name:
            moved.append(raw)
            continue
        for nodename, part in (("node1", raw.times_s < middle_s), ("node2", raw.times_s >= middle_s)):
            labels = {**raw.labels, "nodename": nodename}
            moved.append(dataclasses.replace(raw, labels=labels, times_s=raw.times_s[part], values=raw.values[part]))
    fake = FakePrometheus(moved)
    source = source_of(fake, mocked, world)
    history = source.history(run_spans(world.record), world.record.header.exporters)
    assert [notice.reason for notice in history.notices] == ["identity_conflict"]
    assert all(counter.times_s[-1] < middle_s for counter in history.counters.values())
    assert any(catalog.EXPORTER_INFO.name in query and "ms]" in query for query in fake.queries)
    plain = FakePrometheus(stored(world))
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        source_of(plain, mock, world).history(run_spans(world.record), world.record.header.exporters)
    assert not any(catalog.EXPORTER_INFO.name in query and "ms]" in query for query in plain.queries)
    source.close()


@pytest.mark.parametrize("nodename", ["node1", ""])
def test_halves_of_an_exporter_under_two_addresses_are_the_exporter_of_a_run(
    world: World, mocked: responses.RequestsMock, nodename: str
) -> None:
    """The second address is found by the nodename, also if the run stores none."""
    assert world.record is not None
    middle_s = (T0 + world.end_s) / 2
    halves = []
    for raw in world.scrapes():
        for instance, part in ((EXPORTER, raw.times_s < middle_s), ("proxy:80", raw.times_s >= middle_s)):
            labels = {**raw.labels, "instance": instance}
            halves.append(dataclasses.replace(raw, labels=labels, times_s=raw.times_s[part], values=raw.values[part]))
    source = source_of(FakePrometheus(halves), mocked, world)
    exporters = [dataclasses.replace(world.record.header.exporters[0], nodename=nodename)]
    history = source.history(run_spans(world.record), exporters)
    once = build_history("memory", world.scrapes())
    assert set(history.counters) == set(once.counters)
    for name, counter in history.counters.items():
        first_s, last_s = counter.times_s[[0, -1]]
        assert counter.values.tolist() == once.counters[name].between(first_s, last_s).values.tolist()
        assert first_s < middle_s < last_s
    source.close()


def test_two_scrape_jobs_on_one_exporter_count_once(world: World) -> None:
    twice = [
        *(dataclasses.replace(r, labels={**r.labels, "job": "a"}) for r in world.scrapes()),
        *(
            dataclasses.replace(r, labels={**r.labels, "job": "b"}, times_s=r.times_s[::5], values=r.values[::5])
            for r in world.scrapes()
        ),
    ]
    history = build_history("memory", twice)
    once = build_history("memory", world.scrapes())
    assert [notice.reason for notice in history.notices] == ["targets_merged"]
    for name, counter in history.counters.items():
        np.testing.assert_array_equal(counter.times_s, once.counters[name].times_s)


def test_counters_are_placed_at_their_read_timestamps_and_samples_without_one_are_excluded() -> None:
    times = np.array([1.0, 2.0, 3.0])
    labels = {"instance": "a:1", "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    counter = RawSeries(name=catalog.DEVICE_ENERGY.name, labels=labels, times_s=times, values=np.array([5.0, 6.0, 7.0]))
    device = {"instance": "a:1", "collector": "rapl", "device": "socket0"}
    reads = RawSeries(name=catalog.READ_TIMESTAMP.name, labels=device, times_s=times[:2], values=np.array([1.25, 2.25]))
    (series,) = build_history("memory", [counter, reads]).counters.values()
    assert series.times_s.tolist() == [1.25, 2.25] and series.values.tolist() == [5.0, 6.0]
    # The usual case: every scrape has both.
    all_reads = dataclasses.replace(reads, times_s=times, values=np.array([1.25, 2.25, 3.5]))
    (series,) = build_history("memory", [counter, all_reads]).counters.values()
    assert series.times_s.tolist() == [1.25, 2.25, 3.5] and series.values.tolist() == [5.0, 6.0, 7.0]
    (bare,) = build_history("memory", [counter]).counters.values()
    assert bare.times_s.tolist() == times.tolist()


def test_an_unknown_run_is_an_error_with_the_most_recent_runs(world: World, mocked: responses.RequestsMock) -> None:
    source = source_of(FakePrometheus(stored(world)), mocked, world)
    with pytest.raises(QueryError, match=rf"unknown run '20260921T000000Z-ffffff': the most recent ones are {RUN}"):
        source.run("20260921T000000Z-ffffff")
    with pytest.raises(QueryError, match="is in the future"):
        source.run("20990101T000000Z-ffffff")
    (summary,) = source.runs(T0 - 3600, world.end_s)
    assert (summary.run, summary.status) == (RUN, "complete")
    source.close()
    empty = source_of(FakePrometheus([]), mocked, world)
    with pytest.raises(QueryError):
        empty.run("20260921T000000Z-ffffff")
    empty.close()


def test_events_of_a_sensor_are_counted_inside_a_span() -> None:
    times = T0 + np.arange(10.0)
    labels = {"instance": "a:1", "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    wraps = RawSeries(
        name=catalog.SENSOR_WRAPS.name, labels=labels, times_s=times, values=np.array([2.0, 2, 2, 3, 3, 0, 1, 1, 1, 1])
    )
    device = {"instance": "a:1", "collector": "rapl", "device": "socket0"}
    up = RawSeries(
        name=catalog.SENSOR_UP.name, labels=device, times_s=times, values=np.array([1.0, 1, 1, 1, 1, 1, 1, 0, 1, 1])
    )
    history = build_history("memory", [wraps, up])
    name = SensorId(
        exporter="a:1", scope="device", collector="rapl", component="cpu", device="socket0", domain="package"
    )
    assert history.health(name, T0 + 0.5, T0 + 1.5).clean
    assert history.health(name, T0 + 2.5, T0 + 3.5).wraps == 1
    assert history.health(name, T0 + 2.5, T0 + 6.5).wraps == 2
    assert history.health(name, T0 + 7.2, T0 + 7.5).down


def test_small_helpers(tmp_path: Path) -> None:
    assert merge_spans([(5, 6), (0, 1), (1.5, 2)], 0.5) == [(-0.5, 2.5), (4.5, 6.5)]
    assert run_start_s(RUN) == 1_790_000_000.0
    assert run_start_s("mine") is None and run_start_s("20261399T999999Z-000000") is None
    unknown = unknown_sensor(
        SensorId(exporter="a:1", scope="device", collector="rapl", component="cpu", device="socket0", domain="package")
    )
    assert unknown.method == "unknown" and traits_of(unknown).refresh_s == 0.001
    assert traits_of(sensor("a", "b", collector="hwmon", refresh_s=None)).refresh_s == 0.1
    with pytest.raises(RecordError, match="no such recording"):
        open_source(recording=tmp_path / "none.sqlite")
    assert open_source() is None


def test_a_recording_contains_one_run(world: World, tmp_path: Path) -> None:
    write_recording(world, tmp_path / "recording.sqlite")
    source = open_source(recording=tmp_path / "recording.sqlite")
    assert source is not None
    try:
        assert [item.run for item in source.runs(0, 4e9)] == [RUN] and source.runs(0, 1) == ()
        assert source.run(RUN) == world.record
        with pytest.raises(QueryError, match="this is the recording of"):
            source.run("other")
    finally:
        source.close()


def test_a_killed_run_is_analyzed_up_to_its_last_window(world: World) -> None:
    assert world.record is not None
    cut = dataclasses.replace(world.record, end=None, windows=world.record.windows[:6])
    result = analyze_run(cut, ListSource(world.scrapes()))
    assert any(item.reason == "interrupted" for item in result.findings)
    assert result.groups and result.groups[0].total.gross is not None


# Counts, scenarios and setups


def counting_world(**configuration: object) -> World:
    """Return a run of a language model behind a server that took 3 s to load."""
    world = make_world(TWO_SOCKETS[:1], configurations=("llm/openai/fp16",), batch_sizes=(1,), rounds=2)
    assert world.record is not None
    loaded = tuple(dataclasses.replace(one, **configuration) for one in world.record.configurations)  # type: ignore[arg-type]
    windows = []
    for one in world.record.windows:
        if one.kind == "measure" and one.repeat == 1:
            tokens = {"output_tokens": 128.0 * one.inferences, "input_tokens": 7.5}
            one = dataclasses.replace(one, counts=tokens)
        elif one.kind == "measure":
            one = dataclasses.replace(one, counts={"output_tokens": 130.0 * one.inferences, "input_tokens": 7.5})
        elif "loaded" in one.flags:
            one = dataclasses.replace(one, kind="setup", phase="load", flags=(), configuration=loaded[0].name)
        windows.append(one)
    header = dataclasses.replace(world.record.header, configurations=loaded)
    world.record = dataclasses.replace(world.record, header=header, configurations=loaded, windows=tuple(windows))
    return world


def test_counts_scenario_and_setups_are_rebuilt_from_prometheus(mocked: responses.RequestsMock) -> None:
    """Joules per output token from the URL and the id are the same as from the journal."""
    # The scenario is stored and not part of the name.
    world = counting_world(scenario="server", server_rate_per_s=12.5)
    assert world.record is not None
    source = source_of(FakePrometheus(stored(world)), mocked, world)
    actual = source.run(RUN)
    there = analyze_run(actual, source)
    source.close()
    here = analyze_run(world.record, ListSource(world.scrapes()))
    assert [one.counts for one in actual.windows] == [one.counts for one in world.record.windows]
    assert (actual.configurations[0].scenario, actual.configurations[0].server_rate_per_s) == ("server", 12.5)
    mine, theirs = (
        next(one for one in result.groups[0].counts if one.name == "output_tokens") for result in (there, here)
    )
    assert mine.per_inference == pytest.approx(129, rel=1e-3)
    assert mine.gross is not None and theirs.gross is not None and mine.net is not None and theirs.net is not None
    assert mine.gross.value == pytest.approx(theirs.gross.value, rel=1e-9)
    assert mine.net.expanded == pytest.approx(theirs.net.expanded, rel=1e-6)
    (setup,), (own,) = there.setups, here.setups
    assert (setup.phase, setup.duration_s, setup.window) == ("load", own.duration_s, own.window)
    assert setup.total is not None and setup.total.gross is not None
    assert own.total is not None and own.total.gross is not None
    assert setup.total.gross.value == pytest.approx(own.total.gross.value, rel=1e-9)


@pytest.mark.parametrize(
    ("configuration", "labels", "scenario"),
    [
        ({}, {"scenario": "offline"}, ("", 0.0)),
        ({"scenario": "single_stream"}, {"scenario": "single_stream"}, ("single_stream", 0.0)),
        ({"name": "a/b/fp32/server-50"}, {}, ("server", 50.0)),
        ({"name": "a/b/fp32/server-50"}, {"scenario": "offline"}, ("", 0.0)),
    ],
)
def test_the_scenario_is_a_label_or_in_old_runs_part_of_the_name(
    configuration: dict[str, str], labels: dict[str, str], scenario: tuple[str, float]
) -> None:
    world = counting_world(**{"scenario": "", **configuration})
    assert world.record is not None
    samples = []
    for raw in raw_of(run_samples(world.record)):
        if raw.name == catalog.RUN_INFO.name:
            assert raw.labels["scenario"] == (configuration.get("scenario") or "offline")
            kept = {key: value for key, value in raw.labels.items() if key != "scenario"}
            raw = dataclasses.replace(raw, labels={**kept, **labels})
        samples.append(raw)
    (actual,) = rebuild_run(RUN, samples, "memory").configurations
    assert (actual.scenario, actual.server_rate_per_s) == scenario


def test_a_path_that_an_older_run_delivered_as_the_network_is_shown_by_its_stem() -> None:
    world = counting_world(network="/data/nets/net.onnx", runtime="onnxruntime")
    assert world.record is not None
    (actual,) = rebuild_run(RUN, raw_of(run_samples(world.record)), "memory").configurations
    assert (actual.network, actual.path) == ("net", "/data/nets/net.onnx")


@pytest.mark.parametrize("plan", [{"max_relative_uncertainty": 0.05, "settle_s": 0.25}, {"settle_s": 0.0}, {}])
def test_what_the_uncertainty_needs_of_a_plan_is_rebuilt_from_prometheus(plan: dict[str, float]) -> None:
    """It depends on whether the rounds ended at a target, and on the settle time."""
    world = counting_world()
    assert world.record is not None
    record = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, plan=plan))
    samples = raw_of(run_samples(record))
    assert rebuild_run(RUN, samples, "memory").header.plan == plan
    # Prometheus does not store empty labels; other servers may.
    empty = {"max_relative_uncertainty": "", "settle_seconds": ""}
    samples = [dataclasses.replace(raw, labels={**empty, **raw.labels}) for raw in samples]
    assert rebuild_run(RUN, samples, "memory").header.plan == plan


# Sensors that observe only part of the time


GPU = dataclasses.replace(
    sensor("GPU-1", "total", "gpu", collector="nvml", method="integrated", reads="power", refresh_s=0.1), window_s=None
)


class PartlyObserved(World):
    """A world whose GPU sensor observes 25 of every 100 ms and has a power value at each scrape."""

    def scrapes(self, *, instance: str = EXPORTER) -> list[RawSeries]:
        result = super().scrapes(instance=instance)
        for raw in list(result):
            if raw.name == catalog.ENERGY_BY_SCOPE["device"].name:
                if raw.labels["component"] == "gpu":
                    seen = np.full(raw.times_s.shape, 0.025)
                    result.append(
                        RawSeries(name=catalog.SENSOR_WINDOW.name, labels=raw.labels, times_s=raw.times_s, values=seen)
                    )
                watts = 150.0 + 20.0 * np.where(np.arange(raw.times_s.size) % 2, 1.0, -1.0)
                result.append(
                    RawSeries(name=catalog.DEVICE_POWER.name, labels=raw.labels, times_s=raw.times_s, values=watts)
                )
        return result


def test_the_observed_share_of_the_time_is_read_from_prometheus_and_from_a_recording(
    mocked: responses.RequestsMock, tmp_path: Path
) -> None:
    plain = make_world((GPU, TWO_SOCKETS[0]), batch_sizes=(1,), rounds=2, window_s=4.0, scrape_s=0.1)
    world = PartlyObserved(**{item.name: getattr(plain, item.name) for item in dataclasses.fields(plain)})
    assert world.record is not None
    write_recording(world, tmp_path / "recording.sqlite")
    recording = RecordingSource(tmp_path / "recording.sqlite")
    prometheus = source_of(FakePrometheus(stored(world)), mocked, world)
    try:
        for source in (recording, prometheus):
            history = source.history(run_spans(world.record), world.record.header.exporters)
            # The power of the CPU is not needed.
            assert set(history.readings) == {SensorId.of(GPU)} and not history.powers
            result = analyze_run(source.run(RUN), source)
            by_name = {item.name: item.gross for item in result.groups[0].components}
            gpu, cpu = by_name["gpu"], by_name["cpu"]
            assert gpu is not None and cpu is not None
            assert "unseen" not in {line.name for line in cpu.budget}
            (line,) = [line for line in gpu.budget if line.name == "unseen"]
            # 130 and 170 W alternate: s = 28.3 W; 40 periods and about 40 values in each of two windows.
            joules = 4.0 * math.sqrt(800) * math.sqrt(0.75 / 40) / math.sqrt(2)
            assert line.standard * result.groups[0].inferences / 2 == pytest.approx(joules, rel=0.15)
            assert next(item for item in result.sensors if item.component == "gpu").window_s == 0.025
    finally:
        recording.close()
        prometheus.close()
