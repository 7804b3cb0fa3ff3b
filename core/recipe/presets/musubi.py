"""AI_Characters' guide for Wan 2.2 T2V A14B with musubi-tuner: https://civitai.com/articles/17740"""

from .preset import Preset, plain, told

_COMMAND, _FILE = "The guide's commands for both experts", "The guide's dataset.toml"

_DATASET = {
    "width": (960, f"{_FILE}: resolution = [960, 960]."),
    "height": (960, f"{_FILE}: resolution = [960, 960]."),
    "aspect_buckets": (True, f"{_FILE}: enable_bucket = true."),
    "upscale": (True, f"{_FILE}: bucket_no_upscale = false."),
    "caption_extension": (".txt", f'{_FILE}: caption_extension = ".txt".'),
}
# The guide computes in fp16 over a base in fp8; here both are bf16, and the precisions fp16 and fp8 are one setting away.
# Its trainer ignores the ratio of the lowest learning rate with a polynomial schedule; here it counts, as it was meant.
_MODEL = {
    "precision": (
        "bf16",
        f"{_COMMAND} say --mixed_precision fp16 --fp8_base; bf16 is nearer to the model, and the plan swaps blocks.",
    ),
    "checkpointing": ("auto", f"{_COMMAND}: --gradient_checkpointing; here the plan turns it on where it is needed."),
}
_TRAIN = {
    "learning_rate": (3e-4, f"{_COMMAND}: --learning_rate 3e-4."),
    "rank": (16, f"{_COMMAND}: --network_dim 16."),
    "alpha": (16.0, f"{_COMMAND}: --network_alpha 16."),
    "batch_size": (1, f"{_FILE}: batch_size = 1."),
    "seed": (5, f"{_COMMAND}: --seed 5."),
    "timestep_sampling": ("shift", f"{_COMMAND}: --timestep_sampling shift."),
    "timestep_shift": (1.0, f"{_COMMAND}: --discrete_flow_shift 1.0."),
    "boundary": (0.875, f"{_COMMAND}: --min_timestep 875 for high noise, --max_timestep 875 for low noise."),
    "gradient_accumulation": (1, f"{_COMMAND}: --gradient_accumulation_steps 1."),
    "optimizer": ("adamw", f"{_COMMAND}: --optimizer_type adamw."),
    "weight_decay": (0.1, f"{_COMMAND}: --optimizer_args weight_decay=0.1."),
    "max_grad_norm": (0.0, f"{_COMMAND}: --max_grad_norm 0."),
    "lr_schedule": ("polynomial", f"{_COMMAND}: --lr_scheduler polynomial."),
    "lr_floor": (5e-5, f"{_COMMAND}: --lr_scheduler_min_lr_ratio 5e-5, which counts here."),
    "lr_power": (8.0, f"{_COMMAND}: --lr_scheduler_power 8."),
}

MUSUBI = {
    "wan2.2-t2v-images": Preset(
        title="Wan 2.2 T2V, from images",
        description="AI_Characters' recipe for Wan 2.2 T2V A14B: 100 epochs over captioned images at 960x960, with a "
        "high learning rate that falls steeply.",
        kind="images",
        dataset=plain(_DATASET),
        model=plain(_MODEL),
        train=plain(_TRAIN),
        epochs=100,
        lora_names={"high": "WAN2.2-HighNoise_{name}", "low": "WAN2.2-LowNoise_{name}"},
        why={**told(_DATASET, _MODEL, _TRAIN), "epochs": f"{_COMMAND}: --max_train_epochs 100."},
    ),
}
