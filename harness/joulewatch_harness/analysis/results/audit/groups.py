"""Audit of groups of windows: the rounds of one configuration and batch size, and the idle windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.analysis.results.audit.findings import Finding
from joulewatch_harness.analysis.results.model import Estimate, IdlePower
from joulewatch_harness.gum import NORMAL_95
from joulewatch_harness.plan.target import LOOKS, NOT_REACHED, STOPPED, half_width_text, relative_half_width

SPREAD_TOLERANCE: Final = 0.10
"""Largest relative spread of the energies of one configuration's rounds."""
IDLE_TOLERANCE: Final = 0.05
"""Largest relative change of the idle power over the run."""


def audit_repeats(
    name: str,
    values: Sequence[float],
    measured_rounds: int,
    target: float | None = None,
    ended: str = "",
    *,
    metered: bool = False,
) -> Iterator[Finding]:
    """Check whether the rounds of one group agree.

    Args:
        name: The configuration and batch size.
        values: Joules per inference, one per usable round.
        measured_rounds: Number of rounds, usable or not.
        target: Largest relative uncertainty of the repeats, in a run whose rounds end at a target.
        ended: Why the rounds ended, as the runner recorded it; empty: not known.
        metered: Whether they are the windows of a name in the user's own code, without a plan.
    """
    rounds = "windows of this name" if metered else "rounds"
    if len(values) == 1:
        yield Finding(
            severity="warning",
            reason="single_repeat",
            text=f"{name}: usable {rounds}: 1 of {measured_rounds}; the repeatability is unknown, so ± is "
            f"omitted; use {'at least 3 windows' if metered else '--rounds 3 or more'}",
            evidence={"rounds": len(values), "measured_rounds": measured_rounds},
        )
    if len(values) < 2:
        return
    mean = sum(values) / len(values)
    spread = (max(values) - min(values)) / abs(mean) if mean else 0.0
    if target is not None:
        half_width = relative_half_width(values)
        # The runner tested the energies of the edges: a cell that reached the target there has no finding.
        reached = half_width <= target if not ended or ended.startswith(STOPPED) else not ended.startswith(NOT_REACHED)
        if not reached:
            in_most_rounds = ended.startswith(f"{NOT_REACHED} after {LOOKS[-1]} rounds")
            fix = "use longer windows (--window)" if in_most_rounds else "raise max_run_s in the plan"
            rounds = count_of(len(values), "round")
            apart = f"{half_width_text(values)} after {rounds}, not the target of ±{100 * target:g} %"
            yield Finding(
                severity="warning",
                reason="repeats_apart",
                text=f"{name}: {ended if ended.startswith(NOT_REACHED) else apart}; {fix}, or stop other load on the "
                "machine",
                evidence={"half_width": half_width, "target": target, "spread": spread, "rounds": len(values)},
            )
    elif spread > SPREAD_TOLERANCE:
        yield Finding(
            severity="warning",
            reason="repeats_apart",
            text=f"{name}: the {rounds} differ by {100 * spread:.3g} % of their mean; use more "
            f"{'or longer windows' if metered else 'rounds'}, or stop other load on the machine",
            evidence={"spread": spread, "rounds": len(values)},
        )


def audit_idle(component: str, watts: Sequence[float]) -> Iterator[Finding]:
    """Check whether the idle power stayed the same; ``watts`` in order of time."""
    if len(watts) < 2:
        return
    mean = sum(watts) / len(watts)
    if mean > 0 and abs(watts[-1] - watts[0]) > IDLE_TOLERANCE * mean:
        yield Finding(
            severity="warning",
            reason="idle_drift",
            text=f"{component}: idle power changed from {watts[0]:.4g} W to {watts[-1]:.4g} W over the run; use longer "
            "idle windows, or stop other load on the machine",
            evidence={"component": component, "first_watts": watts[0], "last_watts": watts[-1]},
        )


def audit_load(name: str, gross: Estimate, rate_per_s: float, idle: IdlePower) -> Iterator[Finding]:
    """Check that a group draws more than the idle machine.

    Args:
        name: The group.
        gross: Joules per inference over all devices.
        rate_per_s: Inferences per second.
        idle: The idle power of the same devices.
    """
    watts = gross.value * rate_per_s
    if watts <= idle.watts + NORMAL_95 * idle.standard_watts:
        yield Finding(
            severity="warning",
            reason="load_draws_idle",
            text=f"{name}: {watts:.4g} W, no more than the idle power of {idle.watts:.4g} W "
            f"(± {NORMAL_95 * idle.standard_watts:.2g} W); check that the network runs on a measured device, that the "
            "machine was idle in the idle windows, and that the sensors work",
            evidence={"watts": watts, "idle_watts": idle.watts},
        )
