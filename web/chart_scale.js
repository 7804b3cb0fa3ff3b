// How steps and values lie on a plot, in pixels; its grid. Knows nothing of ComfyUI.

import { ticks } from "./curve.js";
import { shape } from "./elements.js";

/** @typedef {import("./curve.js").Point} Point */

const TOP = 8; // pixels above the plot
const RIGHT = 12;
const TEXT = { least: 10, most: 16 }; // pixels, where the browser's own size of words is USUAL
const USUAL = 16;

/**
 * Size of the words of a plot, in pixels: larger where the graph is shown smaller, so that they can still be read, and where
 * the browser's own size is larger.
 * @param {HTMLElement} plot
 */
export function textSize(plot) {
  const zoom = plot.getBoundingClientRect().width / plot.clientWidth || 1; // the canvas renderer scales by a transform
  const own = (Number.parseFloat(window.getComputedStyle(document.documentElement).fontSize) || USUAL) / USUAL;
  return Math.round(own * Math.min(TEXT.most, Math.max(TEXT.least, TEXT.least / zoom)));
}

/**
 * @typedef {object} View
 * @property {number} first step at the left edge
 * @property {number} last step at the right edge
 * @property {number} low
 * @property {number} high
 * @property {boolean} isLog whether the loss axis is logarithmic
 * @property {number} left
 * @property {number} right
 * @property {number} top
 * @property {number} bottom
 * @property {number} text size of words
 * @property {number} height
 * @property {(step: number) => number} x
 * @property {(loss: number) => number} y
 * @property {(x: number) => number} step the step at a pixel; not whole
 */

/**
 * @param {{ width: number, height: number, text?: number }} size of the plot, and of its words
 * @param {[number, number]} steps at its edges
 * @param {[number, number]} range of values
 * @param {{ isLog?: boolean, right?: number }} [options] `right`: margin
 * @returns {View}
 */
export function makeView({ width, height, text = TEXT.least }, [first, last], [low, high], options = {}) {
  const { isLog = false, right: margin = RIGHT } = options;
  const left = 16 + 3 * text;
  const right = width - margin;
  const bottom = height - 12 - text;
  const lift = isLog ? Math.log : (/** @type {number} */ value) => value;
  const [from, to] = [lift(low), lift(high)];
  return {
    ...{ first, last, low, high, isLog, left, right, top: TOP, bottom, text, height },
    x: (step) => left + ((step - first) / (last - first)) * (right - left),
    y: (value) => bottom - ((lift(Math.min(high, Math.max(low, value))) - from) / (to - from)) * (bottom - TOP),
    step: (x) => first + ((x - left) / (right - left)) * (last - first),
  };
}

/**
 * A range as a logarithmic axis can have it: above 0, and with some room.
 * @param {[number, number]} range
 * @param {number[]} values
 * @returns {[number, number]}
 */
export function logRange([low, high], values) {
  const least = values.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), Infinity);
  const from = low > 0 ? low : Math.min(least, high) * 0.9;
  return Number.isFinite(from) && from > 0 && high > from ? [from, high] : [1e-3, 1];
}

/**
 * Round numbers on an axis; on a logarithmic one 1, 2 and 5 of each power, where there are few enough.
 * @param {View} view
 * @param {number} count
 */
function levelsOf({ low, high, isLog }, count) {
  const even = ticks(low, high, count);
  if (!isLog || high / low < 4) return even;
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of [1, 2, 5]) found.push(Number((factor * 10 ** power).toPrecision(12)));
  }
  const inside = found.filter((level) => level >= low && level <= high);
  return inside.length > 2 * count ? inside.filter((level) => Number.isInteger(Math.log10(level))) : inside;
}

/**
 * Grid lines and numbers.
 * @param {View} view
 */
export function axes(view) {
  const drawn = [];
  const levels = levelsOf(view, Math.max(2, view.height / 4.5 / view.text));
  const gap = levels.length > 1 ? Math.min(...levels.slice(1).map((level, i) => level - levels[i])) : levels[0];
  const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(gap || 1) + 1e-9)));
  for (const level of levels) {
    const y = view.y(level);
    drawn.push(shape("line", { class: "wan-train-grid", x1: view.left, x2: view.right, y1: y, y2: y }));
    drawn.push(shape("text", { x: view.left - 6, y: y + view.text / 3, "text-anchor": "end" }, level.toFixed(digits)));
  }
  const marks = ticks(view.first, view.last, (view.right - view.left) / (7 * view.text)).filter((step) =>
    Number.isInteger(step),
  );
  for (const step of marks) {
    const anchor = view.x(step) > view.right - 14 ? "end" : "middle";
    drawn.push(shape("text", { x: view.x(step), y: view.height - 7, "text-anchor": anchor }, String(step)));
  }
  return drawn;
}

/** @param {Point[]} points in pixels */
export function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}
