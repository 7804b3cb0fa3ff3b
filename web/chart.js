// A live loss chart as one element with an inline SVG, and below it the previews of the run. Knows nothing of ComfyUI.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 12, top: 8, bottom: 22 };
const EMPTY = "The loss is drawn here while the LoRA trains.";
const SHOWN_STATES = { stopped: "stopped", finished: "finished", error: "failed", waiting: "starting" };

/**
 * Exponential moving average with bias correction, as in Adam (Kingma and Ba 2015): no pull to zero at the start.
 * `known[i]`: the average there, of a curve of which only some points are in `values`; the average goes on from it.
 */
export function smooth(values, beta, known = []) {
  let mean = 0;
  let weight = 1;
  return values.map((value, i) => {
    if (known[i] !== undefined) {
      mean = known[i];
      weight = 0;
    } else {
      mean = beta * mean + (1 - beta) * value;
      weight *= beta;
    }
    return mean / (1 - weight);
  });
}

/** Beta of the average: it looks back over about a 25th of the run, at least 8 steps and at most 100. */
export function betaFor(steps) {
  return 1 - 1 / Math.min(100, Math.max(8, steps / 25));
}

/** Round numbers in [low, high], about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Range of the loss axis. Single raw losses far outside are cut off, so that they do not flatten the curve. */
export function lossRange(raw, averages, validation) {
  const sorted = [...raw].sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const marks = [...averages, ...validation];
  const low = marks.reduce((a, b) => Math.min(a, b), at(0.02) ?? Infinity);
  const high = marks.reduce((a, b) => Math.max(a, b), at(0.98) ?? -Infinity);
  const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  return [Math.max(0, low - room), high + room];
}

/** At most two points a pixel column, its lowest and its highest: what a screen can show of `points` [[x, y], ...]. */
export function thin(points, columns, first, last) {
  if (points.length <= 2 * columns) return points;
  const kept = [];
  let column = -1;
  let low;
  let high;
  const flush = () => {
    if (low) kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  };
  for (const point of points) {
    const here = Math.floor(((point[0] - first) / (last - first || 1)) * columns);
    if (here !== column) {
      flush();
      [column, low, high] = [here, point, point];
    } else {
      if (point[1] < low[1]) low = point;
      if (point[1] > high[1]) high = point;
    }
  }
  flush();
  return kept;
}

function shape(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function block(name, parent) {
  const element = document.createElement("div");
  element.className = name;
  parent?.append(element);
  return element;
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** Index of the preview to show: the newest, or where an older one was `chosen`, that step's if it is still there. */
export function previewIndex(files, chosen) {
  const kept = files.findIndex(([step]) => step === chosen);
  return kept < 0 ? files.length - 1 : kept;
}

/** The previews of a run: one picture, and a slider over the steps, which stays at the newest unless it was moved. */
export class Previews {
  /** `addressOf(file)`: where a preview is fetched from. `onToggle()`: they have appeared or gone. */
  constructor(parent, addressOf, onToggle) {
    this.addressOf = addressOf;
    this.onToggle = onToggle;
    this.element = block("wan-train-previews", parent);
    this.picture = document.createElement("img");
    this.caption = block("wan-train-caption");
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = 0;
    this.slider.addEventListener("input", () => {
      const index = Number(this.slider.value);
      this.chosen = index < this.files.length - 1 ? this.files[index][0] : undefined; // at the end: the newest, always
      this.show();
    });
    for (const kind of ["pointerdown", "pointermove"]) {
      this.slider.addEventListener(kind, (event) => event.stopPropagation()); // else the node moves, too
    }
    this.element.append(this.picture, this.caption, this.slider);
    this.element.hidden = true;
    this.files = [];
  }

  /** All previews that there are, [[step, file], ...], oldest first. */
  set(files) {
    this.files = files;
    this.slider.max = Math.max(0, files.length - 1);
    this.slider.value = previewIndex(files, this.chosen);
    this.slider.hidden = files.length < 2;
    const isHidden = !files.length;
    if (this.element.hidden !== isHidden) {
      this.element.hidden = isHidden;
      this.onToggle();
    }
    if (!isHidden) this.show();
  }

  show() {
    const [step, file] = this.files[this.slider.value];
    const address = this.addressOf(file);
    if (this.picture.getAttribute("src") !== address) this.picture.src = address;
    this.picture.alt = `preview of step ${step}`;
    this.caption.textContent = this.picture.alt;
  }
}

/** `element` is what is shown; `set` replaces the curve, `add` goes on with it, `say` writes below it. */
export class LossChart {
  /** See Previews for `addressOf` and `onToggle`. */
  constructor(addressOf = (file) => file, onToggle = () => {}) {
    this.element = block("wan-train-chart");
    this.head = block("wan-train-head", this.element);
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
    this.clear();
  }

  /** Forget the curve. */
  clear() {
    this.losses = new Map();
    this.known = new Map();
    this.validation = new Map();
    this.run = { steps: 0, state: "new", line: "" };
    this.pointer = null;
    this.previews.set([]);
    this.schedule();
  }

  /** Replace the curve by the history of a run; of a long one it has a part of the points, and `smoothed`, their averages. */
  set(history) {
    this.losses = new Map();
    this.validation = new Map();
    this.add(history);
    this.known = new Map(history.smoothed ?? []);
    this.schedule();
  }

  /**
   * Take in new points: {steps, state, line, losses: [[step, loss], ...], validation: [[step, loss], ...]}, and all
   * previews that there are: [[step, file], ...].
   */
  add({ steps, state, line, losses = [], validation = [], previews = this.previews.files }) {
    this.run = { steps, state, line };
    this.previews.set(previews);
    for (const [step, loss] of losses) {
      this.losses.set(step, loss);
      this.known.delete(step);
    }
    for (const [step, loss] of validation) this.validation.set(step, loss);
    this.schedule();
  }

  /** Text below the curve: the summary and the warnings of a finished run. */
  say(text) {
    this.notes.textContent = text;
    this.notes.hidden = !text;
    this.schedule();
  }

  /** Draw once before the next frame, however many changes there were. */
  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** Stop watching the element's size. */
  dispose() {
    this.observer.disconnect();
    if (this.frame) cancelAnimationFrame(this.frame);
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
    const clip = (value) => Math.min(view.high, Math.max(view.low, value));
    const place = ([step, value]) => [view.x(step), view.y(clip(value))];
    const columns = Math.round(width);
    const line = (values) => path(thin(values, columns, view.first, view.last).map(place));
    const raw = this.steps.map((step) => [step, this.losses.get(step)]);
    const bold = this.steps.map((step, i) => [step, this.averages[i]]);
    this.svg.append(shape("path", { class: "wan-train-raw", d: line(raw) }));
    this.svg.append(shape("path", { class: "wan-train-smooth", d: line(bold) }));
    const held = [...this.validation].sort((a, b) => a[0] - b[0]).map(place);
    if (held.length > 1) this.svg.append(shape("path", { class: "wan-train-held-line", d: path(held) }));
    for (const [cx, cy] of held) this.svg.append(shape("circle", { class: "wan-train-held", cx, cy, r: 3 }));
    const [cx, cy] = place(bold.at(-1));
    this.svg.append(shape("circle", { class: "wan-train-now", cx, cy, r: 3 }));
    this.drawPointer(view, place);
  }

  /** Sorted steps, and the smoothed loss at each. */
  series() {
    this.steps = [...this.losses.keys()].sort((a, b) => a - b);
    const raw = this.steps.map((step) => this.losses.get(step));
    const known = this.steps.map((step) => this.known.get(step));
    this.averages = smooth(raw, betaFor(this.run.steps || raw.length), known);
  }

  drawHead() {
    const step = this.steps.at(-1);
    const { state, steps, line } = this.run;
    this.element.classList.toggle("wan-train-empty", step === undefined);
    this.head.classList.toggle("wan-train-error", state === "error");
    if (step === undefined) {
      this.head.textContent = line || EMPTY;
      return;
    }
    const parts = [`step ${step} / ${steps}`, `loss ${this.averages.at(-1).toFixed(4)}`];
    const held = [...this.validation.keys()].sort((a, b) => a - b).at(-1);
    if (held !== undefined) parts.push(`validation ${this.validation.get(held).toFixed(4)}`);
    if (SHOWN_STATES[state]) parts.push(SHOWN_STATES[state]);
    if (state === "error" && line) parts.push(line);
    this.head.textContent = parts.join("   ");
  }

  view(width, height) {
    const raw = this.steps.map((step) => this.losses.get(step));
    const [low, high] = lossRange(raw, this.averages, [...this.validation.values()]);
    const first = 0;
    const last = Math.max(this.run.steps, this.steps.at(-1), 1);
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    return {
      first, last, low, high, right, bottom, height,
      x: (step) => MARGIN.left + ((step - first) / (last - first)) * (right - MARGIN.left),
      y: (loss) => bottom - ((loss - low) / (high - low)) * (bottom - MARGIN.top),
    }; // prettier-ignore
  }

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

  hover(event) {
    const box = this.plot.getBoundingClientRect(); // the canvas renderer scales the element by a CSS transform
    this.pointer = event && ((event.clientX - box.left) / box.width) * this.plot.clientWidth;
    this.schedule();
  }

  drawPointer(view, place) {
    if (this.pointer === null || this.pointer < MARGIN.left - 8) return;
    const nearest = (steps) =>
      steps.reduce((a, b) => (Math.abs(view.x(b) - this.pointer) < Math.abs(view.x(a) - this.pointer) ? b : a));
    const step = nearest(this.steps);
    const average = this.averages[this.steps.indexOf(step)];
    const [x, y] = place([step, average]);
    this.svg.append(shape("line", { class: "wan-train-pointer", x1: x, x2: x, y1: MARGIN.top, y2: view.bottom }));
    this.svg.append(shape("circle", { class: "wan-train-now", cx: x, cy: y, r: 3.5 }));
    const lines = [`step ${step}`, `loss ${this.losses.get(step).toFixed(4)}`, `smoothed ${average.toFixed(4)}`];
    const held = this.validation.size ? nearest([...this.validation.keys()]) : null;
    if (held !== null && Math.abs(view.x(held) - x) < 6) {
      lines.push(`validation ${this.validation.get(held).toFixed(4)} (step ${held})`);
    }
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    const onLeft = x > (MARGIN.left + view.right) / 2;
    this.tip.style.left = onLeft ? "auto" : `${x + 10}px`;
    this.tip.style.right = onLeft ? `${this.plot.clientWidth - x + 10}px` : "auto";
  }
}
