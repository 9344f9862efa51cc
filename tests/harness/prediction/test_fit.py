"""All devices together: transfer to new ones, and the errors of what was held out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.converters import read_table
from joulewatch_harness.prediction.devices import NOISE, Views, condition, quantile, spread_choice
from joulewatch_harness.prediction.evaluate import _widths_left_out, baseline_errors, baseline_wins, cases, evaluated
from joulewatch_harness.prediction.fit import (
    ENERGY,
    Case,
    Fit,
    as_new,
    device_factors,
    fit_all,
    fit_device,
    known_for,
    representatives,
    scores,
    transfer,
)
from joulewatch_harness.prediction.roofline import half_width
from joulewatch_harness.prediction.table import Row
from support.paths import ROOT
from support.simulated_devices import device_rows, networks

DATA = ROOT / "tests" / "benchmarks" / "data" / "prediction"
SHAPES = networks()


@pytest.fixture(scope="module")
def boards() -> Fit:
    """Twelve simulated boards with 5 % noise."""
    return evaluated(fit_all([row for seed in range(12) for row in device_rows(seed, SHAPES[::2])]))


@pytest.fixture(scope="module")
def published() -> Fit:
    """The measured boards."""
    return evaluated(fit_all(read_table(DATA / "edge_cnn_energy.csv")))


def case(fit: Fit, name: str) -> Case:
    (found,) = (case for case in fit.evaluation if case.name == name)
    return found


# Limits of the goals of the predictor; the comments are the figures seen.
@pytest.mark.parametrize(
    ("name", "median", "p90"),
    [
        ("known device, unseen network", 0.04, 0.13),  # 0.038, 0.091
        ("known device, unseen network, latency measured", 0.04, 0.10),  # 0.027: noise of 5 % in energy and latency
        ("unseen device, 1 calibration run", 0.15, 0.45),  # 0.102
        ("unseen device, 3 calibration runs", 0.08, 0.25),  # 0.057, 0.14
        ("device and family unseen, 3 calibration runs", 0.12, 0.40),  # 0.090
    ],
)
def test_simulated_devices_are_predicted_near_their_noise(boards: Fit, name: str, median: float, p90: float) -> None:
    found = case(boards, name)
    assert found.median is not None and found.p90 is not None
    assert found.median <= median
    assert found.p90 <= p90
    assert not found.note


@pytest.mark.parametrize(
    ("name", "median", "p90"),
    [
        ("known device, unseen network", 0.03, 0.10),  # 0.028, 0.095
        ("known device, unseen network, latency measured", 0.02, 0.07),  # 0.016
        ("known device, unseen family", 0.10, 0.35),  # 0.090: two families only
        ("known device, unseen family, latency measured", 0.065, 0.17),  # 0.060, 0.159
        ("unseen device, 1 calibration run", 0.10, 0.30),  # 0.074
        ("unseen device, 3 calibration runs", 0.055, 0.21),  # 0.049
        ("unseen device, 3 calibration runs, latency measured", 0.045, 0.15),  # 0.038
    ],
)
def test_measured_boards_are_predicted_as_well_as_published(
    published: Fit, name: str, median: float, p90: float
) -> None:
    found = case(published, name)
    assert found.median is not None and found.p90 is not None
    assert found.median <= median
    assert found.p90 <= p90
    assert found.macs is None or found.macs > 2 * found.median


def test_intervals_cover_about_as_often_as_they_claim(boards: Fit, published: Fit) -> None:
    """On the worst of twelve simulated boards 70 %: its coefficients differ in a way that three runs do not show."""
    for fit, worst in ((boards, 0.65), (published, 0.8)):
        for name in ("known device, unseen network", "unseen device, 3 calibration runs"):
            found = case(fit, name)
            assert found.coverage is not None and found.worst_coverage is not None and found.ratio is not None
            assert 0.85 <= found.coverage <= 0.96
            assert found.worst_coverage >= worst
            assert found.ratio <= 2.2


def test_few_devices_are_said_to_be_few(published: Fit) -> None:
    notes = {case.note for case in published.evaluation}
    assert notes == {"", "too few devices (4; 9 needed)"}


def test_a_baseline_that_is_better_is_named(published: Fit) -> None:
    sentences = baseline_wins(published)
    assert len(sentences) == 2
    assert "constant power × latency is better for unseen networks (1.3%, model 1.7%, n = 37)" in sentences[0]
    assert case(published, "known device, unseen family").winner == "constant power × latency"
    assert case(published, "known device, unseen network").winner == ""


def test_baselines_are_fitted_by_relative_least_squares() -> None:
    train = device_rows(0, SHAPES[:2], noise=0.0)
    macs, power = baseline_errors(train, train)
    assert np.allclose(macs, 0.0, atol=1e-6)  # two rows, a and b
    assert np.allclose(power, 0.0, atol=1e-9)  # the power is constant
    assert baseline_errors(train, device_rows(0, SHAPES[2:3], timed=False))[1] == []


# Transfer


def views(logs: list[list[float]]) -> Views:
    """Devices whose energy is all constant."""
    shares = np.zeros((len(logs), len(logs[0]), 7))
    shares[:, :, 6] = 1.0
    return Views(tuple(f"board {i}" for i in range(len(logs))), np.array(logs), shares)


def test_one_run_sets_the_level_of_a_new_device() -> None:
    """Three devices of one shape: a device 10 times as hungry is 10 times as hungry for every network."""
    known = views([[0.0, 1.0, 2.0], [0.5, 1.5, 2.5], [-0.5, 0.5, 1.5]])
    found = condition(known, np.array([0]), np.array([10.0]))
    assert found.mean[1:] == pytest.approx(math.log(10.0) + np.array([1.0, 2.0]), abs=0.02)
    assert (found.scale[1:] < condition(known, np.array([], dtype=int), np.zeros(0)).scale[1:]).all()


def test_without_runs_the_prediction_is_the_mean_of_the_boards() -> None:
    """A board with two models counts as one."""
    both = views([[0.0], [0.0], [3.0]])
    both = Views(("a", "a", "b"), both.logs, both.shares)
    assert condition(both, np.array([], dtype=int), np.zeros(0)).mean == pytest.approx([1.5])


def test_runs_that_contradict_the_prior_widen_the_interval() -> None:
    known = views([[0.0, 1.0, 2.0], [0.1, 1.1, 2.1]])
    agreeing = condition(known, np.array([0, 1]), np.exp([0.0, 1.0]))
    contradicting = condition(known, np.array([0, 1]), np.exp([0.0, 3.0]))
    assert contradicting.scale[2] > 3 * agreeing.scale[2]
    assert agreeing.scale[2] >= math.sqrt(NOISE) * 0.3


def test_each_device_has_the_same_weight_in_the_quantile() -> None:
    """A device with many networks does not hide the others; a single device gives no interval."""
    many, few = np.full(1000, 1.0), np.array([2.0, 3.0])
    assert quantile([many, few])[0] == 3.0
    assert quantile([many]) == (math.inf, "none: 1 device to compare with")
    # 40 devices: level 0.9 * 41 / 40 = 0.9225, so the 37th of 40 equal weights.
    assert quantile([np.array([float(i)]) for i in range(1, 41)])[0] == 37.0


def test_the_quantile_covers_most_networks_on_most_devices_if_these_are_enough() -> None:
    """Of 21 devices, five have ten times larger errors. 90 % of the networks on 85 % of the devices, the 18th of their
    quantiles, is more than 94 % of all."""
    like, unlike = np.arange(0.0, 101.0), np.arange(0.0, 1010.0, 10.0)
    assert quantile([like] * 16 + [unlike] * 5)[0] == pytest.approx(900.0)
    assert quantile([like] * 13 + [unlike] * 4)[0] < 900.0


def test_calibration_networks_are_spread_over_the_sizes() -> None:
    sizes = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    assert [sizes[i] for i in spread_choice(sizes, 1)] == [6.0]
    assert [sizes[i] for i in spread_choice(sizes, 3)] == [2.0, 6.0, 10.0]


def test_known_devices_have_the_scope_and_if_possible_the_precision() -> None:
    models = [
        fit_device(device_rows(seed, SHAPES[::8], device=f"board {seed}", precision=precision), with_errors=False)
        for seed, precision in ((0, "fp32"), (1, "fp32"), (2, "int8"))
    ]
    assert len(known_for(models, "wall", "fp32", ENERGY)) == 2
    assert len(known_for(models, "wall", "int8", ENERGY)) == 3
    assert known_for(models, "rails", "fp32", ENERGY) == []
    assert [model.device for model in known_for(models, "wall", "fp32", ENERGY, ("board 0",))] == ["board 1", "board 2"]


def test_a_device_is_not_part_of_its_own_prediction(boards: Fit) -> None:
    """Another model of the same board, of another runtime, must not help either."""
    model = boards.models[0]
    twin = fit_device(device_rows(0, SHAPES[::2], device=model.device, runtime="other"), with_errors=False)
    new, with_twin = as_new(boards.models, model, ENERGY), as_new([*boards.models, twin], model, ENERGY)
    assert new is not None and with_twin is not None
    assert new.views.boards == with_twin.views.boards
    assert model.device not in new.views.boards
    assert len(scores(new, ENERGY, 3)) == 2 * (len(new.rows) - 3)
    assert (transfer(new.views, ENERGY, new.rows, [0, 5, 9]).scale > 0).all()


def test_factors_without_a_device_do_not_use_it(boards: Fit) -> None:
    only = device_factors(boards.models[1:], kinds=(ENERGY,), counts=(3,))
    excluded = device_factors(boards.models, (boards.models[0].device,), kinds=(ENERGY,), counts=(3,))
    assert only == excluded


# Bad input


def test_a_network_without_features_is_named() -> None:
    rows = read_table(DATA / "finn_rfsoc2x2_measured.csv")
    with pytest.raises(ConfigError, match=r"row 2, .*row 7 and 2 more: no features of the network"):
        fit_all(rows)


def test_a_single_network_is_no_fit() -> None:
    with pytest.raises(ConfigError, match="row 2: no device has two networks; a fit needs two"):
        fit_all(device_rows(1, SHAPES[:1]))
    both = fit_all([*device_rows(1, SHAPES[:1]), *device_rows(2, SHAPES[:9])])
    assert [bool(model.rooflines) for model in both.models] == [False, True]


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_unit_that_only_one_row_has_is_detected_without_times(factor: float) -> None:
    rows = device_rows(1, SHAPES[::4], timed=False)
    rows[5] = dataclasses.replace(rows[5], joules=rows[5].joules * factor)
    with pytest.raises(ConfigError, match=r"^row 7: mixed units\?"):
        fit_all(rows)


def test_a_third_of_the_rows_in_another_unit_is_detected_without_times() -> None:
    rows = device_rows(1, SHAPES[::4], timed=False)
    mixed = [dataclasses.replace(row, joules=row.joules * (1e3 if i % 3 == 1 else 1)) for i, row in enumerate(rows)]
    with pytest.raises(ConfigError, match=r"row 3, row 6, .*: mixed units\?"):
        fit_all(mixed)


def test_a_single_device_without_times_has_its_own_errors_only() -> None:
    fit = evaluated(fit_all(device_rows(1, SHAPES[:20], timed=False)))
    assert [case.name for case in fit.evaluation if case.n] == ["known device, unseen network"]
    assert set(fit.models[0].rooflines) == {ENERGY}
    assert fit.factors == {}


def test_few_networks_per_device_are_predicted_with_the_other_devices() -> None:
    """Five networks do not determine seven coefficients, but twenty such devices do."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for seed in range(20):
        rows += device_rows(seed, [SHAPES[i] for i in random.choice(len(SHAPES), 5, replace=False)])
    found = next(iter(cases(fit_all(rows))))
    assert found.median is not None and found.macs is not None
    assert found.median < 0.1 < found.macs


def test_many_models_are_represented_by_some_of_as_many_devices_as_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row
        for seed, runtimes in ((0, "abc"), (1, "ab"), (2, "a"))
        for runtime in runtimes
        for row in device_rows(seed, SHAPES[::20], runtime=runtime)
    ]
    models = fit_all(rows).models
    assert representatives(models) == list(models)
    monkeypatch.setattr("joulewatch_harness.prediction.fit.MOST_COMPARED", 4)
    chosen = [(model.device, model.runtime) for model in representatives(models)]
    assert chosen == [("board 0", "a"), ("board 0", "b"), ("board 1", "a"), ("board 2", "a")]


@pytest.mark.parametrize("count", [5, 9, 10, 11, 40])
def test_the_width_without_each_score_is_that_of_the_others(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count).round(1)
    folds = [np.array([i]) for i in range(count)]
    assert _widths_left_out(scores, folds) == [half_width(np.delete(scores, i))[0] for i in range(count)]
