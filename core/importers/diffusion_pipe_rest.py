"""Options of diffusion-pipe that have none here: why that does not matter, or what is missing by it."""

from .answers import Rule
from .common import (
    CACHES,
    LOADING,
    ONE_PROCESS,
    OWN_LOG,
    RESUMES,
    TRACKERS,
    needless,
    unsupported,
)

REST: dict[str, Rule] = {
    **needless(ONE_PROCESS, "pipeline_stages", "partition_method", "partition_split"),
    **needless(CACHES, "caching_batch_size", "model.cache_text_embeddings"),
    **needless(LOADING, "map_num_proc"),
    **needless(OWN_LOG, "steps_per_print", "logging_steps", "x_axis_examples"),
    **needless(TRACKERS, "monitoring.enable_wandb", "monitoring.wandb_api_key", "monitoring.wandb_tracker_name",
               "monitoring.wandb_run_name"),
    **needless(RESUMES, "resume_from_checkpoint"),
    **needless("its options are read, if you bring the file too.", "dataset"),
    **needless("the held-out loss is measured every loop.validate_every steps, where samples are held out.",
               "eval_every_n_epochs", "eval_every_n_examples", "eval_before_first_step", "eval_micro_batch_size_per_gpu",
               "image_eval_micro_batch_size_per_gpu", "eval_gradient_accumulation_steps", "disable_block_swap_for_eval"),
    **needless("the LoRA computes in fp32.", "adapter.dtype"),
    **needless("AdamW computes in fp32 here.", "optimizer.stabilize", "optimizer.gradient_release"),
    **needless("it is for other models.", "model.guidance"),
    **unsupported("the loss has no such form here.", "pseudo_huber_c"),
    **unsupported("files without a caption are left out and listed, unless the dataset has a default_caption.",
                  "skip_empty_caption"),
    **unsupported("each file has a mask of its own here.", "default_mask_file"),
    **unsupported("the models that are given control clips cannot be trained yet (dataset.control_clips).", "control_path"),
    **unsupported("sizes are made of your files' aspect ratios.", "size_buckets"),
    **unsupported("the learning rate follows the schedule.", "force_constant_lr"),
    # models/flux.py and models/chroma.py read it, models/wan/wan.py does not
    **needless("diffusion-pipe reads it for Flux and Chroma alone; here adapter.merge_into_base can name such a file.",
               "adapter.fuse_adapters", "adapter.fuse_adapters.*"),
    **unsupported("checkpoints are counted in steps here (loop.checkpoint_every).", "save_every_n_examples"),
}  # fmt: skip
