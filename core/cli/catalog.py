"""The model files that training needs, as Comfy-Org publishes them on Hugging Face, and fetching them."""

import errno
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..disk import check_writable, disk_error
from ..errors import ModelFileError
from ..moving import replace

REPOSITORY_21 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
REPOSITORY_22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"

# Digests that ComfyUI's own templates state. Those of the other files are asked of Hugging Face.
_SHA256 = {
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68",
    "wan_2.1_vae.safetensors": "2fc39d31359a4b0a64f55876d8ff7fa8d780956ae2cb13463b0223e15148976b",
    "clip_vision_h.safetensors": "64a7ef761bfccbadbaa3da77366aac4185a6c58fa5de5f589b42a65bcc21f161",
    "wan2.1_flf2v_720p_14B_fp16.safetensors": "bf4ac25667d00f53f49df02c5771f5aa7801c1dcb9b3ccade1407687c426d030",
}


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    repository: str
    path: str  # in the repository: split_files/<folder of ComfyUI's models>/<name>
    into: str = ""  # the folder below ComfyUI's models, where the path does not say it

    @property
    def name(self) -> str:
        """Of the file."""
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """Below ComfyUI's models."""
        return self.into or PurePosixPath(self.path).parent.name

    @property
    def sha256(self) -> str:
        """The digest known beforehand, or ''."""
        return _SHA256.get(self.name, "")


def _file(repository: str, folder: str, name: str) -> HubFile:
    return HubFile(repository, f"split_files/{folder}/{name}.safetensors")


def _dit_21(name: str) -> HubFile:
    return _file(REPOSITORY_21, "diffusion_models", f"wan2.1_{name}")


def _experts(kind: str, precision: str) -> tuple[HubFile, ...]:
    names = (f"wan2.2_{kind}_{stage}_noise_14B_{precision}" for stage in ("high", "low"))
    return tuple(_file(REPOSITORY_22, "diffusion_models", name) for name in names)


_TEXT = _file(REPOSITORY_21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled")
_VAE_21 = _file(REPOSITORY_21, "vae", "wan_2.1_vae")
_VAE_22 = _file(REPOSITORY_22, "vae", "wan2.2_vae")
_VISION = _file(REPOSITORY_21, "clip_vision", "clip_vision_h")

# Name -> everything that training this model needs.
SETS: dict[str, tuple[HubFile, ...]] = {
    "t2v-1.3b": (_dit_21("t2v_1.3B_fp16"), _VAE_21, _TEXT),
    "t2v-14b": (_dit_21("t2v_14B_fp16"), _VAE_21, _TEXT),
    "i2v-480p-14b": (_dit_21("i2v_480p_14B_fp16"), _VAE_21, _TEXT, _VISION),
    "flf2v-14b": (_dit_21("flf2v_720p_14B_fp16"), _VAE_21, _TEXT, _VISION),
    "t2v-a14b": (*_experts("t2v", "fp8_scaled"), _VAE_21, _TEXT),
    "t2v-a14b-fp16": (*_experts("t2v", "fp16"), _VAE_21, _TEXT),
    "i2v-a14b": (*_experts("i2v", "fp8_scaled"), _VAE_21, _TEXT),
    "i2v-a14b-fp16": (*_experts("i2v", "fp16"), _VAE_21, _TEXT),
    "ti2v-5b": (_file(REPOSITORY_22, "diffusion_models", "wan2.2_ti2v_5B_fp16"), _VAE_22, _TEXT),
}
# What the official text encoder needs besides: models_t5_umt5-xxl-enc-bf16.pth has no tokenizer inside.
PARTS: dict[str, tuple[HubFile, ...]] = {"tokenizer": (HubFile("google/umt5-xxl", "spiece.model", "text_encoders"),)}


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file."""

    num_bytes: int
    sha256: str


def ask_hub(files: tuple[HubFile, ...]) -> dict[HubFile, Remote]:
    """Size and digest of each file. Raises ModelFileError if the hub cannot be reached or lacks one."""
    from huggingface_hub import HfApi

    api, found = HfApi(), {}
    for repository in dict.fromkeys(file.repository for file in files):
        wanted = {file.path: file for file in files if file.repository == repository}
        try:
            infos = api.get_paths_info(repository, list(wanted))
        except Exception as error:  # its own classes and those of its HTTP client, which has changed before
            raise ModelFileError(
                f"Hugging Face did not answer for {repository} ({_first_line(error)}): check the connection, or download "
                "the files by hand."
            ) from error
        for info in infos:
            lfs = getattr(info, "lfs", None)
            found[wanted[info.path]] = Remote(getattr(info, "size", 0), lfs.sha256 if lfs else "")
    missing = [file for file in files if file not in found]
    if missing:
        raise ModelFileError(f"{missing[0].repository} on Hugging Face has no file {missing[0].path} any more.")
    return found


def fetch(file: HubFile, remote: Remote, models: Path, *, on_state: Callable[[str], None] = lambda _: None) -> Path:
    """Download `file` into its folder below `models` and check it; one that is there whole is kept.

    An interrupted download goes on from where it was. Raises ModelFileError if the content is not what the digest says:
    the file is then not put in place.
    """
    target = models / file.folder / file.name
    expected = file.sha256 or remote.sha256
    if remote.sha256 and expected != remote.sha256:
        raise ModelFileError(
            f"{file.name} on Hugging Face is not the file that ComfyUI's templates name (sha256 {remote.sha256}, not "
            f"{expected}): it was replaced; download it by hand if you trust it."
        )
    if target.exists() and target.stat().st_size == remote.num_bytes:
        on_state(f"{file.name} is there")
        return target
    on_state(f"{file.name}: {remote.num_bytes / 1e9:.1f} GB into {target.parent}")
    check_writable(target.parent)
    if shutil.disk_usage(target.parent).free < remote.num_bytes:
        raise ModelFileError(f"{target.parent} has no room for the {remote.num_bytes / 1e9:.1f} GB of {file.name}.")
    part = _download(file, models / ".wantrain_downloads")
    found = _digest(part) if expected else ""
    if found != expected:
        part.unlink()
        raise ModelFileError(f"{file.name} arrived damaged (sha256 {found}, not {expected}): download it again.")
    try:
        replace(part, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise disk_error(error, target, f"the download is kept in {part}") from error
        shutil.move(part, target)  # onto another disk
    return target


def _download(file: HubFile, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(file.repository, file.path, local_dir=folder))
    except Exception as error:  # see ask_hub
        raise ModelFileError(
            f"{file.name} could not be downloaded ({_first_line(error)}): run the same command again to go on."
        ) from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
