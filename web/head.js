// The words above the curve: what the run does, and its numbers, each with what it is. Knows nothing of ComfyUI.

import { say } from "./words.js";

/** @returns {Record<string, string>} */
const shownStates = () => ({
  stopped: say("stopped"),
  stopping: say("stopping: the checkpoint is being written"),
  paused: say("paused"),
  finished: say("finished"),
  error: say("failed"),
  waiting: say("starting"),
});

/**
 * What a run does, in words. `line`: what the server says of it; a state of its own has the word above.
 * @param {string} state
 * @param {string} line
 */
function doing(state, line) {
  const shown = shownStates()[state] ?? "";
  if (state === "error" && line) return say("failed: {why}", { why: line });
  return state === "finished" || state === "stopping" ? shown : line || shown;
}

/**
 * @param {HTMLElement} head
 * @param {{ state: string, steps: number, line: string, facts: string[] }} run
 * @param {{ step?: number, average?: number, last?: number, held?: number }} numbers of the newest step; `held`: held-out loss
 */
export function writeHead(head, { state, steps, line, facts }, { step, average, last, held }) {
  const parts = [
    doing(state, line) || (step === undefined ? say("The loss is drawn here while the LoRA trains.") : ""),
  ];
  if (step !== undefined) parts.push(say("step {step} of {steps}", { step, steps }));
  if (average !== undefined) parts.push(say("smoothed loss {loss}", { loss: average.toFixed(4) }));
  if (last !== undefined) parts.push(say("last loss {loss}", { loss: last.toFixed(4) }));
  if (held !== undefined) parts.push(say("held-out loss {loss}", { loss: held.toFixed(4) }));
  parts.push(...facts);
  head.classList.toggle("wan-train-error", state === "error");
  head.replaceChildren(...parts.filter(Boolean).flatMap((text) => [part(text), " "]));
}

/**
 * A number or a few words that stay together.
 * @param {string} text
 */
function part(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element;
}
