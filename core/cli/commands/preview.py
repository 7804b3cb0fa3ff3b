"""`wantrain preview`: make a video without and with a LoRA, from the same seed, side by side."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...adapters.ship import Slot
from ...devices import resolve_device
from ...disk import check_writable
from ...errors import ConfigError, RunError
from ...facts import FPS, FPS_TI2V
from ...generate.film import free_stem, title_strip, write_sheet, write_video
from ...generate.generate import Files, VideoOptions, VideoPlan, generate, plan_video
from ...gpu_limit import limit
from ...names import check_name
from ...sample.samplers import SAMPLERS
from ...sample.schedulers import SCHEDULERS
from ...settings.previews import OLD_SAMPLERS
from ..loras import lora_path

SLOTS: tuple[Slot, ...] = ("high", "low", "single")
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    _add_files(parser)
    _add_options(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for slot, name in zip(SLOTS, ("the high noise expert", "the low noise expert", "a single model"), strict=True):
        add(f"--{slot}", type=Path, metavar="FILE", help=f"{name}: the diffusion model file")
        add(f"--lora-{slot}", type=lora_path, metavar="FILE", help=f"LoRA of {name}")
        add(
            f"--beside-{slot}",
            type=Path,
            metavar="FILE",
            help=f"another LoRA of {name}, on in both videos: such as one of 4 steps, with --steps 4 --cfg 1 --shift 5",
        )
    add("--vae", type=Path, required=True, metavar="FILE", help="the Wan VAE")
    add("--text-encoder", type=Path, required=True, metavar="FILE", help="the umT5 text encoder")
    add(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="spiece.model, where the text encoder has none inside or beside it",
    )
    add("--start-image", type=Path, metavar="FILE", help="the first frame, for I2V, FLF2V and TI2V models")
    add("--end-image", type=Path, metavar="FILE", help="the last frame: FLF2V needs one, I2V models take one")
    add("--clip-vision", type=Path, metavar="FILE", help="clip_vision_h.safetensors, for Wan 2.1 I2V and FLF2V")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the video and its contact sheet")
    add("--name", default="preview", help="start of the file names; nothing is overwritten (%(default)s)")


def _add_options(parser: argparse.ArgumentParser) -> None:
    defaults = VideoOptions(prompt="")
    add = parser.add_argument
    add("--prompt", required=True, help="what to generate; [trigger] becomes the LoRA's trigger word")
    add("--negative-prompt", default="", help="what to avoid; used when cfg is not 1")
    add("--width", type=int, default=defaults.width, help="pixels, a multiple of 16, 32 for TI2V-5B (%(default)s)")
    add("--height", type=int, default=defaults.height, help="pixels, a multiple of 16, 32 for TI2V-5B (%(default)s)")
    add("--num-frames", type=int, default=defaults.num_frames, help="number of frames, 4n+1 (%(default)s)")
    add("--steps", type=int, default=defaults.steps, help="sampling steps, over both experts (%(default)s)")
    add("--cfg", type=float, default=defaults.cfg, help="guidance scale; 1: off, twice as fast (%(default)s)")
    add("--seed", type=int, default=defaults.seed, help="seed of the noise (%(default)s)")
    add(
        "--sampler",
        type=lambda name: OLD_SAMPLERS.get(name, name),
        choices=SAMPLERS.names,
        default=defaults.sampler,
        help="ComfyUI's sampler of this name (%(default)s)",
    )
    add(
        "--scheduler",
        choices=SCHEDULERS.names,
        default=defaults.scheduler,
        help="ComfyUI's scheduler of this name (%(default)s)",
    )
    add("--shift", type=float, default=defaults.shift, help="time shift; 0: the model's official one (%(default)s)")
    add(
        "--boundary",
        type=float,
        default=defaults.boundary,
        help="sigma at which the low noise expert takes over; 0: the model's official one (%(default)s)",
    )
    add("--strength", type=float, default=defaults.strength, help="of the LoRA (%(default)s)")
    add("--no-compare", dest="compare", action="store_false", help="only with the LoRA")
    add("--fps", type=float, help=f"frames per second of the video ({FPS:g}, for TI2V-5B {FPS_TI2V:g})")
    add("--device", default="auto", help="auto, cpu, cuda:0, ... (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Generate, and write the video and its contact sheet."""
    device = resolve_device(options.device)
    made = plan_video(_files(options), _video_options(options))
    fps = options.fps or (FPS_TI2V if made.config.variant == "ti2v" else FPS)
    if not 1.0 <= fps <= 240.0:
        raise ConfigError(f"fps is {fps:g}: give a number between 1 and 240.")
    check_name(options.name)
    check_writable(options.out)
    for note in made.notes:
        log.warning("%s", note)
    limit(device)
    try:
        videos = generate(made, device, lambda done, steps: log.info("step %d of %d", done, steps))
    except torch.OutOfMemoryError as error:
        raise RunError(f"{device} ran out of memory: use fewer frames or a smaller size.") from error
    for path in _write(options.out, options.name, made, videos, fps):
        log.info("%s", path)
    return 0


def _files(options: argparse.Namespace) -> Files:
    return Files(
        models={slot: path for slot in SLOTS if (path := getattr(options, slot))},
        loras={slot: path for slot in SLOTS if (path := getattr(options, f"lora_{slot}"))},
        beside={slot: path for slot in SLOTS if (path := getattr(options, f"beside_{slot}"))},
        vae=options.vae,
        text_encoder=options.text_encoder,
        tokenizer=options.tokenizer,
        start_image=options.start_image,
        end_image=options.end_image,
        clip_vision=options.clip_vision,
    )


def _video_options(options: argparse.Namespace) -> VideoOptions:
    return VideoOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(VideoOptions)})


def _write(folder: Path, name: str, made: VideoPlan, videos: np.ndarray, fps: float) -> tuple[Path, Path]:
    """The paths of the video and of the contact sheet; videos [K, F, H, W, 3], the one with the LoRA last."""
    stem = free_stem(folder, name, (".mp4", ".png"))
    video, sheet = folder / f"{stem}.mp4", folder / f"{stem}.png"
    titles = ("without the LoRA", f"with the LoRA, strength {made.options.strength:g}")[-len(videos) :]
    write_video(video, _side_by_side(videos, titles), fps)
    write_sheet(sheet, list(zip(titles, videos, strict=True)))
    return video, sheet


def _side_by_side(videos: np.ndarray, titles: Sequence[str]) -> np.ndarray:
    """Videos [K, F, H, W, 3] to one [F, H, K W, 3]; where there are several, each below its title."""
    frames = np.concatenate(list(videos), axis=2)
    if len(videos) == 1:
        return frames
    strip = title_strip(titles, frames.shape[2], frames.shape[1])
    return np.concatenate([np.broadcast_to(strip, (len(frames), *strip.shape)), frames], axis=1)
