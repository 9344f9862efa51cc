from __future__ import annotations

import numpy as np
import pytest

from joulewatch_harness.analysis.sources.series import Series


def test_a_series_is_checked_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="increase strictly"):
        Series(np.array([0.0, 0.0]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="differ in shape"):
        Series(np.array([0.0, 1.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        Series(np.array([0.0, 1.0]), np.array([1.0, float("nan")]))


def test_samples_that_repeat_or_step_back_are_dropped() -> None:
    """Times of a series increase strictly; which clock they are on is decided before."""
    series = Series.from_samples(np.array([1.0, 2.0, 2.0, 1.5, 1.9, 3.0]), np.arange(6.0), {})
    assert series.times_s.tolist() == [1.0, 2.0, 3.0]
    assert series.values.tolist() == [0.0, 1.0, 5.0]


def test_between_brackets_a_span() -> None:
    series = Series(np.arange(10.0), np.arange(10.0))
    assert series.between(2.5, 4.5).times_s.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert series.between(2.0, 4.0).times_s.tolist() == [2.0, 3.0, 4.0]
    assert series.between(-5.0, 0.5).times_s.tolist() == [0.0, 1.0]
