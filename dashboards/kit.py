"""Makers of queries, panels, variables and whole dashboards, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

from grafana_foundation_sdk.builders import barchart, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from joulewatch_exporter import catalog

DATASOURCE: Final = commons.DataSourceRef(type_val="prometheus", uid="${datasource}")
SENSORS: Final = 'job=~"$job", instance=~"$instance"'
"""Matchers of everything that is scraped from an exporter."""
RATE: Final = "[$__rate_interval]"
RANGE: Final = "[$__range]"
BY_QUANTITY: Final = "instance, collector, component, device, domain"

# One colour for one meaning, on every panel.
METHOD_COLOURS: Final = {"counter": "green", "integrated": "blue", "estimated": "orange", "emulated": "purple"}
NODE_COLOUR: Final = "#8AB8FF"
DEVICES_COLOUR: Final = "#F2CC0C"
OTHER_COLOUR: Final = "#9FA7B3"

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
