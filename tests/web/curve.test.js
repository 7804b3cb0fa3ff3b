// What the chart computes.

import assert from "node:assert/strict";
import test from "node:test";
import { lossRange, smooth, thin, ticks, windowFor } from "../../web/curve.js";

const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);

test("a constant loss has a constant average", () => {
  for (const value of smooth([3, 3, 3], 0.9)) near(value, 3);
});

test("the average is corrected for its start at zero", () => {
  near(smooth([1, 2], 0.5)[1], (0.5 * 0.5 * 1 + 0.5 * 2) / 0.75);
});

test("the average goes on from a known one", () => {
  assert.deepEqual(smooth([9, 1, 2], 0.5, [undefined, 4]).slice(1), [4, 3]);
});

test("the average looks back over at least 8 steps and at most 100", () => {
  near(windowFor(10), 8);
  near(windowFor(1000), 40);
  near(windowFor(1e6), 100);
});

test("ticks are round numbers", () => {
  assert.deepEqual(ticks(0, 200, 4), [0, 50, 100, 150, 200]);
  assert.deepEqual(ticks(0.31, 0.48, 3), [0.4]);
  assert.deepEqual(ticks(5, 5, 3), [5]);
});

test("a thinned curve keeps its peaks", () => {
  const many = Array.from({ length: 1000 }, (_, i) => [i, i === 500 ? 9 : i % 2]);
  const thinned = thin(many, 50, 0, 1000);
  assert.ok(thinned.length <= 100);
  assert.ok(thinned.some(([step, loss]) => step === 500 && loss === 9));
  assert.deepEqual(
    [...thinned].sort((a, b) => a[0] - b[0]),
    thinned,
  );
});

test("a short curve is not thinned", () => {
  const short = [
    [1, 2],
    [2, 3],
  ];
  assert.deepEqual(thin(short, 50, 0, 10), short);
});

test("single losses far outside do not flatten the curve", () => {
  const [low, high] = lossRange([...Array(99).fill(1), 100], [1, 1], [1.5]);
  assert.ok(low < 1 && high > 1.5 && high < 3, `${low} to ${high}`);
});

test("losses that differ by rounding alone have a range with lines between", () => {
  const [low, high] = lossRange([0.3], [0.30000000000000004], []);
  assert.ok(high - low > 0.01, `${low} to ${high}`);
  assert.ok(ticks(low, high, 4).length < 20);
});

test("a single point has a range", () => {
  const [low, high] = lossRange([0.5], [0.5], []);
  assert.ok(low < 0.5 && high > 0.5);
});
