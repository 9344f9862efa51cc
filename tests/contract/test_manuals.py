"""The manual pages and shell completions are those of today's parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from joulewatch_exporter.arguments import Parser
from joulewatch_exporter.cli import make_parser as exporter_parser
from joulewatch_exporter.collectors import FAMILIES
from joulewatch_harness.cli import make_parser as harness_parser
from support.paths import ROOT

PARSERS = {parser.prog: parser for parser in (harness_parser(), exporter_parser(FAMILIES))}
DOCUMENTS = ("man/{}.1", "completions/bash/{}", "completions/zsh/_{}", "completions/fish/{}.fish")


def words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every long flag and every command."""
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag.startswith("--") and flag != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield name
                yield from words(sub)


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("command", PARSERS)
def test_every_flag_and_command_is_documented(command: str, document: str) -> None:
    """``make manuals`` rewrites the files."""
    text = (ROOT / "deploy" / document.format(command)).read_text(encoding="utf-8").replace("\\-", "-")
    # fish names a flag without its dashes, after -l.
    missing = [word for word in set(words(PARSERS[command])) if word not in text and f"-l {word[2:]}" not in text]
    assert not missing


@pytest.mark.parametrize("command", PARSERS)
def test_the_manual_shows_the_examples(command: str) -> None:
    text = (ROOT / "deploy" / "man" / f"{command}.1").read_text(encoding="utf-8").replace("\\-", "-")
    parser: Parser = PARSERS[command]
    assert len(parser.examples) == 3
    for example, _ in parser.examples:
        assert example in text
