"""An emulated baseboard management controller: the power of a node by DCMI and by SDR sensors, over LAN.

``ipmitool``, FreeIPMI and pyghmi can read it. The value follows the signal of the node and is updated every
``refresh_s``, like the readings of a BMC; faults occur at the times of the scenario.

Source: DCMI 1.5, chapter 6.6.1 (Get Power Reading); IPMI v2.0 revision 1.1, chapters 20 (Get Device ID), 28
(Chassis Status), 33 (SDR repository), 35 (sensors) and 43 (SDR records).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import Fault, check_faults
from joulewatch_exporter.emulator.files import write_private
from joulewatch_exporter.emulator.rmcp import (
    BAD_FIELD,
    BAD_LENGTH,
    CANNOT_RETURN,
    INVALID_COMMAND,
    LOST_RESERVATION,
    NO_SUCH_THING,
    NODE_BUSY,
    NOT_ALLOWED,
    OK,
    PRIVILEGES,
    RmcpServer,
    User,
)
from joulewatch_exporter.emulator.signals import Signal

logger = logging.getLogger(__name__)

Privilege = Literal["user", "operator", "administrator"]

BMC_FAULTS: Final = (
    "hang",
    "vanish",
    "reset",
    "glitch",
    "busy",
    "inactive",
    "misreported",
    "zero",
    "garbage",
    "denied",
    "stuck",
)
"""hang: no answers; vanish: the port is closed; reset: the sessions are lost; glitch: completion code CBh; busy: C0h;
inactive: the measurement is off, and DCMI repeats its last value; misreported: DCMI reports that the measurement is
off, although it runs; zero: 0 W; garbage: 65535 W; denied: D4h; stuck: the value does not change."""

_LARGEST_READ: Final = 64
"""Bytes of an SDR record in one answer; like BMCs, it does not send a whole record at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SdrSensorSpec:
    """A sensor in watts of the SDR repository: value = (m * raw + b * 10^b_exponent) * 10^result_exponent."""

    name: str
    """At most 16 ASCII characters."""
    share: float = 1.0
    """Share of the power of the node."""
    m: int = 4
    """Watts per step of the 8-bit reading, times 10^result_exponent; -512 to 511."""
    b: int = 0
    """-512 to 511."""
    b_exponent: int = 0
    """-8 to 7."""
    result_exponent: int = 0
    """-8 to 7."""

    def __post_init__(self) -> None:
        """Check the values, which are limited by the format of a record.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if not 1 <= len(self.name) <= 16 or not self.name.isascii():
            raise ValueError(f"name: {self.name!r} must be 1 to 16 ASCII characters")
        check_range("m", self.m, -512, 511)
        check_range("b", self.b, -512, 511)
        check_range("b_exponent", self.b_exponent, -8, 7)
        check_range("result_exponent", self.result_exponent, -8, 7)
        if self.m == 0:
            raise ValueError("m: must not be 0, which would make every reading the same")

    def raw(self, power_watts: float) -> int:
        """Return the 8-bit reading nearest to a power."""
        exact = (power_watts / 10.0**self.result_exponent - self.b * 10.0**self.b_exponent) / self.m
        return min(max(round(exact), 0), 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcSpec:
    """A BMC."""

    name: str
    """Name of the node; ``NAME/total`` is its key in the truth."""
    signal: Signal
    """Power of the whole node."""
    user: str = "monitor"
    """At most 16 ASCII characters."""
    password: str = field(default="emulated", repr=False)
    """At most 20 ASCII characters; not a secret."""
    privilege: Privilege = "user"
    """Highest privilege of the user."""
    dcmi_privilege: Privilege = "user"
    """Privilege that the power reading requires: "user" by the standard, "administrator" on some BMCs."""
    address: str = "127.0.0.1"
    """IP address to listen on."""
    port: int = 0
    """UDP port; 0: any free one."""
    cipher_suites: tuple[int, ...] = (3, 17)
    """3, 17 or both."""
    has_dcmi: bool = True
    """Whether it supports Get Power Reading."""
    has_sdr: bool = True
    """Whether it has an SDR repository."""
    sensors: tuple[SdrSensorSpec, ...] = (SdrSensorSpec(name="Pwr Consumption"),)
    """The sensors of the SDR repository."""
    refresh_s: float = 1.0
    """Time between two values."""
    faults: tuple[Fault, ...] = ()
    """Faults of the kinds in `BMC_FAULTS`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        if not re.fullmatch(r"[^\s/\x00-\x1f]+", self.name):
            raise ValueError(f"name: {self.name!r} must be a word without spaces and slashes")
        if not 1 <= len(self.user) <= 16 or not self.user.isascii():
            raise ValueError(f"user: {self.user!r} must be 1 to 16 ASCII characters")
        if not 1 <= len(self.password) <= 20 or not self.password.isascii():
            raise ValueError("password: must be 1 to 20 ASCII characters")
        check_range("port", self.port, 0, 65535)
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s: must be above 0, not {self.refresh_s}")
        if not self.cipher_suites or not set(self.cipher_suites) <= {3, 17}:
            raise ValueError(f"cipher_suites: must be 3, 17 or both, not {list(self.cipher_suites)}")
        if len({sensor.name for sensor in self.sensors}) < len(self.sensors):
            raise ValueError("sensors: two have the same name")
        check_faults(self.faults, BMC_FAULTS)

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signal by ``device/domain``."""
        return {f"{self.name}/total": self.signal}


class Bmc:
    """A running BMC, on the UDP port `port`."""

    def __init__(self, spec: BmcSpec, directory: Path) -> None:
        """Listen, and write the password of the user.

        Args:
            spec: The BMC.
            directory: For ``ipmi/NAME.password``, which only its owner can read.

        Raises:
            ConfigError: The library for AES is missing.
            OSError: The port is in use.
        """
        self.spec = spec
        self.password_file = directory / "ipmi" / f"{spec.name}.password"
        self._records = _repository(spec) if spec.has_sdr else ()
        changed = zlib.crc32(b"".join(self._records) + spec.name.encode())
        self._repository_info = struct.pack("<BHHIIB", 0x51, len(self._records), 0xFFFE, changed, changed, 0x22)
        self._reservation = 0
        self._metered = (0.0, 0.0)
        self._shown_watts: float | None = None
        self._shown_at_s = 0.0
        self._shown_step = -1
        self._faults: frozenset[str] = frozenset()
        self._server = RmcpServer(
            {spec.user: User(spec.password.encode(), PRIVILEGES[spec.privilege])},
            self._handle,
            address=spec.address,
            port=spec.port,
            suites=spec.cipher_suites,
        )
        self.password_file.parent.mkdir(parents=True, exist_ok=True)
        write_private(self.password_file, f"{spec.password}\n".encode())
        self._server.open()

    @property
    def port(self) -> int:
        """The UDP port of the BMC."""
        return self._server.port

    @property
    def session_count(self) -> int:
        """Number of active sessions."""
        return self._server.session_count

    def advance(self, t_s: float) -> None:
        """Move the BMC to ``t_s`` seconds after the start: make a value if one is due, and apply the faults."""
        faults = frozenset(fault.kind for fault in self.spec.faults if fault.is_on(t_s))
        for fault in self.spec.faults:
            if fault.kind == "reset" and self._shown_at_s < fault.at_s <= t_s:
                self._server.forget_sessions()
        if "vanish" in faults:
            self._server.close()
        else:
            with contextlib.suppress(OSError):  # the port is in use at the moment; retried at the next call
                self._server.open()
        self._server.is_hanging = "hang" in faults
        step = int(t_s / self.spec.refresh_s)
        if step != self._shown_step and not faults & {"stuck", "inactive"}:
            self._shown_step = step
            self._shown_watts = self._mean_watts(t_s)
        self._shown_at_s = t_s
        self._faults = faults

    def _mean_watts(self, t_s: float) -> float:
        """Return the mean power since the last value, as a meter does; the first value is momentary."""
        joules = self.spec.signal.energy_joules(0.0, t_s)
        last_s, last_joules = self._metered
        self._metered = (t_s, joules)
        return (joules - last_joules) / (t_s - last_s) if t_s > last_s else self.spec.signal.power_watts(t_s)

    def close(self) -> None:
        """Close the port and remove the password; safe to call twice."""
        self._server.close()
        self.password_file.unlink(missing_ok=True)

    # -- commands, from the server's thread ----------------------------------------------------------

    def _handle(self, netfn: int, command: int, data: bytes, privilege: int) -> bytes:
        match netfn, command:
            case 0x06, 0x01:
                # Firmware 2.10, IPMI 2.0, SDR repository and sensors; manufacturer 0, product 1.
                support = 0x03 if self.spec.has_sdr else 0x00
                return bytes((OK, 0x20, 0x01, 0x02, 0x10, 0x02, support, 0, 0, 0, 1, 0, 0, 0, 0, 0))
            case 0x00, 0x01:
                return bytes((OK, 0x01, 0, 0))  # the power is on
            case 0x2C, 0x02 if self.spec.has_dcmi:
                return self._power_reading(data, privilege)
            case 0x0A, 0x20 if self.spec.has_sdr:
                return bytes((OK,)) + self._repository_info
            case 0x0A, 0x22 if self.spec.has_sdr:
                self._reservation = self._reservation % 0xFFFF + 1
                return struct.pack("<BH", OK, self._reservation)
            case 0x0A, 0x23 if self.spec.has_sdr:
                return self._get_record(data)
            case 0x04, 0x2D if self.spec.has_sdr:
                return self._sensor_reading(data)
        return bytes((INVALID_COMMAND,))

    def _failure(self) -> int | None:
        if "glitch" in self._faults:
            return NO_SUCH_THING
        if "busy" in self._faults:
            return NODE_BUSY
        return NOT_ALLOWED if "denied" in self._faults else None

    def _watts(self) -> float | None:
        """Return the power as the BMC reports it."""
        if "zero" in self._faults:
            return 0.0
        if "garbage" in self._faults:
            return 65535.0
        return self._shown_watts

    def _power_reading(self, data: bytes, privilege: int) -> bytes:
        if privilege < PRIVILEGES[self.spec.dcmi_privilege]:
            return bytes((NOT_ALLOWED,))
        if data[:1] != b"\xdc":
            return bytes((INVALID_COMMAND,))
        if len(data) != 4:
            return bytes((BAD_LENGTH,))
        if data[1] != 1:
            return bytes((BAD_FIELD,))
        if (failure := self._failure()) is not None:
            return bytes((failure,))
        power_watts = self._watts()
        if power_watts is None:
            return bytes((NO_SUCH_THING,))
        watts = min(max(round(power_watts), 0), 65535)
        # Minimum, maximum and average since the start, which the exporter does not use.
        state = 0x00 if self._faults & {"inactive", "misreported"} else 0x40
        times = int(time.time()) & 0xFFFFFFFF, round(self.spec.refresh_s * 1000)
        return bytes((OK,)) + struct.pack("<BHHHHIIB", 0xDC, watts, 0, 65535, watts, *times, state)

    def _get_record(self, data: bytes) -> bytes:
        if len(data) != 6:
            return bytes((BAD_LENGTH,))
        reservation, number, offset, count = struct.unpack("<HHBB", data)
        if offset and reservation != self._reservation:
            return bytes((LOST_RESERVATION,))
        index = len(self._records) - 1 if number == 0xFFFF else max(number - 1, 0)
        if not 0 <= index < len(self._records):
            return bytes((NO_SUCH_THING,))
        if min(count, len(self._records[index]) - offset) > _LARGEST_READ or (count == 0xFF and offset == 0):
            return bytes((CANNOT_RETURN,))
        following = index + 2 if index + 1 < len(self._records) else 0xFFFF
        return struct.pack("<BH", OK, following) + self._records[index][offset : offset + count]

    def _sensor_reading(self, data: bytes) -> bytes:
        if len(data) != 1:
            return bytes((BAD_LENGTH,))
        if not 1 <= data[0] <= len(self.spec.sensors):
            return bytes((NO_SUCH_THING,))
        if (failure := self._failure()) is not None:
            return bytes((failure,))
        power_watts = self._watts()
        if power_watts is None or "inactive" in self._faults:
            return bytes((OK, 0, 0xE0, 0xC0))  # scanned, and no value now
        sensor = self.spec.sensors[data[0] - 1]
        return bytes((OK, sensor.raw(power_watts * sensor.share), 0xC0, 0xC0))


def _repository(spec: BmcSpec) -> tuple[bytes, ...]:
    """Return the records: the BMC, then its sensors, numbered from 1."""
    name = b"BMC"
    bodies = [(0x12, bytes((0x20, 0x00, 0x00, 0xBF, 0, 0, 0, 0x07, 0x01, 0x00, 0xC0 | len(name))) + name)]
    for number, sensor in enumerate(spec.sensors, start=1):
        m, b = sensor.m & 0x3FF, sensor.b & 0x3FF
        exponents = (sensor.result_exponent & 0xF) << 4 | sensor.b_exponent & 0xF
        body = bytes((0x20, 0x00, number, 0x07, 0x01, 0x45, 0x00, 0x0B, 0x01)) + bytes(6)
        body += bytes((0x00, 0x06, 0x00, 0x00))  # unsigned, watts, linear
        body += bytes((m & 0xFF, m >> 8 << 6 | 1, b & 0xFF, b >> 8 << 6, 0, exponents))
        body += bytes((0, 0, 0, 0, 0xFF)) + bytes(13)
        bodies.append((0x01, body[:42] + bytes((0xC0 | len(sensor.name),)) + sensor.name.encode()))
    return tuple(
        struct.pack("<HBBB", index, 0x51, kind, len(body)) + body for index, (kind, body) in enumerate(bodies, start=1)
    )


def write_targets(bmcs: Iterable[Bmc], path: Path, *, more: Sequence[str] = ()) -> None:
    """Write the target file (``collectors.ipmi.targets_file``) of ``bmcs``, atomically.

    Args:
        bmcs: Running BMCs whose directory is that of ``path``, or below it.
        path: The file, which is replaced.
        more: Further lines, such as targets that are not emulated.
    """
    lines = ["targets:"]
    for bmc in bmcs:
        lines += [
            f"  - name: {bmc.spec.name}",
            f"    address: {bmc.spec.address}",
            f"    port: {bmc.port}",
            f"    user: {bmc.spec.user}",
            f"    password_file: {os.path.relpath(bmc.password_file, path.parent)}",
        ]
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("\n".join([*lines, *more]) + "\n", "utf-8")
    temporary.replace(path)
