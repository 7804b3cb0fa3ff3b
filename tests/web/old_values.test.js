// Workflows of earlier versions show today's words.

import assert from "node:assert/strict";
import test from "node:test";
import { renewValues } from "../../web/old_values.js";

const nodeOf = (comfyClass, values) => ({
  comfyClass,
  widgets: Object.entries(values).map(([name, value]) => ({ name, value })),
});
const valuesOf = (node) => Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]));

test("a switch that stood at its default is left to the plan, another is a choice", () => {
  const node = nodeOf("LoadWanDiT", { checkpointing: true, offload_inputs: false, split_blocks: true });
  assert.equal(renewValues(node), 3);
  assert.deepEqual(valuesOf(node), { checkpointing: "auto", offload_inputs: "auto", split_blocks: "on" });
  const off = nodeOf("LoadWanDiT", { checkpointing: false, stream_from: "mapped" });
  assert.equal(renewValues(off), 2);
  assert.deepEqual(valuesOf(off), { checkpointing: "off", stream_from: "files" });
});

test("today's values, other widgets and other nodes stay", () => {
  const node = nodeOf("LoadWanDiT", { checkpointing: "on", streamed_blocks: 0, stream_from: "pinned memory" });
  assert.equal(renewValues(node), 0);
  const other = nodeOf("DatasetFromFolder", { upscale: true, checkpointing: true });
  assert.equal(renewValues(other), 0);
  assert.deepEqual(valuesOf(other), { upscale: true, checkpointing: true });
  assert.equal(renewValues({ comfyClass: "LoadWanDiT" }), 0);
});
