// The words of a page that stands alone, in the language that ComfyUI is set to, or that of the browser.

/** @type {Record<string, string>} */
let translations = {};
let spoken = "en";
const SHOWN = ["placeholder", "aria-label"]; // attributes with words

/**
 * A text in the reader's language. `python -m tools.locales` finds what is to be translated by the calls of this function, so
 * that the text stands in the call.
 * @param {string} text in English; `{name}` is the place of a value
 * @param {Record<string, string | number>} [values]
 */
export function say(text, values = {}) {
  const said = Object.hasOwn(translations, text) ? translations[text] : text;
  return said.replace(/\{(\w+)\}/g, (place, name) => (Object.hasOwn(values, name) ? String(values[name]) : place));
}

/**
 * A text about a number of things, in the form that the reader's language has for that number; `{count}` is its place.
 * @param {string} one in English, of one thing
 * @param {string} many in English, of any other number
 * @param {number} count
 * @param {Record<string, string | number>} [values] others, and `count` where it is to be written in another way
 */
export function sayCount(one, many, count, values = {}) {
  const rules = new Intl.PluralRules(Object.hasOwn(translations, one) ? spoken : "en");
  return say(rules.select(count) === "one" ? one : many, { count, ...values });
}

/**
 * The language that ComfyUI would show: what it is set to, else the browser's, as it names languages.
 * @param {unknown} setting
 * @param {string} browser
 */
export function languageOf(setting, browser) {
  if (typeof setting === "string" && setting) return setting;
  return /^zh-(tw|hk|mo|hant)/i.test(browser) ? "zh-TW" : browser.split("-")[0];
}

/**
 * Learn the reader's language, and write what stands in the page in it. Where there are no words, all stays English.
 * @param {(path: string) => Promise<any>} fetchJson of a path beside this page
 */
export async function learn(fetchJson) {
  const setting = await fetchJson("../settings/Comfy.Locale").catch(() => null);
  const language = languageOf(setting, navigator.language);
  if (language !== "en")
    translations = (await fetchJson(`words/${encodeURIComponent(language)}`).catch(() => null)) ?? {};
  if (!Object.keys(translations).length) return;
  spoken = language;
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-say]")) {
    const text = element.textContent?.trim() ?? "";
    if (text && !element.children.length) element.textContent = say(text);
    for (const name of SHOWN) {
      const shown = element.getAttribute(name);
      if (shown) element.setAttribute(name, say(shown));
    }
  }
}

/**
 * A number with the language's own marks between thousands.
 * @param {number} value
 */
export function grouped(value) {
  return value.toLocaleString(document.documentElement.lang || "en");
}
