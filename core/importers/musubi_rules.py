"""What becomes of each option of musubi-tuner. Names that mean the same here stand in the declarations of core/settings."""

import math
import re
from typing import Any

from ..data.sample_prompts import line_of
from ..facts import NUM_TIMESTEPS
from . import samples
from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    CACHES,
    betas,
    gradient_checkpointing,
    need_number,
    schedule,
    to_number,
    window,
)
from .declared import choice_of, exists, number, truth
from .families import stage_of
from .musubi_data import DATASET_RULES
from .musubi_network import NETWORK_RULES
from .optimizers import CLASSES, Named, answer, arguments, of_class, said_by

# Its options of the optimizer, and ours.
_SAID = {
    "optimizer_args.weight_decay": ("weight_decay",),
    "optimizer_args.eps": ("eps",),
    "optimizer_args.betas": ("beta1", "beta2"),
}
_EVEN = {"timesteps.sampling": "uniform"}
_MIN_RATIO_READ = ("rex", "cosine_with_min_lr", "warmup_stable_decay")


def _dit(context: Context, given: SetupOption) -> Answer:
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


def _task(_context: Context, given: SetupOption) -> Answer:
    values = {"t2i-14B": "it is trained on pictures as T2V 14B."}
    return changed(values[given.value]) if given.value in values else mapped()


def _fp8(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if given.key == "fp8_base" and not truth(context.get("fp8_scaled", False)):
        # training/trainer_base.py casts every parameter to e4m3 then, norms and modulation too.
        return changed(
            "only the blocks' linear layers are fp8 here, each with a scale, which is nearer.", precision="fp8"
        )
    return mapped(precision="fp8")


def _mixed_precision(context: Context, given: SetupOption) -> Answer:
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


def _sampling(context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word == "sigma":
        # training/trainer_base.py: steps of a table that no shift moves, each as likely with weighting_scheme none.
        scheme = str(context.get("weighting_scheme", "none"))
        found = choice_of("timesteps.sampling", scheme) if scheme in ("logit_normal", "mode") else "uniform"
        if scheme == "logit_normal":
            if number(context.get("logit_mean", 0.0)):
                return changed("logit_normal is shift here, by exp(-logit_mean).", timesteps__sampling="shift")
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


def _as(key: str, value: Any) -> SetupOption:
    return SetupOption(key=key, name=key, value=value)


def _law(context: Context, given: SetupOption) -> Answer:
    """logit_mean and logit_std: of logsnr and qinglong_flux, and of weighting_scheme logit_normal with sigma."""
    sampling, scheme = str(context.get("timestep_sampling", "sigma")), str(context.get("weighting_scheme", "none"))
    value = float(need_number(given.value))
    if given.key == "mode_scale":
        is_used = sampling == "sigma" and scheme == "mode"
        return mapped(timesteps__mode_scale=value) if is_used else not_needed("its law is not used.")
    if sampling in ("logsnr", "qinglong_flux"):
        return Answer("mapped", {f"timesteps.{given.key.replace('logit', 'logsnr')}": value})
    if sampling != "sigma" or scheme != "logit_normal":
        return not_needed("its law is not used.")
    if given.key == "logit_std":
        return mapped(timesteps__sigmoid_scale=value)
    # training/trainer_base.py draws a place in a table that falls from 1000 to 1: a higher mean is less noise.
    why = "a shift of exp(-logit_mean) draws noise levels in the same way."
    return changed(why, timesteps__shift=math.exp(-value)) if value else mapped()


def _shift(context: Context, given: SetupOption) -> Answer:
    if context.get("timestep_sampling") != "shift":
        return not_needed("it has an effect with --timestep_sampling shift alone.")
    return mapped(timesteps__shift=float(need_number(given.value)))


def _weighting(_context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word in ("none", "logit_normal", "mode"):
        return not_needed("it gives every noise level the same weight.")
    found = choice_of("loss.weighting", word)
    return not_supported(f"there is no weighting {word} here.") if found is None else mapped(loss__weighting=found)


def _window(context: Context, given: SetupOption) -> Answer:
    ends = context.get("min_timestep"), context.get("max_timestep")
    found = window(context, given, *ends, of_thousand=True)
    if found.outcome != "mapped" or str(context.get("timestep_sampling")) != "sigma":
        return found
    # training/trainer_base.py: the ends are places in a table that falls from 1000 to 1, so that they change sides.
    low, high = (last if end is None else need_number(end) for end, last in zip(ends, (0, NUM_TIMESTEPS), strict=True))
    why = (
        f"with --timestep_sampling sigma musubi-tuner counts from the other end, and trains {NUM_TIMESTEPS - high:g} to"
        f" {NUM_TIMESTEPS - low:g}; here each expert is trained on its own noise levels."
    )
    return Answer("changed", found.values, why)


def _shape(context: Context, given: SetupOption) -> Answer:
    """training/trainer_base.py: drawn again until it lies in the window; without it the whole law is squeezed into it."""
    is_cut = truth(given.value)
    if _sampling(context, _as("timestep_sampling", context.get("timestep_sampling"))).values == _EVEN:
        return not_needed("with every noise level as likely it is the same either way.")
    if str(context.get("timestep_sampling")) == "sigma":
        why = "with --timestep_sampling sigma musubi-tuner does not read it, and squeezes all noise levels into the range."
        return either(why if is_cut else "", timesteps__window="squeezed")
    if exists("timesteps.window"):
        return mapped(timesteps__window="cut" if is_cut else "squeezed")
    if is_cut:
        return not_needed("the distribution is always cut to the expert's window, and keeps its shape.")
    return not_supported("the distribution is cut to the expert's window here, and not squeezed into it.")


def _boundary(_context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value)
    return mapped(boundary=found / 1000 if found > 1 else float(found))


def _scheduler(context: Context, given: SetupOption) -> Answer:
    if str(given.value).lower() == "rex" and not context.has("lr_scheduler_min_lr_ratio"):
        return changed("it ends at a hundredth of the learning rate.", schedule__kind="rex", schedule__floor=0.01)
    return schedule(given.value)


def _decay(context: Context, given: SetupOption) -> Answer:
    """Steps, or below 1 a share of all; ours is a share of those after the warm-up."""
    if context.get("lr_scheduler") != "warmup_stable_decay":
        return not_needed("lr_scheduler is not warmup_stable_decay.")
    found = float(need_number(given.value))
    steps = number(context.get("max_train_steps"))
    warmup = float(need_number(context.get("lr_warmup_steps", 0)))
    if (found >= 1 or warmup > 0) and not steps:
        return not_supported("which share of the run it is can't be told without --max_train_steps.")
    total = float(steps or 1)
    falling = found * total if found < 1 else found
    after = total - (warmup * total if warmup < 1 else warmup)
    if not 0 < falling <= after:
        return not_supported("it has no place after the warm-up.")
    share = round(falling / after, 6)
    return either("" if share == found else "a share of the steps after the warm-up.", schedule__decay_share=share)


def _warmup(context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value)
    if 0 < found < 1:
        steps = number(context.get("max_train_steps")) if context.has("max_train_steps") else None
        if steps is None:
            return not_supported("it is a share of the run, whose steps are not known: give a number of steps.")
        return changed("it is a share of the run.", schedule__warmup_steps=int(found * steps))
    return mapped(schedule__warmup_steps=int(found))


def _min_ratio(context: Context, given: SetupOption) -> Answer:
    value = float(need_number(given.value))
    word = str(context.get("lr_scheduler", "constant"))
    if word.startswith("constant"):
        return not_needed("the learning rate does not fall.")
    if word not in _MIN_RATIO_READ:
        # training/trainer_base.py: with others it is not handed on. polynomial ends at transformers' 1e-7.
        return changed(f"musubi-tuner leaves it out with {word}; here it counts.", schedule__floor=value)
    return mapped(schedule__floor=value)


def _named(context: Context) -> Named:
    """training/trainer_base.py, get_optimizer: three names in any case, else a class of torch.optim or of a package."""
    word = str(context.get("optimizer_type") or "adamw")
    if word.lower() == "adafactor":
        if truth(context.get("optimizer_args.relative_step", True)):
            return Named("adafactor", {}, "there it finds its learning rate unless relative_step=False is given.")
        return Named("adafactor", {"weight_decay": 0.0})
    return CLASSES[word.lower()] if word.lower() in ("adamw", "adamw8bit") else of_class(word)


def _optimizer(context: Context, given: SetupOption) -> Answer:
    return answer(_named(context), str(given.value), said_by(context, _SAID))


def _betas(_context: Context, given: SetupOption) -> Answer:
    return betas(given.value)


def _attention(_context: Context, _given: SetupOption) -> Answer:
    return changed("the fastest kind of attention that is installed and right is taken (memory.attention).")


def _pinned(_context: Context, given: SetupOption) -> Answer:
    return mapped(memory__stream_from="pinned") if truth(given.value) else not_needed("it is off.")


def _compile(_context: Context, _given: SetupOption) -> Answer:
    return changed("own kernels are used where Triton works (memory.compile), which is as fast for every size.")


def _save_precision(_context: Context, given: SetupOption) -> Answer:
    word = {"float": "fp32"}.get(str(given.value), str(given.value))
    return mapped(lora__precision=word)


def _keep(context: Context, given: SetupOption) -> Answer:
    every, most = number(context.get("save_every_n_steps")), need_number(given.value)
    if every:
        return changed("steps there, a number of checkpoints here.", loop__keep_last=max(1, int(most // every)))
    return not_needed("it counts with --save_every_n_steps alone.")


def _keep_epochs(context: Context, given: SetupOption) -> Answer:
    """utils/train_utils.py, get_remove_epoch_no: a number of files, where they are saved every so many epochs."""
    if number(context.get("save_every_n_epochs")):
        return mapped(loop__keep_last=max(1, need_number(given.value, is_whole=True)))
    return not_needed("it counts with --save_every_n_epochs alone.")


def _cached(_context: Context, given: SetupOption) -> Answer:
    """Options of the commands that make caches: the files are what matters."""
    places = {"cache.vae": "models.vae", "cache.t5": "models.text_encoder", "cache.clip": "models.clip_vision"}
    if given.key in places:
        return Answer("mapped", {places[given.key]: str(given.value)})
    return not_needed(CACHES)


def _sample_prompts(context: Context, _given: SetupOption) -> Answer:
    if context.has("prompts_file"):
        return changed("its lines are the sample prompts (samples.prompts).")
    return not_supported("it names a file of prompts: bring that file, too.")


def _prompt_line(context: Context, given: SetupOption) -> Answer:
    """hv_train_network.py, line_to_prompt_dict."""
    lines = [_PICTURES.sub("", str(item.value)) for item in context.given if item.key == "prompts_file"]
    entries = [line_of(line, f"line {number} of the prompts") for number, line in enumerate(lines, start=1)]
    for entry in entries:
        for name in ("width", "height", "frames"):
            if name in entry:
                entry[name] = samples.nearest(context, name, entry[name])
    answer = samples.prompts(entries)
    if not _PICTURES.search(str(given.value)):
        return answer
    return Answer(
        "changed", answer.values, "its picture is not used: previews get the first frame of one of your samples."
    )


def _i2v(_context: Context, given: SetupOption) -> Answer:
    return not_needed("the model's file says what it is.") if truth(given.value) else not_needed("it is off.")


_PICTURES = re.compile(r"\s--(?:i|ei|ci|cn|of|g)\s+\S+")  # of image-to-video and of other models

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
    "lr_decay_steps": _decay,
    **dict.fromkeys(("logit_mean", "logit_std", "mode_scale"), _law),
    "lr_scheduler_min_lr_ratio": _min_ratio,
    "optimizer_type": _optimizer,
    "optimizer_args.*": arguments("optimizer_args.", _named),
    "optimizer_args.betas": _betas,
    **NETWORK_RULES,
    "gradient_checkpointing": gradient_checkpointing,
    "use_pinned_memory_for_block_swap": _pinned,
    "save_precision": _save_precision,
    "save_last_n_steps": _keep,
    "save_last_n_epochs": _keep_epochs,
    "sample_prompts": _sample_prompts,
    "prompts_file": _prompt_line,
    **dict.fromkeys(("sdpa", "xformers", "flash_attn", "flash3", "sage_attn", "split_attn"), _attention),
    **dict.fromkeys(("compile", "dynamo_backend"), _compile),
    **{f"optimizer_args.{name}": to_number(f"optimizer.{name}") for name in ("weight_decay", "eps")},
    **dict.fromkeys(("cache.vae", "cache.t5", "cache.clip"), _cached),
}
