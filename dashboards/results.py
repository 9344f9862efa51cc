"""The dashboard joulewatch / Results: results of one run or several, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    EVER,
    MERGED,
    SORTED_BY_BATCH_SIZE,
    Panel,
    Variable,
    data_source_variable,
    data_table,
    link,
    method_column,
    new_dashboard,
    override,
    panel,
    query,
    query_variable,
)
from runs import (
    BY_RESULT,
    NO_RESULTS,
    RUN,
    configuration_variables,
    figure,
    newest,
    result,
    results_table,
    run_variable,
    runs_panel,
    total,
)
from trends import as_line

from joulewatch_exporter import catalog

LINE_LABELS: Final = ("configuration", "run")
MEASURED: Final = f'{RUN}, kind="measure"'
BY_COMPONENT: Final = f"{BY_RESULT}, component, method"
GAUGE: Final = {"type": "gauge", "mode": "basic"}


def results() -> dashboard.Dashboard:
    """Return the dashboard for results."""
    rows = {
        "Figure": figure(LINE_LABELS, 13),
        "Comparison": [ratios_panel(), results_table(with_run=True)],
        "Components and phases": [components_panel(), phases_panel()],
        "Runs": [runs_panel()],
    }
    return (
        new_dashboard(
            "joulewatch / Results",
            "joulewatch-results",
            "Energy per inference and throughput of one run or several, side by side.",
            [*variables()],
            rows,
        )
        .link(link("Experiment", "joulewatch-experiment"))
        .refresh("1m")
        .time("now-24h", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables: runs, configurations, the lines of the figures, and what the ratios compare with."""
    yield data_source_variable()
    yield run_variable(several=True)
    yield from configuration_variables(LINE_LABELS, lines_shown=True)
    lines = f"group by (line) ({as_line(newest(catalog.RESULT_THROUGHPUT, RUN), LINE_LABELS)})"
    yield query_variable("baseline", "Baseline", f"query_result({lines})", regex='/line="([^"]+)"/').sort(
        models.VariableSort.ALPHABETICAL_ASC
    )


def compared(values: str) -> tuple[str, str]:
    """Return PromQL for all ``values`` but those of the baseline, and for those of the baseline by batch size."""
    named = as_line(values, LINE_LABELS)
    marked = f'label_replace({named}, "baseline", "1", "line", `${{baseline:regex}}`)'
    mark = 'label_replace(vector(1), "baseline", "1", "", "")'
    return (
        f"max by ({BY_RESULT}) ({marked} unless on (baseline) {mark})",
        f"max by (batch_size) ({marked} and on (baseline) {mark})",
    )


def ratio(metric: str) -> str:
    """Return PromQL for the ratio of each configuration to the baseline, at equal batch sizes."""
    others, baseline = compared(metric)
    return f"{others} / on (batch_size) group_left () {baseline}"


def ratio_uncertainty(mean: str, uncertainty: str) -> str:
    """Return PromQL for the expanded uncertainty of ``ratio(mean)``: relative uncertainties add in quadrature."""
    others, baseline = compared(f"({uncertainty} / {mean}) ^ 2")
    return f"({ratio(mean)}) * sqrt({others} + on (batch_size) group_left () {baseline})"


def ratios_panel() -> Panel:
    energy = total(catalog.RESULT_ENERGY, "gross", BY_RESULT)
    energy_uncertainty = total(catalog.RESULT_UNCERTAINTY, "gross", BY_RESULT)
    rate = result(catalog.RESULT_THROUGHPUT, by=BY_RESULT)
    rate_uncertainty = result(catalog.RESULT_THROUGHPUT_UNCERTAINTY, by=BY_RESULT)
    return panel(
        "Ratio to the baseline",
        "Energy per inference (gross) and throughput, divided by those of the variable Baseline at the same batch "
        "size. ± assumes independent uncertainties. Ratios whose interval contains 1 are not significant; "
        "`joulewatch compare` tests that properly.",
        "none",
        [
            query(ratio(energy), ref="A", shape="table"),
            query(ratio_uncertainty(energy, energy_uncertainty), ref="B", shape="table"),
            query(ratio(rate), ref="C", shape="table"),
            query(ratio_uncertainty(rate, rate_uncertainty), ref="D", shape="table"),
        ],
        size=(24, 8),
        no_value="Nothing to compare: select several configurations or runs with a batch size of the baseline",
        kind=data_table(
            {
                "run": "Run",
                "configuration": "Configuration",
                "batch_size": "Batch size",
                "Value #A": "Energy ratio",
                "Value #B": "± energy",
                "Value #C": "Throughput ratio",
                "Value #D": "± throughput",
            },
            rows=(MERGED, *SORTED_BY_BATCH_SIZE),
        ),
        overrides=[
            override("byName", "Run", custom__width=220),
            override("byName", "Configuration", custom__minWidth=260),
            override("byName", "Batch size", decimals=0, custom__width=110),
            override("byRegexp", "/ratio|±/", decimals=3),
        ],
    )


def components_panel() -> Panel:
    def of(metric: catalog.Metric, basis: str) -> str:
        return result(metric, by=BY_COMPONENT, of=f'{RUN}, component!="total", basis="{basis}"')

    return panel(
        "Energy per inference by component",
        "Gross includes idle power, net excludes it. ± is the expanded uncertainty (95 % coverage). The component node "
        "is the whole server: it contains the others.",
        "joule",
        [
            query(of(catalog.RESULT_ENERGY, "gross"), ref="A", shape="table"),
            query(of(catalog.RESULT_UNCERTAINTY, "gross"), ref="B", shape="table"),
            query(of(catalog.RESULT_ENERGY, "net"), ref="C", shape="table"),
            query(of(catalog.RESULT_UNCERTAINTY, "net"), ref="D", shape="table"),
        ],
        size=(24, 13),
        no_value=NO_RESULTS,
        kind=data_table(
            {
                "run": "Run",
                "configuration": "Configuration",
                "batch_size": "Batch size",
                "component": "Component",
                "method": "Method",
                "Value #A": "Gross",
                "Value #B": "± gross",
                "Value #C": "Net",
                "Value #D": "± net",
            },
            rows=(MERGED, *SORTED_BY_BATCH_SIZE),
        ),
        overrides=[
            override("byName", "Run", custom__width=220),
            override("byName", "Configuration", custom__minWidth=260),
            override("byName", "Batch size", unit="none", decimals=0, custom__width=110),
            override("byName", "Component", custom__width=110),
            override(
                "byName",
                "Gross",
                min=0,
                fieldMinMax=True,
                color={"mode": "fixed", "fixedColor": "blue"},
                custom__cellOptions=GAUGE,
                custom__minWidth=220,
            ),
            method_column(),
        ],
    )


def phases_panel() -> Panel:
    seconds = (
        "sum by (run, configuration, phase) "
        f'(sum_over_time({catalog.WINDOW_PHASE_SECONDS.name}{{{MEASURED}, phase!=""}}{EVER}))'
    )
    duration, inferences = (
        f'sum by (run, configuration) (sum_over_time({metric.name}{{{MEASURED}, phase=""}}{EVER}))'
        for metric in (catalog.WINDOW_DURATION, catalog.WINDOW_INFERENCES)
    )
    return panel(
        "Time by phase",
        "Share of the time of all measure windows that a network spent in each phase (copy_in, execute, copy_out), "
        "and the phase's time per inference, over all batch sizes.",
        "none",
        [
            query(f"{seconds} / on (run, configuration) group_left () {duration}", ref="A", shape="table"),
            query(f"{seconds} / on (run, configuration) group_left () {inferences}", ref="B", shape="table"),
        ],
        size=(24, 8),
        no_value="No phases: the network reports none",
        kind=data_table(
            {
                "run": "Run",
                "configuration": "Configuration",
                "phase": "Phase",
                "Value #A": "Share of time",
                "Value #B": "Time per inference",
            },
            sort=("Share of time", True),
        ),
        overrides=[
            override("byName", "Run", custom__width=220),
            override("byName", "Configuration", custom__minWidth=260),
            override(
                "byName",
                "Share of time",
                unit="percentunit",
                min=0,
                max=1,
                color={"mode": "fixed", "fixedColor": "blue"},
                custom__cellOptions=GAUGE,
                custom__minWidth=300,
            ),
            override("byName", "Time per inference", unit="s"),
        ],
    )
