"""Facts of the Wan family that several rooms need: one place for each."""

NUM_TIMESTEPS = 1000

# Where the high-noise expert hands over to the low-noise expert, as sigma (Wan2.2, wan/configs/wan_t2v_A14B.py and
# wan_i2v_A14B.py).
BOUNDARY_T2V_A14B = 0.875

BOUNDARY_I2V_A14B = 0.900


def official_boundary(variant: str) -> float:
    """The boundary between the experts of the A14B model of this variant."""
    return BOUNDARY_I2V_A14B if variant in ("i2v", "flf2v") else BOUNDARY_T2V_A14B
