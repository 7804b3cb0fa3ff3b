"""API prompts over the miniature models: the whole graph, small enough for a CPU."""

import copy
import os
import zlib
from typing import Any

Json = dict[str, Any]
SIZE = 64
FRAMES = 9

TRAIN: Json = {
    "lora_name": "shapes",
    "steps": 6,
    "learning_rate": 1e-3,
    "rank": 4,
    "alpha": 4.0,
    "batch_size": 1,
    "seed": 1,
    "timestep_sampling": "uniform",
    "timestep_shift": 3.0,
    "sigmoid_scale": 1.0,
    "timestep_strata": 1,
    "boundary": 0.875,
    "targets": "attention and ffn",
    "dropout": 0.0,
    "gradient_accumulation": 1,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "lr_floor": 0.0,
    "lr_power": 1.0,
    "caption_dropout": 0.0,
    "checkpoint_every": 3,
    "keep_last": 3,
    "validate_every": 100,
    "device": "auto",
}
DATASET: Json = {
    "folder": "input/shapes",
    "width": SIZE,
    "height": SIZE,
    "num_frames": FRAMES,
    "trigger_word": "shp",
    "frame_sampling": "head",
    "windows_per_clip": 4,
    "slide_stride": 16,
    "fps": 16.0,
    "aspect_buckets": True,
    "upscale": True,
    "repeats": 1,
    "default_caption": "",
    "caption_extension": ".txt",
    "bad_files": "skip",
    "short_clips": "shorten",
    "held_out": 0,
}


def node(class_type: str, **inputs: Any) -> Json:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def data_graph(**dataset: Any) -> Json:
    """Dataset, VAE, text encoder, and both caches."""
    return {
        "data": node("DatasetFromFolder", **{**DATASET, **dataset}),
        "vae": node("VAELoader", vae_name="wan_mini_vae.safetensors"),
        "clip": node("WanLoadUMT5", name="wan_mini_umt5.safetensors"),
        "latents": node("CacheLatents", dataset=["data", 0], vae=["vae", 0]),
        "text": node("CacheT5", dataset=["data", 0], clip=["clip", 0]),
    }


def dit(name: str, **settings: Any) -> Json:
    return node("LoadWanDiT", **{"model_name": name, "precision": "auto", "checkpointing": True, **settings})


def own_seed(seed: int) -> int:
    """A seed that no other test has, always the same.

    All tests share one ComfyUI: a training that is equal but for its name or its steps would go on from another test's.
    Campaigns that are run by hand have a ComfyUI of their own, and the seed as it is.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]  # "FILE::NAME[PARAMETERS] (call)"
    if not test:
        return seed
    return 1000 * (1 + zlib.crc32(test.encode()) % 1_000_000) + seed


def stage_nodes(stage: str, **train: Any) -> Json:
    """One training stage with its model; `stage` is high or low. The seed is one of the test's own (see `own_seed`)."""
    inputs = {**TRAIN, "stage": f"{stage} noise", **train}
    inputs["seed"] = own_seed(inputs["seed"])
    return {
        f"{stage}_dit": dit(f"wan_mini_{stage}_noise.safetensors"),
        f"{stage}_train": node(
            "TrainLoRAStage", dit=[f"{stage}_dit", 0], latents=["latents", 0], text=["text", 0], **inputs
        ),
    }


def one_stage(stage: str = "high", *, dataset: Json | None = None, **train: Any) -> Json:
    """A graph that trains one expert."""
    return {**data_graph(**(dataset or {})), **stage_nodes(stage, **train)}


def two_stages(*, high: Json | None = None, low: Json | None = None, **train: Any) -> Json:
    """A graph that trains both experts."""
    return {
        **data_graph(),
        **stage_nodes("high", **{**train, **(high or {})}),
        **stage_nodes("low", **{**train, **(low or {})}),
    }


def changed(prompt: Json, node_id: str, **inputs: Any) -> Json:
    """A copy with other inputs on one node."""
    prompt = copy.deepcopy(prompt)
    prompt[node_id]["inputs"].update(inputs)
    return prompt
