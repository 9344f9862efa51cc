"""From raw samples to the series, metadata and events of each sensor."""

from __future__ import annotations

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import Metric
from joulewatch_harness.analysis.sources.history import (
    Health,
    History,
    RawSeries,
    build_history,
    merge_spans,
    refresh_s_of,
    traits_of,
    unknown_sensor,
)
from joulewatch_harness.analysis.sources.series import SensorId, Series, Traits
from joulewatch_harness.records import ExporterRecord, SensorRecord

PACKAGE = {"collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
DEVICE = {"collector": "rapl", "device": "socket0"}
ID = SensorId(exporter="a:1", scope="device", **PACKAGE)
NODE = SensorId(exporter="a:1", scope="node", collector="ipmi", component="node", device="bmc", domain="total")
TIMES = (1.0, 2.0, 3.0)


def raw(metric: Metric, values: tuple[float, ...], times: tuple[float, ...] = TIMES, **labels: str) -> RawSeries:
    sensor = DEVICE if "domain" not in metric.labels else PACKAGE
    return RawSeries(
        name=metric.name,
        labels={"instance": "a:1", **sensor, **labels},
        times_s=np.array(times[: len(values)], dtype=np.float64),
        values=np.array(values, dtype=np.float64),
    )


def lists(series: Series) -> tuple[list[float], list[float]]:
    return series.times_s.tolist(), series.values.tolist()


def record(sensor: SensorId = ID, **values: object) -> SensorRecord:
    return SensorRecord(
        exporter=sensor.exporter,
        scope=sensor.scope,
        collector=sensor.collector,
        component=sensor.component,
        device=sensor.device,
        domain=sensor.domain,
        **{"method": "unknown", **values},  # type: ignore[arg-type]
    )


def test_spans_that_touch_after_widening_are_joined() -> None:
    assert merge_spans([(5.0, 6.0), (0.0, 4.0)], 0.5) == [(-0.5, 6.5)]
    assert merge_spans([(5.0, 6.0), (0.0, 3.5)], 0.5) == [(-0.5, 4.0), (4.5, 6.5)]
    assert merge_spans([(0.0, 9.0), (1.0, 2.0), (8.0, 8.5)], 0.0) == [(0.0, 9.0)]
    assert merge_spans([], 1.0) == []


def test_the_limits_of_a_sensor_come_from_its_metadata() -> None:
    full = record(refresh_s=0.25, resolution="2 J", accuracy=0.05, window_s=0.125)
    assert traits_of(full) == Traits(
        refresh_s=0.25, resolution_joules=2.0, accuracy=0.05, family="rapl", window_s=0.125
    )
    assert traits_of(record(resolution="12 mW")).resolution_watts == 0.012
    assert traits_of(record(resolution="10 ms of one CPU")) == traits_of(record())
    assert traits_of(record()) == Traits(refresh_s=0.001, family="rapl")
    assert traits_of(record(NODE)) == Traits(refresh_s=5.0, family="ipmi")
    assert traits_of(record(refresh_s=0.0)).refresh_s == 0.0


@pytest.mark.parametrize(
    ("values", "refresh_s"),
    [
        ({"method": "counter", "reads": "energy"}, 0.1),
        ({"method": "counter", "reads": "energy", "read_mode": "on_request"}, 0.1),
        ({"method": "counter", "reads": "energy", "read_mode": "polled"}, 5.0),
        ({"method": "counter", "reads": "energy", "read_mode": "remote"}, 5.0),
        ({"method": "integrated", "reads": "power", "read_mode": "on_request"}, 5.0),
        ({"method": "integrated"}, 5.0),
        ({"method": "emulated", "reads": "energy"}, 0.1),
        ({"method": "emulated", "reads": "power"}, 5.0),
        ({"method": "estimated", "reads": "energy", "read_mode": "polled"}, 0.1),
        ({"method": "unknown"}, 5.0),
        ({"method": "a later one"}, 5.0),
        ({"method": "unknown", "refresh_s": 0.25}, 0.25),
    ],
)
def test_an_unknown_refresh_is_assumed_by_how_the_sensor_is_read(values: dict[str, object], refresh_s: float) -> None:
    assert refresh_s_of(record(NODE, **values)) == refresh_s


def every(refresh_s: float, sample_s: float, metric: Metric = catalog.DEVICE_ENERGY) -> Series:
    """Return a minute and more of samples of a value that changes once per refresh period."""
    times_s = np.arange(0.0, max(20 * refresh_s, 60.0), sample_s)
    return Series(times_s, np.floor(times_s / refresh_s + 1e-9), {"__name__": metric.name})


@pytest.mark.parametrize(
    ("refresh_s", "sample_s", "expected_s"),
    [
        (1.0, 0.1, 1.0),
        (20.0, 1.0, 20.0),
        (20.0, 15.0, 15.0),
        (0.01, 1.0, 1.0),
        (0.01, 15.0, 5.0),  # changes at every sample: it may be faster
    ],
)
def test_an_unknown_refresh_is_measured_from_the_samples(refresh_s: float, sample_s: float, expected_s: float) -> None:
    for sensor, metric in ((record(NODE), catalog.NODE_ENERGY), (record(NODE, reads="power"), catalog.NODE_POWER)):
        assert refresh_s_of(sensor, every(refresh_s, sample_s, metric)) == pytest.approx(expected_s)
        assert traits_of(sensor, every(refresh_s, sample_s, metric)).refresh_s == pytest.approx(expected_s)
    known = record(NODE, refresh_s=0.5)
    assert refresh_s_of(known, every(refresh_s, sample_s)) == 0.5


def test_samples_that_show_no_refresh_change_nothing() -> None:
    """An integral of power changes with every reading, a power model computes when it is read, a rest is no refresh."""
    assert refresh_s_of(record(NODE, method="integrated"), every(1.0, 0.1, catalog.NODE_ENERGY)) == 5.0
    assert refresh_s_of(record(NODE, method="estimated"), every(15.0, 1.0)) == 0.1
    times_s = np.arange(0.0, 60.0)
    once = Series(times_s, np.where(times_s > 30, 1.0, 0.0))
    assert refresh_s_of(record(NODE), once) == 5.0
    assert refresh_s_of(record(NODE), Series(times_s[:1], times_s[:1])) == 5.0


def test_a_sensor_without_metadata_is_estimated_or_unknown() -> None:
    assert unknown_sensor(NODE) == record(NODE)
    estimate = SensorId(**{**PACKAGE, "collector": "estimate"}, exporter="a:1", scope="device")
    assert unknown_sensor(estimate) == record(estimate, method="estimated")


def test_health_is_the_rise_of_each_counter_across_the_span() -> None:
    times = np.arange(10.0)
    series = {
        "wraps": Series(times, np.array([2.0, 2, 2, 3, 4, 0, 5, 5, 5, 5])),
        "unmeasured_s": Series(times, np.array([0.0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 2])),
    }
    up = Series(times, np.array([1.0, 1, 1, 1, 1, 1, 1, 0, 1, 1]))
    history = History(source="", diagnostics={("a:1", *PACKAGE.values()): series}, ups={("a:1", "rapl", "socket0"): up})
    assert history.health(ID, 2.5, 3.5) == Health(wraps=2.0, unmeasured_s=0.5)
    assert history.health(ID, 3.0, 6.0) == Health(wraps=6.0), "what a restart takes away is not counted"
    assert history.health(ID, 0.0, 2.0) == Health() and history.health(ID, 0.0, 2.0).clean
    assert history.health(ID, 6.5, 6.75) == Health(down=True), "down from the sample after the span on"
    assert history.health(NODE, 0.0, 9.0) == Health()


def test_a_history_has_all_that_its_samples_show() -> None:
    bmc = {"collector": "ipmi", "component": "node", "device": "bmc", "domain": "total"}
    history = build_history(
        "memory",
        [
            raw(catalog.DEVICE_ENERGY, (5.0, 6.0, 7.0)),
            raw(catalog.READ_TIMESTAMP, (0.75, 1.75, 2.75)),
            raw(catalog.NODE_POWER, (90.0, 91.0, 92.0), **bmc),
            raw(catalog.EXPORTER_START, (-100.0, 40.0, 40.0)),
            raw(
                catalog.SENSOR_INFO, (1.0, 1.0), scope="device", method="counter", reads="energy", model="EPYC",
                source="powercap", resolution="2 J", accuracy="0.05",
            ),
            raw(catalog.SENSOR_REFRESH, (0.5, 0.25)),
            raw(catalog.SENSOR_WRAPS, (0.0, 0.0, 1.0)),
            raw(catalog.SENSOR_RESETS, (1.0, 1.0, 1.0)),
            raw(catalog.SENSOR_UP, (1.0, 0.0, 1.0)),
            raw(catalog.SENSOR_UP, (1.0, 1.0, 1.0), device="socket1"),
            raw(catalog.EXPORTER_INFO, (1.0,)),
        ],
    )  # fmt: skip
    assert history.source == "memory"
    assert {key: lists(series) for key, series in history.counters.items()} == {
        ID: ([0.75, 1.75, 2.75], [5.0, 6.0, 7.0])
    }
    assert {key: lists(series) for key, series in history.powers.items()} == {
        NODE: ([1.0, 2.0, 3.0], [90.0, 91.0, 92.0])
    }
    assert history.counters[ID].metric == {"__name__": catalog.DEVICE_ENERGY.name, "instance": "a:1", **PACKAGE}
    assert history.powers[NODE].metric == {"__name__": catalog.NODE_POWER.name, "instance": "a:1", **bmc}
    assert history.readings == {}
    assert {name: starts.tolist() for name, starts in history.starts.items()} == {"a:1": [-100.0, 40.0]}
    assert history.sensors == {
        ID: record(
            method="counter", reads="energy", model="EPYC", source="powercap", resolution="2 J", accuracy=0.05,
            refresh_s=0.25,
        ),
        NODE: record(NODE),
    }  # fmt: skip
    assert {key: {kind: lists(one) for kind, one in kinds.items()} for key, kinds in history.diagnostics.items()} == {
        ("a:1", *PACKAGE.values()): {"wraps": ([1.0, 2.0, 3.0], [0.0, 0.0, 1.0])}
    }
    assert {key: lists(series) for key, series in history.ups.items()} == {
        ("a:1", "rapl", "socket0"): ([1.0, 2.0, 3.0], [1.0, 0.0, 1.0])
    }


def test_a_device_that_was_asleep_is_a_notice_and_not_a_failure() -> None:
    """Also a device that slept all the time and has no sensor: it is missing in every sum."""
    history = build_history(
        "",
        [
            raw(catalog.SENSOR_UP, (0.0, 0.0, 1.0)),
            raw(catalog.SENSOR_STATE, (1.0,), state="asleep"),
            raw(catalog.SENSOR_STATE, (1.0,), (2.0,), state="glitch"),
            raw(catalog.SENSOR_STATE, (1.0,), (3.0,), state="ok"),
            raw(catalog.SENSOR_STATE, (1.0, 1.0, 1.0), device="gpu", state="asleep"),
        ],
    )
    assert history.sensors == {}
    assert {(notice.severity, notice.reason, notice.text.partition(" was ")[0]) for notice in history.notices} == {
        ("info", "sensor_asleep", "a:1/rapl/socket0"),
        ("info", "sensor_asleep", "a:1/rapl/gpu"),
    }
    assert history.health(ID, 0.5, 0.75) == Health(down=True, asleep=True)
    assert history.health(ID, 2.1, 2.9) == Health(down=True)
    assert history.health(ID, 3.1, 4.0) == Health()


@pytest.mark.parametrize(("label", "primary"), [("1", True), ("0", False), ("", None)])
def test_how_a_sensor_is_read_its_host_and_the_primary_sensor_come_from_its_metadata(
    label: str, primary: bool | None
) -> None:
    info = raw(catalog.SENSOR_INFO, (1.0,), scope="device", read_mode="background", primary=label, host="node1")
    (stored,) = build_history("", [info]).sensors.values()
    assert (stored.read_mode, stored.primary, stored.host) == ("background", primary, "node1")


def test_metadata_may_be_missing() -> None:
    bare = RawSeries(
        name=catalog.SENSOR_INFO.name, labels={"scope": "part"}, times_s=np.array([1.0]), values=np.array([1.0])
    )
    nameless = SensorId(exporter="", scope="part", collector="", component="", device="", domain="")
    assert build_history("", [bare]).sensors == {nameless: record(nameless, accuracy=None)}
    scopeless = RawSeries(name=catalog.SENSOR_INFO.name, labels={}, times_s=np.array([1.0]), values=np.array([1.0]))
    (found,) = build_history("", [scopeless]).sensors
    assert found.scope == ""
    empty = [raw(metric, ()) for metric in (catalog.SENSOR_REFRESH, catalog.SENSOR_WRAPS, catalog.SENSOR_UP)]
    history = build_history("", empty)
    assert (history.sensors, history.diagnostics, history.ups) == ({}, {}, {})


def test_a_label_that_is_not_set_is_empty_everywhere() -> None:
    """Prometheus stores no empty label: the refresh period of a sensor without a domain is still its own."""
    labels = {"instance": "a:1", "collector": "rapl", "device": "socket0"}
    bare = [
        RawSeries(name=metric.name, labels=labels, times_s=np.array([1.0, 2.0]), values=np.array(values))
        for metric, values in ((catalog.DEVICE_ENERGY, [5.0, 6.0]), (catalog.SENSOR_REFRESH, [0.5, 0.5]))
    ]
    (record,) = build_history("", bare).sensors.values()
    assert (record.component, record.domain, record.refresh_s) == ("", "", 0.5)


def test_exporters_have_their_names_of_the_run() -> None:
    samples = [raw(catalog.DEVICE_ENERGY, (5.0, 6.0)), raw(catalog.DEVICE_ENERGY, (5.0, 6.0), instance="b:1")]
    history = build_history("", samples, [ExporterRecord(name="b:1", url="")])
    assert [sensor.exporter for sensor in history.counters] == ["b:1"]


def test_a_second_job_of_one_exporter_fills_the_gaps_of_the_longer_one_with_its_own_read_timestamps() -> None:
    def of_job(job: str, times: tuple[float, ...], late_s: float) -> list[RawSeries]:
        reads = tuple(at_s + late_s for at_s in times)
        joules = tuple(10 * at_s for at_s in reads)
        return [
            raw(catalog.DEVICE_ENERGY, joules, times, job=job),
            raw(catalog.READ_TIMESTAMP, reads, times, job=job),
        ]

    fast = of_job("fast", (1.0, 2.0, 3.0, 6.0, 7.0), 0.25)
    slow = of_job("slow", (3.5, 5.5, 8.5), 0.125)
    for samples in ([*fast, *slow], [*slow, *fast]):
        times, values = lists(build_history("", samples).counters[ID])
        assert times == [1.25, 2.25, 3.25, 5.625, 6.25, 7.25, 8.625]
        assert values == [10 * at_s for at_s in times]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_several_descriptions_the_most_doubtful_counts(order: tuple[int, ...]) -> None:
    methods = ("counter", "integrated", "guessed")
    infos = [raw(catalog.SENSOR_INFO, (1.0,), scope="device", method=methods[index]) for index in order]
    assert build_history("", infos).sensors[ID].method == "guessed"
    known = [one for one in infos if one.labels["method"] != "guessed"]
    assert build_history("", known).sensors[ID].method == "integrated"
    two = [raw(catalog.SENSOR_INFO, (1.0,), scope="device", method="counter", model=model) for model in ("a", "b")]
    assert build_history("", two).sensors[ID].model == "a", "equally doubtful: the first"


def test_the_longest_of_several_refresh_periods_counts_as_it_was_last() -> None:
    periods = [
        raw(catalog.SENSOR_REFRESH, values, job=job)
        for values, job in (((9.0, 0.25), "a"), ((0.5,), "b"), ((0.125,), "c"))
    ]
    history = build_history("", [raw(catalog.DEVICE_ENERGY, (1.0, 2.0)), *periods])
    assert history.sensors[ID].refresh_s == 0.5


def test_power_of_a_sensor_that_observes_part_of_the_time_is_always_kept() -> None:
    counter, watts = raw(catalog.DEVICE_ENERGY, (5.0, 6.0)), raw(catalog.DEVICE_POWER, (90.0, 110.0))
    window = raw(catalog.SENSOR_WINDOW, (0.025,))
    bmc = {"collector": "ipmi", "component": "node", "device": "bmc", "domain": "total"}
    gauge = raw(catalog.NODE_POWER, (1.0, 2.0), **bmc)
    for power in (False, True):
        history = build_history("", [counter, watts, window, gauge], power=power)
        assert list(history.readings) == [ID] and lists(history.readings[ID])[1] == [90.0, 110.0]
        assert list(history.powers) == ([NODE] if power else [])
        assert list(history.sensors) == ([ID, NODE] if power else [ID])
        assert history.sensors[ID].window_s == 0.025
    assert list(build_history("", [gauge]).powers) == [NODE], "by default power is included"
    without = build_history("", [counter, watts], power=True)
    assert (without.readings, without.powers, without.sensors[ID].window_s) == ({}, {}, None)


@pytest.mark.parametrize(
    ("read_times", "reads", "times", "values"),
    [
        ((1.0, 2.0, 3.0), (0.5, 1.5, 2.5), [0.5, 1.5, 2.5], [5.0, 6.0, 7.0]),
        ((2.0, 3.0, 4.0), (1.5, 2.5, 3.5), [1.5, 2.5], [6.0, 7.0]),
        ((3.0,), (2.5,), [2.5], [7.0]),
        ((8.0,), (7.5,), [], []),
    ],
)
def test_samples_are_placed_at_the_read_timestamps_of_the_same_scrape(
    read_times: tuple[float, ...], reads: tuple[float, ...], times: list[float], values: list[float]
) -> None:
    counter = raw(catalog.DEVICE_ENERGY, (5.0, 6.0, 7.0))
    series = build_history("", [counter, raw(catalog.READ_TIMESTAMP, reads, read_times)]).counters[ID]
    assert lists(series) == (times, values)
    assert series.metric == {"__name__": catalog.DEVICE_ENERGY.name, "instance": "a:1", **PACKAGE}


# Clocks that were set


def stepped(step_s: float, at_s: float, end_s: float = 1000.0) -> History:
    """Return 100 W, scraped each second by a server with the right time, from an exporter whose clock is set."""
    sampled_s = np.arange(0.0, end_s)
    read_s = sampled_s + 0.01 + np.where(sampled_s >= at_s, step_s, 0.0)
    return build_history(
        "memory",
        [
            raw(catalog.DEVICE_ENERGY, tuple(100 * sampled_s), tuple(sampled_s)),
            raw(catalog.READ_TIMESTAMP, tuple(read_s), tuple(sampled_s)),
        ],
    )


@pytest.mark.parametrize("step_s", [300.0, -300.0, -2.0])
@pytest.mark.parametrize(("at_s", "kept"), [(300.0, 700), (700.0, 700), (999.0, 999), (1.0, 999)])
def test_samples_on_the_other_side_of_a_step_are_excluded(step_s: float, at_s: float, kept: int) -> None:
    """Before, a clock that was set back put 300 s of energy between two samples."""
    history = stepped(step_s, at_s)
    counter = history.counters[ID]
    assert len(counter) == kept
    assert np.diff(counter.values) / np.diff(counter.times_s) == pytest.approx(np.full(kept - 1, 100.0))
    (notice,) = history.notices
    assert (notice.severity, notice.reason, notice.exporter) == ("warning", "clock_stepped", "a:1")
    excluded = "1 of 1000 samples is" if kept == 999 else f"{1000 - kept} of 1000 samples are"
    assert notice.text.startswith(f"a:1: its clock was set at {at_s:.0f} (Unix seconds); {excluded} on the other side")


@pytest.mark.parametrize("step_s", [0.0, 0.5, -0.5, 30.0])
def test_readings_that_are_late_or_slewed_are_on_one_clock(step_s: float) -> None:
    """A reading in the background gets up to a minute newer at once; a clock that is slewed never falls."""
    history = stepped(step_s, 500.0)
    assert len(history.counters[ID]) == 1000
    assert history.notices == ()


def test_an_empty_series_of_read_timestamps_has_no_step() -> None:
    history = build_history("memory", [raw(catalog.DEVICE_ENERGY, (1.0, 2.0)), raw(catalog.READ_TIMESTAMP, ())])
    assert history.notices == ()
    assert lists(history.counters[ID]) == ([], [])


def read_by(exporter: str, nodename: str, method: str = "counter") -> list[RawSeries]:
    """Return the samples of an exporter that started at its own time, and reads one package."""
    start = float(sum(map(ord, exporter)))
    return [
        raw(catalog.EXPORTER_INFO, (1.0,) * 3, instance=exporter, nodename=nodename),
        raw(catalog.EXPORTER_START, (start,) * 3, instance=exporter),
        raw(catalog.SENSOR_INFO, (1.0,) * 3, instance=exporter, scope="device", method=method),
        raw(catalog.DEVICE_ENERGY, (5.0, 6.0, 7.0), instance=exporter),
    ]


@pytest.mark.parametrize(
    ("nodename", "method", "found"),
    [
        ("node1", "counter", True),
        ("node1", "estimated", True),
        ("node1", "emulated", False),
        ("node2", "counter", False),
    ],
)
def test_a_device_that_two_exporters_of_one_machine_read_is_a_notice(nodename: str, method: str, found: bool) -> None:
    history = build_history("", [*read_by("a:1", "node1", method), *read_by("b:2", nodename, method)])
    assert len(history.counters) == 2
    notices = [(notice.severity, notice.reason) for notice in history.notices]
    assert notices == ([("warning", "identity_conflict")] if found else [])
    if found:
        text = history.notices[0].text
        assert text.startswith("a:1 and b:2: two exporters with the nodename node1 both read socket0/package;")
