"""Trains a full-size model with random weights through the worker, as a user's run does, and writes what it took.

python benchmarks/full_size.py --model 14b --shape 832x480x33 --steps 20 --out benchmarks/results/full-size-h100.json

The weights are random (std 0.7 / sqrt(fan_in)), in the official key layout, bf16; the latents and the text of 160 tokens
are random too. Speed and memory do not depend on their values.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

PACK = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PACK))
import wantrain  # noqa: E402

wantrain.load_pack()
from wan_train.core.adapters.container import write_safetensors  # noqa: E402
from wan_train.core.train.events import EventReader  # noqa: E402
from wan_train.core.train.job import DataSpec, Job, LoopOptions, ModelSpec, TrainSample  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.core.wan.checkpoint import inspect  # noqa: E402
from wan_train.core.wan.config import WanConfig  # noqa: E402
from wan_train.core.wan.model import WanTransformer  # noqa: E402

MODELS = {
    "14b": WanConfig(),
    "1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
}
TEXT_TOKENS = 160


def write_checkpoint(path: Path, config: WanConfig) -> None:
    """A random model in bf16, drawn on the GPU."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in WanTransformer(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        if "norm" in name:
            tensors[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 and "modulation" not in name else shape[-1]
            tensors[name] = torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(0.7 / math.sqrt(fan_in)).cpu()
    write_safetensors(path, {name: t.to(torch.bfloat16) for name, t in tensors.items()}, {"format": "pt"})


def make_job(folder: Path, model: Path, shape: tuple[int, int, int], steps: int) -> Job:
    """The default settings of TrainLoRAStage for the high noise expert, on one random sample."""
    width, height, frames = shape
    latent_shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    config = inspect(model).config
    paths = {name: folder / f"{name}.safetensors" for name in ("latents", "context", "empty")}
    write_safetensors(paths["latents"], {"latents": torch.randn(latent_shape)}, {})
    write_safetensors(paths["context"], {"context": torch.randn(TEXT_TOKENS, config.text_dim)}, {})
    write_safetensors(paths["empty"], {"context": torch.randn(1, config.text_dim)}, {})
    sample = TrainSample(
        name="random",
        latents_path=str(paths["latents"]),
        latents_key="random",
        shape=latent_shape,
        text_path=str(paths["context"]),
        text_key="random",
        caption="random",
    )
    job = Job(
        name="full_size",
        stage="high",
        model=ModelSpec(path=str(model), identity=inspect(model).identity, label="wan2.2-t2v-a14b"),
        data=DataSpec(
            samples=(sample,),
            empty_text_path=str(paths["empty"]),
            empty_text_key="empty",
            text_dim=config.text_dim,
        ),
        loop=LoopOptions(steps=steps, checkpoint_every=steps),
        device="cuda:0",
    )
    return replace(job, timesteps=replace(job.timesteps, sigma_min=0.875))


def measure(folder: Path, job: Job) -> dict:
    """Run the worker; seconds a step (first step apart), memory, and times around it."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.write_job(job)
    start = time.time()
    command = [sys.executable, str(PACK / "wantrain.py"), "train", str(run.path)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"the worker ended with code {code}; {run.events_path}: {run.events_path.read_text()[-2000:]}")
    events = EventReader(run.events_path).read()
    steps = [e for e in events if e["event"] == "step"]
    seconds = [e["seconds"] for e in steps]
    return {
        "steps": len(steps),
        "s_per_step": round(statistics.median(seconds[1:]), 3),
        "s_per_step_min": round(min(seconds[1:]), 3),
        "s_per_step_max": round(max(seconds[1:]), 3),
        "first_step_s": seconds[0],
        "start_to_first_step_s": round(steps[0]["time"] - start - seconds[0], 1),
        "peak_allocated_gib": round(max(e["allocated_gib"] for e in steps), 2),
        "peak_reserved_gib": round(max(e["reserved_gib"] for e in steps), 2),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "lora_bytes": next(run.path.glob("*.safetensors")).stat().st_size,
    }


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14b")
    parser.add_argument("--shape", nargs="+", default=["832x480x33"], help="WIDTHxHEIGHTxFRAMES, one or more")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (29 GB for 14b); default: a temporary one")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    model = work / f"random-{options.model}.safetensors"
    if not model.exists():
        write_checkpoint(model, MODELS[options.model])
    torch.cuda.empty_cache()
    rows = []
    for shape in options.shape:
        width, height, frames = (int(part) for part in shape.split("x"))
        folder = Path(tempfile.mkdtemp(dir=work))
        row = measure(folder, make_job(folder, model, (width, height, frames), options.steps))
        tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)
        rows.append({"model": options.model, "shape": shape, "tokens": tokens, "precision": "bf16", "rank": 16, **row})
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "device": torch.cuda.get_device_name(0),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "peft", "safetensors")},
        },
        "command": "python benchmarks/full_size.py " + " ".join(sys.argv[1:]),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
