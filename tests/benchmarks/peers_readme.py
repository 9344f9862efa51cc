"""The few rows of ``peers`` for the README: ``python tests/benchmarks/peers_readme.py`` prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import markdown_table

README_TOOLS: Final = ("Zeus", "CodeCarbon task", "pyJoules", "pyRAPL", "joulewatch library")
README_LENGTHS_S: Final = {0.0203: "20 ms", 0.2031: "200 ms", 1.0037: "1 s"}
RIGHT_PERCENT: Final = 5.0
"""Largest error of a tool that handles wraps."""


def readme_table(result: Mapping[str, Any]) -> str:
    """Return the few rows for the README, from a stored result."""
    rows = []
    for tool in README_TOOLS:
        accuracy = [cell for cell in result["accuracy"] if cell["tool"] == tool]
        cost = next(cell for cell in result["cost"] if cell["tool"] == tool)
        wraps = [cell for cell in result["wraps"] if cell["tool"] == tool]
        stated = [cell for cell in accuracy if cell["length_s"] == min(README_LENGTHS_S) and cell["stated"]]
        held = f"{sum(cell['held'] for cell in stated)}/{sum(cell['stated'] for cell in stated)}"
        percent = f"{max((cell['median_stated_percent'] for cell in stated), default=0.0):.1f} % ({held} held)"
        rows.append(
            [
                tool,
                *(_pooled([cell for cell in accuracy if cell["length_s"] == length]) for length in README_LENGTHS_S),
                percent if stated else "none",
                _wraps_text(wraps),
                f"{cost['begin_ms'] + cost['end_ms']:.1f} ms",
            ]
        )
    lengths = README_LENGTHS_S.values()
    head = ["tool", *(f"rms error, {text}" for text in lengths), "stated ± at 20 ms", "wraps", "begin + end"]
    return markdown_table(head, rows)


def _pooled(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the rms error over the loads."""
    counts = [cell["windows"] - cell["without_number"] for cell in cells]
    squares = sum(count * cell.get("rms_percent", 0.0) ** 2 for count, cell in zip(counts, cells, strict=True))
    return f"{(squares / sum(counts)) ** 0.5:.2f} %" if sum(counts) else "no number"


def _wraps_text(cells: Sequence[Mapping[str, Any]]) -> str:
    if not cells:
        return ""
    if any(cell["zero_or_negative"] for cell in cells):
        return "≤ 0 J"
    largest = max((cell["largest_percent"] for cell in cells if "largest_percent" in cell), default=0.0)
    if any(cell["without_number"] for cell in cells):
        return "no number"
    return "right" if largest <= RIGHT_PERCENT else f"{largest:.0f} % off"


if __name__ == "__main__":
    stored = Path(__file__).parent / "results/peers.json"
    sys.stdout.write(readme_table(json.loads(stored.read_text())))
