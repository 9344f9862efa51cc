"""Energy counters of CPU packages, dies, memory, platform and single cores (RAPL).

Three backends read the same counters: powercap sysfs, perf events, and the registers (modules `powercap`, `perf` and
`msr` list what each one needs and its pitfalls). Each physical quantity is published once, by the first backend that
can read it. Backends could name one counter differently, so the first backend that lists anything of a device decides
which counters the device has; the others serve only for those of them that it cannot read.

Single cores are a special case: powercap does not have them, AMD and Hygon count them, Intel does not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.probe import Prober
from joulewatch_exporter.collectors.base.sysfs import read_text_or
from joulewatch_exporter.collectors.rapl import msr, perf, powercap
from joulewatch_exporter.collectors.rapl.backend import (
    BackendName,
    CoresSensor,
    Listing,
    Machine,
    Offer,
    RaplSensor,
    skipped,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Finding, Host, Timing
from joulewatch_exporter.text import count_of

__all__ = ["RaplCollector", "RaplOptions"]

_BACKENDS: Final[tuple[BackendName, ...]] = ("powercap", "perf", "msr")
"""All backends, the preferred one first."""

_MOST_CORES: Final = 64
"""Each series costs time in every scrape: larger machines publish single cores only on request."""

VIRTUAL_COUNTING_S: Final = 3.0
"""Time in which the package counters of a virtual machine must change; QEMU renews its virtual ones every second."""

_MAX_POLL_S: Final = 10.0
"""Safe for every CPU: the fastest counter, 2^-16 J at 1 kW, wraps in 65 s, and the kernel's perf events must be read
within half a wrap."""
_MIN_POLL_S: Final = 0.005
"""The hardware counts in steps of about 1 ms, and each read wakes the package's lead CPU."""


@dataclass(frozen=True, slots=True)
class RaplOptions:
    """Settings under ``collectors.rapl``."""

    door: Literal["auto", "powercap", "perf", "msr"] = "auto"
    """The backend. auto: for each quantity the first backend that can read it."""
    parts: bool = True
    """False: exclude ``core``, ``uncore`` and single cores, which saves at least a third of the register reads."""
    per_core: bool | Literal["auto"] = "auto"
    """Whether single cores have their own series; auto: on machines with up to 64 cores."""

    def __post_init__(self) -> None:
        """Check options that depend on each other.

        Raises:
            ValueError: The text begins with the key.
        """
        if self.per_core is True and not self.parts:
            raise ValueError("per_core: cores are parts, and collectors.rapl.parts is false")


class RaplCollector(OnDemandCollector):
    """All RAPL counters of the host, each physical quantity once."""

    name: ClassVar[str] = "rapl"
    Options: ClassVar[type] = RaplOptions

    def __init__(
        self, host: Host, sensors: Sequence[RaplSensor | CoresSensor], findings: Sequence[Finding], fingerprint: object
    ) -> None:
        super().__init__(sensors, findings)
        self._host = host
        self._fingerprint = fingerprint

    @property
    def timing(self) -> Timing:
        """Read at least four times within the shortest possible wrap of any counter."""
        wraps_s = [
            info.wrap_joules / info.max_power_watts
            for sensor in self._sensors
            for info in sensor.infos
            if info.wrap_joules is not None
        ]
        shortest_s = min(wraps_s, default=4 * _MAX_POLL_S)
        poll_s = max(_MIN_POLL_S, min(_MAX_POLL_S, shortest_s / 4))
        return Timing(poll_s=poll_s, read_on_scrape=True, has_steps=True)

    @property
    def outdated(self) -> bool:
        """Whether CPUs, zones or a backend have appeared or disappeared since ``open``."""
        return _fingerprint(self._host) != self._fingerprint

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the counters and read each of them once.

        Args:
            host: Where sysfs, procfs and the device files are.
            options: `RaplOptions`.

        Raises:
            SensorAbsentError: No backend has a counter.
            SensorDeniedError: There are counters, but none can be read.
            SensorTimeoutError: There are counters, but their reads hang.
        """
        assert isinstance(options, RaplOptions)
        fingerprint = _fingerprint(host)
        machine = Machine.of(host, has_zones=bool(powercap.zone_names(host)))
        findings: list[Finding] = []
        backends = _BACKENDS if options.door == "auto" else (options.door,)
        cores = _wants_cores(machine, options, findings)
        listings: dict[BackendName, Listing] = {}
        errors: dict[BackendName, SensorError] = {}
        with contextlib.closing(Prober(cls.name, findings)) as prober:
            for backend in backends:
                try:
                    listings[backend] = _probe(backend, machine, prober, options, cores=cores, findings=findings)
                except SensorError as error:
                    errors[backend] = error
            selection = _Selection(
                prober, findings, cores_required=options.per_core is True, is_virtual=machine.is_virtual
            )
            selection.open_all([offer for listing in listings.values() for offer in listing.offers])
        if not selection.sensors:
            raise selection.failure(errors, backends)
        selection.report_unused(listings)
        if cores and not selection.has_cores:
            selection.report_missing_cores(machine, errors)
        return cls(host, selection.sensors, findings, fingerprint)


def _probe(
    backend: BackendName,
    machine: Machine,
    prober: Prober,
    options: RaplOptions,
    *,
    cores: bool,
    findings: list[Finding],
) -> Listing:
    if backend == "powercap":
        return powercap.probe(machine, prober, parts=options.parts, findings=findings)
    if backend == "perf":
        return perf.probe(machine, parts=options.parts, cores=cores, findings=findings)
    return msr.probe(machine, parts=options.parts, cores=cores)


def _fingerprint(host: Host) -> object:
    """Return what changes when counters appear or disappear; cheap, because it is compared every few seconds."""
    return (
        read_text_or(f"{host.sysfs}/devices/system/cpu/online", ""),
        powercap.zone_names(host),
        perf.cpumasks(host),
        msr.is_loaded(host),
    )


def _wants_cores(machine: Machine, options: RaplOptions, findings: list[Finding]) -> bool:
    if not options.parts or options.per_core != "auto":
        return options.per_core is True
    cores = len(machine.cores)
    if cores > _MOST_CORES and machine.is_one_counter:
        findings.append(
            skipped(
                f"{machine.host.sysfs}/devices/system/cpu",
                f"{cores} cores: series of single cores are off on machines with more than {_MOST_CORES} cores, "
                "because each costs time in every scrape; set collectors.rapl.per_core: true to enable them",
            )
        )
    return 0 < cores <= _MOST_CORES


class _Selection:
    """Opens one offer per quantity and records why the others are not used."""

    def __init__(self, prober: Prober, findings: list[Finding], *, cores_required: bool, is_virtual: bool) -> None:
        self.sensors: list[RaplSensor | CoresSensor] = []
        self.has_cores = False
        """Whether single cores are read, or a finding explains why not."""
        self._prober = prober
        self._findings = findings
        self._cores_required = cores_required
        self._is_virtual = is_virtual
        self._counting_end_s = time.monotonic() + VIRTUAL_COUNTING_S
        self._denied: list[tuple[Offer, SensorError]] = []
        self._missing: list[SensorError] = []
        self._used: set[BackendName] = set()

    def open_all(self, offers: Sequence[Offer]) -> None:
        """Open the first readable offer of each quantity.

        Args:
            offers: Ordered by preference of their backends.
        """
        preferred = next((offer.backend for offer in offers if not offer.is_cores), None)
        authorities: dict[str, BackendName] = {}
        """Device -> the backend that decides which counters it has."""
        for offer in offers:
            if not offer.is_cores and (offer.backend == preferred or offer.device.startswith("socket")):
                authorities.setdefault(offer.device, offer.backend)
        known = {offer.key for offer in offers if authorities.get(offer.device) == offer.backend}
        by_key: dict[str, list[Offer]] = {}
        for offer in offers:
            if offer.is_cores or offer.key in known:
                by_key.setdefault(offer.key, []).append(offer)
        for candidates in by_key.values():
            self._open_first(candidates)
        # A device has one read timestamp, so its sensors are read one after the other.
        positions = {sensor.device: position for position, sensor in reversed(list(enumerate(self.sensors)))}
        self.sensors.sort(key=lambda sensor: positions[sensor.device])

    def _open_first(self, candidates: Sequence[Offer]) -> None:
        denied: list[tuple[Offer, SensorError]] = []
        opened: Offer | None = None
        for offer in candidates:
            if opened is not None:
                if offer.backend == opened.backend:
                    text = f"{offer.label}: same counter as {opened.subject}, which is published"
                    self._findings.append(skipped(offer.subject, text))
                continue
            try:
                # perf shares its open events, so a call that ends late must not open one; msr reads registers.
                if offer.backend == "powercap":
                    sensor_and_text = self._prober.call(offer.path, offer.device, offer.open)
                else:
                    sensor_and_text = offer.open()
                if sensor_and_text is None:
                    continue  # the read hangs
                sensor, text = sensor_and_text
                if self._is_virtual and not offer.is_cores:
                    self._check_counts(offer, sensor)
            except SensorDeniedError as error:
                denied.append((offer, error))
            except SensorError as error:
                self._record_missing(offer, error)
            else:
                opened = offer
                self.sensors.append(sensor)
                self._used.add(offer.backend)
                self._findings.append(Finding(status="found", collector="rapl", subject=offer.path, text=text))
        if candidates[0].is_cores and (opened is not None or denied):
            self.has_cores = True
        for offer, denial in denied:
            self._record_denial(offer, denial, opened)
        if opened is None:
            self._denied += denied

    def _check_counts(self, offer: Offer, sensor: RaplSensor | CoresSensor) -> None:
        """Check that a package counter of a virtual machine counts; its register may hold a constant.

        Raises:
            SensorAbsentError: It does not; then the next backend is tried, or the CPU's energy is estimated.
        """
        if sensor.infos[0].quantity.scope != "device" or sensor.infos[0].quantity.component != "cpu":
            return
        first = sensor.read()[0].energy_joules
        while sensor.read()[0].energy_joules == first:
            if time.monotonic() >= self._counting_end_s:
                sensor.close()
                raise SensorAbsentError(
                    f"{offer.path}: does not count: the same value for {VIRTUAL_COUNTING_S:g} s, in a virtual machine"
                )
            time.sleep(0.01)

    def _record_denial(self, offer: Offer, error: SensorError, opened: Offer | None) -> None:
        """Add a finding that access was denied; only once per text, because perf denies all events alike."""
        if opened is not None:
            # Not `denied`: the family would be reopened again and again although the quantity is read.
            finding = skipped(offer.path, f"{error}; read by {opened.backend} instead", offer.fix)
        elif offer.is_cores and not self._cores_required:
            finding = skipped(offer.path, f"single cores: {error}", offer.fix)
        else:
            finding = Finding(
                status="denied",
                collector="rapl",
                subject=offer.path,
                text=str(error),
                cure=offer.fix,
                device=offer.device,
            )
        if not any(finding.text == other.text for other in self._findings):
            self._findings.append(finding)

    def _record_missing(self, offer: Offer, error: SensorError) -> None:
        """Record a counter that was listed but does not exist."""
        self._missing.append(error)
        status = offer.if_absent if isinstance(error, SensorAbsentError) else "broken"
        if status:
            self._findings.append(Finding(status=status, collector="rapl", subject=offer.path, text=str(error)))

    def report_unused(self, listings: Mapping[BackendName, Listing]) -> None:
        """Add a finding for each backend that was not needed."""
        denied = {offer.backend for offer, _ in self._denied}
        for backend, listing in listings.items():
            if listing.offers and backend not in self._used and backend not in denied:
                text = f"{backend}: same counters, read by {' and '.join(sorted(self._used))}"
                self._findings.append(skipped(listing.path, text))

    def report_missing_cores(self, machine: Machine, errors: Mapping[BackendName, SensorError]) -> None:
        """Add a finding why single cores are not read, if that can be changed or they were requested."""
        if machine.is_one_counter:
            reasons = [str(errors[backend]) for backend in ("perf", "msr") if backend in errors]
            text = "; ".join(
                ("single cores: need the PMU power_core (Linux 6.14 or newer) or the module msr", *reasons)
            )
        elif self._cores_required:
            text = "single cores: this CPU counts only all cores together"
        else:
            return
        can_load = machine.is_one_counter and "msr" in errors and not machine.lacks_counters
        fix = "sudo modprobe msr" if can_load else ""
        subject = f"{machine.host.dev}/cpu"
        self._findings.append(Finding(status="absent", collector="rapl", subject=subject, text=text, cure=fix))

    def failure(self, errors: Mapping[BackendName, SensorError], backends: Sequence[BackendName]) -> SensorError:
        """Return the error to raise if nothing can be read."""
        texts = []
        devices = [offer.device for offer, _ in self._denied]
        for backend in backends:
            denials = [error for offer, error in self._denied if offer.backend == backend]
            if isinstance(error := errors.get(backend), SensorDeniedError):
                denials.append(error)
                devices += error.devices
            if denials:
                kind = "zone" if backend == "powercap" else "counter"
                more = f" (and {count_of(len(denials) - 1, f'more {kind}')})" if len(denials) > 1 else ""
                texts.append(f"{denials[0]}{more}")
        if texts:
            return SensorDeniedError("; or with another backend: ".join(texts), devices=devices)
        self._prober.check()
        reasons = [*map(str, errors.values()), *(f"{finding.subject}: {finding.text}" for finding in self._findings)]
        reasons += [str(error) for error in self._missing if not any(str(error) in reason for reason in reasons)]
        text = "; ".join(reasons)
        if len(backends) == 1:
            text += f" (collectors.rapl.door is {backends[0]}: no other backend is tried)"
        return SensorAbsentError(text)
