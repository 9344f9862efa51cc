"""The list of reason codes in harness/README.md has every code of the audit, with its severities, meaning and fix."""

from __future__ import annotations

import re
from typing import Final, get_args

from joulewatch_harness.analysis.results.audit.findings import FIXES, REASONS, Severity
from support.paths import ROOT

ENTRY: Final = re.compile(r"- `(\w+)` \(([\w, ]+)\): (.+?)\. \*Fix:\* (.+?)\.(?= - `|$)")
FIRST: Final = "Each code with its severities, its meaning and the fix:"


def entries() -> list[tuple[str, str, str, str]]:
    text = (ROOT / "harness" / "README.md").read_text(encoding="utf-8")
    paragraph = text[text.index(FIRST) + len(FIRST) :].strip().partition("\n\n")[0]
    return ENTRY.findall(" ".join(paragraph.split()))


def test_the_readme_lists_every_reason_once_in_order() -> None:
    assert [code for code, *_ in entries()] == sorted(REASONS)


def test_the_meanings_are_those_of_the_code() -> None:
    assert {code: meaning for code, _, meaning, _ in entries()} == REASONS


def test_every_reason_has_severities_and_a_fix() -> None:
    for code, severities, _, fix in entries():
        assert set(severities.split(", ")) <= set(get_args(Severity)), code
        assert len(fix) > 5, code


def test_the_fixes_are_those_of_the_code() -> None:
    """The report shows them; it has no links into the README."""
    link = re.compile(r"\[([^]]+)\]\([^)]*\)")
    assert {code: link.sub(r"\1", fix) for code, _, _, fix in entries()} == FIXES
