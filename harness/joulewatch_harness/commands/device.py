"""``joulewatch device``: the cards of devices, one of them with its sources, and a card made from a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from joulewatch_harness.clients.options import add_prometheus_arguments, options_from_args
from joulewatch_harness.commands.options import add_format_argument, add_output_argument
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.prediction.cards import Card, Fact

_SHOWN: Final = {"1/s": ("TOP/s", 1e-12), "B/s": ("GB/s", 1e-9), "W": ("W", 1.0)}
"""Unit -> unit and factor for display."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch device``."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "name", nargs="?", metavar="NAME|FILE.yaml", help="show one card with its sources (default: list all cards)"
    )
    choice.add_argument("--from-run", metavar="RUN", help="write a card of the device of this run to stdout, as YAML")
    add_output_argument(parser)
    add_format_argument(parser)
    add_prometheus_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch device``.

    Raises:
        ConfigError, QueryError, RecordError: The card or run is unknown, or cannot be read.
    """
    from joulewatch_harness.prediction.cards import card_yaml, cards, find_card

    if args.from_run is not None:
        from joulewatch_harness.commands.compare import read
        from joulewatch_harness.prediction.own_card import card_of_run

        if args.format != "table":
            raise ConfigError("--from-run writes YAML: omit --format")
        stored = read(args.from_run, args.output, options_from_args(args))
        sys.stdout.write(card_yaml(card_of_run(stored, f"{datetime.now(UTC):%Y-%m-%d}")))
        return 0
    sys.stdout.write(_rendered([find_card(args.name)] if args.name else list(cards().values()), args))
    return 0


def _rendered(chosen: Sequence[Card], args: argparse.Namespace) -> str:
    from joulewatch_harness.analysis.reports.table import json_text, terminal_width

    if args.format == "json":
        return json_text([_document(card) for card in chosen])
    if args.format == "csv":
        return _csv(chosen)
    return "\n".join([*(_card_lines if args.name else _list_lines)(chosen, terminal_width()), ""])


def _list_lines(chosen: Sequence[Card], width: int) -> list[str]:
    from joulewatch_harness.analysis.reports.table import Column, Table, paragraph

    def number(name: str) -> Any:
        return lambda card: _number(card.fact(name))

    columns: tuple[Column[Card], ...] = (
        Column("name", lambda card: card.name, text=True),
        Column("kind", lambda card: card.kind, text=True, least=5),
        Column("fp32 TFLOP/s", number("peak_operations_per_second.fp32")),
        Column("GB/s", number("memory_bandwidth_bytes_per_second")),
        Column("TDP W", number("tdp_watts")),
        Column("idle W", number("idle_watts")),
    )
    text = "- is not known. * is estimated. 'joulewatch device NAME' shows the sources."
    return [*Table(columns, chosen).lines(width), "", *paragraph(text, width)]


def _number(fact: Fact | None) -> str | None:
    return None if fact is None else _shown(fact) + ("*" if fact.status == "estimated" else "")


def _shown(fact: Fact) -> str:
    value = fact.value * _SHOWN[fact.unit][1]
    return f"{value:.4g}" if value < 9999.5 else f"{value:.0f}"


def _card_lines(chosen: Sequence[Card], width: int) -> list[str]:
    from joulewatch_harness.analysis.reports.table import Column, Table, paragraphs

    (card,) = chosen
    facts = card.facts()
    sources = list(dict.fromkeys(source for fact in facts for source in fact.sources))
    columns: tuple[Column[Fact], ...] = (
        Column("field", lambda fact: fact.name, text=True),
        Column("value", _shown),
        Column("unit", lambda fact: _SHOWN[fact.unit][0], text=True, least=6),
        Column("status", lambda fact: fact.status, text=True, least=9),
        Column("scope", lambda fact: fact.scope, text=True, least=6, priority=1),
        Column("source", lambda fact: ", ".join(f"[{sources.index(one) + 1}]" for one in fact.sources), text=True),
    )
    lines = [f"{card.title} ({card.kind})", *Table(columns, facts).lines(width)]
    known = {fact.name.partition(".")[0] for fact in facts}
    missing = [name for name in ("peak_operations_per_second", "memory_bandwidth_bytes_per_second", "tdp_watts",
                                 "idle_watts") if name not in known]  # fmt: skip
    texts = [f"{fact.name}: {text}" for fact in facts for text in (fact.formula, fact.note) if text]
    texts += [f"Not known: {', '.join(missing)}"] if missing else []
    texts += [card.note] if card.note else []
    texts += [
        f"[{number}] {source.title}; {source.date}; read {source.opened}" + (f"; {source.url}" if source.url else "")
        for number, source in enumerate(sources, 1)
    ]
    return [*lines, "", *paragraphs(texts, width)]


def _document(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "kind": card.kind,
        "devices": list(card.devices),
        "note": card.note,
        "fields": {
            fact.name: {
                "value": fact.value,
                "unit": fact.unit,
                "status": fact.status,
                "scope": fact.scope,
                "formula": fact.formula,
                "note": fact.note,
                "sources": [
                    {"title": one.title, "url": one.url, "date": one.date, "opened": one.opened} for one in fact.sources
                ],
            }
            for fact in card.facts()
        },
    }


def _csv(chosen: Sequence[Card]) -> str:
    from joulewatch_harness.analysis.reports.table import Column, Table

    columns: tuple[Column[tuple[Card, Fact]], ...] = (
        Column("name", lambda row: row[0].name),
        Column("field", lambda row: row[1].name),
        Column("value", lambda row: row[1].value),
        Column("unit", lambda row: row[1].unit),
        Column("status", lambda row: row[1].status),
        Column("scope", lambda row: row[1].scope),
        Column("source", lambda row: "; ".join(source.title for source in row[1].sources)),
        Column("url", lambda row: "; ".join(source.url for source in row[1].sources)),
        Column("date", lambda row: "; ".join(source.date for source in row[1].sources)),
        Column("note", lambda row: row[1].note),
    )
    return Table(columns, [(card, fact) for card in chosen for fact in card.facts()]).csv()
