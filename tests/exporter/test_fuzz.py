"""Random input for the parsers that face the network and the configuration: only their own errors may come out.

Seeded, so each run is the same. ``make fuzz`` runs far more cases with other seeds each time.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from joulewatch_exporter.collectors.ipmi.records import dcmi_reading, power_sensor
from joulewatch_exporter.collectors.ipmi.repository import RepositoryReader
from joulewatch_exporter.config.config import ExporterSettings
from joulewatch_exporter.config.strict import build, parse_yaml
from joulewatch_exporter.config.web import WebConfig, load_web_config
from joulewatch_exporter.errors import ConfigError, SensorError
from joulewatch_exporter.server.connection import Connection, Response
from joulewatch_exporter.server.server import WebServer
from support.redfish import a_target

CASES = int(os.environ.get("JOULEWATCH_FUZZ_CASES", "60"))
fuzz = settings(
    max_examples=CASES,
    derandomize="JOULEWATCH_FUZZ_CASES" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


# -- requests --------------------------------------------------------------------------------------


class FakeSocket:
    """A peer that has sent some bytes and closed its side."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = data
        self._piece = piece
        self.sent = b""

    def settimeout(self, seconds: float) -> None: ...

    def recv_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), self._piece, len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def sendmsg(self, pieces: tuple[bytes, ...]) -> int:
        self.sent += b"".join(pieces)
        return sum(map(len, pieces))

    def sendall(self, data: bytes) -> None:
        self.sent += data


PIECES = st.sampled_from(
    [b"GET ", b"HEAD ", b"/metrics", b"http://[::1", b"//", b"?collect[]=rapl&", b"%ff", b" HTTP/1.1", b" HTTP/1.0",
     b"\r\n", b"\n", b"\r", b": ", b"Host: x\r\n", b"Accept: ", b"application/openmetrics-text;version=",
     b"Connection: ",
     b"keep-alive", b"Authorization: Basic ", b"Accept-Encoding: gzip;q=", b"Content-Length: 5\r\n", b"\r\n\r\n",
     b"\x00",
     b"X-Prometheus-Scrape-Timeout-Seconds: ", b"1e-9", b"nan", b"1.0.0"]
)  # fmt: skip
REQUESTS = st.lists(PIECES | st.binary(max_size=8), max_size=30).map(b"".join)


@pytest.fixture(scope="module")
def web() -> WebServer:
    def scrape(
        *, accept: str | None, only: frozenset[str] | None, timeout_s: float, take_over: object
    ) -> tuple[bytes, str]:
        from joulewatch_exporter.server.exposition import CONTENT_TYPES, choose_format

        return b"x 1\n" * 400, CONTENT_TYPES[choose_format(accept)]

    server = WebServer(["127.0.0.1:0"], scrape, collectors=["rapl"])
    server.stop()
    return server


@fuzz
@given(data=REQUESTS, piece=st.integers(1, 100))
@example(data=b"GET http://[::1/ HTTP/1.1\r\n\r\n", piece=100)
def test_any_request_is_answered_or_closed(web: WebServer, data: bytes, piece: int) -> None:
    statuses: list[HTTPStatus] = []

    def answer(method: str, target: str, headers: Mapping[str, str]) -> Response:
        response = web.answer(method, target, headers)
        statuses.append(response.status)
        return response

    peer = FakeSocket(data, piece)
    connection = Connection(
        cast("socket.socket | ssl.SSLSocket", peer),
        answer,
        is_stopping=lambda: False,
        request_timeout_s=60.0,
        keep_alive_s=60.0,
        extra_headers={},
    )
    connection.serve()
    assert peer.sent == b"" or peer.sent.startswith(b"HTTP/1.1 ")
    assert HTTPStatus.INTERNAL_SERVER_ERROR not in statuses


# -- configuration ---------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["listen", "max_requests", "path", "sysfs", "calibration_files", "primary_node_sensor", "log_level", "nodename",
     "tls_server_config", "cert", "key", "client_ca", "client_auth_type", "cipher_suites", "curve_preferences",
     "min_version", "rate_limit", "interval", "burst", "basic_auth_users", "http_server_config", "headers", "http2"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["TLS10", "TLS13", "1s", "X25519", "RequestClientCert", ":10717", "a" * 60])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=6)
)


@fuzz
@given(VALUES)
def test_any_value_is_bound_or_an_error_of_the_configuration(value: object) -> None:
    for settings_class in (ExporterSettings, WebConfig):
        try:
            build(settings_class, value, "file")
        except ConfigError as error:
            assert str(error).startswith("file: ")


@fuzz
@given(text=st.text(st.sampled_from("{}[]:,-#&*!|>'\"%@`?\n \tab0.~<"), max_size=60) | st.binary(max_size=40))
def test_any_yaml_is_read_or_an_error_of_the_configuration(text: str | bytes) -> None:
    try:
        parse_yaml(text, "file")
    except ConfigError as error:
        assert str(error).startswith("file: is not valid YAML")


@fuzz
@given(value=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_web_configuration_is_read_or_an_error(value: object) -> None:
    try:
        load_web_config(Path("/nowhere/web.yaml"), json.dumps(value).encode())
    except ConfigError as error:
        assert str(error).startswith("/nowhere/web.yaml: ")


# -- BMCs ------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["@odata.id", "Members", "Links", "Chassis", "Power", "PowerControl", "PowerConsumedWatts", "PowerSupplies",
     "EnvironmentMetrics", "PowerWatts", "EnergykWh", "Reading", "Sensors", "ReadingUnits", "ContainedBy", "Name",
     "MemberId", "Id", "ChassisType", "PowerSubsystem", "Oem", "Members@odata.nextLink", "ReadingTime"]
)  # fmt: skip
PATHS = st.sampled_from(["/redfish/v1/", "/a", "/b", "/c", "//x/", "http://[", "#/x", ""])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | PATHS
    | st.just({"@odata.id": "/a"}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


@fuzz
@given(bodies=st.lists(st.dictionaries(NAMES, JSON, max_size=6), min_size=4, max_size=4))
def test_any_resources_are_a_plan_or_an_error_of_the_sensor(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[dict[str, Any]]
) -> None:
    from joulewatch_exporter.collectors.redfish.client import _resource
    from joulewatch_exporter.collectors.redfish.discover import discover
    from joulewatch_exporter.collectors.redfish.plan import MissingError, total_watts

    root, *others = (_resource(json.dumps(body).encode(), "bmc") for body in bodies)
    root = {**root, "Chassis": {"@odata.id": "/a"}}
    resources = dict(zip(("/redfish/v1/", "/a", "/b", "/c"), (root, *others), strict=True))

    def get(path: str) -> Any:
        if path not in resources:
            raise MissingError(f"{path}: HTTP 404")
        return resources[path]

    try:
        plan = discover(get, a_target(tmp_path_factory.getbasetemp()), interval_s=1.0, previous=None)
        for series in plan.series:
            if series.power:
                total_watts(series.power, resources)
    except SensorError:
        pass


@fuzz
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 10_000)
@example(b'{"a": 1e999999999}')
def test_any_body_is_a_resource_or_an_error_of_the_sensor(body: bytes) -> None:
    from joulewatch_exporter.collectors.redfish.client import _resource

    try:
        assert isinstance(_resource(body, "bmc"), dict)
    except SensorError:
        pass


@fuzz
@given(st.binary(max_size=80), st.binary(max_size=8))
def test_any_record_of_a_bmc_is_a_sensor_or_not(record: bytes, reading: bytes) -> None:
    # Most random records are of other types: give them the header of a full sensor record in watts, too.
    watts = bytearray(record)
    if len(watts) > 21:
        watts[3], watts[21] = 1, 6
    for data in (record, bytes(watts)):
        try:
            sensor = power_sensor(data)
            if sensor is not None:
                assert sensor.resolution is not None
                assert sensor.accuracy is None or sensor.accuracy >= 0
                assert sensor.power_watts(reading) >= 0
        except SensorError:
            pass
    try:
        dcmi_reading(reading)
    except SensorError:
        pass


class FakeChannel:
    """A BMC with random answers."""

    where = "bmc"

    def __init__(self, answers: list[tuple[int, bytes]]) -> None:
        self._answers = answers
        self._next = 0

    def send(self, netfn: int, command: int, data: bytes = b"", lun: int = 0) -> tuple[int, bytes]:
        self._next += 1
        return self._answers[self._next % len(self._answers)]

    def close(self) -> None: ...


@fuzz
@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 0, 0xC5, 0xCA, 0xFF]), st.binary(max_size=40)), min_size=1, max_size=8)
)
def test_any_repository_ends_or_is_an_error_of_the_sensor(answers: list[tuple[int, bytes]]) -> None:
    import time

    channel = FakeChannel(answers)
    reader = RepositoryReader()
    try:
        reader.start(channel)
        reader.read_until(channel, time.monotonic() + 0.05)
    except SensorError:
        pass
