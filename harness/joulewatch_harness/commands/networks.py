"""``joulewatch networks``: list the built-in networks."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from joulewatch_harness.analysis.reports.table import Column, Table, json_text, paragraph, terminal_width
from joulewatch_harness.commands.options import add_format_argument
from joulewatch_harness.networks import BUILTIN, Option

OTHER_NETWORKS: Final = (
    "Any other network: --model FILE.onnx, or --network module:object or file.py:object for a custom network."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch networks``."""
    add_format_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch networks``."""
    rows = [(name, key, option) for name, entry in BUILTIN.items() for key, option in entry.options.items()]
    table: Table[tuple[str, str, Option]] = Table(
        (
            Column("option", lambda row: row[1], text=True),
            Column("default", lambda row: row[2].default),
            Column("values", lambda row: str(row[2]), text=True),
            Column("meaning", lambda row: row[2].meaning, text=True),
        ),
        rows,
        title=lambda row: (
            f"{row[0]} ({', '.join((*BUILTIN[row[0]].precisions, *BUILTIN[row[0]].qonnx))}): {BUILTIN[row[0]].summary}"
        ),
    )
    if args.format == "json":
        documents = [
            {
                "name": name,
                "summary": entry.summary,
                "precisions": [*entry.precisions, *entry.qonnx],
                "options": {
                    key: {"default": option.default, "values": str(option), "meaning": option.meaning}
                    for key, option in entry.options.items()
                },
            }
            for name, entry in BUILTIN.items()
        ]
        sys.stdout.write(json_text(documents))
    elif args.format == "csv":
        named: Table[tuple[str, str, Option]] = Table((Column("network", lambda row: row[0]), *table.columns), rows)
        sys.stdout.write(named.csv())
    else:
        width = terminal_width()
        sys.stdout.write("\n".join([*table.lines(width), "", *paragraph(OTHER_NETWORKS, width), ""]))
    return 0
