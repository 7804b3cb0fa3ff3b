"""What three guides to Wan have a person write for the dataset, on miniature files.

S0: AI_Characters' guide for musubi-tuner, pictures of 960. S1: a guide to AI-Toolkit's panels, clips of 33 frames at 512. S2:
SimpleTuner's quick start for Wan, clips of 75 frames at 480.
"""

import json
from pathlib import Path

from PIL import Image
from wan_train.tools.shapes import _scenes, draw_frame, write_clip


def draw_s0(folder: Path) -> None:
    """Pictures of two shapes with their captions, in one folder, where the guide's dataset.toml lies too."""
    folder.mkdir(parents=True)
    scenes = _scenes(0)
    for name, size in (("ohwx_01", (64, 64)), ("ohwx_02", (96, 64))):
        picture = Image.fromarray(draw_frame(next(scenes), 0.5, 96)).resize(size)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")


def draw_s1(folder: Path) -> None:
    """Clips of 3 seconds and one of 8, two with captions that hold [trigger], one without any."""
    folder.mkdir(parents=True)
    scenes = _scenes(1)
    for name, seconds in (("walk_1", 3), ("walk_2", 8), ("walk_3", 3)):
        scene, count = next(scenes), 16 * seconds
        write_clip(folder / f"{name}.mp4", [draw_frame(scene, i / (count - 1), 64) for i in range(count)], 16)
    (folder / "walk_1.txt").write_text("a portrait of [trigger], medium shot, studio light", encoding="utf-8")
    (folder / "walk_2.txt").write_text("[trigger] in casual clothes", encoding="utf-8")


def draw_s2(folder: Path) -> None:
    """A clip of 75 frames at 15 a second, and one that is too short, both 480 high."""
    folder.mkdir(parents=True)
    scenes = _scenes(2)
    for name, count in (("mouse", 75), ("boat", 30)):
        scene = next(scenes)
        write_clip(folder / f"{name}.mp4", [draw_frame(scene, i / (count - 1), 480) for i in range(count)], 15)
        (folder / f"{name}.txt").write_text(f"an old black and white cartoon of a {name}", encoding="utf-8")


def s0_files(folder: str) -> dict[str, str]:
    """dataset.toml, and the commands of both experts in a script."""
    dataset = f"""
[general]
resolution = [960 , 960]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "{folder}"
cache_directory = "{folder}/cache"
num_repeats = 1
"""
    common = (
        f"--task t2v-A14B --vae /m/wan_2.1_vae.safetensors --t5 /m/models_t5_umt5-xxl-enc-bf16.pth --dataset_config "
        f"{folder}/dataset.toml --xformers --mixed_precision fp16 --fp8_base --optimizer_type adamw --learning_rate 3e-4 "
        "--gradient_checkpointing --gradient_accumulation_steps 1 --max_data_loader_n_workers 2 --network_module "
        "networks.lora_wan --network_dim 16 --network_alpha 16 --timestep_sampling shift --discrete_flow_shift 1.0 "
        "--max_train_epochs 100 --save_every_n_epochs 100 --seed 5 --optimizer_args weight_decay=0.1 --max_grad_norm 0 "
        '--lr_scheduler polynomial --lr_scheduler_power 8 --lr_scheduler_min_lr_ratio="5e-5" --preserve_distribution_shape'
    )
    train = "accelerate launch --num_cpu_threads_per_process 1 src/musubi_tuner/wan_train_network.py"
    lines = [
        f"{train} {common} --dit /m/wan2.2_t2v_{stage}_noise_14B_fp16.safetensors --output_dir /out --output_name "
        f"WAN2.2-{name}_MyLoRA --min_timestep {low} --max_timestep {high}"
        for stage, name, low, high in (("high", "HighNoise", 875, 1000), ("low", "LowNoise", 0, 875))
    ]
    return {"dataset.toml": dataset, "train.sh": "\n".join(lines) + "\n"}


def s1_files(folder: str) -> dict[str, str]:
    """The job that AI-Toolkit's panels write: trigger word, dataset of 512 with 33 frames, default caption, dropout."""
    job = f"""
job: extension
config:
  name: wan22_t2v_char_zxq_v1
  process:
    - type: diffusion_trainer
      trigger_word: zxqperson
      network: {{type: lora, linear: 16, linear_alpha: 16}}
      save: {{dtype: bf16, save_every: 250, max_step_saves_to_keep: 4}}
      datasets:
        - folder_path: {json.dumps(folder)}
          default_caption: "a portrait of zxqperson, cinematic light"
          caption_ext: txt
          caption_dropout_rate: 0.05
          cache_latents_to_disk: false
          is_reg: false
          network_weight: 1
          flip_x: false
          flip_y: false
          resolution: [512]
          num_frames: 33
          shrink_video_to_frames: true
      train: {{batch_size: 1, steps: 3000, gradient_accumulation: 1, optimizer: adamw8bit, lr: 0.0001, timestep_type: linear,
        content_or_style: balanced, switch_boundary_every: 10, cache_text_embeddings: true, loss_type: mse}}
      model: {{name_or_path: ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16, arch: wan22_14b, low_vram: true,
        model_kwargs: {{train_high_noise: true, train_low_noise: true}}}}
"""
    return {"wan22_t2v_char_zxq_v1.yaml": job}


def s2_files(folder: str) -> dict[str, str]:
    """config.json with what belongs to the data, and multidatabackend.json."""
    backends = [
        {
            "id": "disney-black-and-white", "type": "local", "dataset_type": "video", "crop": False, "resolution": 480,
            "minimum_image_size": 480, "maximum_image_size": 480, "target_downsample_size": 480,
            "resolution_type": "pixel_area", "cache_dir_vae": "cache/vae/wan/disney-black-and-white",
            "instance_data_dir": folder, "disabled": False, "caption_strategy": "textfile",
            "metadata_backend": "discovery", "repeats": 0,
            "video": {"num_frames": 75, "min_frames": 75, "bucket_strategy": "aspect_ratio"},
        },
        {
            "id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True,
            "cache_dir": "cache/text/wan", "disabled": False, "write_batch_size": 128,
        },
    ]  # fmt: skip
    config = {
        "data_backend_config": "config/wan/multidatabackend.json", "model_family": "wan", "model_type": "lora",
        "pretrained_model_name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "aspect_bucket_rounding": 2, "seed": 42,
        "minimum_image_size": 0, "resolution_type": "pixel_area", "resolution": 480, "train_batch_size": 2,
        "caption_dropout_probability": 0.1, "max_train_steps": 400000, "num_train_epochs": 0, "lora_rank": 16,
        "optimizer": "optimi-lion", "learning_rate": 0.00005, "disable_bucket_pruning": True, "lora_type": "standard",
    }  # fmt: skip
    return {"config.json": json.dumps(config), "multidatabackend.json": json.dumps(backends)}
