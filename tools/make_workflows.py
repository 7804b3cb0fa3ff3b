"""Writes the example workflows from the prompts that are kept as code.

Run against a ComfyUI that has this pack: python -m tools.make_workflows http://127.0.0.1:8188
"""

import json
import sys
import urllib.request
from pathlib import Path

from core.recipe.presets import preset

from .examples import (
    DEMO_MODELS_NOTE,
    DEMO_NOTE,
    demo_sketch,
    i2v_a14b_sketch,
    recipe_sketch,
    t2v_1_3b_sketch,
    t2v_a14b_sketch,
    ti2v_5b_sketch,
)
from .layout import GAP, GROUP_TITLE, PADDING, TITLE, Page, api_to_ui
from .workflow import Json, walk_fields

PACK = Path(__file__).resolve().parent.parent

# Heights that the canvas gives to widgets which the page adds to a node (web/wan_train.js), and to nothing else.
PAGE_WIDGETS = {
    "DatasetFromFolder": 110,
    "JoinDatasets": 110,
    "CacheLatents": 60,
    "CacheT5": 60,
    "LoadWanDiT": 46,
    "MergeStages": 90,
    "WanLoRAFromFile": 46,
    "TrainLoRAStage": 474,  # a chart of 240, its previews, and the button of the recipes
}
PICTURE = 240  # room below a node that shows a picture or a video
PROGRESS_TEXT = 36  # room for the line that the host writes on a node while it works
NOTE_SIZE = (620, 330)

STEPS = """
1. Put clips or images into a folder below ComfyUI's `input` (or `datasets`), each with a `.txt` file of the same name
   that holds its caption. Press **R**, and choose the folder in **Dataset from Folder**.
2. Choose a `trigger_word`, and a `lora_name`: the files are called by it.
3. Press **Run**. **Stop** on the training node keeps a checkpoint; queued again, the run goes on. A finished run returns
   at once. One sample is held out: its loss, and a short video of it every 250 steps, show what was learnt.
4. The LoRA is in `models/loras`. **Preview LoRA** shows it: left without, right with it, from the same seed."""

NOTE_22 = f"""## Train a LoRA for Wan 2.2 T2V A14B

Two experts, two LoRA files: `my_lora_high_noise` and `my_lora_low_noise`.
{STEPS}

An expert's weights take 29 GB in bf16, whatever file is chosen. What your GPU has no room for waits in main memory: each run
chooses that by itself. A smaller `precision` in **Load Wan DiT** takes less of both."""

NOTE_21 = f"""## Train a LoRA for Wan 2.1 T2V 1.3B

A single model, one LoRA file.
{STEPS}

For Wan 2.1 T2V 14B choose its file in both model loaders; in bf16 its weights take 29 GB, of GPU memory or,
where there is less, of main memory."""

NOTE_I2V = f"""## Train a LoRA for Wan 2.2 I2V A14B

The first frame of each clip is what the model is given: **Cache Latents** keeps it, and single pictures are left out.
**Preview LoRA** starts from your image.
{STEPS}

Two experts, two files. The weights of one take 29 GB in bf16, whatever file is chosen. What your GPU has no room for waits in
main memory: each run chooses that by itself. A smaller `precision` in **Load Wan DiT** takes less of both."""

NOTE_5B = f"""## Train a LoRA for Wan 2.2 TI2V 5B

A single model, one LoRA file, from text. It works at 24 frames a second, and in sizes that 32 divides.
{STEPS}

From images: choose `first frame` in **Cache Latents**, and connect an image to **Preview LoRA**."""


RECIPE_STEPS = """
1. Put {clips} into a folder below ComfyUI's `input`, each with a `.txt` file of the same name that holds its caption.
   Press **R**, and choose the folder in **Dataset from Folder**.
2. {captions}
3. Press **Run**. **Stop** on the training node keeps a checkpoint; queued again, the run goes on. Short videos every 250
   steps show what was learnt: an earlier checkpoint is often better than the last.
4. The LoRA is in `models/loras`. **Preview LoRA** shows it: left without, right with it, from the same seed.

The values are those for a GPU of 24 GB. **Recipes** on the training node has those for 12, 48 and 80 GB, and says where each
comes from."""

NOTE_MOTION = "## Train a motion or a camera move for Wan 2.2 T2V A14B\n" + RECIPE_STEPS.format(
    clips="10 to 30 clips of 3 to 8 seconds that show the same movement of other subjects, cut to the movement,",
    captions="Captions name the movement in the same words each time: `orbit 180 around a castle`.",
)
NOTE_STYLE = "## Train a style for Wan 2.2 T2V A14B\n" + RECIPE_STEPS.format(
    clips="10 to 40 pictures or clips that share a look, and nothing else,",
    captions="Captions hold the `trigger_word` and say how it looks, not what it shows. The class word takes its place where"
    "\n   the model is to keep what it knows, which doubles the time of a step (`output_preservation`).",
)
NOTE_EFFECT = "## Train an image-to-video effect for Wan 2.2 I2V A14B\n" + RECIPE_STEPS.format(
    clips="10 to 30 clips of 3 to 8 seconds that begin just before the effect",
    captions="Captions name the effect in the same words each time. The first frame of each clip is what the model is given.",
)


def canvas_height(node: Json, info: Json) -> int:
    """Height that the canvas gives a node: 20 a socket, 24 a widget, 54 a text field, 14 around them (measured)."""
    queue = iter(node["widgets_values"])
    fields = [item for item, _ in walk_fields(info, lambda _: next(queue, None)) if item.is_widget]
    texts = sum(bool(item.options.get("multiline")) for item in fields)
    sockets = sum("widget" not in item for item in node["inputs"])
    height = 14 + 20 * max(sockets, len(node["outputs"])) + 24 * len(fields) + 30 * texts
    if node["type"] in PAGE_WIDGETS:
        return height + PAGE_WIDGETS[node["type"]] + 4 + PROGRESS_TEXT
    shows_picture = info.get("output_node") or any(item.has_upload for item in fields)
    return height + PICTURE * bool(shows_picture)


def make_room(ui: Json, object_info: Json) -> Json:
    """Give every node the height that the page needs, and stack each column of a group anew. Returns `ui`, changed."""
    nodes = [node for node in ui["nodes"] if node["type"] in object_info and node["type"] != "MarkdownNote"]
    for node in nodes:
        node["size"][1] = max(node["size"][1], canvas_height(node, object_info[node["type"]]))
    for group in ui["groups"]:
        left, _, width, _ = group["bounding"]
        inside = [node for node in nodes if left <= node["pos"][0] < left + width]
        bottom = 0
        for x in {node["pos"][0] for node in inside}:
            y = GROUP_TITLE + TITLE
            for node in sorted((node for node in inside if node["pos"][0] == x), key=lambda node: node["pos"][1]):
                node["pos"][1] = y
                y += node["size"][1] + TITLE + GAP // 2
            bottom = max(bottom, y - TITLE - GAP // 2)
        group["bounding"][3] = bottom + PADDING
    return ui


def side_by_side(ui: Json) -> None:
    """The second training node moves to a column of its own: the two are too tall to stand on each other."""
    runs = sorted((node for node in ui["nodes"] if node["type"] == "TrainLoRAStage"), key=lambda node: node["pos"][1])
    for run in runs[1:]:
        step = run["size"][0] + GAP
        edge = run["pos"][0] + run["size"][0]
        for node in ui["nodes"]:
            node["pos"][0] += step if node["pos"][0] > edge and node["type"] != "MarkdownNote" else 0
        for group in ui["groups"]:
            box = group["bounding"]
            box[0] += step if box[0] > edge else 0
            box[2] += step if box[0] < edge < box[0] + box[2] else 0
        run["pos"][0] += step


def place_notes(ui: Json) -> None:
    """Notes stand above the graph."""
    width, height = NOTE_SIZE
    for index, node in enumerate(node for node in ui["nodes"] if node["type"] == "MarkdownNote"):
        node["pos"] = [index * (width + GAP), -(height + TITLE + GAP // 2)]
        node["size"] = [width, height]
    ui["extra"]["ds"] = {"scale": 0.6, "offset": [100, height + 3 * GAP]}


def workflows(object_info: Json) -> dict[str, Json]:
    """File name to content."""
    found = {}
    for name, sketch, notes in (
        ("wan2.2_t2v_a14b_lora", t2v_a14b_sketch(), (NOTE_22,)),
        ("wan2.2_i2v_a14b_lora", i2v_a14b_sketch(), (NOTE_I2V,)),
        ("wan2.2_ti2v_5b_lora", ti2v_5b_sketch(), (NOTE_5B,)),
        ("wan2.1_t2v_1.3b_lora", t2v_1_3b_sketch(), (NOTE_21,)),
        ("wan2.2_t2v_a14b_motion", recipe_sketch(preset("motion-24gb").values(), "t2v"), (NOTE_MOTION,)),
        ("wan2.2_t2v_a14b_style", recipe_sketch(preset("style-24gb").values(), "t2v"), (NOTE_STYLE,)),
        ("wan2.2_i2v_a14b_effect", recipe_sketch(preset("effect-24gb").values(), "i2v"), (NOTE_EFFECT,)),
        ("demo", demo_sketch(), (DEMO_NOTE, DEMO_MODELS_NOTE)),
    ):
        page = Page(groups=sketch.groups, notes=notes, models=sketch.models)
        ui = api_to_ui(sketch.prompt, object_info, page)
        side_by_side(ui)
        place_notes(ui)
        found[name] = make_room(ui, object_info)
    return found


def main(url: str) -> None:
    """Write the workflows with the node definitions of the ComfyUI at `url`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(f"{url}/object_info", timeout=120) as answer:
        object_info = json.loads(answer.read())
    for name, ui in workflows(object_info).items():
        path = PACK / "example_workflows" / f"{name}.json"
        path.write_text(json.dumps(ui, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(sys.argv[1])
