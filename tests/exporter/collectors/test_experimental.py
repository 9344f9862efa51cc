"""Tests that the README marks the same families as experimental as the code."""

from __future__ import annotations

import re

from joulewatch_exporter.collectors import FAMILIES, experimental_note
from support.fake_family import Machine, fake_family
from support.paths import ROOT


def test_the_readme_marks_the_experimental_families() -> None:
    readme = (ROOT / "exporter/README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\w*) ?\|$", readme, re.MULTILINE)
    status = {name: word for name, word in rows if name in {family.name for family in FAMILIES}}
    assert status == {family.name: "experimental" if experimental_note(family) else "" for family in FAMILIES}


def test_the_attribute_is_optional() -> None:
    assert experimental_note(fake_family("meter", Machine())) == ""
