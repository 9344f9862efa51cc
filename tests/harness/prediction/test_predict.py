"""Predictions: intervals and what they consist of, the limits, and the model file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulewatch_harness.analysis.reports.table import json_text
from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.prediction import report
from joulewatch_harness.prediction.evaluate import evaluated
from joulewatch_harness.prediction.features import Features
from joulewatch_harness.prediction.fit import FEW_ALONE, Fit, fit_all
from joulewatch_harness.prediction.model_file import document_of, read_fit
from joulewatch_harness.prediction.predict import Prediction, Request, batch_part, predict
from support.simulated_devices import coefficients_of, device_rows, networks, true_joules

SHAPES = networks()
LEFT_OUT = SHAPES[1::3]
KNOWN = [shape for shape in SHAPES if shape not in LEFT_OUT]


@pytest.fixture(scope="module")
def boards() -> Fit:
    """Ten simulated boards that measured two thirds of the networks."""
    return evaluated(fit_all([row for seed in range(10) for row in device_rows(seed, KNOWN)]))


def request(shape: int = 1, **changes: Any) -> Request:
    values = {
        "network": SHAPES[shape].name, "family": SHAPES[shape].family, "features": SHAPES[shape].features,
        "device": "board 3",
    }  # fmt: skip
    return Request(**{**values, **changes})


def changed(shape: int = 1, **features: Any) -> Features:
    return dataclasses.replace(SHAPES[shape].features, **features)


def one(fit: Fit, request: Request) -> Prediction:
    (found,) = predict(fit, request)
    return found


def test_the_interval_of_a_known_device_contains_the_truth(boards: Fit) -> None:
    """At least 85 % of the intervals, and none is wider than a factor of 1.5."""
    inside = []
    for seed in range(10):
        for shape in LEFT_OUT:
            found = one(boards, request(network=shape.name, features=shape.features, device=f"board {seed}"))
            assert found.joules.low is not None and found.joules.high is not None
            assert found.joules.high / found.joules.low < 1.5
            inside.append(
                found.joules.low <= true_joules(coefficients_of(seed), shape.features, 1) <= found.joules.high
            )
    assert np.mean(inside) > 0.85


def test_a_prediction_has_throughput_regime_and_origin(boards: Fit) -> None:
    found = one(boards, request())
    assert (found.method, found.batch_size, found.scope, found.notes) == ("predicted", 1, "wall", ())
    assert found.throughput is not None and found.throughput.low is not None and found.throughput.high is not None
    assert found.throughput.low < found.throughput.median < found.throughput.high
    assert found.throughput.median == pytest.approx(4.0 / found.joules.median, rel=0.1)  # 4 W
    assert found.regime == max(found.shares, key=lambda name: found.shares[name])
    assert sum(found.shares.values()) == pytest.approx(1.0)
    ((text, width),) = found.parts
    assert text == "unseen network (conformal, 53 errors)"
    assert found.joules.high == pytest.approx(found.joules.median * math.exp(width))


@pytest.mark.parametrize(
    ("term", "regime"), [("macs_dense", "compute"), ("layers", "launch"), ("input_pixels", "driver")]
)
def test_the_regime_is_the_largest_part(term: str, regime: str) -> None:
    """Devices on which one term is nearly everything."""
    index = {"macs_dense": 0, "layers": 4, "input_pixels": 5}[term]
    rows = [
        dataclasses.replace(row, joules=1e-9 * row.features.vector()[index] + 1e-7)
        for row in device_rows(1, KNOWN)
        if row.features is not None
    ]
    assert one(fit_all(rows), request(device="board 1")).regime == regime


def test_a_measured_latency_is_used(boards: Fit) -> None:
    joules = true_joules(coefficients_of(3), SHAPES[1].features, 1)
    found = one(boards, request(seconds=joules / 4.0))
    assert found.joules.median == pytest.approx(joules, rel=0.1)
    assert found.joules.median < one(boards, request(seconds=joules / 3.0)).joules.median
    assert found.throughput is not None
    assert found.throughput.low == found.throughput.high == pytest.approx(4.0 / joules)
    untimed = fit_all(device_rows(1, KNOWN, timed=False))
    with pytest.raises(PredictionRefusedError, match="no times were measured"):
        one(untimed, request(device="board 1", seconds=0.5))
    assert one(untimed, request(device="board 1")).throughput is None


@pytest.mark.parametrize("factor", [1e3, 1e-3, 1e-300])
def test_a_latency_in_another_unit_is_an_error(boards: Fit, factor: float) -> None:
    """On a known device, and on one with calibration runs."""
    for known in (request(), calibration(3)):
        assert known.features == SHAPES[1].features
        (found,) = predict(boards, known)
        assert found.throughput is not None
        with pytest.raises(
            ConfigError, match=r"more than 100 times above or below the predicted .*: it must be in seconds"
        ):
            predict(boards, dataclasses.replace(known, seconds=factor / found.throughput.median))


def test_for_another_family_a_quarter_is_a_constant_power_times_the_latency(boards: Fit) -> None:
    seconds = true_joules(coefficients_of(3), SHAPES[1].features, 1) / 3.0
    near, far = one(boards, request(seconds=seconds)), one(boards, request(seconds=seconds, family="new"))
    rows = next(model.rows for model in boards.models if model.device == "board 3")
    power = float(np.mean([math.log(row.joules / row.seconds) for row in rows if row.seconds]))
    expected = 0.75 * math.log(near.joules.median) + 0.25 * (power + math.log(seconds))
    assert math.log(far.joules.median) == pytest.approx(expected)


def test_a_latency_is_that_of_one_batch_size() -> None:
    fit = fit_all(device_rows(1, KNOWN, batch_sizes=(1, 4)))
    with pytest.raises(ConfigError, match=r"a measured latency is that of one batch size: choose it with .*: 1, 4"):
        predict(fit, request(device="board 1", seconds=0.1))
    found = one(fit, request(device="board 1", seconds=1e-3, batch_sizes=(4,)))
    assert found.parts[0][0].startswith("unseen network, latency measured (conformal")


def test_a_device_with_one_network_is_predicted_from_the_others(boards: Fit) -> None:
    rows = [row for seed in range(9) for row in device_rows(seed, KNOWN)]
    fit = evaluated(fit_all([*rows, *device_rows(50, KNOWN[:1])]))
    assert one(fit, request(device="board 50")).parts[0][0].startswith("1 calibration network (")


def test_another_family_gets_the_interval_of_an_unseen_family(boards: Fit) -> None:
    near, far = one(boards, request()), one(boards, request(family="new"))
    assert near.joules.median == far.joules.median
    assert far.parts[0][0].startswith("unseen family of networks (conformal, 53 errors, 4 families)")
    assert "family new was not measured on the device" in far.notes[0]
    lone = fit_all(device_rows(1, [shape for shape in SHAPES if shape.family == "plain"]))
    near, far = one(lone, request(device="board 1")), one(lone, request(device="board 1", family="new"))
    assert far.parts[0][1] == pytest.approx(3 * near.parts[0][1])
    assert "not validated" in far.parts[0][0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features": changed(macs_dense=1e12)}, r"outside the fitted range: macs_dense of plain-0.35-128 is 1e\+12"),
        ({"features": changed(input_pixels=224 * 224 + 1)}, "resolution never measured: input_pixels"),
        ({"features": changed(input_pixels=64 * 64)}, "resolution never measured"),
        (
            {"features": changed(main_operators=frozenset({"LSTM", "Conv"}))},
            "operator LSTM of plain-0.35-128 was never",
        ),
        (
            {"features": changed(operators=frozenset({"LSTM", "Conv", "Softmax"}))},
            "operator LSTM of plain-0.35-128 was never",
        ),
        ({"runtime": "other"}, "board 3: runtime other was never measured there .measured: runtime."),
        ({"precision": "int4"}, "precision int4 was never measured there"),
        ({"batch_sizes": (64,)}, "batch size 64 is outside the measured ones .1. by more than a factor of 16"),
    ],
)
def test_what_was_never_measured_is_refused_with_the_run(boards: Fit, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PredictionRefusedError, match=text) as caught:
        predict(boards, request(**changes))
    assert "measure" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_network_without_depthwise_convolutions_says_nothing_about_them() -> None:
    fit = fit_all(device_rows(1, [shape for shape in SHAPES if shape.features.macs_depthwise == 0]))
    with pytest.raises(PredictionRefusedError, match="macs_depthwise"):
        one(fit, request(60, device="board 1", family="plain"))


def test_a_feature_slightly_outside_widens_the_interval(boards: Fit) -> None:
    most = max(shape.features.weight_elements for shape in KNOWN)
    found = one(boards, request(features=changed(weight_elements=1.5 * most)))
    assert "weight_elements" in found.notes[0]
    assert found.parts[0][0].startswith("unseen family")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "bord 3"}, "unknown device 'bord 3'; did you mean board 3?"),
        ({"device": "x"}, "add --calibration RUN"),
    ],
)
def test_an_unknown_device_is_an_error_with_the_nearest(boards: Fit, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(boards, request(**changes))
    assert text in str(caught.value)


def test_several_runtimes_of_a_device_need_a_choice() -> None:
    fit = fit_all([*device_rows(1, KNOWN, runtime="a"), *device_rows(1, KNOWN, runtime="b")])
    with pytest.raises(ConfigError, match="board 1: choose the runtime with --runtime: a, b"):
        predict(fit, request(device="board 1"))
    assert one(fit, request(device="board 1", runtime="b")).runtime == "b"


# Batch sizes


def test_batch_sizes_are_interpolated_between_the_measured_ones() -> None:
    """A straight line in the logarithms: at the geometric mean of two sizes, the geometric mean of the energies."""
    fit = fit_all(device_rows(1, KNOWN, batch_sizes=(1, 16), noise=0.01))
    found = predict(fit, request(device="board 1", batch_sizes=(1, 4, 16)))
    first, middle, last = (prediction.joules.median for prediction in found)
    assert middle == pytest.approx(math.sqrt(first * last))
    assert first > last
    assert [prediction.batch_size for prediction in predict(fit, request(device="board 1"))] == [1, 16]


@pytest.mark.parametrize(
    ("measured", "size", "width"),
    [
        ((1, 16), 16, 0.0), ((1, 16), 32, 0.0), ((1, 16), 64, math.log(2) / 2), ((4, 16), 1, math.log(2) / 2),
        ((8,), 8, 0.0), ((8,), 16, math.log(2)),
    ],
)  # fmt: skip
def test_beyond_a_factor_of_two_the_interval_is_wider(measured: tuple[int, ...], size: int, width: float) -> None:
    assert sum(part for _, part in batch_part(measured, size)) == pytest.approx(width)


@pytest.mark.parametrize("measured", [(1, 2048), (1, 64), (8, 64), (1, 8, 64), (16, 32)])
def test_between_measured_batch_sizes_the_interval_has_room_for_a_constant_part(measured: tuple[int, ...]) -> None:
    """Whatever the share of the constant part, the energy is inside, and at the worst share it is at the lower end."""
    below, above = measured[-2:]
    for size in range(below + 1, above, max((above - below) // 50, 1)):
        place = math.log(size / below) / math.log(above / below)
        errors = []
        for constant in (2.0**power for power in range(-8, 16)):
            logs = [math.log1p(constant / batch_size) for batch_size in (below, size, above)]
            errors.append(logs[0] * (1 - place) + logs[2] * place - logs[1])
        ((text, width),) = batch_part(measured, size)
        assert text == f"batch size {size}, measured {below} and {above}"
        assert max(errors) - 1e-12 <= width < max(errors) * 1.1 + 0.002


# New devices


def calibration(count: int, seed: int = 99) -> Request:
    rows = device_rows(seed, [KNOWN[i] for i in (20, 5, 38, 30, 12)[:count]])
    return request(device=f"board {seed}", calibration=tuple(rows))


def test_calibration_runs_predict_a_new_device(boards: Fit) -> None:
    """The interval contains the truth for most networks, and more runs narrow it."""
    truth = coefficients_of(99)
    ratios = []
    for count in (1, 3, 5):
        base, inside, widths = calibration(count), [], []
        for shape in LEFT_OUT:
            found = one(boards, dataclasses.replace(base, network=shape.name, features=shape.features))
            assert found.joules.low is not None and found.joules.high is not None
            inside.append(found.joules.low <= true_joules(truth, shape.features, 1) <= found.joules.high)
            widths.append(math.log(found.joules.high / found.joules.low))
        assert np.mean(inside) >= 0.8
        ratios.append(math.exp(np.median(widths)))
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[1] < 2.2


def test_a_new_device_names_its_calibration(boards: Fit) -> None:
    found = one(boards, calibration(3))
    assert found.parts[0][0] == "3 calibration networks (conformal over 10 devices)"
    assert (found.device, found.runtime, found.precision) == ("board 99", "runtime", "fp32")
    assert found.throughput is not None
    few = fit_all([row for seed in range(3) for row in device_rows(seed, KNOWN)])
    assert "too few known devices (3) for a validated interval: 9 are needed" in one(few, calibration(3)).notes


def test_a_family_that_no_device_measured_widens_the_interval(boards: Fit) -> None:
    found = one(boards, dataclasses.replace(calibration(3), family="new"))
    assert found.parts[1][0].startswith("unseen family of networks (factor 1.")


def test_bad_calibration_runs_are_refused(boards: Fit) -> None:
    base = calibration(3)
    rails = tuple(dataclasses.replace(row, scope="rails") for row in base.calibration)
    with pytest.raises(
        PredictionRefusedError, match="scopes are mixed: the calibration runs have rails, the fit has wall"
    ):
        predict(boards, dataclasses.replace(base, calibration=rails))
    with pytest.raises(ConfigError, match=r"the calibration runs have no device 'board 98' \(they have: board 99\)"):
        predict(boards, dataclasses.replace(base, device="board 98"))
    one_board = fit_all(device_rows(1, KNOWN))
    with pytest.raises(PredictionRefusedError, match="need at least two known devices"):
        predict(one_board, base)


def test_a_device_with_few_networks_uses_the_others(boards: Fit) -> None:
    rows = [row for seed in range(9) for row in device_rows(seed, KNOWN)]
    fit = evaluated(fit_all([*rows, *device_rows(50, KNOWN[: FEW_ALONE - 1 : 3])]))
    assert "calibration networks" in one(fit, request(device="board 50")).parts[0][0]
    alone = fit_all(device_rows(50, KNOWN[:13:3]))
    assert "Student's t, 5 errors" in one(alone, request(device="board 50")).parts[0][0]


# The model file


def test_a_model_file_gives_the_same_predictions(boards: Fit, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json_text(document_of(boards)))
    again = read_fit(path)
    assert again.models[0].rows[0].idle_watts is None
    assert document_of(again) == document_of(boards)
    for wanted in (request(), request(family="new", seconds=1e-3), calibration(3)):
        assert report.predict_json(predict(again, wanted)) == report.predict_json(predict(boards, wanted))


def test_a_model_file_is_readable(boards: Fit) -> None:
    document = json.loads(json_text(document_of(boards)))
    assert document["version"] == 1
    model = document["models"][0]
    assert (model["device"], model["scope"]) == ("board 0", "wall")
    assert set(model["limits"]) == {"features", "batch_sizes", "families", "operators"}
    energy = model["fits"]["energy"]["1"]
    assert set(energy["coefficients"]) == {
        "macs_dense", "macs_depthwise", "weight_elements", "activation_elements", "layers", "input_pixels", "constant",
    }  # fmt: skip
    assert energy["half_width_of_90_percent"]["unseen_network"]["basis"] == "conformal, 53 errors"
    assert document["evaluation"][0]["name"] == "known device, unseen network"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"version": 2},
            "version 2 of joulewatch .*; this joulewatch reads version 1, because other versions fit other",
        ),
        ({"format": "x"}, "not a model file; 'joulewatch fit RUN... --out model.json' writes one"),
        ({"models": [{}]}, "broken model file: 'scope' is missing"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    document = document_of(fit_all(device_rows(1, KNOWN[:9])))
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(ConfigError, match=text):
        read_fit(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_fit(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_fit(tmp_path / "none.json")


def _change(document: dict[str, Any], path: Sequence[str | int], value: Any) -> None:
    """Replace or add one value of a document; None removes it."""
    part: Any = document
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value


ROW = ("models", 0, "rows", 0)
ENERGIES = ("models", 0, "fits", "energy")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("models",), [], "no models"),
        (("version",), True, "version True of joulewatch"),
        (("models", 0, "scope"), "plug", "unknown scope plug"),
        (("models", 0, "runtime"), "a\x1b[31m", "runtime is not a printable text"),
        (("models", 0, "rows"), [], "fewer than 2 networks"),
        ((*ROW, "joules"), "0.1", "joules: '0.1'"),
        ((*ROW, "joules"), math.nan, "joules: 'nan'"),
        ((*ROW, "joules"), -1, "joules: '-1'"),
        ((*ROW, "joules"), None, "'joules' is missing"),
        ((*ROW, "seconds"), 0, "seconds: '0'"),
        ((*ROW, "network"), ["x"], "network is not a printable text"),
        ((*ROW, "batch_size"), 0, "batch_size: 0"),
        ((*ROW, "features"), [1, 2], "zip"),
        ((*ENERGIES, "x"), {}, "invalid literal for int"),
        ((*ENERGIES, "7"), {}, "energy at batch size 7: no rows"),
        ((*ENERGIES, "1", "coefficients", "macs_dense"), "1e-9", "energy at batch size 1, macs_dense: '1e-9'"),
        ((*ENERGIES, "1", "coefficients", "macs_dense"), 1e300, "energy at batch size 1, macs_dense: '1e.300'"),
        ((*ENERGIES, "1", "coefficients", "layers"), None, "'layers' is missing"),
        ((*ENERGIES, "1", "errors", "network"), [0.1], "errors of network: 1 value for 9 rows"),
        ((*ENERGIES, "1", "errors", "network_scale"), [0] * 9, "errors of network_scale: '0'"),
        ((*ENERGIES, "1", "errors", "family"), [1e9] * 9, "errors of family: 1000000000.0"),
        (("new_devices", "family_widening"), -1, "family_widening: '-1'"),
    ],
)
def test_a_model_file_that_was_changed_is_refused_in_one_line(
    tmp_path: Path, path: Sequence[str | int], value: Any, text: str
) -> None:
    document = document_of(fit_all(device_rows(1, KNOWN[:9])))
    _change(document, path, value)
    (tmp_path / "model.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=text) as caught:
        read_fit(tmp_path / "model.json")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "", "{", "\ufeff{}"])
def test_a_file_that_is_not_json_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_fit(tmp_path / "model.json")


def test_the_order_of_coefficients_in_a_model_file_does_not_matter(tmp_path: Path) -> None:
    fit = fit_all(device_rows(1, KNOWN[:9]))
    document = document_of(fit)
    fitted = document["models"][0]["fits"]["energy"]["1"]
    fitted["coefficients"] = dict(reversed(fitted["coefficients"].items()))
    (tmp_path / "model.json").write_text(json.dumps(document))
    read = read_fit(tmp_path / "model.json")
    assert read.models[0].rooflines["energy"][1].coefficients == pytest.approx(
        fit.models[0].rooflines["energy"][1].coefficients
    )
