"""AI-Toolkit's options of the optimizer and the learning rate (toolkit/optimizer.py, toolkit/scheduler.py)."""

from .answers import Answer, Context, Rule, SetupOption, changed, mapped, not_needed, not_supported
from .common import betas, need_number, schedule, to_number
from .declared import number
from .optimizers import Named, answer, arguments, rate, said_by

_EPS = {"eps": 1e-6}  # toolkit/optimizer.py, for all of the Adam family
_LION = {"beta2": 0.99, "weight_decay": 0.0}
_ADAM = "Adam without weight decay, which is AdamW without it."
_OPTIMIZERS = {
    "adamw": Named("adamw", _EPS),
    "adamw8": Named("adamw8bit", _EPS, "an 8 bit AdamW of its own there."),
    "adamw8bit": Named("adamw8bit", _EPS),
    "adam": Named("adamw", {**_EPS, "weight_decay": 0.0}, _ADAM),
    "adam8": Named("adamw8bit", {**_EPS, "weight_decay": 0.0}, _ADAM),
    "adam8bit": Named("adamw8bit", {**_EPS, "weight_decay": 0.0}, _ADAM),
    "ademamix8bit": Named("ademamix8bit", _EPS),
    "lion": Named("lion", _LION),
    "lion8bit": Named("lion8bit", _LION),
    "adafactor": Named("adafactor", {"weight_decay": 0.0}),
    "prodigy": Named("prodigy", {**_EPS, "weight_decay": 0.0}),
    "prodigy8bit": Named("prodigy", {**_EPS, "weight_decay": 0.0}, "its state is not 8 bit here."),
    "adagrad": Named("custom", {"weight_decay": 0.0}, "it is used by its class.", "torch.optim.Adagrad"),
}
_SAID = {
    "train.optimizer_params.weight_decay": ("weight_decay",),
    "train.optimizer_params.eps": ("eps",),
    "train.optimizer_params.betas": ("beta1", "beta2"),
}


def _named(context: Context) -> Named | None:
    word = str(context.get("train.optimizer", "adamw8bit")).lower()
    return _OPTIMIZERS.get("prodigy" if word.startswith("prodigy") and word != "prodigy8bit" else word)


def _optimizer(context: Context, given: SetupOption) -> Answer:
    return answer(_named(context), str(given.value), said_by(context, _SAID))


def _lr(context: Context, given: SetupOption) -> Answer:
    return rate(given, is_own=str(context.get("train.optimizer")).lower().startswith("prodigy"))


def _betas(_context: Context, given: SetupOption) -> Answer:
    return betas(given.value)


def _scheduler(context: Context, given: SetupOption) -> Answer:
    """toolkit/scheduler.py: linear is PyTorch's LinearLR, from a third of the rate to all of it where nothing else is said."""
    word = str(given.value)
    if word == "linear":
        start = number(context.get("train.lr_scheduler_params.start_factor", 1 / 3))
        end = number(context.get("train.lr_scheduler_params.end_factor", 1.0))
        if start == end == 1:
            return changed("from the whole learning rate to the whole: it is constant.", schedule__kind="constant")
        if start != 1 or end is None or end > 1:
            return not_supported("the learning rate rises there over the whole run, and stays constant here.")
        return mapped(schedule__kind="linear")
    if word == "constant_with_warmup":
        given_steps = context.get("train.lr_scheduler_params.num_warmup_steps", 1000)
        steps = _for_each(context, need_number(given_steps, is_whole=True))
        return changed(
            "it rises at first, and is constant then.", schedule__kind="constant", schedule__warmup_steps=steps
        )
    return schedule(word)


def _for_each(context: Context, steps: int) -> int:
    """Steps of both experts as those of each."""
    is_both = context.facts.get("has_experts") and context.facts.get("stage") is None
    return max(1, steps // 2) if is_both else steps


def _factors(context: Context, given: SetupOption) -> Answer:
    """start_factor and end_factor of LinearLR, num_warmup_steps."""
    word, name = context.get("train.lr_scheduler"), given.key.rpartition(".")[2]
    if name == "num_warmup_steps":
        used = word == "constant_with_warmup"
        return not_needed("lr_scheduler is read by it." if used else "lr_scheduler has none.")
    if word != "linear":
        return not_needed("lr_scheduler is not linear.")
    end = float(need_number(given.value))
    if name == "end_factor" and end <= 1 and number(context.get("train.lr_scheduler_params.start_factor", 1 / 3)) == 1:
        return mapped(schedule__floor=end)
    return not_needed("lr_scheduler is read by it.")


def _eta_min(context: Context, given: SetupOption) -> Answer:
    """The lowest learning rate itself there, and a share of the highest here."""
    rate = need_number(context.get("train.lr", 1e-6))
    return changed(
        "a learning rate there, a share of the highest here.", schedule__floor=float(need_number(given.value)) / rate
    )


OPTIMIZER_RULES: dict[str, Rule] = {
    "train.optimizer": _optimizer,
    "train.lr": _lr,
    "train.optimizer_params.betas": _betas,
    "train.optimizer_params.*": arguments("train.optimizer_params.", _named),
    "train.lr_scheduler_params.num_warmup_steps": _factors,
    "train.lr_scheduler": _scheduler,
    "train.lr_scheduler_params.start_factor": _factors,
    "train.lr_scheduler_params.end_factor": _factors,
    "train.lr_scheduler_params.eta_min": _eta_min,
    **{f"train.optimizer_params.{name}": to_number(f"optimizer.{name}") for name in ("weight_decay", "eps")},
}
