"""Which connection is closed when there are too many."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from joulewatch_exporter.server.connections import WARN_EVERY_NS, Connections, Peer


class Clients:
    """Connections of a table of four places, and a clock that each step advances."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.now_ns = 0
        self.table = Connections(4, monotonic_ns=lambda: self.now_ns)
        self.ends: dict[Peer, socket.socket] = {}

    def connect(self, address: str) -> Peer | None:
        self.now_ns += 1
        here, there = socket.socketpair()
        self._stack.enter_context(here)
        there.settimeout(0)
        peer = self.table.admit(here, address)
        if peer is not None:
            self.ends[peer] = self._stack.enter_context(there)
        else:
            there.close()
        return peer

    def is_closed(self, peer: Peer | None) -> bool:
        assert peer is not None
        try:
            return self.ends[peer].recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def clients() -> Iterator[Clients]:
    with ExitStack() as stack:
        yield Clients(stack)


def test_the_longest_idle_connection_makes_room(clients: Clients) -> None:
    first, second, *_ = [clients.connect(address) for address in "abcd"]
    assert first is not None
    clients.now_ns += 1
    clients.table.begin_answer(first)
    clients.table.end_answer(first)
    assert clients.connect("e") is not None
    assert clients.is_closed(second)
    assert not clients.is_closed(first), "it was used after the second"
    assert len(clients.table) == 4
    assert clients.table.closed == 1


def test_one_address_keeps_no_other_out(clients: Clients) -> None:
    """A silent client that renews its connections gives way first, and never gets more than half again."""
    scraper = clients.connect("scraper")
    silent = [clients.connect("attacker") for _ in range(3)]
    other = clients.connect("other")
    assert other is not None
    assert clients.is_closed(silent[0])
    for _ in range(10):
        assert clients.connect("attacker") is not None, "in place of another of its own"
    assert not clients.is_closed(scraper)
    assert not clients.is_closed(other)
    assert len(clients.table) == 4


def test_a_connection_that_is_answered_is_not_closed(clients: Clients) -> None:
    for address in "abcd":
        peer = clients.connect(address)
        assert peer is not None
        clients.table.begin_answer(peer)
    assert clients.connect("e") is None
    assert clients.table.closed == 1


def test_a_closed_connection_leaves_room(clients: Clients) -> None:
    peers = [clients.connect("a") for _ in range(4)]
    for peer in peers:
        assert peer is not None
        clients.table.forget(peer)
        clients.table.forget(peer)
    assert len(clients.table) == 0
    assert clients.connect("a") is not None
    assert clients.table.closed == 0


def test_the_warning_is_not_repeated_for_each_connection(clients: Clients, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        clients.connect("a")
    assert caplog.text.count("all 4 connections are in use: closed the longest idle one, of a") == 1
    clients.now_ns += WARN_EVERY_NS
    clients.connect("a")
    assert "17 so far" in caplog.text
