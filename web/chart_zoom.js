// Which steps a chart shows: dragging, the wheel and keys choose them. Knows nothing of ComfyUI.

/** @typedef {[first: number, last: number]} Range */

const FEWEST = 4; // steps that can fill the plot
const DRAGGED = 5; // pixels, below which a drag was a click

/**
 * A range inside the run, not narrower than can be seen; null where it is the whole run.
 * @param {Range} range
 * @param {number} steps of the run
 * @returns {Range | null}
 */
export function fitted([first, last], steps) {
  const width = Math.min(steps, Math.max(FEWEST, last - first));
  if (width >= steps) return null;
  const start = Math.min(Math.max(0, first), steps - width);
  return [start, start + width];
}

/**
 * @param {Range} range
 * @param {number} factor below 1: nearer
 * @param {number} centre step that stays where it is
 * @returns {Range}
 */
export function scaled([first, last], factor, centre) {
  return [centre - (centre - first) * factor, centre + (last - centre) * factor];
}

/** Listens on a plot. */
export class Zoom {
  /** @type {Range | null} */
  range = null; // null: the whole run
  /** @type {{ from: number, to: number, isPan: boolean, range: Range } | null} */
  drag = null; // in pixels of the plot

  /**
   * @param {HTMLElement} plot
   * @param {object} chart
   * @param {() => number} chart.steps of the run
   * @param {() => import("./chart_scale.js").View | null} chart.view what is drawn
   * @param {(step: number | null) => void} chart.onPoint the mouse is at this pixel, or gone
   * @param {(by: number) => void} chart.onStep an arrow key was pressed
   * @param {() => void} chart.onChange
   */
  constructor(plot, chart) {
    this.plot = plot;
    this.chart = chart;
    plot.addEventListener("pointerdown", (event) => this.begin(event));
    plot.addEventListener("pointermove", (event) => this.move(event));
    plot.addEventListener("pointerup", (event) => this.end(event));
    plot.addEventListener("pointercancel", () => this.forget());
    plot.addEventListener("pointerleave", () => this.drag || chart.onPoint(null));
    plot.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.set(null);
    });
    plot.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  /** The steps at the edges of the plot. */
  get edges() {
    return this.range ?? /** @type {Range} */ ([0, this.chart.steps()]);
  }

  /** @param {Range | null} range */
  set(range) {
    this.range = range && fitted(range, this.chart.steps());
    this.chart.onChange();
  }

  /**
   * Pixel of the plot; the canvas renderer scales the element by a CSS transform.
   * @param {MouseEvent} event
   */
  at(event) {
    const box = this.plot.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * this.plot.clientWidth;
  }

  /** @param {PointerEvent} event */
  begin(event) {
    if (event.button) return;
    event.stopPropagation(); // else the node is dragged
    this.plot.focus({ preventScroll: true });
    this.plot.setPointerCapture?.(event.pointerId);
    const at = this.at(event);
    this.drag = { from: at, to: at, isPan: event.shiftKey, range: this.edges };
  }

  /** @param {PointerEvent} event */
  move(event) {
    const at = this.at(event);
    if (!this.drag) {
      this.chart.onPoint(at);
      return;
    }
    event.stopPropagation();
    this.drag.to = at;
    const view = this.chart.view();
    if (!this.drag.isPan || !view) {
      this.chart.onChange();
      return;
    }
    const by = view.step(this.drag.from) - view.step(at);
    const [first, last] = this.drag.range;
    this.set(this.range && [first + by, last + by]);
  }

  /** @param {PointerEvent} event */
  end(event) {
    const drag = this.drag;
    const view = this.chart.view();
    this.drag = null;
    if (!drag) return;
    event.stopPropagation();
    if (drag.isPan || !view || Math.abs(drag.to - drag.from) < DRAGGED) {
      this.chart.onChange();
      return;
    }
    const ends = [view.step(drag.from), view.step(drag.to)].sort((a, b) => a - b);
    this.set([ends[0], ends[1]]);
  }

  forget() {
    this.drag = null;
    this.chart.onChange();
  }

  /** @param {WheelEvent} event */
  wheel(event) {
    const view = this.chart.view();
    // Not in passing: who scrolls over the graph is not caught by a chart that was not clicked.
    if (!view || this.plot.ownerDocument.activeElement !== this.plot) return;
    event.preventDefault();
    event.stopPropagation();
    this.set(scaled(this.edges, event.deltaY > 0 ? 1.25 : 0.8, view.step(this.at(event))));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [first, last] = this.edges;
    const middle = (first + last) / 2;
    const by = (last - first) / 4;
    const side = event.key === "ArrowLeft" ? -1 : 1;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      if (event.shiftKey) this.set(this.range && [first + side * by, last + side * by]);
      else this.chart.onStep(side);
    } else if (event.key === "+" || event.key === "=") this.set(scaled([first, last], 0.5, middle));
    else if (event.key === "-") this.set(scaled([first, last], 2, middle));
    else if (event.key === "0" || event.key === "Home" || event.key === "Escape") this.set(null);
    else return;
    event.preventDefault();
    event.stopPropagation(); // else ComfyUI takes them as shortcuts
  }
}
