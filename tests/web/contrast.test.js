// Words and lines of the page can be seen in the light and the dark theme: contrast as WCAG 2.2 counts it, 1.4.3 and 1.4.11.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

const css = readFileSync("web/wan_train.css", "utf8");
const lines = readFileSync("web/chart_lines.js", "utf8");
// Of ComfyUI's palettes "dark" and "light": what a chart and a window are drawn on, and what it is written with.
const THEMES = {
  dark: {
    "comfy-input-bg": "#222222",
    "comfy-menu-bg": "#171718",
    "input-text": "#dddddd",
    "descrip-text": "#999999",
    "error-text": "#ff4444",
  },
  light: {
    "comfy-input-bg": "#c9c9c9",
    "comfy-menu-bg": "#ffffff",
    "input-text": "#222222",
    "descrip-text": "#444444",
    "error-text": "#f44336",
  },
};
const BACKGROUNDS = ["comfy-input-bg", "comfy-menu-bg"];

/** What a block of the style sheet sets. */
const variables = (block) =>
  Object.fromEntries([...block.matchAll(/--([\w-]+): ([^;]+);/g)].map(([, ...pair]) => pair));
const [dark, light] = css
  .split("}")
  .filter((block) => block.includes("--wan-train-accent:"))
  .map(variables);
const OWN = { dark, light: { ...dark, ...light } };

/** The colour that stands behind var(--name, ...) in a theme. */
function colourOf(value, theme) {
  const name = /^var\(--([\w-]+)/.exec(value)?.[1];
  return name ? colourOf(OWN[theme][name] ?? THEMES[theme][name] ?? `no --${name}`, theme) : value;
}

function luminance(colour) {
  assert.match(colour, /^#[\da-f]{6}$/);
  const [red, green, blue] = [1, 3, 5]
    .map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

test("contrast is counted as it is meant", () => {
  assert.equal(contrast("#ffffff", "#000000"), 21);
  assert.equal(contrast("#777777", "#ffffff").toFixed(2), "4.48");
});

for (const theme of ["dark", "light"]) {
  test(`all that is written or drawn in a colour can be read in the ${theme} theme`, () => {
    const named = [...css.matchAll(/^ {2}(?:color|fill|stroke): ([^;]+);/gm)].map(([, value]) => value);
    const used = new Set(named.filter((value) => !["inherit", "none", "transparent"].includes(value)));
    used.delete("var(--border-color, #444)"); // the grid, which says nothing
    for (const name of lines.match(/(?<=")(pink|green|orange|violet|gold|sky|brown)(?=")/g))
      used.add(`var(--wan-train-${name})`);
    assert.ok(used.size >= 12);
    const dim = [...used].flatMap((value) =>
      BACKGROUNDS.map((name) => [value, name, contrast(colourOf(value, theme), THEMES[theme][name])]).filter(
        ([, , found]) => found < 4.5,
      ),
    );
    assert.deepEqual(dim, []);
  });
}

// The pages that stand alone: what their words and lines stand on; #8884 is behind pictures.
const PAGES = {
  "nodes/watch/watch.css": ["back"],
  "core/look/page/page.css": ["ground", "panel"],
};
const SILENT = ["inherit", "none", "transparent"];

/** The rules of a style sheet, without what holds rules: what a selector's block says. */
const rulesOf = (text) => [...text.matchAll(/[^{};]+\{([^{}]*)\}/g)].map(([, block]) => block);

for (const [file, grounds] of Object.entries(PAGES)) {
  const text = readFileSync(file, "utf8");
  const [light, dark] = text
    .split("}")
    .filter((block) => /:root \{/.test(block))
    .map(variables);
  for (const [theme, own] of Object.entries({ light, dark: { ...light, ...dark } })) {
    test(`all that ${file} writes or draws in a colour can be read in the ${theme} theme`, () => {
      const of = (value) => colourOfPage(value, own);
      const dim = [];
      let seen = 0;
      for (const block of rulesOf(text)) {
        const value = (name) => new RegExp(`(?<![-\\w])${name}: ([^;]+)`).exec(block)?.[1];
        const ground = value("background");
        const on = ground?.startsWith("var(") ? [ground] : grounds.map((name) => `var(--${name})`);
        for (const name of ["color", "fill", "stroke"]) {
          const colour = value(name);
          if (!colour || SILENT.includes(colour)) continue;
          seen += 1;
          for (const one of on) if (contrast(of(colour), of(one)) < 4.5) dim.push([colour, one, theme]);
        }
      }
      assert.ok(seen >= 6, `${seen} colours`);
      assert.deepEqual(dim, []);
    });
  }
}

/** The colour that stands behind var(--name) on a page; #abc is written out. */
function colourOfPage(value, own) {
  const name = /^var\(--([\w-]+)\)$/.exec(value)?.[1];
  const found = name ? own[name] : value;
  return /^#[\da-f]{3}$/.test(found ?? "") ? found.replace(/[\da-f]/g, "$&$&") : found;
}
