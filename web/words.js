// The words of the page, in the language that ComfyUI is set to. Knows nothing of ComfyUI.

/** @typedef {Record<string, { wanTrain?: Record<string, string> }>} Served of each language, as ComfyUI's /i18n has them */

/** @type {Record<string, string>} */
let translations = {};
let spoken = "en";

/**
 * Learn a language, before anything is shown. Where there are no words of it, or they can't be fetched, all stays English.
 * @param {unknown} language as in ComfyUI's setting Comfy.Locale
 * @param {() => Promise<Served>} fetchAll
 */
export async function learn(language, fetchAll) {
  translations = {};
  if (typeof language !== "string" || !language || language === "en") return;
  spoken = language;
  try {
    translations = (await fetchAll())[language]?.wanTrain ?? {};
  } catch (error) {
    console.warn(`[wan_train] the words in ${language} could not be fetched`, error);
  }
}

/**
 * A text in the reader's language. `python -m tools.locales` finds what is to be translated by the calls of this function, so
 * that the text stands in the call, and the call where something is shown: what runs while the page loads gets English.
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
