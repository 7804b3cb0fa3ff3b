// The window that shows recipes: choose one, see what it changes and why, use it. Knows nothing of ComfyUI.

import { block } from "./elements.js";
import { say } from "./words.js";

/** @typedef {import("./presets.js").Preset} Preset */
/** @typedef {import("./presets.js").Change} Change */

/**
 * Open the window; it closes with Escape, with Cancel, with a click beside it, and when a recipe is used.
 * @param {Preset[]} presets
 * @param {(preset: Preset) => Change[]} changesOf what a recipe would change now
 * @param {(preset: Preset) => void} apply
 */
export function openChooser(presets, changesOf, apply) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const shade = block("wan-train-shade", document.body);
  const box = block("wan-train-recipes", shade);
  box.setAttribute("role", "dialog");
  box.setAttribute("aria-modal", "true");
  box.setAttribute("aria-label", say("Recipes"));

  const close = () => {
    window.removeEventListener("keydown", onKey, true);
    shade.remove();
    before?.focus?.();
  };
  /** @param {KeyboardEvent} event */
  const onKey = (event) => {
    event.stopPropagation(); // else the page takes it for the graph
    if (event.key === "Escape") close();
  };
  window.addEventListener("keydown", onKey, true);
  shade.addEventListener("pointerdown", (event) => event.target === shade && close());

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
  select.addEventListener("change", show);
  if (presets.length) {
    box.append(select, told, table);
    show();
  }
  const buttons = block("wan-train-buttons", box);
  if (presets.length) {
    button(buttons, say("Use this recipe"), () => {
      apply(chosen());
      close();
    });
  }
  button(buttons, say("Cancel"), close);
  (presets.length ? select : buttons.querySelector("button"))?.focus();
}

/**
 * @param {HTMLElement} parent
 * @param {string} label
 * @param {() => void} onClick
 */
function button(parent, label, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", onClick);
  parent.append(made);
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
