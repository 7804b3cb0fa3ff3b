"""Tells what a weight file is from its keys, shapes and first bytes, so that a wrong file is refused by name."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..facts import LATENT_CHANNELS
from .config import Variant
from .keys import find_prefix, is_diffusers, to_official

Shapes = Mapping[str, Sequence[int]]

WANTED = "use a Wan 2.1 or 2.2 T2V, I2V, FLF2V or TI2V model file, such as wan2.2_t2v_high_noise_14B_fp16.safetensors"
IN_LOADER = "which goes into the {} loader; for the model, " + WANTED


@dataclass(frozen=True)
class FileKind:
    """What a file is. In a message: "<file> is <label>, <advice>."."""

    name: str
    label: str  # with its article
    advice: str
    variant: Variant | None = None  # of a Wan transformer, None for every other file


@dataclass(frozen=True)
class Signature:
    """A kind and how to know it: every pattern is found in some key, and the shapes (if asked) agree."""

    kind: FileKind
    patterns: tuple[str, ...]
    check: Callable[[Shapes], bool] | None = None


UNKNOWN = FileKind("unknown", "not a model that this pack knows", WANTED)


def _other(name: str, label: str) -> FileKind:
    return FileKind(name, label, f"not a Wan video model; {WANTED}")


def _wan(name: str, label: str, variant: Variant) -> FileKind:
    return FileKind(name, label, "which can be trained", variant)


def _not_yet(name: str, label: str, needs: str, variant: Variant = "other") -> FileKind:
    """A Wan model that takes more than a dataset of captioned clips holds."""
    return FileKind(name, label, f"which cannot be trained yet, because it learns from {needs} too; {WANTED}", variant)


def _in_dim(shapes: Shapes) -> int:
    """Channels of the model's input; 0 if the file has no patch embedding."""
    shape = shapes.get("patch_embedding.weight", ())
    return shape[1] if len(shape) > 1 else 0


def _out_dim(shapes: Shapes) -> int:
    """Channels of the model's output: rows of the head per position in a patch; 0 if unknown."""
    head, patch = shapes.get("head.head.weight", ()), shapes.get("patch_embedding.weight", ())
    return head[0] // math.prod(patch[2:]) if len(head) == 2 and len(patch) == 5 and all(patch[2:]) else 0


# Only umT5 has relative positions in every block; T5 has them in the first.
_UMT5_KEYS = r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.|^blocks\.1\.pos_embedding\."

_WAN = r"^head\.modulation$"
FUN_CONTROL = _not_yet("wan_fun_control", "a Wan Fun-Control model", "control videos", "fun_control")

# The first that fits wins: special cases stand before the general ones. Keys are official names without prefix.
SIGNATURES = (
    Signature(
        FileKind("lora", "a LoRA or another adapter", f"which goes into the LoRA loader; for the base model, {WANTED}"),
        (r"[._]lora[._]?(A|B|up|down|mid)\b|\.(hada_w1|lokr_w[12]|oft_blocks)|\.dora_scale$|\.diff(_b)?$",),
    ),
    # Wan transformers. Keys as in ComfyUI 0.33, comfy/model_detection.py, and the official repositories.
    Signature(
        _not_yet("wan_vace", "a Wan VACE model", "control videos and masks", "vace"),
        (r"^vace_(patch_embedding|blocks)\.",),
    ),
    Signature(
        _not_yet("wan_camera", "a Wan Fun-Camera model", "camera paths", "fun_control"),
        (_WAN, r"^control_adapter\.conv\."),
    ),
    Signature(
        _not_yet("wan_s2v", "a Wan 2.2 S2V (speech-to-video) model", "audio"), (_WAN, r"^casual_audio_encoder\.")
    ),
    Signature(_not_yet("wan_humo", "a Wan HuMo model", "audio"), (_WAN, r"^audio_proj\.audio_proj_glob")),
    Signature(
        _not_yet("wan_audio", "a Wan talking-video model", "audio"), (_WAN, r"^audio_proj\.|\.audio_cross_attn\.")
    ),
    Signature(
        _not_yet("wan_animate", "a Wan 2.2 Animate model", "videos of poses and faces"), (_WAN, r"^face_adapter\.")
    ),
    Signature(
        _not_yet("wan_pose", "a Wan SCAIL or WanDancer model", "videos of poses, or music"),
        (_WAN, r"^patch_embedding_(mask|pose|global)\."),
    ),
    Signature(_not_yet("wan_recam", "a Wan ReCamMaster model", "camera paths"), (_WAN, r"\.cam_encoder\.")),
    Signature(FUN_CONTROL, (_WAN, r"^ref_conv\.")),
    Signature(_wan("wan_flf2v", "a Wan 2.1 FLF2V model", "flf2v"), (_WAN, r"^img_emb\.emb_pos$")),
    Signature(FUN_CONTROL, (_WAN, r"^img_emb\."), lambda shapes: _in_dim(shapes) > 36),
    # Fun-InP has the same keys and shapes, and is trained in the same way.
    Signature(_wan("wan2.1_i2v", "a Wan 2.1 I2V model", "i2v"), (_WAN, r"^img_emb\.|\.cross_attn\.k_img\.")),
    Signature(
        _wan("wan2.2_ti2v_5b", "a Wan 2.2 TI2V-5B model", "ti2v"),
        (_WAN,),
        lambda shapes: _out_dim(shapes) == _in_dim(shapes) == LATENT_CHANNELS["wan2.2"],
    ),
    Signature(
        _wan("wan2.2_i2v_a14b", "a Wan 2.2 I2V-A14B model", "i2v"),
        (_WAN,),
        lambda shapes: _out_dim(shapes) == 16 and _in_dim(shapes) == 36,
    ),
    Signature(
        _not_yet("wan_fun_control", "a Wan Fun-Control or Fun-Inpaint model", "control videos or masks", "fun_control"),
        (_WAN,),
        lambda shapes: _in_dim(shapes) > _out_dim(shapes) > 0,
    ),
    Signature(_wan("wan_t2v", "a Wan text-to-video model", "t2v"), (_WAN, r"^blocks\.0\.self_attn\.q\.")),
    # VAEs
    Signature(
        FileKind("wan2.2_vae", "a Wan 2.2 VAE", IN_LOADER.format("VAE")),
        (r"^decoder\.upsamples\.0\.upsamples\.0\.residual\.2\.|^decoder\.up_blocks\.0\.upsampler\.resample",),
    ),
    Signature(
        FileKind("wan2.1_vae", "a Wan 2.1 VAE", IN_LOADER.format("VAE")),
        (r"^decoder\.middle\.0\.residual\.0\.gamma|^decoder\.mid_block\.resnets\.0\.norm1\.gamma",),
    ),
    # Whole checkpoints and diffusion models of other families
    Signature(
        _other("sdxl", "a Stable Diffusion XL model"), (r"input_blocks\.0\.0\.weight", r"label_emb\.0\.0\.weight")
    ),
    Signature(_other("sdxl", "a Stable Diffusion XL model"), (r"^down_blocks\.0\.", r"^add_embedding\.linear_1\.")),
    Signature(_other("sd1.5", "a Stable Diffusion 1.5 or 2 model"), (r"input_blocks\.0\.0\.weight",)),
    Signature(
        _other("sd1.5", "a Stable Diffusion 1.5 or 2 model"), (r"^down_blocks\.0\.", r"^mid_block\.", r"^conv_in\.")
    ),
    Signature(_other("sd3", "a Stable Diffusion 3 model"), (r"joint_blocks\.0\.context_block\.",)),
    Signature(
        _other("hunyuan_video", "a HunyuanVideo model"),
        (r"txt_in\.individual_token_refiner\.blocks\.0\.|context_embedder\.token_refiner\.",),
    ),
    Signature(
        _other("qwen_image", "a Qwen-Image model"), (r"(^|\.)txt_norm\.weight", r"transformer_blocks\.0\.img_mlp\.")
    ),
    Signature(
        _other("flux", "a Flux or Chroma model"),
        (r"double_blocks\.0\.img_attn\.|single_transformer_blocks\.0\.attn\.norm_q\.",),
    ),
    Signature(
        _other("ltx", "an LTX-Video model"),
        (r"adaln_single\.emb\.timestep_embedder\.|(^|\.)(patchify_proj|proj_in)\.", r"scale_shift_table$"),
    ),
    Signature(_other("lumina", "a Lumina or Z-Image model"), (r"cap_embedder\.1\.weight",)),
    Signature(
        _other("cosmos", "a Cosmos model"), (r"blocks\.block0\.blocks\.0\.|blocks\.0\.adaln_modulation_self_attn\.",)
    ),
    # Text and image encoders
    Signature(
        FileKind("umt5", "a umT5 text encoder", IN_LOADER.format("CLIP (text encoder)")),
        (_UMT5_KEYS,),
    ),
    Signature(
        FileKind("t5", "a T5 text encoder", f"and Wan uses umT5-XXL in the CLIP loader; for the model, {WANTED}"),
        (r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.",),
    ),
    Signature(
        FileKind(
            "clip_text", "a CLIP text encoder", f"and Wan uses umT5-XXL in the CLIP loader; for the model, {WANTED}"
        ),
        (r"(^|\.)text_model\.encoder\.layers\.0\.",),
    ),
    Signature(
        FileKind("clip_vision", "a CLIP vision encoder", IN_LOADER.format("CLIP vision")),
        (r"(^|\.)(vision_model\.encoder\.layers\.0|visual\.transformer(\.resblocks)?\.0)\.",),
    ),
    Signature(
        FileKind(
            "llm",
            "a language model (text encoder of another family)",
            f"and Wan uses umT5-XXL; for the model, {WANTED}",
        ),
        (r"(^|\.)layers\.0\.self_attn\.q_proj\.weight",),
    ),
    Signature(_other("vae", "an image VAE of another family"), (r"(^|\.)decoder\.conv_in\.weight",)),
)

GGUF = FileKind("gguf", "no GGUF file in spite of its name", "so the download went wrong: download the file again")
PICKLE = FileKind(
    "pickle", "a pickle file", "which can run programs when it is opened; use the .safetensors file of the same model"
)
POINTER = FileKind(
    "git_lfs_pointer", "a Git LFS pointer, not the model itself", "so run 'git lfs pull' or download the real file"
)
WEB_PAGE = FileKind("web_page", "a web page, not a model", "so the download went wrong: download the file again")

_FIRST_BYTES = (
    (b"GGUF", GGUF),
    (b"PK\x03\x04", PICKLE),  # torch.save since 1.6
    (b"\x80", PICKLE),  # older torch.save; every pickle protocol since 2
    (b"version https://git-lfs", POINTER),
    (b"<", WEB_PAGE),
)
_SUFFIXES = {".gguf": GGUF, ".pt": PICKLE, ".pth": PICKLE, ".ckpt": PICKLE, ".bin": PICKLE, ".pkl": PICKLE}


def identify(shapes: Shapes) -> FileKind:
    """The kind of a file from its tensors' names and shapes, in any layout and with any known prefix."""
    shapes = official_shapes(shapes)
    text = "\n".join(shapes)
    for signature in SIGNATURES:
        found = all(re.search(pattern, text, re.MULTILINE) for pattern in signature.patterns)
        if found and (signature.check is None or signature.check(shapes)):
            return signature.kind
    return UNKNOWN


def identify_bytes(first_bytes: bytes, suffix: str) -> FileKind | None:
    """The kind of a file that is no safetensors, from its first bytes or else its suffix; None if it may be one.

    The ninth byte of a safetensors file opens its JSON header; the first eight are a number and may look like anything.
    """
    if first_bytes[8:9] == b"{":
        return None
    for magic, kind in _FIRST_BYTES:
        if first_bytes.startswith(magic):
            return kind
    return _SUFFIXES.get(suffix.lower())


def official_shapes(shapes: Shapes) -> dict[str, Sequence[int]]:
    """Official names, without prefix, to shapes; where there is a prefix, weights outside it are left out."""
    prefix = find_prefix(shapes)
    stripped = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    if not is_diffusers(stripped):
        return stripped
    return {to_official(name): shape for name, shape in stripped.items()}
