"""An emulated baseboard management controller: the power of its node by DCMI and by SDR sensors, over LAN.

``ipmitool``, FreeIPMI and pyghmi read it as they read a real one. The value moves with the machine's truth, held
for ``refresh_s`` as a BMC holds its readings; faults come on the scenario's timetable.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from joulewatch_exporter.emulator.faults import Fault
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
    "zero",
    "garbage",
    "denied",
    "stuck",
)
"""hang: answers nothing; vanish: its port is closed; reset: it forgets its sessions; glitch: completion code CBh;
busy: C0h; inactive: DCMI says that it is not measuring; zero: 0 W; garbage: 65535 W; denied: D4h; stuck: the value
stays."""

_LARGEST_READ: Final = 64
"""Bytes of an SDR record in one answer: BMCs refuse to send a whole record at once, and so does this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SdrSensorSpec:
    """One sensor in watts of the SDR repository: value = (m * raw + b * 10^b_exponent) * 10^result_exponent."""

    name: str
    """At most 16 ASCII characters."""
    share: float = 1.0
    """Of the node's power."""
    m: int = 4
    """Watts per step of the 8-bit reading, times 10^result_exponent; -512 to 511."""
    b: int = 0
    """-512 to 511."""
    b_exponent: int = 0
    """-8 to 7."""
    result_exponent: int = 0
    """-8 to 7."""

    def __post_init__(self) -> None:
        """Check what fits into a record.

        Raises:
            ValueError: The name or a number does not fit.
        """
        if not 1 <= len(self.name) <= 16 or not self.name.isascii():
            raise ValueError(f"name: {self.name!r} must be 1 to 16 ASCII characters")
        for what, value, low, high in (
            ("m", self.m, -512, 511),
            ("b", self.b, -512, 511),
            ("b_exponent", self.b_exponent, -8, 7),
            ("result_exponent", self.result_exponent, -8, 7),
        ):
            if not low <= value <= high:
                raise ValueError(f"{what}: must be {low} to {high}, not {value}")
        if self.m == 0:
            raise ValueError("m: 0 would make every reading the same")

    def raw(self, power_watts: float) -> int:
        """Return the 8-bit reading nearest to a power."""
        exact = (power_watts / 10.0**self.result_exponent - self.b * 10.0**self.b_exponent) / self.m
        return min(max(round(exact), 0), 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcSpec:
    """One BMC."""

    name: str
    """The node's name: ``NAME/total`` is the key of the truth."""
    signal: Signal
    """Power of the whole node."""
    user: str = "monitor"
    """At most 16 ASCII characters."""
    password: str = field(default="emulated", repr=False)
    """At most 20 ASCII characters; it is no secret, everybody may read an emulated BMC."""
    privilege: Privilege = "user"
    """The highest that the user may have."""
    dcmi_privilege: Privilege = "user"
    """What the power reading needs: "user" by the standard, "administrator" on some BMCs."""
    address: str = "127.0.0.1"
    """IP address to listen on."""
    port: int = 0
    """UDP port; 0: any free one."""
    cipher_suites: tuple[int, ...] = (3, 17)
    """3 and 17 are possible."""
    has_dcmi: bool = True
    """Whether it knows Get Power Reading."""
    has_sdr: bool = True
    """Whether it has an SDR repository."""
    sensors: tuple[SdrSensorSpec, ...] = (SdrSensorSpec(name="Pwr Consumption"),)
    """What is in the SDR repository."""
    refresh_s: float = 1.0
    """How often it makes a new value."""
    faults: tuple[Fault, ...] = ()
    """Of the kinds in `BMC_FAULTS`."""

    def __post_init__(self) -> None:
        """Check what the protocol limits.

        Raises:
            ValueError: A value is too long, out of its range or unknown.
        """
        if not re.fullmatch(r"[^\s/\x00-\x1f]+", self.name):
            raise ValueError(f"name: {self.name!r} must be a word without white space and slashes")
        if not 1 <= len(self.user) <= 16 or not self.user.isascii():
            raise ValueError(f"user: {self.user!r} must be 1 to 16 ASCII characters")
        if not 1 <= len(self.password) <= 20 or not self.password.isascii():
            raise ValueError("password: must be 1 to 20 ASCII characters")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: must be 0 to 65535, not {self.port}")
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s: must be above 0, not {self.refresh_s}")
        if not self.cipher_suites or not set(self.cipher_suites) <= {3, 17}:
            raise ValueError(f"cipher_suites: must be of 3 and 17, not {list(self.cipher_suites)}")
        if len({sensor.name for sensor in self.sensors}) < len(self.sensors):
            raise ValueError("sensors: two have one name")
        for fault in self.faults:
            if fault.kind not in BMC_FAULTS:
                raise ValueError(f"faults: {fault.kind} is none of {', '.join(BMC_FAULTS)}")

    @property
    def key(self) -> str:
        """``device/domain`` in the truth."""
        return f"{self.name}/total"


class Bmc:
    """A running BMC; `port` says where."""

    def __init__(self, spec: BmcSpec, directory: Path) -> None:
        """Listen, and write the password of its user.

        Args:
            spec: What it is.
            directory: Gets ``ipmi/NAME.password``, readable by its owner only.

        Raises:
            ConfigError: The library for AES is missing.
            OSError: The port is taken.
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
        descriptor = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{spec.password}\n")
        self._server.open()

    @property
    def port(self) -> int:
        """The UDP port it answers on."""
        return self._server.port

    @property
    def session_count(self) -> int:
        """How many are logged in."""
        return self._server.session_count

    def advance(self, t_s: float) -> None:
        """Bring it to ``t_s`` seconds after the start: a new value where one is due, and what is on the timetable."""
        faults = frozenset(fault.kind for fault in self.spec.faults if fault.is_on(t_s))
        for fault in self.spec.faults:
            if fault.kind == "reset" and self._shown_at_s < fault.at_s <= t_s:
                self._server.forget_sessions()
        if "vanish" in faults:
            self._server.close()
        else:
            with contextlib.suppress(OSError):  # somebody has the port just now: it comes back later
                self._server.open()
        self._server.is_deaf = "hang" in faults
        step = int(t_s / self.spec.refresh_s)
        if step != self._shown_step and "stuck" not in faults:
            self._shown_step = step
            self._shown_watts = self._mean_watts(t_s)
        self._shown_at_s = t_s
        self._faults = faults

    def _mean_watts(self, t_s: float) -> float:
        """What a meter gives: the mean since its last value; the first one is momentary."""
        joules = self.spec.signal.energy_joules(0.0, t_s)
        last_s, last_joules = self._metered
        self._metered = (t_s, joules)
        return (joules - last_joules) / (t_s - last_s) if t_s > last_s else self.spec.signal.power_watts(t_s)

    def close(self) -> None:
        """Switch it off and remove the password; safe to call twice."""
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
        """Return what the BMC believes the power to be."""
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
        # Real BMCs state minimum, maximum and average since they started: no use to anybody.
        state = 0x00 if "inactive" in self._faults else 0x40
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
    """Return the records: the BMC itself, then its sensors, numbered from 1."""
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
    """Write the target file (``collectors.ipmi.targets_file``) that reads ``bmcs``; the change is seen as a whole.

    Args:
        bmcs: Running BMCs whose directory is that of ``path``, or below it.
        path: The file; replaced.
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
