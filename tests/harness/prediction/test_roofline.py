"""The model of one device: coefficients, errors of what was held out, intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from joulewatch_harness.prediction import devices, roofline
from joulewatch_harness.prediction.devices import alone, held_out
from joulewatch_harness.prediction.fit import ENERGY, ENERGY_WITH_TIME, points_of
from joulewatch_harness.prediction.roofline import design, fit, half_width, nnls, nnls_left_out
from support.simulated_devices import coefficients_of, device_rows, networks


@pytest.mark.parametrize("seed", range(5))
def test_nnls_is_the_best_of_all_subsets_of_columns(seed: int) -> None:
    """The constrained minimum is the best unconstrained one, over all subsets, that has no negative coefficient."""
    random = np.random.default_rng(seed)
    matrix, target = random.normal(size=(12, 5)), random.normal(size=12)

    def loss(x: np.ndarray) -> float:
        return float(((matrix @ x - target) ** 2).sum())

    best = loss(np.zeros(5))
    for size in range(1, 6):
        for columns in itertools.combinations(range(5), size):
            x = np.zeros(5)
            x[list(columns)] = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, loss(x))
    found = nnls(matrix, target, 0.0)
    assert (found >= 0).all()
    assert loss(found) == pytest.approx(best, rel=1e-9)


def test_known_coefficients_are_recovered_without_noise() -> None:
    rows = device_rows(3, networks(), noise=0.0)
    points = points_of(rows, ENERGY)
    model = fit(points, 1.0)
    predicted = np.exp(model.log_values(points.features, points.batch_sizes))
    assert predicted == pytest.approx(points.values, rel=0.02)
    shares = model.parts(points.features, points.batch_sizes) / points.values[:, None]
    true = design(points.features, points.batch_sizes) * coefficients_of(3) / points.values[:, None]
    assert shares[:, 0] == pytest.approx(true[:, 0], abs=0.1)  # dense multiply-accumulates


def test_weights_layers_and_the_constant_are_paid_once_per_batch() -> None:
    features = np.array([[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]])
    assert design(features, np.array([10.0])).tolist() == [[10, 20, 3, 40, 5, 60, 0.1]]


def test_few_networks_are_fitted_with_all_batch_sizes() -> None:
    """Three networks at one batch size do not determine seven coefficients; at four they predict a fourth network."""
    shapes = networks()
    rows = device_rows(4, [shapes[number] for number in (2, 25, 50)], noise=0.0, batch_sizes=(1, 4, 16, 64))
    model = fit(points_of(rows, ENERGY), 4.0)
    (fourth,) = device_rows(4, [shapes[31]], noise=0.0, batch_sizes=(4,))
    points = points_of([fourth], ENERGY)
    assert math.log(fourth.joules) == pytest.approx(model.log_values(points.features, points.batch_sizes)[0], abs=0.15)


def test_the_row_that_is_held_out_does_not_change_its_own_prediction() -> None:
    rows = device_rows(5, networks()[:20])
    points, names = points_of(rows, ENERGY), [row.network for row in rows]
    errors, scales = held_out(points, names, 1.0)
    assert (scales == 1.0).all()
    changed = points_of(rows, ENERGY)
    changed.values[7] *= 3.0
    assert held_out(changed, names, 1.0)[0][7] == pytest.approx(errors[7] + math.log(3.0))
    assert np.isnan(held_out(points, ["same"] * 20, 1.0)[0]).all()


def test_the_half_width_is_the_conformal_quantile_with_its_correction() -> None:
    """Of 9 errors the largest; of 19 the 18th; with fewer than 9 Student's t."""
    assert half_width(np.arange(1.0, 10.0)) == (9.0, "conformal, 9 errors")
    assert half_width(-np.arange(1.0, 20.0))[0] == 18.0
    width, basis = half_width(np.array([0.1, -0.1, 0.1]))
    assert (width, basis) == (pytest.approx(0.1 * 2.920 * math.sqrt(4 / 3), rel=1e-3), "Student's t, 3 errors")
    assert half_width(np.array([math.nan, 0.1])) == (math.inf, "none: a single error is known")
    assert half_width(np.zeros(0))[0] == math.inf


def test_with_few_networks_the_interval_grows_with_the_distance() -> None:
    """Networks like the measured ones are more certain than those of another family."""
    shapes = networks()
    rows = device_rows(7, [shapes[number] for number in (0, 5, 10, 15, 19)], batch_sizes=(1, 8), noise=0.02)
    near, far = (points_of(device_rows(7, [shapes[number]]), ENERGY) for number in (9, 69))
    points = points_of(rows, ENERGY)
    assert alone(points, far, 1.0).scale[0] > 1.5 * alone(points, near, 1.0).scale[0]
    errors, scales = held_out(points, [row.network for row in rows], 1.0)
    assert len(errors) == len(scales) == 5
    assert (scales < 1.0).all()


def test_smoothing_vanishes_away_from_the_fitted_networks() -> None:
    rows = device_rows(6, networks())
    points = points_of(rows, ENERGY)
    model = fit(points, 1.0)
    assert len(model.weights) == len(rows) >= roofline.FEW
    far = points.features[:1] * 1e6
    one = np.ones(1)
    assert model.log_values(far, one)[0] == pytest.approx(model.log_values(far, one, smooth=False)[0], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_left_out_at_once_give_the_coefficients_of_single_fits(seed: int) -> None:
    """The fourth column is 0 but in one row; without that row, its coefficient is not determined and must be 0."""
    matrix = np.random.default_rng(seed).random((30, 5)) - 0.2
    matrix[:, 3] = 0.0
    matrix[7, 3] = 1.0
    expected = [nnls(np.delete(matrix, i, 0), np.ones(29), 0.01) for i in range(30)]
    np.testing.assert_allclose(nnls_left_out(matrix, 0.01), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", [ENERGY, ENERGY_WITH_TIME])
def test_errors_of_all_rows_at_once_are_those_of_single_fits(kind: str) -> None:
    """They differ only by the scale of the features, which is that of all rows."""
    rows = device_rows(3, networks()[::2])
    points = points_of(rows, kind)
    errors, _ = held_out(points, [row.network for row in rows], 1.0)
    for i in range(0, len(points), 5):
        rest = np.arange(len(points)) != i
        one = points[~rest]
        log = fit(points[rest], 1.0).log_values(one.features, one.batch_sizes, one.seconds)[0]
        assert errors[i] == pytest.approx(math.log(one.values[0]) - log, abs=0.004)


def test_many_rows_are_excluded_in_folds_and_smoothed_by_representatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more than ``MOST_SMOOTHED`` rows, the errors hardly change, and the kernel stays small."""
    rows = device_rows(4, networks())
    points, names = points_of(rows, ENERGY), [row.network for row in rows]
    exact, _ = held_out(points, names, 1.0)
    for module in (roofline, devices):
        monkeypatch.setattr(module, "MOST_SMOOTHED", 40)
    errors, scales = held_out(points, names, 1.0)
    assert len(fit(points, 1.0).weights) == 40
    assert (scales == 1.0).all()
    assert np.median(np.abs(errors)) == pytest.approx(np.median(np.abs(exact)), rel=0.3)
