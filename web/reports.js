// What nodes report: below the chart of the training node, in a widget of its own on the others.

import { addWidget } from "./graph.js";
import { chartOf } from "./runs.js";

/** Least height of the report, by class of node; of all nodes whose report is one line it is LINE. */
const LINE = 46;
/** @type {Record<string, number>} */
const HEIGHTS = {
  DatasetFromFolder: 110,
  CaptionDataset: 110,
  JoinDatasets: 110,
  CacheLatents: 60,
  CacheT5: 60,
  LoadWanDiT: LINE,
  MergeStages: 90,
  WanLoRAFromFile: LINE,
};
const NOTHING_YET = "The report appears here after a run.";

/** @type {WeakMap<Comfy.Node, HTMLElement>} */
const reports = new WeakMap();

/**
 * Whether nodes of a class have a report.
 * @param {string} nodeClass
 */
export function hasReport(nodeClass) {
  return nodeClass in HEIGHTS;
}

/** @param {Comfy.Node} node */
export function addReport(node) {
  const element = document.createElement("div");
  reports.set(node, element);
  // The wheel scrolls a long report instead of zooming the graph.
  element.addEventListener("wheel", (event) => element.scrollHeight > element.clientHeight && event.stopPropagation());
  write(element, "");
  const height = HEIGHTS[node.comfyClass ?? ""];
  addWidget(node, "report", element, () => height);
}

/**
 * Whether it is one of our nodes that show text.
 * @param {Comfy.Node} node
 */
export function showsText(node) {
  return chartOf(node) !== undefined || reports.has(node);
}

/**
 * @param {HTMLElement} element
 * @param {string} text
 */
function write(element, text) {
  element.textContent = text || NOTHING_YET;
  element.className = text ? "wan-train-report" : "wan-train-report wan-train-empty";
}

/**
 * @param {Comfy.Node} node
 * @param {string} text
 */
function show(node, text) {
  const report = reports.get(node);
  if (report) write(report, text);
  else chartOf(node)?.say(text);
}

/** @param {Comfy.Node} node */
function storageKey(node) {
  return `wan_train.text/${node.graph?.id}/${node.id}`;
}

/**
 * Write a node's text, and keep it for a reload of this tab. It does not go into the workflow: it names files.
 * @param {Comfy.Node} node
 * @param {string} text
 */
export function showText(node, text) {
  show(node, text);
  if (text) sessionStorage.setItem(storageKey(node), text);
}

/**
 * Write what was kept of a node's text; or with `forget` drop it, where the node is another workflow's.
 * @param {Comfy.Node} node
 * @param {boolean} forget
 */
export function recallText(node, forget) {
  if (forget) sessionStorage.removeItem(storageKey(node));
  else show(node, sessionStorage.getItem(storageKey(node)) ?? "");
}

/**
 * The host's progress line has done its work when the node is finished: our own widget says the same, and more.
 * @param {Comfy.Node} node
 */
export function dropProgressLine(node) {
  const line = node.widgets?.find((widget) => widget.name === "$$node-text-preview");
  if (line) node.removeWidget?.(line);
}
