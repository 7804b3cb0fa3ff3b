"""What becomes of each option of diffusion-pipe. Names that mean the same here stand in the declarations of core/settings."""

from ..words import counted
from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    betas,
    checkpoints_by_time,
    gradient_checkpointing,
    is_off,
    need_number,
    precision_8_or_4_bit,
    repeats,
    schedule,
    window,
)
from .declared import choice_of, exists, frames, number, truth
from .families import family_of
from .optimizers import OPTIMI, Named, answer, arguments, of_class, said_by
from .sizes import sizes

_OPTIMIZERS = {
    "adamw": Named("adamw"),
    "adamw8bit": Named("adamw8bit"),
    "adamw_optimi": Named("adamw", OPTIMI),
    "stableadamw": Named("adamw", OPTIMI, "without its limit of each update."),
    "adamw8bitkahan": Named("adamw8bit", {}, "the LoRA is fp32 here, so that no Kahan sum is needed."),
    "offload": Named("adamw"),
    "sgd": Named("custom", {"weight_decay": 0.0}, "it is used by its class.", "torch.optim.SGD"),
}
_NO_ARGUMENTS = ("type", "stabilize", "gradient_release", "beta2_half_life")
_OWN_CODE = ("automagic", "genericoptim")
_SAID = {
    "optimizer.weight_decay": ("weight_decay",),
    "optimizer.eps": ("eps",),
    "optimizer.betas": ("beta1", "beta2"),
}


def _resolutions(_context: Context, given: SetupOption) -> Answer:
    """Sides of squares, or (width, height), whose area counts; the same files at each of them."""
    values = given.value if isinstance(given.value, list) else [given.value]
    return sizes(values)


def _ar_bucket(_context: Context, given: SetupOption) -> Answer:
    return mapped(dataset__aspect_buckets=truth(given.value))


def _ar_limits(context: Context, given: SetupOption) -> Answer:
    if given.key == "ar_buckets" and (answer := _ar_list(given)) is not None:
        return answer
    if not truth(context.get("enable_ar_bucket", False, given.dataset)):
        return not_needed("enable_ar_bucket is off.")
    return changed("there is a bucket for every aspect ratio of your files.")


def _ar_list(given: SetupOption) -> Answer | None:
    """Aspect ratios by name, as numbers or as (width, height); None where a recipe has no such list."""
    if not exists("dataset.crop_aspects") or not isinstance(given.value, list) or not given.value:
        return None
    words = [":".join(f"{x:g}" for x in one) if isinstance(one, list) else f"{one:g}" for one in given.value]
    return mapped(dataset__crop_aspects=", ".join(words))


def _frame_buckets(_context: Context, given: SetupOption) -> Answer:
    """A clip goes to the longest bucket that it fills, and is cut to it; pictures are 1 frame. Too short ones are dropped."""
    counts = [
        need_number(one, is_whole=True) for one in (given.value if isinstance(given.value, list) else [given.value])
    ]
    if not counts:
        return not_supported("it is empty.")
    most = frames(max(counts))
    clips = [count for count in counts if count > 1]
    if len(clips) > 1:
        return changed(
            f"clips have {counted(most, 'frame')}, and shorter ones as many as they have.",
            dataset__num_frames=most,
            dataset__short_clips="shorten",
        )
    return either(
        "" if most == max(counts) else "Wan takes 4n+1 frames.", dataset__num_frames=most, dataset__short_clips="skip"
    )


def _clip_mode(_context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word == "single_beginning":
        return mapped(dataset__frame_sampling="head")
    found = choice_of("dataset.frame_sampling", word, *({"single_middle": ("middle", "center")}.get(word, ())))
    if found is not None:
        return mapped(dataset__frame_sampling=found)
    return not_supported(f"there is no {word} here: the first frames of a clip are taken.")


def _repeats(_context: Context, given: SetupOption) -> Answer:
    return repeats(given.value)


def _shuffle(_context: Context, given: SetupOption) -> Answer:
    """utils/dataset.py: so many captions with their tags in another order, beside each other in the cache."""
    count = 1 if given.value is True else 0 if is_off(given.value) else need_number(given.value, is_whole=True)
    if count < 1:
        return not_needed("it is off.")
    if not exists("dataset.shuffle_tags"):
        return not_supported("captions are not shuffled here.")
    if given.key == "shuffle_tags" or not exists("dataset.caption_variants"):
        return mapped(dataset__shuffle_tags=True)
    return mapped(dataset__shuffle_tags=True, dataset__caption_variants=count)


def _prefix(_context: Context, given: SetupOption) -> Answer:
    text = str(given.value or "")
    word = text.strip(" ,.;:")
    if not word:
        return not_needed("it is empty.")
    return changed("it is put in front of captions that lack it.", dataset__trigger_word=word)


def _model_type(_context: Context, _given: SetupOption) -> Answer:
    return not_needed("the model's file says what it is.")


def _transformer(context: Context, given: SetupOption) -> Answer:
    stage = context.facts.get("stage") or ("single" if not context.facts.get("has_experts") else None)
    if stage is None:
        return not_supported("which expert the file is can't be told from its name, or from min_t and max_t.")
    return Answer("mapped", {f"models.{stage}": str(given.value)})


def _checkpoint(_context: Context, given: SetupOption) -> Answer:
    known = "it says which model is trained. " if family_of(str(given.value)) else ""
    return changed(f"{known}A folder of the official code there; here files, which you name under [models].")


def _transformer_dtype(_context: Context, given: SetupOption) -> Answer:
    found = precision_8_or_4_bit(str(given.value))
    if found:
        return mapped(precision=found)
    return mapped(precision="bf16") if given.value == "bfloat16" else not_supported(f"there is no {given.value} here.")


def _dtype(context: Context, given: SetupOption) -> Answer:
    if context.has("model.transformer_dtype"):
        return not_needed("transformer_dtype says how the model is held, and it computes in bf16.")
    words = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    found = words.get(str(given.value))
    return not_supported(f"there is no {given.value} here.") if found is None else mapped(precision=found)


def _sample_method(context: Context, given: SetupOption) -> Answer:
    """models/wan/wan.py: logit_normal is the sigmoid of a normal number; a shift comes on top of either, shift first."""
    has_shift = bool(number(context.get("model.shift")))
    if truth(context.get("model.flux_shift", False)) and not has_shift:
        if given.value == "uniform":
            return not_supported("a shift that follows the size goes with logit_normal alone here.")
        found = choice_of("timesteps.sampling", "flux_shift")
        return (
            not_supported("the shift does not follow the size here.")
            if found is None
            else mapped(timesteps__sampling=found)
        )
    if given.value == "uniform":
        if not has_shift:
            return mapped(timesteps__sampling="uniform")
        found = choice_of("timesteps.sampling", "shifted_uniform", "uniform_shift")
        return (
            not_supported("uniform noise levels are not shifted here.")
            if found is None
            else mapped(timesteps__sampling=found)
        )
    if given.value != "logit_normal":
        return not_supported(f"there is no {given.value} here.")
    return mapped(timesteps__sampling="shift" if has_shift else "sigmoid")


def _window(context: Context, given: SetupOption) -> Answer:
    return window(context, given, context.get("model.min_t"), context.get("model.max_t"), of_thousand=False)


def _window_elsewhere(_context: Context, _given: SetupOption) -> Answer:
    """A known trap: only under [model] does diffusion-pipe read it."""
    return not_needed("diffusion-pipe reads it under [model] alone, so it had no effect.")


def _adapter_type(_context: Context, given: SetupOption) -> Answer:
    if given.value == "lora":
        return mapped()
    kind = choice_of("adapter.kind", str(given.value))
    return (
        not_supported(f"{given.value} can't be trained here, a LoRA is.")
        if kind is None
        else mapped(adapter__kind=kind)
    )


def _alpha(context: Context, _given: SetupOption) -> Answer:
    return mapped(adapter__alpha=float(need_number(context.get("adapter.rank", 16))))


def _named(context: Context) -> Named | None:
    """train.py: a name of its own, else a class of the package pytorch_optimizer."""
    word = str(context.get("optimizer.type"))
    if word.lower() in _OWN_CODE:
        return None
    return _OPTIMIZERS.get(word.lower()) or of_class(word, package="pytorch_optimizer")


def _optimizer(context: Context, given: SetupOption) -> Answer:
    return answer(_named(context), str(given.value), said_by(context, _SAID))


def _huber(context: Context, given: SetupOption) -> Answer:
    """models/base.py: huber_delta goes first."""
    width = float(need_number(given.value))
    if given.key == "smooth_l1_beta":
        if context.has("huber_delta"):
            return not_needed("huber_delta is given, and goes first.")
        return mapped(loss__kind="smooth_l1", loss__huber_delta=width)
    return mapped(loss__kind="huber", loss__huber_delta=width)


def _betas(_context: Context, given: SetupOption) -> Answer:
    return betas(given.value)


def _scheduler(context: Context, given: SetupOption) -> Answer:
    """train.py: linear falls to 0, cosine to a learning rate of 1e-6, over all epochs."""
    found = schedule(given.value)
    if given.value == "cosine" and found.values:
        lowest = min(1.0, 1e-6 / float(need_number(context.get("optimizer.lr", 1.0))))
        return changed("it ends at a learning rate of 1e-6.", schedule__kind="cosine", schedule__floor=lowest)
    if given.value != "constant" and found.values and context.has("max_steps"):
        return changed("over the epochs there; here over max_steps.", schedule__kind=found.values["schedule.kind"])
    return found


def _epochs(context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value, is_whole=True)
    if context.has("max_steps"):
        return not_needed("max_steps ends the run, in all likelihood before so many epochs.")
    return mapped(epochs=found)


def _batch_size(_context: Context, given: SetupOption) -> Answer:
    if isinstance(given.value, list):
        found = [number(pair[1]) for pair in given.value if isinstance(pair, list) and len(pair) == 2]
        whole = [int(one) for one in found if one]
        if not whole:
            return not_supported("it is no list of pairs.")
        return changed("a size for all resolutions: the smallest.", loop__batch_size=min(whole))
    return mapped(loop__batch_size=need_number(given.value, is_whole=True))


def _image_batch(context: Context, given: SetupOption) -> Answer:
    if number(given.value) == number(context.get("micro_batch_size_per_gpu", 1)):
        return not_needed("it is the same as for clips.")
    return not_supported("pictures and clips have one batch_size; loop.token_budget makes batches of clips smaller.")


def _activation(context: Context, given: SetupOption) -> Answer:
    if given.value == "unsloth":
        return mapped(memory__offload_inputs=True)
    return gradient_checkpointing(context, given)


def _checkpoint_epochs(context: Context, given: SetupOption) -> Answer:
    """A LoRA and a state to go on from are one thing here; where both rhythms are given, that of the LoRAs counts."""
    if context.get("save_every_n_epochs"):
        return not_needed("save_every_n_epochs says how often: a checkpoint holds both, LoRA and state.")
    return mapped(saving__every_epochs=need_number(given.value, is_whole=True))


def _save_dtype(_context: Context, given: SetupOption) -> Answer:
    words = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    return mapped(lora__precision=words.get(str(given.value), str(given.value)))


def _compile(_context: Context, _given: SetupOption) -> Answer:
    return not_needed("own kernels are used where Triton works (memory.compile), which is as fast for every size.")


def _flux_shift(context: Context, given: SetupOption) -> Answer:
    """timestep_sample_method reads it, and has a default."""
    if not truth(given.value):
        return not_needed("it is off.")
    if number(context.get("model.shift")):
        return not_needed("shift is given, and goes first.")
    if context.get("model.timestep_sample_method") == "uniform":
        return not_supported("a shift that follows the size goes with logit_normal alone here.")
    return mapped(timesteps__sampling="flux_shift")


def _eval_sets(_context: Context, given: SetupOption) -> Answer:
    if is_off(given.value):
        return not_needed("there is none.")
    return not_supported("the held-out loss is of samples that a dataset holds out (dataset.held_out).")


RULES: dict[str, Rule] = {
    "resolutions": _resolutions,
    "enable_ar_bucket": _ar_bucket,
    **dict.fromkeys(("min_ar", "max_ar", "num_ar_buckets", "ar_buckets"), _ar_limits),
    "frame_buckets": _frame_buckets,
    "video_clip_mode": _clip_mode,
    "num_repeats": _repeats,
    "caption_prefix": _prefix,
    "cache_shuffle_num": _shuffle,
    "shuffle_tags": _shuffle,
    "model.type": _model_type,
    "model.transformer_path": _transformer,
    "model.ckpt_path": _checkpoint,
    "model.transformer_dtype": _transformer_dtype,
    "model.dtype": _dtype,
    "model.timestep_sample_method": _sample_method,
    "model.flux_shift": _flux_shift,
    "model.min_t": _window,
    "model.max_t": _window,
    "min_t": _window_elsewhere,
    "max_t": _window_elsewhere,
    "adapter.type": _adapter_type,
    "adapter.alpha": _alpha,
    "optimizer.type": _optimizer,
    "optimizer.beta2_half_life": lambda _context, _given: not_supported("beta2 is a number here: set optimizer.beta2."),
    "optimizer.*": arguments("optimizer.", _named, without=_NO_ARGUMENTS),
    **dict.fromkeys(("huber_delta", "smooth_l1_beta"), _huber),
    "optimizer.betas": _betas,
    "lr_scheduler": _scheduler,
    "epochs": _epochs,
    "micro_batch_size_per_gpu": _batch_size,
    "image_micro_batch_size_per_gpu": _image_batch,
    "activation_checkpointing": _activation,
    "reentrant_activation_checkpointing": gradient_checkpointing,
    "save_dtype": _save_dtype,
    "checkpoint_every_n_epochs": _checkpoint_epochs,
    "checkpoint_every_n_minutes": checkpoints_by_time,
    "compile": _compile,
    "eval_datasets": _eval_sets,
}
