"""Notifications to systemd, received on a real Unix datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from joulewatch_exporter import cli
from joulewatch_exporter.commands.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(20.0)
        yield receiver


def test_notifications_arrive(manager: socket.socket) -> None:
    service_manager = ServiceManager.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    assert service_manager.is_present and service_manager.period_s is None
    service_manager.send("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_an_abstract_address_starts_with_an_at_sign() -> None:
    name = f"joulewatch-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5.0)
        ServiceManager(f"@{name}").send("WATCHDOG=1")
        assert receiver.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("variables", "period_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_period_is_half_of_the_watchdogs_timeout(variables: dict[str, str], period_s: float | None) -> None:
    assert ServiceManager.from_environment({"NOTIFY_SOCKET": "/run/x", **variables}).period_s == period_s


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_there_is_no_manager(variables: dict[str, str]) -> None:
    manager = ServiceManager.from_environment({**variables, "WATCHDOG_USEC": "1000000"})
    assert not manager.is_present and manager.period_s is None
    manager.send("READY=1")


def test_a_socket_that_is_gone_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "gone")).send("READY=1")
    assert "cannot send READY=1" in caplog.text


RUN: Final = "import sys; from joulewatch_exporter.cli import main; sys.exit(main())"


def start(manager: socket.socket, folder: Path, *flags: str, code: str = RUN) -> subprocess.Popen[bytes]:
    """Start the exporter as a service of ``manager`` on a machine with one sensor."""
    zone = folder / "sys" / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "65532610987"), ("energy_uj", "12500000")):
        (zone / name).write_text(f"{text}\n")
    roots = []
    for name, root in (("sysfs", "sys"), ("procfs", "proc"), ("dev", "dev")):
        (folder / root).mkdir(exist_ok=True)
        roots.append(f"--path.{name}={folder / root}")
    return subprocess.Popen(
        [sys.executable, "-c", code, "--web.listen-address=127.0.0.1:0", *roots, *flags],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(cli.__file__).parents[1]),
            "NOTIFY_SOCKET": manager.getsockname(),
            "WATCHDOG_USEC": "100000",
        },
    )


def test_the_daemon_reports_its_start_its_reads_and_its_end(manager: socket.socket, tmp_path: Path) -> None:
    with start(manager, tmp_path) as daemon:
        try:
            assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            daemon.send_signal(signal.SIGTERM)
            rest = [manager.recv(100)]
            while rest[-1] != b"STOPPING=1":
                assert rest[-1] == b"WATCHDOG=1"
                rest.append(manager.recv(100))
            assert daemon.wait(5) == 0
        finally:
            daemon.kill()


def test_the_watchdog_hears_nothing_while_a_family_is_stuck(manager: socket.socket, tmp_path: Path) -> None:
    stuck = f"import joulewatch_exporter.sampling.family_thread as module; module.STUCK_S = -1e6; {RUN}"
    with start(manager, tmp_path, code=stuck) as daemon:
        try:
            assert manager.recv(100) == b"READY=1"
            assert daemon.stderr is not None
            while b"reading has stopped: rapl" not in (line := daemon.stderr.readline()):
                assert line
            daemon.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            daemon.kill()


def test_the_child_of_another_program_sends_nothing(manager: socket.socket, tmp_path: Path) -> None:
    """The harness may run as a service, whose socket its exporter inherits."""
    with start(manager, tmp_path, "--exit-on-stdin-close") as daemon:
        try:
            assert daemon.stdin is not None and daemon.stderr is not None
            while b"listening on" not in (line := daemon.stderr.readline()):
                assert line
            daemon.stdin.close()
            assert daemon.wait(5) == 0
        finally:
            daemon.kill()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
