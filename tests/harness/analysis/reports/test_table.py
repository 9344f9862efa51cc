"""The table that every report prints itself with: it fits the terminal, and never cuts a number."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.reports.table import Column, Table, paragraph, wrap

Row = tuple[str, float | None, str]
ROWS: tuple[Row, ...] = (
    ("radioml-vgg10/onnxruntime/fp32", 12.5, "published accuracy of the sensor"),
    ("small", None, "-"),
)


def columns(*, priority: int = 0) -> list[Column[Row]]:
    return [
        Column("network", lambda row: row[0], text=True),
        Column("energy per inference mJ", lambda row: row[1], priority=priority),
        Column("source", lambda row: row[2], text=True),
    ]


def test_a_wide_terminal_shows_all_on_one_line() -> None:
    assert Table(columns(), ROWS).lines(120) == [
        "network                         energy per inference mJ  source",
        "radioml-vgg10/onnxruntime/fp32                     12.5  published accuracy of the sensor",
        "small                                                 -  -",
    ]


def test_text_wraps_at_separators_and_headings_of_numbers_wrap_after_it() -> None:
    assert Table(columns(), ROWS).lines(70) == [
        "network                energy per inference mJ  source",
        "radioml-vgg10/                            12.5  published accuracy of",
        "onnxruntime/fp32                                the sensor",
        "small                                        -  -",
    ]
    assert Table(columns(), ROWS).lines(50) == [
        "                      energy per",
        "network             inference mJ  source",
        "radioml-vgg10/              12.5  published accuracy",
        "onnxruntime/fp32                  of the sensor",
        "small                          -  -",
    ]


def test_what_still_does_not_fit_is_dropped_by_priority_and_named() -> None:
    assert Table(columns(priority=1), ROWS).lines(40) == [
        "network              source",
        "radioml-vgg10/       published accuracy",
        "onnxruntime/fp32     of the sensor",
        "small                -",
        "Omitted to fit 40 columns: energy per",
        "  inference mJ. A wider terminal or",
        "  --format json shows them.",
    ]


def test_columns_of_one_priority_are_dropped_together_the_highest_number_first() -> None:
    def column(name: str, priority: int) -> Column[int]:
        return Column(name, lambda row: row, priority=priority)

    table = Table([column("aaaa", 0), column("bbbb", 2), column("cccc", 1), column("dddd", 2)], [123456789])
    assert table.lines(44)[0].split() == ["aaaa", "bbbb", "cccc", "dddd"]
    assert table.lines(41)[0].split() == ["aaaa", "cccc"]
    assert table.lines(19)[0].split() == ["aaaa"]
    assert "Omitted to fit 19 columns: bbbb, cccc, dddd." in " ".join(" ".join(table.lines(19)).split())
    # A number that is wider than the terminal stays whole.
    assert table.lines(5)[1] == "123456789"


def test_rows_of_one_title_stand_together_under_it() -> None:
    table = Table(
        [Column[tuple[str, int]]("batch", lambda row: row[1])], [("a", 1), ("a", 2), ("b", 1)], lambda row: row[0]
    )
    assert table.lines() == ["a", "batch", "    1", "    2", "", "b", "batch", "    1"]


def test_no_rows_are_no_lines() -> None:
    assert Table(columns(), []).lines() == []


def test_csv_and_records_have_all_columns_and_raw_values() -> None:
    table = Table([*columns(priority=1), Column("tags", lambda _: ("x", "y"))], ROWS)
    assert table.csv() == (
        "network,energy per inference mJ,source,tags\n"
        "radioml-vgg10/onnxruntime/fp32,12.5,published accuracy of the sensor,x y\n"
        "small,,-,x y\n"
    )
    assert table.records()[1] == {
        "network": "small",
        "energy per inference mJ": None,
        "source": "-",
        "tags": ("x", "y"),
    }


@given(
    st.lists(
        st.tuples(st.text("ab/_ -", max_size=30), st.integers(0, 10**9), st.text("xyz ,", max_size=60)), min_size=1
    ),
    st.integers(60, 130),
)
def test_every_line_fits_and_every_number_is_whole(rows: list[Row], width: int) -> None:
    lines = Table(columns(), rows).lines(width)
    assert max(map(len, lines)) <= width
    for _, number, _ in rows:
        assert any(str(number) in line.split() for line in lines)


@given(st.text("ab/_, -", max_size=60), st.integers(1, 20))
def test_wrapping_loses_nothing_but_blanks(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert max(map(len, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(("text", "lines"), [("a b", ["a b"]), ("  aa bb cc dd", ["  aa bb cc", "    dd"])])
def test_prose_is_indented_after_its_first_line(text: str, lines: list[str]) -> None:
    assert paragraph(text, 10) == lines


def test_csv_quotes_what_needs_it() -> None:
    text = Table([Column[str]("name", lambda row: row)], ['a "b", c']).csv()
    assert list(csv.reader(io.StringIO(text))) == [["name"], ['a "b", c']]
