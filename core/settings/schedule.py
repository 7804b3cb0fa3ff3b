"""How the learning rate moves over the run."""

from dataclasses import dataclass

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options, group="schedule"):
    """How the learning rate moves over the run."""

    kind: str = option(
        "constant",
        help="How the learning rate falls over the run.",
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
        widget=Widget(TRAIN, "warmup_steps", 19, is_required=True, most=100_000),
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
        least=1e-4,
        most=1000.0,
        widget=Widget(TRAIN, "lr_power", 21, is_required=True, least=0.01, most=100.0, step=0.1),
        only_with={"kind": ("polynomial",)},
        musubi="lr_scheduler_power",
        simpletuner="lr_power",
    )
