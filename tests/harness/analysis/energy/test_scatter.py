"""The scatter of a sensor's values, each counted once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from joulewatch_harness.analysis.energy.scatter import scatter, spaced


@pytest.mark.parametrize(
    ("times_s", "kept"),
    [
        ([], []),
        ([0.0], [0.0]),
        ([0.0, 0.5], [0.0]),
        ([0.0, 0.5, 0.95], [0.0, 0.95]),
        ([0.0, 0.95, 1.9], [0.0, 0.95, 1.9]),
        ([0.0, 0.9, 1.0, 1.9, 2.0], [0.0, 1.0, 2.0]),
    ],
)
def test_values_count_if_they_are_a_refresh_period_apart(times_s: list[float], kept: list[float]) -> None:
    """Within 5 %, because scrapes and sensors have different clocks."""
    times = np.array(times_s)
    assert spaced(times, times, 1.0).tolist() == kept
    assert spaced(2 * times, times, 2.0).tolist() == kept


def test_slow_changes_do_not_widen_the_scatter() -> None:
    assert scatter(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(1 / math.sqrt(2))
