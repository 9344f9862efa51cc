"""Results as the energy efficiency metrics of AIPerf, with uncertainty: one entry per configuration and batch size.

Each metric is an energy of the measure windows, times or divided by a number that is known exactly: time, requests,
tokens, users. The energy-delay product also has the doubt of the latency. A request is one inference. A metric without
one of its inputs is null and has the reason.

Source:
    ai-dynamo/aiperf 0.13.0, ``metrics/energy_efficiency_analyzer.py``: names, units and formulas. There, each name has
    the vendor of the GPUs as a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.analysis.results.model import EnergyResult, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.totals import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    Totals,
    tokens_of,
    totals_of,
    windows_of,
)
from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.records import Window, encode

SCHEMA_VERSION: Final = 1
UNITS: Final = {
    "total_gpu_power": "W",
    "average_gpu_power": "W",
    "total_gpu_energy": "J",
    "output_tokens_per_joule": "tokens/J",
    "energy_per_output_token": "mJ/token",
    "energy_per_total_token": "mJ/token",
    "energy_per_request": "J/request",
    "energy_per_user": "J/user",
    "energy_delay_product": "J*s",
    "performance_per_watt": "requests/s/W",
    "output_tps_per_watt": "tokens/s/W",
    "goodput_per_watt": "requests/s/W",
}
NO_GOODPUT: Final = "a run keeps percentiles of the latency, not which requests were fast enough"
Metric = Estimate | str
"""A value, or the reason why it is missing."""


def render_aiperf(result: RunResult) -> str:
    """Return the metrics as JSON."""
    return json_text(
        {
            "schema_version": SCHEMA_VERSION,
            "generator": f"joulewatch {__version__}",
            "run": result.record.header.run,
            "hardware": result.hardware,
            "source": result.source,
            "estimated": "estimated" in result.methods,
            "emulated": "emulated" in result.methods,
            "findings": sorted({finding.reason for finding in result.findings}),
            "results": [_result(result, group) for group in result.groups],
        }
    )


def _result(result: RunResult, group: GroupResult) -> dict[str, Any]:
    gpus = [energy for energy in group.components if energy.name == "gpu"]
    return {
        "configuration": encode(group.configuration),
        "batch_size": group.batch_size,
        "energies": [_energy(result, group, energy) for energy in (group.total, *gpus)],
    }


def _energy(result: RunResult, group: GroupResult, energy: EnergyResult) -> dict[str, Any]:
    windows = windows_of(result.record, energy)
    totals = totals_of(result.record, energy)
    return {
        "name": energy.name,
        "devices": sorted({f"{sensor.exporter} {sensor.device}".strip() for sensor in energy.sensors}),
        "methods": list(energy.methods),
        "windows": len(windows),
        "duration_s": None if totals is None else totals.duration_s,
        "mean_latency_s": _mean_latency_s(windows),
        "requests": None if totals is None else totals.inferences,
        PROMPT_TOKENS: tokens_of(windows, PROMPT_TOKENS),
        OUTPUT_TOKENS: tokens_of(windows, OUTPUT_TOKENS),
        "metrics": {
            name: _document(UNITS[name], metric) for name, metric in _metrics(group, energy, totals, windows).items()
        },
    }


def _document(unit: str, metric: Metric) -> dict[str, Any]:
    if isinstance(metric, str):
        return {"value": None, "unit": unit, "missing": metric}
    return {
        "value": metric.value,
        "unit": unit,
        "standard_uncertainty": metric.standard,
        "expanded_uncertainty": metric.expanded,
        "coverage": 0.95,
        "covers": list(metric.covers),
    }


def _metrics(
    group: GroupResult, energy: EnergyResult, totals: Totals | None, windows: Sequence[Window]
) -> Mapping[str, Metric]:
    """Return all metrics of one energy."""
    gross = energy.gross
    if gross is None or totals is None:
        return dict.fromkeys(UNITS, energy.missing)
    joules = gross.divided_by(1 / totals.inferences)
    power = joules.divided_by(totals.duration_s)
    output, prompt = tokens_of(windows, OUTPUT_TOKENS), tokens_of(windows, PROMPT_TOKENS)
    no_output = "no output tokens were counted in each window"
    no_total = no_output if output is None else "no prompt tokens were counted in each window"
    per_output: Metric = no_output if output is None else joules.divided_by(output)
    per_total: Metric = no_total if output is None or prompt is None else joules.divided_by(output + prompt)
    tokens_per_joule = _inverse(per_output)
    users: Metric = joules.divided_by(group.batch_size)
    if group.configuration.scenario == "server":
        users = "queries arrive at random times, so the number of users is not fixed"
    return {
        "total_gpu_power": power,
        "average_gpu_power": power,
        "total_gpu_energy": joules,
        "output_tokens_per_joule": tokens_per_joule,
        "energy_per_output_token": _milli(per_output),
        "energy_per_total_token": _milli(per_total),
        "energy_per_request": gross,
        "energy_per_user": users,
        "energy_delay_product": _delayed(gross, windows),
        "performance_per_watt": _inverse(gross),
        "output_tps_per_watt": tokens_per_joule,
        "goodput_per_watt": NO_GOODPUT,
    }


def _inverse(metric: Metric) -> Metric:
    if isinstance(metric, str):
        return metric
    return metric.inverse if metric.value > 0 else "the energy is not above 0"


def _milli(metric: Metric) -> Metric:
    return metric if isinstance(metric, str) else metric.divided_by(1e-3)


def _delayed(gross: Estimate, windows: Sequence[Window]) -> Metric:
    """Return the energy per request times the mean latency.

    A slow round also needs more energy, so the relative uncertainties are added, not combined in quadrature.
    """
    latency_s = _mean_latency_s(windows)
    if latency_s is None:
        return "the latency was not measured in each window"
    rounds: dict[int, list[float]] = {}
    for window in windows:
        if window.latency is not None:
            rounds.setdefault(window.repeat, []).append(window.latency.mean_s)
    means_s = [mean(values) for values in rounds.values()]
    standard_s = standard_error(means_s)
    expanded_s = student_factor(len(means_s) - 1) * standard_s if len(means_s) > 1 else 0.0
    return replace(
        gross,
        value=gross.value * latency_s,
        standard=gross.standard * latency_s + gross.value * standard_s,
        expanded=None if gross.expanded is None else gross.expanded * latency_s + gross.value * expanded_s,
        budget=(),
        rounds={},
    )


def _mean_latency_s(windows: Sequence[Window]) -> float | None:
    """Return the mean latency of a batch; None: a window did not measure it."""
    latencies = [window.latency for window in windows if window.latency is not None]
    if not latencies or len(latencies) < len(windows):
        return None
    total_s = math.fsum(latency.count * latency.mean_s for latency in latencies)
    return total_s / sum(latency.count for latency in latencies)
