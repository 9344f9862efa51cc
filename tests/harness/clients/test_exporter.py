"""The exporter client, and the edges that are read with it."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from joulewatch_exporter import catalog
from joulewatch_harness.clients.exporter import ExporterClient, parse_exposition, parse_key
from joulewatch_harness.clients.options import HttpOptions
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError
from joulewatch_harness.records import CalibrationRecord, Edge
from joulewatch_harness.runner.edges import EdgeReader
from support.clock import NS_PER_S, FakeClock

SENSOR = 'collector="rapl",component="cpu",device="socket0",domain="package"'
BODY = f"""# HELP joulewatch_device_energy_joules_total Energy of one device.
# TYPE joulewatch_device_energy_joules_total counter
joulewatch_device_energy_joules_total{{{SENSOR}}} 1234.5678901234
joulewatch_part_energy_joules_total{{collector="rapl",component="cpu",device="socket0",domain="core"}} 17
joulewatch_device_energy_joules_total{{collector="hwmon",component="gpu",device="gpu0",domain="total"}} 5.0
joulewatch_device_power_watts{{{SENSOR}}} 91.5
joulewatch_read_timestamp_seconds{{collector="rapl",device="socket0"}} 1.7000000010005e+09
joulewatch_read_duration_seconds{{collector="rapl"}} 0.0004
joulewatch_sensor_info{{scope="device",{SENSOR},method="counter",reads="energy",model="",source="/sys/x y",\
resolution="1.5e-05",accuracy="0.05",read_mode="on_request",primary="",host="n1"}} 1.0
joulewatch_sensor_info{{scope="part",collector="rapl",component="cpu",device="socket0",domain="core",\
method="counter",reads="energy",model="",source="/sys/z",resolution="",accuracy=""}} 1.0
joulewatch_sensor_refresh_seconds{{{SENSOR}}} 0.001
joulewatch_sensor_state{{collector="rapl",device="socket0",state="ok"}} 1.0
joulewatch_sensor_state{{collector="hwmon",device="gpu0",state="asleep"}} 1.0
joulewatch_exporter_info{{version="0.1.0",pythonversion="3.11.2",nodename="n1",emulated="1"}} 1.0
"""


class FakeSocket:
    def __init__(self) -> None:
        self.options: list[tuple[int, int, int]] = []

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)  # type: ignore[arg-type]


class FakeResponse:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        self._body = body

    def read(self, limit: int) -> bytes:
        return self._body[:limit]

    def isclosed(self) -> bool:
        return True


class FakeServer:
    """The answers of all connections of a test, in order; an exception is raised."""

    def __init__(self) -> None:
        self.answers: list[FakeResponse | Exception] = []
        self.connections: list[FakeConnection] = []
        self.requests: list[str] = []

    def answer(self, body: str = BODY, status: int = 200) -> None:
        self.answers.append(FakeResponse(status, body.encode()))


class FakeConnection:
    server: FakeServer

    def __init__(self, host: str, port: int, timeout: float, context: ssl.SSLContext | None = None) -> None:
        self.address = (host, port)
        self.sock = FakeSocket()
        self.closed = False
        self.headers: dict[str, str] = {}
        self.server.connections.append(self)

    def connect(self) -> None:
        if self.server.answers and isinstance(self.server.answers[0], ConnectionRefusedError):
            raise self.server.answers.pop(0)  # type: ignore[misc]

    def request(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.server.requests.append(f"{method} {target}")
        self.headers = headers

    def getresponse(self) -> FakeResponse:
        answer = self.server.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()
    monkeypatch.setattr(FakeConnection, "server", fake, raising=False)
    monkeypatch.setattr(http.client, "HTTPConnection", FakeConnection)
    monkeypatch.setattr(http.client, "HTTPSConnection", FakeConnection)
    clock = FakeClock(unix_ns=1_700_000_001 * NS_PER_S, reading_ns=1_000_000)
    monkeypatch.setattr(time, "time", clock.time)
    yield fake


@pytest.mark.parametrize(
    ("given_url", "name", "url"),
    [
        ("http://node1:10717", "node1:10717", "http://node1:10717/metrics"),
        ("node1", "node1:10717", "http://node1:10717/metrics"),
        ("node1:99", "node1:99", "http://node1:99/metrics"),
        ("http://proxy/joule/metrics", "proxy:80", "http://proxy:80/joule/metrics"),
        ("https://node1", "node1:443", "https://node1:443/metrics"),
        ("http://[::1]:5/", "[::1]:5", "http://[::1]:5/metrics"),
    ],
)
def test_a_url_is_completed_and_gives_the_name_of_the_exporter(given_url: str, name: str, url: str) -> None:
    client = ExporterClient(given_url)
    assert (client.name, client.url) == (name, url)
    assert ExporterClient(given_url, name="n").name == "n"


@pytest.mark.parametrize("url", ["", "http://", "ftp://node1", "http://node1:port", "http://me:hush@node1:1"])
def test_the_error_of_an_invalid_url_does_not_contain_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExporterClient(url)
    assert "hush" not in str(caught.value)


def test_describe_returns_the_exporter_and_its_sensors(server: FakeServer) -> None:
    server.answer()
    client = ExporterClient("http://node1:10717")
    record, sensors = client.describe()
    assert client.asleep == ("hwmon gpu0",)
    assert (record.name, record.nodename, record.version, record.emulated) == ("node1:10717", "n1", "0.1.0", True)
    package, core = sensors
    assert (package.scope, package.method, package.source) == ("device", "counter", "/sys/x y")
    assert (package.accuracy, package.refresh_s, package.resolution) == (0.05, 0.001, "1.5e-05")
    assert (core.scope, core.accuracy, core.refresh_s) == ("part", None, None)


def test_describe_returns_calibrations(server: FakeServer) -> None:
    values = {name: float(number) for number, name in enumerate(catalog.CALIBRATION_PARAMETERS, start=1)}
    lines = [f'joulewatch_sensor_calibration{{{SENSOR},parameter="{name}"}} {value}' for name, value in values.items()]
    lines.append(
        f'joulewatch_sensor_calibration_info{{{SENSOR},reference="WT310",reference_accuracy="0.01",date="2026"}} 1.0'
    )
    server.answer(BODY + "\n".join(lines) + "\n")
    _, (package, core) = ExporterClient("http://node1:10717").describe()
    assert core.calibration is None
    assert package.calibration == CalibrationRecord(
        reference="WT310",
        reference_accuracy=0.01,
        date="2026",
        **values,  # type: ignore[arg-type]
    )


def test_describe_returns_the_ratios_of_workloads(server: FakeServer) -> None:
    server.answer(BODY + 'joulewatch_workload_ratio{component="cpu"} 1.6\n')
    record, _ = ExporterClient("http://node1:10717").describe()
    assert record.workload_ratios == {"cpu": 1.6}
    for value in ("0.5", "NaN", "+Inf"):
        server.answer(BODY + f'joulewatch_workload_ratio{{component="cpu"}} {value}\n')
        with pytest.raises(
            ExporterUnreachableError, match=r'node1.*_ratio.component="cpu".*, but must be at least 1: correct'
        ):
            ExporterClient("http://node1:10717").describe()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("node_load1 0.5\n", 200, "is not a joulewatch exporter: its answer begins with 'node_load1 0.5'"),
        ("<html>hello</html>", 200, "is not a joulewatch exporter: its answer begins with '<html>hello</html>'"),
        ("", 200, "is not a joulewatch exporter: its answer is empty"),
        ("gone", 503, "HTTP 503; its answer begins with 'gone'"),
    ],
)
def test_an_answer_from_another_program_is_an_error_that_quotes_it(
    server: FakeServer, body: str, status: int, text: str
) -> None:
    server.answer(body, status)
    with pytest.raises(ExporterUnreachableError, match=r"exporter http://node1:10717/metrics") as caught:
        ExporterClient("node1").describe()
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_connection_stays_open_and_sends_without_delay(server: FakeServer) -> None:
    server.answer()
    server.answer()
    client = ExporterClient("node1")
    client.scrape()
    client.scrape()
    (connection,) = server.connections
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in connection.sock.options
    assert server.requests == ["GET /metrics"] * 2


def test_a_closed_connection_is_opened_again_once(server: FakeServer) -> None:
    client = ExporterClient("node1")
    server.answer()
    client.scrape()
    server.answers = [http.client.RemoteDisconnected("closed")]
    server.answer()
    before_s = time.time()
    scrape = client.scrape()
    assert len(server.connections) == 2
    # The time of the request that was answered, not of the one that failed.
    assert scrape.started_at_s > before_s + 0.0015
    server.answers = [ConnectionResetError(104, "reset"), ConnectionResetError(104, "reset again")]
    with pytest.raises(ExporterUnreachableError, match="reset again: is joulewatch-exporter running there"):
        client.scrape()


def test_a_new_connection_that_fails_is_not_retried(server: FakeServer) -> None:
    server.answers = [ConnectionRefusedError(111, "Connection refused")]
    with pytest.raises(ExporterUnreachableError, match="Connection refused"):
        ExporterClient("node1").scrape()
    assert len(server.connections) == 1
    server.answers = [TimeoutError("timed out")]
    with pytest.raises(ExporterUnreachableError, match="no answer within 2 s"):
        ExporterClient("node1").scrape()


def read_edge(*clients: ExporterClient) -> Edge:
    return EdgeReader(clients).fetch().parse()


def test_an_edge_has_counters_with_read_timestamps_and_bounds_of_the_clock(server: FakeServer) -> None:
    server.answer()
    with EdgeReader([ExporterClient("node1")]) as reader:
        edge = reader.fetch().parse()
    assert [(item.scope, item.domain, item.energy_joules) for item in edge.counters] == [
        ("device", "package", 1234.5678901234),
        ("part", "core", 17.0),
    ]
    # The third counter has no read timestamp: it cannot be placed at an edge.
    assert {item.read_at_s for item in edge.counters} == {1_700_000_001.0005}
    (clock,) = edge.clocks
    # Requested at .002, answered at .003, read in between at .0005 on the exporter's clock.
    assert clock.lower_s == pytest.approx(-0.0025, abs=1e-6)
    assert clock.upper_s == pytest.approx(-0.0015, abs=1e-6)
    assert edge.requested_at_s < edge.answered_at_s
    assert not edge.missing


def test_a_reading_for_an_earlier_request_does_not_bound_the_clock(server: FakeServer) -> None:
    server.answer()
    server.answer()
    client = ExporterClient("node1")
    assert read_edge(client).clocks
    again = read_edge(client)
    assert again.clocks == ()
    assert len(again.counters) == 2


def test_a_reading_earlier_than_the_last_one_bounds_the_clock(server: FakeServer) -> None:
    """The clock of the exporter was set back by 300 s between two edges: the second edge shows that."""
    server.answer()
    server.answer(BODY.replace("1.7000000010005e+09", "1.6999997010005e+09"))
    client = ExporterClient("node1")
    (first,), (second,) = read_edge(client).clocks, read_edge(client).clocks
    assert second.upper_s - first.upper_s == pytest.approx(-300.0, abs=0.1)


@pytest.mark.parametrize("mode", ["polled", "remote", ""])
def test_only_a_reading_made_for_the_request_bounds_the_clock(server: FakeServer, mode: str) -> None:
    """The read mode decides, not the name of the collector; an exporter of 0.1.0 has none, which is unknown."""
    server.answer(BODY.replace("on_request", mode).replace('read_mode="",', ""))
    edge = read_edge(ExporterClient("node1"))
    assert edge.clocks == ()
    assert len(edge.counters) == 2
    server.answer(BODY.replace('collector="rapl"', 'collector="mine"'))
    assert len(read_edge(ExporterClient("node1")).clocks) == 1


def test_the_newest_reading_of_the_request_bounds_the_clock(server: FakeServer) -> None:
    """Devices that are read in the background, or were not read again, are ignored."""
    info = 'joulewatch_sensor_info{{scope="device",collector="{}",component="gpu",device="{}",domain="total",{}}} 1.0\n'
    read = 'joulewatch_read_timestamp_seconds{{collector="{}",device="{}"}} {}\n'
    others = (
        info.format("hwmon", "gpu0", 'read_mode="polled"'), read.format("hwmon", "gpu0", 1_700_000_009.0),
        info.format("nvml", "gpu1", 'read_mode="on_request"'), read.format("nvml", "gpu1", 1_700_000_001.0002),
        info.format("nvml", "gpu2", 'read_mode="on_request"'), read.format("nvml", "gpu2", 1_700_000_001.0008),
    )  # fmt: skip
    client = ExporterClient("node1")
    server.answer(BODY + "".join(others))
    (clock,) = read_edge(client).clocks
    # Requested at .002, answered at .003; the newest read on request was at .0008 on the exporter's clock.
    assert clock.lower_s == pytest.approx(-0.0022, abs=1e-6)
    server.answer(BODY.replace("10005e+09", "60005e+09") + "".join(others))
    (clock,) = read_edge(client).clocks
    assert clock.upper_s - clock.lower_s == pytest.approx(0.001, abs=1e-6)
    assert clock.upper_s > 4, "only the package was read again"


def test_an_exporter_that_does_not_answer_is_missing_and_the_others_are_read(server: FakeServer) -> None:
    clients = [ExporterClient("node1"), ExporterClient("node2"), ExporterClient("node3")]
    server.answer()
    assert read_edge(clients[0]).counters
    server.answers = [ConnectionRefusedError(111, "Connection refused")]
    edge = read_edge(clients[1])
    assert edge.counters == ()
    assert "Connection refused" in edge.missing["node2:10717"]
    server.answers = []
    server.answer("joulewatch_exporter_info 1\n")
    assert "no energy counter" in read_edge(clients[2]).missing["node3:10717"]
    for _ in range(3):
        server.answer()
    with EdgeReader(clients) as reader:
        together = reader.fetch().parse()
    assert {item.exporter for item in together.counters} == {client.name for client in clients}
    assert all(connection.closed for connection in server.connections[-3:])


def test_the_password_of_basic_authentication_is_read_from_a_file(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret\n")
    server.answer()
    ExporterClient("node1", options=HttpOptions(username="me", password_file=tmp_path / "pw")).scrape()
    assert server.connections[0].headers["Authorization"] == "Basic bWU6c2VjcmV0"
    with pytest.raises(ConfigError, match="password_file"):
        HttpOptions(username="me")
    with pytest.raises(ConfigError, match=r"exporter http://node1:\d+/metrics: password_file: .*none .*No such file"):
        ExporterClient("node1", options=HttpOptions(username="me", password_file=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"exporter https://node1:443/metrics: ca_file: .*none cannot be read"):
        ExporterClient("https://node1", options=HttpOptions(ca_file=tmp_path / "none"))


def test_parsing_accepts_timestamps_and_special_values() -> None:
    text = '# TYPE a gauge\na 1\na{x="p q"} 2\nb 3 1700000000000\nc +Inf\n'
    assert parse_exposition(text) == [("a", 1.0), ('a{x="p q"}', 2.0), ("b", 3.0), ("c", float("inf"))]
    with pytest.raises(ValueError, match="not a sample"):
        parse_exposition("nonsense\n")
    with pytest.raises(ValueError, match="not a list of labels"):
        parse_key("a{x=1}")


@given(
    labels=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    value=st.floats(allow_nan=False),
)
def test_any_label_value_written_by_the_client_library_is_read_back(labels: list[str], value: float) -> None:
    registry = CollectorRegistry()
    names = [f"l{number}" for number in range(len(labels))]
    Gauge("metric", "text", names, registry=registry).labels(*labels).set(value)
    ((raw, number),) = parse_exposition(generate_latest(registry).decode())
    assert parse_key(raw) == ("metric", dict(zip(names, labels, strict=True)))
    assert number == value
