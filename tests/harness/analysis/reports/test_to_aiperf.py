"""The energy efficiency metrics of AIPerf."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from joulewatch_harness.analysis.reports.to_aiperf import UNITS, render_aiperf
from joulewatch_harness.analysis.results.model import Estimate, RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.records import Latency
from support.synthetic import TWO_SOCKETS, ListSource, make_world

GROSS = Estimate(value=10.0, standard=0.5, expanded=1.0, dof=50.0, budget=(), covers=("sampling",))
"""Joules per request."""
LATENCY = Latency(count=5, mean_s=0.5, min_s=0.5, max_s=0.5, p50_s=0.5, p90_s=0.5, p99_s=0.5)


def by_hand(counts: dict[str, float] | None = None, **changes: Any) -> RunResult:
    """Return one result: 2 windows of 5 s, 50 requests and 5 batches of 8 each, so 1000 J in 10 s."""
    world = make_world(TWO_SOCKETS, configurations=("net/openai/fp16",), batch_sizes=(8,), rounds=2)
    assert world.record is not None
    values: dict[str, Any] = {
        "duration_s": 5.0,
        "inferences": 50,
        "counts": counts or {},
        "latency": LATENCY,
        **changes,
    }
    windows = tuple(
        dataclasses.replace(window, **values) if window.kind == "measure" else window for window in world.record.windows
    )
    result = analyze_run(world.record, ListSource(world.scrapes()))
    (group,) = result.groups
    group = dataclasses.replace(group, total=dataclasses.replace(group.total, gross=GROSS))
    return dataclasses.replace(result, groups=(group,), record=dataclasses.replace(result.record, windows=windows))


def metrics_of(result: RunResult) -> dict[str, dict[str, Any]]:
    energy = json.loads(render_aiperf(result))["results"][0]["energies"][0]
    assert energy["name"] == "total" and {name: one["unit"] for name, one in energy["metrics"].items()} == UNITS
    metrics: dict[str, dict[str, Any]] = energy["metrics"]
    return metrics


def test_metrics_by_hand() -> None:
    metrics = metrics_of(by_hand({"output_tokens": 2500.0, "prompt_tokens": 1500.0}))
    expected = {
        "total_gpu_power": 100.0,  # 1000 J / 10 s
        "average_gpu_power": 100.0,
        "total_gpu_energy": 1000.0,
        "output_tokens_per_joule": 5.0,  # 5000 / 1000 J
        "energy_per_output_token": 200.0,  # 1e6 mJ / 5000
        "energy_per_total_token": 125.0,  # 1e6 mJ / 8000
        "energy_per_request": 10.0,
        "energy_per_user": 125.0,  # 1000 J / 8
        "energy_delay_product": 5.0,  # 10 J * 0.5 s
        "performance_per_watt": 0.1,  # 10 requests/s / 100 W
        "output_tps_per_watt": 5.0,  # 500 tokens/s / 100 W
    }
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value), name
        assert metrics[name]["expanded_uncertainty"] == pytest.approx(0.1 * value), name
        assert metrics[name]["standard_uncertainty"] == pytest.approx(0.05 * value), name
        assert metrics[name]["covers"] == ["sampling"]
    assert metrics["goodput_per_watt"]["value"] is None
    assert "which requests were fast enough" in metrics["goodput_per_watt"]["missing"]


def test_a_metric_without_its_input_is_null_with_a_reason() -> None:
    metrics = metrics_of(by_hand({"output_tokens": 2500.0}, latency=None))
    missing = {name: one["missing"] for name, one in metrics.items() if one["value"] is None}
    assert missing.pop("goodput_per_watt")
    assert missing == {
        "energy_per_total_token": "no prompt tokens were counted in each window",
        "energy_delay_product": "the latency was not measured in each window",
    }
    without = {name for name, one in metrics_of(by_hand()).items() if one["value"] is None}
    assert without >= {"output_tokens_per_joule", "energy_per_output_token", "output_tps_per_watt"}


def test_random_arrivals_have_no_number_of_users_and_no_energy_has_no_metric() -> None:
    result = by_hand()
    (group,) = result.groups
    server = dataclasses.replace(group, configuration=dataclasses.replace(group.configuration, scenario="server"))
    assert metrics_of(dataclasses.replace(result, groups=(server,)))["energy_per_user"]["value"] is None
    nothing = dataclasses.replace(group, total=dataclasses.replace(group.total, gross=None, missing="no sensor"))
    metrics = metrics_of(dataclasses.replace(result, groups=(nothing,)))
    assert {(one["value"], one["missing"]) for one in metrics.values()} == {(None, "no sensor")}
