// A live loss chart as one element with an inline SVG, and below it the previews of the run. Knows nothing of ComfyUI.

import { Buttons } from "./buttons.js";
import { Controls, help } from "./chart_controls.js";
import { addressOfRun, Curves, NO_SERVER } from "./chart_curves.js";
import { drawLegend, drawLines, drawMarks, scalesWidth } from "./chart_draw.js";
import { download, savePicture } from "./chart_export.js";
import { linesOf, shown, within } from "./chart_lines.js";
import { axes, logRange, makeView, textSize } from "./chart_scale.js";
import { drawTip } from "./chart_tip.js";
import { fitted, Zoom } from "./chart_zoom.js";
import { lossRange, smooth, windowFor } from "./curve.js";
import { block, shape } from "./elements.js";
import { writeHead } from "./head.js";
import { keep, number, ofRun, recall } from "./kept.js";
import { Previews } from "./previews.js";
import { stateOf } from "./run_states.js";
import { say } from "./words.js";

/**
 * What the server tells of a run. Of a long one it has a part of the points, and `smoothed`, their averages.
 * @typedef {object} Report
 * @property {number} steps of the whole run
 * @property {string} state
 * @property {string} line what the run does now, or how it ended
 * @property {Point[]} [losses]
 * @property {Point[]} [validation]
 * @property {Point[]} [smoothed]
 * @property {[number, string][]} [alarms] steps at which the training seemed to diverge, and sentences that say so
 * @property {Preview[]} [previews] all that there are
 * @property {string[]} [facts] numbers with what they are: time left, seconds a step
 * @property {string[]} [asks] what can be asked of the run now
 * @property {string} [notes] below the curve: which run it is, how it ended, its warnings
 */

/**
 * @typedef {import("./curve.js").Point} Point
 * @typedef {import("./previews.js").Preview} Preview
 * @typedef {import("./chart_scale.js").View} View
 * @typedef {import("./chart_lines.js").Line} Line
 */

const byStep = (/** @type {Map<number, number>} */ values) => [...values].sort((a, b) => a[0] - b[0]);

/** `element` is what is shown; `set` replaces the curve, `add` goes on with it, `say` writes below it. */
export class LossChart {
  /** @type {Map<number, number>} */
  losses = new Map();
  /** @type {Map<number, number>} */
  known = new Map(); // averages that the server has computed over all points
  /** @type {Map<number, number>} */
  validation = new Map();
  /** @type {[number, string][]} */
  alarms = [];
  /** @type {number[]} */
  steps = [];
  /** @type {number[]} */
  averages = [];
  isThinned = false; // whether the server has more points than these
  knownWindow = 0; // that `known` looks back over
  /** @type {number | null} */
  pointer = null; // where the mouse is, in pixels of the plot
  /** @type {number | null} */
  cursor = null; // the step that arrow keys have gone to
  /** @type {number | null} */
  frame = null; // the drawing that is asked for
  /** @type {View | null} */
  drawn = null; // how the plot lies now
  /** @type {LossChart["run"] | undefined} */
  failed; // what the node's failure has put in the place of the run
  /** @type {LossChart["run"] | undefined} */
  sound; // the run in whose place it stands

  /**
   * See Previews, and Buttons.
   * @param {(file: string) => string} addressOf
   * @param {() => void} onToggle
   * @param {(ask: string) => Promise<string>} onAsk
   * @param {import("./chart_curves.js").Server} server
   * @param {() => string} place a name under which is kept what was chosen; "": nothing is
   */
  constructor(
    addressOf = (file) => file,
    onToggle = () => {},
    onAsk = async () => "",
    server = NO_SERVER,
    place = () => "",
  ) {
    this.server = server;
    this.place = place;
    this.element = block("wan-train-chart");
    this.head = block("wan-train-head", this.element);
    this.alarm = block("wan-train-alarm", this.element);
    this.alarm.setAttribute("role", "alert");
    const row = block("wan-train-row", this.element);
    this.buttons = new Buttons(row, onAsk);
    this.controls = new Controls(row, {
      onChange: () => this.choose(),
      listOthers: () => server.fetch(`${addressOfRun(server.run() ?? "")}/others`),
      onWhole: () => this.zoom.set(null),
      onPng: () => this.save(),
      onCsv: () => {
        for (const run of [server.run(), ...this.controls.others]) {
          if (run) download(server.address(`${addressOfRun(run)}/curve.csv`), `${run}.csv`);
        }
      },
    });
    this.legend = block("wan-train-legend", this.element);
    this.legend.setAttribute("role", "list");
    this.plot = block("wan-train-plot", this.element);
    this.previews = new Previews(this.element, addressOf, onToggle, () => ofRun(server.run()));
    this.notes = block("wan-train-notes", this.element);
    this.svg = shape("svg", { width: "100%", height: "100%", "aria-hidden": "true" });
    this.tip = block("wan-train-tip", this.element);
    this.spoken = block("wan-train-spoken");
    this.spoken.setAttribute("role", "status");
    this.told = block("wan-train-spoken", this.element); // the state, when it changes
    this.told.setAttribute("role", "status");
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "figure");
    this.plot.setAttribute("aria-description", help());
    this.plot.addEventListener("pointerdown", () => this.controls.close());
    this.plot.append(this.svg, this.spoken);
    this.curves = new Curves(
      server,
      () => this.wanted(),
      (trouble) => this.take(trouble),
    );
    this.zoom = new Zoom(this.plot, {
      steps: () => this.lastStep,
      view: () => this.drawn,
      onPoint: (at) => this.point(at),
      onStep: (by) => this.stepTo(by),
      onChange: () => this.choose(),
    });
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe(this.plot);
    /** @type {{ steps: number, state: string, line: string, facts: string[] }} */
    this.run = { steps: 0, state: "new", line: "", facts: [] };
    this.clear();
  }

  /** The step at the right edge of the whole run. */
  get lastStep() {
    return Math.max(this.run.steps, this.steps.at(-1) ?? 0, 1);
  }

  /** Steps that averages look back over. */
  get window() {
    return this.controls.window ?? windowFor(this.run.steps || this.steps.length);
  }

  /** Forget the curve. */
  clear() {
    this.losses = new Map();
    this.known = new Map();
    this.validation = new Map();
    this.alarms = [];
    this.isThinned = false;
    this.run = { steps: 0, state: "new", line: "", facts: [] };
    this.buttons.set([]);
    this.controls.clear();
    this.curves.clear();
    this.zoom.range = null;
    this.told.textContent = "";
    this.pointer = null;
    this.cursor = null;
    this.previews.clear();
    this.schedule();
  }

  /** Choose again what was chosen before the page was loaded anew: of the node how it draws, of the run what is seen. */
  recall() {
    const run = recall(ofRun(this.server.run()));
    this.controls.restore(recall(this.place()), run);
    const [first, last] = Array.isArray(run.zoom) ? run.zoom.map(number) : [];
    this.zoom.range = first !== undefined && last !== undefined && first < last ? [first, last] : null;
    this.previews.chosen = number(run.preview);
    this.schedule();
  }

  /** Keep what is chosen now. */
  keep() {
    const { of, window, isLog, others } = this.controls;
    keep(this.place(), { of: [...of], window, isLog });
    keep(ofRun(this.server.run()), { others: [...others], zoom: this.zoom.range });
  }

  /**
   * Replace the curve by the history of a run.
   * @param {Report} history
   */
  set(history) {
    this.losses = new Map();
    this.validation = new Map();
    this.add(history);
    this.known = new Map(history.smoothed ?? []);
    this.isThinned = this.known.size > 0;
    this.knownWindow = windowFor(history.steps || this.losses.size);
    this.zoom.range = this.zoom.range && fitted(this.zoom.range, this.lastStep);
    this.curves.ask();
    this.schedule();
  }

  /**
   * Take in new points.
   * @param {Report} report
   */
  add(report) {
    const { steps, state, line, losses = [], validation = [], previews = this.previews.files } = report;
    const before = this.run.state;
    this.run = { steps, state, line, facts: report.facts ?? [] };
    this.alarms = report.alarms ?? this.alarms;
    this.buttons.set(report.asks ?? [], state);
    if (report.notes !== undefined) this.say(report.notes);
    this.previews.set(previews);
    for (const [step, loss] of losses) {
      this.losses.set(step, loss);
      this.known.delete(step);
    }
    for (const [step, loss] of validation) this.validation.set(step, loss);
    if (state !== before && before !== "new") this.tellState();
    if (state === before) this.curves.follow(this.isThinned);
    else this.curves.ask();
    this.schedule();
  }

  /** Say what the run does now to whoever does not see it. */
  tellState() {
    const { state, line } = this.run;
    this.told.textContent = [stateOf(this.run), state === "error" && line].filter(Boolean).join(": ");
  }

  /**
   * Text below the curve: the summary and the warnings of a finished run.
   * @param {string} text
   */
  say(text) {
    this.notes.textContent = text;
    this.notes.hidden = !text;
    this.schedule();
  }

  /**
   * What is said of the inputs without being asked: below the curve where no run is shown, its first line beside the buttons
   * of a run that has ended, nowhere while one goes on.
   * @param {string} text
   */
  remark(text) {
    if (this.run.state === "new" && !this.losses.size) this.say(text);
    else this.buttons.remark(text.split("\n")[0]);
  }

  /**
   * The node has failed: why, in the place of a state; what more is said of it, below the curve.
   * @param {string} sentence
   */
  fail(sentence) {
    const [why, ...more] = sentence.split("\n");
    if (this.run !== this.failed) this.sound = this.run;
    this.run = { ...this.run, state: "error", line: why, facts: [] };
    if (more.length) this.say(more.join("\n"));
    this.failed = this.run;
    this.tellState();
    this.buttons.set([]);
    this.schedule();
  }

  /**
   * A failure is mended: what was there before stands there again, if it is still shown.
   * @param {string} sentence of the failure
   */
  dropFailure(sentence) {
    const [why, ...more] = sentence.split("\n");
    if (this.sound && this.run === this.failed && this.run.line === why) {
      this.run = this.sound;
      this.buttons.set([], this.run.state);
      this.schedule();
    }
    if ([sentence, more.join("\n")].includes(this.notes.textContent ?? "")) this.say("");
    this.buttons.dropRemark(why);
  }

  /** Draw once before the next frame, however many changes there were. */
  schedule() {
    if (this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** Stop watching the element's size. */
  dispose() {
    this.observer.disconnect();
    if (this.frame !== null) cancelAnimationFrame(this.frame);
  }

  /** What was chosen is another: draw it, and ask for what is not here. */
  choose() {
    if (!this.zoom.drag) {
      this.curves.ask();
      this.keep();
    }
    this.schedule();
  }

  /** What the server is asked for; null where the points that are here suffice. */
  wanted() {
    const { of, others } = this.controls;
    const range = this.isThinned ? this.zoom.range : null;
    const isSmoother = this.isThinned && this.window !== this.knownWindow;
    if (!of.size && !others.size && !range && !isSmoother) return null;
    return { of: [...of], others: [...others], window: this.window, range };
  }

  /**
   * New curves are there.
   * @param {string} trouble
   */
  take(trouble) {
    this.controls.trouble.textContent = trouble;
    const found = this.curves.whole?.runs.map(({ run }) => run);
    if (found && !trouble) this.controls.keepOthers(found); // a run that was chosen may have been deleted
    const own = this.curves.whole?.runs[0]?.series.loss;
    if (own && this.isThinned) {
      const last = own.points.at(-1)?.[0] ?? 0;
      this.losses = new Map([...own.points, ...[...this.losses].filter(([step]) => step > last)]);
      this.known = new Map(own.smoothed);
      this.knownWindow = this.window;
    }
    this.schedule();
  }

  draw() {
    this.element.style.setProperty("--wan-train-text", `${textSize(this.plot)}px`);
    this.series();
    this.drawHead();
    this.svg.replaceChildren();
    this.tip.hidden = true;
    this.drawn = null;
    const lines = this.lines();
    drawLegend(this.legend, lines);
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    if (!this.steps.length || width < 80 || height < 50) return;
    const view = this.view(width, height, lines);
    this.drawn = view;
    this.svg.append(...axes(view));
    const alarms = this.alarms.map(([step]) => step);
    drawMarks(this.svg, view, alarms, this.zoom.drag);
    drawLines(this.svg, width, lines, view);
    const at = this.cursor ?? (this.pointer === null || this.pointer < view.left - 8 ? null : view.step(this.pointer));
    if (at !== null) drawTip(this.svg, this.tip, this.plot, lines, view, at);
  }

  /** Sorted steps, and the smoothed loss at each. */
  series() {
    this.steps = [...this.losses.keys()].sort((a, b) => a - b);
    const raw = this.steps.map((step) => this.losses.get(step) ?? Number.NaN);
    const known = this.steps.map((step) => this.known.get(step));
    this.averages = smooth(raw, 1 - 1 / this.window, known);
  }

  /**
   * All that is drawn; the loss of this run is the first.
   * @returns {Line[]}
   */
  lines() {
    const { part } = this.curves;
    const range = this.zoom.range;
    const isHere = part && range && part.range[0] === range[0] && part.range[1] === range[1];
    const answer = (isHere ? part.answer : this.curves.whole) ?? { runs: [], differences: [] };
    const found = linesOf(answer, this.controls.of);
    const own = isHere ? answer.runs[0].series.loss : null;
    const raw =
      own?.points ?? this.steps.map((step) => /** @type {Point} */ ([step, this.losses.get(step) ?? Number.NaN]));
    const points = own?.smoothed ?? this.steps.map((step, i) => /** @type {Point} */ ([step, this.averages[i]]));
    const held = byStep(this.validation);
    /** @type {Line[]} */
    const lines = [
      { name: say("smoothed loss"), colour: "var(--wan-train-accent)", points, raw, isOwn: true },
      ...found,
    ];
    if (held.length)
      lines.push({
        name: say("held-out loss"),
        colour: "var(--wan-train-held)",
        points: held,
        isHeldOut: true,
        isOwn: true,
      });
    if (!range) return lines;
    return lines.map((line) => ({
      ...line,
      points: within(line.points, range),
      raw: line.raw && within(line.raw, range),
    }));
  }

  drawHead() {
    const step = this.steps.at(-1);
    const average = this.averages.at(-1);
    this.element.classList.toggle("wan-train-empty", step === undefined);
    const held = byStep(this.validation).at(-1)?.[1];
    const last = step === undefined ? undefined : this.losses.get(step);
    writeHead(this.head, this.run, { step, average, last, held });
    const alarm = this.alarms.at(-1)?.[1] ?? "";
    if (this.alarm.textContent !== alarm) this.alarm.textContent = alarm;
    this.alarm.hidden = !alarm;
    this.controls.show(this.window, this.zoom.range !== null);
    const words = [this.head.textContent?.trim(), this.bestWords(), this.legend.textContent].filter(Boolean);
    this.plot.setAttribute("aria-label", `${say("Loss chart")}. ${words.join(". ")}`);
  }

  bestWords() {
    if (!this.steps.length) return "";
    const best = this.averages.reduce((a, b, i) => (b < this.averages[a] ? i : a), 0);
    return say("lowest smoothed loss {loss} at step {step}", {
      loss: shown(this.averages[best]),
      step: this.steps[best],
    });
  }

  /**
   * @param {number} width
   * @param {number} height
   * @param {Line[]} lines
   * @returns {View}
   */
  view(width, height, lines) {
    const ofLoss = lines.filter((line) => !line.hasOwnScale);
    const raw = (ofLoss[0].raw ?? []).map(([, loss]) => loss);
    const smoothed = ofLoss.filter((line) => !line.isHeldOut).flatMap(({ points }) => points.map(([, loss]) => loss));
    const held = ofLoss.filter((line) => line.isHeldOut).flatMap(({ points }) => points.map(([, loss]) => loss));
    const range = lossRange(raw, smoothed, held);
    const { isLog } = this.controls;
    const text = textSize(this.plot);
    return makeView(
      { width, height, text },
      this.zoom.edges,
      isLog ? logRange(range, [...raw, ...smoothed, ...held]) : range,
      { isLog, right: lines.length > ofLoss.length ? scalesWidth(text) : undefined },
    );
  }

  /** @param {number | null} at pixel of the plot; null: the mouse is gone */
  point(at) {
    this.pointer = at;
    if (at !== null) this.cursor = null;
    this.schedule();
  }

  /** @param {number} by steps that are there, from where the cursor is */
  stepTo(by) {
    const [first, last] = this.zoom.edges;
    const there = this.steps.filter((step) => step >= first && step <= last);
    if (!there.length) return;
    const at = this.cursor === null ? -1 : there.indexOf(this.cursor);
    const next = at < 0 ? (by > 0 ? 0 : there.length - 1) : Math.min(there.length - 1, Math.max(0, at + by));
    this.cursor = there[next];
    this.pointer = null;
    this.draw();
    this.spoken.textContent = this.tip.textContent;
  }

  /** A picture of the plot, with its head and legend. */
  async save() {
    try {
      await savePicture(this.plot, this.head, this.legend, `${this.server.run() ?? "loss"}.png`);
    } catch (error) {
      console.warn("[wan_train] the chart could not be made into a picture", error);
      this.controls.trouble.textContent = say("The browser could not make a picture of the chart.");
    }
  }
}
