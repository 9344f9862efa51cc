"""Energy, time and tokens of all windows of a result together, for formats that have no energy per inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.analysis.results.model import EnergyResult
from joulewatch_harness.records import RunRecord, Window

OUTPUT_TOKENS: Final = "output_tokens"
PROMPT_TOKENS: Final = "prompt_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the windows used for one energy."""

    joules: float
    expanded_joules: float | None
    """At 95 % coverage; None: not known."""
    inferences: int
    duration_s: float
    ended_at_s: float
    """Unix seconds at the end of the last window."""

    @property
    def mean_watts(self) -> float:
        return self.joules / self.duration_s


def totals_of(record: RunRecord, energy: EnergyResult | None) -> Totals | None:
    """Return the totals of an energy; None if it is missing."""
    if energy is None or energy.gross is None:
        return None
    windows = windows_of(record, energy)
    inferences = sum(window.inferences for window in windows)
    expanded = energy.gross.expanded
    return Totals(
        joules=energy.gross.value * inferences,
        expanded_joules=None if expanded is None else expanded * inferences,
        inferences=inferences,
        duration_s=math.fsum(window.duration_s for window in windows),
        ended_at_s=max(window.end_s for window in windows),
    )


def windows_of(record: RunRecord, energy: EnergyResult) -> list[Window]:
    """Return the windows used for an energy."""
    used = set(energy.windows)
    return [window for window in record.windows if window.index in used]


def tokens_of(windows: Sequence[Window], name: str) -> float | None:
    """Return the tokens of some windows; None: a window did not count them."""
    counts = [window.counts.get(name, 0) for window in windows]
    return math.fsum(counts) if counts and all(count > 0 for count in counts) else None
