// Telling a person who looks elsewhere: the tab's title while a run goes on, a toast and, if it was switched on, a
// notification of the browser when it ends.

import { app } from "../../scripts/app.js";
import { say } from "./words.js";

export const NOTIFY = "WanTrain.Notify"; // in ComfyUI's settings
const GOING = ["waiting", "training", "stopping", "paused"];

/** @typedef {{ run: string, name: string, state: string, steps: number, line?: string, losses?: [number, number][] }} Told */
/** @typedef {{ name: string, state: string, step: number, steps: number }} Going */

/** @type {Map<string, Going>} */
const going = new Map();
/** @type {MutationObserver | null} */
let observer = null;
let theirs = ""; // the title that the page itself wants
let ours = "";

/** What ComfyUI's settings dialog offers. */
export const settings = [
  {
    id: /** @type {any} */ (NOTIFY),
    category: ["WanTrain", "Runs", "Notification"],
    name: "Browser notification when a training ends or fails",
    tooltip: "Your browser asks for permission once. It works where ComfyUI is opened as localhost or over https.",
    type: /** @type {const} */ ("boolean"),
    defaultValue: false,
    onChange: askPermission,
  },
];

/**
 * @param {unknown} isOn
 * @param {unknown} before undefined while the page loads
 */
async function askPermission(isOn, before) {
  if (!isOn || before === undefined) return;
  const answer = "Notification" in window ? await Notification.requestPermission() : "missing";
  if (answer === "granted") return;
  const why =
    answer === "missing"
      ? say("This browser gives none to pages opened by such an address: open ComfyUI as localhost or over https.")
      : say("The browser refuses them for this page: allow them in its settings for this address.");
  toast("warn", say("No notifications"), why);
}

/**
 * @param {"success" | "info" | "warn" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
export function toast(severity, summary, detail) {
  // A failure stays until it is closed; the rest goes by itself.
  const life = severity === "error" ? undefined : 8000;
  app.extensionManager.toast.add({ severity, summary, detail, life });
}

/**
 * Take in what the server tells of a run.
 * @param {Told} told
 */
export function follow({ run, name, state, steps, line = "", losses = [] }) {
  const known = going.get(run);
  if (GOING.includes(state)) {
    going.set(run, { name, state, steps, step: losses.at(-1)?.[0] ?? known?.step ?? 0 });
  } else {
    going.delete(run);
    if (known) tellEnd(run, name, state, line);
  }
  setTitle();
}

/** Nothing goes on any more, or the server is away and nobody knows how runs go on. */
export function forget() {
  going.clear();
  setTitle();
}

/**
 * @param {string} run
 * @param {string} name
 * @param {string} state
 * @param {string} line
 */
function tellEnd(run, name, state, line) {
  const ends = { finished: say("{name} is trained", { name }), error: say("{name} has failed", { name }) };
  const summary = ends[/** @type {keyof ends} */ (state)] ?? say("{name} was stopped", { name });
  const detail = state === "error" ? line : "";
  const severity = state === "finished" ? "success" : state === "error" ? "error" : "info";
  toast(severity, summary, detail || say("See WanTrain runs in the sidebar."));
  const isWanted = app.extensionManager.setting.get(NOTIFY);
  if (isWanted && "Notification" in window && Notification.permission === "granted") {
    try {
      new Notification(summary, { body: detail, tag: `wan_train/${run}` }); // of several tabs, one
    } catch (error) {
      console.warn("[wan_train] this browser shows no notifications of pages", error); // Chrome on Android
    }
  }
}

/** Percent and name of what goes on, before the page's own title; that alone when nothing does. */
function setTitle() {
  const newest = [...going.values()].at(-1);
  if (!newest) {
    observer?.disconnect();
    observer = null;
    if (ours && document.title === ours) document.title = theirs;
    ours = "";
    return;
  }
  if (!observer) {
    theirs = document.title;
    observer = new MutationObserver(keepTitle);
    observer.observe(document.head, { childList: true, subtree: true, characterData: true });
  }
  const { name, state, step, steps } = newest;
  const progress = state === "paused" ? say("paused") : `${Math.floor((100 * step) / Math.max(1, steps))}%`;
  ours = `${progress} ${name} - ComfyUI`;
  document.title = ours;
}

/** The page has written a title of its own: it comes back when the run is over. */
function keepTitle() {
  if (document.title === ours) return;
  theirs = document.title;
  document.title = ours;
}
