"""One open sensor family: reads its devices and keeps the state of their quantities across failures and absences.

Only this module turns a sensor's error into the state of its device, and so into ``joulewatch_sensor_up 0``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from joulewatch_exporter.catalog import ASSUMED_REFRESH_S
from joulewatch_exporter.clock import NS_PER_S, Clock, SystemClock, wall_offset_ns
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorAsleepError,
    SensorDeniedError,
    SensorError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Collector, Quantity, Reading, Sensor
from joulewatch_exporter.sampling.quantity import QuantityState
from joulewatch_exporter.sampling.saved import SavedQuantity, SavedState
from joulewatch_exporter.sampling.scan import OK, FamilyScan, Health, Layout, Reads
from joulewatch_exporter.sampling.steps import (
    LONGEST_REFRESH_S,
    MOST_COUNTERS,
    FamilyEdge,
    Intervals,
    Steps,
    Watched,
    await_steps,
)
from joulewatch_exporter.text import label_text
from joulewatch_exporter.threads import Turn

logger = logging.getLogger(__name__)

PERIODS_TO_A_GAP: Final = 3.0
"""A gap of two missing readings is interpolated; more are unmeasured time."""

LARGEST_DOUBT_NS: Final = 20_000
"""If the two clocks are read further apart, they are read again: all timestamps of a scan depend on it."""

BURST_NS: Final = 50_000_000
BURST_FLAT_NS: Final = 20_000_000
"""A sensor that has not changed for this long is slow or idle; the scans find its refresh period."""
BURST_CHANGES: Final = 9
BURST_SENSORS: Final = 16
"""Sensors read together in one burst; reading all once must be short compared to a RAPL counter's millisecond."""
BURST_MAX_READ_NS: Final = 1_000_000
BURST_TRIES: Final = 10
"""A sensor whose read is slower than that is not read in bursts. On a busy machine some reads may be, and others may be
interrupted so that a burst does not show the refresh period of a sensor that changed."""

_FOUND_STATES: Final = {
    "denied": SensorDeniedError.reason,
    "absent": SensorAbsentError.reason,
    "broken": SensorError.reason,
}
"""Status of a finding about a device without a sensor -> state of the device."""


class _SensorEntry:
    """One sensor of the open collector, and the states that its values update."""

    __slots__ = ("bursts", "device", "device_indices", "failing", "sensor", "slow_reads", "states")

    def __init__(self, sensor: Sensor, device_indices: tuple[int, ...], states: list[QuantityState]) -> None:
        self.sensor = sensor
        self.device = label_text(sensor.device)
        self.device_indices = device_indices
        """Indices in the layout of the sensor's device and of the devices of its quantities."""
        self.states = states
        self.failing: str | None = None
        """Reason why the last read failed; None: it succeeded."""
        self.slow_reads = 0
        """Bursts whose first read was slow."""
        self.bursts = 0
        """Bursts that did not show the refresh period."""

    @property
    def burst_done(self) -> bool:
        return all(state.burst_done for state in self.states)

    def end_burst(self) -> None:
        for state in self.states:
            state.burst_done = True


def measures_cpu(collector: Collector) -> bool:
    """Return whether a family measures whole CPUs, so that no estimate is needed."""
    return any(
        info.quantity.component == "cpu" and info.quantity.scope == "device" and info.method != "estimated"
        for sensor in collector.sensors
        for info in sensor.infos
    )


class Family:
    """The open collector of one family and the state of its quantities. Used by one thread at a time.

    Each read is a call of the thread's turn (`threads.Turn`). Another thread can abandon a read that hangs; its device
    is then quarantined: scans leave it alone until the read returns.
    """

    def __init__(
        self,
        collector: Collector,
        *,
        poll_s: float = 0.0,
        clock: Clock | None = None,
        saved: SavedState | None = None,
    ) -> None:
        """Take over an open collector.

        Args:
            collector: Closed with the family.
            poll_s: Period of the reads; power readings this far apart leave no gap.
            clock: Replaces the machine's clock in tests.
            saved: Counters of an earlier process to continue.
        """
        self.name = collector.name
        self._saved = {} if saved is None else {item.key: item for item in saved.quantities}
        self._min_gap_s = PERIODS_TO_A_GAP * poll_s
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._states: dict[Quantity, QuantityState] = {}
        self._intervals: dict[Quantity, Intervals] = {}
        self._unread: dict[str, str] = {}
        """State of each device that has no sensor: it is gone, or could not be opened."""
        self._errors: dict[tuple[str, str], int] = {}
        if saved is not None:
            self._errors = {(e.device, e.reason): e.count for e in saved.errors if e.collector == self.name}
        self._errors_lock = threading.Lock()
        self._errors_shown = tuple((device, why, count) for (device, why), count in self._errors.items())
        self._scan_number = 0
        self.wants_burst = True
        """Whether there may be sensors that have not been read in a burst."""
        self._healths: tuple[Health | None, ...] = ()
        self._reads: tuple[Reads, ...] = ()
        self.vanished = False
        """Whether a device is gone or denied, so that the family is to be reopened."""
        self.manages_devices = collector.timing.manages_devices
        self.has_steps = collector.timing.has_steps
        self.layout = Layout((), ())
        self._entries: list[_SensorEntry] = []
        self._collector = collector
        self._lay_out(collector)

    # -- the collector and its sensors -------------------------------------------------------------

    @property
    def collector(self) -> Collector:
        return self._collector

    @property
    def measures_cpu(self) -> bool:
        """Whether the family measures whole CPUs, rather than estimating them."""
        return measures_cpu(self._collector)

    def replace(self, collector: Collector) -> None:
        """Switch to a newly opened collector; totals are kept, devices that it does not have are shown as down."""
        old = self._collector
        self._collector = collector
        self._lay_out(collector)
        old.close()

    def close(self) -> None:
        self._collector.close()

    def _lay_out(self, collector: Collector) -> None:
        self._sensors = collector.sensors
        self._prepare: Callable[[], None] | None = getattr(collector, "prepare", None)
        read_mode = collector.timing.read_mode
        known = self.layout.devices
        devices: dict[str, int] = {}
        entries: list[_SensorEntry] = []
        shown: dict[Quantity, QuantityState] = {}
        failing = {
            (entry.device, tuple(state.info.quantity for state in entry.states)): entry.failing
            for entry in self._entries
        }
        for sensor in self._sensors:
            states: list[QuantityState] = []
            for info in sensor.infos:
                quantity = info.quantity
                if quantity in shown:
                    logger.warning("%s: %s is offered twice; the first is used", self.name, quantity)
                    continue
                state = self._states.get(quantity)
                if state is None:
                    saved = self._saved.get((self.name, quantity))
                    state = self._states[quantity] = QuantityState(info, self._min_gap_s, saved)
                if info.read_mode is None:
                    info = replace(info, read_mode="remote" if info.is_remote else read_mode)
                state.adopt(info)
                shown[quantity] = state
                states.append(state)
            # The quantities of a sensor may belong to several devices: one service reports all servers of an enclosure.
            for device in (label_text(sensor.device), *(state.quantity.device for state in states)):
                devices.setdefault(device, len(devices))
            for state in states:
                state.device_index = devices[state.quantity.device]
            indices = dict.fromkeys([devices[label_text(sensor.device)], *(state.device_index for state in states)])
            entry = _SensorEntry(sensor, tuple(indices), states)
            entry.failing = failing.get((entry.device, tuple(state.info.quantity for state in states)))
            entries.append(entry)
        # A device that is gone stays visible as down: an alert must not disappear with its cause. A family that manages
        # its own devices drops only devices that were removed from its configuration. A device that is skipped now is
        # not lost: another family reads it.
        skipped = {finding.device for finding in collector.findings if finding.status == "skipped"}
        lost = () if self.manages_devices else [device for device in known if device not in skipped]
        unread = dict.fromkeys(lost, SensorAbsentError.reason)
        for finding in collector.findings:
            if finding.device and finding.status in _FOUND_STATES:
                unread[finding.device] = _FOUND_STATES[finding.status]
        self._unread = {device: state for device, state in unread.items() if device not in devices}
        self._entries = entries
        self._shown = list(shown.values())
        self._by_quantity = shown
        self.layout = Layout(infos=tuple(state.info for state in self._shown), devices=(*devices, *self._unread))
        self._healths = ()
        self.vanished = bool(self._unread)
        self.wants_burst = True

    # -- reading -----------------------------------------------------------------------------------

    def scan(self, turn: Turn | None = None) -> FamilyScan:
        """Read every sensor once.

        Args:
            turn: Makes the reads; None: they are not watched.
        """
        turn = turn if turn is not None else Turn()
        clock = self._clock
        started_ns = clock.monotonic_ns()
        if self.manages_devices and self._collector.sensors is not self._sensors:
            self._lay_out(self._collector)
        if self._prepare is not None:
            self._prepare()
        self._scan_number += 1
        number = self._scan_number
        count = len(self.layout.devices)
        # By device: the sum of the times of its good readings, and their number.
        sums_ns = [0] * count
        goods = [0] * count
        device_states = [OK] * (count - len(self._unread)) + [*self._unread.values()]
        suspects: list[QuantityState] = []
        vanished = bool(self._unread)
        hung = turn.hung
        call = turn.call
        for entry in self._entries:
            if hung and entry.device in hung:
                self._mark(entry, device_states, SensorTimeoutError.reason)
                continue
            try:
                readings = call(entry.device, entry.sensor.read)
            except SensorError as error:
                self._mark(entry, device_states, error.reason)
                vanished = vanished or isinstance(error, SensorAbsentError | SensorDeniedError)
                self._fail(entry, error.reason, error)
                continue
            except Exception as error:
                # A bug in the collector must end neither the daemon nor the reads of the other sensors.
                self._mark(entry, device_states, SensorError.reason)
                self._fail(entry, SensorError.reason, error)
                continue
            if entry.failing is not None:
                entry.failing = None
                if not self._other_failures(entry):
                    logger.info("%s %s: can be read again", self.name, entry.device)
            states = entry.states
            if len(readings) > len(states):
                readings = self._take_older(readings, states)
            for index, reading in enumerate(readings):
                state: QuantityState | None
                if index < len(states) and states[index].quantity is reading.quantity:
                    state = states[index]
                else:
                    state = self._by_quantity.get(reading.quantity)
                    if state is None or state not in states:
                        continue
                if state.take(reading):
                    state.scan = number
                    device_index = state.device_index
                    sums_ns[device_index] += reading.read_at_ns
                    goods[device_index] += 1
                else:
                    state.scan = -number
                    suspects.append(state)
        for state in suspects:
            device_index = state.device_index
            # The last good total may only be shown with its own timestamp, and a device has one timestamp.
            if state.last_good_ns is not None and not goods[device_index]:
                sums_ns[device_index] = state.last_good_ns
                goods[device_index] = 1
                state.scan = number
        self.vanished = vanished
        return self._publish(number, started_ns, sums_ns, goods, device_states)

    @staticmethod
    def _mark(entry: _SensorEntry, device_states: list[str], reason: str) -> None:
        for index in entry.device_indices:
            # A device may have several sensors: a failure matters more than sleep.
            if device_states[index] in (OK, SensorAsleepError.reason):
                device_states[index] = reason

    def _take_older(self, readings: Sequence[Reading], states: Sequence[QuantityState]) -> Sequence[Reading]:
        """Process all readings but the newest of each quantity, and return the newest, for the scan to show.

        A device that is read in the background returns all readings since the last scan, oldest first.
        """
        newest = {reading.quantity: reading for reading in readings}
        for reading in readings:
            if newest[reading.quantity] is not reading:
                state = self._by_quantity.get(reading.quantity)
                if state is not None and state in states:
                    state.take(reading)
        return tuple(newest.values())

    def quarantine(self, device: str) -> None:
        """Record that a read of this device hangs and was abandoned; from any thread."""
        reason = SensorTimeoutError.reason
        self.count_errors((device,), reason)
        for entry in self._entries:
            if entry.device == device:
                entry.failing = reason
        logger.warning("%s %s: %s: its read hangs; quarantined until the read returns", self.name, device, reason)

    def _publish(
        self, number: int, started_ns: int, sums_ns: list[int], goods: list[int], device_states: list[str]
    ) -> FamilyScan:
        clock = self._clock
        shown = self._shown
        # A suspect (-number) hides its values, not its health: the rejection must be visible.
        healths = tuple([s.health if s.scan == number or s.scan == -number else None for s in shown])
        if healths != self._healths:  # nearly always the same objects, so this is fast
            self._healths = healths
            self._reads = tuple([state.reads for state in shown])
        # One mapping from monotonic to wall clock for the whole scan; the two reads around time_ns() bound its error.
        before_ns = clock.monotonic_ns()
        wall_ns = clock.time_ns()
        finished_ns = clock.monotonic_ns()
        if finished_ns - before_ns <= LARGEST_DOUBT_NS:
            offset_ns = wall_ns - (before_ns + finished_ns) // 2
        else:
            offset_ns = wall_offset_ns(clock)  # this thread was interrupted
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
            states=tuple(device_states),
            errors=self._errors_shown,
            duration_s=(finished_ns - started_ns) / NS_PER_S,
            throttled=getattr(self._collector, "throttled", ()),
            offset_ns=offset_ns,
        )

    def _fail(self, entry: _SensorEntry, reason: str, error: Exception) -> None:
        device = entry.device
        is_asleep = isinstance(error, SensorAsleepError)
        if not is_asleep and not (isinstance(error, SensorError) and error.is_repeated):
            self.count_errors((device,), reason)
        if entry.failing == reason:
            return
        entry.failing = reason
        if is_asleep:
            if SensorAsleepError.reason not in self._other_failures(entry):
                logger.info("%s %s: %s: %s", self.name, device, reason, error)
        elif isinstance(error, SensorError):
            logger.warning("%s %s: %s: %s", self.name, device, reason, error)
        else:
            logger.error("%s %s: the collector failed", self.name, device, exc_info=error)

    def _other_failures(self, entry: _SensorEntry) -> set[str]:
        """Return the reasons why other sensors of the same device cannot be read.

        A device falls asleep, and can be read again, as a whole: its sensors share the lines of the log about that.
        """
        return {
            other.failing
            for other in self._entries
            if other is not entry and other.device == entry.device and other.failing is not None
        }

    def count_errors(self, devices: Iterable[str], reason: str) -> None:
        """Count one failed read for each device; safe from any thread."""
        with self._errors_lock:
            for device in devices:
                self._errors[device, reason] = self._errors.get((device, reason), 0) + 1
            self._errors_shown = tuple((device, why, count) for (device, why), count in self._errors.items())

    def save(self) -> tuple[SavedQuantity, ...]:
        """Return the state of all quantities that were read, for a later process."""
        saved = [state.save(self.name) for state in self._states.values()]
        return tuple(item for item in saved if item is not None)

    def down(self, reason: str = SensorTimeoutError.reason) -> FamilyScan:
        """Return a scan in which all devices are down, for when the family cannot be read; safe from any thread."""
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
            states=(reason,) * devices,
            errors=self._errors_shown,
            duration_s=None,
        )

    def unfinished(self, last: FamilyScan, late: Collection[str]) -> FamilyScan:
        """Return a scan without values: late devices are down, the others as in the last scan; safe from any thread.

        Args:
            last: The last scan that ended.
            late: Devices whose reads have not returned.
        """
        down = self.down()
        states = dict(zip(last.layout.devices, last.states, strict=True))  # the family may have another layout by now
        affected = set(late)
        for entry in self._entries:
            if entry.device in late:
                affected.update(state.quantity.device for state in entry.states)
        for device in affected:
            if states.get(device, OK) == OK:
                states[device] = SensorTimeoutError.reason
        return replace(
            down, states=tuple([states.get(device, SensorTimeoutError.reason) for device in down.layout.devices])
        )

    # -- edges: the steps of the counters ----------------------------------------------------------

    def edge(self, scan: FamilyScan, turn: Turn, pause: Callable[[], bool]) -> FamilyEdge:
        """Wait for the next two steps of the counters after a scan, for at most two of their refreshes.

        Args:
            scan: The scan that has just been made.
            turn: Makes the reads.
            pause: See ``await_steps``.
        """
        started_ns = self._clock.monotonic_ns()
        watched: list[Watched] = []
        reasons: dict[int, str] = {}
        places = {id(state): index for index, state in enumerate(self._shown)}
        candidates = [
            entry for entry in self._entries if len(entry.states) == 1 and entry.states[0].counter is not None
        ]
        # A part is inside a device, whose energy matters more.
        for entry in sorted(candidates, key=lambda entry: entry.states[0].quantity.scope == "part"):
            (state,) = entry.states
            index = places[id(state)]
            refresh_s = state.refresh.resolved_s or ASSUMED_REFRESH_S.get(self.name)
            if state.scan != self._scan_number:
                reasons[index] = "it could not be read"
            elif refresh_s is None:
                reasons[index] = "its refresh period is not known yet"
            elif refresh_s > LONGEST_REFRESH_S:
                reasons[index] = f"it is refreshed every {refresh_s:.2g} s only"
            elif len(watched) == MOST_COUNTERS:
                reasons[index] = "there are too many counters"
            else:
                watched.append(Watched(index, entry.sensor, state, refresh_s, started_ns))
        await_steps(watched, turn, self._clock, pause)
        missed = [item for item in watched if not item.steps]
        return FamilyEdge(
            scan=scan,
            steps={
                item.index: self._intervals.setdefault(item.state.quantity, Intervals()).narrow(
                    Steps(item.before_joules, item.steps[0], item.steps[-1])
                )
                for item in watched
                if item.steps
            },
            readings={item.index: item.reading for item in missed if item.reading is not None},
            reasons=reasons | {item.index: item.reason or "no step in time" for item in missed},
            offset_ns=wall_offset_ns(self._clock),
            waited_ns=self._clock.monotonic_ns() - started_ns,
        )

    # -- bursts: how often a sensor's value changes ------------------------------------------------

    def burst(self, turn: Turn, interrupted: Callable[[], bool]) -> None:
        """Read energy counters as fast as possible for at most 50 ms, to measure how often they change.

        At one read per second, a counter that changes every millisecond seems to change every second. Each sensor is
        read in one burst, together with at most 15 others, and only if its reads are fast; in more bursts if the
        machine interrupts them.

        Args:
            turn: Makes the reads.
            interrupted: Ends the burst when it returns true.
        """
        end_ns = self._clock.monotonic_ns() + BURST_NS
        pending = [entry for entry in self._entries if not entry.burst_done]
        self.wants_burst = bool(pending)
        while pending and not interrupted() and self._clock.monotonic_ns() < end_ns:
            group, pending = pending[:BURST_SENSORS], pending[BURST_SENSORS:]
            group = [entry for entry in group if self._suits_burst(turn, entry)]
            last_ns = self._clock.monotonic_ns()
            group_end_ns = min(end_ns, last_ns + BURST_FLAT_NS)
            longest_ns = 0
            while group:
                if interrupted():
                    return
                now_ns = self._clock.monotonic_ns()
                longest_ns, last_ns = max(longest_ns, now_ns - last_ns), now_ns
                if now_ns >= group_end_ns:
                    if group_end_ns < end_ns and any(
                        state.refresh.changes for entry in group for state in entry.states
                    ):
                        group_end_ns = end_ns
                        continue
                    # They change more slowly than the burst is long: the scans will find their refresh periods.
                    for entry in group:
                        entry.bursts += 1
                        was_short = longest_ns >= BURST_FLAT_NS // 2 or any(s.refresh.changes for s in entry.states)
                        if not was_short or entry.bursts == BURST_TRIES:
                            entry.end_burst()
                    return
                group = [entry for entry in group if self._burst_read(turn, entry)]

    def _suits_burst(self, turn: Turn, entry: _SensorEntry) -> bool:
        if entry.failing is None and any(state.counter is not None for state in entry.states):
            started_ns = self._clock.monotonic_ns()
            if self._burst_read(turn, entry):
                if self._clock.monotonic_ns() - started_ns < BURST_MAX_READ_NS:
                    return True
                entry.slow_reads += 1
                if entry.slow_reads < BURST_TRIES:
                    return False
        entry.end_burst()
        return False

    def _burst_read(self, turn: Turn, entry: _SensorEntry) -> bool:
        """Read once, for the refresh period only; return whether to continue."""
        try:
            readings = turn.call(entry.device, entry.sensor.read)
        except Exception:
            entry.end_burst()  # the next scan reports the error
            return False
        is_unfinished = False
        for reading in readings:
            state = self._by_quantity.get(reading.quantity)
            if state is not None and reading.energy_joules is not None:
                state.refresh.update(reading.read_at_ns, reading.energy_joules)
                refresh = state.refresh
                is_unfinished = is_unfinished or refresh.changes < BURST_CHANGES or not refresh.resolved
        if not is_unfinished:
            entry.end_burst()
        return is_unfinished
