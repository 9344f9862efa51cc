"""Read the sensor data records of a BMC; this takes up to a minute on real BMCs, so it can be interrupted.

Source: IPMI v2.0 revision 1.1, chapters 33.9 to 33.12 (SDR repository) and 35.2 to 35.4 (device SDRs).
"""

from __future__ import annotations

import struct
import time
from typing import Final

from joulewatch_exporter.collectors.ipmi.channel import Channel, UnknownCommandError, request
from joulewatch_exporter.collectors.ipmi.records import PowerSensor, power_sensor
from joulewatch_exporter.errors import SensorGlitchError

_HEADER_BYTES: Final = 5
_LAST: Final = 0xFFFF
_WHOLE: Final = 0xFF
_FIRST_PIECE: Final = 32
_SMALLEST_PIECE: Final = 8
_MAX_RECORDS: Final = 4096
_TOO_LONG: Final = frozenset({0xC6, 0xC7, 0xC8, 0xCA, 0xFF})
"""Completion codes of BMCs that cannot send so many bytes at once."""
_LOST_RESERVATION: Final = 0xC5
_MAX_RESERVATIONS: Final = 8
_FULL_RECORD: Final = 0x01

_REPOSITORY: Final = (0x0A, 0x20, 0x22, 0x23)
_DEVICE: Final = (0x04, 0x20, 0x22, 0x21)
"""Network function, then the commands info, reserve and get."""


class RepositoryReader:
    """One pass over the records, which can be interrupted and continued."""

    def __init__(self) -> None:
        self.sensors: list[PowerSensor] = []
        self.count = 0
        """Records read so far."""
        self.version = b""
        """Identifies the state of the repository."""
        self._netfn, self._info, self._reserve, self._get = _REPOSITORY
        self._next = 0
        self._piece = _WHOLE
        self._reservation = 0
        self._reservations = 0

    def start(self, channel: Channel) -> None:
        """Find the records and the version of the repository.

        Raises:
            UnknownCommandError: The BMC has no records.
            SensorError: See `request`.
        """
        try:
            info = request(channel, "SDR repository info", self._netfn, self._info)
        except UnknownCommandError:
            self._netfn, self._info, self._reserve, self._get = _DEVICE
            info = request(channel, "device SDR info", self._netfn, self._info)
            self.version = info
            return
        if len(info) < 14:
            raise SensorGlitchError(f"{channel.where}: SDR repository info: invalid answer of {len(info)} bytes")
        # Version, number of records, last addition and last erasure, without the free space.
        self.version = info[:3] + info[5:13]

    def read_until(self, channel: Channel, end_s: float) -> bool:
        """Continue reading until the monotonic time ``end_s``; return whether all records have been read.

        Raises:
            SensorError: See `request`; records read so far are kept.
        """
        self._reservation = 0  # the old one belongs to another session
        self._reservations = 0
        while self._next != _LAST:
            if time.monotonic() >= end_s:
                return False
            following, record = self._record(channel, self._next)
            if following == self._next or self.count >= _MAX_RECORDS:
                raise UnknownCommandError(f"{channel.where}: the SDR repository never ends")
            self._next = following
            self.count += 1
            if (sensor := power_sensor(record)) is not None:
                self.sensors.append(sensor)
        return True

    def _record(self, channel: Channel, number: int) -> tuple[int, bytes]:
        """Return the number of the next record, and this record; of records that are not full ones only the header."""
        if self._piece == _WHOLE:
            code, answer = self._read(channel, number, 0, _WHOLE)
            if code == 0:
                following, record = self._split(channel, answer, _HEADER_BYTES)
                if len(record) >= record[4] + _HEADER_BYTES:
                    return following, record
                # Truncated without an error code.
            elif code not in _TOO_LONG:
                self._fail(channel, code)
            self._piece = _FIRST_PIECE
        while True:
            following, record = self._split(
                channel, self._read_or_fail(channel, number, 0, _HEADER_BYTES), _HEADER_BYTES
            )
            if record[3] != _FULL_RECORD:
                return following, record
            complete = self._in_pieces(channel, number, record)
            if complete is not None:
                return following, complete

    def _in_pieces(self, channel: Channel, number: int, record: bytes) -> bytes | None:
        """Return the record with this header; None: the reservation was lost, start the record again."""
        length = record[4] + _HEADER_BYTES
        while len(record) < length:
            count = min(self._piece, length - len(record))
            code, answer = self._read(channel, number, len(record), count)
            if code == _LOST_RESERVATION:
                self._reservation = 0
                return None
            if code in _TOO_LONG and self._piece > _SMALLEST_PIECE:
                self._piece //= 2
                continue
            if code:
                self._fail(channel, code)
            _, piece = self._split(channel, answer, 0)
            if not piece:
                break  # shorter than its header states
            record += piece[:count]
        return record

    def _read_or_fail(self, channel: Channel, number: int, offset: int, count: int) -> bytes:
        code, answer = self._read(channel, number, offset, count)
        if code:
            self._fail(channel, code)
        return answer

    def _read(self, channel: Channel, number: int, offset: int, count: int) -> tuple[int, bytes]:
        if not self._reservation and count != _WHOLE:
            self._reservations += 1
            if self._reservations > _MAX_RESERVATIONS + self.count:
                raise SensorGlitchError(
                    f"{channel.where}: SDR: other programs read the records at the same time and cancel the reservation"
                )
            answer = request(channel, "reserve SDR", self._netfn, self._reserve)
            self._reservation = int.from_bytes(answer[:2], "little")
        reservation = 0 if count == _WHOLE else self._reservation
        return channel.send(self._netfn, self._get, struct.pack("<HHBB", reservation, number, offset, count))

    @staticmethod
    def _split(channel: Channel, answer: bytes, min_bytes: int) -> tuple[int, bytes]:
        if len(answer) < 2 + min_bytes:
            raise SensorGlitchError(f"{channel.where}: SDR: invalid answer of {len(answer)} bytes")
        return int.from_bytes(answer[:2], "little"), answer[2:]

    def _fail(self, channel: Channel, code: int) -> None:
        if code == _LOST_RESERVATION:
            self._reservation = 0
        raise SensorGlitchError(f"{channel.where}: reading the SDR failed (completion code {code:02X}h)")
