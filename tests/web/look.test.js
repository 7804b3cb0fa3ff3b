// The button of the dataset node: where it leads, and that it goes into no workflow.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");
const { addressOf } = await import("../../web/look.js");

beforeEach(() => {
  app.rootGraph = new Graph("root");
});

const addDataset = (widgets = { folder: "input/dogs", width: 480, fps: 16 }) =>
  app.rootGraph.add(new Node(1, "DatasetFromFolder", widgets));
const asked = (node) => JSON.parse(decodeURIComponent(addressOf(node).split("#")[1]));

test("it names the folder and the settings, and no widget of ours", () => {
  const node = addDataset();
  assert.match(addressOf(node), /^\/api\/wan_train\/look#/);
  assert.deepEqual(asked(node), { folder: "input/dogs", settings: { width: 480, fps: 16 }, wired: [] });
});

test("the button goes into no workflow and no prompt", () => {
  const button = addDataset().widgets.find((widget) => widget.name === "look");
  assert.equal(button.serialize, false);
  assert.equal(button.options.serialize, false);
});

test("a value that comes over a wire is named", () => {
  const node = addDataset();
  node.inputs = [
    { name: "width", link: 7 },
    { name: "fps", link: null },
  ];
  assert.deepEqual(asked(node).wired, ["width"]);
});

test("captions are counted by the text encoder of the workflow", () => {
  const node = addDataset();
  const captions = app.rootGraph.add(new Node(2, "CacheT5"));
  const from = new Node(3, "CLIPLoader", { clip_name: "umt5.safetensors" });
  captions.inputs = [
    { name: "dataset", link: 1 },
    { name: "clip", link: 2, from },
  ];
  assert.equal(asked(node).text_encoder, "umt5.safetensors");
});

test("other nodes have no such button", () => {
  const node = app.rootGraph.add(new Node(4, "CacheLatents"));
  assert.equal(
    node.widgets.find((widget) => widget.name === "look"),
    undefined,
  );
});
