"""Facts of the Wan family that several rooms need: one place for each."""

from collections.abc import Sequence
from typing import Literal

NUM_TIMESTEPS = 1000
SIGMA_BINS = 40  # equal parts of [0, 1] by which a run's losses are counted; both boundaries below lie between two

Expert = Literal["high", "low"]  # of Wan 2.2 A14B, by the noise that it is for
EXPERTS: tuple[Expert, ...] = ("high", "low")  # in the order in which they generate

# Where the high-noise expert hands over to the low-noise expert, as sigma (Wan2.2, wan/configs/wan_t2v_A14B.py and
# wan_i2v_A14B.py).
BOUNDARY_T2V_A14B = 0.875

BOUNDARY_I2V_A14B = 0.900


def official_boundary(variant: str) -> float:
    """The boundary between the experts of the A14B model of this variant."""
    return BOUNDARY_I2V_A14B if variant in ("i2v", "flf2v") else BOUNDARY_T2V_A14B


# The official time shifts: Wan2.2, wan/configs, and Wan2.1, generate.py for 480p and 720p.
SHIFT_T2V_A14B, SHIFT_OTHERS = 12.0, 5.0


def official_shift(variant: str, *, has_experts: bool) -> float:
    """The time shift that the official code samples with."""
    return SHIFT_T2V_A14B if has_experts and variant == "t2v" else SHIFT_OTHERS


FPS, FPS_TI2V = 16.0, 24.0  # that Wan 2.1 and A14B, and TI2V-5B, were trained at


# VAEs. C F H W are the channels, frames, height and width of latents.
LatentFormat = Literal["wan2.1", "wan2.2"]  # the VAE of Wan 2.1 and of Wan 2.2 A14B; that of Wan 2.2 TI2V-5B
LATENT_CHANNELS: dict[LatentFormat, int] = {"wan2.1": 16, "wan2.2": 48}
PIXELS_PER_LATENT: dict[LatentFormat, int] = {"wan2.1": 8, "wan2.2": 16}  # along height and width
FRAMES_PER_LATENT = 4  # but for the first latent frame, which is the first frame alone
PATCH = 2  # latent pixels along the side of a token, in every Wan model

# What the models are conditioned on.
TEXT_TOKENS = 512  # of umT5: a caption is cut to them, and padded with zeros to them (Wan2.2, wan/modules/model.py)
CLIP_TOKENS, CLIP_DIM = 257, 1280  # of CLIP ViT-H/14, for each image


def latent_format(channels: int) -> LatentFormat:
    """Which VAE makes latents of so many channels."""
    return "wan2.2" if channels == LATENT_CHANNELS["wan2.2"] else "wan2.1"


def pixels_per_latent(channels: int) -> int:
    """Pixels along the side of a latent pixel, for latents of so many channels."""
    return PIXELS_PER_LATENT[latent_format(channels)]


def num_latent_frames(num_frames: int) -> int:
    """Latent frames of so many frames, 4n+1 of them."""
    return (num_frames - 1) // FRAMES_PER_LATENT + 1


def num_frames(latent_frames: int) -> int:
    """Frames of so many latent frames."""
    return FRAMES_PER_LATENT * (latent_frames - 1) + 1


def longest_clip(frames: int) -> int:
    """The longest 4n+1 that is not longer than `frames` (at least 1): what Wan's causal VAE takes."""
    return num_frames(num_latent_frames(max(frames, 1)))


def latent_shape(channels: int, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(C, F, H, W) of the latents of a clip in pixels, for the VAE with so many channels."""
    pixels = pixels_per_latent(channels)
    return channels, num_latent_frames(frames), height // pixels, width // pixels


def clip_size(shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    """(frames, height, width) in pixels of latents (C, F, H, W)."""
    channels, latent_frames, height, width = shape
    pixels = pixels_per_latent(channels)
    return num_frames(latent_frames), height * pixels, width * pixels


def num_tokens(shape: Sequence[int], patch_size: Sequence[int] = (1, PATCH, PATCH)) -> int:
    """Tokens that the transformer makes of latents [..., F, H, W]; what is left of a patch at an edge is not counted."""
    frames, height, width = shape[-3:]
    along, down, across = patch_size
    return (frames // along) * (height // down) * (width // across)
