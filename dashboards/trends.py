"""Panels over the batch size, with bands, and scatter plots: trend panels with their queries and variables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from grafana_foundation_sdk.builders import common, trend
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    MERGED,
    SORTED_BY_BATCH_SIZE,
    Override,
    Variable,
    colour,
    legend,
    logarithmic,
    override,
    query_variable,
    tooltip,
    transformation,
)

# A figure has a fixed number of lines, each with its variable. A band is filled between two series whose names the
# dashboard must know, so the series of line 2 are always `2 mean`, `2 lower` and `2 upper`.
LINE_COLOURS: Final = ("green", "yellow", "blue", "orange", "red", "purple")
LINE_NUMBERS: Final = range(1, len(LINE_COLOURS) + 1)
_MATRIX_FIELD: Final = "batch_size\\series"
"""Name that Grafana's transformation "Grouping to matrix" gives its first column."""


def as_line(values: str, labels: Sequence[str]) -> str:
    """Return PromQL that adds the label ``line`` to ``values``: what the legend shows, and what a variable selects."""
    return f'label_join({values}, "line", " · ", {", ".join(json.dumps(label) for label in labels)})'


def line_variables(values: str, labels: Sequence[str], *, shown: bool) -> Iterator[Variable]:
    """Yield the variables that select the lines of ``trend_over_batch_size``: the first, the next one, and so on.

    Args:
        values: PromQL for all lines that may be selected.
        labels: The labels that are a line's name.
        shown: Show the variables at the top of the page.
    """
    for number in LINE_NUMBERS:
        lines = f"group by (line) ({as_line(values, labels)})"
        for earlier in range(1, number):
            lines += f' unless on (line) label_replace(vector(1), "line", "$line{earlier}", "", "")'
        yield (
            query_variable(f"line{number}", f"Line {number}", f"query_result({lines})", regex='/line="([^"]+)"/')
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .hide(models.VariableHide.DONT_HIDE if shown else models.VariableHide.HIDE_VARIABLE)
        )


def over_lines(mean: str, uncertainty: str, labels: Sequence[str]) -> str:
    """Return PromQL for ``trend_over_batch_size``: ``mean`` and its bounds, with the labels series and batch_size."""
    bounds = []
    for bound, values in (
        ("mean", mean),
        ("lower", f"({mean} - {uncertainty})"),
        ("upper", f"({mean} + {uncertainty})"),
    ):
        named = as_line(values, labels)
        for number in LINE_NUMBERS:
            # Text in backticks has no escapes, so the regular expression may have backslashes.
            named = f'label_replace({named}, "series", "{number} {bound}", "line", `${{line{number}:regex}}`)'
        bounds.append(f"max by (series, batch_size) ({named})")
    # An empty label is none: this drops what no variable selects.
    return f'({" or ".join(bounds)}) unless on (series) label_replace(vector(0), "series", "", "", "")'


def trend_over_batch_size() -> trend.Panel:
    """Return a panel of ``over_lines``: both axes are logarithmic."""
    return (
        trend.Panel()
        .color_scheme(colour("palette-classic"))
        .transformations(
            [
                *SORTED_BY_BATCH_SIZE,
                transformation(
                    "groupingToMatrix",
                    columnField="series",
                    rowField="batch_size",
                    valueField="Value",
                    emptyValue="null",
                ),
            ]
        )
        .scale_distribution(logarithmic(10))
        .line_width(2)
        .point_size(6)
        .show_points(commons.VisibilityMode.ALWAYS)
        .span_nulls(True)
        .legend(legend())
        .tooltip(tooltip(commons.SortOrder.NONE))
    )


def scatter(by: str, x_label: str) -> tuple[trend.Panel, list[Override]]:
    """Return a panel with a point for each row of query B (horizontal) and query A (vertical), and its overrides.

    Args:
        by: The label with a colour for each value. Both queries have the shape ``rows`` and the same labels: a
            metric's name would be one more, and no rows would match.
        x_label: Label of the horizontal axis.
    """
    x_column = "Value #B"
    built = (
        trend.Panel()
        .color_scheme(colour("palette-classic"))
        .transformations(
            [
                MERGED,
                transformation("sortBy", fields={}, sort=[{"field": x_column}]),
                transformation(
                    "groupingToMatrix", columnField=by, rowField=x_column, valueField="Value #A", emptyValue="null"
                ),
            ]
        )
        .max_data_points(200)
        .draw_style(commons.GraphDrawStyle.POINTS)
        .point_size(4)
        .show_points(commons.VisibilityMode.ALWAYS)
        .scale_distribution(common.ScaleDistributionConfig().type(commons.ScaleDistribution.LINEAR))
        .min(0)
        .legend(legend())
        .tooltip(tooltip(commons.SortOrder.NONE))
    )
    return built, [override("byName", f"{x_column}\\{by}", unit="none", custom__axisLabel=x_label)]


def line_overrides() -> list[Override]:
    """Return the names, colours and bands of the lines of ``trend_over_batch_size``, and its axis of batch sizes."""
    overrides = [
        override(
            "byName",
            _MATRIX_FIELD,
            unit="none",
            custom__axisLabel="batch size",
            custom__scaleDistribution={"type": "log", "log": 2},
        )
    ]
    for number, shade in zip(LINE_NUMBERS, LINE_COLOURS, strict=True):
        fixed = {"mode": "fixed", "fixedColor": shade}
        bound = {
            "color": fixed,
            "custom__lineWidth": 0,
            "custom__showPoints": "never",
            "custom__hideFrom": {"legend": True, "tooltip": False, "viz": False},
        }
        overrides += [
            override("byName", f"{number} mean", displayName=f"${{line{number}}}", color=fixed),
            override("byName", f"{number} lower", **bound),
            override(
                "byName", f"{number} upper", **bound, custom__fillBelowTo=f"{number} lower", custom__fillOpacity=25
            ),
        ]
    return overrides
