"""What is trained in the benchmarks: random models in the official layout, random latents and texts.

Neither time nor memory depends on their values; weights keep the size of their layer's output, so that the loss is finite.
"""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from wan_train.core.facts import PATCH, latent_shape, longest_clip, pixels_per_latent
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import DataSpec, Job, ModelSpec, TrainSample
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer

MODELS = {
    "14b": WanConfig(),
    "i2v-14b": WanConfig(variant="i2v", in_dim=36),  # of Wan 2.2: no CLIP features
    "1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "5b": WanConfig(variant="ti2v", dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48),
    "toy": WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=3),  # for a dry run on a CPU
}
TEXT_TOKENS = 160
WRITERS = 8
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8"}


@dataclass(frozen=True, order=True)
class Clip:
    """The size of a clip in pixels; one frame is an image."""

    width: int
    height: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> "Clip":
        """From "832x480x33"; ValueError for another form."""
        width, height, frames = (int(part) for part in text.split("x"))
        return cls(width, height, frames)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    def latent_shape(self, config: WanConfig) -> tuple[int, int, int, int]:
        """C, F, H, W. ValueError for a size that the model's tokens do not fit."""
        step = PATCH * pixels_per_latent(config.out_dim)
        if self.width % step or self.height % step or self.frames != longest_clip(self.frames):
            raise ValueError(
                f"the clip {self} does not fit the model: width and height must be multiples of {step}, and the "
                "frames one more than a multiple of 4."
            )
        return latent_shape(config.out_dim, self.frames, self.height, self.width)

    def tokens(self, config: WanConfig) -> int:
        """Video tokens that the transformer sees."""
        _, frames, height, width = self.latent_shape(config)
        return frames * (height // 2) * (width // 2)


def official_shapes(config: WanConfig) -> dict[str, torch.Size]:
    """Every tensor of the checkpoint, by its official name."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in WanTransformer(config).named_parameters()}


def draw_weight(name: str, shape: torch.Size, device: torch.device | str) -> torch.Tensor:
    """Norms are the identity; all else is normal, with std 0.7 / sqrt(fan_in)."""
    if "norm" in name:
        return (torch.ones if name.endswith("weight") else torch.zeros)(shape, device=device)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 and "modulation" not in name else shape[-1]
    return torch.randn(shape, device=device).mul_(0.7 / math.sqrt(fan_in))


def write_checkpoint(path: Path, config: WanConfig, dtype: torch.dtype = torch.bfloat16) -> None:
    """A random model at `path`, drawn on the GPU if there is one, and written by several threads.

    With `dtype` e4m3 only the matrices of the blocks are in 8 bits, without scales, the rest in bf16.
    """
    shapes = official_shapes(config)
    write_random(path, shapes, {name: _stored_dtype(name, shape, dtype) for name, shape in shapes.items()})


def write_random(
    path: Path,
    shapes: Mapping[str, torch.Size],
    dtypes: Mapping[str, torch.dtype],
    given: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """A file of random tensors, and of those that are `given`, which are among the shapes and dtypes."""
    header, start = _header(shapes, dtypes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + max(entry["data_offsets"][1] for entry in header.values()))

    def write(name: str) -> None:
        drawn = (given or {}).get(name)
        if drawn is None:
            drawn = draw_weight(name, shapes[name], device).to(dtypes[name]).cpu()
        with partial.open("r+b") as file:
            file.seek(len(start) + header[name]["data_offsets"][0])
            file.write(drawn.flatten().view(torch.uint8).numpy().data)

    with ThreadPoolExecutor(WRITERS if device == "cuda" else 1) as pool:
        list(pool.map(write, shapes))
    partial.replace(path)


def _stored_dtype(name: str, shape: torch.Size, dtype: torch.dtype) -> torch.dtype:
    if dtype.itemsize > 1 or (name.startswith("blocks.") and len(shape) == 2):
        return dtype
    return torch.bfloat16


def _header(shapes: Mapping[str, torch.Size], dtypes: Mapping[str, torch.dtype]) -> tuple[dict[str, Any], bytes]:
    """The entries of a safetensors file, and its first bytes."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtypes[name].itemsize
        entries[name] = {"dtype": _DTYPES[dtypes[name]], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return entries, len(text).to_bytes(8, "little") + text


def random_pair(clip: Clip, config: WanConfig, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [C, F, H, W] and a text of 160 tokens [160, text_dim], bf16, the same for everyone; others by `number`."""
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(clip.latent_shape(config), generator=generator)
    text = torch.randn(TEXT_TOKENS, config.text_dim, generator=generator) * 0.1
    return latents.bfloat16(), text.bfloat16()


def write_sample(folder: Path, clip: Clip, config: WanConfig, number: int = 0) -> TrainSample:
    """The pair of this `number` in our cache's form; for image-to-video with the latents of its first frame."""
    folder.mkdir(parents=True, exist_ok=True)
    latents, text = random_pair(clip, config, number)
    name = f"{clip}-{number}" if number else str(clip)
    paths = folder / f"{name}.latents.safetensors", folder / f"{name}.text.safetensors"
    save_file({"latents": latents.float()}, paths[0])
    save_file({"context": text.float()}, paths[1])
    known = ""
    if config.conditioning_dim:
        known = str(folder / f"{name}.known.safetensors")
        save_file({"latents": latents.float()}, known)
    return TrainSample(
        name=name,
        latents_path=str(paths[0]),
        latents_key=f"latents-{name}",
        shape=clip.latent_shape(config),
        text_path=str(paths[1]),
        text_key=f"text-{name}",
        caption="random",
        known_path=known,
        known_key=f"known-{name}" if known else "",
    )


def make_job(folder: Path, model: Path, clips: list[Clip], steps: int, *, rank: int = 16) -> Job:
    """A job with default settings and `rank`, on one random sample of each size, over the model's whole range of sigmas."""
    info = inspect(model)
    samples = tuple(write_sample(folder, clip, info.config) for clip in clips)
    return Job(
        name="speed",
        stage="single",
        model=ModelSpec(path=str(model), identity=info.identity),
        data=DataSpec(
            samples=samples,
            empty_text_path=samples[0].text_path,  # no caption is dropped
            empty_text_key=samples[0].text_key,
            text_dim=info.config.text_dim,
            conditioning="first frame" if info.config.conditioning_dim else "none",
        ),
        adapter=AdapterOptions(rank=rank, alpha=float(rank)),
        loop=LoopOptions(steps=steps, checkpoint_every=steps),
        device="auto",
    )
