"""Clips of the experts through ComfyUI itself: the graph that its users build by hand, with two KSamplerAdvanced."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...core.sample.sampler import SampleOptions, schedule, switch_step
from ..demo import copy_pack
from ..server import HostError, Server, failure, output_files, run_server
from . import world
from .family import Files

PACK = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 600.0


@dataclass
class HostFamily:
    """The models, ready to generate in a running ComfyUI."""

    server: Server
    base: Path  # its base directory
    files: Files

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], options: SampleOptions) -> np.ndarray:
        """Clips [B, F, H, W, 3] uint8, one of each prompt and seed. HostError if a node fails."""
        clips = []
        for text, seed in zip(prompts, seeds, strict=True):
            prompt = graph(self.files, text, seed, options)
            entry = self.server.wait(self.server.queue(prompt), TIMEOUT_S)
            problem = failure(entry, prompt)
            if problem:
                raise HostError(problem)
            paths = output_files(entry, self.base)["saved"]
            clips.append(np.stack([np.asarray(Image.open(path)) for path in paths]))
            for path in paths:
                path.unlink()
        return np.stack(clips)


@contextmanager
def host_family(files: Files, host: Path) -> Iterator[HostFamily]:
    """Start the ComfyUI in the folder `host`, on the CPU and with this Python, over a copy of the family and of this pack."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for kind in ("diffusion_models", "vae", "text_encoders"):
            shutil.copytree(files.root / kind, base / "models" / kind)
        copy_pack(PACK, base)
        with run_server(Path(sys.executable), host, base) as server:
            yield HostFamily(server, base, files)


def graph(files: Files, text: str, seed: int, options: SampleOptions) -> dict[str, Any]:
    """An API prompt for one clip; its frames are saved by the node "saved"."""
    switch = switch_step(schedule(options), options.boundary)
    common = {
        "cfg": options.cfg, "sampler_name": options.sampler, "scheduler": "simple", "steps": options.steps,
        "noise_seed": seed, "positive": ["positive", 0], "negative": ["negative", 0],
    }  # fmt: skip
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "clip": ("WanLoadUMT5", {"name": files.text_encoder.name}),
        "vae": ("VAELoader", {"vae_name": files.vae.name}),
        "positive": ("CLIPTextEncode", {"clip": ["clip", 0], "text": text}),
        "negative": ("CLIPTextEncode", {"clip": ["clip", 0], "text": ""}),
        "empty": (
            "EmptyHunyuanLatentVideo",
            {"width": world.SIZE, "height": world.SIZE, "length": world.NUM_FRAMES, "batch_size": 1},
        ),
        "first": (
            "KSamplerAdvanced",
            {"model": ["high_shifted", 0], "add_noise": "enable", "latent_image": ["empty", 0], "start_at_step": 0,
             "end_at_step": switch, "return_with_leftover_noise": "enable", **common},
        ),
        "second": (
            "KSamplerAdvanced",
            {"model": ["low_shifted", 0], "add_noise": "disable", "latent_image": ["first", 0], "start_at_step": switch,
             "end_at_step": 10000, "return_with_leftover_noise": "disable", **common},
        ),
        "decoded": ("VAEDecode", {"samples": ["second", 0], "vae": ["vae", 0]}),
        "saved": ("SaveImage", {"images": ["decoded", 0], "filename_prefix": "clip"}),
    }  # fmt: skip
    for stage in ("high", "low"):
        nodes[stage] = ("UNETLoader", {"unet_name": files.dit(stage).name, "weight_dtype": "default"})
        nodes[f"{stage}_shifted"] = ("ModelSamplingSD3", {"model": [stage, 0], "shift": options.shift})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
