"""The Markdown documents: every relative link and anchor resolves, no line is longer than 120 characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LONGEST_LINE: Final = 120
LARGEST_PICTURE_BYTES: Final = 150_000
GENERATED: Final = ROOT / "tests" / "benchmarks" / "results"
"""The benchmarks write these: their tables are as wide as their figures need."""
FOREIGN: Final = re.compile(r"(^|/)(\.|build/|node_modules/)")
"""Folders of tools: environments, caches, packages."""

DOCUMENTS: Final = sorted(path for path in ROOT.rglob("*.md") if not FOREIGN.search(str(path.relative_to(ROOT))))
HAND_WRITTEN: Final = [path for path in DOCUMENTS if GENERATED not in path.parents]

_CODE: Final = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_PICTURE: Final = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Yield the target file and the anchor of every link that is not a URL."""
    for target in _LINK.findall(_CODE.sub("", document.read_text("utf-8"))):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield ((document.parent / path).resolve() if path else document), anchor


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^ *```.*?^ *```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_resolve(document: Path) -> None:
    for path, anchor in links(document):
        assert path.exists(), path
        assert not anchor or anchor in anchors(path), f"{name(path)} has no heading #{anchor}"


@pytest.mark.parametrize("document", HAND_WRITTEN, ids=name)
def test_lines_are_short(document: Path) -> None:
    long = [
        number for number, line in enumerate(document.read_text("utf-8").splitlines(), 1) if len(line) > LONGEST_LINE
    ]
    assert long == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_pictures_have_a_text_and_are_small(document: Path) -> None:
    for text, target in _PICTURE.findall(document.read_text("utf-8")):
        assert len(text) > 20, f"{target}: the text must say what the picture shows"
        assert (document.parent / target).stat().st_size < LARGEST_PICTURE_BYTES, target


def test_there_are_documents_with_links() -> None:
    """An empty list above would pass every test."""
    assert {"README.md", "harness/README.md", "exporter/README.md"} <= {name(path) for path in HAND_WRITTEN}
    assert any(anchor for _, anchor in links(ROOT / "README.md"))
