// How a template opens: readable. ComfyUI shows the whole of a template, so small that in the classic renderer no text is drawn.

import { app } from "../../scripts/app.js";

const MARK = "wan_train_opens_at_ds"; // in a template's `extra`: it opens where `ds` says, as a saved workflow does
const RESTORE = "Comfy.EnableWorkflowViewRestore"; // ComfyUI's setting: a workflow brings its view with it

/** @typedef {{ scale: number, offset: number[] }} View */

/** @type {View | undefined} */
let view;

/**
 * Note where a workflow that is about to be loaded is to open. The mark goes, so that what is saved later has none.
 * @param {{ extra?: Record<string, unknown> }} workflow
 */
export function noteView(workflow) {
  const { extra } = workflow;
  view = extra?.[MARK] ? /** @type {View | undefined} */ (extra.ds) : undefined;
  if (extra) delete extra[MARK];
}

/** Show what was noted, after ComfyUI has chosen its own view. */
export function showView() {
  const wanted = view;
  view = undefined;
  const ds = app.canvas?.ds;
  if (!wanted || !ds || app.extensionManager?.setting?.get(RESTORE) === false) return;
  ds.scale = wanted.scale;
  ds.offset[0] = wanted.offset[0];
  ds.offset[1] = wanted.offset[1];
  app.canvas.setDirty(true, true);
}
