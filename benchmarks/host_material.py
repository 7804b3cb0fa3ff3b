"""What `host_on_gpu.py` gives to ComfyUI: small and large models in the true format, pictures and clips, and prompts."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from wan_train.benchmarks.material import Clip, draw_weight, official_shapes
from wan_train.core.wan.config import WanConfig
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.miniature import DiTSize, dit_metadata, umt5, wan_dit
from wan_train.tools.shapes import Scene, draw_frame, write_clip
from wan_train.tools.workflow import ui_to_api

Json = dict[str, Any]
PACK = Path(__file__).resolve().parents[1]
TEMPLATE = PACK / "example_workflows" / "wan2.2_t2v_a14b_lora.json"
NAMES = {
    "DatasetFromFolder": "data", "VAELoader": "vae", "CLIPLoader": "clip", "CacheLatents": "latents", "CacheT5": "text",
    "LoadWanDiT": "dit", "TrainLoRAStage": "train", "UNETLoader": "model", "MergeStages": "pair", "PreviewLoRA": "preview",
    "SaveVideo": "video",
}  # fmt: skip
OF_EXPERTS = ("dit", "train", "model")
# Fills a GPU but for so many GiB, says so, and holds it until its input ends.
HOG = (
    "import sys, torch; free = torch.cuda.mem_get_info()[0]; "
    "held = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device='cuda'); "
    "print('full', flush=True); sys.stdin.read()"
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    small: DiTSize  # what is trained
    large: DiTSize  # what does not fit, and what ComfyUI holds
    side: int  # of pictures and clips, in pixels
    frames: int
    steps: int
    long_steps: int  # of a run that is stopped on its way
    too_large: Clip


ON_GPU = Scale(
    small=DiTSize(dim=512, ffn_dim=1024, num_heads=4, num_layers=4),
    large=DiTSize(dim=5120, ffn_dim=13824, num_heads=40, num_layers=4),
    side=256,
    frames=17,
    steps=40,
    long_steps=1000,
    too_large=Clip(1280, 720, 81),
)
ON_CPU = Scale(
    small=DiTSize(), large=DiTSize(), side=64, frames=9, steps=4, long_steps=80, too_large=Clip(96, 64, 9)
)  # fmt: skip


def write_models(models: Path, scale: Scale) -> None:
    """Two experts, a large model, the VAE and the text encoder, below ComfyUI's folder of models."""
    folder = models / "diffusion_models"
    for name in (folder, models / "vae", models / "text_encoders", models / "loras"):
        name.mkdir(parents=True, exist_ok=True)
    for seed, expert in enumerate(("high", "low")):
        tensors = {name: tensor.bfloat16() for name, tensor in wan_dit(scale.small, seed=10 + seed).items()}
        save_file(tensors, folder / f"small_{expert}_noise.safetensors", metadata=dit_metadata(scale.small))
    large = folder / "large_high_noise.safetensors"
    save_file(_large_model(scale.large), large, metadata=dit_metadata(scale.large))
    save_file(wan_vae(), models / "vae" / "wan_mini_vae.safetensors")
    save_file(umt5(), models / "text_encoders" / "wan_mini_umt5.safetensors")


def _large_model(size: DiTSize) -> dict[str, torch.Tensor]:
    """Random weights; tensors of one shape are the same, since drawing billions of numbers takes a CPU long."""
    config = WanConfig(
        dim=size.dim,
        ffn_dim=size.ffn_dim,
        num_heads=size.num_heads,
        num_layers=size.num_layers,
        text_dim=size.text_dim,
    )
    drawn: dict[tuple[bool, torch.Size], torch.Tensor] = {}
    found = {}
    for name, shape in official_shapes(config).items():
        key = ("norm" in name, shape)
        if key not in drawn:
            drawn[key] = draw_weight(name, shape, "cpu").bfloat16()
        found[name] = drawn[key].clone()
    return found


def draw_media(folder: Path, side: int, frames: int, seed: int = 0) -> int:
    """Pictures and clips in several sizes, each with a caption; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    wide, narrow = side * 3 // 2 // 16 * 16, side * 3 // 4 // 16 * 16
    sizes = [(side, side, 1), (wide, side, 1), (narrow, wide, 1)]
    sizes += [(side, side, frames), (wide, narrow, frames + 8), (narrow, narrow, max(5, frames - 8))]
    for number, (width, height, length) in enumerate(sizes):
        colour = ("red", "green", "blue", "orange", "purple", "yellow")[(number + seed) % 6]
        scene = Scene("circle", colour, "a cream", "to the right", 0.2, 0.0)
        times = [i / max(1, length - 1) for i in range(length)]
        drawn = [draw_frame(scene, time, max(width, height))[:height, :width] for time in times]
        path = folder / f"{number}.{'png' if length == 1 else 'mp4'}"
        if length == 1:
            Image.fromarray(drawn[0]).save(path)
        else:
            write_clip(path, [np.ascontiguousarray(frame) for frame in drawn], 16)
        path.with_suffix(".txt").write_text(f"{scene.caption} {number}\n", encoding="utf-8")
    return len(sizes)


def draw_large_clip(folder: Path, clip: Clip, seed: int) -> None:
    """One clip of a moving gradient, cheap to draw at any size."""
    folder.mkdir(parents=True, exist_ok=True)
    across = np.arange(clip.width, dtype=np.uint16)[None, :] + np.arange(clip.height, dtype=np.uint16)[:, None]
    frames = [
        np.repeat(((across // 4 + 2 * i + 40 * seed) % 256).astype(np.uint8)[..., None], 3, 2)
        for i in range(clip.frames)
    ]
    write_clip(folder / "large.mp4", frames, 16)
    (folder / "large.txt").write_text(f"a slow wave {seed}\n", encoding="utf-8")


def usual(info: Json, scale: Scale, name: str, steps: int, *, folder: str = "input/shapes", seed: int = 0) -> Json:
    """The template for Wan 2.2 as it is shipped, with these files, sizes and steps, and node names that can be read."""
    shipped = ui_to_api(json.loads(TEMPLATE.read_text(encoding="utf-8")), info)
    keys = {key: _readable(node) for key, node in shipped.items()}
    prompt = {keys[key]: copy.deepcopy(node) for key, node in shipped.items()}
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update(
            {key: [keys[value[0]], value[1]] for key, value in inputs.items() if _is_link(value) and value[0] in keys}
        )
    # ComfyUI's own loader takes umT5-xxl alone.
    prompt["clip"] = node_of("WanLoadUMT5", name="wan_mini_umt5.safetensors")
    prompt["vae"]["inputs"]["vae_name"] = "wan_mini_vae.safetensors"
    prompt["data"]["inputs"] |= {
        "folder": folder, "width": scale.side, "height": scale.side, "num_frames": scale.frames, "trigger_word": "shp",
    }  # fmt: skip
    for expert in ("high", "low"):
        file = f"small_{expert}_noise.safetensors"
        prompt[f"{expert}_dit"]["inputs"]["model_name"] = file
        prompt[f"{expert}_model"]["inputs"]["unet_name"] = file
        prompt[f"{expert}_train"]["inputs"] |= {"lora_name": name, "steps": steps, "seed": seed}
    prompt["preview"]["inputs"] |= {"width": scale.side, "height": scale.side, "num_frames": 9, "steps": 4}
    return prompt


def high_alone(prompt: Json) -> Json:
    """The training of the high noise expert, and what it needs."""
    kept = ("data", "vae", "clip", "latents", "text", "high_dit", "high_train")
    prompt = {name: copy.deepcopy(prompt[name]) for name in kept}
    del prompt["high_train"]["inputs"]["other_dit"]
    return prompt


def sampling(scale: Scale, side: int, loras: tuple[str, str] | None, strength: float = 1.0) -> Json:
    """A picture by ComfyUI's own loaders and sampler: of both experts with their LoRAs, or of the large model."""
    names = ["small_high_noise", "small_low_noise"] if loras else ["large_high_noise"]
    steps = 4
    prompt = {
        "s_clip": node_of("WanLoadUMT5", name="wan_mini_umt5.safetensors"),
        "s_vae": node_of("VAELoader", vae_name="wan_mini_vae.safetensors"),
        "s_positive": node_of("CLIPTextEncode", text="shp a red circle", clip=["s_clip", 0]),
        "s_negative": node_of("CLIPTextEncode", text="", clip=["s_clip", 0]),
        "s_0": node_of("EmptyHunyuanLatentVideo", width=side, height=side, length=1, batch_size=1),
    }
    for number, name in enumerate(names):
        model = f"s_model_{number}"
        prompt[model] = node_of("UNETLoader", unet_name=f"{name}.safetensors", weight_dtype="default")
        if loras:
            prompt[f"s_lora_{number}"] = node_of(
                "LoraLoaderModelOnly", model=[model, 0], lora_name=loras[number], strength_model=strength
            )
            model = f"s_lora_{number}"
        prompt[f"s_{number + 1}"] = node_of(
            "KSamplerAdvanced", model=[model, 0], positive=["s_positive", 0], negative=["s_negative", 0],
            latent_image=[f"s_{number}", 0], add_noise="disable" if number else "enable", noise_seed=5, steps=steps, cfg=2.0,
            sampler_name="euler", scheduler="simple", start_at_step=2 * number,
            end_at_step=2 if loras and not number else 1000,
            return_with_leftover_noise="enable" if loras and not number else "disable",
        )  # fmt: skip
    prompt["s_image"] = node_of("VAEDecode", samples=[f"s_{len(names)}", 0], vae=["s_vae", 0])
    prompt["s_saved"] = node_of("SaveImage", images=["s_image", 0], filename_prefix=f"sampled_{scale.side}")
    return prompt


def node_of(class_type: str, **inputs: Any) -> Json:
    """A node of a prompt."""
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def _readable(node: Json) -> str:
    name = NAMES[node["class_type"]]
    if name not in OF_EXPERTS:
        return name
    return f"{'low' if 'low noise' in node['_meta']['title'] else 'high'}_{name}"


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
