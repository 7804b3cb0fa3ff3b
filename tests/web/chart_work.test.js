// Working with the chart: curves that are asked for, other runs, smoothing, zoom, keys.

import assert from "node:assert/strict";
import test from "node:test";
import { fire, frame, HEIGHT, WIDTH } from "./dom.js";

const { LossChart } = await import("../../web/chart.js");
const { standalone } = await import("../../web/chart_export.js");
const { nearest, shown, within } = await import("../../web/chart_lines.js");
const { axes, logRange, makeView, textSize } = await import("../../web/chart_scale.js");
const { fitted, scaled } = await import("../../web/chart_zoom.js");

const RUN = { steps: 100, state: "training", line: "", facts: [] };
const LOSSES = Array.from({ length: 100 }, (_, i) => [i + 1, 1 / (i + 1)]);
const series = (points) => ({ points, smoothed: points });
const OWN = { run: "own", name: "lora", stage: "low", steps: 100, note: "" };
const ANSWER = {
  runs: [
    {
      ...OWN,
      series: {
        loss: series(LOSSES),
        held_out: series([]),
        sigma: [
          { low: 0, high: 0.45, ...series([[1, 0.3]]) },
          { low: 0.45, high: 0.875, ...series([[2, 0.2]]) },
        ],
        learning_rate: series([
          [1, 1e-4],
          [100, 2e-4],
        ]),
      },
    },
    {
      ...{ run: "beside", name: "lora", stage: "high", steps: 100, note: "" },
      series: { loss: series([[50, 0.5]]), held_out: series([[50, 0.4]]) },
    },
  ],
  differences: [
    { name: "stage", values: ["low", "high"] },
    { name: "rank", values: ["16", "32"] },
  ],
};
const OTHERS = [{ run: "beside", name: "lora", stage: "high", steps: 100, changed: 0, is_other_expert: true }];

test("words of a plot follow the zoom of the graph, and the size that the browser is set to", () => {
  const at = (zoom) => textSize({ clientWidth: 400, getBoundingClientRect: () => ({ width: 400 * zoom }) });
  assert.deepEqual([0.4, 0.8, 1, 2].map(at), [16, 13, 10, 10]);
  document.documentElement.style.fontSize = "20px";
  assert.deepEqual([0.4, 0.8, 1, 2].map(at), [20, 16, 13, 13]);
  document.documentElement.style.fontSize = "";
});

/** Until answers that are there have been taken and drawn. */
async function settled() {
  await new Promise((resolve) => setImmediate(resolve));
  await frame();
}

/** A chart whose server answers from a table; `asked` are the paths. */
function served(answers = {}) {
  const asked = [];
  const fetch = async (path) => {
    asked.push(path);
    const [found] = Object.entries(answers).filter(([start]) => path.startsWith(start));
    if (!found) throw new Error("there is no such run");
    return found[1];
  };
  const server = { fetch, address: (path) => path, run: () => "own" };
  return { chart: new LossChart(undefined, undefined, undefined, server), asked };
}

function tick(chart, label) {
  const line = [...chart.controls.element.querySelectorAll("label")].find((found) => found.textContent.includes(label));
  const box = line.querySelector("input");
  box.checked = !box.checked;
  fire(box, "change");
}

const button = (chart, label) =>
  [...chart.controls.element.querySelectorAll("button")].find((found) => found.textContent === label);
const labels = (chart) => [...chart.svg.querySelectorAll("text")].map((text) => text.textContent);

test("nothing is asked of the server for a curve that is here", async () => {
  const { chart, asked } = served();
  chart.set({ ...RUN, losses: LOSSES });
  chart.zoom.set([10, 20]);
  await settled();
  assert.deepEqual(asked, []);
  assert.equal(chart.legend.hidden, true);
});

test("the loss by noise level and the learning rate are lines of their own, with names", async () => {
  const { chart, asked } = served({ "/wan_train/curves": ANSWER });
  chart.set({ ...RUN, losses: LOSSES });
  tick(chart, "loss by noise level");
  await settled();
  tick(chart, "learning rate");
  await settled();
  assert.match(asked.at(-1), /run=own&of=loss&of=held_out&of=sigma&of=learning_rate&window=8$/);
  assert.match(chart.legend.textContent, /sigma 0-0\.45.*sigma 0\.45-0\.875.*learning rate/);
  assert.deepEqual(labels(chart).slice(-2), ["0.000200", "0.000100"]);
  assert.equal(chart.svg.querySelectorAll(".wan-train-smooth").length, 5); // and the other run that is in the answer
});

test("other runs are offered, and the legend says what is different about them", async () => {
  const { chart, asked } = served({ "/wan_train/curves": ANSWER, "/wan_train/runs/own/others": OTHERS });
  chart.set({ ...RUN, losses: LOSSES });
  chart.compare = chart.controls.compare.parentElement;
  chart.compare.open = true;
  fire(chart.compare, "toggle");
  await settled();
  tick(chart, "the other expert");
  await settled();
  assert.match(asked.at(-1), /run=own&run=beside/);
  assert.match(chart.legend.textContent, /lora high, smoothed loss: stage high \(here low\), rank 32 \(here 16\)/);
  assert.match(chart.legend.textContent, /lora high, held-out loss/);
  fire(chart.plot, "pointermove", { clientX: chart.drawn.x(50) });
  await frame();
  assert.match(chart.tip.textContent, /^step 50\nloss of this step 0\.0200\nsmoothed loss/);
  assert.match(chart.tip.textContent, /lora high, smoothed loss 0\.5000/);
  chart.clear();
  assert.equal(chart.controls.others.size, 0);
});

test("what the server refuses is said", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES });
  tick(chart, "gradient norm");
  await settled();
  assert.equal(chart.controls.trouble.textContent, "there is no such run");
});

test("the slider changes the average, and every number follows", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const auto = chart.averages.at(-1);
  assert.match(chart.controls.element.textContent, /smooth over 8 steps \(auto\)/);
  chart.controls.slider.value = "1";
  fire(chart.controls.slider, "input");
  await frame();
  assert.equal(chart.averages.at(-1), LOSSES.at(-1)[1]);
  assert.match(chart.head.textContent, /smoothed loss 0\.0100 last loss 0\.0100/);
  chart.controls.slider.value = "7";
  fire(chart.controls.slider, "input");
  await frame();
  assert.ok(chart.averages.at(-1) > auto);
  assert.match(chart.controls.element.textContent, /smooth over 64 steps/);
});

test("of a long run the server makes the average, and the part that is zoomed to", async () => {
  const smoothed = LOSSES.map(([step]) => [step, 0.7]);
  const part = { points: [[40, 0.5]], smoothed: [[40, 0.6]] };
  const answer = (loss) => ({ runs: [{ ...OWN, series: { loss, held_out: series([]) } }], differences: [] });
  const { chart, asked } = served({
    "/wan_train/curves?run=own&of=loss&of=held_out&window=16&from": answer(part),
    "/wan_train/curves": answer({ points: LOSSES, smoothed }),
  });
  chart.set({ ...RUN, losses: LOSSES.slice(0, 50), smoothed: LOSSES.slice(0, 50).map(([step]) => [step, 0.1]) });
  await settled();
  assert.deepEqual(asked, []);
  chart.controls.slider.value = "5";
  fire(chart.controls.slider, "input");
  await settled();
  assert.equal(chart.averages.at(-1), 0.7);
  chart.zoom.set([30, 60]);
  await settled();
  assert.match(asked.at(-1), /from=30&to=60$/);
  assert.deepEqual(chart.lines()[0].points, [[40, 0.6]]);
});

test("dragging zooms, a double click shows the whole run again", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const [from, to] = [chart.drawn.x(20), chart.drawn.x(60)];
  fire(chart.plot, "pointerdown", { clientX: to, button: 0 });
  fire(chart.plot, "pointermove", { clientX: from });
  await frame();
  assert.ok(chart.svg.querySelector(".wan-train-marked"));
  fire(chart.plot, "pointerup", { clientX: from });
  await frame();
  assert.deepEqual(chart.zoom.range.map(Math.round), [20, 60]);
  assert.equal(button(chart, "Whole run").hidden, false);
  fire(chart.plot, "pointerdown", { clientX: WIDTH / 2, button: 0, shiftKey: true });
  fire(chart.plot, "pointermove", { clientX: WIDTH });
  fire(chart.plot, "pointerup", { clientX: WIDTH });
  assert.equal(Math.round(chart.zoom.range[0]), 0, "moved to the start, and no further");
  fire(chart.plot, "dblclick");
  await frame();
  assert.equal(chart.zoom.range, null);
});

test("the wheel zooms where the mouse is, once the chart was clicked", async () => {
  const { chart } = served();
  document.body.append(chart.element);
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const at = { clientX: chart.drawn.x(50), deltaY: -1 };
  fire(chart.plot, "wheel", at);
  assert.equal(chart.zoom.range, null);
  chart.plot.focus();
  fire(chart.plot, "wheel", at);
  assert.deepEqual(chart.zoom.range.map(Math.round), [10, 90]);
  chart.element.remove();
});

test("keys go from step to step and say the numbers, zoom, move and show all", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const press = (key, more = {}) => fire(chart.plot, "keydown", { key, ...more });
  press("ArrowRight");
  press("ArrowRight");
  assert.match(chart.spoken.textContent, /^step 2\nloss of this step 0\.5000/);
  press("+");
  assert.deepEqual(chart.zoom.range, [25, 75]);
  press("ArrowRight", { shiftKey: true });
  assert.deepEqual(chart.zoom.range, [37.5, 87.5]);
  press("0");
  assert.equal(chart.zoom.range, null);
});

test("the chart says in words what it shows", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES, validation: [[50, 0.25]] });
  await frame();
  assert.equal(chart.plot.getAttribute("role"), "figure");
  assert.match(
    chart.plot.getAttribute("aria-label"),
    /^Loss chart\. step 100 of 100 .*held-out loss 0\.2500\. lowest smoothed loss 0\.\d{4} at step 100/,
  );
});

test("an alarm is a sentence and a mark, which go with the run", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: LOSSES, alarms: [[70, "the training seems to diverge"]] });
  await frame();
  assert.equal(chart.alarm.textContent, "the training seems to diverge");
  assert.equal(chart.svg.querySelectorAll(".wan-train-alarm-line").length, 1);
  chart.add({ ...RUN, losses: [] });
  await frame();
  assert.equal(chart.alarm.hidden, false);
  chart.clear();
  await frame();
  assert.equal(chart.alarm.hidden, true);
});

test("a logarithmic axis keeps all points inside, and has round numbers", async () => {
  const { chart } = served();
  chart.set({ ...RUN, losses: [...LOSSES, [101, 0]] });
  tick(chart, "logarithmic axis");
  await frame();
  const path = chart.svg.querySelector(".wan-train-raw").getAttribute("d");
  for (const [, y] of path.matchAll(/[\d.]+ ([\d.]+)/g)) assert.ok(+y >= 0 && +y <= HEIGHT);
  const view = makeView({ width: 400, height: 150 }, [0, 10], [0.01, 1], { isLog: true });
  assert.ok(Math.abs(view.y(0.1) - (view.y(0.01) + view.y(1)) / 2) < 1e-9);
  const marks = axes(view).map((element) => Number(element.textContent));
  assert.ok([0.01, 0.1, 1].every((level) => marks.includes(level)));
  assert.deepEqual(
    logRange([0, 1], [0, 0.5, 0.1]).map((value) => value.toFixed(2)),
    ["0.09", "1.00"],
  );
});

test("a range stays inside the run and is not narrower than can be seen", () => {
  assert.deepEqual(fitted([-10, 20], 100), [0, 30]);
  assert.deepEqual(fitted([90, 120], 100), [70, 100]);
  assert.deepEqual(fitted([50, 50.5], 100), [50, 54]);
  assert.equal(fitted([-5, 200], 100), null);
  assert.deepEqual(scaled([0, 100], 0.5, 20), [10, 60]);
});

test("points of a range have their neighbours, and the nearest is found", () => {
  const points = [
    [1, 5],
    [4, 6],
    [9, 7],
    [20, 8],
  ];
  assert.deepEqual(within(points, [3, 10]), points);
  assert.deepEqual(within(points, [4, 8]), points.slice(0, 3));
  assert.deepEqual(within(points, [30, 40]), points.slice(3));
  assert.deepEqual(
    [0, 6, 7, 99].map((step) => nearest(points, step)[0]),
    [1, 4, 9, 20],
  );
  assert.equal(nearest([], 3), undefined);
});

test("numbers are shown exactly enough, small ones too", () => {
  assert.deepEqual([0.123456, 0.00012345, 0, 12345.6].map(shown), ["0.1235", "1.234e-4", "0.0000", "1.235e+4"]);
});

test("a picture's plot has its colours in itself", async () => {
  const { chart } = served();
  document.body.append(chart.element);
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const text = standalone(chart.svg, 400, 150);
  assert.match(text, /xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  assert.match(text, /class="wan-train-smooth"[^>]*style="fill:/);
  chart.element.remove();
});
