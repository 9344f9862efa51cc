"""The Redfish collector with real HTTPS services on loopback: the emulator's, and sushy-emulator."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from joulewatch_exporter.collectors.redfish import client
from joulewatch_exporter.collectors.redfish.collector import RedfishCollector, RedfishOptions, RedfishTarget
from joulewatch_exporter.collectors.redfish.device import RedfishDevice, Service
from joulewatch_exporter.config.strict import build
from joulewatch_exporter.emulator.faults import MOMENTARY_FAULTS, Fault
from joulewatch_exporter.emulator.redfish.service import RedfishService
from joulewatch_exporter.emulator.redfish.spec import RedfishSpec
from joulewatch_exporter.emulator.signals import Constant, Signal, Sine
from joulewatch_exporter.errors import (
    SensorAbsentError,
    SensorDeniedError,
    SensorError,
    SensorGlitchError,
    SensorTimeoutError,
)
from joulewatch_exporter.model import Host, Sensor
from support.redfish import by_label
from support.redfish_layouts import (
    enclosure,
    fujitsu,
    hgx,
    only_supplies,
    power_subsystem,
    r720,
    two_feeds,
    with_report,
)
from support.require import require_program
from support.servers import free_port
from support.waiting import wait_until

pytestmark = pytest.mark.integration

WAIT_S = 30.0
Start = Callable[..., RedfishService]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a service; its arguments are the fields of `RedfishSpec`."""
    services: list[RedfishService] = []

    def make(
        name: str = "bmc1", signal: Signal | None = None, documents: dict[str, Any] | None = None, **fields: Any
    ) -> RedfishService:
        spec = RedfishSpec(name=name, signal=signal or Constant(300.0), **fields)
        services.append(RedfishService(spec, tmp_path, documents))
        return services[-1]

    yield make
    for service in services:
        service.close()


def target_of(service: RedfishService, **fields: Any) -> RedfishTarget:
    """Return the target of a service; fields that are None are omitted."""
    values = service.target | fields
    return build(RedfishTarget, {key: value for key, value in values.items() if value is not None}, "test", "target")


class Connected(Service):
    """Records its devices, so that they are closed after the test."""

    devices: ClassVar[list[RedfishDevice]] = []

    def connect(self) -> RedfishDevice:
        device = super().connect()
        self.devices.append(device)
        return device


@pytest.fixture(autouse=True)
def no_device_left_open() -> Iterator[None]:
    yield
    while Connected.devices:
        Connected.devices.pop().close()


def connected(service: RedfishService, *, deadline_s: float = 10.0, **fields: Any) -> Service:
    return Connected(target_of(service, **fields), interval_s=1.0, deadline_s=deadline_s)


def fault(kind: str, at_s: float = 10.0, for_s: float = 10.0) -> Fault:
    return Fault(kind=kind, at_s=at_s, for_s=0.0 if kind in MOMENTARY_FAULTS else for_s)


@pytest.fixture
def open_collector() -> Iterator[Callable[[RedfishOptions], RedfishCollector]]:
    opened: list[RedfishCollector] = []

    def make(options: RedfishOptions) -> RedfishCollector:
        opened.append(RedfishCollector.open(Host(), options))
        return opened[-1]

    yield make
    for collector in opened:
        collector.close()


def values_of(collector: RedfishCollector) -> dict[str, str | float | None]:
    """Return the node's power, or the reason of the error, by device."""
    values: dict[str, str | float | None] = {}
    sensors: tuple[Sensor, ...] = tuple(collector.sensors)
    for sensor in sensors:
        try:
            values[sensor.device] = sensor.read()[-1].power_watts
        except SensorError as error:
            values[sensor.device] = error.reason
    return values


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["both", "modern", "classic"])
@pytest.mark.parametrize("energy", ["joules", "kwh", "none"])
def test_values_are_exact(start: Start, flavour: str, energy: str) -> None:
    signal = Sine(mean_watts=400.0, amplitude_watts=150.0, period_s=60.0)
    service = start(signal=signal, flavour=flavour, energy=energy, refresh_s=1.0, power_digits=2)
    device = connected(service).connect()
    has_counter = energy != "none" and flavour != "classic"
    (first, *_) = device.read()
    for before_s, t_s in itertools.pairwise((0.0, 1.0, 17.0, 300.0)):
        service.advance(t_s)
        node = device.read()[0]
        # A meter returns the mean since its last value.
        mean_watts = signal.energy_joules(before_s, t_s) / (t_s - before_s)
        assert node.power_watts == pytest.approx(mean_watts, abs=0.006)
        if has_counter:
            assert node.energy_joules is not None
            assert first.energy_joules is not None
            step_joules = 1.0 if energy == "joules" else 3600.0
            true_joules = signal.energy_joules(0.0, t_s)
            assert node.energy_joules - first.energy_joules == pytest.approx(true_joules, abs=step_joules)
        else:
            assert node.energy_joules is None
    device.close()
    assert service.session_count == 0


def test_all_polls_use_one_connection(start: Start) -> None:
    service = start()
    device = connected(service).connect()
    for _ in range(5):
        device.read()
    device.close()
    assert service.connection_count == 1
    assert [method for method, _ in service.requests].count("POST") == 1


def test_several_chassis_are_several_nodes(start: Start) -> None:
    service = start(chassis=("left", "right"), flavour="modern")
    assert by_label(connected(service).connect().read()).keys() == {"bmc1/left/total", "bmc1/right/total"}


def test_feeds_of_the_emulator_are_summed(start: Start) -> None:
    signal = Sine(mean_watts=400.0, amplitude_watts=150.0, period_s=60.0)
    service = start(signal=signal, flavour="classic", feeds=(0.87, 0.13), refresh_s=1.0, power_digits=3)
    device = connected(service).connect()
    device.read()
    for before_s, t_s in itertools.pairwise((0.0, 1.0, 17.0)):
        service.advance(t_s)
        mean_watts = signal.energy_joules(before_s, t_s) / (t_s - before_s)
        assert device.read()[0].power_watts == pytest.approx(mean_watts, abs=0.002)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, float], int]] = {
    "feeds": (two_feeds(344, 53), {"bmc1/total": 397.0}, 1),
    "enclosure": (enclosure(), {"bmc1/NodeA/total": 300.0, "bmc1/NodeB/total": 120.0}, 1),
    "ratings": (r720(), {"bmc1/total": 154.0}, 1),
    "vendor": (fujitsu(), {"bmc1/total": 160.0, "bmc1/psu0_input": 84.0}, 1),
    "supplies": (only_supplies(200, 150), {"bmc1/supply_inputs": 350.0}, 1),
    "subsystem": (power_subsystem(210.5, 180.0), {"bmc1/supply_inputs": 390.5, "bmc1/bay1_input": 210.5}, 2),
    "hgx": (hgx([611.0, 598.5], server_watts=4100.0), {"bmc1/total": 4100.0, "bmc1/hgx_gpu_sxm_1": 611.0}, 4),
    "report": (
        with_report(hgx([611.0] * 8, server_watts=8000.0)),
        {"bmc1/total": 8000.0, "bmc1/hgx_gpu_sxm_8": 611.0},
        2,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_vendors(start: Start, layout: str) -> None:
    """Each is served over HTTPS; a poll takes few requests, because real services are slow."""
    documents, expected, requests = LAYOUTS[layout]
    service = start(documents=documents)
    device = connected(service).connect()
    device.read()
    before = len(service.requests)
    readings = {label: watts for label, (_, watts) in by_label(device.read()).items()}
    assert readings.items() >= expected.items()
    assert len(service.requests) - before == requests


# -- certificates -----------------------------------------------------------------------------------------


def test_the_certificate_is_verified(start: Start) -> None:
    service, other = start(), start("other")
    good: list[dict[str, Any]] = [
        {},
        {"ca_file": None, "fingerprint": service.fingerprint},
        {"ca_file": None, "fingerprint": service.fingerprint.lower().replace(":", "")},
        {"ca_file": None, "insecure": True},
    ]
    for fields in good:
        device = connected(service, **fields).connect()
        assert device.read()[0].power_watts == 300.0
        device.close()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": str(other.ca_file)}, "its certificate is not trusted"),
        ({"ca_file": None}, "its certificate is not trusted"),
        ({"ca_file": None, "fingerprint": other.fingerprint}, "its certificate is not the pinned one"),
    ]
    for fields, text in bad:
        before = len(service.requests)
        redfish = connected(service, **fields)
        with pytest.raises(SensorDeniedError) as caught:
            redfish.connect()
        assert text in str(caught.value)
        assert f"127.0.0.1:{service.port}" in str(caught.value)
        assert redfish.findings[0].cure == f"fingerprint: {service.fingerprint}"
        assert len(service.requests) == before, "a request was sent"


def test_a_certificate_for_another_name_is_not_trusted(start: Start) -> None:
    service = start()
    url = f"https://localhost:{service.port}"
    with pytest.raises(SensorDeniedError, match="Hostname mismatch"):
        connected(service, url=url).connect()
    connected(service, url=url, ca_file=None, fingerprint=service.fingerprint).connect().close()


def test_environment_variables_do_not_override_the_certificates(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    service, other = start(), start("other")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(service.ca_file))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(service.ca_file))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(SensorDeniedError):
        connected(service, ca_file=None).connect()
    with pytest.raises(SensorDeniedError):
        connected(service, ca_file=str(other.ca_file)).connect()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.ca_file))
    assert connected(service).connect().read()[0].power_watts == 300.0


def test_a_server_without_tls_is_absent(start: Start) -> None:
    service = start()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(SensorAbsentError, match="TLS: "):
            connected(service, url=url).connect()
        thread.join(5)


def test_certificates_are_made_with_openssl_without_the_library(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Openssl is used if the library cryptography is missing."""
    require_program("openssl", "openssl")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    service = start()
    assert connected(service).connect().read()[0].power_watts == 300.0


# -- sessions --------------------------------------------------------------------------------------


def test_a_wrong_password_is_tried_only_once(
    start: Start, tmp_path: Path, open_collector: Callable[[RedfishOptions], RedfishCollector]
) -> None:
    """A BMC locks an account after a few attempts."""
    service = start()
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter2\n")
    target = target_of(service, password_file=str(wrong), interval_seconds=1.0)
    collector = open_collector(RedfishOptions(targets=(target,)))
    collector.settle(WAIT_S)
    time.sleep(1.2)  # longer than the interval
    assert values_of(collector) == {"bmc1": "denied"}
    assert [method for method, _ in service.requests].count("POST") == 1
    (finding,) = collector.findings
    assert (finding.status, "hunter2" in repr(finding)) == ("denied", False)


@pytest.mark.parametrize("auth", ["session", "basic"])
def test_both_kinds_of_login(start: Start, auth: str) -> None:
    service = start(password="pässword with spaces")
    device = connected(service, auth=auth).connect()
    assert device.read()[0].power_watts == 300.0
    assert service.session_count == (1 if auth == "session" else 0)
    device.close()
    assert service.session_count == 0


def test_twenty_reconnects_leak_no_session(start: Start) -> None:
    """The service allows four sessions; if they leaked, nobody could log in."""
    service = start(max_sessions=4)
    redfish = connected(service)
    for _ in range(20):
        device = redfish.connect()
        device.read()
        assert service.session_count == 1
        device.close()
    assert service.session_count == 0


def test_sessions_kept_by_a_hanging_service_are_ended_after_it_recovered(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LOGOUT_S", 0.2)
    faults = tuple(fault("hang", 10.0 * i, 5.0) for i in range(1, 5))
    service = start(max_sessions=2, faults=faults)
    redfish = connected(service, deadline_s=1.0)
    for i in range(4):
        device = redfish.connect()
        device.read()
        assert service.session_count == 1, "earlier sessions were not ended"
        service.advance(10.0 * (i + 1))
        with pytest.raises(SensorTimeoutError):
            device.read()
        device.close()
        service.advance(10.0 * (i + 1) + 5.0)
    device = redfish.connect()
    device.read()
    device.close()
    assert service.session_count == 0


def test_an_expired_session_is_renewed(start: Start) -> None:
    service = start(faults=(fault("expired"),))
    device = connected(service).connect()
    device.read()
    service.advance(10.0)
    assert service.session_count == 0
    assert device.read()[0].power_watts == 300.0
    assert service.session_count == 1
    device.close()
    assert service.session_count == 0


def test_a_session_that_was_idle_for_too_long_is_renewed(start: Start) -> None:
    service = start(session_timeout_s=0.5)
    device = connected(service).connect()
    device.read()
    time.sleep(1.0)
    assert device.read()[0].power_watts == 300.0


def test_a_service_without_a_free_session_is_retried(start: Start) -> None:
    service = start(max_sessions=1)
    first = connected(service).connect()
    first.read()
    second = connected(service)
    with pytest.raises(SensorTimeoutError, match="all sessions of the service are in use"):
        second.connect()
    first.close()
    second.connect().close()


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("glitch", SensorGlitchError),
        ("busy", SensorGlitchError),
        ("broken", SensorGlitchError),
        ("denied", SensorDeniedError),
        ("hang", SensorTimeoutError),
        ("vanish", SensorAbsentError),
    ],
)
def test_faults_are_errors_until_they_end(start: Start, kind: str, error: type[SensorError]) -> None:
    service = start(faults=(fault(kind),), refresh_s=1.0)
    redfish = connected(service, deadline_s=0.5)
    device = redfish.connect()
    before = by_label(device.read())
    service.advance(10.0)
    with pytest.raises(error):
        device.read()
    service.advance(20.0)
    if error is not SensorGlitchError:
        device.close()  # as the poller does
        device = redfish.connect()
    after = by_label(device.read())
    assert after["bmc1/total"][0] == before["bmc1/total"][0] + 20 * 300
    assert redfish.findings[0].status == "found"


@pytest.mark.parametrize(("kind", "watts"), [("zero", None), ("garbage", 4294967295.0), ("stuck", 300.0)])
def test_a_service_with_wrong_values(start: Start, kind: str, watts: float | None) -> None:
    """0 W is skipped; implausible power is passed on, because the sampler rejects it."""
    service = start(
        faults=(fault(kind),), refresh_s=1.0, signal=Sine(mean_watts=300.0, amplitude_watts=100.0, period_s=40.0)
    )
    device = connected(service).connect()
    device.read()
    service.advance(10.0)
    (node, *parts) = device.read()
    assert node.power_watts == watts
    if kind == "zero":
        assert not parts


def test_a_reset_restarts_the_counter_but_not_the_lifetime_counter(start: Start) -> None:
    for has_lifetime in (False, True):
        service = start(f"bmc{has_lifetime}", faults=(fault("reset"),), has_lifetime=has_lifetime, refresh_s=1.0)
        device = connected(service).connect()
        (before, *_) = device.read()
        service.advance(12.0)
        (after, *_) = device.read()
        assert before.energy_joules == 4.4e9
        assert after.energy_joules == (4.4e9 + 3600.0 if has_lifetime else 0.0)


def test_a_slow_answer_ends_at_the_deadline(start: Start) -> None:
    """Each byte arrives in time, but not the whole answer."""
    service = start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(service.ca_file, service.ca_file.with_suffix(".key"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(10000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    for _ in range(1000):
                        connection.sendall(b" ")
                        time.sleep(0.05)
                except OSError:
                    pass

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        redfish = connected(service, url=f"https://127.0.0.1:{listener.getsockname()[1]}", deadline_s=0.4)
        started_s = time.monotonic()
        with pytest.raises(SensorTimeoutError, match=r"no answer within 0\.4 s"):
            redfish.connect()
        assert time.monotonic() - started_s < 10.0, "the whole answer takes 50 s"
        thread.join(10)


# -- many ------------------------------------------------------------------------------------------


def test_many_services_two_of_which_hang(
    start: Start, open_collector: Callable[[RedfishOptions], RedfishCollector]
) -> None:
    """The others are not delayed, and the two are read once they answer."""
    services = [
        start(f"bmc{i}", Constant(100.0 + i), faults=(fault("hang", 5.0, 5.0),) if i in (7, 19) else ())
        for i in range(30)
    ]
    for service in services:
        service.advance(5.0)
    targets = tuple(target_of(service, interval_seconds=1.0, parts=False) for service in services)
    collector = open_collector(RedfishOptions(targets=targets, deadline_seconds=1.0))
    hung = {"bmc7", "bmc19"}
    healthy = {f"bmc{i}": 100.0 + i for i in range(30) if f"bmc{i}" not in hung}
    wait_until(lambda: healthy.items() <= values_of(collector).items(), "28 services with their values")
    wait_until(lambda: all(values_of(collector).get(name) == "timeout" for name in hung), "two timeouts")
    assert {finding.status for finding in collector.findings if "found" not in finding.status} == {"broken"}
    for service in services:
        service.advance(10.0)
    expected = healthy | {"bmc7": 107.0, "bmc19": 119.0}
    wait_until(lambda: values_of(collector) == expected, "30 services with their values")
    collector.close()
    wait_until(
        lambda: not any(thread.name.startswith("poll-bmc") for thread in threading.enumerate()),
        "the end of all threads",
    )
    assert [service.session_count for service in services] == [0] * 30


def test_a_service_disappears_and_returns(
    start: Start, open_collector: Callable[[RedfishOptions], RedfishCollector]
) -> None:
    service = start(faults=(fault("vanish"),))
    target = target_of(service, interval_seconds=1.0)
    collector = open_collector(RedfishOptions(targets=(target,), deadline_seconds=1.0))
    collector.settle(WAIT_S)
    (sensor,) = collector.sensors
    service.advance(10.0)
    wait_until(lambda: values_of(collector) == {"bmc1": "absent"}, "absent")
    service.advance(20.0)
    wait_until(lambda: "absent" not in values_of(collector).values(), "present again")
    assert collector.sensors == (sensor,), "a new sensor was created"


def test_the_target_file_is_followed(
    start: Start, tmp_path: Path, open_collector: Callable[[RedfishOptions], RedfishCollector]
) -> None:
    services = {name: start(name, Constant(watts)) for name, watts in (("a", 100.0), ("b", 200.0), ("c", 300.0))}
    file = tmp_path / "targets.yaml"

    def write(*names: str) -> None:
        entries = [services[name].target | {"interval_seconds": 1.0, "parts": False} for name in names]
        file.write_text(json.dumps({"targets": entries}))  # which is YAML too

    write("a", "b")
    collector = open_collector(RedfishOptions(targets_file=file))
    wait_until(lambda: values_of(collector) == {"a": 100.0, "b": 200.0}, "two targets")
    write("b", "c")
    wait_until(lambda: values_of(collector) == {"b": 200.0, "c": 300.0}, "one target removed, one added")
    wait_until(lambda: services["a"].session_count == 0, "logout of the removed target")
    assert services["b"].connection_count == 1, "the unchanged target was reconnected"
    file.write_text("targets: [{name: b, urll: x}]\n")
    wait_until(
        lambda: any(finding.status == "broken" for finding in collector.findings) or not collector.sensors, "a finding"
    )
    assert values_of(collector) == {"b": 200.0, "c": 300.0}


# -- sushy-emulator ---------------------------------------------------------------------


@pytest.fixture
def sushy(tmp_path: Path, start: Start) -> Iterator[Callable[..., tuple[str, Path, RedfishService]]]:
    """Return a function that starts sushy-emulator: its URL, its state file, and the service of its certificate."""
    if importlib.util.find_spec("sushy_tools") is None:
        text = "sushy-tools is not installed: pip install sushy-tools"
        if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    processes: list[subprocess.Popen[bytes]] = []

    def run(*, power: bool) -> tuple[str, Path, RedfishService]:
        lender = start("lender", user="admin", password="secret")
        port = free_port()
        (tmp_path / "sushy.conf").write_text(
            "SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\n"
            f"SUSHY_EMULATOR_LISTEN_PORT = {port}\n"
            f"SUSHY_EMULATOR_SSL_CERT = {str(lender.ca_file)!r}\n"
            f"SUSHY_EMULATOR_SSL_KEY = {str(lender.ca_file.with_suffix('.key'))!r}\n"
            "SUSHY_EMULATOR_FAKE_DRIVER = True\n"
        )
        state = tmp_path / "state.json"
        state.write_text(json.dumps({"watts": 312.5, "kwh": 1234.567}))
        program = Path(__file__).parent.parent / "support" / "sushy_power.py"
        environment = {**os.environ, "SUSHY_EMULATOR_STATE_DIR": str(tmp_path)}
        if power:
            environment["SUSHY_POWER_STATE"] = str(state)
        with (tmp_path / "sushy.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(program), "--config", str(tmp_path / "sushy.conf"), "--fake"],
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=tmp_path,
                )
            )
        wait_until(lambda: _accepts(port) or processes[-1].poll() is not None, "sushy-emulator")
        assert processes[-1].poll() is None, (tmp_path / "sushy.log").read_text()
        return f"https://127.0.0.1:{port}", state, lender

    yield run
    for process in processes:
        process.terminate()
        process.wait(10)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def test_sushy_emulator(sushy: Callable[..., tuple[str, Path, RedfishService]]) -> None:
    """Discovery by links, login and logout, energy from the counter."""
    url, state, lender = sushy(power=True)
    device = connected(lender, url=url).connect()
    (info, *_) = device.infos
    (first, *_) = device.read()
    assert (first.power_watts, info.resolution) == (312.5, "3600 J")
    state.write_text(json.dumps({"watts": 300.0, "kwh": 1234.571}))
    (second, *_) = device.read()
    assert first.energy_joules is not None
    assert second.energy_joules is not None
    assert second.energy_joules - first.energy_joules == pytest.approx(4 * 3600.0, abs=1e-3)
    state.write_text(json.dumps({"watts": None, "kwh": None}))
    with pytest.raises(SensorGlitchError):
        device.read()
    device.close()
    wrong = lender.password_file.with_name("wrong")
    wrong.write_text("hunter2")
    with pytest.raises(SensorDeniedError, match="login of user admin denied"):
        connected(lender, url=url, password_file=str(wrong)).connect()
    with pytest.raises(SensorDeniedError, match="its certificate is not trusted"):
        connected(lender, url=url, ca_file=None).connect()


def test_unmodified_sushy_emulator_reports_no_power(sushy: Callable[..., tuple[str, Path, RedfishService]]) -> None:
    url, _, lender = sushy(power=False)
    with pytest.raises(SensorAbsentError, match="no chassis reports its power"):
        connected(lender, url=url).connect()
