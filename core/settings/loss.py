"""What is minimised."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options, group="loss"):
    """The distance between the velocity that the model predicts and the true one, and the weight of each noise level."""

    kind: str = option(
        "mse",
        help="Loss: the distance between the predicted and the true velocity.",
        values=("mse",),
        methods="flow.losses",
        born=2,
        at_birth="mse",
        widget=Widget(TRAIN, "loss", 32),
        aitoolkit="train.loss_type",
        simpletuner="loss_type",
    )
    weighting: str = option(
        "none",
        help="Loss weighting: how much each noise level counts.",
        values=("none",),
        methods="flow.weightings",
        born=2,
        at_birth="none",
        widget=Widget(TRAIN, "loss_weighting", 33),
        musubi="weighting_scheme",
        aitoolkit="train.timestep_type",
    )
