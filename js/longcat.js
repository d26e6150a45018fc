/**
 * Shows the loss on TrainLoRA while it trains, and what nodes report when they are done. The server sends longcat.step
 * and longcat.run (nodes/bridge.py); reports are among the nodes' outputs (nodes/train.py, nodes/data.py).
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { createLossChart } from "./loss_chart.js";
import { LossSeries } from "./loss_series.js";

const CHART_HEIGHT = 180;
const REPORT_HEIGHT = 260;
const LINE_HEIGHT = 18;
const NODE_WIDTH = 360;

/** Nodes whose outputs may hold a report: a rehearsal's, or what was found in the data. */
const REPORTING = new Set(["TrainLoRA", "PairDatasets", "LongCatJoinDatasets"]);

/** Newest runs of this page, by node and run: a node is made again whenever its workflow's tab is opened. */
const runs = new Map();
const MAX_RUNS = 20;

/** Chart of each TrainLoRA node on the canvas. */
const charts = new WeakMap();

function seriesOf(event) {
  const key = `${event.node} ${event.run}`;
  const series = runs.get(key) ?? new LossSeries(event.run);
  runs.delete(key);
  runs.set(key, series);
  if (runs.size > MAX_RUNS) runs.delete(runs.keys().next().value);
  return series;
}

/** The node that an execution id such as "12", or "5:12" inside subgraph node 5, names in the open workflow. */
function findNode(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}

/** Another workflow may have a TrainLoRA of the same id: the run's name tells them apart, unless it comes by a link. */
function belongsTo(node, run) {
  if (node.inputs?.some((input) => input.name === "run_name" && input.link != null)) return true;
  const name = node.widgets?.find((widget) => widget.name === "run_name")?.value;
  // A run whose name was taken has a number after it, a rehearsed one says so.
  return run === name || (String(run).startsWith(`${name}-`) && /^(-tiny)?(-\d+)?$/.test(run.slice(name.length)));
}

function show(node, series) {
  const chart = charts.get(node);
  if (!chart) return;
  chart.series = series;
  // One drawing per frame, however many steps arrive; none while the page is hidden.
  chart.frame ??= requestAnimationFrame(() => {
    chart.frame = undefined;
    chart.draw(chart.series);
  });
}

function onEvent(event, take) {
  const series = seriesOf(event);
  take(series);
  const node = findNode(event.node);
  if (node && belongsTo(node, event.run)) show(node, series);
}

function addChart(node) {
  const chart = createLossChart(document);
  const widget = node.addDOMWidget("loss_chart", "longcat_loss_chart", chart.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => CHART_HEIGHT,
  });
  // options.serialize keeps it out of prompts, serialize out of the workflow's widgets_values.
  widget.serialize = false;
  charts.set(node, chart);
  chart.draw(new LossSeries(""));
  const onRemoved = node.onRemoved;
  node.onRemoved = function (...args) {
    cancelAnimationFrame(chart.frame);
    chart.destroy();
    charts.delete(node);
    return onRemoved?.apply(this, args);
  };
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, NODE_WIDTH, node.size[0]), Math.max(height, node.size[1])]);
}

/** The report has many lines, so it gets a field of its own that scrolls; a newer one takes its place. */
function showReport(node, report) {
  let widget = node.widgets?.find((known) => known.name === "longcat_report");
  if (!widget) {
    const field = document.createElement("textarea");
    field.readOnly = true;
    field.className = "comfy-multiline-input";
    field.value = report;
    widget = node.addDOMWidget("longcat_report", "longcat_report", field, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => Math.min(REPORT_HEIGHT, (field.value.split("\n").length + 1) * LINE_HEIGHT),
    });
    widget.serialize = false;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
  }
  widget.element.value = report;
}

function expectReport(node) {
  const onExecuted = node.onExecuted;
  node.onExecuted = function (output, ...args) {
    if (output?.report) showReport(node, output.report.join("\n"));
    return onExecuted?.call(this, output, ...args);
  };
}

/** Brings back the newest known run of a node whose workflow was opened again. */
function restore(node) {
  for (const [key, series] of [...runs].reverse()) {
    const executionId = key.slice(0, key.indexOf(" "));
    if (findNode(executionId) === node && belongsTo(node, series.run)) return show(node, series);
  }
}

app.registerExtension({
  name: "longcatlora.lossChart",

  setup() {
    // Without a listener the frontend calls these messages unknown.
    api.addEventListener("longcat.step", ({ detail }) => onEvent(detail, (series) => series.add(detail)));
    api.addEventListener("longcat.run", ({ detail }) => onEvent(detail, (series) => series.announce(detail)));
  },

  nodeCreated(node) {
    if (node.comfyClass === "TrainLoRA") addChart(node);
    if (REPORTING.has(node.comfyClass)) expectReport(node);
  },

  loadedGraphNode(node) {
    if (charts.has(node)) restore(node);
  },
});
