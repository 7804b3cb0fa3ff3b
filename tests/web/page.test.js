// What the extension does with a graph: which node shows which run, what is kept, what presets change.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import { fire, frame } from "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app, Graph, Node } = await import("./host/app.js");

const PRESETS = [
  {
    title: "Likeness",
    description: "For a face.",
    family: "t2v-a14b",
    model: "Wan 2.2 T2V A14B",
    asks: "a word",
    why: { rank: "A face has much detail." },
    values: { TrainLoRAStage: { rank: 32, unknown: 1 }, LoadWanDiT: {} },
  },
  {
    title: "Quick start",
    description: "For a small model.",
    family: "t2v-1.3b",
    model: "Wan 2.1 T2V 1.3B",
    values: { TrainLoRAStage: { rank: 64 } },
  },
];
api.answers["/wan_train/presets"] = { body: PRESETS };
await import("../../web/wan_train.js");
const { changesOf } = await import("../../web/presets.js");
app.extension.setup();

const history = (...losses) => ({ steps: 10, state: "training", line: "", losses });
const update = (node_id, run, losses, more = {}) => ({
  ...history(...losses),
  ...{ node_id, run, token: "", name: "lora", stage: "high" },
  ...more,
});
const headOf = async (node) => {
  await frame();
  return node.elements.loss_curve.querySelector(".wan-train-head").textContent;
};
const notesOf = (node) => node.elements.loss_curve.querySelector(".wan-train-notes").textContent;
/** Until answers that are there have been taken. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

beforeEach(() => {
  app.rootGraph = new Graph("root");
  app.toasts.length = 0;
  api.answers = {};
});

const addTrain = (id, name, graph = app.rootGraph) =>
  graph.add(new Node(id, "TrainLoRAStage", { stage: "high noise", lora_name: name, rank: 16 }));

test("a report comes back after a reload, an undo, and a template opened again, if it is of the node's values", () => {
  const node = app.rootGraph.add(new Node(4, "CacheLatents", { tile: 8 }));
  api.send("executed", { node: "4", output: { text: ["3 samples"] } });
  for (const [value, text] of [
    [8, /^3 samples$/],
    [16, /appears here/],
  ]) {
    app.rootGraph = new Graph("root");
    const again = app.rootGraph.add(new Node(node.id, "CacheLatents", { tile: value }));
    app.extension.afterConfigureGraph();
    assert.match(again.elements.report.textContent, text);
  }
});

test("the server knows a report by its node's token, also where this tab does not", async () => {
  const node = app.rootGraph.add(new Node(40, "MergeStages", { name: "cat", rank: 0 }));
  const other = app.rootGraph.add(new Node(41, "MergeStages", { name: "dog", rank: 0 }));
  const failed = app.rootGraph.add(new Node(42, "CacheT5"));
  for (const [one, token] of [
    [node, "a0"],
    [other, "b1"],
    [failed, "c2"],
  ])
    one.properties.wan_node = token;
  api.send("execution_error", { node_id: "42", node_type: "CacheT5", exception_message: "no encoder." });
  const body = {
    a0: { text: "cat_high_noise", values: ["cat", 0] },
    b1: { text: "of another name", values: ["fox", 0] },
    c2: { text: "3 captions", values: [] },
  };
  api.answers["/wan_train/reports?token=a0&token=b1"] = { body };
  app.extension.afterConfigureGraph();
  await settle();
  assert.equal(node.elements.report.textContent, "cat_high_noise");
  assert.match(other.elements.report.textContent, /appears here/);
  assert.equal(failed.elements.report.textContent, "no encoder.");
});

test("what is newer than the server's answer stays", async () => {
  const node = app.rootGraph.add(new Node(43, "CacheLatents"));
  node.properties.wan_node = "a3";
  let answer;
  api.answers["/wan_train/reports?token=a3"] = () => new Promise((resolve) => (answer = resolve));
  app.extension.afterConfigureGraph();
  api.sent.length = 0;
  api.send("executed", { node: "43", output: { text: ["9 samples"] } });
  assert.deepEqual(
    api.sent.map((request) => JSON.parse(request.body)),
    [{ token: "a3", text: "9 samples", values: [] }], // a node that the host did not execute again has it from the page
  );
  answer({ body: { a3: { text: "3 samples", values: [] } } });
  await settle();
  assert.equal(node.elements.report.textContent, "9 samples");
});

test("a copy of a node is another node", async () => {
  const node = app.rootGraph.add(new Node(44, "CacheLatents"));
  node.properties.wan_node = "a4";
  const copy = app.rootGraph.add(new Node(45, "CacheLatents"));
  copy.properties.wan_node = "a4";
  copy.onConfigure({});
  await new Promise((resolve) => setTimeout(resolve));
  assert.equal(node.properties.wan_node, "a4");
  assert.equal(copy.properties.wan_node, undefined);
});

test("nodes of others are left alone", () => {
  const node = app.rootGraph.add(new Node(1, "KSampler"));
  assert.deepEqual(node.elements, {});
});

test("our widgets go into no workflow and no prompt", () => {
  const node = addTrain(1, "lora");
  const widget = node.widgets.find((found) => found.name === "loss_curve");
  assert.equal(widget.serialize, false);
  assert.equal(widget.options.serialize, false);
});

test("an update goes to the node of its run alone", async () => {
  const own = addTrain(1, "lora");
  const other = addTrain(2, "else");
  api.send("wan_train.update", update("1", "lora_high_1", [[1, 0.5]]));
  api.send("wan_train.update", update("2", "lora_high_1", [[1, 0.5]]));
  assert.match(await headOf(own), /^step 1 of 10/);
  assert.match(await headOf(other), /drawn here/);
  assert.equal(own.properties.wan_run, "lora_high_1");
  assert.equal(other.properties.wan_run, undefined);
});

test("nodes inside subgraphs are found", async () => {
  const inner = new Graph("uuid");
  const node = addTrain(7, "lora", inner);
  const box = new Node(3, "uuid");
  box.subgraph = inner;
  app.rootGraph.add(box);
  app.rootGraph.subgraphs.set("uuid", inner);
  api.send("wan_train.update", update("3:7", "lora_1", [[1, 0.5]]));
  assert.match(await headOf(node), /^step 1/);
  app.extension.onNodeOutputsUpdated({ "uuid:7": { text: ["done"], wan_run: ["lora_1"] } });
  assert.equal(notesOf(node), "done");
});

test("what came in while the history was fetched is put on top of it", async () => {
  const node = addTrain(1, "lora");
  let answer;
  api.answers["/wan_train/runs/lora_1"] = () => new Promise((resolve) => (answer = resolve));
  api.send("wan_train.update", update("1", "lora_1", [[5, 0.5]]));
  api.send("wan_train.update", update("1", "lora_1", [[6, 0.4]]));
  answer({ body: history([1, 0.9], [5, 0.5]) });
  await settle();
  assert.match(await headOf(node), /^step 6/);
});

test("a run is known by the token that its node was queued with, whatever it is called now", async () => {
  const node = addTrain(1, "my");
  const widget = node.widgets.find((found) => found.name === "loss_curve");
  widget.beforeQueued();
  const token = node.properties.wan_node;
  widget.beforeQueued();
  assert.match(token, /^[0-9a-f]{32}$/);
  assert.equal(node.properties.wan_node, token);
  api.send("wan_train.update", update("1", "my_high_1", [[1, 0.5]], { token: "another", name: "my" }));
  assert.match(await headOf(node), /drawn here/);
  node.widgets.find((found) => found.name === "lora_name").value = "renamed";
  api.send("wan_train.update", update("1", "my_high_1", [[1, 0.5]], { token, name: "my" }));
  assert.match(await headOf(node), /^step 1/);
});

test("what is shown goes on, from whichever page it was queued", async () => {
  const node = addTrain(1, "my");
  node.properties.wan_node = "own";
  api.answers["/wan_train/shown?token=own&name=my&stage=high+noise"] = { body: { run: "my_high_1" } };
  app.extension.afterConfigureGraph();
  await settle();
  api.send("wan_train.update", update("1", "my_high_1", [[7, 0.5]], { token: "another", name: "my" }));
  assert.match(await headOf(node), /^step 7/);
});

test("without a token the whole name and the stage must be the same", async () => {
  const node = addTrain(1, "my");
  api.send("wan_train.update", update("1", "my_lora_high_1", [[1, 0.5]], { name: "my_lora" }));
  api.send("wan_train.update", update("1", "my_low_1", [[1, 0.5]], { name: "my", stage: "low" }));
  assert.match(await headOf(node), /drawn here/);
  api.send("wan_train.update", update("1", "my_high_1", [[1, 0.5]], { name: "my" }));
  assert.match(await headOf(node), /^step 1/);
});

test("a run that is not there is no error, and any other answer is a sentence", async () => {
  const node = addTrain(1, "lora");
  api.answers["/wan_train/shown?name=lora&stage=high+noise"] = { body: { run: "gone_1" } };
  app.extension.afterConfigureGraph();
  await settle();
  assert.equal(notesOf(node), "");
  api.answers["/wan_train/runs/gone_1"] = { status: 500, body: { error: "events.jsonl can't be read." } };
  api.send("reconnected");
  await settle();
  assert.equal(notesOf(node), "events.jsonl can't be read.");
});

test("a graph that is opened asks which run each node shows, and shows it with its pictures, notes and buttons", async () => {
  const node = addTrain(1, "any");
  Object.assign(node.properties, { wan_run: "lora 0", wan_node: "t" });
  api.answers["/wan_train/shown?token=t&run=lora+0&name=any&stage=high+noise"] = { body: { run: "lora 1" } };
  const told = { previews: [[2, "2.webp"]], notes: "- a warning", asks: ["stop"] };
  api.answers["/wan_train/runs/lora%201"] = { body: { ...history([1, 0.5], [2, 0.4]), ...told } };
  app.extension.afterConfigureGraph();
  await settle();
  assert.match(await headOf(node), /^step 2/);
  assert.equal(notesOf(node), "- a warning");
  const picture = node.elements.loss_curve.querySelector("img");
  assert.equal(picture.getAttribute("src"), "/api/wan_train/runs/lora%201/previews/2.webp");
  assert.ok(node.size[1] >= 240 + 210, "the node has room for chart and preview");
  assert.equal(node.properties.wan_run, "lora 0", "looking changes no workflow");
  api.answers["/wan_train/runs/lora%201/ask/stop"] = { status: 409, body: { error: "not now." } };
  node.elements.loss_curve.querySelector("[data-ask=stop]").click();
  await settle();
  assert.equal(node.elements.loss_curve.querySelector(".wan-train-answer").textContent, "not now.");
});

test("a node that fails shows its sentence in the place of its old report", async () => {
  const node = app.rootGraph.add(new Node(4, "CacheLatents"));
  api.send("executed", { node: "4", output: { text: ["3 samples"] } });
  const train = addTrain(5, "lora");
  const failure = { node_id: "4", node_type: "CacheLatents", exception_message: "the VAE is not a Wan VAE.\n" };
  api.send("execution_error", { ...failure, node_type: "KSampler" }); // of another workflow
  assert.equal(node.elements.report.textContent, "3 samples");
  api.send("execution_error", failure);
  assert.equal(node.elements.report.textContent, "the VAE is not a Wan VAE.");
  assert.ok(node.elements.report.classList.contains("wan-train-failed"));
  api.send("execution_error", { node_id: "5", node_type: "TrainLoRAStage", exception_message: "no VAE." });
  assert.match(await headOf(train), /^failed: no VAE\./);
});

test("a report is shown, and the host's progress line goes", () => {
  const node = app.rootGraph.add(new Node(4, "CacheLatents"));
  node.widgets.push({ name: "$$node-text-preview" });
  assert.match(node.elements.report.textContent, /appears here/);
  api.send("executed", { node: "4", output: { text: ["3 samples", "1 dropped"] } });
  assert.equal(node.elements.report.textContent, "3 samples\n1 dropped");
  assert.ok(!node.widgets.some((widget) => widget.name === "$$node-text-preview"));
});

test("a preset changes the values it names and says how many", async () => {
  const node = addTrain(1, "lora");
  let called;
  node.widgets.find((widget) => widget.name === "rank").callback = (value) => (called = value);
  const [gap, item] = app.extension.getNodeMenuItems(node);
  assert.equal(gap, null);
  await item.submenu.options[0].callback();
  assert.equal(node.widgets.find((widget) => widget.name === "rank").value, 32);
  assert.equal(called, 32);
  assert.match(app.toasts[0].detail, /1 setting was changed/);
  assert.deepEqual(app.extension.getNodeMenuItems(new Node(2, "KSampler")), []);
});

const recipes = () => document.querySelector(".wan-train-recipes");
const press = (node) => node.widgets.find((widget) => widget.name === "recipes").callback();
const button = (label) => [...recipes().querySelectorAll("button")].find((made) => made.textContent === label);

test("the button shows what a recipe changes and why, and one that is used changes it", async () => {
  const node = addTrain(1, "lora");
  addTrain(2, "other");
  await press(node);
  assert.match(recipes().textContent, /For a face\..*You give: a word\./);
  const rows = [...recipes().querySelectorAll("tr")].map((row) => [...row.children].map((cell) => cell.textContent));
  assert.deepEqual(rows.slice(1), [["rank", "16", "32", "A face has much detail."]]); // one line for both nodes
  button("Use this recipe").click();
  assert.equal(recipes(), null);
  assert.deepEqual(
    app.rootGraph.nodes.map((train) => train.widgets.find((widget) => widget.name === "rank").value),
    [32, 32],
  );
  node.widgets.find((widget) => widget.name === "rank").value = 8; // what is changed later stays
  await press(node);
  assert.equal(recipes().querySelectorAll("tr").length, 2);
  button("Cancel").click();
  assert.equal(node.widgets.find((widget) => widget.name === "rank").value, 8);
});

test("a double click on the button opens one window, and so do two nodes", async () => {
  const nodes = [addTrain(1, "lora"), addTrain(2, "other")];
  addTrain(3, "loader");
  const windows = () => document.querySelectorAll(".wan-train-recipes").length;
  await Promise.all([press(nodes[0]), press(nodes[0])]);
  assert.equal(windows(), 1);
  await press(nodes[1]);
  assert.equal(windows(), 1);
  button("Cancel").click();
  await Promise.all([press(nodes[0]), press(nodes[1])]);
  assert.equal(windows(), 1);
  button("Cancel").click();
  await press(nodes[0]); // it opens again
  assert.equal(windows(), 1);
  button("Cancel").click();
  assert.equal(windows(), 0);
});

test("the window of recipes does not open over another workflow", async () => {
  const opening = press(addTrain(1, "lora"));
  app.rootGraph = new Graph("other");
  await opening;
  assert.equal(recipes(), null);
});

test("the window of recipes closes with Escape, and keys do not reach the graph", async () => {
  let reached = 0;
  const count = () => (reached += 1);
  document.body.addEventListener("keydown", count);
  await press(addTrain(1, "lora"));
  fire(recipes(), "keydown", { key: "Delete" });
  assert.ok(recipes());
  fire(recipes(), "keydown", { key: "Escape" });
  assert.equal(recipes(), null);
  fire(document.body, "keydown", { key: "a" });
  assert.equal(reached, 1);
  document.body.removeEventListener("keydown", count);
});

const SMALL = "wan2.1_t2v_1.3B_fp16.safetensors";
const ofSmall = (families) => {
  api.answers[`/wan_train/families?name=${SMALL}`] = { body: { [SMALL]: families } };
};

test("the recipes for the workflow's model come first, and another one is not used", async () => {
  ofSmall({ "t2v-1.3b": "Wan 2.1 T2V 1.3B" });
  const node = addTrain(1, "lora");
  app.rootGraph.add(new Node(2, "LoadWanDiT", { model_name: SMALL }));
  await press(node);
  const select = recipes().querySelector("select");
  assert.deepEqual(
    [...select.querySelectorAll("optgroup")].map((group) => [group.label, group.textContent]),
    [
      ["For Wan 2.1 T2V 1.3B", "Quick start"],
      ["For Wan 2.2 T2V A14B", "Likeness"],
    ],
  );
  assert.match(recipes().textContent, /For a small model/); // and not the one that was looked at last
  assert.equal(button("Use this recipe").disabled, false);
  select.value = "0";
  fire(select, "change");
  assert.match(
    recipes().textContent,
    /This recipe is for Wan 2\.2 T2V A14B\. wan2\.1_t2v_1\.3B_fp16\.safetensors is Wan 2\.1 T2V 1\.3B/,
  );
  assert.equal(recipes().querySelectorAll("tr").length, 0);
  assert.equal(button("Use this recipe").disabled, true);
  button("Cancel").click();

  const [, item] = app.extension.getNodeMenuItems(node);
  assert.equal(item.submenu.options[0].content, "Likeness (Wan 2.2 T2V A14B)");
  await item.submenu.options[0].callback();
  assert.match(app.toasts[0].detail, /is Wan 2\.1 T2V 1\.3B/);
  assert.equal(node.widgets.find((widget) => widget.name === "rank").value, 16);
  await item.submenu.options[1].callback();
  assert.equal(node.widgets.find((widget) => widget.name === "rank").value, 64);
});

test("where the model is not known every recipe can be used; one that is off or comes over a wire does not count", async () => {
  const node = addTrain(1, "lora");
  const model = app.rootGraph.add(new Node(2, "LoadWanDiT", { model_name: SMALL }));
  const refused = async () => {
    await press(node);
    const is = button("Use this recipe").disabled;
    button("Cancel").click();
    return is;
  };
  ofSmall({});
  assert.equal(await refused(), false);
  ofSmall({ other: "" }); // a miniature
  assert.equal(await refused(), true);
  await press(node);
  assert.match(recipes().textContent, /is a model of another size, and no recipe is for that\./);
  button("Cancel").click();
  model.mode = 4;
  assert.equal(await refused(), false);
  model.mode = 0;
  model.inputs = [{ name: "model_name", link: 7 }];
  assert.equal(await refused(), false);
});

test("without a VAE no previews are asked for", () => {
  const preset = { title: "p", description: "", values: { TrainLoRAStage: { preview_every: 250, rank: 4 } } };
  const node = app.rootGraph.add(new Node(1, "TrainLoRAStage", { preview_every: 0, rank: 16 }));
  node.inputs = [{ name: "vae", link: null }];
  assert.deepEqual(
    changesOf(preset).map((change) => change.name),
    ["rank"],
  );
  node.inputs[0].link = 7;
  assert.deepEqual(
    changesOf(preset).map((change) => change.name),
    ["preview_every", "rank"],
  );
});

test("the button is not saved with the workflow", () => {
  const widget = addTrain(1, "lora").widgets.find((widget) => widget.name === "recipes");
  assert.equal(widget.serialize, false);
  assert.equal(widget.options.serialize, false);
});

test("a workflow of an earlier version shows today's words", () => {
  const node = app.rootGraph.add(new Node(3, "LoadWanDiT", { checkpointing: false, stream_from: "pinned" }));
  app.extension.loadedGraphNode(node);
  assert.deepEqual(
    node.widgets.slice(0, 2).map((widget) => widget.value),
    ["off", "auto"],
  );
});

test("a node that is removed still does what it did before", () => {
  const node = new Node(1, "TrainLoRAStage", { lora_name: "lora" });
  let removed = 0;
  node.onRemoved = () => (removed += 1);
  app.rootGraph.add(node);
  node.onRemoved();
  assert.equal(removed, 1);
});
