// Where a template opens. In ComfyUI's own page: tests/browser/test_graph.py.

import assert from "node:assert/strict";
import test, { beforeEach } from "node:test";
import "./dom.js";
import "./host/hooks.js";

const { app } = await import("./host/app.js");
const { noteView, showView } = await import("../../web/view.js");
const DS = { scale: 0.85, offset: [110, 590] };
const whole = () => ({ scale: 0.4, offset: [1, 2] });
const template = () => ({ extra: { ds: structuredClone(DS), wan_train_opens_at_ds: true } });

beforeEach(() => {
  app.canvas = { ds: whole(), setDirty: () => {} };
  app.extensionManager.setting = { get: () => true };
});

test("a template opens where it says, once, and what is saved later has no mark", () => {
  const workflow = template();
  noteView(workflow);
  assert.deepEqual(workflow, { extra: { ds: DS } });
  showView();
  assert.deepEqual(app.canvas.ds, DS);
  app.canvas.ds = whole();
  noteView(workflow); // opened again, as it was saved
  showView();
  assert.deepEqual(app.canvas.ds, whole());
});

test("where ComfyUI is set to keep the view, it is kept; a workflow need not have anything extra", () => {
  app.extensionManager.setting = { get: (name) => name !== "Comfy.EnableWorkflowViewRestore" };
  noteView(template());
  showView();
  assert.deepEqual(app.canvas.ds, whole());
  noteView({});
  showView();
  assert.deepEqual(app.canvas.ds, whole());
});
