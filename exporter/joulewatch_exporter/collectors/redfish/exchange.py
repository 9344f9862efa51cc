"""Answers of a service under one deadline and a size limit, from the status line to the end of the body.

The time-outs of requests apply to each read from the socket. A service that sends a byte now and then, or ``100
Continue`` again and again, would never exceed them. Of a redirect, requests reads and unpacks the whole body, however
long it is, also if it does not follow it. And it keeps all cookies, however many there are.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import io
import socket
import time
from functools import partial
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter

MAX_HEADER_BYTES: Final = 64 << 10
"""Largest headers of an answer, with all answers ``100 Continue`` before it."""


class TooLongError(http.client.HTTPException):
    """The headers of an answer are longer than any service's."""


class Deadline:
    """The monotonic time at which an exchange ends."""

    def __init__(self) -> None:
        self.end_s = 0.0

    def left_s(self) -> float:
        """Return the time left.

        Raises:
            TimeoutError: There is none.
        """
        left_s = self.end_s - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError("the exchange took too long")
        return left_s


class _Received(io.RawIOBase):
    """The bytes that a socket receives."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline
        self.left: int | None = MAX_HEADER_BYTES
        """Number of bytes that may still come; None: no limit here."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._deadline.left_s())
        count = self._raw.readinto(buffer)
        if self.left is not None and count:
            self.left -= count
            if self.left < 0:
                raise TooLongError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, deadline: Deadline, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self.fp.close()
        self._received = _Received(sock, deadline)
        self.fp = io.BufferedReader(self._received)

    def begin(self) -> None:
        super().begin()
        self._received.left = None  # the client limits the body


class DeadlineAdapter(HTTPAdapter):
    """Ends each answer at the deadline; accepts only the certificate with a fingerprint, if there is one."""

    def __init__(self, deadline: Deadline, pin: str = "") -> None:
        self._deadline = deadline
        self._pin = pin
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: Any) -> None:
        if self._pin:
            settings["assert_fingerprint"] = self._pin
        super().init_poolmanager(connections, maxsize, block, **settings)
        # Python 3.14 makes a method of a partial function that is an attribute of a class.
        response = staticmethod(partial(_Response, self._deadline))

        class Http(urllib3.connection.HTTPConnection):
            response_class = response  # type: ignore[assignment]

        class Https(urllib3.connection.HTTPSConnection):
            response_class = response  # type: ignore[assignment]

        class HttpPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Http

        class HttpsPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Https

        self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}


class BoundedSession(requests.Session):
    """A session that leaves redirects to its caller, and keeps no cookies."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: the caller follows redirects itself."""
