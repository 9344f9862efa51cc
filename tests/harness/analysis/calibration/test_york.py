"""The straight line with uncertainties in both coordinates: published data, and the limits of ordinary regression."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.calibration.york import york_line

# Pearson's data (1901) with York's weights (1966).
PEARSON_X = [0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4]
PEARSON_Y = [5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5]
WEIGHTS_X = [1000.0, 1000.0, 500.0, 800.0, 200.0, 80.0, 60.0, 20.0, 1.8, 1.0]
WEIGHTS_Y = [1.0, 1.8, 4.0, 8.0, 20.0, 20.0, 70.0, 70.0, 100.0, 500.0]
U_X = [1 / math.sqrt(weight) for weight in WEIGHTS_X]
U_Y = [1 / math.sqrt(weight) for weight in WEIGHTS_Y]


def test_pearsons_data_with_yorks_weights() -> None:
    """York et al. 2004; Cantrell 2008 (ACP 8, 5477) gives the same with the factor sqrt(S / 8)."""
    line = york_line(PEARSON_X, PEARSON_Y, U_X, U_Y)
    assert line.slope == pytest.approx(-0.480533407, abs=1e-9)
    assert line.intercept == pytest.approx(5.47991022, abs=1e-8)
    assert line.slope_standard == pytest.approx(0.0579850090, abs=1e-9)
    assert line.intercept_standard == pytest.approx(0.294970735, abs=1e-8)
    assert line.chi_squared == pytest.approx(11.8663531941, abs=1e-8)
    factor = math.sqrt(line.chi_squared / 8)
    assert (round(factor * line.slope_standard, 4), round(factor * line.intercept_standard, 3)) == (0.0706, 0.359)


def test_errors_in_x_do_not_lower_the_slope() -> None:
    """With y exact, the line is that of x over y, turned; ordinary regression of y over x has a smaller slope."""
    n = len(PEARSON_X)
    turned = york_line(PEARSON_Y, PEARSON_X, [0.0] * n, [1.0] * n)
    line = york_line(PEARSON_X, PEARSON_Y, [1.0] * n, [0.0] * n)
    ordinary = york_line(PEARSON_X, PEARSON_Y, [0.0] * n, [1.0] * n)
    assert line.slope == pytest.approx(1 / turned.slope, rel=1e-9)
    assert abs(line.slope) > abs(ordinary.slope)


@given(
    slope=st.floats(0.3, 3),
    intercept=st.floats(-50, 50),
    shift=st.floats(-300, 300),
    scale=st.floats(0.1, 10),
)
def test_the_line_moves_with_its_points(slope: float, intercept: float, shift: float, scale: float) -> None:
    """Exact points give their line; x + shift moves the intercept, and a common unit changes no slope."""
    x = [100.0, 150.0, 210.0, 290.0, 320.0]
    y = [intercept + slope * at for at in x]
    line = york_line(x, y, [0.5] * 5, [1.0] * 5)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), rel=1e-8, abs=1e-6)
    noisy = [at + wobble for at, wobble in zip(y, (0.4, -0.7, 0.2, 0.5, -0.3), strict=True)]
    first = york_line(x, noisy, [0.5] * 5, [1.0] * 5)
    moved = york_line([at + shift for at in x], noisy, [0.5] * 5, [1.0] * 5)
    assert moved.slope == pytest.approx(first.slope, rel=1e-7)
    assert moved.intercept == pytest.approx(first.intercept - shift * first.slope, rel=1e-6, abs=1e-5)
    in_other_units = york_line([scale * at for at in x], [scale * at for at in noisy], [0.5 * scale] * 5, [scale] * 5)
    assert in_other_units.slope == pytest.approx(first.slope, rel=1e-7)
    assert in_other_units.intercept == pytest.approx(scale * first.intercept, rel=1e-6, abs=1e-5)
    assert in_other_units.slope_standard == pytest.approx(first.slope_standard, rel=1e-6)


def test_the_uncertainty_is_smallest_at_the_centre() -> None:
    """The covariance makes the line most certain among the points, not at 0."""
    x = [100.0, 150.0, 210.0, 290.0, 320.0]
    line = york_line(x, x, [1.0] * 5, [1.0] * 5)
    assert line.covariance == pytest.approx(-214.0 * line.slope_standard**2, rel=1e-6)
    at_centre = line.intercept_standard**2 + 2 * 214.0 * line.covariance + (214.0 * line.slope_standard) ** 2
    assert math.sqrt(at_centre) == pytest.approx(math.sqrt(2 / 5), rel=1e-6)
    assert math.sqrt(at_centre) < 0.4 * line.intercept_standard


@pytest.mark.parametrize(
    ("x", "u_x"), [([1.0, 2.0], [1.0] * 2), ([2.0, 2.0, 2.0], [1.0] * 3), ([1.0, 2.0, 3.0], [0.0] * 3)]
)
def test_points_that_give_no_line_are_refused(x: list[float], u_x: list[float]) -> None:
    with pytest.raises(ValueError, match="point"):
        york_line(x, x, u_x, [0.0] * len(x))
