// The chart and the previews, as elements of a document.

import assert from "node:assert/strict";
import test from "node:test";
import { fire, frame, HEIGHT, WIDTH } from "./dom.js";

const { LossChart } = await import("../../web/chart.js");
const { previewIndex } = await import("../../web/previews.js");

const RUN = { steps: 10, state: "training", line: "", facts: ["12 min left"] };
const LOSSES = [
  [1, 0.5],
  [2, 0.4],
  [3, 0.3],
];

const numbersOf = (path) => [...path.getAttribute("d").matchAll(/[ML]([\d.]+) ([\d.]+)/g)].map((m) => [+m[1], +m[2]]);

test("an empty chart says what will be here", async () => {
  const chart = new LossChart();
  await frame();
  assert.match(chart.head.textContent, /drawn here/);
  assert.ok(chart.element.classList.contains("wan-train-empty"));
  assert.equal(chart.svg.children.length, 0);
});

test("a falling loss is a falling curve inside the plot", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES });
  await frame();
  const points = numbersOf(chart.svg.querySelector(".wan-train-raw"));
  assert.equal(points.length, 3);
  for (const [x, y] of points) assert.ok(x > 0 && x < WIDTH && y > 0 && y < HEIGHT);
  assert.ok(points[0][0] < points[1][0] && points[1][0] < points[2][0]);
  assert.ok(points[0][1] < points[1][1] && points[1][1] < points[2][1], "pixels count downwards");
  assert.match(chart.head.textContent, /^step 3 of 10 smoothed loss 0\.\d{4} last loss 0\.3000 12 min left $/);
});

test("new points go on with the curve, and a step that comes twice counts once", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES });
  chart.add({
    ...RUN,
    losses: [
      [3, 0.35],
      [4, 0.2],
    ],
  });
  await frame();
  assert.equal(numbersOf(chart.svg.querySelector(".wan-train-raw")).length, 4);
  assert.equal(chart.losses.get(3), 0.35);
});

test("averages of a long run that the server computed are taken", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES, smoothed: [[3, 0.7]] });
  await frame();
  assert.match(chart.head.textContent, /loss 0\.7000/);
});

test("validation is drawn as dots and told in the head", async () => {
  const chart = new LossChart();
  chart.set({
    ...RUN,
    losses: LOSSES,
    validation: [
      [3, 0.45],
      [1, 0.6],
    ],
  });
  await frame();
  assert.equal(chart.svg.querySelectorAll(".wan-train-held").length, 2);
  assert.match(chart.head.textContent, /held-out loss 0\.4500/);
});

test("a failed run is red and says why", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES, state: "error", line: "the loss is not finite" });
  await frame();
  assert.ok(chart.head.classList.contains("wan-train-error"));
  assert.match(chart.head.textContent, /^failed: the loss is not finite step 3 of 10/);
});

test("a failure says why in the head and what more there is below the curve, and both go when it is mended", async () => {
  const chart = new LossChart();
  chart.fail("it does not fit.\ndisk: 1 GB\n- a warning");
  await frame();
  assert.match(chart.head.textContent, /^failed: it does not fit\. $/);
  assert.equal(chart.notes.textContent, "disk: 1 GB\n- a warning");
  chart.dropFailure("it does not fit.\ndisk: 1 GB\n- a warning");
  await frame();
  assert.match(chart.head.textContent, /drawn here/);
  assert.equal(chart.notes.textContent, "");
});

test("a run that goes on again is not called finished", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES, state: "finished", line: "" });
  chart.add({ ...RUN, state: "waiting", line: "" });
  await frame();
  assert.match(chart.head.textContent, /^starting step 3 of 10/);
});

test("the buttons are those that the run can answer, and what it answers is said", async () => {
  const asked = [];
  const chart = new LossChart(undefined, undefined, async (what) => {
    asked.push(what);
    return "not now.";
  });
  const shown = () => [...chart.buttons.element.querySelectorAll("button")].filter((button) => !button.hidden);
  assert.deepEqual(
    shown().map((button) => button.textContent),
    ["Check"],
  );
  chart.add({ ...RUN, asks: [], state: "waiting" });
  assert.equal(chart.buttons.element.hidden, true);
  chart.add({ ...RUN, asks: ["stop", "pause"] });
  assert.deepEqual(
    shown().map((button) => button.textContent),
    ["Stop", "Pause"],
  );
  fire(shown()[1], "click");
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(asked, ["pause"]);
  assert.equal(chart.buttons.answer.textContent, "not now.");
  chart.fail("the folder is gone.");
  assert.deepEqual(
    shown().map((button) => button.textContent),
    ["Check"],
  );
});

test("what is said below the curve stays until something else is said", () => {
  const chart = new LossChart();
  chart.add({ ...RUN, notes: "run a" });
  chart.add({ ...RUN, losses: LOSSES });
  assert.equal(chart.notes.textContent, "run a");
});

test("the mouse shows the numbers of the step below it", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES, validation: [[2, 0.45]] });
  await frame();
  const [x] = numbersOf(chart.svg.querySelector(".wan-train-raw"))[1];
  fire(chart.plot, "pointermove", { clientX: x });
  await frame();
  assert.equal(chart.tip.hidden, false);
  assert.match(
    chart.tip.textContent,
    /^step 2\nloss of this step 0\.4000\nsmoothed loss .*\nheld-out loss 0\.4500 \(step 2\)$/,
  );
  fire(chart.plot, "pointerleave");
  await frame();
  assert.equal(chart.tip.hidden, true);
});

test("a cleared chart has forgotten the run", async () => {
  const chart = new LossChart();
  chart.set({ ...RUN, losses: LOSSES, validation: LOSSES, previews: [[2, "a.webp"]] });
  chart.clear();
  await frame();
  assert.match(chart.head.textContent, /drawn here/);
  assert.equal(chart.previews.element.hidden, true);
});

test("a chart that is gone draws no more", async () => {
  const chart = new LossChart();
  await frame();
  chart.set({ ...RUN, losses: LOSSES });
  chart.dispose();
  await frame();
  assert.equal(chart.svg.children.length, 0);
});

test("the newest preview is shown, or the chosen one while it is there", () => {
  const files = [
    [2, "a"],
    [4, "b"],
    [6, "c"],
  ];
  assert.deepEqual(
    [undefined, 4, 5].map((step) => previewIndex(files, step)),
    [2, 1, 2],
  );
});

test("previews appear with the first, and the slider keeps what was chosen", () => {
  let toggled = 0;
  const { previews } = new LossChart(
    (file) => `at/${file}`,
    () => (toggled += 1),
  );
  previews.set([[2, "a"]]);
  assert.equal(toggled, 1);
  assert.equal(previews.picture.getAttribute("src"), "at/a");
  assert.equal(previews.slider.hidden, true);
  previews.set([
    [2, "a"],
    [4, "b"],
    [6, "c"],
  ]);
  assert.equal(previews.caption.textContent, "preview of step 6");
  previews.slider.value = "1";
  fire(previews.slider, "input");
  previews.set([
    [2, "a"],
    [4, "b"],
    [6, "c"],
    [8, "d"],
  ]);
  assert.equal(previews.picture.getAttribute("src"), "at/b");
  previews.slider.value = "3";
  fire(previews.slider, "input");
  previews.set([
    [6, "c"],
    [8, "d"],
    [10, "e"],
  ]);
  assert.equal(previews.caption.textContent, "preview of step 10");
  assert.equal(toggled, 1);
});
