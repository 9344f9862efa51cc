"""``joulewatch energy --per``: text, CSV, JSON, and errors, from a fake Prometheus."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.sources.history import RawSeries
from joulewatch_harness.cli import main
from support.fake_prometheus import URL, FakePrometheus
from support.golden import check
from support.paths import ROOT
from support.synthetic import T0, Signal, World, sensor

GOLDEN = ROOT / "tests" / "harness" / "golden"
START_S, END_S = T0 + 10.25, T0 + 310.25
IDLE, PREFILL, DECODE = 100.0, 0.05, 1.5


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times a second apart, and input and output tokens per second, which change every 10 s."""
    times_s = T0 + np.arange(-60.0, 400.0)
    rng = np.random.default_rng(7)
    blocks = (np.arange(times_s.size) // 10).max() + 1
    prompt, answer = (
        np.repeat(rng.uniform(low, high, blocks), 10)[: times_s.size] for low, high in ((100, 900), (20, 90))
    )
    return times_s, np.rint(prompt), np.rint(answer)


def counted(per_second: np.ndarray) -> np.ndarray:
    return np.concatenate(([0.0], np.cumsum(per_second[:-1])))


def series() -> list[RawSeries]:
    """Return a machine whose power follows the tokens, and the counters of vLLM on it, of two models."""
    times_s, prompt, answer = load()
    power = IDLE + PREFILL * prompt + DECODE * answer
    package = sensor("socket0", "package", host="node1", accuracy=0.01, resolution="1 mJ")
    world = World(
        {package: Signal(tuple(times_s), tuple(power))}, scrape_s=1.0, start_s=T0 - 60, end_s=T0 + 380, read_delay_s=0.0
    )
    target = {"job": "vllm", "instance": "node1:8000"}
    made = [RawSeries(name="up", labels=target, times_s=times_s, values=np.ones(times_s.shape))]
    for model, share in (("small", 0.25), ("large", 0.75)):
        for name, rate in (("vllm:prompt_tokens_total", prompt), ("vllm:generation_tokens_total", answer)):
            labels = {**target, "model_name": model, "engine": "0"}
            made.append(RawSeries(name=name, labels=labels, times_s=times_s, values=share * counted(rate)))
    ended = counted(np.full(times_s.shape, 0.0))
    labels = {**target, "model_name": "large", "finished_reason": "stop"}
    made.append(RawSeries(name="vllm:request_success_total", labels=labels, times_s=times_s, values=ended))
    return [*world.scrapes(), *made]


@pytest.fixture
def prometheus() -> Iterator[FakePrometheus]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        server = FakePrometheus(series())
        server.install(mocked)
        yield server


WORDS = ["energy", f"--prometheus={URL}", f"--start={START_S}", f"--end={END_S}"]


def truth() -> tuple[float, float, float]:
    """Return joules, input and output tokens of the window."""
    times_s, prompt, answer = load()
    joules, tokens_in, tokens_out = (
        float(np.interp(END_S, times_s, counted(rate)) - np.interp(START_S, times_s, counted(rate)))
        for rate in (IDLE + PREFILL * prompt + DECODE * answer, prompt, answer)
    )
    return joules, tokens_in, tokens_out


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main([*WORDS, *words, "--format=json"]) == code
    return json.loads(capsys.readouterr().out)


def test_joules_per_token_and_the_costs_of_prefill_and_decode(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    result = document(capsys, "--per=vllm:prompt_tokens_total", "--per=vllm:generation_tokens_total")
    joules, tokens_in, tokens_out = truth()
    assert abs(result["energy"]["joules"] - joules) < result["energy"]["expanded_uncertainty"]
    for row, tokens in zip(result["counters"], (tokens_in, tokens_out), strict=True):
        assert row["targets"] == 1
        assert row["increase"]["value"] == pytest.approx(tokens, abs=row["increase"]["expanded_uncertainty"])
        quotient = row["joules_per_unit"]
        assert quotient["value"] == pytest.approx(joules / tokens, rel=1e-3)
        assert quotient["lower"] < joules / tokens < quotient["upper"]
    fit = result["least_squares"]
    for cost, expected in zip([*fit["joules_per_unit"], fit["watts"]], (PREFILL, DECODE, IDLE), strict=True):
        assert abs(cost["value"] - expected) < cost["expanded_uncertainty"] < 0.2 * expected
    assert fit["missing"] == "" and fit["condition_number"] < 30 and fit["sub_windows"] == 60


def test_the_text(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, update_golden: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert main([*WORDS, "--per=vllm"]) == 0
    check(capsys.readouterr().out, GOLDEN / "energy_per_token.txt", update=update_golden)
    assert main([*WORDS, "--per=vllm:generation_tokens_total", "--by=model_name"]) == 0
    check(capsys.readouterr().out, GOLDEN / "energy_per_token_by_model.txt", update=update_golden)


def test_a_server_is_all_its_counters_and_none_has_no_number(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    result = document(capsys, "--per=vllm")
    names = [row["counter"] for row in result["counters"]]
    assert names == ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"]
    assert result["least_squares"]["counters"] == names[:2]
    requests = result["counters"][2]
    assert requests["joules_per_unit"] is None and requests["missing"] == "no_units"
    document(capsys, "--per=vllm:request_success_total", code=1)


def test_a_gap_of_one_target_is_stated_once(prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """The samples end before the window does, so that no row has a number."""
    end_s = max(float(raw.times_s[-1]) for raw in prometheus.samples) + 1
    words = ["energy", f"--prometheus={URL}", f"--start={START_S}", f"--end={end_s}", "--by=model_name"]
    assert main([*words, "--per=vllm:generation_tokens_total"]) == 1
    output = capsys.readouterr().out
    assert output.count("missing: vllm:generation_tokens_total of ") == 1
    assert "missing: vllm:generation_tokens_total: vllm" not in output


def test_shares_by_a_label_are_a_convention(prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    whole, large, small = document(capsys, "--per=vllm:generation_tokens_total", "--by=model_name")["counters"]
    assert (whole["value"], large["value"], small["value"]) == (None, "large", "small")
    assert large["energy"]["joules"] == pytest.approx(0.75 * whole["energy"]["joules"])
    assert large["energy_is"] == "share in proportion to the counter, a convention"
    assert small["joules_per_unit"]["value"] == pytest.approx(whole["joules_per_unit"]["value"])


def test_the_csv_has_base_units(prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--per=vllm:prompt_tokens_total", "--per=vllm:generation_tokens_total", "--by=model_name", "--format=csv"]
    assert main([*WORDS, *words]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["basis"] for row in rows] == [*["window", "share", "share"] * 2, *["least squares"] * 3]
    assert float(rows[-1]["watts"]) == pytest.approx(IDLE, rel=0.05)
    assert float(rows[3]["joules_per_unit"]) == pytest.approx(truth()[0] / truth()[2], rel=1e-3)


def test_machines_without_a_target_are_named(prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str]) -> None:
    """A second machine is in the energy, and not in the counter: the quotient is too large."""
    other = World({sensor("socket0", "package", host="node2"): Signal((T0,), (50.0,))}, scrape_s=1.0)
    other.start_s, other.end_s = T0 - 60, T0 + 380
    prometheus.samples += [
        RawSeries(
            name=raw.name,
            labels={**raw.labels, **({"nodename": "node2"} if "nodename" in raw.labels else {})},
            times_s=raw.times_s,
            values=raw.values - (raw.name == "joulewatch_exporter_start_timestamp_seconds"),
        )
        for raw in other.scrapes(instance="10.0.0.2:10717")
    ]
    result = document(capsys, "--per=vllm:generation_tokens_total")
    assert [finding["reason"] for finding in result["findings"]] == ["other_machines"]
    assert result["machines"] == ["node1", "node2"]
    result = document(capsys, "--per=vllm:generation_tokens_total", "--sensor=127.0.0.1*")
    assert result["findings"] == [] and result["machines"] == ["node1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--per=rate(x[5m])"], "not the name of a counter"),
        (["--per=nothing_total"], "--per nothing_total: no samples around this window"),
        (["--per=vllm_prompt_tokens"], "did you mean vllm:prompt_tokens_total?"),
        (["--per=sglang"], "--per sglang: no counter of this server has samples"),
        (["--per=vllm", "--by=colour"], "has no such label"),
        (["--by=model_name"], "--by needs --per COUNTER"),
        (["--per=vllm", "--every=1h"], "--per and --every exclude each other"),
        (["--per=vllm", "--scope=part"], "use --scope device or node"),
        (["--per=vllm", "--sensor=gpu*"], "no device sensor matches; the sensors are 127.0.0.1:10717/rapl/socket0"),
        (["--per=vllm", "--scope=node"], "no node sensor matches"),
    ],
)
def test_errors_are_one_line(
    prometheus: FakePrometheus, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main([*WORDS, *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
