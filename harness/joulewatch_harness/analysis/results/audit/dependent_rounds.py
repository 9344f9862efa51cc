"""Audit of the rounds of a run: whether neighbouring rounds are alike.

The ± of a result assumes that its rounds are independent. Where the machine changes over several rounds, neighbouring
rounds are alike, and ± is too small for any other time than that of the run.

The test is one-sided, on the lag-1 autocorrelation of the rounds. One result has too few rounds for it, so all results
of a run are pooled: each is scaled to a scatter of 1, and the products of neighbouring rounds are summed over all
results. The significance comes from permutations of the rounds. A permutation is the same for all results, because a
round may be slow for all of them: such rounds are independent, and a test that takes the results as independent would
reject them far too often. Rounds change places only with rounds that the same results have: rounds that end at a target
then remain exchangeable, because the end depends on their scatter, not on their order.

With 5 rounds there are 60 different orders (of 120, because a reversed order has the same products), so the smallest
p-value is 1.7 %; 4 rounds are too few. False positives and detection: ``tests/benchmarks/results/dependent_rounds.md``.

Source:
    Moran 1948, Some theorems on time series II; Good, Permutation, Parametric and Bootstrap Tests, 3rd ed., ch. 3;
    Marriott and Pope 1954, Bias in the estimation of autocorrelations (the correction).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from joulewatch_harness.analysis.results.audit.findings import Finding

LEAST_ROUNDS: Final = 5
SIGNIFICANCE: Final = 0.025
PERMUTATIONS: Final = 1999


class Dependence(NamedTuple):
    """How alike neighbouring rounds are."""

    correlation: float
    """Lag-1 autocorrelation, corrected for the small numbers of rounds."""
    p_value: float
    results: int
    """Number of results that were pooled."""


def audit_rounds(results: Sequence[Mapping[int, float]], run_s: float) -> Iterator[Finding]:
    """Yield a finding if the rounds of a run depend on each other.

    Args:
        results: Round -> value, for each configuration and batch size.
        run_s: Time from the first to the last round.
    """
    dependence = dependence_of(results)
    if dependence is not None and dependence.p_value <= SIGNIFICANCE:
        pooled = f", pooled over {dependence.results} results" if dependence.results > 1 else ""
        yield Finding(
            severity="warning",
            reason="dependent_rounds",
            text=f"neighbouring rounds are alike: correlation {dependence.correlation:+.2f} (lag 1{pooled}), "
            f"so the machine changes over several rounds, and ± covers only the "
            f"{run_s / 60:.2g} min of the run; stop other load, or compare repeated runs",
            evidence={
                "correlation": dependence.correlation,
                "p_value": dependence.p_value,
                "results": dependence.results,
                "run_s": run_s,
            },
        )


def dependence_of(results: Sequence[Mapping[int, float]]) -> Dependence | None:
    """Return the pooled lag-1 autocorrelation of the rounds; None: too few rounds.

    Args:
        results: Round -> value, for each configuration and batch size; those with fewer than five rounds, or without
            scatter, are ignored.
    """
    used = [rounds for rounds in results if len(rounds) >= LEAST_ROUNDS and len(set(rounds.values())) > 1]
    if not used:
        return None
    ends = sorted({max(rounds) + 1 for rounds in used})
    scaled = np.zeros((len(used), ends[-1]))
    for row, rounds in zip(scaled, used, strict=True):
        numbers, values = list(rounds), np.array(list(rounds.values()))
        # Their squares add up to the degrees of freedom, which are the weight of the result.
        row[numbers] = (values - values.mean()) / values.std(ddof=1)
    # Entry i, j: products of rounds i and j, summed over the results.
    products = scaled.T @ scaled
    total = float(np.trace(products))
    observed = float(np.diagonal(products, 1).sum())
    orders = _orders(ends)
    permuted = products[orders[:, :-1], orders[:, 1:]].sum(axis=1)
    as_large = int(np.count_nonzero(permuted >= observed - 1e-9 * total))
    weights = [len(rounds) - 1 for rounds in used]
    # The deviations of n values from their own mean correlate by -1/n, and by -(1 + 3 rho)/n if the values correlate.
    bias = math.fsum(weight / (weight + 1) for weight in weights) / sum(weights)
    return Dependence(
        correlation=min((observed / total + bias) / (1 - 3 * bias), 1.0),
        p_value=(1 + as_large) / (1 + PERMUTATIONS),
        results=len(used),
    )


def _orders(ends: Sequence[int]) -> np.ndarray:
    """Return random orders of the rounds, each in a row; rounds stay between the same two of ``ends``."""
    generator = np.random.default_rng(0)
    orders = np.tile(np.arange(ends[-1]), (PERMUTATIONS, 1))
    for start, end in zip((0, *ends), ends, strict=False):
        orders[:, start:end] = generator.permuted(orders[:, start:end], axis=1)
    return orders
