// Front end of ComfyUI-WanTrain: the loss chart on the training node, and what the other nodes report.
// Everything is read from the server: the page holds no state of a run that a reload could lose.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { LossChart } from "./chart.js";

const TRAIN = "TrainLoRAStage";
const CHART_HEIGHT = 190;
const PREVIEW_HEIGHT = 210; // more, once there is one
const REPORT_HEIGHT = { DatasetFromFolder: 110, CacheLatents: 60, CacheT5: 60, MergeStages: 90 };
const REPORT_LINE = 46; // of all nodes whose report is one line
const REPORTS = ["DatasetFromFolder", "CacheLatents", "CacheT5", "LoadWanDiT", "MergeStages", "WanLoRAFromFile"];
const NOTHING_YET = "The report appears here after a run.";

const charts = new WeakMap(); // node to {chart, run, fetching, missed}
const reports = new WeakMap(); // node to its element
let presets = []; // {title, description, values: {class of node: {input: value}}}
let restoring = true; // the first graph with our nodes is the one that was open before the page was reloaded

/** The node with an execution id such as "12" or, inside subgraphs, "3:7:12"; undefined if it is not in this graph. */
function nodeByExecutionId(id) {
  let graph = app.rootGraph ?? app.graph;
  const parts = String(id).split(":");
  for (const part of parts.slice(0, -1)) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(parts.at(-1)) ?? undefined;
}

/** The node with a locator id: "12" in the root graph, "<uuid of the subgraph>:12" in a subgraph. */
function nodeByLocatorId(id) {
  const parts = String(id).split(":");
  const root = app.rootGraph ?? app.graph;
  const graph = parts.length === 1 ? root : root?.subgraphs?.get(parts[0]);
  return graph?.getNodeById(parts.at(-1)) ?? undefined;
}

/** All nodes of the open workflow, those of its subgraphs too. */
function allNodes() {
  const root = app.rootGraph ?? app.graph;
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => graph.nodes ?? []);
}

/** A DOM widget that is neither saved in the workflow nor sent in a prompt. `height` gives the least it needs. */
function addWidget(node, name, element, height) {
  const widget = node.addDOMWidget(name, `wan_train_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  makeRoom(node);
}

/** Make the node as large as its widgets need. */
function makeRoom(node) {
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
}

function addChart(node) {
  const addressOf = (file) => api.apiURL(`/wan_train/runs/${encodeURIComponent(charts.get(node).run)}/previews/${file}`);
  const chart = new LossChart(addressOf, () => makeRoom(node));
  charts.set(node, { chart, run: null, fetching: false, missed: [] });
  addWidget(node, "loss", chart.element, () => CHART_HEIGHT + (chart.previews.element.hidden ? 0 : PREVIEW_HEIGHT));
}

function addReport(node) {
  const element = document.createElement("div");
  reports.set(node, element);
  // The wheel scrolls a long report instead of zooming the graph.
  element.addEventListener("wheel", (event) => element.scrollHeight > element.clientHeight && event.stopPropagation());
  showReport(node, "");
  const height = REPORT_HEIGHT[node.comfyClass] ?? REPORT_LINE;
  addWidget(node, "report", element, () => height);
}

function showReport(node, text) {
  const element = reports.get(node);
  element.textContent = text || NOTHING_YET;
  element.className = text ? "wan-train-report" : "wan-train-report wan-train-empty";
}

/** Write a node's text, and keep it for a reload of this tab. It does not go into the workflow: it names files. */
function showText(node, text, keep = true) {
  if (charts.has(node)) charts.get(node).chart.say(text);
  else showReport(node, text);
  const key = `wan_train.text/${node.graph?.id}/${node.id}`;
  if (keep && text) sessionStorage.setItem(key, text);
}

function recallText(node) {
  const key = `wan_train.text/${node.graph?.id}/${node.id}`;
  if (restoring) showText(node, sessionStorage.getItem(key) ?? "", false);
  else sessionStorage.removeItem(key);
}

/** Name the run on the node; the name is saved with the workflow, and brings the curve back. */
function setRun(node, run) {
  const entry = charts.get(node);
  if (entry.run === run) return false;
  entry.run = run;
  entry.chart.clear();
  entry.chart.say("");
  node.setProperty("wan_run", run);
  return true;
}

/** Fetch the whole history of the node's run. Updates that come in meanwhile are put on top of it. */
async function fetchRun(node) {
  const entry = charts.get(node);
  const run = entry.run;
  if (!run || entry.fetching) return;
  entry.fetching = true;
  entry.missed = [];
  try {
    const answer = await api.fetchApi(`/wan_train/runs/${encodeURIComponent(run)}`);
    if (answer.ok && entry.run === run) {
      entry.chart.set(await answer.json());
      for (const update of entry.missed) entry.chart.add(update);
    } else if (answer.status !== 404 && entry.run === run) {
      entry.chart.say((await answer.json()).error); // a sentence; 404: the run was deleted, or is another machine's
    }
  } catch (error) {
    console.warn(`[wan_train] the curve of ${run} could not be fetched`, error);
  } finally {
    entry.fetching = false;
    if (entry.run !== run) fetchRun(node);
  }
}

/** Whether a run can be this node's: events reach every open workflow, and node ids are alike in many of them. */
function isRunOf(node, run) {
  if (node.properties?.wan_run === run) return true;
  if (node.inputs?.find((input) => input.name === "lora_name")?.link != null) return true; // its value is elsewhere
  return run.startsWith(`${node.widgets?.find((widget) => widget.name === "lora_name")?.value}_`);
}

function onUpdate({ detail }) {
  const node = nodeByExecutionId(detail.node_id);
  const entry = node && charts.get(node);
  if (!entry || !isRunOf(node, detail.run)) return;
  const isNew = setRun(node, detail.run);
  if (detail.losses.length) entry.chart.say(detail.about ?? ""); // in the place of what was said of an earlier end
  entry.chart.add(detail);
  if (entry.fetching) entry.missed.push(detail);
  if (isNew) fetchRun(node);
}

/** The host's progress line has done its work when the node is finished: our own widget says the same, and more. */
function dropProgressLine(node) {
  const line = node.widgets?.find((widget) => widget.name === "$$node-text-preview");
  if (line) node.removeWidget?.(line);
}

function takeOutput(node, output) {
  if (!node || !output) return;
  const run = output.wan_run?.[0];
  if (run && charts.has(node)) {
    setRun(node, run);
    fetchRun(node); // its state has changed to finished
  }
  if (!Array.isArray(output.text) || !(charts.has(node) || reports.has(node))) return;
  showText(node, output.text.join("\n"));
  dropProgressLine(node);
}

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./wan_train.css", import.meta.url).href;
  document.head.append(link);
}

/** Put a preset's values into the widgets of all our nodes in the workflow; what it does not name stays. */
function applyPreset(preset) {
  let changed = 0;
  for (const node of allNodes()) {
    for (const [name, value] of Object.entries(preset.values[node.comfyClass] ?? {})) {
      const widget = node.widgets?.find((widget) => widget.name === name);
      if (!widget || widget.value === value) continue;
      widget.value = value;
      widget.callback?.(value);
      changed += 1;
    }
    if (preset.values[node.comfyClass]) node.setDirtyCanvas?.(true, true);
  }
  app.extensionManager?.toast?.add({
    severity: "info",
    summary: preset.title,
    detail: `${preset.description} ${changed} settings were changed.`,
    life: 8000,
  });
}

/** Fetch the presets, for the context menu of our nodes. */
async function fetchPresets() {
  try {
    const answer = await api.fetchApi("/wan_train/presets");
    if (answer.ok) presets = await answer.json();
  } catch (error) {
    console.warn("[wan_train] the presets could not be fetched", error);
  }
}

app.registerExtension({
  name: "WanTrain",

  setup() {
    addStyle();
    fetchPresets();
    api.addEventListener("wan_train.update", onUpdate);
    api.addEventListener("executed", ({ detail }) =>
      takeOutput(nodeByExecutionId(detail.display_node ?? detail.node), detail.output),
    );
    api.addEventListener("reconnected", () => {
      for (const node of allNodes()) if (charts.has(node)) fetchRun(node);
    });
  },

  getNodeMenuItems(node) {
    if (!presets.some((preset) => preset.values[node.comfyClass])) return [];
    return [
      null,
      {
        content: "WanTrain preset",
        has_submenu: true,
        submenu: {
          options: presets.map((preset) => ({ content: preset.title, callback: () => applyPreset(preset) })),
        },
      },
    ];
  },

  nodeCreated(node) {
    if (node.comfyClass === TRAIN) addChart(node);
    else if (REPORTS.includes(node.comfyClass)) addReport(node);
    else return;
    const onRemoved = node.onRemoved;
    node.onRemoved = function (...args) {
      charts.get(node)?.chart.dispose();
      return onRemoved?.apply(this, args);
    };
  },

  afterConfigureGraph() {
    const own = allNodes().filter((node) => charts.has(node) || reports.has(node));
    for (const node of own) {
      recallText(node);
      const run = charts.has(node) && node.properties?.wan_run;
      if (run) {
        charts.get(node).run = run;
        fetchRun(node);
      }
    }
    if (own.length) restoring = false;
  },

  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) takeOutput(nodeByLocatorId(id), output);
  },
});
