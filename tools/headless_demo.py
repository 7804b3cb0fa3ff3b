"""The demo's job without ComfyUI: the command line trains both experts and makes the video. Standard library only."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .comfyui import SetupError, say
from .examples import DEMO_DATASET, DEMO_NAME, DEMO_PREVIEW, DEMO_TRAINING, STAGES
from .workflow import Json

# Inputs of TrainLoRAStage that the demo sets -> where a recipe has them.
PLACES = {
    "steps": "loop", "batch_size": "loop", "seed": "loop", "rank": "adapter", "alpha": "adapter",
    "learning_rate": "optimizer", "lr_schedule": "schedule",
}  # fmt: skip
RENAMED = {"lr_schedule": "kind"}

Wantrain = Callable[[list[str]], int]  # arguments of the command line -> exit status


def recipe(pack: Path, base: Path) -> Json:
    """The demo's graph as a recipe: the same job, so that the two share caches and runs."""
    nano = pack / "nano"
    experts = {stage: nano / "diffusion_models" / f"wan_nano_t2v_{stage}_noise.safetensors" for stage in STAGES}
    tables: Json = {
        "name": DEMO_NAME,
        "dataset": {**DEMO_DATASET, "folder": str(nano / "datasets" / Path(DEMO_DATASET["folder"]).name)},
        "models": {
            **{stage: str(path) for stage, path in experts.items()},
            "vae": str(nano / "vae" / "wan_nano_vae.safetensors"),
            "text_encoder": str(nano / "text_encoders" / "wan_nano_umt5.safetensors"),
        },
        "memory": {"checkpointing": False},
        "lora": {"folder": str(base / "models" / "loras")},
        "work": str(base / "output" / "wan_train"),
    }
    for name, group in PLACES.items():
        tables.setdefault(group, {})[RENAMED.get(name, name)] = DEMO_TRAINING[name]
    return tables


def preview_arguments(models: dict[str, str], loras: dict[str, Path], out: Path) -> list[str]:
    """What the demo's Preview LoRA does, for `wantrain preview`."""
    arguments = ["preview", "--vae", models["vae"], "--text-encoder", models["text_encoder"], "--name", DEMO_NAME]
    for stage in STAGES:
        arguments += [f"--{stage}", models[stage], f"--lora-{stage}", str(loras[stage])]
    for name, value in DEMO_PREVIEW.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return [*arguments, "--out", str(out)]


def run(wantrain: Wantrain, pack: Path, base: Path, *, changes: tuple[str, ...] = ()) -> None:
    """Train and sample; `changes` are made to the recipe. SetupError if a command fails."""
    start = time.monotonic()
    base.mkdir(parents=True, exist_ok=True)
    tables, path = recipe(pack, base), base / f"{DEMO_NAME}.json"
    path.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    say(f"The recipe: {path}")
    _call(wantrain, ["train", str(path), *(argument for change in changes for argument in ("--set", change))])
    folder, out = base / "models" / "loras", base / "output" / "video"
    loras = {stage: newest_lora(folder, stage) for stage in STAGES}
    _call(wantrain, preview_arguments(tables["models"], loras, out))
    say(f"Done in {time.monotonic() - start:.0f} s. The results:")
    for lora in loras.values():
        say(f"  LoRA: {lora}")
    for ending in ("mp4", "png"):
        say(f"  Without and with the LoRA: {_newest(out, f'{DEMO_NAME}*.{ending}')}")


def command_line(python: Path, pack: Path) -> Wantrain:
    """The `wantrain` of the pack, as processes of this Python."""
    command = [str(python), str(pack / "wantrain.py")]
    return lambda arguments: subprocess.run([*command, *arguments], check=False).returncode


def _call(wantrain: Wantrain, arguments: list[str]) -> None:
    if wantrain(arguments) != 0:
        raise SetupError(f"`wantrain {arguments[0]}` failed; it has said why.")


def newest_lora(folder: Path, stage: str) -> Path:
    """The demo's LoRA of an expert that was written last: demo_dive_high_noise, demo_dive_v2_high_noise, ..."""
    return _newest(folder, f"{DEMO_NAME}*_{stage}_noise.safetensors")


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
