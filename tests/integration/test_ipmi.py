"""BMCs over real sockets: emulated BMCs, OpenIPMI's simulator, many BMCs at once, and the kernel's device."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector, IpmiOptions, IpmiTarget
from joulewatch_exporter.emulator.bmc import Bmc, BmcSpec, SdrSensorSpec, write_targets
from joulewatch_exporter.emulator.faults import Fault
from joulewatch_exporter.emulator.signals import Constant, Points
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Host, Reading, Sensor
from support.collectors import findings
from support.ipmi import fleet
from support.ipmi.simulator import ADMIN, MONITOR, IpmiSim, compile_shared, free_udp_port, ipmitool

pytestmark = pytest.mark.integration

LIMIT_S = 30.0
"""Limit for what normally takes a second or two."""
USER = ("monitor", "emulated")


@pytest.fixture
def bmcs(tmp_path: Path) -> Iterator[Callable[..., Bmc]]:
    """Return a function that starts an emulated BMC; its arguments are the fields of ``BmcSpec``."""
    started: list[Bmc] = []

    def start(name: str = "n1", watts: float = 312.0, **fields: Any) -> Bmc:
        bmc = Bmc(BmcSpec(name=name, signal=fields.pop("signal", Constant(watts)), **fields), tmp_path)
        started.append(bmc)
        bmc.advance(0.0)
        return bmc

    yield start
    for bmc in started:
        bmc.close()


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[IpmiSim]:
    sim = IpmiSim(tmp_path / "sim")
    sim.start()
    yield sim
    sim.stop()


@pytest.fixture
def read_bmcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., IpmiCollector]]:
    """Return a function that opens a collector and waits for all targets; intervals may be shorter than for users."""
    monkeypatch.setattr("joulewatch_exporter.collectors.ipmi.collector._MIN_INTERVAL_S", 0.1)
    opened: list[IpmiCollector] = []

    def start(*targets: IpmiTarget, **options: Any) -> IpmiCollector:
        settings = {"in_band": False, "interval_seconds": 0.2, "deadline_seconds": 0.5, **options}
        collector = IpmiCollector.open(Host(dev=tmp_path), IpmiOptions(targets=targets, **settings))
        opened.append(collector)
        collector.settle(LIMIT_S)
        return collector

    yield start
    for collector in opened:
        collector.close()


def secret(folder: Path, text: str) -> Path:
    path = folder / f"{text}.password"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return path


def at(port: int, name: str = "n1", *, user: tuple[str, str] = USER, folder: Path, **fields: Any) -> IpmiTarget:
    """Return the target of a BMC on loopback."""
    return IpmiTarget(
        name=name, address="127.0.0.1", user=user[0], password_file=secret(folder, user[1]), port=port, **fields
    )


def sensor_of(collector: IpmiCollector, device: str = "n1") -> Sensor:
    return next(sensor for sensor in collector.sensors if sensor.device == device)


def until(collector: IpmiCollector, accept: Callable[[Sequence[Reading]], bool], device: str = "n1") -> list[Reading]:
    """Scan until ``accept`` is true for the readings of a scan; return these readings."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            readings = list(sensor_of(collector, device).read())
        except SensorError:
            readings = []
        if readings and accept(readings):
            return readings
        time.sleep(0.05)
    raise AssertionError(f"{device}: {collector.findings}")


def until_error(collector: IpmiCollector, kind: type[SensorError], text: str = "", device: str = "n1") -> SensorError:
    """Scan until the device fails with this error; return it."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            sensor_of(collector, device).read()
        except SensorError as error:
            if type(error) is kind and text in str(error):
                return error
        time.sleep(0.05)
    raise AssertionError(f"{device}: {collector.findings}")


def newest_watts(readings: Sequence[Reading]) -> dict[str, float | None]:
    return {reading.quantity.domain: reading.power_watts for reading in readings}


# -- emulated BMC, read by other programs ----------------------------------------------------------


@pytest.mark.parametrize("suite", [3, 17])
def test_ipmitool_reads_the_emulated_bmc(bmcs: Callable[..., Bmc], suite: int) -> None:
    sensors = (SdrSensorSpec(name="Pwr Consumption"), SdrSensorSpec(name="PSU1 Input", share=0.5, m=2))
    bmc = bmcs(watts=312.0, sensors=sensors)

    def run(*command: str) -> str:
        return ipmitool(bmc.port, USER, *command, suite=suite, privilege="USER")

    reading = run("dcmi", "power", "reading")
    assert "Instantaneous power reading:                   312 Watts" in reading
    assert "Power reading state is:                   activated" in reading
    assert run("raw", "0x2c", "2", "0xdc", "1", "0", "0").split()[:3] == ["dc", "38", "01"]
    rows = [[cell.strip() for cell in line.split("|")] for line in run("sdr", "elist").splitlines()]
    assert rows == [
        ["Pwr Consumption", "01h", "ok", "7.1", "312 Watts"],
        ["PSU1 Input", "02h", "ok", "7.1", "156 Watts"],
    ]
    assert "Firmware Revision         : 2.10" in run("mc", "info")
    assert bmc.session_count == 0, "ipmitool logs out after each command"


def test_ipmitool_logins_are_denied_as_by_a_real_bmc(bmcs: Callable[..., Bmc]) -> None:
    bmc = bmcs()
    wrong = ipmitool(bmc.port, ("monitor", "wrong"), "mc", "info", privilege="USER")
    assert "Unable to establish IPMI v2 / RMCP+ session" in wrong
    unknown = ipmitool(bmc.port, ("nobody", "wrong"), "-v", "mc", "info", privilege="USER")
    assert "unauthorized name" in unknown
    too_high = ipmitool(bmc.port, USER, "-v", "mc", "info", privilege="ADMINISTRATOR")
    assert "Unable to establish IPMI v2 / RMCP+ session" in too_high


PYGHMI_READS = """
    import json, sys
    from pyghmi.ipmi import command
    bmc = command.Command(bmc="127.0.0.1", port=int(sys.argv[1]), userid=b"monitor", password=b"emulated", privlevel=2)
    dcmi = bmc.xraw_command(netfn=0x2C, command=2, data=(0xDC, 1, 0, 0))["data"]
    sensors = [(s.name, s.value, s.units, s.imprecision, s.unavailable) for s in bmc.get_sensor_data()]
    bmc.ipmi_session.logout()
    print(json.dumps({"watts": dcmi[1] | dcmi[2] << 8, "sensors": sensors}))
"""


@pytest.mark.parametrize("suites", [(3,), (17,)])
def test_pyghmi_reads_the_emulated_bmc(bmcs: Callable[..., Bmc], suites: tuple[int, ...]) -> None:
    """In a separate process, because pyghmi's default client has global state."""
    bmc = bmcs(watts=312.0, cipher_suites=suites)
    assert run_python(PYGHMI_READS, str(bmc.port)) == {
        "watts": 312,
        "sensors": [["Pwr Consumption", 312.0, "W", pytest.approx(4.0), 0]],
    }


def run_python(code: str, *arguments: str, **environment: str) -> Any:
    """Run a script; return what it prints as JSON."""
    package = Path(__file__).parents[2] / "exporter"
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


# -- emulated BMC, read by the collector -----------------------------------------------------------


@pytest.mark.parametrize("suites", [(3,), (17,), (3, 17)])
def test_dcmi_is_read_with_each_cipher(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path, suites: tuple[int, ...]
) -> None:
    bmc = bmcs(watts=311.6, cipher_suites=suites)
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    assert newest_watts(until(collector, bool)) == {"total": 312.0}
    assert bmc.session_count == 1
    collector.close()
    deadline_s = time.monotonic() + LIMIT_S
    while bmc.session_count and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert bmc.session_count == 0, "the collector has not logged out"


def test_a_bmc_over_ipv6(bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path) -> None:
    try:
        bmc = bmcs(address="::1")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 on loopback: {error}")
    target = IpmiTarget(name="n1", address="::1", user=USER[0], password_file=secret(tmp_path, USER[1]), port=bmc.port)
    collector = read_bmcs(target)
    assert newest_watts(until(collector, bool)) == {"total": 312.0}
    assert sensor_of(collector).infos[0].source == f"ipmi://[::1]:{bmc.port} DCMI power reading"


def test_only_the_owner_can_read_the_emulators_password(bmcs: Callable[..., Bmc]) -> None:
    bmc = bmcs()
    assert bmc.password_file.read_text() == "emulated\n"
    assert bmc.password_file.stat().st_mode & 0o777 == 0o600
    bmc.close()
    bmc.close()
    assert not bmc.password_file.exists()


def test_without_dcmi_node_and_parts_are_read(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    sensors = (
        SdrSensorSpec(name="Pwr Consumption"),
        SdrSensorSpec(name="PSU1 Input", share=0.6, m=2),
        SdrSensorSpec(name="PSU2 Input", share=0.4, m=5, b=10, result_exponent=-1, b_exponent=1),
    )
    bmc = bmcs(watts=300.0, has_dcmi=False, sensors=sensors)
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    assert newest_watts(until(collector, bool)) == {"total": 300.0, "psu1_input": 180.0, "psu2_input": 120.0}
    (finding,) = findings(collector, "found")
    assert finding.text == "n1: total from SDR (node), psu1_input from SDR (part), psu2_input from SDR (part)"


FAULTS: list[tuple[str, type[SensorError], str]] = [
    ("glitch", SensorGlitchError, "no value now"),
    ("busy", SensorGlitchError, "busy"),
    ("inactive", SensorGlitchError, "not measuring"),
    ("zero", SensorGlitchError, "0 W"),
    ("garbage", SensorGlitchError, "all bits are ones"),
    ("denied", SensorDeniedError, "privilege"),
    ("hang", SensorTimeoutError, "no answer within 0.5 s"),
    ("vanish", SensorAbsentError, "port closed"),
]


@pytest.mark.parametrize(("kind", "error", "text"), FAULTS)
def test_faults_are_errors(
    bmcs: Callable[..., Bmc],
    read_bmcs: Callable[..., IpmiCollector],
    tmp_path: Path,
    kind: str,
    error: type[SensorError],
    text: str,
) -> None:
    bmc = bmcs(faults=(Fault(kind=kind, at_s=10.0, for_s=10.0),))
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    until(collector, bool)
    bmc.advance(15.0)
    until_error(collector, error, text)
    bmc.advance(25.0)
    if kind != "denied":  # retried after 300 s, because the BMC could lock the account
        assert newest_watts(until(collector, bool)) == {"total": 312.0}


def test_a_measurement_that_is_reported_as_deactivated_is_believed_once_it_changes(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    fault = Fault(kind="misreported", at_s=0.0, for_s=math.inf)
    signal = Points(times_s=(0.0, 100.0), watts=(300.0, 400.0), is_linear=True)
    bmc = bmcs(signal=signal, has_sdr=False, faults=(fault,))
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    until_error(collector, SensorGlitchError, "its 300 W are ignored until they change")
    bmc.advance(20.0)
    until(collector, lambda readings: readings[-1].power_watts == 310.0)  # the mean of 20 s
    (finding,) = findings(collector, "found")
    assert finding.text.endswith("reported as deactivated, but its watts change, so they are used")


def test_a_deactivated_measurement_is_replaced_by_a_sensor_until_it_runs(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    """A misreported value that does not change cannot be distinguished from one that is not measured."""
    bmc = bmcs(watts=300.0, faults=(Fault(kind="misreported", at_s=0.0, for_s=10.0),))
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    until(collector, bool)
    (finding,) = findings(collector, "found")
    assert finding.text == "n1: total from SDR (node); its DCMI measurement is deactivated"
    bmc.advance(11.0)
    deadline_s = time.monotonic() + LIMIT_S
    while sensor_of(collector).infos[0].model != "DCMI":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["glitch", "inactive", "zero", "garbage"])
def test_faults_of_a_sensor_are_glitches(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path, kind: str
) -> None:
    bmc = bmcs(has_dcmi=False, faults=(Fault(kind=kind, at_s=10.0, for_s=10.0),))
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    until(collector, bool)
    bmc.advance(15.0)
    until_error(collector, SensorGlitchError)
    bmc.advance(25.0)
    assert newest_watts(until(collector, bool)) == {"total": 312.0}


def test_a_restarted_bmc_costs_one_late_reading(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    """It has lost the session and does not answer: the collector logs in again within the same deadline."""
    bmc = bmcs(
        signal=Points(times_s=(0.0, 10.0), watts=(300.0, 400.0)),
        faults=(Fault(kind="reset", at_s=10.0),),
    )
    collector = read_bmcs(at(bmc.port, folder=tmp_path), deadline_seconds=2.0)
    until(collector, bool)
    bmc.advance(10.5)
    bmc.advance(11.5)
    sensor = sensor_of(collector)
    deadline_s = time.monotonic() + LIMIT_S
    while sensor.read()[-1].power_watts != 400.0:  # raises if it fails even once
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_the_value_changes_at_the_refresh_time_of_the_bmc(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    bmc = bmcs(signal=Points(times_s=(0.0, 100.0), watts=(100.0, 300.0), is_linear=True), refresh_s=10.0)
    collector = read_bmcs(at(bmc.port, folder=tmp_path))
    bmc.advance(19.9)
    until(collector, lambda readings: readings[-1].power_watts == 120.0)  # the mean since the last update
    bmc.advance(21.0)
    until(collector, lambda readings: readings[-1].power_watts == 141.0)


def test_denied_logins_name_the_target_but_not_the_password(
    bmcs: Callable[..., Bmc],
    read_bmcs: Callable[..., IpmiCollector],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    bmc = bmcs(dcmi_privilege="operator", cipher_suites=(17,))
    wrong = ("monitor", "hunter2-never-shown")
    collector = read_bmcs(
        at(bmc.port, "password", user=wrong, folder=tmp_path),
        at(bmc.port, "user", user=("nobody", USER[1]), folder=tmp_path),
        at(bmc.port, "role", privilege="administrator", folder=tmp_path),
        at(bmc.port, "dcmi", folder=tmp_path),
    )
    texts = {
        "password": "wrong password for user monitor; correct `password_file`",
        "user": "the BMC has no user nobody for IPMI over LAN; correct `user`",
        "role": "the BMC does not grant this privilege to monitor; lower `privilege`, or raise it in the BMC",
        "dcmi": "DCMI power reading: the user's privilege is insufficient (D4h); raise `privilege` of the target",
    }
    outputs = [caplog.text, repr(collector.findings)]
    for device, text in texts.items():
        error = until_error(collector, SensorDeniedError, device=device)
        assert str(error).startswith(f"{device} (127.0.0.1:{bmc.port}): {text}")
        outputs += [str(error), repr(error)]
    assert [finding.status for finding in collector.findings if "127.0.0.1" in finding.subject] == ["denied"] * 4
    for password in (wrong[1], USER[1]):
        assert password not in "".join(outputs).replace(f"{password}.password", "")


def test_unreachable_addresses_are_errors_with_the_address(
    read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        collector = read_bmcs(
            at(silent.getsockname()[1], "silent", folder=tmp_path),
            at(free_udp_port(), "closed", folder=tmp_path),
            IpmiTarget(
                name="unknown", address="no-such-bmc.invalid", user=USER[0], password_file=secret(tmp_path, USER[1])
            ),
        )
        port = silent.getsockname()[1]
        error: SensorError = until_error(collector, SensorTimeoutError, device="silent")
        assert f"127.0.0.1:{port}): no answer within 0.5 s; check that the BMC is up and UDP port {port}" in str(error)
        error = until_error(collector, SensorAbsentError, device="closed")
        assert "nothing listens at this address (port closed); check the address" in str(error)
        error = until_error(collector, SensorAbsentError, device="unknown")
        assert "no-such-bmc.invalid:623): the name cannot be resolved" in str(error)


def test_noise_on_the_port_is_ignored(tmp_path: Path) -> None:
    """With any bytes as answers the login times out."""
    noise = [b"", b"\x06", b"\x06\x00\xff\x07", b"\x06\x00\xff\x07" + bytes(40), b"\x06\x00\xff\x07\x06" + b"\xff" * 60]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(LIMIT_S)
        collector = open_without_waiting(tmp_path, at(server.getsockname()[1], folder=tmp_path))
        try:
            _, client = server.recvfrom(4096)
            for packet in noise:
                server.sendto(packet, client)
            collector.settle(LIMIT_S)
            until_error(collector, SensorTimeoutError)
        finally:
            collector.close()


def open_without_waiting(folder: Path, *targets: IpmiTarget) -> IpmiCollector:
    options = IpmiOptions(targets=targets, in_band=False, interval_seconds=1.0, deadline_seconds=1.0)
    return IpmiCollector.open(Host(dev=folder), options)


def test_a_target_file_is_followed_and_unchanged_targets_keep_their_sessions(
    bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    first, second, third = (bmcs(name, watts) for name, watts in (("a", 100.0), ("b", 200.0), ("c", 300.0)))
    file = tmp_path / "bmcs.yaml"
    write_targets([first, second], file)
    collector = read_bmcs(targets_file=file)
    for device in ("a", "b"):
        until(collector, bool, device)
    session = sensor_of(collector, "b")
    write_targets([second, third], file)
    deadline_s = time.monotonic() + LIMIT_S
    while {sensor.device for sensor in collector.sensors} != {"b", "c"}:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert newest_watts(until(collector, bool, "c")) == {"total": 300.0}
    assert sensor_of(collector, "b") is session
    assert (second.session_count, third.session_count) == (1, 1)
    while first.session_count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    file.write_text("targets: 1\n")
    while not findings(collector, "broken"):
        assert time.monotonic() < deadline_s
        assert len(collector.sensors) == 2
        time.sleep(0.05)
    assert second.session_count == 1


def test_logins_leak_nothing(bmcs: Callable[..., Bmc]) -> None:
    """After more logins than a BMC has sessions, no socket, session or entry in pyghmi's tables is left."""
    from pyghmi.ipmi.private import simplesession

    from joulewatch_exporter.collectors.ipmi.lan import LanChannel

    bmc = bmcs(faults=(Fault(kind="hang", at_s=10.0, for_s=10.0),))

    def channel(deadline_s: float = 5.0) -> LanChannel:
        credentials = (b"monitor", b"emulated", None)
        return LanChannel("n1", "127.0.0.1", bmc.port, lambda: credentials, 2, user="monitor", deadline_s=deadline_s)

    channel().close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(40):
        opened = channel()
        assert opened.send(0x2C, 2, b"\xdc\x01\x00\x00")[0] == 0
        opened.close()
        opened.close()
    hung = channel(0.1)
    bmc.advance(15.0)
    with pytest.raises(SensorTimeoutError):
        hung.send(0x2C, 2, b"\xdc\x01\x00\x00")
    for _ in range(3):
        with pytest.raises(SensorTimeoutError):
            channel(0.05)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert simplesession.Session.keepalive_sessions == {}


def test_lost_packets_are_sent_again(bmcs: Callable[..., Bmc]) -> None:
    """Ten percent of all packets are lost, in both directions."""
    from joulewatch_exporter.collectors.ipmi.lan import LanChannel

    bmc = bmcs()
    credentials = (b"monitor", b"emulated", None)
    with lossy_port(bmc.port, share=0.1) as (port, lost):
        channel = LanChannel("n1", "127.0.0.1", port, lambda: credentials, 2, user="monitor", deadline_s=5.0)
        for _ in range(20):
            code, answer = channel.send(0x2C, 2, b"\xdc\x01\x00\x00")
            assert (code, answer[1:3]) == (0, b"\x38\x01")
        channel.close()
    assert lost


@contextlib.contextmanager
def lossy_port(port: int, *, share: float) -> Iterator[tuple[int, list[int]]]:
    """Yield a port that forwards to the BMC and drops packets, and a list with the sizes of dropped packets."""
    dice = random.Random(1)
    lost: list[int] = []
    with contextlib.ExitStack() as sockets, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.bind(("127.0.0.1", 0))
        far_sockets: dict[Any, socket.socket] = {}
        is_ending = threading.Event()

        def forward() -> None:
            while not is_ending.is_set():
                for ready in select.select([near, *far_sockets.values()], [], [], 0.05)[0]:
                    data, client = ready.recvfrom(4096)
                    if ready is near and client not in far_sockets:
                        far = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                        far_sockets[client] = far
                        far.connect(("127.0.0.1", port))
                    if dice.random() < share:
                        lost.append(len(data))
                    elif ready is near:
                        far_sockets[client].send(data)
                    else:
                        near.sendto(data, next(client for client, far in far_sockets.items() if far is ready))

        thread = threading.Thread(target=forward)
        thread.start()
        try:
            yield near.getsockname()[1], lost
        finally:
            is_ending.set()
            thread.join()


def test_an_idle_session_is_replaced(bmcs: Callable[..., Bmc], monkeypatch: pytest.MonkeyPatch) -> None:
    """A BMC closes a session that is idle for a minute: with a longer interval, each reading logs in."""
    from joulewatch_exporter.collectors.ipmi import lan

    bmc = bmcs()
    credentials = (b"monitor", b"emulated", None)
    channel = lan.LanChannel("n1", "127.0.0.1", bmc.port, lambda: credentials, 2, user="monitor", deadline_s=5.0)
    assert channel.send(0x06, 0x01)[0] == 0
    first = channel._session
    assert channel.send(0x06, 0x01)[0] == 0
    assert channel._session is first
    monkeypatch.setattr(lan, "IDLE_S", -1.0)
    assert channel.send(0x06, 0x01)[0] == 0
    assert channel._session is not first
    assert bmc.session_count == 1
    channel.close()


@pytest.mark.parametrize("command", ["check", "--once"])
def test_passwords_are_not_in_the_output_of_commands(bmcs: Callable[..., Bmc], tmp_path: Path, command: str) -> None:
    """The real program with a healthy BMC, one with a wrong password, and one that does not exist."""
    bmc = bmcs("well", 250.0)
    wrong = secret(tmp_path, "hunter2-never-shown").rename(tmp_path / "wrong")
    file = tmp_path / "bmcs.yaml"
    write_targets(
        [bmc],
        file,
        more=[
            f"  - {{name: wrong, address: 127.0.0.1, port: {bmc.port}, user: monitor, password_file: {wrong.name}}}",
            f"  - {{name: gone, address: 127.0.0.1, port: {free_udp_port()}, user: mon, password_file: {wrong.name}}}",
        ],
    )
    config = tmp_path / "exporter.yaml"
    config.write_text(f"collectors:\n  ipmi: {{in_band: false, deadline_seconds: 2, targets_file: {file}}}\n")
    answer = subprocess.run(
        [sys.executable, "-m", "joulewatch_exporter", command, f"--config.file={config}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "exporter")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    output = answer.stdout + answer.stderr
    assert answer.returncode == 0, output
    assert "hunter2" not in output
    assert "emulated\n" not in output
    assert "wrong password for user monitor" in " ".join(output.split())
    assert "250" in output


# -- OpenIPMI's BMC, read by the collector ---------------------------------------------------------


def test_collector_and_ipmitool_read_the_same_from_the_simulator(
    simulator: IpmiSim, read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    simulator.set_power(316)
    assert "316 Watts" in ipmitool(simulator.port, ADMIN, "dcmi", "power", "reading")
    assert "D4" in ipmitool(simulator.port, MONITOR, "-L", "USER", "dcmi", "power", "reading").upper()
    collector = read_bmcs(
        at(simulator.port, "admin", user=ADMIN, folder=tmp_path, privilege="administrator"),
        at(simulator.port, "mon", user=MONITOR, folder=tmp_path),
        at(simulator.port, "sdr", user=MONITOR, folder=tmp_path, read="sdr"),
        at(simulator.port, "wrong", user=(MONITOR[0], ADMIN[1]), folder=tmp_path),
        at(simulator.port, "nobody", user=("nobody", ADMIN[1]), folder=tmp_path),
    )
    assert newest_watts(until(collector, bool, "admin")) == {"total": 316.0}
    until(collector, lambda readings: readings[-1].power_watts == 316.0, "sdr")
    assert sensor_of(collector, "sdr").infos[0].resolution == "4 W"
    until_error(collector, SensorDeniedError, "(D4h); raise `privilege`", "mon")
    until_error(collector, SensorDeniedError, "wrong password for user mon", "wrong")
    until_error(collector, SensorDeniedError, "no user nobody", "nobody")
    simulator.set_power(480)
    until(collector, lambda readings: readings[-1].power_watts == 480.0, "admin")
    until(collector, lambda readings: readings[-1].power_watts == 480.0, "sdr")
    simulator.set_power(480, is_measuring=False)
    until_error(collector, SensorGlitchError, "not measuring", "admin")
    simulator.lose_power_reading()
    until_error(collector, SensorGlitchError, "CBh", "admin")


def test_a_bmc_with_a_key(tmp_path: Path, read_bmcs: Callable[..., IpmiCollector]) -> None:
    simulator = IpmiSim(tmp_path / "sim", key="key-of-the-bmc")
    simulator.start()
    try:
        right, wrong = secret(tmp_path, "key-of-the-bmc"), secret(tmp_path, "key-of-another")
        collector = read_bmcs(
            *(
                at(simulator.port, name, user=ADMIN, folder=tmp_path, privilege="administrator", kg_file=key)
                for name, key in (("right", right), ("wrong", wrong), ("none", None))
            )
        )
        assert newest_watts(until(collector, bool, "right")) == {"total": 300.0}
        for name in ("wrong", "none"):
            until_error(collector, SensorDeniedError, "wrong password or key of the BMC", name)
    finally:
        simulator.stop()


def test_a_hung_simulator_times_out_and_recovers(
    simulator: IpmiSim, bmcs: Callable[..., Bmc], read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    well = bmcs("well", 250.0)
    collector = read_bmcs(
        at(simulator.port, "sick", user=ADMIN, folder=tmp_path, privilege="administrator"),
        at(well.port, "well", folder=tmp_path),
    )
    until(collector, bool, "sick")
    simulator.hang()
    until_error(collector, SensorTimeoutError, "no answer within 0.5 s", "sick")
    started_ns = time.monotonic_ns()
    until(collector, lambda readings: readings[-1].read_at_ns > started_ns + 1_000_000_000, "well")
    until_error(collector, SensorTimeoutError, device="sick")
    simulator.wake()
    simulator.set_power(500)
    until(collector, lambda readings: readings[-1].power_watts == 500.0, "sick")


def test_a_restarted_simulator_is_read_again(
    simulator: IpmiSim, read_bmcs: Callable[..., IpmiCollector], tmp_path: Path
) -> None:
    collector = read_bmcs(at(simulator.port, user=ADMIN, folder=tmp_path, privilege="administrator"))
    until(collector, bool)
    simulator.stop()
    until_error(collector, SensorAbsentError, "port closed")
    simulator.set_power(500)
    simulator.start()
    until(collector, lambda readings: readings[-1].power_watts == 500.0)


# -- the kernel's device ---------------------------------------------------------------------------

IN_BAND = """
    import json, sys, time
    from pathlib import Path
    from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector, IpmiOptions
    from joulewatch_exporter.errors import SensorError
    from joulewatch_exporter.model import Host

    dev, values = Path(sys.argv[1]), Path(sys.argv[2])
    states = []

    def wait_for(collector, text):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                reading = collector.sensors[0].read()[-1]
                state = [reading.quantity.device, reading.quantity.domain, reading.power_watts]
            except SensorError as error:
                state = [type(error).__name__, str(error)]
            if text in json.dumps(state):
                break
            time.sleep(0.02)
        states.append(state)

    values.write_text("312 0 65535 305 1\\n")
    collector = IpmiCollector.open(Host(dev=dev), IpmiOptions(interval_seconds=1.0, deadline_seconds=0.5))
    collector.settle(10)
    wait_for(collector, "312")
    remote = collector.sensors[0].infos[0].is_remote
    values.write_text("hang\\n")
    wait_for(collector, "Timeout")
    values.write_text("400 0 65535 305 1\\n")
    wait_for(collector, "400")
    values.write_text("400 0 65535 305 0\\n")
    wait_for(collector, "Glitch")
    values.unlink()
    wait_for(collector, "neither DCMI")
    findings = [[finding.status, finding.subject] for finding in collector.findings]
    collector.close()
    print(json.dumps({"states": states, "findings": findings, "remote": remote}))
"""


def test_the_bmc_of_this_machine_is_read_through_the_kernels_device(tmp_path: Path) -> None:
    library = compile_shared("device.c", tmp_path / "device.so")
    device = tmp_path / "ipmi0"
    device.touch()
    values = tmp_path / "values"
    environment = {"LD_PRELOAD": str(library), "FAKE_IPMI": str(values), "FAKE_IPMI_PATH": str(device)}
    result = run_python(IN_BAND, str(tmp_path), str(values), **environment)
    first, hung, recovered, inactive, unsupported = result["states"]
    assert first == ["bmc", "total", 312.0]
    assert hung == ["SensorTimeoutError", f"{device}: no answer within 0.5 s; the BMC may hang"]
    assert recovered == ["bmc", "total", 400.0]
    assert inactive[0] == "SensorGlitchError"
    assert unsupported[0] == "SensorAbsentError"
    assert "neither DCMI nor sensor records" in unsupported[1]
    assert result["findings"] == [["absent", str(device)]]
    assert result["remote"] is False


def test_ipmitool_reads_the_same_device(tmp_path: Path) -> None:
    """Other programs accept the simulated device as a BMC."""
    from support.require import require_program

    library = compile_shared("device.c", tmp_path / "device.so")
    (tmp_path / "values").write_text("312 200 480 305 1\n")
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAKE_IPMI": str(tmp_path / "values")}
    command = [require_program("ipmitool", "ipmitool"), "-I", "open", "dcmi", "power", "reading"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Instantaneous power reading:                   312 Watts" in answer.stdout, answer.stderr


# -- many at once ----------------------------------------------------------------------------------

COUNT, HUNG, WRONG = 60, 3, 2

MANY = """
    import json, sys, threading, time
    from pathlib import Path
    from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector, IpmiOptions
    from joulewatch_exporter.errors import SensorError
    from joulewatch_exporter.model import Host

    options = IpmiOptions(targets_file=Path(sys.argv[1]), in_band=False, interval_seconds=2.0, deadline_seconds=2.0)
    collector = IpmiCollector.open(Host(), options)
    collector.settle(10)
    times, watts, errors = {}, {}, {}
    end = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        for sensor in collector.sensors:
            try:
                for reading in sensor.read():
                    times.setdefault(sensor.device, set()).add(reading.read_at_ns)
                    watts.setdefault(sensor.device, set()).add(reading.power_watts)
            except SensorError as error:
                errors.setdefault(sensor.device, set()).add(error.reason)
        time.sleep(0.2)
    gaps = {}
    for device, at in times.items():
        at = sorted(at)
        gaps[device] = max([b - a for a, b in zip(at, at[1:])], default=0) / 1e9
    rss = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024
    report = {
        "reads": {device: len(at) for device, at in times.items()},
        "gaps": gaps,
        "watts": {device: sorted(values) for device, values in watts.items()},
        "errors": {device: sorted(reasons) for device, reasons in errors.items()},
        "threads": threading.active_count(),
        "rss": rss,
    }
    collector.close()
    print(json.dumps(report))
"""


def test_many_bmcs_of_which_some_fail(tmp_path: Path) -> None:
    """Hung BMCs and denied logins do not delay the others; the benchmark does the same with 200 BMCs."""
    with fleet.running(tmp_path, COUNT, hung=HUNG) as file:
        wrong = secret(tmp_path, "not-this-one")
        text = file.read_text()
        for index in range(HUNG, HUNG + WRONG):
            text = text.replace(f"ipmi/{fleet.name_of(index)}.password", str(wrong))
        file.write_text(text)
        result = run_python(MANY, str(file), "9")
    failing = [fleet.name_of(index) for index in range(HUNG + WRONG)]
    healthy = [fleet.name_of(index) for index in range(HUNG + WRONG, COUNT)]
    assert result["errors"] == {
        **{device: ["timeout"] for device in failing[:HUNG]},
        **{device: ["denied"] for device in failing[HUNG:]},
    }
    assert sorted(result["reads"]) == healthy
    # 9 s with one reading every 2 s; on a busy machine one period may be lost.
    assert min(result["reads"].values()) >= 3
    assert max(result["gaps"].values()) < 4.0
    assert result["watts"] == {fleet.name_of(index): [fleet.power_of(index)] for index in range(HUNG + WRONG, COUNT)}, (
        "a BMC has the value of another one"
    )
    assert result["rss"] < 150
    assert result["threads"] <= COUNT + 1 + HUNG
