"""A run of a language model as records of MLCommons' proposal and as metrics of AIPerf."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

import jsonschema
import pytest

from joulewatch_harness import __version__
from joulewatch_harness.analysis.reports import to_mlperf
from joulewatch_harness.analysis.reports.to_aiperf import render_aiperf
from joulewatch_harness.analysis.results.model import RunResult
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.records import PhasePowers, PhaseTime, RunRecord, Window
from support import golden
from support.paths import ROOT
from support.synthetic import ListSource, make_world, sensor

GOLDEN: Final = ROOT / "tests" / "harness" / "golden"
GPUS: Final = tuple(
    sensor(f"GPU-{number}", "total", component="gpu", collector="nvml", model="NVIDIA H100", refresh_s=0.1)
    for number in range(2)
)
PREFILL_SHARE: Final = 0.2
"""Of the time of a batch."""
WATTS: Final = {"prefill": 115.0, "decode": 84.0, "other": 25.0}
"""Of each GPU in the phase pass."""
PROMPT, OUTPUT = 512, 128
"""Tokens per request."""


def as_language_model(record: RunRecord, standard_watts: float = 1.0) -> RunRecord:
    """Return the run with batches of 8 requests of a language model, 5 in each window, and a phase pass."""
    windows: list[Window] = []
    for window in record.windows:
        if window.kind != "measure":
            windows.append(window)
            continue
        # In the second round, half a request is missing.
        tokens = 40.0 * OUTPUT - (OUTPUT / 2 if window.repeat == 1 else 0)
        spent_s = 0.99 * window.duration_s
        times_s = {
            "prefill": PREFILL_SHARE * spent_s,
            "decode": (1 - PREFILL_SHARE) * spent_s,
            "other": window.duration_s - spent_s,
        }
        windows.append(
            dataclasses.replace(
                window,
                batches=5,
                inferences=40,
                counts={"output_tokens": tokens, "prompt_tokens": 40.0 * PROMPT},
                phases={name: PhaseTime(5, time_s) for name, time_s in times_s.items()},
                latency=dataclasses.replace(window.latency, count=5, mean_s=spent_s / 5) if window.latency else None,
            )
        )
    powers = tuple(
        PhasePowers(
            **{
                name: getattr(one, name) for name in ("exporter", "scope", "collector", "component", "device", "domain")
            },
            watts=WATTS,
            standard_watts={"prefill": standard_watts, "decode": standard_watts, "other": 40.0},
            intervals=400,
        )
        for one in GPUS
    )
    phase_pass = dataclasses.replace(windows[-2], index=len(windows), kind="phase", phase_powers=powers)
    return dataclasses.replace(record, windows=(*windows, phase_pass))


def result_of(**changes: Any) -> RunResult:
    world = make_world(GPUS, configurations=("large-70b/openai/fp16",), batch_sizes=(8,), noise=0.01)
    assert world.record is not None
    return analyze_run(as_language_model(world.record, **changes), ListSource(world.scrapes()))


def record_of(result: RunResult) -> dict[str, Any]:
    text, missing = to_mlperf.render_mlperf(result)
    assert not missing
    (record,) = json.loads(text)
    jsonschema.validate(record, to_mlperf.schema(), jsonschema.Draft202012Validator)
    return dict(record)


def readable(document: Any) -> str:
    """Return JSON with 6 digits and without the version, so that a golden file changes with the code only."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(one) for name, one in value.items()}
        if isinstance(value, list):
            return [rounded(one) for one in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return json.dumps(rounded(document), indent=2).replace(__version__, "VERSION") + "\n"


@pytest.fixture(scope="module")
def result() -> RunResult:
    return result_of()


def test_a_record_of_the_task_llm_keeps_the_rules_of_the_proposal(result: RunResult) -> None:
    """Rules 3, 4, 5, 7 and 8 of its submission checker; the other rules are in the JSON schema."""
    record = record_of(result)
    assert record["task_type"] == "llm" and record["joulewatch"]["llm_missing"] == ""
    prefill, generation = record["prefill_energy_joules"], record["generation_energy_joules"]
    assert prefill + generation <= record["total_energy_joules"]
    assert record["static_power_baseline_watts"] < record["inference_active_power_watts"]["mean"]
    assert record["sampling_rate_hz"] >= 1
    assert record["output_token_count"] > 0
    assert record["energy_per_token_joules"]["mean"] == pytest.approx(generation / record["output_token_count"])


def test_the_energies_of_prefill_and_decode_are_those_of_the_phase_pass(result: RunResult) -> None:
    """Both phases have the difference of power that was measured, and together the energy of the windows."""
    record = record_of(result)
    seconds = sum(window.duration_s for window in result.record.windows if window.kind == "measure")
    prefill_s, decode_s = 0.99 * PREFILL_SHARE * seconds, 0.99 * (1 - PREFILL_SHARE) * seconds
    prefill, generation = record["prefill_energy_joules"], record["generation_energy_joules"]
    assert prefill / prefill_s - generation / decode_s == pytest.approx(2 * (WATTS["prefill"] - WATTS["decode"]))
    assert prefill + generation == pytest.approx(record["total_energy_joules"], rel=0.02)
    assert (record["input_sequence_length"], record["output_sequence_length"]) == (PROMPT, OUTPUT - 1)  # 127.47
    assert record["output_token_count"] == 3 * 40 * OUTPUT - OUTPUT / 2
    assert record["joulewatch"]["output_tokens_per_second"] == pytest.approx(record["output_token_count"] / seconds)
    # 1 % of noise between rounds, and a round with 1.25 % fewer tokens.
    assert 0 < record["energy_per_token_joules"]["std"] < 0.03 * record["energy_per_token_joules"]["mean"]


def without_prompt_tokens(result: RunResult) -> RunResult:
    windows = tuple(
        dataclasses.replace(window, counts={name: n for name, n in window.counts.items() if name != "prompt_tokens"})
        for window in result.record.windows
    )
    return dataclasses.replace(result, record=dataclasses.replace(result.record, windows=windows))


def without_tokens(result: RunResult) -> RunResult:
    windows = tuple(dataclasses.replace(window, counts={}) for window in result.record.windows)
    return dataclasses.replace(result, record=dataclasses.replace(result.record, windows=windows))


def with_larger_phases(result: RunResult) -> RunResult:
    (group,) = result.groups
    phases = tuple(
        dataclasses.replace(phase, energies={name: energy.divided_by(0.9) for name, energy in phase.energies.items()})
        for phase in group.phases
    )
    return dataclasses.replace(result, groups=(dataclasses.replace(group, phases=phases),))


@pytest.mark.parametrize(
    ("change", "reason", "fields"),
    [
        (without_tokens, "no output tokens were counted in each window", 0),
        (without_prompt_tokens, "no prompt tokens were counted in each window", 2),
        (with_larger_phases, "the energies of prefill and decode are above the total", 3),
    ],
    ids=["no tokens", "no prompt tokens", "phases above the total"],
)
def test_without_a_required_value_the_task_is_other(result: RunResult, change: Any, reason: str, fields: int) -> None:
    record = record_of(change(result))
    assert (record["task_type"], record["joulewatch"]["llm_missing"]) == ("other", reason)
    lengths = ("output_token_count", "input_sequence_length", "output_sequence_length")
    assert len([name for name in lengths if name in record]) == fields


def test_phases_that_the_sensors_do_not_resolve_have_no_energy() -> None:
    record = record_of(result_of(standard_watts=100.0))
    assert record["task_type"] == "other" and "do not resolve them" in record["joulewatch"]["llm_missing"]
    assert record["joulewatch"]["output_tokens_per_second"] > 0


def test_the_record_is_the_golden_file(result: RunResult, update_golden: bool) -> None:
    """The part of MLCommons' proposal; of joulewatch's own part the fields about tokens."""
    record = record_of(result)
    own = record["joulewatch"]
    own["phases"] = {
        phase: {
            name: {key: value for key, value in energy.items() if key != "budget"} for name, energy in energies.items()
        }
        for phase, energies in own["phases"].items()
    }
    record["joulewatch"] = {name: own[name] for name in ("phases", "output_tokens_per_second", "llm_missing")}
    golden.check(readable(record), GOLDEN / "mlperf_energy_llm.json", update=update_golden)


def test_the_metrics_are_the_golden_file(result: RunResult, update_golden: bool) -> None:
    document = json.loads(render_aiperf(result))
    golden.check(readable(document), GOLDEN / "aiperf_llm.json", update=update_golden)
