// The list of all runs: a card each, with what it did and what can be done with it. Knows nothing of ComfyUI.

import { block, button } from "./elements.js";
import { keep, recall } from "./kept.js";
import { expertOf, stateOf } from "./run_states.js";
import { chosen, facts, GOING, orders, sizeOf, words } from "./run_words.js";
import { say } from "./words.js";

/** @typedef {import("./run_words.js").Run} Run */
/** @typedef {import("./run_words.js").Difference} Difference */

/**
 * What the buttons do. Each gives a sentence of how it went; "" for none.
 * @typedef {object} Actions
 * @property {string} [watch] address of the page for a phone
 * @property {(run: Run) => string} pictureOf address of its picture; "" where there is none
 * @property {(run: Run) => Promise<string>} open
 * @property {(run: Run) => Promise<string>} resume
 * @property {(run: Run, more: number) => Promise<string>} extend
 * @property {(run: Run) => Promise<{ path: string, size: number, holds: string, settings: [string, string][] }>} about
 * @property {(run: Run) => Promise<string>} remove
 * @property {(one: Run, other: Run) => Promise<Difference[]>} compare
 * @property {(text: string) => Promise<void>} copy
 */

const KEPT = "runs"; // what is searched, and the order

/** `element` is what is shown; `set` gives it the runs. */
export class RunList {
  /** @type {Run[]} */
  runs = [];
  /** @type {Map<string, { told: string, card: HTMLElement }>} */
  cards = new Map();
  /** @type {string | null} */
  first = null; // the run that waits for another to be compared with

  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.element = block("wan-train-runs");
    const top = block("wan-train-runs-top", this.element); // stays while the page scrolls
    const bar = block("wan-train-runs-bar", top);
    this.search = document.createElement("input");
    this.search.type = "search";
    this.search.placeholder = say("Search runs");
    this.search.setAttribute("aria-label", say("Search runs by name, expert, state or model"));
    this.order = document.createElement("select");
    this.order.setAttribute("aria-label", say("Sort runs by"));
    for (const [value, label] of Object.entries(orders())) this.order.add(new Option(label, value));
    bar.append(this.search, this.order);
    const kept = recall(KEPT);
    if (typeof kept.search === "string") this.search.value = kept.search;
    if (typeof kept.order === "string" && kept.order in orders()) this.order.value = kept.order;
    const choose = () => {
      keep(KEPT, { search: this.search.value, order: this.order.value });
      this.show();
    };
    this.search.addEventListener("input", choose);
    this.order.addEventListener("change", choose);
    // Keys that are typed here are no shortcuts of the graph.
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.status = block("wan-train-runs-status", top);
    this.status.setAttribute("role", "status");
    this.list = document.createElement("ul");
    this.list.setAttribute("aria-label", say("Runs"));
    this.element.append(this.list);
    if (actions.watch) {
      const link = document.createElement("a");
      Object.assign(link, {
        href: actions.watch,
        target: "_blank",
        rel: "noopener",
        textContent: say("Page for a phone"),
      });
      link.title = say(
        "One run at a time: curve, newest previews and Stop. On your phone, open it by this machine's address.",
      );
      block("wan-train-runs-watch", this.element).append(link);
    }
    this.say(say("Reading the runs …"));
  }

  /** @param {string} text */
  say(text) {
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  /** @param {Run[]} runs */
  set(runs) {
    this.runs = runs;
    if (this.status.textContent === say("Reading the runs …")) this.say("");
    this.show();
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    event.stopPropagation();
    const card = /** @type {HTMLElement | null} */ (/** @type {HTMLElement} */ (event.target).closest("li"));
    if (event.key === "Escape" && card) this.fold(card);
    if (event.target !== card || !card) return;
    const next = { ArrowDown: card.nextElementSibling, ArrowUp: card.previousElementSibling }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    /** @type {HTMLElement | null} */ (next)?.focus();
  }

  show() {
    const shown = chosen(this.runs, this.search.value, this.order.value);
    const places = shown.map((run) => this.cardOf(run));
    if (places.length !== this.list.children.length || places.some((card, i) => this.list.children[i] !== card)) {
      const focused = /** @type {HTMLElement | null} */ (document.activeElement);
      this.list.replaceChildren(...places);
      if (focused && this.list.contains(focused)) focused.focus();
    }
    const known = new Set(this.runs.map((run) => run.run));
    for (const run of [...this.cards.keys()].filter((run) => !known.has(run))) this.cards.delete(run);
    if (!shown.length) {
      const empty = document.createElement("li");
      empty.className = "wan-train-runs-empty";
      empty.textContent = this.runs.length
        ? say("No run has all these words.")
        : say("No runs yet: each training that you start is listed here.");
      this.list.replaceChildren(empty);
    }
  }

  /**
   * A run's card: the one that there is, with what has changed written anew.
   * @param {Run} run
   */
  cardOf(run) {
    const told = JSON.stringify(run);
    const known = this.cards.get(run.run);
    if (known?.told === told) return known.card;
    const card = known?.card ?? this.newCard(run);
    this.cards.set(run.run, { told, card });
    card.dataset.state = run.state;
    const picture = /** @type {HTMLImageElement} */ (card.querySelector("img"));
    const address = this.actions.pictureOf(run);
    picture.hidden = !address;
    if (address && picture.getAttribute("src") !== address) picture.src = address;
    const write = (/** @type {string} */ selector, /** @type {string} */ text) => {
      const part = card.querySelector(selector);
      if (part && part.textContent !== text) part.textContent = text;
    };
    write(".wan-train-run-name", run.name);
    write(".wan-train-run-state", [expertOf(run), stateOf(run)].filter(Boolean).join(", "));
    write(".wan-train-run-why", run.why);
    write(".wan-train-run-facts", facts(run).join(" · "));
    const bar = /** @type {HTMLProgressElement} */ (card.querySelector("progress"));
    bar.max = Math.max(1, run.steps);
    bar.value = run.step;
    const isGoing = GOING.includes(run.state);
    for (const [name, isOff] of Object.entries({
      open: !run.can_resume,
      resume: isGoing || run.state === "finished",
      extend: isGoing,
      delete: isGoing,
    })) {
      const found = /** @type {HTMLButtonElement} */ (card.querySelector(`[data-do=${name}]`));
      found.disabled = isOff;
    }
    return card;
  }

  /** @param {Run} run */
  newCard(run) {
    const card = document.createElement("li");
    card.tabIndex = 0;
    card.dataset.run = run.run;
    const picture = document.createElement("img");
    picture.loading = "lazy";
    picture.alt = "";
    const words = document.createElement("div");
    block("wan-train-run-name", words);
    block("wan-train-run-state", words);
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", say("steps done"));
    words.append(bar);
    block("wan-train-run-why", words);
    block("wan-train-run-facts", words);
    const head = block("wan-train-run-head", card);
    head.append(picture, words);
    const buttons = block("wan-train-buttons", card);
    const add = (
      /** @type {string} */ name,
      /** @type {string} */ label,
      /** @type {string} */ help,
      /** @type {(run: Run) => unknown} */ act,
    ) => {
      const made = button(buttons, label, help, () => act(this.now(run.run) ?? run));
      made.dataset.do = name;
      made.setAttribute("aria-label", `${label}: ${run.name}, ${expertOf(run)}`);
    };
    add("open", say("Open"), say("Open the run's workflow in a new tab."), (now) =>
      this.act(card, () => this.actions.open(now)),
    );
    add(
      "resume",
      say("Resume"),
      say("Open the workflow, and press Run: the run goes on from its last checkpoint."),
      (now) => this.act(card, () => this.actions.resume(now)),
    );
    add("extend", say("Extend"), say("Train more steps than were planned."), (now) => this.askHowMany(card, now));
    add("settings", say("Settings"), say("What the run is trained with, where that is not the default."), (now) =>
      this.showSettings(card, now),
    );
    add("compare", say("Compare"), say("See in which settings two runs differ: press it on both."), (now) =>
      this.pick(card, now),
    );
    add("folder", say("Folder"), say("Where the run lies, to copy."), (now) => this.showFolder(card, now));
    add("delete", say("Delete"), say("Delete the run's folder. You are asked first."), (now) =>
      this.askDelete(card, now),
    );
    const more = block("wan-train-run-more", card);
    more.hidden = true;
    return card;
  }

  /** @param {string} name */
  now(name) {
    return this.runs.find((run) => run.run === name);
  }

  /**
   * Do something, and say how it went.
   * @param {HTMLElement} card
   * @param {() => Promise<string>} act
   */
  async act(card, act) {
    this.fold(card);
    this.say("…");
    card.setAttribute("aria-busy", "true");
    try {
      this.say(await act());
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    } finally {
      card.removeAttribute("aria-busy");
    }
  }

  /**
   * The room below a card's buttons, empty.
   * @param {HTMLElement} card
   */
  unfold(card) {
    const more = /** @type {HTMLElement} */ (card.querySelector(".wan-train-run-more"));
    more.replaceChildren();
    more.removeAttribute("role");
    more.hidden = false;
    return more;
  }

  /** @param {HTMLElement} card */
  fold(card) {
    const more = /** @type {HTMLElement} */ (card.querySelector(".wan-train-run-more"));
    if (more.contains(document.activeElement)) card.focus();
    more.hidden = true;
    more.replaceChildren();
  }

  /**
   * @param {HTMLElement} card
   * @param {Run} run
   */
  askHowMany(card, run) {
    const more = this.unfold(card);
    const label = document.createElement("label");
    const number = document.createElement("input");
    number.type = "number";
    number.min = "1";
    number.max = "1000000";
    number.value = String(Math.max(1, Math.round(run.steps / 2)));
    label.append(`${say("Steps more:")} `, number);
    more.append(label);
    const train = () => {
      if (number.reportValidity()) this.act(card, () => this.actions.extend(run, number.valueAsNumber));
    };
    number.addEventListener("keydown", (event) => event.key === "Enter" && train());
    const help = say("Opens the workflow, sets steps, and presses Run. Now: {steps}.", { steps: run.steps });
    button(more, say("Train them"), help, train);
    button(more, say("Cancel"), "", () => this.fold(card));
    number.focus();
    number.select();
  }

  /**
   * @param {HTMLElement} card
   * @param {Run} run
   */
  async showFolder(card, run) {
    const more = this.unfold(card);
    try {
      const { path } = await this.actions.about(run);
      const field = document.createElement("input");
      field.readOnly = true;
      field.value = path;
      field.setAttribute("aria-label", say("Folder of the run"));
      more.append(field);
      button(more, say("Copy"), say("Copy the path."), () => this.copy(field));
      field.select();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {HTMLElement} card
   * @param {Run} run
   */
  async showSettings(card, run) {
    const more = this.unfold(card);
    try {
      const { settings } = await this.actions.about(run);
      if (!settings.length) this.say(say("The settings of this run can't be read: its job.json is damaged."));
      else tabled(more, [[say("Setting"), say("Value")], ...settings]);
      button(more, say("Close"), "", () => this.fold(card)).focus();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /** @param {HTMLInputElement} field */
  async copy(field) {
    try {
      await this.actions.copy(field.value);
      this.say(say("The path is copied."));
    } catch {
      field.select(); // pages that are opened by an address of the network may not write to the clipboard
      this.say(say("The browser does not let this page copy: the path is marked, press Ctrl+C."));
    }
  }

  /**
   * @param {HTMLElement} card
   * @param {Run} run
   */
  async askDelete(card, run) {
    const more = this.unfold(card);
    try {
      const { size, holds } = await this.actions.about(run);
      const text = say("Delete {run}, {size}, for good? Lost are: {holds}. LoRAs that Merge Stages has written stay.", {
        run: run.run,
        size: sizeOf(size),
        holds,
      });
      more.setAttribute("role", "alert");
      block("wan-train-run-ask", more).textContent = text;
      const act = () => this.act(card, () => this.actions.remove(run));
      button(more, say("Delete for good"), "", act).dataset.do = "really";
      button(more, say("Keep it"), "", () => this.fold(card)).focus();
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {HTMLElement} card
   * @param {Run} run
   */
  async pick(card, run) {
    const before = this.first;
    for (const { card: other } of this.cards.values()) delete other.dataset.picked;
    this.first = null;
    if (before === run.run) return this.say("");
    const one = before === null ? undefined : this.now(before);
    if (!one) {
      this.first = run.run;
      card.dataset.picked = "";
      return this.say(say("Press Compare on the run that {name} is to be compared with.", { name: run.name }));
    }
    this.say("");
    try {
      this.tell(this.unfold(card), one, run, await this.actions.compare(one, run));
    } catch (error) {
      this.say(error instanceof Error ? error.message : String(error));
    }
  }

  /**
   * @param {HTMLElement} more
   * @param {Run} one
   * @param {Run} other
   * @param {Difference[]} found
   */
  tell(more, one, other, found) {
    if (!found.length) {
      block("", more).textContent = say("{run} and this run have the same settings and data.", { run: one.run });
    } else {
      tabled(more, [
        [say("Setting"), one.run, other.run],
        ...found.map((line) => [line.name, words(line.one), words(line.other)]),
      ]);
    }
    button(more, say("Close"), "", () => this.fold(/** @type {HTMLElement} */ (more.closest("li"))));
  }
}

/**
 * A table; its first line is the head.
 * @param {HTMLElement} parent
 * @param {string[][]} lines
 */
function tabled(parent, lines) {
  const table = document.createElement("table");
  for (const [index, texts] of lines.entries()) {
    const row = table.insertRow();
    for (const text of texts) {
      const cell = document.createElement(index ? "td" : "th");
      cell.textContent = text;
      row.append(cell);
    }
  }
  parent.append(table);
}
