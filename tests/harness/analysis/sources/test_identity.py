"""Whose series is it? The identity of the exporter decides, and different exporters are never merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import Metric
from joulewatch_harness.analysis.sources.history import History, RawSeries, build_history
from joulewatch_harness.errors import IdentityError
from joulewatch_harness.records import ExporterRecord

SECONDS = tuple(range(20))
SOCKETS = ("socket0", "socket1")


def scraped(
    *,
    node: str = "n1",
    start_s: float = -100.0,
    watts: float = 10.0,
    times: Iterable[float] = SECONDS,
    read_late_s: float = 0.125,
    devices: Sequence[str] = SOCKETS,
    own_domain: str = "package",
    honor_labels: bool = False,
    info: bool = True,
    reads: bool = True,
    more: Mapping[str, str] | None = None,
    **target: str,
) -> list[RawSeries]:
    """Return what Prometheus stores of an exporter whose counters rise with ``watts`` since its start.

    Args:
        more: Further labels of ``joulewatch_sensor_info``.
        target: Target labels; where one has the name of a label of the exporter, that is renamed, or replaces it if
            the job has ``honor_labels``.
    """
    at_s = np.array(list(times), dtype=np.float64)
    read_s = at_s + read_late_s

    def stored(metric: Metric, values: np.ndarray, **own: str) -> RawSeries:
        labels = dict(target)
        for name, value in own.items():
            if value:
                labels[f"exported_{name}" if name in target and not honor_labels else name] = value
        return RawSeries(name=metric.name, labels=labels, times_s=at_s, values=values)

    series = [stored(catalog.EXPORTER_START, np.full(at_s.shape, start_s))]
    if info:
        series.append(stored(catalog.EXPORTER_INFO, np.ones(at_s.shape), version="0", nodename=node, emulated="0"))
    for device in devices:
        sensor = {"collector": "rapl", "component": "cpu", "device": device, "domain": own_domain}
        series.append(stored(catalog.DEVICE_ENERGY, watts * (read_s - start_s), **sensor))
        described = {"scope": "device", **sensor, "method": "counter", **(more or {})}
        series.append(stored(catalog.SENSOR_INFO, np.ones(at_s.shape), **described))
        if reads:
            series.append(stored(catalog.READ_TIMESTAMP, read_s, collector="rapl", device=device))
    return series


def names(history: History) -> list[str]:
    return sorted({sensor.exporter for sensor in history.counters})


def reasons(history: History) -> list[tuple[str, str]]:
    return [(notice.severity, notice.reason) for notice in history.notices]


def sample_count(history: History) -> list[int]:
    return [len(counter) for counter in history.counters.values()]


# One exporter under several targets


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"instance": "a:1", "job": "x"}, {"instance": "a:1", "job": "y"}),
        ({"instance": "127.0.0.1:1"}, {"instance": "localhost:1"}),
        ({"instance": "a:1", "prometheus_replica": "0"}, {"instance": "a:1", "prometheus_replica": "1"}),
        ({"instance": "a:1", "cluster": "x"}, {"instance": "b:1", "cluster": "y", "job": "z"}),
    ],
)
def test_targets_with_one_nodename_and_start_time_are_one_exporter(
    first: dict[str, str], second: dict[str, str]
) -> None:
    history = build_history("", [*scraped(**first), *scraped(read_late_s=0.25, **second)])
    assert names(history) == [first["instance"]]
    assert sample_count(history) == [20, 20]
    ((severity, reason),) = reasons(history)
    assert (severity, reason) == ("info", "targets_merged")
    assert history.notices[0].text.startswith(f"{first['instance']}: one exporter, stored under 2 targets (")
    assert history.starts[first["instance"]].tolist() == [-100.0]


def test_halves_that_two_servers_stored_are_joined() -> None:
    halves = [
        *scraped(times=SECONDS[:8], instance="a:1", replica="0"),
        *scraped(times=SECONDS[12:], read_late_s=0.25, instance="a:1", replica="1"),
    ]
    history = build_history("", halves)
    for counter in history.counters.values():
        assert counter.times_s.tolist() == [at_s + 0.125 for at_s in range(8)] + [at_s + 0.25 for at_s in range(12, 20)]
        np.testing.assert_allclose(np.diff(counter.values), 10.0 * np.diff(counter.times_s))


def test_a_missing_scrape_is_filled_by_the_other_server_whatever_its_offset() -> None:
    for offset_s in (0.02, 0.3, 0.5, 0.7, 0.98):
        lossy = [at_s for at_s in SECONDS if at_s not in (4, 11)]
        other = [at_s + offset_s for at_s in SECONDS if at_s != 15]
        history = build_history(
            "", [*scraped(times=lossy, instance="a:1", job="x"), *scraped(times=other, instance="a:1", job="y")]
        )
        for counter in history.counters.values():
            spacings = np.diff(counter.times_s)
            assert spacings.max() < 1.6 and np.median(spacings) >= 0.4, offset_s


def test_targets_of_one_identity_whose_counters_contradict_each_other_are_an_error() -> None:
    """As of a virtual machine that was cloned while its exporter ran."""
    clones = [*scraped(instance="a:1", pool="x"), *scraped(watts=30.0, read_late_s=0.5, instance="b:1", pool="y")]
    with pytest.raises(IdentityError, match=r"a:1: 2 targets seem to be one exporter .* --match instance=a:1"):
        build_history("", clones)


def test_one_exporter_with_a_restart_is_merged() -> None:
    def part(job: str, start_s: float, times: Sequence[int]) -> list[RawSeries]:
        return scraped(start_s=start_s, times=times, instance="a:1", job=job)

    both = [
        *joined(part("x", -100.0, range(10)), part("x", 10.5, range(11, 20))),
        *joined(part("y", -100.0, range(10)), part("y", 10.5, range(11, 20))),
    ]
    history = build_history("", both)
    assert reasons(history) == [("info", "targets_merged")]
    assert history.starts["a:1"].tolist() == [-100.0, 10.5] and sample_count(history) == [19, 19]


def joined(first: list[RawSeries], second: list[RawSeries]) -> list[RawSeries]:
    """Return the series of two spans of time; equal labels are one series."""
    parts: dict[tuple[str, frozenset[tuple[str, str]]], list[RawSeries]] = {}
    for raw in (*first, *second):
        parts.setdefault((raw.name, frozenset(raw.labels.items())), []).append(raw)
    return [
        RawSeries(
            name=several[0].name,
            labels=several[0].labels,
            times_s=np.concatenate([raw.times_s for raw in several]),
            values=np.concatenate([raw.values for raw in several]),
        )
        for several in parts.values()
    ]


def test_a_later_start_at_the_same_target_is_a_restart() -> None:
    restarted = joined(
        scraped(times=range(10), instance="a:1"), scraped(times=range(11, 20), start_s=10.5, instance="a:1")
    )
    history = build_history("", restarted)
    assert names(history) == ["a:1"] and not history.notices
    assert history.starts["a:1"].tolist() == [-100.0, 10.5]


def test_a_restart_that_changes_a_label_is_a_restart() -> None:
    pods = [
        *scraped(times=range(10), instance="a:1", pod="exporter-a"),
        *scraped(times=range(11, 20), start_s=10.5, instance="a:1", pod="exporter-b"),
    ]
    history = build_history("", pods)
    assert names(history) == ["a:1"] and sample_count(history) == [19, 19]
    assert history.starts["a:1"].tolist() == [-100.0, 10.5]
    assert "pod=exporter-a; pod=exporter-b" in history.notices[0].text


@pytest.mark.parametrize(
    "second",
    [
        {"times": range(8, 20), "start_s": 7.5},  # at the same time
        {"times": range(11, 20), "start_s": -200.0},  # started before
        {"times": range(11, 20), "start_s": 10.5, "node": "n2"},  # another machine
    ],
)
def test_only_a_later_start_of_the_same_machine_is_a_restart(second: dict[str, Any]) -> None:
    first = scraped(times=range(10), instance="a:1", pod="exporter-a")
    with pytest.raises(IdentityError, match="--match pod=exporter-a"):
        build_history("", [*first, *scraped(**second, instance="a:1", pod="exporter-b")])


# Different exporters


CLUSTERS = [
    *scraped(node="n1", instance="10.0.0.5:10717", job="j", cluster="x"),
    *scraped(node="n2", watts=70.0, start_s=-50.0, instance="10.0.0.5:10717", job="j", cluster="y"),
]


def test_two_exporters_with_one_address_are_an_error_that_names_the_label() -> None:
    with pytest.raises(IdentityError) as caught:
        build_history("", CLUSTERS)
    assert str(caught.value) == (
        "10.0.0.5:10717: 2 different exporters have this address (cluster=x: nodename n1, started 1969-12-31 23:58:20 "
        "UTC; cluster=y: nodename n2, started 1969-12-31 23:59:10 UTC); select one with --match cluster=x"
    )
    assert caught.value.exit_code == 2


def test_equal_nodenames_do_not_make_two_exporters_one() -> None:
    """Containers of one image have one nodename; their exporters started at different times."""
    history = build_history("", [*scraped(instance="a:1"), *scraped(start_s=-50.0, watts=3.0, instance="b:1")])
    assert names(history) == ["a:1", "b:1"]
    assert [notice.reason for notice in history.notices] == ["identity_conflict"], "or one machine is read twice"
    with pytest.raises(IdentityError, match="--match 'rack=row 1'"):
        build_history("", [*scraped(instance="a:1", rack="row 1"), *scraped(start_s=-50.0, instance="a:1")])


def test_many_exporters_with_one_address_are_a_short_error() -> None:
    many = [raw for n in range(40) for raw in scraped(node=f"n{n}", start_s=-n, instance="localhost:1", host=f"h{n}")]
    with pytest.raises(
        IdentityError, match=r"40 different exporters .*; \.\.\.\); select one with --match host=h"
    ) as caught:
        build_history("", many)
    assert len(str(caught.value)) < 400


def test_two_exporters_behind_one_target_are_an_error() -> None:
    """A load balancer: no label distinguishes the exporters, and their start times alternate."""
    balanced = joined(
        joined(scraped(times=range(5), instance="a:1"), scraped(times=range(5, 9), start_s=-7.0, instance="a:1")),
        scraped(times=range(9, 14), instance="a:1"),
    )
    with pytest.raises(IdentityError, match="a:1: several exporters answer at this address"):
        build_history("", balanced)


def test_exporters_with_one_address_and_no_series_in_common_have_the_label_in_their_names() -> None:
    apart = [
        *scraped(instance="nodeB", job="cpu", rack="r"),
        *scraped(start_s=-50.0, devices=["card0"], instance="nodeB", job="cards", rack="r"),
    ]
    history = build_history("", apart)
    assert names(history) == ["nodeB{job=cards}", "nodeB{job=cpu}"]
    assert {name: starts.tolist() for name, starts in history.starts.items()} == {
        "nodeB{job=cpu}": [-100.0],
        "nodeB{job=cards}": [-50.0],
    }


def test_an_exporter_without_samples_does_not_conflict() -> None:
    dead = scraped(node="n2", start_s=-7.0, devices=[], instance="a:1", cluster="y")
    history = build_history("", [*scraped(instance="a:1", cluster="x"), *dead])
    assert names(history) == ["a:1"] and history.starts["a:1"].tolist() == [-100.0]


def test_a_target_without_an_identity_joins_no_two_exporters() -> None:
    first, second = scraped(instance="a:1", job="x"), scraped(start_s=-50.0, instance="a:1", job="y")
    with pytest.raises(IdentityError, match="3 different exporters"):
        build_history("", [*first, *second, *scraped(info=False, instance="a:1", job="z")])


# Without an identity


def test_without_an_identity_all_labels_but_job_and_replica_decide() -> None:
    foreign = {"info": False, "instance": "a:1"}
    one = [
        *scraped(**foreign, job="x", replica="0"),
        *scraped(**foreign, job="y", __replica__="1"),
    ]
    history = build_history("", one)
    assert sample_count(history) == [20, 20] and reasons(history) == [("info", "targets_merged")]
    two = [*scraped(**foreign, site="p"), *scraped(**foreign, site="q")]
    with pytest.raises(IdentityError, match=r"site=p: started .* --match site=p"):
        build_history("", two)


def test_servers_without_read_timestamps_stamp_one_scrape_with_different_times() -> None:
    """The second server's sample before a slow read is lower than the first one's, and no contradiction."""
    slow = scraped(reads=False, read_late_s=0.1, instance="a:1", job="x")
    quick = scraped(reads=False, times=[at_s + 0.05 for at_s in SECONDS], read_late_s=0.0, instance="a:1", job="y")
    history = build_history("", [*slow, *quick])
    for counter in history.counters.values():
        assert counter.times_s.tolist() == list(SECONDS) and (np.diff(counter.values) > 0).all()


# Labels


@pytest.mark.parametrize("honor_labels", [False, True])
def test_labels_of_the_exporter_are_found_where_target_labels_have_their_names(honor_labels: bool) -> None:
    target = {"instance": "nodeB", "component": "node-exporter", "device": "rack7", "collector": "agent"}
    history = build_history("", scraped(honor_labels=honor_labels, **target))
    assert sorted((sensor.device, sensor.component, sensor.collector) for sensor in history.counters) == [
        (socket, "cpu", "rapl") for socket in SOCKETS
    ]
    assert [record.method for record in history.sensors.values()] == ["counter", "counter"]
    for counter in history.counters.values():
        assert counter.times_s[0] == 0.125, "placed at their read timestamps"
    plain = build_history("", scraped(instance="nodeB"))
    for sensor, counter in plain.counters.items():
        np.testing.assert_array_equal(history.counters[sensor].values, counter.values)


def test_an_empty_label_is_not_the_target_label_of_its_name() -> None:
    """Prometheus does not store an empty label, so the target's shows through."""
    target = {"instance": "a:1", "host": "h", "model": "DL380", "domain": "example.org"}
    history = build_history("", scraped(**target))
    assert {sensor.domain for sensor in history.counters} == {"package"}
    assert {(one.host, one.model) for one in history.sensors.values()} == {("", "")}
    both = [*scraped(**target), *scraped(devices=["x"], own_domain="", **target)]
    assert {sensor.device: sensor.domain for sensor in build_history("", both).counters} == {
        "socket0": "package", "socket1": "package", "x": "",
    }  # fmt: skip
    own = scraped(more={"host": "n1", "model": "EPYC"}, **target)
    assert {(one.host, one.model) for one in build_history("", own).sensors.values()} == {("n1", "EPYC")}


def test_a_target_label_may_be_called_nodename() -> None:
    both = [
        *scraped(node="n1", instance="a:1", nodename="rack", site="p"),
        *scraped(node="n2", instance="a:1", nodename="rack", site="q"),
    ]
    with pytest.raises(IdentityError, match=r"site=p: nodename n1, .*; site=q: nodename n2, "):
        build_history("", both)


def test_series_with_one_more_target_label_are_of_another_target() -> None:
    bare = [raw for raw in scraped(instance="a:1", cluster="y") if raw.name == catalog.DEVICE_ENERGY.name]
    with pytest.raises(IdentityError, match=r"cluster=\(not set\): nodename n1, .*; cluster=y: identity not stored"):
        build_history("", [*scraped(instance="a:1"), *bare])


def test_federation_without_honor_labels_has_the_address_in_exported_instance() -> None:
    federated = [
        *scraped(instance="prometheus:9090", exported_instance="a:1", exported_job="x"),
        *scraped(node="n2", watts=5.0, instance="prometheus:9090", exported_instance="b:1", exported_job="x"),
    ]
    assert names(build_history("", federated)) == ["a:1", "b:1"]


def test_a_newer_exporter_may_add_labels_to_info_metrics() -> None:
    history = build_history("", scraped(more={"vendor": "x"}, instance="a:1", job="j"))
    assert names(history) == ["a:1"] and len(history.sensors) == 2
    assert {record.method for record in history.sensors.values()} == {"counter"}


@pytest.mark.parametrize(("text", "primary"), [("1", True), ("0", False), ("", None)])
def test_the_primary_sensor_of_a_host_is_read(text: str, primary: bool | None) -> None:
    history = build_history("", scraped(more={"primary": text, "host": "n1", "read_mode": "remote"}, instance="a:1"))
    for record in history.sensors.values():
        assert (record.primary, record.host, record.read_mode) == (primary, "n1", "remote")


# The exporters of a run


def of_run(name: str, nodename: str = "", started_at_s: float | None = None) -> list[ExporterRecord]:
    return [ExporterRecord(name=name, url=f"http://{name}", nodename=nodename, started_at_s=started_at_s)]


@pytest.mark.parametrize(
    ("records", "watts"),
    [
        (of_run("10.0.0.5:10717", "n1", -100.0), 10.0),
        (of_run("10.0.0.5:10717", "n2", -50.0), 70.0),
        (of_run("10.0.0.5:10717", "n2"), 70.0),
        (of_run("elsewhere:1", "n1", -100.0), 10.0),
        (of_run("elsewhere:1", "n2"), 70.0),
        (of_run("elsewhere:1", "", -50.0), 70.0),
    ],
)
def test_the_identity_selects_the_exporter_of_a_run(records: list[ExporterRecord], watts: float) -> None:
    history = build_history("", CLUSTERS, records)
    assert names(history) == [records[0].name]
    for counter in history.counters.values():
        np.testing.assert_allclose(np.diff(counter.values), watts)


def test_a_run_without_an_identity_needs_match_where_its_address_is_not_unique() -> None:
    with pytest.raises(IdentityError, match="--match cluster=x"):
        build_history("", CLUSTERS, of_run("10.0.0.5:10717"))


@pytest.mark.parametrize(
    ("records", "notices"),
    [
        (of_run("a:1", "n9"), 1),
        (of_run("a:1", "n1", -99.0), 1),
        (of_run("elsewhere:1", "n1", -99.0), 0),
        (of_run("elsewhere:1", "n9", -100.0), 0),
        (of_run("elsewhere:1"), 0),
        (of_run("elsewhere:1", "n9"), 0),
    ],
)
def test_another_exporter_with_the_address_or_the_nodename_of_a_run_is_not_used(
    records: list[ExporterRecord], notices: int
) -> None:
    history = build_history("", scraped(instance="a:1"), records)
    assert (names(history), history.sensors) == ([], {})
    assert [notice.text for notice in history.notices] == notices * [
        "a:1: another exporter has this address (nodename n1, started 1969-12-31 23:58:20 UTC), so it is not used"
    ]
    assert reasons(history) == notices * [("warning", "identity_conflict")]


def test_a_run_of_an_exporter_whose_identity_is_not_stored_is_found_by_its_address() -> None:
    assert names(build_history("", scraped(info=False, instance="a:1"), of_run("a:1", "n1"))) == ["a:1"]
    bare = [raw for raw in scraped(info=False, instance="a:1") if raw.name != catalog.EXPORTER_START.name]
    assert names(build_history("", bare, of_run("a:1", "n1", -100.0))) == ["a:1"]


def test_a_nodename_that_several_exporters_have_identifies_none() -> None:
    history = build_history(
        "", [*scraped(instance="a:1"), *scraped(start_s=-50.0, instance="b:1")], of_run("c:1", "n1")
    )
    assert names(history) == [] and reasons(history) == [("warning", "identity_conflict")]
    assert "c:1: several exporters have its nodename n1 (a:1, b:1)" in history.notices[0].text


def test_an_address_that_moved_to_another_machine_is_used_up_to_then() -> None:
    moved = joined(
        scraped(times=range(10), instance="a:1"),
        scraped(node="n2", watts=70.0, times=range(11, 20), start_s=10.5, instance="a:1"),
    )
    history = build_history("", moved, of_run("a:1", "n1", -100.0))
    assert sample_count(history) == [10, 10] and reasons(history) == [("warning", "identity_conflict")]
    assert "its nodename changed (n1 and n2)" in history.notices[0].text
    everything = build_history("", moved)
    assert sample_count(everything) == [19, 19] and reasons(everything) == [("warning", "identity_conflict")]
    assert everything.starts["a:1"].tolist() == [-100.0, 10.5], "no energy spans the change"
