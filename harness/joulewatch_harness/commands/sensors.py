"""``joulewatch sensors``: list the sensors of an exporter, and how short a window each one can measure."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from joulewatch_exporter.arguments import number
from joulewatch_harness.commands.options import add_format_argument, shell_words
from joulewatch_harness.errors import ConfigError

if TYPE_CHECKING:
    from joulewatch_harness.metering.sensors import Cost, SensorRow

DEFAULT_TEST_S: Final = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch sensors``."""
    parser.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help="exporter (default: $JOULEWATCH_EXPORTER, else that of this machine, else one is started)",
    )
    parser.add_argument(
        "--test", action="store_true", help="measure the refresh periods, and what reading the exporter costs"
    )
    parser.add_argument(
        "--seconds", type=number(ge=0.5, le=3600), metavar="S", help=f"length of the test (default: {DEFAULT_TEST_S:g})"
    )
    parser.add_argument(
        "--exporter.flags",
        dest="exporter_flags",
        type=shell_words,
        default=[],
        help="flags for the exporter that is started",
    )
    add_format_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch sensors``; return the exit code."""
    from joulewatch_harness.analysis.reports.table import json_text, terminal_width
    from joulewatch_harness.metering.exporters import connect
    from joulewatch_harness.metering.sensors import describe, examine
    from joulewatch_harness.metering.sensors_report import document, lines, table

    if args.seconds is not None and not args.test:
        raise ConfigError("--seconds needs --test")
    seconds = DEFAULT_TEST_S if args.seconds is None else args.seconds
    costs: list[Cost] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulewatch-")))
        urls = () if args.url is None else (args.url,)
        found = connect(urls, folder, stack, exporter_flags=args.exporter_flags)
        rows = describe(found.urls, found.sensors)
        if args.test:
            tested: list[SensorRow] = []
            for exporter, url in zip(found.exporters, found.urls, strict=True):
                own = [row for row in rows if row.record.exporter == exporter.name]
                more, cost = examine(url, own, seconds)
                tested += more
                costs.append(cost)
            rows = tested
    if args.format == "csv":
        sys.stdout.write(table(rows, tested=args.test).csv())
    elif args.format == "json":
        sys.stdout.write(json_text(document(found.exporters, rows, costs)))
    else:
        text = lines(found.exporters, rows, costs, terminal_width())
        sys.stdout.write("".join(f"{line}\n" for line in text))
    return 0
