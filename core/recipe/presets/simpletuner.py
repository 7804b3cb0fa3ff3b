"""SimpleTuner's quick start for Wan: config.json and multidatabackend.json as they stand there, for Wan 2.1 T2V 1.3B.

https://github.com/bghira/SimpleTuner, documentation/quickstart/WAN.md. What its files leave out has SimpleTuner's defaults.
"""

from .preset import Preset, plain, told

_CONFIG, _BACKEND, _DEFAULT = "config.json", "multidatabackend.json", "Not in config.json: SimpleTuner's default"

_DATASET = {
    "width": (480, f"{_BACKEND}: resolution 480, resolution_type pixel_area."),
    "height": (480, f"{_BACKEND}: resolution 480, resolution_type pixel_area."),
    "aspect_buckets": (True, f"{_BACKEND}: crop false."),
    "num_frames": (73, f"{_BACKEND}: num_frames 75, of which SimpleTuner trains 73."),
    "short_clips": ("skip", f"{_BACKEND}: min_frames 75."),
    "min_megapixels": (0.2304, f"{_BACKEND}: minimum_image_size 480, the side of a square whose area counts."),
    "bad_files": ("skip", f"{_CONFIG}: delete_problematic_images; here they are left out, and stay on your disk."),
    "repeats": (1, f"{_BACKEND}: repeats 0, which counts those after the first time."),
    "caption_extension": (".txt", f"{_BACKEND}: caption_strategy textfile."),
}
_MODEL = {
    "precision": ("bf16", f"{_CONFIG}: mixed_precision bf16, base_model_precision no_change."),
    "checkpointing": ("auto", f"{_CONFIG}: gradient_checkpointing; here the plan turns it on where it is needed."),
}
_TRAIN = {
    "seed": (42, f"{_CONFIG}: seed 42."),
    "steps": (400_000, f"{_CONFIG}: max_train_steps 400000."),
    "checkpoint_every": (1000, f"{_CONFIG}: checkpoint_step_interval 1000."),
    "keep_last": (5, f"{_CONFIG}: checkpoints_total_limit 5."),
    "batch_size": (2, f"{_CONFIG}: train_batch_size 2."),
    "gradient_accumulation": (1, f"{_CONFIG}: gradient_accumulation_steps 1."),
    "caption_dropout": (0.1, f"{_CONFIG}: caption_dropout_probability 0.1."),
    "preview_every": (100, f"{_CONFIG}: validation_step_interval 100."),
    "preview_steps": (40, f"{_CONFIG}: validation_num_inference_steps 40."),
    "preview_cfg": (5.2, f"{_CONFIG}: validation_guidance 5.2."),
    "preview_width": (832, f"{_CONFIG}: validation_resolution 832x480."),
    "preview_height": (480, f"{_CONFIG}: validation_resolution 832x480."),
    "preview_frames": (81, f"{_CONFIG}: validation_num_video_frames 81."),
    "preview_seed": (42, f"{_CONFIG}: validation_seed 42."),
    "preview_at_start": (True, f"{_CONFIG}: disable_benchmark false."),
    "preview_sampler": ("uni_pc", f"{_DEFAULT} for Wan."),
    "preview_skip_layers": ("9", f"{_CONFIG}: validation_guidance_skip_layers [9]."),
    "preview_skip_start": (0.0, f"{_CONFIG}: validation_guidance_skip_layers_start 0."),
    "preview_skip_stop": (1.0, f"{_CONFIG}: validation_guidance_skip_layers_stop 1."),
    "optimizer": ("lion", f"{_CONFIG}: optimizer optimi-lion."),
    "beta2": (0.99, f"{_DEFAULT} for optimi-lion."),
    "weight_decay": (0.0, f"{_DEFAULT} for optimi-lion."),
    "learning_rate": (5e-5, f"{_CONFIG}: learning_rate 0.00005."),
    "max_grad_norm": (0.01, f"{_CONFIG}: max_grad_norm 0.01."),
    "grad_clip_method": ("value", f"{_CONFIG}: grad_clip_method value."),
    "lr_schedule": ("cosine", f"{_CONFIG}: lr_scheduler cosine."),
    "warmup_steps": (400_000, f"{_CONFIG}: lr_warmup_steps 400000, so that the learning rate only rises."),
    "ema": (True, f"{_CONFIG}: use_ema true."),
    "ema_update_interval": (2, f"{_CONFIG}: ema_update_interval 2."),
    "ema_validation": ("ema_only", f"{_CONFIG}: ema_validation ema_only."),
    "rank": (16, f"{_CONFIG}: lora_rank 16."),
    "alpha": (16.0, f"{_DEFAULT}: the rank."),
    "dropout": (0.1, f"{_DEFAULT}, lora_dropout 0.1."),
    "targets": ("attention", f"{_DEFAULT}: to_q, to_k, to_v and to_out of both attentions."),
    "timestep_sampling": ("shift", f"{_CONFIG}: flow_schedule_shift 3."),
    "timestep_shift": (3.0, f"{_CONFIG}: flow_schedule_shift 3."),
}

SIMPLETUNER = {
    "simpletuner-quickstart": Preset(
        title="Wan 2.1 T2V 1.3B, SimpleTuner's quick start",
        description="SimpleTuner's quick start for Wan 2.1 T2V 1.3B, number by number: Lion at 5e-5, a moving average, clips "
        "of 73 frames at 480. Its 400,000 steps of warm-up are the whole run: stop when the previews please you.",
        kind="quickstart",
        family="t2v-1.3b",
        dataset=plain(_DATASET),
        model=plain(_MODEL),
        train=plain(_TRAIN),
        why=told(_DATASET, _MODEL, _TRAIN),
    ),
}
