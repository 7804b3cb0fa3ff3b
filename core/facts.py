"""Facts of the Wan family that several rooms need: one place for each."""

from collections.abc import Sequence

NUM_TIMESTEPS = 1000
TEXT_TOKENS = 512  # tokens of a caption; shorter ones are zero-padded to it (Wan2.2, wan/modules/model.py)
PATCH = 2  # latent pixels along the side of a token, in every Wan model; one latent frame long (Wan2.2, wan/configs)

# Where the high-noise expert hands over to the low-noise expert, as sigma (Wan2.2, wan/configs/wan_t2v_A14B.py and
# wan_i2v_A14B.py).
BOUNDARY_T2V_A14B = 0.875

BOUNDARY_I2V_A14B = 0.900


def official_boundary(variant: str) -> float:
    """The boundary between the experts of the A14B model of this variant."""
    return BOUNDARY_I2V_A14B if variant in ("i2v", "flf2v") else BOUNDARY_T2V_A14B


def num_tokens(shape: Sequence[int], patch_size: Sequence[int] = (1, PATCH, PATCH)) -> int:
    """Tokens that the transformer makes of latents [..., F, H, W]; what is left of a patch at an edge is not counted."""
    frames, height, width = (side // patch for side, patch in zip(shape[-3:], patch_size, strict=True))
    return frames * height * width
