"""What becomes of each option of SimpleTuner. Names that mean the same here stand in the declarations of core/settings."""

import math

from ..errors import ConfigError
from .answers import FURTHER, PREVIEW, Answer, Context, Given, Rule, changed, either, mapped, not_needed, not_supported
from .common import (
    CACHES,
    LOADING,
    NO_UPLOAD,
    NOT_DELETED,
    ONE_PROCESS,
    OWN_LOG,
    PLAN,
    RESUMES,
    absent,
    gradient_checkpointing,
    is_off,
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
from .declared import by_declaration, choice_of, declared, exists, number, side, truth
from .families import family_of

_OPTIMIZERS = {
    "adamw_bf16": ("adamw",),
    "torch-adamw": ("adamw",),
    "optimi-adamw": ("adamw",),
    "bnb-adamw": ("adamw",),
    "ao-adamw8bit": ("adamw8bit",),
    "bnb-adamw8bit": ("adamw8bit",),
    "bnb-adamw8bit-paged": ("paged_adamw8bit", "adamw8bit_paged", "adamw8bit"),
    "optimi-lion": ("lion",),
    "bnb-lion": ("lion",),
    "bnb-lion-paged": ("lion",),
    "bnb-lion8bit": ("lion8bit",),
    "bnb-lion8bit-paged": ("paged_lion8bit", "lion8bit_paged", "lion8bit"),
    "adamw_schedulefree": ("schedule_free", "adamw_schedulefree", "schedulefree"),
    "bnb-ademamix": ("ademamix",),
    "bnb-ademamix8bit": ("ademamix8bit", "ademamix"),
    "torch-adafactor": ("adafactor",),
}


def _resolution(context: Context, given: Given) -> Answer:
    """documentation/DATALOADER.md: pixel_area is the side of a square, area is megapixels, pixel is the shorter side."""
    found = float(need_number(given.value))
    kind = str(context.get("resolution_type", "pixel_area", given.dataset))
    if kind == "area":
        edge, why = math.sqrt(found * 1e6), f"{found:g} megapixels are a square of that side."
    elif kind == "pixel":
        edge, why = found, "it is the shorter side there; here the area counts, of a square of that side."
    else:
        edge, why = found, ""
    if not 16 <= edge <= 16_384:
        raise ConfigError(f"{given.shown} is no size for resolution_type {kind}.")
    pixels = side(edge)
    if pixels != edge and not why:
        why = f"sides are multiples of 16, so it is {pixels}."
    return either(why, dataset__width=pixels, dataset__height=pixels)


def _resolution_type(_context: Context, given: Given) -> Answer:
    known = ("pixel", "area", "pixel_area")
    return (
        not_needed("resolution is read by it.")
        if given.value in known
        else not_supported("there is no such kind of size.")
    )


def _crop(_context: Context, given: Given) -> Answer:
    """Without a crop, and with one that keeps the aspect, files are sorted into buckets by their aspect ratio."""
    return mapped(dataset__aspect_buckets=not truth(given.value))


def _crop_aspect(context: Context, given: Given) -> Answer:
    if not truth(context.get("crop", False, given.dataset)):
        return not_needed("crop is off.")
    if found := declared("simpletuner", "crop_aspect"):
        return (
            by_declaration("simpletuner", "crop_aspect", given.value)
            if len(found) == 1
            else not_needed("crop says it.")
        )
    if given.value == "square":
        return mapped(dataset__aspect_buckets=False)
    return changed("the aspect ratio of each file is kept.", dataset__aspect_buckets=True)


def _num_frames(_context: Context, given: Given) -> Answer:
    """helpers/models/wan/model.py, adjust_video_frames: 8n+1, although Wan takes 4n+1."""
    found = need_number(given.value, is_whole=True)
    kept = max(1, (found - 1) // 8 * 8 + 1)
    return either("" if kept == found else f"SimpleTuner itself takes {kept} of them.", dataset__num_frames=kept)


def _min_frames(context: Context, given: Given) -> Answer:
    """At num_frames, as SimpleTuner wants it: shorter clips are left out. Below, they are cut to what they have."""
    wanted = number(context.get("video.num_frames", 125, given.dataset)) or 0
    if need_number(given.value) >= wanted:
        return mapped(dataset__short_clips="skip")
    if declared("simpletuner", given.key):
        return by_declaration("simpletuner", given.key, given.value)
    return changed("shorter clips are taken too.", dataset__short_clips="shorten")


def _repeats(_context: Context, given: Given) -> Answer:
    return repeats(given.value, add=1)


def _disabled(_context: Context, given: Given) -> Answer:
    off = truth(given.value)
    if exists("dataset.enabled"):
        return mapped(dataset__enabled=not off)
    return not_supported("a dataset can't be switched off here: leave it out.") if off else not_needed("it is on.")


def _captions(context: Context, given: Given) -> Answer:
    word = str(given.value)
    if word == "textfile":
        return mapped(dataset__caption_extension=".txt")
    if word == "instanceprompt":
        return _whole_caption(str(context.get("instance_prompt", "", given.dataset)))
    words = {"csv": ("metadata",), "parquet": ("metadata",)}
    found = choice_of("dataset.caption_source", word, *words.get(word, ()))
    return (
        not_supported(f"captions can't come from {word} here.")
        if found is None
        else mapped(dataset__caption_source=found)
    )


def _whole_caption(text: str) -> Answer:
    """One caption for all files, whatever lies beside them."""
    if choice_of("dataset.caption_source", "trigger"):
        return mapped(dataset__caption_source="trigger", dataset__trigger_word=text)
    return changed(
        "text files beside the pictures and clips would go first: there must be none.", dataset__default_caption=text
    )


def _instance_prompt(context: Context, given: Given) -> Answer:
    """A whole caption, or what stands before each; a trigger word is put where none is."""
    text = str(given.value or "")
    if str(context.get("caption_strategy", "", given.dataset)) == "instanceprompt":
        return _whole_caption(text)
    if truth(context.get("only_instance_prompt", False, given.dataset)):
        return _whole_caption(text)
    if truth(context.get("prepend_instance_prompt", False, given.dataset)):
        return changed("it is put in front of captions that lack it.", dataset__trigger_word=text)
    return not_needed("it is neither put in front of captions, nor in their place.")


def _prepend(_context: Context, given: Given) -> Answer:
    return not_needed("instance_prompt is read by it.") if truth(given.value) else not_needed("it is off.")


def _dropout(context: Context, given: Given) -> Answer:
    """Of the whole run in config.json, of one dataset in its list."""
    found = float(need_number(given.value))
    if given.dataset is None:
        return mapped(loop__caption_dropout=found)
    if exists("dataset.drop_captions"):
        return mapped(dataset__drop_captions=found)
    same = number(context.get(given.key)) == found
    return not_needed("it is that of the run.") if same else not_supported("all datasets drop captions alike here.")


def _batch_size(_context: Context, given: Given) -> Answer:
    if given.dataset is not None:
        return not_supported("all datasets of a run have one batch_size here.")
    return mapped(loop__batch_size=need_number(given.value, is_whole=True))


def _bad_files(_context: Context, given: Given) -> Answer:
    if truth(given.value):
        return changed(f"they are left out and listed. {NOT_DELETED}", dataset__bad_files="skip")
    return mapped(dataset__bad_files="skip")


def _alpha(context: Context, given: Given) -> Answer:
    rank = float(need_number(context.get("lora_rank", 16)))
    return mapped(adapter__alpha=rank if given.value is None else float(need_number(given.value)))


def _lora_type(_context: Context, given: Given) -> Answer:
    if given.value == "standard":
        return mapped()
    return not_supported("LyCORIS can't be trained here, a LoRA is: read rank and alpha again.")


def _targets(_context: Context, given: Given) -> Answer:
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


def _steps(_context: Context, given: Given) -> Answer:
    found = 0 if is_off(given.value) else need_number(given.value, is_whole=True)
    return mapped(loop__steps=found) if found > 0 else not_needed("num_train_epochs says how long.")


def _epochs(context: Context, given: Given) -> Answer:
    found = 0 if is_off(given.value) else need_number(given.value, is_whole=True)
    if found <= 0:
        return not_needed("max_train_steps says how long.")
    if (number(context.get("max_train_steps")) or 0) > 0:
        return not_needed("max_train_steps says how long.")
    return mapped(epochs=found)


def _base_precision(_context: Context, given: Given) -> Answer:
    word = str(given.value)
    if word == "no_change":
        return mapped(precision="bf16")
    found = precision_8_or_4_bit(word)
    if not found:
        return not_supported(f"there is no {word} here.")
    exact = word.startswith(("int8", "fp8", "nf4"))
    return either("" if exact else f"the nearest is {found}.", precision=found)


def _mixed(_context: Context, given: Given) -> Answer:
    return (
        not_needed("the model computes in bf16.")
        if given.value == "bf16"
        else changed("the model computes in bf16 here.")
    )


# helpers/training/optimizer_param.py: their weight decay where nothing is said, in place of 0.01.
_WITHOUT_DECAY = ("optimi-", "bnb-lion")


def _optimizer(context: Context, given: Given) -> Answer:
    answer = optimizer(given.value, _OPTIMIZERS)
    says = context.has("adam_weight_decay") or context.has("optimizer_config.weight_decay")
    if not says and answer.values and str(given.value).startswith(_WITHOUT_DECAY):
        return Answer(answer.outcome, {**answer.values, "optimizer.weight_decay": 0.0}, answer.why)
    return answer


def _scheduler(_context: Context, given: Given) -> Answer:
    return schedule(given.value)


def _lr_end(context: Context, given: Given) -> Answer:
    rate = need_number(context.get("learning_rate", 4e-7))
    return changed(
        "a learning rate there, a share of the highest here.", schedule__floor=min(1.0, need_number(given.value) / rate)
    )


def _clip_place() -> str:
    found = declared("simpletuner", "grad_clip_method")
    return found[0].place if len(found) == 1 else ""


def _clip_method(_context: Context, given: Given) -> Answer:
    word = str(given.value)
    place = _clip_place()
    if place:
        chosen = choice_of(place, word)
        return not_supported(f"there is no {word} here.") if chosen is None else Answer("mapped", {place: chosen})
    if word == "norm":
        return mapped()
    return not_supported("single values of a gradient are not cut here, its length is (optimizer.max_grad_norm).")


def _max_grad_norm(context: Context, given: Given) -> Answer:
    """With grad_clip_method value, its own default, it is the largest value of a gradient, and no length."""
    found = float(need_number(given.value))
    if context.get("grad_clip_method") == "value" and not _clip_place():
        return not_supported(
            "it is the largest value of a gradient there (grad_clip_method value); its length is cut at 1."
        )
    return mapped(optimizer__max_grad_norm=found)


def _uniform(context: Context, given: Given) -> Answer:
    if truth(given.value):
        return mapped(timesteps__sampling="uniform")
    shift = number(context.get("flow_schedule_shift")) or 0
    if truth(context.get("flow_use_beta_schedule", False)):
        return not_needed("flow_use_beta_schedule is on.")
    if shift > 0 and shift != 1:
        return mapped(timesteps__sampling="shift")
    return mapped(timesteps__sampling="sigmoid")


def _shift(context: Context, given: Given) -> Answer:
    found = need_number(given.value)
    if truth(context.get("flow_use_uniform_schedule", False)):
        place = choice_of("timesteps.sampling", "shifted_uniform", "uniform_shift")
        if place is not None and found > 0:
            return mapped(timesteps__sampling=place, timesteps__shift=float(found))
        return not_supported("uniform noise levels are not shifted here.")
    return mapped(timesteps__shift=float(found)) if found > 0 else not_needed("it is off.")


def _beta_schedule(_context: Context, given: Given) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    found = choice_of("timesteps.sampling", "beta")
    return (
        not_supported("there is no such law of noise levels here.")
        if found is None
        else mapped(timesteps__sampling=found)
    )


def _auto_shift(context: Context, given: Given) -> Answer:
    if not truth(given.value):
        return not_needed("it is off.")
    if (number(context.get("flow_schedule_shift")) or 0) > 0:
        return not_needed("flow_schedule_shift is given, and goes first.")
    found = choice_of("timesteps.sampling", "auto_shift", "resolution_shift", "shift_by_resolution", "flux_shift")
    if found is None:
        return not_supported("the shift does not follow the size here: set timesteps.shift.")
    return changed("the shift has a limit for clips here.", timesteps__sampling=found)


def _model_name(context: Context, given: Given) -> Answer:
    path = str(given.value)
    if path.endswith((".safetensors", ".gguf")) and given.key == "pretrained_transformer_model_name_or_path":
        stage = context.facts.get("stage") or "single"
        return Answer("mapped", {f"models.{stage}": path})
    if path.endswith((".safetensors", ".pth")) and given.key == "pretrained_vae_model_name_or_path":
        return mapped(models__vae=path)
    known = "it says which model is trained." if family_of(path) else "it is a repository of Hugging Face."
    return changed(f"{known} Here models are files, which you name under [models].")


def _preview(widget: str, *, is_number: bool = False) -> Rule:
    def rule(_context: Context, given: Given) -> Answer:
        value = need_number(given.value) if is_number else str(given.value or "")
        return changed("it is for Preview LoRA in the workflow.", **{PREVIEW + widget: value})

    return rule


def _preview_size(_context: Context, given: Given) -> Answer:
    sides = [number(part) for part in str(given.value).lower().split(",")[0].split("x")]
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or not sides[0] or not sides[1]:
        return not_supported("it is no size in pixels.")
    values = {PREVIEW + "width": side(sides[0]), PREVIEW + "height": side(sides[1])}
    return changed("it is for Preview LoRA in the workflow.", **values)


def _library(context: Context, given: Given) -> Answer:
    """A library of prompts: the first is Preview LoRA's where config.json has none; a note keeps the others."""
    first = next(item for item in context.given if item.key == "prompt_library")
    if given is first and not context.get("validation_prompt"):
        return changed("it is for Preview LoRA in the workflow.", **{f"{PREVIEW}prompt": str(given.value)})
    return changed("it is in a note of the workflow, for Preview LoRA.", **{f"{FURTHER}{given.name}": str(given.value)})


def _steps_between(_context: Context, given: Given) -> Answer:
    return mapped(previews__every=need_number(given.value, is_whole=True))


def _keep(_context: Context, given: Given) -> Answer:
    found = need_number(given.value, is_whole=True)
    return (
        mapped(loop__keep_last=found) if found > 0 else not_supported("at least one checkpoint is kept, and not all.")
    )


def _hub_name(_context: Context, given: Given) -> Answer:
    """The only name that a configuration has for what it makes."""
    name = str(given.value).rpartition("/")[2]
    return changed(f"it is the LoRA's name; {NO_UPLOAD}", name=name) if name else not_needed("it is empty.")


def _output(_context: Context, given: Given) -> Answer:
    return mapped(lora__folder=str(given.value))


def _cache_dataset(_context: Context, _given: Given) -> Answer:
    return not_needed(CACHES)


def _least_size(context: Context, given: Given) -> Answer:
    """A limit of the shorter side with resolution_type pixel, else of the area: of a square, or in megapixels."""
    if is_off(given.value):
        return not_needed("it is off.")
    found = float(need_number(given.value))
    kind = str(context.get("resolution_type", "pixel_area", given.dataset))
    if kind == "pixel" and exists("dataset.min_side"):
        return mapped(dataset__min_side=int(found))
    if exists("dataset.min_megapixels"):
        if kind == "area":
            return mapped(dataset__min_megapixels=found)
        return changed("it is the side of a square, whose area counts.", dataset__min_megapixels=found * found / 1e6)
    return not_supported("files of every size are taken here.")


def _most_size(context: Context, given: Given) -> Answer:
    """With target_downsample_size no file is left out for it, but scaled down."""
    if is_off(given.value) or not is_off(context.get("target_downsample_size", None, given.dataset)):
        return not_needed("larger files are scaled down to the size of their bucket.")
    return not_supported("larger files are taken, and scaled down.")


def _type(_context: Context, given: Given) -> Answer:
    if given.value == "local":
        return not_needed("a dataset is a folder on this machine.")
    return not_supported("a dataset is a folder on this machine: download it first.")


RULES: dict[str, Rule] = {
    "resolution": _resolution,
    "resolution_type": _resolution_type,
    "crop": _crop,
    "crop_aspect": _crop_aspect,
    "video.num_frames": _num_frames,
    "video.min_frames": _min_frames,
    "repeats": _repeats,
    "caption_dropout_probability": _dropout,
    "train_batch_size": _batch_size,
    "disabled": _disabled,
    "disable": _disabled,
    "caption_strategy": _captions,
    "instance_prompt": _instance_prompt,
    "prepend_instance_prompt": _prepend,
    "only_instance_prompt": _prepend,
    "delete_problematic_images": _bad_files,
    "minimum_image_size": _least_size,
    "maximum_image_size": _most_size,
    "type": _type,
    "lora_alpha": _alpha,
    "lora_type": _lora_type,
    "peft_lora_target_modules": _targets,
    "max_train_steps": _steps,
    "num_train_epochs": _epochs,
    "base_model_precision": _base_precision,
    "mixed_precision": _mixed,
    "optimizer": _optimizer,
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
    "flow_schedule_shift": _shift,
    "flow_schedule_auto_shift": _auto_shift,
    "gradient_checkpointing": gradient_checkpointing,
    "pretrained_model_name_or_path": _model_name,
    "pretrained_transformer_model_name_or_path": _model_name,
    "pretrained_vae_model_name_or_path": _model_name,
    "pretrained_t5_model_name_or_path": _model_name,
    "validation_step_interval": _steps_between,
    "validation_steps": _steps_between,
    "validation_prompt": _preview("prompt"),
    "validation_negative_prompt": _preview("negative_prompt"),
    "validation_seed": _preview("seed", is_number=True),
    "validation_num_video_frames": _preview("num_frames", is_number=True),
    "validation_resolution": _preview_size,
    "prompt_library": _library,
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

REST: dict[str, Rule] = {
    **needless("it says which model is trained.", "model_family", "model_flavour", "model_type"),
    **needless("datasets need no names here.", "id", "dataset_type"),
    **needless(CACHES, "cache_dir_vae", "cache_dir", "metadata_backend", "metadata_update_interval", "text_embeds",
               "conditioning_image_embeds", "cache_dir_conditioning_image_embeds", "compress_disk_cache", "vae_batch_size",
               "vae_enable_tiling", "vae_enable_slicing", "write_batch_size", "offload_during_startup", "vae_cache_ondemand",
               "vae_cache_disable", "preserve_data_backend_cache", "hash_filenames", "skip_file_discovery",
               "text_encoder_batch_size", "text_encoder_1_precision", "text_encoder_2_precision", "probability"),
    **needless("its datasets are read, if you bring the file too.", "data_backend_config"),
    **needless("its prompts are read, if you bring the file too.", "user_prompt_library"),
    **needless("a file is scaled to the size of its bucket, in one go.", "target_downsample_size"),
    **needless("buckets are multiples of 16 pixels, with as many aspect ratios as your files have.",
               "aspect_bucket_rounding", "aspect_bucket_alignment", "video.bucket_strategy", "video.frame_interval"),
    **needless("no bucket is left out, however small.", "disable_bucket_pruning", "allow_dataset_oversubscription"),
    **needless(RESUMES, "resume_from_checkpoint"),
    **needless(OWN_LOG, "report_to", "tracker_project_name", "tracker_run_name", "webhook_config", "disable_benchmark"),
    **needless(NO_UPLOAD, "push_to_hub", "push_checkpoints_to_hub", "push_to_hub_background"),
    **needless(NOT_DELETED, "delete_unwanted_images"),
    **needless(PLAN, "enable_group_offload", "group_offload_type", "group_offload_blocks_per_group",
               "group_offload_use_stream", "group_offload_to_disk_path", "enable_model_cpu_offload",
               "enable_chunked_feed_forward", "quantize_via", "ramtorch", "ramtorch_target_modules",
               "ramtorch_transformer_percent", "ramtorch_text_encoder", "ramtorch_disable_extensions",
               "ramtorch_disable_sync_hooks", "gradient_checkpointing_backend", "gradient_checkpointing_interval",
               "gradient_checkpointing_segment_stride", "base_model_default_dtype"),
    **needless(ONE_PROCESS, "num_processes", "context_parallel_size", "context_parallel_comm_strategy", "num_machines"),
    **needless(LOADING, "dataloader_prefetch", "dataloader_prefetch_qlen"),
    **needless("a run ends after its steps.", "ignore_final_epochs", "strict_epoch_limit"),
    **needless("LoRAs are written in the form that ComfyUI reads.", "lora_format"),
    **needless("Preview LoRA works with both experts.", "wan_validation_load_other_stage"),
    **needless("previews are frames as they are decoded, on the node.", "validation_preview", "validation_preview_steps",
               "num_validation_images", "validation_torch_compile"),
    **needless("no code of others is run.", "trust_remote_code"),
    **needless("the rate of each clip is read from it, and brought to that of the model.", "framerate"),
    **part_of("use_ema", "ema_decay", "ema_update_interval", "ema_validation", "ema_cpu_only", "ema_device",
              "ema_warmup_steps"),
    **part_of("validation_guidance_skip_layers", "validation_guidance_skip_layers_start",
              "validation_guidance_skip_layers_stop"),
    **needless("it is for lora_type lycoris, which has its own line.", "lycoris_config", "lycoris"),
    **unsupported("there is no moving average of the LoRA here.", "use_ema"),
    **unsupported("no layer of the model is left out while previews are made.", "validation_guidance_skip_layers"),
    **unsupported("a preview has one prompt.", "validation_prompt_library"),
    **absent("all tokens pass all blocks here.", "tread_config.*"),
    **absent("LoRAs are trained on data here, not on another model.", "distillation_config.*"),
    **absent("a dataset is a folder on this machine: download it first.", "dataset_name", "huggingface.*", "aws.*"),
    **unsupported("there is no such regularizer here.", "crepa_enabled"),
    **unsupported("LoRAs are trained on data here, not on another model.", "distillation_method"),
    **unsupported("a preview has guidance.", "validation_disable_unconditional"),
    **unsupported("the model is built as its file says.", "wan_force_2_1_time_embedding"),
    **unsupported("clips of every length are taken here.", "video.max_frames"),
    **unsupported("crops are made in the middle here.", "crop_style"),
    **unsupported("there are no regularization datasets here.", "is_regularisation_data"),
}  # fmt: skip
