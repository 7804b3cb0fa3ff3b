// The buttons of a run: what can be asked of it now, and of a training that has not begun. Knows nothing of ComfyUI.

import { block } from "./elements.js";
import { say } from "./words.js";

/** @returns {[ask: string, label: string, help: string][]} */
const labels = () => [
  ["stop", say("Stop"), say("End the run with a checkpoint. The workflow ends here; Run goes on from the checkpoint.")],
  [
    "use",
    say("Stop and use"),
    say("End the run with a checkpoint, and go on in the workflow with the LoRA as it is now."),
  ],
  [
    "pause",
    say("Pause"),
    say("Write checkpoints and free the GPU, until you press Go on. All trainings of the workflow wait."),
  ],
  ["go_on", say("Go on"), say("Train on from the checkpoints.")],
  ["save", say("Save now"), say("Write a checkpoint now; the run goes on.")],
  ["preview", say("Preview now"), say("Make a preview now; the run goes on.")],
  [
    "check",
    say("Check"),
    say("What the training will take: steps, memory, time, disk. Says what is wrong, too. Nothing is run."),
  ],
];
/** States in which nothing is trained, so that what can be asked is a check. */
const IDLE = ["new", "stopped", "finished", "error"];

/** Shows the buttons that fit, and says what was pressed. */
export class Buttons {
  /**
   * @param {HTMLElement} parent
   * @param {(ask: string) => Promise<string>} onAsk does it; gives "" or a sentence why not
   */
  constructor(parent, onAsk) {
    this.element = block("wan-train-buttons", parent);
    this.onAsk = onAsk;
    /** @type {Map<string, HTMLButtonElement>} */
    this.buttons = new Map();
    for (const [ask, label, help] of labels()) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.title = help;
      button.dataset.ask = ask;
      button.addEventListener("click", () => this.press(ask));
      button.addEventListener("pointerdown", (event) => event.stopPropagation()); // else the node is dragged
      this.buttons.set(ask, button);
      this.element.append(button);
    }
    this.answer = block("wan-train-answer", this.element);
    this.answer.setAttribute("role", "status");
    this.set([]);
  }

  /**
   * @param {string[]} asks what can be asked of the run now
   * @param {string} [state] of the run
   */
  set(asks, state = "new") {
    const shown = !asks.length && IDLE.includes(state) ? ["check"] : asks;
    for (const [ask, button] of this.buttons) button.hidden = !shown.includes(ask);
    this.element.hidden = !shown.length;
    if (!asks.length) this.answer.textContent = "";
  }

  /**
   * A sentence beside Check, if that is what can be asked now.
   * @param {string} text
   */
  remark(text) {
    if (!this.buttons.get("check")?.hidden) this.answer.textContent = text;
  }

  /**
   * That sentence is no longer so.
   * @param {string} text
   */
  dropRemark(text) {
    if (this.answer.textContent === text) this.answer.textContent = "";
  }

  /** @param {string} ask */
  async press(ask) {
    const button = this.buttons.get(ask);
    if (!button || button.disabled) return;
    button.disabled = true;
    this.answer.textContent = "…";
    try {
      this.answer.textContent = await this.onAsk(ask);
    } finally {
      button.disabled = false;
    }
  }
}
