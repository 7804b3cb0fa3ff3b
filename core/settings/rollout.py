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
        help="Scheduled sampling (rollout): the most steps, of 1/999 of the noise, that the model goes by itself first.",
        more="Each takes a forward more. 5 to 10 is what SimpleTuner advises.",
        page="The model then learns to mend its own errors, as it meets them when it samples. Nobody has published a"
        " measurement for LoRAs of video models.",
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
        help="The share of samples that a rollout comes before.",
        most=1.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "rollout_probability", 185, step=0.05, round=0.001),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_probability",
    )
    ramp_steps: int = option(
        0,
        help="Steps of the run in which rollout_probability is reached, from 0 on.",
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
        help="Which numbers of steps are drawn: all alike, more short ones (biased_early), or more long ones (biased_late).",
        born=2,
        at_birth="uniform",
        widget=Widget(TRAIN, "rollout_strategy", 187),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_strategy",
    )
    direction: float = option(
        0.0,
        help="How much the prediction is to point to the clean video (ReflexFlow's anti-drift), beside the loss.",
        more="SimpleTuner has 10.",
        zero="off",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "rollout_direction", 188, most=1000.0, step=0.5, round=0.001),
        not_with={"steps": (0,)},
        simpletuner="scheduled_sampling_reflexflow_beta1",
    )
