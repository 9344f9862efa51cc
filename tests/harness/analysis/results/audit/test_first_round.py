"""Whether the first round differs from the later ones."""

from __future__ import annotations

import random

import pytest

from joulewatch_harness.analysis.results.audit.first_round import audit_first_round

LATER = [1.00, 1.01, 0.99, 1.00]
"""Their scatter is 0.8 %: one more value lies within 5.3 % with a probability of 99 %."""


def by_round(first: float, later: list[float]) -> dict[int, float]:
    return dict(enumerate([first, *later]))


@pytest.mark.parametrize(("first", "count"), [(1.0, 0), (1.052, 0), (1.054, 1), (0.948, 0), (0.946, 1)])
def test_a_first_round_beyond_the_scatter_of_the_later_ones_is_a_finding(first: float, count: int) -> None:
    assert len(list(audit_first_round("net, batch 8", {"energy": by_round(first, LATER)}))) == count


def test_the_finding_states_the_difference_and_its_effect() -> None:
    quantities = {"energy": by_round(1.0, LATER), "time": by_round(1.2, LATER)}
    (finding,) = audit_first_round("net, batch 8", quantities)
    assert (finding.severity, finding.reason) == ("warning", "not_steady")
    assert finding.text == (
        "net, batch 8: the time of the first round differs from the 4 later ones by +20 %, more than they scatter, "
        "and changes the result by +4 %; raise warmup_s in the plan"
    )
    assert finding.evidence["rounds"] == 5


def test_a_difference_that_does_not_change_the_result_is_not_a_finding() -> None:
    """Of rounds that agree to 0.01 %, the first one is 2 % off: the mean moves by 0.4 %."""
    later = [1.0, 1.0001, 0.9999, 1.0]
    assert not list(audit_first_round("net", {"energy": by_round(1.02, later)}))
    assert list(audit_first_round("net", {"energy": by_round(1.03, later)}))


def test_few_rounds_or_no_first_round_give_no_finding() -> None:
    assert not list(audit_first_round("net", {"energy": by_round(9.0, LATER[:2])}))
    assert not list(audit_first_round("net", {"energy": dict(enumerate(LATER, 1))}))
    assert not list(audit_first_round("net", {"energy": {}}))


def test_rounds_without_energy_give_no_finding() -> None:
    """A counter with coarse steps may show 0 J in every window after the first."""
    assert not list(audit_first_round("net", {"energy": by_round(1.0, [0.0] * 4)}))


def test_rounds_of_the_same_scatter_rarely_give_a_finding() -> None:
    noise = random.Random(3)
    runs = 2000
    found = sum(
        bool(list(audit_first_round("net", {"energy": {n: noise.gauss(1.0, 0.03) for n in range(5)}})))
        for _ in range(runs)
    )
    assert found / runs == pytest.approx(0.01, abs=0.006)
