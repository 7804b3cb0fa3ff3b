"""How the learning rate moves over the run."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options, group="schedule"):
    """How the learning rate moves over the run."""

    kind: str = option(
        "constant",
        help="How the learning rate falls over the run.",
        page="On the nano bench (miniature models, 160 steps, 3 seeds) constant came to 52 %, cosine to 42, linear to 43, and"
        " polynomial with lr_power 8 to 25, which is nothing learnt; rex and warmup_stable_decay differed"
        " from constant by no more than seeds do. A rate that falls early learns less in so short a run.",
        values=("constant", "cosine", "linear", "polynomial"),
        methods="schedules",
        widget=Widget(TRAIN, "lr_schedule", 18, is_required=True),
        musubi="lr_scheduler",
        aitoolkit="train.lr_scheduler",
        simpletuner="lr_scheduler",
        diffusion_pipe="lr_scheduler",
    )
    warmup_steps: int = option(
        0,
        help="Steps over which the learning rate rises from zero at the start.",
        widget=Widget(TRAIN, "warmup_steps", 19, is_required=True, most=1_000_000),
        musubi="lr_warmup_steps",
        simpletuner="lr_warmup_steps",
        diffusion_pipe="warmup_steps",
    )
    floor: float = option(
        0.0,
        help="Lowest learning rate, as a fraction of learning_rate; for all schedules that fall.",
        least=0.0,
        most=1.0,
        widget=Widget(TRAIN, "lr_floor", 20, is_required=True, step=1e-5, round=False),
        not_with={"kind": ("constant",)},
        hint=", a fraction of the learning rate",
        musubi="lr_scheduler_min_lr_ratio",
        aitoolkit="train.lr_scheduler_params.eta_min",
        simpletuner="lr_end",
    )
    power: float = option(
        1.0,
        help="Exponent of the polynomial schedule: 1 is linear, larger falls faster at first.",
        page="Without a floor the mean rate of a run is learning_rate / (lr_power + 1): with 8 a ninth.",
        least=1e-4,
        most=1000.0,
        widget=Widget(TRAIN, "lr_power", 21, is_required=True, least=0.01, most=100.0, step=0.1),
        only_with={"kind": ("polynomial",)},
        musubi="lr_scheduler_power",
        simpletuner="lr_power",
    )
    cycles: int = option(
        1,
        help="How many times the learning rate falls; after each it begins again at the full rate.",
        least=1,
        most=10_000,
        born=2,
        at_birth=1,
        widget=Widget(TRAIN, "lr_cycles", 59, most=1000),
        only_with={"kind": ("cosine_restarts",)},
        musubi="lr_scheduler_num_cycles",
        simpletuner="lr_num_cycles",
    )
    decay_share: float = option(
        0.2,
        help="Share of the run, at its end, in which the learning rate falls.",
        more="Counted from the end of the warm-up: 0.2 is the last fifth.",
        above=0.0,
        most=1.0,
        born=2,
        at_birth=0.2,
        widget=Widget(TRAIN, "lr_decay_share", 60, least=0.01, step=0.05),
        only_with={"kind": ("warmup_stable_decay",)},
        musubi="lr_decay_steps",
    )
