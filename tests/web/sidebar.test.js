// The list of all runs in the sidebar, and how a person is told of a run that ends.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import { fire } from "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");
const { RunList } = await import("../../web/run_list.js");
const { chosen, sizeOf } = await import("../../web/run_words.js");
app.extension.setup();
const [tab] = app.tabs;

const run = (name, more = {}) => ({
  run: `${name}_high_1`,
  name,
  stage: "high",
  state: "stopped",
  why: "",
  step: 40,
  steps: 100,
  loss: 0.2,
  held_out: null,
  seconds_per_step: 1.5,
  began: 1e9,
  changed: 1e9,
  size: 1.25e9,
  preview: null,
  can_resume: true,
  has_picture: true,
  model: "wan2.2-t2v-a14b",
  facts: [],
  asks: [],
  ...more,
});
const settle = () => new Promise((resolve) => setTimeout(resolve));
const training = (id, values, properties = {}) => {
  const node = new Node(id, "TrainLoRAStage", {
    stage: "high noise",
    lora_name: "cat",
    steps: 100,
    epochs: 3,
    ...values,
  });
  Object.assign(node.properties, properties);
  return node;
};

/** The tab with these runs, as a person opens it. */
async function open(...runs) {
  api.answers["/wan_train/runs"] = { body: { runs } };
  const room = document.createElement("div");
  document.body.replaceChildren(room);
  tab.render(room);
  const search = room.querySelector("input[type=search]");
  search.value = ""; // the tab keeps what was searched for
  fire(search, "input");
  await settle();
  tab.destroy();
  return room;
}
const press = async (room, name) => {
  room.querySelector(`[data-do=${name}]`).click();
  await settle();
};
const said = (room) => room.querySelector("[role=status]").textContent;

beforeEach(() => {
  localStorage.clear();
  app.toasts.length = 0;
  app.queued = 0;
  app.isTaken = true;
  api.sent.length = 0;
  api.answers = {};
});

test("sizes are told in their unit", () => {
  assert.deepEqual([0, 999, 1500, 25e6, 1.25e9].map(sizeOf), ["0 B", "999 B", "1.5 kB", "25 MB", "1.3 GB"]);
});

test("a search finds every word, wherever it stands, and orders are those that are chosen", () => {
  const runs = [
    run("cat", { changed: 1, held_out: 0.3, size: 1 }),
    run("Dog", { changed: 3, state: "error", why: "no memory", size: 3 }),
    run("ant", { changed: 2, stage: "low", held_out: 0.1, size: 2 }),
  ];
  const names = (search, order) => chosen(runs, search, order).map(({ name }) => name);
  assert.deepEqual(names("", "changed"), ["Dog", "ant", "cat"]);
  assert.deepEqual(names("", "name"), ["ant", "cat", "Dog"]);
  assert.deepEqual(names("", "held_out"), ["ant", "cat", "Dog"]);
  assert.deepEqual(names("", "size"), ["Dog", "ant", "cat"]);
  assert.deepEqual(names("failed MEMORY", "changed"), ["Dog"]);
  assert.deepEqual(names("low noise", "changed"), ["ant"]);
  assert.deepEqual(names("cat low", "changed"), []);
});

test("a card says what a run did, and offers what can be done with it", async () => {
  const room = await open(
    run("cat"),
    run("dog", { state: "error", why: "no memory." }),
    run("elk", { state: "training" }),
  );
  const cards = [...room.querySelectorAll("li")];
  assert.match(
    cards[0].textContent,
    /cat.*high noise, stopped.*step 40 of 100 · loss 0\.2000 · 1\.50 s a step · 1\.3 GB/,
  );
  assert.match(cards[1].textContent, /failed.*no memory\./);
  const off = (card) => [...card.querySelectorAll("button:disabled")].map((button) => button.textContent);
  assert.deepEqual(cards.map(off), [[], [], ["Resume", "Extend", "Delete"]]);
  assert.equal(cards[0].querySelector("img").getAttribute("src"), "/api/wan_train/runs/cat_high_1/picture");
  assert.match(cards[0].querySelector("button").getAttribute("aria-label"), /Open: cat, high noise/);
  const search = room.querySelector("input[type=search]");
  search.value = "nothing";
  fire(search, "input");
  assert.match(room.querySelector("ul").textContent, /No run has all these words/);
});

test("the page for a phone is found", async () => {
  const room = await open(run("cat"));
  const link = room.querySelector("a");
  assert.equal(link.textContent, "Page for a phone");
  assert.equal(link.getAttribute("href"), "/api/wan_train/watch");
});

test("a card stays the same element while its run goes on", async () => {
  const list = new RunList({ pictureOf: () => "" });
  list.set([run("cat")]);
  const card = list.list.firstChild;
  list.set([run("cat", { step: 41 })]);
  assert.equal(list.list.firstChild, card);
  assert.match(card.textContent, /step 41/);
  list.set([]);
  assert.match(list.list.textContent, /No runs yet/);
});

test("resume opens the workflow and queues it as it was", async () => {
  const room = await open(run("cat"));
  const workflow = (graph) => graph.add(training(1, {}));
  api.answers["/wan_train/runs/cat_high_1/workflow"] = {
    body: { workflow, name: "cat", stage: "high noise" },
  };
  await press(room, "resume");
  assert.equal(app.opened, "cat_high_1");
  assert.equal(app.queued, 1);
  assert.match(said(room), /goes on from its last checkpoint\.$/);
  assert.equal(app.rootGraph.nodes[0].widgets.find(({ name }) => name === "steps").value, 100);
  app.isTaken = false;
  await press(room, "resume");
  assert.match(said(room), /did not take it/);
});

test("extend makes the run's own node longer, and says what to do where it can't", async () => {
  const room = await open(run("cat"));
  const answer = (workflow) => {
    const body = { workflow, name: "cat", stage: "high noise" };
    api.answers["/wan_train/runs/cat_high_1/workflow"] = { body };
  };
  const extend = async () => {
    await press(room, "extend");
    room.querySelector("input[type=number]").value = "20";
    room.querySelector(".wan-train-run-more button").click();
    await settle();
  };
  answer((graph) => {
    graph.add(training(1, { lora_name: "cat" }));
    graph.add(training(2, { lora_name: "renamed" }, { wan_run: "cat_high_1" }));
  });
  await extend();
  const values = app.rootGraph.nodes.map((node) => node.widgets.slice(2, 4).map(({ value }) => value));
  assert.deepEqual(values, [
    [100, 3],
    [120, 0],
  ]);
  assert.match(said(room), /to step 120/);

  answer((graph) => [1, 2].map((id) => graph.add(training(id, {}))));
  await extend();
  assert.match(said(room), /can't be told from the others: set steps to 120 yourself/);

  answer((graph) => {
    graph.add(training(1, {})).inputs = [{ name: "steps", link: 5 }];
  });
  app.rootGraph = new Graph("root");
  await extend();
  assert.equal(app.queued, 1, "what needs a hand is not queued");
});

test("a run is deleted after a question that says what is lost, and not before", async () => {
  const room = await open(run("cat"));
  api.answers["/wan_train/runs/cat_high_1/about"] = { body: { path: "/x", size: 2e9, holds: "3 checkpoints" } };
  await press(room, "delete");
  assert.match(room.querySelector(".wan-train-run-more").textContent, /2\.0 GB, for good\? Lost are: 3 checkpoints/);
  assert.equal(document.activeElement.textContent, "Keep it");
  assert.equal(api.sent.length, 0);
  api.answers["/wan_train/runs/cat_high_1/delete"] = { status: 409, body: { error: "it is being trained." } };
  await press(room, "really");
  assert.equal(said(room), "it is being trained.");
  await press(room, "delete");
  api.answers["/wan_train/runs/cat_high_1/delete"] = { body: {} };
  api.answers["/wan_train/runs"] = { body: { runs: [] } };
  await press(room, "really");
  assert.equal(said(room), "cat_high_1 is deleted.");
  assert.equal(api.sent.at(-1).headers["Content-Type"], "application/json");
  assert.match(room.querySelector("ul").textContent, /No runs yet/);
});

test("what a run is trained with is shown in a table", async () => {
  const room = await open(run("cat"));
  const answer = (settings) => {
    api.answers["/wan_train/runs/cat_high_1/about"] = { body: { path: "/x", size: 1, holds: "", settings } };
  };
  answer([
    ["stage", "high"],
    ["rank", "64"],
  ]);
  await press(room, "settings");
  const cells = [...room.querySelectorAll("td")].map((cell) => cell.textContent);
  assert.deepEqual(cells, ["stage", "high", "rank", "64"]);
  assert.equal(document.activeElement.textContent, "Close");
  document.activeElement.click();
  assert.ok(room.querySelector(".wan-train-run-more").hidden);
  answer([]);
  await press(room, "settings");
  assert.match(said(room), /can't be read: its job\.json is damaged/);
  assert.equal(room.querySelectorAll("td").length, 0);
});

test("two runs are compared in a table", async () => {
  const room = await open(run("cat"), run("dog"));
  const [one, other] = room.querySelectorAll("[data-do=compare]");
  const found = [{ name: "adapter.rank", one: 16, other: null }];
  api.answers["/wan_train/compare?one=cat_high_1&other=dog_high_1"] = { body: { differences: found } };
  one.click();
  assert.match(said(room), /Press Compare on the run that cat/);
  other.click();
  await settle();
  const cells = [...room.querySelectorAll("td")].map((cell) => cell.textContent);
  assert.deepEqual(cells, ["adapter.rank", "16", "off"]);
});

test("keys go from card to card and fold what is open; the graph gets none of them", async () => {
  const room = await open(run("cat"), run("dog"));
  let reached = 0;
  document.body.addEventListener("keydown", () => (reached += 1));
  const [first, second] = room.querySelectorAll("li");
  first.focus();
  fire(first, "keydown", { key: "ArrowDown" });
  assert.equal(document.activeElement, second);
  second.querySelector("[data-do=extend]").click();
  fire(second.querySelector("input"), "keydown", { key: "Escape" });
  assert.ok(second.querySelector(".wan-train-run-more").hidden);
  assert.equal(document.activeElement, second);
  assert.equal(reached, 0);
});

test("the tab's title carries percent and name, and the page's own comes back", async () => {
  document.title = "first";
  const told = { node_id: "9", token: "", name: "cat", stage: "high", run: "cat_high_1", steps: 200, line: "" };
  api.send("wan_train.update", { ...told, state: "training", losses: [[50, 0.5]] });
  assert.equal(document.title, "25% cat - ComfyUI");
  document.title = "second"; // the page writes its own
  await settle();
  assert.equal(document.title, "25% cat - ComfyUI");
  api.send("wan_train.update", { ...told, state: "paused", losses: [] });
  assert.equal(document.title, "paused cat - ComfyUI");
  assert.deepEqual(app.toasts, []);
  api.send("wan_train.update", { ...told, state: "finished", losses: [] });
  assert.equal(document.title, "second");
  assert.deepEqual(
    app.toasts.map(({ severity, summary }) => [severity, summary]),
    [["success", "cat is trained"]],
  );
  api.send("wan_train.update", { ...told, state: "finished", losses: [] });
  assert.equal(app.toasts.length, 1, "once");
  api.send("wan_train.update", { ...told, state: "training", losses: [[60, 0.5]] });
  api.send("reconnecting");
  assert.equal(document.title, "second");
  api.send("wan_train.update", { ...told, state: "waiting", losses: [] });
  api.send("status", { exec_info: { queue_remaining: 1 } });
  assert.equal(document.title, "0% cat - ComfyUI");
  api.send("status", { exec_info: { queue_remaining: 0 } });
  assert.equal(document.title, "second");
});

test("a failure is told, and stays; notifications are sent where they are wanted alone", () => {
  const sent = [];
  class Notification {
    static permission = "granted";
    constructor(title, options) {
      sent.push([title, options.body]);
    }
  }
  Object.assign(globalThis, { Notification });
  window.Notification = Notification;
  const told = { node_id: "9", token: "", name: "cat", stage: "high", run: "cat_high_1", steps: 200, losses: [] };
  const fail = () => {
    api.send("wan_train.update", { ...told, state: "training", line: "" });
    api.send("wan_train.update", { ...told, state: "error", line: "no memory." });
  };
  fail();
  assert.deepEqual(app.toasts, [
    { severity: "error", summary: "cat has failed", detail: "no memory.", life: undefined },
  ]);
  assert.deepEqual(sent, []);
  app.extensionManager.setting.get = (id) => id === "WanTrain.Notify";
  fail();
  assert.deepEqual(sent, [["cat has failed", "no memory."]]);
  window.Notification = globalThis.Notification = class {
    static permission = "granted";
    constructor() {
      throw new TypeError("Illegal constructor");
    }
  };
  fail();
  assert.equal(app.toasts.length, 3, "a browser without them loses the notification alone");
});
