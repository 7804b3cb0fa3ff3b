// Check, on the training node: what the workflow's trainings will take, and what is wrong with them, before Run. What takes
// nothing heavy to tell is told without being asked, as soon as inputs change.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, nodeByExecutionId } from "./graph.js";
import { showFailure, showsText, showText } from "./reports.js";
import { chartOf } from "./runs.js";
import { say } from "./words.js";

export const AT_ONCE = "WanTrain.CheckAtOnce"; // in ComfyUI's settings
export const PAUSE_MS = 1000; // after the last change
const TRAIN = "TrainLoRAStage";

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

/**
 * Ask the server about the workflow as it would be queued, and write each answer on its node.
 * Returns what to say beside the button.
 */
export async function checkWorkflow() {
  const { output } = await app.graphToPrompt();
  const answer = await ask({ prompt: output });
  const { nodes, error } = await answer.json();
  if (!answer.ok) return error;
  return tell(nodes);
}

/** @param {object} body */
function ask(body) {
  const headers = { "Content-Type": "application/json" };
  return api.fetchApi("/wan_train/check", { method: "POST", headers, body: JSON.stringify(body) });
}

/** A workflow was opened: its inputs have not changed. */
export async function takeInputs() {
  clearTimeout(timer);
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
  try {
    const prompt = await trainings();
    const inputs = inputsOf(prompt);
    if (!prompt || inputs === known) return;
    known = inputs;
    const answer = await ask({ prompt, light: true });
    const { nodes } = await answer.json();
    if (answer.ok && known === inputs) remark(nodes);
  } catch (error) {
    console.warn("[wan_train] the inputs were not checked", error);
  }
}

/** The prompt as it would be queued; null where it trains nothing. */
async function trainings() {
  if (!allNodes().some((node) => node.comfyClass === TRAIN)) return null;
  const { output } = await app.graphToPrompt();
  return Object.values(output).some((node) => node.class_type === TRAIN) ? output : null;
}

/** @param {Record<string, { class_type: string, inputs: object }> | null} prompt */
function inputsOf(prompt) {
  const told = Object.entries(prompt ?? {}).map(([id, { class_type, inputs }]) => [id, class_type, inputs]);
  return JSON.stringify(told);
}

/**
 * Write answers that nobody has asked for: where no run is shown, or beside the buttons of one that has ended.
 * @param {Record<string, { text: string, failed: boolean }>} answers by the execution id of their node
 */
function remark(answers) {
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
  for (const [id, { text, failed }] of Object.entries(answers)) {
    const node = nodeByExecutionId(id);
    if (failed) titles.push(node?.title ?? id);
    if (!node || !showsText(node)) continue;
    if (failed) showFailure(node, text);
    else showText(node, text);
  }
  return titles.length ? say("To mend: {nodes}.", { nodes: titles.join(", ") }) : say("Nothing is in the way.");
}
