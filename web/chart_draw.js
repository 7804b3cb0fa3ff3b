// Draws the parts of a chart into its SVG. Knows nothing of ComfyUI.

import { makeView, path } from "./chart_scale.js";
import { thin } from "./curve.js";
import { block, shape } from "./elements.js";

/** @typedef {import("./curve.js").Point} Point */
/** @typedef {import("./chart_lines.js").Line} Line */
/** @typedef {import("./chart_scale.js").View} View */

/**
 * Pixels at the right for the ends of scales of their own.
 * @param {number} text size of words
 */
export const scalesWidth = (text) => 10 + 5 * text;
const EDGE = 4; // pixels beside the plot in which a dot is still whole

/**
 * All lines; what lies beside the plot is cut off.
 * @param {SVGSVGElement} svg
 * @param {number} width of the whole
 * @param {Line[]} lines
 * @param {View} view
 */
export function drawLines(svg, width, lines, view) {
  const [left, wide] = [view.left - EDGE, view.right - view.left + 2 * EDGE];
  const box = { x: left, y: 0, width: wide, height: view.height, viewBox: `${left} 0 ${wide} ${view.height}` };
  const inside = shape("svg", box);
  svg.append(inside);
  const scaled = lines.filter((line) => line.hasOwnScale);
  for (const line of lines) {
    const own = line.hasOwnScale ? ownScale(svg, width, view, line, scaled.indexOf(line)) : view;
    drawLine(inside, width, line, own);
  }
}

/**
 * @param {SVGElement} svg
 * @param {number} width
 * @param {Line} line
 * @param {View} view
 */
function drawLine(svg, width, { colour, points, raw, isHeldOut }, view) {
  /** @type {(point: Point) => Point} */
  const place = ([step, value]) => [view.x(step), view.y(value)];
  const add = (/** @type {string} */ name, /** @type {Point[]} */ values) => {
    const d = path(thin(values, Math.round(width), view.first, view.last).map(place));
    const drawn = shape("path", { class: name, d });
    drawn.style.stroke = colour;
    svg.append(drawn);
  };
  const dot = (/** @type {string} */ name, /** @type {Point} */ point) => {
    const [cx, cy] = place(point);
    const drawn = shape("circle", { class: name, cx, cy, r: 3 });
    drawn.style.fill = colour;
    svg.append(drawn);
  };
  if (raw) add("wan-train-raw", raw);
  if (!isHeldOut) add("wan-train-smooth", points);
  else if (points.length > 1) add("wan-train-held-line", points);
  if (isHeldOut) for (const point of points) dot("wan-train-held", point);
  else if (points.length) dot("wan-train-now", points[points.length - 1]);
}

/**
 * A view with the same steps and a scale of its own, whose ends are written at the right.
 * @param {SVGElement} svg
 * @param {number} width
 * @param {View} view
 * @param {Line} line
 * @param {number} place of the line among those with scales
 */
function ownScale(svg, width, view, { points, colour }, place) {
  const values = points.map(([, value]) => value);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = high > low ? (high - low) * 0.05 : Math.abs(high) * 0.1 || 1;
  const ends = high > low ? [high, low] : [high];
  ends.forEach((value, i) => {
    const y = (i ? view.bottom - view.text - 1 : view.top + 8) + (view.text + 1) * place;
    const text = shape("text", { x: view.right + 6, y }, value.toPrecision(3));
    text.style.fill = colour;
    svg.append(text);
  });
  const size = { width, height: view.height, text: view.text };
  return makeView(size, [view.first, view.last], [low - room, high + room], { right: scalesWidth(view.text) });
}

/**
 * Where the training seemed to diverge, and the steps that are being marked with the mouse.
 * @param {SVGSVGElement} svg
 * @param {View} view
 * @param {number[]} alarms steps
 * @param {{ from: number, to: number, isPan: boolean } | null} drag in pixels
 */
export function drawMarks(svg, view, alarms, drag) {
  for (const step of alarms) {
    const x = view.x(step);
    if (x < view.left || x > view.right) continue;
    svg.append(shape("line", { class: "wan-train-alarm-line", x1: x, x2: x, y1: view.top, y2: view.bottom }));
  }
  if (!drag || drag.isPan) return;
  const x = Math.min(drag.from, drag.to);
  const width = Math.abs(drag.to - drag.from);
  svg.append(shape("rect", { class: "wan-train-marked", x, y: view.top, width, height: view.bottom - view.top }));
}

/**
 * Which line is which, where there is more than a run's own loss.
 * @param {HTMLElement} legend
 * @param {Line[]} lines
 */
export function drawLegend(legend, lines) {
  const isPlain = lines.every(({ isOwn }) => isOwn);
  legend.hidden = isPlain;
  legend.replaceChildren(
    ...(isPlain ? [] : lines).map(({ name, short = name, colour, help = name }) => {
      const entry = block("wan-train-entry");
      entry.setAttribute("role", "listitem");
      entry.title = help;
      const mark = document.createElement("span");
      mark.style.background = colour;
      entry.append(mark, short);
      return entry;
    }),
  );
}
