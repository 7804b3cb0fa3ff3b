// The sidebar's tab with all runs: what it fetches, and how a run's workflow is opened, queued and made longer.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes } from "./graph.js";
import { RunList } from "./run_list.js";
import { AS_JSON, inputOf } from "./runs.js";
import { say } from "./words.js";

/** @typedef {import("./run_list.js").Run} Run */

const TAB = "wan_train.runs";
const TRAIN = "TrainLoRAStage";
const POLL_MS = 4000;

/** @type {RunList | null} */
let list = null;
/** @type {ReturnType<typeof setInterval> | undefined} */
let timer;
let fetching = false;

/** @param {string} run */
const addressOf = (run) => `/wan_train/runs/${encodeURIComponent(run)}`;

/**
 * The answer of the server; its sentence as an Error where it refuses.
 * @param {string} path
 * @param {RequestInit} [request]
 */
async function ask(path, request) {
  const answer = await api.fetchApi(path, request).catch(() => null);
  if (!answer) throw new Error(say("ComfyUI does not answer: is it still running?"));
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? say("ComfyUI answers with {status}.", { status: answer.status }));
  return body;
}

/** Add the tab. */
export function addSidebar() {
  app.extensionManager.registerSidebarTab({
    id: TAB,
    icon: "pi pi-chart-line",
    title: say("WanTrain runs"),
    tooltip: say("WanTrain runs: all trainings"),
    type: "custom",
    render: (element) => {
      list ??= new RunList({
        watch: api.apiURL("/wan_train/watch"),
        pictureOf,
        open: async (run) => (await openWorkflow(run)).told,
        resume: (run) => queue(run, null),
        extend: (run, more) => queue(run, run.steps + more),
        about: (run) => ask(`${addressOf(run.run)}/about`),
        remove,
        compare: async (one, other) => {
          const query = new URLSearchParams({ one: one.run, other: other.run });
          return (await ask(`/wan_train/compare?${query}`)).differences;
        },
        copy: (text) => navigator.clipboard.writeText(text),
      });
      element.replaceChildren(list.element);
      refresh();
      clearInterval(timer);
      timer = setInterval(() => list?.element.isConnected && !document.hidden && refresh(), POLL_MS);
    },
    destroy: () => clearInterval(timer),
  });
}

/** Fetch the list anew, if it is shown. */
export async function refresh() {
  if (!list?.element.isConnected || fetching) return;
  fetching = true;
  try {
    list.set((await ask("/wan_train/runs")).runs);
  } catch (error) {
    list.say(error instanceof Error ? error.message : String(error));
  } finally {
    fetching = false;
  }
}

/** @param {Run} run */
function pictureOf(run) {
  if (run.preview) return api.apiURL(`${addressOf(run.run)}/previews/${run.preview[1]}`);
  return run.has_picture ? api.apiURL(`${addressOf(run.run)}/picture`) : "";
}

/** @param {Run} run */
async function remove(run) {
  await ask(`${addressOf(run.run)}/delete`, AS_JSON);
  await refresh();
  return say("{run} is deleted.", { run: run.run });
}

/**
 * Open a run's workflow in a tab of its own; its training node, where it can be told.
 * @param {Run} run
 * @returns {Promise<{ node: Comfy.Node | undefined, told: string }>}
 */
async function openWorkflow(run) {
  const { workflow, name, stage } = await ask(`${addressOf(run.run)}/workflow`);
  await app.loadGraphData(workflow, true, true, run.run);
  const trainings = allNodes().filter((node) => node.comfyClass === TRAIN);
  const named = trainings.find((node) => node.properties?.wan_run === run.run);
  const alike = trainings.filter((node) =>
    [inputOf(node, "lora_name") ?? name, inputOf(node, "stage") ?? stage].every(
      (value, i) => value === [name, stage][i],
    ),
  );
  const node = named ?? (alike.length === 1 ? alike[0] : undefined);
  return { node, told: say("The workflow of {run} is open.", { run: run.run }) };
}

/**
 * Open a run's workflow and press Run, as long as it was or with other `steps`; a sentence of how it went.
 * @param {Run} run
 * @param {number | null} steps
 */
async function queue(run, steps) {
  const { node, told } = await openWorkflow(run);
  if (steps !== null) {
    const problem = setSteps(node, steps);
    if (problem) return `${told} ${problem}`;
  }
  const isQueued = await app.queuePrompt(0, 1);
  if (isQueued === false) return `${told} ${say("ComfyUI did not take it: see what it says of the nodes.")}`;
  const goesOn =
    steps === null
      ? say("It is queued and goes on from its last checkpoint.")
      : say("It is queued and goes on from its last checkpoint, to step {step}.", { step: steps });
  return `${told} ${goesOn}`;
}

/**
 * @param {Comfy.Node | undefined} node
 * @param {number} steps
 */
function setSteps(node, steps) {
  if (!node) {
    return say("Its training node can't be told from the others: set steps to {steps} yourself, and press Run.", {
      steps,
    });
  }
  if (inputOf(node, "steps") === undefined) {
    return say("The steps come from another node: set steps to {steps} yourself, and press Run.", { steps });
  }
  for (const [name, value] of /** @type {const} */ ([
    ["epochs", 0],
    ["steps", steps],
  ])) {
    const widget = node.widgets?.find((found) => found.name === name);
    if (!widget || widget.value === value) continue;
    widget.value = value;
    widget.callback?.(value);
  }
  return "";
}
