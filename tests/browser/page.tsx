// Renders one dashboard with Grafana's components and data from a real Prometheus.
//
// Reads view.json: {dashboard, prometheus, from, to, scrape_s, width}. A panel without data or with a failing query
// gets an element with the attribute data-problem. When all panels are rendered, the body gets data-ready.
//
// From Grafana: interval arithmetic, frame and table shaping, transformations, field overrides, annotation regions,
// panel frame, time series, stat, table, legend, axes. Replaced, because it is not on npm: the bar chart's layout.
import { createRoot } from "react-dom/client";
import React from "react";
import { MemoryRouter } from "react-router-dom";
import { firstValueFrom } from "rxjs";
import {
  applyFieldOverrides, applyNullInsertThreshold, createTheme, dateTime, FieldConfigOptionsRegistry, FieldType,
  getDisplayProcessor, getFieldDisplayValues, getFieldSeriesColor, rangeUtil, renderLegendFormat,
  standardTransformers, standardTransformersRegistry, ThemeContext, transformDataFrame,
} from "@grafana/data";
import {
  BigValue, GlobalStyles, PanelChrome, PlotLegend, Table, TimeSeries, UPlotChart, UPlotConfigBuilder, VizLayout,
} from "@grafana/ui";
import { initPluginTranslations } from "@grafana/i18n";
import { PrometheusAnnotationSupport } from "grafana-prometheus-annotations";
import { transformDFToTable } from "grafana-prometheus-results";

const theme = createTheme({ colors: { mode: "dark" } });
const CELL = 38; // height of a grid unit in px, as in Grafana: 30 and a gap of 8
const identity = (text: any) => text;

async function callApi(view: any, path: string, parameters: Record<string, string>): Promise<any> {
  const response = await fetch(`${view.prometheus}/api/v1/${path}?${new URLSearchParams(parameters)}`);
  const body = await response.json();
  if (body.status !== "success") {
    throw new Error(body.error);
  }
  return body.data;
}

// Returns the values of the variables: all instances and configurations, the newest run.
async function variables(view: any): Promise<Record<string, string>> {
  const values: Record<string, string> = {};
  for (const variable of view.dashboard.templating.list.filter((entry: any) => entry.type === "query")) {
    if (variable.includeAll) {
      values[variable.name] = variable.allValue;
      continue;
    }
    const [, metric, label] = /^label_values\((.+), (\w+)\)$/.exec(variable.definition)!;
    const labels = await callApi(view, `label/${label}/values`, { "match[]": metric, start: view.from, end: view.to });
    values[variable.name] = labels.sort().reverse()[0];
  }
  return values;
}

function interpolate(expr: string, values: Record<string, string>): string {
  return expr.replace(/\$\{?(\w+)\}?/g, (whole, name) => values[name] ?? whole);
}

// Converts the response of Prometheus as Grafana's server does: one frame per series.
function frames(result: any[], target: any, stepMs: number): any[] {
  return result.map((series) => {
    const points = series.values ?? [series.value];
    return {
      refId: target.refId,
      length: points.length,
      fields: [
        { name: "Time", type: FieldType.time, config: { interval: stepMs },
          values: points.map((point: any) => Math.round(point[0] * 1000)) },
        { name: "Value", type: FieldType.number, labels: series.metric,
          config: target.legendFormat ? { displayNameFromDS: renderLegendFormat(target.legendFormat, series.metric) }
            : {},
          values: points.map((point: any) => Number(point[1])) },
      ],
    };
  });
}

async function panelData(view: any, panel: any, values: any, width: number, range: any): Promise<any[]> {
  const scrape = view.scrape_s * 1000;
  const queried: any[] = [];
  for (const target of panel.targets) {
    const shortest = target.interval ?? panel.interval;
    const low = shortest ? rangeUtil.intervalToMs(shortest) : scrape;
    const step = rangeUtil.calculateInterval(range, width, `${low}ms`).intervalMs;
    const macros = { ...values, __rate_interval: `${Math.max(step + scrape, 4 * scrape)}ms`,
      __range: `${Math.round(view.to - view.from)}s`, __interval: `${step}ms` };
    const query = interpolate(target.expr, macros);
    const data = target.instant
      ? await callApi(view, "query", { query, time: view.to })
      : await callApi(view, "query_range", { query, start: view.from, end: view.to, step: String(step / 1000) });
    const series = frames(data.result, target, step);
    const isTable = target.format === "table";
    queried.push(...(isTable ? series.map((frame) => ({ ...frame, meta: { table: true } })) : series));
  }
  const tables = queried.filter((frame) => frame.meta?.table);
  const shaped = tables.length ? transformDFToTable(tables) : queried;
  const transformed = panel.transformations?.length
    ? await firstValueFrom(transformDataFrame(panel.transformations, shaped, { interpolate: identity })) : shaped;
  return applyFieldOverrides({ data: transformed, fieldConfig: panel.fieldConfig, replaceVariables: identity, theme,
    timeZone: "utc", fieldConfigRegistry: registry(view.dashboard) });
}

// Grafana's panels register the properties that a field may have; this registers those that the dashboard uses.
function registry(dashboard: any): any {
  const ids = new Set<string>(["unit", "decimals", "min", "max", "color", "mappings", "thresholds", "noValue"]);
  for (const panel of dashboard.panels) {
    Object.keys(panel.fieldConfig?.defaults.custom ?? {}).forEach((key) => ids.add(`custom.${key}`));
    panel.fieldConfig?.overrides.forEach((override: any) =>
      override.properties.forEach((property: any) => ids.add(property.id)));
  }
  return new FieldConfigOptionsRegistry(() => [...ids].map((id) => ({
    id, name: id, path: id.replace(/^custom\./, ""), isCustom: id.startsWith("custom."), settings: {}, editor: null,
    override: null, process: identity, shouldApply: () => true, getItemsCount: () => 0,
  }) as any));
}

async function regions(view: any, values: any): Promise<any[]> {
  const all: any[] = [];
  const annotations = view.dashboard.annotations?.list ?? [];
  for (const annotation of annotations.filter((entry: any) => entry.enable && entry.expr)) {
    const support: any = PrometheusAnnotationSupport({} as any);
    const prepared = support.prepareAnnotation({ ...annotation });
    const step = prepared.target.interval;
    const query = interpolate(prepared.target.expr, values);
    const data = await callApi(view, "query_range", { query, start: view.from, end: view.to, step });
    const series = frames(data.result, prepared.target, 1000);
    series.forEach((frame) => (frame.meta = { executedQueryString: `Step: ${step}` }));
    if (series.length) {
      const events: any = await firstValueFrom(support.processEvents(prepared, series));
      all.push(...events.map((event: any) => ({ ...event, color: annotation.iconColor,
        panels: annotation.filter?.ids })));
    }
  }
  return all;
}

// Draws regions like Grafana's annotations plugin, which is not on npm: tint, dashed edges, a bar below the axis.
function shade(builder: UPlotConfigBuilder, events: any[]): void {
  builder.addHook("draw", (u: any) => {
    u.ctx.save();
    for (const event of events) {
      const [from, to] = [event.time, event.timeEnd].map((at) => u.valToPos(at, "x", true));
      const color = theme.visualization.getColorByName(event.color);
      u.ctx.fillStyle = u.ctx.strokeStyle = color;
      u.ctx.globalAlpha = 0.1;
      u.ctx.fillRect(from, u.bbox.top, Math.max(to - from, 1), u.bbox.height);
      u.ctx.globalAlpha = 0.6;
      u.ctx.setLineDash([4, 4]);
      for (const x of [from, to]) {
        u.ctx.beginPath();
        u.ctx.moveTo(x, u.bbox.top);
        u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
      }
      u.ctx.globalAlpha = 1;
      u.ctx.fillRect(from, u.bbox.top + u.bbox.height, Math.max(to - from, 2), 5);
    }
    u.ctx.restore();
  });
}

function Bars({ panel, frame, width, height }: any) {
  const [categories, ...series] = frame.fields;
  series.forEach((field: any, index: number) => {
    field.state = { ...field.state, seriesIndex: index };
    field.display = field.display ?? getDisplayProcessor({ field, theme });
  });
  const custom = panel.fieldConfig.defaults.custom;
  const builder = new UPlotConfigBuilder("utc");
  builder.setPrepData(() => [categories.values.map((_: any, index: number) => index),
    ...series.map((field: any) => field.values)] as any);
  builder.addScale({ scaleKey: "x", orientation: 0, direction: 1, isTime: false,
    range: () => [-0.5, categories.values.length - 0.5] } as any);
  builder.addScale({ scaleKey: "y", orientation: 1, direction: 1, distribution: custom.scaleDistribution.type,
    log: custom.scaleDistribution.log } as any);
  builder.addAxis({ scaleKey: "x", placement: "bottom", theme, grid: { show: false },
    splits: () => categories.values.map((_: any, index: number) => index),
    values: () => categories.values.map(String) } as any);
  builder.addAxis({ scaleKey: "y", placement: "left", theme, formatValue: (value: number) => {
    const shown = series[0].display(value);
    return `${shown.text}${shown.suffix ?? ""}`;
  } } as any);
  series.forEach((field: any, index: number) => {
    const color = getFieldSeriesColor(field, theme).color;
    builder.addSeries({ scaleKey: "y", theme, drawStyle: "bars", lineColor: color, lineWidth: 1, fillColor: color,
      fillOpacity: custom.fillOpacity, showPoints: "never",
      dataFrameFieldIndex: { frameIndex: 0, fieldIndex: index + 1 },
      pathBuilder: (u: any, number: number) => {
        const path = new Path2D();
        const group = (u.valToPos(1, "x", true) - u.valToPos(0, "x", true)) * panel.options.groupWidth;
        const bar = group / series.length;
        u.data[number].forEach((value: number | null, at: number) => {
          if (value !== null && value !== undefined) {
            const left = u.valToPos(at, "x", true) - group / 2 + index * bar;
            const top = u.valToPos(value, "y", true);
            path.rect(left, top, bar * panel.options.barWidth, u.bbox.top + u.bbox.height - top);
          }
        });
        return { stroke: path, fill: path };
      } } as any);
  });
  return (
    <VizLayout width={width} height={height}
      legend={<PlotLegend data={[frame]} config={builder} {...panel.options.legend} />}>
      {(w: number, h: number) => <UPlotChart config={builder} data={builder.prepData!([frame]) as any} width={w}
        height={h} />}
    </VizLayout>
  );
}

function Content({ panel, data, width, height, range, events }: any) {
  const filled = data.filter((frame: any) => frame.length > 0);
  if (!filled.length) {
    return <div data-problem={`${panel.title}: no data`}>No data</div>;
  }
  if (panel.type === "timeseries") {
    // The time series panel does this too: it interrupts the line where samples are more than a step apart.
    const gapped = filled.map((frame: any) => applyNullInsertThreshold({ frame, refFieldName: "Time" }));
    return <TimeSeries frames={gapped} width={width} height={height} timeRange={range} timeZone="utc"
      legend={panel.options.legend} options={panel.options}>
      {(builder: UPlotConfigBuilder) => { shade(builder, events); return null; }}
    </TimeSeries>;
  }
  if (panel.type === "table") {
    return <Table data={filled[0]} width={width} height={height} initialSortBy={panel.options.sortBy}
      cellHeight={panel.options.cellHeight} timeRange={range} enableSharedCrosshair={false} />;
  }
  if (panel.type === "barchart") {
    return <Bars panel={panel} frame={filled[0]} width={width} height={height} />;
  }
  const shown = getFieldDisplayValues({ fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions,
    data: filled, replaceVariables: identity, sparkline: panel.options.graphMode !== "none", theme, timeZone: "utc" });
  return (
    <div style={{ display: "flex" }}>
      {shown.map((stat: any, index: number) => <BigValue key={index} theme={theme} width={width / shown.length}
        height={height} value={stat.display} sparkline={stat.sparkline} colorMode={panel.options.colorMode}
        graphMode={panel.options.graphMode} justifyMode={panel.options.justifyMode} textMode={panel.options.textMode}
        wideLayout={panel.options.wideLayout} count={shown.length} />)}
    </div>
  );
}

class Guard extends React.Component<any, any> {
  state = { error: "" };
  static getDerivedStateFromError(error: Error) {
    return { error: String(error) };
  }
  render() {
    const problem = this.state.error || this.props.error;
    return problem ? <div data-problem={`${this.props.title}: ${problem}`}>{problem}</div> : this.props.children;
  }
}

function Dashboard({ view, values, results, events, range }: any) {
  const cell = (view.width - 16) / 24;
  const bottom = Math.max(...view.dashboard.panels.map((panel: any) => panel.gridPos.y + panel.gridPos.h));
  const selection = Object.entries(values).map(([name, value]) => `${name}: ${value}`).join("   ");
  return (
    <div style={{ position: "relative", width: view.width, height: 44 + bottom * CELL, color: theme.colors.text.primary,
      background: theme.colors.background.canvas, overflow: "hidden" }}>
      <div style={{ padding: "8px 12px", fontSize: 16 }}>
        <b>{view.dashboard.title}</b>
        <span style={{ fontSize: 12, marginLeft: 24, opacity: 0.7 }}>{selection}</span>
      </div>
      {view.dashboard.panels.map((panel: any) => {
        const { x, y, w, h } = panel.gridPos;
        const position: any = { position: "absolute", left: 8 + x * cell, top: 40 + y * CELL };
        if (panel.type === "row") {
          return <div key={panel.id} style={{ ...position, fontSize: 15, padding: 6 }}>⌄ {panel.title}</div>;
        }
        const { data, error } = results[panel.id];
        return (
          <div key={panel.id} style={position}>
            <PanelChrome title={panel.title} description={panel.description} width={w * cell - 8} height={h * CELL - 8}>
              {(width: number, height: number) => <Guard title={panel.title} error={error}>
                <Content panel={panel} data={data} width={width} height={height} range={range}
                  events={events.filter((event: any) => event.panels?.includes(panel.id) ?? true)} />
              </Guard>}
            </PanelChrome>
          </div>
        );
      })}
    </div>
  );
}

async function main(): Promise<void> {
  await initPluginTranslations("grafana");
  const known = new Map(Object.values(standardTransformers).map((transformer: any) => [transformer.id, transformer]));
  standardTransformersRegistry.setInit(() => [...known.values()].map((transformation: any) => ({
    id: transformation.id, name: transformation.name, transformation, editor: () => null, imageDark: "",
    imageLight: "" })) as any);
  const view = await (await fetch("view.json")).json();
  const [from, to] = [dateTime(view.from * 1000), dateTime(view.to * 1000)];
  const range: any = { from, to, raw: { from, to } };
  const values = await variables(view);
  const results: any = {};
  for (const panel of view.dashboard.panels.filter((entry: any) => entry.type !== "row")) {
    const width = (panel.gridPos.w * view.width) / 24 - 16;
    results[panel.id] = await panelData(view, panel, values, width, range)
      .then((data) => ({ data }), (error) => ({ data: [], error: String(error) }));
  }
  const events = await regions(view, values);
  createRoot(document.getElementById("root")!).render(
    <MemoryRouter>
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        <Dashboard view={view} values={values} results={results} events={events} range={range} />
      </ThemeContext.Provider>
    </MemoryRouter>
  );
  document.body.dataset.regions = String(events.length);
  setTimeout(() => (document.body.dataset.ready = "1"), 500);
}

main().catch((error) => {
  document.body.dataset.ready = "failed";
  document.body.innerHTML = `<div data-problem="page: ${String(error)}">${error.stack}</div>`;
});
