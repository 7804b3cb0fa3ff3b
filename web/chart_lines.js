// What a chart draws: lines with their numbers, names and colours, of one run and of those beside it. Knows nothing of ComfyUI.

import { differencesOf } from "./chart_curves.js";
import { say } from "./words.js";

/** @typedef {import("./curve.js").Point} Point */
/** @typedef {import("./chart_curves.js").Answer} Answer */
/** @typedef {import("./chart_curves.js").Series} Series */

// Of wan_train.css, by the page's theme: they can be read as words, too. Told apart by most who see colours otherwise: after Okabe
// and Ito, Color Universal Design, 2008.
const [PINK, GREEN, ORANGE, VIOLET, GOLD, SKY, BROWN] = [
  "pink",
  "green",
  "orange",
  "violet",
  "gold",
  "sky",
  "brown",
].map((name) => `var(--wan-train-${name})`);
const OTHERS = [PINK, GREEN, ORANGE, VIOLET, GOLD, SKY, BROWN];
const SIGMAS = [SKY, GREEN, GOLD, ORANGE, PINK];
const OWN_SCALES = /** @type {[series: "learning_rate" | "gradient_norm", colour: string][]} */ ([
  ["learning_rate", VIOLET],
  ["gradient_norm", BROWN],
]);
const MOST_DIFFERENCES = 3;

/**
 * @typedef {object} Line
 * @property {string} name in the legend and at the mouse
 * @property {string} [short] in the legend
 * @property {string} [brief] at the mouse
 * @property {string} colour
 * @property {Point[]} points
 * @property {Point[]} [raw] drawn faintly
 * @property {boolean} [isHeldOut] points that are seldom, with a dashed line
 * @property {boolean} [hasOwnScale] none of the loss axis
 * @property {string} [help] more than the name
 * @property {boolean} [isOwn] the run's loss, which needs no legend
 */

/**
 * All lines but the loss of the chart's own run.
 * @param {Answer} answer
 * @param {Set<string>} of series that were chosen
 * @returns {Line[]}
 */
export function linesOf(answer, of) {
  const own = answer.runs[0];
  const single = own?.series ?? {};
  const sigmas = of.has("sigma") ? (single.sigma ?? []) : [];
  const lines = sigmas.map(({ low, high, smoothed }, i) => ({
    name: say("{curve}, smoothed", { curve: `sigma ${low}-${high}` }),
    short: `sigma ${low}-${high}`,
    colour: SIGMAS[i % SIGMAS.length],
    points: smoothed,
    help: `${say("Smoothed loss at noise levels (sigma) from {low} to {high}.", { low, high })} ${own.note}`.trim(),
  }));
  return [...lines, ...otherLines(answer), ...scaledLines(single, of)];
}

/**
 * @param {Answer} answer
 * @returns {Line[]}
 */
function otherLines(answer) {
  return answer.runs.slice(1).flatMap(({ name, stage, run, series }, i) => {
    const colour = OTHERS[i % OTHERS.length];
    const found = differencesOf(answer, i + 1);
    const few = found.slice(0, MOST_DIFFERENCES);
    if (found.length > few.length) few.push(say("{count} more", { count: found.length - few.length }));
    const said = few.length ? few.join(", ") : say("the same settings");
    const title = `${name} ${stage}`;
    const help = `${run}\n${found.join("\n")}`;
    const brief = say("{run}, smoothed loss", { run: title });
    const loss = {
      name: `${brief}: ${said}`,
      brief,
      colour,
      points: series.loss.smoothed,
      raw: series.loss.points,
      help,
    };
    const held = {
      name: say("{run}, held-out loss", { run: title }),
      colour,
      points: series.held_out.points,
      isHeldOut: true,
    };
    return held.points.length ? [loss, held] : [loss];
  });
}

/**
 * @param {Record<string, any>} series
 * @param {Set<string>} of
 * @returns {Line[]}
 */
function scaledLines(series, of) {
  const names = {
    learning_rate: say("learning rate"),
    gradient_norm: say("{curve}, smoothed", { curve: say("gradient norm") }),
  };
  return OWN_SCALES.filter(([key]) => of.has(key) && series[key]?.points.length).map(([key, colour]) => ({
    name: names[key],
    colour,
    points: series[key].smoothed,
    raw: key === "gradient_norm" ? series[key].points : undefined,
    hasOwnScale: true,
  }));
}

/**
 * The points of a range, and the ones beside it, so that lines reach the edges.
 * @param {Point[]} points
 * @param {[number, number]} range
 */
export function within(points, [first, last]) {
  const from = points.findIndex(([step]) => step >= first);
  if (from < 0) return points.slice(-1);
  const after = points.findIndex(([step]) => step > last);
  return points.slice(Math.max(0, from - 1), after < 0 ? points.length : after + 1);
}

/**
 * The point nearest to a step; undefined where there is none.
 * @param {Point[]} points ascending
 * @param {number} step
 */
export function nearest(points, step) {
  let low = 0;
  let high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  const [before, after] = [points[low - 1], points[low]];
  if (!before || !after) return before ?? after;
  return step - before[0] <= after[0] - step ? before : after;
}

/**
 * A number as a person reads it, exact enough to compare.
 * @param {number} value
 */
export function shown(value) {
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e4) ? value.toExponential(3) : value.toFixed(4);
}
