"""Windows that began before the sensors had settled."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from joulewatch_harness.analysis.energy.settling import SETTLE, settle_s_of, unsettled_s, with_settling
from joulewatch_harness.analysis.energy.window_energy import BudgetItem
from joulewatch_harness.analysis.energy.windows import measure_run
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.sources.history import History
from joulewatch_harness.analysis.sources.series import SensorId
from support.synthetic import World, make_world, sensor

SLOW = sensor("bmc", "total", collector="ipmi", refresh_s=1.0)


def test_on_average_the_start_shows_the_time_before() -> None:
    assert unsettled_s(1.0, 0.2) == pytest.approx(0.32)
    assert unsettled_s(1.0, 1.0) == unsettled_s(1.0, 5.0) == unsettled_s(0.0, 0.0) == 0.0
    # Ages are uniform in [0, r]; what is older than the settle time counts.
    ages = np.linspace(0, 5, 200_001)
    assert unsettled_s(5.0, 0.2) == pytest.approx(float(np.maximum(ages - 0.2, 0).mean()), rel=1e-4)


def world_of(planned_s: float | str | None, **settings: float) -> World:
    world = make_world([SLOW], configurations=("net/onnxruntime/fp32",), batch_sizes=(1,), **settings)  # type: ignore[arg-type]
    assert world.record is not None
    plan = {} if planned_s is None else {"settle_s": planned_s}
    world.record = dataclasses.replace(world.record, header=dataclasses.replace(world.record.header, plan=plan))
    return world


def items_of(world: World) -> list[tuple[str, BudgetItem]]:
    assert world.record is not None
    run = with_settling(measure_run(world.record, History(source="")))
    results = [(measured.window.kind, measured.sensors[SensorId.of(SLOW)].energy) for measured in run.windows]
    return [
        (kind, item) for kind, energy in results if energy is not None for item in energy.budget if item.name == SETTLE
    ]


def test_the_component_is_the_time_before_at_the_difference_of_power() -> None:
    items = items_of(world_of(0.2, window_s=20.0, idle_s=30.0, settle_s=2.0))
    assert [kind for kind, _ in items] == ["idle", "idle", "measure", "measure", "measure", "idle"]
    for kind, item in items:
        assert item.half_width_joules == pytest.approx(0.32 * 110.0, rel=0.1), kind
        assert item.standard_joules == pytest.approx(item.half_width_joules / math.sqrt(3))
        assert item.systematic and item.distribution == "uniform"
        assert item.text == "the value at the start shows 320 ms of the time before, on average"


@pytest.mark.parametrize("settle_s", [1.0, 3.0, None, "?"])
def test_a_sensor_that_had_settled_or_an_unknown_plan_adds_nothing(settle_s: float | str | None) -> None:
    assert items_of(world_of(settle_s, window_s=20.0)) == []


def test_the_settle_time_is_in_the_plan_of_the_header() -> None:
    for value, expected in ((2, 2.0), (0.1, 0.1), (None, None), ("x", None)):
        world = world_of(value)  # type: ignore[arg-type]
        assert world.record is not None
        assert settle_s_of(world.record) == expected


def test_the_bias_is_inside_the_uncertainty_after_ten_rounds() -> None:
    """Windows of 20 s, load for 0.2 s before them, a refresh of 1 s: 1.2 % low in every round alike."""
    world = world_of(0.2, window_s=20.0, idle_s=20.0, settle_s=0.2, rounds=10)
    assert world.record is not None
    # The phase of the refresh differs between windows, as in a real run.
    (group,) = analyze_run(world.record, None).groups
    gross = group.total.gross
    assert gross is not None and gross.expanded is not None
    truths = [
        world.truth_joules(SLOW, window) / window.inferences
        for window in world.record.windows
        if window.kind == "measure"
    ]
    truth = float(np.mean(truths))
    assert abs(gross.value - truth) <= gross.expanded
    (line,) = [line for line in gross.budget if line.name == SETTLE]
    assert line.systematic and line.standard * math.sqrt(3) / gross.value == pytest.approx(0.0117, rel=0.1)
