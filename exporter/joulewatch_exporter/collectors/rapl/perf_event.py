"""perf_event_open(2), and the events that this process has opened.

Sources: Linux ``kernel/events/core.c``; perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import struct
import weakref
from dataclasses import dataclass
from threading import Lock
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.errors import SensorAbsentError, SensorGlitchError

_SYSCALL_NUMBERS: Final = {"x86_64": 298, "aarch64": 241}

# struct perf_event_attr, first version: type, size, config, sample_period, sample_type, read_format, flags,
# wakeup_events, bp_type, config1. Every kernel accepts this size.
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQ")
_FORMAT_TOTAL_TIME_RUNNING: Final = 1 << 1
_FLAG_FD_CLOEXEC: Final = 1 << 3

# The count (signed, because a wrap that the kernel missed makes it fall) and the time during which it counted.
_RECORD: Final = struct.Struct("=qQ")
_RECORD_BYTES: Final = _RECORD.size

_STALL_NS: Final = 20_000_000
"""An event whose running time has not changed for longer than this does not count. The kernel's clock itself may stand
still between two ticks, for at most 10 ms."""

_unpack = _RECORD.unpack
_read = os.read


def perf_event_open(pmu_type: int, config: int, cpu: int) -> int:
    """Open an event that counts on one CPU for all processes.

    Args:
        pmu_type: ``type`` of the PMU.
        config: The event, encoded for the PMU.
        cpu: The CPU on which to count.

    Returns:
        The event's file descriptor; a read returns the count and the running time.

    Raises:
        OSError: The kernel refused the call or does not have it.
    """
    import ctypes  # imported late: most machines are read through powercap

    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of perf_event_open on {platform.machine()} is unknown")
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.argtypes = (
        ctypes.c_long,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ulong,
    )
    syscall.restype = ctypes.c_long
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _ATTRIBUTES.pack_into(
        attributes, 0, pmu_type, _ATTRIBUTES.size, config, 0, 0, _FORMAT_TOTAL_TIME_RUNNING, 0, 0, 0, 0
    )
    descriptor: int = syscall(number, attributes, -1, cpu, -1, _FLAG_FD_CLOEXEC)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDescription:
    """Description of a PMU event from sysfs."""

    pmu: str
    name: str
    pmu_type: int
    config: int
    counts_per_joule: float

    def source(self, cpu: int) -> str:
        return f"perf:{self.pmu}/{self.name}/@cpu{cpu}"


class PerfEvent:
    """One open event; closed when the last reference to it goes away."""

    __slots__ = ("__weakref__", "_changed_ns", "_descriptor", "_running_ns", "is_dead", "name")

    def __init__(self, name: str, descriptor: int) -> None:
        """Take ownership of an open descriptor.

        Args:
            name: Name in messages, such as ``perf:power/energy-pkg/@cpu0``.
            descriptor: From `perf_event_open`.
        """
        self.name = name
        self.is_dead = False
        """The event has stopped counting permanently."""
        self._descriptor = descriptor
        self._running_ns = -1
        self._changed_ns = 0

    def read(self) -> int:
        """Read the count.

        Raises:
            SensorAbsentError: The event has stopped counting: its CPU is offline, or its driver was unloaded.
            SensorGlitchError: This read failed.
        """
        try:
            record = _read(self._descriptor, _RECORD_BYTES)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise self._dead(error.strerror) from error
            raise SensorGlitchError(f"{self.name}: {error.strerror}") from error
        if len(record) != _RECORD_BYTES:
            raise self._dead("the kernel stopped the event")
        count: int
        count, running_ns = _unpack(record)
        if running_ns != self._running_ns:
            self._running_ns = running_ns
            self._changed_ns = monotonic_ns()
        elif monotonic_ns() - self._changed_ns > _STALL_NS:
            raise self._dead("stopped counting: its CPU is offline")
        return count

    def _dead(self, reason: str | None) -> SensorAbsentError:
        self.is_dead = True
        return SensorAbsentError(f"{self.name}: {reason}")

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class _Events:
    """The open events of this process.

    This is module state, which the exporter otherwise avoids: a count starts at 0 when its event is opened. When the
    family is reopened because some other device appeared or disappeared, the new collector must continue with the
    events that the old one still holds; otherwise the joules in between would be lost.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakValueDictionary[tuple[int, int, str], PerfEvent] = weakref.WeakValueDictionary()
        self._lock = Lock()

    def get(self, event: EventDescription, key: str, cpu: int) -> PerfEvent:
        """Return the event if it is open already, else open it.

        Args:
            event: The event.
            key: Device and domain. The CPU cannot be part of the key: when it goes offline, the kernel moves the event
                to another CPU of the package.
            cpu: The CPU on which to open it.

        Raises:
            OSError: The kernel refused the call.
        """
        with self._lock:
            identity = (event.pmu_type, event.config, key)
            opened = self._open.get(identity)
            if opened is None or opened.is_dead:
                descriptor = perf_event_open(event.pmu_type, event.config, cpu)
                opened = self._open[identity] = PerfEvent(event.source(cpu), descriptor)
            return opened


_events: Final = _Events()


class EventHandle:
    """A collector's reference to an event."""

    __slots__ = ("_event",)

    def __init__(self, event: PerfEvent) -> None:
        self._event: PerfEvent | None = event

    def read(self) -> int:
        event = self._event
        if event is None:
            raise SensorAbsentError("the event is closed")
        return event.read()

    def close(self) -> None:
        self._event = None


def open_event(event: EventDescription, key: str, cpu: int) -> PerfEvent:
    """Return an open event of this process; see `_Events.get`."""
    return _events.get(event, key, cpu)
