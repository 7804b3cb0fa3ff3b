// The previews of a run: one picture, and a slider over the steps. Knows nothing of ComfyUI.

import { block } from "./elements.js";

/** @typedef {[step: number, file: string]} Preview */

/**
 * Index of the preview to show: the newest, or where an older one was `chosen`, that step's if it is still there.
 * @param {Preview[]} files
 * @param {number | undefined} chosen
 */
export function previewIndex(files, chosen) {
  const kept = files.findIndex(([step]) => step === chosen);
  return kept < 0 ? files.length - 1 : kept;
}

/** The slider stays at the newest preview unless it was moved. */
export class Previews {
  /**
   * @param {HTMLElement} parent
   * @param {(file: string) => string} addressOf where a preview is fetched from
   * @param {() => void} onToggle they have appeared or gone
   */
  constructor(parent, addressOf, onToggle) {
    this.addressOf = addressOf;
    this.onToggle = onToggle;
    this.element = block("wan-train-previews", parent);
    this.picture = document.createElement("img");
    this.caption = block("wan-train-caption");
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = "0";
    /** @type {Preview[]} */
    this.files = [];
    /** @type {number | undefined} */
    this.chosen = undefined; // the step that the slider was moved to
    this.slider.addEventListener("input", () => {
      const index = this.slider.valueAsNumber;
      this.chosen = index < this.files.length - 1 ? this.files[index][0] : undefined; // at the end: the newest, always
      this.show();
    });
    for (const kind of ["pointerdown", "pointermove"]) {
      this.slider.addEventListener(kind, (event) => event.stopPropagation()); // else the node moves, too
    }
    this.element.append(this.picture, this.caption, this.slider);
    this.element.hidden = true;
  }

  /**
   * All previews that there are, oldest first.
   * @param {Preview[]} files
   */
  set(files) {
    this.files = files;
    this.slider.max = String(Math.max(0, files.length - 1));
    this.slider.value = String(previewIndex(files, this.chosen));
    this.slider.hidden = files.length < 2;
    const isHidden = !files.length;
    if (this.element.hidden !== isHidden) {
      this.element.hidden = isHidden;
      this.onToggle();
    }
    if (!isHidden) this.show();
  }

  show() {
    const [step, file] = this.files[this.slider.valueAsNumber];
    const address = this.addressOf(file);
    if (this.picture.getAttribute("src") !== address) this.picture.src = address;
    this.picture.alt = `preview of step ${step}`;
    this.caption.textContent = this.picture.alt;
  }
}
