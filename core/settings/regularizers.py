"""What keeps the model as it was where it is not to learn."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class RegularizerOptions(Options, group="regularizers"):
    """What keeps the model as it was where it is not to learn: forwards beside those of the loss, and limits of the weights."""

    output_preservation: float = option(
        0.0,
        help="Differential output preservation (DOP): how much the class word must keep its meaning.",
        more="Needs class_word of the dataset. A step takes about 2.5 times as long.",
        page="1 is usual. On the nano bench (miniature models, 160 steps, 3 seeds), with nothing else to keep what the model"
        " knows, 99 % of videos without the trigger word stayed as asked with it, and 90 % without it. Where clips of known"
        " things were trained too, all stayed so either way, and what else was asked beside the trigger word fell from 91 to"
        " 82 %.",
        zero="off",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "output_preservation", 100, most=1000.0, step=0.1, round=0.001),
        aitoolkit="train.diff_output_preservation_multiplier",
    )
    blank_preservation: float = option(
        0.0,
        help="Blank prompt preservation: how much the model must stay as it was without a caption.",
        more="A step takes about 2.5 times as long.",
        page="1 is usual. On the nano bench (miniature models, 160 steps, 3 seeds), where clips of known things were trained"
        " too, 96 % of videos without the trigger word stayed as asked with it, and all without it.",
        zero="off",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "blank_preservation", 101, most=1000.0, step=0.1, round=0.001),
        aitoolkit="train.blank_prompt_preservation_multiplier",
    )
    preservation_target: float = option(
        0.0,
        help="Adaptive DOP: how far predictions with the class word may move. DOP's weight changes to hold it.",
        more="A mean squared difference, which the chart shows as output_preservation: a run without a target tells its size."
        " output_preservation is then the weight to begin with.",
        page="After each step the weight is multiplied by exp(0.1 (m / target - 1)), m the mean of about 20 steps; it stays"
        " between a hundredth and a hundred times what it began with. A fork of musubi-tuner does the same, relative to the"
        " size of the prediction. No results have been published. Too low a target keeps the LoRA from learning: on the nano"
        " bench (miniature models, 160 steps, 3 seeds) a target of 0.01 came to 34 %; with the weight left at 1 it was 51 %.",
        zero="the weight stays",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "preservation_target", 214, most=1000.0, step=0.001, round=1e-05),
        not_with={"output_preservation": (0.0,)},
    )
    single_pass: bool = option(
        False,
        help="Preservation in one pass: the captions and those that are preserved go through the model together.",
        more="The gradients are the same. Faster for pictures and small clips; activations take two to three times the memory.",
        page="It is for output_preservation and blank_preservation; with both, three captions go together. It does not go with"
        " CREPA. On an H200, with six blocks of 14B's width and a picture of 960x960, output_preservation made a step 2.41"
        " times as long with it, and 2.44 times without.",
        born=2,
        at_birth=False,
        widget=Widget(TRAIN, "preservation_single_pass", 215),
    )
    prior_preservation: bool = option(
        False,
        help="Prior preservation: for regularization sets the model learns what it predicts without the LoRA.",
        more="It does not learn what they show, so it keeps its own look. Each batch of such a set goes through the"
        " model once more.",
        page="AI-Toolkit's prior_reg, and what SimpleTuner does with is_regularisation_data. Without it the sets are trained"
        " plainly. On the nano bench (miniature models, 160 steps, 3 seeds) it came to 53 %, plain clips of known things to 52:"
        " no more than seeds differ.",
        born=2,
        at_birth=False,
        widget=Widget(TRAIN, "prior_preservation", 216),
        aitoolkit="datasets.prior_reg",
    )
    max_weight_norm: float = option(
        0.0,
        help="The most that the LoRA may change the weights of a layer, as the norm of the change.",
        more="What is above is scaled down after each update. 1 is a usual start.",
        zero="no limit",
        most=1e6,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "max_weight_norm", 102, most=1000.0, step=0.1, round=0.001),
        musubi="scale_weight_norms",
    )
