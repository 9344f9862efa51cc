"""The dashboard joulewatch / Experiment."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard
from kit import (
    BY_QUANTITY,
    DATASOURCE,
    DEVICES_COLOUR,
    NODE_COLOUR,
    RANGE,
    RATE,
    SENSORS,
    Panel,
    bars,
    columns,
    figure,
    fill,
    graph,
    grid,
    link,
    methods_figure,
    override,
    query,
    start,
    transformation,
    variables,
)

from joulewatch_exporter import catalog

RUN: Final = 'run=~"$run", configuration=~"$configuration"'
"""Matchers of everything that the harness and the analysis deliver: a run is not bound to one exporter."""
WINDOWS_PANEL: Final = 100
"""Id of the one panel that shows the windows: on small panels they would hide what is drawn."""


def windows(name: str, kind: str, shade: str, *, shown: bool = True) -> dashboard.AnnotationQuery:
    """Shaded regions: steps of one second with a value above 0 merge into one region."""
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


def experiment() -> dashboard.Dashboard:
    """One run: power with its windows, what was running, and what an inference costs."""
    device = f"{catalog.DEVICE_ENERGY.name}{{{SENSORS}}}"
    whole = f"{catalog.NODE_ENERGY.name}{{{SENSORS}}}"
    measured = f'{RUN}, kind="measure", phase=""'

    def result(metric: catalog.Metric, *, by: str, more: str = "") -> str:
        # Results are published once: the newest of the time range, however long ago that was.
        return f"max by ({by}) (last_over_time({metric.name}{{{RUN}{more}}}{RANGE}))"

    def energy(metric: catalog.Metric, basis: str, by: str, component: str = "total") -> str:
        return result(metric, by=by, more=f', component="{component}", basis="{basis}"')

    def newest(metric: catalog.Metric, more: str = "") -> str:
        # Windows have one sample each: without a range, every sample would be drawn for five minutes.
        return f"last_over_time({metric.name}{{{measured}{more}}}[$__interval])"

    def over_windows(metric: catalog.Metric, samples: str, series: str) -> str:
        # By remote write a run is one series with a sample for each window; through a Pushgateway each window is a
        # series (label window) whose sample repeats until it is deleted.
        written = f'{samples}_over_time({metric.name}{{{measured}, window=""}}{RANGE})'
        pushed = f'last_over_time({metric.name}{{{measured}, window!=""}}{RANGE})'
        return f"(sum({written}) or vector(0)) + ({series}({pushed}) or vector(0))"

    row = "run, configuration, batch_size"
    gross = energy(catalog.RESULT_ENERGY, "gross", f"{row}, method")
    board = start(
        "joulewatch / Experiment",
        "joulewatch-experiment",
        "One run of a plan: power with the run's windows shaded, the load, and the energy of an inference.",
    )
    for variable in variables(run=True):
        board = board.with_variable(variable)
    board = (
        board.annotation(windows("Measure windows", "measure", "green"))
        .annotation(windows("Idle windows", "idle", "blue"))
        .annotation(windows("Warm-up", "warmup", "orange", shown=False))
        .link(link("Node", "joulewatch-node"))
    )
    panels: dict[str, list[Panel]] = {
        "Run": [
            figure(
                "Lowest energy per inference",
                "Smallest mean over all batch sizes and configurations shown, over all devices, idle power included "
                "(gross).",
                "joule",
                [query(f"min({gross})", "J / inference", shape="instant")],
                width=5,
                shade=DEVICES_COLOUR,
            ),
            figure(
                "Highest throughput",
                "Largest mean over all batch sizes and configurations shown.",
                "ops",
                [
                    query(
                        f"max({result(catalog.RESULT_THROUGHPUT, by=row)})",
                        "inferences / s",
                        shape="instant",
                    )
                ],
                width=5,
                shade=NODE_COLOUR,
            ),
            figure(
                "Measure windows",
                "Windows of kind measure delivered within the time range.",
                "short",
                [
                    query(
                        over_windows(catalog.WINDOW_START, "count", "count"),
                        "windows",
                        shape="instant",
                    )
                ],
                width=4,
            ),
            figure(
                "Inferences in measure windows",
                "Elements, not batches, over all measure windows within the time range.",
                "short",
                [
                    query(
                        over_windows(catalog.WINDOW_INFERENCES, "sum", "sum"),
                        "inferences",
                        shape="instant",
                    )
                ],
                width=5,
            ),
            methods_figure(5),
        ],
        "Power and load": [
            graph(
                "Power of devices, windows of the run shaded",
                "Slope of the energy counters between the last two scrapes, stacked; the dashed line is the whole "
                "server, where it has a sensor. Shaded: green measure windows, blue idle windows (switches above).",
                "watt",
                [
                    query(
                        f"sum by ({BY_QUANTITY}) (irate({device}{RATE}))",
                        "{{component}} {{device}} {{domain}} · {{instance}}",
                    ),
                    query(f"sum by (instance) (irate({whole}{RATE}))", "node · {{instance}}", ref="B"),
                ],
                width=24,
                height=11,
                stacked=True,
                legend_right=True,
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
            graph(
                "Batch size",
                "Batch size of the measure windows, while they are open.",
                "none",
                [
                    query(
                        f"{catalog.RUN_BATCH_SIZE.name}{{{RUN}}} and on (run, configuration) "
                        f'{catalog.WINDOW_ACTIVE.name}{{{RUN}, kind="measure"}}',
                        "{{configuration}}",
                    )
                ],
                width=8,
                height=9,
                steps=True,
                log_base=2,
                calcs=(),
            ).line_width(3),
            graph(
                "Throughput",
                "Inferences per second. Points: each measure window at its end, its inferences by its length, exact. "
                "Line: live rate of the run's counter, time between windows included.",
                "ops",
                [
                    query(
                        f"max by (run, configuration) ({newest(catalog.WINDOW_INFERENCES)}"
                        f" / {newest(catalog.WINDOW_DURATION)})",
                        "window {{configuration}}",
                    ),
                    # The counter moves when a window closes: a rate over less than some windows is a comb.
                    query(
                        f"rate({catalog.RUN_INFERENCES.name}{{{RUN}}}{RATE})", "live {{configuration}}", ref="B"
                    ).interval("15s"),
                ],
                width=8,
                height=9,
                points=True,
                calcs=(),
                overrides=[override("byFrameRefID", "B", custom__drawStyle="line", custom__showPoints="never")],
            ),
            graph(
                "Latency of a batch",
                "Median, 90th and 99th percentile of each measure window, at its end.",
                "s",
                [
                    query(
                        f"max by (run, configuration) ({newest(catalog.WINDOW_LATENCY, quantile)})",
                        f"{word} {{{{configuration}}}}",
                        ref=ref,
                    )
                    for ref, quantile, word in (
                        ("A", ', quantile="0.5"', "p50"),
                        ("B", ', quantile="0.9"', "p90"),
                        ("C", ', quantile="0.99"', "p99"),
                    )
                ],
                width=8,
                height=9,
                points=True,
                log_base=10,
                calcs=(),
            ),
        ],
        "Results": [
            bars(
                "Energy per inference over batch size",
                "Mean over the run's measure windows and over all devices, idle power included (gross). "
                "Uncertainties and how it was measured: in the table.",
                "joule",
                energy(catalog.RESULT_ENERGY, "gross", "configuration, batch_size"),
                width=12,
                height=10,
            ),
            bars(
                "Throughput over batch size",
                "Inferences per second: mean over the run's measure windows.",
                "ops",
                result(catalog.RESULT_THROUGHPUT, by="configuration, batch_size"),
                width=12,
                height=10,
            ),
            grid(
                "Results",
                "Energy per inference: gross includes idle power, net does not; ± is the expanded uncertainty (95 %). "
                "Published by `joulewatch analyze --publish`.",
                [
                    query(gross, shape="table"),
                    query(energy(catalog.RESULT_UNCERTAINTY, "gross", f"{row}, method"), ref="B", shape="table"),
                    query(energy(catalog.RESULT_ENERGY, "net", f"{row}, method"), ref="C", shape="table"),
                    query(energy(catalog.RESULT_UNCERTAINTY, "net", f"{row}, method"), ref="D", shape="table"),
                    query(result(catalog.RESULT_THROUGHPUT, by=row), ref="E", shape="table"),
                    query(result(catalog.RESULT_THROUGHPUT_UNCERTAINTY, by=row), ref="F", shape="table"),
                ],
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
                            ("Value #E", "Throughput"),
                            ("Value #F", "± throughput"),
                        ],
                        hidden=["Time", "run"],
                    ),
                ],
                height=10,
                unit="joule",
                overrides=[
                    override("byName", "Batch size", unit="none", decimals=0, custom__width=110),
                    override("byRegexp", "/hroughput$/", unit="ops"),
                    override("byName", "Configuration", custom__minWidth=260),
                ],
            ),
        ],
        "What was run": [
            grid(
                "Configurations of the run",
                "As found after loading: the precision and the provider that really ran, and where.",
                [
                    query(
                        f"max by ({', '.join(catalog.RUN_INFO.labels)}) "
                        f"(last_over_time({catalog.RUN_INFO.name}{{{RUN}}}{RANGE}))",
                        shape="table",
                    )
                ],
                [
                    columns(
                        [
                            ("run", "Run"),
                            ("configuration", "Configuration"),
                            ("precision", "Precision asked"),
                            ("actual_precision", "Precision found"),
                            ("provider", "Provider"),
                            ("runtime_version", "Runtime version"),
                            ("scenario", "Scenario"),
                            ("server_rate_per_second", "Queries/s asked"),
                            ("hardware", "Hardware"),
                            ("nodename", "Host"),
                            ("kernel", "Kernel"),
                            ("governor", "Governor"),
                            ("exporters", "Exporters"),
                            ("version", "joulewatch"),
                            ("model_sha256", "Model SHA-256"),
                        ],
                        hidden=["Time", "Value", "network", "runtime", "schema", "plan_sha256"],
                    )
                ],
                height=6,
                overrides=[
                    override("byName", "Configuration", custom__minWidth=260),
                    override("byName", "Run", custom__width=215),
                    override("byName", "Hardware", custom__minWidth=290),
                    override("byName", "Provider", custom__width=190),
                    override("byRegexp", "/^(Precision|Runtime)/", custom__width=140),
                    override("byRegexp", "/^(Host|Kernel|Governor|joulewatch)$/", custom__width=110),
                ],
            ),
        ],
    }
    return fill(board, panels).refresh("5s").time("now-30m", "now")
