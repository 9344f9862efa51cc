"""Write the manual pages and the shell completions of both commands, from their parsers.

    python deploy/build.py    # rewrites deploy/man and deploy/completions

Packages install the files (``shared-data`` in pyproject.toml), so that users need neither of the two libraries.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import shtab
from argparse_manpage.manpage import Manpage

from joulewatch_exporter.arguments import Parser
from joulewatch_exporter.cli import make_parser as exporter_parser
from joulewatch_exporter.collectors import FAMILIES
from joulewatch_harness.cli import make_parser as harness_parser

FOLDER: Final = Path(__file__).resolve().parent
COMPLETIONS: Final = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
"""Shell -> name of the file, as each shell searches it."""
FILES: Final = ("FILE", "FILE.onnx", "PLAN.yaml", "RECORDING")
FOLDERS: Final = ("DIR",)


def parsers() -> tuple[Parser, ...]:
    """Return the parsers of both commands, with every subcommand."""
    return harness_parser(), exporter_parser(FAMILIES)


def files() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of every file."""
    for parser in parsers():
        yield FOLDER / "man" / f"{parser.prog}.1", manual(parser)
        _mark_files(parser)
        for shell, name in COMPLETIONS.items():
            yield FOLDER / "completions" / shell / name.format(parser.prog), shtab.complete(parser, shell=shell)


def manual(parser: Parser) -> str:
    """Return the manual page in roff."""
    page = Manpage(parser)
    page.section = "1"
    page.manual = "joulewatch"
    page.add_section("EXAMPLES", ">", "\n\n".join(f"{command}\n    {purpose}" for command, purpose in parser.examples))
    # Remove the date of the build, so that a rebuild changes nothing.
    return re.sub(r"^(\.TH \S+ \S+) \"[^\"]*\"", r"\1 \"\"", str(page), count=1) + "\n"


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Let the shells complete file names where an argument is one."""
    for action in parser._actions:
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _mark_files(sub)


if __name__ == "__main__":
    for path, text in files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
