// Check, on the training node: what the workflow's trainings will take, and what is wrong with them, before Run.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeByExecutionId } from "./graph.js";
import { showFailure, showsText, showText } from "./reports.js";
import { say } from "./words.js";

/**
 * Ask the server about the workflow as it would be queued, and write each answer on its node.
 * Returns what to say beside the button.
 */
export async function checkWorkflow() {
  const { output } = await app.graphToPrompt();
  const answer = await api.fetchApi("/wan_train/check", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: output }),
  });
  const { nodes, error } = await answer.json();
  if (!answer.ok) return error;
  return tell(nodes);
}

/** @param {Record<string, { text: string, failed: boolean }>} answers by the execution id of their node */
function tell(answers) {
  const titles = [];
  for (const [id, { text, failed }] of Object.entries(answers)) {
    const node = nodeByExecutionId(id);
    if (failed) titles.push(node?.title ?? id);
    if (!node || !showsText(node)) continue;
    if (failed) showFailure(node, text);
    else showText(node, text);
  }
  return titles.length ? say("To mend: {nodes}.", { nodes: titles.join(", ") }) : say("Nothing is in the way.");
}
