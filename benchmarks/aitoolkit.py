"""Measures AI-Toolkit (github.com/ostris/ai-toolkit), from a checkout, on the same model, sizes and text."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from wan_train.benchmarks import musubi
from wan_train.benchmarks.material import MODELS, Clip, random_pair
from wan_train.benchmarks.musubi import Peer
from wan_train.core.wan.config import WanConfig

NAME = "AI-Toolkit"
MODEL_NAMES = ("14b", "1.3b", "toy")  # those of its architecture "wan21"
COMPILED = "compile=true block_compile=true compile_dynamic=false"  # the fastest of its settings on an H100


def first_steps(peer: Peer, quantized: bool = False) -> Path:
    """Where the tensors of the first steps are, by the size of the clip; those of rounded weights are kept apart."""
    return peer.work / f"aitoolkit-{'quantized-' if quantized else ''}first-steps-{peer.model_name}"


def package_versions(peer: Peer) -> dict[str, str]:
    """Of the packages that decide its speed, each named as AI-Toolkit's: another peer has others."""
    return {f"{NAME}'s {name}": version for name, version in peer.package_versions().items()}


def measure(peer: Peer, setting: str, limit: float) -> list[dict[str, Any]]:
    """Train by its own `run.py`; a row for each clip, of those done so far where it failed or passed `limit` seconds.

    ValueError for a setting that is not a list of options such as "compile=true train.attention_backend=flash".
    """
    config = MODELS[peer.model_name]
    folder = peer.work / f"aitoolkit-{peer.model_name}"
    shutil.rmtree(folder, ignore_errors=True)  # it would go on from the LoRA of the last run
    options = read_setting(setting)
    job = write_job(folder, peer, config, options)
    dumps = first_steps(peer, bool(options.get("model", {}).get("quantize")))
    records = peer.work / "aitoolkit-records.jsonl"
    records.unlink(missing_ok=True)
    launcher = Path(__file__).with_name("aitoolkit_launch.py")
    command = [sys.executable, launcher, peer.checkout, job, peer.model, records, dumps]
    environment = peer.environment() | {"SEED": "42", "HF_HUB_OFFLINE": "1"}
    musubi.run_logged(f"{NAME}, {setting}", [str(part) for part in command], environment, peer.work, limit)
    return musubi.read_records(records, peer, config, setting, NAME)


def read_setting(setting: str) -> dict[str, dict[str, Any]]:
    """Options by the section of its configuration; those without a section are of the model. ValueError."""
    sections: dict[str, dict[str, Any]] = {}
    for part in setting.split():
        found = re.fullmatch(r"(?:(model|train|network)\.)?(\w+)=(\S+)", part)
        if found is None:
            raise ValueError(
                f"'{part}' is no option of AI-Toolkit: write NAME=VALUE for one of its section 'model', or "
                "train.NAME=VALUE or network.NAME=VALUE."
            )
        section, name, text = found.groups()
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        sections.setdefault(section or "model", {})[name] = value
    return sections


def version(checkout: Path) -> str:
    """What its version.py says, and the commit where the folder is a git checkout."""
    found = re.search(r'VERSION = "(.+)"', (checkout / "version.py").read_text(encoding="utf-8"))
    return musubi.with_commit(checkout, found[1] if found else "unknown")


def write_job(folder: Path, peer: Peer, config: WanConfig, options: dict[str, dict[str, Any]]) -> Path:
    """What its run.py takes, and beside that what the launcher gives it: latents, text, and the model's sizes."""
    datasets = [_write_dataset(folder / "data", clip, config, peer.repeats(clip)) for clip in peer.clips]
    _write_model_config(folder / "model" / "transformer", config)
    is_8bit = torch.cuda.is_available() and peer.has("bitsandbytes")
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "out"),
        "device": "cuda:0" if torch.cuda.is_available() else "cpu",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16} | options.get("network", {}),
        "save": {"dtype": "bf16", "save_every": 10**9},
        "sample": {"sample_every": 10**9, "prompts": []},
        "datasets": datasets,
        "train": {
            "batch_size": 1,
            "steps": peer.total_steps,
            "train_unet": True,
            "train_text_encoder": False,
            "gradient_checkpointing": True,
            "noise_scheduler": "flowmatch",
            "timestep_type": "linear",  # uniform, and no weights on the loss
            "optimizer": "adamw8bit" if is_8bit else "adamw",
            "lr": 1e-12,  # the adapter stays at its start, where every trainer adds nothing: losses can be compared
            "dtype": "bf16",
            "cache_text_embeddings": True,
            "disable_sampling": True,
        }
        | options.get("train", {}),
        "model": {"name_or_path": str(folder / "model"), "arch": "wan21"} | options.get("model", {}),
    }
    job = {"job": "extension", "config": {"name": "peer", "process": [process]}}
    path = folder / "job.json"
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return path


def _write_dataset(data: Path, clip: Clip, config: WanConfig, repeats: int) -> dict[str, Any]:
    """A dataset of one clip, whose file the launcher makes; the tensors lie beside the folder."""
    folder = data / str(clip)
    folder.mkdir(parents=True)
    (folder / "clip.txt").write_text("random", encoding="utf-8")
    latents, text = random_pair(clip, config)
    padded = torch.nn.functional.pad(text, (0, 0, 0, config.text_len - len(text)))
    save_file({"latents": latents, "text": padded}, data / f"{clip}.safetensors")
    return {
        "folder_path": str(folder),
        "caption_ext": "txt",
        "caption_dropout_rate": 0.0,
        "resolution": math.ceil(math.sqrt(clip.width * clip.height)),  # an area, as the side of its square
        "num_frames": clip.frames,
        "num_repeats": repeats,
        "shrink_video_to_frames": True,
        "cache_latents_to_disk": True,
    }


def _write_model_config(folder: Path, config: WanConfig) -> None:
    """The sizes as Diffusers names them."""
    folder.mkdir(parents=True)
    sizes = {
        "_class_name": "WanTransformer3DModel",
        "patch_size": config.patch_size,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
    }
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
