"""Prompts kept as code, and the one of the demo. `tools/make_workflows.py` makes the workflow files from them."""

from .workflow import Json

DEMO_NOTE = """## Train a LoRA and use it, in one graph

1. **Data**: a folder of clips and pictures with captions, encoded once by the VAE and the text encoder.
2. **Training**: one LoRA for each expert of Wan 2.2. Loss and time left are drawn on the node; Stop keeps a checkpoint.
3. **Result**: the pair of files in `models/loras`, and a video without and with it.

Press **Run**. Queued again, a finished training returns at once."""

DEMO_MODELS_NOTE = """## These models are miniatures

They were made by `python run.py demo` so that a CPU trains them in a minute. They keep colours, not details.

For real models: choose your Wan 2.2 files in the four loaders, your folder in *Dataset from Folder*, 832 x 480 x 33,
learning rate 1e-4 and 2000 steps."""


class Sketch:
    """A prompt in the making: nodes get their ids in order of creation."""

    def __init__(self) -> None:
        self.prompt: Json = {}
        self.groups: dict[str, list[str]] = {}

    def add(self, group: str, class_type: str, title: str | None = None, /, **inputs: object) -> str:
        """Add a node to a group; links are given as (node id, slot) tuples. Returns the id."""
        node_id = str(len(self.prompt) + 1)
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.prompt[node_id] = {"class_type": class_type, "inputs": values}
        if title:
            self.prompt[node_id]["_meta"] = {"title": title}
        self.groups.setdefault(group, []).append(node_id)
        return node_id


def demo_sketch() -> Sketch:
    """The graph of `run.py demo`."""
    sketch = Sketch()
    data, training, result = "1. Data", "2. Training", "3. Result"
    dataset = sketch.add(
        data, "DatasetFromFolder", folder="input/demo_shapes", width=96, height=96, num_frames=17, trigger_word="ohwx"
    )
    vae = sketch.add(data, "VAELoader", vae_name="wan_mini_vae.safetensors")
    clip = sketch.add(data, "WanLoadUMT5", name="wan_mini_umt5.safetensors")
    latents = sketch.add(data, "CacheLatents", dataset=(dataset, 0), vae=(vae, 0))
    text = sketch.add(data, "CacheT5", dataset=(dataset, 0), clip=(clip, 0))
    stages, models = {}, {}
    for stage in ("high", "low"):
        file = f"wan_mini_{stage}_noise.safetensors"
        dit = sketch.add(training, "LoadWanDiT", f"Load Wan DiT ({stage} noise)", model_name=file, checkpointing=False)
        stages[stage] = sketch.add(
            training, "TrainLoRAStage", f"Train LoRA Stage ({stage} noise)",
            dit=(dit, 0), latents=(latents, 0), text=(text, 0), stage=f"{stage} noise", lora_name="demo_shapes",
            steps=120, learning_rate=3e-3, rank=16, alpha=16.0, batch_size=2, seed=1, lr_schedule="cosine",
        )  # fmt: skip
        models[stage] = sketch.add(
            result, "UNETLoader", f"Load Diffusion Model ({stage} noise)", unet_name=file, weight_dtype="default"
        )
    for stage, run in stages.items():
        sketch.add(result, "LossGraphNode", f"Loss curve ({stage} noise)", loss=(run, 2), filename_prefix="loss_graph")
    pair = sketch.add(result, "MergeStages", high=(stages["high"], 0), low=(stages["low"], 0), name="demo_shapes")
    preview = sketch.add(
        result, "PreviewLoRA",
        pair=(pair, 0), high=(models["high"], 0), low=(models["low"], 0), clip=(clip, 0), vae=(vae, 0),
        prompt="ohwx a red circle moving to the right on a cream background", negative_prompt="",
        width=96, height=96, num_frames=17, steps=12, cfg=1.0, seed=7,
    )  # fmt: skip
    sketch.add(
        result, "SaveVideo", "Video: without and with the LoRA", video=(preview, 2),
        **{"filename_prefix": "video/demo_shapes", "format": "mp4", "format.codec": "h264"},
    )  # fmt: skip
    return sketch
