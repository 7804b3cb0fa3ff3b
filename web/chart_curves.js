// The curves beside a run's own loss, asked of the server when they are wanted. Knows nothing of ComfyUI.

import { say } from "./words.js";

/** @typedef {import("./curve.js").Point} Point */
/** @typedef {import("./chart_zoom.js").Range} Range */
/** @typedef {{ points: Point[], smoothed: Point[] }} Series */
/** @typedef {Series & { low: number, high: number }} OfSigmas losses at these noise levels */

/**
 * @typedef {object} RunCurves
 * @property {string} run name of its folder
 * @property {string} name
 * @property {string} stage
 * @property {number} steps
 * @property {string} note what is not exact
 * @property {{ loss: Series, held_out: Series, learning_rate?: Series, gradient_norm?: Series, sigma?: OfSigmas[] }} series
 */

/**
 * @typedef {object} Answer
 * @property {RunCurves[]} runs the chart's own first
 * @property {{ name: string, values: string[] }[]} differences settings that the runs do not share
 */

/**
 * A run that can be shown beside the chart's own.
 * @typedef {{ run: string, name: string, stage: string, steps: number, changed: number, is_other_expert: boolean }} Other
 */

/**
 * How the chart reaches the server.
 * @typedef {object} Server
 * @property {(path: string) => Promise<any>} fetch the answer's JSON; an Error with a sentence where there is none
 * @property {(path: string) => string} address for a download
 * @property {() => string | null} run that the chart shows
 */

/** @type {Server} */
export const NO_SERVER = {
  fetch: () => Promise.reject(new Error("there is no server")),
  address: String,
  run: () => null,
};
const EVERY_MS = 3000; // at most, while a run goes on
const EVERY_MS_LONG = 15_000; // one of so many steps that the server reads long

/** @typedef {{ of: string[], others: string[], window: number | null, range: Range | null }} Wanted */

/** @param {string} run */
export const addressOfRun = (run) => `/wan_train/runs/${encodeURIComponent(run)}`;

/** Asks for what is wanted, one request at a time, and again when something else is wanted meanwhile. */
export class Curves {
  /** @type {Answer | null} */
  whole = null; // of the whole run
  /** @type {{ range: Range, answer: Answer } | null} */
  part = null; // of the steps that are zoomed to
  isBusy = false;
  isAskedAgain = false;
  asked = 0; // when

  /**
   * @param {Server} server
   * @param {() => Wanted | null} wanted null: nothing
   * @param {(trouble: string) => void} onAnswer there are new curves, or a sentence why there are none
   */
  constructor(server, wanted, onAnswer) {
    this.server = server;
    this.wanted = wanted;
    this.onAnswer = onAnswer;
  }

  /** Forget them: the chart shows another run. */
  clear() {
    this.whole = null;
    this.part = null;
  }

  /**
   * The run has moved on.
   * @param {boolean} isLong
   */
  follow(isLong) {
    if (performance.now() - this.asked >= (isLong ? EVERY_MS_LONG : EVERY_MS)) this.ask();
  }

  /** Something else is wanted. */
  async ask() {
    const run = this.server.run();
    const wanted = this.wanted();
    if (!run || !wanted) {
      this.clear();
      return;
    }
    if (this.isBusy) {
      this.isAskedAgain = true;
      return;
    }
    this.isBusy = true;
    this.asked = performance.now();
    let trouble = "";
    try {
      const whole = await this.server.fetch(query(run, { ...wanted, range: null }));
      const part = wanted.range && { range: wanted.range, answer: await this.server.fetch(query(run, wanted)) };
      if (this.server.run() === run) [this.whole, this.part] = [whole, part];
    } catch (error) {
      trouble = error instanceof Error ? error.message : String(error);
    } finally {
      this.isBusy = false;
    }
    if (this.isAskedAgain) {
      this.isAskedAgain = false;
      await this.ask();
    } else this.onAnswer(trouble);
  }
}

/**
 * @param {string} run
 * @param {Wanted} wanted
 */
function query(run, { of, others, window, range }) {
  const asked = new URLSearchParams();
  for (const name of [run, ...others]) asked.append("run", name);
  for (const name of ["loss", "held_out", ...of]) asked.append("of", name);
  if (window !== null) asked.set("window", String(window));
  if (range) {
    asked.set("from", String(Math.floor(range[0])));
    asked.set("to", String(Math.ceil(range[1])));
  }
  return `/wan_train/curves?${asked}`;
}

/**
 * What tells a run of an answer from the first one, in the words of the node.
 * @param {Answer} answer
 * @param {number} place of the run
 */
export function differencesOf({ differences }, place) {
  return differences
    .filter(({ values }) => values[place] !== values[0])
    .map(({ name, values }) =>
      say("{setting} {value} (here {own})", { setting: name, value: values[place], own: values[0] }),
    );
}
