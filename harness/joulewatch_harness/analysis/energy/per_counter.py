"""Joules per unit of a counter in one window: increases with their uncertainty, and quotients. Pure.

A counter is interpolated at the edges of the window as an energy counter is (``from_history``): the samples around an
edge are hard bounds, and the errors of the interpolation at the samples nearby show its uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from joulewatch_harness.analysis.energy.from_history import energy_from_counter
from joulewatch_harness.analysis.energy.sensor_energies import Joules
from joulewatch_harness.analysis.energy.window_energy import ClockOffset, Span
from joulewatch_harness.analysis.sources.counters import Counter
from joulewatch_harness.errors import CoverageError
from joulewatch_harness.gum import NORMAL_95

LARGEST_DOUBT: Final = 0.5
"""Largest relative uncertainty of a counter that is divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Increase:
    """By how much counters rose in a window."""

    value: float
    expanded: float
    """At 95 % coverage."""
    lower: float
    """Hard bounds, from the samples around the edges, restarts and ends of targets."""
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotient:
    """A quotient with its uncertainty and hard bounds; ``upper`` may be infinite."""

    value: float
    expanded: float
    lower: float
    upper: float


def increase(counters: Sequence[Counter], span: Span) -> Increase:
    """Return the sum of the increases of some counters.

    Counters of one target have samples at the same times, so their errors are added linearly; those of several targets
    are independent.

    Raises:
        CoverageError: ``unbracketed``, ``sample_gap``: the samples of a counter do not cover an edge.
    """
    expanded: dict[tuple[str, str], float] = {}
    values, lowers, uppers = [], [], []
    for counter in counters:
        one = _increase(counter, span)
        values.append(one.value)
        lowers.append(one.lower)
        uppers.append(one.upper)
        expanded[counter.target] = expanded.get(counter.target, 0.0) + one.expanded
    return Increase(
        value=math.fsum(values),
        expanded=math.hypot(*expanded.values()),
        lower=math.fsum(lowers),
        upper=math.fsum(uppers),
    )


def _increase(counter: Counter, span: Span) -> Increase:
    try:
        # A scrape reads the counter a little after the time of its sample: the samples' clock is behind.
        counted = energy_from_counter(counter.series, span, offset=ClockOffset(-counter.delay_s, 0.0))
    except CoverageError as error:
        where = counter.labels.get("instance", "")
        raise CoverageError(error.reason, f"{counter.name}{f' of {where}' if where else ''}: {error}") from error
    doubts = [doubt for doubt in counter.doubts if span.start_s < doubt.at_s <= span.end_s]
    more, less = math.fsum(doubt.more for doubt in doubts), math.fsum(doubt.less for doubt in doubts)
    # Each doubt is uniform from the value to its bound: mean square 1/3.
    doubtful = math.sqrt(math.fsum((doubt.more**2 + doubt.less**2) / 3 for doubt in doubts))
    return Increase(
        value=counted.joules,
        expanded=NORMAL_95 * math.hypot(counted.standard_joules, doubtful),
        lower=max(counted.lower_joules - less, 0.0),
        upper=counted.upper_joules + more,
    )


def joules_per_unit(energy: Joules, units: Increase) -> Quotient:
    """Return the energy per unit of a counter.

    Raises:
        CoverageError: ``no_units``: the counter did not rise; ``too_few_units``: it rose by less than twice its
            uncertainty.
    """
    check_units(units)
    value = energy.joules / units.value
    relative = math.hypot(units.expanded / units.value, energy.expanded_joules / energy.joules if energy.joules else 0)
    return Quotient(
        value=value,
        expanded=value * relative if energy.joules else energy.expanded_joules / units.value,
        lower=energy.lower_joules / units.upper,
        upper=energy.upper_joules / units.lower if units.lower > 0 else math.inf,
    )


def check_units(units: Increase) -> None:
    """Raise the CoverageError of ``joules_per_unit`` if a counter cannot be divided by."""
    if units.value <= 0:
        raise CoverageError("no_units", "the counter did not rise in the window")
    if units.expanded > LARGEST_DOUBT * units.value:
        raise CoverageError(
            "too_few_units",
            f"the counter rose by {units.value:.3g} ± {units.expanded:.2g}: too few to divide by; use a longer window",
        )


def share_of(energy: Joules, part: Increase, others: Increase) -> Joules:
    """Return the share of an energy that is in proportion to a counter: a convention, not a measurement.

    Args:
        energy: Of all.
        part: Of the group.
        others: Of all other groups.
    """
    total = part.value + others.value
    share = part.value / total
    uncertain = math.hypot((1 - share) * part.expanded, share * others.expanded) / total
    low = part.lower / (part.lower + others.upper) if part.lower > 0 else 0.0
    high = part.upper / (part.upper + others.lower) if part.upper > 0 else 0.0
    return Joules(
        joules=energy.joules * share,
        expanded_joules=math.hypot(energy.expanded_joules * share, energy.joules * uncertain),
        lower_joules=energy.lower_joules * low,
        upper_joules=energy.upper_joules * high,
        accuracy_known=energy.accuracy_known,
    )
