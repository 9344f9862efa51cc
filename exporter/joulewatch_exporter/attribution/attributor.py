"""Shares the energy that the families have read: once a second, and for each scrape after its devices were read.

Devices are not read again. The usage is read just after them, each source on its own thread, because a read may hang.
If a source fails or is late, the energy of that time has no owner (``gap``), and everything else goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, TypeVar

from joulewatch_exporter.attribution import idle_file
from joulewatch_exporter.attribution.idle import IdlePower
from joulewatch_exporter.attribution.ledger import POOLED, DeviceEnergy, DeviceKey, Ledger, Meter
from joulewatch_exporter.attribution.model import Reason, UsageScan, UsageSource
from joulewatch_exporter.attribution.places import MeterKey, Place, Places
from joulewatch_exporter.attribution.reservations import Reserving, own_shares
from joulewatch_exporter.attribution.shares import Shares, SharesLayout
from joulewatch_exporter.clock import NS_PER_S, Clock, SystemClock
from joulewatch_exporter.config.config import AttributionSettings
from joulewatch_exporter.errors import ConfigError, SensorError
from joulewatch_exporter.model import Component, Finding, Host
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.threads import DeadlineThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

PERIOD_S: Final = 1.0
READ_S: Final = 0.5
"""A source that has not answered by then has failed; a scrape waits no longer for it."""
SURVEY_S: Final = 2.0
"""Shortest time between two surveys, and the longest time that one may take."""
SURVEY_SHARE: Final = 0.005
"""Surveys take at most this share of a processor."""
LONGEST_SURVEY_PERIOD_S: Final = 30.0
RESERVED_PERIOD_S: Final = 30.0
"""Shortest time between two reads of the weights of cgroups."""
RESERVED_SHARE: Final = 0.001
"""They take at most this share of a processor."""
OPEN_S: Final = 10.0
RETRY_S: Final = 30.0
"""Period of the attempts to open a missing source, and shortest time between two writes of the idle power."""

_REASONS: Final[tuple[Reason, ...]] = ("idle", "rest", "system", "gap")
_STOP_S: Final = 0.3


def _timed(read: Callable[[], T]) -> tuple[T, float]:
    """Return what a read returns, and its processor time."""
    started_s = time.thread_time()
    result = read()
    return result, time.thread_time() - started_s


class _Source:
    """An open source and the thread that reads it."""

    def __init__(self, source: UsageSource) -> None:
        self.source = source
        self.name = source.name
        self._thread = DeadlineThread(f"usage-{source.name}")
        self._lock = threading.Lock()
        """A scrape waits for a survey in progress."""
        self._is_failing = False

    def call(self, function: Callable[[], T], timeout_s: float) -> T | None:
        """Return the result of a read; None: it failed, which is logged once."""
        end_s = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            return None  # the thread that has the lock reports it
        try:
            result = self._thread.call(function, max(end_s - time.monotonic(), 0.001))
        except Exception as error:
            if not self._is_failing:
                self._is_failing = True
                is_known = isinstance(error, SensorError)
                logger.warning("usage %s: %s", self.name, error if is_known else repr(error), exc_info=not is_known)
            return None
        finally:
            self._lock.release()
        if self._is_failing:
            self._is_failing = False
            logger.info("usage %s: can be read again", self.name)
        return result

    def survey(self) -> tuple[UsageScan, float]:
        """Return the usage of every workload, and the processor time of the read."""
        return _timed(self.source.survey)

    def close(self) -> None:
        try:
            self._thread.call(self.source.close, 0.1)
        except SensorError:
            return  # it hangs, and the process ends soon
        finally:
            self._thread.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Devices:
    """What a family's layout has that is shared: recomputed when the layout changes."""

    layout: object
    entries: tuple[tuple[int, int, DeviceKey], ...]
    """Index of the quantity, index of its device, and key."""
    methods: Mapping[DeviceKey, str]


def is_superseded(source: type[UsageSource], covered: Collection[Component]) -> bool:
    """Return whether a source is not needed: one usage serves all processors, but each GPU may have another source."""
    return POOLED.issuperset(source.components) and set(source.components).issubset(covered)


class Attributor:
    """Opens the usage sources and keeps the ledger; ``look`` may be called by many threads."""

    def __init__(
        self,
        sources: Sequence[type[UsageSource]],
        host: Host,
        settings: AttributionSettings,
        *,
        latest: Callable[[], Sequence[FamilyScan]] = tuple,
        state_folder: Path | None = None,
        clock: Clock | None = None,
        least_seconds: float | None = None,
    ) -> None:
        """Prepare; ``start`` opens and reads.

        Args:
            sources: In the order of their preference.
            host: Where the files are.
            settings: The configuration.
            latest: Returns the last scan of each family.
            state_folder: Where the measured idle power is kept; None: it is not kept.
            clock: Replaces the machine's clock in tests.
            least_seconds: See `Places`; None: its default.
        """
        self._types = tuple(sources)
        self._host = host
        self._settings = settings
        self._latest = latest
        self._clock: Clock = SystemClock() if clock is None else clock
        extra = {} if least_seconds is None else {"least_seconds": least_seconds}
        self._places = Places(
            max_workloads=settings.max_workloads,
            min_share=settings.min_share,
            keep_gone_s=settings.keep_gone_seconds,
            **extra,
        )
        self._ledger = Ledger(self._places)
        # An emulated machine's devices have the names of real ones.
        self._state_folder = None if host.emulated else state_folder
        measured = () if self._state_folder is None else idle_file.load(self._state_folder)
        self._idle = IdlePower(settings.idle_watts, measured)
        self._stored = (self._idle.version, self._clock.monotonic_ns())
        self._processors = os.cpu_count() or 1
        self._sources: tuple[_Source, ...] = ()
        self._openers: dict[str, DeadlineThread] = {}
        self._logged: set[tuple[str, str]] = set()
        self._by_family: dict[str, _Devices] = {}
        self._keys: tuple[int, frozenset[str]] = (-1, frozenset())
        self._layout_of: tuple[object, ...] = ()
        self._layout = SharesLayout()
        self._lock = threading.Lock()
        self._shares: Shares | None = None
        self._survey_due_ns = 0
        self._reserved: Mapping[str, float] = {}
        """Node -> its share of the processors by weight."""
        self._reserved_due_ns = 0
        self._retry_due_ns = 0
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="attribution", daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether there is a source."""
        return bool(self._sources)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What ``check`` shows of the open sources."""
        return tuple(finding for one in self._sources for finding in one.source.findings)

    # -- opening -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the sources that this machine has, for ``look`` and ``survey`` without ``start``.

        Raises:
            ConfigError: A source that is required cannot be opened, or none can and attribution is required.
        """
        self._open_missing(first=True)
        if self._settings.enabled is True and not self._sources:
            raise ConfigError(
                "attribution.enabled is true, but no usage source can be opened; run 'joulewatch-exporter check' for "
                "the reasons"
            )

    def start(self) -> None:
        """Open the sources and share energy once a second.

        Raises:
            ConfigError: See `open`.
        """
        self.open()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the sources; those that hang are abandoned."""
        self._stop_event.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._store(is_last=True)
        for one in self._sources:
            one.close()
        for opener in self._openers.values():
            opener.close()

    def _open_missing(self, *, first: bool) -> None:
        self._retry_due_ns = self._clock.monotonic_ns() + round(RETRY_S * NS_PER_S)
        known = {one.name for one in self._sources}
        opened = {one.name: one for one in self._sources}
        covered: set[Component] = set()
        for source in self._types:
            is_covered = is_superseded(source, covered)
            covered.update(source.components if source.name in known else ())
            setting = self._settings.sources.get(source.name)
            is_required = setting is not None and setting.enabled is True
            is_disabled = setting is not None and setting.enabled is False
            if source.name in known or is_disabled or (is_covered and not is_required):
                continue
            options = setting.options if setting is not None and setting.options is not None else source.Options()
            try:
                opened[source.name] = _Source(self._open_one(source, options))
                covered.update(source.components)
            except Exception as error:
                if first and is_required:
                    raise ConfigError(f"usage source {source.name} is required: {error}") from error
                if (source.name, str(error)) not in self._logged:
                    self._logged.add((source.name, str(error)))
                    is_known = isinstance(error, SensorError)
                    logger.log(
                        logging.INFO if is_known else logging.ERROR,
                        "usage %s: %s", source.name, error, exc_info=not is_known,
                    )  # fmt: skip
        with self._lock:
            self._sources = tuple(opened[source.name] for source in self._types if source.name in opened)
            self._ledger.sources = tuple((one.name, one.source.components) for one in self._sources)

    def _open_one(self, source: type[UsageSource], options: Any) -> UsageSource:
        opener = self._openers.setdefault(source.name, DeadlineThread(f"open-usage-{source.name}"))
        return opener.call(lambda: source.open(self._host, options), OPEN_S, discard=lambda late: late.close())

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop_event.wait(max(due_s - time.monotonic(), 0.0)):
            due_s = max(due_s + PERIOD_S, time.monotonic())
            try:
                if self._clock.monotonic_ns() >= self._survey_due_ns:
                    self.survey()
                self.look(self._latest())
                self._store()
                if self._clock.monotonic_ns() >= self._retry_due_ns and len(self._sources) < len(self._types):
                    self._open_missing(first=False)
            except Exception:
                logger.exception("sharing energy failed")
                self._stop_event.wait(PERIOD_S)

    def _store(self, *, is_last: bool = False) -> None:
        """Keep newly measured idle power."""
        version, stored_ns = self._stored
        now_ns = self._clock.monotonic_ns()
        is_due = is_last or now_ns - stored_ns >= RETRY_S * NS_PER_S
        if self._state_folder is None or self._idle.version == version or not is_due:
            return
        self._stored = (self._idle.version, now_ns)
        idle_file.store(self._state_folder, self._idle.measured)

    # -- looks -------------------------------------------------------------------------------------

    def survey(self) -> None:
        """Read every living workload and give places to those that need one."""
        started_ns = self._clock.monotonic_ns()
        spent_s = 0.0
        usages: dict[MeterKey, Any] = {}
        holders: list[str] = []
        known: dict[str, _Source] = {}
        for one in self._sources:
            survey = one.call(one.survey, SURVEY_S)
            if survey is None:
                continue
            scan, cpu_s = survey
            spent_s += cpu_s
            for device, nodes in scan.usages.items():
                usages[one.name, device] = nodes
                for usage in nodes:
                    known.setdefault(usage.key, one)
            for keys in scan.holders.values():
                holders += keys
                for key in keys:
                    known.setdefault(key, one)
        with self._lock:
            now_ns = self._clock.monotonic_ns()
            period_s = min(max(SURVEY_S, spent_s / SURVEY_SHARE), LONGEST_SURVEY_PERIOD_S)
            self._survey_due_ns = started_ns + round(period_s * NS_PER_S)
            wanted = self._places.survey(now_ns, usages, holders)
        self._read_reserved()
        for key in wanted:
            one = known.get(key) or self._sources[0]
            workload = one.call(lambda one=one, key=key: one.source.workload(key), READ_S)  # type: ignore[misc]
            with self._lock:
                if workload is not None and not self._places.give(now_ns, key, workload):
                    return

    def _read_reserved(self) -> None:
        """Read the weights of the cgroups, if that is due."""
        started_ns = self._clock.monotonic_ns()
        if started_ns < self._reserved_due_ns:
            return
        spent_s, shares = 0.0, dict[str, float]()
        for one in self._sources:
            if isinstance(one.source, Reserving):
                read = one.call(lambda source=one.source: _timed(source.reserved), SURVEY_S)  # type: ignore[misc]
                if read is not None:
                    shares |= read[0]
                    spent_s += read[1]
        self._reserved = shares
        self._reserved_due_ns = started_ns + round(max(RESERVED_PERIOD_S, spent_s / RESERVED_SHARE) * NS_PER_S)

    def look(self, scans: Sequence[FamilyScan], timeout_s: float = READ_S) -> Shares | None:
        """Share what the devices have used since the last look.

        Args:
            scans: The newest scans; a device whose counter has not moved is shared later.
            timeout_s: How long to wait for all sources.

        Returns:
            The counters; None if no usage source is open.
        """
        if not self._sources:
            return None
        end_ns = time.monotonic_ns() + round(min(timeout_s, READ_S) * NS_PER_S)
        with self._lock:
            keys = self._wanted_keys()
            usage: dict[str, UsageScan | None] = {}
            for one in self._sources:
                left_s = (end_ns - time.monotonic_ns()) / NS_PER_S
                usage[one.name] = one.call(lambda one=one: one.source.read(keys), left_s) if left_s > 0 else None  # type: ignore[misc]
            self._ledger.take_usage(usage, self._clock.monotonic_ns())
            energies = self._energies(scans)
            now_s = self._clock.time_ns() / NS_PER_S
            for key, joules, read_at_ns in energies:
                meter = self._meter_of(key)
                processors = self._processors if key[1].component in POOLED else 1
                busy = meter.busy_seconds / processors if meter is not None and meter.is_read else None
                self._idle.update(key, joules, read_at_ns, busy, now_s)
            self._ledger.take_energy(energies, self._idle.watts)
            self._shares = self._show()
            return self._shares

    def _wanted_keys(self) -> frozenset[str]:
        """Return the nodes that have places; the same object while they are the same."""
        if self._keys[0] != self._places.version:
            self._keys = (self._places.version, frozenset(self._places.by_key))
        return self._keys[1]

    def _meter_of(self, key: DeviceKey) -> Meter | None:
        quantity = key[1]
        return self._ledger.meter_of(quantity.component, "" if quantity.component in POOLED else quantity.device)

    def _energies(self, scans: Sequence[FamilyScan]) -> list[DeviceEnergy]:
        """Return the counters of this machine's devices.

        Processors and memory of one scan get one time, the mean of their reads: they are read within a millisecond,
        and share one computation.
        """
        energies: list[DeviceEnergy] = []
        for scan in scans:
            devices = self._by_family.get(scan.collector)
            if devices is None or devices.layout is not scan.layout:
                devices = self._by_family[scan.collector] = self._devices(scan)
            pooled: list[tuple[DeviceKey, float, float]] = []
            for index, device, key in devices.entries:
                joules, at_s = scan.energies_joules[index], scan.read_at_s[device]
                if joules is None or at_s is None:
                    continue
                if key[1].component in POOLED:
                    pooled.append((key, joules, at_s))
                else:
                    energies.append(DeviceEnergy(key, joules, round(at_s * NS_PER_S) - scan.offset_ns))
            if pooled:
                at_ns = round(fmean(at_s for _, _, at_s in pooled) * NS_PER_S) - scan.offset_ns
                energies += [DeviceEnergy(key, joules, at_ns) for key, joules, _ in pooled]
        return energies

    def _devices(self, scan: FamilyScan) -> _Devices:
        indices = {device: index for index, device in enumerate(scan.layout.devices)}
        entries: list[tuple[int, int, DeviceKey]] = []
        methods: dict[DeviceKey, str] = {}
        for index, info in enumerate(scan.layout.infos):
            quantity = info.quantity
            if quantity.scope == "device" and not info.is_remote:
                key = (scan.collector, quantity)
                entries.append((index, indices[quantity.device], key))
                methods[key] = "emulated" if self._host.emulated else info.method
        return _Devices(layout=scan.layout, entries=tuple(entries), methods=methods)

    # -- what a scrape shows -----------------------------------------------------------------------

    def _show(self) -> Shares:
        ledger, places = self._ledger, self._places
        groups = sorted(ledger.groups.items())
        processors = next((meter for component in POOLED if (meter := ledger.meter_of(component, ""))), None)
        gpus = [
            (device, meter)
            for (component, device), _ in groups
            if component == "gpu" and (meter := ledger.meter_of(component, device)) is not None
        ]
        held = [
            (device, place)
            for device, meter in gpus
            for place in dict.fromkeys(ledger.owner(key) for key in meter.holders)
            if isinstance(place, Place)
        ]
        how = self._how()
        reserved = self._reserved_of()
        layout_of = (
            places.places,
            [place.workload for place in places.places],
            [(key, 0 if key[0] in POOLED else len(group.workloads)) for key, group in groups],
            [(device, len(meter.totals)) for device, meter in gpus],
            held,
            list(reserved),
            how,
            processors is None,
        )
        energy = [
            (component, device, place, group)
            for (component, device), group in groups
            for place in places.places
            if component in POOLED or place in group.workloads
        ]
        used = [(device, place, meter) for device, meter in gpus for place in places.places if place in meter.totals]
        if layout_of != self._layout_of:
            self._layout_of = layout_of
            self._layout = SharesLayout(
                workloads=tuple(place.workload for place in places.places),
                energy=tuple((component, device, place.workload) for component, device, place, _ in energy),
                unattributed=tuple((component, device, why) for (component, device), _ in groups for why in _REASONS),
                cpu=() if processors is None else tuple(place.workload for place in places.places),
                gpu=tuple((device, place.workload) for device, place, _ in used),
                reserved=tuple(place.workload for place in reserved),
                held=tuple((device, place.workload) for device, place in held),
                how=how,
            )
        gone = places.gone
        totals = {} if processors is None else processors.totals
        return Shares(
            layout=self._layout,
            energy_joules=tuple([group.workloads.get(place, 0.0) for _, _, place, group in energy]),
            unattributed_joules=tuple([group.unattributed[reason] for _, group in groups for reason in _REASONS]),
            cpu_seconds=tuple([totals.get(place, 0.0) for place in places.places] if processors is not None else []),
            gpu_seconds=tuple([meter.totals[place] for _, place, meter in used]),
            reserved=tuple(reserved.values()),
            shown=len(places.places) - gone,
            rest=places.rest,
            gone=gone,
        )

    def _reserved_of(self) -> dict[Place, float]:
        """Return the share of the processors that each workload with series has by weight, without those inside it."""
        own = own_shares(self._reserved, self._places.by_key)
        found: dict[Place, float] = {}
        for key, place in self._places.by_key.items():
            if key in own and place.gone_ns is None:
                found[place] = found.get(place, 0.0) + own[key]
        return found

    def _how(self) -> tuple[tuple[str, ...], ...]:
        """Return how the energy of each component is shared."""
        found: dict[tuple[str, ...], None] = {}
        for devices in self._by_family.values():
            for key, method in devices.methods.items():
                meter = self._meter_of(key)
                weight = "sole_user" if meter is not None and meter.is_held else meter.weight if meter else ""
                if weight:
                    found[key[1].component, weight, self._idle.source(key), method] = None
        return tuple(sorted(found))
