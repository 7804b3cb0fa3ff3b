"""What becomes of each option of musubi-tuner. Names that mean the same here stand in the declarations of core/settings."""

import posixpath
import re

from .answers import Answer, Context, Given, Rule, changed, either, mapped, not_needed, not_supported
from .common import (
    CACHES,
    LOADING,
    NO_UPLOAD,
    ONE_PROCESS,
    OWN_LOG,
    RESUMES,
    betas,
    checkpoints_by_epoch,
    gradient_checkpointing,
    need_number,
    needless,
    optimizer,
    schedule,
    to_number,
    unsupported,
    window,
)
from .declared import choice_of, exists, frames, number, truth
from .families import stage_of
from .sizes import size_of
from .tables import VARIANTS, can_have_several

_OPTIMIZERS = {
    "adamw8bit": ("adamw8bit",),
    "bitsandbytes.optim.adamw8bit": ("adamw8bit",),
    "torch.optim.adamw": ("adamw",),
    "pagedadamw8bit": ("paged_adamw8bit", "adamw8bit_paged"),
    "prodigyopt.prodigy": ("prodigy",),
    "schedulefree.adamwschedulefree": ("schedule_free", "adamw_schedulefree"),
    "adamwschedulefree": ("schedule_free", "adamw_schedulefree"),
}


def _is_video(context: Context, dataset: int | None) -> bool:
    return any(context.has(key, dataset) for key in ("video_directory", "video_jsonl_file"))


def _resolution(_context: Context, given: Given) -> Answer:
    (width, height), why = size_of(given.value)
    return either(why, dataset__width=width, dataset__height=height)


def _folder(context: Context, given: Given) -> Answer:
    path = str(given.value)
    if given.key == "image_directory" and not context.has("target_frames", given.dataset):
        return mapped(dataset__folder=path, dataset__num_frames=1)
    return mapped(dataset__folder=path)


def _list_file(_context: Context, given: Given) -> Answer:
    """A list of files and captions: the folder is that of the list."""
    path = str(given.value).replace("\\", "/")
    if exists("dataset.metadata_file") and (source := choice_of("dataset.caption_source", "metadata")):
        return changed(
            "the files that it names must lie in its folder, or below.",
            dataset__folder=posixpath.dirname(path) or ".",
            dataset__caption_source=source,
            dataset__metadata_file=path,
        )
    return not_supported(
        "a dataset is a folder here: put the files of the list into one, each with its caption in a text file of the same name."
    )


def _list(_context: Context, given: Given) -> Answer:
    """The lines of a list of files: the folder, where they have one."""
    if len(given.value) != 1 or not given.value[0]:
        return not_supported("its files lie in several folders: put them into one, with their captions.")
    if choice_of("dataset.caption_source", "metadata"):
        return changed("the list must lie in that folder.", dataset__folder=given.value[0])
    return changed("each file needs its caption in a text file of the same name.", dataset__folder=given.value[0])


def _buckets(context: Context, given: Given) -> Answer:
    # dataset/image_video_dataset.py: the video dataset's caching always makes buckets, whatever this says.
    if given.dataset is not None and _is_video(context, given.dataset):
        return changed("musubi-tuner sorts clips into buckets whatever it says.", dataset__aspect_buckets=True)
    return mapped(dataset__aspect_buckets=truth(given.value))


def _frames(context: Context, given: Given) -> Answer:
    """target_frames: each clip once for each of them, and clips that are shorter are dropped without a word."""
    values = given.value if isinstance(given.value, list) else [given.value]
    counts = [need_number(value, is_whole=True) for value in values]
    if str(context.get("frame_extraction", "head", given.dataset)) == "full":
        return not_needed("frame_extraction full takes the whole clip.")
    kept = list(dict.fromkeys(frames(count) for count in counts))
    why = "Wan takes 4n+1 frames." if kept != counts else ""
    short = {"short_clips": "skip"}
    if len(kept) == 1:
        return either(why, dataset__num_frames=kept[0], dataset__short_clips="skip")
    if can_have_several():
        variants = [{"num_frames": count, **short} for count in kept]
        return Answer("changed", {VARIANTS: variants}, f"it is a dataset for each number of frames. {why}".strip())
    most = max(kept)
    return changed(
        f"a dataset has one number of frames here: the most are taken, {most}.",
        dataset__num_frames=most,
        dataset__short_clips="skip",
    )


def _extraction(context: Context, given: Given) -> Answer:
    word = str(given.value)
    if word == "uniform":
        count = need_number(context.get("frame_sample", 1, given.dataset), is_whole=True)
        if count <= 1:  # dataset/datasources.py: uniform with one sample is head
            return changed("uniform with one window is the first frames.", dataset__frame_sampling="head")
    found = choice_of("dataset.frame_sampling", word)
    return not_supported(f"there is no {word} here.") if found is None else mapped(dataset__frame_sampling=found)


def _stride(context: Context, given: Given) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "slide":
        return not_needed("frame_extraction is not slide.")
    return mapped(dataset__slide_stride=need_number(given.value, is_whole=True))


def _sample(context: Context, given: Given) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "uniform":
        return not_needed("frame_extraction is not uniform.")
    return mapped(dataset__windows_per_clip=need_number(given.value, is_whole=True))


def _fps(context: Context, _given: Given) -> Answer:
    return changed(
        f"the rate of each clip is read from it, and brought to {context.facts.get('fps', 16):g} frames a second so that motion"
        " keeps its speed."
    )


def _max_frames(context: Context, given: Given) -> Answer:
    if context.get("frame_extraction", "head", given.dataset) != "full":
        return not_needed("frame_extraction is not full.")
    return not_supported("full takes the whole clip here, of whatever length: cut longer clips.")


def _batch_size(context: Context, given: Given) -> Answer:
    """batch_size is a dataset's there, and the run's here."""
    found = need_number(given.value, is_whole=True)
    sizes = {item.value for item in context.given if item.key == "batch_size" and item.file}
    if len(sizes) > 1 and given.value != max(sizes, key=lambda size: number(size) or 0):
        return not_supported("all datasets of a run have one batch_size here: the largest is taken.")
    return mapped(loop__batch_size=found)


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


def _law(context: Context, given: Given) -> Answer:
    """Constants of laws of noise levels that hardly anybody uses for Wan."""
    is_used = str(context.get("timestep_sampling")).startswith(("sigma", "logsnr", "qinglong"))
    if given.key == "mode_scale":
        is_used = context.get("weighting_scheme") == "mode"
    return not_supported("it has no constant of its own here.") if is_used else not_needed("its law is not used.")


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
    "resolution": _resolution,
    "image_directory": _folder,
    "video_directory": _folder,
    "image_jsonl_file": _list_file,
    "video_jsonl_file": _list_file,
    "list": _list,
    "enable_bucket": _buckets,
    "target_frames": _frames,
    "frame_extraction": _extraction,
    "frame_stride": _stride,
    "frame_sample": _sample,
    "max_frames": _max_frames,
    "source_fps": _fps,
    "batch_size": _batch_size,
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

# Where neither a rule nor a declaration knows an option.
REST: dict[str, Rule] = {
    **needless(CACHES, "cache_directory", "cache.dataset_config", "cache.skip_existing", "cache.batch_size",
               "cache.keep_cache", "cache.num_workers", "cache.device", "cache.vae_cache_cpu", "cache.vae_dtype",
               "cache.i2v", "cache.fp8_t5", "cache.debug_mode", "cache.one_frame", "cache.disable_cudnn_backend",
               "vae_cache_cpu", "fp8_t5", "vae_dtype"),
    **needless("its options are those of the dataset, if you bring the file too.", "dataset_config"),
    **needless("its options are read, if you bring the file too.", "config_file"),
    **needless(LOADING, "max_data_loader_n_workers", "persistent_data_loader_workers", "disable_numpy_memmap"),
    **needless(ONE_PROCESS, "ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph",
               *(f"accelerate.{name}" for name in ("num_cpu_threads_per_process", "num_processes", "num_machines",
                 "mixed_precision", "dynamo_backend", "gpu_ids", "main_process_port", "machine_rank", "config_file",
                 "multi_gpu", "m"))),
    **needless(OWN_LOG, "logging_dir", "log_with", "log_prefix", "log_tracker_name", "wandb_run_name",
               "log_tracker_config", "wandb_api_key", "log_config"),
    **needless(NO_UPLOAD, "huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
               "huggingface_repo_visibility", "save_state_to_huggingface", "resume_from_huggingface", "async_upload"),
    **needless(RESUMES, "save_state", "save_state_on_train_end", "resume", "save_last_n_epochs_state",
               "save_last_n_steps_state"),
    **needless("it belongs to --compile.", "compile_backend", "compile_mode", "compile_dynamic", "compile_fullgraph",
               "compile_cache_size_limit", "dynamo_mode", "dynamo_fullgraph", "dynamo_dynamic"),
    **needless("blocks are copied to the GPU alone, ahead of need, as it asks for.", "block_swap_h2d_only",
               "block_swap_ring_size"),
    **needless("each expert has a run of its own, and the other is not in memory.", "offload_inactive_dit"),
    **needless("the LoRA's title is its name.", "metadata_title"),
    **needless("the metadata tell what was trained, in the form that ComfyUI and its managers read.", "metadata_reso",
               "metadata_arch", "no_metadata"),
    **needless("it is for other models.", "guidance_scale", "img_in_txt_in_offloading", "one_frame"),
    **dict.fromkeys(("logit_mean", "logit_std", "mode_scale"), _law),
    **needless("settings of the GPU's arithmetic are chosen here.", "cuda_allow_tf32", "cuda_cudnn_benchmark"),
    **unsupported("checkpoints are not made for their own sake here: the newest are kept (loop.keep_last).",
                  "save_last_n_epochs"),
    **unsupported("only training goes on from here: a LoRA of elsewhere is merged with Merge Stages afterwards.",
                  "network_weights", "dim_from_weights", "base_weights", "base_weights_multiplier"),
    **unsupported("previews are counted in steps here (previews.every).", "sample_every_n_epochs"),
    **unsupported("the first preview is made after that many steps.", "sample_at_first"),
    **unsupported("a dataset has no control clips here.", "control_directory", "multiple_target", "no_resize_control",
                  "control_resolution"),
    **unsupported("the LoRA's metadata hold no such text here; Merge Stages takes a description.", "metadata_description",
                  "metadata_license", "metadata_tags", "training_comment"),
    **unsupported("the model is built as its file says.", "force_v2_1_time_embedding"),
}  # fmt: skip
