// The words above the curve: what the run does, and its numbers, each with what it is. Knows nothing of ComfyUI.

const EMPTY = "The loss is drawn here while the LoRA trains.";
/** @type {Record<string, string>} */
const SHOWN_STATES = {
  stopped: "stopped",
  stopping: "stopping: the checkpoint is being written",
  paused: "paused",
  finished: "finished",
  error: "failed",
  waiting: "starting",
};

/**
 * What a run does, in words. `line`: what the server says of it; a state of its own has the word above.
 * @param {string} state
 * @param {string} line
 */
function doing(state, line) {
  const shown = SHOWN_STATES[state] ?? "";
  if (state === "error" && line) return `failed: ${line}`;
  return state === "finished" || state === "stopping" ? shown : line || shown;
}

/**
 * @param {HTMLElement} head
 * @param {{ state: string, steps: number, line: string, facts: string[] }} run
 * @param {{ step?: number, average?: number, last?: number, held?: number }} numbers of the newest step; `held`: held-out loss
 */
export function writeHead(head, { state, steps, line, facts }, { step, average, last, held }) {
  const parts = [doing(state, line) || (step === undefined ? EMPTY : "")];
  if (step !== undefined) parts.push(`step ${step} of ${steps}`);
  if (average !== undefined) parts.push(`smoothed loss ${average.toFixed(4)}`);
  if (last !== undefined) parts.push(`last loss ${last.toFixed(4)}`);
  if (held !== undefined) parts.push(`held-out loss ${held.toFixed(4)}`);
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
