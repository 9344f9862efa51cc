"""Delivery by Prometheus remote write 1.0, the default.

Times are exact, and samples may be sent again. The protobuf message has two levels and four fields, and a snappy block
may consist of literals only; so both are encoded here, without a dependency. Tests decode them with the real libraries.

Source:
    Prometheus Remote-Write 1.0 specification; prompb/remote.proto; google/snappy format_description.txt.
"""

from __future__ import annotations

import logging
import math
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from joulewatch_exporter import catalog
from joulewatch_harness import __version__
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import Answer, PrometheusClient
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.delivery.annotations import Labels, Sample, by_series
from joulewatch_harness.delivery.sinks import Item, RejectedError, UnavailableError, in_pieces, read_back, same
from joulewatch_harness.errors import ConfigError, QueryError, one_line

logger = logging.getLogger(__name__)

STALE_NAN_BITS: Final = 0x7FF0000000000002
"""The NaN that marks the end of a series in Prometheus."""
LITERAL_BYTES: Final = 65536
READ_BACK_ITEMS: Final = 50
HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": f"joulewatch/{__version__}",
}
RECEIVER_OFF: Final = (
    "the remote-write receiver is disabled: start Prometheus with --web.enable-remote-write-receiver, "
    "or use --pushgateway"
)

_UINT64: Final = 2**64 - 1


def encode_write_request(samples: Iterable[Sample]) -> bytes:
    """Encode samples as a ``prometheus.WriteRequest``: labels sorted, samples of a series ascending.

    Every NaN is encoded as the stale marker; joulewatch sends no other NaN.
    """
    request = bytearray()
    for (name, labels), of_series in by_series(samples).items():
        series = bytearray()
        for key, value in sorted((*labels, ("__name__", name))):
            series += _field(1, _field(1, _utf8(key)) + _field(2, _utf8(value)))
        for sample in of_series:
            is_nan = math.isnan(sample.value)
            value_bytes = struct.pack("<Q", STALE_NAN_BITS) if is_nan else struct.pack("<d", sample.value)
            series += _field(2, b"\x09" + value_bytes + b"\x10" + _varint(sample.at_ms & _UINT64))
        request += _field(1, bytes(series))
    return bytes(request)


def snappy_block(data: bytes) -> bytes:
    """Return a snappy block of literals, which is valid but not smaller."""
    block = bytearray(_varint(len(data)))
    for first in range(0, len(data), LITERAL_BYTES):
        piece = data[first : first + LITERAL_BYTES]
        if len(piece) <= 60:
            block.append((len(piece) - 1) << 2)
        else:
            block.append(61 << 2)  # length - 1 follows in two bytes
            block += (len(piece) - 1).to_bytes(2, "little")
        block += piece
    return bytes(block)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def send_samples(client: PrometheusClient, samples: Iterable[Sample]) -> None:
    """Write samples with one request.

    Raises:
        UnavailableError: no answer, 429, 5xx, a redirect, the receiver is disabled, or the credentials are refused.
        RejectedError: the server refuses the samples; Prometheus has then stored none of them.
    """
    body = snappy_block(encode_write_request(samples))
    try:
        answer = client.send("POST", client.options.write_url, body, HEADERS)
    except QueryError as error:
        raise UnavailableError(str(error)) from error
    _raise_for(client.options.write_url, answer)


def _raise_for(url: str, answer: Answer) -> None:
    text = one_line(answer.text)
    if 200 <= answer.status < 300:
        return
    if answer.status in (404, 405):
        raise UnavailableError(f"{url}: HTTP {answer.status}: {RECEIVER_OFF}")
    if answer.status in (401, 403):
        raise UnavailableError(f"{url}: HTTP {answer.status}: the credentials are refused: see --prometheus.config")
    lower = text.lower()
    if any(words in lower for words in ("out of order", "out of bounds", "too old", "too far behind")):
        # For samples older than its out-of-order window, Prometheus always answers 500.
        raise RejectedError(
            f"{url} has newer samples and refuses older ones ({text}): set storage.tsdb.out_of_order_time_window "
            "(for example 7d) in its configuration and use 'joulewatch runs push', or import 'joulewatch export'"
        )
    if "duplicate sample" in lower:
        raise RejectedError(f"{url} has a different value at the same time ({text})")
    if answer.status == 429 or answer.status >= 500:
        raise UnavailableError(f"{url}: HTTP {answer.status}: {text or 'no text'}")
    raise RejectedError(f"{url}: HTTP {answer.status}: {text or 'no text'}")


class RemoteWriteSink:
    """Writes by remote write and reads back from the query API of the same Prometheus."""

    way = "remote_write"
    # A power failure may lose samples that the server had accepted. VictoriaMetrics shows new samples after up to 30 s
    # and would store a repetition as a second sample, so wait well longer than that.
    resend_after_s: float | None = 60.0

    def __init__(self, options: PrometheusOptions) -> None:
        self._client = PrometheusClient(options, retry_s=0)
        self.target = options.url
        self._newest_ms: dict[tuple[str, Labels], int] = {}
        self._shown: dict[tuple[str, Labels], Sample] = {}

    def check(self) -> None:
        """Query the version and as a read-back does, and send an empty request: 404 means a disabled receiver.

        Raises:
            QueryError: no Prometheus answers.
            ConfigError: it accepts no samples.
        """
        self._client.ping()
        now_ms = to_ms(time.time())
        read_back(self._client, "", [catalog.RUN_STATUS.name], start_ms=now_ms, end_ms=now_ms)
        try:
            send_samples(self._client, ())
        except UnavailableError as error:
            raise ConfigError(str(error)) from error
        except RejectedError as error:
            # Some receivers refuse an empty request; the answer proves that they are enabled.
            logger.debug("empty request refused: %s", error)

    def write(self, items: Sequence[Item]) -> None:
        """Write items with one request; raise the errors of ``send_samples``."""
        samples = [sample for item in items for sample in item.samples]
        # Info that is older than stored info would make the server refuse the whole request.
        info = [sample for item in items for sample in item.info if sample.at_ms > self._newest(sample)]
        try:
            send_samples(self._client, (*samples, *info))
        except RejectedError:
            if not info or len(items) > 1:
                raise
            send_samples(self._client, samples)
        self._remember(info)

    def present(self, items: Sequence[Item]) -> set[str]:
        """Return the items whose samples are all stored, with their times and values."""
        return in_pieces(items, READ_BACK_ITEMS, self._present)

    def _present(self, items: Sequence[Item]) -> set[str]:
        names = {sample.name for item in items for sample in item.samples}
        times = [sample.at_ms for item in items for sample in item.samples]
        series = read_back(self._client, items[0].run, names, start_ms=min(times), end_ms=max(times))
        stored = {(name, labels, at_ms): value for (name, labels), values in series.items() for at_ms, value in values}
        return {
            item.name
            for item in items
            if all(same(stored.get((one.name, one.labels, one.at_ms), math.nan), one.value) for one in item.samples)
        }

    def settle(self, items: Sequence[Item]) -> None:
        """Do nothing: there is nothing to clean up."""

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], ended_ms: int) -> None:
        """Write the live series; series that have ended get their last value and the stale marker."""
        by_key = {(sample.name, sample.labels): sample for sample in current}
        samples = []
        for key, last in self._shown.items():
            if key not in by_key:
                at_ms = max(ended_ms, self._newest(last) + 1)
                samples += [replace(last, at_ms=at_ms), replace(last, at_ms=at_ms + 1, value=math.nan)]
        samples += [replace(sample, at_ms=max(sample.at_ms, self._newest(sample) + 1)) for sample in current]
        self._shown = by_key
        if samples:
            self._remember(samples)
            send_samples(self._client, samples)

    def _newest(self, sample: Sample) -> int:
        return self._newest_ms.get((sample.name, sample.labels), -1)

    def _remember(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            key = (sample.name, sample.labels)
            self._newest_ms[key] = max(sample.at_ms, self._newest_ms.get(key, -1))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
