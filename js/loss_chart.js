/** Draws a LossSeries into an SVG element. Knows nothing of ComfyUI. */

import { formatLoss, lossRange, statusLine, ticks } from "./loss_series.js";

const SVG = "http://www.w3.org/2000/svg";

/** Px around the plot: room for the numbers of the axes. */
const MARGIN = { top: 8, right: 10, bottom: 20, left: 46 };

/** Px; used until the browser has told the real size. */
const FIRST_SIZE = { width: 320, height: 150 };

// In a style element of the chart's own shadow root, so that no rule leaves or enters it.
const STYLE = `
  :host { display: flex; flex-direction: column; min-height: 170px; }
  svg { flex: 1 1 0; min-height: 0; width: 100%; display: block; }
  text { font: 10px sans-serif; fill: var(--descrip-text, #999); }
  .grid { stroke: var(--border-color, #4e4e4e); stroke-width: 1; opacity: 0.5; }
  path { fill: none; stroke-linejoin: round; }
  .loss { stroke: #64a0dc; stroke-width: 1; opacity: 0.45; }
  .smooth { stroke: #ffa94d; stroke-width: 2; }
  .end { fill: #ffa94d; }
  .status { flex: none; font: 11px sans-serif; color: var(--fg-color, #ddd); padding: 2px 6px 4px; min-height: 15px;
    white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  .status.failed { color: var(--error-text, #ff6b6b); white-space: normal; overflow-wrap: anywhere; max-height: 60px; }
`;

/**
 * A chart that is not yet in the page.
 * @param {Document} document
 * @returns {{element: HTMLElement, draw: (series: object) => void, destroy: () => void}}
 */
export function createLossChart(document) {
  const element = document.createElement("div");
  const root = element.attachShadow({ mode: "open" });
  const style = document.createElement("style");
  style.textContent = STYLE;
  const svg = shape(document, "svg", { role: "img", "aria-label": "Training loss" });
  const status = document.createElement("div");
  root.append(style, svg, status);

  let size = FIRST_SIZE;
  let drawn = null;
  const draw = (series) => {
    drawn = series;
    svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    svg.replaceChildren(...shapes(document, series, size));
    status.textContent = statusLine(series);
    status.title = status.textContent;
    status.className = `status ${series.state}`;
  };
  const observer = new ResizeObserver(([entry]) => {
    const { width, height } = entry.contentRect;
    // A hidden node measures nothing; its last size will do.
    if (width < 1 || height < 1) return;
    size = { width: Math.round(width), height: Math.round(height) };
    if (drawn) draw(drawn);
  });
  observer.observe(svg);
  return { element, draw, destroy: () => observer.disconnect() };
}

function shapes(document, series, { width, height }) {
  const points = series.visible();
  if (points.length === 0) {
    const hint = shape(document, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" });
    hint.textContent = "The loss appears here while the run trains.";
    return [hint];
  }
  const scale = scales(points, width, height);
  return [
    ...lossAxis(document, scale, width, height),
    ...stepAxis(document, scale, width, height),
    shape(document, "path", { class: "loss", d: line(points, scale, "loss") }),
    shape(document, "path", { class: "smooth", d: line(points, scale, "smooth") }),
    shape(document, "circle", { class: "end", r: 2.5, cx: scale.x(points.at(-1).step), cy: scale.y(points.at(-1).smooth) }),
  ];
}

function scales(points, width, height) {
  const [low, high] = lossRange(points);
  const first = points[0].step;
  const last = Math.max(points.at(-1).step, first + 1);
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  return {
    steps: [first, last],
    losses: [low, high],
    x: (step) => round(MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left)),
    y: (loss) => round(bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top)),
  };
}

function lossAxis(document, scale, width, height) {
  return ticks(...scale.losses, Math.max(3, height / 36)).flatMap((value) => {
    const y = scale.y(value);
    const label = shape(document, "text", { x: MARGIN.left - 5, y: y + 3, "text-anchor": "end" });
    label.textContent = formatLoss(value);
    return [shape(document, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }), label];
  });
}

function stepAxis(document, scale, width, height) {
  const whole = ticks(...scale.steps, width / 80).filter(Number.isInteger);
  return whole.map((step) => {
    const label = shape(document, "text", { x: scale.x(step), y: height - 6, "text-anchor": "middle" });
    label.textContent = String(step);
    return label;
  });
}

function line(points, scale, name) {
  return points.map((point, i) => `${i ? "L" : "M"}${scale.x(point.step)} ${scale.y(point[name])}`).join("");
}

function shape(document, name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

function round(pixels) {
  return Math.round(pixels * 10) / 10;
}
