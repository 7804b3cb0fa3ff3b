// What a prompt of previews is called: in the gallery, and on the page for a phone (nodes/watch_page.py), which has this script inside.

import { say } from "./words.js";

/**
 * Its nickname with its text, or what there is of them.
 * @param {{ name: string, prompt: string }} prompt
 */
export function titleOf({ name, prompt }) {
  if (!prompt) return say("caption of the first sample");
  return name && !/^\d+$/.test(name) ? `${name}: ${prompt}` : prompt;
}
