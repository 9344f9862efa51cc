"""When a cell (a configuration at a batch size) has enough rounds.

A cell is complete when the half-width of the interval of its mean is at most the target. Testing this after every
round, and stopping when chance makes the interval narrow, gives intervals that cover the truth in 91 instead of 95 % of
the cases. So the test is made only after the rounds in ``LOOKS``, and both the test and the printed interval use
Student's factor at 97 %: the intervals of stopped cells then cover the truth in 95 to 97 % of the cases
(``tests/benchmarks/results/stopping.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joulewatch_harness.gum import COVERAGE, mean, standard_error, student_factor

LOOKS: Final = (5, 8, 12, 18, 27, 40)
"""Numbers of rounds after which a cell is tested; with the last one its rounds end in any case."""
STOPPING_COVERAGE: Final = 0.97
MAX_UNCERTAINTY: Final = "max_relative_uncertainty"
"""Key of the plan, and label of the run's annotations."""
ROUNDS_ENDED: Final = "rounds_ended"
"""Reason code of the note that states why the rounds of a cell ended."""
NOT_REACHED: Final = "target not reached"
STOPPED: Final = "stopped by the user"
"""How the text of this note begins, unless the target was reached."""


def relative_half_width(values: Sequence[float]) -> float:
    """Return half of the 97 % interval of the mean, as a share of the mean; infinite if it is not known."""
    if len(values) < 2 or mean(values) <= 0.0:
        return math.inf
    return student_factor(len(values) - 1, STOPPING_COVERAGE) * standard_error(values) / mean(values)


def half_width_text(values: Sequence[float]) -> str:
    """Return the half-width for people: ``±4.2 %``."""
    percent = 100 * relative_half_width(values)
    return f"±{percent:.{0 if percent >= 10 else 1}f} %"


def expected_rounds(values: Sequence[float], target: float) -> int:
    """Return the number of rounds at which a cell should reach the target, from the scatter so far."""
    if len(values) < LOOKS[0]:
        return LOOKS[0]
    scatter = standard_error(values) * math.sqrt(len(values)) / mean(values) if mean(values) > 0.0 else math.inf
    for look in LOOKS:
        if look > len(values) and student_factor(look - 1, STOPPING_COVERAGE) * scatter / math.sqrt(look) <= target:
            return look
    return LOOKS[-1]


def repeats_coverage(plan: Mapping[str, Any]) -> float:
    """Return the coverage of Student's factor for the scatter of rounds, from the plan of a run's header.

    97 % if the runner stopped cells at a target, 95 % if the number of rounds was fixed, as in all runs of 0.1.0.
    """
    return COVERAGE if plan.get(MAX_UNCERTAINTY) is None else STOPPING_COVERAGE
