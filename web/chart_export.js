// A chart as a picture, and downloads. Knows nothing of ComfyUI.

const SCALE = 2; // pixels of the picture for one of the screen
const LINE = 16; // height of a line of words above the plot
/** What of a style an SVG needs that stands alone. */
const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family"];

/**
 * Let the browser save what is at an address.
 * @param {string} address
 * @param {string} name of the file
 */
export function download(address, name) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

/**
 * The plot with its styles written into it.
 * @param {SVGSVGElement} svg
 * @param {number} width
 * @param {number} height
 */
export function standalone(svg, width, height) {
  const copy = /** @type {SVGSVGElement} */ (svg.cloneNode(true));
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  const [from, to] = [svg, copy].map((element) => [...element.querySelectorAll("*")]);
  from.forEach((element, i) => {
    const style = window.getComputedStyle(element);
    to[i].setAttribute("style", STYLES.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
  });
  return new window.XMLSerializer().serializeToString(copy);
}

/**
 * Let the browser save the plot as a PNG file, with the head and the legend above it.
 * @param {HTMLElement} plot
 * @param {HTMLElement} head
 * @param {HTMLElement} legend
 * @param {string} name of the file
 */
export async function savePicture(plot, head, legend, name) {
  const words = [{ text: head.textContent ?? "", colour: "" }];
  for (const entry of legend.children) {
    const mark = /** @type {Element} */ (entry.firstElementChild);
    words.push({ text: entry.textContent ?? "", colour: window.getComputedStyle(mark).backgroundColor });
  }
  const address = URL.createObjectURL(await picture(plot, words));
  download(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser reads it after the click
}

/**
 * @param {HTMLElement} plot with the SVG inside
 * @param {{ text: string, colour: string }[]} words above it, a line each
 * @returns {Promise<Blob>}
 */
async function picture(plot, words) {
  const { clientWidth: width, clientHeight: height } = plot;
  const svg = /** @type {SVGSVGElement} */ (plot.querySelector("svg"));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(svg, width, height))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const top = words.length * LINE + 8;
  canvas.width = width * SCALE;
  canvas.height = (height + top) * SCALE;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.scale(SCALE, SCALE);
  const style = window.getComputedStyle(/** @type {Element} */ (plot.closest(".wan-train-chart") ?? plot));
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, width, height + top);
  context.font = "12px system-ui, sans-serif";
  words.forEach(({ text, colour }, i) => {
    context.fillStyle = colour || style.color;
    context.fillText(text, 10, (i + 1) * LINE, width - 20);
  });
  context.drawImage(image, 0, top, width, height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return /** @type {Blob} */ (blob);
}
