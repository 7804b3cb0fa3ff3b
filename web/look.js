// The button of the dataset node that opens a page with what the model will see.

import { api } from "../../scripts/api.js";
import { allNodes, makeRoom } from "./graph.js";
import { say } from "./words.js";

const DATASET = "DatasetFromFolder";
const CAPTIONS = "CacheT5";
const FILES = ["clip_name", "name"]; // of loaders of text encoders

/**
 * Whether nodes of a class have the button.
 * @param {string} nodeClass
 */
export function hasLook(nodeClass) {
  return nodeClass === DATASET;
}

/** @param {Comfy.Node} node */
export function addLook(node) {
  const open = () => void window.open(addressOf(node), "_blank");
  const widget = node.addWidget("button", "look", "look", open, { serialize: false });
  widget.label = say("Look: what the model will see");
  widget.tooltip = say("Opens a page with every frame and caption as it is trained, and what looks wrong with it.");
  widget.serialize = false;
  makeRoom(node);
}

/**
 * The page's address. What it shows stands behind the #, so that it can be loaded again.
 * @param {Comfy.Node} node
 */
export function addressOf(node) {
  /** @type {Record<string, unknown>} */
  const settings = {};
  for (const widget of node.widgets ?? []) if (widget.serialize !== false) settings[widget.name] = widget.value;
  const { folder, ...rest } = settings;
  const wired = (node.inputs ?? [])
    .filter((input) => input.link != null && input.name in settings)
    .map(({ name }) => name);
  const shown = { folder, settings: rest, text_encoder: textEncoder(), wired };
  return `${api.apiURL("/wan_train/look")}#${encodeURIComponent(JSON.stringify(shown))}`;
}

/** The file of the text encoder that encodes captions in this workflow; undefined if it can't be told. */
function textEncoder() {
  for (const node of allNodes()) {
    if (node.comfyClass !== CAPTIONS) continue;
    const slot = (node.inputs ?? []).findIndex((input) => input.name === "clip");
    const loader = slot < 0 ? null : node.getInputNode(slot);
    const name = loader?.widgets?.find((widget) => FILES.includes(widget.name))?.value;
    if (typeof name === "string") return name;
  }
  return undefined;
}
