// The previews of a run: one picture, a slider over the steps, and a button for the gallery. Knows nothing of ComfyUI.

import { block } from "./elements.js";
import { GalleryWindow } from "./gallery.js";
import { keep } from "./kept.js";
import { say } from "./words.js";

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
   * @param {() => string} place a name under which is kept what was chosen
   */
  constructor(parent, addressOf, onToggle, place) {
    this.addressOf = addressOf;
    this.onToggle = onToggle;
    this.place = place;
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
    /** @type {string | undefined} */
    this.newest = undefined; // file
    this.slider.addEventListener("input", () => {
      const index = this.slider.valueAsNumber;
      this.chosen = index < this.files.length - 1 ? this.files[index][0] : undefined; // at the end: the newest, always
      keep(this.place(), { preview: this.chosen ?? null });
      this.show();
    });
    for (const kind of ["pointerdown", "pointermove"]) {
      this.slider.addEventListener(kind, (event) => event.stopPropagation()); // else the node moves, too
    }
    this.slider.setAttribute("aria-label", say("Step of the preview"));
    const buttons = document.createElement("div");
    buttons.className = "wan-train-buttons";
    this.opener = document.createElement("button");
    this.opener.type = "button";
    this.opener.textContent = say("Gallery");
    this.opener.title = say("All prompts and steps, and two steps laid over each other");
    this.opener.addEventListener("click", () => this.open());
    buttons.append(this.opener);
    /** @type {GalleryWindow | undefined} */
    this.gallery = undefined;
    this.element.append(this.picture, this.caption, this.slider, buttons);
    this.element.hidden = true;
  }

  /** Forget them: another run is shown. */
  clear() {
    this.chosen = undefined;
    this.set([]);
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
    const newest = files[files.length - 1]?.[1];
    if (this.gallery?.isOpen && newest !== this.newest) this.gallery.refresh();
    this.newest = newest;
  }

  /** The gallery of the run that is shown now. */
  open() {
    const { addressOf } = this;
    const fetchGallery = async () => {
      const answer = await fetch(addressOf("").replace(/\/$/, ""));
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      return answer.json();
    };
    this.gallery = new GalleryWindow(fetchGallery, addressOf, this.place());
  }

  show() {
    const [step, file] = this.files[this.slider.valueAsNumber];
    const address = this.addressOf(file);
    if (this.picture.getAttribute("src") !== address) this.picture.src = address;
    this.picture.alt = say("preview of step {step}", { step });
    this.caption.textContent = this.picture.alt;
  }
}
