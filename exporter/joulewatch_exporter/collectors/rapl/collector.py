"""CPU packages, dies, memory, platform and single cores: the energy counters of RAPL, by whichever door is open.

Three doors lead to the same counters: powercap sysfs, perf events, and the registers themselves (`powercap`, `perf`,
`msr`: what each needs, and how each lies, is said there). A physical quantity is published once, by the first door
that lets us in. Because doors could name the same counter differently, the first one that shows anything of a device
says which counters it has; the others serve for those of them that it does not let us read.

Single cores are another matter: powercap has none. AMD and Hygon count them, Intel does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.on_demand import OnDemandCollector
from joulewatch_exporter.collectors.base.sysfs import read_text_or
from joulewatch_exporter.collectors.rapl import msr, perf, powercap
from joulewatch_exporter.collectors.rapl.backend import (
    CoresSensor,
    DoorName,
    Machine,
    Offer,
    RaplSensor,
    View,
    skipped,
)
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Finding, Host, Timing

__all__ = ["RaplCollector", "RaplOptions"]

_DOORS: Final[tuple[DoorName, ...]] = ("powercap", "perf", "msr")
"""The preferred one first."""

_MOST_CORES: Final = 64
"""A series for each core costs every scrape: machines with more have them only if asked for."""

_MAX_POLL_S: Final = 10.0
"""Right for every CPU: the fastest counter, 2^-16 J at 1 kW, goes round in 65 s, and the kernel's perf events must be
read within half a round."""
_MIN_POLL_S: Final = 0.005
"""The hardware counts in steps of about 1 ms and each read wakes the package's lead CPU."""


@dataclass(frozen=True, slots=True)
class RaplOptions:
    """Settings under ``collectors.rapl``."""

    door: Literal["auto", "powercap", "perf", "msr"] = "auto"
    """auto: each quantity by the first of the three that may be read; else that one only."""
    parts: bool = True
    """False: leave out ``core``, ``uncore`` and single cores, and with them a third of the register reads and more."""
    per_core: bool | Literal["auto"] = "auto"
    """Whether single cores get series of their own; auto: on machines with up to 64 cores."""

    def __post_init__(self) -> None:
        """Check what belongs together.

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
        self, host: Host, sensors: Sequence[RaplSensor | CoresSensor], findings: Sequence[Finding], marks: object
    ) -> None:
        super().__init__(sensors, findings)
        self._host = host
        self._marks = marks

    @property
    def timing(self) -> Timing:
        """Read at least four times in the shortest round that any counter can make."""
        rounds_s = [
            info.wrap_joules / info.max_power_watts
            for sensor in self._sensors
            for info in sensor.infos
            if info.wrap_joules is not None
        ]
        shortest_s = min(rounds_s, default=4 * _MAX_POLL_S)
        return Timing(poll_s=max(_MIN_POLL_S, min(_MAX_POLL_S, shortest_s / 4)), read_on_scrape=True)

    @property
    def outdated(self) -> bool:
        """Whether CPUs or zones have come or gone, or another door has opened."""
        return _marks(self._host) != self._marks

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Find the counters and try each of them once.

        Args:
            host: Where sysfs, procfs and the device files are.
            options: `RaplOptions`.

        Raises:
            SensorAbsentError: No door leads to any counter.
            SensorDeniedError: There are counters, and none may be read.
        """
        assert isinstance(options, RaplOptions)
        marks = _marks(host)
        machine = Machine.of(host)
        findings: list[Finding] = []
        doors = _DOORS if options.door == "auto" else (options.door,)
        cores = _wants_cores(machine, options, findings)
        views: dict[DoorName, View] = {}
        closed: dict[DoorName, SensorError] = {}
        for door in doors:
            try:
                views[door] = _look(door, machine, options, cores=cores, findings=findings)
            except SensorError as error:
                closed[door] = error
        choice = _Choice(findings, cores_must=options.per_core is True)
        choice.take([offer for view in views.values() for offer in view.offers])
        if not choice.sensors:
            raise choice.failure(closed, doors)
        choice.tell_unused(views)
        if cores and not choice.has_cores:
            choice.tell_no_cores(machine, closed)
        return cls(host, choice.sensors, findings, marks)


def _look(door: DoorName, machine: Machine, options: RaplOptions, *, cores: bool, findings: list[Finding]) -> View:
    if door == "powercap":
        return powercap.look(machine, parts=options.parts, findings=findings)
    if door == "perf":
        return perf.look(machine, parts=options.parts, cores=cores, findings=findings)
    return msr.look(machine, parts=options.parts, cores=cores)


def _marks(host: Host) -> object:
    """What shows that counters have come or gone: cheap, because it is looked at again and again."""
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
                f"{cores} cores: series of single cores are off on machines with more than {_MOST_CORES}, because each "
                "costs every scrape; collectors.rapl.per_core: true switches them on",
            )
        )
    return 0 < cores <= _MOST_CORES


class _Choice:
    """Takes one offer for each quantity, and says what became of the others."""

    def __init__(self, findings: list[Finding], *, cores_must: bool) -> None:
        self.sensors: list[RaplSensor | CoresSensor] = []
        self.has_cores = False
        """Whether single cores are read, or it has been said why not."""
        self._findings = findings
        self._cores_must = cores_must
        self._refused: list[tuple[Offer, SensorError]] = []
        self._missing: list[SensorError] = []
        self._used: set[DoorName] = set()

    def take(self, offers: Sequence[Offer]) -> None:
        """Open the first offer of each quantity that lets us in.

        Args:
            offers: Those of the preferred door first.
        """
        first_door = next((offer.door for offer in offers if not offer.is_cores), None)
        names: dict[str, DoorName] = {}
        """Device to the door that says which counters it has."""
        for offer in offers:
            if not offer.is_cores and (offer.door == first_door or offer.device.startswith("socket")):
                names.setdefault(offer.device, offer.door)
        known = {offer.key for offer in offers if names.get(offer.device) == offer.door}
        by_key: dict[str, list[Offer]] = {}
        for offer in offers:
            if offer.is_cores or offer.key in known:
                by_key.setdefault(offer.key, []).append(offer)
        for candidates in by_key.values():
            self._take_one(candidates)
        # A device has one time stamp: what belongs to it is read together.
        places = {sensor.device: place for place, sensor in reversed(list(enumerate(self.sensors)))}
        self.sensors.sort(key=lambda sensor: places[sensor.device])

    def _take_one(self, candidates: Sequence[Offer]) -> None:
        refused: list[tuple[Offer, SensorError]] = []
        taken: Offer | None = None
        for offer in candidates:
            if taken is not None:
                if offer.door == taken.door:
                    text = f"{offer.label}: counts the same as {taken.subject}, which is published"
                    self._findings.append(skipped(offer.subject, text))
                continue
            try:
                sensor, text = offer.open()
            except SensorDeniedError as error:
                refused.append((offer, error))
            except SensorError as error:
                self._miss(offer, error)
            else:
                taken = offer
                self.sensors.append(sensor)
                self._used.add(offer.door)
                self._findings.append(Finding(status="found", collector="rapl", subject=offer.path, text=text))
        if candidates[0].is_cores and (taken is not None or refused):
            self.has_cores = True
        for offer, refusal in refused:
            self._refuse(offer, refusal, taken)
        if taken is None:
            self._refused += refused

    def _refuse(self, offer: Offer, refusal: SensorError, taken: Offer | None) -> None:
        """Say that we were not let in: once for all that say the same, as perf does for all its events."""
        if taken is not None:
            # Not `denied`: that would be tried again and again, and the quantity is read.
            finding = skipped(offer.path, f"{refusal}; meanwhile it is read by {taken.door}", offer.cure)
        elif offer.is_cores and not self._cores_must:
            finding = skipped(offer.path, f"single cores: {refusal}", offer.cure)
        else:
            finding = Finding(status="denied", collector="rapl", subject=offer.path, text=str(refusal), cure=offer.cure)
        if not any(finding.text == other.text for other in self._findings):
            self._findings.append(finding)

    def _miss(self, offer: Offer, error: SensorError) -> None:
        """A counter that is not there after all."""
        self._missing.append(error)
        status = offer.if_absent if isinstance(error, SensorAbsentError) else "broken"
        if status:
            self._findings.append(Finding(status=status, collector="rapl", subject=offer.path, text=str(error)))

    def tell_unused(self, views: Mapping[DoorName, View]) -> None:
        """Name the doors that were not needed."""
        refused = {offer.door for offer, _ in self._refused}
        for door, view in views.items():
            if view.offers and door not in self._used and door not in refused:
                text = f"{door}: the same counters, which are read by {' and '.join(sorted(self._used))}"
                self._findings.append(skipped(view.where, text))

    def tell_no_cores(self, machine: Machine, closed: Mapping[DoorName, SensorError]) -> None:
        """Say why single cores are not read, where that can be changed or was asked for."""
        subject = f"{machine.host.dev}/cpu"
        if machine.is_one_counter:
            reasons = [str(closed[door]) for door in ("perf", "msr") if door in closed]
            text = "; ".join(("single cores: needs the PMU power_core (Linux 6.14 on) or the module msr", *reasons))
            self._findings.append(
                Finding(
                    status="absent",
                    collector="rapl",
                    subject=subject,
                    text=text,
                    cure="sudo modprobe msr" if "msr" in closed else "",
                )
            )
        elif self._cores_must:
            self._findings.append(
                Finding(
                    status="absent",
                    collector="rapl",
                    subject=subject,
                    text="single cores: this CPU counts only all of them together",
                )
            )

    def failure(self, closed: Mapping[DoorName, SensorError], doors: Sequence[DoorName]) -> SensorError:
        """Say why nothing can be read: the error to raise."""
        if self._refused:
            texts = []
            for door in doors:
                errors = [error for offer, error in self._refused if offer.door == door]
                if errors:
                    kind = "zones" if door == "powercap" else "counters"
                    more = f" (and {len(errors) - 1} more {kind})" if len(errors) > 1 else ""
                    texts.append(f"{errors[0]}{more}")
            return SensorDeniedError("; or by another door: ".join(texts))
        if any(isinstance(error, SensorDeniedError) for error in closed.values()):
            return next(error for error in closed.values() if isinstance(error, SensorDeniedError))
        reasons = [*map(str, closed.values()), *(f"{finding.subject}: {finding.text}" for finding in self._findings)]
        reasons += [str(error) for error in self._missing if not any(str(error) in reason for reason in reasons)]
        text = "; ".join(reasons)
        if len(doors) == 1:
            text += f" (collectors.rapl.door is {doors[0]}: no other is tried)"
        return SensorAbsentError(text)
