"""Decode a BMC's answers to watts: the DCMI power reading, and sensor data records with their readings.

This module has no I/O: it converts bytes to numbers or raises `SensorError`.

Source: DCMI 1.5, chapter 6.6.1; IPMI v2.0 revision 1.1, tables 5-2 (completion codes), 33-7 (timestamps), chapters
35.14 (Get Sensor Reading), 36 (reading conversion), tables 43-1 (full sensor record) and 43-15 (type/length byte).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from joulewatch_exporter.errors import SensorGlitchError
from joulewatch_exporter.model import Component

MAX_POWER_WATTS: Final = 65535.0
"""The largest value of the protocol: DCMI has 16 bits."""

_DCMI_READING: Final = struct.Struct("<BHHHHIIB")
_DCMI_GROUP: Final = 0xDC
_IS_MEASURING: Final = 0x40

_FULL_RECORD: Final = 0x01
_OWN_ADDRESS: Final = 0x20
_WATTS: Final = 6

_READING_UNAVAILABLE: Final = 0x20
_SCANNING: Final = 0x40

NODE_SENSORS: Final = frozenset(
    {
        "pwrconsumption",
        "powerconsumption",
        "systemlevel",
        "systempower",
        "syspower",
        "totalpower",
        "nodepower",
        "powermeter",
        "pwrusage",
        "powerusage",
        "avgpower",
    }
)
"""Vendors' names of the sensor of the whole server, lower case, without spaces and punctuation."""

_PARTS: Final[tuple[tuple[re.Pattern[str], Component], ...]] = (
    (re.compile(r"dimm|mem"), "memory"),
    (re.compile(r"gpu"), "gpu"),
    (re.compile(r"fpga"), "fpga"),
    (re.compile(r"cpu|proc"), "cpu"),
)


class NotMeasuringError(SensorGlitchError):
    """The BMC reports that it does not measure its power."""


class DcmiReading(NamedTuple):
    """An answer to Get Power Reading."""

    watts: float
    """The momentary power. Minimum, maximum and average are ignored, because on many BMCs they cover the time since the
    BMC started."""
    is_active: bool
    """Whether the BMC reports that it measures."""


def dcmi_reading(data: bytes) -> DcmiReading:
    """Return the reading in an answer to Get Power Reading.

    Args:
        data: The answer after the completion code.

    Raises:
        NotMeasuringError: The BMC does not measure, and has no value.
        SensorGlitchError: The answer is too short, or the value means "no value".
    """
    if len(data) < _DCMI_READING.size or data[0] != _DCMI_GROUP:
        raise SensorGlitchError(f"DCMI power reading: invalid answer of {len(data)} bytes: {data[:4].hex()}")
    watts, *_, state = (_DCMI_READING.unpack_from(data))[1:]
    is_active = bool(state & _IS_MEASURING)
    if watts in (0, 0xFFFF) and not is_active:
        raise NotMeasuringError("DCMI power reading: the BMC is not measuring now")
    if watts == 0:
        raise SensorGlitchError("DCMI power reading: 0 W: the BMC has no value")
    if watts == 0xFFFF:
        raise SensorGlitchError("DCMI power reading: 65535 W is not a measurement (all bits are ones)")
    return DcmiReading(float(watts), is_active)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


_LINEARIZATIONS: Final[tuple[Callable[[float], float], ...]] = (
    lambda x: x,
    math.log,
    math.log10,
    math.log2,
    math.exp,
    lambda x: 10.0**x,
    lambda x: 2.0**x,
    lambda x: 1.0 / x,
    lambda x: x**2,
    lambda x: x**3,
    math.sqrt,
    math.cbrt,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSensor:
    """A sensor in watts, from its full record."""

    name: str
    number: int
    lun: int
    data_format: int
    """0: unsigned, 1: one's complement, 2: two's complement."""
    linearization: int
    m: int
    b: int
    b_exponent: int
    result_exponent: int
    tolerance: int
    """Tolerance in half steps."""
    stated_accuracy: float
    """Relative; 0: the record states no accuracy."""
    nominal: int | None
    """The raw nominal reading, if the record states one."""

    def watts(self, raw: float) -> float:
        """Convert a raw reading."""
        linear = (self.m * raw + self.b * 10.0**self.b_exponent) * 10.0**self.result_exponent
        return _LINEARIZATIONS[self.linearization](linear)

    @property
    def step_watts(self) -> float:
        """One step of the reading, if the scale is linear."""
        return abs(self.m) * 10.0**self.result_exponent

    @property
    def imprecision_watts(self) -> float:
        """Half a step plus the stated tolerance."""
        return self.step_watts * (1 + self.tolerance) / 2

    @property
    def accuracy(self) -> float | None:
        """Relative accuracy: the stated accuracy plus the imprecision at the nominal reading; None: unknown.

        Many records state an accuracy (0.01 %) that is a hundred times finer than the sensor's step. Without a nominal
        reading, to which the step can be related, the statement is therefore not used.
        """
        if self.linearization or self.nominal is None or not (nominal_watts := self._of_raw(self.nominal)) > 0:
            return None
        return self.stated_accuracy + self.imprecision_watts / nominal_watts

    @property
    def resolution(self) -> str:
        """Text such as ``4 W`` for display; empty if the scale is not linear."""
        return f"{self.step_watts:g} W" if self.linearization == 0 else ""

    def power_watts(self, data: bytes) -> float:
        """Return the power from an answer to Get Sensor Reading.

        Args:
            data: The answer after the completion code.

        Raises:
            SensorGlitchError: The sensor has no value now, or the reading is at the end of the scale.
        """
        if len(data) < 2:
            raise SensorGlitchError(f"sensor {self.name}: invalid answer of {len(data)} bytes")
        if data[1] & _READING_UNAVAILABLE or not data[1] & _SCANNING:
            raise SensorGlitchError(f"sensor {self.name}: the BMC has no value now")
        raw = data[0]
        if raw == (0xFF, 0x7F, 0x7F)[self.data_format]:
            raise SensorGlitchError(f"sensor {self.name}: at the end of the scale, the power is unknown")
        try:
            power_watts = self._of_raw(raw)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise SensorGlitchError(f"sensor {self.name}: reading {raw} is outside the scale") from None
        if not 0.0 <= power_watts <= MAX_POWER_WATTS:
            raise SensorGlitchError(f"sensor {self.name}: {power_watts:g} W is not a plausible power")
        return power_watts

    def _of_raw(self, raw: int) -> float:
        if self.data_format:
            value = _signed(raw, 8)
            raw = value + 1 if self.data_format == 1 and value < 0 else value
        return self.watts(raw)


def power_sensor(record: bytes) -> PowerSensor | None:
    """Return the sensor of a record if it is in watts and owned by this BMC, else None.

    Args:
        record: A complete sensor data record with its header.
    """
    if len(record) < 48 or record[3] != _FULL_RECORD or record[5] != _OWN_ADDRESS or record[6] >> 4:
        return None
    units = record[20]
    data_format = units >> 6
    # Rates, percentages and products of units are not powers.
    if data_format == 3 or units & 0x3F or record[21] != _WATTS:
        return None
    linearization = record[23] & 0x7F
    if linearization >= len(_LINEARIZATIONS):
        return None
    m = _signed(record[24] | record[25] >> 6 << 8, 10)
    name = _text(record[47], record[48:])
    if m == 0 or not name:
        return None
    accuracy = (record[27] & 0x3F) | record[28] >> 4 << 6
    return PowerSensor(
        name=name,
        number=record[7],
        lun=record[6] & 0x03,
        data_format=data_format,
        linearization=linearization,
        m=m,
        b=_signed(record[26] | record[27] >> 6 << 8, 10),
        b_exponent=_signed(record[29] & 0x0F, 4),
        result_exponent=_signed(record[29] >> 4, 4),
        tolerance=record[25] & 0x3F,
        stated_accuracy=accuracy * 10.0 ** (record[28] >> 2 & 0x03) / 10_000,
        nominal=record[31] if record[30] & 0x01 else None,
    )


def _text(type_and_length: int, data: bytes) -> str:
    """Decode a name (table 43-15)."""
    kind, data = type_and_length >> 6, data[: type_and_length & 0x1F]
    if kind == 1:
        text = "".join("0123456789 -.:,_"[nibble] for byte in data for nibble in (byte >> 4, byte & 0x0F))
    elif kind == 2:
        bits = int.from_bytes(data, "little")
        text = "".join(chr(0x20 + (bits >> 6 * index & 0x3F)) for index in range(len(data) * 8 // 6))
    else:
        text = data.decode("utf-8" if kind == 0 else "latin-1", "replace")
    return "".join(letter for letter in text if letter.isprintable()).strip()


def plain(name: str) -> str:
    """Return a sensor's name for comparison: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def node_candidates(sensors: Sequence[PowerSensor]) -> tuple[PowerSensor, ...]:
    """Return the sensors that measure the whole server, according to their names."""
    return tuple(sensor for sensor in sensors if plain(sensor.name) in NODE_SENSORS)


def component_of(name: str) -> Component:
    """Return the component of a part, from the sensor's name."""
    return next((component for pattern, component in _PARTS if pattern.search(name.lower())), "other")


def domain_of(name: str) -> str:
    """Return a sensor's name as a label value: ``PSU1 Input`` becomes ``psu1_input``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "sensor"
