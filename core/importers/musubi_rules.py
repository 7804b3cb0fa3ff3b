"""What becomes of each option of musubi-tuner. Names that mean the same here stand in the declarations of core/settings."""

import re

from .answers import Answer, Context, Given, Rule, changed, mapped, not_needed, not_supported
from .common import (
    CACHES,
    betas,
    checkpoints_by_epoch,
    gradient_checkpointing,
    need_number,
    optimizer,
    schedule,
    to_number,
    window,
)
from .declared import choice_of, exists, number, truth
from .families import stage_of
from .musubi_data import DATASET_RULES

_OPTIMIZERS = {
    "adamw8bit": ("adamw8bit",),
    "bitsandbytes.optim.adamw8bit": ("adamw8bit",),
    "torch.optim.adamw": ("adamw",),
    "pagedadamw8bit": ("paged_adamw8bit", "adamw8bit_paged"),
    "prodigyopt.prodigy": ("prodigy",),
    "schedulefree.adamwschedulefree": ("schedule_free", "adamw_schedulefree"),
    "adamwschedulefree": ("schedule_free", "adamw_schedulefree"),
}


def _dit(context: Context, given: Given) -> Answer:
    path = str(given.value)
    if given.key == "dit_high_noise":
        return mapped(models__high=path)
    if not context.facts.get("has_experts"):
        return mapped(models__single=path)
    if context.facts.get("has_both"):
        return mapped(models__low=path)
    stage = context.facts.get("stage") or stage_of(path)
    if stage is None:
        return not_supported("which expert the file is can't be told from its name or from --min_timestep.")
    return Answer("mapped", {f"models.{stage}": path})


def _task(_context: Context, given: Given) -> Answer:
    values = {"t2i-14B": "it is trained on pictures as T2V 14B."}
    return changed(values[given.value]) if given.value in values else mapped()


def _fp8(context: Context, given: Given) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if given.key == "fp8_base" and not truth(context.get("fp8_scaled", False)):
        # training/trainer_base.py casts every parameter to e4m3 then, norms and modulation too.
        return changed(
            "only the blocks' linear layers are fp8 here, each with a scale, which is nearer.", precision="fp8"
        )
    return mapped(precision="fp8")


def _mixed_precision(context: Context, given: Given) -> Answer:
    word = str(given.value)
    if truth(context.get("fp8_base", False)) or truth(context.get("fp8_scaled", False)):
        same = word == "bf16"
        return (
            not_needed("the model is fp8, and computes in bf16.")
            if same
            else changed("the fp8 model computes in bf16.")
        )
    if word in ("bf16", "fp16"):
        return mapped(precision=word)
    return changed("the whole model is fp32 then.", precision="fp32")


def _sampling(context: Context, given: Given) -> Answer:
    word = str(given.value)
    if word == "sigma":
        # training/trainer_base.py: steps of a table that no shift moves, each as likely with weighting_scheme none.
        scheme = str(context.get("weighting_scheme", "none"))
        found = choice_of("timesteps.sampling", scheme) if scheme in ("logit_normal", "mode") else "uniform"
        if scheme == "logit_normal":
            return changed("logit_normal is sigmoid here.", timesteps__sampling="sigmoid")
        if found is None:
            return not_supported(f"there is no {scheme} here: uniform is taken.")
        return changed("every noise level is as likely, which is uniform.", timesteps__sampling=found)
    found = choice_of("timesteps.sampling", word)
    return (
        not_supported(f"there is no {word} here: uniform is taken.")
        if found is None
        else mapped(timesteps__sampling=found)
    )


def _shift(context: Context, given: Given) -> Answer:
    if context.get("timestep_sampling") != "shift":
        return not_needed("it has an effect with --timestep_sampling shift alone.")
    return mapped(timesteps__shift=float(need_number(given.value)))


def _weighting(_context: Context, given: Given) -> Answer:
    word = str(given.value)
    if word in ("none", "logit_normal", "mode"):
        return not_needed("it gives every noise level the same weight.")
    found = choice_of("loss.weighting", word)
    return not_supported(f"there is no weighting {word} here.") if found is None else mapped(loss__weighting=found)


def _window(context: Context, given: Given) -> Answer:
    return window(context, given, context.get("min_timestep"), context.get("max_timestep"), of_thousand=True)


def _shape(_context: Context, given: Given) -> Answer:
    """training/trainer_base.py: drawn again until it lies in the window; without it the whole law is squeezed into it."""
    is_cut = truth(given.value)
    if exists("timesteps.window"):
        return mapped(timesteps__window="cut" if is_cut else "squeezed")
    if is_cut:
        return not_needed("the distribution is always cut to the expert's window, and keeps its shape.")
    return not_supported("the distribution is cut to the expert's window here, and not squeezed into it.")


def _boundary(_context: Context, given: Given) -> Answer:
    found = need_number(given.value)
    return mapped(boundary=found / 1000 if found > 1 else float(found))


def _scheduler(_context: Context, given: Given) -> Answer:
    return schedule(given.value)


def _warmup(context: Context, given: Given) -> Answer:
    found = need_number(given.value)
    if 0 < found < 1:
        steps = number(context.get("max_train_steps")) if context.has("max_train_steps") else None
        if steps is None:
            return not_supported("it is a share of the run, whose steps are not known: give a number of steps.")
        return changed("it is a share of the run.", schedule__warmup_steps=int(found * steps))
    return mapped(schedule__warmup_steps=int(found))


def _min_ratio(context: Context, given: Given) -> Answer:
    value = float(need_number(given.value))
    if context.get("lr_scheduler") == "polynomial":
        # training/trainer_base.py hands the power alone to transformers, whose lowest learning rate is 1e-7.
        return changed("musubi-tuner leaves it out with polynomial; here it counts.", schedule__floor=value)
    return mapped(schedule__floor=value)


def _optimizer(_context: Context, given: Given) -> Answer:
    if not given.value:
        return changed("it is AdamW.", optimizer__name="adamw")
    return optimizer(given.value, _OPTIMIZERS)


def _betas(_context: Context, given: Given) -> Answer:
    return betas(given.value)


def _network(_context: Context, given: Given) -> Answer:
    word = str(given.value)
    if re.search(r"networks\.lora(_wan)?$", word):
        return mapped()
    kind = choice_of("adapter.kind", word.rpartition(".")[2])
    return not_supported(f"{word} can't be trained here, a LoRA is.") if kind is None else mapped(adapter__kind=kind)


def _attention(_context: Context, _given: Given) -> Answer:
    return changed("the fastest kind of attention that is installed and right is taken (memory.attention).")


def _pinned(_context: Context, given: Given) -> Answer:
    return mapped(memory__stream_from="pinned") if truth(given.value) else not_needed("it is off.")


def _compile(_context: Context, _given: Given) -> Answer:
    return changed("own kernels are used where Triton works (memory.compile), which is as fast for every size.")


def _save_precision(_context: Context, given: Given) -> Answer:
    word = {"float": "fp32"}.get(str(given.value), str(given.value))
    return mapped(lora__precision=word)


def _keep(context: Context, given: Given) -> Answer:
    every, most = number(context.get("save_every_n_steps")), need_number(given.value)
    if every:
        return changed("steps there, a number of checkpoints here.", loop__keep_last=max(1, int(most // every)))
    return not_needed("it counts with --save_every_n_steps alone.")


def _cached(_context: Context, given: Given) -> Answer:
    """Options of the commands that make caches: the files are what matters."""
    places = {"cache.vae": "models.vae", "cache.t5": "models.text_encoder", "cache.clip": "models.clip_vision"}
    if given.key in places:
        return Answer("mapped", {places[given.key]: str(given.value)})
    return not_needed(CACHES)


def _cfg(_context: Context, _given: Given) -> Answer:
    return not_supported(
        "prompts of previews are in the workflow (Preview LoRA); while training, a caption of yours is used."
    )


def _i2v(_context: Context, given: Given) -> Answer:
    return not_needed("the model's file says what it is.") if truth(given.value) else not_needed("it is off.")


RULES: dict[str, Rule] = {
    **DATASET_RULES,
    "dit": _dit,
    "dit_high_noise": _dit,
    "task": _task,
    "fp8_base": _fp8,
    "fp8_scaled": _fp8,
    "mixed_precision": _mixed_precision,
    "timestep_sampling": _sampling,
    "discrete_flow_shift": _shift,
    "weighting_scheme": _weighting,
    "min_timestep": _window,
    "max_timestep": _window,
    "preserve_distribution_shape": _shape,
    "timestep_boundary": _boundary,
    "lr_scheduler": _scheduler,
    "lr_warmup_steps": _warmup,
    "lr_scheduler_min_lr_ratio": _min_ratio,
    "optimizer_type": _optimizer,
    "optimizer_args.betas": _betas,
    "network_module": _network,
    "gradient_checkpointing": gradient_checkpointing,
    "use_pinned_memory_for_block_swap": _pinned,
    "save_precision": _save_precision,
    "save_every_n_epochs": checkpoints_by_epoch,
    "save_last_n_steps": _keep,
    "sample_prompts": _cfg,
    **dict.fromkeys(("sdpa", "xformers", "flash_attn", "flash3", "sage_attn", "split_attn"), _attention),
    **dict.fromkeys(("compile", "dynamo_backend"), _compile),
    **{f"optimizer_args.{name}": to_number(f"optimizer.{name}") for name in ("weight_decay", "eps")},
    **dict.fromkeys(("cache.vae", "cache.t5", "cache.clip"), _cached),
}
