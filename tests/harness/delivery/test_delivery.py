"""The courier loses no window, delivers none twice, and does not retry what a server has refused."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.delivery import delivery as delivery_module
from joulewatch_harness.delivery.annotations import Sample, info_sample, live_samples, window_samples
from joulewatch_harness.delivery.courier import Courier, DeliveredLog, DeliveryReport, Parked, delivered_windows
from joulewatch_harness.delivery.delivery import BackgroundDelivery, NullDelivery, open_delivery, push_run
from joulewatch_harness.delivery.sinks import Item, RejectedError, UnavailableError, start_item, window_item
from joulewatch_harness.errors import ConfigError, QueryUnavailableError
from joulewatch_harness.records import ExporterRecord, RunEnd, RunRecord
from joulewatch_harness.storage.journal import Journal
from support.runs import NETWORK, header, window

NOW_S = 1_700_000_100.0


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeSink:
    """Accepts items, shows them (late, or never), refuses some, and can be down."""

    way = "remote_write"
    target = "http://p"

    def __init__(self) -> None:
        self.resend_after_s: float | None = 20.0
        self.down = False
        self.query_fails = False
        self.hidden: set[str] = set()
        self.refused: set[str] = set()
        self.writes: list[list[str]] = []
        self.stored: set[str] = set()
        self.settled: list[str] = []
        self.shown: list[tuple[list[Sample], int]] = []
        self.closed = False

    def check(self) -> None:
        pass

    def write(self, items: Sequence[Item]) -> None:
        if self.down:
            raise UnavailableError("http://p: cannot be reached")
        names = [item.name for item in items]
        if self.refused & set(names):
            raise RejectedError("http://p: HTTP 400: out of order: set out_of_order_time_window")
        self.writes.append(names)
        self.stored |= set(names)

    def present(self, items: Sequence[Item]) -> set[str]:
        if self.down or self.query_fails:
            raise QueryUnavailableError("http://p: query failed")
        return {item.name for item in items if item.name in self.stored - self.hidden}

    def settle(self, items: Sequence[Item]) -> None:
        self.settled += [item.name for item in items]

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], ended_ms: int) -> None:
        if self.down:
            raise UnavailableError("down")
        self.shown.append((list(current), ended_ms))

    def close(self) -> None:
        self.closed = True


class Fixture:
    def __init__(self) -> None:
        self.sink = FakeSink()
        self.time = FakeTime()
        self.confirmed: list[str] = []
        self.courier = Courier(
            self.sink,
            lambda items: self.confirmed.extend(item.name for item in items),
            clock=lambda: NOW_S + self.time.now_s,
            monotonic=self.time,
            jitter=lambda: 0.5,
        )

    def run(self, limit_s: float = 1000.0) -> None:
        """Step until all items are done or ``limit_s`` has passed."""
        end_s = self.time.now_s + limit_s
        while (wait_s := self.courier.step()) is not None and self.time.now_s < end_s:
            self.time.now_s += wait_s


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def item(index: int, age_s: float = 60.0) -> Item:
    return window_item(header(), NETWORK, window(index, NOW_S - age_s - 1 + index))


def test_windows_are_sent_in_order_in_few_requests_and_confirmed(fixture: Fixture) -> None:
    for index in range(50):
        fixture.courier.add(item(index))
    fixture.run()
    assert [len(names) for names in fixture.sink.writes] == [20, 20, 10]
    assert fixture.confirmed == [f"window {index}" for index in range(50)] == fixture.sink.settled
    assert fixture.courier.report() == DeliveryReport(windows=50, delivered=50, pending=0)
    assert fixture.courier.report().complete


def test_retries_during_an_outage_slow_down_and_are_logged_once(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.sink.down = True
    fixture.courier.add(item(0))
    waits = []
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            wait_s = fixture.courier.step()
            assert wait_s is not None
            waits.append(wait_s)
            fixture.time.now_s += wait_s
        assert waits == [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10, 10]
        assert fixture.courier.report() == DeliveryReport(
            windows=1, delivered=0, pending=1, parked=(), trouble="http://p: cannot be reached"
        )
        fixture.sink.down = False
        fixture.run()
    assert fixture.courier.report().complete
    assert len(caplog.records) == 2  # the start and the end of the outage


def test_hasten_retries_immediately(fixture: Fixture) -> None:
    fixture.sink.down = True
    fixture.courier.add(item(0))
    for _ in range(8):
        fixture.time.now_s += fixture.courier.step() or 0
    fixture.sink.down = False
    fixture.courier.step()
    fixture.sink.down = True
    fixture.courier.add(item(1))
    fixture.courier.step()
    fixture.sink.down = False
    fixture.courier.hasten()
    fixture.courier.step()
    assert fixture.courier.report().delivered == 2


def test_a_refused_window_does_not_affect_the_others(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    fixture.sink.refused = {"window 3"}
    for index in range(6):
        fixture.courier.add(item(index))
    fixture.run()
    report = fixture.courier.report()
    assert (report.delivered, report.pending) == (5, 0)
    assert [parked.what for parked in report.parked] == ["window 3"]
    assert "out_of_order_time_window" in report.parked[0].reason
    assert not report.complete
    assert "window 3 was not delivered" in caplog.text


def test_a_refused_window_that_is_already_stored_is_a_success(fixture: Fixture) -> None:
    """The first answer was lost, and the repeated samples are out of order."""
    fixture.sink.refused = {"window 0"}
    fixture.sink.stored = {"window 0"}
    fixture.courier.add(item(0))
    fixture.run()
    assert fixture.courier.report() == DeliveryReport(windows=1, delivered=1, pending=0)


def test_an_outage_while_items_are_sent_one_by_one_keeps_the_rest(fixture: Fixture) -> None:
    fixture.sink.refused = {"window 1"}
    real = fixture.sink.write

    def write(items: Sequence[Item]) -> None:
        fixture.sink.down = len(items) == 1 and items[0].name == "window 2" and fixture.time.now_s < 5
        real(items)

    fixture.sink.write = write  # type: ignore[method-assign]
    for index in range(4):
        fixture.courier.add(item(index))
    fixture.run()
    assert sorted(fixture.confirmed) == ["window 0", "window 2", "window 3"]


def test_an_accepted_item_that_does_not_appear_is_sent_three_times_and_then_parked(fixture: Fixture) -> None:
    fixture.sink.hidden = {"window 0"}
    fixture.courier.add(item(0))
    fixture.courier.step()
    assert "does not show the accepted samples yet" in fixture.courier.report().trouble
    fixture.run()
    assert len(fixture.sink.writes) == 3
    assert fixture.time.now_s < 70
    assert "accepted it 3 times and does not show it" in fixture.courier.report().parked[0].reason


def test_an_item_may_appear_late(fixture: Fixture) -> None:
    fixture.sink.hidden = {"window 0"}
    fixture.courier.add(item(0))
    fixture.run(4.0)
    fixture.sink.hidden = set()
    fixture.run()
    assert fixture.courier.report().complete
    assert len(fixture.sink.writes) == 1


def test_without_a_resend_time_an_item_is_sent_once_and_stays_pending(fixture: Fixture) -> None:
    fixture.sink.resend_after_s = None
    fixture.sink.hidden = {"window 0"}
    fixture.courier.add(item(0))
    fixture.run(3600)
    assert len(fixture.sink.writes) == 1
    assert fixture.courier.report().pending == 1


def test_failed_queries_are_retried_without_sending_again(fixture: Fixture) -> None:
    fixture.sink.query_fails = True
    fixture.courier.add(item(0))
    fixture.run(30)
    assert "query failed" in fixture.courier.report().trouble
    fixture.sink.query_fails = False
    fixture.run()
    assert fixture.courier.report().complete
    assert len(fixture.sink.writes) == 1


def test_a_window_in_the_future_is_not_sent(fixture: Fixture) -> None:
    """After such a sample, old versions of Prometheus refuse all samples until that time."""
    fixture.courier.add(item(0, age_s=-0.9))
    fixture.courier.add(item(1, age_s=-5.0))
    fixture.run()
    report = fixture.courier.report()
    assert fixture.sink.writes == [["window 0"]]
    assert "6.0 s in the future, because the clock was set back" in report.parked[0].reason


def test_delivered_windows_are_logged_once_and_a_torn_line_is_ignored(tmp_path: Path) -> None:
    log = DeliveredLog(tmp_path, way="remote_write", target="http://p", clock=lambda: NOW_S)
    log.add([item(0), item(1)])
    log.add([item(1), item(2)])
    path = tmp_path / "delivered.jsonl"
    assert len(path.read_text().splitlines()) == 3
    path.write_bytes(path.read_bytes() + b'{"window": 7, "tar')
    assert delivered_windows(tmp_path) == {0, 1, 2} == delivered_windows(tmp_path, "http://p")
    assert delivered_windows(tmp_path, "http://other") == set()
    assert delivered_windows(tmp_path / "none") == set()


def test_a_log_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DeliveredLog(tmp_path / "none", way="w", target="t").add([item(0)])
    assert "cannot be written: No such file" in caplog.text


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSink]:
    fake = FakeSink()
    monkeypatch.setattr(delivery_module, "open_sink", lambda prometheus, pushgateway_url=None: fake)
    yield fake
    assert fake.closed


def test_a_run_is_delivered_in_the_background(sink: FakeSink, tmp_path: Path) -> None:
    delivery = open_delivery(PrometheusOptions("http://p"), folder=tmp_path)
    delivery.start(header())
    delivery.configuration(NETWORK)
    for index in range(3):
        measured = window(index, 1_700_000_001.0 + 2 * index)
        delivery.window_opened("measure", NETWORK.name, 8, measured.start_s)
        delivery.window(measured)
    delivery.window(window(3, 1_700_000_006.0, kind="phase", phase="execute"))
    delivery.end(RunEnd(1_700_000_010.0, "complete"))
    report = delivery.close(10)
    assert report.complete
    assert report.delivered == 4
    assert delivery.close(10) == report
    assert delivered_windows(tmp_path) == {0, 1, 2, 3}
    assert [name for names in sink.writes for name in names] == [
        "start",
        *(f"window {index}" for index in range(4)),
        "end",
    ]
    # Three times open and closed; after the end of the run, no live series.
    assert [len(current) for current, _ in sink.shown] == [3, 2, 3, 2, 3, 2, 0]
    inferences = [sample.value for sample in sink.shown[-2][0] if sample.name == "joulewatch_run_inferences_total"]
    assert inferences == [2400]


def test_close_stops_at_its_time_limit_and_later_lines_are_ignored(sink: FakeSink, tmp_path: Path) -> None:
    sink.down = True
    delivery = open_delivery(PrometheusOptions("http://p"), folder=tmp_path)
    delivery.start(header())
    delivery.window(window(0, 1_700_000_001.0))
    report = delivery.close(0.05)
    assert (report.delivered, report.pending) == (0, 1)
    assert report.trouble == "http://p: cannot be reached"
    delivery.window(window(1, 1_700_000_003.0))


def test_a_bug_in_the_delivery_does_not_reach_the_runner(
    sink: FakeSink, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "window_item", lambda *_: 1 / 0)
    delivery = BackgroundDelivery(sink, tmp_path)
    delivery.start(header())
    delivery.window(window(0, 1_700_000_001.0))
    delivery.close(0.05)
    assert "delivery failed" in caplog.text
    assert sink.closed


def test_local_mode_delivers_nothing(tmp_path: Path) -> None:
    delivery = open_delivery(None, folder=tmp_path)
    assert isinstance(delivery, NullDelivery)
    delivery.start(header())
    delivery.configuration(NETWORK)
    delivery.window_opened("idle", "", 0, 1.0)
    delivery.window(window(0, 1.0))
    delivery.end(RunEnd(3.0, "complete"))
    assert delivery.close().complete
    with pytest.raises(ConfigError, match="--pushgateway requires --prometheus"):
        open_delivery(None, pushgateway_url="http://g", folder=tmp_path)


def test_push_sends_only_what_is_missing(sink: FakeSink, tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(NETWORK)
        for index in range(5):
            journal.append(window(index, 1_700_000_001.0 + 2 * index))
        journal.append(RunEnd(1_700_000_020.0, "interrupted"))
    sink.stored = {"start", "window 0", "window 2"}
    report = push_run(journal.folder, PrometheusOptions("http://p"))
    assert report == DeliveryReport(windows=5, delivered=5, pending=0)
    assert sink.writes == [["window 1", "window 3", "window 4", "end"]]
    assert delivered_windows(journal.folder) == {0, 1, 2, 3, 4}
    sink.writes.clear()
    assert push_run(journal.folder, PrometheusOptions("http://p")).complete
    assert sink.writes == []


def test_push_ends_at_its_time_limit(sink: FakeSink, tmp_path: Path) -> None:
    with Journal.create(tmp_path, header()) as journal:
        journal.append(window(0, 1_700_000_001.0))
    sink.hidden = {"window 0"}
    reports: list[DeliveryReport] = []
    report = push_run(journal.folder, PrometheusOptions("http://p"), timeout_s=0.05, progress=reports.append)
    assert report.pending == 1
    assert reports


def test_setup_windows_are_delivered_but_are_not_in_the_live_view(sink: FakeSink, tmp_path: Path) -> None:
    load = window(0, 1_700_000_001.0, 3.0, kind="setup", phase="load", batch_size=0, batches=0, inferences=0)
    delivery = open_delivery(PrometheusOptions("http://p"), folder=tmp_path)
    delivery.start(header())
    delivery.configuration(NETWORK)
    delivery.window(load)
    assert delivery.close(10).delivered == 1
    assert sink.shown == []
    exported = live_samples(RunRecord(header=header(), configurations=(NETWORK,), windows=(load,)))
    assert {sample.name for sample in exported} == {"joulewatch_window_active"}
    assert {dict(sample.labels)["kind"] for sample in exported} == {"setup"}


def test_counts_have_units_and_info_has_the_scenario() -> None:
    measured = window(0, 1_700_000_001.0, counts={"output_tokens": 512.0, "images": 3.0})
    units = {
        dict(sample.labels)["unit"]: sample.value
        for sample in window_samples(measured)
        if sample.name == "joulewatch_window_units"
    }
    assert units == {"output_tokens": 512.0, "images": 3.0}
    for scenario, rate_per_s, expected in (("", 0.0, ("offline", None)), ("server", 12.5, ("server", "12.5"))):
        served = dataclasses.replace(NETWORK, scenario=scenario, server_rate_per_s=rate_per_s)
        labels = dict(info_sample(header(), served, 0).labels)
        assert (labels["scenario"], labels.get("server_rate_per_second")) == expected


def test_info_has_a_pattern_for_the_nodenames_of_the_exporters() -> None:
    """Without backslashes: it becomes a part of a string in PromQL."""
    names = ("node1", "gpu-1.example.org", "node1", "")
    exporters = tuple(ExporterRecord(name=f"e{index}", url="", nodename=name) for index, name in enumerate(names))
    labels = dict(info_sample(dataclasses.replace(header(), exporters=exporters), NETWORK, 0).labels)
    assert labels["exporter_nodenames"] == "gpu-1[.]example[.]org|node1"
    for nodename, matches in (("node1", True), ("gpu-1.example.org", True), ("gpu-1xexample.org", False)):
        assert (re.fullmatch(labels["exporter_nodenames"], nodename) is not None) == matches
    unknown = (ExporterRecord(name="e", url=""),)
    assert "exporter_nodenames" not in dict(
        info_sample(dataclasses.replace(header(), exporters=unknown), NETWORK, 0).labels
    )


class BrokenSink(FakeSink):
    """Raises errors that no sink should raise, as a bug or a redirect does."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = {"write", "present", "settle", "live"}

    def _may(self, method: str) -> None:
        if method in self.broken:
            raise LookupError(f"bug in {method}")

    def write(self, items: Sequence[Item]) -> None:
        self._may("write")
        super().write(items)

    def present(self, items: Sequence[Item]) -> set[str]:
        self._may("present")
        return super().present(items)

    def settle(self, items: Sequence[Item]) -> None:
        self._may("settle")
        super().settle(items)

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], ended_ms: int) -> None:
        self._may("live")


def test_no_exception_loses_a_batch(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    sink = fixture.sink = BrokenSink()
    fixture.courier = Courier(sink, lambda items: 1 / 0, monotonic=fixture.time, jitter=lambda: 0.5)  # type: ignore[arg-type, return-value]
    for index in range(7):
        fixture.courier.add(item(index))
    for repaired in ("write", "present", "settle"):
        fixture.run(20)
        report = fixture.courier.report()
        assert (report.windows, report.delivered, report.pending, report.complete) == (7, 0, 7, False)
        assert report.trouble.startswith(f"LookupError: bug in {repaired}")
        sink.broken.discard(repaired)
        if repaired == "present":
            break
    fixture.run()
    assert fixture.courier.report() == DeliveryReport(windows=7, delivered=7, pending=0)
    assert "Traceback" not in caplog.text


def test_a_window_that_cannot_be_converted_is_reported_as_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Item:
        raise LookupError("bug")

    sink = BrokenSink()
    sink.broken = {"live"}
    monkeypatch.setattr(delivery_module, "window_item", broken)
    delivery = BackgroundDelivery(sink, tmp_path)
    delivery.start(header())
    delivery.window(window(0, NOW_S))
    report = delivery.close(5)
    assert (report.windows, report.delivered, report.pending, report.complete) == (1, 0, 1, False)
    assert sink.stored == {"start"}
    assert "Traceback" not in caplog.text


def test_refusals_with_one_reason_are_one_line_and_one_warning(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.sink.refused = {"start", *(f"window {index}" for index in range(7))}
    fixture.courier.add(start_item(header()))
    for index in range(7):
        fixture.courier.add(item(index))
    with caplog.at_level(logging.WARNING):
        fixture.run()
    report = fixture.courier.report()
    assert report.refusals() == [("7 windows were", "http://p: HTTP 400: out of order: set out_of_order_time_window")]
    assert (report.complete, report.pending) == (False, 0)
    assert len(caplog.records) == 1


def test_a_refused_start_or_end_is_named_only_without_windows() -> None:
    parked = [Parked("start", "r"), Parked("end", "r")]
    reports = [DeliveryReport(windows=1, delivered=0, pending=1, parked=tuple(parked[:n])) for n in (1, 2)]
    assert [report.refusals() for report in reports] == [[("start was", "r")], [("start and end were", "r")]]
