"""A device without any measured network, predicted from its card."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.card_errors import device_half_width, held_out_errors, read_results
from benchmarks.prediction import TABLE as EDGE
from joulewatch_harness.cli import main
from joulewatch_harness.commands.predict import prediction_samples
from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.prediction.card_alone import (
    PUBLISHED_HALF_WIDTH,
    card_of,
    measured_name,
    merit,
    predict_from_card,
)
from joulewatch_harness.prediction.cards import find_card
from joulewatch_harness.prediction.converters import read_table
from joulewatch_harness.prediction.evaluate import evaluated
from joulewatch_harness.prediction.figure import write_figure
from joulewatch_harness.prediction.fit import Fit, fit_all
from joulewatch_harness.prediction.model_file import document_of
from joulewatch_harness.prediction.predict import Request
from joulewatch_harness.prediction.table import Row
from support.simulated_devices import device_rows, networks

SHAPES = networks()[::4]
GPUS = ("NVIDIA A30", "NVIDIA L4", "NVIDIA H100 PCIe", "NVIDIA L40S", "Tesla T4")


def gpu_rows(name: str, seed: int = 1, scatter: float = 0.0) -> list[Row]:
    """Return energies of a GPU that are its power per peak rate times what all devices share."""
    own = merit(find_card(name), "fp16")
    assert own is not None
    factor = math.exp(own + scatter * np.random.default_rng(seed).normal()) * 1e12
    rows = device_rows(1, SHAPES, noise=0.0, device=name, precision="fp16")
    return [dataclasses.replace(row, joules=row.joules * factor) for row in rows]


@pytest.fixture(scope="module")
def gpus() -> Fit:
    return fit_all([row for name in GPUS for row in gpu_rows(name)])


def request(**changes: Any) -> Request:
    shape = SHAPES[3]
    values = {"network": shape.name, "family": shape.family, "features": shape.features, "device": "a100-sxm4-40gb"}
    return Request(**{**values, **changes})


def test_the_power_per_peak_rate_scales_the_known_devices(gpus: Fit) -> None:
    (one,) = predict_from_card(gpus, request(), find_card("a100-sxm4-40gb"))
    truth = gpu_rows("a100-sxm4-40gb")[3].joules
    assert one.joules.median == pytest.approx(truth, rel=0.05)
    assert (one.device, one.precision, one.scope, one.throughput) == ("NVIDIA A100-SXM4-40GB", "fp16", "wall", None)
    assert "from the card alone" in one.notes[-1]


def test_devices_that_agree_by_chance_do_not_narrow_the_published_interval(gpus: Fit) -> None:
    (one,) = predict_from_card(gpus, request(), find_card("a100-sxm4-40gb"))
    assert one.parts == (("card alone (leave-one-card-out, 5 cards)", PUBLISHED_HALF_WIDTH),)


def test_devices_that_disagree_widen_the_interval() -> None:
    fit = fit_all([row for seed, name in enumerate(GPUS) for row in gpu_rows(name, seed, scatter=2.0)])
    (one,) = predict_from_card(fit, request(), find_card("a100-sxm4-40gb"))
    assert one.parts[0][1] > 1.5 * PUBLISHED_HALF_WIDTH


def test_numbers_have_two_digits(gpus: Fit) -> None:
    (one,) = predict_from_card(gpus, request(), find_card("a100-sxm4-40gb"))
    for value in (one.joules.low, one.joules.median, one.joules.high):
        assert value is not None and value == float(f"{value:.2g}")


@pytest.mark.parametrize(
    ("card", "changes", "text"),
    [
        (
            "a10",
            {},
            "NVIDIA A10.*: the card lacks peak_operations_per_second.fp16: measure one to three networks on it",
        ),
        ("alveo-u280", {}, "an FPGA needs FINN's reports"),
        ("a100-sxm4-40gb", {"precision": "int8"}, "the fit has 0 devices of kind gpu, int8"),
        ("a100-sxm4-40gb", {"runtime": "other"}, "the fit has 0 devices of kind gpu, fp16.*3 are needed"),
        ("a100-sxm4-40gb", {"seconds": 0.1}, "--latency is of no use without a measured energy"),
        ("a100-sxm4-40gb", {"batch_sizes": (1000,)}, "batch size 1000 is outside the measured ones"),
    ],
)
def test_what_a_card_cannot_give_is_refused_by_name(gpus: Fit, card: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PredictionRefusedError, match=text):
        predict_from_card(gpus, request(**changes), find_card(card))


def test_a_network_outside_the_measured_ones_is_refused(gpus: Fit) -> None:
    far = dataclasses.replace(SHAPES[3].features, layers=1000.0)
    with pytest.raises(PredictionRefusedError, match="outside the fitted range: layers"):
        predict_from_card(gpus, request(features=far), find_card("a100-sxm4-40gb"))


def test_two_precisions_need_a_choice(gpus: Fit) -> None:
    fit = dataclasses.replace(
        gpus, models=(*gpus.models, *fit_all(device_rows(1, SHAPES, device="NVIDIA A30", precision="fp32")).models)
    )
    with pytest.raises(ConfigError, match=r"several values of precision .fp16, fp32.: choose it with --precision"):
        predict_from_card(fit, request(), find_card("a100-sxm4-40gb"))


def test_a_device_that_was_measured_is_not_predicted_from_its_card(gpus: Fit) -> None:
    assert card_of(gpus, "NVIDIA A30") is None
    assert measured_name(gpus, find_card("a30")) == "NVIDIA A30"
    assert card_of(gpus, "no such device") is None
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        card_of(gpus, "none.yaml")


def test_the_published_interval_is_that_of_the_benchmark() -> None:
    errors = held_out_errors(read_results())
    assert len(errors) == 5
    assert device_half_width(errors) == pytest.approx(PUBLISHED_HALF_WIDTH, abs=0.01)


def test_the_published_boards_have_no_complete_cards() -> None:
    """So a fit of them gives no estimate from a card alone: the reason and the run are named."""
    fit = fit_all(read_table(EDGE))
    first = fit.models[0].rows[0]
    assert first.features is not None
    jetson = request(features=first.features, family=first.family, precision="fp32")
    text = "Jetson.*the fit has 0 devices of kind board, fp32, scope wall.*: measure one to three networks on it"
    with pytest.raises(PredictionRefusedError, match=text):
        predict_from_card(fit, jetson, find_card("jetson-agx-orin-64gb"))


def test_the_command_predicts_a_card_and_says_so(
    gpus: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document_of(evaluated(gpus))))
    words = ["predict", SHAPES[3].name, "--fit", str(path), "--device"]
    assert main([*words, "a100-sxm4-40gb"]) == 0
    text = capsys.readouterr().out
    assert "on NVIDIA A100-SXM4-40GB, wall" in text
    assert "×/÷ 6.33 card alone (leave-one-card-out, 5 cards)" in text
    assert "Note: from the card alone" in text
    assert main([*words, "a30"]) == 0
    assert "on NVIDIA A30, wall" in capsys.readouterr().out
    assert main([*words, "alveo-u280"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([*words, "no such device"]) == 2
    assert "unknown device 'no such device'" in capsys.readouterr().err


def test_a_prediction_from_a_card_has_a_figure_and_samples_without_a_rate(gpus: Fit, tmp_path: Path) -> None:
    predictions = predict_from_card(gpus, request(), find_card("a100-sxm4-40gb"))
    write_figure(predictions, tmp_path / "card.svg")
    assert "PREDICTED, not measured" in (tmp_path / "card.svg").read_text(encoding="utf-8")
    samples = prediction_samples(predictions, 1.0)
    assert {dict(sample.labels)["quantile"]: sample.value for sample in samples} == {
        "0.05": predictions[0].joules.low,
        "0.5": predictions[0].joules.median,
        "0.95": predictions[0].joules.high,
    }
    assert {dict(sample.labels)["method"] for sample in samples} == {"predicted"}
