// Presets: proven recipes, put into the workflow as plain values. A button on the training node shows what each would change.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, makeRoom } from "./graph.js";
import { openChooser } from "./recipes.js";
import { say } from "./words.js";

const TRAIN = "TrainLoRAStage";
const PREVIEW = /^preview_/; // of a training node without a VAE, which makes no previews

/**
 * @typedef {object} Preset
 * @property {string} title
 * @property {string} description
 * @property {string} [asks] what the user has to give
 * @property {string} [source] what the sentences of `why` name by numbers
 * @property {Record<string, Record<string, string | number | boolean>>} values class of node to its inputs
 * @property {Record<string, string>} [why] name of an input to where its value comes from
 */
/**
 * @typedef {object} Change
 * @property {Comfy.Node} node
 * @property {string} name
 * @property {unknown} now
 * @property {string | number | boolean} becomes
 */

/** @type {Preset[]} */
let presets = [];

/** Fetch them from the server. */
export async function fetchPresets() {
  try {
    const answer = await api.fetchApi("/wan_train/presets");
    if (answer.ok) presets = await answer.json();
  } catch (error) {
    console.warn("[wan_train] the presets could not be fetched", error);
  }
}

/**
 * What a preset would change in the open workflow.
 * @param {Preset} preset
 * @returns {Change[]}
 */
export function changesOf(preset) {
  return allNodes().flatMap((node) => {
    const values = preset.values[node.comfyClass ?? ""] ?? {};
    const vae = node.inputs?.find((input) => input.name === "vae");
    return Object.entries(values).flatMap(([name, becomes]) => {
      const widget = node.widgets?.find((widget) => widget.name === name);
      if (!widget || widget.value === becomes) return [];
      if (PREVIEW.test(name) && vae && vae.link == null) return [];
      return [{ node, name, now: widget.value, becomes }];
    });
  });
}

/**
 * Put a preset's values into the widgets of all our nodes in the workflow; what it does not name stays.
 * @param {Preset} preset
 */
export function apply(preset) {
  const changes = changesOf(preset);
  for (const { node, name, becomes } of changes) {
    const widget = node.widgets?.find((widget) => widget.name === name);
    if (!widget) continue;
    widget.value = becomes;
    widget.callback?.(becomes);
    node.setDirtyCanvas?.(true, true);
  }
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: preset.title,
    detail: `${preset.description} ${say("{count} settings were changed.", { count: changes.length })}`,
    life: 8000,
  });
}

/**
 * What the node's context menu offers.
 * @param {Comfy.Node} node
 * @returns {Comfy.MenuItem[]}
 */
export function presetMenu(node) {
  if (!presets.some((preset) => preset.values[node.comfyClass ?? ""])) return [];
  const options = presets.map((preset) => ({ content: preset.title, callback: () => apply(preset) }));
  return [null, { content: say("WanTrain preset"), has_submenu: true, submenu: { options } }];
}

/**
 * Whether nodes of a class have the button.
 * @param {string} nodeClass
 */
export function hasPresets(nodeClass) {
  return nodeClass === TRAIN;
}

/** @param {Comfy.Node} node */
export function addPresets(node) {
  const open = () => openChooser(presets, changesOf, apply);
  const widget = node.addWidget("button", "recipes", "recipes", open, { serialize: false });
  widget.label = say("Recipes: a character, a style, a motion ...");
  widget.tooltip = say("Shows what a recipe would change in this workflow, and puts its values into the nodes.");
  widget.serialize = false;
  makeRoom(node);
}
