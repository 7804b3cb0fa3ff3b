// One sample closely: frame by frame in full size, its caption to edit, its in and out points.

import { badgesOf, byId, lengthOf, make, setStrip, showFrame, sizeOf, tokensOf, writeCaption } from "./cards.js";
import { grouped, say, sayCount } from "./words.js";

/** @typedef {import("./cards.js").Sample} Sample */
/** @typedef {import("./cards.js").Strip} Strip */
/** @typedef {import("./cards.js").Cards} Cards */

const FRAME_SIDE = 640; // pixels of the frame at most
const SOURCE_FRAMES = 32; // of a clip in one strip of its own frames

/**
 * @typedef {{
 *   isThere: boolean, canEdit: boolean, urlOf(key: string): string, frameUrl(index: number, frame: number): string,
 *   source(index: number, start: number): Promise<{ url: string, strip: Strip }>,
 *   saveCaption(index: number, text: string): Promise<void>,
 *   savePoints(index: number, points: number[] | null): Promise<void>,
 * }} Server
 */

/** The dialog. */
export class Detail {
  /**
   * @param {Cards} cards
   * @param {Server} server
   */
  constructor(cards, server) {
    this.cards = cards;
    this.server = server;
    this.index = 0;
    this.frame = 0;
    this.playing = false;
    this.since = 0;
    /** @type {number[] | null} */
    this.points = null;
    this.sourceFrame = 0;
    /** @type {Map<number, Promise<{ url: string, strip: Strip }>>} */
    this.sources = new Map();
    this.dialog = byId("detail");
    this.dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.key(event));
    this.dialog.addEventListener("cancel", (/** @type {Event} */ event) => this.mayLeave() || event.preventDefault());
    this.dialog.addEventListener("close", () => this.closed());
    byId("close").addEventListener("click", (/** @type {Event} */ event) => this.mayLeave() || event.preventDefault());
    byId("before").addEventListener("click", () => this.go(-1));
    byId("after").addEventListener("click", () => this.go(1));
    byId("detail-play").addEventListener("click", () => this.play(!this.playing));
    byId("frame").addEventListener("input", () => this.step(Number(byId("frame").value) - this.frame));
    byId("save-caption").addEventListener("click", () => this.saveCaption());
    byId("source-frame").addEventListener("input", () => this.showSource(Number(byId("source-frame").value)));
    byId("set-in").addEventListener("click", () => this.setPoint(0));
    byId("set-out").addEventListener("click", () => this.setPoint(1));
    byId("use-all").addEventListener("click", () => this.setPoints(null));
    byId("save-points").addEventListener("click", () => this.savePoints());
    const tick = (/** @type {number} */ now) => {
      if (this.playing && this.dialog.open) this.draw(Math.floor(((now - this.since) / 1000) * this.sample.fps));
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  get sample() {
    return this.cards.samples[this.index];
  }

  /** Whether the caption in the box is another than the one in the file. */
  get isChanged() {
    return this.server.canEdit && byId("caption").value !== this.sample.written.text;
  }

  /** Whether what is typed and not saved may be left. */
  mayLeave() {
    return !this.isChanged || confirm(say("The caption is not saved. Leave it?"));
  }

  /** @param {number} index */
  open(index) {
    this.index = index;
    this.frame = 0;
    for (const source of this.sources.values())
      source.then(
        ({ url }) => URL.revokeObjectURL(url),
        () => {},
      );
    this.sources.clear();
    this.say("");
    const { sample } = this;
    byId("detail-name").textContent = sample.window;
    byId("frame").max = String(sample.frames.length - 1);
    byId("frame-controls").hidden = sample.frames.length < 2;
    if (!this.dialog.open) this.dialog.showModal();
    this.write();
    this.showStrip();
    this.play(this.cards.playing && sample.frames.length > 1);
    if (!this.playing) this.draw(0);
    byId("points").hidden = !this.server.canEdit || sample.kind === "image";
    if (!byId("points").hidden) {
      byId("source-frame").max = String(sample.source_frames - 1);
      this.setPoints(sample.points);
      this.showSource(sample.frames[0]);
    }
  }

  /** All that is text. */
  write() {
    const { sample } = this;
    byId("trained").replaceChildren(
      ...sample.captions.flatMap((caption) => {
        const text = make("p", "");
        writeCaption(text, caption);
        return [
          text,
          make(
            "div",
            "line",
            say("{length}, of which {limit} are used at most", {
              length: lengthOf(caption),
              limit: byId("detail").dataset.limit,
            }),
          ),
        ];
      }),
    );
    for (const cut of byId("trained").querySelectorAll("del")) {
      cut.parentElement.scrollTop = cut.offsetTop - cut.parentElement.offsetTop - 60; // show where it is cut
    }
    byId("editing").hidden = !this.server.canEdit;
    byId("caption").value = sample.written.text;
    byId("caption").readOnly = sample.written.locked !== "";
    byId("save-caption").disabled = sample.written.locked !== "";
    byId("caption-locked").textContent = sample.written.locked;
    const { file, state } = sample.written;
    byId("caption-file").textContent = state ? say("In {file}", { file }) : say("In {file} (not there yet)", { file });
    this.update();
  }

  /** Badges and facts, which come while the page is open. */
  update() {
    const { sample } = this;
    byId("detail-badges").replaceChildren(
      ...badgesOf(sample).map((badge) => {
        const item = make("li", "");
        item.append(make("b", "", badge.kind), ` ${badge.text}`);
        return item;
      }),
    );
    const [width, height] = sample.size;
    const clip =
      sample.kind === "image"
        ? say("picture")
        : sayCount("{count} frame at {fps} a second", "{count} frames at {fps} a second", sample.source_frames, {
            fps: sample.source_fps.toFixed(2),
          });
    const number = tokensOf(sample, this.cards.latents);
    const tokens = sayCount("{count} token", "{count} tokens", number, { count: grouped(number) });
    const times = sample.repeats > 1 ? say("{count} times", { count: sample.repeats }) : say("once");
    const rows = [
      [say("File"), `${sample.name}, ${width}x${height}, ${clip}`],
      [say("Trained as"), sizeOf(sample)],
      [say("Latents"), `${sample.latent[this.cards.latents].join(" x ")}, ${tokens}`],
      [
        say("In an epoch"),
        sample.held_out
          ? say("held out: measured, not trained on")
          : [times, sample.treatment].filter(Boolean).join(", "),
      ],
      ...sample.notes.map((note) => [say("Told by the scan"), note]),
    ];
    byId("facts").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
  }

  showStrip() {
    const picture = byId("stage").querySelector(".picture");
    const { seen, bucket } = this.sample;
    picture.hidden = !seen;
    if (!seen) return;
    const width = Math.min(byId("stage").clientWidth, FRAME_SIDE, bucket[0] * 3);
    setStrip(picture, seen.strip, this.server.urlOf(seen.key), width, FRAME_SIDE * 0.75);
    picture.setAttribute("aria-label", say("Frames of {sample}", { sample: this.sample.window }));
  }

  /** @param {boolean} on */
  play(on) {
    this.playing = on;
    this.since = performance.now() - (this.frame / this.sample.fps) * 1000;
    byId("detail-play").textContent = on ? say("Pause") : say("Play");
    byId("stage").querySelector("img").hidden = true;
    if (!on) this.showExact();
  }

  /** @param {number} frames */
  step(frames) {
    if (this.playing) this.play(false);
    this.draw(this.frame + frames);
    this.showExact();
  }

  /** @param {number} frame */
  draw(frame) {
    const count = this.sample.frames.length;
    this.frame = ((frame % count) + count) % count;
    if (this.sample.seen) showFrame(byId("stage").querySelector(".picture"), this.sample.seen.strip, this.frame);
    byId("frame").value = String(this.frame);
    byId("frame-name").textContent = say("{number} of {count}: frame {frame} of the file", {
      number: this.frame + 1,
      count,
      frame: this.sample.frames[this.frame],
    });
  }

  /** The frame in its full size, where a server can be asked for it. */
  showExact() {
    if (!this.server.isThere) return;
    const image = byId("stage").querySelector("img");
    const picture = byId("stage").querySelector(".picture");
    const { index, frame } = this;
    const url = this.server.frameUrl(index, frame);
    image.onload = () => {
      const isCurrent = this.index === index && this.frame === frame && !this.playing;
      if (!isCurrent) return;
      image.style.width = picture.style.width;
      image.hidden = false;
    };
    image.alt = say("Frame {number} of {sample} as the model sees it", {
      number: frame + 1,
      sample: this.sample.window,
    });
    image.src = url;
  }

  /**
   * Show a frame of the file itself.
   * @param {number} frame
   */
  async showSource(frame) {
    const { index, sample } = this;
    this.sourceFrame = Math.max(0, Math.min(sample.source_frames - 1, frame));
    byId("source-frame").value = String(this.sourceFrame);
    byId("source-name").textContent = say("{number} of {count}", {
      number: this.sourceFrame,
      count: sample.source_frames,
    });
    const start = Math.floor(this.sourceFrame / SOURCE_FRAMES) * SOURCE_FRAMES;
    if (!this.sources.has(start)) this.sources.set(start, this.server.source(index, start));
    try {
      const { url, strip } = await /** @type {Promise<{ url: string, strip: Strip }>} */ (this.sources.get(start));
      if (this.index !== index || start > this.sourceFrame || this.sourceFrame >= start + strip.count) return;
      const picture = byId("source").querySelector(".picture");
      setStrip(picture, strip, url, byId("source").clientWidth, 260);
      showFrame(picture, strip, this.sourceFrame - start);
      picture.setAttribute(
        "aria-label",
        say("Frame {number} of {sample}", { number: this.sourceFrame, sample: sample.name }),
      );
    } catch (error) {
      this.sources.delete(start);
      this.say(String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {0 | 1} end the first used frame, or the last one */
  setPoint(end) {
    const [first, last] = this.points ?? [0, this.sample.source_frames];
    const here = this.sourceFrame;
    this.setPoints(end ? [Math.min(first, here), here + 1] : [here, Math.max(last, here + 1)]);
  }

  /** @param {number[] | null} points */
  setPoints(points) {
    const all = this.sample.source_frames;
    this.points = points && (points[0] > 0 || points[1] < all) ? points : null;
    const [first, last] = this.points ?? [0, all];
    const isSaved = String(this.points) === String(this.sample.points);
    byId("part").textContent = isSaved
      ? say("frames {first} to {last} of {count} are used", { first, last: last - 1, count: all })
      : say("frames {first} to {last} of {count} are used once this is saved", { first, last: last - 1, count: all });
    byId("save-points").disabled = isSaved;
  }

  async saveCaption() {
    if (this.sample.written.locked) return;
    await this.saving(() => this.server.saveCaption(this.index, byId("caption").value));
  }

  async savePoints() {
    await this.saving(() => this.server.savePoints(this.index, this.points));
  }

  /** @param {() => Promise<void>} save */
  async saving(save) {
    this.say("");
    try {
      await save();
    } catch (error) {
      this.say(String(error instanceof Error ? error.message : error));
    }
  }

  /** @param {string} text */
  say(text) {
    byId("detail-message").textContent = text;
    byId("detail-message").hidden = !text;
  }

  /** @param {number} by */
  go(by) {
    const shown = this.cards.cards.filter((card) => !card.hidden).map((card) => Number(card.dataset.index));
    const next = shown[shown.indexOf(this.index) + by];
    if (next !== undefined && this.mayLeave()) this.open(next);
  }

  closed() {
    this.playing = false;
    this.cards.cards[this.index]?.focus();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.id === "caption") {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.saveCaption();
      return;
    }
    const isSlider = target instanceof HTMLInputElement;
    const hasPoints = !byId("points").hidden;
    /** @type {Record<string, () => void>} */
    const keys = {
      PageUp: () => this.go(-1),
      PageDown: () => this.go(1),
      ...(isSlider ? {} : { ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1) }),
      ...(target instanceof HTMLButtonElement ? {} : { " ": () => this.play(!this.playing) }),
      ...(hasPoints ? { i: () => this.setPoint(0), o: () => this.setPoint(1) } : {}),
    };
    const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
