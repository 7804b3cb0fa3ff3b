// Timestep Density takes the settings of a training node of the workflow, so that it draws what that one will train with.

import { app } from "../../scripts/app.js";
import { allNodes } from "./graph.js";
import { say, sayCount } from "./words.js";

const TRAIN = "TrainLoRAStage";
const DENSITY = "WanTimestepDensity";

/**
 * What the context menu of Timestep Density offers.
 * @param {Comfy.Node} node
 * @returns {Comfy.MenuItem[]}
 */
export function densityMenu(node) {
  const trainings = node.comfyClass === DENSITY ? allNodes().filter(({ comfyClass }) => comfyClass === TRAIN) : [];
  if (!trainings.length) return [];
  const options = trainings.map((training) => ({
    content: `${training.title ?? TRAIN} (${training.id})`,
    callback: () => tell(takeSettings(node, training)),
  }));
  return [null, { content: say("Take the settings of a training"), has_submenu: true, submenu: { options } }];
}

/**
 * Put a training node's values into the widgets that have the same names here.
 * @param {Comfy.Node} density
 * @param {Comfy.Node} training
 * @returns {{ changed: number, wired: string[] }} `wired`: what stands in no widget there, as its input is wired
 */
export function takeSettings(density, training) {
  const wired = [];
  let changed = 0;
  for (const widget of density.widgets ?? []) {
    const source = training.widgets?.find(({ name }) => name === widget.name);
    if (!source) continue;
    if (training.inputs?.find(({ name }) => name === widget.name)?.link != null) {
      wired.push(widget.name);
      continue;
    }
    if (widget.value === source.value) continue;
    widget.value = source.value;
    widget.callback?.(source.value);
    changed += 1;
  }
  density.setDirtyCanvas?.(true, true);
  return { changed, wired };
}

/** @param {{ changed: number, wired: string[] }} found */
function tell({ changed, wired }) {
  const done = sayCount("{count} setting was changed.", "{count} settings were changed.", changed);
  const left = wired.length ? say("Wired there, so wire it here too: {names}.", { names: wired.join(", ") }) : "";
  app.extensionManager?.toast?.add({
    severity: wired.length ? "warn" : "info",
    summary: say("Take the settings of a training"),
    detail: `${done} ${left}`.trim(),
    life: 8000,
  });
}
