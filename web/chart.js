// A live loss chart as one element with an inline SVG, and below it the previews of the run. Knows nothing of ComfyUI.

import { Buttons } from "./buttons.js";
import { betaFor, lossRange, smooth, thin, ticks } from "./curve.js";
import { block, shape } from "./elements.js";
import { writeHead } from "./head.js";
import { Previews } from "./previews.js";

const MARGIN = { left: 46, right: 12, top: 8, bottom: 22 };
/**
 * What the server tells of a run. Of a long one it has a part of the points, and `smoothed`, their averages.
 * @typedef {object} Report
 * @property {number} steps of the whole run
 * @property {string} state
 * @property {string} line what the run does now, or how it ended
 * @property {Point[]} [losses]
 * @property {Point[]} [validation]
 * @property {Point[]} [smoothed]
 * @property {Preview[]} [previews] all that there are
 * @property {string[]} [facts] numbers with what they are: time left, seconds a step
 * @property {string[]} [asks] what can be asked of the run now
 * @property {string} [notes] below the curve: which run it is, how it ended, its warnings
 */

/**
 * @typedef {import("./curve.js").Point} Point
 * @typedef {import("./previews.js").Preview} Preview
 */

/**
 * How steps and losses lie on the plot, in pixels.
 * @typedef {object} View
 * @property {number} first
 * @property {number} last
 * @property {number} low
 * @property {number} high
 * @property {number} right
 * @property {number} bottom
 * @property {number} height
 * @property {(step: number) => number} x
 * @property {(loss: number) => number} y
 */

/** @param {Point[]} points */
function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** `element` is what is shown; `set` replaces the curve, `add` goes on with it, `say` writes below it. */
export class LossChart {
  /** @type {Map<number, number>} */
  losses = new Map();
  /** @type {Map<number, number>} */
  known = new Map(); // averages that the server has computed over all points
  /** @type {Map<number, number>} */
  validation = new Map();
  /** @type {number[]} */
  steps = [];
  /** @type {number[]} */
  averages = [];
  /** @type {number | null} */
  pointer = null; // where the mouse is, in pixels of the plot
  /** @type {number | null} */
  frame = null; // the drawing that is asked for

  /**
   * See Previews, and Buttons.
   * @param {(file: string) => string} addressOf
   * @param {() => void} onToggle
   * @param {(ask: string) => Promise<string>} onAsk
   */
  constructor(addressOf = (file) => file, onToggle = () => {}, onAsk = async () => "") {
    this.element = block("wan-train-chart");
    this.head = block("wan-train-head", this.element);
    this.buttons = new Buttons(this.element, onAsk);
    this.plot = block("wan-train-plot", this.element);
    this.previews = new Previews(this.element, addressOf, onToggle);
    this.notes = block("wan-train-notes", this.element);
    this.svg = shape("svg", { width: "100%", height: "100%", role: "img", "aria-label": "training loss" });
    this.tip = block("wan-train-tip");
    this.plot.append(this.svg, this.tip);
    this.plot.addEventListener("pointermove", (event) => this.hover(event));
    this.plot.addEventListener("pointerleave", () => this.hover(null));
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe(this.plot);
    /** @type {{ steps: number, state: string, line: string, facts: string[] }} */
    this.run = { steps: 0, state: "new", line: "", facts: [] };
    this.clear();
  }

  /** Forget the curve. */
  clear() {
    this.losses = new Map();
    this.known = new Map();
    this.validation = new Map();
    this.run = { steps: 0, state: "new", line: "", facts: [] };
    this.buttons.set([]);
    this.pointer = null;
    this.previews.set([]);
    this.schedule();
  }

  /**
   * Replace the curve by the history of a run.
   * @param {Report} history
   */
  set(history) {
    this.losses = new Map();
    this.validation = new Map();
    this.add(history);
    this.known = new Map(history.smoothed ?? []);
    this.schedule();
  }

  /**
   * Take in new points.
   * @param {Report} report
   */
  add(report) {
    const { steps, state, line, losses = [], validation = [], previews = this.previews.files } = report;
    this.run = { steps, state, line, facts: report.facts ?? [] };
    this.buttons.set(report.asks ?? [], state);
    if (report.notes !== undefined) this.say(report.notes);
    this.previews.set(previews);
    for (const [step, loss] of losses) {
      this.losses.set(step, loss);
      this.known.delete(step);
    }
    for (const [step, loss] of validation) this.validation.set(step, loss);
    this.schedule();
  }

  /**
   * Text below the curve: the summary and the warnings of a finished run.
   * @param {string} text
   */
  say(text) {
    this.notes.textContent = text;
    this.notes.hidden = !text;
    this.schedule();
  }

  /**
   * The node has failed: its sentence, in the place of a state.
   * @param {string} sentence
   */
  fail(sentence) {
    this.run = { ...this.run, state: "error", line: sentence, facts: [] };
    this.buttons.set([]);
    this.schedule();
  }

  /** Draw once before the next frame, however many changes there were. */
  schedule() {
    if (this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** Stop watching the element's size. */
  dispose() {
    this.observer.disconnect();
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }

  draw() {
    this.series();
    this.drawHead();
    this.svg.replaceChildren();
    this.tip.hidden = true;
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    if (!this.steps.length || width < 80 || height < 50) return;
    const view = this.view(width, height);
    this.svg.append(...this.axes(view));
    const clip = (/** @type {number} */ value) => Math.min(view.high, Math.max(view.low, value));
    /** @type {(point: Point) => Point} */
    const place = ([step, value]) => [view.x(step), view.y(clip(value))];
    const columns = Math.round(width);
    const line = (/** @type {Point[]} */ values) => path(thin(values, columns, view.first, view.last).map(place));
    const raw = this.steps.map((step) => this.pointAt(step));
    const bold = this.steps.map((step, i) => /** @type {Point} */ ([step, this.averages[i]]));
    this.svg.append(shape("path", { class: "wan-train-raw", d: line(raw) }));
    this.svg.append(shape("path", { class: "wan-train-smooth", d: line(bold) }));
    const held = [...this.validation].sort((a, b) => a[0] - b[0]).map(place);
    if (held.length > 1) this.svg.append(shape("path", { class: "wan-train-held-line", d: path(held) }));
    for (const [cx, cy] of held) this.svg.append(shape("circle", { class: "wan-train-held", cx, cy, r: 3 }));
    const [cx, cy] = place(bold[bold.length - 1]);
    this.svg.append(shape("circle", { class: "wan-train-now", cx, cy, r: 3 }));
    this.drawPointer(view, place);
  }

  /**
   * The raw loss of a step that is there.
   * @param {number} step
   * @returns {Point}
   */
  pointAt(step) {
    return [step, this.losses.get(step) ?? Number.NaN];
  }

  /** Sorted steps, and the smoothed loss at each. */
  series() {
    this.steps = [...this.losses.keys()].sort((a, b) => a - b);
    const raw = this.steps.map((step) => this.pointAt(step)[1]);
    const known = this.steps.map((step) => this.known.get(step));
    this.averages = smooth(raw, betaFor(this.run.steps || raw.length), known);
  }

  drawHead() {
    const step = this.steps.at(-1);
    this.element.classList.toggle("wan-train-empty", step === undefined);
    const held = [...this.validation].sort((a, b) => a[0] - b[0]).at(-1)?.[1];
    writeHead(this.head, this.run, { step, average: this.averages.at(-1), held });
  }

  /**
   * @param {number} width
   * @param {number} height
   * @returns {View}
   */
  view(width, height) {
    const raw = this.steps.map((step) => this.pointAt(step)[1]);
    const [low, high] = lossRange(raw, this.averages, [...this.validation.values()]);
    const first = 0;
    const last = Math.max(this.run.steps, this.steps[this.steps.length - 1], 1);
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    return {
      first,
      last,
      low,
      high,
      right,
      bottom,
      height,
      x: (step) => MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left),
      y: (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top),
    };
  }

  /**
   * Grid lines and numbers.
   * @param {View} view
   */
  axes(view) {
    const drawn = [];
    const levels = ticks(view.low, view.high, Math.max(2, view.height / 45));
    const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10((levels[1] ?? view.high) - levels[0] || 1))));
    for (const level of levels) {
      const y = view.y(level);
      drawn.push(shape("line", { class: "wan-train-grid", x1: MARGIN.left, x2: view.right, y1: y, y2: y }));
      drawn.push(shape("text", { x: MARGIN.left - 6, y: y + 3, "text-anchor": "end" }, level.toFixed(digits)));
    }
    const marks = ticks(0, view.last, (view.right - MARGIN.left) / 70).filter((step) => Number.isInteger(step));
    for (const step of marks) {
      const anchor = view.x(step) > view.right - 14 ? "end" : "middle";
      drawn.push(shape("text", { x: view.x(step), y: view.height - 7, "text-anchor": anchor }, String(step)));
    }
    return drawn;
  }

  /** @param {PointerEvent | null} event */
  hover(event) {
    const box = this.plot.getBoundingClientRect(); // the canvas renderer scales the element by a CSS transform
    this.pointer = event && ((event.clientX - box.left) / box.width) * this.plot.clientWidth;
    this.schedule();
  }

  /**
   * What lies below the mouse: a line, a dot, and the numbers of that step.
   * @param {View} view
   * @param {(point: Point) => Point} place
   */
  drawPointer(view, place) {
    const pointer = this.pointer;
    if (pointer === null || pointer < MARGIN.left - 8) return;
    const distance = (/** @type {number} */ step) => Math.abs(view.x(step) - pointer);
    const nearest = (/** @type {number[]} */ steps) => steps.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    const step = nearest(this.steps);
    const average = this.averages[this.steps.indexOf(step)];
    const [x, y] = place([step, average]);
    this.svg.append(shape("line", { class: "wan-train-pointer", x1: x, x2: x, y1: MARGIN.top, y2: view.bottom }));
    this.svg.append(shape("circle", { class: "wan-train-now", cx: x, cy: y, r: 3.5 }));
    const lines = [
      `step ${step}`,
      `loss of this step ${this.pointAt(step)[1].toFixed(4)}`,
      `average loss ${average.toFixed(4)}`,
    ];
    const held = this.validation.size ? nearest([...this.validation.keys()]) : null;
    if (held !== null && Math.abs(view.x(held) - x) < 6) {
      lines.push(`held-out loss ${this.validation.get(held)?.toFixed(4)} (step ${held})`);
    }
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    const onLeft = x > (MARGIN.left + view.right) / 2;
    this.tip.style.left = onLeft ? "auto" : `${x + 10}px`;
    this.tip.style.right = onLeft ? `${this.plot.clientWidth - x + 10}px` : "auto";
  }
}
