"""Real decoders read exactly the samples that were encoded."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import cramjam
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import Answer
from joulewatch_harness.delivery.annotations import Sample
from joulewatch_harness.delivery.remote_write import (
    HEADERS,
    STALE_NAN_BITS,
    RemoteWriteSink,
    _raise_for,
    _varint,
    encode_write_request,
    send_samples,
    snappy_block,
)
from joulewatch_harness.delivery.sinks import RejectedError, UnavailableError, window_item
from joulewatch_harness.errors import ConfigError, QueryError, QueryUnavailableError
from support.runs import NETWORK, header, window


def _message_class() -> Any:
    """``prometheus.WriteRequest`` as in prompb/remote.proto and types.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="remote.proto", package="prometheus", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    layout = {
        "Label": [("name", kinds.TYPE_STRING, ""), ("value", kinds.TYPE_STRING, "")],
        "Sample": [("value", kinds.TYPE_DOUBLE, ""), ("timestamp", kinds.TYPE_INT64, "")],
        "TimeSeries": [("labels", kinds.TYPE_MESSAGE, "Label"), ("samples", kinds.TYPE_MESSAGE, "Sample")],
        "WriteRequest": [("timeseries", kinds.TYPE_MESSAGE, "TimeSeries")],
    }
    for name, items in layout.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, of) in enumerate(items, 1):
            added = message.field.add(name=field, number=number, type=kind)
            added.label = kinds.LABEL_REPEATED if of else kinds.LABEL_OPTIONAL
            if of:
                added.type_name = f".prometheus.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("prometheus.WriteRequest"))


WriteRequest = _message_class()


def decoded(samples: list[Sample]) -> list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]:
    data = bytes(cramjam.snappy.decompress_raw(snappy_block(encode_write_request(samples))))
    return [
        ([(label.name, label.value) for label in series.labels], [(s.timestamp, s.value) for s in series.samples])
        for series in WriteRequest.FromString(data).timeseries
    ]


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=150)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True).filter(lambda name: name != "__name__")
all_samples = st.builds(
    Sample,
    name=names,
    labels=st.dictionaries(names, texts, max_size=5).map(lambda labels: tuple(sorted(labels.items()))),
    at_ms=st.integers(-(2**63), 2**63 - 1),
    value=st.floats(allow_nan=False),
)


@given(st.lists(all_samples, max_size=10))
def test_a_real_decoder_reads_the_encoded_samples(samples: list[Sample]) -> None:
    expected: dict[tuple[tuple[str, str], ...], dict[int, float]] = {}
    for sample in samples:
        expected.setdefault((("__name__", sample.name), *sample.labels), {})[sample.at_ms] = sample.value
    written = decoded(samples)
    assert {tuple(sorted(labels)): values for labels, values in written} == {
        tuple(sorted(labels)): sorted(values.items()) for labels, values in expected.items()
    }
    for labels, values in written:
        assert labels == sorted(labels)
        assert [at_ms for at_ms, _ in values] == sorted({at_ms for at_ms, _ in values})


@given(st.binary(max_size=300_000) | st.integers(0, 200_000).map(bytes))
def test_real_snappy_reads_the_block(data: bytes) -> None:
    assert bytes(cramjam.snappy.decompress_raw(snappy_block(data))) == data


def test_literals_of_every_length_class_are_read() -> None:
    for length in (0, 1, 59, 60, 61, 62, 255, 256, 257, 65535, 65536, 65537, 131072, 131073):
        data = bytes(range(256)) * (length // 256 + 1)
        assert bytes(cramjam.snappy.decompress_raw(snappy_block(data[:length]))) == data[:length]


def test_lengths_are_encoded_in_the_fewest_bytes() -> None:
    """A varint has seven bits in each byte; a literal of up to 60 bytes has its length in its tag."""
    assert [_varint(value) for value in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]
    assert snappy_block(b"a" * 60) == bytes([60, 59 << 2]) + b"a" * 60
    assert snappy_block(b"a" * 61) == bytes([61, 61 << 2, 60, 0]) + b"a" * 61


def test_nan_is_the_stale_marker_to_the_bit() -> None:
    data = encode_write_request([Sample(name="a", labels=(), at_ms=1, value=math.nan)])
    assert struct.pack("<Q", STALE_NAN_BITS) in data
    assert b"\x02\x00\x00\x00\x00\x00\xf0\x7f" in data


@pytest.mark.parametrize(
    ("status", "text", "error", "words"),
    [
        (400, "out of order sample", RejectedError, "out_of_order_time_window"),
        (400, "out of bounds", RejectedError, "joulewatch export"),
        (500, "too old sample", RejectedError, "out_of_order_time_window"),
        (400, "duplicate sample for timestamp", RejectedError, "a different value"),
        (400, "label name invalid", RejectedError, "label name invalid"),
        (404, "remote write receiver needs to be enabled", UnavailableError, "--web.enable-remote-write-receiver"),
        (401, "", UnavailableError, "credentials"),
        (429, "slow down", UnavailableError, "slow down"),
        (503, "", UnavailableError, "HTTP 503: no text"),
        (300, "elsewhere", RejectedError, "HTTP 300: elsewhere"),
        (199, "", RejectedError, "HTTP 199: no text"),
        (499, "", RejectedError, "HTTP 499: no text"),
        (500, "disk full", UnavailableError, "HTTP 500: disk full"),
        (405, "", UnavailableError, "--web.enable-remote-write-receiver"),
        (403, "", UnavailableError, "credentials"),
        (500, "Too Far Behind", RejectedError, r"newer samples and refuses older ones \(Too Far Behind\)"),
        (409, "Duplicate Sample", RejectedError, r"same time \(Duplicate Sample\)"),
    ],
)
def test_the_answer_decides_whether_a_retry_helps(status: int, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _raise_for("http://p/api/v1/write", Answer(status, text))


def test_a_long_answer_is_cut_and_put_on_one_line() -> None:
    with pytest.raises(RejectedError) as excinfo:
        _raise_for("http://p/api/v1/write", Answer(400, "a\n  b\t" + "c" * 500))
    assert str(excinfo.value) == "http://p/api/v1/write: HTTP 400: a b " + "c" * 296


def test_success_is_any_2xx() -> None:
    for status in (200, 202, 204, 299):
        _raise_for("http://p/api/v1/write", Answer(status, ""))


class FakeClient:
    """Stores what is sent, and answers queries from it."""

    def __init__(self) -> None:
        self.options = PrometheusOptions("http://p")
        self.sent: list[list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]] = []
        self.refuse: set[str] = set()
        self.answer = Answer(204, "")
        self.requests = 0
        self.pings = 0
        self.is_closed = False
        self.queries: list[tuple[str, float, float]] = []
        self.retry_s = math.nan

    def ping(self) -> None:
        self.pings += 1

    def send(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        assert (method, url, headers) == ("POST", "http://p/api/v1/write", HEADERS)
        self.requests += 1
        if self.answer.status == 0:
            raise QueryUnavailableError("http://p: connection refused")
        series = [
            ([(label.name, label.value) for label in entry.labels], [(s.timestamp, s.value) for s in entry.samples])
            for entry in WriteRequest.FromString(bytes(cramjam.snappy.decompress_raw(body))).timeseries
        ]
        if any(dict(labels)["__name__"] in self.refuse for labels, _ in series):
            return Answer(400, "out of order sample")
        self.sent.append(series)
        return self.answer

    def query(self, promql: str, at_s: float, retry_s: float) -> list[dict[str, Any]]:
        self.queries.append((promql, at_s, retry_s))
        series = [entry for request in self.sent for entry in request]
        return [
            {
                "metric": {**dict(labels), "replica": "a"},
                "values": [[at_ms / 1000, repr(value)] for at_ms, value in values],
            }
            for labels, values in series
        ]

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()

    def build(options: PrometheusOptions, retry_s: float) -> FakeClient:
        assert options is fake.options
        fake.retry_s = retry_s
        return fake

    monkeypatch.setattr("joulewatch_harness.delivery.remote_write.PrometheusClient", build)
    return fake


def test_a_sink_does_not_retry_by_itself_and_closes_its_client(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    assert (sink.target, client.retry_s) == ("http://p", 0)
    sink.close()
    assert client.is_closed


def test_a_server_is_checked_with_an_empty_request(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    sink.check()
    assert (client.pings, client.sent) == (1, [[]])
    client.answer = Answer(400, "empty request")
    sink.check()
    client.answer = Answer(404, "")
    with pytest.raises(ConfigError, match=r"^http://p/api/v1/write: HTTP 404: the remote-write receiver is disabled"):
        sink.check()
    client.answer = Answer(0, "")
    with pytest.raises(ConfigError, match=r"^http://p: connection refused$"):
        sink.check()


def test_a_server_that_does_not_answer_is_unavailable(client: FakeClient) -> None:
    client.answer = Answer(0, "")
    with pytest.raises(UnavailableError, match=r"^http://p: connection refused$"):
        RemoteWriteSink(client.options).write([window_item(header(), NETWORK, window(0, 1_700_000_000.0))])


def test_text_that_is_not_valid_unicode_is_sent_with_question_marks() -> None:
    ((labels, _),) = decoded([Sample(name="a", labels=(("host", "caf\udce9"),), at_ms=1, value=2.0)])
    assert labels == [("__name__", "a"), ("host", "caf?")]


def test_an_item_is_present_only_if_all_its_samples_are(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    items = [window_item(header(), NETWORK, window(index, 1_700_000_000.0 + 2 * index)) for index in range(3)]
    sink.write(items[:2])
    assert sink.present(items) == {"window 0", "window 1"}
    _, values = client.sent[0][-1]
    values[0] = (values[0][0], values[0][1] * (1 + 1e-11))
    assert sink.present(items) == {"window 1"}


def test_refused_info_does_not_block_a_window(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    client.refuse = {"joulewatch_run_info"}
    item = window_item(header(), NETWORK, window(0, 1_700_000_000.0))
    sink.write([item])
    assert sink.present([item]) == {"window 0"}
    with pytest.raises(RejectedError):
        sink.write([item, window_item(header(), NETWORK, window(1, 1_700_000_002.0))])


def names_of(request: list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]) -> list[str]:
    return [dict(labels)["__name__"] for labels, _ in request]


def test_info_is_sent_only_if_it_is_newer_than_what_the_server_has(client: FakeClient) -> None:
    """Older info would make the server refuse the whole request."""
    sink = RemoteWriteSink(client.options)
    first, second = (window_item(header(), NETWORK, window(index, 1_700_000_000.0 + 2 * index)) for index in (0, 1))
    for item in (second, first, second):
        sink.write([item])
    assert [names_of(request).count("joulewatch_run_info") for request in client.sent] == [1, 0, 0]
    assert all("joulewatch_window_start_timestamp_seconds" in names_of(request) for request in client.sent)
    third = window_item(header(), NETWORK, window(2, 1_700_000_004.0))
    sink.write([third])
    assert "joulewatch_run_info" in names_of(client.sent[-1])


def test_a_refused_request_is_sent_again_only_without_its_info(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    client.refuse = {"joulewatch_run_info"}
    item = window_item(header(), NETWORK, window(0, 1_700_000_000.0))
    sink.write([item])
    assert client.requests == 2
    sink.write([item])
    assert client.requests == 3, "what was refused once is not tried again at the same time"
    client.refuse = {"joulewatch_window_start_timestamp_seconds"}
    with pytest.raises(RejectedError):
        sink.write([item])
    assert client.requests == 4, "without info there is nothing to leave away"


def test_items_are_read_back_fifty_at_a_time_between_their_first_and_last_sample(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    items = [window_item(header(), NETWORK, window(index, 1_700_000_000.0 + 2 * index)) for index in range(51)]
    sink.write(items)
    assert sink.present(items) == {item.name for item in items}
    assert [(at_s, retry_s) for _, at_s, retry_s in client.queries] == [
        (1_700_000_099.0, 0),
        (1_700_000_101.0, 0),
    ]
    selectors = [promql for promql, _, _ in client.queries]
    assert selectors[0].endswith(f',run="{items[0].run}"}}[98001ms]') and selectors[1].endswith("[1ms]")
    assert all("joulewatch_window_start_timestamp_seconds" in selector for selector in selectors)
    assert not any("joulewatch_run_info" in selector for selector in selectors)


def test_each_live_series_ends_with_its_last_value_at_its_end(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    active, size = (
        Sample(name="active", labels=(("run", "r"),), at_ms=0, value=1.0),
        Sample(name="size", labels=(("run", "r"),), at_ms=0, value=8.0),
    )
    sink.live("r", [active, size], [Sample(name="status", labels=(), at_ms=0, value=1.0)], 0)
    sink.live("r", [Sample(name="active", labels=(("run", "r"),), at_ms=2000, value=3.0)], [], 5000)
    sink.live("r", [], [], 9000)

    def values_of(request: int) -> dict[str, list[tuple[int, str]]]:
        return {
            dict(labels)["__name__"]: [(at_ms, repr(value)) for at_ms, value in values]
            for labels, values in client.sent[request]
        }

    assert values_of(0) == {"active": [(0, "1.0")], "size": [(0, "8.0")]}
    assert values_of(1) == {"active": [(2000, "3.0")], "size": [(5000, "8.0"), (5001, "nan")]}
    assert values_of(2) == {"active": [(9000, "3.0"), (9001, "nan")]}
    sink.live("r", [dataclasses.replace(one, at_ms=10_000) for one in (active, size)], [], 0)
    sink.live("r", [], [], 11_000)
    assert values_of(4) == {
        "active": [(11_000, "1.0"), (11_001, "nan")],
        "size": [(11_000, "8.0"), (11_001, "nan")],
    }


def test_a_live_series_never_goes_back_in_time_even_if_a_request_failed(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    sample = Sample(name="active", labels=(("run", "r"),), at_ms=7000, value=1.0)
    client.answer = Answer(503, "")
    with pytest.raises(UnavailableError):
        sink.live("r", [sample], [], 0)
    client.answer = Answer(204, "")
    sink.live("r", [dataclasses.replace(sample, at_ms=5000)], [], 0)
    sink.live("r", [], [], 0)
    times = [at_ms for request in client.sent for _, values in request for at_ms, _ in values]
    assert times == [7000, 7001, 7002, 7003]


def test_live_series_end_with_a_stale_marker_and_their_times_always_increase(client: FakeClient) -> None:
    sink = RemoteWriteSink(client.options)
    active = Sample(name="joulewatch_window_active", labels=(("run", "r"),), at_ms=1000, value=1.0)
    sink.live("r", [active], [], 1000)
    sink.live("r", [active], [], 1000)  # the same millisecond again: written one millisecond later
    sink.live("r", [], [], 900)  # the end is before the last sample
    sink.live("r", [], [], 950)  # nothing to send
    sink.live("r", [Sample(name=active.name, labels=active.labels, at_ms=1002, value=1.0)], [], 1002)
    times = [at_ms for request in client.sent for _, values in request for at_ms, _ in values]
    assert times == [1000, 1001, 1002, 1003, 1004]
    assert math.isnan(client.sent[2][0][1][1][1])
    assert len(client.sent) == 4


def test_a_redirect_is_an_outage_and_texts_of_the_server_are_escaped(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "send", lambda *_: Answer(503, "\x1b[31mmoved\x07" + "x" * 10_000))
    with pytest.raises(UnavailableError, match=r"HTTP 503: \\x1b\[31mmoved\\x07x+$") as caught:
        send_samples(client, ())  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400

    def redirected(*_: object) -> Answer:
        raise QueryError("http://p redirects to https://q/")

    monkeypatch.setattr(client, "send", redirected)
    with pytest.raises(UnavailableError, match="redirects to"):
        send_samples(client, ())  # type: ignore[arg-type]
