// Folds the advanced inputs of our nodes. ComfyUI's classic renderer would show them all; Nodes 2.0 has a button of its own for
// them, and of a node with many both show one part at a time.
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
 * What the host puts beside a widget: below a seed, what becomes of it after a run.
 * @param {Comfy.Widget} widget
 * @returns {(Comfy.Widget & { label?: string })[]}
 */
const linkedTo = (widget) => /** @type {any} */ (widget).linkedWidgets ?? [];

/** Parts of a node's many advanced inputs, of which one at a time is shown: what their buttons say. */
const PARTS = {
  noise: () => say("Noise levels and loss"),
  adapter: () => say("LoRA"),
  optimizer: () => say("Optimizer"),
  keep: () => say("EMA, keep what the model knows"),
  further: () => say("TREAD, rollout, CREPA"),
  rhythm: () => say("Steps, checkpoints, device"),
  previews: () => say("Previews"),
  around: () => say("Logs, several GPUs"),
};
const FEW = 60; // inputs that are shown at once
const OPEN = "wan_train_part"; // of an input: its part; among a node's properties: the one that is shown

/**
 * The part that a widget is of.
 * @param {Comfy.Node} node
 * @param {Comfy.Widget} widget
 * @returns {keyof typeof PARTS | undefined}
 */
function partOf(node, widget) {
  const inputs = /** @type {any} */ (node.constructor).nodeData?.input ?? {};
  const found = inputs.optional?.[widget.name] ?? inputs.required?.[widget.name];
  return found?.[1]?.[OPEN];
}

const showsAlways = () => Boolean(app.extensionManager?.setting?.get(ALWAYS));

/**
 * Whether a widget is folded away now. One with a wire stays: the wire ends at it.
 * @param {Comfy.Node} node
 * @param {Comfy.Widget} widget
 * @param {string | undefined} part
 */
function isFolded(node, widget, part) {
  if (showsAlways()) return false;
  if (node.showAdvanced && (!part || node.properties?.[OPEN] === part)) return false;
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
  const hasParts = advanced.length > FEW;
  for (const widget of advanced) {
    const isHidden = widget.hidden === true; // by the host, for a reason of its own
    const part = hasParts ? partOf(node, widget) : undefined;
    compute(widget, "hidden", () => isHidden || isFolded(node, widget, part));
    for (const linked of linkedTo(widget)) {
      compute(linked, "hidden", () => isHidden || isFolded(node, widget, part));
      linked.label = "control_after_generate"; // the host calls it by its value, where that is given
    }
    if (part) foldModern(widget, () => Boolean(node.showAdvanced) && isFolded(node, widget, part));
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
  compute(button, "hidden", showsAlways);
  if (hasParts) addParts(node, advanced);
  const serialized = node.onSerialize;
  node.onSerialize = function (saved) {
    serialized?.call(this, saved);
    saved.properties = { ...saved.properties, [FOLDS]: true };
  };
  fitHeight(node);
}

/**
 * Hide a widget from Nodes 2.0, which looks at its options. What hides it there for a reason of the host's stays so.
 * @param {Comfy.Widget} widget
 * @param {() => boolean} isHidden
 */
function foldModern(widget, isHidden) {
  const { options } = /** @type {{ options: { hidden?: boolean } }} */ (widget);
  const isHiddenByHost = options.hidden === true;
  compute(options, "hidden", () => isHiddenByHost || isHidden());
}

/**
 * A button for each part, which shows it in the place of the one that is shown. They are there while the node is unfolded.
 * @param {Comfy.Node} node
 * @param {Comfy.Widget[]} advanced
 */
function addParts(node, advanced) {
  /** @type {(() => void)[]} */
  const labels = [];
  for (const [part, title] of Object.entries(PARTS)) {
    const count = advanced.filter((widget) => partOf(node, widget) === part).length;
    if (!count) continue;
    const button = node.addWidget("button", `show_${part}`, "", () => open(node, part), { serialize: false });
    button.serialize = false;
    // Nodes 2.0 shows it with the others, when they are unfolded; its side panel lists inputs alone.
    Object.assign(/** @type {any} */ (button).options, { advanced: true, hideInPanel: true });
    compute(button, "hidden", () => !node.showAdvanced || showsAlways());
    foldModern(/** @type {Comfy.Widget} */ (button), showsAlways);
    labels.push(() => {
      button.label = `${node.properties?.[OPEN] === part ? "▾" : "▸"} ${title()} (${count})`;
    });
  }
  const write = () => {
    for (const label of labels) label(); // Nodes 2.0 draws a node anew when a label changes
  };
  const configured = node.onConfigure;
  node.onConfigure = function (saved) {
    configured?.call(this, saved);
    write();
  };
  writers.set(node, write);
  write();
}

/** @type {WeakMap<Comfy.Node, () => void>} */
const writers = new WeakMap(); // write the labels of a node's parts

/**
 * @param {Comfy.Node} node
 * @param {string} part is shown; pressed again, it is folded
 */
function open(node, part) {
  change(node, () => {
    node.properties = { ...node.properties, [OPEN]: node.properties?.[OPEN] === part ? "" : part };
    writers.get(node)?.();
  });
}

/**
 * Show what is folded, or fold it again.
 * @param {Comfy.Node} node
 */
function toggle(node) {
  change(node, () => {
    node.showAdvanced = !node.showAdvanced;
  });
}

/**
 * What is below the widgets, a chart or a report, keeps its height.
 * @param {Comfy.Node} node
 * @param {() => void} act shows or hides inputs
 */
function change(node, act) {
  const before = node.computeSize()[1];
  act();
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
