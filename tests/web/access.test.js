// What an automated audit (axe) says of our parts: names, roles, labels, focus. Contrast is not seen here: nothing is drawn.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test, { beforeEach } from "node:test";
import axe from "axe-core";
import "./dom.js";

globalThis.Option = window.Option;
globalThis.HTMLElement = window.HTMLElement;
globalThis.matchMedia = () => ({ matches: false });

const { LossChart } = await import("../../web/chart.js");
const { GalleryWindow } = await import("../../web/gallery.js");
const { RunList } = await import("../../web/run_list.js");
const { openChooser } = await import("../../web/recipes.js");

const PAGE_RULES = ["region", "landmark-one-main", "page-has-heading-one", "html-has-lang", "document-title", "bypass"];

/** Sentences of the audit of an element; rules of whole pages are off unless it is one. */
async function faults(element, rules = {}) {
  const off = Object.fromEntries(["color-contrast", ...PAGE_RULES].map((name) => [name, { enabled: false }]));
  const { violations } = await axe.run(element, { rules: { ...off, ...rules } });
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => `${id}: ${html}`));
}

beforeEach(() => {
  localStorage.clear();
  document.documentElement.lang = "en";
  document.title = "tried";
  document.body.replaceChildren();
});

test("the audit finds what is wrong", async () => {
  document.body.innerHTML = '<button></button><input><select></select><img src="a">';
  const found = (await faults(document.body)).map((fault) => fault.split(":")[0]).sort();
  assert.deepEqual(found, ["button-name", "image-alt", "label", "select-name"]);
});

test("a chart with its menus, previews and buttons", async () => {
  const chart = new LossChart((file) => file);
  document.body.append(chart.element);
  const previews = [
    [0, "a"],
    [2, "b"],
  ];
  const losses = [
    [1, 0.5],
    [2, 0.4],
  ];
  const asks = ["stop", "use", "pause", "save", "preview"];
  const more = { facts: ["2 min left"], notes: "run cat", alarms: [[2, "It seems to diverge."]] };
  chart.set({ steps: 9, state: "training", line: "", losses, previews, asks, ...more });
  chart.draw();
  for (const menu of chart.element.querySelectorAll("details")) menu.open = true;
  assert.deepEqual(await faults(chart.element), []);
});

test("the state of a run is announced when it changes, and no number is", () => {
  const chart = new LossChart();
  const said = [];
  assert.equal(chart.told.getAttribute("role"), "status");
  const tell = (state, step, line = "") => {
    chart.told.textContent = "";
    chart.add({ steps: 9, state, line, facts: [`${step} min left`], losses: [[step, 0.5]] });
    said.push(chart.told.textContent);
  };
  tell("waiting", 1); // what is there when the page is opened is not news
  for (const step of [1, 2]) tell("training", step);
  for (const state of ["paused", "training", "stopped", "training", "finished"]) tell(state, 3);
  tell("error", 4, "no memory");
  assert.deepEqual(said, [
    ...["", "running", ""],
    ...["paused", "running", "stopped", "running", "finished"],
    "failed: no memory",
  ]);
  chart.fail("the folder is gone.");
  assert.equal(chart.told.textContent, "failed: the folder is gone.");
});

test("no style sheet says the size of words in pixels, which a browser's own size would not change", () => {
  for (const file of ["web/wan_train.css", "core/look/page/page.css", "nodes/watch/watch.css"]) {
    const sizes = [...readFileSync(file, "utf8").matchAll(/\b(?:font|font-size|--wan-train-text): ([^;]+);/g)];
    assert.ok(sizes.length > 1, file);
    assert.deepEqual(
      sizes.map(([, size]) => size).filter((size) => /\dpx/.test(size)),
      [],
      file,
    );
  }
});

test("the gallery, before and after its videos are known", async () => {
  const gallery = { prompts: [{ name: "", prompt: "a cat" }], steps: [{ step: 0, files: ["a"] }] };
  for (const found of [{ prompts: [], steps: [] }, gallery]) {
    const shown = new GalleryWindow(
      async () => found,
      (file) => file,
    );
    await shown.ready;
    assert.deepEqual(await faults(shown.box), []);
    shown.close();
  }
});

test("the list of runs with all that unfolds", async () => {
  const run = { run: "cat_high_1", name: "cat", stage: "high", state: "error", why: "no memory", step: 4, steps: 9 };
  const more = { loss: 1, held_out: null, seconds_per_step: 1, began: 1, changed: 1, size: 1, preview: null };
  const able = { can_resume: true, has_picture: true, model: "wan", facts: [], asks: [] };
  const list = new RunList({
    pictureOf: () => "picture",
    about: async () => ({ path: "a/b", size: 1, holds: "2 checkpoints" }),
    compare: async () => [{ name: "rank", one: 1, other: 2 }],
  });
  document.body.append(list.element);
  list.set([
    { ...run, ...more, ...able },
    { ...run, ...more, ...able, run: "dog_high_1", name: "dog" },
  ]);
  const [one, other] = list.list.children;
  for (const name of ["extend", "folder", "delete", "compare"]) {
    one.querySelector(`[data-do=${name}]`).click();
    await new Promise((resolve) => setTimeout(resolve));
    assert.deepEqual(await faults(list.element), [], name);
  }
  other.querySelector("[data-do=compare]").click();
  await new Promise((resolve) => setTimeout(resolve));
  assert.ok(other.querySelector("table"));
  assert.deepEqual(await faults(list.element), []);
});

test("the window of recipes", async () => {
  const preset = { title: "A style", description: "Of pictures.", family: "a", model: "A", values: {} };
  for (const refusal of ["", "It is for another model."]) {
    document.body.replaceChildren();
    openChooser(
      [preset],
      () => [{ node: {}, name: "rank", now: 1, becomes: 2 }],
      () => {},
      () => refusal,
    );
    assert.deepEqual(await faults(document.querySelector("[role=dialog]")), []);
  }
});

for (const file of ["core/look/page/page.html", "nodes/watch/watch.html"]) {
  test(`the page ${file} as it comes`, async () => {
    const { documentElement } = new window.DOMParser().parseFromString(readFileSync(file, "utf8"), "text/html");
    document.head.replaceChildren(...documentElement.querySelectorAll("head > *"));
    document.body.replaceChildren(...documentElement.querySelectorAll("body > *"));
    const whole = Object.fromEntries(PAGE_RULES.map((name) => [name, { enabled: true }]));
    assert.deepEqual(await faults(document.documentElement, whole), []);
  });
}
