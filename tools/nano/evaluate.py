"""How well the experts follow captions: `python -m tools.nano evaluate --out FILE`, through our own sampler.

With --host FOLDER through the ComfyUI that lies there, on the CPU. Prompts are captions of scenes whose combination of
words was never trained on; the judge reads the frames.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.facts import LATENT_CHANNELS, TEXT_TOKENS, latent_shape
from ...core.sample.sampler import SampleOptions, VelocityModel, initial_noise, sample
from ...core.serial import to_dict
from ...core.wan.checkpoint import inspect
from ...core.wan.loading import load_transformer
from . import world
from .family import Files
from .judge import Verdict, judge
from .on_host import host_family
from .text import TextEncoder
from .vae import WanVAE, load_vae, to_frames
from .world import Scene

ATTRIBUTES = ("shape", "colour", "motion", "count", "texture")
SAMPLING = SampleOptions(steps=16, shift=5.0, cfg=2.5)
BATCH = 50


def decisive(options: SampleOptions) -> dict[str, Any]:
    """For a digest: what is as the defaults say is left out, so that an option that is new changes no digest."""
    usual = to_dict(SampleOptions())
    return {name: value for name, value in to_dict(options).items() if value != usual[name]}


@dataclass
class Family:
    """The models, ready to generate."""

    high: VelocityModel
    low: VelocityModel
    vae: WanVAE
    text: TextEncoder
    device: str = "cpu"

    @classmethod
    def load(cls, files: Files, device: str = "cpu") -> "Family":
        """From the files, in float32."""
        experts = [
            load_transformer(inspect(files.dit(stage)), dtype=torch.float32, device=torch.device(device)).eval()
            for stage in ("high", "low")
        ]
        return cls(
            experts[0], experts[1], load_vae(files.vae).to(device), TextEncoder(files.text_encoder, device), device
        )

    def contexts(self, prompts: Sequence[str]) -> Tensor:
        """[B, 512, D], zero-padded."""
        context, _ = self.text.encode(prompts)
        return torch.nn.functional.pad(context, (0, 0, 0, TEXT_TOKENS - context.shape[1]))

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], options: SampleOptions = SAMPLING) -> np.ndarray:
        """Clips [B, F, H, W, 3] uint8, one of each prompt and seed."""
        shape = (1, *latent_shape(LATENT_CHANNELS["wan2.1"], world.NUM_FRAMES, world.SIZE, world.SIZE))
        clips = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            noise = torch.cat([initial_noise(shape, seed) for seed in seeds[part]]).to(self.device)
            latents = sample(
                self.high, self.low, noise, self.contexts(prompts[part]), self.contexts([""]), options
            )  # fmt: skip
            clips.append(to_frames(self.vae.decode(latents)).cpu().numpy())
        return np.concatenate(clips)


def test_scenes(seed: int) -> Iterator[tuple[Scene, str]]:
    """Scenes with a fixed camera that were kept for tests, each with a caption."""
    rng = random.Random(seed)
    for scene in world.scenes(seed, "test"):
        if scene.camera == "fixed":
            yield scene, world.caption(scene, rng)


def right(verdict: Verdict, scene: Scene) -> dict[str, bool]:
    """Which attributes the judge found as asked."""
    wanted = replace(scene, motion=scene.seen_motion, colour=scene.seen_colour)
    return {name: getattr(verdict, name) == getattr(wanted, name) for name in ATTRIBUTES}


def shares(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of clips, for each attribute, in which it is right."""
    rows = [right(verdict, scene) for verdict, scene in zip(verdicts, scenes, strict=True)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in ATTRIBUTES}


def main(arguments: list[str]) -> None:
    """Generate, judge, write the shares and every miss."""
    parser = argparse.ArgumentParser(prog="tools.nano evaluate", description=__doc__)
    parser.add_argument("--family", type=Path, default=Files().root)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=SAMPLING.steps)
    parser.add_argument("--shift", type=float, default=SAMPLING.shift)
    parser.add_argument("--cfg", type=float, default=SAMPLING.cfg)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=Path, help="also write the frames, as npz")
    parser.add_argument("--host", type=Path, metavar="FOLDER", help="of a ComfyUI that is to generate the clips")
    options = parser.parse_args(arguments)
    files = Files(options.family.absolute())
    scenes, prompts = zip(*islice(test_scenes(options.seed), options.prompts), strict=True)
    sampling = SampleOptions(steps=options.steps, shift=options.shift, cfg=options.cfg)
    if options.host:
        opened = host_family(files, options.host.expanduser().absolute())
    else:
        opened = nullcontext(Family.load(files, options.device))
    with opened as family:
        start = time.perf_counter()
        clips = family.generate(prompts, range(options.prompts), sampling)
        seconds = time.perf_counter() - start
    if options.clips:
        np.savez_compressed(options.clips, clips=clips)
    verdicts = [judge(clip) for clip in clips]
    found = shares(verdicts, scenes)
    misses = [
        {"prompt": prompt, "scene": vars(scene), "verdict": vars(verdict)}
        for prompt, scene, verdict in zip(prompts, scenes, verdicts, strict=True)
        if not all(right(verdict, scene).values())
    ]
    report = {
        "through": "ComfyUI" if options.host else "our sampler",
        "prompts": options.prompts, "seed": options.seed, "sampling": vars(sampling), "right": found,
        "seconds": round(seconds, 1), "misses": misses,
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{found}, {seconds:.0f} s")
