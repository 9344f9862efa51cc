"""A recommendation as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import plain, prefix_for
from joulewatch_harness.prediction.predict import METHOD
from joulewatch_harness.prediction.recommend import DECIDED, DRAWS, Place, Recommendation, excluded_texts

SCHEMA_VERSION: Final = 1
JOULES_PER_KWH: Final = 3.6e6
SECONDS_PER_YEAR: Final = 365.25 * 86400
SHOWN: Final = 8
"""Rows of the table; JSON and CSV have all."""
MOSTLY_IDLE: Final = 0.5
"""From this share of idle energy on, the text shows what the idle power costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a kilowatt hour costs; None: not shown."""

    euros_per_kwh: float | None = None
    grams_per_kwh: float | None = None

    def euros_per_year(self, place: Place) -> float | None:
        kwh = _kwh_per_year(place)
        return None if self.euros_per_kwh is None or kwh is None else kwh * self.euros_per_kwh

    def kilograms_per_year(self, place: Place) -> float | None:
        kwh = _kwh_per_year(place)
        return None if self.grams_per_kwh is None or kwh is None else kwh * self.grams_per_kwh / 1000


def _kwh_per_year(place: Place) -> float | None:
    return None if place.watts is None else place.watts * SECONDS_PER_YEAR / JOULES_PER_KWH


def recommend_lines(found: Recommendation, costs: Costs, width: int = DEFAULT_WIDTH) -> list[str]:
    """Return the ranking, the verdict, and what the idle power costs."""
    warning = paragraphs(["!!! PREDICTED, not measured !!!"], width)
    exponent, letter = prefix_for([place.joules or place.high or 0.0 for place in found.places])
    scale = 10.0**-exponent
    columns: list[Column[Place]] = [
        Column("device, runtime, precision", lambda place: place.candidate.title, text=True),
        Column(f"{letter}J per inference", lambda place: _scaled(place.joules, scale)),
        Column("90 %", lambda place: _range(place, scale)),
        Column("idle", lambda place: None if place.idle_share is None else f"{place.idle_share:.0%}"),
        Column("W", lambda place: _scaled(place.watts, 1.0)),
        Column("latency ms", lambda place: plain(place.latency_s * 1e3), priority=1),
    ]
    if costs.euros_per_kwh is not None:
        columns.append(Column("EUR/year", lambda place: _cents(costs.euros_per_year(place))))
    if costs.grams_per_kwh is not None:
        columns.append(Column("kg CO₂/year", lambda place: _cents(costs.kilograms_per_year(place))))
    scope = found.places[0].candidate.prediction.scope
    title = f"{found.network} at {found.rate:g} inferences/s, {scope}"
    shown = found.places[:SHOWN]
    lines = [*warning, "", title, *Table(columns, shown).lines(width)]
    lines += [f"... and {len(found.places) - SHOWN} more: --format json"] if len(found.places) > SHOWN else []
    lines += ["", *paragraphs([verdict(found)], width)]
    missing = [f"{name}: {text}" for name, text in found.unknown.items()]
    lines += paragraphs((f"No validated interval: {text}" for text in missing), width)
    lines += paragraphs(
        [f"To settle it: {found.settle}"] if found.settle and found.settle not in missing else [], width
    )
    of_devices = {place.candidate.prediction.device: place for place in reversed(shown)}
    lines += paragraphs([text for place in reversed(of_devices.values()) if (text := idle_text(found, place))], width)
    lines += paragraphs((f"Excluded: {text}" for text in excluded_texts(found.excluded)), width)
    notes = [note for place in shown for note in place.candidate.prediction.notes]
    lines += paragraphs((f"Note: {note}" for note in dict.fromkeys(notes)), width)
    return [*lines, "", *warning]


def verdict(found: Recommendation) -> str:
    """Return the answer in one sentence."""
    first, rival = found.places[0].candidate, found.rival
    if found.unknown and (rival is None or (rival.better or 0.0) >= DECIDED):
        return f"Undecided: {first.title} cannot be compared with {' and '.join(found.unknown)}."
    if rival is None:
        only = f"Recommended: {first.title}: the only one that keeps the limits."
        return only if found.decided else f"Undecided: {first.title} has no validated interval."
    other = rival.candidate.title
    if not (first.validated and rival.candidate.validated):
        return f"Undecided: {first.title} or {other}: no validated interval."
    pair = (first, rival.candidate)
    unknown = list(dict.fromkeys(one.prediction.device for one in pair if not one.rest.known))
    if unknown and not found.decided:
        return (
            f"Undecided: {first.title} or {other}: it depends on the idle power of {' and '.join(unknown)}, which is "
            "not known."
        )
    probability = f"with a probability of {'at least ' if unknown else ''}{probability_text(rival.better or 0.0)}"
    if found.decided:
        return (
            f"Recommended: {first.title}. It needs less than {other} {probability}; than each other one with a higher "
            "probability."
        )
    return f"Undecided: {first.title} needs less than {other} {probability}; {DECIDED:.0%} is required."


def probability_text(probability: float) -> str:
    """Return a probability, rounded down, with no more digits than the draws resolve."""
    resolved = 20 / DRAWS
    if probability > 1 - resolved:
        return f">{1 - resolved:.1%}"
    if probability < resolved:
        return f"<{resolved:.1%}"
    digits = 0 if 0.01 <= probability < 0.99 else 1
    return f"{math.floor(probability * 100 * 10**digits) / 10**digits:.{digits}f}%"


def idle_text(found: Recommendation, place: Place) -> str:
    """Return what the idle power of a candidate costs, and its break-even rate; empty if it costs little."""
    one = place.candidate
    name = one.prediction.device
    if not one.rest.known:
        return (
            f"{name}: its idle power is not known. Its energy is the range from 0 W to {plain(one.rest.watts)} W at "
            "rest, the least power under load; its place is that of the upper end."
        )
    if (place.idle_share or 0.0) < MOSTLY_IDLE and place.break_even is None:
        return ""
    watts = f"{one.rest.watts:.4g}"
    joules = one.rest.watts / found.rate
    exponent, letter = prefix_for([joules])
    text = (
        f"{name} draws {watts} W at rest: at N inferences per second that is {watts}/N J each, "
        f"{plain(joules / 10**exponent)} {letter}J at {found.rate:g}/s"
    )
    first = found.places[0].candidate
    if place.better is None or name == first.prediction.device or not first.rest.known:
        return f"{text}."
    if place.break_even is None:
        return f"{text}. It does not need less than {first.prediction.device} at any rate that both can reach."
    side = "above" if place.better_above else "below"
    return f"{text}. It wins against {first.prediction.device} {side} {_grouped(place.break_even)}/s."


def _grouped(value: float) -> str:
    """Return a number with three digits: ``33,000`` or ``0.125``."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _scaled(value: float | None, scale: float) -> str | None:
    return None if value is None else plain(value * scale)


def _cents(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _range(place: Place, scale: float) -> str:
    if place.low is None or place.high is None:
        return "not validated"
    return f"{plain(place.low * scale)} to {plain(place.high * scale)}"


def _document(place: Place, costs: Costs) -> dict[str, Any]:
    one = place.candidate.prediction
    return {
        "method": METHOD,
        "network": one.network,
        "device": one.device,
        "runtime": one.runtime,
        "precision": one.precision,
        "batch_size": one.batch_size,
        "scope": one.scope,
        "joules_per_inference": place.joules,
        "joules_low": place.low,
        "joules_high": place.high,
        "watts": place.watts,
        "latency_seconds": place.latency_s,
        "idle_watts": place.candidate.rest.watts if place.candidate.rest.known else None,
        "idle_watts_at_most": place.candidate.rest.watts,
        "idle_share": place.idle_share,
        "probability_first_needs_less": place.better,
        "break_even_per_second": place.break_even,
        "euros_per_year": costs.euros_per_year(place),
        "kg_co2_per_year": costs.kilograms_per_year(place),
    }


def recommend_json(found: Recommendation, costs: Costs) -> str:
    """Return the recommendation as JSON, in base units."""
    return json_text(
        {
            "schema_version": SCHEMA_VERSION,
            "network": found.network,
            "rate_per_second": found.rate,
            "decided": found.decided,
            "verdict": verdict(found),
            "settle": found.settle,
            "ranking": [_document(place, costs) for place in found.places],
            "excluded": {name: one.text for name, one in found.excluded.items()},
            "without_number": dict(found.unknown),
        }
    )


def recommend_csv(found: Recommendation, costs: Costs) -> str:
    """Return the ranking as CSV, in base units."""
    rows = [_document(place, costs) for place in found.places]
    columns = [Column[dict[str, Any]](name, lambda row, name=name: row[name]) for name in rows[0]]  # type: ignore[misc]
    return Table(columns, rows).csv()
