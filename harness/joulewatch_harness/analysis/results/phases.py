"""Shares of the time that a batch spends outside of its execution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from joulewatch_harness.analysis.results.model import OTHER_PHASE, GroupResult, PhaseShare
from joulewatch_harness.plan.scenario import IDLE_PHASE

EXECUTE_PHASE: Final = "execute"


def has_phases(group: GroupResult) -> bool:
    """Whether a batch is more than its execution."""
    return bool({item.name for item in group.phases} - {EXECUTE_PHASE, OTHER_PHASE})


def beside_execution(phases: Sequence[PhaseShare]) -> float | None:
    """Share of the time that goes by around the execution: drivers, copies; None where none is told apart."""
    if not any(item.name == EXECUTE_PHASE for item in phases):
        return None
    # Waiting for queries is no work.
    return math.fsum(item.share.value for item in phases if item.name not in (EXECUTE_PHASE, IDLE_PHASE))
