// Renders one dashboard with Grafana's components and data from a real Prometheus.
//
// Reads view.json: {dashboard, prometheus, from, to, scrape_s, width, theme, values}. A panel without data or with a failing
// query gets an element with the attribute data-problem. When all panels are rendered, the body gets data-ready, and
// data-cut: a list of texts that do not fit.
//
// From Grafana: interval arithmetic, frame and table shaping, transformations, field overrides, annotation regions,
// panel frame, time series, stat, table, legend, axes, bands. Replaced, because they are not on npm: the state timeline,
// the transformation that makes sparklines, and the logarithmic axis of batch sizes of the trend panel.
import { createRoot } from "react-dom/client";
import React from "react";
import { MemoryRouter } from "react-router-dom";
import { firstValueFrom, map } from "rxjs";
import {
  applyFieldOverrides, applyNullInsertThreshold, createTheme, dateTime, FieldConfigOptionsRegistry, FieldType,
  formattedValueToString, getFieldDisplayValues, rangeUtil, renderLegendFormat,
  standardTransformers, standardTransformersRegistry, stringOverrideProcessor, ThemeContext, transformDataFrame,
} from "@grafana/data";
import {
  BigValue, GlobalStyles, PanelChrome, Table, TimeSeries, UPlotConfigBuilder,
} from "@grafana/ui";
import { initPluginTranslations } from "@grafana/i18n";
import { PrometheusAnnotationSupport } from "grafana-prometheus-annotations";
import { transformDFToTable } from "grafana-prometheus-results";

let theme = createTheme({ colors: { mode: "dark" } });
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

// Returns the values of the variables when a dashboard opens: all, or the first of those that a variable offers.
async function variables(view: any): Promise<Record<string, string>> {
  const values: Record<string, string> = { ...view.values };
  for (const variable of view.dashboard.templating.list) {
    if (variable.type === "textbox") {
      values[variable.name] = variable.query;
    }
    if (variable.type !== "query" || variable.name in view.values) {
      continue;
    }
    const options = await listOptions(view, variable, values);
    values[variable.name] = variable.includeAll ? variable.allValue ?? options.join("|") : options[0] ?? "";
  }
  return values;
}

async function listOptions(view: any, variable: any, values: Record<string, string>): Promise<string[]> {
  const [, name, inside] = /^(label_values|query_result)\((.+)\)$/.exec(variable.definition)!;
  let options: string[];
  if (name === "query_result") {
    const data = await callApi(view, "query", { query: interpolate(inside, values), time: view.to });
    const regex = new RegExp(variable.regex.slice(1, -1));
    options = data.result.map((series: any) => Object.entries(series.metric).map(([key, value]) => `${key}="${value}"`)
      .join()).map((text: string) => regex.exec(text)![1]);
  } else {
    const [, selector, label] = /^(.+), (\w+)$/.exec(inside)!;
    options = await callApi(view, `label/${label}/values`,
      { "match[]": interpolate(selector, values), start: view.from, end: view.to });
  }
  const sorted = [...new Set(options)].sort();
  return variable.sort === 2 ? sorted.reverse() : sorted;
}

function interpolate(text: string, values: Record<string, string>): string {
  return text.replace(/\$\{(\w+)(?::(\w+))?\}|\$([A-Za-z_]\w*)/g, (whole, braced, format, plain) => {
    const value = values[braced ?? plain];
    return value === undefined ? whole : format === "regex" ? value.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&") : value;
  });
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
  const others = queried.filter((frame) => !frame.meta?.table);
  const shaped = tables.length ? [...others, ...transformDFToTable(tables)] : queried;
  const transformed = panel.transformations?.length
    ? await firstValueFrom(transformDataFrame(panel.transformations, shaped, { interpolate: identity })) : shaped;
  const replaceVariables = (text: string) => interpolate(text, values);
  return applyFieldOverrides({ data: transformed, fieldConfig: panel.fieldConfig, replaceVariables, theme, timeZone: "utc", fieldConfigRegistry: registry(view.dashboard) });
}

// Makes one row of each series of a query: its labels, and the series itself as a sparkline.
const timeSeriesTable = {
  id: "timeSeriesTable", name: "Time series to table", defaultOptions: {},
  operator: () => map((frames: any[]) => {
    const tables = new Map<string, any>();
    const others = frames.filter((frame) => {
      const value = frame.fields.find((field: any) => field.type === FieldType.number);
      if (frame.meta?.table || frame.fields.length !== 2) {
        return true;
      }
      const table = tables.get(frame.refId) ?? { refId: frame.refId, length: 0, fields: [] };
      tables.set(frame.refId, table);
      const cells = { ...value.labels, [`Trend #${frame.refId}`]: { ...frame, value: value.values.at(-1) } };
      for (const [name, cell] of Object.entries(cells)) {
        let field = table.fields.find((one: any) => one.name === name);
        if (!field) {
          const type = name.startsWith("Trend") ? FieldType.frame : FieldType.string;
          field = { name, type, config: {}, values: [] };
          table.fields.push(field);
        }
        field.values[table.length] = cell;
      }
      table.length += 1;
      return false;
    });
    return [...tables.values(), ...others];
  }),
};

// Grafana's panels register the properties that a field may have; this registers those that the dashboard uses.
function registry(dashboard: any): any {
  const ids = new Set<string>(["unit", "decimals", "min", "max", "color", "mappings", "thresholds", "noValue",
    "displayName"]);
  for (const panel of dashboard.panels) {
    Object.keys(panel.fieldConfig?.defaults.custom ?? {}).forEach((key) => ids.add(`custom.${key}`));
    panel.fieldConfig?.overrides.forEach((override: any) =>
      override.properties.forEach((property: any) => ids.add(property.id)));
  }
  return new FieldConfigOptionsRegistry(() => [...ids].map((id) => ({
    id, name: id, path: id.replace(/^custom\./, ""), isCustom: id.startsWith("custom."), editor: null,
    settings: { expandTemplateVars: true },
    override: null, process: id === "displayName" ? stringOverrideProcessor : identity, shouldApply: () => true, getItemsCount: () => 0,
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

// The trend panel is a time series panel with numbers instead of times. TimeSeries has only a linear axis for these.
function Trend({ panel, frame, width, height, range }: any) {
  const numbers = frame.fields.map((field: any, index: number) => (
    { ...field, state: { ...field.state, origin: { frameIndex: 0, fieldIndex: index } } }));
  const custom = frame.fields[0].config.custom ?? {};
  return <TimeSeries frames={[{ ...frame, fields: numbers }]} width={width} height={height} timeRange={range}
    timeZone="utc" legend={panel.options.legend} options={panel.options} preparePlotFrame={(frames: any) => frames[0]}>
    {(builder: any) => {
      const scale = builder.scales.find((one: any) => one.props.scaleKey === "x");
      Object.assign(scale.props, { distribution: custom.scaleDistribution?.type, log: custom.scaleDistribution?.log,
        range: undefined, padMinBy: 0, padMaxBy: 0 });
      return null;
    }}
  </TimeSeries>;
}

function Timeline({ frames: rows, width, height, range }: any) {
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const names = 0.25 * width;
  const scale = (width - names) / (to - from);
  const row = (height - 4) / rows.length;
  return <div style={{ position: "relative", width, height }}>
    {rows.flatMap((frame: any, index: number) => {
      const [time, value] = frame.fields;
      const bars: any[] = [];
      time.values.forEach((at: number, number: number) => {
        const last = bars[bars.length - 1];
        if (last && last.value === value.values[number] && at - last.end <= 1.5 * time.config.interval) {
          last.end = at;
        } else {
          bars.push({ start: at, end: at, value: value.values[number] });
        }
      });
      const place = { position: "absolute", top: index * row, height: 0.8 * row, lineHeight: `${0.8 * row}px` } as any;
      return [
        <div key={index} data-one-line style={{ ...place, left: 0, width: names, fontSize: 12, overflow: "hidden" }}>
          {value.state?.displayName ?? value.config.displayNameFromDS}</div>,
        ...bars.map((bar, number) => {
          const shown = value.display(bar.value);
          return <div key={`${index}.${number}`} style={{ ...place, left: names + (bar.start - from) * scale,
            width: Math.max((bar.end - bar.start + time.config.interval) * scale, 1), background: shown.color,
            color: theme.colors.getContrastText(shown.color), fontSize: 12, textAlign: "center", overflow: "hidden" }}>
            {formattedValueToString(shown)}</div>;
        }),
      ];
    })}
  </div>;
}

// Returns the texts that do not fit. At 800 px, cells of tables and long legends may be cut: Grafana scrolls them.
function cutTexts(view: any): string[] {
  const cut: string[] = [];
  const wide = view.width >= 1600;
  for (const panel of document.querySelectorAll("[data-panel]")) {
    const title = (panel as HTMLElement).dataset.panel;
    for (const text of panel.querySelectorAll("h2, h6, a, [data-one-line]")) {
      if (text.scrollWidth > text.clientWidth + 1 && text.clientWidth > 0) {
        cut.push(`${title}: the text ${text.textContent} is cut`);
      }
    }
    const plots = [...panel.querySelectorAll(".u-over")].map((plot) => plot.getBoundingClientRect());
    const bottom = panel.getBoundingClientRect().bottom - 8;
    for (const item of panel.querySelectorAll(
      "[data-testid*='VizLegend series'], tr:has([data-testid='series-icon'])")) {
      const box = item.getBoundingClientRect();
      if (plots.some((plot) => box.top < plot.bottom - 1 && box.bottom > plot.top + 1 && box.left < plot.right)) {
        cut.push(`${title}: the legend ${item.textContent} overlaps the plot`);
      }
      if (wide && box.bottom > bottom + 1) {
        cut.push(`${title}: the legend ${item.textContent} is below the panel`);
      }
    }
    const columns = [...panel.querySelectorAll("[role=columnheader]")];
    const headers = columns.map((header) => header.textContent);
    const right = panel.getBoundingClientRect().right;
    if (wide && columns.some((header) => header.getBoundingClientRect().right > right)) {
      cut.push(`${title}: the table is wider than the panel`);
    }
    for (const row of wide ? panel.querySelectorAll("[role=row]") : []) {
      [...row.querySelectorAll("[role=cell], [role=columnheader]")].forEach((cell, index) => {
        const text = document.createRange();
        const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          text.selectNodeContents(walker.currentNode);
          if (text.getBoundingClientRect().right > cell.getBoundingClientRect().right + 1) {
            cut.push(`${title}: ${headers[index]}: the cell ${cell.textContent} is cut`);
          }
        }
      });
    }
  }
  return [...new Set(cut)];
}

function Content({ panel, data, width, height, range, events }: any) {
  const filled = data.filter((frame: any) => frame.length > 0);
  if (!filled.length) {
    return <div data-problem={`${panel.title}: no data`}>{panel.fieldConfig.defaults.noValue ?? "No data"}</div>;
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
  if (panel.type === "trend") {
    if (filled[0].fields[0].values.some((value: any) => value == null)) {
      return <div data-problem={`${panel.title}: a row has no horizontal position`} />;
    }
    return <Trend panel={panel} frame={filled[0]} width={width} height={height} range={range} />;
  }
  if (panel.type === "state-timeline") {
    return <Timeline frames={filled} width={width} height={height} range={range} />;
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
  const selection = view.dashboard.templating.list.filter((one: any) => one.name in values && one.hide !== 2)
    .map((one: any) => `${one.label}: ${values[one.name]}`).join("   ");
  return (
    <div style={{ position: "relative", width: view.width, height: 44 + bottom * CELL, color: theme.colors.text.primary,
      background: theme.colors.background.canvas, overflow: "hidden" }}>
      <div style={{ padding: "8px 12px", fontSize: 16, whiteSpace: "nowrap" }}>
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
          <div key={panel.id} style={position} data-panel={panel.title}>
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
  const known = new Map([...Object.values(standardTransformers), timeSeriesTable].map((transformer: any) => [transformer.id, transformer]));
  standardTransformersRegistry.setInit(() => [...known.values()].map((transformation: any) => ({
    id: transformation.id, name: transformation.name, transformation, editor: () => null, imageDark: "",
    imageLight: "" })) as any);
  const view = await (await fetch("view.json")).json();
  // A collapsed row contains its panels, whose positions are those of the open row.
  view.dashboard.panels = view.dashboard.panels.flatMap((panel: any) => [panel, ...(panel.panels ?? [])]);
  theme = createTheme({ colors: { mode: view.theme } });
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
  setTimeout(() => {
    document.body.dataset.cut = JSON.stringify(cutTexts(view));
    document.body.dataset.ready = "1";
  }, 500);
}

main().catch((error) => {
  document.body.dataset.ready = "failed";
  document.body.innerHTML = `<div data-problem="page: ${String(error)}">${error.stack}</div>`;
});
