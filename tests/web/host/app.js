// Stands in for ComfyUI's scripts/app.js: a graph of plain nodes. The real page is tried by tests/host/test_page.py.

export class Node {
  constructor(id, comfyClass, widgets = {}) {
    this.id = id;
    this.comfyClass = comfyClass;
    this.graph = app.rootGraph;
    this.properties = {};
    this.size = [200, 100];
    this.elements = {};
    this.widgets = Object.entries(widgets).map(([name, value]) => ({ name, value }));
  }

  addDOMWidget(name, type, element, options) {
    this.elements[name] = element;
    const widget = { name, type, options };
    this.widgets.push(widget);
    return widget;
  }

  addWidget(type, name, value, callback, options) {
    const widget = { type, name, value, callback, options };
    this.widgets.push(widget);
    return widget;
  }

  /** What a link leads to: a test says it. */
  getInputNode(slot) {
    return this.inputs[slot].from ?? null;
  }

  removeWidget(widget) {
    this.widgets = this.widgets.filter((other) => other !== widget);
  }

  /** As high as the DOM widgets ask for. */
  computeSize() {
    const heights = this.widgets.map((widget) => widget.options?.getMinHeight?.() ?? 20);
    return [100, heights.reduce((a, b) => a + b, 0)];
  }

  setSize(size) {
    this.size = size;
  }

  setProperty(name, value) {
    this.properties[name] = value;
  }
}

export class Graph {
  constructor(id) {
    this.id = id;
    this.nodes = [];
    this.subgraphs = new Map();
  }

  getNodeById(id) {
    return this.nodes.find((node) => String(node.id) === String(id)) ?? null;
  }

  add(node) {
    node.graph = this;
    this.nodes.push(node);
    app.extension.nodeCreated?.(node, app);
    return node;
  }
}

export const app = {
  rootGraph: new Graph("root"),
  toasts: [],
  tabs: [], // of the sidebar
  queued: 0,
  isTaken: true, // whether the server takes what is queued
  extensionManager: {
    toast: { add: (toast) => app.toasts.push(toast) },
    setting: { get: () => false },
    registerSidebarTab: (tab) => app.tabs.push(tab),
  },

  /** A test's workflow is a function that fills the graph. */
  async loadGraphData(workflow, _clean, _view, name) {
    app.rootGraph = new Graph("root");
    app.opened = name;
    workflow(app.rootGraph);
  },

  async graphToPrompt() {
    return { output: {} };
  },

  async queuePrompt() {
    app.queued += 1;
    return app.isTaken;
  },

  registerExtension(extension) {
    app.extension = extension;
  },
};
