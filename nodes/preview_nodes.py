"""Generating with the new LoRA, off and on, with the user's own models and the host's own sampler."""

import logging
import re
from typing import Any

import torch
from comfy_api.latest import io

from ..core.errors import ConfigError, WanTrainError
from ..core.facts import (
    BOUNDARY_I2V_A14B,
    BOUNDARY_T2V_A14B,
    SHIFT_OTHERS,
    SHIFT_T2V_A14B,
    official_boundary,
    official_shift,
)
from ..core.generate.film import title_strip
from ..core.generate.trigger import fill_prompts
from ..core.settings.dataset import DatasetOptions
from ..core.words import counted
from . import host
from .host.sampling import (
    GivenImages,
    SamplingOptions,
    decode,
    encode_prompt,
    makes_videos_from_images,
    sample_latents,
    start_from,
    video,
    with_lora,
    with_shift,
)
from .inputs import check_known, checked
from .model_nodes import CATEGORY
from .sockets import PairHandle, WanLoraPair

log = logging.getLogger(__name__)


class PreviewLoRA(io.ComfyNode):
    """Samples the prompt without and with the LoRA, same seed, high noise expert then low."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewLoRA",
            display_name="Preview LoRA (Wan)",
            category=CATEGORY,
            description="Generates a video with your own models and ComfyUI's own sampler: the high noise expert down to the"
            " boundary, then the low noise expert; without and with the LoRA, from the same seed.",
            search_aliases=["test lora", "wan preview"],
            inputs=_preview_inputs(),
            outputs=[
                io.Image.Output("with_lora", display_name="with_lora", tooltip="Frames with the LoRA."),
                io.Image.Output(
                    "without_lora", display_name="without_lora",
                    tooltip="Frames without it; the same as with_lora when compare is off.",
                ),
                io.Video.Output("video", display_name="video", tooltip="Left without, right with the LoRA."),
                io.String.Output(
                    "prefix", display_name="prefix",
                    tooltip="video/ and the LoRA's name, for the filename_prefix of Save Video.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, num_frames: int | None = None
    ) -> bool | str:
        """None: comes over a wire, and is checked when it is there."""
        try:
            check_known(cls, {"width": width, "height": height, "num_frames": num_frames})
            DatasetOptions(width=width or 16, height=height or 16, num_frames=num_frames or 1)
        except WanTrainError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return host.vanished()

    @classmethod
    @checked
    def execute(
        cls,
        pair: PairHandle,
        high: Any,
        clip: Any,
        vae: Any,
        low: Any | None = None,
        start_image: torch.Tensor | None = None,
        end_image: torch.Tensor | None = None,
        clip_vision: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        s = settings
        node_id = cls.hidden.unique_id
        if pair.is_pair and low is None:
            raise ConfigError("the LoRA is a pair for two experts, but no low noise model is connected to low.")
        variant = "i2v" if makes_videos_from_images(high) else "t2v"
        shift = s["shift"] or official_shift(variant, has_experts=low is not None)
        boundary = s["boundary"] or official_boundary(variant)
        names = ("width", "height", "num_frames", "steps", "cfg", "seed", "sampler", "scheduler")
        options = SamplingOptions(shift=shift, boundary=boundary, **{name: s[name] for name in names})
        texts = fill_prompts(
            filter(None, (pair.high, pair.low)), prompt=s["prompt"], negative_prompt=s["negative_prompt"]
        )
        prompts = (encode_prompt(clip, texts["prompt"]), encode_prompt(clip, texts["negative_prompt"]))
        start = start_from(high, vae, *prompts, options, GivenImages(start_image, end_image, clip_vision))
        models = [model and with_shift(model, shift) for model in (high, low)]
        trained, notes = _with_pair(models, pair, s["strength"])
        runs = {"without the LoRA": models, "with the LoRA": trained} if s["compare"] else {"with the LoRA": trained}
        frames = []
        for number, (title, (first, second)) in enumerate(runs.items(), 1):
            host.show_text(node_id, f"{number} / {len(runs)}: sampling {title}")
            frames.append(decode(vae, sample_latents(first, second, start, options)))
        host.show_text(
            node_id, "\n".join([f"{counted(options.steps, 'step')}, shift {shift:g}, seed {options.seed}", *notes])
        )
        shown = torch.cat(frames, dim=2)  # [F, H, W or 2W, 3]
        if s["compare"]:
            shown = _below_titles(shown, tuple(runs))
        return io.NodeOutput(frames[-1], frames[0], video(shown, s["fps"]), f"video/{_name_of(pair)}")


def _below_titles(frames: torch.Tensor, titles: tuple[str, ...]) -> torch.Tensor:
    """Frames [F, H, W, 3] that stand beside each other, each below its title."""
    strip = torch.from_numpy(title_strip(titles, frames.shape[2], frames.shape[1])).to(frames) / 255
    return torch.cat([strip.expand(len(frames), *strip.shape), frames], dim=1)


def _name_of(pair: PairHandle) -> str:
    """Of the LoRA: what the names of its files have in common."""
    path = pair.high or pair.low
    return "lora" if path is None else re.sub(r"_(high|low)_noise(?=_v\d+$|$)", "", path.stem)


def _with_pair(models: list[Any], pair: PairHandle, strength: float) -> tuple[list[Any], list[str]]:
    """The models with their LoRAs on, and what is to be said of LoRAs from another kind of model."""
    trained, notes = [], []
    for model, path in zip(models, (pair.high, pair.low), strict=True):
        if model and path:
            model, found = with_lora(model, path, strength)
            notes += [f"- {note}" for note in found]
        trained.append(model)
    for note in notes:
        log.warning("%s", note)
    return trained, notes


def _preview_inputs() -> list[Any]:
    return [
        WanLoraPair.Input("pair", tooltip="From Merge Stages."),
        io.Model.Input("high", tooltip="The high noise model, or the single model."),
        io.Model.Input("low", optional=True, tooltip="The low noise model; leave empty for a single model."),
        io.Clip.Input("clip", tooltip="The umT5 text encoder."),
        io.Vae.Input("vae", tooltip="The Wan VAE."),
        io.Image.Input("start_image", optional=True, tooltip="For image-to-video models: the first frame."),
        io.Image.Input("end_image", optional=True, tooltip="For FLF2V and I2V-A14B: the last frame."),
        io.ClipVision.Input("clip_vision", optional=True, tooltip="For Wan 2.1 image-to-video: clip_vision_h."),
        io.String.Input(
            "prompt", multiline=True, default="",
            tooltip="What to generate; use the trigger word, or [trigger], which becomes the one that the LoRA names.",
        ),
        io.String.Input("negative_prompt", multiline=True, default="", tooltip="What to avoid; used when cfg is above 1."),
        io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip="Width in pixels, a multiple of 16."),
        io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip="Height in pixels, a multiple of 16."),
        io.Int.Input("num_frames", default=33, min=1, max=1025, step=4, tooltip="Number of frames, 4n+1."),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps, over both experts."),
        io.Float.Input("cfg", default=3.5, min=0.0, max=30.0, step=0.1, tooltip="Guidance scale. 1: off, twice as fast."),
        io.Int.Input(
            "seed", default=1, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
            tooltip="Seed of the noise, the same without and with the LoRA.",
        ),
        io.Float.Input(
            "shift", default=0.0, min=0.0, max=100.0, step=0.1, advanced=True,
            tooltip=f"Time shift of the sampler. 0: the official value ({SHIFT_T2V_A14B:g} for T2V-A14B,"
            f" {SHIFT_OTHERS:g} for the others).",
        ),
        io.Float.Input(
            "boundary", default=0.0, min=0.0, max=0.999, step=0.005, round=0.001, advanced=True,
            tooltip="Noise level where the low noise expert takes over, the same as in training. 0: the official one,"
            f" {BOUNDARY_T2V_A14B:g} for T2V-A14B and {BOUNDARY_I2V_A14B:g} for I2V-A14B.",
        ),
        io.Combo.Input(
            "sampler", options=host.SAMPLERS, default="euler", advanced=True, tooltip="The sampler."
        ),
        io.Combo.Input(
            "scheduler", options=host.SCHEDULERS, default="simple", advanced=True,
            tooltip="How the noise levels are spaced.",
        ),
        io.Float.Input(
            "strength", default=1.0, min=-10.0, max=10.0, step=0.05, advanced=True, tooltip="Strength of the LoRA."
        ),
        io.Boolean.Input(
            "compare", default=True, advanced=True,
            tooltip="Also sample without the LoRA. The video then shows both side by side.",
        ),
        io.Float.Input(
            "fps", default=16.0, min=1.0, max=120.0, step=1.0, advanced=True, tooltip="Frames per second of the video."
        ),
    ]  # fmt: skip


NODES = [PreviewLoRA]
