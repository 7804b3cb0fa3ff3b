"""Prompts kept as code: one for each kind of model, and the demo's. `make_workflows` makes the workflow files from them."""

from dataclasses import dataclass
from typing import Any

from .workflow import Json

DATA, TRAINING, RESULT = "1. Data", "2. Training", "3. Result"
STAGES = ("high", "low")
LOADER_FIELDS = {
    "UNETLoader": "unet_name", "LoadWanDiT": "model_name", "VAELoader": "vae_name", "CLIPLoader": "clip_name",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """A file that the page can offer to download."""

    repository: str  # of Comfy-Org on Hugging Face
    directory: str  # below the repository's split_files, and below ComfyUI's models
    name: str

    def download(self) -> Json:
        """What the page reads from a loader's properties."""
        url = (
            f"https://huggingface.co/Comfy-Org/{self.repository}/resolve/main/split_files/{self.directory}/{self.name}"
        )
        return {"name": self.name, "url": url, "directory": self.directory}


WAN_21, WAN_22 = "Wan_2.1_ComfyUI_repackaged", "Wan_2.2_ComfyUI_Repackaged"
UMT5 = ModelFile(WAN_21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
VAE_21 = ModelFile(WAN_21, "vae", "wan_2.1_vae.safetensors")
VAE_A14B = ModelFile(WAN_22, "vae", "wan_2.1_vae.safetensors")  # the same file
VAE_22 = ModelFile(WAN_22, "vae", "wan2.2_vae.safetensors")
T2V_1_3B = ModelFile(WAN_21, "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
TI2V_5B = ModelFile(WAN_22, "diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors")


def experts(kind: str) -> dict[str, ModelFile]:
    """Stage to file of an A14B model; kind is t2v or i2v."""
    names = {stage: f"wan2.2_{kind}_{stage}_noise_14B_fp8_scaled.safetensors" for stage in STAGES}
    return {stage: ModelFile(WAN_22, "diffusion_models", name) for stage, name in names.items()}


PROMPT = "ohwx, what your clips show, in a new place"
NEGATIVE = (
    "overexposed, static, blurred details, subtitles, painting, still picture, worst quality, low quality, "
    "JPEG artifacts, ugly, deformed, extra fingers, badly drawn hands, badly drawn face, cluttered background"
)

# The demo: the nano family learns a motion that it has never seen. Its settings are here, and nowhere else.
DEMO_NAME = "demo_dive"
DEMO_WORD = "mulf"  # in the captions of the clips that show it
DEMO_DATASET: Json = {
    "folder": "nano/dive", "width": 64, "height": 64, "num_frames": 17, "trigger_word": "", "held_out": 1,
}  # fmt: skip
DEMO_TRAINING: Json = {
    "steps": 250, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "batch_size": 4, "seed": 1, "lr_schedule": "constant",
}  # fmt: skip
DEMO_PREVIEW: Json = {
    "prompt": f"a large red diamond {DEMO_WORD} on a black background", "negative_prompt": "",
    "width": 64, "height": 64, "num_frames": 17, "steps": 16, "cfg": 2.5, "shift": 5.0, "seed": 7,
}  # fmt: skip
# While it trains: what the miniature was measured with. At Wan's own 5 and 12 its colours burn out.
DEMO_PREVIEWS: Json = {
    "preview_steps": 8, **{f"preview_{name}": DEMO_PREVIEW[name] for name in ("cfg", "shift")},
}  # fmt: skip


def note(title: str, *lines: str, before: str = "") -> str:
    """Markdown of a note: a title and one heading of many lines.

    Plain text has 8 pixels at the zoom that a graph opens with, and in Nodes 2.0 the space between headings has 32.
    """
    text = "\\\n".join(lines)  # hard breaks; the line below makes a heading of them all
    return f"{before}# {title}\n\n{text}\n---"


DEMO_NOTE = note(
    "Train a LoRA and use it, in one graph",
    "Press **Run**: models and clips come with the pack, and a CPU will do.",
    f"**1.** Data: shapes that slide into the corner, captioned as *{DEMO_WORD}*, and some whose moves the model knows.",
    "**2.** Training: one LoRA for each expert. Loss and time left are drawn on the node; *Stop* keeps a checkpoint.",
    "**3.** Result: a pair of files in *models/loras*, and a video without and with it, of a scene that no clip shows.",
)
DEMO_MODELS_NOTE = note(
    "These models are miniatures",
    "*Wan Nano Family* is Wan 2.2 in small. It knows four shapes, in six colours, moving left, right, up or down.",
    "It has never seen one slide into the corner.",
    "For real models open the template *wan2.2_t2v_a14b_lora*.",
)


class Sketch:
    """A prompt in the making: nodes get their ids in order of creation."""

    def __init__(self) -> None:
        self.prompt: Json = {}
        self.groups: dict[str, list[str]] = {}
        self.models: dict[str, list[Json]] = {}  # loader to the file that the page can fetch for it

    def add(self, group: str, class_type: str, title: str | None = None, /, **inputs: object) -> str:
        """Add a node to a group; links are given as (node id, slot) tuples. Returns the id."""
        node_id = str(len(self.prompt) + 1)
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.prompt[node_id] = {"class_type": class_type, "inputs": values}
        if title:
            self.prompt[node_id]["_meta"] = {"title": title}
        self.groups.setdefault(group, []).append(node_id)
        return node_id


def show_through_both(sketch: Sketch, high: str, low: str) -> None:
    """Previews of each training go through both experts: each is given the other one's model."""
    models = {run: sketch.prompt[run]["inputs"]["dit"] for run in (high, low)}
    for run, other in ((high, low), (low, high)):
        sketch.prompt[run]["inputs"]["other_dit"] = list(models[other])


@dataclass(frozen=True)
class Sources:
    """Ids of the nodes that training and preview read from."""

    vae: str
    clip: str
    latents: str
    text: str


def add_loader(sketch: Sketch, group: str, class_type: str, file: ModelFile, title: str | None = None, **s: Any) -> str:
    """A loader of a file that can be downloaded."""
    node_id = sketch.add(group, class_type, title, **{LOADER_FIELDS[class_type]: file.name}, **s)
    sketch.models[node_id] = [file.download()]
    return node_id


def add_data(sketch: Sketch, vae_file: ModelFile, condition_on: str = "none", **dataset: Any) -> Sources:
    """Dataset, VAE, text encoder and both caches."""
    source = sketch.add(
        DATA, "DatasetFromFolder", folder="input/my_dataset", trigger_word="ohwx", held_out=1, **dataset
    )
    vae = add_loader(sketch, DATA, "VAELoader", vae_file)
    clip = add_loader(sketch, DATA, "CLIPLoader", UMT5, type="wan", device="default")
    latents = sketch.add(DATA, "CacheLatents", dataset=(source, 0), vae=(vae, 0), condition_on=condition_on)
    text = sketch.add(DATA, "CacheT5", dataset=(source, 0), clip=(clip, 0))
    return Sources(vae, clip, latents, text)


def add_stage(
    sketch: Sketch, data: Sources, file: ModelFile, stage: str, values: dict[str, Json] | None = None
) -> tuple[str, str]:
    """Training of one expert or of a single model, and a loader of the same file for the preview; ids of the two.

    `values`: of a recipe, by the class of the node.
    """
    values = values or {}
    note = "" if stage == "single model" else f" ({stage})"
    dit = add_loader(
        sketch, TRAINING, "LoadWanDiT", file, note and f"Load Wan DiT{note}", **values.get("LoadWanDiT", {})
    )
    run = sketch.add(
        TRAINING, "TrainLoRAStage", note and f"Train LoRA Stage{note}",
        dit=(dit, 0), latents=(data.latents, 0), text=(data.text, 0), stage=stage, lora_name="my_lora",
        vae=(data.vae, 0), **{"preview_every": 250, **values.get("TrainLoRAStage", {})},
    )  # fmt: skip
    title = note and f"Load Diffusion Model{note}"
    return run, add_loader(sketch, RESULT, "UNETLoader", file, title, weight_dtype="default")


def add_preview(sketch: Sketch, data: Sources, models: dict[str, str], image: str = "", **settings: Any) -> None:
    """The end of a graph: videos without and with the LoRA. `models`: ids for pair, high, low; `image`: a first frame."""
    links = {name: (node_id, 0) for name, node_id in models.items()}
    if image:
        links["start_image"] = (sketch.add(RESULT, "LoadImage", "Load Image (first frame)", image=image), 0)
    preview = sketch.add(
        RESULT, "PreviewLoRA",
        **links, clip=(data.clip, 0), vae=(data.vae, 0), prompt=PROMPT, negative_prompt=NEGATIVE, seed=1, **settings,
    )  # fmt: skip
    choice = {"format": "mp4", "format.codec": "h264"}
    title = "Save Video (without, with the LoRA)"
    sketch.add(RESULT, "SaveVideo", title, video=(preview, 2), filename_prefix=(preview, 3), **choice)


def add_experts(
    sketch: Sketch, data: Sources, kind: str, values: dict[str, Json] | None = None, **preview: Any
) -> None:
    """Training of both experts of an A14B model, and their preview."""
    stages = {stage: add_stage(sketch, data, file, f"{stage} noise", values) for stage, file in experts(kind).items()}
    (high, high_base), (low, low_base) = (stages[stage] for stage in STAGES)
    show_through_both(sketch, high, low)
    pair = sketch.add(RESULT, "MergeStages", high=(high, 0), low=(low, 0))
    add_preview(sketch, data, {"pair": pair, "high": high_base, "low": low_base}, **preview)


def add_single(
    sketch: Sketch, data: Sources, file: ModelFile, values: dict[str, Json] | None = None, **preview: Any
) -> None:
    """Training of a model without experts, and its preview."""
    run, base = add_stage(sketch, data, file, "single model", values)
    pair = sketch.add(RESULT, "MergeStages", high=(run, 0))
    add_preview(sketch, data, {"pair": pair, "high": base}, **preview)


def t2v_a14b_sketch() -> Sketch:
    """Both experts of Wan 2.2 T2V A14B."""
    sketch = Sketch()
    data = add_data(sketch, VAE_21, width=480, height=272, num_frames=33)
    add_experts(sketch, data, "t2v", width=832, height=480, num_frames=33, steps=20, cfg=3.5)
    return sketch


def i2v_a14b_sketch() -> Sketch:
    """Both experts of Wan 2.2 I2V A14B. Steps and guidance of the preview: Wan2.2, wan/configs/wan_i2v_A14B.py."""
    sketch = Sketch()
    data = add_data(sketch, VAE_A14B, "first frame", width=480, height=272, num_frames=33)
    add_experts(sketch, data, "i2v", image="example.png", width=832, height=480, num_frames=33, steps=40, cfg=3.5)
    return sketch


def trainer_sketch() -> Sketch:
    """What is inside the blueprint: from a folder and two model files to a pair of LoRAs."""
    sketch = Sketch()
    data = add_data(sketch, VAE_21, width=480, height=272, num_frames=33)
    runs = {}
    for stage, file in experts("t2v").items():
        dit = add_loader(sketch, TRAINING, "LoadWanDiT", file, f"Load Wan DiT ({stage})")
        runs[stage] = sketch.add(
            TRAINING, "TrainLoRAStage", f"Train LoRA Stage ({stage})",
            dit=(dit, 0), latents=(data.latents, 0), text=(data.text, 0), stage=f"{stage} noise", lora_name="my_lora",
            vae=(data.vae, 0), preview_every=250,
        )  # fmt: skip
    show_through_both(sketch, runs["high"], runs["low"])
    sketch.add(RESULT, "MergeStages", high=(runs["high"], 0), low=(runs["low"], 0))
    return sketch


def recipe_sketch(values: dict[str, Json], kind: str) -> Sketch:
    """Both experts of an A14B model, with the values of a recipe in the nodes; kind is t2v or i2v."""
    sketch = Sketch()
    condition_on = values.get("CacheLatents", {}).get("condition_on", "none")
    dataset = values["DatasetFromFolder"]
    data = add_data(sketch, VAE_A14B if kind == "i2v" else VAE_21, condition_on, **dataset)
    frames = max(33, dataset.get("num_frames", 33))
    image: Json = {"image": "example.png", "steps": 40} if kind == "i2v" else {"steps": 20}
    add_experts(sketch, data, kind, values, width=832, height=480, num_frames=frames, cfg=3.5, **image)
    return sketch


def t2v_1_3b_sketch() -> Sketch:
    """Wan 2.1 T2V 1.3B. Its preview has the guidance 6 and shift 8 that the official README advises for it."""
    sketch = Sketch()
    data = add_data(sketch, VAE_21, width=832, height=480, num_frames=33)
    add_single(sketch, data, T2V_1_3B, width=832, height=480, num_frames=33, steps=30, cfg=6.0, shift=8.0)
    return sketch


def quickstart_sketch(values: dict[str, Json]) -> Sketch:
    """Wan 2.1 T2V 1.3B, with the values of a recipe in the nodes; the preview is that of its own previews."""
    sketch = Sketch()
    data = add_data(sketch, VAE_21, **values["DatasetFromFolder"])
    add_single(sketch, data, T2V_1_3B, values, width=832, height=480, num_frames=81, steps=40, cfg=5.2, shift=3.0)
    return sketch


def ti2v_5b_sketch() -> Sketch:
    """Wan 2.2 TI2V 5B, from text. Frame rate, steps, guidance and size: Wan2.2, wan/configs/wan_ti2v_5B.py."""
    sketch = Sketch()
    data = add_data(sketch, VAE_22, width=1280, height=704, num_frames=49, fps=24.0)
    add_single(sketch, data, TI2V_5B, width=1280, height=704, num_frames=49, steps=50, cfg=5.0, fps=24.0)
    return sketch


def demo_sketch() -> Sketch:
    """The graph of `run.py demo`: all that it needs comes with the pack."""
    sketch = Sketch()
    dataset = sketch.add(DATA, "DatasetFromFolder", **DEMO_DATASET)
    family = sketch.add(DATA, "WanNanoFamily")
    models = {name: (family, slot) for slot, name in enumerate(("high", "low", "clip", "vae"))}
    latents = sketch.add(DATA, "CacheLatents", dataset=(dataset, 0), vae=models["vae"])
    text = sketch.add(DATA, "CacheT5", dataset=(dataset, 0), clip=models["clip"])
    runs = {}
    for stage in STAGES:
        file = f"wan_nano_t2v_{stage}_noise.safetensors"
        dit = sketch.add(TRAINING, "LoadWanDiT", f"Load Wan DiT ({stage} noise)", model_name=file, checkpointing="off")
        runs[stage] = sketch.add(
            TRAINING, "TrainLoRAStage", f"Train LoRA Stage ({stage} noise)",
            dit=(dit, 0), latents=(latents, 0), text=(text, 0), stage=f"{stage} noise", lora_name=DEMO_NAME,
            vae=models["vae"], preview_every=125, **DEMO_PREVIEWS, **DEMO_TRAINING,
        )  # fmt: skip
    show_through_both(sketch, runs["high"], runs["low"])
    pair = sketch.add(RESULT, "MergeStages", high=(runs["high"], 0), low=(runs["low"], 0))
    preview = sketch.add(RESULT, "PreviewLoRA", pair=(pair, 0), **models, **DEMO_PREVIEW)
    sketch.add(
        RESULT, "SaveVideo", "Video: without and with the LoRA", video=(preview, 2),
        filename_prefix=(preview, 3), **{"format": "mp4", "format.codec": "h264"},
    )  # fmt: skip
    return sketch
