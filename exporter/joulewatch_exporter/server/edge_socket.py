"""A Unix socket for programs on this machine: HTTP as on the port, and ``/edge``, which waits for the counters' steps.

Energy counters show what other processes compute (CVE-2020-8694), and the time of each step shows more. So only the
exporter's user, its group and root may connect: the kernel checks the mode of the socket's file. A group of the
administrator's choice can be given instead.
"""

from __future__ import annotations

import grp
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Final

from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.server.connection import Answer, Connection, Request, Response, plain
from joulewatch_exporter.server.connections import Connections, Peer

logger = logging.getLogger(__name__)

EDGE_PATH: Final = "/edge"
HEADER: Final = "Joulewatch-Edge-Socket"
"""Header of a scrape's answer that names the socket, so that a client on this machine can find it."""
DEFAULT_FOLDER: Final = Path("/run/joulewatch")
NAME: Final = "edge.sock"
MODE: Final = 0o660
REQUEST_TIMEOUT_S: Final = 5.0
KEEP_ALIVE_S: Final = 3600.0
"""The runs of a client may be far apart, and its connection is from this machine."""
MOST_CONNECTIONS: Final = 32
"""If there are more, the longest idle one is closed, and one process gets at most half."""


def default_path(environment: Mapping[str, str]) -> Path | None:
    """Return the path of the socket in the folder of the service, or in ``/run/joulewatch``; None: there is neither."""
    folder = Path(environment.get("RUNTIME_DIRECTORY", "").partition(":")[0] or DEFAULT_FOLDER)
    return folder / NAME if folder.is_dir() and os.access(folder, os.W_OK) else None


class EdgeSocket:
    """Listens on a Unix socket; one thread for each connection."""

    def __init__(self, path: Path, edge: Callable[[], bytes], answer: Answer, *, group: str | None = None) -> None:
        """Bind the socket; connections are accepted after ``start``.

        Args:
            path: Path of the socket.
            edge: Returns the body of an edge's answer; called by many threads at once.
            answer: Answers all other requests, without authentication.
            group: Group whose members may connect; None: the group of this process.

        Raises:
            ConfigError: The path is in use or cannot be created, or the group is not known or not ours.
        """
        self.path = path
        self._edge = edge
        self._answer = answer
        self._stopping = False
        self._connections = Connections(MOST_CONNECTIONS)
        self._listener = _listen(path, group)
        self._thread = threading.Thread(target=self._accept, name="accept-edge", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and remove the socket; safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError):
            self.path.unlink()
        self._connections.shut_down_all(socket.SHUT_RDWR)

    def _accept(self) -> None:
        self._connections.accept(self._listener, self._serve, _process_of, lambda: self._stopping)

    def _serve(self, peer: Peer) -> None:
        try:
            logger.debug("%s: connection of %s", self.path, peer.address)
            Connection(
                peer.connection,
                lambda request: self._answer_peer(peer, request),
                is_stopping=lambda: self._stopping,
                request_timeout_s=REQUEST_TIMEOUT_S,
                keep_alive_s=KEEP_ALIVE_S,
                extra_headers={},
                first_request_s=KEEP_ALIVE_S,
            ).serve()
        except OSError as error:
            logger.debug("%s: connection ended: %s", self.path, error)
        except Exception:
            logger.exception("%s: a request failed", self.path)
        finally:
            self._connections.forget(peer)

    def _answer_peer(self, peer: Peer, request: Request) -> Response:
        self._connections.begin_answer(peer)
        try:
            return self.answer(request)
        finally:
            self._connections.end_answer(peer)

    def answer(self, request: Request) -> Response:
        """Return the response to one request."""
        if request.target.partition("?")[0] != EDGE_PATH:
            return self._answer(request)
        if request.method != "GET":
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is allowed", ("Allow", "GET"))
        return Response(status=HTTPStatus.OK, body=self._edge(), content_type="application/json")


def _process_of(connection: socket.socket, _name: object) -> str:
    """Return which process of which user is connected, as the kernel reports it."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"process {pid} of user {uid}"


def _listen(path: Path, group: str | None) -> socket.socket:
    """Return a listening socket whose file only its owner and a group may use."""
    _remove_unused(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect before ``listen``, and by then the file has its mode.
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(MODE)
        listener.listen(MOST_CONNECTIONS)
    except (OSError, KeyError) as error:
        listener.close()
        if isinstance(error, KeyError):
            path.unlink()
            raise ConfigError(f"--web.edge-socket-group: there is no group {group!r}") from error
        raise ConfigError(f"--web.edge-socket: {path}: {error.strerror or error}") from error
    return listener


def _remove_unused(path: Path) -> None:
    """Remove the socket of an exporter that was killed.

    Raises:
        ConfigError: Another exporter listens on it, or it is another kind of file.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"--web.edge-socket: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"--web.edge-socket: {path}: {error.strerror or error}") from error
    raise ConfigError(f"--web.edge-socket: {path} is in use: another exporter may be running")
