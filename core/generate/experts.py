"""One or two experts that sample without and with a LoRA at once, with the weights of one at a time in memory.

N samples, C channels, F H W latent frames, height, width, S text tokens, D text width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters.apply import LoraSwitch, attach
from ..adapters.formats import LoraModule
from ..adapters.other_files import OtherModule
from ..facts import NUM_TIMESTEPS
from ..memory.precision import native_dtype
from ..sample.sampler import VelocityModel
from ..wan.checkpoint import CheckpointInfo
from ..wan.loading import load_transformer
from ..wan.model import WanTransformer

Forward = Callable[[WanTransformer, Tensor, Tensor, Tensor], Tensor]  # (model, latents, timesteps, context) -> velocity


@dataclass(frozen=True, eq=False)
class ExpertModel:
    """A model on disk, and the parts of its LoRA that have their place in it; {} for none."""

    info: CheckpointInfo
    lora: dict[str, LoraModule | OtherModule]
    beside: dict[str, LoraModule | OtherModule] = field(default_factory=dict)  # of another LoRA, that is always on


class Experts:
    """Velocity models whose weights are read when their first step comes; those of the expert before are let go.

    With `compare`, samples come in twos, first the one without the LoRA, then the one with it, and each kind gets a
    forward of its own; else all are with it.
    """

    def __init__(self, device: torch.device, forward: Forward, *, strength: float, compare: bool) -> None:
        self._device, self._forward = device, forward
        self._strength = strength
        self._kinds = (False, True) if compare else (True,)
        self._loaded: tuple[ExpertModel, WanTransformer, LoraSwitch] | None = None

    def model(self, expert: ExpertModel) -> VelocityModel:
        """The expert for `core.sample.sampler.sample`: latents [N, C, F, H, W], timesteps [N], context [N, S, D]."""

        def velocity(latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            model, switch = self._load(expert)
            result = torch.empty_like(latents)
            for number, with_it in enumerate(self._kinds):
                switch.is_on = with_it
                rows = slice(number, None, len(self._kinds))
                result[rows] = self._forward(model, latents[rows], timesteps[rows], context[rows]).to(result)
            return result

        return velocity

    def close(self) -> None:
        """Let go of the weights."""
        self._loaded = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, expert: ExpertModel) -> tuple[WanTransformer, LoraSwitch]:
        if self._loaded is None or self._loaded[0] is not expert:
            self.close()
            dtype = native_dtype(self._device)
            model = load_transformer(expert.info, dtype=dtype, device=self._device)
            attach(model, expert.beside)
            self._loaded = (expert, model, attach(model, expert.lora, self._strength))
        return self._loaded[1:]


def from_text(model: WanTransformer, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """Velocity of a model that is given nothing but text."""
    return model(latents, timesteps, context)


def from_known_frames(conditioning: Tensor, clip_features: Tensor | None = None) -> Forward:
    """Velocity of an I2V or FLF2V model that is given `conditioning` [4 + C, F, H, W]: mask and latents of known frames.

    clip_features [257 for each known frame, 1280]: for Wan 2.1, which needs them.
    """

    def forward(model: WanTransformer, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        num_samples = latents.shape[0]
        given = conditioning.to(latents).expand(num_samples, -1, -1, -1, -1)
        features = None if clip_features is None else clip_features.to(latents).expand(num_samples, -1, -1)
        return model(latents, timesteps, context, conditioning=given, clip_features=features)

    return forward


def from_first_frame(first: Tensor) -> Forward:
    """Velocity of a TI2V model whose first latent frame `first` [C, 1, H, W] is known.

    The model sees it clean, with the timestep 0; the velocity there is the one that leads straight to it.
    """

    def forward(model: WanTransformer, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        known = first.to(latents).expand(latents.shape[0], -1, -1, -1, -1)
        per_frame = timesteps[:, None].repeat(1, latents.shape[2])
        per_frame[:, 0] = 0
        velocity = model(torch.cat([known, latents[:, :, 1:]], dim=2), per_frame, context).to(latents.dtype)
        sigmas = (timesteps / NUM_TIMESTEPS).view(-1, 1, 1, 1, 1)
        return torch.cat([(latents[:, :, :1] - known) / sigmas, velocity[:, :, 1:]], dim=2)

    return forward
