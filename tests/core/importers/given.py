"""Setups as people have them, small: what each trainer's documents and guides show, with other names and values."""

from wan_train.core.importers.setup import import_setup
from wan_train.core.importers.texts import SetupFile

MUSUBI_DATASET = """
[general]
resolution = [960, 960]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "/data/pictures"
cache_directory = "/data/pictures/cache"
num_repeats = 1
"""

FLAGS = """accelerate launch --num_cpu_threads_per_process 1 src/musubi_tuner/wan_train_network.py \\
--task t2v-A14B \\
--dit /models/wan2.2_t2v_{stage}_noise_14B_fp16.safetensors \\
--vae /models/wan_2.1_vae.safetensors \\
--t5 /models/models_t5_umt5-xxl-enc-bf16.pth \\
--dataset_config /data/dataset.toml \\
--xformers --mixed_precision fp16 --fp8_base \\
--optimizer_type adamw --learning_rate 3e-4 --gradient_checkpointing \\
--gradient_accumulation_steps 1 --max_data_loader_n_workers 2 \\
--network_module networks.lora_wan --network_dim 16 --network_alpha 16 \\
--timestep_sampling shift --discrete_flow_shift 1.0 \\
--max_train_epochs 100 --save_every_n_epochs 100 --seed 5 \\
--optimizer_args weight_decay=0.1 --max_grad_norm 0 \\
--lr_scheduler polynomial --lr_scheduler_power 8 --lr_scheduler_min_lr_ratio="5e-5" \\
--output_dir /out --output_name WAN2.2-{name}_mine --metadata_title WAN2.2-{name}_mine --metadata_author Ann \\
--preserve_distribution_shape --min_timestep {low} --max_timestep {high}
"""

MUSUBI_COMMANDS = f"""#!/bin/bash
cd /musubi-tuner
source venv/bin/activate
# first the caches
python src/musubi_tuner/wan_cache_latents.py --dataset_config /data/dataset.toml --vae /models/wan_2.1_vae.safetensors
{FLAGS.format(stage="high", name="HighNoise", low=875, high=1000)}
{FLAGS.format(stage="low", name="LowNoise", low=0, high=875)}
"""

AITOOLKIT = """
job: extension
config:
  name: "wan22_orbit_v1"
  process:
    - type: 'diffusion_trainer'
      training_folder: "output"
      device: cuda:0
      trigger_word: "zxq_orbit"
      network:
        type: "lora"
        linear: 16
        linear_alpha: 16
      save:
        dtype: bf16
        save_every: 250
        max_step_saves_to_keep: 4
      datasets:
        - folder_path: "C:\\\\clips\\\\orbit"
          caption_ext: "txt"
          default_caption: "orbit 360 around the subject, zxq_orbit"
          caption_dropout_rate: 0.05
          num_frames: 33
          shrink_video_to_frames: true
          resolution: [ 512, 768 ]
          network_weight: 1
          is_reg: false
          flip_x: false
      train:
        batch_size: 1
        steps: 3000
        gradient_accumulation: 1
        timestep_type: 'linear'
        content_or_style: 'balanced'
        optimizer: "adamw8bit"
        lr: 1e-4
        optimizer_params:
          weight_decay: 1e-4
        loss_type: mse
        switch_boundary_every: 10
        cache_text_embeddings: true
        dtype: bf16
        diff_output_preservation: false
        ema_config:
          use_ema: false
          ema_decay: 0.99
      model:
        name_or_path: "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16"
        arch: 'wan22_14b'
        quantize: true
        qtype: "uint4|ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors"
        quantize_te: true
        qtype_te: "qfloat8"
        low_vram: true
        model_kwargs:
          train_high_noise: true
          train_low_noise: true
      sample:
        sampler: "flowmatch"
        sample_every: 250
        num_frames: 33
        guidance_scale: 3.5
        prompts:
          - "[trigger] around a castle"
          - "[trigger] around a teddy bear"
        neg: ""
meta:
  name: "[name]"
"""

SIMPLETUNER = """{
  "resume_from_checkpoint": "latest", "data_backend_config": "config/wan/multidatabackend.json", "seed": 42,
  "output_dir": "output/wan", "lora_type": "standard", "max_train_steps": 400000, "num_train_epochs": 0,
  "checkpoint_step_interval": 1000, "checkpoints_total_limit": 5, "push_to_hub": "true", "report_to": "wandb",
  "model_type": "lora", "pretrained_model_name_or_path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "model_family": "wan",
  "train_batch_size": 2, "gradient_checkpointing": true, "gradient_accumulation_steps": 1,
  "caption_dropout_probability": 0.1, "resolution_type": "pixel_area", "resolution": 480, "validation_seed": 42,
  "validation_step_interval": 100, "validation_resolution": "832x480", "validation_prompt": "two cats that box",
  "validation_guidance": 5.2, "validation_num_inference_steps": 40, "validation_num_video_frames": 81,
  "mixed_precision": "bf16", "optimizer": "optimi-lion", "learning_rate": 0.00005, "max_grad_norm": 0.01,
  "grad_clip_method": "value", "lr_scheduler": "cosine", "lr_warmup_steps": 400, "base_model_precision": "no_change",
  "delete_problematic_images": "true", "lora_rank": 16, "flow_schedule_shift": 3,
  "tread_config": {"routes": [{"selection_ratio": 0.1, "start_layer_idx": 2, "end_layer_idx": -2}]}
}"""

SIMPLETUNER_DATASETS = """[
  {"id": "old-films", "type": "local", "dataset_type": "video", "crop": false, "resolution": 480,
   "resolution_type": "pixel_area", "target_downsample_size": 480, "maximum_image_size": 480,
   "cache_dir_vae": "cache/vae/films", "instance_data_dir": "datasets/films", "disabled": false,
   "caption_strategy": "textfile", "metadata_backend": "discovery", "repeats": 0,
   "video": {"num_frames": 75, "min_frames": 75, "bucket_strategy": "aspect_ratio"}},
  {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": true, "cache_dir": "cache/text",
   "write_batch_size": 128}
]"""

PROMPTS = '{"anime_mine": "a film of mine, drawn", "chef_mine": "mine as a cook"}'

DIFFUSION_PIPE = """
output_dir = '/data/runs/mine'
dataset = 'dataset.toml'
epochs = 1000
max_steps = 1500
micro_batch_size_per_gpu = 1
pipeline_stages = 1
gradient_accumulation_steps = 4
gradient_clipping = 1.0
warmup_steps = 10
save_every_n_epochs = 5
checkpoint_every_n_minutes = 120
activation_checkpointing = 'unsloth'
save_dtype = 'bfloat16'
video_clip_mode = 'single_beginning'
blocks_to_swap = 32

[model]
type = 'wan'
ckpt_path = '/models/Wan2.2-T2V-A14B'
transformer_path = '/models/wan2.2_t2v_low_noise_14B_fp16.safetensors'
llm_path = '/models/umt5_xxl_fp16.safetensors'
dtype = 'bfloat16'
transformer_dtype = 'float8'
timestep_sample_method = 'logit_normal'
min_t = 0
max_t = 0.875

[adapter]
type = 'lora'
rank = 32
dtype = 'bfloat16'

[optimizer]
type = 'adamw_optimi'
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.01
"""

DIFFUSION_PIPE_DATASET = """
resolutions = [512]
enable_ar_bucket = true
min_ar = 0.5
max_ar = 2.0
num_ar_buckets = 7
frame_buckets = [1, 33]

[[directory]]
path = '/data/grey'
num_repeats = 2

[[directory]]
path = '/data/colour'
num_repeats = 5
"""

SETUPS = {
    "musubi": {"dataset.toml": MUSUBI_DATASET, "train.sh": MUSUBI_COMMANDS},
    "aitoolkit": {"job.yaml": AITOOLKIT},
    "simpletuner": {
        "config.json": SIMPLETUNER,
        "multidatabackend.json": SIMPLETUNER_DATASETS,
        "user_prompt_library.json": PROMPTS,
    },
    "diffusion_pipe": {"config.toml": DIFFUSION_PIPE, "dataset.toml": DIFFUSION_PIPE_DATASET},
}


def bring(**files):
    """The import of files by their names, with _ for the dot."""
    return import_files({name.replace("__", "."): text for name, text in files.items()})


def import_files(files):
    """The import of files by their names."""
    return import_setup([SetupFile(name, text) for name, text in files.items()])


def line(imported, key, *, dataset=None, stage=None):
    """The only line of an option."""
    found = [
        one
        for one in imported.lines
        if one.given.key == key and dataset in (None, one.given.dataset) and stage in (None, one.stage)
    ]
    assert len(found) == 1, (key, [one.given.name for one in found])
    return found[0]


def outcome(imported, key, **which):
    """(outcome, values) of an option."""
    answer = line(imported, key, **which).answer
    return answer.outcome, dict(answer.values)
