// The page as a whole: where its data comes from, what is shown of it, and how it is saved.

import { badgesOf, byId, Cards, make } from "./cards.js";
import { Detail } from "./detail.js";
import { grouped, learn, say, sayCount } from "./words.js";

/** @typedef {import("./cards.js").Sample} Sample */
/** @typedef {import("./detail.js").Server} Server */
/** @typedef {{ width: number, height: number, frames: number, latent: number[], tokens: number, samples: number,
 *   held_out: number, share_of_samples: number, share_of_tokens: number }} BucketCost */
/** @typedef {{ name: string, fps: number[], limit: number, latents: string, counts_exactly: boolean,
 *   warnings: string[], left: { name: string, notes: string[] }[], buckets: Record<string, BucketCost[]>,
 *   samples: Sample[], look?: string, locked?: string, files?: string }} Dataset */

/** @type {{ dataset: Dataset, events: any[] } | null} */
const given = DATA; // of a page that was written to a file
const asked = given ? null : JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
/** @type {Dataset | undefined} */
let dataset;
/** @type {Set<string>} */
const chosen = new Set(); // kinds of badges
let isLookedAt = false; // at every sample, so that all badges are known
let reading = new AbortController();

/**
 * @param {string} path
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 */
async function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.ok)
    throw new Error(
      (await answer.json().catch(() => ({}))).error ?? say("ComfyUI answers with {status}.", { status: answer.status }),
    );
  return answer;
}

/** @type {Server} */
const server = {
  isThere: !given,
  get canEdit() {
    return !given && !dataset?.locked;
  },
  urlOf: (key) => (given ? `${given.dataset.files}/${key}.webp` : `look/strips/${key}.webp`),
  frameUrl: (index, frame) => `look/${dataset?.look}/frames/${index}/${frame}`,
  async source(index, start) {
    const answer = await fetch(`look/${dataset?.look}/source/${index}/${start}`);
    if (!answer.ok)
      throw new Error(
        (await answer.json().catch(() => ({}))).error ??
          say("ComfyUI answers with {status}.", { status: answer.status }),
      );
    const strip = JSON.parse(answer.headers.get("X-Strip") ?? "{}");
    return { url: URL.createObjectURL(await answer.blob()), strip };
  },
  async saveCaption(index, text) {
    const { state } = cards.samples[index].written;
    await post("look/caption", { look: dataset?.look, sample: index, text, state });
    await reload(index);
  },
  async savePoints(index, points) {
    await post("look/points", { look: dataset?.look, sample: index, points });
    await reload(index);
  },
};

const cards = new Cards(byId("cards"), (index) => detail.open(index), server.urlOf);
const detail = new Detail(cards, server);

/** @param {string} text */
function complain(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

/**
 * @param {number} done
 * @param {number} total
 * @param {string} what
 */
function showProgress(done, total, what) {
  const bar = byId("progress");
  bar.hidden = done >= total;
  bar.querySelector("progress").max = total;
  bar.querySelector("progress").value = done;
  bar.querySelector("span").textContent = `${what}: ${say("{number} of {count}", { number: done, count: total })}`;
}

/** Which cards are shown, by search and badges. */
function filter() {
  const words = byId("search").value.trim().toLowerCase();
  let count = 0;
  for (const [index, sample] of cards.samples.entries()) {
    const text = `${sample.name} ${sample.captions.map((caption) => caption.text).join(" ")}`.toLowerCase();
    const isShown = text.includes(words) && (!chosen.size || badgesOf(sample).some((badge) => chosen.has(badge.kind)));
    cards.cards[index].hidden = !isShown;
    count += isShown ? 1 : 0;
  }
  byId("shown").textContent = say("{number} of {count} shown", { number: count, count: cards.samples.length });
}

/** The buttons of badges, each with the number of its samples. */
function writeKinds() {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const sample of cards.samples) {
    for (const kind of new Set(badgesOf(sample).map((badge) => badge.kind)))
      counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  for (const kind of [...chosen].filter((name) => !counts.has(name))) {
    if (isLookedAt) chosen.delete(kind);
    else counts.set(kind, 0); // it may still come
  }
  byId("kinds").replaceChildren(
    ...[...counts].map(([kind, count]) => {
      const button = make("button", "", `${kind} (${count})`);
      button.setAttribute("type", "button");
      button.setAttribute("aria-pressed", String(chosen.has(kind)));
      button.addEventListener("click", () => {
        if (!chosen.delete(kind)) chosen.add(kind);
        button.setAttribute("aria-pressed", String(chosen.has(kind)));
        filter();
        keep();
      });
      return button;
    }),
  );
}

/** What each size costs. */
function writeCosts() {
  const percent = (/** @type {number} */ share) => `${(share * 100).toFixed(1)} %`;
  byId("costs")
    .querySelector("tbody")
    .replaceChildren(
      ...(dataset?.buckets[cards.latents] ?? []).map((row) => {
        const line = make("tr", "");
        const flat = `${row.width}x${row.height}`;
        const size =
          row.frames > 1
            ? sayCount("{size}, {count} frame", "{size}, {count} frames", row.frames, { size: flat })
            : flat;
        const cells = [size, row.latent.join(" x "), grouped(row.tokens), row.samples, row.held_out];
        for (const cell of [...cells, percent(row.share_of_samples), percent(row.share_of_tokens)]) {
          line.append(make("td", "", String(cell)));
        }
        return line;
      }),
    );
}

/** @param {Dataset} found */
function showDataset(found) {
  dataset = found;
  document.title = say("{name}: what the model will see", { name: found.name });
  const trained = found.samples.reduce((sum, sample) => sum + (sample.held_out ? 0 : sample.repeats), 0);
  const tokens = found.counts_exactly ? "" : say("Tokens of captions are estimated: no tokenizer of umT5 is at hand.");
  const wired = (asked?.wired ?? []).map((/** @type {string} */ name) =>
    say("{name} comes over a wire: its last value on the node is used here.", { name }),
  );
  const about = sayCount(
    "{name}: {count} sample an epoch, played at {fps} frames a second.",
    "{name}: {count} samples an epoch, played at {fps} frames a second.",
    trained,
    { name: found.name, fps: found.fps.join(" / ") },
  );
  byId("about").textContent = [about, tokens, found.locked, ...wired, ...found.warnings].filter(Boolean).join(" ");
  byId("detail").dataset.limit = String(found.limit);
  byId("left").hidden = !found.left.length;
  byId("left").querySelector("summary").textContent = say("Not used ({count})", { count: found.left.length });
  const items = found.left.map(({ name, notes }) => make("li", "", `${name}: ${notes.join("; ")}`));
  byId("left")
    .querySelector("ul")
    .replaceChildren(...items);
  cards.show(found.samples);
  writeCosts();
  writeKinds();
  filter();
}

/** @param {any} event as `core/look/view.py` gives them */
function take(event) {
  if (event.event === "error") throw new Error(event.text);
  if (event.event === "scan") showProgress(event.done, event.total, say("files read"));
  if (event.event === "dataset") showDataset(event);
  for (const item of event.items ?? []) {
    const sample = cards.samples[item.i];
    if (event.event === "duplicates") sample.alike = item.badges;
    else if (item.strip) sample.seen = item;
    else sample.unreadable = item.badges;
    cards.fill(item.i);
    if (detail.dialog.open && detail.index === item.i) detail.update();
  }
  if (event.event === "seen") {
    const done = cards.samples.filter((sample) => sample.seen || sample.unreadable).length;
    showProgress(done, cards.samples.length, say("samples looked at"));
  }
  if (event.event === "done") {
    isLookedAt = true;
    showProgress(1, 1, "");
  }
  if (["duplicates", "seen", "done"].includes(event.event)) settle();
}

let waiting = 0;
/** Counts and filter after news, not more often than a few times a second. */
function settle() {
  if (waiting) return;
  waiting = setTimeout(() => {
    waiting = 0;
    writeKinds();
    filter();
  }, 300);
}

/** Ask the server for everything, and follow what it tells. @param {(found: Dataset) => void} [onDataset] */
async function read(onDataset = () => {}) {
  reading.abort();
  reading = new AbortController();
  isLookedAt = false;
  const { signal } = reading;
  complain("");
  try {
    const answer = await post("look/dataset", asked, signal);
    const lines = /** @type {ReadableStream<any>} */ (answer.body).pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await lines.read();
      if (done) break;
      text += value;
      const parts = text.split("\n");
      text = parts.pop() ?? "";
      for (const part of parts) {
        const event = JSON.parse(part);
        take(event);
        if (event.event === "dataset") onDataset(event);
      }
    }
  } catch (error) {
    if (signal.aborted) return;
    showProgress(1, 1, "");
    if (!dataset) byId("about").textContent = ""; // nothing is being read any more
    complain(String(error instanceof Error ? error.message : error));
  }
}

/**
 * Read again after something was saved, and stay at the same file.
 * @param {number} index
 */
async function reload(index) {
  const { name, window } = cards.samples[index];
  const top = scrollY;
  await new Promise((resolve) => {
    read((found) => {
      scrollTo(0, top);
      const same = found.samples.findIndex((sample) => sample.window === window);
      const next = same < 0 ? found.samples.findIndex((sample) => sample.name === name) : same;
      if (next >= 0) detail.open(next);
      else detail.dialog.close();
      resolve(undefined);
    }).finally(() => resolve(undefined));
  });
}

/** What was chosen in this browser: `all`, for every dataset; `own`, for this one. */
const STORE = "wan_train.look";
const own = () => given?.dataset.name ?? String(asked.folder ?? "");

function recall() {
  let kept = /** @type {any} */ ({});
  try {
    kept = JSON.parse(localStorage.getItem(STORE) ?? "{}") ?? {};
  } catch {
    // a browser that keeps nothing for this page
  }
  if (!given && [...byId("latents").options].some((option) => option.value === kept.latents))
    byId("latents").value = kept.latents;
  cards.latents = byId("latents").value;
  if (typeof kept.playing === "boolean" && !matchMedia("(prefers-reduced-motion: reduce)").matches)
    cards.playing = kept.playing;
  byId("costs").open = kept.costs === true;
  if (kept.folder !== own()) return;
  byId("search").value = typeof kept.search === "string" ? kept.search : "";
  for (const kind of Array.isArray(kept.kinds) ? kept.kinds : []) chosen.add(String(kind));
}

function keep() {
  const kept = { latents: cards.latents, playing: cards.playing, costs: byId("costs").open };
  const ofThis = { folder: own(), search: byId("search").value, kinds: [...chosen] };
  try {
    localStorage.setItem(STORE, JSON.stringify({ ...kept, ...ofThis }));
  } catch {
    // as above
  }
}

byId("fixed").hidden = !given;
byId("search").addEventListener("input", () => {
  filter();
  keep();
});
byId("costs").addEventListener("toggle", keep);
byId("latents").addEventListener("change", () => {
  cards.latents = byId("latents").value;
  for (const index of cards.near) cards.fill(index);
  writeCosts();
  keep();
});
byId("play").addEventListener("click", () => {
  cards.playing = !cards.playing;
  writePlay();
  keep();
});
/** The button says what a press does. */
function writePlay() {
  byId("play").textContent = cards.playing ? say("Pause all") : say("Play all");
  byId("play").setAttribute("aria-pressed", String(cards.playing));
}
addEventListener("beforeunload", (event) => {
  if (detail.dialog.open && detail.isChanged) event.preventDefault();
});
if (given) byId("latents").value = given.dataset.latents;
else {
  await learn(async (path) => {
    const answer = await fetch(path);
    return answer.ok ? answer.json() : null;
  });
}
recall();
writePlay();
if (given) {
  showDataset(given.dataset);
  for (const event of given.events) take(event);
} else {
  read();
}
