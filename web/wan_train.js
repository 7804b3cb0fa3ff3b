// Front end of ComfyUI-WanTrain: what ComfyUI's page calls, and who answers.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { checkSettings, checkWorkflow, takeInputs, takeRefusal, watchInputs } from "./check.js";
import { densityMenu } from "./density.js";
import { addFolding, fitHeight } from "./folding.js";
import { allNodes, isOurs, nodeByExecutionId, nodeByLocatorId } from "./graph.js";
import { chooseFiles, listenForDrops } from "./imports.js";
import { addLook, hasLook } from "./look.js";
import { follow, forget, settings } from "./notify.js";
import { renewValues } from "./old_values.js";
import { addPresets, fetchPresets, hasPresets, presetMenu } from "./presets.js";
import {
  addReport,
  dropProgressLine,
  hasReport,
  keepText,
  recallTexts,
  showFailure,
  showsText,
  showText,
} from "./reports.js";
import { addChart, chartOf, recallRuns, showRun, takeUpdate } from "./runs.js";
import { addSidebar, refresh } from "./sidebar.js";
import { noteView, showView } from "./view.js";
import { learn } from "./words.js";

const TRAIN = "TrainLoRAStage";

/**
 * Show what a node has executed to.
 * @param {Comfy.Node | undefined} node
 * @param {Comfy.Output | null | undefined} output
 */
function takeOutput(node, output) {
  if (!node || !output) return;
  const run = output.wan_run?.[0];
  if (run) showRun(node, run);
  if (!Array.isArray(output.text) || !showsText(node)) return;
  showText(node, output.text.join("\n"));
  dropProgressLine(node);
}

async function fetchTranslations() {
  return (await api.fetchApi("/i18n")).json();
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./wan_train.css", import.meta.url).href;
  document.head.append(link);
}

function listen() {
  const events = /** @type {EventTarget} */ (api); // some of these are ours, which ComfyUI's types do not know
  events.addEventListener("wan_train.update", (event) => {
    const update = /** @type {CustomEvent} */ (event).detail;
    takeUpdate(update);
    follow(update);
  });
  events.addEventListener("reconnecting", forget);
  events.addEventListener("status", (event) => {
    const { exec_info } = /** @type {CustomEvent} */ (event).detail ?? {};
    if (exec_info?.queue_remaining === 0) forget(); // also of a run that ended before it began
  });
  events.addEventListener("executed", (event) => {
    const { display_node, node, output } = /** @type {CustomEvent} */ (event).detail;
    const shown = nodeByExecutionId(display_node ?? node);
    takeOutput(shown, output);
    if (shown && output?.text) keepText(shown);
  });
  events.addEventListener("execution_error", (event) => {
    const { node_id, node_type, exception_message } = /** @type {CustomEvent} */ (event).detail;
    const node = nodeByExecutionId(node_id);
    if (node && node.comfyClass === node_type && showsText(node)) showFailure(node, exception_message);
  });
  events.addEventListener("wan_train.refused", (event) => takeRefusal(/** @type {CustomEvent} */ (event).detail));
  events.addEventListener("graphChanged", watchInputs);
  for (const kind of ["reconnected", "execution_success", "execution_interrupted"]) {
    events.addEventListener(kind, recallRuns);
    events.addEventListener(kind, () => recallTexts(allNodes()));
    events.addEventListener(kind, refresh);
  }
  events.addEventListener("execution_interrupted", () => allNodes().filter(chartOf).forEach(dropProgressLine));
  listenForDrops();
}

/** @type {Comfy.Extension} */
const extension = {
  name: "WanTrain",

  commands: [
    {
      id: "WanTrain.Import",
      label: "Open a musubi-tuner, AI-Toolkit, SimpleTuner or diffusion-pipe setup",
      icon: "pi pi-file-import",
      function: chooseFiles,
    },
  ],

  settings: [...settings, ...checkSettings],

  menuCommands: [{ path: ["File", "WanTrain"], commands: ["WanTrain.Import"] }],

  // ComfyUI waits for it, so that nothing is shown before the words are there.
  init: () => learn(app.extensionManager?.setting?.get("Comfy.Locale"), fetchTranslations),

  setup() {
    addStyle();
    fetchPresets();
    listen();
    addSidebar();
  },

  getNodeMenuItems: (found) => {
    const node = /** @type {Comfy.Node} */ (found);
    return [...presetMenu(node), ...densityMenu(node)];
  },

  nodeCreated(created) {
    const node = /** @type {Comfy.Node} */ (created);
    if (isOurs(node)) addFolding(node);
    if (node.comfyClass === TRAIN) addChart(node, checkWorkflow);
    else if (hasReport(node.comfyClass ?? "")) addReport(node);
    else return;
    if (hasLook(node.comfyClass ?? "")) addLook(node);
    if (hasPresets(node.comfyClass ?? "")) addPresets(node);
    const onRemoved = node.onRemoved;
    node.onRemoved = function () {
      chartOf(node)?.dispose();
      return onRemoved?.apply(this);
    };
  },

  loadedGraphNode(loaded) {
    const node = /** @type {Comfy.Node} */ (loaded);
    renewValues(node);
    if (isOurs(node)) fitHeight(node);
  },

  beforeConfigureGraph: (workflow) => noteView(workflow),

  afterConfigureGraph() {
    showView();
    recallTexts(allNodes());
    recallRuns();
    takeInputs();
  },

  onNodeOutputsUpdated(/** @type {Record<string, Comfy.Output> | null} */ outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) takeOutput(nodeByLocatorId(id), output);
  },
};

app.registerExtension(extension);
