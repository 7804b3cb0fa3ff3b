// The page in another language: what is said, what stays English, and that nothing is shown before the words are there.

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { api } = await import("./host/api.js");
const { app, Graph, Node } = await import("./host/app.js");
await import("../../web/wan_train.js");
const { learn, say, sayCount } = await import("../../web/words.js");
const alone = await import("../../core/look/page/words.js");
const { languageOf, learn: learnAlone, say: sayAlone } = alone;

const served = (words) => async () => ({ zh: { wanTrain: words }, fr: { nodeDefs: {} } });
const setLanguage = (language) => {
  app.extensionManager.setting.get = (name) => name === "Comfy.Locale" && language;
};

afterEach(async () => {
  setLanguage("en");
  await learn("en", served({}));
});

test("a text is said in the language, with its values in the places that this language has", async () => {
  await learn("zh", served({ "step {step} of {steps}": "共 {steps} 步，第 {step} 步", Stop: "停止" }));
  assert.equal(say("step {step} of {steps}", { step: 3, steps: 90 }), "共 90 步，第 3 步");
  assert.equal(say("Stop"), "停止");
});

test("what has no translation is English: a text, a language, and all when nothing can be fetched", async () => {
  await learn("zh", served({ Stop: "停止" }));
  assert.equal(say("step {step}", { step: 3 }), "step 3");
  assert.equal(say("constructor"), "constructor");
  await learn("fr", served({ Stop: "停止" }));
  assert.equal(say("Stop"), "Stop");
  await learn("ko", served({ Stop: "停止" }));
  assert.equal(say("Stop"), "Stop");
  await learn("zh", async () => {
    throw new TypeError("no server");
  });
  assert.equal(say("Stop"), "Stop");
});

const counts = (sayIt) => [0, 1, 2].map((count) => sayIt("{count} step", "{count} steps", count));

test("a number of things has the form that the language has for it", async () => {
  assert.deepEqual(counts(sayCount), ["0 steps", "1 step", "2 steps"]);
  assert.equal(sayCount("{count} token", "{count} tokens", 1500, { count: "1,500" }), "1,500 tokens");
  const french = { "{count} step": "{count} étape", "{count} steps": "{count} étapes" };
  const chinese = { "{count} step": "{count} 步", "{count} steps": "{count} 步" };
  const all = async () => ({ fr: { wanTrain: french }, zh: { wanTrain: chinese }, de: { wanTrain: {} } });
  await learn("fr", all);
  assert.deepEqual(counts(sayCount), ["0 étape", "1 étape", "2 étapes"]);
  await learn("zh", all);
  assert.deepEqual(counts(sayCount), ["0 步", "1 步", "2 步"]);
  await learn("de", all);
  assert.deepEqual(counts(sayCount), ["0 steps", "1 step", "2 steps"]); // not translated
});

test("English asks for nothing", async () => {
  for (const language of ["en", undefined, false]) {
    await learn(language, () => assert.fail("it asked"));
    assert.equal(say("Stop"), "Stop");
  }
});

test("values are put in as they are", () => {
  assert.equal(say("{name} is trained", { name: "{steps} $& x" }), "{steps} $& x is trained");
  assert.equal(say("{name} has {more}", { name: "a" }), "a has {more}");
});

test("ComfyUI waits for the words, and then nodes and the sidebar have them", async () => {
  const words = { Stop: "停止", "WanTrain runs": "WanTrain 训练", "The report appears here after a run.": "报告" };
  api.answers["/i18n"] = { body: await served(words)() };
  setLanguage("zh");
  await app.extension.init();
  app.extension.setup();
  app.rootGraph = new Graph("root");
  const train = app.rootGraph.add(new Node(1, "TrainLoRAStage"));
  const stop = train.elements.loss_curve.querySelector("[data-ask=stop]");
  assert.equal(stop.textContent, "停止");
  assert.match(stop.title, /^End the run/);
  const cache = app.rootGraph.add(new Node(2, "CacheLatents"));
  assert.equal(cache.elements.report.textContent, "报告");
  assert.equal(app.tabs.at(-1).title, "WanTrain 训练");
});

test("a page that stands alone has the language that ComfyUI is set to, else the browser's", () => {
  assert.equal(languageOf("ja", "de-DE"), "ja");
  assert.equal(languageOf(null, "de-DE"), "de");
  assert.equal(languageOf("", "zh-HK"), "zh-TW");
  assert.equal(languageOf(undefined, "zh-CN"), "zh");
  assert.equal(languageOf(3, "pt"), "pt");
});

test("a page that stands alone writes its marked elements and what it says in the language", async () => {
  globalThis.navigator ??= window.navigator;
  document.body.innerHTML =
    '<p data-say>Stop</p><input data-say placeholder="Search"><div data-say aria-label="Stop"><b>Stop</b></div><i>Stop</i>';
  const asked = [];
  const fetchJson = async (path) => {
    asked.push(path);
    const words = { Stop: "Stopp", Search: "Suchen", "step {step}": "Schritt {step}" };
    return path.startsWith("words/")
      ? { ...words, "{count} step": "{count} Schritt", "{count} steps": "{count} Schritte" }
      : "de";
  };
  await learnAlone(fetchJson);
  assert.deepEqual(asked, ["../settings/Comfy.Locale", "words/de"]);
  assert.equal(document.querySelector("p").textContent, "Stopp");
  assert.equal(document.querySelector("input").placeholder, "Suchen");
  assert.equal(document.querySelector("div").getAttribute("aria-label"), "Stopp");
  assert.equal(document.querySelector("b").textContent, "Stop");
  assert.equal(document.querySelector("i").textContent, "Stop");
  assert.equal(document.documentElement.lang, "de");
  assert.equal(sayAlone("step {step}", { step: 3 }), "Schritt 3");
  assert.deepEqual(counts(alone.sayCount), ["0 Schritte", "1 Schritt", "2 Schritte"]);
});

test("where ComfyUI gives no words a page that stands alone stays English", async () => {
  document.documentElement.lang = "en";
  document.body.innerHTML = "<p data-say>Stop</p>";
  await learnAlone(async (path) => {
    if (path.startsWith("words/")) throw new Error("it does not answer");
    return "de";
  });
  assert.equal(document.querySelector("p").textContent, "Stop");
  assert.equal(sayAlone("step {step}", { step: 3 }), "step 3");
  assert.equal(document.documentElement.lang, "en");
});
