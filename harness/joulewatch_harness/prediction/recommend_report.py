"""A recommendation as text, CSV and JSON. Pure: text out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from joulewatch_harness.analysis.reports.table import DEFAULT_WIDTH, Column, Table, json_text, paragraphs
from joulewatch_harness.analysis.results.numbers import plain, prefix_for
from joulewatch_harness.prediction.predict import METHOD
from joulewatch_harness.prediction.recommend import DECIDED, Place, Recommendation

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
        return None if self.euros_per_kwh is None else _kwh_per_year(place) * self.euros_per_kwh

    def kilograms_per_year(self, place: Place) -> float | None:
        return None if self.grams_per_kwh is None else _kwh_per_year(place) * self.grams_per_kwh / 1000


def _kwh_per_year(place: Place) -> float:
    return place.watts * SECONDS_PER_YEAR / JOULES_PER_KWH


def recommend_lines(found: Recommendation, costs: Costs, width: int = DEFAULT_WIDTH) -> list[str]:
    """Return the ranking, the verdict, and what the idle power costs."""
    warning = paragraphs(["!!! PREDICTED, not measured !!!"], width)
    exponent, letter = prefix_for([place.joules.median for place in found.places])
    scale = 10.0**-exponent
    columns: list[Column[Place]] = [
        Column("device, runtime, precision", lambda place: place.candidate.title, text=True),
        Column(f"{letter}J per inference", lambda place: plain(place.joules.median * scale)),
        Column("90 %", lambda place: _range(place, scale)),
        Column("idle", lambda place: f"{place.idle_share:.0%}"),
        Column("W", lambda place: plain(place.watts)),
        Column("latency ms", lambda place: plain(place.latency_s * 1e3), priority=1),
    ]
    if costs.euros_per_kwh is not None:
        columns.append(Column("EUR/year", lambda place: f"{costs.euros_per_year(place):.2f}"))
    if costs.grams_per_kwh is not None:
        columns.append(Column("kg CO₂/year", lambda place: f"{costs.kilograms_per_year(place):.2f}"))
    scope = found.places[0].candidate.prediction.scope
    title = f"{found.network} at {found.rate:g} inferences/s, {scope}"
    shown = found.places[:SHOWN]
    lines = [*warning, "", title, *Table(columns, shown).lines(width)]
    lines += [f"... and {len(found.places) - SHOWN} more: --format json"] if len(found.places) > SHOWN else []
    lines += ["", *paragraphs([verdict(found)], width)]
    lines += paragraphs([f"To settle it: {found.settle}"] if found.settle else [], width)
    of_devices = {place.candidate.prediction.device: place for place in reversed(shown)}
    lines += paragraphs([text for place in reversed(of_devices.values()) if (text := idle_text(found, place))], width)
    lines += paragraphs((f"Excluded: {name}: {why}" for name, why in found.excluded.items()), width)
    notes = [note for place in shown for note in place.candidate.prediction.notes]
    lines += paragraphs((f"Note: {note}" for note in dict.fromkeys(notes)), width)
    return [*lines, "", *warning]


def verdict(found: Recommendation) -> str:
    """Return the answer in one sentence."""
    first, rival = found.places[0].candidate, found.rival
    if rival is None:
        only = f"Recommended: {first.title}: the only one that keeps the limits."
        return only if found.decided else f"Undecided: {first.title} has no validated interval."
    other = rival.candidate.title
    if not (first.validated and rival.candidate.validated):
        return f"Undecided: {first.title} or {other}: no validated interval."
    if found.decided:
        return (
            f"Recommended: {first.title}. It needs less than {other} with a probability of {rival.better:.0%}; than "
            "each other one with a higher probability."
        )
    return (
        f"Undecided: {first.title} needs less than {other} with a probability of {rival.better:.0%}; "
        f"{DECIDED:.0%} is required."
    )


def idle_text(found: Recommendation, place: Place) -> str:
    """Return what the idle power of a candidate costs, and its break-even rate; empty if it costs little."""
    one = place.candidate
    name = one.prediction.device
    if one.idle is None:
        return f"{name}: its idle power is not known; anything from 0 W to its power under load is assumed."
    if place.idle_share < MOSTLY_IDLE and place.break_even is None:
        return ""
    joules = one.idle.watts / found.rate
    exponent, letter = prefix_for([joules])
    text = (
        f"{name} draws {one.idle.watts:.4g} W at rest: at {found.rate:g}/s that is {plain(joules / 10**exponent)} "
        f"{letter}J per inference."
    )
    if place.better is None or name == found.places[0].candidate.prediction.device:
        return text
    first = found.places[0].candidate.prediction.device
    if place.break_even is None:
        return f"{text} It does not need less than {first} at any rate that both can reach."
    return f"{text} It needs less than {first} {'above' if place.better_above else 'below'} {place.break_even:.3g}/s."


def _range(place: Place, scale: float) -> str:
    low, high = place.joules.low, place.joules.high
    return "not validated" if low is None or high is None else f"{plain(low * scale)} to {plain(high * scale)}"


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
        "joules_per_inference": place.joules.median,
        "joules_low": place.joules.low,
        "joules_high": place.joules.high,
        "watts": place.watts,
        "latency_seconds": place.latency_s,
        "idle_watts": None if place.candidate.idle is None else place.candidate.idle.watts,
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
            "excluded": dict(found.excluded),
        }
    )


def recommend_csv(found: Recommendation, costs: Costs) -> str:
    """Return the ranking as CSV, in base units."""
    rows = [_document(place, costs) for place in found.places]
    columns = [Column[dict[str, Any]](name, lambda row, name=name: row[name]) for name in rows[0]]  # type: ignore[misc]
    return Table(columns, rows).csv()
