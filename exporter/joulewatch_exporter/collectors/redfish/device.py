"""A Redfish service as a device of a poller: find once what to read, then read it in each poll."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

from joulewatch_exporter.collectors.redfish.client import Client, Memory
from joulewatch_exporter.collectors.redfish.discover import discover
from joulewatch_exporter.collectors.redfish.plan import BusyError, Json, MissingError, Plan, Series, total_watts
from joulewatch_exporter.collectors.redfish.supplies import ABOVE_NODE
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
"""Polls without a value after which the plan is made again, because a firmware update may have moved the value."""
STALE_S: Final = 60.0
STALE_PERIODS: Final = 3.0
"""Samples older than this, by the sensor's timestamps, are rejected."""
KEPT_OFFSETS: Final = 64

Resources = Mapping[str, tuple[Json, int]]
"""Path -> the resource and the time of its read."""


class SampleClock:
    """Converts a sensor's timestamps to this machine's monotonic clock.

    The offset between the clocks and the delay of an answer are unknown. The smallest difference of the last polls
    contains the least delay and is used as the offset. When the sensor's clock is set back, the estimate starts over.
    """

    def __init__(self) -> None:
        self._offsets: deque[int] = deque(maxlen=KEPT_OFFSETS)
        self._last_ns = 0

    def place(self, sampled_ns: int, read_at_ns: int) -> int:
        """Return the monotonic time of a sample.

        Args:
            sampled_ns: The sensor's timestamp in nanoseconds, with any epoch.
            read_at_ns: Time of the read; the result is never later.
        """
        if sampled_ns < self._last_ns:
            self._offsets.clear()
        self._last_ns = sampled_ns
        self._offsets.append(read_at_ns - sampled_ns)
        return min(read_at_ns, sampled_ns + min(self._offsets))


class _Timestamps:
    """The timestamps of one series: a repeated value keeps its time, and is rejected when it is too old."""

    def __init__(self, series: Series, interval_s: float) -> None:
        self._series = series
        # An old position of a counter is still correct for its time.
        is_counter = series.energy is not None
        limit_s = max(STALE_S, STALE_PERIODS * max(interval_s, series.sensing_s or 0.0))
        self._limit_s = math.inf if is_counter else limit_s
        self._clock = SampleClock()
        self._last: tuple[Any, Reading] | None = None
        self._is_wrong = False

    def apply(self, reading: Reading, timestamp: Any) -> Reading:
        """Return the reading with the time of its sample.

        Raises:
            SensorGlitchError: The sample is too old.
        """
        sampled_ns = None if self._is_wrong else _unix_ns(timestamp)
        if sampled_ns is None:
            return reading
        placed_ns = self._clock.place(sampled_ns, reading.read_at_ns)
        if self._last is not None and self._last[0] == timestamp:
            last = self._last[1]
            if (last.energy_joules, last.power_watts) != (reading.energy_joules, reading.power_watts):
                # Another value with the same timestamp: the timestamps are useless.
                self._is_wrong = True
                return reading
            age_s = (reading.read_at_ns - last.read_at_ns) / NS_PER_S
            if age_s > self._limit_s:
                raise SensorGlitchError(
                    f"{self._series.info.source}: the service repeats a sample that is {age_s:.0f} s old by its "
                    "ReadingTime; if this timestamp is wrong, set reading_time: false"
                )
            return last
        if self._last is not None:
            placed_ns = min(max(placed_ns, self._last[1].read_at_ns + 1), reading.read_at_ns)
        placed = Reading(
            quantity=reading.quantity,
            read_at_ns=placed_ns,
            energy_joules=reading.energy_joules,
            power_watts=reading.power_watts,
        )
        self._last = (timestamp, placed)
        return placed


def _unix_ns(timestamp: Any) -> int | None:
    if not isinstance(timestamp, str):
        return None
    try:
        sampled_at = datetime.fromisoformat(timestamp.strip())
    except ValueError:
        return None
    if sampled_at.tzinfo is None:
        sampled_at = sampled_at.replace(tzinfo=UTC)
    try:
        return round(sampled_at.timestamp() * 1e6) * 1000
    except (OverflowError, ValueError):
        return None


class Service:
    """The state of one service that outlives its connections."""

    def __init__(self, target: RedfishTarget, *, interval_s: float, deadline_s: float) -> None:
        """Prepare without sending a request.

        Args:
            target: The service.
            interval_s: Time between two polls.
            deadline_s: Deadline of a poll, or of a login together with making the plan.
        """
        self.target = target
        self.interval_s = interval_s
        self.deadline_s = deadline_s
        self.plan: Plan | None = None
        self.timestamps: dict[int, _Timestamps] = {}
        self._previous: Plan | None = None
        self._memory = Memory()
        self._fetched: dict[str, tuple[Json, int]] = {}
        self._fetched_values = 0
        self._notes: tuple[str, ...] = ()
        self._error: SensorError | None = None
        self._misses = 0

    @property
    def findings(self) -> Sequence[Finding]:
        """Findings about this service."""
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
                    cure=getattr(error, "fix", ""),
                )
            )
        plan = self.plan
        if plan is not None:
            findings += plan.findings
        if target.insecure:
            problem = "not encrypted" if target.base.startswith("http:") else "TLS is not verified"
            text = f"{target.name}: {problem} (insecure): attackers can read the password and change values"
            findings.append(Finding(status="found", collector="redfish", subject=target.base, text=text))
        findings += [
            Finding(status="found", collector="redfish", subject=target.base, text=f"{target.name}: {note}")
            for note in self._notes
        ]
        return findings

    def connect(self) -> RedfishDevice:
        """Log in, and make the plan if there is none.

        Raises:
            SensorError: Raised by `Client.get` and `discover`; the session is ended before.
        """
        client: Client | None = None
        try:
            client = Client(self.target, self._memory)
            client.begin(self.deadline_s, values=self._fetched_values)
            device = RedfishDevice(self, client, *self._find(client))
        except BaseException as error:
            if client is not None:
                client.close()
            # Errors with a growing pause, so that there is not a login every few seconds.
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
        """Return the plan, and those of its resources that were read to make it."""
        if self.plan is not None:
            return self.plan, {}
        started_ns = time.monotonic_ns()
        fetched = self._fetched

        def get(path: str) -> Json:
            if path not in fetched:
                fetched[path] = client.get(path)
            return fetched[path][0]

        try:
            plan = discover(get, self.target, interval_s=self.interval_s, previous=self._previous)
        except SensorTimeoutError:
            self._fetched_values = client.values
            raise  # the next attempt continues with the resources fetched so far
        except SensorError:
            self._fetched, self._fetched_values = {}, 0
            raise
        self._fetched, self._fetched_values = {}, 0
        self.timestamps = {
            index: _Timestamps(series, self.interval_s)
            for index, series in enumerate(plan.series)
            if series.sampled is not None
        }
        self.plan = self._previous = plan
        uris = (*plan.required_uris, *plan.part_uris)
        return plan, {uri: fetched[uri] for uri in uris if uri in fetched and fetched[uri][1] >= started_ns}

    def succeeded(self) -> None:
        """Note that a poll returned values."""
        self._error = None
        self._misses = 0

    def failed(self, error: SensorError) -> SensorError:
        """Note that a poll failed; return the error to raise."""
        if isinstance(error, SensorGlitchError):
            self._misses += 1
        if isinstance(error, MissingError) or self._misses >= MISSES:
            # Make a new plan with a new connection.
            self.plan = None
            self._misses = 0
            error = SensorAbsentError(f"{error}; probing the service again")
        self._error = error
        return error


def _status(error: SensorError) -> Literal["absent", "denied", "broken"]:
    if isinstance(error, SensorDeniedError):
        return "denied"
    return "absent" if isinstance(error, SensorAbsentError) else "broken"


class RedfishDevice:
    """A service with an open session; used by one thread."""

    def __init__(self, service: Service, client: Client, plan: Plan, fetched: Resources) -> None:
        self._service = service
        self._client = client
        self._plan = plan
        self._fetched = fetched
        self._is_fresh = True

    @property
    def infos(self) -> Sequence[SensorInfo]:
        """Infos of all nodes of the service and of their parts."""
        return self._plan.infos

    def read(self) -> Sequence[Reading]:
        """Read the service once.

        Returns:
            All values; parts and nodes without a value are skipped.

        Raises:
            SensorGlitchError: No node has a value (null, 0, an old sample, or an invalid answer).
            SensorError: Raised by `Client.get`.
        """
        if not self._is_fresh:
            # The first read shares the deadline of the login.
            self._client.begin(self._service.deadline_s)
        self._is_fresh = False
        try:
            readings = self._read()
        except SensorError as error:
            converted = self._service.failed(error)
            if converted is error:
                raise
            raise converted from None
        self._service.succeeded()
        return readings

    def _read(self) -> list[Reading]:
        last_error: SensorGlitchError | None = None
        fetched = dict(self._fetched)
        self._fetched = {}
        plan = self._plan
        for uri in plan.required_uris:
            try:
                fetched[uri] = fetched.get(uri) or self._client.get(uri)
            except SensorGlitchError as error:
                last_error = error
        readings: dict[int, Reading] = {}
        required = [index for index, series in enumerate(plan.series) if series.is_node or not plan.has_node]
        for index in required:
            try:
                if (reading := self._reading(index, plan.series[index], fetched)) is not None:
                    readings[index] = reading
            except SensorGlitchError as error:
                last_error = error
        if not readings:
            source = next((series.info.source for series in plan.series), self._service.target.base)
            raise last_error or SensorGlitchError(f"{source}: no value (null or 0)")
        self._fetch_parts(fetched)
        self._check_better(fetched)
        for index, series in enumerate(plan.series):
            if index not in required:
                try:
                    if (reading := self._reading(index, series, fetched)) is not None:
                        readings[index] = reading
                except SensorGlitchError:
                    continue
        return self._without_ratings(readings)

    def _check_better(self, fetched: Resources) -> None:
        """Raise `SensorAbsentError` if a better source has a value now, so that the service is probed again."""
        resources = {uri: resource for uri, (resource, _) in fetched.items()}
        for fields in self._plan.better:
            if fields and total_watts(fields, resources) is not None:
                self._service.plan = None
                source = f"{self._service.target.base}{fields[0].pointer}"
                raise SensorAbsentError(f"{source}: has a value now; probing the service again")

    def _without_ratings(self, readings: Mapping[int, Reading]) -> list[Reading]:
        """Return the readings without those of power supplies that are above the power of their node."""
        series = self._plan.series
        nodes = {
            reading.quantity.device: reading.power_watts for index, reading in readings.items() if series[index].is_node
        }
        kept = []
        for index, reading in readings.items():
            node_watts = nodes.get(reading.quantity.device)
            is_rating = (reading.power_watts or 0.0) > ABOVE_NODE * (math.inf if node_watts is None else node_watts)
            if not (series[index].is_supply and is_rating):
                kept.append(reading)
        return kept

    def _fetch_parts(self, fetched: dict[str, tuple[Json, int]]) -> None:
        """Get the resources that only parts need; errors do not affect the node's values."""
        for uri in self._plan.part_uris:
            if uri in fetched:
                continue
            try:
                fetched[uri] = self._client.get(uri)
            except (SensorGlitchError, MissingError):
                continue
            except SensorError:
                return

    def _reading(self, index: int, series: Series, fetched: Resources) -> Reading | None:
        energy, power = series.energy, series.power
        joules = energy.joules(fetched[energy.uri][0]) if energy is not None and energy.uri in fetched else None
        watts = total_watts(power, {uri: resource for uri, (resource, _) in fetched.items()}) if power else None
        if joules is None and watts is None:
            return None
        uris = [energy.uri] if energy is not None and joules is not None else [field.uri for field in power]
        times_ns = [fetched[uri][1] for uri in uris]
        # The addends of a sum may be in several resources, which are read one after the other.
        read_at_ns = (min(times_ns) + max(times_ns)) // 2
        reading = Reading(quantity=series.info.quantity, read_at_ns=read_at_ns, energy_joules=joules, power_watts=watts)
        timestamps = self._service.timestamps.get(index)
        if timestamps is None or series.sampled is None or series.sampled.uri != uris[0]:
            return reading
        return timestamps.apply(reading, series.sampled.value(fetched[uris[0]][0]))

    def close(self) -> None:
        """Log out."""
        self._client.close()
