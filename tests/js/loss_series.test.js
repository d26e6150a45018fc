import assert from "node:assert/strict";
import test from "node:test";

import { loadPack } from "./load_pack.mjs";

const { LossSeries, MAX_POINTS, formatDuration, formatLoss, lossRange, statusLine, ticks } =
  await (await loadPack()).load("loss_series.js");

const report = (step, loss, more = {}) => ({ step, total: 5000, loss, learning_rate: 5e-5, seconds: 2, ...more });

function filled(losses) {
  const series = new LossSeries("run");
  losses.forEach((loss, i) => series.add(report(i + 1, loss)));
  return series;
}

test("points keep step and loss; the average follows slowly from the first value", () => {
  const points = filled([1, 0, 0]).visible();
  assert.deepEqual(points.map(({ step, loss }) => [step, loss]), [[1, 1], [2, 0], [3, 0]]);
  assert.ok(Math.abs(points[1].smooth - 0.95) < 1e-12);
  assert.ok(Math.abs(points[2].smooth - 0.9025) < 1e-12);
});

test("a long run stays within the limit, keeps its ends and its mean", () => {
  const count = 5000;
  const series = filled(Array.from({ length: count }, (_, i) => i));
  const points = series.visible();
  assert.ok(points.length <= MAX_POINTS, `${points.length} points`);
  assert.ok(points.length > MAX_POINTS / 4, `${points.length} points`);
  assert.equal(points.at(-1).step, count);
  assert.ok(points.every((point, i) => i === 0 || point.step > points[i - 1].step));
  const whole = points.filter((point) => point.step % series.stepsPerPoint === 0);
  assert.ok(whole.every((p) => Math.abs(p.loss - (p.step - 1 - (series.stepsPerPoint - 1) / 2)) < 1e-9));
});

test("a resumed run replaces the steps after its checkpoint", () => {
  const series = filled([5, 4, 3, 2]);
  series.announce({ state: "resumed", step: 2 });
  assert.deepEqual(series.visible().map((p) => p.step), [1, 2]);
  series.add(report(3, 9));
  assert.deepEqual(series.visible().map((p) => p.loss), [5, 4, 9]);
});

test("a step that comes again without a word replaces the later ones, merged or not", () => {
  const series = filled([5, 4, 3, 2]);
  series.add(report(2, 7));
  assert.deepEqual(series.visible().map((p) => p.loss), [5, 7]);
});

test("a started run begins empty", () => {
  const series = filled([5, 4]);
  series.announce({ state: "started", step: 0 });
  assert.deepEqual(series.visible(), []);
  series.add(report(1, 2));
  assert.equal(series.visible()[0].smooth, 2);
});

test("values that are no numbers are not drawn", () => {
  const series = filled([1, NaN, Infinity, null, 3]);
  assert.deepEqual(series.visible().map((p) => p.loss), [1, 3]);
});

test("ticks are round and lie inside the range", () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(ticks(1, 2000, 4), [500, 1000, 1500, 2000]);
  assert.deepEqual(ticks(0.07, 0.34, 3), [0.1, 0.2, 0.3]);
  assert.deepEqual(ticks(3, 3, 4), [3]);
  for (const [low, high] of [[1e-6, 3e-6], [-2, 5], [0.4213, 0.4214], [1, 1e6]]) {
    const values = ticks(low, high, 4);
    assert.ok(values.length >= 2 && values.length <= 8, `${low}..${high}: ${values}`);
    assert.ok(values.every((v) => v >= low - 1e-9 && v <= high + 1e-9), `${low}..${high}: ${values}`);
  }
});

test("the loss axis has room, never zero height, and starts at 0 at the lowest", () => {
  const [low, high] = lossRange([{ loss: 0.5, smooth: 0.5 }]);
  assert.ok(low < 0.5 && high > 0.5);
  assert.equal(lossRange([{ loss: 0.001, smooth: 0.5 }])[0], 0);
  assert.deepEqual(lossRange([{ loss: 0, smooth: 0 }]), [0, 0.1]);
});

test("numbers and times read well", () => {
  assert.deepEqual([0.42134, 12, 0, 0.00001234, 123456].map(formatLoss), ["0.4213", "12", "0", "1.23e-5", "1.23e+5"]);
  assert.deepEqual([12.4, 240, 7500].map(formatDuration), ["12 s", "4 min", "2 h 05 min"]);
});

test("the line below tells step, loss, speed, what is left, and what went wrong", () => {
  const series = new LossSeries("run");
  assert.equal(statusLine(series), "");
  series.add(report(120, 0.42134, { total: 300 }));
  assert.equal(statusLine(series), "step 120/300 | loss 0.4213 | 6 min left | 2.00 s/step | lr 5.0e-5");
  series.announce({ state: "failed", step: 120, message: "The loss became NaN." });
  assert.equal(statusLine(series), "failed | step 120/300 | loss 0.4213 | The loss became NaN.");
  series.announce({ state: "finished", step: 300, message: "" });
  assert.match(statusLine(series), /^finished \| /);
});
