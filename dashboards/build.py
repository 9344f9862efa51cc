"""Writes node.json and experiment.json: the Grafana dashboards, as code.

    python dashboards/build.py            # rewrite the two files
    python dashboards/build.py --check    # exit 1 if a file is not what this code writes

Metric names come from the exporter's catalog, so a renamed metric cannot stay behind in a dashboard.
The JSON is committed: nobody needs this program, or its one dependency (grafana-foundation-sdk), to use it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from grafana_foundation_sdk.builders import barchart, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from joulewatch_exporter import catalog

FOLDER: Final = Path(__file__).resolve().parent

DATASOURCE: Final = commons.DataSourceRef(type_val="prometheus", uid="${datasource}")
SENSORS: Final = 'job=~"$job", instance=~"$instance"'
"""Matchers of everything that is scraped from an exporter."""
RUN: Final = 'run=~"$run", configuration=~"$configuration"'
"""Matchers of everything that the harness and the analysis deliver: a run is not bound to one exporter."""
RATE: Final = "[$__rate_interval]"
RANGE: Final = "[$__range]"
BY_QUANTITY: Final = "instance, collector, component, device, domain"

# One colour for one meaning, on every panel.
METHOD_COLOURS: Final = {"counter": "green", "integrated": "blue", "estimated": "orange", "emulated": "purple"}
NODE_COLOUR: Final = "#8AB8FF"
DEVICES_COLOUR: Final = "#F2CC0C"
OTHER_COLOUR: Final = "#9FA7B3"

WINDOWS_PANEL: Final = 100
"""Id of the one panel that shows the windows: on small panels they would hide what is drawn."""
MATRIX_FIELD: Final = "batch_size\\configuration"
"""What Grafana's "Grouping to matrix" calls its first column."""

Panel: TypeAlias = timeseries.Panel | stat.Panel | table.Panel | barchart.Panel
Override: TypeAlias = tuple[models.MatcherConfig, list[models.DynamicConfigValue]]


def query(
    expr: str, legend: str = "", *, ref: str = "A", shape: Literal["range", "instant", "table"] = "range"
) -> prometheus.Dataquery:
    """One PromQL query of a panel; ``instant`` asks for the end of the time range only."""
    target = prometheus.Dataquery().ref_id(ref).expr(expr).legend_format(legend).datasource(DATASOURCE)
    if shape == "range":
        return target.range()
    if shape == "table":
        target = target.format(PromQueryFormat.TABLE)
    return target.instant()


def colour(mode: str, fixed: str | None = None) -> dashboard.FieldColor:
    built = dashboard.FieldColor().mode(models.FieldColorModeId(mode))
    return built.fixed_color(fixed) if fixed else built


def thresholds(base: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Colours by value: ``base`` below the first step."""
    levels = [models.Threshold(None, base), *(models.Threshold(value, name) for value, name in steps)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(levels)


def override(matcher: str, options: object, **properties: object) -> Override:
    """Field properties (``custom__width`` means ``custom.width``) for the fields that match."""
    return (
        models.MatcherConfig(matcher, options),
        [models.DynamicConfigValue(key.replace("__", "."), value) for key, value in properties.items()],
    )


def fixed(name: str, shade: str) -> Override:
    """Shades of one colour for the series whose names begin with ``name``: one for each instance."""
    return override("byRegexp", f"/^{name}/", color={"mode": "shades", "fixedColor": shade})


def graph(
    title: str,
    description: str,
    unit: str,
    targets: Sequence[prometheus.Dataquery],
    *,
    width: int,
    height: int = 8,
    stacked: bool = False,
    legend_right: bool = False,
    steps: bool = False,
    log_base: int = 0,
    minimum: float | None = 0.0,
    soft_maximum: float | None = None,
    points: bool = False,
    calcs: Sequence[str] = ("mean", "max"),
    overrides: Sequence[Override] = (),
) -> timeseries.Panel:
    """A time series panel; with ``calcs`` its legend is a table of figures.

    ``soft_maximum`` keeps an axis of zeros from being drawn up to 100; ``points`` draws each sample alone.
    """
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(commons.LegendDisplayMode.TABLE if calcs else commons.LegendDisplayMode.LIST)
        .placement(commons.LegendPlacement.RIGHT if legend_right else commons.LegendPlacement.BOTTOM)
        .calcs(list(calcs))
    )
    if legend_right:
        legend = legend.width(440)
    sort = commons.SortOrder.DESCENDING
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .targets(list(targets))
        .color_scheme(colour("palette-classic"))
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(sort))
        .line_width(1)
        .fill_opacity(45 if stacked else 8)
        .show_points(commons.VisibilityMode.ALWAYS if points else commons.VisibilityMode.NEVER)
        .span_nulls(False)
    )
    if points:
        panel = panel.draw_style(commons.GraphDrawStyle.POINTS).point_size(6)
    if soft_maximum is not None:
        panel = panel.axis_soft_max(soft_maximum)
    if stacked:
        panel = panel.stacking(common.StackingConfig().group("A").mode(commons.StackingMode.NORMAL))
    if steps:
        panel = panel.line_interpolation(commons.LineInterpolation.STEP_AFTER)
    if log_base:
        scale = common.ScaleDistributionConfig().type(commons.ScaleDistribution.LOG).log(log_base)
        panel = panel.scale_distribution(scale)
    elif minimum is not None:
        panel = panel.min(minimum)
    for matcher, properties in overrides:
        panel = panel.with_override(matcher, properties)
    return panel


def figure(
    title: str,
    description: str,
    unit: str,
    targets: Sequence[prometheus.Dataquery],
    *,
    width: int,
    height: int = 5,
    levels: dashboard.ThresholdsConfig | None = None,
    shade: str = "text",
    sparkline: bool = False,
    named: bool = False,
    calc: str = "lastNotNull",
    overrides: Sequence[Override] = (),
) -> stat.Panel:
    """A stat panel: one figure, or one for each series."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .targets(list(targets))
        .reduce_options(common.ReduceDataOptions().calcs([calc]).values(False))
        .color_mode(commons.BigValueColorMode.VALUE)
        .graph_mode(commons.BigValueGraphMode.AREA if sparkline else commons.BigValueGraphMode.NONE)
        .text_mode(commons.BigValueTextMode.VALUE_AND_NAME if named else commons.BigValueTextMode.VALUE)
        .justify_mode(commons.BigValueJustifyMode.AUTO if sparkline else commons.BigValueJustifyMode.CENTER)
        .wide_layout(True)
    )
    if levels is not None:
        panel = panel.thresholds(levels).color_scheme(colour("thresholds"))
    else:
        panel = panel.color_scheme(colour("fixed", shade))
    for matcher, properties in overrides:
        panel = panel.with_override(matcher, properties)
    return panel


def transformation(name: str, **options: object) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(name, options=options)


def columns(order: Sequence[tuple[str, str]], *, hidden: Sequence[str] = ()) -> models.DataTransformerConfig:
    """Order and rename the columns of a table: (label, heading) from left to right."""
    return transformation(
        "organize",
        excludeByName=dict.fromkeys(hidden, True),
        indexByName={name: index for index, (name, _) in enumerate(order)},
        renameByName=dict(order),
    )


def grid(
    title: str,
    description: str,
    targets: Sequence[prometheus.Dataquery],
    transformations: Sequence[models.DataTransformerConfig],
    *,
    height: int,
    width: int = 24,
    unit: str = "none",
    sort: tuple[str, bool] | None = None,
    overrides: Sequence[Override] = (),
) -> table.Panel:
    """A table panel; ``sort`` is (heading, descending)."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .targets(list(targets))
        .transformations(list(transformations))
        .color_scheme(colour("fixed", "text"))
        .filterable(True)
        .cell_height(commons.TableCellHeight.SM)
    )
    if sort is not None:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    for matcher, properties in (*overrides, method_cells()):
        panel = panel.with_override(matcher, properties)
    return panel


def method_cells() -> Override:
    """Estimated and emulated figures must strike the eye: the method's cell carries its colour."""
    return override(
        "byName",
        "Method",
        mappings=[
            *(
                {"type": "value", "options": {name: {"text": name, "color": shade, "index": index}}}
                for index, (name, shade) in enumerate(METHOD_COLOURS.items())
            ),
            # A total over devices of several methods, such as counter+estimated.
            *(
                {"type": "regex", "options": {"pattern": f".*{name}.*", "result": {"color": shade, "index": index}}}
                for index, (name, shade) in enumerate(reversed(METHOD_COLOURS.items()), start=len(METHOD_COLOURS))
            ),
        ],
        custom__cellOptions={"type": "color-background", "mode": "basic"},
        custom__width=110,
    )


def methods_figure(width: int) -> stat.Panel:
    return figure(
        "How devices are measured",
        "Number of device sensors by method. counter: the device counts joules; integrated: its watts are "
        "integrated by the exporter; estimated: a power model, no sensor; emulated: a made-up machine.",
        "short",
        [
            query(
                f'count by (method) ({catalog.SENSOR_INFO.name}{{{SENSORS}, scope="device"}})',
                "{{method}}",
                shape="instant",
            )
        ],
        width=width,
        named=True,
        overrides=[fixed(name, shade) for name, shade in METHOD_COLOURS.items()],
    )


def bars(
    title: str, description: str, unit: str, expr: str, *, width: int, height: int, log: bool = True
) -> barchart.Panel:
    """A bar chart over batch size, one colour for each configuration.

    ``expr`` gives series with the labels ``configuration`` and ``batch_size``. Batch sizes are sorted as
    numbers and then made text, because a bar chart's axis is one of categories.
    """
    scale = common.ScaleDistributionConfig()
    scale = scale.type(commons.ScaleDistribution.LOG).log(10) if log else scale.type(commons.ScaleDistribution.LINEAR)
    number = [{"targetField": "batch_size", "destinationType": "number"}]
    text = [{"targetField": MATRIX_FIELD, "destinationType": "string"}]
    return (
        barchart.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .targets([query(expr, shape="table")])
        .transformations(
            [
                transformation("convertFieldType", fields={}, conversions=number),
                transformation("sortBy", fields={}, sort=[{"field": "batch_size"}]),
                transformation(
                    "groupingToMatrix",
                    columnField="configuration",
                    rowField="batch_size",
                    valueField="Value",
                    emptyValue="null",
                ),
                transformation("convertFieldType", fields={}, conversions=text),
                columns([(MATRIX_FIELD, "batch size")]),
            ]
        )
        .orientation(commons.VizOrientation.VERTICAL)
        .x_field("batch size")
        .scale_distribution(scale)
        .axis_label("")
        .color_scheme(colour("palette-classic"))
        .fill_opacity(75)
        .line_width(1)
        .group_width(0.8)
        .bar_width(0.94)
        .show_value(commons.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(commons.LegendDisplayMode.LIST)
            .placement(commons.LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(commons.SortOrder.NONE))
    )


def variables(*, run: bool) -> Iterator[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    """Data source, job and instance; for an experiment its run and configurations too."""
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    info = catalog.EXPORTER_INFO.name
    yield listed("job", "Job", f"label_values({info}, job)")
    yield listed("instance", "Instance", f'label_values({info}{{job=~"$job"}}, instance)')
    if run:
        info = catalog.RUN_INFO.name
        # Run ids sort by time: descending, the newest run is the one shown when the dashboard opens.
        yield (
            query_variable("run", "Run", f"label_values({info}, run)")
            .sort(models.VariableSort.ALPHABETICAL_DESC)
            .multi(False)
        )
        yield listed("configuration", "Configuration", f'label_values({info}{{run=~"$run"}}, configuration)')


def query_variable(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .definition(expr)
        .query({"query": expr, "refId": f"variable-{name}", "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def listed(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    """A variable of which any number can be chosen, all of them to begin with."""
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        query_variable(name, label, expr)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(everything)
    )


def link(title: str, uid: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .icon("dashboard")
        .keep_time(True)
        .include_vars(True)
    )


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


def node() -> dashboard.Dashboard:
    """One server or many: what they draw, what it goes into, and whether the sensors can be trusted."""
    device = f"{catalog.DEVICE_ENERGY.name}{{{SENSORS}}}"
    whole = f"{catalog.NODE_ENERGY.name}{{{SENSORS}}}"
    part = f"{catalog.PART_ENERGY.name}{{{SENSORS}}}"
    device_rate = f"rate({device}{RATE})"
    node_rate = f"rate({whole}{RATE})"
    quantity = "{{component}} {{device}} {{domain}} · {{instance}}"
    age = f"time() - {catalog.READ_TIMESTAMP.name}{{{SENSORS}}}"
    board = start(
        "joulewatch / Node",
        "joulewatch-node",
        "Power and energy of servers and of the devices inside them, and the health of the sensors behind the figures.",
    )
    for variable in variables(run=False):
        board = board.with_variable(variable)
    board = board.link(link("Experiment", "joulewatch-experiment"))
    panels: dict[str, list[Panel]] = {
        "Overview": [
            figure(
                "Power of all devices",
                "Sum over CPU packages, memory, GPUs and FPGA cards, from their energy counters. Devices are "
                "disjoint, so the sum counts nothing twice.",
                "watt",
                [query(f"sum({device_rate})", "devices")],
                width=4,
                shade=DEVICES_COLOUR,
                sparkline=True,
            ),
            figure(
                "Power of whole servers",
                "Sum over servers, as their own sensors give it (board, BMC). It contains the devices; the two are "
                "never added. No data: no server here has such a sensor.",
                "watt",
                [query(f"sum({node_rate})", "nodes")],
                width=4,
                shade=NODE_COLOUR,
                sparkline=True,
            ),
            figure(
                "Energy of all devices in the time range",
                "Joules, and the same in kilowatt hours, over the time range of this dashboard. PromQL extrapolates at "
                "the edges of the range: for a report use `joulewatch energy`.",
                "joule",
                [
                    query(f"sum(increase({device}{RANGE}))", "J", shape="instant"),
                    query(f"sum(increase({device}{RANGE})) / 3.6e6", "kWh", ref="B", shape="instant"),
                ],
                width=6,
                shade=DEVICES_COLOUR,
                overrides=[override("byFrameRefID", "B", unit="kwatth")],
            ),
            methods_figure(4),
            figure(
                "Sensors down",
                "Devices whose last read failed. Their series are absent until they answer again, never repeated.",
                "short",
                [query(f"sum(1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "down", shape="instant")],
                width=3,
                levels=thresholds("green", (1, "red")),
            ),
            figure(
                "Oldest value",
                "Age of the oldest value on this dashboard, from the time at which it was read from the device.",
                "s",
                [query(f"max({age})", "age", shape="instant")],
                width=3,
                levels=thresholds("green", (60, "orange"), (300, "red")),
            ),
        ],
        "Power": [
            graph(
                "Power of devices, from energy counters",
                "Stacked rate of the energy counters: nothing is lost between two scrapes, however the load moves. "
                "The height of the stack is the power of all devices.",
                "watt",
                [query(f"sum by ({BY_QUANTITY}) ({device_rate})", quantity)],
                width=14,
                height=10,
                stacked=True,
            ),
            graph(
                "Momentary power of devices",
                "Power over the last reading interval, or the sensor's own value. A gauge misses what happens between "
                "scrapes: look here for peaks, and left for energy.",
                "watt",
                [query(f"{catalog.DEVICE_POWER.name}{{{SENSORS}}}", quantity)],
                width=10,
                height=10,
                calcs=("lastNotNull", "max"),
            ),
            graph(
                "Whole servers against the sum of their devices",
                "Other is what the server draws beyond its measured devices: fans, disks, network, board and the loss "
                "of power supplies. It falls below 0 only where the sensors contradict each other.",
                "watt",
                [
                    query(f"sum by (instance) ({node_rate})", "node · {{instance}}"),
                    query(f"sum by (instance) ({device_rate})", "devices · {{instance}}", ref="B"),
                    query(
                        f"sum by (instance) ({node_rate}) - sum by (instance) ({device_rate})",
                        "other · {{instance}}",
                        ref="C",
                    ),
                ],
                width=14,
                minimum=None,
                overrides=[fixed("node", NODE_COLOUR), fixed("devices", DEVICES_COLOUR), fixed("other", OTHER_COLOUR)],
            ),
            grid(
                "Energy of devices in the time range",
                "Joules of each device over the time range of this dashboard, the largest first.",
                [query(f"sum by ({BY_QUANTITY}) (increase({device}{RANGE}))", shape="table")],
                [
                    columns(
                        [
                            ("Value", "Energy"),
                            ("component", "Component"),
                            ("device", "Device"),
                            ("domain", "Domain"),
                            ("instance", "Instance"),
                        ],
                        hidden=["Time", "collector"],
                    )
                ],
                height=8,
                width=10,
                unit="joule",
                sort=("Energy", True),
                overrides=[
                    override("byName", "Instance", custom__minWidth=140),
                    override("byRegexp", "/^(Component|Domain)$/", custom__width=100),
                    override("byName", "Device", custom__width=125),
                    override("byName", "Energy", custom__width=100),
                ],
            ),
        ],
        "Parts of devices": [
            graph(
                "Power of parts",
                "Cores, uncore, rails, memory on a card: each lies inside a device above and must not be added to it, "
                "so this panel does not stack.",
                "watt",
                [query(f"sum by ({BY_QUANTITY}) (rate({part}{RATE}))", quantity)],
                width=24,
                height=8,
                legend_right=True,
            ),
        ],
        "Health of sensors": [
            graph(
                "Down",
                "Exporters that Prometheus cannot scrape, and devices that the exporter cannot read. 0 is right.",
                "short",
                [
                    query(f"sum by (instance) (1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "devices · {{instance}}"),
                    query(f"1 - up{{{SENSORS}}}", "exporter · {{instance}}", ref="B"),
                ],
                width=8,
                calcs=(),
                steps=True,
                soft_maximum=1,
                overrides=[fixed("devices", "orange"), fixed("exporter", "red")],
            ),
            graph(
                "Failed reads",
                "Reads that gave no value, by reason; none: no read of this device ever failed. Each leaves a gap that "
                "the time not measured (right) accounts for.",
                "cps",
                [
                    query(
                        f"sum by (instance, collector, device, reason) (rate({catalog.READ_ERRORS.name}"
                        f"{{{SENSORS}}}{RATE})) or label_replace("
                        f"sum by (instance, collector, device) (0 * {catalog.SENSOR_UP.name}{{{SENSORS}}}), "
                        '"reason", "none", "", "")',
                        "{{collector}} {{device}}: {{reason}} · {{instance}}",
                    )
                ],
                width=8,
                soft_maximum=1,
                calcs=(),
            ),
            graph(
                "Share of time not measured",
                "Time whose energy is missing from the counters because readings failed or came too late. "
                "Above 0, energies over this time are too low by about this share.",
                "percentunit",
                [
                    query(
                        f"max by (instance, collector, device) (rate({catalog.SENSOR_UNMEASURED.name}"
                        f"{{{SENSORS}}}{RATE}))",
                        "{{collector}} {{device}} · {{instance}}",
                    )
                ],
                width=8,
                soft_maximum=0.01,
                calcs=(),
            ),
            graph(
                "Age of values",
                "How long before now the values were read from the device. It swings between 0 and the scrape "
                "interval; a slow management controller adds its own period. Below 0: the node's clock is ahead.",
                "s",
                [query(age, "{{collector}} {{device}} · {{instance}}")],
                width=8,
                calcs=(),
                minimum=None,
            ),
            graph(
                "Time to read all devices",
                "How long the last scan of a sensor family took.",
                "s",
                [
                    query(
                        f"{catalog.READ_DURATION.name}{{{SENSORS}}}",
                        "{{collector}} · {{instance}}",
                    )
                ],
                width=8,
                calcs=(),
            ),
            graph(
                "Refresh period of sensors",
                "How often the value inside the sensor really changes, as measured. Windows much longer than this "
                "are measured well.",
                "s",
                [
                    query(
                        f"max by (instance, collector, device) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})",
                        "{{collector}} {{device}} · {{instance}}",
                    )
                ],
                width=8,
                calcs=(),
            ),
            graph(
                "Wraps, resets and rejected readings",
                "Wraps are normal: a hardware counter went round and was carried on. A reset loses the energy around "
                "it; a rejected reading was physically impossible.",
                "short",
                [
                    query(
                        f"sum by (instance) (increase({metric.name}{{{SENSORS}}}{RATE}))",
                        f"{word} · {{{{instance}}}}",
                        ref=ref,
                    )
                    for metric, word, ref in (
                        (catalog.SENSOR_WRAPS, "wraps", "A"),
                        (catalog.SENSOR_RESETS, "resets", "B"),
                        (catalog.SENSOR_REJECTED, "rejected", "C"),
                    )
                ],
                width=8,
                soft_maximum=1,
                calcs=(),
                overrides=[fixed("wraps", "green"), fixed("resets", "orange"), fixed("rejected", "red")],
            ),
            graph(
                "CPU time of the exporter",
                "Share of one core that measuring costs.",
                "percentunit",
                [
                    query(
                        f"rate(process_cpu_seconds_total{{{SENSORS}}}{RATE})",
                        "{{instance}}",
                    )
                ],
                width=8,
                calcs=(),
            ),
            graph(
                "Memory of the exporter",
                "Resident memory of the exporter's process.",
                "bytes",
                [query(f"process_resident_memory_bytes{{{SENSORS}}}", "{{instance}}")],
                width=8,
                calcs=(),
            ),
        ],
        "Sensors": [
            grid(
                "Every quantity and how it is measured",
                "One row for each series. Method: counter (the device counts joules), integrated (its watts are "
                "integrated), estimated (a model, no sensor), emulated (a made-up machine).",
                [
                    query(
                        f"max by ({', '.join(('instance', *catalog.SENSOR_INFO.labels))}) "
                        f"({catalog.SENSOR_INFO.name}{{{SENSORS}}})",
                        shape="table",
                    ),
                    query(
                        f"max by ({BY_QUANTITY}) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})",
                        ref="B",
                        shape="table",
                    ),
                ],
                [
                    transformation("merge"),
                    columns(
                        [
                            ("instance", "Instance"),
                            ("scope", "Scope"),
                            ("component", "Component"),
                            ("device", "Device"),
                            ("domain", "Domain"),
                            ("method", "Method"),
                            ("collector", "Collector"),
                            ("reads", "Reads"),
                            ("model", "Model"),
                            ("resolution", "Resolution"),
                            ("accuracy", "Accuracy ±"),
                            ("Value #B", "Refresh"),
                            ("source", "Source"),
                        ],
                        hidden=["Time", "Value #A"],
                    ),
                ],
                height=10,
                sort=("Scope", False),
                overrides=[
                    override("byName", "Refresh", unit="s", custom__width=90),
                    override("byName", "Instance", custom__width=150),
                    override("byName", "Source", custom__minWidth=320),
                    override("byName", "Model", custom__minWidth=260),
                    override("byName", "Device", custom__width=125),
                    override("byRegexp", "/^(Scope|Component|Domain|Collector|Reads)$/", custom__width=100),
                    override("byName", "Accuracy ±", unit="percentunit", custom__width=105),
                    override("byName", "Resolution", custom__width=110),
                ],
            ),
        ],
    }
    return fill(board, panels).refresh("10s").time("now-1h", "now")


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


def start(title: str, uid: str, description: str) -> dashboard.Dashboard:
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["joulewatch", "energy"])
        .readonly()
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .timepicker(dashboard.TimePicker().refresh_intervals(["1s", "5s", "10s", "30s", "1m", "5m"]))
    )


def fill(board: dashboard.Dashboard, rows: dict[str, list[Panel]]) -> dashboard.Dashboard:
    for title, panels in rows.items():
        board = board.with_row(dashboard.Row(title))
        for panel in panels:
            board = board.with_panel(panel)
    return board


def rendered(board: dashboard.Dashboard) -> str:
    """The dashboard's JSON, with panel ids 1, 2, 3, … in reading order (the SDK leaves them null) unless set.

    What the SDK writes although nobody asked for it is taken out again: settings of interval variables on
    variables of other types, a direction of repetition where nothing repeats, and the placement that hides
    links and the switches of annotations in a menu.
    """
    data: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(data["panels"], start=1):
        panel["id"] = panel.get("id") or number
        if "repeat" not in panel:
            panel.pop("repeatDirection", None)
    for variable in data["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for item in (*data["links"], *data.get("annotations", {}).get("list", ())):
        item.pop("placement", None)
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def files() -> dict[Path, str]:
    """Every file that this program writes, with its text."""
    return {FOLDER / "node.json": rendered(node()), FOLDER / "experiment.json": rendered(experiment())}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    stale = [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path.name} is not what build.py writes: run python dashboards/build.py\n")
        else:
            path.write_text(files()[path], encoding="utf-8")
            sys.stderr.write(f"wrote {path.name}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
