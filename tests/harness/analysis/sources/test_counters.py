"""Counters of any target: restarts, targets that begin or end inside a window, replicas, gauges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import responses
from numpy.typing import ArrayLike

from joulewatch_harness.analysis.energy.per_counter import Increase, increase
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.counters import groups_by, parse_selector, read_counters, similar
from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.analysis.sources.llm_servers import llm_servers
from joulewatch_harness.analysis.sources.prometheus import PrometheusSource
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.errors import ConfigError, CoverageError
from support.fake_prometheus import URL, FakePrometheus
from support.synthetic import T0

TARGET = {"job": "llm", "instance": "node1:8000"}
NAME = "tokens_total"
RATE = 10.0
SPAN = Span(T0 + 20.25, T0 + 80.25)


def raw(name: str, times_s: ArrayLike, values: ArrayLike, **labels: str) -> RawSeries:
    return RawSeries(name=name, labels=TARGET | labels, times_s=np.asarray(times_s), values=np.asarray(values, float))


def steady(first_s: float = -60.0, last_s: float = 160.0, **labels: str) -> RawSeries:
    """Return 10 tokens a second, scraped every second."""
    times_s = T0 + np.arange(first_s, last_s)
    return raw(NAME, times_s, RATE * (times_s - times_s[0]), **labels)


def up(first_s: float = -60.0, last_s: float = 160.0, down: tuple[float, float] = (0.0, 0.0)) -> RawSeries:
    times_s = T0 + np.arange(first_s, last_s)
    is_down = (times_s >= T0 + down[0]) & (times_s < T0 + down[1])
    return raw("up", times_s, np.where(is_down, 0.0, 1.0))


@pytest.fixture
def mocked() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


class Read:
    """Reads counters from a fake Prometheus with some series."""

    def __init__(self, mocked: responses.RequestsMock) -> None:
        self._mocked = mocked

    def source(self, *series: RawSeries, match: dict[str, str] | None = None) -> PrometheusSource:
        FakePrometheus(series).install(self._mocked)
        return PrometheusSource(PrometheusClient(PrometheusOptions(URL, match=match or {})))

    def __call__(self, *series: RawSeries, wanted: str = NAME) -> Increase:
        source = self.source(*series)
        counters = read_counters(source, wanted, SPAN.start_s, SPAN.end_s, lambda: T0 + 1000)
        source.close()
        return increase(counters, SPAN)


@pytest.fixture
def read(mocked: responses.RequestsMock) -> Read:
    return Read(mocked)


def test_edges_are_interpolated(read: Read) -> None:
    one = read(steady(), up())
    assert one.value == pytest.approx(600)
    assert one.lower <= 590 and one.upper >= 610 and one.expanded < 5


def test_a_restart_counts_from_zero_and_what_was_lost_is_in_doubt(read: Read) -> None:
    """A restart in the second after 50 s: 2 units of the new process, up to 10 of the old one were never scraped."""
    times_s = T0 + np.arange(-60, 160)
    values = np.where(times_s <= T0 + 50, RATE * (times_s - T0 + 60), RATE * (times_s - T0 - 51) + 2)
    one = read(raw(NAME, times_s, values), up())
    assert one.value == pytest.approx(600 - RATE + 2)
    # 600 were counted at most, of which the last scrape missed up to 8.
    assert one.value + one.expanded > 600 > one.value - one.expanded
    assert one.upper >= 600


def test_a_target_that_begins_inside_the_window_counts_from_zero(read: Read) -> None:
    """``up`` was 1 before the series appeared: it appeared with its first unit, between two scrapes."""
    times_s = T0 + np.arange(40, 160)
    series = raw(NAME, times_s, 7 + RATE * (times_s - T0 - 40))
    one = read(series, up())
    assert one.value == pytest.approx(7 + RATE * 40.25)
    assert one.lower >= RATE * 40


@pytest.mark.parametrize("first_s", [-60, 70], ids=["scraped before", "not scraped before"])
def test_a_target_may_begin_many_scrapes_after_the_start_of_the_window(read: Read, first_s: int) -> None:
    times_s = T0 + np.arange(70, 160)
    one = read(raw(NAME, times_s, 5 + RATE * (times_s - T0 - 70)), up(first_s))
    assert one.value == pytest.approx(5 + RATE * 10.25)


@pytest.mark.parametrize(("before_s", "after_s"), [(1.7e9, 0.0), (0.0, 1.7e9), (2e6, 2e6)])
def test_a_window_of_years_needs_little_memory(read: Read, before_s: float, after_s: float) -> None:
    times_s = T0 + np.arange(40, 70)
    span = Span(SPAN.start_s - before_s, SPAN.end_s + after_s)
    source = read.source(raw(NAME, times_s, RATE * (times_s - T0 - 40)), up(39))
    counters = read_counters(source, NAME, span.start_s, span.end_s, lambda: span.end_s + 1000)
    source.close()
    assert len(counters[0].series) < 200
    assert increase(counters, span).value == pytest.approx(RATE * 29)


def test_a_process_that_started_inside_the_window_counts_from_zero(read: Read) -> None:
    """Nothing was scraped before, but the process shows its start time."""
    times_s = T0 + np.arange(45, 160)
    start = raw("process_start_time_seconds", times_s, np.full(times_s.shape, T0 + 38))
    one = read(raw(NAME, times_s, 1e6 + RATE * (times_s - T0 - 45)), up(45), start)
    assert one.value == pytest.approx(1e6 + RATE * 35.25)


def test_without_a_start_time_the_first_value_is_in_doubt(read: Read) -> None:
    times_s = T0 + np.arange(40, 160)
    one = read(raw(NAME, times_s, 50 + RATE * (times_s - T0 - 40)), up(40))
    assert one.value == pytest.approx(50 + RATE * 40.25)
    assert one.lower <= RATE * 40.25 and one.expanded > 50


def test_a_counter_that_is_older_than_its_samples_has_no_number(read: Read) -> None:
    """A million units before the first scrape: they are not of this window, and those of the window are not known."""
    times_s = T0 + np.arange(40, 160)
    with pytest.raises(CoverageError, match="tokens_total of node1:8000: no sample before") as caught:
        read(raw(NAME, times_s, 1e6 + RATE * (times_s - T0)), up(40))
    assert caught.value.reason == "unbracketed"


def test_a_target_that_ends_inside_the_window(read: Read) -> None:
    one = read(steady(last_s=51.0), up(down=(51, 160)))
    assert one.value == pytest.approx(RATE * (50 - 20.25))
    assert one.upper >= one.value + RATE and one.expanded > RATE


def test_without_a_sample_after_the_end_the_window_is_not_bracketed(read: Read) -> None:
    with pytest.raises(CoverageError, match="no sample after the window's end"):
        read(steady(last_s=80.0), up(last_s=80.0))


@pytest.mark.parametrize(("down", "value"), [((10.0, 40.0), 10.0 * 40.25), ((60.0, 100.0), 10.0 * 38.75)])
def test_an_edge_in_the_time_between_two_processes(read: Read, down: tuple[float, float], value: float) -> None:
    """The target is down over an edge of the window, and its new process counts from 0."""
    times_s = T0 + np.arange(-60, 160)
    inside = (times_s < T0 + down[0]) | (times_s >= T0 + down[1])
    values = np.where(times_s < T0 + down[0], RATE * (times_s - T0 + 60), RATE * (times_s - T0 - down[1]))
    one = read(raw(NAME, times_s[inside], values[inside]), up(down=down))
    assert one.value == pytest.approx(value, abs=1e-6)


def test_several_targets_are_added_and_replicas_are_not(read: Read) -> None:
    other = steady(instance="node2:8000")
    copy = steady(replica="b")
    assert read(steady(), other, copy, up()).value == pytest.approx(1200)


def test_a_renamed_target_label_does_not_count_twice(read: Read) -> None:
    """The series goes on under another label of its target, from 1100 and not from 0."""
    whole = steady()
    old, new = whole.times_s < T0 + 50, whole.times_s >= T0 + 50
    parts = [
        dataclasses.replace(
            whole, labels={**whole.labels, "team": team}, times_s=whole.times_s[at], values=whole.values[at]
        )
        for team, at in (("a", old), ("b", new))
    ]
    assert read(*parts, up()).value == pytest.approx(600)


def test_a_late_scrape_is_in_the_uncertainty(read: Read) -> None:
    times_s = T0 + np.arange(-60, 160)
    late = raw("scrape_duration_seconds", times_s, np.full(times_s.shape, 0.5))
    assert read(steady(), up(), late).expanded > read(steady(), up()).expanded + 1


def test_match_and_labels_select_series(read: Read) -> None:
    source = read.source(steady(model="a"), steady(model="b", cluster="x"), match={"cluster": "x"})
    (counter,) = read_counters(source, f'{NAME}{{model=~"a|b"}}', SPAN.start_s, SPAN.end_s, lambda: T0 + 1000)
    assert counter.labels["model"] == "b"
    with pytest.raises(ConfigError, match="--by colour: tokens_total has no such label; it has cluster, instance"):
        groups_by([counter], "colour")


def test_a_gauge_is_not_a_counter(read: Read) -> None:
    times_s = T0 + np.arange(-60, 160)
    with pytest.raises(ConfigError, match="falls at 109 of 219 samples: it is not a counter"):
        read(raw("queue", times_s, np.arange(220) % 2), wanted="queue")


@pytest.mark.parametrize("text", ["sum(x)", "rate(x[5m])", "", "a b", "1x"])
def test_an_expression_is_not_a_selector(text: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a counter"):
        parse_selector(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vllm:x_total", ("vllm:x_total", "")),
        ('x{a="1", b=~"c|}"}', ("x", 'a="1", b=~"c|}"')),
        ('{__name__=~"a|b",}', ("", '__name__=~"a|b"')),
    ],
)
def test_selectors(text: str, parts: tuple[str, str]) -> None:
    assert parse_selector(text) == parts


def test_a_histogram_has_endings(read: Read) -> None:
    times_s = T0 + np.arange(-60, 160)
    source = read.source(raw("vllm:iteration_tokens_total_sum", times_s, times_s))
    hint = similar(source, "vllm:iteration_tokens_total", SPAN.start_s, SPAN.end_s)
    assert hint == "; did you mean vllm:iteration_tokens_total_sum?"


def test_every_llm_server_has_requests_or_tokens() -> None:
    servers = llm_servers()
    assert set(servers) == {"vllm", "sglang", "tgi", "tensorrt-llm", "dynamo", "triton", "llama.cpp"}
    for name, server in servers.items():
        assert bool(server.output) == bool(server.input), name
        assert server.output or server.requests, name
    names = [name for one in servers.values() for name in (*one.output, *one.input, *one.cached, *one.requests)]
    assert len(names) == len(set(names))
