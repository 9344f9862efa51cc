"""Phases of a batch: their shares of the time, and the share outside the execution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from joulewatch_harness.analysis.results.averages import Rounds
from joulewatch_harness.analysis.results.model import OTHER_PHASE, GroupResult, PhaseShare
from joulewatch_harness.analysis.results.uncertainty import combine_mean
from joulewatch_harness.network import RESERVED_PHASES
from joulewatch_harness.plan.scenario import IDLE_PHASE
from joulewatch_harness.records import Window

EXECUTE_PHASE: Final = "execute"


def has_phases(group: GroupResult) -> bool:
    """Return whether a batch has phases other than its execution."""
    return has_other_phases(phase.name for phase in group.phases)


def has_other_phases(names: Iterable[str]) -> bool:
    """Return whether there are phases other than the execution."""
    return bool(set(names) - {EXECUTE_PHASE, OTHER_PHASE})


def outside_execution(shares: Mapping[str, float]) -> float | None:
    """Return the share of the time outside the execution (drivers, copies); None if the execution is not known.

    Args:
        shares: Phase -> its share of the time.
    """
    if EXECUTE_PHASE not in shares:
        return None
    # Waiting for queries is not work.
    return math.fsum(share for name, share in shares.items() if name not in (EXECUTE_PHASE, IDLE_PHASE))


def phase_shares(windows: Sequence[Window]) -> tuple[PhaseShare, ...]:
    """Return the share of the time of each phase, in the order of a batch; empty without phases."""
    with_phases = [window for window in windows if window.phases and window.batches]
    names = {name for window in with_phases for name in window.phases}
    return tuple(_phase_share(name, with_phases) for name in sorted(names, key=_phase_place))


def _phase_share(name: str, windows: Sequence[Window]) -> PhaseShare:
    rounds: Rounds = {}
    for window in windows:
        spent = window.phases.get(name)
        whole_s = math.fsum(phase.total_s for phase in window.phases.values())
        share = spent.total_s / whole_s if spent is not None and whole_s > 0 else 0.0
        rounds.setdefault(window.repeat, []).append((share, {}))
    total_s = math.fsum(window.phases[name].total_s for window in windows if name in window.phases)
    return PhaseShare(
        name=name,
        share=combine_mean(rounds, {}, {}),
        per_batch_s=total_s / sum(window.batches for window in windows),
    )


def _phase_place(name: str) -> tuple[bool, bool, int, str]:
    """Sort reserved phases in the order of a batch, then the network's own by name, then idle and other."""
    place = RESERVED_PHASES.index(name) if name in RESERVED_PHASES else len(RESERVED_PHASES)
    return name == OTHER_PHASE, name == IDLE_PHASE, place, name
