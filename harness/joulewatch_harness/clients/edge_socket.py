"""Client of an exporter's Unix socket for edges (exporter/README.md, "Edges")."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

from joulewatch_harness.records import EdgeCounter, EdgeStep

HEADER: Final = "Joulewatch-Edge-Socket"
"""Header of an answer to a scrape that names the socket."""
FORMAT: Final = 1
MISSED: Final = ("the exporter was interrupted", "no step in time")
"""Beginnings of ``no_step`` of a counter that may have its refreshes at the next try."""

_REQUEST: Final = b"GET /edge HTTP/1.1\r\nHost: localhost\r\n\r\n"
_STATUS: Final = re.compile(rb"HTTP/1\.1 200 ")
_LENGTH: Final = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)
_LONGEST: Final = 16 * 1024 * 1024


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _connect(self._path, self.timeout or 0.0)


class EdgeSocket:
    """One connection to the socket. It does as little as possible: it is used next to the measured work."""

    def __init__(self, path: str, timeout_s: float) -> None:
        """Connect.

        Raises:
            OSError: The socket is not there, or this user may not connect.
        """
        self.path = path
        self._timeout_s = timeout_s
        self._socket = _connect(path, timeout_s)
        self._is_asked = False

    def ask(self, meanwhile: Callable[[], None] | None = None) -> bytes:
        """Request an edge and return the body of the answer.

        Args:
            meanwhile: Called while the exporter waits for the counters.

        Raises:
            OSError: The exporter does not answer, or its answer is not an edge.
        """
        if self._is_asked:
            # The caller was interrupted (Ctrl-C) before it had the last answer, which would now seem to be this one.
            self._socket.close()
            self._socket = _connect(self.path, self._timeout_s)
        self._is_asked = True
        self._socket.sendall(_REQUEST)
        if meanwhile is not None:
            meanwhile()
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive(len(answer))
        length = _LENGTH.search(answer, 0, end + 2)
        if length is None or _STATUS.match(answer) is None:
            raise OSError(f"its answer begins with {answer[:60]!r}")
        size = end + 4 + int(length[1])
        while len(answer) < size:
            answer += self._receive(len(answer))
        self._is_asked = False
        return answer[end + 4 : size]

    def _receive(self, received: int) -> bytes:
        piece = self._socket.recv(65536)
        if not piece or received > _LONGEST:
            raise ConnectionResetError("the connection was closed")
        return piece

    def close(self) -> None:
        self._socket.close()


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """A parsed answer."""

    nodename: str
    start_s: float
    counters: tuple[EdgeCounter, ...]
    newest_s: float | None
    """Unix time of the newest read that was made after the request, on the exporter's clock."""

    @classmethod
    @lru_cache(8)
    def parse(cls, body: bytes, exporter: str) -> Self:
        """Parse the body of an answer; that of the start of a window is needed twice.

        Raises:
            ValueError: It is not an edge of a known format.
        """
        data = json.loads(body)
        try:
            if data["joulewatch_edge"] != FORMAT:
                raise ValueError(f"edges of format {data['joulewatch_edge']!r} are not known")
            counters = tuple(_counter(item, exporter) for item in data["counters"])
            times_s = [float(item["read_at_s"]) for item in data["counters"] if item["on_request"]]
            return cls(str(data["nodename"]), float(data["start_s"]), counters, max(times_s, default=None))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an edge: {error!r}") from error

    def is_late(self, now_s: float) -> bool:
        """Return whether a counter's refreshes are more than a refresh before now, or were missed."""
        return any(
            counter.no_step.startswith(MISSED)
            if counter.step is None
            else now_s - counter.read_at_s > counter.step.span_s
            for counter in self.counters
        )


def _counter(item: Mapping[str, Any], exporter: str) -> EdgeCounter:
    step = item.get("step")
    return EdgeCounter(
        exporter=exporter,
        energy_joules=float(item["joules"]),
        read_at_s=float(item["read_at_s"]),
        step=None if step is None else EdgeStep(**{name: float(step[name]) for name in EdgeStep.__slots__}),
        no_step=str(item.get("no_step", "")),
        **{name: str(item[name]) for name in ("scope", "collector", "component", "device", "domain")},
    )


def path_of(url: str) -> str:
    """Return the path of ``unix:/path`` or ``unix:///path``; empty if it is another URL."""
    if not url.startswith("unix:"):
        return ""
    path = url.removeprefix("unix:")
    return path.removeprefix("//") if path.startswith("///") else path if Path(path).is_absolute() else ""
