"""Length and rhythm of a run."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Options, group="loop"):
    """Length and rhythm of the run. A step is one optimizer update."""

    steps: int = option(
        2000,
        help="Number of optimizer updates.",
        more="With the constant schedule a finished run can be made longer later.",
        page="They are those of one expert. AI-Toolkit counts both together: its 3000 are 1500 of each here.",
        least=1,
        most=100_000_000,
        widget=Widget(TRAIN, "steps", 1, advanced=False, is_required=True, most=1_000_000),
        musubi="max_train_steps",
        aitoolkit="train.steps",
        simpletuner="max_train_steps",
        diffusion_pipe="max_steps",
    )
    batch_size: int = option(
        1,
        help="Samples of one shape that are trained together.",
        page="More need more memory.",
        least=1,
        most=4096,
        widget=Widget(TRAIN, "batch_size", 5, advanced=False, is_required=True, most=256),
        musubi="batch_size",
        aitoolkit="train.batch_size",
        simpletuner="train_batch_size",
        diffusion_pipe="micro_batch_size_per_gpu",
    )
    gradient_accumulation: int = option(
        1,
        help="Batches added up for one update: like a larger batch_size, without the memory.",
        page="With several GPUs, each trains so many; the run's job.json has the number of all together.",
        least=1,
        most=100_000,
        widget=Widget(TRAIN, "gradient_accumulation", 14, is_required=True, most=1024),
        musubi="gradient_accumulation_steps",
        aitoolkit="train.gradient_accumulation",
        simpletuner="gradient_accumulation_steps",
        diffusion_pipe="gradient_accumulation_steps",
    )
    seed: int = option(
        42,
        help="Decides noise, noise levels, order and the LoRA's start.",
        more="The same seed gives the same LoRA.",
        least=-(2**63),
        most=2**64 - 1,
        widget=Widget(TRAIN, "seed", 6, advanced=False, is_required=True, least=0, most=2**53),
        musubi="seed",
        aitoolkit="training_seed",
        simpletuner="seed",
    )
    caption_dropout: float = option(
        0.0,
        help="Probability that a sample is trained with an empty caption.",
        least=0.0,
        most=1.0,
        widget=Widget(TRAIN, "caption_dropout", 22, is_required=True, step=0.01),
        aitoolkit="datasets.caption_dropout_rate",
        simpletuner="caption_dropout_probability",
        diffusion_pipe="uncond_fraction",
    )
    checkpoint_every: int = option(
        250,
        help="Steps between two checkpoints, from which a run can go on.",
        least=1,
        in_key=False,
        key_holds=1,
        widget=Widget(TRAIN, "checkpoint_every", 23, is_required=True, most=1_000_000),
        musubi="save_every_n_steps",
        aitoolkit="save.save_every",
        simpletuner="checkpoint_step_interval",
        diffusion_pipe="save_every_n_steps",
    )
    keep_last: int = option(
        3,
        help="Number of checkpoints to keep.",
        least=1,
        in_key=False,
        key_holds=1,
        widget=Widget(TRAIN, "keep_last", 24, is_required=True, most=1000),
        musubi="save_last_n_steps",
        aitoolkit="save.max_step_saves_to_keep",
        simpletuner="checkpoints_total_limit",
    )
    validate_every: int = option(
        100,
        help="Steps between two measurements of the held-out samples (see held_out of the dataset).",
        least=1,
        in_key=False,
        key_holds=1,
        widget=Widget(TRAIN, "validate_every", 25, is_required=True, most=1_000_000),
        simpletuner="eval_steps_interval",
        diffusion_pipe="eval_every_n_steps",
    )
    token_budget: int = option(
        0,
        help="Most tokens in a batch.",
        more="With a large batch_size, images are then trained many at a time and long clips one by one. A 512x512 image"
        " has 1024 tokens, 832x480 with 33 frames 14040.",
        zero="no limit",
        unit="tokens",
        born=2,
        at_birth=0,
        widget=Widget(TRAIN, "token_budget", 28, most=10_000_000),
        not_with={"batch_size": (1,)},
    )
