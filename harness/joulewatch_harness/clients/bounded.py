"""Limits on the answers of HTTP servers, for every HTTP client of joulewatch: a deadline and a length.

A socket's time-out limits one wait, so a server that sends a byte now and then, or ``100 Continue`` without end,
keeps a client for ever; and ``http.client`` reads as much as a server sends. ``BoundedResponse`` limits the whole
answer, from its first header to its last byte. ``http.client`` and ``urllib3`` create it as their ``response_class``.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import http.cookiejar
import io
import socket
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import requests

MIB: Final = 1 << 20
LONGEST_BODY: Final = 64 * MIB
"""Bytes of an answer of an exporter, of a server under test, or of a receiver."""
LONGEST_QUERY_BODY: Final = 256 * MIB
"""Bytes of the answer to a query: a million samples are about 35 MiB."""
PIECE_BYTES: Final = 1 << 16


class TooSlowError(TimeoutError):
    """The answer was not complete at the deadline."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(errno.ETIMEDOUT, f"the answer is not complete after {limit_s:g} s")


class TooLongError(OSError):
    """The answer is longer than any valid one."""

    def __init__(self, longest: int) -> None:
        super().__init__(errno.EMSGSIZE, f"the answer is longer than {longest / MIB:g} MiB")


class _BoundedReader(io.RawIOBase):
    """Reads from a socket until a deadline, and at most some bytes.

    Args:
        raw: The reader of the socket.
        sock: The socket; its time-out limits each wait.
        limit_s: Seconds from now until the deadline; None: no deadline.
        longest: Most bytes.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, limit_s: float | None, longest: int) -> None:
        super().__init__()
        self._raw = raw
        self._socket = sock
        self._wait_s = sock.gettimeout()
        self._limit_s = limit_s
        self._deadline_s = None if limit_s is None else time.monotonic() + limit_s
        self._longest = longest
        self._left = longest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline_s is not None and self._limit_s is not None:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise TooSlowError(self._limit_s)
            self._socket.settimeout(left_s if self._wait_s is None else min(left_s, self._wait_s))
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s and self._limit_s is not None:
                raise TooSlowError(self._limit_s) from None
            raise
        self._left -= count or 0
        if self._left < 0:
            raise TooLongError(self._longest)
        return count

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):  # closed by its owner
                self._socket.settimeout(self._wait_s)
            self._raw.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """An answer that must be complete within the socket's time-out and has at most ``longest`` bytes."""

    longest: int = LONGEST_BODY
    waits: float = 1
    """The whole answer may take this many times the socket's time-out."""

    def __init__(self, sock: socket.socket, *args: Any, **settings: Any) -> None:
        super().__init__(sock, *args, **settings)
        wait_s = sock.gettimeout()
        limit_s = None if wait_s is None else self.waits * wait_s
        raw = self.fp.detach()
        # Headers are short; http.client limits each line of them, but not their number in answers of status 100.
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, limit_s, self.longest + MIB))

    def begin(self) -> None:
        try:
            super().begin()
        except BaseException:
            # The response keeps the socket open.
            self.close()
            raise


class BoundedQueryResponse(BoundedResponse):
    """An answer to a query."""

    longest = LONGEST_QUERY_BODY


def gunzip(body: bytes, longest: int = LONGEST_BODY) -> bytes:
    """Return the content of a gzip body.

    Raises:
        TooLongError: It is longer than ``longest``.
        OSError: It is not valid.
    """
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        content = decoder.decompress(body, longest)
    except zlib.error as error:
        raise OSError(errno.EPROTO, "the answer is not valid gzip") from error
    if decoder.unconsumed_tail:
        raise TooLongError(longest)
    return content


def bounded_session() -> requests.Session:
    """Return a session of requests whose answers are bounded; read them with ``read_body``.

    It follows no redirect and keeps no cookies.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class BoundedHttp(HTTPConnection):
        response_class = BoundedQueryResponse

    class BoundedHttps(HTTPSConnection):
        response_class = BoundedQueryResponse

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = BoundedHttp

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = BoundedHttps

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **settings: Any) -> None:
            super().init_poolmanager(*args, **settings)
            self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}

        def proxy_manager_for(self, *args: Any, **settings: Any) -> Any:
            manager = super().proxy_manager_for(*args, **settings)
            manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
            return manager

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Return None: to follow a redirect, requests would read the whole body, without a limit."""

    session = Session()
    # A server could send new ones in each answer.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session


def read_body(
    response: requests.Response,
    longest: int,
    limit_s: float,
    monotonic: Callable[[], float] = time.monotonic,
) -> bytes:
    """Return the body of a response that was requested with ``stream=True``, decompressed.

    Raises:
        TooLongError: The decompressed body is longer than ``longest``.
        TooSlowError: It is not complete after ``limit_s``.
        requests.RequestException: As of requests.
    """
    deadline_s = monotonic() + limit_s
    pieces: list[bytes] = []
    length = 0
    try:
        for piece in response.iter_content(PIECE_BYTES):
            length += len(piece)
            if length > longest:
                raise TooLongError(longest)
            if monotonic() > deadline_s:
                raise TooSlowError(limit_s)
            pieces.append(piece)
    except BaseException:
        response.close()
        raise
    return b"".join(pieces)
