"""Each window is one group, which is kept until Prometheus has it, in text that a Pushgateway accepts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import Answer
from joulewatch_harness.delivery.annotations import Sample, active_sample, status_sample
from joulewatch_harness.delivery.pushgateway import PushgatewaySink, exposition, group_path, window_group
from joulewatch_harness.delivery.sinks import (
    Item,
    RejectedError,
    UnavailableError,
    end_item,
    start_item,
    window_item,
)
from joulewatch_harness.errors import ConfigError, QueryUnavailableError
from joulewatch_harness.records import RunEnd
from support.runs import NETWORK, RUN, header, window


def item(index: int) -> Item:
    return window_item(header(), NETWORK, window(index, 1_700_000_001.0 + index))


def test_a_group_has_the_number_as_a_label_and_the_end_as_a_value() -> None:
    window_seven = item(7)
    assert window_seven.window is not None
    text = exposition(window_group(window_seven, window_seven.window))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (start,) = families["joulewatch_window_start_timestamp_seconds"].samples
    (end,) = families["joulewatch_window_end_timestamp_seconds"].samples
    assert (start.value, end.value) == (window_seven.window.start_s, window_seven.window.end_s)
    assert start.timestamp is None
    assert all(sample.labels["window"] == "7" for family in families.values() for sample in family.samples)
    assert len(families["joulewatch_window_edge_joules"].samples) == 4
    assert {family.type for family in families.values()} == {"gauge"}


def test_every_label_and_value_survives_the_text_format() -> None:
    label = 'a "b" \\ c\nd'
    name = "joulewatch_window_start_timestamp_seconds"
    for value in (0.1 + 0.2, float("inf"), float("-inf"), 0.0):
        (family,) = text_string_to_metric_families(
            exposition([Sample(name=name, labels=(("run", label),), at_ms=0, value=value)])
        )
        assert family.samples[0].labels == {"run": label}
        assert family.samples[0].value == value


class FakeGateway:
    def __init__(self) -> None:
        self.groups: dict[str, str] = {}
        self.status = 200
        self.down = False
        self.log: list[str] = []
        self.url = "http://g"
        self.about = Answer(200, '{"status": "success", "data": {"build_information": {}}}')

    def send(self, method: str, path: str, body: bytes = b"", headers: object = None) -> Answer:
        if self.down:
            raise QueryUnavailableError("http://g: cannot be reached")
        self.log.append(f"{method} {path}")
        if method == "GET":
            return self.about
        if method == "PUT":
            if self.status >= 400:
                return Answer(self.status, "inconsistent")
            self.groups[path] = body.decode()
            return Answer(200, "")
        return Answer(202 if self.groups.pop(path, None) else 404, "")

    def close(self) -> None:
        pass


class FakePrometheus:
    """``scrape`` stores the current samples of the gateway."""

    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway
        self.samples: list[Any] = []
        self.queries: list[tuple[str, float]] = []

    def ping(self) -> str:
        return "2.42.0"

    def scrape(self) -> None:
        for text in self.gateway.groups.values():
            self.samples += [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def query(self, promql: str, at_s: float, retry_s: float) -> list[dict[str, Any]]:
        self.queries.append((promql, at_s))
        pattern = re.search(r'window=~"([^"]*)"', promql)
        assert pattern is not None
        return [
            {
                "metric": {"__name__": sample.name, "job": "x", "exported_job": "joulewatch", **sample.labels},
                "values": [[1.0, repr(float(sample.value))]],
            }
            for sample in self.samples
            if re.fullmatch(pattern[1], sample.labels.get("window", ""))
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def prometheus(gateway: FakeGateway) -> FakePrometheus:
    return FakePrometheus(gateway)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway, prometheus: FakePrometheus) -> PushgatewaySink:
    clients = {"http://p": prometheus, "http://g": gateway}
    monkeypatch.setattr(
        "joulewatch_harness.delivery.pushgateway.PrometheusClient", lambda options, retry_s: clients[options.url]
    )
    return PushgatewaySink(PrometheusOptions("http://p"), PrometheusOptions("http://g"), clock=lambda: 1_700_000_060.0)


def test_a_group_is_deleted_only_after_it_was_scraped(
    sink: PushgatewaySink, gateway: FakeGateway, prometheus: FakePrometheus
) -> None:
    sink.check()
    items = [item(0), item(1)]
    sink.write(items)
    assert set(gateway.groups) == {group_path(RUN, 0), group_path(RUN, 1)}
    assert sink.present(items) == set()
    prometheus.scrape()
    assert sink.present(items) == {"window 0", "window 1"}
    sink.settle(items[:1])
    assert set(gateway.groups) == {group_path(RUN, 1)}


def test_a_partly_scraped_window_is_not_present(sink: PushgatewaySink, prometheus: FakePrometheus) -> None:
    sink.write([item(0)])
    prometheus.scrape()
    prometheus.samples.pop()
    assert sink.present([item(0)]) == set()


def test_the_group_of_the_run_exists_from_its_start_to_its_end(
    sink: PushgatewaySink, gateway: FakeGateway, prometheus: FakePrometheus
) -> None:
    start = start_item(header())
    end = end_item(header(), [NETWORK], RunEnd(1_700_000_050.0, "complete"))
    sink.write([start])
    assert sink.present([start]) == {"start"}
    sink.settle([start])
    assert set(gateway.groups) == {group_path(RUN)}
    sink.live(RUN, [active_sample(RUN, NETWORK.name, "measure", 8, 0)], [status_sample(header(), None)], 0)
    assert "joulewatch_window_active" in gateway.groups[group_path(RUN)]
    prometheus.scrape()
    assert sink.present([end]) == set()
    sink.write([end])
    assert "joulewatch_window_active" not in gateway.groups[group_path(RUN)]
    prometheus.scrape()
    assert sink.present([end]) == {"end"}
    sink.settle([end])
    assert gateway.groups == {}


def test_a_group_that_could_not_be_deleted_is_deleted_with_the_next(
    sink: PushgatewaySink, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    sink.write([item(0), item(1)])
    gateway.down = True
    sink.settle([item(0)])
    gateway.down = False
    assert len(gateway.groups) == 2
    sink.settle([item(1)])
    assert gateway.groups == {}
    gateway.down = True
    sink.settle([item(2)])
    sink.close()
    assert "1 group remains in the Pushgateway http://g" in caplog.text


def test_each_kind_of_failure_has_its_error(sink: PushgatewaySink, gateway: FakeGateway) -> None:
    gateway.status = 400
    with pytest.raises(RejectedError, match="--pushgateway http://g: HTTP 400: inconsistent"):
        sink.write([item(0)])
    gateway.status = 503
    with pytest.raises(UnavailableError, match="HTTP 503"):
        sink.write([item(0)])
    gateway.down = True
    with pytest.raises(UnavailableError, match="cannot be reached"):
        sink.write([item(0)])
    with pytest.raises(ConfigError, match="cannot be reached"):
        sink.check()
    gateway.down = False
    for about in (Answer(404, "no"), Answer(200, "<html>"), Answer(200, '{"data": []}')):
        gateway.about = about
        with pytest.raises(ConfigError, match="does not answer like a Pushgateway"):
            sink.check()


def test_run_ids_are_escaped_in_the_path() -> None:
    assert group_path("a/b c", 3) == "/metrics/job/joulewatch/run/a%2Fb%20c/window/3"
