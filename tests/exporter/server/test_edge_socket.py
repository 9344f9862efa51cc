"""The Unix socket for edges: who may connect, what it answers, and what happens to its file."""

from __future__ import annotations

import errno
import grp
import http.client
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest

from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.model import SensorInfo
from joulewatch_exporter.sampling.scan import FamilyScan, Layout
from joulewatch_exporter.sampling.steps import FamilyEdge, Step, Steps
from joulewatch_exporter.server.connection import Request, Response, plain
from joulewatch_exporter.server.edge import render_edge
from joulewatch_exporter.server.edge_socket import MOST_CONNECTIONS, EdgeSocket, default_path
from support.fake_family import info

Open = Callable[..., EdgeSocket]


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def metrics(request: Request) -> Response:
    return plain(HTTPStatus.OK, f"{request.method} {request.target}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge.sock"


@pytest.fixture
def listen(path: Path) -> Iterator[Open]:
    opened: list[EdgeSocket] = []

    def begin(edge: Callable[[], bytes] = lambda: b"{}", group: str | None = None) -> EdgeSocket:
        edge_socket = EdgeSocket(path, edge, metrics, group=group)
        opened.append(edge_socket)
        edge_socket.start()
        return edge_socket

    yield begin
    for edge_socket in opened:
        edge_socket.stop()


def ask(path: Path, target: str, method: str = "GET") -> tuple[int, bytes]:
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_edges_and_everything_else(listen: Open, path: Path) -> None:
    listen(lambda: b'{"joulewatch_edge":1}')
    assert ask(path, "/edge") == (200, b'{"joulewatch_edge":1}')
    assert ask(path, "/metrics?collect[]=rapl") == (200, b"GET /metrics?collect[]=rapl\n")
    assert ask(path, "/edge", "POST")[0] == 405


def test_one_connection_takes_several_requests(listen: Open, path: Path) -> None:
    numbers = iter(range(3))
    listen(lambda: b"%d" % next(numbers))
    connection = UnixConnection(path)
    for number in range(3):
        connection.request("GET", "/edge")
        assert connection.getresponse().read() == b"%d" % number
    connection.close()


def test_silent_connections_keep_nobody_out(listen: Open, path: Path) -> None:
    listen(lambda: b"here")
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(path))
        assert ask(path, "/edge") == (200, b"here")


def test_too_many_open_files_do_not_end_the_socket(
    listen: Open, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("joulewatch_exporter.server.connections.ACCEPT_PAUSE_S", 0.0)
    failures = 3
    real = socket.socket.accept

    def accept(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    listen(lambda: b"here")
    assert ask(path, "/edge") == (200, b"here")
    assert caplog.text.count("cannot accept connections") == 1


def test_only_the_owner_and_a_group_may_connect(listen: Open, path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    listen(group=group)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_an_unknown_group_is_an_error_and_leaves_no_file(listen: Open, path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no group 'nobodys'"):
        listen(group="nobodys")
    assert not path.exists()


def test_the_socket_of_an_exporter_that_was_killed_is_replaced(listen: Open, path: Path) -> None:
    killed = socket.socket(socket.AF_UNIX)
    killed.bind(str(path))
    killed.close()
    listen()
    assert ask(path, "/edge")[0] == 200


def test_the_socket_of_a_running_exporter_is_not_taken_over(listen: Open, path: Path) -> None:
    listen()
    with pytest.raises(ConfigError, match="another exporter may be running"):
        listen()
    assert ask(path, "/edge")[0] == 200


def test_another_file_is_not_removed(listen: Open, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        listen()
    assert path.read_text() == "precious"


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--web\.edge-socket: .*No such file"):
        EdgeSocket(tmp_path / "missing" / "edge.sock", lambda: b"", metrics)


def test_stop_removes_the_file(listen: Open, path: Path) -> None:
    listen().stop()
    assert not path.exists()


def test_the_default_is_the_folder_of_the_service(tmp_path: Path) -> None:
    assert default_path({"RUNTIME_DIRECTORY": str(tmp_path)}) == tmp_path / "edge.sock"
    assert default_path({"RUNTIME_DIRECTORY": f"{tmp_path}:/run/other"}) == tmp_path / "edge.sock"
    assert default_path({"RUNTIME_DIRECTORY": str(tmp_path / "missing")}) is None


def scan_of(infos: tuple[SensorInfo, ...], joules: tuple[float | None, ...], at_s: float | None) -> FamilyScan:
    count = len(infos)
    return FamilyScan(
        collector="rapl",
        layout=Layout(infos, ("socket0",)),
        energies_joules=joules,
        powers_watts=(None,) * count,
        healths=(None,) * count,
        reads=("energy",) * count,
        read_at_s=(at_s,),
        states=("ok",),
        errors=(),
        duration_s=0.001,
    )


def test_the_answer_has_the_steps_of_the_counters_and_the_scan_of_the_others() -> None:
    scan = scan_of((info(), info(domain="dram", component="memory"), info(domain="core")), (7.0, 3.0, None), 1000.5)
    steps = Steps(10.0, Step(2_000_000_000, 4_000, 10.25), Step(2_001_000_000, 3_000, 10.5))
    edge = FamilyEdge(
        scan=scan, steps={0: steps}, reasons={1: 'no "step"'}, offset_ns=999_000_000_000, waited_ns=1_500_000
    )
    answer = json.loads(render_edge([FamilyEdge(scan=scan_of((), (), None)), edge], start_s=900.0, nodename='n"1'))
    assert (answer["joulewatch_edge"], answer["nodename"], answer["start_s"]) == (1, 'n"1', 900.0)
    assert answer["waited_s"] == 0.0015
    package, dram = answer["counters"]
    assert (package["joules"], package["read_at_s"]) == (10.5, 1001.001)
    assert package["step"] == {"error_s": 4e-6, "before_joules": 10.0, "first_joules": 10.25, "span_s": 0.001}
    assert (dram["joules"], dram["read_at_s"], dram["no_step"]) == (3.0, 1000.5, 'no "step"')
    assert [dram[name] for name in ("scope", "collector", "component", "device", "domain")] == [
        "device",
        "rapl",
        "memory",
        "socket0",
        "dram",
    ]


def test_the_answer_lacks_a_device_that_could_not_be_read() -> None:
    assert json.loads(render_edge([FamilyEdge(scan=scan_of((info(),), (None,), None))], start_s=1.0))["counters"] == []
