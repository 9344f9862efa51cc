"""Whether neighbouring rounds are alike."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from joulewatch_harness.analysis.results.audit.dependent_rounds import (
    PERMUTATIONS,
    SIGNIFICANCE,
    audit_rounds,
    dependence_of,
)
from support.rounds import rounds_of

RUNS = 200
BEST_OF_5 = dict(enumerate([2.0, 1.0, 4.0, 7.0, 11.0]))
"""No other order of these values, but the reverse, has a larger sum of products of neighbours."""


def found_share(lengths: Sequence[int], rho: float, shared: float) -> float:
    runs = (rounds_of(random.Random(seed), lengths, rho, shared) for seed in range(RUNS))
    return sum(bool(list(audit_rounds(run, 60.0))) for run in runs) / RUNS


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("lengths", [[5] * 12, [8] * 12, [18], [5] * 8 + [8] * 3 + [12]])
def test_independent_rounds_rarely_give_a_finding(lengths: list[int], shared: float) -> None:
    """Also where a round is slow for all results."""
    assert found_share(lengths, 0.0, shared) <= 0.05


@pytest.mark.parametrize(
    ("lengths", "shared", "least"),
    [([8] * 12, 0.0, 0.85), ([12] * 12, 0.5, 0.7), ([18] * 3, 0.0, 0.8), ([40], 1.0, 0.85)],
)
def test_dependent_rounds_are_found(lengths: list[int], shared: float, least: float) -> None:
    assert found_share(lengths, 0.5, shared) >= least


def test_the_correlation_is_corrected_for_few_rounds() -> None:
    """The uncorrected one of 5 rounds, each 0.5 of the one before, is 0 on average."""
    runs = [dependence_of(rounds_of(random.Random(seed), [5] * 12, 0.5, 0.0)) for seed in range(RUNS)]
    correlations = [run.correlation for run in runs if run is not None]
    assert len(correlations) == RUNS
    assert sum(correlations) / RUNS == pytest.approx(0.4, abs=0.05)


def test_the_finding_states_the_correlation_and_what_the_uncertainty_covers() -> None:
    slow = {number: 1.0 + 0.1 * math.sin(number / 3) for number in range(18)}
    (finding,) = audit_rounds([slow], 204.0)
    assert (finding.severity, finding.reason, finding.window) == ("warning", "dependent_rounds", None)
    assert finding.text == (
        "neighbouring rounds are alike: correlation +1.00 (lag 1), so the machine changes over several rounds, and "
        "± covers only the 3.4 min of the run; stop other load, or compare repeated runs"
    )
    assert finding.evidence["p_value"] == 1 / (1 + PERMUTATIONS)


def test_few_rounds_and_rounds_without_scatter_are_ignored() -> None:
    assert dependence_of([dict(enumerate([1.0, 2.0, 3.0, 4.0])), dict(enumerate([1.0] * 9))]) is None
    five = dependence_of([BEST_OF_5, dict(enumerate([1.0] * 9))])
    assert five is not None and five.results == 1
    assert 1 / 60 - 0.006 < five.p_value < SIGNIFICANCE, "one order of 60, and its reverse"


def test_a_lost_round_is_a_gap() -> None:
    """Its neighbours are not neighbours of each other."""
    values = [1.0, 2.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0]
    all_rounds = dependence_of([dict(enumerate(values))])
    lost = dependence_of([{number: values[number] for number in range(8) if number not in (3,)}])
    assert all_rounds is not None and lost is not None
    assert all_rounds.correlation < 0 and all_rounds.p_value > 0.9 and lost.p_value > 0.5


def test_rounds_that_only_some_results_have_stay_at_their_end() -> None:
    """A sixth round of another result does not change places with the first five."""
    longer = dependence_of([BEST_OF_5] * 3 + [{**dict.fromkeys(range(5), 1.0), 5: 9.0}])
    assert longer is not None and longer.results == 4
    assert longer.p_value == pytest.approx(1 / 60, abs=0.006)
