// What nodes report: below the chart of the training node, in a widget of its own on the others.

import { api } from "../../scripts/api.js";
import { addWidget } from "./graph.js";
import { AS_JSON, chartOf } from "./runs.js";
import { addToken, tokenOf } from "./tokens.js";
import { say } from "./words.js";

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
  WanMergeLoRAs: 90,
  WanChangeLoRA: 90,
  WanSplitLoRA: 90,
  WanExtractLoRA: 60,
  WanFoldLoRA: 60,
  WanCheckLoRA: 320,
  WanCompareCheckpoints: 90,
};

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
  addToken(
    node,
    addWidget(node, "report", element, () => height),
  );
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
 * @param {boolean} failed
 */
function write(element, text, failed = false) {
  element.textContent = text || say("The report appears here after a run.");
  element.className = `wan-train-report${failed ? " wan-train-failed" : text ? "" : " wan-train-empty"}`;
}

/** @param {Comfy.Node} node */
function storageKey(node) {
  return `wan_train.report/${node.graph?.id}/${node.id}/${node.comfyClass}`;
}

/**
 * What a report is of: the values of the node's widgets.
 * @param {Comfy.Node} node
 */
function valuesOf(node) {
  return JSON.stringify((node.widgets ?? []).filter((own) => own.serialize !== false).map((own) => own.value));
}

/**
 * Write a node's text. The server keeps what a run has reported, with the values that it is of; this tab also what a check
 * has. It is not in the workflow: it names files. A training's text is in the folder of its run.
 * @param {Comfy.Node} node
 * @param {string} text
 */
export function showText(node, text) {
  const report = reports.get(node);
  if (!report) {
    chartOf(node)?.say(text);
    return;
  }
  write(report, text);
  if (text) sessionStorage.setItem(storageKey(node), JSON.stringify({ values: valuesOf(node), text }));
}

/**
 * Show why a node has failed, in the place of what it reported before.
 * @param {Comfy.Node} node
 * @param {string} sentence
 */
export function showFailure(node, sentence) {
  const report = reports.get(node);
  if (report) write(report, sentence.trim(), true);
  else chartOf(node)?.fail(sentence.trim());
  dropProgressLine(node);
}

/**
 * A failure is mended: in its place what was there before, if it is still shown.
 * @param {Comfy.Node} node
 * @param {string} sentence of the failure
 */
export function dropFailure(node, sentence) {
  const report = reports.get(node);
  if (!report) chartOf(node)?.dropFailure(sentence.trim());
  else if (report.classList.contains("wan-train-failed") && report.textContent === sentence.trim()) {
    write(report, "");
    recallTexts([node]);
  }
}

/**
 * Write what is kept of each node's report, if it is of the values that the node has now: by this tab, and by the server.
 * @param {Comfy.Node[]} nodes
 */
export async function recallTexts(nodes) {
  const asked = new Map();
  for (const node of nodes) {
    const report = reports.get(node);
    if (!report || report.classList.contains("wan-train-failed")) continue;
    const kept = sessionStorage.getItem(storageKey(node));
    if (kept) writeKept(node, report, JSON.parse(kept));
    if (tokenOf(node)) asked.set(node, report.textContent);
  }
  if (!asked.size) return;
  try {
    const query = new URLSearchParams([...asked.keys()].map((node) => ["token", tokenOf(node)]));
    const answer = await api.fetchApi(`/wan_train/reports?${query}`);
    const found = answer.ok ? await answer.json() : {};
    for (const [node, shown] of asked) {
      const report = /** @type {HTMLElement} */ (reports.get(node));
      const kept = found[tokenOf(node)];
      if (kept && report.textContent === shown) writeKept(node, report, kept); // else something newer came meanwhile
    }
  } catch (error) {
    console.warn("[wan_train] the server does not tell what the nodes have reported", error);
  }
}

/**
 * @param {Comfy.Node} node
 * @param {HTMLElement} report
 * @param {{ values: string | unknown[], text: string }} kept values as JSON by this tab, as a workflow has them by the server
 */
function writeKept(node, report, { values, text }) {
  const own = typeof values === "string" ? values : JSON.stringify(values);
  if (own === valuesOf(node)) write(report, text);
}

/**
 * Have the server keep what is shown now: the host had kept it, so that the node was not executed again.
 * @param {Comfy.Node} node
 */
export function keepText(node) {
  const token = tokenOf(node);
  const text = reports.get(node)?.textContent;
  if (!token || !text) return;
  const body = JSON.stringify({ token, text, values: JSON.parse(valuesOf(node)) });
  api
    .fetchApi("/wan_train/reports", { ...AS_JSON, body })
    .catch((error) => console.warn("[wan_train] a report was not kept", error));
}

/**
 * The host's progress line has done its work when the node is finished: our own widget says the same, and more.
 * @param {Comfy.Node} node
 */
export function dropProgressLine(node) {
  const line = node.widgets?.find((widget) => widget.name === "$$node-text-preview");
  if (line) node.removeWidget?.(line);
}
