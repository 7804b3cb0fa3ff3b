// Setups of other trainers: dropped on the page or chosen from the menu, they become a workflow, a recipe and a report.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Dialog } from "./dialog.js";
import { block, button } from "./elements.js";
import { say } from "./words.js";

/** Endings that ComfyUI has no use for, and names of SimpleTuner's files; other .json are workflows. */
const SETUP = /\.(toml|ya?ml|sh|bat|ps1|jsonl)$/i;
const MAYBE = /(^config.*|multidatabackend.*|user_prompt_library.*|\.job)\.json$/i;
/** What files in an encoding begin with. @type {[string, number[]][]} */
const MARKS = [
  ["utf-8", [0xef, 0xbb, 0xbf]],
  ["utf-16le", [0xff, 0xfe]],
  ["utf-16be", [0xfe, 0xff]],
];
const MOST = 8_000_000; // bytes of all files together, as the server has it

/**
 * Whether dropped files are taken from ComfyUI: all are of a setup by their names, and one surely is.
 * @param {{ name: string }[]} files
 */
export function isSetup(files) {
  const surely = files.some((file) => SETUP.test(file.name) || MAYBE.test(file.name));
  return surely && files.every((file) => SETUP.test(file.name) || /\.(json|txt)$/i.test(file.name));
}

/** Take setups that are dropped on the page, before ComfyUI does. */
export function listenForDrops() {
  window.addEventListener(
    "drop",
    (event) => {
      const files = [...(event.dataTransfer?.files ?? [])];
      if (!isSetup(files)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      importFiles(files, true);
    },
    true,
  );
}

/** Ask for the files of a setup. */
export function chooseFiles() {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.accept = ".toml,.yaml,.yml,.json,.jsonl,.sh,.bat,.ps1,.txt";
  input.onchange = () => importFiles([...(input.files ?? [])], false);
  input.click();
}

/**
 * A file's text as the server would read it: UTF-8, UTF-16 with a mark, else the encoding of older Windows editors.
 * @param {Uint8Array} bytes
 */
export function textOf(bytes) {
  const marked = MARKS.find(([, mark]) => mark.every((value, index) => bytes[index] === value));
  const encoding = marked ? marked[0] : "utf-8";
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder(marked ? encoding : "windows-1252").decode(bytes);
  }
}

/**
 * Open the workflow that a setup becomes, and show the report.
 * @param {File[]} files
 * @param {boolean} dropped then a single .json that is no setup goes on to ComfyUI, which may know it
 */
export async function importFiles(files, dropped) {
  if (!files.length) return;
  try {
    if (files.reduce((sum, file) => sum + file.size, 0) > MOST)
      throw new Error(say("The files are too large for a setup."));
    const texts = await Promise.all(
      files.map(async (file) => ({ name: file.name, text: textOf(new Uint8Array(await file.arrayBuffer())) })),
    );
    const answer = await api.fetchApi("/wan_train/import", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ files: texts }),
    });
    const result = await answer.json();
    if (answer.ok) {
      await app.loadGraphData(result.workflow, true, true, result.name);
      showReport(result);
    } else if (dropped && files.length === 1 && MAYBE.test(files[0].name)) {
      await app.handleFile(files[0]);
    } else {
      toast(
        "error",
        say("The setup can't be read"),
        result.error ?? say("ComfyUI answers with {status}.", { status: answer.status }),
      );
    }
  } catch (error) {
    toast("error", say("The setup can't be read"), String(error instanceof Error ? error.message : error));
  }
}

/**
 * @typedef {object} Imported
 * @property {string} name
 * @property {string} trainer
 * @property {string} report
 * @property {string} recipe
 */

/**
 * The report, over the page, with the recipe to keep.
 * @param {Imported} result
 */
function showReport(result) {
  const from = say("From your {trainer} setup", { trainer: result.trainer });
  const dialog = new Dialog("wan-train-import", from);
  const title = document.createElement("h2");
  title.textContent = from;
  const text = document.createElement("pre");
  text.textContent = result.report;
  text.tabIndex = 0; // so that the arrow keys scroll it
  dialog.box.append(title, text);
  const buttons = block("wan-train-buttons", dialog.box);
  button(buttons, say("Keep the report"), "", () => download(`${result.name}-report.txt`, result.report));
  button(buttons, say("Keep the recipe"), "", () => download(`${result.name}.toml`, result.recipe));
  button(buttons, say("Close"), "", () => dialog.close()).focus();
}

/**
 * @param {string} name
 * @param {string} text
 */
function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * @param {"info" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
function toast(severity, summary, detail) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: 15_000 });
}
