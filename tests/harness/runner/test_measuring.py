"""When a load is steady."""

from __future__ import annotations

import pytest

from joulewatch_harness.runner.measuring import is_steady


@pytest.mark.parametrize(
    ("rates", "steady"),
    [([100], False), ([100, 100], False), ([100, 104, 96], True), ([100, 110, 90], False), ([5, 100, 101, 99], True)],
)
def test_steady_means_the_last_three_within_five_percent(rates: list[float], steady: bool) -> None:
    assert is_steady(rates) is steady
