"""Compare a text with a reviewed file."""

from __future__ import annotations

import difflib
from pathlib import Path


def check(text: str, path: Path, *, update: bool) -> None:
    """Fail and show the differences unless ``text`` equals the content of ``path``.

    Args:
        text: The output of the code.
        path: The golden file.
        update: Write the file instead (``pytest --update-golden``); review the change before you commit it.
    """
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"{path} is not there; run: pytest --update-golden"
    expected = path.read_text(encoding="utf-8")
    difference = "\n".join(
        difflib.unified_diff(expected.splitlines(), text.splitlines(), path.name, "now", lineterm="", n=1)
    )
    assert text == expected, f"differs from {path} (if that is right: pytest --update-golden)\n{difference}"
