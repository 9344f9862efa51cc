"""The dashboard joulewatch / Experiment: one run, its power and load, its results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    BY_QUANTITY,
    DATASOURCE,
    DEVICE_ENERGY,
    DEVICES_COLOUR,
    NODE_COLOUR,
    QUANTITY_LEGEND,
    RANGE,
    RATE,
    Panel,
    Variable,
    bar_chart,
    by_server,
    columns,
    data_table,
    link,
    method_column,
    methods_panel,
    multi_value_variable,
    new_dashboard,
    override,
    panel,
    query,
    query_variable,
    sensor_variables,
    single_stat,
    time_series,
    transformation,
)

from joulewatch_exporter import catalog

WHOLE_RUN: Final = 'run=~"$run"'
RUN: Final = f'{WHOLE_RUN}, configuration=~"$configuration"'
"""Label matchers of every series that the harness and the analysis deliver: they have no job and instance."""
MEASURE_WINDOWS: Final = f'{RUN}, kind="measure", phase=""'
BY_RESULT: Final = "run, configuration, batch_size"
BY_RESULT_AND_METHOD: Final = f"{BY_RESULT}, method"
WINDOWS_PANEL: Final = 100
"""Id of the only panel that shows the windows: on small panels they would hide the data."""


def experiment() -> dashboard.Dashboard:
    """Return the dashboard for one run."""
    rows = {
        "Run": overview_row(),
        "Power and load": load_row(),
        "Results": results_row(),
        "Configurations": configurations_row(),
    }
    return (
        new_dashboard(
            "joulewatch / Experiment",
            "joulewatch-experiment",
            "One run: power with the windows shaded, the load, and the energy per inference.",
            [*sensor_variables(), *run_variables()],
            rows,
        )
        .annotation(window_regions("Measure windows", "measure", "green"))
        .annotation(window_regions("Idle windows", "idle", "blue"))
        .annotation(window_regions("Warm-up windows", "warmup", "orange", shown=False))
        .link(link("Node", "joulewatch-node"))
        .refresh("5s")
        .time("now-30m", "now")
    )


def run_variables() -> Iterator[Variable]:
    """Yield the variables that select the run and its configurations."""
    info = catalog.RUN_INFO.name
    # Run ids sort by time, so descending order selects the newest run when the dashboard opens.
    yield (
        query_variable("run", "Run", f"label_values({info}, run)")
        .sort(models.VariableSort.ALPHABETICAL_DESC)
        .multi(False)
    )
    yield multi_value_variable("configuration", "Configuration", f'label_values({info}{{run=~"$run"}}, configuration)')


def window_regions(name: str, kind: str, shade: str, *, shown: bool = True) -> dashboard.AnnotationQuery:
    """Return an annotation that shades windows: steps of one second with a value above 0 merge into one region."""
    # Idle windows belong to the run and mostly to no configuration.
    matchers = RUN if kind == "measure" else 'run=~"$run"'
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(shown)
        .hide(False)
        .icon_color(shade)
        .expr(f'{catalog.WINDOW_ACTIVE.name}{{{matchers}, kind="{kind}"}}')
        .step("1s")
        .title_format("{{kind}} {{configuration}}")
        .text_format("run {{run}}, batch size {{batch_size}}")
        .tag_keys("kind,configuration,batch_size")
        .use_value_for_time(False)
        .filter(dashboard.AnnotationPanelFilter().ids([WINDOWS_PANEL]).exclude(False))
    )


def result(metric: catalog.Metric, *, by: str, of: str = RUN) -> str:
    """Return PromQL for a published result: the newest in the time range, because each is published once."""
    return f"max by ({by}) (last_over_time({metric.name}{{{of}}}{RANGE}))"


def total(metric: catalog.Metric, basis: str, by: str) -> str:
    """Return PromQL for the result of all devices, ``basis`` gross or net."""
    return result(metric, by=by, of=f'{RUN}, component="total", basis="{basis}"')


def at_window_end(metric: catalog.Metric, more: str = "") -> str:
    """Return PromQL for the one sample that a window has; an instant selector would repeat it for five minutes."""
    return f"last_over_time({metric.name}{{{MEASURE_WINDOWS}{more}}}[$__interval])"


def over_windows(metric: catalog.Metric, samples: str, series: str) -> str:
    """Return PromQL that aggregates over windows, with ``samples`` or ``series`` as count or sum.

    By remote write a run is one series with one sample per window. Through a Pushgateway each window is a series
    (label ``window``) whose sample repeats until it is deleted.
    """
    written = f'{samples}_over_time({metric.name}{{{MEASURE_WINDOWS}, window=""}}{RANGE})'
    pushed = f'last_over_time({metric.name}{{{MEASURE_WINDOWS}, window!=""}}{RANGE})'
    return f"(sum({written}) or vector(0)) + ({series}({pushed}) or vector(0))"


NO_RESULTS: Final = "No results yet: joulewatch analyze RUN --prometheus URL --publish"


def overview_row() -> list[Panel]:
    lowest = f"min({total(catalog.RESULT_ENERGY, 'gross', BY_RESULT_AND_METHOD)})"
    return [
        panel(
            "Lowest energy per inference",
            "Lowest mean over the selected configurations and all batch sizes. All devices, idle power "
            "included (gross).",
            "joule",
            [query(lowest, "J / inference", shape="instant")],
            size=(5, 5),
            no_value=NO_RESULTS,
            kind=single_stat(shade=DEVICES_COLOUR),
        ),
        panel(
            "Highest throughput",
            "Highest mean over the selected configurations and all batch sizes.",
            "ops",
            [query(f"max({result(catalog.RESULT_THROUGHPUT, by=BY_RESULT)})", "inferences / s", shape="instant")],
            size=(5, 5),
            no_value=NO_RESULTS,
            kind=single_stat(shade=NODE_COLOUR),
        ),
        panel(
            "Measure windows",
            "Number of measure windows delivered in the time range.",
            "short",
            [query(over_windows(catalog.WINDOW_START, "count", "count"), "windows", shape="instant")],
            size=(4, 5),
            kind=single_stat(),
        ),
        panel(
            "Inferences in measure windows",
            "Inferences (elements, not batches) of all measure windows in the time range.",
            "short",
            [query(over_windows(catalog.WINDOW_INFERENCES, "sum", "sum"), "inferences", shape="instant")],
            size=(5, 5),
            kind=single_stat(),
        ),
        methods_panel(5),
    ]


def load_row() -> list[Panel]:
    return [
        panel(
            "Power of devices, with the run's windows shaded",
            "Slope of the energy counters between two scrapes, stacked. Dashed: the whole server, if it has a sensor. "
            "Shaded: measure windows (green) and idle windows (blue); the switches at the top of the page hide them.",
            "watt",
            [
                query(f"sum by ({BY_QUANTITY}) (irate({DEVICE_ENERGY}{RATE}))", QUANTITY_LEGEND),
                query(by_server(f"irate(%s{RATE})"), "node · {{host}}", ref="B"),
            ],
            size=(24, 11),
            kind=time_series(stacked=True, legend_right=True),
            overrides=[
                override(
                    "byFrameRefID",
                    "B",
                    color={"mode": "fixed", "fixedColor": NODE_COLOUR},
                    custom__stacking={"group": "A", "mode": "none"},
                    custom__fillOpacity=0,
                    custom__lineWidth=2,
                    custom__lineStyle={"fill": "dash", "dash": [8, 6]},
                )
            ],
        ).id(WINDOWS_PANEL),
        panel(
            "Batch size",
            "Batch size of each measure window while it is open.",
            "none",
            [
                query(
                    f"{catalog.RUN_BATCH_SIZE.name}{{{RUN}}} and on (run, configuration) "
                    f'{catalog.WINDOW_ACTIVE.name}{{{RUN}, kind="measure"}}',
                    "{{configuration}}",
                )
            ],
            size=(8, 9),
            kind=time_series(steps=True, log_base=2, calcs=()),
        ).line_width(3),
        panel(
            "Throughput",
            "Inferences per second. Points: inferences of a measure window divided by its duration, drawn at its end. "
            "Line: rate of the run's counter, which includes the time between windows.",
            "ops",
            [
                query(
                    f"max by (run, configuration) ({at_window_end(catalog.WINDOW_INFERENCES)}"
                    f" / {at_window_end(catalog.WINDOW_DURATION)})",
                    "window {{configuration}}",
                ),
                # The counter increases only when a window closes: a rate over a short interval would be 0 or a peak.
                query(
                    f"rate({catalog.RUN_INFERENCES.name}{{{RUN}}}{RATE})", "live {{configuration}}", ref="B"
                ).interval("15s"),
            ],
            size=(8, 9),
            kind=time_series(points=True, calcs=()),
            overrides=[override("byFrameRefID", "B", custom__drawStyle="line", custom__showPoints="never")],
        ),
        panel(
            "Latency per batch",
            "Median, 90th and 99th percentile of each measure window, drawn at its end.",
            "s",
            [
                query(
                    f"max by (run, configuration) ({at_window_end(catalog.WINDOW_LATENCY, quantile)})",
                    f"{word} {{{{configuration}}}}",
                    ref=ref,
                )
                for ref, quantile, word in (
                    ("A", ', quantile="0.5"', "p50"),
                    ("B", ', quantile="0.9"', "p90"),
                    ("C", ', quantile="0.99"', "p99"),
                )
            ],
            size=(8, 9),
            kind=time_series(log_base=10, points=True, calcs=()),
        ),
    ]


def results_row() -> list[Panel]:
    return [
        panel(
            "Energy per inference by batch size",
            "Mean over the run's measure windows. All devices, idle power included (gross). The table below has the "
            "uncertainties and the method.",
            "joule",
            [query(total(catalog.RESULT_ENERGY, "gross", "configuration, batch_size"), shape="table")],
            size=(12, 10),
            no_value=NO_RESULTS,
            kind=bar_chart(),
        ),
        panel(
            "Throughput by batch size",
            "Inferences per second, mean over the run's measure windows.",
            "ops",
            [query(result(catalog.RESULT_THROUGHPUT, by="configuration, batch_size"), shape="table")],
            size=(12, 10),
            no_value=NO_RESULTS,
            kind=bar_chart(),
        ),
        panel(
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
                [
                    transformation("merge"),
                    transformation(
                        "convertFieldType",
                        fields={},
                        conversions=[{"targetField": "batch_size", "destinationType": "number"}],
                    ),
                    transformation("sortBy", fields={}, sort=[{"field": "batch_size"}]),
                    columns(
                        [
                            ("configuration", "Configuration"),
                            ("batch_size", "Batch size"),
                            ("method", "Method"),
                            ("Value #A", "Gross"),
                            ("Value #B", "± gross"),
                            ("Value #C", "Net"),
                            ("Value #D", "± net"),
                            ("covers", "± covers"),
                            ("Value #E", "Throughput"),
                            ("Value #F", "± throughput"),
                        ],
                        hidden=["Time", "run"],
                    ),
                ]
            ),
            overrides=[
                override("byName", "Batch size", unit="none", decimals=0, custom__width=110),
                override("byRegexp", "/hroughput$/", unit="ops"),
                override("byName", "Configuration", custom__minWidth=260),
                method_column(),
            ],
        ),
        panel(
            "Findings of the audit",
            "error: a result is contradicted or missing; warning: check the result; info: worth knowing. "
            "harness/README.md lists the fix of each reason. `joulewatch analyze RUN` shows the details.",
            "none",
            [
                # Findings are about the run, so they have no configuration.
                query(
                    result(catalog.RESULT_FINDINGS, by="run, severity, reason", of=WHOLE_RUN),
                    shape="table",
                )
            ],
            size=(24, 6),
            no_value="No findings, or no results yet: joulewatch analyze RUN --prometheus URL --publish",
            kind=data_table(
                [
                    columns(
                        [("run", "Run"), ("severity", "Severity"), ("reason", "Reason"), ("Value", "Findings")],
                        hidden=["Time"],
                    )
                ]
            ),
            overrides=[override("byName", "Run", custom__width=215)],
        ),
    ]


def configurations_row() -> list[Panel]:
    return [
        panel(
            "Configurations of the run",
            "What each configuration used after loading: precision, provider, versions and machine.",
            "none",
            [
                query(
                    result(catalog.RUN_INFO, by=", ".join(catalog.RUN_INFO.labels)),
                    shape="table",
                )
            ],
            size=(24, 6),
            kind=data_table(
                [
                    columns(
                        [
                            ("run", "Run"),
                            ("configuration", "Configuration"),
                            ("precision", "Requested precision"),
                            ("actual_precision", "Actual precision"),
                            ("provider", "Provider"),
                            ("runtime_version", "Runtime version"),
                            ("scenario", "Scenario"),
                            ("server_rate_per_second", "Requested queries/s"),
                            ("hardware", "Hardware"),
                            ("nodename", "Host"),
                            ("kernel", "Kernel"),
                            ("governor", "Governor"),
                            ("exporters", "Exporters"),
                            ("version", "joulewatch"),
                            ("model_sha256", "Model SHA-256"),
                        ],
                        hidden=["Time", "Value", "network", "runtime", "schema", "plan_sha256", "exporter_nodenames"],
                    )
                ]
            ),
            overrides=[
                override("byName", "Configuration", custom__minWidth=260),
                override("byName", "Run", custom__width=215),
                override("byName", "Hardware", custom__minWidth=290),
                override("byName", "Provider", custom__width=190),
                override("byRegexp", "/^Requested/", custom__width=170),
                override("byRegexp", "/^(Actual|Runtime)/", custom__width=140),
                override("byRegexp", "/^(Host|Kernel|Governor|joulewatch)$/", custom__width=110),
            ],
        ),
    ]
