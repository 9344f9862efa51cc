"""Real decoders read exactly the samples that were encoded."""

from __future__ import annotations

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
    STALE_NAN_BITS,
    RemoteWriteSink,
    _raise_for,
    encode_write_request,
    snappy_block,
)
from joulewatch_harness.delivery.sinks import RejectedError, UnavailableError, window_item
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
        (503, "", UnavailableError, "no text"),
    ],
)
def test_the_answer_decides_whether_a_retry_helps(status: int, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _raise_for("http://p/api/v1/write", Answer(status, text))


def test_success_is_any_2xx() -> None:
    for status in (200, 202, 204):
        _raise_for("http://p/api/v1/write", Answer(status, ""))


class FakeClient:
    """Stores what is sent, and answers queries from it."""

    def __init__(self) -> None:
        self.options = PrometheusOptions("http://p")
        self.sent: list[list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]] = []
        self.refuse: set[str] = set()

    def send(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        assert headers["Content-Encoding"] == "snappy"
        series = [
            ([(label.name, label.value) for label in entry.labels], [(s.timestamp, s.value) for s in entry.samples])
            for entry in WriteRequest.FromString(bytes(cramjam.snappy.decompress_raw(body))).timeseries
        ]
        if any(dict(labels)["__name__"] in self.refuse for labels, _ in series):
            return Answer(400, "out of order sample")
        self.sent.append(series)
        return Answer(204, "")

    def query(self, promql: str, at_s: float, retry_s: float) -> list[dict[str, Any]]:
        series = [entry for request in self.sent for entry in request]
        return [
            {
                "metric": {**dict(labels), "replica": "a"},
                "values": [[at_ms / 1000, repr(value)] for at_ms, value in values],
            }
            for labels, values in series
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr("joulewatch_harness.delivery.remote_write.PrometheusClient", lambda options, retry_s: fake)
    return fake


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
