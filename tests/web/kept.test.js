// What is kept over a reload: choices of a node and of a run, in the chart, the previews, the gallery and the list of runs.

import assert from "node:assert/strict";
import test from "node:test";
import { fire, frame } from "./dom.js";

const { keep, recall } = await import("../../web/kept.js");
const { LossChart } = await import("../../web/chart.js");
const { GalleryWindow } = await import("../../web/gallery.js");
const { RunList } = await import("../../web/run_list.js");

const LOSSES = Array.from({ length: 100 }, (_, i) => [i + 1, 1 / (i + 1)]);
const HISTORY = { steps: 100, state: "finished", line: "", facts: [], losses: LOSSES };
const part = (run) => ({ run, name: run, stage: "low", steps: 100, note: "", series: series() });
const series = () => ({ loss: { points: LOSSES, smoothed: LOSSES }, held_out: { points: [], smoothed: [] } });

/** A chart of a run, as the page makes it after each load. */
function loaded(run, asked = [], there = ["beside"]) {
  const server = {
    fetch: async (path) => {
      asked.push(path);
      return path.endsWith("/others")
        ? [{ run: "beside", name: "b", stage: "low", steps: 100, changed: 0, is_other_expert: false }]
        : { runs: [part(run), ...there.filter((name) => path.includes(name)).map(part)], differences: [] };
    },
    address: (path) => path,
    run: () => run,
  };
  const chart = new LossChart(
    (file) => file,
    undefined,
    undefined,
    server,
    () => "chart/graph/3",
  );
  chart.recall();
  chart.set(HISTORY);
  return chart;
}

async function settled() {
  await new Promise((resolve) => setImmediate(resolve));
  await frame();
}

function tick(chart, label) {
  const line = [...chart.controls.element.querySelectorAll("label")].find((found) => found.textContent.includes(label));
  const box = line.querySelector("input");
  box.checked = true;
  fire(box, "change");
}

const ticked = (chart) =>
  [...chart.controls.element.querySelectorAll("label")]
    .filter((line) => line.querySelector("input[type=checkbox]")?.checked)
    .map((line) => line.textContent.trim());

test("values of a name are kept beside each other, the oldest names are forgotten, and what is damaged is nothing", () => {
  localStorage.clear();
  keep("a", { one: 1 });
  keep("a", { two: [2] });
  assert.deepEqual(recall("a"), { one: 1, two: [2] });
  for (let i = 0; i < 300; i++) keep(`b${i}`, { i });
  assert.deepEqual(recall("a"), {});
  assert.deepEqual(recall("b0"), { i: 0 });
  keep("", { lost: true });
  assert.deepEqual(recall(""), {});
  for (const damaged of ["{", '{"a": 1}', '[["a"], 3, null]', '[["a", null]]']) {
    localStorage.setItem("wan_train.kept", damaged);
    assert.deepEqual(recall("a"), {});
  }
});

test("a chart draws after a reload what was chosen: of the node for every run, of the run for this one alone", async () => {
  localStorage.clear();
  const chart = loaded("mine");
  tick(chart, "gradient norm");
  tick(chart, "logarithmic axis");
  chart.controls.slider.value = "4";
  fire(chart.controls.slider, "input");
  chart.controls.compare.parentElement.open = true;
  await chart.controls.fill();
  tick(chart, "b low");
  chart.zoom.set([20, 40]);
  await settled();

  const asked = [];
  const again = loaded("mine", asked);
  await settled();
  assert.deepEqual(ticked(again), ["gradient norm", "logarithmic axis"]);
  assert.equal(again.window, 8);
  assert.equal(again.controls.slider.value, "4");
  assert.deepEqual(again.zoom.range, [20, 40]);
  assert.equal(again.controls.whole.hidden, false);
  assert.ok(asked.some((path) => path.includes("run=beside") && path.includes("of=gradient_norm")));

  const other = loaded("other");
  await settled();
  assert.deepEqual(ticked(other), ["gradient norm", "logarithmic axis"]);
  assert.equal(other.zoom.range, null);
  assert.deepEqual([...other.controls.others], []);
});

test("what can't be any more is not chosen: a run that was deleted, steps that are not there, values of something else", async () => {
  localStorage.clear();
  keep("run/mine", { others: ["beside", "gone"], zoom: [90, 400], preview: "x" });
  keep("chart/graph/3", { of: ["sigma", "nothing", 3], window: 7, isLog: "yes" });
  const chart = loaded("mine");
  await settled();
  assert.deepEqual([...chart.controls.others], ["beside"]);
  assert.equal(chart.zoom.range, null); // of 310 steps there are not so many
  assert.deepEqual([...chart.controls.of], ["sigma"]);
  assert.equal(chart.controls.window, null);
  assert.equal(chart.controls.isLog, false);
});

test("the preview that the slider was at is shown again, and the newest of another run", () => {
  localStorage.clear();
  const files = [
    [10, "a"],
    [20, "b"],
    [30, "c"],
  ];
  const chart = loaded("mine");
  chart.add({ ...HISTORY, previews: files });
  chart.previews.slider.value = "1";
  fire(chart.previews.slider, "input");
  const again = loaded("mine");
  again.add({ ...HISTORY, previews: files });
  assert.equal(again.previews.caption.textContent, "preview of step 20");
  again.clear();
  again.add({ ...HISTORY, previews: files });
  assert.equal(again.previews.caption.textContent, "preview of step 30");
});

test("the gallery compares what it compared, where the line was", async () => {
  localStorage.clear();
  globalThis.Option = window.Option;
  globalThis.HTMLElement = window.HTMLElement;
  const prompts = [{ name: "cat", prompt: "a cat runs" }];
  const steps = [0, 4, 8].map((step) => ({ step, files: [`a${step}`] }));
  const open = async (place) => {
    const shown = new GalleryWindow(
      async () => ({ prompts, steps }),
      (file) => file,
      place,
    );
    await shown.ready;
    return shown;
  };
  const first = await open("run/mine");
  first.choose(0, 4);
  const divide = first.compare.querySelector("input[type=range]");
  divide.value = "30";
  fire(divide, "input");
  fire(divide, "change");
  first.close();
  const again = await open("run/mine");
  assert.deepEqual(again.pair, { prompt: 0, left: 8, right: 4 });
  assert.equal(again.compare.querySelector("input[type=range]").value, "30");
  again.close();
  const other = await open("run/other");
  assert.deepEqual(other.pair, { prompt: 0, left: 0, right: 8 });
  other.close();
});

test("the list of runs is searched and sorted as before", () => {
  localStorage.clear();
  const list = new RunList({});
  list.search.value = "cat";
  fire(list.search, "input");
  list.order.value = "size";
  fire(list.order, "change");
  const again = new RunList({});
  assert.equal(again.search.value, "cat");
  assert.equal(again.order.value, "size");
});
