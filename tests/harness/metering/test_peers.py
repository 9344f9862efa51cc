"""Tests of how the benchmark summarises the windows of joulewatch and other tools."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.peers import accuracy_texts, cell_of
from benchmarks.peers_readme import README_TOOLS, readme_table


def window(joules: float | None, uncertainty: float | None = None) -> dict[str, Any]:
    return {"joules": joules, "uncertainty": uncertainty, "true_joules": 100.0}


def test_a_cell_has_mean_rms_and_largest_error_of_the_windows_with_a_number() -> None:
    cell = cell_of([window(103.0), window(99.0), window(None)])
    assert (cell["windows"], cell["without_number"]) == (3, 1)
    assert cell["mean_percent"] == pytest.approx(1.0)
    assert cell["rms_percent"] == pytest.approx(5**0.5)
    assert cell["largest_percent"] == pytest.approx(3.0)


def test_zero_and_negative_joules_are_counted() -> None:
    cell = cell_of([window(0.0), window(-5.0), window(100.0)])
    assert cell["zero_or_negative"] == 2
    assert accuracy_texts(cell)[-1] == "2 of ≤ 0 J"


def test_an_uncertainty_holds_if_the_truth_is_within() -> None:
    cell = cell_of([window(101.0, 1.5), window(102.0, 1.5), window(150.0)])
    assert (cell["stated"], cell["held"]) == (2, 1)
    assert cell["median_stated_percent"] == pytest.approx(1.5)
    assert accuracy_texts(cell)[4:6] == ["1.50", "1/2"]


def test_a_tool_without_any_number_has_no_error() -> None:
    assert accuracy_texts(cell_of([window(None)])) == ["1", "no number", "", "", "", "", "1"]


def test_the_rows_of_the_readme_pool_the_loads() -> None:
    accuracy, wraps, cost = [], [], []
    for tool in README_TOOLS:
        own = tool == "joulewatch library"
        for load, error in (("steady", 3.0), ("ripple", 4.0)):
            cell = cell_of([window(100.0 + error, 5.0 if own else None)])
            accuracy.append({"tool": tool, "length_s": 0.0203, "load": load, **cell})
        wraps.append({"tool": tool, "wraps": "1", **cell_of([window(100.1 if own else -20.0)])})
        cost.append({"tool": tool, "begin_ms": 2.0, "end_ms": 2.5})
    head, _, *rows = readme_table({"accuracy": accuracy, "wraps": wraps, "cost": cost}).splitlines()
    assert "rms error, 20 ms" in head
    assert rows[0] == "| Zeus | 3.54 % | no number | no number | none | ≤ 0 J | 4.5 ms |"
    assert rows[-1] == "| joulewatch library | 3.54 % | no number | no number | 5.0 % (2/2 held) | right | 4.5 ms |"
