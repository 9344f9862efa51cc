"""Combine the energies of several windows into one mean with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from joulewatch_harness.analysis.energy.window_energy import ACCURACY, BudgetItem, WindowEnergy
from joulewatch_harness.analysis.results.model import REPEATS, BudgetLine, Estimate
from joulewatch_harness.gum import coverage_factor, effective_dof, mean, standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """Energy of several sensors in one window."""

    joules: float
    random: Mapping[str, float]
    """Item -> standard uncertainty, joules."""
    systematic: Mapping[str, float]
    """Item and family -> standard uncertainty, joules."""
    texts: Mapping[str, str]
    sources: frozenset[str]


def combine(energies: Sequence[WindowEnergy]) -> Combined:
    """Add the energies of disjoint sensors up, with their budgets."""
    random: dict[str, float] = {}
    systematic: dict[str, float] = {}
    texts: dict[str, str] = {}
    for energy in energies:
        for item in energy.budget:
            key = _key(item)
            texts.setdefault(key, item.text)
            if item.systematic:
                # Alike for all sensors of a window too, or of a family: they add up linearly.
                systematic[key] = systematic.get(key, 0.0) + item.standard_joules
            else:
                random[key] = math.hypot(random.get(key, 0.0), item.standard_joules)
    joules = math.fsum(energy.joules for energy in energies)
    return Combined(
        joules=joules,
        random=random,
        systematic=systematic,
        texts=texts,
        sources=frozenset(energy.method for energy in energies),
    )


def _key(item: BudgetItem) -> str:
    return f"{item.name} ({item.family})" if item.systematic and item.family else item.name


def combine_mean(
    rounds: Mapping[int, Sequence[tuple[float, Mapping[str, float]]]],
    systematic: Mapping[str, float],
    texts: Mapping[str, str],
    extra: Iterable[BudgetLine] = (),
) -> Estimate:
    """Mean over rounds of repeated windows, with a GUM budget.

    Args:
        rounds: Round -> windows of it: (value, item -> standard uncertainty of that window alone).
        systematic: Item -> standard uncertainty of the mean, the same in every repeat.
        texts: Item -> explanation.
        extra: Further lines.

    Returns:
        The mean of the rounds' means. Scatter between windows contains most random items already; counting
        these once more is cautious where rounds are few.
    """
    told = {number: mean([value for value, _ in windows]) for number, windows in rounds.items()}
    by_round = list(told.values())
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
                text=f"scatter of {len(by_round)} rounds",
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
        BudgetLine(name=name, kind="B", standard=standard, dof=math.inf, systematic=True, text=texts.get(name, ""))
        for name, standard in systematic.items()
    ]
    lines += list(extra)
    items = [(line.standard, line.dof) for line in lines]
    standard = math.sqrt(math.fsum(u * u for u, _ in items))
    if standard == 0:
        return Estimate(
            value=value,
            standard=0.0,
            expanded=0.0,
            factor=coverage_factor([(1.0, math.inf)]),
            dof=math.inf,
            budget=tuple(lines),
            rounds=told,
        )
    largest = max((u for name, u in systematic.items() if name.startswith(ACCURACY)), default=0.0)
    factor = coverage_factor(items, largest)
    return Estimate(
        value=value,
        standard=standard,
        expanded=factor * standard,
        factor=factor,
        dof=effective_dof(items),
        budget=tuple(lines),
        rounds=told,
    )
