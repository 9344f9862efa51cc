"""Builders for the parts of a dashboard: queries, panels, variables, links, and the dashboard's JSON.

``panel`` makes every panel; its argument ``kind`` is the result of ``time_series``, ``single_stat``, ``data_table``,
``state_timeline`` or a function of ``trends``, which set what belongs to one type of panel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
    trend,
)
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
EVER: Final = "[2y] offset -1y"
"""Range for runs and results, which a dashboard shows whatever its time range: a year around the end of the range."""
BY_QUANTITY: Final = "instance, collector, component, device, domain"
BY_NAME: Final = "instance, component, name, domain"
NAME_LEGEND: Final = "{{component}} {{name}} {{domain}} · {{instance}}"
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


def with_name(values: str, scope: str) -> str:
    """Return PromQL that adds the label ``name`` to sensor series: the device, or model and PCI address of a GPU.

    The device of an NVIDIA GPU is a UUID; its model is such as ``NVIDIA H100 PCIe @ 0000:17:00.0, driver 550.54.15``.
    """
    info = f'label_replace({catalog.SENSOR_INFO.name}{{{SENSORS}, scope="{scope}"}}, "name", "$1", "device", "(.+)")'
    info = f'label_replace({info}, "name", "$1", "model", "(.+), driver .*")'
    return f"{values} * on ({_SENSOR}) group_left (name) {info}"


# A colour has the same meaning on every panel.
METHOD_COLOURS: Final = {
    "counter": "green", "integrated": "blue", "estimated": "orange", "emulated": "purple", "predicted": "red",
}  # fmt: skip
NODE_COLOUR: Final = "#8AB8FF"
DEVICES_COLOUR: Final = "#F2CC0C"
OTHER_COLOUR: Final = "#9FA7B3"

Panel: TypeAlias = timeseries.Panel | stat.Panel | table.Panel | statetimeline.Panel | trend.Panel
AnyPanel = TypeVar("AnyPanel", bound=Panel)
Variable: TypeAlias = dashboard.DatasourceVariable | dashboard.QueryVariable | dashboard.TextBoxVariable
Override: TypeAlias = tuple[models.MatcherConfig, list[models.DynamicConfigValue]]


def query(
    expr: str, legend: str = "", *, ref: str = "A", shape: Literal["range", "rows", "instant", "table"] = "range"
) -> prometheus.Dataquery:
    """Return a PromQL query; ``instant`` and ``table`` evaluate it at the end of the time range only.

    ``rows`` and ``table`` return one table with the labels as columns.
    """
    target = prometheus.Dataquery().ref_id(ref).expr(expr).legend_format(legend).datasource(DATASOURCE)
    if shape == "range":
        return target.range()
    if shape == "rows":
        return target.format(PromQueryFormat.TABLE).range()
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


def legend(*, table: bool = False, calcs: Sequence[str] = ()) -> common.VizLegendOptions:
    """Return a legend below the plot; a table has a column for each of ``calcs``."""
    return (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(commons.LegendDisplayMode.TABLE if table else commons.LegendDisplayMode.LIST)
        .placement(commons.LegendPlacement.BOTTOM)
        .calcs(list(calcs))
    )


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
        if isinstance(kind, table.Panel):
            # Otherwise each empty cell would show the text.
            overrides = [override("byRegexp", "/.*/", noValue="–"), *overrides]
    for matcher, properties in overrides:
        built = built.with_override(matcher, properties)
    return built


def time_series(
    *,
    stacked: bool = False,
    steps: bool = False,
    log_base: int = 0,
    minimum: float | None = 0.0,
    soft_maximum: float | None = None,
    points: bool = False,
    calcs: Sequence[str] = ("min", "mean", "max"),
) -> timeseries.Panel:
    """Return a time series panel.

    Args:
        stacked: Stack the series.
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
        .legend(legend(table=bool(calcs), calcs=calcs))
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


MERGED: Final = transformation("merge")
"""One row for the values of all queries that have the same labels."""
SORTED_BY_BATCH_SIZE: Final = (
    transformation(
        "convertFieldType", fields={}, conversions=[{"targetField": "batch_size", "destinationType": "number"}]
    ),
    transformation("sortBy", fields={}, sort=[{"field": "batch_size"}]),
)
"""Sorts the rows of a table by batch size, which is text in a label."""


def data_table(
    columns: Mapping[str, str],
    *,
    rows: Sequence[models.DataTransformerConfig] = (MERGED,),
    hidden: Sequence[str] = (),
    sort: tuple[str, bool] | None = None,
) -> table.Panel:
    """Return a table panel.

    Args:
        columns: Field -> heading, from left to right.
        rows: Transformations of the query results into rows.
        hidden: Fields that are not shown, in addition to the time.
        sort: Heading of the column that the rows are sorted by, and whether the order is descending.
    """
    organized = transformation(
        "organize",
        excludeByName=dict.fromkeys(("Time", *hidden), True),
        indexByName={name: index for index, name in enumerate(columns)},
        renameByName=dict(columns),
    )
    built = (
        table.Panel()
        .color_scheme(colour("fixed", "text"))
        .transformations([*rows, organized])
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


def methods_panel() -> stat.Panel:
    """Return the panel that counts device sensors by method."""
    return panel(
        "Methods",
        "Number of device sensors. counter: the device counts joules; integrated: the exporter integrates the device's "
        "power; estimated: a power model, no sensor; emulated: the emulator, no hardware.",
        "short",
        [
            query(
                f'count by (method) ({catalog.SENSOR_INFO.name}{{{SENSORS}, scope="device"}})',
                "{{method}}",
                shape="instant",
            )
        ],
        size=(4, 5),
        kind=single_stat(named=True),
        overrides=[series_colour(name, shade) for name, shade in METHOD_COLOURS.items()],
    )


def state_timeline() -> statetimeline.Panel:
    """Return a panel with a bar for each series and the value inside; time without samples is empty."""
    return (
        statetimeline.Panel()
        .color_scheme(colour("palette-classic"))
        .legend(common.VizLegendOptions().show_legend(False))
        .tooltip(tooltip(commons.SortOrder.NONE))
        .show_value(commons.VisibilityMode.AUTO)
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(70)
        .line_width(0)
        .span_nulls(False)
    )


def data_source_variable() -> Variable:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def query_variable(name: str, label: str, expr: str, *, regex: str = "") -> dashboard.QueryVariable:
    """Return a variable whose values come from Prometheus; ``regex`` takes them out of a ``query_result``."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .definition(expr)
        .query({"query": expr, "refId": f"variable-{name}", "qryType": 3 if regex else 1})
        .regex(regex)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def multi_value_variable(
    name: str, label: str, expr: str, *, regex: str = "", all_value: str | None = ".+"
) -> dashboard.QueryVariable:
    """Return a variable that accepts several values; all are selected when the dashboard opens.

    Without ``all_value``, all are the listed values and no others.
    """
    built = (
        query_variable(name, label, expr, regex=regex)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
    return built if all_value is None else built.all_value(all_value)


def text_variable(name: str, label: str, value: str) -> dashboard.TextBoxVariable:
    """Return a variable that the reader types in; ``value`` is its text when the dashboard opens."""
    option = models.VariableOption(selected=True, text=value, value=value)
    return dashboard.TextBoxVariable(name).label(label).default_value(value).current(option).options([option])


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
    title: str,
    uid: str,
    description: str,
    variables: Sequence[Variable],
    rows: Mapping[str, Sequence[Panel]],
    *,
    collapsed: Sequence[str] = (),
) -> dashboard.Dashboard:
    """Return a read-only dashboard with these variables, and rows (title -> panels) from top to bottom.

    ``collapsed`` are the titles of rows that are closed when the dashboard opens: their queries run when they open.
    """
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
        if row in collapsed:
            closed = dashboard.Row(row).collapsed(True)
            for panel in panels:
                closed = closed.with_panel(panel)
            board = board.with_row(closed)
            continue
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
    panels = [panel for outer in data["panels"] for panel in (outer, *(outer.get("panels") or ()))]
    for number, panel in enumerate(panels, start=1):
        panel["id"] = panel.get("id") or number
        if "repeat" not in panel:
            panel.pop("repeatDirection", None)
    for variable in data["templating"]["list"]:
        for key in ("auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    for control in (*data["links"], *data.get("annotations", {}).get("list", ())):
        control.pop("placement", None)
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
