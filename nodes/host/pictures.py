"""Small pictures of latents, by the host's own table of colours."""

import io

import comfy.latent_formats
import torch
from PIL import Image

_FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}  # by channels
_MOST_PIXELS = 256 * 256


def latent_picture(latents: torch.Tensor) -> bytes | None:
    """A WEBP of one latent frame, normalised, [C, H, W]: a pixel for each place. None for what has no table of colours."""
    if latents.ndim != 3 or latents.shape[0] not in _FORMATS or latents[0].numel() > _MOST_PIXELS:
        return None
    colours = _FORMATS[latents.shape[0]]
    factors = torch.tensor(colours.latent_rgb_factors)  # [C, 3]
    bias = torch.tensor(colours.latent_rgb_factors_bias)
    pixels = latents.float().nan_to_num().movedim(0, -1) @ factors + bias  # [H, W, 3] in [-1, 1]
    picture = Image.fromarray(((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy())
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90)
    return file.getvalue()
