// Presets: proven recipes, put into the workflow as plain values by the context menu of our nodes.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes } from "./graph.js";

/**
 * @typedef {object} Preset
 * @property {string} title
 * @property {string} description
 * @property {Record<string, Record<string, string | number | boolean>>} values class of node to its inputs
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
 * Put a preset's values into the widgets of all our nodes in the workflow; what it does not name stays.
 * @param {Preset} preset
 */
function apply(preset) {
  let changed = 0;
  for (const node of allNodes()) {
    const values = preset.values[node.comfyClass ?? ""];
    if (!values) continue;
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets?.find((widget) => widget.name === name);
      if (!widget || widget.value === value) continue;
      widget.value = value;
      widget.callback?.(value);
      changed += 1;
    }
    node.setDirtyCanvas?.(true, true);
  }
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: preset.title,
    detail: `${preset.description} ${changed} settings were changed.`,
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
  return [null, { content: "WanTrain preset", has_submenu: true, submenu: { options } }];
}
