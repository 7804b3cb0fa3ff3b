"""How latents go from sigma to sigma: each file is the sampler of ComfyUI that has its name, as that is for models of a flow.

They are in comfy/k_diffusion/sampling.py there, as sample_NAME, and are held against it by tests/core/sample/test_host.py.
In latents x = (1 - sigma) z + sigma n the data z are x - sigma velocity. B samples, C channels, F H W latent frames, height,
width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ...errors import ConfigError
from ...methods import Methods
from ..shares import sigma_after

VelocityAt = Callable[[Tensor, Tensor], Tensor]  # latents [B, C, F, H, W], sigma [] -> velocity [B, C, F, H, W]


@dataclass(frozen=True, kw_only=True)
class SigmaWalk:
    """What a sampler steps along: the way of one model, whose history is its own."""

    sigmas: Tensor  # [steps + 1] float32 on the CPU, falling; the last one is 0 where no other model goes on
    velocity: VelocityAt
    shift: float = 1.0  # of the schedule
    seeds: Sequence[int] = (0,)  # of the noise that a sampler adds: one for each sample, or one for all

    def data(self, latents: Tensor, sigma: Tensor) -> Tensor:
        """The data [B, C, F, H, W] that the model sees in latents of this sigma."""
        return latents - self.velocity(latents, sigma) * sigma


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One way of making steps."""

    help: str  # a clause for tooltips and documents
    path: Callable[[Tensor, SigmaWalk], Iterator[Tensor]]  # latents at the first sigma -> those after each step
    calls: int = 1  # forwards of the model a step; a last step to 0 needs one
    spare_steps: int = 0  # sigmas that the host adds, to leave out the last one before 0 (DISCARD_PENULTIMATE_SIGMA)
    first_share: float = 0.0  # of the way, after which it begins if the first sigma is 1
    last_sigma: float = 0.0  # where it ends instead of at 0
    takes_equal: bool = False  # whether two sigmas in a row may be the same
    packages: tuple[str, ...] = ()  # needed beside PyTorch, as `core.packages` knows them

    def check(self, sigmas: Tensor, name: str, shift: float) -> None:
        """ConfigError for sigmas [steps + 1] that it can't step along: an extreme shift makes equal ones in float32."""
        ends = sigmas.tolist()
        ends[0] = min(ends[0], sigma_after(self.first_share, shift))
        ends[-1] = ends[-1] or self.last_sigma
        for here, there in pairwise(ends):
            if there >= here and not self.takes_equal:
                raise ConfigError(
                    f"{name} cannot step from the sigma {here:g} to {there:g}: fewer steps, or a shift nearer to 1."
                )


SAMPLERS = Methods(Sampler, "sampler", "sample.samplers")
