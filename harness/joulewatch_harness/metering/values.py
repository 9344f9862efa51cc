"""An energy with its uncertainty, as ``import joulewatch`` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulewatch_harness.analysis.results.model import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """The energy of a device, a component, a node or all devices in one window."""

    name: str
    seconds: float
    """Length of the window."""
    estimate: Estimate | None = None
    """The energy with its budget; None: it could not be computed, see ``missing``."""
    missing: str = ""
    """Why the energy is not known; empty if it is."""
    reason: str = ""
    """Reason code of ``missing``."""
    methods: tuple[str, ...] = ()
    """Methods of the sensors: counter, integrated, estimated, emulated."""

    @property
    def joules(self) -> float | None:
        """The energy; None if it is not known, never 0 instead."""
        return None if self.estimate is None else self.estimate.value

    @property
    def uncertainty(self) -> float | None:
        """Expanded uncertainty in joules: the truth is within ± this in 95 % of the windows, for what it covers."""
        return None if self.estimate is None else self.estimate.expanded

    @property
    def covers(self) -> tuple[str, ...]:
        """What the uncertainty includes: ``sampling``, and ``accuracy`` if every sensor has a published one."""
        return () if self.estimate is None else self.estimate.covers

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None else self.joules / self.seconds

    def __str__(self) -> str:
        return text_of(self.estimate, "J") if self.estimate is not None else f"no number [{self.reason}]"

    def to_mapping(self) -> Mapping[str, Any]:
        """Return JSON values."""
        return {
            "joules": self.joules,
            "uncertainty_joules": self.uncertainty,
            "covers": list(self.covers),
            "watts": self.watts,
            "methods": list(self.methods),
            "missing": self.missing,
            "reason": self.reason,
        }


def text_of(estimate: Estimate, unit: str) -> str:
    """Return an estimate for people, such as ``1.234 ± 0.012 kJ``; † marks a ± without the accuracy of a sensor."""
    from joulewatch_harness.analysis.results import numbers

    exponent, letter = numbers.prefix_for([estimate.value])
    return f"{numbers.energy_text(estimate, 10.0**-exponent)} {letter}{unit}"
