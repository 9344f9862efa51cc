"""The second backend: the PMUs ``power`` and ``power_core`` of the kernel's perf events.

The only access to RAPL that needs neither root nor changed file modes: CAP_PERFMON is enough. The kernel accumulates
wraps in 64 bits, starting at 0 when an event is opened. Pitfalls:

* The kernel takes the difference of two readings as a signed 32-bit number, so more than half a wrap between them makes
  the count fall. The kernel's own timer is fast enough up to 200 W only, but each read also updates the count, and a
  read every 10 s is enough up to 3 kW.
* An event counts from its opening, so an event must outlive the collector that reads it: see `_Events`.
* The event of a CPU that went offline keeps its last count forever. It is detected by its running time, which stops.
* ``power_core`` (AMD, Linux 6.14 or newer) counts single cores; its ``cpumask`` lists one CPU per core. On AMD, kernels
  that treat each CCD as a die list one CPU per CCD in the ``cpumask`` of ``power``: the same counter, published once.
* A socket may have the event ``energy-psys`` but no such counter: the count stays 0 and is not published.

Sources: Linux ``arch/x86/events/rapl.c``, ``drivers/powercap/intel_rapl_common.c``, ``kernel/events/core.c``,
``Documentation/admin-guide/perf-security.rst``; perf_event_open(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import struct
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from time import monotonic_ns
from typing import Final

from joulewatch_exporter.collectors.base.sysfs import (
    Cpu,
    one_per_core,
    parse_cpu_list,
    read_int,
    read_int_or_none,
    read_text,
    read_text_or,
)
from joulewatch_exporter.collectors.rapl.backend import (
    CORES,
    MAX_CORE_WATTS,
    MAX_POWER_WATTS,
    CoresSensor,
    Kind,
    Listing,
    Machine,
    Offer,
    RaplSensor,
    Source,
    quantity_of,
    skipped,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host, Quantity, SensorInfo

_EVENTS: Final[dict[str, Kind]] = {
    "energy-pkg": "package",
    "energy-cores": "core",
    "energy-gpu": "uncore",
    "energy-ram": "dram",
    "energy-psys": "psys",
}
"""Events of the PMU ``power`` and their RAPL domains."""

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
_FIRST_COUNT_S: Final = 0.05
"""A working counter of whole joules has counted at least one joule within this time (at 20 W or more)."""

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
        """The event has stopped counting for good."""
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

    def get(self, event: _Event, key: str, cpu: int) -> PerfEvent:
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


class _Hold:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """Description of a PMU event from sysfs."""

    pmu: str
    name: str
    pmu_type: int
    config: int
    counts_per_joule: float

    def source(self, cpu: int) -> str:
        return f"perf:{self.pmu}/{self.name}/@cpu{cpu}"


def probe(machine: Machine, *, parts: bool, cores: bool, findings: list[Finding]) -> Listing:
    """List the counters of this backend.

    Args:
        machine: The CPUs.
        parts: Whether to include ``core`` and ``uncore``.
        cores: Whether to include single cores.
        findings: Receives one finding per excluded event.

    Raises:
        SensorAbsentError: There is no such PMU, or sysfs belongs to an emulated machine.
    """
    folder = _folder(machine.host, "power")
    has_packages = Path(folder).is_dir()
    if not has_packages and not Path(_folder(machine.host, "power_core")).is_dir():
        raise SensorAbsentError(f"{folder}: this kernel has no such PMU")
    if machine.host.emulated:
        raise SensorAbsentError(f"{folder}: not read: an emulated machine has no kernel that counts")
    offers: list[Offer] = []
    if has_packages:
        offers += _package_offers(machine, folder, parts=parts, findings=findings)
    if cores:
        offers += _core_offers(machine, _folder(machine.host, "power_core"), findings)
    return Listing(folder, tuple(offers))


def cpumasks(host: Host) -> tuple[str, str]:
    """Return the CPUs on which the two PMUs count; a change means that CPUs appeared or disappeared."""
    power, power_core = (read_text_or(f"{_folder(host, pmu)}/cpumask", "") for pmu in ("power", "power_core"))
    return power, power_core


def _folder(host: Host, pmu: str) -> str:
    return f"{host.sysfs}/bus/event_source/devices/{pmu}"


def _package_offers(machine: Machine, folder: str, *, parts: bool, findings: list[Finding]) -> list[Offer]:
    offers = []
    for name, kind in _EVENTS.items():
        if not Path(f"{folder}/events/{name}").exists():
            continue
        try:
            event = _event(folder, name)
            cpus = _cpus_of(machine, folder)
        except SensorError as error:
            findings.append(
                Finding(status="broken", collector="rapl", subject=f"{folder}/events/{name}", text=str(error))
            )
            continue
        if kind in ("core", "uncore") and not parts:
            findings.append(skipped(f"{folder}/events/{name}", "excluded by collectors.rapl.parts: false"))
            continue
        for cpu in cpus:
            quantity = quantity_of(kind, cpu.package, None if kind == "psys" else machine.die_of(cpu))
            offers.append(
                Offer(
                    backend="perf",
                    device=quantity.device,
                    key=f"{quantity.device}/{quantity.domain}",
                    path=f"{folder}/events/{name}",
                    subject=f"{folder}/events/{name}",
                    label=f"CPU {cpu.number}",
                    fix=_fix(machine),
                    open=partial(_open, machine, event, quantity, kind, cpu),
                    if_absent="absent" if kind == "psys" else "broken",
                )
            )
    return offers


def _core_offers(machine: Machine, folder: str, findings: list[Finding]) -> list[Offer]:
    if not Path(f"{folder}/events/energy-core").exists():
        return []
    try:
        event = _event(folder, "energy-core")
        cpus = _cpus_of(machine, folder)
    except SensorError as error:
        findings.append(Finding(status="broken", collector="rapl", subject=folder, text=str(error)))
        return []
    return [
        Offer(
            backend="perf",
            device=f"socket{package}",
            key=f"socket{package}/{CORES}",
            path=f"{folder}/events/energy-core",
            subject=f"{folder}/events/energy-core",
            label=f"cores of socket{package}",
            fix=_fix(machine),
            open=partial(_open_cores, machine, event, package, [cpu for cpu in cpus if cpu.package == package]),
        )
        for package in sorted({cpu.package for cpu in cpus})
    ]


def _event(folder: str, name: str) -> _Event:
    """Read the description of an event from sysfs.

    Raises:
        SensorError: The description cannot be read, or its format is unknown.
    """
    text = read_text(f"{folder}/events/{name}")
    format_text = read_text(f"{folder}/format/event")
    scale = read_text(f"{folder}/events/{name}.scale")
    unit = read_text_or(f"{folder}/events/{name}.unit", "Joules")
    number = re.fullmatch(r"event=(0[xX][0-9a-fA-F]+|\d+)", text)
    bits = re.fullmatch(r"config:(\d+)(?:-\d+)?", format_text)
    if number is None or bits is None:
        raise SensorGlitchError(f"{folder}: unknown description {text!r} of an event in the format {format_text!r}")
    try:
        joules = float(scale)
    except ValueError:
        joules = 0.0
    if unit != "Joules" or not 0.0 < joules <= 1.0:
        raise SensorGlitchError(f"{folder}: {name} counts {scale!r} of {unit!r}, not in joules")
    config = int(number[1], 0) << int(bits[1])
    return _Event(
        pmu=Path(folder).name,
        name=name,
        pmu_type=read_int(f"{folder}/type"),
        config=config,
        counts_per_joule=1.0 / joules,
    )


def _cpus_of(machine: Machine, folder: str) -> list[Cpu]:
    """Return the CPUs on which to open a PMU's events.

    Raises:
        SensorError: The list cannot be read, or contains no online CPU.
    """
    text = read_text(f"{folder}/cpumask")
    try:
        numbers = parse_cpu_list(text)
    except ValueError as error:
        raise SensorGlitchError(f"{folder}/cpumask: {error}") from error
    by_number = {cpu.number: cpu for cpu in machine.cpus}
    cpus = [by_number[number] for number in numbers if number in by_number]
    if not cpus:
        raise SensorGlitchError(
            f"{folder}/cpumask: none of the CPUs {text} is online, or the kernel reports no CPU topology"
        )
    return cpus


def _open(
    machine: Machine, event: _Event, quantity: Quantity, kind: Kind, cpu: Cpu
) -> tuple[RaplSensor | CoresSensor, str]:
    key = f"{quantity.device}/{quantity.domain}"
    opened = _open_event(machine, event, key, cpu.number)
    if kind == "psys":
        _wait_for_first_count(opened)
    info = SensorInfo(
        quantity=quantity,
        method="counter",
        source=opened.name,
        model=machine.name,
        max_power_watts=MAX_POWER_WATTS[kind],
        relation="core" if kind == "core" else "inside",
    )
    text = f"{quantity.device} {quantity.domain}: perf event {event.pmu}/{event.name}/ on CPU {cpu.number}"
    return RaplSensor(
        device=quantity.device,
        infos=(info,),
        _quantity=quantity,
        _source=_Hold(opened),
        _counts_per_joule=event.counts_per_joule,
    ), text


def _open_cores(
    machine: Machine, event: _Event, package: int, cpus: Sequence[Cpu]
) -> tuple[RaplSensor | CoresSensor, str]:
    names = machine.core_names(package)
    cores: list[tuple[Quantity, Source]] = []
    infos = []
    first_error: SensorError | None = None
    for cpu in one_per_core(cpus):
        quantity = Quantity(scope="part", component="cpu", device=f"socket{package}", domain=names[cpu.number])
        try:
            opened = _open_event(machine, event, f"{quantity.device}/{quantity.domain}", cpu.number)
        except SensorDeniedError:
            raise  # the same permission opens all cores
        except SensorError as error:
            first_error = first_error or error
            continue
        cores.append((quantity, _Hold(opened)))
        infos.append(
            SensorInfo(
                quantity=quantity,
                method="counter",
                source=opened.name,
                model=machine.name,
                max_power_watts=MAX_CORE_WATTS,
                relation="core",
            )
        )
    if not cores:
        raise first_error or SensorAbsentError(f"{event.source(-1)}: no CPU to count on")
    text = f"socket{package}: {len(cores)} cores, one perf event {event.pmu}/{event.name}/ each"
    if first_error is not None:
        text += f"; {len(cpus) - len(cores)} could not be opened: {first_error}"
    return CoresSensor(
        device=f"socket{package}", infos=tuple(infos), _cores=tuple(cores), _counts_per_joule=event.counts_per_joule
    ), text


def _open_event(machine: Machine, event: _Event, key: str, cpu: int) -> PerfEvent:
    """Open an event.

    Raises:
        SensorAbsentError: The kernel has no such event on this CPU.
        SensorDeniedError: Permission is missing; the text names the fix.
        SensorGlitchError: Opening failed for another reason (too many open files).
    """
    try:
        return _events.get(event, key, cpu)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise SensorDeniedError(_denied_text(machine, event, error)) from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise SensorGlitchError(f"{event.source(cpu)}: {error.strerror} (LimitNOFILE, ulimit -n)") from error
        raise SensorAbsentError(f"{event.source(cpu)}: perf_event_open: {error.strerror}") from error


def _wait_for_first_count(event: PerfEvent) -> None:
    """Check that a counter counts; a missing register reads 0 forever.

    Raises:
        SensorAbsentError: Nothing was counted.
    """
    end_s = time.monotonic() + _FIRST_COUNT_S
    while event.read() == 0:
        if time.monotonic() > end_s:
            raise SensorAbsentError(f"{event.name}: counts nothing: this socket has no such register")
        time.sleep(0.002)


def _paranoid(machine: Machine) -> int | None:
    return read_int_or_none(f"{machine.host.procfs}/sys/kernel/perf_event_paranoid")


def _fix(machine: Machine) -> str:
    level = _paranoid(machine)
    return "" if level is not None and level <= 0 else "sudo sysctl kernel.perf_event_paranoid=0"


def _denied_text(machine: Machine, event: _Event, error: OSError) -> str:
    level = _paranoid(machine)
    text = f"{_folder(machine.host, event.pmu)}: perf_event_open: {error.strerror}"
    if level is not None and level <= 0:
        return (
            f"{text}; kernel.perf_event_paranoid is {level} and allows the call, so something else denies it: "
            "a container's seccomp profile, SystemCallFilter= of a systemd unit, or a security module"
        )
    # Level 3 exists only in Debian's kernels.
    needs_admin = level is None or level > 2
    capability = "cap_sys_admin" if needs_admin else "cap_perfmon"
    python = os.path.realpath(sys.executable)
    return (
        f"{text}; kernel.perf_event_paranoid is {'unknown' if level is None else level}: run "
        f"`{_fix(machine)}` (until the next boot; allows every user), or grant the exporter {capability.upper()} "
        f"(AmbientCapabilities={capability.upper()} in its systemd unit, or sudo setcap {capability}=ep {python})"
        + ("; at level 2 CAP_PERFMON is enough" if needs_admin else "")
    )
