"""What becomes of each option of SimpleTuner. Names that mean the same here stand in the declarations of core/settings."""

import re
from dataclasses import replace
from typing import Any

from . import samples
from .answers import Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    CACHES,
    NO_UPLOAD,
    PLAN,
    gradient_checkpointing,
    is_off,
    need_number,
    precision_8_or_4_bit,
    schedule,
    to_number,
)
from .declared import by_declaration, choice_of, declared, number, truth
from .families import family_of
from .optimizers import Named, answer, arguments, said_by, unread
from .simpletuner_data import DATASET_RULES
from .simpletuner_forwards import FORWARD_RULES
from .simpletuner_lycoris import LYCORIS_RULES, lora_type, lycoris_goes_first, use_dora

# helpers/training/optimizer_param.py: its names, and what each takes where optimizer_config says nothing.
_EPS = {"eps": 1e-6}
_LION = {"beta2": 0.99, "weight_decay": 0.0}
_ADAMW = {"beta2": 0.99, "eps": 1e-6, "weight_decay": 0.0}  # optimi's
_ADAM = "Adam without weight decay, which is AdamW without it."
_OPTIMIZERS = {
    "adamw_bf16": Named("adamw", _EPS, "the LoRA is fp32 here."),
    "torch-adam": Named("adamw", {"weight_decay": 0.0}, _ADAM),
    "torch-adamw": Named("adamw"),
    "torch-adafactor": Named("custom", {"weight_decay": 0.0}, "it is used by its class.", "torch.optim.Adafactor"),
    "optimi-adam": Named("adamw", _ADAMW, _ADAM),
    "optimi-adamw": Named("adamw", _ADAMW),
    "optimi-stableadamw": Named("adamw", {**_ADAMW, "weight_decay": 0.01}, "without its limit of each update."),
    "optimi-lion": Named("lion", _LION),
    "bnb-adam": Named("adamw", {"weight_decay": 0.0}, _ADAM),
    "bnb-adam8bit": Named("adamw8bit", {"weight_decay": 0.0}, _ADAM),
    "bnb-adamw": Named("adamw", _EPS),
    "bnb-adamw-paged": Named("paged_adamw", _EPS),
    "bnb-adamw8bit": Named("adamw8bit", _EPS),
    "bnb-adamw8bit-paged": Named("paged_adamw8bit", _EPS),
    "ao-adamw8bit": Named("adamw8bit", _EPS, "bitsandbytes' 8 bits in place of torchao's."),
    "bnb-lion": Named("lion", _LION),
    "bnb-lion-paged": Named("paged_lion", _LION),
    "bnb-lion8bit": Named("lion8bit", _LION),
    "bnb-lion8bit-paged": Named("paged_lion8bit", _LION),
    "bnb-ademamix": Named("ademamix"),
    "bnb-ademamix8bit": Named("ademamix8bit"),
    "bnb-ademamix-paged": Named("ademamix", {}, "its state stays in GPU memory here."),
    "bnb-ademamix8bit-paged": Named("ademamix8bit", {}, "its state stays in GPU memory here."),
    "adamw_schedulefree": Named("schedulefree"),
    "prodigy": Named("prodigy", _LION, "the original Prodigy here, ProdigyPlusScheduleFree there."),
    **{
        f"torch-{name.lower()}": Named(
            "custom", {"weight_decay": 0.0}, "it is used by its class.", f"torch.optim.{name}"
        )
        for name in ("SGD", "RAdam", "NAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "ASGD")
    },
}
_SAID = {
    "optimizer_config.weight_decay": ("weight_decay",),
    "optimizer_config.eps": ("eps",),
    "optimizer_beta1": ("beta1",),
    "optimizer_beta2": ("beta2",),
}
# What it sets for a flavour of one expert (WAN_STAGE_OVERRIDES of helpers/models/wan/model.py).
_OF_STAGES = {
    "flow_schedule_shift": 5.0,
    "validation_num_inference_steps": 40,
    "validation_guidance": 3.5,
}
_SHIFTED = ("shifted_uniform", "uniform_shift")
_SAMPLERS = {"unipc": "uni_pc", "dpm++": "dpmpp_2m", "flow_matching": "euler"}
_LOSSES = {"l2": "mse", "huber": "pseudo_huber", "smooth_l1": "soft_l1"}  # helpers/models/common.py


def _alpha(context: Context, given: SetupOption) -> Answer:
    rank = float(need_number(context.get("lora_rank", 16)))
    return mapped(adapter__alpha=rank if given.value is None else float(need_number(given.value)))


def _targets(_context: Context, given: SetupOption) -> Answer:
    """helpers/models/wan: to_q, to_k, to_v and to_out of both attentions, and no feed-forward."""
    words = " ".join(given.value) if isinstance(given.value, list) else str(given.value)
    parts = []
    if "attn1" in words or ("attn2" not in words and "to_" in words):
        parts.append("self_attn")
    if "attn2" in words or ("attn1" not in words and "to_" in words):
        parts.append("cross_attn")
    if "ffn" in words or "all-linear" in words:
        parts.append("ffn")
    if "all-linear" in words:
        parts = ["self_attn", "cross_attn", "ffn"]
    if not parts:
        return not_supported("a LoRA is put on whole parts of blocks here (adapter.targets).")
    return mapped(adapter__targets=parts)


def _steps(_context: Context, given: SetupOption) -> Answer:
    found = 0 if is_off(given.value) else need_number(given.value, is_whole=True)
    return mapped(loop__steps=found) if found > 0 else not_needed("num_train_epochs says how long.")


def _epochs(context: Context, given: SetupOption) -> Answer:
    found = 0 if is_off(given.value) else need_number(given.value, is_whole=True)
    if found <= 0:
        return not_needed("max_train_steps says how long.")
    if (number(context.get("max_train_steps")) or 0) > 0:
        return not_needed("max_train_steps says how long.")
    return mapped(epochs=found)


def _base_precision(_context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    if word == "no_change":
        return mapped(precision="bf16")
    found = precision_8_or_4_bit(word)
    if not found:
        return not_supported(f"there is no {word} here.")
    exact = word.startswith(("int8", "fp8", "nf4"))
    return either("" if exact else f"the nearest is {found}.", precision=found)


def _mixed(_context: Context, given: SetupOption) -> Answer:
    return (
        not_needed("the model computes in bf16.")
        if given.value == "bf16"
        else changed("the model computes in bf16 here.")
    )


def _named(context: Context) -> Named | None:
    return _OPTIMIZERS.get(str(context.get("optimizer")).lower())


def _optimizer(context: Context, given: SetupOption) -> Answer:
    return answer(_named(context), str(given.value), said_by(context, _SAID))


def _loss(_context: Context, given: SetupOption) -> Answer:
    found = _LOSSES.get(str(given.value))
    return (
        not_supported(f"there is no loss {given.value} here: mse is taken.")
        if found is None
        else mapped(loss__kind=found)
    )


def _huber(context: Context, given: SetupOption) -> Answer:
    if context.get("loss_type", "l2") not in ("huber", "smooth_l1"):
        return not_needed("loss_type has no use for it.")
    return by_declaration("simpletuner", given.key, given.value)


def _scheduler(_context: Context, given: SetupOption) -> Answer:
    return schedule(given.value)


def _lr_end(context: Context, given: SetupOption) -> Answer:
    rate = need_number(context.get("learning_rate", 4e-7))
    return changed(
        "a learning rate there, a share of the highest here.", schedule__floor=min(1.0, need_number(given.value) / rate)
    )


def _clip_place() -> str:
    found = declared("simpletuner", "grad_clip_method")
    return found[0].place if len(found) == 1 else ""


def _clip_method(_context: Context, given: SetupOption) -> Answer:
    word = str(given.value)
    place = _clip_place()
    if place:
        chosen = choice_of(place, word)
        return not_supported(f"there is no {word} here.") if chosen is None else Answer("mapped", {place: chosen})
    if word == "norm":
        return mapped()
    return not_supported("single values of a gradient are not cut here, its length is (optimizer.max_grad_norm).")


def _max_grad_norm(context: Context, given: SetupOption) -> Answer:
    """With grad_clip_method value, its own default, it is the largest value of a gradient, and no length."""
    found = float(need_number(given.value))
    if context.get("grad_clip_method") == "value" and not _clip_place():
        return not_supported(
            "it is the largest value of a gradient there (grad_clip_method value); its length is cut at 1."
        )
    return mapped(optimizer__max_grad_norm=found)


def _shift_of(context: Context) -> float:
    """The shift that is trained with; 0: none."""
    if context.facts.get("stage"):
        return _OF_STAGES["flow_schedule_shift"]
    return number(context.get("flow_schedule_shift")) or 0


def _of_stages(inner: Rule) -> Rule:
    """helpers/models/wan/model.py: a flavour of one expert sets these itself, whatever the configuration says."""

    def rule(context: Context, given: SetupOption) -> Answer:
        own = _OF_STAGES[given.key]
        if not context.facts.get("stage") or number(given.value) == own:
            return inner(context, given)
        found = inner(context, replace(given, value=own))
        return Answer("changed", found.values, f"with this model_flavour SimpleTuner always takes {own:g}.")

    return rule


def _by_name(_context: Context, given: SetupOption) -> Answer:
    return by_declaration("simpletuner", given.key, given.value)


def _uniform(context: Context, given: SetupOption) -> Answer:
    shift = _shift_of(context)
    if truth(given.value):  # with the shift, as `_shift` has it: of two options with one place the later counts
        shifted = choice_of("timesteps.sampling", *_SHIFTED) if shift > 0 else None
        return mapped(timesteps__sampling=shifted or "uniform")
    if truth(context.get("flow_use_beta_schedule", False)):
        return not_needed("flow_use_beta_schedule is on.")
    if shift > 0 and shift != 1:
        return mapped(timesteps__sampling="shift")
    by_size = shift <= 0 and truth(context.get("flow_schedule_auto_shift", False))
    return mapped(timesteps__sampling="auto_shift" if by_size else "sigmoid")


def _shift(context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value)
    if truth(context.get("flow_use_uniform_schedule", False)):
        place = choice_of("timesteps.sampling", *_SHIFTED)
        if place is not None and found > 0:
            return mapped(timesteps__sampling=place, timesteps__shift=float(found))
        return not_supported("uniform noise levels are not shifted here.")
    return mapped(timesteps__shift=float(found)) if found > 0 else not_needed("it is off.")


def _beta_schedule(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if truth(context.get("flow_use_uniform_schedule", False)):
        return not_needed("flow_use_uniform_schedule is on, and goes first.")
    found = choice_of(
        "timesteps.sampling", "shifted_beta" if _shift_of(context) > 0 and _shift_of(context) != 1 else "beta"
    )
    return (
        not_supported("there is no such law of noise levels here.")
        if found is None
        else mapped(timesteps__sampling=found)
    )


def _auto_shift(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if _shift_of(context) > 0:
        return not_needed("flow_schedule_shift is given, and goes first.")
    for other in ("flow_use_uniform_schedule", "flow_use_beta_schedule"):
        if truth(context.get(other, False)):
            return not_supported(f"a shift that follows the size goes with the sigmoid alone here, not with {other}.")
    found = choice_of("timesteps.sampling", "auto_shift", "resolution_shift", "shift_by_resolution", "flux_shift")
    if found is None:
        return not_supported("the shift does not follow the size here: set timesteps.shift.")
    return changed("the shift has a limit for clips here.", timesteps__sampling=found)


def _model_name(context: Context, given: SetupOption) -> Answer:
    path = str(given.value)
    if path.endswith((".safetensors", ".gguf")) and given.key == "pretrained_transformer_model_name_or_path":
        stage = context.facts.get("stage") or "single"
        return Answer("mapped", {f"models.{stage}": path})
    if path.endswith((".safetensors", ".pth")) and given.key == "pretrained_vae_model_name_or_path":
        return mapped(models__vae=path)
    known = "it says which model is trained." if family_of(path) else "it is a repository of Hugging Face."
    return changed(f"{known} Here models are files, which you name under [models].")


def _preview_size(context: Context, given: SetupOption) -> Answer:
    sides = [number(part) for part in str(given.value).lower().split(",")[0].split("x")]
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or not sides[0] or not sides[1]:
        return not_supported("it is no size in pixels.")
    return samples.sizes_of(context, width=sides[0], height=sides[1])


def _entries(context: Context) -> list[dict[str, Any]]:
    """The prompt of config.json, and those of the library (helpers/training/validation.py)."""
    own = str(context.get("validation_prompt") or "").strip()
    found: list[dict[str, Any]] = [{"name": "validation", "prompt": own}] if own else []
    return found + [
        {"name": item.name, "prompt": str(item.value)} for item in context.given if item.key == "prompt_library"
    ]


def _prompts(context: Context, given: SetupOption) -> Answer:
    if not str(given.value or "").strip():
        return not_needed("it is empty.")
    keys = ("validation_prompt", "prompt_library")
    return samples.told_once(context, given, keys, samples.prompts(_entries(context)))


def _negative(context: Context, given: SetupOption) -> Answer:
    return samples.negative(bool(_entries(context)), str(given.value or ""))


def _library_file(context: Context, _given: SetupOption) -> Answer:
    if context.has("prompt_library"):
        return changed("its prompts are the sample prompts (samples.prompts).")
    return not_supported("it names a file of prompts: bring that file, too.")


def _skipped(_context: Context, given: SetupOption) -> Answer:
    blocks = re.findall(r"\d+", str(given.value))
    if not blocks:
        return not_needed("no layer is left out.")
    return mapped(previews__skip_layers=", ".join(blocks))


def _sampler(_context: Context, given: SetupOption) -> Answer:
    found = choice_of("previews.sampler", _SAMPLERS.get(str(given.value), str(given.value)))
    if found is None:
        return not_supported(f"there is no {given.value} for previews here: euler is taken.")
    return mapped(previews__sampler=found)


def _steps_between(_context: Context, given: SetupOption) -> Answer:
    return mapped(previews__every=need_number(given.value, is_whole=True))


def _keep(_context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value, is_whole=True)
    return (
        mapped(loop__keep_last=found) if found > 0 else not_supported("at least one checkpoint is kept, and not all.")
    )


def _hub_name(_context: Context, given: SetupOption) -> Answer:
    """The only name that a configuration has for what it makes."""
    name = str(given.value).rpartition("/")[2]
    return changed(f"it is the LoRA's name; {NO_UPLOAD}", name=name) if name else not_needed("it is empty.")


def _output(_context: Context, given: SetupOption) -> Answer:
    return mapped(lora__folder=str(given.value))


def _cache_dataset(_context: Context, _given: SetupOption) -> Answer:
    return not_needed(CACHES)


RULES: dict[str, Rule] = {
    **DATASET_RULES,
    **LYCORIS_RULES,
    **FORWARD_RULES,
    "lora_alpha": lycoris_goes_first(_alpha),
    "lora_rank": lycoris_goes_first(),
    "lora_dropout": lycoris_goes_first(),
    "lora_type": lora_type,
    "use_dora": use_dora,
    "peft_lora_target_modules": lycoris_goes_first(_targets),
    "max_train_steps": _steps,
    "num_train_epochs": _epochs,
    "base_model_precision": _base_precision,
    "mixed_precision": _mixed,
    "optimizer": _optimizer,
    "optimizer_config.*": arguments("optimizer_config.", _named),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "adam_epsilon", "adam_weight_decay"),
        unread("SimpleTuner reads it with DeepSpeed alone: the optimizer's own values count."),
    ),
    "loss_type": _loss,
    **dict.fromkeys(("huber_c", "huber_schedule"), _huber),
    "optimizer_config.weight_decay": to_number("optimizer.weight_decay"),
    "optimizer_config.eps": to_number("optimizer.eps"),
    "optimizer_beta1": to_number("optimizer.beta1"),
    "optimizer_beta2": to_number("optimizer.beta2"),
    "lr_scheduler": _scheduler,
    "lr_end": _lr_end,
    "grad_clip_method": _clip_method,
    "max_grad_norm": _max_grad_norm,
    "flow_use_uniform_schedule": _uniform,
    "flow_use_beta_schedule": _beta_schedule,
    "flow_schedule_shift": _of_stages(_shift),
    "validation_num_inference_steps": _of_stages(_by_name),
    "validation_guidance": _of_stages(_by_name),
    "flow_schedule_auto_shift": _auto_shift,
    "gradient_checkpointing": gradient_checkpointing,
    "pretrained_model_name_or_path": _model_name,
    "pretrained_transformer_model_name_or_path": _model_name,
    "pretrained_vae_model_name_or_path": _model_name,
    "pretrained_t5_model_name_or_path": _model_name,
    "validation_step_interval": _steps_between,
    "validation_steps": _steps_between,
    "validation_prompt": _prompts,
    "validation_negative_prompt": _negative,
    "validation_seed": samples.seed,
    "validation_noise_scheduler": _sampler,
    "validation_num_video_frames": samples.size("frames"),
    "validation_resolution": _preview_size,
    "validation_guidance_skip_layers": _skipped,
    "prompt_library": _prompts,
    "user_prompt_library": _library_file,
    "checkpoints_total_limit": _keep,
    "checkpointing_steps": to_number("loop.checkpoint_every", is_whole=True),
    "output_dir": _output,
    "hub_model_id": _hub_name,
    **dict.fromkeys(
        tuple(
            f"cache.{name}"
            for name in ("id", "type", "dataset_type", "default", "cache_dir", "disabled", "write_batch_size")
        ),
        _cache_dataset,
    ),
    "feed_forward_chunk_size": lambda _context, _given: not_needed(PLAN),
    "attention_mechanism": lambda _context, _given: changed(
        "the fastest kind of attention that is installed and right is taken (memory.attention)."
    ),
    "dynamo_backend": lambda _context, _given: not_needed("own kernels are used where Triton works (memory.compile)."),
}
