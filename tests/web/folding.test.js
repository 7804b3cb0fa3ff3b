// Folding: what is hidden, what the button says, and what a copy of a training keeps.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");

class OwnNode extends Node {
  static category = "training/Wan";

  constructor(id, comfyClass, widgets, advanced) {
    super(id, comfyClass, widgets);
    this.inputs = [];
    for (const widget of this.widgets) widget.options = { advanced: advanced.includes(widget.name) };
  }

  computeSize() {
    return [100, 20 + 24 * this.widgets.filter((widget) => !widget.hidden).length];
  }
}

const add = (more = {}) =>
  app.rootGraph.add(new OwnNode(1, "WanLoadUMT5", { name: "a", x: 1, y: 2, ...more }, ["x", "y"]));
const named = (node, name) => node.widgets.find((widget) => widget.name === name);
const shown = (node) => node.widgets.filter((widget) => !widget.hidden).map((widget) => widget.name);

beforeEach(() => {
  app.rootGraph = new Graph("root");
  app.extensionManager.setting = { get: () => false };
});

test("advanced inputs fold behind a button that counts them, and keep their values", () => {
  const node = add();
  assert.deepEqual(shown(node), ["name", "show_advanced"]);
  assert.equal(named(node, "show_advanced").label, "Show advanced (2)");
  assert.equal(named(node, "show_advanced").serialize, false);
  assert.equal(named(node, "show_advanced").options.canvasOnly, true);
  node.setSize([100, 300]);
  named(node, "show_advanced").callback();
  assert.deepEqual(shown(node), ["name", "x", "y", "show_advanced"]);
  assert.equal(named(node, "show_advanced").label, "Hide advanced");
  assert.equal(node.size[1], 348);
  assert.equal(node.showAdvanced, true);
  named(node, "show_advanced").callback();
  assert.equal(node.size[1], 300);
  assert.deepEqual([named(node, "x").value, named(node, "y").value], [1, 2]);
});

test("what the host puts below a seed folds with it", () => {
  const control = { name: "fixed", value: "fixed" };
  const node = new OwnNode(1, "WanLoadUMT5", { name: "a", x: 1 }, ["x"]);
  named(node, "x").linkedWidgets = [control];
  node.widgets.push(control);
  app.rootGraph.add(node);
  assert.deepEqual(shown(node), ["name", "show_advanced"]);
  named(node, "show_advanced").callback();
  assert.deepEqual(shown(node), ["name", "x", "fixed", "show_advanced"]);
  assert.equal(control.label, "control_after_generate");
});

test("an input with a wire stays, and so does all with ComfyUI's own setting", () => {
  const node = add();
  node.inputs = [{ name: "x", widget: { name: "x" }, link: 3 }];
  assert.deepEqual(shown(node), ["name", "x", "show_advanced"]);
  assert.equal(named(node, "show_advanced").label, "Show advanced (1)");
  app.extensionManager.setting = { get: () => true };
  assert.deepEqual(shown(node), ["name", "x", "y"]);
});

test("a node saved with all inputs shown loses the blank part; what was saved since keeps its height", () => {
  const node = add();
  const fitting = node.computeSize()[1];
  node.setSize([100, fitting + 24 * 20]);
  app.extension.loadedGraphNode(node);
  assert.equal(node.size[1], fitting);
  node.setSize([100, fitting + 100]); // somebody wants a larger chart
  app.extension.loadedGraphNode(node);
  assert.equal(node.size[1], fitting + 100);
  const saved = { properties: { other: 1 } };
  node.onSerialize(saved);
  assert.equal(saved.properties.other, 1);
  node.properties = saved.properties;
  node.setSize([100, fitting + 1000]);
  app.extension.loadedGraphNode(node);
  assert.equal(node.size[1], fitting + 1000);
});

test("nodes of others, and those with nothing advanced, have no button", () => {
  assert.deepEqual(shown(app.rootGraph.add(new OwnNode(2, "WanLoadUMT5", { name: "a" }, []))), ["name"]);
  const other = new Node(3, "KSampler", { x: 1 });
  other.widgets[0].options = { advanced: true };
  assert.deepEqual(shown(app.rootGraph.add(other)), ["x"]);
});

test("a copy of a training has no run of its own", async () => {
  const add = (id) => app.rootGraph.add(new Node(id, "TrainLoRAStage", { stage: "high noise", lora_name: "a" }));
  const [node, copy] = [add(1), add(2)];
  node.properties = { wan_node: "t", wan_run: "a_high_1" };
  copy.properties = { ...node.properties };
  for (const one of [node, copy]) one.onConfigure({});
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(node.properties, { wan_node: "t", wan_run: "a_high_1" });
  assert.deepEqual(copy.properties, {});
});

test("a node with many advanced inputs shows one part of them at a time", () => {
  const names = [...Array(70).keys()].map((number) => `w${number}`);
  class Large extends OwnNode {
    static nodeData = {
      input: {
        optional: Object.fromEntries(
          names.map((name, index) => [name, ["INT", { wan_train_part: index < 40 ? "noise" : "adapter" }]]),
        ),
      },
    };
  }
  const values = Object.fromEntries(names.map((name) => [name, 0]));
  const node = app.rootGraph.add(new Large(3, "WanLoadUMT5", { name: "a", ...values }, names));
  assert.deepEqual(shown(node), ["name", "show_advanced"]);
  assert.equal(named(node, "show_advanced").label, "Show advanced (70)");
  const height = node.size[1];
  named(node, "show_advanced").callback();
  assert.deepEqual(shown(node), ["name", "show_advanced", "show_noise", "show_adapter"]);
  assert.equal(named(node, "show_adapter").label, "▸ LoRA (30)");
  named(node, "show_adapter").callback();
  assert.equal(named(node, "show_adapter").label, "▾ LoRA (30)");
  assert.deepEqual(shown(node), ["name", ...names.slice(40), "show_advanced", "show_noise", "show_adapter"]);
  named(node, "show_noise").callback();
  assert.deepEqual(shown(node), ["name", ...names.slice(0, 40), "show_advanced", "show_noise", "show_adapter"]);
  named(node, "show_noise").callback(); // once more folds it
  assert.deepEqual(shown(node), ["name", "show_advanced", "show_noise", "show_adapter"]);
  named(node, "show_advanced").callback();
  assert.equal(node.size[1], height);
});

test("Nodes 2.0, which looks at a widget's options and has a button of its own, shows the same part", () => {
  const names = [...Array(70).keys()].map((number) => `w${number}`);
  const parts = Object.fromEntries(
    names.map((name, index) => [name, ["INT", { wan_train_part: index < 40 ? "noise" : "adapter" }]]),
  );
  class Large extends OwnNode {
    static nodeData = { input: { optional: parts } };
  }
  const node = app.rootGraph.add(
    new Large(4, "WanLoadUMT5", Object.fromEntries(names.map((name) => [name, 0])), names),
  );
  // As ComfyUI's page decides it of each widget.
  const isSeen = ({ options, name }) => {
    const isLinked = node.inputs.some((input) => input.widget?.name === name && input.link != null);
    return !options.canvasOnly && !options.hidden && (!options.advanced || node.showAdvanced || isLinked);
  };
  const seen = () => node.widgets.filter(isSeen).map(({ name }) => name);
  assert.deepEqual(seen(), []);
  node.inputs = [{ name: "w3", widget: { name: "w3" }, link: 3 }];
  assert.deepEqual(seen(), ["w3"]);
  node.showAdvanced = true; // its own button
  assert.deepEqual(seen(), ["w3", "show_noise", "show_adapter"]);
  named(node, "show_adapter").callback();
  assert.deepEqual(seen(), ["w3", ...names.slice(40), "show_noise", "show_adapter"]);
  node.properties = { wan_train_part: "noise" }; // as a workflow brings it
  node.onConfigure({});
  assert.deepEqual(seen(), [...names.slice(0, 40), "show_noise", "show_adapter"]);
  assert.equal(named(node, "show_noise").label, "▾ Noise levels and loss (40)");
  app.extensionManager.setting = { get: () => true };
  assert.deepEqual(seen(), names);
});
