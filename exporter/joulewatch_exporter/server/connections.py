"""The open connections of the server, and which of them is closed when there are too many."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256
WARN_EVERY_NS: Final = 60_000_000_000
ACCEPT_PAUSE_S: Final = 0.1
"""Pause after a connection that could not be accepted."""


@dataclass(eq=False, slots=True, kw_only=True)
class Peer:
    """One connection."""

    connection: socket.socket
    address: str
    idle_since_ns: int | None
    """Monotonic time since which the server has been waiting for the peer; None: the peer is waiting for an answer."""


class Connections:
    """Counts connections by address of the client, and makes room when there are too many.

    Then the longest idle connection is closed. One address gets at most half of all: if it has them, its own longest
    idle connection is closed; if another address has more than half, that of the other address is. So silent
    connections keep nobody out.
    """

    def __init__(self, limit: int = MAX_CONNECTIONS, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._limit = limit
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._peers: set[Peer] = set()
        self._by_address: Counter[str] = Counter()
        self._warn_ns: int | None = None
        self.closed = 0
        """Number of connections that were closed or refused because there were too many."""

    def __len__(self) -> int:
        return len(self._peers)

    def admit(self, connection: socket.socket, address: str) -> Peer | None:
        """Add a new connection, if necessary in place of another, which is shut down; None: all are in use."""
        now_ns = self._monotonic_ns()
        victim: Peer | None = None
        peer: Peer | None = Peer(connection=connection, address=address, idle_since_ns=now_ns)
        with self._lock:
            is_full = len(self._peers) >= self._limit
            if is_full:
                self.closed += 1
                victim = self._victim(address)
                if victim is None:
                    peer = None
                else:
                    self._remove(victim)
            if peer is not None:
                self._peers.add(peer)
                self._by_address[address] += 1
            is_warning = is_full and (self._warn_ns is None or now_ns - self._warn_ns >= WARN_EVERY_NS)
            if is_warning:
                self._warn_ns = now_ns
        if victim is not None:
            shut_down(victim.connection)
        if is_warning:
            done = f"closed the longest idle one, of {victim.address}" if victim else f"refused one of {address}"
            logger.warning("all %d connections are in use: %s; %d so far", self._limit, done, self.closed)
        return peer

    def _victim(self, address: str) -> Peer | None:
        idle = [peer for peer in self._peers if peer.idle_since_ns is not None]
        greedy, count = self._by_address.most_common(1)[0]
        if 2 * self._by_address[address] >= self._limit:
            idle = [peer for peer in idle if peer.address == address]
        elif 2 * count > self._limit:
            idle = [peer for peer in idle if peer.address == greedy]
        return min(idle, key=lambda peer: peer.idle_since_ns or 0, default=None)

    def secure(self, peer: Peer, connection: ssl.SSLSocket) -> None:
        """Replace the socket of a connection by the one with TLS."""
        with self._lock:
            peer.connection = connection

    def begin_answer(self, peer: Peer) -> None:
        """Note that the peer waits for an answer: its connection is not closed meanwhile."""
        peer.idle_since_ns = None

    def end_answer(self, peer: Peer) -> None:
        """Note that the peer has its answer."""
        peer.idle_since_ns = self._monotonic_ns()

    def forget(self, peer: Peer) -> None:
        """Remove and close a connection."""
        with self._lock:
            self._remove(peer)
        peer.connection.close()

    def _remove(self, peer: Peer) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            self._by_address[peer.address] -= 1
            if not self._by_address[peer.address]:
                del self._by_address[peer.address]

    def shut_down_all(self, how: int) -> None:
        """Shut down all connections."""
        with self._lock:
            connections = [peer.connection for peer in self._peers]
        for connection in connections:
            shut_down(connection, how)

    def accept(
        self,
        listener: socket.socket,
        serve: Callable[[Peer], None],
        address_of: Callable[[socket.socket, Any], str],
        is_stopping: Callable[[], bool],
    ) -> None:
        """Accept connections until the server stops, and serve each of them on its own thread.

        Args:
            listener: The listening socket; ``shutdown`` ends the wait for a connection.
            serve: Serves one peer, and forgets it.
            address_of: Returns the address of a peer, from its socket and the address that ``accept`` returned.
            is_stopping: Whether the server stops.
        """
        logged_ns: int | None = None
        while not is_stopping():
            try:
                connection, name = listener.accept()
            except OSError as error:
                if is_stopping():
                    return
                now_ns = self._monotonic_ns()
                if logged_ns is None or now_ns - logged_ns >= WARN_EVERY_NS:
                    logged_ns = now_ns
                    logger.error("cannot accept connections: %s", error)
                time.sleep(ACCEPT_PAUSE_S)  # probably out of file descriptors: open connections must end first
                continue
            peer = self.admit(connection, address_of(connection, name))
            if peer is None:
                connection.close()
                continue
            try:
                threading.Thread(target=serve, args=(peer,), name="request", daemon=True).start()
            except RuntimeError:  # out of threads
                self.forget(peer)


def shut_down(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Wake the thread that waits for this peer.

    Not SSLSocket.shutdown: it ends the encryption, and a response in progress would be sent unencrypted.
    """
    with suppress(OSError):
        socket.socket.shutdown(connection, how)
