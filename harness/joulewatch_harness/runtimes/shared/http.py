"""HTTP/1.1 client for servers under test: the latency of a request must be the server's, not the client's.

A request is sent in one write, head and body together, on a connection that stays open and has TCP_NODELAY set;
bodies are not copied. Proxies of the environment are not used, because they would be measured with the server.
Secrets come from files and never appear in errors, logs or reprs.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from joulewatch_harness import files
from joulewatch_harness.binder import Limits
from joulewatch_harness.clients.bounded import BoundedResponse, TooLongError, TooSlowError
from joulewatch_harness.clients.options import HttpOptions, without_secrets
from joulewatch_harness.errors import ConfigError, NetworkError, one_line
from joulewatch_harness.runtimes.shared.options import RuntimeOptions

DEFAULT_TIMEOUT_S: Final = 60.0
PIECE_BYTES: Final = 1 << 16
LONGEST_BODY: Final = 1 << 29
"""Bytes of an answer: a large batch of outputs as JSON."""
LONGEST_ANSWER_WAITS: Final = 10.0
"""A whole answer may take this many times ``timeout_s``."""

GRPC: Final = ("grpc", "grpcs")
"""gRPC defines no URL schemes; these two are joulewatch's."""

_GONE: Final = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, http.client.RemoteDisconnected)
_SHORTEST_SECRET: Final = 4

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The address of a server, and how to connect to it."""

    url: str
    """Base URL without a slash at its end."""
    scheme: str
    host: str
    port: int
    """0: the URL has no port, and its scheme has no default."""
    path: str
    """Path of the base URL."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Longest wait for an answer, or between two pieces of it."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def head(self, method: str, path: str, length: int | None, headers: Mapping[str, str]) -> bytes:
        """Return the request line and headers; ``length`` is that of the body, None if there is no body."""
        lines = {"Host": self.authority, "User-Agent": "joulewatch", "Accept-Encoding": "identity"}
        if length is not None:
            lines["Content-Length"] = str(length)
        lines |= headers
        # The user's headers replace these, in any case: an ingress may require another Host.
        own = {name.lower() for name in self.headers}
        lines = {name: value for name, value in lines.items() if name.lower() not in own} | dict(self.headers)
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {self.path}{path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")

    @property
    def authority(self) -> str:
        """Host and port as in a Host header."""
        usual = 443 if self.tls is not None else 80
        return self.quoted_host if self.port == usual else f"{self.quoted_host}:{self.port}"

    @property
    def quoted_host(self) -> str:
        """The host as it is written before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def masked(self, text: str) -> str:
        """Return ``text`` without the values of the user's headers: servers quote a key that they refuse."""
        for value in self.headers.values():
            for secret in {value, *value.split()}:
                if len(secret) >= _SHORTEST_SECRET and secret not in ("Bearer", "Basic", "Token"):
                    text = text.replace(secret, "***")
        return text


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; None if it is not valid JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def summary(self) -> str:
        """Return status and message of the server: ``HTTP 400: unknown model``."""
        answer = self.json()
        message: Any = None
        if isinstance(answer, dict):
            message = answer.get("error") or answer.get("detail") or answer.get("message")
            if isinstance(message, dict):
                message = message.get("message") or message.get("type")
        if isinstance(message, (list, dict)):
            message = json.dumps(message)
        if isinstance(message, str) and message.strip():
            return f"HTTP {self.status}: {one_line(message)}"
        kind = self.headers.get("content-type", "").partition(";")[0] or "no content type"
        start = " ".join(self.body[:200].decode("utf-8", "replace").split())[:60]
        return f"HTTP {self.status}, {kind}" + (f", begins {json.dumps(start)}" if start else ", empty")


@dataclass(frozen=True)
class ServerOptions(RuntimeOptions, HttpOptions):
    """Options of a runtime whose models are behind a server.

    Raises:
        ConfigError: as of ``HttpOptions``; the URL is missing, or a file cannot be read.
    """

    _: KW_ONLY
    timeout_s: Annotated[float, Limits(gt=0, le=86400, unit="seconds")] = DEFAULT_TIMEOUT_S
    """Longest wait for an answer, or between two pieces of it; ten times this for the whole answer."""
    headers_file: Path | None = None
    """File with headers that are sent with every request, one ``Name: value`` per line."""
    where: Endpoint = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scheme = self.url.partition("://")[0]
        if scheme in GRPC and scheme not in self.SCHEMES:
            raise ConfigError(f"url: {without_secrets(self.url)}: gRPC is not supported; give the server's HTTP port")
        super().__post_init__()
        if not self.url:
            raise ConfigError("url: is required: where the server listens, such as --option url=http://localhost:8000")
        headers = {} if self.headers_file is None else _headers(self.headers_file)
        if authorization := self.authorization():
            if not authorization.isascii():
                raise ConfigError("the key or token must be in ASCII")
            headers["Authorization"] = authorization
        object.__setattr__(self, "where", self._endpoint(headers))

    def _endpoint(self, headers: Mapping[str, str]) -> Endpoint:
        parts = urlsplit(self.url)
        return Endpoint(
            url=self.url,
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0),
            path=parts.path,
            timeout_s=self.timeout_s,
            headers=headers,
            tls=self.tls() if parts.scheme in ("https", "grpcs") else None,
            ca_file=self.ca_file,
        )


class _Response(BoundedResponse):
    """An answer of a server under test; a stream of tokens may last longer than one wait."""

    longest = LONGEST_BODY
    waits = LONGEST_ANSWER_WAITS


class Connection:
    """One connection to one server, opened when needed and kept open; used by one thread at a time."""

    def __init__(self, where: Endpoint) -> None:
        self.where = where
        self.quick_ack = False
        """Acknowledge every packet at once (Linux): removes the latency of delayed acknowledgements."""
        self.opened = 0
        """Number of connections so far: more than one if the server closes them."""
        self._socket: socket.socket | None = None
        self._used = False

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._used = False

    def request(
        self, method: str, path: str, parts: Sequence[Buffer] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read the complete answer, of any status.

        Args:
            method: ``GET`` or ``POST``.
            path: Path below the base URL.
            parts: The body, in pieces; None: no body.
            headers: Headers in addition to those of the endpoint.

        Raises:
            NetworkError: no answer, or not an HTTP answer; the text contains the URL, the reason and the fix.
        """
        return self._answer(path, self._answered(method, path, parts, headers or {}))

    def stream(
        self, method: str, path: str, parts: Sequence[Buffer], headers: Mapping[str, str]
    ) -> Iterator[bytes] | Answer:
        """Send a request whose answer is a stream.

        Returns:
            The pieces of an answer with status 200 as they arrive; the complete answer with any other status. Read all
            pieces, or close the iterator, before the next request.

        Raises:
            NetworkError: as of ``request``; the iterator raises it if the stream is cut off.
        """
        response = self._answered(method, path, parts, headers)
        return self._pieces(path, response) if response.status == 200 else self._answer(path, response)

    def _pieces(self, path: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
        whole = False
        try:
            while piece := response.read1(PIECE_BYTES):
                yield piece
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            whole = True
        except (OSError, http.client.HTTPException) as error:
            raise self._trouble(path, error, "the stream was cut off: its log may contain the reason") from error
        finally:
            if not whole or response.will_close:
                self.close()
            response.close()

    def _answer(self, path: str, response: http.client.HTTPResponse) -> Answer:
        try:
            body = response.read()
        except Exception as error:
            response.close()
            self.close()
            raise self._trouble(path, error, "the answer was cut off") from error
        if response.will_close:
            self.close()
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
        if 300 <= answer.status < 400 and "location" in answer.headers:
            raise NetworkError(
                f"{self._shown(path)} redirects to {without_secrets(answer.headers['location'])}: "
                "give the final URL (option url)"
            )
        return answer

    def _answered(
        self, method: str, path: str, parts: Sequence[Buffer] | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        length = None if parts is None else sum(memoryview(part).nbytes for part in parts)
        head = self.where.head(method, path, length, headers)
        while True:
            kept = self._used
            try:
                return self._once(method, head, parts or ())
            except Exception as error:
                self.close()
                # A server may close a connection that was idle between two windows: try once with a new one.
                if kept and isinstance(error, _GONE):
                    continue
                raise self._trouble(path, error, "the connection was closed without an answer") from error

    def _once(self, method: str, head: bytes, parts: Sequence[Buffer]) -> http.client.HTTPResponse:
        if self._socket is None:
            self._socket = self._open()
        self._used = True
        try:
            _send(self._socket, (head, *parts))
        except (BrokenPipeError, ConnectionResetError) as error:
            # The server may have refused the request before it received all of it: prefer its answer.
            try:
                return self._response(method)
            except (OSError, http.client.HTTPException):
                raise error from None
        if self.quick_ack:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self._response(method)

    def _response(self, method: str) -> http.client.HTTPResponse:
        assert self._socket is not None
        response = _Response(self._socket, method=method)
        try:
            response.begin()
        except BaseException:
            # The response keeps the socket open.
            response.close()
            raise
        return response

    def _open(self) -> socket.socket:
        where = self.where
        plain = socket.create_connection((where.host, where.port), timeout=where.timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened = plain if where.tls is None else where.tls.wrap_socket(plain, server_hostname=where.host)
        except BaseException:
            plain.close()
            raise
        self.opened += 1
        return opened

    def _shown(self, path: str) -> str:
        return without_secrets(self.where.url + path)

    def _trouble(self, path: str, error: Exception, closed: str) -> NetworkError:
        return NetworkError(f"{self._shown(path)}: {_reason(error, self.where.timeout_s, closed)}")


def quick_ack_exists() -> bool:
    """Return whether this system has TCP_QUICKACK (Linux has it)."""
    return hasattr(socket, "TCP_QUICKACK")


def _send(to: socket.socket, parts: Sequence[Buffer]) -> None:
    """Send all parts in one write if possible; large parts are not copied."""
    if isinstance(to, ssl.SSLSocket):
        if sum(memoryview(part).nbytes for part in parts) <= PIECE_BYTES:
            to.sendall(b"".join(parts))
        else:
            for part in parts:
                to.sendall(part)
        return
    left = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    while left:
        sent = to.sendmsg(left[:64])
        while left and sent >= left[0].nbytes:
            sent -= left.pop(0).nbytes
        if sent:
            left[0] = left[0][sent:]


def _reason(error: Exception, timeout_s: float, closed: str) -> str:
    if isinstance(error, (TooSlowError, TooLongError)):
        return str(error.strerror)
    if isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT:
        return f"no answer within {timeout_s:g} s: raise option timeout_s if it may take longer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not valid: {error.verify_message}; set option ca_file to the file of its authority, "
            "or set insecure=true"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'error'}): is it an http:// server?"
    if isinstance(error, (*_GONE, http.client.IncompleteRead)):
        return closed
    if isinstance(error, http.client.HTTPException):
        return "the answer is not HTTP/1.1: give the server's HTTP port (option url)"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (ulimit -n), or keep fewer requests in flight"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be reached: {error.strerror}; is the server running at that address? (option url)"
    return f"{type(error).__name__}: {error}"


def _headers(path: Path) -> dict[str, str]:
    """Return the headers of a file; an error contains the number of the line, never its text."""
    try:
        lines = files.read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"headers_file: {path} cannot be read: {reason}") from None
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not name or not name.isprintable() or " " in name or not line.isascii():
            raise ConfigError(f"headers_file: {path}, line {number}: must be 'Name: value', in ASCII")
        headers[name] = value
    return headers
