// Presets: proven recipes, put into the workflow as plain values. A button on the training node shows what each would change.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, makeRoom } from "./graph.js";
import { isChooserOpen, openChooser } from "./recipes.js";
import { say, sayCount } from "./words.js";

const TRAIN = "TrainLoRAStage";
const LOADER = "LoadWanDiT";
const OFF = [2, 4]; // modes of a node that is muted or bypassed
const PREVIEW = /^preview_/; // of a training node without a VAE, which makes no previews

/**
 * @typedef {object} Preset
 * @property {string} title
 * @property {string} description
 * @property {string} family of models that it is for
 * @property {string} model what that is called
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

/** @typedef {Record<string, string>} Families those that a model can be of, each with its title ("": it is of no published one); {}: not known */

/**
 * The models that the open workflow trains, by what they are called there.
 * @returns {Promise<Map<string, Families>>}
 */
export async function fetchModels() {
  const nodes = allNodes().filter((node) => !OFF.includes(node.mode ?? 0));
  const names = nodes
    .filter(
      (node) => node.comfyClass === LOADER && node.inputs?.find(({ name }) => name === "model_name")?.link == null,
    )
    .map((node) => String(node.widgets?.find(({ name }) => name === "model_name")?.value ?? ""));
  /** @type {Record<string, Families>} */
  let found = {};
  if (names.length) {
    try {
      const query = new URLSearchParams(names.map((name) => ["name", name]));
      const answer = await api.fetchApi(`/wan_train/families?${query}`);
      if (answer.ok) found = await answer.json();
    } catch (error) {
      console.warn("[wan_train] it could not be asked which models these are", error);
    }
  }
  return new Map(Object.entries(found));
}

/**
 * Why a preset can't be used with these models; "" where it can, or where no one knows.
 * @param {Preset} preset
 * @param {Map<string, Families>} models
 */
export function refusalOf(preset, models) {
  for (const [file, families] of models) {
    const titles = Object.values(families);
    if (!titles.length || Object.hasOwn(families, preset.family)) continue;
    const values = { model: preset.model, file, found: titles.join(" / ") || say("a model of another size") };
    return presets.some(({ family }) => Object.hasOwn(families, family))
      ? say("This recipe is for {model}. {file} is {found}: choose a recipe for it, or other model files.", values)
      : say("This recipe is for {model}. {file} is {found}, and no recipe is for that.", values);
  }
  return "";
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
    detail: `${preset.description} ${sayCount("{count} setting was changed.", "{count} settings were changed.", changes.length)}`,
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
  const options = presets.map((preset) => ({
    content: `${preset.title} (${preset.model})`,
    callback: async () => {
      const refusal = refusalOf(preset, await fetchModels());
      if (!refusal) apply(preset);
      else app.extensionManager?.toast?.add({ severity: "warn", summary: preset.title, detail: refusal, life: 8000 });
    },
  }));
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
  let isOpening = false; // a second click meanwhile opens no second window
  const open = async () => {
    if (isOpening || isChooserOpen()) return;
    isOpening = true;
    try {
      const models = await fetchModels();
      if (allNodes().includes(node) && !isChooserOpen())
        openChooser(presets, changesOf, apply, (preset) => refusalOf(preset, models));
    } finally {
      isOpening = false;
    }
  };
  const widget = node.addWidget("button", "recipes", "recipes", open, { serialize: false });
  widget.label = say("Recipes: a character, a style, a motion ...");
  widget.tooltip = say("Shows what a recipe would change in this workflow, and puts its values into the nodes.");
  widget.serialize = false;
  makeRoom(node);
}
