// What the list of runs says of each, how it is sorted and searched. Knows nothing of ComfyUI.

import { expertOf, stateOf } from "./run_states.js";
import { say } from "./words.js";

/**
 * A run, as the server tells it. Times in seconds, `size` in bytes.
 * @typedef {object} Run
 * @property {string} run name of its folder
 * @property {string} name
 * @property {string} stage
 * @property {string} state
 * @property {string} why
 * @property {number} step
 * @property {number} steps
 * @property {number | null} loss
 * @property {number | null} held_out
 * @property {number | null} seconds_per_step
 * @property {number | null} began
 * @property {number} changed
 * @property {number} size
 * @property {[step: number, file: string] | null} preview the newest
 * @property {boolean} can_resume
 * @property {boolean} has_picture
 * @property {string} model
 * @property {string[]} facts
 * @property {string[]} asks
 */

/** @typedef {{ name: string, one: unknown, other: unknown }} Difference */

export const GOING = ["waiting", "training", "stopping", "paused"];
/** @type {Record<string, (a: Run, b: Run) => number>} */
const ORDERS = {
  changed: (a, b) => b.changed - a.changed,
  name: (a, b) => a.name.localeCompare(b.name) || a.stage.localeCompare(b.stage),
  held_out: (a, b) => (a.held_out ?? Infinity) - (b.held_out ?? Infinity),
  size: (a, b) => b.size - a.size,
};

/** What runs can be sorted by, and what that is called. */
export const orders = () => ({
  changed: say("Newest"),
  name: say("Name"),
  held_out: say("Held-out loss"),
  size: say("Size"),
});

/** @param {number} bytes */
export function sizeOf(bytes) {
  for (const [unit, size] of /** @type {[string, number][]} */ ([
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ])) {
    if (bytes >= size) return `${(bytes / size).toFixed(bytes < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${bytes} B`;
}

/**
 * The runs in which every word of a search stands, in an order.
 * @param {Run[]} runs
 * @param {string} search
 * @param {string} order
 */
export function chosen(runs, search, order) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = runs.filter((run) => {
    const text = [run.run, run.name, expertOf(run), stateOf(run), run.model, run.why].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  return found.sort(ORDERS[order] ?? ORDERS.changed);
}

/** @param {Run} run */
export function facts(run) {
  const found = [say("step {step} of {steps}", { step: run.step, steps: run.steps })];
  if (run.held_out !== null) found.push(say("held-out loss {loss}", { loss: run.held_out.toFixed(4) }));
  else if (run.loss !== null) found.push(say("loss {loss}", { loss: run.loss.toFixed(4) }));
  if (run.facts.length) found.push(run.facts[0]);
  if (run.seconds_per_step !== null)
    found.push(say("{seconds} s a step", { seconds: run.seconds_per_step.toFixed(2) }));
  found.push(sizeOf(run.size));
  found.push(
    new Date(1000 * (run.began ?? run.changed)).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }),
  );
  return found;
}

/** @param {unknown} value */
export function words(value) {
  if (value === null || value === undefined) return say("off");
  return value === "" ? say("(empty)") : typeof value === "object" ? JSON.stringify(value) : String(value);
}
