"""The IPMI family without a network: decoding answers, choosing sensors, options, targets, secrets."""

from __future__ import annotations

import logging
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_exporter.collectors.base.targets import TargetList
from joulewatch_exporter.collectors.ipmi.channel import UnknownCommandError, request
from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector, IpmiOptions, IpmiTarget
from joulewatch_exporter.collectors.ipmi.device import (
    FAILED_READS,
    RECHECK_READS,
    BmcSettings,
    Connector,
    Dcmi,
    DcmiDevice,
    SdrDevice,
    choose_node,
)
from joulewatch_exporter.collectors.ipmi.records import (
    DcmiReading,
    PowerSensor,
    component_of,
    dcmi_reading,
    domain_of,
    node_candidates,
    power_sensor,
)
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.emulator.bmc import BMC_FAULTS, BmcSpec, SdrSensorSpec
from joulewatch_exporter.emulator.bmc import _repository as emulated_records
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.signals import Constant
from joulewatch_exporter.errors import (
    ConfigError,
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Finding, Host
from support.collectors import findings

SECRET = "hunter2-never-shown"

# From OpenIPMI's simulator, as ipmitool prints it: 312 W now; 200, 480 and 305 W since the start.
DCMI_ANSWER = bytes.fromhex("dc3801c800e0013101d6cc006be803000040")

# A full record from sdrcomp: sensor 1, type Current, watts, steps of 4 W, "Pwr Consumption".
RECORD = bytes.fromhex(
    "01 00 51 01 3a 20 00 01 0a 01 45 00 03 01 00 00 00 00 00 00 00 06 00 00 04 00 00 01 01 00 00 00 00 00 ff 00 00 00"
    "00 00 00 00 00 00 00 00 00 cf 50 77 72 20 43 6f 6e 73 75 6d 70 74 69 6f 6e"
)


def named(name: str, number: int = 1) -> bytes:
    """Return RECORD with another name and number."""
    record = RECORD[:7] + bytes((number,)) + RECORD[8:47] + bytes((0xC0 | len(name),)) + name.encode()
    return record[:4] + bytes((len(record) - 5,)) + record[5:]


def dcmi_answer(watts: int, state: int = 0x40) -> bytes:
    return struct.pack("<BHHHHIIB", 0xDC, watts, 0, 65535, watts, 0, 1000, state)


def power(name: str, number: int = 1, **fields: object) -> PowerSensor:
    values: dict[str, object] = {
        "lun": 0,
        "data_format": 0,
        "linearization": 0,
        "m": 4,
        "b": 0,
        "b_exponent": 0,
        "result_exponent": 0,
        "tolerance": 0,
        "stated_accuracy": 0.0,
        "nominal": None,
    }
    return PowerSensor(name=name, number=number, **{**values, **fields})  # type: ignore[arg-type]


class FakeBmc:
    """A BMC with DCMI, a repository and sensors; it is its own `Channel`."""

    where = "n1 (10.0.0.1:623)"

    def __init__(
        self, *, dcmi: bytes | int = 0xC1, records: list[bytes] | None = None, largest_read: int = 255
    ) -> None:
        self.dcmi = dcmi
        self.records = records
        self.readings: dict[int, bytes | int] = {}
        self.largest_read = largest_read
        self.reservation = 0
        self.version = 1
        self.requests: list[tuple[int, int]] = []
        self.opened = 0
        self.is_open = False
        self.lose_reservation_at: int | None = None
        self.device_records = False
        self.error: SensorError | None = None
        self.slow_s = 0.0
        self.cuts_short = False
        """It truncates answers that are too long, without an error code."""

    def open(self) -> FakeBmc:
        if self.error is not None:
            raise self.error
        self.opened += 1
        self.is_open = True
        return self

    def close(self) -> None:
        self.is_open = False

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        assert self.is_open
        if self.error is not None:
            raise self.error
        self.requests.append((netfn, command))
        answer = self._answer(netfn, command, data)
        return (answer, b"") if isinstance(answer, int) else (0, answer)

    def _answer(self, netfn: int, command: int, data: bytes) -> bytes | int:
        records = self.records
        place, get = (0x04, 0x21) if self.device_records else (0x0A, 0x23)
        match netfn, command:
            case 0x2C, 0x02:
                assert data == b"\xdc\x01\x00\x00"
                return self.dcmi
            case _, 0x20 if netfn == place and records is not None:
                return struct.pack("<BHHIIB", 0x51, len(records), 7, self.version, self.version, 2)
            case _, 0x22 if netfn == place and records is not None:
                self.reservation += 1
                return struct.pack("<H", self.reservation)
            case _, _ if (netfn, command) == (place, get) and records is not None:
                return self._record(records, *struct.unpack("<HHBB", data))
            case 0x04, 0x2D:
                return self.readings.get(data[0], 0xCB)
        return 0xC1

    def _record(self, records: list[bytes], reservation: int, number: int, offset: int, count: int) -> bytes | int:
        if self.slow_s:
            time.sleep(self.slow_s)
        if self.lose_reservation_at is not None and offset == self.lose_reservation_at:
            self.lose_reservation_at = None
            return 0xC5
        if offset and reservation != self.reservation:
            return 0xC5
        if count > self.largest_read:
            if not self.cuts_short:
                return 0xCA
            count = self.largest_read
        following = number + 1 if number + 1 < len(records) else 0xFFFF
        return struct.pack("<H", following) + records[number][offset : offset + count]


def settings_of(**fields: object) -> BmcSettings:
    values: dict[str, object] = {
        "device": "n1",
        "source": "ipmi://10.0.0.1:623",
        "read": "auto",
        "sensor": "auto",
        "interval_s": 5.0,
        "deadline_s": 5.0,
        "is_remote": True,
        "read_mode": "remote",
        "privilege_fix": "raise `privilege`",
    }
    return BmcSettings(**{**values, **fields})  # type: ignore[arg-type]


# -- DCMI ---------------------------------------------------------------------------------------------


def test_the_momentary_power_is_read_not_the_average() -> None:
    assert dcmi_reading(DCMI_ANSWER) == DcmiReading(312.0, is_active=True)
    assert dcmi_reading(dcmi_answer(312, state=0x00)) == DcmiReading(312.0, is_active=False)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (dcmi_answer(0, state=0x00), "not measuring"),
        (dcmi_answer(0xFFFF, state=0x00), "not measuring"),
        (dcmi_answer(0), "0 W"),
        (dcmi_answer(0xFFFF), "all bits are ones"),
        (DCMI_ANSWER[:17], "17 bytes"),
        (b"", "0 bytes"),
        (b"\xdd" + DCMI_ANSWER[1:], "dd"),
    ],
)
def test_dcmi_answers_without_a_value_are_glitches(answer: bytes, message: str) -> None:
    with pytest.raises(SensorGlitchError, match=message):
        dcmi_reading(answer)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_power_or_a_glitch(answer: bytes) -> None:
    try:
        assert 0 < dcmi_reading(answer).watts < 65535
    except SensorGlitchError:
        pass


# -- sensor records -----------------------------------------------------------------------------------


def test_a_record_from_a_real_compiler() -> None:
    sensor = power_sensor(RECORD)
    assert sensor is not None
    assert (sensor.name, sensor.number, sensor.step_watts) == ("Pwr Consumption", 1, 4.0)
    assert (sensor.imprecision_watts, sensor.resolution, sensor.accuracy) == (2.0, "4 W", None)
    assert sensor.power_watts(bytes((75, 0xC0, 0xC0))) == 300.0


@given(st.binary(max_size=80))
def test_any_bytes_are_a_sensor_or_none(record: bytes) -> None:
    power_sensor(record)


@given(st.binary(min_size=20, max_size=60), st.binary(max_size=4))
def test_any_record_in_watts_gives_a_power_or_a_glitch(tail: bytes, answer: bytes) -> None:
    """With any scale, a reading is within the protocol's bounds or a glitch."""
    record = bytearray(RECORD[:23] + tail + RECORD[23 + len(tail) :])
    record[47:49] = b"\xc1x"
    sensor = power_sensor(bytes(record))
    if sensor is None:
        return
    assert sensor.accuracy is None or sensor.accuracy >= 0
    try:
        assert 0.0 <= sensor.power_watts(answer) <= 65535.0
    except SensorGlitchError:
        pass


def changed(**at: int) -> bytes:
    record = bytearray(RECORD)
    for key, value in at.items():
        record[int(key.removeprefix("at"))] = value
    return bytes(record)


@pytest.mark.parametrize(
    "record",
    [
        changed(at3=0x02),  # a compact record has no analog scale
        changed(at5=0x2C),  # another controller's sensor
        changed(at6=0x10),  # on another channel
        changed(at20=0xC0),  # not an analog reading
        changed(at20=0x01),  # a percentage
        changed(at20=0x08),  # watts per second
        changed(at21=0x01),  # degrees
        changed(at23=0x70),  # the factors differ between readings
        changed(at24=0x00),  # a constant
        changed(at47=0xC0),  # no name
        RECORD[:47],
    ],
)
def test_records_other_than_powers_of_this_bmc_are_skipped(record: bytes) -> None:
    assert power_sensor(record) is None


def test_scales() -> None:
    assert power("x", m=2, b=-5, b_exponent=1, result_exponent=1).watts(100) == 1500.0
    assert power("x", m=1, linearization=8).watts(9) == 81.0
    assert power("x", m=1, linearization=7).watts(4) == 0.25
    assert power("x", data_format=2).power_watts(bytes((50, 0xC0))) == 200.0
    assert power("x", data_format=1, m=-4).power_watts(bytes((0xFE, 0xC0))) == 4.0
    with pytest.raises(SensorGlitchError, match="not a plausible power"):
        power("x", data_format=2).power_watts(bytes((0xFE, 0xC0)))
    with pytest.raises(SensorGlitchError, match="outside the scale"):
        power("x", m=1, linearization=7).power_watts(bytes((0, 0xC0)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (bytes((75, 0xE0)), "no value now"),
        (bytes((75, 0x80)), "no value now"),
        (bytes((255, 0xC0)), "end of the scale"),
        (bytes((75,)), "1 bytes"),
    ],
)
def test_sensor_answers_without_a_value_are_glitches(answer: bytes, message: str) -> None:
    with pytest.raises(SensorGlitchError, match=message):
        power("Pwr").power_watts(answer)


def test_accuracy_is_the_stated_accuracy_plus_the_imprecision() -> None:
    record = changed(at27=100 & 0x3F, at28=(100 >> 6) << 4, at30=0x01, at31=100)
    sensor = power_sensor(record)
    assert sensor is not None
    assert sensor.accuracy == pytest.approx(0.01 + 2 / 400)
    exponent = power_sensor(changed(at27=5, at28=2 << 2, at30=0x01, at31=200))
    assert exponent is not None
    assert exponent.accuracy == pytest.approx(0.05 + 2 / 800)
    unknown = power_sensor(changed(at27=5, at28=2 << 2))
    assert unknown is not None
    assert unknown.accuracy is None


@pytest.mark.parametrize(
    ("kind", "data", "name"),
    [
        (0b11, b"PSU1 Input\x00", "PSU1 Input"),
        (0b11, b"Puissance \xe9", "Puissance é"),
        (0b10, bytes.fromhex("29dca6"), "IPMI"),
        (0b01, bytes((0x12, 0x3B)), "123-"),
        (0b00, b"Power", "Power"),
    ],
)
def test_names_in_all_encodings(kind: int, data: bytes, name: str) -> None:
    sensor = power_sensor(RECORD[:47] + bytes((kind << 6 | len(data),)) + data)
    assert sensor is not None
    assert sensor.name == name


@given(
    m=st.integers(-512, 511).filter(bool),
    b=st.integers(-512, 511),
    b_exponent=st.integers(-2, 2),
    result_exponent=st.integers(-2, 1),
    watts=st.floats(1.0, 3000.0),
)
def test_emulated_records_match_their_readings(
    m: int, b: int, b_exponent: int, result_exponent: int, watts: float
) -> None:
    spec = SdrSensorSpec(name="Any Power", m=m, b=b, b_exponent=b_exponent, result_exponent=result_exponent)
    _, record = emulated_records(BmcSpec(name="n", signal=Constant(1.0), sensors=(spec,)))
    sensor = power_sensor(record)
    assert sensor is not None
    raw = spec.raw(watts)
    if 0 < raw < 255:
        assert sensor.watts(raw) == pytest.approx(watts, abs=sensor.step_watts * 0.500001)


def test_names_are_recognised_in_any_spelling() -> None:
    names = ["Pwr Consumption", "SYS_POWER", "PSU1 Input", "Total Power", "CPU Power"]
    assert [s.name for s in node_candidates([power(name) for name in names])] == [names[0], names[1], names[3]]
    assert [component_of(name) for name in ("CPU1 Power", "MEM Pwr", "GPU3", "PSU1 Input")] == [
        "cpu",
        "memory",
        "gpu",
        "other",
    ]
    assert [domain_of(name) for name in ("PSU1 Input", "_-_", "12V/PEX")] == ["psu1_input", "sensor", "12v_pex"]


def test_the_node_is_the_only_sensor_with_a_known_name() -> None:
    sensors = [power("PSU1 Input", 1), power("Pwr Consumption", 2), power("PSU2 Input", 3)]
    node, parts, note = choose_node(sensors, "auto", "n1")
    assert node is sensors[1]
    assert list(parts) == [sensors[0], sensors[2]]
    assert note == ""


@pytest.mark.parametrize("names", [("PSU1 Input", "PSU2 Input"), ("Pwr Consumption", "System Level"), ("Odd Name",)])
def test_if_the_node_is_uncertain_all_sensors_are_parts_with_a_note(names: tuple[str, ...]) -> None:
    node, parts, note = choose_node([power(name) for name in names], "auto", "n1")
    assert node is None
    assert len(parts) == len(names)
    assert "set `sensor`" in note
    assert all(name in note for name in names)


def test_the_node_can_be_named_in_the_configuration() -> None:
    sensors = [power("PSU1 Input", 1), power("PSU2 Input", 2)]
    node, parts, _ = choose_node(sensors, "psu2_input", "n1")
    assert node is sensors[1]
    assert list(parts) == [sensors[0]]
    with pytest.raises(SensorAbsentError, match="no sensor PSU3; sensors in watts: PSU1 Input, PSU2 Input"):
        choose_node(sensors, "PSU3", "n1")
    with pytest.raises(SensorAbsentError, match="neither a DCMI power reading nor a sensor in watts"):
        choose_node([], "auto", "n1")


def test_the_number_of_parts_is_limited() -> None:
    node, parts, note = choose_node([power("Pwr Usage"), *[power(f"Blade {n}", n) for n in range(40)]], "auto", "n1")
    assert node is not None
    assert len(parts) == 16
    assert "40 sensors" in note


# -- one BMC ------------------------------------------------------------------------------------------


def test_dcmi_is_preferred() -> None:
    bmc = FakeBmc(dcmi=DCMI_ANSWER, records=[RECORD])
    device = Connector(settings_of(), bmc.open).connect()
    (info,) = device.infos
    assert (info.quantity.scope, info.quantity.component, info.quantity.device, info.quantity.domain) == (
        "node",
        "node",
        "n1",
        "total",
    )
    assert (info.method, info.resolution, info.max_power_watts, info.max_gap_s) == ("integrated", "1 W", 65535.0, 15.0)
    before_ns = time.monotonic_ns()
    (reading,) = device.read()
    assert reading.quantity is info.quantity
    assert (reading.power_watts, reading.energy_joules) == (312.0, None)
    assert before_ns <= reading.read_at_ns <= time.monotonic_ns()
    assert (0x0A, 0x20) not in bmc.requests
    device.close()
    assert not bmc.is_open


def test_the_longest_gap_allows_two_lost_readings() -> None:
    settings = settings_of(interval_s=30.0)
    (info,) = DcmiDevice(FakeBmc(), settings, Dcmi(settings)).infos
    assert info.max_gap_s == 90.0


def test_bmcs_of_other_machines_are_remote(tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector]) -> None:
    file = password_file(tmp_path)
    fleet.bmcs = {"n1": FakeBmc(dcmi=DCMI_ANSWER), "n2": FakeBmc(records=[RECORD])}
    fleet.bmcs["n2"].readings = {1: bytes((75, 0xC0))}
    targets = [target(name=n, address=n, password_file=file, this_machine=n == "n1") for n in fleet.bmcs]
    collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets=targets))
    opened.append(collector)
    collector.settle(5.0)
    infos = [sensor.infos[0] for sensor in collector.sensors]
    assert [info.is_remote for info in infos] == [False, True]
    # Both are read over the network, whoever they belong to.
    assert [info.read_mode for info in infos] == ["remote", "remote"]
    assert [info.host("node17") for info in infos] == ["node17", "n2"]


def test_the_bmc_in_band_is_polled(tmp_path: Path, opened: list[IpmiCollector]) -> None:
    opened.append(IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(in_band=True)))
    settings = opened[0]._connectors["bmc"].settings
    assert (settings.read_mode, settings.is_remote, settings.interval_s) == ("polled", False, 5.0)
    (info,) = DcmiDevice(FakeBmc(dcmi=DCMI_ANSWER), settings, Dcmi(settings)).infos
    assert (info.read_mode, info.period_s, info.host("node17")) == ("polled", 5.0, "node17")


def test_without_dcmi_sensors_are_read() -> None:
    psu = named("PSU1 Input", 2)
    bmc = FakeBmc(records=[RECORD, psu])
    bmc.readings = {1: bytes((75, 0xC0)), 2: bytes((40, 0xC0))}
    device = Connector(settings_of(), bmc.open).connect()
    assert isinstance(device, SdrDevice)
    assert [(i.quantity.scope, i.quantity.domain, i.relation, i.quantity.device) for i in device.infos] == [
        ("node", "total", "inside", "n1"),
        ("part", "psu1_input", "inside", "n1"),
    ]
    assert [reading.power_watts for reading in device.read()] == [300.0, 160.0]
    assert [r.quantity for r in device.read()] == [i.quantity for i in device.infos]


def test_a_part_without_a_value_is_skipped_and_a_node_without_one_is_a_glitch() -> None:
    psu = named("PSU1 Input", 2)
    bmc = FakeBmc(records=[RECORD, psu])
    bmc.readings = {1: bytes((75, 0xC0)), 2: bytes((40, 0xE0))}
    device = Connector(settings_of(), bmc.open).connect()
    assert [reading.power_watts for reading in device.read()] == [300.0]
    bmc.readings[2] = bytes((0, 0xC0))  # 0 W is valid for a power supply on standby
    assert [reading.power_watts for reading in device.read()] == [300.0, 0.0]
    bmc.readings[1] = bytes((0, 0xC0))
    with pytest.raises(SensorGlitchError, match="0 W"):
        device.read()


def test_without_any_value_a_read_is_a_glitch() -> None:
    bmc = FakeBmc(records=[named("PSU1 Input")])
    bmc.readings = {1: bytes((75, 0xE0))}
    connector = Connector(settings_of(), bmc.open)
    device = connector.connect()
    assert "PSU1 Input" in connector.note
    with pytest.raises(SensorGlitchError, match="no value now"):
        device.read()


def test_two_sensors_with_one_name_have_two_series() -> None:
    bmc = FakeBmc(records=[named("PSU", number) for number in (1, 2)])
    infos = Connector(settings_of(), bmc.open).connect().infos
    assert [info.quantity.domain for info in infos] == ["psu", "psu_2"]


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (0xD4, SensorDeniedError, "raise `privilege`, or read a sensor"),
        (0xC1, SensorAbsentError, "neither DCMI nor sensor records"),
    ],
)
def test_unsupported_and_denied_commands_name_the_fix(code: int, error: type[SensorError], text: str) -> None:
    bmc = FakeBmc(dcmi=code)
    with pytest.raises(error, match=text) as raised:
        Connector(settings_of(), bmc.open).connect()
    assert "n1 (10.0.0.1:623)" in str(raised.value)
    assert not bmc.is_open


@pytest.mark.parametrize("code", [0xC0, 0xC3, 0xCB, 0xD0, 0xD1, 0xD5, 0xFF, 0x99])
def test_a_temporary_failure_is_a_glitch_and_keeps_the_connection(code: int) -> None:
    bmc = FakeBmc(dcmi=code, records=[RECORD])
    device = Connector(settings_of(), bmc.open).connect()
    assert isinstance(device, DcmiDevice)
    with pytest.raises(SensorGlitchError, match=f"{code:02X}h"):
        device.read()
    bmc.dcmi = DCMI_ANSWER
    assert device.read()[0].power_watts == 312.0


def test_missing_dcmi_is_reported_if_it_is_required() -> None:
    with pytest.raises(SensorAbsentError, match="set `read: auto`"):
        Connector(settings_of(read="dcmi"), FakeBmc(records=[RECORD]).open).connect()


def test_dcmi_is_detected_again_after_a_firmware_change() -> None:
    bmc = FakeBmc(dcmi=DCMI_ANSWER, records=[RECORD])
    connector = Connector(settings_of(), bmc.open)
    device = connector.connect()
    bmc.dcmi = 0xC1
    with pytest.raises(SensorAbsentError):
        device.read()
    assert isinstance(connector.connect(), SdrDevice)


def inactive(watts: int) -> bytes:
    return dcmi_answer(watts, state=0x00)


def deactivated(watts: int = 312, *, records: list[bytes] | None = None) -> FakeBmc:
    """Return a BMC whose measurement is deactivated, and whose sensor has 300 W if it has records."""
    bmc = FakeBmc(dcmi=inactive(watts), records=records)
    bmc.readings = {1: bytes((75, 0xC0))}
    return bmc


def test_a_deactivated_measurement_that_changes_is_believed() -> None:
    """It may change while the exporter connects, or later; it is then believed in each further connection."""
    bmc = deactivated(records=[RECORD])
    connector = Connector(settings_of(), bmc.open, pause=lambda _: setattr(bmc, "dcmi", inactive(315)))
    device = connector.connect()
    assert isinstance(device, DcmiDevice)
    assert [reading.power_watts for reading in device.read()] == [315.0]
    assert connector.remark == (
        "its DCMI measurement is reported as deactivated, but its watts change, so they are used"
    )
    device.close()
    assert isinstance(connector.connect(), DcmiDevice)
    bmc.dcmi = DCMI_ANSWER
    connector.connect().read()
    assert connector.remark == ""


@pytest.mark.parametrize("watts", [312, 0])
def test_a_deactivated_measurement_that_does_not_change_is_replaced_by_a_sensor(watts: int) -> None:
    bmc = deactivated(watts, records=[RECORD])
    pauses: list[float] = []
    connector = Connector(settings_of(), bmc.open, pause=pauses.append)
    device = connector.connect()
    assert isinstance(device, SdrDevice)
    assert pauses == [1.0, 1.0]
    assert [reading.power_watts for reading in device.read()] == [300.0]
    assert connector.remark == "its DCMI measurement is deactivated"


def test_without_a_sensor_a_deactivated_measurement_is_watched() -> None:
    bmc = deactivated(312)
    connector = Connector(settings_of(), bmc.open, pause=lambda _: None)
    device = connector.connect()
    for _ in range(2 * FAILED_READS):
        with pytest.raises(SensorGlitchError, match=r"not measuring now \(deactivated\); its 312 W are ignored until"):
            device.read()
    bmc.dcmi = inactive(0)
    with pytest.raises(SensorGlitchError, match=r"not measuring now$"):
        device.read()
    bmc.dcmi = inactive(320)
    assert [reading.power_watts for reading in device.read()] == [320.0]
    bmc.dcmi = DCMI_ANSWER
    assert [reading.power_watts for reading in device.read()] == [312.0]


def test_values_of_two_deactivations_are_not_compared() -> None:
    """They differ because the BMC measured in between."""
    bmc = deactivated(312)
    device = Connector(settings_of(), bmc.open, pause=lambda _: None).connect()
    bmc.dcmi = dcmi_answer(400)
    device.read()
    bmc.dcmi = inactive(400)
    with pytest.raises(SensorGlitchError):
        device.read()


@pytest.mark.parametrize("later", [DCMI_ANSWER, inactive(313)], ids=["active", "changing"])
def test_dcmi_is_probed_while_a_sensor_is_read(later: bytes) -> None:
    bmc = deactivated(312, records=[RECORD])
    connector = Connector(settings_of(), bmc.open, pause=lambda _: None)
    device = connector.connect()
    bmc.dcmi = later
    bmc.requests.clear()
    for _ in range(RECHECK_READS - 1):
        device.read()
    assert (0x2C, 0x02) not in bmc.requests
    with pytest.raises(SensorAbsentError, match="DCMI has a power reading now"):
        device.read()
    assert isinstance(connector.connect(), DcmiDevice)


@pytest.mark.parametrize("dcmi", [0xC1, inactive(312)], ids=["unsupported", "deactivated"])
def test_dcmi_is_probed_when_the_sensor_has_no_value(dcmi: bytes | int) -> None:
    """A BMC that is starting may not support DCMI yet."""
    bmc = FakeBmc(dcmi=dcmi, records=[RECORD])
    bmc.readings = {1: bytes((75, 0xE0))}
    device = Connector(settings_of(), bmc.open, pause=lambda _: None).connect()
    with pytest.raises(SensorGlitchError, match="no value now"):
        device.read()
    bmc.dcmi = DCMI_ANSWER
    with pytest.raises(SensorAbsentError, match="DCMI has a power reading now"):
        device.read()


@pytest.mark.parametrize("failure", [0xCB, 0xD5, inactive(400)], ids=["CBh", "D5h", "deactivated"])
def test_the_sensor_is_tried_if_dcmi_has_no_value_for_long(failure: bytes | int) -> None:
    bmc = FakeBmc(dcmi=DCMI_ANSWER, records=[RECORD])
    bmc.readings = {1: bytes((75, 0xC0))}
    connector = Connector(settings_of(), bmc.open, pause=lambda _: None)
    device = connector.connect()
    bmc.dcmi = failure
    for _ in range(FAILED_READS - 1):
        with pytest.raises(SensorGlitchError):
            device.read()
    with pytest.raises(SensorAbsentError, match="trying its sensors"):
        device.read()
    assert [reading.power_watts for reading in connector.connect().read()] == [300.0]


def test_only_dcmi_is_read_on_request() -> None:
    bmc = deactivated(312, records=[RECORD])
    device = Connector(settings_of(read="dcmi"), bmc.open, pause=lambda _: None).connect()
    for _ in range(2 * FAILED_READS):
        with pytest.raises(SensorGlitchError):
            device.read()


def test_sensors_are_read_instead_of_dcmi_on_request() -> None:
    bmc = FakeBmc(dcmi=DCMI_ANSWER, records=[RECORD])
    assert isinstance(Connector(settings_of(read="sdr"), bmc.open).connect(), SdrDevice)
    assert (0x2C, 0x02) not in bmc.requests


@pytest.mark.parametrize("cuts_short", [False, True])
@pytest.mark.parametrize("largest_read", [255, 64, 40, 20, 8])
def test_records_are_read_at_once_or_in_pieces(largest_read: int, cuts_short: bool) -> None:
    other = changed(at3=0x12)
    bmc = FakeBmc(records=[other, RECORD, other], largest_read=largest_read)
    bmc.cuts_short = cuts_short
    (info,) = Connector(settings_of(), bmc.open).connect().infos
    assert info.source == "ipmi://10.0.0.1:623 SDR sensor Pwr Consumption"


def test_a_record_shorter_than_its_stated_length_is_accepted() -> None:
    bmc = FakeBmc(records=[RECORD[:4] + b"\xf0" + RECORD[5:]], largest_read=32)
    assert len(Connector(settings_of(), bmc.open).connect().infos) == 1


def test_device_records_are_read_if_there_is_no_repository() -> None:
    bmc = FakeBmc(records=[RECORD])
    bmc.device_records = True
    assert len(Connector(settings_of(), bmc.open).connect().infos) == 1


def test_a_lost_reservation_is_renewed() -> None:
    bmc = FakeBmc(records=[RECORD], largest_read=32)
    bmc.lose_reservation_at = 37
    assert len(Connector(settings_of(), bmc.open).connect().infos) == 1
    assert bmc.reservation == 2


def test_the_records_are_read_once() -> None:
    """Reading them takes up to a minute on real BMCs; a new session only checks their version."""
    bmc = FakeBmc(records=[RECORD])
    connector = Connector(settings_of(), bmc.open)
    connector.connect().close()
    bmc.requests.clear()
    connector.connect().close()
    assert (0x0A, 0x23) not in bmc.requests
    bmc.version += 1
    connector.connect().close()
    assert (0x0A, 0x23) in bmc.requests


def test_reading_many_records_is_continued_after_an_interruption() -> None:
    bmc = FakeBmc(records=[changed(at3=0x12)] * 20 + [RECORD])
    bmc.slow_s = 0.001
    connector = Connector(settings_of(deadline_s=0.01), bmc.open)
    steps = 0
    while True:
        try:
            device = connector.connect()
            break
        except SensorGlitchError as error:
            assert "reading the sensor records" in str(error)
            assert not bmc.is_open
            steps += 1
            assert steps < 100
    assert steps > 0
    assert len(device.infos) == 1
    assert bmc.requests.count((0x0A, 0x23)) == 21


def test_a_repository_without_an_end_is_an_error() -> None:
    bmc = FakeBmc(records=[RECORD])
    bmc._record = lambda records, reservation, number, offset, count: struct.pack("<H", number) + records[0]  # type: ignore[method-assign]
    with pytest.raises(SensorAbsentError, match="never ends"):
        Connector(settings_of(), bmc.open).connect()


def test_a_failing_channel_is_closed() -> None:
    bmc = FakeBmc(dcmi=DCMI_ANSWER)
    connector = Connector(settings_of(), bmc.open)
    device = connector.connect()
    bmc.error = SensorTimeoutError("n1: no answer")
    with pytest.raises(SensorTimeoutError):
        device.read()
    with pytest.raises(SensorTimeoutError):
        connector.connect()


def test_an_unsupported_command_is_an_error() -> None:
    bmc = FakeBmc(dcmi=0xC2)
    bmc.open()
    with pytest.raises(UnknownCommandError):
        request(bmc, "x", 0x2C, 0x02, b"\xdc\x01\x00\x00")


# -- options and targets -------------------------------------------------------------------------------


def target(**fields: object) -> IpmiTarget:
    values: dict[str, object] = {"name": "n1", "address": "bmc1", "user": "mon", "password_file": Path("pw")}
    return IpmiTarget(**{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": " "}, "name: ' ' must not be empty or contain white space"),
        ({"name": "rack1/n1"}, "name: 'rack1/n1' must not"),
        ({"address": "https://bmc1"}, "address: 'https://bmc1' is not a host name"),
        ({"address": ""}, "address: "),
        ({"port": 0}, "port: must be 1 to 65535, not 0"),
        ({"user": ""}, "user: must be 1 to 16 bytes"),
        ({"user": "x" * 17}, "user: must be 1 to 16 bytes"),
        ({"read": "dcmi", "sensor": "Pwr"}, "sensor: cannot be combined"),
        ({"sensor": ""}, "sensor: must not be empty"),
        ({"interval_seconds": 0.5}, "interval_seconds: must be 1 to 3600 seconds, not 0.5"),
    ],
)
def test_invalid_targets(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        target(**fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"interval_seconds": 0.2}, "interval_seconds: "),
        ({"deadline_seconds": 0.1}, "deadline_seconds: "),
        ({"in_band_name": ""}, "in_band_name: "),
    ],
)
def test_invalid_options(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        IpmiOptions(**fields)  # type: ignore[arg-type]


def test_options_from_a_file() -> None:
    options = build(
        IpmiOptions,
        {
            "in_band": False,
            "interval_seconds": 10,
            "targets": [
                {
                    "name": "n1",
                    "address": "10.0.0.1",
                    "user": "mon",
                    "password_file": "/run/secrets/bmc",
                    "privilege": "operator",
                    "read": "sdr",
                    "sensor": "System Level",
                }
            ],
        },
        "exporter.yaml",
        "collectors.ipmi",
    )
    assert options.targets == (
        IpmiTarget(
            name="n1",
            address="10.0.0.1",
            user="mon",
            password_file=Path("/run/secrets/bmc"),
            privilege="operator",
            read="sdr",
            sensor="System Level",
        ),
    )
    assert (options.in_band, options.interval_seconds) == (False, 10.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{adress: x}", "unknown key targets[0].adress; did you mean address?"),
        ("{password: hunter2}", "unknown key targets[0].password; did you mean password_file?"),
        ("{name: n1, address: x, user: u}", "targets[0]: needs password_file"),
        ("{name: n1, address: x, user: u, password_file: p, port: 70000}", "targets[0].port: must be 1 to 65535"),
        ("{name: n1, address: x, user: u, password_file: p, privilege: root}", "must be user or operator or admin"),
    ],
)
def test_errors_in_a_target_file_name_the_key_and_the_nearest_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bmcs.yaml"
    file.write_text(f"targets:\n  - {text}\n")
    with pytest.raises(ConfigError) as raised:
        TargetList(IpmiTarget, (), file, where="collectors.ipmi").read()
    assert str(raised.value).startswith(f"{file}: ")
    assert message in str(raised.value)
    assert "hunter2" not in str(raised.value)


# -- the family ----------------------------------------------------------------------------------------


class Fleet:
    """Fake BMCs by address; replaces the network."""

    def __init__(self) -> None:
        self.bmcs: dict[str, FakeBmc] = {}
        self.credentials: list[tuple[bytes, bytes, bytes | None]] = []

    def channel(
        self,
        where: str,
        host: str,
        port: int,
        credentials: Callable[[], tuple[bytes, bytes, bytes | None]],
        privilege: int,
        *,
        user: str,
        deadline_s: float,
    ) -> FakeBmc:
        self.credentials.append(credentials())
        return self.bmcs[host].open()


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet()
    monkeypatch.setattr("joulewatch_exporter.collectors.ipmi.lan.LanChannel", fleet.channel)
    return fleet


@pytest.fixture
def opened() -> Iterator[list[IpmiCollector]]:
    collectors: list[IpmiCollector] = []
    yield collectors
    for collector in collectors:
        collector.close()


def targets_file(folder: Path, *names: str) -> Path:
    file = folder / "bmcs.yaml"
    lines = [f"  - {{name: {name}, address: {name}, user: mon, password_file: pw}}" for name in names]
    temporary = folder / "bmcs.new"
    temporary.write_text("\n".join(["targets:", *lines]) + "\n")
    temporary.replace(file)
    return file


def password_file(folder: Path, secret: str = SECRET) -> Path:
    file = folder / "pw"
    file.write_text(f"{secret}\n")
    file.chmod(0o600)
    return file


def test_without_targets_and_device_the_family_is_absent(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsentError, match=r"ipmi0: no such device .*; and collectors\.ipmi has no targets"):
        IpmiCollector.open(Host(dev=tmp_path), IpmiOptions())
    with pytest.raises(SensorAbsentError, match="disabled"):
        IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(in_band=False))


def test_a_denied_device_is_reported_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ipmi0").touch()
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not str(path).endswith("ipmi0"))
    with pytest.raises(SensorDeniedError, match=f"run `sudo chmod a\\+rw {tmp_path}/ipmi0`") as caught:
        IpmiCollector.open(Host(dev=tmp_path), IpmiOptions())
    assert caught.value.devices == ("bmc",)


def test_a_denied_device_does_not_stop_the_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fleet: Fleet, opened: list[IpmiCollector]
) -> None:
    (tmp_path / "ipmi0").touch()
    monkeypatch.setattr(os, "access", lambda path, *_, **__: not str(path).endswith("ipmi0"))
    fleet.bmcs["bmc1"] = FakeBmc(dcmi=DCMI_ANSWER)
    options = IpmiOptions(targets=[target(password_file=password_file(tmp_path))])
    collector = IpmiCollector.open(Host(dev=tmp_path), options)
    opened.append(collector)
    collector.settle(5.0)
    assert [finding.status for finding in collector.findings] == ["denied", "found"]
    assert collector.findings[0].cure == f"sudo chmod a+rw {tmp_path}/ipmi0"


def test_without_pyghmi_the_install_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joulewatch_exporter.collectors.ipmi.lan", None)
    options = IpmiOptions(targets=[target(password_file=password_file(tmp_path))])
    with pytest.raises(SensorAbsentError, match=r"pip install 'joulewatch\[ipmi\]'"):
        IpmiCollector.open(Host(dev=tmp_path), options)


def test_a_target_must_not_have_the_name_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "ipmi0").touch()
    options = IpmiOptions(in_band=True, targets=[target(name="bmc", password_file=password_file(tmp_path))])
    with pytest.raises(ConfigError, match="bmc is both a target and the name of this machine's BMC"):
        IpmiCollector.open(Host(dev=tmp_path), options)


def test_an_invalid_target_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets_file=tmp_path / "none.yaml"))


def test_each_bmc_has_its_own_series_and_finding(tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector]) -> None:
    password_file(tmp_path)
    fleet.bmcs = {
        "n1": FakeBmc(dcmi=DCMI_ANSWER),
        "n2": FakeBmc(dcmi=dcmi_answer(400)),
        "n3": FakeBmc(),
        "n4": FakeBmc(),
    }
    fleet.bmcs["n4"].error = SensorTimeoutError("n4: no answer within 5 s")
    file = targets_file(tmp_path, *fleet.bmcs)
    collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets_file=file))
    opened.append(collector)
    collector.settle(5.0)
    sensors = {sensor.device: sensor for sensor in collector.sensors}
    assert {device: sensors[device].read()[-1].power_watts for device in ("n1", "n2")} == {"n1": 312.0, "n2": 400.0}
    with pytest.raises(SensorAbsentError):
        sensors["n3"].read()
    with pytest.raises(SensorTimeoutError):
        sensors["n4"].read()
    states = {finding.subject: finding.status for finding in collector.findings}
    assert states == {
        f"{tmp_path}/ipmi0": "absent",
        "ipmi://n1:623": "found",
        "ipmi://n2:623": "found",
        "ipmi://n3:623": "absent",
        "ipmi://n4:623": "broken",
    }
    assert fleet.credentials[0] == (b"mon", SECRET.encode(), None)


def refresh(collector: IpmiCollector) -> None:
    collector._checked_at_ns = -math.inf  # type: ignore[assignment]
    collector.refresh()


def test_unchanged_targets_keep_their_connection_when_the_file_changes(
    tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector]
) -> None:
    password_file(tmp_path)
    fleet.bmcs = {name: FakeBmc(dcmi=DCMI_ANSWER) for name in ("n1", "n2", "n3")}
    collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets_file=targets_file(tmp_path, "n1", "n2")))
    opened.append(collector)
    collector.settle(5.0)
    before = {sensor.device: sensor for sensor in collector.sensors}
    targets_file(tmp_path, "n2", "n3")
    refresh(collector)
    collector.settle(5.0)
    after = {sensor.device: sensor for sensor in collector.sensors}
    assert sorted(after) == ["n2", "n3"]
    assert after["n2"] is before["n2"]
    assert fleet.bmcs["n2"].opened == 1
    assert [finding.subject for finding in collector.findings[1:]] == ["ipmi://n2:623", "ipmi://n3:623"]


def test_an_invalid_target_file_changes_nothing_and_is_logged_once(
    tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector], caplog: pytest.LogCaptureFixture
) -> None:
    password_file(tmp_path)
    fleet.bmcs = {"n1": FakeBmc(dcmi=DCMI_ANSWER)}
    file = targets_file(tmp_path, "n1")
    collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets_file=file))
    opened.append(collector)
    collector.settle(5.0)
    before = collector.sensors
    file.write_text("targets: [{name: n1, adress: n1}]\n")
    for _ in range(3):
        refresh(collector)
    assert collector.sensors is before
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    broken = findings(collector, "broken")
    assert len(broken) == 1
    assert "did you mean address?" in broken[0].text
    targets_file(tmp_path, "n1")
    refresh(collector)
    assert not findings(collector, "broken")
    assert fleet.bmcs["n1"].opened == 1


def test_an_invalid_or_missing_password_is_denied_without_showing_it(
    tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector]
) -> None:
    fleet.bmcs = {"n1": FakeBmc(dcmi=DCMI_ANSWER)}
    long_secret = SECRET + "0123456789"
    for file, text in (
        (password_file(tmp_path, long_secret), "longer than 20 bytes"),
        (tmp_path / "no", "No such file"),
    ):
        collector = IpmiCollector.open(
            Host(dev=tmp_path), IpmiOptions(targets=[target(address="n1", password_file=file)])
        )
        opened.append(collector)
        collector.settle(5.0)
        (sensor,) = collector.sensors
        with pytest.raises(SensorDeniedError, match=text) as raised:
            sensor.read()
        assert str(file) in str(raised.value)
        assert SECRET not in str(raised.value)


def test_pyghmis_errors_are_converted() -> None:
    from pyghmi.exceptions import IpmiException
    from pyghmi.ipmi.private.constants import rmcp_codes

    from joulewatch_exporter.collectors.ipmi.lan import LanChannel

    channel = LanChannel.__new__(LanChannel)
    channel.where, channel._user, channel._deadline_s, channel._port = "n1 (bmc1:623)", "mon", 5.0, 623
    kinds = {
        "Incorrect password provided": SensorDeniedError,
        "Unauthorized name in RAKP2": SensorDeniedError,
        "Unauthorized role or privilege level requested in RAKP2": SensorDeniedError,
        "Invalid RAKP4 integrity code (wrong Kg?)": SensorDeniedError,
        rmcp_codes[0x01]: SensorGlitchError,
        rmcp_codes[0x0B]: SensorGlitchError,
        rmcp_codes[0x11]: SensorDeniedError,
        "Session no longer connected": SensorTimeoutError,
        "None": SensorTimeoutError,
        "timeout": SensorTimeoutError,
        "something new": SensorGlitchError,
    }
    for text, kind in kinds.items():
        error = channel._login_error(IpmiException(text))
        assert type(error) is kind, text
        assert str(error).startswith("n1 (bmc1:623): ")


# -- secrets -------------------------------------------------------------------------------------------


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=18))
def test_passwords_are_not_in_reprs(secret: str) -> None:
    """Options contain only paths, and the spec of the emulated BMC hides its password."""
    secret = f"~{secret}~"  # so that it cannot be part of the repr by chance
    spec = BmcSpec(name="n1", signal=Constant(1.0), password=secret)
    assert secret not in repr(spec)
    options = IpmiOptions(targets=[target()])
    assert secret not in repr(options)


def test_passwords_are_not_in_logs_errors_or_findings(
    tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = password_file(tmp_path)
    errors: list[SensorError | None] = [
        None,
        SensorDeniedError("n: wrong password"),
        SensorTimeoutError("n: no answer"),
        SensorGlitchError("n: busy"),
    ]
    for index, error in enumerate(errors):
        bmc = fleet.bmcs[f"n{index}"] = FakeBmc(dcmi=DCMI_ANSWER)
        bmc.error = error
    odd = fleet.bmcs["odd"] = FakeBmc()
    odd.open = lambda: 1 / 0  # type: ignore[assignment,return-value] # a bug in the collector, with its traceback
    targets = [target(name=name, address=name, password_file=file) for name in fleet.bmcs]
    collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets=targets))
    opened.append(collector)
    collector.settle(5.0)
    outputs: list[object] = [caplog.text, collector.findings, collector.sensors, targets, collector.timing]
    for sensor in collector.sensors:
        try:
            outputs.append(sensor.read())
        except SensorError as raised:
            outputs += [str(raised), repr(raised), raised.__cause__]
    collector.close()
    assert "ZeroDivisionError" in caplog.text
    assert SECRET not in repr(outputs)


# -- the emulator's specs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "../n"}, "name: "),
        ({"user": "x" * 17}, "user: "),
        ({"password": ""}, "password: "),
        ({"port": 70000}, "port: "),
        ({"refresh_s": 0.0}, "refresh_s: "),
        ({"cipher_suites": (1,)}, "cipher_suites: "),
        ({"sensors": (SdrSensorSpec(name="a"), SdrSensorSpec(name="a"))}, "sensors: "),
        ({"faults": (Fault(kind="wrap", at_s=0.0, for_s=1.0),)}, r"faults\[0\]\.kind: 'wrap' is not one of"),
    ],
)
def test_invalid_specs_of_an_emulated_bmc(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        BmcSpec(**{"name": "n", "signal": Constant(1.0), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "x" * 17}, {"m": 0}, {"b": 600}, {"b_exponent": 9}])
def test_invalid_specs_of_an_emulated_sensor(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SdrSensorSpec(**{"name": "Pwr", **fields})  # type: ignore[arg-type]


def test_keys_of_the_truth_are_the_labels_of_the_series() -> None:
    assert list(BmcSpec(name="node7", signal=Constant(1.0)).truth) == ["node7/total"]
    assert len(set(BMC_FAULTS)) == len(BMC_FAULTS)


def test_findings_of_a_bmc_with_an_uncertain_node(tmp_path: Path, fleet: Fleet, opened: list[IpmiCollector]) -> None:
    fleet.bmcs = {"n1": FakeBmc(records=[named("PSU1 Input")])}
    fleet.bmcs["n1"].readings = {1: bytes((75, 0xC0))}
    options = IpmiOptions(targets=[target(address="n1", password_file=password_file(tmp_path))], in_band=False)
    collector = IpmiCollector.open(Host(dev=tmp_path), options)
    opened.append(collector)
    collector.settle(5.0)
    assert all(isinstance(finding, Finding) for finding in collector.findings)
    _, found, note = collector.findings
    assert found.text == "n1: psu1_input from SDR (part)"
    assert "sensor of the whole server unknown" in note.text
