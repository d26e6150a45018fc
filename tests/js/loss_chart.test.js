import assert from "node:assert/strict";
import test from "node:test";

import { byClass, fakeDocument, FakeResizeObserver, findAll, status } from "./fake_page.mjs";
import { loadPack } from "./load_pack.mjs";

globalThis.ResizeObserver = FakeResizeObserver;
const pack = await loadPack();
const { createLossChart } = await pack.load("loss_chart.js");
const { LossSeries } = await pack.load("loss_series.js");

function series(...losses) {
  const made = new LossSeries("run");
  losses.forEach((loss, i) => made.add({ step: i + 1, total: 9, loss, learning_rate: 1e-4, seconds: 1 }));
  return made;
}

const pointsOf = (path) => path.attributes.d.match(/-?[\d.]+ -?[\d.]+/g).map((pair) => pair.split(" ").map(Number));

test("an empty series shows a hint instead of axes", () => {
  const chart = createLossChart(fakeDocument);
  chart.draw(new LossSeries(""));
  assert.equal(findAll(chart.element, (e) => e.name === "path").length, 0);
  assert.match(findAll(chart.element, (e) => e.name === "text")[0].textContent, /loss appears here/);
});

test("a falling loss is drawn from left to right and downwards, inside the picture", () => {
  const chart = createLossChart(fakeDocument);
  chart.draw(series(0.9, 0.6, 0.3));
  const points = pointsOf(byClass(chart.element, "loss"));
  assert.equal(points.length, 3);
  assert.ok(points[0][0] < points[1][0] && points[1][0] < points[2][0]);
  assert.ok(points[0][1] < points[1][1] && points[1][1] < points[2][1]);
  assert.ok(points.flat().every((v) => v >= 0) && points.every(([x, y]) => x <= 320 && y <= 150));
  assert.match(status(chart.element), /^step 3\/9 \| loss 0\.3 /);
});

test("one point, and a constant loss, draw without NaN", () => {
  for (const losses of [[0.5], [0.5, 0.5, 0.5]]) {
    const chart = createLossChart(fakeDocument);
    chart.draw(series(...losses));
    const written = JSON.stringify(findAll(chart.element, () => true).map((e) => e.attributes));
    assert.doesNotMatch(written, /NaN|Infinity|undefined/);
  }
});

test("the chart follows the size of its place, and ignores a hidden one", () => {
  const chart = createLossChart(fakeDocument);
  const observer = FakeResizeObserver.all.at(-1);
  chart.draw(series(0.9, 0.3));
  observer.resize(600, 300);
  const svg = findAll(chart.element, (e) => e.name === "svg")[0];
  assert.equal(svg.attributes.viewBox, "0 0 600 300");
  assert.equal(pointsOf(byClass(chart.element, "loss")).at(-1)[0], 590);
  observer.resize(0, 0);
  assert.equal(svg.attributes.viewBox, "0 0 600 300");
  chart.destroy();
  assert.equal(observer.element, null);
});
