"""Names of a Wan transformer's modules in every LoRA dialect, and back to the official path.

Official paths are those of the published checkpoints ("blocks.0.self_attn.q"; Wan2.2, wan/modules/model.py). Diffusers
renames them (its scripts/convert_wan_to_diffusers.py); kohya and musubi flatten either with underscores, which only a
table can undo, because "cross_attn_k_img" has underscores of its own.
"""

import re
from dataclasses import dataclass
from typing import Literal

from ..facts import Expert

Style = Literal["official", "kohya", "diffusers", "peft", "bare", "mixed"]
Part = Literal["down", "up", "alpha"]

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj"}

# Official name -> diffusers name, inside one block of `blocks` or `vace_blocks`.
_BLOCK_LEAVES = {
    **{f"self_attn.{name}": f"attn1.{other}" for name, other in _ATTENTION.items()},
    **{f"cross_attn.{name}": f"attn2.{other}" for name, other in {**_ATTENTION, **_IMAGE}.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "before_proj": "proj_in",  # vace_blocks only
    "after_proj": "proj_out",
}

# Official name -> diffusers name, outside the blocks.
_TOP_LEVEL = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}

_ORDER = ("self_attn", "cross_attn", "ffn", "q", "k", "v", "o", "k_img", "v_img")


def _lookup(names: dict[str, str]) -> dict[str, tuple[str, bool]]:
    """Any spelling (dotted or flat, official or diffusers) -> official name, and whether it was diffusers' own."""
    table: dict[str, tuple[str, bool]] = {}
    for official, diffusers in names.items():
        for spelling, foreign in ((official, False), (diffusers, diffusers != official)):
            table[spelling] = table[spelling.replace(".", "_")] = (official, foreign)
    return table


_BLOCK_LOOKUP = _lookup(_BLOCK_LEAVES)
_TOP_LOOKUP = _lookup(_TOP_LEVEL)

_BLOCK = re.compile(r"(?P<stack>blocks|vace_blocks)(?P<sep>[._])(?P<index>[0-9]{1,6})(?P=sep)(?P<leaf>.+)")
_FLAT_PREFIX = re.compile(r"(?:lora_unet_{1,2}|lora_transformer_(?![12]\.)(?:(?P<number>[12])_)?|lycoris_)")
_COMPILED = re.compile(r"(?<![a-z_])_orig_mod\.")  # of torch.compile, which wraps blocks, too
_FLAT_WRAPPER = re.compile(r"_*orig_mod_|^module_")
# What stands before a module's name, in any order: peft's, torch's for several GPUs, and what a trainer calls its model.
_AROUND = re.compile(
    r"(?:(?P<peft>base_model\.model)|(?P<parallel>module)"
    r"|(?P<model>model\.diffusion_model|diffusion_model(?:_2)?|(?:lora_)?transformer(?:_[12])?|(?:pipe\.)?dit2?|unet|model))\."
)
_COMPONENTS = ("transformer", "transformer_2", "unet")
# What trainers call the second of two models, the low noise expert: diffusers and AI-Toolkit; OneTrainer; DiffSynth.
_SECOND = ("transformer_2", "lora_transformer_2", "diffusion_model_2", "dit2", "pipe.dit2")
_FIRST = "transformer_1"  # AI-Toolkit's name of the high noise expert; others give it no number

_SUFFIXES: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"\.lora_A(?:\.weight|\.(?P<name>[^.]+)\.weight)?$"), "down"),
    (re.compile(r"\.lora_B(?:\.weight|\.(?P<name>[^.]+)\.weight)?$"), "up"),
    (re.compile(r"(?:\.lora_down|[._]lora\.down)\.weight$"), "down"),
    (re.compile(r"(?:\.lora_up|[._]lora\.up)\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
)

# What a key outside plain LoRA gives away: (pattern, name of the method as the user knows it).
FOREIGN_METHODS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lokr_(?:w1|w2|t2)"), "LoKr"),
    (re.compile(r"\.hada_(?:w1|w2|t1|t2)"), "LoHa"),
    (re.compile(r"\.b?oft_"), "OFT"),
    (re.compile(r"\.dora_scale$|\.lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.lora_mid\."), "LoCon with Tucker factors"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.lora_B(?:\.[^.]+)?\.bias$"), "LoRA with biases"),
    (re.compile(r"\.(?:diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$"), "full-weight difference"),
)


@dataclass(frozen=True)
class LoraKey:
    """One parsed key: whose tensor it is, which part of the LoRA, and the dialect it was written in."""

    path: str
    part: Part
    style: Style


def split_part(key: str) -> tuple[str, Part, bool] | None:
    """Key -> (module name as written, part, whether it carries a peft adapter name); None if it is no LoRA key."""
    for pattern, part in _SUFFIXES:
        match = pattern.search(key)
        if match:
            return key[: match.start()], part, bool(match.groupdict().get("name"))
    return None


def official_path(name: str) -> tuple[str, Style] | None:
    """Module name in any dialect -> (official path, dialect); None if a Wan transformer has no such module."""
    flat = _FLAT_PREFIX.match(name)
    if flat:
        found = _find(_FLAT_WRAPPER.sub("_", name[flat.end() :]).lstrip("_"))
        return (found[0], "kohya") if found else None
    around, bare = _split_around(name)
    found = _find(bare)
    if found is None:
        return None
    if found[1]:
        return found[0], "diffusers"
    kinds = {one.lastgroup for one in around}
    return found[0], "peft" if "peft" in kinds else "official" if "model" in kinds else "bare"


def component(key: str) -> str:
    """The part of a diffusers pipeline that a key names first: "transformer", "transformer_2" or "unet"; "" for none."""
    named = (one["model"] for one in _split_around(key)[0])
    return next((name for name in named if name in _COMPONENTS), "")


def expert_of_key(key: str) -> Expert | None:
    """Which expert of Wan 2.2 a key names by the name of its model; None where that may be the only model."""
    flat = _FLAT_PREFIX.match(key)
    if flat:
        return "high" if flat["number"] == "1" else "low" if flat["number"] == "2" else None
    named = {one["model"] for one in _split_around(key)[0]}
    return "low" if named.intersection(_SECOND) else "high" if _FIRST in named else None


def is_known_to_host(name: str) -> bool:
    """Whether ComfyUI's loaders (0.33, comfy/lora.py) know a module's name: what they do not know has no effect.

    They take "diffusion_model." with official names and "lora_unet_" with them flattened, two underscores too.
    """
    found = official_path(name)
    if found is None:
        return False
    flat = found[0].replace(".", "_")
    return name in (f"diffusion_model.{found[0]}", f"lora_unet_{flat}", f"lora_unet__{flat}")


def is_read_by_host(key: str) -> bool:
    """The same for the full key of a plain LoRA's tensor."""
    split = split_part(key)
    return split is not None and is_known_to_host(split[0])


def names_a_module(key: str) -> bool:
    """Whether a layer of one of Wan's blocks stands in the key behind names that are not known here."""
    split = split_part(key)
    pieces = split[0].split(".") if split else []
    tails = (".".join(pieces[-number:]) for number in range(3, 7) if number < len(pieces))
    return any(_BLOCK.fullmatch(tail) and _find(tail) for tail in tails)


def _split_around(name: str) -> tuple[list[re.Match[str]], str]:
    """What stands before a module's name, and the name."""
    bare, around, at = _COMPILED.sub("", name), list[re.Match[str]](), 0
    while (found := _AROUND.match(bare, at)) is not None:
        around.append(found)
        at = found.end()
    return around, bare[at:]


def parse_key(key: str) -> LoraKey | None:
    """Full tensor key in any dialect, or None if it is no LoRA key of a Wan transformer."""
    split = split_part(key)
    found = official_path(split[0]) if split else None
    if split is None or found is None:
        return None
    named = split[2] and found[1] in ("bare", "official")
    return LoraKey(path=found[0], part=split[1], style="peft" if named else found[1])


def module_names(path: str) -> tuple[str, str]:
    """(official path, diffusers' name) of one module."""
    block = _BLOCK.fullmatch(path)
    if block is None:
        return path, _TOP_LEVEL.get(path, path)
    return path, f"{block['stack']}.{block['index']}.{_BLOCK_LEAVES.get(block['leaf'], block['leaf'])}"


def official_key(path: str, part: Part) -> str:
    """Official path -> key as ComfyUI, AI-Toolkit and diffusion-pipe write it."""
    return f"diffusion_model.{path}." + {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[part]


def diffusers_key(path: str, part: Part) -> str:
    """Official path -> key as diffusers writes it; its files have no alphas."""
    return (
        f"transformer.{module_names(path)[1]}."
        + {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[part]
    )


def kohya_key(path: str, part: Part) -> str:
    """Official path -> key as kohya's scripts and musubi-tuner write it."""
    suffix = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}[part]
    return f"lora_unet_{path.replace('.', '_')}.{suffix}"


def sort_key(path: str) -> list[tuple[int, int, str]]:
    """The model's own order: block 2 before block 10, self-attention before cross-attention before ffn, q k v o."""
    order = len(_ORDER)
    return [
        (0, int(piece), "") if piece.isdigit() else (1, _ORDER.index(piece) if piece in _ORDER else order, piece)
        for piece in path.split(".")
    ]


def _find(name: str) -> tuple[str, bool] | None:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _TOP_LOOKUP.get(name)
    leaf = _BLOCK_LOOKUP.get(block["leaf"])
    return (f"{block['stack']}.{int(block['index'])}.{leaf[0]}", leaf[1]) if leaf else None
