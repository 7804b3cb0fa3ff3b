"""Writes the example workflows from the prompts that are kept as code.

Run against a ComfyUI that has this pack: python -m tools.make_workflows http://127.0.0.1:8188
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from .examples import DEMO_MODELS_NOTE, DEMO_NOTE, Sketch, demo_sketch
from .layout import GAP, GROUP_TITLE, PADDING, TITLE, Page, api_to_ui
from .workflow import Json, walk_fields

PACK = Path(__file__).resolve().parent.parent
HUB = "https://huggingface.co/Comfy-Org"
WAN_21 = f"{HUB}/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN_22 = f"{HUB}/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
MODEL_21 = "wan2.1_t2v_1.3B_fp16.safetensors"
MODELS_22 = {stage: f"wan2.2_t2v_{stage}_noise_14B_fp8_scaled.safetensors" for stage in ("high", "low")}
DATA, TRAINING, RESULT = "1. Data", "2. Training", "3. Result"

# Heights that the canvas gives to widgets which the page adds to a node (web/wan_train.js), and to nothing else.
PAGE_WIDGETS = {
    "DatasetFromFolder": 110,
    "CacheLatents": 60,
    "CacheT5": 60,
    "LoadWanDiT": 46,
    "MergeStages": 90,
    "WanLoRAFromFile": 46,
    "TrainLoRAStage": 250,  # at least 190; a chart may be larger
}
PICTURE = 240  # room below a node that shows a picture or a video
PROGRESS_TEXT = 36  # room for the line that the host writes on a node while it works
NOTE_SIZE = (620, 330)

NEGATIVE = (
    "overexposed, static, blurred details, subtitles, painting, still picture, worst quality, low quality, "
    "JPEG artifacts, ugly, deformed, extra fingers, badly drawn hands, badly drawn face, cluttered background"
)

STEPS = """
1. Put clips or images into a folder below ComfyUI's `input` (or `datasets`), each with a `.txt` file of the same name
   that holds its caption. Press **R**, and choose the folder in **Dataset from Folder**.
2. Choose a `trigger_word`, and a `lora_name`.
3. Press **Run**. **Stop** keeps a checkpoint; queued again, the run goes on. A finished run returns at once.
4. The LoRA is in `models/loras`. **Preview LoRA** shows it: left without, right with it, from the same seed."""

NOTE_22 = f"""## Train a LoRA for Wan 2.2 T2V A14B

Two experts, two LoRA files: `my_lora_high_noise` and `my_lora_low_noise`.
{STEPS}

While an expert trains, its 14.3 billion parameters are held in bf16: 28.6 GB of GPU memory for the weights alone,
whatever file is chosen. With less memory, use the Wan 2.1 1.3B template."""

NOTE_21 = f"""## Train a LoRA for Wan 2.1 T2V 1.3B

A single model, one LoRA file.
{STEPS}

For Wan 2.1 T2V 14B choose its file in both model loaders; in bf16 its weights alone take 28.6 GB of GPU memory."""


def model(name: str, directory: str, root: str) -> list[Json]:
    """What a loader needs so that the page can offer the download of a missing file."""
    return [{"name": name, "url": f"{root}/{directory}/{name}", "directory": directory}]


def data_nodes(sketch: Sketch, models: dict[str, list[Json]], **dataset: Any) -> tuple[str, ...]:
    """Dataset, VAE, text encoder and both caches; their ids: vae, clip, latents, text."""
    source = sketch.add(DATA, "DatasetFromFolder", folder="input/my_dataset", trigger_word="ohwx", **dataset)
    vae = sketch.add(DATA, "VAELoader", vae_name=VAE)
    clip = sketch.add(DATA, "CLIPLoader", clip_name=UMT5, type="wan", device="default")
    latents = sketch.add(DATA, "CacheLatents", dataset=(source, 0), vae=(vae, 0))
    text = sketch.add(DATA, "CacheT5", dataset=(source, 0), clip=(clip, 0))
    models[vae], models[clip] = model(VAE, "vae", WAN_21), model(UMT5, "text_encoders", WAN_21)
    return vae, clip, latents, text


def wan22_sketch() -> tuple[Sketch, dict[str, list[Json]]]:
    """Both experts of Wan 2.2 T2V A14B."""
    sketch, models = Sketch(), {}
    vae, clip, latents, text = data_nodes(sketch, models, width=480, height=272, num_frames=33)
    runs, bases = {}, {}
    for stage, file in MODELS_22.items():
        source = model(file, "diffusion_models", WAN_22)
        dit = sketch.add(TRAINING, "LoadWanDiT", f"Load Wan DiT ({stage} noise)", model_name=file)
        runs[stage] = sketch.add(
            TRAINING, "TrainLoRAStage", f"Train LoRA Stage ({stage} noise)",
            dit=(dit, 0), latents=(latents, 0), text=(text, 0), stage=f"{stage} noise", lora_name="my_lora",
        )  # fmt: skip
        title = f"Load Diffusion Model ({stage} noise)"
        bases[stage] = sketch.add(RESULT, "UNETLoader", title, unet_name=file, weight_dtype="default")
        models[dit] = models[bases[stage]] = source
    for stage, run in runs.items():
        prefix = f"loss_graph_{stage}"
        sketch.add(RESULT, "LossGraphNode", f"Plot Loss Graph ({stage} noise)", loss=(run, 2), filename_prefix=prefix)
    pair = sketch.add(RESULT, "MergeStages", high=(runs["high"], 0), low=(runs["low"], 0), name="my_lora")
    preview = sketch.add(
        RESULT, "PreviewLoRA",
        pair=(pair, 0), high=(bases["high"], 0), low=(bases["low"], 0), clip=(clip, 0), vae=(vae, 0),
        prompt="ohwx, what your clips show, in a new place", negative_prompt=NEGATIVE,
        width=832, height=480, num_frames=33, steps=20, cfg=3.5, seed=1,
    )  # fmt: skip
    save_video(sketch, preview)
    return sketch, models


def wan21_sketch() -> tuple[Sketch, dict[str, list[Json]]]:
    """Wan 2.1 T2V 1.3B."""
    sketch, models = Sketch(), {}
    vae, clip, latents, text = data_nodes(sketch, models, width=832, height=480, num_frames=33)
    dit = sketch.add(TRAINING, "LoadWanDiT", model_name=MODEL_21)
    run = sketch.add(
        TRAINING, "TrainLoRAStage",
        dit=(dit, 0), latents=(latents, 0), text=(text, 0), stage="single model", lora_name="my_lora",
    )  # fmt: skip
    base = sketch.add(RESULT, "UNETLoader", unet_name=MODEL_21, weight_dtype="default")
    models[dit] = models[base] = model(MODEL_21, "diffusion_models", WAN_21)
    sketch.add(RESULT, "LossGraphNode", loss=(run, 2), filename_prefix="loss_graph")
    pair = sketch.add(RESULT, "MergeStages", high=(run, 0), name="my_lora")
    # Guidance 6 and shift 8 are what the official repository advises for the 1.3B model (Wan2.1, README).
    preview = sketch.add(
        RESULT, "PreviewLoRA",
        pair=(pair, 0), high=(base, 0), clip=(clip, 0), vae=(vae, 0),
        prompt="ohwx, what your clips show, in a new place", negative_prompt=NEGATIVE,
        width=832, height=480, num_frames=33, steps=30, cfg=6.0, seed=1, shift=8.0,
    )  # fmt: skip
    save_video(sketch, preview)
    return sketch, models


def save_video(sketch: Sketch, preview: str) -> None:
    """The end of both graphs."""
    choice = {"format": "mp4", "format.codec": "h264"}
    title = "Save Video (without, with the LoRA)"
    sketch.add(RESULT, "SaveVideo", title, video=(preview, 2), filename_prefix="video/my_lora", **choice)


def canvas_height(node: Json, info: Json) -> int:
    """Height that the canvas gives a node: 20 a socket, 24 a widget, 54 a text field, 14 around them (measured)."""
    queue = iter(node["widgets_values"])
    fields = [item for item, _ in walk_fields(info, lambda _: next(queue, None)) if item.is_widget]
    texts = sum(bool(item.options.get("multiline")) for item in fields)
    sockets = sum("widget" not in item for item in node["inputs"])
    height = 14 + 20 * max(sockets, len(node["outputs"])) + 24 * len(fields) + 30 * texts
    if node["type"] in PAGE_WIDGETS:
        return height + PAGE_WIDGETS[node["type"]] + 4 + PROGRESS_TEXT
    return height + (PICTURE if info.get("output_node") else 0)


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
    for name, (sketch, models), notes in (
        ("wan2.2_t2v_a14b_lora", wan22_sketch(), (NOTE_22,)),
        ("wan2.1_t2v_1.3b_lora", wan21_sketch(), (NOTE_21,)),
        ("demo", (demo_sketch(), {}), (DEMO_NOTE, DEMO_MODELS_NOTE)),
    ):
        page = Page(groups=sketch.groups, notes=notes, models=models)
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
