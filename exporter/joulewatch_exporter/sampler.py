"""One thread per sensor family on absolute monotonic deadlines; publishes whole scans.

Why threads of our own, where Prometheus' conventions ask for synchronous scrapes: counters wrap and
power-only sensors must be integrated whether anybody scrapes or not. A scrape still gets fresh
values: it asks each family's thread for a read that starts after the request, so concurrent scrapers share
one read, and a sensor that hangs costs its own family and no other.

This is also the one place where a sensor's error becomes ``joulewatch_sensor_up 0``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from joulewatch_exporter.counter import NS_PER_S, EnergyCounter, PowerFromEnergy, PowerIntegrator, RefreshEstimator
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Collector, Finding, Host, Quantity, Reading, Sensor, SensorInfo

logger = logging.getLogger(__name__)

ESTIMATE_FAMILY: Final = "estimate"
"""Stands in where no CPU sensor is measured, and never beside one unless it was asked for."""

TIMEOUT_REASON: Final = "timeout"

BURST_NS: Final = 50_000_000
BURST_FLAT_NS: Final = 20_000_000
"""Sensors that have not changed in so long are slow, or idle: their rhythm is left to the scans."""
BURST_CHANGES: Final = 9
BURST_SENSORS: Final = 16
"""Read together in one burst: their round must be short against the millisecond of a RAPL counter."""
BURST_MAX_READ_NS: Final = 1_000_000
"""A family whose reads are slower than this is not read in bursts."""

_STOP_TIMEOUT_S: Final = 0.3

Reads = Literal["energy", "power"]


class Clock(Protocol):
    """The two clocks of this machine, or a test's."""

    def monotonic_ns(self) -> int: ...

    def time_ns(self) -> int: ...


class SystemClock:
    """The machine's own clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)


@dataclass(frozen=True, slots=True)
class Health:
    """What changes seldom about one quantity."""

    refresh_s: float | None
    wraps: int
    resets: int
    rejected: int
    unmeasured_s: float


@dataclass(frozen=True, slots=True)
class Layout:
    """What a family can show; a new object whenever sensors come or go."""

    infos: tuple[SensorInfo, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FamilyScan:
    """One family as a scrape shows it. Tuples run beside ``layout.infos`` or ``layout.devices``."""

    collector: str
    layout: Layout
    energies_joules: tuple[float | None, ...]
    """By info. None: not in this scan."""
    powers_watts: tuple[float | None, ...]
    """By info. None: not in this scan, or not known yet."""
    healths: tuple[Health | None, ...]
    """By info; None: the quantity could not be read. The same tuple as before if nothing in it has changed."""
    reads: tuple[Reads, ...]
    """By info: what the sensor itself gives. The same tuple as before if nothing in it has changed."""
    read_at_s: tuple[float | None, ...]
    """By device: Unix time of the read; None: the device could not be read."""
    up: tuple[bool, ...]
    """By device."""
    errors: tuple[tuple[str, str, int], ...]
    """Device, reason, number of reads that failed so."""
    duration_s: float | None
    """Length of the scan; None: there was none, or it hangs."""


class _QuantityState:
    """Everything remembered of one quantity, over vanishing and returning too."""

    __slots__ = (
        "_events",
        "_has_rhythm",
        "_power",
        "_refresh_s",
        "_rejected_power",
        "counter",
        "energy_joules",
        "health",
        "info",
        "integrator",
        "power_watts",
        "quantity",
        "reads",
        "refresh",
        "rhythm_sought",
        "scan",
    )

    def __init__(self, info: SensorInfo) -> None:
        self.info = info
        self.quantity = info.quantity
        self.reads: Reads = "energy"
        # A model's energy grows with every look at the clock: that rhythm is nothing of a sensor's.
        self._has_rhythm = info.method != "estimated"
        self.counter: EnergyCounter | None = None
        self.integrator: PowerIntegrator | None = None
        self.refresh = RefreshEstimator(is_counter=True)
        self.health = Health(None, 0, 0, 0, 0.0)
        self.energy_joules: float | None = None
        self.power_watts: float | None = None
        self.scan = 0
        """Number of the last scan in which this quantity was read; negative: and its value is a suspect."""
        self.rhythm_sought = not self._has_rhythm
        """Whether it has been read in a burst, or is not fit for one."""
        self._power = PowerFromEnergy()
        self._events = 0
        self._refresh_s: float | None = None
        self._rejected_power = 0

    def take(self, reading: Reading) -> bool:
        """Take one reading; False if it is a suspect: then the energy is still that of the last good one."""
        if reading.energy_joules is not None:
            good = self._take_energy(reading.read_at_ns, reading.energy_joules, reading.power_watts)
        elif reading.power_watts is not None:
            good = self._take_power(reading.read_at_ns, reading.power_watts)
        else:
            return False
        return good

    def _take_energy(self, read_at_ns: int, position_joules: float, power_watts: float | None) -> bool:
        counter = self.counter
        if counter is None:
            counter = self.counter = EnergyCounter(
                wrap_joules=self.info.wrap_joules, max_power_watts=self.info.max_power_watts
            )
            self.reads = "energy"
        unmeasured_s = counter.unmeasured_s
        if not counter.update(read_at_ns, position_joules):
            self.power_watts = None
            self._renew_health(counter)
            return False
        if self._has_rhythm:
            self.refresh.update(read_at_ns, position_joules)
        total_joules = self.energy_joules = counter.total_joules
        if counter.unmeasured_s != unmeasured_s:
            self._power.clear()
        if power_watts is None:
            power_watts = self._power.update(read_at_ns, total_joules, self.refresh.resolved_s)
        elif not 0.0 <= power_watts <= self.info.max_power_watts:
            self._rejected_power += 1
            power_watts = None
            self._renew_health(counter)
        self.power_watts = power_watts
        if counter.events != self._events or self.refresh.refresh_s != self._refresh_s:
            self._renew_health(counter)
        return True

    def _take_power(self, read_at_ns: int, power_watts: float) -> bool:
        if self.counter is not None:
            # The counter of a sensor that has one is missing this time: its power is still a reading.
            self.energy_joules = None
            self.power_watts = power_watts if 0.0 <= power_watts <= self.info.max_power_watts else None
            return self.power_watts is not None
        integrator = self.integrator
        if integrator is None:
            integrator = self.integrator = PowerIntegrator(
                max_power_watts=self.info.max_power_watts, max_gap_s=self.info.max_gap_s
            )
            self.reads = "power"
            self.refresh = RefreshEstimator(is_counter=False)
        if not integrator.update(read_at_ns, power_watts):
            self.power_watts = None
            self._renew_health(integrator)
            return False
        if self._has_rhythm:
            self.refresh.update(read_at_ns, power_watts)
        self.energy_joules = integrator.total_joules
        self.power_watts = power_watts
        if integrator.events != self._events or self.refresh.refresh_s != self._refresh_s:
            self._renew_health(integrator)
        return True

    @property
    def last_good_ns(self) -> int | None:
        source = self.counter or self.integrator
        return None if source is None else source.read_at_ns

    def _renew_health(self, source: EnergyCounter | PowerIntegrator) -> None:
        self._events = source.events
        self._refresh_s = self.refresh.refresh_s
        self.health = Health(
            refresh_s=self._refresh_s,
            wraps=source.wraps if isinstance(source, EnergyCounter) else 0,
            resets=source.resets if isinstance(source, EnergyCounter) else 0,
            rejected=source.rejected + self._rejected_power,
            unmeasured_s=source.unmeasured_s,
        )


class _SensorEntry:
    """One sensor of the open collector, and where its values go."""

    __slots__ = ("device_index", "failing", "sensor", "states")

    def __init__(self, sensor: Sensor, device_index: int, states: list[_QuantityState]) -> None:
        self.sensor = sensor
        self.device_index = device_index
        self.states = states
        self.failing: str | None = None

    @property
    def rhythm_sought(self) -> bool:
        return all(state.rhythm_sought for state in self.states)

    def end_burst(self) -> None:
        for state in self.states:
            state.rhythm_sought = True


def measures_cpu(collector: Collector) -> bool:
    """Whether a family measures (not estimates) whole CPUs: then no estimate is needed."""
    return any(
        info.quantity.component == "cpu" and info.quantity.scope == "device" and info.method != "estimated"
        for sensor in collector.sensors
        for info in sensor.infos
    )


class Family:
    """The open collector of one family and the memory of its quantities. Used by one thread at a time."""

    def __init__(self, collector: Collector, *, emulated: bool = False, clock: Clock | None = None) -> None:
        self.name = collector.name
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._emulated = emulated
        self._states: dict[Quantity, _QuantityState] = {}
        self._lost_devices: list[str] = []
        self._errors: dict[tuple[str, str], int] = {}
        self._errors_lock = threading.Lock()
        self._errors_shown: tuple[tuple[str, str, int], ...] = ()
        self._scan_number = 0
        self.wants_burst = True
        """Whether there may be sensors whose rhythm has not been looked for."""
        self._healths: tuple[Health | None, ...] = ()
        self._reads: tuple[Reads, ...] = ()
        self.vanished = False
        """Whether a device is gone or denied, so that looking for it again makes sense."""
        self._collector = collector
        self._lay_out(collector)

    # -- the collector and its sensors -------------------------------------------------------------

    @property
    def collector(self) -> Collector:
        return self._collector

    @property
    def measures_cpu(self) -> bool:
        """Whether it measures (not estimates) whole CPUs."""
        return measures_cpu(self._collector)

    def replace(self, collector: Collector) -> None:
        """Go on with a newly opened collector; totals are kept, devices it no longer has are shown as down."""
        old = self._collector
        self._collector = collector
        self._lay_out(collector)
        old.close()

    def close(self) -> None:
        self._collector.close()

    def _lay_out(self, collector: Collector) -> None:
        known = getattr(self, "layout", Layout((), ())).devices
        devices: dict[str, int] = {}
        entries: list[_SensorEntry] = []
        shown: dict[Quantity, _QuantityState] = {}
        failing = {
            (entry.sensor.device, tuple(state.info.quantity for state in entry.states)): entry.failing
            for entry in getattr(self, "_entries", ())
        }
        for sensor in collector.sensors:
            states: list[_QuantityState] = []
            for info in sensor.infos:
                quantity = info.quantity
                if quantity in shown:
                    logger.warning("%s: %s is offered twice; the first is used", self.name, quantity)
                    continue
                state = self._states.get(quantity)
                if state is None:
                    state = self._states[quantity] = _QuantityState(info)
                state.info = replace(info, method="emulated") if self._emulated else info
                shown[quantity] = state
                state.quantity = quantity  # the very object that the sensor's readings will carry
                states.append(state)
            entry = _SensorEntry(sensor, devices.setdefault(sensor.device, len(devices)), states)
            entry.failing = failing.get((sensor.device, tuple(state.info.quantity for state in states)))
            entries.append(entry)
        # A device that is gone stays in sight as down: an alert must not disappear with its cause.
        self._lost_devices = [device for device in known if device not in devices]
        self._entries = entries
        self._shown = list(shown.values())
        self._by_quantity = shown
        self.layout = Layout(infos=tuple(state.info for state in self._shown), devices=(*devices, *self._lost_devices))
        self._healths = ()
        self.vanished = bool(self._lost_devices)
        self.wants_burst = True

    # -- reading -----------------------------------------------------------------------------------

    def scan(self) -> FamilyScan:
        """Read every sensor once."""
        clock = self._clock
        started_ns = clock.monotonic_ns()
        self._scan_number += 1
        number = self._scan_number
        count = len(self.layout.devices)
        # By device: the sum of the times of its good readings, and how many they are.
        sums_ns = [0] * count
        goods = [0] * count
        up = [True] * (count - len(self._lost_devices)) + [False] * len(self._lost_devices)
        suspects: list[tuple[int, _QuantityState]] = []
        vanished = bool(self._lost_devices)
        for entry in self._entries:
            device_index = entry.device_index
            try:
                readings = entry.sensor.read()
            except SensorError as error:
                up[device_index] = False
                vanished = vanished or not isinstance(error, SensorGlitchError)
                self._fail(entry, error.reason, error)
                continue
            except Exception as error:
                # A fault of the collector must not end the daemon, nor the reading of the other sensors.
                up[device_index] = False
                self._fail(entry, SensorError.reason, error)
                continue
            if entry.failing is not None:
                logger.info("%s %s: read again", self.name, entry.sensor.device)
                entry.failing = None
            states = entry.states
            for index, reading in enumerate(readings):
                state: _QuantityState | None
                if index < len(states) and states[index].quantity is reading.quantity:
                    state = states[index]
                else:
                    state = self._by_quantity.get(reading.quantity)
                    if state is None or state not in states:
                        continue
                if state.take(reading):
                    state.scan = number
                    sums_ns[device_index] += reading.read_at_ns
                    goods[device_index] += 1
                else:
                    state.scan = -number
                    suspects.append((device_index, state))
        for device_index, state in suspects:
            # The last good total may be shown only with its own timestamp, and a device has one timestamp.
            if state.last_good_ns is not None and not goods[device_index]:
                sums_ns[device_index] = state.last_good_ns
                goods[device_index] = 1
                state.scan = number
        self.vanished = vanished
        return self._publish(number, started_ns, sums_ns, goods, up)

    def _publish(
        self, number: int, started_ns: int, sums_ns: list[int], goods: list[int], up: list[bool]
    ) -> FamilyScan:
        clock = self._clock
        shown = self._shown
        # A suspect (-number) hides its values, not its health: the rejection must be seen.
        healths = tuple([s.health if s.scan == number or s.scan == -number else None for s in shown])
        if healths != self._healths:  # nearly always the very same objects, so this is quick
            self._healths = healths
            self._reads = tuple([state.reads for state in shown])
        # One mapping from the monotonic to the wall clock for the whole scan, tight around the wall clock.
        before_ns = clock.monotonic_ns()
        wall_ns = clock.time_ns()
        finished_ns = clock.monotonic_ns()
        offset_ns = wall_ns - (before_ns + finished_ns) // 2
        return FamilyScan(
            collector=self.name,
            layout=self.layout,
            energies_joules=tuple([s.energy_joules if s.scan == number else None for s in shown]),
            powers_watts=tuple([s.power_watts if s.scan == number else None for s in shown]),
            healths=self._healths,
            reads=self._reads,
            read_at_s=tuple(
                [
                    (sum_ns // good + offset_ns) / NS_PER_S if good else None
                    for sum_ns, good in zip(sums_ns, goods, strict=True)
                ]
            ),
            up=tuple(up),
            errors=self._errors_shown,
            duration_s=(finished_ns - started_ns) / NS_PER_S,
        )

    def _fail(self, entry: _SensorEntry, reason: str, error: Exception) -> None:
        device = entry.sensor.device
        self.count_errors((device,), reason)
        if entry.failing == reason:
            return
        entry.failing = reason
        if isinstance(error, SensorError):
            logger.warning("%s %s: %s: %s", self.name, device, reason, error)
        else:
            logger.error("%s %s: the collector failed", self.name, device, exc_info=error)

    def count_errors(self, devices: Iterable[str], reason: str) -> None:
        """Count one failed read for each device; from any thread."""
        with self._errors_lock:
            for device in devices:
                self._errors[device, reason] = self._errors.get((device, reason), 0) + 1
            self._errors_shown = tuple((device, why, count) for (device, why), count in self._errors.items())

    def down(self) -> FamilyScan:
        """The family as it looks while its thread hangs in a read; from any thread."""
        layout = self.layout
        devices = len(layout.devices)
        nothing = (None,) * len(layout.infos)
        return FamilyScan(
            collector=self.name,
            layout=layout,
            energies_joules=nothing,
            powers_watts=nothing,
            healths=nothing,
            reads=tuple([state.reads for state in self._shown]),
            read_at_s=(None,) * devices,
            up=(False,) * devices,
            errors=self._errors_shown,
            duration_s=None,
        )

    # -- the sensor's rhythm -----------------------------------------------------------------------

    def burst(self, interrupted: Callable[[], bool]) -> None:
        """Read energy sensors as fast as they go for at most 50 ms, to see how often their counters change.

        At one read a second, a counter that changes every millisecond looks as if it changed every second.
        Each sensor takes part once, 16 at a time, and only those that are quick to read.
        """
        end_ns = self._clock.monotonic_ns() + BURST_NS
        pending = [entry for entry in self._entries if not entry.rhythm_sought]
        self.wants_burst = bool(pending)
        while pending and not interrupted() and self._clock.monotonic_ns() < end_ns:
            group, pending = pending[:BURST_SENSORS], pending[BURST_SENSORS:]
            group = [entry for entry in group if self._suits_burst(entry)]
            group_end_ns = min(end_ns, self._clock.monotonic_ns() + BURST_FLAT_NS)
            while group:
                if interrupted():
                    return
                if self._clock.monotonic_ns() >= group_end_ns:
                    if group_end_ns < end_ns and any(
                        state.refresh.changes for entry in group for state in entry.states
                    ):
                        group_end_ns = end_ns
                        continue
                    # Seen to be slower than the burst is long: the scans will tell its rhythm.
                    for entry in group:
                        entry.end_burst()
                    return
                group = [entry for entry in group if self._burst_read(entry)]

    def _suits_burst(self, entry: _SensorEntry) -> bool:
        if entry.failing is None and any(state.counter is not None for state in entry.states):
            started_ns = self._clock.monotonic_ns()
            if self._burst_read(entry) and self._clock.monotonic_ns() - started_ns < BURST_MAX_READ_NS:
                return True
        entry.end_burst()
        return False

    def _burst_read(self, entry: _SensorEntry) -> bool:
        """Read once for the rhythm only; whether to go on."""
        try:
            readings = entry.sensor.read()
        except Exception:
            entry.end_burst()  # the next scan says what is wrong with it
            return False
        going_on = False
        for reading in readings:
            state = self._by_quantity.get(reading.quantity)
            if state is not None and reading.energy_joules is not None:
                state.refresh.update(reading.read_at_ns, reading.energy_joules)
                going_on = going_on or state.refresh.changes < BURST_CHANGES
        if not going_on:
            entry.end_burst()
        return going_on


class FamilyThread:
    """Reads one family: at its deadlines, and whenever a scrape asks.

    A request is served by a read that starts after it was made, and by one read however many ask.
    """

    def __init__(self, family: Family, *, poll_s: float, read_on_scrape: bool) -> None:
        self.family = family
        self.poll_s = poll_s
        self.read_on_scrape = read_on_scrape
        self._condition = threading.Condition()
        self._wanted = 0
        self._started = 0
        self._started_ns = 0
        self._finished = 0
        self._timed_out = 0
        self._stopping = False
        self._replacement: Collector | None = None
        self._latest: FamilyScan | None = None
        self._thread = threading.Thread(target=self._run, name=f"read-{family.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it closes its collector itself. A hung one is left behind."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def hand_over(self, collector: Collector) -> None:
        """Let the thread go on with a newly opened collector before its next read."""
        with self._condition:
            superseded, self._replacement = self._replacement, collector
        if superseded is not None:
            superseded.close()

    def request(self) -> int:
        """Ask for a read; the ticket to wait for. A family that scrapes do not read gives its last scan."""
        with self._condition:
            if not self.read_on_scrape:
                return 1
            ticket = self._started + 1
            if ticket > self._wanted:
                self._wanted = ticket
                self._condition.notify_all()
            return ticket

    def wait(self, ticket: int, deadline_ns: int, timeout_s: float) -> FamilyScan:
        """The scan of a ticket, or the family as down when it is not there by the deadline.

        Args:
            ticket: From ``request``.
            deadline_ns: Monotonic time at which to give up.
            timeout_s: What a read may take: one in flight for longer is not waited for again.
        """
        with self._condition:
            while self._finished < ticket and not self._stopping:
                now_ns = time.monotonic_ns()
                left_ns = deadline_ns - now_ns
                if self._in_flight_ns(now_ns) > timeout_s * NS_PER_S or left_ns <= 0:
                    break
                self._condition.wait(left_ns / NS_PER_S)
            hung = self._finished < ticket
            if not self.read_on_scrape and self._in_flight_ns(time.monotonic_ns()) > 2 * self.poll_s * NS_PER_S:
                hung = True
            latest = self._latest
            if not hung and latest is not None:
                return latest
            if self._timed_out != self._started:
                self._timed_out = self._started
                devices = self.family.layout.devices
            else:
                devices = ()
        if devices and not self._stopping:
            self.family.count_errors(devices, TIMEOUT_REASON)
            logger.warning("%s: %s: no answer within %g s", self.family.name, TIMEOUT_REASON, timeout_s)
        return self.family.down()

    def _in_flight_ns(self, now_ns: int) -> int:
        return now_ns - self._started_ns if self._started > self._finished else 0

    def _run(self) -> None:
        poll_ns = round(self.poll_s * NS_PER_S)
        deadline_ns = time.monotonic_ns()
        broken = False
        try:
            while True:
                with self._condition:
                    while not self._stopping and self._wanted <= self._finished:
                        left_ns = deadline_ns - time.monotonic_ns()
                        if left_ns <= 0:
                            break
                        self._condition.wait(left_ns / NS_PER_S)
                    if self._stopping:
                        return
                    self._started += 1
                    self._started_ns = time.monotonic_ns()
                    asked = self._wanted >= self._started
                    replacement, self._replacement = self._replacement, None
                try:
                    if replacement is not None:
                        self.family.replace(replacement)
                    scan = self.family.scan()
                    broken = False
                except Exception:
                    if not broken:
                        logger.exception("%s: reading the family failed", self.family.name)
                    broken = True
                    scan = self.family.down()
                with self._condition:
                    if self._timed_out == self._started:
                        logger.info("%s: answers again", self.family.name)
                    self._latest = scan
                    self._finished = self._started
                    self._condition.notify_all()
                    started_ns = self._started_ns
                if asked:
                    deadline_ns = started_ns + poll_ns  # a scrape stands for the next background read
                else:
                    deadline_ns += poll_ns
                    if deadline_ns < time.monotonic_ns():
                        deadline_ns = started_ns + poll_ns  # late by more than a period: do not catch up in a rush
                if self.read_on_scrape and self.family.wants_burst:
                    self.family.burst(lambda: self._stopping or self._wanted > self._finished)
        finally:
            self.family.close()
            if self._replacement is not None:
                self._replacement.close()


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """What the configuration says of one family."""

    enabled: bool | Literal["auto"] = "auto"
    """auto: use it if there; True: an error if it is not; False: never."""
    poll_s: float | None = None
    """Overrides the family's own period."""
    options: Any = None
    """The family's ``Options``; None: its defaults."""


class Sampler:
    """All families of this host: opened, read by their threads, looked for again when gone."""

    def __init__(
        self,
        families: Sequence[type[Collector]],
        host: Host,
        settings: Mapping[str, FamilySettings] | None = None,
        *,
        rediscover_s: float = 30.0,
    ) -> None:
        self._host = host
        self._emulated = host.emulated
        self._settings = dict(settings or {})
        self._families = tuple(families)
        self._rediscover_s = rediscover_s
        self._threads: dict[str, FamilyThread] = {}
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._said: set[tuple[str, str]] = set()
        self._retry: set[str] = set()
        self._rediscovery = threading.Thread(target=self._rediscover_forever, name="rediscover", daemon=True)

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that are open now."""
        with self._lock:
            return tuple(self._threads)

    def start(self) -> None:
        """Open what is there and begin to read.

        Raises:
            ConfigError: A family with ``enabled: true`` is not there.
        """
        try:
            for family in self._wanted_families():
                self._open(family, first=True)
            self._settle_estimate(first=True)
        except ConfigError:
            self.stop()
            raise
        if not self._threads:
            logger.warning("no sensor found; 'joulewatch-exporter check' says why")
        if self._rediscover_s > 0:
            self._rediscovery.start()

    def stop(self) -> None:
        """End all threads; waits for a hung one 0.3 s at most."""
        self._stop_event.set()
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.stop()
        end_ns = time.monotonic_ns() + round(_STOP_TIMEOUT_S * NS_PER_S)
        for thread in threads:
            thread.join(max((end_ns - time.monotonic_ns()) / NS_PER_S, 0.0))
        if self._rediscovery.is_alive():
            self._rediscovery.join(max((end_ns - time.monotonic_ns()) / NS_PER_S, 0.0))

    def fresh(self, timeout_s: float, only: Collection[str] | None = None) -> tuple[FamilyScan, ...]:
        """Read every family now, all at the same time.

        Args:
            timeout_s: A family that has not answered by then is shown as down.
            only: Names of the families to read; None: all.

        Returns:
            One scan per open family, in the order of the families.
        """
        with self._lock:
            threads = [thread for name, thread in self._threads.items() if only is None or name in only]
        deadline_ns = time.monotonic_ns() + round(timeout_s * NS_PER_S)
        tickets = [(thread, thread.request()) for thread in threads]
        return tuple(thread.wait(ticket, deadline_ns, timeout_s) for thread, ticket in tickets)

    # -- opening -----------------------------------------------------------------------------------

    def _setting(self, name: str) -> FamilySettings:
        return self._settings.get(name, FamilySettings())

    def _wanted_families(self) -> list[type[Collector]]:
        """All but the switched off, and but the estimate unless it was asked for."""
        return [
            family
            for family in self._families
            if (enabled := self._setting(family.name).enabled) is not False
            and not (family.name == ESTIMATE_FAMILY and enabled == "auto")
        ]

    def _open(self, family: type[Collector], *, first: bool) -> bool:
        """Open a family, new or again; whether it is there."""
        setting = self._setting(family.name)
        options = setting.options if setting.options is not None else family.Options()
        try:
            collector = family.open(self._host, options)
        except (SensorAbsentError, SensorDeniedError) as error:
            if first and setting.enabled is True:
                raise ConfigError(
                    f"collector {family.name} is switched on but {error.reason}: {error}. "
                    f"Cure that, or set collectors.{family.name}.enabled to auto"
                ) from error
            level = logging.WARNING if isinstance(error, SensorDeniedError) else logging.INFO
            self._say(level, family.name, str(error))
            self._retry.add(family.name)
            return False
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            if (family.name, "broken") not in self._said:
                self._said.add((family.name, "broken"))
                logger.exception("%s: opening failed", family.name)
            self._retry.add(family.name)
            return False
        self._note(family.name, collector.findings)
        with self._lock:
            thread = self._threads.get(family.name)
        if thread is not None:
            thread.hand_over(collector)
            return True
        timing = collector.timing
        poll_s = timing.poll_s if setting.poll_s is None else setting.poll_s
        if poll_s > timing.poll_s:
            self._say(
                logging.WARNING,
                family.name,
                f"poll_seconds {poll_s:g} is longer than the {timing.poll_s:g} s its counters ask for: "
                "should one go round unseen, the time is counted as unmeasured",
            )
        thread = FamilyThread(
            Family(collector, emulated=self._emulated),
            poll_s=poll_s,
            read_on_scrape=timing.read_on_scrape,
        )
        logger.info("%s: %d sensors, read every %g s", family.name, len(collector.sensors), poll_s)
        with self._lock:
            threads = {**self._threads, family.name: thread}
            self._threads = {f.name: threads[f.name] for f in self._families if f.name in threads}
        thread.start()
        return True

    def _note(self, name: str, findings: Sequence[Finding]) -> None:
        self._retry.discard(name)
        for finding in findings:
            if finding.status in ("denied", "broken"):
                # A cure can be applied while we run.
                self._retry.add(name)
                cure = f"; cure: {finding.cure}" if finding.cure else ""
                self._say(logging.WARNING, name, f"{finding.subject}: {finding.status}: {finding.text}{cure}")

    def _say(self, level: int, name: str, text: str) -> None:
        if (name, text) not in self._said:
            self._said.add((name, text))
            logger.log(level, "%s: %s", name, text)

    def _settle_estimate(self, *, first: bool = False) -> None:
        """With ``auto``: estimate the CPU while nothing measures it, and stop as soon as something does."""
        family = next((family for family in self._families if family.name == ESTIMATE_FAMILY), None)
        if family is None or self._setting(ESTIMATE_FAMILY).enabled != "auto":
            return
        with self._lock:
            measured = any(
                thread.family.measures_cpu for name, thread in self._threads.items() if name != ESTIMATE_FAMILY
            )
            running = self._threads.get(ESTIMATE_FAMILY)
            if measured and running is not None:
                self._threads = {name: thread for name, thread in self._threads.items() if thread is not running}
        if not measured and running is None:
            if self._open(family, first=first):
                logger.warning("no CPU sensor is measured: CPU energy is estimated and labelled so")
        elif measured and running is not None:
            logger.info("a CPU sensor is measured now: the estimate ends")
            running.stop()

    # -- looking again -----------------------------------------------------------------------------

    def rediscover(self) -> None:
        """Look again for families and devices that were not there, or are gone."""
        for family in self._wanted_families():
            with self._lock:
                thread = self._threads.get(family.name)
            if thread is None or thread.family.vanished or family.name in self._retry:
                self._open(family, first=False)
        self._settle_estimate()

    def _rediscover_forever(self) -> None:
        while not self._stop_event.wait(self._rediscover_s):
            try:
                self.rediscover()
            except Exception:
                logger.exception("looking for sensors again failed")
