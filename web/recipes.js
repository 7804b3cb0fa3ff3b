// The window that shows recipes: choose one, see what it changes and why, use it. Knows nothing of ComfyUI.

import { Dialog } from "./dialog.js";
import { block, button } from "./elements.js";
import { keep, recall } from "./kept.js";
import { say } from "./words.js";

const KEPT = "recipes"; // which one was looked at

/** @typedef {import("./presets.js").Preset} Preset */
/** @typedef {import("./presets.js").Change} Change */

/**
 * Open the window; it closes with Escape, with Cancel, with a click beside it, and when a recipe is used.
 * @param {Preset[]} presets
 * @param {(preset: Preset) => Change[]} changesOf what a recipe would change now
 * @param {(preset: Preset) => void} apply
 */
export function openChooser(presets, changesOf, apply) {
  const dialog = new Dialog("wan-train-recipes", say("Recipes"));
  const { box } = dialog;
  const close = () => dialog.close();
  if (!presets.length) block("", box).textContent = say("The server sent no recipes: reload the page.");
  const select = document.createElement("select");
  select.setAttribute("aria-label", say("Recipe"));
  for (const [index, { title }] of presets.entries()) {
    const option = document.createElement("option");
    option.value = String(index);
    option.textContent = title;
    select.append(option);
  }
  const told = block("wan-train-recipe-told");
  const table = block("wan-train-recipe-table");
  const chosen = () => presets[Number(select.value)];
  const show = () => describe(chosen(), changesOf(chosen()), told, table);
  select.addEventListener("change", () => {
    keep(KEPT, { title: chosen().title });
    show();
  });
  if (presets.length) {
    select.value = String(
      Math.max(
        0,
        presets.findIndex(({ title }) => title === recall(KEPT).title),
      ),
    );
    box.append(select, told, table);
    show();
  }
  const buttons = block("wan-train-buttons", box);
  if (presets.length) {
    button(buttons, say("Use this recipe"), "", () => {
      apply(chosen());
      close();
    });
  }
  button(buttons, say("Cancel"), "", close);
  (presets.length ? select : buttons.querySelector("button"))?.focus();
}

/**
 * Say what a recipe is for, and what it changes: nodes that are set alike have one line.
 * @param {Preset} preset
 * @param {Change[]} changes
 * @param {HTMLElement} told
 * @param {HTMLElement} table
 */
function describe(preset, changes, told, table) {
  told.textContent = preset.description;
  if (preset.source) block("", told).textContent = preset.source;
  if (preset.asks) block("", told).textContent = say("You give: {what}.", { what: preset.asks });
  /** @type {Map<string, { becomes: unknown, now: Set<string>, why: string }>} */
  const lines = new Map();
  for (const { name, now, becomes } of changes) {
    const line = lines.get(name) ?? { becomes, now: new Set(), why: preset.why?.[name] ?? say("The usual value.") };
    line.now.add(words(now));
    lines.set(name, line);
  }
  const rows = [...lines].map(([name, { becomes, now, why }]) =>
    row("td", name, [...now].join(", "), words(becomes), why),
  );
  const made = document.createElement("table");
  made.append(row("th", say("Setting"), say("Now"), say("Then"), say("Where it comes from")), ...rows);
  table.replaceChildren(rows.length ? made : say("This workflow has all its values already."));
}

/** @param {unknown} value */
function words(value) {
  return value === "" ? say("(empty)") : String(value);
}

/**
 * @param {"td" | "th"} kind
 * @param {string[]} texts
 */
function row(kind, ...texts) {
  const line = document.createElement("tr");
  for (const text of texts) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    line.append(cell);
  }
  return line;
}
