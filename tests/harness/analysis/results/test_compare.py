"""``joulewatch compare``: verdicts and uncertainties checked by hand, and the comparisons that it rejects."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness import cli
from joulewatch_harness.analysis.reports.compare_report import comparison_document, render_csv, render_table
from joulewatch_harness.analysis.reports.to_json import result_document
from joulewatch_harness.analysis.results.compare import Comparison, Row, compare, compare_measures, pairs_of, pick
from joulewatch_harness.analysis.results.model import BudgetLine, Estimate
from joulewatch_harness.analysis.results.stored_results import Measure, Run, Side, measures, repeated
from joulewatch_harness.analysis.results.stored_results import read_document as read_result
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.analysis.results.uncertainty import estimate_of
from joulewatch_harness.errors import ConfigError, RecordError
from joulewatch_harness.gum import mean, standard_error, student_factor
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import MeasureStep, steps
from joulewatch_harness.plan.target import LOOKS, relative_half_width
from joulewatch_harness.records import SensorRecord
from support.synthetic import EXPORTER, ListSource, make_world, sensor

SENSORS = frozenset({"node1/rapl/socket0/package"})
NAMES = ("net/onnxruntime/fp32", "net/onnxruntime/int8")


def estimate(value: float, **items: float) -> Estimate:
    """Return a value with a budget: ``repeats`` of 3 rounds, and systematic components."""
    lines = []
    for name, standard in items.items():
        accuracy = name.startswith("accuracy")
        name = "accuracy (rapl)" if accuracy else name.replace("_", " ")
        dof = 2.0 if name == "repeats" else math.inf
        lines.append(
            BudgetLine(
                name=name,
                kind="A" if name == "repeats" else "B",
                standard=standard,
                dof=dof,
                systematic=name != "repeats",
                text="",
            )
        )
    standard = math.hypot(*items.values())
    return Estimate(value=value, standard=standard, expanded=2 * standard, dof=math.inf, budget=tuple(lines))


def energy(value: Estimate | None, methods: str = "counter", **more: Any) -> Measure:
    return Measure(
        kind="energy",
        name="total",
        basis="gross",
        unit="J",
        estimate=value,
        missing="",
        sensors=SENSORS,
        methods=frozenset(methods.split()),
        **more,
    )


def row(a: Measure, b: Measure, **more: Any) -> Row:
    return compare_measures(8, a, b, **more)


def standard_of(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.standard


def test_scatter_is_independent_and_combines_in_quadrature() -> None:
    actual = row(energy(estimate(10, repeats=0.3)), energy(estimate(12, repeats=0.4)))
    assert actual.difference is not None and actual.percent is not None
    assert actual.difference.value == 2
    assert actual.difference.standard == pytest.approx(0.5)
    # Welch-Satterthwaite: 0.5^4 / (0.3^4/2 + 0.4^4/2).
    dof = 0.5**4 / (0.3**4 / 2 + 0.4**4 / 2)
    assert actual.difference.dof == pytest.approx(dof)
    assert actual.difference.expanded == pytest.approx(0.5 * student_factor(dof))
    assert actual.percent.value == pytest.approx(20)
    assert actual.percent.standard == pytest.approx(100 * 1.2 * math.hypot(0.03, 0.4 / 12))
    assert actual.verdict == "significant"


def test_the_accuracy_of_the_same_sensor_cancels_as_a_scale_factor() -> None:
    """5 % of 10 J and of 12 J contribute 5 % of the difference in joules, and nothing in percent."""
    a, b = energy(estimate(10, repeats=1e-9, accuracy=0.5)), energy(estimate(12, repeats=1e-9, accuracy=0.6))
    actual = row(a, b)
    assert standard_of(actual.difference) == pytest.approx(0.1)
    assert standard_of(actual.percent) == pytest.approx(0, abs=1e-6)
    assert actual.cancelled == ("accuracy (rapl)",)
    kept = row(a, b, cancel=False)
    assert standard_of(kept.difference) == pytest.approx(math.hypot(0.5, 0.6))
    assert kept.cancelled == ()


@pytest.mark.parametrize(
    "other",
    [
        {"sensors": frozenset({"node2/rapl/socket0/package"})},
        {"methods": frozenset({"estimated"})},
        {"methods": frozenset({"counter", "unknown"})},
    ],
)
def test_accuracy_of_different_sensors_or_of_a_model_does_not_cancel(other: dict[str, Any]) -> None:
    a = energy(estimate(10, repeats=0.1, accuracy=0.5))
    b = dataclasses.replace(energy(estimate(12, repeats=0.1, accuracy=0.6)), **other)
    actual = row(a, b)
    assert standard_of(actual.difference) == pytest.approx(math.hypot(0.1, 0.1, 0.5, 0.6))
    assert actual.cancelled == ()


def test_the_same_idle_power_cancels_and_a_different_one_does_not() -> None:
    same = [energy(estimate(v, repeats=0.01, idle_baseline=u), idle=("r", (0, 9))) for v, u in ((10, 0.4), (12, 0.3))]
    assert standard_of(row(*same).difference) == pytest.approx(math.hypot(0.01, 0.01, 0.1))
    other = dataclasses.replace(same[1], idle=("r", (1, 9)))
    assert standard_of(row(same[0], other).difference) == pytest.approx(math.hypot(0.01, 0.01, 0.4, 0.3))


def test_a_negative_net_energy_changes_the_sign_of_a_shared_error() -> None:
    """The errors of a scale factor in -1 J and +1 J have opposite signs: the difference of 2 J has 5 % of 2 J."""
    a, b = energy(estimate(-1, repeats=1e-9, accuracy=0.05)), energy(estimate(1, repeats=1e-9, accuracy=0.05))
    actual = row(a, b)
    assert standard_of(actual.difference) == pytest.approx(0.1)
    assert actual.percent is None


def test_no_percentage_if_the_baseline_may_be_zero() -> None:
    actual = row(energy(estimate(1, repeats=0.6)), energy(estimate(9, repeats=0.6)))
    assert actual.percent is None
    assert actual.verdict == "significant"


def test_one_round_is_undecided_and_a_missing_number_has_its_reason() -> None:
    actual = row(energy(estimate(1, refresh=1e-6)), energy(estimate(9, repeats=1e-6)))
    assert actual.verdict == "undecided" and "two rounds" in actual.text
    missing = row(energy(estimate(1, repeats=0.1)), dataclasses.replace(energy(None), missing="exporter was away"))
    assert missing.verdict == "missing" and missing.text == "B: exporter was away" and missing.difference is None
    assert compare_measures(8, None, energy(estimate(1, repeats=0.1))).text == "A: not measured"


@given(
    a=st.floats(0.1, 1e3),
    b=st.floats(0.1, 1e3),
    shares=st.lists(st.floats(1e-4, 0.2), min_size=4, max_size=4),
    accuracy=st.floats(0, 0.2),
)
def test_exchanging_the_sides_changes_only_the_sign(a: float, b: float, shares: list[float], accuracy: float) -> None:
    first = energy(estimate(a, repeats=a * shares[0], edge_slack=a * shares[1], accuracy=a * accuracy))
    second = energy(estimate(b, repeats=b * shares[2], edge_slack=b * shares[3], accuracy=b * accuracy))
    forth, back = row(first, second).difference, row(second, first).difference
    assert forth is not None and back is not None
    assert forth.value == pytest.approx(-back.value)
    assert forth.expanded == pytest.approx(back.expanded)
    full = row(first, second, cancel=False).difference
    assert full is not None and forth.standard <= full.standard * (1 + 1e-12)


def test_equal_values_are_significant_in_about_5_percent_of_cases() -> None:
    """Three rounds each of the same value, 2 % scatter: significant in about 1 of 20 cases."""
    random = np.random.default_rng(7)
    differing = 0
    for _ in range(2000):
        sides = []
        for _ in range(2):
            rounds = 10 * (1 + 0.02 * random.standard_normal(3))
            sides.append(energy(estimate(float(rounds.mean()), repeats=float(rounds.std(ddof=1) / math.sqrt(3)))))
        differing += row(*sides).verdict == "significant"
    assert 0.01 < differing / 2000 < 0.07


# Whole runs


ACCURATE = (sensor("socket0", "package", accuracy=0.05), sensor("socket0", "dram", "memory", accuracy=0.05))


def power(item: SensorRecord, name: str, _batch: int) -> float:
    """INT8 uses 100 W, others 103 W; memory a fifth of it; 40 W idle."""
    watts = {"idle": 40.0}.get(name, 100.0 if name.endswith("int8") else 103.0)
    return watts * (0.2 if item.component == "memory" else 1.0)


def document(
    configurations: tuple[str, ...] = NAMES, *, sensors: tuple[SensorRecord, ...] = ACCURATE, **more: Any
) -> dict[str, Any]:
    world = make_world(
        sensors, configurations=configurations, **{"power": power, "noise": 0.002, "batch_sizes": (1, 8), **more}
    )
    assert world.record is not None
    result: dict[str, Any] = json.loads(
        json.dumps(result_document(analyze_run(world.record, ListSource(world.scrapes()))))
    )
    return result


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return document()


def compared(*documents: dict[str, Any], **more: Any) -> Comparison:
    return compare(pairs_of([(read_result(item, "test"), ()) for item in documents]), **more)


def rows_of(comparison: Comparison, name: str = "total", basis: str = "gross") -> list[Row]:
    return [row for pair in comparison.pairs for row in pair.rows if (row.name, row.basis) == (name, basis)]


def test_one_run_compares_its_configurations_with_the_first(base: dict[str, Any]) -> None:
    """900/s at 123.6 W and 2100/s at 120 W: -58.4 %, exactly, although each value is ±5 %."""
    actual = compared(base)
    ((a, b),) = [(pair.a.configuration, pair.b.configuration) for pair in actual.pairs]
    assert (a, b) == NAMES
    assert [item.batch_size for item in rows_of(actual)] == [1, 8]
    for item in rows_of(actual):
        assert item.percent is not None and item.a is not None
        truth = 100 * ((120 / 2100) / (123.6 / 900) - 1)
        assert abs(item.percent.value - truth) <= item.percent.expanded < 3
        assert item.a.expanded > 0.04 * item.a.value
        assert item.verdict == "significant" and item.cancelled == ("accuracy (rapl)",)
    assert {item.name for pair in actual.pairs for item in pair.rows} == {
        *("total", "cpu", "memory", "throughput", "p50", "p99")
    }
    (throughput, _) = rows_of(actual, "throughput", "")
    assert throughput.percent is not None and throughput.percent.value == pytest.approx(
        100 * (2100 / 900 - 1), rel=0.01
    )
    assert {item.verdict for item in rows_of(actual, basis="net")} == {"significant"}
    assert not any("idle baseline" in item.cancelled for item in rows_of(actual, basis="net"))
    common = compared(document(loaded_idle=False))
    assert all("idle baseline" in item.cancelled for item in rows_of(common, basis="net"))


def test_a_stored_result_of_one_round_is_compared_and_undecided() -> None:
    """Its expanded uncertainties and coverage factors are null."""
    single = document(rounds=1)
    assert single["results"][0]["energy"]["total"]["gross"]["coverage_factor"] is None
    assert {(item.verdict, item.a.expanded) for item in rows_of(compared(single)) if item.a} == {("undecided", None)}


def test_a_small_difference_is_not_significant(base: dict[str, Any]) -> None:
    """The same network twice, 1 % scatter: the interval contains 0."""
    actual = compared(document(("net/onnxruntime/fp32", "net/openvino/fp32"), noise=0.01))
    for item in rows_of(actual):
        assert item.verdict == "no significant difference"
        assert item.difference is not None and abs(item.difference.value) < item.difference.expanded


def test_runs_of_one_machine_share_its_sensors_but_not_the_idle_power(base: dict[str, Any]) -> None:
    """In local mode the exporter uses another port in each run, but the sensor is the same."""
    text = json.dumps(base).replace(EXPORTER, "127.0.0.1:44444").replace(base["run"]["id"], "20260922T141320Z-0a1b2c")
    actual = compared(base, json.loads(text))
    assert [(pair.a.configuration, pair.b.configuration) for pair in actual.pairs] == [(name, name) for name in NAMES]
    assert all(item.cancelled == ("accuracy (rapl)",) for item in rows_of(actual) + rows_of(actual, basis="net"))
    assert all(any(note.startswith("two runs") for note in pair.notes) for pair in actual.pairs)


@pytest.mark.parametrize("change", [("host", "node2"), ("host", None), ("hardware", "Intel Xeon")])
def test_nothing_cancels_across_machines(base: dict[str, Any], change: tuple[str, str | None]) -> None:
    other = copy.deepcopy(base)
    other["run"]["id"] = "20260922T141320Z-0a1b2c"
    other["run"]["provenance"][change[0]] = change[1]
    actual = compared(base, other)
    for item in rows_of(actual) + rows_of(actual, basis="net"):
        assert item.cancelled == ()
        assert item.a is not None and item.difference is not None
        assert item.difference.standard > math.sqrt(2) * 0.05 / math.sqrt(3) * abs(item.a.value) * 0.99
    assert all(any("different machines" in note for note in pair.notes) for pair in actual.pairs)


def test_measured_and_estimated_energies_are_compared_only_with_mixed(base: dict[str, Any]) -> None:
    guessed = document(sensors=(sensor("cpu", "package", collector="estimate", method="estimated", accuracy=0.5),))
    guessed["run"]["id"] = "20260922T141320Z-0a1b2c"
    with pytest.raises(ConfigError, match=r"of A, net/onnxruntime/fp32 .* is measured.* is estimated.*--mixed"):
        compared(base, guessed)
    actual = compared(base, guessed, mixed=True)
    assert any(note.startswith("NOT COMPARABLE: ") for note in actual.pairs[0].notes)
    assert "ESTIMATED" in render_table(actual)
    assert comparison_document(actual)["estimated"] is True


def test_the_accuracy_of_estimates_does_not_cancel() -> None:
    actual = compared(
        document(sensors=(sensor("cpu", "package", collector="estimate", method="estimated", accuracy=0.5),))
    )
    assert all(item.cancelled == () for item in rows_of(actual))


def test_other_differences_are_noted(base: dict[str, Any]) -> None:
    other = copy.deepcopy(base)
    other["run"]["id"] = "20260922T141320Z-0a1b2c"
    other["run"]["provenance"]["cpu"]["governor"] = "powersave"
    for item in other["results"]:
        item["configuration"] |= {"network": "resnet", "runtime_version": "9", "scenario": "server"}
    other["results"] = [item for item in other["results"] if item["batch_size"] != 1]
    notes = " | ".join(compared(base, other).pairs[0].notes)
    for text in (
        "different networks: A is net, B is resnet",
        "different scenarios: A offline, B server",
        "different versions of onnxruntime: A unknown, B 9",
        "B has no batch size 1",
        "different governor: A performance, B powersave",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("limits_a", "limits_b", "note"),
    [
        ({"GPU-0": 300.0, "GPU-1": 400.0}, {"GPU-0": 400.0, "GPU-1": 300.0}, "A 300, 400 W, B 400, 300 W"),
        ({"GPU-0": 300.0}, {"GPU-7": 250.5}, "A 300 W, B 250.5 W"),
        ({"GPU-0": 300.0}, {"GPU-0": 300.0}, ""),
        ({"GPU-0": 300.0}, {"GPU-7": 300.0}, ""),
        ({"GPU-0": 300.0, "GPU-1": 400.0}, {"GPU-7": 400.0, "GPU-8": 300.0}, ""),
        ({"GPU-0": 300.0}, {"GPU-0": None}, ""),
        ({"GPU-0": 300.0}, {}, ""),
    ],
)
def test_different_power_limits_of_the_gpus_are_noted(
    base: dict[str, Any], limits_a: dict[str, float | None], limits_b: dict[str, float | None], note: str
) -> None:
    other = copy.deepcopy(base)
    other["run"]["id"] = "20260922T141320Z-0a1b2c"
    for run, limits in ((base, limits_a), (other, limits_b)):
        run["run"]["provenance"]["gpus"] = {
            name: {} if watts is None else {"limit_watts": watts, "default_limit_watts": 400.0}
            for name, watts in limits.items()
        }
    notes = [one for one in compared(base, other).pairs[0].notes if "power limits" in one]
    assert notes == ([f"different power limits of the GPUs: {note}"] if note else [])
    for damaged in ([], {"GPU-0": 5}, {"GPU-0": {"limit_watts": "x"}}):
        base["run"]["provenance"]["gpus"] = damaged
        assert not any("power limits" in one for one in compared(base, other).pairs[0].notes)


def test_the_table_shows_the_machine_whose_energy_was_measured(base: dict[str, Any]) -> None:
    remote, old = copy.deepcopy(base), copy.deepcopy(base)
    remote["run"] |= {"id": "20260922T141320Z-0a1b2c", "hardware": "node7 (AMD EPYC 9554)"}
    del old["run"]["hardware"]
    text = render_table(compared(old, remote), width=200)
    assert "AMD EPYC 7763)" in text and "node7 (AMD EPYC 9554)" in text


def test_a_model_file_of_an_older_result_is_the_same_network(base: dict[str, Any]) -> None:
    """Version 0.1.0 stored the path of the file as the name of the network."""
    old, new = copy.deepcopy(base), copy.deepcopy(base)
    old["run"]["id"] = "20260922T141320Z-0a1b2c"
    for item in old["results"]:
        item["configuration"]["network"] = "/data/net.onnx"
    for item in new["results"]:
        item["configuration"] |= {"network": "net", "path": "elsewhere/net.onnx"}
    assert not any("networks" in note for note in compared(old, new).pairs[0].notes)


def test_audit_errors_are_noted(base: dict[str, Any]) -> None:
    other = copy.deepcopy(base)
    other["findings"].append({"severity": "error", "reason": "sensor_down", "text": "", "window": None, "evidence": {}})
    assert any("the audit has errors: sensor_down" in note for note in compared(other).notes)


def test_no_batch_size_in_common_is_an_error(base: dict[str, Any]) -> None:
    other = copy.deepcopy(base)
    other["run"]["id"] = "other"
    for item in other["results"]:
        item["batch_size"] *= 3
    with pytest.raises(ConfigError, match=r"has batch sizes 1, 8, .* has 3, 24: there is none in common"):
        compared(base, other)


def test_configurations_are_picked_by_name_part_or_pattern(base: dict[str, Any]) -> None:
    run = read_result(base, "test")
    assert pick(run, NAMES[1]) == pick(run, "int8") == pick(run, "*int8") == [NAMES[1]]
    assert pick(run, "net/*") == list(NAMES)
    with pytest.raises(ConfigError, match="'net' matches several configurations"):
        pick(run, "net")
    with pytest.raises(ConfigError, match=r"unknown configuration 'net/onnxruntime/fp16'.* did you mean"):
        pick(run, "net/onnxruntime/fp16")


def test_configurations_that_cannot_be_paired_are_an_error_with_the_command_to_type(base: dict[str, Any]) -> None:
    other = json.loads(json.dumps(base).replace("net/onnxruntime/", "net/openvino/"))
    with pytest.raises(ConfigError, match=r"no configuration in common .* name one after each run, for example"):
        compared(base, other)
    second = r"only net/onnxruntime/int8 is chosen: name a second configuration \(net/onnxruntime/fp32\) or another run"
    with pytest.raises(ConfigError, match=second):
        pairs_of([(read_result(base, "test"), ("net/onnxruntime/int8",))])
    single = base | {
        "results": [row for row in base["results"] if row["configuration"]["name"] == "net/onnxruntime/int8"]
    }
    with pytest.raises(ConfigError, match=r"only net/onnxruntime/int8 is chosen: name another run$"):
        pairs_of([(read_result(single, "test"), ())])
    with pytest.raises(ConfigError, match="it has no measure window"):
        compared({**base, "results": []})


def test_the_table_names_both_sides_units_and_verdicts(base: dict[str, Any]) -> None:
    text = render_table(compared(base))
    assert "A  net/onnxruntime/fp32 (run 20260921T141320Z-0a1b2c" in text
    assert "total, gross, mJ per inference" in text
    assert "throughput, kinferences/s" in text or "throughput, inferences/s" in text
    assert "latency of a batch, p50" in text
    verdicts = {line.rsplit("  ", 1)[-1] for line in text.splitlines() if re.match(r" +\d+  ", line)}
    assert verdicts == {"significant"}
    assert "by chance" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_widest_numbers_fit_a_terminal(base: dict[str, Any]) -> None:
    """Values from a shared machine: one column contains 164 and 0.0906."""

    def rounded(value: float, expanded: float) -> Estimate:
        return dataclasses.replace(estimate(value), expanded=expanded)

    actual = compared(base)
    (pair,) = actual.pairs
    latency = next(item for item in pair.rows if item.kind == "latency")
    seen = [
        (1, (0.18, 0.15), (0.0906, 0.0050), (-0.09, 0.16), (-51.0, 43.0), "no significant difference"),
        (4, (0.633, 0.036), (0.250, 0.089), (-0.383, 0.097), (-60.0, 14.0), "significant"),
        (64, (10.1, 2.0), (3.04, 0.19), (-7.0, 1.8), (-69.7, 4.1), "significant"),
        (1024, (164.0, 37.0), (47.0, 11.0), (-118.0, 47.0), (-66.9, 3.0), "significant"),
    ]
    rows = [
        dataclasses.replace(
            latency,
            batch_size=size,
            a=rounded(a[0] * 1e-3, a[1] * 1e-3),
            b=rounded(b[0] * 1e-3, b[1] * 1e-3),
            difference=rounded(change[0] * 1e-3, change[1] * 1e-3),
            percent=rounded(*percent),
            verdict=verdict,
        )
        for size, a, b, change, percent, verdict in seen
    ]
    text = render_table(dataclasses.replace(actual, pairs=(dataclasses.replace(pair, rows=tuple(rows)),)))
    assert "0.0906 ± 0.0050" in text and "-0.383 ± 0.097" in text and "164 ± 37" in text
    assert [line.rsplit("  ", 1)[1] for line in text.splitlines() if line.startswith(" ") and "±" in line] == [
        *("no", "significant", "significant", "significant"),
    ]
    assert [line.strip() for line in text.splitlines() if line.startswith(" " * 60)] == ["significant", "difference"]
    assert max(map(len, text.splitlines())) <= 80


def test_csv_and_json_have_the_same_numbers(base: dict[str, Any]) -> None:
    actual = compared(base)
    lines = list(csv.DictReader(io.StringIO(render_csv(actual))))
    results = comparison_document(actual)["comparisons"][0]["results"]
    assert len(lines) == len(results) == 2 * 9
    for line, item in zip(lines, results, strict=True):
        assert line["quantity"] == item["quantity"] and line["verdict"] == item["verdict"]
        assert float(line["difference"]) == pytest.approx(item["difference"]["value"], rel=1e-6)
        assert float(line["percent_uncertainty"]) == pytest.approx(item["percent"]["expanded_uncertainty"], rel=1e-2)


def test_a_difference_covers_what_both_sides_cover(base: dict[str, Any]) -> None:
    """Of a version that did not store it, it is not known."""

    def stored(covers: list[str]) -> Comparison:
        changed = copy.deepcopy(base)
        for group in changed["results"]:
            if group["configuration"]["name"] == NAMES[1]:
                group["energy"]["total"]["gross"]["covers"] = covers
        return compared(changed)

    everything, without = ("sampling", "accuracy", "repeats"), ("sampling", "repeats")
    for covers in (everything, without, ()):
        comparison = stored(list(covers))
        for total in rows_of(comparison):
            assert total.a is not None and total.a.covers == everything
            assert total.difference is not None and total.difference.covers == covers
            assert total.percent is not None and total.percent.covers == covers
        assert ("†: sampling and repeats only" in render_table(comparison)) == (covers == without)


# The command


@pytest.fixture
def files(base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    other = copy.deepcopy(base)
    other["run"]["id"] = "20260922T141320Z-0a1b2c"
    (tmp_path / "one.json").write_text(json.dumps(base), encoding="utf-8")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "result.json").write_text(json.dumps(other), encoding="utf-8")
    (tmp_path / "old.json").write_text(json.dumps({**base, "schema_version": 7}), encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "torn.json").write_text('{"a', encoding="utf-8")
    (tmp_path / "holes.json").write_text(json.dumps({**base, "results": [{}]}), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["one.json"], 1),
        (["one.json", "fp32", "int8"], 1),
        (["one.json", "kept"], 2),
        (["one.json", "fp32", "kept", "fp32", "int8"], 2),
        (["one.json", "*"], 1),
    ],
)
def test_runs_and_configurations_in_a_row(
    files: Path, words: list[str], pairs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *words, "--format=json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == pairs


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], "unknown run 'nothing'"),
        (["one.json", "fp23"], "unknown configuration 'fp23' (known: net/onnxruntime/fp32"),
        (["one.json", "int8"], "only net/onnxruntime/int8 is chosen"),
        (["one.json", "old.json"], "old.json: schema_version is 7"),
        (["list.json"], "list.json: not the result of a run"),
        (["torn.json"], "torn.json: not valid JSON"),
        (["holes.json"], "holes.json: broken result"),
        (["a.json,"], "'a.json,': a run is missing next to a comma; write RUN1,RUN2,RUN3 without spaces"),
        ([], "RUN|CONFIGURATION"),
    ],
)
def test_bad_input_is_an_error_with_exit_code_2(
    files: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["compare", *words])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert text in captured.err


def test_a_net_energy_that_is_withheld_has_its_reason(base: dict[str, Any]) -> None:
    busy = copy.deepcopy(base)
    for group in busy["results"]:
        group["energy"]["total"] |= {"net": None, "net_missing": "the machine was busy [idle_busy]"}
    assert {row.text for row in rows_of(compared(busy), basis="net")} == {
        "A: the machine was busy [idle_busy]; B: the machine was busy [idle_busy]"
    }


# Pairs of rounds


def with_rounds(values: Sequence[float], run: str = "r") -> Measure:
    """Return joules per inference of some rounds, with no other uncertainty."""
    result = estimate(float(np.mean(values)), repeats=float(np.std(values, ddof=1)) / math.sqrt(len(values)))
    result = dataclasses.replace(result, rounds=dict(enumerate(values)))
    return energy(result, run=run, magnitude=abs(result.value))


def without_rounds(values: Sequence[float]) -> Measure:
    """The same as an older joulewatch stored it, with the scatter of the rounds only."""
    measure = with_rounds(values)
    assert measure.estimate is not None
    return dataclasses.replace(measure, estimate=dataclasses.replace(measure.estimate, rounds={}))


def test_rounds_of_one_run_are_paired() -> None:
    a, b = with_rounds([10, 11, 12]), with_rounds([12, 13.3, 13.7])
    actual = row(a, b)
    assert actual.paired_rounds == 3 and actual.difference is not None and actual.percent is not None
    expected = float(np.std([2, 2.3, 1.7], ddof=1)) / math.sqrt(3)
    assert actual.difference.value == pytest.approx(2)
    assert actual.difference.standard == pytest.approx(expected)
    assert actual.difference.dof == pytest.approx(2)
    assert actual.difference.expanded == pytest.approx(student_factor(2) * expected)
    assert [line.name for line in actual.difference.budget] == ["repeats, paired"]
    ratio = 13 / 11
    relative = [100 / 11 * (y - ratio * x) for x, y in zip([10, 11, 12], [12, 13.3, 13.7], strict=True)]
    assert actual.percent.standard == pytest.approx(float(np.std(relative, ddof=1)) / math.sqrt(3))


@pytest.mark.parametrize(
    "b", [with_rounds([12, 13, 14], run="other"), with_rounds([12, 13]), energy(estimate(13, repeats=0.6), run="r")]
)
def test_rounds_that_cannot_be_paired_are_independent(b: Measure) -> None:
    """Rounds of another run, other rounds, or a result stored without its rounds."""
    a = with_rounds([10, 11, 12])
    actual = row(a, b)
    assert actual.paired_rounds == 0 and actual.difference is not None
    assert b.estimate is not None and a.estimate is not None
    # A change of 1 % between two runs is assumed.
    between = (0.01 * 11, 0.01 * 13) if a.run != b.run else ()
    names = ["repeats, A", "between runs, A", "repeats, B", "between runs, B"]
    assert [line.name for line in actual.difference.budget] == (names if between else names[::2])
    assert actual.difference.standard == pytest.approx(math.hypot(a.estimate.standard, b.estimate.standard, *between))


def test_between_two_runs_a_small_difference_is_not_significant_and_the_reason_is_given() -> None:
    a = with_rounds([100.0, 100.1, 99.9])
    near, far = with_rounds([101.0, 101.1, 100.9], run="other"), with_rounds([110.0, 110.1, 109.9], run="other")
    actual = row(a, near)
    assert (actual.verdict, actual.text) == ("no significant difference", "run-to-run repeatability unknown")
    assert row(a, dataclasses.replace(near, run="r")).verdict == "significant"
    assert row(a, far).verdict == "significant"


def test_the_assumed_change_between_runs_is_a_share_of_the_gross_energy() -> None:
    a, b = with_rounds([10.0, 10.1, 9.9]), with_rounds([10.0, 10.1, 9.9], run="other")
    a, b = (dataclasses.replace(side, basis="net", magnitude=500.0) for side in (a, b))
    difference = row(a, b).difference
    assert difference is not None
    assert [line.standard for line in difference.budget if "between" in line.name] == [5.0, 5.0]


def repeats(base: dict[str, Any], scales: Sequence[float], first: int = 1) -> Run:
    """Return several runs as one; each has all energies of ``base`` times a factor."""
    runs = []
    for number, scale in enumerate(scales, first):
        document = copy.deepcopy(base)
        document["run"]["id"] = f"r{number}"
        for group in document["results"]:
            for result in (group["energy"]["total"], *group["energy"]["components"]):
                for basis in ("gross", "net"):
                    if result[basis] is not None:
                        result[basis]["value"] *= scale
        runs.append(read_result(document, f"r{number}"))
    return repeated(runs)


def test_the_scatter_of_repeated_runs_decides(base: dict[str, Any]) -> None:
    a, b = repeats(base, (1.00, 1.02, 0.98)), repeats(base, (1.11, 1.09, 1.10), first=4)
    single = measures(Side(read_result(base, "one"), NAMES[0]), 1)["energy", "total", "gross"]
    mean_a = measures(Side(a, NAMES[0]), 1)["energy", "total", "gross"]
    assert single.estimate is not None and mean_a.estimate is not None
    assert mean_a.estimate.value == pytest.approx(single.estimate.value)
    assert mean_a.estimate.covers == single.estimate.covers == ("sampling", "accuracy", "repeats")
    (scatter,) = [line for line in mean_a.estimate.budget if line.name == "repeats"]
    assert (scatter.dof, scatter.text) == (2, "scatter of 3 runs")
    assert scatter.standard == pytest.approx(0.02 / math.sqrt(3) * single.estimate.value)
    of_single = {line.name: line for line in single.estimate.budget}
    for line in mean_a.estimate.budget:
        if line.name != "repeats":
            expected = of_single[line.name].standard / (1 if line.systematic else math.sqrt(3))
            assert line.standard == pytest.approx(expected)
    (pair,) = compare([(Side(a, NAMES[0]), Side(b, NAMES[0]))]).pairs
    total = next(row for row in pair.rows if (row.name, row.basis, row.batch_size) == ("total", "gross", 1))
    assert (total.verdict, total.paired_rounds) == ("significant", 0)
    assert total.difference is not None
    assert not any("between" in line.name for line in total.difference.budget)
    assert not any(note.startswith("two runs") for note in pair.notes)


def test_configurations_of_repeated_runs_are_paired_by_run(base: dict[str, Any]) -> None:
    """What changes between runs changes both configurations, and cancels."""
    run = repeats(base, (1.0, 1.3, 0.8))
    (pair,) = compare([(Side(run, NAMES[0]), Side(run, NAMES[1]))]).pairs
    total = next(row for row in pair.rows if (row.name, row.basis, row.batch_size) == ("total", "gross", 1))
    assert total.paired_rounds == 3


def test_runs_without_anything_in_common_are_not_repeats(base: dict[str, Any]) -> None:
    other = copy.deepcopy(base)
    other["run"]["id"] = "other"
    for group in other["results"]:
        group["configuration"]["name"] += "x"
    with pytest.raises(ConfigError, match=r"runs .*, other are not repeats: they have no configuration and batch size"):
        repeated([read_result(base, "a"), read_result(other, "b")])
    with pytest.raises(ConfigError, match="given twice"):
        repeated([read_result(base, "a"), read_result(base, "a")])


def _other_machine(document: dict[str, Any]) -> None:
    document["run"]["provenance"]["host"] = "node2"


def _other_model(document: dict[str, Any]) -> None:
    document["results"][0]["configuration"]["model_sha256"] = "f" * 64


def _lost_sensor(document: dict[str, Any]) -> None:
    document["results"][0]["energy"]["total"]["sensors"].pop()


def _estimated(document: dict[str, Any]) -> None:
    document["results"][0]["energy"]["total"]["methods"] = ["estimated"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_other_machine, "the machine is .* and node2"),
        (_other_model, "model_sha256 of .* is .* and f+;"),
        (_lost_sensor, "sensors of .* is rapl/socket0/dram, rapl/socket0/package and rapl/socket0/package;"),
        (_estimated, "method of .* is measured and estimated"),
    ],
)
def test_runs_of_different_things_are_not_repeats(
    base: dict[str, Any], change: Callable[[dict[str, Any]], None], text: str
) -> None:
    """Their mean would be the energy of nothing."""
    other = copy.deepcopy(base)
    other["run"]["id"] = "other"
    change(other)
    with pytest.raises(ConfigError, match=f"are not repeats: {text}"):
        repeated([read_result(base, "a"), read_result(other, "b")])


@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize("paired", [True, False])
def test_where_nothing_differs_about_one_comparison_in_twenty_is_significant(rounds: int, paired: bool) -> None:
    """In 400 simulated runs: rounds of one run, and several runs on each side."""
    random = np.random.default_rng(rounds)
    significant = 0
    for _ in range(400):
        a, b = (100.0 + random.normal(0.0, 2.0, rounds) for _ in range(2))
        sides = with_rounds(list(a)), with_rounds(list(b), run="r" if paired else "other")
        if not paired:
            sides = tuple(dataclasses.replace(side, repeated=True) for side in sides)  # type: ignore[assignment]
        significant += row(*sides).verdict == "significant"
    assert 0.02 <= significant / 400 <= 0.08


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.075])
def test_where_nothing_differs_rounds_that_end_at_a_target_make_no_more_comparisons_significant(sigma: float) -> None:
    """The target is 5 %; with a scatter of 7.5 % and Student's t at 95 %, 9 % of the comparisons are significant."""
    random = np.random.default_rng(5)

    def rounds_to_the_target() -> list[float]:
        values = [float(value) for value in random.normal(1.0, sigma, LOOKS[-1])]
        return next(values[:look] for look in LOOKS if relative_half_width(values[:look]) <= 0.05 or look == LOOKS[-1])

    def side(values: list[float]) -> Measure:
        line = BudgetLine(
            name="repeats", kind="A", standard=standard_error(values), dof=len(values) - 1, systematic=False, text=""
        )
        return energy(estimate_of(mean(values), [line], dict(enumerate(values))), run="r", coverage=0.97)

    differing = sum(
        row(side(rounds_to_the_target()), side(rounds_to_the_target())).verdict == "significant" for _ in range(800)
    )
    assert 0.02 <= differing / 800 <= 0.07


def test_the_plan_of_a_run_decides_the_factor_for_the_scatter_of_its_rounds(base: dict[str, Any]) -> None:
    adaptive = copy.deepcopy(base)
    adaptive["run"]["plan"] = {"max_relative_uncertainty": 0.05}
    fixed, wider = (rows_of(compared(run))[0].difference for run in (base, adaptive))
    assert fixed is not None and wider is not None and fixed.expanded is not None and wider.expanded is not None
    assert (wider.value, wider.standard) == (fixed.value, fixed.standard)
    assert wider.expanded > fixed.expanded
    side = Side(read_result(adaptive, "a"), NAMES[0])
    assert {quantity.coverage for quantity in measures(side, 8).values()} == {0.97}


def test_the_scatter_of_repeated_runs_does_not_depend_on_the_target_of_their_rounds(base: dict[str, Any]) -> None:
    adaptive = copy.deepcopy(base)
    adaptive["run"]["plan"] = {"max_relative_uncertainty": 0.05}
    quantities = measures(Side(repeats(adaptive, (1.0, 1.02, 0.98)), NAMES[0]), 8)
    assert {quantity.coverage for quantity in quantities.values()} == {0.95}


@pytest.mark.parametrize(("drift", "walk"), [(0.0, 0.0), (0.06, 0.0), (0.0, 0.04)])
def test_paired_intervals_cover_the_truth_with_and_without_drift(drift: float, walk: float) -> None:
    """Eight configurations, three rounds in the runner's own order, 1 % noise; B is 3 % above A.

    A machine that warms up evenly (``drift`` over the run) or wanders from round to round (``walk``): the intervals of
    the paired differences hold the truth in 95 % of 1000 runs, and are far narrower than those of independent rounds.
    Without drift they are wider because of the degrees of freedom, by at most 4.3 / 2.8.
    """
    random = np.random.default_rng(11)
    names = [f"n{number}" for number in range(8)]
    configurations = [{"name": name, "network": f"{name}.onnx", "precision": "fp32"} for name in names]
    held, held_unpaired = 0, 0
    widths = np.zeros(2)
    tries = 1000
    for seed in range(tries):
        plan = make_plan({"configurations": configurations, "batch_sizes": [1], "rounds": 3, "seed": seed}, "test")
        order = [step for step in steps(plan) if isinstance(step, MeasureStep)]
        wander = np.cumsum(walk * random.standard_normal(plan.rounds or 0))
        values: dict[str, list[float]] = {"n0": [], "n1": []}
        for number, step in enumerate(order):
            if step.configuration in values:
                level = 1 + drift * number / len(order) + wander[step.repeat] + 0.01 * random.standard_normal()
                values[step.configuration].append(10 * level * (1.03 if step.configuration == "n1" else 1.0))
        # Drift scales the difference of B and A: the true difference is that at the mean level.
        truth = 0.3 * (1 + drift / 2 + float(wander.mean()))
        paired = row(with_rounds(values["n0"]), with_rounds(values["n1"])).difference
        apart = row(with_rounds(values["n0"]), without_rounds(values["n1"])).difference
        assert paired is not None and apart is not None
        assert paired.expanded is not None and apart.expanded is not None
        held += abs(paired.value - truth) <= paired.expanded
        held_unpaired += abs(apart.value - truth) <= apart.expanded
        widths += (paired.expanded, apart.expanded)
    assert 0.93 <= held / tries <= 0.985
    assert held_unpaired / tries >= 0.93
    ratio = widths[0] / widths[1]
    assert ratio < (0.8 if drift else 0.55) if drift or walk else 1.0 < ratio < 1.6


def test_a_note_states_whether_rounds_were_paired(base: dict[str, Any]) -> None:
    one = compared(base)
    assert {item.paired_rounds for item in rows_of(one)} == {3}
    assert "Rounds are paired (3 of them)" in " ".join(render_table(one).split())
    assert comparison_document(one)["comparisons"][0]["results"][0]["paired_rounds"] == 3
    assert next(csv.DictReader(io.StringIO(render_csv(one))))["paired_rounds"] == "3"
    other = json.loads(json.dumps(base).replace(base["run"]["id"], "20260922T141320Z-0a1b2c"))
    two = compared(base, other)
    assert {item.paired_rounds for item in rows_of(two)} == {0}
    assert "Rounds are not paired" in " ".join(render_table(two).split())
    assert rows_of(two, "p50", "")[0].paired_rounds == 0 and rows_of(one, "p50", "")[0].paired_rounds == 3


def test_results_stored_without_rounds_are_compared_as_independent(base: dict[str, Any]) -> None:
    def without(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: without(value) for key, value in item.items() if key != "rounds" or isinstance(value, int)}
        return [without(value) for value in item] if isinstance(item, list) else item

    actual = compared(without(base))
    assert {item.paired_rounds for item in rows_of(actual)} == {0}
    assert {item.verdict for item in rows_of(actual)} == {"significant"}


def test_bad_rounds_are_a_broken_result(base: dict[str, Any]) -> None:
    broken = copy.deepcopy(base)
    broken["results"][0]["throughput"]["rounds"] = [1, 2]
    with pytest.raises(RecordError, match="broken result"):
        compared(broken)
