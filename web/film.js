// Animated pictures that are all at the same moment, which an <img> can't be told: their frames are drawn one by one.

/**
 * A picture that moves, as the browser's decoder has it.
 * @typedef {object} Strip
 * @property {ImageDecoder} decoder
 * @property {number[]} ends of each frame, in seconds from the start
 */

/**
 * Which frame is seen at a moment.
 * @param {number[]} ends of the frames, in seconds, rising
 * @param {number} moment in seconds; after the end the last one stays
 */
export function frameAt(ends, moment) {
  const found = ends.findIndex((end) => moment < end);
  return found < 0 ? ends.length - 1 : found;
}

/**
 * Fetch an animated picture, and find out how long each of its frames is seen.
 * @param {string} address
 * @returns {Promise<Strip>}
 */
async function load(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const decoder = new ImageDecoder({ data: await answer.arrayBuffer(), type: "image/webp" });
  await Promise.all([decoder.completed, decoder.tracks.ready]); // Chromium knows the frames after the second alone
  const count = decoder.tracks.selectedTrack?.frameCount ?? 1;
  const ends = [];
  let end = 0;
  for (let frameIndex = 0; frameIndex < count; frameIndex += 1) {
    const { image } = await decoder.decode({ frameIndex });
    end += (image.duration ?? 0) / 1e6;
    image.close();
    ends.push(end);
  }
  return { decoder, ends };
}

/** Shows pictures in sync. Where the browser has no decoder for them (a page without https), they are plain pictures. */
export class Film {
  isExact = typeof ImageDecoder === "function";
  isPlaying = !globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches;
  moment = 0; // in seconds
  /** @type {(share: number) => void} */
  onMoment = () => {};
  /** @type {Map<string, Promise<Strip>>} */
  strips = new Map(); // by address
  /** @type {{ canvas: HTMLCanvasElement, address: string, strip: Strip | null, shown: number }[]} */
  screens = [];
  longest = 0;
  last = 0; // when the moment was moved
  isOver = false;
  frame = 0; // the drawing that is asked for

  /** What is shown is put together anew, by `add`. */
  begin() {
    this.screens = [];
  }

  /** Nothing is to be added any more: what is not shown is forgotten. */
  end() {
    const used = new Set(this.screens.map((screen) => screen.address));
    for (const address of [...this.strips.keys()].filter((known) => !used.has(known))) this.drop(address);
    if (this.isExact && !this.frame) this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  /**
   * Show a picture at the end of its parent. `label`: what it is, for who does not see it; "": its parent says that.
   * @param {HTMLElement} parent
   * @param {string} address
   * @param {string} label
   */
  add(parent, address, label) {
    if (!this.isExact) {
      const picture = document.createElement("img");
      picture.src = address;
      picture.alt = label;
      parent.append(picture);
      return;
    }
    const canvas = document.createElement("canvas");
    if (label) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", label);
    } else {
      canvas.setAttribute("aria-hidden", "true");
    }
    parent.append(canvas);
    /** @type {typeof this.screens[number]} */
    const screen = { canvas, address, strip: null, shown: -1 };
    this.screens.push(screen);
    const loading = this.strips.get(address) ?? load(address);
    this.strips.set(address, loading);
    loading
      .then((strip) => {
        screen.strip = strip;
        this.longest = Math.max(this.longest, strip.ends[strip.ends.length - 1]);
      })
      .catch((error) => console.warn("[wan_train] a preview can't be shown", error));
  }

  /**
   * Go to a moment.
   * @param {number} share of the longest video
   */
  seek(share) {
    this.moment = share * this.longest;
  }

  close() {
    this.isOver = true;
    if (this.frame) cancelAnimationFrame(this.frame);
    for (const address of [...this.strips.keys()]) this.drop(address);
  }

  /** @param {string} address */
  drop(address) {
    this.strips.get(address)?.then(
      ({ decoder }) => decoder.close(),
      () => {},
    );
    this.strips.delete(address);
  }

  /** @param {number} now */
  async tick(now) {
    if (this.isPlaying && this.longest > 0) this.moment = (this.moment + (now - this.last) / 1000) % this.longest;
    this.last = now;
    if (this.longest > 0) this.onMoment(this.moment / this.longest);
    await Promise.all(this.screens.map((screen) => this.draw(screen)));
    if (!this.isOver) this.frame = requestAnimationFrame((next) => this.tick(next));
  }

  /** @param {typeof this.screens[number]} screen */
  async draw(screen) {
    const { canvas, strip } = screen;
    if (!strip || !isSeen(canvas)) return;
    const frameIndex = frameAt(strip.ends, this.moment);
    if (frameIndex === screen.shown) return;
    screen.shown = frameIndex;
    try {
      const { image } = await strip.decoder.decode({ frameIndex });
      if (canvas.width !== image.displayWidth) canvas.width = image.displayWidth;
      if (canvas.height !== image.displayHeight) canvas.height = image.displayHeight;
      canvas.getContext("2d")?.drawImage(image, 0, 0);
      canvas.dataset.frame = String(frameIndex);
      image.close();
    } catch {
      screen.shown = -1; // it was dropped meanwhile
    }
  }
}

/** @param {HTMLElement} element */
function isSeen(element) {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  return right > 0 && bottom > 0 && left < window.innerWidth && top < window.innerHeight;
}
