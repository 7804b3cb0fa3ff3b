"""Which noise levels are trained."""

from dataclasses import dataclass

from ..errors import ConfigError
from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class TimestepOptions(Options, group="timesteps"):
    """The distribution of sigma."""

    sampling: str = option(
        "uniform",
        help="Distribution of the noise levels (timesteps), cut to the stage's window.",
        values=("uniform", "sigmoid", "shift"),
        methods="flow.timesteps",
        widget=Widget(TRAIN, "timestep_sampling", 7, is_required=True),
        musubi="timestep_sampling",
        aitoolkit="train.timestep_type",
        simpletuner="flow_use_uniform_schedule",
        diffusion_pipe="model.timestep_sample_method",
    )
    shift: float = option(
        3.0,
        help="For timestep_sampling shift: above 1 trains more on noisy levels.",
        page="sigma becomes shift sigma / (1 + (shift - 1) sigma).",
        least=1e-4,
        most=1e4,
        widget=Widget(TRAIN, "timestep_shift", 8, is_required=True, least=0.01, most=100.0, step=0.1),
        only_with={"sampling": ("shift",)},
        musubi="discrete_flow_shift",
        simpletuner="flow_schedule_shift",
        diffusion_pipe="model.shift",
    )
    sigmoid_scale: float = option(
        1.0,
        help="For sigmoid and shift: width of the distribution; below 1 is narrower.",
        page="It is the standard deviation of the logit of sigma.",
        least=1e-4,
        most=1e4,
        widget=Widget(TRAIN, "sigmoid_scale", 9, is_required=True, least=0.01, most=100.0, step=0.1),
        only_with={"sampling": ("sigmoid", "shift")},
        musubi="sigmoid_scale",
        simpletuner="flow_sigmoid_scale",
        diffusion_pipe="model.sigmoid_scale",
    )
    sigma_min: float = option(
        0.0,
        help="Lowest noise level of the stage's window, as sigma.",
        least=0.0,
        most=1.0,
        in_recipe=False,
        musubi="min_timestep",
        aitoolkit="train.min_denoising_steps",
        diffusion_pipe="model.min_t",
    )
    sigma_max: float = option(
        1.0,
        help="Highest noise level of the stage's window, as sigma.",
        least=0.0,
        most=1.0,
        in_recipe=False,
        musubi="max_timestep",
        aitoolkit="train.max_denoising_steps",
        diffusion_pipe="model.max_t",
    )
    strata: int = option(
        1,
        help="Stratified sampling: this many draws in a row cover the window evenly.",
        more="It lowers the variance of the loss. 1: independent draws.",
        least=1,
        most=10_000,
        widget=Widget(TRAIN, "timestep_strata", 10, is_required=True, most=64),
        musubi="num_timestep_buckets",
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma_min < self.sigma_max <= 1.0:
            raise ConfigError(
                f"the window of sigmas is [{self.sigma_min}, {self.sigma_max}]; it must lie in [0, 1], low before high."
            )
        super().__post_init__()
