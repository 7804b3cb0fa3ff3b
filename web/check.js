// Check, on the training node: what the workflow's trainings will take, and what is wrong with them, before Run. What takes
// nothing heavy to tell is told without being asked, as soon as inputs change.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, nodeByExecutionId } from "./graph.js";
import { dropFailure, showFailure, showsText, showText } from "./reports.js";
import { chartOf } from "./runs.js";
import { say } from "./words.js";

export const AT_ONCE = "WanTrain.CheckAtOnce"; // in ComfyUI's settings
export const PAUSE_MS = 1000; // after the last change
const TRAIN = "TrainLoRAStage";
/** Classes of nodes whose inputs a check reads. */
const READ = [TRAIN, "CacheLatents", "CacheT5", "DatasetFromFolder", "JoinDatasets", "LoadWanDiT"];

/** What ComfyUI's settings dialog offers. */
export const checkSettings = [
  {
    id: /** @type {any} */ (AT_ONCE),
    category: ["WanTrain", "Check", "At once"],
    name: "Check a training's inputs as soon as they change",
    tooltip:
      "Says what is wrong, and how long the training is. Files that are not known yet are only opened by Check, or by Run.",
    type: /** @type {const} */ ("boolean"),
    defaultValue: true,
  },
];

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
let known = ""; // the inputs that were looked at last
let turn = 0; // of whoever asks, or opens a workflow: an answer to what was asked before is not shown any more
let quiet = new AbortController(); // of the request that nobody has asked for
/** What was found wrong last, by the execution id of its node. @type {Map<string, string>} */
let wrong = new Map();

/**
 * Ask the server about the workflow as it would be queued, and write each answer on its node.
 * Returns what to say beside the button.
 */
export async function checkWorkflow() {
  clearTimeout(timer);
  const mine = begin();
  const { output } = await app.graphToPrompt();
  known = inputsOf(output);
  const answer = await ask({ prompt: output });
  const { nodes, error } = await answer.json();
  if (mine !== turn || (await areOthers(output))) return say("The inputs have changed meanwhile: press Check again.");
  if (!answer.ok) return error;
  return tell(nodes);
}

/** Another check, or another workflow: what was asked before is of no use any more. Returns the turn. */
function begin() {
  quiet.abort();
  return ++turn;
}

/**
 * Whether the inputs that a check reads are others by now than those of a prompt. Nodes of other packs may give another value
 * each time that they are asked.
 * @param {Prompt} prompt
 */
async function areOthers(prompt) {
  /** @param {Prompt} all */
  const read = (all) =>
    inputsOf(Object.fromEntries(Object.entries(all).filter(([, one]) => READ.includes(one.class_type))));
  const { output } = await app.graphToPrompt();
  return read(output) !== read(prompt);
}

/**
 * @param {object} body
 * @param {AbortSignal} [signal] ends the request, and the work for it
 */
function ask(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return api.fetchApi("/wan_train/check", { method: "POST", headers, body: JSON.stringify(body), signal });
}

/**
 * What would encode clips has found that their training can't be run: the node that mends it says so, too.
 * @param {{ node_id: string, text: string }} refusal
 */
export function takeRefusal({ node_id: id, text }) {
  const node = nodeByExecutionId(id);
  if (!node || !showsText(node)) return;
  wrong.set(id, text); // goes when the inputs are others
  showFailure(node, text);
}

/** A workflow was opened: its inputs have not changed. */
export async function takeInputs() {
  clearTimeout(timer);
  begin();
  wrong = new Map();
  try {
    known = inputsOf(await trainings());
  } catch (error) {
    console.warn("[wan_train] the inputs of this workflow can't be told", error);
  }
}

/** The graph has changed: when it rests, look whether inputs have. */
export function watchInputs() {
  clearTimeout(timer);
  if (app.extensionManager.setting.get(AT_ONCE)) timer = setTimeout(checkQuietly, PAUSE_MS);
}

async function checkQuietly() {
  const before = turn;
  /** @type {AbortSignal | undefined} */
  let signal;
  try {
    const prompt = await trainings();
    const inputs = inputsOf(prompt);
    if (before !== turn || inputs === known) return;
    const mine = begin(); // also where nothing is trained any more; what has changed since waits for its own check
    known = inputs;
    if (!prompt) return;
    quiet = new AbortController();
    signal = quiet.signal;
    const answer = await ask({ prompt, light: true }, signal);
    const { nodes } = await answer.json();
    if (answer.ok && mine === turn && !(await areOthers(prompt)) && mine === turn) remark(nodes);
  } catch (error) {
    if (!signal?.aborted) console.warn("[wan_train] the inputs were not checked", error);
  }
}

/** The prompt as it would be queued; null where it trains nothing. */
async function trainings() {
  if (!allNodes().some((node) => node.comfyClass === TRAIN)) return null;
  const { output } = await app.graphToPrompt();
  return Object.values(output).some((node) => node.class_type === TRAIN) ? output : null;
}

/** @typedef {Record<string, { class_type: string, inputs: object }>} Prompt */

/** @param {Prompt | null} prompt */
function inputsOf(prompt) {
  const told = Object.entries(prompt ?? {}).map(([id, { class_type, inputs }]) => [id, class_type, inputs]);
  return JSON.stringify(told);
}

/**
 * What was wrong and is so no longer goes, also where nothing else is said of the node now.
 * @param {Record<string, { text: string, failed: boolean }>} answers by the execution id of their node
 */
function forgetMended(answers) {
  for (const [id, sentence] of wrong) {
    const node = nodeByExecutionId(id);
    if (node && !answers[id]?.failed) dropFailure(node, sentence);
  }
  wrong = new Map();
  for (const [id, { text, failed }] of Object.entries(answers)) if (failed) wrong.set(id, text);
}

/**
 * Write answers that nobody has asked for: where no run is shown, or beside the buttons of one that has ended.
 * @param {Record<string, { text: string, failed: boolean }>} answers by the execution id of their node
 */
function remark(answers) {
  forgetMended(answers);
  for (const [id, { text, failed }] of Object.entries(answers)) {
    const node = nodeByExecutionId(id);
    if (!node || !showsText(node)) continue;
    const chart = chartOf(node);
    if (chart) chart.remark(text);
    else if (failed) showFailure(node, text);
    else showText(node, text);
  }
}

/** @param {Record<string, { text: string, failed: boolean }>} answers by the execution id of their node */
function tell(answers) {
  const titles = [];
  forgetMended(answers);
  for (const [id, { text, failed }] of Object.entries(answers)) {
    const node = nodeByExecutionId(id);
    if (failed) titles.push(node?.title ?? id);
    if (!node || !showsText(node)) continue;
    if (failed) showFailure(node, text);
    else showText(node, text);
  }
  return titles.length ? say("To mend: {nodes}.", { nodes: titles.join(", ") }) : say("Nothing is in the way.");
}
