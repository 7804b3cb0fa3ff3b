// The page's list: a card for each sample, filled while it is near the window, and the frames that play on it.

/**
 * @typedef {{ count: number, columns: number, width: number, height: number }} Strip
 * @typedef {{ kind: string, text: string }} Badge
 * @typedef {{ text: string, num_tokens: number, cut_at: number | null, is_estimate: boolean }} Caption
 * @typedef {{ file: string, text: string, state: string, locked: string }} Written
 * @typedef {{
 *   name: string, window: string, kind: string, size: number[], source_frames: number, source_fps: number, fps: number,
 *   frames: number[], bucket: number[], latent: Record<string, number[]>, repeats: number, treatment: string, held_out: boolean,
 *   captions: Caption[], written: Written, points: number[] | null, notes: string[], badges: Badge[],
 *   seen?: { key: string, strip: Strip, badges: Badge[] }, alike?: Badge[], unreadable?: Badge[],
 * }} Sample
 */

import { grouped, say, sayCount } from "./words.js";

const NEAR = "700px"; // how far from the window cards are filled
const REST_MS = 120; // that the list stands still before pictures are loaded: a fast scroll passes by thousands

/**
 * An element of this page.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * A new element with a class and text.
 * @param {string} tag
 * @param {string} name
 * @param {string} [text]
 */
export function make(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {Sample} sample */
export function badgesOf(sample) {
  return [...sample.badges, ...(sample.unreadable ?? []), ...(sample.seen?.badges ?? []), ...(sample.alike ?? [])];
}

/**
 * Tokens that the transformer makes of a sample: patches of 2x2 latents.
 * @param {Sample} sample
 * @param {string} latents
 */
export function tokensOf(sample, latents) {
  const [frames, height, width] = sample.latent[latents];
  return frames * Math.floor(height / 2) * Math.floor(width / 2);
}

/** @param {Sample} sample */
export function sizeOf(sample) {
  const [width, height] = sample.bucket;
  const size = `${width}x${height}`;
  return sample.kind === "image"
    ? size
    : sayCount("{size}, {count} frame", "{size}, {count} frames", sample.frames.length, { size });
}

/** @param {Caption} caption */
export function lengthOf(caption) {
  const number = caption.num_tokens;
  const values = { count: grouped(number) };
  return caption.is_estimate
    ? sayCount("about {count} token", "about {count} tokens", number, values)
    : sayCount("{count} token", "{count} tokens", number, values);
}

/**
 * A caption, with what is cut off struck out.
 * @param {HTMLElement} element
 * @param {Caption} caption
 */
export function writeCaption(element, caption) {
  const cut = caption.cut_at ?? Number.POSITIVE_INFINITY;
  const letters = Array.from(caption.text); // the server counts whole signs
  element.replaceChildren(letters.slice(0, cut).join(""));
  if (letters.length > cut) element.append(make("del", "", letters.slice(cut).join("")));
  if (!caption.text) element.append(make("em", "", say("no caption")));
}

/**
 * Show frame `index` of a strip that is the background of an element.
 * @param {HTMLElement} element
 * @param {Strip} strip
 * @param {number} index
 */
export function showFrame(element, strip, index) {
  const rows = Math.ceil(strip.count / strip.columns);
  const column = index % strip.columns;
  const row = Math.floor(index / strip.columns);
  const x = strip.columns > 1 ? (column / (strip.columns - 1)) * 100 : 0;
  const y = rows > 1 ? (row / (rows - 1)) * 100 : 0;
  element.style.backgroundPosition = `${x}% ${y}%`;
}

/**
 * Make an element show a strip, as large as fits.
 * @param {HTMLElement} element
 * @param {Strip} strip
 * @param {string} url
 * @param {number} width
 * @param {number} height
 */
export function setStrip(element, strip, url, width, height) {
  const rows = Math.ceil(strip.count / strip.columns);
  const scale = Math.min(width / strip.width, height / strip.height);
  element.style.width = `${strip.width * scale}px`;
  element.style.height = `${strip.height * scale}px`;
  element.style.backgroundImage = `url("${url}")`;
  element.style.backgroundSize = `${strip.columns * 100}% ${rows * 100}%`;
  showFrame(element, strip, 0);
}

/** @param {Element} card */
function indexOf(card) {
  return Number(/** @type {HTMLElement} */ (card).dataset.index);
}

/** The cards, and the clock that they play by. */
export class Cards {
  /**
   * @param {HTMLElement} place
   * @param {(index: number) => void} open
   * @param {(key: string) => string} urlOf
   */
  constructor(place, open, urlOf) {
    this.place = place;
    this.open = open;
    this.urlOf = urlOf;
    /** @type {Sample[]} */
    this.samples = [];
    /** @type {HTMLElement[]} */
    this.cards = [];
    /** @type {Set<number>} */
    this.near = new Set();
    /** @type {Map<number, HTMLElement>} */
    this.players = new Map();
    this.latents = "wan2.1";
    this.playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    /** @type {Set<number>} */
    this.inWindow = new Set();
    this.resting = 0;
    this.observer = new IntersectionObserver((entries) => this.moved(entries), { rootMargin: NEAR });
    this.window = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const index = indexOf(entry.target);
        if (entry.isIntersecting) this.inWindow.add(index);
        else this.inWindow.delete(index);
      }
    });
    addEventListener("scroll", () => this.rest(), { passive: true });
    const tick = (/** @type {number} */ now) => {
      if (this.playing) this.draw(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** @param {Sample[]} samples */
  show(samples) {
    this.samples = samples;
    this.observer.disconnect();
    this.window.disconnect();
    this.near.clear();
    this.inWindow.clear();
    this.players.clear();
    this.cards = samples.map((_, index) => this.newCard(index));
    this.place.replaceChildren(...this.cards);
    for (const card of this.cards) {
      this.observer.observe(card);
      this.window.observe(card);
    }
  }

  /** @param {number} index */
  newCard(index) {
    const card = make("button", "card");
    card.setAttribute("type", "button");
    card.dataset.index = String(index);
    card.title = say("look closer");
    card.addEventListener("click", () => this.open(index));
    return card;
  }

  /** @param {IntersectionObserverEntry[]} entries */
  moved(entries) {
    for (const entry of entries) {
      const index = indexOf(entry.target);
      if (entry.isIntersecting) {
        this.near.add(index);
        this.fill(index);
      } else if (this.near.delete(index)) {
        this.players.delete(index);
        this.cards[index].replaceChildren();
      }
    }
  }

  /** The list has moved: load pictures once it stands still. */
  rest() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.resting = 0;
      for (const index of this.near) if (!this.players.has(index)) this.fill(index);
    }, REST_MS);
  }

  /**
   * Write a card anew, if it is near the window.
   * @param {number} index
   */
  fill(index) {
    if (!this.near.has(index)) return;
    const sample = this.samples[index];
    const frame = make("span", "frame");
    if (sample.seen && !this.resting) {
      const picture = make("span", "picture");
      setStrip(picture, sample.seen.strip, this.urlOf(sample.seen.key), 232, 176);
      frame.append(picture);
      this.players.set(index, picture);
    } else if (!sample.seen) {
      frame.textContent = sample.unreadable ? say("can't be read") : say("is being read ...");
    }
    const caption = make("span", "caption");
    writeCaption(caption, sample.captions[0]);
    const badges = make("span", "badges");
    for (const kind of new Set(badgesOf(sample).map((badge) => badge.kind))) badges.append(make("span", "", kind));
    const number = tokensOf(sample, this.latents);
    const tokens = sayCount("{count} token", "{count} tokens", number, { count: grouped(number) });
    const facts = [sizeOf(sample), tokens, ...(sample.held_out ? [say("held out")] : [])];
    this.cards[index].replaceChildren(
      frame,
      make("span", "name", sample.window),
      make("span", "line", facts.join(" · ")),
      make("span", "line", say("caption: {length}", { length: lengthOf(sample.captions[0]) })),
      badges,
      caption,
    );
  }

  /** @param {number} now milliseconds */
  draw(now) {
    if (this.resting) return;
    for (const index of this.inWindow) {
      const picture = this.players.get(index);
      const { seen, fps } = this.samples[index];
      if (!picture || !seen) continue;
      const { strip } = seen;
      const frame = Math.floor((now / 1000) * fps) % strip.count;
      if (picture.dataset.frame === String(frame)) continue;
      picture.dataset.frame = String(frame);
      showFrame(picture, strip, frame);
    }
  }
}
