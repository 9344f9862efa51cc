"""One Redfish service as the poller drives it: what to read is found once, and read again at each poll."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from joulewatch_exporter.collectors.redfish.client import Client, Memory
from joulewatch_exporter.collectors.redfish.discover import discover
from joulewatch_exporter.collectors.redfish.plan import BusyError, Json, MissingError, Plan, Series
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Finding, Reading, SensorInfo

NS_PER_S: Final = 1_000_000_000
MISSES: Final = 6
"""Polls without a value after which what to read is looked for anew: a firmware update may have moved it."""
STALE_S: Final = 60.0
STALE_PERIODS: Final = 3.0
"""A sample that is older, by the sensor's own time stamps, is no reading any more."""
KEPT_OFFSETS: Final = 64

Resources = Mapping[str, tuple[Json, int]]
"""By path: the resource, and when it was read."""


class SampleClock:
    """Puts a sensor's own time stamps on this machine's monotonic clock.

    The two clocks differ by an unknown amount, and an answer is late by an unknown time; the smallest difference of the
    last polls is the one with the least delay in it. A clock that is set back starts anew.
    """

    def __init__(self) -> None:
        self._offsets: deque[int] = deque(maxlen=KEPT_OFFSETS)
        self._last_ns = 0

    def place(self, sampled_ns: int, read_at_ns: int) -> int:
        """Return the monotonic time of a sample.

        Args:
            sampled_ns: The sensor's time stamp, in nanoseconds of whatever epoch.
            read_at_ns: When it was read; the result is never later.
        """
        if sampled_ns < self._last_ns:
            self._offsets.clear()
        self._last_ns = sampled_ns
        self._offsets.append(read_at_ns - sampled_ns)
        return min(read_at_ns, sampled_ns + min(self._offsets))


class _Stamps:
    """The time stamps of one series: an old value is given again with its own time, and ends as no reading."""

    def __init__(self, series: Series, interval_s: float) -> None:
        self._series = series
        # A counter's position is right for its time, however long ago that was.
        is_counter = series.energy is not None
        limit_s = max(STALE_S, STALE_PERIODS * max(interval_s, series.sensing_s or 0.0))
        self._limit_s = math.inf if is_counter else limit_s
        self._clock = SampleClock()
        self._last: tuple[Any, Reading] | None = None
        self._is_wrong = False

    def apply(self, reading: Reading, stamp: Any) -> Reading:
        """Return the reading with the time of its sample.

        Raises:
            SensorGlitchError: The sample is too old.
        """
        sampled_ns = None if self._is_wrong else _unix_ns(stamp)
        if sampled_ns is None:
            return reading
        placed_ns = self._clock.place(sampled_ns, reading.read_at_ns)
        if self._last is not None and self._last[0] == stamp:
            last = self._last[1]
            if (last.energy_joules, last.power_watts) != (reading.energy_joules, reading.power_watts):
                # Another value with the same stamp: the stamp says nothing.
                self._is_wrong = True
                return reading
            age_s = (reading.read_at_ns - last.read_at_ns) / NS_PER_S
            if age_s > self._limit_s:
                raise SensorGlitchError(
                    f"{self._series.info.source}: the service repeats a sample that is {age_s:.0f} s old by its "
                    "ReadingTime; if that stamp is wrong, set reading_time: false"
                )
            return last
        if self._last is not None:
            placed_ns = min(max(placed_ns, self._last[1].read_at_ns + 1), reading.read_at_ns)
        stamped = Reading(
            quantity=reading.quantity,
            read_at_ns=placed_ns,
            energy_joules=reading.energy_joules,
            power_watts=reading.power_watts,
        )
        self._last = (stamp, stamped)
        return stamped


def _unix_ns(stamp: Any) -> int | None:
    if not isinstance(stamp, str):
        return None
    try:
        time_of_day = datetime.fromisoformat(stamp.strip())
    except ValueError:
        return None
    if time_of_day.tzinfo is None:
        time_of_day = time_of_day.replace(tzinfo=UTC)
    try:
        return round(time_of_day.timestamp() * 1e6) * 1000
    except (OverflowError, ValueError):
        return None


class Service:
    """What is remembered of one service from one connection to the next."""

    def __init__(self, target: RedfishTarget, *, interval_s: float, deadline_s: float) -> None:
        """Prepare; nothing is sent yet.

        Args:
            target: The service.
            interval_s: From one poll to the next.
            deadline_s: For one round of requests: a login with what follows, or a poll.
        """
        self.target = target
        self.interval_s = interval_s
        self.deadline_s = deadline_s
        self.plan: Plan | None = None
        self.stamps: dict[int, _Stamps] = {}
        self._previous: Plan | None = None
        self._memory = Memory()
        self._seen: dict[str, tuple[Json, int]] = {}
        self._notes: tuple[str, ...] = ()
        self._error: SensorError | None = None
        self._misses = 0

    @property
    def findings(self) -> Sequence[Finding]:
        """What `check` shows of this service."""
        target = self.target
        findings: list[Finding] = []
        error = self._error
        if error is not None:
            subject, _, text = str(error).partition(": ")
            status = _status(error)
            findings.append(
                Finding(
                    status=status,
                    collector="redfish",
                    subject=subject,
                    text=f"{target.name}: {text}",
                    cure=getattr(error, "cure", ""),
                )
            )
        plan = self.plan
        if plan is not None:
            findings += plan.findings
        if target.insecure:
            way = "not encrypted" if target.base.startswith("http:") else "TLS is not verified"
            text = f"{target.name}: {way} (insecure): anybody in between can read the password and change values"
            findings.append(Finding(status="found", collector="redfish", subject=target.base, text=text))
        findings += [
            Finding(status="found", collector="redfish", subject=target.base, text=f"{target.name}: {note}")
            for note in self._notes
        ]
        return findings

    def connect(self) -> RedfishDevice:
        """Log in, and find what to read if that is not known.

        Raises:
            SensorError: As `Client.get` and `discover` raise them; the session is ended then.
        """
        client: Client | None = None
        try:
            client = Client(self.target, self._memory)
            client.begin(self.deadline_s)
            device = RedfishDevice(self, client, *self._find(client))
        except BaseException as error:
            if client is not None:
                client.close()
            # A pause that grows, and not another login every few seconds.
            if isinstance(error, BusyError):
                error = SensorTimeoutError(str(error))
            elif isinstance(error, SensorGlitchError):
                error = SensorAbsentError(str(error))
            if isinstance(error, SensorError):
                self._error = error
                raise error from None
            raise
        self._notes = tuple(client.notes)
        return device

    def _find(self, client: Client) -> tuple[Plan, Resources]:
        """What to read, and what of it has been read just now to find that out."""
        if self.plan is not None:
            return self.plan, {}
        started_ns = time.monotonic_ns()
        seen = self._seen

        def get(path: str) -> Json:
            if path not in seen:
                seen[path] = client.get(path)
            return seen[path][0]

        try:
            plan = discover(get, self.target, interval_s=self.interval_s, previous=self._previous)
        except SensorTimeoutError:
            raise  # the next try goes on where this one was stopped
        except SensorError:
            self._seen = {}
            raise
        self._seen = {}
        self.stamps = {
            index: _Stamps(series, self.interval_s)
            for index, series in enumerate(plan.series)
            if series.sampled is not None
        }
        self.plan = self._previous = plan
        uris = (*plan.node_uris, *plan.part_uris)
        return plan, {uri: seen[uri] for uri in uris if uri in seen and seen[uri][1] >= started_ns}

    def succeeded(self) -> None:
        """A poll has given values."""
        self._error = None
        self._misses = 0

    def failed(self, error: SensorError) -> SensorError:
        """Take note of a poll that has failed; the error to raise for it."""
        if isinstance(error, SensorGlitchError):
            self._misses += 1
        if isinstance(error, MissingError) or self._misses >= MISSES:
            # Look for it anew, by a new connection.
            self.plan = None
            self._misses = 0
            error = SensorAbsentError(f"{error}; looking for it anew")
        self._error = error
        return error


def _status(error: SensorError) -> Literal["absent", "denied", "broken"]:
    if isinstance(error, SensorDeniedError):
        return "denied"
    return "absent" if isinstance(error, SensorAbsentError) else "broken"


class RedfishDevice:
    """A service that is logged in to. All calls come from one thread."""

    def __init__(self, service: Service, client: Client, plan: Plan, read: Resources) -> None:
        self._service = service
        self._client = client
        self._plan = plan
        self._read_already = read
        self._is_fresh = True

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """Of the node, or of all nodes of the service, and of their parts."""
        return self._plan.infos

    def read(self) -> Sequence[Reading]:
        """Read the service once.

        Returns:
            What it has: a part without a value is left out, and so is a node, if there are others.

        Raises:
            SensorGlitchError: No node has a value: null, 0, an old sample, or an answer that is none.
            SensorError: As `Client.get` raises them.
        """
        if not self._is_fresh:
            # The first read shares the time of the login.
            self._client.begin(self._service.deadline_s)
        self._is_fresh = False
        try:
            readings = self._read()
        except SensorError as error:
            failure = self._service.failed(error)
            if failure is error:
                raise
            raise failure from None
        self._service.succeeded()
        return readings

    def _read(self) -> list[Reading]:
        failure: SensorGlitchError | None = None
        read = dict(self._read_already)
        self._read_already = {}
        for uri in self._plan.node_uris:
            try:
                read[uri] = read.get(uri) or self._client.get(uri)
            except SensorGlitchError as error:
                failure = error
        readings: list[Reading] = []
        has_node = False
        for index, series in enumerate(self._plan.series):
            if series.is_node:
                try:
                    reading = self._reading(index, series, read)
                except SensorGlitchError as error:
                    failure = error
                    continue
                if reading is not None:
                    has_node = True
                    readings.append(reading)
        if not has_node:
            source = next((series.info.source for series in self._plan.series), self._service.target.base)
            raise failure or SensorGlitchError(f"{source}: no value (null or 0)")
        self._read_parts(read)
        for index, series in enumerate(self._plan.series):
            if not series.is_node:
                try:
                    reading = self._reading(index, series, read)
                except SensorGlitchError:
                    continue
                if reading is not None:
                    readings.append(reading)
        return readings

    def _read_parts(self, read: dict[str, tuple[Json, int]]) -> None:
        """Read what only parts need; the node's values are there and do not depend on it."""
        for uri in self._plan.part_uris:
            if uri in read:
                continue
            try:
                read[uri] = self._client.get(uri)
            except (SensorGlitchError, MissingError):
                continue
            except SensorError:
                return

    def _reading(self, index: int, series: Series, read: Resources) -> Reading | None:
        energy, power = series.energy, series.power
        joules = energy.joules(read[energy.uri][0]) if energy is not None and energy.uri in read else None
        watts = power.watts(read[power.uri][0]) if power is not None and power.uri in read else None
        place = energy if joules is not None else power
        if place is None or (joules is None and watts is None):
            return None
        resource, read_at_ns = read[place.uri]
        reading = Reading(quantity=series.info.quantity, read_at_ns=read_at_ns, energy_joules=joules, power_watts=watts)
        stamps = self._service.stamps.get(index)
        if stamps is None or series.sampled is None or series.sampled.uri != place.uri:
            return reading
        return stamps.apply(reading, series.sampled.value(resource))

    def close(self) -> None:
        """Log out."""
        self._client.close()
