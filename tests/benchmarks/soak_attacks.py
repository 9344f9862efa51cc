"""The attackers of the soak test, in two processes: devices that the exporter reads, and clients of its server.

Each client attack uses separate loopback addresses, because the server treats an address as a client. The rates are
moderate: the machine must have time for the exporter.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import multiprocessing
import random
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.hostile_clients import GUESSERS, services
from support.hostile_redfish import DRIPPING, hostile
from support.hostile_requests import HOSTILE

PASSWORD: Final = "Basic " + base64.b64encode(b"scraper:correct").decode()

SILENT_PER_S: Final = 40
SLOW_SENDERS: Final = 16
SLOW_READERS: Final = 8
PIPELINED: Final = 10
GUESS_EVERY_S: Final = 5.0
GUESSER_ADDRESSES: Final = 32
LEAKS_PER_S: Final = 5
MOST_LEAKED: Final = 400
NONSENSE_PER_S: Final = 10
ENDLESS_SERVICES: Final = 6
IPMI_KINDS: Final = ("silent", "random", "echo", "truncated", "flood", "late")

CLIENT_ATTACKS: Final = (
    f"{SILENT_PER_S} new connections per second that send nothing",
    f"{SLOW_SENDERS} clients that send one byte of a request every 0.5 s",
    f"{SLOW_READERS} clients that ask for {PIPELINED} scrapes at once and read 64 bytes per second",
    f"{GUESSERS} password guessers with {GUESSER_ADDRESSES} addresses, all at once every {GUESS_EVERY_S:g} s, half of "
    "them on new connections",
    f"{LEAKS_PER_S} new connections per second that send one request and are then leaked, up to {MOST_LEAKED} at once",
    f"{NONSENSE_PER_S} malformed requests per second, of {len(HOSTILE)} kinds",
)
DEVICE_ATTACKS: Final = (
    f"{ENDLESS_SERVICES} Redfish services: the largest allowed body, that body dripped, `100 Continue` without end "
    f"(two of each)",
    f"{len(DRIPPING)} Redfish services that drip: {', '.join(DRIPPING)}",
    f"{len(IPMI_KINDS)} BMCs by IPMI: {', '.join(IPMI_KINDS)}",
    "a BMC by IPMI whose datagrams are garbled, lost, doubled or cut, one in four",
)


@contextmanager
def in_process(serve: Callable[..., None], *args: Any) -> Iterator[tuple[Any, int]]:
    """Run ``serve(connection, *args)`` in another process; yield our end of the connection and the process id."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, *args))
    process.start()
    assert process.pid is not None
    try:
        yield here, process.pid
    finally:
        with suppress(OSError):
            here.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join(10)


# -- clients ---------------------------------------------------------------------------------------


class Clients:
    """All attacks on one server, each in threads."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._server = (host, int(port))
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def run(self, end: Callable[[], None]) -> None:
        """Attack until ``end`` returns, then close all connections."""
        attacks = [self._silent, self._send_slowly, self._leak, self._nonsense]
        threads = [threading.Thread(target=attack) for attack in attacks]
        threads += [threading.Thread(target=self._read_slowly) for _ in range(SLOW_READERS)]
        threads += [threading.Thread(target=self._guess, args=(number,)) for number in range(GUESSERS)]
        for thread in threads:
            thread.start()
        try:
            end()
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(10)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _connect(self, source: str, what: str, receive_bytes: int = 0) -> socket.socket | None:
        """Return a connection from the address ``source``; None if the server refuses it."""
        connection = socket.socket()
        try:
            if receive_bytes:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.settimeout(2.0)
            connection.bind((source, 0))
            connection.connect(self._server)
        except OSError:
            connection.close()
            self._count(f"{what}: not connected")
            return None
        self._count(what)
        return connection

    def _silent(self) -> None:
        open_: deque[socket.socket] = deque()
        while not self._stopping.wait(1 / SILENT_PER_S):
            connection = self._connect("127.0.1.1", "silent connections")
            if connection is not None:
                open_.append(connection)
            if len(open_) > 10 * SILENT_PER_S:
                open_.popleft().close()
        _close(open_)

    def _send_slowly(self) -> None:
        open_: list[tuple[socket.socket, Iterator[int]]] = []
        request = b"GET /metrics HTTP/1.1\r\nX-A: " + b"b" * 10_000
        while not self._stopping.wait(0.5):
            for connection, bytes_ in list(open_):
                try:
                    connection.send(bytes([next(bytes_)]))
                except OSError:
                    connection.close()
                    open_.remove((connection, bytes_))
            while len(open_) < SLOW_SENDERS:
                new = self._connect("127.0.1.2", "slow senders")
                if new is None:
                    break
                open_.append((new, iter(request)))
        _close(connection for connection, _ in open_)

    def _read_slowly(self) -> None:
        request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: {PASSWORD}\r\n\r\n".encode()
        while not self._stopping.wait(1.0):
            connection = self._connect("127.0.1.3", "slow readers", receive_bytes=4096)
            if connection is None:
                continue
            with connection, suppress(OSError):
                connection.sendall(request * PIPELINED)
                for _ in range(10):
                    if self._stopping.wait(1.0) or not connection.recv(64):
                        break

    def _guess(self, number: int) -> None:
        source = f"127.0.2.{1 + number % GUESSER_ADDRESSES}"
        connection = http.client.HTTPConnection(*self._server, timeout=10, source_address=(source, 0))
        for count in itertools.count():
            if self._stopping.wait(GUESS_EVERY_S - time.time() % GUESS_EVERY_S):
                break
            guess = base64.b64encode(f"scraper:{number}-{count}".encode()).decode()
            try:
                connection.request("GET", "/metrics", headers={"Authorization": f"Basic {guess}"})
                answer = connection.getresponse()
                answer.read()
                self._count(f"guesses answered {answer.status}")
            except (OSError, http.client.HTTPException):
                connection.close()
                self._count("guesses without an answer")
            if number >= GUESSERS // 2:
                connection.close()
        connection.close()

    def _leak(self) -> None:
        leaked: deque[socket.socket] = deque()
        for number in itertools.count():
            if self._stopping.wait(1 / LEAKS_PER_S):
                break
            connection = self._connect(f"127.0.3.{1 + number % 2}", "leaked connections")
            if connection is None:
                continue
            header = f"Authorization: {PASSWORD}\r\n" if number % 5 == 0 else ""
            with suppress(OSError):
                connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
            leaked.append(connection)
            if len(leaked) > MOST_LEAKED:
                leaked.popleft().close()
        _close(leaked)

    def _nonsense(self) -> None:
        for data in itertools.cycle(HOSTILE):
            if self._stopping.wait(1 / NONSENSE_PER_S):
                break
            connection = self._connect("127.0.1.4", "malformed requests")
            if connection is None:
                continue
            with connection, suppress(OSError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.5)
                while connection.recv(65536):
                    pass


def _close(connections: Any) -> None:
    for connection in connections:
        connection.close()


def attack_server(connection: Any, address: str) -> None:
    """Attack until something arrives on ``connection``; then send the counts."""
    clients = Clients(address)
    clients.run(connection.recv)
    connection.send(dict(clients.counts))


# -- devices ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Addresses of the hostile devices."""

    redfish: Mapping[str, str]
    """Name -> URL."""
    ipmi: Mapping[str, int]
    """Name -> UDP port."""
    garbled_port: int


def _udp() -> socket.socket:
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    return peer


def answer_ipmi(peer: socket.socket, kind: str) -> None:
    """Answer datagrams as no BMC should, until the socket is closed."""
    dice = random.Random(kind)
    with suppress(OSError):
        while True:
            data, client = peer.recvfrom(2048)
            if kind == "random":
                peer.sendto(dice.randbytes(dice.randrange(1, 200)), client)
            elif kind == "echo":
                peer.sendto(data, client)
            elif kind == "truncated":
                peer.sendto(data[: dice.randrange(1, len(data))], client)
            elif kind == "flood":
                for _ in range(100):
                    peer.sendto(data[:4] + dice.randbytes(dice.randrange(1, 200)), client)
            elif kind == "late":
                time.sleep(2.0)
                peer.sendto(data, client)


def garble(data: bytes, dice: random.Random) -> list[bytes]:
    """Return the datagrams that arrive in place of ``data``: three times in four, itself."""
    fate = dice.randrange(16)
    if fate == 0:
        return []
    if fate == 1:
        return [data, data]
    if fate == 2:
        return [data[: dice.randrange(len(data))]]
    if fate == 3:
        place = dice.randrange(len(data))
        return [data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]]
    return [data]


def relay(outside: socket.socket, inside: socket.socket, port: int) -> None:
    """Pass garbled datagrams between the exporter and the BMC at ``port``."""
    dice = random.Random(1)
    client: Any = None
    with suppress(OSError, ValueError):
        while True:
            for ready in select.select([outside, inside], [], [])[0]:
                data, sender = ready.recvfrom(2048)
                if ready is outside:
                    client = sender
                for piece in garble(data, dice):
                    if ready is outside:
                        inside.sendto(piece, ("127.0.0.1", port))
                    elif client is not None:
                        outside.sendto(piece, client)


def serve_devices(connection: Any, bmc_port: int) -> None:
    """Serve all hostile devices; send their addresses; run until something arrives on ``connection``.

    Args:
        connection: The other end is in the process of the test.
        bmc_port: Port of the emulated BMC whose datagrams are garbled.
    """
    with ExitStack() as stack:
        redfish = {}
        for number, url in enumerate(stack.enter_context(services(ENDLESS_SERVICES))):
            redfish[f"endless{number}"] = url
        for kind, answer in DRIPPING.items():
            redfish[f"drips-{kind.replace(' ', '-')}"] = stack.enter_context(hostile(answer))
        sockets = {kind: _udp() for kind in IPMI_KINDS}
        for kind, peer in sockets.items():
            threading.Thread(target=answer_ipmi, args=(peer, kind), daemon=True).start()
        outside, inside = _udp(), _udp()
        threading.Thread(target=relay, args=(outside, inside, bmc_port), daemon=True).start()
        ports = {f"hostile-{kind}": int(peer.getsockname()[1]) for kind, peer in sockets.items()}
        connection.send(Devices(redfish=redfish, ipmi=ports, garbled_port=int(outside.getsockname()[1])))
        connection.recv()
        for peer in (*sockets.values(), outside, inside):
            peer.close()
