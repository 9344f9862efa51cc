"""When a load is steady."""

from __future__ import annotations

import pytest

from joulewatch_harness.runner.measuring import is_steady


@pytest.mark.parametrize(
    ("rates", "steady"),
    [
        ([100, 100, 100, 100, 100], False),  # too few
        ([100, 100, 100, 100, 100, 100], True),
        ([94, 96, 95, 99, 99, 100], True),  # a step of 4.6 %
        ([93, 94, 93, 99, 99, 100], False),  # a step of 6.4 %
        ([70, 130, 90, 80, 140, 100], True),  # scatter without a trend
        ([70, 80, 90, 100, 110, 120], False),
        ([5, 70, 80, 90, 100, 101, 99, 100, 102, 98], True),
    ],
)
def test_steady_means_no_trend_between_the_last_three_rates_and_the_three_before(
    rates: list[float], steady: bool
) -> None:
    assert is_steady(rates) is steady
