// Setups of other trainers on the page: which dropped files are taken, what is sent, opened and shown.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app } = await import("./host/app.js");
const { importFiles, isSetup, listenForDrops, textOf } = await import("../../web/imports.js");

const file = (name, text = "") => ({
  name,
  size: text.length,
  arrayBuffer: async () => new TextEncoder().encode(text).buffer,
});
const settle = () => new Promise((resolve) => setTimeout(resolve, 5));
const RESULT = {
  name: "mine",
  trainer: "AI-Toolkit",
  workflow: { nodes: [] },
  report: "54 options",
  recipe: 'name = "mine"',
};

listenForDrops();

beforeEach(() => {
  document.body.replaceChildren();
  app.toasts.length = 0;
  app.opened = [];
  app.handled = [];
  app.loadGraphData = async (...given) => app.opened.push(given);
  app.handleFile = async (given) => app.handled.push(given.name);
  api.answers = {};
  api.sent = [];
});

test("files are taken by their names", () => {
  assert.ok(isSetup([{ name: "job.yaml" }]));
  assert.ok(isSetup([{ name: "dataset.toml" }, { name: "train.sh" }, { name: "notes.txt" }]));
  assert.ok(isSetup([{ name: "config.json" }, { name: "multidatabackend.json" }]));
  assert.ok(!isSetup([{ name: "workflow.json" }]));
  assert.ok(!isSetup([{ name: "dataset.toml" }, { name: "picture.png" }]));
  assert.ok(!isSetup([]));
});

test("texts are read in the encodings that editors write", () => {
  const bytes = (...values) => Uint8Array.from(values);
  assert.equal(textOf(new TextEncoder().encode("größer = 1")), "größer = 1");
  assert.equal(textOf(bytes(0xef, 0xbb, 0xbf, 0x61)), "a");
  assert.equal(textOf(bytes(0xff, 0xfe, 0x61, 0, 0xe4, 0)), "aä");
  assert.equal(textOf(bytes(0xfe, 0xff, 0, 0x61, 0, 0xe4)), "aä");
  assert.equal(textOf(bytes(0x61, 0xe4)), "aä"); // no UTF-8
  assert.equal(textOf(bytes()), "");
});

test("a setup opens its workflow and shows its report", async () => {
  api.answers["/wan_train/import"] = { body: RESULT };
  await importFiles([file("job.yaml", "job: extension")], true);
  assert.deepEqual(JSON.parse(api.sent.at(-1).body), { files: [{ name: "job.yaml", text: "job: extension" }] });
  assert.deepEqual(app.opened, [[RESULT.workflow, true, true, "mine"]]);
  const dialog = document.querySelector(".wan-train-import");
  assert.equal(dialog.querySelector("pre").textContent, "54 options");
  assert.equal(dialog.querySelector("h2").textContent, "From your AI-Toolkit setup");
  assert.equal(dialog.getAttribute("aria-label"), "From your AI-Toolkit setup");
  assert.equal(document.activeElement.textContent, "Close");
  [...dialog.querySelectorAll("button")].at(-1).click();
  assert.equal(document.querySelector(".wan-train-import"), null);
});

test("what a stranger writes is text, not a part of the page", async () => {
  api.answers["/wan_train/import"] = { body: { ...RESULT, report: "<img src=x>" } };
  await importFiles([file("job.yaml")], true);
  assert.equal(document.querySelector("img"), null);
});

test("a refusal is a sentence", async () => {
  api.answers["/wan_train/import"] = { status: 422, body: { error: "job.yaml is not valid YAML." } };
  await importFiles([file("job.yaml")], true);
  assert.equal(app.toasts[0].detail, "job.yaml is not valid YAML.");
  assert.deepEqual(app.opened, []);
});

test("a config.json that is no setup goes on to ComfyUI", async () => {
  api.answers["/wan_train/import"] = { status: 422, body: { error: "no setup" } };
  await importFiles([file("config.json", "{}")], true);
  assert.deepEqual(app.handled, ["config.json"]);
  await importFiles([file("config.json", "{}")], false);
  assert.equal(app.toasts[0].detail, "no setup");
});

test("files that are too large are not sent", async () => {
  await importFiles([{ name: "job.yaml", size: 9_000_000, text: async () => "" }], true);
  assert.match(app.toasts[0].detail, /too large/);
  assert.deepEqual(api.sent, []);
});

test("a drop of a setup is taken from ComfyUI, and others are not", async () => {
  api.answers["/wan_train/import"] = { body: RESULT };
  const reached = [];
  document.addEventListener("drop", () => reached.push("host"));
  const drop = (...files) => {
    const event = new window.Event("drop", { bubbles: true, cancelable: true });
    document.body.dispatchEvent(Object.assign(event, { dataTransfer: { files } }));
    return event.defaultPrevented;
  };
  assert.ok(drop(file("job.yaml")));
  assert.ok(!drop(file("workflow.json")));
  await settle();
  assert.deepEqual(reached, ["host"]);
  assert.equal(app.opened.length, 1);
});
