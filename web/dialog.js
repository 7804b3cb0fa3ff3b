// A window over the page. Knows nothing of ComfyUI.

import { block } from "./elements.js";

const FOCUSABLE = "button:enabled, select, input:enabled, [tabindex]";

/** It closes with Escape, and with a click beside it; the Tab key stays inside, and what had the focus before has it after. */
export class Dialog {
  /**
   * @param {string} kind a class of styles
   * @param {string} label what it is, for who does not see it
   * @param {() => void} [onClose]
   */
  constructor(kind, label, onClose = () => {}) {
    this.onClose = onClose;
    this.before = /** @type {HTMLElement | null} */ (document.activeElement);
    this.shade = block("wan-train-shade", document.body);
    this.box = block(`wan-train-window ${kind}`, this.shade);
    this.box.setAttribute("role", "dialog");
    this.box.setAttribute("aria-modal", "true");
    this.box.setAttribute("aria-label", label);
    this.onKey = (/** @type {KeyboardEvent} */ event) => this.key(event);
    window.addEventListener("keydown", this.onKey, true);
    this.shade.addEventListener("pointerdown", (event) => event.target === this.shade && this.close());
  }

  get isOpen() {
    return this.shade.isConnected;
  }

  close() {
    window.removeEventListener("keydown", this.onKey, true);
    this.onClose();
    this.shade.remove();
    this.before?.focus?.();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    event.stopPropagation(); // else the page takes it for the graph
    if (event.key === "Escape") this.close();
    if (event.key !== "Tab") return;
    const all = [...this.box.querySelectorAll(FOCUSABLE)];
    const [first, last] = [all[0], all[all.length - 1]];
    const leaves = document.activeElement === (event.shiftKey ? first : last);
    if (!leaves && this.box.contains(document.activeElement)) return;
    event.preventDefault();
    /** @type {HTMLElement} */ (event.shiftKey ? last : first).focus();
  }
}
