"""Results in the energy schema that is proposed to MLCommons: one record per configuration and batch size.

A record describes the devices behind one power interface, the schema's ``measurement_method``; what the proposal has
no field for is in ``joulewatch``. A result that the proposal cannot express has no record but a reason: a required
value that is not known is never made up.

A record is of the task ``llm`` if the network counted its tokens and the phases ``prefill`` and ``decode`` have
energies. Generation is the proposal's word for ``decode``.

Source:
    mlcommons/inference, pull request 2587, energy-reporting/mlperf_energy_schema_v6.json (version 6.1, not merged).
    ``mlperf_energy.schema.json`` has the fields and limits that joulewatch uses, in its own words.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.analysis.reports.to_json import energy_document, estimate_document
from joulewatch_harness.analysis.results.model import EnergyResult, Estimate, GroupResult, RunResult
from joulewatch_harness.analysis.results.totals import OUTPUT_TOKENS, PROMPT_TOKENS, tokens_of, totals_of, windows_of
from joulewatch_harness.analysis.sources.series import SensorId
from joulewatch_harness.errors import JoulewatchError
from joulewatch_harness.plan.refresh import expected_refresh_s
from joulewatch_harness.records import encode

METHODS: Final = {"nvml": "gpu", "dcgm": "gpu", "rapl": "cpu"}
"""``measurement_method``, which is also the collector's name, and the component that it must have measured. A result
with devices of several of them is that of the first."""
SCENARIOS: Final = {"": "offline", "server": "server", "single_stream": "singlestream"}
LONGEST_REFRESH_S: Final = 1.0
PREFILL: Final = "prefill"
DECODE: Final = "decode"


def schema() -> dict[str, Any]:
    """Return the JSON schema of one record."""
    folder = resources.files("joulewatch_harness.analysis.reports")
    loaded: dict[str, Any] = json.loads(folder.joinpath("mlperf_energy.schema.json").read_text(encoding="utf-8"))
    return loaded


def render_mlperf(result: RunResult) -> tuple[str, list[str]]:
    """Return the records as a JSON array, and for each result without a record the reason."""
    records, missing = [], []
    for group in result.groups:
        try:
            records.append(_record(result, group))
        except _NotExpressibleError as error:
            missing.append(f"{group.configuration.name}, batch size {group.batch_size}: {error}")
    return json_text(records), missing


class _NotExpressibleError(JoulewatchError):
    """A value that the schema requires is not known, or not valid in it."""


def _record(result: RunResult, group: GroupResult) -> dict[str, Any]:
    """Return the record of one result.

    Raises:
        _NotExpressibleError: The schema has no record for this result.
    """
    method, energies = _of_one_interface(group)
    totals = [total for energy in energies if (total := totals_of(result.record, energy)) is not None]
    idle = [energy.idle.watts for energy in energies if energy.idle is not None]
    if len(idle) < len(energies):
        raise _NotExpressibleError("the idle power was not measured")
    if len({energy.windows for energy in energies}) > 1:
        raise _NotExpressibleError("its components were measured in different windows")
    mean_watts = math.fsum(total.mean_watts for total in totals)
    if mean_watts <= math.fsum(idle):
        raise _NotExpressibleError("its power is not above the idle power")
    configuration = group.configuration
    by_round = list(_rounds(energies).values())
    joules = math.fsum(total.joules for total in totals)
    tokens, why_not = _tokens(result, group, energies, joules)
    output = tokens.get("output_token_count")
    rates = {} if output is None else {"output_tokens_per_second": output / totals[0].duration_s}
    return {
        "task_type": "other",
        "scenario": SCENARIOS[configuration.scenario],
        "batch_size": group.batch_size,
        "measurement_method": method,
        "accelerator_count": len(_devices(energies)),
        "sampling_rate_hz": _sampling_rate_hz(result, energies),
        "thermal_stabilization_seconds": _warmup_s(result, group),
        "static_power_baseline_watts": math.fsum(idle),
        "inference_active_power_watts": {"mean": mean_watts},
        "total_energy_joules": joules,
        "energy_per_query_joules": {
            "mean": math.fsum(energy.gross.value for energy in energies if energy.gross is not None),
            **({"std": statistics.stdev(by_round)} if len(by_round) > 1 else {}),
        },
        **tokens,
        "software_runtime_versions": _versions(result, group),
        "joulewatch": {**_details(result, group, energies), **rates, "llm_missing": why_not},
    }


def _of_one_interface(group: GroupResult) -> tuple[str, list[EnergyResult]]:
    """Return the first power interface that measured a processor or GPU, and the energies of its components."""
    for method, main in METHODS.items():
        energies = [
            energy
            for energy in group.components
            if energy.gross is not None and {sensor.collector for sensor in energy.sensors} == {method}
        ]
        if any(energy.name == main for energy in energies):
            return method, energies
    measured = sorted({sensor.collector for energy in group.components for sensor in energy.sensors})
    raise _NotExpressibleError(f"the schema has no measurement method for {', '.join(measured) or 'it'}")


def _devices(energies: Sequence[EnergyResult]) -> set[tuple[str, str]]:
    """Return the devices: RAPL's memory belongs to a processor."""
    return {(sensor.exporter, sensor.device) for energy in energies for sensor in energy.sensors}


def _sampling_rate_hz(result: RunResult, energies: Sequence[EnergyResult]) -> float:
    """Return how often the slowest sensor has a new value."""
    used = {sensor for energy in energies for sensor in energy.sensors}
    periods_s = [expected_refresh_s(record) for record in result.sensors if SensorId.of(record) in used]
    slowest_s = max((period_s for period_s in periods_s if period_s is not None), default=math.inf)
    if slowest_s > LONGEST_REFRESH_S:
        raise _NotExpressibleError("a sensor has less than one new value per second")
    return 1 / slowest_s


def _warmup_s(result: RunResult, group: GroupResult) -> float:
    return math.fsum(
        window.duration_s
        for window in result.record.windows
        if window.kind == "warmup"
        and (window.configuration, window.batch_size) == (group.configuration.name, group.batch_size)
    )


def _rounds(energies: Sequence[EnergyResult]) -> dict[int, float]:
    """Return the energy per inference of each round in which every component has one."""
    rounds = [energy.gross.rounds for energy in energies if energy.gross is not None]
    numbers = sorted(set.intersection(*map(set, rounds)))
    return {number: math.fsum(values[number] for values in rounds) for number in numbers}


def _tokens(
    result: RunResult, group: GroupResult, energies: Sequence[EnergyResult], joules: float
) -> tuple[dict[str, Any], str]:
    """Return the fields about tokens, and why they are not all that the task ``llm`` requires.

    Args:
        result, group: The result.
        energies: Those of the record.
        joules: Their sum over all windows.
    """
    windows = windows_of(result.record, energies[0])
    inferences = sum(window.inferences for window in windows)
    output, prompt = tokens_of(windows, OUTPUT_TOKENS), tokens_of(windows, PROMPT_TOKENS)
    if output is None:
        return {}, "no output tokens were counted in each window"
    counted = {"output_token_count": round(output), "output_sequence_length": max(1, round(output / inferences))}
    if prompt is None:
        return counted, "no prompt tokens were counted in each window"
    counted["input_sequence_length"] = max(1, round(prompt / inferences))
    parts = {name: _of_phase(group, energies, name) for name in (PREFILL, DECODE)}
    if not all(parts.values()):
        return counted, "the energies of prefill and decode were not measured, or the sensors do not resolve them"
    prefill, decode = (inferences * math.fsum(energy.value for energy in part.values()) for part in parts.values())
    if prefill + decode > joules:
        return counted, "the energies of prefill and decode are above the total"
    # The share of the decode phase is known for all rounds together only.
    per_token = [
        energy * decode / joules / (tokens / sum(window.inferences for window in of_round))
        for number, energy in _rounds(energies).items()
        if (of_round := [window for window in windows if window.repeat == number])
        and (tokens := tokens_of(of_round, OUTPUT_TOKENS))
    ]
    return {
        "task_type": "llm",
        **counted,
        "energy_per_token_joules": {
            "mean": decode / output,
            **({"std": statistics.stdev(per_token)} if len(per_token) > 1 else {}),
        },
        "prefill_energy_joules": prefill,
        "generation_energy_joules": decode,
    }, ""


def _of_phase(group: GroupResult, energies: Sequence[EnergyResult], name: str) -> dict[str, Estimate]:
    """Return the energy per inference of one phase by component; empty if that of a component is not known."""
    found = next((phase.energies for phase in group.phases if phase.name == name), {})
    return {energy.name: found[energy.name] for energy in energies} if all(e.name in found for e in energies) else {}


def _versions(result: RunResult, group: GroupResult) -> dict[str, str]:
    versions = {
        group.configuration.runtime: group.configuration.runtime_version,
        "python": result.record.header.provenance_text("python"),
        "joulewatch": __version__,
    }
    return {name: version for name, version in versions.items() if version}


def _details(result: RunResult, group: GroupResult, energies: Sequence[EnergyResult]) -> dict[str, Any]:
    """Return what the proposal has no field for."""
    used = {sensor for energy in energies for sensor in energy.sensors}
    methods = sorted({method for energy in energies for method in energy.methods})
    return {
        "run": result.record.header.run,
        "hardware": result.hardware,
        "configuration": encode(group.configuration),
        "energies": [energy_document(energy) for energy in energies],
        "phases": {
            phase.name: {
                energy.name: estimate_document(phase.energies[energy.name], "J/inference")
                for energy in energies
                if energy.name in phase.energies
            }
            for phase in group.phases
        },
        "sensors": [encode(record) for record in result.sensors if SensorId.of(record) in used],
        "methods": methods,
        "estimated": "estimated" in methods,
        "emulated": "emulated" in methods,
        "findings": sorted({finding.reason for finding in result.findings}),
    }
