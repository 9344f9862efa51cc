from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import jsonschema
import pytest

from joulewatch_harness.analysis import report
from joulewatch_harness.analysis.figure import write_figure
from joulewatch_harness.analysis.publish import publish, published_at_s, result_samples
from joulewatch_harness.analysis.summary import Estimate, RunResult, analyze_run
from joulewatch_harness.errors import ConfigError
from support.synthetic import TWO_SOCKETS, ListSource, World, make_world, sensor

ESTIMATED = (sensor("socket0", "package", collector="estimate", method="estimated", accuracy=0.5, model="EPYC table"),)


def result_of(world: World) -> RunResult:
    assert world.record is not None
    return analyze_run(world.record, ListSource(world.scrapes()))


@pytest.fixture(scope="module")
def measured() -> RunResult:
    return result_of(make_world(TWO_SOCKETS, noise=0.01))


@pytest.fixture(scope="module")
def estimated() -> RunResult:
    return result_of(make_world(ESTIMATED, noise=0.01))


def estimate(value: float, expanded: float) -> Estimate:
    return Estimate(value, expanded / 2, expanded, 2.0, math.inf, ())


@pytest.mark.parametrize(
    ("value", "expanded", "text"),
    [
        (12.3456, 0.5678, "12.35 ± 0.57"),
        (12.3456, 0.0996, "12.35 ± 0.10"),
        (123.456, 12.3, "123 ± 12"),
        (174.2, 99.7, "174 ± 100"),
        (0.0, 0.0, "0"),
        (3.14159, 0.0, "3.142"),
    ],
)
def test_two_digits_of_the_uncertainty_are_shown(value: float, expanded: float, text: str) -> None:
    assert report.with_uncertainty(estimate(value, expanded)) == text


def test_si_prefixes() -> None:
    assert report.prefix_for([0.003, 0.02, 0.5]) == (-3, "m")
    assert report.prefix_for([2e-7]) == (-9, "n")
    assert report.prefix_for([1e-6]) == (-6, "µ")
    assert report.prefix_for([]) == (0, "")
    assert report.quantity(0.00342, "J") == "3.420 mJ"


def test_the_table_fits_a_terminal_and_names_what_measured(measured: RunResult) -> None:
    text = report.render_table(measured, width=80)
    assert all(len(line) <= 80 for line in text.splitlines()), text
    for word in ("net/onnxruntime/fp32", "net/onnxruntime/int8", "mJ per inference", "energy counter", "psys/total"):
        assert word in text
    assert "ESTIMATED" not in text and "2x AMD EPYC 7763" in text
    assert "±" in text and "with this network loaded" in " ".join(text.split())


def test_components_give_way_on_a_narrow_terminal(measured: RunResult) -> None:
    text = report.render_table(measured, width=60)
    assert "do not fit" in " ".join(text.split())
    assert "  cpu  " not in text


def test_estimates_are_loud_everywhere(estimated: RunResult, tmp_path: Path) -> None:
    text = report.render_table(estimated, width=80, budget=True)
    assert text.count("!!! Energies ESTIMATED from a power model, not measured !!!") == 2
    assert "accuracy (estimate)" in text and "EPYC table" in text
    document = report.result_document(estimated)
    assert document["estimated"] is True and document["emulated"] is False
    rows = list(csv.DictReader(io.StringIO(report.render_csv(estimated))))
    assert {row["total_method"] for row in rows} == {"estimated"}
    write_figure(estimated, tmp_path / "figure.svg")
    assert "ESTIMATED from a power model" in (tmp_path / "figure.svg").read_text()
    assert report.warning_line(["counter", "estimated"]).startswith("!!! Some energies ESTIMATED")
    assert report.warning_line(["emulated"]) == "!!! Energies from an EMULATED machine, not from hardware !!!"
    assert report.warning_line(["counter", "integrated"]) == ""


def test_the_json_is_what_its_schema_says(measured: RunResult, estimated: RunResult) -> None:
    schema = report.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == report.SCHEMA_VERSION
    for result in (measured, estimated, result_of(make_world([], batch_sizes=(1,)))):
        document = json.loads(report.render_json(result))
        jsonschema.validate(document, schema)
    group = json.loads(report.render_json(measured))["results"][0]
    total = group["energy"]["total"]
    assert total["gross"]["unit"] == "J" and total["gross"]["budget"] and total["methods"] == ["counter"]
    assert total["gross"]["value"] > total["net"]["value"] > 0


def test_the_csv_is_in_base_units(measured: RunResult) -> None:
    rows = list(csv.DictReader(io.StringIO(report.render_csv(measured))))
    assert len(rows) == len(measured.groups)
    total = measured.groups[0].total.gross
    assert total is not None
    assert float(rows[0]["total_gross_joules_per_inference"]) == pytest.approx(total.value, rel=1e-8)
    assert float(rows[0]["latency_p99_seconds"]) > float(rows[0]["latency_p50_seconds"])


def test_missing_is_a_word_and_never_a_zero(measured: RunResult) -> None:
    world = make_world(TWO_SOCKETS, batch_sizes=(1,), edges=False)
    assert world.record is not None
    result = analyze_run(world.record, None)
    text = report.render_table(result)
    assert "missing" in text and "no_samples" in text
    rows = list(csv.DictReader(io.StringIO(report.render_csv(result))))
    assert rows[0]["total_gross_joules_per_inference"] == ""
    jsonschema.validate(json.loads(report.render_json(result)), report.schema())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_figure_is_written_by_its_suffix(measured: RunResult, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure{suffix}"
    report.write_figure(measured, path, net=True)
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_a_figure_without_energies_and_bad_names(tmp_path: Path) -> None:
    nothing = result_of(make_world([], batch_sizes=(1,)))
    write_figure(nothing, tmp_path / "nothing.svg")
    assert "no energy could be measured" in (tmp_path / "nothing.svg").read_text()
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        write_figure(nothing, tmp_path / "figure.jpg")
    with pytest.raises(ConfigError, match="does not exist"):
        write_figure(nothing, tmp_path / "none" / "figure.png")


def test_results_are_published_with_method_and_basis(measured: RunResult) -> None:
    samples = result_samples(measured, 1000.0)
    energies = [item for item in samples if item.name == "joulewatch_result_energy_per_inference_joules"]
    labels = [dict(item.labels) for item in energies]
    assert {item["component"] for item in labels} == {"cpu", "memory", "total", "node"}
    assert {item["basis"] for item in labels} == {"gross", "net"}
    assert {item["method"] for item in labels} == {"counter"}
    assert {item["batch_size"] for item in labels} == {"1", "8", "64"}
    assert {item.at_ms for item in samples} == {1_000_000}


def test_old_results_are_published_at_the_end_of_their_run(measured: RunResult) -> None:
    end = measured.record.end
    assert end is not None
    assert published_at_s(measured, end.ended_at_s + 60) == end.ended_at_s + 60
    assert published_at_s(measured, end.ended_at_s + 7200) == end.ended_at_s
    killed = dataclasses.replace(measured, record=dataclasses.replace(measured.record, end=None))
    assert published_at_s(killed, end.ended_at_s + 7200) == measured.record.windows[-1].end_s
    assert callable(publish)
