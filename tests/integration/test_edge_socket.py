"""The Unix socket for edges of a real exporter, whose counter is refreshed at known times of the machine's clock."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.clock import SystemClock, wall_offset_ns
from support.rapl_shim import ShimMachine, Square, build_shim
from support.rapl_tree import pmu, topology
from support.servers import ExporterServer
from support.sysfs import XEON, FakeSysfs

pytestmark = pytest.mark.integration

REFRESH_NS = 4_000_000
"""Long enough that a busy machine seldom interrupts the exporter for most of it."""
WATTS = 260.0
SQUARE = Square(137_000_003, 0.25, 1.0)
EDGES = 12
"""Edges with steps that are compared."""
PATIENCE_S = 60.0
"""Longest wait for them on a busy machine, which interrupts the exporter at most edges."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    sysfs = pmu(topology(FakeSysfs(tmp_path / "node").cpuinfo(**XEON), (0, 0, 0), (0, 0, 1)), "energy-pkg")
    machine = ShimMachine(sysfs=sysfs, library=build_shim(tmp_path)).event("energy-pkg", 0, WATTS)
    machine.square(SQUARE).refresh(REFRESH_NS)
    socket_path = tmp_path / "edge.sock"
    flags = (*machine.flags, "--no-collector.estimate", f"--web.edge-socket={socket_path}")
    exporter = ExporterServer(tmp_path / "exporter", *flags, environment=machine.environment)
    exporter.start()
    try:
        yield socket_path
    finally:
        exporter.stop()
    assert not socket_path.exists()


def edge(path: Path) -> dict[str, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(str(path))
    connection.request("GET", "/edge")
    (counter,) = json.loads(connection.getresponse().read())["counters"]
    connection.close()
    return dict(counter)


def test_steps_have_the_true_energy_at_the_true_time(path: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    steps = []
    while len(steps) < EDGES:
        counter = edge(path)
        if "step" in counter:
            steps.append(counter)
            continue
        # The exporter measures the refresh between requests, and an interrupted edge has a reason.
        assert counter["no_step"].startswith(
            ("its refresh period is not known", "the exporter was interrupted", "no step")
        )
        assert time.monotonic() < deadline_s, f"{len(steps)} edges with steps; the last one: {counter['no_step']}"
        time.sleep(0.02)
    offset_ns = wall_offset_ns(SystemClock())
    for before, after in itertools.pairwise(steps):
        refreshes = []
        for counter in (before, after):
            at_ns = counter["read_at_s"] * 1e9 - offset_ns
            refreshes.append(round(at_ns / REFRESH_NS))
            # 20 us for the mappings of the clocks.
            assert abs(at_ns - refreshes[-1] * REFRESH_NS) <= counter["step"]["error_s"] * 1e9 + 20_000
        first, last = (SQUARE.full_power_s(number * REFRESH_NS) for number in refreshes)
        assert after["joules"] - before["joules"] == pytest.approx(WATTS * (last - first), abs=1e-6)
