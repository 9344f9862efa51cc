"""The rule that ends the rounds of a cell: looks, target, and the coverage of the intervals afterwards."""

from __future__ import annotations

import math
import random

import pytest

from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import Rounds, RoundsCell
from joulewatch_harness.plan.target import LOOKS, expected_rounds, relative_half_width, repeats_coverage

CELLS = 2000


def ended_cells(sigma: float, target: float) -> list[RoundsCell]:
    """Return cells whose rounds scatter by ``sigma`` around 1 J, after their rounds have ended."""
    sizes = list(range(1, CELLS + 1))
    plan = make_plan({"configurations": ["n.onnx"], "batch_sizes": sizes, "max_relative_uncertainty": target}, "test")
    rounds = Rounds(plan, window_s=0.5)
    noise = random.Random(7)
    for step in rounds:
        rounds.record(step, joules=noise.gauss(1.0, sigma), seconds=1.0, spent_s=1.0)
    return list(rounds.cells.values())


@pytest.mark.parametrize("target", [0.02, 0.05])
@pytest.mark.parametrize("sigma", [0.003, 0.01, 0.03, 0.05])
def test_the_intervals_of_ended_cells_cover_the_truth_in_94_to_98_percent(sigma: float, target: float) -> None:
    """The standard error of the share is 0.4 %."""
    cells = ended_cells(sigma, target)
    covered = sum(
        abs(sum(cell.values) / len(cell.values) - 1.0)
        <= relative_half_width(cell.values) * sum(cell.values) / len(cell.values)
        for cell in cells
    )
    assert 0.94 <= covered / CELLS <= 0.98
    assert {len(cell.values) for cell in cells} <= set(LOOKS)
    reached = [cell for cell in cells if relative_half_width(cell.values) <= target]
    assert all(cell.ending.startswith("±") for cell in reached)
    assert all(cell.ending.startswith("target not reached after 40 rounds: ±") for cell in cells if cell not in reached)


def test_the_half_width_is_students_factor_times_the_standard_error() -> None:
    """By hand: 1, 2, 3 scatter by 1, and Student's factor for 2 degrees of freedom at 97 % is 5.643."""
    assert relative_half_width([1.0, 2.0, 3.0]) == pytest.approx(5.6428 / math.sqrt(3) / 2, rel=1e-4)
    assert relative_half_width([1.0]) == relative_half_width([]) == math.inf
    assert relative_half_width([0.0, 0.0]) == math.inf


def test_the_expected_number_of_rounds_is_that_of_a_look() -> None:
    assert expected_rounds([1.0, 1.1], 0.05) == 5, "before the first look"
    assert expected_rounds([1.0, 1.0, 1.0, 1.0, 1.3], 0.05) == 40
    assert expected_rounds([0.97, 1.03, 0.97, 1.03, 1.0], 0.05) == 8, "3.4 % scatter: ±2.715 × 3.0 / √8 = ±2.9 %"


def test_only_runs_that_ended_at_a_target_have_the_wider_factor() -> None:
    assert repeats_coverage({"rounds": None, "max_relative_uncertainty": 0.05}) == 0.97
    assert repeats_coverage({"rounds": 3, "max_relative_uncertainty": None}) == 0.95
    assert repeats_coverage({"rounds": 3}) == repeats_coverage({}) == 0.95
