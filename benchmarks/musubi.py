"""Measures musubi-tuner (github.com/kohya-ss/musubi-tuner), from a checkout, on the same model, sizes and text."""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from safetensors.torch import save_file
from wan_train.benchmarks.material import MODELS, Clip, random_pair
from wan_train.core.wan.config import WanConfig

ENVIRONMENT = dict(os.environ)  # a peer has the one that the benchmark was started in, without what suits ours
TASKS = {"14b": "t2v-14B", "1.3b": "t2v-1.3B", "toy": "t2v-14B"}  # it has no TI2V-5B
# The learning rate keeps the adapter at its start, where every trainer adds nothing: the losses can be compared.
COMMON = (
    "--network_module networks.lora_wan --network_dim 16 --network_alpha 16 --gradient_checkpointing"
    " --learning_rate 1e-12 --timestep_sampling shift --discrete_flow_shift 3.0"
    " --max_data_loader_n_workers 2 --persistent_data_loader_workers --seed 42"
)
# Its fastest settings on an H100, without and with FlashAttention 3.
SDPA = "--sdpa --mixed_precision bf16 --cuda_allow_tf32 --cuda_cudnn_benchmark"
FLASH_3 = "--flash3 --mixed_precision bf16 --cuda_allow_tf32 --cuda_cudnn_benchmark"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A checkout, and the measurements wanted of it."""

    checkout: Path
    packages: Path | None = None  # a folder of packages that it alone sees, before the installed ones
    model_name: str
    model: Path
    clips: list[Clip]
    work: Path
    steps: int
    warmup: int
    samples: Mapping[Clip, int] = field(
        default_factory=dict
    )  # of a dataset: how many of each; one, for all steps of it
    num_steps: int = 0  # of all sizes together; 0: `warmup` and `steps` for each

    @property
    def total_steps(self) -> int:
        """Of the run."""
        return self.num_steps or len(self.clips) * (self.warmup + self.steps)

    def repeats(self, clip: Clip) -> int:
        """How often an epoch has the clip."""
        return self.samples.get(clip, self.warmup + self.steps)

    @property
    def dumps(self) -> Path:
        """Where the tensors of the first steps are, by the size of the clip."""
        return self.work / f"musubi-first-steps-{self.model_name}"

    def has(self, module: str) -> bool:
        """Whether it finds that module."""
        return PathFinder.find_spec(module, self._path) is not None

    def package_versions(self) -> dict[str, str]:
        """Of the packages that decide its speed."""
        names = ("accelerate", "transformers", "diffusers", "bitsandbytes")
        found = {name: next(iter(metadata.distributions(name=name, path=self._path)), None) for name in names}
        return {name: distribution.version for name, distribution in found.items() if distribution is not None}

    def environment(self) -> dict[str, str]:
        """Of its process."""
        found = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if self.packages:
            path = [str(self.packages.absolute()), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]
            found["PYTHONPATH"] = os.pathsep.join(path)
        return found

    @property
    def _path(self) -> list[str]:
        return [*([str(self.packages)] if self.packages else []), *sys.path]


def default_settings(peer: Peer) -> list[str]:
    """What to measure where nothing is said."""
    return [SDPA, FLASH_3] if peer.has("flash_attn_interface") else [SDPA]


def measure(peer: Peer, setting: str, limit: float) -> list[dict]:
    """Train by its own script; a row for each clip, of those done so far where it failed or passed `limit` seconds."""
    config = MODELS[peer.model_name]
    records = peer.work / "musubi-records.jsonl"
    records.unlink(missing_ok=True)
    command = _command(peer, setting, records, write_data(peer.work / "musubi-data", peer, config))
    environment = peer.environment()
    if peer.model_name == "toy":
        names = ("dim", "ffn_dim", "num_heads", "num_layers")
        environment["MUSUBI_MODEL_SIZES"] = json.dumps({name: getattr(config, name) for name in names})
    run_logged(f"musubi-tuner, {setting}", command, environment, peer.work, limit)
    return read_records(records, peer, config, setting)


def run_logged(what: str, command: list[str], environment: dict[str, str], work: Path, limit: float) -> None:
    """Run a peer's script for `limit` seconds at most, and print the end of what it said if it failed."""
    log = work / "peer.log"
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=limit, check=False
            ).returncode
            said = f"ended with code {code}" if code else ""
        except subprocess.TimeoutExpired:
            said = f"not done after {limit:.0f} s"
    if said:
        print(f"{what}: {said}\n{log.read_text(encoding='utf-8', errors='replace')[-1500:]}", flush=True)


def read_records(records: Path, peer: Peer, config: WanConfig, setting: str, name: str = "musubi-tuner") -> list[dict]:
    """The median of the steps behind the warm-up, by clip."""
    lines = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    rows = []
    for clip in peer.clips:
        steps = [line for line in lines if tuple(line["shape"][1:]) == clip.latent_shape(config)]
        timed = [step["s"] for step in steps[peer.warmup :]]
        if not timed:
            continue
        peaks = {name: round(max(s[name] for s in steps), 2) for name in steps[0] if name.endswith("_gb")}
        rows.append(
            {
                "clip": str(clip),
                "peer": name,
                "setting": setting,
                "s": round(statistics.median(timed), 4),
                "s_min": round(min(timed), 4),
                "s_max": round(max(timed), 4),
                "steps": len(timed),
                "first_step_s": round(steps[0]["s"], 2),
                **peaks,
            }
        )
    return rows


def version(checkout: Path) -> str:
    """What its pyproject.toml says, and the commit where the folder is a git checkout."""
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    found = next(line.split('"')[1] for line in text.splitlines() if line.startswith("version"))
    return with_commit(checkout, found)


def with_commit(checkout: Path, version: str) -> str:
    """The version, and the commit where the folder is a git checkout."""
    if not (checkout / ".git").exists():
        return version
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{version}, {done.stdout.strip()}" if done.returncode == 0 else version


def write_data(folder: Path, peer: Peer, config: WanConfig) -> Path:
    """Caches in its format, and the TOML that names them; every clip is repeated for all of its steps."""
    lines = ['[general]\ncaption_extension = ".txt"\nbatch_size = 1\nenable_bucket = false\n']
    for clip in peer.clips:
        place = folder / str(clip)
        for part in ("source", "cache"):
            (place / part).mkdir(parents=True, exist_ok=True)
        _write_cache(place / "cache", clip, config)
        lines.append(
            f"[[datasets]]\nresolution = [{clip.width}, {clip.height}]\nnum_repeats = {peer.repeats(clip)}\n"
            f"cache_directory = {json.dumps(str(place / 'cache'))}\n"
        )
        source = json.dumps(str(place / "source"))
        if clip.frames == 1:
            lines.append(f"image_directory = {source}\n")
        else:
            lines.append(f'video_directory = {source}\ntarget_frames = [{clip.frames}]\nframe_extraction = "head"\n')
    path = folder / "data.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _write_cache(folder: Path, clip: Clip, config: WanConfig) -> None:
    """Names and keys as its dataset/cache_io.py gives them."""
    latents, text = random_pair(clip, config)
    _, frames, height, width = latents.shape
    size = f"{clip.width:04d}x{clip.height:04d}"
    meta = {"architecture": "wan", "width": str(clip.width), "height": str(clip.height), "format_version": "1.0.1"}
    name = f"item_{size}_wan" if clip.frames == 1 else f"item_00000-{clip.frames:03d}_{size}_wan"
    if clip.frames > 1:
        meta["frame_count"] = str(clip.frames)
    save_file({f"latents_{frames}x{height}x{width}_bfloat16": latents}, folder / f"{name}.safetensors", metadata=meta)
    text_meta = {"architecture": "wan", "caption1": "random", "format_version": "1.0.1"}
    save_file({"varlen_t5_bfloat16": text}, folder / "item_wan_te.safetensors", metadata=text_meta)


def _command(peer: Peer, setting: str, records: Path, data: Path) -> list[str]:
    launcher = Path(__file__).with_name("musubi_launch.py")
    fixed = {
        "--task": TASKS[peer.model_name],
        "--dit": str(peer.model),
        "--dataset_config": str(data),
        "--max_train_steps": str(peer.total_steps),
        "--output_dir": str(peer.work / "musubi-out"),
        "--output_name": "peer",
    }
    given = shlex.split(setting)
    # The optimizer of its guides where that is installed, else torch's.
    is_8bit = torch.cuda.is_available() and peer.has("bitsandbytes")
    optimizer = [] if "--optimizer_type" in given else ["--optimizer_type", "adamw8bit" if is_8bit else "adamw"]
    return [
        *(sys.executable, str(launcher), str(peer.checkout), str(records), str(peer.dumps)),
        *(part for pair in fixed.items() for part in pair),
        *(*shlex.split(COMMON), *optimizer, *given),
    ]
