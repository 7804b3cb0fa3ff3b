// By what the server knows a node: a token among its properties, which is saved and queued with the workflow.

import { allNodes } from "./graph.js";

const TOKEN = "wan_node";

/**
 * A node's token; "" before it was queued.
 * @param {Comfy.Node} node
 */
export function tokenOf(node) {
  const token = node.properties?.[TOKEN];
  return typeof token === "string" ? token : "";
}

/** A token that no other node has. Over plain http browsers offer no crypto.randomUUID. */
function newToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Give a node a token when it is queued. A copy of a node drops it: the copy is a node of its own.
 * @param {Comfy.Node} node
 * @param {Comfy.OwnWidget} widget of the node
 * @param {() => void} [onDropped]
 */
export function addToken(node, widget, onDropped = () => {}) {
  for (const moment of /** @type {const} */ (["onAdded", "onConfigure"])) {
    const before = node[moment];
    node[moment] = function (/** @type {any} */ given) {
      dropCopied(node, onDropped);
      return before?.call(this, given);
    };
  }
  widget.beforeQueued = () => {
    // Into the workflow that is sent: by it the server tells us again what is this node's.
    if (!tokenOf(node)) node.setProperty(TOKEN, newToken());
  };
}

/**
 * Later, for a node that moves into a subgraph is copied, and then removed.
 * @param {Comfy.Node} node
 * @param {() => void} onDropped
 */
function dropCopied(node, onDropped) {
  setTimeout(() => {
    const token = tokenOf(node);
    const first = token && allNodes().find((other) => tokenOf(other) === token);
    if (!first || first === node || !node.graph) return;
    delete node.properties[TOKEN];
    onDropped();
  }, 0);
}
