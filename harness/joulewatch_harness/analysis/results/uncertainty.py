"""Combine the energies of several windows into one mean with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from joulewatch_harness.analysis.energy.window_energy import ACCURACY, WindowEnergy
from joulewatch_harness.analysis.results.model import REPEATS, BudgetLine, Coverage, Estimate
from joulewatch_harness.gum import COVERAGE, expand, mean, standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Energy of several sensors in one window."""

    joules: float
    random: Mapping[str, float]
    """Component -> standard uncertainty in joules."""
    systematic: Mapping[str, float]
    """Component and family -> standard uncertainty in joules; its sign: see ``BudgetItem.sign``."""
    texts: Mapping[str, str]
    sources: frozenset[str]
    accuracy_known: bool
    """Whether every sensor has a published accuracy."""


def combine(energies: Sequence[WindowEnergy]) -> Combined:
    """Return the sum of the energies of disjoint sensors, with their budgets."""
    random: dict[str, float] = {}
    systematic: dict[str, float] = {}
    texts: dict[str, str] = {}
    accuracy_known = True
    for energy in energies:
        has_accuracy = False
        for name, standard, _, _, text, is_systematic, family, sign in energy.budget:
            if is_systematic:
                key = f"{name} ({family})" if family else name
                # Common to all sensors of a window or of a family, so they add linearly.
                systematic[key] = systematic.get(key, 0.0) + sign * standard
            else:
                key = name
                random[key] = math.hypot(random.get(key, 0.0), standard)
            has_accuracy = has_accuracy or name == ACCURACY
            if key not in texts:
                texts[key] = text
        accuracy_known = accuracy_known and has_accuracy
    return Combined(
        joules=math.fsum([energy.joules for energy in energies]),
        random=random,
        systematic=systematic,
        texts=texts,
        sources=frozenset([energy.method for energy in energies]),
        accuracy_known=accuracy_known,
    )


def combine_mean(
    rounds: Mapping[int, Sequence[tuple[float, Mapping[str, float]]]],
    systematic: Mapping[str, float],
    texts: Mapping[str, str],
    extra: Iterable[BudgetLine] = (),
    *,
    covers: Iterable[Coverage] = (),
    repeatable: bool = True,
    coverage: float = COVERAGE,
) -> Estimate:
    """Return the mean over rounds of repeated windows, with a GUM budget.

    Args:
        rounds: Round -> its windows: (value, component -> standard uncertainty of that window).
        systematic: Component -> standard uncertainty of the mean, the same in every repeat, with its sign.
        texts: Component -> explanation.
        extra: Further lines.
        covers: What the components include, besides the repeats.
        repeatable: False for a single event, such as loading, whose uncertainty does not include repeats.
        coverage: Of Student's factor for the repeats: more than 95 % if their number depends on their scatter.

    Returns:
        The mean of the rounds' means.
    """
    means = {number: mean([value for value, _ in windows]) for number, windows in rounds.items()}
    by_round = list(means.values())
    value = mean(by_round)
    lines = []
    if len(by_round) > 1:
        lines.append(
            BudgetLine(
                name=REPEATS,
                kind="A",
                standard=standard_error(by_round),
                dof=len(by_round) - 1,
                systematic=False,
                text=f"scatter of {len(by_round)} rounds"
                + (f", Student's t at {100 * coverage:g} %" if coverage != COVERAGE else ""),
            )
        )
    names = sorted({name for windows in rounds.values() for _, items in windows for name in items})
    for name in names:
        # The mean of means: each window has the weight 1 / (rounds × windows of its round).
        weighted = math.fsum(
            (items.get(name, 0.0) / len(windows)) ** 2 for windows in rounds.values() for _, items in windows
        )
        lines.append(
            BudgetLine(
                name=name,
                kind="B",
                standard=math.sqrt(weighted) / len(rounds),
                dof=math.inf,
                systematic=False,
                text=texts.get(name, ""),
            )
        )
    lines += [
        BudgetLine(
            name=name,
            kind="B",
            standard=abs(standard),
            dof=math.inf,
            systematic=True,
            text=texts.get(name, ""),
            sign=-1 if standard < 0 else 1,
        )
        for name, standard in systematic.items()
    ]
    lines += list(extra)
    estimate = replace(estimate_of(value, lines, means, coverage), covers=tuple(covers))
    if not repeatable:
        return estimate
    if len(by_round) < 2:
        return replace(estimate, expanded=None)
    return replace(estimate, covers=(*estimate.covers, "repeats"))


def estimate_of(
    value: float,
    lines: Sequence[BudgetLine],
    rounds: Mapping[int, float] | None = None,
    coverage: float = COVERAGE,
    comparisons: int = 1,
) -> Estimate:
    """Return a value with the combined uncertainty of its budget; the last two arguments are those of ``expand``."""
    repeats = [line for line in lines if not line.systematic and math.isfinite(line.dof)]
    random = [line for line in lines if not line.systematic and math.isinf(line.dof)]
    result = expand(
        [(line.standard, line.dof) for line in repeats],
        math.hypot(*(line.standard for line in random)),
        [(line.standard, line.dof) for line in lines if line.systematic],
        max((line.standard for line in lines if line.name.startswith(ACCURACY)), default=0.0),
        coverage,
        comparisons,
    )
    unused = random if math.isfinite(result.dof) else repeats
    return Estimate(
        value=value,
        standard=result.standard,
        expanded=result.expanded,
        dof=result.dof,
        budget=tuple(replace(line, counted=line not in unused) for line in lines),
        rounds=rounds or {},
    )
