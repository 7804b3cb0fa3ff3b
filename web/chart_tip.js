// The numbers of a step, beside it on the plot. Knows nothing of ComfyUI.

import { nearest, shown } from "./chart_lines.js";
import { shape } from "./elements.js";
import { say } from "./words.js";

const NEAR = 6; // pixels from a held-out loss, in which it is told
const BESIDE = 10; // pixels from the step to its numbers

/**
 * A line and a dot at a step, and the numbers of all lines there; `lines` begins with the run's own loss.
 * @param {SVGSVGElement} svg
 * @param {HTMLElement} tip
 * @param {HTMLElement} plot above which the numbers lie, and below which they end, if there are many
 * @param {import("./chart_lines.js").Line[]} lines
 * @param {import("./chart_scale.js").View} view
 * @param {number} at the step nearest to this is shown
 */
export function drawTip(svg, tip, plot, lines, view, at) {
  const [own, ...others] = lines;
  const found = nearest(own.points, at);
  if (!found) return;
  const [step, average] = found;
  const [x, y] = [view.x(step), view.y(average)];
  svg.append(shape("line", { class: "wan-train-pointer", x1: x, x2: x, y1: view.top, y2: view.bottom }));
  svg.append(shape("circle", { class: "wan-train-now", cx: x, cy: y, r: 3.5 }));
  const raw = nearest(own.raw ?? [], step);
  const words = [
    say("step {step}", { step }),
    say("loss of this step {loss}", { loss: raw ? shown(raw[1]) : "-" }),
    say("smoothed loss {loss}", { loss: shown(average) }),
  ];
  for (const { name, brief = name, points, isHeldOut } of others) {
    const point = nearest(points, step);
    if (!point || (isHeldOut && Math.abs(view.x(point[0]) - x) >= NEAR)) continue;
    const where = point[0] === step && !isHeldOut ? "" : ` (${say("step {step}", { step: point[0] })})`;
    words.push(`${brief} ${shown(point[1])}${where}`);
  }
  tip.textContent = words.join("\n");
  tip.hidden = false;
  const onLeft = x > (view.left + view.right) / 2;
  tip.style.left = onLeft ? "auto" : `${x + BESIDE}px`;
  tip.style.right = onLeft ? `${plot.clientWidth - x + BESIDE}px` : "auto";
  const lowest = (tip.parentElement?.clientHeight ?? 0) - tip.offsetHeight - BESIDE / 2;
  tip.style.top = `${Math.max(0, Math.min(plot.offsetTop + view.top, lowest))}px`;
}
