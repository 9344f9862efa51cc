"""HTTP client of one joulewatch exporter: its sensors, its scrapes, and its energy counters at an edge.

An edge of an exporter on this machine is read from its Unix socket, where it waits for the counters' next refreshes.
The exporter names the socket in its answers to scrapes; without one, or if it fails, the edge is a scrape.
"""

from __future__ import annotations

import dataclasses
import http.client
import logging
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from joulewatch_exporter import catalog
from joulewatch_harness.clients.bounded import LONGEST_BODY, BoundedResponse, gunzip
from joulewatch_harness.clients.edge_socket import HEADER, EdgeAnswer, EdgeSocket, UnixConnection, path_of
from joulewatch_harness.clients.options import HttpOptions
from joulewatch_harness.errors import ConfigError, ExporterUnreachableError
from joulewatch_harness.records import CalibrationRecord, EdgeClock, EdgeCounter, ExporterRecord, SensorRecord

logger = logging.getLogger(__name__)

DEFAULT_PATH: Final = "/metrics"
DEFAULT_OPTIONS: Final = HttpOptions(timeout_s=2.0)

_ON_REQUEST: Final = "on_request"
"""Read mode of a device that the exporter reads after each request. Others are read in the background: their read
timestamps do not depend on the time of the request."""
_SCOPES: Final = {metric.name: scope for scope, metric in catalog.ENERGY_BY_SCOPE.items()}
_LABEL: Final = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPE: Final = re.compile(r"\\(.)")

SeriesKey = tuple[str, dict[str, str]]
_Device = tuple[str, str]
"""collector, device."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """One scrape of one exporter."""

    started_at_s: float
    """Unix seconds before the request was sent."""
    answered_at_s: float
    """Unix seconds after the whole answer was received."""
    samples: list[tuple[str, float]]
    """``name{labels}`` as the exporter wrote it, and the value."""


def parse_exposition(text: str) -> list[tuple[str, float]]:
    """Return the samples of a text exposition, without timestamps.

    Raises:
        ValueError: a line is not a sample.
    """
    samples = []
    # Not splitlines(), which also splits at control characters inside a label.
    for line in text.split("\n"):
        if not line or line[0] == "#":
            continue
        key, _, value = line.rpartition(" ")
        if key and key[-1] != "}" and " " in key:
            # The line ends with a timestamp, and the value is before it. (A key with labels ends with a brace.)
            key, _, value = key.rpartition(" ")
        if not key:
            raise ValueError(f"not a sample: {line[:80]!r}")
        samples.append((key, float(value)))
    return samples


def parse_key(raw: str) -> SeriesKey:
    """Split ``name{a="b",...}`` into name and labels, with escapes resolved.

    Raises:
        ValueError: the text in braces is not a list of labels.
    """
    name, brace, rest = raw.partition("{")
    labels: dict[str, str] = {}
    if not brace:
        return name, labels
    body = rest[: rest.rfind("}")]
    at = 0
    while at < len(body):
        match = _LABEL.match(body, at)
        if match is None:
            raise ValueError(f"not a list of labels: {raw[:120]!r}")
        value = match[2]
        labels[match[1]] = _ESCAPE.sub(_unescape, value) if "\\" in value else value
        at = match.end()
    return name.strip(), labels


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An exporter's answer to one request, not parsed; times are Unix seconds on the harness's clock."""

    requested_at_s: float
    answered_at_s: float
    body: bytes = b""
    error: str = ""
    """Why there is no body."""
    is_edge: bool = False
    """Whether the body is from the socket for edges, and not a metrics page."""


class ExporterClient:
    """One persistent HTTP connection to one exporter; used by one thread at a time.

    Args:
        url: URL of the exporter or of its metrics page, ``host:port``, or ``unix:`` and the path of its socket.
        name: Its ``instance`` in Prometheus; None: ``host:port`` of the URL, or ``unix:`` and the path.
        options: Credentials, TLS, and the time-out for connecting and for each read.

    Raises:
        ConfigError: the URL is not valid or contains a password, or a file cannot be read.
    """

    def __init__(self, url: str, *, name: str | None = None, options: HttpOptions = DEFAULT_OPTIONS) -> None:
        self._path = path_of(url)
        # The metrics of a socket are those of the port.
        parts = urlsplit("http://localhost" if self._path else url if "://" in url else f"http://{url}")
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"exporter {shown}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or any(ord(one) < 33 for one in parts.netloc):
            raise ConfigError(
                f"exporter {shown!r} is not a valid URL: write it as http://host:{catalog.DEFAULT_PORT} or unix:/path"
            )
        if "@" in parts.netloc:
            raise ConfigError(f"exporter {shown}: remove user name and password from the URL and use password_file")
        self._host = parts.hostname
        # Without a scheme the default is joulewatch-exporter's port; with one it is the port of the scheme.
        scheme_port = 443 if parts.scheme == "https" else 80
        self._port = port or (scheme_port if "://" in url else catalog.DEFAULT_PORT)
        host = f"[{self._host}]" if ":" in self._host else self._host
        path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
        self.url = f"{parts.scheme}://{host}:{self._port}{path}"
        self.name = name or f"{host}:{self._port}"
        if self._path:
            self.url = f"unix:{self._path}"
            self.name = name or self.url
        self._target = path + (f"?{parts.query}" if parts.query else "")
        self._timeout_s = options.timeout_s
        self._headers = {
            "Accept": "text/plain;version=0.0.4",
            "Accept-Encoding": "identity",
            "User-Agent": "joulewatch",
        }
        try:
            self._tls = options.tls() if parts.scheme == "https" else None
            if authorization := options.authorization():
                self._headers["Authorization"] = authorization
        except ConfigError as error:
            raise ConfigError(f"exporter {self.url}: {error}") from error
        self._connection: http.client.HTTPConnection | None = None
        self._announced = self._path
        """Path of its socket for edges; empty: not known."""
        self._edge_socket: EdgeSocket | None = None
        self._looks_for_socket = True
        self._keys: dict[str, SeriesKey] = {}
        self.asleep: tuple[str, ...] = ()
        """Devices (collector and name) that were asleep at the last ``describe``; they have no sensors then."""
        self._last_read_at_s: Mapping[_Device, float] = {}
        """The read timestamps of the answer before."""

    def __repr__(self) -> str:
        return f"ExporterClient({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next request opens a new one."""
        if self._edge_socket is not None:
            self._edge_socket.close()
            self._edge_socket = None
            self._looks_for_socket = True
        self._close_http()

    def _close_http(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def key(self, raw: str) -> SeriesKey:
        """Return name and labels of ``name{labels}``; cached, because an exporter repeats them in every scrape."""
        key = self._keys.get(raw)
        if key is None:
            key = self._keys[raw] = parse_key(raw)
        return key

    def fetch(self, target: str = "") -> Answer:
        """Request the metrics page, or another one; the answer is not parsed.

        Raises:
            ExporterUnreachableError: no answer, or not HTTP 200.
        """
        requested_at_s = time.time()
        reused = self._connection is not None
        try:
            status, body = self._request(target)
        except (http.client.HTTPException, ConnectionError) as error:
            # The exporter closed an idle connection or was restarted: try once more on a new connection.
            self._close_http()
            if not reused:
                raise self._unreachable(error) from error
            requested_at_s = time.time()
            try:
                status, body = self._request(target)
            except (OSError, http.client.HTTPException) as second_error:
                self._close_http()
                raise self._unreachable(second_error) from second_error
        except OSError as error:
            self._close_http()
            raise self._unreachable(error) from error
        answered_at_s = time.time()
        if status != 200:
            raise ExporterUnreachableError(f"exporter {self.url}: HTTP {status}; {_excerpt(body)}")
        return Answer(requested_at_s=requested_at_s, answered_at_s=answered_at_s, body=body)

    @property
    def waits(self) -> bool:
        """Whether the exporter waits for its counters at an edge, because its socket is used."""
        return self._edge_socket is not None

    def fetch_edge(self, meanwhile: Callable[[], None] | None = None) -> Answer:
        """Request the energy counters at an edge: from the exporter's socket if there is one, else by a scrape.

        Args:
            meanwhile: Called once, while an exporter that ``waits`` does so.

        Raises:
            ExporterUnreachableError: as ``fetch``.
        """
        page: Answer | None = None
        if self._edge_socket is None and self._looks_for_socket:
            page = self.fetch()
            self._find_socket(page)
        if self._edge_socket is not None:
            requested_at_s = time.time()
            try:
                body = self._edge_socket.ask(meanwhile)
            except OSError as error:
                self._edge_socket.close()
                self._edge_socket = None
                logger.warning("exporter %s: edges are read by scrapes: %s", self.url, error.strerror or error)
            else:
                return Answer(requested_at_s=requested_at_s, answered_at_s=time.time(), body=body, is_edge=True)
        return page or self.fetch()

    def _find_socket(self, page: Answer) -> None:
        """Connect to the socket that a page announced, if it is on this machine and belongs to the same exporter."""
        self._looks_for_socket = False
        if not self._announced or not os.path.exists(self._announced):  # noqa: PTH110
            return
        try:
            found = EdgeSocket(self._announced, self._timeout_s)
        except OSError as error:
            logger.info("exporter %s: edges are read by scrapes: %s: %s", self.url, self._announced, error.strerror)
            return
        try:
            answer = EdgeAnswer.parse(found.ask(), self.name)
            is_own = answer.start_s == self._start_s(page)
        except (OSError, ValueError) as error:
            logger.warning("exporter %s: edges are read by scrapes: %s: %s", self.url, self._announced, error)
            is_own = False
        if is_own:
            self._edge_socket = found
            self._looks_for_socket = True  # again, if the connection is lost
        else:
            found.close()

    def _start_s(self, page: Answer) -> float | None:
        samples = self.parse(page.body)
        return next((value for raw, value in samples if raw == catalog.EXPORTER_START.name), None)

    def scrape(self) -> Scrape:
        """Request the metrics page and parse it.

        Raises:
            ExporterUnreachableError: no answer, not HTTP 200, or the answer is not an exposition.
        """
        answer = self.fetch()
        return Scrape(answer.requested_at_s, answer.answered_at_s, self.parse(answer.body))

    def parse(self, body: bytes) -> list[tuple[str, float]]:
        """Return the samples of an answer.

        Raises:
            ExporterUnreachableError: the answer is not an exposition.
        """
        try:
            return parse_exposition(body.decode("utf-8"))
        except ValueError as error:
            raise ExporterUnreachableError(
                f"exporter {self.url} is not a joulewatch exporter: {_excerpt(body)}"
            ) from error

    def describe(self) -> tuple[ExporterRecord, tuple[SensorRecord, ...]]:
        """Return the exporter's identity and its sensors.

        Raises:
            ExporterUnreachableError: no answer, or the answer is not from a joulewatch exporter.
        """
        answer = self.fetch()
        info: dict[str, str] | None = None
        sensors: list[dict[str, str]] = []
        refresh_s: dict[tuple[str, ...], float] = {}
        window_s: dict[tuple[str, ...], float] = {}
        calibrations: dict[tuple[str, ...], dict[str, float]] = {}
        calibration_infos: dict[tuple[str, ...], dict[str, str]] = {}
        asleep: list[str] = []
        started_at_s = None
        ratios: dict[str, float] = {}
        for raw, value in self.parse(answer.body):
            name = raw.partition("{")[0]
            if name == catalog.EXPORTER_INFO.name:
                info = self._labels(raw)
            elif name == catalog.EXPORTER_START.name:
                started_at_s = value
            elif name == catalog.WORKLOAD_RATIO.name:
                if not 1 <= value < math.inf:
                    raise ExporterUnreachableError(
                        f"exporter {self.url}: {raw} is {value:g}, but must be at least 1: correct its calibration file"
                    )
                ratios[self._labels(raw).get("component", "")] = value
            elif name == catalog.SENSOR_INFO.name:
                sensors.append(self._labels(raw))
            elif name == catalog.SENSOR_REFRESH.name:
                refresh_s[_sensor_key(self._labels(raw))] = value
            elif name == catalog.SENSOR_WINDOW.name:
                window_s[_sensor_key(self._labels(raw))] = value
            elif name == catalog.SENSOR_CALIBRATION.name:
                labels = self._labels(raw)
                calibrations.setdefault(_sensor_key(labels), {})[labels.get("parameter", "")] = value
            elif name == catalog.SENSOR_CALIBRATION_INFO.name:
                calibration_infos[_sensor_key(self._labels(raw))] = self._labels(raw)
            elif name == catalog.SENSOR_STATE.name and self._labels(raw).get("state") == "asleep":
                asleep.append(" ".join(_device(self._labels(raw))))
        if info is None:
            raise ExporterUnreachableError(
                f"exporter {self.url} is not a joulewatch exporter: {_excerpt(answer.body)}; "
                "other exporters are read through Prometheus (--prometheus)"
            )
        self.asleep = tuple(asleep)
        record = ExporterRecord(
            name=self.name,
            url=self.url,
            nodename=info.get("nodename", ""),
            version=info.get("version", ""),
            emulated=info.get("emulated") == "1",
            started_at_s=started_at_s,
            workload_ratios=ratios,
        )
        return record, tuple(
            dataclasses.replace(
                SensorRecord.of_labels(self.name, labels),
                refresh_s=refresh_s.get(_sensor_key(labels)),
                window_s=window_s.get(_sensor_key(labels)),
                calibration=CalibrationRecord.of_metrics(
                    calibrations.get(_sensor_key(labels), {}), calibration_infos.get(_sensor_key(labels), {})
                ),
            )
            for labels in sensors
        )

    def is_late(self, answer: Answer, now_s: float) -> bool:
        """Return whether the refreshes in an answer are more than a refresh before now, or are missing."""
        if not answer.is_edge:
            return False
        try:
            return EdgeAnswer.parse(answer.body, self.name).is_late(now_s)
        except ValueError:
            return False

    def parse_edge(self, answer: Answer) -> tuple[tuple[EdgeCounter, ...], EdgeClock | None]:
        """Return the energy counters with their read timestamps, and the bounds of the exporter's clock.

        Parse answers in the order in which they were fetched: a device bounds the clock only if its read timestamp
        differs from that of the answer before.

        Raises:
            ExporterUnreachableError: the answer is not an exposition.
        """
        if answer.is_edge:
            return self._parse_socket_edge(answer)
        energies: list[tuple[str, dict[str, str], float]] = []
        read_at_s: dict[_Device, float] = {}
        on_request: set[_Device] = set()
        for raw, value in self.parse(answer.body):
            name = raw.partition("{")[0]
            if name in _SCOPES:
                energies.append((_SCOPES[name], self._labels(raw), value))
            elif name == catalog.READ_TIMESTAMP.name:
                read_at_s[_device(self._labels(raw))] = value
            elif name == catalog.SENSOR_INFO.name and self._labels(raw).get("read_mode") == _ON_REQUEST:
                on_request.add(_device(self._labels(raw)))
        counters = []
        for scope, labels, energy_joules in energies:
            at_s = read_at_s.get(_device(labels))
            # Without a read timestamp a counter cannot be placed at an edge.
            if at_s is not None:
                counters.append(
                    EdgeCounter(
                        exporter=self.name,
                        scope=scope,
                        collector=labels.get("collector", ""),
                        component=labels.get("component", ""),
                        device=labels.get("device", ""),
                        domain=labels.get("domain", ""),
                        energy_joules=energy_joules,
                        read_at_s=at_s,
                    )
                )
        clock = self._clock(answer, {device: at_s for device, at_s in read_at_s.items() if device in on_request})
        self._last_read_at_s = read_at_s
        return tuple(counters), clock

    def _parse_socket_edge(self, answer: Answer) -> tuple[tuple[EdgeCounter, ...], EdgeClock | None]:
        try:
            edge = EdgeAnswer.parse(answer.body, self.name)
        except ValueError as error:
            raise ExporterUnreachableError(f"exporter {self.url}: {error}") from error
        if edge.newest_s is None:
            return edge.counters, None
        lower_s, upper_s = edge.newest_s - answer.answered_at_s, edge.newest_s - answer.requested_at_s
        return edge.counters, EdgeClock(exporter=self.name, lower_s=lower_s, upper_s=upper_s)

    def _clock(self, answer: Answer, read_at_s: Mapping[_Device, float]) -> EdgeClock | None:
        """Bound the exporter's clock minus the harness's: the newest read was made between request and answer."""
        # A time that did not change is of an earlier request. An earlier one is new: the exporter's clock was set back.
        new_s = [at_s for device, at_s in read_at_s.items() if at_s != self._last_read_at_s.get(device)]
        if not new_s:
            return None
        newest_s = max(new_s)
        return EdgeClock(
            exporter=self.name,
            lower_s=newest_s - answer.answered_at_s,
            upper_s=newest_s - answer.requested_at_s,
        )

    def _labels(self, raw: str) -> dict[str, str]:
        try:
            return self.key(raw)[1]
        except ValueError as error:
            raise ExporterUnreachableError(f"exporter {self.url}: {error}") from error

    def _request(self, target: str) -> tuple[int, bytes]:
        if self._connection is None:
            connection: http.client.HTTPConnection
            if self._path:
                connection = UnixConnection(self._path, self._timeout_s)
            elif self._tls is not None:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout_s, context=self._tls
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
            connection.response_class = BoundedResponse
            self._connection = connection
            connection.connect()
            if not self._path:
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.request("GET", target or self._target, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(LONGEST_BODY)
        if not response.isclosed():
            self._close_http()
            raise OSError(f"the answer is longer than {LONGEST_BODY} bytes")
        self._announced = response.headers.get(HEADER, self._announced)
        if response.headers.get("Content-Encoding") == "gzip":
            body = gunzip(body)
        return response.status, body

    def _unreachable(self, error: Exception) -> ExporterUnreachableError:
        if isinstance(error, TimeoutError):
            why = f"no answer within {self._timeout_s:g} s"
        elif isinstance(error, PermissionError) and self._path:
            return ExporterUnreachableError(
                f"exporter {self.url}: permission denied: join the group of this socket, or use the exporter's port"
            )
        elif isinstance(error, ssl.SSLCertVerificationError):
            why = f"the certificate is not valid: {error.verify_message}"
        elif isinstance(error, OSError):
            why = error.strerror or str(error)
        else:
            why = f"the answer is not HTTP ({type(error).__name__})"
        return ExporterUnreachableError(f"exporter {self.url}: {why}: is joulewatch-exporter running there?")


def _device(labels: Mapping[str, str]) -> _Device:
    return labels.get("collector", ""), labels.get("device", "")


def _sensor_key(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels.get(name, "") for name in catalog.SENSOR_LABELS)


def _excerpt(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())[:60]
    return f"its answer begins with {text!r}" if text else "its answer is empty"
