// Values that workflows of earlier versions hold, in the words that the widgets show today. The server takes both; this is
// for the eye. tests/core/settings/test_widgets.py holds the table against the options in core/settings.

/**
 * Class of node to widget to pairs: the old value, and what the widget shows for it.
 * @type {Record<string, Record<string, [unknown, string][]>>}
 */
export const OLD_VALUES = {
  LoadWanDiT: {
    checkpointing: [
      [true, "auto"],
      [false, "off"],
    ],
    stream_from: [
      ["pinned", "auto"],
      ["pageable", "pageable memory"],
      ["mapped", "files"],
    ],
    offload_inputs: [
      [false, "auto"],
      [true, "on"],
    ],
    split_blocks: [
      [false, "auto"],
      [true, "on"],
    ],
    offload_optimizer: [
      [false, "auto"],
      [true, "on"],
    ],
  },
  TrainLoRAStage: {
    preview_sampler: [
      ["unipc", "uni_pc"],
      ["dpm++2m", "dpmpp_2m"],
    ],
  },
};

/**
 * Write the values of a node from an earlier version's workflow anew. Returns how many were.
 * @param {{comfyClass?: string, widgets?: {name: string, value?: unknown}[]}} node
 */
export function renewValues(node) {
  const table = OLD_VALUES[node.comfyClass ?? ""] ?? {};
  let changed = 0;
  for (const widget of node.widgets ?? []) {
    const pair = table[widget.name]?.find(([old]) => old === widget.value);
    if (!pair) continue;
    widget.value = pair[1];
    changed += 1;
  }
  return changed;
}
