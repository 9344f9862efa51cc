"""Pollers: each keeps one slow device (a BMC, a power strip) connected and reads it at a steady pace on its own thread.

The family's scan takes what the pollers have read in microseconds, so a slow device delays no scrape.
`PolledCollector` is a sensor family made of pollers. If a call hangs for long, a second thread takes over
(`threads.Worker`); a dead device costs two threads and never more.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from joulewatch_exporter.clock import NS_PER_S
from joulewatch_exporter.errors import (
    SensorAsleepError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Finding, Quantity, Reading, Sensor, SensorInfo, Timing
from joulewatch_exporter.threads import Turn, Worker

logger = logging.getLogger(__name__)

MAX_QUEUED: Final = 4096
"""Number of readings kept for the next scan: more than an hour of reads every second."""
LONGEST_BACKOFF_S: Final = 60.0
DENIED_BACKOFF_S: Final = 300.0
"""A BMC locks an account after a few wrong passwords."""
ABANDON_AFTER: Final = 6.0
"""Number of deadlines after which a call that hangs is abandoned and a new thread takes over."""
TAKE_PERIOD_S: Final = 1.0
_SLACK_S: Final = 1.0
_PASSING: Final = (SensorGlitchError, SensorAsleepError)
"""Errors that leave the connection as it is: the next read comes at its usual time."""


class Device(Protocol):
    """A connected device that a `Poller` drives; all its calls come from one thread."""

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """One for each quantity that ``read`` can return; fixed while connected."""
        ...

    def read(self) -> Sequence[Reading]:
        """Read the device once; any `SensorError` but a glitch or sleep ends the connection."""
        ...

    def close(self) -> None:
        """Log out and close the connection; must not raise `SensorError`."""
        ...


class PolledSensor:
    """A poller's device, as the family's scan sees it."""

    __slots__ = ("_poller", "device", "infos")

    def __init__(self, poller: Poller, device: str, infos: tuple[SensorInfo, ...]) -> None:
        self._poller = poller
        self.device = device
        self.infos = infos

    def read(self) -> Sequence[Reading]:
        """Return what has been read since the last call; see `Poller.take`."""
        return self._poller.take()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """The outcome of one attempt to reach the device."""

    device: Device | None
    """The connection after the attempt; None: not connected."""
    infos: tuple[SensorInfo, ...] | None = None
    """The quantities of a new connection; None: the attempt made none."""
    readings: Sequence[Reading] = ()
    error: SensorError | None = None


class Poller:
    """Keeps one slow device connected and reads it periodically, on its own thread.

    After an error it retries after 2, 4, ... periods, up to 60 s; after a refused login, 300 s. The first answer
    restores the normal period.
    """

    def __init__(
        self,
        device: str,
        connect: Callable[[], Device],
        *,
        poll_s: float,
        deadline_s: float,
        denied_backoff_s: float = DENIED_BACKOFF_S,
        max_age_s: float | None = None,
    ) -> None:
        """Prepare; ``start`` begins.

        Args:
            device: Label of the device.
            connect: Connects to the device or raises `SensorError`. Called again after each lost connection.
            poll_s: Period of the reads, on absolute deadlines.
            deadline_s: The device counts as timed out if an attempt, with or without a connect, takes longer. The
                device's own time-outs should be shorter; this one applies if they fail.
            denied_backoff_s: Pause after `SensorDeniedError`.
            max_age_s: The device counts as timed out if its newest reading is older; None: the sum of period and
                deadline. For devices with their own timestamps, which may be slower than the reads.
        """
        self.device = device
        self._connect = connect
        self._poll_s = poll_s
        self._deadline_s = deadline_s
        self._denied_backoff_s = denied_backoff_s
        self._max_age_s = poll_s + deadline_s + _SLACK_S if max_age_s is None else max_age_s
        self._worker = Worker(f"poll-{device}", self._run)
        self._condition = self._worker.condition
        self._first_ns = 0
        self._queue: deque[Reading] = deque(maxlen=MAX_QUEUED)
        self._newest: dict[Quantity, Reading] = {}
        self._newest_ns = 0
        self._error: SensorError | None = None
        self._is_error_raised = False
        """Whether `take` has raised the error before."""
        self._is_settled = False
        self._failures = 0
        self.sensor: PolledSensor | None = None
        """The sensor; None until the device has answered or failed once."""

    @property
    def is_settled(self) -> bool:
        """Whether the device has answered or failed once; a first answer that is overdue counts as failed."""
        if not self._is_settled:
            with self._condition:
                self._watch(time.monotonic_ns())
        return self._is_settled

    @property
    def error(self) -> SensorError | None:
        """Error of the last attempt to read the device; None: it has answered, or has not been read yet."""
        return self._error

    def start(self, after_s: float = 0.0) -> None:
        """Start after ``after_s``, so that many devices are not all read at the same instant."""
        self._first_ns = time.monotonic_ns() + round(after_s * NS_PER_S)
        self._worker.start()

    def stop(self) -> None:
        """Ask the thread to log out and end; does not wait."""
        self._worker.stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end, ``timeout_s`` at most."""
        self._worker.join(timeout_s)

    def settle(self, timeout_s: float) -> None:
        """Wait until the device has answered or failed once."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_settled or self._worker.is_stopping, timeout_s)

    def take(self) -> Sequence[Reading]:
        """Return all readings since the last call, oldest first; if there are none, the newest again.

        Raises:
            SensorError: The error of the last attempt to read the device.
            SensorTimeoutError: The device hangs, or its newest reading is older than ``max_age_s``.
        """
        now_ns = time.monotonic_ns()
        with self._condition:
            self._watch(now_ns)
            if self._error is not None:
                error = type(self._error)(str(self._error))
                error.is_repeated, self._is_error_raised = self._is_error_raised, True
                raise error
            readings = tuple(self._queue)
            self._queue.clear()
            return readings or tuple(self._newest.values())

    def _watch(self, now_ns: int) -> None:
        """Detect an attempt that hangs and a value that is too old; the condition must be held."""
        busy_s = self._worker.busy_ns(now_ns) / NS_PER_S
        if busy_s > self._deadline_s and not isinstance(self._error, SensorTimeoutError):
            self._fail(SensorTimeoutError(f"{self.device}: no answer within {self._deadline_s:g} s"))
        if busy_s > self._deadline_s * ABANDON_AFTER and not self._worker.hung and not self._worker.is_stopping:
            if self._worker.abandon() is not None:
                logger.warning("%s: no answer for %.0f s: another thread takes over", self.device, busy_s)
                self._worker.start()
        elif not busy_s and self._error is None and self._newest:
            age_s = (now_ns - self._newest_ns) / NS_PER_S
            if age_s > self._max_age_s:
                self._fail(SensorTimeoutError(f"{self.device}: the newest value is {age_s:.0f} s old"))

    def _fail(self, error: SensorError) -> None:
        self._error = error
        self._is_error_raised = False
        self._is_settled = True
        if self.sensor is None:
            self.sensor = PolledSensor(self, self.device, ())
        self._condition.notify_all()

    # -- the thread; _show, _accept and _fail need the condition -------------------------------------

    def _run(self, turn: Turn) -> None:
        device: Device | None = None
        worker = self._worker
        worker.due_ns = self._first_ns
        try:
            while turn.wait():
                started_ns = turn.busy_since_ns
                device, pause_s = self._step(turn, device)
                due_ns = (worker.due_ns if pause_s <= self._poll_s else started_ns) + round(pause_s * NS_PER_S)
                worker.due_ns = max(due_ns, time.monotonic_ns())
        finally:
            if not turn.is_abandoned:
                self._close(device)

    def _step(self, turn: Turn, device: Device | None) -> tuple[Device | None, float]:
        """Make one attempt; return the connection after it, and the pause up to the next attempt."""
        attempt = turn.call(self.device, lambda: self._attempt(device), discard=lambda late: self._close(late.device))
        with self._condition:
            turn.busy_since_ns = 0
            if attempt.infos is not None:
                self._show(attempt.infos)
            if attempt.error is None:
                self._accept(attempt.readings)
                return attempt.device, self._poll_s
            self._failures += 1
            self._fail(attempt.error)
            return attempt.device, self._pause_s(attempt.error)

    def _attempt(self, device: Device | None) -> _Attempt:
        """Connect if needed, and read once. This may hang, so it changes no shared state."""
        infos = None
        try:
            if device is None:
                device = self._connect()
                infos = tuple(device.infos)
            return _Attempt(device=device, infos=infos, readings=device.read())
        except SensorError as error:
            failure = error
        except Exception as error:
            failure = SensorError(f"{self.device}: {type(error).__name__}: {error}")
            if str(failure) != str(self._error):  # otherwise a device could fill the log
                logger.exception("%s: reading failed", self.device)
        if not isinstance(failure, _PASSING):
            self._close(device)
            device = None
        return _Attempt(device=device, infos=infos, error=failure)

    def _pause_s(self, error: SensorError) -> float:
        if isinstance(error, _PASSING):
            return self._poll_s
        if isinstance(error, SensorDeniedError):
            return max(self._denied_backoff_s, self._poll_s)
        return max(self._poll_s, min(LONGEST_BACKOFF_S, self._poll_s * 2.0 ** min(self._failures, 10)))

    def _show(self, infos: tuple[SensorInfo, ...]) -> None:
        if self.sensor is None or self.sensor.infos != infos:
            self.sensor = PolledSensor(self, self.device, infos)
            self._queue.clear()  # these are readings of its former quantities
            self._newest = {}

    def _accept(self, readings: Sequence[Reading]) -> None:
        self._queue.extend(readings)
        self._newest = {reading.quantity: reading for reading in readings}
        self._newest_ns = max((reading.read_at_ns for reading in readings), default=time.monotonic_ns())
        self._error = None
        self._failures = 0
        self._is_settled = True
        self._condition.notify_all()

    def _close(self, device: Device | None) -> None:
        try:
            if device is not None:
                device.close()
        except Exception as error:
            logger.debug("%s: closing failed: %s", self.device, error)


class PolledCollector:
    """A sensor family whose devices are read in the background, each by its own poller.

    A custom family needs little more than a name, options and an ``open``::

        class PduCollector(PolledCollector):
            name = "pdu"
            Options = PduOptions

            @classmethod
            def open(cls, host, options):
                return cls({target.name: (target, lambda: Poller(...)) for target in options.targets})

    ``wanted`` maps a device's label to a key and a factory of its poller: see ``follow``.
    """

    def __init__(self, wanted: Mapping[str, tuple[Hashable, Callable[[], Poller]]]) -> None:
        self._pollers: dict[str, tuple[Hashable, Poller]] = {}
        self._sensors: tuple[PolledSensor, ...] = ()
        self._is_closed = False
        self.follow(wanted)

    def follow(self, wanted: Mapping[str, tuple[Hashable, Callable[[], Poller]]]) -> None:
        """Start new pollers, and stop those that are missing in ``wanted`` or whose key has changed."""
        pollers = dict(self._pollers)  # the old one may be in use by a scrape
        for device, (key, poller) in self._pollers.items():
            if device not in wanted or wanted[device][0] != key:
                poller.stop()
                del pollers[device]
        new = [device for device in wanted if device not in pollers]
        for index, device in enumerate(new):
            key, make = wanted[device]
            poller = make()
            pollers[device] = (key, poller)
            # Spread over the first second, so that hundreds of logins do not coincide.
            poller.start(after_s=min(1.0, 0.02 * len(new)) * index / len(new))
        self._pollers = pollers

    def refresh(self) -> None:
        """Update the list of devices; called before each scan. By default the list does not change."""

    @property
    def sensors(self) -> Sequence[Sensor]:
        """The devices that have answered or failed once."""
        self.refresh()
        # A device that is connected but has not been read would be up without values.
        pollers = [poller for _, poller in self._pollers.values() if poller.is_settled]
        sensors = tuple([poller.sensor for poller in pollers if poller.sensor is not None])
        if len(sensors) != len(self._sensors) or any(a is not b for a, b in zip(sensors, self._sensors, strict=True)):
            self._sensors = sensors
        return self._sensors

    @property
    def timing(self) -> Timing:
        """Return that the pollers' readings are taken every second and in each scrape."""
        return Timing(poll_s=TAKE_PERIOD_S, read_on_scrape=True, manages_devices=True, reads_in_background=True)

    @property
    def findings(self) -> Sequence[Finding]:
        """Return no findings, because ``check`` lists the sensors themselves."""
        return ()

    @property
    def outdated(self) -> bool:
        """Return False: the family manages its own devices."""
        return False

    def settle(self, timeout_s: float) -> None:
        """Wait until each device has answered or failed once."""
        end_s = time.monotonic() + timeout_s
        for _, poller in self._pollers.values():
            poller.settle(max(end_s - time.monotonic(), 0.0))

    def close(self) -> None:
        """Stop all pollers, and wait a second at most for them to log out."""
        if self._is_closed:
            return
        self._is_closed = True
        pollers = [poller for _, poller in self._pollers.values()]
        for poller in pollers:
            poller.stop()
        end_s = time.monotonic() + 1.0
        for poller in pollers:
            poller.join(max(end_s - time.monotonic(), 0.0))
