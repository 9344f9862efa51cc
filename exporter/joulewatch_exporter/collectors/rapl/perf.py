"""The second backend: the PMUs ``power`` and ``power_core`` of the kernel's perf events.

The only access to RAPL that needs neither root nor changed file modes: CAP_PERFMON is enough. The kernel accumulates
wraps in 64 bits, starting at 0 when an event is opened. Pitfalls:

* The kernel takes the difference of two readings as a signed 32-bit number, so more than half a wrap between them makes
  the count fall. The kernel's own timer is fast enough up to 200 W only, but each read also updates the count, and a
  read every 10 s is enough up to 3 kW.
* An event counts from its opening, so an event must outlive the collector that reads it: see `perf_event`.
* The event of a CPU that went offline keeps its last count forever. It is detected by its running time, which stops.
* ``power_core`` (AMD, Linux 6.14 or newer) counts single cores; its ``cpumask`` lists one CPU per core. On AMD, kernels
  that treat each CCD as a die list one CPU per CCD in the ``cpumask`` of ``power``: the same counter, published once.
* A socket may have the event ``energy-psys`` but no such counter: the count stays 0 and is not published.

Sources: Linux ``arch/x86/events/rapl.c``, ``drivers/powercap/intel_rapl_common.c``, ``kernel/events/core.c``,
``Documentation/admin-guide/perf-security.rst``.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
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
    NO_COUNTERS,
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
from joulewatch_exporter.collectors.rapl.perf_event import EventDescription, EventHandle, PerfEvent, open_event
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Finding, Host, Quantity, SensorInfo
from joulewatch_exporter.text import count_of

_EVENTS: Final[dict[str, Kind]] = {
    "energy-pkg": "package",
    "energy-cores": "core",
    "energy-gpu": "uncore",
    "energy-ram": "dram",
    "energy-psys": "psys",
}
"""Events of the PMU ``power`` and their RAPL domains."""

_FIRST_COUNT_S: Final = 0.05
"""A working counter of whole joules has counted at least one joule within this time (at 20 W or more)."""


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
                    if_absent="absent" if kind == "psys" or machine.lacks_counters else "broken",
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


def _event(folder: str, name: str) -> EventDescription:
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
    return EventDescription(
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
    machine: Machine, event: EventDescription, quantity: Quantity, kind: Kind, cpu: Cpu
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
        counts_since_open=True,
        max_power_watts=MAX_POWER_WATTS[kind],
        relation="core" if kind == "core" else "inside",
    )
    text = f"{quantity.device} {quantity.domain}: perf event {event.pmu}/{event.name}/ on CPU {cpu.number}"
    return RaplSensor(
        device=quantity.device,
        infos=(info,),
        _quantity=quantity,
        _source=EventHandle(opened),
        _counts_per_joule=event.counts_per_joule,
    ), text


def _open_cores(
    machine: Machine, event: EventDescription, package: int, cpus: Sequence[Cpu]
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
        cores.append((quantity, EventHandle(opened)))
        infos.append(
            SensorInfo(
                quantity=quantity,
                method="counter",
                source=opened.name,
                model=machine.name,
                counts_since_open=True,
                max_power_watts=MAX_CORE_WATTS,
                relation="core",
            )
        )
    if not cores:
        raise first_error or SensorAbsentError(f"{event.source(-1)}: no CPU to count on")
    text = f"socket{package}: {count_of(len(cores), 'core')}, one perf event {event.pmu}/{event.name}/ each"
    if first_error is not None:
        text += f"; {len(cpus) - len(cores)} could not be opened: {first_error}"
    return CoresSensor(
        device=f"socket{package}", infos=tuple(infos), _cores=tuple(cores), _counts_per_joule=event.counts_per_joule
    ), text


def _open_event(machine: Machine, event: EventDescription, key: str, cpu: int) -> PerfEvent:
    """Open an event.

    Raises:
        SensorAbsentError: The kernel has no such event on this CPU.
        SensorDeniedError: Permission is missing; the text names the fix.
        SensorGlitchError: Opening failed for another reason (too many open files).
    """
    try:
        return open_event(event, key, cpu)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and machine.lacks_counters:
            raise SensorAbsentError(f"{event.source(cpu)}: {NO_COUNTERS}") from error
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
    can_help = (level is None or level > 0) and not machine.lacks_counters
    return "sudo sysctl kernel.perf_event_paranoid=0" if can_help else ""


def _denied_text(machine: Machine, event: EventDescription, error: OSError) -> str:
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
