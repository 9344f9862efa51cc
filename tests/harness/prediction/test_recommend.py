"""The ranking at a rate: idle power, limits, probability, break-even rate, and the measurement that would settle it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.cli import main
from joulewatch_harness.errors import PredictionRefusedError
from joulewatch_harness.prediction.cards import Card, Source, Value, card_yaml
from joulewatch_harness.prediction.evaluate import evaluated
from joulewatch_harness.prediction.fit import fit_all
from joulewatch_harness.prediction.fpga import CYCLE_LIMITS
from joulewatch_harness.prediction.model_file import document_of, read_fit
from joulewatch_harness.prediction.predict import Interval, Prediction
from joulewatch_harness.prediction.recommend import (
    Candidate,
    Idle,
    Recommendation,
    candidates_of_fit,
    idle_of,
    recommend,
    without_numbers,
)
from joulewatch_harness.prediction.recommend_report import (
    Costs,
    idle_text,
    probability_text,
    recommend_json,
    recommend_lines,
    verdict,
)
from support.paths import ROOT
from support.simulated_devices import device_rows, networks

ANY_LATENCY = 1e9
FINN_TABLE = ROOT / "tests/benchmarks/data/prediction/finn_rfsoc2x2_measured.csv"


def candidate(
    device: str,
    joules: float,
    *,
    throughput: float = 1000.0,
    idle: float | None = 1.0,
    width: float | None = 0.05,
    scope: str = "devices",
    batch_size: int = 1,
    runtime: str = "onnxruntime",
    measured: bool = True,
) -> Candidate:
    """A candidate; ``width``: half-width of the 90 % interval, as a logarithm."""
    ends = (None, None) if width is None else (joules * math.exp(-width), joules * math.exp(width))
    prediction = Prediction(
        network="net", device=device, runtime=runtime, precision="fp32", scope=scope, batch_size=batch_size,
        joules=Interval(median=joules, low=ends[0], high=ends[1]),
        throughput=Interval(median=throughput, low=throughput, high=throughput),
        regime="compute", shares={}, parts=(),
    )  # fmt: skip
    return Candidate(prediction=prediction, idle=None if idle is None else Idle(watts=idle, measured=measured))


def ranking(*candidates: Candidate, rate: float = 100.0, max_latency_s: float = ANY_LATENCY) -> Recommendation:
    return recommend(candidates, rate, max_latency_s, {})


def devices(found: Recommendation) -> list[str]:
    return [place.candidate.prediction.device for place in found.places]


def test_the_power_between_inferences_counts() -> None:
    """At 10/s, the device with less energy under load loses by its idle power."""
    fast, small = candidate("fast", 0.01, idle=40.0), candidate("small", 0.1, idle=1.0)
    found = ranking(fast, small, rate=10.0)
    assert devices(found) == ["small", "fast"]
    assert found.places[0].joules == pytest.approx(0.1 + 1.0 * (0.1 - 0.001))
    assert found.places[1].joules == pytest.approx(0.01 + 40.0 * (0.1 - 0.001))
    assert found.places[1].watts == pytest.approx(10 * (0.01 + 40.0 * (0.1 - 0.001)))
    assert devices(ranking(fast, small, rate=900.0)) == ["fast", "small"]


@given(
    energies=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    idles=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
)
def test_at_the_break_even_rate_both_need_the_same(energies: tuple[float, float], idles: tuple[float, float]) -> None:
    one, other = (
        candidate(name, joules, idle=watts) for name, joules, watts in zip("ab", energies, idles, strict=True)
    )
    found = ranking(one, other)
    first, second = found.places
    rate = second.break_even
    if rate is None:
        return
    assert first.candidate.at_rate(rate) == pytest.approx(second.candidate.at_rate(rate))
    beyond = rate * (1.01 if second.better_above else 0.99)
    assert second.candidate.at_rate(beyond) <= first.candidate.at_rate(beyond) * (1 + 1e-9)


def test_static_power_has_a_break_even_rate_in_words() -> None:
    """40 W at rest: at N/s, 40/N J each."""
    card = candidate("card", 0.0004, idle=40.0, throughput=100_000.0)
    processor = candidate("processor", 0.0015, idle=2.0, throughput=100_000.0)
    found = ranking(processor, card)
    assert devices(found) == ["processor", "card"]
    rate = found.places[1].break_even
    assert rate == pytest.approx(38 / (0.0015 - 2e-5 - 0.0004 + 40e-5), rel=1e-6)
    text = idle_text(found, found.places[1])
    assert text == (
        "card draws 40 W at rest: at N inferences per second that is 40/N J each, 400.0 mJ at 100/s. It wins against "
        "processor above 25,700/s."
    )


def test_a_device_that_never_needs_less_says_so() -> None:
    found = ranking(candidate("good", 0.001, idle=1.0), candidate("bad", 0.01, idle=40.0))
    assert found.places[1].break_even is None
    assert "does not need less than good at any rate" in idle_text(found, found.places[1])


def test_a_clear_difference_is_decided_and_a_small_one_is_not() -> None:
    clear = ranking(candidate("a", 1.0), candidate("b", 1.5))
    assert clear.decided
    assert clear.settle == ""
    assert clear.rival is not None
    assert (clear.rival.better or 0) > 0.99
    assert verdict(clear).startswith("Recommended: a, onnxruntime, fp32, batch 1.")
    close = ranking(candidate("a", 1.0), candidate("b", 1.01))
    assert not close.decided
    assert close.rival is not None
    assert 0.5 < (close.rival.better or 0) < 0.9
    assert "90% is required" in verdict(close)


def test_the_probability_is_that_of_two_normal_distributions() -> None:
    """P = Φ(ln(1.05) / (√2 σ)), σ = 0.05/1.645, without idle power."""
    found = ranking(candidate("a", 1.0, idle=1e-9), candidate("b", 1.05, idle=1e-9))
    sigma = 0.05 / 1.6449 * math.sqrt(2)
    expected = 0.5 * (1 + math.erf(math.log(1.05) / sigma / math.sqrt(2)))
    assert found.places[1].better == pytest.approx(expected, abs=0.01)


def test_the_first_must_beat_every_other_one() -> None:
    """The second place is certain to lose, the third is not: it decides."""
    found = ranking(candidate("a", 1.0), candidate("b", 1.3), candidate("c", 1.31, width=0.8))
    assert devices(found) == ["a", "b", "c"]
    assert found.rival is not None
    assert found.rival.candidate.prediction.device == "c"
    assert not found.decided


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (candidate("a", 1.0, width=0.5), "measure net on a with onnxruntime, fp32"),
        (candidate("a", 1.0, idle=None), "measure the idle power of a"),
        (candidate("a", 1.0, width=None), "measure net on a with onnxruntime, fp32"),
    ],
)
def test_the_most_uncertain_number_is_what_to_measure(first: Candidate, expected: str) -> None:
    found = ranking(first, candidate("b", 1.0 if first.idle else 6.0, width=0.01, idle=1.0))
    assert not found.decided
    assert found.settle.startswith(expected)


def test_without_a_validated_interval_nothing_is_decided() -> None:
    found = ranking(candidate("a", 1.0, width=None), candidate("b", 9.0))
    assert not found.decided
    assert "no validated interval" in verdict(found)
    assert found.places[0].low is None
    assert not ranking(candidate("a", 1.0, width=None)).decided


def test_one_candidate_is_recommended_as_the_only_one() -> None:
    found = ranking(candidate("a", 1.0))
    assert found.decided
    assert verdict(found) == "Recommended: a, onnxruntime, fp32, batch 1: the only one that keeps the limits."


def test_candidates_on_one_device_share_its_idle_power() -> None:
    """An unknown idle power makes two devices undecided, but not two runtimes of one device."""
    pair = (candidate("a", 1.0, idle=None, runtime="x"), candidate("a", 1.3, idle=None, runtime="y"))
    assert ranking(*pair, rate=500.0).decided
    others = (candidate("a", 1.0, idle=None, runtime="x"), candidate("b", 1.3, idle=None, runtime="y"))
    assert not ranking(*others, rate=500.0).decided


def test_the_limits_are_kept_and_the_wait_for_a_batch_counts() -> None:
    slow, late, good = (
        candidate("slow", 0.1, throughput=50.0),
        candidate("late", 0.1, batch_size=11),
        candidate("good", 9.0, batch_size=2),
    )
    found = ranking(slow, late, good, rate=100.0, max_latency_s=0.1)
    assert devices(found) == ["good"]
    assert found.places[0].latency_s == pytest.approx(1 / 100 + 2 / 1000)
    assert found.excluded["slow, onnxruntime, fp32, batch 1"].text == "too slow: 50/s at least"
    assert found.excluded["late, onnxruntime, fp32, batch 11"].text.startswith("latency 0.111 s")
    with pytest.raises(PredictionRefusedError, match=r"no device keeps the limits at 100/s: slow.*too slow: 50/s"):
        ranking(slow, rate=100.0)


def test_many_excluded_candidates_are_a_short_list_by_reason() -> None:
    slow = [candidate(f"board {n}", 1.0, throughput=float(n)) for n in range(1, 21)]
    late = [candidate("late", 1.0, batch_size=64), candidate("later", 1.0, batch_size=128)]
    with pytest.raises(PredictionRefusedError) as refused:
        ranking(*slow, *late, rate=500.0, max_latency_s=0.1)
    assert str(refused.value) == (
        "no device keeps the limits at 500/s: 20 too slow, the nearest is board 20, onnxruntime, fp32, batch 1: too "
        "slow: 20/s at least; 2 above the latency limit, the nearest is late, onnxruntime, fp32, batch 64: latency "
        "0.19 s (waiting for a batch, and its run)"
    )
    lines = recommend_lines(ranking(*slow, candidate("good", 1.0), rate=500.0), Costs(), 200)
    assert [line for line in lines if line.startswith("Excluded")] == [
        "Excluded: 20 too slow, the nearest is board 20, onnxruntime, fp32, batch 1: too slow: 20/s at least"
    ]


def test_an_unknown_idle_power_is_a_range_and_never_a_guess() -> None:
    """1 J and 1000/s: at most 1000 W at rest, so between 1 J and 10 J at 100/s."""
    found = ranking(candidate("known", 1.0, idle=500.0), candidate("unknown", 1.0, idle=None), rate=100.0)
    known, unknown = found.places
    assert known.joules == pytest.approx(1.0 + 500 * 0.009)
    assert (unknown.joules, unknown.watts, unknown.idle_share, unknown.break_even) == (None, None, None, None)
    assert unknown.low == pytest.approx(math.exp(-0.05), rel=0.01)
    assert unknown.high == pytest.approx(10.0, rel=0.01)
    assert not found.decided
    assert verdict(found).endswith("it depends on the idle power of unknown, which is not known.")
    assert found.settle.startswith("measure the idle power of unknown")
    assert "from 0 W to 1000 W" in idle_text(found, unknown)
    (row,) = json.loads(recommend_json(found, Costs(euros_per_kwh=1.0)))["ranking"][1:]
    assert (row["joules_per_inference"], row["idle_watts"], row["euros_per_year"]) == (None, None, None)
    assert row["idle_watts_at_most"] == pytest.approx(1000.0)


def test_an_unknown_idle_power_that_changes_nothing_is_decided() -> None:
    found = ranking(candidate("known", 1.0, idle=500.0), candidate("unknown", 12.0, idle=None), rate=100.0)
    assert found.decided
    assert "with a probability of at least >99.9%" in verdict(found)


def test_an_unknown_idle_power_is_at_most_the_least_power_under_load_of_its_device() -> None:
    found = ranking(candidate("a", 1.0, idle=None, runtime="x"), candidate("a", 0.2, idle=None, runtime="y"))
    assert [place.candidate.rest.watts for place in found.places] == [pytest.approx(200.0)] * 2


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (1.0, ">99.9%"),
        (0.9985, "99.8%"),
        (0.996, "99.6%"),
        (0.8999, "89%"),
        (0.5, "50%"),
        (0.004, "0.4%"),
        (0.0, "<0.1%"),
    ],
)
def test_a_probability_has_no_more_digits_than_its_draws(probability: float, text: str) -> None:
    assert probability_text(probability) == text


def test_a_device_that_was_asked_for_and_has_no_number_leaves_it_undecided() -> None:
    missing = without_numbers(["a", "a100-sxm4-40gb"], [candidate("a", 1.0)], "--network net")
    found = recommend([candidate("a", 1.0)], 100.0, ANY_LATENCY, {}, missing)
    assert not found.decided
    assert found.unknown == {
        "NVIDIA A100-SXM4-40GB": "joulewatch profile --network net --runtime tensorrt on it; with a second network, "
        "joulewatch fit ranks it"
    }
    assert verdict(found).endswith("batch 1 cannot be compared with NVIDIA A100-SXM4-40GB.")


def test_the_best_batch_size_of_a_device_counts() -> None:
    found = ranking(candidate("a", 1.0), candidate("a", 0.5, batch_size=8), candidate("a", 0.7, batch_size=64))
    assert [place.candidate.prediction.batch_size for place in found.places] == [8]


def test_energies_of_several_scopes_are_not_ranked() -> None:
    with pytest.raises(PredictionRefusedError, match=r"several scopes \(devices, wall\)"):
        ranking(candidate("a", 1.0), candidate("b", 1.0, scope="wall"))


def own(kind: Any, name: str = "mine", scope: Any = "device", **watts: float) -> Card:
    source = Source(title="a reading", date="2026-01-01", opened="2026-01-01")
    values: dict[str, Any] = {
        field: Value(value=value, source="s", status="measured", scope=scope) for field, value in watts.items()
    }
    return Card(name=name, title=name, kind=kind, devices=("My GPU",), sources={"s": source}, **values)


def test_the_idle_power_of_a_gpu_alone_is_not_that_of_its_machine() -> None:
    assert idle_of("My GPU", "devices", [own("gpu", idle_watts=50.0)]) is None
    assert idle_of("My GPU", "devices", [own("gpu", idle_watts=50.0, machine_idle_watts=150.0)]) == Idle(
        watts=150.0, measured=True
    )
    assert idle_of("My GPU", "devices", [own("cpu", idle_watts=50.0)]) == Idle(watts=50.0, measured=True)
    assert idle_of("My GPU", "wall", [own("cpu", idle_watts=50.0)]) is None
    assert idle_of("RFSoC2x2", "rails", []) == Idle(watts=2.978, measured=True)
    assert idle_of("unheard of", "devices", []) is None


def test_an_idle_power_measured_with_the_energies_replaces_that_of_the_card() -> None:
    measured = Idle(watts=7.0, measured=True)
    assert idle_of("unheard of", "devices", [], 7.0) == idle_of("RFSoC2x2", "rails", [], 7.0) == measured
    assert idle_of("My GPU", "devices", [own("cpu", idle_watts=50.0)], 7.0) == Idle(watts=50.0, measured=True)
    rows = device_rows(1, networks()[::3])
    fit = fit_all([dataclasses.replace(row, idle_watts=7.0) for row in rows])
    shape = networks()[1]
    candidates, _ = candidates_of_fit(fit, (shape.name, shape.family, shape.features), ["board 1"], [])
    assert [one.idle for one in candidates] == [measured]


def test_the_limits_are_kept_at_the_upper_end_of_the_time() -> None:
    """50 to 200 inferences per second: 20 ms at most."""
    one = candidate("a", 1.0)
    throughput = Interval(median=100.0, low=50.0, high=200.0)
    slow = dataclasses.replace(one, prediction=dataclasses.replace(one.prediction, throughput=throughput))
    assert ranking(slow, rate=10.0).places[0].latency_s == pytest.approx(0.02)
    with pytest.raises(PredictionRefusedError, match=r"latency 0\.02 s"):
        ranking(slow, rate=10.0, max_latency_s=0.015)
    with pytest.raises(PredictionRefusedError, match="too slow: 50/s at least"):
        ranking(slow, rate=60.0)


def test_costs_are_those_of_a_year_of_mean_power() -> None:
    found = ranking(candidate("a", 1.0, idle=50.0, throughput=1e9), rate=50.0)
    (place,) = json.loads(recommend_json(found, Costs(euros_per_kwh=0.3, grams_per_kwh=400.0)))["ranking"]
    assert place["watts"] == pytest.approx(100.0, rel=1e-6)
    assert place["euros_per_year"] == pytest.approx(0.1 * 8766 * 0.3, rel=1e-6)
    assert place["kg_co2_per_year"] == pytest.approx(0.1 * 8766 * 0.4, rel=1e-6)
    assert place["method"] == "predicted"


def test_the_text_says_that_it_is_predicted_and_fits_the_terminal() -> None:
    found = ranking(*(candidate(f"a device with a long name {n}", 1.0 + n / 10) for n in range(12)))
    lines = recommend_lines(found, Costs(euros_per_kwh=0.3, grams_per_kwh=400.0), 80)
    assert lines[0] == lines[-1] == "!!! PREDICTED, not measured !!!"
    assert all(len(line) <= 80 for line in lines)
    assert "... and 4 more: --format json" in lines


def reports(folder: Path, cycles: float) -> Path:
    folder.mkdir()
    content = {"max_cycles": cycles, "max_cycles_node_name": "MVAU_0", "estimated_throughput_fps": 100e6 / cycles}
    (folder / "estimate_network_performance.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_command_ranks_fpgas_by_their_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(card_yaml(own("fpga", name="my-card", idle_watts=20.0)), encoding="utf-8")
    words = [
        "recommend", "net", "--rate", "100/s", "--max-latency", "0.1", "--card", str(mine),
        "--finn", f"my-card={reports(tmp_path / 'small', 100_000)}",
        "--finn", f"alveo-u280={reports(tmp_path / 'large', 10_000)}",
    ]  # fmt: skip
    assert main([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["ranking"]
    assert (first["device"], second["device"]) == ("my-card", "AMD Alveo U280")
    assert first["network"] == document["network"] == "net"
    assert first["joules_per_inference"] == pytest.approx(20.0 / 100, rel=1e-3)
    assert first["latency_seconds"] == pytest.approx(0.001 * CYCLE_LIMITS[1])
    assert second["joules_per_inference"] == pytest.approx(40.3 / 100, rel=1e-3)
    assert main([*words, "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("method,network,device")
    assert main([*words, "--host-watts", "300"]) == 4
    assert "To settle it: measure" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of three simulated boards."""
    path = tmp_path_factory.mktemp("fit") / "model.json"
    rows = [row for seed in range(3) for row in device_rows(seed, networks()[::3])]
    path.write_text(json_text(document_of(evaluated(fit_all(rows)))), encoding="utf-8")
    return path


def test_the_devices_of_a_fit_are_ranked(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = read_fit(fitted)
    network = next(iter(fit.models[0].networks))
    names = [model.device for model in fit.models]
    words = ["recommend", network, "--fit", str(fitted), "--rate", "1/s", "--max-latency", "100", "--format", "json"]
    assert main(words) in (0, 4)
    document = json.loads(capsys.readouterr().out)
    assert sorted(row["device"] for row in document["ranking"]) == sorted(names)
    # No card has their idle power, which matters most at this rate.
    assert {row["idle_watts"] for row in document["ranking"]} == {None}
    assert not document["decided"]
    assert document["settle"].startswith("measure the idle power of ")
    assert main([*words, "--devices", names[1]]) == 2
    assert f"--devices: {names[1]} has no card" in capsys.readouterr().err
    mine = fitted.parent / "mine.yaml"
    mine.write_text(card_yaml(own("board", name=names[1], scope="wall", idle_watts=0.5)), encoding="utf-8")
    assert main([*words, "--devices", names[1], "--card", str(mine)]) == 0
    (row,) = json.loads(capsys.readouterr().out)["ranking"]
    assert (row["device"], row["idle_watts"]) == (names[1], 0.5)
    card = dataclasses.replace(own("board", scope="wall", idle_watts=0.5), devices=(names[1],))
    mine.write_text(card_yaml(card), encoding="utf-8")
    assert main([*words, "--devices", "mine", "--card", str(mine)]) == 0
    assert json.loads(capsys.readouterr().out)["ranking"] == [row]
    assert main([*words, "--devices", "nothing"]) == 2
    assert "--devices: unknown device 'nothing'" in capsys.readouterr().err
    assert main([*words[:-4], "--max-latency", "1e-9"]) == 1
    assert "no device keeps the limits at 1/s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "code"), [([380.0], 0), ([], 2), ([380.0, 90.0], 2), ([math.nan], 2)], ids=["one", "none", "two", "NaN"]
)
def test_the_carbon_intensity_may_be_that_of_prometheus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[float], code: int
) -> None:
    result = [{"metric": {"zone": str(n)}, "value": [1.0, str(value)]} for n, value in enumerate(values)]
    answer = {"status": "success", "data": {"resultType": "vector", "result": result}}
    words = [
        "recommend", "net", "--rate", "100/s", "--max-latency", "1", "--carbon", "grid_gco2_per_kwh",
        "--prometheus", "http://prometheus.example", "--finn", f"rfsoc2x2={reports(tmp_path / 'net', 1e4)}",
        "--format", "json",
    ]  # fmt: skip
    with responses.RequestsMock() as mocked:
        mocked.post("http://prometheus.example/api/v1/query", json=answer)
        assert main(words) == code
    out, err = capsys.readouterr()
    if code == 0:
        (row,) = json.loads(out)["ranking"]
        assert row["kg_co2_per_year"] == pytest.approx(row["watts"] / 1000 * 8766 * 0.38)
    else:
        assert "grid_gco2_per_kwh" in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "0/s"), "--rate must be a number of inferences per second > 0, such as 100/s, got '0/s'"),
        (("--rate", "many"), "--rate must be a number of inferences per second > 0"),
        (("--carbon", "grid_gco2"), "--carbon 'grid_gco2' is a query: give --prometheus URL"),
        (("--carbon", "-1"), "--carbon must be a number >= 0 (g/kWh) or a query, got '-1'"),
        (("--finn", "alveo-u280"), "--finn 'alveo-u280': must be CARD=FOLDER"),
        (("--finn", "nothing=."), "unknown device 'nothing'"),
        (("--finn", f"rfsoc2x2={FINN_TABLE}"), "8 designs; give one of net"),
        (("--host-watts", "5"), "--driver-seconds and --host-watts need --finn CARD=FOLDER"),
        ((), "give --fit FILE, or --finn CARD=FOLDER, or both"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert main(["recommend", "net", "--rate", "100/s", "--max-latency", "1", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("joulewatch: ")
    assert message in err
    assert len(err.splitlines()) == 1
