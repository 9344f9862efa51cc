"""A connected BMC: its power from DCMI, or from sensors of its SDR repository.

Some BMCs report that their DCMI measurement is deactivated, although it runs (OpenBMC's IPMI daemon never sets the
bit). Their watts are used once they have changed; a BMC that does not measure repeats one value, mostly 0. Until then
its SDR sensor is read, and DCMI is probed from time to time: the choice is never final.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from joulewatch_exporter.collectors.base.workers import Device
from joulewatch_exporter.collectors.ipmi import records
from joulewatch_exporter.collectors.ipmi.channel import Channel, UnknownCommandError, request
from joulewatch_exporter.collectors.ipmi.records import NotMeasuringError, PowerSensor
from joulewatch_exporter.collectors.ipmi.repository import RepositoryReader
from joulewatch_exporter.errors import SensorAbsentError, SensorDeniedError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Quantity, Reading, ReadMode, SensorInfo

Source = Literal["auto", "dcmi", "sdr"]
Value = TypeVar("Value")

_MAX_PARTS: Final = 16
"""Each part costs one more request per reading."""
_SDR_SHARE: Final = 0.5
"""Share of the deadline after which reading the SDR repository is interrupted."""
_DCMI_REQUEST: Final = bytes((0xDC, 0x01, 0x00, 0x00))
_MIN_GAP_S: Final = 15.0
_CHANGE_STEP_S: Final = 1.0
_CHANGE_STEPS: Final = 2
"""How often a connect repeats the reading of a deactivated BMC to see whether it changes; most BMCs renew it every
second."""
RECHECK_READS: Final = 12
"""Readings of an SDR sensor between two probes of DCMI."""
FAILED_READS: Final = 6
"""Readings in a row without a value of DCMI after which the SDR sensor is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcSettings:
    """How to read a BMC, and how to label it."""

    device: str
    source: str
    """Address, for `SensorInfo.source`."""
    read: Source
    sensor: str
    """Name of the SDR sensor of the whole server; ``auto``: detect it by well-known names."""
    interval_s: float
    deadline_s: float
    is_remote: bool
    """Whether it is the BMC of another machine."""
    read_mode: ReadMode
    privilege_fix: str
    """How to fix an insufficient privilege."""

    @property
    def max_gap_s(self) -> float:
        """Two lost readings do not interrupt the integral."""
        return max(3 * self.interval_s, _MIN_GAP_S)


class Dcmi:
    """DCMI's power reading of one BMC; remembers over connections whether a deactivated measurement runs."""

    def __init__(self, settings: BmcSettings) -> None:
        self._settings = settings
        self._inactive_watts: float | None = None
        self._is_believed = False
        self._is_active = True
        self._failed_reads = 0

    @property
    def has_failed(self) -> bool:
        """Whether the last `FAILED_READS` readings had no value."""
        return self._failed_reads >= FAILED_READS

    @property
    def remark(self) -> str:
        """Finding about a measurement that is reported as deactivated; empty if it is active."""
        if self._is_active:
            return ""
        if self._is_believed:
            return "its DCMI measurement is reported as deactivated, but its watts change, so they are used"
        return "its DCMI measurement is deactivated"

    def power_watts(self, channel: Channel) -> float:
        """Read the power once.

        Raises:
            NotMeasuringError: The measurement is deactivated, and the value has not changed since.
            UnknownCommandError: The BMC does not support DCMI.
            SensorError: See `request`.
        """
        try:
            power_watts = self._read(channel)
        except SensorGlitchError:
            self._failed_reads += 1
            raise
        self._failed_reads = 0
        return power_watts

    def _read(self, channel: Channel) -> float:
        settings = self._settings
        # Some BMCs deny the whole function to users, so a denial does not show whether DCMI is supported.
        fix = f"{settings.privilege_fix}, or read a sensor: `read: sdr`" if settings.privilege_fix else ""
        answer = request(channel, "DCMI power reading", 0x2C, 0x02, _DCMI_REQUEST, privilege_fix=fix)
        try:
            reading = _decoded(channel, records.dcmi_reading, answer)
        except NotMeasuringError:
            self._is_active = False
            raise
        self._is_active = reading.is_active
        if reading.is_active:
            self._inactive_watts = None
        else:
            self._is_believed |= self._inactive_watts not in (None, reading.watts)
            self._inactive_watts = reading.watts
            if not self._is_believed:
                raise NotMeasuringError(
                    f"{channel.where}: DCMI power reading: the BMC is not measuring now (deactivated); its "
                    f"{reading.watts:g} W are ignored until they change"
                )
        return reading.watts


def _sensor_power_watts(channel: Channel, settings: BmcSettings, sensor: PowerSensor) -> float:
    answer = request(
        channel,
        f"sensor {sensor.name}",
        0x04,
        0x2D,
        bytes((sensor.number,)),
        lun=sensor.lun,
        privilege_fix=settings.privilege_fix,
    )
    return _decoded(channel, sensor.power_watts, answer)


def _decoded(channel: Channel, decode: Callable[[bytes], Value], answer: bytes) -> Value:
    try:
        return decode(answer)
    except SensorGlitchError as error:
        raise type(error)(f"{channel.where}: {error}") from None


class DcmiDevice:
    """A BMC with DCMI's power reading: the node's momentary power in whole watts."""

    def __init__(self, channel: Channel, settings: BmcSettings, dcmi: Dcmi, *, has_alternative: bool = False) -> None:
        """Take over the connection.

        Args:
            channel: The connection.
            settings: How to read the BMC.
            dcmi: Its power reading.
            has_alternative: Whether SDR sensors may be tried if the BMC has no value for long.
        """
        self._channel = channel
        self.settings = settings
        self._dcmi = dcmi
        self._has_alternative = has_alternative
        self._quantity = Quantity(scope="node", component="node", device=settings.device, domain="total")
        self.infos: Sequence[SensorInfo] = (
            SensorInfo(
                quantity=self._quantity,
                method="integrated",
                source=f"{settings.source} DCMI power reading",
                model="DCMI",
                resolution="1 W",
                max_power_watts=records.MAX_POWER_WATTS,
                max_gap_s=settings.max_gap_s,
                is_remote=settings.is_remote,
                read_mode=settings.read_mode,
                period_s=settings.interval_s,
            ),
        )

    def read(self) -> Sequence[Reading]:
        """Read the power once; raises the errors of `Device.read`."""
        started_ns = time.monotonic_ns()
        try:
            power_watts = self._dcmi.power_watts(self._channel)
        except UnknownCommandError as error:
            # The firmware was replaced: reconnect to detect what it supports.
            raise SensorAbsentError(str(error)) from None
        except SensorGlitchError as error:
            if self._has_alternative and self._dcmi.has_failed:
                raise SensorAbsentError(f"{error}; trying its sensors") from None
            raise SensorGlitchError(str(error)) from None
        read_at_ns = (started_ns + time.monotonic_ns()) // 2
        return (Reading(quantity=self._quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=power_watts),)

    def close(self) -> None:
        """Log out."""
        self._channel.close()


class SdrDevice:
    """A BMC without DCMI: the sensor of the whole server, and other sensors in watts as its parts."""

    def __init__(
        self,
        channel: Channel,
        settings: BmcSettings,
        node: PowerSensor | None,
        parts: Sequence[PowerSensor],
        dcmi: Dcmi | None = None,
    ) -> None:
        """Take over the connection.

        Args:
            channel: The connection.
            settings: How to read the BMC.
            node: The sensor of the whole server, if it is known.
            parts: The other sensors.
            dcmi: The power reading, which is probed from time to time; None: it is not wanted.
        """
        self._channel = channel
        self._dcmi = dcmi
        self._reads = 0
        self.settings = settings
        self._node = node
        self._sensors: list[tuple[PowerSensor, Quantity]] = []
        infos: list[SensorInfo] = []
        domains: set[str] = set()
        for sensor in (*((node,) if node is not None else ()), *parts):
            if sensor is node:
                quantity = Quantity(scope="node", component="node", device=settings.device, domain="total")
            else:
                domain = records.domain_of(sensor.name)
                if domain in domains:
                    domain = f"{domain}_{sensor.number}"
                domains.add(domain)
                quantity = Quantity(
                    scope="part", component=records.component_of(sensor.name), device=settings.device, domain=domain
                )
            self._sensors.append((sensor, quantity))
            infos.append(
                SensorInfo(
                    quantity=quantity,
                    method="integrated",
                    source=f"{settings.source} SDR sensor {sensor.name}",
                    model="SDR",
                    resolution=sensor.resolution,
                    accuracy=sensor.accuracy,
                    accuracy_source="sensor data record of the BMC",
                    max_power_watts=records.MAX_POWER_WATTS,
                    max_gap_s=settings.max_gap_s,
                    is_remote=settings.is_remote,
                    read_mode=settings.read_mode,
                    period_s=settings.interval_s,
                )
            )
        self.infos: Sequence[SensorInfo] = tuple(infos)

    def read(self) -> Sequence[Reading]:
        """Read each sensor once; skip parts without a value, but raise an error if the node has none."""
        self._reads += 1
        if self._reads % RECHECK_READS == 0:
            self._probe_dcmi()
        try:
            return self._read()
        except SensorGlitchError:
            self._probe_dcmi()
            raise

    def _probe_dcmi(self) -> None:
        """Raise `SensorAbsentError` if the BMC has a DCMI power reading now, so that it is connected again."""
        if self._dcmi is None:
            return
        try:
            self._dcmi.power_watts(self._channel)
        except (UnknownCommandError, SensorGlitchError, SensorDeniedError):
            return
        raise SensorAbsentError(f"{self._channel.where}: DCMI has a power reading now; connecting again")

    def _read(self) -> Sequence[Reading]:
        readings = []
        last_error: SensorError | None = None
        for sensor, quantity in self._sensors:
            started_ns = time.monotonic_ns()
            try:
                power_watts = _sensor_power_watts(self._channel, self.settings, sensor)
                if power_watts == 0.0 and sensor is self._node:
                    raise SensorGlitchError(f"{self._channel.where}: sensor {sensor.name}: 0 W: the BMC has no value")
            except SensorGlitchError as error:
                if sensor is self._node:
                    raise
                last_error = error
                continue
            except UnknownCommandError as error:
                raise SensorAbsentError(str(error)) from None
            readings.append(
                Reading(
                    quantity=quantity,
                    read_at_ns=(started_ns + time.monotonic_ns()) // 2,
                    energy_joules=None,
                    power_watts=power_watts,
                )
            )
        if last_error is not None and not readings:
            raise last_error
        return readings

    def close(self) -> None:
        """Log out."""
        self._channel.close()


class Connector:
    """Connects to one BMC, as often as needed; keeps its sensor records between connections."""

    def __init__(
        self, settings: BmcSettings, open_channel: Callable[[], Channel], *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Prepare without connecting.

        Args:
            settings: How to read the BMC.
            open_channel: Logs in.
            pause: Waits for the given number of seconds.
        """
        self.settings = settings
        self._open_channel = open_channel
        self._pause = pause
        self._dcmi = Dcmi(settings)
        self._records: tuple[bytes, tuple[PowerSensor, ...]] | None = None
        self._interrupted: RepositoryReader | None = None
        self.note = ""
        """Finding about the choice of sensors, with its fix; empty: none."""

    @property
    def remark(self) -> str:
        """Finding about DCMI; empty: none."""
        return self._dcmi.remark

    def connect(self) -> Device:
        """Log in and detect how to read the node's power.

        Raises:
            SensorError: See `Channel.send`; also `SensorGlitchError` until all sensor records have been read.
        """
        channel = self._open_channel()
        settings = self.settings
        try:
            state = "unsupported" if settings.read == "sdr" else self._dcmi_state(channel)
            if state == "active" or settings.read == "dcmi":
                self.note = ""
                return DcmiDevice(channel, settings, self._dcmi, has_alternative=settings.read == "auto")
            try:
                sensors = self._power_sensors(channel)
                node, parts, self.note = choose_node(sensors, settings.sensor, channel.where)
            except SensorAbsentError:
                if state == "unsupported":
                    raise
                self.note = ""
                return DcmiDevice(channel, settings, self._dcmi)
            return SdrDevice(channel, settings, node, parts, self._dcmi if settings.read == "auto" else None)
        except BaseException:
            channel.close()
            raise

    def _dcmi_state(self, channel: Channel) -> Literal["active", "inactive", "unsupported"]:
        for step in range(_CHANGE_STEPS + 1):
            try:
                self._dcmi.power_watts(channel)
            except NotMeasuringError:
                if step < _CHANGE_STEPS:
                    self._pause(min(_CHANGE_STEP_S, self.settings.deadline_s / 4))
                continue
            except SensorGlitchError:
                # The command is supported, so it may have a value soon.
                return "inactive" if self._dcmi.has_failed else "active"
            except UnknownCommandError as error:
                if self.settings.read == "dcmi":
                    raise SensorAbsentError(f"{error}; set `read: auto` to use SDR sensors") from None
                return "unsupported"
            return "active"
        return "inactive"

    def _power_sensors(self, channel: Channel) -> Sequence[PowerSensor]:
        reader = RepositoryReader()
        try:
            reader.start(channel)
        except UnknownCommandError:
            missing = "no sensor records" if self.settings.read == "sdr" else "neither DCMI nor sensor records"
            raise SensorAbsentError(f"{channel.where}: the BMC has {missing}, so it reports no power") from None
        if self._records is not None and self._records[0] == reader.version:
            return self._records[1]
        # Removed while in use, so that a second thread (the first one hangs) starts over.
        interrupted, self._interrupted = self._interrupted, None
        if interrupted is not None and interrupted.version == reader.version:
            reader = interrupted
        try:
            is_complete = reader.read_until(channel, time.monotonic() + self.settings.deadline_s * _SDR_SHARE)
        except UnknownCommandError as error:
            raise SensorAbsentError(str(error)) from None
        except SensorError:
            self._interrupted = reader
            raise
        if not is_complete:
            # A glitch, so that the poller retries after its usual period and the reader continues.
            self._interrupted = reader
            raise SensorGlitchError(f"{channel.where}: reading the sensor records, {reader.count} so far")
        self._records = (reader.version, tuple(reader.sensors))
        return self._records[1]


def choose_node(
    sensors: Sequence[PowerSensor], name: str, where: str
) -> tuple[PowerSensor | None, Sequence[PowerSensor], str]:
    """Choose the sensor of the whole server; the others are its parts.

    Args:
        sensors: The sensors in watts.
        name: Name of the sensor; ``auto``: detect it by well-known names.
        where: The BMC, for messages.

    Returns:
        The node's sensor (None if it is not certain), its parts, and a note for the findings.

    Raises:
        SensorAbsentError: There is no sensor in watts, or none with this name.
    """
    names = ", ".join(sensor.name for sensor in sensors)
    if not sensors:
        raise SensorAbsentError(f"{where}: the BMC has neither a DCMI power reading nor a sensor in watts")
    note = ""
    if name != "auto":
        nodes = [sensor for sensor in sensors if records.plain(sensor.name) == records.plain(name)]
        if not nodes:
            raise SensorAbsentError(f"{where}: no sensor {name}; sensors in watts: {names}; correct `sensor`")
        nodes = nodes[:1]
    else:
        nodes = list(records.node_candidates(sensors))
        if len(nodes) != 1:
            matches = "several names match" if nodes else "no name matches"
            note = f"sensor of the whole server unknown ({matches}): {names}; all are published as parts; set `sensor`"
            nodes = []
    node = nodes[0] if nodes else None
    parts = [sensor for sensor in sensors if sensor is not node]
    if len(parts) > _MAX_PARTS:
        note = f"{note}{note and '; '}{len(parts)} sensors in watts, the first {_MAX_PARTS} are published as parts"
    return node, parts[:_MAX_PARTS], note
