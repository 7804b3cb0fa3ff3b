// A page for a phone: one run, its curve and newest pictures, and Stop. It asks its own server every few seconds.

import { learn, say } from "../../core/look/page/words.js";
import { smooth, windowFor } from "../../web/curve.js";
import { titleOf } from "../../web/prompt_title.js";
import { expertOf, stateOf } from "../../web/run_states.js";

const POLL_MS = 5000;
const MOST_PICTURES = 6; // of each prompt

/** @typedef {[step: number, loss: number]} Point */
/**
 * @typedef {{ run: string, name: string, stage: string, state: string, why: string, step: number, steps: number,
 *   held_out: number | null, asks: string[], facts: string[], line?: string }} Run
 * @typedef {{ steps: number, losses: Point[], smoothed?: Point[], validation: Point[], notes: string }} Story
 * @typedef {{ prompts: { name: string, prompt: string }[], steps: { step: number, files: (string | null)[] }[] }} Gallery
 */

const part = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const select = /** @type {HTMLSelectElement} */ (part("run"));
const chosen = () => decodeURIComponent(location.hash.slice(1));
/** @type {Run[]} */
let runs = [];
let isStopping = false;

/** @param {string} name */
const addressOf = (name) => `runs/${encodeURIComponent(name)}`;

/**
 * @param {string} path
 * @param {RequestInit} [request]
 */
async function ask(path, request) {
  const answer = await fetch(path, request).catch(() => null);
  if (!answer) throw new Error(say("ComfyUI does not answer: is it still running?"));
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? say("ComfyUI answers with {status}.", { status: answer.status }));
  return body;
}

/** @param {string} id @param {string} text */
function write(id, text) {
  if (part(id).textContent !== text) part(id).textContent = text;
}

async function look() {
  try {
    runs = (await ask("runs")).runs;
    fillSelect();
    const run = runs.find((one) => one.run === select.value);
    if (!run) {
      write("state", say("No run yet: what you train is shown here."));
      return;
    }
    const [story, gallery] = await Promise.all([ask(addressOf(run.run)), ask(`${addressOf(run.run)}/previews`)]);
    if (run.run !== select.value) return;
    show(run, story);
    showPreviews(run.run, gallery);
  } catch (error) {
    write("state", error instanceof Error ? error.message : String(error));
  }
}

/** The run that was chosen; else one that goes on; else the newest. */
function fillSelect() {
  const wanted = runs.find((run) => run.run === chosen()) ?? runs.find((run) => run.asks.length) ?? runs[0];
  const told = runs.map((run) => `${run.name}, ${expertOf(run)}: ${stateOf(run)}`);
  if (told.join() !== [...select.options].map((option) => option.textContent).join()) {
    select.replaceChildren(...runs.map((run, i) => new Option(told[i], run.run)));
  }
  if (wanted) select.value = wanted.run;
}

/** @param {Run} run @param {Story} story */
function show(run, story) {
  write("state", [stateOf(run), run.why || run.line].filter(Boolean).join(": "));
  part("state").className = run.state === "error" ? "failed" : "";
  part("done").max = Math.max(1, run.steps);
  part("done").value = run.step;
  write("facts", [say("step {step} of {steps}", { step: run.step, steps: run.steps }), ...run.facts].join(" · "));
  document.title = `${Math.floor((100 * run.step) / Math.max(1, run.steps))}% ${run.name}`;
  part("stop").hidden = !run.asks.includes("stop");
  part("stop").disabled = isStopping;
  draw(story);
  write("notes", story.notes);
}

/**
 * The newest pictures of each prompt, under its words where there are several.
 * @param {string} run
 * @param {Gallery} gallery
 */
function showPreviews(run, { prompts, steps }) {
  const rows = prompts.map((prompt, number) => {
    const there = steps.flatMap(({ step, files }) =>
      files[number] ? [/** @type {const} */ ([step, files[number]])] : [],
    );
    return { title: titleOf(prompt), pictures: there.slice(-MOST_PICTURES).reverse() };
  });
  const shown = JSON.stringify([run, rows]);
  if (part("previews").dataset.shown === shown) return;
  part("previews").dataset.shown = shown;
  part("previews").replaceChildren(
    ...rows.flatMap(({ title, pictures }) => {
      const row = document.createElement("div");
      row.className = "row";
      row.append(...pictures.map(([step, file]) => picture(run, step, file)));
      if (rows.length < 2) return [row];
      const heading = document.createElement("h2");
      heading.textContent = title;
      return [heading, row];
    }),
  );
}

/** @param {string} run @param {number} step @param {string} file */
function picture(run, step, file) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  image.src = `${addressOf(run)}/previews/${file}`;
  image.alt = say("preview of step {step}", { step });
  image.loading = "lazy";
  const caption = document.createElement("figcaption");
  caption.textContent = say("step {step}", { step });
  figure.append(image, caption);
  return figure;
}

/**
 * Averages of the losses, as the node's chart has them: those of the server for a long run.
 * @param {Story} story
 * @returns {Point[]}
 */
function averages({ steps, losses, smoothed }) {
  if (smoothed?.length) return smoothed;
  const raw = losses.map(([, loss]) => loss);
  const none = raw.map(() => undefined);
  const means = smooth(raw, 1 - 1 / windowFor(steps || losses.length), none);
  return losses.map(([step], i) => [step, means[i]]);
}

/** @param {Story} story */
function draw(story) {
  const { losses, validation } = story;
  const bold = averages(story);
  part("chart").replaceChildren();
  write("losses", "");
  if (losses.length < 2) return;
  const sorted = losses.map(([, loss]) => loss).sort((a, b) => a - b);
  const all = [...bold, ...validation].map(([, loss]) => loss);
  const high = Math.max(...all, sorted[Math.floor(0.98 * (sorted.length - 1))]); // single peaks may stand out
  const low = Math.min(...all, sorted[0]);
  const [first, last] = [losses[0][0], losses[losses.length - 1][0]];
  const line = (/** @type {string} */ kind, /** @type {Point[]} */ points) => {
    const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const places = points.map(([step, loss]) => {
      const x = (300 * (step - first)) / (last - first);
      const y = 145 - (140 * (Math.min(high, loss) - low)) / (high - low || 1);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    });
    drawn.setAttribute("points", places.join(" "));
    drawn.setAttribute("class", kind);
    part("chart").append(drawn);
  };
  line("raw", losses);
  line("smooth", bold);
  line("held", validation);
  const held = validation.at(-1)?.[1];
  const words = [
    say("steps {first} to {last}", { first, last }),
    say("loss {low} to {high}", { low: low.toFixed(3), high: high.toFixed(3) }),
    say("smoothed loss {loss}", { loss: bold[bold.length - 1][1].toFixed(4) }),
  ];
  if (held !== undefined) words.push(say("held-out loss {loss}, dashed", { loss: held.toFixed(4) }));
  write("losses", words.join(" · "));
}

async function stop() {
  const run = runs.find((one) => one.run === select.value);
  if (!run) return;
  const { name, step, steps } = run;
  if (!confirm(say("Stop {name} after step {step} of {steps}? A checkpoint is kept.", { name, step, steps }))) return;
  isStopping = true;
  part("stop").disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    await ask(`${addressOf(run.run)}/ask/stop`, { method: "POST", headers, body: "{}" });
  } catch (error) {
    write("state", error instanceof Error ? error.message : String(error));
  } finally {
    isStopping = false;
  }
}

select.addEventListener("change", () => {
  location.hash = encodeURIComponent(select.value);
});
addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
part("stop").addEventListener("click", stop);
await learn(ask);
setInterval(() => document.hidden || look(), POLL_MS);
look();
