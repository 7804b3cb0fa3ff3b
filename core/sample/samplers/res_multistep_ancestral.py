"""res_multistep a little too far, and new noise back up to the sigma, with eta 1.

How much of it is that of an image with all of its data, and not of a flow's latents: the host has it so.
"""

from dataclasses import replace
from functools import partial

from . import res_multistep
from ._sde import ancestral

METHOD = replace(
    res_multistep.METHOD,
    help="res_multistep with new noise at each step",
    path=partial(res_multistep.path, stepping=ancestral),
)
