"""Which noise levels are trained: a picture of it before the training, and a curve drawn by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..core.data.types import LatentCache
from ..core.facts import latent_shape, official_boundary
from ..core.flow.density import density_of, draw
from ..core.settings.curve import read_curve, write_curve
from ..core.settings.job import Stage, stage_window
from ..core.settings.option import TRAIN, Option
from ..core.settings.stage import settings_from_names
from .host.curves import curve_heights
from .inputs import checked
from .model_nodes import CATEGORY
from .sockets import WanLatents
from .widgets import inputs_of

_WINDOWS: dict[str, tuple[tuple[str, Stage], ...]] = {
    "both experts": (("high noise", "high"), ("low noise", "low")),
    "single model": (("single model", "single"),),
}
_CURVE_POINTS = 33
_CHANNELS = 16


class WanTimestepDensity(io.ComfyNode):
    """Draws how often each noise level is trained with these settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTimestepDensity",
            display_name="Timestep Density (Wan)",
            category=CATEGORY,
            description="Draws how often each noise level (timestep) is trained, for both experts, before anything is trained."
            " The settings are those of Train LoRA Stage: copy what you like there.",
            search_aliases=["timestep distribution", "sigma distribution", "wan timesteps"],
            inputs=_inputs(),
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="For Preview Image."),
                io.String.Output("summary", display_name="summary", tooltip="Where most of the draws lie, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, windows: str, width: int, height: int, num_frames: int, latents: LatentCache | None = None, **settings: Any
    ) -> io.NodeOutput:
        chosen = settings_from_names(settings)
        shape = latent_shape(_CHANNELS, num_frames, height, width)
        if latents is not None:
            shape = max((entry.shape for entry in latents.entries), key=lambda found: found[1] * found[2] * found[3])
        found = []
        official = official_boundary("t2v" if latents is None or latents.conditioning == "none" else "i2v")
        for name, stage in _WINDOWS[windows]:
            low, high = stage_window(stage, chosen.boundary or official)
            timesteps = replace(chosen.timesteps, sigma_min=low, sigma_max=high)
            found.append(density_of(name, timesteps, chosen.loss, shape))
        pixels = np.asarray(draw(found), dtype=np.float32) / 255
        return io.NodeOutput(torch.from_numpy(pixels)[None], "\n".join(density.sentence for density in found))


class WanTimestepCurve(io.ComfyNode):
    """Turns the host's curve widget into the text that Train LoRA Stage takes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTimestepCurve",
            display_name="Timestep Curve (Wan)",
            category=CATEGORY,
            description="Draw how often each noise level is trained: left is clean, right is pure noise. Connect curve to"
            " timestep_curve of Train LoRA Stage and Timestep Density, and choose curve as timestep_sampling there.",
            search_aliases=["timestep curve", "sigma curve"],
            inputs=[
                io.Curve.Input(
                    "drawn",
                    default=[(0.0, 1.0), (1.0, 1.0)],
                    tooltip="Left: clean. Right: pure noise. Only the shape counts, not the height of the whole.",
                )
            ],
            outputs=[io.String.Output("curve", display_name="curve", tooltip="For timestep_curve.")],
        )

    @classmethod
    @checked
    def execute(cls, drawn: Any) -> io.NodeOutput:
        return io.NodeOutput(curve_text(drawn))


def curve_text(drawn: Any) -> str:
    """The text of the host's curve, read at even places; ConfigError for one that is 0 everywhere."""
    places = np.linspace(0, 1, _CURVE_POINTS).tolist()
    heights = [max(height, 0.0) for height in curve_heights(drawn, places)]
    text = write_curve(tuple(zip(places, heights, strict=True)))
    read_curve(text)
    return text


def _inputs() -> list[Any]:
    first = [
        io.Combo.Input(
            "windows", options=list(_WINDOWS), default="both experts",
            tooltip="The two experts of Wan 2.2 A14B, each with its part of the noise levels, or a model without experts.",
        ),
        io.Int.Input("width", default=832, min=16, max=16384, step=16, tooltip="Of the samples, in pixels: some samplings"
                     " depend on the size."),
        io.Int.Input("height", default=480, min=16, max=16384, step=16, tooltip="Of the samples, in pixels."),
        io.Int.Input("num_frames", default=81, min=1, max=10001, step=4, tooltip="Of the samples."),
        WanLatents.Input("latents", optional=True, tooltip="From Cache Latents: its largest sample, in place of width, height"
                         " and num_frames."),
    ]  # fmt: skip
    return inputs_of(TRAIN, first, only=_is_drawn)


def _is_drawn(item: Option) -> bool:
    """Strata change the order of the draws, not how often a level is drawn."""
    is_of_levels = item.group == "timesteps" and item.name != "strata"
    return is_of_levels or item.label in ("boundary", "loss_weighting")


# Where the host has no curve widget yet, the text is typed.
NODES = [WanTimestepDensity, *([WanTimestepCurve] if hasattr(io, "Curve") else [])]
