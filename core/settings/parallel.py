"""How one run is spread over several GPUs."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option

BaseMode = Literal["auto", "whole", "sharded"]


@dataclass(frozen=True, kw_only=True)
class ParallelOptions(Options, group="parallel"):
    """How one run is spread over several GPUs. With one GPU nothing here has an effect.

    None of it changes what is trained. A job's `loop.gradient_accumulation` is the number of batches of a step over all GPUs,
    which deal them among themselves: so the same job on another number of GPUs has the same draws, and the same losses and
    gradients within rounding, and can go on there. Made from settings, it is the asked number times the GPUs that train
    different samples.
    """

    context: int = option(
        0,
        help="Context parallel: GPUs that share the tokens of each sample.",
        more="For clips that are too long or too slow for one GPU. The other GPUs train other samples.",
        page="It must divide the number of GPUs, and the model's heads: 40 in a 14B model.",
        zero="auto",
        most=1024,
        unit="GPUs",
        in_key=False,
        widget=Widget(TRAIN, "context_parallel", 110, most=64),
        simpletuner="context_parallel_size",
    )
    base: BaseMode = option(
        "auto",
        help="Whether each GPU holds the whole frozen model, or a share of it.",
        more="sharded: the blocks lie spread over the GPUs and visit each when they are needed, for models that fit on no"
        " GPU whole. auto: whole where it fits.",
        in_plans="base spread over {} GPUs",
        in_plans_off="base whole on each GPU",
        page="Spread over the GPUs of one machine. It needs gradient checkpointing, and NCCL, which PyTorch has on Linux. The"
        " result is the same.",
        in_key=False,
        widget=Widget(TRAIN, "sharded_base", 111),
        simpletuner="fsdp_enable",
    )
