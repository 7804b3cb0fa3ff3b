"""Finds the files of a model in a folder of models, by their content."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..encoders.weights import open_weights
from ..errors import WanTrainError
from ..launch.ahead import PACK
from ..wan.checkpoint import hints_expert, inspect
from ..wan.identify import identify

_SHARED = ("vae", "text_encoder")
# By the family of a preset: Wan 2.2 A14B with its experts, or a single model.
SLOTS = {
    "t2v-a14b": ("high", "low", *_SHARED),
    "i2v-a14b": ("high", "low", *_SHARED),
    "t2v-1.3b": ("single", *_SHARED),
}
_WIDTH_1_3B = 1536
_FOLDERS = {
    "single": ("diffusion_models", "unet"),
    "high": ("diffusion_models", "unet"),
    "low": ("diffusion_models", "unet"),
    "vae": ("vae",),
    "text_encoder": ("text_encoders", "clip"),
}
_ENDINGS = {
    "single": (".safetensors", ".gguf"),
    "high": (".safetensors", ".gguf"),
    "low": (".safetensors", ".gguf"),
    "vae": (".safetensors", ".pth"),
    "text_encoder": (".safetensors", ".pth"),
}


def model_folders(given: Path | None = None) -> list[Path]:
    """Where models may lie: the folder that was given, or those of ComfyUI in the usual places."""
    if given is not None:
        return [given]
    homes = [os.environ.get("COMFYUI_PATH", ""), PACK.parent.parent, Path.home() / "ComfyUI"]
    homes += [Path.home() / "comfy" / "ComfyUI", Path.cwd() / "ComfyUI", Path.cwd()]
    folders = [Path(home).resolve() / "models" for home in homes if home]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def find_model(slot: str, folders: Iterable[Path], family: str = "t2v-a14b") -> Path | None:
    """The file for one of the family's SLOTS; of several the largest, which is the least quantized."""
    found = [path for folder in folders for path in _candidates(slot, folder) if _fits(slot, path, family)]
    return max(found, key=lambda path: (path.stat().st_size, path.name), default=None)


def _candidates(slot: str, folder: Path) -> Iterator[Path]:
    """Files with the right ending, in folders with the right name or, where there is none, anywhere."""
    places = [place for name in _FOLDERS[slot] for place in folder.rglob(name) if place.is_dir()] or [folder]
    for place in places:
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in _ENDINGS[slot] and path.is_file():
                yield path


def _fits(slot: str, path: Path, family: str) -> bool:
    try:
        if slot in ("high", "low"):
            return hints_expert(path) == slot and inspect(path).config.variant == family.partition("-")[0]
        if slot == "single":
            config = inspect(path).config
            return hints_expert(path) is None and (config.variant, config.dim) == ("t2v", _WIDTH_1_3B)
        if path.suffix == ".pth" and not any(word in path.name.lower() for word in ("wan", "t5")):
            return False  # opening a pickle reads it: only what bears the name
        return identify(open_weights(path).shapes).name == {"vae": "wan2.1_vae", "text_encoder": "umt5"}[slot]
    except WanTrainError:
        return False  # another model, or a damaged file
