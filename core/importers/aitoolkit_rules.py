"""What becomes of each option of AI-Toolkit. Names that mean the same here stand in the declarations of core/settings."""

import re
from typing import Any

from ..settings.samples import MOST_PROMPTS
from . import samples
from .aitoolkit_data import DATASET_RULES, lora_strength
from .aitoolkit_optimizer import OPTIMIZER_RULES
from .answers import PREVIEW, Answer, Context, Rule, SetupOption, changed, either, mapped, not_needed, not_supported
from .common import (
    PLAN,
    gradient_checkpointing,
    is_off,
    need_number,
    precision_8_or_4_bit,
)
from .declared import by_declaration, choice_of, exists, fit, number, options_by_place, truth
from .layers import layers_with


def _linear(_context: Context, given: SetupOption) -> Answer:
    return mapped(adapter__rank=need_number(given.value, is_whole=True))


def _alpha(context: Context, given: SetupOption) -> Answer:
    """toolkit/lora_special.py: "no alpha for peft", it is the rank, whatever the file says."""
    rank = float(need_number(context.get("network.linear", 4)))
    given_alpha = number(given.value)
    why = "" if given_alpha in (None, rank) else f"AI-Toolkit leaves it out: its LoRA has the rank for alpha, {rank:g}."
    strength = lora_strength(context)
    if strength != 1:
        why = f"AI-Toolkit has the rank for alpha, {rank:g}, and its network_weight multiplies that by {strength:g}."
    return either(why, adapter__alpha=rank * strength)


def _type(_context: Context, given: SetupOption) -> Answer:
    word = str(given.value).lower()
    if word == "lora":
        return mapped()
    kind = choice_of("adapter.kind", word)
    return not_supported(f"{word} can't be trained here, a LoRA is.") if kind is None else mapped(adapter__kind=kind)


def _words(value: Any) -> list[str]:
    """A list of texts, or one, as toolkit/lora_special.py takes it."""
    return [str(each) for each in (value if isinstance(value, list) else [value]) if str(each)]


def _only_if(_context: Context, given: SetupOption) -> Answer:
    if is_off(given.value):
        return not_needed("it is empty.")
    found = layers_with(_words(given.value))
    if not found.patterns:
        return not_supported("no layer of a block has such a name.")
    if found.parts:
        return changed("the parts of the blocks that it names.", adapter__targets=list(found.parts))
    return changed("as patterns, by the names that layers have here.", adapter__include="\n".join(found.patterns))


def _ignore_if(_context: Context, given: SetupOption) -> Answer:
    if is_off(given.value):
        return not_needed("it is empty.")
    found = layers_with(_words(given.value))
    if not found.patterns:
        return not_needed("no layer of a block has such a name.")
    return changed("as patterns, by the names that layers have here.", adapter__exclude="\n".join(found.patterns))


def _factor(_context: Context, given: SetupOption) -> Answer:
    """toolkit/models/lokr.py: -1 is what 0 is here."""
    return mapped(adapter__lokr_factor=max(0, need_number(given.value, is_whole=True)))


def _steps(context: Context, given: SetupOption) -> Answer:
    """extensions_built_in/sd_trainer/SDTrainer.py: steps count both experts, which take turns."""
    found = need_number(given.value, is_whole=True)
    if context.facts.get("has_experts") and context.facts.get("stage") is None:
        half = max(1, found // 2)
        return changed(f"AI-Toolkit counts both experts' steps: {half} for each.", loop__steps=half)
    return mapped(loop__steps=found)


def _switch(context: Context, given: SetupOption) -> Answer:
    """extensions_built_in/sd_trainer/SDTrainer.py: after so many steps the other expert trains, where both are trained."""
    if not context.facts.get("has_experts") or context.facts.get("stage") is not None:
        return not_needed("one model is trained, so that nothing is switched.")
    batches = max(number(context.get(f"train.gradient_accumulation{end}")) or 1 for end in ("", "_steps"))  # of a step
    why = "AI-Toolkit counts batches, so that an expert may change within a step; here whole steps are counted."
    return either(why if batches > 1 else "", alternate_every=need_number(given.value, is_whole=True))


def _accumulation(context: Context, given: SetupOption) -> Answer:
    found = need_number(given.value, is_whole=True)
    if given.key.endswith("_steps") and context.has("train.gradient_accumulation"):
        return not_needed("gradient_accumulation says it.")
    return mapped(loop__gradient_accumulation=found)


def _timestep_type(context: Context, given: SetupOption) -> Answer:
    """toolkit/samplers/custom_flowmatch_sampler.py: tables of timesteps; the shift is 5 for Wan 2.2 and 3 for 2.1."""
    word = str(given.value)
    if word == "linear":
        return mapped(timesteps__sampling="uniform")
    if word == "sigmoid":
        return mapped(timesteps__sampling="sigmoid")
    if word == "weighted":
        weighting = choice_of("loss.weighting", "weighted")
        if weighting is None:
            return not_supported("noise levels have no such weights here: all are as likely and count the same.")
        return mapped(timesteps__sampling="uniform", loss__weighting=weighting)
    if word == "shift":
        shift = 5.0 if str(context.facts.get("family")).endswith(("a14b", "5b")) else 3.0
        found = choice_of("timesteps.sampling", "shifted_uniform", "uniform_shift")
        if found is not None:
            return mapped(timesteps__sampling=found, timesteps__shift=shift)
        return changed(
            "uniform and then shifted there; here bell-shaped and then shifted.",
            timesteps__sampling="shift",
            timesteps__shift=shift,
        )
    found = choice_of("timesteps.sampling", word)
    return (
        not_supported(f"there is no {word} here: uniform is taken.")
        if found is None
        else mapped(timesteps__sampling=found)
    )


def _bias(_context: Context, given: SetupOption) -> Answer:
    """content: more of the high noise levels in the window; style: more of the low ones."""
    words = {
        "balanced": ("balanced", "none"),
        "content": (
            "high",
            "favor_high",
            "favour_high",
            "favor_high_noise",
            "favour_high_noise",
            "content",
            "high noise",
        ),
        "style": ("low", "favor_low", "favour_low", "favor_low_noise", "favour_low_noise", "style", "low noise"),
    }
    value = str(given.value)
    for item in options_by_place().values():
        if item.aitoolkit == given.key:
            found = choice_of(item.place, *words.get(value, (value,)))
            return (
                not_supported(f"{item.place} has no {value}.")
                if found is None
                else Answer("mapped", {item.place: found})
            )
    if value == "balanced":
        return not_needed("no noise levels are favoured here.")
    return not_supported("noise levels are not favoured here.")


def _loss_type(_context: Context, given: SetupOption) -> Answer:
    if given.value == "pseudo_huber":  # SDTrainer.py: sqrt(d^2 + c^2) - c with c = 0.01
        return changed("the same curve, twice as high here.", loss__kind="soft_l1", loss__huber_c=0.01)
    found = choice_of("loss.kind", str(given.value))
    return (
        not_supported(f"there is no loss {given.value} here: mse is taken.")
        if found is None
        else mapped(loss__kind=found)
    )


def _quantize(context: Context, given: SetupOption) -> Answer:
    if not truth(given.value):
        return mapped(precision="bf16")
    return (
        not_needed("qtype says how.") if context.has("model.qtype") else changed("qfloat8 is its way.", precision="fp8")
    )


def _qtype(context: Context, given: SetupOption) -> Answer:
    if not truth(context.get("model.quantize", False)):
        return not_needed("quantize is off.")
    word = str(given.value)
    if "|" in word:
        return changed("its recovery adapter is a file that you name in models.recovery_adapter.", precision="ara")
    found = precision_8_or_4_bit(word)
    if not found:
        return not_supported(f"there is no {word} here.")
    exact = word.lower() in ("qfloat8", "float8", "int8")
    return either("" if exact else f"the nearest is {found}.", precision=found)


def _name_or_path(context: Context, given: SetupOption) -> Answer:
    path = str(given.value)
    if path.endswith((".safetensors", ".gguf")) and not context.facts.get("has_experts"):
        return mapped(models__single=path)
    return changed("a repository of Hugging Face there; here files, which you name under [models].")


def _recovery(_context: Context, given: SetupOption) -> Answer:
    return not_needed("there is none.") if is_off(given.value) else mapped(models__recovery_adapter=str(given.value))


def _training_adapter(context: Context, given: SetupOption) -> Answer:
    """Its samples are made without it (toolkit/models/base_model.py, generate_images)."""
    if is_off(given.value):
        return not_needed("there is none.")
    has_previews = context.get("sample.sample_every") and not truth(context.get("train.disable_sampling", False))
    left_out = {"previews__with_merged": False} if has_previews else {}
    return mapped(adapter__merge_into_base=str(given.value), **left_out)


def _compile(_context: Context, _given: SetupOption) -> Answer:
    return not_needed("own kernels are used where Triton works (memory.compile), which is as fast for every size.")


def _save_dtype(_context: Context, given: SetupOption) -> Answer:
    words = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
    return mapped(lora__precision=words.get(str(given.value), str(given.value)))


def _sample_every(context: Context, given: SetupOption) -> Answer:
    if truth(context.get("train.disable_sampling", False)):
        return not_needed("disable_sampling is on.")
    return mapped(previews__every=need_number(given.value, is_whole=True))


def _disable_sampling(_context: Context, given: SetupOption) -> Answer:
    return mapped(previews__every=0) if truth(given.value) else not_needed("it is off.")


def _fps(_context: Context, given: SetupOption) -> Answer:
    return changed(
        "previews have that of the clips; it is for Preview LoRA.", **{f"{PREVIEW}fps": need_number(given.value)}
    )


def _prompts(_context: Context, given: SetupOption) -> Answer:
    values = given.value if isinstance(given.value, list) else [given.value]
    return samples.prompts([{"prompt": text} for text in values if isinstance(text, str) and text.strip()])


def _entries(context: Context) -> list[dict[str, Any]]:
    """The list sample.samples, whose entries say what is their own (toolkit/config_modules.py, SampleItem)."""
    found: dict[int, dict[str, Any]] = {}
    for item in context.given:
        match = _SAMPLE.fullmatch(item.key)
        if match and match[2] in _OF_SAMPLE and item.value not in (None, ""):
            name = _OF_SAMPLE[match[2]]
            value = item.value if name in ("prompt", "negative") else need_number(item.value)
            if name in ("width", "height", "frames"):
                value = samples.nearest(context, name, value)
            elif name not in ("prompt", "negative", "cfg"):
                value = samples.whole(value, name)
            found.setdefault(int(match[1]), {})[name] = value
    return [entry for _, entry in sorted(found.items()) if str(entry.get("prompt", "")).strip()]


def _sample(context: Context, given: SetupOption) -> Answer:
    match = _SAMPLE.fullmatch(given.key)
    if match is None or match[2] not in _OF_SAMPLE:
        return not_supported("sample prompts have no such option here.")
    return samples.prompts(_entries(context))


def _negative(context: Context, given: SetupOption) -> Answer:
    has_prompts = bool(_entries(context)) or bool(context.get("sample.prompts"))
    return samples.negative(has_prompts, str(given.value or ""))


def _walk(_context: Context, given: SetupOption) -> Answer:
    return mapped(previews__seed_walk="prompts" if truth(given.value) else "fixed")


def _at_start(context: Context, given: SetupOption) -> Answer:
    if truth(context.get("train.disable_sampling", False)):
        return not_needed("disable_sampling is on.")
    return mapped(previews__at_start=truth(given.value) == (given.key == "train.force_first_sample"))


def _guidance(context: Context, _given: SetupOption) -> Answer:
    """SDTrainer.py, 27a03a9: the target goes further away from the prediction, by a scale that is 3 where none is given.

    It stands within `if self.train_config.do_guidance_loss`, and has since it came (6f308fc).
    """
    place = "loss.differential_guidance"
    if not truth(context.get("train.do_differential_guidance", False)):
        return not_needed("it is off.")
    if not truth(context.get("train.do_guidance_loss", False)):
        return not_needed("AI-Toolkit does it only together with do_guidance_loss, which is off.")
    if not exists(place):
        return not_supported("there is no differential guidance here.")
    scale = context.get("train.differential_guidance_scale", 3.0)
    return Answer("mapped", {place: float(need_number(scale))})


def _contrastive(inner: Rule) -> Rule:
    """SDTrainer.py: the target goes away from what the model says without a caption, by 3 where nothing is given."""

    def rule(context: Context, given: SetupOption) -> Answer:
        if not truth(context.get("train.do_guidance_loss", False)):
            return not_needed("it belongs to do_guidance_loss, which is off.")
        return inner(context, given)

    return rule


def _guidance_scale(context: Context, _given: SetupOption) -> Answer:
    scale = context.get("train.guidance_loss_target", 3.0)
    if isinstance(scale, list):
        return not_supported("a factor for each sample of a batch is not possible here: give one number.")
    return mapped(loss__contrastive_guidance=float(need_number(scale)))


def _by_name(_context: Context, given: SetupOption) -> Answer:
    return by_declaration("aitoolkit", given.key, given.value)


def _preservation(switch: str, place: str) -> Rule:
    """SDTrainer.py: a switch, and a multiplier that is 1 where none is given."""

    def rule(context: Context, _given: SetupOption) -> Answer:
        if not truth(context.get(switch, False)):
            return not_needed("it is off.")
        if switch == _DOP and not str(context.get(f"{_DOP}_class", "") or "").strip():
            return not_supported(
                "it needs a word for what the trigger names (class_word of the dataset), and the job has none in "
                "diff_output_preservation_class."
            )
        return Answer("mapped", {place: float(need_number(context.get(f"{switch}_multiplier", 1.0)))})

    return rule


def _class_word(context: Context, given: SetupOption) -> Answer:
    word = "" if given.value is None else str(given.value).strip()
    if not word or not truth(context.get(_DOP, False)):
        return not_needed("it belongs to diff_output_preservation, which is off." if word else "it is empty.")
    return mapped(dataset__class_word=word)


def _job(_context: Context, given: SetupOption) -> Answer:
    return (
        not_needed("a recipe is a training.")
        if str(given.value) in ("extension", "train")
        else not_supported("LoRAs are trained here, nothing else.")
    )


def _ema(context: Context, given: SetupOption) -> Answer:
    for item in options_by_place().values():
        if item.aitoolkit == given.key:
            answer = fit(item, given.value)
            if given.key.endswith("use_ema") and truth(given.value) and exists("ema.warm_up"):
                return Answer(
                    "mapped", {**answer.values, "ema.warm_up": False}
                )  # toolkit/ema.py: one decay from the start
            return answer
    on = truth(context.get("train.ema_config.use_ema", False))
    return not_supported("there is no moving average of the LoRA here.") if on else not_needed("EMA is off.")


_SAMPLE = re.compile(r"sample\.samples\[(\d+)\]\.(\w+)")
_OF_SAMPLE = {
    "prompt": "prompt", "neg": "negative", "width": "width", "height": "height", "num_frames": "frames", "seed": "seed",
    "sample_steps": "steps", "guidance_scale": "cfg",
}  # fmt: skip
_DOP, _BLANK = "train.diff_output_preservation", "train.blank_prompt_preservation"

RULES: dict[str, Rule] = {
    **DATASET_RULES,
    **OPTIMIZER_RULES,
    "job": _job,
    "network.linear": _linear,
    "network.linear_alpha": _alpha,
    "network.alpha": _alpha,
    "network.type": _type,
    "network.network_kwargs.only_if_contains": _only_if,
    "network.network_kwargs.ignore_if_contains": _ignore_if,
    "network.lokr_factor": _factor,
    "train.steps": _steps,
    "train.switch_boundary_every": _switch,
    "train.gradient_accumulation": _accumulation,
    "train.gradient_accumulation_steps": _accumulation,
    "train.timestep_type": _timestep_type,
    "train.content_or_style": _bias,
    "train.loss_type": _loss_type,
    "train.gradient_checkpointing": gradient_checkpointing,
    "train.disable_sampling": _disable_sampling,
    "train.do_differential_guidance": _guidance,
    "train.differential_guidance_scale": _guidance,
    **dict.fromkeys((_DOP, f"{_DOP}_multiplier"), _preservation(_DOP, "regularizers.output_preservation")),
    **dict.fromkeys(("train.do_guidance_loss", "train.guidance_loss_target"), _contrastive(_guidance_scale)),
    **dict.fromkeys(("train.guidance_loss_schedule", "train.do_guidance_loss_cfg_zero"), _contrastive(_by_name)),
    f"{_DOP}_class": _class_word,
    **dict.fromkeys((_BLANK, f"{_BLANK}_multiplier"), _preservation(_BLANK, "regularizers.blank_preservation")),
    "train.ema_config.use_ema": _ema,
    "train.ema_config.ema_decay": _ema,
    "model.quantize": _quantize,
    "model.qtype": _qtype,
    "model.name_or_path": _name_or_path,
    "model.accuracy_recovery_adapter": _recovery,
    "model.assistant_lora_path": _training_adapter,
    "model.compile": _compile,
    "model.layer_offloading_transformer_percent": lambda _context, _given: not_needed(PLAN),
    "device": lambda _context, _given: not_needed("a free GPU is taken (device)."),
    "save.dtype": _save_dtype,
    "sample.sample_every": _sample_every,
    "sample.prompts": _prompts,
    **{f"sample.samples[{number}].*": _sample for number in range(MOST_PROMPTS)},
    "sample.neg": _negative,
    "sample.width": samples.size("width"),
    "sample.height": samples.size("height"),
    "sample.num_frames": samples.size("frames"),
    "sample.seed": samples.seed,
    "sample.walk_seed": _walk,
    "sample.fps": _fps,
    "train.skip_first_sample": _at_start,
    "train.force_first_sample": _at_start,
}
