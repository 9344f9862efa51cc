"""``joulewatch-exporter check``: list found, missing and denied sensors with reasons, fixes and a live reading."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_exporter import __version__
from joulewatch_exporter.attribution.idle_file import load
from joulewatch_exporter.attribution.model import UsageSource
from joulewatch_exporter.attribution.state_folder import state_folder
from joulewatch_exporter.catalog import frozen_after_s, resolution_joules
from joulewatch_exporter.collectors import experimental_note
from joulewatch_exporter.collectors.base.sysfs import is_virtual_machine, path_read_by
from joulewatch_exporter.commands.check_usage import examine_usage
from joulewatch_exporter.config.calibration import NO_CALIBRATIONS, Calibrations, load_calibrations
from joulewatch_exporter.config.config import Config, FamilySettings
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Collector, Finding, Host, Quantity
from joulewatch_exporter.sampling.family import Family, measures_cpu
from joulewatch_exporter.sampling.primary import PrimarySensors
from joulewatch_exporter.sampling.sampler import ESTIMATE_FAMILY
from joulewatch_exporter.sampling.scan import OK, FamilyScan
from joulewatch_exporter.text import json_text, printable
from joulewatch_exporter.threads import DeadlineThread

READING_S: Final = 0.2
"""Time between the first two reads of a live reading."""
COUNTING_S: Final = 1.0
"""Time in which an energy counter must change, if its refresh period is that short; then it is read a third time."""
VIRTUAL_COUNTING: Final = 3
"""How much longer that time is on a virtual machine: QEMU renews its virtual counters every second."""
DOES_NOT_COUNT: Final = "does not count"

ANSWER_S: Final = 10.0
"""A family that has not answered by then is reported as hanging; the first answer of a BMC takes seconds."""

EXIT_MEASURED: Final = 0
EXIT_NOTHING_MEASURED: Final = 1

_MEASURED: Final = ("counter", "integrated")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReading:
    """The current power of one quantity."""

    collector: str
    component: str
    device: str
    domain: str
    scope: str
    host: str
    primary: bool
    """Whether it is the node sensor that counts for its host."""
    method: str
    source: str
    power_watts: float | None
    """Mean over 0.2 to 1 s, or as the sensor reports it; None: the sensor returned no new value in that time."""
    error: str = ""
    """State of the device if it could not be read, or `DOES_NOT_COUNT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a check; its fields are the keys of ``--format json``."""

    version: str
    nodename: str
    sysfs: str
    procfs: str
    emulated: bool
    virtual_machine: bool
    findings: tuple[Finding, ...]
    experimental: Mapping[str, str]
    """Families that were found, denied or broken -> the hardware on which their code has never run."""
    readings: tuple[LiveReading, ...]
    measured: int
    """Number of quantities that a sensor measures and that could be read."""
    estimated: int
    asleep: int
    """Number of quantities of devices in runtime suspend: they are measured while the device is awake."""


def check(
    families: Sequence[type[Collector]],
    host: Host,
    config: Config,
    *,
    sources: Sequence[type[UsageSource]] = (),
    as_json: bool,
) -> int:
    """Examine the host, print the report on stdout, and return the exit code."""

    def usage() -> Sequence[Finding]:
        folder = None if host.emulated else state_folder(os.environ)
        measured = () if folder is None else load(folder)
        return examine_usage(sources, host, config.attribution, measured, _failure) if sources else ()

    report = examine(
        families,
        host,
        config.collectors,
        primary=config.exporter.primary_node_sensor,
        calibrations=load_calibrations(config.exporter.calibration_files, host.nodename),
        usage=usage,
    )
    if as_json:
        print(json_text(dataclasses.asdict(report), indent=2))  # noqa: T201
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
        print(render(report, width=min(max(width, 60), 120)))  # noqa: T201
    return EXIT_MEASURED if report.measured or report.asleep else EXIT_NOTHING_MEASURED


def examine(
    families: Sequence[type[Collector]],
    host: Host,
    settings: Mapping[str, FamilySettings],
    *,
    primary: Mapping[str, str] | None = None,
    calibrations: Calibrations = NO_CALIBRATIONS,
    usage: Callable[[], Sequence[Finding]] = tuple,
    reading_s: float = READING_S,
    counting_s: float = COUNTING_S,
) -> Report:
    """Open all families, read their sensors two or three times, and close them.

    ``usage`` returns the findings of the usage sources while the families are open: some read through a family.
    """
    is_virtual = is_virtual_machine(host)
    counting_s *= VIRTUAL_COUNTING if is_virtual else 1
    findings: list[Finding] = []
    opened: list[Collector] = []
    try:
        for family in families:
            setting = settings.get(family.name, FamilySettings())
            if family.name == ESTIMATE_FAMILY and setting.enabled == "auto" and any(map(measures_cpu, opened)):
                findings.append(_skipped(family.name, "used only if no CPU sensor is measured"))
                continue
            claimed = frozenset(
                info.source for collector in opened for sensor in collector.sensors for info in sensor.infos
            )
            collector = _open(family, dataclasses.replace(host, claimed=claimed), setting, findings)
            if collector is not None:
                opened.append(collector)
        sensors = PrimarySensors(host.nodename, primary)
        readings = _read(opened, sensors, host.nodename, reading_s, counting_s)
        # A device that is read in the background may have failed since.
        findings += [finding for collector in opened for finding in collector.findings if finding not in findings]
        findings += [_silent(collector.name) for collector in opened if _is_silent(collector)]
        findings += [
            _frozen(reading, counting_s)
            for reading in readings
            if reading.error == DOES_NOT_COUNT and reading.scope != "part"
        ]
        findings += [_unmet(host, collector) for host, collector in sensors.unmet.items()]
        findings += _calibrations(opened, calibrations)
        findings += usage()
    finally:
        for collector in opened:
            collector.close()
    return Report(
        version=__version__,
        nodename=host.nodename,
        sysfs=str(host.sysfs),
        procfs=str(host.procfs),
        emulated=host.emulated,
        virtual_machine=is_virtual,
        findings=tuple(findings),
        experimental=_experimental(families, findings),
        readings=readings,
        measured=sum(reading.method in _MEASURED and not reading.error for reading in readings),
        estimated=sum(reading.method == "estimated" and not reading.error for reading in readings),
        asleep=sum(reading.error == SensorAsleepError.reason for reading in readings),
    )


def _experimental(families: Sequence[type[Collector]], findings: Sequence[Finding]) -> dict[str, str]:
    present = {finding.collector for finding in findings if finding.status not in ("absent", "skipped")}
    notes = {family.name: experimental_note(family) for family in families if family.name in present}
    return {name: note for name, note in notes.items() if note}


def _open(family: type[Collector], host: Host, setting: FamilySettings, findings: list[Finding]) -> Collector | None:
    name = family.name
    if setting.enabled is False:
        findings.append(_skipped(name, "disabled by the configuration"))
        return None
    options = setting.options if setting.options is not None else family.Options()
    opener = DeadlineThread(f"check-{name}")
    try:
        collector = opener.call(lambda: family.open(host, options), ANSWER_S, discard=lambda late: late.close())
        opener.call(lambda: collector.settle(ANSWER_S), ANSWER_S + 1.0)
    except ConfigError:
        raise
    except Exception as error:
        findings.append(_failure(name, error, path_read_by(opener.hung_thread)))
        return None
    finally:
        opener.close()
    found = tuple(collector.findings)
    findings += found
    if not any(finding.status == "found" for finding in found):
        findings += [
            Finding(
                status="found",
                collector=name,
                subject=info.source,
                text=f"{info.quantity.device} {info.quantity.domain}",
            )
            for sensor in collector.sensors
            for info in sensor.infos
        ]
    return collector


def _skipped(name: str, text: str) -> Finding:
    return Finding(status="skipped", collector=name, subject=name, text=text, cure=f"--collector.{name}")


def _is_silent(collector: Collector) -> bool:
    """Return whether no device has answered or failed yet: the deadline of a BMC may be longer than that of a check."""
    explained = any(finding.status in ("absent", "denied", "broken") for finding in collector.findings)
    return not collector.sensors and not explained


def _silent(name: str) -> Finding:
    text = f"no device has answered within {ANSWER_S:g} s; the exporter waits longer"
    return Finding(status="broken", collector=name, subject=name, text=text)


def _failure(name: str, error: Exception, hung_file: str = "") -> Finding:
    """Return the finding for a family that could not be opened; ``hung_file`` is the file whose read hangs."""
    # The error begins with the path, if there is one, and holds the command that fixes it between backquotes.
    path, _, text = str(error).partition(": ")
    subject, text = (path, text) if text and path.startswith("/") else (name, str(error))
    if isinstance(error, SensorAbsentError):
        return Finding(status="absent", collector=name, subject=subject, text=text)
    if isinstance(error, SensorDeniedError):
        command = re.search(r"`([^`]+)`", text)
        cure = command[1] if command is not None else ""
        return Finding(status="denied", collector=name, subject=subject, text=text, cure=cure)
    if not isinstance(error, SensorTimeoutError):
        subject, text = name, f"opening failed: {type(error).__name__}: {error}"
    elif subject == name:
        what = "the read of this file hangs" if hung_file else "a driver or a device hangs"
        subject, text = hung_file or name, f"no answer within {ANSWER_S:g} s: {what}"
    return Finding(status="broken", collector=name, subject=subject, text=text)


def _unmet(host: str, collector: str) -> Finding:
    """Return the finding for an entry of ``primary_node_sensor`` that no sensor follows."""
    text = f"{collector} has no node sensor of this host; the primary one is chosen by the rules"
    return Finding(status="absent", collector=collector, subject=f"exporter.primary_node_sensor.{host}", text=text)


def _calibrations(collectors: Sequence[Collector], calibrations: Calibrations) -> Iterator[Finding]:
    """Yield a finding for each calibrated sensor, each calibration of this machine without a sensor, and each ratio."""
    used = set()
    infos = [(one.name, info) for one in collectors for sensor in one.sensors for info in sensor.infos]
    for name, info in infos if calibrations.entries else ():
        quantity = info.quantity
        calibration, other = calibrations.of(name, info), calibrations.of_another_model(name, info)
        if calibration is not None:
            used.add(calibration)
            text = f"{quantity.device} {quantity.domain}: calibrated: {calibration.text}"
            yield Finding(status="found", collector=name, subject=info.source, text=text)
        elif other is not None:
            used.add(other)
            text = other.exchanged_text(name, info)
            yield Finding(status="broken", collector=name, subject=info.source, text=text)
    for entry in calibrations.of_this_host():
        if entry not in used:
            text = f"no such sensor; calibrated: {entry.text}"
            subject = f"{entry.sensor.device} {entry.sensor.domain}"
            yield Finding(status="absent", collector=entry.sensor.collector, subject=subject, text=text)
    for ratio in calibrations.ratios:
        yield Finding(status="found", collector="attribution", subject="workload_ratios", text=ratio.text)


def _frozen(reading: LiveReading, counting_s: float) -> Finding:
    """Return the finding for a counter that is read but does not count."""
    text = (
        f"{reading.device} {reading.domain}: does not count: the same value for {counting_s:g} s, although a device "
        "that is on uses energy. Registers of virtual machines often hold a constant"
    )
    return Finding(status="broken", collector=reading.collector, subject=reading.source, text=text)


def _read(
    collectors: Sequence[Collector], sensors: PrimarySensors, nodename: str, reading_s: float, counting_s: float
) -> tuple[LiveReading, ...]:
    families = [Family(collector) for collector in collectors]
    firsts = [_scan(family) for family in families]
    if families:
        time.sleep(reading_s)
    scans = [
        (_scan(family) if first is not None else None) or family.down()
        for family, first in zip(families, firsts, strict=True)
    ]
    unchanged = [_unchanged(first, scan) for first, scan in zip(firsts, scans, strict=True)]
    frozen: list[frozenset[Quantity]] = [frozenset()] * len(families)
    if any(_may_be_frozen(scan, quantities, counting_s) for scan, quantities in zip(scans, unchanged, strict=True)):
        time.sleep(max(counting_s - reading_s, 0.0))
        scans = [_scan(family) or family.down() for family in families]
        unchanged = [same & _unchanged(first, scan) for first, same, scan in zip(firsts, unchanged, scans, strict=True)]
        frozen = [_may_be_frozen(scan, same, counting_s) for scan, same in zip(scans, unchanged, strict=True)]
    primary = sensors.choose([(scan.collector, scan.layout) for scan in scans])
    readings: list[LiveReading] = []
    for scan, same, stuck in zip(scans, unchanged, frozen, strict=True):
        states = dict(zip(scan.layout.devices, scan.states, strict=True))
        for info, power_watts, health in zip(scan.layout.infos, scan.powers_watts, scan.healths, strict=True):
            quantity = info.quantity
            error = _error(states[quantity.device]) if health is None else ""
            readings.append(
                LiveReading(
                    collector=scan.collector,
                    component=quantity.component,
                    device=quantity.device,
                    domain=quantity.domain,
                    scope=quantity.scope,
                    host=info.host(nodename),
                    primary=(scan.collector, quantity) in primary,
                    method=info.method,
                    source=info.source,
                    # Of a counter that stood still, only a power that the driver reports is known.
                    power_watts=None if quantity in same and not power_watts else power_watts,
                    error=DOES_NOT_COUNT if quantity in stuck else error,
                )
            )
    return tuple(readings)


def _unchanged(first: FamilyScan | None, scan: FamilyScan) -> frozenset[Quantity]:
    """Return the quantities that count energy and have counted none since the first scan."""
    if first is None:
        return frozenset()
    before = dict(zip((info.quantity for info in first.layout.infos), first.energies_joules, strict=True))
    return frozenset(
        info.quantity
        for info, reads, energy_joules in zip(scan.layout.infos, scan.reads, scan.energies_joules, strict=True)
        if reads == "energy" and energy_joules is not None and before.get(info.quantity) == energy_joules
    )


def _may_be_frozen(scan: FamilyScan, unchanged: frozenset[Quantity], counting_s: float) -> frozenset[Quantity]:
    """Return the unchanged counters that are frozen, by the definition in `catalog`, after ``counting_s``.

    A part is judged only with its device, because a core or a graphics unit may be off.
    """
    frozen = {
        info.quantity
        for info, health in zip(scan.layout.infos, scan.healths, strict=True)
        if info.quantity in unchanged
        and health is not None
        and frozen_after_s(health.refresh_s, resolution_joules(info.resolution), scan.collector) <= counting_s
    }
    wholes = [info.quantity for info in scan.layout.infos if info.quantity.scope != "part"]
    counting = {quantity.device for quantity in wholes if quantity not in frozen}
    dead = {quantity.device for quantity in wholes} - counting
    return frozenset(quantity for quantity in frozen if quantity.scope != "part" or quantity.device in dead)


def _error(state: str) -> str:
    """Return why a quantity has no value."""
    return "no value" if state == OK else state


def _scan(family: Family) -> FamilyScan | None:
    """Scan once; None: the scan hangs."""
    reader = DeadlineThread(f"check-{family.name}")
    try:
        return reader.call(family.scan, ANSWER_S)
    except SensorTimeoutError:
        family.count_errors(family.layout.devices, SensorTimeoutError.reason)
        return None
    finally:
        reader.close()


def render(report: Report, *, width: int = 80) -> str:
    """Return the report as plain text; only paths may be wider than ``width`` columns."""
    where = "an emulated machine" if report.emulated else report.nodename
    lines = [f"joulewatch-exporter {report.version} on {where}", f"sysfs {report.sysfs}, procfs {report.procfs}", ""]
    for finding in report.findings:
        lines.append(f"{finding.status:<8} {finding.collector:<9} {finding.subject}")
        lines += _indented(finding.text, width)
        if finding.cure:
            lines.append(f"{'':<18} fix: {finding.cure}")
    lines += [f"{'note':<8} {name:<9} experimental: {note}" for name, note in report.experimental.items()]
    if report.readings:
        lines += ["", *_reading_table(report.readings)]
    lines += ["", *textwrap.wrap(_summary(report), width, break_on_hyphens=False)]
    return "\n".join([printable(line) for line in lines])


def _indented(text: str, width: int) -> list[str]:
    indent = " " * 19
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _reading_table(readings: Sequence[LiveReading]) -> list[str]:
    rows = [("COLLECTOR", "DEVICE", "DOMAIN", "SCOPE", "METHOD", "POWER")]
    for reading in readings:
        if reading.error:
            power = reading.error
        elif reading.power_watts is None:
            power = "no value yet"
        else:
            power = f"{reading.power_watts:.2f} W"
        scope = f"{reading.scope} (primary)" if reading.primary else reading.scope
        rows.append((reading.collector, reading.device, reading.domain, scope, reading.method, power))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([*(cell.ljust(widths[column]) for column, cell in enumerate(row[:5])), row[5].rjust(12)])
        for row in rows
    ]


def _summary(report: Report) -> str:
    if report.measured or report.asleep:
        text = f"Measured quantities: {report.measured}; estimated: {report.estimated}."
        if report.asleep:
            text += (
                f" Quantities of devices that are asleep: {report.asleep}; they are measured after the device wakes."
            )
        return text
    text = "No power sensor of this machine can be read."
    if report.estimated:
        text += f' Quantities that a model estimates (method="estimated"): {report.estimated}.'
    if report.virtual_machine:
        text += (
            " This is a virtual machine, and virtual machines have no RAPL: measure on the host. "
            f"To try out joulewatch, use the {ESTIMATE_FAMILY} collector or 'joulewatch-exporter emulate'."
        )
    elif any(finding.status == "denied" for finding in report.findings):
        text += " There are sensors that may not be read: apply the fixes above."
    return text
