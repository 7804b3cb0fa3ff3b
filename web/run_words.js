// What the list of runs says of each, how it is sorted and searched. Knows nothing of ComfyUI.

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
const STAGES = /** @type {Record<string, string>} */ ({ high: "high noise", low: "low noise", single: "single model" });
const STATES = /** @type {Record<string, string>} */ ({
  new: "not begun",
  waiting: "starting",
  training: "running",
  error: "failed",
});
/** @type {Record<string, [label: string, order: (a: Run, b: Run) => number]>} */
export const ORDERS = {
  changed: ["Newest", (a, b) => b.changed - a.changed],
  name: ["Name", (a, b) => a.name.localeCompare(b.name) || a.stage.localeCompare(b.stage)],
  held_out: ["Held-out loss", (a, b) => (a.held_out ?? Infinity) - (b.held_out ?? Infinity)],
  size: ["Size", (a, b) => b.size - a.size],
};

/** @param {number} bytes */
export function sizeOf(bytes) {
  for (const [unit, size] of /** @type {[string, number][]} */ ([
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ])) {
    if (bytes >= size) return `${(bytes / size).toFixed(bytes < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${bytes} bytes`;
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
    const text = [run.run, run.name, STAGES[run.stage], stateOf(run), run.model, run.why].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  return found.sort(ORDERS[order]?.[1] ?? ORDERS.changed[1]);
}

/** @param {Run} run */
export function stateOf(run) {
  return STATES[run.state] ?? run.state;
}

/** @param {Run} run */
export function facts(run) {
  const found = [`step ${run.step} of ${run.steps}`];
  if (run.held_out !== null) found.push(`held-out loss ${run.held_out.toFixed(4)}`);
  else if (run.loss !== null) found.push(`loss ${run.loss.toFixed(4)}`);
  if (run.facts.length) found.push(run.facts[0]);
  if (run.seconds_per_step !== null) found.push(`${run.seconds_per_step.toFixed(2)} s a step`);
  found.push(sizeOf(run.size));
  found.push(
    new Date(1000 * (run.began ?? run.changed)).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }),
  );
  return found;
}

/** @param {Run} run */
export function expertOf(run) {
  return STAGES[run.stage] ?? run.stage;
}

/** @param {unknown} value */
export function words(value) {
  if (value === null || value === undefined) return "off";
  return value === "" ? "(empty)" : typeof value === "object" ? JSON.stringify(value) : String(value);
}
