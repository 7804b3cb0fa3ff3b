"""How a run's previews are sampled."""

from ..errors import ConfigError
from ..facts import official_shift
from ..settings.job import Job
from .sampler import SampleOptions, schedule, switch_step


def preview_sampling(job: Job, boundary: float) -> SampleOptions:
    """The sampler's options, with the experts' boundary as sigma."""
    options = job.previews
    shift = options.shift or official_shift(_variant(job), has_experts=job.stage != "single")
    return SampleOptions(steps=options.steps, shift=shift, cfg=options.cfg, boundary=boundary)


def _variant(job: Job) -> str:
    """t2v, i2v and their like, by the label that the job's base model has, as "wan2.2-t2v-a14b"."""
    return job.model.label.partition("-")[2].partition("-")[0]


def check_previews(job: Job) -> None:
    """ConfigError if previews of the low noise expert would have no step at its noise levels."""
    boundary, steps = job.timesteps.sigma_max, job.previews.steps
    if not job.previews.every or job.stage != "low":
        return
    if switch_step(schedule(preview_sampling(job, boundary)), boundary) >= steps:
        raise ConfigError(
            f"preview_steps is {steps}, and none of these steps is below the boundary {boundary:g}, "
            "where the low noise expert works: raise preview_steps, or set preview_every to 0."
        )
