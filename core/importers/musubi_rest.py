"""Options of musubi-tuner that have none here: why that does not matter, or what is missing by it."""

from .answers import Answer, Context, Given, Rule, not_needed, not_supported
from .common import (
    CACHES,
    LOADING,
    NO_UPLOAD,
    ONE_PROCESS,
    OWN_LOG,
    RESUMES,
    needless,
    unsupported,
)


def _law(context: Context, given: Given) -> Answer:
    """Constants of laws of noise levels that hardly anybody uses for Wan."""
    is_used = str(context.get("timestep_sampling")).startswith(("sigma", "logsnr", "qinglong"))
    if given.key == "mode_scale":
        is_used = context.get("weighting_scheme") == "mode"
    return not_supported("it has no constant of its own here.") if is_used else not_needed("its law is not used.")


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
    **unsupported("only training goes on from here: a LoRA of elsewhere can be merged into the finished one.",
                  "network_weights", "dim_from_weights", "base_weights", "base_weights_multiplier"),
    **unsupported("previews are counted in steps here (previews.every).", "sample_every_n_epochs"),
    **unsupported("the first preview is made after that many steps.", "sample_at_first"),
    **unsupported("a dataset has no control clips here.", "control_directory", "multiple_target", "no_resize_control",
                  "control_resolution"),
    **unsupported("the LoRA's metadata hold no such text here.", "metadata_description",
                  "metadata_license", "metadata_tags", "training_comment"),
    **unsupported("the model is built as its file says.", "force_v2_1_time_embedding"),
}  # fmt: skip
