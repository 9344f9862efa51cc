"""GET /, /metrics, /-/healthy; TLS and basic auth as the Prometheus exporter toolkit configures them.

Why not prometheus_client's server: its TLS handshake runs in the accept loop, where one silent peer stalls
every scrape; it has no time-outs, no limit of requests, no basic auth, and answers any path with metrics.

Here every connection has a thread of its own in which everything that a peer can delay takes place (handshake,
request, response), each within a time-out, so that a slow or silent peer costs nobody else anything.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import html
import io
import logging
import os
import secrets
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from joulewatch_exporter import __version__
from joulewatch_exporter.config import WebConfig, load_web_config, parse_address
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.strict import nearest

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 5.0
"""From the first byte of a request to its last, and for the peer to take the response."""
KEEP_ALIVE_S: Final = 120.0
"""An idle connection is closed after this; longer than the scrape intervals in use."""
MAX_REQUEST_BYTES: Final = 32 * 1024
MAX_CONNECTIONS: Final = 256
MIN_GZIP_BYTES: Final = 1024

_BACKLOG: Final = 128
_TLS_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class Scrape(Protocol):
    """What the server calls for a scrape."""

    def __call__(self, *, accept: str | None, only: frozenset[str] | None, timeout_s: float) -> tuple[bytes, str]:
        """The body and its content type."""
        ...


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; the body is complete."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class _BadRequestError(Exception):
    """The peer's request is answered with this and the connection closed."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Received(io.RawIOBase):
    """A socket's bytes, under one deadline and one limit for the whole request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline_ns = 0
        self._left = 0

    def begin(self, timeout_s: float) -> None:
        """A new request may come: give it ``timeout_s`` and the whole limit of bytes."""
        self._deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        self._left = MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = (self._deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        if self._left <= 0:
            raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class Access:
    """TLS and users of the web configuration; read again when one of its files changes.

    Certificates are renewed and users added without a restart. A file that has become wrong is said
    once, and what was read before stays in force.
    """

    _CACHED: Final = 256

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            ConfigError: The file or one that it names is wrong, or the package for basic auth is missing.
        """
        self._path = path
        self._lock = threading.Lock()
        self._salt = secrets.token_bytes(16)
        self._passed: dict[bytes, None] = {}
        self._stamps: tuple[int, ...] = ()
        self.web = WebConfig()
        self.tls: ssl.SSLContext | None = None
        if path is not None:
            self._load(path)
            if self.web.http_server_config.http2:
                logger.warning("%s: http_server_config.http2 is not honoured: this server speaks HTTP/1.1", path)

    def _load(self, path: Path) -> None:
        web = load_web_config(path)
        tls = None if web.tls_server_config is None else _tls_context(web, path)
        if web.basic_auth_users:
            _bcrypt(path)
        self.web, self.tls = web, tls
        self._passed = {}
        self._stamps = self._read_stamps()

    def _read_stamps(self) -> tuple[int, ...]:
        tls = self.web.tls_server_config
        files = [self._path]
        if tls is not None:
            files += [tls.cert_file, tls.key_file, tls.client_ca_file]
        stamps: list[int] = []
        for file in files:
            if file is not None:
                try:
                    stamps.append(file.stat().st_mtime_ns)
                except OSError:
                    stamps.append(0)
        return tuple(stamps)

    def refresh(self) -> None:
        """Read the files again if one has changed; called once per connection."""
        if self._path is None:
            return
        with self._lock:
            stamps = self._read_stamps()
            if stamps == self._stamps:
                return
            had_tls = self.tls is not None
            try:
                self._load(self._path)
                logger.info("%s: read again", self._path)
            except ConfigError as error:
                self._stamps = stamps
                logger.error("%s; the settings read before stay in force", error)
                return
            if had_tls != (self.tls is not None):
                logger.warning("%s: TLS was switched %s", self._path, "off" if had_tls else "on")

    @property
    def required(self) -> bool:
        """Whether a password is asked for."""
        return bool(self.web.basic_auth_users)

    def allows(self, authorization: str | None) -> bool:
        """Whether an ``Authorization`` header holds a user and the password; as slow for a wrong user."""
        scheme, _, encoded = (authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        users = self.web.basic_auth_users
        expected = users.get(user)
        key = hashlib.sha256(
            b"\0".join((self._salt, user.encode(), password.encode(), (expected or "").encode()))
        ).digest()
        # One check at a time: bcrypt is slow on purpose, and a flood of guesses must not take the machine.
        with self._lock:
            if key in self._passed:
                return True
            # A wrong user costs the same check as a wrong password, so that the time tells no names.
            stored = expected if expected is not None else next(iter(users.values()))
            try:
                # bcrypt has always looked at the first 72 bytes only; its package now insists on it.
                matches: bool = _bcrypt(self._path).checkpw(password.encode()[:72], stored.encode())
            except ValueError:
                matches = False
            allowed = matches and expected is not None
            if allowed:
                while len(self._passed) >= self._CACHED:
                    self._passed.pop(next(iter(self._passed)))
                self._passed[key] = None
            return allowed


def _bcrypt(path: Path | None) -> Any:
    try:
        import bcrypt
    except ImportError as error:
        raise ConfigError(
            f"{path}: basic_auth_users needs the package bcrypt: pip install 'joulewatch[web]'"
        ) from error
    return bcrypt


def _tls_context(web: WebConfig, path: Path) -> ssl.SSLContext:
    tls = web.tls_server_config
    assert tls is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _TLS_VERSIONS[tls.min_version]
    context.maximum_version = _TLS_VERSIONS[tls.max_version]
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: tls_server_config: {tls.cert_file} and {tls.key_file} are no certificate and its key: {error}"
        ) from error
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: tls_server_config.client_ca_file: {tls.client_ca_file} holds no certificate: {error}"
            ) from error
    context.verify_mode = _CLIENT_AUTH[tls.client_auth_type]
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; a daemon cannot be asked for its password")


class WebServer:
    """Listens on all addresses at once; one thread per address, one per connection."""

    def __init__(
        self,
        addresses: Sequence[str],
        scrape: Scrape,
        *,
        collectors: Iterable[str] = (),
        telemetry_path: str = "/metrics",
        max_requests: int = 40,
        read_timeout_s: float = 2.0,
        access: Access | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        keep_alive_s: float = KEEP_ALIVE_S,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        """Bind every address; nothing is accepted before ``start``.

        Args:
            addresses: ``host:port`` each.
            scrape: Called for each scrape, by many threads at once.
            collectors: Names that ``?collect[]=`` may give.
            telemetry_path: Where the metrics are.
            max_requests: Scrapes at the same time; more are answered 503. 0: any number.
            read_timeout_s: Longest wait of a scrape for its sensors.
            access: TLS and users; None: everybody, in the clear.
            request_timeout_s: For a peer to send a request, and to take a response.
            keep_alive_s: For an idle connection.
            handshake_timeout_s: For the TLS handshake.

        Raises:
            ConfigError: An address is wrong or in use.
        """
        self._scrape = scrape
        self._collectors = tuple(collectors)
        self._telemetry_path = telemetry_path
        self._read_timeout_s = read_timeout_s
        self._access = access if access is not None else Access(None)
        self.request_timeout_s = request_timeout_s
        self.keep_alive_s = keep_alive_s
        self._handshake_timeout_s = handshake_timeout_s
        self._slots = threading.BoundedSemaphore(max_requests) if max_requests else None
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._stopping = False
        self._listeners: list[socket.socket] = []
        self._bound: list[tuple[str, int]] = []
        self._threads: list[threading.Thread] = []
        try:
            for address in addresses:
                listener = _listen(address)
                self._listeners.append(listener)
                self._bound.append(listener.getsockname()[:2])
        except ConfigError:
            self.stop()
            raise

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the metrics are, one for each address, with the ports that were really taken."""
        scheme = "https" if self._access.tls is not None else "http"
        return tuple(
            f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{self._telemetry_path}"
            for host, port in self._bound
        )

    def start(self) -> None:
        for listener in self._listeners:
            thread = threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, grace_s: float = 0.2) -> None:
        """Accept nothing more, let running responses end for ``grace_s``, then close every connection."""
        self._stopping = True
        for listener in self._listeners:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            except OSError:
                pass
            listener.close()
        for thread in self._threads:
            thread.join(grace_s)
        with self._open_lock:
            connections = list(self._open)
        for connection in connections:
            try:
                # An idle one ends at once, a busy one after its response. Not SSLSocket.shutdown: that drops the
                # encryption, and the response still to come would go out in the clear.
                socket.socket.shutdown(connection, socket.SHUT_RD)
            except OSError:
                pass
        end_ns = time.monotonic_ns() + round(grace_s * 1e9)
        while time.monotonic_ns() < end_ns:
            with self._open_lock:
                if not self._open:
                    return
            time.sleep(0.005)
        with self._open_lock:
            connections = list(self._open)
        for connection in connections:
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                pass

    # -- connections -------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stopping:
                    return
                logger.error("cannot accept a connection: %s", error)
                time.sleep(0.1)  # out of files: the connections that are open must end first
                continue
            if not self._connections.acquire(blocking=False):
                connection.close()
                continue
            with self._open_lock:
                self._open.add(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), name="request", daemon=True).start()
            except RuntimeError:
                self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._open_lock:
            self._open.discard(connection)
        connection.close()
        self._connections.release()

    def _serve(self, connection: socket.socket) -> None:
        secured: socket.socket = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._access.refresh()
            context = self._access.tls
            if context is not None:
                connection.settimeout(self._handshake_timeout_s)
                secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with self._open_lock:
                    self._open.discard(connection)
                    self._open.add(secured)
                assert isinstance(secured, ssl.SSLSocket)
                secured.do_handshake()
                if not self._client_allowed(secured):
                    return
            _Connection(self, secured).serve()
        except (OSError, ssl.SSLError) as error:
            logger.debug("connection ended: %s", error)
        except Exception:
            logger.exception("a request failed")
        finally:
            self._forget(secured)

    def _client_allowed(self, connection: ssl.SSLSocket) -> bool:
        tls = self._access.web.tls_server_config
        if tls is None or not tls.client_allowed_sans:
            return True
        certificate = connection.getpeercert() or {}
        names = {str(entry[1]) for entry in certificate.get("subjectAltName", ()) if len(entry) == 2}
        return not names.isdisjoint(tls.client_allowed_sans)

    # -- requests ----------------------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Response:
        """The response to one request; HEAD is answered as GET, its body is left out when it is sent.

        Args:
            method: Such as ``GET``.
            target: Path and query as sent.
            headers: By lower-case name.
        """
        if self._access.required and not self._access.allows(headers.get("authorization")):
            return _plain(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                ("WWW-Authenticate", 'Basic realm="joulewatch", charset="UTF-8"'),
            )
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ("Allow", "GET, HEAD"))
        path, _, query = target.partition("?")
        if path == self._telemetry_path:
            return self._answer_metrics(query, headers)
        if path == "/-/healthy":
            return _plain(HTTPStatus.OK, "joulewatch-exporter is healthy")
        if path == "/":
            return Response(HTTPStatus.OK, self._landing_page(), "text/html; charset=utf-8")
        return _plain(HTTPStatus.NOT_FOUND, f"nothing here; the metrics are at {self._telemetry_path}")

    def _answer_metrics(self, query: str, headers: Mapping[str, str]) -> Response:
        try:
            wanted = urllib.parse.parse_qs(query, max_num_fields=64).get("collect[]")
        except ValueError:
            return _plain(HTTPStatus.BAD_REQUEST, "too many parameters")
        for name in wanted or ():
            if name not in self._collectors:
                hint = nearest(name, ()) if not self._collectors else f"known: {', '.join(self._collectors)}"
                return _plain(HTTPStatus.BAD_REQUEST, f"unknown collector {name!r}; {hint}")
        if self._slots is not None and not self._slots.acquire(blocking=False):
            return _plain(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many scrapes at the same time (--web.max-requests)",
                ("Retry-After", "1"),
            )
        try:
            body, content_type = self._scrape(
                accept=headers.get("accept"),
                only=None if wanted is None else frozenset(wanted),
                timeout_s=self._scrape_timeout_s(headers),
            )
        except Exception:
            logger.exception("a scrape failed")
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "the scrape failed; the log says why")
        finally:
            if self._slots is not None:
                self._slots.release()
        extra: tuple[tuple[str, str], ...] = (("Vary", "Accept, Accept-Encoding"),)
        if len(body) >= MIN_GZIP_BYTES and _accepts_gzip(headers.get("accept-encoding", "")):
            # Level 1: a fifth of the time of level 9 for nearly the same size on text like this.
            packer = zlib.compressobj(level=1, wbits=31)
            body = packer.compress(body) + packer.flush()
            extra += (("Content-Encoding", "gzip"),)
        return Response(HTTPStatus.OK, body, content_type, extra)

    def _scrape_timeout_s(self, headers: Mapping[str, str]) -> float:
        """Prometheus says how long it will wait: answer before that, with what there is."""
        try:
            offered_s = float(headers.get("x-prometheus-scrape-timeout-seconds", "inf"))
        except ValueError:
            return self._read_timeout_s
        return min(self._read_timeout_s, 0.75 * offered_s) if offered_s > 0 else self._read_timeout_s

    def _landing_page(self) -> bytes:
        path = html.escape(self._telemetry_path, quote=True)
        links = "".join(
            f'<li><a href="{path}?collect[]={html.escape(name, quote=True)}">only {html.escape(name)}</a></li>'
            for name in self._collectors
        )
        return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>joulewatch exporter</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em;color:#222}}
h1{{font-weight:600;margin-bottom:0}}p{{margin-top:.3em;color:#666}}a{{color:#0b5fa5}}
@media(prefers-color-scheme:dark){{body{{background:#181a1b;color:#ddd}}p{{color:#999}}a{{color:#6db3f2}}}}</style>
</head>
<body><h1>joulewatch exporter</h1>
<p>Power and energy of the sensors of this machine, for Prometheus. Version {html.escape(__version__)}.</p>
<ul><li><a href="{path}">Metrics</a><ul>{links}</ul></li><li><a href="/-/healthy">Health</a></li></ul>
</body></html>
""".encode()

    @property
    def extra_headers(self) -> Mapping[str, str]:
        return self._access.web.http_server_config.headers

    @property
    def stopping(self) -> bool:
        return self._stopping


class _Connection:
    """One peer: requests one after another, each response in one write."""

    def __init__(self, server: WebServer, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._received = _Received(connection)
        self._reader = io.BufferedReader(self._received, 8192)

    def serve(self) -> None:
        going_on = True
        while going_on and not self._server.stopping:
            try:
                request = self._read_request()
            except _BadRequestError as error:
                self._send(_plain(error.status, str(error)), head=False, close=True)
                return
            if request is None:
                return
            method, target, version, headers = request
            has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            connection = headers.get("connection", "").lower()
            # A body is not read, so what follows it on this connection could not be found.
            going_on = not has_body and (
                "keep-alive" in connection if version == "HTTP/1.0" else "close" not in connection
            )
            response = self._server.answer(method, target, headers)
            logger.debug("%s %s %d", method, target.partition("?")[0], response.status)
            going_on = going_on and not self._server.stopping
            self._send(response, head=method == "HEAD", close=not going_on)

    def _read_request(self) -> tuple[str, str, str, dict[str, str]] | None:
        """Method, target, version and headers; None if the peer has gone."""
        self._received.begin(self._server.keep_alive_s)
        try:
            if not self._reader.peek(1):
                return None
        except TimeoutError:
            return None
        self._received.begin(self._server.request_timeout_s)
        line = self._read_line()
        while line in (b"\r\n", b"\n"):  # RFC 9112, 2.2: a server should ignore empty lines before a request
            line = self._read_line()
        if not line:
            return None
        words = line.decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "this is no HTTP request")
        method, target, version = words
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise _BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and HTTP/1.1")
        if not target.startswith("/"):
            # The absolute form of a proxy, which a server must accept too (RFC 9112, 3.2.2).
            parsed = urllib.parse.urlsplit(target)
            target = (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")
        headers: dict[str, str] = {}
        while True:
            line = self._read_line()
            if not line:
                return None
            if line in (b"\r\n", b"\n"):
                return method, target, version, headers
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise _BadRequestError(HTTPStatus.BAD_REQUEST, "a header is malformed")
            if len(headers) >= 100:
                raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers")
            key = name.lower()
            value = value.strip()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value

    def _read_line(self) -> bytes:
        """A whole line; empty if the peer has gone."""
        line = self._reader.readline(MAX_REQUEST_BYTES)
        if len(line) >= MAX_REQUEST_BYTES:
            raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
        return line if line.endswith(b"\n") else b""

    def _send(self, response: Response, *, head: bool, close: bool) -> None:
        lines = [
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            f"Date: {email.utils.formatdate(usegmt=True)}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers),
            *(f"{name}: {value}" for name, value in self._server.extra_headers.items()),
        ]
        if close:
            lines.append("Connection: close")
        data = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        self._connection.settimeout(self._server.request_timeout_s)
        if head:
            self._connection.sendall(data)
        elif isinstance(self._connection, ssl.SSLSocket):
            self._connection.sendall(data + response.body)
        else:
            # One write, without first copying a megabyte of body behind its headers.
            sent = self._connection.sendmsg((data, response.body))
            if sent < len(data) + len(response.body):
                self._connection.sendall(memoryview(data + response.body)[sent:])


def _plain(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    return Response(status, f"{text}\n".encode(), headers=headers)


def _accepts_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _has_ipv6() -> bool:
    """Whether ``::`` can be bound for IPv4 too; the kernel may know IPv6 and have it switched off."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _listen(address: str) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: The address is wrong, not of this machine, forbidden or in use.
    """
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise ConfigError(f"--web.listen-address: {error}") from error
    try:
        if not host:
            if _has_ipv6():
                return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
            return socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(where[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            f"--web.listen-address: cannot listen on {address}: {reason}"
            + ("; another exporter may be running: give another port" if "in use" in reason else "")
        ) from error
