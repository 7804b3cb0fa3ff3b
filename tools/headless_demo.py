"""The demo's job without ComfyUI: the command line trains both experts and makes the video. Standard library only."""

import json
import subprocess
import time
from pathlib import Path

from .comfyui import SetupError, say
from .examples import demo_sketch
from .workflow import Json

# Inputs of TrainLoRAStage that the demo sets -> where a recipe has them.
PLACES = {
    "steps": "loop", "batch_size": "loop", "seed": "loop", "rank": "adapter", "alpha": "adapter",
    "learning_rate": "optimizer", "lr_schedule": "schedule",
}  # fmt: skip
RENAMED = {"lr_schedule": "kind"}
STAGES = ("high", "low")


def demo_inputs(class_type: str) -> Json:
    """Inputs of the demo's first node of a class, without links."""
    node = next(node for node in demo_sketch().prompt.values() if node["class_type"] == class_type)
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}


def model_path(base: Path, class_type: str, field: str, directory: str) -> str:
    """The model file that a loader of the demo names, below the demo's folder."""
    return str(base / "models" / directory / demo_inputs(class_type)[field])


def recipe(base: Path) -> Json:
    """The demo's graph as a recipe: the same job, so that the two share caches and runs."""
    dataset, train = demo_inputs("DatasetFromFolder"), demo_inputs("TrainLoRAStage")
    high = model_path(base, "LoadWanDiT", "model_name", "diffusion_models")
    tables: Json = {
        "name": train["lora_name"],
        "dataset": {**dataset, "folder": str(base / dataset["folder"])},
        "models": {
            "high": high,
            "low": high.replace("high", "low"),
            "vae": model_path(base, "VAELoader", "vae_name", "vae"),
            "text_encoder": model_path(base, "WanLoadUMT5", "name", "text_encoders"),
        },
        "memory": {"checkpointing": demo_inputs("LoadWanDiT")["checkpointing"]},
        "lora": {"folder": str(base / "models" / "loras")},
        "work": str(base / "output" / "wan_train"),
    }
    for name, group in PLACES.items():
        tables.setdefault(group, {})[RENAMED.get(name, name)] = train[name]
    return tables


def preview_arguments(base: Path, loras: dict[str, Path]) -> list[str]:
    """What the demo's Preview LoRA does, for `wantrain preview`."""
    models, preview = recipe(base)["models"], demo_inputs("PreviewLoRA")
    arguments = ["--vae", models["vae"], "--text-encoder", models["text_encoder"], "--name", "demo_shapes"]
    for stage in STAGES:
        arguments += [f"--{stage}", models[stage], f"--lora-{stage}", str(loras[stage])]
    for name in ("prompt", "width", "height", "num_frames", "steps", "cfg", "seed"):
        arguments += [f"--{name.replace('_', '-')}", str(preview[name])]
    return [*arguments, "--out", str(base / "output" / "video")]


def run(python: Path, pack: Path, base: Path, *, changes: tuple[str, ...] = ()) -> None:
    """Train and sample; `changes` are made to the recipe. SetupError if a command fails."""
    start = time.monotonic()
    path = base / "demo_shapes.json"
    path.write_text(json.dumps(recipe(base), indent=2) + "\n", encoding="utf-8")
    say(f"The job: {path}")
    settings = [argument for change in changes for argument in ("--set", change)]
    _wantrain(python, pack, "train", str(path), *settings)
    folder = base / "models" / "loras"
    loras = {stage: _newest(folder, f"demo_shapes_{stage}_noise*.safetensors") for stage in STAGES}
    _wantrain(python, pack, "preview", *preview_arguments(base, loras))
    say(f"Done in {time.monotonic() - start:.0f} s. The results:")
    for lora in loras.values():
        say(f"  LoRA: {lora}")
    for ending in ("mp4", "png"):
        say(f"  Without and with the LoRA: {_newest(base / 'output' / 'video', f'demo_shapes*.{ending}')}")


def _wantrain(python: Path, pack: Path, *arguments: str) -> None:
    if subprocess.run([str(python), str(pack / "wantrain.py"), *arguments], check=False).returncode != 0:
        raise SetupError(f"`wantrain {arguments[0]}` failed; it has said why.")


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
