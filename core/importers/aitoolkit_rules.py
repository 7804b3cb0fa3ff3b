"""What becomes of each option of AI-Toolkit. Names that mean the same here stand in the declarations of core/settings."""

from .answers import FURTHER, PREVIEW, Answer, Context, Given, Rule, changed, either, mapped, not_needed, not_supported
from .common import (
    CACHES,
    LOADING,
    NO_UPLOAD,
    ONE_PROCESS,
    OWN_LOG,
    PLAN,
    RESUMES,
    betas,
    gradient_checkpointing,
    is_off,
    loss_weight,
    need_number,
    needless,
    optimizer,
    part_of,
    precision_8_or_4_bit,
    repeats,
    schedule,
    to_number,
    unsupported,
)
from .declared import choice_of, exists, fit, frames, number, options_by_place, truth
from .sizes import sizes

_OPTIMIZERS = {
    "adamw8": ("adamw8bit",),
    "lion8bit": ("lion8bit",),
    "prodigy8bit": ("prodigy",),
    "ademamix8bit": ("ademamix8bit", "ademamix"),
}


def _resolution(_context: Context, given: Given) -> Answer:
    """Sides of squares, whose area is what counts; the same files at each (toolkit/buckets.py). Nothing is scaled up."""
    values = given.value if isinstance(given.value, list) else [given.value]
    answer = sizes(values)
    return Answer(answer.outcome, {**answer.values, "dataset.upscale": False}, answer.why)


def _buckets(_context: Context, given: Given) -> Answer:
    return mapped(dataset__aspect_buckets=truth(given.value))


def _frames(_context: Context, given: Given) -> Answer:
    found = need_number(given.value, is_whole=True)
    kept = frames(found)
    return either("" if kept == found else "Wan takes 4n+1 frames.", dataset__num_frames=kept)


def _shrink(context: Context, given: Given) -> Answer:
    """toolkit/dataloader_mixins.py: num_frames over the whole clip, whatever its length; else a random start."""
    if not need_number(context.get("datasets.num_frames", 1, given.dataset)) > 1:
        return not_needed("pictures have one frame.")
    if truth(given.value):
        return mapped(dataset__frame_sampling="even")
    found = choice_of("dataset.frame_sampling", "random")
    if found is not None:
        return mapped(dataset__frame_sampling=found)
    return changed(
        "a random start there; here the whole clip in windows, one after another.", dataset__frame_sampling="chunk"
    )


def _fps(context: Context, given: Given) -> Answer:
    if truth(context.get("datasets.shrink_video_to_frames", True, given.dataset)):
        return not_needed("frames are spread over the whole clip, so that no rate counts (shrink_video_to_frames).")
    return mapped(dataset__fps=float(need_number(given.value)))


def _caption_ext(_context: Context, given: Given) -> Answer:
    ending = str(given.value).strip()
    return mapped(dataset__caption_extension=ending if ending.startswith(".") else f".{ending}")


def _default_caption(_context: Context, given: Given) -> Answer:
    return mapped(dataset__default_caption="" if given.value is None else str(given.value))


def _trigger(_context: Context, given: Given) -> Answer:
    return mapped(dataset__trigger_word="" if given.value is None else str(given.value))


def _dropout(context: Context, given: Given) -> Answer:
    """A dataset's there. Of the run here, where datasets have none of their own."""
    found = float(need_number(given.value))
    if exists("dataset.drop_captions"):
        return mapped(dataset__drop_captions=found)
    rates = {number(item.value) for item in context.given if item.key == given.key}
    if len(rates) > 1:
        return not_supported("all datasets of a run have one share of dropped captions here.")
    return mapped(loop__caption_dropout=found)


def _is_reg(_context: Context, given: Given) -> Answer:
    place = "dataset.regularization"
    if exists(place):
        return mapped(dataset__regularization=truth(given.value))
    return (
        not_supported("there are no regularization datasets here.") if truth(given.value) else not_needed("it is off.")
    )


def _weight(_context: Context, given: Given) -> Answer:
    return loss_weight(given.value, "weight of its own")


def _network_weight(_context: Context, given: Given) -> Answer:
    """It scales what the LoRA adds while this dataset is trained, which is no weight of the loss."""
    return (
        not_needed("it is 1.")
        if number(given.value) == 1
        else not_supported(
            "a LoRA has one strength while it is trained; what a dataset counts is loss_multiplier there."
        )
    )


def _repeats(_context: Context, given: Given) -> Answer:
    return repeats(given.value)


def _i2v(_context: Context, given: Given) -> Answer:
    return mapped(conditioning="first frame") if truth(given.value) else mapped(conditioning="none")


def _linear(_context: Context, given: Given) -> Answer:
    return mapped(adapter__rank=need_number(given.value, is_whole=True))


def _alpha(context: Context, given: Given) -> Answer:
    """toolkit/lora_special.py: "no alpha for peft", it is the rank, whatever the file says."""
    rank = float(need_number(context.get("network.linear", 4)))
    given_alpha = number(given.value)
    why = "" if given_alpha in (None, rank) else f"AI-Toolkit leaves it out: its LoRA has the rank for alpha, {rank:g}."
    return either(why, adapter__alpha=rank)


def _type(_context: Context, given: Given) -> Answer:
    word = str(given.value).lower()
    if word == "lora":
        return mapped()
    kind = choice_of("adapter.kind", word)
    return not_supported(f"{word} can't be trained here, a LoRA is.") if kind is None else mapped(adapter__kind=kind)


def _only_if(_context: Context, given: Given) -> Answer:
    values = given.value if isinstance(given.value, list) else [given.value]
    parts = [part for part in ("self_attn", "cross_attn", "ffn") if any(part in str(value) for value in values)]
    diffusers = {"attn1": "self_attn", "attn2": "cross_attn"}
    parts += [ours for theirs, ours in diffusers.items() if any(theirs in str(value) for value in values)]
    if not parts:
        return (
            not_needed("it is empty.")
            if is_off(given.value)
            else not_supported("a LoRA is put on whole parts of blocks here.")
        )
    return changed("the parts of the blocks that it names.", adapter__targets=list(dict.fromkeys(parts)))


def _steps(context: Context, given: Given) -> Answer:
    """extensions_built_in/sd_trainer/SDTrainer.py: steps count both experts, which take turns."""
    found = need_number(given.value, is_whole=True)
    if context.facts.get("has_experts") and context.facts.get("stage") is None:
        half = max(1, found // 2)
        return changed(f"AI-Toolkit counts both experts' steps: {half} for each.", loop__steps=half)
    return mapped(loop__steps=found)


def _accumulation(context: Context, given: Given) -> Answer:
    found = need_number(given.value, is_whole=True)
    if given.key.endswith("_steps") and context.has("train.gradient_accumulation"):
        return not_needed("gradient_accumulation says it.")
    return mapped(loop__gradient_accumulation=found)


def _timestep_type(context: Context, given: Given) -> Answer:
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


def _bias(_context: Context, given: Given) -> Answer:
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


def _optimizer(_context: Context, given: Given) -> Answer:
    return optimizer(given.value, _OPTIMIZERS)


def _betas(_context: Context, given: Given) -> Answer:
    return betas(given.value)


def _scheduler(context: Context, given: Given) -> Answer:
    """toolkit/scheduler.py: linear is PyTorch's LinearLR, which rises from a third where nothing else is said."""
    if given.value == "linear" and number(context.get("train.lr_scheduler_params.start_factor", 1 / 3)) != 1:
        return not_supported("the learning rate rises from a third of it there, and not at all here.")
    return schedule(given.value)


def _factors(context: Context, given: Given) -> Answer:
    """start_factor and end_factor of LinearLR."""
    if context.get("train.lr_scheduler") != "linear":
        return not_needed("lr_scheduler is not linear.")
    if given.key.endswith("end_factor"):
        return mapped(schedule__floor=float(need_number(given.value)))
    return not_needed("lr_scheduler is read by it.")


def _eta_min(context: Context, given: Given) -> Answer:
    """The lowest learning rate itself there, and a share of the highest here."""
    rate = need_number(context.get("train.lr", 1e-6))
    return changed(
        "a learning rate there, a share of the highest here.", schedule__floor=float(need_number(given.value)) / rate
    )


def _loss_type(_context: Context, given: Given) -> Answer:
    found = choice_of("loss.kind", str(given.value))
    return (
        not_supported(f"there is no loss {given.value} here: mse is taken.")
        if found is None
        else mapped(loss__kind=found)
    )


def _quantize(context: Context, given: Given) -> Answer:
    if not truth(given.value):
        return mapped(precision="bf16")
    return (
        not_needed("qtype says how.") if context.has("model.qtype") else changed("qfloat8 is its way.", precision="fp8")
    )


def _qtype(context: Context, given: Given) -> Answer:
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


def _name_or_path(context: Context, given: Given) -> Answer:
    path = str(given.value)
    if path.endswith((".safetensors", ".gguf")) and not context.facts.get("has_experts"):
        return mapped(models__single=path)
    return changed("a repository of Hugging Face there; here files, which you name under [models].")


def _recovery(_context: Context, given: Given) -> Answer:
    return not_needed("there is none.") if is_off(given.value) else mapped(models__recovery_adapter=str(given.value))


def _compile(_context: Context, _given: Given) -> Answer:
    return not_needed("own kernels are used where Triton works (memory.compile), which is as fast for every size.")


def _save_dtype(_context: Context, given: Given) -> Answer:
    words = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
    return mapped(lora__precision=words.get(str(given.value), str(given.value)))


def _sample_every(context: Context, given: Given) -> Answer:
    if truth(context.get("train.disable_sampling", False)):
        return not_needed("disable_sampling is on.")
    return mapped(previews__every=need_number(given.value, is_whole=True))


def _disable_sampling(_context: Context, given: Given) -> Answer:
    return mapped(previews__every=0) if truth(given.value) else not_needed("it is off.")


def _preview(widget: str, *, is_number: bool = False) -> Rule:
    def rule(_context: Context, given: Given) -> Answer:
        value = need_number(given.value) if is_number else str(given.value or "")
        return changed("it is for Preview LoRA in the workflow.", **{PREVIEW + widget: value})

    return rule


def _prompts(_context: Context, given: Given) -> Answer:
    values = given.value if isinstance(given.value, list) else [given.value]
    texts = [value for value in values if isinstance(value, str) and value]
    if not texts:
        return not_needed("there is none.")
    found = {f"{PREVIEW}prompt": texts[0], **{f"{FURTHER}{i}": text for i, text in enumerate(texts[1:], 2)}}
    more = " The others are in a note there." if len(texts) > 1 else ""
    return Answer(
        "changed", found, f"the first is for Preview LoRA in the workflow.{more} Training shows a caption of yours."
    )


def _guidance(context: Context, _given: Given) -> Answer:
    """SDTrainer.py: the target goes further away from the prediction, by a scale that is 3 where none is given."""
    place = "loss.differential_guidance"
    if not truth(context.get("train.do_differential_guidance", False)):
        return not_needed("it is off.")
    if not exists(place):
        return not_supported("there is no differential guidance here.")
    scale = context.get("train.differential_guidance_scale", 3.0)
    return Answer("mapped", {place: float(need_number(scale))})


def _job(_context: Context, given: Given) -> Answer:
    return (
        not_needed("a recipe is a training.")
        if str(given.value) in ("extension", "train")
        else not_supported("LoRAs are trained here, nothing else.")
    )


def _ema(context: Context, given: Given) -> Answer:
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


RULES: dict[str, Rule] = {
    "job": _job,
    "datasets.resolution": _resolution,
    "datasets.buckets": _buckets,
    "datasets.num_frames": _frames,
    "datasets.shrink_video_to_frames": _shrink,
    "datasets.fps": _fps,
    "datasets.caption_ext": _caption_ext,
    "datasets.default_caption": _default_caption,
    "datasets.trigger_word": _trigger,
    "trigger_word": _trigger,
    "datasets.caption_dropout_rate": _dropout,
    "datasets.is_reg": _is_reg,
    "datasets.loss_multiplier": _weight,
    "datasets.network_weight": _network_weight,
    "datasets.num_repeats": _repeats,
    "datasets.do_i2v": _i2v,
    "network.linear": _linear,
    "network.linear_alpha": _alpha,
    "network.alpha": _alpha,
    "network.type": _type,
    "network.network_kwargs.only_if_contains": _only_if,
    "train.steps": _steps,
    "train.gradient_accumulation": _accumulation,
    "train.gradient_accumulation_steps": _accumulation,
    "train.timestep_type": _timestep_type,
    "train.content_or_style": _bias,
    "train.optimizer": _optimizer,
    "train.optimizer_params.betas": _betas,
    "train.lr_scheduler": _scheduler,
    "train.lr_scheduler_params.start_factor": _factors,
    "train.lr_scheduler_params.end_factor": _factors,
    "train.lr_scheduler_params.eta_min": _eta_min,
    "train.loss_type": _loss_type,
    "train.gradient_checkpointing": gradient_checkpointing,
    "train.disable_sampling": _disable_sampling,
    "train.do_differential_guidance": _guidance,
    "train.differential_guidance_scale": _guidance,
    "train.ema_config.use_ema": _ema,
    "train.ema_config.ema_decay": _ema,
    "model.quantize": _quantize,
    "model.qtype": _qtype,
    "model.name_or_path": _name_or_path,
    "model.accuracy_recovery_adapter": _recovery,
    "model.compile": _compile,
    "model.layer_offloading_transformer_percent": lambda _context, _given: not_needed(PLAN),
    "device": lambda _context, _given: not_needed("a free GPU is taken (device)."),
    "save.dtype": _save_dtype,
    "sample.sample_every": _sample_every,
    "sample.prompts": _prompts,
    "sample.samples[0].prompt": _preview("prompt"),
    "sample.neg": _preview("negative_prompt"),
    **{f"sample.{name}": _preview(name, is_number=True) for name in ("width", "height", "num_frames", "seed", "fps")},
    **{f"train.optimizer_params.{name}": to_number(f"optimizer.{name}") for name in ("weight_decay", "eps")},
}

REST: dict[str, Rule] = {
    **needless("it is what is trained here.", "type", "model.arch", "train.train_unet", "train.noise_scheduler"),
    **needless("each expert that you bring is trained.", "model.model_kwargs.train_high_noise",
               "model.model_kwargs.train_low_noise"),
    **needless("each expert has a run of its own, so that nothing is switched.", "train.switch_boundary_every"),
    **needless(PLAN, "model.low_vram", "model.layer_offloading", "model.layer_offloading_text_encoder_percent",
               "model.auto_memory", "model.block_compile", "model.compile_mode", "model.compile_fullgraph",
               "model.compile_dynamic", "model.cache_size_limit", "model.split_model_over_gpus"),
    **needless("the text encoder only encodes captions, before the training.", "model.quantize_te", "model.qtype_te",
               "train.unload_text_encoder", "train.cache_text_embeddings", "train.text_encoder_lr"),
    **needless(CACHES, "datasets.cache_latents", "datasets.cache_latents_to_disk", "datasets.cache_tensors_to_disk",
               "datasets.cache_text_embeddings", "datasets.cache_clip_vision_to_disk", "datasets.cache_latents_num_workers",
               "datasets.load_image_when_caching_latents"),
    **needless(LOADING, "datasets.num_workers", "datasets.prefetch_factor", "datasets.fast_image_size"),
    **needless(OWN_LOG, "logging.log_every", "logging.use_wandb", "logging.use_ui_logger", "logging.verbose",
               "logging.project_name", "logging.run_name", "performance_log_every", "sqlite_db_path"),
    **needless(NO_UPLOAD, "save.push_to_hub", "save.hf_repo_id", "save.hf_private"),
    **needless(RESUMES, "train.start_step"),
    **needless("the LoRAs go to lora.folder, runs and caches to work.", "training_folder"),
    **needless("LoRAs are written in the form that ComfyUI reads.", "save.save_format"),
    **needless("its metadata are written by themselves.", "meta.name", "meta.version"),
    **needless("the sampler of previews fits the model.", "sample.sampler"),
    **needless("one preview has one seed.", "sample.walk_seed"),
    **needless("the first preview comes after that many steps.", "train.skip_first_sample", "train.force_first_sample",
               "sample.sample_start_step"),
    **needless("the model computes in bf16, and the LoRA in fp32.", "train.dtype", "model.dtype", "model.vae_dtype",
               "model.te_dtype"),
    **needless("it is for other models.", "train.bypass_guidance_embedding", "train.xformers", "train.sdp",
               "datasets.type", "network.transformer_only", "network.conv", "network.conv_alpha", "network.lokr_full_rank",
               "network.lokr_factor", "model.attn_masking", "datasets.do_audio", "datasets.audio_preserve_pitch",
               "datasets.audio_normalize", "train.audio_loss_multiplier"),
    **needless("the fastest kind of attention that is right is taken (memory.attention).", "train.attention_backend"),
    **needless("each expert's LoRA is a file of its own, in any case.", "network.split_multistage_loras"),
    **needless(ONE_PROCESS, "train.num_train_timesteps"),
    **part_of("train.diff_output_preservation", "train.diff_output_preservation_multiplier",
              "train.diff_output_preservation_class"),
    **part_of("train.blank_prompt_preservation", "train.blank_prompt_preservation_multiplier"),
    **part_of("datasets.mask_path", "datasets.mask_min_value", "datasets.invert_mask"),
    **part_of("datasets.random_triggers", "datasets.random_triggers_max"),
    **needless("buckets are multiples of 16 pixels.", "datasets.bucket_tolerance"),
    **unsupported("what the model knows is not preserved by a loss of its own here.", "train.diff_output_preservation",
                  "train.blank_prompt_preservation"),
    **unsupported("the text encoder is not trained here.", "train.train_text_encoder"),
    **unsupported("there is no such augmentation here.", "datasets.flip_x", "datasets.flip_y", "datasets.random_crop",
                  "datasets.random_scale", "datasets.augments", "datasets.augmentations", "datasets.square_crop",
                  "datasets.controls", "datasets.control_path"),
    **unsupported("there are no masks here.", "datasets.mask_path", "datasets.alpha_mask", "datasets.poi"),
    **unsupported("captions are used whole here.", "datasets.shuffle_tokens", "datasets.token_dropout_rate",
                  "datasets.keep_tokens", "datasets.random_triggers", "datasets.use_short_captions",
                  "datasets.replacements"),
    **unsupported("a LoRA is put on whole parts of blocks here (adapter.targets).",
                  "network.network_kwargs.ignore_if_contains", "model.ignore_if_contains", "model.only_if_contains"),
    **unsupported("a LoRA of elsewhere is merged with Merge Stages afterwards.", "network.pretrained_lora_path",
                  "model.lora_path", "model.assistant_lora_path", "model.inference_lora_path"),
}  # fmt: skip
