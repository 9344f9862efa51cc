"""Real servers for integration tests; each is stopped at the end of its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.require import require_program
from support.servers import Emulator, ExporterServer, PrometheusServer, PushgatewayServer, Server, VictoriaMetricsServer


class StartPrometheus(Protocol):
    def __call__(self, **settings: Any) -> PrometheusServer: ...


class StartVictoriaMetrics(Protocol):
    def __call__(self, **settings: Any) -> VictoriaMetricsServer: ...


class StartExporter(Protocol):
    def __call__(self, *flags: str) -> ExporterServer: ...


class StartEmulator(Protocol):
    def __call__(self, scenario: str | Path) -> Emulator: ...


@pytest.fixture
def servers() -> Iterator[list[Server | Emulator]]:
    """Return the list of started servers; they are stopped in the opposite order."""
    started: list[Server | Emulator] = []
    yield started
    for server in reversed(started):
        server.stop()
        if isinstance(server, Emulator):
            server.remove()


@pytest.fixture
def prometheus_server(tmp_path: Path, servers: list[Server | Emulator]) -> StartPrometheus:
    """Return a function that starts a Prometheus; its arguments are those of ``PrometheusServer``."""
    program = require_program("prometheus", "prometheus")

    def start(**settings: Any) -> PrometheusServer:
        server = PrometheusServer(program, tmp_path / f"prometheus{len(servers)}", **settings)
        servers.append(server)
        server.start()
        return server

    return start


@pytest.fixture
def victoria_metrics_server(tmp_path: Path, servers: list[Server | Emulator]) -> StartVictoriaMetrics:
    """Return a function that starts a VictoriaMetrics; its arguments are those of ``VictoriaMetricsServer``."""
    program = require_program("victoria-metrics", "victoria-metrics")

    def start(**settings: Any) -> VictoriaMetricsServer:
        server = VictoriaMetricsServer(program, tmp_path / f"victoria-metrics{len(servers)}", **settings)
        servers.append(server)
        server.start()
        return server

    return start


@pytest.fixture
def pushgateway_server(tmp_path: Path, servers: list[Server | Emulator]) -> PushgatewayServer:
    server = PushgatewayServer(
        require_program("prometheus-pushgateway", "prometheus-pushgateway"), tmp_path / "pushgateway"
    )
    servers.append(server)
    server.start()
    return server


@pytest.fixture
def exporter_server(tmp_path: Path, servers: list[Server | Emulator]) -> StartExporter:
    """Return a function that starts a real exporter with the given flags."""

    def start(*flags: str) -> ExporterServer:
        server = ExporterServer(tmp_path / f"exporter{len(servers)}", *flags)
        servers.append(server)
        server.start()
        return server

    return start


@pytest.fixture
def emulator(servers: list[Server | Emulator]) -> StartEmulator:
    """Return a function that starts an emulated machine; its argument is a scenario (name or file)."""

    def start(scenario: str | Path) -> Emulator:
        machine = Emulator(scenario)
        servers.append(machine)
        machine.start()
        return machine

    return start
