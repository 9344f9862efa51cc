"""Plans: keys and values of a plan file, the defaults of presets, and the order of the steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.parsing import KEYS, make_plan, parse_batch_sizes, read_plan
from joulewatch_harness.plan.plan import PRESETS, ExporterTarget, Plan
from joulewatch_harness.plan.steps import (
    IdleStep,
    LoadStep,
    MeasureStep,
    PhaseStep,
    estimate_s,
    settle_length_s,
    steps,
    window_length_s,
)
from support.paths import ROOT

EXAMPLE = ROOT / "harness" / "example-plan.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_plan_measures_radioml_in_fp32_and_int8_at_all_batch_sizes() -> None:
    plan = make_plan({}, "command line")
    assert [configuration.name for configuration in plan.configurations] == [
        "radioml-vgg10/onnxruntime/fp32",
        "radioml-vgg10/onnxruntime/int8",
    ]
    assert plan.batch_sizes == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert plan.preset == "normal"
    assert (plan.rounds, plan.max_relative_uncertainty, plan.max_run_s) == (None, 0.05, 360)


def measured_s(plan: Plan, joules: Iterator[float]) -> tuple[float, list[MeasureStep]]:
    """Run the steps of a plan on paper: return their estimated duration and the measure steps."""
    total_s, measured = 0.0, []
    sequence = steps(plan, 0.01)
    for step in sequence:
        total_s += estimate_s(plan, step)
        if isinstance(step, MeasureStep):
            measured.append(step)
            sequence.rounds.record(step, joules=next(joules), seconds=1.0, spent_s=estimate_s(plan, step))
    return total_s, measured


@pytest.mark.parametrize(("preset", "steady_s"), [("quick", 71), ("normal", 180), ("report", 800)])
def test_the_presets_stay_within_their_time_limits(preset: str, steady_s: float) -> None:
    """Each has time for the five rounds that a steady machine needs; the limit ends the rounds of a noisy one."""
    plan = make_plan({"preset": preset}, "x")
    assert plan.max_run_s is not None
    total_s, measured = measured_s(plan, itertools.repeat(1.0))
    assert {step.repeat for step in measured} == set(range(5))
    assert total_s < steady_s
    total_s, measured = measured_s(plan, itertools.cycle([1.0, 2.0, 3.0]))
    assert 0.95 * plan.max_run_s < total_s <= plan.max_run_s
    assert max(step.repeat for step in measured) >= 5


def test_mlperf_has_windows_of_a_minute_and_three_rounds() -> None:
    plan = make_plan({"preset": "mlperf"}, "x")
    assert (plan.window_s, plan.rounds, plan.max_relative_uncertainty, plan.max_run_s) == (60, 3, None, None)
    with pytest.raises(ConfigError, match="window_s is 30; the preset mlperf needs at least 60"):
        make_plan({"preset": "mlperf", "window_s": 30}, "x")


def test_a_number_of_rounds_replaces_the_target_and_a_target_the_rounds() -> None:
    plan = make_plan({"preset": "quick", "rounds": 4}, "x")
    assert (plan.rounds, plan.max_relative_uncertainty, plan.max_run_s) == (4, None, None)
    plan = make_plan({"preset": "mlperf", "max_relative_uncertainty": "2.5%"}, "x")
    assert (plan.rounds, plan.max_relative_uncertainty) == (None, 0.025)


def test_a_given_list_overrides_the_preset() -> None:
    plan = make_plan({"preset": "quick", "batch_sizes": [3, 5]}, "x")
    assert plan.batch_sizes == (3, 5)
    assert plan.window_s == PRESETS["quick"].window_s


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("1..8", (1, 2, 4, 8)),
        ("3..20", (3, 6, 12, 20)),
        ("1, 8,64", (1, 8, 64)),
        ("7", (7,)),
        (16, (16,)),
        ([64, 1, 1], (1, 64)),
        (["1..4", 10], (1, 2, 4, 10)),
    ],
)
def test_batch_sizes(given_value: Any, expected: tuple[int, ...]) -> None:
    assert parse_batch_sizes(given_value) == expected


@pytest.mark.parametrize("bad", [0, -1, "0", "-4", "eight", "1..x", "0..8", "8..1", 1.5, True, [], "", None, [None]])
def test_bad_batch_sizes_are_errors_with_the_key(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan p\.yaml: batch_sizes"):
        make_plan({"batch_sizes": bad}, "plan p.yaml")


@given(st.integers(1, 4096), st.integers(0, 4096))
def test_a_range_doubles_and_includes_both_ends(first: int, difference: int) -> None:
    sizes = parse_batch_sizes(f"{first}..{first + difference}")
    assert sizes[0] == first
    assert sizes[-1] == first + difference
    assert all(b == 2 * a for a, b in itertools.pairwise(sizes[:-1]))


def test_the_error_about_an_unknown_key_has_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path, "batch_size: 4\n")
    with pytest.raises(ConfigError, match=r"plan\.yaml: unknown key 'batch_size'; did you mean batch_sizes"):
        make_plan(read_plan(path), f"plan {path}")


def test_the_error_about_an_unknown_nested_key_has_its_path() -> None:
    with pytest.raises(ConfigError, match=r"configurations\[1\]: unknown key 'presision'; did you mean precision"):
        make_plan({"configurations": ["radioml-vgg10", {"network": "a.onnx", "presision": "fp32"}]}, "plan p")
    with pytest.raises(ConfigError, match=r"exporters\[0\]: unknown key 'uri'"):
        make_plan({"exporters": [{"uri": "http://x"}]}, "plan p")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.yaml, line 3, column 1: the key 'rounds' is given twice"):
        read_plan(write(tmp_path, "rounds: 3\nseed: 1\nrounds: 4\n"))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "just words"])
def test_the_error_about_a_file_that_is_not_a_plan_has_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"plan\.yaml"):
        read_plan(write(tmp_path, text))


def test_missing_and_binary_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_plan(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("preset", "quik", "did you mean quick"),
        ("max_relative_uncertainty", 5, "max_relative_uncertainty: must be a number > 0 and <= 0.5, got 5"),
        ("max_relative_uncertainty", "5 %%", "must be a share such as 5% or 0.05, got '5 %%'"),
        ("max_relative_uncertainty", "little", "must be a share such as 5% or 0.05, got 'little'"),
        ("max_run_s", 0, "max_run_s: must be a number > 0 (seconds), got 0"),
        ("rounds", 2, "rounds: must be an integer >= 3, got 2"),
        ("rounds", 3.5, "rounds: must be an integer >= 3, got 3.5"),
        ("rounds", True, "rounds: must be an integer >= 3, got true"),
        ("seed", -1, "seed: must be an integer >= 0, got -1"),
        ("window_s", 0.01, "window_s: must be a number >= 0.02 (seconds), got 0.01"),
        ("window_s", "long", "window_s: must be a number >= 0.02 (seconds), got 'long'"),
        ("window_s", float("nan"), "window_s: must be a number >= 0.02 (seconds), got nan"),
        ("idle_s", -1, "idle_s: must be a number >= 0 (seconds), got -1"),
        ("scrape_rate_hz", 0, "scrape_rate_hz: must be a number >= 0.1 and <= 1000, got 0"),
        ("scrape_rate_hz", 1001, "scrape_rate_hz: must be a number >= 0.1 and <= 1000, got 1001"),
        ("max_window_s", 0.4, "less than window_s"),
        ("max_warmup_s", 0.1, "less than warmup_s"),
        ("configurations", [], "no configuration"),
        ("configurations", [{}], "configurations[0]: missing key 'network'"),
        ("configurations", [{"network": ""}], "configurations[0].network: must not be empty"),
        ("configurations", [{"network": "mlp", "precision": ["", ""]}], "[0].precision: must not be empty"),
        ("configurations", [3], "configurations[0]: must be a mapping, got 3"),
        (
            "configurations",
            [{"network": "a.onnx", "options": 4}],
            "configurations[0].options: must be a mapping, got 4",
        ),
        (
            "configurations",
            [{"network": "a.onnx", "options": {"threads": None}}],
            "options.threads: must be a value or",
        ),
        ("configurations", [{"network": "a.onnx", "options": {"threads": []}}], "options.threads: must contain at"),
        (
            "configurations",
            [{"network": "a.onnx", "options": {"threads": [[]]}}],
            "options.threads[0]: must be a string",
        ),
        ("configurations", [{"network": "a.onnx", "precision": ["a", "b"], "name": "n"}], "one name for 2"),
        ("configurations", ["a.onnx", "a.onnx"], "two configurations"),
        ("exporters", "http://a", "exporters: must be a list, got 'http://a'"),
        ("exporters", ["node1:10717"], "exporters[0]: 'node1:10717' is not a valid URL"),
        ("prometheus", ["a"], "prometheus: must be a string, got ['a']"),
        ("output", None, "output: must be a string, got null"),
    ],
)
def test_errors_about_bad_values_have_key_and_value(key: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^plan p: .*{re.escape(text)}"):
        make_plan({key: value}, "plan p")


def test_lists_of_precisions_and_options_become_configurations_with_distinct_names() -> None:
    plan = make_plan(
        {
            "configurations": [
                {"network": "nets/a.onnx", "precision": "fp32", "options": {"threads": [1, 2], "seed": 3}}
            ]
        },
        "x",
    )
    assert [configuration.name for configuration in plan.configurations] == [
        "a/onnxruntime/fp32/threads=1",
        "a/onnxruntime/fp32/threads=2",
    ]
    assert plan.configurations[0].options == {"threads": "1", "seed": "3"}


def test_yaml_booleans_become_true_and_false() -> None:
    plan = make_plan({"configurations": [{"network": "a.onnx", "options": {"spinning": False}}]}, "x")
    assert plan.configurations[0].options == {"spinning": "false"}


def test_a_user_defined_network_has_its_own_runtime_and_precision() -> None:
    (configuration,) = make_plan({"configurations": ["lib/mine.py:Mine"]}, "x").configurations
    assert (configuration.runtime, configuration.precision, configuration.name) == (
        "python",
        "native",
        "Mine/python/native",
    )


def test_window_length_follows_the_slowest_sensor_up_to_the_limit() -> None:
    plan = make_plan({"window_s": 2, "max_window_s": 15}, "x")
    assert window_length_s(plan, None) == 2
    assert window_length_s(plan, 0.001) == 2
    assert window_length_s(plan, 0.5) == 10
    assert window_length_s(plan, 1.0) == 15


def test_the_load_settles_for_a_refresh_period_of_the_slowest_sensor() -> None:
    plan = make_plan({"settle_s": 0.2, "max_window_s": 15}, "x")
    assert settle_length_s(plan, None) == 0.2
    assert settle_length_s(plan, 0.1) == 0.2
    assert settle_length_s(plan, 5.0) == 5.0
    assert settle_length_s(plan, 30.0) == 15.0, "as long as the longest window"
    assert settle_length_s(make_plan({"settle_s": 20, "max_window_s": 15}, "x"), 30.0) == 20.0


def test_a_settle_time_above_the_warm_up_is_in_the_estimate() -> None:
    for settle_s, before_s in ((1.0, 3.0), (2.0, 3.0), (2.5, 5.5)):
        plan = make_plan({"settle_s": settle_s, "warmup_s": 2, "max_warmup_s": 4}, "x")
        first, later = (
            estimate_s(plan, MeasureStep(configuration="a", batch_size=1, repeat=repeat, window_s=1.0))
            for repeat in (0, 1)
        )
        assert first == pytest.approx(before_s + 1.0 + settle_s + 0.1)
        assert later == pytest.approx(settle_s + 1.0 + settle_s + 0.1)


def test_a_long_window_raises_the_default_limit() -> None:
    assert make_plan({"window_s": 300}, "x").max_window_s == 300


def test_steps_are_idle_load_idle_rounds_idle() -> None:
    plan = make_plan({"batch_sizes": [1, 2, 4], "seed": 5, "rounds": 3}, "x")
    sequence = list(steps(plan))
    assert sequence[0] == IdleStep(loaded=False, duration_s=plan.idle_s)
    assert sequence[1] == LoadStep()
    assert sequence[2] == sequence[-1] == IdleStep(loaded=True, duration_s=plan.idle_s)
    measured = [step for step in sequence[3:-1] if isinstance(step, MeasureStep)]
    assert len(measured) == len(sequence) - 4 == 18
    rounds = [[(s.configuration, s.batch_size) for s in measured if s.repeat == n] for n in range(3)]
    assert [s.repeat for s in measured] == sorted(s.repeat for s in measured)
    assert all(sorted(order) == sorted(rounds[0]) for order in rounds)
    assert rounds[0] != rounds[1]


@given(st.integers(0, 1000))
def test_the_order_depends_only_on_the_seed(seed: int) -> None:
    plan = make_plan({"seed": seed, "batch_sizes": "1..64", "rounds": 3}, "x")
    assert list(steps(plan)) == list(steps(plan))


def test_the_fingerprint_depends_only_on_the_values() -> None:
    assert make_plan({"seed": 1}, "a").sha256() == make_plan({"seed": 1}, "b").sha256()
    assert make_plan({"seed": 1}, "a").sha256() != make_plan({"seed": 2}, "a").sha256()


def test_the_example_contains_every_key_and_is_a_plan(tmp_path: Path) -> None:
    """Without and with its commented lines."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert make_plan(read_plan(EXAMPLE), "example").output == "runs"
    with_all_keys = write(tmp_path, re.sub(r"^#([a-z_]+:)", r"\1", text, flags=re.MULTILINE))
    data = read_plan(with_all_keys)
    assert set(data) == set(KEYS)
    plan = make_plan(data, "example")
    assert len(plan.configurations) == 3
    assert [exporter.name for exporter in plan.exporters] == ["node1", ""]


def test_the_mapping_of_a_plan_makes_the_same_plan_again() -> None:
    for rule in ({}, {"rounds": 4}, {"max_relative_uncertainty": "3%", "max_run_s": 7}):
        plan = make_plan({"batch_sizes": "1..8", "exporters": ["http://a:1"], "name": "n", **rule}, "x")
        assert make_plan(plan.to_mapping(), "again") == plan


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"rounds": 3, "max_relative_uncertainty": 0.05}, "the plan needs either rounds or max_relative_uncertainty"),
        ({"rounds": 3, "max_run_s": 60}, "max_run_s limits max_relative_uncertainty; a plan with rounds has exactly"),
    ],
)
def test_two_rules_for_the_end_of_the_rounds_are_an_error(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_plan(keys, "plan p")


# Processes, processors, phases


def test_several_configurations_run_in_separate_processes_and_a_single_one_does_not() -> None:
    two = [{"network": "radioml-vgg10", "precision": ["fp32", "int8"]}]
    assert make_plan({}, "x").isolate and make_plan({"configurations": two}, "x").isolate
    assert not make_plan({"configurations": ["radioml-vgg10"]}, "x").isolate
    assert make_plan({"configurations": ["radioml-vgg10"], "isolate": True}, "x").isolate
    assert not make_plan({"configurations": two, "isolate": False}, "x").isolate
    pinned = make_plan({"configurations": ["radioml-vgg10"], "cpus": "3,0-1"}, "x")
    assert (pinned.isolate, pinned.cpus) == (True, "0-1,3")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"isolate": "yes"}, "isolate: must be true or false, got 'yes'"),
        ({"isolate": False, "cpus": "0"}, "cpus requires isolate: true"),
        ({"cpus": "all"}, "cpus: must be a list of processors such as 0-3 or 0,2,4-7, got 'all'"),
        ({"phases": "inlin"}, "phases: unknown value 'inlin'; did you mean inline"),
        ({"phases": False}, "phases: must be a string, one of inline, separate, off, got false"),
        ({"time_limit_s": 0}, "time_limit_s: must be a number >= 1 (seconds), got 0"),
    ],
)
def test_errors_about_processes_and_phases_have_key_and_value(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"plan p: {re.escape(text)}"):
        make_plan(keys, "plan p")


def test_separate_phases_come_after_the_rounds_and_before_the_last_idle() -> None:
    plan = make_plan({"batch_sizes": [1, 8], "phases": "separate", "rounds": 3}, "x")
    sequence = list(steps(plan))
    assert [type(step) for step in sequence[-5:]] == [*([PhaseStep] * 4), IdleStep]
    assert not any(isinstance(step, PhaseStep) for step in steps(make_plan({"phases": "off", "rounds": 3}, "x")))
    assert estimate_s(plan, sequence[-2]) == pytest.approx(2.4)


def test_the_example_of_a_comparison_is_a_plan() -> None:
    path = EXAMPLE.parent / "examples" / "compare.yaml"
    plan = make_plan(read_plan(path), "example")
    assert [configuration.name for configuration in plan.configurations] == [
        "radioml-vgg10/onnxruntime/fp32",
        "radioml-vgg10/onnxruntime/int8",
        "int8-sleeping",
        "int8-served/server-20",
    ]
    assert plan.isolate


@pytest.mark.parametrize("url", ["unix:/run/joulewatch/edge.sock", "https://node1:10717", "http://node1"])
def test_an_exporter_is_a_url_or_a_socket(url: str) -> None:
    assert ExporterTarget(url).url == url


def test_a_socket_needs_an_absolute_path() -> None:
    with pytest.raises(ConfigError, match="unix:/path"):
        ExporterTarget("unix:edge.sock")
