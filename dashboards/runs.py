"""Runs and their results, for the dashboards that show them: queries, variables and panels.

The harness and the analysis deliver a run once. Their queries cover a year around the end of the time range, so that
a run is found whatever the time range is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.models import dashboard as models
from kit import (
    EVER,
    MERGED,
    SORTED_BY_BATCH_SIZE,
    Panel,
    Variable,
    data_table,
    method_column,
    multi_value_variable,
    override,
    panel,
    query,
    query_variable,
)
from trends import line_overrides, line_variables, over_lines, trend_over_batch_size

from joulewatch_exporter import catalog

WHOLE_RUN: Final = 'run=~"$run"'
RUN: Final = f'{WHOLE_RUN}, configuration=~"$configuration"'
"""Label matchers of every series that the harness and the analysis deliver: they have no job and instance."""
BY_RESULT: Final = "run, configuration, batch_size"
BY_RESULT_AND_METHOD: Final = f"{BY_RESULT}, method"
INFERENCES_PER_SECOND: Final = "suffix:inf/s"
NO_RESULTS: Final = "No results yet: joulewatch analyze RUN --prometheus URL --publish"


def newest(metric: catalog.Metric, matchers: str) -> str:
    """Return PromQL for the newest sample of each series, because each is delivered once."""
    return f"last_over_time({metric.name}{{{matchers}}}{EVER})"


def result(metric: catalog.Metric, *, by: str, of: str = RUN) -> str:
    """Return PromQL for a published result."""
    return f"max by ({by}) ({newest(metric, of)})"


def total(metric: catalog.Metric, basis: str, by: str) -> str:
    """Return PromQL for the result of all devices, ``basis`` gross or net."""
    return result(metric, by=by, of=f'{RUN}, component="total", basis="{basis}"')


def run_variable(*, several: bool = False) -> Variable:
    """Return the variable that selects a run, or several.

    Run ids sort by time: the newest is selected when a dashboard opens.
    """
    runs = f"group by (run) (last_over_time({catalog.RUN_STATUS.name}{EVER}))"
    return (
        query_variable("run", "Run", f"query_result({runs})", regex='/run="([^"]+)"/')
        .sort(models.VariableSort.ALPHABETICAL_DESC)
        .multi(several)
    )


def configuration_variables(labels: tuple[str, ...], *, lines_shown: bool) -> Iterator[Variable]:
    """Yield the variables that select configurations and the lines of figures.

    Args:
        labels: The labels that name a line: ``configuration``, and ``run`` where several runs are shown.
        lines_shown: Show the variables of the lines at the top of the page.
    """
    infos = f"group by (configuration) ({newest(catalog.RUN_INFO, WHOLE_RUN)})"
    yield multi_value_variable(
        "configuration", "Configuration", f"query_result({infos})", regex='/configuration="([^"]+)"/'
    )
    rates = newest(catalog.RESULT_THROUGHPUT, RUN)
    yield from line_variables(rates, labels, shown=lines_shown)


def figure(labels: tuple[str, ...], height: int) -> list[Panel]:
    """Return the panels of energy per inference and of throughput over the batch size, with bands."""
    return [
        panel(
            "Energy per inference by batch size",
            "Mean of all devices, idle power included (gross). Band: expanded uncertainty, 95 % coverage. A band that "
            "reaches 0 has no lower edge on a logarithmic axis.",
            "joule",
            [
                query(
                    over_lines(
                        total(catalog.RESULT_ENERGY, "gross", BY_RESULT),
                        total(catalog.RESULT_UNCERTAINTY, "gross", BY_RESULT),
                        labels,
                    ),
                    shape="table",
                )
            ],
            size=(12, height),
            no_value=NO_RESULTS,
            kind=trend_over_batch_size(),
            overrides=line_overrides(),
        ),
        panel(
            "Throughput by batch size",
            "Inferences per second, mean over the measure windows. Band: expanded uncertainty, 95 % coverage.",
            INFERENCES_PER_SECOND,
            [
                query(
                    over_lines(
                        result(catalog.RESULT_THROUGHPUT, by=BY_RESULT),
                        result(catalog.RESULT_THROUGHPUT_UNCERTAINTY, by=BY_RESULT),
                        labels,
                    ),
                    shape="table",
                )
            ],
            size=(12, height),
            no_value=NO_RESULTS,
            kind=trend_over_batch_size(),
            overrides=line_overrides(),
        ),
    ]


def results_table(*, with_run: bool = False) -> Panel:
    """Return the table of energy and throughput; ``with_run`` adds a column for the run."""
    return panel(
        "Results",
        "Energy per inference: gross includes idle power, net excludes it. ± is the expanded uncertainty (95 % "
        "coverage). *± covers* lists what it includes: without *accuracy*, the accuracy of a sensor is unknown. "
        "`joulewatch profile --prometheus` and `joulewatch analyze RUN --publish` write these results.",
        "joule",
        [
            query(total(catalog.RESULT_ENERGY, "gross", BY_RESULT_AND_METHOD), shape="table"),
            query(
                total(catalog.RESULT_UNCERTAINTY, "gross", f"{BY_RESULT_AND_METHOD}, covers"),
                ref="B",
                shape="table",
            ),
            query(total(catalog.RESULT_ENERGY, "net", BY_RESULT_AND_METHOD), ref="C", shape="table"),
            query(total(catalog.RESULT_UNCERTAINTY, "net", BY_RESULT_AND_METHOD), ref="D", shape="table"),
            query(result(catalog.RESULT_THROUGHPUT, by=BY_RESULT), ref="E", shape="table"),
            query(result(catalog.RESULT_THROUGHPUT_UNCERTAINTY, by=BY_RESULT), ref="F", shape="table"),
        ],
        size=(24, 10),
        no_value=NO_RESULTS,
        kind=data_table(
            {
                **({"run": "Run"} if with_run else {}),
                "configuration": "Configuration",
                "batch_size": "Batch size",
                "method": "Method",
                "Value #A": "Gross",
                "Value #B": "± gross",
                "Value #C": "Net",
                "Value #D": "± net",
                "covers": "± covers",
                "Value #E": "Throughput",
                "Value #F": "± throughput",
            },
            rows=(MERGED, *SORTED_BY_BATCH_SIZE),
            hidden=() if with_run else ("run",),
        ),
        overrides=[
            override("byName", "Batch size", unit="none", decimals=0, custom__width=110),
            override("byRegexp", "/hroughput$/", unit=INFERENCES_PER_SECOND, custom__width=125),
            override("byName", "Configuration", custom__minWidth=260),
            method_column(),
            *([override("byName", "Run", custom__width=220)] if with_run else []),
            override("byRegexp", "/[Gg]ross$|[Nn]et$/", custom__width=110),
            override("byName", "± covers", custom__width=160),
        ],
    )


def runs_panel() -> Panel:
    """Return the list of all runs; each links to the dashboard Experiment with the run's time range."""
    status = catalog.RUN_STATUS.name
    ended = f'last_over_time({status}{{status!="running"}}{EVER})'
    running = f'last_over_time({status}{{status="running"}}{EVER})'
    started = f"max by (run) (last_over_time({status}{EVER}))"
    last_window = (
        f"max by (run) (last_over_time({catalog.WINDOW_START.name}{EVER})"
        f" + last_over_time({catalog.WINDOW_DURATION.name}{EVER}))"
    )
    # A link needs whole milliseconds; 10 s before and after a run show the power around it.
    link = (
        "/d/joulewatch-experiment?var-run=${__data.fields.run}"
        '&from=${__data.fields["Value #B"].numeric}&to=${__data.fields["Value #C"].numeric}'
    )
    return panel(
        "Runs",
        "All runs of a year, whatever the time range. Click a run to see it with its own time range. End: the end of "
        "the last window.",
        "none",
        [
            query(
                f"max by (run, status) ({ended} or ({running} unless on (run) {ended}))",
                ref="A",
                shape="table",
            ),
            query(f"floor(1000 * ({started} - 10))", ref="B", shape="table"),
            query(f"floor(1000 * ({last_window} + 10))", ref="C", shape="table"),
            query(f"{last_window} - {started}", ref="D", shape="table"),
            query(
                f"group by (run, network, nodename) (last_over_time({catalog.RUN_INFO.name}{EVER}))",
                ref="E",
                shape="table",
            ),
        ],
        size=(24, 9),
        no_value="No runs yet: joulewatch profile PLAN --prometheus URL",
        kind=data_table(
            {
                "run": "Run",
                "status": "Status",
                "network": "Network",
                "nodename": "Host",
                "Value #B": "Start",
                "Value #C": "End",
                "Value #D": "Length",
            },
            hidden=["Value #A", "Value #E"],
            sort=("Run", True),
        ),
        overrides=[
            override("byName", "Run", custom__width=250, links=[{"title": "Show this run", "url": link}]),
            override("byRegexp", "/^(Start|End)$/", unit="dateTimeAsIso", custom__width=180),
            override("byName", "Length", unit="s", custom__width=110),
        ],
    )
