"""Phases of a batch: which ones there are, and the share of the time outside the execution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from joulewatch_harness.analysis.results.model import OTHER_PHASE, GroupResult, PhaseShare
from joulewatch_harness.plan.scenario import IDLE_PHASE

EXECUTE_PHASE: Final = "execute"


def has_phases(group: GroupResult) -> bool:
    """Return whether a batch has phases other than its execution."""
    return bool({phase.name for phase in group.phases} - {EXECUTE_PHASE, OTHER_PHASE})


def outside_execution(phases: Sequence[PhaseShare]) -> float | None:
    """Return the share of the time outside the execution (drivers, copies); None if the execution is not known."""
    if not any(phase.name == EXECUTE_PHASE for phase in phases):
        return None
    # Waiting for queries is not work.
    return math.fsum(phase.share.value for phase in phases if phase.name not in (EXECUTE_PHASE, IDLE_PHASE))
