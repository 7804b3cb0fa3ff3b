// Timestep Density takes the settings of a training node.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");

const VALUES = { timestep_sampling: "logit_normal", timestep_shift: 5, boundary: 0 };

beforeEach(() => {
  app.rootGraph = new Graph("root");
  app.toasts.length = 0;
});

const valueIn = (node, name) => node.widgets.find((widget) => widget.name === name).value;
const offered = (node) => app.extension.getNodeMenuItems(node).filter(Boolean);

test("a training's values are put into the widgets of the same names", () => {
  const density = app.rootGraph.add(new Node(1, "WanTimestepDensity", { windows: "both experts", ...VALUES }));
  const train = app.rootGraph.add(
    new Node(2, "TrainLoRAStage", { lora_name: "a", ...VALUES, timestep_sampling: "uniform", timestep_shift: 3 }),
  );
  train.title = "high";
  app.rootGraph.add(new Node(3, "DatasetFromFolder"));
  const [menu] = offered(density);
  assert.equal(menu.content, "Take the settings of a training");
  assert.deepEqual(
    menu.submenu.options.map(({ content }) => content),
    ["high (2)"],
  );
  menu.submenu.options[0].callback();
  assert.deepEqual(
    density.widgets.map(({ name, value }) => [name, value]),
    [["windows", "both experts"], ...Object.entries({ ...VALUES, timestep_sampling: "uniform", timestep_shift: 3 })],
  );
  assert.equal(valueIn(train, "lora_name"), "a");
  assert.equal(app.toasts[0].detail, "2 settings were changed.");
});

test("what is wired there is left, and told", () => {
  const density = app.rootGraph.add(new Node(1, "WanTimestepDensity", VALUES));
  const train = app.rootGraph.add(new Node(2, "TrainLoRAStage", { ...VALUES, timestep_shift: 3 }));
  train.inputs = [{ name: "timestep_shift", link: 7 }];
  offered(density)[0].submenu.options[0].callback();
  assert.equal(valueIn(density, "timestep_shift"), 5);
  const [said] = app.toasts;
  assert.equal(said.severity, "warn");
  assert.equal(said.detail, "0 settings were changed. Wired there, so wire it here too: timestep_shift.");
});

test("other nodes, and a workflow without a training, are not offered it", () => {
  const density = app.rootGraph.add(new Node(1, "WanTimestepDensity", VALUES));
  assert.deepEqual(offered(density), []);
  const train = app.rootGraph.add(new Node(2, "TrainLoRAStage", VALUES));
  assert.deepEqual(offered(train), []);
});
