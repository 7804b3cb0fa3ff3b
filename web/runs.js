// The loss chart on the training node, and which run it shows.
// Everything is read from the server: the page holds no state of a run that a reload could lose.

import { api } from "../../scripts/api.js";
import { LossChart } from "./chart.js";
import { addWidget, allNodes, makeRoom, nodeByExecutionId } from "./graph.js";

const CHART_HEIGHT = 190;
const PREVIEW_HEIGHT = 210; // more, once there is one

/** @typedef {import("./chart.js").Report} Report */

/**
 * What the server sends while a run goes on.
 * @typedef {Report & { node_id: string, run: string, about?: string, losses: import("./curve.js").Point[] }} Update
 */

/**
 * A node's chart.
 * @typedef {object} Entry
 * @property {LossChart} chart
 * @property {string | null} run name of the run that it shows
 * @property {boolean} fetching
 * @property {Update[]} missed that came in while the history was fetched
 */

/** @type {WeakMap<Comfy.Node, Entry>} */
const charts = new WeakMap();

/** @param {string} run */
const addressOfRun = (run) => `/wan_train/runs/${encodeURIComponent(run)}`;

/** @param {Comfy.Node} node */
export function addChart(node) {
  const addressOf = (/** @type {string} */ file) => api.apiURL(`${addressOfRun(entry.run ?? "")}/previews/${file}`);
  const chart = new LossChart(addressOf, () => makeRoom(node));
  /** @type {Entry} */
  const entry = { chart, run: null, fetching: false, missed: [] };
  charts.set(node, entry);
  addWidget(
    node,
    "loss_curve",
    chart.element,
    () => CHART_HEIGHT + (chart.previews.element.hidden ? 0 : PREVIEW_HEIGHT),
  );
}

/**
 * The node's chart; undefined for nodes that have none.
 * @param {Comfy.Node} node
 */
export function chartOf(node) {
  return charts.get(node)?.chart;
}

/**
 * Name the run on the node; the name is saved with the workflow, and brings the curve back. Returns whether it is new.
 * @param {Comfy.Node} node
 * @param {Entry} entry
 * @param {string} run
 */
function setRun(node, entry, run) {
  if (entry.run === run) return false;
  entry.run = run;
  entry.chart.clear();
  entry.chart.say("");
  node.setProperty("wan_run", run);
  return true;
}

/**
 * Fetch the whole history of the node's run. Updates that come in meanwhile are put on top of it.
 * @param {Entry} entry
 */
async function fetchRun(entry) {
  const run = entry.run;
  if (!run || entry.fetching) return;
  entry.fetching = true;
  entry.missed = [];
  try {
    const answer = await api.fetchApi(addressOfRun(run));
    if (answer.ok && entry.run === run) {
      entry.chart.set(await answer.json());
      for (const update of entry.missed) entry.chart.add(update);
    } else if (answer.status !== 404 && entry.run === run) {
      entry.chart.say((await answer.json()).error); // a sentence; 404: the run was deleted, or is another machine's
    }
  } catch (error) {
    console.warn(`[wan_train] the curve of ${run} could not be fetched`, error);
  } finally {
    entry.fetching = false;
    if (entry.run !== run) fetchRun(entry);
  }
}

/**
 * Whether a run can be this node's: events reach every open workflow, and node ids are alike in many of them.
 * @param {Comfy.Node} node
 * @param {string} run
 */
function isRunOf(node, run) {
  if (node.properties?.wan_run === run) return true;
  if (node.inputs?.find((input) => input.name === "lora_name")?.link != null) return true; // its value is elsewhere
  return run.startsWith(`${node.widgets?.find((widget) => widget.name === "lora_name")?.value}_`);
}

/**
 * Go on with the chart of the node whose run it is.
 * @param {Update} update
 */
export function takeUpdate(update) {
  const node = nodeByExecutionId(update.node_id);
  const entry = node && charts.get(node);
  if (!entry || !isRunOf(node, update.run)) return;
  const isNew = setRun(node, entry, update.run);
  if (update.losses.length) entry.chart.say(update.about ?? ""); // in the place of what was said of an earlier end
  entry.chart.add(update);
  if (entry.fetching) entry.missed.push(update);
  if (isNew) fetchRun(entry);
}

/**
 * The node has executed and names its run, whose state has changed to finished.
 * @param {Comfy.Node} node
 * @param {string} run
 */
export function showRun(node, run) {
  const entry = charts.get(node);
  if (!entry) return;
  setRun(node, entry, run);
  fetchRun(entry);
}

/**
 * Bring back the curve of the run that a workflow names.
 * @param {Comfy.Node} node
 */
export function recallRun(node) {
  const entry = charts.get(node);
  const run = node.properties?.wan_run;
  if (!entry || !run) return;
  entry.run = String(run);
  fetchRun(entry);
}

/** Fetch all curves again: events were missed while the server was away. */
export function refetchRuns() {
  for (const node of allNodes()) {
    const entry = charts.get(node);
    if (entry) fetchRun(entry);
  }
}
