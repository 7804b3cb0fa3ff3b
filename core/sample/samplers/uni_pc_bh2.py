"""uni_pc in the variant of ComfyUI's "uni_pc_bh2", and of Wan's own code, which has order 2: B(h) is B_2(h) = exp(h) - 1."""

import math
from dataclasses import replace
from functools import partial

from . import uni_pc

METHOD = replace(
    uni_pc.METHOD, help="uni_pc in the variant that Wan's own code has", path=partial(uni_pc.path, b=math.expm1)
)
