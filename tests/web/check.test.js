// Check: the answers reach their nodes, and what is said beside the button.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");
const { checkWorkflow } = await import("../../web/check.js");

beforeEach(() => {
  app.rootGraph = new Graph("root");
  app.graphToPrompt = async () => ({ output: { 1: { class_type: "TrainLoRAStage", inputs: {} } } });
});

const answer = (nodes) => {
  api.answers["/wan_train/check"] = { body: { nodes } };
};

test("each answer stands on its node, and problems are named", async () => {
  const train = app.rootGraph.add(new Node(1, "TrainLoRAStage", { lora_name: "a", stage: "high noise" }));
  const data = app.rootGraph.add(new Node(2, "DatasetFromFolder"));
  data.title = "My clips";
  answer({ 1: { text: "14B fp8: 11.2 of 12 GB", failed: false }, 2: { text: "no such folder", failed: true } });
  assert.equal(await checkWorkflow(), "To mend: My clips.");
  assert.equal(train.elements.loss_curve.querySelector(".wan-train-notes").textContent, "14B fp8: 11.2 of 12 GB");
  assert.equal(data.elements.report.textContent, "no such folder");
  assert.match(data.elements.report.className, /wan-train-failed/);
  answer({ 1: { text: "fits", failed: false }, 9: { text: "of a node that is gone", failed: false } });
  assert.equal(await checkWorkflow(), "Nothing is in the way.");
});

test("the workflow is sent as it would be queued", async () => {
  api.sent.length = 0;
  answer({});
  await checkWorkflow();
  assert.deepEqual(JSON.parse(api.sent[0].body), { prompt: { 1: { class_type: "TrainLoRAStage", inputs: {} } } });
});

test("a refusal is said beside the button", async () => {
  api.answers["/wan_train/check"] = { status: 422, body: { error: "the workflow has no training." } };
  assert.equal(await checkWorkflow(), "the workflow has no training.");
});
