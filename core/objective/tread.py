"""TREAD (Krause et al., 2025, arXiv:2501.04765): which tokens of a video pass the blocks that the others go past.

B batch, C channels, F latent frames, H W latent size, A tokens of a frame.
"""

import torch
from torch import Tensor

from ..facts import PATCH
from ..flow.random import stream
from ..routes import Route, read_routes
from ..settings.job import Job


def draw_kept(job: Job, shape: tuple[int, ...], *, seed: int, first_draw: int) -> Tensor | None:
    """The tokens that are kept of samples of this shape [B, C, F, H, W], for all routes of the job: [B, N] int64.

    A function of (seed, draw) alone, route by route, as `WanTransformer.forward` takes them. None without routes. Where frames
    have noise levels of their own, as many are kept of each frame, since their tokens share a modulation.
    """
    routes = read_routes(job.tread.routes)
    if not routes:
        return None
    frames, frame_tokens = shape[2], (shape[3] // PATCH) * (shape[4] // PATCH)
    by_frame = job.data.gives_first_frame and frames > 1
    return torch.stack(
        [
            torch.cat(
                [
                    kept_of(route, (frames, frame_tokens), by_frame, stream(seed, "route", number, first_draw + sample))
                    for number, route in enumerate(routes)
                ]
            )
            for sample in range(shape[0])
        ]
    )


def kept_of(route: Route, size: tuple[int, int], by_frame: bool, generator: torch.Generator) -> Tensor:
    """Numbers of the tokens that are kept of F frames of A tokens each, [N] in their order; each is as likely as the others."""
    frames, frame_tokens = size
    groups = frames if by_frame else 1
    each = route.num_kept(frames, frame_tokens, by_frame=by_frame) // groups
    scores = torch.rand(groups, frames * frame_tokens // groups, generator=generator)
    kept = scores.argsort(1)[:, :each].sort(1).values
    return (kept + scores.shape[1] * torch.arange(groups).unsqueeze(1)).flatten()
