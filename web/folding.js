// Folds the advanced inputs of our nodes in ComfyUI's classic renderer, which shows them all. Nodes 2.0 folds them itself.
// Whether they are shown is the host's own `showAdvanced`, saved with the node: one state for both renderers.

import { app } from "../../scripts/app.js";
import { say } from "./words.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of ComfyUI
const FOLDS = "wan_train_folds"; // among a saved node's properties: its height is one of folded inputs
const BLANK = 12 * 24; // pixels; version 0.1.0 had twenty advanced inputs, each of 24

/**
 * @param {Comfy.Node} node
 * @returns {Comfy.Widget[]}
 */
const advancedOf = (node) =>
  (node.widgets ?? []).filter((widget) => /** @type {Comfy.Widget} */ (widget).options?.advanced);

/**
 * Whether a widget is folded away now. One with a wire stays: the wire ends at it.
 * @param {Comfy.Node} node
 * @param {Comfy.Widget} widget
 */
function isFolded(node, widget) {
  if (node.showAdvanced || app.extensionManager?.setting?.get(ALWAYS)) return false;
  return !node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
}

/**
 * Give a widget a property that is asked for anew each time: the host changes what it depends on without telling us.
 * @param {object} widget
 * @param {string} name
 * @param {() => unknown} get
 */
function compute(widget, name, get) {
  Object.defineProperty(widget, name, { get, set: () => {}, configurable: true, enumerable: true });
}

/**
 * Fold the node's advanced inputs, behind a button below the others. Their values are kept, saved and sent.
 * @param {Comfy.Node} node
 */
export function addFolding(node) {
  const advanced = advancedOf(node);
  if (!advanced.length) return;
  for (const widget of advanced) {
    const isHidden = widget.hidden === true; // by the host, for a reason of its own
    compute(widget, "hidden", () => isHidden || isFolded(node, widget));
  }
  const button = node.addWidget("button", "show_advanced", "", () => toggle(node), { serialize: false });
  button.serialize = false;
  /** @type {Comfy.Widget} */ (button).options.canvasOnly = true; // Nodes 2.0 has a button of its own
  button.tooltip = say("Inputs that few trainings need. Folded, they keep their values.");
  compute(button, "label", () =>
    node.showAdvanced
      ? say("Hide advanced")
      : say("Show advanced ({count})", { count: advanced.filter((one) => one.hidden).length }),
  );
  compute(button, "hidden", () => Boolean(app.extensionManager?.setting?.get(ALWAYS)));
  const serialized = node.onSerialize;
  node.onSerialize = function (saved) {
    serialized?.call(this, saved);
    saved.properties = { ...saved.properties, [FOLDS]: true };
  };
  fitHeight(node);
}

/**
 * Show what is folded, or fold it again. What is below the widgets, a chart or a report, keeps its height.
 * @param {Comfy.Node} node
 */
function toggle(node) {
  const before = node.computeSize()[1];
  node.showAdvanced = !node.showAdvanced;
  const after = node.computeSize()[1];
  node.setSize([node.size[0], Math.max(after, node.size[1] + after - before)]);
  node.setDirtyCanvas?.(true, true);
}

/**
 * A workflow that was saved before there was anything to fold has a node as high as all its inputs of then: cut the blank
 * part off. What was saved since keeps its height.
 * @param {Comfy.Node} node
 */
export function fitHeight(node) {
  if (node.properties?.[FOLDS] || !advancedOf(node).some((widget) => widget.hidden)) return;
  const needed = node.computeSize()[1];
  if (node.size[1] >= needed + BLANK) node.setSize([node.size[0], needed]);
}
