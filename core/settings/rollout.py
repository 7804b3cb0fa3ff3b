"""Scheduled sampling: the model is trained where its own steps lead."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option

RolloutStrategy = Literal["uniform", "biased_early", "biased_late"]


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Options, group="rollout"):
    """Scheduled sampling (rollout): the model itself goes the last way to the noise level at which it is trained."""

    steps: int = option(
        0,
        help="Scheduled sampling (rollout): the most sampling steps that the model makes itself before it is trained.",
        more="Each is 1/999 of the noise, and costs a forward pass. SimpleTuner advises 5 to 10.",
        page="The model then learns to correct the errors that it makes itself when it samples. Nothing has been"
        " published for LoRAs of video models. On the nano bench (miniature models, 160 steps, 3 seeds) 5 steps with"
        " probability 0.25 came to 52 %, as without it.",
        zero="off",
        most=999,
        unit="steps",
        born=2,
        at_birth=0,
        widget=Widget(TRAIN, "rollout_steps", 184, most=100),
        simpletuner="scheduled_sampling_max_step_offset",
    )
    probability: float = option(
        1.0,
        help="Share of the samples that are trained after a rollout.",
        most=1.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "rollout_probability", 185, step=0.05, round=0.001),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_probability",
    )
    ramp_steps: int = option(
        0,
        help="Steps of the run over which the probability rises from 0 to rollout_probability.",
        zero="from the start",
        unit="steps",
        born=2,
        at_birth=0,
        widget=Widget(TRAIN, "rollout_ramp_steps", 186),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_ramp_steps",
    )
    strategy: RolloutStrategy = option(
        "uniform",
        help="How many steps a rollout has: any number alike (uniform), mostly few (biased_early) or many (biased_late).",
        born=2,
        at_birth="uniform",
        widget=Widget(TRAIN, "rollout_strategy", 187),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_strategy",
    )
    direction: float = option(
        0.0,
        help="Weight of a second loss: the prediction must point to the clean video (ReflexFlow's anti-drift).",
        more="SimpleTuner's default is 10.",
        zero="off",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "rollout_direction", 188, most=1000.0, step=0.5, round=0.001),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_reflexflow_beta1",
    )
