// The loss chart on the training node, and which run it shows.
// Everything is read from the server: the page holds no state of a run that a reload could lose.

import { api } from "../../scripts/api.js";
import { LossChart } from "./chart.js";
import { addWidget, allNodes, makeRoom, nodeByExecutionId } from "./graph.js";
import { addToken, tokenOf } from "./tokens.js";
import { say } from "./words.js";

const CHART_HEIGHT = 240;
const PREVIEW_HEIGHT = 210; // more, once there is one

/** How a request that changes something is sent: a page of another site can't send it so. */
export const AS_JSON = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };

/** @typedef {import("./chart.js").Report} Report */

/**
 * What the server sends while a run goes on. `token` is that of the node it was queued from, "" if a program queued it.
 * @typedef {Report & {
 *   node_id: string, token: string, name: string, stage: string, run: string, losses: import("./curve.js").Point[]
 * }} Update
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

/**
 * @param {Comfy.Node} node
 * @param {() => Promise<string>} check what the button Check does; gives what to say beside it
 */
export function addChart(node, check) {
  const addressOf = (/** @type {string} */ file) => api.apiURL(`${addressOfRun(entry.run ?? "")}/previews/${file}`);
  const chart = new LossChart(
    addressOf,
    () => makeRoom(node),
    (what) => ask(entry, what, check),
    { fetch: fetchJson, address: (path) => api.apiURL(path), run: () => entry.run },
    () => (node.graph ? `chart/${node.graph.id}/${node.id}` : ""),
  );
  /** @type {Entry} */
  const entry = { chart, run: null, fetching: false, missed: [] };
  charts.set(node, entry);
  const widget = addWidget(
    node,
    "loss_curve",
    chart.element,
    () => CHART_HEIGHT + (chart.previews.element.hidden ? 0 : PREVIEW_HEIGHT),
  );
  addToken(node, widget, () => dropRun(node));
}

/**
 * A copy of a node is a training of its own: it drops the run that it was copied with.
 * @param {Comfy.Node} node
 */
function dropRun(node) {
  delete node.properties.wan_run;
  const entry = charts.get(node);
  if (!entry) return;
  entry.run = null;
  entry.chart.clear();
  entry.chart.say("");
}

/**
 * Ask the server to stop, pause or save the run. Returns "" or a sentence why it can't.
 * @param {Entry} entry
 * @param {string} what
 * @param {() => Promise<string>} check
 */
async function ask(entry, what, check) {
  try {
    if (what === "check") return await check();
    const answer = await api.fetchApi(`${addressOfRun(entry.run ?? "")}/ask/${what}`, AS_JSON);
    return answer.ok ? "" : (await answer.json()).error;
  } catch (error) {
    console.warn(`[wan_train] ${what} did not reach the server`, error);
    return say("ComfyUI does not answer: is it still running?");
  }
}

/**
 * What the server answers. An Error with its sentence where it refuses.
 * @param {string} path
 */
async function fetchJson(path) {
  const answer = await api.fetchApi(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

/**
 * The node's chart; undefined for nodes that have none.
 * @param {Comfy.Node} node
 */
export function chartOf(node) {
  return charts.get(node)?.chart;
}

/**
 * Show this run from now on. Returns whether it is another than before.
 * @param {Entry} entry
 * @param {string} run
 */
function setRun(entry, run) {
  if (entry.run === run) return false;
  entry.run = run;
  entry.chart.clear();
  entry.chart.recall();
  entry.chart.say("");
  return true;
}

/**
 * Name the run on the node; the name is saved with the workflow.
 * @param {Comfy.Node} node
 * @param {string} run
 */
function nameRun(node, run) {
  if (node.properties.wan_run !== run) node.setProperty("wan_run", run);
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
 * The value of a widget; undefined where it comes over a wire.
 * @param {Comfy.Node} node
 * @param {string} name
 */
export function inputOf(node, name) {
  if (node.inputs?.find((input) => input.name === name)?.link != null) return undefined;
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/**
 * Whether an update is of this node's run: events reach every open workflow, and node ids are alike in many of them. The
 * server hands over the token of the node that was queued. Without one, names and stages must be the same.
 * @param {Comfy.Node} node
 * @param {Update} update
 */
function isRunOf(node, update) {
  if (charts.get(node)?.run === update.run) return true; // it shows it already
  if (tokenOf(node) && update.token) return tokenOf(node) === update.token;
  if (node.properties.wan_run === update.run) return true;
  const name = inputOf(node, "lora_name");
  const stage = inputOf(node, "stage");
  const own = String(stage).split(" ")[0];
  const isOfStage = stage === undefined || own === update.stage || (update.stage === "both" && own !== "single");
  return isOfStage && (name === undefined || name === update.name);
}

/**
 * Go on with the chart of the node whose run it is; returns the node.
 * @param {Update} update
 */
export function takeUpdate(update) {
  const node = nodeByExecutionId(update.node_id);
  const entry = node && charts.get(node);
  if (!entry || !isRunOf(node, update)) return undefined;
  nameRun(node, update.run);
  const isNew = setRun(entry, update.run);
  entry.chart.add(update);
  if (entry.fetching) entry.missed.push(update);
  if (isNew) fetchRun(entry);
  return node;
}

/**
 * The node has executed and names its run, whose state has changed to finished.
 * @param {Comfy.Node} node
 * @param {string} run
 */
export function showRun(node, run) {
  const entry = charts.get(node);
  if (!entry) return;
  nameRun(node, run);
  setRun(entry, run);
  fetchRun(entry);
}

/**
 * Bring back the curve of the node's run: the server knows which it is, by the node, its workflow, or its name.
 * @param {Comfy.Node} node
 */
export async function recallRun(node) {
  const entry = charts.get(node);
  if (!entry) return;
  const query = new URLSearchParams();
  const asked = { token: tokenOf(node), run: node.properties.wan_run, name: inputOf(node, "lora_name") };
  for (const [name, value] of Object.entries({ ...asked, stage: inputOf(node, "stage") })) {
    if (value) query.set(name, String(value));
  }
  try {
    const answer = await api.fetchApi(`/wan_train/shown?${query}`);
    const run = answer.ok && (await answer.json()).run;
    if (!run) return;
    setRun(entry, run); // not into the workflow, which would then differ from what is saved
    fetchRun(entry);
  } catch (error) {
    console.warn("[wan_train] the server does not tell which run the node shows", error);
  }
}

/** Bring all curves back: events were missed while the server was away, or a prompt has ended without them. */
export function recallRuns() {
  for (const node of allNodes()) recallRun(node);
}
