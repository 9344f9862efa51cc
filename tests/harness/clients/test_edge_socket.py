"""Edges from the socket of an exporter on this machine: found by itself, and replaced by scrapes when it fails."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.clients.edge_socket import HEADER, EdgeAnswer, path_of
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.errors import ExporterUnreachableError
from joulewatch_harness.runner.edges import START_TRIES, EdgeReader
from support.waiting import wait_until

LABELS = {"scope": "device", "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
STEP = {"error_s": 2e-6, "before_joules": 9.0, "first_joules": 9.5, "span_s": 0.001}
PAGE = """joulewatch_exporter_info{version="1",nodename="n1"} 1.0
joulewatch_exporter_start_timestamp_seconds 1000.0
joulewatch_device_energy_joules_total{collector="rapl",component="cpu",device="socket0",domain="package"} 7.0
joulewatch_read_timestamp_seconds{collector="rapl",device="socket0"} 1e9
"""


def edge(start_s: float = 1000.0, **changes: Any) -> str:
    counter = {**LABELS, "on_request": True, "joules": 10.0, "read_at_s": 2e9, "step": STEP, **changes}
    return json.dumps({"joulewatch_edge": 1, "nodename": "n1", "start_s": start_s, "counters": [counter]})


class Exporter:
    """An exporter that answers with given texts, on a port or on a Unix socket."""

    def __init__(self, listener: socket.socket, headers: str = "") -> None:
        self.edges = [edge()]
        """The last one is repeated."""
        self.asked: list[str] = []
        self.hold = threading.Event()
        """Edges are answered while it is set."""
        self.hold.set()
        self._headers = headers
        self._listener = listener
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the test has closed it
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        while request := connection.recv(65536):
            target = request.split()[1].decode()
            self.asked.append(target)
            body = PAGE
            if target == "/edge":
                self.hold.wait(5)
                body = self.edges.pop(0) if len(self.edges) > 1 else self.edges[0]
            head = f"HTTP/1.1 200 OK\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
            # In two pieces, as a kernel may deliver it.
            connection.sendall(head.encode() + body[:10].encode())
            connection.sendall(body[10:].encode())

    def stop(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def drop(self) -> None:
        """Close the connections; new ones are refused."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def at_socket(tmp_path: Path) -> Iterator[Exporter]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "edge.sock"))
    listener.listen()
    exporter = Exporter(listener)
    yield exporter
    exporter.stop()


@pytest.fixture
def on_port(tmp_path: Path) -> Iterator[tuple[str, Exporter]]:
    listener = socket.create_server(("127.0.0.1", 0))
    exporter = Exporter(listener, f"{HEADER}: {tmp_path / 'edge.sock'}\r\n")
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", exporter
    exporter.stop()


def test_the_socket_is_found_by_the_header_of_a_scrape(at_socket: Exporter, on_port: tuple[str, Exporter]) -> None:
    url, port = on_port
    with ExporterClient(url) as client:
        for _ in range(2):
            (counter,), clock = client.parse_edge(client.fetch_edge())
            assert (counter.energy_joules, counter.read_at_s) == (10.0, 2e9)
            assert counter.first == (pytest.approx(2e9 - 0.001), 9.5)
            assert counter.exporter == client.name == url.removeprefix("http://")
            assert clock is not None and clock.lower_s <= clock.upper_s
    assert port.asked == ["/metrics"]
    assert at_socket.asked == ["/edge"] * 3  # the first one identifies the exporter


def test_a_unix_url_needs_no_port(at_socket: Exporter, tmp_path: Path) -> None:
    url = f"unix:{tmp_path / 'edge.sock'}"
    with ExporterClient(url) as client:
        (counter,), _ = client.parse_edge(client.fetch_edge())
        assert counter.step is not None
        assert client.name == client.url == url
        record, _ = client.describe()
        assert (record.nodename, record.url) == ("n1", url)


@pytest.mark.parametrize(
    ("url", "path"),
    [("unix:/run/x.sock", "/run/x.sock"), ("unix:///run/x.sock", "/run/x.sock"), ("unix:x", ""), ("http://a", "")],
)
def test_paths_of_urls(url: str, path: str) -> None:
    assert path_of(url) == path


def test_a_socket_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ExporterUnreachableError, match="join the group of this socket, or use the exporter's port"):
        ExporterClient(f"unix:{tmp_path}/edge.sock").fetch()


def test_the_socket_of_another_exporter_is_not_used(at_socket: Exporter, on_port: tuple[str, Exporter]) -> None:
    """The path in the header may be of another container, and the file that of the host."""
    at_socket.edges = [edge(start_s=999.0)]
    with ExporterClient(on_port[0]) as client:
        (counter,), _ = client.parse_edge(client.fetch_edge())
    assert (counter.energy_joules, counter.step) == (7.0, None)


def test_without_a_socket_the_first_edge_is_one_scrape(on_port: tuple[str, Exporter]) -> None:
    url, port = on_port
    with ExporterClient(url) as client:
        for _ in range(3):
            (counter,), _ = client.parse_edge(client.fetch_edge())
            assert counter.step is None
    assert port.asked == ["/metrics"] * 3


def test_a_socket_that_is_lost_is_replaced_by_scrapes_and_logged(
    at_socket: Exporter, on_port: tuple[str, Exporter], caplog: pytest.LogCaptureFixture
) -> None:
    with ExporterClient(on_port[0]) as client, caplog.at_level(logging.WARNING):
        client.fetch_edge()
        at_socket.drop()
        (counter,), _ = client.parse_edge(client.fetch_edge())
        assert counter.energy_joules == 7.0
    assert "edges are read by scrapes" in caplog.text


@pytest.mark.parametrize(
    ("late", "tries"),
    [
        ({"read_at_s": 1e9}, START_TRIES),
        ({"step": None, "no_step": "the exporter was interrupted for 4 ms"}, START_TRIES),
        ({"step": None, "no_step": "its refresh period is not known yet"}, 1),
        ({}, 1),
    ],
    ids=["old", "missed", "never", "in time"],
)
def test_a_late_edge_at_a_start_is_read_again(
    late: dict[str, Any], tries: int, at_socket: Exporter, on_port: tuple[str, Exporter]
) -> None:
    at_socket.edges = [edge(), edge(**late)]
    with EdgeReader([ExporterClient(on_port[0])]) as reader:
        reader.fetch_start(lambda: None)
        assert len(at_socket.asked) == 1 + tries
        reader.fetch()
        assert len(at_socket.asked) == 2 + tries


def test_work_is_done_while_the_exporter_waits_or_else_outside_the_requests(
    at_socket: Exporter, on_port: tuple[str, Exporter]
) -> None:
    """The first edge is a scrape, which finds the socket."""
    url, port = on_port
    with EdgeReader([ExporterClient(url)]) as reader:
        order: list[str] = []

        def note() -> None:
            order.append(f"{len(port.asked)} and {len(at_socket.asked)}, answered: {reader.clients[0].waits}")

        reader.fetch_start(note)
        assert order == ["0 and 0, answered: False"]
        assert len(at_socket.asked) == 2, "one request finds out whether it is the same exporter"
        at_socket.hold.clear()
        reader.fetch_end(at_socket.hold.set)
        assert len(at_socket.asked) == 3, "the answer came after the work"
    at_socket.drop()
    with EdgeReader([ExporterClient(url)]) as reader:
        order.clear()
        before = len(port.asked)
        reader.fetch_end(note)
        assert order == [f"{before + 1} and 3, answered: False"]


def test_an_answer_that_nobody_waited_for_is_not_that_of_the_next_request(
    at_socket: Exporter, on_port: tuple[str, Exporter]
) -> None:
    """As after Ctrl-C in a notebook."""

    def interrupt() -> None:
        wait_until(lambda: len(at_socket.edges) == 1, "the request at the exporter")
        raise KeyboardInterrupt

    at_socket.edges = [edge(), edge(joules=1.0), edge(joules=2.0), edge(joules=3.0)]
    with ExporterClient(on_port[0]) as client:
        client.fetch_edge()
        with pytest.raises(KeyboardInterrupt):
            client.fetch_edge(interrupt)
        (counter,), _ = client.parse_edge(client.fetch_edge())
    assert counter.energy_joules == 3.0


@pytest.mark.parametrize("body", ['{"joulewatch_edge":2}', "[]", "{", '{"joulewatch_edge":1,"counters":[{}]}'])
def test_an_answer_of_another_format_is_an_error(body: str, at_socket: Exporter, on_port: tuple[str, Exporter]) -> None:
    with pytest.raises(ValueError, match=r"edge|Expecting"):
        EdgeAnswer.parse(body.encode(), "x")
    at_socket.edges = [edge(), body]
    with ExporterClient(on_port[0]) as client, pytest.raises(ExporterUnreachableError):
        client.parse_edge(client.fetch_edge())
