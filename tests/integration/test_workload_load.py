"""Shares of short-lived processes and containers, against the known energy of real processes in real cgroups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from joulewatch_exporter.emulator.truth import Truth
from support.cgroups import RealTree, real_tree
from support.storm import KEY, Load, Scrape, configure, emulate, running, wait_for_series
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from integration.conftest import StartExporter
    from support.servers import Emulator, Server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

WATTS_PER_CORE = 20.0
LOADS = (
    Load(kind="steady", path="steady.service", busy=0.4, watts_per_core=WATTS_PER_CORE),
    Load(kind="forks", path="system.slice/storm.service", busy=0.5, watts_per_core=WATTS_PER_CORE),
    Load(kind="containers", path="containers.slice", busy=0.6, watts_per_core=WATTS_PER_CORE),
)
SPAN_S = 4.0
LEAST_CPU_S = 0.5


@pytest.fixture(params=["v1", "v2"])
def tree(request: pytest.FixtureRequest) -> Iterator[RealTree]:
    with real_tree(request.param) as made:
        yield made


def test_short_lived_processes_and_containers_get_their_joules(
    tree: RealTree, tmp_path: Path, servers: list[Server | Emulator], exporter_server: StartExporter
) -> None:
    """A fork storm of 30 ms processes and containers of 0.4 s, next to a steady process of the same watts per core."""
    machine = emulate(tree, LOADS, tmp_path)
    servers.append(machine)
    exporter = exporter_server(configure(machine))
    with running(tree, LOADS):
        wait_for_series(exporter.url, LOADS)
        before = Scrape.get(exporter.url)
        enough_s = {load.path: tree.seconds(load.path) + LEAST_CPU_S for load in LOADS}
        time.sleep(SPAN_S)
        # On a busy machine they take longer.
        wait_until(lambda: all(tree.seconds(path) > seconds for path, seconds in enough_s.items()))
        after = Scrape.get(exporter.url)
        time.sleep(0.1)
    truth = Truth.load(machine.folder)
    span = before.read_at_s, after.read_at_s
    device_joules = after.device_joules - before.device_joules
    assert after.shared_joules - before.shared_joules == pytest.approx(device_joules, rel=1e-9)
    for load in LOADS:
        true_joules = truth.workload_joules(KEY, load.path, *span)
        assert true_joules > 0.9 * WATTS_PER_CORE * LEAST_CPU_S, load
        assert after.since(before, load) == pytest.approx(true_joules, rel=0.03), load
    assert after.unattributed["gap"] == before.unattributed["gap"]
