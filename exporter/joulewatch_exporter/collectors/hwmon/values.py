"""Read the numbers behind a quantity: one file, or a voltage and a current whose product is the power."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic_ns
from typing import Final, Protocol

from joulewatch_exporter.collectors.base.sysfs import HeldFile
from joulewatch_exporter.errors import SensorGlitchError

_ALL_ONES: Final = frozenset({2**32 - 1, (2**32 - 1) * 1000, 2**64 - 1, 2**31 - 1, 2**63 - 1})
"""An unset register, in all widths and units."""

APART_NS: Final = 1_000_000
"""Voltage and current that are read within 1 ms belong together."""

_STEADY: Final = 0.01
"""Largest relative change of the voltage between two reads around a late current: the mean is within half of it."""

_OFFSET_AMPERES: Final = 0.1
"""A shunt amplifier without load may read below zero: the INA3221 by 80 uV, which is 80 mA with 1 mOhm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFile:
    """A file with one number, and what turns it into joules, watts, volts or amperes."""

    path: str
    per_unit: float
    """The file counts in this fraction of the unit: 1e6 for microwatts."""
    scale: float = 1.0
    """Factor of IIO's raw numbers."""
    offset: float = 0.0
    """Added to IIO's raw numbers before scaling."""
    step: float | None = None
    """Smallest step of the sensor in the unit, if it is coarser than that of the file."""

    @property
    def resolution(self) -> float:
        """Smallest step in joules, watts, volts or amperes."""
        return self.scale / self.per_unit if self.step is None else self.step


class Meter(Protocol):
    """Reads a quantity."""

    def read(self) -> tuple[int, float]:
        """Return the monotonic time of the read and the value in joules or watts."""
        ...

    def close(self) -> None: ...


class FileMeter:
    """One file with a power or an energy."""

    __slots__ = ("_file", "_offset", "_per_unit", "_scale", "_zero_is_no_data")

    def __init__(self, file: ValueFile, *, zero_is_no_data: bool) -> None:
        self._file = HeldFile(file.path)
        self._per_unit = file.per_unit
        self._scale = file.scale
        self._offset = file.offset
        self._zero_is_no_data = zero_is_no_data

    def read(self) -> tuple[int, float]:
        """Read the file once.

        Raises:
            SensorAbsentError: The device is unplugged or its driver is unloaded.
            SensorDeniedError: Permission was lost; the text names the path.
            SensorGlitchError: The driver has no value now (ENODATA, all bits ones, negative, or 0 W meaning no data).
        """
        raw = _read_number(self._file)
        now_ns = monotonic_ns()
        if raw <= 0 and (raw < 0 or self._zero_is_no_data):
            raise SensorGlitchError(f"{self._file.path}: {raw}: the driver has no value now")
        return now_ns, (raw + self._offset) * self._scale / self._per_unit

    def close(self) -> None:
        self._file.close()


class ProductMeter:
    """Voltage times current."""

    __slots__ = ("_amperes", "_amperes_file", "_volts", "_volts_file", "_zero_is_no_data")

    def __init__(self, volts: ValueFile, amperes: ValueFile, *, zero_is_no_data: bool) -> None:
        self._volts = volts
        self._volts_file = HeldFile(volts.path)
        self._amperes = amperes
        self._amperes_file = HeldFile(amperes.path)
        self._zero_is_no_data = zero_is_no_data

    def read(self) -> tuple[int, float]:
        """Read both files within 1 ms, or the voltage twice.

        A supply's voltage changes slowly, its current does not. If the current was read more than 1 ms after the
        voltage, because the bus is slow or another process ran, the voltage is read again and its mean is used.

        Raises:
            SensorGlitchError: A file has no value now, the current flows backwards, or the voltage changed by more
                than 1 % around a late current.
            SensorAbsentError, SensorDeniedError: As `FileMeter.read`.
        """
        volts, amperes, now_ns = self._read_both()
        if amperes < 0:
            if amperes < -_OFFSET_AMPERES:
                raise SensorGlitchError(f"{self._amperes_file.path}: {amperes:g} A: the current flows backwards")
            amperes = 0.0
        watts = volts * amperes
        if watts == 0 and self._zero_is_no_data:
            raise SensorGlitchError(f"{self._amperes_file.path}: 0 W: the driver has no value now")
        return now_ns, watts

    def read_resolution(self) -> float:
        """Return the smallest step of the product, in watts, at the present voltage and current."""
        volts, amperes, _ = self._read_both()
        return volts * self._amperes.resolution + abs(amperes) * self._volts.resolution

    def _read_both(self) -> tuple[float, float, int]:
        volts = self._read_volts()
        volts_ns = monotonic_ns()
        amperes = _scaled(self._amperes, _read_number(self._amperes_file))
        now_ns = monotonic_ns()
        if now_ns - volts_ns > APART_NS:
            after = self._read_volts()
            if abs(after - volts) > _STEADY * max(after, volts):
                raise SensorGlitchError(
                    f"{self._volts_file.path}: {volts:g} V and {after:g} V around a current that took "
                    f"{(now_ns - volts_ns) / 1e6:.1f} ms to read"
                )
            volts = (volts + after) / 2
        return volts, amperes, now_ns

    def _read_volts(self) -> float:
        volts = _scaled(self._volts, _read_number(self._volts_file))
        if volts < 0:
            raise SensorGlitchError(f"{self._volts_file.path}: {volts:g} V is not the voltage of a supply")
        return volts

    def close(self) -> None:
        self._volts_file.close()
        self._amperes_file.close()


def _scaled(file: ValueFile, raw: float) -> float:
    return (raw + file.offset) * file.scale / file.per_unit


def _read_number(file: HeldFile) -> float:
    """Read a whole number, or the decimals of an IIO driver.

    Raises:
        SensorGlitchError: The text is not a number, or all its bits are ones.
        SensorAbsentError, SensorDeniedError: As `FileMeter.read`.
    """
    text = file.read_bytes()
    try:
        raw: float = int(text)
    except ValueError:
        raw = _decimal(file.path, text)
    if raw in _ALL_ONES:
        raise SensorGlitchError(f"{file.path}: {raw} is not a measurement (all bits are ones)")
    return raw


def _decimal(path: str, text: bytes) -> float:
    shown = text[:40].decode("utf-8", "replace")
    try:
        number = float(text)
    except ValueError as error:
        raise SensorGlitchError(f"{path}: {shown!r} is not a number") from error
    if not math.isfinite(number):
        raise SensorGlitchError(f"{path}: {shown!r} is not a number")
    return number
