"""Measures DiffSynth-Studio (github.com/modelscope/DiffSynth-Studio), from a checkout, on one GPU or several.

Its own `train.py` is started by `accelerate launch`, as its examples do, on latents and a text that are cached.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from wan_train.benchmarks import musubi
from wan_train.benchmarks.lora_clock import GIB
from wan_train.benchmarks.material import MODELS, Clip, random_pair
from wan_train.benchmarks.musubi import Peer
from wan_train.core.wan.config import WanConfig

NAME = "diffsynth"
# Of its examples/wanvideo/model_training/lora/Wan2.1-T2V-14B.sh, but for the rank; checkpointing is always on there.
COMMON = {
    "--task": "sft:train",
    "--learning_rate": "1e-4",
    "--num_epochs": "1",
    "--remove_prefix_in_ckpt": "pipe.dit.",
    "--lora_base_model": "dit",
    "--lora_target_modules": "q,k,v,o,ffn.0,ffn.2",
    "--lora_rank": "16",
}


def measure(peer: Peer, gpus: int, limit: float) -> dict[str, Any]:
    """Train on the only clip of `peer` over so many GPUs (processes where there is none): seconds a step, peaks of each.

    Nothing for a run that failed, or was not done after `limit` seconds.
    """
    (clip,) = peer.clips
    config = MODELS[peer.model_name]
    folder = peer.work / NAME
    shutil.rmtree(folder, ignore_errors=True)
    write_cache(folder / "data", clip, config)
    write_tokenizer(folder / "tokenizer")
    environment = peer.environment() | {
        "DIFFSYNTH_SKIP_DOWNLOAD": "True",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": str(not torch.cuda.is_available()),
        "NCCL_NVLS_ENABLE": os.environ.get("NCCL_NVLS_ENABLE", "0"),  # as ours has it
    }
    if peer.model_name == "toy":
        environment["DIFFSYNTH_MODEL_SIZES"] = json.dumps({"path": str(peer.model), "sizes": sizes_of(config)})
    what = f"DiffSynth-Studio on {gpus} GPU{'s' if gpus > 1 else ''}"
    musubi.run_logged(what, command(peer, gpus, folder), environment, peer.work, limit)
    return read_ranks(folder, gpus, peer, config)


def command(peer: Peer, gpus: int, folder: Path) -> list[str]:
    """What starts it. Each GPU has a sample of its own in a step, so the data are repeated for all."""
    fixed = {
        "--model_paths": json.dumps([str(peer.model)]),
        "--tokenizer_path": str(folder / "tokenizer"),
        "--dataset_base_path": str(folder / "data"),
        "--dataset_repeat": str(peer.total_steps * gpus),
        "--output_path": str(folder / "out"),
    }
    start = ["accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(gpus)]
    start += ["--mixed_precision", "no", "--dynamo_backend", "no", *(["--multi_gpu"] if gpus > 1 else [])]
    if not torch.cuda.is_available():  # there accelerate starts one process only; this is how it starts several
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    return [
        *(sys.executable, "-m", *start),
        *(str(Path(__file__).with_name("diffsynth_launch.py")), str(peer.checkout), str(folder / "records.jsonl")),
        *(part for pair in (fixed | COMMON).items() for part in pair),
        *([] if torch.cuda.is_available() else ["--initialize_model_on_cpu"]),
    ]


def read_ranks(folder: Path, gpus: int, peer: Peer, config: WanConfig) -> dict[str, Any]:
    """The first process's times, and the peak of each in GB of 2**30 bytes; nothing unless each did all of its steps."""
    paths = [folder / f"records-{rank}.jsonl" for rank in range(gpus)]
    rows = [row for path in paths for row in musubi.read_records(path, peer, config, "", NAME)]
    if [row["steps"] for row in rows] != [peer.total_steps - peer.warmup] * gpus:
        return {}
    peaks = [round(row.get("peak_reserved_gb", 0.0) * 1e9 / GIB, 2) for row in rows]
    return {name: rows[0][name] for name in ("s", "s_min", "s_max", "first_step_s")} | {"peaks_gb": peaks}


def write_cache(folder: Path, clip: Clip, config: WanConfig) -> None:
    """A sample as its task sft:data_process stores one, without what no step reads: pixels, noise, and a negative text."""
    folder.mkdir(parents=True)
    latents, text = random_pair(clip, config)
    shared = {
        "input_latents": latents[None],
        "height": clip.height,
        "width": clip.width,
        "num_frames": clip.frames,
        "cfg_scale": 1,
        "tiled": False,
        "rand_device": "cpu",
        "use_gradient_checkpointing": True,
        "use_gradient_checkpointing_offload": False,
        "cfg_merge": False,
        "vace_scale": 1,
        "max_timestep_boundary": 1.0,
        "min_timestep_boundary": 0.0,
    }
    context = torch.nn.functional.pad(text, (0, 0, 0, config.text_len - len(text)))
    torch.save((shared, {"prompt": "random", "context": context[None]}, {}), folder / "0.pth")


def write_tokenizer(folder: Path) -> None:
    """One that knows a single word: it is read at the start, and no step uses it."""
    folder.mkdir(parents=True)
    model = {"type": "WordLevel", "vocab": {"random": 0}, "unk_token": "random"}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model}), encoding="utf-8"
    )
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")


def sizes_of(config: WanConfig) -> dict[str, Any]:
    """As the arguments of its WanModel."""
    names = (
        "dim",
        "in_dim",
        "ffn_dim",
        "out_dim",
        "text_dim",
        "freq_dim",
        "eps",
        "patch_size",
        "num_heads",
        "num_layers",
    )
    return {name: getattr(config, name) for name in names} | {"has_image_input": False}
