// The gallery: which videos stand where, what is compared, and the window as a document has it.

import assert from "node:assert/strict";
import test from "node:test";
import { fire } from "./dom.js";

const { GalleryWindow, pairOf, stepsOf } = await import("../../web/gallery.js");
const { titleOf } = await import("../../web/prompt_title.js");
const { frameAt } = await import("../../web/film.js");
const { LossChart } = await import("../../web/chart.js");

const GALLERY = {
  prompts: [
    { name: "cat", prompt: "a cat runs" },
    { name: "2", prompt: "a dog sleeps" },
  ],
  steps: [
    { step: 0, files: ["a0", null] },
    { step: 4, files: ["a4", "b4"] },
    { step: 8, files: ["a8", "b8"] },
  ],
};

test("the frame of a moment", () => {
  assert.deepEqual(
    [0, 0.09, 0.1, 0.31, 9].map((moment) => frameAt([0.1, 0.3, 0.4], moment)),
    [0, 0, 1, 2, 2],
  );
});

test("a prompt has a nickname, or only its text", () => {
  assert.deepEqual(GALLERY.prompts.map(titleOf), ["cat: a cat runs", "a dog sleeps"]);
  assert.equal(titleOf({ name: "", prompt: "" }), "caption of the first sample");
});

test("the oldest is compared with the newest, or what was chosen while it is there", () => {
  assert.deepEqual(stepsOf(GALLERY, 1), [4, 8]);
  assert.deepEqual(pairOf(GALLERY, undefined), { prompt: 0, left: 0, right: 8 });
  assert.deepEqual(pairOf(GALLERY, { prompt: 1, left: 0, right: 4 }), { prompt: 1, left: 4, right: 4 });
  assert.equal(pairOf({ prompts: [], steps: [] }, undefined), undefined);
});

test("the window shows prompts by steps, is worked by keys, and gives the focus back", async () => {
  const chart = new LossChart((file) => `at/${file}`);
  document.body.append(chart.element);
  chart.previews.set([[8, "a8"]]);
  let asked = 0;
  let gallery = GALLERY;
  globalThis.fetch = async (address) => {
    asked += 1;
    assert.equal(address, "at");
    return { ok: true, json: async () => gallery };
  };
  globalThis.Option = window.Option;
  globalThis.HTMLElement = window.HTMLElement;
  chart.previews.opener.focus();
  chart.previews.opener.click();
  const shown = chart.previews.gallery;
  await shown.ready;
  const names = () =>
    [...document.querySelectorAll("[role=dialog] tbody button")].map((b) => b.getAttribute("aria-label"));
  assert.deepEqual(
    names(),
    [0, 4, 8]
      .map((step) => `Compare step ${step} of cat: a cat runs`)
      .concat([4, 8].map((step) => `Compare step ${step} of a dog sleeps`)),
  );
  const pictures = () => [...document.querySelectorAll(".wan-train-stage img")].map((img) => img.getAttribute("src"));
  assert.deepEqual(pictures(), ["at/a0", "at/a8"]);
  document.querySelectorAll("[role=dialog] tbody button")[4].click();
  assert.deepEqual(pictures(), ["at/b4", "at/b8"]);
  const left = document.querySelector("select[aria-label=Left]");
  left.focus();
  left.value = "8";
  fire(left, "change");
  assert.deepEqual(pictures(), ["at/b8", "at/b8"]);
  assert.equal(document.activeElement.getAttribute("aria-label"), "Left");
  const play = [...document.querySelectorAll("[role=dialog] button")].find((b) => b.textContent === "Pause");
  assert.ok(play.disabled); // here is no decoder of pictures
  assert.match(play.title, /to have all at the same moment, open ComfyUI as localhost or over https/);
  const divide = document.querySelector(".wan-train-compare input");
  divide.value = "80";
  fire(divide, "input");
  assert.equal(document.querySelector(".wan-train-above").style.clipPath, "inset(0 0 0 80%)");

  gallery = { ...GALLERY, steps: [...GALLERY.steps, { step: 12, files: ["a12", "b12"] }] };
  chart.previews.set([
    [8, "a8"],
    [12, "a12"],
  ]);
  await new Promise((resolve) => setTimeout(resolve));
  assert.equal(asked, 2);
  assert.equal(names().length, 7);

  fire(window, "keydown", { key: "Escape" });
  assert.equal(document.querySelector("[role=dialog]"), null);
  assert.equal(document.activeElement, chart.previews.opener);
});

test("whoever wants less motion starts the videos", async (t) => {
  const wanted = { "(prefers-reduced-motion: reduce)": false };
  globalThis.matchMedia = (query) => ({ matches: wanted[query] });
  globalThis.ImageDecoder = class {};
  t.after(() => {
    delete globalThis.matchMedia;
    delete globalThis.ImageDecoder;
  });
  for (const [less, name] of [
    [false, "Pause"],
    [true, "Play"],
  ]) {
    wanted["(prefers-reduced-motion: reduce)"] = less;
    const shown = new GalleryWindow(
      async () => ({ prompts: [], steps: [] }),
      (file) => file,
    );
    await shown.ready;
    const [play] = shown.box.querySelectorAll("button");
    assert.equal(shown.film.isPlaying, !less);
    assert.equal(play.textContent, name);
    fire(play, "click");
    assert.equal(shown.film.isPlaying, less);
    shown.close();
  }
});

test("a server that does not answer is told", async () => {
  globalThis.HTMLElement = window.HTMLElement;
  const shown = new GalleryWindow(
    async () => {
      throw new Error("gone");
    },
    (file) => file,
  );
  await shown.ready;
  assert.match(shown.told.textContent, /can't be fetched/);
  shown.close();
});
