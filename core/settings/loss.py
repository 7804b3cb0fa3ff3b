"""What is minimised."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options, group="loss"):
    """The distance between the velocity that the model predicts and the true one, and the weight of each noise level."""

    kind: str = option(
        "mse",
        help="Loss: the distance between the predicted and the true velocity.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds) mse came to 52 %, mae to 45, huber with 0.1,"
        " pseudo_huber and soft_l1 to 46. smooth_l1 came to 48, which is within what seeds do, but it showed the movement less:"
        " 64 %, mse 82.",
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
        help="Loss weighting: how much each noise level, or each place in the video, counts.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds) sigma_sqrt came to 44 %, none to 52 %; no other"
        " weighting that was tried differed from none by more than seeds do.",
        values=("none",),
        methods="flow.weightings",
        born=2,
        at_birth="none",
        widget=Widget(TRAIN, "loss_weighting", 33),
        musubi="weighting_scheme",
        aitoolkit="train.timestep_type",
    )
    huber_delta: float = option(
        1.0,
        help="For huber and smooth_l1: the distance up to which the error is squared.",
        least=1e-6,
        most=1e6,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "huber_delta", 49, least=1e-4, most=100.0, step=0.01),
        only_with={"kind": ("huber", "smooth_l1")},
        diffusion_pipe="huber_delta",
    )
    huber_c: float = option(
        0.1,
        help="For pseudo_huber and soft_l1: the distance around which the square goes over into a line.",
        least=1e-6,
        most=1e6,
        born=2,
        at_birth=0.1,
        widget=Widget(TRAIN, "huber_c", 50, least=1e-4, most=100.0, step=0.01),
        only_with={"kind": ("pseudo_huber", "soft_l1")},
        simpletuner="huber_c",
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = option(
        "constant",
        help="For pseudo_huber and soft_l1: how huber_c follows the noise level.",
        more="constant: the same at all. exponential: 1 without noise, huber_c at pure noise. snr: huber_c without noise, 1 at"
        " pure noise.",
        born=2,
        at_birth="constant",
        widget=Widget(TRAIN, "huber_schedule", 51),
        only_with={"kind": ("pseudo_huber", "soft_l1")},
        simpletuner="huber_schedule",
    )
    motion_strength: float = option(
        0.5,
        help="For motion and frame_motion: how much more moving parts count.",
        zero="no more than still ones",
        most=1000.0,
        born=2,
        at_birth=0.5,
        widget=Widget(TRAIN, "motion_strength", 52, most=100.0, step=0.05),
        only_with={"weighting": ("motion", "frame_motion")},
    )
    differential_guidance: float = option(
        1.0,
        help="Differential guidance: the target moves away from the prediction by this factor.",
        more="With the loss mse it multiplies every gradient by itself, and the loss that is shown by its square; it changes"
        " nothing else. Adam and its like cancel it, but for gradient clipping (max_grad_norm). 1: off.",
        page="For those who follow a guide for AI-Toolkit, where 3 is usual; its code (27a03a9) does it only together with"
        " contrastive guidance. A higher max_grad_norm does much the same.",
        above=0.0,
        most=1000.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "differential_guidance", 53, least=0.01, most=100.0, step=0.1),
        aitoolkit="train.differential_guidance_scale",
    )
    contrastive_guidance: float = option(
        0.0,
        help="Contrastive guidance: moves the target away from the prediction without a caption, by this factor.",
        more="For distilled models that run without guidance (cfg 1), so that a LoRA does not undo their distillation. 3 to 4"
        " is usual. A step takes about 1.4 times as long.",
        page="AI-Toolkit's do_guidance_loss: target = u + scale (target - u), u what the model with its LoRA predicts for the"
        " empty caption. It is slower than a training adapter (see merge_into_base). The held-out loss is of the plain"
        " target. Not measured on distilled Wan models of full size. On miniature ones (4 steps, scale 2.5, nine trainings) a"
        " LoRA so taught showed its concept in 32 % of videos, and 64 % had the rest as asked; one of the plain model, used"
        " there, 31 and 86 %. So it taught no more, and much of the rest was lost; things also moved more than they should"
        " (155 % of what drawn clips have, 116 with the other). On a model that is not distilled it harms: with 3 the nano"
        " bench (160 steps, 3 seeds) gives 36 %, without it 52 %.",
        zero="off",
        most=1000.0,
        born=2,
        at_birth=0.0,
        widget=Widget(TRAIN, "contrastive_guidance", 181, most=100.0, step=0.1, round=0.001),
        aitoolkit="train.guidance_loss_target",
    )
    contrastive_schedule: Literal["constant", "sigma"] = option(
        "constant",
        help="How contrastive_guidance follows the noise level.",
        more="constant: the same at all noise levels. sigma: full at pure noise, less and less toward the clean video.",
        born=2,
        at_birth="constant",
        widget=Widget(TRAIN, "contrastive_schedule", 182),
        not_with={"contrastive_guidance": (0.0,)},
        aitoolkit="train.guidance_loss_schedule",
    )
    contrastive_cfg_zero: bool = option(
        False,
        help="First scale the prediction without a caption to fit the target (CFG-Zero*).",
        born=2,
        at_birth=False,
        widget=Widget(TRAIN, "contrastive_cfg_zero", 183),
        not_with={"contrastive_guidance": (0.0,)},
        aitoolkit="train.do_guidance_loss_cfg_zero",
    )
