// The row of controls of a chart: which curves, which other runs, how smooth, PNG and CSV. Knows nothing of ComfyUI.

import { block, button } from "./elements.js";
import { number, texts } from "./kept.js";
import { say, sayCount } from "./words.js";

/** @typedef {import("./chart_curves.js").Other} Other */

/** @returns {[name: string, label: string, help: string][]} */
const series = () => [
  [
    "sigma",
    say("loss by noise level"),
    say("One line for each part of the noise levels: learning is seen there, and jumps are not."),
  ],
  ["learning_rate", say("learning rate"), say("On a scale of its own, whose ends are at the right.")],
  [
    "gradient_norm",
    say("gradient norm"),
    say("Before it is clipped. On a scale of its own, whose ends are at the right."),
  ],
];
/** How to zoom. */
export const help = () =>
  say(
    "Drag over the chart to zoom, Shift and drag to move; after a click the wheel zooms, too; a double click shows all. " +
      "Keys: arrows go from step to step, + and - zoom, Shift and arrows move, 0 shows all.",
  );
const WINDOWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
const MOST_OTHERS = 7;

/** What was chosen, and the elements to choose it by. */
export class Controls {
  /** @type {Set<string>} */
  of = new Set();
  /** @type {Set<string>} */
  others = new Set();
  /** @type {number | null} */
  window = null; // steps that the average looks back over; null: as fits the run
  isLog = false;

  /**
   * @param {HTMLElement} parent
   * @param {object} does
   * @param {() => void} does.onChange something else is to be drawn
   * @param {() => Promise<Other[]>} does.listOthers
   * @param {() => void} does.onWhole show the whole run again
   * @param {() => void} does.onPng
   * @param {() => void} does.onCsv
   */
  constructor(parent, does) {
    this.does = does;
    /** @type {HTMLElement} */
    this.element = block("wan-train-controls", parent);
    this.element.setAttribute("role", "toolbar");
    this.element.setAttribute("aria-label", say("Loss chart"));
    this.element.addEventListener("pointerdown", (event) => event.stopPropagation()); // else the node is dragged
    const curves = this.menu(
      say("Curves"),
      say("Draw more than the loss, smoother, or on a logarithmic axis; how to zoom"),
    );
    /** @type {Map<string, HTMLInputElement>} */
    this.boxes = new Map();
    for (const [name, label, told] of series()) {
      const box = this.check(curves, label, told, (on) => this.choose(this.of, name, on));
      this.boxes.set(name, box);
    }
    this.slider = this.addSlider(curves);
    this.log = this.check(curves, say("logarithmic axis"), say("Of the losses, which are often far apart"), (on) => {
      this.isLog = on;
      does.onChange();
    });
    block("wan-train-help", curves).textContent = help();
    this.compare = this.menu(say("Compare"), say("Draw the loss of other runs, too, such as that of the other expert"));
    this.compare.parentElement?.addEventListener("toggle", () => this.fill());
    this.whole = this.button(
      say("Whole run"),
      say("Show the whole run again (a double click does it, too)"),
      does.onWhole,
    );
    this.whole.hidden = true;
    const save = this.menu(say("Save"), say("Save the chart as a file"));
    this.button(say("Picture (PNG)"), say("What is drawn now, with its numbers"), does.onPng, save);
    this.button(say("Table (CSV)"), say("Every step, in a file for each run that is drawn"), does.onCsv, save);
    this.trouble = block("wan-train-answer", this.element);
    this.trouble.setAttribute("role", "status");
  }

  /**
   * @param {string} label
   * @param {string} help
   */
  menu(label, help) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = label;
    summary.title = help;
    details.append(summary);
    details.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      details.open = false;
      summary.focus();
      event.stopPropagation();
    });
    details.addEventListener("toggle", () => {
      for (const other of details.open ? this.element.querySelectorAll("details") : []) {
        if (other !== details) other.open = false;
      }
    });
    this.element.append(details);
    const panel = block("wan-train-menu", details);
    panel.setAttribute("role", "group");
    panel.setAttribute("aria-label", help);
    panel.addEventListener("wheel", (event) => event.stopPropagation());
    return panel;
  }

  /**
   * @param {HTMLElement} panel
   * @param {string} label
   * @param {string} help
   * @param {(on: boolean) => void} onChange
   * @param {boolean} [isOn]
   */
  check(panel, label, help, onChange, isOn = false) {
    const line = document.createElement("label");
    line.title = help;
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = isOn;
    box.addEventListener("change", () => onChange(box.checked));
    line.append(box, ` ${label}`);
    panel.append(line);
    return box;
  }

  /**
   * @param {string} label
   * @param {string} help
   * @param {() => void} onClick
   * @param {HTMLElement} [parent]
   */
  button(label, help, onClick, parent = this.element) {
    return button(parent, label, help, onClick);
  }

  /** @param {HTMLElement} panel */
  addSlider(panel) {
    const line = document.createElement("label");
    line.title = say(
      "Steps that the bold line is averaged over; faint: each step. At the left: as fits the length of the run.",
    );
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = "0";
    slider.max = String(WINDOWS.length);
    slider.value = "0";
    slider.addEventListener("input", () => {
      this.window = slider.valueAsNumber ? WINDOWS[slider.valueAsNumber - 1] : null;
      this.does.onChange();
    });
    for (const kind of ["pointerdown", "pointermove"])
      slider.addEventListener(kind, (event) => event.stopPropagation());
    this.smoothness = document.createElement("span");
    line.append(`${say("smooth over")} `, slider, this.smoothness);
    panel.append(line);
    return slider;
  }

  /**
   * Say how smooth the bold line is, and whether only a part is shown.
   * @param {number} window
   * @param {boolean} isPart
   */
  show(window, isPart) {
    const steps = Math.round(window);
    const many =
      this.window === null
        ? sayCount("{count} step (auto)", "{count} steps (auto)", steps)
        : sayCount("{count} step", "{count} steps", steps);
    const words = window <= 1 ? say("one step") : many;
    if (this.smoothness) this.smoothness.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    this.whole.hidden = !isPart;
  }

  /** Close the menus. */
  close() {
    for (const menu of this.element.querySelectorAll("details")) menu.open = false;
  }

  /**
   * Choose what was chosen before, of this node and of this run.
   * @param {import("./kept.js").Values} node
   * @param {import("./kept.js").Values} run
   */
  restore(node, run) {
    const of = texts(node.of);
    this.of = new Set([...this.boxes.keys()].filter((name) => of.includes(name)));
    for (const [name, box] of this.boxes) box.checked = this.of.has(name);
    const place = WINDOWS.indexOf(number(node.window) ?? 0);
    this.window = place < 0 ? null : WINDOWS[place];
    this.slider.value = String(place + 1);
    this.isLog = node.isLog === true;
    this.log.checked = this.isLog;
    this.others = new Set(texts(run.others).slice(0, MOST_OTHERS));
  }

  /** @param {string[]} there runs that can be drawn */
  keepOthers(there) {
    for (const run of this.others) if (!there.includes(run)) this.others.delete(run);
  }

  /** Forget other runs: the chart shows another. */
  clear() {
    this.others.clear();
    this.trouble.textContent = "";
  }

  /**
   * @param {Set<string>} chosen
   * @param {string} name
   * @param {boolean} on
   */
  choose(chosen, name, on) {
    if (on) chosen.add(name);
    else chosen.delete(name);
    this.does.onChange();
  }

  /** The menu of other runs, made when it is opened. */
  async fill() {
    if (!(/** @type {HTMLDetailsElement} */ (this.compare.parentElement).open)) return;
    this.compare.textContent = "…";
    try {
      const found = await this.does.listOthers();
      this.compare.textContent = found.length ? "" : say("There is no other run in this folder.");
      for (const other of found) this.addOther(other);
    } catch (error) {
      this.compare.textContent = error instanceof Error ? error.message : String(error);
    }
  }

  /** @param {Other} other */
  addOther({ run, name, stage, steps, changed, is_other_expert }) {
    const when = new Date(changed * 1000).toLocaleDateString(undefined, { dateStyle: "medium" });
    const told = `${name} ${stage}, ${sayCount("{count} step", "{count} steps", steps)}, ${when}`;
    const label = is_other_expert ? say("the other expert: {run}", { run: told }) : told;
    const toggle = (/** @type {boolean} */ on) => {
      if (on && this.others.size >= MOST_OTHERS) {
        box.checked = false;
        const most = { most: MOST_OTHERS };
        this.trouble.textContent = say("At most {most} other runs fit into a chart: take one out first.", most);
        return;
      }
      this.trouble.textContent = "";
      this.choose(this.others, run, on);
    };
    const box = this.check(this.compare, label, run, toggle, this.others.has(run));
  }
}
