"""LoRAs with random weights for the miniature models."""

import functools
from pathlib import Path

import torch
from safetensors.torch import save_file
from wan_train.core.adapters.formats import LoraModule, write_lora
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit


@functools.cache
def linear_layers(size: DiTSize) -> dict[str, tuple[int, int]]:
    """Official path -> (out, in) of what a LoRA of all of a model's linear layers trains: blocks and img_emb."""
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in wan_dit(size).items()
        if name.endswith(".weight") and tensor.ndim == 2 and name.startswith(("blocks.", "img_emb."))
    }


def random_modules(layers: dict[str, tuple[int, int]], rank: int = 2, seed: int = 0) -> dict[str, LoraModule]:
    generator = torch.Generator().manual_seed(seed)
    return {
        path: LoraModule(
            down=torch.randn(rank, width, generator=generator) * 0.4,
            up=torch.randn(height, rank, generator=generator) * 0.4,
            alpha=rank / 2,
        )
        for path, (height, width) in layers.items()
    }


def write_random(path: Path, size: DiTSize, seed: int = 0, rank: int = 2, **metadata: str) -> Path:
    """A LoRA on every linear layer of a miniature."""
    modules = random_modules(linear_layers(size), rank, seed)
    return write_lora(path, modules, metadata=metadata, dtype=torch.float32)


def write_model(path: Path, size: DiTSize, seed: int = 0) -> Path:
    save_file(wan_dit(size, seed=seed), path, metadata=dit_metadata(size))
    return path
