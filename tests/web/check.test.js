// Check: the answers reach their nodes, and what is said beside the button.

import assert from "node:assert/strict";
import test, { beforeEach, mock } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");
const { AT_ONCE, PAUSE_MS, checkWorkflow } = await import("../../web/check.js");

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

/** A workflow with a training and its dataset, opened; `change` sets an input, and the page tells of it. */
function opened(t) {
  mock.timers.enable({ apis: ["setTimeout"] });
  t.after(() => mock.timers.reset());
  app.extension.setup();
  app.extensionManager.setting.get = (id) => id === AT_ONCE;
  const train = app.rootGraph.add(new Node(1, "TrainLoRAStage", { lora_name: "a", stage: "high noise" }));
  const data = app.rootGraph.add(new Node(2, "DatasetFromFolder"));
  const output = { 1: { class_type: "TrainLoRAStage", inputs: { steps: 1 } } };
  app.graphToPrompt = async () => ({ output: structuredClone(output) });
  const rest = async () => {
    mock.timers.tick(PAUSE_MS);
    await new Promise(setImmediate);
  };
  const change = (steps) => {
    output[1].inputs.steps = steps;
    api.send("graphChanged");
  };
  const words = () => train.elements.loss_curve.querySelector(".wan-train-notes").textContent;
  const beside = () => train.elements.loss_curve.querySelector(".wan-train-answer").textContent;
  return { train, data, change, rest, words, beside };
}
const asked = () => api.sent.map(({ body }) => JSON.parse(body));

test("inputs that change are checked at once, when they rest, and others are not", async (t) => {
  const { data, change, rest, words } = opened(t);
  api.sent.length = 0;
  answer({ 1: { text: "3 epochs", failed: false }, 2: { text: "no such folder", failed: true } });
  app.extension.afterConfigureGraph();
  await new Promise(setImmediate);
  api.send("graphChanged"); // a node was moved
  await rest();
  assert.deepEqual(asked(), []);
  change(2);
  change(3);
  await rest();
  const prompt = { 1: { class_type: "TrainLoRAStage", inputs: { steps: 3 } } };
  assert.deepEqual(asked(), [{ prompt, light: true }]);
  assert.equal(words(), "3 epochs");
  assert.match(data.elements.report.className, /wan-train-failed/);
  app.extensionManager.setting.get = () => false;
  change(4);
  await rest();
  assert.equal(asked().length, 1, "whoever does not want it has none");
});

test("the report of a run stays, and what goes on is left alone", async (t) => {
  const { train, change, rest, words, beside } = opened(t);
  const told = { node_id: "1", token: "", name: "a", stage: "high", run: "a_high_1", steps: 9, losses: [[9, 0.5]] };
  api.send("wan_train.update", { ...told, state: "training", asks: ["stop"], notes: "run a" });
  answer({ 1: { text: "3 epochs\ndisk: 1 GB", failed: false } });
  change(2);
  await rest();
  assert.equal(words(), "run a");
  assert.equal(beside(), "");
  assert.ok(train.elements.loss_curve.querySelector("[data-ask=check]").hidden);
  api.send("wan_train.update", { ...told, state: "finished", asks: [], notes: "finished" });
  change(3);
  await rest();
  assert.equal(words(), "finished");
  assert.equal(beside(), "3 epochs");
});

/** As `opened`, with inputs that are known. */
async function begun(t) {
  const found = opened(t);
  app.extension.afterConfigureGraph();
  await new Promise(setImmediate);
  return found;
}

test("what a person has asked for stays: a quiet check of the same inputs does not come after it", async (t) => {
  const { data, change, rest, words } = await begun(t);
  api.sent.length = 0;
  change(2);
  answer({ 1: { text: "14B fp8: 11.2 of 12 GB", failed: false } });
  await checkWorkflow();
  answer({ 1: { text: "memory and time: press Check", failed: false } });
  await rest();
  api.send("graphChanged"); // a node was moved
  await rest();
  assert.equal(asked().length, 1);
  assert.equal(words(), "14B fp8: 11.2 of 12 GB");
  assert.equal(data.elements.report.textContent, "The report appears here after a run.");
});

/** Lets the test give the next answer of a check itself. */
function late(t) {
  const fetchApi = api.fetchApi;
  t.after(() => {
    api.fetchApi = fetchApi;
  });
  let give;
  api.fetchApi = () => {
    api.fetchApi = fetchApi;
    return new Promise((resolve) => {
      give = (nodes) => resolve({ ok: true, json: async () => ({ nodes }) });
    });
  };
  return (nodes) => give(nodes);
}

test("an answer that comes late is not shown: of other inputs, of a check before, of a workflow before", async (t) => {
  const { change, rest, words } = await begun(t);
  const old = { 1: { text: "of before", failed: false } };
  let number = 10;
  for (const then of [
    async () => {
      change(3);
      await rest();
    },
    checkWorkflow,
    () => app.extension.afterConfigureGraph(),
  ]) {
    change(number++);
    const give = late(t);
    await rest();
    answer({ 1: { text: "of now", failed: false } });
    const done = then();
    give(old);
    await done;
    await rest();
    assert.notEqual(words(), "of before");
  }
});

test("an answer of inputs that have changed since is not shown, also before the next is asked for", async (t) => {
  const { change, rest, words } = await begun(t);
  change(2);
  const give = late(t);
  await rest();
  answer({ 1: { text: "of now", failed: false } });
  change(3); // the page waits until it rests
  give({ 1: { text: "of before", failed: false } });
  await new Promise(setImmediate);
  assert.notEqual(words(), "of before");
  await rest();
  assert.equal(words(), "of now");
});

test("inputs that change while the page still makes the prompt of those before are checked, too", async (t) => {
  const { change, rest, words } = await begun(t);
  const { graphToPrompt } = app;
  let go;
  app.graphToPrompt = async () => {
    app.graphToPrompt = graphToPrompt;
    const made = await graphToPrompt();
    await new Promise((resolve) => {
      go = resolve;
    });
    return made;
  };
  change(60);
  await rest();
  answer({ 1: { text: "of now", failed: false } });
  change(61);
  go();
  await new Promise(setImmediate);
  await rest();
  assert.equal(asked().at(-1).prompt[1].inputs.steps, 61);
  assert.equal(words(), "of now");
});

test("a request that nobody has asked for ends when inputs change, and when the workflow is left", async (t) => {
  const { change, rest } = await begun(t);
  let number = 20;
  for (const then of [
    async () => {
      change(number++);
      await rest();
    },
    checkWorkflow,
    () => app.extension.afterConfigureGraph(),
  ]) {
    const { fetchApi } = api;
    let signal;
    api.fetchApi = (_, request) => {
      signal = request.signal;
      api.fetchApi = fetchApi;
      return new Promise((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    };
    const warned = mock.method(console, "warn", () => {});
    change(number++);
    await rest();
    assert.equal(signal.aborted, false);
    answer({});
    await then();
    assert.equal(signal.aborted, true);
    await new Promise(setImmediate);
    assert.equal(warned.mock.callCount(), 0, "that is no failure");
    warned.mock.restore();
  }
});

test("a request goes on where a node was moved", async (t) => {
  const { change, rest, words } = await begun(t);
  const { fetchApi } = api;
  let give;
  let signal;
  api.fetchApi = (_, request) => {
    signal = request.signal;
    api.fetchApi = fetchApi;
    return new Promise((resolve) => {
      give = () => resolve({ ok: true, json: async () => ({ nodes: { 1: { text: "3 epochs", failed: false } } }) });
    });
  };
  change(40);
  await rest();
  api.send("graphChanged");
  await rest();
  assert.equal(signal.aborted, false);
  give();
  await rest();
  assert.equal(words(), "3 epochs");
});

test("what a person asked for is not shown of other inputs, nor in another workflow", async (t) => {
  const { change, rest, words } = await begun(t);
  const slow = (then) => {
    const give = late(t);
    const said = checkWorkflow();
    return new Promise(setImmediate).then(then).then(() => {
      give({ 1: { text: "of before", failed: false } });
      return said;
    });
  };
  const meanwhile = "The inputs have changed meanwhile: press Check again.";
  assert.equal(await slow(() => change(50)), meanwhile);
  assert.notEqual(words(), "of before");
  answer({ 1: { text: "of now", failed: false } });
  await rest();
  assert.equal(words(), "of now");
  assert.equal(await slow(() => app.extension.afterConfigureGraph()), meanwhile);
  assert.equal(words(), "of now");
  assert.equal(await slow(() => {}), "Nothing is in the way.");
  assert.equal(words(), "of before"); // it is of these inputs
});

test("a node of another pack that gives another value each time does not make inputs others", async (t) => {
  const { words } = await begun(t);
  let seed = 0;
  app.graphToPrompt = async () => ({
    output: {
      1: { class_type: "TrainLoRAStage", inputs: { steps: 1 } },
      7: { class_type: "Seed (another pack)", inputs: { seed: seed++ } },
    },
  });
  answer({ 1: { text: "fits", failed: false } });
  assert.equal(await checkWorkflow(), "Nothing is in the way.");
  assert.equal(words(), "fits");
});

test("an answer is shown also where a node was moved meanwhile", async (t) => {
  const { change, rest, words } = await begun(t);
  change(2);
  const give = late(t);
  await rest();
  api.send("graphChanged");
  await rest();
  give({ 1: { text: "3 epochs", failed: false } });
  await rest();
  assert.equal(words(), "3 epochs");
});

test("what was wrong goes when it is mended, also where nothing else is known yet", async (t) => {
  const { train, data, change, rest, words } = await begun(t);
  answer({ 2: { text: "no such folder", failed: true } });
  change(2);
  await rest();
  assert.match(data.elements.report.className, /wan-train-failed/);
  answer({}); // its files have not been opened
  change(3);
  await rest();
  assert.doesNotMatch(data.elements.report.className, /wan-train-failed/);
  assert.equal(data.elements.report.textContent, "The report appears here after a run.");
  answer({ 1: { text: "rank is 0", failed: true } });
  change(4);
  await rest();
  assert.equal(words(), "rank is 0");
  answer({});
  change(5);
  await rest();
  assert.equal(words(), "");
  const head = () => train.elements.loss_curve.querySelector(".wan-train-head").textContent;
  for (const sentence of ["rank is 0", "alpha is 0"]) {
    answer({ 1: { text: sentence, failed: true } });
    await checkWorkflow();
    await new Promise(requestAnimationFrame);
    assert.match(head(), new RegExp(sentence));
  }
  answer({ 1: { text: "fits", failed: false } });
  await checkWorkflow();
  await new Promise(requestAnimationFrame);
  assert.doesNotMatch(head(), /is 0/);
  assert.equal(words(), "fits");
});
