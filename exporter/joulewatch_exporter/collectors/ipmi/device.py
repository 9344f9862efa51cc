"""A connected BMC: its power from DCMI, or from sensors of its SDR repository."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.collectors.base.workers import Device
from joulewatch_exporter.collectors.ipmi import records
from joulewatch_exporter.collectors.ipmi.channel import Channel, UnknownCommandError, request
from joulewatch_exporter.collectors.ipmi.records import PowerSensor
from joulewatch_exporter.collectors.ipmi.repository import RepositoryReader
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Quantity, Reading, ReadMode, SensorInfo

Source = Literal["auto", "dcmi", "sdr"]

_MAX_PARTS: Final = 16
"""Each part costs one more request per reading."""
_SDR_SHARE: Final = 0.5
"""Share of the deadline after which reading the SDR repository is interrupted."""
_DCMI_REQUEST: Final = bytes((0xDC, 0x01, 0x00, 0x00))
_MIN_GAP_S: Final = 15.0


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


def _dcmi_power_watts(channel: Channel, settings: BmcSettings) -> float:
    # Some BMCs deny the whole function to users, so a denial does not show whether DCMI is supported.
    fix = f"{settings.privilege_fix}, or read a sensor: `read: sdr`" if settings.privilege_fix else ""
    answer = request(channel, "DCMI power reading", 0x2C, 0x02, _DCMI_REQUEST, privilege_fix=fix)
    return _decoded(channel, records.dcmi_power_watts, answer)


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


def _decoded(channel: Channel, decode: Callable[[bytes], float], answer: bytes) -> float:
    try:
        return decode(answer)
    except SensorGlitchError as error:
        raise SensorGlitchError(f"{channel.where}: {error}") from None


class DcmiDevice:
    """A BMC with DCMI's power reading: the node's momentary power in whole watts."""

    def __init__(self, channel: Channel, settings: BmcSettings) -> None:
        self._channel = channel
        self.settings = settings
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
            power_watts = _dcmi_power_watts(self._channel, self.settings)
        except UnknownCommandError as error:
            # The firmware was replaced: reconnect to detect what it supports.
            raise SensorAbsentError(str(error)) from None
        read_at_ns = (started_ns + time.monotonic_ns()) // 2
        return (Reading(quantity=self._quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=power_watts),)

    def close(self) -> None:
        """Log out."""
        self._channel.close()


class SdrDevice:
    """A BMC without DCMI: the sensor of the whole server, and other sensors in watts as its parts."""

    def __init__(
        self, channel: Channel, settings: BmcSettings, node: PowerSensor | None, parts: Sequence[PowerSensor]
    ) -> None:
        self._channel = channel
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

    def __init__(self, settings: BmcSettings, open_channel: Callable[[], Channel]) -> None:
        self.settings = settings
        self._open_channel = open_channel
        self._records: tuple[bytes, tuple[PowerSensor, ...]] | None = None
        self._interrupted: RepositoryReader | None = None
        self.note = ""
        """Finding about the choice of sensors, with its fix; empty: none."""

    def connect(self) -> Device:
        """Log in and detect how to read the node's power.

        Raises:
            SensorError: See `Channel.send`; also `SensorGlitchError` until all sensor records have been read.
        """
        channel = self._open_channel()
        try:
            if self.settings.read != "sdr" and self._has_dcmi(channel):
                self.note = ""
                return DcmiDevice(channel, self.settings)
            sensors = self._power_sensors(channel)
            node, parts, self.note = choose_node(sensors, self.settings.sensor, channel.where)
            return SdrDevice(channel, self.settings, node, parts)
        except BaseException:
            channel.close()
            raise

    def _has_dcmi(self, channel: Channel) -> bool:
        try:
            _dcmi_power_watts(channel, self.settings)
        except SensorGlitchError:
            return True  # the command is supported
        except UnknownCommandError as error:
            if self.settings.read == "dcmi":
                raise SensorAbsentError(f"{error}; set `read: auto` to use SDR sensors") from None
            return False
        return True

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
