"""Scenarios in plans: their keys, and the names and records of configurations with a scenario."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.scenario import Scenario, scenario_in_name


def configurations(**keys: Any) -> list[tuple[str, str, float]]:
    plan = make_plan({"configurations": [{"network": "radioml-vgg10", "precision": "fp32"}], **keys}, "plan p")
    return [(entry.name, entry.scenario, entry.server_rate_per_s) for entry in plan.configurations]


def test_name_and_record_contain_the_scenario() -> None:
    name = "radioml-vgg10/onnxruntime/fp32"
    assert configurations() == configurations(scenario="offline") == [(name, "", 0.0)]
    assert configurations(scenario=["offline", "single_stream", "server"], server_rate_per_s=50) == [
        (name, "", 0.0),
        (f"{name}/single_stream", "single_stream", 0.0),
        (f"{name}/server-50", "server", 50.0),
    ]


def test_a_configuration_can_have_its_own_scenario_which_is_appended_to_a_given_name() -> None:
    entry = {"network": "radioml-vgg10", "name": "mine", "scenario": "server", "server_rate_per_s": 2.5}
    expanded = configurations(configurations=[entry, {**entry, "name": "two", "scenario": ["offline", "server"]}])
    assert expanded == [
        ("mine/server-2.5", "server", 2.5),
        ("two", "", 0.0),
        ("two/server-2.5", "server", 2.5),
    ]


@given(st.sampled_from(["single_stream", "server"]), st.floats(0.1, 1e6))
def test_the_scenario_can_be_read_from_the_name(name: str, rate_per_s: float) -> None:
    scenario = Scenario.make(name, rate_per_s, "x")
    assert scenario_in_name(f"a/b/fp32/{scenario.suffix}") == (name, pytest.approx(scenario.rate_per_s, rel=1e-5))
    assert scenario_in_name("a/b/fp32") == ("", 0.0)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"scenario": "singlestream"}, "unknown scenario 'singlestream'; did you mean single_stream"),
        ({"scenario": "server"}, "server_rate_per_s is missing"),
        ({"scenario": "server", "server_rate_per_s": 0.01}, "server_rate_per_s is 0.01"),
        ({"scenario": "server", "server_rate_per_s": "fast"}, "server_rate_per_s: must be a number"),
        ({"scenario": {}}, "scenario: must be a value or a list of values, got {}"),
        (
            {"configurations": [{"network": "radioml-vgg10", "server_rate_per_s": 3}]},
            r"configurations\[0\]: server_rate_per_s requires the scenario server, not offline",
        ),
    ],
)
def test_errors_about_bad_scenarios_have_key_and_value(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"plan p: .*{text}"):
        configurations(**keys)
