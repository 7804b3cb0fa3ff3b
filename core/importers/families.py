"""The models of the Wan family that setups of other trainers name, and the files that ComfyUI has of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..facts import FPS, FPS_TI2V
from ..settings.dataset import Conditioning
from ..settings.stage import Stage
from ..wan.config import Variant, WanConfig

VAE_21, VAE_22 = "wan_2.1_vae.safetensors", "wan2.2_vae.safetensors"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
CLIP_VISION = "clip_vision_h.safetensors"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model: what it is called, and its files as Comfy-Org publishes them (core/cli/catalog.py has the same names)."""

    title: str
    files: Mapping[Stage, str]
    vae: str = VAE_21
    conditioning: Conditioning = "none"
    clip_vision: str = ""  # of Wan 2.1 image-to-video
    workflow: str  # the example workflow that is filled in
    fps: float = FPS
    num_blocks: int = 40
    width: int = 5120
    variant: Variant = "t2v"

    @property
    def has_experts(self) -> bool:
        """Whether it is two models, of which each sees its part of the noise levels."""
        return "high" in self.files


def _experts(kind: str) -> dict[Stage, str]:
    return {
        "high": f"wan2.2_{kind}_high_noise_14B_fp16.safetensors",
        "low": f"wan2.2_{kind}_low_noise_14B_fp16.safetensors",
    }


_T2V, _I2V = "wan2.2_t2v_a14b_lora", "wan2.2_i2v_a14b_lora"
_SINGLE = "wan2.1_t2v_1.3b_lora"

FAMILIES: dict[str, Family] = {
    "t2v-a14b": Family(title="Wan 2.2 T2V A14B", files=_experts("t2v"), workflow=_T2V),
    "i2v-a14b": Family(
        title="Wan 2.2 I2V A14B",
        files=_experts("i2v"),
        conditioning="first frame",
        workflow=_I2V,
        variant="i2v",
    ),
    "ti2v-5b": Family(
        title="Wan 2.2 TI2V 5B",
        files={"single": "wan2.2_ti2v_5B_fp16.safetensors"},
        vae=VAE_22,
        workflow="wan2.2_ti2v_5b_lora",
        fps=FPS_TI2V,
        num_blocks=30,
        width=3072,
        variant="ti2v",
    ),
    "t2v-1.3b": Family(
        title="Wan 2.1 T2V 1.3B",
        files={"single": "wan2.1_t2v_1.3B_fp16.safetensors"},
        workflow=_SINGLE,
        num_blocks=30,
        width=1536,
    ),
    "t2v-14b": Family(
        title="Wan 2.1 T2V 14B",
        files={"single": "wan2.1_t2v_14B_fp16.safetensors"},
        workflow=_SINGLE,
    ),
    "i2v-14b-480p": Family(
        title="Wan 2.1 I2V 14B 480p",
        files={"single": "wan2.1_i2v_480p_14B_fp16.safetensors"},
        conditioning="first frame",
        clip_vision=CLIP_VISION,
        workflow=_SINGLE,
        variant="i2v",
    ),
    "i2v-14b-720p": Family(
        title="Wan 2.1 I2V 14B 720p",
        files={"single": "wan2.1_i2v_720p_14B_fp16.safetensors"},
        conditioning="first frame",
        clip_vision=CLIP_VISION,
        workflow=_SINGLE,
        variant="i2v",
    ),
    "flf2v-14b": Family(
        title="Wan 2.1 FLF2V 14B",
        files={"single": "wan2.1_flf2v_720p_14B_fp16.safetensors"},
        conditioning="first and last frame",
        clip_vision=CLIP_VISION,
        workflow=_SINGLE,
        variant="flf2v",
    ),
}


def family_of(text: str) -> str:
    """The family that a repository, a folder or a file is named after; "" where its name does not tell."""
    name = text.lower().replace("_", "-")
    if not re.search(r"wan|t2v|i2v", name) or re.search(r"vace|s2v-|animate|fun", name):
        return ""
    if "5b" in name:
        return "ti2v-5b"
    if "flf2v" in name:
        return "flf2v-14b"
    kind = "i2v" if "i2v" in name else "t2v"
    if re.search(r"a14b|2\.2|wan22|high-noise|low-noise", name):
        return f"{kind}-a14b"
    if re.search(r"1\.3b|1b\b", name):
        return "t2v-1.3b"
    if "14b" in name:
        return kind + "-14b" + ("" if kind == "t2v" else "-720p" if "720" in name else "-480p")
    return ""


def families_like(config: WanConfig | None, name: str) -> tuple[str, ...]:
    """The families that a model can be of by its sizes, and by its file's name where they leave several; () for none.

    Wan 2.1 T2V 14B and each expert of Wan 2.2 have the same sizes. None: the file is not there, so that its name alone tells.
    """
    named = family_of(name)
    if config is None:
        return (named,) if named else ()
    shape = (config.variant, config.dim, config.num_layers, config.image_dim is not None)
    like = tuple(
        key
        for key, family in FAMILIES.items()
        if (family.variant, family.width, family.num_blocks, bool(family.clip_vision)) == shape
    )
    if named in like:
        return (named,)
    experts = tuple(key for key in like if FAMILIES[key].has_experts)
    return experts if experts and stage_of(name) else like


def stage_of(text: str) -> Stage | None:
    """The expert that a file is named after: its name, then the rest of its path."""
    for part in reversed(re.split(r"[/\\]", text.lower())):
        found = {word for word in ("high", "low") if re.search(rf"{word}(?=[_-]?noise|[_.-]|$)", part)}
        if len(found) == 1:
            return "high" if found == {"high"} else "low"
    return None
