"""Prometheus remote write 1.0: the default way of a run's annotations.

Exact times, and sending the same samples again does no harm. The protobuf message has two levels and four
fields, and a snappy block may consist of literals only, so both are written here (tests decode them with
the real libraries) and no dependency is needed.

Source:
    Prometheus Remote-Write 1.0 specification; prompb/remote.proto; google/snappy format_description.txt.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from joulewatch_harness import __version__
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clients.prometheus import Answer, PrometheusClient
from joulewatch_harness.delivery.annotations import Labels, Sample, by_series
from joulewatch_harness.delivery.sinks import Item, RejectedError, UnavailableError, in_pieces, read_back, same
from joulewatch_harness.errors import ConfigError, QueryUnavailableError

logger = logging.getLogger(__name__)

STALE_NAN_BITS: Final = 0x7FF0000000000002
"""The NaN by which Prometheus knows that a series has ended."""
LITERAL_BYTES: Final = 65536
READ_BACK_ITEMS: Final = 50
HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": f"joulewatch/{__version__}",
}
RECEIVER_OFF: Final = (
    "the remote-write receiver is off: start Prometheus with --web.enable-remote-write-receiver, or give --pushgateway"
)

_UINT64: Final = 2**64 - 1


def encode_write_request(samples: Iterable[Sample]) -> bytes:
    """The samples as a ``prometheus.WriteRequest``: labels sorted, samples of a series ascending.

    Every NaN is sent as the stale marker: joulewatch has no other.
    """
    request = bytearray()
    for (name, labels), of_series in by_series(samples).items():
        series = bytearray()
        for key, value in sorted((*labels, ("__name__", name))):
            series += _field(1, _field(1, _utf8(key)) + _field(2, _utf8(value)))
        for item in of_series:
            bits = STALE_NAN_BITS if math.isnan(item.value) else None
            value_bytes = struct.pack("<d", item.value) if bits is None else struct.pack("<Q", bits)
            series += _field(2, b"\x09" + value_bytes + b"\x10" + _varint(item.at_ms & _UINT64))
        request += _field(1, bytes(series))
    return bytes(request)


def snappy_block(data: bytes) -> bytes:
    """A snappy block of literals: valid, and not smaller."""
    block = bytearray(_varint(len(data)))
    for first in range(0, len(data), LITERAL_BYTES):
        piece = data[first : first + LITERAL_BYTES]
        if len(piece) <= 60:
            block.append((len(piece) - 1) << 2)
        else:
            block.append(61 << 2)  # the length less one follows in two bytes
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
        UnavailableError: nothing answers, 429, 5xx, the receiver is off, or the credentials are refused.
        RejectedError: the server says that it will not take them; Prometheus then took none.
    """
    body = snappy_block(encode_write_request(samples))
    try:
        answer = client.send("POST", client.options.write_url, body, HEADERS)
    except QueryUnavailableError as error:
        raise UnavailableError(str(error)) from error
    _raise_for(client.options.write_url, answer)


def _raise_for(url: str, answer: Answer) -> None:
    text = " ".join(answer.text.split())[:300]
    if 200 <= answer.status < 300:
        return
    if answer.status in (404, 405):
        raise UnavailableError(f"{url}: HTTP {answer.status}: {RECEIVER_OFF}")
    if answer.status in (401, 403):
        raise UnavailableError(f"{url}: HTTP {answer.status}: the credentials are refused: see --prometheus.config")
    lower = text.lower()
    if any(words in lower for words in ("out of order", "out of bounds", "too old", "too far behind")):
        # Prometheus answers 500 to what is older than its out-of-order window: for ever.
        raise RejectedError(
            f"{url} holds newer samples and refuses older ones ({text}): set storage.tsdb.out_of_order_time_window "
            "(7d, say) in its configuration and use 'joulewatch runs push', or import 'joulewatch export'"
        )
    if "duplicate sample" in lower:
        raise RejectedError(f"{url} holds another value at the same time ({text})")
    if answer.status == 429 or answer.status >= 500:
        raise UnavailableError(f"{url}: HTTP {answer.status}: {text or 'no text'}")
    raise RejectedError(f"{url}: HTTP {answer.status}: {text or 'no text'}")


class RemoteWriteSink:
    """Delivers by remote write and reads back over the query API of the same Prometheus."""

    way = "remote_write"
    # A power failure may take from the server what it had accepted. VictoriaMetrics shows new samples late, and
    # would keep a repetition as a second sample: well after its 30 s.
    resend_after_s: float | None = 60.0

    def __init__(self, options: PrometheusOptions) -> None:
        self._client = PrometheusClient(options, retry_s=0)
        self.target = options.url
        self._newest_ms: dict[tuple[str, Labels], int] = {}
        self._shown: dict[tuple[str, Labels], Sample] = {}

    def check(self) -> None:
        """Ask for the version, and write nothing at all: 404 says that the receiver is off.

        Raises:
            QueryError: no Prometheus answers.
            ConfigError: it takes no samples.
        """
        self._client.ping()
        try:
            send_samples(self._client, ())
        except UnavailableError as error:
            raise ConfigError(str(error)) from error
        except RejectedError as error:
            # Some receivers refuse an empty request: they are there, which is all we asked.
            logger.debug("empty request refused: %s", error)

    def write(self, items: Sequence[Item]) -> None:
        """Write items with one request; see ``send_samples`` for the errors."""
        samples = [sample for item in items for sample in item.samples]
        # Info that is older than info already there would have the whole request refused.
        info = [sample for item in items for sample in item.info if sample.at_ms > self._newest(sample)]
        try:
            send_samples(self._client, (*samples, *info))
        except RejectedError:
            if not info or len(items) > 1:
                raise
            send_samples(self._client, samples)
        self._remember(info)

    def present(self, items: Sequence[Item]) -> set[str]:
        """Items all of whose samples are there, with their times and values."""
        return in_pieces(items, READ_BACK_ITEMS, self._present)

    def _present(self, items: Sequence[Item]) -> set[str]:
        names = {sample.name for item in items for sample in item.samples}
        times = [sample.at_ms for item in items for sample in item.samples]
        found = read_back(self._client, items[0].run, names, start_ms=min(times), end_ms=max(times))
        stored = {(name, labels, at_ms): value for (name, labels), values in found.items() for at_ms, value in values}
        return {
            item.name
            for item in items
            if all(same(stored.get((one.name, one.labels, one.at_ms), math.nan), one.value) for one in item.samples)
        }

    def settle(self, items: Sequence[Item]) -> None:
        """Nothing to clean up."""

    def live(self, run: str, current: Sequence[Sample], standing: Sequence[Sample], gone_ms: int) -> None:
        """Write the live series; those that ended get their last value and the stale marker."""
        now = {(sample.name, sample.labels): sample for sample in current}
        samples = []
        for key, last in self._shown.items():
            if key not in now:
                at_ms = max(gone_ms, self._newest(last) + 1)
                samples += [Sample(*key, at_ms, last.value), Sample(*key, at_ms + 1, math.nan)]
        samples += [Sample(*key, max(one.at_ms, self._newest(one) + 1), one.value) for key, one in now.items()]
        self._shown = now
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
