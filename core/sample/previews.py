"""How a run's previews are sampled."""

from ..errors import ConfigError
from ..settings.job import Job
from ..settings.previews import PreviewOptions
from .sampler import SampleOptions, schedule, switch_step


def preview_sampling(options: PreviewOptions, boundary: float) -> SampleOptions:
    """The sampler's options, with the experts' boundary as sigma."""
    return SampleOptions(steps=options.steps, shift=options.shift, cfg=options.cfg, boundary=boundary)


def check_previews(job: Job) -> None:
    """ConfigError if previews of the low noise expert would have no step at its noise levels."""
    boundary, steps = job.timesteps.sigma_max, job.previews.steps
    if not job.previews.every or job.stage != "low":
        return
    if switch_step(schedule(preview_sampling(job.previews, boundary)), boundary) >= steps:
        raise ConfigError(
            f"preview_steps is {steps}, and none of these steps is below the boundary {boundary:g}, "
            "where the low noise expert works: raise preview_steps, or set preview_every to 0."
        )
