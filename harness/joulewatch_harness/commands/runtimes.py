"""``joulewatch runtimes``: list the runtimes, and the options of one."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from joulewatch_harness.analysis.reports.table import Column, Table, json_text, paragraphs, terminal_width
from joulewatch_harness.commands.options import add_format_argument
from joulewatch_harness.plan.runtimes import RUNTIMES, Runtime
from joulewatch_harness.runtimes.shared.options import Description

PART_OF_JOULEWATCH: Final = "part of joulewatch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``joulewatch runtimes``."""
    parser.add_argument("name", metavar="NAME", nargs="?", choices=tuple(RUNTIMES), help="show the options of this one")
    add_format_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``joulewatch runtimes``."""
    shown = list(RUNTIMES.values()) if args.name is None else [RUNTIMES[args.name]]
    if args.format == "json":
        sys.stdout.write(json_text([_document(runtime) for runtime in shown]))
        return 0
    table: Table[Any] = _list(shown) if args.name is None else _options(shown[0])
    if args.format == "csv":
        sys.stdout.write(table.csv())
        return 0
    width = terminal_width()
    heading = [] if args.name is None else [_summary(shown[0]), f"Installed: {_installed(shown[0]) or 'no'}", ""]
    missing = [f"To install {item.name}: {item.install_command}" for item in shown if not _installed(item)]
    notes = [*missing, *(["Options of a runtime: joulewatch runtimes NAME"] if args.name is None else [])]
    lines = [*paragraphs(heading, width), *table.lines(width), *([""] if notes else []), *paragraphs(notes, width)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _list(runtimes: Sequence[Runtime]) -> Table[Runtime]:
    return Table(
        (
            Column("runtime", lambda runtime: runtime.name, text=True),
            Column("installed", lambda runtime: _installed(runtime) or "no", text=True),
            Column("summary", _summary, text=True),
        ),
        runtimes,
    )


def _options(runtime: Runtime) -> Table[tuple[str, Description]]:
    return Table(
        (
            Column("option", lambda row: row[0], text=True),
            Column("default", lambda row: row[1].default, text=True, least=20),
            Column("values", lambda row: row[1].values, text=True, least=11),
            Column("meaning", lambda row: row[1].meaning, text=True, least=30),
        ),
        list(_descriptions(runtime).items()),
    )


def _document(runtime: Runtime) -> dict[str, Any]:
    return {
        "name": runtime.name,
        "summary": runtime.summary,
        "installed": _installed(runtime) or None,
        "install_command": runtime.install_command,
        "experimental": runtime.never_run or None,
        "options": {
            name: {"default": option.default, "values": option.values, "meaning": option.meaning}
            for name, option in _descriptions(runtime).items()
        },
    }


def _summary(runtime: Runtime) -> str:
    return f"{runtime.summary} (experimental: {runtime.never_run})" if runtime.never_run else runtime.summary


def _descriptions(runtime: Runtime) -> Mapping[str, Description]:
    options: Any = importlib.import_module(runtime.options_module).Options
    return cast(Mapping[str, Description], options.descriptions())


def _installed(runtime: Runtime) -> str:
    """Return the version of the runtime's package, or that no package is needed; empty if it is not installed."""
    if not runtime.package:
        return PART_OF_JOULEWATCH
    if importlib.util.find_spec(runtime.package) is None:
        return ""
    owners = importlib.metadata.packages_distributions().get(runtime.package, ())
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(owners)))
    return versions or "yes"
