"""Power over the time of a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.timeline import WHOLE_SERVER, power_lines
from joulewatch_harness.analysis.sources.history import RawSeries
from support.synthetic import TWO_SOCKETS, ListSource, World, make_world, sensor

NODE = sensor("psys", "total", "node", "node", primary=True, host="node1")
REMOTE = dataclasses.replace(NODE, device="bmc", collector="ipmi", primary=False)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world((*TWO_SOCKETS, NODE, REMOTE), batch_sizes=(8,), rounds=2)


def test_a_line_has_the_energy_of_all_sensors_of_its_component(world: World) -> None:
    assert world.record is not None
    lines = {line.name: line for line in power_lines(world.record, ListSource(world.scrapes()))}
    assert set(lines) == {"cpu", "memory", WHOLE_SERVER}
    for component, line in lines.items():
        sensors = [one for one in world.sensors if (one.scope, one.component) == ("device", component)]
        sensors = sensors or [NODE]
        first_s, last_s = (float(at_s) - world.read_delay_s for at_s in line.times_s[[0, -1]])
        true = sum(
            float(world.sensors[one].energy_joules(last_s) - world.sensors[one].energy_joules(first_s))
            for one in sensors
        )
        assert float(np.sum(line.watts * np.diff(line.times_s))) == pytest.approx(true, rel=2e-3)


def test_the_power_of_a_window_is_that_of_its_energy(world: World) -> None:
    assert world.record is not None
    result = analyze_run(world.record, None)
    for window in world.record.windows:
        true = sum(world.truth_joules(one, window) for one in world.sensors if one.component == "cpu" and
                   one.scope == "device") / window.duration_s  # fmt: skip
        assert result.powers[window.index]["cpu"] == pytest.approx(true, rel=1e-3)


def changed(world: World, raw: RawSeries) -> RawSeries:
    """Return a counter that starts again at 60 % of its samples, and misses those from 20 to 40 %."""
    if raw.name != catalog.ENERGY_BY_SCOPE["device"].name or raw.labels["component"] != "cpu":
        return raw
    count = raw.times_s.size
    values = raw.values.copy()
    values[int(0.6 * count) :] -= values[int(0.6 * count)]
    kept = np.ones(count, dtype=bool)
    kept[int(0.2 * count) : int(0.4 * count)] = False
    return dataclasses.replace(raw, times_s=raw.times_s[kept], values=values[kept])


def test_gaps_and_restarts_have_no_power(world: World) -> None:
    assert world.record is not None
    source = ListSource([changed(world, raw) for raw in world.scrapes()])
    lines = {line.name: line for line in power_lines(world.record, source)}
    missing = np.isnan(lines["cpu"].watts)
    assert 1 < missing.sum() <= 3 and np.diff(lines["cpu"].times_s)[missing].max() > 1
    assert not np.isnan(lines["memory"].watts).any()


def test_without_a_source_there_are_no_lines(world: World) -> None:
    assert world.record is not None
    assert power_lines(world.record, None) == ()
