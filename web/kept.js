// What was chosen on the page, kept by the browser: after a reload it is as it was left. Knows nothing of ComfyUI.

const STORE = "wan_train.kept";
const MOST = 300; // of nodes and runs; those that were changed longest ago are forgotten

/** @typedef {Record<string, unknown>} Values */

/** @returns {[name: string, values: Values][]} the last changed last */
function all() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(found) ? found.filter((entry) => Array.isArray(entry) && typeof entry[1] === "object") : [];
  } catch {
    return []; // no storage in a private window of some browsers, or one that something else has written
  }
}

/**
 * What was kept under a name; empty where there is nothing.
 * @param {string} name
 * @returns {Values}
 */
export function recall(name) {
  return all().find(([found]) => found === name)?.[1] ?? {};
}

/**
 * Keep values beside those that are kept under this name. With "" nothing is kept: there is no run or node yet.
 * @param {string} name
 * @param {Values} values
 */
export function keep(name, values) {
  if (!name) return;
  const others = all().filter(([found]) => found !== name);
  const kept = [...others, [name, { ...recall(name), ...values }]].slice(-MOST);
  try {
    localStorage.setItem(STORE, JSON.stringify(kept));
  } catch (error) {
    console.info("[wan_train] the browser keeps nothing for this page", error);
  }
}

/**
 * The texts of a kept list; none where it is no list.
 * @param {unknown} value
 * @returns {string[]}
 */
export function texts(value) {
  return Array.isArray(value) ? value.filter((text) => typeof text === "string") : [];
}

/**
 * A kept number; undefined where it is none.
 * @param {unknown} value
 * @returns {number | undefined}
 */
export function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
}

/** @param {string | null} run a name for what is kept of a run; "" where there is none */
export const ofRun = (run) => (run ? `run/${run}` : "");
