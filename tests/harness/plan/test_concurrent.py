"""Plans with several networks at the same time: keys, flags, steps, names."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from joulewatch_harness.analysis.results.interference import change_percent
from joulewatch_harness.analysis.results.model import Estimate
from joulewatch_harness.commands import profile
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import ConcurrentStep, MeasureStep, steps
from joulewatch_harness.records import Configuration

TWO = [{"network": "a.onnx", "name": "a"}, {"network": "b.onnx", "name": "b"}]


def plan(**keys: Any) -> Any:
    return make_plan({"configurations": TWO, "batch_sizes": "1,8", "rounds": 3, **keys}, "test")


def test_each_round_measures_each_alone_and_all_together_at_each_batch_size() -> None:
    taken: list[MeasureStep] = []
    rounds = steps(plan(concurrent=True)).rounds
    for step in rounds:
        taken.append(step)
        rounds.record(step, joules=1.0, seconds=1.0, spent_s=1.0)
    together = [step for step in taken if isinstance(step, ConcurrentStep)]
    assert len(taken) == 3 * 2 * 3 and len(together) == 3 * 2
    assert {(step.configuration, step.configurations) for step in together} == {("a + b", ("a", "b"))}
    assert not [step for step in steps(plan()).rounds.cells.values() if step.configurations]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"configurations": TWO[:1]}, "concurrent needs at least two configurations"),
        ({"isolate": False}, "concurrent requires isolate: true"),
        ({"scenario": "server", "server_rate_per_s": 5}, "has the scenario server; use offline or single_stream"),
    ],
)
def test_what_cannot_run_at_the_same_time_is_an_error(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan(concurrent=True, **keys)


def test_the_fingerprint_of_a_plan_without_it_is_that_of_earlier_versions() -> None:
    assert "concurrent" not in plan().to_mapping()
    assert plan(concurrent=True).to_mapping()["concurrent"] is True


def test_the_names_of_networks_that_run_together_are_no_names_of_a_plan() -> None:
    together = Configuration(name="a", network="a", runtime="x", precision="fp32").with_others(["b", "c"])
    assert (together.name, together.alone) == ("a (with b and c)", "a")
    assert Configuration(name="a/b", network="a", runtime="x", precision="fp32").alone == ""
    with pytest.raises(ConfigError, match="at the same time"):
        make_plan({"configurations": [{"network": "a.onnx", "name": "a (with b)"}]}, "test")


def test_the_flag_names_networks_or_takes_those_of_the_plan() -> None:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    made = profile.plan_from(parser.parse_args(["--concurrent", "radioml-vgg10", "b.onnx"]))
    assert made.concurrent and made.isolate
    assert [item.network for item in made.configurations] == ["radioml-vgg10", "b"]
    of_flags = profile.plan_from(parser.parse_args(["--network", "a.onnx", "--network", "b.onnx", "--concurrent"]))
    assert of_flags.concurrent and len(of_flags.configurations) == 2


def test_the_change_between_two_estimates_has_their_uncertainty() -> None:
    def estimate(value: float, expanded: float | None) -> Estimate:
        return Estimate(value=value, standard=(expanded or 0.0) / 2, expanded=expanded, dof=1e9, budget=())

    change = change_percent(estimate(10.0, 0.3), estimate(12.0, 0.48))
    assert change is not None and change.value == pytest.approx(20.0)
    assert change.expanded == pytest.approx(120 * (0.03**2 + 0.04**2) ** 0.5)
    unknown = change_percent(estimate(10.0, None), estimate(12.0, 0.48))
    assert unknown is not None and unknown.expanded is None
    assert change_percent(None, estimate(1.0, 0.1)) is None and change_percent(estimate(0.0, 0.1), change) is None
