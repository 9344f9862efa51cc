"""The dashboard joulewatch / Experiment: one run, its power and load, its results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    BY_NAME,
    DATASOURCE,
    DEVICE_ENERGY,
    DEVICES_COLOUR,
    EVER,
    NAME_LEGEND,
    NODE_COLOUR,
    RATE,
    Panel,
    Variable,
    by_server,
    data_source_variable,
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
    single_stat,
    state_timeline,
    time_series,
    with_name,
)
from runs import (
    BY_RESULT,
    BY_RESULT_AND_METHOD,
    INFERENCES_PER_SECOND,
    NO_RESULTS,
    RUN,
    WHOLE_RUN,
    configuration_variables,
    figure,
    newest,
    result,
    results_table,
    run_variable,
    runs_panel,
    total,
)

from joulewatch_exporter import catalog

MEASURE_WINDOWS: Final = f'{RUN}, kind="measure", phase=""'
LINE_LABELS: Final = ("configuration",)
WINDOWS_PANEL: Final = 100
"""Id of the only panel that shows the windows: on small panels they would hide the data."""


def experiment() -> dashboard.Dashboard:
    """Return the dashboard for one run."""
    rows = {
        "Run": overview_row(),
        "Power and load": load_row(),
        "Results": results_row(),
        "Configurations": configurations_row(),
        "Runs": [runs_panel()],
        "Predictions": [predictions_panel()],
    }
    return (
        new_dashboard(
            "joulewatch / Experiment",
            "joulewatch-experiment",
            "One run: power with the windows shaded, the load, and the energy per inference.",
            [*variables()],
            rows,
        )
        .annotation(window_regions("Measure windows", "measure", "green"))
        .annotation(window_regions("Idle windows", "idle", "blue"))
        .annotation(window_regions("Warm-up windows", "warmup", "orange", shown=False))
        .link(link("Node", "joulewatch-node"))
        .refresh("5s")
        .time("now-30m", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables that select a run, its exporters and its configurations."""
    yield data_source_variable()
    yield run_variable()
    info = newest(catalog.RUN_INFO, WHOLE_RUN)
    # Runs of joulewatch before 0.2 have no exporter_nodenames: for these, all exporters are shown.
    patterns = f'label_replace({info}, "nodenames", ".+", "", "")'
    patterns = f'group by (nodenames) (label_replace({patterns}, "nodenames", "$1", "exporter_nodenames", "(.+)"))'
    yield query_variable("nodenames", "Machines", f"query_result({patterns})", regex='/nodenames="([^"]+)"/').hide(
        models.VariableHide.HIDE_VARIABLE
    )
    exporters = f'{catalog.EXPORTER_INFO.name}{{nodename=~"${{nodenames:raw}}"}}'
    yield multi_value_variable("job", "Job", f"label_values({exporters}, job)")
    yield multi_value_variable("instance", "Instance", f"label_values({exporters}, instance)", all_value=None)
    yield from configuration_variables(LINE_LABELS, lines_shown=False)


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


def at_window_end(metric: catalog.Metric, more: str = "") -> str:
    """Return PromQL for the one sample that a window has; an instant selector would repeat it for five minutes."""
    return f"last_over_time({metric.name}{{{MEASURE_WINDOWS}{more}}}[$__interval])"


def over_windows(metric: catalog.Metric, samples: str, series: str) -> str:
    """Return PromQL that aggregates over windows, with ``samples`` or ``series`` as count or sum.

    By remote write a run is one series with one sample per window. Through a Pushgateway each window is a series
    (label ``window``) whose sample repeats until it is deleted.
    """
    written = f'{samples}_over_time({metric.name}{{{MEASURE_WINDOWS}, window=""}}{EVER})'
    pushed = f'last_over_time({metric.name}{{{MEASURE_WINDOWS}, window!=""}}{EVER})'
    return f"(sum({written}) or vector(0)) + ({series}({pushed}) or vector(0))"


def overview_row() -> list[Panel]:
    lowest = f"min({total(catalog.RESULT_ENERGY, 'gross', BY_RESULT_AND_METHOD)})"
    return [
        panel(
            "Lowest energy",
            "Lowest mean energy per inference over the selected configurations and all batch sizes. All devices, idle "
            "power included (gross).",
            "joule",
            [query(lowest, "J / inference", shape="instant")],
            size=(5, 5),
            no_value=NO_RESULTS,
            kind=single_stat(shade=DEVICES_COLOUR),
        ),
        panel(
            "Top throughput",
            "Highest mean over the selected configurations and all batch sizes.",
            INFERENCES_PER_SECOND,
            [query(f"max({result(catalog.RESULT_THROUGHPUT, by=BY_RESULT)})", "inferences / s", shape="instant")],
            size=(6, 5),
            no_value=NO_RESULTS,
            kind=single_stat(shade=NODE_COLOUR),
        ),
        panel(
            "Windows",
            "Number of measure windows of the run that were delivered.",
            "short",
            [query(over_windows(catalog.WINDOW_START, "count", "count"), "windows", shape="instant")],
            size=(4, 5),
            kind=single_stat(),
        ),
        panel(
            "Inferences",
            "Inferences (elements, not batches) of all measure windows of the run.",
            "short",
            [query(over_windows(catalog.WINDOW_INFERENCES, "sum", "sum"), "inferences", shape="instant")],
            size=(5, 5),
            kind=single_stat(),
        ),
        methods_panel(),
    ]


def load_row() -> list[Panel]:
    return [
        panel(
            "Power of devices, with the run's windows shaded",
            "Slope of the energy counters between two scrapes, stacked. Dashed: the whole server, if it has a sensor. "
            "Shaded: measure windows (green) and idle windows (blue); the switches at the top of the page hide them.",
            "watt",
            [
                query(f"sum by ({BY_NAME}) ({with_name(f'irate({DEVICE_ENERGY}{RATE})', 'device')})", NAME_LEGEND),
                query(by_server(f"irate(%s{RATE})"), "node · {{host}}", ref="B"),
            ],
            size=(24, 20),
            kind=time_series(stacked=True),
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
            size=(24, 4),
            kind=state_timeline(),
        ),
        panel(
            "Throughput",
            "Inferences per second. Points: inferences of a measure window divided by its duration, drawn at its end. "
            "Line: rate of the run's counter, which includes the time between windows.",
            INFERENCES_PER_SECOND,
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
            size=(12, 14),
            kind=time_series(points=True),
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
            size=(12, 14),
            kind=time_series(log_base=10, points=True),
        ),
    ]


def results_row() -> list[Panel]:
    return [
        *figure(LINE_LABELS, 11),
        results_table(),
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
                {"run": "Run", "severity": "Severity", "reason": "Reason", "Value": "Findings"},
                rows=(),
            ),
            overrides=[override("byName", "Run", custom__width=215)],
        ),
    ]


def predictions_panel() -> Panel:
    """Return the table of predictions, which have separate metrics: they are not results of a run."""
    by = "network, device, runtime, precision, scope, batch_size, method"

    def predicted(metric: catalog.Metric, quantile: str) -> str:
        return result(metric, by=by, of=f'quantile="{quantile}"')

    return panel(
        "Predictions",
        "Energy per inference that a model predicts: nothing was measured. Low and high are the ends of the 90 % "
        "interval. `joulewatch predict --publish` writes these values; they belong to no run.",
        "joule",
        [
            query(predicted(catalog.PREDICTION_ENERGY, "0.5"), shape="table"),
            query(predicted(catalog.PREDICTION_ENERGY, "0.05"), ref="B", shape="table"),
            query(predicted(catalog.PREDICTION_ENERGY, "0.95"), ref="C", shape="table"),
            query(predicted(catalog.PREDICTION_THROUGHPUT, "0.5"), ref="D", shape="table"),
        ],
        size=(24, 8),
        no_value="No predictions: joulewatch predict NETWORK --fit FILE --device NAME --prometheus URL --publish",
        kind=data_table(
            {
                "network": "Network",
                "device": "Device",
                "runtime": "Runtime",
                "precision": "Precision",
                "scope": "Scope",
                "batch_size": "Batch size",
                "method": "Method",
                "Value #B": "Low",
                "Value #A": "Median",
                "Value #C": "High",
                "Value #D": "Throughput",
            }
        ),
        overrides=[
            override("byRegexp", "/^(Runtime|Precision|Scope)$/", custom__width=110),
            override("byName", "Batch size", unit="none", decimals=0, custom__width=110),
            override("byName", "Throughput", unit=INFERENCES_PER_SECOND),
            method_column(),
        ],
    )


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
                {
                    "run": "Run",
                    "configuration": "Configuration",
                    "precision": "Requested precision",
                    "actual_precision": "Actual precision",
                    "provider": "Provider",
                    "runtime_version": "Runtime version",
                    "scenario": "Scenario",
                    "server_rate_per_second": "Requested queries/s",
                    "hardware": "Hardware",
                    "nodename": "Host",
                    "kernel": "Kernel",
                    "governor": "Governor",
                    "exporters": "Exporters",
                    "version": "joulewatch",
                    "model_sha256": "Model SHA-256",
                },
                rows=(),
                hidden=["Value", "network", "runtime", "schema", "plan_sha256", "exporter_nodenames"],
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
