/** The losses of one training run: what a chart needs to know, without a browser. */

/** More points than pixels help nobody; at this (even) number, neighbours are merged in pairs. */
export const MAX_POINTS = 1024;

/** Share of the old average that an exponential moving average keeps at each step. */
export const SMOOTHING = 0.95;

/**
 * Keeps the points of one run. Steps rise; a step that was seen before (a run resumed from its last checkpoint)
 * replaces everything from there on.
 */
export class LossSeries {
  constructor(run) {
    this.run = run;
    this.state = "waiting";
    this.message = "";
    /** The last step event, for the line of text below the chart. */
    this.last = null;
    /** @type {{step: number, loss: number, smooth: number}[]} */
    this.points = [];
    this.stepsPerPoint = 1;
    this.pending = [];
  }

  /** A change of state: started, resumed, samples, finished, stopped, failed. */
  announce({ state, step, message }) {
    if (state === "started") this.dropFrom(0);
    if (state === "resumed") this.dropFrom(step + 1);
    this.state = state === "samples" || state === "started" || state === "resumed" ? "running" : state;
    this.message = message ?? "";
  }

  /** One optimiser step: {step, total, loss, learning_rate, seconds}. */
  add(report) {
    if (!Number.isFinite(report.loss)) return;
    if (this.last && report.step <= this.last.step) this.dropFrom(report.step);
    this.average = this.average === undefined ? report.loss : mix(this.average, report.loss, SMOOTHING);
    this.last = report;
    this.state = "running";
    this.message = "";
    this.pending.push({ step: report.step, loss: report.loss, smooth: this.average });
    if (this.pending.length < this.stepsPerPoint) return;
    this.points.push(merge(this.pending));
    this.pending = [];
    if (this.points.length === MAX_POINTS) this.halve();
  }

  /** Forgets steps from `step` on. */
  dropFrom(step) {
    this.points = this.points.filter((point) => point.step < step);
    this.pending = this.pending.filter((point) => point.step < step);
    this.last = null;
    this.average = this.visible().at(-1)?.smooth;
    if (this.average === undefined) this.stepsPerPoint = 1;
  }

  halve() {
    const halved = [];
    for (let i = 0; i < this.points.length; i += 2) halved.push(merge(this.points.slice(i, i + 2)));
    this.points = halved;
    this.stepsPerPoint *= 2;
  }

  /** The points to draw; the newest steps count even before they fill a merged point. */
  visible() {
    return this.pending.length ? [...this.points, merge(this.pending)] : this.points;
  }
}

function mix(old, fresh, share) {
  return old * share + fresh * (1 - share);
}

function merge(points) {
  return {
    step: points.at(-1).step,
    loss: points.reduce((sum, point) => sum + point.loss, 0) / points.length,
    smooth: points.at(-1).smooth,
  };
}

/** Round values (1, 2 or 5 times a power of ten apart) inside low..high, about `count` of them. */
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const distance = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const first = Math.ceil(low / distance - 1e-9);
  const last = Math.floor(high / distance + 1e-9);
  // Whole multiples times the distance, and the digits cut, so that 0.3 is not shown as 0.30000000000000004.
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * distance).toPrecision(12)));
}

/** The range of the loss axis: the data with a little room, never of zero height. */
export function lossRange(points) {
  const values = points.flatMap((point) => [point.loss, point.smooth]);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 0.1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** Four significant digits; very small and very large values with an exponent. */
export function formatLoss(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** 12 s, 4 min, 2 h 05 min. */
export function formatDuration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** The line of text below the chart; what matters least comes last, where a narrow node cuts it off. */
export function statusLine(series) {
  const { last, state, message } = series;
  const parts = [];
  if (state !== "running" && state !== "waiting") parts.push(state);
  if (last) parts.push(`step ${last.step}/${last.total}`, `loss ${formatLoss(last.loss)}`);
  if (last && state === "running") {
    const left = (last.total - last.step) * last.seconds;
    if (left > 0) parts.push(`${formatDuration(left)} left`);
    parts.push(`${last.seconds.toFixed(2)} s/step`, `lr ${last.learning_rate.toExponential(1)}`);
  }
  if (message) parts.push(message);
  return parts.join(" | ");
}
