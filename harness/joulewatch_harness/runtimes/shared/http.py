"""HTTP/1.1 to a server under test: what a request costs must be the server's doing, not the client's.

A request leaves in one write, head and body together, on a connection that is kept open and has TCP_NODELAY set;
bodies are sent from where they lie. No proxy of the environment is used: it would be measured along with the
server. Secrets come from files; they are in no error, log or repr.
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

from joulewatch_harness.binder import Limits
from joulewatch_harness.clients.options import HttpOptions, without_secrets
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.runtimes.shared.options import RuntimeOptions

DEFAULT_TIMEOUT_S: Final = 60.0
PIECE_BYTES: Final = 1 << 16

GRPC: Final = ("grpc", "grpcs")
"""gRPC has no URL schemes; these two are joulewatch's."""

_GONE: Final = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, http.client.RemoteDisconnected)
_SHORTEST_SECRET: Final = 4

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is and how to speak to it."""

    url: str
    """Base URL without a slash at its end."""
    scheme: str
    host: str
    port: int
    """0: not said, and none is usual."""
    path: str
    """Of the base URL; empty where the server has none."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Longest silence: without an answer, or between two pieces of one."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    ca_file: Path | None = None

    def head(self, method: str, path: str, length: int | None, headers: Mapping[str, str]) -> bytes:
        """Request line and headers; ``length`` None: no body."""
        lines = {"Host": self.authority, "User-Agent": "joulewatch", "Accept-Encoding": "identity"}
        if length is not None:
            lines["Content-Length"] = str(length)
        lines |= headers
        # The user's own win, however they are written: an ingress may want another Host.
        own = {name.lower() for name in self.headers}
        lines = {name: value for name, value in lines.items() if name.lower() not in own} | dict(self.headers)
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {self.path}{path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        usual = 443 if self.tls is not None else 80
        return self.quoted_host if self.port == usual else f"{self.quoted_host}:{self.port}"

    @property
    def quoted_host(self) -> str:
        """The host as it stands before a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def masked(self, text: str) -> str:
        """``text`` without what the user's own headers say: servers like to quote a key that they refuse."""
        for value in self.headers.values():
            for secret in {value, *value.split()}:
                if len(secret) >= _SHORTEST_SECRET and secret not in ("Bearer", "Basic", "Token"):
                    text = text.replace(secret, "***")
        return text


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def told(self) -> str:
        """The server's own words: ``HTTP 400: unknown model``."""
        answer = self.json()
        said: Any = None
        if isinstance(answer, dict):
            said = answer.get("error") or answer.get("detail") or answer.get("message")
            if isinstance(said, dict):
                said = said.get("message") or said.get("type")
        if isinstance(said, (list, dict)):
            said = json.dumps(said)
        if isinstance(said, str) and said.strip():
            return f"HTTP {self.status}: {' '.join(said.split())[:300]}"
        kind = self.headers.get("content-type", "").partition(";")[0] or "no content type"
        start = " ".join(self.body[:200].decode("utf-8", "replace").split())[:60]
        return f"HTTP {self.status}, {kind}" + (f", begins {json.dumps(start)}" if start else ", empty")


@dataclass(frozen=True)
class ServerOptions(RuntimeOptions, HttpOptions):
    """Options of a runtime whose models are behind a server.

    Raises:
        ConfigError: as of ``HttpOptions``; there is no URL, or a file cannot be read.
    """

    _: KW_ONLY
    timeout_s: Annotated[float, Limits(gt=0, le=86400, unit="seconds")] = DEFAULT_TIMEOUT_S
    """Longest wait for an answer, or between two pieces of it."""
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


class Connection:
    """One connection to one server, opened when needed and kept; used by one thread at a time."""

    def __init__(self, where: Endpoint) -> None:
        self.where = where
        self.quick_ack = False
        """Acknowledge every packet at once (Linux): takes away the floor that delayed acknowledgement makes."""
        self.opened = 0
        """Connections made so far: more than one says that the server does not keep them."""
        self._socket: socket.socket | None = None
        self._used = False

    def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._used = False

    def request(
        self, method: str, path: str, parts: Sequence[Buffer] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read its whole answer, whatever its status.

        Args:
            method: ``GET`` or ``POST``.
            path: Below the base URL.
            parts: The body, in pieces; None: no body.
            headers: Besides those of the endpoint.

        Raises:
            NetworkError: nothing answers, or no HTTP; the text names the URL, the reason and what to do.
        """
        response = self._answered(method, path, parts, headers or {})
        try:
            body = response.read()
        except Exception as error:
            self.close()
            raise self._trouble(path, error, "the answer was cut off") from error
        return self._answer(path, response, body)

    def stream(
        self, method: str, path: str, parts: Sequence[Buffer], headers: Mapping[str, str]
    ) -> Iterator[bytes] | Answer:
        """Send a request whose answer comes bit by bit.

        Returns:
            The pieces of a 200 as they arrive; the whole answer of any other status. Read the pieces to their end, or
            close the iterator, before the next request.

        Raises:
            NetworkError: as of ``request``; the iterator raises it too, where the stream is cut.
        """
        response = self._answered(method, path, parts, headers)
        if response.status == 200:
            return self._pieces(path, response)
        try:
            body = response.read()
        except Exception as error:
            self.close()
            raise self._trouble(path, error, "the answer was cut off") from error
        return self._answer(path, response, body)

    def _pieces(self, path: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
        whole = False
        try:
            while piece := response.read1(PIECE_BYTES):
                yield piece
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            whole = True
        except (OSError, http.client.HTTPException) as error:
            raise self._trouble(path, error, "the stream was cut off: the server's log may say why") from error
        finally:
            if not whole or response.will_close:
                self.close()
            response.close()

    def _answer(self, path: str, response: http.client.HTTPResponse, body: bytes) -> Answer:
        if response.will_close:
            self.close()
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
        if 300 <= answer.status < 400 and "location" in answer.headers:
            raise NetworkError(
                f"{self._shown(path)} redirects to {without_secrets(answer.headers['location'])}: "
                "give the URL that answers itself (option url)"
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
                # A server may close a connection that was idle between two windows; only a new one is believed.
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
            # It may have refused the request before it had all of it: what it said matters more.
            try:
                return self._response(method)
            except (OSError, http.client.HTTPException):
                raise error from None
        if self.quick_ack:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self._response(method)

    def _response(self, method: str) -> http.client.HTTPResponse:
        assert self._socket is not None
        response = http.client.HTTPResponse(self._socket, method=method)
        try:
            response.begin()
        except BaseException:
            # It holds the socket open.
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
    """Whether this system lets a connection acknowledge at once (Linux does)."""
    return hasattr(socket, "TCP_QUICKACK")


def _send(to: socket.socket, parts: Sequence[Buffer]) -> None:
    """All parts in one write where that can be; nothing is copied that is large."""
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
    if isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT:
        return f"no answer within {timeout_s:g} s: raise option timeout_s if it may take longer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate does not hold: {error.verify_message}; name its authority with option ca_file, "
            "or set insecure=true"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'error'}): does it speak http:// there?"
    if isinstance(error, (*_GONE, http.client.IncompleteRead)):
        return closed
    if isinstance(error, http.client.HTTPException):
        return "what answers speaks no HTTP/1.1: give the server's HTTP port (option url)"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (ulimit -n), or keep fewer requests in flight"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be reached: {error.strerror}; is the server running there? (option url)"
    return f"{type(error).__name__}: {error}"


def _headers(path: Path) -> dict[str, str]:
    """Return the headers of a file; an error contains the number of the line, never its text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
