"""What an image-to-video model is given besides noise: known frames, and a mask that says which they are.

The model gets VAE(known frames, mid-grey elsewhere), four mask channels in front of it, and, in Wan 2.1, the CLIP
vision features of the known frames. Official: Wan2.2, wan/image2video.py; Wan2.1, wan/first_last_frame2video.py.
F pixel frames, f = (F - 1) / 4 + 1 latent frames, H W pixels, h w latents.
"""

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings.dataset import CONDITIONINGS, Conditioning
from .latents import unit_range

MASK_CHANNELS = 4  # one for each pixel frame of a latent frame


def known_frames(conditioning: Conditioning) -> tuple[int, ...]:
    """Indices of the pixel frames that the model is given."""
    try:
        return {"none": (), "first frame": (0,), "first and last frame": (0, -1)}[conditioning]
    except KeyError:
        choices = ", ".join(f"'{name}'" for name in CONDITIONINGS)
        raise ConfigError(f"condition_on is '{conditioning}': choose one of {choices}.") from None


def hide_unknown(frames: Tensor, conditioning: Conditioning) -> Tensor:
    """Frames [F, H, W, 3] uint8 to float32 in 0..1, with mid-grey, the VAE's zero, in place of unknown frames."""
    hidden = torch.full(frames.shape, 0.5)
    for index in known_frames(conditioning):
        hidden[index] = unit_range(frames[index])
    return hidden


def known_mask(conditioning: Conditioning, shape: tuple[int, int, int]) -> Tensor:
    """Mask [4, f, h, w] float32, 1 where pixels are known; shape (f, h, w).

    The first latent frame holds one pixel frame, and all four of its channels speak of it; every other holds four.
    """
    mask = torch.zeros(MASK_CHANNELS, *shape)
    for index in known_frames(conditioning):
        if index == 0:
            mask[:, 0] = 1
        else:
            mask[-1, -1] = 1
    return mask
