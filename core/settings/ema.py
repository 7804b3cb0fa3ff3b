"""A moving average of the LoRA's weights (EMA), beside those that are trained."""

from dataclasses import dataclass
from typing import Literal

from .option import TRAIN, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class EmaOptions(Options, group="ema"):
    """A moving average of the LoRA's weights (EMA), which evens out the last steps."""

    use: bool = option(
        False,
        help="Keep a moving average of the LoRA's weights (EMA), which evens out the last steps.",
        more="It takes 4 bytes more for each trained number. Both LoRAs are written at the end.",
        born=2,
        at_birth=False,
        widget=Widget(TRAIN, "ema", 61),
        aitoolkit="train.ema_config.use_ema",
        simpletuner="use_ema",
    )
    decay: float = option(
        0.995,
        help="How much of the average stays when it is brought up to date: 0.995 averages over about 200 updates of it.",
        least=0.0,
        below=1.0,
        born=2,
        at_birth=0.995,
        widget=Widget(TRAIN, "ema_decay", 62, most=0.99999, step=0.001, round=False),
        only_with={"use": (True,)},
        aitoolkit="train.ema_config.ema_decay",
        simpletuner="ema_decay",
    )
    every: int = option(
        1,
        help="Steps after which the average is brought up to date.",
        least=1,
        most=1_000_000,
        born=2,
        at_birth=1,
        widget=Widget(TRAIN, "ema_update_interval", 63, most=10_000),
        only_with={"use": (True,)},
        simpletuner="ema_update_interval",
    )
    warm_up: bool = option(
        True,
        help="Let the average follow quickly at first: the decay of step n is at most n / (n + 9).",
        more="Off: the same decay from the first step on, as AI-Toolkit has it, so that the start counts for long.",
        born=2,
        at_birth=True,
        widget=Widget(TRAIN, "ema_warmup", 64),
        only_with={"use": (True,)},
    )
    shown: Literal["ema_only", "none"] = option(
        "ema_only",
        help="Weights that the held-out loss and previews use: the average (ema_only), or those in training (none).",
        born=2,
        in_key=False,
        widget=Widget(TRAIN, "ema_validation", 65),
        only_with={"use": (True,)},
        simpletuner="ema_validation",
    )
    lora: Literal["ema", "trained"] = option(
        "ema",
        help="Weights that the LoRA file holds: the average, or those of the last step.",
        more="The other ones are written beside it, in the folder of the run.",
        born=2,
        at_birth="ema",
        widget=Widget(TRAIN, "ema_lora", 66),
        only_with={"use": (True,)},
    )
