import assert from "node:assert/strict";
import test from "node:test";

import { byClass, fakeDocument, FakeResizeObserver, findAll, status } from "./fake_page.mjs";
import { loadPack } from "./load_pack.mjs";

globalThis.ResizeObserver = FakeResizeObserver;
globalThis.document = fakeDocument;
const frames = [];
globalThis.requestAnimationFrame = (draw) => frames.push(draw);
globalThis.cancelAnimationFrame = (frame) => delete frames[frame - 1];
const nextFrame = () => frames.splice(0).forEach((draw) => draw?.());

const globalsBefore = Object.keys(globalThis);
const pack = await loadPack();
for (const file of pack.files) await pack.load(file);
const { app, extensions, send } = pack.host;
const [extension] = extensions;
extension.setup();

function addNode(id, runName, inputs = []) {
  const node = {
    comfyClass: "TrainLoRA",
    inputs,
    size: [200, 300],
    widgets: [{ name: "run_name", value: runName }],
    addDOMWidget(name, type, element, options) {
      const widget = { name, type, element, options };
      this.widgets.push(widget);
      return widget;
    },
    computeSize: () => [210, 500],
    setSize(size) {
      this.size = size;
    },
  };
  extension.nodeCreated(node);
  app.rootGraph.nodes.set(String(id), node);
  return node;
}

const chartOf = (node) => node.widgets.at(-1).element;
const hasCurve = (node) => Boolean(byClass(chartOf(node), "loss"));
const step = (node, run, number, loss = 0.5) =>
  send("longcat.step", { node, run, step: number, total: 9, loss, learning_rate: 1e-4, seconds: 1 });

test("loading every file registers one extension and leaves no global behind", () => {
  assert.deepEqual(extensions.map((e) => e.name), ["longcatlora.lossChart"]);
  assert.deepEqual(Object.keys(globalThis), globalsBefore);
});

test("only TrainLoRA gets a chart, which is saved neither in workflows nor in prompts", () => {
  const other = { comfyClass: "KSampler", addDOMWidget: () => assert.fail("a chart on another node") };
  extension.nodeCreated(other);
  const widget = addNode(1, "a").widgets.at(-1);
  assert.equal(widget.serialize, false);
  assert.equal(widget.options.serialize, false);
});

test("steps are drawn on their node, once a frame", () => {
  const node = addNode(2, "b");
  step("2", "b", 1);
  step("2", "b", 2);
  assert.equal(frames.length, 1);
  assert.equal(hasCurve(node), false);
  nextFrame();
  assert.equal(hasCurve(node), true);
  assert.match(status(chartOf(node)), /^step 2\/9/);
});

test("the end of a run and its reason are shown", () => {
  const node = addNode(3, "c");
  step("3", "c", 1);
  send("longcat.run", { node: "3", run: "c", state: "failed", step: 1, message: "The preview failed." });
  nextFrame();
  assert.match(status(chartOf(node)), /^failed .*The preview failed\.$/);
});

test("a run of another workflow with the same node id is left out; a numbered restart is not", () => {
  const node = addNode(4, "mine");
  for (const other of ["theirs", "mine-too", "mine2"]) step("4", other, 1);
  nextFrame();
  assert.equal(hasCurve(node), false);
  step("4", "mine-2", 1);
  nextFrame();
  assert.equal(hasCurve(node), true);
});

test("a run name that comes by a link cannot be compared and is accepted", () => {
  const node = addNode(5, "", [{ name: "run_name", link: 7 }]);
  step("5", "linked", 1);
  nextFrame();
  assert.equal(hasCurve(node), true);
});

test("a node inside a subgraph is found by its path", () => {
  const inner = addNode(12, "deep");
  app.rootGraph.nodes.set("6", { subgraph: { getNodeById: (id) => (String(id) === "12" ? inner : null) } });
  app.rootGraph.nodes.delete("12");
  step("6:12", "deep", 1);
  nextFrame();
  assert.equal(hasCurve(inner), true);
});

test("a node made anew shows the run that was heard before", () => {
  const first = addNode(7, "e");
  step("7", "e", 1);
  first.onRemoved();
  app.rootGraph.nodes.delete("7");
  step("7", "e", 2);
  const second = addNode(7, "e");
  extension.loadedGraphNode(second);
  nextFrame();
  assert.match(status(chartOf(second)), /^step 2\/9/);
  const curve = findAll(chartOf(second), (e) => e.attributes.class === "loss")[0];
  assert.equal(curve.attributes.d.match(/[ML]/g).length, 2);
});

test("a removed node is let go, and its own onRemoved still runs", () => {
  let called = false;
  const node = addNode(8, "f");
  const chained = node.onRemoved;
  assert.equal(typeof chained, "function");
  const observer = FakeResizeObserver.all.at(-1);
  step("8", "f", 1);
  node.onRemoved();
  assert.equal(observer.element, null);
  nextFrame();
  assert.equal(hasCurve(node), false);

  const other = { comfyClass: "TrainLoRA", onRemoved: () => (called = true), widgets: [], size: [1, 1] };
  other.addDOMWidget = node.addDOMWidget;
  other.computeSize = node.computeSize;
  other.setSize = node.setSize;
  extension.nodeCreated(other);
  other.onRemoved();
  assert.equal(called, true);
});

test("a rehearsal's report gets a field of its own, which a newer one takes over", () => {
  const node = addNode(60, "nightly");
  const widgets = node.widgets.length;
  node.onExecuted({ text: ["8 steps: nightly"], report: ["Rehearsal of nightly\nWhat would fail: nothing was found."] });
  const report = node.widgets.at(-1);
  assert.equal(report.name, "longcat_report");
  assert.match(report.element.value, /nothing was found/);
  assert.equal(report.element.readOnly, true);
  assert.equal(report.serialize, false);
  node.onExecuted({ report: ["Rehearsal of nightly\nWhat would fail:"] });
  assert.equal(node.widgets.length, widgets + 1);
  assert.match(report.element.value, /What would fail:$/);
});

test("faults of the data are shown on the node that found them, which has no chart", () => {
  const node = { comfyClass: "PairDatasets", widgets: [], size: [1, 1] };
  const { addDOMWidget, computeSize, setSize } = addNode(63, "nightly");
  extension.nodeCreated(Object.assign(node, { addDOMWidget, computeSize, setSize }));
  assert.equal(node.widgets.length, 0);
  node.onExecuted({ report: ["2 pairs in 1 bucket:\nFault: b.txt is missing"] });
  assert.deepEqual(node.widgets.map((widget) => widget.name), ["longcat_report"]);
  assert.match(node.widgets[0].element.value, /Fault: b.txt/);
});

test("a run that is no rehearsal brings no report, and other listeners still hear of it", () => {
  const heard = [];
  const node = addNode(61, "plain");
  const own = node.onExecuted;
  node.onExecuted = function (output) {
    heard.push(output);
    return own.call(this, output);
  };
  const widgets = node.widgets.length;
  node.onExecuted({ text: ["9 steps: plain"] });
  assert.equal(node.widgets.length, widgets);
  assert.equal(heard.length, 1);
});

test("the chart follows a rehearsal, whose run is named after the real one", () => {
  const node = addNode(62, "nightly");
  step("62", "nightly-tiny", 1);
  nextFrame();
  assert.equal(hasCurve({ widgets: node.widgets }), true);
});
