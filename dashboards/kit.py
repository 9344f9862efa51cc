"""Builders for the parts of a dashboard: queries, panels, variables, links, and the dashboard's JSON.

``panel`` makes every panel; its argument ``kind`` is the result of ``time_series``, ``single_stat``, ``data_table`` or
``bar_chart``, which set what belongs to one type of panel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import barchart, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from joulewatch_exporter import catalog

DATASOURCE: Final = commons.DataSourceRef(type_val="prometheus", uid="${datasource}")
SENSORS: Final = 'job=~"$job", instance=~"$instance"'
"""Label matchers of every series that is scraped from an exporter."""
RATE: Final = "[$__rate_interval]"
RANGE: Final = "[$__range]"
BY_QUANTITY: Final = "instance, collector, component, device, domain"
QUANTITY_LEGEND: Final = "{{component}} {{device}} {{domain}} · {{instance}}"
DEVICE_ENERGY: Final = f"{catalog.DEVICE_ENERGY.name}{{{SENSORS}}}"
NODE_ENERGY: Final = f"{catalog.NODE_ENERGY.name}{{{SENSORS}}}"
BY_HOST: Final = "cluster, host"
_SENSOR: Final = "cluster, job, instance, collector, component, device, domain"


def with_host(values: str, matchers: str) -> str:
    """Return PromQL that adds the label ``host`` to sensor series; a series without such an info is dropped.

    Args:
        values: PromQL with the labels of sensors.
        matchers: Matchers of ``joulewatch_sensor_info``.
    """
    info = f"{catalog.SENSOR_INFO.name}{{{SENSORS}, {matchers}}}"
    return f"{values} * on ({_SENSOR}) group_left (host) {info}"


def by_server(function: str) -> str:
    """Return PromQL for whole servers: one primary sensor for each host, its own before one read over the network.

    Args:
        function: Such as ``rate(%s[5m])``, with %s for the energy counters.
    """
    values = function % NODE_ENERGY
    own, remote = (
        f"max by ({BY_HOST}) ({with_host(values, matchers)})"
        for matchers in (
            'scope="node", primary="1", read_mode!="remote"',
            'scope="node", primary="1", read_mode="remote"',
        )
    )
    return f"({own} or {remote})"


def devices_by_host(function: str) -> str:
    """Return PromQL for the sum over the devices of each host; ``function`` as of ``by_server``."""
    watts = with_host(function % DEVICE_ENERGY, 'scope="device"')
    return f"sum by ({BY_HOST}) ({watts})"


# A colour has the same meaning on every panel.
METHOD_COLOURS: Final = {"counter": "green", "integrated": "blue", "estimated": "orange", "emulated": "purple"}
NODE_COLOUR: Final = "#8AB8FF"
DEVICES_COLOUR: Final = "#F2CC0C"
OTHER_COLOUR: Final = "#9FA7B3"

MATRIX_FIELD: Final = "batch_size\\configuration"
"""Name that Grafana's transformation "Grouping to matrix" gives its first column."""

Panel: TypeAlias = timeseries.Panel | stat.Panel | table.Panel | barchart.Panel
AnyPanel = TypeVar("AnyPanel", bound=Panel)
Variable: TypeAlias = dashboard.DatasourceVariable | dashboard.QueryVariable
Override: TypeAlias = tuple[models.MatcherConfig, list[models.DynamicConfigValue]]


def query(
    expr: str, legend: str = "", *, ref: str = "A", shape: Literal["range", "instant", "table"] = "range"
) -> prometheus.Dataquery:
    """Return a PromQL query; ``instant`` and ``table`` evaluate it at the end of the time range only."""
    target = prometheus.Dataquery().ref_id(ref).expr(expr).legend_format(legend).datasource(DATASOURCE)
    if shape == "range":
        return target.range()
    if shape == "table":
        target = target.format(PromQueryFormat.TABLE)
    return target.instant()


def colour(mode: str, fixed: str | None = None) -> dashboard.FieldColor:
    """Return a colour mode of a field; ``fixed`` is the colour of the modes that need one."""
    field_colour = dashboard.FieldColor().mode(models.FieldColorModeId(mode))
    return field_colour.fixed_color(fixed) if fixed else field_colour


def thresholds(base: str, *steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Return colours by value: ``base`` below the first of the ``steps`` (value, colour)."""
    levels = [models.Threshold(None, base), *(models.Threshold(value, name) for value, name in steps)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(levels)


def override(matcher: str, options: object, **properties: object) -> Override:
    """Return properties for the matching fields; ``custom__width`` means ``custom.width``."""
    return (
        models.MatcherConfig(matcher, options),
        [models.DynamicConfigValue(key.replace("__", "."), value) for key, value in properties.items()],
    )


def series_colour(prefix: str, shade: str) -> Override:
    """Give the series whose names start with ``prefix`` shades of one colour, one shade per instance."""
    return override("byRegexp", f"/^{prefix}/", color={"mode": "shades", "fixedColor": shade})


def legend(*, table: bool = False, right: bool = False, calcs: Sequence[str] = ()) -> common.VizLegendOptions:
    """Return a legend below the plot, or to its right; a table has a column for each of ``calcs``."""
    options = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(commons.LegendDisplayMode.TABLE if table else commons.LegendDisplayMode.LIST)
        .placement(commons.LegendPlacement.RIGHT if right else commons.LegendPlacement.BOTTOM)
        .calcs(list(calcs))
    )
    return options.width(440) if right else options


def tooltip(sort: commons.SortOrder) -> common.VizTooltipOptions:
    """Return a tooltip that lists all series."""
    return common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(sort)


def panel(
    title: str,
    description: str,
    unit: str,
    targets: Sequence[prometheus.Dataquery],
    *,
    size: tuple[int, int],
    kind: AnyPanel,
    overrides: Sequence[Override] = (),
    no_value: str = "",
) -> AnyPanel:
    """Return ``kind``, the new panel of one type, with what panels of every type have.

    ``unit`` is the id of one of Grafana's units; ``size`` is the width, in 24ths of the page, and the height in
    grid units; ``no_value`` is shown instead of values if there are none.
    """
    built: AnyPanel = (
        kind.title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(size[0])
        .height(size[1])
        .targets(list(targets))
    )
    if no_value:
        built = built.no_value(no_value)
    for matcher, properties in overrides:
        built = built.with_override(matcher, properties)
    return built


def time_series(
    *,
    stacked: bool = False,
    legend_right: bool = False,
    steps: bool = False,
    log_base: int = 0,
    minimum: float | None = 0.0,
    soft_maximum: float | None = None,
    points: bool = False,
    calcs: Sequence[str] = ("mean", "max"),
) -> timeseries.Panel:
    """Return a time series panel.

    Args:
        stacked: Stack the series.
        legend_right: Put the legend to the right of the plot instead of below it.
        steps: Hold each value until the next sample instead of drawing a slope.
        log_base: Base of a logarithmic axis; 0: linear.
        minimum: Lower end of a linear axis; None: set by the data.
        soft_maximum: Upper end of the axis unless the data exceed it; an axis of zeros would end at 100.
        points: Draw samples as points without lines.
        calcs: Statistics shown in the legend.
    """
    built = (
        timeseries.Panel()
        .color_scheme(colour("palette-classic"))
        .legend(legend(table=bool(calcs), right=legend_right, calcs=calcs))
        .tooltip(tooltip(commons.SortOrder.DESCENDING))
        .line_width(1)
        .fill_opacity(45 if stacked else 8)
        .show_points(commons.VisibilityMode.ALWAYS if points else commons.VisibilityMode.NEVER)
        .span_nulls(False)
    )
    if points:
        built = built.draw_style(commons.GraphDrawStyle.POINTS).point_size(6)
    if soft_maximum is not None:
        built = built.axis_soft_max(soft_maximum)
    if stacked:
        built = built.stacking(common.StackingConfig().group("A").mode(commons.StackingMode.NORMAL))
    if steps:
        built = built.line_interpolation(commons.LineInterpolation.STEP_AFTER)
    if log_base:
        built = built.scale_distribution(logarithmic(log_base))
    elif minimum is not None:
        built = built.min(minimum)
    return built


def logarithmic(base: int) -> common.ScaleDistributionConfig:
    return common.ScaleDistributionConfig().type(commons.ScaleDistribution.LOG).log(base)


def single_stat(
    *,
    levels: dashboard.ThresholdsConfig | None = None,
    shade: str = "text",
    sparkline: bool = False,
    named: bool = False,
) -> stat.Panel:
    """Return a stat panel: the last value of each series; ``named`` shows the names of the series too."""
    built = (
        stat.Panel()
        .color_scheme(colour("thresholds") if levels is not None else colour("fixed", shade))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(commons.BigValueColorMode.VALUE)
        .graph_mode(commons.BigValueGraphMode.AREA if sparkline else commons.BigValueGraphMode.NONE)
        .text_mode(commons.BigValueTextMode.VALUE_AND_NAME if named else commons.BigValueTextMode.VALUE)
        .justify_mode(commons.BigValueJustifyMode.AUTO if sparkline else commons.BigValueJustifyMode.CENTER)
        .wide_layout(True)
    )
    return built if levels is None else built.thresholds(levels)


def transformation(name: str, **options: object) -> models.DataTransformerConfig:
    """Return a transformation of the query results, by Grafana's id."""
    return models.DataTransformerConfig(name, options=options)


def columns(order: Sequence[tuple[str, str]], *, hidden: Sequence[str] = ()) -> models.DataTransformerConfig:
    """Order and rename the columns of a table: (label, heading) from left to right."""
    return transformation(
        "organize",
        excludeByName=dict.fromkeys(hidden, True),
        indexByName={name: index for index, (name, _) in enumerate(order)},
        renameByName=dict(order),
    )


def data_table(
    transformations: Sequence[models.DataTransformerConfig], *, sort: tuple[str, bool] | None = None
) -> table.Panel:
    """Return a table panel; ``sort`` is (heading, descending)."""
    built = (
        table.Panel()
        .color_scheme(colour("fixed", "text"))
        .transformations(list(transformations))
        .filterable(True)
        .cell_height(commons.TableCellHeight.SM)
    )
    if sort is not None:
        built = built.sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    return built


def method_column() -> Override:
    """Colour the cells of the column Method, so that estimated and emulated values stand out."""
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


def state_column() -> Override:
    """Colour the cells of the column State: ok, asleep, or a failure."""
    return override(
        "byName",
        "State",
        mappings=[
            {"type": "value", "options": {"ok": {"text": "ok", "color": "green", "index": 0}}},
            {"type": "value", "options": {"asleep": {"text": "asleep", "color": "blue", "index": 1}}},
            {"type": "regex", "options": {"pattern": ".+", "result": {"color": "red", "index": 2}}},
        ],
        custom__cellOptions={"type": "color-text"},
    )


def methods_panel(width: int) -> stat.Panel:
    """Return the panel that counts device sensors by method; both dashboards have it."""
    return panel(
        "Device sensors by method",
        "counter: the device counts joules; integrated: the exporter integrates the device's power; estimated: a "
        "power model, no sensor; emulated: the emulator, no hardware.",
        "short",
        [
            query(
                f'count by (method) ({catalog.SENSOR_INFO.name}{{{SENSORS}, scope="device"}})',
                "{{method}}",
                shape="instant",
            )
        ],
        size=(width, 5),
        kind=single_stat(named=True),
        overrides=[series_colour(name, shade) for name, shade in METHOD_COLOURS.items()],
    )


def bar_chart() -> barchart.Panel:
    """Return a bar chart over batch size with a logarithmic axis and one colour per configuration.

    Its query returns a table with the labels ``configuration`` and ``batch_size``. The axis of a bar chart has
    categories, so batch sizes are sorted as numbers first and then converted to text.
    """
    to_number = [{"targetField": "batch_size", "destinationType": "number"}]
    to_text = [{"targetField": MATRIX_FIELD, "destinationType": "string"}]
    return (
        barchart.Panel()
        .color_scheme(colour("palette-classic"))
        .transformations(
            [
                transformation("convertFieldType", fields={}, conversions=to_number),
                transformation("sortBy", fields={}, sort=[{"field": "batch_size"}]),
                transformation(
                    "groupingToMatrix",
                    columnField="configuration",
                    rowField="batch_size",
                    valueField="Value",
                    emptyValue="null",
                ),
                transformation("convertFieldType", fields={}, conversions=to_text),
                columns([(MATRIX_FIELD, "batch size")]),
            ]
        )
        .orientation(commons.VizOrientation.VERTICAL)
        .x_field("batch size")
        .scale_distribution(logarithmic(10))
        .axis_label("")
        .fill_opacity(75)
        .line_width(1)
        .group_width(0.8)
        .bar_width(0.94)
        .show_value(commons.VisibilityMode.NEVER)
        .legend(legend())
        .tooltip(tooltip(commons.SortOrder.NONE))
    )


def sensor_variables() -> Iterator[Variable]:
    """Yield the variables of every dashboard: data source, job and instance."""
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    info = catalog.EXPORTER_INFO.name
    yield multi_value_variable("job", "Job", f"label_values({info}, job)")
    yield multi_value_variable("instance", "Instance", f'label_values({info}{{job=~"$job"}}, instance)')


def query_variable(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    """Return a variable whose values come from Prometheus."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .definition(expr)
        .query({"query": expr, "refId": f"variable-{name}", "qryType": 1})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def multi_value_variable(name: str, label: str, expr: str) -> dashboard.QueryVariable:
    """Return a variable that accepts several values; all are selected when the dashboard opens."""
    return (
        query_variable(name, label, expr)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def link(title: str, uid: str) -> dashboard.DashboardLink:
    """Return a link to another dashboard that keeps the time range and the variables."""
    return (
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{uid}")
        .icon("dashboard")
        .keep_time(True)
        .include_vars(True)
    )


def new_dashboard(
    title: str, uid: str, description: str, variables: Sequence[Variable], rows: Mapping[str, Sequence[Panel]]
) -> dashboard.Dashboard:
    """Return a read-only dashboard with these variables, and rows (title -> panels) from top to bottom."""
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["joulewatch", "energy"])
        .readonly()
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .timepicker(dashboard.TimePicker().refresh_intervals(["1s", "5s", "10s", "30s", "1m", "5m"]))
    )
    for variable in variables:
        board = board.with_variable(variable)
    for row, panels in rows.items():
        board = board.with_row(dashboard.Row(row))
        for panel in panels:
            board = board.with_panel(panel)
    return board


def to_json(board: dashboard.Dashboard) -> str:
    """Return the dashboard's JSON.

    The SDK leaves panel ids null: panels without an id get their number in reading order. It also writes defaults
    that are removed here: those of interval variables on other variables, the direction of repeated
    panels where nothing repeats, and the placement that hides links and annotation switches in a menu.
    """
    data: dict[str, Any] = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    for number, panel in enumerate(data["panels"], start=1):
        panel["id"] = panel.get("id") or number
        if "repeat" not in panel:
            panel.pop("repeatDirection", None)
    for variable in data["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for control in (*data["links"], *data.get("annotations", {}).get("list", ())):
        control.pop("placement", None)
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
