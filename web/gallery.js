// The gallery of a run's previews: prompts by steps, all videos at the same moment, and two steps laid over each other.
// Knows nothing of ComfyUI.

import { Dialog } from "./dialog.js";
import { block, button } from "./elements.js";
import { Film } from "./film.js";
import { keep, number, recall } from "./kept.js";
import { titleOf } from "./prompt_title.js";
import { say } from "./words.js";

/**
 * @typedef {object} Gallery
 * @property {{ name: string, prompt: string }[]} prompts
 * @property {{ step: number, files: (string | null)[] }[]} steps oldest first; of files one for each prompt, null: none
 */

/** @typedef {{ prompt: number, left: number, right: number }} Pair a prompt's number, and two steps */

/**
 * The steps of which a prompt has a video.
 * @param {Gallery} gallery
 * @param {number} prompt
 */
export function stepsOf(gallery, prompt) {
  return gallery.steps.filter(({ files }) => files[prompt]).map(({ step }) => step);
}

/**
 * What is compared: as before where that is still there, else the oldest with the newest.
 * @param {Gallery} gallery
 * @param {Pair | undefined} pair
 * @returns {Pair | undefined} undefined: there is no video
 */
export function pairOf(gallery, pair) {
  const has = (/** @type {number} */ number) => stepsOf(gallery, number).length > 0;
  const prompt = pair && has(pair.prompt) ? pair.prompt : gallery.prompts.findIndex((_, number) => has(number));
  if (prompt < 0) return undefined;
  const steps = stepsOf(gallery, prompt);
  const kept = (/** @type {number | undefined} */ step, /** @type {number} */ other) =>
    step !== undefined && steps.includes(step) ? step : other;
  return { prompt, left: kept(pair?.left, steps[0]), right: kept(pair?.right, steps[steps.length - 1]) };
}

/**
 * @param {any} kept
 * @returns {Pair | undefined}
 */
function keptPair(kept) {
  const [prompt, left, right] = [kept?.prompt, kept?.left, kept?.right].map(number);
  if (prompt === undefined || left === undefined || right === undefined) return undefined;
  return { prompt, left, right };
}

/** A window over the page; it has a button to close it, too. */
export class GalleryWindow {
  /**
   * @param {() => Promise<Gallery>} fetchGallery
   * @param {(file: string) => string} addressOf where a video is fetched from
   * @param {string} place a name under which is kept what was chosen
   */
  constructor(fetchGallery, addressOf, place = "") {
    this.place = place;
    this.fetchGallery = fetchGallery;
    this.addressOf = addressOf;
    this.film = new Film();
    /** @type {Gallery} */
    this.gallery = { prompts: [], steps: [] };
    const kept = recall(place);
    /** @type {Pair | undefined} */
    this.pair = keptPair(kept.pair);
    this.divided = String(number(kept.divided) ?? 50); // percent that the left step has
    this.dialog = new Dialog("wan-train-gallery", say("Previews of this run"), () => this.film.close());
    this.box = this.dialog.box;
    this.closer = this.controls();
    this.told = block("wan-train-caption", this.box);
    this.told.setAttribute("role", "status");
    this.compare = block("wan-train-compare", this.box);
    this.grid = block("wan-train-grid-of-previews", this.box);
    this.grid.tabIndex = 0; // so that the arrow keys scroll it
    this.grid.setAttribute("role", "region");
    this.grid.setAttribute("aria-label", say("All previews, prompts by steps"));
    this.closer.focus();
    this.ready = this.refresh();
  }

  get isOpen() {
    return this.dialog.isOpen;
  }

  close() {
    this.dialog.close();
  }

  /** Show what there is now. What has not changed is not loaded again. */
  async refresh() {
    try {
      this.gallery = await this.fetchGallery();
    } catch (error) {
      console.warn("[wan_train] the gallery could not be fetched", error);
      this.told.textContent = say("The previews can't be fetched: is ComfyUI still running?");
      return;
    }
    if (!this.isOpen) return;
    this.told.textContent = this.gallery.steps.length ? "" : say("There is no preview yet.");
    this.show();
  }

  controls() {
    const bar = block("wan-train-buttons", this.box);
    const name = () => (this.film.isPlaying ? say("Pause") : say("Play"));
    const play = button(bar, name(), "", () => {
      this.film.isPlaying = !this.film.isPlaying;
      play.textContent = name();
    });
    const moment = range(bar, say("Moment of all videos"), "0", "1000");
    moment.addEventListener("input", () => {
      this.film.isPlaying = false;
      play.textContent = name();
      this.film.seek(moment.valueAsNumber / 1000);
    });
    this.film.onMoment = (share) => {
      moment.value = String(Math.round(1000 * share));
    };
    for (const control of [moment, play]) {
      control.disabled = !this.film.isExact;
      if (!this.film.isExact)
        control.title = say(
          "This browser plays each video on its own here: to have all at the same moment, open ComfyUI as localhost or over " +
            "https, in a browser that can take videos apart, such as Chrome, Edge or Firefox.",
        );
    }
    return button(bar, say("Close"), "", () => this.close());
  }

  showPair() {
    this.compare.replaceChildren();
    const pair = this.pair;
    if (!pair) return;
    const choices = block("wan-train-choices", this.compare);
    const prompts = this.gallery.prompts.map((prompt, number) => ({ value: number, text: titleOf(prompt) }));
    if (prompts.length > 1)
      this.choice(choices, say("Prompt"), prompts, pair.prompt, (prompt) => ({ ...pair, prompt }));
    const steps = stepsOf(this.gallery, pair.prompt).map((step) => ({
      value: step,
      text: say("step {step}", { step }),
    }));
    this.choice(choices, say("Left"), steps, pair.left, (left) => ({ ...pair, left }));
    this.choice(choices, say("Right"), steps, pair.right, (right) => ({ ...pair, right }));
    const stage = block("wan-train-stage", this.compare);
    this.film.add(stage, this.address(pair.prompt, pair.left), say("step {step}, on the left", { step: pair.left }));
    const above = block("wan-train-above", stage);
    this.film.add(above, this.address(pair.prompt, pair.right), say("step {step}, on the right", { step: pair.right }));
    const divide = range(this.compare, say("Where the left step ends and the right one begins"), "0", "100");
    divide.value = this.divided;
    const cut = () => {
      this.divided = divide.value;
      above.style.clipPath = `inset(0 0 0 ${divide.value}%)`;
    };
    divide.addEventListener("input", cut);
    divide.addEventListener("change", () => keep(this.place, { divided: divide.valueAsNumber }));
    cut();
  }

  showGrid() {
    this.grid.replaceChildren();
    const { prompts, steps } = this.gallery;
    if (!steps.length) return;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    head.append(header(say("Prompt"), "col"), ...steps.map(({ step }) => header(say("step {step}", { step }), "col")));
    const body = table.createTBody();
    for (const [number, prompt] of prompts.entries()) {
      const row = body.insertRow();
      row.append(header(titleOf(prompt), "row"));
      for (const { step, files } of steps) {
        const cell = row.insertCell();
        if (!files[number]) continue;
        const chooses = button(cell, "", "", () => this.choose(number, step));
        const title = say("Compare step {step} of {prompt}", { step, prompt: titleOf(prompt) });
        chooses.setAttribute("aria-label", title);
        chooses.setAttribute("aria-pressed", String(this.isChosen(number, step)));
        this.film.add(chooses, this.address(number, step), "");
      }
    }
    this.grid.append(table);
  }

  /**
   * @param {number} prompt
   * @param {number} step
   */
  isChosen(prompt, step) {
    return this.pair?.prompt === prompt && (this.pair.left === step || this.pair.right === step);
  }

  /**
   * A video of the grid comes to the right, and what was there to the left, if it is of the same prompt.
   * @param {number} prompt
   * @param {number} step
   */
  choose(prompt, step) {
    const left = this.pair?.prompt === prompt ? this.pair.right : stepsOf(this.gallery, prompt)[0];
    this.take({ prompt, left, right: step });
  }

  /**
   * Compare these, and keep that.
   * @param {Pair} pair
   */
  take(pair) {
    this.pair = pair;
    this.show();
    keep(this.place, { pair: this.pair });
  }

  /** Show what is chosen now; what has the focus keeps it. */
  show() {
    this.pair = pairOf(this.gallery, this.pair);
    this.film.begin();
    const focused = document.activeElement?.getAttribute("aria-label");
    this.showPair();
    this.showGrid();
    this.film.end();
    const again = [...this.box.querySelectorAll("button, select")].find(
      (e) => e.getAttribute("aria-label") === focused,
    );
    if (focused && again instanceof HTMLElement) again.focus();
  }

  /**
   * @param {number} prompt
   * @param {number} step
   */
  address(prompt, step) {
    const file = this.gallery.steps.find((row) => row.step === step)?.files[prompt];
    return this.addressOf(file ?? "");
  }

  /**
   * @param {HTMLElement} parent
   * @param {string} name
   * @param {{ value: number, text: string }[]} items
   * @param {number} value
   * @param {(value: number) => Pair} change
   */
  choice(parent, name, items, value, change) {
    const label = document.createElement("label");
    label.textContent = `${name} `;
    const select = document.createElement("select");
    select.setAttribute("aria-label", name);
    for (const item of items) select.add(new Option(item.text, String(item.value)));
    select.value = String(value);
    select.addEventListener("change", () => this.take(change(Number(select.value))));
    label.append(select);
    parent.append(label);
  }
}

/**
 * @param {HTMLElement} parent
 * @param {string} label
 * @param {string} min
 * @param {string} max
 */
function range(parent, label, min, max) {
  const made = document.createElement("input");
  Object.assign(made, { type: "range", min, max });
  made.setAttribute("aria-label", label);
  parent.append(made);
  return made;
}

/**
 * @param {string} text
 * @param {string} scope
 */
function header(text, scope) {
  const made = document.createElement("th");
  made.scope = scope;
  made.textContent = text;
  return made;
}
