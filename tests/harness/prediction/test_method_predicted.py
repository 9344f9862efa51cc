"""Predictions are always marked as predicted, and never added to or compared with measured energies in silence."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import responses
import yaml

from joulewatch_exporter import catalog
from joulewatch_harness.analysis.results.numbers import warning_line
from joulewatch_harness.analysis.results.stored_results import kinds_of
from joulewatch_harness.cli import main
from joulewatch_harness.commands.predict import prediction_samples
from joulewatch_harness.delivery import results
from joulewatch_harness.delivery.annotations import Sample
from joulewatch_harness.errors import StorageError
from joulewatch_harness.prediction.figure import make_figure, write_figure
from joulewatch_harness.prediction.fit import fit_all
from joulewatch_harness.prediction.predict import Interval, Prediction, Request, predict
from joulewatch_harness.prediction.report import PREDICTED, predict_csv, predict_json, predict_lines, schema
from support import dashboards
from support.paths import ROOT
from support.simulated_devices import device_rows, networks

RESULT = ROOT / "tests" / "harness" / "compatibility" / "run-0.1.0" / "result.json"
RULES = ROOT / "dashboards" / "rules" / "joulewatch.rules.yaml"
PREDICTION_METRICS = {metric.name for metric in catalog.METRICS if metric.name.startswith("joulewatch_prediction_")}


def prediction(batch_size: int = 1, **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "network": "net", "device": "board", "runtime": "ort", "precision": "fp32", "scope": "devices",
        "batch_size": batch_size, "joules": Interval(median=0.2, low=0.1, high=0.4),
        "throughput": Interval(median=20.0, low=10.0, high=40.0), "regime": "compute", "shares": {"compute": 1.0},
        "parts": (("unseen network", 0.69),), "methods": ("counter", "estimated"),
    }  # fmt: skip
    return Prediction(**{**values, **changes})


UNKNOWN = prediction(8, joules=Interval(median=0.2, low=None, high=None), throughput=None)
"""Without a validated interval."""


def test_every_format_has_the_method() -> None:
    text = predict_lines([prediction(), UNKNOWN])
    assert text[0] == text[-1] == PREDICTED
    assert {line["method"] for line in csv.DictReader(io.StringIO(predict_csv([prediction(), UNKNOWN])))} == {
        "predicted"
    }
    document = json.loads(predict_json([prediction(), UNKNOWN]))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    document["predictions"][0]["method"] = "counter"
    with pytest.raises(jsonschema.ValidationError, match="'predicted' was expected"):
        jsonschema.validate(document, schema())


def test_the_figure_has_dashed_lines_bands_and_a_warning(tmp_path: Path) -> None:
    write_figure([prediction(), prediction(8), UNKNOWN], tmp_path / "figure.svg")
    assert PREDICTED in (tmp_path / "figure.svg").read_text()
    figure = make_figure([prediction(), prediction(8)])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        (line,) = axes.lines
        assert line.get_linestyle() == "--"
        band, _ = axes.collections
        heights = band.get_paths()[0].vertices[:, 1]
        middle = line.get_ydata()[0]
        assert (heights.min(), heights.max()) == pytest.approx((middle / 2, middle * 2))
    assert len(make_figure([UNKNOWN]).axes) == 1
    assert not make_figure([UNKNOWN]).axes[0].collections


def test_a_figure_on_a_full_disk_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "figure.png").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"figure\.png: cannot be written: No space left"):
        write_figure([prediction()], tmp_path / "figure.png")


def test_samples_have_metrics_of_their_own_and_the_method() -> None:
    samples = prediction_samples([prediction(), UNKNOWN], 1_700_000_000.0)
    assert {one.name for one in samples} == PREDICTION_METRICS
    labels = [dict(one.labels) for one in samples]
    assert {one["method"] for one in labels} == {"predicted"}
    assert {one["fitted_to"] for one in labels} == {"counter+estimated"}
    energies = {
        (one["batch_size"], one["quantile"]): sample.value
        for sample, one in zip(samples, labels, strict=True)
        if sample.name == catalog.PREDICTION_ENERGY.name
    }
    assert energies == {("1", "0.05"): 0.1, ("1", "0.5"): 0.2, ("1", "0.95"): 0.4, ("8", "0.5"): 0.2}


def test_no_query_has_predicted_and_other_series() -> None:
    """Neither a panel nor a rule can add or compare them, and the panel of predictions shows the method."""
    queries = [query.expr for name in dashboards.NAMES for query in dashboards.queries(dashboards.load(name))]
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    queries += [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(queries) > 50
    for query in queries:
        # A matcher of names could select predictions together with other series.
        assert "__name__" not in query
        names = set(re.findall(r"\bjoulewatch_\w+|\bjoulewatch:\w+", query))
        assert not names & PREDICTION_METRICS or names <= PREDICTION_METRICS
    panels = [panel for name in dashboards.NAMES for panel in dashboards.panels(dashboards.load(name))]
    predicted = [panel for panel in panels if "joulewatch_prediction_" in json.dumps(panel["targets"])]
    assert [panel["title"] for panel in predicted] == ["Predictions"]
    (headings,) = [one["options"]["renameByName"] for one in predicted[0]["transformations"] if one["id"] == "organize"]
    assert headings["method"] == "Method"


def test_a_predicted_energy_is_compared_with_a_measured_one_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result whose energies are predicted, next to the same one with a counter."""
    assert kinds_of(frozenset({"predicted"})) != kinds_of(frozenset({"counter"}))
    paths = []
    for method in ("counter", "predicted"):
        document = copy.deepcopy(json.loads(RESULT.read_text()))
        document["run"]["id"] = f"run-{method}"
        for group in document["results"]:
            energy = group["energy"]
            for component in (energy["total"], *energy["components"]):
                component["methods"] = [method]
        path = tmp_path / f"{method}.json"
        path.write_text(json.dumps(document))
        paths.append(str(path))
    assert main(["compare", *paths]) == 2
    err = capsys.readouterr().err
    assert "is measured" in err and "is predicted: they are not comparable" in err
    assert main(["compare", *paths, "--mixed"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "PREDICTED by a model, not measured" in text
    assert "is predicted" in text
    assert main(["compare", str(paths[0]), str(tmp_path / "predictions.json")]) == 2
    (tmp_path / "predictions.json").write_text(predict_json([prediction()]))
    assert main(["compare", paths[0], str(tmp_path / "predictions.json")]) == 2
    assert "not the result of a run" in capsys.readouterr().err


def test_the_warning_names_predicted_energies() -> None:
    assert warning_line(["predicted"]) == "!!! Energies PREDICTED by a model, not measured !!!"
    assert warning_line(["predicted", "counter"]).startswith("!!! Some energies PREDICTED")


def test_a_prediction_names_the_methods_of_the_known_devices_and_of_the_calibration() -> None:
    """The third known device was estimated, and the calibration run emulated."""
    shapes = networks()[::3]
    known = [
        dataclasses.replace(row, method="estimated" if seed == 2 else "counter")
        for seed in range(3)
        for row in device_rows(seed, shapes)
    ]
    shape = networks()[1]
    (found,) = predict(
        fit_all(known),
        Request(
            network=shape.name, family=shape.family, features=shape.features, device="board 9",
            calibration=tuple(dataclasses.replace(row, method="emulated") for row in device_rows(9, shapes[:1])),
        ),
    )  # fmt: skip
    assert found.methods == ("counter", "emulated", "estimated")
    assert "Fitted to: !!! Some energies ESTIMATED from a power model" in " ".join(predict_lines([found]))


MODEL_TABLE = ROOT / "tests" / "benchmarks" / "data" / "prediction" / "finn_rfsoc2x2_measured.csv"


@pytest.mark.parametrize(("stored", "code"), [(6 * 8, 0), (3, 1)])
def test_predictions_are_published_and_read_back(
    stored: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = "http://prometheus.test:9090"
    sent: list[Sample] = []
    monkeypatch.setattr(results, "send_samples", lambda _, samples: sent.extend(samples))
    monkeypatch.setattr(results, "LONGEST_READ_BACK_S", 0.0)
    words = ["predict", str(MODEL_TABLE), "--device", "rfsoc2x2", "--prometheus", url, "--publish"]
    figure = tmp_path / "figure.png"
    with responses.RequestsMock() as mocked:
        mocked.add_callback(responses.POST, f"{url}/api/v1/query", callback=lambda _: as_stored(sent[:stored]))
        assert main([*words, "--figure", str(figure)]) == code
    out, err = capsys.readouterr()
    assert PREDICTED in out and figure.is_file()
    assert (f"published {stored} samples" if code == 0 else "accepted 48 predictions but shows 3 of them") in err


def as_stored(samples: list[Sample]) -> tuple[int, dict[str, str], str]:
    """Return Prometheus' answer to a query of raw samples."""
    series = [
        {"metric": {"__name__": one.name, **dict(one.labels)}, "values": [[one.at_ms / 1000, repr(one.value)]]}
        for one in samples
    ]
    return 200, {}, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": series}})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--publish",), "--publish needs --prometheus URL"),
        (("--figure", "figure.txt"), "the name must end in .png, .svg, .pdf"),
    ],
)
def test_bad_outputs_are_refused_at_once(words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(MODEL_TABLE), "--device", "rfsoc2x2", *words]) == 2
    out, err = capsys.readouterr()
    assert text in err and not out
