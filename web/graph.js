// Nodes of the open workflow, and widgets of our own on them.

import { app } from "../../scripts/app.js";

const CATEGORY = "training/Wan"; // of our nodes, in the menu

/** @returns {Comfy.Graph | undefined} the open workflow's graph; older pages have it under another name */
function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/**
 * The node with an execution id such as "12" or, inside subgraphs, "3:7:12"; undefined if it is not in this graph.
 * @param {string | number} id
 */
export function nodeByExecutionId(id) {
  const parts = String(id).split(":");
  /** @type {{ getNodeById(id: string): unknown } | undefined} */
  let graph = rootGraph();
  for (const part of parts.slice(0, -1)) {
    const node = /** @type {{ subgraph?: Comfy.Graph } | null | undefined} */ (graph?.getNodeById(part));
    graph = node?.subgraph;
  }
  return /** @type {Comfy.Node | undefined} */ (graph?.getNodeById(parts[parts.length - 1]) ?? undefined);
}

/**
 * The node with a locator id: "12" in the root graph, "<uuid of the subgraph>:12" in a subgraph.
 * @param {string} id
 */
export function nodeByLocatorId(id) {
  const parts = id.split(":");
  const root = rootGraph();
  const graph = parts.length === 1 ? root : root?.subgraphs?.get(parts[0]);
  return /** @type {Comfy.Node | undefined} */ (graph?.getNodeById(parts[parts.length - 1]) ?? undefined);
}

/**
 * All nodes of the open workflow, those of its subgraphs too.
 * @returns {Comfy.Node[]}
 */
export function allNodes() {
  const root = rootGraph();
  const graphs = root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
  return graphs.flatMap((graph) => /** @type {Comfy.Node[]} */ (graph.nodes ?? []));
}

/**
 * Whether a node is of this pack.
 * @param {Comfy.Node} node
 */
export function isOurs(node) {
  return /** @type {{ category?: string }} */ (node.constructor).category === CATEGORY;
}

/**
 * A DOM widget that is neither saved in the workflow nor sent in a prompt.
 * @param {Comfy.Node} node
 * @param {string} name
 * @param {HTMLElement} element
 * @param {() => number} height the least it needs
 * @returns {Comfy.OwnWidget}
 */
export function addWidget(node, name, element, height) {
  const widget = node.addDOMWidget(name, `wan_train_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  makeRoom(node);
  return widget;
}

/**
 * Make the node as large as its widgets need.
 * @param {Comfy.Node} node
 */
export function makeRoom(node) {
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
}
