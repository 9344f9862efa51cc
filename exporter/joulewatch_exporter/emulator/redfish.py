"""An emulated Redfish service: the power and energy of a node over HTTPS, with sessions, faults and a certificate.

It answers as BMCs do: values are made every ``refresh_s`` and held, sessions are few and expire, the certificate is its
own. Three generations are possible: ``classic`` has the resource Power, ``modern`` has EnvironmentMetrics and Sensors
instead, ``both`` has all of them. Faults come on the scenario's timetable.

Source: DMTF DSP0266 (protocol), DSP0268 (schemas Chassis, EnvironmentMetrics, Power, Sensor, Session).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

from joulewatch_exporter.emulator.faults import GARBAGE, Fault
from joulewatch_exporter.emulator.signals import Signal
from joulewatch_exporter.errors import ConfigError

logger = logging.getLogger(__name__)

Flavour = Literal["modern", "classic", "both"]
EnergyUnit = Literal["joules", "kwh", "both", "none"]

REDFISH_FAULTS: Final = (
    "hang",
    "vanish",
    "reset",
    "glitch",
    "busy",
    "broken",
    "zero",
    "garbage",
    "denied",
    "expired",
    "stuck",
)
"""hang: accepts connections and answers nothing; vanish: its port is closed; reset: its energy starts again at 0 and it
forgets its sessions; glitch: readings are null; busy: HTTP 503; broken: answers are no JSON; zero: 0 W; garbage:
readings are 4294967295; denied: no login is good; expired: it forgets its sessions once; stuck: values stay."""

ROOT: Final = "/redfish/v1"
_SESSIONS: Final = f"{ROOT}/SessionService/Sessions"
_JOULES_PER_KWH: Final = 3.6e6
_LONGEST_BODY: Final = 65536
_IDLE_S: Final = 60.0
_HANDSHAKE_S: Final = 10.0

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and what becomes JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishSpec:
    """One Redfish service."""

    name: str
    """The node's name: ``NAME/total`` is the key of the truth."""
    signal: Signal
    """Power of the whole node."""
    user: str = "monitor"
    """Who may log in."""
    password: str = field(default="emulated", repr=False)
    """It is no secret: everybody may read an emulated service."""
    address: str = "127.0.0.1"
    """IP address to listen on; the certificate is made for it."""
    port: int = 0
    """TCP port; 0: any free one."""
    flavour: Flavour = "both"
    """``classic``: Power; ``modern``: EnvironmentMetrics and Sensors."""
    chassis: tuple[str, ...] = ("1",)
    """Ids of its chassis. Several share the node's power equally, and each is a device ``NAME/ID`` then."""
    energy: EnergyUnit = "both"
    """Counters of energy in EnvironmentMetrics."""
    energy_start_joules: float = 4.4e9
    """Where the counters are at the start."""
    energy_digits: int = 3
    """Decimals of kilowatt hours: 3 is a step of 3600 J. Joules are whole ones."""
    has_lifetime: bool = False
    """Whether there is a second count that a reset leaves alone."""
    power_digits: int = 0
    """Decimals of watts."""
    supplies: tuple[float, ...] = (0.5, 0.5)
    """Power supplies, each with its share of the power."""
    supply_efficiency: float = 0.94
    """Output of a power supply for each watt of its input."""
    cpu_share: float = 0.0
    """Above 0: a second member of PowerControl, the CPUs' share of the power."""
    refresh_s: float = 2.0
    """How often it makes new values."""
    max_sessions: int = 4
    """More logins are refused."""
    session_timeout_s: float = 300.0
    """A session that is not used for so long is forgotten."""
    faults: tuple[Fault, ...] = ()
    """Of the kinds in `REDFISH_FAULTS`."""

    def __post_init__(self) -> None:
        """Check what must hold.

        Raises:
            ValueError: A value is out of its range or unknown.
        """
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name: {self.name!r} must be a word")
        if not self.user or ":" in self.user:
            raise ValueError(f"user: {self.user!r} must be a word without a colon")
        if not self.password:
            raise ValueError("password: must not be empty")
        try:
            ip_address(self.address)
        except ValueError:
            raise ValueError(f"address: {self.address!r} is no IP address") from None
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: must be 0 to 65535, not {self.port}")
        if not self.chassis or len(set(self.chassis)) < len(self.chassis):
            raise ValueError("chassis: needs ids that differ")
        for identity in self.chassis:
            if not re.fullmatch(r"[\w.-]+", identity):
                raise ValueError(f"chassis: {identity!r} must be a word")
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s: must be above 0, not {self.refresh_s:g}")
        for what, digits in (("energy_digits", self.energy_digits), ("power_digits", self.power_digits)):
            if not 0 <= digits <= 6:
                raise ValueError(f"{what}: must be 0 to 6, not {digits}")
        if self.energy_start_joules < 0:
            raise ValueError("energy_start_joules: must not be below 0")
        if any(share < 0 for share in self.supplies) or not 0 < self.supply_efficiency <= 1:
            raise ValueError("supplies: shares must not be below 0, and the efficiency in (0, 1]")
        if self.max_sessions < 1:
            raise ValueError(f"max_sessions: must be at least 1, not {self.max_sessions}")
        if not self.session_timeout_s > 0:
            raise ValueError(f"session_timeout_s: must be above 0, not {self.session_timeout_s:g}")
        for fault in self.faults:
            if fault.kind not in REDFISH_FAULTS:
                raise ValueError(f"faults: {fault.kind} is none of {', '.join(REDFISH_FAULTS)}")

    @property
    def key(self) -> str:
        """``device/domain`` in the truth."""
        return f"{self.name}/total"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What the service holds until the next refresh."""

    watts: float
    joules: float
    """Since the start or the last reset, with what the counter began at."""
    lifetime_joules: float
    taken_at: datetime


class RedfishService:
    """A running service; `url` says where."""

    def __init__(self, spec: RedfishSpec, directory: Path) -> None:
        """Make a certificate and listen.

        Args:
            spec: What it is.
            directory: Gets ``redfish/NAME.pem``, ``NAME.key`` and ``NAME.password``; the last two are readable by
                their owner only.

        Raises:
            ConfigError: There is nothing to make a certificate with.
            OSError: The port is taken.
        """
        self.spec = spec
        folder = directory / "redfish"
        folder.mkdir(parents=True, exist_ok=True)
        self.password_file = folder / f"{spec.name}.password"
        self.ca_file = folder / f"{spec.name}.pem"
        self._key_file = folder / f"{spec.name}.key"
        make_certificate(self.ca_file, self._key_file, spec.name, spec.address)
        _write_private(self.password_file, f"{spec.password}\n".encode())
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.ca_file, self._key_file)
        self._lock = threading.Condition()
        self._sessions: dict[str, tuple[str, float]] = {}
        self._next_session = 1
        self._requests: list[tuple[str, str]] = []
        self._connection_count = 0
        self._faults: frozenset[str] = frozenset()
        self._t_s = 0.0
        self._metered = (0.0, 0.0)
        self._base_joules = 0.0
        self._is_reset = False
        self._sample = _Sample(watts=0.0, joules=0.0, lifetime_joules=0.0, taken_at=datetime.now(UTC))
        self._step = -1
        self._is_closed = False
        self._server: _Server | None = None
        self.port = spec.port
        """The port it answers on."""
        self._listen()
        self.port = self._server.server_address[1] if self._server is not None else self.port
        self.advance(0.0)

    @property
    def url(self) -> str:
        """Where it is reached."""
        host = f"[{self.spec.address}]" if ":" in self.spec.address else self.spec.address
        return f"https://{host}:{self.port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, as people compare them."""
        certificate = ssl.PEM_cert_to_DER_cert(self.ca_file.read_text())
        digest = hashlib.sha256(certificate).hexdigest().upper()
        return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))

    @property
    def target(self) -> dict[str, str]:
        """What the exporter has to be told of it."""
        return {
            "name": self.spec.name,
            "url": self.url,
            "user": self.spec.user,
            "password_file": str(self.password_file),
            "ca_file": str(self.ca_file),
        }

    @property
    def session_count(self) -> int:
        """How many are logged in."""
        with self._lock:
            return len(self._sessions)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of all requests so far."""
        with self._lock:
            return list(self._requests)

    @property
    def connection_count(self) -> int:
        """How many connections were made so far."""
        with self._lock:
            return self._connection_count

    def count_connection(self) -> None:
        """A client has connected."""
        with self._lock:
            self._connection_count += 1

    def advance(self, t_s: float) -> None:
        """Bring it to ``t_s`` seconds after the start: new values where they are due, and what is on the timetable."""
        spec = self.spec
        faults = frozenset(fault.kind for fault in spec.faults if fault.is_on(t_s))
        with self._lock:
            for fault in spec.faults:
                if self._t_s < fault.at_s <= t_s and fault.kind in ("reset", "expired", "denied"):
                    self._sessions.clear()
                    if fault.kind == "reset":
                        self._base_joules = spec.signal.energy_joules(0.0, t_s)
                        self._is_reset = True
                        self._step = -1
            step = int(t_s / spec.refresh_s)
            if step != self._step and "stuck" not in faults:
                self._step = step
                joules = spec.signal.energy_joules(0.0, t_s)
                start_joules = 0.0 if self._is_reset else spec.energy_start_joules
                metered_s, metered_joules = self._metered
                self._metered = (t_s, joules)
                # As meters do: the mean since the last value, of which the first one has none.
                is_first = t_s <= metered_s
                self._sample = _Sample(
                    watts=spec.signal.power_watts(t_s) if is_first else (joules - metered_joules) / (t_s - metered_s),
                    joules=start_joules + joules - self._base_joules,
                    lifetime_joules=spec.energy_start_joules + joules,
                    taken_at=datetime.now(UTC),
                )
            self._t_s = t_s
            self._faults = faults
            self._lock.notify_all()
        if "vanish" in faults:
            self._stop_listening()
        elif self._server is None:
            with contextlib.suppress(OSError):  # somebody has the port just now: it comes back later
                self._listen()

    def close(self) -> None:
        """Switch it off and remove its secrets; safe to call twice."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        self._stop_listening()
        self.password_file.unlink(missing_ok=True)
        self._key_file.unlink(missing_ok=True)

    # -- the network -------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._server is None and not self._is_closed:
            self._server = _Server(self, (self.spec.address, self.port), self._context)
            thread = threading.Thread(
                target=self._server.serve_forever, args=(0.05,), name=f"redfish-{self.spec.name}", daemon=True
            )
            thread.start()

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.cut_all()

    def wait_while_deaf(self) -> bool:
        """Wait as long as it hangs; whether the request is to be answered at all."""
        with self._lock:
            if "hang" not in self._faults:
                return True
            self._lock.wait_for(lambda: self._is_closed or "hang" not in self._faults)
            return False

    # -- requests, from the server's threads --------------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request; the names of its headers are in lower case."""
        path = path.partition("?")[0].rstrip("/")
        with self._lock:
            self._requests.append((method, path))
            self._forget_idle()
            if "busy" in self._faults:
                return HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}, _error("ServiceInUnknownState")
            if method == "POST" and path == _SESSIONS:
                return self._log_in(body)
            if method == "GET" and path in ("/redfish", ROOT):
                return self._resource(path)
            if not self._is_logged_in(headers):
                return HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": 'Basic realm="Redfish"'}, _error("NoValidSession")
            if method == "DELETE" and path.startswith(f"{_SESSIONS}/"):
                return self._log_out(path)
            if method != "GET":
                return HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"}, _error("ActionNotSupported")
            if "broken" in self._faults:
                return HTTPStatus.OK, {}, b'{"@odata.id": "/redfish/v1/Cha'
            return self._resource(path)

    def _forget_idle(self) -> None:
        now_s = time.monotonic()
        for token, (_, used_at_s) in list(self._sessions.items()):
            if now_s - used_at_s > self.spec.session_timeout_s:
                del self._sessions[token]

    def _is_right(self, user: object, password: object) -> bool:
        if "denied" in self._faults or not isinstance(user, str) or not isinstance(password, str):
            return False
        given, wanted = f"{user}\0{password}".encode(), f"{self.spec.user}\0{self.spec.password}".encode()
        return hmac.compare_digest(given, wanted)

    def _is_logged_in(self, headers: Mapping[str, str]) -> bool:
        token = headers.get("x-auth-token")
        if token is not None:
            if token not in self._sessions:
                return False
            self._sessions[token] = (self._sessions[token][0], time.monotonic())
            return True
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return False
        return self._is_right(user, password)

    def _log_in(self, body: bytes) -> Answer:
        try:
            login = json.loads(body)
        except ValueError:
            login = None
        if not isinstance(login, dict):
            return HTTPStatus.BAD_REQUEST, {}, _error("MalformedJSON")
        if not self._is_right(login.get("UserName"), login.get("Password")):
            return HTTPStatus.UNAUTHORIZED, {}, _error("ResourceAtUriUnauthorized")
        if len(self._sessions) >= self.spec.max_sessions:
            return HTTPStatus.SERVICE_UNAVAILABLE, {}, _error("SessionLimitExceeded")
        token, identity = secrets.token_hex(16), str(self._next_session)
        self._next_session += 1
        self._sessions[token] = (identity, time.monotonic())
        path = f"{_SESSIONS}/{identity}"
        resource = _head(path, "Session.v1_5_0.Session", identity, "User session") | {"UserName": self.spec.user}
        return HTTPStatus.CREATED, {"X-Auth-Token": token, "Location": path}, resource

    def _log_out(self, path: str) -> Answer:
        identity = path.rpartition("/")[2]
        for token, (known, _) in list(self._sessions.items()):
            if known == identity:
                del self._sessions[token]
                return HTTPStatus.NO_CONTENT, {}, None
        return HTTPStatus.NOT_FOUND, {}, _error("ResourceMissingAtURI")

    # -- resources ---------------------------------------------------------------------------------

    def _resource(self, path: str) -> Answer:
        resource = self._find(path)
        if resource is None:
            return HTTPStatus.NOT_FOUND, {}, _error("ResourceMissingAtURI")
        return HTTPStatus.OK, {}, resource

    def _find(self, path: str) -> dict[str, Any] | None:
        spec = self.spec
        if path == "/redfish":
            return {"v1": f"{ROOT}/"}
        if path == ROOT:
            return _head(f"{ROOT}/", "ServiceRoot.v1_15_0.ServiceRoot", "RootService", "Root Service") | {
                "RedfishVersion": "1.17.0",
                "Chassis": _link(f"{ROOT}/Chassis"),
                "SessionService": _link(f"{ROOT}/SessionService"),
                "Links": {"Sessions": _link(_SESSIONS)},
            }
        if path == f"{ROOT}/SessionService":
            return _head(path, "SessionService.v1_1_8.SessionService", "SessionService", "Session Service") | {
                "SessionTimeout": round(spec.session_timeout_s),
                "Sessions": _link(_SESSIONS),
            }
        if path == _SESSIONS:
            identities = [identity for identity, _ in self._sessions.values()]
            return _collection(path, "SessionCollection.SessionCollection", identities)
        if path == f"{ROOT}/Chassis":
            return _collection(path, "ChassisCollection.ChassisCollection", spec.chassis)
        match = re.fullmatch(rf"{ROOT}/Chassis/([\w.-]+)(?:/(\w+)(?:/(\w+))?)?", path)
        if match is None or match[1] not in spec.chassis:
            return None
        return self._chassis(path, *match.groups())

    def _chassis(self, path: str, identity: str, what: str | None, member: str | None) -> dict[str, Any] | None:
        is_modern = self.spec.flavour != "classic"
        is_classic = self.spec.flavour != "modern"
        base = f"{ROOT}/Chassis/{identity}"
        match what, member:
            case None, None:
                resource = _head(path, "Chassis.v1_22_0.Chassis", identity, "Computer System Chassis") | {
                    "ChassisType": "RackMount",
                    "Manufacturer": "Joulewatch",
                    "Model": "Emulated",
                }
                if is_modern:
                    resource["EnvironmentMetrics"] = _link(f"{base}/EnvironmentMetrics")
                    resource["Sensors"] = _link(f"{base}/Sensors")
                if is_classic:
                    resource["Power"] = _link(f"{base}/Power")
                return resource
            case "Power", None if is_classic:
                return self._power(path)
            case "EnvironmentMetrics", None if is_modern:
                return self._environment(path, base)
            case "Sensors", None if is_modern:
                return _collection(path, "SensorCollection.SensorCollection", ["TotalPower", *self._counters()])
            case "Sensors", "TotalPower" if is_modern:
                return self._sensor(path, "TotalPower", "Power", "W", self._watts())
            case "Sensors", str() if is_modern and member in self._counters():
                unit = "J" if member == "EnergyJoules" else "kW.h"
                return self._sensor(path, member, member, unit, self._counter(member))
        return None

    def _counters(self) -> tuple[str, ...]:
        names = {"joules": ("EnergyJoules",), "kwh": ("EnergykWh",), "both": ("EnergyJoules", "EnergykWh"), "none": ()}
        return names[self.spec.energy]

    def _watts(self, share: float = 1.0) -> float | None:
        if "glitch" in self._faults:
            return None
        if "garbage" in self._faults:
            return GARBAGE
        if "zero" in self._faults:
            return 0
        watts = round(self._sample.watts * share / len(self.spec.chassis), self.spec.power_digits)
        return watts if self.spec.power_digits else int(watts)

    def _counter(self, name: str, *, lifetime: bool = False) -> float | None:
        if "glitch" in self._faults:
            return None
        if "garbage" in self._faults:
            return GARBAGE
        joules = self._sample.lifetime_joules if lifetime else self._sample.joules
        joules /= len(self.spec.chassis)
        if name == "EnergyJoules":
            return int(joules)
        # A counter shows the steps that are full.
        steps = int(joules / _JOULES_PER_KWH * 10**self.spec.energy_digits)
        return steps / 10**self.spec.energy_digits if self.spec.energy_digits else steps

    def _environment(self, path: str, base: str) -> dict[str, Any]:
        resource = _head(path, "EnvironmentMetrics.v1_3_0.EnvironmentMetrics", "EnvironmentMetrics", "Environment") | {
            "PowerWatts": {"DataSourceUri": f"{base}/Sensors/TotalPower", "Reading": self._watts()}
        }
        for name in self._counters():
            resource[name] = {"DataSourceUri": f"{base}/Sensors/{name}", "Reading": self._counter(name)}
            if self.spec.has_lifetime:
                resource[name]["LifetimeReading"] = self._counter(name, lifetime=True)
        return resource

    def _sensor(self, path: str, name: str, reading_type: str, unit: str, reading: float | None) -> dict[str, Any]:
        resource = _head(path, "Sensor.v1_8_0.Sensor", name, name) | {
            "PhysicalContext": "Chassis",
            "ReadingType": reading_type,
            "ReadingUnits": unit,
            "Reading": reading,
            "ReadingTime": self._sample.taken_at.isoformat(timespec="milliseconds"),
            "SensingInterval": f"PT{self.spec.refresh_s:g}S",
        }
        if self.spec.has_lifetime and name != "TotalPower":
            resource["LifetimeReading"] = self._counter(name, lifetime=True)
        return resource

    def _power(self, path: str) -> dict[str, Any]:
        spec = self.spec
        controls = [{"MemberId": "0", "Name": "System Power Control", "PowerConsumedWatts": self._watts()}]
        if spec.cpu_share > 0:
            watts = self._watts(spec.cpu_share)
            controls.append({"MemberId": "1", "Name": "CPU Sub-system Power", "PowerConsumedWatts": watts})
        supplies = [
            {
                "MemberId": str(index),
                "Name": f"Power Supply {index + 1}",
                "PowerInputWatts": self._watts(share),
                "PowerOutputWatts": self._watts(share * spec.supply_efficiency),
            }
            for index, share in enumerate(spec.supplies)
        ]
        return _head(path, "Power.v1_7_1.Power", "Power", "Power") | {
            "PowerControl": controls,
            "PowerSupplies": supplies,
        }


def _head(path: str, schema: str, identity: str, name: str) -> dict[str, Any]:
    return {"@odata.id": path, "@odata.type": f"#{schema}", "Id": identity, "Name": name}


def _link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def _collection(path: str, schema: str, members: Any) -> dict[str, Any]:
    links = [_link(f"{path}/{member}") for member in members]
    return {
        "@odata.id": path,
        "@odata.type": f"#{schema}",
        "Name": path.rpartition("/")[2],
        "Members@odata.count": len(links),
        "Members": links,
    }


def _error(message: str) -> dict[str, Any]:
    code = f"Base.1.18.{message}"
    return {"error": {"code": code, "message": message, "@Message.ExtendedInfo": [{"MessageId": code}]}}


class _Server(ThreadingHTTPServer):
    """One thread for each connection, in which its handshake is done too: one that hangs holds up nobody."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, service: RedfishService, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.service = service
        self.context = context
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(_HANDSHAKE_S)
        with self.context.wrap_socket(request, server_side=True) as connection:
            self.service.count_connection()
            with self._connections_lock:
                self._connections.add(connection)
            try:
                super().finish_request(connection, client_address)
            finally:
                with self._connections_lock:
                    self._connections.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that does not trust the certificate, or went away.
        logger.debug("redfish: a connection broke off")

    def server_bind(self) -> None:
        # Without the look-up of the host's name that HTTPServer does.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def cut_all(self) -> None:
        """End all connections."""
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        body = self.rfile.read(min(int(length), _LONGEST_BODY)) if length.isdigit() else b""
        if not self.server.service.wait_while_deaf():
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, sent, resource = self.server.service.answer(self.command, self.path, headers, body)
        content = (
            resource if isinstance(resource, bytes) else b"" if resource is None else json.dumps(resource).encode()
        )
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.send_header("OData-Version", "4.0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing for each request."""


# -- the certificate -------------------------------------------------------------------------------


def make_certificate(certificate: Path, key: Path, name: str, address: str) -> None:
    """Make a certificate that is its own authority, for one address, good for a year.

    Raises:
        ConfigError: Neither the library cryptography nor the program openssl is there.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        _certificate_by_openssl(certificate, key, name, address)
    else:
        _certificate_by_cryptography(certificate, key, name, address)


def _certificate_by_cryptography(certificate: Path, key: Path, name: str, address: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    _write_private(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _certificate_by_openssl(certificate: Path, key: Path, name: str, address: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise ConfigError("an emulated Redfish service needs the program openssl, or: pip install cryptography")
    _write_private(key, b"")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", f"/CN={name[:64]}", "-addext", f"subjectAltName=IP:{address}")
    files = ("-keyout", str(key), "-out", str(certificate))
    try:
        subprocess.run(
            [program, "req", "-x509", *curve, *files, "-days", "365", *names],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{program}: could not make a certificate: {error}") from error


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
