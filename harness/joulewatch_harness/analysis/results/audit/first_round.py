"""Audit of the warm-up: whether the first round of a cell, which follows it, differs from the later ones.

A warm-up that ended early matters only if it changes the result, and the rounds show that: the later ones begin with a
short settling, long after the network has become warm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.gum import mean, standard_error, student_factor

LEAST_LATER_ROUNDS: Final = 3
FIRST_ROUND_COVERAGE: Final = 0.99
"""With 22 cells and two quantities, chance gives a finding in fewer than one of two runs, mostly below the shift."""
LEAST_SHIFT: Final = 0.005
"""Smallest relative change of a result by its first round that is reported."""


def audit_first_round(name: str, quantities: Mapping[str, Mapping[int, float]]) -> Iterator[Finding]:
    """Yield a finding if the first round differs from the later ones by more than their scatter.

    Args:
        name: The configuration and batch size.
        quantities: What was measured -> round -> value. The quantities are correlated, so only the first one that
            differs gives a finding.
    """
    for quantity, by_round in quantities.items():
        later = [value for number, value in by_round.items() if number > 0]
        if 0 not in by_round or len(later) < LEAST_LATER_ROUNDS or mean(later) <= 0.0:
            continue
        difference = by_round[0] / mean(later) - 1.0
        # The scatter of one more value around the mean of the later ones.
        scatter = standard_error(later) / mean(later) * math.sqrt(len(later) + 1)
        shift = difference / (len(later) + 1)
        if (
            abs(difference) > student_factor(len(later) - 1, FIRST_ROUND_COVERAGE) * scatter
            and abs(shift) > LEAST_SHIFT
        ):
            yield Finding(
                severity="warning",
                reason="not_steady",
                text=f"{name}: the {quantity} of the first round differs from the {len(later)} later ones by "
                f"{100 * difference:+.3g} %, more than they scatter, and changes the result by {100 * shift:+.2g} %; "
                "raise warmup_s in the plan",
                evidence={"quantity": quantity, "difference": difference, "shift": shift, "rounds": len(later) + 1},
            )
            return
