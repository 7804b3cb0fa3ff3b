// The window that shows recipes: choose one, see what it changes and why, use it. Knows nothing of ComfyUI.

import { Dialog } from "./dialog.js";
import { block, button } from "./elements.js";
import { keep, recall } from "./kept.js";
import { say } from "./words.js";

const KEPT = "recipes"; // which one was looked at

/** @typedef {import("./presets.js").Preset} Preset */
/** @typedef {import("./presets.js").Change} Change */

/** @type {Dialog | undefined} */
let shown;

/** Whether the window is there, of whichever node's button. */
export function isChooserOpen() {
  return Boolean(shown?.isOpen);
}

/**
 * Open the window; it closes with Escape, with Cancel, with a click beside it, and when a recipe is used. Those for the
 * workflow's model come first; the others can be read, not used.
 * @param {Preset[]} presets
 * @param {(preset: Preset) => Change[]} changesOf what a recipe would change now
 * @param {(preset: Preset) => void} apply
 * @param {(preset: Preset) => string} refusalOf why it can't be used in this workflow; "" where it can
 */
export function openChooser(presets, changesOf, apply, refusalOf) {
  const dialog = new Dialog("wan-train-recipes", say("Recipes"));
  shown = dialog;
  const { box } = dialog;
  const close = () => dialog.close();
  if (!presets.length) block("", box).textContent = say("The server sent no recipes: reload the page.");
  const select = document.createElement("select");
  select.setAttribute("aria-label", say("Recipe"));
  const fitting = presets.filter((preset) => !refusalOf(preset));
  /** @type {Map<string, HTMLOptGroupElement>} */
  const groups = new Map();
  for (const preset of [...fitting, ...presets.filter((one) => !fitting.includes(one))]) {
    const group = groups.get(preset.model) ?? document.createElement("optgroup");
    group.label = say("For {model}", { model: preset.model });
    groups.set(preset.model, group);
    const option = document.createElement("option");
    option.value = String(presets.indexOf(preset));
    option.textContent = preset.title;
    group.append(option);
  }
  select.append(...groups.values());
  const told = block("wan-train-recipe-told");
  const table = block("wan-train-recipe-table");
  const chosen = () => presets[Number(select.value)];
  const buttons = block("wan-train-buttons");
  const use = presets.length
    ? button(buttons, say("Use this recipe"), "", () => {
        apply(chosen());
        close();
      })
    : undefined;
  button(buttons, say("Cancel"), "", close);
  const show = () => {
    const refusal = refusalOf(chosen());
    describe(chosen(), refusal ? [] : changesOf(chosen()), refusal, told, table);
    if (use) use.disabled = Boolean(refusal);
  };
  select.addEventListener("change", () => {
    keep(KEPT, { title: chosen().title });
    show();
  });
  if (presets.length) {
    const offered = fitting.length ? fitting : presets;
    const kept = offered.find(({ title }) => title === recall(KEPT).title);
    select.value = String(presets.indexOf(kept ?? offered[0]));
    box.append(select, told, table);
    show();
  }
  box.append(buttons);
  (presets.length ? select : buttons.querySelector("button"))?.focus();
}

/**
 * Say what a recipe is for, and what it changes: nodes that are set alike have one line.
 * @param {Preset} preset
 * @param {Change[]} changes
 * @param {string} refusal why it can't be used here, which stands in the place of the changes
 * @param {HTMLElement} told
 * @param {HTMLElement} table
 */
function describe(preset, changes, refusal, told, table) {
  told.textContent = preset.description;
  if (preset.source) block("", told).textContent = preset.source;
  if (preset.asks) block("", told).textContent = say("You give: {what}.", { what: preset.asks });
  if (refusal) {
    const why = block("wan-train-recipe-refused");
    why.setAttribute("role", "status");
    why.textContent = refusal;
    table.replaceChildren(why);
    return;
  }
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
