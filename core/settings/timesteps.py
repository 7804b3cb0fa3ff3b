"""Which noise levels are trained."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from .curve import FLAT, is_zero_between, read_curve
from .option import TRAIN, Options, Widget, option

Bias = Literal["balanced", "favor_high_noise", "favor_low_noise"]


@dataclass(frozen=True, kw_only=True)
class TimestepOptions(Options, group="timesteps"):
    """The distribution of sigma."""

    sampling: str = option(
        "uniform",
        help="Distribution of the noise levels (timesteps), cut to the stage's window.",
        page="On the nano bench (see *What the nano bench says* below) no sampling, shift or bias that was tried differed from"
        " uniform by more than seeds do.",
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
        help="For samplings that shift by a number of yours: above 1 trains more on noisy levels.",
        page="sigma becomes shift sigma / (1 + (shift - 1) sigma). AI-Toolkit has 5 for Wan 2.2 and 3 for Wan 2.1. A"
        " logit-normal distribution of mean m is the sampling shift with a timestep_shift of e to the m.",
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
        help="For samplings with a bell over the logit: its width; below 1 is narrower.",
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
    bias: Bias = option(
        "balanced",
        help="Favours one end of the stage's own noise levels.",
        more="favor_high_noise: motion and composition. favor_low_noise: look and details. balanced: neither.",
        page="AI-Toolkit's Timestep Bias: the place in the distribution is the cube of an even draw, counted from the favoured"
        " end, so that half of all draws are in the eighth next to it. It never moves draws to the other expert.",
        born=2,
        at_birth="balanced",
        widget=Widget(TRAIN, "timestep_bias", 40),
        aitoolkit="train.content_or_style",
    )
    window: Literal["cut", "squeezed"] = option(
        "cut",
        help="How a distribution over all noise levels comes into a stage's window.",
        more="cut: the part of it that lies there. squeezed: all of it, made narrower.",
        page="squeezed is what musubi-tuner does without preserve_distribution_shape.",
        born=2,
        at_birth="cut",
        widget=Widget(TRAIN, "timestep_window", 41),
        not_with={"sampling": ("uniform",)},
        musubi="!preserve_distribution_shape",
    )
    curve: str = option(
        FLAT,
        help="For curve: how often each noise level is trained, as points such as 0:1, 0.5:2, 1:0.2.",
        more="Each is a noise level from 0 (clean) to 1 (noise), and a height. Lines join them; only the shape counts.",
        born=2,
        at_birth=FLAT,
        widget=Widget(TRAIN, "timestep_curve", 42),
        only_with={"sampling": ("curve",)},
    )
    logsnr_mean: float = option(
        0.0,
        help="For logsnr and qinglong_flux: the middle of the logarithm of signal to noise.",
        more="Below 0 is noisier; -6 is usual for a style.",
        least=-100.0,
        most=100.0,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "logsnr_mean", 43, least=-20.0, most=20.0, step=0.1),
        only_with={"sampling": ("logsnr", "qinglong_flux")},
        musubi="logit_mean",
    )
    logsnr_std: float = option(
        1.0,
        help="For logsnr and qinglong_flux: the spread of the logarithm of signal to noise.",
        more="2 to 3 are usual.",
        least=1e-3,
        most=100.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "logsnr_std", 44, least=0.01, most=20.0, step=0.1),
        only_with={"sampling": ("logsnr", "qinglong_flux")},
        musubi="logit_std",
    )
    beta_a: float = option(
        2.0,
        help="For beta and shifted_beta: the first number; a higher one trains more on noisy levels.",
        least=0.05,
        most=100.0,
        born=2,
        at_birth=2.0,
        widget=Widget(TRAIN, "timestep_beta_a", 45, step=0.1),
        only_with={"sampling": ("beta", "shifted_beta")},
        simpletuner="flow_beta_schedule_alpha",
    )
    beta_b: float = option(
        2.0,
        help="For beta and shifted_beta: the second number; a higher one trains more on clean levels.",
        least=0.05,
        most=100.0,
        born=2,
        at_birth=2.0,
        widget=Widget(TRAIN, "timestep_beta_b", 46, step=0.1),
        only_with={"sampling": ("beta", "shifted_beta")},
        simpletuner="flow_beta_schedule_beta",
    )
    shift_cap: float = option(
        5.0,
        help="For auto_shift: the highest shift that a large or long sample gets.",
        page="SimpleTuner has no limit, and comes to a shift of 404 at 832x480 with 81 frames: nothing but noise is trained.",
        least=1.0,
        most=1e4,
        born=2,
        at_birth=5.0,
        widget=Widget(TRAIN, "timestep_shift_cap", 47, most=1000.0, step=0.1),
        only_with={"sampling": ("auto_shift",)},
    )
    mode_scale: float = option(
        1.29,
        help="For mode: above 0 trains more on the middle noise levels, below 0 more on both ends.",
        least=-1.0,
        most=1.75,
        born=2,
        at_birth=1.29,
        widget=Widget(TRAIN, "timestep_mode_scale", 48, step=0.01),
        only_with={"sampling": ("mode",)},
        musubi="mode_scale",
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.sigma_min < self.sigma_max <= 1.0:
            raise ConfigError(
                f"the window of sigmas is [{self.sigma_min}, {self.sigma_max}]; it must lie in [0, 1], low before high."
            )
        points = read_curve(self.curve)
        is_drawn = self.sampling == "curve" and self.window == "cut"
        if is_drawn and is_zero_between(points, self.sigma_min, self.sigma_max):
            raise ConfigError(
                f"timestep_curve is 0 from {self.sigma_min:g} to {self.sigma_max:g}, the noise levels of this stage, so that"
                " nothing would be trained: raise it there."
            )
        super().__post_init__()
