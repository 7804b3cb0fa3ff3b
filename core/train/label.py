"""What a LoRA file says about its making, from the job alone: so it can be tried before the first step."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone

from ..adapters.metadata import LoraDescription, TrainingFacts
from ..adapters.places import effective_alpha
from ..facts import EXPERTS, NUM_TIMESTEPS, clip_size
from ..flow.losses import LOSSES
from ..flow.timesteps import SAMPLINGS
from ..serial import to_dict
from ..settings.adapter import AdapterOptions
from ..settings.job import Job, Stage
from ..settings.option import options_of

_SUFFIXES: dict[Stage, str] = {"high": "_high_noise", "low": "_low_noise", "single": "", "both": ""}

# The names of options in the metadata that musubi-tuner and kohya's sd-scripts write.
_SAMPLING_KEYS = {
    "shift": "ss_discrete_flow_shift",
    "sigmoid_scale": "ss_sigmoid_scale",
    "logsnr_mean": "ss_logit_mean",
    "logsnr_std": "ss_logit_std",
    "mode_scale": "ss_mode_scale",
}
_LOSS_KEYS = {"huber_c": "ss_huber_c", "huber_schedule": "ss_huber_schedule"}

# What musubi-tuner calls the kinds of adapters that it has; others go by its name for a LoRA, with their own beside it.
_MODULES = {"lora": "networks.lora_wan", "loha": "networks.loha", "lokr": "networks.lokr", "oft": "lycoris.kohya"}


def lora_name(job: Job) -> str:
    """The name of the run's LoRA, without folder and ending."""
    return f"{job.name}{_SUFFIXES[job.stage]}"


def _optimizer_of(job: Job) -> str:
    """Its name with its arguments, as kohya's tools write it: prodigy(d_coef=2)."""
    options = job.optimizer
    name = options.path if options.name == "custom" else options.name
    return f"{name}({options.args})" if options.args else name


def beside_name(job: Job) -> str:
    """The name of the file beside it, with the weights that it does not hold, where a run keeps an average (EMA)."""
    return f"{lora_name(job)}_{'trained' if job.ema.lora == 'ema' else 'ema'}"


def describe_lora(
    job: Job,
    *,
    step: int,
    started_at: float | None = None,
    finished_at: float | None = None,
    workflow: object = None,
    prompt: object = None,
) -> LoraDescription:
    """The description of what the job has become after `step` updates. ConfigError for a job that can't be described.

    `workflow` and `prompt`: the graph that started it, as the run folder has it; what is no table is left out.
    """
    captions = Counter[str]()
    for sample in job.training_samples:
        captions[sample.caption] += sample.repeats
    largest = max(job.training_samples, key=lambda sample: sample.shape[2] * sample.shape[3])
    _, height, width = clip_size(largest.shape)
    window = (job.timesteps.sigma_min, job.timesteps.sigma_max)
    return LoraDescription(
        name=lora_name(job),
        base_model=job.model.label,
        rank=job.adapter.rank,
        alpha=effective_alpha(job.adapter, job.adapter.rank),
        network_module=_MODULES.get(job.adapter.kind, _MODULES["lora"]),
        network_args=_network_args(job.adapter),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        trigger_phrase=job.trigger_word,
        weights=job.ema.lora if job.ema.use else "",
        experts=EXPERTS if job.stage == "both" else (),
        resolution=(width, height),
        timestep_range=(round(window[0] * NUM_TIMESTEPS), round(window[1] * NUM_TIMESTEPS)),
        training=TrainingFacts(
            learning_rate=job.optimizer.learning_rate,
            optimizer=_optimizer_of(job),
            lr_scheduler=job.schedule.kind,
            steps=step,
            max_steps=job.loop.steps,
            seed=job.loop.seed,
            batch_size=job.loop.batch_size,
            gradient_accumulation=job.loop.gradient_accumulation,
            num_samples=len(job.training_samples),
            dropout=job.adapter.dropout,
            levels=_levels(job),
            tag_frequency=dict(captions),
            started_at=started_at,
            finished_at=finished_at,
        ),
        job=to_dict(job),
        workflow=dict(workflow) if isinstance(workflow, Mapping) else None,
        prompt=dict(prompt) if isinstance(prompt, Mapping) else None,
    )


def _network_args(options: AdapterOptions) -> dict[str, str]:
    """What was chosen of the adapter beside rank, alpha and dropout, by the names of the options."""
    changed = (
        item for item in options_of(AdapterOptions) if item.born > 1 and getattr(options, item.name) != item.at_birth
    )
    return {item.name: str(getattr(options, item.name)) for item in changed}


def _levels(job: Job) -> dict[str, str | float]:
    """How noise levels and loss were chosen; of the options those that had an effect."""
    timesteps, loss = job.timesteps, job.loss
    used = SAMPLINGS.get(timesteps.sampling).uses
    of_loss = LOSSES.get(loss.kind).uses
    return {
        "ss_timestep_sampling": timesteps.sampling,
        **{key: getattr(timesteps, name) for name, key in _SAMPLING_KEYS.items() if name in used},
        "ss_weighting_scheme": loss.weighting,
        "ss_loss_type": loss.kind,
        **{key: getattr(loss, name) for name, key in _LOSS_KEYS.items() if name in of_loss},
        **({"ss_scale_weight_norms": limit} if (limit := job.regularizers.max_weight_norm) else {}),
    }
