"""One BMC, connected: its power by DCMI, or by sensors of its SDR repository."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from joulewatch_exporter.collectors.base.workers import Device
from joulewatch_exporter.collectors.ipmi import records
from joulewatch_exporter.collectors.ipmi.channel import Channel, UnknownCommandError, ask
from joulewatch_exporter.collectors.ipmi.records import PowerSensor
from joulewatch_exporter.collectors.ipmi.repository import Walk
from joulewatch_exporter.errors import SensorAbsentError, SensorError, SensorGlitchError
from joulewatch_exporter.model import Quantity, Reading, SensorInfo

Source = Literal["auto", "dcmi", "sdr"]

_MAX_PARTS: Final = 16
"""Each part is one exchange more for every reading."""
_WALK_SHARE: Final = 0.5
"""Of the deadline that one step of the first walk over the SDR repository takes."""
_DCMI_REQUEST: Final = bytes((0xDC, 0x01, 0x00, 0x00))
_MIN_GAP_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be read of a BMC, and how it is shown."""

    device: str
    source: str
    """Address, for `SensorInfo.source`."""
    read: Source
    sensor: str
    """Name of the SDR sensor that is the node; ``auto``: by well-known names."""
    interval_s: float
    deadline_s: float
    is_remote: bool
    """Whether it is another machine's BMC."""
    privilege_cure: str
    """What to do where the user's privilege does not suffice."""

    @property
    def max_gap_s(self) -> float:
        """Two readings may be lost."""
        return max(3 * self.interval_s, _MIN_GAP_S)


def _dcmi_power_watts(channel: Channel, wish: Wish) -> float:
    # Some BMCs refuse the whole function to users: then it is not even known whether they have it.
    cure = f"{wish.privilege_cure}, or read a sensor: `read: sdr`" if wish.privilege_cure else ""
    answer = ask(channel, "DCMI power reading", 0x2C, 0x02, _DCMI_REQUEST, denied=cure)
    return _placed(channel, records.dcmi_power_watts, answer)


def _sensor_power_watts(channel: Channel, wish: Wish, sensor: PowerSensor) -> float:
    what = f"sensor {sensor.name}"
    answer = ask(channel, what, 0x04, 0x2D, bytes((sensor.number,)), lun=sensor.lun, denied=wish.privilege_cure)
    return _placed(channel, sensor.power_watts, answer)


def _placed(channel: Channel, decode: Callable[[bytes], float], answer: bytes) -> float:
    try:
        return decode(answer)
    except SensorGlitchError as error:
        raise SensorGlitchError(f"{channel.where}: {error}") from None


class DcmiDevice:
    """A BMC that knows DCMI's power reading: the node's momentary power in whole watts."""

    def __init__(self, channel: Channel, wish: Wish) -> None:
        self._channel = channel
        self.wish = wish
        self._quantity = Quantity(scope="node", component="node", device=wish.device, domain="total")
        self.infos: Sequence[SensorInfo] = (
            SensorInfo(
                quantity=self._quantity,
                method="integrated",
                source=f"{wish.source} DCMI power reading",
                model="DCMI",
                resolution="1 W",
                max_power_watts=records.MAX_POWER_WATTS,
                max_gap_s=wish.max_gap_s,
                is_remote=wish.is_remote,
            ),
        )

    def read(self) -> Sequence[Reading]:
        """Read it once; errors as those of `Device.read`."""
        started_ns = time.monotonic_ns()
        try:
            power_watts = _dcmi_power_watts(self._channel, self.wish)
        except UnknownCommandError as error:
            # Another firmware: look anew for what it has.
            raise SensorAbsentError(str(error)) from None
        read_at_ns = (started_ns + time.monotonic_ns()) // 2
        return (Reading(quantity=self._quantity, read_at_ns=read_at_ns, energy_joules=None, power_watts=power_watts),)

    def close(self) -> None:
        """Log out."""
        self._channel.close()


class SdrDevice:
    """A BMC without DCMI: the sensor that is the node, and others in watts as its parts."""

    def __init__(self, channel: Channel, wish: Wish, node: PowerSensor | None, parts: Sequence[PowerSensor]) -> None:
        self._channel = channel
        self.wish = wish
        self._node = node
        self._sensors: list[tuple[PowerSensor, Quantity]] = []
        infos: list[SensorInfo] = []
        domains: set[str] = set()
        for sensor in (*((node,) if node is not None else ()), *parts):
            if sensor is node:
                quantity = Quantity(scope="node", component="node", device=wish.device, domain="total")
            else:
                domain = records.domain_of(sensor.name)
                if domain in domains:
                    domain = f"{domain}_{sensor.number}"
                domains.add(domain)
                quantity = Quantity(
                    scope="part", component=records.component_of(sensor.name), device=wish.device, domain=domain
                )
            self._sensors.append((sensor, quantity))
            infos.append(
                SensorInfo(
                    quantity=quantity,
                    method="integrated",
                    source=f"{wish.source} SDR sensor {sensor.name}",
                    model="SDR",
                    resolution=sensor.resolution,
                    accuracy=sensor.accuracy,
                    max_power_watts=records.MAX_POWER_WATTS,
                    max_gap_s=wish.max_gap_s,
                    is_remote=wish.is_remote,
                )
            )
        self.infos: Sequence[SensorInfo] = tuple(infos)

    def read(self) -> Sequence[Reading]:
        """Read each sensor once; a part without a value is left out, a node without one is an error."""
        readings = []
        failure: SensorError | None = None
        for sensor, quantity in self._sensors:
            started_ns = time.monotonic_ns()
            try:
                power_watts = _sensor_power_watts(self._channel, self.wish, sensor)
                if power_watts == 0.0 and sensor is self._node:
                    raise SensorGlitchError(
                        f"{self._channel.where}: sensor {sensor.name}: 0 W means that the BMC has no value"
                    )
            except SensorGlitchError as error:
                if sensor is self._node:
                    raise
                failure = error
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
        if failure is not None and not readings:
            raise failure
        return readings

    def close(self) -> None:
        """Log out."""
        self._channel.close()


class Connector:
    """Makes a connected `Device` of one BMC, again and again; remembers its sensor records in between."""

    def __init__(self, wish: Wish, open_channel: Callable[[], Channel]) -> None:
        self.wish = wish
        self._open_channel = open_channel
        self._known: tuple[bytes, tuple[PowerSensor, ...]] | None = None
        self._begun: Walk | None = None
        self.remark = ""
        """What the doctor should tell of the choice that was made, with its cure; empty: nothing."""

    def connect(self) -> Device:
        """Log in, and find out how the node's power is read.

        Raises:
            SensorError: As from `Channel.send`; SensorGlitchError too while the first walk over the records goes on.
        """
        channel = self._open_channel()
        try:
            if self.wish.read != "sdr" and self._has_dcmi(channel):
                self.remark = ""
                return DcmiDevice(channel, self.wish)
            sensors = self._power_sensors(channel)
            node, parts, self.remark = choose(sensors, self.wish.sensor, channel.where)
            return SdrDevice(channel, self.wish, node, parts)
        except BaseException:
            channel.close()
            raise

    def _has_dcmi(self, channel: Channel) -> bool:
        try:
            _dcmi_power_watts(channel, self.wish)
        except SensorGlitchError:
            return True  # it knows the command
        except UnknownCommandError as error:
            if self.wish.read == "dcmi":
                raise SensorAbsentError(f"{error}; set `read: auto` to use its SDR sensors") from None
            return False
        return True

    def _power_sensors(self, channel: Channel) -> Sequence[PowerSensor]:
        walk = Walk()
        try:
            walk.begin(channel)
        except UnknownCommandError:
            without = "no sensor records" if self.wish.read == "sdr" else "neither DCMI nor sensor records"
            raise SensorAbsentError(f"{channel.where}: the BMC has {without}: it gives no power") from None
        if self._known is not None and self._known[0] == walk.stamp:
            return self._known[1]
        # Taken out, so that a second thread (the first one hangs) begins anew.
        begun, self._begun = self._begun, None
        if begun is not None and begun.stamp == walk.stamp:
            walk = begun
        try:
            is_whole = walk.go_on(channel, time.monotonic() + self.wish.deadline_s * _WALK_SHARE)
        except UnknownCommandError as error:
            raise SensorAbsentError(str(error)) from None
        except SensorError:
            self._begun = walk
            raise
        if not is_whole:
            # Longer than one step may last: the poller comes back at its next turn, after no longer pause than usual.
            self._begun = walk
            raise SensorGlitchError(f"{channel.where}: reading the sensor records, {walk.count} so far")
        self._known = (walk.stamp, tuple(walk.sensors))
        return self._known[1]


def choose(
    sensors: Sequence[PowerSensor], wanted: str, where: str
) -> tuple[PowerSensor | None, Sequence[PowerSensor], str]:
    """Choose the sensor that is the node; the others are its parts.

    Args:
        sensors: All in watts.
        wanted: A name; ``auto``: the one with a well-known name.
        where: The BMC, for messages.

    Returns:
        The node's sensor, None where it is not sure which one that is; its parts; and a remark for the doctor.

    Raises:
        SensorAbsentError: There is no sensor in watts, or none of that name.
    """
    names = ", ".join(sensor.name for sensor in sensors)
    if not sensors:
        raise SensorAbsentError(f"{where}: the BMC has no DCMI power reading, and none of its sensors is in watts")
    remark = ""
    if wanted != "auto":
        nodes = [sensor for sensor in sensors if records.plain(sensor.name) == records.plain(wanted)]
        if not nodes:
            raise SensorAbsentError(f"{where}: no sensor {wanted}; sensors in watts: {names}; correct `sensor`")
        nodes = nodes[:1]
    else:
        nodes = list(records.node_candidates(sensors))
        if len(nodes) != 1:
            which = "several of them" if nodes else "none of them"
            remark = f"which sensor is the whole server? {which} by name: {names}; all are shown as parts: set `sensor`"
            nodes = []
    node = nodes[0] if nodes else None
    parts = [sensor for sensor in sensors if sensor is not node]
    if len(parts) > _MAX_PARTS:
        remark = f"{remark}{remark and '; '}{len(parts)} sensors in watts, the first {_MAX_PARTS} are read as parts"
    return node, parts[:_MAX_PARTS], remark
