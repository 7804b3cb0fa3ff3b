"""The optimizer and its constants."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options, group="optimizer"):
    """The optimizer and its constants."""

    name: str = option(
        "adamw",
        help="The optimizer: how gradients become updates.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds) adamw at learning_rate 1.5e-3 came to 52 %, lion at 3e-4"
        " to 44, schedulefree at 1.5e-3 to 46, muon at 1.5e-3 to 41. One rate of each was tried; adafactor, adamw8bit, ademamix"
        " and prodigy differed from adamw by no more than seeds do.",
        values=("adamw", "adamw8bit"),
        methods="optimizers",
        widget=Widget(TRAIN, "optimizer", 15, is_required=True),
        musubi="optimizer_type",
        aitoolkit="train.optimizer",
        simpletuner="optimizer",
        diffusion_pipe="optimizer.type",
    )
    learning_rate: float = option(
        1e-4,
        help="Size of an update.",
        more="1e-4 to 3e-4 are usual for rank 16.",
        page="A too high one shows as a loss that jumps or rises. On the nano bench (miniature models, 160 steps, 3 seeds) half"
        " the rate came to 45 %, the rate to 52, twice the rate to 55 %, which is within what seeds do: a low one learns less"
        " in so short a run. Its own rate, 1.5e-3, is one for models that small.",
        above=0.0,
        most=1.0,
        widget=Widget(TRAIN, "learning_rate", 2, advanced=False, is_required=True, least=1e-8, step=1e-6, round=False),
        musubi="learning_rate",
        aitoolkit="train.lr",
        simpletuner="learning_rate",
        diffusion_pipe="optimizer.lr",
    )
    weight_decay: float = option(
        0.01,
        help="Pull of the weights towards zero (decoupled).",
        least=0.0,
        most=1000.0,
        widget=Widget(TRAIN, "weight_decay", 16, is_required=True, most=10.0, step=0.001, round=False),
        musubi="optimizer_args.weight_decay",
        aitoolkit="train.optimizer_params.weight_decay",
        simpletuner="adam_weight_decay",
        diffusion_pipe="optimizer.weight_decay",
    )
    beta1: float = option(
        0.9,
        help="Decay of the mean of the gradients.",
        least=0.0,
        below=1.0,
        widget=Widget(TRAIN, "beta1", 130, most=0.99999, step=0.001, round=False),
        only_with={"name": ("adamw", "adamw8bit")},
        musubi="optimizer_args.betas",
        aitoolkit="train.optimizer_params.betas",
        simpletuner="adam_beta1",
        diffusion_pipe="optimizer.betas",
    )
    beta2: float = option(
        0.999,
        help="Decay of the mean of the squared gradients.",
        least=0.0,
        below=1.0,
        widget=Widget(TRAIN, "beta2", 131, most=0.99999, step=0.001, round=False),
        only_with={"name": ("adamw", "adamw8bit")},
        musubi="optimizer_args.betas",
        aitoolkit="train.optimizer_params.betas",
        simpletuner="adam_beta2",
        diffusion_pipe="optimizer.betas",
    )
    eps: float = option(
        1e-8,
        help="Added to the root of the squared gradients, so that nothing is divided by zero.",
        page="AI-Toolkit has 1e-6.",
        least=1e-30,
        most=1.0,
        widget=Widget(TRAIN, "optimizer_eps", 217, least=1e-12, step=1e-9, round=False),
        only_with={"name": ("adamw", "adamw8bit")},
        musubi="optimizer_args.eps",
        aitoolkit="train.optimizer_params.eps",
        simpletuner="adam_epsilon",
        diffusion_pipe="optimizer.eps",
    )
    max_grad_norm: float = option(
        1.0,
        help="Gradients longer than this are shortened to it (gradient clipping).",
        least=0.0,
        zero="off",
        widget=Widget(TRAIN, "max_grad_norm", 17, is_required=True, most=1000.0, step=0.1),
        musubi="max_grad_norm",
        aitoolkit="train.max_grad_norm",
        simpletuner="max_grad_norm",
        diffusion_pipe="gradient_clipping",
    )
    clip_by: Literal["norm", "value"] = option(
        "norm",
        help="What max_grad_norm limits: the length of all gradients together, or each number in them.",
        more="norm keeps the gradient's direction. value cuts each number to at most max_grad_norm, whatever the others are.",
        born=2,
        at_birth="norm",
        widget=Widget(TRAIN, "grad_clip_method", 55),
        not_with={"max_grad_norm": (0.0,)},
        simpletuner="grad_clip_method",
    )
    lora_plus: float = option(
        1.0,
        help="LoRA+: the learning rate of the LoRA's second matrix (B), in multiples of learning_rate.",
        more="1: both matrices have the same. 16 is what its authors advise, with a lower learning_rate.",
        above=0.0,
        most=10_000.0,
        born=2,
        at_birth=1.0,
        widget=Widget(TRAIN, "lora_plus_ratio", 56, least=0.01, most=1000.0, step=0.5),
        musubi="network_args.loraplus_lr_ratio",
    )
    args: str = option(
        "",
        help="Further arguments of the optimizer, as name=value with commas between.",
        more="Such as d_coef=2, safeguard_warmup=True for prodigy. The help page names those of each.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "optimizer_args", 57),
        only_with={"name": ("custom",)},
        musubi="optimizer_args",
        simpletuner="optimizer_config",
    )
    path: str = option(
        "",
        help="For optimizer custom: which class of which installed package, as package.module.Class.",
        more="Classes of torch.optim can be used at once. Any other runs code of that package, so its name has to stand in"
        " the environment variable WANTRAIN_OPTIMIZERS of this machine.",
        born=2,
        at_birth="",
        widget=Widget(TRAIN, "optimizer_class", 58),
        only_with={"name": ("custom",)},
    )
