"""An emulated Redfish service: the power and energy of a node over HTTPS, with sessions and faults.

It behaves like a BMC: values are updated every ``refresh_s``, sessions are few and expire, and the certificate is
self-signed. There are three generations: ``classic`` has the resource Power, ``modern`` has EnvironmentMetrics and
Sensors instead, ``both`` has all of them. Faults occur at the times of the scenario.

Source: DMTF DSP0266 (protocol), DSP0268 (schemas Chassis, EnvironmentMetrics, Power, Sensor, Session).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from joulewatch_exporter.emulator.files import write_private
from joulewatch_exporter.emulator.redfish.https import Answer, HttpsServer, make_certificate
from joulewatch_exporter.emulator.redfish.resources import ROOT, SESSIONS, Resources, Sample, head
from joulewatch_exporter.emulator.redfish.spec import RedfishSpec

logger = logging.getLogger(__name__)


class RedfishService:
    """A running service, at `url`."""

    def __init__(self, spec: RedfishSpec, directory: Path, documents: Mapping[str, Any] | None = None) -> None:
        """Make a certificate and listen.

        Args:
            spec: The service.
            documents: Resources by path that replace the emulated ones, such as those of a published mockup.
            directory: For ``redfish/NAME.pem``, ``NAME.key`` and ``NAME.password``; only their owner can read the last
                two.

        Raises:
            ConfigError: Nothing that makes certificates is installed.
            OSError: The port is in use.
        """
        self.spec = spec
        self._documents = documents or {}
        folder = directory / "redfish"
        folder.mkdir(parents=True, exist_ok=True)
        self.password_file = folder / f"{spec.name}.password"
        self.ca_file = folder / f"{spec.name}.pem"
        self._key_file = folder / f"{spec.name}.key"
        make_certificate(self.ca_file, self._key_file, spec.name, spec.address)
        write_private(self.password_file, f"{spec.password}\n".encode())
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
        self._sample = Sample(watts=0.0, joules=0.0, lifetime_joules=0.0, taken_at=datetime.now(UTC))
        self._step = -1
        self._is_closed = False
        self._server: HttpsServer | None = None
        self.port = spec.port
        """The TCP port of the service."""
        self._listen()
        self.port = self._server.server_address[1] if self._server is not None else self.port
        self.advance(0.0)

    @property
    def url(self) -> str:
        """The URL of the service."""
        host = f"[{self.spec.address}]" if ":" in self.spec.address else self.spec.address
        return f"https://{host}:{self.port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in the usual form of hexadecimal bytes with colons."""
        certificate = ssl.PEM_cert_to_DER_cert(self.ca_file.read_text())
        digest = hashlib.sha256(certificate).hexdigest().upper()
        return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2))

    @property
    def target(self) -> dict[str, str]:
        """The target in the configuration of the exporter."""
        return {
            "name": self.spec.name,
            "url": self.url,
            "user": self.spec.user,
            "password_file": str(self.password_file),
            "ca_file": str(self.ca_file),
        }

    @property
    def session_count(self) -> int:
        """Number of active sessions."""
        with self._lock:
            return len(self._sessions)

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of all requests so far."""
        with self._lock:
            return list(self._requests)

    @property
    def connection_count(self) -> int:
        """Number of connections so far."""
        with self._lock:
            return self._connection_count

    def count_connection(self) -> None:
        """Count a new connection."""
        with self._lock:
            self._connection_count += 1

    def advance(self, t_s: float) -> None:
        """Move the service to ``t_s`` seconds after the start: make values if they are due, and apply the faults."""
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
                # The mean since the last value, as meters show it; the first value is momentary.
                is_first = t_s <= metered_s
                self._sample = Sample(
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
            with contextlib.suppress(OSError):  # the port is in use at the moment; retried at the next call
                self._listen()

    def close(self) -> None:
        """Close the port and remove the key and the password; safe to call twice."""
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        self._stop_listening()
        self.password_file.unlink(missing_ok=True)
        self._key_file.unlink(missing_ok=True)

    # -- the network -------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._server is None and not self._is_closed:
            self._server = HttpsServer(self, (self.spec.address, self.port), self._context)
            thread = threading.Thread(
                target=self._server.serve_forever, args=(0.05,), name=f"redfish-{self.spec.name}", daemon=True
            )
            thread.start()

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.close_connections()

    def wait_while_hanging(self) -> bool:
        """Wait while the service hangs; return whether the request is to be answered."""
        with self._lock:
            if "hang" not in self._faults:
                return True
            self._lock.wait_for(lambda: self._is_closed or "hang" not in self._faults)
            return False

    # -- requests, from the server's threads --------------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request; the names of its headers are in lower case."""
        path = path.partition("?")[0].rstrip("/")
        with self._lock:
            self._requests.append((method, path))
            self._remove_idle_sessions()
            if "busy" in self._faults:
                return HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"}, _error("ServiceInUnknownState")
            if method == "POST" and path == SESSIONS:
                return self._log_in(body)
            if method == "GET" and path in ("/redfish", ROOT):
                return self._resource(path)
            if not self._is_logged_in(headers):
                return HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": 'Basic realm="Redfish"'}, _error("NoValidSession")
            if method == "DELETE" and path.startswith(f"{SESSIONS}/"):
                return self._log_out(path)
            if method != "GET":
                return HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"}, _error("ActionNotSupported")
            if "broken" in self._faults:
                return HTTPStatus.OK, {}, b'{"@odata.id": "/redfish/v1/Cha'
            return self._resource(path)

    def _remove_idle_sessions(self) -> None:
        now_s = time.monotonic()
        for token, (_, used_at_s) in list(self._sessions.items()):
            if now_s - used_at_s > self.spec.session_timeout_s:
                del self._sessions[token]

    def _is_valid_login(self, user: object, password: object) -> bool:
        if "denied" in self._faults or not isinstance(user, str) or not isinstance(password, str):
            return False
        given, expected = f"{user}\0{password}".encode(), f"{self.spec.user}\0{self.spec.password}".encode()
        return hmac.compare_digest(given, expected)

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
        return self._is_valid_login(user, password)

    def _log_in(self, body: bytes) -> Answer:
        try:
            login = json.loads(body)
        except ValueError:
            login = None
        if not isinstance(login, dict):
            return HTTPStatus.BAD_REQUEST, {}, _error("MalformedJSON")
        if not self._is_valid_login(login.get("UserName"), login.get("Password")):
            return HTTPStatus.UNAUTHORIZED, {}, _error("ResourceAtUriUnauthorized")
        if len(self._sessions) >= self.spec.max_sessions:
            return HTTPStatus.SERVICE_UNAVAILABLE, {}, _error("SessionLimitExceeded")
        token, identity = secrets.token_hex(16), str(self._next_session)
        self._next_session += 1
        self._sessions[token] = (identity, time.monotonic())
        path = f"{SESSIONS}/{identity}"
        resource = head(path, "Session.v1_5_0.Session", identity, "User session") | {"UserName": self.spec.user}
        return HTTPStatus.CREATED, {"X-Auth-Token": token, "Location": path}, resource

    def _log_out(self, path: str) -> Answer:
        identity = path.rpartition("/")[2]
        for token, (session, _) in list(self._sessions.items()):
            if session == identity:
                del self._sessions[token]
                return HTTPStatus.NO_CONTENT, {}, None
        return HTTPStatus.NOT_FOUND, {}, _error("ResourceMissingAtURI")

    # -- resources ---------------------------------------------------------------------------------

    def _resource(self, path: str) -> Answer:
        identities = [identity for identity, _ in self._sessions.values()]
        resources = Resources(spec=self.spec, sample=self._sample, faults=self._faults, sessions=identities)
        emulated, given = resources.find(path), self._documents.get(path)
        resource = emulated if given is None else given
        if path == ROOT and given is not None and emulated is not None:
            resource = emulated | given  # with the links to chassis and sessions
        if resource is None:
            return HTTPStatus.NOT_FOUND, {}, _error("ResourceMissingAtURI")
        return HTTPStatus.OK, {}, resource


def _error(message: str) -> dict[str, Any]:
    code = f"Base.1.18.{message}"
    return {"error": {"code": code, "message": message, "@Message.ExtendedInfo": [{"MessageId": code}]}}
