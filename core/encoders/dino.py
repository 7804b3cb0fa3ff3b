"""DINOv2 in a folder, by transformers: features of frames. Shapes: F frames, H W pixels, P places, E width of the features."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ModelFileError, RunError
from ..packages import advice, installed_version
from ..serial import digest
from ..shortage import is_out_of_memory
from ..wan.recovery import file_identity
from .light_import import for_encoders

# Of ImageNet, as DINOv2 was trained (dinov2/data/transforms.py).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("dinov2", "dinov2_with_registers")
AT_ONCE = 8  # frames in one forward


def feature_width(folder: Path) -> int:
    """E of the model in a folder. ModelFileError for one that is no DINOv2 model; reads its configuration alone."""
    return _whole(_config(folder), "hidden_size", folder)


def check_image_size(folder: Path, side: int) -> None:
    """ModelFileError for a side in pixels that the model can't cut into patches."""
    patch = _whole(_config(folder), "patch_size", folder)
    if side % patch:
        raise ModelFileError(
            f"crepa_image_size is {side}, but the model in {folder} looks at patches of {patch} pixels: give a "
            f"multiple of {patch}."
        )


def folder_identity(folder: Path) -> str:
    """Digest of what a model's folder holds: configuration and weights. ModelFileError for one that is no DINOv2 model."""
    feature_width(folder)
    files = sorted(folder.glob("*.safetensors"))
    return digest([_config(folder), [file_identity(file) for file in files]], 32)


class DinoEncoder:
    """A DINOv2 model."""

    def __init__(self, folder: Path, device: torch.device, *, side: int) -> None:
        """Frames are looked at as squares of `side` pixels. ModelFileError for a folder that can't be loaded."""
        check_image_size(folder, side)
        if not installed_version("transformers"):
            raise RunError(f"The package transformers is not installed, but CREPA needs it: {advice('transformers')}")
        self._side, self._device = side, device
        self._skipped = 1 + int(_config(folder).get("num_register_tokens", 0))  # the class token, and registers
        self._model = _load(folder).to(device)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames [F, H, W, 3] uint8 -> normed features of their patches, [F, P, E] float32 on the CPU.

        A frame is squeezed to a square by bilinear interpolation, as SimpleTuner does it (crepa.py, `_encode_frames`).
        """
        found = []
        mean, std = (torch.tensor(values, device=self._device).view(1, 3, 1, 1) for values in (MEAN, STD))
        for some in frames.split(AT_ONCE):
            pixels = some.to(self._device).permute(0, 3, 1, 2).float() / 255
            pixels = functional.interpolate(pixels, size=(self._side, self._side), mode="bilinear", align_corners=False)
            found.append(self._model((pixels - mean) / std).last_hidden_state[:, self._skipped :].cpu())
        return torch.cat(found)


def _config(folder: Path) -> dict[str, Any]:
    advised = "give the folder of a DINOv2 model as Hugging Face has it, such as facebook/dinov2-giant"
    if folder.is_file():
        raise ModelFileError(f"crepa_encoder is {folder}, which is a file: {advised}.")
    if not folder.is_dir():
        raise ModelFileError(f"The folder of crepa_encoder, {folder}, does not exist: check the path.")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelFileError(f"{folder} holds no config.json: {advised}.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kind = found["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{file} names no model_type: the file is damaged; download the model again.") from error
    if kind not in KINDS:
        raise ModelFileError(f"{folder} holds a model of the type {kind}: {advised}.")
    if not any(folder.glob("*.safetensors")):
        raise ModelFileError(f"{folder} holds no weights (*.safetensors): download the model again.")
    return found


def _whole(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or not 1 <= value <= 2**20:
        raise ModelFileError(
            f"{folder / 'config.json'} has {name} {value!r}: the file is damaged; download the model again."
        )
    return value


def _load(folder: Path) -> Any:
    """In float32, from files of the folder alone: nothing is downloaded, and no code of the folder is run."""
    with for_encoders():
        from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # what a folder of anything makes transformers raise has no end
        if is_out_of_memory(error):
            raise RunError(f"Memory is too small for the model in {folder}: use a smaller one.") from error
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{folder} cannot be loaded as a DINOv2 model ({why}): download it again.") from error
    return model.requires_grad_(False).eval()
