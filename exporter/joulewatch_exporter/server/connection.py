"""One HTTP connection: requests under a deadline and a size limit, keep-alive, complete responses."""

from __future__ import annotations

import email.utils
import io
import logging
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

logger = logging.getLogger(__name__)


MAX_REQUEST_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100

Answer: TypeAlias = Callable[["Request"], "Response"]


@dataclass(slots=True, kw_only=True)
class Request:
    """One request."""

    method: str
    """Such as ``GET``."""
    target: str
    """Path and query as sent."""
    version: str
    headers: Mapping[str, str]
    """Values by lower-case name."""
    arrived_ns: int
    """Monotonic time."""
    is_handed_over: bool = False
    """Whether another thread has begun to answer it."""
    take_over: Callable[[], None] | None = None
    """Lets another thread answer the request and serve the peer from then on, because this thread hangs: when it goes
    on, it must end with `threads.AbandonedError`. None: this cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A complete response."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    pause_s: float = 0.0
    """Time after the response in which the connection does not read the next request."""


class _BadRequestError(Exception):
    """The request is invalid: it is answered with this error, and the connection is closed."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Received(io.RawIOBase):
    """The bytes that a socket receives, with one deadline and one size limit for a whole request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline_ns = 0
        self._left = 0

    def begin(self, timeout_s: float) -> None:
        """Set deadline and size limit for the next request."""
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


class Connection:
    """Serves one peer: one request after another, each response in one write."""

    def __init__(
        self,
        connection: socket.socket,
        answer: Answer,
        *,
        is_stopping: Callable[[], bool],
        request_timeout_s: float,
        keep_alive_s: float,
        extra_headers: Mapping[str, str],
        first_request_s: float | None = None,
        relieve: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Take over an accepted socket.

        Args:
            connection: The socket; with TLS, after the handshake.
            answer: Called with each request.
            is_stopping: Called before each request; the connection ends when it returns true.
            request_timeout_s: Longest time for the peer to send a request, and to receive a response.
            keep_alive_s: Longest time that the connection may be idle after a request.
            extra_headers: Sent with every response.
            first_request_s: Longest time until the first request begins; None: ``request_timeout_s``, because a peer
                that has sent nothing is not worth a connection.
            relieve: Runs a function on another thread, if this one hangs; None: it does not hang.
        """
        self._connection = connection
        self._answer = answer
        self._is_stopping = is_stopping
        self._request_timeout_s = request_timeout_s
        self._keep_alive_s = keep_alive_s
        self._extra_headers = extra_headers
        self._first_request_s = request_timeout_s if first_request_s is None else first_request_s
        self._relieve = relieve
        self._received = _Received(connection)
        self._reader = io.BufferedReader(self._received, 8192)

    def serve(self, pending: Request | None = None) -> None:
        """Serve the peer until it or the server closes the connection.

        Args:
            pending: A request that has been read and is to be answered first.
        """
        is_kept = True
        idle_s = self._first_request_s
        while is_kept and not self._is_stopping():
            try:
                request = pending or self._read_request(idle_s)
            except _BadRequestError as error:
                self._send(plain(error.status, str(error)), head=False, close=True)
                return
            idle_s = self._keep_alive_s
            if request is None:
                return
            # A thread that has taken over might hang as the one before it.
            request.take_over = None if pending or self._relieve is None else partial(self._hand_over, request)
            pending = None
            headers = request.headers
            has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
            connection = headers.get("connection", "").lower()
            # Bodies are not read, so the next request after a body could not be found.
            is_kept = not has_body and (
                "keep-alive" in connection if request.version == "HTTP/1.0" else "close" not in connection
            )
            response = self._answer(request)
            request.take_over = None  # it refers to the request: a cycle that only the garbage collector ends
            logger.debug("%s %s %d", request.method, request.target.partition("?")[0], response.status)
            is_kept = is_kept and not self._is_stopping()
            self._send(response, head=request.method == "HEAD", close=not is_kept)
            if is_kept and response.pause_s:
                time.sleep(response.pause_s)

    def _hand_over(self, request: Request) -> None:
        assert self._relieve is not None
        request.is_handed_over = True
        self._relieve(lambda: self.serve(request))

    def _read_request(self, idle_s: float) -> Request | None:
        """Return the next request; None if the peer has closed the connection.

        Args:
            idle_s: Longest time until the first byte.
        """
        self._received.begin(idle_s)
        try:
            if not self._reader.peek(1):
                return None
        except TimeoutError:
            return None
        self._received.begin(self._request_timeout_s)
        line = self._read_line()
        while line in (b"\r\n", b"\n"):  # RFC 9112, 2.2: a server should ignore empty lines before a request
            line = self._read_line()
        if not line:
            return None
        words = line.decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            raise _BadRequestError(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP request")
        method, target, version = words
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise _BadRequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "supported versions: HTTP/1.0, HTTP/1.1")
        if not target.startswith("/"):
            # The absolute form, as proxies send it; a server must accept it too (RFC 9112, 3.2.2).
            try:
                parsed = urllib.parse.urlsplit(target)
            except ValueError as error:
                raise _BadRequestError(
                    HTTPStatus.BAD_REQUEST, "the target of the request is not a valid URL"
                ) from error
            target = (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")
        headers: dict[str, str] = {}
        left = MAX_HEADERS
        while True:
            line = self._read_line()
            if not line:
                return None
            if line in (b"\r\n", b"\n"):
                return Request(
                    method=method,
                    target=target,
                    version=version,
                    headers=headers,
                    arrived_ns=time.monotonic_ns(),
                )
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise _BadRequestError(HTTPStatus.BAD_REQUEST, "a header is malformed")
            if left == 0:
                raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers")
            left -= 1
            key = name.lower()
            value = value.strip()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value

    def _read_line(self) -> bytes:
        """Return a whole line; empty if the peer has closed the connection."""
        line = self._reader.readline(MAX_REQUEST_BYTES)
        if len(line) >= MAX_REQUEST_BYTES:
            raise _BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
        return line if line.endswith(b"\n") else b""

    def _send(self, response: Response, *, head: bool, close: bool) -> None:
        lines = [
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            f"Date: {_date(int(time.time()))}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers),
            *(f"{name}: {value}" for name, value in self._extra_headers.items()),
        ]
        if close:
            lines.append("Connection: close")
        data = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        self._connection.settimeout(self._request_timeout_s)
        if head:
            self._connection.sendall(data)
        elif isinstance(self._connection, ssl.SSLSocket):
            self._connection.sendall(data + response.body)
        else:
            # One write, without copying a body of a megabyte to append it to the headers.
            sent = self._connection.sendmsg((data, response.body))
            if sent < len(data) + len(response.body):
                self._connection.sendall(memoryview(data + response.body)[sent:])


@lru_cache(1)
def _date(unix_s: int) -> str:
    return email.utils.formatdate(unix_s, usegmt=True)


def plain(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Response:
    """Return a response of plain text."""
    return Response(status=status, body=f"{text}\n".encode(), headers=headers)


@lru_cache(16)
def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an ``Accept-Encoding`` header allows gzip."""
    for entry in accept_encoding.lower().split(","):
        coding, _, parameters = entry.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
