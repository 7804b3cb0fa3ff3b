"""Miniature model files in a models folder as ComfyUI has it, a few captioned pictures, and recipes over them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from wan_train.tools.miniature import DiTSize, dit_metadata, umt5, wan_dit, wan_vae
from wan_train.tools.shapes import draw_dataset

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64)


def write_models(folder: Path, num_layers: int = SIZE.num_layers) -> Path:
    """Both experts, a VAE and a text encoder; `folder`."""
    size = replace(SIZE, num_layers=num_layers)
    files = {
        "diffusion_models/mini_high_noise.safetensors": (wan_dit(size, seed=1), dit_metadata(size)),
        "diffusion_models/mini_low_noise.safetensors": (wan_dit(size, seed=2), dit_metadata(size)),
        "vae/mini_vae.safetensors": (wan_vae(6), None),
        "text_encoders/mini_umt5.safetensors": (umt5(), None),
    }
    for name, (tensors, metadata) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name, metadata=metadata)
    return folder


def draw_pictures(folder: Path) -> Path:
    """Three captioned pictures; `folder`."""
    draw_dataset(folder, clips=0, images=3, size=32, seed=0)
    return folder


def recipe_over(models: Path, pictures: Path) -> dict[str, Any]:
    """A recipe for both experts, as a file would hold it."""
    return {
        "name": "shapes",
        "dataset": {"folder": str(pictures), "width": 32, "height": 32, "trigger_word": "shp"},
        "models": {
            "high": str(models / "diffusion_models" / "mini_high_noise.safetensors"),
            "low": str(models / "diffusion_models" / "mini_low_noise.safetensors"),
            "vae": str(models / "vae" / "mini_vae.safetensors"),
            "text_encoder": str(models / "text_encoders" / "mini_umt5.safetensors"),
        },
        "adapter": {"rank": 4, "alpha": 4.0},
        "loop": {"steps": 4},
        "device": "cpu",
    }
