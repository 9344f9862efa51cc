"""The bound of a share of energy contains the truth of every mix, and no narrower bound does."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis.strategies import floats, lists, tuples

from joulewatch_harness.analysis.energy.shares import DEFAULT_RATIO, share_bounds

shares = floats(0.0, 1.0)
ratios = floats(1.0, 10.0)


def energy_share(weights: list[float], watts: tuple[float, ...]) -> float:
    """Return the share of the energy of the first of some consumers."""
    energies = [weight * per_unit for weight, per_unit in zip(weights, watts, strict=True)]
    return energies[0] / math.fsum(energies)


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.1, 0.053, 0.182), (0.5, 0.333, 0.667), (0.9, 0.818, 0.947), (0.98, 0.961, 0.990)]
)
def test_the_bounds_of_a_ratio_of_two(share: float, low: float, high: float) -> None:
    assert DEFAULT_RATIO == 2.0
    assert share_bounds(share) == pytest.approx((low, high), abs=5e-4)


@given(weights=lists(floats(0.01, 1.0), min_size=2, max_size=5), ratio=ratios)
def test_the_bounds_are_those_of_the_worst_mix(weights: list[float], ratio: float) -> None:
    """Each consumer draws between 1 and ``ratio`` per unit; the extremes are at the corners of that box."""
    mixes = [energy_share(weights, watts) for watts in itertools.product((1.0, ratio), repeat=len(weights))]
    low, high = share_bounds(weights[0] / math.fsum(weights), ratio)
    assert (low, high) == pytest.approx((min(mixes), max(mixes)))


@given(
    consumers=lists(tuples(floats(0.01, 1.0), floats(0.0, 1.0)), min_size=2, max_size=20),
    ratio=ratios,
    scale=floats(0.1, 100.0),
)
def test_every_mix_lies_inside(consumers: list[tuple[float, float]], ratio: float, scale: float) -> None:
    weights = [weight for weight, _ in consumers]
    watts = tuple(scale * (1 + (ratio - 1) * place) for _, place in consumers)
    low, high = share_bounds(weights[0] / math.fsum(weights), ratio)
    assert low - 1e-12 <= energy_share(weights, watts) <= high + 1e-12


@given(one=shares, other=shares, ratio=ratios, wider=ratios)
def test_the_bounds_rise_with_the_share_and_widen_with_the_ratio(
    one: float, other: float, ratio: float, wider: float
) -> None:
    (low, high), (higher_low, higher_high) = (share_bounds(share, ratio) for share in sorted((one, other)))
    assert low <= higher_low + 1e-12 and high <= higher_high + 1e-12
    (narrow_low, narrow_high), (wide_low, wide_high) = (share_bounds(one, limit) for limit in sorted((ratio, wider)))
    assert wide_low <= narrow_low + 1e-12 and narrow_high <= wide_high + 1e-12


@given(share=shares, ratio=ratios)
def test_the_bounds_of_a_share_and_of_the_rest_are_complementary(share: float, ratio: float) -> None:
    low, high = share_bounds(share, ratio)
    assert 0 <= low <= share <= high <= 1
    rest_low, rest_high = share_bounds(1 - share, ratio)
    assert (low, high) == pytest.approx((1 - rest_high, 1 - rest_low), abs=1e-12)


@given(parts=lists(tuples(floats(0.01, 1.0), shares), min_size=1, max_size=10), ratio=ratios)
def test_the_bound_at_the_mean_share_contains_the_bounds_of_the_parts(
    parts: list[tuple[float, float]], ratio: float
) -> None:
    """So one bound for an hour is valid although the share changes within it."""
    total = math.fsum(energy for energy, _ in parts)
    low, high = share_bounds(math.fsum(energy * share for energy, share in parts) / total, ratio)
    assert low <= math.fsum(energy * share_bounds(share, ratio)[0] for energy, share in parts) / total + 1e-12
    assert high >= math.fsum(energy * share_bounds(share, ratio)[1] for energy, share in parts) / total - 1e-12


@given(share=shares, ratio=ratios)
def test_nothing_is_uncertain_about_nobody_everybody_and_equal_watts(share: float, ratio: float) -> None:
    assert share_bounds(0.0, ratio) == (0.0, 0.0)
    assert share_bounds(1.0, ratio) == (1.0, 1.0)
    assert share_bounds(share, 1.0) == pytest.approx((share, share))


def test_without_a_limit_of_the_ratio_a_share_shows_nothing() -> None:
    assert share_bounds(0.5, math.inf) == (0.0, 1.0)


def test_rounding_errors_are_removed_and_wrong_arguments_refused() -> None:
    assert share_bounds(1 + 1e-12) == (1.0, 1.0)
    assert share_bounds(-1e-12) == (0.0, 0.0)
    for share, ratio in ((1.1, 2.0), (-0.1, 2.0), (math.nan, 2.0), (0.5, 0.9), (0.5, math.nan)):
        with pytest.raises(ValueError, match="is not"):
            share_bounds(share, ratio)
